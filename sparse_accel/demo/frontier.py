"""The table that answers how sparse a model should be: accuracy, size and speed by sparsity, and without structure."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sparse_accel.wilson_interval import wilson_interval
from sparse_accel.zoo import RECIPES

# The dense float model, and what is added to the name of a model that runs with kernels, in tables of milliseconds.
FLOAT, WITH_KERNELS = "float", " + kernels"


@dataclass(frozen=True)
class Variant:
    """How a model loses a part of its structure.

    Attributes:
        words: what is gone, for tables.
        variables: of the recipe structured_half.
        modifiers: YAML that is added to it; `{layers}` stands for every second block.
        start: percent of zeros of its start, which was pruned on another text; 0: the dense model of the same task.
    """

    words: str
    variables: Mapping[str, float]
    modifiers: str = ""
    start: int = 0


def _shares(share: float) -> dict[str, float]:
    return {"heads_sparsity": share, "neurons_sparsity": share}


STRUCTURES = {
    "half": Variant("half of heads and neurons", _shares(0.5)),
    "two_thirds": Variant("two thirds of heads and neurons", _shares(0.667)),
    # Zeros first, and structure from what they leave: the other order costs three points more.
    "half_80": Variant(
        "half of heads and neurons, 80% zeros in the rest",
        _shares(0.5),
        r"""
constant_modifiers:
  - !ConstantPruningModifier
      start_epoch: 0.0
      params: ['re:.*\.layer\.\d+\.(?!.*[Nn]orm).*\.weight']
""",
        start=80,
    ),
    "half_layers": Variant(
        "half the layers",
        _shares(0.0),
        """
layer_modifiers:
  - !LayerPruningModifier
      layers: {layers}
""",
    ),
}


def frontier_table(rows: Mapping[str, Mapping[str, Any]], milliseconds: Mapping[str, float], held_out: int) -> str:
    """Returns a Markdown table of models, one per row.

    Args:
        rows: by name: `accuracies`, one per seed, and `size` and, of INT8 models, `packed` in 1e6 bytes. The row
            without `packed` is the dense float model.
        milliseconds: of a row, by name; of the dense float model under FLOAT; with kernels under NAME + WITH_KERNELS.
        held_out: number of rows that the accuracy is of.
    """
    lines = [
        "| | accuracy (95% interval) | `model.onnx`, MB | packed, MB | ms | speed | ms, kernels | speed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    dense = milliseconds[FLOAT]
    for name, row in rows.items():
        accuracies = row["accuracies"]
        mean = statistics.mean(accuracies)
        spread = f" ± {100 * statistics.stdev(accuracies):.1f}, {len(accuracies)} seeds" if len(accuracies) > 1 else ""
        low, high = wilson_interval(mean, held_out)
        sizes = [f"{row[each]:.1f}" if each in row else "-" for each in ("size", "packed")]
        times = [milliseconds.get(name if "packed" in row else FLOAT), milliseconds.get(name + WITH_KERNELS)]
        speeds = [
            words for time in times for words in ([f"{time:.1f}", f"{dense / time:.1f}x"] if time else ["-", "-"])
        ]
        words = f"{mean:.1%}{spread} ({low:.1%} to {high:.1%})"
        lines.append("| " + " | ".join([name, words, *sizes, *speeds]) + " |")
    return "\n".join(lines)


def structure_recipe(kind: str, model: Path, folder: Path) -> str:
    """Writes structured_half with the modifiers of a kind of STRUCTURES; returns the path without its ending."""
    from transformers import AutoConfig

    depth = AutoConfig.from_pretrained(model).num_hidden_layers
    dropped = [f"bert.encoder.layer.{number}" for number in range(1, depth, 2)]
    text = (RECIPES / "structured_half.yaml").read_text(encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"structured_{kind}"
    target.with_suffix(".yaml").write_text(
        text + STRUCTURES[kind].modifiers.replace("{layers}", str(dropped)), encoding="utf-8"
    )
    return str(target)


def sparsity_variables(percent: int) -> dict[str, float]:
    """Returns the variables of obert_pruned90 for another final sparsity; pruning begins at half of it."""
    return {"final_sparsity": percent / 100, "init_sparsity": round(percent / 200, 3)}


def measure_speeds(deployments: dict[str, Path], *, seconds: float) -> dict[str, float]:
    """Returns the milliseconds of a row of 128 tokens on one thread, all in one interleaved run, as `frontier_table`
    takes them. The float model is the first of the deployments in float.

    Args:
        deployments: folders of INT8 models, by name.
        seconds: of the whole comparison, about.
    """
    import onnx

    from sparse_accel.runtime.float_graph import in_float
    from sparse_accel.runtime.loading import explain, session
    from sparse_accel.runtime.timing import interleaved, plain_session, random_inputs

    files = {name: folder / "model.onnx" for name, folder in deployments.items()}
    first = next(iter(files.values()))
    with tempfile.TemporaryDirectory() as folder:
        dense = Path(folder) / "float.onnx"
        onnx.save(in_float(onnx.load(first)), dense)
        runs: dict[str, Any] = {FLOAT: partial(plain_session(dense, threads=1).run, None)}
    for name, file in files.items():
        runs[name] = partial(plain_session(file, threads=1).run, None)
        fast = session(file, threads=1)
        if explain(fast).instruction_set:
            runs[name + WITH_KERNELS] = partial(fast.run, None)
    return interleaved(runs, random_inputs(first, batch=1, tokens=128), seconds=seconds)
