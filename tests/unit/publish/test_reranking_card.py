"""Model cards of rerankers. That their code runs is tested where there is a model, in tests/export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from stand_in_hub import card_problems

from sparse_accel.publish.card import card_text

CONFIG = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "num_hidden_layers": 2,
    "id2label": {"0": "score"},
    "problem_type": "multi_label_classification",
    "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"},
}


def make(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    contents = {
        "config": {**CONFIG, **config},
        "run": {"identity": {"max_seq_length": 96}},
        "eval_results": {"eval_ndcg_at_10": 0.91, "eval_mrr_at_10": 0.88, "eval_loss": 0.4},
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_a_reranker(tmp_path: Path) -> None:
    text = card_text(make(tmp_path / "run"))
    assert card_problems(text) == []
    found = ModelCard(text).data.to_dict()
    assert found["pipeline_tag"] == "text-ranking"
    assert {"sentence-transformers", "cross-encoder", "reranker"} <= set(found["tags"])
    assert "for text ranking; the sigmoid of its output is the score of a document for a query." in text
    assert 'CrossEncoder(".", max_length=96)' in text and "pipeline(" not in text
    assert "| nDCG@10 | 0.9100 |" in text and "| MRR@10 | 0.8800 |" in text


def test_one_label_that_is_no_score(tmp_path: Path) -> None:
    """Without the entry of sentence-transformers it is a classifier with one label, or a regression."""
    changes: list[dict[str, Any]] = [{"sentence_transformers": None}, {"problem_type": "regression"}]
    for number, change in enumerate(changes):
        text = card_text(make(tmp_path / str(number), **change))
        assert "text-classification" in text and "CrossEncoder" not in text
