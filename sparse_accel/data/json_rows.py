"""Reads the rows of JSON files: objects, one per line, or a table in the formats of pandas and `datasets`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from sparse_accel.data.reading import Rows
from sparse_accel.errors import UsageError, listed, shown

# A row number or date as pandas writes it as a key, and the names that pandas gives to an index without a name.
_ROW_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_MADE_UP = re.compile(r"index|level_\d+")
# Usual names of text and label columns; rows do not have such names.
USUAL_COLUMNS = frozenset(
    (
        *("label", "labels", "target", "score", "text", "text_pair", "sentence", "sentence1", "sentence2"),
        *("premise", "hypothesis", "question", "question1", "question2", "review", "content", "title", "body"),
    )
)


def read_json(file: str, text: str) -> Rows:
    """Returns the rows of a JSON file, in file order.

    Supported are: a list of objects (pandas' orient="records"), also under "data" in an object; one object per line
    (lines=True); {column: {row: value}} (orient="columns", pandas' default) and {row: {column: value}} ("index");
    {"columns": [...], "data": [[...], ...]} ("split"); {"schema": {...}, "data": [...]} ("table"), without an index
    that has no name; {column: [...]}; and one object, which is one row.

    Args:
        file: name of the file, for messages; a .jsonl file that is not one JSON value is read line by line.
        text: content of the file.

    Raises:
        UsageError: not JSON; rows without column names; columns with different rows; an object of objects whose keys do
            not distinguish rows from columns.
    """
    content, lines = _parse(file, text)
    if lines:
        return _from_records(file, content, lines)
    if isinstance(content, list):
        return _from_records(file, content)
    if not isinstance(content, dict):
        raise UsageError(f'{file}: expected a list of objects, such as [{{"text": "fine", "label": 1}}].')
    data, columns, schema = (content.get(key) for key in ("data", "columns", "schema"))
    if isinstance(data, list):
        if isinstance(columns, list) and all(isinstance(row, list) for row in data):
            return _from_split(file, columns, data)
        if not data or any(isinstance(row, dict) for row in data):
            return _from_table(file, schema, data) if isinstance(schema, dict) else _from_records(file, data)
    values = list(content.values())
    if values and all(isinstance(value, list) for value in values):
        return _from_lists(file, content)
    if values and all(isinstance(value, dict) for value in values):
        return _from_objects(file, content)
    if len(content) > 1 and all(_ROW_NUMBER.fullmatch(key) for key in content):
        raise UsageError(f'{file}: one value per row, but no column name. Put {{"column": ...}} around it.')
    return _from_records(file, [content])


# --- JSON -------------------------------------------------------------------------------------------------------------


def _parse(file: str, text: str) -> tuple[Any, list[int]]:
    """Returns the value of a file, and no lines; for one value per line, the list of values and the line of each."""
    try:
        return json.loads(text), []
    except json.JSONDecodeError as error:
        # One complete value on a line with more after it: one value per line.
        by_lines = error.msg == "Extra data" and "\n" not in text[: error.pos].strip()
        if not by_lines and not file.lower().endswith(".jsonl"):
            raise _not_json(file, error.lineno, error) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} cannot be read as JSON: {error}.") from None
    found = list(_parse_lines(file, text))
    return [value for _, value in found], [line for line, _ in found]


def _parse_lines(file: str, text: str) -> Iterator[tuple[int, Any]]:
    # Not str.splitlines(), because it also splits at U+2028, which occurs in real text.
    for line, value in enumerate(text.split("\n"), start=1):
        if value.strip():
            try:
                yield line, json.loads(value)
            except json.JSONDecodeError as error:
                raise _not_json(file, line, error) from None
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{file}, line {line}: cannot be read as JSON: {error}.") from None


def _not_json(file: str, line: int, error: json.JSONDecodeError) -> UsageError:
    return UsageError(f"{file}, line {line}, column {error.colno}: not valid JSON: {error.msg}.")


# --- from each format to columns --------------------------------------------------------------------------------------


def _from_records(file: str, content: list[Any], lines: list[int] | None = None) -> Rows:
    if content and all(isinstance(row, list) for row in content):
        raise UsageError(
            f'{file}: the rows have no column names (orient="values" in pandas). Write the file with '
            'orient="records", "columns", "index", "split" or "table".'
        )
    names: dict[str, None] = {}
    for row, value in enumerate(content):
        if not isinstance(value, dict):
            place = f"row {row + 1}" + (f" (line {lines[row]})" if lines else "")
            raise UsageError(f"{file}, {place}: expected an object with columns as keys, got {shown(value)}.")
        names |= dict.fromkeys(value)
    return Rows({name: [value.get(name) for value in content] for name in names}, lines or [])


def _from_split(file: str, columns: list[Any], data: list[list[Any]]) -> Rows:
    for name in columns:
        if not isinstance(name, (str, int)):
            raise UsageError(f"{file}: the column name {shown(name)} is not a string.")
    names = [str(name) for name in columns]
    if twins := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"{file}: duplicate column {shown(twins[0])}.")
    for row, values in enumerate(data):
        if len(values) != len(names):
            raise UsageError(f"{file}, row {row + 1}: {len(values)} values for {len(names)} columns.")
    return Rows({name: [values[place] for values in data] for place, name in enumerate(names)}, [])


def _from_table(file: str, schema: dict[str, Any], data: list[Any]) -> Rows:
    """Returns the rows without an index that pandas named; one with a name from the user is kept, and marked."""
    keys = schema.get("primaryKey", [])
    index = [keys] if isinstance(keys, str) else keys
    columns = _from_records(file, data).columns
    made_up = {name for name in columns if _MADE_UP.fullmatch(name)}
    kept = {name: column for name, column in columns.items() if not (name in index and name in made_up)}
    # An index with duplicate entries is not a primary key; only its name shows that it is an index.
    return Rows(kept, [], frozenset(name for name in kept if name in index or name in made_up))


def _from_lists(file: str, content: dict[str, list[Any]]) -> Rows:
    first = next(iter(content))
    if all(column and isinstance(column[0], dict) for column in content.values()):
        raise UsageError(
            f"{file}: {shown(first)} is a list of objects. Expected one list of objects, alone or under "
            '"data": write one file per split.'
        )
    for name, column in content.items():
        if len(column) != len(content[first]):
            raise UsageError(
                f"{file}: column {shown(name)} has {len(column)} rows, but {shown(first)} has {len(content[first])}."
            )
    return Rows(content, [])


def _from_objects(file: str, content: dict[str, dict[str, Any]]) -> Rows:
    """Returns the rows of {column: {row: value}} or {row: {column: value}}."""
    inner = list(dict.fromkeys(key for value in content.values() for key in value))
    by_column = _are_columns(list(content), inner)
    if by_column is None:
        raise UsageError(
            f"{file}: an object of objects, but it is unclear which keys are the columns: {listed(content, 3)}, or "
            f'{listed(inner, 3)}. Write the rows as a list of objects: in pandas, to_json(orient="records").'
        )
    if not by_column:
        return _from_records(file, list(content.values()))
    first = next(iter(content))
    for name, column in content.items():
        if column.keys() != content[first].keys():
            raise UsageError(
                f"{file}: columns {shown(first)} and {shown(name)} have different rows ({len(content[first])} and "
                f"{len(column)})."
            )
    return Rows({name: [column[row] for row in content[first]] for name, column in content.items()}, [])


def _are_columns(outer: list[str], inner: list[str]) -> bool | None:
    """Whether the outer keys are the columns (True) or the inner ones (False); None if this is unclear."""
    outer_rows, inner_rows = (all(_ROW_NUMBER.fullmatch(key) for key in keys) for keys in (outer, inner))
    if outer_rows != inner_rows:
        return inner_rows
    outer_usual, inner_usual = (any(key.lower() in USUAL_COLUMNS for key in keys) for keys in (outer, inner))
    return None if outer_usual == inner_usual else outer_usual
