"""Which random numbers dropout uses when a run resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparse_accel.nn import dropout
from sparse_accel.nn.cpu_kernels import kernel
from sparse_accel.nn.dropout import COMPILED, PYTORCH, dropout_numbers, use_compiled_dropout
from sparse_accel.progress import Progress
from sparse_accel.run_folder.checkpoints import _resume_dropout
from sparse_accel.run_folder.trainer_state import History

pytestmark = pytest.mark.skipif(kernel() is None, reason="the library is not built")


def resumed(recorded: str, device: str = "cpu") -> str:
    accelerator: Any = SimpleNamespace(device=torch.device(device), is_main_process=True)
    _resume_dropout(Path("out/checkpoint-2"), accelerator, recorded)
    return dropout_numbers()


@pytest.mark.parametrize("use", [lambda: use_compiled_dropout(), lambda: use_compiled_dropout(False)])
def test_a_run_that_began_with_the_numbers_of_pytorch_keeps_them(
    use: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    use()
    assert resumed(PYTORCH) == PYTORCH and capsys.readouterr().err == ""


def test_a_run_that_cannot_keep_the_compiled_numbers_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_compiled_dropout()
    assert resumed(COMPILED) == COMPILED and capsys.readouterr().err == ""
    monkeypatch.setattr(dropout, "kernel", lambda: None)
    use_compiled_dropout()
    assert resumed(COMPILED, device="meta") == PYTORCH and capsys.readouterr().err == ""  # no CPU
    assert resumed(COMPILED) == PYTORCH
    said = capsys.readouterr().err
    assert said.startswith("warning: out/checkpoint-2 was trained with") and said.count("\n") == 1


def test_a_checkpoint_records_them() -> None:
    for on, name in ((True, COMPILED), (False, PYTORCH)):
        use_compiled_dropout(on)
        assert json.loads(History().text(Progress(step=1, steps_per_epoch=2)))["dropout"] == name
