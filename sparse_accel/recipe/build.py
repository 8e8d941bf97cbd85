"""Parsed document -> Recipe: replaces and evaluates variables, builds modifiers and checks them together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparse_accel.errors import nearest
from sparse_accel.modifiers.base import FieldError, Modifier
from sparse_accel.progress import ROUNDING
from sparse_accel.recipe import document
from sparse_accel.recipe.document import Tagged
from sparse_accel.recipe.empty import below_front_matter, empty_recipe_error
from sparse_accel.recipe.errors import RecipeError
from sparse_accel.recipe.expressions import ExpressionError, Scope
from sparse_accel.recipe.fields import TypeMismatch, convert, field_types, key_table, required_fields
from sparse_accel.recipe.recipe import Recipe, is_group, is_stage

Registry = Mapping[str, type[Modifier]]


def build(
    parsed: document.Mapping,
    arguments: dict[str, Any],
    registry: Registry,
    known_later: Mapping[str, str],
    *,
    text: str,
    source: str,
) -> Recipe:
    """Returns the recipe that `parsed` describes.

    Args:
        parsed: what `document.parse` returned.
        arguments: values that replace variables, by name.
        registry: modifier classes by tag.
        known_later: names of modifiers that are not supported, each with the reason.
        text: the recipe as given.
        source: its path, or `<text>`.

    Raises:
        RecipeError: the recipe is not valid; the message has file, line and key.
    """
    return _Builder(registry, known_later, source).recipe(parsed, arguments, text)


class _Builder:
    def __init__(self, registry: Registry, known_later: Mapping[str, str], source: str) -> None:
        self.registry = registry
        self.known_later = known_later
        self.source = source
        self.notes: list[str] = []
        self.used: list[Scope] = []
        self.written: dict[int, document.Mapping] = {}  # keys as written, by id() of the modifier built from them

    def recipe(self, parsed: document.Mapping, arguments: dict[str, Any], text: str) -> Recipe:
        self.check_layout(parsed)
        self.replace_variables(parsed, arguments)
        content = self.level(parsed)
        recipe = Recipe(content, text=text, source=self.source, notes=self.notes)
        if not recipe.modifiers:
            raise empty_recipe_error(parsed, text, self.source)
        self.check_together(recipe)
        used = set().union(*(scope.used for scope in self.used))
        unused = [name for name in arguments if name not in used]
        recipe.warnings += [f"recipe_args sets '{name}', but no modifier uses it" for name in unused]
        recipe.warnings += self.inactive(recipe)
        if (ignored := below_front_matter(text, self.source)) is not None:
            recipe.warnings.append(ignored)
        return recipe

    def error(self, message: str, line: int, key: object = None) -> RecipeError:
        return RecipeError(message, self.source, line, None if key is None else str(key))

    # --- layout -------------------------------------------------------------------------------------------------------

    def check_layout(self, parsed: document.Mapping) -> None:
        """Checks that modifiers are in lists under `...modifiers`, at the top level or in a stage."""
        for key, value in parsed.items():
            if not is_stage(value):
                self.check_entry(key, value, parsed.line_of(key))
                continue
            for inner, entry in value.items():
                if is_stage(entry):
                    message = f"stage '{inner}' is inside stage '{key}': stages cannot be nested"
                    raise self.error(message, value.line_of(inner), inner)
                self.check_entry(inner, entry, value.line_of(inner))

    def check_entry(self, key: Any, value: Any, line: int) -> None:
        if not isinstance(key, str):
            raise self.error(f"expected a name as key, got {key!r}", line, key)
        if is_group(key, value):
            for entry in value or []:
                self.check_list_entry(key, entry, line)
            return
        if isinstance(value, dict | Tagged) and "modifiers" in key:
            raise self.error(f"'{key}' must be a list, each modifier as `- !Name` with its keys below", line, key)
        for tagged in document.walk(value):
            raise self.error(
                f"!{tagged.tag} is under '{key}', but modifiers must be in a list under a key with 'modifiers' in its "
                f"name: rename it to '{str(key).removesuffix('_modifier')}_modifiers'",
                tagged.line,
                key,
            )

    def check_list_entry(self, key: str, entry: Any, line: int) -> None:
        if isinstance(entry, Tagged):
            for tagged in document.walk(entry.keys):
                raise self.error(f"!{tagged.tag} is inside !{entry.tag}: modifiers cannot be nested", tagged.line, key)
            return
        if isinstance(entry, document.Mapping):
            line = entry.line
        name = next(iter(entry)) if isinstance(entry, dict) and entry else entry
        raise self.error(f"'{key}' lists {name!r}, which is not a modifier: write `- !Name`, its keys below", line, key)

    # --- variables ----------------------------------------------------------------------------------------------------

    def replace_variables(self, parsed: document.Mapping, arguments: dict[str, Any]) -> None:
        """Sets each argument in every level (top and stages) that has a variable of this name."""
        levels = [parsed, *(value for value in parsed.values() if is_stage(value))]
        known = [name for level in levels for name in _variables(level)]
        for name, value in arguments.items():
            if name not in known:
                listed = ", ".join(dict.fromkeys(known)) or "none"
                message = f"recipe_args: the recipe has no variable '{name}'.{nearest(name, known)} It has: {listed}"
                raise RecipeError(message, self.source, key=name)
            if is_group(name, value) or is_stage(value):
                raise RecipeError(f"recipe_args: '{name}' cannot contain modifiers", self.source, key=name)
            for level in levels:
                if name in _variables(level):
                    level[name] = value

    def level(self, level: document.Mapping, enclosing: Scope | None = None) -> dict[str, Any]:
        """Returns the content of the top level or of a stage, with variables evaluated and modifiers built."""
        variables = _variables(level)
        values = self.variable_values(level, variables, enclosing)
        scope = Scope(variables, enclosing)  # a second one, which records the variables that modifiers use
        self.used.append(scope)
        content: dict[str, Any] = {}
        for key, value in level.items():
            if is_group(key, value):
                content[key] = [self.modifier(entry, scope) for entry in value or []]
            elif is_stage(value):
                content[key] = self.level(value, scope)
            else:
                content[key] = values[key]
        self.check_single(content)
        return content

    def variable_values(
        self, level: document.Mapping, variables: dict[str, Any], enclosing: Scope | None
    ) -> dict[str, Any]:
        scope = Scope(variables, enclosing)
        values = {}
        for name in variables:
            try:
                values[name] = scope.variable(name)
            except ExpressionError as error:
                raise self.error(f"{name}: {error}", level.line_of(name), name) from None
        return values

    # --- modifiers ----------------------------------------------------------------------------------------------------

    def modifier(self, tagged: Tagged, scope: Scope) -> Modifier:
        kind = self.kind(tagged)
        types = field_types(kind)
        neutral, without_effect, known_later = (
            key_table(kind, name) for name in ("neutral", "without_effect", "known_later")
        )
        values = {}
        for key, written in tagged.keys.items():
            line = tagged.keys.line_of(key)
            if not any(key in table for table in (types, without_effect, known_later)):
                hint = nearest(str(key), [*types, *without_effect, *known_later])
                message = f"{kind.__name__} has no key '{key}'.{hint} Its keys: {', '.join(types)}"
                raise self.error(message, line, key)
            try:
                value = scope.evaluate(written)
                if value in neutral.get(key, ()):
                    continue
                if key in types:
                    values[key] = convert(value, types[key])
                elif key in without_effect:
                    reason = without_effect[key]
                    self.notes.append(f"{self.source}:{line}: {kind.__name__}: {key} has no effect: {reason}")
                else:
                    message = f"{kind.__name__}: {key} is not supported yet: {known_later[key]}"
                    raise self.error(message, line, key)
            except TypeMismatch as error:
                origin = f" The value comes from {written}" if value != written and isinstance(written, str) else ""
                line = tagged.keys.line_of_entry(key, error.entry)
                raise self.error(f"{kind.__name__}: {key}: {error}{origin}", line, key) from None
            except ExpressionError as error:
                raise self.error(f"{kind.__name__}: {key}: {error}", line, key) from None
        if missing := [key for key in required_fields(kind) if key not in values]:
            raise self.error(f"{kind.__name__} needs {', '.join(missing)}", tagged.line, missing[0])
        try:
            modifier = kind(**values)
        except FieldError as error:
            raise self.field_error(kind.__name__, tagged.keys, error) from None
        modifier.place = f"{self.source}:{tagged.line}"
        self.written[id(modifier)] = tagged.keys
        return modifier

    def kind(self, tagged: Tagged) -> type[Modifier]:
        """Returns the class that a tag names; `!pytorch.Name` is the same as `!Name`."""
        name = tagged.tag.removeprefix("sparseml.").removeprefix("pytorch.")
        if name in self.registry:
            return self.registry[name]
        supported = f"Supported: {', '.join(sorted(self.registry))}"
        if name in self.known_later:
            raise self.error(f"!{name} is not supported: {self.known_later[name]}. {supported}", tagged.line)
        hint = nearest(name, [*self.registry, *self.known_later])
        raise self.error(f"there is no modifier '!{tagged.tag}'.{hint} {supported}", tagged.line)

    def field_error(self, name: str, keys: document.Mapping, error: FieldError) -> RecipeError:
        other = self.written.get(id(error.other))
        other_place = f" (the other: {error.other.name}, line {other.line})" if error.other and other else ""
        return self.error(f"{name}: {error}{other_place}", keys.line_of_entry(error.key, error.entry), error.key)

    # --- the entire recipe --------------------------------------------------------------------------------------------

    def check_single(self, content: dict[str, Any]) -> None:
        """Checks that a level has at most one modifier of each kind that must be single."""
        first: dict[type[Modifier], Modifier] = {}
        for modifier in [modifier for key, value in content.items() if is_group(key, value) for modifier in value]:
            if first.setdefault(type(modifier), modifier) is not modifier and modifier.single:
                line = self.written[id(first[type(modifier)])].line
                message = f"a second {modifier.name} (first in line {line})"
                raise self.error(
                    f"{message}: at most one at the top level and in each stage", self.written[id(modifier)].line
                )

    def check_together(self, recipe: Recipe) -> None:
        for modifier in recipe.modifiers:
            try:
                modifier.check_compatible([other for other in recipe.modifiers if other is not modifier])
            except FieldError as error:
                raise self.field_error(modifier.name, self.written[id(modifier)], error) from None

    def inactive(self, recipe: Recipe) -> list[str]:
        """Returns warnings about modifiers and events that come after the end of training."""
        end = recipe.max_epochs
        lines = []
        for modifier in recipe.modifiers if end else []:
            place = f"{self.source}:{self.written[id(modifier)].line_of('start_epoch')}: {modifier.name}"
            if modifier.start_epoch >= end - ROUNDING:
                lines.append(f"{place} starts at epoch {modifier.start_epoch:g}, but training ends at {end}")
                continue
            beyond = [(epoch, event) for epoch, event in modifier.events() if epoch > end + ROUNDING]
            lines += [f"{place}: '{event}' at epoch {epoch:g}, but training ends at {end}" for epoch, event in beyond]
        return lines


def _variables(level: document.Mapping) -> dict[str, Any]:
    return {key: value for key, value in level.items() if not is_group(key, value) and not is_stage(value)}
