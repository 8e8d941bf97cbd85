"""A run that prunes heads, neurons and single weights, and quantizes: exported and loaded, it answers the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, write_model
from export_fixtures import export
from script_fixtures import WORDS, read_json, run, sentences, write_csv
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import sparse_accel
from sparse_accel.export import measure
from sparse_accel.export.fidelity import session_logits
from sparse_accel.nn.layers import is_encoder_linear
from sparse_accel.nn.structure_removal import structure_of
from sparse_accel.runtime import explain, session
from sparse_accel.runtime.loading import VARIABLE
from sparse_accel.runtime.timing import plain_session

pytestmark = pytest.mark.slow
RECIPE = r"""
modifiers:
  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 2.0}
  - !LearningRateFunctionModifier {start_epoch: 0.0, end_epoch: 2.0, lr_func: linear, init_lr: 0.01, final_lr: 0.0}
  - !StructuredPruningModifier {start_epoch: 0.0, end_epoch: 1.0, update_frequency: 0.25,
      final_sparsity: {attention_heads: 0.5, ffn_neurons: 0.75}, uniform: %s}
  - !MagnitudePruningModifier {start_epoch: 0.0, end_epoch: 1.0, update_frequency: 0.25, init_sparsity: 0.0,
      final_sparsity: 0.5, params: ['re:.*layer.\d+.*dense.weight']}
  - !QuantizationModifier {start_epoch: 1.0, disable_quantization_observer_epoch: 1.5,
      quantize_linear_activations: false}
  - !DistillationModifier {hardness: 0.5}
"""


@pytest.mark.parametrize("uniform", ["true", "false"])
def test_trained_exported_and_loaded(uniform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "portable")
    monkeypatch.setattr(measure, "_SECONDS", 0.0)
    bert = ARCHITECTURES["bert"]
    (tmp_path / "recipe.yaml").write_text(RECIPE % uniform)
    flags: dict[str, Any] = {"per_device_train_batch_size": 8, "max_seq_length": 64, "do_train": True, "do_eval": True}
    done = run(
        model_name_or_path=write_model(tmp_path / "student", bert, WORDS, 64, width=64),
        distill_teacher=write_model(tmp_path / "teacher", bert, WORDS, 64, width=64, seed=1),
        recipe=tmp_path / "recipe.yaml",
        train_file=write_csv(tmp_path / "train.csv", sentences(32, seed=1)),
        validation_file=write_csv(tmp_path / "validation.csv", sentences(24, seed=2)),
        output_dir=tmp_path / "out",
        **flags,
    )
    assert done.code == 0, done.all
    done = export(model_path=tmp_path / "out")
    assert done.code == 0, done.all

    report = read_json(tmp_path / "deployment" / "export_report.json")
    assert {"structure": "pass", "accuracy": "pass"}.items() <= {
        c["name"]: c["result"] for c in report["checks"]
    }.items()
    full: Any = sparse_accel.load(tmp_path / "out")
    small: Any = sparse_accel.load(tmp_path / "out", remove_structure=True)
    assert structure_of(full).attention_heads == (4,) and structure_of(full).ffn_neurons == (128,)
    # A head: 4 weights of 16 x 64 and 3 biases of 16; a neuron: 2 x 64 weights and a bias.
    removed = 2 * (4 * 1024 + 48) + 96 * 129
    assert structure_of(small).attention_heads == (2,) and structure_of(small).ffn_neurons == (32,)
    assert structure_of(full).parameters - structure_of(small).parameters == removed
    assert report["structure"]["after"]["parameters"] == structure_of(small).parameters
    # The sparsity of single weights is that of what is left.
    dense = {
        name: float((module.weight == 0).float().mean())
        for name, module in small.named_modules()
        if is_encoder_linear(name, module) and ".dense" in name
    }
    assert len(dense) == 3 and all(zeros == pytest.approx(0.5, abs=0.02) for zeros in dense.values()), dense

    rows = [row["text"] for row in sentences(24, seed=3)]
    batch = AutoTokenizer.from_pretrained(tmp_path / "deployment")(rows, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected, ours = (model(**batch).logits.numpy() for model in (full, small))
    np.testing.assert_allclose(ours, expected, atol=0.05 * expected.std())
    assert np.abs(ours - expected).mean() < 0.005 * expected.std()
    inputs = {name: values.numpy() for name, values in batch.items()}
    with_kernels = session(tmp_path / "deployment")
    assert explain(with_kernels).operators["Attention"] == explain(with_kernels).operators["FeedForward"] == 1
    for made in (plain_session(tmp_path / "deployment" / "model.onnx"), with_kernels):
        assert np.abs(session_logits(made, inputs) - expected).mean() < 0.05 * expected.std()
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert structure_of(plain) == structure_of(full)
