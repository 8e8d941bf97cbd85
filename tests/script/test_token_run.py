"""A run of token classification as a whole: quantized, resumed, shown, read again by sparse_accel and transformers."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import masks_of
from script_fixtures import SHORT, assert_same_model, flat, history, make_model, read_json, trace, wait, weights
from token_fixtures import LABELS, VOCABULARY, TinyTokens, make_tagger, run, start, unfinished
from transformers import AutoModelForTokenClassification, AutoTokenizer, BertForTokenClassification, pipeline

import sparse_accel
from sparse_accel.nn.layers import quantized_linears, quantizers

pytest_plugins = ["token_fixtures"]


def test_the_tutorials_recipe(tagger: Path) -> None:
    results = read_json(tagger / "all_results.json")
    assert results["quantized_linears"] == results["linears"] == 13
    assert results["eval_f1"] > 0.7 and results["encoder_sparsity"] > 0.899
    masks, stored = masks_of(tagger), weights(tagger)
    assert len(masks) == 13 and all(not stored[name][~mask].any() for name, mask in masks.items())
    assert trace(tagger, "eval_f1")[28] == results["eval_f1"]
    config = read_json(tagger / "config.json")
    assert config["architectures"] == ["BertForTokenClassification"]
    assert list(config["id2label"].values()) == LABELS and list(config["label2id"]) != []


def test_a_pooler_that_token_classifiers_do_without(tokens: TinyTokens, tmp_path: Path) -> None:
    """The recipe lists bert.pooler, for text classification: said, not refused. A part that no BERT has is refused."""
    short = {"num_epochs": 1, "qat_start_epoch": 0, "observer_epoch": 0.5}
    flags = tokens.flags(do_eval=None, eval_strategy="no", recipe_args=short, max_train_samples=20)
    done = run(**flags, output_dir=tmp_path / "out")
    assert done.code == 0 and "BertForTokenClassification has no bert.pooler" in flat(done.out), done.all
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "modifiers:\n  - !QuantizationModifier {start_epoch: 0, submodules: [bert.encoder, bert.polar]}\n"
    )
    refused = run(**{**flags, "recipe": recipe, "recipe_args": None}, output_dir=tmp_path / "no")
    assert refused.code == 2 and "no module 'bert.polar'" in refused.err, refused.all


def test_a_finished_run_is_shown(tokens: TinyTokens, tagger: Path) -> None:
    before = {path.name: path.read_bytes() for path in tagger.iterdir() if path.is_file()}
    flags = tokens.flags(output_dir=tagger, test_file=tokens.folder / "unlabelled.conll", do_predict=True)
    again = run(**flags)
    assert again.code == 0 and "finished: nothing is trained again" in flat(again.out), again.all
    assert "eval_f1" in again.out and "already contains these predictions" in again.out
    assert {path.name: path.read_bytes() for path in tagger.iterdir() if path.is_file()} == before


def test_what_changes_the_figures_is_measured_again(tokens: TinyTokens, tagger: Path) -> None:
    flags = tokens.flags(output_dir=tagger, return_entity_level_metrics=True)
    other = run(**flags)
    assert other.code == 0 and "eval_f1_PER" in other.out, other.all
    plain = run(**tokens.flags(output_dir=tagger))
    assert plain.code == 0 and "eval_f1_PER" not in read_json(tagger / "eval_results.json"), plain.all


@pytest.fixture(scope="module")
def flags(tokens: TinyTokens, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """With dropout, and a teacher; 7 steps an epoch, 28 in all; QAT begins at 14, ranges freeze at 21."""
    folder = tmp_path_factory.mktemp("models")
    return tokens.flags(
        model_name_or_path=make_model(folder / "model", sparse=True, vocabulary=VOCABULARY),
        distill_teacher=make_tagger(folder / "teacher"),
        recipe_args={**SHORT, "distill_hardness": 0.5},
        save_strategy="steps",
        save_steps=5,
    )


@pytest.fixture(scope="module")
def whole(flags: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "out"
    done = run(**flags, output_dir=output)
    assert done.code == 0, done.all
    return output


def assert_same_run(one: Path, other: Path) -> None:
    """Models and figures are the same; durations may differ, and means of losses since the last log."""
    assert_same_model(one, other)
    first, second = (read_json(folder / "all_results.json") for folder in (one, other))
    assert {**first, "train_runtime": 0, "train_loss": 0} == {**second, "train_runtime": 0, "train_loss": 0}
    for name in ("eval_loss", "eval_f1", "train/learning_rate", "train/loss"):
        assert trace(one, name) == trace(other, name)
    assert [entry["step"] for entry in history(one)] == [entry["step"] for entry in history(other)]


@pytest.mark.parametrize("step", [5, 15, 25])
def test_going_on_from_any_checkpoint(flags: dict[str, Any], whole: Path, tmp_path: Path, step: int) -> None:
    """Mid-epoch in the float phase, after the start of QAT, and after the freeze."""
    output = unfinished(whole, tmp_path / "out", step)
    resumed = run(**flags, output_dir=output)
    assert resumed.code == 0 and f"from step {step}" in flat(resumed.out), resumed.all
    assert_same_run(output, whole)


@pytest.mark.slow
def test_going_on_after_a_kill(flags: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = start(**flags, output_dir=output)
    while not (output / "checkpoint-10").is_dir() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert wait(process).code == -signal.SIGKILL
    resumed = run(**flags, output_dir=output)
    assert resumed.code == 0 and "resuming from step" in flat(resumed.out), resumed.all
    assert_same_run(output, whole)


def test_the_folder_is_read_again(tagger: Path) -> None:
    """By sparse_accel with quantizers, by transformers without."""
    model, tokenizer = sparse_accel.load(tagger), AutoTokenizer.from_pretrained(tagger)
    plain: Any = AutoModelForTokenClassification.from_pretrained(tagger)
    assert type(model) is type(plain) is BertForTokenClassification
    assert quantized_linears(model) == (13, 13) and not quantizers(plain)
    assert all(quantizer.enabled for quantizer in quantizers(model).values())
    words = ["dmitri", "kern", "went", "to", "paris", "."]
    encoded = tokenizer(words, is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        quantized, floating = (each.eval()(**encoded).logits[0] for each in (model, plain))
    assert not torch.equal(quantized, floating) and float((quantized - floating).abs().max()) < 0.5
    firsts = [encoded.word_ids(0).index(number) for number in range(len(words))]
    assert LABELS[int(floating[firsts[0]].argmax())] == "B-PER"
    find: Any = pipeline("token-classification", model=str(tagger), aggregation_strategy="first")
    assert find("dmitri kern went to paris")[0]["entity_group"] == "PER"


def test_second_order_pruning(tokens: TinyTokens, tmp_path: Path) -> None:
    """Its gradient samples are means over labelled tokens, as the loss of a training step."""
    keys = "params: ['re:.*encoder.*dense.weight'], end_epoch: 1, update_frequency: 1, num_grads: 8, mask_type: block4"
    lines = ["!EpochRangeModifier {end_epoch: 1}", f"!OBSPruningModifier {{{keys}, fisher_block_size: 8}}"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("\n".join(["modifiers:", *(f"  - {line}" for line in lines)]))
    flags = tokens.flags(do_eval=None, eval_strategy="no", recipe=recipe, recipe_args=None, max_train_samples=20)
    done = run(**flags, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    found = {name: w for name, w in weights(tmp_path / "out").items() if "encoder" in name and "dense.weight" in name}
    blocks = torch.cat([weight.view(-1, 4) for weight in found.values()])
    assert float((blocks == 0).all(1).float().mean()) == pytest.approx(0.95, abs=1e-3)
