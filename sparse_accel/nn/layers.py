"""Layers whose weight is masked and whose tensors are fake-quantized in the forward, for all of pruning and QAT.

    Linear       output_quantizer(F.linear(input_quantizer(x), weight_quantizer(masked(weight)), bias))
    Embedding    output_quantizer(F.embedding(ids, weight_quantizer(masked(weight))))
    Conv1d, 2d   as Linear
    others       forward(input_quantizer(x), ...), such as an activation or a norm; see `add_input_quantizer`

A layer keeps its identity and its parameters: only its class changes, so weights keep their names, a layer that several
blocks share (ALBERT) stays one, and DDP, FSDP2, DeepSpeed and torch.compile get ordinary modules. The forward uses the
masked weight, so a pruned weight gets no gradient, and masks need no code in the optimizer or in sharding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_accel.errors import UsageError
from sparse_accel.nn.cpu_kernels import mask_bits
from sparse_accel.nn.fake_quantize import FakeQuantize
from sparse_accel.nn.masks import clear, masked


class SparseLayer(nn.Module):
    """Base class of the layers below: a mask, and a quantizer each for input, weight and output, all None at first."""

    weight: Any  # the layer's own parameter
    mask: Tensor | None  # bool, of the weight's shape, True where kept; not persistent
    straight_through: bool  # whether the mask lets the gradient of masked weights pass
    bias_mask: Tensor | None  # bool, (out,), True where kept, for outputs that are removed entirely; not persistent
    input_quantizer: FakeQuantize | None
    weight_quantizer: FakeQuantize | None
    output_quantizer: FakeQuantize | None

    def masked_weight(self) -> Tensor:
        """Returns the stored weight with exact zeros where the mask is False."""
        if self.mask is None:
            return self.weight
        return masked(self.weight, self.mask, self._mask_bits(), straight_through=self.straight_through)

    def _mask_bits(self) -> Tensor | None:
        """Returns the mask in the form that is fastest on a CPU, updated if the mask has changed; None elsewhere."""
        assert self.mask is not None
        if self.weight.device.type != "cpu" or self.weight.dtype != torch.float32 or torch.compiler.is_compiling():
            return None
        known_mask, known_version, bits = self.__dict__.get("_known_bits", (None, None, None))
        if known_mask is not self.mask or known_version != self.mask._version:
            bits = mask_bits(self.mask)
            self.__dict__["_known_bits"] = (self.mask, self.mask._version, bits)
        return bits

    def clear_masked(self, tensor: Tensor) -> None:
        """Sets a tensor of the weight's shape and dtype (its gradient) to 0 in place where the mask is False."""
        assert self.mask is not None
        clear(tensor, self.mask, self._mask_bits())

    def __getstate__(self) -> dict[str, Any]:
        # The mask of a copy counts its changes from 0 again, so bits of the original could be mistaken for its own.
        return {name: value for name, value in self.__dict__.items() if name != "_known_bits"}

    def bias_in_use(self) -> Tensor | None:
        """Returns the bias, with zeros for removed outputs: masking their weight rows alone would leave the bias."""
        bias: Tensor | None = cast(Any, self).bias
        return bias if bias is None or self.bias_mask is None else masked(bias, self.bias_mask)

    def weight_in_use(self) -> Tensor:
        """Returns the weight that the forward uses: masked, then fake-quantized."""
        weight = self.masked_weight()
        return weight if self.weight_quantizer is None else self.weight_quantizer(weight)

    def quantize_input(self, x: Tensor) -> Tensor:
        """Returns `x`, fake-quantized if the layer has an input quantizer."""
        return x if self.input_quantizer is None else self.input_quantizer(x)

    def quantize_output(self, x: Tensor) -> Tensor:
        """Returns `x`, fake-quantized if the layer has an output quantizer."""
        return x if self.output_quantizer is None else self.output_quantizer(x)


class SparseLinear(SparseLayer, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return self.quantize_output(F.linear(self.quantize_input(x), self.weight_in_use(), self.bias_in_use()))


class SparseEmbedding(SparseLayer, nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        # Only the rows in use are masked and rounded: the result is the same, and a vocabulary is far larger than a
        # batch. Padding, max_norm and sparse gradients work as in nn.Embedding.
        rows = super().forward(ids)
        if self.mask is not None:
            rows = masked(rows, self.mask[ids], straight_through=self.straight_through)
        if self.weight_quantizer is not None:
            rows = self.weight_quantizer(
                rows, whole=self.weight.detach() if self.mask is None else self.masked_weight()
            )
        return self.quantize_output(rows)


class SparseConv1d(SparseLayer, nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        found = self._conv_forward(self.quantize_input(x), self.weight_in_use(), self.bias_in_use())
        return self.quantize_output(found)


class SparseConv2d(SparseLayer, nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        found = self._conv_forward(self.quantize_input(x), self.weight_in_use(), self.bias_in_use())
        return self.quantize_output(found)


_SPARSE_CLASS: dict[type[nn.Module], type[SparseLayer]] = {
    nn.Linear: SparseLinear,
    nn.Embedding: SparseEmbedding,
    nn.Conv1d: SparseConv1d,
    nn.Conv2d: SparseConv2d,
}
_PLAIN_NAME: dict[type[nn.Module], str] = {sparse: plain.__name__ for plain, sparse in _SPARSE_CLASS.items()}


def plain_class_name(module: nn.Module) -> str:
    """Returns the class name of a module as in recipes, before or after `make_sparse`: Linear, LayerNorm, ..."""
    return _PLAIN_NAME.get(type(module), type(module).__name__)


def make_sparse(module: nn.Module) -> SparseLayer:
    """Changes a Linear, Embedding or convolution layer to its sparse class, in place, and returns it.

    Raises:
        TypeError: it is another module, or of a subclass of these, whose forward may be different.
    """
    if isinstance(module, SparseLayer):
        return module
    if type(module) not in _SPARSE_CLASS:
        raise TypeError(f"{type(module).__name__} is not one of Linear, Embedding, Conv1d, Conv2d")
    module.__class__ = _SPARSE_CLASS[type(module)]
    layer = cast(SparseLayer, module)
    layer.register_buffer("mask", None, persistent=False)
    layer.straight_through = False
    layer.register_buffer("bias_mask", None, persistent=False)
    layer.input_quantizer = layer.weight_quantizer = layer.output_quantizer = None
    return layer


def takes_input_quantizer(module: nn.Module) -> bool:
    """Returns True for what `add_input_quantizer` accepts: a layer without layers inside of it, and of another class
    than those that `make_sparse` changes."""
    if isinstance(module, SparseLayer | FakeQuantize) or type(module) in _SPARSE_CLASS:
        return False
    return all(isinstance(child, FakeQuantize) for child in module.children())


def add_input_quantizer(layer: nn.Module, quantizer: FakeQuantize) -> None:
    """Gives a layer of any other class, such as an activation, a quantizer of its first input: `input_quantizer`.

    The layer keeps its class, and a hook applies the quantizer: a subclass made here could not be pickled.

    Raises:
        TypeError: see `takes_input_quantizer`.
    """
    if not takes_input_quantizer(layer):
        raise TypeError(f"{type(layer).__name__} has layers, or quantizers, of its own")
    if not hasattr(layer, "input_quantizer"):
        layer.register_forward_pre_hook(_quantize_first_input)
    layer.input_quantizer = quantizer


def _quantize_first_input(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The hook: a function of this file, so that copies and pickles of a layer have it, with their own quantizer."""
    quantizer = cast(FakeQuantize | None, layer.input_quantizer)
    if quantizer is None:
        return None
    if not inputs or not isinstance(inputs[0], Tensor) or not inputs[0].is_floating_point():
        raise UsageError(
            f"the input of {type(layer).__name__} cannot be quantized, because its first argument is not a tensor of "
            "floats: remove this class from custom_quantizable_module_types in the recipe's QuantizationModifier"
        )
    return quantizer(inputs[0]), *inputs[1:]


def mask_outputs(layer: SparseLayer, kept: Tensor) -> None:
    """Removes outputs of a Linear or convolution layer: masks their weight rows together with their biases.

    Args:
        kept: bool, (out,), False for outputs to remove; weights that are already pruned stay pruned.
    """
    whole = kept.view(-1, *[1] * (layer.weight.ndim - 1)).expand(layer.weight.shape)
    layer.mask = whole.clone() if layer.mask is None else layer.mask & whole
    if cast(Any, layer).bias is not None:
        layer.bias_mask = kept.clone() if layer.bias_mask is None else layer.bias_mask & kept


def maskable_layers(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Returns the layers whose weight can have a mask (Linear, Embedding, convolution), by the name of the weight.

    A weight that several layers share (tied) is listed once, under its first name, with all its layers.
    """
    by_weight: dict[int, tuple[str, list[nn.Module]]] = {}
    for name, module in model.named_modules():
        if isinstance(module, SparseLayer) or type(module) in _SPARSE_CLASS:
            entry = by_weight.setdefault(id(module.weight), (f"{name}.weight", []))
            entry[1].append(module)
    return dict(by_weight.values())


def prunable_names(model: nn.Module) -> list[str]:
    """Returns the names that `__ALL_PRUNABLE__` matches: weights of Linear and convolution layers."""
    layers = maskable_layers(model)
    return [name for name, modules in layers.items() if not any(isinstance(m, nn.Embedding) for m in modules)]


def sparse_without_mask(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Returns (zeros, elements) of prunable weights that are sparse, trained and without a mask, by name.

    Sparse is more than 10% zeros, but not only zeros: those are an initialization. Weights without values (meta), and
    those that are computed from other parameters (torch.nn.utils.parametrize), are left out.
    """
    found, masked, parameters = {}, masks(model), dict(model.named_parameters())
    for name in prunable_names(model):
        weight = parameters.get(name)
        if weight is not None and weight.requires_grad and not weight.is_meta and name not in masked:
            zeros = weight.numel() - int(torch.count_nonzero(weight.detach()))
            if 0.1 * weight.numel() < zeros < weight.numel():
                found[name] = (zeros, weight.numel())
    return found


def sparse_layers(model: nn.Module) -> Iterator[tuple[str, SparseLayer]]:
    """Yields (name, layer) of each sparse layer, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, SparseLayer):
            yield name, module


def quantizers(model: nn.Module) -> dict[str, FakeQuantize]:
    """Returns all quantizers by name, such as `bert.pooler.dense.input_quantizer`, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FakeQuantize)}


@contextmanager
def quantizers_without_range_off(model: nn.Module) -> Iterator[None]:
    """Switches off the quantizers that have no range yet, so that forwards in eval mode pass them by."""
    empty = [quantizer for quantizer in quantizers(model).values() if quantizer.enabled and not quantizer.ready]
    try:
        for quantizer in empty:
            quantizer.enabled = False
        yield
    finally:
        for quantizer in empty:
            quantizer.enabled = True


def masks(model: nn.Module) -> dict[str, Tensor]:
    """Returns all masks, by the name of the weight or bias that they belong to."""
    found = {f"{name}.{kind}": mask for name, layer in sparse_layers(model) for kind, mask in _masks_of(layer)}
    return {name: mask for name, mask in found.items() if mask is not None}


def masked_fraction(model: nn.Module) -> float:
    """Returns the fraction of the encoder's Linear weights that masks remove, of those that have a mask; 0 without."""
    found = [layer.mask for name, layer in sparse_layers(model) if is_encoder_linear(name, layer)]
    kept = [mask.sum() for mask in found if mask is not None]  # summed on the device, read once
    weights = sum(mask.numel() for mask in found if mask is not None)
    return 1 - int(torch.stack(kept).sum()) / weights if kept else 0.0


def _masks_of(layer: SparseLayer) -> tuple[tuple[str, Tensor | None], ...]:
    return ("weight", layer.mask), ("bias", layer.bias_mask)


def export_obstacles(model: nn.Module, *, only_enabled: bool) -> dict[str, list[str]]:
    """Returns why some quantizers of a model cannot be exported, as {reason: names}; empty if all can.

    Args:
        only_enabled: True: ignore quantizers that are off. Use False before training, when all are off.
    """
    found: dict[str, list[str]] = {}
    for name, layer in model.named_modules():
        kinds = ("input", "weight", "output")
        present = {kind: getattr(layer, f"{kind}_quantizer", None) for kind in kinds}
        used = {kind: q for kind, q in present.items() if q is not None and (q.enabled or not only_enabled)}
        if used and isinstance(layer, (SparseConv1d, SparseConv2d)):
            keep = f"`exclude_module_types: [{plain_class_name(layer)}]` in the recipe's QuantizationModifier"
            reason = f"quantized convolutions cannot be exported to ONNX yet: keep them in float with {keep}"
            found.setdefault(reason, []).append(name)
            continue
        for kind, quantizer in used.items():
            scheme, reason = quantizer.scheme, ""
            if kind != "weight" and (scheme.signed or scheme.channel_axis is not None):
                reason = "only unsigned activations with one scale can be exported"
            elif kind == "weight" and not (scheme.signed and scheme.symmetric):
                reason = "only signed symmetric weights can be exported"
            elif kind == "weight" and scheme.channel_axis is not None and isinstance(layer, nn.Embedding):
                reason = "an embedding with one scale per row cannot be exported yet"
            elif kind == "weight" and isinstance(layer, nn.Linear) and "input" not in used:
                reason = "a Linear with a quantized weight and a float input has no integer kernel"
            if reason:
                found.setdefault(reason, []).append(f"{name}.{kind}_quantizer")
    return found


def quantized_linears(model: nn.Module) -> tuple[int, int]:
    """Returns two counts: (Linear layers with input and weight quantizers on, all Linear layers)."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    on = sum(1 for m in linears if _is_on(m, "input_quantizer") and _is_on(m, "weight_quantizer"))
    return on, len(linears)


def _is_on(module: Any, which: str) -> bool:
    quantizer = getattr(module, which, None)
    return quantizer is not None and quantizer.enabled


# The blocks of an encoder are in a list, so the names of their weights contain a number.
_IN_A_BLOCK = re.compile(r"\.\d+\.")


def is_encoder_linear(name: str, module: nn.Module) -> bool:
    """Returns True for Linear layers in encoder blocks; embeddings, pooler and classifier are counted separately."""
    return isinstance(module, nn.Linear) and bool(_IN_A_BLOCK.search(f".{name}."))
