"""Charts as SVG with matplotlib. Colours are CSS variables of the page, so that one chart is light, dark and in print.

No text from data gets into a chart: names are in the page around it, where they are escaped.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparse_accel.report.history import Event, Points, thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours of Okabe and Ito, which people with any colour vision tell apart; darker where white needs it. The page's
# style sheet has a second set for dark screens.
COLOURS = ("#0072b2", "#c24e00", "#007a5a", "#a3518a", "#8a6d00", "#3b93cc")
# Dashes in pixels: lines differ in more than their colour.
DASHES = ("", "7 3", "2 2.5", "8 2.5 2 2.5", "12 3", "1 1.5")
_MARKERS = "os^Dvp"
_INK, _MUTED, _LINE, _PAPER = "#1c1f23", "#5b6168", "#d4d8dc", "#fefefe"
_VARIABLES = {colour: f"--c{number}" for number, colour in enumerate(COLOURS)}
_VARIABLES |= {_INK: "--ink", _MUTED: "--muted", _LINE: "--line", _PAPER: "--paper"}
# Pixels of a chart at its natural size; the page scales it by 0.8 to 1.3.
_WIDTH, _HEIGHT, _TEXT = 440, 250, 12
_MOST_MARKED = 15  # points of a line that get a marker each


@dataclass(frozen=True)
class Style:
    """How a line looks, in its chart and in the legend."""

    number: int

    @property
    def variable(self) -> str:
        """Returns the CSS variable of its colour."""
        return f"--c{self.number % len(COLOURS)}"

    @property
    def colour(self) -> str:
        """Returns its colour on a light page."""
        return COLOURS[self.number % len(COLOURS)]

    @property
    def dash(self) -> str:
        """Returns its SVG dash pattern; empty for a solid line. Those after the sixth style are new pairs."""
        return DASHES[(self.number + self.number // len(COLOURS)) % len(DASHES)]

    @property
    def marker(self) -> str:
        """Returns matplotlib's name of its marker."""
        return _MARKERS[self.number % len(_MARKERS)]


@dataclass(frozen=True)
class Line:
    """A line of a chart: its name in the legend, its points, its style."""

    name: str
    points: Points
    style: Style


def line_chart(
    lines: Sequence[Line],
    events: Sequence[Event] = (),
    *,
    percent: bool = False,
    from_zero: bool = False,
    level: float | None = None,
    until: float = 0.0,
    name: str = "",
) -> str:
    """Returns a chart over epochs.

    Args:
        lines: with at least one finite point.
        events: marked with vertical lines and their numbers.
        percent: the values are fractions.
        from_zero: whether the vertical axis must contain 0.
        level: a horizontal line, such as the teacher's accuracy.
        until: the epoch where the chart ends; 0 for the last point.
        name: unique in the page; ids in the SVG begin with it.
    """
    figure, axes = _new(percent=percent)
    for line in lines:
        points = thinned(line.points)
        few = len(points) <= _MOST_MARKED
        axes.plot(
            [epoch for epoch, _ in points],
            [value for _, value in points],
            color=line.style.colour,
            linestyle=_dash(line.style),
            linewidth=1.8,
            marker=line.style.marker if few else "",
            markersize=4.5 if len(points) > 1 else 6,
            solid_capstyle="round",
            clip_on=False,  # a point on the border is drawn whole
        )
    if level is not None:
        axes.axhline(level, color=_MUTED, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1)
    if from_zero:
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.0), max(high, 0.0))
    if until > 0:
        axes.set_xlim(-0.02 * until, 1.02 * until)
    _mark(axes, events)
    return _svg(figure, name)


def range_chart(ranges: Sequence[tuple[float, float, Style]], *, name: str = "") -> str:
    """Returns a chart with one vertical bar for each (minimum, maximum), in order from left to right."""
    figure, axes = _new()
    for style in dict.fromkeys(style for _, _, style in ranges):
        places = [number for number, each in enumerate(ranges) if each[2] == style]
        lows, highs = zip(*[ranges[place][:2] for place in places], strict=True)
        width = max(1.2, min(5.0, 0.55 * _WIDTH / len(ranges)))
        axes.vlines(places, lows, highs, colors=style.colour, linewidth=width)
        axes.plot(places, highs, color=style.colour, linestyle="", marker=style.marker, markersize=min(width, 4))
    axes.axhline(0, color=_MUTED, linewidth=0.8)
    axes.set_xlim(-1, len(ranges))
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    return _svg(figure, name)


def _new(*, percent: bool = False) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    # 72 dots per inch: one point is one pixel. Margins are fixed: measuring labels would take most of the time.
    figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72), dpi=72, facecolor="none")
    left, right, top, bottom = 54, 10, 20, 26
    axes = figure.add_axes(
        (left / _WIDTH, bottom / _HEIGHT, 1 - (left + right) / _WIDTH, 1 - (top + bottom) / _HEIGHT), facecolor="none"
    )
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_MUTED)
    axes.grid(axis="y", color=_LINE, linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", labelsize=_TEXT, labelcolor=_MUTED, color=_MUTED, length=0, pad=5)
    axes.tick_params(axis="x", length=3)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], min_n_ticks=3))
    axes.yaxis.set_major_formatter(FuncFormatter(_percent if percent else _short))
    axes.margins(x=0.02, y=0.08)
    return figure, axes


def _percent(value: float, _: Any = None) -> str:
    return f"{100 * value:.6g}%".replace("-", "−")


def _short(value: float, _: Any = None) -> str:
    """A tick's value in at most about seven characters."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.6g}".replace("-", "−")
    digits, _, power = f"{value:.2e}".partition("e")
    return f"{float(digits):g}e{int(power)}".replace("-", "−")


def _dash(style: Style) -> Any:
    """The dash pattern for matplotlib, which counts in widths of the line."""
    return (0, tuple(float(each) / 1.8 for each in style.dash.split())) if style.dash else "-"


def _mark(axes: Axes, events: Sequence[Event]) -> None:
    """Draws a vertical line for each event in sight; numbers of events that are close together share a label."""
    low, high = axes.get_xlim()
    seen = [event for event in events if event.number and low <= event.epoch <= high]
    labels: list[list[Event]] = []
    for event in seen:
        axes.axvline(event.epoch, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1.5)
        if labels and event.epoch - labels[-1][-1].epoch < 0.05 * (high - low):
            labels[-1].append(event)
        else:
            labels.append([event])
    for group in labels:
        numbers = [event.number for event in group]
        axes.text(
            sum(event.epoch for event in group) / len(group),
            1.03,
            str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}",
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=_TEXT - 1,
            color=_INK,
            fontweight="bold",
        )


def _svg(figure: Figure, name: str) -> str:
    """A figure as an SVG element: colours as variables, the page's font, ids that are unique in the page."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    stream = io.StringIO()
    # The salt makes ids, and with them the file, the same each time.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name or "chart"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(stream, metadata=nothing)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    # clip paths and shapes that are drawn several times; only these have ids now
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r" ?font(-family)?: [^;\"]*'DejaVu Sans'[^;\"]*;?", _font, text)
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text, count=1)
    text = re.sub(r"#[0-9a-f]{6}\b", lambda found: _as_variable(found[0]), text)
    return re.sub(r"\s*\n\s*", " ", re.sub(r">\s+<", "><", text)).strip()


def _font(found: re.Match[str]) -> str:
    """matplotlib's `font:` shorthand, or its `font-family:`, without the family."""
    if found[1]:
        return ""
    sized = re.search(r"(?P<weight>bold|\d{3})? *(?P<size>[\d.]+px)", found[0])
    if sized is None:
        return ""
    weight = f" font-weight: {sized['weight']};" if sized["weight"] else ""
    return f"{weight} font-size: {sized['size']};"


def _as_variable(colour: str) -> str:
    return f"var({_VARIABLES[colour]})" if colour in _VARIABLES else colour


def has_values(points: Points) -> bool:
    """Returns whether a series has a point that can be drawn."""
    return any(math.isfinite(value) for _, value in points)
