"""Pooling against the formula of sentence-transformers; the class that a pooled encoder has."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Pooling as Reference
from tiny import SIZES
from torch import Tensor
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, RobertaConfig, RobertaModel

from sparse_accel.nn.pooling import MODES, PooledEncoder, Pooling, add_pooling, pooled

MEAN = Pooling("mean", normalize=False)


def encoder(pooling: Pooling = MEAN) -> Any:
    torch.manual_seed(0)
    return add_pooling(BertModel(BertConfig(**SIZES)).eval(), pooling)


def rows(*lengths: int, left: bool = False) -> dict[str, Tensor]:
    """Rows of ids 5, 6, ... of these lengths, padded to the longest."""
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        place = slice(max(lengths) - length, None) if left else slice(length)
        ids[row, place], mask[row, place] = torch.arange(5, 5 + length) + row, 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("left", [False, True])
def test_it_is_that_of_sentence_transformers(mode: Any, left: bool) -> None:
    mask = rows(3, 7, 1, 5, left=left)["attention_mask"]
    hidden = torch.randn(4, 7, 6)
    expected = Reference(6, pooling_mode=mode)({"token_embeddings": hidden, "attention_mask": mask})
    torch.testing.assert_close(pooled(hidden, mask, mode), expected["sentence_embedding"])


@pytest.mark.parametrize("mode", MODES)
def test_padding_changes_nothing(mode: str) -> None:
    model, padded = encoder(Pooling(mode, normalize=True)), rows(4, 9)
    alone = {name: value[:1, :4] for name, value in padded.items()}
    first, second = (model(**inputs).sentence_embedding for inputs in (padded, alone))
    torch.testing.assert_close(first[:1], second)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(2))


def test_half_precision_is_summed_in_float32() -> None:
    hidden = torch.full((1, 4096, 1), 0.1, dtype=torch.bfloat16)
    found = pooled(hidden, torch.ones(1, 4096), "mean")
    assert found.dtype == torch.float32 and found.item() == pytest.approx(hidden[0, 0].item(), rel=1e-5)


def test_rows_of_several_texts() -> None:
    """(R, K, T) gives (R, K, D), the same as each text alone."""
    model, flat = encoder(), rows(3, 7, 5, 6, 2, 4)
    several = {name: value.view(2, 3, 7) for name, value in flat.items()}
    found = model(**several)
    assert found.sentence_embedding.shape == (2, 3, 32) and found.last_hidden_state.shape == (2, 3, 7, 32)
    torch.testing.assert_close(found.sentence_embedding.flatten(0, 1), model(**flat).sentence_embedding)


def test_without_a_mask_all_tokens_count() -> None:
    model, inputs = encoder(), rows(5, 5)
    torch.testing.assert_close(model(inputs["input_ids"]).sentence_embedding, model(**inputs).sentence_embedding)


@pytest.mark.parametrize(
    "model",
    [
        BertModel(BertConfig(**SIZES)),
        RobertaModel(RobertaConfig(**SIZES)),
        DistilBertModel(
            DistilBertConfig(vocab_size=30, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64)
        ),
    ],
    ids=lambda model: type(model).__name__,
)
def test_every_weight_gets_a_gradient(model: Any) -> None:
    """Weights without one stop DDP: BERT's pooler is left out. Names of weights and class are what they were."""
    names, kind = {*model.state_dict()}, type(model)
    add_pooling(model, Pooling("mean", normalize=True))
    assert isinstance(model, PooledEncoder) and isinstance(model, kind)
    assert type(model).__name__ == kind.__name__ and str(type(model)) == str(kind)
    assert {*model.state_dict()} == {name for name in names if not name.startswith("pooler.")}
    model.eval()(**rows(3, 6)).sentence_embedding.sum().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_hidden_states_can_be_asked_for() -> None:
    """transformers finds by the name of the class what it can return."""
    found = encoder()(**rows(3, 6), output_hidden_states=True)
    assert len(found.hidden_states) == 3 and found[0] is found.sentence_embedding


def test_copies_and_second_poolings() -> None:
    model = encoder()
    twin = copy.deepcopy(model)
    assert type(twin) is type(model) and twin.pooling == model.pooling
    assert type(add_pooling(twin, Pooling("cls", normalize=True))) is type(model)
    assert twin.pooling.mode == "cls" and model.pooling.mode == "mean"
