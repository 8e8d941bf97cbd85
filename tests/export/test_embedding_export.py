"""scripts/export_onnx.py for embeddings: pooling in the file, the proof on cosines and nearest texts, and `embed`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from embedding_fixtures import VOCABULARY, TinyEmbeddings, texts
from export_fixtures import export
from places import GOLDEN
from script_fixtures import flat, make_model, read_json
from transformers import AutoTokenizer

import sparse_accel
from sparse_accel.errors import UsageError
from sparse_accel.export.fidelity import check_fidelity, compare
from sparse_accel.export.texts import Texts
from sparse_accel.runtime import explain, session
from sparse_accel.runtime.loading import VARIABLE
from sparse_accel.tasks import SentenceEmbedding
from sparse_accel.tasks.label_names import Head

pytest_plugins = ["embedding_fixtures", "export_fixtures"]
pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def deployment(embedder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "portable")  # kernels that every x86-64 CPU has
        done = export(model_path=embedder, output_dir=folder)
    assert done.code == 0, done.all
    return folder


def checks(report: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {check["name"]: (check["result"], check["detail"]) for check in report["checks"]}


def by_torch(folder: Path, sentences: list[str]) -> np.ndarray:
    """Embeddings of the model as it was trained, one text at a time: no padding."""
    model, tokenizer = sparse_accel.load(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        found = [model(**tokenizer(each, return_tensors="pt")).sentence_embedding[0] for each in sentences]
    return torch.stack(found).numpy()


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first * second).sum(1) / (np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1))


def test_an_export_is_proven_on_the_runs_pairs(embeddings: TinyEmbeddings, embedder: Path, deployment: Path) -> None:
    report = read_json(deployment / "export_report.json")
    found = checks(report)
    assert {result for result, _ in found.values()} == {"pass"}, found
    assert report["fidelity"]["mean_cosine"] >= 0.999
    assert "0.999" in found["cosine"][1] and "spearman" in found["similarity and retrieval"][1]
    assert "nearest texts are the same" in found["agreement"][1]
    assert str(embeddings.validation) in found["similarity and retrieval"][1]
    expected = {
        name: read_json(embedder / "eval_results.json")[f"eval_{name}"]
        for name in ("spearman", "pearson", "ndcg_at_10", "recall_at_10")
    }
    assert report["fidelity"]["pytorch"] == pytest.approx(expected, abs=1e-9)
    assert report["task"] == "sentence_embedding" and report["quantized_linears"] == report["linears"] > 0


def test_the_kernels_are_proven_on_the_same_embeddings(
    deployment: Path, monkeypatch: pytest.MonkeyPatch, embedder: Path
) -> None:
    kernels = read_json(deployment / "export_report.json")["sparse_kernels"]
    assert kernels["reason"] == "" and kernels["mean_cosine"] >= 0.999
    assert {check["name"] for check in kernels["checks"]} >= {"cosine", "agreement"}
    sentences = texts(20, seed=9)
    monkeypatch.setenv(VARIABLE, "portable")
    assert explain(session(deployment)).matrices
    with_kernels = sparse_accel.embed(deployment, sentences)
    monkeypatch.setenv(VARIABLE, "none")
    plain = sparse_accel.embed(deployment, sentences)
    assert cosines(with_kernels, plain).min() > 0.999
    assert cosines(plain, by_torch(embedder, sentences)).mean() > 0.999


def test_pooling_and_normalization_are_in_the_file(deployment: Path) -> None:
    graph = onnx.load(deployment / "model.onnx").graph
    assert [value.name for value in graph.output] == ["sentence_embedding"]
    width = read_json(deployment / "config.json")["hidden_size"]
    assert [value.type.tensor_type.shape.dim[1].dim_value for value in graph.output] == [width]
    found = sparse_accel.embed(deployment, texts(7, seed=3))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)


def test_embed_reads_as_many_tokens_as_the_model(embedder: Path, deployment: Path) -> None:
    """16 here, of the 64 positions that its encoder has: as in training, evaluation and sentence-transformers."""
    words = [word for text in texts(12, seed=6) for word in text.split()]
    assert len(words) > 40
    whole, cut = sparse_accel.embed(deployment, [" ".join(words), " ".join(words[:14])])
    np.testing.assert_allclose(whole, cut, atol=1e-5)
    assert AutoTokenizer.from_pretrained(deployment).model_max_length == 16


def test_embed_keeps_the_order_and_takes_one_text(deployment: Path) -> None:
    """Texts of similar length run together, whatever their order; the batch does not change an embedding much."""
    sentences = texts(11, seed=5)
    together = sparse_accel.embed(deployment, sentences, batch_size=4)
    assert together.shape == (11, together.shape[1]) and together.dtype == np.float32
    alone = np.stack([sparse_accel.embed(deployment, each) for each in sentences])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert sparse_accel.embed(deployment, []).shape == (0, together.shape[1])


@pytest.mark.slow
def test_code_of_the_cards_runs(
    embedder: Path, deployment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two blocks each; the last number that each prints is a cosine, the same but for the quantizers."""
    monkeypatch.setenv(VARIABLE, "none")
    found = []
    for folder in (embedder, deployment):
        code = [text.partition("```")[0] for text in (folder / "README.md").read_text().split("```python\n")[1:]]
        assert len(code) == 2
        monkeypatch.chdir(folder)
        for block in code:
            exec(block, {})
            found.append(float(re.findall(r"-?\d\.\d+", capsys.readouterr().out)[-1]))
    assert found[1:] == pytest.approx([found[1]] * 3, abs=0.02)


def test_embed_refuses_what_has_no_embedding(deployment: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"text 1 \(from 0\) is ' '"):
        sparse_accel.embed(deployment, ["ba", " "])
    with pytest.raises(ValueError, match="batch_size is 0"):
        sparse_accel.embed(deployment, ["ba"], batch_size=0)
    with pytest.raises(FileNotFoundError):
        sparse_accel.embed(tmp_path, ["ba"])


def test_a_model_with_a_head_is_no_embedding_model(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", sparse=False, vocabulary=VOCABULARY)
    done = export(model_path=model, task="sentence_embedding", output_dir=tmp_path / "no")
    assert done.code == 2 and "does not turn texts into embeddings" in flat(done.all)
    with pytest.raises(UsageError, match="not a deployment of an embedding model"):
        sparse_accel.embed(GOLDEN / "old_run" / "deployment", ["ba"])


@pytest.mark.slow
def test_other_poolings_and_lengths(
    embeddings: TinyEmbeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first token, not normalized, in rows of a fixed length; and texts without pairs prove it, too."""
    monkeypatch.setenv(VARIABLE, "none")
    folder = tmp_path / "cls"
    config = read_json(embeddings.teacher / "config.json")
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes((embeddings.teacher / name).read_bytes())
    (folder / "config.json").write_text(
        json.dumps(config | {"sentence_embedding": {"pooling": "cls", "normalize": False}})
    )
    done = export(model_path=folder, output_dir=tmp_path / "out", data=embeddings.train, sequence_length=24)
    assert done.code == 0, done.all
    found = checks(read_json(tmp_path / "out" / "export_report.json"))
    assert found["cosine"][0] == "pass" and found["similarity and retrieval"][0] != "fail"
    sentences = texts(5, seed=8)
    ours, theirs = sparse_accel.embed(tmp_path / "out", sentences), by_torch(folder, sentences)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert not np.allclose(np.linalg.norm(ours, axis=1), 1.0)


@pytest.mark.parametrize(
    ("turned", "failed"),
    [(0.0, set()), (0.03, set()), (0.06, {"cosine"}), (1.0, {"cosine", "agreement", "logits"})],
)
def test_embeddings_that_point_elsewhere_fail_the_proof(turned: float, failed: set[str]) -> None:
    """Each embedding is turned by an angle: cosines of 0.99955, 0.9982, 0.54. The least is at the mean."""
    draw = np.random.default_rng(0)
    ours = draw.normal(size=(60, 32))
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    other = draw.normal(size=ours.shape)
    other -= (other * ours).sum(1, keepdims=True) * ours
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    theirs = np.cos(turned) * ours + np.sin(turned) * other
    task = SentenceEmbedding.of_sentences(Head([]), texts(60, seed=1))
    texts_of_proof = Texts("here", task.data.splits["test"], task, "test")
    found = compare(("PyTorch", "onnxruntime"), ours.astype("f"), theirs.astype("f"), texts_of_proof)
    assert found.cosines is not None and found.cosines[0] == pytest.approx(np.cos(turned), abs=1e-5)
    results = {check.name for check in check_fidelity(found, texts_of_proof, quantized=True) if check.passed is False}
    assert results == failed


def test_a_broken_output_has_no_cosine() -> None:
    task = SentenceEmbedding.of_sentences(Head([]), texts(4, seed=1))
    rows = Texts("here", task.data.splits["test"], task, "test")
    ours = np.eye(4, dtype=np.float32)
    theirs = ours.copy()
    theirs[0], theirs[1] = 0.0, np.nan
    found = compare(("PyTorch", "onnxruntime"), ours, theirs, rows)
    assert found.cosines == (0.5, 0.0)
