"""Shows what a session does with a deployment, and how fast it is:

python -m sparse_accel.runtime explain FOLDER
python -m sparse_accel.runtime benchmark FOLDER
python -m sparse_accel.runtime benchmark FOLDER --threads 2 --batch_size 32 --tokens 64
"""

from __future__ import annotations

import argparse
import logging

from sparse_accel.distributed.threads import share
from sparse_accel.errors import UsageError, first_line
from sparse_accel.main import run_main


def main() -> None:
    """Prints the table of a benchmark, or the explanation of a session."""
    parser = argparse.ArgumentParser(
        prog="python -m sparse_accel.runtime",
        description="Sessions with kernels that skip zeros.",
        epilog="SPARSE_ACCEL_ISA in the environment names an instruction set, or none: onnxruntime alone.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{explain,benchmark}")
    explaining = commands.add_parser("explain", help="what is rewritten, and why not what is not")
    timing = commands.add_parser("benchmark", help="latency in float, INT8, with kernels, and in other runtimes")
    for command in (explaining, timing):
        command.add_argument("folder", help="deployment folder, or an ONNX file")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    timing.add_argument("--threads", type=_whole, default=1, metavar="N", help="threads (default: 1)")
    timing.add_argument("--batch_size", type=_whole, default=1, metavar="B", help="rows of a batch (default: 1)")
    timing.add_argument("--tokens", type=_whole, default=128, metavar="T", help="tokens of a row (default: 128)")
    timing.add_argument("--seconds", type=_seconds, default=6.0, metavar="S", help="of the comparison (default: 6)")
    timing.add_argument("--deepsparse_python", metavar="PYTHON", help="interpreter with DeepSparse 1.8, to time it too")
    timing.add_argument(
        "--deepsparse_model", metavar="FOLDER", help="for DeepSparse: the model as exported with --format integer"
    )
    arguments = parser.parse_args()
    logging.getLogger("sparse_accel.runtime").setLevel(logging.ERROR)  # what it warns of is printed
    try:
        text = _explained(arguments.folder) if arguments.command == "explain" else _timed(arguments)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(str(error)) from error
    print(text)


def _explained(folder: str) -> str:
    from sparse_accel.runtime.loading import explain, session

    try:
        return str(explain(session(folder)))
    except (FileNotFoundError, ValueError):
        raise
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise UsageError(f"{folder}: onnxruntime cannot load it: {first_line(error)}") from error


def _timed(arguments: argparse.Namespace) -> str:
    from sparse_accel.runtime.benchmark import benchmark

    if arguments.deepsparse_model and not arguments.deepsparse_python:
        raise UsageError("--deepsparse_model is for DeepSparse: add --deepsparse_python")
    threads, shape = arguments.threads, f"{arguments.batch_size} x {arguments.tokens} tokens"
    try:
        found = benchmark(
            arguments.folder,
            threads=threads,
            batch_size=arguments.batch_size,
            tokens=arguments.tokens,
            seconds=arguments.seconds,
            deepsparse_python=arguments.deepsparse_python,
            deepsparse_model=arguments.deepsparse_model,
        )
    except (UsageError, FileNotFoundError, ValueError):
        raise
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise UsageError(f"{arguments.folder}: onnxruntime cannot run it with {shape}: {first_line(error)}") from error
    lines = [f"{arguments.folder}: {shape}, {threads} thread{'s' * (threads != 1)}, medians of one interleaved run"]
    if found.explanation.instruction_set:
        lines.append(f"kernels: {found.explanation.instruction_set}")
    if threads > (cpus := share().cpus):
        lines.append(f"warning: {threads} threads on {cpus} CPU{'s' * (cpus != 1)} wait for each other")
    return "\n".join([*lines, str(found)])


def _whole(word: str) -> int:
    if not word.isdecimal() or len(word) > 9 or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word} is not a whole number from 1 on")
    return int(word)


def _seconds(word: str) -> float:
    try:
        seconds = float(word)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86400:
        raise argparse.ArgumentTypeError(f"{word} is not a number of seconds")
    return seconds


if __name__ == "__main__":
    run_main(main, resumes=False)
