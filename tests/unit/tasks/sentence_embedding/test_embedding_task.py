"""The task itself: batches of rows with several texts, negatives of a batch, decisions of two runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import make_tokenizer
from torch import Tensor

from sparse_accel.data.batches import Collator, Rows, inputs_of
from sparse_accel.nn.embedding_losses import in_batch_loss
from sparse_accel.tasks import SentenceEmbedding, task_class
from sparse_accel.tasks.label_names import Head
from sparse_accel.tasks.sentence_embedding.data import EmbeddingData
from sparse_accel.tasks.sentence_embedding.encoding import encode, text_id

PAIRS = {"text_1": ["good film", "the plot", "not a scene"], "text_2": ["nice movie and", "story", "film"]}


def make_task(columns: dict[str, list[Any]] | None = None, split: str = "train") -> SentenceEmbedding:
    rows = Dataset.from_dict(columns or PAIRS)
    return SentenceEmbedding(Head([]), EmbeddingData(splits={split: rows}, sources={split: "rows"}, label_names=[]))


def batch_of(columns: dict[str, list[Any]], *items: int, length: int = 16) -> dict[str, Tensor]:
    tokenizer = make_tokenizer()
    rows = Rows(Dataset.from_dict(encode(columns, tokenizer, length, max_score=5.0)))
    return Collator(tokenizer)(rows.__getitems__([*items]))


def test_texts_of_a_row_are_padded_alike() -> None:
    batch, tokenizer = batch_of(PAIRS, 0, 2, -1), make_tokenizer()
    assert batch["input_ids"].shape == batch["token_type_ids"].shape == (3, 2, 5)
    assert {*inputs_of(batch)} == {"input_ids", "token_type_ids", "attention_mask"}
    for row, item in enumerate((0, 2, 0)):
        for place, name in enumerate(("text_1", "text_2")):
            ids = tokenizer(PAIRS[name][item])["input_ids"]
            assert batch["input_ids"][row, place].tolist() == ids + [0] * (5 - len(ids))
            assert batch["attention_mask"][row, place].sum() == len(ids)
    assert batch["row_id"].tolist() == [0, 2, -1] and batch["text_ids"][0].tolist() == [
        *map(text_id, (PAIRS["text_1"][0], PAIRS["text_2"][0]))
    ]


def test_scores_are_fractions_of_the_highest() -> None:
    batch = batch_of({**PAIRS, "score": [5.0, 2.5, 0.0]}, 0, 1, 2)
    assert batch["labels"].tolist() == [1.0, 0.5, 0.0]
    vectors = torch.nn.functional.normalize(torch.randn(3, 2, 4), dim=-1)
    found = make_task().loss({"sentence_embedding": vectors}, batch)
    torch.testing.assert_close(found, ((vectors[:, 0] * vectors[:, 1]).sum(-1) - batch["labels"]) ** 2)


@pytest.mark.parametrize("negatives", [False, True])
def test_negatives_of_a_batch(negatives: bool) -> None:
    """Each row's negatives are the other positives and all hard negatives; a filler's texts are none."""
    columns = {**PAIRS, **({"text_3": ["bad plot", "very", "actor"]} if negatives else {})}
    batch, width = batch_of(columns, 0, 1, 2, -1), len(columns)
    vectors = torch.randn(4, width, 8)
    found = make_task(columns).loss({"sentence_embedding": vectors}, batch)
    candidates = vectors[:3, 1:].flatten(0, 1)
    own = torch.arange(3) * (width - 1)
    nothing = torch.zeros(3, len(candidates), dtype=torch.bool)
    torch.testing.assert_close(found[:3], in_batch_loss(vectors[:3, 0], candidates, own, nothing, 20.0))
    assert make_task(columns).weights(batch).tolist() == [1, 1, 1, 0]


def test_the_same_positive_is_no_negative() -> None:
    columns = {"text_1": ["good film", "the plot"], "text_2": ["movie", "movie"]}
    found = make_task(columns).loss({"sentence_embedding": torch.randn(2, 2, 8)}, batch_of(columns, 0, 1))
    assert found.tolist() == [0.0, 0.0]


def test_texts_have_no_loss_of_their_own() -> None:
    columns = {"text_1": PAIRS["text_1"]}
    vectors = torch.randn(3, 8, requires_grad=True)
    found = make_task(columns).loss({"sentence_embedding": vectors}, batch_of(columns, 0, 1, 2))
    assert found.tolist() == [0, 0, 0]
    found.sum().backward()  # a step before the teacher's distance begins
    assert vectors.grad is not None and not vectors.grad.any()


def test_rows_of_the_teachers_table() -> None:
    task, batch = make_task(), batch_of(PAIRS, 1, -1)
    assert task.labelled(batch).tolist() == [[True, True], [False, False]]
    rows = Dataset.from_dict(encode(PAIRS, make_tokenizer(), 16, 1.0))
    assert task.labelled_counts(rows).tolist() == [2, 2, 2]
    texts = {"text_1": PAIRS["text_1"]}
    assert task.labelled(batch_of(texts, 1, -1)).tolist() == [True, False]
    assert task.labelled_counts(Dataset.from_dict(encode(texts, make_tokenizer(), 16, 1.0))).tolist() == [1, 1, 1]


def test_decisions_of_two_runs() -> None:
    """The gap is the difference of cosines in the run where it is smaller."""
    task = make_task({"text_1": ["a", "b", "c"]}, "test")
    first = np.asarray([[1.0, 0.0], [1.0, 0.1], [1.0, 0.3]])
    second = np.asarray([[2.0, 0.0], [1.0, 0.3], [1.0, 0.1]])  # its length does not matter
    rows = Dataset.from_dict({})
    assert [task.decisions(each, rows, "test").tolist() for each in (first, second)] == [  # type: ignore[union-attr]
        [[1], [0], [1]],
        [[2], [2], [0]],
    ]
    gaps = task.decision_gaps(first, second, rows, "test")
    assert gaps is not None
    near, far = 1 / np.sqrt(1.01), 1 / np.sqrt(1.09)
    assert gaps[0] == pytest.approx(near - far) and (gaps > 0).all()
    assert task.decision_gaps(first, 3 * first, rows, "test").tolist() == [0, 0, 0]  # type: ignore[union-attr]
    assert task.decisions(first[:1], rows, "test") is None


def test_many_texts_have_few_decisions() -> None:
    task = make_task({"text_1": ["a"]}, "test")
    found = task.decisions(np.random.default_rng(0).normal(size=(5000, 4)), Dataset.from_dict({}), "test")
    assert found is not None and found.shape == (2000, 1)


@pytest.mark.parametrize(
    ("names", "entry", "is_ours"),
    [
        (["BertModel"], {"pooling": "mean", "normalize": True}, True),
        (["BertModel"], None, False),
        (["BertForSequenceClassification"], {"pooling": "mean", "normalize": True}, False),
    ],
)
def test_whose_model_a_configuration_is(names: list[str], entry: Any, is_ours: bool) -> None:
    from transformers import BertConfig

    config = BertConfig(architectures=names, **({"sentence_embedding": entry} if entry else {}))
    assert (task_class(config) is SentenceEmbedding) == is_ours
