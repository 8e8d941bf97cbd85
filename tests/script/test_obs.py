"""OBSPruningModifier in the training script: pruned, stopped, resumed, at once; and its mistakes, one screen each."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from script_fixtures import (
    Outcome,
    Tiny,
    assert_same_model,
    flat,
    make_model,
    read_json,
    run,
    start,
    trace,
    wait,
    weights,
)

from sparse_accel.run_folder.checkpoints import checkpoints_in

pytest_plugins = ["script_fixtures"]

# 13 steps an epoch; updates before steps 0, 7, 13 and 20, and at the end.
RECIPE = """
modifiers:
  - !EpochRangeModifier {{end_epoch: 2}}
  - !LearningRateFunctionModifier {{lr_func: linear, init_lr: 0.002, final_lr: 0.0, end_epoch: 2}}
  - !OBSPruningModifier
      params: ['re:.*encoder.*(query|key|value|dense).weight']
      init_sparsity: 0.3
      final_sparsity: 0.8
      start_epoch: 0
      end_epoch: 2
      update_frequency: 0.5
      num_grads: {num_grads}
      damp: 1e-7
      fisher_block_size: 16
      grad_sampler_kwargs: {{batch_size: 4}}
"""


def recipe(folder: Path, num_grads: int = 12, *changes: tuple[str, str]) -> Path:
    text = RECIPE.format(num_grads=num_grads)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "obs.yaml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def flags(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    model = make_model(tmp_path_factory.mktemp("models") / "dense", sparse=False, head=True)
    found = tiny.flags(
        model_name_or_path=model,
        recipe_args=None,
        distill_teacher=None,
        per_device_train_batch_size=16,
        save_strategy="steps",
        save_steps=5,
    )
    del found["recipe"]
    return found


def pruned(folder: Path) -> float:
    names = re.compile(r".*encoder.*(query|key|value|dense)[.]weight")
    found = [weight for name, weight in weights(folder).items() if names.fullmatch(name)]
    assert len(found) == 12
    return sum(int((weight == 0).sum()) for weight in found) / sum(weight.numel() for weight in found)


@pytest.mark.slow
def test_a_run_is_pruned_and_goes_on_after_ctrl_c_in_the_middle_of_its_samples(
    flags: dict[str, Any], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    # Enough samples that the signal meets them: 200 before step 7, after the checkpoint of step 5.
    command = {**flags, "recipe": recipe(tmp_path, 200), "output_dir": output, "eval_strategy": "no"}
    process = start(**command)
    while not (output / "checkpoint-5" / "checksums.json").exists() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    stopped = wait(process)
    assert stopped.code == 130, stopped.all
    last = max(int(path.name.partition("-")[2]) for path in checkpoints_in(output))
    # The signal met the samples (test_obs.py of the modifiers has no clock): the last checkpoint is what there is.
    assert last != 5 or "not saved" in stopped.err, stopped.all

    resumed = run(**command)
    assert resumed.code == 0 and f"from step {last}" in resumed.out, resumed.all
    whole = run(**{**command, "output_dir": tmp_path / "whole"})
    assert whole.code == 0, whole.all
    assert_same_model(output, tmp_path / "whole")
    assert pruned(output) == pytest.approx(0.8, abs=1e-4)
    assert trace(output, "train/learning_rate") == trace(tmp_path / "whole", "train/learning_rate")
    assert "5 updates x 200 samples x 4 rows = 4,000 rows, 20 times the 203 training rows" in flat(whole.out)


def test_at_once(flags: dict[str, Any], tmp_path: Path) -> None:
    at_once = {**flags, "do_train": None, "eval_strategy": None, "save_strategy": None, "save_steps": None}
    done = run(**at_once, one_shot=True, recipe=recipe(tmp_path), output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    assert pruned(tmp_path / "out") == pytest.approx(0.8, abs=1e-4)
    assert "applied at once: OBSPruningModifier (to 0.8)" in flat(done.out)
    assert "no effect without training: EpochRangeModifier, LearningRateFunctionModifier" in flat(done.out)
    assert "1 update x 12 samples x 4 rows = 48 rows, 0.2 times the 203 training rows" in flat(done.out)
    assert read_json(tmp_path / "out" / "all_results.json")["encoder_sparsity"] == pytest.approx(0.8, abs=1e-3)


def assert_refused(outcome: Outcome, *parts: str) -> None:
    assert outcome.code == 2, outcome.all
    assert "Traceback" not in outcome.err and len(outcome.err.splitlines()) <= 14, outcome.all
    for part in parts:
        assert part in outcome.err, outcome.all


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("fisher_block_size: 16", "fisher_block_size: 50\n      mask_type: block4", ("obs.yaml:14", "multiple of 4")),
        ("fisher_block_size: 16", "fisher_block_size: 24\n      mask_type: block4", ("24 does not divide", "4, 8, 16")),
        ("num_grads: 12", "num_grads: 1024", ("1024 gradient samples", "only 203 training rows", "203 or less")),
        ("num_grads: 12", "num_grad: 12", ("obs.yaml:12", "Did you mean 'num_grads'?")),
        ("update_frequency: 0.5", "update_frequency: -1", ("update_frequency: required",)),
        ("{batch_size: 4}", "{shuffle: true}", ("obs.yaml:15", "always shuffled")),
        ("damp: 1e-7", "grad_loss: recipe", ("grad_loss", "DistillationModifier")),
    ],
)
def test_mistakes(flags: dict[str, Any], tmp_path: Path, old: str, new: str, parts: tuple[str, ...]) -> None:
    refused = run(**flags, recipe=recipe(tmp_path, 12, (old, new)), output_dir=tmp_path / "out")
    assert_refused(refused, "error: ", "OBSPruningModifier", *parts)


def test_at_once_without_labelled_rows(flags: dict[str, Any], tiny: Tiny, tmp_path: Path) -> None:
    at_once = {
        "one_shot": True,
        "recipe": recipe(tmp_path),
        "model_name_or_path": flags["model_name_or_path"],
        "output_dir": tmp_path / "out",
    }
    assert_refused(run(**at_once), "--one_shot: OBSPruningModifier needs training rows with labels", "--train_file")
    assert_refused(
        run(**at_once, train_file=tiny.test),
        "has no column 'label' or 'labels'",
        "(OBSPruningModifier needs labels, also with --one_shot)",
    )
