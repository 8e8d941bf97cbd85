"""From text to a Recipe: what the old tool's recipes evaluate to, and every form that a recipe may take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import golden

from sparse_accel.errors import UsageError
from sparse_accel.modifiers import REGISTRY, Modifier
from sparse_accel.modifiers.epoch_range import EpochRangeModifier
from sparse_accel.modifiers.learning_rate import LearningRateFunctionModifier, SetLearningRateModifier
from sparse_accel.modifiers.quantization import QuantizationModifier
from sparse_accel.recipe import Recipe, load_recipe
from sparse_accel.recipe.fields import TypeMismatch, convert
from sparse_accel.zoo import RECIPES

GOLDEN = golden("recipe")["cases"]
SST2 = RECIPES / "sst2_pruned90_quant.yaml"  # both as the tutorial prints them
DENSE = RECIPES / "sst2_dense.yaml"
ROTTEN_TOMATOES_ARGS = '{"num_epochs":12,"qat_start_epoch":7.0, "observer_epoch": 11.0}'


def comparable(recipe: Recipe) -> list[Modifier]:
    """Its modifiers; the old tool writes `submodules` in no particular order."""
    return [
        replace(modifier, submodules=sorted(modifier.submodules or []))
        if isinstance(modifier, QuantizationModifier)
        else modifier
        for modifier in recipe.modifiers
    ]


# --- as the old tool --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "recipe_args", "expected"),
    [
        (SST2, None, "sst2_serialized"),
        (SST2, ROTTEN_TOMATOES_ARGS, "rt_args_serialized"),
        (SST2, "num_epochs=10,qat_start_epoch:6,observer_epoch=9", "csv_args"),
        (DENSE, '{"init_lr":0.00003}', "dense_serialized"),
        (GOLDEN["staged_in"], None, "staged_serialized"),
        (GOLDEN["staged_in"], {"n": 7}, "staged_override_n7"),
        (GOLDEN["markdown_in"], None, "markdown_serialized"),
    ],
)
def test_evaluates_to_what_the_old_tool_serialized(source: Any, recipe_args: Any, expected: str) -> None:
    assert comparable(load_recipe(source, recipe_args)) == comparable(load_recipe(GOLDEN[expected]))


@pytest.mark.parametrize(("recipe_args", "expected"), [(None, "eval_out"), ("a=10", "eval_overridden")])
def test_evaluates_variables_and_what_depends_on_them(recipe_args: Any, expected: str) -> None:
    ours, theirs = load_recipe(GOLDEN["eval_in"], recipe_args), load_recipe(GOLDEN[expected])
    assert ours == theirs
    assert ours.content.keys() == theirs.content.keys()


def test_order_and_length_are_the_old_tools() -> None:
    recipe = load_recipe(SST2)
    assert [modifier.name for modifier in recipe.modifiers] == GOLDEN["sst2_modifier_order"]
    assert recipe.max_epochs == GOLDEN["sst2_max_epochs"]
    assert load_recipe(SST2, ROTTEN_TOMATOES_ARGS).max_epochs == GOLDEN["rt_max_epochs"]
    assert load_recipe(GOLDEN["staged_in"]).max_epochs == GOLDEN["staged_max_epochs"]
    assert load_recipe(GOLDEN["eval_in"]).max_epochs == 21  # 20.25, rounded up


def test_epochs_that_differ_by_rounding_are_one_moment() -> None:
    text = """
end: eval(0.1 * 3)
modifiers:
  - !EpochRangeModifier {end_epoch: 0.3}
  - !LearningRateFunctionModifier {lr_func: linear, init_lr: 1, final_lr: 0, end_epoch: eval(end)}
"""
    text += "  - !SetLearningRateModifier {start_epoch: 0.3, learning_rate: 0.1}\n"
    assert load_recipe(text, "end=eval(0.1 + 0.2)").content["end"] > 0.3
    assert load_recipe("modifiers:\n  - !EpochRangeModifier {end_epoch: eval((0.1 + 0.2) * 10)}\n").max_epochs == 3


def test_both_indentations_of_the_tutorial_give_the_same() -> None:
    deep = "m_modifiers:\n  - !EpochRangeModifier\n      start_epoch: 0\n      end_epoch: 3\n"
    even = "m_modifiers:\n  - !EpochRangeModifier\n    start_epoch: 0\n    end_epoch: 3\n"
    flush = "m_modifiers:\n- !pytorch.EpochRangeModifier\n  start_epoch: 0\n  end_epoch: 3\n"
    flow = "m_modifiers: [!EpochRangeModifier {start_epoch: 0, end_epoch: 3}]\n"
    assert load_recipe(deep) == load_recipe(even) == load_recipe(flush) == load_recipe(flow)


# --- forms of a recipe ------------------------------------------------------------------------------------------------

MINIMAL = "n: 3\nmodifiers:\n  - !EpochRangeModifier\n    end_epoch: eval(n)\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", MINIMAL),
        ("a.yml", MINIMAL),
        ("a.yaml", "\ufeff" + MINIMAL),
        ("a.yaml", MINIMAL.replace("\n", "\r\n")),
        ("a.yaml", "---\n" + MINIMAL),
        ("a.yaml", "%YAML 1.2\n---\n" + MINIMAL + "...\n"),
        ("a.md", f"---\n{MINIMAL}---\n# A model\n\n---\ntext: [\n"),
        ("a.md", f"\n+++\n{MINIMAL}+++\n# A model\n"),
        ("a.md", f"<!--\nA licence\n---\n-->\n\n---\n{MINIMAL}---\n"),
        ("a.md", f"---\r\n{MINIMAL}---\r\n".replace("\n", "\r\n").replace("\r\r", "\r")),
    ],
)
def test_every_form_of_file(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode())
    for source in (path, str(path), text):
        if source == text and name == "a.yaml" and text.startswith("\ufeff"):
            continue
        assert load_recipe(source) == load_recipe(MINIMAL)
    assert load_recipe(path).text == text and load_recipe(path).source == str(path)


def test_a_stub_is_read_through_the_function_given(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(MINIMAL)
    recipe = load_recipe("zoo:a/b?recipe=x", resolve_stub=lambda stub: tmp_path / "recipe.yaml")
    assert recipe == load_recipe(MINIMAL)
    with pytest.raises(UsageError, match="zoo:a/b"):
        load_recipe("zoo:a/b")


def variables_of(text: str, recipe_args: Any = None) -> dict[str, Any]:
    """The variables of a recipe that is `text` and a modifier."""
    content = load_recipe(text + "modifiers: [!EpochRangeModifier {end_epoch: 1}]\n", recipe_args).content
    return {key: value for key, value in content.items() if key != "modifiers"}


def test_numbers_and_truths_are_those_of_yaml_1_2() -> None:
    text = "a: 1e-4\nb: 3e-05\nc: 1.5e-4\nd: on\ne: 'yes'\nf: true\n"
    text += "g: 0x10\nh: 2:4\ni: 1_000\nj: ~\nk: 2024-01-01\nl: +.5\n"
    assert variables_of(text) == {
        "a": 1e-4,
        "b": 3e-5,
        "c": 1.5e-4,
        "d": "on",
        "e": "yes",
        "f": True,
        "g": 16,
        "h": "2:4",
        "i": "1_000",
        "j": None,
        "k": "2024-01-01",
        "l": 0.5,
    }
    assert variables_of("lr: 1e-4\ntwice: eval(lr*2)\n")["twice"] == pytest.approx(2e-4)


def test_anchors_and_merge_keys() -> None:
    text = "n: &n 3\nshared: &shared {start_epoch: 1}\nmodifiers:\n  - !EpochRangeModifier {end_epoch: *n}\n"
    text += "  - !SetWeightDecayModifier\n    <<: *shared\n    weight_decay: 0.1\n"
    recipe = load_recipe(text)
    assert recipe.max_epochs == 3 and recipe.modifiers[1].start_epoch == 1


def test_expressions_anywhere_stages_too() -> None:
    text = """
gamma: 0.5
first: 1
stage:
  last: eval(first + 2)
  lr_modifiers:
    - !EpochRangeModifier {end_epoch: eval(last + 1)}
    - !LearningRateModifier
      lr_class: MultiStepLR
      lr_kwargs: {gamma: eval(gamma), milestones: [eval(first), 'eval(last / 2)']}
      init_lr: 0.1
"""
    modifier: Any = load_recipe(text).modifiers[1]
    assert modifier.lr_kwargs == {"gamma": 0.5, "milestones": [1, 1.5]}
    modifier = load_recipe(text, {"first": 0.5}).modifiers[1]
    assert modifier.lr_kwargs["milestones"] == [0.5, 1.25]


@pytest.mark.parametrize(
    ("given_args", "expected"),
    [
        ("a=1,b:2", {"a": 1, "b": 2}),
        ("a = 1e-4 , b: off", {"a": 1e-4, "b": "off"}),
        ('{"a": 1e-4, "b": [1, {"c": null}]}', {"a": 1e-4, "b": [1, {"c": None}]}),
        ("a=[1, 2],b='x, y'", {"a": [1, 2], "b": "x, y"}),
        ("b=zoo:x/y", {"b": "zoo:x/y"}),
        ("a=", {"a": None}),
        ({"a": (1, 2)}, {"a": [1, 2]}),
        ("a=eval(b * 2)", {"a": 4, "b": 2}),
        ("", {}),
        (None, {}),
        ({}, {}),
    ],
)
def test_recipe_args(given_args: Any, expected: dict[str, Any]) -> None:
    assert variables_of("a: 0\nb: 2\n", given_args) == {"a": 0, "b": 2} | expected


def test_an_argument_that_changes_nothing_is_warned_about() -> None:
    recipe = load_recipe(
        "n: 3\nm: eval(n)\nunused: 1\n" + MINIMAL.replace("n: 3\n", "").replace("(n)", "(m)"), "n=4,unused=2"
    )
    assert recipe.max_epochs == 4
    assert len(recipe.warnings) == 1 and "'unused'" in recipe.warnings[0]


def test_a_key_without_effect_is_accepted_and_noted() -> None:
    recipe = load_recipe("modifiers:\n  - !SetWeightDecayModifier\n    weight_decay: 0\n    constant_logging: True\n")
    assert ":4: SetWeightDecayModifier: constant_logging has no effect" in recipe.notes[0]


def test_what_never_happens_is_warned_about() -> None:
    text = "modifiers:\n  - !EpochRangeModifier {end_epoch: 3}\n"
    text += "  - !SetWeightDecayModifier {start_epoch: 3, weight_decay: 0}\n"
    assert ":3: SetWeightDecayModifier starts at epoch 3" in load_recipe(text).warnings[0]
    assert "12" in load_recipe(SST2, "num_epochs=10").warnings[0]


def test_training_ends_once_and_after_full_epochs() -> None:
    """Not at the end of every stage, and not in the middle of an epoch."""
    stage = "{}_stage:\n  {}_modifiers:\n    - !EpochRangeModifier {{start_epoch: 0, end_epoch: {}}}\n"
    recipe = load_recipe(stage.format("first", "first", 2) + stage.format("second", "second", 1.5))
    ends = [epoch for epoch, what in recipe.timeline() if what == "training ends"]
    assert ends == [recipe.max_epochs] and recipe.max_epochs == int(recipe.max_epochs)
    assert load_recipe("modifiers:\n  - !ConstantPruningModifier {}\n").timeline()[-1][1] != "training ends"


def test_select_timeline_and_dict() -> None:
    recipe = load_recipe(SST2)
    (quantization,) = recipe.select(QuantizationModifier)
    assert quantization.quantize_embeddings is True and quantization.quantize_linear_activations is False
    timeline = recipe.timeline()
    assert timeline == sorted(timeline, key=lambda event: event[0]) and timeline[-1] == (13.0, "training ends")
    plain = json.loads(json.dumps(recipe.to_dict()))
    assert plain["constant_modifiers"][0]["ConstantPruningModifier"]["params"] == "__ALL_PRUNABLE__"


# --- types ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected", "result"),
    [
        (1, bool, True),
        (0, bool, False),
        (3, float, 3.0),
        (3.0, int, 3),
        (None, float | None, None),
        ("x", str | list[str], "x"),
        (["x"], str | list[str], ["x"]),
        (1, float | str, 1.0),
        (1, int | float, 1),
        ({0.5: ["a"]}, float | dict[float, list[str]], {0.5: ["a"]}),
        ([2, 4.0], str | list[int], [2, 4]),
    ],
)
def test_values_become_the_fields_types(value: Any, expected: Any, result: Any) -> None:
    converted = convert(value, expected)
    assert converted == result and type(converted) is type(result)


@pytest.mark.parametrize(
    ("value", "expected", "part"),
    [
        (2, bool, "true or false"),
        ("on", bool, "true or false"),
        (True, float, "a number, got true"),
        (True, int, "an integer"),
        (1.5, int, "an integer"),
        (float("nan"), float, "a number"),
        (float("inf"), float, "a number"),
        (1, str, "a string"),
        ("x", list[str], "a list"),
        ([1], list[str], "a string"),
        (None, float, "got nothing"),
        ([], dict[str, int], "a mapping"),
        ([1], str | list[str], "entry 1: expected a string, got 1"),
        (["a", ["b", 3]], list[str | list[str]], "entry 2: entry 2: expected a string, got 3"),
        (1, str | list[str], "a string or a list"),
        ({"a": 1, "b": "x"}, dict[str, int] | None, "b: expected an integer, got 'x'"),
        ({1: 2}, dict[str, int], "a key: expected a string, got 1"),
        ({"a": "x"}, dict[str, int] | dict[int, str], "expected a mapping, got {'a': 'x'}"),
        ({"a": "x" * 99}, dict[str, int] | list[str], "a: expected an integer, got 'xxx"),
    ],
)
def test_a_value_of_another_type_is_refused_in_words(value: Any, expected: Any, part: str) -> None:
    with pytest.raises(TypeMismatch) as caught:
        convert(value, expected)
    assert part in str(caught.value)


# --- the resolved recipe ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", [SST2, DENSE, GOLDEN["eval_in"], GOLDEN["staged_in"], GOLDEN["markdown_in"], MINIMAL]
)
def test_the_resolved_recipe_reads_back_equal_and_stays_as_it_is(source: Any) -> None:
    recipe = load_recipe(source)
    again = load_recipe(recipe.resolved())
    assert again == recipe and again.modifiers == recipe.modifiers and again.content.keys() == recipe.content.keys()
    assert again.resolved() == recipe.resolved()
    assert "eval(" not in recipe.resolved()


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
        lambda text: not text.lstrip().startswith("eval")
    ),
    st.sampled_from(
        ["1e-4", "on", "yes", "null", "~", "2:4", "<<", "0x1", "- a", "a: b", "# c", "!x", "&a", " lead", "1_0", ".5"]
    ),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc1-", max_size=4), inner, max_size=3),
    max_leaves=6,
)
names = st.text("abcdefgh_1", min_size=1, max_size=8)
modifiers = st.one_of(
    st.builds(
        LearningRateFunctionModifier,
        lr_func=st.sampled_from(["linear", "cosine", "cyclic_linear"]),
        init_lr=st.floats(0, 1),
        final_lr=st.floats(0, 1),
        start_epoch=st.just(0.0),
        end_epoch=st.floats(0.5, 9),
        param_groups=st.none() | st.lists(st.integers(0, 3), min_size=1, max_size=2),
    ),
    st.builds(SetLearningRateModifier, learning_rate=st.floats(0, 1)),
    st.builds(EpochRangeModifier, end_epoch=st.floats(9, 20)),
)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(names, values, max_size=5),
    st.lists(
        st.tuples(st.sampled_from(["modifiers", "lr_modifiers", "stage"]), modifiers),
        min_size=1,
        max_size=2,
        unique_by=lambda placed: placed[1].name,
    ),
)
def test_any_recipe_reads_back_equal(variables: dict[str, Any], placed: list[tuple[str, Modifier]]) -> None:
    content = dict(variables)
    for key, modifier in placed:
        if key == "stage":
            content["a_stage"] = {"n": 1, "stage_modifiers": [modifier]}
        else:
            content.setdefault(key, []).append(modifier)
    recipe = Recipe(content)
    assert load_recipe(recipe.resolved()) == recipe


def test_every_supported_name_is_in_the_registry_under_its_own_name() -> None:
    assert set(REGISTRY) >= {kind.__name__ for kind in REGISTRY.values()}
    assert REGISTRY["GMPruningModifier"] is REGISTRY["MagnitudePruningModifier"]
