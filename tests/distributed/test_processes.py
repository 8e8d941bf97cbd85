"""Two processes, as on two GPUs: they share the teacher's table out, write one output, and say a mistake once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from places import ROOT
from script_fixtures import Outcome, Tiny, flat, make_model, read_json, run, start, trace, wait, weights

pytest_plugins = ["script_fixtures"]
pytestmark = pytest.mark.slow

LAUNCHER = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "accelerate_configs" / "ddp.yaml")]
LAUNCHER += ["--main_process_port", "0", "--mixed_precision", "no"]
USE_CPU = {"ACCELERATE_USE_CPU": "true"}


def run_two(**flags: Any) -> Outcome:
    return wait(start(launcher=LAUNCHER, env=USE_CPU, **flags))


@pytest.fixture(scope="module")
def flags(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run with a teacher and without dropout, whose micro-batches are half a global batch of 32 rows."""
    none: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    folder = tmp_path_factory.mktemp("models")
    return tiny.flags(
        model_name_or_path=make_model(folder / "model", sparse=True, **none),
        distill_teacher=make_model(folder / "teacher", sparse=False, head=True),
        recipe_args={"num_epochs": 3, "qat_start_epoch": 1, "observer_epoch": 2, "distill_hardness": 0.5},
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        logging_steps=1,
    )


def test_two_processes_train_what_one_trains(
    flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each computes its own half of the teacher's table.
    monkeypatch.setenv("SPARSE_ACCEL_CACHE", str(tmp_path / "cache"))
    two = run_two(**flags, output_dir=tmp_path / "two", report_to="tensorboard")
    assert two.code == 0, two.all
    assert "DDP, 2 processes" in flat(two.out) and "computed once" in flat(two.out)
    assert two.out.count("── results") == 1 and two.out.count("── run ") == 1
    one = run(**flags, gradient_accumulation_steps=2, output_dir=tmp_path / "one")
    assert one.code == 0, one.all
    assert "found on disk" in flat(one.out)

    first, second = trace(tmp_path / "one", "train/loss"), trace(tmp_path / "two", "train/loss")
    assert len(first) == 21 and [second[step] for step in range(1, 8)] == pytest.approx([*first.values()][:7], abs=1e-5)
    # In the very first forward of QAT, ranges come from all processes there, and from one micro-batch here.
    assert second == pytest.approx(first, abs=5e-3)
    assert trace(tmp_path / "two", "eval_loss") == pytest.approx(trace(tmp_path / "one", "eval_loss"), abs=5e-3)
    for name, weight in weights(tmp_path / "one").items():
        other = weights(tmp_path / "two")[name]
        assert torch.allclose(weight, other, atol=5e-3), name
        assert torch.equal(weight == 0, other == 0), name
    ranges = [read_json(tmp_path / name / "quantization.json")["quantizers"] for name in ("one", "two")]
    assert ranges[0].keys() == ranges[1].keys()
    for name, entry in ranges[0].items():
        assert ranges[1][name]["maximum"] == pytest.approx(entry["maximum"], rel=0.01, abs=1e-4), name
    results = read_json(tmp_path / "two" / "all_results.json")
    assert results["encoder_sparsity"] == pytest.approx(0.9, abs=0.005) and results["quantized_linears"] == 14
    assert len([*(tmp_path / "two" / "tracking").rglob("events.*")]) <= 2  # the run, and its settings

    # Finished by two, it is finished for one.
    again = run(**flags, gradient_accumulation_steps=2, output_dir=tmp_path / "two")
    assert again.code == 0 and "nothing is trained again" in again.out, again.all


def test_a_mistake_is_said_once(flags: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("chapter 1")
    refused = run_two(**flags, output_dir=tmp_path / "out")
    assert refused.code != 0
    assert refused.err.count("not contain a run of this script") == 1, refused.all
