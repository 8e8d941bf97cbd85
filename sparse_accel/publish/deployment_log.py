"""Sends a deployment to the trackers of the run that trained its model: `deployment/NAME`, and its files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sparse_accel.cli.export import ExportArguments
from sparse_accel.errors import UsageError
from sparse_accel.training.tracking import RUN_IDS, logging_folder, require_trackers


def require_run(arguments: ExportArguments) -> None:
    """Checks that the trackers of --report_to can be reached and know the model's run; call it before exporting.

    Raises:
        UsageError: a tracker is not installed, did not follow the run, or refuses this user.
    """
    require_trackers(arguments.report_to)
    for name in arguments.report_to:
        folder = Path(logging_folder(Path(str(arguments.model_path))))
        if not (folder / RUN_IDS[name]).is_file():
            raise UsageError(
                f"--report_to {name}: {arguments.model_path} is not the output folder of a run with --report_to {name}"
            )
        try:
            {"wandb": _reach_wandb, "mlflow": _reach_mlflow}[name](folder)
        except Exception as error:
            raise UsageError(f"{_problem(name, error)}. Nothing was exported; leave out --report_to {name}") from error


def log_deployment(trackers: tuple[str, ...], report: dict[str, Any]) -> None:
    """Logs the figures of an export, and its files as the artifact `deployment`, in the run that trained the model.

    Args:
        trackers: names, checked by `require_run`.
        report: the content of export_report.json.

    Raises:
        UsageError: a tracker failed; the others have the deployment.
    """
    target, folder = Path(report["target"]), Path(logging_folder(Path(report["source"]["folder"])))
    figures, problems = deployment_figures(report), []
    for name in trackers:
        try:
            {"wandb": _log_to_wandb, "mlflow": _log_to_mlflow}[name](folder, target, figures)
        except Exception as error:
            problems.append(_problem(name, error))
    if problems:
        raise UsageError(f"{'; '.join(problems)}. The deployment is complete, but was not sent there: {target}")


def _problem(name: str, error: Exception) -> str:
    hint = ". Without an account, set WANDB_MODE=offline in the environment" if name == "wandb" else ""
    return f"--report_to {name}: {str(error).rstrip('.') or type(error).__name__}{hint}"


def _reach_wandb(folder: Path) -> None:
    import wandb

    wandb.login()  # raises if there is no account, and no terminal to ask for one; offline it does nothing


def _log_to_wandb(folder: Path, target: Path, figures: dict[str, float]) -> None:
    import wandb

    place = (folder / "wandb_project").read_text(encoding="utf-8").strip().split("/")
    options: dict[str, Any] = {"project": place[-1], "dir": os.environ.get("WANDB_DIR") or str(folder)}
    options |= {"entity": place[0]} if len(place) > 1 else {}
    run = wandb.init(id=_id(folder, "wandb"), resume="allow", **options)
    try:
        run.log(figures)
        artifact = wandb.Artifact(f"deployment-{run.id}", type="deployment")
        artifact.add_dir(str(target))
        run.log_artifact(artifact)
    finally:
        run.finish(exit_code=0)  # the training that this run is of did not fail


def _reach_mlflow(folder: Path) -> None:
    _mlflow(folder).get_run(_id(folder, "mlflow"))


def _log_to_mlflow(folder: Path, target: Path, figures: dict[str, float]) -> None:
    mlflow, run_id = _mlflow(folder), _id(folder, "mlflow")
    mlflow.log_metrics(figures, run_id=run_id)
    mlflow.log_artifacts(str(target), artifact_path="deployment", run_id=run_id)


def _mlflow(folder: Path) -> Any:
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{(folder / 'mlflow.db').resolve()}")
    import mlflow

    return mlflow


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
    return (folder / RUN_IDS[tracker]).read_text(encoding="utf-8").strip()
