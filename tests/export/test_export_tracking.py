"""--report_to of the export: figures and files of the deployment in the run that trained the model."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from export_fixtures import export
from script_fixtures import Tiny, run
from wandb_files import records

pytest_plugins = ["script_fixtures", "export_fixtures"]
pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_SILENT", "true")


def test_the_run_gets_its_deployment(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, target = tmp_path / "run", tmp_path / "deployment"
    arguments = {"num_epochs": 1, "qat_start_epoch": 0.3, "observer_epoch": 0.8}
    named = {"project": "mine", "entity": "us", "recipe_args": arguments}
    trained = run(**tiny.flags(**named), output_dir=output, report_to="wandb mlflow")
    assert trained.code == 0, trained.all
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    done = export(model_path=output, task="text_classification", report_to="wandb mlflow")
    assert done.code == 0, done.all
    report = json.loads((target / "export_report.json").read_text())
    size = report["files"]["model.onnx"]["bytes"] / 1e6

    first, second = sorted((output / "tracking").rglob("*.wandb"), key=lambda path: path.stat().st_mtime)
    opened = [
        next(r.run for r in records(file.parent) if r.WhichOneof("record_type") == "run") for file in (first, second)
    ]
    assert opened[0].run_id == opened[1].run_id
    assert {(each.entity, each.project) for each in opened} == {("us", "mine")}
    found: dict[str, Any] = {}
    files: set[str] = set()
    for record in records(second.parent):
        if record.WhichOneof("record_type") == "history":
            found |= {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
        elif record.WhichOneof("record_type") == "artifact" and record.artifact.type == "deployment":
            files = {entry.path for entry in record.artifact.manifest.contents}
    assert found["deployment/megabytes"] == pytest.approx(size)
    assert found["deployment/accuracy"] == report["fidelity"]["onnxruntime"]["accuracy"]
    assert found["deployment/milliseconds/quantized"] == pytest.approx(
        report["latency"]["onnxruntime"]["1"]["quantized"]
    )
    assert {"model.onnx", "export_report.json", "README.md"} <= files

    client_of: Any = importlib.import_module("mlflow").MlflowClient
    client = client_of(f"sqlite:///{output / 'tracking' / 'mlflow.db'}")
    run_id = (output / "tracking" / "mlflow_run_id").read_text().strip()
    assert client.get_run(run_id).data.metrics["deployment/megabytes"] == pytest.approx(size)
    assert "deployment/model.onnx" in {item.path for item in client.list_artifacts(run_id, "deployment")}


def test_a_model_that_no_tracker_followed(tiny: Tiny, tmp_path: Path) -> None:
    refused = export(model_path=tiny.model, report_to="wandb", output_dir=tmp_path / "out")
    assert refused.code == 2 and "is not the output folder of a run with --report_to wandb" in refused.err
    wrong = export(model_path=tiny.model, report_to="wandv", output_dir=tmp_path / "out")
    assert wrong.code == 2 and "cannot be sent to 'wandv'. Did you mean 'wandb'?" in wrong.err
    assert not (tmp_path / "out").exists()


def test_a_tracker_that_fails_at_the_end(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deployment is complete, its table is printed, and the other tracker has it."""

    def no_account(*_: Any, **__: Any) -> None:
        raise importlib.import_module("wandb").errors.UsageError("No API key configured.")

    output = tmp_path / "run"
    recipe_args = {"num_epochs": 1, "qat_start_epoch": 0.3, "observer_epoch": 0.8}
    trained = run(**tiny.flags(recipe_args=recipe_args), output_dir=output, report_to="wandb mlflow")
    assert trained.code == 0, trained.all
    flags = {"model_path": output, "task": "text_classification", "report_to": "wandb mlflow"}

    with monkeypatch.context() as patched:
        patched.setattr("wandb.login", no_account)
        before = export(**flags)
    assert before.code == 2 and "--report_to wandb: No API key configured. Without an account" in before.err
    assert "Nothing was exported" in before.err and not (tmp_path / "deployment").exists()

    monkeypatch.setattr("wandb.init", no_account)
    done = export(**flags)
    assert done.code == 2 and "proven" in done.out, done.all
    assert "--report_to wandb: No API key configured" in done.err and "The deployment is complete" in done.err
    assert "Traceback" not in done.err and (tmp_path / "deployment" / "model.onnx").is_file()
    client: Any = importlib.import_module("mlflow").MlflowClient(f"sqlite:///{output / 'tracking' / 'mlflow.db'}")
    found = client.get_run((output / "tracking" / "mlflow_run_id").read_text().strip())
    assert found.data.metrics["deployment/megabytes"] > 0 and found.info.status == "FINISHED"
