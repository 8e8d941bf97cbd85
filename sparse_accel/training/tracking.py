"""Trackers: Accelerate's, one run for all processes and restarts. What is logged: `figures`.

Flags come first, then the trackers' own variables of the environment, such as WANDB_PROJECT, WANDB_NAME, WANDB_RUN_ID,
WANDB_DIR, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, TRACKIO_DIR. Trackers' files are in OUTPUT_DIR/tracking, where
neither says otherwise, with the ids under which a resumed run continues the same run.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_accel.cli.parser import expanded
from sparse_accel.cli.training import TRACKERS
from sparse_accel.console import warn
from sparse_accel.errors import UsageError
from sparse_accel.files import write_text

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sparse_accel.cli.training import TrainingArguments
    from sparse_accel.recipe import Recipe
    from sparse_accel.tasks.base import Details

_DEFAULT_PROJECT = "sparse_accel"
# What the variables of trackers with settings here begin with.
_PREFIXES = ("WANDB_", "MLFLOW_", "TRACKIO_")


def require_trackers(names: tuple[str, ...]) -> None:
    """Checks that the requested trackers are installed; call it before loading anything.

    Raises:
        UsageError: a tracker is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"--report_to {name}: {name} is not installed: pip install {name}, or --report_to none")
        if name not in TRACKERS:
            warn(f"--report_to {name} is passed on to Accelerate; it is not tested with this package")


# --- start and end ----------------------------------------------------------------------------------------------------


@contextmanager
def trackers_ended(accelerator: Accelerator) -> Iterator[None]:
    """Ends the trackers' runs at the end of the block; after an error they are marked as failed."""
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
                _end(tracker, code)
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


def start_trackers(accelerator: Accelerator, arguments: TrainingArguments, recipe: Recipe | None) -> None:
    """Starts the trackers of --report_to, unless they were started, with all flags, the resolved recipe and the
    environment of the run as config. Call it after acquiring the output folder.

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
    options: dict[str, dict[str, Any]] = {}
    if accelerator.is_main_process:
        makers = {"wandb": _wandb_options, "trackio": _trackio_options, "mlflow": _mlflow_options}
        options = {name: makers[name](arguments, folder) for name in names if name in makers}
    try:
        accelerator.init_trackers(project, config=None, init_kwargs=options)
    except Exception as error:
        accelerator.trackers.clear()  # a tracker that did not start cannot be ended
        offline = "Without an account, set WANDB_MODE=offline in the environment to keep the run on disk; "
        raise UsageError(
            f"--report_to {' '.join(names)}: {str(error).rstrip('.')}. {offline if 'wandb' in names else ''}"
            "--report_to none turns trackers off"
        ) from error
    _store_ids(accelerator, options, folder)
    config = {
        **arguments.to_dict(),
        "recipe": recipe.to_dict() if recipe else None,
        "environment": environment_of(accelerator),
    }
    for tracker in accelerator.trackers:
        _store_config(tracker, config, recipe)


def _kept(folder: Path, name: str) -> str:
    """Returns the id of the run in a tracker, from an earlier start; empty if there is none."""
    kept = folder / name
    return kept.read_text(encoding="utf-8").strip() if kept.is_file() else ""


def _wandb_options(arguments: TrainingArguments, folder: Path) -> dict[str, Any]:
    """Returns the arguments for `wandb.init`, except what its library reads from the environment itself."""
    options = {
        "name": arguments.run_name or os.environ.get("WANDB_NAME", Path(str(arguments.output_dir)).name),
        "dir": expanded(os.environ.get("WANDB_DIR", str(folder)), "WANDB_DIR"),
        "id": os.environ.get("WANDB_RUN_ID") or _kept(folder, "wandb_run_id") or secrets.token_hex(4),
        "resume": os.environ.get("WANDB_RESUME", "allow"),
    }
    flags = {"entity": arguments.entity, "group": arguments.run_group, "notes": arguments.run_notes}
    options |= {name: value for name, value in flags.items() if value}
    return options | ({"tags": list(arguments.run_tags)} if arguments.run_tags else {})


def _trackio_options(arguments: TrainingArguments, folder: Path) -> dict[str, Any]:
    """Returns the arguments for `trackio.init`. Its files are in TRACKIO_DIR, which is read when it is imported."""
    os.environ.setdefault("TRACKIO_DIR", str((folder / "trackio").resolve()))
    usual = f"{Path(str(arguments.output_dir)).name}-{secrets.token_hex(2)}"  # a project's runs differ by their name
    kept = _kept(folder, "trackio_run_name")
    options = {"name": kept or arguments.run_name or usual, "resume": "allow" if kept else "never", "embed": False}
    return options | ({"group": arguments.run_group} if arguments.run_group else {})


def _mlflow_options(arguments: TrainingArguments, folder: Path) -> dict[str, Any]:
    """Returns the arguments for Accelerate's MLflow tracker."""
    if arguments.project:  # it would prefer the variable
        os.environ["MLFLOW_EXPERIMENT_NAME"] = arguments.project
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{(folder / 'mlflow.db').resolve()}")
    tags = dict.fromkeys(arguments.run_tags, "true") | ({"group": arguments.run_group} if arguments.run_group else {})
    options = {
        "logging_dir": str((folder / "mlflow").resolve()),
        "run_name": arguments.run_name or Path(str(arguments.output_dir)).name,
        "run_id": os.environ.get("MLFLOW_RUN_ID") or _kept(folder, "mlflow_run_id") or None,
        "tags": tags,
        "description": arguments.run_notes,
    }
    return {name: value for name, value in options.items() if value}


def _store_ids(accelerator: Accelerator, options: dict[str, dict[str, Any]], folder: Path) -> None:
    """Stores the ids to continue with, once the trackers have started."""
    for tracker in accelerator.trackers if accelerator.is_main_process else []:
        if tracker.name == "wandb":
            write_text(folder / "wandb_run_id", options["wandb"]["id"] + "\n")
            path = "/".join(filter(None, (getattr(tracker.tracker, name, "") for name in ("entity", "project"))))
            write_text(folder / "wandb_project", path + "\n")  # for what continues the run, such as an export
        elif tracker.name == "trackio":
            write_text(folder / "trackio_run_name", options["trackio"]["name"] + "\n")
        elif tracker.name == "mlflow":
            write_text(folder / "mlflow_run_id", tracker.tracker.info.run_id + "\n")


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


# --- more than numbers ------------------------------------------------------------------------------------------------


def log_histograms(
    accelerator: Accelerator, histograms: Mapping[str, tuple[Sequence[int], Sequence[float]]], step: int
) -> None:
    """Logs histograms, (counts per bin, limits of the bins) by name, to trackers that show them."""
    import numpy as np

    for tracker in accelerator.trackers if accelerator.is_main_process else []:
        if tracker.name in ("wandb", "trackio"):
            kind = importlib.import_module(tracker.name).Histogram
            pairs = {name: (np.asarray(counts), np.asarray(edges)) for name, (counts, edges) in histograms.items()}
            tracker.log({name: kind(np_histogram=pair) for name, pair in pairs.items()}, step=step)
        elif tracker.name == "tensorboard":
            for name, (counts, edges) in histograms.items():
                middles = (np.asarray(edges)[1:] + np.asarray(edges)[:-1]) / 2
                tracker.tracker.add_histogram_raw(
                    name,
                    min=float(edges[0]),
                    max=float(edges[-1]),
                    num=sum(counts),
                    sum=float(np.dot(counts, middles)),
                    sum_squares=float(np.dot(counts, middles**2)),
                    bucket_limits=list(edges[1:]),
                    bucket_counts=list(counts),
                    global_step=step,
                )


def log_details(accelerator: Accelerator, details: Mapping[str, Details], prefix: str, step: int | None = None) -> None:
    """Logs what lies behind an evaluation as tables: PREFIX/confusion_matrix, PREFIX/per_label, PREFIX/mistakes.

    Args:
        details: by split; the names of another split than `validation` end in its name.
        step: of the run; None: the latest.
    """
    for split, found in details.items():
        suffix = split.removeprefix("validation")
        tables: dict[str, tuple[list[str], list[list[Any]]]] = {}
        if found.confusion:
            counts = [[label, *row] for label, row in zip(found.labels, found.confusion, strict=True)]
            tables["confusion_matrix"] = (["true \\ decided", *found.labels], counts)
        for name, entries in (("per_label", found.per_label), ("mistakes", found.mistakes)):
            if entries:
                tables[name] = (list(entries[0]), [list(entry.values()) for entry in entries])
        for name, (columns, rows) in tables.items():
            _log_table(accelerator, f"{prefix}/{name}{suffix}", columns, rows, step)


def log_timeline(accelerator: Accelerator, events: Sequence[tuple[float, str]], step: int) -> None:
    """Logs what the recipe does in which epoch as a table, recipe/timeline."""
    if events:
        rows: list[list[Any]] = [[epoch, words] for epoch, words in events]
        _log_table(accelerator, "recipe/timeline", ["epoch", "event"], rows, step)


def log_charts(
    accelerator: Accelerator,
    log: Sequence[Mapping[str, float]],
    events: Sequence[tuple[float, str]],
    names: Sequence[str],
) -> None:
    """Draws figures over epochs in W&B, with a vertical line for each event of the recipe: charts/NAME.

    Args:
        log: the run's history.
        events: epoch and text.
        names: of the figures, as in the history.
    """
    for tracker in accelerator.trackers if accelerator.is_main_process else []:
        if tracker.name != "wandb":
            continue
        import wandb

        for name in names:
            points = [(entry["epoch"], entry[name]) for entry in log if name in entry]
            if not points:
                continue
            epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
            chart = wandb.plot.line_series(
                xs=[epochs, *([epoch, epoch] for epoch, _ in events)],
                ys=[values, *([min(values), max(values)] for _ in events)],
                keys=[name, *(f"epoch {epoch:g}: {words}" for epoch, words in events)],
                title=f"{name}, and what the recipe does",
                xname="epoch",
            )
            tracker.tracker.log({f"charts/{name.replace('/', '_')}": chart})


def log_artifacts(accelerator: Accelerator, arguments: TrainingArguments) -> None:
    """Sends what --log_artifacts names, as far as it is in the output folder, to W&B and MLflow."""
    folder = Path(str(arguments.output_dir))
    for what in arguments.log_artifacts if accelerator.is_main_process else []:
        files = sorted(file for pattern in _ARTIFACTS[what] for file in folder.glob(pattern) if file.is_file())
        for tracker in accelerator.trackers if files else []:
            if tracker.name == "wandb":
                import wandb

                artifact = wandb.Artifact(f"{what}-{tracker.tracker.id}", type=what)
                for file in files:
                    artifact.add_file(str(file))
                tracker.tracker.log_artifact(artifact)
            elif tracker.name == "mlflow":
                for file in files:
                    tracker.log_artifact(str(file), artifact_path=what)


# What --log_artifacts may name, and patterns of its files in an output folder.
_ARTIFACTS = {
    "recipe": ("recipe.yaml", "recipe_as_given.*"),
    "model": (
        "config.json",
        "model*.safetensors*",
        "quantization.json",
        "token*",
        "vocab*",
        "special_tokens*",
        "*.model",
    ),
    "report": ("report.html", "README.md"),
}


def _log_table(
    accelerator: Accelerator, name: str, columns: list[str], rows: list[list[Any]], step: int | None
) -> None:
    for tracker in accelerator.trackers if accelerator.is_main_process else []:
        if tracker.name == "wandb":
            tracker.log_table(name, columns=columns, data=rows, step=step)
        elif tracker.name == "trackio":
            import pandas
            import trackio

            tracker.log({name: trackio.Table(dataframe=pandas.DataFrame(rows, columns=columns))}, step=step)
        elif tracker.name == "tensorboard":
            tracker.tracker.add_text(name, _markdown(columns, rows), global_step=step)
        elif tracker.name == "mlflow":
            import mlflow

            mlflow.log_text(_markdown(columns, rows), f"{name}{'' if step is None else f'-{step}'}.md")


def _markdown(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [
        [f"{cell:.4f}" if isinstance(cell, float) else str(cell).replace("|", "\\|") for cell in line] for line in lines
    ]
    return "\n".join("| " + " | ".join(cell.replace("\n", " ") for cell in line) + " |" for line in cells)
