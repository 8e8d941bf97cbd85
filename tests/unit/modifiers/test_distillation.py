"""Distillation: SparseML's losses and gradients, the other problem types, and labels that agree by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from datasets import Dataset
from places import golden
from tiny import make_bert, make_rows, make_tokenizer
from torch import Tensor, nn

from sparse_accel.data.batches import Collator
from sparse_accel.errors import UsageError
from sparse_accel.models.teacher import Teacher, label_order
from sparse_accel.nn.losses import distillation_loss, task_loss
from sparse_accel.recipe import RecipeError, load_recipe
from sparse_accel.recipe_run import RecipeRun

GOLDEN: dict[str, Any] = golden("distillation")
SINGLE, MULTI, SCORE = "single_label_classification", "multi_label_classification", "regression"
SHAPES = ["b8c2", "b6c3"]


def tensors(case: str) -> tuple[Tensor, Tensor, Tensor]:
    figures = GOLDEN[case]
    return torch.tensor(figures["student"]), torch.tensor(figures["teacher"]), torch.tensor(figures["labels"])


class FixedTeacher(Teacher):
    """A teacher whose outputs are given."""

    def __init__(self, **outputs: Tensor) -> None:
        super().__init__(nn.Identity())
        self.given = outputs

    def outputs(self, batch: dict[str, Any], keys: list[str]) -> dict[str, Tensor]:
        return {key: self.given[key] for key in keys}


def started(keys: str, teacher: Teacher, problem_type: str = SINGLE) -> RecipeRun:
    """A run of one DistillationModifier, at its first step."""
    run = RecipeRun(load_recipe(f"modifiers:\n  - !DistillationModifier {{{keys}}}"), teacher=teacher)
    model = nn.Linear(1, 1)
    model.config = SimpleNamespace(problem_type=problem_type)  # type: ignore[assignment]
    run.attach(model)
    run.bind(None, model, torch.optim.SGD(model.parameters(), lr=0.0), steps_per_epoch=1)
    run.step_begin()
    return run


# --- SparseML's figures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SHAPES)
def test_golden_task_loss(case: str) -> None:
    student, _, labels = tensors(case)
    assert float(task_loss(student, labels, SINGLE).mean()) == pytest.approx(GOLDEN[case]["ce"], rel=1e-6)


@pytest.mark.parametrize("temperature", ["1.0", "2.0", "5.0"])
@pytest.mark.parametrize("case", SHAPES)
def test_golden_distillation_loss(case: str, temperature: str) -> None:
    student, teacher, _ = tensors(case)
    found = distillation_loss(student, teacher, float(temperature), SINGLE)
    assert found.shape == (len(student),)
    assert float(found.mean()) == pytest.approx(GOLDEN[case]["kd"][temperature], rel=1e-6)


@pytest.mark.parametrize("temperature", ["1.0", "2.0", "5.0"])
@pytest.mark.parametrize("hardness", ["0.0", "0.5", "1.0"])
@pytest.mark.parametrize("case", SHAPES)
def test_golden_total_and_gradient_through_the_modifier(case: str, hardness: str, temperature: str) -> None:
    student, teacher, labels = tensors(case)
    student.requires_grad_()
    run = started(f"hardness: {hardness}, temperature: {temperature}", FixedTeacher(logits=teacher))
    terms = run.losses(task_loss(student, labels, SINGLE), {}, {"logits": student})
    rows = terms["loss"]
    assert rows.shape == (len(student),)
    rows.mean().backward()
    name = f"h{hardness}_T{temperature}"
    assert float(rows.detach().mean()) == pytest.approx(GOLDEN[case]["total"][name], rel=1e-6)
    expected = torch.tensor(GOLDEN[case]["grad_total"][name])
    assert student.grad is not None
    torch.testing.assert_close(student.grad, expected, rtol=1e-5, atol=1e-7)
    parts = {key: float(value.detach().mean()) for key, value in terms.items()}
    assert parts["task_loss"] == pytest.approx(GOLDEN[case]["ce"], rel=1e-6)
    assert parts["distillation_loss"] == pytest.approx(GOLDEN[case]["kd"][temperature], rel=1e-6)
    assert parts["loss"] == pytest.approx(GOLDEN[case]["total"][name], rel=1e-6)


def test_golden_mean_loss_as_well_as_one_a_row() -> None:
    """A loop of one's own hands over the mean."""
    student, teacher, labels = tensors("b6c3")
    run = started("hardness: 0.5, temperature: 5.0", FixedTeacher(logits=teacher))
    loss = run.loss(F.cross_entropy(student, labels), {}, {"logits": student})
    assert loss.shape == () and float(loss) == pytest.approx(GOLDEN["b6c3"]["total"]["h0.5_T5.0"], rel=1e-6)


def test_golden_two_output_keys_are_averaged() -> None:
    """The second pair of the figures is the first one with its parts exchanged."""
    student, teacher, _ = tensors("b8c2")
    run = started(
        "hardness: 1.0, temperature: 2.0, distill_output_keys: [logits, other]",
        FixedTeacher(logits=teacher, other=student),
    )
    found = run.loss(torch.zeros(8), {}, {"logits": student, "other": teacher})
    assert float(found.mean()) == pytest.approx(GOLDEN["two_keys_T2"], rel=1e-6)


# --- beyond the figures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, SCORE])
def test_at_hardness_1_the_labels_play_no_part(problem_type: str) -> None:
    student = torch.randn(4, 1 if problem_type == SCORE else 3, requires_grad=True)
    run = started("hardness: 1.0", FixedTeacher(logits=torch.randn_like(student)), problem_type)
    losses = [run.loss(task, {}, {"logits": student}) for task in (torch.rand(4), torch.full((4,), torch.inf))]
    assert torch.equal(*losses) and torch.isfinite(losses[0]).all()


def test_at_hardness_0_the_teacher_plays_no_part() -> None:
    run = started("hardness: 0.0", FixedTeacher(logits=torch.full((1, 2), torch.inf)))
    assert run.loss(torch.tensor(2.0), {}, {"logits": torch.zeros(1, 2)}) == 2.0


def test_regression_follows_the_teachers_score() -> None:
    student, teacher = torch.tensor([[1.0], [3.0]], requires_grad=True), torch.tensor([[2.0], [-1.0]])
    found = distillation_loss(student, teacher, 2.0, SCORE)
    assert found.tolist() == [1.0, 16.0]
    found.sum().backward()
    assert student.grad is not None and student.grad.tolist() == [[-2.0], [8.0]]


def test_multi_label_is_binary_cross_entropy_at_the_temperature() -> None:
    student, teacher, temperature = torch.randn(5, 3), torch.randn(5, 3), 2.0
    p, q = torch.sigmoid(teacher / temperature), torch.sigmoid(student / temperature)
    expected = -(p * q.log() + (1 - p) * (1 - q).log()).mean(dim=1) * temperature**2
    torch.testing.assert_close(distillation_loss(student, teacher, temperature, MULTI), expected)


def test_task_losses_of_other_problem_types() -> None:
    logits = torch.tensor([[0.0, 2.0], [1.0, -1.0]])
    labels = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    expected = F.binary_cross_entropy_with_logits(logits, labels)
    assert float(task_loss(logits, labels, MULTI).mean()) == pytest.approx(float(expected))
    assert task_loss(torch.tensor([[1.0], [2.0]]), torch.tensor([3.0, 2.0]), SCORE).tolist() == [4.0, 0.0]
    smooth = F.cross_entropy(logits, torch.tensor([1, 0]), label_smoothing=0.1)
    assert float(task_loss(logits, torch.tensor([1, 0]), SINGLE, 0.1).mean()) == pytest.approx(float(smooth))


def test_it_begins_and_ends_at_its_epochs() -> None:
    student, teacher, labels = tensors("b8c2")
    run = started("start_epoch: 1, end_epoch: 2, hardness: 1.0", FixedTeacher(logits=teacher))
    task = task_loss(student, labels, SINGLE)
    active = []
    for _ in range(3):
        run.step_begin()
        terms = run.losses(task, {}, {"logits": student})
        active.append(not torch.equal(terms["loss"], task))
        assert ("distillation_loss" in terms) == active[-1] == (run.phase() == "distilled")
        run.step_end()
    assert active == [False, True, False]


@pytest.mark.parametrize(
    ("keys", "said"), [("", "(the task's outputs)"), (", distill_output_keys: [hidden]", "(hidden)")]
)
def test_the_timeline_says_what_is_compared(keys: str, said: str) -> None:
    """Of some tasks, `logits` are no logits, but vectors."""
    recipe = load_recipe(f"modifiers:\n  - !DistillationModifier {{hardness: 1, temperature: 3{keys}}}\n")
    assert recipe.timeline()[0] == (0.0, f"distillation: hardness 1, temperature 3 {said}")


def run_of(teacher: Teacher, *modifiers: str) -> RecipeRun:
    """A run of several DistillationModifiers, at its first step."""
    lines = "".join(f"\n  - !DistillationModifier {{{keys}}}" for keys in modifiers)
    run = RecipeRun(load_recipe(f"modifiers:{lines}"), teacher=teacher)
    model = nn.Linear(1, 1)
    run.attach(model)
    run.bind(None, model, torch.optim.SGD(model.parameters(), lr=0.0), steps_per_epoch=1)
    run.step_begin()
    return run


def test_two_at_a_time_distil_different_outputs() -> None:
    student, teacher, labels = tensors("b8c2")
    task, distance = task_loss(student, labels, SINGLE), distillation_loss(student, teacher, 2.0, SINGLE)
    run = run_of(
        FixedTeacher(logits=teacher, other=student), "hardness: 0.5", "hardness: 0.2, distill_output_keys: [other]"
    )
    terms = run.losses(task, {}, {"logits": student, "other": teacher})
    names = {"distillation_loss_logits", "distillation_loss_other", "teacher_agreement"}
    assert terms.keys() == {"task_loss", "loss", *names}
    turned = distillation_loss(teacher, student, 2.0, SINGLE)
    torch.testing.assert_close(terms["distillation_loss_other"], turned)
    torch.testing.assert_close(terms["loss"], 0.5 * 0.8 * task + 0.5 * distance + 0.2 * turned)


def test_one_after_the_other() -> None:
    """As in SparseML's recipe for GoEmotions."""
    student, teacher, labels = tensors("b8c2")
    run = run_of(
        FixedTeacher(logits=teacher),
        "hardness: 1.0, temperature: 5.0, end_epoch: 1",
        "hardness: 0.5, temperature: 1.0, start_epoch: 1, end_epoch: 2",
    )
    task = task_loss(student, labels, SINGLE)
    for expected in (
        distillation_loss(student, teacher, 5.0, SINGLE),
        0.5 * task + 0.5 * distillation_loss(student, teacher, 1.0, SINGLE),
        task,
    ):
        run.step_begin()
        terms = run.losses(task, {}, {"logits": student})
        torch.testing.assert_close(terms["loss"], expected)
        assert set(terms) <= {"task_loss", "distillation_loss", "teacher_agreement", "loss"}
        run.step_end()


def test_the_same_output_twice_at_a_time_is_refused_when_read() -> None:
    text = (
        "modifiers:\n  - !DistillationModifier {end_epoch: 2}\n"
        "  - !DistillationModifier {start_epoch: 1, distill_output_keys: [hidden_states, logits]}"
    )
    with pytest.raises(RecipeError, match=r"distill_output_keys: two of this kind .*both compare 'logits'.*line \d"):
        load_recipe(text)
    assert len(load_recipe(text.replace(", logits", "")).modifiers) == 2


def test_an_output_that_the_model_lacks() -> None:
    run = started("distill_output_keys: [scores]", FixedTeacher(scores=torch.zeros(1)))
    with pytest.raises(UsageError, match=r"no output 'scores', only \['logits'\]"):
        run.loss(torch.zeros(1), {}, {"logits": torch.zeros(1)})
    recipe = load_recipe("modifiers:\n  - !DistillationModifier {distill_output_keys: [hidden_states], start_epoch: 5}")
    with pytest.raises(UsageError, match=r"model has no output 'hidden_states', only logits\. A HiddenStateDistill"):
        RecipeRun(recipe, teacher=Teacher(make_bert())).attach(make_bert())
    with pytest.raises(RecipeError, match="distill_output_keys: names 'logits' twice"):
        load_recipe("modifiers:\n  - !DistillationModifier {distill_output_keys: [logits, logits]}")
    with pytest.raises(UsageError, match="the teacher has no output 'scores', only logits"):
        Teacher(make_bert()).forward(Collator(make_tokenizer())(make_rows(1).remove_columns("labels")[:]), ["scores"])


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "teacher", "order"),
    [
        (["no", "yes"], ["no", "yes"], [0, 1]),
        (["score"], ["similarity"], [0]),
        (["no", "yes"], ["yes", "no"], [1, 0]),
        (["a", "b", "c"], ["C", "A", "B"], [1, 2, 0]),
        (["no", "yes"], ["LABEL_0", "LABEL_1"], [0, 1]),
        (["LABEL_0", "LABEL_1"], ["LABEL_0", "LABEL_1"], [0, 1]),
    ],
)
def test_labels_are_aligned_by_name(student: list[str], teacher: list[str], order: list[int]) -> None:
    assert label_order(student, teacher) == order


@pytest.mark.parametrize("teacher", [["no", "maybe"], ["no", "yes", "maybe"], ["LABEL_0"], ["yes"]])
def test_labels_that_differ_are_an_error(teacher: list[str]) -> None:
    with pytest.raises(UsageError, match="have different labels: the data has no, yes"):
        label_order(["no", "yes"], teacher)


def test_names_that_differ_in_case_only_are_not_folded_together() -> None:
    with pytest.raises(UsageError):
        label_order(["US", "us"], ["us", "them"])


# --- the table --------------------------------------------------------------------------------------------------------


def test_a_table_gives_what_the_forward_gives(tmp_path: Path) -> None:
    accelerator, rows, tokenizer = Accelerator(cpu=True), make_rows(21), make_tokenizer()
    teacher = Teacher(make_bert(num_labels=3), order=[2, 0, 1])
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not teacher.make_table(accelerator, rows, tokenizer, batch_size=4, cache=tmp_path)
    picked = [3, 20, 0, 7]
    batch = Collator(tokenizer)({**rows[picked], "row_id": picked})
    looked_up = teacher.outputs(batch, ["logits"])["logits"]
    table, teacher.table = teacher.table, None
    live = teacher.outputs(batch, ["logits"])["logits"]
    torch.testing.assert_close(looked_up, live)
    plain = teacher.model(**{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}).logits
    assert torch.equal(live, plain[:, [2, 0, 1]])

    again = Teacher(make_bert(num_labels=3), order=[2, 0, 1])
    assert again.make_table(accelerator, rows, tokenizer, batch_size=7, cache=tmp_path)
    assert isinstance(table, torch.Tensor) and isinstance(again.table, torch.Tensor)
    assert torch.equal(again.table, table)


@pytest.mark.parametrize("change", ["weights", "rows", "order"])
def test_another_teacher_row_or_order_makes_another_table(tmp_path: Path, change: str) -> None:
    def found(seed: int, rows: Dataset, order: list[int] | None) -> bool:
        teacher = Teacher(make_bert(seed=seed), order)
        return teacher.make_table(Accelerator(cpu=True), rows, make_tokenizer(), batch_size=8, cache=tmp_path)

    rows = make_rows(9)
    assert not found(0, rows, None)
    assert found(0, rows, [0, 1])  # the same order, written out
    changed = {"weights": (1, rows, None), "rows": (0, rows.select(range(8)), None), "order": (0, rows, [1, 0])}
    assert not found(*changed[change])


def test_a_torn_table_is_made_anew(tmp_path: Path) -> None:
    rows = make_rows(9)
    tables = []
    for _ in range(2):
        teacher = Teacher(make_bert())
        assert not teacher.make_table(Accelerator(cpu=True), rows, make_tokenizer(), batch_size=8, cache=tmp_path)
        assert isinstance(teacher.table, torch.Tensor)
        tables.append(teacher.table)
        (file,) = (tmp_path / "teacher_logits").iterdir()
        file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(*tables)


@pytest.mark.parametrize("span", ["start_epoch: 1, end_epoch: 1", "end_epoch: 0"])
def test_a_span_in_which_it_would_never_act_is_refused(span: str) -> None:
    text = f"modifiers:\n  - !EpochRangeModifier {{end_epoch: 2}}\n  - !DistillationModifier {{{span}}}"
    with pytest.raises(RecipeError, match=r"3: DistillationModifier: end_epoch: must be after epoch"):
        load_recipe(text)
