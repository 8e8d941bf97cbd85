"""Every architecture is trained, resumed, exported with proof and run: docs/models.md says what came out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, RECIPE, SPARSITY, Architecture, make_tokenizer, write_model
from export_fixtures import export
from model_tables import FLOAT_POSITIONS, MODELS, PROVEN, WITH_ATTENTION, WITHOUT_ATTENTION
from script_fixtures import WORDS, assert_same_model, read_json, run, sentences, trace, weights, write_csv
from torch import nn

import sparse_accel
from sparse_accel import report
from sparse_accel.export import measure
from sparse_accel.export.fidelity import session_logits
from sparse_accel.export.kernels import MAX_LOGIT_DIFFERENCE
from sparse_accel.nn.layers import is_encoder_linear, quantizers
from sparse_accel.runtime import explain, session
from sparse_accel.runtime.loading import VARIABLE
from sparse_accel.runtime.timing import plain_session

TOKENS = 64


@dataclass(frozen=True)
class Trained:
    """A run of 8 steps that ended: QAT began at 4, ranges froze at 6. Checkpoints are of steps 3 and 6."""

    architecture: Architecture
    flags: dict[str, Any]
    folder: Path

    @property
    def name(self) -> str:
        return self.architecture.model_type


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Kernels that every CPU has; no charts, and no longer measurements than there must be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "portable")
        patch.setattr(measure, "_SECONDS", 0.0)
        patch.setattr(report, "write_report", lambda folder: folder)
        yield


# The two that differ most; the others are slow tests.
_FIRST = ("bert", "modernbert")


@pytest.fixture(
    scope="module",
    params=[name if name in _FIRST else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES],
)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    architecture, home = ARCHITECTURES[request.param], tmp_path_factory.mktemp(request.param)
    (home / "recipe.yaml").write_text(RECIPE)
    flags: dict[str, Any] = {
        "model_name_or_path": write_model(home / "student", architecture, WORDS, TOKENS),
        "distill_teacher": write_model(home / "teacher", architecture, WORDS, TOKENS, seed=1),
        "recipe": home / "recipe.yaml",
        "train_file": write_csv(home / "train.csv", sentences(32, seed=1)),
        "validation_file": write_csv(home / "validation.csv", sentences(24, seed=2)),
        "per_device_train_batch_size": 8,
        "max_seq_length": TOKENS,
        "save_steps": 3,
        **{"logging_steps": 1, "save_strategy": "steps", "do_train": True, "do_eval": True},
    }
    done = run(**flags, output_dir=home / "out")
    assert done.code == 0, done.all
    return Trained(architecture, flags, home / "out")


@pytest.fixture(scope="module")
def deployment(trained: Trained) -> Path:
    target = trained.folder.with_name("deployment")
    done = export(model_path=trained.folder, task="text_classification", output_dir=target)
    assert done.code == 0, done.all
    return target


def test_the_page_lists_these_architectures() -> None:
    assert list(MODELS) == list(ARCHITECTURES)


def test_train(trained: Trained) -> None:
    """Each Linear of the encoder, and nothing else, is pruned to 75%; all are quantized; the teacher counts."""
    model = sparse_accel.load(trained.folder)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    encoder = {f"{name}.weight" for name, module in linears.items() if is_encoder_linear(name, module)}
    stored = {name: int((weight == 0).sum()) / weight.numel() for name, weight in weights(trained.folder).items()}
    assert {name: stored[name] for name in encoder} == dict.fromkeys(encoder, SPARSITY)
    assert not [name for name in linears if f"{name}.weight" not in encoder and stored[f"{name}.weight"] > 0]

    results = read_json(trained.folder / "train_results.json")
    assert results["encoder_sparsity"] == SPARSITY and results["quantized_linears"] == len(linears)
    for kind in ("distillation_loss", "hidden_state_distillation_loss"):
        assert all(loss > 0 for loss in trace(trained.folder, f"train/{kind}").values())
    zeros = trace(trained.folder, "sparsity/encoder")
    assert all(value == pytest.approx(SPARSITY, abs=1e-6) for step, value in zeros.items() if step >= 5)
    assert MODELS[trained.name].train == "yes"
    assert MODELS[trained.name].attention == model.config._attn_implementation  # type: ignore[union-attr]


def test_resume(trained: Trained, tmp_path: Path) -> None:
    """From a checkpoint before quantization, and from one after it: the same model bit for bit."""
    for step in (3, 6):
        start = trained.folder / f"checkpoint-{step}"
        resumed = run(**trained.flags, output_dir=tmp_path / str(step), resume_from_checkpoint=start)
        assert resumed.code == 0 and f"from step {step}" in resumed.out, resumed.all
        assert_same_model(tmp_path / str(step), trained.folder)


def test_export(trained: Trained, deployment: Path) -> None:
    """The whole model is in INT8, but for what the page names, and every check passes."""
    written = read_json(deployment / "export_report.json")
    assert written["format"] == "qdq" and written["quantized_linears"] == written["linears"]
    checks = {check["name"]: check["result"] for check in written["checks"]}
    assert len(checks) == 7 and set(checks.values()) == {"pass"}
    model = sparse_accel.load(trained.folder)
    quantized = {name.removesuffix(".weight_quantizer") for name in quantizers(model)}
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Embedding)}
    in_float = layers - quantized
    assert MODELS[trained.name].export == (
        FLOAT_POSITIONS if in_float == {"deberta.encoder.rel_embeddings"} else PROVEN
    )
    assert len(in_float) == (trained.name == "deberta-v2")
    assert {entry["dtype"] for entry in written["layers"].values()} == {"int8"}


def test_runtime(trained: Trained, deployment: Path) -> None:
    """Rows of very different lengths in one batch: as in PyTorch, and with kernels as without them."""
    found = session(deployment)
    explanation = explain(found)
    assert explanation.instruction_set == "portable" and explanation.kept == ()
    model = sparse_accel.load(trained.folder)
    matrices = sum(1 if "+2" not in each.layer else 3 for each in explanation.matrices)
    assert matrices == sum(isinstance(module, nn.Linear) for module in model.modules())
    has_attention = explanation.operators.get("Attention", 0) == trained.architecture.blocks
    assert MODELS[trained.name].runtime == (WITH_ATTENTION if has_attention else WITHOUT_ATTENTION)
    assert has_attention or "Attention" not in explanation.operators

    batch = padded(trained.architecture, [1, 3, 10, 30, TOKENS - 2])
    with torch.no_grad():
        torch_logits = model(**batch).logits.numpy()
    inputs = {name: values.numpy() for name, values in batch.items()}
    without_kernels = plain_session(deployment / "model.onnx")
    plain = session_logits(without_kernels, inputs)
    assert np.abs(plain - torch_logits).mean() <= 0.1 * torch_logits.std()
    for rows in (1, 2, 5):
        np.testing.assert_allclose(session_logits(without_kernels, inputs, rows), plain, atol=1e-6)
    logits = session_logits(found, inputs)
    assert np.abs(logits - plain).mean() <= MAX_LOGIT_DIFFERENCE * plain.std()
    assert torch_logits.std() > 0.05  # of rows that differ


def padded(architecture: Architecture, lengths: list[int]) -> dict[str, torch.Tensor]:
    """Rows of so many words, in one batch."""
    random = np.random.default_rng(1)
    rows = [" ".join(random.choice(WORDS, length)) for length in lengths]
    batch: dict[str, torch.Tensor] = dict(
        make_tokenizer(architecture, WORDS, 10**6)(rows, padding=True, return_tensors="pt")
    )
    return batch
