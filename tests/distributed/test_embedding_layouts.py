"""Sentence embeddings under two processes: negatives of both, a mapped table of the teacher's. Real processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import layouts
import pytest
from embedding_fixtures import SHORT, TinyEmbeddings, run, run_under
from script_fixtures import assert_same_model, flat, read_json, trace
from token_fixtures import unfinished

pytest_plugins = ["embedding_fixtures"]
pytestmark = pytest.mark.slow

FLOAT_STEPS = 7  # of one epoch; quantization begins with the 8th
RECIPE_ARGS = {**SHORT, "num_epochs": 2, "pruning_end_epoch": 0.8, "qat_start_epoch": 1.0, "observer_epoch": 1.5}


def of_rows(embeddings: TinyEmbeddings, rows: str) -> dict[str, Any]:
    """Flags of 14 steps, the last of an epoch with 11 rows: on two processes, 6 and 5."""
    return embeddings.flags(
        train_file=getattr(embeddings, rows),
        recipe_args={**RECIPE_ARGS, "init_lr": 1e-3, "distill_hardness": 1.0 if rows == "train" else 0.3},
        save_strategy="steps",
        save_steps=5,
    )


@pytest.fixture(scope="module", params=["train", "pairs", "triples"])
def rows(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def one(rows: str, embeddings: TinyEmbeddings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("one") / "out"
    done = run(**of_rows(embeddings, rows), output_dir=output)
    assert done.code == 0, done.all
    return output


@pytest.mark.parametrize("layout", ["ddp", "fsdp2"])
def test_two_processes_are_one(
    rows: str, layout: str, one: Path, embeddings: TinyEmbeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSE_ACCEL_CACHE", str(tmp_path / "cache"))  # the table is made by both
    flags = {**of_rows(embeddings, rows), "per_device_train_batch_size": 16, "per_device_eval_batch_size": 7}
    done = run_under(layout, **flags, output_dir=tmp_path / "out")
    assert done.code == 0 and f"{layout.upper()}, 2 processes" in flat(done.out), done.all
    found = layouts.difference(one, tmp_path / "out", FLOAT_STEPS)
    assert found.loss_before < 1e-6  # sums in another order
    assert found.loss < 5e-3 and found.weight < 5e-3 and found.scale < 0.02
    assert found.under_masks == 0 and found.rate == 0
    for name in ("train/task_loss", "train/distillation_loss", "train/hidden_state_distillation_loss"):
        losses, others = ([*trace(folder, name).values()][:FLOAT_STEPS] for folder in (one, tmp_path / "out"))
        # The loss of pairs is a softmax over 20 times the cosine: it is above 1, where float32 is less fine.
        assert losses == pytest.approx(others, rel=1e-6, abs=1e-6)
        assert max(losses) > 0 or (rows == "train" and name == "train/task_loss")
    teachers = [read_json(folder / "teacher_results.json")["splits"] for folder in (one, tmp_path / "out")]
    assert teachers[0]["validation"]["figures"] == pytest.approx(teachers[1]["validation"]["figures"], abs=1e-6)
    assert len([*(tmp_path / "cache" / "teacher_logits").iterdir()]) == 1  # and nothing partial
    if layout == "ddp" and rows == "pairs":
        resumed = unfinished(tmp_path / "out", tmp_path / "resumed", 5)
        done = run_under(layout, **flags, output_dir=resumed)
        assert done.code == 0 and "from step 5" in flat(done.out) and "found on disk" in flat(done.out), done.all
        assert_same_model(tmp_path / "out", resumed)
