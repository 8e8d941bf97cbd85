"""Model cards of embedding models. That their code runs is tested where there is a model, in tests/export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from stand_in_hub import card_problems

from sparse_accel.publish.card import card_text
from sparse_accel.publish.facts import facts_of

CONFIG: dict[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "num_hidden_layers": 2,
    "sentence_embedding": {"pooling": "mean", "normalize": True},
}
FIGURES = {"eval_spearman": 0.86, "eval_pearson": 0.87, "eval_ndcg_at_10": 0.95, "eval_recall_at_10": 0.99}


def make(folder: Path, **files: Any) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    for name, content in {"config": CONFIG, "eval_results": FIGURES, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_an_embedding_model(tmp_path: Path) -> None:
    text = card_text(make(tmp_path / "run"))
    assert card_problems(text) == []
    found = ModelCard(text).data.to_dict()
    assert found["pipeline_tag"] == "sentence-similarity"
    assert {"sentence-transformers", "feature-extraction"} <= set(found["tags"])
    for name, value in (("Spearman correlation of cosines", "0.86"), ("nDCG@10", "0.95"), ("Recall@10", "0.99")):
        assert f"| {name} |" in text and value in text
    assert 'SentenceTransformer("' in text and "sparse_accel.load" not in text


def test_a_quantized_one_is_also_loaded_as_it_was_trained(tmp_path: Path) -> None:
    text = card_text(make(tmp_path / "run", quantization={"version": 1, "quantizers": {}}))
    assert "without its quantizers" in text and ".sentence_embedding" in text


def test_an_encoder_without_pooling_is_none(tmp_path: Path) -> None:
    plain = {name: value for name, value in CONFIG.items() if name != "sentence_embedding"}
    assert facts_of(make(tmp_path / "run", config=plain)).pipeline is None
    assert facts_of(make(tmp_path / "other")).labels == []
