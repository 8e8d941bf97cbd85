"""The sections on sparsity and quantization: what each layer has."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from sparse_accel.report import units
from sparse_accel.report.charts import Line, Style, range_chart
from sparse_accel.report.history import Event, can_be_drawn, events_of, last, last_epoch, names_of, series
from sparse_accel.report.page import Block, Cell, Chart, Charts, Section, Table
from sparse_accel.report.read import Run, number
from sparse_accel.report.speed import structure_table
from sparse_accel.report.training import drawn

# A name with one number in it, the block's: (before, number, after).
_IN_A_BLOCK = re.compile(r"(.*?\.)(\d+)(\..*)")
_CLIPPED = re.compile(r"quantization/clipped/(.+)")


def sparsity_section(run: Run) -> Section:
    """Returns zeros by part of the model and by layer. Sparsity over time is a chart of the section on training."""
    blocks: list[Block] = []
    parts = [(name, run.sparsity.get(key)) for name, key in _PARTS]
    rows: list[list[Cell | str]] = [
        [
            name,
            Cell(units.percent(part.get("sparsity"), 2), bar=units.fraction(part.get("sparsity"))),
            Cell(units.plain(part.get("zeros"))),
            Cell(units.plain(part.get("weights"))),
        ]
        for name, part in parts
        if isinstance(part, dict)
    ]
    if rows:
        blocks.append(Table(["", "zeros", "number of zeros", "number of weights"], rows))
    headings = ("full size", "without zeros")
    if sizes := structure_table(run.sparsity.get("structure"), headings, "Structure that an export removes"):
        blocks.append(sizes)
    layers = run.sparsity.get("layers")
    if isinstance(layers, dict):
        fractions = {name: number(each.get("sparsity")) for name, each in layers.items() if isinstance(each, dict)}
        blocks += list(_by_layer({name: value for name, value in fractions.items() if value is not None}))
    return Section("Sparsity", "sparsity", blocks)


_PARTS = (
    ("Linear weights in the encoder's blocks", "encoder_linear"),
    ("all prunable weights", "prunable"),
    ("the whole model, embeddings included", "model"),
)


def _by_layer(fractions: dict[str, float]) -> Iterator[Table]:
    """A matrix of blocks by kind of weight, and a list of the weights that are in no block."""
    grid: dict[str, dict[int, float]] = {}
    others: dict[str, float] = {}
    for name, value in fractions.items():
        if found := _IN_A_BLOCK.fullmatch(name):
            grid.setdefault(_kind(found[3]), {})[int(found[2])] = value
        else:
            others[name] = value
    if grid:
        numbers = sorted({number for row in grid.values() for number in row})
        rows: list[list[Cell | str]] = [
            [kind, *(_shaded(row[number]) if number in row else "" for number in numbers)] for kind, row in grid.items()
        ]
        yield Table(["block", *map(str, numbers)], rows, "Zeros by block and weight, %", matrix=True)
    if others:
        others_rows: list[list[Cell | str]] = [
            [name, Cell(units.percent(value), bar=units.fraction(value))] for name, value in others.items()
        ]
        yield Table(["weight", "zeros"], others_rows, folded="Weights outside of the blocks" if grid else "Weights")


def _kind(name: str) -> str:
    return name.removesuffix(".weight").strip(".")


def _shaded(value: float) -> Cell:
    return Cell(units.percent(value).rstrip("%"), shade=units.fraction(value), good=True)


# --- quantization -----------------------------------------------------------------------------------------------------


def quantization_section(run: Run) -> Section:
    """Returns the ranges of all quantizers, and the share of values that they clip."""
    ranges = {
        name: low_high
        for name, entry in run.quantization.items()
        if (low_high := _range(entry)) and all(map(can_be_drawn, low_high))
    }
    charts: list[Chart] = []
    for title, is_weight in (("Ranges of activations", False), ("Ranges of weights", True)):
        chosen = {name: each for name, each in ranges.items() if name.endswith("weight_quantizer") == is_weight}
        if chosen:
            charts.append(_chart_of_ranges(title, chosen))
    events = events_of(run)
    clipped = {
        found[1]: series(run, name) for name in names_of(run, "quantization/") if (found := _CLIPPED.fullmatch(name))
    }
    charts += _chart_of_clipped(clipped, events, last_epoch([run]))
    blocks: list[Block] = [Charts(charts)]
    if run.quantization:
        shares = {name: last(points) for name, points in clipped.items()}
        blocks.append(_table_of_ranges(run.quantization, shares))
    return Section("Quantization", "quantization", blocks if charts or run.quantization else [])


def _range(entry: dict[str, Any]) -> tuple[float, float] | None:
    """The lowest minimum and the highest maximum of a quantizer's channels; None if it has none."""
    lows, highs = (_finite(entry.get(key)) for key in ("minimum", "maximum"))
    return (min(lows), max(highs)) if lows and highs else None


def _finite(values: Any) -> list[float]:
    values = values if isinstance(values, list) else [values]
    return [found for value in values if (found := number(value)) is not None and math.isfinite(found)]


def _chart_of_ranges(title: str, ranges: dict[str, tuple[float, float]]) -> Chart:
    """A bar for each range, in the model's order; the names of the widest are in the note."""
    kinds = ("embeddings (left)", "blocks", "others (right)")
    kind = {name: 0 if "embeddings" in name else 1 if _IN_A_BLOCK.fullmatch(name) else 2 for name in ranges}
    svg = range_chart(
        [(*each, Style(kind[name])) for name, each in ranges.items()], name=title.lower().replace(" ", "-")
    )
    widest = sorted(ranges, key=lambda name: ranges[name][0] - ranges[name][1])[:3]
    words = "; ".join(f"{_in_short(name)} {_ends(ranges[name])}" for name in widest)
    lines = [Line(kinds[number], [], Style(number)) for number in sorted(set(kind.values()))]
    return Chart(title, svg, lines, axis="quantizers, in the order of the model", bars=True, note=f"Widest: {words}.")


def _ends(low_high: tuple[float, float]) -> str:
    return " to ".join(units.plain(value) for value in low_high)


def _in_short(name: str) -> str:
    """The name of a quantizer in a block, from the block's number on; of others, all of it."""
    found = _IN_A_BLOCK.fullmatch(_quantizer(name))
    return f"block {found[2]} {found[3].strip('.')}" if found else _quantizer(name)


def _quantizer(name: str) -> str:
    return name.removesuffix("_quantizer")


def _chart_of_clipped(
    clipped: dict[str, list[tuple[float, float]]], events: Sequence[Event], until: float
) -> Iterator[Chart]:
    """The share of clipped values over epochs: the median of all quantizers, and those that clip most at the end."""
    epochs: dict[float, list[float]] = {}
    for points in clipped.values():
        for epoch, value in points:
            if math.isfinite(value):
                epochs.setdefault(epoch, []).append(value)
    if not epochs:
        return
    middle = [(epoch, median(values)) for epoch, values in sorted(epochs.items())]
    most = sorted(clipped, key=lambda name: -units.fraction(last(clipped[name])))[:3]
    lines = [Line("median", middle, Style(0))]
    lines += [Line(_in_short(name), clipped[name], Style(number)) for number, name in enumerate(most, 1)]
    yield from drawn("Clipped values, fraction", lines, events, percent=True, from_zero=True, until=until)


def _table_of_ranges(quantizers: dict[str, dict[str, Any]], clipped: dict[str, float | None]) -> Table:
    rows: list[list[Cell | str]] = []
    for name, entry in quantizers.items():
        low_high, scales, zeros = _range(entry), _finite(entry.get("scale")), _finite(entry.get("zero_point"))
        row = [Cell(units.plain(value)) for value in low_high or (None, None)]
        row += [Cell(_several(scales)), Cell(_several(zeros)), Cell(units.plain(entry.get("bits")))]
        share = clipped.get(_quantizer(name), clipped.get(name))
        rows.append([_quantizer(name), *row, *([Cell(units.percent(share, 2))] if clipped else [])])
    head = ["quantizer", "minimum", "maximum", "scale", "zero point", "bits", *(["clipped"] if clipped else [])]
    return Table(head, rows, folded=f"All {len(rows)} quantizers")


def _several(values: Sequence[float]) -> str:
    """One value, or the ends of those of several channels."""
    if not values:
        return units.NOTHING
    low, high = min(values), max(values)
    return units.plain(low) if low == high else f"{units.plain(low)} to {units.plain(high)}"
