"""Token classification with what else a run may have: --one_shot, a hold-out, other encoders, other flags."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from script_fixtures import RECIPE, assert_same_model, flat, read_json, trace
from token_fixtures import LABELS, NO_DROPOUT, TinyTokens, make_tagger, predicted, run, tagged
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizerFast,
)

pytest_plugins = ["token_fixtures"]

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def test_one_shot_needs_no_tags(tokens: TinyTokens, tmp_path: Path) -> None:
    """Ranges are taken from words; the figures are those of a model that was trained before, nearly."""
    trained = run(**tokens.short(num_train_epochs=6, learning_rate=1e-2, output_dir=tmp_path / "float"))
    assert trained.code == 0, trained.all
    flags: dict[str, Any] = {
        "model_name_or_path": tmp_path / "float",
        "train_file": tokens.test,
        "one_shot": True,
        "do_eval": True,
    }
    files: dict[str, Any] = {"validation_file": tokens.validation, "recipe": RECIPE, "output_dir": tmp_path / "out"}
    done = run(**flags, **files)
    assert done.code == 0, done.all
    before, after = (read_json(tmp_path / name / "all_results.json") for name in ("float", "out"))
    assert after["quantized_linears"] == 13 and before["quantized_linears"] == 0
    assert after["eval_f1"] == pytest.approx(before["eval_f1"], abs=0.05) and before["eval_f1"] > 0.6
    again = run(**flags, **files)
    assert again.code == 0 and "finished" in flat(again.out), again.all


def test_one_shot_without_a_head(tokens: TinyTokens, tmp_path: Path) -> None:
    flags: dict[str, Any] = {
        "model_name_or_path": tokens.model,
        "train_file": tokens.test,
        "one_shot": True,
        "recipe": RECIPE,
    }
    done = run(**flags, output_dir=tmp_path / "out")
    assert done.code == 0 and "has no fine-tuned head" in done.err, done.all
    assert read_json(tmp_path / "out" / "all_results.json")["quantized_linears"] == 13


def test_rows_are_held_out_and_drawn(tokens: TinyTokens, tmp_path: Path) -> None:
    flags: dict[str, Any] = {
        "validation_file": None,
        "validation_ratio": 0.2,
        "max_train_samples": 50,
        "max_eval_samples": 10,
    }
    done = run(**tokens.short(**flags, output_dir=tmp_path / "out"))
    assert done.code == 0 and "50 train, 10 validation" in flat(done.out), done.all
    assert "41 rows held out" in flat(done.out)
    # Held-out rows are numbered anew, and their figures are those of their own words.
    evaluated = run(**tokens.short(**flags, output_dir=tmp_path / "again"))
    assert evaluated.code == 0
    assert read_json(tmp_path / "out" / "eval_results.json") == read_json(tmp_path / "again" / "eval_results.json")


def test_drawn_rows_keep_their_tags(tokens: TinyTokens, tagger: Path, tmp_path: Path) -> None:
    """The figures of ten drawn rows are good, as those of all are."""
    flags: dict[str, Any] = {"model_name_or_path": tagger, "validation_file": tokens.validation, "do_eval": True}
    done = run(**flags, max_eval_samples=10, output_dir=tmp_path / "out")
    assert done.code == 0 and read_json(tmp_path / "out" / "eval_results.json")["eval_f1"] > 0.6, done.all


@pytest.mark.parametrize("figure", ["f1", "f1_PER"])
def test_the_best_by_a_figure(figure: str, tokens: TinyTokens, tmp_path: Path) -> None:
    best: dict[str, Any] = {"load_best_model_at_end": True, "metric_for_best_model": figure, "save_strategy": "epoch"}
    flags = tokens.short(**best, eval_strategy="epoch", num_train_epochs=3, learning_rate=1e-2)
    done = run(**flags, return_entity_level_metrics=figure != "f1", output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    logged = trace(tmp_path / "out", f"eval_{figure}")
    assert read_json(tmp_path / "out" / "eval_results.json")[f"eval_{figure}"] == max(logged.values())


def test_label_smoothing(tokens: TinyTokens, tmp_path: Path) -> None:
    for name, value in (("none", 0.0), ("some", 0.2)):
        assert run(**tokens.short(label_smoothing_factor=value, output_dir=tmp_path / name)).code == 0
    first, second = (trace(tmp_path / name, "train/loss")[1] for name in ("none", "some"))
    assert abs(first - second) > 1e-3


def test_processes_that_load_batches(tokens: TinyTokens, tmp_path: Path) -> None:
    for workers in (0, 1):
        done = run(**tokens.short(dataloader_num_workers=workers, do_eval=None, output_dir=tmp_path / str(workers)))
        assert done.code == 0, done.all
    assert_same_model(tmp_path / "0", tmp_path / "1")


# --- other encoders ---------------------------------------------------------------------------------------------------


def make_roberta(folder: Path) -> Path:
    """A tokenizer that works on bytes, trained on the words, and a model for it."""
    folder.mkdir()
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    lines = [" " + " ".join(row.words) for row in tagged(203, seed=1)]
    trained.train_from_iterator(lines, vocab_size=320, special_tokens=special, show_progress=False)
    trained.save_model(str(folder))
    tokenizer = RobertaTokenizerFast.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert not tokenizer.add_prefix_space  # as RoBERTa is published
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=66, initializer_range=0.2, **SIZES)
    RobertaForMaskedLM(config).save_pretrained(folder)
    return folder


def test_a_byte_level_tokenizer(tokens: TinyTokens, tmp_path: Path) -> None:
    """It takes words for those inside of a text, with a blank before each; so does the saved one."""
    model = make_roberta(tmp_path / "model")
    flags: dict[str, Any] = {
        "model_name_or_path": model,
        "num_train_epochs": 4,
        "test_file": tokens.test,
        "do_predict": True,
    }
    done = run(**tokens.short(**flags, output_dir=tmp_path / "out"))
    assert done.code == 0, done.all
    assert read_json(tmp_path / "out" / "eval_results.json")["eval_f1"] > 0.4
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(["in", "paris"], is_split_into_words=True)["input_ids"])
    assert pieces[0] == "<s>" and pieces[1] == "Ġin" and sum(piece.startswith("Ġ") for piece in pieces) == 2
    again = run(
        model_name_or_path=tmp_path / "out", output_dir=tmp_path / "again", test_file=tokens.test, do_predict=True
    )
    assert again.code == 0, again.all
    first, second = (predicted(tmp_path / name / "test_predictions.csv") for name in ("out", "again"))
    assert [entry[:2] for row in first for entry in row] == [entry[:2] for row in second for entry in row]
    assert [row.words for row in tagged(17, seed=3)] == [[word for word, _, _ in row] for row in first]


def test_other_encoders(tokens: TinyTokens, tmp_path: Path) -> None:
    relative: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}
    small: dict[str, Any] = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    common: dict[str, Any] = {"vocab_size": 60, "max_position_embeddings": 64}
    models = {
        "deberta": DebertaV2ForMaskedLM(DebertaV2Config(**common, **relative, **SIZES)),
        "distilbert": DistilBertForMaskedLM(DistilBertConfig(**common, **small)),
    }
    for name, model in models.items():
        folder = Path(shutil.copytree(tokens.model, tmp_path / name))
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder)
        done = run(**tokens.short(model_name_or_path=folder, output_dir=tmp_path / f"out_{name}"))
        assert done.code == 0, done.all
        assert "eval_f1" in read_json(tmp_path / f"out_{name}" / "eval_results.json")


def test_a_tokenizer_without_word_numbers(tokens: TinyTokens, tmp_path: Path) -> None:
    """A slow one cannot say which pieces are of which word."""
    config = json.loads((make_tagger(tmp_path / "model") / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "model_type": "canine"}))
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CanineTokenizer"}))
    (tmp_path / "model" / "tokenizer.json").unlink()
    done = run(**tokens.short(model_name_or_path=tmp_path / "model", output_dir=tmp_path / "out"))
    assert done.code == 2 and "Traceback" not in done.all, done.all


def test_numbers_without_names(tokens: TinyTokens, tagger: Path, tmp_path: Path) -> None:
    """A model that has names: they are taken in order, and that is said."""
    rows = [{"tokens": row.words, "tags": [LABELS.index(tag) for tag in row.tags]} for row in tagged(60, seed=2)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    done = run(model_name_or_path=tagger, validation_file=tmp_path / "rows.json", do_eval=True, output_dir=tmp_path)
    assert done.code == 0 and "0 as O, 1 as B-LOC" in done.err, done.all
    figures = read_json(tmp_path / "eval_results.json")
    assert figures["eval_accuracy"] > 0.9 and figures["eval_f1"] > 0.5  # of entities: the model's names tell them
    assert done.err.count("matched by position") == 1


def test_sentences_without_an_entity_are_judged_as_the_models_others(tagger: Path, tmp_path: Path) -> None:
    """All O looks like plain tags; then what the model finds by mistake was in no figure of entities."""
    rows = tagged(40, seed=3)
    lines = ["\n".join(f"{word} O" for word in row.words) for row in rows]
    (tmp_path / "rows.conll").write_text("\n\n".join(lines) + "\n")
    done = run(model_name_or_path=tagger, validation_file=tmp_path / "rows.conll", do_eval=True, output_dir=tmp_path)
    assert done.code == 0, done.all
    figures = read_json(tmp_path / "eval_results.json")
    assert figures["eval_f1"] == figures["eval_precision"] == 0 and figures["eval_accuracy"] < 1


def test_a_head_without_names_takes_those_of_the_data(tokens: TinyTokens, tmp_path: Path) -> None:
    model = make_tagger(tmp_path / "model", [f"LABEL_{number}" for number in range(5)], **NO_DROPOUT)
    done = run(**tokens.short(model_name_or_path=model, output_dir=tmp_path / "out"))
    assert done.code == 0 and "the model's own" in flat(done.out), done.all
    assert list(read_json(tmp_path / "out" / "config.json")["id2label"].values()) == LABELS
