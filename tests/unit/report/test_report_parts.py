"""The parts of a report: series, charts, figures as text, colours, the comparison, the command."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT
from report_folders import RECIPE, files_of_a_run, log_entry, write_export, write_run

from sparse_accel import report
from sparse_accel.errors import UsageError
from sparse_accel.report import refresh_report, report_at_end, units, write_comparison, write_report
from sparse_accel.report.__main__ import main
from sparse_accel.report.charts import COLOURS, Line, Style, line_chart, range_chart
from sparse_accel.report.comparison import names_of_runs
from sparse_accel.report.history import Event, events_of, last_epoch, series, thinned
from sparse_accel.report.one_run import page_of_run
from sparse_accel.report.page import render
from sparse_accel.report.read import Reference, Run, read_run

# --- series and events ------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), min_size=1, max_size=3000))
def test_a_thinned_series_keeps_its_extremes_its_ends_and_its_gaps(values: list[float]) -> None:
    points = [(float(number), value) for number, value in enumerate(values)]
    found = thinned(points)
    assert (
        len(found) <= 650
        and set(found) <= {*points, *found}
        and [epoch for epoch, _ in found] == sorted(epoch for epoch, _ in found)
    )
    assert found[0] is points[0] and found[-1] is points[-1]
    finite = [value for value in values if not math.isnan(value)]
    kept = [value for _, value in found if not math.isnan(value)]
    assert not finite or (min(kept), max(kept)) == (min(finite), max(finite))
    assert any(map(math.isnan, values)) == any(math.isnan(value) for _, value in found)


def test_events_are_numbered_between_start_and_end(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    events = events_of(run)
    assert [(event.number, event.when) for event in events] == [
        (0, "start"),
        (1, "epoch 2"),
        (2, "epoch 3"),
        (0, "end"),
    ]
    assert "quantization-aware training begins" in events[1].texts[0]
    assert series(run, "train/loss") == [(epoch, 1 / (1 + epoch)) for epoch in (1.0, 2.0, 3.0, 4.0)]
    assert series(run, "train/never") == []


@pytest.mark.filterwarnings("error")
def test_values_that_no_chart_can_show_are_left_out() -> None:
    """Of 1e308 and -1e308 not even the difference is a number."""
    values = (1.0, math.inf, 1e308, -1e308, 1e300)
    run = Run(Path("run"), history=[{"epoch": float(n), "train/loss": each} for n, each in enumerate(values)])
    run.history += [{"epoch": 1.0, "eval_accuracy": 0.5}, {"epoch": 1e308, "eval_accuracy": 0.6}]
    run.references = [Reference("teacher", "t", {"accuracy": 1e308})]
    run.quantization = {"a_weight_quantizer": {"minimum": -1e308, "maximum": 1e308}}
    points = series(run, "train/loss")
    assert [epoch for epoch, value in points if math.isnan(value)] == [1, 2, 3] and points[4] == (4, 1e300)
    assert series(run, "eval_accuracy") == [(1.0, 0.5)] and last_epoch([run]) == 4
    text = render(page_of_run(run))
    assert "training loss: 3 of 5 values are NaN or infinite" in text and "Ranges of weights" not in text


# --- charts -----------------------------------------------------------------------------------------------------------

POINTS = [(0.0, 1.0), (1.0, math.nan), (2.0, 0.5), (3.0, 0.25)]
EVENTS = [Event(0, 0.0, "start", ("a",)), Event(1, 2.0, "epoch 2", ("b",)), Event(2, 2.05, "epoch 2.05", ("c",))]


def test_a_chart_has_only_the_colours_of_the_page() -> None:
    lines = [Line(str(number), POINTS, Style(number)) for number in range(8)]
    svg = line_chart(lines, EVENTS, level=0.7, name="loss")
    svg += range_chart([(-1.0, 2.0, Style(0)), (-3.0, 1.0, Style(1))], name="ranges")
    used = set(re.findall(r"var\((--[a-z0-9]+)\)", svg))
    assert not re.search(r"#[0-9a-fA-F]{6}", svg) and "font-family" not in svg and "DejaVu" not in svg
    assert used >= {f"--c{number}" for number in range(6)} | {"--ink", "--muted", "--line"}
    style = (ROOT / "sparse_accel" / "report" / "page.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)
    assert all(f"{name}:" in part for name in used for part in (light, dark))


def test_marks_that_are_close_share_a_label() -> None:
    svg = line_chart([Line("loss", POINTS, Style(0))], EVENTS)
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert "1–2" in labels and "1" not in [label for label in labels if label == "1–"]
    apart = line_chart([Line("loss", POINTS, Style(0))], [EVENTS[1]])
    assert "1–2" not in apart


def test_a_gap_is_not_bridged() -> None:
    """Two pieces with a move between them, not one line from the first point to the third."""
    svg = line_chart([Line("loss", [(float(x), math.nan if x == 50 else 1.0 + x) for x in range(100)], Style(0))])
    path = max(re.findall(r' d="([^"]*)"', svg), key=len)
    assert path.count("M ") == 2


def test_styles_differ_in_more_than_colour() -> None:
    styles = [Style(number) for number in range(24)]
    assert len({(style.colour, style.dash) for style in styles}) == 24
    assert len({style.dash for style in styles[:6]}) == 6 == len(set(COLOURS))


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast(scheme: int) -> None:
    """Text as WCAG asks for (4.5), lines as it asks for graphics (3)."""
    style = (ROOT / "sparse_accel" / "report" / "page.css").read_text()
    part = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)[scheme]
    colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", part))
    for ground in ("paper", "raised"):
        assert all(contrast(colours[ground], colours[name]) >= 4.5 for name in ("ink", "muted", "c0"))
        assert all(contrast(colours[ground], colours[f"c{number}"]) >= 3 for number in range(6))
    assert contrast(colours["warn"], colours["ink"]) >= 4.5
    if not scheme:
        assert [colours[f"c{number}"] for number in range(6)] == list(COLOURS)


# --- figures as text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (units.plain(1234567), "1,234,567"),
        (units.plain(-0.00012346), "−0.0001235"),
        (units.plain(0.0000081), "8.1e−6"),
        (units.plain(math.nan), "NaN"),
        (units.plain(-math.inf), "−∞"),
        (units.plain(None), "–"),
        (units.plain("word"), "word"),
        (units.percent(0.8114446, 2), "81.14%"),
        (units.percent(0.00034), "0.034%"),
        (units.percent(0), "0.0%"),
        (units.percent("x"), "–"),
        (units.size(23330382), "23.3 MB"),
        (units.size(999), "999 bytes"),
        (units.size(math.nan), "–"),
        (units.duration(3214.8), "54 min"),
        (units.duration(125), "2 min 5 s"),
        (units.duration(7510), "2 h 5 min"),
        (units.milliseconds(1330.6), "1,331"),
        (units.milliseconds(7.372), "7.37"),
        (units.figure("accuracy", 0.5), "50.00%"),
        (units.figure("loss", 0.64555), "0.6455"),
        (units.difference("f1_macro", -0.0123), "−1.23 points"),
        (units.difference("mse", 1.5), "+1.5"),
        (units.difference("accuracy", math.nan), "–"),
    ],
)
def test_figures_as_text(shown: str, expected: str) -> None:
    assert shown == expected


# --- comparison -------------------------------------------------------------------------------------------------------


def test_a_comparison_shows_figures_and_differences(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one")
    flags = files_of_a_run(tmp_path)["arguments.json"] | {"seed": 2, "learning_rate": 5e-05}
    history = {"log_history": [log_entry(1.0, eval_accuracy=0.9)]}
    two = write_run(tmp_path / "two", recipe=RECIPE.replace("0.001", "0.002"), arguments=flags, trainer_state=history)
    write_export(tmp_path / "deployment", two)
    text = write_comparison([one, two], tmp_path / "page.html").read_text(encoding="utf-8")
    flat = " ".join(re.sub(r"<[^>]*>", " ", re.sub("<wbr>", "", text)).split())
    assert "seed 1 2" in flat and "LearningRateFunctionModifier.init_lr 0.001 0.002" in flat
    assert "learning_rate 5e-05" not in flat  # the same in both
    assert "5× (INT8 + sparse kernels, batch 1)" in flat and "different rows" not in flat
    assert "one 75.0%" not in flat and "two 90.0%" in flat  # last values of the curves
    assert "Versions and machines: no difference." in flat


def test_a_deployment_has_its_own_figures_and_its_training_once(tmp_path: Path) -> None:
    other = files_of_a_run(tmp_path)["evaluation.json"]["validation"] | {"source": "other.csv", "rows": 24}
    folder = write_run(tmp_path / "one", evaluation={"validation": other | {"digest": "f" * 32}})
    export = write_export(tmp_path / "file", folder, fidelity={"onnxruntime": {"accuracy": 0.45}})
    text = write_comparison([folder, export], tmp_path / "page.html").read_text(encoding="utf-8")
    flat = " ".join(re.sub(r"<[^>]*>", " ", re.sub("<wbr>", "", text)).split())
    row = flat[flat.index("file, exported") :][:120]
    assert "model.onnx on validation.csv 45.00%" in row and "60" in row
    assert "different rows" not in flat  # the row says what it is of
    assert flat.count("The recipe of ") == 1 and "The recipe of one" in flat
    alone = write_comparison([export, write_run(tmp_path / "two")], tmp_path / "page.html").read_text(encoding="utf-8")
    assert alone.count("The recipe of ") == 2  # without its run, the deployment shows the training


@pytest.mark.parametrize(
    "source, file, is_said",
    [
        ("validation.csv", "/data/validation.csv", False),
        ("/data/validation.csv", "validation.csv", False),
        ("other.csv", "/data/validation.csv", True),
        ("/other/validation.csv", "/data/validation.csv", True),
        ("", "/data/validation.csv", False),
        ("who/rows, split 'test'", None, False),
    ],
)
def test_a_later_evaluation_on_another_file(source: str, file: str | None, is_said: bool, tmp_path: Path) -> None:
    entry = files_of_a_run(tmp_path)["evaluation.json"]["validation"] | {"source": source}
    flags = files_of_a_run(tmp_path)["arguments.json"] | {"validation_file": file}
    folder = write_run(tmp_path / "run", evaluation={"validation": entry}, arguments=flags)
    text = write_report(folder).read_text(encoding="utf-8")
    assert ("evaluated last on" in text) == is_said


def evaluated_on(folder: Path, digest: str | None, rows: int = 60, **flags: Any) -> Path:
    """A run that was evaluated on rows with this digest; None: a run of a version that recorded none."""
    evaluation = files_of_a_run(folder)["evaluation.json"]["validation"] | {"digest": digest, "rows": rows}
    return write_run(
        folder,
        arguments=files_of_a_run(folder)["arguments.json"] | flags,
        evaluation={"validation": evaluation} if digest else {},
    )


Evaluated = tuple[str | None, dict[str, Any]]  # digest of the rows, flags
OTHER_FILE: dict[str, Any] = {"validation_file": "/data/copy.csv"}
ROWS: list[tuple[str, Evaluated, Evaluated, bool]] = [
    ("a file that changed", ("a" * 32, {}), ("b" * 32, {}), True),
    ("a copy of a file", ("a" * 32, {}), ("a" * 32, OTHER_FILE), False),
    ("not recorded, one file", (None, {}), (None, {"seed": 2}), False),
    ("not recorded, two files", (None, {}), (None, OTHER_FILE), True),
    ("not recorded, some of the rows", (None, {}), (None, {"max_eval_samples": 10}), True),
    ("not recorded, other draw", (None, {"max_eval_samples": 10}), (None, {"max_eval_samples": 10, "seed": 2}), True),
    ("not recorded, test rows", (None, {"eval_on_test": False}), (None, {"eval_on_test": True}), True),
    ("recorded in one", ("a" * 32, {"eval_on_test": False}), (None, {}), False),
    ("recorded in one, two files", ("a" * 32, {}), (None, OTHER_FILE), True),
]


@pytest.mark.parametrize(("one", "two", "differ"), [each[1:] for each in ROWS], ids=[each[0] for each in ROWS])
def test_runs_on_different_rows_are_said_not_to_compare(
    one: Evaluated, two: Evaluated, differ: bool, tmp_path: Path
) -> None:
    folders = [evaluated_on(tmp_path / name, each[0], **each[1]) for name, each in (("one", one), ("two", two))]
    for each in (folders, folders[::-1]):
        assert ("different rows" in write_comparison(each, tmp_path / "page.html").read_text()) == differ


def test_the_rows_of_each_run_are_named(tmp_path: Path) -> None:
    folders = [
        evaluated_on(tmp_path / "one", "a" * 32, 872),
        evaluated_on(tmp_path / "two", "b" * 32, 100, max_eval_samples=100),
        evaluated_on(tmp_path / "three", "a" * 32, 872),
        evaluated_on(tmp_path / "older", None),
    ]
    text = write_comparison(folders, tmp_path / "page.html").read_text()
    assert (
        "on different rows, so their figures do not compare: one, three, older: validation.csv, 872 rows, digest "
        "aaaaaaaa; two: validation.csv, max_eval_samples 100 by seed 1, 100 rows, digest bbbbbbbb."
    ) in text


def test_the_main_curve_is_of_the_recorded_figure(tmp_path: Path) -> None:
    history = {"log_history": [log_entry(epoch, eval_f1=0.1) for epoch in (1.0, 2.0)]}
    entry = {"validation": {"rows": 60, "headline": "f1", "figures": {"accuracy": 0.9, "f1": 0.1}}}
    config = {"architectures": ["BertForTokenClassification"]}
    recorded = write_run(tmp_path / "one", trainer_state=history, evaluation=entry)
    older = write_run(
        tmp_path / "two",
        trainer_state=history,
        without=("evaluation.json",),
        all_results={"eval_accuracy": 0.9, "eval_f1": 0.1},
        config=config,
    )
    for folders in ([recorded, older], [older, recorded]):
        text = write_comparison(folders, tmp_path / "page.html").read_text()
        assert "Validation f1" in text and "Validation accuracy" not in text


def test_runs_have_different_names(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / place / "run")) for place in ("a", "b/c")]
    assert names_of_runs(runs) == ["a/run", "b/c/run"]
    runs = [read_run(write_run(tmp_path / name)) for name in ("x", "y")]
    assert names_of_runs(runs) == ["x", "y"]


# --- the command ------------------------------------------------------------------------------------------------------


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["report", *map(str, words)])
    main()


def test_where_the_page_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = (write_run(tmp_path / name) for name in ("one", "two"))
    (one / "report.html").write_text("older")
    call(monkeypatch, "one")
    assert (one / "report.html").read_text().startswith("<!DOCTYPE html>")
    call(monkeypatch, "one", "two")
    call(monkeypatch, two, "--output", "other.html")
    assert (tmp_path / "comparison.html").is_file() and (tmp_path / "other.html").is_file()
    assert not (two / "report.html").exists() and not list(tmp_path.rglob("*.partial"))
    assert capsys.readouterr().out.split() == ["one/report.html", "comparison.html", "other.html"]


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["one", "--output", "model.safetensors"], r"--output model\.safetensors: .*\.html"),
        (["one", "one/"], "is named twice"),
        (["one", "nothing"], "nothing does not exist"),
        (["one", "--output", "no/such/folder.html"], r"no/such/folder\.html cannot be written"),
    ],
)
def test_wrong_words(words: list[str], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "one")
    with pytest.raises(UsageError, match=place):
        call(monkeypatch, *words)


def test_the_command_loads_no_torch_and_ends_with_2_after_an_error(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    code = (
        "import sys, runpy; sys.argv = sys.argv[:1] + sys.argv[2:]\n"
        "try: runpy.run_module('sparse_accel.report', run_name='__main__')\n"
        "finally: print(sorted({'torch', 'transformers', 'pandas', 'matplotlib.pyplot'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "-", folder], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()) == (0, [str(folder / "report.html"), "[]"]), done.stderr
    (folder / "sparsity.json").write_text("{")
    done = subprocess.run([sys.executable, "-c", code, "-", folder], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "sparsity.json is damaged" in done.stderr


# --- at the end of a program ------------------------------------------------------------------------------------------


def test_a_missing_extra_does_not_fail_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run")
    monkeypatch.setattr(report, "_NEEDED", ("matplotlib", "no_such_package"))
    assert report_at_end(folder) is None
    printed = capsys.readouterr().err
    assert printed.count("warning:") == 1 and "no_such_package" in printed and "sparse_accel[report]" in printed
    with pytest.raises(UsageError, match=r"pip install 'sparse_accel\[report\]'"):
        write_report(folder)


def test_a_fault_of_the_report_does_not_fail_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run")
    monkeypatch.setattr("sparse_accel.report.one_run.page_of_run", lambda run: 1 / 0)
    assert report_at_end(folder) is None
    printed = capsys.readouterr().err
    assert "ZeroDivisionError" in printed and f"python -m sparse_accel.report {folder}" in printed


def test_a_page_is_made_again_only_where_there_is_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    refresh_report(folder)
    assert not (folder / "report.html").exists()
    assert report_at_end(folder) == folder / "report.html"
    write_export(tmp_path / "deployment", folder)
    refresh_report(folder)
    assert "sparse kernels" in (folder / "report.html").read_text()


def test_pairs_of_styles_are_told_apart_in_print() -> None:
    """Two lines of one colour never have the same dashes."""
    for one, other in itertools.combinations([Style(number) for number in range(12)], 2):
        assert one.colour != other.colour or one.dash != other.dash
