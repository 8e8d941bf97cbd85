"""Rerankers by scripts/text_classification.py: what a run writes, figures, predictions, sentence-transformers."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from places import ROOT
from reranking_fixtures import HIGHEST, LENGTH, TinyPairs, pairs
from script_fixtures import flat, read_json, run, run_process, trace, write_csv
from sklearn.metrics import ndcg_score
from transformers import AutoTokenizer

import sparse_accel

pytest_plugins = ["reranking_fixtures"]

EXAMPLE = ROOT / "examples" / "rerank_pairs.py"


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def scores_of(model: Any, folder: Path, rows: list[dict[str, str]]) -> list[float]:
    """Scores as transformers computes them, row by row, without padding."""
    tokenizer, found = AutoTokenizer.from_pretrained(folder), []
    for row in rows:
        texts = tokenizer(row["query"], row["document"], truncation=True, max_length=LENGTH, return_tensors="pt")
        with torch.no_grad():
            found.append(float(model(**texts).logits.sigmoid()))
    return found


def test_a_run_from_pairs_to_predictions(tiny_pairs: TinyPairs, reranker: Path) -> None:
    said = flat((tiny_pairs.folder / "reranker.txt").read_text())
    assert "reranking: grades, divided by 2, 0 to 1; relevant: 1 or more" in said
    assert "query: query, document: document, score: score; to evaluate: 25 queries" in said
    config = read_json(reranker / "config.json")
    assert config["problem_type"] == "multi_label_classification" and config["id2label"] == {"0": "score"}
    assert (config["highest_grade"], config["sentence_transformers"]["activation_fn"][-8:]) == (HIGHEST, ".Sigmoid")
    assert read_json(reranker / "all_results.json")["quantized_linears"] == 14
    loss = trace(reranker, "train/task_loss")
    assert loss[max(loss)] < loss[1] and max(trace(reranker, "train/distillation_loss").values()) > 0
    record = read_json(reranker / "evaluation.json")["validation"]
    assert record["headline"] == "ndcg_at_10" and set(record["figures"]) == {"loss", "ndcg_at_10", "mrr_at_10"}


def test_figures_are_those_of_the_saved_model(tiny_pairs: TinyPairs, reranker: Path) -> None:
    """With quantizers on, from texts to figures by other code."""
    rows = read_rows(tiny_pairs.validation)
    scores = scores_of(sparse_accel.load(reranker), reranker, rows)
    ndcg, reciprocal, losses = [], [], []
    for query in {row["query"] for row in rows}:
        own = [(score, int(row["score"])) for score, row in zip(scores, rows, strict=True) if row["query"] == query]
        ndcg.append(ndcg_score([[grade for _, grade in own]], [[score for score, _ in own]], k=10))
        order = [grade for _, grade in sorted(own, key=lambda pair: -pair[0])]
        reciprocal.append(next((1 / rank for rank, grade in enumerate(order[:10], 1) if grade >= 1), 0))
        for score, grade in own:
            target = grade / HIGHEST
            losses.append(-target * math.log(score) - (1 - target) * math.log(1 - score))
    found = read_json(reranker / "eval_results.json")
    assert found["eval_ndcg_at_10"] == pytest.approx(sum(ndcg) / len(ndcg), abs=1e-6)
    assert found["eval_mrr_at_10"] == pytest.approx(sum(reciprocal) / len(reciprocal), abs=1e-6)
    assert found["eval_loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_predictions_are_scores_and_ranks(tiny_pairs: TinyPairs, reranker: Path) -> None:
    rows, found = read_rows(tiny_pairs.test), read_rows(reranker / "test_predictions.csv")
    scores = scores_of(sparse_accel.load(reranker), reranker, rows)
    assert [float(each["score"]) for each in found] == pytest.approx(scores, abs=2e-6)
    queries = list(dict.fromkeys(row["query"] for row in rows))
    assert [int(each["query"]) for each in found] == [queries.index(row["query"]) for row in rows]
    for number in range(len(queries)):
        own = sorted((each for each in found if int(each["query"]) == number), key=lambda each: int(each["rank"]))
        assert int(own[0]["rank"]) == 1
        assert [float(each["score"]) for each in own] == sorted((float(each["score"]) for each in own), reverse=True)


@pytest.mark.slow
def test_it_loads_in_sentence_transformers(tiny_pairs: TinyPairs, reranker: Path) -> None:
    """A dense model gives our scores; of a quantized one, CrossEncoder has the float model."""
    cross_encoder = pytest.importorskip("sentence_transformers").CrossEncoder
    rows = read_rows(tiny_pairs.test)
    texts = [(row["query"], row["document"]) for row in rows]
    model = cross_encoder(str(tiny_pairs.teacher), max_length=LENGTH)
    scores = model.predict(texts).tolist()
    ours = read_rows(tiny_pairs.teacher / "test_predictions.csv")
    assert scores == pytest.approx([float(each["score"]) for each in ours], abs=2e-6)
    query = rows[0]["query"]
    own = [row for row, each in enumerate(rows) if each["query"] == query]
    order = [own[each["corpus_id"]] for each in model.rank(query, [rows[row]["document"] for row in own])]
    assert [int(ours[row]["rank"]) for row in order] == [*range(1, len(own) + 1)]
    floats = cross_encoder(str(reranker), max_length=LENGTH)
    assert floats.predict(texts).tolist() == pytest.approx(scores_of(floats.model, reranker, rows), abs=1e-6)


@pytest.mark.slow
def test_figures_of_sentence_transformers(tiny_pairs: TinyPairs, tmp_path: Path) -> None:
    """Of scores 0 and 1, its evaluator of rerankers computes the same figures."""
    module = pytest.importorskip("sentence_transformers.cross_encoder.evaluation")
    rows = [{**row, "score": min(int(row["score"]), 1)} for row in read_rows(tiny_pairs.validation)]
    flags = tiny_pairs.of(tiny_pairs.teacher, do_eval=True, validation_file=write_csv(tmp_path / "dev.csv", rows))
    # The scale is that of the model, whose grades are to 2: the lower grade is relevant all the same.
    done = run(**flags, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    samples = [
        {
            "query": query,
            "positive": [row["document"] for row in rows if row["query"] == query and row["score"]],
            "negative": [row["document"] for row in rows if row["query"] == query and not row["score"]],
        }
        for query in {row["query"] for row in rows}
    ]
    evaluator = module.CrossEncoderRerankingEvaluator(samples, at_k=10, write_csv=False)
    sentence_transformers = pytest.importorskip("sentence_transformers")
    figures = evaluator(sentence_transformers.CrossEncoder(str(tiny_pairs.teacher), max_length=LENGTH))
    found = read_json(tmp_path / "out" / "eval_results.json")
    assert found["eval_ndcg_at_10"] == pytest.approx(figures["ndcg@10"], abs=1e-6)
    assert found["eval_mrr_at_10"] == pytest.approx(figures["mrr@10"], abs=1e-6)


def test_the_best_checkpoint_and_whole_queries(tiny_pairs: TinyPairs, tmp_path: Path) -> None:
    """Queries are held out as a whole, and a figure of rankings selects the checkpoint."""
    flags = tiny_pairs.short(
        validation_file=None,
        validation_ratio=0.2,
        num_train_epochs=2,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="ndcg_at_10",
    )
    done = run(**flags, output_dir=tmp_path / "out")
    assert done.code == 0 and "to evaluate: 12 queries" in flat(done.out), done.all
    best = max(trace(tmp_path / "out", "eval_ndcg_at_10").values())
    assert read_json(tmp_path / "out" / "eval_results.json")["eval_ndcg_at_10"] == pytest.approx(best, abs=1e-6)


def test_evaluation_alone_with_other_columns(tiny_pairs: TinyPairs, reranker: Path, tmp_path: Path) -> None:
    """A trained reranker needs no flag for the kind of labels; the order of the rows is nothing."""
    rows = [
        {"q": row["query"], "passage": row["document"], "grade": row["score"]}
        for row in reversed(read_rows(tiny_pairs.validation))
    ]
    columns: dict[str, Any] = {"input_column_names": "q,passage", "label_column_name": "grade"}
    file = write_csv(tmp_path / "dev.csv", rows)
    done = run(**tiny_pairs.of(reranker, do_eval=True, validation_file=file), **columns, output_dir=tmp_path / "out")
    assert done.code == 0 and "to evaluate: 25 queries" in flat(done.out), done.all
    found, expected = (read_json(folder / "eval_results.json") for folder in (tmp_path / "out", reranker))
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_trained_further_it_stays_a_reranker(tiny_pairs: TinyPairs, reranker: Path, tmp_path: Path) -> None:
    done = run(
        **tiny_pairs.short(model_name_or_path=tiny_pairs.teacher, max_train_samples=64), output_dir=tmp_path / "a"
    )
    assert done.code == 0 and "newly initialized" not in done.out, done.all
    assert read_json(tmp_path / "a" / "config.json")["highest_grade"] == HIGHEST


def test_a_query_is_part_of_what_was_measured(tiny_pairs: TinyPairs, tmp_path: Path) -> None:
    """Queries that differ only in capitals have the same tokens, but they are other queries."""
    rows: list[dict[str, Any]] = pairs(6, seed=5)
    flags = tiny_pairs.short(max_train_samples=32, output_dir=tmp_path / "out")
    figures = []
    for change in (str, str.upper):
        changed = [{**row, "query": change(row["query"]) if row["score"] else row["query"]} for row in rows]
        changed += [{**row, "document": f"{row['document']} film"} for row in changed]
        done = run(**{**flags, "validation_file": write_csv(tmp_path / "dev.csv", changed)})
        assert done.code == 0, done.all
        figures.append(read_json(tmp_path / "out" / "eval_results.json"))
    assert figures[0]["eval_loss"] == pytest.approx(figures[1]["eval_loss"], abs=1e-7)
    assert figures[0]["eval_mrr_at_10"] != figures[1]["eval_mrr_at_10"]


# --- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("validation_file", {2: {"query": "alone"}}, ("row 3 (line 4), column 'query'", "has one document")),
        ("train_file", {4: {"score": -1}}, ("row 5 (line 6), column 'score': the score is -1", "from 0 to 1")),
        ("train_file", {4: {"score": 0.5}}, ("row 5 is no grade", "Divide all scores")),
        ("train_file", {4: {"score": "best"}}, ("row 5 (line 6), column 'score'", "'best' is not a number")),
        ("validation_file", {3: {"score": 7}}, ("row 4 (line 5)", "whole grades from 0 to 2", "correct this row")),
        ("train_file", {1: {"query": ""}}, ("row 2 (line 3), column 'query' has no text",)),
    ],
)
def test_bad_rows(
    tiny_pairs: TinyPairs, tmp_path: Path, file: str, change: dict[int, Any], said: tuple[str, ...]
) -> None:
    rows = read_rows(tiny_pairs.train if file == "train_file" else tiny_pairs.validation)
    changed = [{**row, **change.get(number, {})} for number, row in enumerate(rows)]
    flags = {**tiny_pairs.short(), file: write_csv(tmp_path / "bad.csv", changed)}
    done = run(**flags, output_dir=tmp_path / "out")
    assert done.code == 2 and "Traceback" not in done.all and "bad.csv" in done.err, done.all
    assert all(each in done.err for each in said), done.err
    assert not (tmp_path / "out").exists()


def test_models_that_are_no_rerankers(tiny_pairs: TinyPairs, tmp_path: Path) -> None:
    regression = run(
        **tiny_pairs.short(problem_type="regression", label_column_name="score", input_column_names="query,document"),
        output_dir=tmp_path / "regression",
    )
    assert regression.code == 0, regression.all
    flags = tiny_pairs.of(tmp_path / "regression", do_eval=True, validation_file=tiny_pairs.validation)
    done = run(**flags, output_dir=tmp_path / "out")
    assert done.code == 2 and "Name the label column with --label_column_name" in done.err, done.all
    done = run(**flags, problem_type="reranking", output_dir=tmp_path / "out")
    assert done.code == 2 and "the model was trained for regression" in done.err and "reranking" in done.err, done.all
    done = run(**tiny_pairs.flags(distill_teacher=tmp_path / "regression"), output_dir=tmp_path / "out")
    assert done.code == 2 and "Use a teacher of the same kind" in done.err, done.all


@pytest.mark.slow
def test_as_a_process_of_its_own(tiny_pairs: TinyPairs, reranker: Path, tmp_path: Path) -> None:
    """The same command in another process gives the same figures."""
    done = run_process(**tiny_pairs.flags(output_dir=tmp_path / "out", test_file=tiny_pairs.test, do_predict=True))
    assert done.code == 0, done.all
    first, second = (read_json(folder / "eval_results.json") for folder in (reranker, tmp_path / "out"))
    assert first == pytest.approx(second, abs=1e-6)


def test_pairs_of_sts(tmp_path: Path) -> None:
    """The example: own sentences keep their scores, others have 0; queries without a relevant one are left out."""
    rows = [{"sentence1": f"one {row // 2}", "sentence2": f"two {row}", "score": f"{row % 6}"} for row in range(24)]
    source, target = write_csv(tmp_path / "sts.csv", rows), tmp_path / "pairs.csv"
    done = subprocess.run([sys.executable, EXAMPLE, source, target, "--others", "3"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {(row["query"], row["document"]): float(row["score"]) for row in read_rows(target)}
    assert found["one 1", "two 3"] == 3 / 5 and found["one 1", "two 2"] == 2 / 5
    assert {query for query, _ in found} == {f"one {row}" for row in range(12) if row % 3}
    own = {(row["sentence1"], row["sentence2"]) for row in rows}
    assert all(score == 0 for pair, score in found.items() if pair not in own)
    assert min(Counter(query for query, _ in found).values()) >= 3
