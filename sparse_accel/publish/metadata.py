"""The front matter of a model card: what the Hub reads (https://huggingface.co/docs/hub/model-cards)."""

from __future__ import annotations

import math
from pathlib import PurePath
from typing import Any

from sparse_accel.publish.facts import Facts, hub_card, part

# name of a figure -> the Hub's name of the metric, and its name for people.
METRICS = {
    "accuracy": ("accuracy", "Accuracy"),
    "f1": ("f1", "F1"),
    "f1_macro": ("f1", "F1 (macro)"),
    "f1_micro": ("f1", "F1 (micro)"),
    "precision": ("precision", "Precision"),
    "recall": ("recall", "Recall"),
    "matthews_correlation": ("matthews_correlation", "Matthews correlation"),
    "pearson": ("pearsonr", "Pearson correlation"),
    "spearmanr": ("spearmanr", "Spearman correlation"),
    "mse": ("mse", "Mean squared error"),
    "mae": ("mae", "Mean absolute error"),
}
TASKS = {"text-classification": "Text classification", "token-classification": "Token classification"}


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
    from huggingface_hub import EvalResult

    task, dataset = facts.pipeline, facts.dataset()
    if task is None:
        return []
    found = []
    for split, figures in facts.figures.items():
        name = source_of(facts, split)
        kind = dataset[0] if dataset else PurePath(name).suffix.removeprefix(".") or "folder"
        for figure, value in figures.items():
            if figure not in METRICS or not math.isfinite(value):
                continue
            metric, title = METRICS[figure]
            found.append(
                EvalResult(
                    task_type=task,
                    task_name=TASKS[task],
                    dataset_type=kind,
                    dataset_name=name,
                    dataset_config=dataset[1] if dataset else None,
                    dataset_split=split_of(facts, split),
                    metric_type=metric,
                    metric_name=title,
                    metric_value=round(value, 6),
                )
            )
    return found


def split_of(facts: Facts, split: str) -> str | None:
    """The split of the dataset that a split of ours is; None if it is a part of one."""
    if facts.arguments.get("validation_ratio") is not None:
        return None
    return "test" if facts.arguments.get("eval_on_test") else split


def source_of(facts: Facts, split: str) -> str:
    """What the rows of an evaluation are called."""
    dataset, flags = facts.dataset(), facts.arguments
    if dataset:
        return " ".join(part for part in dataset if part)
    if split in facts.rows:
        return facts.rows[split][0]
    held_out = flags.get("validation_ratio") is not None
    flag = "train_file" if held_out else "test_file" if flags.get("eval_on_test") else "validation_file"
    name = flags.get(flag) or flags.get("dataset_name")
    return PurePath(name).name if isinstance(name, str) else "validation rows"


def encoder_sparsity(facts: Facts) -> float:
    """The fraction of zeros in the encoder's Linear weights; 0 for a dense model."""
    value = part(facts.sparsity, "encoder_linear").get("sparsity")
    return float(value) if isinstance(value, int | float) and value >= 0.01 else 0.0
