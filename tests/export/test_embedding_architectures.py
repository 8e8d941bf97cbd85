"""Every architecture for sentence embeddings, trained, exported and run: docs/models.md says what came out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, RECIPE, SPARSITY, write_model
from embedding_fixtures import VOCABULARY, run, scored, texts
from export_fixtures import export
from model_tables import EMBEDDINGS, FLOAT_POSITIONS, PROVEN, WITH_ATTENTION, WITHOUT_ATTENTION
from script_fixtures import read_json, trace, write_csv
from torch import nn
from transformers import AutoTokenizer

import sparse_accel
from sparse_accel import report
from sparse_accel.export import measure
from sparse_accel.nn.layers import quantizers
from sparse_accel.runtime import explain, session
from sparse_accel.runtime.loading import VARIABLE

TOKENS = 64


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """Kernels that every CPU has; no charts, and no longer measurements than there must be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "portable")
        patch.setattr(measure, "_SECONDS", 0.0)
        patch.setattr(report, "write_report", lambda folder: folder)
        yield


def test_the_page_lists_these_architectures() -> None:
    assert list(EMBEDDINGS) == list(ARCHITECTURES)


@pytest.mark.slow  # BERT's are also exported in test_embedding_export.py
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_follows_a_teacher_and_is_exported(name: str, tmp_path: Path) -> None:
    """8 steps: masks and the teacher's vectors and hidden states at first, INT8 from the fifth on."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "train.txt").write_text("\n".join(texts(32, seed=1)) + "\n")
    student, teacher = (
        write_model(tmp_path / part, ARCHITECTURES[name], VOCABULARY, TOKENS, seed=seed, head=False)
        for seed, part in enumerate(("student", "teacher"))
    )
    config = read_json(teacher / "config.json") | {"sentence_embedding": {"pooling": "mean", "normalize": True}}
    (teacher / "config.json").write_text(json.dumps(config))
    flags: dict[str, Any] = {
        "model_name_or_path": student,
        "distill_teacher": teacher,
        "recipe": tmp_path / "recipe.yaml",
        "train_file": tmp_path / "train.txt",
        "validation_file": write_csv(tmp_path / "validation.csv", scored(24, seed=2)),
        **{"per_device_train_batch_size": 8, "max_seq_length": TOKENS, "logging_steps": 1},
        **{"do_train": True, "do_eval": True},
    }
    done = run(**flags, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    trained = read_json(tmp_path / "out" / "train_results.json")
    losses = [*trace(tmp_path / "out", "train/distillation_loss").values()]
    assert trained["encoder_sparsity"] == SPARSITY and trained["quantized_linears"] == trained["linears"]
    assert losses[3] < losses[0]
    assert all(loss > 0 for loss in trace(tmp_path / "out", "train/hidden_state_distillation_loss").values())
    assert EMBEDDINGS[name].train == "yes"

    done = export(model_path=tmp_path / "out", output_dir=tmp_path / "deployment")
    assert done.code == 0, done.all
    written = read_json(tmp_path / "deployment" / "export_report.json")
    checks = {check["name"]: check["result"] for check in written["checks"]}
    assert len(checks) == 8 and set(checks.values()) == {"pass"}
    assert written["task"] == "sentence_embedding" and written["quantized_linears"] == written["linears"]
    model = sparse_accel.load(tmp_path / "out")
    layers = {at for at, module in model.named_modules() if isinstance(module, nn.Linear | nn.Embedding)}
    in_float = layers - {at.removesuffix(".weight_quantizer") for at in quantizers(model)}
    assert EMBEDDINGS[name].export == (FLOAT_POSITIONS if in_float == {"encoder.rel_embeddings"} else PROVEN)
    assert len(in_float) == (name == "deberta-v2")

    found = session(tmp_path / "deployment")
    explanation = explain(found)
    assert explanation.instruction_set == "portable" and explanation.kept == ()
    has_attention = explanation.operators.get("Attention", 0) == ARCHITECTURES[name].blocks
    assert EMBEDDINGS[name].runtime == (WITH_ATTENTION if has_attention else WITHOUT_ATTENTION)
    batch = AutoTokenizer.from_pretrained(tmp_path / "out")(texts(7, seed=3), padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).sentence_embedding.numpy()
    vectors = found.run(None, {entry.name: batch[entry.name].numpy() for entry in found.get_inputs()})[0]
    between_texts = expected.std(axis=0).mean()
    assert np.abs(vectors - expected).mean() <= 0.1 * between_texts and between_texts > 1e-3
