"""Tiny texts to mask tokens of, models for them, and ways to run scripts/masked_language_modeling.py: here, or as
processes.

The texts are the sentences of token_fixtures.py, whose names of several pieces can be guessed from one piece. Test
modules name this one in `pytest_plugins`, after they imported it (hence PYTEST_DONT_REWRITE).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import script_fixtures
import torch
from layouts import run_under as run_script_under
from places import ROOT
from script_fixtures import make_model
from token_fixtures import NO_DROPOUT, VOCABULARY, tagged, with_script
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BertConfig, BertModel, RobertaConfig, RobertaForMaskedLM, RobertaTokenizerFast

from sparse_accel.tasks.masked_language_modeling.masking import mask_tokens

SCRIPT = ROOT / "scripts" / "masked_language_modeling.py"
RECIPES = ROOT / "sparse_accel" / "zoo" / "recipes"
LENGTH = 24
# Steps of an epoch: the rows of `TinyTexts.train`, 103 of LENGTH tokens, in batches of 32; the last has 7.
STEPS = 4


def texts(count: int, seed: int) -> list[str]:
    """Sentences of 2 to 20 words."""
    return [" ".join(row.words) for row in tagged(count, seed)]


def write_texts(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_encoder(folder: Path) -> Path:
    """Writes a BERT without a head, as an encoder is published."""
    make_model(folder, sparse=False, vocabulary=VOCABULARY, **NO_DROPOUT)
    torch.manual_seed(0)
    (folder / "model.safetensors").unlink()
    BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False).save_pretrained(folder)
    return folder


def make_roberta(folder: Path) -> Path:
    """Writes a masked language model of two narrow layers with a tokenizer of bytes, trained on `texts`."""
    folder.mkdir()
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(texts(203, seed=1), vocab_size=320, special_tokens=special, show_progress=False)
    trained.save_model(str(folder))
    tokenizer = RobertaTokenizerFast.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=66, **sizes, **NO_DROPOUT)
    RobertaForMaskedLM(config).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class TinyTexts:
    """A folder of tiny things that many tests read and none changes."""

    folder: Path
    model: Path  # masked language model, dense, no dropout
    train: Path  # 203 sentences, one a line
    validation: Path  # 60 sentences

    def flags(self, **others: Any) -> dict[str, Any]:
        """Flags of one epoch of training without a recipe, with evaluation at its end; `others` replace them."""
        return {
            "model_name_or_path": self.model,
            "train_file": self.train,
            "validation_file": self.validation,
            "max_seq_length": LENGTH,
            "per_device_train_batch_size": 32,
            "per_device_eval_batch_size": 32,
            "num_train_epochs": 1,
            "learning_rate": 5e-3,
            "do_train": True,
            "do_eval": True,
            "eval_strategy": "no",
            "save_strategy": "no",
            "logging_steps": 1,
            **others,
        }


@pytest.fixture(scope="session")
def language(tmp_path_factory: pytest.TempPathFactory) -> TinyTexts:
    folder = tmp_path_factory.mktemp("language")
    return TinyTexts(
        folder,
        make_model(folder / "dense", sparse=False, vocabulary=VOCABULARY, **NO_DROPOUT),
        write_texts(folder / "train.txt", texts(203, seed=1)),
        write_texts(folder / "validation.txt", texts(60, seed=2)),
    )


run = with_script(SCRIPT, script_fixtures.run)
start = with_script(SCRIPT, script_fixtures.start)
run_under = with_script(SCRIPT, run_script_under)


# --- rows and losses, without the package's own tokenization and loss -------------------------------------------------


def blocks(tokenizer: Any, lines: Sequence[str], length: int = LENGTH) -> list[list[int]]:
    """The ids of the rows that lines are packed into, from first to last special token."""
    joined: list[int] = []
    for line in lines:
        ids = tokenizer(line, add_special_tokens=False)["input_ids"]
        whole = len(joined) % (length - 2) != 0  # a separator at the beginning of a row is none
        joined += [*[tokenizer.sep_token_id] * (bool(joined) and whole), *ids]
    room = range(0, len(joined), length - 2)
    return [[tokenizer.cls_token_id, *joined[at : at + length - 2], tokenizer.sep_token_id] for at in room]


def masked_batch(tokenizer: Any, rows: Sequence[list[int]], numbers: Sequence[int], epoch: int) -> dict[str, Tensor]:
    """The inputs of a model for the rows of some numbers in an epoch, with labels; padded to the longest."""
    chosen = [torch.tensor(rows[number]) for number in numbers]
    ids = pad_sequence(chosen, batch_first=True, padding_value=tokenizer.pad_token_id)
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    vocabulary = sorted({*tokenizer.get_vocab().values()} - {*tokenizer.all_special_ids})
    masked, labels = mask_tokens(
        ids,
        ~special,
        torch.tensor(numbers),
        seed=42,
        epoch=epoch,
        probability=0.15,
        mask_id=tokenizer.mask_token_id,
        random_ids=torch.tensor(vocabulary),
    )
    return {"input_ids": masked, "attention_mask": (ids != tokenizer.pad_token_id).long(), "labels": labels}


@torch.no_grad()
def loss_of(model: Any, batch: dict[str, Tensor]) -> float:
    """The loss that transformers computes: the mean over all labels of a batch."""
    return float(model.eval()(**batch).loss)
