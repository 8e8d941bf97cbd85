"""Rerankers: scores and queries of files, what is wrong with them, and metrics of several queries."""

from __future__ import annotations

import csv
import io
import math
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from data_files import load, refusal, write
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score
from torch.nn.functional import binary_cross_entropy

from sparse_accel.cli.text_classification import TextClassificationArguments
from sparse_accel.data.splitting import draw_groups, hold_out_groups
from sparse_accel.errors import UsageError
from sparse_accel.tasks import TASKS, Reranker, Task, TextClassification, task_of
from sparse_accel.tasks.label_names import RERANKING, Head, head_in, set_problem_type
from sparse_accel.tasks.other_head import OtherHead
from sparse_accel.tasks.text_classification.data import TextClassificationData
from sparse_accel.tasks.text_classification.predictions import ranking_table
from sparse_accel.tasks.text_classification.reranking import (
    best_documents,
    query_numbers,
    ranking_details,
    ranking_metrics,
    ranks,
)

Rows = list[dict[str, Any]]
LOADED = {"train_file": "train", "validation_file": "dev"}


def ranked(
    scores: list[Any], queries: str = "aabb", names: tuple[str, str, str] = ("query", "document", "score")
) -> Rows:
    """Rows with these scores, of a query for each letter."""
    return [
        dict(zip(names, (f"query {queries[row]}", f"document {row}", score), strict=True))
        for row, score in enumerate(scores)
    ]


@pytest.fixture
def of(tmp_path: Path) -> Callable[..., TextClassificationData]:
    """Loads a training file, and one to evaluate if it is given."""

    def loaded(
        train: Rows, validation: Rows | None = None, suffix: str = ".csv", **flags: Any
    ) -> TextClassificationData:
        return load(**files(tmp_path, train, validation, suffix), **flags)

    return loaded


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """The same, for what is refused."""

    def refuse(train: Rows, validation: Rows | None = None, suffix: str = ".csv", **flags: Any) -> str:
        said = refusal(**files(tmp_path, train, validation, suffix), **flags)
        return said.replace(str(tmp_path) + "/", "")

    return refuse


def files(folder: Path, train: Rows, validation: Rows | None, suffix: str) -> dict[str, Any]:
    flags: dict[str, Any] = {"train_file": write(folder / f"train{suffix}", train), "do_train": True}
    if validation is not None:
        flags |= {"validation_file": write(folder / f"dev{suffix}", validation), "do_eval": True}
    return flags


# --- columns ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_the_columns_say_that_it_is_a_reranker(of: Callable[..., TextClassificationData], suffix: str) -> None:
    data = of(ranked([0.25, 1.0, 0.0, 0.5]), ranked([0.0, 1.0]), suffix)
    assert (data.problem_type, data.label_names, data.highest) == (RERANKING, ["score"], 1)
    assert (data.text_columns, data.label_column) == (("query", "document"), "score")
    assert data.splits["train"]["label"][:] == [0.25, 1.0, 0.0, 0.5]
    assert Reranker(Head(["score"], RERANKING), data).describe_columns().endswith("; to evaluate: 1 query")


def test_flags_name_other_columns(of: Callable[..., TextClassificationData]) -> None:
    rows = ranked([0, 1, 2, 2], names=("q", "passage", "grade"))
    flags = {"input_column_names": ("q,passage",), "label_column_name": "grade"}
    data = of(rows, **flags, problem_type=RERANKING)
    assert (data.problem_type, data.highest, data.text_columns) == (RERANKING, 2, ("q", "passage"))
    assert data.splits["train"]["label"][:] == [0.0, 0.5, 1.0, 1.0]
    assert of(rows, **flags).problem_type == "single_label_classification"  # as before: integers are classes


def test_usual_columns_of_pairs_with_the_flag(of: Callable[..., TextClassificationData]) -> None:
    rows = ranked([0, 1, 1, 0], names=("sentence1", "sentence2", "label"))
    assert of(rows).problem_type == "single_label_classification"
    data = of(rows, problem_type=RERANKING)
    assert (data.text_columns, data.label_column) == (("sentence1", "sentence2"), "label")


def test_a_label_column_leaves_the_choice_to_the_user(
    of: Callable[..., TextClassificationData], refused: Callable[..., str]
) -> None:
    rows = ranked([0, 1, 1, 0], names=("query", "document", "label"))
    assert "add --problem_type reranking" in refused(rows)
    assert of(rows, problem_type=RERANKING).label_column == "label"
    assert of(rows, input_column_names=("query", "document")).problem_type == "single_label_classification"


def test_other_pairs_with_scores_are_regressions_as_before(of: Callable[..., TextClassificationData]) -> None:
    rows = ranked([0.5, 4.0, 2.5, 0.0], names=("sentence1", "sentence2", "score"))
    assert of(rows, label_column_name="score").problem_type == "regression"


def test_one_text_is_refused(refused: Callable[..., str]) -> None:
    rows = [{"text": "a", "score": 1}, {"text": "b", "score": 0}]
    said = refused(rows, problem_type=RERANKING)
    assert "a reranker reads a query and a document" in said and "--input_column_names query,document" in said


def test_without_scores_rows_can_be_predicted(tmp_path: Path) -> None:
    rows = [{"query": "a", "document": "b"}, {"query": "c", "document": "d"}]
    arguments = TextClassificationArguments(
        model_name_or_path="m", output_dir="o", do_predict=True, test_file=str(write(tmp_path / "test.csv", rows))
    )
    task = TextClassification.load(arguments, Head(["score"], RERANKING, 3))
    assert isinstance(task, Reranker)
    data = task.data
    assert data.text_columns == ("query", "document") and not data.has_labels("test") and data.highest == 3
    assert task.queries("test").tolist() == [0, 1]  # queries of one document can be scored


def test_a_trained_classifier_reads_its_own_columns(tmp_path: Path) -> None:
    """Columns of rerankers next to its text say nothing to a model of another kind."""
    rows = [{"text": "a", "query": "b", "document": "c", "score": 1}]
    arguments = TextClassificationArguments(
        model_name_or_path="m", output_dir="o", do_predict=True, test_file=str(write(tmp_path / "test.csv", rows))
    )
    data = TextClassification.load(arguments, Head(["neg", "pos"], "single_label_classification")).data
    assert (data.text_columns, data.problem_type) == (("text",), "single_label_classification")


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "place", "said"),
    [
        ([0.5, -0.25, 1, 0], "train.csv, row 2 (line 3), column 'score'", ("is -0.25", "from 0 to 1")),
        ([0.5, 0, 5, 0], "row 3 (line 4)", ("the score is 5", "0.5 in row 1 is no grade", "Divide all scores")),
        ([0, 3.5, 1, 0], "row 2 (line 3)", ("the score is 3.5", "whole grades", "Divide all scores")),
        ([0, 2, 0.5, 0], "row 2 (line 3)", ("the score is 2", "0.5 in row 3 is no grade")),
        ([0, 1, "good", 0], "row 3 (line 4), column 'score'", ("'good' is not a number", "a reranker")),
        ([0, 1, "", 0], "row 3 (line 4), column 'score'", ("the label is missing",)),
        ([0, 1, "nan", 0], "row 3 (line 4), column 'score'", ("the label is missing",)),
        ([0.5, 0.5, 0.5, 0.5], "train.csv, column 'score'", ("all scores are the same",)),
    ],
)
def test_scores_out_of_their_range(refused: Callable[..., str], scores: list[Any], place: str, said: Any) -> None:
    message = refused(ranked(scores))
    assert place in message and all(each in message for each in said), message


@pytest.mark.parametrize(
    ("train", "validation", "said"),
    [
        ([0, 1, 2, 0], [0, 3], "dev.csv, row 2 (line 3), column 'score': the score is 3, but the scores of train.csv"),
        ([0, 1, 2, 0], [0, 0.5], "are whole grades from 0 to 2. Use the same scale"),
        ([0, 0.5, 1, 0], [0, 2], "are from 0 to 1. Divide the scores"),
    ],
)
def test_the_training_rows_say_what_scores_are(
    refused: Callable[..., str], train: list[Any], validation: list[Any], said: str
) -> None:
    assert said in refused(ranked(train), ranked(validation))


def test_a_model_keeps_its_scale(tmp_path: Path) -> None:
    """Grades to 2 are two thirds of the scale of a model that was trained with grades to 3."""
    file = str(write(tmp_path / "dev.csv", ranked([2, 0])))
    flags: dict[str, Any] = {"model_name_or_path": "m", "output_dir": "o", "do_eval": True, "validation_file": file}
    arguments = TextClassificationArguments(**flags)
    found = {
        highest: TextClassification.load(arguments, Head(["score"], RERANKING, highest)).data.splits["validation"]
        for highest in (3, 2, None)
    }
    assert {highest: rows["label"][:] for highest, rows in found.items()} == {
        3: [2 / 3, 0.0],
        2: [1.0, 0.0],
        None: [1.0, 0.0],
    }
    with pytest.raises(UsageError, match="but the scores of the model are from 0 to 1"):
        TextClassification.load(arguments, Head(["score"], RERANKING, 1))


# --- queries ----------------------------------------------------------------------------------------------------------


def test_a_query_with_one_document(of: Callable[..., TextClassificationData], refused: Callable[..., str]) -> None:
    said = refused(ranked([0, 1, 1, 0]), ranked([0, 1, 1, 0], "aabc"))
    assert "dev.csv, row 3 (line 4), column 'query'" in said and "'query b' has one document" in said
    assert "So have 1 other queries." in said and "add its other documents, or delete" in said
    assert len(of(ranked([0, 1, 1, 0], "abcd")).splits["train"]) == 4  # it teaches all the same
    assert "train.csv, row 1" in refused(ranked([0, 1, 1, 0], "abcc"), do_eval=True, validation_ratio=0.5)


def test_a_query_without_text(refused: Callable[..., str]) -> None:
    rows = ranked([0, 1, 1, 0])
    rows[1]["query"] = " "
    assert "train.csv, row 2 (line 3), column 'query' has no text" in refused(rows)


def test_whole_queries_are_held_out_and_drawn(of: Callable[..., TextClassificationData]) -> None:
    draw = random.Random(0)
    letters = "".join(draw.sample("aaabbbcccddddeeeffgg", 20))
    rows = ranked([number % 2 for number in range(20)], letters)
    data = of(rows, do_eval=True, validation_ratio=0.4)
    train, held = (set(data.splits[split]["query"][:]) for split in ("train", "validation"))
    assert len(held) == 3 and not train & held
    assert sum(map(len, data.splits.values())) == 20
    drawn = of(rows, rows, max_eval_samples=8).splits["validation"]["query"][:]
    assert 3 <= len(drawn) <= 8
    assert all(drawn.count(query) == [row["query"] for row in rows].count(query) for query in drawn)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=30), st.integers(1, 30), st.integers(0, 3))
def test_draws_of_groups(groups: list[int], count: int, seed: int) -> None:
    rows = draw_groups(groups, count, seed)
    if rows is None:
        assert count >= len(groups)
        return
    chosen = {groups[row] for row in rows}
    assert rows == [row for row, group in enumerate(groups) if group in chosen]
    assert 0 < len(rows) <= count or len(chosen) == 1
    kept, held = hold_out_groups(groups, 0.5, seed)
    assert sorted(kept + held) == [*range(len(groups))] and kept
    assert not {groups[row] for row in kept} & {groups[row] for row in held}


# --- metrics of several queries ---------------------------------------------------------------------------------------


def test_metrics_against_their_formulas() -> None:
    """Mean over queries, whose rows are anywhere; linear gains; grades of at least 1 are relevant."""
    draw = np.random.default_rng(0)
    queries = draw.integers(0, 20, 200)
    grades, logits = draw.integers(0, 4, 200), draw.normal(size=200)
    grades[queries == 3] = 0  # no relevant document: 0 in both
    ndcg, mrr = [], []
    for query in range(20):
        own = [row for row in range(200) if queries[row] == query]
        order = sorted(own, key=lambda row: -logits[row])
        gains, best = [grades[row] for row in order], sorted((grades[row] for row in own), reverse=True)
        found, ideal = (
            sum(gain / math.log2(rank + 1) for rank, gain in enumerate(each[:10], 1)) for each in (gains, best)
        )
        ndcg.append(found / ideal if ideal else 0)
        mrr.append(next((1 / rank for rank, gain in enumerate(gains[:10], 1) if gain >= 1), 0))
    assert ndcg[3] == mrr[3] == 0
    found = ranking_metrics(logits, grades / 3, queries, 3)
    assert found == pytest.approx({"ndcg_at_10": np.mean(ndcg), "mrr_at_10": np.mean(mrr)})
    of_scikit_learn = [ndcg_score([grades[queries == query]], [logits[queries == query]], k=10) for query in range(20)]
    assert found["ndcg_at_10"] == pytest.approx(np.mean(of_scikit_learn))


def test_what_is_relevant() -> None:
    """A score of 0.5, or the grade 1, whatever it is divided by."""
    queries, logits = np.zeros(2, dtype=int), np.array([1.0, 0.0])
    of_scores = [ranking_metrics(logits, np.array([score, 1.0]), queries, 1)["mrr_at_10"] for score in (0.49, 0.5)]
    assert of_scores == [0.5, 1.0]
    of_grades = [ranking_metrics(logits, np.array([grade / 3, 1.0]), queries, 3)["mrr_at_10"] for grade in (0, 1)]
    assert of_grades == [0.5, 1.0]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 2), st.integers(0, 2)), min_size=1, max_size=12), st.randoms()
)
def test_the_order_of_the_file_is_nothing(rows: list[tuple[int, int, int]], shuffler: random.Random) -> None:
    moved = list(rows)
    shuffler.shuffle(moved)
    first, second = (
        ranking_metrics(np.array([row[1] for row in each]), np.array([row[2] / 2 for row in each]), queries, 2)
        for each in (rows, moved)
        if (queries := query_numbers([str(row[0]) for row in each])) is not None
    )
    assert first == pytest.approx(second)


def test_outputs_that_are_no_numbers() -> None:
    with pytest.raises(UsageError, match=r"not a number \(NaN\) for 1 of 2 rows"):
        ranking_metrics(np.array([1.0, math.nan]), np.array([1.0, 0.0]), np.zeros(2, dtype=int), 1)


def test_best_documents_ranks_and_predictions() -> None:
    logits, queries = np.array([0.0, 2.0, 1.0, 0.0, 1.0]), np.array([0, 1, 0, 1, 0])
    assert best_documents(logits, queries).tolist() == [2, 1]
    assert ranks(logits, queries).tolist() == [3, 1, 1, 2, 1]
    table = list(csv.DictReader(io.StringIO(ranking_table(logits, queries))))
    assert table[1] == {"row": "1", "query": "1", "score": f"{1 / (1 + math.exp(-2)):.6f}", "rank": "1"}


def test_mistakes_are_queries_whose_best_document_is_not_relevant() -> None:
    texts = [{"query": f"q{row}", "document": f"d{row}"} for row in range(6)]
    logits, queries = np.array([3.0, 1.0, 0.0, 2.0, 5.0, 4.0]), np.array([0, 0, 1, 1, 2, 2])
    scores = np.array([0.0, 1.0, 0.0, 0.5, 0.0, 0.0])  # the last query has nothing to find
    (mistake,) = ranking_details(logits, scores, queries, 2, texts).mistakes
    assert (mistake["row"], mistake["text"], mistake["label"]) == (0, "q0 | d0", "0")
    assert mistake["confidence"] == pytest.approx(1 / (1 + math.exp(-3)))


# --- the task ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "problem_type", "expected"),
    [
        (["score"], RERANKING, Reranker),
        (["score"], "regression", TextClassification),
        (["score"], None, TextClassification),
        (["bad", "good"], "multi_label_classification", TextClassification),
    ],
)
def test_the_labels_decide_on_the_class(names: list[str], problem_type: str | None, expected: type[Task]) -> None:
    """Wherever a task is made; a subclass that is asked for stays the same."""
    head = Head(names, problem_type)
    assert TextClassification.class_for(head) is expected
    assert type(TextClassification.of_sentences(head, ["a", "b"])) is expected
    config = SimpleNamespace(
        id2label=dict(enumerate(names)), label2id={}, architectures=["BertForSequenceClassification"]
    )
    set_problem_type(config, head)
    assert type(task_of(SimpleNamespace(config=config))) is expected
    assert OtherHead.class_for(head) is OtherHead and Reranker.class_for(head) is Reranker
    assert TASKS["text_classification"] is TextClassification and expected.name == "text_classification"


def test_a_reranker_is_no_plain_text_classification() -> None:
    """Its loss would be a cross-entropy over one output: 0 for every row."""
    with pytest.raises(ValueError, match="a head for reranking belongs to Reranker, not to TextClassification"):
        TextClassification(Head(["score"], RERANKING))


def test_loss_and_distance_are_of_probabilities() -> None:
    task = Reranker(Head(["score"], RERANKING))
    logits, labels = torch.tensor([[2.0], [-1.0]]), torch.tensor([0.25, 1.0])
    probabilities = logits[:, 0].sigmoid()
    found = task.loss({"logits": logits}, {"labels": labels})
    torch.testing.assert_close(found, binary_cross_entropy(probabilities, labels, reduction="none"))
    teacher = torch.tensor([[0.5], [3.0]])
    expected = 4 * binary_cross_entropy((logits / 2).sigmoid(), (teacher / 2).sigmoid(), reduction="none")[:, 0]
    torch.testing.assert_close(task.distance(logits, teacher, {}, 2.0), expected)
    assert task.agreement(logits, teacher, {}) is None


def test_a_configuration_says_that_it_is_a_reranker() -> None:
    """As transformers and sentence-transformers read it; without their entries, it is none."""
    config = SimpleNamespace(id2label={0: "LABEL_0"}, label2id={"LABEL_0": 0}, problem_type=None)
    Reranker(Head(["score"], RERANKING, 3)).configure(config)
    assert config.problem_type == "multi_label_classification" and config.highest_grade == 3
    assert config.sentence_transformers["activation_fn"].endswith(".Sigmoid")
    assert head_in(config, "") == Head(["score"], RERANKING, 3)
    config.problem_type = "regression"
    assert head_in(config, "") == Head(["score"], "regression")
    published = SimpleNamespace(id2label={0: "LABEL_0"}, label2id={}, sentence_transformers={"activation_fn": "x"})
    assert head_in(published, "") == Head(["LABEL_0"])  # a regression, unless the rows say otherwise


@pytest.mark.parametrize(("own", "teachers"), [(RERANKING, "regression"), ("regression", RERANKING)])
def test_a_teacher_of_another_kind(own: str, teachers: str) -> None:
    head = Head(["score"], own)
    task = TextClassification.class_for(head)(head)
    for kind in (own, None):
        task.check_teacher("it", None, model_of(kind))
    with pytest.raises(UsageError, match=r"--distill_teacher it was trained for .* Use a teacher of the same kind"):
        task.check_teacher("it", None, model_of(teachers))


def model_of(problem_type: str | None) -> Any:
    config = SimpleNamespace(id2label={0: "score"}, label2id={"score": 0})
    set_problem_type(config, Head(["score"], problem_type))
    return SimpleNamespace(config=config)


def test_decisions_are_of_queries() -> None:
    """The gap of two best documents is the difference of their outputs, where it is smaller."""
    task: Any = TextClassification.of_sentences(Head(["score"], RERANKING), [f"sentence {row}" for row in range(8)])
    assert task.queries("test").tolist() == [0] * 4 + [1] * 4
    assert task.data.splits["test"]["query"][::4] == ["sentence 7", "sentence 3"]
    first = np.array([[4.0], [1], [0], [0], [0], [1], [2], [3]], dtype=np.float32)
    second = first.copy()
    second[7], second[6] = 2.5, 2.75
    assert task.decisions(first, None, "test").tolist() == [[0], [7]]
    assert task.decision_gaps(first, second, None, "test").tolist() == [0.0, 0.25]
    second[6] = second[7] = 2.5  # the first of equal ones is another document: a difference, but no gap
    _, gap = task.decision_gaps(first, second, None, "test")
    assert 0 < gap < 1e-300
    assert task.decision_unit() == "queries" and task.support(None, "test") == 2
