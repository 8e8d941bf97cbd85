"""The files of an output folder: the flags of the run, the trained model, its figures and predictions."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from sparse_accel.console import say, table, warn
from sparse_accel.distributed.collectives import by_main_process
from sparse_accel.files import write_json, write_text
from sparse_accel.hub import local_folder
from sparse_accel.models.files import load, save_model
from sparse_accel.models.sparsity import sparsity_report, structure_figures
from sparse_accel.nn.layers import quantized_linears
from sparse_accel.run_folder.checkpoints import TRAINER_STATE, copy_model, publish, verify, write_errors
from sparse_accel.run_folder.record import change_record, read_record

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sparse_accel.cli.training import TrainingArguments
    from sparse_accel.recipe_run import RecipeRun
    from sparse_accel.run_folder.trainer_state import History


ALL_RESULTS = "all_results.json"
EVAL_RESULTS = "eval_results.json"
EVALUATION = "evaluation.json"
TEACHER_RESULTS = "teacher_results.json"
ARGUMENTS_FILE = "arguments.json"


def record_arguments(accelerator: Accelerator, folder: Path, arguments: TrainingArguments) -> None:
    """Writes the run's flags to arguments.json, with absolute paths of data, models and teacher. The run can be
    repeated from this file, the export finds the validation data in it, and a path cannot be taken for a Hub id."""
    if not accelerator.is_main_process:
        return
    flags = arguments.to_dict()
    for name in ("train_file", "validation_file", "test_file", "dataset_name"):
        if flags[name] is not None and Path(flags[name]).exists():
            flags[name] = str(Path(flags[name]).resolve())
    for name in ("model_name_or_path", "distill_teacher", "config_name", "tokenizer_name"):
        found = local_folder(flags[name]) if flags[name] not in (None, "disable", "self") else None
        if found is not None:
            flags[name] = str(found.resolve())
    given = {name: value for name, value in flags.items() if value is not None and name != "resume_from_checkpoint"}
    write_json(folder / ARGUMENTS_FILE, given)


@contextmanager
def timed() -> Iterator[Callable[[], float]]:
    """Yields a function that returns the seconds since the start of the block."""
    start = time.perf_counter()
    yield lambda: time.perf_counter() - start


def write_final(
    folder: Path,
    accelerator: Accelerator,
    model: nn.Module,
    tokenizer: Any,
    run: RecipeRun,
    history: History,
    seconds: float,
) -> None:
    """Writes the trained model (of the best checkpoint, if one was chosen) and its figures to the output folder.

    Everything is written to a temporary folder, read back, and only then moved into place. All processes must call it.

    Args:
        folder: the output folder.
        seconds: the training time.

    Raises:
        UsageError: the files cannot be written.
    """
    partial = folder / ".final.partial"
    best = folder / f"checkpoint-{history.best_step}"
    chosen = by_main_process(accelerator, lambda: history.best_step is not None and best.is_dir() and not verify(best))
    if history.best_step is not None and not chosen:
        warn(f"the best checkpoint, {best.name}, is missing or damaged: the model of the last step is saved instead")
        history.best_step = None

    def fill() -> None:
        if chosen:
            copy_model(best, partial)
        saved = load(partial)
        report = sparsity_report(saved)
        on, linears = quantized_linears(saved)
        losses = [entry["train/loss"] for entry in history.log if "train/loss" in entry]
        figures: dict[str, Any] = {
            "epoch": run.progress.epoch,
            "global_step": run.progress.step,
            "best_step": history.best_step,
            "train_loss": losses[-1] if losses else None,
            "train_runtime": seconds,
            "encoder_sparsity": report["encoder_linear"]["sparsity"],
            "model_sparsity": report["model"]["sparsity"],
            "quantized_linears": on,
            "linears": linears,
            **structure_figures(report),
        }
        write_json(partial / "sparsity.json", report)
        write_json(partial / "train_results.json", figures)
        history.write(partial / TRAINER_STATE, run.progress)
        if run.recipe is not None:
            write_text(partial / "recipe.yaml", run.recipe.resolved())
            suffix = Path(run.recipe.source).suffix or ".yaml"
            write_text(partial / f"recipe_as_given{suffix}", run.recipe.text)
        publish(partial, folder)
        write_json(folder / ALL_RESULTS, {**_without_evaluation(folder), **figures})
        change_record(folder, measured={})

    with write_errors(accelerator, partial, f"the model in {folder}"):
        by_main_process(accelerator, lambda: shutil.rmtree(partial, ignore_errors=True))
        if not chosen:
            save_model(partial, accelerator, model, tokenizer)
        by_main_process(accelerator, fill)


def write_evaluation(
    accelerator: Accelerator,
    folder: Path,
    model: str,
    figures: dict[str, Any],
    measured_on: str,
    details: dict[str, Any],
) -> None:
    """Writes the figures of an evaluation to eval_results.json and all_results.json, and what lies behind them to
    evaluation.json; replaces older ones there.

    Args:
        model: folder or id of the measured model; it is added as `eval_model` if the folder is the run of another one.
        measured_on: the digest of `evaluation.measured_on`; the same command can then skip the measurement.
        details: by split, from `evaluation.details_record`; the teacher's figures on the same rows are added.
    """
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        own = Path(model).resolve() == folder.resolve()
        if not own and read_record(folder) is not None:
            figures = {**figures, "eval_model": model}
        teacher = _read_json(folder / TEACHER_RESULTS)
        for split, entry in details.items():
            same = own and teacher.get("splits", {}).get(split, {}).get("digest") == entry["digest"]
            found = teacher["splits"][split]["figures"] if same else None
            entry["teacher"] = found and {"name": teacher["name"], "figures": found}
        write_json(folder / EVALUATION, details)
        write_json(folder / EVAL_RESULTS, figures)
        write_json(folder / ALL_RESULTS, {**_without_evaluation(folder), **figures})
        record_measured(accelerator, folder, EVAL_RESULTS, measured_on if own else f"another model: {model}")
    accelerator.wait_for_everyone()


def write_teacher_results(accelerator: Accelerator, folder: Path, name: str, splits: dict[str, Any]) -> None:
    """Writes the teacher's figures to teacher_results.json.

    Args:
        name: the teacher's folder or id.
        splits: by split, `digest` (of its rows) and `figures`.
    """
    if accelerator.is_main_process:
        write_json(folder / TEACHER_RESULTS, {"name": name, "splits": splits})


def record_measured(accelerator: Accelerator, folder: Path, name: str, measured_on: str) -> None:
    """Records in run.json what the figures or predictions in the file `name` were measured on."""
    if accelerator.is_main_process:
        change_record(folder, measured=_measured(folder) | {name: measured_on})


def is_measured(accelerator: Accelerator, folder: Path, names: list[str], measured_on: str) -> bool:
    """Returns whether the files `names` of a finished run already contain what would be measured now.

    If they do not, the record of their measurement is deleted first, so that a run killed while it writes them does not
    leave a wrong record.
    """

    def look() -> bool:
        record, measured = read_record(folder), _measured(folder)
        known = record is not None and record["finished"] and measured.get(names[0]) == measured_on
        if known and all((folder / name).is_file() for name in names) and _figures_are_there(folder, names):
            return True
        if names[0] in measured:
            change_record(folder, measured={k: v for k, v in measured.items() if k != names[0]})
        return False

    return bool(by_main_process(accelerator, look))


def _measured(folder: Path) -> dict[str, str]:
    record = read_record(folder) or {}
    return dict(record["measured"]) if isinstance(record.get("measured"), dict) else {}


def _figures_are_there(folder: Path, names: list[str]) -> bool:
    """Whether eval_results.json, if it is in `names`, can be read and agrees with all_results.json."""
    if EVAL_RESULTS not in names:
        return True
    try:
        figures = json.loads((folder / EVAL_RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(figures, dict) and bool(figures) and figures.items() <= read_results(folder).items()


def mark_finished(accelerator: Accelerator, folder: Path) -> None:
    """Records that the run is finished: from now on the same command shows the results."""
    if accelerator.is_main_process:
        change_record(folder, finished=True)


def print_results(accelerator: Accelerator, folder: Path) -> None:
    """Prints the figures of all_results.json."""
    figures = read_results(folder)
    if figures:
        say(accelerator, results_table({**figures, "folder": str(folder)}))


def read_results(folder: Path) -> dict[str, Any]:
    """Returns all_results.json; empty if it is missing or cannot be read."""
    return _read_json(folder / ALL_RESULTS)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _without_evaluation(folder: Path) -> dict[str, Any]:
    """all_results.json without evaluation figures: they may be from other rows, or from another model."""
    return {name: value for name, value in read_results(folder).items() if not name.startswith("eval_")}


def results_table(results: dict[str, Any]) -> str:
    """Returns the figures of a finished run as a printable table."""
    rows = [(name, f"{value:.4f}" if isinstance(value, float) else value) for name, value in sorted(results.items())]
    return table("results", [row for row in rows if row[1] is not None and not isinstance(row[1], (dict, list))])
