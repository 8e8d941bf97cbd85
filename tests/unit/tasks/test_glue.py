"""The tasks of --task_name."""

from __future__ import annotations

import pytest
from datasets import Dataset

from sparse_accel.tasks.text_classification import glue


def test_a_task_of_another_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def load_hub(typed: str, repository: str, config: str, cache_dir: str | None) -> dict[str, Dataset]:
        asked.append((repository, config))
        return {"train": Dataset.from_dict({"question": ["q"], "passage": ["p"], "label": [0]})}

    monkeypatch.setitem(glue.GLUE, "boolq", glue.GlueTask(("question", "passage"), repository="aps/super_glue"))
    monkeypatch.setattr(glue, "load_hub", load_hub)
    assert glue.load_glue("boolq", None)["train"].name == "aps/super_glue boolq, split 'train'"
    assert asked == [("aps/super_glue", "boolq")]
