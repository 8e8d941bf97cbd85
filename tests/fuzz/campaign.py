"""Feeds changed inputs to everything that reads one, and counts what comes out: `make fuzz`.

    python tests/fuzz/campaign.py                            # 2,000 inputs of each kind
    python tests/fuzz/campaign.py --inputs 100000 --only recipe
    python tests/fuzz/campaign.py --only csv --input FILE    # one input again

An input is accepted, or refused by a message that names its place; anything else is a fault: see oracle.py. Inputs that
reach new lines of the package are kept and changed again (atheris: libFuzzer for Python); the same seed gives the same
inputs. tests/fuzz/corpus has an input for each fault that was found, which is read first. New ones go to --faults.

Each kind has a process of its own. Exit code 1: there were faults.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "fuzz"), str(ROOT / "tests" / "support")]

# Kinds whose inputs take a second each: a tenth of the inputs.
SLOW = ("report of", "mirror's", "run's", "onnx", "tokenizer", "config.json", "model.safetensors", "quantization.json")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=2000, help="of each kind; slow kinds get a tenth (default: 2000)")
    parser.add_argument("--seconds", type=float, help="for all kinds together (default: no limit)")
    parser.add_argument("--seed", type=int, default=1, help="of the changes (default: 1)")
    parser.add_argument("--only", nargs="+", metavar="KIND", help="some kinds (default: all)")
    parser.add_argument("--input", type=Path, help="read this file once, as an input of the kind of --only")
    parser.add_argument("--faults", type=Path, default=ROOT / "outputs" / "fuzz", help="default: outputs/fuzz")
    parser.add_argument("--jobs", type=int, default=1, help="processes at the same time (default: 1)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        return fuzz(asked.child, asked)
    from targets import TARGETS

    kinds = asked.only or list(TARGETS)
    if unknown := [kind for kind in kinds if kind not in TARGETS]:
        parser.error(f"no kind {unknown[0]!r}: they are {', '.join(TARGETS)}")
    if asked.input:
        own_folder()
        print(judged(kinds[0], asked.input.read_bytes()))
        return 0
    return campaign(kinds, asked)


def campaign(kinds: list[str], asked: argparse.Namespace) -> int:
    """Runs all kinds, and prints a table; returns the exit code."""
    asked.faults.mkdir(parents=True, exist_ok=True)
    waiting, rows = list(kinds), dict[str, dict[str, Any]]()
    running: dict[str, subprocess.Popen[bytes]] = {}
    end = time.monotonic() + asked.seconds if asked.seconds else float("inf")
    while waiting or running:
        while waiting and len(running) < asked.jobs:
            kind = waiting.pop(0)
            left = (end - time.monotonic()) / (len(waiting) + 1) * asked.jobs
            running[kind] = started(kind, asked, None if left == float("inf") else max(5, int(left)))
        for kind, process in list(running.items()):
            if process.poll() is not None:
                del running[kind]
                rows[kind] = result_of(kind, process.returncode, asked.faults)
                print(line(kind, rows[kind]), flush=True)
        time.sleep(0.1)
    total = {key: sum(row[key] for row in rows.values()) for key in ("inputs", "accepted", "refused", "faults")}
    print(line("all", total))
    for kind, row in rows.items():
        for fault, times in row["kinds"].items():
            print(f"\n{kind}, {times} times: {fault}")
    return 1 if total["faults"] else 0


def started(kind: str, asked: argparse.Namespace, seconds: int | None) -> subprocess.Popen[bytes]:
    inputs = max(20, asked.inputs // 10) if kind.startswith(SLOW) else asked.inputs
    words = ["--child", kind, "--inputs", str(inputs), "--seed", str(asked.seed), "--faults", str(asked.faults)]
    words += [] if seconds is None else ["--seconds", str(seconds)]
    result_file(kind, asked.faults).unlink(missing_ok=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    log = (asked.faults / f"{named(kind)}.log").open("wb")
    return subprocess.Popen([sys.executable, __file__, *words], env=environment, stdout=log, stderr=log)


def named(kind: str) -> str:
    return kind.replace(" ", "_").replace("/", "_").replace("'", "")


def result_file(kind: str, faults: Path) -> Path:
    return faults / f"{named(kind)}.json"


def result_of(kind: str, code: int, faults: Path) -> dict[str, Any]:
    """Reads what a process wrote; one that crashed has a fault more."""
    file = result_file(kind, faults)
    empty: dict[str, Any] = {"inputs": 0, "accepted": 0, "refused": 0, "faults": 0, "kinds": {}, "done": False}
    row = json.loads(file.read_text()) if file.is_file() else empty
    if not row["done"]:
        row["faults"] += 1
        row["kinds"][f"its process ended with exit code {code}: see {named(kind)}.log and {named(kind)}-last"] = 1
    return row


def line(kind: str, row: dict[str, Any]) -> str:
    return f"{kind:<28}" + "".join(f"{row[key]:>9,} {key}" for key in ("inputs", "accepted", "refused", "faults"))


# --- one kind ---------------------------------------------------------------------------------------------------------


def fuzz(kind: str, asked: argparse.Namespace) -> int:
    """Feeds inputs of a kind until their number or the time is reached. Ends the process."""
    shared = own_folder()
    import atheris

    import sparse_accel.main

    with atheris.instrument_imports(include=["sparse_accel"]):
        import sparse_accel.recipe
        import sparse_accel.tasks  # noqa: F401
    from mutations import mutated
    from oracle import Fault, fresh_folder, judge
    from targets import TARGETS

    target = TARGETS[kind]
    seeds = list(target.seeds(shared))
    words = [word.encode() for word in target.words()]
    begin, counts, kinds = time.monotonic(), Counter[str](), dict[str, list[Any]]()
    known = sorted((CORPUS / named(kind)).glob("*")) if (CORPUS / named(kind)).is_dir() else []
    first = [*seeds, *(file.read_bytes() for file in known)]

    def finish() -> None:
        row: dict[str, Any] = {"inputs": counts.total(), "accepted": counts["accepted"], "refused": counts["refused"]}
        row |= {"faults": counts["fault"], "kinds": {first: times for times, first in kinds.values()}, "done": True}
        result_file(kind, asked.faults).write_text(json.dumps(row, indent=1))
        shutil.rmtree(shared, ignore_errors=True)
        os._exit(0)

    def one(data: bytes) -> None:
        if counts.total() >= asked.inputs + len(first) or (asked.seconds and time.monotonic() - begin > asked.seconds):
            finish()
        data = first[counts.total()] if counts.total() < len(first) else data
        (asked.faults / f"{named(kind)}-last").write_bytes(data)
        folder = fresh_folder()
        try:
            counts[judge(lambda: target.read(data, folder, shared), folder, target.places, shared)] += 1
        except Fault as fault:
            counts["fault"] += 1
            if fault.kind not in kinds:
                (asked.faults / f"{named(kind)}-fault-{len(kinds):03}").write_bytes(data)
                kinds[fault.kind] = [0, str(fault)]
            kinds[fault.kind][0] += 1
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def change(data: bytes, most: int, seed: int) -> bytes:
        old = data if seed % 2 and data else seeds[seed // 2 % len(seeds)]  # else nearly all would be refused at once
        return mutated(old, seeds, words, seed)[:most]

    corpus = shared / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    most = 2 * max(len(seed) for seed in seeds) + 6000
    settings = [
        f"-seed={asked.seed}",
        f"-max_len={most}",
        "-verbosity=0",
        "-rss_limit_mb=0",
        "-timeout=120",
        "-len_control=0",
        f"-artifact_prefix={asked.faults}/",
    ]
    atheris.Setup(["fuzz", *settings, str(corpus)], one, custom_mutator=change)
    atheris.Fuzz()
    return 0


def own_folder() -> Path:
    """Returns a new folder, after making it the place of everything that libraries write whatever the input."""
    from oracle import fresh_folder

    folder = fresh_folder()
    for name in ("HF_HOME", "SPARSE_ACCEL_CACHE", "MPLCONFIGDIR", "TMPDIR"):
        (folder / name).mkdir()
        os.environ[name] = str(folder / name)
    tempfile.tempdir = None
    return folder


def judged(kind: str, data: bytes) -> str:
    """Reads one input, outside of a campaign; returns what the oracle says.

    Raises:
        Fault: it is one.
    """
    from oracle import fresh_folder, judge
    from targets import TARGETS

    target, folder, shared = TARGETS[kind], fresh_folder(), fresh_folder()
    try:
        target.seeds(shared)
        return judge(lambda: target.read(data, folder, shared), folder, target.places, shared)
    finally:
        for each in (shared, folder):
            shutil.rmtree(each, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
