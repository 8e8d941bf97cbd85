"""Where a plain training step (no log, no save) makes the CPU wait for the device: each such place costs the time in
which the CPU could have run ahead.

On a GPU, PyTorch says so itself (torch.cuda.set_sync_debug_mode). Without one, the step is run on the device `meta`,
whose tensors have no numbers: whatever would read one back, or copy from the CPU and wait, is found by that.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from tiny import make_bert, make_encoder_sparse
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertForTokenClassification

from sparse_accel.distributed.launch import launch_options
from sparse_accel.models.teacher import Teacher
from sparse_accel.nn.losses import IGNORED
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun
from sparse_accel.tasks.units import starts_of
from sparse_accel.training.averages import GlobalBatch
from sparse_accel.training.loop import StepOptions, train_step
from sparse_accel.training.optimizer import make_optimizer, parameter_groups

# One phase an epoch, of four steps each.
RECIPE = """
modifiers:
  - !EpochRangeModifier {end_epoch: 4}
  - !LearningRateFunctionModifier {lr_func: linear, init_lr: 0.001, final_lr: 0.0001, end_epoch: 4}
  - !ConstantPruningModifier {start_epoch: 0, params: __ALL_PRUNABLE__}
  - !DistillationModifier {start_epoch: 1, hardness: 0.5}
  - !QuantizationModifier {start_epoch: 2, disable_quantization_observer_epoch: 3}
"""
STEPS_PER_EPOCH = 4
PHASES = ("pruned", "pruned, distilled", "pruned, distilled, QAT", "pruned, distilled, QAT, ranges frozen")
TASKS = ("text", "token")
# Where others are known to wait, in any training loop: a file, in which precisions, and why.
KNOWN = (
    (
        "transformers/masking_utils.py",
        ("no", "bf16", "fp16"),
        "transformers asks whether the attention mask masks anything",
    ),
    ("accelerate/optimizer.py", ("fp16",), "the scaler asks whether a gradient overflowed"),
)
ROWS, TOKENS = 8, 12
# Frames that name no place: torch's, this file's, and those that pass a warning on.
TORCH = Path(torch.__file__).parent
PASSED_BY = ("waits.py", "warnings.py", "_py_warnings.py")


@dataclass
class Training:
    """A tiny model with everything that a step needs."""

    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    run: RecipeRun
    batch: GlobalBatch

    def step(self) -> None:
        train_step(self.accelerator, self.model, self.optimizer, self.run, self.batch, StepOptions(seed=7))


def make_training(device: str, task: str, precision: str = "no", *, padded: bool = False) -> Training:
    """Returns a training run at its start; on the device `meta` at its first step that can be taken there.

    Args:
        device: cuda, cpu or meta.
        task: text or token classification.
        precision: no, bf16 or fp16.
        padded: whether the batch has an attention mask.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(
        cpu=device != "cuda", device_placement=False, mixed_precision=precision, kwargs_handlers=launch_options()
    )
    model = _model(task)
    inputs = _batch(task, padded)
    units = (inputs["labels"] != IGNORED).reshape(ROWS, -1).sum(dim=1)
    teacher = Teacher(_model(task))
    teacher.table = torch.randn(int(units.sum()), 2).to(device)
    teacher._starts = starts_of(units.numpy()).to(device)
    run = RecipeRun(load_recipe(RECIPE), teacher=teacher)
    run.attach(model)
    model.to(device).train()
    optimizer: Any = torch.optim.AdamW(parameter_groups(model, 0.01), lr=1e-3, fused=device == "cuda")
    model, optimizer = accelerator.prepare(model, optimizer)
    run.bind(accelerator, model, optimizer, steps_per_epoch=STEPS_PER_EPOCH)
    batch = GlobalBatch([{name: value.to(device) for name, value in inputs.items()}], ROWS, int(units.sum()))
    return Training(accelerator, model, optimizer, run, batch)


def _model(task: str) -> nn.Module:
    model: Any = make_bert()
    if task == "token":
        model = BertForTokenClassification(model.config)
    make_encoder_sparse(model, 0.5)
    return model


def _batch(task: str, padded: bool) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    batch = {
        "input_ids": torch.randint(5, 30, (ROWS, TOKENS), generator=draw),
        "labels": torch.randint(2, (ROWS,) if task == "text" else (ROWS, TOKENS), generator=draw),
        "row_id": torch.arange(ROWS),
    }
    if task == "token":
        batch["labels"][:, ::3] = IGNORED
    if padded:
        batch["attention_mask"] = (torch.arange(TOKENS) < torch.arange(5, 5 + ROWS)[:, None]).long()
    return batch


def waits_by_phase(device: str, task: str, precision: str = "no", *, padded: bool = False) -> dict[str, list[str]]:
    """Returns, for each phase of the recipe, the places at which one of its plain steps waits for the device."""
    if device == "meta":
        with _quantization_without_numbers():
            return {PHASES[epoch]: _waits_without_numbers(task, epoch, padded) for epoch in range(len(PHASES))}
    training, found = make_training(device, task, precision, padded=padded), {}
    while training.run.progress.step < STEPS_PER_EPOCH * len(PHASES):
        epoch, step = divmod(training.run.progress.step, STEPS_PER_EPOCH)
        with waits_of_cuda() as places:
            training.step()
        if step == 2:  # masks are taken, and ranges begin, in the first step of an epoch: no plain one
            assert training.run.phase() == PHASES[epoch]
            found[PHASES[epoch]] = places
    return found


def reason(place: str, precision: str) -> str:
    """Why a place is known to wait, in this precision; empty for one that is not."""
    return next((why for file, where, why in KNOWN if file in place and precision in where), "")


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@contextmanager
def waits_of_cuda() -> Iterator[list[str]]:
    """Gives the places at which the block waits for the GPU. All of them: the mode `error` would end at the first."""
    places: list[str] = []

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "synchronizing CUDA operation" in str(message):
            places.append(_place(traceback.extract_stack()[:-1]))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")


def _place(stack: Any) -> str:
    """The innermost line that is neither torch's nor this file's: `sparse_accel/training/loop.py:318 train_step`."""
    for frame in reversed(stack):
        path = Path(frame.filename)
        if TORCH not in path.parents and path.name not in PASSED_BY and "<" not in frame.filename:
            return f"{'/'.join(path.parts[-3:])}:{frame.lineno} {frame.name}"
    return "unknown"


# --- without a GPU ----------------------------------------------------------------------------------------------------


def _waits_without_numbers(task: str, epoch: int, padded: bool) -> list[str]:
    training = make_training("meta", task, padded=padded)
    state = training.run.state_dict()
    ready = {name: torch.ones_like(value, device="cpu") for name, value in state.items() if name.endswith(":ready")}
    if "QAT" not in PHASES[epoch]:
        ready = {name: torch.zeros_like(value) for name, value in ready.items()}
    step = torch.tensor(epoch * STEPS_PER_EPOCH + 2)
    training.run.load_state_dict({**state, **ready, "step": step})  # as a resumed run begins
    places: list[str] = []
    try:
        with _Copies(places):
            training.step()
    except (NotImplementedError, RuntimeError) as error:
        places.append(f"{_place(traceback.extract_tb(error.__traceback__))}: {str(error).splitlines()[0][:60]}")
        return places  # there is no going on without that number
    assert training.run.phase() == PHASES[epoch]
    return places


class _Copies(TorchDispatchMode):
    """Notes copies from the CPU that would wait: reading back ends in an error of its own."""

    def __init__(self, places: list[str]) -> None:
        super().__init__()
        self.places = places

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[0] if function is torch.ops.aten._to_copy.default else args[1]
            waits = not (kwargs or {}).get("non_blocking", False) and True not in args[2:]
            if waits and source.device.type == "cpu" and found.device.type == "meta":
                self.places.append(_place(traceback.extract_stack()[:-1]))
        return found


@contextmanager
def _quantization_without_numbers() -> Iterator[None]:
    """PyTorch's fake quantization of a whole tensor has no form for `meta`; the one for GPUs reads scale and zero point
    where they are."""

    def shapes(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)

    library = torch.library.Library("aten", "IMPL", "Meta")
    library.impl("_fake_quantize_per_tensor_affine_cachemask_tensor_qparams", shapes)
    try:
        yield
    finally:
        library._destroy()


# --- the fp16 scaler --------------------------------------------------------------------------------------------------


def step_after_overflow(device: str) -> tuple[int, float, bool]:
    """Takes one step at a loss scale from which gradients overflow; numbers stay float32, which hold scaled gradients.

    Returns:
        steps that the recipe's clock counts, by how much the scale was lowered, and whether weights moved.
    """
    training = make_training(device, "text")
    scale = 2.0**126
    scaler: Any = torch.amp.GradScaler(device, init_scale=scale, growth_interval=1000)
    accelerator = training.accelerator
    accelerator.scaler, accelerator.native_amp = scaler, True
    accelerator.state._mixed_precision = "fp16"
    wrapped = _as_the_script_makes_it(training)
    wrapped.scaler = scaler
    wrapped.__setstate__(wrapped.__getstate__())
    with torch.no_grad():
        training.model.get_parameter("classifier.weight").mul_(1000)  # else gradients would fit at any scale
    before = training.model.get_parameter("classifier.weight").detach().clone()
    replace(training, optimizer=wrapped).step()
    moved = not torch.equal(before, training.model.get_parameter("classifier.weight").detach())
    return training.run.progress.step, scale / scaler.get_scale(), moved


def _as_the_script_makes_it(training: Training) -> Any:
    """The optimizer of a run of the script: what the scaler does with a step depends on its kind."""
    flags: Any = SimpleNamespace(
        weight_decay=0.0, learning_rate=1e-3, adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8
    )
    training.accelerator._optimizers.clear()
    wrapped = training.accelerator.prepare(make_optimizer(training.model, flags, training.accelerator))
    training.run.bind(training.accelerator, training.model, wrapped, steps_per_epoch=STEPS_PER_EPOCH)
    return wrapped
