"""Distillation of start and end logits: the teacher's table of all tokens, by any name of its outputs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from question_fixtures import (
    RECIPE,
    SHORT,
    VOCABULARY,
    TinyQuestions,
    make_answerer,
    questions,
    run,
)
from safetensors.torch import load_file
from script_fixtures import Outcome, assert_same_model, flat, make_model, read_json, trace
from token_fixtures import NO_DROPOUT, make_tagger
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from sparse_accel.models.teacher import Teacher
from sparse_accel.tasks.question_answering.encoding import encode

pytest_plugins = ["question_fixtures"]

FLOAT_STEPS = 10  # of one epoch; quantization begins with the 11th
ONE_AND_A_HALF = {**SHORT, "num_epochs": 2, "qat_start_epoch": 1.0, "observer_epoch": 1.5}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's tables of logits are."""
    monkeypatch.setenv("SPARSE_ACCEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "teacher_logits"


@pytest.fixture(scope="module")
def shipped(tiny_questions: TinyQuestions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run with the shipped recipe, which others are compared with."""
    output = tmp_path_factory.mktemp("shipped") / "out"
    done = student(tiny_questions, output)
    assert done.code == 0 and "its logits on the training rows" in flat(done.out), done.all
    return output


def student(tiny_questions: TinyQuestions, output: Path, **others: Any) -> Outcome:
    flags = tiny_questions.flags(recipe_args=ONE_AND_A_HALF, eval_strategy="no", save_strategy="no", do_eval=None)
    return run(**{**flags, **others}, output_dir=output)


def losses(folder: Path) -> list[float]:
    """Loss, task loss and distillation loss of every step before quantization."""
    names = ("train/loss", "train/task_loss", "train/distillation_loss")
    return [trace(folder, name)[step] for name in names for step in range(1, FLOAT_STEPS + 1)]


def test_the_table_holds_all_tokens_of_all_windows(tiny_questions: TinyQuestions, tmp_path: Path, cache: Path) -> None:
    done = student(tiny_questions, tmp_path / "out")
    assert done.code == 0, done.all
    assert "its logits on the training rows: computed once" in flat(done.out)
    (file,) = cache.iterdir()
    table = load_file(file)["logits"]
    rows = questions(203, seed=1)
    tokenizer = AutoTokenizer.from_pretrained(tiny_questions.teacher)
    columns = {
        "id": [row.id for row in rows],
        "question": [row.question for row in rows],
        "context": [row.context for row in rows],
        "question_row": [*range(len(rows))],
    }
    windows = encode(columns, tokenizer, length=24, doc_stride=6)["input_ids"]
    assert table.shape == (sum(map(len, windows)), 2) and len({*map(len, windows)}) > 5
    model = AutoModelForQuestionAnswering.from_pretrained(tiny_questions.teacher).eval()
    begin = 0
    for ids in windows[:25]:
        question = ids.index(tokenizer.sep_token_id) + 1
        types = torch.tensor([[int(place >= question) for place in range(len(ids))]])
        with torch.no_grad():
            found = model(input_ids=torch.tensor([ids]), token_type_ids=types)
        expected = torch.stack([found.start_logits[0], found.end_logits[0]], dim=-1)
        torch.testing.assert_close(table[begin : begin + len(ids)], expected, rtol=0, atol=1e-5)
        begin += len(ids)
    again = student(tiny_questions, tmp_path / "again")
    assert "found on disk" in flat(again.out)
    assert_same_model(tmp_path / "out", tmp_path / "again")
    other = student(tiny_questions, tmp_path / "other", doc_stride=8)
    assert "computed once" in flat(other.out), "other windows, another table"


def recipe(folder: Path, keys: str) -> Path:
    file = folder / "recipe.yaml"
    lines = RECIPE.read_text().splitlines()
    place = next(number for number, line in enumerate(lines) if "distill_output_keys" in line)
    lines[place] = f"     distill_output_keys: {keys}" if keys else ""
    file.write_text("\n".join(lines))
    return file


@pytest.mark.parametrize("keys", ["", "[logits]", "[end_logits, start_logits]"])
def test_names_of_the_outputs(keys: str, shipped: Path, tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    """All of them are both logits, from the table."""
    done = student(tiny_questions, tmp_path / "out", recipe=recipe(tmp_path, keys))
    assert done.code == 0 and "its logits on the training rows" in flat(done.out), done.all
    assert losses(shipped) == losses(tmp_path / "out")
    assert_same_model(shipped, tmp_path / "out")


def test_one_of_the_outputs(shipped: Path, tiny_questions: TinyQuestions, tmp_path: Path, cache: Path) -> None:
    """The two by themselves: their mean is the distance of both. The teacher runs in each step."""
    found = []
    for keys in ("[start_logits]", "[end_logits]"):
        done = student(tiny_questions, tmp_path / keys, recipe=recipe(tmp_path, keys))
        assert done.code == 0, done.all
        found.append(trace(tmp_path / keys, "train/distillation_loss")[1])
    assert sum(found) / 2 == pytest.approx(trace(shipped, "train/distillation_loss")[1], rel=1e-5)
    assert found[0] != found[1] and not cache.exists()


def test_the_table_is_the_live_teacher(
    shipped: Path, tiny_questions: TinyQuestions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_table = Teacher.make_table

    def make_none(self: Teacher, *arguments: Any, **others: Any) -> bool:
        found = make_table(self, *arguments, **others)
        self.table = None
        return found

    monkeypatch.setattr(Teacher, "make_table", make_none)
    live = student(tiny_questions, tmp_path / "live")
    assert live.code == 0, live.all
    assert losses(shipped) == pytest.approx(losses(tmp_path / "live"), abs=1e-5)
    assert trace(tmp_path / "live", "train/distillation_loss")[1] > 0.1
    agreed, others = (
        [*trace(folder, "train/teacher_agreement").values()][:FLOAT_STEPS] for folder in (shipped, tmp_path / "live")
    )
    assert agreed == pytest.approx(others) and 0 < max(agreed) <= 1


def test_padding_does_not_count(shipped: Path, tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    done = student(tiny_questions, tmp_path / "padded", pad_to_max_length=True)
    assert done.code == 0, done.all
    assert losses(shipped) == pytest.approx(losses(tmp_path / "padded"), abs=1e-4)


def test_the_student_follows_the_teacher(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    """At hardness 1 the teacher alone counts, as in the recipe as it is shipped."""
    settings = {**SHORT, "num_epochs": 5, "qat_start_epoch": 4.0, "observer_epoch": 4.5, "distill_hardness": 1.0}
    done = student(tiny_questions, tmp_path / "out", recipe_args=settings, do_eval=True)
    assert done.code == 0, done.all
    loss = trace(tmp_path / "out", "train/distillation_loss")
    assert loss[50] < 0.5 * loss[1] and trace(tmp_path / "out", "train/loss") == loss
    assert read_json(tmp_path / "out" / "eval_results.json")["eval_f1"] > 0.3


def test_hidden_states_and_attentions(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "modifiers:\n  - !EpochRangeModifier {end_epoch: 1}\n"
        "  - !HiddenStateDistillationModifier {attentions: true, embeddings: true}\n"
        "  - !DistillationModifier {temperature: 2}"
    )
    found: list[list[float]] = []
    for padded in (None, True):
        folder = tmp_path / f"out{len(found)}"
        others: dict[str, Any] = {"recipe": file, "recipe_args": None, "learning_rate": 1e-2}
        done = student(tiny_questions, folder, **others, pad_to_max_length=padded)
        assert done.code == 0, done.all
        names = [f"train/{what}_loss" for what in ("hidden_state_distillation", "attention_distillation", "loss")[:2]]
        found.append([trace(folder, name)[step] for name in names for step in range(1, FLOAT_STEPS + 1)])
    assert found[0] == pytest.approx(found[1], rel=1e-3) and found[0][9] < 0.9 * found[0][0]


def test_the_shipped_recipe_of_second_order_pruning_with_hidden_states(
    tiny_questions: TinyQuestions, tmp_path: Path
) -> None:
    """Gradient samples are those of the loss of start and end."""
    others = {"recipe": RECIPE.with_name("obert_pruned90.yaml"), "recipe_args": {"num_grads": 16}, "do_eval": True}
    dense = tiny_questions.folder / "dense"
    done = student(tiny_questions, tmp_path / "out", model_name_or_path=dense, max_train_samples=40, **others)
    assert done.code == 0, done.all
    assert trace(tmp_path / "out", "train/hidden_state_distillation_loss")
    results = read_json(tmp_path / "out" / "all_results.json")
    assert results["encoder_sparsity"] == pytest.approx(0.9, abs=1e-3) and "eval_f1" in results


def test_a_recipe_for_another_head(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    """That of SST-2 quantizes a classifier: it says what the part is called here, and does not leave it out."""
    done = student(tiny_questions, tmp_path / "out", recipe=RECIPE.with_name("sst2_pruned90_quant.yaml"))
    assert done.code == 2 and "no module 'classifier'. Its modules are: bert.embeddings" in done.err, done.all
    assert "qa_outputs" in done.err


# --- which models may teach -------------------------------------------------------------------------------------------


def test_a_model_that_teaches_itself(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    done = student(tiny_questions, tmp_path / "out", distill_teacher="self", model_name_or_path=tiny_questions.teacher)
    assert done.code == 0, done.all
    assert trace(tmp_path / "out", "train/distillation_loss")[1] == pytest.approx(0, abs=1e-5)
    assert trace(tmp_path / "out", "train/teacher_agreement")[1] == 1


def test_agreement_counts_whole_answers(answerer: Path, tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    """An answer that begins or ends where the teacher's does is another answer."""
    flags = tiny_questions.of(tiny_questions.teacher, validation_file=tiny_questions.validation, do_eval=True)
    assert run(**flags, output_dir=tmp_path / "teacher").code == 0
    ours, theirs = (read_json(folder / "eval_predictions.json") for folder in (answerer, tmp_path / "teacher"))
    contexts = {row.id: row.context for row in questions(60, seed=2)}
    assert all(contexts[id_].count(text) == 1 or ours[id_] == theirs[id_] for id_, text in ours.items())
    same = sum(ours[id_] == theirs[id_] for id_ in ours) / len(ours)
    assert 0 < same < 1
    assert trace(answerer, "eval_teacher_agreement")[40] == pytest.approx(same)


def test_the_teachers_own_figures(tiny_questions: TinyQuestions, answerer: Path) -> None:
    """They are those of its own run, and the run's lines name them."""
    figures = read_json(answerer / "teacher_results.json")["splits"]["validation"]["figures"]
    own = read_json(tiny_questions.teacher / "eval_results.json")
    assert {f"eval_{name}": value for name, value in figures.items()} == pytest.approx(own, abs=1e-5)
    assert f"(teacher {figures['f1']:.4f})" in (tiny_questions.folder / "answerer.txt").read_text()


def test_a_teacher_with_another_tokenizer_is_refused(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    """Its tokens are others, so there is no logit for each of the student's."""
    other = Path(shutil.copytree(tiny_questions.teacher, tmp_path / "other"))
    turned = make_model(tmp_path / "turned", sparse=False, vocabulary=VOCABULARY[::-1])
    shutil.copy(turned / "tokenizer.json", other)
    refused = student(tiny_questions, tmp_path / "out", distill_teacher=other)
    assert refused.code == 2, refused.all
    said = flat(refused.err)
    assert f"--distill_teacher {other} needs its own tokenizer" in said
    assert "this task compares the logits of tokens" in said and "--use_teacher_tokenizer" in said
    assert len(refused.err.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


def test_a_teacher_that_reads_shorter_rows_is_refused(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    short = make_answerer(tmp_path / "short", max_position_embeddings=16, **NO_DROPOUT)
    refused = student(tiny_questions, tmp_path / "out", distill_teacher=short)
    assert refused.code == 2 and str(short) in refused.err and "Traceback" not in refused.err, refused.all
    assert len(refused.err.strip().splitlines()) == 1


def test_a_teacher_of_another_task_is_refused(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    refused = student(tiny_questions, tmp_path / "out", distill_teacher=make_tagger(tmp_path / "tagger"))
    assert refused.code == 2 and "trained for token_classification, not for question_answering" in refused.err
    assert len(refused.err.strip().splitlines()) == 1
