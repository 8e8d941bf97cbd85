"""A fine-tuned head keeps its labels and their order, however the model is used; a new head takes the data's.

One classifier is trained for the module. Its copies have outputs in other orders and under other names: whatever the
order, a figure of the copy must be that of the original.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from script_fixtures import Tiny, flat, make_model, read_json, run, sentences, write_csv
from tiny import BAD, GOOD, PLAIN

pytest_plugins = ["script_fixtures"]

NAMES = ("neg", "neu", "pos")
QUANTIZE = """
modifiers:
  - !EpochRangeModifier
    start_epoch: 0.0
    end_epoch: 1.0
  - !QuantizationModifier
    start_epoch: 0.0
"""
FOLLOW = """
modifiers:
  - !EpochRangeModifier
    start_epoch: 0.0
    end_epoch: 1.0
  - !SetLearningRateModifier
    learning_rate: 0.0
  - !DistillationModifier
    hardness: 1.0
"""


def rows(count: int, seed: int, names: tuple[Any, ...] = NAMES) -> list[dict[str, Any]]:
    """Sentences of as many kinds as there are names: bad, (plain,) good."""
    found = sentences(count, seed, (names[0], names[-1]))
    if len(names) == 3:
        for number in range(0, count, 3):
            text = " ".join(word for word in found[number]["text"].split() if word not in (*GOOD, *BAD))
            found[number] = {"text": text or PLAIN[number % len(PLAIN)], "label": names[1]}
    return found


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three labels, right on nearly every row."""
    folder = tmp_path_factory.mktemp("tuned")
    flags: dict[str, Any] = {
        "train_file": write_csv(folder / "train.csv", rows(300, 1)),
        "validation_file": write_csv(folder / "validation.csv", rows(60, 2)),
        "learning_rate": 5e-3,
        "num_train_epochs": 12,
        "per_device_train_batch_size": 16,
        "save_strategy": "no",
    }
    start = make_model(folder / "start", sparse=False)
    done = run(model_name_or_path=start, do_train=True, do_eval=True, output_dir=folder / "out", **flags)
    assert done.code == 0, done.all
    assert accuracy(folder / "out") > 0.95, done.all
    return folder / "out"


def accuracy(folder: Path) -> float:
    return float(read_json(folder / "all_results.json")["eval_accuracy"])


def labels_in(folder: Path) -> list[str]:
    config = read_json(folder / "config.json")
    assert config["label2id"] == {name: int(number) for number, name in config["id2label"].items()}
    return [config["id2label"][str(number)] for number in range(len(config["id2label"]))]


def turned(tuned: Path, folder: Path, order: tuple[int, ...], names: tuple[str, ...]) -> Path:
    """A copy whose output i is the original's output order[i], called names[i]."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy2(tuned / name, folder / name)
    tensors = load_file(tuned / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name] = tensors[name][list(order)].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = read_json(tuned / "config.json")
    config["id2label"] = dict(enumerate(names))
    config["label2id"] = {name: number for number, name in enumerate(names)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def used(way: str, model: Path, output: Path, recipes: Path, **data: Any) -> Any:
    """Runs the script on a model in one of the ways that keep its head, at learning rate 0."""
    recipes.mkdir(exist_ok=True)
    for name, text in (("quantize", QUANTIZE), ("follow", FOLLOW)):
        (recipes / f"{name}.yaml").write_text(text)
    flags: dict[str, dict[str, Any]] = {
        "train": {"do_train": True, "learning_rate": 0.0, "num_train_epochs": 1},
        "one_shot": {"one_shot": True, "recipe": recipes / "quantize.yaml"},
        "self": {"do_train": True, "recipe": recipes / "follow.yaml", "distill_teacher": "self"},
        "evaluate": {"train_file": None},
    }
    return run(
        **{"do_eval": True, **data, **flags[way]}, model_name_or_path=model, save_strategy="no", output_dir=output
    )


@pytest.mark.parametrize("way", ["train", "one_shot", "self", "evaluate"])
@pytest.mark.parametrize(
    ("order", "names", "data_names"),
    [
        ((2, 1, 0), ("pos", "neu", "neg"), NAMES),
        ((1, 2, 0), ("NEU", "POS", "NEG"), NAMES),
        ((1, 2, 0), ("neutral", "positive", "negative"), (2, 0, 1)),
        ((0, 1, 2), ("LABEL_0", "LABEL_1", "LABEL_2"), (0, 1, 2)),
        ((2, 0, 1), ("2", "0", "1"), (0, 1, 2)),
    ],
    ids=["other order", "capitals", "numbers are positions", "unnamed", "numbers are names"],
)
def test_a_kept_head_means_what_it_meant(
    way: str, order: tuple[int, ...], names: tuple[str, ...], data_names: tuple[Any, ...], tuned: Path, tmp_path: Path
) -> None:
    model = turned(tuned, tmp_path / "model", order, names)
    data = {
        "train_file": write_csv(tmp_path / "train.csv", rows(64, 3, data_names)),
        "validation_file": write_csv(tmp_path / "validation.csv", rows(60, 2, data_names)),
    }
    done = used(way, model, tmp_path / "out", tmp_path / "recipes", **data)
    assert done.code == 0, done.all
    assert accuracy(tmp_path / "out") == pytest.approx(accuracy(tuned), abs=0.05 if way == "one_shot" else 0.0)
    if way != "evaluate":
        known_only_by_number = names[0] == "LABEL_0" and way != "one_shot"  # then the data's names are better
        assert labels_in(tmp_path / "out") == (["0", "1", "2"] if known_only_by_number else list(names))
    if data_names == (2, 0, 1) and way != "one_shot":
        assert "matched by position" in done.err and "0 as neutral" in done.err


def test_predictions_and_export_of_a_kept_head(tuned: Path, tmp_path: Path) -> None:
    from sparse_accel.cli.export import ExportArguments
    from sparse_accel.export.deployment import export

    model = turned(tuned, tmp_path / "model", (2, 0, 1), ("Pos", "Neg", "Neu"))
    data = {
        "train_file": write_csv(tmp_path / "train.csv", rows(64, 3)),
        "validation_file": write_csv(tmp_path / "validation.csv", rows(60, 2)),
        "test_file": write_csv(tmp_path / "test.csv", [{"text": row["text"]} for row in rows(60, 2)]),
    }
    done = used("train", model, tmp_path / "out", tmp_path / "recipes", do_predict=True, **data)
    assert done.code == 0, done.all
    with open(tmp_path / "out" / "test_predictions.csv", newline="") as stream:
        found = [row["label"] for row in csv.DictReader(stream)]
    same = [name == row["label"].capitalize() for name, row in zip(found, rows(60, 2), strict=True)]
    assert sum(same) / len(same) == pytest.approx(accuracy(tuned))
    report = export(ExportArguments(model_path=str(tmp_path / "out"), data=str(data["validation_file"])))
    assert report["fidelity"]["onnxruntime"]["accuracy"] == pytest.approx(accuracy(tuned))


@pytest.mark.parametrize("architectures", [None, [], ["BertModel"]], ids=str)
@pytest.mark.parametrize("way", ["train", "one_shot", "self"])
def test_a_head_that_config_json_does_not_name(way: str, architectures: Any, tuned: Path, tmp_path: Path) -> None:
    """As configurations have it that were made by hand, or by other tools: the weights tell."""
    model = turned(tuned, tmp_path / "model", (2, 1, 0), ("pos", "neu", "neg"))
    config = read_json(model / "config.json") | {"architectures": architectures}
    (model / "config.json").write_text(json.dumps(config))
    file = write_csv(tmp_path / "validation.csv", rows(60, 2))
    done = used(way, model, tmp_path / "out", tmp_path / "recipes", train_file=file, validation_file=file)
    assert done.code == 0, done.all
    assert accuracy(tmp_path / "out") == pytest.approx(accuracy(tuned), abs=0.05 if way == "one_shot" else 0.0)


def test_another_configuration_does_not_rename_the_outputs(tuned: Path, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "validation.csv", rows(60, 2))
    other = turned(tuned, tmp_path / "other", (2, 1, 0), ("pos", "neu", "neg"))
    flags: dict[str, Any] = {"train_file": file, "validation_file": file, "config_name": other}
    for way in ("train", "one_shot"):
        done = used(way, tuned, tmp_path / way, tmp_path / "recipes", **flags)
        assert done.code == 0, done.all
        assert labels_in(tmp_path / way) == list(NAMES) and accuracy(tmp_path / way) > accuracy(tuned) - 0.05


# --- labels that do not match -----------------------------------------------------------------------------------------


def test_names_that_cannot_be_matched(tuned: Path, tmp_path: Path) -> None:
    data: dict[str, Any] = {"train_file": write_csv(tmp_path / "train.csv", rows(64, 3, ("bad", "odd", "good")))}
    data["validation_file"] = data["train_file"]
    for way in ("train", "self"):
        refused = used(way, tuned, tmp_path / "out", tmp_path / "recipes", **data)
        assert refused.code == 2, refused.all
        for part in ("bad, good, odd", "neg, neu, pos", "id2label", "--new_head"):
            assert part in refused.err
        assert not (tmp_path / "out").exists()
    refused = used("one_shot", tuned, tmp_path / "one_shot", tmp_path / "recipes", **data)
    assert refused.code == 2 and "does not occur in the model" in refused.err and "neg, neu, pos" in refused.err

    done = used("train", tuned, tmp_path / "out", tmp_path / "recipes", new_head=True, **data)
    assert done.code == 0, done.all
    assert "newly initialized" in flat(done.out) and labels_in(tmp_path / "out") == ["bad", "good", "odd"]
    before, after = (
        load_file(folder / "model.safetensors")["classifier.weight"] for folder in (tuned, tmp_path / "out")
    )
    assert before.shape == after.shape and not before.equal(after)


def test_another_number_of_labels_is_another_task(tiny: Tiny, tuned: Path, tmp_path: Path) -> None:
    data: dict[str, Any] = {"train_file": write_csv(tmp_path / "train.csv", sentences(64, 3, ("awful", "fine")))}
    data["validation_file"] = data["train_file"]
    done = used("train", tuned, tmp_path / "out", tmp_path / "recipes", **data)
    assert done.code == 0, done.all
    assert "newly initialized (2 weights)" in flat(done.out) and labels_in(tmp_path / "out") == ["awful", "fine"]

    # Two numbers for a head of three names may be two of them, or another task: nothing tells.
    data["train_file"] = data["validation_file"] = tiny.train
    refused = used("train", tuned, tmp_path / "numbers", tmp_path / "recipes", **data)
    assert refused.code == 2 and "(0, 1)" in refused.err and "--new_head" in refused.err


def test_rows_that_lack_a_class(tuned: Path, tmp_path: Path) -> None:
    two = write_csv(tmp_path / "two.csv", [row for row in rows(90, 3) if row["label"] != "neu"])
    one = write_csv(tmp_path / "one.csv", [row for row in rows(90, 3) if row["label"] == "neu"])
    unlabelled = write_csv(tmp_path / "unlabelled.csv", [{"text": row["text"]} for row in rows(90, 3)])
    validation = write_csv(tmp_path / "validation.csv", rows(60, 2))
    for file in (two, one, unlabelled):
        output = tmp_path / file.stem
        done = used("one_shot", tuned, output, tmp_path / "recipes", train_file=file, validation_file=validation)
        assert done.code == 0, done.all
        assert labels_in(output) == list(NAMES) and accuracy(output) == pytest.approx(accuracy(tuned), abs=0.05)
    kept = used("train", tuned, tmp_path / "kept", tmp_path / "recipes", train_file=two, validation_file=validation)
    assert kept.code == 0, kept.all
    assert labels_in(tmp_path / "kept") == list(NAMES) and accuracy(tmp_path / "kept") == accuracy(tuned)


def test_one_shot_without_rows_to_take_ranges_from(tiny: Tiny, tuned: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_csv(tmp_path / "data" / "validation.csv", rows(9, 2))
    refused = used("one_shot", tuned, tmp_path / "out", tmp_path / "recipes", dataset_name=tmp_path / "data")
    assert refused.code == 2 and "--one_shot needs training rows for the ranges" in refused.err, refused.all
    headless = used("one_shot", tiny.model, tmp_path / "mlm", tmp_path / "r", train_file=tiny.train, do_eval=None)
    assert headless.code == 0 and "has no fine-tuned head" in headless.err, headless.all


def test_a_question_of_kind(tuned: Path, tmp_path: Path) -> None:
    """Scores for a classifier: a new head in training, an error where the head is kept."""
    scores = [{"text": row["text"], "label": number / 7} for number, row in enumerate(rows(64, 3))]
    file = write_csv(tmp_path / "scores.csv", scores)
    done = used("train", tuned, tmp_path / "out", tmp_path / "recipes", train_file=file, validation_file=file)
    assert done.code == 0, done.all
    assert read_json(tmp_path / "out" / "config.json")["problem_type"] == "regression"
    refused = used("evaluate", tuned, tmp_path / "e", tmp_path / "recipes", validation_file=file)
    assert refused.code == 2 and "scores.csv, row" in refused.err
    asked: dict[str, Any] = {"validation_file": file, "problem_type": "regression"}
    refused = used("evaluate", tuned, tmp_path / "e", tmp_path / "recipes", **asked)
    assert refused.code == 2 and "--problem_type says regression" in refused.err
