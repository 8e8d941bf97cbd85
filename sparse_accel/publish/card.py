"""The model card: README.md of an output folder and of a deployment.

A card is written again when the files next to it change, but never over the words of a person: its last line has a
digest of the rest.
"""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import Any, Literal

from sparse_accel.console import warn
from sparse_accel.errors import first_line
from sparse_accel.files import write_text
from sparse_accel.publish import code
from sparse_accel.publish.facts import (
    CARD,
    DEPLOYMENT_REPORT,
    RANKS,
    Facts,
    deployment_of,
    facts_of,
    is_deployment,
    is_hub_id,
    is_model,
    part,
    read,
    weight_files,
    without_paths,
)
from sparse_accel.publish.metadata import METRICS, TASKS, encoder_sparsity, metadata

_MARK = re.compile(r"<!-- written by sparse_accel; digest ([0-9a-f]{32})[^\n]*-->\s*\Z")


Outcome = Literal["written", "kept", "none"]


def write_card(folder: Path, *, again: bool = False) -> Outcome:
    """Writes README.md of a folder with a model or a deployment.

    Args:
        folder: the output folder of a run, or a deployment.
        again: only where there is a card already.

    Returns:
        written: the card is that of the files in the folder. kept: README.md was written or changed by a person.
        none: there is neither a model nor a deployment, or no card to write again.
    """
    path = folder / CARD
    if not (is_model(folder) or is_deployment(folder)) or (again and not path.exists()):
        return "none"
    if path.exists() and not is_ours(path):
        return "kept"
    text = card_text(folder)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    return "written"


def card_at_end(folder: Path, *, again: bool = False) -> Outcome | None:
    """Writes the card at the end of a program that has done its work, which a missing card must not fail.

    Call it on the main process. Whatever is wrong becomes one warning that says what to do.

    Returns:
        as `write_card`; None if it failed.
    """
    try:
        return write_card(folder, again=again)
    except Exception as error:  # a full disk, or a fault of the card: the run is complete all the same
        command = f"python -m sparse_accel.publish {folder} --card"
        warn(f"{CARD} was not written: {type(error).__name__}: {first_line(error)}. `{command}` writes it")
    return None


def is_ours(path: Path) -> bool:
    """Returns whether a card is as `write_card` wrote it: no person wrote or changed it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    found = _MARK.search(text)
    return found is not None and found[1] == _digest(text[: found.start()])


def _digest(text: str) -> str:
    return hashlib.sha256("\n".join(text.splitlines()).encode()).hexdigest()[:32]


def card_text(
    folder: Path, *, repository: str | None = None, deployment: Path | None = None, fetch: bool = False
) -> str:
    """Returns the text of a card.

    Args:
        folder: the output folder of a run, or a deployment.
        repository: the Hub id that the code in the card loads; None: the code runs in the folder itself.
        deployment: the deployment of the model; None: the folder `deployment` next to it, if it is the model's.
        fetch: whether the base model's card, which names license and language, may be fetched from the Hub.
    """
    if is_model(folder):
        text = _card_of_a_model(folder, repository, deployment, fetch)
    else:
        text = _card_of_a_deployment(folder, fetch)
    mark = f"<!-- written by sparse_accel; digest {_digest(text)}: a changed card is not written again -->\n"
    return text + mark


# --- the text of a model ----------------------------------------------------------------------------------------------


def _card_of_a_model(folder: Path, repository: str | None, deployment: Path | None, fetch: bool) -> str:
    facts = facts_of(folder)
    deployment = deployment or (None if repository else deployment_of(folder))
    report = read(deployment, DEPLOYMENT_REPORT) if deployment else {}
    name = repository.rpartition("/")[2] if repository else folder.resolve().name
    data = metadata(facts, name, ["onnx"] if report and repository else [], fetch=fetch)
    place = code.Place(repository, "." if repository is None else "", _relative(folder, deployment))
    lines = ["---", data.to_yaml(), "---", "", f"# {cell(name)}", ""]
    lines += [_what_it_is(facts) + _its_quantizers(facts), ""]
    lines += ["## Use", "", *code.of_a_model(facts, place, report)]
    lines += ["## Results", "", *_figures(facts), *_sparsity_table(facts), *_structure(report)]
    lines += [*_sizes(folder, report), *_speeds(report)]
    lines += ["## How it was made", "", *_making(facts)]
    return "\n".join(lines) + "\n"


def _relative(folder: Path, deployment: Path | None) -> str:
    """The path from a model's folder to its deployment."""
    return f"../{deployment.name}" if deployment and deployment.parent == folder.resolve().parent else str(deployment)


def _what_it_is(facts: Facts) -> str:
    config = facts.config
    kind = str(config.get("model_type", "transformer"))
    blocks = config.get("num_hidden_layers", config.get("n_layers"))
    words = [f"A model of the type {code_span(kind)}"]
    if isinstance(blocks, int):
        words.append(f" with {blocks} layers")
    if facts.pipeline:
        words.append(f" for {TASKS[facts.pipeline].lower()}")
    words.append(_of_labels(facts) + ".")
    if sparsity := encoder_sparsity(facts):
        words.append(f" {sparsity:.1%} of the weights in the Linear layers of its encoder are exactly zero.")
    return "".join(words)


def _its_quantizers(facts: Facts) -> str:
    if not facts.is_quantized:
        return ""
    linears = read(facts.folder, "train_results.json")
    count, of = linears.get("quantized_linears"), linears.get("linears")
    which = f"{count} of {of} Linear layers" if count and of else "its Linear layers"
    return (
        f" It was trained for INT8: `quantization.json` has the ranges of {which}. The weights in "
        "`model.safetensors` are float32."
    )


def _of_labels(facts: Facts) -> str:
    if facts.config.get("problem_type") == "regression":
        return "; its output is a number"
    if facts.pipeline == RANKS:
        return "; the sigmoid of its output is the score of a document for a query"
    names = facts.labels
    if not names:
        return ""
    shown = ", ".join(map(code_span, names[:12]))
    return f"; labels: {shown}" + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _figures(facts: Facts) -> list[str]:
    if not facts.figures:
        return ["This model was not evaluated.", ""]
    lines: list[str] = []
    for split, figures in facts.figures.items():
        teacher = facts.of_teacher.get(split, {})
        rows = facts.rows.get(split)
        which = f"{cell(rows.name)} ({cell(rows.described())})" if rows else "rows that were not recorded"
        lines += [f"On {which}:", ""]
        heads = ["figure", "this model", *(["teacher"] if teacher else [])]
        lines += [_row(heads), _row(["---"] * len(heads))]
        for name in [*(each for each in METRICS if each in figures), *sorted(figures.keys() - METRICS)]:
            cells = [METRICS[name][1] if name in METRICS else cell(name.replace("_", " ")), _number(figures[name])]
            lines.append(_row([*cells, *([_number(teacher.get(name))] if teacher else [])]))
        lines.append("")
    quantized = ", with quantizers on" if facts.is_quantized else ""
    return [*lines, f"Measured on the files of this model, in float32{quantized}.", ""]


def _sparsity_table(facts: Facts) -> list[str]:
    names = {"encoder_linear": "Linear layers of the encoder", "prunable": "all prunable weights", "model": "all"}
    rows = []
    for key, name in names.items():
        found = part(facts.sparsity, key)
        if {"zeros", "weights", "sparsity"} <= found.keys():
            rows.append(_row([name, f"{found['weights']:,}", f"{found['sparsity']:.1%}"]))
    return [_row(["weights", "number", "zero"]), _row(["---"] * 3), *rows, ""] if rows else []


def _sizes(folder: Path, report: dict[str, Any]) -> list[str]:
    stored = sum(path.stat().st_size for path in weight_files(folder))
    sizes = {"model.safetensors": stored} if stored else {}
    files = part(report, "files")
    known = {name: part(files, name).get("bytes") for name in files}
    dense = known.pop("float32", None) or stored
    sizes |= {name: size for name, size in known.items() if isinstance(size, int)}
    if not sizes:
        return []
    rows = [
        _row([cell(name), f"{size / 1e6:.1f} MB", f"{size / dense:.2f}" if dense else ""])
        for name, size in sizes.items()
    ]
    return [_row(["file", "size", "of dense float32"]), _row(["---"] * 3), *rows, ""]


def _speeds(report: dict[str, Any]) -> list[str]:
    """Milliseconds of an export's report, float next to what is deployed."""
    lines: list[str] = []
    latency = part(report, "latency")
    for runtime in latency:
        batches = part(latency, runtime)
        table = {batch: part(batches, batch) for batch in batches}
        names = [name for name in next(iter(table.values()), {}) if "no zeros" not in name]
        if len(names) < 2:
            continue
        lines += [_row([f"{cell(runtime)}: rows", *map(_contestant, names)])]
        lines += [_row(["---"] * (len(names) + 1))]
        for batch, times in table.items():
            lines.append(_row([batch, *(f"{times[name]:.1f} ms" if name in times else "" for name in names)]))
        lines.append("")
    if not lines:
        return []
    cpu = part(report, "cpu").get("name", "a CPU")
    return [f"Latency of {report.get('tokens')} tokens, one thread of {_public(cpu)}:", "", *lines]


def _contestant(name: str) -> str:
    """How this card calls a model whose latency was measured."""
    kind, comma, size = name.partition(", ")
    titles = {"quantized": "INT8", "sparse kernels": "INT8, kernels that skip zeros"}
    return f"{titles.get(kind, kind)}{comma}{size}"


def _structure(report: dict[str, Any]) -> list[str]:
    """What the export removed from the model; empty if it removed nothing."""
    structure = part(report, "structure")
    before, after = part(structure, "before"), part(structure, "after")
    names = {"attention_heads": "attention heads", "ffn_neurons": "feed-forward neurons", "parameters": "parameters"}
    names["multiply_adds"] = "multiply-adds of a token in the Linear layers of the encoder"
    rows = [(name, _total(before.get(key)), _total(after.get(key))) for key, name in names.items()]
    shown = [_row([name, f"{full:,}", f"{left:,}"]) for name, full, left in rows if full and left is not None]
    if before == after or not shown:
        return []
    why = "Heads and neurons that are zero in the trained model are not in `model.onnx`:"
    return [why, "", _row(["", "trained, full size", "model.onnx"]), _row(["---"] * 3), *shown, ""]


def _total(value: Any) -> int | None:
    """A number of the whole model, which may be given by block; None if it is no number."""
    found = value if isinstance(value, list) else [value]
    return sum(found) if all(isinstance(each, int) for each in found) else None


def _making(facts: Facts) -> list[str]:
    identity, flags, lines = part(facts.record, "identity"), facts.arguments, []
    dataset, files = facts.dataset(), facts.data_files()
    rows = [("started from", _ancestor(facts, "model_name_or_path", facts.base_model()))] if flags else []
    if facts.has_teacher():
        itself = "the model itself, before training"
        of_self = flags["distill_teacher"] == "self"
        rows.append(("teacher", itself if of_self else _ancestor(facts, "distill_teacher", facts.teacher())))
    if dataset:
        rows.append(("data", f"{_link(dataset[0], 'datasets/')}{f', {cell(dataset[1])}' if dataset[1] else ''}"))
    elif files:
        rows.append(("data", ", ".join(code_span(name).replace("|", "\\|") for name in files)))
    numbers = {"rows of a step": "global_batch_size", "steps": "total_steps", "tokens of a row": "max_seq_length"}
    rows += [(name, f"{identity[key]:,}") for name, key in numbers.items() if isinstance(identity.get(key), int)]
    if flags:
        precision = "bfloat16" if flags.get("bf16") else "float16" if flags.get("fp16") else "float32"
        precision = facts.environment.get("precision") or precision
        rows += [("precision in training", _public(precision)), ("seed", str(flags.get("seed", "")))]
    packages = facts.environment.get("packages")
    if isinstance(packages, dict):
        versions = {"sparse_accel": facts.environment.get("sparse_accel"), **packages}
        rows.append(("versions", ", ".join(f"{cell(name)} {_public(value)}" for name, value in versions.items())))
    if rows:
        lines += [_row(["", ""]), _row(["---"] * 2), *(_row(list(row)) for row in rows), ""]
    if timeline := facts.timeline():
        lines += ["What the recipe (`recipe.yaml`) did, by epoch:", "", _row(["epoch", "what happens"])]
        lines += [_row(["---"] * 2), *(_row([f"{epoch:g}", _public(event)]) for epoch, event in timeline), ""]
    return lines or ["There is no record of the training.", ""]


def _ancestor(facts: Facts, flag: str, origin: str | list[str] | None) -> str:
    """What a flag names: a model of the Hub, or a local one and where that came from."""
    if origin is None:
        return "a local model"
    return f"a local model, trained from {_named(origin)}" if facts.is_local(flag) else _named(origin)


# --- the text of a deployment -----------------------------------------------------------------------------------------


def _card_of_a_deployment(folder: Path, fetch: bool) -> str:
    report, name = read(folder, DEPLOYMENT_REPORT), folder.resolve().name
    source = part(report, "source")
    home = Path(str(source.get("folder", "")))
    is_local = home.is_absolute() and is_model(home)
    facts = facts_of(home if is_local else folder)
    data = metadata(facts, name, ["onnx"], fetch=fetch, measured=False)
    if not is_local and is_hub_id(source.get("folder")):
        data.base_model = source["folder"]
    quantized = bool(report.get("quantized_linears"))
    what = "8-bit weights and activations" if quantized else "float32"
    lines = ["---", data.to_yaml(), "---", "", f"# {cell(name)}", ""]
    lines += [
        f"{_what_it_is(facts) if is_local else 'A trained model.'} This is its ONNX file, `model.onnx`: opset "
        f"{report.get('opset')}, {what}. That it computes what the trained model computes was checked, see below.",
        "",
    ]
    lines += ["## Use", "", *code.of_a_deployment(facts, report, ".")]
    checks = [each for each in report.get("checks", []) if isinstance(each, dict)]
    lines += ["## Proof", "", _row(["check", "result", ""]), _row(["---"] * 3)]
    lines += [_row([_public(each.get(key, "")) for key in ("name", "result", "detail")]) for each in checks]
    lines += ["", "## Size and speed", "", *_structure(report), *_sizes(folder, report), *_speeds(report)]
    if facts.figures and is_local:
        lines += ["## The trained model", "", *_figures(facts)]
    if is_local:
        lines += ["## How it was made", "", *_making(facts)]
    return "\n".join(lines) + "\n"


# --- Markdown ---------------------------------------------------------------------------------------------------------


def cell(text: str) -> str:
    """Returns a text as it may be in a table's cell or in a sentence: one line, without Markdown or HTML of its own."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([|`*\[\]\\]|(?<=_)_|_(?=_))", r"\\\1", text)


def code_span(text: str) -> str:
    """Returns a text as code in a sentence: one line, otherwise as it is, in more backticks than it has in a row."""
    text = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if not text or "`" in text[0] + text[-1] else ""
    return f"{fence}{space}{text}{space}{fence}"


def _public(value: object) -> str:
    """Returns a value that may name files of this machine, for a cell or a sentence."""
    return cell(without_paths(str(value)))


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return f"{value:.4f}" if value is not None and math.isfinite(value) else ""


def _named(model: str | list[str] | None) -> str:
    return ", ".join(_link(each) for each in ([model] if isinstance(model, str) else model or []))


def _link(hub_id: str, kind: str = "") -> str:
    return f"[{cell(hub_id)}](https://huggingface.co/{kind}{hub_id})"
