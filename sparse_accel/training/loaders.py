"""Tokenized rows, and the loaders that make batches of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from sparse_accel.data.arrow_columns import largest_in, lengths_of
from sparse_accel.data.batches import Collator, GlobalBatchSampler, Rows, make_loader
from sparse_accel.data.loader_workers import begin_worker
from sparse_accel.errors import UsageError
from sparse_accel.models.loading import max_length
from sparse_accel.training.streaming import StreamSampler, next_rows, stream_loader

if TYPE_CHECKING:
    from datasets import Dataset

    from sparse_accel.cli.training import TrainingArguments
    from sparse_accel.tasks import Task


# The sampler of a run: of rows, or of a stream.
Batches: TypeAlias = GlobalBatchSampler | StreamSampler


@dataclass(frozen=True)
class TokenizedRows:
    """The rows of a run, tokenized for a model.

    Attributes:
        splits: datasets by name; their columns are the model's inputs and the task's columns.
        tokenizer: the tokenizer that produced them.
        limit: maximum number of tokens per row.
        collator: makes batches of rows.
    """

    splits: dict[str, Dataset]
    tokenizer: Any
    limit: int
    collator: Collator


def tokenize_rows(
    arguments: TrainingArguments, accelerator: Accelerator, task: Task, tokenizer: Any, model: nn.Module
) -> TokenizedRows:
    """Returns all splits tokenized for a model. The main process does the work, the others read its cache.

    Batches are padded to their longest row, or to the maximum length with --pad_to_max_length.

    Raises:
        UsageError: a row contains a token id for which the model has no embedding.
    """
    limit = min(arguments.max_seq_length, max_length(tokenizer, model))
    # The others wait for what the main process writes: none of them may delete it while another one reads it.
    again = arguments.overwrite_cache and accelerator.is_main_process
    options = {"num_workers": arguments.preprocessing_num_workers, "overwrite_cache": again}
    with accelerator.main_process_first():
        found = task.tokenize(tokenizer, limit, **options)
    known = cast(Any, model).get_input_embeddings().num_embeddings
    used = {split: largest_in(each, "input_ids") for split, each in found.items()}
    if task.data.stream is not None:  # its rows are not known yet
        used["train"] = max(tokenizer.get_vocab().values())
    for split, largest in used.items():
        if largest >= known:
            word = tokenizer.convert_ids_to_tokens(largest)
            raise UsageError(
                f"the tokenizer belongs to another model: '{word}' in the {split} rows has token id {largest}, but "
                f"the model has {known} tokens. Leave out --tokenizer_name and --use_teacher_tokenizer, or name the "
                "tokenizer that the model was trained with"
            )
    on_tensor_cores = accelerator.device.type == "cuda" and accelerator.mixed_precision != "no"
    length, multiple = limit if arguments.pad_to_max_length else None, 8 if on_tensor_cores else None
    return TokenizedRows(found, tokenizer, limit, Collator(tokenizer, length, multiple, task.token_columns))


def training_loader(
    arguments: TrainingArguments, accelerator: Accelerator, task: Task, rows: TokenizedRows
) -> tuple[Any, Batches]:
    """Returns the loader of the training rows, not yet prepared by Accelerate, and its sampler: of a stream, those of
    `streaming.stream_loader`."""
    if task.data.stream is not None:
        return stream_loader(arguments, accelerator, task, rows.limit, rows.collator)
    dataset, splits = rows.splits["train"], accelerator.num_processes * accelerator.gradient_accumulation_steps
    lengths = lengths_of(dataset)
    weights = task.row_weights(dataset) if task.is_labelled(dataset) else None  # --one_shot needs no labels
    sampler = GlobalBatchSampler(lengths, arguments.per_device_train_batch_size, splits, arguments.seed, weights)
    workers, pin = arguments.dataloader_num_workers, accelerator.device.type == "cuda"
    return make_loader(dataset, sampler, rows.collator, workers=workers, pin_memory=pin), sampler


def gradient_loader(arguments: TrainingArguments, rows: TokenizedRows, sampler: Batches) -> DataLoader[Any]:
    """Returns a loader of training rows for gradient samples, of the batch size of a training step over all processes,
    so that results do not depend on the layout. It must not be prepared."""
    if isinstance(sampler, StreamSampler):
        return next_rows(sampler.loader, rows.collator, sampler.global_batch_size)
    dataset: Any = Rows(rows.splits["train"])
    return DataLoader(
        dataset,
        sampler.global_batch_size,
        shuffle=True,
        collate_fn=cast(Any, rows.collator),
        num_workers=arguments.dataloader_num_workers,
        worker_init_fn=begin_worker,
    )


def evaluation_loader(
    arguments: TrainingArguments, accelerator: Accelerator, dataset: Dataset, collator: Collator
) -> DataLoader[Any]:
    """Returns a prepared loader that gives each row once, in batches of rows with similar lengths."""
    size = arguments.per_device_eval_batch_size
    sampler = GlobalBatchSampler(lengths_of(dataset), size, accelerator.num_processes, seed=None)
    loader = make_loader(dataset, sampler, collator, workers=arguments.dataloader_num_workers)
    return accelerator.prepare_data_loader(loader)
