"""Loading models and tokenizers by folder or Hub id, with errors that say what was tried."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from transformers import AutoConfig, AutoTokenizer

from sparse_accel.console import warn
from sparse_accel.errors import UsageError, with_article
from sparse_accel.files import lfs_pointer_error
from sparse_accel.hub import last_hub_warning, model_address, not_found_error, reading_model
from sparse_accel.models.files import QUANTIZATION_FILE, load_as, read_model
from sparse_accel.models.teacher import Teacher, label_order
from sparse_accel.nn.layers import quantized_linears
from sparse_accel.tasks import MaskedLanguageModeling, Task, task_class
from sparse_accel.tasks.label_names import Head, describe_positions, head_in
from sparse_accel.tasks.sentence_embedding.folder import settings_in

if TYPE_CHECKING:
    from sparse_accel.cli.training import TrainingArguments


def fine_tuned_head(arguments: TrainingArguments, task: type[Task]) -> Head | None:
    """Returns the head of the model that a run starts from; None for a model without one, or with --new_head.

    config.json decides or, if it names no head, the weights do.

    Args:
        arguments: name the model.
        task: the task of the head.

    Raises:
        UsageError: the model's config.json cannot be read, or contradicts itself.
    """
    config = _own_config(arguments)
    if arguments.new_head or not task.architecture or _has_head(config, task) is False:
        return None
    head = head_in(config, f"--model_name_or_path {arguments.model_name_or_path}")
    if _has_head(config, task) is None and load_model(arguments, task)[1]:
        return None
    return head


def default_head(arguments: TrainingArguments) -> Head:
    """Returns the head of the model or, without a fine-tuned one, the head that its config.json describes.

    Raises:
        UsageError: the model's config.json cannot be read, or contradicts itself.
    """
    return head_in(_own_config(arguments), f"--model_name_or_path {arguments.model_name_or_path}")


def _own_config(arguments: TrainingArguments) -> Any:
    """The model's own configuration, which names its outputs; that of --config_name if the model has none."""
    try:
        return _read_config(arguments, "--model_name_or_path", str(arguments.model_name_or_path))
    except UsageError:
        if not arguments.config_name:
            raise
        return _read_config(arguments, "--config_name", arguments.config_name)


def _read_config(arguments: TrainingArguments, flag: str, name: str) -> Any:
    address = model_address(flag, name, arguments.cache_dir)
    _check_pointers(flag, name, address)
    with reading_model(f"{flag} {name}", address):
        return AutoConfig.from_pretrained(address, revision=arguments.model_revision, cache_dir=arguments.cache_dir)


def _has_head(config: Any, task: type[Task]) -> bool | None:
    """Whether a configuration belongs to a model with a task's head; None if it names no head, or only an encoder."""
    kinds = [kind for kind in getattr(config, "architectures", None) or [] if "For" in kind]
    return bool(task.architecture) and any(kind.endswith(task.architecture) for kind in kinds) if kinds else None


def load_model(arguments: TrainingArguments, task: Task | type[Task]) -> tuple[Any, list[str]]:
    """Returns a float32 model with the task's head, and the names of its newly initialized weights.

    Args:
        arguments: name the model.
        task: gives the labels, and whether to keep the model's own head; otherwise, and for a language model, the head
            is newly initialized. For a class, labels and head are the model's own.

    Raises:
        UsageError: the model cannot be read, or config.json and weights do not match: only the head may be missing.
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
        kind.configure_untrained(config, own_head.names, arguments)
    _check_pointers(flag, name, address)
    source: dict[str, Any] = {"revision": arguments.model_revision, "cache_dir": arguments.cache_dir}
    with reading_model(f"{flag} {name}", address, prefix=f"{flag} {name}: "):
        return read_model(address, kind, config=config, keeps_head=keeps_head, may_be_new=True, **source)


def load_trained(arguments: TrainingArguments, task: type[Task]) -> nn.Module:
    """Returns the model of --model_name_or_path as it was trained, quantizers on, for evaluation and prediction.

    Raises:
        UsageError: the model cannot be read, belongs to another task, or its quantizers are incomplete.
    """
    name = str(arguments.model_name_or_path)
    source = {"revision": arguments.model_revision, "cache_dir": arguments.cache_dir}
    return _load_named("--model_name_or_path", name, task, **source)


def load_for_export(name: str, task: type[Task]) -> tuple[nn.Module, Any, int]:
    """Returns a trained model with its quantizers on, its tokenizer, and the maximum number of tokens of both.

    Raises:
        UsageError: the model cannot be read, has the head of another task, or its quantizers are incomplete.
    """
    flag = "--model_path"
    address = model_address(flag, name)
    _check_pointers(flag, name, address)
    with reading_model(f"{flag} {name}", address):
        config = AutoConfig.from_pretrained(address)
    if _has_head(config, task) is False:
        raise UsageError(
            f"{flag} {name} is {with_article(config.architectures[0])}, which does not {task.purpose}: --task "
            f"{task.name} needs {f'a model {task.architecture}' if task.architecture else 'an encoder without a head'}"
        )
    model = _load_named(flag, name, task)
    tokenizer = _tokenizer(flag, name, task)
    return model, tokenizer, max_length(tokenizer, model)


def _quantized_in_training(folder: Path, default: int) -> int:
    """How many Linears the run that wrote an output folder quantized; `default` without a record."""
    try:
        return int(json.loads((folder / "train_results.json").read_text(encoding="utf-8"))["quantized_linears"])
    except (OSError, ValueError, KeyError, TypeError):
        return default


def _check_quantizers(flag: str, name: str, address: str, model: nn.Module) -> None:
    """Raises UsageError if training quantized more or fewer Linears than the folder has quantizers for."""
    found, _ = quantized_linears(model)
    trained = _quantized_in_training(Path(address), found)
    if trained == found:
        return
    if not (Path(address) / QUANTIZATION_FILE).is_file():
        raise UsageError(
            f"{flag} {name}: training quantized {trained} Linears, but {QUANTIZATION_FILE} with their scales is "
            "missing. Copy it from the training run"
        )
    raise UsageError(
        f"{flag} {name}: training quantized {trained} Linears, but {QUANTIZATION_FILE} has scales for {found}. Copy "
        "that file again from the training run"
    )


def _load_named(flag: str, name: str, task: type[Task], **source: Any) -> nn.Module:
    """`files.load_as`, with errors that name the flag the model was given by."""
    address = model_address(flag, name, source.get("cache_dir"))
    _check_pointers(flag, name, address)
    with reading_model(f"{flag} {name}", address, prefix=f"{flag}: "):
        # A language model is a start for other tasks: `load_as` says that it lacks their head.
        kind = task_class(AutoConfig.from_pretrained(address, **source))
        if kind not in (None, MaskedLanguageModeling) and not issubclass(task, kind):
            raise UsageError(f"{name} was trained for {kind.name}, not for {task.name}")
        model = load_as(address, task, **source)
    _check_quantizers(flag, name, address, model)
    return model


def head_of(model: nn.Module) -> Head:
    """Returns the head of a model: its labels in the order of the outputs, and its problem type."""
    return head_in(cast(Any, model).config, "config.json")


def load_tokenizer(arguments: TrainingArguments, task: type[Task]) -> Any:
    """Returns the tokenizer of the teacher (--use_teacher_tokenizer), of --tokenizer_name, or else of the model.

    Raises:
        UsageError: the tokenizer cannot be read.
    """
    source = {"revision": arguments.model_revision, "cache_dir": arguments.cache_dir}
    own = str(arguments.model_name_or_path)
    if arguments.use_teacher_tokenizer:
        flag, name = "--use_teacher_tokenizer", str(arguments.distill_teacher)
    elif arguments.tokenizer_name:
        flag, name = "--tokenizer_name", arguments.tokenizer_name
    else:
        return _tokenizer("--model_name_or_path", own, task, **source)
    tokenizer = _tokenizer(flag, name, task, **source)
    with contextlib.suppress(UsageError):  # the model may not have its own tokenizer
        _warn_of_other_vocabulary(f"{flag} {name}", tokenizer, _tokenizer("--model_name_or_path", own, task, **source))
    return tokenizer


def _warn_of_other_vocabulary(what: str, tokenizer: Any, own: Any) -> None:
    """Warns if a tokenizer has other token ids than the model's own, because the embeddings belong to the latter."""
    numbers, own_numbers = tokenizer.get_vocab(), own.get_vocab()
    differ = [piece for piece in sorted(numbers, key=numbers.get) if own_numbers.get(piece) != numbers[piece]]
    if differ:
        examples = ", ".join(f"{piece!r} {numbers[piece]} (there {own_numbers.get(piece)})" for piece in differ[:3])
        warn(
            f"{what} has another vocabulary than the model: {len(differ)} of {len(numbers)} tokens have other ids, "
            f"such as {examples}. The model's embeddings do not belong to these tokens"
        )


def _tokenizer(flag: str, name: str, task: type[Task], **source: Any) -> Any:
    """Returns the tokenizer of a folder or id, with errors that name the flag it was given by."""
    address = model_address(flag, name, source.get("cache_dir"))
    _check_pointers(flag, name, address)
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
    with reading_model(f"{flag} (its tokenizer) {name}", address):
        tokenizer = AutoTokenizer.from_pretrained(address, **source, **task.tokenizer_options(address, **source))
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        # If the files are missing, transformers returns an empty tokenizer for which every word is unknown.
        if warning := last_hub_warning(address):
            raise not_found_error(f"{flag} (its tokenizer) {name}", address, "model", warning)
        place = "the folder" if Path(address).is_dir() else f"{address} on the Hub"
        raise UsageError(f"{flag} {name}: {place} has no tokenizer files. Copy them from the model's origin")
    return tokenizer


def max_length(tokenizer: Any, model: nn.Module) -> int:
    """Returns the maximum number of tokens that both tokenizer and model accept."""
    named = getattr(model.config, "max_position_embeddings", None) or 0
    limits = [int(tokenizer.model_max_length), *([named] if named > 0 else [])]  # XLNet says -1: no limit
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # Many models count positions from padding_idx + 1: the positions up to padding_idx are unused.
            used = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - used)
    if (settings := settings_in(model.config, "the model")) is not None and settings.max_seq_length:
        limits.append(settings.max_seq_length)  # an embedding is of so many tokens, wherever it is computed
    return min(limits)


def load_teacher(arguments: TrainingArguments, student: nn.Module, task: Task) -> tuple[Teacher, Any]:
    """Returns the teacher and its tokenizer (None for `self`: a frozen copy of the student before training).

    Raises:
        UsageError: the teacher cannot be read, or its labels differ from the student's.
    """
    name = arguments.distill_teacher
    assert name is not None
    if name == "self":
        if not task.data.keeps_head:
            warn("--distill_teacher self: the model has no trained head for these labels, so the teacher is random")
        return Teacher(copy.deepcopy(student), task=task), None
    model = _load_named("--distill_teacher", name, type(task), cache_dir=arguments.cache_dir)
    tokenizer = _tokenizer("--distill_teacher", name, type(task), cache_dir=arguments.cache_dir)
    task.check_teacher(name, student, model)
    if not task.head.names:  # its outputs are the tokens of the vocabulary, or the numbers of an embedding
        return Teacher(model, task=task), tokenizer
    own, other = head_of(student).names, head_of(model).names
    order = label_order(own, other)
    if by_place := describe_positions(dict(zip(own, (other[column] for column in order), strict=True))):
        warn(f"--distill_teacher {name}: labels are matched by position, not by name: {by_place}")
    return Teacher(model, order, task=task), tokenizer


def _check_pointers(flag: str, name: str, address: str) -> None:
    """Raises UsageError if a model folder contains Git LFS pointers instead of its files."""
    folder = Path(address)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix in (".json", ".safetensors", ".bin", ".txt", ".model") and (error := lfs_pointer_error(path)):
            raise UsageError(f"{flag} {name}: {error}")
