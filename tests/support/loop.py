"""The real loop on a tiny model: real sampler, loader, collator, Accelerator and recipe; everything it did is kept."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from datasets import Dataset
from tiny import make_bert, make_rows, make_tokenizer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sparse_accel.data.batches import Collator, GlobalBatchSampler, Rows, make_loader
from sparse_accel.distributed.launch import launch_options
from sparse_accel.distributed.weights import plain_model
from sparse_accel.models.teacher import Teacher
from sparse_accel.nn.blocks import with_skipped
from sparse_accel.nn.layers import quantizers
from sparse_accel.progress import Progress
from sparse_accel.recipe import Recipe, load_recipe
from sparse_accel.recipe_run import RecipeRun
from sparse_accel.training.evaluation import predict
from sparse_accel.training.loop import StepOptions, train_step, training_steps
from sparse_accel.training.optimizer import parameter_groups
from sparse_accel.training.schedule import Schedule

GLOBAL_BATCH = 8
ROWS = 21  # three steps an epoch, the last one of 5 rows


@dataclass
class Session:
    """A training run: what `scripts/text_classification.py` puts together.

    Attributes:
        trace: one dict a step: what was logged, and `rates`, those of the parameter groups.
        snapshots: state after each step, where they were asked for.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    loader: Any
    sampler: GlobalBatchSampler
    run: RecipeRun
    total_steps: int
    trace: list[dict[str, Any]] = field(default_factory=list)
    snapshots: dict[int, dict[str, Any]] = field(default_factory=dict)

    def train(
        self,
        watch: Callable[[Session], None] | None = None,
        *,
        interrupt_at: int | None = None,
        keep_snapshots: bool = False,
        **options: Any,
    ) -> Session:
        """Trains to the end, or to Ctrl-C after step `interrupt_at`. `watch` is called after every step."""

        def log(figures: dict[str, float]) -> None:
            rates = [float(group["lr"]) for group in self.optimizer.param_groups]
            self.trace.append({**figures, "rates": rates, "step": self.run.progress.step})
            if watch is not None:
                watch(self)
            if self.run.progress.step == interrupt_at:
                signal.raise_signal(signal.SIGINT)

        def save() -> None:
            self.snapshots[self.run.progress.step] = self.state()

        schedule = Schedule(self.total_steps, log_every=1, save_every=int(keep_snapshots), evaluate_every=1)
        run_loop(self, schedule, **{"seed": 7, "log": log, "save": save, **options})
        return self

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        parts: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer, "run": self.run}
        with with_skipped(plain_model(self.accelerator, self.model)):
            return {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}

    def load(self, state: dict[str, Any]) -> Session:
        state = copy.deepcopy(state)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.run.load_state_dict(state["run"])
        return self

    def outputs(self) -> Tensor:
        """Logits of the model as it stands, in eval mode."""
        rows = make_rows(9, seed=5)
        sampler = GlobalBatchSampler([len(ids) for ids in rows["input_ids"]], GLOBAL_BATCH, 1, seed=None)
        loader = self.accelerator.prepare_data_loader(make_loader(rows, sampler, Collator(make_tokenizer())))
        logits, _ = predict(self.accelerator, self.model, loader, self.run.task, rows)
        return torch.from_numpy(logits)


def run_loop(
    session: Session,
    schedule: Schedule,
    *,
    log: Callable[[dict[str, float]], None] = lambda _: None,
    evaluate: Callable[[], None] = lambda: None,
    save: Callable[[], None] = lambda: None,
    **options: Any,
) -> None:
    """The loop of scripts/text_classification.py, with what is due as functions. Options are those of a step."""
    step_options = StepOptions(**{"seed": 7, **options})
    session.model.train()
    with training_steps(session.accelerator, session.run, session.loader, session.sampler, schedule) as steps:
        for step, batch in steps:
            accelerator, model, optimizer = session.accelerator, session.model, session.optimizer
            steps.add(train_step(accelerator, model, optimizer, session.run, batch, step_options), batch)
            if step == schedule.total_steps:
                session.run.finish()
            if steps.log_due(step):
                log(steps.figures())
            if steps.evaluate_due(step):
                evaluate()
            if steps.save_due(step):
                save()


def make_accelerator(accumulation: int = 1) -> Accelerator:
    plugin = GradientAccumulationPlugin(num_steps=accumulation, sync_with_dataloader=False)
    return Accelerator(cpu=True, gradient_accumulation_plugin=plugin, kwargs_handlers=launch_options())


def start(
    recipe: str | Recipe | None,
    *,
    model: nn.Module | None = None,
    rows: Dataset | None = None,
    accumulation: int = 1,
    teacher: Teacher | None = None,
    total_steps: int | None = None,
    rate: float = 1e-2,
) -> Session:
    """Everything up to the first step. A recipe without a learning rate trains at `rate`, which moves weights far."""
    model = make_bert(sparsity=0.5) if model is None else model
    rows = make_rows(ROWS) if rows is None else rows
    accelerator = make_accelerator(accumulation)
    sampler = GlobalBatchSampler(
        [len(ids) for ids in rows["input_ids"]], GLOBAL_BATCH // accumulation, accumulation, seed=3
    )
    loader = make_loader(rows, sampler, Collator(make_tokenizer()))

    def lr_schedule(progress: Progress) -> float:
        return rate

    recipe = load_recipe(recipe) if isinstance(recipe, str) else recipe
    run = RecipeRun(recipe, teacher=teacher, lr_schedule=lr_schedule)
    run.attach(model)
    groups: Any = parameter_groups(model, weight_decay=0.1)
    optimizer: Any = torch.optim.AdamW(groups, lr=rate)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    run.bind(
        accelerator,
        model,
        optimizer,
        steps_per_epoch=sampler.steps,
        gradient_loader=gradient_loader(rows),
        rows_per_forward=GLOBAL_BATCH // accumulation,
    )
    total = total_steps or run.max_epochs * sampler.steps
    return Session(accelerator, model, optimizer, loader, sampler, run, total)


def gradient_loader(rows: Any) -> Any:
    """What `training.loaders.gradient_loader` makes of tokenized rows."""
    return DataLoader(Rows(rows), GLOBAL_BATCH, shuffle=True, collate_fn=Collator(make_tokenizer()))  # type: ignore[arg-type]


def with_scaler(session: Session, scale: float) -> Session:
    """Gives a session the loss scaling of fp16; numbers stay float32, which hold the scaled gradients exactly."""
    scaler: Any = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    session.accelerator.scaler = scaler
    session.accelerator.native_amp = True
    session.accelerator.state._mixed_precision = "fp16"
    optimizer: Any = session.optimizer
    optimizer.scaler = scaler
    optimizer.__setstate__(optimizer.__getstate__())
    return session


def assert_same(one: Session, other: Session) -> None:
    """Bit for bit: weights, moments, masks, ranges, scales, phases, outputs, and the traces where they overlap."""
    compare(one.state(), other.state(), "state")
    first, second = ({name: q for name, q in quantizers(s.model).items()} for s in (one, other))
    assert first.keys() == second.keys()
    for name, quantizer in first.items():
        for buffer, value in quantizer.named_buffers():
            assert torch.equal(value, getattr(second[name], buffer)), f"{name}.{buffer}"
        assert (quantizer.enabled, quantizer.ready) == (second[name].enabled, second[name].ready), name
    assert torch.equal(one.outputs(), other.outputs())
    traces = [{entry["step"]: figures_of(entry) for entry in session.trace} for session in (one, other)]
    common = traces[0].keys() & traces[1].keys()
    assert [traces[0][step] for step in sorted(common)] == [traces[1][step] for step in sorted(common)]


def figures_of(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if not name.endswith(("per_second", "_gb"))}


def compare(one: Any, other: Any, path: str) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key, value in one.items():
            compare(value, other[key], f"{path}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), path
        for number, (value, another) in enumerate(zip(one, other, strict=True)):
            compare(value, another, f"{path}[{number}]")
    else:
        assert one == other, path
