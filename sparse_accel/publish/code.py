"""The code in a model card: how to load the model in transformers, sparse_accel, onnxruntime and its fast sessions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparse_accel.publish.facts import Facts
from sparse_accel.publish.metadata import encoder_sparsity

_SENTENCE = "a gripping film, from the first scene to the last"


@dataclass(frozen=True)
class Place:
    """Where the code finds the model.

    Attributes:
        repository: the Hub id; None for a folder.
        folder: the path of the model's folder, if it is not on the Hub.
        deployment: the path of its deployment, likewise.
    """

    repository: str | None
    folder: str
    deployment: str


def of_a_model(facts: Facts, place: Place, report: dict[str, Any]) -> list[str]:
    """Returns the lines of the section: the model, and its deployment if there is a report of it."""
    name = place.repository or place.folder
    lines: list[str] = []
    if facts.pipeline:
        grouped = ', aggregation_strategy="simple"' if facts.pipeline == "token-classification" else ""
        lines += [
            f"In transformers, as a float model{' with zeros' if encoder_sparsity(facts) else ''}"
            + (", without its quantizers:" if facts.is_quantized else ":")
        ]
        lines += _block(
            "from transformers import pipeline",
            "",
            f'classify = pipeline("{facts.pipeline}", "{name}"{grouped})',
            f'print(classify("{_SENTENCE}"))',
        )
    if facts.is_quantized and facts.pipeline:
        lines += ["As it was trained, with quantizers on, with the package `sparse_accel`:"]
        lines += _block(
            "import torch",
            "from transformers import AutoTokenizer",
            "",
            "import sparse_accel",
            "",
            f'model, tokenizer = sparse_accel.load("{name}"), AutoTokenizer.from_pretrained("{name}")',
            "with torch.no_grad():",
            f'    logits = model(**tokenizer(["{_SENTENCE}"], return_tensors="pt")).logits[0]',
            *_decision(facts, "logits"),
        )
    if report:
        return lines + of_a_deployment(facts, report, place.deployment, place.repository)
    return lines


def of_a_deployment(facts: Facts, report: dict[str, Any], folder: str, repository: str | None = None) -> list[str]:
    """Returns the lines of the section.

    Args:
        report: of the export.
        folder: the path of the deployment, if it is not on the Hub.
        repository: a Hub id whose folder `onnx` is the deployment.
    """
    find, place = [], f'"{folder}"'
    if repository:
        find = ["from huggingface_hub import snapshot_download"]
        place = f'snapshot_download("{repository}", allow_patterns="onnx/*") + "/onnx"'
    length = report.get("sequence_length")
    fixed = f', padding="max_length", max_length={length}, truncation=True' if isinstance(length, int) else ""
    lines = ["In onnxruntime:"]
    lines += _block(
        "import json",
        "",
        "import onnxruntime",
        *find,
        "from transformers import AutoTokenizer",
        "",
        f"folder = {place}",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        'session = onnxruntime.InferenceSession(f"{folder}/model.onnx")',
        f'encoded = tokenizer(["{_SENTENCE}"], return_tensors="np"{fixed})',
        "inputs = {entry.name: encoded[entry.name] for entry in session.get_inputs()}",
        'logits = session.run(["logits"], inputs)[0][0]',
        *_decision(facts, 'json.load(open(f"{folder}/config.json"))'),
    )
    if report.get("format") == "qdq":
        lines += ["With INT8 kernels that skip zeros, where the CPU has them; the session is used in the same way:"]
        lines += _block(
            *find,
            *([""] if find else []),
            "from sparse_accel.runtime import explain, session",
            "",
            f"fast = session({place})",
            "print(explain(fast))",
        )
    return lines


def _decision(facts: Facts, source: str) -> list[str]:
    """Lines that print what logits of one row say. `source`: `logits` for a torch tensor, else code of the config."""
    if facts.config.get("problem_type") == "regression":
        return ["print(float(logits[0]))"]
    if source == "logits":
        names = ["names = model.config.id2label"]
        key = "names[number]"
    else:
        names = [f'names = {source}.get("id2label", {{}})']
        key = "names.get(str(number), number)"
    if facts.config.get("problem_type") == "multi_label_classification":
        return [*names, f"print([{key} for number, logit in enumerate(logits.tolist()) if logit >= 0])"]
    if facts.pipeline == "token-classification":
        return [*names, f"print([{key} for number in logits.argmax(-1).tolist()])"]
    return [*names, "number = int(logits.argmax())", f"print({key})"]


def _block(*lines: str) -> list[str]:
    return ["", "```python", *lines, "```", ""]
