"""What `make test-gpu` runs on one GPU, within 10 minutes: every launch configuration that fits one card, all
precisions, all phases of the tutorial's recipe, a real model, resuming, compiling, exporting; and that a plain step
does not wait for the GPU. Prints a table. Exit code 1: something failed; 2: there is no GPU.

    python tests/support/gpu_smoke.py

`--cpu` runs what of it a CPU can run, as test_gpu_smoke.py does; `--only WORD` the rows whose name holds a word.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from layouts import SHORT, difference, launcher, make_flags, recipe_flags
from places import ROOT, SUPPORT
from script_fixtures import Outcome, environment, flat, history, make_model, start, trace, weights

MINUTES = 10.0
SECONDS_A_ROW = 200.0
# Quantization begins with step 8 of 21, ranges freeze with step 15.
FLOAT_STEPS = 7
WRAPPERS = {"ddp": "DDP", "fsdp2": "FSDP2"} | {
    f"deepspeed_zero{stage}": f"DeepSpeed ZeRO-{stage}" for stage in (1, 2, 3)
}
PHASES = {0.0, 1.0, 2.0}
NO_GPU = """\
make test-gpu: PyTorch finds no GPU here, so nothing was run. This is PyTorch {version}.
Run it on a machine with an NVIDIA GPU. If `nvidia-smi` shows one here, either PyTorch is its CPU build ("+cpu" above:
`make clean`, then `make test-gpu` without TORCH_INDEX), or the driver is older than this PyTorch needs, or
CUDA_VISIBLE_DEVICES is empty. `make test` tests all that a CPU can run."""

# For MiniLM, which starts dense: masks tighten, quantization begins at epoch 1, ranges freeze at 1.5.
GRADUAL = """
modifiers:
  - !EpochRangeModifier {end_epoch: 2}
  - !LearningRateFunctionModifier {lr_func: linear, init_lr: 0.0001, final_lr: 0.00001, end_epoch: 2}
  - !MagnitudePruningModifier
      {start_epoch: 0, end_epoch: 1, init_sparsity: 0.0, final_sparsity: 0.5, update_frequency: 0.25}
  - !QuantizationModifier {start_epoch: 1, disable_quantization_observer_epoch: 1.5}
"""


class Failed(Exception):
    """A row did not do what it should; the message says what."""


@dataclass
class Bench:
    """Where the rows run, and what they share.

    Attributes:
        on_cpu: without a GPU.
        deadline: on time.monotonic's clock.
        notes: lines to print below the table.
    """

    folder: Path
    on_cpu: bool
    deadline: float
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Makes model, teacher, rows and recipes; this run has caches of its own."""
        own = {name: str(self.folder / "caches") for name in ("HF_HOME", "SPARSE_ACCEL_CACHE", "TRITON_CACHE_DIR")}
        os.environ.update(own, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", WANDB_MODE="offline")
        if self.on_cpu:
            os.environ["DS_ACCELERATOR"] = "cpu"
        else:
            os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
        self.flags = {**make_flags(self.folder), "per_device_train_batch_size": 32, "per_device_eval_batch_size": 32}
        self.flags |= {**recipe_flags(self.folder, "tutorial"), "save_strategy": "steps", "save_steps": 5}
        (self.folder / "minilm.yaml").write_text(GRADUAL)

    def output(self, configuration: str, precision: str) -> Path:
        return self.folder / "runs" / f"{configuration}-{precision}"

    def launch(self, configuration: str, precision: str, **flags: Any) -> Outcome:
        """Trains with a launch configuration in one process."""
        words, variables = launcher(configuration, "--num_processes", "1", precision=precision)
        if not self.on_cpu:
            # That is for CPUs. The file itself says here where it runs.
            words, variables = [word for word in words if not word.endswith("fsdp2_on_cpu.py")], {}
        if configuration == "ddp":
            words.append(str(SUPPORT / "ddp_of_one.py"))
        process = start(launcher=words, env=variables, **{**self.flags, **flags})
        return self.finish(process)

    def finish(self, process: subprocess.Popen[str]) -> Outcome:
        """Waits for a process and all that it started; raises Failed with the end of its words unless it ended well."""
        seconds = min(SECONDS_A_ROW, max(self.deadline - time.monotonic(), 1.0))
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise Failed("\n".join([f"not done after {seconds:.0f} seconds", *last_words(out + err)])) from None
        if process.returncode != 0:
            raise Failed(f"exit code {process.returncode}\n" + "\n".join(last_words(out + err)))
        return Outcome(process.returncode, out, err)


def last_words(text: str, lines: int = 25) -> list[str]:
    """The last lines, and before them the error messages from further up: launchers print long traces after them."""
    said = text.strip().splitlines()
    return [line for line in said[:-lines] if "error:" in line.lower()] + said[-lines:]


def check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Failed(otherwise)


# --- rows -------------------------------------------------------------------------------------------------------------


def losses_of(output: Path) -> list[float]:
    losses = list(trace(output, "train/loss").values())
    check(bool(losses) and all(math.isfinite(loss) for loss in losses), f"losses that are no numbers: {losses}")
    return losses


def all_phases(bench: Bench, configuration: str, precision: str) -> list[float]:
    """The tutorial's recipe on a tiny sparse model with a teacher: pruned, distilled, quantized, ranges frozen."""
    output = bench.output(configuration, precision)
    ended = bench.launch(configuration, precision, output_dir=output)
    device = "cpu" if bench.on_cpu or configuration == "cpu" else "cuda"
    shown = {"no": "float32"}.get(precision, precision)
    check(f"device {device}" in flat(ended.out), f"it did not run on {device}:\n{ended.out[:1500]}")
    check(f"precision {shown}" in flat(ended.out), f"it did not run in {shown}:\n{ended.out[:1500]}")
    check(f"({WRAPPERS.get(configuration, 'one process')})" in flat(ended.out), f"not so wrapped:\n{ended.out[:1500]}")
    phases = {entry["quantization/phase"] for entry in history(output) if "quantization/phase" in entry}
    check(phases >= PHASES, f"phases of quantization that were seen: {sorted(phases)}")
    compare(bench, output, precision)
    return losses_of(output)


def compare(bench: Bench, output: Path, precision: str) -> None:
    """Against the reference: one process on the CPU in float32, without dropout. Masks must hold, losses be near."""
    reference = bench.output("cpu", "no")
    if not (reference / "all_results.json").exists():
        raise Failed("there is nothing to compare with: the row `cpu` failed")
    found = difference(reference, output, FLOAT_STEPS)
    check(found.under_masks == 0, f"{found.under_masks} weights under masks are not zero")
    check(found.rate == 0, f"learning rates are up to {found.rate:g} off")
    before, after = (1e-3, 2e-2) if precision == "no" else (5e-2, 2e-1)
    check(found.loss_before <= before, f"losses before quantization are up to {found.loss_before:.2g} off")
    check(found.loss <= after, f"losses are up to {found.loss:.2g} off")


def resumed(bench: Bench, configuration: str, precision: str) -> list[float]:
    """Goes on from the checkpoint of step 10, as after a kill."""
    whole, output = bench.output(configuration, precision), bench.folder / "runs" / "resumed"
    check((whole / "checkpoint-10").is_dir(), f"the row {configuration} left no checkpoint-10")
    shutil.copytree(whole / "checkpoint-10", output / "checkpoint-10")
    record = (whole / "run.json").read_text().replace('"finished": true', '"finished": false')
    (output / "run.json").write_text(record)
    ended = bench.launch(configuration, precision, output_dir=output)
    check("from step 10" in flat(ended.out), f"it did not go on from step 10:\n{ended.out[:1500]}")
    losses, before = trace(output, "train/loss"), trace(whole, "train/loss")
    check(losses.keys() == before.keys(), "other steps were logged")
    # A GPU adds up some gradients in any order.
    check(abs(losses[11] - before[11]) < 1e-2, f"the loss of step 11 was {before[11]}, and is {losses[11]}")
    check(difference(whole, output, FLOAT_STEPS).under_masks == 0, "weights under masks are not zero")
    return losses_of(output)


def compiled(bench: Bench, configuration: str, precision: str) -> list[float]:
    """Three steps, each of another graph: pruned, quantized for the first time, quantized with ranges."""
    none: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_hidden_layers": 1}
    output = bench.folder / "runs" / "compiled"
    short = {**SHORT, "num_epochs": 1, "qat_start_epoch": 0.3, "observer_epoch": 0.9}
    model = make_model(bench.folder / "narrow", sparse=True, **none)
    few: dict[str, Any] = {"do_eval": None, "eval_strategy": "no", "save_strategy": "no", "max_train_samples": 75}
    few |= {"model_name_or_path": model, "recipe_args": short, "torch_compile": True, "output_dir": output}
    bench.launch(configuration, precision, **few)
    return losses_of(output)


def minilm(bench: Bench, configuration: str, precision: str) -> list[float]:
    """A real pretrained model on real sentences, pruned while it trains, then quantized: 16 steps."""
    from sparse_accel.demo.samples import minilm_folder, write_movie_reviews

    output = bench.folder / "runs" / f"minilm-{precision}"
    rows, steps = (32, 4) if bench.on_cpu else (256, 16)
    data = write_movie_reviews(bench.folder, "rotten_tomatoes", train_rows=rows, held_out=32, seed=1)
    flags: dict[str, Any] = {"model_name_or_path": minilm_folder(), "distill_teacher": "disable", "recipe_args": None}
    flags |= {"recipe": bench.folder / "minilm.yaml", "save_strategy": "no", "output_dir": output}
    flags |= {"train_file": data / "train.csv", "validation_file": data / "validation.csv", "max_seq_length": 64}
    bench.launch(configuration, precision, **flags, per_device_train_batch_size=rows * 2 // steps)
    zeros = weights(output)["bert.encoder.layer.0.output.dense.weight"] == 0
    share = float(zeros.float().mean())
    check(abs(share - 0.5) < 0.01, f"{share:.1%} of a weight is zero, not a half")
    return losses_of(output)


def second_order(bench: Bench, configuration: str, precision: str) -> list[float]:
    """A dense model that is pruned by second-order scores while it trains: gradient samples on the GPU."""
    from recipe_texts import OBS_KEYS, obs

    output = bench.folder / "runs" / f"second-order-{configuration}-{precision}"
    recipe = bench.folder / "second_order.yaml"
    recipe.write_text(obs(OBS_KEYS.replace("bert.encoder", ".*encoder") + ", fisher_block_size: 16"))
    model = make_model(bench.folder / f"dense-{precision}", sparse=False, head=True)
    flags: dict[str, Any] = {"model_name_or_path": model, "recipe": recipe, "recipe_args": None, "output_dir": output}
    flags |= {"distill_teacher": None, "do_eval": None, "eval_strategy": "no", "save_strategy": "no"}
    bench.launch(configuration, precision, **flags)
    found = [weight for name, weight in weights(output).items() if "encoder" in name and weight.ndim == 2]
    zeros = sum(int((weight == 0).sum()) for weight in found) / sum(weight.numel() for weight in found)
    check(abs(zeros - 0.8) < 1e-3, f"{zeros:.1%} of the encoder's weights are zero, not 80%")
    return losses_of(output)


def exported(bench: Bench, configuration: str, precision: str) -> list[float]:
    """The ONNX file of what was trained, and the proof that it is the model."""
    output = bench.output(configuration, precision)
    program = [sys.executable, str(ROOT / "scripts" / "export_onnx.py"), "--model_path", str(output)]
    # 7-bit activations: the proof then holds on CPUs without VNNI too.
    program += ["--task", "text_classification", "--reduce_range"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(program, env=environment(), stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    bench.finish(process)
    check((output.parent / "deployment" / "model.onnx").is_file(), "there is no model.onnx")
    return []


def plain_steps(bench: Bench, configuration: str, precision: str) -> list[float]:
    """That a step without log and save makes the CPU wait for the GPU nowhere but where others are known to."""
    from waits import TASKS, reason, waits_by_phase

    device = "meta" if bench.on_cpu else "cuda"
    wrong: list[str] = []
    for task in TASKS:
        for padded in (False,) if bench.on_cpu else (False, True):
            for phase, places in waits_by_phase(device, task, precision, padded=padded).items():
                for place in dict.fromkeys(places):
                    if why := reason(place, precision):
                        bench.notes.append(f"a plain step in {precision} waits for the GPU: {why} ({place})")
                    else:
                        wrong.append(f"{task} classification, {phase}: {place}")
    check(not wrong, "a plain step waits for the GPU at\n" + "\n".join(wrong))
    return []


def overflow(bench: Bench, configuration: str, precision: str) -> list[float]:
    """A step whose gradients overflow in fp16 does not count: it is tried again at a smaller loss scale."""
    from waits import step_after_overflow

    steps, lowered, moved = step_after_overflow("cpu" if bench.on_cpu else "cuda")
    check(lowered > 1, "nothing overflowed")
    check(
        steps == 1 and moved, f"the clock counts {steps} steps, and the weights {'moved' if moved else 'did not move'}"
    )
    return []


Row: TypeAlias = tuple[str, str, str, Callable[[Bench, str, str], list[float]]]  # what, configuration, precision
# What matters most comes first: rows that there is no time left for are not run, and the table says so.
GPU_ROWS: tuple[Row, ...] = (
    ("cpu", "cpu", "no", all_phases),
    ("one GPU", "single_gpu_bf16", "bf16", all_phases),
    ("one GPU", "single_gpu_fp16", "fp16", all_phases),
    ("one GPU", "single_gpu_bf16", "no", all_phases),
    ("plain steps", "-", "no", plain_steps),
    ("plain steps", "-", "bf16", plain_steps),
    ("plain steps", "-", "fp16", plain_steps),
    ("overflow", "-", "fp16", overflow),
    ("resumed", "single_gpu_bf16", "bf16", resumed),
    ("exported", "single_gpu_bf16", "bf16", exported),
    ("MiniLM", "single_gpu_bf16", "bf16", minilm),
    ("MiniLM", "single_gpu_fp16", "fp16", minilm),
    ("second order", "single_gpu_bf16", "bf16", second_order),
    ("second order", "single_gpu_fp16", "fp16", second_order),
    *((layout, layout, "bf16", all_phases) for layout in WRAPPERS),
    *((layout, layout, "fp16", all_phases) for layout in WRAPPERS if layout != "fsdp2"),  # refused under FSDP2
    *((layout, layout, "no", all_phases) for layout in ("ddp", "fsdp2")),
    ("second order", "fsdp2", "bf16", second_order),
    ("compiled", "single_gpu_bf16", "bf16", compiled),
)
# test_layouts.py has two processes on a CPU, under every layout.
CPU_ROWS: tuple[Row, ...] = (
    ("cpu", "cpu", "no", all_phases),
    ("one GPU", "single_gpu_bf16", "bf16", all_phases),
    ("plain steps", "-", "no", plain_steps),
    ("resumed", "cpu", "no", resumed),
    ("exported", "cpu", "no", exported),
    ("second order", "cpu", "no", second_order),
    ("MiniLM", "cpu", "no", minilm),
    *((layout, layout, "no", all_phases) for layout in ("ddp", "fsdp2", "deepspeed_zero2")),
)


# --- the table --------------------------------------------------------------------------------------------------------

HEADER = ("what", "configuration", "precision", "result", "seconds", "loss, first", "last")
WIDTHS = (17, 17, 11, 9, 9, 13, 6)


def line(*cells: str) -> str:
    return "".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def run_row(bench: Bench, row: Row) -> tuple[str, str]:
    """Returns a line of the table, and why the row failed; empty when it passed."""
    name, configuration, precision, action = row
    began, losses, reason, result = time.monotonic(), [], "", "passed"
    if began > bench.deadline:
        result = reason = "no time"
    else:
        try:
            losses = action(bench, configuration, precision)
        except Failed as failed:
            result, reason = "FAILED", str(failed)
        except Exception:  # whatever it is, the other rows are run
            result, reason = "FAILED", traceback.format_exc()
    shown = [f"{losses[0]:.4f}", f"{losses[-1]:.4f}"] if losses else ["", ""]
    return line(name, configuration, precision, result, f"{time.monotonic() - began:.1f}", *shown), reason


def run_rows(rows: Sequence[Row], *, on_cpu: bool, minutes: float) -> int:
    """Runs the rows, prints each as it ends, and all in a table; returns the exit code."""
    lines, reasons = [], []
    with tempfile.TemporaryDirectory(prefix="sparse_accel-gpu-", ignore_cleanup_errors=True) as name:
        bench = Bench(Path(name), on_cpu, time.monotonic() + minutes * 60)
        for row in rows:
            shown, reason = run_row(bench, row)
            print(shown, flush=True)
            lines.append(shown)
            if reason:
                reasons.append(f"{shown}\n{reason}")
    for reason in reasons:
        print(f"\n--- {reason}")
    device = "CPU" if on_cpu else torch.cuda.get_device_name()
    print(f"\n{device}, PyTorch {torch.__version__}\n{line(*HEADER)}")
    print("\n".join([*lines, *dict.fromkeys(bench.notes)]))
    print(f"\n{len(lines) - len(reasons)} of {len(lines)} passed", flush=True)
    return 1 if reasons else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="what of it a CPU can run")
    parser.add_argument(
        "--only", default="", help="rows whose name or configuration holds this; the first is the reference"
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help="rows that would begin later are not run")
    asked = parser.parse_args()
    if not asked.cpu and not torch.cuda.is_available():
        print(NO_GPU.format(version=torch.__version__), file=sys.stderr)
        return 2
    reference, *others = CPU_ROWS if asked.cpu else GPU_ROWS
    chosen = [reference, *(row for row in others if asked.only in " ".join(row[:3]))]
    return run_rows(chosen, on_cpu=asked.cpu, minutes=asked.minutes)


if __name__ == "__main__":
    sys.exit(main())
