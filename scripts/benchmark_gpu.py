"""Measures the tutorial's recipe on one GPU: samples per second, share of the peak, memory, and SST-2's schedule.

    python scripts/benchmark_gpu.py                    # at most 4 minutes; writes outputs/benchmark_gpu.json and .md
    python scripts/benchmark_gpu.py --device cpu --tiny --rounds 2 --batch_sizes 4      # that the program works

BERT-base has random weights, 90% of them zero, and rows have made-up tokens, as many as rows of SST-2 have: nothing is
downloaded. All contestants take steps in turn, against a hand-written Accelerate loop. Batches lie on the device. A
step ends when the device has finished it; in a training run, Python is one step ahead of the device.

Share of peak (model FLOPs utilisation): operations of a step / seconds of a step / peak of the card in 16 bits. The
operations are 6 x weights of Linear layers x tokens + 12 x layers x width x tokens^2 of each row, without padding; see
sparse_accel/demo/scaling.py.

The time of SST-2's schedule is computed: steps of each phase x their measured seconds, and a forward over all rows for
the teacher's table. Loading, tokenizing, copying batches, evaluation and saving are not in it.

Each precision has a process of its own, and at most an equal part of the minutes that are left. In the last one, steps
are measured compiled too, as --torch_compile does it. What there is no time left for is named below the table: give it
more --minutes.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import math
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before torch is imported: it sets how threads wait.
from sparse_accel.main import run_main

# isort: split

import numpy as np
import torch

from sparse_accel.cli.parser import expand_paths
from sparse_accel.demo.scaling import BERT_BASE, Encoder, peak_tflops, training_flops
from sparse_accel.errors import UsageError, first_line
from sparse_accel.files import write_json, write_text

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from sparse_accel.demo.step_contestants import Batch, Step
    from sparse_accel.models.teacher import Teacher

SST2_ROWS = 67_349
WORDS = 1000  # different tokens; which ones they are does not affect the time
BATCHES = 4  # evenly spaced over the lengths of the rows
PLAIN, DISTILLED, ALL, FROZEN = "plain loop", "pruned, distilled", "pruned, distilled, QAT", "the same, ranges frozen"
TABLE, COMPILED = "a forward of the teacher", ", compiled"
# Of the tutorial's recipe, sst2_pruned90_quant.yaml.
EPOCHS = {DISTILLED: 8, ALL: 4, FROZEN: 1}
# The quantization of that recipe, without its other modifiers.
QAT_ALONE = """
modifiers:
  - !QuantizationModifier
      start_epoch: 0.0
      quantize_embeddings: 1
      quantize_linear_activations: 0
      exclude_module_types: ['LayerNorm', 'Tanh']
      submodules: ['bert.embeddings', 'bert.encoder', 'bert.pooler', 'classifier']
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and few rows: only to try the program")
    parser.add_argument("--precisions", nargs="+", choices=("bf16", "fp16"), help="default: fp16 bf16; on a CPU, bf16")
    parser.add_argument(
        "--batch_sizes", type=int, nargs="+", default=[512, 32], help="rows of a step (default: 512 32)"
    )
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of all contestants (default: 15)")
    parser.add_argument("--minutes", type=float, default=4.0, help="time for all (default: 4)")
    parser.add_argument("--compile_backend", default="inductor", help="of torch.compile (default: inductor)")
    parser.add_argument("--peak_tflops", type=float, help="of the card in 16 bits, if its name is not known")
    parser.add_argument("--output", default="outputs/benchmark_gpu.json", help="default: outputs/benchmark_gpu.json")
    asked = parser.parse_args()
    expand_paths(asked, ("output",))
    asked.precisions = asked.precisions or [*(["fp16"] if asked.device == "cuda" else []), "bf16"]
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"PyTorch {torch.__version__} finds no GPU here, so nothing was measured: run it on a machine with an "
            "NVIDIA GPU (`--device cpu --tiny` only tries the program)"
        )
    if asked.device == "cpu" and "fp16" in asked.precisions:
        raise UsageError("--precisions fp16 needs a GPU: use bf16 with --device cpu")
    device = torch.cuda.get_device_name() if asked.device == "cuda" else "CPU"
    asked.peak_tflops = asked.peak_tflops or peak_tflops(device)
    output = Path(asked.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    parts = in_processes(asked, output)
    for row in (row for part in parts for row in part["steps"]):
        known = row["tflops"] is not None and asked.peak_tflops is not None
        row["share_of_peak"] = row["tflops"] / asked.peak_tflops if known else None
    found = {
        "device": device,
        "torch": torch.__version__,
        "model": "tiny" if asked.tiny else "BERT-base",
        "peak_tflops": asked.peak_tflops,
        "rounds": asked.rounds,
        **{key: [row for part in parts for row in part[key]] for key in ("steps", "schedules", "not_measured")},
    }
    write_json(output, found)
    text = as_markdown(found)
    write_text(output.with_suffix(".md"), text)
    print(text, end="")
    return 0 if found["steps"] else 1


def in_processes(asked: argparse.Namespace, output: Path) -> list[dict[str, Any]]:
    """Returns what `measure` wrote for each precision; a process that is not done in its time is ended."""
    end, parts = time.monotonic() + 60 * asked.minutes, []
    for number, precision in enumerate(asked.precisions):
        path = output.with_name(f"{output.stem}_{precision}.json")
        path.unlink(missing_ok=True)
        compiled = number == len(asked.precisions) - 1
        arguments = (asked, precision, path, compiled)
        process = multiprocessing.get_context("spawn").Process(target=measure, args=arguments)
        process.start()
        try:
            process.join((end - time.monotonic()) / (len(asked.precisions) - number))
            why = "no time" if process.is_alive() else f"its process ended with exit code {process.exitcode}"
        finally:
            process.kill()
            process.join()
        empty: dict[str, Any] = {"steps": [], "schedules": [], "not_measured": [], "planned": ["all"]}
        part = json.loads(path.read_text()) if path.exists() else empty
        path.unlink(missing_ok=True)
        part["not_measured"] += [f"{precision}, {name}: {why}" for name in part["planned"]]
        parts.append(part)
    return parts


# --- one precision ----------------------------------------------------------------------------------------------------


def measure(asked: argparse.Namespace, precision: str, path: Path, compiled: bool) -> None:
    """Measures all contestants in one precision, and writes what is known after each that is compiled.

    `planned` in the file names those that are still to come.
    """
    from accelerate import Accelerator

    from sparse_accel.demo.step_contestants import compare, make_encoder_sparse, spaced_batches
    from sparse_accel.distributed.launch import launch_options
    from sparse_accel.models.teacher import Teacher

    accelerator = Accelerator(mixed_precision=precision, cpu=asked.device == "cpu", kwargs_handlers=launch_options())
    model, encoder = made_up_model(asked.tiny)
    make_encoder_sparse(model, 0.9)
    lengths = made_up_lengths(BATCHES * max(asked.batch_sizes) if asked.tiny else SST2_ROWS)
    teacher = Teacher(copy.deepcopy(model).to(accelerator.device))
    teacher.table = torch.randn(len(lengths), 2, device=accelerator.device)  # the values do not affect the time
    rows = {size: spaced_batches(lengths, size, BATCHES) for size in asked.batch_sizes}
    batches = {size: made_up_batches(lengths, rows[size], accelerator.device) for size in rows}
    makers = contestants(accelerator, model, teacher, asked.compile_backend if compiled else None)
    steps: dict[str, Step] = {}
    peaks: dict[str, int | None] = {}
    tables: dict[int, dict[str, Any]] = {size: {} for size in rows}
    failed: list[str] = []
    for number, (name, make) in enumerate(makers.items(), 1):
        try:
            steps[name], peaks[name] = with_peak_memory(make, batches[max(rows)][-1], accelerator.device)
        except Exception as error:  # whatever it is, the others are measured
            if name == PLAIN:
                raise  # there is nothing to compare with
            failed.append(f"{precision}, {name}: {first_line(error)}")
        planned = list(makers)[number:]
        if planned and not planned[0].endswith(COMPILED):
            continue
        for size, known in tables.items():
            new = {name: (step, batches[size]) for name, step in steps.items() if name == PLAIN or name not in known}
            found = compare(new, asked.rounds) if len(new) > 1 else {}
            tables[size] = known | {name: row for name, row in found.items() if name not in known}
        write_json(
            path,
            {
                "steps": [
                    {"precision": precision, "batch_size": size, "name": name, "peak_bytes": peaks[name], **row}
                    | speed(row["seconds"], size, None if name == TABLE else flops_of(encoder, lengths, rows[size]))
                    for size, table in tables.items()
                    for name, row in table.items()
                ],
                "schedules": [
                    {"precision": precision, "batch_size": size, "compiled": bool(suffix), "seconds": seconds}
                    for size, table in tables.items()
                    for suffix in ("", COMPILED)
                    if (seconds := schedule_seconds(table, len(lengths), size, suffix)) is not None
                ],
                "not_measured": failed,
                "planned": planned,
            },
        )


def flops_of(encoder: Encoder, lengths: list[int], batches: list[list[int]]) -> float:
    """Returns the operations of a step, mean over batches of these rows."""
    return sum(training_flops(encoder, [lengths[row] for row in batch]) for batch in batches) / len(batches)


def speed(seconds: float, batch_size: int, flops: float | None) -> dict[str, float | None]:
    tflops = None if flops is None else flops / seconds / 1e12
    return {"samples_per_second": batch_size / seconds, "tflops": tflops}


def contestants(
    accelerator: Accelerator, model: nn.Module, teacher: Teacher, backend: str | None
) -> dict[str, Callable[[], Step]]:
    """Returns what makes the step of each contestant, by name; the compiled ones are last, if there is a backend."""
    from sparse_accel.data.batches import inputs_of
    from sparse_accel.demo.step_contestants import FROZEN as FROZEN_VARIABLES
    from sparse_accel.demo.step_contestants import QUANTIZED, RECIPE, hand_written_step, recipe_step

    def teacher_step() -> Step:
        @torch.no_grad()
        def step(batch: Batch) -> None:
            with accelerator.autocast():
                teacher.forward(inputs_of(batch), ["logits"])

        return step

    plain = functools.partial(hand_written_step, accelerator, model)
    ours = functools.partial(recipe_step, accelerator, model)
    found: dict[str, Callable[[], Step]] = {
        PLAIN: plain,
        "pruned": functools.partial(ours, None),
        DISTILLED: functools.partial(ours, teacher),
        "QAT": functools.partial(ours, None, QAT_ALONE, {}),
        ALL: functools.partial(ours, teacher, RECIPE, QUANTIZED),
        FROZEN: functools.partial(ours, teacher, RECIPE, FROZEN_VARIABLES),
        TABLE: teacher_step,
    }
    if backend is not None:
        found |= {
            f"{PLAIN}{COMPILED}": functools.partial(plain, compiled_by=backend),
            f"{DISTILLED}{COMPILED}": functools.partial(ours, teacher, compiled_by=backend),
            f"{ALL}{COMPILED}": functools.partial(ours, teacher, RECIPE, QUANTIZED, compiled_by=backend),
        }
    return found


def with_peak_memory(make: Callable[[], Step], batch: Batch, device: torch.device) -> tuple[Step, int | None]:
    """Returns a contestant's step, after its first ones, and the most bytes of tensors that it had on a GPU: weights,
    optimizer, gradients, activations of its longest batch."""
    if device.type != "cuda":
        step = make()
        step(batch)
        return step, None
    before = torch.cuda.memory_allocated()
    step = make()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(8):  # in fp16, the first ones may overflow, and the optimizer has no state before one that does not
        step(batch)
    torch.cuda.synchronize()
    return step, torch.cuda.max_memory_allocated() - before


def schedule_seconds(table: dict[str, dict[str, float]], rows: int, batch_size: int, suffix: str) -> float | None:
    """Returns the seconds of all epochs and of the teacher's table; None if a phase was not measured.

    Args:
        table: what `compare` returns for batches of `batch_size` rows.
        suffix: of the contestants' names. Steps with frozen ranges are never slower than those before, which stand in
            for them where they were not measured.
    """
    stand_in = {f"{FROZEN}{suffix}": table[f"{ALL}{suffix}"]} if f"{ALL}{suffix}" in table else {}
    known = stand_in | table
    if not {TABLE, *(f"{name}{suffix}" for name in EPOCHS)} <= known.keys():
        return None
    epoch = sum(epochs * known[f"{name}{suffix}"]["seconds"] for name, epochs in EPOCHS.items())
    return math.ceil(rows / batch_size) * (epoch + known[TABLE]["seconds"])


# --- model and data ---------------------------------------------------------------------------------------------------


def made_up_model(tiny: bool) -> tuple[nn.Module, Encoder]:
    """Returns BERT-base, or a tiny model, with random weights and two labels; and its sizes."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    small: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 64}
    small |= {"num_hidden_layers": 1, "num_attention_heads": 4}
    config = BertConfig(**small if tiny else {})
    model: nn.Module = BertForSequenceClassification(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sizes = Encoder(config.num_hidden_layers, config.hidden_size, config.intermediate_size, parameters)
    assert tiny or sizes.linear_weights == BERT_BASE.linear_weights
    return model, sizes


def made_up_lengths(rows: int) -> list[int]:
    """Returns numbers of tokens like those of SST-2's rows, most of them phrases: 3 to 66, 13 on average."""
    drawn = np.random.default_rng(0).gamma(1.6, 6.7, rows)
    return np.clip(2 + np.ceil(drawn), 3, 66).astype(int).tolist()


def made_up_batches(lengths: list[int], chosen: list[list[int]], device: torch.device) -> list[Batch]:
    """Returns batches of these rows with random tokens and labels, padded as in training (on a GPU, to 8)."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    from sparse_accel.data.batches import Collator

    pads = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"[PAD]": 0}, "[PAD]")), pad_token="[PAD]")
    collate = Collator(pads, multiple=8 if device.type == "cuda" else None)
    draw = np.random.default_rng(1)
    found = []
    for rows in chosen:
        columns: dict[str, list[Any]] = {
            "input_ids": [draw.integers(1, WORDS, lengths[row]).tolist() for row in rows],
            "token_type_ids": [[0] * lengths[row] for row in rows],
            "attention_mask": [[1] * lengths[row] for row in rows],
            "labels": draw.integers(2, size=len(rows)).tolist(),
            "row_id": rows,
        }
        found.append({name: tensor.to(device) for name, tensor in collate(columns).items()})
    return found


# --- report -----------------------------------------------------------------------------------------------------------


def as_markdown(found: dict[str, Any]) -> str:
    """Returns both tables, and below them what was not measured and why."""
    from sparse_accel.demo.step_contestants import shown_ratio

    peak = f"peak {found['peak_tflops']:g} TFLOPS" if found["peak_tflops"] else "peak not known: give --peak_tflops"
    lines = [
        f"{found['model']}, {found['device']}, PyTorch {found['torch']}; {peak}; median of {found['rounds']} rounds "
        "(quartiles)",
        "",
        "| precision | rows | step | ms | samples/s | TFLOPS | of peak | over the plain loop | memory, GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["steps"]:
        tflops = "-" if row["tflops"] is None else f"{row['tflops']:.1f}"
        share = "-" if row["share_of_peak"] is None else f"{row['share_of_peak']:.1%}"
        memory = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.1f}"
        cells = [row["precision"], row["batch_size"], row["name"], f"{1000 * row['seconds']:.1f}"]
        cells += [f"{row['samples_per_second']:,.0f}", tflops, share, shown_ratio(row), memory]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", f"| SST-2, {sum(EPOCHS.values())} epochs (computed) | rows | seconds |", "|---|---|---|"]
    for row in found["schedules"]:
        name = f"{row['precision']}{', compiled' if row['compiled'] else ''}"
        lines.append(f"| {name} | {row['batch_size']} | {row['seconds']:,.1f} |")
    if found["not_measured"]:
        lines += ["", "Not measured:", *(f"- {words}" for words in found["not_measured"])]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_main(main, resumes=False)
