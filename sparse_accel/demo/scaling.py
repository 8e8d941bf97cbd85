"""How the cost of training grows: floating-point operations by formula, peaks of GPUs, and hours on 1 to 64 GPUs.

Operations are those that the model needs (model FLOPs, PaLM, Chowdhery et al. 2022, appendix B): 6 for each weight of a
Linear layer and token, of which 2 in the forward and 4 in the backward; and for the attention scores and their product
with the values, 12 x layers x width x tokens^2 for each row. Embeddings are looked up, and fake quantization, masks and
the optimizer are not counted; nor is padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Dense peak of the tensor cores in bf16 or fp16 with float32 sums, in TFLOPS, from the vendor's data sheets (where they
# give figures with 2:4 sparsity, half of these). The first name that is part of the device's name counts.
PEAK_TFLOPS = {
    "H200 NVL": 835.0,
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "V100": 125.0,  # fp16 alone
    "T4": 65.0,  # fp16 alone
}
GPUS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Encoder:
    """The sizes of a BERT-like encoder.

    Attributes:
        parameters: all that are trained: what the gradients have as many of.
    """

    layers: int
    width: int
    intermediate: int
    parameters: int

    @property
    def linear_weights(self) -> int:
        """Weights of the Linear layers of all blocks, without biases."""
        return self.layers * self.width * (4 * self.width + 2 * self.intermediate)


BERT_BASE = Encoder(layers=12, width=768, intermediate=3072, parameters=109_483_778)


def training_flops(encoder: Encoder, lengths: Sequence[int]) -> float:
    """Returns the operations of a forward and a backward over rows of these numbers of tokens."""
    squares = sum(length**2 for length in lengths)
    return 6.0 * encoder.linear_weights * sum(lengths) + 12.0 * encoder.layers * encoder.width * squares


def peak_tflops(device: str) -> float | None:
    """Returns the peak of a GPU by the name that PyTorch gives it; None if it is not known, as of a slice (MIG)."""
    known = [peak for name, peak in PEAK_TFLOPS.items() if name in device]
    return known[0] if known and "MIG" not in device else None


@dataclass(frozen=True)
class Cluster:
    """What is assumed of the GPUs; share and seconds are those that scripts/benchmark_gpu.py measured on an H100.

    Attributes:
        peak: operations per second of one.
        share: of the peak that a plain step reaches where it does not wait for Python (2,048 short rows).
        step_seconds: the time in which Python starts the work of a step with a recipe, mean over the epochs of the
            tutorial's: no step is shorter (512 short rows).
        gpus_per_machine: those that are connected by the links inside a machine.
        link_bytes, network_bytes: per second and GPU, inside a machine and between machines.
    """

    peak: float = 989e12
    share: float = 0.142
    step_seconds: float = 0.073
    gpus_per_machine: int = 8
    link_bytes: float = 200e9
    network_bytes: float = 25e9


@dataclass(frozen=True)
class Job:
    """Training that is the same on any number of GPUs.

    Attributes:
        rows: of the training split, each with `tokens` tokens.
        batch: rows of a global batch.
        epochs: of the recipe.
        recipe: time of a step over that of a plain loop where neither waits for Python, mean over the epochs of the
            tutorial's recipe.
    """

    rows: int
    tokens: int
    batch: int
    epochs: int = 13
    recipe: float = 1.26


SST2 = Job(rows=67_349, tokens=13, batch=512)
TEN_MILLION = Job(rows=10_000_000, tokens=128, batch=4096)


def all_reduce_seconds(encoder: Encoder, gpus: int, cluster: Cluster) -> float:
    """Returns the time in which a ring sums the float32 gradients of all GPUs: each sends 2 (n - 1) / n of them."""
    slowest = cluster.link_bytes if gpus <= cluster.gpus_per_machine else cluster.network_bytes
    return 2 * (gpus - 1) / gpus * 4 * encoder.parameters / slowest


def training_hours(job: Job, gpus: int, cluster: Cluster, encoder: Encoder = BERT_BASE) -> float:
    """Returns the hours of all steps, and of the forward over all rows that makes the teacher's table.

    Gradients are summed after the backward, not during it as DDP does: an upper bound.
    """
    flops = training_flops(encoder, [job.tokens]) * math.ceil(job.batch / gpus)
    computed = max(job.recipe * flops / (cluster.peak * cluster.share), cluster.step_seconds)
    step = computed + all_reduce_seconds(encoder, gpus, cluster)
    # The forward of the teacher is a quarter of a step with a recipe.
    return math.ceil(job.rows / job.batch) * (job.epochs * step + computed / 4) / 3600


def hours_table(cluster: Cluster | None = None) -> str:
    """Returns the Markdown table of docs/performance.md: time by number of GPUs, and how many times faster than one."""
    cluster, jobs = cluster or Cluster(), (SST2, TEN_MILLION)
    names = [f"{job.rows:,} rows of {job.tokens} tokens, {job.batch:,} in a step" for job in jobs]
    lines = [f"| GPUs | {' | '.join(f'{name} | faster' for name in names)} |", f"|---{'|---|---' * len(jobs)}|"]
    for gpus in GPUS:
        cells = []
        for job in jobs:
            hours, alone = (training_hours(job, number, cluster) for number in (gpus, 1))
            cells += [shown_hours(hours), f"{alone / hours:.1f}x"]
        lines.append(f"| {gpus} | {' | '.join(cells)} |")
    return "\n".join(lines)


def shown_hours(hours: float) -> str:
    """Returns a time in the largest of seconds, minutes and hours that gives at least 2 of them, or else 1 s."""
    value, unit = next(
        ((hours * factor, unit) for factor, unit in ((1, "h"), (60, "min")) if hours * factor >= 2), (hours * 3600, "s")
    )
    return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
