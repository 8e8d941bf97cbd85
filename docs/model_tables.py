"""The generated tables of docs/models.md: what each architecture can do, as a classifier and for sentence embeddings.

Tests train, export and run each of them, and compare: tests/export/test_architectures.py, test_long_texts.py and
test_embedding_architectures.py, and tests/training/test_architecture_recipes.py and test_architecture_trainer.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass

PROVEN = "proven"
FLOAT_POSITIONS = "proven; relative positions stay in float"
WITH_ATTENTION = "layers, attention"
WITHOUT_ATTENTION = "layers"


@dataclass(frozen=True)
class Model:
    """One architecture as a classifier: a row of the first table.

    Attributes:
        name: as people write it.
        train: what a recipe does: `yes`, or why it does not.
        export: what the proof of the export covers.
        runtime: what runs in kernels of this package; the rest of the graph runs in onnxruntime.
        attention: the implementation of transformers that training uses, at any length.
        trainer: the same of the recipe in a transformers Trainer.
        checkpointing: whether `--gradient_checkpointing` is there: `yes` or `refused`.
    """

    name: str
    train: str
    export: str
    runtime: str
    attention: str
    trainer: str = "yes"
    checkpointing: str = "yes"


# By the name in config.json: `model_type`.
MODELS = {
    "bert": Model("BERT, MiniLM", "yes", PROVEN, WITH_ATTENTION, "sdpa"),
    "roberta": Model("RoBERTa", "yes", PROVEN, WITH_ATTENTION, "sdpa"),
    "xlm-roberta": Model("XLM-R", "yes", PROVEN, WITH_ATTENTION, "sdpa"),
    "distilbert": Model("DistilBERT", "yes", PROVEN, WITH_ATTENTION, "sdpa"),
    "electra": Model("ELECTRA", "yes", PROVEN, WITH_ATTENTION, "sdpa"),
    "albert": Model("ALBERT", "yes", PROVEN, WITH_ATTENTION, "sdpa", checkpointing="refused"),
    "deberta-v2": Model("DeBERTa-v2, v3", "yes", FLOAT_POSITIONS, WITHOUT_ATTENTION, "eager"),
    "modernbert": Model("ModernBERT", "yes", PROVEN, WITHOUT_ATTENTION, "sdpa"),
    "mpnet": Model("MPNet", "yes", PROVEN, WITHOUT_ATTENTION, "eager", checkpointing="refused"),
}


@dataclass(frozen=True)
class Embedding:
    """One architecture as a model of sentence embeddings: a row of the second table; attributes as of Model."""

    train: str
    export: str
    runtime: str


# The graph of an encoder is that of a classifier without its head.
EMBEDDINGS = {kind: Embedding("yes", model.export, model.runtime) for kind, model in MODELS.items()}

# The tokens of a row that each architecture was trained, exported and run with.
LONG = (1024, 4096)
_LONG_TEXTS = " and ".join(f"{tokens:,}" for tokens in LONG)

_COLUMNS: dict[str, Callable[[str, Model], str]] = {
    "model": lambda kind, model: model.name,
    "`model_type`": lambda kind, model: f"`{kind}`",
    "train": lambda kind, model: model.train,
    "in a Trainer": lambda kind, model: model.trainer,
    "export": lambda kind, model: model.export,
    "runtime: kernels for": lambda kind, model: model.runtime,
    "long texts": lambda kind, model: f"{_LONG_TEXTS}, {model.attention}",
    "`--gradient_checkpointing`": lambda kind, model: model.checkpointing,
}


def parts() -> dict[str, str]:
    """Returns the generated parts of the page by name."""
    rows = [[cell(kind, model) for cell in _COLUMNS.values()] for kind, model in MODELS.items()]
    embeddings = [[MODELS[kind].name, f"`{kind}`", *astuple(each)] for kind, each in EMBEDDINGS.items()]
    return {
        "models": _table(list(_COLUMNS), rows),
        "embeddings": _table(
            ["model", "`model_type`", "train: follow a teacher", "export", "runtime: kernels for"], embeddings
        ),
    }


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])
