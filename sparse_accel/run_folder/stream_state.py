"""The place of a stream in a checkpoint: what each of its shards has given, whatever layout read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

from sparse_accel.console import say
from sparse_accel.data.streams.loading import StreamLoader, gathered
from sparse_accel.distributed.collectives import total
from sparse_accel.errors import UsageError, counted
from sparse_accel.files import write_json

if TYPE_CHECKING:
    from accelerate import Accelerator

STREAM_STATE = "stream_state.json"


def state_of_all(loader: StreamLoader) -> dict[str, Any]:
    """Returns the state of all shards of a stream after the step that was read last. All processes must call it."""
    return gathered(gather_object([loader.state_dict()]))


def write_stream_state(folder: Path, state: dict[str, Any]) -> None:
    """Writes a stream's state into a checkpoint."""
    write_json(folder / STREAM_STATE, state)


def resume_stream(accelerator: Accelerator, loader: StreamLoader, checkpoint: Path) -> None:
    """Continues a stream where the run that wrote a checkpoint stopped, and says how. All processes must call it.

    Raises:
        UsageError: the checkpoint has no stream, or the corpus or a flag of its order is not that of the run so far.
    """
    try:
        state = json.loads((checkpoint / STREAM_STATE).read_text(encoding="utf-8"))
    except OSError:
        raise UsageError(
            f"checkpoint {checkpoint} was not written by a run with --streaming: remove the flag, or start a new run "
            "in another --output_dir"
        ) from None
    skipped = total(loader.load_state_dict(state))
    again = "no row is read again but those of a window"
    if skipped:
        again = f"{counted(skipped, 'row')} must be read again and passed over"
    say(accelerator, f"the stream continues at its place: {again}")
