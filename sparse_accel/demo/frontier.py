"""The table that answers how sparse a model should be: accuracy, size and speed by sparsity."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from sparse_accel.wilson_interval import wilson_interval

# The dense float model, and what is added to the name of a model that runs with kernels, in tables of milliseconds.
FLOAT, WITH_KERNELS = "float", " + kernels"


def frontier_table(rows: Mapping[str, Mapping[str, Any]], milliseconds: Mapping[str, float], held_out: int) -> str:
    """Returns a Markdown table of models, one per row.

    Args:
        rows: by name: `accuracies`, one per seed, and, of INT8 models, `size` and `packed`, fractions of the dense
            float32 file. A row without them is the dense float model.
        milliseconds: of a row, by name; of the dense float model under FLOAT; with kernels under NAME + WITH_KERNELS.
        held_out: number of rows that the accuracy is of.
    """
    lines = [
        "| | accuracy (95% interval) | `model.onnx` | packed | ms | speed | ms, kernels | speed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    dense = milliseconds[FLOAT]
    for name, row in rows.items():
        accuracies = row["accuracies"]
        mean = statistics.mean(accuracies)
        spread = f" ± {100 * statistics.stdev(accuracies):.1f}, {len(accuracies)} seeds" if len(accuracies) > 1 else ""
        low, high = wilson_interval(mean, held_out)
        sizes = [f"{row[each]:.2f}" if each in row else empty for each, empty in (("size", "1.00"), ("packed", "-"))]
        times = [milliseconds.get(name if "size" in row else FLOAT), milliseconds.get(name + WITH_KERNELS)]
        speeds = [
            words for time in times for words in ([f"{time:.1f}", f"{dense / time:.1f}x"] if time else ["-", "-"])
        ]
        words = f"{mean:.1%}{spread} ({low:.1%} to {high:.1%})"
        lines.append("| " + " | ".join([name, words, *sizes, *speeds]) + " |")
    return "\n".join(lines)
