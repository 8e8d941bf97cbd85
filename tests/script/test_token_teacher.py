"""Distillation by token: the teacher's logits from a table, of labelled tokens alone, labels by name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from script_fixtures import Outcome, assert_same_model, flat, make_model, read_json, trace
from token_fixtures import LABELS, NO_DROPOUT, VOCABULARY, TinyTokens, run, tagged
from transformers import AutoModelForTokenClassification, AutoTokenizer

from sparse_accel.models.teacher import Teacher

pytest_plugins = ["token_fixtures"]

# Labels and teacher both count; 7 steps an epoch, quantization begins with the 8th.
SHORT = {"num_epochs": 2, "qat_start_epoch": 1.0, "observer_epoch": 1.5, "init_lr": 1e-2, "distill_hardness": 0.5}
FLOAT_STEPS = 7


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's tables of logits lie."""
    monkeypatch.setenv("SPARSE_ACCEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "teacher_logits"


@pytest.fixture(scope="module")
def teacher(tokens: TinyTokens, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model that knows the task."""
    folder = tmp_path_factory.mktemp("teachers")
    dense = make_model(folder / "base", sparse=False, vocabulary=VOCABULARY, **NO_DROPOUT)
    flags = tokens.short(model_name_or_path=dense, num_train_epochs=6, learning_rate=1e-2)
    done = run(**flags, output_dir=folder / "teacher")
    assert done.code == 0, done.all
    assert read_json(folder / "teacher" / "eval_results.json")["eval_f1"] > 0.8
    return folder / "teacher"


def student(tokens: TinyTokens, output: Path, teacher: Any, **others: Any) -> Outcome:
    flags = {"recipe_args": SHORT, "distill_teacher": teacher, "output_dir": output, "do_eval": None}
    return run(**{**tokens.flags(**flags, eval_strategy="no", save_strategy="no"), **others})


def losses(folder: Path) -> list[float]:
    """Loss, task loss and distillation loss of every step before quantization."""
    names = ("train/loss", "train/task_loss", "train/distillation_loss")
    return [trace(folder, name)[step] for name in names for step in range(1, FLOAT_STEPS + 1)]


def test_the_table_holds_labelled_tokens(tokens: TinyTokens, teacher: Path, tmp_path: Path, cache: Path) -> None:
    done = student(tokens, tmp_path / "out", teacher)
    assert done.code == 0, done.all
    assert "computed once" in flat(done.out) and "of the words" in flat(done.out)
    (file,) = cache.iterdir()
    table = load_file(file)["logits"]
    sentences = tagged(203, seed=1)
    assert table.shape == (sum(len(row.words) for row in sentences), len(LABELS))
    model, tokenizer = AutoModelForTokenClassification.from_pretrained(teacher), AutoTokenizer.from_pretrained(teacher)
    begin = 0
    for row in sentences[:20]:
        encoded = tokenizer(row.words, is_split_into_words=True, return_tensors="pt")
        places = [encoded.word_ids(0).index(word) for word in range(len(row.words))]
        with torch.no_grad():
            expected = model.eval()(**encoded).logits[0, places]
        assert torch.allclose(table[begin : begin + len(places)], expected, atol=1e-5)
        begin += len(places)
    again = student(tokens, tmp_path / "again", teacher)
    assert "found on disk" in flat(again.out)
    assert_same_model(tmp_path / "out", tmp_path / "again")


@pytest.mark.parametrize("all_tokens", [None, True])
def test_the_table_is_the_live_teacher(
    all_tokens: bool | None, tokens: TinyTokens, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert student(tokens, tmp_path / "table", teacher, label_all_tokens=all_tokens).code == 0
    make_table = Teacher.make_table

    def make_none(self: Teacher, *arguments: Any, **others: Any) -> bool:
        found = make_table(self, *arguments, **others)
        self.table = None
        return found

    monkeypatch.setattr(Teacher, "make_table", make_none)
    live = student(tokens, tmp_path / "live", teacher, label_all_tokens=all_tokens)
    assert live.code == 0, live.all
    assert losses(tmp_path / "table") == pytest.approx(losses(tmp_path / "live"), abs=1e-5)
    assert trace(tmp_path / "live", "train/distillation_loss")[1] > 0.1


def test_padding_does_not_count(tokens: TinyTokens, teacher: Path, tmp_path: Path) -> None:
    assert student(tokens, tmp_path / "longest", teacher).code == 0
    padded = student(tokens, tmp_path / "padded", teacher, pad_to_max_length=True, max_seq_length=40)
    assert padded.code == 0 and "padded to 40" in flat(padded.out), padded.all
    assert losses(tmp_path / "longest") == pytest.approx(losses(tmp_path / "padded"), abs=1e-4)


def test_padding_does_not_count_in_hidden_states_and_attentions(
    tokens: TinyTokens, teacher: Path, tmp_path: Path, cache: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "modifiers:\n  - !EpochRangeModifier {end_epoch: 1}\n"
        "  - !HiddenStateDistillationModifier {attentions: true, embeddings: true}"
    )
    found: list[list[float]] = []
    for lengths in ({}, {"pad_to_max_length": True, "max_seq_length": 40}):
        folder = tmp_path / f"out{len(found)}"
        done = student(tokens, folder, teacher, recipe=recipe, recipe_args=None, learning_rate=1e-2, **lengths)
        assert done.code == 0 and not cache.exists(), done.all
        names = [f"train/{what}_distillation_loss" for what in ("hidden_state", "attention", "embedding")]
        found.append([trace(folder, name)[step] for name in names for step in range(1, FLOAT_STEPS + 1)])
    assert found[0] == pytest.approx(found[1], rel=1e-3) and found[0][6] < 0.9 * found[0][0]


def test_the_student_follows_the_teacher(tokens: TinyTokens, teacher: Path, tmp_path: Path) -> None:
    """At hardness 1 the teacher alone counts."""
    settings = {**SHORT, "num_epochs": 4, "qat_start_epoch": 3.0, "observer_epoch": 3.5, "distill_hardness": 1.0}
    done = student(tokens, tmp_path / "out", teacher, recipe_args=settings, do_eval=True)
    assert done.code == 0, done.all
    loss = trace(tmp_path / "out", "train/distillation_loss")
    assert loss[28] < 0.5 * loss[1] and trace(tmp_path / "out", "train/loss") == loss
    assert read_json(tmp_path / "out" / "eval_results.json")["eval_f1"] > 0.6


def test_labels_in_another_order(tokens: TinyTokens, teacher: Path, tmp_path: Path, cache: Path) -> None:
    order = [3, 0, 4, 2, 1]
    model: Any = AutoModelForTokenClassification.from_pretrained(teacher)
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight[order])
        model.classifier.bias.copy_(model.classifier.bias[order])
    model.config.id2label = {place: LABELS[number] for place, number in enumerate(order)}
    model.config.label2id = {LABELS[number]: place for place, number in enumerate(order)}
    turned = Path(shutil.copytree(teacher, tmp_path / "turned"))
    model.save_pretrained(turned)
    for place in (teacher, turned):
        done = student(tokens, tmp_path / f"out_{place.name}", place)
        assert done.code == 0, done.all
    assert len([*cache.iterdir()]) == 2
    assert losses(tmp_path / "out_teacher") == pytest.approx(losses(tmp_path / "out_turned"), abs=1e-6)
    model.config.id2label[0], model.config.label2id = "B-ORG", {}
    model.save_pretrained(turned)
    refused = student(tokens, tmp_path / "refused", turned)
    assert refused.code == 2 and "have different labels" in refused.err and "B-ORG" in refused.err, refused.all


def test_a_teacher_with_another_tokenizer_is_refused(tokens: TinyTokens, teacher: Path, tmp_path: Path) -> None:
    """Its tokens are others, so there is no answer on each of the student's."""
    other = Path(shutil.copytree(teacher, tmp_path / "other"))
    turned = make_model(tmp_path / "turned", sparse=False, vocabulary=VOCABULARY[::-1])
    shutil.copy(turned / "tokenizer.json", other)
    refused = student(tokens, tmp_path / "out", other)
    assert refused.code == 2, refused.all
    said = flat(refused.err)
    assert f"--distill_teacher {other} needs its own tokenizer" in said
    assert "this task compares the logits of tokens" in said and "--use_teacher_tokenizer" in said
    assert len(refused.err.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


def test_a_model_that_teaches_itself(tokens: TinyTokens, teacher: Path, tmp_path: Path) -> None:
    done = student(tokens, tmp_path / "out", "self", model_name_or_path=teacher)
    assert done.code == 0, done.all
    assert trace(tmp_path / "out", "train/distillation_loss")[1] == pytest.approx(0, abs=1e-5)


def test_a_teacher_of_texts_is_refused(tokens: TinyTokens, tmp_path: Path) -> None:
    other = make_model(tmp_path / "texts", sparse=False, head=True, vocabulary=VOCABULARY)
    refused = student(tokens, tmp_path / "out", other)
    assert refused.code == 2 and "--distill_teacher" in refused.err, refused.all
    assert "trained for text_classification, not for token_classification" in refused.err
    assert len(refused.err.strip().splitlines()) == 1
