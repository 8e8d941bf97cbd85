"""The table that the quickstart ends with: what each step did to accuracy, size and speed."""

from __future__ import annotations

from typing import Any

from sparse_accel.wilson_interval import wilson_interval


def of_export(report: dict[str, Any]) -> dict[str, Any]:
    """Returns the figures of an export report that the table shows. Speeds are those of batch 1, on one thread."""
    kernels, milliseconds = report["sparse_kernels"], report["latency"]["onnxruntime"]["1"]
    found = {
        "onnx_checks": {check["name"]: check["result"] for check in report["checks"]},
        "onnx_accuracy": report["fidelity"]["onnxruntime"]["accuracy"],
        "onnx_agreement": report["fidelity"]["agreement"],
        "float_megabytes": report["files"]["float32"]["bytes"] / 1e6,
        "onnx_size": report["files"]["model.onnx"]["ratio"],
        "onnx_archive_size": report["files"]["model.onnx.xz"]["ratio"],
        "onnx_faster": report["gains"]["onnxruntime"]["1"]["integers"],
        "milliseconds": milliseconds,
        "tokens": report["tokens"],
        "kernels_reason": kernels["reason"],
    }
    if not kernels["reason"]:
        found |= {f"kernels_{name}": kernels[name] for name in ("instruction_set", "agreement")}
        found["kernels_accuracy"] = kernels["kernels"]["accuracy"]
        found["kernels_faster_from_zeros"] = report["gains"]["sparse_accel.runtime"]["1"]["zeros"]
    return found


def closing_table(summary: dict[str, Any]) -> str:
    """Returns accuracy, size and speed of three models, the last one also with kernels.

    Args:
        summary: the content of summary.json. Sizes are fractions of the dense float32 file.
    """
    # Of one run, that of the sparse export: its model without zeros is the dense one in all that takes time.
    milliseconds = summary["milliseconds"]

    def row(name: str, accuracy: str, sizes: str | None, contestant: str) -> str:
        low, high = wilson_interval(summary[accuracy], summary["held_out_rows"])
        words = f"{summary[accuracy]:.1%} ({low:.1%} to {high:.1%})"
        size, packed = "1.00", "-"
        if sizes is not None:
            size, packed = (f"{summary[f'{sizes}onnx_{each}']:.2f}" for each in ("size", "archive_size"))
        faster = milliseconds["float"] / milliseconds[contestant]
        return f"{name:<21} {words:<24} {size:>10} {packed:>7} {milliseconds[contestant]:>6.1f} {faster:>6.1f}x"

    lines = [
        f"{'':<21} {'accuracy (95% interval)':<24} {'model.onnx':>10} {'packed':>7} {'ms':>6} {'speed':>7}",
        row("dense", "dense_accuracy", None, "float"),
        row("dense INT8", "dense_int8_accuracy", "dense_int8_", "quantized, no zeros"),
        row("sparse INT8", "sparse_accuracy", "", "quantized"),
    ]
    words = f"Without kernels here: {summary['kernels_reason']}."
    if not summary["kernels_reason"]:
        lines.append(row("sparse INT8 + kernels", "kernels_accuracy", "", "sparse kernels"))
        words = f"Kernels: sparse_accel.runtime, {summary['kernels_instruction_set']}; without the zeros, they take "
        words += f"{summary['kernels_faster_from_zeros']:.1f} times as long."
    return "\n".join(
        [
            *lines,
            "",
            f"Accuracy on {summary['held_out_rows']} held-out sentences. Sizes as fractions of the dense float32 file "
            f"({summary['float_megabytes']:.0f} MB),",
            f"packed: compressed with xz. Milliseconds: onnxruntime, one thread, a row of {summary['tokens']} tokens, "
            "all in one run.",
            words,
            f"Sparse INT8: {summary['encoder_sparsity']:.1%} zeros in the encoder's Linear weights, "
            f"{summary['quantized_linears']} of {summary['linears']} Linears in INT8; the ONNX file decides like",
            f"the PyTorch model on {summary['onnx_agreement']:.2%} of the sentences. "
            f"{summary['seconds'] / 60:.1f} minutes in total.",
        ]
    )
