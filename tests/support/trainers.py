"""A transformers Trainer with a recipe on a tiny model, and a loop of one's own on the batches that it had."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState
from loop import ROWS
from tiny import make_bert, make_rows, make_tokenizer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from sparse_accel.data.gradient_samples import labels_in
from sparse_accel.integrations import RecipeMixin
from sparse_accel.models.teacher import Teacher
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun

BATCH = 8


def make_student(**settings: Any) -> nn.Module:
    """Half of its encoder is zero; without dropout, and with weights so wide that its gradients do not vanish."""
    return make_bert(sparsity=0.5, **{"dropout": 0.0, "initializer_range": 0.2, **settings})


def make_teacher() -> nn.Module:
    return make_bert(seed=1, dropout=0.0, initializer_range=0.2)


class RecipeTrainer(RecipeMixin, Trainer):
    """The two lines of a user; it also keeps the micro-batches of each step."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.steps: list[list[dict[str, Tensor]]] = []

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **options: Any) -> Tensor:
        if len(self.steps) <= self.state.global_step:
            self.steps += [[] for _ in range(self.state.global_step + 1 - len(self.steps))]
        self.steps[-1].append({name: value.clone() for name, value in inputs.items()})
        return super().training_step(model, inputs, *args, **options)


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    """TrainingArguments for float32 on a CPU, AdamW at a rate that moves weights far, a log line each step."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    ordinary = {
        "output_dir": str(folder),
        "use_cpu": True,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return TrainingArguments(**{**ordinary, **settings})


def make_trainer(
    folder: Path,
    recipe: str,
    *,
    kind: Any = RecipeTrainer,
    model: nn.Module | None = None,
    teacher: Any = None,
    rows: int = ROWS,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """A Trainer of `kind`; `options` are its other arguments, `settings` those of TrainingArguments."""
    model = make_student() if model is None else model
    given: dict[str, Any] = {
        "train_dataset": make_rows(rows),
        "eval_dataset": make_rows(9, seed=5),
        "data_collator": DataCollatorWithPadding(make_tokenizer()),
        "processing_class": make_tokenizer(),
        "recipe": recipe,
        "teacher": teacher,
    }
    if not issubclass(kind, RecipeMixin):
        del given["recipe"], given["teacher"]
    return kind(model, arguments(folder, **settings), **{**given, **(options or {})})


def losses_of(trainer: Any) -> list[float]:
    """The loss of each step, as logged."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@dataclass
class OwnLoop:
    """What a loop of one's own made of the same batches."""

    model: Any
    run: RecipeRun
    losses: list[float] = field(default_factory=list)


def own_loop(
    recipe: str,
    steps: list[list[dict[str, Tensor]]],
    *,
    model: nn.Module | None = None,
    teacher: nn.Module | None = None,
    rows: int = ROWS,
    clip: float = 1.0,
    rate: float = 1e-2,
) -> OwnLoop:
    """The loop of examples/own_loop.py, with clipping and micro-batches."""
    model = make_student() if model is None else copy.deepcopy(model)
    run = RecipeRun(load_recipe(recipe), teacher=None if teacher is None else Teacher(teacher))
    run.attach(model)
    decayed = [p for name, p in model.named_parameters() if p.ndim > 1 and p.requires_grad]
    others = [p for name, p in model.named_parameters() if p.ndim <= 1 and p.requires_grad]
    groups: Any = [{"params": decayed, "weight_decay": 0.0}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate)
    size = BATCH * len(steps[0])
    data: Any = make_rows(rows)
    loader = DataLoader(data, size, shuffle=True, collate_fn=_labelled)
    run.bind(None, model, optimizer, steps_per_epoch=-(-rows // size), gradient_loader=loader, rows_per_forward=BATCH)
    model.train()
    found = OwnLoop(model, run)
    for micro_batches in steps:
        run.step_begin()
        counted, total = sum(int(labels_in(batch)) for batch in micro_batches), 0.0
        for batch in micro_batches:
            outputs = model(**batch)
            loss = run.loss(outputs.loss, batch, outputs) * (labels_in(batch) / counted)
            loss.backward()
            total += float(loss.detach())
        run.grads_ready()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        run.step_end()
        found.losses.append(total)
    run.finish()
    return found


def _labelled(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    return dict(DataCollatorWithPadding(make_tokenizer())(rows))


def largest_difference(one: nn.Module, other: nn.Module) -> float:
    """Between the weights of two models, which are zero at the same places."""
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value == 0, second[name] == 0), name
    return max(float((value - second[name]).abs().max()) for name, value in first.items())
