"""Quantization-aware training: that it is really on, when it should be, and what its files hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loop import Session, figures_of, start
from tiny import make_albert, make_bert, make_distilbert, make_roberta, make_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

import sparse_accel
from sparse_accel.errors import UsageError
from sparse_accel.models.files import QUANTIZATION_FILE, save_model
from sparse_accel.nn.fake_quantize import FakeQuantize
from sparse_accel.nn.layers import SparseLinear, quantized_linears, quantizers
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun

STEPS = 3  # an epoch


def quantization(keys: str, epochs: int = 3, *more: str) -> str:
    lines = [f"  - !EpochRangeModifier {{end_epoch: {epochs}}}", f"  - !QuantizationModifier {{{keys}}}", *more]
    return "\n".join(["modifiers:", *lines])


def ranges(session: Session) -> dict[str, tuple[float, float, float, int]]:
    """Range, scale and zero point of each quantizer."""
    found = quantizers(session.model).items()
    return {
        name: (float(q.minimum), float(q.maximum), float(q.scale), int(q.zero_point)) for name, q in found if q.ready
    }


# --- when it is on ----------------------------------------------------------------------------------------------------


def test_begins_moves_and_freezes_at_its_epochs() -> None:
    history: list[dict[str, tuple[float, float, float, int]]] = []
    phases: list[str] = []
    structure_final: list[bool] = []

    def look(session: Session) -> None:
        history.append(ranges(session))
        phases.append(session.run.phase())
        structure_final.append(session.run.structure_final())
        before = ranges(session)
        session.outputs()  # evaluation, by the loop's own function
        assert ranges(session) == before
        session.model.train()

    session = start(quantization("start_epoch: 1, disable_quantization_observer_epoch: 2")).train(look)
    assert phases == [""] * STEPS + ["QAT"] * STEPS + ["QAT, ranges frozen"] * STEPS
    assert structure_final == [False] * 5 + [True] * 4
    assert [len(found) for found in history] == [0] * STEPS + [39] * 6
    for name in history[-1]:
        observed = [found[name] for found in history[STEPS : 2 * STEPS]]
        assert len(set(observed)) > 1, f"{name} does not move"
        assert [found[name] for found in history[2 * STEPS :]] == [observed[-1]] * STEPS, f"{name} is not frozen"
    assert quantized_linears(session.model) == (14, 14)


def test_is_the_float_model_before_and_another_one_after() -> None:
    plain = start("modifiers:\n  - !EpochRangeModifier {end_epoch: 2}").train()
    quantized = start(quantization("start_epoch: 1", 2)).train()
    pairs = [(figures_of(one), figures_of(other)) for one, other in zip(plain.trace, quantized.trace, strict=True)]
    assert [one == other for one, other in pairs] == [True] * STEPS + [False] * STEPS

    outputs = quantized.outputs()
    for quantizer in quantizers(quantized.model).values():
        quantizer.enabled = False
    difference = (outputs - quantized.outputs()).abs().max()
    assert 0 < difference < 0.5


def test_evaluation_between_steps_changes_nothing() -> None:
    def evaluate(session: Session) -> None:
        session.outputs()
        session.model.train()

    recipe = quantization("start_epoch: 0.5", 2)
    alone, watched = start(recipe).train(), start(recipe).train(evaluate)
    assert [figures_of(entry) for entry in alone.trace] == [figures_of(entry) for entry in watched.trace]
    assert ranges(alone) == ranges(watched)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_ranges_are_the_moving_average_of_steps(accumulation: int) -> None:
    """Computed here once more, from what the layer was really given."""
    session = start(quantization("start_epoch: 1", 2), accumulation=accumulation)
    layer = session.model.get_submodule("bert.encoder.layer.1.intermediate.dense")
    assert isinstance(layer, SparseLinear) and layer.input_quantizer is not None
    seen: list[Tensor] = []
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    expected: tuple[float, float] | None = None
    calibrations: list[int] = []

    def look(session: Session) -> None:
        nonlocal expected
        if len(seen) == 2 * accumulation:  # where quantization begins, its rows are shown once before
            calibrations.append(session.run.progress.step)
            del seen[:accumulation]
        assert len(seen) == accumulation and isinstance(layer.input_quantizer, FakeQuantize)
        low, high = min(float(x.min()) for x in seen), max(float(x.max()) for x in seen)
        seen.clear()
        if session.run.progress.step <= STEPS:
            assert not layer.input_quantizer.ready
            return
        if expected is None:
            expected = low, high
        else:
            expected = expected[0] + 0.01 * (low - expected[0]), expected[1] + 0.01 * (high - expected[1])
        assert (float(layer.input_quantizer.minimum), float(layer.input_quantizer.maximum)) == pytest.approx(expected)

    session.train(look)
    assert calibrations == [STEPS + 1]


@pytest.mark.parametrize("epoch", [0, 0.5, 1])
def test_a_freeze_at_the_start_observes_exactly_one_step(epoch: float) -> None:
    history: list[dict[str, Any]] = []
    structure_final: list[bool] = []

    def look(session: Session) -> None:
        history.append(ranges(session))
        structure_final.append(session.run.structure_final())

    start(quantization(f"start_epoch: {epoch}, disable_quantization_observer_epoch: {epoch}", 2)).train(look)
    begun = [found for found in history if found]
    first = -(-int(epoch * 10) * STEPS // 10)  # the first step at or after the epoch
    assert len(begun) == 2 * STEPS - first
    assert all(found == begun[0] for found in begun)
    assert structure_final == [False] * first + [True] * len(begun)


def test_pruned_weights_are_the_integer_zero() -> None:
    recipe = quantization("start_epoch: 1", 2, "  - !ConstantPruningModifier {params: __ALL_PRUNABLE__}")
    session = start(recipe, model=make_bert(sparsity=0.9)).train()
    for name, module in session.model.named_modules():
        if isinstance(module, SparseLinear) and ".layer." in name:
            assert module.mask is not None
            weight = module.weight_in_use()
            assert (weight[~module.mask] == 0).all() and (weight == 0).float().mean() > 0.899


# --- which parts ------------------------------------------------------------------------------------------------------

TUTORIAL_PARTS = "submodules: [bert.embeddings, bert.encoder, bert.pooler, classifier]"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (f"{TUTORIAL_PARTS}, quantize_linear_activations: 0, exclude_module_types: [LayerNorm, Tanh]", 14 * 2 + 3 * 2),
        ("quantize_embeddings: false", 14 * 3),
        ("quantize_embedding_activations: false", 14 * 3 + 3),
        ("exclude_module_types: [Embedding]", 14 * 3),
        ("submodules: [bert.encoder.layer.1, classifier]", 6 * 3 + 3),
    ],
)
def test_what_is_quantized(keys: str, expected: int) -> None:
    model = make_bert()
    RecipeRun(load_recipe(quantization(keys, 1))).attach(model)
    assert len(quantizers(model)) == expected


@pytest.mark.parametrize(
    ("make", "kind", "parts"),
    [
        (make_distilbert, "distilbert", "distilbert.embeddings, distilbert.transformer, pre_classifier, classifier"),
        (make_roberta, "roberta", "roberta.embeddings, roberta.encoder, classifier"),
        (make_albert, "albert", "albert.embeddings, albert.encoder, albert.pooler"),
    ],
)
def test_parts_of_another_architecture_name_the_right_ones(
    make: Callable[[], nn.Module], kind: str, parts: str
) -> None:
    with pytest.raises(UsageError) as caught:
        RecipeRun(load_recipe(quantization(TUTORIAL_PARTS, 1))).attach(make())
    message = str(caught.value)
    assert f"this {kind} model has no module 'bert.embeddings'" in message and f"modules are: {parts}" in message
    right = parts.split(", classifier")[0]
    RecipeRun(load_recipe(quantization(f"submodules: [{right}]", 1))).attach(make())


def test_nothing_to_quantize_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"nothing to quantize in bert\.pooler\.activation"):
        RecipeRun(load_recipe(quantization("submodules: [bert.pooler.activation]", 1))).attach(make_bert())


def test_a_scheme_that_leaves_all_in_float_says_so() -> None:
    with pytest.raises(UsageError, match="or scheme, scheme_overrides and ignore leave all of them in float"):
        RecipeRun(load_recipe(quantization("ignore: [bert, classifier]", 1))).attach(make_bert())


def test_of_two_bits_none_is_left_unused() -> None:
    with pytest.raises(UsageError, match="reduce_range: of 2 bits per activation, none may be left unused"):
        load_recipe(quantization("activation_bits: 2, reduce_range: true", 1))


def test_a_class_to_leave_out_that_is_misspelt_is_an_error() -> None:
    """Else its layers are quantized. Classes that only other models have are passed over."""
    with pytest.raises(UsageError, match=r"no layer of class 'Embeding'. Did you mean 'Embedding'"):
        RecipeRun(load_recipe(quantization("exclude_module_types: [Embeding]", 1))).attach(make_bert())
    run = RecipeRun(load_recipe(quantization("exclude_module_types: [Conv1d, LayerNorm, QATMatMul]", 1)))
    run.attach(make_bert())
    assert [notice.split("class ")[1] for notice in run.state.notices] == ["'QATMatMul'. This entry is ignored"]


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))

    def forward(self, x: Tensor) -> Any:
        return self.layers(x)


def test_convolutions_and_frozen_statistics_of_batch_normalization() -> None:
    model = Convolutions()
    run = RecipeRun(load_recipe(quantization("start_epoch: 1, freeze_bn_stats_epoch: 2, quantize_embeddings: true")))
    run.attach(model)
    assert [name.split(".")[1] for name in quantizers(model)] == ["0"] * 3 + ["3"] * 3
    run.bind(None, model, torch.optim.SGD(model.parameters(), lr=0.1), steps_per_epoch=1)
    means = []
    for _ in range(3):
        model.train()
        run.step_begin()
        model(torch.randn(2, 3, 8, 8)).sum().backward()
        run.step_end()
        means.append(model.state_dict()["layers.1.running_mean"].clone())
    assert not torch.equal(means[0], means[1]) and torch.equal(means[1], means[2])
    assert not run.notices


def test_statistics_to_freeze_where_there_are_none_are_noticed() -> None:
    run = RecipeRun(load_recipe(quantization("freeze_bn_stats_epoch: 1")))
    run.attach(make_bert())
    assert any("freeze_bn_stats_epoch has no effect" in line for line in run.notices)


def test_at_once_takes_ranges_from_the_batches_shown() -> None:
    session = start(quantization("start_epoch: 1"))
    session.model.eval()
    shown = []

    def forwards() -> Any:
        for batch in session.loader:
            session.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            shown.append(batch)
            yield

    session.run.apply_at_once(forwards)
    assert len(shown) == STEPS and len(ranges(session)) == 39
    assert not session.model.training and quantized_linears(session.model) == (14, 14)
    before = ranges(session)
    session.outputs()
    assert ranges(session) == before


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, Path]:
    recipe = quantization(
        "start_epoch: 1",
        2,
        "  - !MagnitudePruningModifier {end_epoch: 1, final_sparsity: 0.8, params: __ALL_PRUNABLE__}",
    )
    session = start(recipe).train()
    folder = tmp_path_factory.mktemp("trained")
    save_model(folder, session.accelerator, session.model, make_tokenizer())
    return session, folder


def test_the_files_hold_the_model_as_it_was_trained(trained: tuple[Session, Path]) -> None:
    session, folder = trained
    loaded = sparse_accel.load(folder)
    assert not loaded.training and quantized_linears(loaded) == (14, 14)
    expected = session.outputs()
    session.model, kept = loaded, session.model
    assert torch.equal(session.outputs(), expected)
    session.model = kept


def test_the_files_are_a_plain_sparse_model_to_others(trained: tuple[Session, Path]) -> None:
    session, folder = trained
    plain, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    weight = plain.bert.encoder.layer[0].output.dense.weight
    assert weight.dtype == torch.float32 and int((weight == 0).sum()) == round(0.8 * weight.numel())
    expected = session.outputs()
    session.model, kept = plain, session.model
    assert not torch.equal(session.outputs(), expected)  # the float model
    session.model = kept


def test_no_file_of_quantizers_before_they_are_on(tmp_path: Path) -> None:
    session = start(quantization("start_epoch: 1", 2))
    save_model(tmp_path, session.accelerator, session.model, make_tokenizer())
    assert not (tmp_path / QUANTIZATION_FILE).exists()
    assert quantized_linears(sparse_accel.load(tmp_path)) == (0, 14)


def change_scale(content: dict[str, Any]) -> None:
    next(iter(content["quantizers"].values()))["scale"][0] *= 2


def rename(content: dict[str, Any]) -> None:
    content["quantizers"]["bert.encoder.layer.9.output.dense.input_quantizer"] = content["quantizers"].popitem()[1]


def misplace(content: dict[str, Any]) -> None:
    content["quantizers"]["bert.encoder.input_quantizer"] = content["quantizers"].popitem()[1]


def shorten(content: dict[str, Any]) -> None:
    del next(iter(content["quantizers"].values()))["zero_point"]


def lengthen(content: dict[str, Any]) -> None:
    next(iter(content["quantizers"].values()))["minimum"].append(1.0)


def flatten(content: dict[str, Any]) -> None:
    content["quantizers"] = list(content["quantizers"])


def renew(content: dict[str, Any]) -> None:
    content["version"] = 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_scale, "scale and range of .* do not match: the file was edited"),
        (rename, r"no layer for 'bert\.encoder\.layer\.9\.output\.dense\.input_quantizer'"),
        (misplace, r"no layer for 'bert\.encoder\.input_quantizer'"),
        (shorten, "is incomplete .*zero_point"),
        (lengthen, "is incomplete"),
        (flatten, "is not a quantizer file"),
        (renew, "version 2"),
    ],
)
def test_a_file_that_was_changed_is_refused(
    trained: tuple[Session, Path], tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    for file in trained[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / QUANTIZATION_FILE
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=message) as caught:
        sparse_accel.load(tmp_path)
    assert str(path) in str(caught.value)


def test_a_torn_file_is_refused(trained: tuple[Session, Path], tmp_path: Path) -> None:
    for file in trained[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / QUANTIZATION_FILE
    path.write_text(path.read_text()[:500])
    with pytest.raises(UsageError, match="is not a quantizer file"):
        sparse_accel.load(tmp_path)
