"""PerLayerDistillationModifier: SparseML's losses and gradients, which layers meet, and what is refused."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from places import golden
from tiny import make_albert, make_bert, make_rows, make_tokenizer
from torch import Tensor, nn

from sparse_accel.data.batches import Collator
from sparse_accel.errors import UsageError
from sparse_accel.models.teacher import Teacher
from sparse_accel.modifiers.layer_distillation import LayerDistillation
from sparse_accel.recipe import RecipeError, load_recipe
from sparse_accel.recipe_run import RecipeRun

GOLDEN: dict[str, Any] = golden("per_layer")
X, LABELS = torch.tensor(GOLDEN["x"]), torch.tensor(GOLDEN["labels"])
MEASURED = [case for case in GOLDEN["cases"] if "error" not in case]
TERM = "per_layer_distillation_loss"


class Net(nn.Module):
    """The network of the golden figures: logits = l2(tanh(l1(x)))."""

    dummy_inputs: ClassVar[dict[str, Tensor]] = {"x": torch.zeros(3, 6)}

    def __init__(self, width: int, weights: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.l1, self.l2 = nn.Linear(6, width), nn.Linear(width, 3)
        if weights is not None:
            self.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.l2(torch.tanh(self.l1(x)))}


def in_yaml(keys: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {str(value).lower()}" for key, value in keys.items()) + "}"


def started(
    keys: str, student: nn.Module, teacher: nn.Module, *, rate: float = 0.1, steps_per_epoch: int = 1
) -> RecipeRun:
    """A run of one PerLayerDistillationModifier, at its first step."""
    recipe = load_recipe(
        f"modifiers:\n  - !EpochRangeModifier {{end_epoch: 4}}\n  - !PerLayerDistillationModifier {keys}"
    )
    run = RecipeRun(recipe, teacher=Teacher(teacher))
    run.attach(student)
    run.bind(None, student, torch.optim.SGD(student.parameters(), lr=rate), steps_per_epoch=steps_per_epoch)
    run.step_begin()
    return run


def modifier_of(run: RecipeRun) -> LayerDistillation:
    (found,) = [modifier for modifier in run.modifiers if isinstance(modifier, LayerDistillation)]
    return found


# --- SparseML's figures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", MEASURED, ids=lambda case: f"{case['teacher']}-{in_yaml(case['keys'])}")
def test_golden_loss_and_gradients(case: dict[str, Any]) -> None:
    student, teacher = Net(4, GOLDEN["student"]), Net(int(case["teacher"][-1]), GOLDEN[case["teacher"]])
    run = started(in_yaml(case["keys"]), student, teacher)
    modifier = modifier_of(run)
    assert [[pair.student.module, pair.teacher.module] for pair in modifier._pairs] == case["layers"]
    projected = case["keys"].get("project_features", True)
    assert bool(modifier._projections.weights) == projected
    for name, weight in modifier._projections.weights.items():
        weight.data = torch.tensor(case["projection"][name])
    outputs = student(X)
    terms = run.losses(F.cross_entropy(outputs["logits"], LABELS, reduction="none"), {"x": X}, outputs)
    assert terms[TERM].shape == (len(X),)
    assert float(terms["task_loss"].mean()) == pytest.approx(case["task_loss"], rel=1e-6)
    assert float(terms[TERM].mean()) == pytest.approx(case["distillation_loss"], rel=1e-6)
    assert float(terms["loss"].detach().mean()) == pytest.approx(case["total_loss"], rel=1e-6)
    terms["loss"].mean().backward()
    for name, weight in student.named_parameters():
        torch.testing.assert_close(weight.grad, torch.tensor(case["grads"][name]), rtol=1e-5, atol=1e-6)
    for name, weight in modifier._projections.weights.items():
        torch.testing.assert_close(weight.grad, torch.tensor(case["projection_grads"][name]), rtol=1e-5, atol=1e-6)


def test_golden_mean_loss_as_well_as_one_a_row() -> None:
    case = MEASURED[2]
    student = Net(4, GOLDEN["student"])
    run = started(in_yaml(case["keys"]), student, Net(4, GOLDEN["teacher_width4"]))
    outputs = student(X)
    loss = run.loss(F.cross_entropy(outputs["logits"], LABELS), {"x": X}, outputs)
    assert loss.shape == () and float(loss) == pytest.approx(case["total_loss"], rel=1e-6)


@pytest.mark.parametrize("window", GOLDEN["windows"], ids=lambda window: in_yaml(window["keys"]))
def test_the_window_is_sparsemls_without_its_last_step(window: dict[str, Any]) -> None:
    """SparseML still distils in the step at end_epoch; here, as with all modifiers, that step is the first without."""
    student = Net(4, GOLDEN["student"])
    run = started(in_yaml(window["keys"]), student, Net(5, GOLDEN["teacher_width5"]), steps_per_epoch=2)
    distilled = []
    for epoch in window["epochs"]:
        run.step_begin()
        outputs = student(X)
        terms = run.losses(F.cross_entropy(outputs["logits"], LABELS), {"x": X}, outputs)
        assert (TERM in terms) == (run.phase() != "")
        distilled += [epoch] if TERM in terms else []
        run.step_end()
    assert distilled == [epoch for epoch in window["distilled_epochs"] if epoch != window["keys"].get("end_epoch")]


BERTS = [case for case in GOLDEN["bert"] if "layers" in case]


@pytest.mark.parametrize("case", BERTS, ids=lambda case: in_yaml(case["keys"]))
def test_golden_layers_of_a_bert(case: dict[str, Any]) -> None:
    student, teacher = (
        make_bert(num_hidden_layers=depth, hidden_size=width, intermediate_size=2 * width)
        for depth, width in (case["student"], case["teacher"])
    )
    modifier = modifier_of(started(in_yaml(case["keys"]), student, teacher))
    assert [pair.student.module for pair in modifier._pairs] == case["layers"]
    assert [pair.teacher.module for pair in modifier._pairs] == case["teacher_layers"]
    shapes = {name: list(weight.shape) for name, weight in modifier._projections.weights.items()}
    assert shapes == case["projections"]


# --- beyond the figures -----------------------------------------------------------------------------------------------


def batch_of(*rows: int) -> dict[str, Tensor]:
    return Collator(make_tokenizer())({**make_rows(12).remove_columns("labels")[list(rows)], "row_id": list(rows)})


def loss_of(run: RecipeRun, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    outputs = model(**{name: value for name, value in batch.items() if name != "row_id"})
    return run.losses(torch.zeros(len(batch["row_id"])), batch, outputs)[TERM]


def test_padding_does_not_count() -> None:
    """The loss of a row is the same alone and next to a longer one."""
    student = make_bert(dropout=0.0).train()
    run = started("{project_features: false, normalize: false}", student, make_bert(seed=1))
    alone = [loss_of(run, student, batch_of(row)) for row in (0, 3, 5)]
    lengths = {int(batch_of(row)["attention_mask"].sum()) for row in (0, 3, 5)}
    assert len(lengths) > 1
    torch.testing.assert_close(loss_of(run, student, batch_of(0, 3, 5)), torch.cat(alone))


def test_a_layer_that_returns_a_tuple_gives_its_first_element() -> None:
    """SparseML fails on these. Attention of a BERT returns its hidden states and its probabilities."""
    student, teacher = make_bert(dropout=0.0).train(), make_bert(seed=1)
    name = "bert.encoder.layer.1.attention"
    run = started(f"{{student_layer_names: {name}, normalize: false, project_features: false}}", student, teacher)
    batch, outputs = batch_of(1), []
    for model in (student, teacher):
        model.get_submodule(name).register_forward_hook(lambda module, inputs, output: outputs.append(output))
    found = loss_of(run, student, batch)
    assert [type(output) for output in outputs] == [tuple, tuple]
    torch.testing.assert_close(found[0], (outputs[0][0] - outputs[1][0]).square().mean())


def test_a_teacher_that_is_the_model_itself() -> None:
    """Without projections there is nothing to learn at first; with them there is."""
    student = make_bert(dropout=0.0).train()
    teacher = copy.deepcopy(student)
    for keys, is_zero in (("{project_features: false}", True), ("{}", False)):
        run = started(keys, student, copy.deepcopy(teacher))
        assert bool((loss_of(run, student, batch_of(0, 1)) == 0).all()) == is_zero


def test_a_layer_that_is_used_several_times_is_compared_each_time() -> None:
    student: Any = make_albert().train()
    modifier = modifier_of(started("{student_layer_names: ['re:.*query']}", student, make_albert()))
    assert [pair.student.call for pair in modifier._pairs] == [0, 1]
    deeper: Any = make_albert()
    deeper.config.num_hidden_layers = 3
    with pytest.raises(UsageError, match=r"runs 2 times in a forward of the model, .* 3 times in one of the teacher"):
        started("{student_layer_names: ['re:.*query']}", make_albert(), deeper)


def test_the_logits_of_a_teacher_are_in_the_order_of_the_students_labels() -> None:
    student = make_bert(dropout=0.0, num_labels=3).train()
    turned: Any = copy.deepcopy(student)
    order = [2, 0, 1]
    for parameter in turned.classifier.parameters():
        parameter.data = parameter.data[torch.tensor(order).argsort()]
    run = RecipeRun(
        load_recipe(
            "modifiers:\n  - !PerLayerDistillationModifier {student_layer_names: classifier, project_features: false}"
        ),
        teacher=Teacher(turned, order=order),
    )
    run.attach(student)
    run.bind(None, student, torch.optim.SGD(student.parameters(), lr=0.1), steps_per_epoch=1)
    run.step_begin()
    assert float(loss_of(run, student, batch_of(0, 1)).detach().max()) < 1e-10


class Images(nn.Module):
    """Two convolutions."""

    dummy_inputs: ClassVar[dict[str, Tensor]] = {"x": torch.zeros(2, 3, 5, 5)}

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, channels, 3), nn.Conv2d(channels, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.second(self.first(x)).mean(dim=(2, 3))}


def test_channels_of_convolutions_are_projected() -> None:
    """As by a convolution of size 1 x 1."""
    student, teacher, x = Images(6), Images(7), torch.randn(4, 3, 5, 5)
    run = started("{}", student, teacher)
    weights = modifier_of(run)._projections.weights
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == {"first": (7, 6), "second": (4, 4)}
    found = run.losses(torch.zeros(4), {"x": x}, student(x))[TERM]
    expected = torch.zeros(4)
    one, other = x, x
    for name in ("first", "second"):
        one, other = student.get_submodule(name)(one), teacher.get_submodule(name)(other)
        projected = F.conv2d(one, weights[name][:, :, None, None])
        expected = expected + (projected - other).square().mean(dim=(1, 2, 3)) / other.square().mean()
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)


def test_two_at_a_time_compare_different_layers() -> None:
    text = (
        "modifiers:\n  - !PerLayerDistillationModifier {student_layer_names: ['re:.*query'], gain: 1}\n"
        "  - !PerLayerDistillationModifier {student_layer_names: ['re:.*key'], gain: 2}"
    )
    student = make_bert().train()
    run = RecipeRun(load_recipe(text), teacher=Teacher(make_bert(seed=1)))
    run.attach(student)
    run.bind(None, student, torch.optim.SGD(student.parameters(), lr=0.1), steps_per_epoch=1)
    run.step_begin()
    batch = batch_of(0, 1)
    outputs = student(**{name: value for name, value in batch.items() if name != "row_id"})
    terms = run.losses(torch.zeros(2), batch, outputs)
    assert terms.keys() == {"task_loss", TERM, f"{TERM}_2", "loss"}
    torch.testing.assert_close(terms["loss"].detach(), terms[TERM] + 2 * terms[f"{TERM}_2"])
    shared = RecipeRun(load_recipe(text.replace("key", "(query|key)")), teacher=Teacher(make_bert(seed=1)))
    with pytest.raises(
        UsageError, match=r"two modifiers compare bert.encoder.layer.0.attention.self.query of the model"
    ):
        shared.attach(make_bert())


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("{gain: 0}", "gain: expected a number above 0, got 0"),
        ("{epsilon: 0}", "epsilon: expected a number above 0, got 0"),
        ("{student_layer_names: []}", "student_layer_names: must not be empty"),
        ("{student_layer_names: [l1, l1]}", "names l1 twice"),
        ("{student_layer_names: ['re:(']}", "student_layer_names: 're:[(]' is not a regular expression"),
        ("{teacher_layer_names: ['']}", "teacher_layer_names: contains an empty name"),
        (
            "{student_layer_names: [l1], teacher_layer_names: [l1, l2]}",
            "teacher_layer_names: names 2 layers, student_layer_names 1",
        ),
        ("{student_layers: [l1]}", r"no key 'student_layers'\. Did you mean"),
    ],
)
def test_refused_when_read(keys: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(f"modifiers:\n  - !PerLayerDistillationModifier {keys}")


def test_all_layers_twice_at_a_time_is_refused_when_read() -> None:
    text = "modifiers:\n  - !PerLayerDistillationModifier {}\n  - !PerLayerDistillationModifier {gain: 2}"
    with pytest.raises(RecipeError, match=r"another modifier of this kind acts at the same time.*line 3"):
        load_recipe(text)


def test_update_frequency_has_no_effect_and_that_is_said() -> None:
    recipe = load_recipe("modifiers:\n  - !PerLayerDistillationModifier {update_frequency: 0.5}")
    assert "update_frequency has no effect" in recipe.notes[0]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("{student_layer_names: [l1, nope], teacher_layer_names: [l1, l2]}", "'nope' matches no layer of the model"),
        (
            "{student_layer_names: [l1], teacher_layer_names: [l3]}",
            r"teacher_layer_names: 'l3' matches no layer of the t",
        ),
        ("{student_layer_names: ['re:l[12]'], teacher_layer_names: [l1]}", "has 2 layers to compare, the teacher 1"),
        ("{student_layer_names: ['re:l1', l1], teacher_layer_names: [l1, l2]}", "matches l1 twice"),
        ("{project_features: false}", "l1 of the model has width 4, and l1 of the teacher 5"),
    ],
)
def test_refused_when_attached(keys: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        started(keys, Net(4), Net(5))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("{}", "the model has 14 layers to compare, the teacher 26.*HiddenStateDistillationModifier"),
        ("{student_layer_names: [bert]}", "bert returns a BaseModelOutputWith.*, not a tensor"),
        (
            "{student_layer_names: [bert.embeddings.position_embeddings]}",
            "does not return a vector for each row or token",
        ),
        (
            "{student_layer_names: [bert.pooler], teacher_layer_names: [bert.encoder.layer.0]}",
            "bert.pooler of the model and bert.encoder.layer.0 of the teacher cannot be compared",
        ),
        ("{student_layer_names: [bert.encoder.layer]}", "does not run in a forward"),
    ],
)
def test_a_bert_and_a_deeper_one(keys: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        started(keys, make_bert(), make_bert(num_hidden_layers=4))


def test_a_model_that_does_not_say_its_inputs() -> None:
    with pytest.raises(UsageError, match="the layers of Linear cannot be compared: it has no `dummy_inputs`"):
        started("{}", nn.Linear(1, 1), nn.Linear(1, 1))


def test_needs_gradients_only_with_projections() -> None:
    recipes = [
        load_recipe(f"modifiers:\n  - !PerLayerDistillationModifier {keys}")
        for keys in ("{}", "{project_features: false}")
    ]
    assert [recipe.modifiers[0].needs_gradients for recipe in recipes] == [True, False]
