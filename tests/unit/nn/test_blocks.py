"""Dropped blocks: skipped, removed and read back from a file, a model computes the same; and nothing is left behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SIZES, VOCABULARY, make_albert, make_bert
from torch import nn

from sparse_accel.distributed.launch import block_classes
from sparse_accel.nn.blocks import (
    check_removable,
    encoder_blocks,
    make_skippable,
    remove_blocks,
    remove_skipped,
    skip,
    with_skipped,
    without_skipped,
)
from sparse_accel.training.setup import recompute_activations

BLOCKS = 3
OTHER_NAMES = {
    "DistilBert": {"dim": 32, "n_layers": BLOCKS, "n_heads": 4, "hidden_dim": 64},
    "XLNet": {"d_model": 32, "n_layer": BLOCKS, "n_head": 4, "d_inner": 64},
    "ModernBert": {**SIZES, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 3, "sep_token_id": 4},
    "Electra": {**SIZES, "embedding_size": 16},
    # a block whose output a convolution follows, and another that returns a tuple
    "DebertaV2": {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "conv_kernel_size": 3},
}
KINDS = ("Bert", "Roberta", "DistilBert", "Electra", "MPNet", "ModernBert", "DebertaV2", "XLNet")
IDS = torch.randint(5, len(VOCABULARY), (3, 7), generator=torch.Generator().manual_seed(0))
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS).index_fill(1, torch.tensor([6]), 0)}


def make(kind: str) -> Any:
    torch.manual_seed(0)
    sizes = {**OTHER_NAMES.get(kind, SIZES), "vocab_size": len(VOCABULARY), "initializer_range": 0.2}
    if "num_hidden_layers" in sizes:
        sizes["num_hidden_layers"] = BLOCKS
    config = getattr(transformers, f"{kind}Config")(**sizes)
    return getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()


def bert(blocks: int = BLOCKS) -> Any:
    return make_bert(num_hidden_layers=blocks, initializer_range=0.2).eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(**BATCH).logits
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_skipped_removed_and_read_from_a_file(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    before, random = logits(model), torch.random.get_rng_state()
    make_skippable(model)
    check_removable(model, [1])
    assert torch.equal(random, torch.random.get_rng_state())
    assert torch.equal(logits(model), before)  # none is skipped yet
    skip(encoder_blocks(model)[1][1])
    skipped = logits(model)
    assert not torch.allclose(skipped, before, atol=1e-4)
    remove_skipped(model)
    assert torch.equal(logits(model), skipped)
    assert model.config.num_hidden_layers == len(encoder_blocks(model)[1]) == BLOCKS - 1
    model.save_pretrained(tmp_path)
    kind_of_model = transformers.AutoModelForSequenceClassification
    read, info = kind_of_model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(logits(read.eval()), skipped)

    removed = make(kind)
    check_removable(removed, [1])
    remove_blocks(removed, [1])
    assert torch.equal(logits(removed), skipped)
    assert removed.state_dict().keys() == read.state_dict().keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_skipped_block_gives_its_weights_a_gradient_of_zero(kind: str) -> None:
    model = make(kind).train()
    plain = copy.deepcopy(model).state_dict()
    make_skippable(model)
    block = encoder_blocks(model)[1][1]
    skip(block)
    called: list[str] = []
    for part in block.modules():
        if part is not block:
            part.register_forward_hook(lambda *_: called.append("computed"))
    model(**BATCH, labels=torch.tensor([0, 1, 0])).loss.backward()
    assert called == []
    without = {name for name, weight in model.named_parameters() if weight.grad is None}
    assert all("mask_emb" in name or "seg_embed" in name or "r_s_bias" in name for name in without)  # XLNet's own
    assert all(weight.grad is not None and not weight.grad.any() for weight in block.parameters())
    assert any(weight.grad is not None and weight.grad.any() for weight in encoder_blocks(model)[1][0].parameters())
    assert all(torch.equal(value, plain[name]) for name, value in model.state_dict().items())


def test_broken_and_frozen_weights_of_a_skipped_block_do_no_harm() -> None:
    model = bert().train()
    skip(make_skippable(model)[0])
    with torch.no_grad():
        for weight in model.bert.encoder.layer[0].parameters():
            weight.fill_(torch.nan)
    model.bert.encoder.layer[0].output.requires_grad_(False)
    loss = model(**BATCH, labels=torch.tensor([0, 1, 0])).loss
    loss.backward()
    assert loss.isfinite()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())
    assert all(weight.grad is None for weight in model.bert.encoder.layer[0].output.parameters())


def test_classes_keep_their_names_and_are_one() -> None:
    model = bert()
    names = block_classes(model)
    make_skippable(model)
    assert block_classes(model) == names == ["BertLayer"]
    assert len({type(block) for block in model.bert.encoder.layer}) == 1
    assert list(model.state_dict()) == list(bert().state_dict())


def test_gradient_checkpointing_and_torch_compile_compute_the_same() -> None:
    results = []
    for change in ("none", "checkpointing", "compiled"):
        model = make_bert(num_hidden_layers=2, dropout=0.0).train()
        make_skippable(model)
        if change == "checkpointing":
            recompute_activations(model)
        forward: Any = torch.compile(model, backend="eager", fullgraph=True) if change == "compiled" else model
        for skipped in (False, True):
            skip(encoder_blocks(model)[1][0], skipped)
            found = forward(**BATCH).logits
            found.square().sum().backward()
        results.append([found.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    torch.compiler.reset()
    for other in results[1:]:
        assert len(other) == len(results[0])
        assert all(torch.allclose(one, another, atol=1e-5) for one, another in zip(results[0], other, strict=True))


@given(st.integers(2, 5).flatmap(lambda count: st.tuples(st.just(count), st.sets(st.integers(0, count - 1)))))
@settings(max_examples=25, deadline=None)
def test_taken_out_and_put_back(case: tuple[int, set[int]]) -> None:
    """Whatever is skipped, and however the contexts are nested, the same model comes back."""
    count, chosen = case
    model = bert(count)
    blocks = list(make_skippable(model))
    names = list(model.state_dict())
    for index in chosen:
        skip(blocks[index])
    left = [block for index, block in enumerate(blocks) if index not in chosen]

    def is_short() -> None:
        assert list(model.bert.encoder.layer) == left and model.config.num_hidden_layers == len(left)
        assert list(model.state_dict()) == list(bert(len(left)).state_dict()) if left else True

    def is_whole() -> None:
        assert list(model.bert.encoder.layer) == blocks and model.config.num_hidden_layers == count
        assert list(model.state_dict()) == names

    with without_skipped(model):
        is_short()
        with without_skipped(model), with_skipped(model):
            is_short()  # only what `remove_skipped` took out comes back
    is_whole()
    remove_skipped(model)
    is_short()
    with with_skipped(model):
        is_whole()
        with without_skipped(model):
            is_short()
    is_short()
    remove_skipped(model)  # as a second call of `finish`
    with pytest.raises(KeyError), with_skipped(model):
        is_whole()
        raise KeyError
    is_short()


def test_blocks_that_are_removed_one_after_another() -> None:
    model = bert(4)
    blocks = list(make_skippable(model))
    for index in (2, 0):
        skip(blocks[index])
        remove_skipped(model)
    assert list(model.bert.encoder.layer) == [blocks[1], blocks[3]]
    with with_skipped(model):
        assert list(model.bert.encoder.layer) == blocks
    assert list(copy.deepcopy(model).state_dict()) == list(bert(2).state_dict())


def test_the_types_of_modernbert_go_with_their_blocks() -> None:
    model = make("ModernBert")
    types = list(model.config.layer_types)
    assert len(set(types)) == 2
    remove_blocks(model, [1])
    assert model.config.layer_types == [types[0], types[2]]


def test_models_without_blocks() -> None:
    """The contexts are used for every model."""
    model = nn.Sequential(nn.Linear(2, 2))
    remove_skipped(model)
    with without_skipped(model), with_skipped(model):
        assert list(model.state_dict()) == ["0.weight", "0.bias"]


class TwoLists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = transformers.BertConfig(num_hidden_layers=2)
        self.one, self.other = (nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)]) for _ in range(2))


@pytest.mark.parametrize(
    ("model", "part"),
    [
        (lambda: nn.Linear(2, 2), "this Linear has no list with a block for each layer"),
        (make_albert, "this albert has no list .*: its 2 layers share the weights of 1"),
        (TwoLists, "several lists of blocks .one, other."),
    ],
)
def test_models_whose_layers_cannot_be_dropped(model: Callable[[], nn.Module], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        make_skippable(model())


@pytest.mark.parametrize("skippable", [False, True])
@pytest.mark.parametrize("kind", ["ModernBert", "DebertaV2"])
def test_a_block_that_is_told_by_its_position(kind: str, skippable: bool) -> None:
    """ModernBERT's first block has no LayerNorm; a convolution follows DeBERTa's, which then follows the next."""
    model = make(kind)
    names = list(model.state_dict())
    if skippable:
        make_skippable(model)
    if kind == "DebertaV2" and not skippable:
        check_removable(model, [0])  # from the start, the convolution follows the new first block
    else:
        with pytest.raises(ValueError, match="differently from the others, by its position"):
            check_removable(model, [0])
    assert list(model.state_dict()) == names and model.config.num_hidden_layers == BLOCKS
    check_removable(model, [1])
