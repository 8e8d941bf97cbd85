"""--report_to: one run however it ends, with its configuration, under the names that tracking.py lists."""

from __future__ import annotations

import errno
import importlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from script_fixtures import Tiny, history, make_model, run, trace
from wandb_files import records, wandb_run

from sparse_accel.cli.text_classification import TextClassificationArguments
from sparse_accel.errors import UsageError
from sparse_accel.training.sending import log_histograms
from sparse_accel.training.tracking import RUN_IDS, start_trackers

pytest_plugins = ["script_fixtures"]

LOGGED = {"train/loss", "train/task_loss", "train/distillation_loss", "train/learning_rate", "train/epoch"}
LOGGED |= {"train/samples_per_second", "sparsity/encoder", "sparsity/model", "quantization/phase"}
LOGGED |= {"train/weight_decay", "train/gradient_norm", "train/tokens_per_second", "train/padding"}
LOGGED |= {"train/teacher_agreement", "memory/cpu_gb", "teacher/accuracy", "teacher/loss", "eval/teacher_agreement"}
LOGGED |= {f"quantization/{kind}/bert.pooler.dense.input" for kind in ("min", "max", "scale", "clipped")}
LOGGED |= {"sparsity/layers/bert.encoder.layer.0.intermediate.dense.weight"}
LOGGED |= {"eval/accuracy", "eval/loss", "final/accuracy", "final/loss"}


@pytest.fixture(scope="module")
def flags(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    teacher = make_model(tmp_path_factory.mktemp("models") / "teacher", sparse=False, head=True)
    recipe_args = {"num_epochs": 3, "qat_start_epoch": 1.0, "observer_epoch": 2.0}
    return tiny.flags(distill_teacher=teacher, recipe_args=recipe_args)


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows: values by step, by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, dict[int, float]] = {}
    for path in sorted({event.parent for event in folder.rglob("events.*")}):
        events = EventAccumulator(str(path))
        events.Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, {}).update({event.step: event.value for event in events.Scalars(name)})
    return found


def test_tensorboard(flags: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = run(**flags, output_dir="out", report_to="tensorboard", cwd=tmp_path)
    assert done.code == 0, done.all
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    found = scalars(output / "tracking")
    assert found.keys() >= LOGGED
    assert not [name for name in found if name.startswith("eval_")]
    for name in ("train/loss", "train/learning_rate", "quantization/phase"):
        assert found[name] == pytest.approx(trace(output, name))
    # The rate that was applied: of step k (from 0), 1.5e-4 * (1 - k / 21).
    assert found["train/learning_rate"] == pytest.approx(
        {n: 1.5e-4 * (1 - (n - 1) / 21) for n in (1, 5, 10, 15, 20, 21)}
    )
    assert found["eval/accuracy"] == pytest.approx(trace(output, "eval_accuracy"))
    assert found["quantization/phase"] == {1: 0, 5: 0, 7: 0, 10: 1, 14: 1, 15: 2, 20: 2, 21: 2}
    assert found["sparsity/encoder"][21] == pytest.approx(0.9, abs=0.005)
    (settings,) = (output / "tracking").rglob("hparams.yml")
    assert "learning_rate: 5.0e-05" in settings.read_text() and "DistillationModifier" in settings.read_text()
    assert run(**flags, output_dir="out", report_to="tensorboard", cwd=tmp_path).code == 0
    assert scalars(output / "tracking") == found, "showing a finished run logs nothing"


def test_without_evaluation_sparsity_is_logged_at_the_end(flags: dict[str, Any], tmp_path: Path) -> None:
    done = run(**{**flags, "eval_strategy": "no", "do_eval": None}, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    assert history(tmp_path / "out")[-1]["sparsity/encoder"] == pytest.approx(0.9, abs=0.005)


# --- W&B, offline -----------------------------------------------------------------------------------------------------


@pytest.fixture
def quiet_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    assert os.environ["WANDB_MODE"] == "offline"
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.mark.usefixtures("quiet_wandb")
def test_wandb(flags: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = run(**flags, output_dir="out", report_to="wandb", run_name="third try", cwd=tmp_path)
    assert done.code == 0, done.all
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    config, found, code = wandb_run(output / "tracking")
    assert code == 0
    assert found.keys() >= LOGGED
    assert config["seed"] == 42 and config["output_dir"] == "out"
    recipe = config["recipe"]
    assert recipe["quantization_modifiers"][0]["QuantizationModifier"]["start_epoch"] == 1.0
    assert found["eval/accuracy"] == pytest.approx(trace(output, "eval_accuracy"))
    assert found["train/learning_rate"] == pytest.approx(trace(output, "train/learning_rate"))
    # Interrupted and gone on with, it is the same run in W&B, whose files are named after it.
    record = output / "run.json"
    record.write_text(record.read_text().replace('"finished": true', '"finished": false'))
    again = run(**flags, output_dir="out", report_to="wandb", run_name="third try", cwd=tmp_path)
    assert again.code == 0 and "resuming from step" in again.out, again.all
    files = [path.name for path in (output / "tracking").rglob("*.wandb")]
    assert len(files) == 2 and len({name.rpartition("-")[2] for name in files}) == 1, files


# --- W&B's environment variables --------------------------------------------------------------------------------------


@pytest.fixture
def no_wandb_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NAME", "PROJECT", "RUN_ID", "RESUME", "DIR", "ENTITY", "RUN_GROUP", "TAGS", "NOTES", "JOB_TYPE"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)


def opened(output_dir: Path, main_process: bool = True, fails: bool = False, **flags: Any) -> dict[str, Any]:
    """What a run in a folder opens W&B's with: `project`, and the options of wandb.init."""
    found: dict[str, Any] = {}

    def init_trackers(project: str, config: dict[str, Any], init_kwargs: dict[str, dict[str, Any]]) -> None:
        if fails:
            raise RuntimeError("Run ID cannot contain the characters: :;,#?/'")
        found.update(init_kwargs.get("wandb", {}), project=project)
        tracker = SimpleNamespace(name="wandb", tracker=None, store_init_configuration=lambda config: None)
        accelerator.trackers.append(tracker)

    accelerator: Any = SimpleNamespace(trackers=[], is_main_process=main_process, init_trackers=init_trackers)
    vars(accelerator).update(distributed_type="NO", num_processes=1, mixed_precision="no")
    arguments = TextClassificationArguments(
        model_name_or_path="m",
        output_dir=str(output_dir),
        do_train=True,
        task_name="sst2",
        report_to=("wandb",),
        **flags,
    )
    start_trackers(accelerator, arguments, None)
    return found


@pytest.mark.usefixtures("no_wandb_variables")
def test_wandb_without_variables(tmp_path: Path) -> None:
    first = opened(tmp_path / "out")
    assert first.pop("id") == (tmp_path / "out" / "tracking" / "wandb_run_id").read_text().strip()
    expected = {"project": "sparse_accel", "name": "out", "dir": str(tmp_path / "out" / "tracking"), "resume": "allow"}
    assert first == expected
    assert opened(tmp_path / "out")["id"] == opened(tmp_path / "out")["id"] != opened(tmp_path / "other")["id"]
    assert opened(tmp_path / "out", main_process=False) == {"project": "sparse_accel"}


@pytest.mark.usefixtures("no_wandb_variables")
def test_wandb_variables_rule_where_no_flag_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"NAME": "my-name", "PROJECT": "mine", "RUN_ID": "abc123", "RESUME": "must", "DIR": "~/wandb"}
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    expected = {"project": "mine", "name": "my-name", "dir": f"{tmp_path}/wandb", "id": "abc123", "resume": "must"}
    assert opened(tmp_path / "out") == expected
    assert opened(tmp_path / "out", run_name="by flag") == expected | {"name": "by flag"}
    # A restart without the variable continues the run that it named.
    monkeypatch.delenv("WANDB_RUN_ID")
    assert opened(tmp_path / "out")["id"] == "abc123"
    monkeypatch.setenv("WANDB_RUN_ID", "another")
    assert opened(tmp_path / "out")["id"] == "another"


@pytest.mark.usefixtures("no_wandb_variables")
def test_empty_wandb_variables_count_as_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NAME", "PROJECT", "RUN_ID", "RESUME", "DIR", "ENTITY", "TAGS"):
        monkeypatch.setenv(f"WANDB_{name}", "" if name != "TAGS" else " ")
    found = opened(tmp_path / "out")
    assert (found["project"], found["name"], found["resume"]) == ("sparse_accel", "out", "allow")
    assert found["dir"] == str(tmp_path / "out" / "tracking") and len(found["id"]) == 8
    assert "WANDB_ENTITY" not in os.environ and "WANDB_TAGS" not in os.environ, "its library reads these by itself"


@pytest.mark.usefixtures("no_wandb_variables")
def test_an_id_that_is_refused_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = opened(tmp_path / "out")["id"]
    monkeypatch.setenv("WANDB_RUN_ID", "a/b")
    with pytest.raises(UsageError, match="Run ID cannot contain"):
        opened(tmp_path / "out", fails=True)
    monkeypatch.delenv("WANDB_RUN_ID")
    assert opened(tmp_path / "out")["id"] == kept


@pytest.mark.usefixtures("no_wandb_variables")
def test_an_evaluation_continues_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "TRACKIO_DIR"):
        monkeypatch.setenv(name, "")  # so that it is unset at the end
    folder = tmp_path / "out" / "tracking"
    folder.mkdir(parents=True)
    for kind, file in RUN_IDS.items():
        (folder / file).write_text(f"kept-{kind}\n")
    found: dict[str, dict[str, Any]] = {}
    settings = SimpleNamespace(logging_dir=str(folder))
    accelerator: Any = SimpleNamespace(trackers=[], is_main_process=True, project_configuration=settings)
    accelerator.init_trackers = lambda project, config, init_kwargs: found.update(init_kwargs)
    vars(accelerator).update(distributed_type="NO", num_processes=1, mixed_precision="no")
    arguments = TextClassificationArguments(
        model_name_or_path="a/model",
        output_dir=str(tmp_path / "out"),
        do_eval=True,
        task_name="sst2",
        report_to=("wandb", "trackio", "mlflow", "tensorboard"),
    )
    start_trackers(accelerator, arguments, None)
    assert (found["wandb"]["id"], found["mlflow"]["run_id"]) == ("kept-wandb", "kept-mlflow")
    assert (found["trackio"]["name"], found["trackio"]["resume"]) == ("kept-trackio", "allow")
    start_trackers(accelerator, arguments, None, evaluates_only=True)
    assert found["wandb"]["id"] != "kept-wandb" and "run_id" not in found["mlflow"]
    assert found["trackio"]["name"].startswith("evaluation of model-") and found["trackio"]["resume"] == "never"
    assert found["wandb"]["name"] == found["mlflow"]["run_name"] == "evaluation of model"
    assert Path(settings.logging_dir).parent == folder and Path(settings.logging_dir) != folder
    assert [(folder / file).read_text() for file in RUN_IDS.values()] == [f"kept-{kind}\n" for kind in RUN_IDS]


@pytest.mark.usefixtures("no_wandb_variables")
def test_files_of_a_finished_run_leave_its_config_as_it_is(tmp_path: Path) -> None:
    stored: list[dict[str, Any]] = []
    tracker = SimpleNamespace(name="wandb", tracker=None, store_init_configuration=stored.append)
    accelerator: Any = SimpleNamespace(trackers=[], is_main_process=True)
    accelerator.init_trackers = lambda project, config, init_kwargs: accelerator.trackers.append(tracker)
    vars(accelerator).update(distributed_type="NO", num_processes=1, mixed_precision="no")
    arguments = TextClassificationArguments(
        model_name_or_path="m", output_dir=str(tmp_path / "out"), do_train=True, task_name="sst2", report_to=("wandb",)
    )
    for _ in range(2):
        start_trackers(accelerator, arguments, None, finished=True)
        accelerator.trackers.clear()
        assert len(stored) == 1, "of a run that no tracker followed, the config is new"


@pytest.mark.usefixtures("quiet_wandb", "no_wandb_variables")
def test_what_wandb_makes_of_its_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator

    variables = {"NAME": "my-name", "PROJECT": "mine", "RUN_ID": "abc123", "RUN_GROUP": "group", "TAGS": "one,two"}
    variables |= {"NOTES": "a note", "JOB_TYPE": "sweep", "DIR": str(tmp_path / "elsewhere"), "SILENT": "true"}
    for name, value in variables.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    arguments = TextClassificationArguments(
        model_name_or_path="m", output_dir=str(tmp_path / "out"), do_train=True, task_name="sst2", report_to=("wandb",)
    )
    teardown: Any = importlib.import_module("wandb").teardown
    teardown()  # it reads the environment once a process
    accelerator = Accelerator(cpu=True, log_with=["wandb"])
    start_trackers(accelerator, arguments, None)
    accelerator.end_training()
    teardown()
    wandb_run(tmp_path / "elsewhere")  # waits for its end
    (record,) = [each.run for each in records(tmp_path / "elsewhere") if each.WhichOneof("record_type") == "run"]
    assert (record.display_name, record.project, record.run_id) == ("my-name", "mine", "abc123")
    assert (record.run_group, list(record.tags), record.notes) == ("group", ["one", "two"], "a note")
    assert record.job_type == "sweep"
    assert {path.name for path in (tmp_path / "out" / "tracking").iterdir()} == {"wandb_run_id", "wandb_project"}


@pytest.mark.usefixtures("quiet_wandb")
def test_a_run_whose_checkpoint_cannot_be_written_is_ended_and_marked(
    flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no checkpoint")

    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("sparse_accel.run_folder.checkpoints.save_checkpoint", broken)
    with pytest.raises(RuntimeError, match="no checkpoint"):
        run(**flags, output_dir=tmp_path / "out", report_to="all")
    _, found, code = wandb_run(tmp_path / "out" / "tracking")
    assert code == 1
    assert found["train/loss"] and scalars(tmp_path / "out" / "tracking")["train/loss"]
    client_of: Any = importlib.import_module("mlflow").MlflowClient
    client = client_of(f"sqlite:///{tmp_path / 'out' / 'tracking' / 'mlflow.db'}")
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert [each.info.status for each in runs] == ["FAILED"]


@pytest.mark.usefixtures("quiet_wandb")
@pytest.mark.parametrize("failing", ["tensorboard", "wandb"])
def test_a_tracker_that_fails_costs_neither_the_run_nor_the_others(
    flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    kind: Any = importlib.import_module("accelerate.tracking").LOGGER_TYPE_TO_CLASS[failing]
    log = kind.log

    def full(tracker: Any, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        if step is None or step >= 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        log(tracker, values, step=step, **options)

    monkeypatch.setattr(kind, "log", full)
    output = tmp_path / "out"
    done = run(**flags, output_dir=output, report_to="wandb tensorboard", log_artifacts="recipe")
    assert done.code == 0, done.all
    assert done.err.count(f"{failing} gets nothing more of this run") == done.err.count("No space left on device") == 1
    _, of_wandb, code = wandb_run(output / "tracking")
    found = {"wandb": of_wandb, "tensorboard": scalars(output / "tracking")}
    assert code == (failing == "wandb"), "an incomplete run is marked as failed"
    broken = found.pop(failing)
    (whole,) = found.values()
    assert broken["train/loss"].keys() == {1, 5} and "final/accuracy" not in broken
    assert whole.keys() >= LOGGED
    for name in ("train/loss", "eval_accuracy"):
        assert whole[name.replace("eval_", "eval/")] == pytest.approx(trace(output, name))
    assert len(list((output / "tracking").rglob("*.wandb"))) == 1, "and no other run is started"
    assert not list((output / "tracking").glob("evaluation-*"))


def test_our_own_errors_are_not_taken_for_a_trackers() -> None:
    accelerator: Any = SimpleNamespace(is_main_process=True, trackers=[SimpleNamespace(name="tensorboard")])
    with pytest.raises(IndexError):
        log_histograms(accelerator, {"name": ([1, 2], None)}, step=1)  # type: ignore[dict-item]


@pytest.mark.usefixtures("quiet_wandb")
def test_a_tracker_that_does_not_start(flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_account(*_: Any, **__: Any) -> None:
        raise RuntimeError("No API key configured.")

    monkeypatch.setattr("wandb.init", no_account)
    refused = run(**flags, output_dir=tmp_path / "out", report_to="wandb")
    assert refused.code == 2, refused.all
    assert "--report_to wandb: No API key configured. Without an account, set WANDB_MODE=offline" in refused.err
    assert run(**flags, output_dir=tmp_path / "out").code == 0, "the same run goes on without"
