"""The trackers that --report_to may name, and which of them are installed. Imports nothing heavy."""

from __future__ import annotations

import importlib.util

from sparse_accel.errors import UsageError, nearest

TRACKERS = ("wandb", "tensorboard", "trackio", "mlflow")
# Those that Accelerate knows too; they are passed on, untested.
OTHER_TRACKERS = ("comet_ml", "aim", "clearml", "dvclive", "swanlab")


def is_installed(tracker: str) -> bool:
    """Returns whether a tracker's library is installed. A folder of its name, such as ./wandb, is not a library."""
    found = importlib.util.find_spec(tracker)
    return found is not None and found.origin is not None


def trackers_in(words: list[str]) -> tuple[str, ...]:
    """Returns the trackers that --report_to names, in a fixed order; empty for none.

    Raises:
        UsageError: an unknown name, `none` beside another, or `all` where none is installed.
    """
    if "none" in words and len(set(words)) > 1:
        raise UsageError(f"--report_to none contradicts {' '.join(word for word in words if word != 'none')}.")
    others = [word for word in words if word not in (*TRACKERS, "all", "none")]
    for word in others:
        if word not in OTHER_TRACKERS:
            raise UsageError(
                f"--report_to: unknown value '{word}'.{nearest(word, (*TRACKERS, *OTHER_TRACKERS))} Expected: "
                f"{', '.join(TRACKERS)}, all or none; or, not tested here, {', '.join(OTHER_TRACKERS)}."
            )
    named = [name for name in TRACKERS if name in words or ("all" in words and is_installed(name))]
    if "all" in words and not named:
        raise UsageError(f"--report_to all: none of {', '.join(TRACKERS)} is installed; --report_to none turns it off.")
    return (*named, *dict.fromkeys(others))
