"""What trackers get during a run: figures (named in `figures`), histograms, tables, charts and files.

A tracker that fails, such as a server that is down or a full disk, does not end the run: it gets nothing more, the
others continue, and the output folder has all figures.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_accel.console import warn

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sparse_accel.cli.training import TrainingArguments
    from sparse_accel.tasks.details import Details


def _send(accelerator: Accelerator, to: Callable[[Any], None]) -> None:
    """Calls `to` with each tracker that has not failed. What is computed for it must be computed before: here every
    error counts as one of the tracker."""
    for tracker in accelerator.trackers if accelerator.is_main_process else []:
        if has_failed(tracker):
            continue
        try:
            to(tracker)
        except Exception as error:
            tracker.failed_in_this_run = True
            warn(
                f"{tracker.name} gets nothing more of this run, which continues: {type(error).__name__}: {error}. The "
                "output folder has all figures"
            )


def has_failed(tracker: Any) -> bool:
    """Returns whether a tracker raised an error earlier in this run."""
    return bool(getattr(tracker, "failed_in_this_run", False))


def log_figures(accelerator: Accelerator, figures: Mapping[str, float], step: int | None = None) -> None:
    """Logs figures by name.

    Args:
        step: of the run; None: the latest.
    """
    _send(accelerator, lambda tracker: tracker.log(dict(figures), step=step))


def log_histograms(
    accelerator: Accelerator, histograms: Mapping[str, tuple[Sequence[int], Sequence[float]]], step: int
) -> None:
    """Logs histograms, (counts per bin, limits of the bins) by name, to trackers that show them."""
    import numpy as np

    pairs = {name: (np.asarray(counts), np.asarray(edges)) for name, (counts, edges) in histograms.items()}
    middles = {name: (edges[1:] + edges[:-1]) / 2 for name, (_, edges) in pairs.items()}

    def send(tracker: Any) -> None:
        if tracker.name in ("wandb", "trackio"):
            kind = importlib.import_module(tracker.name).Histogram
            tracker.log({name: kind(np_histogram=pair) for name, pair in pairs.items()}, step=step)
        elif tracker.name == "tensorboard":
            for name, (counts, edges) in pairs.items():
                tracker.tracker.add_histogram_raw(
                    name,
                    min=float(edges[0]),
                    max=float(edges[-1]),
                    num=int(counts.sum()),
                    sum=float(counts @ middles[name]),
                    sum_squares=float(counts @ middles[name] ** 2),
                    bucket_limits=edges[1:].tolist(),
                    bucket_counts=counts.tolist(),
                    global_step=step,
                )

    _send(accelerator, send)


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
    log: Iterable[Mapping[str, float]],
    events: Sequence[tuple[float, str]],
    names: Sequence[str],
) -> None:
    """Draws figures over epochs in W&B, with a vertical line for each event of the recipe: charts/NAME.

    Args:
        log: the run's history.
        events: epoch and text.
        names: of the figures, as in the history.
    """
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for entry in log:
        for name in names:
            if name in entry:
                points[name].append((entry["epoch"], entry[name]))
    lines = {name: ([x for x, _ in found], [y for _, y in found]) for name, found in points.items() if found}

    def send(tracker: Any) -> None:
        if tracker.name != "wandb":
            return
        import wandb

        for name, (epochs, values) in lines.items():
            chart = wandb.plot.line_series(
                xs=[epochs, *([epoch, epoch] for epoch, _ in events)],
                ys=[values, *([min(values), max(values)] for _ in events)],
                keys=[name, *(f"epoch {epoch:g}: {words}" for epoch, words in events)],
                title=f"{name}, and what the recipe does",
                xname="epoch",
            )
            tracker.tracker.log({f"charts/{name.replace('/', '_')}": chart})

    _send(accelerator, send)


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


def log_artifacts(accelerator: Accelerator, arguments: TrainingArguments) -> None:
    """Sends what --log_artifacts names, as far as it is in the output folder, to W&B and MLflow."""
    folder = Path(str(arguments.output_dir))
    files = {
        what: sorted(file for pattern in _ARTIFACTS[what] for file in folder.glob(pattern) if file.is_file())
        for what in arguments.log_artifacts
    }

    def send(tracker: Any) -> None:
        for what, found in files.items():
            if tracker.name == "wandb" and found:
                import wandb

                artifact = wandb.Artifact(f"{what}-{tracker.tracker.id}", type=what)
                for file in found:
                    artifact.add_file(str(file))
                tracker.tracker.log_artifact(artifact)
            elif tracker.name == "mlflow":
                for file in found:
                    tracker.log_artifact(str(file), artifact_path=what)

    _send(accelerator, send)


def _log_table(
    accelerator: Accelerator, name: str, columns: list[str], rows: list[list[Any]], step: int | None
) -> None:
    text = _markdown(columns, rows)

    def send(tracker: Any) -> None:
        if tracker.name == "wandb":
            tracker.log_table(name, columns=columns, data=rows, step=step)
        elif tracker.name == "trackio":
            import pandas
            import trackio

            tracker.log({name: trackio.Table(dataframe=pandas.DataFrame(rows, columns=columns))}, step=step)
        elif tracker.name == "tensorboard":
            tracker.tracker.add_text(name, text, global_step=step)
        elif tracker.name == "mlflow":
            import mlflow

            mlflow.log_text(text, f"{name}{'' if step is None else f'-{step}'}.md")

    _send(accelerator, send)


def _markdown(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [
        [f"{cell:.4f}" if isinstance(cell, float) else str(cell).replace("|", "\\|") for cell in line] for line in lines
    ]
    return "\n".join("| " + " | ".join(cell.replace("\n", " ") for cell in line) + " |" for line in cells)
