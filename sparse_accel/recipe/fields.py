"""Converts values of a recipe to the types of a modifier's dataclass fields."""

from __future__ import annotations

import copy
import dataclasses
import math
import types
import typing
from collections import ChainMap
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal, Union

from sparse_accel.errors import nearest, shown
from sparse_accel.modifiers.base import Modifier


class TypeMismatch(ValueError):
    """A value that does not fit the type of its field; the message has the entry of a list or mapping, and the type.

    Attributes:
        entry: the keys and indices that lead to the entry, from the outside; empty: the value itself.
    """

    def __init__(self, message: str, entry: tuple[object, ...] = ()) -> None:
        super().__init__(message)
        self.entry = entry


def recipe_fields(modifier: type[Modifier]) -> dict[str, dataclasses.Field[Any]]:
    """Returns the recipe keys of a modifier, by name."""
    return {field.name: field for field in dataclasses.fields(modifier) if field.init}


def required_fields(modifier: type[Modifier]) -> list[str]:
    """Returns the recipe keys that have no default."""
    missing = dataclasses.MISSING
    return [
        name
        for name, field in recipe_fields(modifier).items()
        if field.default is missing and field.default_factory is missing
    ]


def field_types(modifier: type[Modifier]) -> dict[str, Any]:
    """Returns the type of each recipe key, with annotations resolved."""
    hints = typing.get_type_hints(modifier)
    return {name: hints[name] for name in recipe_fields(modifier)}


def key_table(modifier: type[Modifier], name: str) -> Mapping[str, Any]:
    """Returns one of a modifier's key tables, such as `without_effect`, including those of its base classes."""
    return ChainMap(*(vars(kind).get(name, {}) for kind in modifier.__mro__))


def describe_type(expected: Any) -> str:
    """Returns the type of a field as text, for messages and docs."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe_type(member) for member in arguments))
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (list, tuple):
        return f"a list (each {describe_type(arguments[0])})" if arguments and arguments[0] is not Any else "a list"
    if origin is dict or expected is dict:
        return "a mapping"
    words = {bool: "true or false", int: "an integer", float: "a number", str: "a string", type(None): "null"}
    return words.get(expected, str(expected))


def convert(value: Any, expected: Any) -> Any:
    """Returns `value` as the type `expected`.

    The ints 0 and 1 are accepted as bool, ints as float, whole floats as int; a bool is never a number.

    Raises:
        TypeMismatch: the value does not fit the type.
    """
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if expected is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(value, arguments, expected)
    if origin is Literal:
        if value in arguments and not isinstance(value, bool):
            return value
        raise _mismatch(value, expected, nearest(str(value), [str(choice) for choice in arguments]))
    if origin in (list, tuple) or expected is list:
        if not isinstance(value, list | tuple):
            raise _mismatch(value, expected)
        member = arguments[0] if arguments else Any
        return (origin or list)(_convert_entry(each, member, at, f"entry {at + 1}") for at, each in enumerate(value))
    if origin is dict or expected is dict:
        if not isinstance(value, dict):
            raise _mismatch(value, expected)
        key_type, value_type = arguments or (Any, Any)
        return {
            _convert_entry(key, key_type, key, "a key"): _convert_entry(each, value_type, key, str(key))
            for key, each in value.items()
        }
    return _convert_scalar(value, expected)


def _convert_entry(value: Any, expected: Any, at: object, name: str) -> Any:
    try:
        return convert(value, expected)
    except TypeMismatch as error:
        raise TypeMismatch(f"{name}: {error}", (at, *error.entry)) from None


def _convert_union(value: Any, members: tuple[Any, ...], expected: Any) -> Any:
    converted, inside = [], []
    for member in members:
        try:
            candidate = convert(value, member)
        except TypeMismatch as error:
            inside += [error] if error.entry else []
            continue
        if type(candidate) is type(value):
            return candidate
        converted.append(candidate)
    if converted:
        return converted[0]
    if len(inside) == 1:  # one of the types is the value's, but for that entry
        raise inside[0]
    raise _mismatch(value, expected)


def _convert_scalar(value: Any, expected: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if expected is bool and (isinstance(value, bool) or (isinstance(value, int) and value in (0, 1))):
        return bool(value)
    finite = number and (isinstance(value, int) or math.isfinite(value))
    if expected is float and finite:
        with suppress(OverflowError):  # a whole number of hundreds of digits
            return float(value)
    if expected is int and finite and value == int(value):
        return int(value)
    if expected is str and isinstance(value, str):
        return value
    if expected is type(None) and value is None:
        return None
    raise _mismatch(value, expected)


def _mismatch(value: Any, expected: Any, hint: str = "") -> TypeMismatch:
    got = "nothing" if value is None else str(value).lower() if isinstance(value, bool) else shown(value)
    return TypeMismatch(f"expected {describe_type(expected)}, got {got}.{hint}")


def field_values(modifier: Modifier) -> dict[str, Any]:
    """Returns the values of a modifier's recipe keys, including defaults; epochs come first."""
    return {name: copy.deepcopy(getattr(modifier, name)) for name in recipe_fields(type(modifier))}
