"""Model cards of made-up folders: what they say, what they leave out, and whose they are."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from places import GOLDEN
from report_folders import STRUCTURE
from stand_in_hub import card_problems

from sparse_accel.errors import UsageError
from sparse_accel.publish import write_card
from sparse_accel.publish.__main__ import main
from sparse_accel.publish.card import card_at_end, card_text, cell, code_span, is_ours
from sparse_accel.publish.facts import deployment_of, facts_of, is_hub_id, without_paths

OLD_RUN = GOLDEN / "old_run"
CONFIG: dict[str, Any] = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "num_hidden_layers": 2,
    "id2label": {"0": "neg", "1": "pos", "10": "last"},
}


def make(folder: Path, **files: Any) -> Path:
    """A folder with a model, and JSON files by name; None leaves one out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    for name, content in {"config": CONFIG, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def evaluated(figures: dict[str, float], rows: int = 60, **origin: Any) -> dict[str, Any]:
    """What evaluation.json says of a split, by default of all rows of a file."""
    origin = {"name": "/data/mine.csv", "rows": rows, "dataset": None, "config": None, "split": None} | origin
    return {"source": "/data/mine.csv", "rows": rows, "origin": origin, "figures": figures, "teacher": None}


def results_of(folder: Path) -> list[dict[str, Any]]:
    """The results in the front matter of a card."""
    found: list[dict[str, Any]] = data_of(folder)["model-index"][0]["results"]
    return found


def data_of(folder: Path) -> dict[str, Any]:
    text = card_text(folder)
    assert card_problems(text) == []
    found: dict[str, Any] = ModelCard(text).data.to_dict()
    return found


# --- whose it is ------------------------------------------------------------------------------------------------------


def test_written_again_as_long_as_nobody_changed_it(tmp_path: Path) -> None:
    folder = make(tmp_path / "run", eval_results={"eval_accuracy": 0.5})
    assert write_card(folder) == "written" and "0.5000" in (folder / "README.md").read_text()
    (folder / "eval_results.json").write_text('{"eval_accuracy": 0.75}')
    assert write_card(folder) == "written" and "0.7500" in (folder / "README.md").read_text()
    changed = (folder / "README.md").read_text().replace("# run", "# My run")
    (folder / "README.md").write_text(changed)
    assert write_card(folder) == "kept" and (folder / "README.md").read_text() == changed


def test_another_form_of_line_ends_is_no_change(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    write_card(folder)
    (folder / "README.md").write_bytes((folder / "README.md").read_bytes().replace(b"\n", b"\r\n"))
    assert is_ours(folder / "README.md")


@pytest.mark.parametrize("text", [b"", b"# Mine\n", b"\xff\xfe", b"---\nlicense: mit\n---\n"])
def test_a_persons_card_is_kept(text: bytes, tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    (folder / "README.md").write_bytes(text)
    assert write_card(folder) == "kept" and (folder / "README.md").read_bytes() == text


def test_no_card_where_there_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "eval_results.json").write_text('{"eval_accuracy": 0.5}')
    assert write_card(tmp_path) == "none" and not (tmp_path / "README.md").exists()
    (tmp_path / "README.md").write_text("# Mine\n")
    assert write_card(tmp_path) == "none" and write_card(tmp_path / "missing") == "none"
    folder = make(tmp_path / "run")
    assert write_card(folder, again=True) == "none" and not (folder / "README.md").exists()


def test_the_command_says_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "run")

    def card(*words: object) -> str:
        monkeypatch.setattr("sys.argv", ["publish", *map(str, words), "--card"])
        main()
        return capsys.readouterr().out

    assert card(folder) == f"{folder / 'README.md'}\n" and (folder / "README.md").is_file()
    (folder / "README.md").write_text("# Mine\n")
    assert "so it is kept" in card(folder)
    for nothing in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match="neither a trained model"):
            card(nothing)
    assert capsys.readouterr().out == ""


def test_a_card_that_cannot_be_written_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is finished: its trackers, artifacts and upload come after the card."""
    folder = make(tmp_path / "run")

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("sparse_accel.publish.card.write_text", full)
    assert card_at_end(folder) is None
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("warning: README.md was not written: ") and "No space left on device" in said
    assert f"python -m sparse_accel.publish {folder} --card" in said


def test_the_card_of_an_old_run_is_the_same_each_time(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(OLD_RUN / "finished", tmp_path / "finished"))
    assert write_card(folder) == "written"
    first = (folder / "README.md").stat().st_mtime_ns
    assert write_card(folder) == "written" and (folder / "README.md").stat().st_mtime_ns == first
    text = (folder / "README.md").read_text()
    assert "14 of 14 Linear layers" in text and "quantization ranges freeze" in text and "/tmp" not in text


def test_the_card_of_an_old_deployment() -> None:
    text = card_text(OLD_RUN / "deployment")
    assert "| agreement | pass |" in text and "/tmp" not in text and "validation.csv" in text
    assert ModelCard(text).data.to_dict()["library_name"] == "onnx"


# --- metadata ---------------------------------------------------------------------------------------------------------


def test_a_glue_task(tmp_path: Path) -> None:
    results = {"eval_accuracy": 0.8, "eval_loss": 0.4, "eval_accuracy_mm": 0.7, "eval_f1_macro": float("nan")}
    hub: dict[str, Any] = {"dataset": "nyu-mll/glue", "config": "mnli", "name": "nyu-mll/glue mnli"}
    evaluation = {
        "validation": evaluated({"accuracy": 0.8, "loss": 0.4}, split="validation_matched", **hub),
        "validation_mismatched": evaluated({"accuracy": 0.7}, split="validation_mismatched", **hub),
    }
    found = data_of(
        make(tmp_path / "run", arguments={"task_name": "mnli"}, eval_results=results, evaluation=evaluation)
    )
    assert found["datasets"] == ["nyu-mll/glue"] and found["metrics"] == ["accuracy"]
    (model,) = found["model-index"]
    sets = [
        (each["dataset"]["config"], each["dataset"]["split"], each["metrics"][0]["value"]) for each in model["results"]
    ]
    assert sets == [("mnli", "validation_matched", 0.8), ("mnli", "validation_mismatched", 0.7)]


@pytest.mark.parametrize(
    ("arguments", "datasets"),
    [
        ({"dataset_name": "rotten_tomatoes"}, ["cornell-movie-review-data/rotten_tomatoes"]),
        ({"dataset_name": "who/rows", "dataset_config_name": "en"}, ["who/rows"]),
        ({"dataset_name": "/data/mine"}, None),
        ({"train_file": "/data/train.csv", "validation_file": "/data/mine.csv"}, None),
        ({"task_name": "ner", "train_file": "/data/train.csv"}, None),
    ],
)
def test_only_data_of_the_hub_is_a_dataset(arguments: dict[str, Any], datasets: Any, tmp_path: Path) -> None:
    found = data_of(make(tmp_path / "run", arguments=arguments, eval_results={"eval_accuracy": 0.5}))
    assert found.get("datasets") == datasets
    assert "/data/" not in card_text(tmp_path / "run")


def test_a_base_model_is_followed_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = make(tmp_path / "first", arguments={"model_name_or_path": "bert-base-uncased"})
    second = make(tmp_path / "outputs" / "second", arguments={"model_name_or_path": str(first)})
    third = make(tmp_path / "third", arguments={"model_name_or_path": "outputs/second", "output_dir": "third"})
    assert data_of(third)["base_model"] == data_of(second)["base_model"] == "google-bert/bert-base-uncased"
    monkeypatch.chdir("/")  # a path that looks like an id, found from where the run was started
    assert data_of(third)["base_model"] == "google-bert/bert-base-uncased"


@pytest.mark.parametrize(
    ("name", "base"),
    [
        (
            "zoo:nlp/masked_language_modeling/obert-base/pytorch/huggingface/wikipedia_bookcorpus/pruned90-none",
            "RedHatAI/",
        ),
        ("zoo:no/such/stub", None),
        ("/gone/folder", None),
        ("./gone", None),
        ("a/b/c", None),
        (None, None),
        (3, None),
    ],
)
def test_base_models(name: Any, base: str | None, tmp_path: Path) -> None:
    found = data_of(make(tmp_path / "run", arguments={"model_name_or_path": name})).get("base_model")
    assert str(found).startswith(base or "None")


def test_a_model_that_is_its_own_base_ends(tmp_path: Path) -> None:
    folder = make(tmp_path / "run", arguments={"model_name_or_path": str(tmp_path / "run")})
    assert facts_of(folder).base_model() is None


def test_a_foreign_folder_says_where_it_is_from(tmp_path: Path) -> None:
    named = make(tmp_path / "named", config=CONFIG | {"_name_or_path": "who/configured"})
    carded = make(tmp_path / "carded")
    (carded / "README.md").write_text("---\nbase_model:\n- who/carded\n---\n")
    for start, expected in ((named, "who/configured"), (carded, ["who/carded"])):
        folder = make(tmp_path / "run", arguments={"model_name_or_path": str(start), "distill_teacher": str(start)})
        assert data_of(folder)["base_model"] == expected and "distillation" in data_of(folder)["tags"]
        assert "a local model, trained from" in card_text(folder)


# --- figures ----------------------------------------------------------------------------------------------------------


def test_figures_of_another_model_are_not_its_own(tmp_path: Path) -> None:
    folder = make(tmp_path / "run", eval_results={"eval_accuracy": 0.9, "eval_model": "/other/model"})
    assert "model-index" not in data_of(folder) and "was not evaluated" in card_text(folder)


def test_teacher_and_rows(tmp_path: Path) -> None:
    found = evaluated({"accuracy": 0.9}, rows=1066) | {"teacher": {"figures": {"accuracy": 0.95}}}
    folder = make(tmp_path / "run", eval_results={"eval_accuracy": 0.9}, evaluation={"validation": found})
    assert "| Accuracy | 0.9000 | 0.9500 |" in card_text(folder) and "On mine.csv (1,066 rows):" in card_text(folder)
    (folder / "eval_results.json").write_text('{"eval_accuracy": 0.8}')  # evaluated again, on other rows
    assert "| Accuracy | 0.8000 |" in card_text(folder) and "0.9500" not in card_text(folder)
    assert "mine.csv" not in card_text(folder)


SST2 = {"dataset": "nyu-mll/glue", "config": "sst2", "name": "nyu-mll/glue sst2"}
HELD_OUT = {"name": "/data/train.csv", "rows": 60}


@pytest.mark.parametrize(
    ("origin", "rows", "dataset", "words"),
    [
        ({**SST2, "split": "test"}, 60, ("nyu-mll/glue", "nyu-mll/glue sst2", "sst2", "test"), "(test, 60 rows)"),
        (
            {**SST2, "split": "validation", "rows": 872},
            16,
            ("nyu-mll/glue", "nyu-mll/glue sst2 (16 of 872 rows of validation)", "sst2", None),
            "(16 of 872 rows of validation)",
        ),
        ({}, 60, ("csv", "mine.csv", None, None), "On mine.csv (60 rows)"),
        (HELD_OUT, 6, ("csv", "train.csv (6 of 60 rows)", None, None), "On train.csv (6 of 60 rows)"),
        ({"name": "/data/my.set, split 'dev'"}, 60, ("folder", "my.set, split 'dev'", None, None), "(60 rows)"),
    ],
)
def test_the_rows_that_were_measured(origin: Any, rows: int, dataset: Any, words: str, tmp_path: Path) -> None:
    """They are those of the evaluation, whatever the run was trained with; a part of a split is not the split."""
    entry = evaluated({"accuracy": 0.9}, **{"rows": rows, **origin}) | {"rows": rows}
    arguments = {"task_name": "cola", "validation_file": "/data/other.csv", "eval_on_test": not origin.get("split")}
    results = {"eval_accuracy": 0.9}
    folder = make(tmp_path / "run", arguments=arguments, eval_results=results, evaluation={"validation": entry})
    (result,) = results_of(folder)
    keys = ("type", "name", "config", "split")
    assert tuple(result["dataset"].get(key) for key in keys) == dataset and words in card_text(folder)


@pytest.mark.parametrize("known", [{}, {"source": "/data/mine.csv", "rows": 60, "figures": {"accuracy": 0.9}}])
def test_rows_that_were_not_recorded_have_no_name(known: dict[str, Any], tmp_path: Path) -> None:
    """As older versions wrote it: what the run was trained with need not be what was evaluated later."""
    arguments, evaluation = {"task_name": "sst2"}, {"validation": known} if known else {}
    folder = make(tmp_path / "run", arguments=arguments, eval_results={"eval_accuracy": 0.9}, evaluation=evaluation)
    assert "model-index" not in data_of(folder)
    assert "On rows that were not recorded:" in card_text(folder) and "| Accuracy | 0.9000 |" in card_text(folder)


@pytest.mark.parametrize(
    "name", ["arguments", "run", "sparsity", "eval_results", "evaluation", "environment", "train_results"]
)
@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"validation": 3, "identity": 3, "encoder_linear": 3}'])
def test_damaged_files_are_left_out(name: str, content: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    (folder / f"{name}.json").write_text(content)
    assert write_card(folder) == "written" and (folder / "README.md").is_file()


# --- text -------------------------------------------------------------------------------------------------------------


def test_names_from_data_are_inert(tmp_path: Path) -> None:
    labels = ["<script>alert(1)</script>", "a | b", "__init__", "two\nlines", "[x](http://y)", "R&D"]
    labels += ["/etc/passwd label", "`", "c`d``", "\\`e", "---"]
    config = CONFIG | {"id2label": dict(enumerate(labels))}
    folder = make(
        tmp_path / "run",
        config=config,
        arguments={"train_file": "/data/<b>|x`y.csv"},
        eval_results={"eval_<i>|": 0.5},
    )
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(card_text(folder).partition("\n---\n")[2])
    shown = [html.unescape(text) for text in re.findall("<code>(.*?)</code>", page, re.DOTALL)]
    assert shown[1 : 1 + len(labels)] == [label.replace("\n", " ") for label in labels]
    assert "<b>|x`y.csv" in shown and "<td>&lt;i&gt;|</td>" in page
    assert not re.search("<(script|b|i|a href=.http://y)", page)


@given(st.text(alphabet="a` |\\<&", max_size=12).map(str.strip))
def test_code_is_shown_as_it_is(text: str) -> None:
    page = MarkdownIt("commonmark").render(f"x {code_span(text)} y")
    (shown,) = re.findall("<code>(.*?)</code>", page, re.DOTALL)
    assert html.unescape(shown).strip() == " ".join(text.split())


@given(st.text(max_size=60))
def test_a_cell_is_one_line_without_pipes(text: str) -> None:
    found = cell(text)
    assert "\n" not in found and "<" not in found and found.count("|") == found.count("\\|")


@pytest.mark.parametrize(
    ("text", "public"),
    [
        (
            "21 sentences of /tmp/old run/validation.csv (at most 1)",
            "21 sentences of old run/validation.csv (at most 1)",
        ),
        ("'/srv/me/data.csv'.", "'data.csv'."),
        ("~/data/x.csv", "x.csv"),
        (r"C:\Users\me\x.csv", "x.csv"),
        (
            "a / b, and/or, 1/2, https://huggingface.co/a/b, ../deployment",
            "a / b, and/or, 1/2, https://huggingface.co/a/b, ../deployment",
        ),
    ],
)
def test_paths_are_not_published(text: str, public: str) -> None:
    assert without_paths(text) == public


def test_a_deployment_has_no_files_of_the_model(tmp_path: Path) -> None:
    folder, found = make(tmp_path / "run", quantization={}, sparsity={}), tmp_path / "deployment"
    shutil.copytree(OLD_RUN / "deployment", found)
    report = json.loads((found / "export_report.json").read_text())
    report["source"]["folder"] = str(folder.resolve())
    (found / "export_report.json").write_text(json.dumps(report))
    of_model, of_file = card_text(folder), card_text(found)
    assert "`quantization.json` has the ranges" in of_model and "as a float model, without its quantizers" in of_model
    assert "quantization.json" not in of_file and "model.safetensors" not in of_file
    sparse = make(tmp_path / "sparse", sparsity={"encoder_linear": {"sparsity": 0.9}})
    assert "as a float model with zeros:" in card_text(sparse)


def test_the_deployment_next_to_a_model(tmp_path: Path) -> None:
    folder, found = make(tmp_path / "run"), tmp_path / "deployment"
    shutil.copytree(OLD_RUN / "deployment", found)
    report = json.loads((found / "export_report.json").read_text())
    assert deployment_of(folder) is None  # of another model
    report["source"]["folder"] = str(folder.resolve())
    (found / "export_report.json").write_text(json.dumps(report))
    assert deployment_of(folder) == found and "../deployment" in card_text(folder)
    report |= {"files": {"model.onnx": {"bytes": 5}, "other": {}}, "latency": {"onnxruntime": {"1": {"float": 2.0}}}}
    report["latency"]["other"] = {"1": {"float": 2.0, "quantized": 1.0}, "8": {"float": 2.0}, "9": None}
    (found / "export_report.json").write_text(json.dumps(report))  # as another version may write it
    assert "| model.onnx | 0.0 MB | 0.05 |" in card_text(folder) and "| 2.0 ms | 1.0 ms |" in card_text(folder)
    (found / "export_report.json").write_text("{")
    assert deployment_of(folder) is None and "onnx" not in card_text(folder)


def test_structure_that_the_deployment_lacks(tmp_path: Path) -> None:
    folder, found = make(tmp_path / "run"), tmp_path / "deployment"
    shutil.copytree(OLD_RUN / "deployment", found)
    report = json.loads((found / "export_report.json").read_text())
    report["source"]["folder"] = str(folder.resolve())
    assert "full size" not in card_text(folder)
    report |= {"structure": STRUCTURE, "latency": {"OpenVINO": {"1": {"float": 2.0, "quantized, full size": 3.0}}}}
    (found / "export_report.json").write_text(json.dumps(report))
    for text in (card_text(folder), card_text(found)):
        assert "| attention heads | 8 | 4 |" in text and "| parameters | 900 | 600 |" in text
        assert "| OpenVINO: rows | float | INT8, full size |" in text
    report["structure"] = {"before": {"parameters": "many"}, "after": {"parameters": None}, "other": 1}
    (found / "export_report.json").write_text(json.dumps(report))  # as another version may write it
    assert "trained, full size" not in card_text(folder)


@given(st.text(alphabet="abA0-_./", max_size=12))
def test_ids_are_those_of_the_hub(name: str) -> None:
    from huggingface_hub.utils._validators import validate_repo_id

    if is_hub_id(name):
        validate_repo_id(name)
