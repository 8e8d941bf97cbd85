"""The sections on sizes and speed, from the model's file and the reports of its exports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparse_accel.report import units
from sparse_accel.report.page import Block, Cell, Section, Table, Tile, Words
from sparse_accel.report.read import Export, Run, as_list, number

# Names of `latency` in export_report.json, as this page calls them, in its order.
_CONTESTANTS = {
    "float": "float",
    "quantized": "INT8",
    "sparse kernels": "INT8 + sparse kernels",
    "float, no zeros": "float, without zeros",
    "quantized, no zeros": "INT8, without zeros",
    "sparse kernels, no zeros": "INT8 + sparse kernels, without zeros",
    "float, full size": "float, full size",
    "quantized, full size": "INT8, full size",
    "sparse kernels, full size": "INT8 + sparse kernels, full size",
}
_FULL_SIZE = "Full size: the model as it was trained, with the heads and neurons that this export removed."
_ZEROS = "Without zeros: the same graph with random weights, which shows what the zeros gain."
_FASTEST_FIRST = ("sparse kernels", "quantized")


def export_tiles(run: Run) -> Iterator[Tile]:
    """Yields the size and the speed of the first export."""
    if not run.exports:
        return
    export = run.exports[0]
    packed = _dict(export.report.get("files"))
    smallest = {name: _dict(each) for name, each in packed.items() if name != "float32"}
    if smallest:
        name = min(smallest, key=lambda each: number(smallest[each].get("bytes")) or float("inf"))
        ratio = number(smallest[name].get("ratio"))
        note = f"{name}, {units.percent(ratio)} of dense float32" if ratio is not None else name
        yield Tile("file", units.size(smallest[name].get("bytes")), note)
    speed = speed_over_float(export)
    if speed:
        factor, name, batch = speed
        yield Tile("speed over float", units.times(factor), f"{name}, batch {batch}, one thread")


def speed_over_float(export: Export) -> tuple[float, str, str] | None:
    """Returns (factor, contestant, batch) of onnxruntime at the smallest batch; None where it was not measured."""
    table = _dict(_dict(export.report.get("latency")).get("onnxruntime"))
    for batch, times in table.items():
        in_float = _in_float(_dict(times))
        for name in _FASTEST_FIRST:
            measured = number(_dict(times).get(name))
            if in_float and measured:
                return in_float / measured, _CONTESTANTS[name], str(batch)
    return None


def size_section(run: Run) -> Section:
    """Returns the sizes of all files of the model."""
    rows: list[tuple[str, str, float, float | None]] = []
    if (trained := run.model_bytes()) is not None:
        rows.append(("model.safetensors", "trained, float32, zeros stored like other weights", float(trained), None))
    for export in run.exports:
        for name, each in _dict(export.report.get("files")).items():
            bytes_ = number(_dict(each).get("bytes"))
            if bytes_ is not None:
                words = "the same model, dense, in float32" if name == "float32" else export.folder.name
                rows.append(
                    (
                        name if name != "float32" else "ONNX, dense float32",
                        words,
                        bytes_,
                        number(_dict(each).get("ratio")),
                    )
                )
    rows = list(dict.fromkeys(rows))
    largest = max((bytes_ for _, _, bytes_, _ in rows), default=1.0) or 1.0
    cells = [
        [
            Cell(name, note=words),
            Cell(units.size(bytes_), bar=units.fraction(bytes_ / largest)),
            Cell(units.percent(ratio)),
        ]
        for name, words, bytes_, ratio in rows
    ]
    head = ["file", "size", "of dense float32"]
    return Section("Size", "size", [Table(head, cells)] if cells else [])


def speed_section(run: Run) -> Section:
    """Returns the latencies and the checks of each export."""
    blocks: list[Block] = []
    for export in run.exports:
        blocks += list(_of_export(export, len(run.exports) > 1))
    return Section("Export and speed", "speed", blocks)


def _of_export(export: Export, several: bool) -> Iterator[Block]:
    report = export.report
    if export.older:
        words = (
            f"The model's file is newer than the export in {export.folder}: these figures may be of an earlier model."
        )
        yield Words(words, warning=True)
    name = f"{export.folder.name}: " if several else ""
    cpu = _dict(report.get("cpu"))
    where = f"{cpu.get('name', 'a CPU')}{'' if cpu.get('vnni', True) else ', without VNNI'}"
    how = f"One thread, {units.plain(report.get('tokens'))} tokens, medians, on {where}."
    left = structure_table(report.get("structure"), ("trained", "exported"), f"{name}Structure that was removed")
    note = f"{how} {_ZEROS} {f'{_FULL_SIZE} ' if left else ''}{_about_kernels(report)}"
    if left:
        yield left
    for runtime, table in _dict(report.get("latency")).items():
        yield _latencies(f"{name}Milliseconds in {runtime}", _dict(table), note.strip())
    checks = [check for check in as_list(report.get("checks")) if isinstance(check, dict)]
    if checks:
        rows: list[list[Cell | str]] = [
            [
                str(each.get("name", "")),
                Cell(str(each.get("result", "")), numeric=False),
                Cell(str(each.get("detail", "")), numeric=False),
            ]
            for each in checks
        ]
        yield Table(["check", "result", ""], rows, folded=f"{name}{_summary(checks)}")


def structure_table(structure: Any, headings: tuple[str, str], title: str) -> Table | None:
    """Returns the size of a model with its zero heads and neurons, and without; None if none is zero.

    Args:
        structure: of export_report.json or sparsity.json.
        headings: of the two sizes.
    """
    before, after = (_dict(_dict(structure).get(key)) for key in ("before", "after"))
    names = {
        "attention_heads": "attention heads",
        "ffn_neurons": "feed-forward neurons",
        "parameters": "parameters",
        "multiply_adds": "multiply-adds of a token",
    }
    rows: list[list[Cell | str]] = []
    for key, words in names.items():
        full, left = _total(before.get(key)), _total(after.get(key))
        if full and left is not None:
            by_block = ", ".join(map(units.plain, as_list(after.get(key))))
            share = Cell(units.percent(left / full), bar=units.fraction(left / full))
            rows.append(
                [
                    Cell(words, note=f"by block: {by_block}" if by_block else ""),
                    units.plain(full),
                    units.plain(left),
                    share,
                ]
            )
    if before == after or not rows:
        return None
    note = "Heads and neurons that are zero in the trained model. Multiply-adds: of the encoder's Linear layers."
    return Table(["", *headings, "left"], rows, title, note)


def _total(value: Any) -> float | None:
    """A number of the whole model, which may be given by block."""
    found = [number(each) for each in (value if isinstance(value, list) else [value])]
    return None if None in found else sum(each for each in found if each is not None)


def _in_float(times: Mapping[str, Any]) -> float | None:
    """The milliseconds of the float model, in the size that it was trained in."""
    return number(times.get("float, full size", times.get("float")))


def _summary(checks: Sequence[Mapping[str, Any]]) -> str:
    passed = sum(each.get("result") == "pass" for each in checks)
    return f"What the export proved: {passed} of {len(checks)} checks passed"


def _about_kernels(report: Mapping[str, Any]) -> str:
    reason = _dict(report.get("sparse_kernels")).get("reason")
    return f"Sparse kernels are not used: {reason}." if reason else ""


def _latencies(title: str, table: dict[str, Any], note: str) -> Table:
    """A row for each contestant, a column for each batch size, with its factor over the float model."""
    measured = {str(batch): _dict(times) for batch, times in table.items()}
    names = list(dict.fromkeys(name for times in measured.values() for name in times))
    names.sort(key=lambda name: list(_CONTESTANTS).index(name) if name in _CONTESTANTS else len(_CONTESTANTS))
    full_size = ", full size" if "float, full size" in names else ""
    rows: list[list[Cell | str]] = []
    for name in names:
        row: list[Cell | str] = [_CONTESTANTS.get(name, name)]
        for times in measured.values():
            value, in_float = number(times.get(name)), _in_float(times)
            longest = max((number(each) or 0.0 for each in times.values()), default=0.0) or 1.0
            factor = (
                f"{units.times(in_float / value)} as fast as float{full_size}"
                if value and in_float and name in _FASTEST_FIRST
                else ""
            )
            row.append(
                Cell(units.milliseconds(value), bar=units.fraction(value / longest) if value else None, note=factor)
            )
        rows.append(row)
    return Table(["", *(f"batch {batch}" for batch in measured)], rows, title, note)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
