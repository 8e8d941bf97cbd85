"""report.html: what a run was, what came out, and how it got there, as one page that opens without a network.

`write_report` makes the page of a run or of an export, `write_comparison` that of several. Both only read the files of
output folders: no model is loaded, and torch is not imported.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from sparse_accel.console import warn
from sparse_accel.errors import UsageError, first_line
from sparse_accel.export.folder import PAGE
from sparse_accel.files import write_text

_NEEDED = ("matplotlib", "jinja2")


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Writes the page of a run, or of an export; an existing page is replaced.

    Args:
        folder: the output folder of a run, or a deployment folder.
        output: the file; None for report.html in the folder.

    Returns:
        the file.

    Raises:
        UsageError: the folder is neither, a file in it is damaged, the page cannot be written, or the extra `report` is
            not installed.
    """
    require_extra()
    from sparse_accel.report.one_run import page_of_run
    from sparse_accel.report.page import render
    from sparse_accel.report.read import read_run

    return _write(output or folder / PAGE, render(page_of_run(read_run(folder))))


def write_comparison(folders: Sequence[Path], output: Path) -> Path:
    """Writes the page that compares several runs or exports. Arguments and errors are those of `write_report`."""
    require_extra()
    from sparse_accel.report.comparison import page_of_runs
    from sparse_accel.report.page import render
    from sparse_accel.report.read import read_run

    return _write(output, render(page_of_runs([read_run(folder) for folder in folders])))


def report_at_end(folder: Path) -> Path | None:
    """Writes the page at the end of a program that has done its work, which a missing page must not fail.

    Call it on the main process. Whatever is wrong becomes one warning that says what to do.

    Returns:
        the file; None if it was not written.
    """
    try:
        return write_report(folder)
    except UsageError as error:
        warn(f"{PAGE} was not written: {error}")
    except Exception as error:  # a fault of the report: the run is complete all the same
        command = f"python -m sparse_accel.report {folder}"
        warn(f"{PAGE} was not written: {type(error).__name__}: {first_line(error)}. `{command}` shows where it failed")
    return None


def refresh_report(folder: Path) -> None:
    """Writes the page of a run again, if it has one: after an export it has the speed. Only warns if it cannot."""
    if (folder / PAGE).is_file():
        report_at_end(folder)


def require_extra() -> None:
    """Checks that the packages of the extra `report` are installed.

    Raises:
        UsageError: one is missing; the message says how to install them.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"the report needs {' and '.join(missing)}: pip install 'sparse_accel[report]', then "
            "python -m sparse_accel.report DIR makes it"
        )


def _write(path: Path, text: str) -> Path:
    try:
        write_text(path, text)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}. Name a file in a folder that exists") from error
    return path
