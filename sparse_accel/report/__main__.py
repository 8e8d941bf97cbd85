"""Makes report.html of a run or of an export, or compares several:

python -m sparse_accel.report run
python -m sparse_accel.report run deployment other_run --output comparison.html
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sparse_accel.cli.parser import expanded
from sparse_accel.errors import UsageError
from sparse_accel.export.folder import PAGE
from sparse_accel.main import run_main
from sparse_accel.report import write_comparison, write_report

_COMPARISON = "comparison.html"


def main() -> None:
    """Writes the page and prints its place."""
    parser = argparse.ArgumentParser(
        prog="python -m sparse_accel.report",
        description="Makes one HTML file of a run, or of several to compare them. It opens without a network.",
    )
    parser.add_argument("folders", metavar="DIR", nargs="+", help="the output folder of a run or of an export")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help=f"the file to write; default: DIR/{PAGE}, or {_COMPARISON} here if there are several DIRs",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args()

    folders = [Path(expanded(folder, "DIR")) for folder in arguments.folders]
    output = Path(expanded(arguments.output, "--output")) if arguments.output is not None else None
    if output is not None and output.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--output {output}: the report is an HTML file, name it with .html at the end")
    resolved = [folder.resolve() for folder in folders]
    for number, folder in enumerate(resolved):
        if folder in resolved[:number]:
            raise UsageError(f"{folder} is named twice: name each folder once")
    if len(folders) == 1:
        print(write_report(folders[0], output))
    else:
        print(write_comparison(folders, output or Path(_COMPARISON)))


if __name__ == "__main__":
    run_main(main)
