"""report.html: what is in it, that it is safe and complete in one file, and that odd values do not break it."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_folders import (
    LAYERS,
    STRUCTURE,
    export_report,
    files_of_a_run,
    full_log_entry,
    log_entry,
    write_export,
    write_run,
)

from sparse_accel.errors import UsageError
from sparse_accel.report import write_comparison, write_report
from sparse_accel.wilson_interval import wilson_interval

CHARTS = (
    "Loss training loss 0.2 task loss 0.1 validation loss 0.5",
    "Validation figures validation accuracy 70.0% teacher, accuracy: 75.00%",
    "mse last: 2",
    "Learning rate last: 0",
    "Weight decay last: 0.0025",
    "Sparsity, fraction of zeros encoder 90.0% model 40.0%",
    "Gradient norm last: 2",
    "Agreement with the teacher last: 90.0%",
    "Tokens per second last: 1,004",
    "Peak memory, GB CPU 1.5 GPU 3.5",
    "Padding, fraction of tokens last: 10.0%",
    "Clipped values, fraction median 0.16% block 0 output.dense.input 0.16%",
    "Ranges of activations",
    "Ranges of weights",
)
# What an unfinished run does not have.
FINAL = ("trainer_state.json", "all_results.json", "evaluation.json", "quantization.json", "sparsity.json")
HOSTILE = "</style></script><script>alert(1)</script><img src=x onerror=alert(2)>'\"&{{ 7*7 }}$x^2$"


class Reader(HTMLParser):
    """The elements, attributes and texts of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "br", "wbr", "link", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def read(folder: Path) -> Reader:
    return Reader(write_report(folder))


# --- what is in it ----------------------------------------------------------------------------------------------------


def test_the_figures_of_a_run_are_on_its_page(tmp_path: Path) -> None:
    history = [full_log_entry(epoch) for epoch in (1.0, 2.0, 3.0, 4.0)]
    folder = write_run(tmp_path / "run", trainer_state={"log_history": history})
    write_export(tmp_path / "deployment", folder)
    text = read(folder).text
    for chart in CHARTS:
        assert chart in text
    low, high = wilson_interval(0.7, 60)
    assert f"{100 * low:.1f}% to {100 * high:.1f}%" in text
    assert "70.00%" in text and "75.00%" in text and "this model: −5.00 points" in text
    assert "90.0% 45.0% of the whole model" in text and "14 of 14" in text and "2 min 5 s" in text
    assert "4 epochs, 40 steps" in text and "torch 2.13.0" in text and "bert, 2 layers of width 16" in text
    assert "quantization-aware training begins" in text and "quantization ranges freeze" in text
    assert "row 17: pos at 98.0%, labelled neg" in text and "a dull film" in text
    assert "20 66.7%" in text and "10 33.3%" in text  # the confusion matrix, with fractions of its rows
    assert "INT8 + sparse kernels" in text and "5× as fast as float" in text and "25.0%" in text
    assert "1 of 1 checks passed" in text and "−1.5" in text and "2.75" in text
    for value in LAYERS.values():
        assert f"{100 * value:.1f}" in text


def test_files_of_an_older_version_are_enough(tmp_path: Path) -> None:
    """No evaluation.json, no environment.json: the figures are those of all_results.json, without an interval."""
    folder = write_run(tmp_path / "run", without=("evaluation.json", "environment.json", "quantization.json"))
    text = read(folder).text
    assert "70.00%" in text and "has no interval" in text and "quantizers, in the order" not in text


def test_an_unfinished_run_is_shown_up_to_its_checkpoint(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", without=FINAL, run={"finished": False})
    for step in (9, 10):
        (folder / f"checkpoint-{step}").mkdir()
        state = {"log_history": [log_entry(1.0, eval_accuracy=step / 100)]}
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    text = read(folder).text
    assert "not finished: as of checkpoint-10" in text and "last: 10.0%" in text and "last: 9.0%" not in text


def test_the_page_of_an_export_has_its_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for name in ("deployment", "other"):
        write_export(tmp_path / name, folder)
    page = read(tmp_path / "other")
    assert "export of" in page.text and "70.00%" in page.text and "Training" in page.text
    assert "deployment" not in page.text  # another export of the same run
    alone = read(write_export(tmp_path / "alone", "someone/model"))
    assert "no run in that folder now" in alone.text and "INT8 + sparse kernels" in alone.text


def test_an_export_without_some_structure(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    latency = export_report(folder)["latency"]
    for times in latency["onnxruntime"].values():
        times |= {"float, full size": 2 * times["float"], "quantized, full size": 2 * times["quantized"]}
    write_export(tmp_path / "deployment", folder, structure=STRUCTURE, latency=latency)
    text = read(folder).text
    assert "Structure that was removed" in text and "by block: 3, 1" in text and "57.8%" in text
    assert "INT8, full size" in text and "10× as fast as float, full size" in text  # 80 of 8 ms
    assert "Structure that an export removes" not in text
    sparsity = json.loads((folder / "sparsity.json").read_text())
    (folder / "sparsity.json").write_text(json.dumps({**sparsity, "structure": STRUCTURE}))
    text = read(folder).text
    assert "Structure that an export removes" in text and "without zeros" in text
    (folder / "sparsity.json").write_text(json.dumps(sparsity))
    write_export(tmp_path / "deployment", folder, structure={"before": STRUCTURE["after"], "after": STRUCTURE["after"]})
    text = read(folder).text
    assert "Structure" not in text and "full size" not in text.lower()


def test_an_export_that_is_older_than_the_model_is_marked(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    deployment = write_export(tmp_path / "deployment", folder)
    (folder / "model.safetensors").write_bytes(b"0" * 1500)
    assert "may be of an earlier model" in read(folder).text
    write_export(deployment, folder)
    page = read(folder)
    assert "may be of an earlier model" not in page.text and "1.5 kB" in page.text


def test_a_teacher_is_compared_only_on_the_same_rows(tmp_path: Path) -> None:
    teacher = write_run(tmp_path / "teacher", without=("evaluation.json",), all_results={"eval_accuracy": 0.875})
    flags = files_of_a_run(tmp_path)["arguments.json"] | {"distill_teacher": str(teacher)}
    same = write_run(tmp_path / "same", without=("evaluation.json",), arguments=flags)
    assert "87.50%" in read(same).text
    flags |= {"validation_file": "/data/other.csv"}
    assert "87.50%" not in read(write_run(tmp_path / "other", without=("evaluation.json",), arguments=flags)).text
    (teacher / "all_results.json").touch()  # trained again since: these are not the figures of this run's teacher
    assert "87.50%" not in read(same).text


@pytest.mark.parametrize("precision, is_said", [("float32", False), ("bf16", True), ("fp16", True)])
def test_the_precision_of_evaluations_is_said(precision: str, is_said: bool, tmp_path: Path) -> None:
    environment = files_of_a_run(tmp_path)["environment.json"] | {"precision": precision}
    by_environment = write_run(tmp_path / "one", environment=environment)
    flags = files_of_a_run(tmp_path)["arguments.json"] | ({} if precision == "float32" else {precision: True})
    by_flags = write_run(tmp_path / "two", without=("environment.json",), arguments=flags)
    comparison = write_comparison([by_environment, by_flags], tmp_path / "page.html").read_text(encoding="utf-8")
    for text in (read(by_environment).text, read(by_flags).text, comparison):
        assert ("in mixed precision" in text) == is_said


@pytest.mark.parametrize("accuracy", [0.0, 0.5, 0.7123456, 1.0])
def test_an_accuracy_of_words_has_no_interval(accuracy: float, tmp_path: Path) -> None:
    """Also where accuracy times rows happens to be a whole number. A tagger is judged by its F1."""
    entry = {"rows": 60, "figures": {"precision": 0.1, "f1": 0.1333, "accuracy": accuracy}}
    entry["teacher"] = {"name": "teacher", "figures": {"f1": 0.2, "accuracy": 1.0}}
    config = {"architectures": ["BertForTokenClassification"], "model_type": "bert"}
    for name, headline in (("one", {"headline": "f1"}), ("older", {})):
        folder = write_run(tmp_path / name, evaluation={"validation": entry | headline}, config=config)
        text = read(folder).text
        assert "f1, validation 13.33%" in text and "this model: −6.67 points" in text
        assert "95% interval" not in text and "has no interval" not in text
    assert (
        "95% interval" not in write_comparison([tmp_path / "one", tmp_path / "older"], tmp_path / "c.html").read_text()
    )


def test_a_run_is_judged_by_the_recorded_figure(tmp_path: Path) -> None:
    entry = {"rows": 60, "headline": "combined_score", "figures": {"accuracy": 0.7, "combined_score": 0.65}}
    assert (
        "combined_score, validation 65.00%" in read(write_run(tmp_path / "run", evaluation={"validation": entry})).text
    )
    entry["headline"] = "no such figure"
    assert "accuracy, validation 70.00%" in read(write_run(tmp_path / "run", evaluation={"validation": entry})).text


def test_of_many_labels_the_most_frequent_confusions_are_shown(tmp_path: Path) -> None:
    labels = [f"label {number}" for number in range(31)]
    confusion = [[100 if row == column else 0 for column in range(31)] for row in range(31)]
    for column in range(1, 31):
        confusion[0][column] = column
    entry = {"validation": {"labels": labels, "confusion": confusion}}
    text = read(write_run(tmp_path / "run", evaluation=entry)).text
    assert "Confusion matrix" not in text and "Most frequent confusions labelled predicted rows" in text
    assert "label 0 label 30 30 label 0 label 29 29" in text
    assert "of 31 labels would be too large to read: 20 of 30 kinds of confusions are listed." in text
    for column in range(1, 31):
        confusion[0][column] = 0
    text = read(write_run(tmp_path / "run", evaluation=entry)).text
    assert "labels would be too large to read: nothing was labelled wrongly." in text and "Most frequent" not in text


def test_directions_of_texts_stay_apart(tmp_path: Path) -> None:
    """A label from right to left, or one that turns the direction, moves no words around it."""
    labels = ["חיובי", "\u202eabc"]
    mistake = {"row": 1, "text": "סרט משעמם", "label": labels[0], "predicted": labels[1], "confidence": 0.9}
    entry = {"validation": {"labels": labels, "confusion": [[1, 2], [3, 4]], "mistakes": [mistake]}}
    text = write_report(write_run(tmp_path / "run", evaluation=entry)).read_text(encoding="utf-8")
    assert '<p dir="auto">סרט משעמם</p>' in text
    for label in labels:
        assert text.count(label) == text.count(f"<bdi>{label}</bdi>") == 3  # column, row, mistake


def test_no_recipe_no_events(tmp_path: Path) -> None:
    assert "What the recipe does" not in read(write_run(tmp_path / "run", recipe=None)).text
    broken = read(write_run(tmp_path / "run", recipe="modifiers: [!NoSuchModifier {}]\n"))
    assert "The recipe cannot be read" in broken.text and "70.00%" in broken.text


# --- one safe file ----------------------------------------------------------------------------------------------------


def poisoned(content: Any) -> Any:
    """A file with a hostile text for every text and every name in it that a person chooses."""
    if isinstance(content, dict):
        return {name: poisoned(value) for name, value in content.items()} | {HOSTILE: HOSTILE}
    if isinstance(content, list):
        return [poisoned(value) for value in content]
    return HOSTILE if isinstance(content, str) else content


def test_all_text_is_inert(tmp_path: Path) -> None:
    folder = tmp_path / "<script>alert(3)</script>"
    contents = {name.removesuffix(".json"): poisoned(each) for name, each in files_of_a_run(folder).items()}
    contents["trainer_state"] = {"log_history": [log_entry(1.0, **{f"eval_{HOSTILE}_accuracy": 0.5, HOSTILE: 1.0})]}
    contents["evaluation"] = {name: each for name, each in contents["evaluation"].items() if isinstance(each, dict)}
    contents["quantization"]["quantizers"].pop(HOSTILE)
    write_run(folder, recipe=None, **contents)
    write_export(
        tmp_path / "deployment", folder, **{k: poisoned(v) for k, v in export_report(folder).items() if k != "source"}
    )
    page = read(folder)
    assert not {"script", "img", "iframe", "object", "embed", "link", "base", "form"} & set(page.tags)
    assert not [
        name for _, name, _ in page.attributes if name.startswith("on") or name in ("src", "action", "xlink:href!")
    ]
    assert {value[:1] for _, name, value in page.attributes if name in ("href", "xlink:href")} == {"#"}
    assert page.text.count("<script>alert(1)</script>") > 20 and "{{ 7*7 }}" in page.text
    assert page.open == []


def test_the_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "run"))
    text = page.read_text(encoding="utf-8")
    assert "default-src 'none'" in text and "<script" not in text and "@import" not in text
    assert not re.search(r"https?://(?!www\.w3\.org/)", text)
    assert re.findall(r"url\((?!#)", text) == []


def test_the_same_files_give_the_same_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    assert write_report(folder, tmp_path / "copy.html").read_bytes() == first


def test_ids_and_links(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_export(tmp_path / "deployment", folder)
    page = read(folder)
    ids = [value for _, name, value in page.attributes if name == "id"]
    links = {value[1:] for _, name, value in page.attributes if name in ("href", "xlink:href")}
    clips = set(re.findall(r"url\(#([^)]*)\)", write_report(folder).read_text()))
    assert len(ids) == len(set(ids)) and links | clips <= set(ids)


def test_the_page_of_a_large_model_and_a_long_run_stays_small(tmp_path: Path) -> None:
    names = [f"bert.encoder.layer.{block}.{kind}" for block in range(12) for kind in ("q", "k", "v", "o", "up", "down")]
    layers = {f"{name}.weight": {"zeros": 1, "weights": 2, "sparsity": 0.9} for name in names}
    kinds = ("weight_quantizer", "input_quantizer")
    ranges = {"bits": 8, "minimum": [-1.0] * 768, "maximum": [1.0] * 768, "scale": [0.1], "zero_point": [0]}
    history = [
        full_log_entry(step / 2500) | log_entry(step / 2500, **{"train/loss": 1 + math.sin(step)})
        for step in range(1, 10_000)
    ]
    folder = write_run(
        tmp_path / "run",
        trainer_state={"log_history": history},
        sparsity={"layers": layers},
        quantization={"quantizers": {f"{name}.{kind}": ranges for name in names for kind in kinds}},
    )
    assert write_report(folder).stat().st_size < 600_000


# --- odd values -------------------------------------------------------------------------------------------------------


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    history = [log_entry(1.0), log_entry(2.0, **{"train/loss": math.nan, "eval_accuracy": math.inf}), log_entry(3.0)]
    history.append({"step": 4, "epoch": 4.0, "train/learning_rate": None, "sparsity/encoder": "many"})
    folder = write_run(tmp_path / "run", trainer_state={"log_history": history})
    text = read(folder).text
    assert "training loss: 1 of 3 values are NaN or infinite, the first at epoch 2" in text
    all_nan = write_run(tmp_path / "nan", trainer_state={"log_history": [{"epoch": 1.0, "train/loss": math.nan}]})
    assert "Training" in read(all_nan).text


def leaves(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values in a file."""
    yield path
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in entries:
        yield from leaves(value, (*path, key))


def replaced(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    content = copy.copy(content)
    content[path[0]] = replaced(content[path[0]], path[1:], value)
    return content


ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, math.nan, math.inf, -1, 0, 1e308, True, "", "word", [], {}, [[]], [None], {"a": None}]
)
FILES = files_of_a_run(Path("/run")) | {"export_report.json": export_report("/run")}
PLACES = [(name, path) for name, content in FILES.items() for path in leaves(content)]


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLACES), ODD), min_size=1, max_size=3, unique_by=lambda each: each[0][0]))
def test_an_odd_value_anywhere_is_shown_or_refused(
    tmp_path: Path, changes: list[tuple[tuple[str, tuple[Any, ...]], Any]]
) -> None:
    contents = files_of_a_run(tmp_path / "run") | {"export_report.json": export_report(tmp_path / "run")}
    for (name, path), value in changes:
        contents[name] = replaced(contents[name], path, value)
    report = contents.pop("export_report.json")
    folder = write_run(tmp_path / "run", **{name.removesuffix(".json"): each for name, each in contents.items()})
    (tmp_path / "deployment").mkdir(exist_ok=True)
    (tmp_path / "deployment" / "export_report.json").write_text(json.dumps(report))
    other = write_run(tmp_path / "other")
    for each in ([folder], [tmp_path / "deployment"], [folder, other]):
        try:
            page = write_report(each[0]) if len(each) == 1 else write_comparison(each, tmp_path / "page.html")
        except UsageError as error:
            assert ".json" in str(error)
        else:
            assert Reader(page).open == []


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(files_of_a_run(Path("/run"))))
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for text in ("{", "[1]", '{"a": ', "\x00"):
        (folder / name).write_text(text)
        with pytest.raises(UsageError, match=f"{re.escape(str(folder / name))} is damaged"):
            write_report(folder)
        assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("trainer_state", {"log_history": {"a": 1}}),
        ("trainer_state", {"log_history": [1]}),
        ("quantization", {"quantizers": {"a": 3}}),
        ("evaluation", {"validation": [1]}),
    ],
)
def test_a_file_of_another_shape_is_named(name: str, content: Any, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", **{name: content})
    with pytest.raises(UsageError, match=rf"{name}\.json is damaged"):
        write_report(folder)


def test_a_damaged_export_next_to_a_run_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_export(tmp_path / "deployment", folder)
    (tmp_path / "deployment" / "export_report.json").write_text("{")
    assert "is left out" in read(folder).text
    with pytest.raises(UsageError, match=r"export_report\.json is damaged"):
        write_report(tmp_path / "deployment")


def test_a_folder_that_no_run_wrote(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        write_report(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UsageError, match=r"is not the output folder of a run .*--output_dir"):
        write_report(tmp_path)
