"""Tiny models and rows, and ways to run scripts/text_classification.py on them: here, or as a process of its own.

A process costs ten seconds of imports, so most tests call the script's `main` in this one: same flags, same files, same
exit code. Test modules name this one in `pytest_plugins`, after they imported it (hence PYTEST_DONT_REWRITE).
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import random
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from places import ROOT
from tiny import BAD, GOOD, PLAIN, SPECIAL

SCRIPT = ROOT / "scripts" / "text_classification.py"
RECIPE = ROOT / "sparse_accel" / "zoo" / "recipes" / "sst2_pruned90_quant.yaml"
# The tutorial's recipe, shortened: 4 epochs, QAT from 2, ranges frozen from 3.
SHORT: dict[str, Any] = {"num_epochs": 4, "qat_start_epoch": 2.0, "observer_epoch": 3.0, "init_lr": 1e-2}

WORDS = (*GOOD, *BAD, *PLAIN)
NOTHING: Mapping[str, str] = {}


@dataclass(frozen=True)
class Outcome:
    """How the script ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def all(self) -> str:
        """What a terminal would show, for the message of a failed assertion."""
        return f"exit code {self.code}\n{self.out}\n{self.err}"


def words(**flags: Any) -> list[str]:
    """Flags as words of a command line; True stands for the name alone, None for nothing, a dict for JSON."""
    result = []
    for name, value in flags.items():
        if value is None:
            continue
        shown = json.dumps(value) if isinstance(value, dict) else str(value)
        result += [f"--{name}"] if value is True else [f"--{name}", shown]
    return result


def flat(text: str) -> str:
    """Printed text without its line breaks: tables wrap long cells."""
    return " ".join(text.split())


# --- rows and models --------------------------------------------------------------------------------------------------


def sentences(count: int, seed: int, labels: tuple[Any, Any] = (0, 1)) -> list[dict[str, Any]]:
    """Rows of 4 to 16 words with `text` and `label`: good or bad, as two of its words say."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        good = number % 2
        chosen = draw.choices(PLAIN, k=draw.randint(2, 14)) + draw.choices(GOOD if good else BAD, k=2)
        draw.shuffle(chosen)
        rows.append({"text": " ".join(chosen), "label": labels[good]})
    draw.shuffle(rows)
    return rows


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def make_model(
    folder: Path, *, sparse: bool, head: bool = False, vocabulary: Sequence[str] = WORDS, **config: Any
) -> Path:
    """Writes a BERT of two narrow layers with its tokenizer.

    Args:
        sparse: whether 90% of its encoder's Linear weights are zero.
        head: whether it is a classifier; otherwise a masked language model, as what transfer starts from is.
        vocabulary: its words, special ones aside.
        config: more entries of its config.json.
    """
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertTokenizer

    torch.manual_seed(len(folder.name))
    folder.mkdir(parents=True)
    known = [*SPECIAL, *vocabulary]
    BertTokenizer({word: number for number, word in enumerate(known)}).save_pretrained(folder)
    settings: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    settings["initializer_range"] = 0.2  # wide enough for so narrow a model to learn, nine tenths of it zero
    configuration = BertConfig(**{"vocab_size": len(known), "max_position_embeddings": 64, **settings, **config})
    model = (BertForSequenceClassification if head else BertForMaskedLM)(configuration)
    if sparse:
        with torch.no_grad():
            for parameter in model.bert.encoder.parameters():
                if parameter.ndim == 2:
                    smallest = parameter.abs().flatten().kthvalue(int(parameter.numel() * 0.9)).values
                    parameter.mul_(parameter.abs() > smallest)
    model.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Tiny:
    """A folder of tiny things that many tests read and none changes."""

    folder: Path
    model: Path  # masked language model, encoder 90% zero
    train: Path  # 203 rows, labels 0 and 1: the last batch is an odd one
    validation: Path  # 60 rows
    test: Path  # 17 rows without labels

    def flags(self, **others: Any) -> dict[str, Any]:
        """Flags of an ordinary training run with the tutorial's recipe, no teacher; `others` replace them."""
        return {
            "model_name_or_path": self.model,
            "recipe": RECIPE,
            "recipe_args": SHORT,
            "distill_teacher": "disable",
            "train_file": self.train,
            "validation_file": self.validation,
            "per_device_train_batch_size": 32,
            "per_device_eval_batch_size": 32,
            "do_train": True,
            "do_eval": True,
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "logging_steps": 5,
            **others,
        }


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    unlabelled = [{"text": row["text"]} for row in sentences(17, seed=3)]
    return Tiny(
        folder,
        make_model(folder / "pruned90", sparse=True),
        write_csv(folder / "train.csv", sentences(203, seed=1)),
        write_csv(folder / "validation.csv", sentences(60, seed=2)),
        write_csv(folder / "test.csv", unlabelled),
    )


# --- running the script -----------------------------------------------------------------------------------------------


def environment(**variables: str) -> dict[str, str]:
    """Environment of a script's own process; conftest.py has seen to threads, caches and network."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]  # packages may be there too
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | variables


def run(*arguments: str, cwd: Path | None = None, **flags: Any) -> Outcome:
    """Runs the training script's main program in this process, with these words and flags."""
    return run_program(SCRIPT, [*arguments, *words(**flags)], cwd)


def run_program(script: Path, arguments: Sequence[str], cwd: Path | None = None) -> Outcome:
    """Runs a script's main program in this process."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    out, err, before = io.StringIO(), io.StringIO(), (sys.argv, os.getcwd())
    sys.argv = [str(script), *arguments]
    os.chdir(cwd or before[1])
    code: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        sys.argv = before[0]
        os.chdir(before[1])
        AcceleratorState._reset_state(reset_partial_state=True)
    return Outcome(int(code), out.getvalue(), err.getvalue())


def start(
    *arguments: str,
    cwd: Path | None = None,
    launcher: Sequence[str] = (),
    env: Mapping[str, str] = NOTHING,
    **flags: Any,
) -> subprocess.Popen[str]:
    """Starts the script as a process of its own, in a process group of its own.

    Args:
        launcher: words between the interpreter and the script, such as those of `accelerate launch`.
        env: more variables of its environment.
    """
    return subprocess.Popen(
        [sys.executable, *launcher, str(SCRIPT), *arguments, *words(**flags)],
        cwd=cwd or ROOT,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait(process: subprocess.Popen[str], timeout: float = 240) -> Outcome:
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Outcome(process.returncode, out, err)


def run_process(*arguments: str, cwd: Path | None = None, **flags: Any) -> Outcome:
    """Runs the script as a process of its own."""
    return wait(start(*arguments, cwd=cwd, **flags))


# --- reading what it wrote --------------------------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def history(folder: Path) -> list[dict[str, float]]:
    """The logged figures of a run, in order."""
    return read_json(folder / "trainer_state.json")["log_history"]


def trace(folder: Path, name: str) -> dict[int, float]:
    """One logged figure of a run, by step."""
    return {int(entry["step"]): entry[name] for entry in history(folder) if name in entry}


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def assert_same_model(one: Path, other: Path) -> None:
    """Weights and quantizers are the same, bit by bit."""
    import torch

    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different
    quantizers = [folder / "quantization.json" for folder in (one, other)]
    assert quantizers[0].exists() == quantizers[1].exists()
    if quantizers[0].exists():
        assert quantizers[0].read_text() == quantizers[1].read_text()
