"""The teacher: a frozen model whose outputs the student learns to match.

Its logits on a training set do not change between epochs, so they are computed once (each process computes a part),
stored on disk and looked up by row: distillation then costs almost nothing per step. A batch without row numbers (your
own loop, or rows that change each time) goes through the teacher's forward instead. So does every batch where outputs
of layers are compared, which no table can hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparse_accel.cli.parser import expanded
from sparse_accel.console import progress_bar
from sparse_accel.data.arrow_columns import lengths_of
from sparse_accel.data.batches import Collator, GlobalBatchSampler, inputs_of, make_loader, teacher_inputs_of
from sparse_accel.distributed.collectives import by_main_process, reduce_sum
from sparse_accel.errors import UsageError, listed
from sparse_accel.files import to_disk
from sparse_accel.fingerprints import fingerprint_of_rows
from sparse_accel.models.files import fingerprint_of_model
from sparse_accel.models.teacher_table import MappedTable, map_table
from sparse_accel.nn.layer_outputs import LayerOutput, Recorder
from sparse_accel.tasks import Task, task_of
from sparse_accel.tasks.label_names import match_names
from sparse_accel.tasks.units import starts_of, unit_numbers

if TYPE_CHECKING:
    from accelerate import Accelerator


# A table of more entries stays on disk. On a GPU, to look it up there costs a copy in each step.
_MOST_ENTRIES_IN_MEMORY = {False: 1_000_000, True: 50_000_000}


def default_cache() -> Path:
    """Returns the cache folder: `$SPARSE_ACCEL_CACHE`, else ~/.cache/sparse_accel."""
    return Path(expanded(os.environ.get("SPARSE_ACCEL_CACHE") or "~/.cache/sparse_accel", "SPARSE_ACCEL_CACHE"))


@dataclass(frozen=True)
class _Forward:
    """A forward of the teacher: inputs and their versions (which count changes in place), and what came of them."""

    inputs: dict[str, Any]
    versions: dict[str, int]
    outputs: Any
    layers: dict[LayerOutput, Tensor]

    def is_for(self, inputs: dict[str, Any]) -> bool:
        same = inputs.keys() == self.inputs.keys() and all(inputs[name] is self.inputs[name] for name in inputs)
        return same and all(inputs[name]._version == version for name, version in self.versions.items())


class Teacher:
    """A frozen model in eval mode, and the table of its logits.

    Args:
        model: with as many outputs as the student; it is not passed to `accelerator.prepare`.
        order: the teacher's output column for each of the student's labels, (labels,), from `label_order`; None if the
            orders are the same.
        task: of both models; None takes the model's.

    Attributes:
        table: logits (U, C) float32 in the student's label order, of all U rows, or of all their U labelled tokens; in
            memory, or on disk if there are millions, or for a task that says so.
    """

    def __init__(self, model: nn.Module, order: list[int] | None = None, task: Task | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.order = None if order is None or order == list(range(len(order))) else order
        self.task = task_of(model) if task is None else task
        self.table: Tensor | MappedTable | None = None
        self._starts = torch.zeros(0, dtype=torch.int64)  # (rows,): the number of entries before each row's
        self._recorder: Recorder | None = None
        self._latest: _Forward | None = None

    def outputs(self, batch: dict[str, Any], keys: list[str]) -> dict[str, Tensor]:
        """Returns the outputs named by `keys` for the rows of a batch, without gradient.

        Args:
            batch: with `row_id` (rows,) to use the table; fillers (-1) and tokens without a label get arbitrary values,
                because their weight in the loss is 0. Columns such as `teacher_input_ids` are inputs for a teacher with
                another tokenizer.

        Raises:
            UsageError: the teacher has no output of a name in `keys`.
        """
        if self.table is not None and "row_id" in batch and set(keys) == {"logits"}:
            return {"logits": self._look_up(self.table, batch)}
        return self._selected(self._live(batch).outputs, keys)

    def watch(self, outputs: Collection[LayerOutput]) -> None:
        """Makes `layer_outputs` return these outputs of the model's layers too."""
        known = [] if self._recorder is None else self._recorder.wanted
        if self._recorder is not None:
            self._recorder.stop()
        self._recorder, self._latest = Recorder(self.model, [*known, *outputs], training=False), None

    def layer_outputs(self, batch: dict[str, Any]) -> dict[LayerOutput, Tensor]:
        """Returns the outputs that are watched, for the rows of a batch, without gradient.

        One forward gives them all; it is kept until another batch comes, or until `release`.
        """
        return self._live(batch).layers

    def release(self) -> None:
        """Frees the outputs of the latest forward; call it when the loss of its batch is complete."""
        self._latest = None

    @torch.no_grad()
    def _live(self, batch: dict[str, Any]) -> _Forward:
        """Returns the forward for a batch: the latest one, if it was for the same tensors."""
        inputs = teacher_inputs_of(batch)
        if self._latest is None or not self._latest.is_for(inputs):
            versions = {name: value._version for name, value in inputs.items() if isinstance(value, Tensor)}
            if self._recorder is None:
                self._latest = _Forward(inputs, versions, self.model(**inputs), {})
            else:
                self._recorder.start()
                found = self.model(**inputs)
                layers = {name: self._ordered(value, found) for name, value in self._recorder.take().items()}
                self._recorder.stop()  # so that other forwards, such as those for the table, keep nothing
                self._latest = _Forward(inputs, versions, found, layers)
        return self._latest

    def _ordered(self, value: Tensor, outputs: Any) -> Tensor:
        """Returns the output of a layer; if it is the logits, in the student's label order."""
        is_logits = self.order is not None and value is outputs.get("logits")
        return value[..., self.order] if is_logits else value

    def _look_up(self, table: Tensor | MappedTable, batch: dict[str, Tensor]) -> Tensor:
        places = self.task.labelled(batch)
        if places.ndim == 1:
            return table[batch["row_id"]]
        # All tokens are looked up, and those without an entry are set to 0: indexing with a mask would wait for a GPU
        # once per step to get the number of selected tokens.
        numbers = self._starts[batch["row_id"].clamp(min=0)][:, None] + places.cumsum(1) - 1
        return torch.where(places[..., None], table[numbers.clamp(min=0)], 0.0)

    @torch.no_grad()
    def forward(self, inputs: dict[str, Any], keys: list[str]) -> dict[str, Tensor]:
        """Returns the outputs `keys` of one forward pass; logits (..., labels) are in the student's label order.

        Raises:
            UsageError: the teacher has no output of a name in `keys`.
        """
        return self._selected(self.model(**inputs), keys)

    def _selected(self, found: Any, keys: list[str]) -> dict[str, Tensor]:
        """Returns some of the model's outputs; logits in the student's label order."""
        needed = [name for key in keys for name in (self.task.logit_keys if key == "logits" else (key,))]
        missing = [key for key in needed if key not in found]
        if missing:
            raise UsageError(f"the teacher has no output '{missing[0]}', only {', '.join(found)}")
        outputs = {key: self.task.logits(found) if key == "logits" else found[key] for key in keys}
        if self.order is not None and "logits" in outputs:
            outputs["logits"] = outputs["logits"][..., self.order]
        return outputs

    def in_order(self) -> nn.Module:
        """Returns a model of this teacher's logits, in the student's label order; to be evaluated like any other."""
        return _InOrder(self)

    def make_table(
        self, accelerator: Accelerator, dataset: Any, tokenizer: Any, *, batch_size: int, cache: Path | None = None
    ) -> bool:
        """Fills the table for a training set, from disk if possible. Returns True if it was found on disk.

        The file name on disk depends on the task, the teacher's weights and quantizers, the tokenized rows (and so on
        text, tokenizer and truncation), the label order, and the precision.

        Args:
            dataset: tokenized rows; the entries of the table are in their order.
            tokenizer: pads the rows.
            batch_size: rows per process and forward.
            cache: folder of the file; None takes `default_cache`.
        """
        precision = accelerator.mixed_precision
        parts = [fingerprint_of_model(self.model), fingerprint_of_rows(dataset), repr(self.order), precision]
        key = hashlib.sha256("\n".join([self.task.name, *parts]).encode()).hexdigest()[:32]
        path = (cache or default_cache()) / "teacher_logits" / f"{key}.safetensors"
        counts = self.task.labelled_counts(dataset)
        self._starts = starts_of(counts).to(accelerator.device)
        entries = int(counts.sum())
        if self.task.table_on_disk or entries > _MOST_ENTRIES_IN_MEMORY[accelerator.device.type == "cuda"]:
            batches = self._batches(accelerator, dataset, tokenizer, batch_size)
            self.table, found = map_table(accelerator, path.with_suffix(".npy"), entries, batches)
            return found
        # Machines may have different caches, so the main process looks in its own and decides for all.
        kept = self._read(path, entries) if accelerator.is_main_process else None
        shape = by_main_process(accelerator, lambda: None if kept is None else tuple(kept.shape))
        if shape is None:
            self.table = computed = self._compute(accelerator, dataset, tokenizer, batch_size, entries)
            if accelerator.is_main_process:
                _write(path, computed)
        else:
            table = torch.zeros(shape) if kept is None else kept
            self.table = reduce_sum(table.to(accelerator.device))  # on the other processes, the table is all zeros
        accelerator.wait_for_everyone()
        return shape is not None

    def _read(self, path: Path, entries: int) -> Tensor | None:
        try:
            table = load_file(path)["logits"]
        except Exception:  # missing or damaged: the table is computed again
            return None
        return table if len(table) == entries else None

    def _compute(self, accelerator: Accelerator, dataset: Any, tokenizer: Any, batch_size: int, entries: int) -> Tensor:
        table: Tensor | None = None
        for numbers, logits in self._batches(accelerator, dataset, tokenizer, batch_size):
            if table is None:
                table = torch.zeros(entries, logits.shape[-1], device=accelerator.device)
            table[numbers] = logits
        assert table is not None
        return reduce_sum(table)  # one process computed each row, and it is 0 on the others

    def _batches(
        self, accelerator: Accelerator, dataset: Any, tokenizer: Any, batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the numbers of entries of the table, (N,) int64, and their logits, (N, C) float32: those of this
        process."""
        sampler = GlobalBatchSampler(lengths_of(dataset), batch_size, accelerator.num_processes, seed=None)
        collator = Collator(tokenizer, token_columns=self.task.token_columns)
        loader = accelerator.prepare_data_loader(make_loader(dataset, sampler, collator))
        with progress_bar(accelerator, len(dataset), "teacher", "rows") as bar:
            for batch in loader:
                places = self.task.labelled(batch)
                with accelerator.autocast():
                    logits = self.forward(inputs_of(batch), ["logits"])["logits"].float()
                yield unit_numbers(places, batch["row_id"], self._starts), logits[places]
                bar.update(int((batch["row_id"] >= 0).sum()) * accelerator.num_processes)


class _InOrder(nn.Module):
    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher
        self.eval()

    def forward(self, **inputs: Any) -> dict[str, Tensor]:
        return self.teacher.forward(inputs, [*self.teacher.task.logit_keys])


def _write(path: Path, table: Tensor) -> None:
    """Writes the table to a temporary file and renames it. If that fails, the run continues without the cache."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"logits": table.cpu().contiguous()}, partial)
        to_disk(partial)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        print(f"teacher logits are not stored on disk: {error}")


def label_order(student: Sequence[str], teacher: Sequence[str]) -> list[int]:
    """Returns, for each of the student's labels in order, the teacher's output column of the same name.

    Names are matched like labels of data (`match_names`): default names such as LABEL_0 are matched in order.

    Args:
        student, teacher: labels in the order of the model's outputs.

    Raises:
        UsageError: the labels differ.
    """
    if len(student) == len(teacher) == 1:
        return [0]  # a score, whatever its name
    matched = match_names(student, teacher)
    if matched is None:
        raise UsageError(
            f"teacher and data have different labels: the data has {listed(student)}, the teacher {listed(teacher)}. "
            "Use a teacher that was trained on these labels, or rename them in its config.json (id2label)"
        )
    return [list(teacher).index(matched[name]) for name in student]
