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
from sparse_accel.models.files import QUANTIZATION_FILE, load_as, read_model
from sparse_accel.models.teacher import Teacher, label_order
from sparse_accel.nn.layers import quantized_linears
from sparse_accel.tasks import Task, task_class
from sparse_accel.tasks.label_names import Head, head_in, set_labels, taken_by_position

if TYPE_CHECKING:
    from sparse_accel.cli.training import TrainingArguments

# What transformers raises for a folder or id that is wrong or out of reach.
_LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError, pickle.UnpicklingError)


def fine_tuned_head(arguments: TrainingArguments, task: type[Task]) -> Head | None:
    """Returns the head of the model that a run starts from; None for a model without one, or where --new_head asks.

    Its config.json tells, or, where that says nothing of a head, its weights.

    Args:
        arguments: which model.
        task: whose head it is.

    Raises:
        UsageError: its config.json cannot be read, or contradicts itself.
    """
    config = _own_config(arguments)
    if arguments.new_head or _has_head(config, task) is False:
        return None
    head = head_in(config, f"--model_name_or_path {arguments.model_name_or_path}")
    if _has_head(config, task) is None and load_model(arguments, task)[1]:
        return None
    return head


def default_head(arguments: TrainingArguments) -> Head:
    """Returns the head that the model has or, without a fine-tuned one, would get by its config.json.

    Raises:
        UsageError: its config.json cannot be read, or contradicts itself.
    """
    return head_in(_own_config(arguments), f"--model_name_or_path {arguments.model_name_or_path}")


def _own_config(arguments: TrainingArguments) -> Any:
    """The model's own configuration, which names its outputs; --config_name's where it has none."""
    try:
        return _read_config(arguments, "--model_name_or_path", str(arguments.model_name_or_path))
    except UsageError:
        if not arguments.config_name:
            raise
        return _read_config(arguments, "--config_name", arguments.config_name)


def _read_config(arguments: TrainingArguments, flag: str, name: str) -> Any:
    address = model_address(flag, name, arguments.cache_dir)
    _check_pointers(flag, name, address)
    try:
        return AutoConfig.from_pretrained(address, revision=arguments.model_revision, cache_dir=arguments.cache_dir)
    except _LOADING_ERRORS as error:
        raise _unreadable(flag, name, address, error) from error


def _has_head(config: Any, task: type[Task]) -> bool | None:
    """Whether a configuration is of a model with a task's head; None where it names no head, or only an encoder."""
    kinds = [kind for kind in getattr(config, "architectures", None) or [] if "For" in kind]
    return any(kind.endswith(task.architecture) for kind in kinds) if kinds else None


def load_model(arguments: TrainingArguments, task: Task | type[Task]) -> tuple[Any, list[str]]:
    """Returns a model with the task's head, float32, and the names of its weights that are newly initialized.

    Args:
        arguments: which model.
        task: says the labels, and whether the model's own head is kept; otherwise its head is a new one, as is the one
            that a language model lacks. A class: labels and head are the model's own.

    Raises:
        UsageError: nothing can be read there, or config.json and weights do not fit together: only a head may be new.
    """
    flag, name = "--model_name_or_path", str(arguments.model_name_or_path)
    config, address = _own_config(arguments), model_address(flag, name, arguments.cache_dir)
    kind = task if isinstance(task, type) else type(task)
    own_head = head_in(config, f"{flag} {name}")
    keeps_head = task.data.keeps_head if isinstance(task, Task) else _has_head(config, kind) is not False
    if arguments.config_name:
        config = _read_config(arguments, "--config_name", arguments.config_name)
    if isinstance(task, Task):
        task.configure(config)
    else:
        set_labels(config, own_head.names)
    _check_pointers(flag, name, address)
    source: dict[str, Any] = {"revision": arguments.model_revision, "cache_dir": arguments.cache_dir}
    try:
        return read_model(address, kind, config=config, keeps_head=keeps_head, may_be_new=True, **source)
    except UsageError as error:
        raise UsageError(f"{flag} {name}: {error}") from error
    except _LOADING_ERRORS as error:
        raise _unreadable(flag, name, address, error) from error


def load_trained(arguments: TrainingArguments, task: type[Task]) -> nn.Module:
    """Returns the model of an output folder as it was trained, quantizers on, for evaluation and prediction."""
    name = str(arguments.model_name_or_path)
    source = {"revision": arguments.model_revision, "cache_dir": arguments.cache_dir}
    return _load_named("--model_name_or_path", name, task, **source)


def load_for_export(name: str, task: type[Task]) -> tuple[nn.Module, Any, int]:
    """Returns a trained model with its quantizers on, its tokenizer, and the most tokens that both take.

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
    if _has_head(config, task) is False:
        raise UsageError(
            f"{flag} {name} holds a {config.architectures[0]}, which does not {task.purpose}: --task {task.name} needs "
            f"a model {task.architecture}"
        )
    model = _load_named(flag, name, task)
    tokenizer = _tokenizer(flag, name, task)
    return model, tokenizer, max_length(tokenizer, model)


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


def _load_named(flag: str, name: str, task: type[Task], **source: Any) -> nn.Module:
    """`files.load_as`, with errors that name the flag that the model was asked for by."""
    address = model_address(flag, name, source.get("cache_dir"))
    _check_pointers(flag, name, address)
    try:
        if (kind := task_class(AutoConfig.from_pretrained(address, **source))) not in (None, task):
            raise UsageError(f"{name} was trained for {kind.name}, not for {task.name}")
        model = load_as(address, task, **source)
    except UsageError as error:
        raise UsageError(f"{flag}: {error}") from error
    except _LOADING_ERRORS as error:
        raise _unreadable(flag, name, address, error) from error
    _check_quantizers(flag, name, address, model)
    return model


def head_of(model: nn.Module) -> Head:
    """Returns the labels of a model in the order of its outputs, and its problem type."""
    return head_in(cast(Any, model).config, "config.json")


def load_tokenizer(arguments: TrainingArguments, task: type[Task]) -> Any:
    """Returns the tokenizer: --tokenizer_name's, the teacher's with --use_teacher_tokenizer, else the model's."""
    source = {"revision": arguments.model_revision, "cache_dir": arguments.cache_dir}
    own = str(arguments.model_name_or_path)
    if arguments.use_teacher_tokenizer:
        flag, name = "--use_teacher_tokenizer", str(arguments.distill_teacher)
    elif arguments.tokenizer_name:
        flag, name = "--tokenizer_name", arguments.tokenizer_name
    else:
        return _tokenizer("--model_name_or_path", own, task, **source)
    tokenizer = _tokenizer(flag, name, task, **source)
    with contextlib.suppress(UsageError):  # the model may have no tokenizer of its own
        _warn_of_other_pieces(f"{flag} {name}", tokenizer, _tokenizer("--model_name_or_path", own, task, **source))
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


def _tokenizer(flag: str, name: str, task: type[Task], **source: Any) -> Any:
    """Returns the tokenizer of a folder or id, with errors that name the flag that it was asked for by."""
    address = model_address(flag, name, source.get("cache_dir"))
    _check_pointers(flag, name, address)
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
    try:
        tokenizer = AutoTokenizer.from_pretrained(address, **source, **task.tokenizer_options(address, **source))
    except _LOADING_ERRORS as error:
        raise _unreadable(f"{flag} (its tokenizer)", name, address, error) from error
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        # transformers makes an empty one of the right class where the files are missing: every word is unknown to it.
        if complaint := hub_complaint(address):
            raise out_of_reach(f"{flag} (its tokenizer) {name}", address, "model", complaint)
        place = "the folder" if Path(address).is_dir() else f"{address} on the Hub"
        raise UsageError(f"{flag} {name}: {place} has no tokenizer files. Copy them from the model's origin")
    return tokenizer


def max_length(tokenizer: Any, model: nn.Module) -> int:
    """Returns the most tokens that tokenizer and model take."""
    named = getattr(model.config, "max_position_embeddings", None) or 0
    limits = [int(tokenizer.model_max_length), *([named] if named > 0 else [])]  # XLNet says -1: no limit
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # Many a model counts positions from the one after its padding token's: those up to it hold no token.
            used = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - used)
    return min(limits)


def load_teacher(arguments: TrainingArguments, student: nn.Module, task: Task) -> tuple[Teacher, Any]:
    """Returns the teacher and its own tokenizer (None for `self`, a frozen copy of the student as it starts).

    Raises:
        UsageError: it cannot be read, or its labels are others.
    """
    name = arguments.distill_teacher
    assert name is not None
    if name == "self":
        if not task.data.keeps_head:
            warn("--distill_teacher self: the model has no head for these labels yet, so as a teacher it is random")
        return Teacher(copy.deepcopy(student), task=task), None
    model = _load_named("--distill_teacher", name, type(task), cache_dir=arguments.cache_dir)
    tokenizer = _tokenizer("--distill_teacher", name, type(task), cache_dir=arguments.cache_dir)
    own, other = head_of(student).names, head_of(model).names
    order = label_order(own, other)
    if by_place := taken_by_position(dict(zip(own, (other[column] for column in order), strict=True))):
        warn(
            f"--distill_teacher {name}: its labels have other names than the data's, and are taken in order: {by_place}"
        )
    return Teacher(model, order, task=task), tokenizer


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
