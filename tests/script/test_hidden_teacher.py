"""Distillation of hidden states and layers through the script: the teacher runs in each step, no table is made."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from script_fixtures import WORDS, Outcome, Tiny, assert_same_model, flat, make_model, read_json, run, trace
from transformers import AutoModelForSequenceClassification

pytest_plugins = ["script_fixtures"]

HIDDEN = "train/hidden_state_distillation_loss"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's tables of logits would lie."""
    monkeypatch.setenv("SPARSE_ACCEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "teacher_logits"


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with twice the student's blocks, half as wide again."""
    folder = tmp_path_factory.mktemp("teachers") / "deep"
    return make_model(folder, sparse=False, head=True, num_hidden_layers=4, hidden_size=48)


def student(tiny: Tiny, folder: Path, teacher: Any, *modifiers: str, **others: Any) -> Outcome:
    recipe = folder.with_suffix(".yaml")
    listed = ["!EpochRangeModifier {end_epoch: 2}", *modifiers]
    recipe.write_text("modifiers:\n" + "".join(f"  - {each}\n" for each in listed))
    flags = {"recipe": recipe, "recipe_args": None, "distill_teacher": teacher, "output_dir": folder, **others}
    return run(**tiny.flags(**flags))


def test_a_teacher_of_another_depth_and_width(tiny: Tiny, deep: Path, tmp_path: Path, cache: Path) -> None:
    modifier = "!HiddenStateDistillationModifier {gain: 2.0, embeddings: true}"
    done = student(tiny, tmp_path / "out", deep, modifier, learning_rate=1e-2)
    assert done.code == 0, done.all
    assert "it also runs in each step, for its embeddings, hidden_states" in flat(done.out)
    assert "blocks of the model learn from those of the teacher: 0 from" in flat(done.out)
    assert "learned projections" in flat(done.out)
    assert not cache.exists()
    loss = trace(tmp_path / "out", HIDDEN)
    assert loss[14] < 0.8 * loss[1]
    total, task, embedded = (
        trace(tmp_path / "out", f"train/{name}") for name in ("loss", "task_loss", "embedding_distillation_loss")
    )
    assert total == pytest.approx({step: task[step] + 2 * (loss[step] + embedded[step]) for step in loss}, abs=1e-5)
    # What is saved is the plain model.
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert not [name for name in read_json(tmp_path / "out" / "config.json") if "attn" in name]


def test_together_with_logits(tiny: Tiny, deep: Path, tmp_path: Path, cache: Path) -> None:
    modifiers = ("!DistillationModifier {}", "!HiddenStateDistillationModifier {tokens: first, attentions: true}")
    done = student(tiny, tmp_path / "out", deep, *modifiers)
    assert done.code == 0, done.all
    assert "its logits on the training rows: computed once" in flat(done.out)
    assert "for its attentions, hidden_states" in flat(done.out)
    assert len([*cache.iterdir()]) == 1
    for name in ("train/distillation_loss", "train/attention_distillation_loss", HIDDEN):
        assert trace(tmp_path / "out", name)


def test_a_teacher_with_its_own_tokenizer(tiny: Tiny, tmp_path: Path, cache: Path) -> None:
    """It reads its own tokens in each step; only what is not of each token can be compared."""
    other = make_model(
        tmp_path / "teacher", sparse=False, head=True, vocabulary=WORDS[::-1], max_position_embeddings=12
    )
    first = "!HiddenStateDistillationModifier {tokens: first, gain: 2}"
    pooled = "!PerLayerDistillationModifier {student_layer_names: [bert.pooler, classifier], project_features: false}"
    done = student(tiny, tmp_path / "out", other, first, pooled, gradient_accumulation_steps=2)
    assert done.code == 0, done.all
    assert "for its hidden_states, outputs of layers, with its own tokenizer, up to 12 tokens" in flat(done.out)
    assert not cache.exists()
    assert trace(tmp_path / "out", HIDDEN) and trace(tmp_path / "out", "train/per_layer_distillation_loss")
    with_logits = student(tiny, tmp_path / "both", other, first, "!DistillationModifier {}")
    assert with_logits.code == 0 and "its logits on the training rows, with its own" in flat(with_logits.out)


@pytest.mark.parametrize(
    ("modifier", "message"),
    [
        ("!HiddenStateDistillationModifier {}", "compares hidden_states of each token"),
        ("!HiddenStateDistillationModifier {tokens: first, attentions: true}", "compares attentions, hidden_states of"),
        ("!PerLayerDistillationModifier {}", "compares outputs of layers of each token"),
    ],
)
def test_tokens_one_by_one_need_the_same_tokens(tiny: Tiny, tmp_path: Path, modifier: str, message: str) -> None:
    other = make_model(tmp_path / "teacher", sparse=False, head=True, vocabulary=WORDS[::-1])
    refused = student(tiny, tmp_path / "out", other, modifier)
    assert refused.code == 2 and message in flat(refused.err), refused.all
    assert "or compare only logits or the first token" in flat(refused.err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("modifier", "words"),
    [
        (
            "!PerLayerDistillationModifier {student_layer_names: [bert.encoder.layer.7.output]}",
            "matches no layer of the",
        ),
        ("!PerLayerDistillationModifier {}", "has 14 layers to compare, the teacher 26"),
        ("!HiddenStateDistillationModifier {layers: {1: 4}}", "the teacher has no block 4"),
        ("!HiddenStateDistillationModifier {project_features: false}", "has width 32, and bert.encoder.layer.1"),
        ("!HiddenStateDistillationModifier {hiden_states: true}", "Did you mean 'hidden_states'"),
    ],
)
def test_mistakes_are_refused(tiny: Tiny, deep: Path, tmp_path: Path, modifier: str, words: str) -> None:
    refused = student(tiny, tmp_path / "out", deep, modifier)
    assert refused.code == 2 and words in flat(refused.err), refused.all
    assert len(refused.err.splitlines()) < 24 and not (tmp_path / "out").exists()


def test_without_a_teacher(tiny: Tiny, tmp_path: Path) -> None:
    modifier = "!HiddenStateDistillationModifier {}"
    refused = student(tiny, tmp_path / "out", None, modifier)
    assert refused.code == 2 and "the recipe uses distillation (HiddenStateDistillationModifier)" in flat(refused.err)
    assert student(tiny, tmp_path / "off", "disable", modifier).code == 0


def test_a_run_goes_on_where_it_stopped(tiny: Tiny, deep: Path, tmp_path: Path) -> None:
    """With the projections and their moments: to the bit, as if it had not stopped."""
    modifiers = ("!HiddenStateDistillationModifier {embeddings: true}", "!DistillationModifier {}")
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert student(tiny, whole, deep, *modifiers).code == 0
    part.mkdir()
    shutil.copytree(whole / "checkpoint-7", part / "checkpoint-7")  # as a kill after it would have left the folder
    record = (whole / "run.json").read_text().replace('"finished": true', '"finished": false')
    (part / "run.json").write_text(record)
    again = student(tiny, part, deep, *modifiers)
    assert again.code == 0 and "resuming from step 7" in flat(again.out), again.all
    assert_same_model(whole, part)
