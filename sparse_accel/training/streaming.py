"""Training on a stream: its loader, its place in checkpoints, and batches for gradient samples."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from accelerate import Accelerator
from torch.utils.data import DataLoader, IterableDataset

from sparse_accel.console import warn
from sparse_accel.data.batches import Collator
from sparse_accel.data.streams.layout import Layout
from sparse_accel.data.streams.loading import Batch, Stream, StreamLoader, rows_of_first_pass
from sparse_accel.data.streams.order import ShardRows
from sparse_accel.distributed.collectives import total
from sparse_accel.errors import UsageError, counted
from sparse_accel.run_folder.stream_state import state_of_all
from sparse_accel.training.averages import GlobalBatch

if TYPE_CHECKING:
    from sparse_accel.cli.training import TrainingArguments
    from sparse_accel.tasks import Task


@dataclass(frozen=True)
class StreamSampler:
    """The batches of a stream, in place of a `GlobalBatchSampler`.

    Attributes:
        loader: of the micro-batches.
        steps: per epoch: --steps_per_epoch, else all steps of the run.
        global_batch_size, micro_batch_size: in rows.
    """

    loader: StreamLoader
    steps: int
    global_batch_size: int
    micro_batch_size: int

    def describe(self) -> str:
        """Returns what is read, for the table at the start of a run."""
        stream = self.loader.stream
        order = f"shuffled in windows of {stream.window} rows" if stream.window > 1 else "in its order"
        return f"a stream of {stream.corpus.name} in {counted(stream.corpus.shards, 'shard')}, {order}"


def stream_loader(
    arguments: TrainingArguments, accelerator: Accelerator, task: Task, limit: int, collator: Collator
) -> tuple[StreamLoader, StreamSampler]:
    """Returns the loader of a stream of training rows, and its sampler.

    Args:
        limit: maximum number of tokens per row.
        collator: makes batches of rows; its tokenizer makes the rows.

    Raises:
        UsageError: --stream_shards does not fit the layout or the batch size.
    """
    corpus = task.data.stream
    assert corpus is not None
    flags: Any = arguments  # those of the task that streams
    tokenizer = collator.tokenizer
    processes, accumulation = accelerator.num_processes, accelerator.gradient_accumulation_steps
    batch_size = arguments.per_device_train_batch_size * processes * accumulation
    layout = Layout(
        shards=corpus.shards,
        batch_size=batch_size,
        processes=processes,
        process=accelerator.process_index,
        workers=arguments.dataloader_num_workers,
        accumulation=accumulation,
    )
    stream = Stream(corpus, task.row_maker(tokenizer, limit), arguments.seed, flags.shuffle_window)
    padding = {
        "input_ids": tokenizer.pad_token_id or 0,
        "attention_mask": 0,
        "token_type_ids": tokenizer.pad_token_type_id,
        **task.token_columns,
    }
    loader = StreamLoader(stream, layout, collator, padding=padding, padding_side=tokenizer.padding_side)
    steps = flags.steps_per_epoch or arguments.max_steps
    return loader, StreamSampler(loader, steps, batch_size, arguments.per_device_train_batch_size)


def stream_batches(
    accelerator: Accelerator, task: Task, loader: StreamLoader, sampler: StreamSampler
) -> Iterator[GlobalBatch]:
    """Yields the batches of a stream, without end.

    The weight of a step is summed over the processes, because each of them knows its own rows only. At the end of an
    epoch that is more than the first pass over the stream, it warns of that.

    Raises:
        UsageError: what the loader raises; or no row of the first step has a token to learn from.
    """
    # Counted from the beginning of the stream: a resumed run is somewhere in the middle.
    given = next(iter(loader.state_dict()["states"].values()))["rows"] // loader.layout.rows_per_shard
    read_ahead = cast("Generator[list[Batch]]", iter(loader))
    try:
        for step, read in enumerate(read_ahead, start=given + 1):
            if step == sampler.steps:
                _warn_of_short_stream(accelerator, loader, sampler)
            weight = total(sum(int(task.weights(batch).sum()) for batch in read))
            if step == 1 and not weight:
                rows = counted(sampler.global_batch_size, "row")
                raise UsageError(
                    f"{loader.stream.corpus.name}: no token of the first {rows} can be masked, because all are special "
                    "tokens such as [UNK]. Check that the model is one for texts of this language."
                )
            on_device = [
                {name: value.to(accelerator.device, non_blocking=True) for name, value in batch.items()}
                for batch in read
            ]
            prepared = [task.prepare(batch, epoch=0) for batch in on_device]
            yield GlobalBatch(prepared, sampler.global_batch_size, max(weight, 1), seeded_apart=True)
    finally:
        read_ahead.close()


def _warn_of_short_stream(accelerator: Accelerator, loader: StreamLoader, sampler: StreamSampler) -> None:
    own = rows_of_first_pass(loader.state_dict())
    unknown, rows = total(own is None), total(own or 0)
    asked = sampler.steps * sampler.global_batch_size
    if not unknown and rows < asked and accelerator.is_main_process:
        length = counted(sampler.steps, "step")
        warn(f"the stream has {counted(rows, 'row')}: an epoch of {length} reads it {asked / rows:.1f} times")


# --- gradient samples -------------------------------------------------------------------------------------------------


def next_rows(loader: StreamLoader, collator: Collator, batch_size: int) -> DataLoader[Any]:
    """Returns a loader of the rows that training reads next, on all processes the same, which does not move its place.

    Args:
        loader: of the stream.
        collator: of its rows.
        batch_size: rows of a gradient sample.
    """
    rows: Any = _NextRows(loader)
    return DataLoader(
        rows, batch_size, collate_fn=lambda each: collator({name: [row[name] for row in each] for name in each[0]})
    )


class _NextRows(IterableDataset[dict[str, Any]]):
    # Any number of these rows is a batch, and the process itself must read them: all processes do so together.
    gives_rows = True

    def __init__(self, loader: StreamLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[dict[str, Any]]:
        stream, states = self.loader.stream, state_of_all(self.loader)["states"]
        shards = [
            ShardRows(
                stream.corpus.shard(number),
                stream.make_maker(),
                number,
                stream.corpus.shards,
                stream.seed,
                stream.window,
                states[str(number)],
            )
            for number in range(stream.corpus.shards)
        ]
        while True:
            for shard in shards:
                yield next(shard)
