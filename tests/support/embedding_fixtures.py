"""Tiny texts whose words tell how near they are, models for their embeddings, and ways to run
scripts/sentence_embedding.py: here, or as processes.

A text is about one of a few topics, and its words are mostly those of the topic. Test modules name this one in
`pytest_plugins`, after they imported it (hence PYTEST_DONT_REWRITE).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import script_fixtures
import torch
from layouts import run_under as run_script_under
from places import ROOT
from script_fixtures import make_model, write_csv
from token_fixtures import NO_DROPOUT, with_script
from transformers import BertConfig, BertModel

SCRIPT = ROOT / "scripts" / "sentence_embedding.py"
RECIPE = ROOT / "sparse_accel" / "zoo" / "recipes" / "embedding_pruned80_quant.yaml"
# The shipped recipe, shortened: 4 epochs, 80% sparse after one and a half, QAT from 2, ranges frozen from 3.
SHORT: dict[str, Any] = {
    "num_epochs": 4,
    "pruning_end_epoch": 1.5,
    "qat_start_epoch": 2.0,
    "observer_epoch": 3.0,
    "init_lr": 5e-3,
}
TOPICS = tuple(tuple(f"{sound}{vowel}" for vowel in "aeiou") for sound in ("b", "d", "k", "l", "m", "r"))
VOCABULARY = (*(word for topic in TOPICS for word in topic), "and", "the")


def texts(count: int, seed: int) -> list[str]:
    """Distinct texts of 3 to 9 words, each about one topic."""
    draw = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[_text(draw, draw.choice(TOPICS))] = None
    return list(found)


def _text(draw: random.Random, topic: Sequence[str]) -> str:
    words = draw.choices(topic, k=draw.randint(2, 7)) + draw.choices(("and", "the"), k=1)
    draw.shuffle(words)
    return " ".join(words)


def pairs(count: int, seed: int, columns: Sequence[str] = ("anchor", "positive")) -> list[dict[str, Any]]:
    """Rows of two texts about one topic and, for a third column, one about another."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        topic, other = draw.sample(TOPICS, 2)
        row = [_text(draw, topic), _text(draw, topic), _text(draw, other)]
        rows.append(dict(zip(columns, row, strict=False)))
    return rows


def scored(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows with sentence1, sentence2 and score, 0 to 5: above 4 for one topic, below 1 for two."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        topic, other = draw.sample(TOPICS, 2)
        same = number % 3 == 0
        score = round(draw.uniform(4, 5) if same else draw.uniform(0, 1), 2)
        second = _text(draw, topic if same else other)
        rows.append({"sentence1": _text(draw, topic), "sentence2": second, "score": score})
    return rows


def make_encoder(folder: Path, seed: int = 0, vocabulary: Sequence[str] = VOCABULARY, **config: Any) -> Path:
    """Writes a dense BERT of two narrow layers without a head, with its pooler, as encoders are published."""
    make_model(folder, sparse=False, vocabulary=vocabulary, **config)
    torch.manual_seed(seed)
    (folder / "model.safetensors").unlink()
    BertModel(BertConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class TinyEmbeddings:
    """A folder of tiny things that many tests read and none changes."""

    folder: Path
    model: Path  # encoder, dense, no dropout
    teacher: Path  # output folder of a run on pairs
    train: Path  # 203 texts, one a line: the last batch is an odd one
    pairs: Path  # 203 pairs
    triples: Path
    validation: Path  # 60 scored pairs

    def flags(self, **others: Any) -> dict[str, Any]:
        """Flags of an ordinary run: texts, a teacher, the shipped recipe; `others` replace them."""
        return {
            "model_name_or_path": self.teacher,
            "recipe": RECIPE,
            "recipe_args": SHORT,
            "distill_teacher": self.teacher,
            "train_file": self.train,
            "validation_file": self.validation,
            "max_seq_length": 16,
            "per_device_train_batch_size": 32,
            "per_device_eval_batch_size": 32,
            "do_train": True,
            "do_eval": True,
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "logging_steps": 1,
            **others,
        }

    def short(self, **others: Any) -> dict[str, Any]:
        """Flags of one epoch on pairs without recipe and teacher."""
        plain: dict[str, Any] = {"recipe": None, "recipe_args": None, "distill_teacher": None, "num_train_epochs": 1}
        plain |= {"model_name_or_path": self.model, "train_file": self.pairs, "learning_rate": 2e-3}
        return self.flags(**{**plain, "eval_strategy": "no", "save_strategy": "no", **others})


@pytest.fixture(scope="session")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> TinyEmbeddings:
    folder = tmp_path_factory.mktemp("embeddings")
    train = folder / "train.txt"
    train.write_text("\n".join(texts(203, seed=1)) + "\n", encoding="utf-8")
    made = TinyEmbeddings(
        folder,
        make_encoder(folder / "dense", **NO_DROPOUT),
        folder / "teacher",
        train,
        write_csv(folder / "pairs.csv", pairs(203, seed=2)),
        write_csv(folder / "triples.csv", pairs(203, 3, ("anchor", "positive", "negative"))),
        write_csv(folder / "validation.csv", scored(60, seed=4)),
    )
    done = run(**made.short(num_train_epochs=3, output_dir=made.teacher))
    assert done.code == 0, done.all
    return made


@pytest.fixture(scope="session")
def embedder(embeddings: TinyEmbeddings) -> Path:
    """The output folder of an ordinary run: pruned, distilled, quantized."""
    output = embeddings.folder / "embedder"
    done = run(**embeddings.flags(output_dir=output))
    assert done.code == 0, done.all
    (embeddings.folder / "embedder.txt").write_text(done.all)
    return output


run = with_script(SCRIPT, script_fixtures.run)
start = with_script(SCRIPT, script_fixtures.start)
run_under = with_script(SCRIPT, run_script_under)
