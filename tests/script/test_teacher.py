"""Distillation through the script: a dense teacher is trained, its logits are computed once, a sparse model follows."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from script_fixtures import (
    RECIPE,
    SHORT,
    WORDS,
    Outcome,
    Tiny,
    assert_same_model,
    flat,
    make_model,
    read_json,
    run,
    sentences,
    trace,
    write_csv,
)
from transformers import AutoModelForSequenceClassification, AutoTokenizer

pytest_plugins = ["script_fixtures"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's tables of logits lie."""
    monkeypatch.setenv("SPARSE_ACCEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "teacher_logits"


@pytest.fixture(scope="module")
def teacher(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tutorial's dense teacher: its own recipe, no sparsity."""
    folder = tmp_path_factory.mktemp("teachers")
    dense = make_model(folder / "base", sparse=False)
    recipe = {"recipe": RECIPE.with_name("sst2_dense.yaml"), "recipe_args": {"init_lr": 1e-2, "num_epochs": 6}}
    done = run(
        **tiny.flags(model_name_or_path=dense, **recipe, distill_teacher=None, output_dir=folder / "dense-teacher")
    )
    assert done.code == 0, done.all
    results = read_json(folder / "dense-teacher" / "all_results.json")
    assert results["eval_accuracy"] > 0.9 and results["quantized_linears"] == 0
    return folder / "dense-teacher"


def student(tiny: Tiny, output: Path, teacher: Any, **others: Any) -> Outcome:
    return run(**{**tiny.flags(distill_teacher=teacher, output_dir=output), **others})


def test_the_table_is_made_once(tiny: Tiny, teacher: Path, tmp_path: Path, cache: Path) -> None:
    # Dropout makes it learn or not in so few steps: with this seed it does.
    first = student(tiny, tmp_path / "one", teacher, seed=48)
    assert first.code == 0, first.all
    (table,) = cache.iterdir()
    assert "computed once" in flat(first.out)
    again = student(tiny, tmp_path / "two", teacher, seed=48)
    assert "found on disk" in flat(again.out) and [*cache.iterdir()] == [table]
    assert_same_model(tmp_path / "one", tmp_path / "two")
    assert read_json(tmp_path / "one" / "all_results.json")["eval_accuracy"] > 0.8
    # A teacher that knows the task: the student's loss against it falls.
    loss = trace(tmp_path / "one", "train/distillation_loss")
    assert loss[28] < 0.8 * loss[1]
    assert trace(tmp_path / "one", "train/loss") == loss  # hardness 1
    # The evaluation's loss is the task's.
    logged = trace(tmp_path / "one", "eval_loss")
    assert read_json(tmp_path / "one" / "eval_results.json")["eval_loss"] == pytest.approx(logged[28], abs=1e-6)

    table.write_bytes(b"torn")
    torn = student(tiny, tmp_path / "three", teacher, seed=48)
    assert torn.code == 0 and "computed once" in flat(torn.out)


def test_labels_do_not_count_at_hardness_1(tiny: Tiny, teacher: Path, tmp_path: Path) -> None:
    rows = sentences(203, seed=1)
    labels = [row["label"] for row in rows]
    random.Random(0).shuffle(labels)
    shuffled = [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]
    file = write_csv(tmp_path / "shuffled.csv", shuffled)
    assert student(tiny, tmp_path / "one", teacher).code == 0
    assert student(tiny, tmp_path / "two", teacher, train_file=file).code == 0
    assert_same_model(tmp_path / "one", tmp_path / "two")
    mixed = {"recipe_args": {**SHORT, "distill_hardness": 0.5}, "train_file": file}
    assert student(tiny, tmp_path / "mixed", teacher, **mixed).code == 0
    with pytest.raises(AssertionError):
        assert_same_model(tmp_path / "one", tmp_path / "mixed")


def named(teacher: Path, folder: Path, names: list[str], order: list[int]) -> Path:
    """The teacher with names for its labels, and its outputs in another order."""
    model = AutoModelForSequenceClassification.from_pretrained(teacher)
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight[order])
        model.classifier.bias.copy_(model.classifier.bias[order])
    model.config.id2label = {place: names[number] for place, number in enumerate(order)}
    model.config.label2id = {names[number]: place for place, number in enumerate(order)}
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((teacher / name).read_bytes())
    return folder


def test_labels_are_aligned_by_name(tiny: Tiny, teacher: Path, tmp_path: Path, cache: Path) -> None:
    words = {name: write_csv(tmp_path / f"{name}.csv", sentences(203, 1, ("bad", "good"))) for name in ("train_file",)}
    words["validation_file"] = write_csv(tmp_path / "validation.csv", sentences(60, 2, ("bad", "good")))
    straight = named(teacher, tmp_path / "straight", ["bad", "good"], [0, 1])
    turned = named(teacher, tmp_path / "turned", ["bad", "good"], [1, 0])
    tables = []
    for place in (straight, turned):
        done = student(tiny, tmp_path / f"out_{place.name}", place, **words)
        assert done.code == 0, done.all
        newest = max(cache.iterdir(), key=os.path.getmtime)
        tables.append(load_file(newest)["logits"])
    assert len([*cache.iterdir()]) == 2
    assert torch.allclose(tables[0], tables[1], atol=1e-6)
    assert_same_model(tmp_path / "out_straight", tmp_path / "out_turned")

    other = named(teacher, tmp_path / "other", ["bad", "excellent"], [0, 1])
    refused = student(tiny, tmp_path / "refused", other, **words)
    assert refused.code == 2
    assert "have different labels" in refused.err and "bad, good" in refused.err and "bad, excellent" in refused.err


def test_a_teacher_with_another_vocabulary(tiny: Tiny, tmp_path: Path, cache: Path) -> None:
    """It reads the texts through its own tokenizer; and how many tokens it takes is its own, too."""
    other = make_model(
        tmp_path / "teacher", sparse=False, head=True, vocabulary=WORDS[::-1], max_position_embeddings=12
    )
    done = student(tiny, tmp_path / "out", other)
    assert done.code == 0, done.all
    assert "with its own tokenizer, up to 12 tokens" in flat(done.out)
    (table,) = cache.iterdir()
    texts = [row["text"] for row in sentences(203, seed=1)]
    batch = AutoTokenizer.from_pretrained(other)(
        texts, padding=True, truncation=True, max_length=12, return_tensors="pt"
    )
    with torch.no_grad():
        expected = AutoModelForSequenceClassification.from_pretrained(other).eval()(**batch).logits
    assert torch.allclose(load_file(table)["logits"], expected, atol=1e-5)
    # With the teacher's tokenizer, both read the same tokens.
    shared = student(tiny, tmp_path / "shared", other, use_teacher_tokenizer=True, max_seq_length=12)
    assert shared.code == 0, shared.all
    assert "its own tokenizer" not in flat(shared.out)


def test_outputs_without_a_table_need_the_same_tokens(tiny: Tiny, tmp_path: Path) -> None:
    """The teacher was fed the student's ids, which its own vocabulary reads as other words: refused, not trained."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "modifiers:\n  - !EpochRangeModifier {end_epoch: 1}\n"
        "  - !DistillationModifier {}\n  - !HiddenStateDistillationModifier {}"
    )
    shape: dict[str, Any] = {"sparse": False, "head": True}
    others = {
        "vocabulary": make_model(tmp_path / "vocabulary", vocabulary=WORDS[::-1], **shape),
        "length": make_model(tmp_path / "length", max_position_embeddings=12, **shape),
    }
    for other in others.values():
        refused = student(tiny, tmp_path / "out", other, recipe=recipe, recipe_args=None)
        assert refused.code == 2, refused.all
        assert "needs its own tokenizer" in refused.err and "compares hidden_states" in refused.err
        assert not (tmp_path / "out").exists()
    # Logits are in the table.
    recipe.write_text(recipe.read_text().replace("  - !HiddenStateDistillationModifier {}", ""))
    done = student(tiny, tmp_path / "logits", others["vocabulary"], recipe=recipe, recipe_args=None)
    assert done.code == 0 and "with its own tokenizer" in flat(done.out), done.all


def test_a_model_that_teaches_itself(tiny: Tiny, tmp_path: Path) -> None:
    """A frozen copy of the model as it starts: at first there is nothing to learn from it."""
    done = student(tiny, tmp_path / "out", "self")
    assert done.code == 0, done.all
    loss = trace(tmp_path / "out", "train/distillation_loss")
    assert loss[1] < 0.1, loss  # what dropout does


def test_a_teacher_with_its_labels_in_another_order(tiny: Tiny, teacher: Path, tmp_path: Path, cache: Path) -> None:
    """Rows are labelled 0 and 1, so names say nothing: that is said, and that it is wrong on nearly every row."""
    turned = tmp_path / "turned"
    shutil.copytree(teacher, turned)
    tensors = load_file(turned / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name] = tensors[name].flip(0).contiguous()
    save_file(tensors, turned / "model.safetensors", metadata={"format": "pt"})
    config = read_json(turned / "config.json") | {"id2label": {0: "good", 1: "bad"}, "label2id": {"good": 0, "bad": 1}}
    (turned / "config.json").write_text(json.dumps(config))
    short = {"num_epochs": 1, "qat_start_epoch": 0.3, "observer_epoch": 0.6}
    right, wrong = (
        run(**tiny.flags(distill_teacher=each, recipe_args=short, output_dir=tmp_path / f"out_{each.name}"))
        for each in (teacher, turned)
    )
    assert right.code == wrong.code == 0, wrong.all
    assert "by position, not by name: 0 as good, 1 as bad" in wrong.err
    assert "of the training rows; always the same answer" in wrong.err
    assert "warning" not in right.err and "; correct on" in flat(right.out), right.all
