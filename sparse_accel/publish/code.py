"""The code in a model card: how to load the model in transformers, sparse_accel, onnxruntime and its fast sessions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparse_accel.publish.facts import EMBEDS, MASKS, QUESTIONS, RANKS, Facts, part
from sparse_accel.publish.metadata import encoder_sparsity

_SENTENCE = "a gripping film, from the first scene to the last"
_MASKED = 'text = f"a {tokenizer.mask_token} film, from the first scene to the last"'
_KERNELS = ", with INT8 kernels that skip zeros where the CPU has them"
_AS_TRAINED = "As it was trained, with quantizers on, with the package `sparse_accel`:"
_QUESTION, _CONTEXT = "Where was the film made?", "The film was made in Paris, in the spring of 1962."
_RANKED_TEXTS = (
    'query = "Where was the film made?"',
    'documents = ["It was filmed in Paris, in the spring of 1962.", "The director also wrote two novels."]',
)
_SIMILAR = '"The film was made in Paris.", "It was filmed in the capital of France."'
# From scores of all pairs of a first and a last token to the text.
_SPAN = (
    "first, last = divmod(int(scores.argmax()), len(inside))",
    "print(context[encoded.token_to_chars(first).start : encoded.token_to_chars(last).end])",
)


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
    kinds = {QUESTIONS: _of_questions, MASKS: _of_masks, RANKS: _of_a_reranker, EMBEDS: _of_embeddings}
    lines = kinds.get(facts.pipeline or "", _of_a_classifier)(facts, name)
    if report:
        return lines + of_a_deployment(facts, report, place.deployment, place.repository)
    return lines


def _of_a_classifier(facts: Facts, name: str) -> list[str]:
    if not facts.pipeline:
        return []
    grouped = ', aggregation_strategy="simple"' if facts.pipeline == "token-classification" else ""
    lines = [_in_transformers(facts)]
    lines += _block(
        "from transformers import pipeline",
        "",
        f'classify = pipeline("{facts.pipeline}", "{name}"{grouped})',
        f'print(classify("{_SENTENCE}"))',
    )
    if facts.is_quantized:
        lines += [_AS_TRAINED]
        lines += _block(
            *_loaded(name),
            "with torch.no_grad():",
            f'    logits = model(**tokenizer(["{_SENTENCE}"], return_tensors="pt")).logits[0]',
            *_decision(facts, "logits"),
        )
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
    of_questions = report.get("task") == "question_answering"
    truncated = '"only_second"' if of_questions else "True"
    length = report.get("sequence_length")
    fixed = f', padding="max_length", max_length={length}, truncation={truncated}' if isinstance(length, int) else ""
    if report.get("task") == "sentence_embedding":
        return _embeddings_of_a_deployment(find, place, fixed, report.get("format") == "qdq")
    if of_questions:
        return _question_of_a_deployment(find, place, fixed, report.get("format") == "qdq")
    if report.get("task") == "masked_language_modeling":
        return _masks_of_a_deployment(find, place, fixed, report.get("format") == "qdq")
    lines = ["In onnxruntime:"]
    lines += (
        _scores_of_a_deployment(facts, find, place, fixed)
        if facts.pipeline == RANKS
        else _block(
            "import json",
            "",
            "import onnxruntime",
            *_session(find, place),
            f'encoded = tokenizer(["{_SENTENCE}"], return_tensors="np"{fixed})',
            "inputs = {entry.name: encoded[entry.name] for entry in session.get_inputs()}",
            'logits = session.run(["logits"], inputs)[0][0]',
            *_decision(facts, 'json.load(open(f"{folder}/config.json"))'),
        )
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


def _in_transformers(facts: Facts) -> str:
    zeros = " with zeros" if encoder_sparsity(facts) else ""
    return f"In transformers, as a float model{zeros}{', without its quantizers' if facts.is_quantized else ''}:"


# --- rerankers ----------------------------------------------------------------------------------------------------


def _of_a_reranker(facts: Facts, name: str) -> list[str]:
    zeros = " with zeros" if encoder_sparsity(facts) else ""
    quantizers = ", without its quantizers" if facts.is_quantized else ""
    lines = [f"In sentence-transformers, as a float model{zeros}{quantizers}:"]
    lines += _block(
        "from sentence_transformers import CrossEncoder",
        "",
        f'model = CrossEncoder("{name}", max_length={_longest(facts)})',
        *_RANKED_TEXTS,
        "print(model.predict([(query, document) for document in documents]))  # scores from 0 to 1",
        "print(model.rank(query, documents))",
    )
    if facts.is_quantized:
        lines += [_AS_TRAINED]
        lines += _block(
            *_loaded(name),
            *_RANKED_TEXTS,
            _encoded(facts, "pt", ", padding=True"),
            "with torch.no_grad():",
            "    print(model(**encoded).logits[:, 0].sigmoid())  # scores from 0 to 1",
        )
    return lines


def _scores_of_a_deployment(facts: Facts, find: list[str], place: str, fixed: str) -> list[str]:
    return _block(
        "import numpy as np",
        "import onnxruntime",
        *_session(find, place),
        *_RANKED_TEXTS,
        _encoded(facts, "np", fixed or ", padding=True"),
        "inputs = {entry.name: encoded[entry.name] for entry in session.get_inputs()}",
        'logits = session.run(["logits"], inputs)[0][:, 0]',
        "print(1 / (1 + np.exp(-logits)))  # scores from 0 to 1",
    )


def _encoded(facts: Facts, tensors: str, padding: str) -> str:
    """A line that tokenizes a query with each of its documents."""
    truncated = "" if "truncation" in padding else f", truncation=True, max_length={_longest(facts)}"
    return f'encoded = tokenizer([query] * len(documents), documents, return_tensors="{tensors}"{padding}{truncated})'


def _longest(facts: Facts) -> int:
    """The most tokens of a row in training, to which longer documents are cut."""
    found = part(facts.record, "identity").get("max_seq_length")
    return found if isinstance(found, int) else 512


# --- language models ------------------------------------------------------------------------------------------------


def _of_masks(facts: Facts, name: str) -> list[str]:
    """The code of a language model, which is also a start to train for a task."""
    lines = ["It is a start to train for a task, with `--model_name_or_path`. " + _in_transformers(facts)]
    lines += _block(
        "from transformers import pipeline",
        "",
        f'fill = pipeline("{MASKS}", "{name}")',
        'print(fill(f"a {fill.tokenizer.mask_token} film, from the first scene to the last"))',
    )
    if facts.is_quantized:
        lines += [_AS_TRAINED]
        lines += _block(
            *_loaded(name),
            _MASKED,
            "with torch.no_grad():",
            '    logits = model(**tokenizer(text, return_tensors="pt")).logits[0]',
            'place = tokenizer(text)["input_ids"].index(tokenizer.mask_token_id)',
            "print(tokenizer.decode([int(logits[place].argmax())]))",
        )
    return lines


def _masks_of_a_deployment(find: list[str], place: str, fixed: str, is_quantized: bool) -> list[str]:
    kernels = _KERNELS if is_quantized else ""
    lines = [f"With the package `sparse_accel`, in onnxruntime{kernels}, in the form of transformers' `{MASKS}`:"]
    lines += _block(
        *find,
        "from transformers import AutoTokenizer",
        "",
        "import sparse_accel",
        "",
        f"folder = {place}",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        _MASKED,
        "print(sparse_accel.fill_mask(folder, text))",
    )
    lines += ["In onnxruntime alone:"]
    lines += _block(
        "import onnxruntime",
        *_session(find, place),
        _MASKED,
        f'encoded = tokenizer(text, return_tensors="np"{fixed})',
        "inputs = {entry.name: encoded[entry.name] for entry in session.get_inputs()}",
        'logits = session.run(["logits"], inputs)[0][0]',
        'place = tokenizer(text)["input_ids"].index(tokenizer.mask_token_id)',
        "print(tokenizer.decode([int(logits[place].argmax())]))",
    )
    return lines


# --- embeddings -------------------------------------------------------------------------------------------------------


def _of_embeddings(facts: Facts, name: str) -> list[str]:
    zeros = " with zeros" if encoder_sparsity(facts) else ""
    quantizers = ", without its quantizers" if facts.is_quantized else ""
    lines = [f"In sentence-transformers, as a float model{zeros}{quantizers}:"]
    lines += _block(
        "from sentence_transformers import SentenceTransformer",
        "",
        f'model = SentenceTransformer("{name}")',
        f"embeddings = model.encode([{_SIMILAR}])",
        "print(model.similarity(embeddings, embeddings))",
    )
    if facts.is_quantized:
        lines += [_AS_TRAINED]
        lines += _block(
            *_loaded(name),
            f'encoded = tokenizer([{_SIMILAR}], padding=True, return_tensors="pt")',
            "with torch.no_grad():",
            "    embeddings = model(**encoded).sentence_embedding",
            "print(torch.nn.functional.cosine_similarity(embeddings[0], embeddings[1], dim=0))",
        )
    return lines


def _embeddings_of_a_deployment(find: list[str], place: str, fixed: str, is_quantized: bool) -> list[str]:
    kernels = _KERNELS if is_quantized else ""
    lines = [f"With the package `sparse_accel`, in onnxruntime{kernels}; pooling is in the file:"]
    lines += _block(
        "import numpy as np",
        *find,
        "",
        "import sparse_accel",
        "",
        f"first, second = sparse_accel.embed({place}, [{_SIMILAR}])",
        "print(first @ second / (np.linalg.norm(first) * np.linalg.norm(second)))  # their cosine",
    )
    lines += ["In onnxruntime alone:"]
    lines += _block(
        "import numpy as np",
        "import onnxruntime",
        *_session(find, place),
        f'encoded = tokenizer([{_SIMILAR}], return_tensors="np"{fixed or ", padding=True"})',
        "inputs = {entry.name: encoded[entry.name] for entry in session.get_inputs()}",
        'first, second = session.run(["sentence_embedding"], inputs)[0]',
        "print(first @ second / (np.linalg.norm(first) * np.linalg.norm(second)))  # their cosine",
    )
    return lines


# --- question answering: transformers 5 has no pipeline for it --------------------------------------------------------


def _of_questions(facts: Facts, name: str) -> list[str]:
    lines = [_in_transformers(facts)]
    lines += _question_in_torch(f'AutoModelForQuestionAnswering.from_pretrained("{name}")', name)
    if facts.is_quantized:
        lines += [_AS_TRAINED, *_question_in_torch(f'sparse_accel.load("{name}")', name)]
    return lines


def _question_in_torch(model: str, name: str) -> list[str]:
    """Lines that load a model and a tokenizer and print the best span of a context. `model`: the code that loads it."""
    own = model.startswith("sparse_accel")
    return _block(
        "import torch",
        f"from transformers import {'' if own else 'AutoModelForQuestionAnswering, '}AutoTokenizer",
        *(["", "import sparse_accel"] if own else []),
        "",
        f'model, tokenizer = {model}, AutoTokenizer.from_pretrained("{name}")',
        f'question, context = "{_QUESTION}", "{_CONTEXT}"',
        'encoded = tokenizer(question, context, return_tensors="pt")',
        "with torch.no_grad():",
        "    outputs = model(**encoded)",
        "inside = torch.tensor([part == 1 for part in encoded.sequence_ids()])  # tokens of the context",
        "scores = outputs.start_logits[0][:, None] + outputs.end_logits[0]",
        "scores = scores.masked_fill(~(inside[:, None] & inside).triu(), -torch.inf)",
        *_SPAN,
    )


def _question_of_a_deployment(find: list[str], place: str, fixed: str, is_quantized: bool) -> list[str]:
    """The lines of the section for a deployment: code that finds it, names it, and pads a row of it."""
    kernels = _KERNELS if is_quantized else ""
    lines = [
        f"With the package `sparse_accel`, in onnxruntime{kernels}. A long context is read in several windows; the "
        "answer comes with its score and its place in the context:"
    ]
    lines += _block(
        *find,
        *([""] if find else []),
        "import sparse_accel",
        "",
        f"folder = {place}",
        f'print(sparse_accel.answer(folder, "{_QUESTION}", "{_CONTEXT}"))',
    )
    lines += ["In onnxruntime alone, for a context that fits into one row:"]
    lines += _block(
        "import numpy as np",
        "import onnxruntime",
        *_session(find, place),
        f'question, context = "{_QUESTION}", "{_CONTEXT}"',
        f'encoded = tokenizer(question, context, return_tensors="np"{fixed})',
        "inputs = {entry.name: encoded[entry.name] for entry in session.get_inputs()}",
        'start, end = session.run(["start_logits", "end_logits"], inputs)',
        "inside = np.array([part == 1 for part in encoded.sequence_ids()])  # tokens of the context",
        "scores = np.where(np.triu(inside[:, None] & inside), start[0][:, None] + end[0], -np.inf)",
        *_SPAN,
    )
    return lines


# --- all --------------------------------------------------------------------------------------------------------------


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


def _loaded(name: str) -> list[str]:
    """Lines that load the model as it was trained, and its tokenizer."""
    return [
        "import torch",
        "from transformers import AutoTokenizer",
        "",
        "import sparse_accel",
        "",
        f'model, tokenizer = sparse_accel.load("{name}"), AutoTokenizer.from_pretrained("{name}")',
    ]


def _session(find: list[str], place: str) -> list[str]:
    """Lines after `import onnxruntime` that load a deployment, and its tokenizer. Arguments as in `of_a_deployment`."""
    return [
        *find,
        "from transformers import AutoTokenizer",
        "",
        f"folder = {place}",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        'session = onnxruntime.InferenceSession(f"{folder}/model.onnx")',
    ]


def _block(*lines: str) -> list[str]:
    return ["", "```python", *lines, "```", ""]
