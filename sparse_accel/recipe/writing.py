"""Content of a recipe -> YAML text."""

from __future__ import annotations

from typing import Any, TextIO

import yaml
from yaml.emitter import Emitter
from yaml.nodes import Node
from yaml.representer import SafeRepresenter
from yaml.serializer import Serializer

from sparse_accel.modifiers.base import Modifier
from sparse_accel.recipe.document import CoreSchema
from sparse_accel.recipe.fields import field_values


class _Dumper(Emitter, Serializer, SafeRepresenter, CoreSchema):
    """PyYAML's dumper with the reader's schema, so that a string is quoted exactly if the reader would misread it."""

    def __init__(self, stream: TextIO, **_: Any) -> None:
        Emitter.__init__(self, stream, width=120, allow_unicode=True)
        Serializer.__init__(self)
        SafeRepresenter.__init__(self, sort_keys=False)
        # PyYAML's mixed style: [a, b] for lists of scalars, one line per entry otherwise
        self.default_flow_style = None  # type: ignore[assignment]
        CoreSchema.__init__(self)

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)  # lists are indented deeper than their key

    def ignore_aliases(self, data: object) -> bool:
        return True


class _Block(dict[str, Any]):
    """A mapping that is written with one line per key, whatever its values."""


def _represent_block(dumper: _Dumper, block: _Block) -> Node:
    return dumper.represent_mapping("tag:yaml.org,2002:map", block.items(), flow_style=False)


def _represent_modifier(dumper: _Dumper, modifier: Modifier) -> Node:
    return dumper.represent_mapping(f"!{modifier.name}", field_values(modifier).items(), flow_style=False)


def _represent_text(dumper: _Dumper, text: str) -> Node:
    style = '"' if set(text) & set("\x85\u2028\u2029") else None  # line breaks in YAML 1.1, which PyYAML would fold
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(_Block, _represent_block)
_Dumper.add_multi_representer(Modifier, _represent_modifier)


def write_recipe(content: dict[str, Any]) -> str:
    """Returns YAML: short values first, one per line, then lists, modifiers and stages, an empty line before each."""
    long = [key for key, value in content.items() if isinstance(value, dict | list) and value]
    short = {key: value for key, value in content.items() if key not in long}
    parts = [short] if short else []
    parts += [{key: content[key]} for key in long]
    if not parts:
        return "{}\n"
    return "\n".join(yaml.dump(_Block(part), Dumper=_Dumper) for part in parts)
