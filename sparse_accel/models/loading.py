"""Models and tokenizers by folder or Hub id, with errors that say what was tried."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from sparse_accel.console import warn
from sparse_accel.errors import UsageError, first_line
from sparse_accel.files import lfs_pointer_error
from sparse_accel.hub import hub_complaint, model_address, out_of_reach
from sparse_accel.models.files import QUANTIZATION_FILE, head_in, load, read_classifier, set_labels
from sparse_accel.models.teacher import Teacher, label_order
from sparse_accel.nn.layers import quantized_linears
from sparse_accel.tasks import Head, taken_by_position

if TYPE_CHECKING:
    from sparse_accel.cli.text_classification import TextClassificationArguments
    from sparse_accel.tasks import TextClassificationData

# What transformers raises for a folder or id that is wrong or out of reach.
_LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError, pickle.UnpicklingError)


def fine_tuned_head(arguments: TextClassificationArguments) -> Head | None:
    """Returns the head of the model that a run starts from; None for a model without one, or where --new_head asks.

    Its config.json tells, or, where that says nothing of a head, its weights.

    Raises:
        UsageError: its config.json cannot be read, or contradicts itself.
    """
    config = _own_config(arguments)
    if arguments.new_head or _is_classifier(config) is False:
        return None
    head = head_in(config, f"--model_name_or_path {arguments.model_name_or_path}")
    if _is_classifier(config) is None and load_classifier(arguments)[1]:
        return None
    return head


def default_head(arguments: TextClassificationArguments) -> Head:
    """Returns the head that the model has or, without a fine-tuned one, would get by its config.json.

    Raises:
        UsageError: its config.json cannot be read, or contradicts itself.
    """
    return head_in(_own_config(arguments), f"--model_name_or_path {arguments.model_name_or_path}")


def _own_config(arguments: TextClassificationArguments) -> Any:
    """The model's own configuration, which names its outputs; --config_name's where it has none."""
    try:
        return _read_config(arguments, "--model_name_or_path", str(arguments.model_name_or_path))
    except UsageError:
        if not arguments.config_name:
            raise
        return _read_config(arguments, "--config_name", arguments.config_name)


def _read_config(arguments: TextClassificationArguments, flag: str, name: str) -> Any:
    address = model_address(flag, name, arguments.cache_dir)
    _check_pointers(flag, name, address)
    try:
        return AutoConfig.from_pretrained(address, revision=arguments.model_revision, cache_dir=arguments.cache_dir)
    except _LOADING_ERRORS as error:
        raise _unreadable(flag, name, address, error) from error


def _is_classifier(config: Any) -> bool | None:
    """Whether a configuration is of a model that classifies texts; None where it names no head, or only an encoder."""
    kinds = [kind for kind in getattr(config, "architectures", None) or [] if "For" in kind]
    return any(kind.endswith("ForSequenceClassification") for kind in kinds) if kinds else None


def load_classifier(
    arguments: TextClassificationArguments, data: TextClassificationData | None = None
) -> tuple[Any, list[str]]:
    """Returns a sequence classifier, float32, and the names of its weights that are newly initialized.

    Args:
        arguments: which model.
        data: says the labels, and whether the model's own head is kept; otherwise its head is a new one, as is the one
            that a language model lacks. None: labels and head are the model's own.

    Raises:
        UsageError: nothing can be read there, or config.json and weights do not fit together: only a head may be new.
    """
    flag, name = "--model_name_or_path", str(arguments.model_name_or_path)
    config, address = _own_config(arguments), model_address(flag, name, arguments.cache_dir)
    names = head_in(config, f"{flag} {name}").names if data is None else data.label_names
    keeps_head = data.keeps_head if data is not None else _is_classifier(config) is not False
    if arguments.config_name:
        config = _read_config(arguments, "--config_name", arguments.config_name)
    set_labels(config, names)
    if data is not None:
        config.problem_type = data.problem_type
    _check_pointers(flag, name, address)
    source: dict[str, Any] = {"revision": arguments.model_revision, "cache_dir": arguments.cache_dir}
    try:
        return read_classifier(address, config=config, keeps_head=keeps_head, may_be_new=True, **source)
    except UsageError as error:
        raise UsageError(f"{flag} {name}: {error}") from error
    except _LOADING_ERRORS as error:
        raise _unreadable(flag, name, address, error) from error


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
    _check_pointers(flag, name, address)
    try:
        config = AutoConfig.from_pretrained(address)
    except _LOADING_ERRORS as error:
        raise _unreadable(flag, name, address, error) from error
    architectures = getattr(config, "architectures", None) or []
    if _is_classifier(config) is False:
        raise UsageError(
            f"{flag} {name} holds a {architectures[0]}, which does not classify texts: --task text_classification "
            "needs a model for sequence classification"
        )
    model = _load_named(flag, name)
    tokenizer = _tokenizer(flag, name)
    return model, tokenizer, sequence_limit(tokenizer, model)


def _quantized_in_training(folder: Path, default: int) -> int:
    """How many Linears the run that wrote an output folder quantized; `default` where no record says so."""
    try:
        return int(json.loads((folder / "train_results.json").read_text(encoding="utf-8"))["quantized_linears"])
    except (OSError, ValueError, KeyError, TypeError):
        return default


def _check_quantizers(flag: str, name: str, address: str, model: nn.Module) -> None:
    """Raises UsageError where training quantized other Linears than a folder has quantizers for."""
    found, _ = quantized_linears(model)
    trained = _quantized_in_training(Path(address), found)
    if trained == found:
        return
    if not (Path(address) / QUANTIZATION_FILE).is_file():
        raise UsageError(
            f"{flag} {name}: training quantized {trained} Linears, and {QUANTIZATION_FILE}, which holds their scales, "
            "is missing. Copy it from the training run"
        )
    raise UsageError(
        f"{flag} {name}: training quantized {trained} Linears, and {QUANTIZATION_FILE} has scales of {found}. Copy "
        "that file again from the training run"
    )


def _load_named(flag: str, name: str, **source: Any) -> nn.Module:
    """`model_files.load`, with errors that name the flag that the model was asked for by."""
    address = model_address(flag, name, source.get("cache_dir"))
    _check_pointers(flag, name, address)
    try:
        model = load(address, **source)
    except UsageError as error:
        raise UsageError(f"{flag}: {error}") from error
    except _LOADING_ERRORS as error:
        raise _unreadable(flag, name, address, error) from error
    _check_quantizers(flag, name, address, model)
    return model


def head_of(model: nn.Module) -> Head:
    """Returns the labels of a model in the order of its outputs, and its problem type."""
    return head_in(cast(Any, model).config, "config.json")


def load_tokenizer(arguments: TextClassificationArguments) -> Any:
    """Returns the tokenizer: --tokenizer_name's, the teacher's with --use_teacher_tokenizer, else the model's."""
    source = {"revision": arguments.model_revision, "cache_dir": arguments.cache_dir}
    own = str(arguments.model_name_or_path)
    if arguments.use_teacher_tokenizer:
        flag, name = "--use_teacher_tokenizer", str(arguments.distill_teacher)
    elif arguments.tokenizer_name:
        flag, name = "--tokenizer_name", arguments.tokenizer_name
    else:
        return _tokenizer("--model_name_or_path", own, **source)
    tokenizer = _tokenizer(flag, name, **source)
    with contextlib.suppress(UsageError):  # the model may have no tokenizer of its own
        _warn_of_other_pieces(f"{flag} {name}", tokenizer, _tokenizer("--model_name_or_path", own, **source))
    return tokenizer


def _warn_of_other_pieces(what: str, tokenizer: Any, own: Any) -> None:
    """Warns where a tokenizer numbers pieces of text otherwise than the model's own, which its embeddings belong to."""
    numbers, own_numbers = tokenizer.get_vocab(), own.get_vocab()
    differ = [piece for piece in sorted(numbers, key=numbers.get) if own_numbers.get(piece) != numbers[piece]]
    if differ:
        examples = ", ".join(f"{piece!r} {numbers[piece]} (there {own_numbers.get(piece)})" for piece in differ[:3])
        warn(
            f"{what} is another vocabulary than the model's own: {len(differ)} of {len(numbers)} pieces have other "
            f"numbers, such as {examples}. The model's embeddings are those of other pieces"
        )


def _tokenizer(flag: str, name: str, **source: Any) -> Any:
    """Returns the tokenizer of a folder or id, with errors that name the flag that it was asked for by."""
    address = model_address(flag, name, source.get("cache_dir"))
    _check_pointers(flag, name, address)
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
    named = getattr(model.config, "max_position_embeddings", None) or 0
    limits = [int(tokenizer.model_max_length), *([named] if named > 0 else [])]  # XLNet says -1: no limit
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # Many a model counts positions from the one after its padding token's: those up to it hold no token.
            used = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - used)
    return min(limits)


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
    own, other = head_of(student).names, head_of(model).names
    order = label_order(own, other)
    if by_place := taken_by_position(dict(zip(own, (other[column] for column in order), strict=True))):
        warn(
            f"--distill_teacher {name}: its labels have other names than the data's, and are taken in order: {by_place}"
        )
    return Teacher(model, order), tokenizer


def _check_pointers(flag: str, name: str, address: str) -> None:
    """Raises UsageError where a folder of a model holds Git LFS pointers in place of its files."""
    folder = Path(address)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix in (".json", ".safetensors", ".bin", ".txt", ".model") and (error := lfs_pointer_error(path)):
            raise UsageError(f"{flag} {name}: {error}")


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
