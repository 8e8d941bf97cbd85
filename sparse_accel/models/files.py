"""The files of a trained model: a plain Hugging Face folder, plus a file with the quantizers.

`from_pretrained(folder)` of transformers' AutoModelFor... loads the sparse float model; `load(folder)` here loads the
model as it was trained, with quantizers on. Their accuracies differ.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig

from sparse_accel.console import warn
from sparse_accel.distributed.collectives import by_main_process
from sparse_accel.distributed.weights import full_state_dict, plain_model
from sparse_accel.errors import UsageError, listed
from sparse_accel.files import write_json, write_text
from sparse_accel.fingerprints import fingerprint
from sparse_accel.hub import model_address, reading_model
from sparse_accel.nn.blocks import without_skipped
from sparse_accel.nn.fake_quantize import FakeQuantize, QuantizationScheme
from sparse_accel.nn.layers import add_input_quantizer, make_sparse, masks, quantizers, takes_input_quantizer
from sparse_accel.nn.pooling import PooledEncoder
from sparse_accel.nn.structure_removal import remove_zero_units
from sparse_accel.tasks import Task, TextClassification, task_class
from sparse_accel.tasks.label_names import head_in, set_labels

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn


# Otherwise transformers starts a thread that asks a Hub service to convert weights of the older format.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
QUANTIZATION_FILE = "quantization.json"
_VERSION = 1


def save_model(folder: Path, accelerator: Accelerator, model: nn.Module, tokenizer: Any) -> None:
    """Writes configuration, weights, tokenizer and quantizers of a prepared model. All processes must call it.

    The weights are float32 with exact zeros where masks prune, under the names that transformers uses.
    """
    plain = plain_model(accelerator, model)
    task = task_class(plain.config)
    extra_files = {} if task is None else task.extra_files(plain, tokenizer)

    def write() -> None:
        pruned = {id(weights[name]): weights[name].masked_fill(~mask.cpu(), 0.0) for name, mask in masks(plain).items()}
        folder.mkdir(parents=True, exist_ok=True)
        # A weight that several layers share stays one tensor, so that it is written once.
        state = {name: pruned.get(id(weight), weight) for name, weight in weights.items()}
        plain.save_pretrained(folder, state_dict=state)
        save_tokenizer(tokenizer, folder)
        write_quantizers(folder, plain)
        for name, content in extra_files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            write_json(folder / name, content)

    with without_skipped(plain):  # dropped layers are not in the files, and later layers have the numbers after them
        weights = dict(full_state_dict(accelerator, model))
        by_main_process(accelerator, write)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes a tokenizer without the truncation and padding that its last call left in it, and that each call sets.

    Else tokenizer.json would depend on whether the rows were tokenized in this process or came from the cache. Settings
    of its own are lost in tokenizer.json too; transformers has them in tokenizer_config.json.
    """
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        backend.no_truncation()
        backend.no_padding()
    tokenizer.save_pretrained(folder)


def write_quantizers(folder: Path, model: nn.Module) -> None:
    """Writes quantization.json: scheme, range, scale and zero point of each active quantizer; no file without any."""
    entries = {
        name: {
            **quantizer.scheme.to_dict(),
            "minimum": quantizer.minimum.tolist(),
            "maximum": quantizer.maximum.tolist(),
            "scale": quantizer.scale.tolist(),
            "zero_point": quantizer.zero_point.tolist(),
        }
        for name, quantizer in quantizers(model).items()
        if quantizer.enabled and quantizer.ready
    }
    if entries:
        text = json.dumps({"version": _VERSION, "quantizers": entries}, indent=1)
        write_text(folder / QUANTIZATION_FILE, text + "\n")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Makes transformers print only errors inside the block."""
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


def load(folder: str | Path, *, remove_structure: bool = False, **options: Any) -> nn.Module:
    """Returns the model of an output folder as it was trained, in eval mode, with quantizers on and the task's head.

    Args:
        folder: written by a training script, or the Hub id of such a folder. Another Hugging Face folder or id, or a
            `zoo:` stub, gives a plain model.
        remove_structure: whether to remove the heads and neurons whose weights are all zero. The smaller model computes
            the same; a folder that it is saved to loads only if config.json can describe it, see
            `nn.structure_removal.remove_zero_units`.
        options: passed to `from_pretrained` of transformers' class with that head.

    Raises:
        UsageError: trust_remote_code is on; there is no such folder or id, or it contains no readable model, no head, a
            config.json that does not match the weights, or a quantization.json that does not match the model; or
            structure of this architecture cannot be removed.
    """
    address = model_address("sparse_accel.load", str(folder), options.get("cache_dir"))
    source = {name: options[name] for name in ("revision", "cache_dir") if name in options}
    if options.get("trust_remote_code"):
        raise UsageError("sparse_accel.load: trust_remote_code is not supported: code from a model folder is never run")
    with_options = f" with {', '.join(options)}" if options else ""
    with reading_model(f"sparse_accel.load {folder}{with_options}", address):
        config = options.get("config") or AutoConfig.from_pretrained(address, **source)
        model = load_as(address, task_class(config) or TextClassification, **options)
    if remove_structure:
        _remove_structure(model, str(folder))
    return model


def _remove_structure(model: nn.Module, name: str) -> None:
    try:
        removal = remove_zero_units(model)
    except ValueError as error:
        raise UsageError(f"{name}: {error}. Load it without remove_structure=True") from error
    for reason in removal.kept:
        warn(f"{name}: {reason}")
    if not removal.units:
        warn(f"{name}: remove_structure=True removed nothing: no head or neuron has only zeros")


def load_as(folder: str, task: type[Task], **options: Any) -> nn.Module:
    """Returns the same as `load`, for a folder or Hub id and a given task.

    Raises:
        UsageError: see `load`.
    """
    try:
        model, _ = read_model(folder, task, keeps_head=True, may_be_new=False, **options)
    except UsageError as error:
        raise UsageError(f"{folder}: {error}") from error
    set_labels(model.config, head_in(model.config, folder).names)
    source = {name: options[name] for name in ("revision", "cache_dir") if options.get(name)}
    if (path := quantizer_file(folder, **source)) is not None:
        read_quantizers(path, model)
    return model.eval()


def quantizer_file(folder: str, **source: Any) -> Path | None:
    """Returns the path of a model's quantization.json, downloaded for a Hub id; None if the model has none.

    Args:
        folder: a folder or a Hub id.
        source: revision and cache_dir of a Hub id.

    Raises:
        OSError: the Hub cannot be reached, and the cache does not say.
    """
    if Path(folder).is_dir():
        path = Path(folder) / QUANTIZATION_FILE
        return path if path.is_file() else None
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    unreachable: Exception | None = None
    try:
        return Path(hf_hub_download(folder, QUANTIZATION_FILE, **source))
    except LocalEntryNotFoundError as error:
        unreachable = error
    except EntryNotFoundError:
        return None
    found = try_to_load_from_cache(folder, QUANTIZATION_FILE, **source)  # a path, a mark that there is none, or None
    if found is None and not constants.is_offline_mode():
        raise unreachable
    if found is None:
        warn(
            f"{folder}: HF_HUB_OFFLINE is set, and the cache does not say whether this model is quantized "
            f"({QUANTIZATION_FILE}): it is used as a float model. Fetch it once with scripts/prefetch.py"
        )
    return Path(found) if isinstance(found, str) else None


# --- weights ----------------------------------------------------------------------------------------------------------


def read_model(
    address: str, task: type[Task], *, config: Any = None, keeps_head: bool, may_be_new: bool, **source: Any
) -> tuple[Any, list[str]]:
    """Returns a float32 model with a task's head, and the sorted names of its newly initialized weights.

    Args:
        address: folder or Hub id.
        task: the task of the head.
        config: of the model; None reads it from `address`.
        keeps_head: whether to keep the head in the file; otherwise its output layer is newly initialized.
        may_be_new: whether the head may be missing in the file; True for training.
        source: for `from_pretrained`: revision, cache_dir, ...

    Raises:
        UsageError: config.json and weights do not match (the message names a tensor and its shapes), the head is
            missing, or the file is a quantized checkpoint of SparseML.
    """
    auto_class: Any = getattr(transformers, f"AutoModel{task.architecture}")
    options: dict[str, Any] = {"dtype": torch.float32, "ignore_mismatched_sizes": True, **source}
    if config is not None:
        options["config"] = config

    def read(**more: Any) -> tuple[Any, dict[str, Any]]:
        with quiet_transformers():  # hides its report on missing weights; it is checked below
            found: tuple[Any, dict[str, Any]] = auto_class.from_pretrained(
                address, output_loading_info=True, **options, **more
            )
        return found

    model, info = read()
    if any(_OF_SPARSEML.search(key) for key in info["unexpected_keys"]):
        if not may_be_new:
            raise UsageError(
                "this checkpoint was saved by SparseML after quantization-aware training. Its weights can be read, its "
                "quantization ranges cannot: start from it with a training script, --do_train or --one_shot, and a "
                "recipe that quantizes"
            )
        renamed, info = read(key_mapping={_OF_SPARSEML.pattern: r".\1"})
        # A second model, because the renamed one would be saved under the names it was read from.
        model = auto_class.from_config(renamed.config, dtype=torch.float32)
        model.load_state_dict(renamed.state_dict())
        warn(f"{address} was saved by SparseML after quantization-aware training: its weights are used, its ranges not")
    model = task.complete(model, address, **source)
    fresh = _newly_initialized(model, info, keeps_head, may_be_new)
    if not keeps_head:
        fresh += _initialize_outputs(model, fresh)
    return model, sorted(fresh)


# SparseML wrapped each quantized layer: `dense.module.weight` next to `dense.quant...` and `...weight_fake_quant...`.
_OF_SPARSEML = re.compile(r"\.module\.(weight|bias)$")


def _newly_initialized(model: Any, info: Mapping[str, Any], keeps_head: bool, may_be_new: bool) -> list[str]:
    """Returns the weights that the file does not contain, or contains for another number of labels.

    Args:
        info: the loading info of `from_pretrained`: missing_keys, mismatched_keys (name, shape in the file, shape in
            the model), unexpected_keys.

    Raises:
        UsageError: some of them do not belong to the head, or the file has blocks that the model does not have.
    """
    # The names in an encoder without a head have no prefix.
    base, prefix = _base_of(model), f"{model.base_model_prefix}."
    known = model.state_dict().keys()
    missing, shapes = (
        sorted(key for key in info["missing_keys"] if key in known),  # without what the task leaves out
        sorted(key for key in info["mismatched_keys"] if key[0] in known),
    )
    outputs = [name for name, _ in _output_layers(model)]
    headless = may_be_new and (not keeps_head or all(f"{name}.weight" in missing for name in outputs))
    wrong = [entry for entry in shapes if keeps_head or entry[0].startswith(base)]
    if wrong:
        name, in_file, in_model = wrong[0]
        raise UsageError(
            f"config.json and weights belong to different models: {name} is {_times(in_file)} in the file, but "
            f"{_times(in_model)} by config.json{_and_more(wrong)}. Copy both from the same model"
        )
    absent = [name for name in missing if not headless or not _is_of_head(name, base)]
    if absent and not may_be_new and all(_is_of_head(name, base) for name in absent):
        absent.sort(key=lambda name: name.startswith(base))  # list the classifier before the pooler
        raise UsageError(f"no trained head: weights are missing ({listed(absent, 4)}). Train the model first")
    if absent:
        raise UsageError(
            f"config.json and weights belong to different models: the file has no weights for {absent[0]} "
            f"({_times(model.state_dict()[absent[0]].shape)} by config.json){_and_more(absent)}. Copy both from "
            "the same model"
        )
    modules = {name for name, _ in model.named_modules()}
    # A file with only the encoder has names without its prefix.
    unexpected = {name: (name, base + name, name.removeprefix(prefix)) for name in info["unexpected_keys"]}
    blocks = [(name, _BLOCK.match(each)) for name, spelled in unexpected.items() for each in spelled]
    beyond = sorted(name for name, found in blocks if found and found[1] in modules and found[0] not in modules)
    if beyond:
        raise UsageError(
            f"config.json and weights belong to different models: the file has {beyond[0]}{_and_more(beyond)}, but by "
            "config.json the model has no such block. Correct its number of layers; to drop layers on purpose, load "
            "the model with fewer layers in transformers and save it first"
        )
    return missing + [name for name, _, _ in shapes]


# The name of a list of blocks, and of one of its blocks.
_BLOCK = re.compile(r"(.*?)\.\d+(?=\.)")


def _is_of_head(name: str, base: str) -> bool:
    """Whether a weight belongs to the head: it is outside the encoder, or in its pooler, which language models lack."""
    return not name.startswith(base) or "pooler" in name.split(".")


def _base_of(model: Any) -> str:
    """What the names of the encoder's weights begin with; nothing in an encoder without a head."""
    return "" if model.base_model is model else f"{model.base_model_prefix}."


def _output_layers(model: Any) -> list[tuple[str, nn.Linear]]:
    """The layers of the head that give one value per label."""
    base = _base_of(model)
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == model.config.num_labels
        and not name.startswith(base)
    ]


@torch.no_grad()
def _initialize_outputs(model: Any, fresh: list[str]) -> list[str]:
    """Newly initializes output layers that the file contains with the right size, but for other labels."""
    replaced = []
    for name, layer in _output_layers(model):
        if f"{name}.weight" not in fresh:
            layer.weight.normal_(0.0, getattr(model.config, "initializer_range", 0.02))
            replaced += [f"{name}.{which}" for which, _ in layer.named_parameters()]
            if layer.bias is not None:
                layer.bias.zero_()
    return replaced


def _times(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape)


def _and_more(entries: Sequence[Any]) -> str:
    return f" (and {len(entries) - 1} more)" if len(entries) > 1 else ""


# --- quantizers -------------------------------------------------------------------------------------------------------


def read_quantizers(path: Path, model: nn.Module) -> None:
    """Adds the quantizers of a file to a plain model, on and with frozen ranges.

    Args:
        path: of quantization.json.

    Raises:
        UsageError: the file cannot be read, is from a newer version, or belongs to another model.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, entries = content["version"], dict(content["quantizers"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a quantizer file ({error}): copy it again from the training run") from error
    if version != _VERSION:
        raise UsageError(
            f"{path} has version {version}, but this sparse_accel reads version {_VERSION}: install a newer one"
        )
    modules = dict(model.named_modules())
    for name, entry in entries.items():
        layer_name, _, which = name.rpartition(".")
        layer, quantizer = modules.get(layer_name), _quantizer(path, name, entry)
        try:
            if layer is not None and takes_input_quantizer(layer) and which == "input_quantizer":
                add_input_quantizer(layer, quantizer)
            elif layer is not None and which in ("input_quantizer", "weight_quantizer", "output_quantizer"):
                setattr(make_sparse(layer), which, quantizer)
            else:
                raise TypeError(f"there is no {which} of {layer_name}")
        except TypeError as error:
            raise UsageError(
                f"{path}: the model has no layer for '{name}': the file belongs to another model"
            ) from error


def _quantizer(path: Path, name: str, entry: dict[str, Any]) -> FakeQuantize:
    try:
        scheme = QuantizationScheme(**{key: entry[key] for key in QuantizationScheme.__dataclass_fields__})
        quantizer = FakeQuantize(scheme, channels=len(entry["scale"]))
        quantizer.set_range(_tensor(entry["minimum"]), _tensor(entry["maximum"]))
        agrees = torch.equal(quantizer.scale, _tensor(entry["scale"]))
        agrees = agrees and quantizer.zero_point.tolist() == entry["zero_point"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{path}: '{name}' is incomplete ({error}): copy the file again from the training run"
        ) from error
    if not agrees:
        raise UsageError(
            f"{path}: scale and range of '{name}' do not match: the file was edited. Copy it again from the run"
        )
    quantizer.enabled = True
    return quantizer


def _tensor(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def fingerprint_of_model(model: nn.Module) -> str:
    """Returns a digest of what a model computes with: its weights, scales and zero points of active quantizers,
    and pooling."""
    from sparse_accel.nn.layers import quantizers

    tensors = dict(model.state_dict())
    for name, quantizer in quantizers(model).items():
        if quantizer.enabled and quantizer.ready:
            tensors |= {f"{name}.scale": quantizer.scale, f"{name}.zero_point": quantizer.zero_point}
    found = fingerprint(tensors)
    if isinstance(model, PooledEncoder):  # the same weights make other embeddings with another pooling
        found = hashlib.sha256(f"{found} {model.pooling}".encode()).hexdigest()[:32]
    return found
