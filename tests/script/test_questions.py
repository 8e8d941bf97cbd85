"""A finished run that is asked something else: it is measured again where rows differ, and never trained again.

Its model may stay what it is and still be no answer: where the command would have trained another one, it is refused.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from script_fixtures import Outcome, Tiny, assert_same_model, read_json, run, sentences, write_csv

from sparse_accel.run_folder import results
from sparse_accel.run_folder.ownership import acquire_folder

pytest_plugins = ["script_fixtures"]


@pytest.fixture(scope="module")
def finished(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The flags of a run that trained, evaluated and predicted, and its folder."""
    folder = tmp_path_factory.mktemp("finished")
    flags: dict[str, Any] = {
        "model_name_or_path": tiny.model,
        "train_file": tiny.train,
        "validation_file": tiny.validation,
        "test_file": tiny.test,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 32,
        "save_strategy": "no",
        "do_train": True,
        "do_eval": True,
        "do_predict": True,
    }
    done = run(**flags, output_dir=folder / "out")
    assert done.code == 0, done.all
    return flags, folder / "out"


@pytest.fixture
def asked(finished: tuple[dict[str, Any], Path], tmp_path: Path) -> Any:
    """Asks a copy of the finished run; returns what was said, and its folder."""
    flags, folder = finished
    shutil.copytree(folder, tmp_path / "out")

    def ask(**changed: Any) -> tuple[Outcome, Path]:
        return run(**{**flags, **changed}, output_dir=tmp_path / "out"), tmp_path / "out"

    return ask


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def assert_neither_moved_nor_trained(outcome: Outcome, folder: Path, before: Path) -> None:
    assert outcome.code == 0, outcome.all
    assert "nothing is trained again" in outcome.out and "was moved to" not in outcome.out
    assert not folder.with_name("out.1").exists()
    assert_same_model(folder, before)


def test_the_same_question_is_answered_from_the_files(asked: Any, finished: tuple[Any, Path], tmp_path: Path) -> None:
    before = times(tmp_path / "out")
    done, folder = asked()
    assert_neither_moved_nor_trained(done, folder, finished[1])
    assert times(folder) == before


@pytest.mark.parametrize("change", ["rows", "fewer", "longer"])
def test_other_validation_rows(change: str, asked: Any, finished: tuple[Any, Path], tiny: Tiny, tmp_path: Path) -> None:
    """The figures are those of an evaluation of its own, not the old ones."""
    other = sentences(60, seed=9)
    for row in other[:20]:
        row["label"] = 1 - row["label"]  # so that its accuracy differs
    changed: dict[str, dict[str, Any]] = {
        "rows": {"validation_file": write_csv(tmp_path / "other.csv", other)},
        "fewer": {"max_eval_samples": 7},
        "longer": {"validation_file": write_csv(tmp_path / "more.csv", [*sentences(60, seed=2), *other])},
    }
    done, folder = asked(**changed[change])
    assert_neither_moved_nor_trained(done, folder, finished[1])
    alone: dict[str, Any] = {
        "do_train": None,
        "do_predict": None,
        "test_file": None,
        "train_file": None,
        **changed[change],
    }
    flags: dict[str, Any] = {**finished[0], **alone, "model_name_or_path": folder}
    assert run(**flags, output_dir=tmp_path / "alone").code == 0
    expected = read_json(tmp_path / "alone" / "eval_results.json")
    assert read_json(folder / "eval_results.json") == expected != read_json(finished[1] / "eval_results.json")
    results = read_json(folder / "all_results.json")
    assert {name: value for name, value in results.items() if name.startswith("eval_")} == expected
    again, _ = asked_again(finished[0], folder, **changed[change])
    assert again.code == 0


def asked_again(flags: dict[str, Any], folder: Path, **changed: Any) -> tuple[Outcome, Path]:
    before = times(folder)
    done = run(**{**flags, **changed}, output_dir=folder)
    assert times(folder) == before, "asked twice, measured once"
    return done, folder


def test_a_figure_of_old_rows_does_not_stay(asked: Any, tmp_path: Path) -> None:
    """Not even one that the new evaluation does not give."""
    results = tmp_path / "out" / "all_results.json"
    results.write_text(results.read_text().replace("{", '{\n  "eval_accuracy_mm": 0.99,', 1))
    done, folder = asked(max_eval_samples=5)
    assert done.code == 0 and "eval_accuracy_mm" not in read_json(folder / "all_results.json")


def test_other_rows_to_predict(asked: Any, finished: tuple[Any, Path], tmp_path: Path) -> None:
    other = write_csv(tmp_path / "other.csv", [{"text": row["text"]} for row in sentences(9, seed=5)])
    done, folder = asked(test_file=other)
    assert_neither_moved_nor_trained(done, folder, finished[1])
    with open(folder / "test_predictions.csv", newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 9
    assert read_json(folder / "eval_results.json") == read_json(finished[1] / "eval_results.json")
    fewer, folder = asked(test_file=other, max_predict_samples=4)
    assert fewer.code == 0 and len((folder / "test_predictions.csv").read_text().splitlines()) == 5


def test_a_model_that_was_changed_is_measured_again(asked: Any, tmp_path: Path) -> None:
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    tensors["classifier.weight"] = tensors["classifier.weight"].flip(0).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    before = read_json(tmp_path / "out" / "eval_results.json")
    done, folder = asked()
    assert done.code == 0 and read_json(folder / "eval_results.json")["eval_loss"] != before["eval_loss"]


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"bf16": True}, ("precision (float32 there, bf16 here)",)),
        ({"nan_loss": "skip"}, ("nan_loss (stop there, skip here)",)),
        (
            {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"},
            ("load_best_model_at_end (False there, True here)",),
        ),
    ],
    ids=["bf16", "nan_loss", "best"],
)
def test_what_would_have_trained_another_model(
    changed: dict[str, Any], parts: tuple[str, ...], asked: Any, tmp_path: Path
) -> None:
    before = times(tmp_path / "out")
    refused, folder = asked(**changed)
    assert refused.code == 2, refused.all
    for part in (*parts, "contains a finished run with this recipe and data", "--overwrite_output_dir"):
        assert part in refused.err, refused.err
    assert {**before, ".lock": 0} == {**times(folder), ".lock": 0} and not folder.with_name("out.1").exists()


def test_other_names_for_the_labels_that_were_trained(asked: Any, tmp_path: Path) -> None:
    """The very tokens and numbers, and yet another model: its outputs would have other names."""
    named = {
        "train_file": write_csv(tmp_path / "train.csv", sentences(203, 1, ("bad", "good"))),
        "validation_file": write_csv(tmp_path / "validation.csv", sentences(60, 2, ("bad", "good"))),
    }
    refused, folder = asked(**named)
    assert refused.code == 2 and "label_names (['0', '1'] there, ['bad', 'good'] here)" in refused.err, refused.all
    assert not folder.with_name("out.1").exists()
    unknown, folder = asked(validation_file=named["validation_file"])
    assert unknown.code == 2 and "does not occur in" in unknown.err


def test_the_best_model_was_chosen_on_other_rows(tiny: Tiny, tmp_path: Path) -> None:
    flags: dict[str, Any] = {
        "model_name_or_path": tiny.model,
        "train_file": tiny.train,
        "validation_file": tiny.validation,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 32,
        "do_train": True,
        "load_best_model_at_end": True,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "output_dir": tmp_path / "out",
    }
    assert run(**flags).code == 0
    assert run(**flags).code == 0
    refused = run(**{**flags, "validation_file": write_csv(tmp_path / "other.csv", sentences(60, seed=9))})
    assert refused.code == 2 and "validation_rows" in refused.err, refused.all


def test_a_folder_that_an_older_version_wrote(asked: Any, finished: tuple[Any, Path], tmp_path: Path) -> None:
    """It did not record what it measured, nor how it was trained: it is measured again, once."""
    record = read_json(tmp_path / "out" / "run.json")
    (tmp_path / "out" / "run.json").write_text(
        json.dumps({"finished": record["finished"], "identity": record["identity"]})
    )
    old = (tmp_path / "out" / "eval_results.json").stat().st_mtime_ns
    os.utime(tmp_path / "out" / "eval_results.json", ns=(old - 10**9, old - 10**9))
    done, folder = asked()
    assert_neither_moved_nor_trained(done, folder, finished[1])
    assert read_json(folder / "eval_results.json") == read_json(finished[1] / "eval_results.json")
    before = times(folder)
    assert asked()[0].code == 0 and times(folder) == before


# --- what is in the folder is not what was measured -------------------------------------------------------------------


def test_a_second_question_that_is_interrupted(
    asked: Any, finished: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its predictions are written, and not recorded: the first question is not answered with them."""
    other = write_csv(tmp_path / "other.csv", [{"text": row["text"]} for row in sentences(9, seed=5)])
    before = (tmp_path / "out" / "test_predictions.csv").read_text()
    with monkeypatch.context() as patched:
        patched.setattr(results, "record_measured", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert asked(test_file=other)[0].code == 130
    assert len((tmp_path / "out" / "test_predictions.csv").read_text().splitlines()) == 10
    done, folder = asked()
    assert done.code == 0 and (folder / "test_predictions.csv").read_text() == before


@pytest.mark.parametrize("name", ["all_results.json", "eval_results.json", "test_predictions.csv"])
@pytest.mark.parametrize("damage", ["deleted", "torn"])
def test_files_that_are_gone_or_torn(
    name: str, damage: str, asked: Any, finished: tuple[Any, Path], tmp_path: Path
) -> None:
    file = tmp_path / "out" / name
    if damage == "deleted":
        file.unlink()
    elif name != "test_predictions.csv":  # what a person edits there is theirs
        file.write_text("{")
    done, folder = asked()
    assert done.code == 0, done.all
    assert read_json(folder / "eval_results.json") == read_json(finished[1] / "eval_results.json")
    assert f"{read_json(finished[1] / 'eval_results.json')['eval_accuracy']:.4f}" in done.out
    assert (folder / "test_predictions.csv").read_text() == (finished[1] / "test_predictions.csv").read_text()


def test_a_record_that_was_edited(asked: Any, tmp_path: Path) -> None:
    record = read_json(tmp_path / "out" / "run.json")
    for entries in ({"measured": None, "trained_with": None}, {"measured": [1], "trained_with": "x"}):
        (tmp_path / "out" / "run.json").write_text(json.dumps({**record, **entries}))
        done, _ = asked()
        assert done.code == 0, done.all


def test_figures_of_another_model_do_not_stay(tiny: Tiny, finished: tuple[Any, Path], tmp_path: Path) -> None:
    """An evaluation of another model into the folder, and then a training that does not evaluate."""
    flags, other = finished
    output = tmp_path / "out"
    measured: dict[str, Any] = {"validation_file": tiny.validation, "do_eval": True, "output_dir": output}
    assert run(model_name_or_path=other, **measured).code == 0
    shutil.rmtree(output)
    acquire_folder(output, {"an": "older run"}, overwrite=False)
    assert run(model_name_or_path=other, **measured).code == 0
    (output / "eval_results.json").unlink()
    record = read_json(output / "run.json")
    (output / "run.json").write_text(json.dumps(record | {"identity": read_json(other / "run.json")["identity"]}))
    plain = {**flags, "do_eval": None, "do_predict": None, "validation_file": None, "test_file": None}
    done = run(**plain, output_dir=output)
    assert done.code == 0, done.all
    assert not [name for name in read_json(output / "all_results.json") if name.startswith("eval_")]


def test_figures_of_another_model_say_whose_they_are(asked: Any, tiny: Tiny, tmp_path: Path) -> None:
    """A model is evaluated into the folder of another one's run; the run's own command then shows these figures."""
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "out", other)
    alone: dict[str, Any] = {"model_name_or_path": other, "validation_file": tiny.validation, "do_eval": True}
    assert run(**alone, output_dir=tmp_path / "out").code == 0
    shown, folder = asked(do_eval=None, validation_file=None)
    assert shown.code == 0 and "eval_model" in shown.out, shown.all
    assert read_json(folder / "all_results.json")["eval_model"] == str(other)
    healed, _ = asked()
    assert healed.code == 0 and "eval_model" not in healed.out + (folder / "eval_results.json").read_text()


def test_quantizers_that_are_gone(tiny: Tiny, tmp_path: Path) -> None:
    """The float model would be measured in place of the quantized one."""
    short = {"num_epochs": 1, "qat_start_epoch": 0.3, "observer_epoch": 0.6}
    flags = tiny.flags(recipe_args=short, output_dir=tmp_path / "out", eval_strategy="no")
    assert run(**flags).code == 0
    (tmp_path / "out" / "quantization.json").unlink()
    alone: dict[str, Any] = {
        "model_name_or_path": tmp_path / "out",
        "validation_file": tiny.validation,
        "do_eval": True,
    }
    for refused in (run(**flags), run(**alone, output_dir=tmp_path / "e")):
        assert refused.code == 2 and "quantization.json with their scales is missing" in refused.err


# --- settings beyond the identity -------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["finished", "unfinished"])
@pytest.mark.parametrize(
    "change",
    [{"hidden_act": "relu"}, {"hidden_dropout_prob": 0.5}, {"num_attention_heads": 2}],
    ids=lambda change: next(iter(change)),
)
def test_another_configuration_is_another_model(
    state: str, change: dict[str, Any], asked: Any, finished: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(finished[0]["model_name_or_path"], model)
    (model / "config.json").write_text(json.dumps(read_json(model / "config.json") | change))
    if state == "unfinished":
        record = read_json(tmp_path / "out" / "run.json")
        (tmp_path / "out" / "run.json").write_text(json.dumps(record | {"finished": False}))
    refused, _ = asked(model_name_or_path=model)
    assert refused.code == 2 and f"config.{next(iter(change))} (" in refused.err, refused.all


def test_an_unfinished_run_goes_on_judged_as_it_began(tiny: Tiny, tmp_path: Path) -> None:
    flags = tiny.flags(load_best_model_at_end=True, metric_for_best_model="accuracy", output_dir=tmp_path / "out")
    assert run(**flags).code == 0
    record = read_json(tmp_path / "out" / "run.json")
    (tmp_path / "out" / "run.json").write_text(json.dumps(record | {"finished": False}))
    for changed in ({"greater_is_better": False}, {"metric_for_best_model": "loss"}):
        refused = run(**{**flags, **changed})
        assert (
            refused.code == 2
            and f"{next(iter(changed))} (" in refused.err
            and "an unfinished run with this recipe" in refused.err
        )
    assert run(**flags).code == 0


def test_one_shot_of_a_model_whose_labels_were_put_right(
    tiny: Tiny, finished: tuple[Any, Path], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(finished[1], model)
    recipe = tmp_path / "quantize.yaml"
    recipe.write_text("modifiers:\n  - !QuantizationModifier {start_epoch: 0.0}\n")
    flags: dict[str, Any] = {
        "one_shot": True,
        "recipe": recipe,
        "train_file": tiny.train,
        "output_dir": tmp_path / "out",
    }
    assert run(model_name_or_path=model, **flags).code == 0
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    (model / "config.json").write_text(json.dumps(read_json(model / "config.json") | names))
    refused = run(model_name_or_path=model, **flags)
    assert refused.code == 2 and "label_names (['0', '1'] there, ['bad', 'good'] here)" in refused.err, refused.all
