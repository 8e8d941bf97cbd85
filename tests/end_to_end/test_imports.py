"""What is read before anything is loaded loads nothing heavy itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "datasets", "accelerate", "numpy", "pandas", "sklearn")


@pytest.mark.parametrize(
    "module", ["sparse_accel", "modifiers", "recipe", "cli.text_classification", "training.tracking", "zoo", "progress"]
)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    name = module if module == "sparse_accel" else f"sparse_accel.{module}"
    code = f"import sys, {name}; print(*[name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.split() == []


def test_the_public_names_pull_in_no_tracker_plotting_library_or_compiler() -> None:
    code = (
        "import sys, sparse_accel\n"
        "[getattr(sparse_accel, name) for name in sparse_accel.__all__]\n"
        "unwanted = ('wandb', 'tensorboard', 'tensorboardX', 'mlflow', 'comet_ml', 'matplotlib', 'seaborn', 'plotly',\n"
        "    'triton', 'numba', 'torch._inductor', 'torch.utils.tensorboard', 'onnx', 'onnxruntime', 'deepspeed')\n"
        "print(*[name for name in unwanted if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout.split() == []
