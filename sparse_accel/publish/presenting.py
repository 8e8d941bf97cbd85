"""What a finished run shows to people: report.html, the model card, and what its trackers get of its files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sparse_accel.console import say
from sparse_accel.export.folder import PAGE
from sparse_accel.publish.card import card_at_end
from sparse_accel.publish.facts import CARD
from sparse_accel.report import refresh_report, report_at_end
from sparse_accel.training.sending import log_artifacts
from sparse_accel.training.tracking import start_trackers

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sparse_accel.cli.training import TrainingArguments
    from sparse_accel.recipe import Recipe


def present_run(accelerator: Accelerator, arguments: TrainingArguments, recipe: Recipe | None) -> None:
    """Writes the report and the card of a finished run, and sends what --log_artifacts names to the trackers.

    After an evaluation alone, of the folder's own model, report and card are written again where they are. All
    processes must call it, the main process does it. Neither file can fail the run: what is wrong becomes a warning.
    """
    from sparse_accel.run_folder.results import ALL_RESULTS  # not above: it imports torch

    folder = Path(str(arguments.output_dir))
    is_run = arguments.do_train or arguments.one_shot
    if is_run and arguments.log_artifacts:
        start_trackers(accelerator, arguments, recipe, finished=True)  # such a run's command has not started them
    if not accelerator.is_main_process:
        return
    is_own = Path(str(arguments.model_name_or_path)).resolve() == folder.resolve()
    if is_run or (arguments.do_eval and is_own):
        if not _is_newer(folder / PAGE, folder / ALL_RESULTS):  # a finished run's command only shows its results
            (report_at_end if is_run else refresh_report)(folder)
        if card_at_end(folder, again=not is_run) == "kept":
            say(accelerator, f"{folder / CARD} was written or changed by a person: it is kept")
        for words, path in (("report", folder / PAGE), ("model card", folder / CARD)):
            if path.is_file():
                say(accelerator, f"{words}: {path}")
    log_artifacts(accelerator, arguments)


def _is_newer(path: Path, than: Path) -> bool:
    return path.is_file() and than.is_file() and path.stat().st_mtime_ns >= than.stat().st_mtime_ns
