"""Which pieces of words have labels, and whether the figures are those of the predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seqeval.metrics
from script_fixtures import make_model, read_json
from token_fixtures import LABELS, PIECES_OF, VOCABULARY, Tagged, TinyTokens, predicted, run, tagged, write_conll
from transformers import AutoTokenizer

from sparse_accel.cli.token_classification import TokenClassificationArguments
from sparse_accel.data.batches import Collator, inputs_of
from sparse_accel.nn.losses import IGNORED
from sparse_accel.tasks import TokenClassification

pytest_plugins = ["token_fixtures"]

INSIDE = {"B-PER": "I-PER", "B-LOC": "I-LOC"}


def task_of_files(tokens: TinyTokens, folder: Path, **flags: Any) -> TokenClassification:
    """The task as a training run loads it."""
    files: dict[str, Any] = {"train_file": str(tokens.train), "validation_file": str(tokens.validation)}
    settings: dict[str, Any] = {
        "model_name_or_path": str(tokens.model),
        "output_dir": str(folder),
        "do_train": True,
        "do_eval": True,
    }
    return TokenClassification.load(TokenClassificationArguments(**{**files, **settings, **flags}), None)


@pytest.mark.parametrize("all_tokens", [False, True])
def test_labels_of_pieces(all_tokens: bool, tokens: TinyTokens, tmp_path: Path) -> None:
    task = task_of_files(tokens, tmp_path, label_all_tokens=all_tokens)
    tokenizer = AutoTokenizer.from_pretrained(tokens.model)
    rows = task.tokenize(tokenizer, 64)["train"]
    assert task.head.names == LABELS and len(rows) == 203
    several = 0
    for row, sentence in zip(rows, tagged(203, seed=1), strict=True):
        expected, numbers, pieces = [IGNORED], [-1], []
        for number, (word, tag) in enumerate(zip(sentence.words, sentence.tags, strict=True)):
            more = PIECES_OF.get(word, 1) - 1
            several += more > 0
            expected += [LABELS.index(tag)]
            expected += [LABELS.index(INSIDE.get(tag, tag)) if all_tokens else IGNORED] * more
            numbers += [number] + [-1] * more
            pieces += tokenizer.tokenize(word)
        assert row["labels"] == [*expected, IGNORED]
        assert row["words"] == [*numbers, -1]
        assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["[CLS]", *pieces, "[SEP]"]
    assert several > 100


def test_a_model_is_given_its_own_inputs(tokens: TinyTokens, tmp_path: Path) -> None:
    """Labels and the numbers of rows, words and sentences are not for it; some encoders refuse others than theirs."""
    tokenizer = AutoTokenizer.from_pretrained(tokens.model)
    rows = task_of_files(tokens, tmp_path).tokenize(tokenizer, 64)["train"]
    batch = Collator(tokenizer, token_columns=TokenClassification.token_columns)(rows[:3])
    assert batch.keys() == {*inputs_of(batch), "labels", "words", "sentence"}
    assert inputs_of(batch).keys() == {"input_ids", "token_type_ids", "attention_mask"}


def test_what_rows_weigh_is_their_labelled_pieces(tokens: TinyTokens, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokens.model)
    sentences = tagged(203, seed=1)
    for all_tokens in (False, True):
        task = task_of_files(tokens, tmp_path, label_all_tokens=all_tokens)
        rows = task.tokenize(tokenizer, 64)["train"]
        counts = [sum(PIECES_OF.get(word, 1) if all_tokens else 1 for word in row.words) for row in sentences]
        assert task.row_weights(rows).tolist() == counts
        assert task.unit_counts(rows).tolist() == [len(row.words) for row in sentences]


def entities(tags: list[str]) -> set[tuple[str, int, int]]:
    """Type, first and last word of each entity of IOB2 tags, the plain way."""
    found: set[tuple[str, int, int]] = set()
    begin, before = 0, "O"
    for word, tag in enumerate([*tags, "O"]):
        goes_on = tag[:2] == "I-" and before[2:] == tag[2:] and before != "O"
        if before != "O" and not goes_on:
            found.add((before[2:], begin, word - 1))
        if tag != "O" and not goes_on:
            begin = word
        before = tag
    return found


def test_figures_are_those_of_the_predictions(tagger: Path) -> None:
    """The words that were predicted are those of the validation rows."""
    guessed = [[label for _, label, _ in row] for row in predicted(tagger / "test_predictions.csv")]
    right = [row.tags for row in tagged(60, seed=2)]
    pairs = [(entities(one), entities(other)) for one, other in zip(right, guessed, strict=True)]
    hits, known, claimed = (sum(map(len, each)) for each in ([a & b for a, b in pairs], *zip(*pairs, strict=True)))
    figures = read_json(tagger / "eval_results.json")
    assert figures["eval_precision"] == pytest.approx(hits / claimed)
    assert figures["eval_recall"] == pytest.approx(hits / known)
    assert figures["eval_f1"] == pytest.approx(2 * hits / (claimed + known))
    assert figures["eval_f1"] == pytest.approx(seqeval.metrics.f1_score(right, guessed))
    same = [a == b for one, other in zip(right, guessed, strict=True) for a, b in zip(one, other, strict=True)]
    assert figures["eval_accuracy"] == pytest.approx(np.mean(same))
    assert figures["eval_f1"] > 0.7, "so simple a task is learned"


def test_the_f1_of_each_type(tokens: TinyTokens, tagger: Path, tmp_path: Path) -> None:
    done = run(
        model_name_or_path=tagger,
        output_dir=tmp_path,
        validation_file=tokens.validation,
        per_device_eval_batch_size=32,
        do_eval=True,
        return_entity_level_metrics=True,
    )
    assert done.code == 0, done.all
    figures, before = read_json(tmp_path / "eval_results.json"), read_json(tagger / "eval_results.json")
    assert figures == {**before, "eval_f1_LOC": figures["eval_f1_LOC"], "eval_f1_PER": figures["eval_f1_PER"]}
    guessed = [[label for _, label, _ in row] for row in predicted(tagger / "test_predictions.csv")]
    right = [row.tags for row in tagged(60, seed=2)]
    for kind in ("LOC", "PER"):
        alone = [[[tag if tag.endswith(kind) else "O" for tag in row] for row in side] for side in (right, guessed)]
        assert figures[f"eval_f1_{kind}"] == pytest.approx(seqeval.metrics.f1_score(*alone))
    assert figures["eval_f1_LOC"] != figures["eval_f1_PER"]


def test_a_type_that_the_validation_rows_lack(tokens: TinyTokens, tagger: Path, tmp_path: Path) -> None:
    """Its F1 is 0, and there: a tracker's columns do not depend on the rows."""
    file = write_conll(tmp_path / "a.conll", [Tagged(["anna", "kern", "was", "."], ["B-PER", "I-PER", "O", "O"])])
    flags: dict[str, Any] = {"model_name_or_path": tagger, "validation_file": file, "do_eval": True}
    done = run(**flags, output_dir=tmp_path / "out", return_entity_level_metrics=True)
    assert done.code == 0, done.all
    figures = read_json(tmp_path / "out" / "eval_results.json")
    assert figures["eval_f1_PER"] == 1.0 and figures["eval_f1_LOC"] == 0.0


def test_the_loss_is_a_mean_over_words(tokens: TinyTokens, tagger: Path, tmp_path: Path) -> None:
    """A long sentence counts by its words: the loss of both files together is not the mean of the two losses."""
    files: dict[str, Any] = {"short": tagged(20, seed=5, entities=(1, 1)), "long": tagged(20, seed=6, entities=(4, 4))}
    losses, words = [], []
    for name, rows in {**files, "both": [*files["short"], *files["long"]]}.items():
        flags: dict[str, Any] = {
            "validation_file": write_conll(tmp_path / f"{name}.conll", rows),
            "output_dir": tmp_path / name,
        }
        assert run(model_name_or_path=tagger, do_eval=True, per_device_eval_batch_size=7, **flags).code == 0
        losses.append(read_json(tmp_path / name / "eval_results.json")["eval_loss"])
        words.append(sum(len(row.words) for row in rows))
    assert losses[2] == pytest.approx(float(np.average(losses[:2], weights=words[:2])), rel=1e-5)
    assert abs(losses[2] - np.mean(losses[:2])) > 1e-3


def test_labels_of_all_pieces_are_trained_on(tokens: TinyTokens, tmp_path: Path) -> None:
    """Figures stay those of words: one label a word."""
    model = make_model(tmp_path / "model", sparse=False, vocabulary=VOCABULARY)
    losses = []
    for name, flag in (("first", None), ("all", True)):
        done = run(**tokens.short(model_name_or_path=model, label_all_tokens=flag, output_dir=tmp_path / name))
        assert done.code == 0, done.all
        assert f"labels of {'all pieces' if flag else 'the first piece'} of a word" in done.out
        losses.append(read_json(tmp_path / name / "train_results.json")["train_loss"])
    assert losses[0] != losses[1]
