"""Tiny queries with documents and grades, and a reranker that was trained on them.

A document is the better the more of its words are good ones. Test modules name this one in `pytest_plugins`, after they
imported it (hence PYTEST_DONT_REWRITE).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from script_fixtures import RECIPE, SHORT, make_model, run, write_csv
from tiny import BAD, GOOD, PLAIN
from token_fixtures import NO_DROPOUT

LENGTH = 32  # tokens of a row; some documents are longer
HIGHEST = 2


def pairs(queries: int, seed: int) -> list[dict[str, Any]]:
    """Rows with `query`, `document` and `score` (grades 0 to 2), 2 to 5 for each query, in no order."""
    draw = random.Random(seed)
    rows = []
    for number in range(queries):
        query = " ".join([*draw.choices(PLAIN, k=6), PLAIN[number % len(PLAIN)]])
        for _ in range(draw.randint(2, 5)):
            grade = draw.randint(0, HIGHEST)
            words = draw.choices(GOOD, k=1 + 2 * grade) + draw.choices(BAD, k=1 + 2 * (HIGHEST - grade))
            words += draw.choices(PLAIN, k=draw.choice((2, 4, 30)))
            draw.shuffle(words)
            rows.append({"query": query, "document": " ".join(words), "score": grade})
    draw.shuffle(rows)
    return rows


@dataclass(frozen=True)
class TinyPairs:
    """A folder of tiny things that many tests read and none changes."""

    folder: Path
    model: Path  # masked language model, encoder 90% zero, no dropout
    teacher: Path  # dense, a reranker, trained a little
    train: Path  # 60 queries
    validation: Path  # 25 queries
    test: Path  # 7 queries without scores

    def flags(self, **others: Any) -> dict[str, Any]:
        """Flags of an ordinary training run with the recipe for one label and a teacher; `others` replace them."""
        return {
            "model_name_or_path": self.model,
            "recipe": RECIPE,
            "recipe_args": SHORT | {"distill_hardness": 0.5},
            "distill_teacher": self.teacher,
            "train_file": self.train,
            "validation_file": self.validation,
            "max_seq_length": LENGTH,
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
        """Flags of an epoch without a recipe."""
        plain = {"recipe": None, "recipe_args": None, "distill_teacher": None, "num_train_epochs": 1}
        return self.flags(**{**plain, "learning_rate": 5e-3, "eval_strategy": "no", "save_strategy": "no", **others})

    def of(self, model: Path, **others: Any) -> dict[str, Any]:
        """Flags that only measure a model."""
        return {"model_name_or_path": model, "max_seq_length": LENGTH, "per_device_eval_batch_size": 32, **others}


@pytest.fixture(scope="session")
def tiny_pairs(tmp_path_factory: pytest.TempPathFactory) -> TinyPairs:
    folder = tmp_path_factory.mktemp("pairs")
    unlabelled = [{name: row[name] for name in ("query", "document")} for row in pairs(7, seed=3)]
    made = TinyPairs(
        folder,
        make_model(folder / "pruned90", sparse=True, **NO_DROPOUT),
        folder / "teacher",
        write_csv(folder / "train.csv", pairs(60, seed=1)),
        write_csv(folder / "validation.csv", pairs(25, seed=2)),
        write_csv(folder / "test.csv", unlabelled),
    )
    dense = make_model(folder / "dense", sparse=False, **NO_DROPOUT)
    flags = made.short(model_name_or_path=dense, num_train_epochs=6, learning_rate=1e-2)
    done = run(**flags, test_file=made.test, do_predict=True, output_dir=made.teacher)
    assert done.code == 0, done.all
    return made


@pytest.fixture(scope="session")
def reranker(tiny_pairs: TinyPairs) -> Path:
    """The output folder of an ordinary run: pruned, distilled, quantized, with predictions."""
    output = tiny_pairs.folder / "reranker"
    done = run(**tiny_pairs.flags(output_dir=output, test_file=tiny_pairs.test, do_predict=True))
    assert done.code == 0, done.all
    (tiny_pairs.folder / "reranker.txt").write_text(done.all)
    return output
