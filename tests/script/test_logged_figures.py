"""Every logged name of a real run in W&B's own file, against an independent computation of its value."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from script_fixtures import Tiny, make_model, run, sentences, write_csv
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from wandb_files import wandb_run

from sparse_accel.data.batches import GlobalBatchSampler
from sparse_accel.report.read import read_run

pytest_plugins = ["script_fixtures"]

EPOCHS, STEPS = 3, 7  # 203 rows in batches of 32
RATE = 1e-3
ARGUMENTS = {"num_epochs": EPOCHS, "qat_start_epoch": 1.0, "observer_epoch": 2.0, "init_lr": RATE}


class Run:
    """The run, its parts, and what W&B's file has of it."""

    def __init__(self, tiny: Tiny, folder: Path) -> None:
        self.rows = _rows(tiny.train)
        self.start = make_model(
            folder / "start", sparse=True, head=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
        self.teacher = make_model(folder / "the_teacher", sparse=False, head=True)
        self.output = folder / "out"
        flags = tiny.flags(model_name_or_path=self.start, distill_teacher=self.teacher, recipe_args=ARGUMENTS)
        done = run(**{**flags, "logging_steps": 1}, output_dir=self.output, report_to="wandb")
        assert done.code == 0, done.all
        self.config, self.found, _ = wandb_run(self.output / "tracking")


@pytest.fixture(scope="module")
def trained(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tiny, tmp_path_factory.mktemp("logged"))


def _rows(path: Path) -> list[dict[str, Any]]:
    import csv

    with path.open() as stream:
        return list(csv.DictReader(stream))


def test_losses_norm_and_tokens_of_the_first_step(trained: Run) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained.start)
    lengths = [len(ids) for ids in tokenizer([row["text"] for row in trained.rows])["input_ids"]]
    sampler = GlobalBatchSampler(lengths, 32, 1, seed=42)
    chosen = [int(row) for row in next(iter(sampler)) if row >= 0]
    batch = tokenizer([trained.rows[row]["text"] for row in chosen], padding=True, return_tensors="pt")
    labels = torch.tensor([int(trained.rows[row]["label"]) for row in chosen])
    model = AutoModelForSequenceClassification.from_pretrained(trained.start).train()
    teacher = AutoModelForSequenceClassification.from_pretrained(trained.teacher).eval()
    zeros = [(weight, weight == 0) for name, weight in model.named_parameters() if name.endswith("weight")]
    logits = model(**batch).logits
    with torch.no_grad():
        wanted = teacher(**batch).logits
    task = functional.cross_entropy(logits, labels)
    soft = functional.kl_div((logits / 2).log_softmax(1), (wanted / 2).softmax(1), reduction="batchmean") * 4
    soft.backward()  # hardness 1, temperature 2: the task loss has no part in it
    squares = 0.0
    for weight, zero in zeros:
        if ".layer." in next(name for name, each in model.named_parameters() if each is weight):
            assert weight.grad is not None
            weight.grad[zero & (weight.ndim == 2)] = 0.0  # masked
    for weight in model.parameters():
        squares += float(weight.grad.square().sum()) if weight.grad is not None else 0.0
    mask = batch["attention_mask"]
    agreed = float((logits.argmax(1) == wanted.argmax(1)).float().mean())
    found = {name: by_step[1] for name, by_step in trained.found.items() if 1 in by_step}
    assert found["train/task_loss"] == pytest.approx(float(task), rel=1e-5)
    assert found["train/distillation_loss"] == pytest.approx(float(soft), rel=1e-4)
    assert found["train/loss"] == pytest.approx(found["train/distillation_loss"], rel=1e-6)
    assert found["train/teacher_agreement"] == pytest.approx(agreed)
    assert found["train/gradient_norm"] == pytest.approx(squares**0.5, rel=1e-3)
    assert found["train/padding"] == pytest.approx(1 - float(mask.float().mean()))
    ratio = found["train/tokens_per_second"] / found["train/samples_per_second"]
    assert ratio == pytest.approx(float(mask.sum()) / len(chosen))


def test_rates_clock_and_phase_of_every_step(trained: Run) -> None:
    total, found = EPOCHS * STEPS, trained.found
    steps = range(1, total + 1)
    assert found["train/learning_rate"] == pytest.approx({n: RATE * (1 - (n - 1) / total) for n in steps})
    assert set(found["train/weight_decay"].values()) == {0.01}, "as the recipe says"
    assert {n: found["train/epoch"][n] for n in steps} == pytest.approx({n: n / STEPS for n in steps})
    assert {n: found["quantization/phase"][n] for n in steps} == {n: min((n - 1) // STEPS, 2) for n in steps}


def test_sparsity_of_the_saved_weights(trained: Run) -> None:
    weights = load_file(trained.output / "model.safetensors")
    last = {name: by_step[max(by_step)] for name, by_step in trained.found.items() if name.startswith("sparsity/")}
    layers = {name.removeprefix("sparsity/layers/"): value for name, value in last.items() if "/layers/" in name}
    assert len(layers) == 17
    for name, value in layers.items():
        assert value == pytest.approx(float((weights[name] == 0).float().mean()), abs=1e-6), name
    encoder = [weight for name, weight in weights.items() if ".layer." in name and weight.ndim == 2]
    zeros = sum(int((weight == 0).sum()) for weight in encoder)
    assert last["sparsity/encoder"] == pytest.approx(zeros / sum(w.numel() for w in encoder), abs=1e-6)
    zeros = sum(int((weight == 0).sum()) for weight in weights.values())
    assert last["sparsity/model"] == pytest.approx(zeros / sum(w.numel() for w in weights.values()), abs=1e-6)


def test_ranges_and_scales_of_quantization_json(trained: Run) -> None:
    stored = json.loads((trained.output / "quantization.json").read_text())["quantizers"]
    last = EPOCHS * STEPS
    kinds = {"min": (min, "minimum"), "max": (max, "maximum"), "scale": (max, "scale")}
    for name, entry in stored.items():
        plain = name.removesuffix("_quantizer")
        for kind, (choose, key) in kinds.items():
            assert trained.found[f"quantization/{kind}/{plain}"][last] == pytest.approx(choose(entry[key])), plain
        clipped = trained.found[f"quantization/clipped/{plain}"]
        assert sorted(clipped) == [2 * STEPS, 3 * STEPS], "at the ends of the epochs with quantization"
        assert all(0 <= value < 0.5 for value in clipped.values())
    assert not [
        name
        for name in trained.found
        if name.startswith("quantization/clipped/") and "weight" not in name and trained.found[name][last] < 0
    ]


def test_evaluations_are_those_of_the_files(trained: Run) -> None:
    found, last = trained.found, EPOCHS * STEPS
    results = json.loads((trained.output / "eval_results.json").read_text())
    record = json.loads((trained.output / "evaluation.json").read_text())["validation"]
    assert found["eval/accuracy"][last] == results["eval_accuracy"] == record["figures"]["accuracy"]
    assert set(found["final/accuracy"].values()) == {results["eval_accuracy"]}
    confusion = np.asarray(record["confusion"])
    assert confusion.sum() == 60 == record["rows"]
    assert np.trace(confusion) / 60 == pytest.approx(results["eval_accuracy"])
    recalls = confusion.diagonal() / confusion.sum(axis=1)
    assert [entry["recall"] for entry in record["per_label"]] == pytest.approx(list(recalls))
    assert len(record["mistakes"]) == min(60 - np.trace(confusion), 20)
    sure = [entry["confidence"] for entry in record["mistakes"]]
    assert sure == sorted(sure, reverse=True)
    teacher = record["teacher"]["figures"]
    assert found["teacher/accuracy"][0] == teacher["accuracy"] and found["teacher/loss"][0] == teacher["loss"]


def test_the_teachers_figures_stay_with_their_rows(trained: Run, tiny: Tiny, tmp_path: Path) -> None:
    """Measured again on as many other rows, the finished run has no figures of its teacher there."""
    others = write_csv(tmp_path / "others.csv", sentences(60, seed=77))
    flags = tiny.flags(model_name_or_path=trained.start, distill_teacher=trained.teacher, recipe_args=ARGUMENTS)
    again = run(**{**flags, "logging_steps": 1, "validation_file": others}, output_dir=trained.output)
    assert again.code == 0 and "nothing is trained again" in again.out, again.all
    record = json.loads((trained.output / "evaluation.json").read_text())["validation"]
    assert record["rows"] == 60 and record["teacher"] is None
    back = run(**{**flags, "logging_steps": 1}, output_dir=trained.output)
    assert back.code == 0, back.all
    assert json.loads((trained.output / "evaluation.json").read_text())["validation"]["teacher"] is not None


def test_an_evaluation_of_another_model_is_not_this_runs(trained: Run, tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(trained.output, folder)
    other = run(
        model_name_or_path=trained.teacher,
        validation_file=tiny.validation,
        output_dir=folder,
        do_eval=True,
        per_device_eval_batch_size=32,
    )
    assert other.code == 0, other.all
    assert "eval_model" in json.loads((folder / "eval_results.json").read_text())
    assert json.loads((folder / "evaluation.json").read_text())["validation"]["teacher"] is None
    found = read_run(folder)
    assert found.figures() == {} and found.evaluation == {} and any("another model" in note for note in found.notes)


def test_configuration(trained: Run) -> None:
    environment = trained.config["environment"]
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["layout"] == "one process" and environment["hardware"]["cores"] >= 1
    assert environment == {
        **json.loads((trained.output / "environment.json").read_text()),
        "started": environment["started"],
    }
    assert trained.config["recipe"]["training_modifiers"]
