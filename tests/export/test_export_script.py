"""scripts/export_onnx.py as its user meets it: the folder that it leaves, and all that can be wrong with a model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from export_fixtures import ARCHITECTURES, SCRIPT, copy_of, export, write_folder
from places import ROOT
from script_fixtures import sentences, write_csv
from tiny import make_tokenizer
from transformers import BertForMultipleChoice

import sparse_accel
from sparse_accel.errors import UsageError
from sparse_accel.export import deployment, measure, proof
from sparse_accel.export.checks import Check
from sparse_accel.export.folder import staged
from sparse_accel.export.proof import reasons
from sparse_accel.runtime.timing import plain_session

pytest_plugins = ["export_fixtures"]
pytestmark = pytest.mark.usefixtures("quick")


def nothing_left(folder: Path) -> bool:
    return not [path for path in folder.iterdir() if "deployment" in path.name or path.name.startswith(".")]


# --- the folder -------------------------------------------------------------------------------------------------------


def test_a_deployment_appears_beside_the_model(trained: Path, tmp_path: Path) -> None:
    model = copy_of(trained, tmp_path)
    done = export(model_path=model, task="text_classification", compress=True)
    assert done.code == 0, done.all
    target = tmp_path / "deployment"
    names = {path.name for path in target.iterdir()}
    assert names >= {"model.onnx", "config.json", "tokenizer.json", "export_report.json", "export_report.md"}
    assert not [path.name for path in tmp_path.iterdir() if path.name not in ("model", "deployment")]

    report = json.loads((target / "export_report.json").read_text())
    assert report["source"]["folder"] == str(model)
    assert {check["name"]: check["result"] for check in report["checks"]} == {
        "ONNX checker": "pass",
        "weights, scales, zero points": "pass",
        "zeros": "pass",
        "integer kernels": "pass",
        "agreement": "pass",
        "logits": "pass",
        "accuracy": "pass",
    }
    assert report["texts"] == {"source": str(trained.parent / "validation.csv"), "rows": 30, "labels": True}
    assert report["layers"]["bert.encoder.layer.0.output.dense.weight"]["sparsity"] >= 0.899
    assert set(report["latency"]["onnxruntime"]) == {"1", "32"}
    assert set(report["gains"]["onnxruntime"]["1"]) == {"integers", "zeros"}
    assert report["kernels"]["MatMulIntegerToFloat"] == 14
    assert report["quantized_linears"] == report["linears"] == 14
    readable = (target / "export_report.md").read_text()
    assert "14 of 14 quantized Linears" in readable and "not measured here" in readable
    assert "14 of 14 quantized Linears" in " ".join(done.out.split())

    # One call gives the very file back.
    expanded = sparse_accel.expand(target, tmp_path / "again.onnx")
    assert expanded.read_bytes() == (target / "model.onnx").read_bytes()
    assert report["files"]["model.onnx.xz"]["bytes"] < report["files"]["model.onnx"]["bytes"]

    # Plain onnxruntime, as README shows it.
    session = plain_session(target / "model.onnx")
    encoded = make_tokenizer()(["a lovely film"], return_tensors="np")
    logits = session.run(["logits"], {entry.name: encoded[entry.name] for entry in session.get_inputs()})[0]
    with torch.no_grad():
        expected = sparse_accel.load(model)(**make_tokenizer()(["a lovely film"], return_tensors="pt")).logits
    np.testing.assert_allclose(logits, expected.numpy(), atol=0.05)


def test_a_transformers_pipeline_reads_the_training_folder(trained: Path) -> None:
    from transformers import pipeline

    classify: Any = pipeline("text-classification", model=str(trained))
    assert classify("a lovely film")[0]["label"] in ("LABEL_0", "LABEL_1")


def test_an_older_deployment_is_replaced_and_other_files_stay(trained: Path, tmp_path: Path) -> None:
    model, target = copy_of(trained, tmp_path), tmp_path / "out"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    assert export(model_path=model, output_dir=target).code == 0
    first = (target / "model.onnx").read_bytes()
    done = export(model_path=model, output_dir=target, format="integer")
    assert done.code == 0, done.all
    assert (target / "model.onnx").read_bytes() != first
    assert onnx.load(target / "model.onnx").opset_import[0].version == 14
    assert (target / "notes.txt").read_text() == "mine"


def test_a_deployment_of_another_model_needs_overwrite(trained: Path, tmp_path: Path) -> None:
    model, target = copy_of(trained, tmp_path), tmp_path / "out"
    assert export(model_path=model, output_dir=target).code == 0
    other = Path(shutil.copytree(model, tmp_path / "other"))
    before = (target / "export_report.json").read_text()
    refused = export(model_path=other, output_dir=target)
    assert refused.code == 2 and f"made from another model, {model}" in refused.err and "--overwrite" in refused.err
    assert (target / "export_report.json").read_text() == before
    assert export(model_path=other, output_dir=target, overwrite=True).code == 0
    assert json.loads((target / "export_report.json").read_text())["source"]["folder"] == str(other)


def test_a_models_own_folder_is_no_target(trained: Path, tmp_path: Path) -> None:
    model = copy_of(trained, tmp_path)
    refused = export(model_path=model, output_dir=model)
    assert refused.code == 2 and "contains a model that this script did not write" in refused.err
    refused = export(model_path=model, output_dir=model / "config.json")
    assert refused.code == 2 and "is a file" in refused.err


def test_a_failed_proof_leaves_what_was_there(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy_of(trained, tmp_path)
    assert export(model_path=model).code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "deployment").iterdir()}
    prove = proof.prove

    def corrupted(path: Path, *rest: Any) -> Any:
        graph = onnx.load(path)
        tensor = next(t for t in graph.graph.initializer if t.name == "classifier.weight_quantized")
        raw = bytearray(tensor.raw_data)
        raw[0] ^= 1
        tensor.raw_data = bytes(raw)
        onnx.save(graph, path)
        return prove(path, *rest)

    monkeypatch.setattr(deployment, "prove", corrupted)
    failed = export(model_path=model)
    assert failed.code == 1
    assert "classifier.weight_quantized: 1 of 64 dequantized values differ from the weights" in failed.err
    assert "no deployment was written" in failed.err and "Traceback" not in failed.all
    assert {path.name: path.read_bytes() for path in (tmp_path / "deployment").iterdir()} == before
    failed = export(model_path=model, output_dir=tmp_path / "fresh")
    assert failed.code == 1 and not (tmp_path / "fresh").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"model", "deployment"}


def test_a_cpu_without_vnni_is_named_when_only_outputs_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = [Check("logits", False, "far apart")]
    monkeypatch.setattr(measure, "cpu", lambda: {"name": "Old CPU", "vnni": False})
    assert "--reduce_range or --format integer" in reasons(failed, overflows=True)
    assert "Old CPU" not in reasons([*failed, Check("zeros", False, "lost")], overflows=True)
    monkeypatch.setattr(measure, "cpu", lambda: {"name": "New CPU", "vnni": True})
    assert "CPU" not in reasons(failed, overflows=True)


def test_an_interrupted_swap_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "deployment"
    target.mkdir()
    (target / "model.onnx").write_text("old")
    rename = os.rename

    def fails_at_the_second(source: Any, destination: Any) -> None:
        if Path(destination) == target and Path(source).name.endswith(".partial"):
            raise OSError("disk full")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", fails_at_the_second)
    with pytest.raises(OSError, match="disk full"), staged(target) as partial:
        (partial / "model.onnx").write_text("new")
    assert (target / "model.onnx").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["deployment"]


def test_a_new_export_keeps_the_users_files_and_drops_its_predecessors(tmp_path: Path) -> None:
    target = tmp_path / "deployment"
    target.mkdir()
    (target / "export_report.json").write_text(json.dumps({"source": {"folder": "x"}, "written": ["vocab.txt"]}))
    (target / "vocab.txt").write_text("of the model before")
    (target / "notes").mkdir()
    (target / "notes" / "mine.txt").write_text("mine")
    (target / "dangling").symlink_to(tmp_path / "nowhere")
    with staged(target) as partial:
        (partial / "model.onnx").write_text("new")
    assert {path.name for path in target.iterdir()} == {"model.onnx", "export_report.json", "notes", "dangling"}
    assert (target / "dangling").is_symlink() and (target / "notes" / "mine.txt").read_text() == "mine"


def test_an_export_that_was_killed_between_two_renames_loses_nothing(tmp_path: Path) -> None:
    left = tmp_path / ".deployment.999999999.replaced"
    left.mkdir()
    (left / "model.onnx").write_text("old")
    with pytest.raises(UsageError), staged(tmp_path / "deployment"):
        raise UsageError("the next export fails")
    assert (tmp_path / "deployment" / "model.onnx").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["deployment"]


# --- which model, which data ------------------------------------------------------------------------------------------


def test_a_checkpoint_is_proven_on_its_runs_data(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run / "checkpoint-8")
    (run / "arguments.json").write_text((trained / "arguments.json").read_text())
    for name in ("arguments.json", "train_results.json"):  # a checkpoint has neither
        (run / "checkpoint-8" / name).unlink()
    done = export(model_path=run / "checkpoint-8", output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    assert json.loads((tmp_path / "out" / "export_report.json").read_text())["texts"]["rows"] == 30


def test_without_labels_accuracy_is_not_checked(trained: Path, tmp_path: Path) -> None:
    model = copy_of(trained, tmp_path)
    (model / "arguments.json").write_text(json.dumps({"validation_file": str(tmp_path / "gone.csv")}))
    done = export(model_path=model)
    assert done.code == 0, done.all
    report = json.loads((tmp_path / "deployment" / "export_report.json").read_text())
    accuracy = next(check for check in report["checks"] if check["name"] == "accuracy")
    assert accuracy["result"] == "not checked" and "no labels" in accuracy["detail"]
    assert report["texts"]["source"] == "this package" and report["texts"]["rows"] >= 30
    assert "can no longer be used" in report["notes"][0] and "gone.csv" in report["notes"][0]


def test_rows_that_are_named_need_no_labels(trained: Path, tmp_path: Path) -> None:
    rows = [{"text": row["text"]} for row in sentences(14, seed=5)]
    done = export(model_path=copy_of(trained, tmp_path), data=write_csv(tmp_path / "rows.csv", rows))
    assert done.code == 0, done.all
    report = json.loads((tmp_path / "deployment" / "export_report.json").read_text())
    accuracy = next(check for check in report["checks"] if check["name"] == "accuracy")
    assert accuracy["result"] == "not checked" and report["texts"]["rows"] == 14
    missing = export(model_path=tmp_path / "model", data=tmp_path / "raws.csv")
    assert missing.code == 2 and "--data: there is no file" in missing.err, missing.all


def test_a_plain_hugging_face_classifier_is_exported_as_float(tmp_path: Path) -> None:
    model = ARCHITECTURES["distilbert"]()
    folder = write_folder(tmp_path / "plain", model.eval())
    data = write_csv(tmp_path / "rows.tsv", sentences(12, seed=4, labels=("LABEL_0", "LABEL_1")), delimiter="\t")
    done = export(model_path=folder, data=data, sequence_length=20, opset=15)
    assert done.code == 0, done.all
    report = json.loads((tmp_path / "deployment" / "export_report.json").read_text())
    assert report["quantized_linears"] == 0 and report["opset"] == 15
    assert set(report["latency"]["onnxruntime"]["1"]) == {"float", "float, no zeros"}
    kernels = next(check for check in report["checks"] if check["name"] == "integer kernels")
    assert kernels["result"] == "not checked"


# --- bad input --------------------------------------------------------------------------------------------------------


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def garble(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not weights at all")


def drop_scales(folder: Path) -> None:
    (folder / "quantization.json").unlink()


def drop_one_scale(folder: Path) -> None:
    path = folder / "quantization.json"
    content = json.loads(path.read_text())
    del content["quantizers"]["bert.pooler.dense.input_quantizer"]["scale"]
    path.write_text(json.dumps(content))


def drop_one_quantizer(folder: Path) -> None:
    path = folder / "quantization.json"
    content = json.loads(path.read_text())
    del content["quantizers"]["bert.pooler.dense.input_quantizer"]
    path.write_text(json.dumps(content))


def make_multiple_choice(folder: Path) -> None:
    config: Any = sparse_accel.load(folder).config
    for name in ("quantization.json", "train_results.json"):
        (folder / name).unlink()
    BertForMultipleChoice(config).save_pretrained(folder)


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def drop_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "words_said"),
    [
        (empty, "contains no readable model"),
        (truncate, "contains no readable model"),
        (garble, "contains no readable model"),
        (drop_scales, "training quantized 14 Linears, but quantization.json with their scales is missing"),
        (drop_one_scale, "'bert.pooler.dense.input_quantizer' is incomplete"),
        (drop_one_quantizer, "training quantized 14 Linears, but quantization.json has scales for 13"),
        (make_multiple_choice, "BertForMultipleChoice, which does not classify texts"),
        (drop_tokenizer, "has no tokenizer files"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_damaged_model_is_one_clear_line(damage: Any, words_said: str, trained: Path, tmp_path: Path) -> None:
    model = copy_of(trained, tmp_path)
    damage(model)
    done = export(model_path=model)
    assert done.code == 2, done.all
    assert words_said in done.err and "Traceback" not in done.all
    assert len(done.err.strip().splitlines()) == 1
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("flags", "words_said"),
    [
        ({"task": "mlm"}, "BertForSequenceClassification, which does not fill in masked tokens"),
        ({"task": "qa"}, "BertForSequenceClassification, which does not answer questions"),
        ({"task": "sorting"}, "--task: unknown value 'sorting'"),
        ({"sequence_length": 65}, "--sequence_length 65: this model accepts up to 64 tokens"),
        ({"opset": 12}, "--opset must be at least 13"),
        ({"opset": 99}, "--opset 99: the installed onnx supports opsets up to"),
        ({"format": "onnx"}, "--format: unknown value 'onnx'"),
        ({"data": "nowhere.csv"}, "nowhere.csv"),
        ({"finetuning_task": "sst2"}, "--finetuning_task is not supported"),
        ({"label_column_name": "label"}, "--label_column_name names a column of --data: add --data"),
        ({"output_dir": "/proc/version/x"}, "cannot be written"),
        ({"deepsparse_python": "/nowhere/python"}, "--deepsparse_python /nowhere/python"),
        ({"modelpath": "x"}, "Did you mean '--model_path'?"),
    ],
)
def test_wrong_flags_are_one_clear_line(flags: dict[str, Any], words_said: str, trained: Path, tmp_path: Path) -> None:
    model = copy_of(trained, tmp_path)
    done = export(model_path=model, **flags)
    assert done.code == 2, done.all
    assert words_said in done.err and "Traceback" not in done.all
    assert nothing_left(tmp_path)


def test_no_model_path_and_no_such_folder(tmp_path: Path) -> None:
    assert "--model_path is missing" in export().err
    done = export(model_path=tmp_path / "nowhere")
    assert done.code == 2 and "there is no folder" in done.err


def test_an_unsupported_architecture_is_named(tmp_path: Path) -> None:
    from transformers import FunnelConfig, FunnelForSequenceClassification

    sizes: dict[str, Any] = {"vocab_size": 40, "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32}
    model = FunnelForSequenceClassification(FunnelConfig(**sizes, block_sizes=[1, 1], num_decoder_layers=1))
    folder = write_folder(tmp_path / "funnel", model.eval())
    done = export(model_path=folder)
    assert done.code == 2, done.all
    assert "funnel" in done.err and "Known to work: BERT" in done.err and len(done.err.splitlines()) == 1
    assert nothing_left(tmp_path)


# --- the archive ------------------------------------------------------------------------------------------------------


def test_a_damaged_archive_replaces_nothing(tmp_path: Path) -> None:
    from sparse_accel.export.archive import compress

    (tmp_path / "model.onnx").write_bytes(bytes(100_000))
    compress(tmp_path / "model.onnx", tmp_path / "model.onnx.xz")
    (tmp_path / "model.onnx").write_bytes(b"what was there")
    archive = tmp_path / "model.onnx.xz"
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(UsageError, match="is damaged"):
        sparse_accel.expand(tmp_path)
    assert (tmp_path / "model.onnx").read_bytes() == b"what was there"
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(UsageError, match="there is no archive"):
        sparse_accel.expand(tmp_path / "nowhere")


# --- as a process of its own ------------------------------------------------------------------------------------------


def test_help_and_errors_import_nothing_heavy() -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['export_onnx.py', '--task', 'sorting', '--model_path', 'x']\n"
        f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit as ended: print('code', ended.code)\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.splitlines() == ["code 2", "[]"], done.stderr
