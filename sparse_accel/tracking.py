"""What is logged, under which names. Trackers are Accelerate's; one run is opened however many processes there are.

train/loss, train/task_loss, train/distillation_loss    means over the rows since the last log
train/learning_rate, train/epoch, train/samples_per_second
quantization/phase                                       0 float, 1 QAT, 2 QAT with frozen ranges
sparsity/encoder, sparsity/model, sparsity/layers/NAME   shares of exact zeros
eval/NAME                                                evaluation figures
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_accel.errors import UsageError

if TYPE_CHECKING:
    from accelerate import Accelerator


def require_trackers(names: tuple[str, ...]) -> None:
    """Checks, before anything is loaded, that the trackers asked for are installed.

    Raises:
        UsageError: one is not.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"--report_to {name}: {name} is not installed: pip install {name}, or --report_to none")


@contextmanager
def tracked_run(
    accelerator: Accelerator, names: tuple[str, ...], run_name: str, config: dict[str, Any]
) -> Iterator[None]:
    """Opens the trackers' runs and ends them whatever happens; one that failed is marked as failed.

    Args:
        names: of trackers; none opens nothing.
        run_name: in the tracker.
        config: arguments and resolved recipe, shown with the run.
    """
    if not names:
        yield
        return
    options = {"wandb": {"name": run_name}}
    flat = {key: value if isinstance(value, (int, float, str, bool)) else str(value) for key, value in config.items()}
    accelerator.init_trackers(
        "sparse_accel",
        config=flat if "tensorboard" in names else config,
        init_kwargs={name: options[name] for name in names if name in options},
    )
    try:
        yield
    except BaseException:
        if "wandb" in names and accelerator.is_main_process:
            accelerator.get_tracker("wandb", unwrap=True).finish(exit_code=1)
        raise
    finally:
        accelerator.end_training()


def logging_folder(output_dir: Path) -> str:
    """Where trackers write their files: in the output folder, never in the working directory."""
    return str(output_dir / "tracking")


def sparsity_figures(report: dict[str, Any]) -> dict[str, float]:
    """Returns the figures to log of what `sparsity_report` returned."""
    layers = {f"sparsity/layers/{name}": entry["sparsity"] for name, entry in report["layers"].items()}
    return {
        "sparsity/encoder": report["encoder_linear"]["sparsity"],
        "sparsity/model": report["model"]["sparsity"],
        **layers,
    }
