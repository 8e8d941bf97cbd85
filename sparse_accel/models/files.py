"""The files of a trained model: a plain Hugging Face folder, with what quantization adds beside it.

`from_pretrained(folder)` of transformers' AutoModelFor... reads the float sparse model; `load(folder)` here reads the
model as it was trained, quantizers on. Their accuracies differ.
"""

from __future__ import annotations

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
from sparse_accel.files import write_text
from sparse_accel.fingerprints import fingerprint
from sparse_accel.hub import model_address
from sparse_accel.nn.fake_quantize import FakeQuantize, QuantizationScheme
from sparse_accel.nn.layers import make_sparse, masks, quantizers
from sparse_accel.tasks import Task, TextClassification, task_class
from sparse_accel.tasks.label_names import head_in, set_labels

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn


# Else transformers asks a service of the Hub, in a thread of its own, to convert weights of the older format.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
QUANTIZATION_FILE = "quantization.json"
_VERSION = 1


def save_model(folder: Path, accelerator: Accelerator, model: nn.Module, tokenizer: Any) -> None:
    """Writes configuration, weights, tokenizer and quantizers of a prepared model. Call it on every process.

    The weights are float32 with exact zeros under the masks, and carry only names that transformers knows.
    """
    plain = plain_model(accelerator, model)
    weights = dict(full_state_dict(accelerator, model))

    def write() -> None:
        for name, mask in masks(plain).items():
            weights[name] = weights[name].masked_fill(~mask.cpu(), 0.0)
        folder.mkdir(parents=True, exist_ok=True)
        plain.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)
        write_quantizers(folder, plain)

    by_main_process(accelerator, write)


def write_quantizers(folder: Path, model: nn.Module) -> None:
    """Writes the quantizers that are on, with format, range, scale and zero point; no file when there are none."""
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
    """Keeps transformers from printing anything but errors."""
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


def load(folder: str | Path, **options: Any) -> nn.Module:
    """Returns the model of an output folder as it was trained, in eval mode, quantizers on; the head is the task's.

    Args:
        folder: written by a training script; any Hugging Face folder or id, or `zoo:` stub, gives its plain model.
        options: for the `from_pretrained` of transformers' class with that head.

    Raises:
        UsageError: the folder holds no trained classifier, config.json and weights do not fit together, or the
            quantizers' file does not fit the model.
    """
    address = model_address("sparse_accel.load", str(folder), options.get("cache_dir"))
    source = {name: options[name] for name in ("revision", "cache_dir") if name in options}
    config = options.get("config") or AutoConfig.from_pretrained(address, **source)
    return load_as(address, task_class(config) or TextClassification, **options)


def load_as(folder: str, task: type[Task], **options: Any) -> nn.Module:
    """The same for a folder or Hub id whose model is of a task.

    Raises:
        UsageError: as `load`.
    """
    try:
        model, _ = read_model(folder, task, keeps_head=True, may_be_new=False, **options)
    except UsageError as error:
        raise UsageError(f"{folder}: {error}") from error
    set_labels(model.config, head_in(model.config, folder).names)
    path = Path(folder) / QUANTIZATION_FILE
    if path.is_file():
        read_quantizers(path, model)
    return model.eval()


# --- weights ----------------------------------------------------------------------------------------------------------


def read_model(
    address: str, task: type[Task], *, config: Any = None, keeps_head: bool, may_be_new: bool, **source: Any
) -> tuple[Any, list[str]]:
    """Returns a model with a task's head, float32, and the names of weights that are newly initialized: of its head.

    Args:
        address: folder or Hub id.
        task: whose head it has.
        config: of the model; None: the one that is there.
        keeps_head: whether the head that is there is wanted; otherwise its output layer is a new one.
        may_be_new: whether a head may be missing: for training.
        source: for `from_pretrained`: revision, cache_dir, ...

    Raises:
        UsageError: config.json and weights do not fit together; the message names a tensor, with both its shapes.
    """
    auto_class: Any = getattr(transformers, f"AutoModel{task.architecture}")
    options: dict[str, Any] = {"dtype": torch.float32, "ignore_mismatched_sizes": True, **source}
    if config is not None:
        options["config"] = config

    def read(**more: Any) -> tuple[Any, dict[str, Any]]:
        with quiet_transformers():  # its report on missing weights
            found: tuple[Any, dict[str, Any]] = auto_class.from_pretrained(
                address, output_loading_info=True, **options, **more
            )
        return found

    model, info = read()
    if any(_OF_SPARSEML.search(key) for key in info["unexpected_keys"]):
        if not may_be_new:
            raise UsageError(
                "a checkpoint that SparseML saved after quantization-aware training. Its weights can be read, its "
                "quantization ranges cannot: start from it with a training script, --do_train or "
                "--one_shot, and a recipe that quantizes"
            )
        renamed, info = read(key_mapping={_OF_SPARSEML.pattern: r".\1"})
        # A model of its own: the renamed one would be saved under the names that it was read from.
        model = auto_class.from_config(renamed.config, dtype=torch.float32)
        model.load_state_dict(renamed.state_dict())
        warn(
            f"{address} was saved by SparseML after quantization-aware training: its weights are taken, not its ranges"
        )
    fresh = _newly_initialized(model, info, keeps_head, may_be_new)
    if not keeps_head:
        fresh += _initialize_outputs(model, fresh)
    return model, sorted(fresh)


# SparseML wrapped each quantized layer: `dense.module.weight` beside `dense.quant...` and `...weight_fake_quant...`.
_OF_SPARSEML = re.compile(r"\.module\.(weight|bias)$")


def _newly_initialized(model: Any, info: Mapping[str, Any], keeps_head: bool, may_be_new: bool) -> list[str]:
    """Returns the weights that the file lacks, or has for another number of labels.

    Args:
        info: what `from_pretrained` found: missing_keys, mismatched_keys (name, shape in the file, shape in the model),
            unexpected_keys.

    Raises:
        UsageError: they are not all of the head; or the file has blocks that the model lacks.
    """
    base = f"{model.base_model_prefix}."
    missing, shapes = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
    outputs = [name for name, _ in _output_layers(model)]
    headless = may_be_new and (not keeps_head or all(f"{name}.weight" in missing for name in outputs))
    wrong = [entry for entry in shapes if keeps_head or entry[0].startswith(base)]
    if wrong:
        name, in_file, in_model = wrong[0]
        raise UsageError(
            f"config.json and weights are of different models: {name} is {_times(in_file)} in the file, and "
            f"{_times(in_model)} by config.json{_and_more(wrong)}. Copy both from the same model"
        )
    absent = [name for name in missing if not headless or not _is_of_head(name, base)]
    if absent and not may_be_new and all(_is_of_head(name, base) for name in absent):
        absent.sort(key=lambda name: name.startswith(base))  # the classifier before the pooler
        raise UsageError(f"no trained classifier: weights are missing ({listed(absent, 4)}). Train it first")
    if absent:
        raise UsageError(
            f"config.json and weights are of different models: the file holds no weights for {absent[0]} "
            f"({_times(model.state_dict()[absent[0]].shape)} by config.json){_and_more(absent)}. Copy both from "
            "the same model"
        )
    modules = {name for name, _ in model.named_modules()}
    # A file of the encoder alone has names without its prefix.
    blocks = [(name, _BLOCK.match(prefix + name)) for name in info["unexpected_keys"] for prefix in ("", base)]
    beyond = sorted(name for name, found in blocks if found and found[1] in modules and found[0] not in modules)
    if beyond:
        raise UsageError(
            f"config.json and weights are of different models: the file holds {beyond[0]}{_and_more(beyond)}, and by "
            "config.json the model has no such block. Correct its number of layers; to drop layers on purpose, load "
            "the model with fewer layers in transformers and save it first"
        )
    return missing + [name for name, _, _ in shapes]


# The list of blocks of an encoder, and one of its entries.
_BLOCK = re.compile(r"(.*?)\.\d+(?=\.)")


def _is_of_head(name: str, base: str) -> bool:
    """Whether a weight is of the head: outside of the encoder, or its pooler, which language models lack."""
    return not name.startswith(base) or "pooler" in name.split(".")


def _output_layers(model: Any) -> list[tuple[str, nn.Linear]]:
    """The layers of the head that give one value for each label."""
    base = f"{model.base_model_prefix}."
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == model.config.num_labels
        and not name.startswith(base)
    ]


@torch.no_grad()
def _initialize_outputs(model: Any, fresh: list[str]) -> list[str]:
    """Initializes output layers that the file happened to have in the right size: they are of other labels."""
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
    """Puts the quantizers of a file into a plain model, on and frozen."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, entries = content["version"], dict(content["quantizers"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a quantizers' file ({error}): copy it anew from the training run") from error
    if version != _VERSION:
        raise UsageError(
            f"{path} has version {version}, and this sparse_accel reads version {_VERSION}: install a newer"
        )
    modules = dict(model.named_modules())
    for name, entry in entries.items():
        layer_name, _, which = name.rpartition(".")
        try:
            layer = make_sparse(modules[layer_name])
        except (KeyError, TypeError):
            layer = None
        if layer is None or which not in ("input_quantizer", "weight_quantizer", "output_quantizer"):
            raise UsageError(f"{path}: this model has no layer for '{name}': the file belongs to another model")
        setattr(layer, which, _quantizer(path, name, entry))


def _quantizer(path: Path, name: str, entry: dict[str, Any]) -> FakeQuantize:
    try:
        scheme = QuantizationScheme(**{key: entry[key] for key in QuantizationScheme.__dataclass_fields__})
        quantizer = FakeQuantize(scheme, channels=len(entry["scale"]))
        quantizer.set_range(_tensor(entry["minimum"]), _tensor(entry["maximum"]))
        agrees = torch.equal(quantizer.scale, _tensor(entry["scale"]))
        agrees = agrees and quantizer.zero_point.tolist() == entry["zero_point"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{path}: '{name}' is incomplete ({error}): copy the file anew from the training run"
        ) from error
    if not agrees:
        raise UsageError(f"{path}: scale and range of '{name}' disagree: the file was changed by hand")
    quantizer.enabled = True
    return quantizer


def _tensor(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def fingerprint_of_model(model: nn.Module) -> str:
    """Returns a digest of what a model computes with: its weights, and the ranges of quantizers that are on."""
    from sparse_accel.nn.layers import quantizers

    tensors = dict(model.state_dict())
    for name, quantizer in quantizers(model).items():
        if quantizer.enabled and quantizer.ready:
            tensors |= {f"{name}.scale": quantizer.scale, f"{name}.zero_point": quantizer.zero_point}
    return fingerprint(tensors)
