"""HiddenStateDistillationModifier: which blocks meet, what counts, how the teacher runs, and what is refused."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loop import start, with_scaler
from tiny import make_albert, make_bert, make_distilbert, make_rows, make_tokenizer
from torch import Tensor, nn

from sparse_accel.data.batches import Collator
from sparse_accel.errors import UsageError
from sparse_accel.models.teacher import Teacher
from sparse_accel.modifiers.hidden_distillation import HiddenStateDistillationModifier, same_depth
from sparse_accel.nn.pooling import Pooling, add_pooling
from sparse_accel.recipe import RecipeError, load_recipe
from sparse_accel.recipe_run import RecipeRun

HIDDEN, ATTENTION = "hidden_state_distillation_loss", "attention_distillation_loss"


def recipe_of(*modifiers: str) -> str:
    listed = ["!EpochRangeModifier {end_epoch: 2}", *modifiers]
    return "modifiers:\n" + "\n".join(f"  - {each}" for each in listed)


def hidden(keys: str = "{}") -> str:
    return f"!HiddenStateDistillationModifier {keys}"


def started(student: nn.Module, teacher: nn.Module | Teacher, *modifiers: str) -> RecipeRun:
    """A run at its first step."""
    teacher = teacher if isinstance(teacher, Teacher) else Teacher(teacher)
    run = RecipeRun(load_recipe(recipe_of(*modifiers)), teacher=teacher)
    run.attach(student)
    run.bind(None, student.train(), torch.optim.SGD(student.parameters(), lr=0.1), steps_per_epoch=1)
    run.step_begin()
    return run


def modifier_of(run: RecipeRun) -> HiddenStateDistillationModifier:
    (found,) = [modifier for modifier in run.modifiers if isinstance(modifier, HiddenStateDistillationModifier)]
    return found


def batch_of(*rows: int, side: str = "right") -> dict[str, Tensor]:
    tokenizer = copy.deepcopy(make_tokenizer())
    tokenizer.padding_side = side
    return Collator(tokenizer)({**make_rows(12)[list(rows)], "row_id": list(rows)})


def inputs_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name in ("input_ids", "attention_mask", "token_type_ids")}


def terms_of(run: RecipeRun, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    outputs = model(**inputs_of(batch))
    return run.losses(torch.zeros(len(batch["input_ids"])), batch, outputs)


# --- which blocks meet ------------------------------------------------------------------------------------------------


@given(st.integers(1, 30), st.integers(1, 30))
def test_blocks_are_spread_evenly(student: int, teacher: int) -> None:
    found = [same_depth(block, student, teacher) for block in range(student)]
    assert found == sorted(found) and found[-1] == teacher - 1 and found[0] >= 0
    for block, other in enumerate(found):
        assert abs((other + 1) / teacher - (block + 1) / student) <= 1 / teacher


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [(2, 4, [1, 3]), (6, 12, [1, 3, 5, 7, 9, 11]), (3, 3, [0, 1, 2]), (4, 2, [0, 0, 1, 1]), (1, 12, [11])],
)
def test_evenly_spread(student: int, teacher: int, expected: list[int]) -> None:
    assert [same_depth(block, student, teacher) for block in range(student)] == expected


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("{}", [(0, 1), (1, 3)]),
        ("{layers: [1]}", [(1, 3)]),
        ("{layers: [-1, 0]}", [(1, 3), (0, 1)]),
        ("{layers: {0: 0, 1: -2}}", [(0, 0), (1, 2)]),
    ],
)
def test_layers_of_a_deeper_and_wider_teacher(keys: str, expected: list[tuple[int, int]]) -> None:
    teacher = make_bert(num_hidden_layers=4, hidden_size=48)
    modifier = modifier_of(started(make_bert(), teacher, hidden(keys)))
    pairs = [(pair.student.module, pair.teacher.module) for pair in modifier._pairs]
    assert pairs == [(f"bert.encoder.layer.{one}", f"bert.encoder.layer.{other}") for one, other in expected]
    assert {tuple(weight.shape) for weight in modifier._projections.weights.values()} == {(48, 32)}
    assert modifier.needs_gradients
    assert load_recipe(load_recipe(recipe_of(hidden(keys))).resolved()) == load_recipe(recipe_of(hidden(keys)))


def test_models_of_different_kinds() -> None:
    for student, teacher in ((make_distilbert(), make_bert(num_hidden_layers=3)), (make_bert(), make_albert())):
        modifier = modifier_of(started(student, teacher, hidden("{attentions: true, embeddings: true}")))
        assert len(modifier._pairs) == 5 and not modifier.needs_gradients


def test_a_mapping_by_numbers_is_kept_in_the_resolved_recipe() -> None:
    assert load_recipe(recipe_of(hidden("{layers: {0: 1}}"))).modifiers[-1].layers == {0: 1}  # type: ignore[attr-defined]


# --- what is compared -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
def test_losses_are_those_of_the_outputs_of_transformers(normalize: bool) -> None:
    student, teacher = make_bert(dropout=0.0), make_bert(seed=1)
    keys = f"{{embeddings: true, attentions: true, normalize: {str(normalize).lower()}, gain: 3, epsilon: 1e-9}}"
    run = started(student, teacher, hidden(keys))
    batch = batch_of(2)
    terms = terms_of(run, student, batch)
    asked = {"output_hidden_states": True, "output_attentions": True}
    one, other = (model(**inputs_of(batch), **asked) for model in (student, teacher))

    def expected(name: str, first: int) -> float:
        pairs = zip(getattr(one, name)[first:], getattr(other, name)[first:], strict=True)
        errors = [(s - t).square().mean() / (t.square().mean() if normalize else 1.0) for s, t in pairs]
        return float(torch.stack(errors).detach().mean())

    assert float(terms[HIDDEN]) == pytest.approx(expected("hidden_states", 1), rel=1e-5)
    assert float(terms[ATTENTION]) == pytest.approx(expected("attentions", 0), rel=1e-5)
    layer = one.hidden_states[0] - other.hidden_states[0]
    size = other.hidden_states[0].square().mean() if normalize else 1.0
    assert float(terms["embedding_distillation_loss"]) == pytest.approx(float(layer.square().mean() / size), rel=1e-5)
    total = sum(terms[f"{what}_distillation_loss"] for what in ("hidden_state", "attention", "embedding"))
    torch.testing.assert_close(terms["loss"].detach(), 3 * total)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("tokens", ["all", "first"])
def test_padding_does_not_count(tokens: str, side: str) -> None:
    """The loss of a row is the same alone and next to a longer one; padding may come before the first token."""
    student = make_bert(dropout=0.0)
    with torch.no_grad():  # positions would tell a row padded on the left from one that is not
        student.get_submodule("bert.embeddings.position_embeddings").weight.zero_()  # type: ignore[operator]
    teacher = copy.deepcopy(student)
    teacher.get_submodule("classifier").weight.data.add_(1.0)  # type: ignore[operator]
    for name, weight in teacher.named_parameters():
        weight.data.mul_(1.5 if "dense" in name else 1.0)
    run = started(student, teacher, hidden(f"{{attentions: true, normalize: false, tokens: {tokens}}}"))
    alone = [terms_of(run, student, batch_of(row)) for row in (0, 3, 5)]
    together = terms_of(run, student, batch_of(0, 3, 5, side=side))
    for name in (HIDDEN, ATTENTION):
        expected = torch.cat([terms[name] for terms in alone])
        assert float(expected.min()) > 0
        torch.testing.assert_close(together[name], expected)


def test_fillers_do_not_count() -> None:
    """A repeated row, marked by -1, has no part in the size of the teacher's outputs."""
    student = make_bert(dropout=0.0)
    run = started(student, make_bert(seed=1), hidden())
    batch = batch_of(0, 3)
    plain = terms_of(run, student, batch)[HIDDEN]
    filled = {name: torch.cat([value, value[:1]]) for name, value in batch.items()}
    filled["row_id"][-1] = -1
    found = terms_of(run, student, filled)[HIDDEN]
    torch.testing.assert_close(found[:2], plain)
    assert float(found[2]) == 0.0


@pytest.mark.parametrize("tokens", ["all", "first"])
def test_rows_of_several_texts(tokens: str) -> None:
    """The distance of a pair is the mean of those of its two texts, each alone through both models; of a filler, 0."""
    pooling = Pooling("mean", normalize=True)
    student, teacher = (add_pooling(make_bert(dropout=0.0, seed=seed).bert, pooling) for seed in (0, 1))
    run = started(student, teacher, hidden(f"{{attentions: true, tokens: {tokens}, epsilon: 1e-9}}"))
    texts = [batch_of(row) for row in (0, 3, 5, 6)]
    lengths = [int(text["attention_mask"].sum()) for text in texts]
    assert len({*lengths}) > 1
    flat = inputs_of(batch_of(0, 3, 5, 6, 0, 3))
    pairs = {name: value.unflatten(0, (3, 2)) for name, value in flat.items()} | {"row_id": torch.tensor([0, 1, -1])}
    found = run.losses(torch.zeros(3), pairs, student(**inputs_of(pairs)))

    asked = {"output_hidden_states": True, "output_attentions": True}
    both = [[model.eval()(**inputs_of(text), **asked) for text in texts] for model in (student, teacher)]
    for term, name, first in ((HIDDEN, "hidden_states", 1), (ATTENTION, "attentions", 0)):
        errors = torch.zeros(len(texts))
        for block in range(first, first + 2):
            ours, theirs = ([getattr(each, name)[block][0] for each in found] for found in both)
            if tokens == "first":
                ours, theirs = (
                    [x[:1] if name == "hidden_states" else x[:, :1] for x in each] for each in (ours, theirs)
                )
            size = torch.cat([x.flatten() for x in theirs]).square().mean()
            errors += torch.stack([(s - t).square().mean() for s, t in zip(ours, theirs, strict=True)]) / size / 2
        expected = torch.cat([errors.unflatten(0, (2, 2)).mean(dim=1), torch.zeros(1)]).detach()
        assert float(expected[:2].min()) > 0
        torch.testing.assert_close(found[term], expected)


@pytest.mark.parametrize("keys", ["{attentions: true}", "{project_features: true, tokens: first}"])
def test_accumulation_does_not_matter(keys: str) -> None:
    """What is normalized is so by all rows of a step."""
    traces = []
    for accumulation in (1, 2, 4):
        teacher = Teacher(make_bert(seed=1, num_hidden_layers=3))
        session = start(
            recipe_of(hidden(keys)), model=make_bert(dropout=0.0), teacher=teacher, accumulation=accumulation
        )
        names = [name for name in session.train().trace[0] if "loss" in name]
        traces.append([{name: entry[name] for name in names} for entry in session.trace])
    for trace in traces[1:]:
        for found, expected in zip(trace, traces[0], strict=True):
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_it_begins_and_ends_at_its_epochs_and_leaves_no_hook() -> None:
    student = make_bert(dropout=0.0)
    run = started(student, make_bert(seed=1), hidden("{start_epoch: 1, end_epoch: 2}"))
    active = []
    for _ in range(3):
        run.step_begin()
        active.append(HIDDEN in terms_of(run, student, batch_of(0)))
        assert (run.phase() == "hidden states distilled") == active[-1] == bool(student._forward_hooks)
        run.step_end()
    assert active == [False, True, False]
    endless = started(student, make_bert(seed=1), hidden())
    endless.finish()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in student.modules())


def test_a_loss_without_a_forward_is_an_error() -> None:
    student = make_bert()
    run = started(student, make_bert(seed=1), hidden())
    student.eval()
    with pytest.raises(UsageError, match="recorded in forwards of the model in training mode, with gradients"):
        terms_of(run, student, batch_of(0))


# --- several at a time ------------------------------------------------------------------------------------------------


def counted(model: nn.Module) -> list[int]:
    calls: list[int] = []
    model.register_forward_hook(lambda module, inputs, output: calls.append(1))
    return calls


def test_one_forward_of_the_teacher_is_for_all() -> None:
    student, teacher = make_bert(), make_bert(seed=1)
    modifiers = (hidden(), "!PerLayerDistillationModifier {project_features: false}", "!DistillationModifier {}")
    run = started(student, teacher, *modifiers)
    calls, batch = counted(teacher), batch_of(0, 1)
    for number in (1, 2):
        run.step_batches([batch])
        assert len(terms_of(run, student, batch)) == 6 and len(calls) == number
    assert run.teacher is not None and run.teacher._latest is None  # its memory is free in the backward


def test_a_batch_that_is_changed_in_place_is_another_one() -> None:
    student, teacher = make_bert(), make_bert(seed=1)
    run = started(student, teacher, hidden())
    calls, batch = counted(teacher), batch_of(0, 1)
    run.step_batches([batch])
    for name, value in batch_of(3, 2).items():
        batch[name].resize_(value.shape).copy_(value)
    terms_of(run, student, batch)
    assert len(calls) == 2


def test_forwards_of_the_teacher_with_accumulation() -> None:
    """One for each micro-batch, and one more for each but the first: its size is needed before the loss."""
    for accumulation, expected in ((1, 6), (4, 6 * (2 * 4 - 1))):
        teacher = Teacher(make_bert(seed=1))
        calls = counted(teacher.model)
        start(recipe_of(hidden()), teacher=teacher, accumulation=accumulation).train()
        assert len(calls) == 1 + expected  # 1: the trace


def test_hidden_states_and_attentions_in_two() -> None:
    student = make_bert()
    keys = "{attentions: true, hidden_states: false, gain: 2}"
    run = started(student, make_bert(seed=1), hidden("{gain: 0.5}"), hidden(keys))
    terms = terms_of(run, student, batch_of(0, 1))
    torch.testing.assert_close(terms["loss"].detach(), 0.5 * terms[HIDDEN] + 2 * terms[ATTENTION])


def test_blocks_that_are_dropped_later_are_no_longer_compared() -> None:
    student = make_bert(dropout=0.0, num_hidden_layers=3)
    teacher = make_bert(seed=1, num_hidden_layers=3)
    dropping = "!LayerPruningModifier {layers: [bert.encoder.layer.1], start_epoch: 1}"
    layers = "!PerLayerDistillationModifier {student_layer_names: ['re:.*query'], project_features: false}"
    run = started(student, teacher, hidden("{attentions: true, normalize: false}"), dropping, layers)
    terms_of(run, student, batch_of(0))
    run.step_end()
    run.step_begin()
    terms = terms_of(run, student, batch_of(0))
    states = [
        model(**inputs_of(batch_of(0)), output_hidden_states=True).hidden_states[1:] for model in (student, teacher)
    ]
    expected = torch.stack([(states[0][n] - states[1][n]).square().mean() for n in (0, 2)]).mean()
    assert len(states[1]) == 3 and float(terms[HIDDEN]) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_embeddings_are_compared_also_when_the_first_block_is_dropped() -> None:
    student = make_bert(dropout=0.0)
    dropping = "!LayerPruningModifier {layers: [bert.encoder.layer.0], start_epoch: 1}"
    run = started(student, make_bert(seed=1), hidden("{embeddings: true}"), dropping)
    before = terms_of(run, student, batch_of(0))
    run.step_end()
    run.step_begin()
    after = terms_of(run, student, batch_of(0))
    torch.testing.assert_close(*(terms["embedding_distillation_loss"] for terms in (before, after)))


# --- the teacher ------------------------------------------------------------------------------------------------------


def test_a_teacher_that_is_the_model_itself() -> None:
    student = make_bert(dropout=0.0)
    run = started(student, copy.deepcopy(student), hidden("{attentions: true, embeddings: true}"))
    terms = terms_of(run, student, batch_of(0, 1))
    assert all(float(value.detach().max()) == 0.0 for name, value in terms.items())


def test_a_teacher_reads_its_own_columns() -> None:
    """A teacher with another tokenizer: its first token is compared, however it cuts the rest."""
    student, teacher = make_bert(dropout=0.0), make_bert(seed=1)
    run = started(student, teacher, hidden("{tokens: first, normalize: false}"))
    assert not any(modifier.needs_same_tokens for modifier in run.modifiers)
    batch, own = batch_of(0, 1), batch_of(4, 5, side="left")
    batch |= {f"teacher_{name}": value for name, value in inputs_of(own).items()}
    found = terms_of(run, student, batch)[HIDDEN]
    states = student(**inputs_of(batch), output_hidden_states=True).hidden_states[1:]
    others = teacher(**inputs_of(own), output_hidden_states=True).hidden_states[1:]
    first = own["attention_mask"].argmax(dim=1)
    expected = [(s[:, 0] - t[[0, 1], first]).square().mean(dim=1) for s, t in zip(states, others, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected).mean(dim=0).detach())


@pytest.mark.parametrize(
    ("keys", "same"), [("{}", True), ("{tokens: first}", False), ("{tokens: first, attentions: true}", True)]
)
def test_what_needs_the_same_tokens(keys: str, same: bool) -> None:
    assert load_recipe(recipe_of(hidden(keys))).modifiers[-1].needs_same_tokens == same


def test_the_teacher_computes_in_the_precision_of_the_run() -> None:
    student, teacher = make_bert(), make_bert(seed=1)
    run = started(student, teacher, hidden("{project_features: true}"))
    run.state.autocast = lambda: torch.autocast("cpu", torch.bfloat16)
    dtypes = []
    teacher.get_submodule("classifier").register_forward_hook(lambda m, inputs, output: dtypes.append(output.dtype))
    terms = terms_of(run, student, batch_of(0, 1))
    assert dtypes == [torch.bfloat16] and terms[HIDDEN].dtype == torch.float32


def test_attention_without_fused_kernels_is_said() -> None:
    student: Any = make_bert()
    run = started(student, make_bert(seed=1), hidden("{attentions: true}"))
    assert student.config._attn_implementation == "eager"
    assert [notice for notice in run.notices if "`eager` instead of `sdpa`" in notice]
    assert "eager" not in str(student.config.to_dict())  # nor in the saved config.json
    again = started(student, make_bert(seed=1).eval(), hidden())
    assert again.notices == []


# --- skipped steps ----------------------------------------------------------------------------------------------------


def test_projections_do_not_move_in_skipped_steps() -> None:
    student = make_bert(dropout=0.0)
    run = started(student, make_bert(seed=1), hidden("{project_features: true}"))
    run.state.loss_scale = lambda: 4.0
    before = {name: value.clone() for name, value in run.state_dict().items()}
    for skipped in (True, False):
        run.step_begin()
        (4.0 * terms_of(run, student, batch_of(0, 1))["loss"].mean()).backward()
        if not skipped:  # fp16: gradients that overflow are not handed on
            run.grads_ready()
        run.step_end(skipped=skipped)
        same = all(torch.equal(value, before[name]) for name, value in run.state_dict().items())
        assert same == skipped


def test_projections_train_alike_with_the_scaled_loss_of_fp16() -> None:
    """Their gradients are unscaled as the optimizer's are; steps that overflow are repeated and do not count."""
    ended = []
    for scale in (None, 2.0**10, 2.0**127):  # the last one overflows until it is small enough
        teacher = Teacher(make_bert(seed=1, hidden_size=48))
        session = start(recipe_of(hidden("{gain: 8}")), model=make_bert(dropout=0.0), teacher=teacher)
        if scale:
            with_scaler(session, scale)
            session.run.state.autocast = nullcontext
        session.train()
        final = session.accelerator.scaler.get_scale() if session.accelerator.scaler else None
        assert final == scale if scale != 2.0**127 else final is not None and final < scale
        ended.append(session.run.state_dict())
    for other in ended[1:]:
        for name, value in ended[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-7)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("{hidden_states: false}", "hidden_states: there is nothing to compare"),
        ("{layers: []}", "layers: must not be empty"),
        ("{layers: [1, 1]}", "layers: names a block twice"),
        ("{layers: [0.5]}", "layers: entry 1: expected an integer, got 0.5"),
        ("{hidden_states: false, embeddings: true, layers: [0]}", "layers: has no effect on embeddings"),
        ("{hidden_states: false, attentions: true, project_features: true}", "project_features: has no effect"),
        ("{tokens: last}", "tokens: expected one of all, first, got 'last'"),
        ("{gain: -1}", "gain: expected a number above 0"),
        ("{hidden_state: true}", "Did you mean 'hidden_states'"),
        ("{end_epoch: 0}", "end_epoch: must be after epoch 0, where this modifier starts"),
        ("{start_epoch: 1, end_epoch: 1}", "end_epoch: must be after epoch 1"),
    ],
)
def test_refused_when_read(keys: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe_of(hidden(keys)))


def test_two_that_compare_the_same_are_refused_when_read() -> None:
    with pytest.raises(RecipeError, match=r"attentions: another modifier compares them at the same time.*line \d"):
        load_recipe(recipe_of(hidden("{attentions: true, hidden_states: false}"), hidden("{attentions: true}")))
    one_after_the_other = (hidden("{end_epoch: 1}"), hidden("{start_epoch: 1}"))
    assert len(load_recipe(recipe_of(*one_after_the_other)).modifiers) == 3


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("{layers: [2]}", "the model has no block 2: its 2 blocks are 0 to 1"),
        ("{layers: {0: 4}}", "the teacher has no block 4: its 4 blocks are 0 to 3"),
        ("{layers: [1, -1]}", "names a block of the model twice"),
        ("{project_features: false}", "bert.encoder.layer.0 of the model has width 32, and bert.encoder.layer.1 .* 48"),
        ("{attentions: true}", "has 4 heads, .* of the teacher 3: use a teacher with as many heads"),
    ],
)
def test_refused_when_attached(keys: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        started(make_bert(), make_bert(num_hidden_layers=4, hidden_size=48, num_attention_heads=3), hidden(keys))


class Plain(nn.Module):
    """A model without blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.config = SimpleNamespace(problem_type="single_label_classification")
        self.dummy_inputs = {"x": torch.zeros(3, 4)}

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.linear(x)
        return found


def test_a_model_without_blocks() -> None:
    with pytest.raises(UsageError, match=r"the blocks of the model \(Plain\) cannot be found.*PerLayerDistillation"):
        started(Plain(), make_bert(), hidden())


def test_a_layout_without_gradients_refuses_projections() -> None:
    student = make_bert()
    run = RecipeRun(load_recipe(recipe_of(hidden())), teacher=Teacher(make_bert(hidden_size=48)))
    assert not run.needs_gradients
    run.attach(student)
    assert run.needs_gradients
    from sparse_accel.modifiers.base import check_gradients

    check_gradients(run.modifiers, given=True)
    with pytest.raises(UsageError, match=r"DeepSpeed does not provide them.*or set project_features to false"):
        check_gradients(run.modifiers, given=False)
