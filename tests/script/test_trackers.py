"""Trackers beside W&B and TensorBoard, several at once, artifacts, the sweep: each in its local mode."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from places import ROOT
from script_fixtures import SCRIPT, Tiny, environment, history, make_model, run, trace, words
from wandb_files import records, wandb_run

from sparse_accel.cli.trackers import OTHER_TRACKERS, trackers_in
from sparse_accel.errors import UsageError

pytest_plugins = ["script_fixtures"]


@pytest.fixture(scope="module")
def flags(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    teacher = make_model(tmp_path_factory.mktemp("models") / "teacher", sparse=False, head=True)
    recipe_args = {"num_epochs": 2, "qat_start_epoch": 1.0, "observer_epoch": 1.5}
    return tiny.flags(distill_teacher=teacher, recipe_args=recipe_args)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "TRACKIO_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_SILENT", "true")


def unfinished(output: Path) -> None:
    record = output / "run.json"
    record.write_text(record.read_text().replace('"finished": true', '"finished": false'))


@pytest.mark.slow
def test_mlflow(flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client_of: Any = importlib.import_module("mlflow").MlflowClient
    output = tmp_path / "out"
    named = {
        "report_to": "mlflow",
        "project": "mine",
        "run_name": "first",
        "run_tags": "one,two",
        "run_notes": "a note",
    }
    done = run(**flags, **named, log_artifacts="recipe", output_dir="out", cwd=tmp_path)
    assert done.code == 0, done.all
    again = run(**flags, **named, log_artifacts="model report", output_dir="out", cwd=tmp_path)
    assert again.code == 0 and "nothing is trained again" in again.out, "its files are sent all the same"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    client = client_of(f"sqlite:///{output / 'tracking' / 'mlflow.db'}")
    (experiment,) = [each for each in client.search_experiments() if each.name == "mine"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("first", "FINISHED")
    assert found.data.tags["one"] == found.data.tags["two"] == "true"
    assert found.data.tags["mlflow.note.content"] == "a note"
    assert found.data.params["seed"] == "42" and found.data.params["precision"] == "float32"
    losses = {metric.step: metric.value for metric in client.get_metric_history(found.info.run_id, "train/loss")}
    assert losses == pytest.approx(trace(output, "train/loss"))
    files = {item.path for item in client.list_artifacts(found.info.run_id)}
    assert {"recipe", "model", "report", "recipe.yaml", "final", "eval"} <= files
    # Interrupted and started again with another flag, it is the same run.
    unfinished(output)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    again = run(**{**flags, "logging_steps": 3}, **named, output_dir="out", cwd=tmp_path)
    assert again.code == 0, again.all
    assert len(client.search_runs([experiment.experiment_id])) == 1


def test_trackio(flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "shared"))
    trackio: Any = importlib.import_module("trackio")
    storage: Any = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
    monkeypatch.setattr(trackio.utils, "TRACKIO_DIR", tmp_path / "shared")
    monkeypatch.setattr(importlib.import_module("trackio.sqlite_storage"), "TRACKIO_DIR", tmp_path / "shared")
    output = tmp_path / "out"
    done = run(**flags, report_to="trackio", output_dir=output)
    assert done.code == 0, done.all
    name = (output / "tracking" / "trackio_run_name").read_text().strip()
    assert storage.get_runs("sparse_accel") == [name] and name.startswith("out-")
    logs = storage.get_logs("sparse_accel", name)
    losses = {entry["step"]: entry["train/loss"] for entry in logs if "train/loss" in entry}
    assert losses == pytest.approx(trace(output, "train/loss"))
    assert any("eval/confusion_matrix" in entry for entry in logs)
    unfinished(output)
    assert run(**flags, report_to="trackio", output_dir=output).code == 0
    assert storage.get_runs("sparse_accel") == [name], "the same run is continued"


def test_all_trackers_at_once(flags: dict[str, Any], tmp_path: Path) -> None:
    done = run(**flags, report_to="all", output_dir=tmp_path / "out", log_artifacts="recipe")
    assert done.code == 0, done.all
    folder = tmp_path / "out" / "tracking"
    assert {"mlflow.db", "wandb", "wandb_run_id", "mlflow_run_id", "trackio_run_name"} <= {
        p.name for p in folder.iterdir()
    }
    assert list(folder.rglob("events.*"))
    _, found, code = wandb_run(folder)
    assert code == 0 and found["train/loss"] == pytest.approx(trace(tmp_path / "out", "train/loss"))


def test_tables_charts_and_artifacts_of_wandb(flags: dict[str, Any], tmp_path: Path) -> None:
    named: dict[str, Any] = {
        "run_group": "group",
        "run_tags": "one two",
        "run_notes": "a note",
        "entity": "us",
        "project": "mine",
    }
    done = run(**flags, **named, report_to="wandb", output_dir=tmp_path / "out", log_artifacts="recipe model report")
    assert done.code == 0, done.all
    _, found, _ = wandb_run(tmp_path / "out" / "tracking")
    tables = {"recipe/timeline", "eval/confusion_matrix", "eval/per_label", "eval/mistakes", "final/confusion_matrix"}
    charts = {"charts/train_loss", "charts/eval_accuracy", "charts/sparsity_encoder"}
    assert found.keys() >= {f"{name}/path" for name in tables} | {f"{name}_table/path" for name in charts}
    assert found["histograms/bert.pooler.dense.input/bins"]
    every = list(records(tmp_path / "out" / "tracking"))
    (opened,) = [record.run for record in every if record.WhichOneof("record_type") == "run"]
    assert (opened.run_group, list(opened.tags), opened.notes) == ("group", ["one", "two"], "a note")
    assert (opened.entity, opened.project) == ("us", "mine")
    sent = {record.artifact.type: record.artifact for record in every if record.WhichOneof("record_type") == "artifact"}
    assert {"recipe", "model", "report"} <= sent.keys()
    assert {entry.path for entry in sent["recipe"].manifest.contents} == {"recipe.yaml", "recipe_as_given.yaml"}
    assert "model.safetensors" in {entry.path for entry in sent["model"].manifest.contents}
    axes = [record.metric for record in every if record.WhichOneof("record_type") == "metric"]
    assert {metric.glob_name: metric.step_metric for metric in axes if metric.glob_name}["eval/*"] == "train/epoch"


def test_names_of_trackers() -> None:
    assert trackers_in(["tensorboard", "wandb"]) == ("wandb", "tensorboard")
    assert trackers_in(["none"]) == () == trackers_in([])
    assert set(trackers_in(["all"])) == {"wandb", "tensorboard", "trackio", "mlflow"}
    assert trackers_in(["aim", "wandb"]) == ("wandb", "aim") and "aim" in OTHER_TRACKERS
    with pytest.raises(UsageError, match=r"unknown value 'wandv'\. Did you mean 'wandb'"):
        trackers_in(["wandv"])
    with pytest.raises(UsageError, match="contradicts"):
        trackers_in(["none", "wandb"])


def test_a_folder_of_a_trackers_name_is_not_a_tracker(
    flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "aim").mkdir()
    refused = run(**flags, report_to="aim", output_dir=tmp_path / "out")
    assert refused.code == 2 and "--report_to aim: aim is not installed" in refused.err
    # A module of this name that Accelerate does not take for the tracker: it leaves it out, without a word.
    (tmp_path / "aim" / "__init__.py").touch()
    refused = run(**flags, report_to="tensorboard aim", output_dir=tmp_path / "out")
    assert refused.code == 2 and "--report_to aim: Accelerate cannot use the aim that is installed" in refused.err
    assert not (tmp_path / "out").exists()
    # `all` does not count folders either.
    monkeypatch.setattr("sparse_accel.cli.trackers.TRACKERS", ("clearml", "tensorboard"))
    (tmp_path / "clearml").mkdir()
    assert trackers_in(["all"]) == ("tensorboard",)


def test_other_trackers_are_those_of_accelerate() -> None:
    kinds: Any = importlib.import_module("accelerate.utils").LoggerType
    known = {kind.value for kind in kinds} - {"all", "wandb", "tensorboard", "trackio", "mlflow"}
    assert set(OTHER_TRACKERS) == known


@pytest.mark.slow
def test_the_sweep_is_run_by_the_local_client(
    tiny: Tiny, flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    yaml: Any = importlib.import_module("yaml")
    agents: Any = importlib.import_module("wandb.wandb_agent")
    sweep = yaml.safe_load((ROOT / "scripts" / "sweep.yaml").read_text())
    ours = {"--model_name_or_path": tiny.model, "--distill_teacher": flags["distill_teacher"]}
    ours |= {"--train_file": tiny.train, "--validation_file": tiny.validation}
    ours |= {"--recipe": ROOT / "sparse_accel" / "zoo" / "recipes" / "sst2_pruned90_quant.yaml"}
    command = [str(part) for part in sweep["command"]]
    for flag, value in ours.items():
        command[command.index(flag) + 1] = str(value)
    trial = {
        name: {"value": entry.get("min", entry.get("values", [0])[-1])} for name, entry in sweep["parameters"].items()
    }
    trial["num_epochs"] = {"value": 1}  # the recipe's other variables fit it
    trial |= {"qat_start_epoch": {"value": 0.5}, "observer_epoch": {"value": 0.8}}
    monkeypatch.chdir(tmp_path)
    for name in ("RUN_ID", "SWEEP_PARAM_PATH", "SWEEP_ID", "DIR"):  # which the agent sets
        monkeypatch.setenv(f"WANDB_{name}", "replaced")
    monkeypatch.delenv("WANDB_DIR")  # it sets this only where it is not set
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{Path(importlib.import_module('sys').executable).parent}:{os.environ['PATH']}")
    agent = agents.Agent(None, None, sweep_id="sweep1")
    agent._sweep_command = command
    program = str(ROOT / sweep["program"])
    agent._command_run({"run_id": "trial1", "program": program, "args": trial, "type": "run"})
    assert agent._run_processes["trial1"].wait() == 0
    importlib.import_module("wandb").teardown()  # it reads the environment once a process
    output = tmp_path / "outputs" / "sweep" / "trial1"
    _, found, code = wandb_run(tmp_path / "wandb")  # where the agent puts it
    assert code == 0 and sweep["metric"]["name"] in found
    applied = json.loads((output / "arguments.json").read_text())["recipe_args"]
    assert json.loads(applied) == {name: entry["value"] for name, entry in trial.items()}
    assert history(output)[-1]["epoch"] == 1


def test_a_run_without_trackers_imports_none(tiny: Tiny, tmp_path: Path) -> None:
    """MLflow is not asked about: DeepSpeed imports it where both are installed."""
    words_of_run = words(
        **tiny.flags(recipe_args={"num_epochs": 1, "qat_start_epoch": 0.5}), output_dir=tmp_path / "out"
    )
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{str(SCRIPT)!r}, *{words_of_run!r}]\n"
        "try:\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as ended:\n"
        "    print('exit', ended.code)\n"
        "print('loaded', *[name for name in ('wandb', 'tensorboard', 'trackio') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=240)
    assert done.stdout.splitlines()[-2:] == ["exit 0", "loaded"], done.stdout + done.stderr
