"""What a finished run shows to people: report.html, the model card, and what its trackers get of its files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sparse_accel.console import say
from sparse_accel.export.folder import PAGE
from sparse_accel.publish.card import write_card
from sparse_accel.publish.facts import CARD
from sparse_accel.report import report_at_end
from sparse_accel.training.tracking import log_artifacts

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sparse_accel.cli.training import TrainingArguments


def present_run(accelerator: Accelerator, arguments: TrainingArguments) -> None:
    """Writes the report and the card of a finished run, and sends what --log_artifacts names to the trackers.

    The main process does it. Neither file can fail the run: what is wrong becomes a warning.
    """
    from sparse_accel.run_folder.results import ALL_RESULTS  # not above: it imports torch

    folder = Path(str(arguments.output_dir))
    if not accelerator.is_main_process:
        return
    if not _is_newer(folder / PAGE, folder / ALL_RESULTS):  # a finished run's command only shows its results
        report_at_end(folder)
    if not write_card(folder):
        say(accelerator, f"{folder / CARD} was written or changed by a person: it is kept")
    log_artifacts(accelerator, arguments)


def _is_newer(path: Path, than: Path) -> bool:
    return path.is_file() and than.is_file() and path.stat().st_mtime_ns >= than.stat().st_mtime_ns
