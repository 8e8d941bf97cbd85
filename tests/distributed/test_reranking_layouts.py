"""Rerankers under several processes: losses, a table of the teacher's logits, figures of queries. Real processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import layouts
import pytest
from reranking_fixtures import TinyPairs
from script_fixtures import SHORT, read_json, run, trace

pytest_plugins = ["reranking_fixtures"]
pytestmark = pytest.mark.slow

FLOAT_STEPS = 6  # of one epoch; quantization begins with the 7th


@pytest.fixture(scope="module")
def flags(tiny_pairs: TinyPairs) -> dict[str, Any]:
    """6 steps an epoch, 12 in all; the last batch of an epoch is a short one."""
    short = {"num_epochs": 2, "qat_start_epoch": 1.0, "observer_epoch": 1.5, "init_lr": 2e-3, "distill_hardness": 0.5}
    return tiny_pairs.flags(
        recipe_args={**SHORT, **short},
        max_train_samples=185,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        test_file=tiny_pairs.test,
        do_predict=True,
        save_strategy="epoch",
    )


@pytest.fixture(scope="module")
def one(flags: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one process with two micro-batches a step."""
    output = tmp_path_factory.mktemp("one") / "out"
    ended = run(**flags, gradient_accumulation_steps=2, output_dir=output)
    assert ended.code == 0, ended.all
    return output


@pytest.mark.parametrize("layout", ["ddp", "fsdp2"])
def test_it_trains_and_ranks_as_one_process(layout: str, flags: dict[str, Any], one: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    ended = layouts.run_under(layout, **flags, output_dir=output)
    assert ended.code == 0 and ended.out.count("── results") == 1, ended.all
    found = layouts.difference(one, output, FLOAT_STEPS)
    assert found.loss_before < 1e-6  # sums in another order
    assert found.loss < 5e-3 and found.weight < 5e-3 and found.scale < 0.02
    assert found.under_masks == 0 and found.rate == 0
    for name in ("train/task_loss", "train/distillation_loss"):
        first, second = ([*trace(folder, name).values()][:FLOAT_STEPS] for folder in (one, output))
        assert len(first) == FLOAT_STEPS and first == pytest.approx(second, abs=1e-6) and min(first) > 0
    teachers = [
        read_json(folder / "teacher_results.json")["splits"]["validation"]["figures"] for folder in (one, output)
    ]
    assert teachers[0] == pytest.approx(teachers[1], abs=1e-6)
    for name in ("eval_ndcg_at_10", "eval_mrr_at_10"):
        before, other = (trace(folder, name)[FLOAT_STEPS] for folder in (one, output))
        assert before == pytest.approx(other, abs=1e-6)


def test_evaluation_alone(one: Path, tiny_pairs: TinyPairs, tmp_path: Path) -> None:
    """Of the same model, figures and predictions are equal, whatever the number of processes."""
    measured = tiny_pairs.of(one, validation_file=tiny_pairs.validation, do_eval=True)
    measured |= {"test_file": tiny_pairs.test, "do_predict": True, "per_device_eval_batch_size": 7}
    ended = layouts.run_under("ddp", **measured, output_dir=tmp_path / "out")
    assert ended.code == 0, ended.all
    found, expected = (read_json(folder / "eval_results.json") for folder in (tmp_path / "out", one))
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    tables = [(folder / "test_predictions.csv").read_text().splitlines() for folder in (tmp_path / "out", one)]
    first, second = ([[float(value) for value in line.split(",")] for line in lines[1:]] for lines in tables)
    assert tables[0][0] == tables[1][0] == "row,query,score,rank"
    assert first == [pytest.approx(row, abs=2e-6) for row in second]
