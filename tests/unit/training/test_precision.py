"""The precision of training on CPUs: what is asked for, what the CPU multiplies, and what the run began in."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from script_fixtures import Tiny, assert_same_model, run
from token_fixtures import unfinished

from sparse_accel.cli.text_classification import TextClassificationArguments
from sparse_accel.distributed import processor
from sparse_accel.errors import UsageError
from sparse_accel.run_folder.record import read_record
from sparse_accel.training import precision
from sparse_accel.training.precision import bfloat16_hint, check_precision, chosen_precision

pytest_plugins = ["script_fixtures"]

VARIABLE = "ACCELERATE_MIXED_PRECISION"
NO_GPU = "--fp16 needs a GPU, but there is none: training in"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (VARIABLE, "ACCELERATE_USE_CPU", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the CPU one that multiplies bfloat16, or one that does not."""

    def become(fast: bool) -> None:
        monkeypatch.setattr(processor, "cpu_flags", lambda: frozenset({"avx2", *["avx512_bf16"] * fast}))

    return become


def arguments(output: Path, **flags: Any) -> TextClassificationArguments:
    given: dict[str, Any] = {"model_name_or_path": "model", "do_train": True, "task_name": "sst2", "fp16": True}
    return TextClassificationArguments(output_dir=str(output), **{**given, **flags})


def begun(folder: Path, **entries: Any) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"finished": False, "identity": {}, **entries}))
    return folder


# --- what is chosen ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fast", "found", "words"), [(True, "bf16", " bf16, which this CPU multiplies"), (False, "no", " float32")]
)
def test_fp16_without_a_gpu(
    fast: bool, found: str, words: str, cpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cpu(fast)
    assert chosen_precision(arguments(tmp_path)) == found
    assert capsys.readouterr().err == f"warning: {NO_GPU}{words}\n"


@pytest.mark.parametrize("fast", [True, False])
def test_other_precisions_are_what_was_asked_for(
    fast: bool, cpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cpu(fast)
    assert chosen_precision(arguments(tmp_path, fp16=False)) is None
    assert chosen_precision(arguments(tmp_path, fp16=False, bf16=True)) == "bf16"
    monkeypatch.setenv(VARIABLE, "fp16")
    assert chosen_precision(arguments(tmp_path, fp16=False, bf16=True)) == "bf16"
    monkeypatch.setenv(VARIABLE, "no")
    assert chosen_precision(arguments(tmp_path, fp16=False)) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen_precision(arguments(tmp_path)) == "fp16"
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # the GPU is not to be used
    assert chosen_precision(arguments(tmp_path)) == ("bf16" if fast else "no")


def test_evaluation_alone_is_in_float32(cpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cpu(True)
    assert chosen_precision(arguments(tmp_path, do_train=False, do_eval=True)) == "no"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("before", "found"),
    [("float32", "no"), ("bf16", "bf16"), ("fp16", None), (None, "no")],
    ids=["float32", "bf16", "on a GPU", "older version"],
)
def test_a_run_keeps_the_precision_that_it_began_in(
    before: str | None, found: str | None, fast: bool, cpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever CPU it continues on. A run in fp16 began on a GPU: it continues in the precision of this CPU."""
    cpu(fast)
    here = "bf16" if fast else "no"
    folder = begun(tmp_path / "out", **({"trained_with": {"precision": before}} if before else {}))
    assert chosen_precision(arguments(folder)) == (found or here)
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {NO_GPU} {'bf16' if (found or here) == 'bf16' else 'float32'}")
    assert (f", as the run in {folder}\n" in said) == (found not in (None, here))
    # The same from a checkpoint of it, in another folder.
    others = {"resume_from_checkpoint": str(folder / "checkpoint-2")}
    assert chosen_precision(arguments(tmp_path / "other", **others)) == (found or here)


def test_a_new_run_in_place_of_another(cpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu(True)
    folder = begun(tmp_path / "out", trained_with={"precision": "float32"})
    again = arguments(folder, overwrite_output_dir=True)
    assert chosen_precision(again) == "bf16"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # the scheduler's restart of the same command continues it
    assert chosen_precision(again) == "no"


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flags(tiny: Tiny) -> dict[str, Any]:
    few = {"max_train_samples": 64, "max_seq_length": 16, "save_strategy": "steps", "save_steps": 2}
    return tiny.flags(recipe=None, recipe_args=None, max_steps=4, eval_strategy="no", do_eval=False, **few)


def test_a_run_never_mixes_precisions(flags: dict[str, Any], cpu: Any, tmp_path: Path) -> None:
    """Begun in float32 by --fp16, stopped, and continued on a CPU with bfloat16, it ends as a run in float32."""
    cpu(False)
    whole = run(**flags, fp16=True, output_dir=tmp_path / "whole")
    assert whole.code == 0, whole.all
    cpu(True)
    output = unfinished(tmp_path / "whole", tmp_path / "out", 2)
    resumed = run(**flags, fp16=True, output_dir=output)
    assert resumed.code == 0 and "resuming from step 2" in resumed.out, resumed.all
    assert f"{NO_GPU} float32, as the run in {output}" in resumed.err
    assert re.search(r"precision +float32", resumed.out)
    assert_same_model(tmp_path / "whole", output)
    # What is finished is shown, not refused as a run of another precision.
    shown = run(**flags, fp16=True, output_dir=output)
    assert shown.code == 0 and "nothing is trained again" in shown.out, shown.all
    # And a run of its own is in bf16, and records it.
    shutil.rmtree(output)
    fresh = run(**flags, fp16=True, output_dir=output)
    assert fresh.code == 0 and re.search(r"precision +bf16", fresh.out), fresh.all
    assert (read_record(output) or {})["trained_with"]["precision"] == "bf16"
    assert json.loads((output / "environment.json").read_text())["precision"] == "bf16"


# --- several processes ------------------------------------------------------------------------------------------------


class Process:
    def __init__(self, name: str) -> None:
        self.mixed_precision = name


NAMES = st.sampled_from(["no", "bf16", "fp16"])


@given(st.lists(NAMES, min_size=1, max_size=4))
def test_all_processes_have_one_precision(names: list[str]) -> None:
    numbers = [("no", "bf16", "fp16").index(name) for name in names]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "largest", lambda number: max(numbers) if number >= 0 else -min(numbers))
        for name in names:
            accelerator: Any = Process(name)
            if len(set(names)) == 1:
                check_precision(accelerator)
            else:
                with pytest.raises(UsageError, match=r"different precisions: .* Pass --bf16"):
                    check_precision(accelerator)


# --- the hint ---------------------------------------------------------------------------------------------------------


def test_bf16_is_hinted_at_where_it_is_faster_and_nobody_chose(
    cpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = arguments(tmp_path, fp16=False)
    cpu(False)
    assert bfloat16_hint(plain, resumed=False) == []
    cpu(True)
    [hint] = bfloat16_hint(plain, resumed=False)
    assert "--bf16" in hint and bfloat16_hint(plain, resumed=True) == []
    assert bfloat16_hint(arguments(tmp_path, fp16=False, bf16=True), resumed=False) == []
    assert bfloat16_hint(arguments(tmp_path), resumed=False) == []
    monkeypatch.setenv(VARIABLE, "no")  # as a launcher's file has it
    assert bfloat16_hint(plain, resumed=False) == []
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert bfloat16_hint(plain, resumed=False) == []
