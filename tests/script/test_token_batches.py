"""The loss is a mean over the labelled words of a global batch, however its rows are split: one result."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from layouts import Difference, difference, masks_of, run_under
from machines import free_port, launch
from script_fixtures import RECIPE, assert_same_model, flat, read_json, trace
from token_fixtures import (
    NO_DROPOUT,
    SCRIPT,
    TinyTokens,
    make_tagger,
    run,
    tagged,
    unfinished,
    with_script,
    write_conll,
)

pytest_plugins = ["token_fixtures"]

FLOAT_STEPS = 13  # an epoch, its last batch of 11 rows; quantization begins with the 14th
SHORT = {"num_epochs": 3, "qat_start_epoch": 1, "observer_epoch": 2, "distill_hardness": 0.5, "init_lr": 0.002}
run_tokens_under = with_script(SCRIPT, run_under)


@pytest.fixture(scope="module")
def flags(tokens: TinyTokens, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Sentences of 2 to 40 words: a mean over rows would be another one. A global batch of 16, with a teacher."""
    folder = tmp_path_factory.mktemp("batches")
    return tokens.flags(
        train_file=write_conll(folder / "train.conll", tagged(203, seed=1, entities=(1, 8))),
        distill_teacher=make_tagger(folder / "teacher", **NO_DROPOUT),
        recipe=RECIPE,
        recipe_args=SHORT,
        per_device_train_batch_size=16,
    )


@pytest.fixture(scope="module")
def one(flags: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process that takes 16 rows at once."""
    output = tmp_path_factory.mktemp("one") / "out"
    done = run(**flags, output_dir=output)
    assert done.code == 0, done.all
    return output


def check(one: Path, other: Path) -> Difference:
    found = difference(one, other, FLOAT_STEPS)
    print(f"\n{other.parent.name}: {found}")
    assert found.loss_before < 1e-6  # sums in another order
    # From there a sum in another order may round to the next integer, and the weights behind it move otherwise.
    assert found.loss < 5e-3 and found.weight < 5e-3 and found.scale < 0.02
    assert found.under_masks == 0 and found.rate == 0 and len(masks_of(other)) == 13
    assert trace(other, "eval_f1") == pytest.approx(trace(one, "eval_f1"), abs=0.05)
    return found


@pytest.mark.parametrize("rows", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_micro_batches(flags: dict[str, Any], one: Path, tmp_path: Path, rows: int) -> None:
    """Of one row: the last batch, of 11, has fillers."""
    settings: dict[str, Any] = {**flags, "per_device_train_batch_size": rows, "gradient_accumulation_steps": 16 // rows}
    done = run(**settings, output_dir=tmp_path / "out")
    assert done.code == 0 and f"16 rows: micro-batches of {rows}" in flat(done.out), done.all
    check(one, tmp_path / "out")


def test_a_mean_over_words_and_not_over_rows(flags: dict[str, Any], tokens: TinyTokens, tmp_path: Path) -> None:
    """All rows in one step of four micro-batches, at a rate that changes nothing: the loss is that of the evaluation,
    whose own is a mean over words."""
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 64,
        "gradient_accumulation_steps": 4,
        "learning_rate": 1e-12,
    }
    files: dict[str, Any] = {"train_file": flags["train_file"], "validation_file": flags["train_file"]}
    done = run(**tokens.short(**settings, **files, output_dir=tmp_path / "out"))
    assert done.code == 0 and "1, 1 per epoch" in done.out, done.all
    loss = trace(tmp_path / "out", "train/loss")[1]
    assert loss == pytest.approx(read_json(tmp_path / "out" / "eval_results.json")["eval_loss"], abs=1e-6)


def test_padding_to_the_longest_there_may_be(flags: dict[str, Any], one: Path, tmp_path: Path) -> None:
    done = run(**flags, pad_to_max_length=True, output_dir=tmp_path / "out")
    assert done.code == 0 and "padded to 64" in flat(done.out), done.all
    losses, others = trace(one, "train/loss"), trace(tmp_path / "out", "train/loss")
    gap = max(abs(losses[step] - others[step]) for step in range(1, FLOAT_STEPS + 1))
    assert gap < 1e-4, gap


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ddp", "fsdp2", "deepspeed_zero2"])
def test_two_processes(flags: dict[str, Any], one: Path, tmp_path: Path, layout: str) -> None:
    settings: dict[str, Any] = {**flags, "per_device_train_batch_size": 8}
    done = run_tokens_under(layout, **settings, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    kind = {"ddp": "DDP, 2 processes", "fsdp2": "FSDP2, 2 processes"}.get(layout, "DeepSpeed ZeRO-2, 2 processes")
    assert kind in flat(done.out)
    check(one, tmp_path / "out")


@pytest.mark.slow
def test_two_processes_with_micro_batches(flags: dict[str, Any], one: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {**flags, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    done = run_tokens_under("ddp", **settings, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    check(one, tmp_path / "out")


@pytest.mark.slow
def test_evaluation_and_prediction_under_two_processes(
    tokens: TinyTokens, tagger: Path, flags: dict[str, Any], tmp_path: Path
) -> None:
    """17 sentences and 60, in batches of 5: some processes have fillers. Every word is judged once."""
    files: dict[str, Any] = {
        "validation_file": tokens.validation,
        "test_file": tokens.test,
        "do_eval": True,
        "do_predict": True,
    }
    settings: dict[str, Any] = {
        **files,
        "model_name_or_path": tagger,
        "per_device_eval_batch_size": 5,
        "max_seq_length": 12,
    }
    alone = run(**settings, output_dir=tmp_path / "alone")
    both = run_tokens_under("ddp", **settings, output_dir=tmp_path / "both")
    assert alone.code == both.code == 0, both.all
    lines = [(tmp_path / name / "test_predictions.csv").read_text().splitlines() for name in ("alone", "both")]
    assert [line.split(",")[:4] for line in lines[0]] == [line.split(",")[:4] for line in lines[1]]


@pytest.mark.slow
def test_two_machines(flags: dict[str, Any], one: Path, tmp_path: Path) -> None:
    """Two launches over loopback."""
    port = free_port()
    settings: dict[str, Any] = {**flags, "per_device_train_batch_size": 8, "output_dir": tmp_path / "out"}
    machines = [launch(rank, "127.0.0.1", port, settings, program=(SCRIPT,)) for rank in (0, 1)]
    ended = [finished(machine) for machine in machines]
    assert "DDP, 2 processes" in flat(ended[0]) and "── run " not in ended[1]
    check(one, tmp_path / "out")


def finished(machine: subprocess.Popen[str]) -> str:
    out, err = machine.communicate(timeout=240)
    assert machine.returncode == 0, out + err
    return out


@pytest.mark.slow
def test_a_resumed_run_of_two_processes(flags: dict[str, Any], tmp_path: Path) -> None:
    settings: dict[str, Any] = {**flags, "per_device_train_batch_size": 8, "save_strategy": "steps", "save_steps": 10}
    whole = run_tokens_under("ddp", **settings, output_dir=tmp_path / "whole")
    assert whole.code == 0, whole.all
    output = unfinished(tmp_path / "whole", tmp_path / "out", 20)
    again = run_tokens_under("ddp", **settings, output_dir=output)
    assert again.code == 0 and "from step 20" in flat(again.out), again.all
    assert_same_model(tmp_path / "whole", output)
