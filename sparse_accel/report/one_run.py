"""The page of one run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_accel.report import units
from sparse_accel.report.layers import quantization_section, sparsity_section
from sparse_accel.report.mistakes import decision_blocks
from sparse_accel.report.page import Block, Cell, Command, Facts, Listing, Page, Section, Table, Tile, Words
from sparse_accel.report.read import Export, Run, number, numbers, whole
from sparse_accel.report.speed import export_tiles, size_section, speed_section
from sparse_accel.report.training import training_section
from sparse_accel.wilson_interval import wilson_interval

# Names of figures that others are compared by, best known first.
_MAIN = (
    "accuracy",
    "f1",
    "exact_match",
    "f1_macro",
    "matthews_correlation",
    "spearman",
    "pearson",
    "subset_accuracy",
    "combined_score",
)


@dataclass(frozen=True)
class Measured:
    """The figures of a model.

    Attributes:
        what: the model, in a few words.
        rows: how many it was measured on; None if it was not recorded.
        unit: what the figures count: rows, words or questions.
    """

    what: str
    details: str
    figures: dict[str, float]
    rows: int | None
    unit: str

    @property
    def counted(self) -> float | None:
        """Returns the figure that is a fraction of the rows or questions; None if there is none.

        The words of a sentence are not independent, and F1 is no fraction of questions: these have no interval.
        """
        return None if self.unit == "words" else self.figures.get(counted_figure(self.unit))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Returns the 95% interval of the counted figure, if it is a fraction of the rows."""
        share, rows = self.counted, self.rows
        if share is None or not rows or not 0 <= share <= 1:
            return None
        is_fraction_of_rows = abs(share * rows - round(share * rows)) <= 0.01
        return wilson_interval(share, rows) if is_fraction_of_rows else None


def counted_figure(unit: str) -> str:
    """Returns the name of the figure that is the fraction of rows, or of questions, that are right."""
    return "exact_match" if unit == "questions" else "accuracy"


def page_of_run(run: Run) -> Page:
    """Returns the page of a run: what it was, what came out, and how it got there. Empty sections are left out."""
    sections = [
        Section("Result", "result", [*_notes(run), *result_blocks(run)]),
        Section("What was run", "run", _what_was_run(run)),
        training_section(run),
        sparsity_section(run),
        quantization_section(run),
        Section("Decisions", "decisions", decision_blocks(run)),
        size_section(run),
        speed_section(run),
        Section("Recipe and flags", "recipe", list(_recipe_and_flags(run))),
    ]
    return Page(
        title=run.name,
        subtitle=subtitle(run),
        tiles=list(_tiles(run)),
        sections=[section for section in sections if section.blocks],
        foot=foot(run),
    )


def subtitle(run: Run) -> str:
    """Returns one line: the model that training began from, the data, the state of the run."""
    model, data = run.arguments.get("model_name_or_path"), data_of(run)
    words = [f"{short(str(model))} trained on {data}" if model and data else short(str(model or data or ""))]
    if words[0] and run.arguments.get("recipe"):
        words[0] += f" with {short(str(run.arguments['recipe']))}"
    if run.deployment:
        words.insert(0, f"export of {short(str(run.folder))}")
    if run.finished is False:
        words.append(f"not finished: as of {run.checkpoint}" if run.checkpoint else "not finished")
    return ", ".join(word for word in words if word)


def short(path: str) -> str:
    """Returns the last two parts of a long path."""
    parts = Path(path).parts
    return "/".join(parts[-2:]) if len(parts) > 3 and "\n" not in path else path


def data_of(run: Run) -> str:
    """Returns the training data in a few words: a task, a dataset or a file."""
    flags = run.arguments
    name = flags.get("task_name") or flags.get("dataset_name") or flags.get("train_file")
    config = flags.get("dataset_config_name")
    return (short(str(name)) + (f" ({config})" if config else "")) if name else ""


def foot(run: Run) -> str:
    """Returns the last line of the page."""
    version = run.environment.get("sparse_accel")
    made_with = f"Trained with sparse_accel {version}. " if version else ""
    return f"{made_with}Made by python -m sparse_accel.report from the files in {run.deployment or run.folder}."


def main_figure(run: Run) -> str:
    """Returns the name of the figure that a model is judged by: what its task recorded, else the best known of those
    there are; empty if there is none."""
    figures = run.figures()
    known = [run.headline, *(name for name in _MAIN if name != "accuracy" or run.unit != "words"), *figures]
    return next((name for name in known if name in figures and name != "loss"), "")


def _notes(run: Run) -> Iterator[Block]:
    for note in run.notes:
        yield Words(note, warning=True)
    if run.finished is False:
        since = f"The charts end at its newest checkpoint, {run.checkpoint}." if run.checkpoint else ""
        yield Words(
            f"This run is not finished. {since} Run its command again to resume it.".replace("  ", " "), warning=True
        )


def _tiles(run: Run) -> Iterator[Tile]:
    figures = run.figures()
    name = main_figure(run)
    if name:
        low_high = _this_model(run).interval if name == counted_figure(run.unit) else None
        note = f"95% interval {units.percent(low_high[0])} to {units.percent(low_high[1])}" if low_high else ""
        yield Tile(f"{name}, validation", units.figure(name, figures[name]), note)
        teacher = next((each for each in run.references if each.role == "teacher" and name in each.figures), None)
        if teacher:
            dense = " (dense)" if teacher.dense else ""
            note = f"this model: {units.difference(name, figures[name] - teacher.figures[name])}"
            yield Tile(f"teacher{dense}", units.figure(name, teacher.figures[name]), note)
    encoder = _of(run.sparsity, "encoder_linear", "sparsity")
    if encoder is not None:
        whole_model = units.percent(_of(run.sparsity, "model", "sparsity"))
        yield Tile("zeros in the encoder", units.percent(encoder), f"{whole_model} of the whole model")
    linears, on = whole(run.results.get("linears")), whole(run.results.get("quantized_linears"))
    if linears is not None and on is not None:
        yield Tile("INT8 Linears", f"{on} of {linears}", "" if on else "the model is float")
    if (seconds := number(run.results.get("train_runtime"))) is not None:
        yield Tile("training time", units.duration(seconds))
    yield from export_tiles(run)


def _of(content: dict[str, Any], *keys: str) -> float | None:
    found: Any = content
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return number(found)


# --- result -----------------------------------------------------------------------------------------------------------


def result_blocks(run: Run) -> list[Block]:
    """Returns the table of this model, its teacher, the model it began from, and its exports."""
    found: list[Block] = []
    measured, unit = [_this_model(run)], run.unit
    for name, entry in run.evaluation.items():  # MNLI has a second set of rows
        if name != "validation":
            figures = numbers(entry.get("figures"))
            source, rows = str(entry.get("source", "")), whole(entry.get("rows"))
            measured.append(Measured(f"this model, {name}", source, figures, rows, unit))
    for each in run.references:
        dense = {True: ", dense", False: ", sparse"}.get(each.dense or False, "") if each.dense is not None else ""
        role = "teacher" if each.role == "teacher" else "the model it began from"
        measured.append(Measured(role + dense, short(each.name), each.figures, run.rows(), unit))
    measured += [as_exported(export, unit) for export in run.exports]
    measured = [each for each in measured if each.figures]
    if measured:
        found.append(figures_table(measured))
    if measured and measured[0].rows is None and measured[0].counted is not None:
        name = _words(counted_figure(unit))
        found.append(Words(f"The number of {unit} was not recorded, so this {name} has no interval."))
    return found


def _this_model(run: Run) -> Measured:
    place = short(str(run.folder)) + (f" on {short(other)}" if (other := _other_rows(run)) else "")
    return Measured("this model", place, run.figures(), run.rows(), run.unit)


def as_exported(export: Export, unit: str) -> Measured:
    """Returns the figures of an exported file in onnxruntime; none if it was not measured on rows with labels."""
    texts, fidelity = export.report.get("texts"), export.report.get("fidelity")
    place = f"{short(str(export.folder))}/model.onnx"
    if not (isinstance(texts, dict) and texts.get("labels") and isinstance(fidelity, dict)):
        return Measured("exported, in onnxruntime", place, {}, None, unit)
    of_what = f"{place} on {short(str(texts.get('source', '')))}"
    figures = numbers(fidelity.get("onnxruntime"))
    return Measured("exported, in onnxruntime", of_what, figures, whole(texts.get("rows")), unit)


def figures_table(measured: Sequence[Measured]) -> Table:
    """Returns a table of the figures of models, with the 95% intervals of accuracies or exact matches."""
    names = list(dict.fromkeys(name for each in measured for name in each.figures))
    ends = [end for each in measured if each.interval for end in each.interval]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    margin = 0.08 * (high - low) or 0.01
    low, high = low - margin, high + margin
    rows: list[list[Cell | str]] = []
    for each in measured:
        row: list[Cell | str] = [Cell(each.what, note=each.details)]
        row += [Cell(units.figure(name, each.figures.get(name))) for name in names]
        if ends and (found := each.interval) and (share := each.counted) is not None:
            left, middle, right = ((x - low) / (high - low) for x in (found[0], share, found[1]))
            row.append(Cell(f"{units.percent(found[0])} to {units.percent(found[1])}", interval=(left, middle, right)))
        elif ends:
            row.append(units.NOTHING)
        row.append(Cell(units.plain(each.rows)))
        rows.append(row)
    with_interval = list(dict.fromkeys(counted_figure(each.unit) for each in measured if each.interval))
    what, of = " or ".join(map(_words, with_interval)), "questions" if _all_are_questions(measured) else "rows"
    head = ["", *names, *([f"{what}, 95% interval"] if ends else []), of]
    note = f"Interval: how far the {what} may be off on other {of} of the same kind (Wilson, 95%)." if ends else ""
    return Table(head, rows, note=note)


def _all_are_questions(measured: Sequence[Measured]) -> bool:
    return all(each.unit == "questions" for each in measured)


def _words(name: str) -> str:
    return name.replace("_", " ")


# --- what was run -----------------------------------------------------------------------------------------------------


def _what_was_run(run: Run) -> list[Block]:
    flags, environment = run.arguments, run.environment
    hardware = environment.get("hardware") if isinstance(environment.get("hardware"), dict) else {}
    assert isinstance(hardware, dict)
    gpus = hardware.get("gpus")
    packages = environment.get("packages")
    machine = [
        ", ".join(map(str, gpus)) if isinstance(gpus, list) and gpus else "",
        str(hardware.get("cpu") or ""),
        f"{hardware['cores']} cores" if hardware.get("cores") else "",
        f"{units.plain(hardware['memory_gb'])} GB memory" if hardware.get("memory_gb") else "",
    ]
    epochs, steps = number(run.results.get("epoch")), whole(run.results.get("global_step"))
    rows = [
        ("output folder", str(run.folder)),
        ("model", str(flags.get("model_name_or_path") or "")),
        ("kind", _kind_of_model(run.config)),
        ("recipe", _with_arguments(flags)),
        ("teacher", str(flags.get("distill_teacher") or "")),
        ("training data", str(flags.get("train_file") or data_of(run))),
        ("validation data", str(flags.get("validation_file") or _of_validation(run, "source") or "")),
        ("evaluated last on", _other_rows(run)),
        ("length", f"{units.plain(epochs)} epochs, {units.plain(steps)} steps" if epochs and steps else ""),
        ("batch", _batch(flags)),
        ("seed", units.plain(flags.get("seed")) if "seed" in flags else ""),
        ("precision", run.precision),
        ("layout", str(environment.get("layout") or "")),
        ("machine", ", ".join(each for each in machine if each)),
        ("versions", ", ".join(f"{k} {v}" for k, v in packages.items()) if isinstance(packages, dict) else ""),
        ("commit", str(environment.get("commit") or "")),
        ("started", str(environment.get("started") or "")),
    ]
    known = [(name, value) for name, value in rows if value]
    command = str(environment.get("command") or "")
    found: list[Block] = [Command(re.sub(r" (--\w)", r" \\\n  \1", command))] if command else []
    return [*found, Facts(known)] if known else found


def _other_rows(run: Run) -> str:
    """What the figures are of, if a later evaluation was on another file than the training's; else "".

    One of the two paths may be relative.
    """
    source, file = str(_of_validation(run, "source") or ""), str(run.arguments.get("validation_file") or "")
    is_same = any(
        Path(one).parts[-len(Path(other).parts) :] == Path(other).parts
        for one, other in ((source, file), (file, source))
    )
    return "" if not source or not file or is_same else source


def _of_validation(run: Run, key: str) -> Any:
    return run.evaluation.get("validation", {}).get(key)


def _kind_of_model(config: dict[str, Any]) -> str:
    layers, width = config.get("num_hidden_layers"), config.get("hidden_size")
    shape = f", {layers} layers of width {width}" if layers and width else ""
    return f"{config['model_type']}{shape}" if config.get("model_type") else ""


def _with_arguments(flags: dict[str, Any]) -> str:
    recipe, more = flags.get("recipe"), flags.get("recipe_args")
    return f"{recipe} with {more}" if recipe and more else str(recipe or "")


def _batch(flags: dict[str, Any]) -> str:
    each, accumulated = whole(flags.get("per_device_train_batch_size")), whole(flags.get("gradient_accumulation_steps"))
    if each is None:
        return ""
    return f"{each} rows per process" + (f", {accumulated} batches accumulated" if (accumulated or 1) > 1 else "")


def _recipe_and_flags(run: Run) -> Iterator[Block]:
    if run.recipe is not None:
        yield Listing("The recipe as it was applied", run.recipe.resolved())
    if run.arguments:
        rows: list[list[Cell | str]] = [
            [name, Cell(_value(value), numeric=False)] for name, value in sorted(run.arguments.items())
        ]
        yield Table(["flag", "value"], rows, folded="All flags")


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
