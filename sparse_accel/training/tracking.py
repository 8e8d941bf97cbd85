"""Trackers: Accelerate's, one run for all processes and restarts. What they get during a run: `sending`.

Flags come first, then the trackers' own variables of the environment, such as WANDB_PROJECT, WANDB_NAME, WANDB_RUN_ID,
WANDB_DIR, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, TRACKIO_DIR. Trackers' files are in OUTPUT_DIR/tracking, where
neither says otherwise, with the ids under which a resumed run continues the same run.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_accel.cli.parser import expanded
from sparse_accel.cli.trackers import TRACKERS, is_installed
from sparse_accel.console import warn
from sparse_accel.errors import UsageError
from sparse_accel.files import write_text
from sparse_accel.training.sending import has_failed

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sparse_accel.cli.training import TrainingArguments
    from sparse_accel.recipe import Recipe

_DEFAULT_PROJECT = "sparse_accel"
# What the variables of trackers with settings here begin with.
_PREFIXES = ("WANDB_", "MLFLOW_", "TRACKIO_")
# Files in the trackers' folder with what names the folder's run, so that a later command can continue it.
RUN_IDS = {"wandb": "wandb_run_id", "trackio": "trackio_run_name", "mlflow": "mlflow_run_id"}


def require_trackers(names: tuple[str, ...]) -> None:
    """Checks that the requested trackers are installed; call it before loading anything.

    Raises:
        UsageError: a tracker is not installed.
    """
    for name in names:
        if not is_installed(name):
            raise UsageError(f"--report_to {name}: {name} is not installed: pip install {name}, or --report_to none")
        if name not in TRACKERS:
            warn(f"--report_to {name} is passed on to Accelerate; it is not tested with this package")


def check_trackers(accelerator: Accelerator, names: tuple[str, ...]) -> None:
    """Checks that Accelerate takes all requested trackers: it silently leaves out one that it cannot use.

    Raises:
        UsageError: it left one out.
    """
    taken = {str(each) for each in accelerator.log_with}
    for name in names:
        if name not in taken:
            raise UsageError(
                f"--report_to {name}: Accelerate cannot use the {name} that is installed: install another version "
                f"(pip install --upgrade accelerate {name}), or --report_to none"
            )


# --- start and end ----------------------------------------------------------------------------------------------------


@contextmanager
def trackers_ended(accelerator: Accelerator) -> Iterator[None]:
    """Ends the trackers' runs at the end of the block; after an error they are marked as failed, and so is the run of
    a tracker that failed itself."""
    code = 1
    try:
        yield
        code = 0
    except BaseException as error:
        code = getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1)
        raise
    finally:
        for tracker in accelerator.trackers if accelerator.is_main_process else []:
            try:
                _end(tracker, code or int(has_failed(tracker)))
            except Exception as error:  # such as a full disk; it must not hide why the run ended
                warn(f"{tracker.name} could not end its run: {type(error).__name__}: {error}")
        accelerator.trackers.clear()
        accelerator.end_training()


def _end(tracker: Any, code: int) -> None:
    """Ends a tracker's run with the exit code of the program."""
    if tracker.name == "wandb":
        if code == 75:
            tracker.tracker.mark_preempting()  # the same command continues the run
        tracker.tracker.finish(exit_code=code)
    elif tracker.name == "mlflow" and code:
        import mlflow

        mlflow.end_run("KILLED" if code in (75, 130) else "FAILED")
    else:
        tracker.finish()


def start_trackers(
    accelerator: Accelerator,
    arguments: TrainingArguments,
    recipe: Recipe | None,
    *,
    finished: bool = False,
    evaluates_only: bool = False,
) -> None:
    """Starts the trackers of --report_to, unless they were started, with all flags, the resolved recipe and the
    environment of the run as config. Call it after acquiring the output folder.

    Args:
        finished: the folder's run was finished by an earlier command: its config stays as it is.
        evaluates_only: a new run, whose config has the model as `eval_model`. The run that trained the folder's model
            stays as it is, and remains the one that a later command continues.

    Raises:
        UsageError: a tracker does not start.
    """
    from sparse_accel.run_folder.environment import environment_of

    names, output_dir = arguments.report_to, Path(str(arguments.output_dir))
    if not names or accelerator.trackers:
        return
    folder = Path(logging_folder(output_dir)).resolve()  # trackers' own processes may work in another folder
    folder.mkdir(parents=True, exist_ok=True)
    for variable in [each for each, value in os.environ.items() if each.startswith(_PREFIXES) and not value.strip()]:
        del os.environ[variable]  # empty counts as unset; the trackers' libraries would read it
    project = arguments.project or os.environ.get("WANDB_PROJECT") or _DEFAULT_PROJECT
    config = {
        **arguments.to_dict(),
        "recipe": recipe.to_dict() if recipe else None,
        "environment": environment_of(accelerator),
    }
    usual, ids = output_dir.name, {name: _kept(folder, file) for name, file in RUN_IDS.items()}
    if evaluates_only:
        config["eval_model"] = str(arguments.model_name_or_path)
        usual, ids = f"evaluation of {Path(config['eval_model']).name}", dict.fromkeys(RUN_IDS, "")
        # TensorBoard has no ids: its runs differ by their folders.
        accelerator.project_configuration.logging_dir = str(folder / f"evaluation-{secrets.token_hex(2)}")
    options: dict[str, dict[str, Any]] = {}
    if accelerator.is_main_process:
        makers = {"wandb": _wandb_options, "trackio": _trackio_options, "mlflow": _mlflow_options}
        options = {name: makers[name](arguments, folder, usual, ids[name]) for name in names if name in makers}
    try:
        accelerator.init_trackers(project, config=None, init_kwargs=options)
    except Exception as error:
        accelerator.trackers.clear()  # a tracker that did not start cannot be ended
        raise _not_started(names, error) from error
    if not evaluates_only:
        _store_ids(accelerator, options, folder)
    try:
        for tracker in [each for each in accelerator.trackers if not (finished and ids.get(each.name, "kept"))]:
            _store_config(tracker, config, recipe)
    except Exception as error:
        raise _not_started(names, error) from error


def _not_started(names: tuple[str, ...], error: Exception) -> UsageError:
    offline = "Without an account, set WANDB_MODE=offline in the environment to keep the run on disk; "
    return UsageError(
        f"--report_to {' '.join(names)}: {str(error).rstrip('.')}. {offline if 'wandb' in names else ''}"
        "--report_to none turns trackers off"
    )


def _kept(folder: Path, name: str) -> str:
    """Returns the id of the folder's run in a tracker, from an earlier start; empty if there is none."""
    kept = folder / name
    return kept.read_text(encoding="utf-8").strip() if kept.is_file() else ""


# Makers of the arguments for a tracker, except what its library reads from the environment itself. `usual` is the name
# of the run if no other is given, `kept` the id of the run to continue; empty: a new one.


def _wandb_options(arguments: TrainingArguments, folder: Path, usual: str, kept: str) -> dict[str, Any]:
    """Returns the arguments for `wandb.init`."""
    options = {
        "name": arguments.run_name or os.environ.get("WANDB_NAME", usual),
        "dir": expanded(os.environ.get("WANDB_DIR", str(folder)), "WANDB_DIR"),
        "id": os.environ.get("WANDB_RUN_ID") or kept or secrets.token_hex(4),
        "resume": os.environ.get("WANDB_RESUME", "allow"),
    }
    flags = {"entity": arguments.entity, "group": arguments.run_group, "notes": arguments.run_notes}
    options |= {name: value for name, value in flags.items() if value}
    return options | ({"tags": list(arguments.run_tags)} if arguments.run_tags else {})


def _trackio_options(arguments: TrainingArguments, folder: Path, usual: str, kept: str) -> dict[str, Any]:
    """Returns the arguments for `trackio.init`. Its files are in TRACKIO_DIR, which is read when it is imported."""
    os.environ.setdefault("TRACKIO_DIR", str((folder / "trackio").resolve()))
    new = f"{arguments.run_name or usual}-{secrets.token_hex(2)}"  # it continues the latest run of a name
    options = {"name": kept or new, "resume": "allow" if kept else "never", "embed": False}
    return options | ({"group": arguments.run_group} if arguments.run_group else {})


def _mlflow_options(arguments: TrainingArguments, folder: Path, usual: str, kept: str) -> dict[str, Any]:
    """Returns the arguments for Accelerate's MLflow tracker."""
    if arguments.project:  # it would prefer the variable
        os.environ["MLFLOW_EXPERIMENT_NAME"] = arguments.project
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{(folder / 'mlflow.db').resolve()}")
    tags = dict.fromkeys(arguments.run_tags, "true") | ({"group": arguments.run_group} if arguments.run_group else {})
    options = {
        "logging_dir": str((folder / "mlflow").resolve()),
        "run_name": arguments.run_name or usual,
        "run_id": os.environ.get("MLFLOW_RUN_ID") or kept or None,
        "tags": tags,
        "description": arguments.run_notes,
    }
    return {name: value for name, value in options.items() if value}


def _store_ids(accelerator: Accelerator, options: dict[str, dict[str, Any]], folder: Path) -> None:
    """Stores the ids to continue with, once the trackers have started."""
    for tracker in accelerator.trackers if accelerator.is_main_process else []:
        if tracker.name == "wandb":
            write_text(folder / RUN_IDS["wandb"], options["wandb"]["id"] + "\n")
            path = "/".join(filter(None, (getattr(tracker.tracker, name, "") for name in ("entity", "project"))))
            write_text(folder / "wandb_project", path + "\n")  # for what continues the run, such as an export
        elif tracker.name == "trackio":
            write_text(folder / RUN_IDS["trackio"], options["trackio"]["name"] + "\n")
        elif tracker.name == "mlflow":
            write_text(folder / RUN_IDS["mlflow"], tracker.tracker.info.run_id + "\n")


def _store_config(tracker: Any, config: dict[str, Any], recipe: Recipe | None) -> None:
    """Stores the configuration of the run in the form that a tracker takes."""
    if tracker.name == "mlflow":
        _store_mlflow_config(config, recipe)
        return
    if tracker.name != "wandb":  # plain values only
        config = {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in config.items()}
    tracker.store_init_configuration(config)
    if tracker.name == "wandb" and tracker.tracker is not None:
        run = tracker.tracker
        run.define_metric("train/epoch", hidden=True)
        for pattern in ("train/*", "eval/*", "memory/*", "sparsity/*", "quantization/*", "histograms/*"):
            run.define_metric(pattern, step_metric="train/epoch")
        # Hundreds of panels, one for each layer, would bury the others; a workspace can show them.
        for pattern in ("sparsity/layers/*", "quantization/min/*", "quantization/max/*", "quantization/scale/*"):
            run.define_metric(pattern, step_metric="train/epoch", hidden=True)


def _store_mlflow_config(config: dict[str, Any], recipe: Recipe | None) -> None:
    """Stores flags as parameters, which MLflow does not let change, and the recipe as a file."""
    import mlflow

    active = mlflow.active_run()
    known = mlflow.get_run(active.info.run_id).data.params if active else {}
    flags = {key: value for key, value in config.items() if key not in ("recipe", "environment")}
    flags |= config["environment"]
    values = {key: str(value)[:500] for key, value in flags.items() if key not in known and value is not None}
    for start in range(0, len(values), 100):  # at most so many at once
        mlflow.log_params(dict(list(values.items())[start : start + 100]))
    if recipe is not None:
        mlflow.log_text(recipe.resolved(), "recipe.yaml")


def logging_folder(output_dir: Path) -> str:
    """Returns the folder for the trackers' files: in the output folder, never in the working directory."""
    return str(output_dir / "tracking")
