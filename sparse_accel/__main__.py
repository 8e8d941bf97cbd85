"""The command `sparse_accel`, also as `python -m sparse_accel`: one name for every program of this package.

A sub-command only starts what has its own flags, errors and exit codes: a script of scripts/, or a folder of this
package that `python -m` runs. Nothing heavy is imported before that, so help and typing errors are instant.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

from sparse_accel import __version__, entry_points
from sparse_accel.errors import UsageError, listed, nearest
from sparse_accel.main import leave_signals_to_the_next, run_main

TRAIN: dict[str, Callable[[], None]] = {
    "text-classification": entry_points.text_classification,
    "token-classification": entry_points.token_classification,
    "question-answering": entry_points.question_answering,
    "masked-language-modeling": entry_points.masked_language_modeling,
    "sentence-embedding": entry_points.sentence_embedding,
}
# Run as `python -m sparse_accel.NAME` is.
MODULES = ("recipe", "runtime", "report", "publish")

# What is typed, and what it does, as --help prints it.
COMMANDS = {
    "train text-classification": "sentences and pairs of them: classes, several labels, scores, GLUE",
    "train token-classification": "named entities and other tags of words",
    "train question-answering": "answers to questions, as parts of a text",
    "train masked-language-modeling": "sparse starts from texts without labels",
    "train sentence-embedding": "vectors of texts, from a teacher or from pairs of texts",
    "export": "a trained model to ONNX, with a proof that the file is the model",
    "runtime": "how fast an exported model is, and what the kernels do with it",
    "recipe": "what a recipe does, epoch by epoch, without a model",
    "report": "report.html of a run, or of several side by side",
    "publish": "a finished run to the Hugging Face Hub",
    "prefetch": "everything that a training command needs, for a machine without a network",
    "launch-files": "copies the files for accelerate launch, torchrun, SLURM and Kubernetes into a folder",
}
HELP = f"""\
usage: sparse_accel COMMAND [--flag value ...]

Sparse, quantized and distilled text encoders, from a recipe.

{chr(10).join(f"  {name:<31}  {text}" for name, text in COMMANDS.items())}

sparse_accel COMMAND --help lists the flags of a command; sparse_accel --version prints the version.
"""
LAUNCH_FILES_HELP = """\
usage: sparse_accel launch-files [DIR]

Copies the files for accelerate launch, torchrun, SLURM and Kubernetes into DIR (default: accelerate_configs). A file
that is there with other content is never replaced: nothing is copied then.
"""


def command() -> None:
    """Is the command `sparse_accel` on PATH."""
    run_main(main, resumes=False)


def main() -> None:
    """Starts what the words of the command line name.

    Raises:
        SystemExit: with the exit code of what it started.
        UsageError: there is no such command.
    """
    name, *words = sys.argv[1:] or [""]
    program = _program(name, words)
    if program is None:
        _answer(name, words)
    else:
        start, sys.argv[1:] = program
        leave_signals_to_the_next()
        start()


def _program(name: str, words: list[str]) -> tuple[Callable[[], object], list[str]] | None:
    """Returns the program that a command starts and its words; None if there is none to start."""
    if name == "train" and words and _task(words[0]) in TRAIN:
        return TRAIN[_task(words[0])], words[1:]
    if name == "export":
        return entry_points.export_onnx, words
    if name == "prefetch":
        task = [word.replace("-", "_") for word in words[:1] if word in TRAIN]  # it knows a task by its script's name
        return entry_points.prefetch, [*task, *words[len(task) :]]
    if name in MODULES:
        return lambda: runpy.run_module(f"sparse_accel.{name}", run_name="__main__", alter_sys=True), words
    return None


def _answer(name: str, words: list[str]) -> None:
    """Does what needs no other program.

    Raises:
        UsageError: there is no such command or task.
    """
    if name in ("-h", "--help") or (name == "train" and words[:1] in (["-h"], ["--help"])):
        print(HELP, end="")
    elif name == "--version":
        print(f"sparse_accel {__version__}")
    elif name == "launch-files":
        _launch_files(words)
    elif name == "train":
        raise UsageError(_no_task(words[0] if words else ""))
    else:
        commands = list(dict.fromkeys(command.partition(" ")[0] for command in COMMANDS))
        wrong = f"'{name}' is not a command of sparse_accel." if name else "sparse_accel needs a command."
        meant = f" Did you mean 'train {name}'?" if _task(name) in TRAIN else nearest(name, commands)
        raise UsageError(f"{wrong}{meant} Commands: {', '.join(commands)}. sparse_accel --help describes them.")


def _task(word: str) -> str:
    return word.replace("_", "-")  # the names of the scripts are tasks, too


def _no_task(word: str) -> str:
    """Returns why a word is not a task."""
    if not word or word.startswith("-"):
        wrong = "sparse_accel train needs a task, before all flags."
    else:
        wrong = f"'{word}' is not a task.{nearest(_task(word), TRAIN)}"
    return f"{wrong} Tasks: {', '.join(TRAIN)}."


def _launch_files(words: list[str]) -> None:
    if "-h" in words or "--help" in words:
        print(LAUNCH_FILES_HELP, end="")
        return
    if len(words) > 1 or any(word.startswith("-") for word in words):
        raise UsageError(f"sparse_accel launch-files takes one folder and no flags, got: {listed(words)}")
    target = Path(words[0] if words else "accelerate_configs").expanduser()
    copied = copy_launch_files(target)
    print(f"{target}: {copied} file{'s' * (copied != 1)} copied" if copied else f"{target} has all files already")


def copy_launch_files(target: Path) -> int:
    """Copies `accelerate_configs/` of the wheel, or of the clone, and returns how many files were not there.

    Raises:
        UsageError: a file or folder of another content is in the way; nothing is copied then.
    """
    source = entry_points.resource("accelerate_configs")
    content = {
        file.relative_to(source): file.read_bytes()
        for file in sorted(source.rglob("*"))
        if file.suffix in (".yaml", ".sbatch", ".sh")
    }
    new = {name: data for name, data in content.items() if not os.path.lexists(target / name)}
    others = [str(name) for name, data in content.items() if name not in new and not _is_file_of(target / name, data)]
    if others:
        raise UsageError(f"{target} has other files of these names: {listed(others)}. {_NOTHING}")
    for folder in sorted({target, *((target / name).parent for name in new)}):
        blocked = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)
        if blocked:
            raise UsageError(f"{blocked} is not a folder. {_NOTHING}")
    for name, data in new.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
        if name.suffix == ".sh":
            (target / name).chmod(0o755)
    return len(new)


_NOTHING = "Nothing was copied: name another folder, or move them away"


def _is_file_of(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data


if __name__ == "__main__":
    run_main(main, resumes=False)
