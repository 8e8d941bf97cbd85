"""Sends a deployment to the trackers of the run that trained its model: `deployment/NAME`, and its files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sparse_accel.cli.export import ExportArguments
from sparse_accel.errors import UsageError
from sparse_accel.training.tracking import logging_folder, require_trackers

_IDS = {"wandb": "wandb_run_id", "mlflow": "mlflow_run_id"}


def require_run(arguments: ExportArguments) -> None:
    """Checks that the model's run is known to the trackers of --report_to; call it before exporting.

    Raises:
        UsageError: a tracker is not installed, or did not follow the run.
    """
    require_trackers(arguments.report_to)
    for name in arguments.report_to:
        file = Path(logging_folder(Path(str(arguments.model_path)))) / _IDS[name]
        if not file.is_file():
            raise UsageError(
                f"--report_to {name}: {arguments.model_path} is not the output folder of a run with --report_to {name}"
            )


def log_deployment(trackers: tuple[str, ...], report: dict[str, Any]) -> None:
    """Logs the figures of an export, and its files as the artifact `deployment`, in the run that trained the model.

    Args:
        trackers: names, checked by `require_run`.
        report: the content of export_report.json.
    """
    if not trackers:
        return
    target, folder = Path(report["target"]), Path(logging_folder(Path(report["source"]["folder"])))
    figures = deployment_figures(report)
    if "wandb" in trackers:
        import wandb

        place = (folder / "wandb_project").read_text(encoding="utf-8").strip().split("/")
        options: dict[str, Any] = {"project": place[-1], "dir": os.environ.get("WANDB_DIR") or str(folder)}
        options |= {"entity": place[0]} if len(place) > 1 else {}
        run = wandb.init(id=_id(folder, "wandb"), resume="allow", **options)
        run.log(figures)
        artifact = wandb.Artifact(f"deployment-{run.id}", type="deployment")
        artifact.add_dir(str(target))
        run.log_artifact(artifact)
        run.finish()
    if "mlflow" in trackers:
        import mlflow

        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{(folder / 'mlflow.db').resolve()}")
        with mlflow.start_run(run_id=_id(folder, "mlflow")):
            mlflow.log_metrics(figures)
            mlflow.log_artifacts(str(target), artifact_path="deployment")


def deployment_figures(report: dict[str, Any]) -> dict[str, float]:
    """Returns the figures of an export report by the names under which they are logged."""
    figures = {"deployment/megabytes": report["files"]["model.onnx"]["bytes"] / 1e6}
    fidelity = report["fidelity"]
    figures["deployment/agreement"] = fidelity["agreement"]
    figures |= {f"deployment/{name}": float(value) for name, value in (fidelity.get("onnxruntime") or {}).items()}
    for name, milliseconds in report["latency"]["onnxruntime"].get("1", {}).items():
        figures[f"deployment/milliseconds/{name.replace(', ', '_').replace(' ', '_')}"] = float(milliseconds)
    return {name: value for name, value in figures.items() if value is not None}


def _id(folder: Path, tracker: str) -> str:
    return (folder / _IDS[tracker]).read_text(encoding="utf-8").strip()
