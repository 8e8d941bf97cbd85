"""Whole recipes through the real loop: resumed from real checkpoints, and split over micro-batches."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from loop import ROWS, Session, assert_same, figures_of, make_accelerator, start
from mask_watch import Watch
from tiny import make_bert, make_rows, make_tokenizer

import sparse_accel
from sparse_accel.models.files import save_model
from sparse_accel.models.sparsity import sparsity_report
from sparse_accel.models.teacher import Teacher
from sparse_accel.nn.layers import masks, quantized_linears, quantizers
from sparse_accel.recipe import Recipe, load_recipe
from sparse_accel.run_folder.checkpoints import checkpoints_in, load_checkpoint, save_checkpoint
from sparse_accel.run_folder.trainer_state import History
from sparse_accel.zoo import recipe_path

TUTORIAL = "zoo:nlp/sentiment_analysis/obert-base/pytorch/huggingface/sst2/pruned90_quant-none"
STEPS = 3  # an epoch: 21 rows in global batches of 8, the last one of 5

# Masks tighten until epoch 1.7, quantization begins at 1, ranges freeze at 2.5; labels and teacher both count.
GRADUAL = """
modifiers:
  - !EpochRangeModifier {end_epoch: 3}
  - !LearningRateFunctionModifier {lr_func: cosine, init_lr: 0.01, final_lr: 0.001, end_epoch: 3}
  - !MagnitudePruningModifier
      start_epoch: 0.3
      end_epoch: 1.7
      init_sparsity: __FROM_PARAM__
      final_sparsity: 0.9
      update_frequency: 0.5
      params: ['re:bert.encoder.*(query|key|value|dense).weight']
  - !QuantizationModifier {start_epoch: 1, disable_quantization_observer_epoch: 2.5, quantize_linear_activations: 0}
  - !DistillationModifier {hardness: 0.5, temperature: 2.0}
  - !SetWeightDecayModifier {start_epoch: 0.5, weight_decay: 0.05}
  - !TrainableParamsModifier {params: ['re:bert.embeddings'], trainable: false, end_epoch: 1.4}
"""

# Several labels for a row, as the tutorial for GoEmotions trains them: first transfer, then quantization, each with its
# own rates, teacher and weight decay. Shortened: 3 epochs instead of 9.
EMOTIONS = """
num_epochs: 3
qat_start_epoch: 1
qat_warm_epoch: 1.7
transfer_final_lr: 0.001
qat_init_lr: 0.01
qat_final_lr: 0.0005

training_modifiers:
  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: eval(num_epochs)}
  - !LearningRateFunctionModifier
      start_epoch: 0.0
      end_epoch: eval(qat_start_epoch)
      lr_func: linear
      init_lr: 0.01
      final_lr: eval(transfer_final_lr)
  - !SetLearningRateModifier {start_epoch: eval(qat_start_epoch), learning_rate: eval(qat_final_lr)}
  - !LearningRateFunctionModifier
      start_epoch: eval(qat_start_epoch)
      end_epoch: eval(qat_warm_epoch)
      lr_func: linear
      init_lr: eval(qat_final_lr)
      final_lr: eval(qat_init_lr)
  - !LearningRateFunctionModifier
      start_epoch: eval(qat_warm_epoch)
      end_epoch: eval(num_epochs)
      lr_func: linear
      init_lr: eval(qat_init_lr)
      final_lr: eval(qat_final_lr)

quantization_modifiers:
  - !QuantizationModifier
      start_epoch: eval(qat_start_epoch)
      submodules: [bert.embeddings, bert.encoder, bert.pooler, classifier]
      disable_quantization_observer_epoch: 2
      freeze_bn_stats_epoch: 2
      quantize_embeddings: 1
      quantize_linear_activations: 0
      exclude_module_types: [LayerNorm, GELUActivation, Tanh]
      custom_quantizable_module_types: [GELUActivation]

distillation_modifiers:
  - !DistillationModifier
      {start_epoch: 0, end_epoch: eval(qat_start_epoch), hardness: 1.0, temperature: 2.0, distill_output_keys: [logits]}
  - !DistillationModifier
      {start_epoch: eval(qat_start_epoch), hardness: 0.5, temperature: 3.0, distill_output_keys: [logits]}

constant_modifiers:
  - !ConstantPruningModifier {start_epoch: 0.0, params: __ALL_PRUNABLE__}

regularization_modifiers:
  - !SetWeightDecayModifier {start_epoch: 0.0, end_epoch: eval(qat_start_epoch), weight_decay: 0.0}
  - !SetWeightDecayModifier {start_epoch: eval(qat_start_epoch), weight_decay: 0.02}
"""
LABELS = 4  # of EMOTIONS


@functools.cache
def tutorial(**arguments: Any) -> Recipe:
    settings = {"num_epochs": 3, "qat_start_epoch": 1.0, "observer_epoch": 2.0, "init_lr": 1e-2}
    return load_recipe(TUTORIAL, settings | arguments, recipe_path)


@functools.cache
def teacher() -> Teacher:
    taught = Teacher(make_bert(seed=9, dropout=0.0))
    taught.make_table(make_accelerator(), make_rows(ROWS), make_tokenizer(), batch_size=8)
    return taught


def begin(recipe: str, seed: int = 0, **options: Any) -> Session:
    model = make_bert(sparsity=0.9 if recipe == "tutorial" else 0.5, seed=seed)
    chosen = tutorial() if recipe == "tutorial" else load_recipe(GRADUAL)
    return start(chosen, model=model, teacher=teacher(), **options)


# --- the story --------------------------------------------------------------------------------------------------------


def test_the_tutorials_recipe_keeps_the_sparsity_quantizes_every_linear_and_distils() -> None:
    watch = Watch()
    session = begin("tutorial")
    before = masks(session.model)
    zeros = {name: session.model.get_parameter(name) == 0 for name in before}
    session.train(watch)
    assert all(torch.equal(~mask, zeros[name]) for name, mask in masks(session.model).items())
    report = sparsity_report(session.model)
    assert report["encoder_linear"]["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert report["model"]["sparsity"] < report["prunable"]["sparsity"] < report["encoder_linear"]["sparsity"]
    assert quantized_linears(session.model) == (14, 14)
    for entry in session.trace:
        assert entry["train/loss"] == entry["train/distillation_loss"] != entry["train/task_loss"]
    assert [entry["rates"][0] for entry in session.trace] == pytest.approx([0.01 * (1 - k / 9) for k in range(9)])
    assert [group["weight_decay"] for group in session.optimizer.param_groups] == [0.01, 0.01]


def test_pruning_goes_on_while_quantization_begins() -> None:
    watch = Watch()
    phases: list[str] = []

    def look(session: Session) -> None:
        watch(session)
        phases.append(session.run.phase())

    session = begin("gradual").train(look)
    dropped = [sum(int((~mask).sum()) for mask in found.values()) for found in watch.masks]
    steps = [step for step in range(1, 9) if dropped[step] > dropped[step - 1]]
    assert dropped == sorted(dropped) and dropped[0] == 0 and steps == [1, 3, 4, 6]  # epochs 0.3, 0.8, 1.3 and 1.7
    for mask in masks(session.model).values():
        assert int((~mask).sum()) == round(0.9 * mask.numel())
    assert [phase.count("QAT") for phase in phases] == [0] * 3 + [1] * 6
    assert ["pruning" in phase for phase in phases] == [False] + [True] * 5 + [False] * 3
    assert ["frozen" in phase for phase in phases] == [False] * 8 + [True]


@pytest.mark.parametrize(("line", "count"), [("[GELUActivation]", 36), ("[]", 34)])
def test_the_recipe_for_several_labels_quantizes_activations_and_changes_its_teaching(
    line: str, count: int, tmp_path: Path
) -> None:
    """`count` is SparseML's for this recipe, with and without the last key of its quantization."""
    recipe = EMOTIONS.replace(
        "custom_quantizable_module_types: [GELUActivation]", f"custom_quantizable_module_types: {line}"
    )
    head: dict[str, Any] = {"num_labels": LABELS, "problem_type": "multi_label_classification"}
    rows = make_rows(ROWS)
    rows = rows.remove_columns("labels").add_column(
        "labels", [[float(k % m == 0) for m in (1, 2, 3, 5)] for k in range(ROWS)]
    )
    teacher = Teacher(make_bert(seed=9, dropout=0.0, **head))
    teacher.make_table(make_accelerator(), rows, make_tokenizer(), batch_size=8)
    decays: list[float] = []

    def look(session: Session) -> None:
        decays.append(session.optimizer.param_groups[0]["weight_decay"])

    session = start(recipe, model=make_bert(sparsity=0.9, **head), rows=rows, teacher=teacher).train(look)
    model = session.model
    assert len(quantizers(model)) == count and all(it.ready and not it.observing for it in quantizers(model).values())
    assert sum("intermediate_act_fn" in name for name in quantizers(model)) == count - 34
    assert quantized_linears(model) == (14, 14)
    assert sparsity_report(model)["encoder_linear"]["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert decays == [0.0] * STEPS + [0.02] * 2 * STEPS
    warm = 2.1  # steps of the second schedule: epochs 1 to 1.7
    down = [0.01 + (0.001 - 0.01) * step / 3 for step in range(3)]
    up = [0.0005 + (0.01 - 0.0005) * step / warm for step in range(3)]
    last = [0.01 + (0.0005 - 0.01) * (step - warm) / (6 - warm) for step in range(3, 6)]
    assert [entry["rates"][0] for entry in session.trace] == pytest.approx([*down, *up, *last])
    for entry in session.trace[:STEPS]:
        assert entry["train/loss"] == entry["train/distillation_loss"]
    for entry in session.trace[STEPS:]:
        half = (entry["train/distillation_loss"] + entry["train/task_loss"]) / 2
        assert entry["train/loss"] == pytest.approx(half, rel=1e-5)

    save_model(tmp_path, session.accelerator, model, make_tokenizer())
    loaded = sparse_accel.load(tmp_path)
    ids = torch.tensor([[2, 6, 12, 3]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model.eval()(ids).logits) and loaded(ids).logits.shape == (1, LABELS)


# --- resuming from files ----------------------------------------------------------------------------------------------


@functools.cache
def whole(recipe: str, accumulation: int) -> Session:
    return begin(recipe, accumulation=accumulation).train()


def history_of(session: Session) -> History:
    history = History()
    for entry in session.trace:
        history.log.append(figures_of(entry))
    return history


# Inside an epoch; just before quantization begins; just before a new mask; after the freeze; after the last step.
@pytest.mark.parametrize(
    ("recipe", "accumulation", "step"),
    [
        *[("gradual", 1, step) for step in (1, 3, 4, 6, 8, 9)],
        ("gradual", 2, 5),
        ("gradual", 4, 2),
        ("tutorial", 1, 3),
        ("tutorial", 1, 5),
        ("tutorial", 4, 7),
    ],
)
def test_an_interrupted_run_ends_as_the_uninterrupted_one(
    recipe: str, accumulation: int, step: int, tmp_path: Path
) -> None:
    first = begin(recipe, accumulation=accumulation)

    def save() -> None:
        save_checkpoint(tmp_path, first.accelerator, first.model, make_tokenizer(), first.run, history_of(first))

    with pytest.raises(KeyboardInterrupt):
        first.train(interrupt_at=step, save=save)
    (checkpoint,) = checkpoints_in(tmp_path)
    assert checkpoint.name == f"checkpoint-{step}"

    second = begin(recipe, seed=5, accumulation=accumulation)
    history = History()
    load_checkpoint(checkpoint, second.accelerator, second.run, history)
    assert list(history.log) == [figures_of(entry) for entry in first.trace]
    second.train()
    expected = whole(recipe, accumulation)
    joined = [*first.trace, *second.trace]
    assert [figures_of(entry) for entry in joined] == [figures_of(entry) for entry in expected.trace]
    if not second.trace:  # these are written as a step begins, and none does
        for group, other in zip(second.optimizer.param_groups, expected.optimizer.param_groups, strict=True):
            group.update({name: other[name] for name in ("lr", "weight_decay")})
    assert_same(expected, second)


# --- micro-batches ----------------------------------------------------------------------------------------------------


def test_learning_rates_are_the_same_at_any_accumulation() -> None:
    traces = [[entry["rates"] for entry in whole("gradual", accumulation).trace] for accumulation in (1, 2, 4)]
    assert traces[0] == traces[1] == traces[2]


@pytest.mark.parametrize("accumulation", [2, 4])
def test_losses_and_weights_are_those_of_the_whole_batch(accumulation: int) -> None:
    """Without dropout, and without padding: each split has its own, and quantization ranges see it."""
    names = [name for name in make_rows(17).column_names if name != "labels"]  # a last batch of one row: fillers
    rows = make_rows(17).map(lambda row: {name: (row[name] * 16)[:16] for name in names})
    sessions = []
    for split in (1, accumulation):
        model = make_bert(sparsity=0.5, dropout=0.0)
        options: dict[str, Any] = {"model": model, "teacher": teacher(), "accumulation": split}
        sessions.append(start(GRADUAL, rows=rows, **options).train())
    one, other = sessions
    for first, second in zip(one.trace, other.trace, strict=True):
        for name in ("train/loss", "train/task_loss", "train/distillation_loss"):
            assert first[name] == pytest.approx(second[name], abs=1e-5)
    for name, parameter in one.model.named_parameters():
        near = (parameter - other.model.get_parameter(name)).abs() <= 1e-5
        # A sum in another order may round to the next integer: such a weight then moves the other way.
        assert near.float().mean() > 0.99, name


@pytest.mark.parametrize(("before", "after"), [(1, 2), (1, 4), (2, 1), (4, 2)])
def test_a_run_goes_on_with_another_accumulation(before: int, after: int, tmp_path: Path) -> None:
    """How a global batch is split is not part of a run's identity. Three micro-batches are no whole number of pairs."""
    recipe = "modifiers:\n  - !EpochRangeModifier {end_epoch: 2}\n  - !ConstantPruningModifier {}"

    def begin(accumulation: int) -> Session:
        return start(recipe, model=make_bert(sparsity=0.5, dropout=0.0), accumulation=accumulation)

    expected = begin(1).train()
    first = begin(before)

    def save() -> None:
        save_checkpoint(tmp_path, first.accelerator, first.model, make_tokenizer(), first.run, History())

    with pytest.raises(KeyboardInterrupt):
        first.train(interrupt_at=3, save=save)
    second = begin(after)
    load_checkpoint(tmp_path / "checkpoint-3", second.accelerator, second.run, History())
    second.train()
    losses = [entry["train/loss"] for entry in [*first.trace, *second.trace]]
    assert losses == pytest.approx([entry["train/loss"] for entry in expected.trace], abs=1e-5)
    for name, parameter in expected.model.named_parameters():
        torch.testing.assert_close(parameter, second.model.get_parameter(name), rtol=0, atol=1e-5)


def test_quantized_training_differs_little_between_accumulations() -> None:
    """The first step of all rounds to what its first micro-batch showed; from then on ranges are the same."""
    sessions = []
    for split in (1, 2):
        model = make_bert(dropout=0.0)
        sessions.append(
            start(
                "modifiers:\n  - !EpochRangeModifier {end_epoch: 2}\n  - !QuantizationModifier {}",
                model=model,
                accumulation=split,
                rate=1e-4,
            ).train()
        )
    for first, second in zip(sessions[0].trace, sessions[1].trace, strict=True):
        assert first["train/loss"] == pytest.approx(second["train/loss"], abs=5e-3)
