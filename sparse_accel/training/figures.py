"""What is logged, and under which names: in trackers, and in trainer_state.json (evaluations there: `eval_NAME`).

train/loss, train/task_loss, train/distillation_loss    means over the rows since the last log
train/teacher_agreement                                  fraction of rows or tokens with the teacher's decision
train/learning_rate, train/weight_decay                  as applied
train/gradient_norm                                      before clipping, mean of the steps since the last log
train/epoch, train/samples_per_second, train/tokens_per_second, train/padding
memory/cpu_gb, memory/gpu_gb                             peak since the start, of the process with the largest
quantization/phase                                       0 float, 1 QAT, 2 QAT with frozen ranges
quantization/{min,max,scale,clipped}/NAME               of each quantizer, at the end of an epoch
sparsity/encoder, sparsity/model, sparsity/layers/NAME   fractions of exact zeros
structure/NAME, structure/NAME_full_size                 heads, neurons, parameters, multiply-adds, once units are zero
eval/NAME                                                evaluation figures during training
teacher/NAME                                             the teacher's, on the same rows
final/NAME                                               evaluation figures of the model in the output folder
"""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch

from sparse_accel.distributed.collectives import largest
from sparse_accel.models.sparsity import structure_figures

_GB = 1e9


def tracker_names(figures: dict[str, float], prefix: str = "eval") -> dict[str, float]:
    """Returns figures under their names in trackers: `eval_accuracy` becomes `eval/accuracy`, or PREFIX/accuracy."""
    return {
        f"{prefix}/{name.removeprefix('eval_')}" if name.startswith("eval_") else name: value
        for name, value in figures.items()
    }


def sparsity_figures(report: dict[str, Any]) -> dict[str, float]:
    """Returns the figures to log from a `sparsity_report`."""
    layers = {f"sparsity/layers/{name}": entry["sparsity"] for name, entry in report["layers"].items()}
    return {
        "sparsity/encoder": report["encoder_linear"]["sparsity"],
        "sparsity/model": report["model"]["sparsity"],
        **layers,
        **{f"structure/{name}": value for name, value in structure_figures(report).items()},
    }


def memory_figures() -> dict[str, float]:
    """Returns the peak memory since the start, in GB (1e9 bytes), of the process that has the largest.

    All processes must call it. `memory/cpu_gb` is resident memory; `memory/gpu_gb`, only with a GPU, is what PyTorch
    allocated there.
    """
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    figures = {"memory/cpu_gb": largest(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit) / _GB}
    if torch.cuda.is_available():
        figures["memory/gpu_gb"] = largest(torch.cuda.max_memory_allocated()) / _GB
    return figures
