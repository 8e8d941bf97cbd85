"""The files of a trained model: a plain Hugging Face folder, with what quantization adds beside it.

`AutoModelForSequenceClassification.from_pretrained(folder)` reads the float sparse model; `load(folder)` here reads the
model as it was trained, quantizers on. Their accuracies differ.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn

from sparse_accel.addresses import model_address
from sparse_accel.errors import UsageError
from sparse_accel.fake_quantize import FakeQuantize, QuantizationFormat
from sparse_accel.layers import make_sparse, masks, quantizers
from sparse_accel.processes import by_main_process
from sparse_accel.run_identity import write_text
from sparse_accel.sharding import full_state_dict, plain_model

if TYPE_CHECKING:
    from accelerate import Accelerator

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
            **quantizer.form.to_dict(),
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
    """Returns the sequence classifier of an output folder as it was trained, in eval mode, quantizers on.

    Args:
        folder: written by `scripts/text_classification.py`; any Hugging Face folder or id, or `zoo:` stub, gives its
            plain model.
        options: for `AutoModelForSequenceClassification.from_pretrained`.

    Raises:
        UsageError: the folder holds no trained classifier, or the quantizers' file does not fit the model.
    """
    from transformers import AutoModelForSequenceClassification

    folder = model_address("sparse_accel.load", str(folder), options.get("cache_dir"))
    with quiet_transformers():  # its report on missing weights
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, **options
        )
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:4])
        raise UsageError(f"{folder} holds no trained classifier: weights are missing ({missing}). Train it first")
    path = Path(folder) / QUANTIZATION_FILE
    if path.is_file():
        read_quantizers(path, model)
    return model.eval()


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
        form = QuantizationFormat(**{key: entry[key] for key in QuantizationFormat.__dataclass_fields__})
        quantizer = FakeQuantize(form, channels=len(entry["scale"]))
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
