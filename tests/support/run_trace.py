"""Runs the training script of any checkout on stored inputs and records what came out: two commits with the same record
train the same models.

    python tests/support/run_trace.py --checkout DIR --output FILE.json     records three layouts, about 40 seconds
    python tests/support/run_trace.py --compare ONE.json OTHER.json         prints differences; exits 1 unless bit-equal

tests/golden/run_trace.json is the record of commit 1364ade. Records are bit-equal on one kind of CPU and one version of
torch; `compare` has tolerances for others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from layouts import SHORT, launcher, masks_of
from places import GOLDEN, ROOT
from script_fixtures import NOTHING, history, read_json, trace, weights, words

OLD_RUN = GOLDEN / "old_run"
TUTORIAL = Path("sparse_accel/zoo/recipes/sst2_pruned90_quant.yaml")
LAYOUTS = ("one", "ddp", "fsdp2")
# 61 rows in global batches of 16: 4 steps an epoch, the last of 13 rows. Quantization begins with step 9, ranges freeze
# with step 13, and step 16 is the last. Labels and teacher both count.
RECIPE_ARGS = {**SHORT, "num_epochs": 4, "qat_start_epoch": 2.0, "observer_epoch": 3.0}
LOGGED = ("train/loss", "train/task_loss", "train/distillation_loss", "train/learning_rate")

# How far figures may be apart on two CPUs: a pattern of their place (the first that is found counts), the difference
# relative to the larger one, and in itself. What no pattern finds, zeros for one, is the same everywhere.
#
# Against AVX-512, the kernels for AVX2 and those without vectors (ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA) gave losses
# within 3e-7, distillation losses, which are small differences, within 2e-5, sums and scales within 2e-6. That moved no
# activation to the next number of its quantizer. Another CPU's rounding may, as noise of 1e-6 in the start weights did:
# then losses were 1e-3 apart, distillation losses 1e-2, scales 4e-3, sums 3e-4, and one row of 21 changed sides. The
# bounds after step 8, where quantization begins, are two to ten times that.
EVERYTHING = math.inf
TOLERANCES = (
    (r"\bmasks: ", 0.0, 0.0),
    (r"digest$", EVERYTHING, 0.0),
    # A key's bias adds the same to all scores of a query: its gradient is rounding alone, which Adam makes steps of.
    (r"self\.key\.bias: \w+_sum$", EVERYTHING, 0.0),
    (r"learning_rate: ", 1e-12, 0.0),
    (r"distillation_loss: step [1-8]$", 1e-4, 0.0),
    (r"distillation_loss: ", 6e-2, 0.0),
    (r"loss: step [1-8]$", 1e-5, 0.0),
    (r"loss", 1e-2, 0.0),
    (r"eval_(accuracy|f1_macro): step [1-8]$", 0.0, 0.0),
    (r"eval_(accuracy|f1_macro)", 0.0, 0.1),
    (r"scales_sum$", 2e-2, 0.0),
    (r"_sum$", 1e-3, 1e-4),
)


# --- running a checkout's scripts -------------------------------------------------------------------------------------


def flags(folder: Path) -> dict[str, Any]:
    """Flags of the run whose inputs lie in `folder`; dropout is on. Every checkout since 1364ade knows them."""
    return {
        "model_name_or_path": folder / "start",
        "distill_teacher": folder / "teacher",
        "recipe": folder / "recipe.yaml",
        "recipe_args": RECIPE_ARGS,
        "train_file": folder / "train.csv",
        "validation_file": folder / "validation.csv",
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "do_train": True,
        "do_eval": True,
        "eval_strategy": "epoch",
        "save_strategy": "steps",
        "save_steps": 5,
        "save_total_limit": 1,
        "logging_steps": 1,
    }


def start(
    checkout: Path, script: str, *before: str, cwd: Path, env: Mapping[str, str] = NOTHING, **given: Any
) -> subprocess.Popen[str]:
    """Starts a script of a checkout in the folder `cwd`, with the package of that checkout, whichever is installed; as
    `script_fixtures.start` does for this checkout."""
    caches = {"HF_HOME": str(cwd / "caches"), "SPARSE_ACCEL_CACHE": str(cwd / "caches"), "HF_HUB_OFFLINE": "1"}
    quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONDONTWRITEBYTECODE": "1"}
    quiet["SPARSE_ACCEL_DROPOUT"] = "pytorch"  # as in versions that had no random numbers of their own
    variables = os.environ | {"PYTHONPATH": str(checkout)} | caches | quiet | dict(env)
    show = [sys.executable, "-c", "import sparse_accel; print(sparse_accel.__file__)"]
    package = Path(subprocess.check_output(show, cwd=cwd, env=variables, text=True).strip()).parent
    if package.parent != checkout:
        raise RuntimeError(f"the scripts of {checkout} would run with the package in {package.parent}")
    command, pipe = [sys.executable, *before, str(checkout / "scripts" / script), *words(**given)], subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, env=variables, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=600)
    if process.returncode != 0:
        raise RuntimeError(f"the script ended with {process.returncode}:\n{output}")


# --- a record ---------------------------------------------------------------------------------------------------------


def record(checkout: Path, layouts: Sequence[str] = LAYOUTS) -> dict[str, Any]:
    """Trains under each layout with code and recipe of a checkout, and returns what came out."""
    traces = {}
    for layout in layouts:
        before, env = launcher(layout) if layout != "one" else ([], {})
        given = {**flags(OLD_RUN), "recipe": checkout / TUTORIAL}
        given["gradient_accumulation_steps"] = 2 if layout == "one" else 1  # the others have two processes
        with tempfile.TemporaryDirectory() as name:
            folder, run = Path(name), Path(name) / "run"
            finish(start(checkout, "text_classification.py", *before, cwd=folder, env=env, **given, output_dir=run))
            traces[layout] = trace_of(run)
    return traces


def trace_of(run: Path) -> dict[str, Any]:
    """Returns what a finished run's folder says of its course and its result.

    Digests prove equality. Where rounding differs, sums are compared: of positive and of negative numbers apart, so
    that nothing cancels.
    """
    figures = {name for entry in history(run) for name in entry if name in LOGGED or name.startswith("eval_")}
    return {
        "course": {name: {f"step {step}": value for step, value in trace(run, name).items()} for name in figures},
        "final": read_json(run / "eval_results.json"),
        "masks": {name: {"digest": digest(mask), "zeros": int((~mask).sum())} for name, mask in masks_of(run).items()},
        "weights": {
            name: {
                "digest": digest(weight),
                "zeros": int((weight == 0).sum()),
                "positive_sum": float(weight.double().clamp(min=0).sum()),
                "negative_sum": float(weight.double().clamp(max=0).sum()),
            }
            for name, weight in weights(run).items()
        },
        "quantizers": {
            name: {"digest": digest(json.dumps(entry, sort_keys=True)), "scales_sum": math.fsum(entry["scale"])}
            for name, entry in read_json(run / "quantization.json")["quantizers"].items()
        },
    }


def digest(content: Any) -> str:
    """Returns the SHA-256 of a text, or of a tensor with its type and shape."""
    if isinstance(content, torch.Tensor):
        about = f"{content.dtype} {tuple(content.shape)} "
        return hashlib.sha256(about.encode() + content.contiguous().numpy().tobytes()).hexdigest()
    return hashlib.sha256(content.encode()).hexdigest()


def compare(one: dict[str, Any], other: dict[str, Any], exact: bool) -> list[str]:
    """Returns in words where two records differ, bit by bit or by more than TOLERANCES; empty where they do not.

    Without `exact`, a figure that no step of the first record has is new, and no difference.
    """
    first, second = flattened(one), flattened(other)
    if not exact:
        known = {place.rpartition(": step ")[0] for place in first}
        second = {at: leaf for at, leaf in second.items() if at in first or at.rpartition(": step ")[0] in known}
    found = [f"{at}: only in the {'first' if at in first else 'second'}" for at in sorted(first.keys() ^ second.keys())]
    for place in sorted(first.keys() & second.keys()):
        a, b = first[place], second[place]
        bounds = ((share, gap) for pattern, share, gap in TOLERANCES if re.search(pattern, place) and not exact)
        share, gap = next(bounds, (0.0, 0.0))
        if a != b and share != EVERYTHING and not (share + gap and math.isclose(a, b, rel_tol=share, abs_tol=gap)):
            found.append(f"{place}: {a} and {b}" + (f", more than {share or gap:g} apart" if share + gap else ""))
    return found


def flattened(tree: Any, place: str = "") -> dict[str, Any]:
    """Returns the leaves of nested dicts by their place, such as `one: course: train/loss: step 3`."""
    if not isinstance(tree, dict):
        return {place.removeprefix(": "): tree}
    return {at: leaf for name, branch in tree.items() for at, leaf in flattened(branch, f"{place}: {name}").items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, default=ROOT)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--compare", type=Path, nargs=2)
    asked = parser.parse_args()
    if asked.output:
        asked.output.write_text(json.dumps(record(asked.checkout.resolve()), indent=1, sort_keys=True) + "\n")
    if not asked.compare:
        return 0
    one, other = (read_json(path) for path in asked.compare)
    print("\n".join(differences := compare(one, other, exact=True)) or "bit-equal")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
