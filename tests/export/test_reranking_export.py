"""scripts/export_onnx.py for rerankers: decisions are the best documents of queries, figures those of their order."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from export_fixtures import export
from reranking_fixtures import LENGTH, TinyPairs
from script_fixtures import flat, read_json, write_csv
from tiny import make_tokenizer

from sparse_accel import runtime
from sparse_accel.export import measure
from sparse_accel.export.checks import Check
from sparse_accel.export.classify import classify
from sparse_accel.export.fidelity import check_fidelity, compare
from sparse_accel.export.proof import reasons
from sparse_accel.export.texts import Texts
from sparse_accel.runtime.loading import VARIABLE
from sparse_accel.tasks import TextClassification
from sparse_accel.tasks.label_names import RERANKING, Head

RANKING = "nDCG@10 and MRR@10"  # the check of the figures

pytest_plugins = ["reranking_fixtures", "export_fixtures"]
pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime's own sessions, on every CPU."""
    monkeypatch.setenv(VARIABLE, "none")


def checks(report: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {check["name"]: (check["result"], check["detail"]) for check in report["checks"]}


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_an_export_is_proven_on_the_runs_queries(tiny_pairs: TinyPairs, reranker: Path, tmp_path: Path) -> None:
    """Its figures are those of the run's own evaluation, and `classify` gives the scores of its predictions."""
    done = export(model_path=reranker, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    report = read_json(tmp_path / "out" / "export_report.json")
    found = checks(report)
    assert {result for result, _ in found.values()} == {"pass"}, found
    assert f"best documents are the same on 25 queries of {tiny_pairs.validation}" in found["agreement"][1]
    assert "ndcg_at_10" in found[RANKING][1] and "mrr_at_10" in flat(done.out)
    written = [done.out, *((tmp_path / "out" / name).read_text() for name in ("export_report.md", "README.md"))]
    assert all(RANKING in text and "accuracy" not in text for text in written)
    results = read_json(reranker / "eval_results.json")
    for run in ("pytorch", "onnxruntime"):
        expected = {name: results[f"eval_{name}"] for name in ("ndcg_at_10", "mrr_at_10")}
        assert report["fidelity"][run] == pytest.approx(expected, abs=0.02 if run == "onnxruntime" else 1e-9)
    rows, predicted = read_rows(tiny_pairs.test), read_rows(reranker / "test_predictions.csv")
    pairs = [(row["query"], row["document"]) for row in rows]
    fits = [len(f"{query} {document}".split()) + 3 <= LENGTH for query, document in pairs]  # classify cuts at 512
    assert any(fits)
    for (name, score), row, whole in zip(classify(tmp_path / "out", pairs), predicted, fits, strict=True):
        assert name == "score" and (not whole or score == pytest.approx(float(row["score"]), abs=0.01))
    assert "| nDCG@10 |" in (reranker / "README.md").read_text()


@pytest.mark.slow
def test_code_of_the_cards_runs(
    tiny_pairs: TinyPairs,
    reranker: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("sentence_transformers")
    assert export(model_path=reranker, output_dir=tmp_path / "out").code == 0
    for folder, blocks in ((reranker, 2), (tmp_path / "out", 2)):
        code = [text.partition("```")[0] for text in (folder / "README.md").read_text().split("```python\n")[1:]]
        monkeypatch.chdir(folder)
        printed = []
        for block in code[:blocks]:
            capsys.readouterr()
            exec(block, {})
            printed.append(capsys.readouterr().out.strip())
        assert all(printed) and len(code) >= blocks
    assert "CrossEncoder(" in (reranker / "README.md").read_text()


def test_other_rows_and_none(tiny_pairs: TinyPairs, reranker: Path, tmp_path: Path) -> None:
    """Rows of --data, in other columns; without scores; and sentences of this package, in queries of four."""
    rows = [
        {"q": row["query"], "d": row["document"], "grade": row["score"]} for row in read_rows(tiny_pairs.validation)
    ]
    cases: list[tuple[dict[str, Any], str, str]] = [
        (
            {
                "data": write_csv(tmp_path / "rows.csv", rows),
                "label_column_name": "grade",
                "input_column_names": "q,d",
            },
            "25 queries of",
            "pass",
        ),
        ({"data": tiny_pairs.test}, "7 queries of", "not checked"),
    ]
    for number, (flags, said, result) in enumerate(cases):
        done = export(model_path=reranker, output_dir=tmp_path / str(number), **flags)
        assert done.code == 0 and said in flat(done.out), done.all
        found = checks(read_json(tmp_path / str(number) / "export_report.json"))
        assert found["agreement"][0] == "pass" and found[RANKING][0] == result
        assert result == "pass" or "has no scores" in found[RANKING][1]


def test_bad_rows_to_prove_on(reranker: Path, tmp_path: Path) -> None:
    rows = [{"query": "a film", "document": "a good film", "score": 1}]
    done = export(model_path=reranker, output_dir=tmp_path / "out", data=write_csv(tmp_path / "rows.csv", rows))
    assert done.code == 2 and "rows.csv, row 1 (line 2), column 'query'" in done.err, done.all
    assert "has one document" in done.err


@pytest.mark.parametrize(("second", "passed"), [(0.9, True), (-1.0, False)])
def test_another_order_fails_the_proof(second: float, passed: bool) -> None:
    """Of 20 queries, two have another best document: it passes if in one of the runs they nearly tie."""
    task: Any = TextClassification.of_sentences(Head(["score"], RERANKING), [f"sentence {row}" for row in range(80)])
    rows: Any = SimpleNamespace(column_names=[])
    texts = Texts("rows", rows, task, "test")
    ours = np.tile(np.array([[1.0], [second], [-1.0], [-2.0]], dtype=np.float32), (20, 1))
    theirs = ours.copy()
    theirs[[1, 5]] = 3.0
    check, *_ = check_fidelity(compare(("one", "other"), ours, theirs, texts), texts, quantized=True)
    assert "90.00% of best documents are the same on 20 queries of rows" in check.detail
    assert check.passed is passed, check.detail


def test_a_cpu_may_be_why_only_the_ranking_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "cpu", lambda: {"name": "an old CPU", "vnni": False})
    said = reasons([Check(RANKING, False, "they differ")], overflows=True)
    assert f"{RANKING}: they differ" in said and "This CPU (an old CPU) has no VNNI" in said


@pytest.mark.parametrize(
    ("problem_type", "expected"), [("regression", 3.0), ("multi_label_classification", 1 / (1 + np.exp(-3)))]
)
def test_a_single_output_is_a_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem_type: str, expected: float
) -> None:
    """A softmax over one output would be 1 for every text."""
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "score"}, "problem_type": problem_type}))
    make_tokenizer().save_pretrained(tmp_path)
    entry = SimpleNamespace(name="input_ids", shape=["rows", "tokens"])
    run = SimpleNamespace(get_inputs=lambda: [entry], run=lambda names, inputs: [np.array([[3.0]], dtype=np.float32)])
    monkeypatch.setattr(runtime, "session", lambda folder: run)
    ((name, score),) = classify(tmp_path, ["a film"])
    assert name == "score" and score == pytest.approx(expected)
