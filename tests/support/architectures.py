"""The table of architectures: for each one a tiny classifier with random weights, and a tokenizer of its kind.

docs/models.md lists the same ones, and test_architectures.py compares what it says with what runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tiny import SPECIAL
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerFast

SPARSITY = 0.75  # of the Linears of the encoder, in the end
# Two epochs: masks by magnitude in the first one, INT8 from the second one on.
WITHOUT_TEACHER = rf"""
modifiers:
  - !EpochRangeModifier {{start_epoch: 0.0, end_epoch: 2.0}}
  - !LearningRateFunctionModifier {{start_epoch: 0.0, end_epoch: 2.0, lr_func: linear, init_lr: 0.01, final_lr: 0.0}}
  - !MagnitudePruningModifier {{start_epoch: 0.0, end_epoch: 1.0, update_frequency: 0.25, init_sparsity: 0.3,
      final_sparsity: {SPARSITY}, params: ['re:.*\.\d+\.(?!.*[Nn]orm).*\.weight']}}
  - !QuantizationModifier {{start_epoch: 1.0, disable_quantization_observer_epoch: 1.5, quantize_embeddings: true,
      quantize_linear_activations: false}}
"""
RECIPE = f"""{WITHOUT_TEACHER}  - !DistillationModifier {{hardness: 0.5, temperature: 2.0}}
  - !HiddenStateDistillationModifier {{gain: 0.1}}
"""

# The special tokens in the order of their ids, and what they are.
_OF_BERT = dict(zip(SPECIAL, ("pad", "unk", "cls", "sep", "mask"), strict=True))
_OF_ROBERTA = {"<s>": "cls", "<pad>": "pad", "</s>": "sep", "<unk>": "unk", "<mask>": "mask"}


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes:
        model_type: as in config.json.
        settings: of its configuration, beside those of every architecture.
        blocks: 1, because tracing takes two seconds a block; 2 where the second one differs from the first.
        special: the special tokens, in the order of their ids, and their roles.
        token_types: whether its tokenizer makes token_type_ids.
        unused_positions: position embeddings that no token has: those before padding_idx + 1.
    """

    model_type: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    blocks: int = 1
    special: Mapping[str, str] = field(default_factory=lambda: _OF_BERT)
    token_types: bool = False
    unused_positions: int = 0


_LIKE_ROBERTA: dict[str, Any] = {"special": _OF_ROBERTA, "unused_positions": 2}
_RELATIVE = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "type_vocab_size": 0,
}
_LOCAL = {"local_attention": 8, "layer_types": ["full_attention", "sliding_attention"]}

ARCHITECTURES = {
    each.model_type: each
    for each in (
        Architecture("bert", token_types=True),
        Architecture("roberta", {"type_vocab_size": 1}, **_LIKE_ROBERTA),
        Architecture("xlm-roberta", {"type_vocab_size": 1}, **_LIKE_ROBERTA),
        Architecture("distilbert"),
        Architecture("electra", {"embedding_size": 8}, token_types=True),
        Architecture("albert", {"embedding_size": 8}, blocks=2, token_types=True),
        Architecture("deberta-v2", _RELATIVE, token_types=True),
        Architecture("modernbert", _LOCAL, blocks=2),
        Architecture("mpnet", **_LIKE_ROBERTA),
    )
}


def make_tokenizer(architecture: Architecture, words: Sequence[str], tokens: int) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words with the special tokens and the inputs of an architecture.

    Args:
        tokens: the longest row.
    """
    numbers = {word: number for number, word in enumerate([*architecture.special, *words])}
    special = {role: token for token, role in architecture.special.items()}
    backend = Tokenizer(models.WordLevel(numbers, unk_token=special["unk"]))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    first, last = ((special[role], numbers[special[role]]) for role in ("cls", "sep"))
    backend.post_processor = processors.BertProcessing(last, first)
    inputs = ["input_ids", *["token_type_ids"] * architecture.token_types, "attention_mask"]
    options: dict[str, Any] = {"model_input_names": inputs, "model_max_length": tokens}
    named = {f"{role}_token": token for role, token in special.items()}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named, **options)


def make_model(
    architecture: Architecture, vocabulary: int, tokens: int, width: int = 32, seed: int = 0, head: bool = True
) -> nn.Module:
    """A model with random weights.

    Args:
        vocabulary: number of tokens of its tokenizer.
        tokens: the longest row.
        width: of its hidden states; 16 for each head of attention.
        head: whether it is a classifier with two labels; else an encoder.
    """
    torch.manual_seed(seed)
    ids = {role: number for number, role in enumerate(architecture.special.values())}
    config = AutoConfig.for_model(
        architecture.model_type,
        vocab_size=vocabulary,
        max_position_embeddings=tokens + architecture.unused_positions,
        hidden_size=width,
        num_hidden_layers=architecture.blocks,
        num_attention_heads=width // 16,
        initializer_range=0.2,  # wide enough for the decisions of so narrow a model to stand apart
        **dict.fromkeys(("intermediate_size", "hidden_dim"), 2 * width),  # the latter is DistilBERT's name
        **{f"{role}_token_id": ids[role] for role in ("pad", "cls", "sep")},
        **{"bos_token_id": ids["cls"], "eos_token_id": ids["sep"], **architecture.settings},
    )
    model: nn.Module = (AutoModelForSequenceClassification if head else AutoModel).from_config(config)
    return model


def make_classifier(architecture: Architecture, vocabulary: int, tokens: int, **how: Any) -> nn.Module:
    """A classifier with two labels and random weights; `how`: as for `make_model`."""
    return make_model(architecture, vocabulary, tokens, **how)


def write_model(folder: Path, architecture: Architecture, words: Sequence[str], tokens: int, **how: Any) -> Path:
    """Writes a model and its tokenizer, as a folder from the Hub has them; `how`: as for `make_model`."""
    tokenizer = make_tokenizer(architecture, words, tokens)
    model: Any = make_model(architecture, len(tokenizer), tokens, **how)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
