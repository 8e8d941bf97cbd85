"""What commit 1364ade left in tests/golden/old_run is shown, resumed, loaded and exported, and the same flags still
train the same models. make_old_run.py says how it was made.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import script_fixtures
import torch
from layouts import masks_of
from make_old_run import KILLED_AT
from places import ROOT
from run_trace import OLD_RUN, compare, flags, record
from script_fixtures import flat, read_json, run, trace, weights
from transformers import AutoTokenizer

import sparse_accel
from sparse_accel.export import measure

# torch draws other last bits where it has no AVX2, so that the new head, and with it the run, is another one there.
same_head = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="this CPU starts the stored run's head with other last bits",
)


def copied(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD_RUN / name, tmp_path / name))


@same_head
def test_an_old_finished_run_is_shown(tmp_path: Path) -> None:
    output = copied("finished", tmp_path)
    kept = ("model.safetensors", "quantization.json", "trainer_state.json", "train_results.json", "checkpoint-16")
    before = {name: (output / name).stat().st_mtime_ns for name in kept}
    shown = run(**flags(OLD_RUN), output_dir=output)
    assert shown.code == 0, shown.all
    assert "nothing is trained again" in flat(shown.out), shown.all
    assert {name: (output / name).stat().st_mtime_ns for name in kept} == before
    assert [path.name for path in tmp_path.iterdir()] == ["finished"]  # nothing was moved aside
    old, new = (read_json(folder / "all_results.json") for folder in (OLD_RUN / "finished", output))
    # The old version did not record what it had measured on: the evaluation is repeated, and nothing else.
    # A newer version may have more figures.
    expected = {name: pytest.approx(value, rel=1e-3) if value else value for name, value in old.items()}
    assert {name: new.get(name) for name in old} == expected


@same_head
def test_an_old_unfinished_run_is_finished(tmp_path: Path) -> None:
    """It was killed in the middle of an epoch with quantization on; what is left ends as the run that was not."""
    output, finished = copied("unfinished", tmp_path), OLD_RUN / "finished"
    resumed = run(**flags(OLD_RUN), output_dir=output)
    assert resumed.code == 0, resumed.all
    assert f"from step {KILLED_AT}" in flat(resumed.out), resumed.all
    masks, old_masks = masks_of(output), masks_of(finished)
    assert masks.keys() == old_masks.keys() and all(torch.equal(masks[name], old_masks[name]) for name in masks)
    new, old = weights(output), weights(finished)
    assert new.keys() == old.keys()
    assert not [name for name in old if not torch.equal(new[name] == 0, old[name] == 0)]
    # Bit-equal on the kind of CPU that it was made on. The kernels of another moved a weight by 7e-6 at most, noise of
    # 1e-5 in the checkpoint by 3e-5; in these six steps weights go as far as 2.5e-3.
    assert not [name for name in old if not torch.allclose(new[name], old[name], rtol=0, atol=1e-4)]
    assert trace(output, "train/learning_rate") == pytest.approx(trace(finished, "train/learning_rate"), rel=1e-12)
    assert trace(output, "eval_loss").keys() == trace(finished, "eval_loss").keys()


def test_an_old_finished_run_computes_what_its_old_deployment_does() -> None:
    folder = OLD_RUN / "finished"
    model, tokenizer = sparse_accel.load(folder), AutoTokenizer.from_pretrained(folder)
    with open(OLD_RUN / "validation.csv", encoding="utf-8") as stream:
        texts = [row["text"] for row in csv.DictReader(stream)]
    session = onnxruntime.InferenceSession(OLD_RUN / "deployment" / "model.onnx", providers=["CPUExecutionProvider"])
    for text in texts:
        encoded = tokenizer([text], return_tensors="pt")
        with torch.no_grad():
            logits = model(**encoded).logits.numpy()
        feed = {entry.name: encoded[entry.name].numpy() for entry in session.get_inputs()}
        np.testing.assert_allclose(session.run(["logits"], feed)[0], logits, atol=1e-3)


def test_an_old_finished_run_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_SECONDS", 0.0)
    monkeypatch.setattr(script_fixtures, "SCRIPT", ROOT / "scripts" / "export_onnx.py")
    exported = run(model_path=copied("finished", tmp_path), data=OLD_RUN / "validation.csv")
    assert exported.code == 0, exported.all
    report, old = (read_json(folder / "deployment" / "export_report.json") for folder in (tmp_path, OLD_RUN))
    assert {check["result"] for check in report["checks"]} == {"pass"}
    assert [check["name"] for check in report["checks"]] == [check["name"] for check in old["checks"]]
    assert report["quantized_linears"] == old["quantized_linears"] == 14


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["one", "ddp", "fsdp2"])
def test_the_same_flags_train_the_same_model(layout: str) -> None:
    golden: dict[str, Any] = read_json(OLD_RUN.parent / "run_trace.json")
    differences = compare({layout: golden[layout]}, record(ROOT, [layout]), exact=False)
    assert not differences, f"{len(differences)} figures differ from commit 1364ade's:\n" + "\n".join(differences[:40])


def test_a_record_that_differs_is_told_in_words() -> None:
    golden: dict[str, Any] = read_json(OLD_RUN.parent / "run_trace.json")["one"]
    rates = golden["course"]["train/learning_rate"]
    losses = golden["course"]["train/loss"]
    changed = {
        **golden,
        "course": {
            **golden["course"],
            "train/learning_rate": {**rates, "step 3": rates["step 3"] * 1.001},
            "train/loss": {**losses, "step 3": losses["step 3"] * 1.0001, "step 12": losses["step 12"] * 1.0001},
        },
    }
    assert compare(golden, golden, exact=True) == []
    more = {**golden, "course": {**golden["course"], "eval_new_figure": {"step 3": 0.5}}}
    assert compare(golden, more, exact=False) == [] and len(compare(golden, more, exact=True)) == 1
    longer = {**golden, "course": {**golden["course"], "train/loss": {**losses, "step 99": 0.5}}}
    assert len(compare(golden, longer, exact=False)) == 1
    assert len(compare(golden, changed, exact=True)) == 3
    told = compare(golden, changed, exact=False)  # the loss of step 12, quantized, may be so far away
    assert [line.rpartition(": ")[0] for line in told] == [
        "course: train/learning_rate: step 3",
        "course: train/loss: step 3",
    ]
