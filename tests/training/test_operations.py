"""Operations per step, counted by PyTorch's dispatcher: what a recipe adds to a plain loop, once and per Linear.

A timing depends on the machine and its load; a count does not. An operation costs some microseconds of Python, and on a
GPU a kernel launch; a step of MiniLM has 38 Linears.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tiny import make_bert
from torch.utils._python_dispatch import TorchDispatchMode

from sparse_accel.models.teacher import Teacher
from sparse_accel.nn import cpu_kernels
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun
from sparse_accel.training.averages import Averages, GlobalBatch
from sparse_accel.training.loop import StepOptions, train_step
from sparse_accel.training.optimizer import parameter_groups

RATE = """
modifiers:
  - !EpochRangeModifier {end_epoch: 2}
  - !LearningRateFunctionModifier {lr_func: linear, init_lr: 0.001, final_lr: 0, end_epoch: 2}
  - !ConstantPruningModifier {params: __ALL_PRUNABLE__}
"""
DISTILLED = f"{RATE}  - !DistillationModifier {{hardness: 1.0, temperature: 2.0, distill_output_keys: [logits]}}\n"
QUANTIZER = "  - !QuantizationModifier {start_epoch: 0, quantize_embeddings: 1, quantize_linear_activations: 0"
LEFT_OUT = "exclude_module_types: [LayerNorm, Tanh]}\n"
OBSERVED = f"{DISTILLED}{QUANTIZER}, {LEFT_OUT}"
FROZEN = f"{DISTILLED}{QUANTIZER}, disable_quantization_observer_epoch: 0, {LEFT_OUT}"


class Counted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations[function._schema.name] += 1
        return function(*args, **(kwargs or {}))


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    ids = torch.randint(5, 20, (4, 6))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.tensor([0, 1, 1, 0]),
        "row_id": torch.arange(4),
    }


def plain_step(blocks: int, precision: str) -> Callable[[], object]:
    accelerator, model = Accelerator(mixed_precision=precision), make_bert(sparsity=0.5, num_hidden_layers=blocks)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    inputs = {name: value for name, value in batch().items() if name != "row_id"}

    def step() -> None:
        accelerator.backward(model(**inputs).loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def recipe_step(recipe: str, blocks: int, precision: str) -> Callable[[], object]:
    accelerator, model = Accelerator(mixed_precision=precision), make_bert(sparsity=0.5, num_hidden_layers=blocks)
    teacher: Any = "disable"
    if "Distillation" in recipe:
        teacher = Teacher(copy.deepcopy(model))
        teacher.table = torch.randn(4, 2)
    run = RecipeRun(load_recipe(recipe), teacher=teacher)
    run.attach(model)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), lr=1e-3, fused=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    run.bind(accelerator, model, optimizer, steps_per_epoch=1000)
    model.train()
    whole, averages = GlobalBatch([batch()], 4, 4), Averages()
    return lambda: averages.add(train_step(accelerator, model, optimizer, run, whole, StepOptions(seed=0)), whole)


def operations(step: Callable[[], object]) -> Counter[str]:
    for _ in range(3):
        step()
    with Counted() as counted:
        step()
    return counted.operations


@pytest.fixture(autouse=True)
def _own_precision() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    ("recipe", "once", "per_linear", "precision"),
    [
        (RATE, 20, 2, "no"),
        (DISTILLED, 61, 2, "no"),
        (OBSERVED, 151, 7, "no"),
        (FROZEN, 89, 7, "no"),
        (RATE, 20, 0, "bf16"),
        (OBSERVED, 151, 6, "bf16"),
    ],
    ids=["pruned", "distilled", "observed", "frozen", "pruned, bf16", "observed, bf16"],
)
def test_operations_that_a_recipe_adds_to_a_plain_loop(recipe: str, once: int, per_linear: int, precision: str) -> None:
    if cpu_kernels.kernel() is None:
        pytest.skip("without the compiled library, there are more operations")
    added = {}
    for blocks in (1, 3):
        counts = [operations(step) for step in (recipe_step(recipe, blocks, precision), plain_step(blocks, precision))]
        added[blocks] = sum(counts[0].values()) - sum(counts[1].values())
    of_linear = (added[3] - added[1]) / (2 * 6)
    assert of_linear <= per_linear
    assert added[1] - (6 + 2) * of_linear <= once  # pooler and classifier are Linears too
