"""What scripts/sentence_embedding.py refuses: place and remedy, exit code 2, nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from embedding_fixtures import RECIPE, TinyEmbeddings, make_encoder, run
from script_fixtures import flat, read_json

pytest_plugins = ["embedding_fixtures"]


def refused(tmp_path: Path, **flags: Any) -> str:
    """Returns what was printed on stderr, in one line."""
    done = run(**flags, output_dir=tmp_path / "out")
    assert done.code == 2 and "Traceback" not in done.err, done.all
    assert not (tmp_path / "out" / "config.json").exists()
    return flat(done.err)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text\nba be\n  \n", ("row 2 (line 3), column 'text'", "delete this row")),
        ("anchor,positive\nba,be\nda,\n", ("row 2 (line 3), column 'positive'", "has no text")),
        ("anchor,positive\nba,be\n", ("has one pair", "no negatives", "add rows")),
        (
            "sentence1,sentence2,score\nba,be,0.5\nda,di,high\n",
            ("row 2", "'high' is not a score", "--label_column_name"),
        ),
        ("sentence1,sentence2,score\nba,be,0.5\nda,di,-0.1\n", ("row 2", "not between 0 and 1", "--max_score")),
        ("sentence1,sentence2,score\nba,be,0.5\nda,di,7\n", ("row 2", "above 5", "--max_score")),
        ("sentence1,sentence2,score\nba,be,nan\n", ("row 1", "is not a score")),
        ("one,two,three\nba,be,bi\n", ("3 columns that may be the text", "--input_column_names")),
    ],
)
def test_rows(embeddings: TinyEmbeddings, tmp_path: Path, content: str, said: tuple[str, ...]) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(content)
    flags = embeddings.short(train_file=file, validation_file=None, do_eval=None)
    found = refused(tmp_path, **flags)
    assert str(file) in found and all(words in found for words in said), found


def test_a_text_of_no_tokens(embeddings: TinyEmbeddings, tmp_path: Path) -> None:
    """Invisible characters are text, but no tokens."""
    file = tmp_path / "rows.csv"
    file.write_text("anchor,positive\nba,be\nda,\u200b\nka,ki\n")
    found = refused(tmp_path, **embeddings.short(train_file=file))
    assert str(file) in found and "has no words" in found and "u200b" in found


def test_a_txt_file_with_a_blank_line(embeddings: TinyEmbeddings, tmp_path: Path) -> None:
    file = tmp_path / "rows.txt"
    file.write_text("ba be\n\nda\n")
    assert "row 2 (line 2)" in refused(tmp_path, **embeddings.flags(train_file=file))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"recipe": None, "recipe_args": None, "distill_teacher": None}, ("texts alone", "--distill_teacher")),
        ({"distill_teacher": "disable"}, ("texts alone", "--distill_teacher")),
        ({"train_file": "pairs", "gradient_accumulation_steps": 2}, ("negatives", "--per_device_train_batch_size")),
        ({"train_file": "pairs", "per_device_train_batch_size": 1}, ("no negatives", "--per_device_train_batch_size")),
        ({"validation_file": "train"}, ("needs pairs", "sentence1, sentence2, score")),
        ({"pooling": "cls"}, ("--pooling cls", "has pooling mean", "leave out --pooling")),
        ({"normalize": "false"}, ("--normalize false", "leave out --normalize")),
        ({"pooling": "max"}, ("--pooling", "mean, cls")),
        (
            {"model_name_or_path": "model", "normalize": "false", "embedding_loss": "mse"},
            ("scales differ", "--normalize"),
        ),
        ({"load_best_model_at_end": True}, ("has no loss", "spearman", "--metric_for_best_model")),
        ({"label_column_name": "grade"}, ("no column 'grade'", "--label_column_name")),
        ({"input_column_names": "query"}, ("no column 'query'", "--input_column_names")),
        ({"max_score": 3}, ("not between 0 and 3", "--max_score")),
        ({"max_score": 5, "relevant_score": 6}, ("--relevant_score 6", "no pair reaches it")),
        ({"new_head": True}, ("--new_head",)),
        ({"recipe": "obert_pruned90", "recipe_args": None}, ("grad_loss", "recipe")),
        (
            {"recipe": "obert_pruned90", "recipe_args": None, "train_file": "triples"},
            ("OBS", "single rows", "on texts"),
        ),
    ],
)
def test_flags(embeddings: TinyEmbeddings, tmp_path: Path, flags: dict[str, Any], said: tuple[str, ...]) -> None:
    files = {name: getattr(embeddings, name) for name in ("train", "pairs", "triples", "model")}
    given = {name: files.get(str(value), value) for name, value in flags.items()}
    if flags.get("recipe"):
        given["recipe"] = RECIPE.with_name(f"{flags['recipe']}.yaml")
    found = refused(tmp_path, **embeddings.flags(**given))
    assert all(words in found for words in said), found


def test_a_teacher_of_another_width(embeddings: TinyEmbeddings, tmp_path: Path) -> None:
    wide = make_encoder(tmp_path / "wide", hidden_size=48, sentence_embedding={"pooling": "mean", "normalize": True})
    found = refused(tmp_path, **embeddings.flags(distill_teacher=wide))
    assert f"{wide} has embeddings of width 48, the model of width 32" in found


def test_a_teacher_without_a_pooling(embeddings: TinyEmbeddings, tmp_path: Path) -> None:
    found = refused(tmp_path, **embeddings.flags(distill_teacher=embeddings.model))
    assert "--distill_teacher" in found and "modules.json" in found and "Train it for this task first" in found


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "max and mean"),
        ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}, "the pooling lasttoken is not supported"),
        ("modules.json", ["Transformer", "Pooling", "Dense", "Normalize"], "the module Dense, which is not supported"),
        ("modules.json", ["Transformer", "Normalize"], "the modules Transformer, Normalize"),
        ("sentence_bert_config.json", {"max_seq_length": 16, "do_lower_case": True}, "do_lower_case"),
        ("config_sentence_transformers.json", {"prompts": {"q": "q: "}, "default_prompt_name": "q"}, "the prompt 'q'"),
    ],
)
def test_a_folder_of_another_kind(
    embeddings: TinyEmbeddings, tmp_path: Path, file: str, content: Any, said: str
) -> None:
    """A model of sentence-transformers whose embeddings are made in another way."""
    folder = shutil.copytree(embeddings.teacher, tmp_path / "model")
    config = read_json(folder / "config.json")
    del config["sentence_embedding"]
    (folder / "config.json").write_text(json.dumps(config))
    if file == "modules.json":
        content = [
            {
                "idx": number,
                "name": str(number),
                "path": f"{number}_{kind}" if number else "",
                "type": f"x.models.{kind}",
            }
            for number, kind in enumerate(content)
        ]
    (folder / file).write_text(json.dumps(content))
    for flag in ("model_name_or_path", "distill_teacher"):
        found = refused(tmp_path, **embeddings.flags(**{flag: folder}))
        assert f"--{flag}" in found and str(folder) in found and said in found, found


def test_weights_of_another_model(embeddings: TinyEmbeddings, tmp_path: Path) -> None:
    """An encoder's names have no prefix: a block that the file lacks is not one of a new head."""
    folder = shutil.copytree(embeddings.model, tmp_path / "model")
    config = read_json(folder / "config.json")
    for blocks, said in (
        (3, "the file has no weights for encoder.layer.2"),
        (1, "by config.json the model has no such"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": blocks}))
        assert said in refused(tmp_path, **embeddings.short(model_name_or_path=folder))


def test_another_task(embeddings: TinyEmbeddings, tmp_path: Path) -> None:
    """A classifier is no teacher here, and an embedding model none there."""
    from script_fixtures import make_model
    from script_fixtures import run as classify

    classifier = make_model(tmp_path / "classifier", sparse=False, head=True)
    found = refused(tmp_path, **embeddings.flags(distill_teacher=classifier))
    assert "was trained for text_classification, not for sentence_embedding" in found
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\nba,0\nbe,1\n")
    flags: dict[str, Any] = {"model_name_or_path": embeddings.teacher, "validation_file": rows, "do_eval": True}
    done = classify(**flags, output_dir=tmp_path / "out")
    assert done.code == 2 and "was trained for sentence_embedding, not for text_classification" in flat(done.err)
