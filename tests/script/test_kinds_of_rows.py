"""Every kind of rows through the script: evaluation and prediction from a folder, regression, multi-label, pairs."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from script_fixtures import Tiny, flat, read_json, run, sentences, write_csv
from tiny import BAD, GOOD, PLAIN
from transformers import AutoTokenizer

import sparse_accel

pytest_plugins = ["script_fixtures"]


@pytest.fixture(scope="module")
def trained(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized classifier of `bad` and `good`."""
    folder = tmp_path_factory.mktemp("trained")
    words = {"train_file": write_csv(folder / "train.csv", sentences(203, 1, ("bad", "good")))}
    words["validation_file"] = write_csv(folder / "validation.csv", sentences(60, 2, ("bad", "good")))
    done = run(**tiny.flags(**words, output_dir=folder / "out"))
    assert done.code == 0, done.all
    return folder / "out"


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


# --- from a folder that training wrote --------------------------------------------------------------------------------


def test_prediction_alone_is_by_name_and_quantized(tiny: Tiny, trained: Path) -> None:
    done = run(output_dir=trained, test_file=tiny.test, do_predict=True)
    assert done.code == 0, done.all
    assert f"17 predictions: {trained / 'test_predictions.csv'}" in done.out
    found = rows_of(trained / "test_predictions.csv")
    assert list(found[0]) == ["row", "label", "probability_bad", "probability_good"]
    assert [row["row"] for row in found] == [str(number) for number in range(17)]
    model, tokenizer = sparse_accel.load(trained), AutoTokenizer.from_pretrained(trained)
    for row, sentence in zip(found, rows_of(tiny.test), strict=True):
        with torch.no_grad():
            shares = model(**tokenizer(sentence["text"], return_tensors="pt")).logits.softmax(-1)[0]
        assert float(row["probability_good"]) == pytest.approx(float(shares[1]), abs=2e-5)
        assert row["label"] == ("good" if shares[1] > shares[0] else "bad")


def test_evaluation_alone_gives_the_figures_of_the_training_run(trained: Path, tmp_path: Path) -> None:
    in_training = read_json(trained / "eval_results.json")
    done = run(
        model_name_or_path=trained,
        output_dir=tmp_path,
        validation_file=trained.parent / "validation.csv",
        per_device_eval_batch_size=32,
        do_eval=True,
    )
    assert done.code == 0, done.all
    assert read_json(tmp_path / "eval_results.json") == in_training
    assert {path.name for path in tmp_path.iterdir()} == {"eval_results.json", "all_results.json", "evaluation.json"}


def test_evaluation_on_test_rows(trained: Path, tmp_path: Path) -> None:
    labelled = write_csv(tmp_path / "labelled.csv", sentences(30, 9, ("bad", "good")))
    flags: dict[str, Any] = {"model_name_or_path": trained, "output_dir": tmp_path / "out"}
    done = run(**flags, test_file=labelled, do_eval=True, eval_on_test=True, do_predict=True)
    assert done.code == 0, done.all
    predicted = [row["label"] for row in rows_of(tmp_path / "out" / "test_predictions.csv")]
    truth = [row["label"] for row in rows_of(labelled)]
    share = float(np.mean([one == other for one, other in zip(predicted, truth, strict=True)]))
    assert read_json(tmp_path / "out" / "eval_results.json")["eval_accuracy"] == pytest.approx(share)


def test_a_finished_run_predicts_when_it_is_asked_to(tiny: Tiny, tmp_path: Path) -> None:
    """Training is not repeated for it, and the figures of the run stay."""
    flags = tiny.flags(output_dir=tmp_path / "out", max_train_samples=40, recipe_args={"num_epochs": 1})
    flags["recipe_args"] |= {"qat_start_epoch": 0, "observer_epoch": 1}
    assert run(**flags).code == 0
    figures = read_json(tmp_path / "out" / "all_results.json")
    again = run(**flags, do_predict=True, test_file=tiny.test)
    assert again.code == 0, again.all
    assert "nothing is trained again" in again.out and "17 predictions" in again.out
    assert read_json(tmp_path / "out" / "all_results.json") == figures


# --- kinds of labels --------------------------------------------------------------------------------------------------


def test_regression_on_pairs(tiny: Tiny, tmp_path: Path) -> None:
    """Like STS-B: two sentences and a score with decimals; the student follows a teacher by squared error."""
    draw = random.Random(1)

    def pairs(count: int) -> list[dict[str, Any]]:
        rows = []
        for _ in range(count):
            good = draw.randint(0, 4)
            words = draw.choices(GOOD, k=good) + draw.choices(BAD, k=4 - good)
            rows.append({"one": " ".join(words), "two": " ".join(draw.choices(PLAIN, k=4)), "score": float(good)})
        return rows

    files: dict[str, Any] = {
        f"{name}_file": write_csv(tmp_path / f"{name}.csv", pairs(96)) for name in ("train", "validation")
    }
    files["test_file"] = write_csv(tmp_path / "test.csv", [{"one": "good", "two": "film"}])
    columns = {"input_column_names": "one,two", "label_column_name": "score"}
    refused = run(**tiny.flags(**files, **columns, output_dir=tmp_path / "out"))
    assert refused.code == 2 and "scores or classes? Add --problem_type regression" in refused.err
    columns["problem_type"] = "regression"
    flags = tiny.flags(**files, **columns, distill_teacher="self", recipe_args={"num_epochs": 6, "init_lr": 1e-2})
    flags["recipe_args"] |= {"qat_start_epoch": 3, "observer_epoch": 4, "distill_hardness": 0.1}
    done = run(**{**flags, "seed": 43}, do_predict=True, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    results = read_json(tmp_path / "out" / "all_results.json")
    assert results["eval_spearmanr"] > 0.6 and {"eval_mse", "eval_mae", "eval_pearson"} <= results.keys()
    config = read_json(tmp_path / "out" / "config.json")
    assert config["problem_type"] == "regression" and len(config["id2label"]) == 1
    (prediction,) = rows_of(tmp_path / "out" / "test_predictions.csv")
    assert set(prediction) == {"row", "score"} and float(prediction["score"]) == float(prediction["score"])


def test_several_labels_a_row_in_jsonl(tiny: Tiny, tmp_path: Path) -> None:
    draw = random.Random(1)

    def lines(count: int) -> str:
        rows = []
        for _ in range(count):
            labels = [name for name in ("bad", "good", "odd") if draw.random() < 0.5]
            words = [draw.choice({"bad": BAD, "good": GOOD, "odd": PLAIN[:3]}[name]) for name in labels]
            rows.append({"text": " ".join([*words, "it"]), "label": labels})
        return "".join(json.dumps(row) + "\n" for row in rows)

    files: dict[str, Any] = {f"{name}_file": tmp_path / f"{name}.jsonl" for name in ("train", "validation", "test")}
    for path in files.values():
        path.write_text(lines(96))
    flags = tiny.flags(**files, recipe_args={"num_epochs": 8, "init_lr": 1e-2, "qat_start_epoch": 5})
    flags |= {"recipe_args": {**flags["recipe_args"], "observer_epoch": 6}, "per_device_train_batch_size": 8}
    best: dict[str, Any] = {"load_best_model_at_end": True, "metric_for_best_model": "f1_micro"}
    done = run(**flags, **best, do_predict=True, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    results = read_json(tmp_path / "out" / "all_results.json")
    assert results["eval_f1_micro"] > 0.6 and {"eval_f1_macro", "eval_subset_accuracy"} <= results.keys()
    config = read_json(tmp_path / "out" / "config.json")
    assert config["problem_type"] == "multi_label_classification"
    assert config["label2id"] == {"bad": 0, "good": 1, "odd": 2}
    for row in rows_of(tmp_path / "out" / "test_predictions.csv"):
        chosen = [name for name in ("bad", "good", "odd") if float(row[f"probability_{name}"]) >= 0.5]
        assert row["label"] == ";".join(chosen)


# --- kinds of files, draws of rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".tsv", ".parquet"])
def test_other_files_train_the_same_model(tiny: Tiny, tmp_path: Path, suffix: str) -> None:
    """The identity of a run holds rows, not the file they came from."""
    short = {"recipe_args": {"num_epochs": 1, "qat_start_epoch": 0, "observer_epoch": 1}}
    flags = tiny.flags(**short, output_dir=tmp_path / "out", eval_strategy="no", do_eval=None)
    assert run(**flags).code == 0
    rows, file = sentences(203, seed=1), tmp_path / f"train{suffix}"
    if suffix == ".tsv":
        write_csv(file, rows, delimiter="\t")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    again = run(**{**flags, "train_file": file})
    assert again.code == 0 and "nothing is trained again" in again.out, again.all


def test_rows_are_held_out_and_drawn(tiny: Tiny, tmp_path: Path) -> None:
    """By label-sorted data, a draw that took the first rows would meet one label only."""
    rows = sorted(sentences(200, seed=1), key=lambda row: int(row["label"]))
    file = write_csv(tmp_path / "sorted.csv", rows)
    flags = tiny.flags(train_file=file, validation_file=None, output_dir=tmp_path / "out")
    flags["recipe_args"] = {"num_epochs": 1, "qat_start_epoch": 0, "observer_epoch": 1}
    done = run(**flags, validation_ratio=0.2, max_train_samples=64, max_eval_samples=20)
    assert done.code == 0, done.all
    assert "64 train, 20 validation" in flat(done.out) and "steps 2, 2 per epoch" in flat(done.out)
    evaluated = run(**{**flags, "model_name_or_path": tmp_path / "out", "do_train": None}, validation_ratio=0.2)
    assert evaluated.code == 0, evaluated.all
    assert "only for its label names" not in evaluated.err


def test_rows_to_predict_are_the_first_ones(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    """So a prediction's row is the row of the file."""
    for name, limit in (("all", None), ("four", 4)):
        done = run(
            model_name_or_path=trained, test_file=tiny.test, do_predict=True, output_dir=tmp_path / name,
            max_predict_samples=limit,
        )  # fmt: skip
        assert done.code == 0, done.all
    everything, first = (rows_of(tmp_path / name / "test_predictions.csv") for name in ("all", "four"))
    assert first == everything[:4]
