"""A run of question answering as a whole: distilled, quantized, resumed, shown, read again by transformers."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import masks_of
from places import ROOT
from question_fixtures import SHORT, VOCABULARY, TinyQuestions, make_answerer, questions, run, start, write_questions
from script_fixtures import (
    assert_same_model,
    flat,
    history,
    make_model,
    read_json,
    run_program,
    trace,
    wait,
    weights,
    words,
)
from token_fixtures import unfinished
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, BertForQuestionAnswering

import sparse_accel
from sparse_accel.nn.layers import quantized_linears, quantizers
from sparse_accel.run_folder import results
from sparse_accel.training.run_log import RunLog

pytest_plugins = ["question_fixtures"]


def test_the_recipe_for_squad(tiny_questions: TinyQuestions, answerer: Path) -> None:
    results = read_json(answerer / "all_results.json")
    assert results["quantized_linears"] == results["linears"] == 13
    assert results["eval_f1"] > 0.3 and results["encoder_sparsity"] > 0.899
    masks, stored = masks_of(answerer), weights(answerer)
    assert len(masks) == 13 and all(not stored[name][~mask].any() for name, mask in masks.items())
    assert trace(answerer, "eval_f1")[40] == results["eval_f1"] == read_json(answerer / "eval_results.json")["eval_f1"]
    assert read_json(answerer / "config.json")["architectures"] == ["BertForQuestionAnswering"]
    said = flat((tiny_questions.folder / "answerer.txt").read_text())
    assert "distillation: hardness 0.5, temperature 5.5 (start_logits, end_logits)" in said
    assert "its logits on the training rows: computed once" in said
    for name, count in (("eval", 60), ("test", 17)):
        answers, n_best = (read_json(answerer / f"{name}_{kind}.json") for kind in ("predictions", "nbest_predictions"))
        assert len(answers) == count and answers == {id_: entries[0]["text"] for id_, entries in n_best.items()}
        assert all(1 <= len(entries) <= 20 for entries in n_best.values())
        assert all(sum(entry["probability"] for entry in entries) == pytest.approx(1) for entries in n_best.values())
        assert not (answerer / f"{name}_null_odds.json").exists()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_finished_run_is_shown(tiny_questions: TinyQuestions, answerer: Path) -> None:
    before = files_of(answerer)
    again = run(**tiny_questions.flags(output_dir=answerer, test_file=tiny_questions.test, do_predict=True))
    assert again.code == 0 and "finished: nothing is trained again" in flat(again.out), again.all
    assert "eval_f1" in again.out and "already contains these predictions" in again.out
    assert files_of(answerer) == before


@pytest.mark.parametrize("name", ["eval_predictions.json", "eval_nbest_predictions.json", "test_predictions.json"])
def test_files_that_are_gone_are_written_again(
    name: str, tiny_questions: TinyQuestions, answerer: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(answerer, folder)
    (folder / name).unlink()
    again = run(**tiny_questions.flags(output_dir=folder, test_file=tiny_questions.test, do_predict=True))
    assert again.code == 0 and "nothing is trained again" in flat(again.out), again.all
    assert (folder / name).read_bytes() == (answerer / name).read_bytes()


@pytest.mark.parametrize(
    "changed",
    [{"n_best_size": 3}, {"max_answer_length": 2}, {"max_eval_samples": 9}],
    ids=lambda each: next(iter(each)),
)
def test_what_changes_the_answers_is_measured_again(
    changed: dict[str, Any], tiny_questions: TinyQuestions, answerer: Path, tmp_path: Path
) -> None:
    shutil.copytree(answerer, tmp_path / "out")
    other = run(**tiny_questions.flags(output_dir=tmp_path / "out", **changed))
    assert other.code == 0 and "nothing is trained again" in flat(other.out), other.all
    alone = tiny_questions.of(answerer, validation_file=tiny_questions.validation, do_eval=True, **changed)
    assert run(**alone, output_dir=tmp_path / "alone").code == 0
    for name in ("eval_results", "eval_predictions", "eval_nbest_predictions"):
        found, expected = (read_json(tmp_path / folder / f"{name}.json") for folder in ("out", "alone"))
        assert found == expected
    assert found != read_json(answerer / "eval_nbest_predictions.json")


def test_evaluation_alone_gives_the_figures_of_the_run(
    tiny_questions: TinyQuestions, answerer: Path, tmp_path: Path
) -> None:
    flags = tiny_questions.of(answerer, validation_file=tiny_questions.validation, test_file=tiny_questions.test)
    done = run(**flags, do_eval=True, do_predict=True, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    for name in ("eval_results.json", "eval_predictions.json", "test_predictions.json"):
        assert (tmp_path / "out" / name).read_text() == (answerer / name).read_text()
    mistakes = read_json(tmp_path / "out" / "evaluation.json")["validation"]["mistakes"]
    rows, answers = questions(60, seed=2), read_json(answerer / "eval_predictions.json")
    assert mistakes and all(rows[each["row"]].question == each["text"] for each in mistakes)
    for each in mistakes:
        row = rows[each["row"]]
        assert each["predicted"] == answers[row.id] and each["label"] == " / ".join(text for text, _ in row.answers)


def test_the_folder_is_read_again(answerer: Path) -> None:
    """By sparse_accel with quantizers, by transformers without."""
    model, plain = sparse_accel.load(answerer), AutoModelForQuestionAnswering.from_pretrained(answerer)
    assert type(model) is type(plain) is BertForQuestionAnswering
    assert quantized_linears(model) == (13, 13) and not quantizers(plain)
    assert all(quantizer.enabled for quantizer in quantizers(model).values())
    encoded = AutoTokenizer.from_pretrained(answerer)("where ?", "anna went to paris .", return_tensors="pt")
    with torch.no_grad():
        quantized, floating = (each.eval()(**encoded).start_logits for each in (model, plain))
    assert not torch.equal(quantized, floating) and float((quantized - floating).abs().max()) < 1.5


# --- stopped, and started again ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flags(tiny_questions: TinyQuestions, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """With dropout, and a teacher; 10 steps an epoch, 40 in all; QAT begins at 20, ranges freeze at 30."""
    folder = tmp_path_factory.mktemp("models")
    return tiny_questions.flags(
        model_name_or_path=make_model(folder / "model", sparse=True, vocabulary=VOCABULARY),
        distill_teacher=make_answerer(folder / "teacher"),
        recipe_args=SHORT,
        save_strategy="steps",
        save_steps=5,
    )


@pytest.fixture(scope="module")
def whole(flags: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "out"
    done = run(**flags, output_dir=output)
    assert done.code == 0, done.all
    return output


def assert_same_run(one: Path, other: Path) -> None:
    """Models, figures and answers are the same; durations may differ, and means of losses since the last log."""
    assert_same_model(one, other)
    first, second = (read_json(folder / "all_results.json") for folder in (one, other))
    assert {**first, "train_runtime": 0, "train_loss": 0} == {**second, "train_runtime": 0, "train_loss": 0}
    for name in ("eval_loss", "eval_f1", "train/learning_rate", "train/loss"):
        assert trace(one, name) == trace(other, name)
    assert [entry["step"] for entry in history(one)] == [entry["step"] for entry in history(other)]
    assert (one / "eval_predictions.json").read_bytes() == (other / "eval_predictions.json").read_bytes()


@pytest.mark.parametrize("step", [5, 25, 35])
def test_going_on_from_any_checkpoint(flags: dict[str, Any], whole: Path, tmp_path: Path, step: int) -> None:
    """Mid-epoch in the float phase, after the start of QAT, and after the freeze."""
    output = unfinished(whole, tmp_path / "out", step)
    resumed = run(**flags, output_dir=output)
    assert resumed.code == 0 and f"from step {step}" in flat(resumed.out), resumed.all
    assert_same_run(output, whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_going_on_after_a_signal(
    number: signal.Signals,
    code: int,
    flags: dict[str, Any],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the middle of an epoch; a checkpoint is saved for it."""
    output = tmp_path / "out"

    def stop(log: RunLog, step: int, batch: Any) -> None:
        if step == 17:
            signal.raise_signal(number)

    with monkeypatch.context() as patched:
        patched.setattr(RunLog, "add_quantizers", stop)
        stopped = run(**flags, output_dir=output)
    assert stopped.code == code and not (output / "model.safetensors").exists(), stopped.all
    resumed = run(**flags, output_dir=output)
    assert resumed.code == 0 and "resuming from step 17" in flat(resumed.out), resumed.all
    assert_same_run(output, whole)


@pytest.mark.slow
def test_going_on_after_a_kill(flags: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = start(**flags, output_dir=output)
    while not (output / "checkpoint-10").is_dir() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert wait(process).code == -signal.SIGKILL
    resumed = run(**flags, output_dir=output)
    assert resumed.code == 0 and "resuming from step" in flat(resumed.out), resumed.all
    assert_same_run(output, whole)


def test_other_answers_are_another_run(flags: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    """Windows, and whether there may be no answer, are part of what is trained."""
    before = files_of(whole)
    for changed in ({"doc_stride": 3}, {"max_seq_length": 30}):
        output = unfinished(whole, tmp_path / next(iter(changed)), 5)
        refused = run(**{**flags, **changed}, output_dir=output)
        assert refused.code == 2 and "Traceback" not in refused.err, refused.all
    assert files_of(whole) == before


def test_an_evaluation_that_was_interrupted_is_done_again(
    tiny_questions: TinyQuestions, answerer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers may be written, its figures not: both are then those of the new question."""
    shutil.copytree(answerer, tmp_path / "out")
    other = write_questions(tmp_path / "other.json", questions(9, seed=5))
    flags = tiny_questions.flags(output_dir=tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(results, "write_evaluation", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(**{**flags, "validation_file": other}).code == 130
    assert run(**flags).code == 0
    for name in ("eval_predictions.json", "eval_nbest_predictions.json", "eval_results.json"):
        assert (tmp_path / "out" / name).read_text() == (answerer / name).read_text()


def test_prefetch(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    """It loads what the script would, by the script's name."""
    flags = words(**tiny_questions.flags(output_dir=tmp_path / "out"))
    for name in ("question_answering", "sparseml.transformers.train.question_answering", "question-answering"):
        done = run_program(ROOT / "scripts" / "prefetch.py", [name, *flags])
        assert done.code == 0 and "203 train, 60 validation rows, model and tokenizer, recipe" in done.out, done.all
        assert "scripts/question_answering.py with the same flags" in done.out
    refused = run_program(ROOT / "scripts" / "prefetch.py", ["question_answerin", *flags])
    assert refused.code == 2 and "Did you mean 'question_answering'?" in refused.err, refused.all
    assert not (tmp_path / "out").exists()
