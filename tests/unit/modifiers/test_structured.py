"""Structured pruning: SparseML's figures, schedules, what it does next to other modifiers, and what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from loop import ROWS, Session, make_accelerator, start
from modifier_table import begin
from places import golden
from recipe_texts import error_of
from tiny import make_albert, make_bert, make_distilbert, make_roberta, make_rows, make_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from sparse_accel.errors import UsageError
from sparse_accel.models.files import save_model
from sparse_accel.models.sparsity import sparsity_report
from sparse_accel.models.teacher import Teacher
from sparse_accel.modifiers.pruning.schedule import scheduled_sparsity
from sparse_accel.modifiers.pruning.structured import StructuredPruningModifier
from sparse_accel.modifiers.pruning.structured_targets import MultiplyAdds
from sparse_accel.modifiers.state import State
from sparse_accel.nn.layers import masks, sparse_layers, sparse_without_mask
from sparse_accel.nn.structure import HEADS, NEURONS, encoder_units
from sparse_accel.nn.structure_masks import masked_units
from sparse_accel.nn.structure_removal import remove_zero_units, zero_units
from sparse_accel.progress import Progress
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun
from sparse_accel.tasks import TextClassification
from sparse_accel.zoo import RECIPES

GOLDEN: dict[str, Any] = golden("structured")
BOTH = "parts: [attention_heads, ffn_neurons]"
LINEARS = "params: ['re:bert.encoder.*(query|key|value|dense).weight']"
STEPS = 3


def recipe(keys: str, *others: str, epochs: int = 2) -> str:
    lines = ["modifiers:", f"  - !EpochRangeModifier {{end_epoch: {epochs}}}"]
    return "\n".join([*lines, *(f"  - !{each}" for each in (f"StructuredPruningModifier {{{keys}}}", *others))])


def attached(text: str, model: nn.Module) -> RecipeRun:
    run = RecipeRun(load_recipe(text))
    run.attach(model)
    return run


def at_once(text: str, model: nn.Module) -> RecipeRun:
    run = attached(text, model)
    run.bind(None, model, torch.optim.SGD(model.parameters(), lr=0.0), steps_per_epoch=1)
    run.apply_at_once(lambda: iter(()))
    return run


def gone(model: nn.Module) -> dict[str, list[int]]:
    """How many units of each block are zero, by part."""
    zero = {(units.part, units.block): len(numbers) for units, numbers in zero_units(model).items()}
    blocks = range(len(encoder_units(model)) // 2)
    return {part: [zero.get((part, block), 0) for block in blocks] for part in (HEADS, NEURONS)}


# --- SparseML's form --------------------------------------------------------------------------------------------------


class Three(nn.Module):
    """The golden file's weights: q and k, which have the rows of one mask, and o."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.o = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 6)
        self.load_state_dict({name: torch.tensor(value) for name, value in GOLDEN["weights"].items()})


@pytest.mark.parametrize("case", GOLDEN["runs"], ids=lambda case: f"{case['mask_type']}-{case['final_sparsity']}")
def test_rows_and_columns_as_sparseml_does(case: dict[str, Any]) -> None:
    model = Three()
    keys = {key: case[key] for key in ("mask_type", "param_groups", "final_sparsity", "params")}
    modifier = StructuredPruningModifier(start_epoch=0, end_epoch=1, **keys)
    state = State(model, [modifier], task=TextClassification)  # type: ignore[arg-type]
    modifier.attach(state)
    modifier.bind(state)
    modifier.step_begin(Progress(0, 1))
    modifier.step_begin(Progress(1, 1))
    modifier.finish()
    before = {name: torch.tensor(value) for name, value in GOLDEN["weights"].items()}
    for name, kept in zip(case["params"], case["kept"], strict=True):
        lines = torch.tensor(kept).bool()
        whole = (lines if case["mask_type"] == "channel" else lines[:, None]).expand(before[name].shape)
        assert torch.equal(model.get_parameter(name), before[name] * whole), name
    touched = {name for name, value in before.items() if not torch.equal(model.get_parameter(name), value)}
    assert touched == set(case["params"])


def test_rows_may_grow_again_from_0() -> None:
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    rows: list[int] = []
    session = start(recipe(f"params: {name}, final_sparsity: 0.5, end_epoch: 1, leave_enabled: false"))
    optimizer: Any = session.optimizer.optimizer  # type: ignore[attr-defined]

    def watch(session: Session) -> None:
        rows.append(int((session.model.get_parameter(name) == 0).all(1).sum()))

    def before_step(*_: Any) -> None:
        rows.append(int((~masks(session.model)[name]).all(1).sum()))

    optimizer.register_step_pre_hook(before_step)
    session.train(watch)
    assert rows[0::2] == [0, *(round(32 * 2 * scheduled_sparsity(x, 0, 0.5, "cubic")) for x in (1 / 3, 2 / 3)), 0, 0, 0]
    assert rows[-1] == 0 and masks(session.model)[name].all()


# --- how much, when ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["magnitude", "taylor"])
def test_the_schedule_is_followed_to_the_unit(score: str) -> None:
    counts: list[dict[str, list[int]]] = []
    final: list[bool] = []
    keys = "final_sparsity: {attention_heads: 0.5, ffn_neurons: 0.75}, init_sparsity: 0.25, start_epoch: 0.3"
    session = start(recipe(f"{keys}, end_epoch: 1.7, update_frequency: 0.5, inter_func: linear, score: {score}"))

    def watch(session: Session) -> None:
        removed: dict[str, list[int]] = {}
        found = masks(session.model)
        for units in encoder_units(session.model):
            mask = found[f"{units.output}.weight"].all(0).view(units.count, units.size)
            assert torch.equal(mask.any(1), mask.all(1))  # heads go as a whole
            lines = mask.flatten()
            assert all(torch.equal(found[f"{name}.bias"], lines) for name in units.inputs)
            assert all(torch.equal(found[f"{name}.weight"].all(1), lines) for name in units.inputs)
            removed.setdefault(units.part, []).append(int((~mask[:, 0]).sum()))
        counts.append(removed)
        final.append(session.run.structure_final())

    session.train(watch)
    # Updates begin with steps at epochs 1/3, 1, 4/3 and 2 (the end); shares are those of the epoch of the step.
    shares = [None, *[(1 / 3 - 0.3) / 1.4] * 2, (1 - 0.3) / 1.4, (4 / 3 - 0.3) / 1.4, 1.0]
    for found, share in zip(counts, shares, strict=True):
        heads, neurons = (
            (0, 0) if share is None else (round(4 * (0.25 + share * 0.25)), round(64 * (0.25 + share * 0.5)))
        )
        assert found == {HEADS: [heads] * 2, NEURONS: [neurons] * 2}
    assert final == [False] * 5 + [True]
    assert gone(session.model) == counts[-1] == {HEADS: [2, 2], NEURONS: [48, 48]}


def test_what_is_pruned_stays_pruned() -> None:
    seen: list[dict[str, Tensor]] = []
    keys = f"{BOTH}, final_sparsity: 0.75, end_epoch: 2, uniform: false, score: taylor"
    start(recipe(keys)).train(lambda s: seen.append({name: mask.clone() for name, mask in masks(s.model).items()}))
    for before, after in itertools.pairwise(seen):
        assert all(not (after[name] & ~mask).any() for name, mask in before.items())


def test_uniform_and_ranked_over_all_blocks() -> None:
    """The second block's weights are equal, so that its norms are; the first one's differ."""
    found = {}
    for uniform in ("true", "false"):
        model: Any = make_bert()
        with torch.no_grad():
            for units in encoder_units(model):
                for name in (*units.inputs, units.output):
                    layer = model.get_submodule(name)
                    layer.weight.fill_(0.1)
                    lines = torch.arange(1, units.count + 1).repeat_interleave(units.size) / units.count
                    if units.block == 0:
                        layer.weight.mul_(lines if name == units.output else lines[:, None])
        at_once(recipe(f"{BOTH}, final_sparsity: 0.25, end_epoch: 1, uniform: {uniform}"), model)
        found[uniform] = gone(model)
        zero = {(units.part, units.block): numbers for units, numbers in zero_units(model).items()}
        assert zero[HEADS, 0] == tuple(range(found[uniform][HEADS][0]))  # the lowest norms
    assert found == {"true": {HEADS: [1, 1], NEURONS: [16, 16]}, "false": {HEADS: [2, 0], NEURONS: [32, 0]}}


def test_one_of_each_block_stays() -> None:
    model = make_bert()
    with torch.no_grad():  # the neurons of the second block are the smaller ones by far, but for its highest
        for name, parameter in model.named_parameters():
            if "layer.1." in name and parameter.ndim == 2:
                parameter[1:] *= 1e-3
    at_once(
        recipe(f"{BOTH}, final_sparsity: {{attention_heads: 0.75, ffn_neurons: 0.98}}, end_epoch: 1, uniform: false"),
        model,
    )
    removed = gone(model)
    assert sum(removed[HEADS]) == 6 and sum(removed[NEURONS]) == round(0.98 * 128)
    assert max(removed[HEADS]) <= 3 and max(removed[NEURONS]) <= 63


@pytest.mark.parametrize("left", [0.9, 0.5, 0.25, 0.133])
@pytest.mark.parametrize("score", ["magnitude", "taylor"])
def test_multiply_adds(left: float, score: str) -> None:
    """At most as many as asked for are left, and not fewer by more than a head."""
    session = start(recipe(f"{BOTH}, final_multiply_adds: {left}, end_epoch: 1.5, score: {score}")).train()
    structure = sparsity_report(session.model)["structure"]
    before, after = structure["before"]["multiply_adds"], structure["after"]["multiply_adds"]
    assert before == 16384 and left * before - 4 * 8 * 32 < after <= left * before
    assert all(structure["after"][HEADS]) and all(structure["after"][NEURONS])


def test_parts_are_compared_by_multiply_add() -> None:
    """With weights of one distribution, heads and neurons go alike, though a head is 16 times as large."""
    torch.manual_seed(0)
    model = make_bert(num_attention_heads=16, intermediate_size=256)
    at_once(recipe(f"{BOTH}, final_multiply_adds: 0.5, end_epoch: 1"), model)
    after = sparsity_report(model)["structure"]["after"]
    assert 8 <= sum(after[HEADS]) <= 24 and 128 <= sum(after[NEURONS]) <= 384


def test_scores_of_whole_units_are_divided_by_their_multiply_adds() -> None:
    model = make_bert()
    units = [masked_units(model, each) for each in encoder_units(model)]
    scores = [torch.full((each.count,), 100.0 if each.part == HEADS else 10.0) for each in units]
    for per_unit, gone_first in ((True, HEADS), (False, NEURONS)):  # 100 / 1024 is less than 10 / 64
        target = MultiplyAdds(units, 16384, 13000, per_unit)
        masks = target.masks(scores, lambda name, final: final)
        assert {each.part for each, mask in zip(units, masks, strict=True) if not mask.all()} == {gone_first}


def test_multiply_adds_count_dropped_layers() -> None:
    model = make_bert(num_hidden_layers=4)
    run = attached(recipe(f"{BOTH}, layers: [1, 2], final_multiply_adds: 0.3, end_epoch: 1"), model)
    run.bind(None, model, torch.optim.SGD(model.parameters(), lr=0.0), steps_per_epoch=1)
    run.finish()
    structure = sparsity_report(model)["structure"]
    assert structure["before"]["layers"] == 2 and model.config.num_hidden_layers == 2  # type: ignore[union-attr]
    assert 0.3 * 4 * 8192 - 1024 < structure["after"]["multiply_adds"] <= 0.3 * 4 * 8192


def test_from_what_the_model_has() -> None:
    """A model with zero units is pruned on from there, and they stay zero."""
    model = make_bert()
    at_once(recipe(f"{BOTH}, final_sparsity: 0.25, end_epoch: 1"), model)
    zero = zero_units(model)
    text = recipe(f"{BOTH}, final_sparsity: 0.5, end_epoch: 2, init_sparsity: __FROM_PARAM__, inter_func: linear")
    counts: list[int] = []
    fresh = make_bert(seed=1)
    fresh.load_state_dict(model.state_dict())
    session = start(text, model=fresh)
    session.train(
        lambda s: counts.append(int((~masks(s.model)["bert.encoder.layer.0.output.dense.weight"]).all(0).sum()))
    )
    assert counts == [round(64 * (0.25 + 0.25 * epoch / 2)) for epoch in (0, 1 / 3, 2 / 3, 1, 4 / 3)] + [32]
    after = zero_units(session.model)
    assert all(set(numbers) <= set(after[units]) for units, numbers in zero.items())
    with pytest.raises(UsageError, match=r"50.0% of attention_heads:0 is 0 already"):
        attached(recipe(f"{BOTH}, final_sparsity: 0.1, end_epoch: 2, init_sparsity: __FROM_PARAM__"), fresh)


@pytest.mark.parametrize("make", [make_bert, make_roberta, make_distilbert])
def test_what_is_saved_loads_and_computes_the_same_smaller(make: Any, tmp_path: Path) -> None:
    session = start(recipe(f"{BOTH}, final_sparsity: 0.5, end_epoch: 1.5"), model=make()).train()
    save_model(tmp_path, session.accelerator, session.model, make_tokenizer())
    read, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.randint(5, 30, (4, 9), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = session.model.eval()(input_ids=ids).logits
        assert torch.equal(read.eval()(input_ids=ids).logits, expected)
        report = sparsity_report(read)["structure"]
        removal = remove_zero_units(read)
        torch.testing.assert_close(read(input_ids=ids).logits, expected)
    assert report == {"before": removal.before.to_dict(), "after": removal.after.to_dict()}
    assert report == sparsity_report(session.model)["structure"]
    assert report["after"]["multiply_adds"] == report["before"]["multiply_adds"] / 2


# --- with other modifiers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", ["", "mask_type: [2, 2]", "mask_type: block4", "global_sparsity: true"])
def test_sparsity_is_that_of_the_weights_that_are_left(keys: str) -> None:
    """Also where much of the structure goes in the last update of both. A block that is left in part counts as a whole.

    What of an earlier mask comes back then is still 0, so zeros may be a few more.
    """
    magnitude = f"MagnitudePruningModifier {{{LINEARS}, end_epoch: 2, final_sparsity: 0.8, {keys}}}"
    structured = f"{BOTH}, final_sparsity: 0.5, end_epoch: 2, inter_func: inverse_cubic"
    session = start(recipe(structured, magnitude), model=make_bert()).train()
    assert gone(session.model) == {HEADS: [2, 2], NEURONS: [32, 32]}
    zeros = pruned = weights = 0
    for name, layer in sparse_layers(session.model):
        if (units := layer.units_in_use()) is None:
            continue
        assert layer.mask is not None
        left = units.expand(layer.weight.shape)
        mask = layer.mask[left]
        assert not layer.weight[left][~mask].any()
        zeros += int((layer.weight[left] == 0).sum())
        pruned, weights = pruned + int((~mask).sum()), weights + mask.numel()
        whole = "attention" in name or ("[2, 2]" not in keys and ("intermediate" in name or "block4" not in keys))
        if whole and not keys.startswith("global"):
            size = 4 if "mask_type" in keys else 1
            assert int((~mask).sum()) == size * round(0.8 * mask.numel() / size), name
    assert pruned / weights == pytest.approx(0.8, abs=0.03 if "mask_type" in keys else 1e-3)
    assert pruned <= zeros < pruned + 0.05 * weights
    small = remove_zero_units(session.model)
    assert small.after.multiply_adds == 8192 and sum(small.after.ffn_neurons) == 64
    report = sparsity_report(session.model)["encoder_linear"]
    assert (report["zeros"], report["weights"]) == (zeros, 8192)


@pytest.mark.parametrize("keys", ["fisher_block_size: 50", "mask_type: block4, fisher_block_size: 16"])
def test_obs_prunes_what_is_left(keys: str) -> None:
    obs = (
        f"OBSPruningModifier {{{LINEARS}, end_epoch: 2, update_frequency: 1, init_sparsity: 0.3, final_sparsity: 0.8, "
        f"num_grads: 4, global_sparsity: false, {keys}}}"
    )
    session = start(recipe(f"{BOTH}, final_sparsity: 0.5, end_epoch: 1", obs), model=make_bert())
    drawn: list[str] = []
    samples: Any = session.run.state.gradient_samples
    draw = samples.draw

    def counted(*arguments: Any, what: str, **options: Any) -> None:
        drawn.append(what)
        draw(*arguments, what=what, **options)

    samples.draw = counted
    session.train()
    assert len(drawn) == 3
    session.run.finish()
    assert len(drawn) == 3  # nothing is left to prune
    for name, layer in sparse_layers(session.model):
        if "block4" not in keys and (units := layer.units_in_use()) is not None:
            left = layer.weight[units.expand(layer.weight.shape)]
            assert int((left == 0).sum()) == round(0.8 * left.numel()), name


@pytest.mark.parametrize("straight_through", ["true", "false"])
@pytest.mark.parametrize("keys", [f"{BOTH}, score: taylor", "params: ['re:.*intermediate.dense.weight']"])
def test_movement_prunes_what_is_left(keys: str, straight_through: str) -> None:
    """The optimizer gets no gradients of removed rows, which pass straight through where their bias is still used."""
    others = f"{LINEARS}, end_epoch: 1.5, final_sparsity: 0.8, straight_through: {straight_through}"
    structured = f"{keys}, final_sparsity: 0.5, end_epoch: 1"
    session = start(recipe(structured, f"MovementPruningModifier {{{others}}}"), model=make_bert())
    optimizer: Any = session.optimizer.optimizer  # type: ignore[attr-defined]
    seen: list[bool] = []

    def before_step(*_: Any) -> None:
        parameters = dict(session.model.named_parameters())
        found = masks(session.model)
        seen.append(any(bool(parameters[name].grad[~mask].any()) for name, mask in found.items()))  # type: ignore[index]

    optimizer.register_step_pre_hook(before_step)
    session.train()
    for name, layer in sparse_layers(session.model):
        if (units := layer.units_in_use()) is not None:
            left = layer.weight[units.expand(layer.weight.shape)]
            assert int((left == 0).sum()) == round(0.8 * left.numel()), name
    assert not any(seen[4:])


def test_constant_pruning_keeps_zeros_beside_it() -> None:
    model = make_bert(sparsity=0.5)
    before = {name: weight == 0 for name, weight in model.named_parameters() if ".layer." in name and weight.ndim == 2}
    session = start(
        recipe(f"{BOTH}, final_sparsity: 0.5, end_epoch: 1", "ConstantPruningModifier {}"), model=model
    ).train()
    for name, zeros in before.items():
        weight = session.model.get_parameter(name)
        assert (weight[zeros] == 0).all() and (weight == 0).float().mean() > 0.7, name
    assert gone(session.model) == {HEADS: [2, 2], NEURONS: [32, 32]}


def test_zeros_without_a_mask_of_their_own_are_said_to_be_lost() -> None:
    """A mask of heads does not keep zeros inside of the heads that are left; rows of zeros are none of these."""
    text = recipe(f"{BOTH}, final_sparsity: 0.5, end_epoch: 1")
    assert any(
        "no modifier keeps them zero" in note for note in attached(text, make_bert(sparsity=0.5)).training_notices
    )
    model = make_bert()
    at_once(text, model)
    assert not sparse_without_mask(model)
    assert not attached(text, model).training_notices


def test_the_recipe_of_this_package() -> None:
    """With a teacher's logits and hidden states; quantized when the structure is final."""
    short = {"num_epochs": 2, "structure_end_epoch": 1, "qat_start_epoch": 1.3, "observer_epoch": 1.7}
    found = load_recipe(RECIPES / "structured_half.yaml", short | {"heads_sparsity": 0.25})
    teacher = Teacher(make_bert(seed=1))
    teacher.make_table(make_accelerator(), make_rows(ROWS), make_tokenizer(), batch_size=8)
    final: list[bool] = []
    session = start(found, model=make_bert(), teacher=teacher).train(lambda s: final.append(s.run.structure_final()))
    assert gone(session.model) == {HEADS: [1, 1], NEURONS: [32, 32]}
    assert final == [False] * 5 + [True] and "structure pruned" in session.run.phase()
    assert {"train/distillation_loss", "train/hidden_state_distillation_loss"} <= {*session.trace[-1]}, session.trace[
        -1
    ]
    for name, mask in masks(session.model).items():
        layer: Any = session.model.get_submodule(name.rpartition(".")[0])
        value = layer.weight_in_use() if name.endswith("weight") else layer.bias
        assert (value[~mask] == 0).all()


def test_two_of_this_kind() -> None:
    other = "StructuredPruningModifier {parts: [%s], final_sparsity: 0.5, start_epoch: %s, end_epoch: 2}"
    heads = "parts: [attention_heads], final_sparsity: 0.25, end_epoch: 1"
    with pytest.raises(UsageError, match=r"<text>:4: .*rows of .*query.weight are pruned by another"):
        attached(recipe(heads, other % ("attention_heads", "0.5")), make_bert())
    for second in (other % ("ffn_neurons", "0.5"), other % ("attention_heads", "1")):
        session = start(recipe(heads, second), model=make_bert()).train()
        assert gone(session.model) in ({HEADS: [1, 1], NEURONS: [32, 32]}, {HEADS: [2, 2], NEURONS: [0, 0]})


def test_said_if_single_weights_are_done_before_the_structure() -> None:
    magnitude = f"MagnitudePruningModifier {{{LINEARS}, end_epoch: %s, final_sparsity: 0.8}}"
    for end, said in ((1, True), (1.5, False)):
        session = start(recipe(f"{BOTH}, final_sparsity: 0.5, end_epoch: 1.5", magnitude % end))
        assert any("Let the structure end first" in notice for notice in session.run.notices) == said
        assert "4 of 8 attention heads and 64 of 128 feed-forward neurons" in "".join(session.run.notices)
        assert "8,192 of 16,384 are left" in "".join(session.run.notices)


def test_at_once_with_taylor_is_refused() -> None:
    with pytest.raises(UsageError, match="set score to magnitude, or use --do_train"):
        at_once(recipe(f"{BOTH}, final_sparsity: 0.5, end_epoch: 1, score: taylor"), make_bert())


def test_dropped_layers_and_heads_of_the_others() -> None:
    model = make_bert(num_hidden_layers=4)
    third = model.bert.encoder.layer[3]  # type: ignore[union-attr, index]
    run = at_once(recipe(f"{BOTH}, final_sparsity: 0.5, end_epoch: 1, layers: [0, 2]"), model)
    assert run.state.model.bert.encoder.layer[1] is third  # type: ignore[union-attr, index]
    assert gone(model) == {HEADS: [2, 2], NEURONS: [32, 32]}
    assert (0.0, "layers dropped: 0, 2") in load_recipe(
        recipe(f"{BOTH}, final_sparsity: 0.5, end_epoch: 1, layers: [0, 2]")
    ).timeline()


# --- state ------------------------------------------------------------------------------------------------------------


def test_state_of_another_model_is_refused() -> None:
    keys = f"{{{BOTH}, final_sparsity: 0.5, end_epoch: 2, score: taylor}}"
    state = begin("StructuredPruningModifier", keys).train().run.state_dict()
    other = begin("StructuredPruningModifier", keys, model=make_bert(intermediate_size=48))
    with pytest.raises(ValueError, match="masks of StructuredPruningModifier belong to other units"):
        other.run.load_state_dict(state)


def test_an_update_of_a_step_without_gradients_is_done_in_the_next_also_after_a_restart() -> None:
    keys = f"{{{BOTH}, init_sparsity: 0.25, final_sparsity: 0.5, end_epoch: 2, update_frequency: 1, score: taylor}}"
    first = begin("StructuredPruningModifier", keys)
    first.run.step_begin()
    first.run.skip_step()  # a loss that was no number
    session = begin("StructuredPruningModifier", keys).load(first.state())
    counts: list[int] = []
    name = "bert.encoder.layer.0.intermediate.dense.bias"
    session.train(lambda session: counts.append(int((~masks(session.model)[name]).sum())))
    grown = round(64 * scheduled_sparsity(1 / 6, 0.25, 0.5, "cubic"))
    assert counts[:2] == [grown, grown] and counts[2] > grown


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "key", "words"),
    [
        ("final_sparsity: 0.5, end_epoch: 1", "parts", "required: [attention_heads, ffn_neurons]"),
        ("final_sparsity: 0.5, parts: [attention_heads]", "end_epoch", "required"),
        (f"{BOTH}, end_epoch: 1", "final_sparsity", "or final_multiply_adds"),
        (f"{BOTH}, final_sparsity: 1, end_epoch: 1", "final_sparsity", "leaves none of the attention heads"),
        (f"{BOTH}, final_sparsity: 1.5, end_epoch: 1", "final_sparsity", "between 0 and 1"),
        ("parts: [attention_head], final_sparsity: 0.5, end_epoch: 1", "parts", "Did you mean 'attention_heads'?"),
        ("final_sparsity: {neurons: 0.5}, end_epoch: 1", "final_sparsity", "no part 'neurons'"),
        ("parts: [ffn_neurons, ffn_neurons], final_sparsity: 0.5, end_epoch: 1", "parts", "twice"),
        (f"{BOTH}, final_sparsity: {{ffn_neurons: 0.5}}, end_epoch: 1", "final_sparsity", "each of parts"),
        (f"{BOTH}, final_sparsity: 0.5, final_multiply_adds: 0.5, end_epoch: 1", "final_multiply_adds", "one of them"),
        (f"{BOTH}, final_multiply_adds: 1, end_epoch: 1", "final_multiply_adds", "between 0 and 1"),
        (f"{BOTH}, final_multiply_adds: 0.5, uniform: true, end_epoch: 1", "uniform", "leave it out"),
        (f"{BOTH}, final_multiply_adds: 0.5, init_sparsity: 0.6, end_epoch: 1", "final_multiply_adds", "comes back"),
        (f"{BOTH}, final_sparsity: 0.2, init_sparsity: 0.3, end_epoch: 1", "final_sparsity", "below init_sparsity 0.3"),
        (f"{BOTH}, final_sparsity: 0.5, end_epoch: 1, leave_enabled: false", "leave_enabled", "no gradient"),
        (f"{BOTH}, final_sparsity: 0.5, end_epoch: 1, layers: [-1]", "layers", "from 0, got [-1]"),
        (f"{BOTH}, final_sparsity: 0.5, end_epoch: 1, layers: [1, 1]", "layers", "different numbers"),
        (f"{BOTH}, final_sparsity: 0.5, end_epoch: 1, params: re:a", "parts", "SparseML's params prunes rows"),
        (f"{BOTH}, final_sparsity: 0.5, end_epoch: 1, score: movement", "score", "one of magnitude, taylor"),
        ("score: taylor, mask_type: filter, final_sparsity: 0.5, end_epoch: 1", "score", "SparseML's mask_type"),
        ("params: re:a, end_epoch: 1", "final_sparsity", "required"),
        ("params: 're:(', final_sparsity: 0.5, end_epoch: 1", "params", "not a regular expression"),
        ("mask_type: filter, final_sparsity: 0.5, end_epoch: 1", "params", "required"),
        ("params: re:a, final_sparsity: 0.5, end_epoch: 1, mask_type: block4", "mask_type", "one of filter, channel"),
        ("params: re:a, final_sparsity: {0.5: [a]}, end_epoch: 1", "params", "leave params out"),
        ("final_sparsity: {0.5: []}, end_epoch: 1", "final_sparsity", "list weights"),
        (f"{BOTH}, final_sparsity: 0.5, end_epoch: 1, update_frequency: -2", "update_frequency", "every step"),
        (f"{BOTH}, final_sparsity: 0.5, end_epoch: 1, init_sparsity: none", "init_sparsity", "__FROM_PARAM__"),
        (f"{BOTH}, final_sparsity: 0.5, end_epoch: 1, unifrom: true", "unifrom", "Did you mean 'uniform'?"),
    ],
)
def test_wrong_keys_are_errors_with_their_line(keys: str, key: str, words: str) -> None:
    pairs = load_keys(keys)
    text = "modifiers:\n  - !StructuredPruningModifier\n" + "".join(f"    {name}: {value}\n" for name, value in pairs)
    error = error_of(text)
    names = [name for name, _ in pairs]
    line = names.index(key) + 3 if key in names else 2
    assert str(error).startswith(f"<text>:{line}: StructuredPruningModifier") and words in str(error)
    assert len(str(error)) < 400


def load_keys(keys: str) -> list[tuple[str, str]]:
    """Splits keys at the commas between them."""
    found, depth, part = [], 0, ""
    for letter in f"{keys},":
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            name, _, value = part.partition(":")
            found.append((name.strip(), value.strip()))
            part = ""
        else:
            part += letter
    return found


def test_two_that_drop_layers_at_the_start() -> None:
    other = "LayerPruningModifier {layers: [bert.encoder.layer.0]}"
    text = recipe(f"{BOTH}, final_sparsity: 0.5, end_epoch: 1, layers: [1]", other)
    assert "two modifiers drop layers at the start" in str(error_of(text))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("final_sparsity: 0.9", "final_sparsity 0.9 leaves none of the attention heads (4 of each block)"),
        ("final_sparsity: 0.9, uniform: false", "leaves none of the attention heads (8 of 2 blocks)"),
        ("final_multiply_adds: 0.1", "asks for 1,638 multiply-adds per token, but one unit of each block"),
        ("final_multiply_adds: 0.6, layers: [0]", "but there are only 8,192 without the dropped layers"),
        ("final_multiply_adds: 0.4, layers: [0], init_sparsity: 0.3", "30.0% of multiply_adds is pruned at the start"),
        ("final_sparsity: 0.5, layers: [2]", "'bert.encoder.layer.2' is not a layer that can be dropped"),
        ("final_sparsity: 0.5, layers: [0, 1]", "all 2 layers would be dropped"),
    ],
)
def test_what_the_model_does_not_allow_is_found_before_training(keys: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        attached(recipe(f"{BOTH}, end_epoch: 1, {keys}"), make_bert())
    assert words in str(error.value) and str(error.value).startswith("<text>:3: ")


def test_an_architecture_without_units() -> None:
    with pytest.raises(UsageError, match=r"<text>:3: .*albert model cannot be removed, only those of bert"):
        attached(recipe(f"{BOTH}, final_sparsity: 0.5, end_epoch: 1"), make_albert())


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("params: [re:.*query.weight], param_groups: [[]]", "param_groups: a group is empty"),
        ("params: [re:.*query.weight], param_groups: [[a.weight]]", "'a.weight' is not one of params"),
        (
            "params: [bert.encoder.layer.0.output.dense.weight, bert.pooler.dense.weight, classifier.weight], "
            "param_groups: [[bert.pooler.dense.weight, classifier.weight]]",
            "weights of one mask need as many rows: bert.pooler.dense.weight has 32, classifier.weight has 2",
        ),
        ("params: bert.encoder.layer.0.output.LayerNorm.weight", "cannot be pruned"),
        ("params: [re:.*query.weight, nothing]", "matches no parameter"),
    ],
)
def test_rows_that_the_model_does_not_have(keys: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        attached(recipe(f"final_sparsity: 0.5, end_epoch: 1, {keys}"), make_bert())
    assert words in str(error.value)


def test_taylor_needs_weights_that_train() -> None:
    frozen = "TrainableParamsModifier {params: ['re:bert.encoder.layer.0'], trainable: false}"
    with pytest.raises(UsageError, match=r"layer.0.attention.self.query.weight is frozen"):
        start(recipe(f"{BOTH}, final_sparsity: 0.5, end_epoch: 1, score: taylor", frozen))
    start(recipe(f"{BOTH}, final_sparsity: 0.5, end_epoch: 1", frozen))
