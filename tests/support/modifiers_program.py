"""Trains with every recipe of the table of modifiers, one after another, in the processes of one launch: starting them
costs more than all that training. Each process writes down what it saw.

    accelerate launch --config_file accelerate_configs/ddp.yaml tests/support/modifiers_program.py FOLDER
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from loop import GLOBAL_BATCH, ROWS, Session, figures_of, gradient_loader
from modifier_table import CASES, recipe_of, teacher_of
from tiny import make_bert, make_rows, make_tokenizer
from torch import Tensor

from sparse_accel.data.batches import Collator, GlobalBatchSampler, make_loader
from sparse_accel.distributed.collectives import rank_and_size
from sparse_accel.distributed.launch import before_prepare, check_launch, launch_options
from sparse_accel.distributed.weights import full_state_dict, plain_model
from sparse_accel.errors import UsageError
from sparse_accel.nn.layers import masks, quantizers
from sparse_accel.progress import Progress
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun
from sparse_accel.training.optimizer import parameter_groups

SPLITS = 2  # micro-batches of a step, over processes and one after another
RATE = 1e-2


@dataclass
class Record:
    """What one process saw of one case.

    Attributes:
        refused: the message, where the layout refused it; the rest is empty then.
        trace: what was logged of each step, and the learning rate of each group of parameters.
        masks: after each step, by weight.
        ranges: after each step, (4, 1) by quantizer: minimum, maximum, scale, zero point.
        weights: whole, at the end; rank 0's alone.
    """

    refused: str = ""
    trace: list[dict[str, Any]] = field(default_factory=list)
    masks: list[dict[str, Tensor]] = field(default_factory=list)
    ranges: list[dict[str, Tensor]] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)


def train_all(folder: Path) -> dict[str, Record]:
    """Trains with each recipe, in as many processes as there are. `folder` is for the teacher's logits."""
    return {which: train_one(recipe_of(name, case.keys), folder) for which, (name, case) in CASES.items()}


def train_one(recipe: str, folder: Path) -> Record:
    """Trains a fresh model as the training script does; no dropout, which processes draw each for itself."""
    record = Record()
    try:
        session = start(recipe, folder)
    except UsageError as error:
        return Record(refused=str(error))
    plain = plain_model(session.accelerator, session.model)

    def watch(session: Session) -> None:
        record.masks.append({weight: mask.clone() for weight, mask in masks(plain).items()})
        record.ranges.append(
            {
                quantizer: torch.stack([q.minimum, q.maximum, q.scale, q.zero_point])
                for quantizer, q in quantizers(plain).items()
            }
        )

    session.train(watch)
    record.trace = [figures_of(entry) for entry in session.trace]
    record.weights = dict(full_state_dict(session.accelerator, session.model))
    return record


def start(text: str, folder: Path) -> Session:
    """As `loop.start`, under any layout."""
    recipe = load_recipe(text)
    teacher, needs_table = teacher_of(recipe)
    accelerator = make_accelerator()
    model = make_bert(sparsity=0.5, dropout=0.0)
    rows, tokenizer = make_rows(ROWS), make_tokenizer()
    micro_batch = GLOBAL_BATCH // SPLITS
    sampler = GlobalBatchSampler([len(ids) for ids in rows["input_ids"]], micro_batch, SPLITS, seed=3)
    loader = make_loader(rows, sampler, Collator(tokenizer))

    def lr_schedule(progress: Progress) -> float:
        return RATE

    run = RecipeRun(recipe, teacher=teacher, lr_schedule=lr_schedule)
    run.attach(model)
    groups: Any = parameter_groups(model, weight_decay=0.1)
    optimizer: Any = torch.optim.AdamW(groups, lr=RATE)
    before_prepare(accelerator, model, micro_batch, max_grad_norm=1.0)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:  # ZeRO-3 would not divide weights as small as these
        zero = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
        zero.update(stage3_param_persistence_threshold=0, stage3_model_persistence_threshold=0)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    run.bind(
        accelerator,
        model,
        optimizer,
        steps_per_epoch=sampler.steps,
        gradient_loader=gradient_loader(rows),
        rows_per_forward=micro_batch,
    )
    if teacher is not None and needs_table:
        teacher.make_table(accelerator, rows, tokenizer, batch_size=micro_batch, cache=folder)
    return Session(accelerator, model, optimizer, loader, sampler, run, run.max_epochs * sampler.steps)


def make_accelerator() -> Accelerator:
    """One for each model: under DeepSpeed and FSDP2 an accelerator knows one."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    plugin = GradientAccumulationPlugin(num_steps=SPLITS // processes, sync_with_dataloader=False)
    accelerator = Accelerator(gradient_accumulation_plugin=plugin, kwargs_handlers=launch_options())
    check_launch(accelerator)
    return accelerator


def main() -> None:
    folder = Path(sys.argv[1])
    records = {case: asdict(record) for case, record in train_all(folder).items()}
    torch.save(records, folder / f"rank{rank_and_size()[0]}.pt")


if __name__ == "__main__":
    main()
