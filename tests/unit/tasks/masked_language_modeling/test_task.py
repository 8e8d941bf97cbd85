"""The task itself: weights that the losses are means by, fillers, units, and rows that are not made here."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tiny import SIZES, make_tokenizer
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from sparse_accel.nn.losses import IGNORED
from sparse_accel.tasks import MaskedLanguageModeling, task_of
from sparse_accel.tasks.label_names import Head
from sparse_accel.tasks.masked_language_modeling.encoding import WORDS
from sparse_accel.tasks.masked_language_modeling.masking import NO_WORD

CLASSES = 30
# Word numbers of the tokens of each row, from 1 to 12 words of one or two tokens, between special tokens.
ROWS = st.lists(
    st.lists(st.integers(1, 2), min_size=1, max_size=12).map(
        lambda sizes: [NO_WORD, *(word for word, size in enumerate(sizes) for _ in range(size)), NO_WORD]
    ),
    min_size=1,
    max_size=6,
)
SETTINGS = {"rows": ROWS, "whole": st.booleans(), "epoch": st.integers(0, 5), "seed": st.integers(0, 99)}


def make_task(whole: bool = False, seed: int = 3, probability: float = 0.15) -> MaskedLanguageModeling:
    task = MaskedLanguageModeling(Head([]))
    task.seed, task.whole_words, task.probability = seed, whole, probability
    task._mask_id, task._random_ids = 4, torch.arange(5, CLASSES)
    return task


def batch_of(rows: list[list[int]], fillers: int = 0) -> dict[str, Tensor]:
    """Rows 0, 1, ... padded to the longest, and copies of the first one as fillers."""
    words = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in [*rows, *[rows[0]] * fillers]], batch_first=True, padding_value=NO_WORD
    )
    ids = torch.where(words == NO_WORD, 3, 5 + torch.arange(words.numel()).view(words.shape) % (CLASSES - 5))
    numbers = torch.tensor([*range(len(rows)), *[-1] * fillers])
    return {"input_ids": ids, WORDS: words, "row_id": numbers}


def outputs_for(batch: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"logits": torch.randn(*batch["input_ids"].shape, CLASSES, generator=generator) * 3}


@given(**SETTINGS)
def test_a_batch_is_weighted_as_its_rows_are(rows: list[list[int]], whole: bool, epoch: int, seed: int) -> None:
    """The sum over the batches of a step is known from the rows alone, before any token is masked."""
    task, dataset = make_task(whole, seed), Dataset.from_dict({WORDS: rows})
    batch = task.prepare(batch_of(rows, fillers=2), epoch)
    found = task.weights(batch)
    assert found.tolist() == [*task.row_weights(dataset).tolist(), 0.0, 0.0]
    assert (batch["labels"][-2:] == IGNORED).all() and not task.units(batch)[-2:].any()
    if not whole:
        assert torch.equal(task.units(batch).sum(1)[:-2].float(), found[:-2])
    if epoch == 0:  # evaluations
        assert task.units(batch).sum(1)[:-2].tolist() == task.unit_counts(dataset).tolist()
        assert task.support(dataset, "validation") == int(task.units(batch).sum())


@given(**SETTINGS)
def test_the_loss_is_the_mean_of_what_is_kept(rows: list[list[int]], whole: bool, epoch: int, seed: int) -> None:
    """Perplexity and loss of an evaluation are of the same numbers."""
    task = make_task(whole, seed)
    batch = task.prepare(batch_of(rows), epoch)
    outputs = outputs_for(batch, seed)
    kept = task.kept(outputs, batch)
    assert kept.dtype == torch.float32 and not kept[~task.units(batch)].any()
    table = kept[task.units(batch)].numpy()
    expected = torch.nn.functional.cross_entropy(outputs["logits"].flatten(0, 1), batch["labels"].flatten())
    assert float(table[:, 0].mean()) == pytest.approx(float(expected), rel=1e-5)
    counts = task.units(batch).sum(1)
    mean = (task.loss(outputs, batch) * counts).sum() / counts.sum()
    assert float(mean) == pytest.approx(float(expected), rel=1e-5)
    figures = task.figures(table, Dataset.from_dict({WORDS: rows}), "validation")
    assert figures["perplexity"] == pytest.approx(math.exp(float(expected)), rel=1e-4)
    decided, true = outputs["logits"].argmax(-1)[task.units(batch)], batch["labels"][task.units(batch)]
    assert figures["accuracy"] == pytest.approx(float((decided == true).float().mean()))
    decisions = task.decisions(table, Dataset.from_dict({WORDS: rows}), "validation")
    assert decisions is not None and decisions[:, 0].tolist() == decided.tolist()


def test_numbers_of_tokens_are_kept_exactly() -> None:
    """As float32, for the largest vocabularies that there are."""
    assert float(np.float32(2**24 - 1)) == 2**24 - 1
    task = make_task()
    batch = {"labels": torch.tensor([[IGNORED, 299_999]])}
    logits = torch.zeros(1, 2, 300_000)
    logits[0, 1, 299_998] = 1.0
    assert task.kept({"logits": logits}, batch)[0, 1, 1:].tolist() == [299_998.0, 299_999.0]


def test_agreement_and_distance_are_over_masked_tokens() -> None:
    task = make_task(probability=0.3)
    batch = task.prepare(batch_of([[NO_WORD, *range(10), NO_WORD], [NO_WORD, *range(6), NO_WORD]]), 0)
    student, teacher = (outputs_for(batch, seed)["logits"] for seed in (1, 2))
    masked = task.units(batch)
    teacher[~masked] = student[~masked] + 1e3 * torch.randn(CLASSES)  # another decision, another distribution
    teacher[0][masked[0]] = student[0][masked[0]] + 2.0  # the same distribution
    agreed = task.agreement(student, teacher, batch)
    assert agreed is not None and agreed[0] == 1.0 and agreed[1] < 1.0
    found = task.distance(student, teacher, batch, 2.0)
    assert float(found[0]) == pytest.approx(0.0, abs=1e-5) and found[1] > 0.1
    counts = masked.sum(1)
    assert float(task.mean(found, batch)) == pytest.approx(float((found * counts).sum() / counts.sum()))


def test_rows_that_are_not_made_here() -> None:
    """A loop of one's own has no word numbers: all tokens are compared, padding aside."""
    task = task_of(BertForMaskedLM(BertConfig(**SIZES)))
    student, teacher = torch.randn(2, 5, CLASSES), torch.randn(2, 5, CLASSES)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    teacher[0, 3:] = 1e3 * torch.randn(2, CLASSES)
    batch = {"attention_mask": mask, "labels": torch.full((2, 5), IGNORED)}
    found = task.distance(student, teacher, batch, 1.0)
    each = torch.nn.functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    torch.testing.assert_close(found, (each * mask).sum(1) / mask.sum(1), rtol=1e-4, atol=1e-5)
    assert float(task.mean(found, batch)) == pytest.approx(float(found.mean()))


@pytest.mark.parametrize(("whole", "words"), [(False, ""), (True, ", whole words")])
def test_what_the_table_says(whole: bool, words: str) -> None:
    task = make_task(whole)
    assert task.describe_labels() == f"15% of the tokens masked{words}"
    assert task.describe_parts({"train": (203, 103)}) == "; packed: 203 train in 103 rows"
    task.line_by_line = True
    assert task.describe_parts({"train": (203, 203)}) == ""


def test_fractions_that_are_no_whole_percents() -> None:
    assert make_task(probability=0.125).describe_labels() == "12.5% of the tokens masked"
    assert make_task(probability=0.004).describe_labels() == "0.4% of the tokens masked"


def test_sentences(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Those of an export: rows by the tokenizer of the model, masked by its mask token."""
    tokenizer = make_tokenizer()
    task = MaskedLanguageModeling.of_sentences(Head([]), ["a good film", "bad"])
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    rows = task.tokenize(tokenizer, 16)["test"]
    batch = {name: torch.tensor(rows[name]) for name in ("input_ids", WORDS)} | {"row_id": torch.arange(len(rows))}
    labels = task.prepare(batch, 0)["labels"]
    assert (labels != IGNORED).sum() == task.unit_counts(rows).sum() > 0
