"""Outputs of layers: which a model has, what the recorder keeps, and the distance between two of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_albert, make_bert, make_distilbert, make_roberta
from torch import Tensor, nn

from sparse_accel.errors import UsageError
from sparse_accel.models.teacher import Teacher
from sparse_accel.nn.layer_outputs import LayerOutput, Recorder, attention_outputs, hidden_state_outputs, trace_calls
from sparse_accel.nn.losses import layer_distance, square_sum
from sparse_accel.nn.projections import Projections
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun
from sparse_accel.training.setup import recompute_activations

MODELS = [make_bert, make_distilbert, make_roberta, make_albert]


def ids(rows: int = 4, tokens: int = 9) -> Tensor:
    return torch.randint(5, 30, (rows, tokens), generator=torch.Generator().manual_seed(0))


# --- finding and recording --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MODELS)
def test_blocks_and_attentions_are_those_of_transformers(make: Any) -> None:
    model = make()
    model.set_attn_implementation("eager")
    layout = trace_calls(model)
    states, attentions = hidden_state_outputs(layout), attention_outputs(layout)
    embedded = LayerOutput(states[0].module, part=-1)
    assert {layout.axes_of(each) for each in [*states, embedded]} == {"tokens"}
    assert {layout.axes_of(each) for each in attentions} == {"attention"}
    recorder = Recorder(model.eval(), [*states, *attentions, embedded], training=False)
    recorder.start()
    with torch.no_grad():
        outputs = model(ids(), output_hidden_states=True, output_attentions=True)
    found = recorder.take()
    assert len(states) == len(attentions) == len(outputs.attentions) == 2
    for expected, name in zip(outputs.hidden_states, [embedded, *states], strict=True):
        assert torch.equal(found[name], expected)
    for expected, name in zip(outputs.attentions, attentions, strict=True):
        assert torch.equal(found[name], expected)


def test_fused_attention_gives_no_probabilities() -> None:
    model: Any = make_bert()
    assert model.config._attn_implementation == "sdpa" and attention_outputs(trace_calls(model)) == []


def test_a_trace_leaves_the_model_and_the_random_numbers_alone() -> None:
    model: Any = make_bert().train()
    model.bert.pooler.eval()
    flags = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    trace_calls(model)
    assert torch.equal(state, torch.get_rng_state())
    assert flags == {name: module.training for name, module in model.named_modules()}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


POOLER = LayerOutput("bert.pooler")


def test_only_forwards_in_training_are_recorded() -> None:
    """Not evaluations, nor forwards without gradients, nor those in eval mode with gradients."""
    model = make_bert()
    recorder = Recorder(model, [POOLER], training=True)
    recorder.start()
    recorder.start()  # again: no second hook
    model.eval()(ids())
    with torch.no_grad():
        model.train()(ids())
    with pytest.raises(
        UsageError, match=r"the output of bert\.pooler was not seen: .*call model\.train\(\) before the loop"
    ):
        recorder.take()
    model(ids())
    assert recorder.take()[POOLER].requires_grad
    with pytest.raises(UsageError, match="one before each loss"):
        recorder.take()
    recorder.stop()
    model(ids())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_module_alone_is_not_a_forward_of_the_model() -> None:
    """Gradient checkpointing runs blocks again in the backward."""
    model: Any = make_bert().train()
    recorder = Recorder(model, [POOLER], training=True)
    recorder.start()
    model(ids())
    first = recorder._found[0]
    model.bert.pooler(torch.zeros(2, 3, 32))
    assert recorder.take()[POOLER] is first


RECIPE = """
modifiers:
  - !EpochRangeModifier {end_epoch: 4}
  - !HiddenStateDistillationModifier
      {embeddings: true, attentions: true, project_features: true, start_epoch: 1, end_epoch: 3}
  - !PerLayerDistillationModifier {start_epoch: 2, end_epoch: 3}
"""


def trained(model: nn.Module, forward: Any = None) -> list[dict[str, Tensor]]:
    """Four steps, at lengths that differ; returns gradients and terms of the loss of each."""
    run = RecipeRun(load_recipe(RECIPE), teacher=Teacher(make_bert(seed=1, num_hidden_layers=1)))
    run.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    run.bind(None, model, optimizer, steps_per_epoch=1)
    model.train()
    found = []
    for step in range(4):
        batch = {"input_ids": ids(4, 7 + step), "labels": torch.tensor([0, 1, 0, 1])}
        run.step_begin()
        outputs = (model if forward is None else forward)(**batch)
        terms = run.losses(outputs.loss, batch, outputs)
        terms["loss"].backward()
        run.grads_ready()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append({**{name: value.detach() for name, value in terms.items()}, **gradients})
        optimizer.step()
        optimizer.zero_grad()
        run.step_end()
    assert [len([name for name in each if "distillation" in name]) for each in found] == [0, 3, 4, 0]
    return found


def assert_close(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]], *, rtol: float, atol: float) -> None:
    for expected, found in zip(one, other, strict=True):
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=rtol, atol=atol, msg=name)


def test_recomputed_activations_change_nothing() -> None:
    plain: Any = make_bert(dropout=0.0, num_hidden_layers=1)
    saving: Any = copy.deepcopy(plain)
    recompute_activations(saving)
    assert_close(trained(plain), trained(saving), rtol=0.0, atol=0.0)


@pytest.mark.slow
def test_a_compiled_model_is_recorded_too() -> None:
    """Also where the hooks come after the first graph was made, and go again."""
    plain = make_bert(dropout=0.0, num_hidden_layers=1)
    other = copy.deepcopy(plain)
    torch.compiler.reset()
    compiled = torch.compile(other, backend="eager", dynamic=True)
    assert_close(trained(plain), trained(other, compiled), rtol=1e-4, atol=1e-5)


# --- distances --------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 3), st.booleans())
def test_padding_and_batches_do_not_matter(lengths: list[int], padding: int, normalize: bool) -> None:
    """A row's distance is that of its own tokens, whatever is in the same batch; sums of squares add up."""
    generator = torch.Generator().manual_seed(sum(lengths))
    rows = [torch.randn(2, length, 3, generator=generator) for length in lengths]
    size = max(lengths) + padding
    students, teachers = torch.randn(2, len(rows), size, 3)
    counted = torch.zeros(len(rows), size, 1, dtype=torch.bool)
    for number, (student, teacher) in enumerate(rows):
        students[number, : len(student)], teachers[number, : len(teacher)] = student, teacher
        counted[number, : len(student)] = True
    sums = square_sum(teachers, counted)
    parts = torch.stack([square_sum(teacher[None]) for _, teacher in rows]).sum(dim=0)
    torch.testing.assert_close(sums, parts)
    square = (sums[0] / sums[1]).float() if normalize else None
    expected = torch.cat([layer_distance(student[None], teacher[None], None, square) for student, teacher in rows])
    torch.testing.assert_close(layer_distance(students, teachers, counted, square), expected)


def test_all_counted_is_none_left_out() -> None:
    student, teacher = torch.randn(2, 4, 5, 3)
    everything = torch.ones(4, 5, 1, dtype=torch.bool)
    assert torch.equal(layer_distance(student, teacher), layer_distance(student, teacher, everything))
    assert torch.equal(square_sum(teacher), square_sum(teacher, everything))
    torch.testing.assert_close(square_sum(teacher)[0] / square_sum(teacher)[1], teacher.double().square().mean())


def test_a_row_of_padding_alone_is_zero() -> None:
    student, teacher = torch.randn(2, 2, 5, 3)
    counted = torch.zeros(2, 5, 1, dtype=torch.bool)
    assert layer_distance(student, teacher, counted, torch.tensor(1.0)).tolist() == [0.0, 0.0]


# --- projections ------------------------------------------------------------------------------------------------------


def test_projections_begin_as_linear_layers_do_and_train_by_adamw() -> None:
    state = torch.get_rng_state()
    projections = Projections({"a": (5, 4), "b": (3, 64)})
    assert torch.equal(state, torch.get_rng_state())
    projections.to(torch.device("cpu"))
    assert {name: tuple(weight.shape) for name, weight in projections.weights.items()} == {"a": (5, 4), "b": (3, 64)}
    assert 0.4 < float(projections.weights["a"].detach().abs().max()) <= 0.5
    assert 0.1 < float(projections.weights["b"].detach().abs().max()) <= 0.125
    plain = {name: nn.Parameter(weight.detach().clone()) for name, weight in projections.weights.items()}
    optimizer = torch.optim.AdamW(plain.values(), weight_decay=0.0)
    x = torch.randn(7, 4)
    for rate in (0.1, 0.02):
        projections("a", x).square().sum().mul(8).backward()
        projections.average_gradients(loss_scale=8.0)
        projections.step(rate)
        nn.functional.linear(x, plain["a"]).square().sum().backward()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(projections.weights[name], weight) for name, weight in plain.items())

    other = Projections({"a": (5, 4), "b": (3, 64)})
    other.to(torch.device("cpu"))
    other.load_state_dict(copy.deepcopy(projections.state_dict()))
    for each in (projections, other):
        each("a", x).sum().backward()
        each.step(0.1)
    assert torch.equal(projections.weights["a"], other.weights["a"])
    strange = Projections({"a": (4, 4), "b": (3, 64)})
    strange.to(torch.device("cpu"))
    with pytest.raises(ValueError, match="other layers or widths"):
        strange.load_state_dict(projections.state_dict())


def test_the_scaled_loss_of_fp16_does_not_overflow_in_projections() -> None:
    """Their gradients are sums over all tokens, and the scaler, which checks those of the model, does not see them."""
    projections = Projections({"a": (2, 3)})
    projections.to(torch.device("cpu"))
    values = torch.ones(64, 3, dtype=torch.float16, requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        found = projections("a", values)
    (found.float().sum() * 4096).backward()  # 262,144 for each weight; the largest number of fp16 is 65,504
    projections.average_gradients(loss_scale=4096)
    gradient = projections.weights["a"].grad
    assert gradient is not None and torch.equal(gradient, torch.full((2, 3), 64.0))
    assert values.grad is not None and bool(values.grad.isfinite().all())
