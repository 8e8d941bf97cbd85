"""How many tokens a model takes, and whether a tokenizer is its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from script_fixtures import WORDS, Tiny, flat, make_model, run, write_csv
from tiny import BAD, GOOD, PLAIN
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizer

from sparse_accel.models.loading import max_length

pytest_plugins = ["script_fixtures"]

# RoBERTa and its kin count positions from the one after the padding token's; XLNet has no limit.
VOCABULARY = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]", *GOOD, *BAD, *PLAIN]
SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
    "pad_token_id": 1,
}
XLNET = {"vocab_size": len(VOCABULARY), "d_model": 32, "n_layer": 1, "n_head": 4, "d_inner": 64, "pad_token_id": 1}
DISTILBERT = {"vocab_size": len(VOCABULARY), "dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 64}
LIMITS: dict[str, tuple[dict[str, Any], int]] = {
    "BertConfig": (SIZES, 66),
    "DistilBertConfig": ({**DISTILBERT, "max_position_embeddings": 66, "pad_token_id": 1}, 66),
    "ElectraConfig": ({**SIZES, "embedding_size": 32}, 66),
    "RobertaConfig": (SIZES, 64),
    "CamembertConfig": (SIZES, 64),
    "XLMRobertaConfig": (SIZES, 64),
    "MPNetConfig": (SIZES, 64),
    "Data2VecTextConfig": (SIZES, 64),
    "XLNetConfig": (XLNET, 10**9),
}


@pytest.mark.parametrize("kind", LIMITS)
def test_rows_are_cut_to_what_the_model_takes(kind: str, tmp_path: Path) -> None:
    """By a tokenizer that knows no limit: the longest row that is let through works, through the whole script."""
    settings, limit = LIMITS[kind]
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(getattr(transformers, kind)(**settings))
    model.save_pretrained(tmp_path / "model")
    BertTokenizer({word: number for number, word in enumerate(VOCABULARY)}).save_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert min(max_length(tokenizer, model), 10**9) == limit
    long = [{"text": "good film plot " * 40, "label": number % 2} for number in range(8)]
    file = write_csv(tmp_path / "long.csv", long)
    done = run(
        model_name_or_path=tmp_path / "model", train_file=file, validation_file=file, do_train=True, do_eval=True,
        max_steps=1, max_seq_length=512, output_dir=tmp_path / "out",
    )  # fmt: skip
    assert done.code == 0, done.all
    assert f"up to {min(limit, 512)} tokens" in flat(done.out)


def test_a_tokenizer_of_another_vocabulary_of_the_same_size(tiny: Tiny, tmp_path: Path) -> None:
    """Every token has an embedding, of another word: it runs, and learns from nonsense."""
    other = make_model(tmp_path / "other", sparse=False, vocabulary=WORDS[::-1])
    flags: dict[str, Any] = {"model_name_or_path": tiny.model, "train_file": tiny.train, "do_train": True}
    warned = run(**flags, tokenizer_name=other, max_steps=1, output_dir=tmp_path / "out")
    assert warned.code == 0, warned.all
    assert f"--tokenizer_name {other}" in warned.err and "tokens have other ids" in warned.err
    same = make_model(tmp_path / "same", sparse=False)
    silent = run(**flags, tokenizer_name=same, max_steps=1, output_dir=tmp_path / "silent")
    assert silent.code == 0 and "other ids" not in silent.err
    # A model without a tokenizer of its own has nothing to compare with.
    alone = make_model(tmp_path / "alone", sparse=False)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (alone / name).unlink(missing_ok=True)
    bare = run(
        **{**flags, "model_name_or_path": alone}, tokenizer_name=other, max_steps=1, output_dir=tmp_path / "bare"
    )
    assert bare.code == 0 and "other ids" not in bare.err, bare.all
    assert json.loads((tmp_path / "bare" / "arguments.json").read_text())["tokenizer_name"] == str(other)
