"""Models and tokenizers by folder or Hub id, with errors that say what was tried."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from sparse_accel.addresses import hub_complaint, model_address, out_of_reach
from sparse_accel.command_line import warn
from sparse_accel.errors import UsageError, first_line
from sparse_accel.layers import quantized_linears
from sparse_accel.model_files import QUANTIZATION_FILE, load, quiet_transformers
from sparse_accel.sparsity import is_encoder_linear
from sparse_accel.teacher import Teacher, label_order, taken_by_position

if TYPE_CHECKING:
    from sparse_accel.arguments import TextClassificationArguments

# What transformers raises for a folder or id that is wrong or out of reach.
_LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError, pickle.UnpicklingError)


def load_classifier(
    arguments: TextClassificationArguments, label_names: list[str] | None = None, problem_type: str | None = None
) -> tuple[Any, list[str]]:
    """Returns a sequence classifier for these labels, float32, and the names of weights that were made anew.

    A head that does not fit the labels is made anew, as is the one that a language model lacks. Without labels, those
    of the model's own configuration are kept.

    Raises:
        UsageError: nothing can be read there, or the weights are those of another architecture.
    """
    flag, name = "--model_name_or_path", arguments.model_name_or_path
    assert name is not None
    address = model_address(flag, name, arguments.cache_dir)
    source: dict[str, Any] = {"revision": arguments.model_revision, "cache_dir": arguments.cache_dir}
    labels: dict[str, Any] = {}
    if label_names is not None:
        labels = {
            "num_labels": len(label_names),
            "id2label": dict(enumerate(label_names)),
            "label2id": {label: number for number, label in enumerate(label_names)},
            "problem_type": problem_type,
        }
    try:
        config = AutoConfig.from_pretrained(_config_address(arguments) or address, **labels, **source)
        options: dict[str, Any] = {"config": config, "dtype": torch.float32, "ignore_mismatched_sizes": True}
        with quiet_transformers():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                address, output_loading_info=True, **options, **source
            )
    except _LOADING_ERRORS as error:
        raise _unreadable(flag, name, address, error) from error
    fresh = sorted(set(info["missing_keys"]) | {key[0] for key in info["mismatched_keys"]})
    modules = dict(model.named_modules())
    inside = [key for key in fresh if is_encoder_linear(key, modules.get(key.rpartition(".")[0], model))]
    if inside:
        raise UsageError(
            f"{flag} {name}: the file holds no weights for {len(inside)} layers of the encoder, such as "
            f"{inside[0]}: config.json and weights belong to different models"
        )
    return model, fresh


def _config_address(arguments: TextClassificationArguments) -> str | None:
    if not arguments.config_name:
        return None
    return model_address("--config_name", arguments.config_name, arguments.cache_dir)


def load_trained(arguments: TextClassificationArguments) -> nn.Module:
    """Returns the model of an output folder as it was trained, quantizers on, for evaluation and prediction."""
    name = arguments.model_name_or_path
    assert name is not None
    return _load_named("--model_name_or_path", name, revision=arguments.model_revision, cache_dir=arguments.cache_dir)


def load_for_export(name: str) -> tuple[nn.Module, Any, int]:
    """Returns a trained classifier with its quantizers on, its tokenizer, and the most tokens that both take.

    Raises:
        UsageError: nothing can be read there, the model has another head, or its quantizers are not all there.
    """
    flag = "--model_path"
    address = model_address(flag, name)
    try:
        config = AutoConfig.from_pretrained(address)
    except _LOADING_ERRORS as error:
        raise _unreadable(flag, name, address, error) from error
    architectures = getattr(config, "architectures", None) or []
    if architectures and not any(kind.endswith("ForSequenceClassification") for kind in architectures):
        raise UsageError(
            f"{flag} {name} holds a {architectures[0]}, which does not classify texts: --task text_classification "
            "needs a model for sequence classification"
        )
    model = _load_named(flag, name)
    found, _ = quantized_linears(model)
    trained = _quantized_in_training(Path(address), found)
    if trained != found and not (Path(address) / QUANTIZATION_FILE).is_file():
        raise UsageError(
            f"{flag} {name}: training quantized {trained} Linears, and {QUANTIZATION_FILE}, which holds their scales, "
            "is missing. Copy it from the training run"
        )
    if trained != found:
        raise UsageError(
            f"{flag} {name}: training quantized {trained} Linears, and {QUANTIZATION_FILE} has scales of {found}. Copy "
            "that file anew from the training run"
        )
    tokenizer = _tokenizer(flag, name)
    return model, tokenizer, sequence_limit(tokenizer, model)


def _quantized_in_training(folder: Path, default: int) -> int:
    """How many Linears the run that wrote an output folder quantized; `default` where no record says so."""
    try:
        return int(json.loads((folder / "train_results.json").read_text(encoding="utf-8"))["quantized_linears"])
    except (OSError, ValueError, KeyError, TypeError):
        return default


def _load_named(flag: str, name: str, **source: Any) -> nn.Module:
    """`model_files.load`, with errors that name the flag that the model was asked for by."""
    address = model_address(flag, name, source.get("cache_dir"))
    try:
        return load(address, **source)
    except UsageError as error:
        raise UsageError(f"{flag}: {error}") from error
    except _LOADING_ERRORS as error:
        raise _unreadable(flag, name, address, error) from error


def labels_of(model: nn.Module) -> list[str]:
    """Returns the label names of a trained model, in the order of its outputs."""
    names = cast(Any, model).config.id2label
    return [str(names[number]) for number in sorted(names)]


def load_tokenizer(arguments: TextClassificationArguments) -> Any:
    """Returns the tokenizer: --tokenizer_name's, the teacher's with --use_teacher_tokenizer, else the model's."""
    flag, name = "--model_name_or_path", arguments.model_name_or_path
    if arguments.use_teacher_tokenizer:
        flag, name = "--distill_teacher", arguments.distill_teacher
    elif arguments.tokenizer_name:
        flag, name = "--tokenizer_name", arguments.tokenizer_name
    return _tokenizer(flag, str(name), revision=arguments.model_revision, cache_dir=arguments.cache_dir)


def _tokenizer(flag: str, name: str, **source: Any) -> Any:
    """Returns the tokenizer of a folder or id, with errors that name the flag that it was asked for by."""
    address = model_address(flag, name, source.get("cache_dir"))
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
    try:
        tokenizer = AutoTokenizer.from_pretrained(address, **source)
    except _LOADING_ERRORS as error:
        raise _unreadable(f"{flag} (its tokenizer)", name, address, error) from error
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        # transformers makes an empty one of the right class where the files are missing: every word is unknown to it.
        if complaint := hub_complaint(address):
            raise out_of_reach(f"{flag} (its tokenizer) {name}", address, "model", complaint)
        place = "the folder" if Path(address).is_dir() else f"{address} on the Hub"
        raise UsageError(f"{flag} {name}: {place} has no tokenizer files. Copy them from the model's origin")
    return tokenizer


def sequence_limit(tokenizer: Any, model: nn.Module) -> int:
    """Returns the most tokens that tokenizer and model take."""
    positions = getattr(model.config, "max_position_embeddings", None) or 10**9
    padding = getattr(model.config, "pad_token_id", 0) or 0
    if getattr(model.config, "model_type", "") in ("roberta", "xlm-roberta", "camembert"):
        positions -= padding + 1  # these count positions from the padding token on
    return int(min(tokenizer.model_max_length, positions))


def load_teacher(arguments: TextClassificationArguments, student: nn.Module) -> tuple[Teacher, Any]:
    """Returns the teacher and its own tokenizer (None for `self`, a frozen copy of the student as it starts).

    Raises:
        UsageError: it cannot be read, or its labels are others.
    """
    name = arguments.distill_teacher
    assert name is not None
    if name == "self":
        return Teacher(copy.deepcopy(student)), None
    model = _load_named("--distill_teacher", name, cache_dir=arguments.cache_dir)
    tokenizer = _tokenizer("--distill_teacher", name, cache_dir=arguments.cache_dir)
    own, other = cast(Any, student).config.label2id, cast(Any, model).config.label2id
    order = label_order(own, other)
    if by_place := taken_by_position(own, other, order):
        warn(
            f"--distill_teacher {name}: its labels have other names than the data's, and are taken in order: {by_place}"
        )
    return Teacher(model, order), tokenizer


def _unreadable(flag: str, name: str, address: str, error: Exception) -> UsageError:
    """The error for a model that did not load: what its folder holds, or where its id was looked for."""
    folder = Path(address)
    said = first_line(error)
    if folder.is_dir():
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
        return UsageError(f"{flag} {name}: the folder holds no model that can be read ({said}). It holds: {held}")
    if not isinstance(error, OSError):  # it came, and is not what it should be
        return UsageError(f"{flag} {name}: {address} holds no model that can be read ({said})")
    return out_of_reach(f"{flag} {name}", address, "model", said)
