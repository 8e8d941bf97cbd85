"""What is wrong with data, flags and models of token classification: one screen, exit 2, file and line, remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from token_fixtures import PLAIN, Tagged, TinyTokens, run, tagged, write_conll

from sparse_accel.cli.token_classification import TokenClassificationArguments

pytest_plugins = ["token_fixtures"]


def refused(said: tuple[str, ...], flags: dict[str, Any], output: Path, lines: int = 1) -> None:
    """Runs the script, which says all of this in one line, and makes no folder."""
    done = run(**{**flags, "output_dir": output})
    assert done.code == 2 and "Traceback" not in done.all, done.all
    assert all(each in done.err for each in said), done.all
    assert len(done.err.strip().splitlines()) == lines and len(done.err) < 600, done.all
    assert not output.exists()


# --- files of words and tags in lines ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a O\nb O x\n\nc O\n", ("rows.conll, line 2: 'b O x' has 3 columns, but line 1 has 2", "empty line ends")),
        ("a O\nparis LOC\nb B-PER\n", ("rows.conll, line 2: the tag 'LOC'", "such as B-PER. Write O for a word")),
        ("a O\nparis X-LOC\nb B-PER\n", ("rows.conll, line 2: the tag 'X-LOC' begins with X-", "Write O")),
        ("a O\nparis LOC-B\n", ("rows.conll, line 2: the tag 'LOC-B'", "Write a capital letter first")),
        ("a O\nb\tB-\nc\tB-PER\n", ("rows.conll, line 2: the tag 'B-' has no type",)),
        ("", ("rows.conll is empty",)),
        ("\n-DOCSTART- -X- O\n\n", ("rows.conll has no sentences: expected a word and its tag in each line",)),
        ("a\nb\n\nc\n", ("rows.conll has one column", "expected tags in a second one")),
        ("a O\nb O\n", ("rows.conll: all tags are O; training needs two or more",)),
    ],
)
def test_files_of_lines(content: str, said: tuple[str, ...], tokens: TinyTokens, tmp_path: Path) -> None:
    file = tmp_path / "rows.conll"
    file.write_text(content)
    refused(said, tokens.short(train_file=file), tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a O\nparis B-LOK\n", ("rows.conll, line 2: the tag 'B-LOK' does not occur in", "Did you mean 'B-LOC'?")),
        ("a O\n\nacme B-ORG\n", ("rows.conll, line 3: the tag 'B-ORG'", "Its tags are: O, B-LOC, I-LOC, B-PER, I-PER")),
        ("a DT\nparis NN\n", ("rows.conll, line 1: the tag 'DT'", "Write O for a word outside of entities")),
    ],
)
def test_tags_that_training_lacks(content: str, said: tuple[str, ...], tokens: TinyTokens, tmp_path: Path) -> None:
    file = tmp_path / "rows.conll"
    file.write_text(content)
    refused(said, tokens.short(validation_file=file), tmp_path / "out")


def test_entities_for_a_model_of_plain_tags(tokens: TinyTokens, tmp_path: Path) -> None:
    train = write_conll(tmp_path / "pos.conll", tagged(20, seed=1), columns=4)
    flags = {"train_file": train, "label_column_name": 2, "validation_file": tokens.validation}
    train.write_text(train.read_text().replace(". NN", ". ."))
    refused(("validation.conll, line", "the tag", "does not occur in"), tokens.short(**flags), tmp_path / "out")


# --- files of lists ---------------------------------------------------------------------------------------------------

WORDS, TAGS = ["anna", "went"], ["B-PER", "O"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"tokens": WORDS, "ner_tags": ["O"]},
            (
                "row 2",
                "column 'ner_tags' has 1 tags for 2 tokens",
            ),
        ),
        ({"tokens": WORDS, "ner_tags": None}, ("row 2", "column 'ner_tags' has None, which is not a list of tags")),
        ({"tokens": WORDS, "ner_tags": ["O", None]}, ("column 'ner_tags', entry 2: the tag is None",)),
        ({"tokens": WORDS, "ner_tags": ["O", 1.5]}, ("column 'ner_tags', entry 2: the tag is 1.5",)),
        ({"tokens": WORDS, "ner_tags": ["O", True]}, ("column 'ner_tags', entry 2: the tag is True",)),
        ({"tokens": "anna went", "ner_tags": TAGS}, ("column 'tokens' is 'anna went', which is not a list of tokens",)),
        ({"tokens": [], "ner_tags": []}, ("column 'tokens' is empty: fix or delete this row",)),
        ({"tokens": ["anna", ""], "ner_tags": TAGS}, ("column 'tokens', entry 2: the token is empty",)),
        ({"tokens": ["anna", 5], "ner_tags": TAGS}, ("column 'tokens', entry 2: the token is 5, which is not text",)),
        ({"tokens": ["anna", "\ud800"], "ner_tags": TAGS}, ("entry 2: the token has a lone surrogate",)),
        ({"tokens": WORDS, "ner_tags": ["O", "B-\ud800"]}, ("column 'ner_tags', entry 2: the tag is",)),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_lists(suffix: str, row: dict[str, Any], said: tuple[str, ...], tokens: TinyTokens, tmp_path: Path) -> None:
    rows = [{"tokens": WORDS, "ner_tags": TAGS}, row]
    file = tmp_path / f"rows{suffix}"
    file.write_text(json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)))
    place = f"rows{suffix}, row 2" + (" (line 2)" if suffix == ".jsonl" else "")
    refused((place, *said), tokens.short(train_file=file), tmp_path / "out")


@pytest.mark.parametrize(
    ("row", "flags", "said"),
    [
        ({"toks": WORDS, "ner_tags": TAGS}, {}, ("no column 'tokens' or 'words'", "with --text_column_name")),
        ({"tokens": WORDS, "ner": TAGS}, {}, ("no tag column with a usual name", "--label_column_name")),
        ({"tokens": WORDS, "ner_tags": TAGS}, {"task_name": "pos"}, ("no tag column", "tokens, ner_tags")),
        (
            {"tokens": WORDS, "tags": TAGS},
            {"text_column_name": "token"},
            ("no column 'token' (--text_column_name). Did you mean 'tokens'?",),
        ),
        (
            {"tokens": WORDS, "tags": TAGS},
            {"label_column_name": "tag"},
            ("no column 'tag' (--label_column_name). Did you mean 'tags'?",),
        ),
    ],
)
def test_columns(
    row: dict[str, Any], flags: dict[str, Any], said: tuple[str, ...], tokens: TinyTokens, tmp_path: Path
) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([row]))
    files = {"train_file": file, "validation_file": file}
    refused(("rows.json", *said), tokens.short(**files, **flags), tmp_path / "out")


# --- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"label_column_name": "7"}, ("tag column 7 does not exist", "line 1 has 2")),
        ({"label_column_name": "1"}, ("column 1 contains the words",)),
        ({"label_column_name": "ner"}, ("have no names. Give the number of the tag column",)),
        ({"problem_type": "regression"}, ("--problem_type is not supported: each word has one label",)),
        ({"input_column_names": "tokens"}, ("--input_column_names is not supported", "--text_column_name")),
        ({"label_all_token": True}, ("Did you mean '--label_all_tokens'?",)),
        ({"max_seq_length": 2}, ("--max_seq_length",)),
        (
            {"load_best_model_at_end": True, "metric_for_best_model": "f2", "save_strategy": "epoch"},
            ("--metric_for_best_model: this task has no 'f2'", "precision, recall, f1, accuracy"),
        ),
    ],
)
def test_flags(flags: dict[str, Any], said: tuple[str, ...], tokens: TinyTokens, tmp_path: Path) -> None:
    refused(said, {**tokens.short(eval_strategy="epoch"), **flags}, tmp_path / "out")


def test_a_csv_file(tokens: TinyTokens, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("tokens,tags\na,O\n")
    refused(
        ("--train_file", "rows.csv must end in one of .conll, .txt, .tsv, .iob, .json, .jsonl, .parquet"),
        tokens.short(train_file=tmp_path / "rows.csv"),
        tmp_path / "out",
    )


# --- a model with other tags ------------------------------------------------------------------------------------------

OTHER = [
    Tagged(["paris", "saw", "anna", "kern"], ["B-LOC", "O", "B-PER", "I-PER"]),
    Tagged(["the", "acme", "inc", "."], ["O", "B-ORG", "I-ORG", "O"]),
]


def test_training_a_model_of_other_tags(tokens: TinyTokens, tagger: Path, tmp_path: Path) -> None:
    """Some are the model's own: to continue with its head, or to begin with a new one, is the user's to say."""
    file = write_conll(tmp_path / "rows.conll", OTHER)
    flags = tokens.short(model_name_or_path=tagger, train_file=file, validation_file=file)
    said: tuple[str, ...]
    said = ("rows.conll, line 7: the model does not have the tag 'B-ORG'", "or add --new_head")
    refused(said, flags, tmp_path / "out")
    done = run(**flags, new_head=True, output_dir=tmp_path / "new")
    assert done.code == 0 and "newly initialized (2 weights)" in done.out, done.all
    # None is the model's own: a task of its own, with a new head.
    file = write_conll(tmp_path / "others.conll", OTHER[1:])
    done = run(**{**flags, "train_file": file, "validation_file": file}, output_dir=tmp_path / "others")
    assert done.code == 0 and "newly initialized (2 weights)" in done.out, done.all


def test_evaluating_a_model_of_other_tags(tokens: TinyTokens, tagger: Path, tmp_path: Path) -> None:
    flags = {"model_name_or_path": tagger, "do_eval": True}
    file = write_conll(tmp_path / "rows.conll", OTHER)
    said: tuple[str, ...]
    said = ("rows.conll, line 7: the model does not have the tag 'B-ORG'", "O, B-LOC, I-LOC, B-PER, I-PER", "id2label")
    refused(said, {**flags, "validation_file": file}, tmp_path / "out")
    plain = tmp_path / "plain.conll"
    plain.write_text("".join(f"{word} {'DT' if word in ('the', 'a') else 'NN'}\n" for word in PLAIN))
    said = ("plain.conll, line 1: the model does not have the tag 'DT'",)
    refused(said, {**flags, "validation_file": plain}, tmp_path / "out")


def test_tags_in_other_capitals(tokens: TinyTokens, tagger: Path, tmp_path: Path) -> None:
    """They are the model's, and data need not have all of them."""
    file = tmp_path / "rows.conll"
    file.write_text("anna B-per\nkern I-per\nwas O\n")
    done = run(model_name_or_path=tagger, validation_file=file, do_eval=True, output_dir=tmp_path / "out")
    assert done.code == 0 and "eval_f1" in done.out, done.all


def test_words_to_predict_and_no_head(tokens: TinyTokens, tmp_path: Path) -> None:
    flags = {"model_name_or_path": tokens.model, "test_file": tokens.test, "do_predict": True}
    refused(("pruned90: no trained head", "Train the model first"), flags, tmp_path / "out")


def test_a_task_that_conll_files_have_no_use_for(tokens: TinyTokens) -> None:
    flags: dict[str, Any] = {"model_name_or_path": "x", "output_dir": "y", "do_train": True, "task_name": "pos"}
    arguments = TokenClassificationArguments(**flags, train_file=str(tokens.train))
    assert arguments.warnings() == [
        "--task_name has no effect on CoNLL files: give the column's number with --label_column_name."
    ]
