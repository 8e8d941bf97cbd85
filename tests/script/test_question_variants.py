"""Question answering with what else a run may have: --one_shot, a hold-out, no answers, other encoders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from question_fixtures import LENGTH, RECIPE, TinyQuestions, questions, run, write_questions
from script_fixtures import assert_same_model, flat, read_json, trace, weights
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizerFast,
)

pytest_plugins = ["question_fixtures"]

INT8 = RECIPE.with_name("one_shot_int8.yaml")
SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


# --- without training -------------------------------------------------------------------------------------------------


def test_one_shot_needs_no_answers(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    """Ranges are taken from windows; the figures are nearly those of the model before."""
    flags: dict[str, Any] = {
        "train_file": tiny_questions.test,
        "validation_file": tiny_questions.validation,
        "recipe": INT8,
        "one_shot": True,
        "do_eval": True,
        "output_dir": tmp_path / "out",
    }
    done = run(**tiny_questions.of(tiny_questions.teacher, **flags))
    assert done.code == 0, done.all
    before, after = (
        read_json(tiny_questions.teacher / "eval_results.json"),
        read_json(tmp_path / "out/all_results.json"),
    )
    assert after["quantized_linears"] == 13
    assert after["eval_f1"] == pytest.approx(before["eval_f1"], abs=0.06) and after["eval_loss"] != before["eval_loss"]
    again = run(**tiny_questions.of(tiny_questions.teacher, **flags))
    assert again.code == 0 and "finished" in flat(again.out), again.all


def test_one_shot_without_a_head(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"train_file": tiny_questions.test, "one_shot": True, "recipe": INT8}
    done = run(**tiny_questions.of(tiny_questions.model, **flags), output_dir=tmp_path / "out")
    assert done.code == 0 and "has no fine-tuned head" in done.err, done.all
    assert read_json(tmp_path / "out" / "all_results.json")["quantized_linears"] == 13


@pytest.mark.parametrize("at_once", [False, True])
def test_second_order_pruning(at_once: bool, tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    """Its gradient samples are those of the mean of start and end, as the loss of a training step."""
    keys = "params: ['re:.*encoder.*dense.weight'], end_epoch: 1, update_frequency: 1, num_grads: 8, mask_type: block4"
    lines = ["!EpochRangeModifier {end_epoch: 1}", f"!OBSPruningModifier {{{keys}, fisher_block_size: 8}}"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("\n".join(["modifiers:", *(f"  - {line}" for line in lines)]))
    others: dict[str, Any] = {"recipe": recipe, "max_train_samples": 20, "model_name_or_path": tiny_questions.teacher}
    if at_once:
        others |= {"one_shot": True, "do_train": None, "num_train_epochs": None, "learning_rate": None}
    done = run(**tiny_questions.short(**others), output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    found = {name: w for name, w in weights(tmp_path / "out").items() if "encoder" in name and "dense.weight" in name}
    blocks = torch.cat([weight.view(-1, 4) for weight in found.values()])
    assert float((blocks == 0).all(1).float().mean()) == pytest.approx(0.95, abs=1e-3)


# --- rows -------------------------------------------------------------------------------------------------------------


def test_rows_are_held_out_and_drawn(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    flags: dict[str, Any] = {
        "validation_file": None,
        "validation_ratio": 0.2,
        "max_train_samples": 50,
        "max_eval_samples": 10,
    }
    done = run(**tiny_questions.short(**flags), output_dir=tmp_path / "out")
    assert done.code == 0 and "50 train, 10 validation" in flat(done.out), done.all
    assert "41 rows held out" in flat(done.out)
    answers = read_json(tmp_path / "out" / "eval_predictions.json")
    contexts = {row.id: row.context for row in questions(203, seed=1)}
    assert len(answers) == 10 and all(text in contexts[id_] for id_, text in answers.items())


def test_drawn_rows_keep_their_answers(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    """The figures of ten drawn questions are those of a file of these ten."""
    flags: dict[str, Any] = {"validation_file": tiny_questions.validation, "do_eval": True, "max_eval_samples": 10}
    done = run(**tiny_questions.of(tiny_questions.teacher, **flags), output_dir=tmp_path / "drawn")
    assert done.code == 0, done.all
    answers = read_json(tmp_path / "drawn" / "eval_predictions.json")
    rows = {row.id: row for row in questions(60, seed=2)}
    assert [*answers] != [*rows][:10] and len(answers) == 10
    flags = {"validation_file": write_questions(tmp_path / "ten.json", [rows[id_] for id_ in answers]), "do_eval": True}
    alone = run(**tiny_questions.of(tiny_questions.teacher, **flags), output_dir=tmp_path / "alone")
    assert alone.code == 0, alone.all
    for name in ("eval_results", "eval_predictions", "eval_nbest_predictions"):
        drawn, expected = (read_json(tmp_path / folder / f"{name}.json") for folder in ("drawn", "alone"))
        assert drawn == (pytest.approx(expected) if name == "eval_results" else expected)


def test_rows_to_predict_are_the_first_ones(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"test_file": tiny_questions.test, "do_predict": True, "max_predict_samples": 5}
    done = run(**tiny_questions.of(tiny_questions.teacher, **flags), output_dir=tmp_path)
    assert done.code == 0, done.all
    assert [*read_json(tmp_path / "test_predictions.json")] == [f"q3-{number}" for number in range(5)]


def test_the_best_by_a_figure(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    best: dict[str, Any] = {"load_best_model_at_end": True, "metric_for_best_model": "f1", "save_strategy": "epoch"}
    # So high a rate at first that a later epoch is worse.
    others: dict[str, Any] = {"eval_strategy": "epoch", "num_train_epochs": 3, "learning_rate": 2e-2}
    done = run(**tiny_questions.short(**best, **others), output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    logged = trace(tmp_path / "out", "eval_f1")
    results = read_json(tmp_path / "out" / "eval_results.json")
    assert results["eval_f1"] == max(logged.values()) and len(logged) == 3
    other = run(**tiny_questions.short(**best, **others), max_answer_length=2, output_dir=tmp_path / "out")
    assert other.code == 2 and "they differ in metric_settings" in flat(other.err), other.all
    contents = read_json(tmp_path / "out" / "eval_predictions.json")
    alone = tiny_questions.of(tmp_path / "out", validation_file=tiny_questions.validation, do_eval=True)
    assert run(**alone, output_dir=tmp_path / "alone").code == 0
    assert read_json(tmp_path / "alone" / "eval_predictions.json") == contents


def test_metrics_of_version_2_may_choose(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    file = write_questions(tmp_path / "rows.json", questions(40, seed=6, impossible=0.5), "nested v2.0")
    flags: dict[str, Any] = {"train_file": file, "validation_file": file, "version_2_with_negative": True}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "best_f1"}
    both = {"save_strategy": "epoch", "eval_strategy": "epoch"}
    done = run(**tiny_questions.short(**flags, **best, **both), output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    results = read_json(tmp_path / "out" / "eval_results.json")
    names = {"exact_match", "f1", "loss", "best_exact_match", "best_exact_match_threshold", "best_f1"}
    names |= {f"{kind}_answer_{name}" for kind in ("has", "no") for name in ("exact_match", "f1")}
    assert {*results} == {f"eval_{name}" for name in (*names, "best_f1_threshold")}
    assert (tmp_path / "out" / "eval_null_odds.json").is_file()
    # Without a question of a kind there is no figure of it.
    answered = write_questions(tmp_path / "answered.json", questions(10, seed=6), "nested v2.0")
    alone = tiny_questions.of(tmp_path / "out", validation_file=answered, version_2_with_negative=True, do_eval=True)
    assert run(**alone, output_dir=tmp_path / "alone").code == 0
    assert not [name for name in read_json(tmp_path / "alone" / "eval_results.json") if "no_answer" in name]


def test_processes_that_load_batches_and_tokenize(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    for workers in (None, 2):
        flags = {"dataloader_num_workers": workers, "preprocessing_num_workers": workers, "overwrite_cache": True}
        done = run(**tiny_questions.short(**flags, max_train_samples=70), output_dir=tmp_path / str(workers))
        assert done.code == 0, done.all
    assert_same_model(tmp_path / "None", tmp_path / "2")
    one, other = (read_json(tmp_path / name / "eval_nbest_predictions.json") for name in ("None", "2"))
    assert one == other


# --- other encoders ---------------------------------------------------------------------------------------------------


def make_roberta(folder: Path) -> Path:
    """A tokenizer that works on bytes, without token types and with two separators, and a model for it."""
    folder.mkdir()
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    lines = [f" {row.question} {row.context}" for row in questions(203, seed=1)]
    trained.train_from_iterator(lines, vocab_size=320, special_tokens=special, show_progress=False)
    trained.save_model(str(folder))
    tokenizer = RobertaTokenizerFast.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=66, initializer_range=0.2, **SIZES)
    RobertaForMaskedLM(config).save_pretrained(folder)
    return folder


def test_a_byte_level_tokenizer(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    """Its tokens have a blank before the word, answers do not; a blank may be a token of its own, after a word."""
    flags: dict[str, Any] = {
        "model_name_or_path": make_roberta(tmp_path / "model"),
        "num_train_epochs": 4,
        "learning_rate": 1e-2,
        "test_file": tiny_questions.test,
        "do_predict": True,
    }
    done = run(**tiny_questions.short(**flags), output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    assert read_json(tmp_path / "out" / "eval_results.json")["eval_f1"] > 0.3
    contexts = {row.id: row.context for row in questions(60, seed=2)}
    for id_, entries in read_json(tmp_path / "out" / "eval_nbest_predictions.json").items():
        assert all(entry["text"] in contexts[id_] and not entry["text"].startswith(" ") for entry in entries)


@pytest.mark.parametrize("name", ["deberta", "distilbert"])
def test_other_encoders(name: str, tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    relative: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}
    small: dict[str, Any] = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    common: dict[str, Any] = {"vocab_size": 60, "max_position_embeddings": 64}
    model = (
        DebertaV2ForMaskedLM(DebertaV2Config(**common, **relative, **SIZES))
        if name == "deberta"
        else DistilBertForMaskedLM(DistilBertConfig(**common, **small))
    )
    folder = Path(shutil.copytree(tiny_questions.model, tmp_path / name))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)
    done = run(**tiny_questions.short(model_name_or_path=folder, max_train_samples=60), output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    assert "eval_f1" in read_json(tmp_path / "out" / "eval_results.json")


def test_a_model_of_shorter_rows(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    """The default of 384 tokens is more than it reads: windows are as long as it reads."""
    flags = tiny_questions.short(max_seq_length=None, max_train_samples=60)
    done = run(**flags, output_dir=tmp_path / "out")
    assert done.code == 0 and "up to 64 tokens" in flat(done.out), done.all


# --- contexts as they are ---------------------------------------------------------------------------------------------


def test_contexts_without_letters(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    """A context of characters that the tokenizer drops has no token, and so no answer; the others are not shifted."""
    rows = [row.flat() for row in questions(6, seed=8)]
    rows[2]["context"] = "\u200b \u200b"
    (tmp_path / "rows.json").write_text(json.dumps([{**row, "answers": None} for row in rows]))
    flags = {"test_file": tmp_path / "rows.json", "do_predict": True}
    for version_2 in (None, True):
        output = tmp_path / f"out{version_2}"
        done = run(
            **tiny_questions.of(tiny_questions.teacher, **flags, version_2_with_negative=version_2), output_dir=output
        )
        assert done.code == 0, done.all
        answers = read_json(output / "test_predictions.json")
        assert answers["q8-2"] == "" and all(answers[row["id"]] in row["context"] for row in rows)
        assert version_2 or sum(text != "" for text in answers.values()) == 5
    assert read_json(output / "test_null_odds.json")["q8-2"] > 1e300
    del rows[2]
    (tmp_path / "others.json").write_text(json.dumps(rows))
    flags["test_file"] = tmp_path / "others.json"
    done = run(**tiny_questions.of(tiny_questions.teacher, **flags), output_dir=tmp_path / "others")
    expected = read_json(tmp_path / "others" / "test_predictions.json")
    found = read_json(tmp_path / "outNone" / "test_predictions.json")
    assert {id_: text for id_, text in found.items() if id_ != "q8-2"} == expected


def test_answers_that_no_window_holds(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    """An answer of more tokens than windows share may be whole in none: the row trains as one without an answer."""
    context = " ".join(["the", "old", "film"] * 10)
    row = {"id": "a", "question": "who ?", "context": context, "answers": {"text": [context], "answer_start": [0]}}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    files = {"train_file": tmp_path / "rows.json", "validation_file": tmp_path / "rows.json"}
    done = run(**tiny_questions.short(**files), output_dir=tmp_path / "out")
    assert done.code == 0 and f"up to {LENGTH} tokens" in flat(done.out), done.all
    assert read_json(tmp_path / "out" / "eval_results.json")["eval_exact_match"] == 0
