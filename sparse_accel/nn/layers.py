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

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_accel.errors import UsageError
from sparse_accel.nn.cpu_kernels import mask_bits, product_dtype
from sparse_accel.nn.fake_quantize import FakeQuantize
from sparse_accel.nn.masks import clear, masked


class SparseLayer(nn.Module):
    """Base class of the layers below: masks, and a quantizer each for input, weight and output, all None at first.

    A weight is kept where `mask`, `row_mask` and `column_mask` all keep it. The last two remove whole outputs and
    inputs: structured pruning has them next to the mask of unstructured pruning.
    """

    weight: Any  # the layer's own parameter
    # The masks are bool, True where kept, and not persistent.
    mask: Tensor | None  # of the weight's shape
    row_mask: Tensor | None  # (out,)
    column_mask: Tensor | None  # (in,)
    bias_mask: Tensor | None  # (out,)
    straight_through: bool  # whether the masks let the gradient of masked weights pass
    input_quantizer: FakeQuantize | None
    weight_quantizer: FakeQuantize | None
    output_quantizer: FakeQuantize | None

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """The shape of the complete weight, (out, in, ...), also where this process holds only a part of it."""
        raise NotImplementedError

    def units_in_use(self) -> Tensor | None:
        """Returns which weights are in rows and columns that are kept, bool, broadcastable to the weight's shape; None
        if the layer has no masks of rows and columns."""
        rows, columns = self.row_mask, self.column_mask
        after = len(self.whole_shape) - 2
        if columns is not None:
            columns = columns.view(1, -1, *[1] * after)
        if rows is not None:
            rows = rows.view(-1, 1, *[1] * after)
        return rows if columns is None else columns if rows is None else rows & columns

    def mask_in_use(self) -> Tensor | None:
        """Returns which weights all masks keep, bool, broadcastable to the weight's shape; None without a mask."""
        units = self.units_in_use()
        return self.mask if units is None else units if self.mask is None else self.mask & units

    def masked_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns the stored weight with exact zeros where a mask is False, to be used once.

        Args:
            dtype: see `MaskedOnCpu`; where another way is taken, the result has that of the weight.
        """
        bits = self._mask_bits()
        mask = self.mask_in_use() if bits is None else bits  # with bits, only they are read
        if mask is None:
            return self.weight
        return masked(self.weight, mask, bits, straight_through=self.straight_through, used_once=True, dtype=dtype)

    def _mask_bits(self) -> Tensor | None:
        """Returns the masks in the form that is fastest on a CPU, updated if one has changed; None elsewhere, and for a
        layer without masks."""
        masks = (self.mask, self.row_mask, self.column_mask)
        if all(mask is None for mask in masks):
            return None
        if self.weight.device.type != "cpu" or self.weight.dtype != torch.float32 or torch.compiler.is_compiling():
            return None
        versions = [mask if mask is None else mask._version for mask in masks]
        known_masks, known_versions, bits = self.__dict__.get("_known_bits", ((), [], None))
        if versions != known_versions or any(mask is not known for mask, known in zip(masks, known_masks, strict=True)):
            mask = self.mask_in_use()
            assert mask is not None
            bits = mask_bits(mask.expand(self.weight.shape))
            self.__dict__["_known_bits"] = (masks, versions, bits)
        return bits

    def clear_masked(self, tensor: Tensor) -> None:
        """Sets a tensor of the weight's shape and dtype (its gradient) to 0 in place where a mask is False."""
        mask = self.mask_in_use()
        assert mask is not None
        clear(tensor, mask, self._mask_bits())

    def __getstate__(self) -> dict[str, Any]:
        # The masks of a copy count their changes from 0 again, so bits of the original could be mistaken for its own.
        return {name: value for name, value in self.__dict__.items() if name != "_known_bits"}

    def bias_in_use(self) -> Tensor | None:
        """Returns the bias, with zeros for removed outputs: masking their weight rows alone would leave the bias."""
        bias: Tensor | None = cast(Any, self).bias
        return bias if bias is None or self.bias_mask is None else masked(bias, self.bias_mask)

    def weight_in_use(self) -> Tensor:
        """Returns the weight that the forward uses: masked, then fake-quantized; in the dtype that the product needs
        where that saves a pass."""
        quantizer, dtype = self.weight_quantizer, product_dtype(self.weight)
        if quantizer is None or not quantizer.enabled:
            return self.masked_weight(dtype)
        if not quantizer.in_one_pass(self.weight):
            return quantizer(self.masked_weight())
        bits = None if self.straight_through else self._mask_bits()
        return quantizer(self.masked_weight() if bits is None else self.weight, bits=bits, dtype=dtype)

    def quantize_input(self, x: Tensor) -> Tensor:
        """Returns `x`, fake-quantized if the layer has an input quantizer; in the dtype of `weight_in_use`."""
        return x if self.input_quantizer is None else self.input_quantizer(x, dtype=product_dtype(x))

    def quantize_output(self, x: Tensor) -> Tensor:
        """Returns `x`, fake-quantized if the layer has an output quantizer."""
        return x if self.output_quantizer is None else self.output_quantizer(x)


class SparseLinear(SparseLayer, nn.Linear):
    @property
    def whole_shape(self) -> tuple[int, ...]:
        return self.out_features, self.in_features

    def forward(self, x: Tensor) -> Tensor:
        return self.quantize_output(F.linear(self.quantize_input(x), self.weight_in_use(), self.bias_in_use()))


class SparseEmbedding(SparseLayer, nn.Embedding):
    @property
    def whole_shape(self) -> tuple[int, ...]:
        return self.num_embeddings, self.embedding_dim

    def forward(self, ids: Tensor) -> Tensor:
        # Only the rows in use are masked and rounded: the result is the same, and a vocabulary is far larger than a
        # batch. Padding, max_norm and sparse gradients work as in nn.Embedding.
        rows = super().forward(ids)
        for mask in (
            None if self.mask is None else self.mask[ids],
            None if self.row_mask is None else self.row_mask[ids].unsqueeze(-1),
            self.column_mask,
        ):
            if mask is not None:
                rows = masked(rows, mask, straight_through=self.straight_through)
        if self.weight_quantizer is not None:
            rows = self.weight_quantizer(rows, whole=self.masked_weight().detach(), rows=ids)
        return self.quantize_output(rows)


class _SparseConv(SparseLayer):
    @property
    def whole_shape(self) -> tuple[int, ...]:
        conv = cast(Any, self)
        return conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size


class SparseConv1d(_SparseConv, nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        found = self._conv_forward(self.quantize_input(x), self.weight_in_use(), self.bias_in_use())
        return self.quantize_output(found)


class SparseConv2d(_SparseConv, nn.Conv2d):
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
    for kind in ("mask", "row_mask", "column_mask", "bias_mask"):
        layer.register_buffer(kind, None, persistent=False)
    layer.straight_through = False
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
    quantizer = cast("FakeQuantize | None", layer.input_quantizer)
    if quantizer is None:
        return None
    if not inputs or not isinstance(inputs[0], Tensor) or not inputs[0].is_floating_point():
        raise UsageError(
            f"the input of {type(layer).__name__} cannot be quantized, because its first argument is not a tensor of "
            "floats: in the recipe's QuantizationModifier, remove this class from custom_quantizable_module_types, or "
            "add it to ignore"
        )
    return quantizer(inputs[0]), *inputs[1:]


def mask_outputs(layer: SparseLayer, kept: Tensor, *, bias: bool = True) -> None:
    """Removes outputs of a layer: masks their weight rows and, unless `bias` is False, their biases, which would stay.

    Args:
        kept: bool, (out,), False for outputs to remove; outputs that are removed already stay removed.
    """
    layer.row_mask = kept.clone() if layer.row_mask is None else layer.row_mask & kept
    if bias and getattr(layer, "bias", None) is not None:
        layer.bias_mask = kept.clone() if layer.bias_mask is None else layer.bias_mask & kept


def mask_inputs(layer: SparseLayer, kept: Tensor) -> None:
    """Removes inputs of a layer: masks their weight columns.

    Args:
        kept: bool, (in,), False for inputs to remove; inputs that are removed already stay removed.
    """
    layer.column_mask = kept.clone() if layer.column_mask is None else layer.column_mask & kept


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
    found, parameters = {}, dict(model.named_parameters())
    layers = {f"{name}.weight": layer for name, layer in sparse_layers(model)}
    for name in prunable_names(model):
        parameter, layer = parameters.get(name), layers.get(name)
        if parameter is None or not parameter.requires_grad or parameter.is_meta or (layer and layer.mask is not None):
            continue
        weight = parameter.detach()
        if layer and layer.units_in_use() is not None:  # its rows or columns of zeros are removed units
            kept = weight.flatten(1) != 0
            weight = weight.flatten(1)[kept.any(1)][:, kept.any(0)]
        zeros = weight.numel() - int(torch.count_nonzero(weight))
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
    """Returns which weights and biases all masks keep, by name: bool, each of its parameter's complete shape.

    Parameters without a mask are left out. The tensors are to be read only: some share memory with the masks.
    """
    found: dict[str, Tensor] = {}
    for name, layer in sparse_layers(model):
        if (mask := layer.mask_in_use()) is not None:
            found[f"{name}.weight"] = mask.expand(layer.whole_shape)
        if layer.bias_mask is not None:
            found[f"{name}.bias"] = layer.bias_mask
    return found


def mask_versions(model: nn.Module) -> list[tuple[Tensor, int]]:
    """Returns each mask with a number that grows with every change of it. Unlike `masks`, it computes nothing."""
    found = []
    for _, layer in sparse_layers(model):
        for mask in (layer.mask, layer.row_mask, layer.column_mask, layer.bias_mask):
            if mask is not None:
                found.append((mask, mask._version))
    return found


def masked_fraction(model: nn.Module) -> float:
    """Returns the fraction of the encoder's Linear weights that masks remove, of those that have a mask; 0 without."""
    layers = [layer for name, layer in sparse_layers(model) if is_encoder_linear(name, layer)]
    found = [(mask, layer) for layer in layers if (mask := layer.mask_in_use()) is not None]
    # A mask of rows counts once for each column. Summed on the device, and read once.
    kept = [mask.sum() * (math.prod(layer.whole_shape) // mask.numel()) for mask, layer in found]
    weights = sum(math.prod(layer.whole_shape) for _, layer in found)
    return 1 - int(torch.stack(kept).sum()) / weights if kept else 0.0


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
            kind = plain_class_name(layer)
            keep = f"`exclude_module_types: [{kind}]` (with a scheme: `ignore: [{kind}]`) in the QuantizationModifier"
            reason = f"quantized convolutions cannot be exported to ONNX yet: keep them in float with {keep}"
            found.setdefault(reason, []).append(name)
            continue
        for kind, quantizer in used.items():
            scheme, reason = quantizer.scheme, ""
            if kind != "weight" and scheme.channel_axis is not None:
                reason = "only activations with one scale can be exported"
            elif kind == "weight" and not (scheme.signed and scheme.symmetric and scheme.channel_axis in (None, 0)):
                reason = "only signed symmetric weights with one scale, or one per row, can be exported"
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
