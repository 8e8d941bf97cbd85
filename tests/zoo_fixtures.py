"""An empty mirror, a stand-in for SparseZoo's API, and stubs, for the tests of `zoo:` addresses.

Test modules name this one in `pytest_plugins`, after they imported it (hence PYTEST_DONT_REWRITE).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from stand_in_zoo import StandInZoo

from sparse_accel.zoo import downloads, resolve

SST2 = "zoo:nlp/sentiment_analysis/obert-base/pytorch/huggingface/sst2/pruned90_quant-none"
DENSE_SST2 = "zoo:nlp/sentiment_analysis/bert-base/pytorch/huggingface/sst2/base-none"
UPSTREAM = "zoo:nlp/masked_language_modeling/obert-base/pytorch/huggingface/wikipedia_bookcorpus/pruned90-none"
UNKNOWN = "zoo:nlp/text_classification/obert-base/pytorch/huggingface/cola/pruned80-none"
IMDB = "zoo:nlp/document_classification/obert-base/pytorch/huggingface/imdb/pruned90_quant-none"
RECIPE = b"---\ntraining_modifiers:\n  - !EpochRangeModifier {start_epoch: 0, end_epoch: 2}\n---\n# card\n"


FILES = {
    "recipe.md": ("recipe", RECIPE),
    "recipe_transfer.md": ("recipe", RECIPE),
    "config.json": ("training", b"{}"),
    "pytorch_model.bin": ("framework", bytes(range(256)) * 40),
    "model.onnx": ("onnx", b"onnx"),
    "sample-inputs.tar.gz": ("inputs", b"inputs"),
}


MISSING_ON_HUB = resolve._missing_on_hub


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty mirror, no API, and no network to be waited for."""
    monkeypatch.setenv("SPARSEZOO_MODELS_PATH", str(tmp_path / "mirror"))
    monkeypatch.delenv("SPARSEZOO_API_URL", raising=False)
    monkeypatch.setattr(downloads, "_PAUSE", 0.0)
    monkeypatch.setattr(resolve, "_missing_on_hub", lambda hub_id, cache_dir: "cannot be reached")
    resolve.recipe_path.cache_clear()
    resolve.model_source.cache_clear()
    return tmp_path / "mirror"


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInZoo]:
    with StandInZoo() as zoo:
        monkeypatch.setenv("SPARSEZOO_API_URL", zoo.url + "/")
        yield zoo


def put(folder: Path, **files: str) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder
