"""Flags of a script, read from the command line or from a JSON file into a dataclass.

A flag is a field of a dataclass, made by `flag(default, help, ...)`; a group of flags is a dataclass whose docstring
is the group's heading in `--help`; the arguments of a script are a dataclass that inherits its groups. argparse prints
the help. Reading is done here, because both sources, flags and JSON, go one way and give the same errors.

Imports no torch and nothing heavy: a mistyped flag is answered in milliseconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import os
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from sparse_accel.console import warn
from sparse_accel.errors import UsageError, listed, nearest, shown

Arguments = TypeVar("Arguments")

# The attribute of parsed arguments that holds the names of the flags that were given.
_GIVEN = "_given"
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")


def flag(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    path: bool = False,
    old_name: str = "",
    default_text: str = "",
) -> Any:
    """A field of an arguments dataclass, as a flag of the same name. Its many arguments are the properties of a flag.

    Args:
        default: value when the flag is left out; a tuple stands for a flag that takes several words.
        help: what the flag does, with unit; the default is appended.
        choices: the only words allowed.
        at_least, above, below: bounds of a number.
        path: it names a file or folder, or may do so: `~` at its beginning is the home folder.
        old_name: another name under which the flag is accepted.
        default_text: what `--help` says the default is, where the value alone would not tell.
    """
    metadata = {"help": help, "choices": tuple(choices), "at_least": at_least, "above": above, "below": below}
    metadata |= {"path": path, "old_name": old_name, "default_text": default_text}
    return dataclasses.field(default=default, metadata=metadata)


def parse_arguments(
    cls: type[Arguments], argv: Sequence[str] | None = None, *, prog: str | None = None, description: str = ""
) -> Arguments:
    """Reads flags, or one JSON file of them, into the dataclass `cls`.

    `--flag value`, `--flag=value` and `--two-words` for `--two_words` are accepted; a true/false flag may stand alone.
    A flag given twice counts as given last, and a warning says so. A JSON file, the first and only word or followed by
    flags that replace its values, holds the same names.

    Args:
        cls: dataclass whose fields are made by `flag`. `cls.refused` (a mapping of name to reason, optional) holds
            names that people bring from other tools. `__post_init__` checks values; `cls.warnings` (optional) returns
            lines for stderr.
        argv: words of the command line; those of this process when left out.

    Raises:
        UsageError: an unknown or refused flag, a missing or mistyped value, a file that is not JSON.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if "-h" in words or "--help" in words:
        _help_parser(cls, prog, description).print_help()
        raise SystemExit(0)
    values: dict[str, Any] = {}
    settings_file = ""
    if words and not words[0].startswith("-"):
        settings_file = expanded(words.pop(0), "the file of settings")
        values = _read_settings_file(cls, settings_file)
    names = _not_defaults(cls, values)  # a recorded file of settings holds all flags, whether they were given or not
    typed = _read_words(cls, words)
    values |= typed
    try:
        arguments = cls(**values)
    except UsageError as error:
        raise UsageError(f"{settings_file}: {error}") if settings_file else error from None
    setattr(arguments, _GIVEN, frozenset(names | typed.keys()))
    for line in getattr(arguments, "warnings", list)():
        warn(line)
    return arguments


def given(arguments: Any, name: str) -> bool:
    """Returns whether a flag was given: on the command line, or, in a file of settings, with a value not its default.

    Of arguments that were made in Python: whether the value differs from the default.
    """
    names: frozenset[str] | None = getattr(arguments, _GIVEN, None)
    return name in (_not_defaults(type(arguments), vars(arguments)) if names is None else names)


def expand_paths(arguments: Any, names: Iterable[str] = ()) -> None:
    """Replaces `~` at the beginning of paths by the home folder, as a shell does where it sees one.

    A shell does not for `--flag=~/x`, and a file of settings has none.

    Args:
        arguments: the result of argparse, or a dataclass whose fields are made by `flag`.
        names: which of its attributes are texts, or tuples of texts, that name paths; other values stay. Left out: all
            fields that `flag(path=True)` made.

    Raises:
        UsageError: names the flag whose value begins with `~` and a user who is not known.
    """
    for name in names or [field.name for field in dataclasses.fields(arguments) if field.metadata["path"]]:
        value = getattr(arguments, name)
        if isinstance(value, tuple):
            setattr(arguments, name, tuple(expanded(path, f"--{name}") for path in value))
        elif isinstance(value, str):
            setattr(arguments, name, expanded(value, f"--{name}"))


def expanded(path: str, what: str) -> str:
    """Returns a path with the home folder in the place of `~` at its beginning.

    Args:
        what: where the path is from, for the message: a flag, or a variable of the environment.

    Raises:
        UsageError: there is no such home folder.
    """
    found = os.path.expanduser(path)
    if path.startswith("~") and found == path:
        user = path[1:].partition("/")[0]
        reason = f"there is no user {shown(user)} here" if user else "this user has no home folder: set HOME"
        raise UsageError(f"{what}: {path}: {reason}. A file or folder of that name is written ./{path}")
    return found


def check_bounds(arguments: Any) -> None:
    """Raises UsageError for the first field that lies outside of its flag's bounds or choices."""
    for field in dataclasses.fields(arguments):
        value, rules = getattr(arguments, field.name), field.metadata
        if value is None or isinstance(value, bool):
            continue
        for word in value if isinstance(value, tuple) else (value,):
            if rules["choices"] and word not in rules["choices"]:
                known = ", ".join(rules["choices"])
                raise UsageError(
                    f"--{field.name} does not know '{word}'.{nearest(str(word), rules['choices'])} It takes: {known}."
                )
        bounds = [
            (f"at least {rules['at_least']}", rules["at_least"] is None or value >= rules["at_least"]),
            (f"above {rules['above']}", rules["above"] is None or value > rules["above"]),
            (f"below {rules['below']}", rules["below"] is None or value < rules["below"]),
        ]
        if not all(holds for _, holds in bounds):
            asked = " and ".join(text for text, _ in bounds if "None" not in text)
            raise UsageError(f"--{field.name} must be {asked}, not {value}.")


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where a value was given, for messages: a flag of the command line, or a key of a JSON file."""

    settings_file: str = ""

    def name(self, name: str) -> str:
        return f"{self.settings_file}: '{name}'" if self.settings_file else f"--{name}"


def _read_words(cls: type, words: list[str]) -> dict[str, Any]:
    """Values by field name of the flags in `words`."""
    given: dict[str, list[list[str]]] = {}
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not _is_flag(word):
            raise UsageError(
                f"'{word}' stands where a flag was expected. Values follow a --flag (quote a value that has spaces); "
                "a file of settings ends in .json and comes first."
            )
        name, equals, value = word.lstrip("-").partition("=")
        name, negated = _positive(cls, name)
        field = _field_of(cls, name, _Place())
        following = [value] if equals else []
        while not equals and position < len(words) and not _is_flag(words[position]):
            following.append(words[position])
            position += 1
        if negated:
            if following:
                raise UsageError(f"--no_{field.name} takes no value, and got {listed(following)}.")
            following = ["false"]
        given.setdefault(field.name, []).append(following)
    for name, occurrences in given.items():
        if len(occurrences) > 1:
            last = listed(occurrences[-1]) or "no value"
            warn(f"--{name} is given {len(occurrences)} times; the last one counts: {last}")
    return {name: _from_words(cls, name, occurrences[-1]) for name, occurrences in given.items()}


def _positive(cls: type, name: str) -> tuple[str, bool]:
    """`--no_X`, which transformers makes of a true/false flag that is true by default: X, and whether it was that."""
    plain = name.replace("-", "_")
    positive = plain.removeprefix("no_")
    refused: Mapping[str, str] = getattr(cls, "refused", {})
    if positive == plain or plain in _fields(cls) or plain in refused:
        return name, False
    if positive in refused or _kinds(cls).get(positive) == {bool}:
        return positive, True
    return name, False


def _is_flag(word: str) -> bool:
    if not word.startswith("-") or word == "-":
        return False
    try:
        float(word)
    except ValueError:
        return " " not in word.partition("=")[0]
    return False


def _from_words(cls: type, name: str, words: list[str]) -> Any:
    kind = _kinds(cls)[name]
    if not words:
        if bool not in kind:
            raise UsageError(f"--{name} is without a value. It takes {_expected(cls, name)}.")
        return True
    if tuple in kind:
        return tuple(words)
    if len(words) > 1:
        raise UsageError(f"--{name} takes one value, and got {len(words)}: {listed(words)}. Quote what has spaces.")
    return _convert(cls, name, words[0], _Place())


def _read_settings_file(cls: type, file: str) -> dict[str, Any]:
    """Values by field name of the JSON object in `file`."""
    if not file.endswith(".json"):
        raise UsageError(
            f"'{file}' is neither a flag nor a .json file of settings. Flags begin with --; --help lists them."
        )
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8-sig"), object_pairs_hook=_refuse_twins)
    except FileNotFoundError:
        raise UsageError(f"there is no file {file}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"{file}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}.") from None
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f'{file}: a JSON object is expected, such as {{"do_train": true}}.')
    place, values = _Place(file), {}
    for key, value in content.items():
        field = _field_of(cls, key, place)
        if field.name in values:
            raise UsageError(f"{file}: '{field.name}' is given twice, once as '{key}'.")
        if value is not None:
            values[field.name] = _convert(cls, field.name, value, place)
    return values


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key in (keys := [key for key, _ in pairs]):
        if keys.count(key) > 1:
            raise UsageError(f"'{key}' is given twice.")
    return dict(pairs)


def _field_of(cls: type, name: str, place: _Place) -> dataclasses.Field[Any]:
    """The field that `name`, as typed, stands for."""
    plain = name.replace("-", "_")
    fields = _fields(cls)
    old_names = {field.metadata["old_name"]: field for field in fields.values() if field.metadata["old_name"]}
    names: dict[str, dataclasses.Field[Any]] = old_names | fields
    if plain in names:
        return names[plain]
    refused: Mapping[str, str] = getattr(cls, "refused", {})
    if plain in refused:
        raise UsageError(f"{place.name(plain)} is not taken here: {refused[plain]}")
    if place.settings_file:
        raise UsageError(f"{place.name(name)} is not a known setting.{nearest(plain, names)} --help lists all.")
    known = [f"--{known}" for known in names]
    raise UsageError(f"{place.name(name)} is not a known flag.{nearest(f'--{plain}', known)} --help lists all.")


def _convert(cls: type, name: str, value: Any, place: _Place) -> Any:
    """`value`, a word of the command line or a JSON value, as the type of the field `name`."""
    kind = _kinds(cls)[name]
    wrong = UsageError(f"{place.name(name)} takes {_expected(cls, name)}, not {json.dumps(value)}.")
    if tuple in kind:
        words = [value] if isinstance(value, str) else value
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise wrong
        return tuple(words)
    if bool in kind:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in _TRUE + _FALSE:
            return value.lower() in _TRUE
        if kind == {bool}:
            raise wrong
    if str in kind:
        if isinstance(value, dict):
            return json.dumps(value)
        if not isinstance(value, str) or not value:
            raise wrong
        choices = _fields(cls)[name].metadata["choices"]
        return value.lower() if value.lower() in choices else value  # --task_name MRPC, as it was taken
    if isinstance(value, (bool, dict, list)):
        raise wrong
    try:
        # int() would cut the fraction of a JSON number without a word.
        number = int(value) if int in kind and not isinstance(value, float) else float(value)
    except ValueError:
        raise wrong from None
    if not math.isfinite(number) or (int in kind and isinstance(number, float)):
        raise wrong
    return number


def _expected(cls: type, name: str) -> str:
    kind, rules = _kinds(cls)[name], _fields(cls)[name].metadata
    if rules["choices"]:
        return "one of " + ", ".join(rules["choices"])
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", tuple: "one or more words"}
    return " or ".join(words[one] for one in (tuple, int, float, bool, str) if one in kind)


def _not_defaults(cls: type, values: Mapping[str, Any]) -> set[str]:
    """The names of fields that have another value than their default."""
    return {name for name, field in _fields(cls).items() if name in values and values[name] != field.default}


@functools.cache
def _fields(cls: type) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cls)}


@functools.cache
def _kinds(cls: type) -> dict[str, set[type]]:
    """The plain types of each field: {int} for `int | None`, {tuple} for `tuple[str, ...]`."""
    kinds = {}
    for name, hint in typing.get_type_hints(cls).items():
        union = typing.get_origin(hint) in (types.UnionType, typing.Union)
        options = typing.get_args(hint) if union else (hint,)
        kinds[name] = {typing.get_origin(one) or one for one in options} - {type(None)}
    return kinds


# --- help -------------------------------------------------------------------------------------------------------------


def _help_parser(cls: type, prog: str | None, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [settings.json] [--flag value ...]",
        description=description,
        formatter_class=functools.partial(argparse.HelpFormatter, max_help_position=34, width=118),
    )
    for group in _groups(cls):
        section = parser.add_argument_group((group.__doc__ or "").strip().rstrip("."))
        for field in dataclasses.fields(cast(Any, group)):
            section.add_argument(f"--{field.name}", **_help_of(cls, field))
    return parser


def _groups(cls: type) -> list[type]:
    """The groups of flags of a dataclass: the bases without bases of their own, each in the form of the subclass that
    adds flags of a task to it."""
    with_flags = [kind for kind in cls.__mro__ if dataclasses.is_dataclass(kind)]
    basic = [kind for kind in with_flags if not any(dataclasses.is_dataclass(base) for base in kind.__bases__)]
    groups = [kind for kind in with_flags if sum(issubclass(kind, base) for base in basic) == 1]
    return [next(kind for kind in groups if issubclass(kind, base)) for base in basic]


def _help_of(cls: type, field: dataclasses.Field[Any]) -> dict[str, Any]:
    kind, rules = _kinds(cls)[field.name], field.metadata
    default = rules["default_text"]
    if not default and field.default is not dataclasses.MISSING and field.default is not None:
        default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
    text = rules["help"] + (f" (default: {default})" if default else "")
    if rules["old_name"]:
        text += f" [also --{rules['old_name']}]"
    if kind == {bool}:
        return {"help": text.replace("%", "%%"), "action": "store_true"}
    metavar = "|".join(rules["choices"]) or {int: "N", float: "X", tuple: "WORD"}.get(next(iter(kind)), "TEXT")
    return {"help": text.replace("%", "%%"), "metavar": metavar}
