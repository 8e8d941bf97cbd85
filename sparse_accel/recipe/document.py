"""Recipe text -> plain values with line numbers: YAML 1.2 with `!Modifier` tags, alone or as front matter.

Reading never creates arbitrary objects: PyYAML only builds its node tree, which becomes dicts, lists, scalars and
`Tagged`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from sparse_accel.errors import nearest
from sparse_accel.recipe.errors import RecipeError

ENDINGS = (".yaml", ".yml", ".md")

# Far more than any recipe has. Without a limit, aliases can expand a short text without end.
MOST_VALUES = 20_000

# Comments may come first: many recipes begin with a licence.
_FRONT_MATTER = re.compile(
    r"\s*(?:<!--.*?-->\s*)*^(?P<mark>---|\+\+\+)[ \t]*\n(?P<yaml>.*?)^(?P=mark)[ \t]*$", re.DOTALL | re.MULTILINE
)

_STANDARD = "tag:yaml.org,2002:"


class Mapping(dict[Any, Any]):
    """A mapping in a recipe, with the line of each key."""

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.lines: dict[Any, int] = {}

    def line_of(self, key: object) -> int:
        """Returns the line of a key; for a key that does not exist, the line of the mapping."""
        return self.lines.get(key, self.line)

    def line_of_entry(self, key: object, entry: Sequence[object]) -> int:
        """Returns the line of an entry of a key's value: of the last key, or index of a list, that is in the text.

        Args:
            entry: keys and indices that lead to it, from the outside.
        """
        line, value = self.line_of(key), self.get(key)
        for each in entry:
            if isinstance(value, Mapping) and each in value:
                line, value = value.line_of(each), value[each]
            elif isinstance(value, list) and isinstance(each, int) and each < len(value):
                value = value[each]
            else:
                break
        return line


class Tagged:
    """A tagged mapping, `!Tag` with its keys: one modifier as written."""

    def __init__(self, tag: str, keys: Mapping) -> None:
        self.tag = tag
        self.keys = keys

    @property
    def line(self) -> int:
        """The line of the tag."""
        return self.keys.line


class CoreSchema(BaseResolver):
    """Decides which plain scalars are not strings: YAML 1.2's core schema, so 1e-4 is a number and `off` a string."""


_STARTS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
for _kind, (_pattern, _first) in _STARTS.items():
    CoreSchema.add_implicit_resolver(_STANDARD + _kind, re.compile(f"(?:{_pattern})\\Z"), _first)


class _Loader(Reader, Scanner, Parser, Composer, CoreSchema):
    """PyYAML up to its node tree, with the core schema. It has no constructor, so it cannot create objects."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        CoreSchema.__init__(self)


def read_source(source: str | Path, resolve_stub: Callable[[str], Path]) -> tuple[str, str]:
    """Returns (text, name): the recipe's text as given, and its path or `<text>` for messages.

    Raises:
        RecipeError: it is not a readable text file, or does not end in .yaml, .yml or .md.
    """
    if isinstance(source, str) and "\n" in source:
        return source, "<text>"
    if isinstance(source, str) and source.startswith("zoo:"):
        source = resolve_stub(source)
    if not str(source).strip():
        raise RecipeError("no recipe given: pass the path of its file")
    path = Path(source).expanduser()
    try:
        problem = _not_a_recipe(path)
        if problem:
            raise RecipeError(f"{source}: {problem}")
        return path.read_bytes().decode("utf-8"), str(source)
    except UnicodeDecodeError:
        raise RecipeError(f"{source}: not a text file in UTF-8") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"{source}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _not_a_recipe(path: Path) -> str:
    """Returns why a path cannot be a recipe file; empty if it can."""
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if file.suffix.lower() in ENDINGS)
        hint = f" It contains {', '.join(inside)}: pass one of them." if inside else ""
        return f"expected a recipe file, got a folder.{hint}"
    if not path.exists():
        if not path.parent.is_dir():
            return f"no such file; the folder {path.parent} does not exist"
        others = [file.name for file in path.parent.iterdir() if file.suffix.lower() in ENDINGS]
        return f"no such file.{nearest(path.name, others)}"
    return "" if path.suffix.lower() in ENDINGS else f"expected a file that ends in {', '.join(ENDINGS)}"


def parse(text: str, source: str) -> Mapping:
    """Returns a recipe's text as a mapping of plain values and `Tagged`.

    Args:
        text: the recipe as given.
        source: its path or `<text>`, for messages.

    Raises:
        RecipeError: the text is not valid; the message has the line.
    """
    text = normalized(text)
    if found := front_matter(text, source):
        text = "\n" * text.count("\n", 0, found.start("yaml")) + found["yaml"]  # lines keep their numbers
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        document = _Values(loader, source).value(node) if node else None
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text, source) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = error.character if isinstance(error.character, int) else ord(str(error.character))
        raise RecipeError(f"the character U+{code:04X} is not allowed in YAML", source, line) from None
    except RecursionError:
        raise RecipeError("nested too deeply", source) from None
    if document is None:
        return Mapping(1)
    if not isinstance(document, Mapping):
        raise RecipeError("a recipe must be a mapping: `key: value` lines", source, 1)
    return document


def normalized(text: str) -> str:
    """Returns the text without a byte order mark, and with a line feed at the end of every line."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def front_matter(text: str, source: str) -> re.Match[str] | None:
    """Returns the match of a normalized text's front matter, with the groups `mark` and `yaml`; None if there is none.

    Raises:
        RecipeError: it is Markdown without front matter.
    """
    markdown = source.lower().endswith(".md")
    if not markdown and source != "<text>":
        return None
    found = _FRONT_MATTER.match(text)
    if not found and (markdown or text.lstrip().startswith("+++")):
        raise RecipeError(
            "a Markdown recipe must begin with YAML between two `---` lines (or two `+++` lines)", source, 1
        )
    return found


def _syntax_error(error: yaml.MarkedYAMLError, text: str, source: str) -> RecipeError:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else None
    problem = error.problem or "it cannot be read"
    lines = text.split("\n")
    hint = ""
    if mark and mark.line < len(lines):
        shown = lines[mark.line]
        hint = f"\n    {shown.rstrip()}" if shown.strip() else ""
        if "\t" in shown:
            hint += "\nYAML must be indented with spaces; this line has a tab."
    if "single document" in (error.context or ""):
        problem = "a recipe must be one YAML document, but a second one begins here"
    return RecipeError(f"not valid YAML: {problem}{hint}", source, line)


class _Values:
    """Converts PyYAML's nodes to plain values with line numbers."""

    def __init__(self, loader: _Loader, source: str) -> None:
        self.loader = loader
        self.source = source
        self.count = 0

    def value(self, node: Node) -> Any:
        line = node.start_mark.line + 1
        self.count += 1
        if self.count > MOST_VALUES:
            raise RecipeError(f"the recipe expands to more than {MOST_VALUES} values", self.source, line)
        if not node.tag.startswith(_STANDARD):
            return Tagged(node.tag.lstrip("!"), self.tagged_keys(node))
        match node.tag.removeprefix(_STANDARD), node:
            case "map", MappingNode():
                return self.mapping(node)
            case "seq", SequenceNode():
                return [self.value(entry) for entry in node.value]
            case kind, ScalarNode():
                return self.scalar(node)
            case kind, _:
                raise RecipeError(f"the tag '!!{kind}' is not supported in a recipe", self.source, line)

    def tagged_keys(self, node: Node) -> Mapping:
        if isinstance(node, MappingNode):
            return self.mapping(node)
        line = node.start_mark.line + 1
        if isinstance(node, ScalarNode) and not node.value:
            return Mapping(line)
        raise RecipeError(f"'{node.tag}' must be followed by its keys, as `key: value` lines", self.source, line)

    def mapping(self, node: MappingNode) -> Mapping:
        result = Mapping(node.start_mark.line + 1)
        merged: list[Any] = []
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _STANDARD + "merge":
                value = self.value(value_node)
                merged.extend(value if isinstance(value, list) else [value])
                continue
            if not isinstance(key_node, ScalarNode):
                raise RecipeError("expected a name as key, got a list or a mapping", self.source, line)
            key = self.scalar(key_node)
            if key in result:
                first = result.lines[key]
                raise RecipeError(f"duplicate key '{key}' (first in line {first})", self.source, line, key)
            result[key] = self.value(value_node)
            result.lines[key] = line
        for defaults in merged:
            if not isinstance(defaults, Mapping):
                raise RecipeError("expected a mapping after `<<`, as in `<<: *defaults`", self.source, result.line)
            for key in defaults.keys() - result.keys():
                result[key] = defaults[key]
                result.lines[key] = defaults.lines[key]
        return result

    def scalar(self, node: Node) -> Any:
        kind = node.tag.removeprefix(_STANDARD)
        text = str(node.value)
        try:
            match kind:
                case "str" | "merge":
                    return text
                case "null":
                    return None
                case "bool":
                    return {"true": True, "false": False}[text.lower()]
                case "int":
                    number = int(text, 0) if text.startswith(("0o", "0x")) else int(text)
                    float(number)  # larger ones have no use, and Python cannot write those of more than 4,300 digits
                    return number
                case "float":
                    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except (ValueError, KeyError, OverflowError):
            raise RecipeError(f"'{text}' is not a valid {kind}", self.source, node.start_mark.line + 1) from None
        raise RecipeError(f"the tag '!!{kind}' is not supported in a recipe", self.source, node.start_mark.line + 1)


def walk(value: Any) -> Iterable[Tagged]:
    """Yields every `Tagged` in a value, at any depth."""
    if isinstance(value, Tagged):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from walk(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from walk(entry)


def parse_scalar(text: str) -> Any:
    """Returns the value of a YAML text, such as those in `a=1e-4,b:[x, y]`.

    Raises:
        ValueError: the text is not valid YAML, or not supported in a recipe.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return _Values(loader, "").value(node) if node else None
    except (yaml.YAMLError, RecipeError, RecursionError) as error:
        raise ValueError(str(error)) from None
