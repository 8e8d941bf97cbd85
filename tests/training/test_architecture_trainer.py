"""Every architecture in a transformers Trainer with a recipe: what it saves is sparse, and is the trained model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, RECIPE, SPARSITY, make_classifier, make_tokenizer
from datasets import Dataset
from model_tables import MODELS
from script_fixtures import WORDS, sentences, weights
from trainers import arguments
from transformers import DataCollatorWithPadding, Trainer

import sparse_accel
from sparse_accel.integrations import RecipeMixin
from sparse_accel.models.sparsity import sparsity_report
from sparse_accel.nn.layers import is_encoder_linear, quantized_linears

TOKENS = 64


class RecipeTrainer(RecipeMixin, Trainer):
    """The line of a user."""


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_in_a_trainer(name: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    tokenizer = make_tokenizer(architecture, WORDS, TOKENS)
    student, teacher = (make_classifier(architecture, len(tokenizer), TOKENS, seed=seed) for seed in (0, 1))
    drawn = sentences(32, seed=1)
    rows = Dataset.from_dict({**tokenizer([row["text"] for row in drawn]), "labels": [row["label"] for row in drawn]})
    trainer = RecipeTrainer(
        student,
        arguments(tmp_path / "run"),
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        recipe=str(tmp_path / "recipe.yaml"),
        teacher=teacher,
    )
    trainer.train()
    assert trainer.state.global_step == 8
    trainer.save_model(str(tmp_path / "out"))

    saved = sparse_accel.load(tmp_path / "out")
    linears, total = quantized_linears(saved)
    assert linears == total == quantized_linears(student)[1]
    assert sparsity_report(saved)["encoder_linear"]["sparsity"] == SPARSITY
    stored = weights(tmp_path / "out")
    encoder = [stored[f"{at}.weight"] for at, module in student.named_modules() if is_encoder_linear(at, module)]
    assert encoder and all(int((weight == 0).sum()) == SPARSITY * weight.numel() for weight in encoder)
    batch = dict(tokenizer([row["text"] for row in drawn[:9]], padding=True, return_tensors="pt"))
    with torch.no_grad():
        assert torch.equal(saved(**batch).logits, student.eval()(**batch).logits)
    assert MODELS[name].trainer == "yes"
