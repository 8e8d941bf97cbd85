"""What is wrong with a recipe is said with file, line, key and the nearest name, and nothing heavy is imported."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from places import ROOT
from recipe_texts import command, error_of

from sparse_accel.modifiers import KNOWN_LATER, REGISTRY
from sparse_accel.recipe import RecipeError, load_recipe
from sparse_accel.zoo import RECIPES

SST2 = RECIPES / "sst2_pruned90_quant.yaml"
RANGE = "modifiers:\n  - !EpochRangeModifier {end_epoch: 4}\n"


def modifier_error(modifier: str, before: str = "") -> RecipeError:
    """The error of a recipe whose third line is the first key of a modifier (after the lines `before`)."""
    return error_of(
        before + "modifiers:\n  - " + textwrap.indent(textwrap.dedent(modifier).strip(), "    ").lstrip() + "\n"
    )


# --- a modifier and its keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modifier", "line", "key", "parts"),
    [
        ("!SetWeightDecayModifier\nweight_decy: 1", 3, "weight_decy", ["Did you mean 'weight_decay'?", "param_groups"]),
        ("!SetWeightDecayModifier\nstart_epoch: 1", 2, "weight_decay", ["needs weight_decay"]),
        ("!SetWeightDecayModifier", 2, "weight_decay", ["needs weight_decay"]),
        (
            "!SetWeightDecayModifier\nstart_epoch: 0\nweight_decay: none",
            4,
            "weight_decay",
            ["expected a number, got 'none'"],
        ),
        ("!SetWeightDecayModifier\nweight_decay: true", 3, "weight_decay", ["expected a number, got true"]),
        ("!SetWeightDecayModifier\nweight_decay: -1", 3, "weight_decay", ["0 or more, got -1"]),
        ("!SetWeightDecayModifier\nweight_decay: .nan", 3, "weight_decay", ["expected a number"]),
        ("!SetWeightDecayModifier\nweight_decay: 1\nweight_decay: 2", 4, "weight_decay", ["duplicate key", "line 3"]),
        (
            "!SetWeightDecayModifier\nweight_decay: 1\nparam_groups: 0",
            4,
            "param_groups",
            ["a list (each an integer) or null"],
        ),
        (
            "!LearningRateFunctionModifier\nlr_func: cosin\ninit_lr: 0\nfinal_lr: 0\nend_epoch: 1",
            3,
            "lr_func",
            ["'cosine'?"],
        ),
        (
            "!LearningRateFunctionModifier\nlr_func: linear\ninit_lr: 2\nfinal_lr: 0\nend_epoch: 1",
            4,
            "init_lr",
            ["and 1"],
        ),
        ("!EpochRangeModifier\nend_epoch: 0", 3, "end_epoch", ["above 0"]),
        ("!EpochRangeModifier\nstart_epoch: 3\nend_epoch: 2", 4, "end_epoch", ["before start_epoch"]),
        ("!TrainableParamsModifier\ntrainable: false\nparams: []", 4, "params", ["params: must not be empty"]),
        ("!TrainableParamsModifier\ntrainable: maybe\nparams: x", 3, "trainable", ["true or false"]),
        (
            "!EpochRangModifier\nend_epoch: 2",
            2,
            None,
            ["no modifier '!EpochRangModifier'", "Did you mean 'EpochRangeModifier'?"],
        ),
        ("!keras.EpochRangeModifier\nend_epoch: 2", 2, None, ["!keras.EpochRangeModifier"]),
        ("!RigLPruningModifier\nend_epoch: 2", 2, None, ["is not supported: no recipe for an encoder uses it; use "]),
        ("!EpochRangeModifier 3", 2, None, ["followed by its keys"]),
        ("!EpochRangeModifier [3]", 2, None, ["followed by its keys"]),
        ("!!python/object:os.system\nend_epoch: 2", 2, None, ["python/object"]),
        ("!EpochRangeModifier\nend_epoch: !EpochRangeModifier {end_epoch: 2}", 3, None, ["is inside !Epoch"]),
        ("EpochRangeModifier:\n  end_epoch: 2", 2, "modifiers", ["'EpochRangeModifier'", "`- !Name`"]),
        ("EpochRangeModifier", 1, "modifiers", ["'EpochRangeModifier'", "`- !Name`"]),
    ],
)
def test_names_line_and_key(modifier: str, line: int, key: str | None, parts: list[str]) -> None:
    error = modifier_error(modifier)
    assert (error.source, error.line) == ("<text>", line)
    if key:
        assert error.key == key
    assert str(error).startswith(f"<text>:{line}: ")
    for part in parts:
        assert part in str(error)


def test_later_names_and_misspelt_ones_read_differently() -> None:
    assert not KNOWN_LATER.keys() & REGISTRY.keys()
    for name, reason in KNOWN_LATER.items():
        message = str(modifier_error(f"!{name}\nend_epoch: 1"))
        assert f"!{name} is not supported: {reason}. Supported: " in message and "\n" not in message
        assert len(reason) < 110 and len(message) < 1000  # ten lines of a narrow terminal
    assert "known" not in str(modifier_error("!MovementPruningModifer\nend_epoch: 1"))


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("eval(num_epoch)", ["no variable 'num_epoch'", "Did you mean 'num_epochs'?"]),
        ("eval(name)", ["expected a number, got 'hello'", "eval(name)"]),
        ("eval(1 / 0)", ["division by zero"]),
        ("eval(num_epochs) + 1", ["inside eval(...)"]),
    ],
)
def test_an_expression_names_its_line(value: str, parts: list[str]) -> None:
    error = modifier_error(f"!EpochRangeModifier\nend_epoch: {value}", before="num_epochs: 3\nname: hello\n")
    assert (error.line, error.key) == (5, "end_epoch")
    for part in parts:
        assert part in str(error)


# --- the document -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [
        ("\n", None, ["empty"]),
        ("# only a comment\n", None, ["empty"]),
        ("- a\n- b\n", 1, ["mapping"]),
        ("just words\n", 1, ["mapping"]),
        ("a: 1\na: 2\n", 2, ["duplicate key 'a'", "line 1"]),
        ("a: [1\nb: 2\n", 2, ["not valid YAML"]),
        ("a: 1\n\tb: 2\n", 2, ["tab"]),
        ("a: 1\n---\nb: 2\n", 2, ["one YAML document"]),
        ("a: *nowhere\n", 1, ["nowhere"]),
        ("a: \x00\n", 1, ["U+0000"]),
        ("a: &a [*a]\n", None, ["nested too deeply"]),
        ("a: " + "[" * 600 + "\n", None, ["nested too deeply"]),
        ("1: 2\n", 1, ["name as key, got 1"]),
        ("? [a]\n: 2\n", 1, ["name as key, got a list"]),
        ("mods:\n  - !EpochRangeModifier {end_epoch: 1}\n", 2, ["under 'mods'", "mods_modifiers"]),
        ("modifiers:\n  a: 1\n", 1, ["'modifiers' must be a list"]),
        ("stage:\n  x_modifiers:\n    EpochRangeModifier: {end_epoch: 1}\n", 2, ["'x_modifiers' must be a list"]),
        ("modifiers: !EpochRangeModifier {end_epoch: 1}\n", 1, ["'modifiers' must be a list"]),
        ("s:\n  x_modifiers: []\n  t:\n    y_modifiers: []\n", 3, ["stage 't' is inside stage 's'"]),
        ("a: eval(b)\nb: eval(a)\n", 1, ["a -> b -> a"]),
        ("a: 1\nb: eval(nope)\n", 2, ["no variable 'nope'"]),
        ("s:\n  n: 1\n  x_modifiers: []\nm: eval(n)\n", 4, ["no variable 'n'"]),
        ("a: !!set {x}\n", 1, ["!!set"]),
        ("a: !!int x\n", 1, ["'x' is not a valid int"]),
        ("<<: 3\n", 1, ["a mapping after `<<`"]),
        ("---\nmodifiers: [\n---\n", 3, ["not valid YAML"]),
        ("+++\na: 1\n", 1, ["two `+++` lines"]),
    ],
)
def test_documents(text: str, line: int | None, parts: list[str]) -> None:
    error = error_of(text)
    assert error.line == line
    for part in parts:
        assert part in str(error)


def test_a_text_that_expands_without_end_is_refused() -> None:
    levels = "".join(f"l{n + 1}: &l{n + 1} [{', '.join([f'*l{n}'] * 10)}]\n" for n in range(12))
    assert "expands" in str(error_of("l0: &l0 x\n" + levels))


def test_variables_that_depend_on_each_other_without_end_are_refused() -> None:
    text = "".join(f"v{n}: eval(v{n + 1} + 1)\n" for n in range(900)) + "v900: 1\n"
    assert "nested too deeply" in str(error_of(text))


def test_files(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RANGE)
    (tmp_path / "card.md").write_text("# Only words\n")
    (tmp_path / "binary.yaml").write_bytes(b"\x89PNG\xff\xfe")
    (tmp_path / "recipe.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    for name, part in {
        "recpe.yaml": "no such file. Did you mean 'recipe.yaml'?",
        "none/recipe.yaml": "does not exist",
        "card.md": "between two `---` lines",
        "binary.yaml": "not a text file",
        "recipe.json": "ends in .yaml, .yml, .md",
        "folder": "a folder",
        "": "It contains binary.yaml, card.md, recipe.yaml",
        "x" * 300 + ".yaml": "cannot be read",
    }.items():
        error = error_of(str(tmp_path / name) if name else tmp_path)
        assert part in str(error) and str(tmp_path / name) in str(error)
    assert "no recipe given: pass the path" in str(error_of(""))


# --- recipe_args ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_args", "parts"),
    [
        ("num_epoch=3", ["no variable 'num_epoch'", "Did you mean 'num_epochs'?", "sst2_pruned90_quant.yaml"]),
        ('{"training_modifiers": []}', ["no variable 'training_modifiers'"]),
        ({"num_epochs": object()}, ["the value of 'num_epochs'", "not supported in a recipe"]),
        ({"num_epochs": {"a_modifiers": []}}, ["cannot contain modifiers"]),
        ({3: 1}, ["3 is not the name"]),
        ("{num_epochs: 3}", ["not valid JSON", "double quotes"]),
        ("[1]", ["a JSON object"]),
        ('{"num_epochs": NaN}', ["NaN"]),
        ('{"num_epochs": 1, "num_epochs": 2}', ["duplicate name 'num_epochs'"]),
        ("num_epochs=1,num_epochs=2", ["duplicate name 'num_epochs'"]),
        ("num_epochs", ["not NAME=VALUE"]),
        ("num_epochs=1,", ["not NAME=VALUE"]),
        ("num_epochs=[1", ["cannot be read"]),
        (
            "num_epochs=abc",
            [
                "sst2_pruned90_quant.yaml:20: EpochRangeModifier: end_epoch: expected a number, got 'abc'",
                "eval(num_epochs)",
            ],
        ),
        ("num_epochs=7", ["start_epoch 8", "line 31"]),
    ],
)
def test_recipe_args(given_args: Any, parts: list[str]) -> None:
    message = str(error_of(SST2, given_args))
    for part in parts:
        assert part in message


# --- modifiers that exclude each other --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modifiers", "line", "parts"),
    [
        (
            ["LearningRateFunctionModifier {lr_func: linear, init_lr: 0.1, final_lr: 0, end_epoch: 4}",
             "SetLearningRateModifier {start_epoch: 2, learning_rate: 0.1}"],
            4, ["at epoch 2, LearningRateFunctionModifier (epoch 0 to epoch 4) already sets", "line 3"],
        ),
        (
            ["LearningRateFunctionModifier {lr_func: linear, init_lr: 0.1, final_lr: 0, end_epoch: 3}",
             "LearningRateFunctionModifier {lr_func: cosine, init_lr: 0.1, final_lr: 0, start_epoch: 2, end_epoch: 4}"],
            4, ["at epoch 2, LearningRateFunctionModifier (epoch 0 to epoch 3)", "line 3"],
        ),
        (
            ["LearningRateModifier {lr_class: ExponentialLR, lr_kwargs: {gamma: 0.5}, init_lr: 0.1}",
             "SetLearningRateModifier {start_epoch: 2, learning_rate: 0.1, param_groups: [1]}"],
            4, ["epoch 0 to the end", "line 3"],
        ),
        (["SetLearningRateModifier {learning_rate: 0.1}", "SetLearningRateModifier {start_epoch: 0, learning_rate: 0}"],
         None, ["two modifiers set lr of the same parameter groups"]),
        (["SetWeightDecayModifier {weight_decay: 0.1}", "SetWeightDecayModifier {weight_decay: 0, param_groups: [1]}"],
         None, ["two modifiers set weight_decay of the same parameter groups"]),
        (["SetWeightDecayModifier {start_epoch: 5, weight_decay: 0}"], 2, ["ends at epoch 4", "start_epoch 5", "3)"]),
        (["TrainableParamsModifier {params: __ALL__, trainable: 1, end_epoch: 5}"], 2, ["end_epoch 5", "line 3"]),
        (["SetWeightDecayModifier {start_epoch: 4.2, weight_decay: 0}"], 2, ["4: raise end_epoch to 5 or more"]),
        (["EpochRangeModifier {end_epoch: 3}"], 3, ["a second EpochRangeModifier", "line 2"]),
        (["QuantizationModifier {start_epoch: 2, disable_quantization_observer_epoch: 1}"], 3, ["before"]),
        (["SetLearningRateModifier {learning_rate: 0.1, end_epoch: 3}"], 3, ["end_epoch: the value stays until"]),
        (["SetWeightDecayModifier {weight_decay: 0, end_epoch: 2}",
          "SetWeightDecayModifier {weight_decay: 0.1, start_epoch: 3}"], 3, ["leave end_epoch out"]),
        (["SetWeightDecayModifier {weight_decay: 0, end_epoch: 3}",
          "SetWeightDecayModifier {weight_decay: 0.1, start_epoch: 2}",
          "SetWeightDecayModifier {weight_decay: 0.2, start_epoch: 3}"], 3, ["leave end_epoch out"]),
        (["SetWeightDecayModifier {weight_decay: 0, end_epoch: 3}",
          "SetWeightDecayModifier {weight_decay: 0.1, start_epoch: 3, param_groups: [0]}"], 3, ["leave end_epoch out"]),
        (["SetWeightDecayModifier {weight_decay: 0, end_epoch: 3}",
          "SetLearningRateModifier {learning_rate: 0.1, start_epoch: 3}"], 3, ["sets weight_decay of these"]),
    ],
)  # fmt: skip
def test_conflicts_are_found_when_the_recipe_is_read(modifiers: list[str], line: int | None, parts: list[str]) -> None:
    error = error_of(RANGE + "".join(f"  - !{modifier}\n" for modifier in modifiers))
    assert line is None or error.line == line
    for part in parts:
        assert part in str(error)


@pytest.mark.parametrize(
    "modifiers",
    [
        ["LearningRateFunctionModifier {lr_func: linear, init_lr: 0.1, final_lr: 0, end_epoch: 2}",
         "SetLearningRateModifier {start_epoch: 2, learning_rate: 0.1}",
         "SetLearningRateModifier {start_epoch: 0, learning_rate: 0.1}"],
        ["LearningRateFunctionModifier {lr_func: linear, init_lr: 0.1, final_lr: 0, end_epoch: 4, param_groups: [0]}",
         "SetLearningRateModifier {start_epoch: 2, learning_rate: 0.1, param_groups: [1]}"],
        ["SetWeightDecayModifier {weight_decay: 0.1}", "SetLearningRateModifier {learning_rate: 0.2}"],
        ["SetWeightDecayModifier {weight_decay: 0, end_epoch: 3}",
         "SetWeightDecayModifier {weight_decay: 0.1, start_epoch: 3}"],
        ["SetLearningRateModifier {learning_rate: 0.1, start_epoch: 1, end_epoch: 2, param_groups: [1]}",
         "LearningRateFunctionModifier {lr_func: linear, init_lr: 0.1, final_lr: 0, start_epoch: 2, end_epoch: 4}"],
    ],
)  # fmt: skip
def test_what_can_stand_together_may(modifiers: list[str]) -> None:
    assert len(load_recipe(RANGE + "".join(f"  - !{modifier}\n" for modifier in modifiers)).modifiers) == 1 + len(
        modifiers
    )


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_the_timeline_and_imports_nothing_heavy() -> None:
    result = command(str(SST2))
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].endswith("13 epochs, 6 modifiers") and lines[-1] == "imported: []"
    assert any(line.split()[:2] == ["8", "quantization-aware"] for line in lines)
    assert lines[-2].split() == ["13", "training", "ends"]


def test_every_modifier_file_imports_without_torch() -> None:
    names = [f"sparse_accel.modifiers.{path.stem}" for path in (ROOT / "sparse_accel" / "modifiers").glob("*.py")]
    code = (
        f"import sys, importlib; [importlib.import_module(name) for name in {names}]; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False).returncode == 0


def test_a_typo_prints_file_line_key_and_suggestion_and_exits_with_2(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(SST2.read_text().replace("      init_lr: eval", "      init_rl: eval"))
    result = command(str(path))
    assert result.returncode == 2
    assert result.stderr.startswith(
        f"error: {path}:27: LearningRateFunctionModifier has no key 'init_rl'. Did you mean 'init_lr'?"
    )
    assert "Traceback" not in result.stderr and result.stdout == "imported: []\n"


def test_the_command_resolves_and_warns() -> None:
    result = command(str(SST2), "--resolved", "--recipe_args", "version=2,num_epochs=14")
    assert "end_epoch: 14.0" in result.stdout and "eval(" not in result.stdout
    assert "warning: recipe_args sets 'version'" in result.stderr
