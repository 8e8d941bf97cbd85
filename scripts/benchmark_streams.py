"""Measures how many tokens a second the loader workers of a stream make ready for training.

    python scripts/benchmark_streams.py --train_file texts.txt --workers 0 1 2

A text is a line. Rows are blocks, as scripts/masked_language_modeling.py --streaming packs them. A round takes one
loader after another, in an order that rotates, so that other load on the machine affects all of them equally. The first
steps of each are not timed: the workers start in them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import islice

# Before torch is imported: it sets how threads wait.
from sparse_accel.main import run_main

# isort: split

from transformers import AutoTokenizer

from sparse_accel.cli.parser import expand_paths
from sparse_accel.data.batches import Collator
from sparse_accel.data.streams.layout import Layout
from sparse_accel.data.streams.loading import Stream, StreamLoader
from sparse_accel.data.streams.shards import TextFiles
from sparse_accel.demo.samples import minilm_folder
from sparse_accel.tasks.masked_language_modeling.encoding import WORDS
from sparse_accel.tasks.masked_language_modeling.masking import NO_WORD
from sparse_accel.tasks.masked_language_modeling.streaming import row_maker

SHARDS, FIRST_STEPS = 16, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--train_file", required=True, help="text file, one text a line")
    parser.add_argument("--model", help="folder or Hub id of the tokenizer (default: MiniLM)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="loader workers (default: 0 1 2)")
    parser.add_argument("--batch_size", type=int, default=64, help=f"rows, a multiple of {SHARDS} (default: 64)")
    parser.add_argument("--max_seq_length", type=int, default=128, help="tokens of a row (default: 128)")
    parser.add_argument("--steps", type=int, default=100, help="timed steps of a round (default: 100)")
    parser.add_argument("--rounds", type=int, default=9, help="default: 9")
    arguments = parser.parse_args()
    expand_paths(arguments, ("train_file", "model"))
    tokenizer = AutoTokenizer.from_pretrained(arguments.model or minilm_folder())
    collator = Collator(tokenizer, token_columns={WORDS: NO_WORD})
    maker = row_maker(tokenizer, arguments.max_seq_length, line_by_line=False)
    stream = Stream(TextFiles([arguments.train_file], SHARDS), maker, seed=42, window=256)
    padding = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "token_type_ids": 0, WORDS: NO_WORD}

    def tokens_a_second(workers: int) -> float:
        layout = Layout(SHARDS, arguments.batch_size, workers=workers)
        batches = iter(StreamLoader(stream, layout, collator, padding=padding))
        for _ in range(FIRST_STEPS):
            next(batches)
        start = time.perf_counter()
        tokens = sum(int(batch["attention_mask"].sum()) for step in islice(batches, arguments.steps) for batch in step)
        return tokens / (time.perf_counter() - start)

    found: dict[int, list[float]] = {workers: [] for workers in arguments.workers}
    for number in range(arguments.rounds):
        turn = number % len(found)
        for workers in [*list(found)[turn:], *list(found)[:turn]]:
            found[workers].append(tokens_a_second(workers))
    print("loader workers   tokens/s (median)   of the first")
    first = statistics.median(found[arguments.workers[0]])
    for workers, rates in found.items():
        print(f"{workers:14}   {statistics.median(rates):17,.0f}   {statistics.median(rates) / first:11.2f}x")


if __name__ == "__main__":
    run_main(main)
