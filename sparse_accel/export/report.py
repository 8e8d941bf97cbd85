"""export_report.json and export_report.md: the proof, the kernels, the measurements, and advice."""

from __future__ import annotations

from typing import Any

from sparse_accel.errors import with_article
from sparse_accel.export.measure import FULL_SIZE, KERNELS
from sparse_accel.export.structure import in_words, is_smaller

RUNTIME = "sparse_accel.runtime"
# The known gains of runtimes, for those not measured in this run.
_KNOWN = {
    "onnxruntime": "faster with 8-bit integers; alone, it does not skip zeros",
    RUNTIME: "faster with zeros too, in onnxruntime, with `--format qdq`, on Linux and x86-64",
    "OpenVINO": "faster with 8-bit integers; zeros have no effect",
    "DeepSparse": "faster with zeros too, with `--format integer`; it runs `qdq` slower than float. Discontinued in "
    "2025, but version 1.8 still installs on Python up to 3.11",
}


def gains_of_runtimes(latency: dict[str, Any], quantized: bool) -> dict[str, dict[str, dict[str, float]]]:
    """Returns speed-ups by runtime and batch size: see `gains` and `gains_of_kernels`."""
    found = {runtime: gains(table, quantized) for runtime, table in latency.items()}
    if any(KERNELS in times for times in latency["onnxruntime"].values()):
        found[RUNTIME] = gains_of_kernels(latency["onnxruntime"])
    return found


def gains(table: dict[str, dict[str, float]], quantized: bool) -> dict[str, dict[str, float]]:
    """Returns, by batch size, the speed-up from integers, from zeros and, if some was removed, from structure, as a
    factor.

    Args:
        table: milliseconds by batch size and contestant; see `measure.latencies`.
        quantized: whether the model is quantized; otherwise there is no entry for integers.
    """
    found: dict[str, dict[str, float]] = {}
    for batch, times in table.items():
        name = "quantized" if quantized else "float"
        exported = times[name]
        row = {"zeros": times[f"{name}, no zeros"] / exported}
        if quantized:
            row["integers"] = times["float"] / exported
        if f"{name}, {FULL_SIZE}" in times:
            row["structure"] = times[f"{name}, {FULL_SIZE}"] / exported
        found[batch] = {name: round(value, 2) for name, value in row.items()}
    return found


def gains_of_kernels(table: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Returns, by batch size, how many times as fast the session with kernels is as that of the same file without, as
    the float model, and as itself without zeros; if structure was removed, also as itself in full size, which the float
    model then has too.

    Args:
        table: milliseconds in onnxruntime by batch size and contestant.
    """
    found = {}
    for batch, times in table.items():
        # Where kernels cannot run a model without zeros, that model runs without them.
        others = {"over_int8": times["quantized"], "over_float": times.get(f"float, {FULL_SIZE}", times["float"])}
        others["zeros"] = times.get(f"{KERNELS}, no zeros", times["quantized, no zeros"])
        if f"quantized, {FULL_SIZE}" in times:
            others["structure"] = times.get(f"{KERNELS}, {FULL_SIZE}", times[f"quantized, {FULL_SIZE}"])
        found[batch] = {name: round(value / times[KERNELS], 2) for name, value in others.items()}
    return found


def advice(report: dict[str, Any]) -> list[str]:
    """Returns sentences about where this model runs fast, from the measurements, else from known results."""
    lines: list[str] = []
    for runtime, words in _KNOWN.items():
        measured = report["gains"].get(runtime)
        if measured is None:
            why = f": {report['sparse_kernels']['reason']}" if runtime == RUNTIME else ""
            lines.append(f"{runtime} (not measured here{why}): {words}.")
            continue
        if runtime == RUNTIME:
            lines.append(f"{runtime} (measured, one thread): {speed_of_kernels(measured)}.")
            continue
        parts = []
        for batch, row in measured.items():
            gained = [f"{row[what]:g}x from {what}" for what in ("integers", "zeros", "structure") if what in row]
            parts.append(f"batch {batch}: {', '.join(gained)}")
        lines.append(f"{runtime} (measured, one thread): {'; '.join(parts)}.")
    if report["may_overflow"] and report["cpu"]["vnni"] is False:
        lines.append(
            f"This CPU ({report['cpu']['name']}) has no VNNI: its 8-bit products are slower, and sums of two may "
            "overflow 16 bits in onnxruntime. If the agreement above is not good enough, export with --reduce_range "
            "(7-bit activations), or --format integer, whose unsigned weights use kernels that cannot overflow."
        )
    if report["reduce_range"]:
        lines.append(
            "--reduce_range: activations have 7 bits here and 8 in training; the checks above compare the file with "
            "the 7-bit model."
        )
    return lines


def speed_of_kernels(measured: dict[str, dict[str, float]]) -> str:
    """Returns the gains of kernels as text."""
    lines = []
    for batch, row in measured.items():
        size, structure = "", ""
        if "structure" in row:
            size, structure = f", {FULL_SIZE}", f", {row['structure']:g}x from structure"
        speed = f"{row['over_int8']:g}x as fast as onnxruntime alone, {row['over_float']:g}x as fast as float{size}"
        lines.append(f"batch {batch}: {speed}; {row['zeros']:g}x from zeros{structure}")
    return "; ".join(lines)


def as_text(report: dict[str, Any]) -> str:
    """Returns the content of export_report.md."""
    source, sizes = report["source"], report["files"]
    lines = [
        "# Export report",
        "",
        f"`model.onnx` was made from `{source['folder']}` (weights {source['weights']}): "
        f"{with_article(source['model_type'])} for {report['task'].replace('_', ' ')}, "
        f"format `{report['format']}`, opset {report['opset']}, IR version {report['ir_version']}.",
        "",
        "## Proof",
        "",
        "| check | result | |",
        "|---|---|---|",
    ]
    lines += [f"| {check['name']} | {check['result']} | {check['detail']} |" for check in report["checks"]]
    lines += [line for note in report["notes"] for line in ("", f"Note: {note}.")]
    lines += ["", *_structure_as_text(report["structure"])]
    lines += _kernels_as_text(report)
    lines += ["", "## Size", "", "| file | bytes | fraction of dense float32 |", "|---|---|---|"]
    lines += [f"| {name} | {size['bytes']:,} | {size['ratio']:.3f} |" for name, size in sizes.items()]
    lines += ["", f"## Speed: milliseconds, one thread, {report['tokens']} tokens, medians of one interleaved run", ""]
    for runtime, table in report["latency"].items():
        names = list(next(iter(table.values())))
        lines += [f"| {runtime}, batch | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
        lines += [f"| {batch} | {' | '.join(f'{row[name]:.1f}' for name in names)} |" for batch, row in table.items()]
        lines.append("")
    lines += ["## Where it runs fast", "", *[f"- {line}" for line in report["advice"]], ""]
    lines += ["## Weights as stored", "", "| weight | type | zeros | of |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {entry['dtype']} | {entry['sparsity']:.1%} | {entry['weights']:,} |"
        for name, entry in report["layers"].items()
    ]
    return "\n".join(lines) + "\n"


def _structure_as_text(structure: dict[str, Any] | None) -> list[str]:
    """The lines of the section on what was removed; none if nothing was."""
    if structure is None or not is_smaller(structure):
        return []
    before, after = structure["before"], structure["after"]
    lines = ["## Structure", "", "Heads and neurons that are zero in the trained model were removed. Left are:", ""]
    lines += [f"- {line}" for line in in_words(structure)]
    lines += ["", "| block | heads | of | neurons | of |", "|---|---|---|---|---|"]
    columns = [each[key] for key in ("attention_heads", "ffn_neurons") for each in (after, before)]
    lines += [f"| {number} | {' | '.join(map(str, row))} |" for number, row in enumerate(zip(*columns, strict=True))]
    return [*lines, ""]


def _kernels_as_text(report: dict[str, Any]) -> list[str]:
    """The lines of the section on the kernels of sparse_accel.runtime."""
    found = report["sparse_kernels"]
    lines = ["## Sparse kernels", ""]
    if "instruction_set" not in found:
        return [*lines, f"The kernels of `{RUNTIME}` are not used: {found['reason']}."]
    operators = ", ".join(f"{count} {name}" for name, count in found["operators"].items())
    used = f"not used: {found['reason']}" if found["reason"] else f"{operators}. Compared with onnxruntime alone:"
    lines += [
        f"Kernels of `{RUNTIME}` for {found['instruction_set']}: {used}",
        "",
        "| check | result | |",
        "|---|---|---|",
    ]
    lines += [f"| {check['name']} | {check['result']} | {check['detail']} |" for check in found["checks"]]
    if measured := report["gains"].get(RUNTIME):
        lines += ["", f"Speed, one thread: {speed_of_kernels(measured)}."]
    lines += [
        "",
        "Density: the fraction of a weight's numbers that its kernel multiplies, zeros that fill up a set included.",
        "",
    ]
    lines += ["| weight | inputs x outputs | zeros | density | kernel |", "|---|---|---|---|---|"]
    for name, each in found["matrices"].items():
        shape = " x ".join(map(str, each["shape"]))
        lines.append(f"| {name} | {shape} | {each['zeros']:.1%} | {each['density']:.3f} | {each['kernel']} |")
    return lines + [f"| {name} | | | | onnxruntime: it {reason} |" for name, reason in found["kept"].items()]


def _kernels_in_short(found: dict[str, Any]) -> str:
    if found["reason"]:
        return f"not used: {found['reason']}"
    kinds = [each["kernel"] for each in found["matrices"].values()]
    words = f"{found['instruction_set']}: {kinds.count('sparse')} sparse matrices, {kinds.count('dense')} dense ones"
    return "\n".join([words, *(f"{check['name']}: {check['result']}: {check['detail']}" for check in found["checks"])])


def closing_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the rows of the table that the script prints at the end."""
    rows = [("task", f"{report['task']}: the model is {with_article(report['head'])}")]
    rows += [(check["name"], f"{check['result']}: {check['detail']}") for check in report["checks"]]
    if is_smaller(report["structure"]):
        rows.append(("left of the model", "\n".join(in_words(report["structure"]))))
    rows += [
        ("size", f"{name} {size['bytes'] / 1e6:.1f} MB, {size['ratio']:.3f} of dense float32")
        for name, size in report["files"].items()
        if name != "float32"
    ]
    rows.append(("sparse kernels", _kernels_in_short(report["sparse_kernels"])))
    for runtime, table in report["latency"].items():
        for batch, times in table.items():
            words = ", ".join(f"{name} {value:.1f} ms" for name, value in times.items())
            rows.append((f"{runtime}, batch {batch}", words))
    rows += [("note", note) for note in report["notes"]]
    return rows + [("advice", line) for line in report["advice"]]
