"""Measures the start of a training run on millions of rows: seconds of each part, and memory beyond the model.

    python scripts/benchmark_rows.py --rows 10_000_000 --output_dir rows

Rows are short and made up, in a Parquet file that is written in pieces. The model and its teacher are so small that
what counts is the data. scripts/text_classification.py runs four times: it tokenizes and fills the teacher's table; it
starts again with both on disk; it starts in the middle of the epoch; and it trains on 1,000 rows, whose memory is
that of the libraries and the model. Each run takes a few steps. The second time, files in --output_dir are used again.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparse_accel.cli.parser import expand_paths
from sparse_accel.errors import UsageError
from sparse_accel.main import run_main

SCRIPT = Path(__file__).with_name("text_classification.py")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [f"{begin}{end}" for begin in "bdfgklmnprst" for end in ("a", "ens", "iro", "ol", "ution", "ymph", "ees", "at")]
RECIPE = """
modifiers:
  - !EpochRangeModifier {start_epoch: 0, end_epoch: 1}
  - !DistillationModifier {hardness: 0.5, temperature: 2.0, distill_output_keys: [logits]}
"""
ROWS_AT_ONCE, FEW_ROWS, STEPS, SECONDS_BETWEEN_LOOKS = 100_000, 1_000, 5, 0.1
# What is timed of a run: the name of the part, and the function, as module:name. A part may be inside another.
PARTS = {
    "reading the file": "sparse_accel.tasks.text_classification.task:load_text_classification",
    "tokens, from texts or cache": "sparse_accel.tasks.text_classification.task:tokenize_texts",
    "- digest of the texts": "sparse_accel.data.tokenizing:digest_of_rows",
    "- and all are known to the model": "sparse_accel.training.loaders:tokenize_rows",
    "lengths and loader": "sparse_accel.training.loaders:training_loader",
    "identity, folder": "sparse_accel.training.identity:take_folder",
    "teacher's table": "sparse_accel.models.teacher:Teacher.make_table",
    "order of an epoch": "sparse_accel.data.batches:GlobalBatchSampler.order",
    "digests of tokens": "sparse_accel.fingerprints:fingerprint_of_rows",
}


def main() -> None:
    if sys.argv[1:2] == ["--watched"]:
        _watched(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="default: 1_000_000")
    parser.add_argument("--output_dir", required=True, help="folder for rows, caches and runs")
    parser.add_argument("--batch_size", type=int, default=32, help="rows of a step (default: 32)")
    parser.add_argument("--workers", type=int, help="processes that tokenize (default: that of the script)")
    arguments = parser.parse_args()
    expand_paths(arguments, ("output_dir",))
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    file, few = (folder / f"train_{rows}.parquet" for rows in (arguments.rows, FEW_ROWS))
    for path, rows in ((file, arguments.rows), (few, FEW_ROWS)):
        if not path.exists():
            _write_rows(path, rows)
    _write_model(folder)
    middle = arguments.rows // arguments.batch_size // 2
    flags = ["--per_device_train_batch_size", str(arguments.batch_size)]
    if arguments.workers:
        flags += ["--preprocessing_num_workers", str(arguments.workers)]
    runs = {
        name: _run(folder, name.replace(" ", "_"), rows, first, flags)
        for name, rows, first in [
            ("few rows", few, 0),
            ("first start", file, 0),
            ("second start", file, 0),
            ("in the middle", file, middle),
        ]
    }
    _print_table(runs, arguments.rows)


def _print_table(runs: dict[str, dict[str, float]], rows: int) -> None:
    print(f"{rows:,} rows".ljust(46) + "".join(name.rjust(18) for name in runs))
    for part in [*PARTS, "first step"]:
        cells = (f"{run[part]:.2f} ({run[f'{part} (CPU)']:.2f})" for run in runs.values())
        print(f"{part}, s (CPU s)".ljust(46) + "".join(cell.rjust(18) for cell in cells))
    few = runs["few rows"]["memory"]
    print("RssAnon at most, MB".ljust(46) + "".join(f"{run['memory']:18,.0f}" for run in runs.values()))
    print("- beyond that of few rows, MB".ljust(46) + "".join(f"{run['memory'] - few:18,.0f}" for run in runs.values()))


# --- rows and models --------------------------------------------------------------------------------------------------


def _write_rows(path: Path, rows: int) -> None:
    """Writes rows of 4 to 19 words and one of three labels, in pieces, seeded."""
    import numpy as np
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet

    random, words = np.random.default_rng(0), pyarrow.array(WORDS)
    schema = pyarrow.schema({"text": pyarrow.string(), "label": pyarrow.int64()})
    partial = path.with_suffix(".partial")
    with pyarrow.parquet.ParquetWriter(partial, schema) as writer:
        for start in range(0, rows, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, rows - start)
            ends = np.cumsum(random.integers(4, 20, count))
            chosen = words.take(pyarrow.array(random.integers(0, len(WORDS), ends[-1])))
            lists = pyarrow.ListArray.from_arrays(np.concatenate([[0], ends]).astype(np.int32), chosen)
            texts = pyarrow.compute.binary_join(lists, " ")
            writer.write_table(pyarrow.table([texts, pyarrow.array(random.integers(0, 3, count))], schema=schema))
    os.replace(partial, path)


def _write_model(folder: Path) -> None:
    """Writes a BERT of one block and width 16 as the model and the teacher, its tokenizer, and the recipe."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    torch.manual_seed(0)
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **special)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    config = BertConfig(**sizes)
    config.id2label, config.label2id = dict(enumerate("012")), {name: number for number, name in enumerate("012")}
    BertForSequenceClassification(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "recipe.yaml").write_text(RECIPE)


# --- a run ------------------------------------------------------------------------------------------------------------


def _run(folder: Path, name: str, file: Path, first: int, flags: list[str]) -> dict[str, float]:
    """Runs the script in a process of its own; returns its seconds by part, and its memory in MB."""
    output, times = folder / name, folder / f"{name}.json"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, __file__, "--watched", str(times), str(first), "--do_train", "--train_file", str(file)]
    command += ["--model_name_or_path", str(folder / "model"), "--distill_teacher", str(folder / "model")]
    command += ["--recipe", str(folder / "recipe.yaml"), "--cache_dir", str(folder / "cache"), "--log_level", "warning"]
    command += ["--output_dir", str(output), "--per_device_eval_batch_size", "512", *flags]
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    start = time.time()
    with subprocess.Popen(command, env=os.environ | settings) as process:
        memory = 0.0
        while process.poll() is None:
            memory = max(memory, _anonymous_memory(process.pid))
            time.sleep(SECONDS_BETWEEN_LOOKS)
    if process.returncode:
        raise UsageError(f"the run '{name}' ended with exit code {process.returncode}: see its message above")
    found: dict[str, float] = json.loads(times.read_text())
    found["first step"] -= start
    return {**found, "memory": memory}


def _anonymous_memory(process: int) -> float:
    """Returns the memory of a process that is not a mapped file, in MB; 0 if it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    found = (line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:"))
    return int(next(found, 0)) / 1000


class _Enough(Exception):
    """The steps that are measured are done."""


def _watched(times: Path, first: int, flags: list[str]) -> None:
    """Runs the script in this process, from a step on, for a few steps, and writes the seconds of its parts."""
    found: dict[str, float] = {}
    for part, place in PARTS.items():
        _time_calls(part, place, found)
    from sparse_accel.data import tokenizing
    from sparse_accel.run_folder import resume
    from sparse_accel.training import loop

    resume_run, train_step = resume.resume_run, loop.train_step

    def resumed(arguments: Any, accelerator: Any, run: Any, *rest: Any) -> None:
        resume_run(arguments, accelerator, run, *rest)
        run.state.progress = replace(run.progress, step=first)

    def step(accelerator: Any, model: Any, optimizer: Any, run: Any, *rest: Any) -> Any:
        if "first step" not in found:
            found.update({"first step": time.time(), "first step (CPU)": time.process_time()})
        if run.progress.step >= first + STEPS:
            raise _Enough
        return train_step(accelerator, model, optimizer, run, *rest)

    vars(tokenizing)["note"] = print  # the speed, whatever the log level
    vars(resume)["resume_run"], vars(loop)["train_step"] = resumed, step
    sys.argv = [str(SCRIPT), *flags]
    with suppress(_Enough):
        runpy.run_path(str(SCRIPT))["main"]()
    times.write_text(json.dumps(found))


def _time_calls(part: str, place: str, found: dict[str, float]) -> None:
    """Adds the seconds of each call of a function to those of its part, wherever it was imported."""
    module, _, name = place.partition(":")
    *owner, name = name.split(".")
    holder: Any = functools.reduce(getattr, owner, importlib.import_module(module))
    original: Callable[..., Any] = getattr(holder, name)
    found[part] = found[f"{part} (CPU)"] = 0.0

    @functools.wraps(original)
    def timed(*arguments: Any, **options: Any) -> Any:
        start, busy = time.perf_counter(), time.process_time()
        try:
            return original(*arguments, **options)
        finally:
            found[part] += time.perf_counter() - start
            found[f"{part} (CPU)"] += time.process_time() - busy

    for each in [holder, *(module for name, module in sys.modules.items() if name.startswith("sparse_accel"))]:
        if getattr(each, name, None) is original:
            setattr(each, name, timed)


if __name__ == "__main__":
    run_main(main)
