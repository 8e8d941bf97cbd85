"""The section on decisions: confusion matrix, figures by label, most confident mistakes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sparse_accel.report import units
from sparse_accel.report.page import Block, Cell, Mistake, Mistakes, Row, SideBySide, Table, Words
from sparse_accel.report.read import Run, as_list, number

# A matrix of more labels cannot be read: the most frequent confusions are listed.
_MOST_LABELS = 30
# Of more labels, the matrix has small cells without fractions.
_FEW_LABELS = 6
_MOST_MISTAKES = 20
_MOST_CONFUSIONS = 20
_LONGEST_TEXT = 400
_NO_ANSWER = "no answer"


def decision_blocks(run: Run) -> list[Block]:
    """Returns the blocks of each set of rows that the finished model was evaluated on."""
    several = len(run.evaluation) > 1
    return [
        block for name, entry in run.evaluation.items() for block in _blocks(entry, name if several else "", run.unit)
    ]


def _blocks(entry: dict[str, Any], name: str, unit: str) -> Iterator[Block]:
    of = f", {name}" if name else ""
    labels = [str(label) for label in as_list(entry.get("labels"))]
    confusion = [as_list(row) for row in as_list(entry.get("confusion"))]
    square = bool(confusion) and all(len(row) == len(confusion) == len(labels) for row in confusion)
    tables: list[Table] = []
    if square and len(labels) <= _MOST_LABELS:
        tables.append(_confusion(labels, confusion, of, unit))
    elif square:
        found = _confusions(labels, confusion)
        most = found[:_MOST_CONFUSIONS]
        words = (
            f"{len(most)} of {len(found)} kinds of confusions are listed" if found else "nothing was labelled wrongly"
        )
        yield Words(f"A confusion matrix of {len(labels)} labels would be too large to read: {words}.")
        if most:
            tables.append(Table(["labelled", "predicted", unit], most, f"Most frequent confusions{of}"))
    per_label = [row for row in as_list(entry.get("per_label")) if isinstance(row, dict)]
    if per_label:
        names = list(dict.fromkeys(key for row in per_label for key in row if key != "label"))
        rows: list[list[Cell | str]] = [
            [str(row.get("label", "")), *(_of_label(key, row.get(key)) for key in names)] for row in per_label
        ]
        head = ["rows" if key == "support" and unit == "rows" else key for key in ("label", *names)]
        tables.append(Table(head, rows, f"By label{of}"))
    if tables:
        yield SideBySide(tables)
    mistakes = [row for row in as_list(entry.get("mistakes")) if isinstance(row, dict)][:_MOST_MISTAKES]
    if mistakes:
        questions = unit == "questions"
        note = f"{of.strip(', ')} {_rows(entry, questions)}".strip()
        yield Mistakes([_mistake(row, questions) for row in mistakes], note, questions)


def _confusions(labels: list[str], confusion: list[list[Any]]) -> list[Row]:
    """The row's label, the predicted one and the number of rows of each pair that was confused, most rows first."""
    found = [
        (rows, labels[true], labels[predicted])
        for true, counts in enumerate(confusion)
        for predicted, value in enumerate(counts)
        if true != predicted and (rows := number(value) or 0.0) > 0
    ]
    found.sort(key=lambda each: -each[0])
    return [[true, predicted, Cell(units.plain(rows))] for rows, true, predicted in found]


def _confusion(labels: list[str], confusion: list[list[Any]], of: str, unit: str) -> Table:
    rows: list[list[Cell | str]] = []
    for label, counts in zip(labels, confusion, strict=True):
        values = [number(count) or 0.0 for count in counts]
        total = sum(values) or 1.0
        cells = [
            Cell(
                units.plain(count),
                shade=units.fraction(value / total),
                note=units.percent(value / total) if len(labels) <= _FEW_LABELS else "",
                good=column == len(rows),
            )
            for column, (count, value) in enumerate(zip(counts, values, strict=True))
        ]
        rows.append([label, *cells])
    few = len(labels) <= _FEW_LABELS
    note = f"{'Fractions are' if few else 'Shades are fractions'} of the {unit} with this label. "
    note += "Blue is right, orange is wrong."
    head = ["labelled ↓  predicted →", *labels]
    return Table(head, rows, f"Confusion matrix{of}", note, matrix=True, small=not few)


def _of_label(key: str, value: Any) -> Cell:
    if units.is_fraction(key):
        return Cell(units.percent(value), bar=units.fraction(value))
    return Cell(units.plain(value))


def _mistake(row: dict[str, Any], questions: bool) -> Mistake:
    text = str(row.get("text", ""))
    return Mistake(
        place=f"{'question' if questions else 'row'} {units.plain(row.get('row'))}",
        text=text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]} ... ({len(text):,} characters)",
        label=str(row.get("label", "")) or (_NO_ANSWER if questions else ""),
        predicted=str(row.get("predicted", "")) or (_NO_ANSWER if questions else ""),
        confidence=units.percent(row.get("confidence")),
    )


def _rows(entry: dict[str, Any], questions: bool) -> str:
    unit = "Questions" if questions else "Rows"
    return f"{unit} of {entry['source']}." if entry.get("source") else ""
