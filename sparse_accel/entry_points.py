"""Installed commands: SparseML's names for scripts/, so that old command lines run unchanged. `sparse_accel` itself, in
__main__.py, starts the same functions.

A command only runs its script. Accelerate configures the processes: with the file in `ACCELERATE_CONFIG_FILE`, or else
the one that `accelerate config` wrote, the command starts `accelerate launch`. Without such a file, or inside a launch
(`torchrun --no-python`, `accelerate launch --no_python`), the script runs in this process.
"""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import sys
from pathlib import Path


def text_classification() -> None:
    """Runs `sparseml.transformers.text_classification` or `sparseml.transformers.train.text_classification`."""
    _launch("text_classification")


def token_classification() -> None:
    """Runs `sparseml.transformers.token_classification` or `sparseml.transformers.train.token_classification`."""
    _launch("token_classification")


def question_answering() -> None:
    """Runs `sparseml.transformers.question_answering` or `sparseml.transformers.train.question_answering`."""
    _launch("question_answering")


def masked_language_modeling() -> None:
    """Runs `sparseml.transformers.masked_language_modeling`, or its name with `train.`."""
    _launch("masked_language_modeling")


def sentence_embedding() -> None:
    """Runs `sparse_accel.sentence_embedding`: scripts/sentence_embedding.py without a clone."""
    _launch("sentence_embedding")


def export_onnx() -> None:
    """Runs `sparseml.transformers.export_onnx`: always one process, regardless of Accelerate's configuration."""
    _run(script_path("export_onnx.py"))


def prefetch() -> None:
    """Runs `sparse_accel.prefetch`: scripts/prefetch.py without a clone."""
    _run(script_path("prefetch.py"))


def script_path(name: str) -> Path:
    """Returns the path of a script: inside the package in a wheel, next to the package in a clone."""
    return resource("scripts") / name


def resource(folder: str) -> Path:
    """Returns a folder that a wheel carries inside the package, and a clone has next to it."""
    package = Path(__file__).resolve().parent
    inside = package / folder
    return inside if inside.is_dir() else package.parent / folder


def _launch(task: str) -> None:
    script, settings = script_path(f"{task}.py"), launch_settings()
    if settings is None or "--help" in sys.argv or "-h" in sys.argv:
        _run(script)
        return
    _check_command_line(task)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(settings), str(script)]
    os.execv(sys.executable, [*command, *sys.argv[1:]])


def _check_command_line(task: str) -> None:
    """Reports errors in flags or recipe before the launcher starts, because it would add its own traceback."""
    from sparse_accel.cli.parser import parse_arguments
    from sparse_accel.cli.tasks import ARGUMENTS
    from sparse_accel.errors import UsageError
    from sparse_accel.main import run_main
    from sparse_accel.recipe import load_recipe
    from sparse_accel.zoo import is_stub

    def check() -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # the script prints the warnings
            arguments = parse_arguments(ARGUMENTS[task], sys.argv[1:])  # sys.argv stays as it is, for the launcher
            if arguments.recipe and not is_stub(arguments.recipe):
                load_recipe(arguments.recipe, arguments.recipe_args)

    try:
        check()
    except UsageError:
        run_main(check)


def _run(script: Path) -> None:
    runpy.run_path(str(script), run_name="__main__")


def launch_settings() -> Path | None:
    """Returns Accelerate's configuration file; None if there is none, or if this process is already in a launch."""
    if os.environ.get("LOCAL_RANK") or os.environ.get("RANK"):
        return None
    if named := os.environ.get("ACCELERATE_CONFIG_FILE"):
        file = Path(os.path.expanduser(named))
        if not file.is_file():
            print(f"error: ACCELERATE_CONFIG_FILE={named}: there is no such file", file=sys.stderr)
            sys.exit(2)
        return file
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    home = Path(os.path.expanduser(os.environ.get("HF_HOME") or cache))
    found = [home / "accelerate" / f"default_config.{ending}" for ending in ("yaml", "json")]
    return next((file for file in found if file.is_file()), None)
