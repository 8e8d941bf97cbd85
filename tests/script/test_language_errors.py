"""What is wrong with texts, flags and models of masked language modelling: one screen, exit 2, place and remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from language_fixtures import TinyTexts, run, write_texts
from script_fixtures import flat, make_model
from token_fixtures import VOCABULARY

pytest_plugins = ["language_fixtures"]


def refused(said: tuple[str, ...], flags: dict[str, Any], output: Path) -> None:
    """Runs the script, which says all of this in one line, and makes no folder."""
    done = run(**{**flags, "output_dir": output})
    assert done.code == 2 and "Traceback" not in done.all, done.all
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and len(errors[0]) < 600, done.all
    assert all(each in errors[0] for each in said), done.all
    assert not output.exists()


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", ("train.txt is empty",)),
        (b"\xef\xbb\xbf", ("train.txt",)),
        (b"\n \n\r\n", ("train.txt has no text: all its lines are blank",)),
        (b"one\nv\xf3\xf3r\n", ("train.txt, line 2: not UTF-8 text", "save it as UTF-8")),
        ("one\ntwo\n".encode("utf-16"), ("train.txt is not UTF-8 text but UTF-16",)),
        (b"one\ntw\0o\n", ("train.txt, line 2: contains a NUL character",)),
        (b"PK\x03\x04" + bytes(30), ("train.txt", "zip")),
    ],
    ids=["empty", "a mark alone", "blank", "Latin-1", "UTF-16", "NUL", "zip"],
)
def test_text_files(content: bytes, said: tuple[str, ...], language: TinyTexts, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes(content)
    refused(said, language.flags(train_file=tmp_path / "train.txt"), tmp_path / "out")
    refused(said, language.flags(validation_file=tmp_path / "train.txt"), tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content", "flags", "said"),
    [
        (
            "a.csv",
            "body,title\na b,c d\ne f,g h\n",
            {},
            ("a.csv: no column, or several", "body, title", "--text_column_name"),
        ),
        (
            "a.csv",
            "one,two\na b,c d\ne f,g h\n",
            {},
            ("a.csv: no column, or several", "one, two", "--text_column_name"),
        ),
        ("a.csv", "n,m\n1,2\n3,4\n", {}, ("a.csv: no column, or several", "n, m", "--text_column_name")),
        ("a.csv", "text,id\n,1\n ,2\n", {}, ("a.csv: no column, or several", "text, id", "--text_column_name")),
        (
            "a.csv",
            "text,id\n,1\n ,2\n",
            {"text_column_name": "text"},
            ("a.csv: column 'text' has no text: all 2 rows are blank",),
        ),
        (
            "a.csv",
            "text,id\na,1\n",
            {"text_column_name": "txt"},
            ("a.csv has no column 'txt' (--text_column_name). Did you mean 'text'?",),
        ),
        ("a.jsonl", '{"text": "a"}\n{"text": 5}\n', {}, ("a.jsonl, row 2 (line 2)", "'text'", "5, which is not text")),
        ("a.jsonl", '{"text": "a"}\n{"text": ["b"]}\n', {}, ("a.jsonl, row 2 (line 2)", "which is not text")),
        ("a.jsonl", '{"text": "a"}\n{"text": "\\ud800"}\n', {}, ("a.jsonl, row 2 (line 2)", "lone surrogate")),
        ("a.json", '[{"n": 5}]', {}, ("a.json: no column, or several", "--text_column_name")),
        ("a.json", '[{"n": 5, "text": "a"}]', {"text_column_name": "n"}, ("a.json, row 1", "'n'", "is not text")),
    ],
)
def test_files_of_columns(
    name: str, content: str, flags: dict[str, Any], said: tuple[str, ...], language: TinyTexts, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    refused(said, language.flags(train_file=tmp_path / name, do_eval=None, **flags), tmp_path / "out")


def test_a_column_of_a_text_file(language: TinyTexts, tmp_path: Path) -> None:
    said = ("train.txt has no column 'body' (--text_column_name)",)
    refused(said, language.flags(text_column_name="body"), tmp_path / "out")


def test_a_file_of_another_kind(language: TinyTexts, tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_text("x")
    refused(("a.docx must end in one of .txt, .csv",), language.flags(train_file=tmp_path / "a.docx"), tmp_path / "out")


def test_no_rows_to_evaluate(language: TinyTexts, tmp_path: Path) -> None:
    refused(("--validation_ratio 0.1",), language.flags(validation_file=None), tmp_path / "out")


def test_texts_of_another_script(language: TinyTexts, tmp_path: Path) -> None:
    """Every word is unknown to the tokenizer: what it was is unknown, so nothing can be masked."""
    file = write_texts(tmp_path / "train.txt", ["漢字", "かな"])
    for flags in ({}, {"line_by_line": True}):
        refused(
            ("train.txt: no token can be masked", "such as [UNK]"),
            language.flags(train_file=file, **flags),
            tmp_path / "out",
        )


# --- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"do_predict": True}, ("--do_predict: a language model", "--do_eval")),
        ({"new_head": True}, ("--new_head: a language model keeps its head",)),
        ({"label_smoothing_factor": 0.1}, ("--label_smoothing_factor is for classes",)),
        ({"mlm_probability": 0}, ("--mlm_probability", "above 0")),
        ({"mlm_probability": 1}, ("--mlm_probability", "below 1")),
        ({"mlm_probability": "15%"}, ("--mlm_probability",)),
        ({"max_seq_length": 2}, ("--max_seq_length", "at least 3")),
        ({"mlm": True}, ("--mlm is not supported", "masks tokens")),
        ({"plm_probability": 0.2}, ("--plm_probability is not supported", "permutations")),
        ({"block_size": 128}, ("--block_size is not supported: use --max_seq_length",)),
        ({"input_column_names": "text"}, ("--input_column_names is not supported", "--text_column_name")),
        ({"label_column_name": "label"}, ("--label_column_name is not supported: texts have no labels",)),
        ({"whole_word_masking": True}, ("Did you mean '--whole_word_mask'?",)),
        (
            {
                "load_best_model_at_end": True,
                "eval_strategy": "epoch",
                "save_strategy": "epoch",
                "metric_for_best_model": "f1",
            },
            ("--metric_for_best_model: this task has no 'f1'", "loss, perplexity, accuracy"),
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_flags(flags: dict[str, Any], said: tuple[str, ...], language: TinyTexts, tmp_path: Path) -> None:
    refused(said, language.flags(**flags), tmp_path / "out")


def test_a_row_without_room(language: TinyTexts, tmp_path: Path) -> None:
    """A model of three positions, two of which are special tokens, has room for one; of two, for none."""
    short = Path(shutil.copytree(language.model, tmp_path / "short"))
    config = json.loads((short / "tokenizer_config.json").read_text())
    (short / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 2}))
    for flags in ({}, {"line_by_line": True}):
        said = ("a row of 2 tokens has no room for text, because 2 are special tokens",)
        refused(said, language.flags(model_name_or_path=short, **flags), tmp_path / "out")


# --- models -----------------------------------------------------------------------------------------------------------


def test_a_tokenizer_without_a_mask_token(language: TinyTexts, tmp_path: Path) -> None:
    model = Path(shutil.copytree(language.model, tmp_path / "model"))
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "mask_token": None}))
    refused(("has no mask token", "mask_token"), language.flags(model_name_or_path=model), tmp_path / "out")


def test_a_classifier(language: TinyTexts, tmp_path: Path) -> None:
    """It cannot be measured, and a teacher it cannot be; to train, it gets a new head."""
    model = make_model(tmp_path / "classifier", sparse=False, head=True, vocabulary=VOCABULARY)
    said = ("was trained for text_classification, not for masked_language_modeling",)
    flags = {"model_name_or_path": model, "validation_file": language.validation, "do_eval": True}
    refused(said, flags, tmp_path / "out")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("modifiers:\n  - !EpochRangeModifier {end_epoch: 1}\n  - !DistillationModifier {hardness: 1}\n")
    refused(said, language.flags(recipe=recipe, num_train_epochs=None, distill_teacher=model), tmp_path / "out")
    done = run(**language.flags(model_name_or_path=model), output_dir=tmp_path / "trained")
    assert done.code == 0 and "newly initialized" in flat(done.out), done.all


def test_a_teacher_with_another_vocabulary(language: TinyTexts, tmp_path: Path) -> None:
    teacher = make_model(tmp_path / "other", sparse=False, vocabulary=VOCABULARY[::-1])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("modifiers:\n  - !EpochRangeModifier {end_epoch: 1}\n  - !DistillationModifier {hardness: 1}\n")
    said = ("needs its own tokenizer", "--use_teacher_tokenizer")
    refused(said, language.flags(recipe=recipe, num_train_epochs=None, distill_teacher=teacher), tmp_path / "out")
