"""The page that compares several runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparse_accel.recipe import Recipe
from sparse_accel.report import units
from sparse_accel.report.charts import Line, Style
from sparse_accel.report.history import last_epoch, names_of, series
from sparse_accel.report.one_run import Measured, as_exported, figures_table, main_figure, short
from sparse_accel.report.page import Block, Cell, Chart, Charts, Listing, Page, Section, Table, Words
from sparse_accel.report.read import Run, numbers, rows_of_runs
from sparse_accel.report.speed import speed_over_float
from sparse_accel.report.training import drawn, evaluated_in

# Flags that say where files are, not what was run.
_PLACES = {"output_dir", "overwrite_output_dir", "run_name"}
_DATASET = ("task_name", "dataset_name", "dataset_config_name")
_MISSING = "not set"


def page_of_runs(runs: Sequence[Run]) -> Page:
    """Returns the page that compares runs: their figures, what differs in flags and recipes, and their curves.

    A deployment has figures, sizes and times of its own; its training is that of its run, and shown once.
    """
    names = names_of_runs(runs)
    trained: dict[Path, tuple[Run, str]] = {}
    for run, name in sorted(zip(runs, names, strict=True), key=lambda each: each[0].deployment is not None):
        trained.setdefault(run.folder, (run, name))
    shown = [(run, name) for run, name in zip(runs, names, strict=True) if trained[run.folder][0] is run]
    trainings, of_trainings = [run for run, _ in shown], [name for _, name in shown]
    sections = [
        Section("Runs", "runs", [*_warnings(runs, names), *_tables(runs, names)]),
        Section("Curves", "curves", list(_curves(trainings, of_trainings))),
        Section("Differences", "differences", list(_differences(trainings, of_trainings))),
    ]
    return Page(
        title=f"{len(runs)} runs",
        subtitle=", ".join(names),
        tiles=[],
        sections=[section for section in sections if section.blocks],
        foot="Made by python -m sparse_accel.report.",
    )


def names_of_runs(runs: Sequence[Run]) -> list[str]:
    """Returns a name for each run, all different: its folder's path without what all paths begin with."""
    folders = [str(run.deployment or run.folder) for run in runs]
    if len({run.name for run in runs}) == len(runs):
        return [run.name for run in runs]
    common = os.path.commonpath(folders)
    return [os.path.relpath(folder, common) for folder in folders]


def _warnings(runs: Sequence[Run], names: Sequence[str]) -> Iterator[Block]:
    groups: dict[str, dict[str, Run]] = {}
    for run, name, rows in zip(runs, names, rows_of_runs(runs), strict=True):
        if run.figures() and run.deployment is None:
            groups.setdefault(rows, {})[name] = run
    if len(groups) > 1:
        words = "; ".join(f"{', '.join(of)}: {_rows(list(of.values()))}" for of in groups.values())
        yield Words(
            f"These runs were evaluated on different rows, so their figures do not compare: {words}.", warning=True
        )
    for run, name in zip(runs, names, strict=True):
        for note in run.notes:
            yield Words(f"{name}: {note}", warning=True)
        if run.finished is False:
            yield Words(f"{name} is not finished{f': as of {run.checkpoint}' if run.checkpoint else ''}.", warning=True)


def _rows(runs: Sequence[Run]) -> str:
    """What is known of the rows that runs were evaluated on."""
    run = next((run for run in runs if run.digest), runs[0])
    flags, source = run.arguments, run.evaluation.get("validation", {}).get("source")
    dataset = " ".join(str(flags[name]) for name in _DATASET if flags.get(name))
    words = [short(str(source or flags.get("validation_file") or dataset or "rows that were not recorded"))]
    words += ["test rows"] if flags.get("eval_on_test") else []
    words += (
        [f"max_eval_samples {flags['max_eval_samples']} by seed {flags.get('seed')}"]
        if flags.get("max_eval_samples")
        else []
    )
    words += (
        [f"{units.plain(run.rows())} {'questions' if run.unit == 'questions' else 'rows'}"]
        if run.rows() is not None
        else []
    )
    words += [f"digest {run.digest[:8]}"] if run.digest else []
    return ", ".join(words)


def _tables(runs: Sequence[Run], names: Sequence[str]) -> Iterator[Table]:
    measured = [
        replace(as_exported(run.exports[0], run.unit), what=f"{name}, exported")
        if run.deployment
        else Measured(name, short(str(run.folder)), run.figures(), run.rows(), run.unit)
        for run, name in zip(runs, names, strict=True)
    ]
    measured += [  # a teacher that none of the runs is
        Measured(f"teacher of {name}", short(each.name), each.figures, run.rows(), run.unit)
        for run, name in zip(runs, names, strict=True)
        for each in run.references
        if each.role == "teacher" and each.name not in {str(other.folder) for other in runs}
    ]
    if any(each.figures for each in measured):
        yield figures_table(measured)
    rows: list[list[Cell | str]] = [
        [name, *(Cell(value) for value in _sizes(run))] for run, name in zip(runs, names, strict=True)
    ]
    yield Table(
        [
            "",
            "encoder zeros",
            "model zeros",
            "INT8 Linears",
            "epochs",
            "training time",
            "smallest file",
            "speed over float",
        ],
        rows,
        "Size and time",
    )


def _sizes(run: Run) -> list[str]:
    def zeros(part: str) -> str:
        found = run.sparsity.get(part)
        return units.percent(found.get("sparsity")) if isinstance(found, dict) else units.NOTHING

    files: Any = run.exports[0].report.get("files") if run.exports else None
    sizes = [numbers(each).get("bytes") for each in files.values()] if isinstance(files, dict) else []
    speed = speed_over_float(run.exports[0]) if run.exports else None
    return [
        zeros("encoder_linear"),
        zeros("model"),
        units.plain(run.results.get("quantized_linears")),
        units.plain(run.results.get("epoch")),
        units.duration(run.results.get("train_runtime")),
        units.size(min((each for each in sizes if each is not None), default=run.model_bytes())),
        f"{units.times(speed[0])} ({speed[1]}, batch {speed[2]})" if speed else units.NOTHING,
    ]


# --- curves -----------------------------------------------------------------------------------------------------------


def _curves(runs: Sequence[Run], names: Sequence[str]) -> Iterator[Block]:
    charts: list[Chart] = []
    main = next((found for run in runs if (found := main_figure(run))), "accuracy")
    wanted = [
        (f"Validation {main}", f"eval_{main}", units.is_fraction(main), False),
        ("Validation loss", "eval_loss", False, True),
        ("Training loss", "train/loss", False, True),
        ("Learning rate", "train/learning_rate", False, True),
        ("Sparsity of the encoder", "sparsity/encoder", True, True),
    ]
    wanted += [(f"Training {_words(name)}", name, False, True) for name in _loss_terms(runs)]
    for title, logged, percent, from_zero in wanted:
        lines = [
            Line(name, series(run, logged), Style(number))
            for number, (run, name) in enumerate(zip(runs, names, strict=True))
        ]
        charts += drawn(title, lines, percent=percent, from_zero=from_zero, until=last_epoch(runs))
    if charts and (words := evaluated_in(runs)):
        yield Words(words)
    if charts:
        yield Charts(charts)


def _loss_terms(runs: Sequence[Run]) -> list[str]:
    """The loss terms that at least two runs have."""
    all_terms = [name for run in runs for name in names_of(run, "train/") if name.endswith("_loss")]
    return [name for name in dict.fromkeys(all_terms) if all_terms.count(name) > 1]


def _words(name: str) -> str:
    return name.removeprefix("train/").replace("_", " ")


# --- differences ------------------------------------------------------------------------------------------------------


def _differences(runs: Sequence[Run], names: Sequence[str]) -> Iterator[Block]:
    flags = [{key: value for key, value in run.arguments.items() if key not in _PLACES} for run in runs]
    yield from _difference("flag", flags, names, "Flags")
    recipes = [_entries(run.recipe) if run.recipe else {} for run in runs]
    yield from _difference("recipe", recipes, names, "Recipes")
    known = [
        run.environment | run.environment.get("hardware", {})
        if isinstance(run.environment.get("hardware", {}), dict)
        else run.environment
        for run in runs
    ]
    packages = [each.get("packages") for each in known]
    versions = [
        {
            "sparse_accel": each.get("sparse_accel"),
            "commit": each.get("commit"),
            "precision": run.precision,
            "layout": each.get("layout"),
            "cpu": each.get("cpu"),
            "gpus": each.get("gpus"),
        }
        | (package if isinstance(package, dict) else {})
        for run, each, package in zip(runs, known, packages, strict=True)
    ]
    if any(run.environment for run in runs):
        yield from _difference("", versions, names, "Versions and machines")
    for run, name in zip(runs, names, strict=True):
        if run.recipe is not None:
            yield Listing(f"The recipe of {name}", run.recipe.resolved())


def _difference(what: str, contents: Sequence[dict[str, Any]], names: Sequence[str], title: str) -> Iterator[Block]:
    """A table of the entries that are not the same in all runs."""
    keys = [key for key in dict.fromkeys(key for content in contents for key in content)]
    keys = [key for key in keys if len({_text(content, key) for content in contents}) > 1]
    if not keys:
        yield Words(f"{title}: no difference.")
        return
    rows: list[list[Cell | str]] = [
        [key, *(Cell(_text(content, key), numeric=False) for content in contents)] for key in keys
    ]
    yield Table([what, *names], rows, title)


def _text(content: dict[str, Any], key: str) -> str:
    value = content.get(key)
    if value is None:
        return _MISSING
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _entries(recipe: Recipe) -> dict[str, Any]:
    """The keys of all modifiers as `Modifier.key`, a second one of a kind as `Modifier 2.key`."""
    found: dict[str, Any] = {}
    seen: list[str] = []
    for name, keys in _modifiers(recipe.to_dict()):
        seen.append(name)
        place = name if seen.count(name) == 1 else f"{name} {seen.count(name)}"
        found |= {f"{place}.{key}": value for key, value in keys.items()}
    return found


def _modifiers(content: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(content, dict):
        for name, value in content.items():
            if isinstance(value, dict) and name[:1].isupper() and name.endswith("Modifier"):
                yield name, value
            else:
                yield from _modifiers(value)
    elif isinstance(content, list):
        for each in content:
            yield from _modifiers(each)
