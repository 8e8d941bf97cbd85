"""The section on training: curves over epochs, with the recipe's events."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from sparse_accel.report import units
from sparse_accel.report.charts import Line, Style, has_values, line_chart
from sparse_accel.report.history import Event, can_be_drawn, events_of, last, last_epoch, names_of, not_finite, series
from sparse_accel.report.page import Block, Chart, Charts, Section, Words
from sparse_accel.report.read import Run

# Of other figures, one chart each: (its title, names in the log, whether they are fractions). A chart whose names were
# not logged is left out.
_OTHERS = (
    ("Gradient norm", ("train/gradient_norm",), False),
    ("Agreement with the teacher", ("train/teacher_agreement", "eval_teacher_agreement"), True),
    ("Tokens per second", ("train/tokens_per_second",), False),
    ("Rows per second", ("train/samples_per_second",), False),
    ("Peak memory, GB", ("memory/cpu_gb", "memory/gpu_gb"), False),
    ("Padding, fraction of tokens", ("train/padding",), True),
)


def training_section(run: Run) -> Section:
    """Returns loss, figures, learning rate and what else was logged, over epochs."""
    events = events_of(run)
    charts = list(training_charts(run, events))
    blocks: list[Block] = [Charts(charts, events)] if charts else []
    if charts and (words := evaluated_in([run])):
        blocks.insert(0, Words(words))
    if not charts and run.arguments:
        blocks.append(Words("Nothing was logged in this folder: there are no curves."))
    return Section("Training", "training", blocks)


def evaluated_in(runs: Sequence[Run]) -> str:
    """Returns why the last evaluation of a curve can differ from a run's figures; "" if no run had mixed precision."""
    if not any(names_of(run, "eval_") and run.precision not in ("", "float32") for run in runs):
        return ""
    return (
        "While a run trains in mixed precision, its evaluations do so too. Its figures in the tables are of the saved "
        "model in float32, and can differ from the last value of a curve."
    )


def training_charts(run: Run, events: Sequence[Event]) -> Iterator[Chart]:
    """Yields the charts of a run."""
    losses = [name for name in names_of(run, "train/") if name.endswith("loss")]
    losses = sorted(losses, key=lambda name: name != "train/loss") + names_of(run, "eval_loss")
    yield from _chart(run, events, "Loss", losses, from_zero=True)
    figures = [name for name in names_of(run, "eval_") if units.is_fraction(name) and "teacher" not in name]
    name, level = _teacher(run, figures)
    words = f"teacher, {name}: {units.percent(level, 2)}" if level is not None else ""
    yield from _chart(run, events, "Validation figures", figures, percent=True, level=level, level_name=words)
    for name in names_of(run, "eval_"):
        if name != "eval_loss" and name not in figures and "teacher" not in name:
            yield from _chart(run, events, name.removeprefix("eval_"), [name])
    yield from _chart(run, events, "Learning rate", ["train/learning_rate"], from_zero=True)
    decay = series(run, "train/weight_decay")
    if len({value for _, value in decay}) > 1:
        yield from _chart(run, events, "Weight decay", ["train/weight_decay"], from_zero=True)
    sparsity = ["sparsity/encoder", "sparsity/model"]
    yield from _chart(run, events, "Sparsity, fraction of zeros", sparsity, percent=True, from_zero=True)
    for title, names, percent in _OTHERS:
        if title == "Rows per second" and series(run, "train/tokens_per_second"):
            continue
        yield from _chart(run, events, title, names, percent=percent, from_zero="memory" in names[0])


def _teacher(run: Run, figures: Sequence[str]) -> tuple[str, float | None]:
    """The figure of the teacher that belongs to the first line of the chart."""
    for each in run.references:
        for name in (name.removeprefix("eval_") for name in figures):
            if each.role == "teacher" and can_be_drawn(each.figures.get(name, math.nan)):
                return name, each.figures[name]
    return "", None


def _chart(
    run: Run,
    events: Sequence[Event],
    title: str,
    names: Sequence[str],
    *,
    percent: bool = False,
    from_zero: bool = False,
    level: float | None = None,
    level_name: str = "",
) -> Iterator[Chart]:
    """One chart of logged figures; none if none of them was logged."""
    lines = [
        Line(_shown(name), points, Style(number)) for number, name in enumerate(names) if (points := series(run, name))
    ]
    yield from drawn(
        title,
        lines,
        events,
        percent=percent,
        from_zero=from_zero,
        level=level,
        level_name=level_name,
        until=last_epoch([run]),
    )


def drawn(
    title: str,
    lines: Sequence[Line],
    events: Sequence[Event] = (),
    *,
    percent: bool = False,
    from_zero: bool = False,
    level: float | None = None,
    level_name: str = "",
    until: float = 0.0,
) -> Iterator[Chart]:
    """Yields a chart of lines with their last values in the legend; nothing without a value that can be drawn."""
    shown = [line for line in lines if has_values(line.points)]
    if not shown:
        return
    anchor = "".join(letter if letter.isalnum() else "-" for letter in title.lower())
    svg = line_chart(shown, events, percent=percent, from_zero=from_zero, level=level, until=until, name=anchor)
    values = {
        line.name: units.percent(last(line.points)) if percent else units.plain(last(line.points)) for line in shown
    }
    gaps = not_finite((line.name, line.points) for line in lines)
    yield Chart(title, svg, shown, level=level_name, note=gaps, values=values)


def _shown(name: str) -> str:
    """A logged name as words of a legend."""
    for beginning, words in (("train/", ""), ("eval_", "validation "), ("sparsity/", ""), ("memory/", "")):
        if name.startswith(beginning):
            name = words + name.removeprefix(beginning)
    return {"loss": "training loss", "cpu_gb": "CPU", "gpu_gb": "GPU"}.get(name, name.replace("_", " "))
