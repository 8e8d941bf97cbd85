"""sparse_accel.load(folder, remove_structure=True): the same model, smaller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from export_fixtures import quantize, write_folder
from structure_models import KINDS, make, output, set_to_zero
from tiny import make_albert
from transformers import AutoModelForSequenceClassification

import sparse_accel
from sparse_accel.errors import UsageError
from sparse_accel.nn.layers import quantizers
from sparse_accel.nn.structure import HEADS, NEURONS
from sparse_accel.nn.structure_removal import structure_of


@pytest.mark.parametrize("kind", KINDS)
def test_a_smaller_model_with_its_quantizers(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make(kind)
    set_to_zero(model)
    folder = write_folder(tmp_path / "model", quantize(model))
    full, small = (sparse_accel.load(folder, remove_structure=remove) for remove in (False, True))
    assert structure_of(small).attention_heads == (3, 1) and structure_of(small).ffn_neurons == (42, 32)
    assert structure_of(full).parameters == sum(each.numel() for each in model.parameters())
    assert structure_of(full).parameters - structure_of(small).parameters == 4 * (1024 + 24) + 54 * 65
    assert list(quantizers(small)) == list(quantizers(full)) and not small.training
    torch.testing.assert_close(output(small), output(full), rtol=0.0, atol=2e-6)
    torch.testing.assert_close(output(full), output(model), rtol=0.0, atol=1e-7)
    assert "warning" not in capsys.readouterr().err


def test_a_saved_one_that_config_can_describe(tmp_path: Path) -> None:
    """Plain transformers reads it, and so does `load`: there is nothing left to remove."""
    model = make("Roberta")
    set_to_zero(model, {NEURONS: (range(24), range(40, 64))})
    small: Any = sparse_accel.load(write_folder(tmp_path / "model", model), remove_structure=True)
    small.save_pretrained(tmp_path / "small")
    expected = output(model)
    for read in (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "small").eval(),
        sparse_accel.load(tmp_path / "small"),
    ):
        assert structure_of(read).ffn_neurons == (40, 40)
        torch.testing.assert_close(output(read), expected, rtol=0.0, atol=2e-6)


def test_a_saved_one_that_config_cannot_describe_is_not_read(tmp_path: Path) -> None:
    model = make("Bert")
    set_to_zero(model, {HEADS: ([1], [2])})
    small: Any = sparse_accel.load(write_folder(tmp_path / "model", model), remove_structure=True)
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(UsageError, match="weight is 32 x 24 in the file, but 32 x 32"):
        sparse_accel.load(tmp_path / "small")


def test_nothing_to_remove_is_a_notice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of a head is no head."""
    model: Any = make("Bert")
    with torch.no_grad():
        model.bert.encoder.layer[0].attention.self.query.weight[:4] = 0.0
    folder = write_folder(tmp_path / "model", model)
    small = sparse_accel.load(folder, remove_structure=True)
    assert structure_of(small) == structure_of(model)
    line = f"warning: {folder}: remove_structure=True removed nothing: no head or neuron has only zeros"
    assert line in capsys.readouterr().err


def test_units_that_stay_have_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make("Bert")
    set_to_zero(model, {HEADS: (range(4), [])})
    small = sparse_accel.load(write_folder(tmp_path / "model", model), remove_structure=True)
    assert structure_of(small).attention_heads == (1, 4)
    assert "a zero head of block 0 stays, because all of them are zero" in capsys.readouterr().err


def test_another_architecture_is_an_error(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", make_albert())
    with pytest.raises(UsageError, match="of an albert model cannot be removed, only those of bert") as error:
        sparse_accel.load(folder, remove_structure=True)
    assert str(error.value).endswith("Load it without remove_structure=True")
    sparse_accel.load(folder)
