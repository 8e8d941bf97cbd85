"""Structure in an export: heads and neurons that are zero are removed from a copy of the model, checked and counted."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from sparse_accel.errors import counted, listed
from sparse_accel.export.checks import Check
from sparse_accel.nn.layers import quantizers
from sparse_accel.nn.structure import HEADS, NEURONS, Units
from sparse_accel.nn.structure_removal import Removal, remove_zero_units, structure_of, zero_units

_NOTHING = "--keep_structure changes nothing"


@dataclass(frozen=True)
class Deployed:
    """The model that is written, and what became of its structure.

    Attributes:
        model: what is written; `trained` itself if nothing was removed.
        trained: the model as it was trained, with zeros in place of what is removed.
        removal: what was removed; None for an architecture whose heads and neurons are not known.
        notes: sentences on what was not removed.
    """

    model: nn.Module
    trained: nn.Module
    removal: Removal | None
    notes: tuple[str, ...] = ()

    @property
    def is_smaller(self) -> bool:
        return self.model is not self.trained

    def to_dict(self) -> dict[str, Any] | None:
        """Returns the structure `before` and `after` as it is written to export_report.json."""
        if self.removal is None:
            return None
        return {"before": self.removal.before.to_dict(), "after": self.removal.after.to_dict()}


def remove_structure(trained: nn.Module, *, keep: bool) -> Deployed:
    """Returns a model without the heads and neurons that are zero; `trained` is not changed.

    Args:
        trained: of any architecture, float32, quantizers on.
        keep: whether to remove nothing.
    """
    try:
        zero = zero_units(trained)
    except ValueError as error:
        return Deployed(trained, trained, None, (f"{_NOTHING}: {error}",) if keep else ())
    if keep or not zero:
        size = structure_of(trained)
        kept = f"{_count(zero)} are zero and stay in the file, as --keep_structure asks"
        notes = (kept if zero else f"{_NOTHING}: no head or neuron has only zeros",) if keep else ()
        return Deployed(trained, trained, Removal({}, size, size), notes)
    model = copy.deepcopy(trained)
    removal = remove_zero_units(model)
    return Deployed(model if removal.units else trained, trained, removal, removal.kept)


def check_structure(deployed: Deployed) -> Check:
    """Checks that what was removed is zero in the trained model, and that all else is there: each weight, bias, scale
    and zero point is compared bit by bit."""
    removal = deployed.removal
    assert removal is not None
    zero = zero_units(deployed.trained)
    wrong = [
        f"{units.part} {number} of block {units.block} is not zero"
        for units, numbers in removal.units.items()
        for number in sorted(set(numbers) - set(zero.get(units, ())))
    ]
    gone = _removed_lines(removal.units)
    left = _tensors(deployed.model)
    for name, (layer, axes, values) in _tensors(deployed.trained).items():
        for axis, lines in gone.get(layer, {}).items():
            if axis in axes:
                values = np.delete(values, lines, axes.index(axis))
        found = left[name][2]
        if found.shape != values.shape or found.tobytes() != values.tobytes():
            wrong.append(f"{name} differs")
    detail = f"{_count(removal.units)} were removed; they are zero in the trained model, and all else is in this one"
    return Check("structure", not wrong, listed(wrong, 4) if wrong else detail)


def in_words(structure: Mapping[str, Any]) -> list[str]:
    """Returns what is left of a model, one line for each kind of figure.

    Args:
        structure: of `Deployed.to_dict`.
    """
    before, after = structure["before"], structure["after"]
    parts = {"attention heads": "attention_heads", "neurons": "ffn_neurons"}
    where = f"in {counted(after['layers'], 'layer')}"
    lines = [f"{sum(after[key]):,} of {sum(before[key]):,} {noun} {where}" for noun, key in parts.items()]
    lines.append(f"{after['parameters']:,} of {before['parameters']:,} parameters")
    share = after["multiply_adds"] / before["multiply_adds"]
    lines.append(
        f"{after['multiply_adds']:,} of {before['multiply_adds']:,} multiply-adds of a token in the Linear layers of "
        f"the encoder ({share:.1%})"
    )
    return lines


def is_smaller(structure: Mapping[str, Any] | None) -> bool:
    """Returns whether anything was removed. `structure`: of `Deployed.to_dict`."""
    return structure is not None and structure["before"] != structure["after"]


def _removed_lines(removed: Mapping[Units, tuple[int, ...]]) -> dict[str, dict[int, list[int]]]:
    """The numbers of the removed rows (axis 0) and columns (axis 1), by layer and axis."""
    found: dict[str, dict[int, list[int]]] = {}
    for units, numbers in removed.items():
        lines = [number * units.size + line for number in numbers for line in range(units.size)]
        for name in units.inputs:
            found.setdefault(name, {})[0] = lines
        found.setdefault(units.output, {})[1] = lines
    return found


def _tensors(model: nn.Module) -> dict[str, tuple[str, tuple[int, ...], np.ndarray]]:
    """The parameters and the numbers of the quantizers, by name: (layer, axes of its weight that they have, values)."""
    found = {
        name: (name.rpartition(".")[0], tuple(range(values.ndim)), values.detach().numpy())
        for name, values in model.named_parameters()
    }
    for name, quantizer in quantizers(model).items():
        axis = quantizer.scheme.channel_axis if name.endswith(".weight_quantizer") else None
        axes = () if axis is None else (axis,)
        for kind in ("scale", "zero_point"):
            found[f"{name}.{kind}"] = (name.rpartition(".")[0], axes, getattr(quantizer, kind).numpy())
    return found


def _count(units: Mapping[Units, tuple[int, ...]]) -> str:
    heads, neurons = (sum(len(n) for each, n in units.items() if each.part == part) for part in (HEADS, NEURONS))
    return f"{counted(heads, 'head')} and {counted(neurons, 'neuron')}"
