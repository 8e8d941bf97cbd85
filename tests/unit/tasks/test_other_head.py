"""Heads that belong to no task here: their outputs are distilled in a loop of one's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from places import golden
from tiny import SIZES, make_bert
from transformers import BertConfig, BertForMaskedLM, BertForMultipleChoice, BertForQuestionAnswering

from sparse_accel.tasks import MaskedLanguageModeling, QuestionAnswering, TextClassification, task_of
from sparse_accel.tasks.other_head import OtherHead

GOLDEN: dict[str, Any] = golden("token_distillation")


def test_which_models_have_another_head() -> None:
    assert type(task_of(BertForQuestionAnswering(BertConfig(**SIZES)))) is QuestionAnswering
    assert type(task_of(BertForMaskedLM(BertConfig(**SIZES)))) is MaskedLanguageModeling
    assert type(task_of(BertForMultipleChoice(BertConfig(**SIZES)))) is OtherHead
    assert type(task_of(make_bert())) is TextClassification
    assert type(task_of(torch.nn.Linear(2, 2))) is TextClassification


@pytest.mark.parametrize("temperature", GOLDEN["cases"])
def test_golden_outputs_of_tokens(temperature: str) -> None:
    """SparseML divides by rows times tokens: with rows of one length, the mean over the rows is the same."""
    student, teacher = torch.tensor(GOLDEN["student"], requires_grad=True), torch.tensor(GOLDEN["teacher"])
    task = task_of(BertForMaskedLM(BertConfig(**SIZES)))
    loss = task.mean(task.distance(student, teacher, {}, float(temperature)), {})
    loss.backward()
    expected = GOLDEN["cases"][temperature]
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-6)
    torch.testing.assert_close(student.grad, torch.tensor(expected["gradient"]).view_as(student), rtol=1e-5, atol=1e-7)


def test_padding_does_not_count() -> None:
    task = task_of(BertForMaskedLM(BertConfig(**SIZES)))
    student, teacher = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    found = task.distance(student, teacher, {"attention_mask": mask}, 2.0)
    short = task.distance(student[:1, :3], teacher[:1, :3], {"attention_mask": mask[:1, :3]}, 2.0)
    torch.testing.assert_close(found[0], short[0])


def test_answers_are_distilled_whatever_the_labels_in_the_configuration() -> None:
    task = task_of(BertForQuestionAnswering(BertConfig(**{**SIZES, "num_labels": 1})))
    logits = torch.randn(3, 6)
    assert torch.equal(task.distance(logits, logits + 1.0, {}, 1.0).round(decimals=5), torch.zeros(3))
