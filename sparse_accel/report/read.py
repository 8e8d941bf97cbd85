"""The files of a run's output folder and of its exports, as one object. Every file but the first few is optional."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from sparse_accel.errors import UsageError, first_line
from sparse_accel.export.folder import REPORT as EXPORT_REPORT
from sparse_accel.recipe import Recipe, load_recipe

# A folder with one of these was written by a run.
_OF_A_RUN = ("run.json", "arguments.json", "all_results.json", "trainer_state.json")
_WEIGHTS = "model.safetensors"
# What is right or wrong, by the end of the name of a model's class; for other heads, a row.
_UNITS = {"ForTokenClassification": "words", "ForQuestionAnswering": "questions"}


@dataclass(frozen=True)
class Reference:
    """Another model that was measured on the same rows.

    Attributes:
        role: what it is to the run: `teacher` or `start`.
        name: its folder or id.
        figures: by name, such as `accuracy`.
        dense: whether it has no pruned weights; None if this is not known.
    """

    role: str
    name: str
    figures: dict[str, float]
    dense: bool | None = None


@dataclass(frozen=True)
class Export:
    """A deployment folder.

    Attributes:
        report: its export_report.json.
        older: whether the model's file is newer than the export.
    """

    folder: Path
    report: dict[str, Any]
    older: bool = False


@dataclass
class Run:
    """What is known of a run. A file that is missing is an empty dict or list.

    Attributes:
        folder: the output folder, absolute. It may be missing: then only `exports` has something.
        deployment: the deployment folder, if that is what the page is of.
        finished: as run.json says; None without this file.
        checkpoint: name of the checkpoint that `history` is from, if the run is not finished.
        history: the `log_history` of trainer_state.json.
        state: the rest of trainer_state.json.
        recipe: the recipe that was applied; None without one.
        notes: sentences about what could not be read or may mislead.
    """

    folder: Path
    deployment: Path | None = None
    finished: bool | None = None
    checkpoint: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    evaluation: dict[str, dict[str, Any]] = field(default_factory=dict)
    sparsity: dict[str, Any] = field(default_factory=dict)
    quantization: dict[str, dict[str, Any]] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    recipe: Recipe | None = None
    references: list[Reference] = field(default_factory=list)
    exports: list[Export] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Returns the own name of the folder that the page is of."""
        folder = self.deployment or self.folder
        return folder.name or str(folder)

    @property
    def precision(self) -> str:
        """Returns the precision of training: float32, bf16 or fp16; "" if nothing of the run is known."""
        flags = self.arguments
        of_flags = "bf16" if flags.get("bf16") else "fp16" if flags.get("fp16") else "float32" if flags else ""
        return str(self.environment.get("precision") or of_flags)

    def figures(self) -> dict[str, float]:
        """Returns the figures of the final evaluation by name, such as `accuracy`; empty without one."""
        found = self.evaluation.get("validation", {}).get("figures")
        if found is None:
            found = {name[5:]: value for name, value in self.results.items() if name.startswith("eval_")}
        return numbers(found)

    def rows(self) -> int | None:
        """Returns how many rows the final evaluation had; None if it was not recorded."""
        return whole(self.evaluation.get("validation", {}).get("rows"))

    @property
    def digest(self) -> str:
        """Returns the digest of the rows of the final evaluation; "" if it was not recorded."""
        return str(self.evaluation.get("validation", {}).get("digest") or "")

    @property
    def headline(self) -> str:
        """Returns the name of the figure that stands for all, as the task recorded it; "" if it did not."""
        return str(self.evaluation.get("validation", {}).get("headline") or "")

    @property
    def unit(self) -> str:
        """Returns what the figures count: `words` for token classification, `questions` for question answering, else
        `rows`."""
        heads = [str(each) for each in as_list(self.config.get("architectures"))]
        return next((unit for end, unit in _UNITS.items() if any(head.endswith(end) for head in heads)), "rows")

    def model_bytes(self) -> int | None:
        """Returns the size of the model's file."""
        path = self.folder / _WEIGHTS
        return path.stat().st_size if path.is_file() else None


def read_run(folder: Path) -> Run:
    """Returns what is in an output folder, or in a deployment folder and the output folder that it was made from.

    Raises:
        UsageError: it is neither, or a file in it is damaged.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise UsageError(f"{folder} does not exist: name the output folder of a run, or of an export")
    if (folder / EXPORT_REPORT).is_file():
        return _read_deployment(folder)
    if not any((folder / name).is_file() for name in _OF_A_RUN):
        raise UsageError(
            f"{folder} is not the output folder of a run or of an export: it has none of {', '.join(_OF_A_RUN)}, "
            f"{EXPORT_REPORT}. Name the folder that was given as --output_dir"
        )
    return _read_output_folder(folder)


def numbers(figures: Any) -> dict[str, float]:
    """Returns the entries of a dict that are numbers, NaN included; others are left out."""
    if not isinstance(figures, dict):
        return {}
    return {str(name): value for name, each in figures.items() if (value := number(each)) is not None}


def number(value: Any) -> float | None:
    """Returns a value as a float if it is a number, else None."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def as_list(value: Any) -> list[Any]:
    """Returns a list as it is; empty for anything else."""
    return value if isinstance(value, list) else []


def whole(value: Any) -> int | None:
    """Returns a value as an int if it is a whole number, else None."""
    found = number(value)
    return int(found) if found is not None and abs(found) < 1e15 and found == int(found) else None


def _read_deployment(folder: Path) -> Run:
    export = Export(folder, _read(folder / EXPORT_REPORT))
    source = _get(export.report, "source", dict, folder / EXPORT_REPORT).get("folder")
    home = Path(str(source)) if source else folder / "missing"
    if not any((home / name).is_file() for name in _OF_A_RUN):
        run = Run(home if source else folder, config=_read(folder / "config.json"))
        run.exports, run.deployment = [export], folder
        run.notes = [
            f"The model was read from {source}. There is no run in that folder now, so only the export is shown."
        ]
        return run
    run = _read_output_folder(home)
    if not any(each.folder == folder for each in run.exports):  # for example, it was moved to another place
        run.exports.insert(0, Export(folder, export.report, _is_older(folder, home)))
    run.exports = [each for each in run.exports if each.folder == folder]
    run.deployment = folder
    return run


def _read_output_folder(folder: Path) -> Run:
    record, state = _read(folder / "run.json"), _read(folder / "trainer_state.json")
    finished = record.get("finished")
    run = Run(folder, finished=finished if isinstance(finished, bool) else None)
    if not state and (newest := _newest_checkpoint(folder)):
        state, run.checkpoint = _read(newest / "trainer_state.json"), newest.name
    run.arguments = _read(folder / "arguments.json")
    run.results = _read(folder / "all_results.json") or _read(folder / "train_results.json")
    if not any(name.startswith("eval_") for name in run.results):
        run.results |= _read(folder / "eval_results.json")
    run.history = _get(state, "log_history", list, folder / "trainer_state.json", inner=dict)
    run.state = {name: value for name, value in state.items() if name != "log_history"}
    run.evaluation = _entries(folder / "evaluation.json")
    if "eval_model" in run.results:
        run.notes.append(
            f"The latest evaluation in this folder is of another model, {run.results['eval_model']}: left out"
        )
        run.results = {name: value for name, value in run.results.items() if not name.startswith("eval_")}
        run.evaluation = {}
    run.sparsity = _read(folder / "sparsity.json")
    quantization = folder / "quantization.json"
    run.quantization = _get(_read(quantization), "quantizers", dict, quantization, inner=dict)
    run.environment, run.config = _read(folder / "environment.json"), _read(folder / "config.json")
    _read_recipe(run, record)
    run.references = list(_references(run))
    run.exports = list(_exports(run))
    return run


def _read_recipe(run: Run, record: dict[str, Any]) -> None:
    """Reads the recipe as it was applied; an unfinished run has it in run.json alone."""
    path = run.folder / "recipe.yaml"
    identity = record.get("identity")
    text = identity.get("recipe") if isinstance(identity, dict) else None
    if not path.is_file() and not (isinstance(text, str) and "\n" in text):
        return
    try:
        run.recipe = load_recipe(str(path) if path.is_file() else str(text))
    except UsageError as error:
        run.notes.append(f"The recipe cannot be read, so its events are not in the charts: {first_line(error)}")


def _references(run: Run) -> Iterator[Reference]:
    """The teacher as it was evaluated in this run; else what the teacher's own folder says of the same rows. The same
    for the model that training began from."""
    entry = run.evaluation.get("validation", {}).get("teacher")
    if isinstance(entry, dict) and numbers(entry.get("figures")):
        name = str(entry.get("name", run.arguments.get("distill_teacher", "")))
        yield Reference("teacher", name, numbers(entry["figures"]), _is_dense(Path(name)))
    for role, flag in (("teacher", "distill_teacher"), ("start", "model_name_or_path")):
        name = str(run.arguments.get(flag) or "")
        folder = Path(name)
        if not name or (role == "teacher" and entry) or not (folder / "arguments.json").is_file():
            continue
        other = _read_other_run(folder)
        if other is None or not other.figures() or not _was_there_before(folder, run):
            continue
        if len(set(rows_of_runs([run, other]))) == 1:
            yield Reference(role, name, other.figures(), _is_dense(folder))


def _read_other_run(folder: Path) -> Run | None:
    """The flags and figures of another run; None if a file of it is damaged, which is no fault of this run."""
    try:
        other = Run(folder, arguments=_read(folder / "arguments.json"), results=_read(folder / "all_results.json"))
        other.evaluation = _entries(folder / "evaluation.json")
    except UsageError:
        return None
    return None if "eval_model" in other.results else other


def rows_of_runs(runs: Sequence[Run]) -> list[str]:
    """Returns a key for each run, the same for those that were evaluated on the same rows.

    It is the digest of the rows: a file can change, and have copies. Where it was not recorded, the run is taken to
    have the rows of one with the same flags.
    """
    flags = [_rows_by_flags(run) for run in runs]
    digests = {key: run.digest for run, key in zip(runs, flags, strict=True) if run.digest}
    return [run.digest or digests.get(key, key) for run, key in zip(runs, flags, strict=True)]


def _rows_by_flags(run: Run) -> str:
    """The flags that say which rows a run was evaluated on, as text."""
    flags = run.arguments
    names = ["task_name", "dataset_name", "dataset_config_name", "validation_file", "max_eval_samples"]
    names += ["eval_on_test", "validation_ratio"]
    if flags.get("eval_on_test"):
        names.append("test_file")
    elif not flags.get("validation_file"):
        names.append("train_file")  # rows may be held out of it
    if flags.get("max_eval_samples") or flags.get("validation_ratio"):
        names.append("seed")  # it draws them
    return str([flags.get(name) or None for name in names])


def _was_there_before(folder: Path, run: Run) -> bool:
    """Whether the figures in a folder are older than a run: else they may be of a model that came later."""
    figures, start = folder / "all_results.json", run.folder / "arguments.json"
    return figures.is_file() and figures.stat().st_mtime <= start.stat().st_mtime


def _is_dense(folder: Path) -> bool | None:
    try:
        found = _read(folder / "sparsity.json").get("encoder_linear")
    except UsageError:
        return None
    sparsity = number(found.get("sparsity")) if isinstance(found, dict) else None
    return None if sparsity is None else sparsity < 0.01


def _exports(run: Run) -> Iterator[Export]:
    """The exports of a run's model in the folders next to it, `deployment` first."""
    places = sorted(
        run.folder.parent.glob(f"*/{EXPORT_REPORT}"), key=lambda each: (each.parent.name != "deployment", each)
    )
    for place in places:
        try:
            report = _read(place)
        except UsageError as error:
            run.notes.append(f"An export next to this folder is left out: {first_line(error)}")
            continue
        source = report.get("source")
        if isinstance(source, dict) and source.get("folder") == str(run.folder):
            yield Export(place.parent, report, _is_older(place.parent, run.folder))


def _is_older(deployment: Path, home: Path) -> bool:
    weights = home / _WEIGHTS
    return weights.is_file() and weights.stat().st_mtime > (deployment / EXPORT_REPORT).stat().st_mtime


def _newest_checkpoint(folder: Path) -> Path | None:
    found = [each.parent for each in folder.glob("checkpoint-*/trainer_state.json") if each.parent.name[11:].isdigit()]
    return max(found, key=lambda each: int(each.name[11:]), default=None)


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no such file.

    Raises:
        UsageError: it cannot be read, or is not a JSON object.
    """
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is damaged: {first_line(error)}. {_WHAT_TO_DO}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} is damaged: expected a JSON object, found {type(found).__name__}. {_WHAT_TO_DO}")
    return found


def _get(content: dict[str, Any], key: str, kind: type, path: Path, inner: type | None = None) -> Any:
    """An entry of a file, of the type that it must have; empty if it is missing.

    Args:
        inner: the type of each of its elements.
    """
    found = content.get(key)
    if found is None:
        return kind()
    elements: Iterable[Any] = found.values() if isinstance(found, dict) else cast("list[Any]", found)
    if not isinstance(found, kind) or (inner and not all(isinstance(each, inner) for each in elements)):
        raise UsageError(f"{path} is damaged: {key!r} is not what a run writes there. {_WHAT_TO_DO}")
    return found


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    content = _read(path)
    return {name: _get(content, name, dict, path) for name in content}


_WHAT_TO_DO = "Delete the file to leave it out, or run the run's command again to write it again"
