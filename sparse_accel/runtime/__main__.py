"""Shows what a session does with a deployment, and how fast it is:

python -m sparse_accel.runtime explain FOLDER
python -m sparse_accel.runtime benchmark FOLDER
python -m sparse_accel.runtime benchmark FOLDER --threads 2 --batch_size 32 --tokens 64
"""

from __future__ import annotations

import argparse
import logging

from sparse_accel.errors import UsageError, first_line
from sparse_accel.main import run_main


def main() -> None:
    """Prints the table of a benchmark, or the explanation of a session."""
    parser = argparse.ArgumentParser(
        prog="python -m sparse_accel.runtime", description="Sessions with kernels that skip zeros."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{explain,benchmark}")
    explaining = commands.add_parser("explain", help="what is rewritten, and why not what is not")
    timing = commands.add_parser("benchmark", help="latency in float, INT8, with kernels, and in other runtimes")
    for command in (explaining, timing):
        command.add_argument("folder", help="deployment folder, or an ONNX file")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    timing.add_argument("--threads", type=_positive, default=1, metavar="N", help="threads (default: 1)")
    timing.add_argument("--batch_size", type=_positive, default=1, metavar="B", help="rows of a batch (default: 1)")
    timing.add_argument("--tokens", type=_positive, default=128, metavar="T", help="tokens of a row (default: 128)")
    timing.add_argument("--seconds", type=float, default=6.0, metavar="S", help="of the comparison (default: 6)")
    timing.add_argument("--deepsparse_python", metavar="PYTHON", help="interpreter with DeepSparse 1.8, to time it too")
    timing.add_argument(
        "--deepsparse_model", metavar="FOLDER", help="for DeepSparse: the model as exported with --format integer"
    )
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    try:
        _run(arguments)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(str(error)) from error


def _run(arguments: argparse.Namespace) -> None:
    from sparse_accel.runtime.benchmark import benchmark
    from sparse_accel.runtime.loading import explain, session

    try:
        if arguments.command == "explain":
            print(explain(session(arguments.folder)))
            return
        found = benchmark(
            arguments.folder,
            threads=arguments.threads,
            batch_size=arguments.batch_size,
            tokens=arguments.tokens,
            seconds=arguments.seconds,
            deepsparse_python=arguments.deepsparse_python,
            deepsparse_model=arguments.deepsparse_model,
        )
    except (UsageError, FileNotFoundError, ValueError):
        raise
    except Exception as error:  # onnxruntime's exceptions have no common base class
        rows = f" {arguments.batch_size} x {arguments.tokens} tokens" if arguments.command == "benchmark" else ""
        raise UsageError(f"{arguments.folder}: onnxruntime cannot run it{rows}: {first_line(error)}") from error
    shape = f"{arguments.batch_size} x {arguments.tokens} tokens, {arguments.threads} thread"
    print(f"{arguments.folder}: {shape}{'s' * (arguments.threads != 1)}, medians of one interleaved run")
    if found.explanation.instruction_set:
        print(f"kernels: {found.explanation.instruction_set}")
    print(found)


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{word} is less than 1")
    return number


if __name__ == "__main__":
    run_main(main)
