"""Every recipe for encoders that SparseML published loads, and runs in a loop of one's own.

Shortened in what costs time only: two steps an epoch, on models of two blocks; OBS draws 3 gradients for each mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from published_recipes import published_recipes
from tiny import SIZES, make_encoder_sparse
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForMaskedLM, BertForQuestionAnswering, BertForSequenceClassification

from sparse_accel import RecipeRun, Teacher, load_recipe
from sparse_accel.errors import UsageError
from sparse_accel.nn.layers import quantizers, sparse_layers

RECIPES = published_recipes(num_grads=3)
T5 = "doc2query_90sparse"
HEADS: dict[str, Any] = {
    "squad": BertForQuestionAnswering,
    "distil": BertForQuestionAnswering,
    "mnli": BertForSequenceClassification,
    "qqp": BertForSequenceClassification,
    "mlm": BertForMaskedLM,
    "noprune": BertForMaskedLM,
}


def head_of(recipe: str) -> str:
    return recipe.rpartition("_")[2]


def make_model(head: str, seed: int = 0, sparsity: float = 0.0) -> Any:
    torch.manual_seed(seed)
    model = HEADS[head](BertConfig(**{**SIZES, "num_labels": 3 if head == "mnli" else 2}))
    make_encoder_sparse(model, sparsity)
    return model


def make_rows(head: str) -> list[dict[str, Tensor]]:
    """12 rows of 10 tokens, the last of which are padding in some of them, and the labels of the head."""
    random = torch.Generator().manual_seed(1)
    rows = []
    for number in range(12):
        ids = torch.randint(5, SIZES["vocab_size"], (10,), generator=random)
        mask = (torch.arange(10) < 10 - number % 3).long()
        row = {"input_ids": ids * mask, "attention_mask": mask}
        if HEADS[head] is BertForQuestionAnswering:
            row |= {"start_positions": torch.tensor(number % 5), "end_positions": torch.tensor(5 + number % 3)}
        elif HEADS[head] is BertForMaskedLM:
            row["labels"] = torch.where(torch.rand(10, generator=random) < 0.3, ids, -100).masked_fill(mask == 0, -100)
        else:
            row["labels"] = torch.tensor(number % 2)
        rows.append(row)
    return rows


def steps(recipe: str) -> Iterator[tuple[Any, dict[str, Tensor]]]:
    """Trains with a recipe in the loop of README; yields the model and the terms of the loss after each step."""
    head, sparse = head_of(recipe), "transfer" in recipe
    model = make_model(head, sparsity=0.9 if sparse else 0.0)
    rows: Any = make_rows(head)
    loader: Any = DataLoader(rows, batch_size=6, shuffle=True, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    run = RecipeRun(load_recipe(RECIPES[recipe]), teacher=Teacher(make_model(head, seed=1)))
    run.attach(model)
    run.bind(None, model, optimizer, steps_per_epoch=len(loader), gradient_loader=loader)
    for _ in range(run.max_epochs):
        for batch in loader:
            run.step_begin()
            outputs = model(**batch)
            terms = run.losses(outputs.loss, batch, outputs)
            terms["loss"].backward()
            run.grads_ready()
            optimizer.step()
            optimizer.zero_grad()
            run.step_end()
            yield model, {name: value.detach() for name, value in terms.items()}
    run.finish()
    assert run.structure_final()


def encoder_sparsity(model: Any) -> float:
    weights = [layer.masked_weight() for _, layer in sparse_layers(model) if layer.mask is not None]
    return float(sum((weight == 0).sum() for weight in weights) / sum(weight.numel() for weight in weights))


def test_there_are_24() -> None:
    assert len(RECIPES) == 24
    assert sum("OBSPruningModifier" in text for text in RECIPES.values()) == 17
    for text in published_recipes().values():
        assert load_recipe(text).max_epochs


@pytest.mark.parametrize("recipe", sorted(RECIPES.keys() - {T5}))
def test_it_runs(recipe: str) -> None:
    expected = {"80": 0.8, "90": 0.9, "97": 0.97, "distil": 0.9, "dense": 0.0, "noprune": 0.0, "transfer": 0.9}
    final = next(value for key, value in expected.items() if key in recipe)
    found = []
    for model, terms in steps(recipe):
        assert all(torch.isfinite(value).all() for value in terms.values())
        if "noprune" not in recipe:  # hardness 1: the labels are not used
            torch.testing.assert_close(terms["loss"], terms["distillation_loss"])
            assert terms["distillation_loss"] > 0
        found.append(encoder_sparsity(model) if any(True for _ in sparse_layers(model)) else 0.0)
    assert found == sorted(found) if "transfer" not in recipe else True
    assert found[-1] == pytest.approx(final, abs=0.002)
    assert bool(quantizers(model)) == (recipe == "recipe_short_prune_quant_distil")


def test_the_recipe_for_t5_names_the_first_weight_that_is_missing() -> None:
    run = RecipeRun(load_recipe(RECIPES[T5]))
    assert len(run.modifiers) == 193
    with pytest.raises(
        UsageError, match=r"'encoder\.block\.0\.layer\.0\.SelfAttention\.q\.weight' matches no parameter"
    ):
        run.attach(make_model("squad"))
