"""The generated parts of docs/modifiers.md: what every modifier does, its keys, and what `eval(...)` can compute.

Names, types and defaults come from the dataclasses, meanings from the docstrings below their fields.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sparse_accel.modifiers import KNOWN_LATER, REGISTRY, Modifier
from sparse_accel.recipe import RecipeError, expressions, load_recipe
from sparse_accel.recipe.fields import describe_type, field_types, key_table, recipe_fields
from sparse_accel.recipe.writing import write_recipe

# A short example of each modifier, by the name of its class. Those of its keys that cannot be left out are required.
EXAMPLES: dict[str, dict[str, str]] = {
    "EpochRangeModifier": {"end_epoch": "13"},
    "LearningRateFunctionModifier": {
        "lr_func": "linear",
        "init_lr": "1.5e-4",
        "final_lr": "0",
        "start_epoch": "0",
        "end_epoch": "13",
    },
    "LearningRateModifier": {"lr_class": "StepLR", "lr_kwargs": "{gamma: 0.5, step_size: 2}", "init_lr": "5e-5"},
    "SetLearningRateModifier": {"learning_rate": "5e-5", "start_epoch": "10"},
    "SetWeightDecayModifier": {"weight_decay": "0.01"},
    "TrainableParamsModifier": {"params": "'re:bert[.]embeddings'", "trainable": "false"},
    "SetParamModifier": {"params": "classifier.bias", "val": "[0.5, -0.5]", "start_epoch": "1"},
    "GradualParamModifier": {
        "params": "classifier.bias",
        "init_val": "[0.5, -0.5]",
        "final_val": "[0, 0]",
        "start_epoch": "0",
        "end_epoch": "4",
        "update_frequency": "0.5",
    },
    "LayerPruningModifier": {"layers": "[bert.encoder.layer.2, bert.encoder.layer.5]", "start_epoch": "2"},
    "ConstantPruningModifier": {"params": "__ALL_PRUNABLE__"},
    "MagnitudePruningModifier": {
        "init_sparsity": "0.05",
        "final_sparsity": "0.9",
        "start_epoch": "1",
        "end_epoch": "8",
        "update_frequency": "0.5",
    },
    "GlobalMagnitudePruningModifier": {
        "init_sparsity": "0.05",
        "final_sparsity": "0.9",
        "start_epoch": "1",
        "end_epoch": "8",
        "update_frequency": "0.5",
    },
    "MovementPruningModifier": {
        "init_sparsity": "0.05",
        "final_sparsity": "0.9",
        "start_epoch": "1",
        "end_epoch": "8",
        "update_frequency": "0.1",
        "straight_through": "true",
    },
    "OBSPruningModifier": {
        "params": "['re:bert[.]encoder.*(query|key|value|dense)[.]weight']",
        "init_sparsity": "0.3",
        "final_sparsity": "0.9",
        "start_epoch": "2",
        "end_epoch": "26",
        "update_frequency": "4",
        "fisher_block_size": "50",
        "grad_sampler_kwargs": "{batch_size: 16}",
    },
    "StructuredPruningModifier": {
        "parts": "[attention_heads, ffn_neurons]",
        "final_sparsity": "0.5",
        "start_epoch": "1",
        "end_epoch": "8",
        "update_frequency": "0.1",
    },
    "QuantizationModifier": {
        "start_epoch": "8",
        "disable_quantization_observer_epoch": "12",
        "quantize_linear_activations": "false",
        "exclude_module_types": "[LayerNorm, Tanh]",
    },
    "DistillationModifier": {"hardness": "1.0", "temperature": "2.0"},
    "HiddenStateDistillationModifier": {"gain": "1.0", "attentions": "true", "layers": "{0: 1, 1: 3}"},
    "PerLayerDistillationModifier": {
        "student_layer_names": "['re:bert[.]encoder[.]layer[.][0-9]+[.]output$']",
        "project_features": "false",
    },
}
# Expressions that show every operator and every function.
EXPRESSIONS = (
    "num_epochs - 5",
    "init_lr * 2 + 1e-5",
    "-num_epochs + 20",
    "7 / 2",
    "7 // 2",
    "7 % 2",
    "2 ** 3",
    "abs(-2)",
    "float(2)",
    "int(2.7)",
    "max(1, num_epochs / 2)",
    "min(num_epochs, 10, 20)",
    "round(2.567, 1)",
)
VARIABLES = {"num_epochs": 13, "init_lr": 1e-4}


def parts() -> dict[str, str]:
    """The generated parts of the page, by name."""
    return {
        "every_modifier": other_keys_table(Modifier, without={}),
        "modifiers": "\n\n".join(section(kind) for kind in dict.fromkeys(REGISTRY.values())),
        "known_later": known_later(),
        "expressions": expressions_table(),
    }


# --- one modifier -----------------------------------------------------------------------------------------------------


def section(kind: type[Modifier]) -> str:
    """A modifier under all its names: what it does, an example, its keys, and keys of old recipes."""
    names = [name for name, registered in REGISTRY.items() if registered is kind]
    if kind.__name__ not in EXAMPLES:
        raise ValueError(f"{kind.__name__} has no example: add one to EXAMPLES in docs/modifier_tables.py")
    lines = [f"## {', '.join(names)}", "", inspect.getdoc(kind) or ""]
    if len(names) > 1:
        lines += ["", f"`{names[0]}` and {listed(names[1:])} are the same modifier."]
    lines += ["", "```yaml", recipe_text(kind.__name__, EXAMPLES[kind.__name__]), "```", "", keys_table(kind)]
    if others := other_keys_table(kind, without=other_keys(Modifier)):
        lines += ["", "Keys of SparseML that are not read, or only at one value:", "", others]
    return "\n".join(lines)


def recipe_text(name: str, keys: Mapping[str, str]) -> str:
    """A recipe with one modifier; `keys` are in YAML."""
    return "\n".join(["modifiers:", f"  - !{name}", *(f"    {key}: {value}" for key, value in keys.items())])


def keys_table(kind: type[Modifier]) -> str:
    types, meanings, neutral = field_types(kind), field_docs(kind), key_table(kind, "neutral")
    rows = []
    for key, field in recipe_fields(kind).items():
        if key not in meanings:
            raise ValueError(f"{kind.__name__}.{key} has no docstring")
        default = "required" if is_required(kind, key) else f"`{in_yaml(default_of(field))}`"
        same = [value for value in neutral.get(key, ()) if value != default_of(field)]
        note = f" {listed(map(in_yaml, same), 'or')} is the same as leaving it out." if same else ""
        rows.append((f"`{key}`", describe_type(types[key]), default, meanings[key] + note))
    return table(("key", "type", "default", "meaning"), rows)


def is_required(kind: type[Modifier], key: str) -> bool:
    """True where the modifier's example is refused without this key."""
    example = EXAMPLES[kind.__name__]
    if key not in example:
        return False
    others = {name: value for name, value in example.items() if name != key}
    return error_of(recipe_text(kind.__name__, others)) is not None


def error_of(recipe: str) -> str | None:
    """The message with which a recipe's text is refused; None where it is read."""
    try:
        load_recipe(f"{recipe}\n")
    except RecipeError as error:
        return str(error).replace("<text>", "recipe.yaml")
    return None


def field_docs(kind: type[Modifier]) -> dict[str, str]:
    """The docstring below each field of a dataclass, those of its base classes included."""
    docs = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        definition = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(definition, ast.ClassDef)
        for field, below in itertools.pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                text = ast.literal_eval(below.value)
                docs[ast.unparse(field.target)] = " ".join(text.split())
    return docs


def default_of(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


# --- keys of old recipes ----------------------------------------------------------------------------------------------


def other_keys_table(kind: type[Modifier], without: Mapping[str, str]) -> str:
    """The keys that are not fields, as a table; empty where all are in `without` already, with the same words."""
    rows = [(f"`{key}`", text) for key, text in other_keys(kind).items() if without.get(key) != text]
    return table(("key", "what happens"), rows) if rows else ""


def other_keys(kind: type[Modifier]) -> dict[str, str]:
    """What becomes of each key that a recipe of SparseML may have and that is not a field here."""
    neutral, without_effect, known_later = (
        key_table(kind, name) for name in ("neutral", "without_effect", "known_later")
    )
    texts = {}
    for key in sorted({*without_effect, *known_later}.difference(recipe_fields(kind))):
        if key in without_effect:
            texts[key] = f"accepted, without effect: {without_effect[key]}"
        else:
            values = listed(map(in_yaml, neutral.get(key, ())), "or")
            read = f"accepted as {values}; any other value" if values else "any value"
            texts[key] = f"{read} is refused as not supported yet: {known_later[key]}"
    return texts


def known_later() -> str:
    """The modifiers that are refused by name with the reason, and the message."""
    message, _, _ = str(error_of(recipe_text(min(KNOWN_LATER), {}))).partition(" Supported:")
    rows = [(f"`{name}`", reason) for name, reason in sorted(KNOWN_LATER.items())]
    return "\n".join(
        ["```text", f"error: {message} Supported: ...", "```", "", table(("modifier", "why, or what to use"), rows)]
    )


# --- expressions ------------------------------------------------------------------------------------------------------


def expressions_table() -> str:
    """Examples of `eval(...)` with their results, for each operator and function that there is."""
    written = " ".join(EXPRESSIONS)
    known = [*expressions._OPERATIONS, "**", *(f"{name}(" for name in expressions._FUNCTIONS)]
    if missing := [operation for operation in known if operation not in written]:
        raise ValueError(f"no example of {missing}: add one to EXPRESSIONS in docs/modifier_tables.py")
    rows = []
    for text in EXPRESSIONS:
        value = expressions.evaluate_expression(text, VARIABLES.__getitem__)
        rows.append((f"`eval({text})`", f"`{value!r}`"))
    return table(("expression", "result"), rows)


# --- Markdown ---------------------------------------------------------------------------------------------------------


def table(heading: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [heading, ("---",) * len(heading), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def listed(values: Iterable[Any], word: str = "and") -> str:
    """`a`, `b` and `c`."""
    quoted = [f"`{value}`" for value in values]
    return f" {word} ".join([", ".join(quoted[:-1]), quoted[-1]]) if len(quoted) > 1 else "".join(quoted)


def in_yaml(value: Any) -> str:
    """A value as a recipe has it."""
    return "" if value is dataclasses.MISSING else write_recipe({"key": value}).removeprefix("key:").strip()
