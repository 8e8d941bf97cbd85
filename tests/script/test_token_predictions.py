"""What --do_predict writes: a line for every word of the file, in its order, whatever the model makes of the words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from script_fixtures import flat, make_model, read_json, trace
from token_fixtures import NO_DROPOUT, VOCABULARY, Tagged, TinyTokens, predicted, run, tagged, write_conll
from transformers import AutoTokenizer

import sparse_accel

pytest_plugins = ["token_fixtures"]

LONG = [*tagged(1, seed=50, entities=(20, 24)), *tagged(3, seed=51), *tagged(1, seed=52, entities=(30, 30))]
NOTHING = "\u200b"  # BERT's tokenizer deletes a zero-width space


def test_every_word_of_a_file_without_tags(tokens: TinyTokens, tagger: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"model_name_or_path": tagger, "test_file": tokens.test, "do_predict": True}
    done = run(**flags, per_device_eval_batch_size=1, output_dir=tmp_path)
    assert done.code == 0 and "17 predictions" in done.out, done.all
    rows = predicted(tmp_path / "test_predictions.csv")
    assert [[word for word, _, _ in row] for row in rows] == [row.words for row in tagged(17, seed=3)]
    model, tokenizer = sparse_accel.load(tagger), AutoTokenizer.from_pretrained(tagger)
    names = read_json(tagger / "config.json")["id2label"]
    for row in rows:
        encoded = tokenizer([word for word, _, _ in row], is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            shares = model(**encoded).logits.softmax(-1)[0]
        places = [encoded.word_ids(0).index(word) for word in range(len(row))]
        for (_, label, probability), share in zip(row, shares[places], strict=True):
            assert probability == pytest.approx(float(share.max()), abs=2e-5)
            assert label == names[str(int(share.argmax()))]


def test_a_long_sentence_is_split_and_not_cut(tokens: TinyTokens, tagger: Path, tmp_path: Path) -> None:
    files: dict[str, Any] = {"test_file": write_conll(tmp_path / "long.conll", LONG, columns=1), "do_predict": True}
    done = run(model_name_or_path=tagger, output_dir=tmp_path / "whole", **files)
    assert done.code == 0, done.all
    rows = predicted(tmp_path / "whole" / "test_predictions.csv")
    assert [[word for word, _, _ in row] for row in rows] == [row.words for row in LONG]
    assert all(probability > 0 for row in rows for _, _, probability in row)
    assert len(LONG[0].words) > 64
    found = [label for _, label, _ in rows[4]]
    share = sum(one == other for one, other in zip(found, LONG[4].tags, strict=True)) / len(found)
    assert share > 0.7, "also in the parts after the first"


def test_the_start_table_tells_how_many_are_split(tokens: TinyTokens, tmp_path: Path) -> None:
    file = write_conll(tmp_path / "long.conll", LONG)
    flags: dict[str, Any] = {
        "train_file": file,
        "validation_file": file,
        "test_file": file,
        "do_predict": True,
        "max_seq_length": 16,
    }
    done = run(**tokens.short(**flags, output_dir=tmp_path / "out"))
    assert done.code == 0, done.all
    said = flat(done.out)
    assert "up to 16 tokens" in said and "longer rows are split: 5 train in " in said
    assert "5 validation in " in said and "5 test in " in said and "5 predictions" in said
    rows = predicted(tmp_path / "out" / "test_predictions.csv")
    assert [[word for word, _, _ in row] for row in rows] == [row.words for row in LONG]


def test_a_word_longer_than_a_part(tokens: TinyTokens, tagger: Path, tmp_path: Path) -> None:
    """Only one piece of it fits; each word is a part of its own."""
    file = write_conll(tmp_path / "words.conll", [Tagged(["dmitri", "saw", "vladivostok", "."], ["O"] * 4)], columns=1)
    done = run(
        model_name_or_path=tagger, output_dir=tmp_path / "out", test_file=file, do_predict=True, max_seq_length=3
    )
    assert done.code == 0, done.all
    (row,) = predicted(tmp_path / "out" / "test_predictions.csv")
    assert [word for word, _, _ in row] == ["dmitri", "saw", "vladivostok", "."]


SENTENCES = [["the", NOTHING, "anna", "kern"], [NOTHING], [NOTHING, "\u00a0", "boris"], ["paris", NOTHING]]


@pytest.mark.parametrize("suffix", [".conll", ".json"])
def test_words_without_pieces(suffix: str, tagger: Path, tmp_path: Path) -> None:
    """They are O, and shift no other word."""
    file = tmp_path / f"words{suffix}"
    lines = "\n\n".join("\n".join(words) for words in SENTENCES)
    file.write_text(lines if suffix == ".conll" else json.dumps([{"tokens": words} for words in SENTENCES]))
    done = run(model_name_or_path=tagger, output_dir=tmp_path / "out", test_file=file, do_predict=True)
    assert done.code == 0, done.all
    rows = predicted(tmp_path / "out" / "test_predictions.csv")
    assert [[word for word, _, _ in row] for row in rows] == SENTENCES
    assert all(label == "O" for row in rows for word, label, _ in row if not word.strip(f"{NOTHING}\u00a0"))
    clean = [[word for word in words if word.strip(f"{NOTHING}\u00a0")] for words in SENTENCES]
    clean_file = write_conll(tmp_path / "clean.conll", [Tagged(words, ["O"] * len(words)) for words in clean if words])
    assert run(model_name_or_path=tagger, output_dir=tmp_path, test_file=clean_file, do_predict=True).code == 0
    expected = [entry for row in predicted(tmp_path / "test_predictions.csv") for entry in row]
    with_pieces = [entry for row in rows for entry in row if entry[0].strip(f"{NOTHING}\u00a0")]
    assert [entry[:2] for entry in with_pieces] == [entry[:2] for entry in expected]
    assert [entry[2] for entry in with_pieces] == pytest.approx([entry[2] for entry in expected], abs=1e-5)


def test_words_without_pieces_in_training_and_evaluation(tokens: TinyTokens, tmp_path: Path) -> None:
    """A sentence of nothing else has no loss; an entity of such words is never found."""
    odd = [Tagged([NOTHING, NOTHING], ["O", "B-PER"]), Tagged(["anna", NOTHING, "kern"], ["B-PER", "I-PER", "I-PER"])]
    train = write_conll(tmp_path / "train.conll", [*odd, *tagged(40, seed=1)])
    validation = write_conll(tmp_path / "validation.conll", odd[:1])
    flags: dict[str, Any] = {"train_file": train, "validation_file": validation, "per_device_train_batch_size": 1}
    done = run(**tokens.short(**flags, output_dir=tmp_path / "out"))
    assert done.code == 0, done.all
    assert 0.0 in trace(tmp_path / "out", "train/loss").values()
    assert read_json(tmp_path / "out" / "eval_results.json") == {
        "eval_precision": 0.0,
        "eval_recall": 0.0,
        "eval_f1": 0.0,
        "eval_accuracy": 0.5,
        "eval_loss": 0.0,
    }


def test_rows_to_predict_are_the_first_ones(tagger: Path, tokens: TinyTokens, tmp_path: Path) -> None:
    flags: dict[str, Any] = {
        "model_name_or_path": tagger,
        "output_dir": tmp_path,
        "test_file": tokens.test,
        "do_predict": True,
    }
    assert run(**flags, max_predict_samples=3).code == 0
    rows = predicted(tmp_path / "test_predictions.csv")
    assert [[word for word, _, _ in row] for row in rows] == [row.words for row in tagged(17, seed=3)[:3]]


def test_a_tokenizer_that_pads_on_the_left(tokens: TinyTokens, tmp_path: Path) -> None:
    """Labels and numbers of words follow the pieces."""
    traces = []
    for side in ("right", "left"):
        model = make_model(tmp_path / side / "model", sparse=False, vocabulary=VOCABULARY, **NO_DROPOUT)
        config = read_json(model / "tokenizer_config.json")
        (model / "tokenizer_config.json").write_text(json.dumps({**config, "padding_side": side}))
        flags = tokens.short(model_name_or_path=model, output_dir=tmp_path / side / "out", num_train_epochs=4)
        assert run(**flags).code == 0
        traces.append(read_json(tmp_path / side / "out" / "eval_results.json")["eval_f1"])
    assert min(traces) > 0.5
