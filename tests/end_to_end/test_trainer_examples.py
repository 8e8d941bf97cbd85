"""examples/trainer.py and examples/sentence_transformers_trainer.py: in one process, resumed, and in two."""

from __future__ import annotations

import ast
import itertools
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import launcher
from places import ROOT
from script_fixtures import environment, make_model, sentences, weights, words, write_csv

import sparse_accel
from sparse_accel.integrations import load_sentence_transformer
from sparse_accel.nn.layers import quantizers

MARK = "# recipe"
RECIPE = """
modifiers:
  - !EpochRangeModifier {end_epoch: 3}
  - !LearningRateFunctionModifier {lr_func: linear, init_lr: 0.005, final_lr: 0.001, end_epoch: 3}
  - !MovementPruningModifier {end_epoch: 1.5, final_sparsity: 0.8, params: 're:.*encoder.*dense.weight'}
  - !QuantizationModifier {start_epoch: 2}
"""
# The one for embeddings follows a teacher.
FOLLOWING = (
    RECIPE.replace("{start_epoch: 2}", "{submodules: [encoder]}") + "  - !DistillationModifier {hardness: 0.3}\n"
)
EXAMPLES = ("trainer", "sentence_transformers_trainer")


@dataclass(frozen=True)
class Desk:
    """What an example is started with."""

    name: str
    folder: Path
    flags: dict[str, Any]

    @property
    def example(self) -> Path:
        return ROOT / "examples" / f"{self.name}.py"

    def train(self, output: str, *before: str, program: Path | None = None, env: Any = None, **flags: Any) -> str:
        """Runs the example as a process of its own and returns what it printed."""
        given = words(**{**self.flags, "output_dir": self.folder / output, **flags})
        command = [sys.executable, *before, str(program or self.example), *given]
        variables = environment(**{"ACCELERATE_USE_CPU": "true", "WANDB_MODE": "disabled", **(env or {})})
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def load(self, output: str) -> Any:
        if self.name == "trainer":
            return sparse_accel.load(self.folder / output)
        return load_sentence_transformer(self.folder / output, device="cpu")


@pytest.fixture(scope="module", params=EXAMPLES)
def desk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp(request.param)
    name = request.param
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE if name == "trainer" else FOLLOWING)
    rows = sentences(96, seed=1, labels=("bad", "good"))
    if name != "trainer":
        rows = [{"anchor": one["text"], "positive": two["text"]} for one, two in itertools.pairwise(rows)]
    rates: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    flags = {
        "model": make_model(folder / "model", sparse=False, head=True, **rates),
        "train_file": write_csv(folder / "train.csv", rows),
        "batch_size": 16,
        "recipe": recipe,
    }
    if name != "trainer":
        flags["teacher"] = flags["model"]
    return Desk(name, folder, flags)


def check_result(desk: Desk, output: str) -> None:
    """The weights are 80% zero, and the quantizers were read."""
    after = weights(desk.folder / output)
    pruned = [name for name in after if re.search(r"encoder.*dense\.weight$", name)]
    assert len(pruned) == 6
    zeros = sum(int((after[name] == 0).sum()) for name in pruned) / sum(after[name].numel() for name in pruned)
    assert zeros == pytest.approx(0.8, abs=0.01)
    found = quantizers(desk.load(output))
    assert len(found) > 30 and all(quantizer.enabled and quantizer.ready for quantizer in found.values())


@pytest.mark.slow
def test_in_one_process_and_resumed(desk: Desk) -> None:
    """A run that lost its last checkpoint, and its result, gives the same bytes again."""
    desk.train("one")
    check_result(desk, "one")
    before = weights(desk.folder / "one")
    (newest, *_) = sorted(desk.folder.glob("one/checkpoint-*"), key=lambda path: -int(path.name.rpartition("-")[2]))
    shutil.rmtree(newest)
    (desk.folder / "one" / "model.safetensors").unlink()
    desk.train("one", resume=True)
    after = weights(desk.folder / "one")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.equal(weight, after[name]), name


@pytest.mark.slow
def test_in_two_processes(desk: Desk) -> None:
    before, variables = launcher("ddp")
    said = desk.train("ddp", *before, env=variables, batch_size=8)
    check_result(desk, "ddp")
    assert ("'distillation_loss'" in said) == ("teacher" in desk.flags)


@pytest.mark.slow
def test_without_its_marked_lines_it_is_a_plain_program(desk: Desk) -> None:
    lines = desk.example.read_text().splitlines()
    plain = "\n".join(line for line in lines if not line.endswith(MARK))
    code = "\n".join(ast.unparse(node) for node in ast.parse(plain).body[1:])
    for name in ("sparse_accel", "recipe", "teacher", "quantiz"):
        assert name not in code.lower(), name
    program = desk.folder / "plain.py"
    program.write_text(plain)
    desk.train("plain", program=program, recipe=None, teacher=None, epochs=1)
    assert (desk.folder / "plain" / "model.safetensors").exists()
    assert not (desk.folder / "plain" / "quantization.json").exists()


@pytest.mark.parametrize("name", EXAMPLES)
def test_three_lines_in_the_program(name: str) -> None:
    """The import, the base class and the recipe; a teacher is a fourth. Flags of the program do not count."""
    lines = (ROOT / "examples" / f"{name}.py").read_text().splitlines()
    marked = [line.strip() for line in lines if line.endswith(MARK) and "add_argument" not in line]
    assert [line.partition("  #")[0] for line in marked if "teacher" not in line] == [
        "from sparse_accel.integrations import RecipeMixin",
        "RecipeMixin,",
        "recipe=options.recipe,",
    ]
