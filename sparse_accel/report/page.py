"""What a page is made of, and the page as HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sparse_accel.report.charts import Line
from sparse_accel.report.history import Event

if TYPE_CHECKING:
    from markupsafe import Markup


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        bar: length of a bar behind the text, from 0 to 1.
        shade: depth of its background, from 0 to 1, in a matrix.
        interval: (low, value, high), each from 0 to 1 on the scale of its column, drawn as a line with a point.
        note: small text under it.
        numeric: aligned to the right.
        good: a matrix' cell that counts correct decisions.
    """

    text: str
    bar: float | None = None
    shade: float | None = None
    interval: tuple[float, float, float] | None = None
    note: str = ""
    numeric: bool = True
    good: bool = False

    @property
    def is_drawn(self) -> bool:
        """Returns whether there is a bar or an interval next to the text."""
        return self.bar is not None or self.interval is not None


Row = Sequence[Cell | str]


@dataclass(frozen=True)
class Table:
    """A table; its first column names the rows.

    Attributes:
        folded: if not empty, the table is closed at first, and this opens it.
        matrix: cells are shaded squares, as in a confusion matrix.
        small: the squares are small, and the names of columns stand upright.
    """

    head: Sequence[str]
    rows: Sequence[Row]
    title: str = ""
    note: str = ""
    folded: str = ""
    matrix: bool = False
    small: bool = False
    kind: ClassVar[str] = "table"

    def is_numeric(self, column: int) -> bool:
        """Returns whether a column has only numbers, which are aligned to the right."""
        cells = [row[column] for row in self.rows if column < len(row)]
        return (
            column > 0
            and any(isinstance(cell, Cell) and cell.numeric for cell in cells)
            and not any(isinstance(cell, Cell) and cell.is_drawn for cell in cells)
        )


@dataclass(frozen=True)
class SideBySide:
    """Small tables next to each other."""

    tables: Sequence[Table]
    kind: ClassVar[str] = "side by side"


@dataclass(frozen=True)
class Command:
    """The command of a run."""

    text: str
    kind: ClassVar[str] = "command"


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        svg: trusted markup, from `charts`.
        lines: for the legend.
        level: what the horizontal line is.
        bars: whether colours mean bars instead of lines.
        values: the last value of each line as text, by name.
    """

    title: str
    svg: str
    lines: Sequence[Line] = ()
    axis: str = "epoch"
    level: str = ""
    bars: bool = False
    note: str = ""
    values: dict[str, str] = field(default_factory=dict)
    kind: ClassVar[str] = "chart"

    @property
    def alone(self) -> str:
        """Returns the last value of the only line, which needs no legend; empty if there is more to tell apart."""
        return "" if len(self.lines) != 1 or self.level else self.values.get(self.lines[0].name, "")


@dataclass(frozen=True)
class Charts:
    """Charts next to each other, with the events that are marked in them."""

    charts: Sequence[Chart]
    events: Sequence[Event] = ()
    kind: ClassVar[str] = "charts"


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    rows: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Words:
    """A paragraph; `warning` if it must not be missed."""

    text: str
    warning: bool = False
    kind: ClassVar[str] = "words"


@dataclass(frozen=True)
class Listing:
    """A text such as a recipe, closed at first."""

    title: str
    text: str
    kind: ClassVar[str] = "listing"


@dataclass(frozen=True)
class Mistake:
    """A row that the model got wrong."""

    place: str
    text: str
    label: str
    predicted: str
    confidence: str


@dataclass(frozen=True)
class Mistakes:
    """Rows that the model got wrong.

    Attributes:
        questions: whether they are questions: an answer is expected, a label is not.
    """

    rows: Sequence[Mistake]
    note: str = ""
    questions: bool = False
    kind: ClassVar[str] = "mistakes"


Block = Table | SideBySide | Command | Charts | Facts | Words | Listing | Mistakes


@dataclass(frozen=True)
class Section:
    """A part of the page, with its anchor."""

    title: str
    anchor: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Tile:
    """One of the figures at the top."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Page:
    """A complete page."""

    title: str
    subtitle: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    foot: str = ""


def render(page: Page) -> str:
    """Returns a page as one HTML file without scripts, which loads nothing. All text is escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    here = Path(__file__).parent
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["breakable"] = _breakable
    template = environment.from_string((here / "page.html").read_text(encoding="utf-8"))
    style = (here / "page.css").read_text(encoding="utf-8")
    return template.render(page=page, style=Markup(style), svg=Markup)


def _breakable(text: str) -> Markup:
    """A text, escaped, that may be broken into lines after each slash; a name of a weight, after each dot."""
    from markupsafe import Markup, escape

    after = r"\w/" if "/" in text else r"[A-Za-z_]\."
    return Markup(re.sub(rf"(?<={after})(?=\w)", "<wbr>", str(escape(text))))
