"""The front matter of a model card: what the Hub reads (https://huggingface.co/docs/hub/model-cards)."""

from __future__ import annotations

import math
from pathlib import PurePath
from typing import Any

from sparse_accel.publish.facts import EMBEDS, RANKS, Facts, hub_card, part

# name of a figure -> the Hub's name of the metric, and its name for people.
METRICS = {
    "accuracy": ("accuracy", "Accuracy"),
    "perplexity": ("perplexity", "Perplexity of masked tokens (lower is better)"),
    "exact_match": ("exact_match", "Exact match"),
    "f1": ("f1", "F1"),
    "f1_macro": ("f1", "F1 (macro)"),
    "f1_micro": ("f1", "F1 (micro)"),
    "precision": ("precision", "Precision"),
    "recall": ("recall", "Recall"),
    "matthews_correlation": ("matthews_correlation", "Matthews correlation"),
    "pearson": ("pearsonr", "Pearson correlation"),
    "spearmanr": ("spearmanr", "Spearman correlation"),
    "spearman": ("spearman_cosine", "Spearman correlation of cosines"),
    "recall_at_10": ("recall_at_10", "Recall@10"),
    "ndcg_at_10": ("ndcg_at_10", "nDCG@10"),
    "mrr_at_10": ("mrr_at_10", "MRR@10"),
    "mse": ("mse", "Mean squared error"),
    "mae": ("mae", "Mean absolute error"),
    "has_answer_exact_match": ("exact_match", "Exact match (questions with an answer)"),
    "has_answer_f1": ("f1", "F1 (questions with an answer)"),
    "no_answer_exact_match": ("exact_match", "Exact match (questions without an answer)"),
    "no_answer_f1": ("f1", "F1 (questions without an answer)"),
}
TASKS = {
    "text-classification": "Text classification",
    "token-classification": "Token classification",
    "question-answering": "Question answering",
    "fill-mask": "Masked language modelling",
    RANKS: "Text ranking",
    EMBEDS: "Sentence similarity",
}


def metadata(facts: Facts, name: str, tags: list[str], *, fetch: bool, measured: bool = True) -> Any:
    """Returns the front matter as huggingface_hub's ModelCardData.

    Args:
        facts: of the model.
        name: of the model, for its results.
        tags: in addition to those that follow from the model.
        fetch: see `card_text`.
        measured: whether the figures are of exactly these files.
    """
    from huggingface_hub import ModelCardData

    base, dataset = facts.base_model(), facts.dataset()
    inherited: dict[str, Any] = {}
    for one in [base] if isinstance(base, str) else base or []:
        inherited = inherited or hub_card(one, fetch=fetch)
    results = _results(facts) if measured else []
    found = ["sparse"] if encoder_sparsity(facts) else []
    found += ["int8"] if facts.is_quantized else []
    found += ["distillation"] if facts.has_teacher() else []
    found += ["sentence-transformers", "cross-encoder", "reranker"] if facts.pipeline == RANKS else []
    found += ["sentence-transformers", "feature-extraction"] if facts.pipeline == EMBEDS else []
    return ModelCardData(
        language=inherited.get("language"),
        license=inherited.get("license"),
        license_name=inherited.get("license_name"),
        license_link=inherited.get("license_link"),
        library_name="transformers" if measured else "onnx",
        pipeline_tag=facts.pipeline,
        base_model=base,
        datasets=[dataset[0]] if dataset else None,
        metrics=list(dict.fromkeys(each.metric_type for each in results)) or None,
        tags=[*found, *tags, "sparse_accel"],
        model_name=name,
        eval_results=results or None,
    )


def _results(facts: Facts) -> list[Any]:
    """The figures on rows that were recorded with them. Those of a part of a split are not figures of the split."""
    from huggingface_hub import EvalResult

    task = facts.pipeline
    if task is None:
        return []
    found = []
    for split, rows in facts.rows.items():
        suffix = PurePath(rows.name).suffix.removeprefix(".")
        for figure, value in facts.figures[split].items():
            if figure not in METRICS or not math.isfinite(value):
                continue
            metric, title = METRICS[figure]
            found.append(
                EvalResult(
                    task_type=task,
                    task_name=TASKS[task],
                    dataset_type=rows.dataset or (suffix if suffix.isalnum() else "folder"),
                    dataset_name=rows.name if rows.are_complete else f"{rows.name} ({rows.described()})",
                    dataset_config=rows.config,
                    dataset_split=rows.split if rows.are_complete else None,
                    metric_type=metric,
                    metric_name=title,
                    metric_value=round(value, 6),
                )
            )
    return found


def encoder_sparsity(facts: Facts) -> float:
    """The fraction of zeros in the encoder's Linear weights; 0 for a dense model."""
    value = part(facts.sparsity, "encoder_linear").get("sparsity")
    return float(value) if isinstance(value, int | float) and value >= 0.01 else 0.0
