"""The recipes that ship with the package, by the `zoo:` stubs that people know them by."""

from __future__ import annotations

from pathlib import Path

from sparse_accel.errors import UsageError, nearest

RECIPES = Path(__file__).parent / "recipes"
_SENTIMENT = "zoo:nlp/sentiment_analysis"
_SHIPPED = {
    f"{_SENTIMENT}/obert-base/pytorch/huggingface/sst2/pruned90_quant-none": "sst2_pruned90_quant.yaml",
    f"{_SENTIMENT}/bert-base/pytorch/huggingface/sst2/base-none": "sst2_dense.yaml",
}


def recipe_path(stub: str) -> Path:
    """Returns the shipped recipe that a `zoo:` stub names.

    Raises:
        UsageError: no shipped recipe goes by that stub.
    """
    if stub not in _SHIPPED:
        raise UsageError(
            f"--recipe {stub}: no recipe of that name ships with sparse_accel.{nearest(stub, _SHIPPED)} "
            f"Shipped are: {', '.join(_SHIPPED)}. Other recipes: save the YAML as a file and name that"
        )
    return RECIPES / _SHIPPED[stub]
