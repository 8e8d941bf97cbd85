"""Tokenized rows, and the loaders that show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from sparse_accel.data.batches import Collator, GlobalBatchSampler, make_loader
from sparse_accel.errors import UsageError
from sparse_accel.tasks.text_classification.encoding import tokenize_texts

if TYPE_CHECKING:
    from sparse_accel.cli.text_classification import TextClassificationArguments
    from sparse_accel.tasks import TextClassificationData


def make_collator(
    arguments: TextClassificationArguments, accelerator: Accelerator, tokenizer: Any, limit: int
) -> Collator:
    """Returns the collator: batches padded to their longest row, or all to the sequence length."""
    on_tensor_cores = accelerator.device.type == "cuda" and accelerator.mixed_precision != "no"
    length = limit if arguments.pad_to_max_length else None
    return Collator(tokenizer, length=length, multiple=8 if on_tensor_cores else None)


def training_loader(
    arguments: TextClassificationArguments, accelerator: Accelerator, dataset: Any, collator: Collator
) -> tuple[DataLoader[Any], GlobalBatchSampler]:
    """Returns the loader of the training rows, not yet prepared, and its sampler."""
    splits = accelerator.num_processes * accelerator.gradient_accumulation_steps
    lengths = [len(ids) for ids in dataset["input_ids"]]
    sampler = GlobalBatchSampler(lengths, arguments.per_device_train_batch_size, splits, seed=arguments.seed)
    workers, pin = arguments.dataloader_num_workers, accelerator.device.type == "cuda"
    return make_loader(dataset, sampler, collator, workers=workers, pin_memory=pin), sampler


def evaluation_loader(
    arguments: TextClassificationArguments, accelerator: Accelerator, dataset: Any, collator: Collator
) -> DataLoader[Any]:
    """Returns a prepared loader that shows each row once, in batches of like lengths."""
    lengths = [len(ids) for ids in dataset["input_ids"]]
    sampler = GlobalBatchSampler(lengths, arguments.per_device_eval_batch_size, accelerator.num_processes, seed=None)
    loader = make_loader(dataset, sampler, collator, workers=arguments.dataloader_num_workers)
    return accelerator.prepare_data_loader(loader)


def tokenize_rows(
    arguments: TextClassificationArguments,
    accelerator: Accelerator,
    data: TextClassificationData,
    tokenizer: Any,
    limit: int,
    model: nn.Module,
) -> dict[str, Any]:
    """Returns all splits tokenized; one process does the work, the others find it in the cache.

    Raises:
        UsageError: the rows hold tokens that the model, which is to read them, has no embedding for.
    """
    with accelerator.main_process_first():
        found = tokenize_texts(
            data,
            tokenizer,
            limit,
            num_workers=arguments.preprocessing_num_workers,
            overwrite_cache=arguments.overwrite_cache,
        )
    known = cast(Any, model).get_input_embeddings().num_embeddings
    for split, dataset in found.items():
        largest = max((max(ids, default=0) for ids in dataset["input_ids"]), default=0)
        if largest >= known:
            word = tokenizer.convert_ids_to_tokens(largest)
            raise UsageError(
                f"the tokenizer belongs to another model: '{word}', in the {split} rows, is its token {largest}, and "
                f"the model knows {known} tokens. Leave out --tokenizer_name and --use_teacher_tokenizer, or name the "
                "tokenizer that the model was trained with"
            )
    return found
