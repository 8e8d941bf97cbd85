"""report.html of a real run and of its export: every figure on it is the one in the run's own files."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import script_fixtures
from places import ROOT
from script_fixtures import Tiny, read_json, run, run_program, trace, words

from sparse_accel.report import units
from sparse_accel.report.history import events_of, series
from sparse_accel.report.read import read_run

pytest_plugins = [script_fixtures.__name__]
pytestmark = pytest.mark.slow


def page_text(page: Path) -> str:
    text = re.sub(r"<style>.*?</style>|<wbr>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


def test_a_run_and_its_export(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "run"
    done = run(**tiny.flags(output_dir=output))
    assert done.code == 0, done.all
    exported = run_program(
        ROOT / "scripts" / "export_onnx.py", words(model_path=output, task="text_classification"), tmp_path
    )
    assert exported.code == 0, exported.all
    assert (tmp_path / "deployment" / "report.html").is_file()

    found = read_run(output)
    assert found.finished and found.rows() == 60 and not found.notes
    assert dict(enumerate(value for _, value in series(found, "train/loss"))) == dict(
        enumerate(trace(output, "train/loss").values())
    )
    assert [event.when for event in events_of(found)] == ["start", "epoch 2", "epoch 3", "end"]

    monkeypatch.setattr(sys, "argv", ["report", str(output)])
    made = run_program(ROOT / "sparse_accel" / "report" / "__main__.py", [str(output)])
    assert made.code == 0 and made.out.split() == [str(output / "report.html")], made.all
    results, sparsity = read_json(output / "all_results.json"), read_json(output / "sparsity.json")
    report = read_json(tmp_path / "deployment" / "export_report.json")
    for page in (output / "report.html", tmp_path / "deployment" / "report.html"):
        text = page_text(page)
        assert units.percent(results["eval_accuracy"], 2) in text
        assert units.percent(sparsity["encoder_linear"]["sparsity"]) in text
        assert f"All {len(read_json(output / 'quantization.json')['quantizers'])} quantizers" in text
        assert "quantization-aware training begins" in text and "Ranges of weights" in text
        assert units.size(report["files"]["model.onnx"]["bytes"]) in text
        assert units.milliseconds(report["latency"]["onnxruntime"]["1"]["quantized"]) in text
        assert page.stat().st_size < 400_000

    # The next export deletes the page of this one with its other files.
    assert "report.html" in report["written"]
