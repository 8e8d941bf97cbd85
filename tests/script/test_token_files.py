"""Token classification from every kind of file: the same entities give the same model, bit by bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from script_fixtures import assert_same_model, flat, read_json
from token_fixtures import LABELS, NO_DROPOUT, Tagged, TinyTokens, make_tagger, run, tagged, write_conll

from sparse_accel.tasks.token_classification.tags import BIOES, IOB1, IOB2

pytest_plugins = ["token_fixtures"]

# Enough of them that each scheme shows what tells it from the others.
TRAIN, VALIDATION = tagged(64, seed=1), tagged(20, seed=2)


@pytest.fixture(scope="module")
def straight(tokens: TinyTokens, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from two columns of IOB2, separated by blanks."""
    folder = tmp_path_factory.mktemp("straight")
    files = {
        "train_file": write_conll(folder / "train.conll", TRAIN),
        "validation_file": write_conll(folder / "validation.conll", VALIDATION),
    }
    done = run(**tokens.short(**files, output_dir=folder / "out"))
    assert done.code == 0, done.all
    return folder / "out"


def as_conll(suffix: str, **form: Any) -> Callable[[Path, str, Sequence[Tagged]], Path]:
    return lambda folder, name, rows: write_conll(folder / f"{name}{suffix}", rows, **form)


def objects(rows: Sequence[Tagged]) -> list[dict[str, list[str]]]:
    return [{"words": row.words, "labels": row.tags} for row in rows]


def as_json(folder: Path, name: str, rows: Sequence[Tagged]) -> Path:
    (folder / f"{name}.json").write_text(json.dumps(objects(rows)))
    return folder / f"{name}.json"


def as_lines(folder: Path, name: str, rows: Sequence[Tagged]) -> Path:
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, objects(rows))))
    return folder / f"{name}.jsonl"


def as_parquet(folder: Path, name: str, rows: Sequence[Tagged]) -> Path:
    columns = {"tokens": [row.words for row in rows], "ner_tags": [row.tags for row in rows]}
    datasets.Dataset.from_dict(columns).to_parquet(folder / f"{name}.parquet")
    return folder / f"{name}.parquet"


def with_class_labels(rows: Sequence[Tagged], names: Sequence[str] = LABELS) -> datasets.Dataset:
    """As datasets on the Hub have them: tags are numbers, and their names are declared."""
    features = {
        "id": datasets.Value("string"),
        "tokens": datasets.List(datasets.Value("string")),
        "pos_tags": datasets.List(datasets.Value("int64")),
        "ner_tags": datasets.List(datasets.ClassLabel(names=list(names))),
    }
    columns = {
        "id": [str(number) for number in range(len(rows))],
        "tokens": [row.words for row in rows],
        "pos_tags": [[len(word) % 3 for word in row.words] for row in rows],
        "ner_tags": [[names.index(tag) for tag in row.tags] for row in rows],
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def as_parquet_with_names(folder: Path, name: str, rows: Sequence[Tagged]) -> Path:
    with_class_labels(rows).to_parquet(folder / f"{name}.parquet")
    return folder / f"{name}.parquet"


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(as_conll(".txt", columns=4), id="four columns and documents"),
        pytest.param(as_conll(".tsv", separator="\t"), id="tabs"),
        pytest.param(as_conll(".iob", separator="\t", columns=4, scheme=IOB1), id="IOB1"),
        pytest.param(as_conll(".conll", scheme=BIOES), id="BIOES"),
        pytest.param(as_json, id="JSON"),
        pytest.param(as_lines, id="JSONL"),
        pytest.param(as_parquet, id="Parquet"),
        pytest.param(as_parquet_with_names, id="Parquet, numbers with names"),
    ],
)
def test_other_files_train_the_same_model(
    write: Callable[[Path, str, Sequence[Tagged]], Path], tokens: TinyTokens, straight: Path, tmp_path: Path
) -> None:
    files = {
        "train_file": write(tmp_path, "train", TRAIN),
        "validation_file": write(tmp_path, "validation", VALIDATION),
    }
    done = run(**tokens.short(**files, output_dir=tmp_path / "out"))
    assert done.code == 0 and "warning" not in done.err, done.all
    assert_same_model(straight, tmp_path / "out")
    assert read_json(tmp_path / "out" / "eval_results.json") == read_json(straight / "eval_results.json")


def test_files_of_different_kinds(tokens: TinyTokens, straight: Path, tmp_path: Path) -> None:
    """Each is read by its own rules: columns of lists in one, lines in the other, in another scheme."""
    files = {"train_file": as_lines(tmp_path, "train", TRAIN)}
    files["validation_file"] = write_conll(tmp_path / "validation.conll", VALIDATION, scheme=BIOES)
    done = run(**tokens.short(**files, output_dir=tmp_path / "out"))
    assert done.code == 0 and "tokens: words; tags: labels, IOB2" in done.out, done.all
    assert_same_model(straight, tmp_path / "out")
    assert read_json(tmp_path / "out" / "eval_results.json") == read_json(straight / "eval_results.json")


def test_folders_of_a_dataset(tokens: TinyTokens, straight: Path, tmp_path: Path) -> None:
    """One that save_to_disk wrote, whose columns --task_name tells apart; and one of CoNLL files."""
    saved = datasets.DatasetDict(train=with_class_labels(TRAIN), validation=with_class_labels(VALIDATION))
    saved.save_to_disk(tmp_path / "saved")
    (tmp_path / "files").mkdir()
    write_conll(tmp_path / "files" / "train.conll", TRAIN)
    write_conll(tmp_path / "files" / "dev.conll", VALIDATION)
    for name in ("saved", "files"):
        flags = {"train_file": None, "validation_file": None, "dataset_name": tmp_path / name}
        done = run(**tokens.short(**flags, output_dir=tmp_path / f"out_{name}"))
        assert done.code == 0, done.all
        assert_same_model(straight, tmp_path / f"out_{name}")
    flags = {"train_file": None, "validation_file": None, "dataset_name": tmp_path / "saved"}
    done = run(**tokens.short(**flags, task_name="pos", output_dir=tmp_path / "pos"))
    assert done.code == 0 and "tags: pos_tags, plain" in done.out, done.all
    assert "the tags are numbers without names" in done.err
    assert {"eval_accuracy", "eval_f1_macro", "eval_loss"} == read_json(tmp_path / "pos" / "eval_results.json").keys()


def test_tags_that_are_declared_and_do_not_occur(tokens: TinyTokens, tagger: Path, tmp_path: Path) -> None:
    """A new head has outputs for them; a model without them is judged all the same; hidden tags are not read."""
    names = [*LABELS, "B-MISC", "I-MISC"]
    rows = with_class_labels(VALIDATION, names)
    hidden = {"tokens": rows["tokens"], "ner_tags": [[-1] * len(words) for words in rows["tokens"]]}
    test = datasets.Dataset.from_dict(hidden, features=rows.select_columns([*hidden]).features)
    others = rows.select_columns([*hidden])
    datasets.DatasetDict(train=others, validation=others, test=test).save_to_disk(tmp_path / "saved")
    flags = {"train_file": None, "validation_file": None, "dataset_name": tmp_path / "saved"}
    done = run(**tokens.short(**flags), do_predict=True, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    assert list(read_json(tmp_path / "out" / "config.json")["id2label"].values()) == names
    flags = {"model_name_or_path": tagger, "dataset_name": tmp_path / "saved"}
    done = run(**flags, do_eval=True, output_dir=tmp_path / "judged")
    assert done.code == 0 and read_json(tmp_path / "judged" / "eval_results.json")["eval_f1"] > 0.6, done.all
    refused = run(**flags, do_eval=True, eval_on_test=True, output_dir=tmp_path / "no")
    assert refused.code == 2 and "split 'test', row 1, column 'ner_tags', entry 1: the tag is -1" in refused.err


def test_the_column_of_the_tags_is_chosen(tokens: TinyTokens, tmp_path: Path) -> None:
    """Parts of speech, which are plain tags, and chunks."""
    file = write_conll(tmp_path / "four.conll", TRAIN, columns=4)
    file.write_text(file.read_text().replace(". NN I-NP", ". . O"))
    for column, scheme, names in ((2, "plain", "., NN"), (3, "IOB2", "O, B-NP, I-NP")):
        flags = {"train_file": file, "validation_file": file, "label_column_name": column}
        done = run(**tokens.short(**flags, output_dir=tmp_path / str(column)))
        assert done.code == 0 and f"tags: tags, {scheme}" in done.out, done.all
        assert f"of a word: {names} " in flat(done.out)


def test_a_model_of_bioes_keeps_its_tags(tokens: TinyTokens, tmp_path: Path) -> None:
    """What a fine-tuned model calls its outputs stays; the data's own scheme does not matter."""
    names = ["O", *(f"{letter}-{kind}" for kind in ("LOC", "PER") for letter in "BIES")]
    model = make_tagger(tmp_path / "model", names, **NO_DROPOUT)
    figures = []
    for scheme in (IOB1, IOB2, BIOES):
        files = {"train_file": write_conll(tmp_path / f"{scheme}.conll", TRAIN, scheme=scheme)}
        flags = tokens.short(**files, validation_file=files["train_file"], model_name_or_path=model)
        done = run(**flags, output_dir=tmp_path / scheme)
        assert done.code == 0 and "tags: tags, BIOES" in done.out, done.all
        assert read_json(tmp_path / scheme / "config.json")["id2label"] == {
            str(n): name for n, name in enumerate(names)
        }
        figures.append(read_json(tmp_path / scheme / "eval_results.json"))
        assert_same_model(tmp_path / IOB1, tmp_path / scheme)
    assert figures[0] == figures[1] == figures[2]
