"""Runs scripts/text_classification.py under every layout that two CPU processes can have, and compares what came out.

python tests/support/layouts.py [--bf16]      prints a table: each layout against one process
"""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import script_fixtures
import torch
from forked import forked_ranks
from machines import free_port
from places import ROOT, SUPPORT
from safetensors.torch import load_file
from script_fixtures import (
    Outcome,
    environment,
    make_model,
    read_json,
    run,
    sentences,
    start,
    trace,
    weights,
    words,
    write_csv,
)

FSDP2_ON_CPU = str(SUPPORT / "fsdp2_on_cpu.py")
LAYOUTS = ("ddp", "fsdp2", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3")

# Masks tighten from epoch 0.4 to 1.7, quantization begins at 1, ranges freeze at 2.
GRADUAL = """
modifiers:
  - !EpochRangeModifier {end_epoch: 3}
  - !LearningRateFunctionModifier {lr_func: cosine, init_lr: 0.002, final_lr: 0.0001, end_epoch: 3}
  - !MagnitudePruningModifier
      start_epoch: 0.4
      end_epoch: 1.7
      init_sparsity: __FROM_PARAM__
      final_sparsity: 0.95
      update_frequency: 0.3
  - !QuantizationModifier {start_epoch: 1, disable_quantization_observer_epoch: 2}
  - !DistillationModifier {hardness: 0.5, temperature: 2.0}
"""
SHORT = {"num_epochs": 3, "qat_start_epoch": 1, "observer_epoch": 2, "distill_hardness": 0.5, "init_lr": 0.002}


def launcher(layout: str, *more: str, precision: str = "no") -> tuple[list[str], dict[str, str]]:
    """Returns the words before a script, and the environment, that run it in two CPU processes with the layout's file.

    Args:
        more: words for the launcher.
        precision: instead of the file's.
    """
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / f"accelerate_configs/{layout}.yaml")]
    launch += ["--main_process_port", "0", "--mixed_precision", precision, *more]
    if layout.startswith("fsdp2"):
        return [*launch, FSDP2_ON_CPU], {}
    return launch, {} if layout.startswith("deepspeed") else {"ACCELERATE_USE_CPU": "true"}


def start_under(layout: str, *more: str, precision: str = "no", **flags: Any) -> Any:
    launch, variables = launcher(layout, *more, precision=precision)
    return start(launcher=launch, env=variables, **flags)


def run_under(layout: str, *, precision: str = "no", **flags: Any) -> Outcome:
    """Runs the script under a layout; `one` stands for one process with two micro-batches a step. What is about
    launching uses `start_under`."""
    if layout == "one":
        bf16 = True if precision == "bf16" else None
        return run(**flags, gradient_accumulation_steps=2, bf16=bf16)
    return run_program_under(layout, script_fixtures.SCRIPT, *words(**flags), precision=precision)


def run_program_under(
    layout: str, program: Path, *arguments: str, precision: str = "no", timeout: float = 240, **variables: str
) -> Outcome:
    """Runs a program under a layout. Its processes are copies of this one with the environment that the launcher gives
    them: that saves the imports of three processes, most of a short run.

    Args:
        timeout: seconds.
        variables: more ones of the environment.
    """
    before = [FSDP2_ON_CPU] if layout.startswith("fsdp2") else []
    if layout.startswith("deepspeed"):
        import deepspeed  # noqa: F401, imported for the copies
    shared = {"MASTER_PORT": str(free_port()), "TORCHELASTIC_USE_AGENT_STORE": "False", **variables}
    ranks = [each | shared for each in environments(layout, precision)]
    return forked_ranks([*before, str(program), *arguments], ranks, timeout)


@functools.cache
def environments(layout: str, precision: str) -> list[dict[str, str]]:
    """Returns what a layout's launcher adds to the environment of each rank, as a launch shows it."""
    launch, variables = launcher(layout, precision=precision)
    launch = [word for word in launch if word != FSDP2_ON_CPU]
    own = environment()
    with tempfile.TemporaryDirectory() as folder:
        program = [sys.executable, *launch, str(SUPPORT / "show_environment.py"), folder]
        done = subprocess.run(program, env=own | variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        shown = [json.loads(path.read_text()) for path in sorted(Path(folder).iterdir())]
    return [{name: value for name, value in each.items() if own.get(name) != value} for each in shown]


@dataclass(frozen=True)
class Difference:
    """How far the run in one folder is from the run in another: the largest of each.

    Attributes:
        loss_before, loss: of a step's loss, before quantization begins and over all steps.
        weight, scale: of a weight in the model file; of a quantizer's scale, relative.
        under_masks: weights in the second folder's model file that its masks prune and that are not 0.
        rate: of a learning rate.
    """

    loss_before: float
    loss: float
    weight: float
    scale: float
    under_masks: int
    rate: float


def difference(one: Path, other: Path, float_steps: int) -> Difference:
    losses, others = trace(one, "train/loss"), trace(other, "train/loss")
    assert losses.keys() == others.keys()
    gaps = {step: abs(loss - others[step]) for step, loss in losses.items()}
    rates, other_rates = trace(one, "train/learning_rate"), trace(other, "train/learning_rate")
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert {tensor.dtype for tensor in second.values()} == {torch.float32}
    quantized, others_quantized = (read_json(folder / "quantization.json")["quantizers"] for folder in (one, other))
    assert quantized.keys() == others_quantized.keys()
    scales = [
        abs(scale - value) / scale
        for name, entry in quantized.items()
        for scale, value in zip(entry["scale"], others_quantized[name]["scale"], strict=True)
    ]
    return Difference(
        max(gap for step, gap in gaps.items() if step <= float_steps),
        max(gaps.values()),
        max(float((first[name] - second[name]).abs().max()) for name in first),
        max(scales),
        sum(int((second[name][~mask] != 0).sum()) for name, mask in masks_of(other).items()),
        max(abs(rate - other_rates[step]) for step, rate in rates.items()),
    )


def masks_of(folder: Path) -> dict[str, torch.Tensor]:
    """Returns the masks of a run's last checkpoint, by weight."""
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    state = load_file(last / "recipe_state.safetensors")
    return {
        key.rpartition(":")[2]: value for key, value in state.items() if value.dtype == torch.bool and value.ndim > 1
    }


def make_flags(folder: Path) -> dict[str, Any]:
    """Writes a small BERT, a teacher, rows and a recipe; 7 steps an epoch, the last of 11 rows. No dropout."""
    none: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "gradual.yaml").write_text(GRADUAL)
    return {
        "model_name_or_path": make_model(folder / "model", sparse=True, **none),
        "distill_teacher": make_model(folder / "teacher", sparse=False, head=True),
        "train_file": write_csv(folder / "train.csv", sentences(203, seed=1)),
        "validation_file": write_csv(folder / "validation.csv", sentences(61, seed=2)),
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 16,
        "do_train": True,
        "do_eval": True,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_steps": 1,
    }


def recipe_flags(folder: Path, recipe: str) -> dict[str, Any]:
    """Flags for one of the two recipes: `tutorial`, whose masks are constant, or `gradual`."""
    if recipe == "gradual":
        return {"recipe": folder / "gradual.yaml"}
    return {"recipe": ROOT / "sparse_accel/zoo/recipes/sst2_pruned90_quant.yaml", "recipe_args": SHORT}


def main() -> None:
    precision = "bf16" if "--bf16" in sys.argv else "no"
    folder = Path(tempfile.mkdtemp())
    flags = make_flags(folder)
    print(f"{'layout':<16} {'recipe':<9} loss, float  loss      weight    scale     under masks  learning rate")
    for recipe in ("tutorial", "gradual"):
        for layout in ("one", *LAYOUTS):
            output = folder / recipe / layout
            ended = run_under(layout, precision=precision, **flags, **recipe_flags(folder, recipe), output_dir=output)
            if ended.code != 0:
                print(f"{layout:<16} {recipe:<9} {ended.err.strip().splitlines()[-1]}")
            elif layout != "one":
                found = difference(folder / recipe / "one", output, float_steps=7)
                figures = (found.loss_before, found.loss, found.weight, found.scale)
                text = "   ".join("0      " if figure == 0 else f"{figure:.1e}" for figure in figures)
                assert not math.isnan(sum(figures))
                print(f"{layout:<16} {recipe:<9} {text}   {found.under_masks}            {found.rate:g}", flush=True)


if __name__ == "__main__":
    main()
