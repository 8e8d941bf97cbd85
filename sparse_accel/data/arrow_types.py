"""Types and values of Arrow: what can be text or labels."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import pyarrow
from pyarrow import types

# Names that pandas gives to an index without a name, when it writes Parquet and when it reads CSV.
_ROW_NAMES = re.compile(r"__index_level_\d+__|Unnamed: \d+(\.\d+)*")


def row_names(columns: Iterable[str]) -> frozenset[str]:
    """Returns the columns whose names mark them as row names or row numbers of another tool."""
    return frozenset(name for name in columns if _ROW_NAMES.fullmatch(name))


def stored_type(type_: pyarrow.DataType) -> pyarrow.DataType:
    """Returns the type of the values: the entries of a dictionary type, the storage of an extension type."""
    if isinstance(type_, pyarrow.BaseExtensionType):
        return stored_type(type_.storage_type)
    return stored_type(type_.value_type) if types.is_dictionary(type_) else type_


def is_text(type_: pyarrow.DataType) -> bool:
    stored = stored_type(type_)
    return any(is_kind(stored) for is_kind in (types.is_string, types.is_large_string, types.is_string_view))


def is_list(type_: pyarrow.DataType) -> bool:
    kinds = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(is_kind(type_) for is_kind in kinds)


def can_be_label(type_: pyarrow.DataType) -> bool:
    """Whether values of this type can be labels; maps, unions and intervals cannot."""
    stored = stored_type(type_)
    if is_list(stored):
        return can_be_label(stored.value_type)
    return not any(is_kind(stored) for is_kind in (types.is_map, types.is_union, types.is_interval))


def first_unreadable(column: pyarrow.ChunkedArray) -> int:
    """Returns the first row whose text is not UTF-8; some programs write other bytes."""
    for row, value in enumerate(column):
        try:
            value.as_py()
        except UnicodeDecodeError:
            return row
    return 0


def plain(value: Any) -> Any:
    """Returns a value with each Decimal as an int or float, also inside lists."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, Decimal):
        return float(value) if int(value.as_tuple().exponent) < 0 else int(value)
    return value
