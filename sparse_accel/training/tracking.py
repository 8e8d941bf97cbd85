"""What is logged, and under which names. Trackers are Accelerate's; all processes together open one run.

train/loss, train/task_loss, train/distillation_loss    means over the rows since the last log
train/learning_rate, train/epoch, train/samples_per_second
quantization/phase                                       0 float, 1 QAT, 2 QAT with frozen ranges
sparsity/encoder, sparsity/model, sparsity/layers/NAME   fractions of exact zeros
eval/NAME                                                evaluation figures during training
final/NAME                                               evaluation figures of the model in the output folder

W&B's environment variables apply unless a flag overrides them: WANDB_NAME (after --run_name), WANDB_PROJECT,
WANDB_RUN_ID, WANDB_RESUME, WANDB_DIR, and all that its library reads itself, such as WANDB_ENTITY or WANDB_TAGS.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_accel.cli.parser import expanded
from sparse_accel.errors import UsageError
from sparse_accel.files import write_text

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sparse_accel.cli.training import TrainingArguments
    from sparse_accel.recipe import Recipe


_WANDB_ID_FILE = "wandb_run_id"


def require_trackers(names: tuple[str, ...]) -> None:
    """Checks that the requested trackers are installed; call it before loading anything.

    Raises:
        UsageError: a tracker is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"--report_to {name}: {name} is not installed: pip install {name}, or --report_to none")


@contextmanager
def trackers_ended(accelerator: Accelerator) -> Iterator[None]:
    """Ends the trackers' runs at the end of the block; after an error, W&B's run is marked as failed."""
    try:
        yield
    except BaseException:
        for tracker in accelerator.trackers:
            if tracker.name == "wandb" and accelerator.is_main_process:
                tracker.tracker.finish(exit_code=1)
        raise
    finally:
        accelerator.end_training()


def start_trackers(accelerator: Accelerator, arguments: TrainingArguments, recipe: Recipe | None) -> None:
    """Starts the trackers of --report_to, unless they were started, with all flags and the resolved recipe as config.

    Their files go to OUTPUT_DIR/tracking (W&B's to WANDB_DIR, if set), so call it after acquiring the output folder.
    OUTPUT_DIR/tracking/wandb_run_id stores the id with which a resumed run continues the same run in W&B.

    Raises:
        UsageError: a tracker does not start.
    """
    names, output_dir = arguments.report_to, Path(str(arguments.output_dir))
    if not names or accelerator.trackers:
        return
    folder = Path(logging_folder(output_dir))
    folder.mkdir(parents=True, exist_ok=True)
    config = {**arguments.to_dict(), "recipe": recipe.to_dict() if recipe else None}
    if "tensorboard" in names:  # it accepts plain values only
        config = {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in config.items()}
    options: dict[str, dict[str, Any]] = {}
    if "wandb" in names and accelerator.is_main_process:
        options["wandb"] = _wandb_options(arguments.run_name or "", output_dir.name, folder)
    try:
        accelerator.init_trackers(os.environ.get("WANDB_PROJECT") or "sparse_accel", config=config, init_kwargs=options)
    except Exception as error:
        accelerator.trackers.clear()  # a tracker that did not start cannot be ended
        raise UsageError(
            f"--report_to {' '.join(names)}: {str(error).rstrip('.')}. Without an account, set WANDB_MODE=offline in "
            "the environment to keep the run on disk; --report_to none turns trackers off"
        ) from error
    if options:  # it started: store the id to continue with
        write_text(folder / _WANDB_ID_FILE, options["wandb"]["id"] + "\n")


def _wandb_options(name: str, usual_name: str, folder: Path) -> dict[str, Any]:
    """Returns the arguments for `wandb.init`, except what its library reads from the environment itself.

    Args:
        name: the value of --run_name, or empty.
        usual_name: the name if neither --run_name nor WANDB_NAME is set.
        folder: for the tracker's files.
    """
    for variable in [each for each, value in os.environ.items() if each.startswith("WANDB_") and not value.strip()]:
        del os.environ[variable]  # empty counts as unset; W&B's library would read it
    kept = folder / _WANDB_ID_FILE
    known = kept.read_text(encoding="utf-8").strip() if kept.is_file() else ""
    return {
        "name": name or os.environ.get("WANDB_NAME", usual_name),
        "dir": expanded(os.environ.get("WANDB_DIR", str(folder)), "WANDB_DIR"),
        "id": os.environ.get("WANDB_RUN_ID") or known or secrets.token_hex(4),
        "resume": os.environ.get("WANDB_RESUME", "allow"),
    }


def logging_folder(output_dir: Path) -> str:
    """Returns the folder for the trackers' files: in the output folder, never in the working directory."""
    return str(output_dir / "tracking")


def tracker_names(figures: dict[str, float], prefix: str = "eval") -> dict[str, float]:
    """Returns figures under their names in trackers: `eval_accuracy` becomes `eval/accuracy`, or PREFIX/accuracy."""
    return {
        f"{prefix}/{name.removeprefix('eval_')}" if name.startswith("eval_") else name: value
        for name, value in figures.items()
    }


def sparsity_figures(report: dict[str, Any]) -> dict[str, float]:
    """Returns the figures to log from a `sparsity_report`."""
    layers = {f"sparsity/layers/{name}": entry["sparsity"] for name, entry in report["layers"].items()}
    return {
        "sparsity/encoder": report["encoder_linear"]["sparsity"],
        "sparsity/model": report["model"]["sparsity"],
        **layers,
    }
