"""The recipes of this package on every architecture: they find its layers, or say that they do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, make_classifier, make_tokenizer
from model_tables import MODELS
from places import ROOT
from script_fixtures import WORDS
from torch import nn

from sparse_accel.errors import UsageError, with_article
from sparse_accel.models.loading import max_length
from sparse_accel.nn.layer_outputs import hidden_state_outputs, trace_calls
from sparse_accel.nn.layers import is_encoder_linear, masks, prunable_names, quantizers
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun
from sparse_accel.training.setup import recompute_activations

RECIPES = ROOT / "sparse_accel" / "zoo" / "recipes"
TOKENS = 64

each_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def make(name: str) -> Any:
    return make_classifier(ARCHITECTURES[name], 40, TOKENS)


def attached(name: str, recipe: Path) -> Any:
    model = make(name)
    RecipeRun(load_recipe(recipe), teacher="disable").attach(model)
    return model


def encoder_linears(model: nn.Module) -> set[str]:
    return {f"{name}.weight" for name, module in model.named_modules() if is_encoder_linear(name, module)}


@each_architecture
def test_the_linears_of_the_encoder_are_those_of_its_blocks(name: str) -> None:
    """Nothing in the head, the pooler or the embeddings counts, and everything else does: so do figures of zeros."""
    model = make(name)
    blocks = [model.get_submodule(output.module) for output in hidden_state_outputs(trace_calls(model))]
    inside = {id(module) for block in blocks for module in block.modules() if isinstance(module, nn.Linear)}
    names = {f"{at}.weight" for at, module in model.named_modules() if id(module) in inside}
    assert len(blocks) == ARCHITECTURES[name].blocks
    assert encoder_linears(model) == names
    linears = {f"{at}.weight" for at, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert set(prunable_names(model)) == linears > names


@each_architecture
@pytest.mark.parametrize("recipe", ["magnitude_pruned90", "movement_pruned90", "obert_pruned90"])
def test_recipes_that_prune_find_the_whole_encoder(name: str, recipe: str) -> None:
    model = attached(name, RECIPES / f"{recipe}.yaml")
    assert set(masks(model)) == encoder_linears(model)


@each_architecture
@pytest.mark.parametrize("recipe", ["sparse_quant_distilled", "one_shot_int8"])
def test_recipes_that_quantize_find_every_layer(name: str, recipe: str) -> None:
    model = attached(name, RECIPES / f"{recipe}.yaml")
    layers = {at for at, module in model.named_modules() if isinstance(module, nn.Linear | nn.Embedding)}
    assert {
        at.removesuffix(".weight_quantizer") for at in quantizers(model) if at.endswith("weight_quantizer")
    } == layers


@each_architecture
def test_heads_and_neurons_of_architectures_whose_blocks_are_known(name: str) -> None:
    if name in ("bert", "roberta", "xlm-roberta", "distilbert", "electra"):
        model = attached(name, RECIPES / "structured_half.yaml")
        assert {at for at in masks(model) if at.endswith(".weight")} == encoder_linears(model)
        return
    said = rf"structured_half.yaml:\d+: .*heads and neurons of {with_article(name)} model cannot"
    with pytest.raises(UsageError, match=said):
        attached(name, RECIPES / "structured_half.yaml")


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "bert"])
@pytest.mark.parametrize("recipe", ["mnli", "qqp", "squad", "sst2"])
def test_recipes_for_bert_say_that_they_are(name: str, recipe: str) -> None:
    """SparseML's recipes name the modules of BERT. The message has those of this model."""
    with pytest.raises(UsageError) as raised:
        attached(name, RECIPES / f"{recipe}_pruned90_quant.yaml")
    message = str(raised.value)
    assert f"this {name} model has no module 'bert.embeddings'" in message and "leave submodules out" in message
    backbone = make(name).base_model_prefix
    assert f"{backbone}.embeddings" in message


def test_a_pattern_of_other_names_is_an_error(tmp_path: Path) -> None:
    """A recipe never prunes nothing: every pattern of params must match."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "pruning_modifiers:\n"
        "  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 2.0}\n"
        "  - !MagnitudePruningModifier {start_epoch: 0.0, end_epoch: 1.0, update_frequency: 0.5, init_sparsity: 0.3,\n"
        "      final_sparsity: 0.9, params: ['re:.*attention.self.query.weight', 're:.*weight']}\n"
    )
    for name in ("distilbert", "albert", "deberta-v2", "modernbert", "mpnet"):
        with pytest.raises(UsageError, match=r"'re:.*attention.self.query.weight' matches no parameter of this model"):
            attached(name, recipe)


@each_architecture
def test_the_longest_row_is_the_models(name: str) -> None:
    """RoBERTa and its relatives have two positions more than tokens."""
    tokenizer = make_tokenizer(ARCHITECTURES[name], WORDS, 10**6)
    assert max_length(tokenizer, make(name)) == TOKENS


@each_architecture
def test_gradient_checkpointing(name: str) -> None:
    """Gradients are those without it, or the flag is refused."""
    model, plain = make(name).train(), make(name).train()
    batch = {"input_ids": torch.arange(5, 15).view(2, 5), "attention_mask": torch.ones(2, 5, dtype=torch.int64)}
    if MODELS[name].checkpointing == "refused":
        with pytest.raises(UsageError, match=f"--gradient_checkpointing: .* {name}.*--gradient_accumulation_steps"):
            recompute_activations(model)
        return
    recompute_activations(model)
    assert model.is_gradient_checkpointing and not plain.is_gradient_checkpointing
    for each in (model, plain):
        torch.manual_seed(3)  # of dropout
        each(**batch, labels=torch.tensor([0, 1])).loss.backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad)
