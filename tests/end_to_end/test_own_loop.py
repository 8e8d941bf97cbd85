"""examples/own_loop.py: a recipe in a loop of one's own, in one process and in two."""

from __future__ import annotations

import ast
import re
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
from sparse_accel.nn.layers import quantizers

EXAMPLE = ROOT / "examples" / "own_loop.py"
MARK = "# recipe"
RECIPE = """
modifiers:
  - !EpochRangeModifier {end_epoch: 4}
  - !LearningRateFunctionModifier {lr_func: linear, init_lr: 0.005, final_lr: 0.001, end_epoch: 4}
  - !ConstantPruningModifier {params: __ALL_PRUNABLE__}
  - !QuantizationModifier {start_epoch: 2, disable_quantization_observer_epoch: 3}
  - !DistillationModifier {hardness: 0.5}
"""


@dataclass(frozen=True)
class Desk:
    """What the example is started with."""

    folder: Path
    flags: dict[str, Any]

    def train(self, *before: str, program: Path = EXAMPLE, env: dict[str, str] | None = None, **flags: Any) -> str:
        """Runs the example as a process of its own and returns what it printed."""
        command = [sys.executable, *before, str(program), *words(**self.flags, **flags)]
        done = subprocess.run(command, env=environment(**(env or {})), capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("own_loop")
    (folder / "recipe.yaml").write_text(RECIPE)
    flags = {
        "model": make_model(folder / "model", sparse=True),
        "train_file": write_csv(folder / "train.csv", sentences(203, seed=1, labels=("bad", "good"))),
        "batch_size": 16,
    }
    return Desk(folder, flags)


def losses_of(printed: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"^epoch \d+: loss (\d+\.\d+)$", printed, flags=re.MULTILINE)]


def check_result(desk: Desk, output: Path, losses: list[float]) -> None:
    """Losses fell; what was zero is zero, and little else; the quantizers were read."""
    assert len(losses) == 4 and losses[-1] < losses[0]
    before, after = weights(desk.flags["model"]), weights(output)
    masked = [name for name in after if "encoder" in name and after[name].ndim == 2]
    assert len(masked) == 12
    for name in masked:
        assert torch.equal(after[name] == 0, before[name] == 0), name
        assert not torch.equal(after[name], before[name]), name
    model: Any = sparse_accel.load(output)
    assert model.config.id2label == {0: "bad", 1: "good"}
    found = quantizers(model)
    assert len(found) > 30 and all(quantizer.enabled and quantizer.ready for quantizer in found.values())
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=torch.tensor([[2, 7, 9, 3]])).logits).all()


def test_in_one_process(desk: Desk) -> None:
    output = desk.folder / "one"
    printed = desk.train(recipe=desk.folder / "recipe.yaml", output_dir=output)
    check_result(desk, output, losses_of(printed))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ddp", "fsdp2"])
def test_in_two_processes_with_a_teacher(desk: Desk, layout: str) -> None:
    teacher = desk.folder / "teacher"
    if not teacher.exists():
        make_model(teacher, sparse=False, head=True)
    output = desk.folder / layout
    before, variables = launcher(layout)
    recipe = desk.folder / "recipe.yaml"
    printed = desk.train(*before, env=variables, recipe=recipe, teacher=teacher, output_dir=output)
    check_result(desk, output, losses_of(printed))


def test_without_its_marked_lines_it_is_a_plain_program(desk: Desk) -> None:
    lines = EXAMPLE.read_text().splitlines()
    plain = "\n".join(line for line in lines if not line.endswith(MARK))
    assert len([line for line in lines if line.endswith(MARK)]) < 25
    tree = ast.parse(plain)
    code = "\n".join(ast.unparse(node) for node in tree.body[1:])
    for name in ("sparse_accel", "recipe", "teacher", "quantiz"):
        assert name not in code, name
    program = desk.folder / "plain_loop.py"
    program.write_text(plain)
    printed = desk.train(program=program, output_dir=desk.folder / "plain", learning_rate=0.005, epochs=4)
    losses = losses_of(printed)
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert not (desk.folder / "plain" / "quantization.json").exists()


def test_what_readme_says_of_a_loop_is_there() -> None:
    """README's loop in short, and the example, call the same moments in the same order."""
    moments = ["RecipeRun(", "attach(", "prepare(", "bind(", "step_begin(", "run.loss(", "grads_ready(", "step_end("]
    readme = (ROOT / "README.md").read_text().partition("## In your own loop")[2].partition("\n## ")[0]
    for text in (readme, EXAMPLE.read_text().partition("parse_args()")[2]):
        places = [text.index(moment) for moment in [*moments, "run.finish("]]
        assert places == sorted(places)
