"""Exports a trained model to ONNX, and proves that the file is the model.

    python scripts/export_onnx.py --model_path sparse_quantized_bert --task text_classification

Writes `deployment/` next to the model's folder: model.onnx, config.json, the tokenizer, export_report.json and .md,
README.md (a model card) and report.html.
If a check fails, no folder is written and the exit code is not 0.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from sparse_accel.cli.export import ExportArguments
from sparse_accel.cli.parser import parse_arguments
from sparse_accel.errors import UsageError
from sparse_accel.main import run_main


def main() -> None:
    arguments = parse_arguments(ExportArguments, description=(__doc__ or "").partition("\n")[0])
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"export needs {', '.join(missing)}: pip install 'sparse_accel[onnx]'")

    from sparse_accel.console import table
    from sparse_accel.distributed.threads import set_threads
    from sparse_accel.export.deployment import export
    from sparse_accel.export.report import closing_rows
    from sparse_accel.publish import card_at_end
    from sparse_accel.publish.deployment_log import log_deployment, require_run
    from sparse_accel.report import refresh_report, report_at_end

    require_run(arguments)
    set_threads()
    report = export(arguments)
    card_at_end(Path(report["target"]))
    card_at_end(Path(report["source"]["folder"]), again=True)  # it has the speed of its deployment
    report_at_end(Path(report["target"]))
    refresh_report(Path(report["source"]["folder"]))
    print(table(f"{report['target']}: proven", closing_rows(report)))
    log_deployment(arguments.report_to, report)


if __name__ == "__main__":
    run_main(main)
