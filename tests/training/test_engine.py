"""What the engine promises to every modifier: terms of the loss, gradients, state, and what it refuses to do."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loop import start, with_scaler
from tiny import make_bert
from torch import Tensor, nn

from sparse_accel.errors import UsageError
from sparse_accel.models.teacher import Teacher
from sparse_accel.modifiers import Modifier
from sparse_accel.modifiers.base import check_gradients
from sparse_accel.nn.layers import make_sparse, mask_outputs, masks
from sparse_accel.progress import Progress
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun
from sparse_accel.run_folder.checkpoints import save_checkpoint
from sparse_accel.run_folder.trainer_state import History

RANGE = "modifiers:\n  - !EpochRangeModifier {end_epoch: 2}"


@dataclass(kw_only=True)
class Adds(Modifier):
    """Adds a constant to the loss, and leaves `task` of the task's own."""

    term: str = "extra"
    weight: float = 1.0
    value: float = 1000.0
    task: float = 1.0
    per_row: bool = True

    def task_weight(self) -> float:
        return self.task

    def loss_terms(self, batch: dict[str, Any], outputs: Any) -> Mapping[str, tuple[float, Tensor]]:
        shape = (len(outputs["logits"]),) if self.per_row else ()
        return {self.term: (self.weight, torch.full(shape, self.value))}


@dataclass(kw_only=True)
class ReadsGradients(Modifier):
    """Keeps the norm of what it is shown, each time it is shown something."""

    needs_gradients: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.norms: list[float] = []

    def attach(self, state: Any) -> None:
        self._model = state.model

    def grads_ready(self) -> None:
        self.norms.append(float(self._model.get_parameter("classifier.weight").grad.norm()))


def run_of(*modifiers: Modifier, teacher: Teacher | None = None) -> RecipeRun:
    run = RecipeRun(teacher=teacher)
    run.modifiers = modifiers
    run.attach(make_bert())
    return run


# --- the loss is a sum of named terms ---------------------------------------------------------------------------------


def test_a_term_survives_distillation_at_hardness_1_wherever_it_stands() -> None:
    """A chain in which each modifier took the loss so far lost what came before: 0.42 instead of 1000.42."""
    distillation = load_recipe("modifiers:\n  - !DistillationModifier {hardness: 1.0}").modifiers[0]
    student, teacher = torch.tensor([[0.3, -0.2]]), torch.tensor([[1.0, -1.0]])
    fixed: Any = SimpleNamespace(outputs=lambda batch, keys: {"logits": teacher})
    found = []
    for modifiers in itertools.permutations([distillation, Adds()]):
        run = run_of(*modifiers, teacher=fixed)
        for modifier in modifiers:
            modifier.step_begin(run.progress)
        terms = run.losses(torch.tensor([7.0]), {}, {"logits": student})
        assert float(terms["loss"]) == pytest.approx(1000 + float(terms["distillation_loss"]), abs=1e-3)
        assert terms.keys() == {"loss", "task_loss", "distillation_loss", "teacher_agreement", "extra"}
        found.append(terms["loss"])
    assert torch.equal(*found)


@given(
    st.lists(
        st.builds(
            Adds,
            term=st.sampled_from("abc"),
            weight=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
            value=st.floats(-10, 10),
            task=st.sampled_from([0.0, 0.25, 1.0]),
            per_row=st.booleans(),
        ),
        max_size=4,
    )
)
def test_the_loss_is_the_sum_of_its_terms_in_any_order(modifiers: list[Adds]) -> None:
    task, outputs = torch.tensor([2.0, 4.0, -1.0]), {"logits": torch.zeros(3, 2)}
    expected = task * 1.0
    for modifier in modifiers:
        expected = expected * modifier.task
    for modifier in modifiers:
        expected = expected + modifier.weight * modifier.value
    for order in (modifiers, modifiers[::-1]):
        run = RecipeRun()
        run.modifiers = order
        run.attach(nn.Linear(1, 1))
        terms = run.losses(task, {}, outputs)
        torch.testing.assert_close(terms["loss"], expected, rtol=1e-5, atol=1e-4)
        assert all(value.shape == (3,) for value in terms.values())
        torch.testing.assert_close(run.loss(task.mean(), {}, outputs), expected.mean(), rtol=1e-5, atol=1e-4)


def test_a_term_of_weight_0_plays_no_part_were_it_infinite() -> None:
    run = run_of(Adds(weight=0.0, value=float("inf")))
    assert run.loss(torch.tensor(2.0), {}, {"logits": torch.zeros(1, 2)}) == 2.0
    run = run_of(Adds(task=0.0))
    assert run.loss(torch.tensor(torch.inf), {}, {"logits": torch.zeros(1, 2)}) == 1000.0


def test_terms_that_cannot_be_summed_or_told_apart_are_named() -> None:
    outputs = {"logits": torch.zeros(3, 2)}
    for name in ("loss", "task_loss"):
        with pytest.raises(ValueError, match=f"Adds: a term cannot be called '{name}'"):
            run_of(Adds(term=name)).losses(torch.zeros(3), {}, outputs)

    class Misshapen(Modifier):
        def loss_terms(self, batch: dict[str, Any], outputs: Any) -> dict[str, tuple[float, Tensor]]:
            return {"hidden": (1.0, torch.zeros(3, 5))}

    for task in (torch.zeros(3), torch.tensor(0.0)):
        with pytest.raises(
            ValueError, match=r"Misshapen: the term 'hidden' has the shape \(3, 5\); expected one value"
        ):
            run_of(Misshapen()).losses(task, {}, outputs)


def test_every_term_is_logged_under_its_name() -> None:
    session = start(RANGE)
    session.run.modifiers = [Adds(value=1.0), Adds(term="other", weight=0.5, value=4.0, per_row=False)]
    session.train()
    for entry in session.trace:
        assert entry["train/extra"] == pytest.approx(1.0) and entry["train/other"] == pytest.approx(4.0)
        assert entry["train/loss"] == pytest.approx(entry["train/task_loss"] + 3.0, abs=1e-5)


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.0, 1e-3])
def test_gradients_are_read_unscaled_and_unclipped(limit: float) -> None:
    found = []
    for scale in (1.0, 2.0**10):
        session = start(RANGE)
        reads = ReadsGradients()
        session.run.modifiers = [reads]
        reads.attach(session.run.state)
        with_scaler(session, scale).train(max_grad_norm=limit)
        assert len(reads.norms) == 6
        found.append((reads.norms, session.model.get_parameter("classifier.weight").detach()))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])
    assert min(found[0][0]) > 0.01


def test_gradients_of_a_step_that_the_scaler_skips_are_not_shown() -> None:
    session = start(RANGE)
    reads = ReadsGradients()
    session.run.modifiers = [reads]
    reads.attach(session.run.state)
    with_scaler(session, 2.0**126).train()  # overflows until the scale has been halved a few times
    assert session.run.progress.step == 6
    assert len(reads.norms) == 6 and all(norm < 1e3 for norm in reads.norms)


def test_a_layout_that_gives_no_gradients_is_refused() -> None:
    check_gradients([ReadsGradients()], given=True)
    check_gradients([Adds()], given=False)
    with pytest.raises(UsageError, match=r"ReadsGradients needs gradients, .*DeepSpeed.*ddp\.yaml or fsdp2\.yaml"):
        check_gradients([ReadsGradients()], given=False)
    session = start(RANGE)
    session.run.modifiers = [ReadsGradients()]
    deepspeed: Any = SimpleNamespace(distributed_type="DEEPSPEED")
    with pytest.raises(UsageError, match=r"ReadsGradients needs gradients, .*DeepSpeed"):
        session.run.bind(deepspeed, session.model, session.optimizer, steps_per_epoch=1)


def test_a_recipe_that_does_not_fit_the_model_is_told_with_file_and_line(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "modifiers:\n  - !EpochRangeModifier\n      start_epoch: 0\n      end_epoch: 2\n\n"
        "  - !MagnitudePruningModifier\n      params: [no_such.weight]\n      init_sparsity: 0.1\n"
        "      final_sparsity: 0.5\n      start_epoch: 0\n      end_epoch: 1\n      update_frequency: 0.5\n"
    )
    with pytest.raises(UsageError, match=r"recipe\.yaml:6: MagnitudePruningModifier: .*no_such"):
        RecipeRun(load_recipe(recipe)).attach(make_bert())
    made_in_python = RecipeRun(load_recipe(recipe))
    made_in_python.modifiers = [replace(modifier) for modifier in made_in_python.modifiers]
    with pytest.raises(UsageError, match=r"^MagnitudePruningModifier: "):
        made_in_python.attach(make_bert())


# --- one shot ---------------------------------------------------------------------------------------------------------


def test_one_shot_refuses_a_modifier_that_does_not_say_that_it_can() -> None:
    """By default nothing happened, so that the command ended well and had done nothing."""
    run = run_of(Adds())
    with pytest.raises(UsageError, match=r"--one_shot: Adds .*--do_train, or remove it"):
        run.apply_at_once(lambda: iter(()))


def test_one_shot_passes_over_what_only_shapes_training() -> None:
    recipe = RANGE + "\n  - !SetLearningRateModifier {learning_rate: 0.1, start_epoch: 0}"
    run = RecipeRun(load_recipe(recipe))
    run.attach(make_bert())
    run.apply_at_once(lambda: iter(()))


# --- kinds are told by attributes -------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Follows(Modifier):
    """A second modifier that follows a teacher, such as one of hidden states."""

    needs_teacher: ClassVar[bool] = True


@dataclass(kw_only=True)
class SetsRate(Modifier):
    setting: ClassVar[str] = "lr"

    def covers_group(self, group: int) -> bool:
        return True


def recipe_of(*modifiers: Modifier) -> Any:
    from sparse_accel.recipe import Recipe

    return Recipe({"modifiers": list(modifiers)})


def test_a_second_kind_that_follows_a_teacher_is_seen() -> None:
    """By its name, it was not: --distill_teacher was refused, and `disable` left it in."""
    recipe = recipe_of(Follows())
    recipe.check_teacher("self")
    with pytest.raises(UsageError, match=r"\(Follows\), but there is no teacher"):
        recipe.check_teacher(None)
    with pytest.raises(UsageError, match=r"\(Follows\), but there is no teacher"):
        RecipeRun(recipe).attach(make_bert())
    assert RecipeRun(recipe, teacher="disable").modifiers == []
    with pytest.raises(UsageError, match="--distill_teacher has no effect"):
        recipe_of(Adds()).check_teacher("self")


def test_a_second_kind_that_sets_the_rate_is_seen() -> None:
    from sparse_accel.cli.text_classification import TextClassificationArguments
    from sparse_accel.training.schedule import lr_schedule, steps_of_run

    arguments = TextClassificationArguments(
        model_name_or_path="x", output_dir="y", task_name="sst2", do_train=True, learning_rate=0.5, max_steps=10
    )
    _, notices = steps_of_run(arguments, recipe_of(SetsRate()), 5)
    assert notices == ["--learning_rate 0.5 is overridden: the recipe sets the learning rate"]
    rate = lr_schedule(arguments, recipe_of(SetsRate()), 10)
    assert {rate(Progress(step, 5)) for step in range(10)} == {0.5}


# --- state ------------------------------------------------------------------------------------------------------------


def test_the_state_of_another_recipe_is_judged_by_the_modifiers() -> None:
    def run_with(line: str) -> RecipeRun:
        run = RecipeRun(load_recipe(f"modifiers:\n  - !{line}"))
        model = make_bert()
        run.attach(model)
        run.bind(None, model, torch.optim.SGD(model.parameters(), lr=0.0), steps_per_epoch=1)
        return run

    queries = run_with("MagnitudePruningModifier {end_epoch: 1, params: ['re:.*query.weight']}")
    keys = run_with("MagnitudePruningModifier {end_epoch: 1, params: ['re:.*key.weight']}")
    with pytest.raises(ValueError, match=r"masks of MagnitudePruningModifier belong to other weights: .*query\.weight"):
        keys.load_state_dict(queries.state_dict())
    with pytest.raises(ValueError, match="the recipe has no modifier 0:MagnitudePruningModifier"):
        run_with("QuantizationModifier {}").load_state_dict(queries.state_dict())
    whole, part = run_with("QuantizationModifier {}"), run_with("QuantizationModifier {submodules: [classifier]}")
    with pytest.raises(ValueError, match="ranges of QuantizationModifier belong to other quantizers"):
        part.load_state_dict(whole.state_dict())
    with pytest.raises(ValueError, match="Adds has no state, got mask"):
        Adds().load_state_dict({"mask": torch.ones(1)})
    queries.load_state_dict(queries.state_dict())


def test_every_process_takes_part_in_the_state_of_a_checkpoint(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A modifier whose state lies on several processes talks to them in `state_dict`: on the main process alone, the
    others' next operation would answer it."""
    from sparse_accel.run_folder import checkpoints

    session = start(RANGE)
    calls: list[str] = []

    def state_dict(run: RecipeRun) -> dict[str, Tensor]:
        calls.append("state")
        return {"step": torch.tensor(0)}

    monkeypatch.setattr(RecipeRun, "state_dict", state_dict)
    monkeypatch.setattr(checkpoints, "by_main_process", lambda accelerator, action: None)  # as on any other process
    monkeypatch.setattr(checkpoints, "save_model", lambda *args: calls.append("model"))
    save_checkpoint(tmp_path, session.accelerator, session.model, None, session.run, History())
    assert calls == ["state", "model"]


# --- masked and removed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [nn.Linear(6, 4), nn.Conv1d(6, 4, 1), nn.Conv2d(6, 4, 1)], ids=lambda k: type(k).__name__
)
def test_removed_outputs_are_0_bias_included(kind: nn.Module) -> None:
    """A masked row alone still gave its bias."""
    nn.init.ones_(kind.bias)  # type: ignore[arg-type]
    weight: Any = kind.weight
    x = torch.randn(3, 6, *[1] * (weight.ndim - 2)).requires_grad_()
    before = kind(x)
    layer = make_sparse(kind)
    kept = torch.tensor([True, False, True, False])
    mask_outputs(layer, kept)
    out = layer(x)
    assert (out[:, ~kept] == 0).all() and torch.equal(out[:, kept], before[:, kept])
    out.sum().backward()
    bias: Any = kind.bias
    assert bias.grad.bool().tolist() == kept.tolist() and (layer.weight.grad[~kept] == 0).all()
    assert set(masks(nn.ModuleDict({"layer": layer}))) == {"layer.weight", "layer.bias"}
    assert "bias_mask" not in str(list(layer.state_dict()))
