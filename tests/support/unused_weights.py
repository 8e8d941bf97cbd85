"""Trains, in the launcher's processes, a model one of whose layers no forward uses. For test_layouts.py."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from loop import GLOBAL_BATCH
from tiny import make_bert, make_rows, make_tokenizer
from torch import nn

from sparse_accel.data.batches import Collator, GlobalBatchSampler, make_loader
from sparse_accel.distributed.launch import launch_options
from sparse_accel.main import run_main
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun
from sparse_accel.training.loop import StepOptions, train_step, training_steps
from sparse_accel.training.schedule import Schedule

RECIPE = "modifiers:\n  - !EpochRangeModifier {end_epoch: 1}\n  - !QuantizationModifier {submodules: [bert]}"


class Spare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bert: Any = make_bert().bert
        self.classifier, self.spare = nn.Linear(32, 2), nn.Linear(32, 2)

    def forward(self, **inputs: Any) -> dict[str, Any]:
        return {"logits": self.classifier(self.bert(**inputs).pooler_output)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--find_unused_parameters", action="store_true")
    find = parser.parse_args().find_unused_parameters
    plugin = GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False)
    options = launch_options(find_unused_parameters=find)
    accelerator = Accelerator(gradient_accumulation_plugin=plugin, kwargs_handlers=options)
    torch.manual_seed(0)
    model: Any = Spare()
    run = RecipeRun(load_recipe(RECIPE))
    run.attach(model)
    rows = make_rows(21)
    sampler = GlobalBatchSampler([len(ids) for ids in rows["input_ids"]], GLOBAL_BATCH // 2, 2, seed=0)
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader: Any = make_loader(rows, sampler, Collator(make_tokenizer()))
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    run.bind(accelerator, model, optimizer, steps_per_epoch=sampler.steps)

    with training_steps(accelerator, run, loader, sampler, Schedule(3)) as steps:
        for _, batch in steps:
            steps.add(train_step(accelerator, model, optimizer, run, batch, StepOptions(seed=0)), batch)
    print(f"trained {run.progress.step} steps")


if __name__ == "__main__":
    run_main(main)
