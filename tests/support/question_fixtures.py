"""Tiny questions with contexts, and ways to run scripts/question_answering.py on them, here or as processes.

A context names one person and one city; the question asks who or where. Names are of one to five pieces. Some contexts
are longer than a row, so that they become several windows. Test modules name this one in `pytest_plugins`, after they
imported it (hence PYTEST_DONT_REWRITE).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import script_fixtures
import token_fixtures
import torch
from places import ROOT
from script_fixtures import make_model
from token_fixtures import CITIES, FAMILY_NAMES, FIRST_NAMES, NO_DROPOUT, with_script
from transformers import BertConfig, BertForQuestionAnswering

SCRIPT = ROOT / "scripts" / "question_answering.py"
RECIPE = ROOT / "sparse_accel" / "zoo" / "recipes" / "squad_pruned90_quant.yaml"
# That recipe, shortened: 4 epochs, QAT from 2, ranges frozen from 3.
SHORT: dict[str, Any] = {
    "num_epochs": 4,
    "qat_start_epoch": 2.0,
    "observer_epoch": 3.0,
    "init_lr": 1e-2,
    "distill_hardness": 0.5,
}
VOCABULARY = (*token_fixtures.VOCABULARY, "who", "where", "?")
PLAIN = ("the", "a", "was", "from", "saw", "film", "went", "and", ",", "old", "played")
# Rows of at most 24 tokens, of which two windows share 6.
LENGTH, STRIDE = 24, 6


@dataclass(frozen=True)
class Question:
    """A question, and its answers with their first characters."""

    id: str
    question: str
    context: str
    answers: list[tuple[str, int]]

    def flat(self) -> dict[str, Any]:
        """The row as in the Hub's `squad`."""
        texts, starts = [text for text, _ in self.answers], [start for _, start in self.answers]
        answers = {"text": texts, "answer_start": starts}
        return {
            "id": self.id,
            "title": "Names",
            "context": self.context,
            "question": self.question,
            "answers": answers,
        }


def questions(count: int, seed: int, *, long: float = 0.2, impossible: float = 0.0) -> list[Question]:
    """Questions, in no order.

    Args:
        long: fraction of contexts that are longer than a row.
        impossible: fraction of questions whose answer is not in their context.
    """
    draw = random.Random(seed)
    result = []
    for number in range(count):
        about = 25 if draw.random() < long else 4
        person = " ".join([draw.choice(FIRST_NAMES), draw.choice(FAMILY_NAMES)][: draw.choice((1, 2))])
        city = draw.choice(CITIES)
        who = draw.random() < 0.5
        missing = draw.random() < impossible
        parts = [
            [person, "went"] if not (missing and who) else ["the"],
            ["to", city] if not (missing and not who) else [],
        ]
        words = [word for part in parts for word in [*draw.choices(PLAIN, k=draw.randint(0, about)), *part]]
        context = " ".join([*words, *draw.choices(PLAIN, k=draw.randint(0, about)), "."])
        answer = person if who else city
        answers = [] if missing else [(answer, context.index(answer))]
        if answers and who and " " in person:  # what people wrote differs
            answers.append((person.split()[0], context.index(answer)))
        result.append(Question(f"q{seed}-{number}", "who went ?" if who else "where ?", context, answers))
    return result


def nested(rows: Iterable[Question], version: str = "1.1") -> dict[str, Any]:
    """The content of a SQuAD file, with two questions of an article in one paragraph where they share a context."""
    paragraphs: dict[str, list[Any]] = {}
    for row in rows:
        answers = [{"text": text, "answer_start": start} for text, start in row.answers]
        entry: dict[str, Any] = {"id": row.id, "question": row.question, "answers": answers}
        if version == "v2.0":
            entry["is_impossible"] = not answers
        paragraphs.setdefault(row.context, []).append(entry)
    listed = [{"context": context, "qas": entries} for context, entries in paragraphs.items()]
    return {"version": version, "data": [{"title": "Names", "paragraphs": listed}]}


def write_questions(path: Path, rows: Sequence[Question], form: str = "nested") -> Path:
    """Writes questions.

    Args:
        form: of a .json file, `nested`, `nested v2.0` or `flat`; .jsonl and .parquet are flat.
    """
    flat = [row.flat() for row in rows]
    if path.suffix == ".parquet":
        from datasets import Dataset

        Dataset.from_list(flat).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in flat), encoding="utf-8")
    else:
        content = flat if form == "flat" else nested(rows, form.removeprefix("nested").strip() or "1.1")
        path.write_text(json.dumps(content), encoding="utf-8")
    return path


def without_answers(rows: Sequence[Question]) -> list[dict[str, Any]]:
    return [{name: row.flat()[name] for name in ("id", "question", "context")} for row in rows]


@dataclass(frozen=True)
class TinyQuestions:
    """A folder of tiny things that many tests read and none changes."""

    folder: Path
    model: Path  # masked language model, encoder 90% zero, no dropout
    teacher: Path  # dense, with a head for answers, trained a little
    train: Path  # 203 questions, nested: the last batch is an odd one
    validation: Path  # 60 questions, nested
    test: Path  # 17 questions without answers

    def flags(self, **others: Any) -> dict[str, Any]:
        """Flags of an ordinary training run with the recipe for SQuAD and a teacher; `others` replace them."""
        return {
            "model_name_or_path": self.model,
            "recipe": RECIPE,
            "recipe_args": SHORT,
            "distill_teacher": self.teacher,
            "train_file": self.train,
            "validation_file": self.validation,
            "max_seq_length": LENGTH,
            "doc_stride": STRIDE,
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
        """Flags of one epoch without a recipe, for what needs no learning."""
        plain = {"recipe": None, "recipe_args": None, "distill_teacher": None, "num_train_epochs": 1}
        return self.flags(**{**plain, "learning_rate": 5e-3, "eval_strategy": "no", "save_strategy": "no", **others})

    def of(self, model: Path, **others: Any) -> dict[str, Any]:
        """Flags that only measure a model."""
        return {
            "model_name_or_path": model,
            "max_seq_length": LENGTH,
            "doc_stride": STRIDE,
            "per_device_eval_batch_size": 32,
            **others,
        }


def make_answerer(folder: Path, **config: Any) -> Path:
    """Writes a dense model with a head for answers, which was never trained."""
    make_model(folder, sparse=False, vocabulary=VOCABULARY, **config)
    torch.manual_seed(0)
    model: Any = BertForQuestionAnswering(BertConfig.from_pretrained(folder))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_questions(tmp_path_factory: pytest.TempPathFactory) -> TinyQuestions:
    folder = tmp_path_factory.mktemp("questions")
    test = folder / "test.json"
    test.write_text(json.dumps(without_answers(questions(17, seed=3))))
    made = TinyQuestions(
        folder,
        make_model(folder / "pruned90", sparse=True, vocabulary=VOCABULARY, **NO_DROPOUT),
        folder / "teacher",
        write_questions(folder / "train.json", questions(203, seed=1)),
        write_questions(folder / "validation.json", questions(60, seed=2)),
        test,
    )
    dense = make_model(folder / "dense", sparse=False, vocabulary=VOCABULARY, **NO_DROPOUT)
    flags = made.short(model_name_or_path=dense, num_train_epochs=5, learning_rate=1e-2)
    done = run(**flags, output_dir=made.teacher)
    assert done.code == 0, done.all
    return made


@pytest.fixture(scope="session")
def answerer(tiny_questions: TinyQuestions) -> Path:
    """The output folder of an ordinary run: pruned, distilled, quantized, with predictions."""
    output = tiny_questions.folder / "answerer"
    done = run(**tiny_questions.flags(output_dir=output, test_file=tiny_questions.test, do_predict=True))
    assert done.code == 0, done.all
    (tiny_questions.folder / "answerer.txt").write_text(done.all)
    return output


run = with_script(SCRIPT, script_fixtures.run)
start = with_script(SCRIPT, script_fixtures.start)
