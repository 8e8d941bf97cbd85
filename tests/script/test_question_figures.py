"""Figures and answers of questions against a plain computation: transformers' model, and every span of every window.

The windows here are those of the tokenizer's own truncation with overflow, and the rules of SQuAD are written twice.
"""

from __future__ import annotations

import collections
import json
import math
import re
import shutil
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from question_fixtures import LENGTH, STRIDE, Question, TinyQuestions, questions, run, write_questions
from script_fixtures import read_json, trace
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, DebertaV2Config, DebertaV2ForQuestionAnswering

import sparse_accel

pytest_plugins = ["question_fixtures"]

ALL = 64  # more tokens than a row has: all pairs are candidates
LONGEST = 8


# --- the plain computation --------------------------------------------------------------------------------------------


def normalized(text: str) -> str:
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def scores(answer: str, gold: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 of SQuAD 2.0, those of 1.1 where there are answers."""
    found = []
    for each in [*gold] or [""]:
        one, other = normalized(answer).split(), normalized(each).split()
        common = sum((collections.Counter(one) & collections.Counter(other)).values())
        f1 = float(one == other) if not (one and other) else 2 * common / (len(one) + len(other))
        found.append((float(one == other), f1))
    return max(exact for exact, _ in found), max(f1 for _, f1 in found)


def encoded(row: Question, tokenizer: Any) -> Any:
    """The windows of a question as run_qa.py makes them, one by one without padding."""
    options: dict[str, Any] = {"max_length": LENGTH, "stride": STRIDE, "return_overflowing_tokens": True}
    if tokenizer.padding_side == "left":
        return tokenizer(row.context, row.question, truncation="only_first", return_offsets_mapping=True, **options)
    return tokenizer(row.question, row.context, truncation="only_second", return_offsets_mapping=True, **options)


def outputs(row: Question, tokenizer: Any, model: Any, window: int, found: Any) -> tuple[np.ndarray, np.ndarray]:
    names = ("input_ids", "attention_mask", "token_type_ids")
    with torch.no_grad():
        result = model(**{name: torch.tensor([found[name][window]]) for name in names})
    return result.start_logits[0].double().numpy(), result.end_logits[0].double().numpy()


def spans(row: Question, tokenizer: Any, model: Any) -> tuple[dict[tuple[int, int], float], float]:
    """The best score of every span of characters, and the smallest of no answer."""
    found, nothing = encoded(row, tokenizer), math.inf
    best: dict[tuple[int, int], float] = {}
    for window in range(len(found["input_ids"])):
        starts, ends = outputs(row, tokenizer, model, window, found)
        mine = 0 if tokenizer.padding_side == "left" else 1
        context = [token for token, of in enumerate(found.sequence_ids(window)) if of == mine]
        offsets = found["offset_mapping"][window]
        for start in context:
            for end in context:
                if start <= end < start + LONGEST:
                    span = (offsets[start][0], offsets[end][1])
                    best[span] = max(best.get(span, -math.inf), starts[start] + ends[end])
        nothing = min(nothing, starts[0] + ends[0])
    return best, nothing


def labels(row: Question, tokenizer: Any) -> list[tuple[Any, int, int]]:
    """Inputs, first and last token of the answer for each window; 0 and 0 where the window lacks a part of it."""
    found, result = encoded(row, tokenizer), []
    for window in range(len(found["input_ids"])):
        inputs = {
            name: torch.tensor([found[name][window]]) for name in ("input_ids", "attention_mask", "token_type_ids")
        }
        begin = end = 0
        if row.answers:
            text, first = row.answers[0]
            mine = 0 if tokenizer.padding_side == "left" else 1
            pairs = enumerate(zip(found["offset_mapping"][window], found.sequence_ids(window), strict=True))
            places = {token: offsets for token, (offsets, of) in pairs if of == mine}
            starts = [token for token, (start, _) in places.items() if start == first]
            ends = [token for token, (_, last) in places.items() if last == first + len(text)]
            if starts and ends:
                begin, end = starts[0], ends[0]
        result.append((inputs, begin, end))
    return result


# --- figures and answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantized", [False, True])
def test_figures_and_answers(quantized: bool, tiny_questions: TinyQuestions, answerer: Path, tmp_path: Path) -> None:
    folder = answerer if quantized else tiny_questions.teacher
    flags = tiny_questions.of(folder, n_best_size=ALL, max_answer_length=LONGEST)
    test = tmp_path / "test.json"
    rows = questions(20, seed=2, long=0.4)
    test.write_text(json.dumps([{"id": row.id, "question": row.question, "context": row.context} for row in rows]))
    files = {"validation_file": write_questions(tmp_path / "validation.json", rows), "test_file": test}
    done = run(**flags, **files, do_eval=True, do_predict=True, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    model = (sparse_accel.load(folder) if quantized else AutoModelForQuestionAnswering.from_pretrained(folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answers = read_json(tmp_path / "out" / "eval_predictions.json")
    n_best = read_json(tmp_path / "out" / "eval_nbest_predictions.json")
    assert [*answers] == [*n_best] == [row.id for row in rows]
    exact, f1, windows = [], [], 0
    for row in rows:
        found, _ = spans(row, tokenizer, model)
        windows += len(encoded(row, tokenizer)["input_ids"])
        start, end = max(found, key=lambda span: found[span])
        assert answers[row.id] == row.context[start:end] == n_best[row.id][0]["text"]
        ordered = sorted(found.values(), reverse=True)[:ALL]
        assert len(n_best[row.id]) == len(ordered)
        sums = [entry["start_logit"] + entry["end_logit"] for entry in n_best[row.id]]
        assert sums == pytest.approx(ordered, abs=1e-4)
        total = sum(math.exp(each - ordered[0]) for each in ordered)
        shares = [math.exp(each - ordered[0]) / total for each in ordered]
        assert [entry["probability"] for entry in n_best[row.id]] == pytest.approx(shares, abs=1e-4)
        assert {*n_best[row.id][0]} == {"text", "probability", "start_logit", "end_logit"}
        one, other = scores(row.context[start:end], [text for text, _ in row.answers])
        exact.append(one)
        f1.append(other)
    assert windows > len(rows) + 5
    figures = read_json(tmp_path / "out" / "eval_results.json")
    assert figures["eval_exact_match"] == pytest.approx(sum(exact) / len(rows))
    assert figures["eval_f1"] == pytest.approx(sum(f1) / len(rows)) and 0 < figures["eval_f1"] < 1
    for name in ("predictions.json", "nbest_predictions.json"):
        one, other = (read_json(tmp_path / "out" / f"{kind}_{name}") for kind in ("eval", "test"))
        assert one == other


@pytest.mark.parametrize("threshold", [0.0, -2.0, 3.0])
def test_figures_of_questions_without_an_answer(
    threshold: float, tiny_questions: TinyQuestions, negatives: Path, tmp_path: Path
) -> None:
    rows = questions(30, seed=2, impossible=0.4)
    file = write_questions(tmp_path / "validation.json", rows, "nested v2.0")
    flags = tiny_questions.of(negatives, n_best_size=ALL, max_answer_length=LONGEST, version_2_with_negative=True)
    done = run(
        **flags, validation_file=file, null_score_diff_threshold=threshold, do_eval=True, output_dir=tmp_path / "out"
    )
    assert done.code == 0, done.all
    model, tokenizer = (
        AutoModelForQuestionAnswering.from_pretrained(negatives),
        AutoTokenizer.from_pretrained(negatives),
    )
    answers, n_best, odds = (
        read_json(tmp_path / "out" / f"eval_{name}.json") for name in ("predictions", "nbest_predictions", "null_odds")
    )
    found: dict[str, tuple[float, float]] = {}
    texts: dict[str, str] = {}
    for row in rows:
        scored, nothing = spans(row, tokenizer, model.eval())
        start, end = max(scored, key=lambda span: scored[span])
        texts[row.id] = row.context[start:end]
        assert odds[row.id] == pytest.approx(nothing - scored[start, end], abs=1e-4)
        answer = "" if odds[row.id] > threshold else texts[row.id]
        assert answers[row.id] == answer
        assert sum(entry["text"] == "" for entry in n_best[row.id]) == 1
        found[row.id] = scores(answer, [text for text, _ in row.answers])
    figures = read_json(tmp_path / "out" / "eval_results.json")
    kinds = {"": rows, "has_answer_": [row for row in rows if row.answers], "no_answer_": [*filter(nothing_in, rows)]}
    for place, name in enumerate(("exact_match", "f1")):
        for prefix, chosen in kinds.items():
            mean = sum(found[row.id][place] for row in chosen) / len(chosen)
            assert figures[f"eval_{prefix}{name}"] == pytest.approx(mean), prefix
        limits = [*odds.values(), -math.inf, figures[f"eval_best_{name}_threshold"]]
        means = [
            sum(
                scores(texts[row.id] if odds[row.id] <= limit else "", [text for text, _ in row.answers])[place]
                for row in rows
            )
            / len(rows)
            for limit in limits
        ]
        assert figures[f"eval_best_{name}"] == pytest.approx(max(means)) and means[-1] == pytest.approx(max(means))
    assert 0 < figures["eval_no_answer_f1"] < 1 or threshold != 0


def nothing_in(row: Question) -> bool:
    return not row.answers


@pytest.fixture(scope="module")
def negatives(tiny_questions: TinyQuestions) -> Path:
    """A dense model that was trained on questions with and without an answer."""
    folder = tiny_questions.folder / "negatives"
    train = write_questions(folder.with_suffix(".json"), questions(203, seed=4, impossible=0.4), "nested v2.0")
    flags = tiny_questions.short(
        model_name_or_path=tiny_questions.folder / "dense",
        train_file=train,
        version_2_with_negative=True,
        num_train_epochs=4,
        learning_rate=1e-2,
        do_eval=None,
        validation_file=None,
    )
    done = run(**flags, output_dir=folder)
    assert done.code == 0, done.all
    return folder


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("impossible", [0.0, 0.4])
def test_the_loss_of_the_first_step_is_that_of_transformers(
    impossible: float, tiny_questions: TinyQuestions, tmp_path: Path
) -> None:
    """On rows without padding; those of a step have padding, which has no part in it."""
    rows = questions(12, seed=7, long=0.5, impossible=impossible)
    file = write_questions(tmp_path / "train.json", rows, "nested v2.0")
    flags: dict[str, Any] = {
        "model_name_or_path": tiny_questions.teacher,
        "train_file": file,
        "validation_file": file,
        "version_2_with_negative": True,
        "per_device_train_batch_size": 64,
        "learning_rate": 0,
    }
    done = run(**tiny_questions.short(**flags), output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    model = AutoModelForQuestionAnswering.from_pretrained(tiny_questions.teacher).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_questions.teacher)
    windows = [window for row in rows for window in labels(row, tokenizer)]
    assert sum(begin > 0 for _, begin, _ in windows) > 4 and sum(begin == 0 for _, begin, _ in windows) > 4
    with torch.no_grad():
        losses = [
            float(model(**inputs, start_positions=torch.tensor([begin]), end_positions=torch.tensor([end])).loss)
            for inputs, begin, end in windows
        ]
    expected = sum(losses) / len(losses)
    assert trace(tmp_path / "out", "train/loss") == pytest.approx({1: expected}, abs=1e-5)
    assert read_json(tmp_path / "out" / "eval_results.json")["eval_loss"] == pytest.approx(expected, abs=1e-5)


# --- what does not matter ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["right", "left"])
def by_side(
    request: pytest.FixtureRequest, tiny_questions: TinyQuestions, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path]:
    """A side of the padding, a model with a tokenizer of this side, and what it says one by one.

    BERT counts padding on the left as positions, so the model for this side has relative ones.
    """
    side, folder = request.param, tmp_path_factory.mktemp(f"pads_{request.param}")
    shutil.copytree(tiny_questions.teacher, folder / "model")
    if side == "left":
        torch.manual_seed(0)
        relative: dict[str, Any] = {"relative_attention": True, "position_biased_input": False}
        sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = DebertaV2Config(vocab_size=64, intermediate_size=64, initializer_range=0.2, **relative, **sizes)
        DebertaV2ForQuestionAnswering(config).save_pretrained(folder / "model")
    settings = read_json(folder / "model" / "tokenizer_config.json")
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": side}))
    done = run(**measured(tiny_questions, folder / "model", per_device_eval_batch_size=1), output_dir=folder / "out")
    assert done.code == 0, done.all
    return side, folder / "model", folder / "out"


def measured(tiny_questions: TinyQuestions, model: Path, **others: Any) -> dict[str, Any]:
    flags = {"n_best_size": ALL, "max_answer_length": LONGEST, "validation_file": tiny_questions.validation}
    return tiny_questions.of(model, **flags, do_eval=True, **others)


@pytest.mark.parametrize(
    "change",
    [{"per_device_eval_batch_size": 7}, {"pad_to_max_length": True}],
    ids=["batch", "padding"],
)
def test_batches_and_padding_change_no_answer(
    change: dict[str, Any], by_side: tuple[str, Path, Path], tiny_questions: TinyQuestions, tmp_path: Path
) -> None:
    _, model, expected = by_side
    done = run(**{**measured(tiny_questions, model), **change}, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    assert read_json(tmp_path / "out" / "eval_predictions.json") == read_json(expected / "eval_predictions.json")
    one, other = (read_json(folder / "eval_nbest_predictions.json") for folder in (tmp_path / "out", expected))
    for id_, entries in one.items():
        for name in ("probability", "start_logit", "end_logit"):
            first, second = ([entry[name] for entry in listed] for listed in (entries, other[id_]))
            assert first == pytest.approx(second, abs=1e-4)
    one, other = (read_json(folder / "eval_results.json") for folder in (tmp_path / "out", expected))
    assert one == pytest.approx(other, abs=1e-5)


def test_answers_where_padding_is_on_either_side(
    by_side: tuple[str, Path, Path], tiny_questions: TinyQuestions
) -> None:
    """The context comes first for a tokenizer that pads on the left, as in run_qa.py."""
    side, folder, output = by_side
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.padding_side == side
    answers = read_json(output / "eval_predictions.json")
    for row in questions(60, seed=2)[:15]:
        found, _ = spans(row, tokenizer, model)
        start, end = max(found, key=lambda span: found[span])
        assert answers[row.id] == row.context[start:end]


def test_training_does_not_depend_on_padding(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    losses = []
    for name, change in (("longest", {}), ("all", {"pad_to_max_length": True, "gradient_accumulation_steps": 2})):
        size = 16 if change else 32
        flags = tiny_questions.short(per_device_train_batch_size=size, max_train_samples=60, **change)
        done = run(**flags, output_dir=tmp_path / name)
        assert done.code == 0, done.all
        losses.append([*trace(tmp_path / name, "train/loss").values()])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4) and len(losses[0]) >= 3
