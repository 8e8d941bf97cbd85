"""The history of a run: what is added is what is written, and what is loaded again."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sparse_accel.progress import Progress
from sparse_accel.run_folder.trainer_state import History, Log

FIGURES = st.floats() | st.integers(-(2**53), 2**53) | st.booleans() | st.none()
ENTRIES = st.lists(st.dictionaries(st.text() | st.sampled_from(["eval_a", "step", "\u2028"]), FIGURES), max_size=8)
NOW = Progress(4, 3)


def same(one: Any, other: Any) -> bool:
    """Equal, with NaN equal to NaN."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@given(ENTRIES)
def test_what_is_added_is_written_and_loaded(entries: list[dict[str, Any]]) -> None:
    history = History()
    for entry in entries:
        history.add(entry, NOW)
    expected = [{"step": 4, "epoch": round(NOW.epoch, 4), **entry} for entry in entries]
    record = json.loads(history.text(NOW))
    assert same(list(history.log), expected) and same(record["log_history"], expected)
    assert same(history.evaluations, [entry for entry in expected if any(name[:5] == "eval_" for name in entry)])

    again = History()
    again.load(record)
    assert again.text(NOW) == history.text(NOW) and again.log == history.log
    again.add({"eval_a": math.nan}, NOW)  # after resuming, as without a stop
    history.add({"eval_a": math.nan}, NOW)
    assert again.text(NOW) == history.text(NOW)


def test_it_is_read_by_lines_as_the_json_that_it_is() -> None:
    history = History("eval_accuracy", greater_is_better=True)
    assert json.loads(history.text(NOW))["log_history"] == []
    for _ in range(3):
        history.add({"train/loss": 0.5}, NOW)
    text = history.text(NOW)
    assert text == json.dumps(json.loads(text), indent=2).partition('"log_history"')[0] + (
        '"log_history": [\n' + ",\n".join(['    {"step": 4, "epoch": 1.3333, "train/loss": 0.5}'] * 3) + "\n  ]\n}\n"
    )


def test_many_entries_take_little_memory() -> None:
    log, names = Log(), [f"quantization/scale/bert.encoder.layer.{number}.output.dense.input" for number in range(100)]
    for step in range(200):
        log.append({name: step / (number + 7) for number, name in enumerate(names)})
    assert len(log._compressed) < 0.25 * sum(map(len, log.lines()))
