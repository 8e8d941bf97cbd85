"""Tiny sentences with tagged words, and ways to run scripts/token_classification.py on them, here or as processes.

The words tell the entities: persons are a first name and mostly a family name, places a city and sometimes `new` before
it. Entities follow each other now and then, so that IOB1 has its B-. Names are of one to three pieces. Test modules
name this one in `pytest_plugins`, after they imported it (hence PYTEST_DONT_REWRITE).
"""

from __future__ import annotations

import csv
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from unittest import mock

import pytest
import script_fixtures
import torch
from places import ROOT
from script_fixtures import RECIPE, SHORT, make_model
from transformers import BertConfig, BertForTokenClassification

from sparse_accel.tasks.token_classification.tags import IOB2, convert

SCRIPT = ROOT / "scripts" / "token_classification.py"

FIRST_NAMES = ("anna", "boris", "clara", "dmitri")
FAMILY_NAMES = ("kern", "wolf", "ivanova", "berg")
CITIES = ("paris", "oslo", "lima", "vladivostok")
PLAIN = ("the", "a", "was", "in", "from", "saw", "film", "went", "to", "and", ",", ".", "old", "played")
PIECES = ("an", "##na", "boris", "cla", "##ra", "dm", "##it", "##ri", "kern", "wolf", "ivan", "##ova", "berg", "new")
VOCABULARY = (*PIECES, "paris", "oslo", "li", "##ma", "vla", "##divo", "##stok", *PLAIN)
PIECES_OF = {"anna": 2, "clara": 2, "dmitri": 3, "ivanova": 2, "lima": 2, "vladivostok": 3}
LABELS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Tagged:
    """A sentence: words, and their tags in IOB2."""

    words: list[str]
    tags: list[str]


# --- rows and files ---------------------------------------------------------------------------------------------------


def tagged(count: int, seed: int, entities: tuple[int, int] = (1, 3)) -> list[Tagged]:
    """Sentences of so many entities each, between plain words."""
    draw = random.Random(seed)
    result = []
    for _ in range(count):
        words, tags = [], []
        for _ in range(draw.randint(*entities)):
            between = draw.choices(PLAIN, k=draw.choice((0, 1, 2, 4)))
            found = _person(draw) if draw.random() < 0.6 else _place(draw)
            kind = "PER" if found[0] in FIRST_NAMES else "LOC"
            words += [*between, *found]
            tags += ["O"] * len(between) + [f"B-{kind}"] + [f"I-{kind}"] * (len(found) - 1)
        result.append(Tagged([*words, "."], [*tags, "O"]))
    return result


def _person(draw: random.Random) -> list[str]:
    return [draw.choice(FIRST_NAMES), draw.choice(FAMILY_NAMES)][: draw.choice((1, 2, 2))]


def _place(draw: random.Random) -> list[str]:
    return ["new", draw.choice(CITIES)][draw.choice((0, 1, 1)) :]


def write_conll(
    path: Path, sentences: Sequence[Tagged], *, scheme: str = IOB2, separator: str = " ", columns: int = 2
) -> Path:
    """Writes a CoNLL file.

    Args:
        scheme: of the tags.
        separator: of the columns.
        columns: 1 without tags; 4 as CoNLL-2003 has them, with documents.
    """
    lines = ["-DOCSTART- -X- O O", ""] if columns == 4 else []
    for sentence in sentences:
        tags = convert(sentence.tags, IOB2, scheme)
        for word, tag in zip(sentence.words, tags, strict=True):
            lines.append(separator.join([word, *["NN", "I-NP", tag][4 - columns :]][:columns]))
        lines.append("")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def predicted(path: Path) -> list[list[tuple[str, str, float]]]:
    """Token, label and probability of each word of a predictions file, sentence by sentence."""
    found: list[list[tuple[str, str, float]]] = []
    with open(path, encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        assert reader.fieldnames == ["row", "word", "token", "label", "probability"]
        for line in reader:
            if int(line["row"]) == len(found):
                found.append([])
            assert int(line["row"]) == len(found) - 1 and int(line["word"]) == len(found[-1])
            found[-1].append((line["token"], line["label"], float(line["probability"])))
    return found


@dataclass(frozen=True)
class TinyTokens:
    """A folder of tiny things that many tests read and none changes."""

    folder: Path
    model: Path  # masked language model, encoder 90% zero, no dropout
    train: Path  # 203 sentences in IOB2: the last batch is an odd one
    validation: Path  # 60 sentences
    test: Path  # 17 sentences of one column

    def flags(self, **others: Any) -> dict[str, Any]:
        """Flags of an ordinary training run with the tutorial's recipe, no teacher; `others` replace them."""
        return {
            "model_name_or_path": self.model,
            "recipe": RECIPE,
            "recipe_args": SHORT,
            "distill_teacher": "disable",
            "train_file": self.train,
            "validation_file": self.validation,
            "per_device_train_batch_size": 32,
            "per_device_eval_batch_size": 32,
            "do_train": True,
            "do_eval": True,
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "logging_steps": 1,
            **others,
        }

    def short(self, **others: Any) -> dict[str, Any]:
        """Flags of one epoch without a recipe, for what needs no learning."""
        plain = {"recipe": None, "recipe_args": None, "num_train_epochs": 1, "learning_rate": 5e-3}
        return self.flags(**{**plain, "eval_strategy": "no", "save_strategy": "no", **others})


def make_tagger(folder: Path, names: Sequence[str] = LABELS, **config: Any) -> Path:
    """Writes a dense model that has a head for these labels, and was never trained."""
    named: dict[str, Any] = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }
    make_model(folder, sparse=False, vocabulary=VOCABULARY, **config)
    torch.manual_seed(0)
    model: Any = BertForTokenClassification(BertConfig.from_pretrained(folder, **named))
    model.save_pretrained(folder)
    return folder


NO_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TinyTokens:
    folder = tmp_path_factory.mktemp("tokens")
    return TinyTokens(
        folder,
        make_model(folder / "pruned90", sparse=True, vocabulary=VOCABULARY, **NO_DROPOUT),
        write_conll(folder / "train.conll", tagged(203, seed=1)),
        write_conll(folder / "validation.conll", tagged(60, seed=2)),
        write_conll(folder / "test.conll", tagged(17, seed=3), columns=1),
    )


@pytest.fixture(scope="session")
def tagger(tokens: TinyTokens) -> Path:
    """The output folder of an ordinary run: pruned, quantized; its words to predict are the validation sentences."""
    unlabelled = write_conll(tokens.folder / "unlabelled.conll", tagged(60, seed=2), columns=1)
    output = tokens.folder / "tagger"
    done = run(**tokens.flags(output_dir=output, test_file=unlabelled, do_predict=True))
    assert done.code == 0, done.all
    return output


def unfinished(whole: Path, folder: Path, step: int) -> Path:
    """The folder as a kill after checkpoint `step` would have left it."""
    folder.mkdir()
    for path in whole.glob("checkpoint-*"):
        if int(path.name.partition("-")[2]) <= step:
            shutil.copytree(path, folder / path.name)
    record = (whole / "run.json").read_text().replace('"finished": true', '"finished": false')
    (folder / "run.json").write_text(record)
    return folder


# --- running the script -----------------------------------------------------------------------------------------------


def with_script(script: Path, call: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """A function of script_fixtures, or one that calls them, as it would be for another script."""

    def called(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with mock.patch.object(script_fixtures, "SCRIPT", script):
            return call(*args, **kwargs)

    return called


run = with_script(SCRIPT, script_fixtures.run)
start = with_script(SCRIPT, script_fixtures.start)
