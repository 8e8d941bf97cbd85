"""Reads the flags of a script, from the command line or a JSON file, into a dataclass.

A flag is a field of a dataclass, made by `flag(default, help, ...)`. A group of flags is a dataclass whose docstring is
the group's heading in `--help`. The arguments of a script are a dataclass that inherits its groups. argparse only
prints the help; parsing is done here, so that flags and JSON give the same errors.

Imports no torch and nothing heavy: a mistyped flag is reported in milliseconds.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sparse_accel.cli.help import flag_fields, flag_types, help_parser
from sparse_accel.console import warn
from sparse_accel.errors import UsageError, listed, nearest, shown

Arguments = TypeVar("Arguments")

# The attribute of parsed arguments that holds the names of the flags that were given.
_GIVEN = "_given"
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")
HIDDEN = "***"  # in place of a secret


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
    secret: bool = False,
) -> Any:
    """Returns a dataclass field that is read from the flag of the same name.

    Args:
        default: value if the flag is not given; a tuple for a flag that takes several words.
        help: what the flag does, with its unit; the default is appended.
        choices: the allowed words; empty allows any.
        at_least, above, below: bounds of a number.
        path: the value is or may be a file or folder: a leading `~` is replaced by the home folder.
        old_name: another accepted name of the flag.
        default_text: description of the default for `--help`, if the value does not explain itself.
        secret: the value is a password or token: it is never printed, and hidden in `sys.argv` after parsing, which
            trackers record.
    """
    metadata = {"help": help, "choices": tuple(choices), "at_least": at_least, "above": above, "below": below}
    metadata |= {"path": path, "old_name": old_name, "default_text": default_text, "secret": secret}
    return dataclasses.field(default=default, repr=not secret, metadata=metadata)


def parse_arguments(
    cls: type[Arguments], argv: Sequence[str] | None = None, *, prog: str | None = None, description: str = ""
) -> Arguments:
    """Parses flags, or a JSON file of flags, into the dataclass `cls`.

    Accepts `--flag value`, `--flag=value`, and `--two-words` for `--two_words`; a true/false flag needs no value. If a
    flag is given several times, the last one is used and a warning is printed. A JSON file with the same names may be
    the first word; flags after it replace its values.

    Args:
        cls: dataclass whose fields are made by `flag`. `cls.refused` (optional) maps names from other tools to the
            reason why they are not supported. `__post_init__` checks values; `cls.warnings` (optional) returns lines
            for stderr.
        argv: words of the command line; default: those of this process.
        prog, description: program name (default: the script's) and first paragraph of `--help`.

    Raises:
        UsageError: an unknown or refused flag, a missing or mistyped value, a file that is not JSON.
        SystemExit: after printing the help for `-h` or `--help`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        sys.argv[1:] = _without_secrets(cls, words)
    if "-h" in words or "--help" in words:
        help_parser(cls, prog, description).print_help()
        raise SystemExit(0)
    values: dict[str, Any] = {}
    settings_file = ""
    if words and not words[0].startswith("-"):
        settings_file = expanded(words.pop(0), "the settings file")
        values = _read_settings_file(cls, settings_file)
    names = _not_defaults(cls, values)  # a recorded settings file contains all flags, also those that were not given
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
    """Returns whether a flag was given: on the command line, or in a settings file with a value other than its default.

    For arguments made in Python: whether the value differs from the default.
    """
    names: frozenset[str] | None = getattr(arguments, _GIVEN, None)
    return name in (_not_defaults(type(arguments), vars(arguments)) if names is None else names)


def expand_paths(arguments: Any, names: Iterable[str] = ()) -> None:
    """Replaces a leading `~` in paths by the home folder, in place.

    A shell does not do this for `--flag=~/x`, nor for values in a settings file.

    Args:
        arguments: the result of argparse, or a dataclass whose fields are made by `flag`.
        names: attributes that contain a path or a tuple of paths; other types stay unchanged. Default: all fields made
            by `flag(path=True)`.

    Raises:
        UsageError: a path begins with `~` and an unknown user; names the flag.
    """
    for name in names or [field.name for field in dataclasses.fields(arguments) if field.metadata["path"]]:
        value = getattr(arguments, name)
        if isinstance(value, tuple):
            setattr(arguments, name, tuple(expanded(path, f"--{name}") for path in value))
        elif isinstance(value, str):
            setattr(arguments, name, expanded(value, f"--{name}"))


def expanded(path: str, what: str) -> str:
    """Returns a path with a leading `~` replaced by the home folder.

    Args:
        path: the path as typed.
        what: its source for the message: a flag or an environment variable.

    Raises:
        UsageError: this home folder does not exist.
    """
    found = os.path.expanduser(path)
    if path.startswith("~") and found == path:
        user = path[1:].partition("/")[0]
        reason = f"there is no user {shown(user)}" if user else "this user has no home folder: set HOME"
        raise UsageError(f"{what}: {path}: {reason}. For a file or folder of that name, write ./{path}")
    return found


def check_bounds(arguments: Any) -> None:
    """Checks all fields against the bounds and choices of their flags.

    Raises:
        UsageError: for the first value out of bounds, or not among its choices.
    """
    for field in dataclasses.fields(arguments):
        value, rules = getattr(arguments, field.name), field.metadata
        if value is None or isinstance(value, bool):
            continue
        for word in value if isinstance(value, tuple) else (value,):
            if rules["choices"] and word not in rules["choices"]:
                known = f"{nearest(str(word), rules['choices'])} Expected one of: {', '.join(rules['choices'])}."
                raise UsageError(f"--{field.name}: unknown value '{word}'.{known}")
        bounds = [
            (f"at least {rules['at_least']}", rules["at_least"] is None or value >= rules["at_least"]),
            (f"above {rules['above']}", rules["above"] is None or value > rules["above"]),
            (f"below {rules['below']}", rules["below"] is None or value < rules["below"]),
        ]
        if not all(holds for _, holds in bounds):
            asked = " and ".join(text for text, _ in bounds if "None" not in text)
            raise UsageError(f"--{field.name} must be {asked}, got {value}.")


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Source of a value, for messages: a flag on the command line, or a key of a JSON file."""

    settings_file: str = ""

    def name(self, name: str) -> str:
        return f"{self.settings_file}: '{name}'" if self.settings_file else f"--{name}"


def _read_words(cls: type, words: list[str]) -> dict[str, Any]:
    """Returns the values of the flags in `words`, by field name."""
    given: dict[str, list[list[str]]] = {}
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not _is_flag(word):
            raise UsageError(
                f"expected a --flag, got '{word}'. Quote a value that has spaces; a settings file ends in .json and "
                "comes first."
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
                raise UsageError(f"--no_{field.name} takes no value, got {listed(following)}.")
            following = ["false"]
        given.setdefault(field.name, []).append(following)
    for name, occurrences in given.items():
        if len(occurrences) > 1:
            last = listed(_shown(cls, name, occurrences[-1])) or "no value"
            warn(f"--{name} is given {len(occurrences)} times; the last one is used: {last}")
    return {name: _from_words(cls, name, occurrences[-1]) for name, occurrences in given.items()}


def _shown(cls: type, name: str, words: list[str]) -> list[str]:
    """Returns the words of a flag as they may be printed."""
    return [HIDDEN] * len(words) if flag_fields(cls)[name].metadata["secret"] else words


def _without_secrets(cls: type, words: list[str]) -> list[str]:
    """Returns the words of a command line with the values of secret flags hidden."""
    found, hiding = [], False
    for word in words:
        if not _is_flag(word):
            found.append(HIDDEN if hiding else word)
            continue
        name, equals, _ = word.partition("=")
        field = flag_fields(cls).get(name.lstrip("-").replace("-", "_"))
        hiding = field is not None and field.metadata["secret"]
        found.append(f"{name}={HIDDEN}" if hiding and equals else word)
    return found


def _positive(cls: type, name: str) -> tuple[str, bool]:
    """Returns (X, True) for `--no_X`, transformers' negation of a true/false flag; else (name, False)."""
    plain = name.replace("-", "_")
    positive = plain.removeprefix("no_")
    refused: Mapping[str, str] = getattr(cls, "refused", {})
    if positive == plain or plain in flag_fields(cls) or plain in refused:
        return name, False
    if positive in refused or flag_types(cls).get(positive) == {bool}:
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
    kind = flag_types(cls)[name]
    if not words:
        if bool not in kind:
            raise UsageError(f"--{name} has no value; expected {_expected(cls, name)}.")
        return True
    if tuple in kind:
        return tuple(words)
    if len(words) > 1:
        got = listed(_shown(cls, name, words))
        raise UsageError(f"--{name} takes one value, got {len(words)}: {got}. Quote a value that has spaces.")
    return _convert(cls, name, words[0], _Place())


def _read_settings_file(cls: type, file: str) -> dict[str, Any]:
    """Returns the values of the JSON object in `file`, by field name."""
    if not file.endswith(".json"):
        raise UsageError(
            f"'{file}' is neither a flag nor a .json settings file. Flags begin with --; --help lists them."
        )
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8-sig"), object_pairs_hook=_refuse_duplicates)
    except FileNotFoundError:
        raise UsageError(f"there is no file {file}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"{file}, line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}.") from None
    except (ValueError, RecursionError) as error:  # integers of thousands of digits, values nested as deeply
        raise UsageError(f"{file} cannot be read as JSON: {error}.") from None
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f'{file}: expected a JSON object, such as {{"do_train": true}}.')
    place, values = _Place(file), {}
    spelled: dict[str, str] = {}  # as in the file
    for key, value in content.items():
        field = _field_of(cls, key, place)
        if field.name in values:
            raise UsageError(f"{file}: duplicate key '{field.name}', given as '{spelled[field.name]}' and as '{key}'.")
        if value is not None:
            spelled[field.name] = key
            values[field.name] = _convert(cls, field.name, value, place)
    return values


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key in (keys := [key for key, _ in pairs]):
        if keys.count(key) > 1:
            raise UsageError(f"duplicate key '{key}'.")
    return dict(pairs)


def _field_of(cls: type, name: str, place: _Place) -> dataclasses.Field[Any]:
    """Returns the field of the flag or key `name`; UsageError if it is unknown or refused."""
    plain = name.replace("-", "_")
    known = flag_fields(cls)
    old_names = {field.metadata["old_name"]: field for field in known.values() if field.metadata["old_name"]}
    names: dict[str, dataclasses.Field[Any]] = old_names | known
    if plain in names:
        return names[plain]
    refused: Mapping[str, str] = getattr(cls, "refused", {})
    if plain in refused:
        raise UsageError(f"{place.name(plain)} is not supported: {refused[plain]}")
    if place.settings_file:
        raise UsageError(f"{place.name(name)} is not a known key.{nearest(plain, names)} --help lists all.")
    flags = [f"--{each}" for each in names]
    raise UsageError(f"{place.name(name)} is not a known flag.{nearest(f'--{plain}', flags)} --help lists all.")


def _convert(cls: type, name: str, value: Any, place: _Place) -> Any:
    """Converts `value`, a word or a JSON value, to the type of the field `name`; UsageError if it cannot be."""
    kind = flag_types(cls)[name]
    got = HIDDEN if flag_fields(cls)[name].metadata["secret"] else json.dumps(value)
    wrong = UsageError(f"{place.name(name)}: expected {_expected(cls, name)}, got {got}.")
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
        choices = flag_fields(cls)[name].metadata["choices"]
        return value.lower() if value.lower() in choices else value  # SparseML accepts --task_name MRPC
    if isinstance(value, (bool, dict, list)):
        raise wrong
    try:
        # int() would silently truncate a JSON number such as 2.5.
        number = int(value) if int in kind and not isinstance(value, float) else float(value)
        finite = math.isfinite(number)
    except (ValueError, OverflowError):  # a whole number of hundreds of digits is no float
        raise wrong from None
    if not finite or (int in kind and isinstance(number, float)):
        raise wrong
    return number


def _expected(cls: type, name: str) -> str:
    kind, rules = flag_types(cls)[name], flag_fields(cls)[name].metadata
    if rules["choices"]:
        return "one of " + ", ".join(rules["choices"])
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a string", tuple: "one or more words"}
    return " or ".join(words[one] for one in (tuple, int, float, bool, str) if one in kind)


def _not_defaults(cls: type, values: Mapping[str, Any]) -> set[str]:
    """Returns the names of the fields whose value is not the default."""
    return {name for name, field in flag_fields(cls).items() if name in values and values[name] != field.default}
