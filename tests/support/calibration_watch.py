"""Watches the batches of `num_calibration_steps` in a run of a script, and computes the range that they give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from script_fixtures import read_json
from torch import Tensor, nn

from sparse_accel import recipe_run
from sparse_accel.data.calibration import calibration_forwards

LAYER = "encoder.layer.0.attention.self.query"


@dataclass
class Batch:
    """What the model got of one batch, in parts, and the extrema of the inputs of `LAYER`."""

    ids: list[Tensor] = field(default_factory=list)
    training: set[bool] = field(default_factory=set)
    minimum: float = 0.0
    maximum: float = 0.0

    def texts(self) -> list[tuple[int, ...]]:
        """The ids of each text, without padding."""
        flat = [ids for part in self.ids for ids in part.reshape(-1, part.shape[-1])]
        return [tuple(ids[ids != 0].tolist()) for ids in flat]


@contextmanager
def watched_calibrations() -> Iterator[list[list[Batch]]]:
    """Yields a list that gets the batches of each calibration of the runs inside the block."""
    found: list[list[Batch]] = []

    def watched(model: Any, plain: nn.Module, *settings: Any, **options: Any) -> Iterator[None]:
        batches = [Batch()]
        found.append(batches)

        def note(module: nn.Module, _: Any, inputs: dict[str, Tensor]) -> None:
            batches[-1].ids.append(inputs["input_ids"])
            batches[-1].training.add(module.training)

        def measure(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            batches[-1].minimum = min(batches[-1].minimum, float(inputs[0].min()))
            batches[-1].maximum = max(batches[-1].maximum, float(inputs[0].max()))

        [layer] = [module for name, module in plain.named_modules() if name.endswith(LAYER)]
        hooks = [plain.register_forward_pre_hook(note, with_kwargs=True), layer.register_forward_pre_hook(measure)]
        for _ in calibration_forwards(model, plain, *settings, **options):
            yield
            batches.append(Batch())
        batches.pop()  # nothing came after the last one
        for hook in hooks:
            hook.remove()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe_run, "calibration_forwards", watched)
        yield found


def range_of(batches: list[Batch]) -> tuple[float, float]:
    """The moving average of the extrema, with SparseML's constant, from the first batch on."""
    low, high = batches[0].minimum, batches[0].maximum
    for batch in batches[1:]:
        low, high = low + 0.01 * (batch.minimum - low), high + 0.01 * (batch.maximum - high)
    return low, high


def stored_range(folder: Path) -> tuple[float, float]:
    """The range of the inputs of `LAYER` in an output folder."""
    stored = read_json(folder / "quantization.json")["quantizers"]
    [entry] = [entry for name, entry in stored.items() if name.endswith(f"{LAYER}.input_quantizer")]
    return entry["minimum"][0], entry["maximum"][0]
