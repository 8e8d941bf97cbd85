"""A weight that embeddings and output layer share, pruned: one mask for both, and one tensor in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from script_fixtures import make_model
from token_fixtures import NO_DROPOUT, VOCABULARY
from transformers import AutoModelForMaskedLM, AutoTokenizer

from sparse_accel.models.files import save_model
from sparse_accel.nn.layers import maskable_layers
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun

SHARED = "bert.embeddings.word_embeddings.weight"
RECIPE = f"""
modifiers:
  - !EpochRangeModifier {{end_epoch: 1}}
  - !MagnitudePruningModifier
      {{params: [{SHARED}], init_sparsity: 0.5, final_sparsity: 0.5, start_epoch: 0, end_epoch: 1}}
"""


@torch.no_grad()
def test_it_is_written_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_model(tmp_path / "dense", sparse=False, vocabulary=VOCABULARY, **NO_DROPOUT)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "dense").eval()
    RecipeRun(load_recipe(RECIPE)).attach(model)
    layers: list[Any] = maskable_layers(model)[SHARED]
    assert len(layers) == 2
    for layer in layers:
        layer.mask = layer.weight.abs() > layer.weight.abs().median()
    save_model(tmp_path / "out", Accelerator(cpu=True), model, AutoTokenizer.from_pretrained(tmp_path / "dense"))
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert [name for name in stored if "decoder.weight" in name or "word_embeddings" in name] == [SHARED]
    assert float((stored[SHARED] == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    assert again.get_input_embeddings().weight is again.get_output_embeddings().weight
    ids = torch.tensor([[2, 5, 6, 7, 3]])
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
