"""The flags of a dataclass: their fields, their types, and the text of --help."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import shutil
import types
import typing
from typing import Any, cast


@functools.cache
def flag_fields(cls: type) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cls)}


@functools.cache
def flag_types(cls: type) -> dict[str, set[type]]:
    """Returns the plain types of each field: {int} for `int | None`, {tuple} for `tuple[str, ...]`."""
    found = {}
    for name, hint in typing.get_type_hints(cls).items():
        union = typing.get_origin(hint) in (types.UnionType, typing.Union)
        options = typing.get_args(hint) if union else (hint,)
        found[name] = {typing.get_origin(one) or one for one in options} - {type(None)}
    return found


def help_parser(cls: type, prog: str | None, description: str) -> argparse.ArgumentParser:
    width = min(shutil.get_terminal_size((120, 24)).columns, 120) - 2
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [settings.json] [--flag value ...]",
        description=description,
        formatter_class=functools.partial(argparse.HelpFormatter, max_help_position=min(34, width // 3), width=width),
    )
    for group in _groups(cls):
        section = parser.add_argument_group((group.__doc__ or "").strip().rstrip("."))
        for field in dataclasses.fields(cast(Any, group)):
            if field.name not in getattr(cls, "not_in_help", ()):
                section.add_argument(f"--{field.name}", **_help_of(cls, field))
    return parser


def _groups(cls: type) -> list[type]:
    """Returns the groups of flags of a dataclass: its root base classes, each replaced by the subclass in which a task
    adds flags to it."""
    with_flags = [kind for kind in cls.__mro__ if dataclasses.is_dataclass(kind)]
    basic = [kind for kind in with_flags if not any(dataclasses.is_dataclass(base) for base in kind.__bases__)]
    groups = [kind for kind in with_flags if sum(issubclass(kind, base) for base in basic) == 1]
    return [next(kind for kind in groups if issubclass(kind, base)) for base in basic]


def _help_of(cls: type, field: dataclasses.Field[Any]) -> dict[str, Any]:
    kind, rules = flag_types(cls)[field.name], field.metadata
    default = rules["default_text"]
    if not default and field.default is not dataclasses.MISSING and field.default is not None:
        default = "" if field.default is False else "true" if field.default is True else str(field.default)
    text = rules["help"] + (f" (default: {default})" if default else "")
    if rules["old_name"]:
        text += f" [also --{rules['old_name']}]"
    if kind == {bool}:
        return {"help": text.replace("%", "%%"), "action": "store_true"}
    metavar = "|".join(rules["choices"]) or {int: "N", float: "X", tuple: "WORD"}.get(next(iter(kind)), "TEXT")
    return {"help": text.replace("%", "%%"), "metavar": metavar}
