"""Quantization-aware training: from an epoch on, layers compute with 8-bit weights and activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from sparse_accel.console import warn
from sparse_accel.errors import UsageError, listed, nearest
from sparse_accel.modifiers.base import FieldError, Modifier
from sparse_accel.progress import ROUNDING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sparse_accel.modifiers.state import State
    from sparse_accel.nn.fake_quantize import FakeQuantize, QuantizationScheme
    from sparse_accel.nn.layer_outputs import Layout
    from sparse_accel.progress import Progress

# The classes of layers that are quantized unless a key says otherwise.
_QUANTIZED_ANYWAY = ("Linear", "Embedding", "Conv1d", "Conv2d")


@dataclass(kw_only=True)
class QuantizationModifier(Modifier):
    """Trains with fake quantization: activations uint8 affine, weights int8 symmetric, one scale per tensor.

    Linear and convolution layers get a quantizer each for input, weight and output, Embedding layers for weight and
    output, layers of `custom_quantizable_module_types` for their input. Weights are symmetric, so that a pruned 0 stays
    the integer 0. Ranges follow a moving average of the minimum and maximum of each step (constant 0.01; Jacob et al.
    2018, arXiv 1712.05877), over training data only.
    """

    end_epoch: float = -1.0
    """Must be left out: quantization stays until the end of training."""
    submodules: list[str] | None = None
    """Names of the modules to quantize, such as bert.encoder; left out: the entire model."""
    disable_quantization_observer_epoch: float | None = None
    """Epoch at which ranges freeze; left out: they are updated until the end of training."""
    freeze_bn_stats_epoch: float | None = None
    """Epoch at which the statistics of batch normalization freeze; left out: never."""
    quantize_embeddings: bool = True
    """Quantize the weights of Embedding layers; false: these layers stay in float."""
    quantize_embedding_activations: bool = True
    """Quantize the outputs of quantized Embedding layers."""
    quantize_linear_activations: bool = True
    """Quantize the outputs of Linear layers; their inputs are always quantized."""
    quantize_conv_activations: bool = True
    """Quantize the outputs of convolution layers; their inputs are always quantized."""
    exclude_module_types: list[str] = field(default_factory=list)
    """Class names of layers to keep in float, such as Conv1d or LayerNorm; left out: none."""
    custom_quantizable_module_types: list[str] = field(default_factory=list)
    """Class names of further layers whose inputs are quantized, such as GELUActivation, also if `exclude_module_types`
    has them; left out: none."""
    activation_bits: int = 8
    """Bits per activation, 2 to 8."""
    weight_bits: int = 8
    """Bits per weight, 2 to 8."""
    reduce_range: bool = False
    """Use one bit less for activations, for CPUs without VNNI."""
    tensorrt: bool = False
    """SparseML's scheme for TensorRT; only false is supported."""

    needs_rows: ClassVar[bool] = True
    acts_at_once: ClassVar[bool] = True
    one_at_a_time: ClassVar[bool] = True
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "scheme": (None,),
        "scheme_overrides": (None, {}),
        "ignore": (None, []),
        "strict": (True,),
        "activation_qconfig_kwargs": (None, {}),
        "weight_qconfig_kwargs": (None, {}),
        "custom_quantizable_module_types": (None,),
        "exclude_batchnorm": (True,),
        "exclude_module_types": (None,),
        "model_fuse_fn_name": (None,),
        "model_fuse_fn_kwargs": (None, {}),
        "num_calibration_steps": (None,),
    }
    known_later: ClassVar[dict[str, str]] = {
        key: "use submodules, exclude_module_types and the quantize_ keys instead of a scheme"
        for key in ("scheme", "scheme_overrides", "ignore", "strict")
    } | {
        "activation_qconfig_kwargs": "activations are uint8 affine, the default of SparseML",
        "weight_qconfig_kwargs": "weights are int8 symmetric, the default of SparseML",
    }
    without_effect: ClassVar[dict[str, str]] = {
        "model_fuse_fn_name": "encoders have no convolution, batch normalization and ReLU to fuse",
        "model_fuse_fn_kwargs": "encoders have no convolution, batch normalization and ReLU to fuse",
        "exclude_batchnorm": "batch normalization is never quantized",
        "num_calibration_steps": "ranges start from the first batch of quantization-aware training",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.end_epoch != -1:
            raise FieldError("end_epoch", "quantization stays until the end of training: leave end_epoch out")
        for key in ("activation_bits", "weight_bits"):
            if not 2 <= getattr(self, key) <= 8:
                raise FieldError(key, f"expected 2 to 8, got {getattr(self, key)}")
        freeze = self.disable_quantization_observer_epoch
        if freeze == -1:
            self.disable_quantization_observer_epoch = None
        elif freeze is not None and freeze < max(self.start_epoch, 0) - ROUNDING:
            raise FieldError(
                "disable_quantization_observer_epoch",
                f"ranges would freeze at epoch {freeze:g}, before quantization begins at epoch "
                f"{max(self.start_epoch, 0):g}: freeze them later",
            )
        for kind in self.custom_quantizable_module_types:
            if kind in _QUANTIZED_ANYWAY:
                message = f"{kind} layers are quantized without this key: remove {kind} from its list"
                raise FieldError("custom_quantizable_module_types", message)
        if self.tensorrt:
            message = "activations are uint8 affine, but TensorRT needs int8 symmetric"
            raise FieldError("tensorrt", f"not supported yet: {message}")
        self._quantizers: list[FakeQuantize] = []
        self._batch_norms: list[nn.Module] = []

    @property
    def freeze_epoch(self) -> float | None:
        """The epoch at which ranges freeze; None: never."""
        return self.disable_quantization_observer_epoch

    def events(self) -> list[tuple[float, str]]:
        where = ", ".join(self.submodules) if self.submodules else "the entire model"
        further = ["embeddings"] if self.quantize_embeddings else []
        further += [f"inputs of {kind}" for kind in self.custom_quantizable_module_types]
        also = f", {' and '.join(further)} too" if further else ""
        bits = f"{self.weight_bits}-bit weights, {self.activation_bits}-bit activations"
        events = [(max(self.start_epoch, 0.0), f"quantization-aware training begins: {bits} ({where}{also})")]
        if self.freeze_epoch is not None:
            events.append((self.freeze_epoch, "quantization ranges freeze"))
        return events

    def attach(self, state: State) -> None:
        import torch

        from sparse_accel.nn.layers import export_obstacles

        model = state.model
        modules = dict(model.named_modules())
        parts = [_name_in(model, part) for part in self.submodules or [""]]
        self._check_submodules(state, modules)
        inside = {
            name: module
            for name, module in modules.items()
            if any(part == "" or name == part or name.startswith(part + ".") for part in parts)
        }
        for module in inside.values():
            self._quantize(module)
        self._quantize_inputs(state, inside)
        if not self._quantizers:
            raise UsageError(
                f"{self.name}: nothing to quantize in {', '.join(self.submodules or ['the model'])}: it has no Linear, "
                "Embedding or convolution layer"
            )
        for reason, names in export_obstacles(model, only_enabled=False).items():
            warn(f"{self.name}: {listed(names, 3)}: {reason}")
        self._batch_norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        if self.freeze_bn_stats_epoch is not None and not self._batch_norms:
            notice = "freeze_bn_stats_epoch has no effect: the model has no batch normalization"
            state.notices.append(f"{self.name}: {notice}")

    def _check_submodules(self, state: State, modules: dict[str, Any]) -> None:
        model = state.model
        for part in self.submodules or []:
            if (own := _name_in(model, part)) in modules:
                continue
            parent, _, name = own.rpartition(".")
            headless = getattr(model, "base_model", None) is model and part in _HEADS
            if headless or getattr(modules.get(parent), name, part) is None:  # a pooler, which token classifiers lack
                state.notices.append(
                    f"{self.name}: submodules: {type(model).__name__} has no {part}; this entry is ignored"
                )
                continue
            raise UsageError(
                f"{self.name}: submodules: this {_kind(model)} model has no module '{part}'.{nearest(part, modules)} "
                f"Its modules are: {', '.join(_parts(model))}. Use these names, or leave submodules out"
            )

    def _quantize(self, module: torch.nn.Module) -> None:
        """Adds the quantizers of one layer, switched off. Layers of other classes are not changed."""
        from torch import nn

        from sparse_accel.nn.fake_quantize import FakeQuantize, QuantizationScheme
        from sparse_accel.nn.layers import make_sparse, plain_class_name

        kind = plain_class_name(module)
        if kind not in _QUANTIZED_ANYWAY or kind in self.exclude_module_types:
            return
        if kind == "Embedding" and not self.quantize_embeddings:
            return
        activation = self._activation_scheme()
        weight = QuantizationScheme(self.weight_bits, signed=True, symmetric=True)
        layer = make_sparse(module)
        layer.weight_quantizer = FakeQuantize(weight)
        if isinstance(module, nn.Embedding):
            outputs = self.quantize_embedding_activations
        else:
            layer.input_quantizer = FakeQuantize(activation)
            outputs = self.quantize_linear_activations if kind == "Linear" else self.quantize_conv_activations
        if outputs:
            layer.output_quantizer = FakeQuantize(activation)
        for quantizer in (layer.input_quantizer, layer.weight_quantizer, layer.output_quantizer):
            if quantizer is not None:
                quantizer.to(layer.weight.device)
                self._quantizers.append(quantizer)

    def _quantize_inputs(self, state: State, inside: dict[str, torch.nn.Module]) -> None:
        """Adds the quantizers of `custom_quantizable_module_types`, switched off, to layers of exactly these classes.

        Args:
            inside: the modules of `submodules`, by name.

        Raises:
            UsageError: the model has no such layer, or its input cannot be quantized.
        """
        from sparse_accel.nn.fake_quantize import FakeQuantize
        from sparse_accel.nn.layer_outputs import trace_calls
        from sparse_accel.nn.layers import add_input_quantizer, takes_input_quantizer

        if not self.custom_quantizable_module_types:
            return
        key = f"{self.name}: custom_quantizable_module_types"
        traced = trace_calls(state.model) if hasattr(state.model, "dummy_inputs") else None
        quantized = set() if traced is None else _with_quantized_input(state.model, traced)
        classes = {type(module).__name__: takes_input_quantizer(module) for module in state.model.modules()}
        for kind in dict.fromkeys(self.custom_quantizable_module_types):
            usable = sorted(name for name, takes in classes.items() if takes)
            if kind not in classes:
                raise UsageError(
                    f"{key}: this {_kind(state.model)} model has no layer of class '{kind}'.{nearest(kind, usable)} It "
                    f"has {', '.join(usable)}"
                )
            found = {name: module for name, module in inside.items() if type(module).__name__ == kind}
            if not found:
                state.notices.append(f"{key}: there is no {kind} in submodules; this entry is ignored")
            if once := [name for name in found if name in quantized]:
                state.notices.append(
                    f"{key}: the inputs of {len(once)} of {len(found)} layers of class {kind} are outputs that are "
                    f"quantized already ({listed(once, 2)}): they are quantized once. "
                    "quantize_linear_activations: false quantizes the inputs instead"
                )
            for name, module in found.items():
                if name in quantized:
                    continue
                if not takes_input_quantizer(module):
                    raise UsageError(
                        f"{key}: {name or 'the model'} ({kind}) contains other layers: name the classes of these "
                        f"instead. The model has {', '.join(usable)}"
                    )
                quantizer = FakeQuantize(self._activation_scheme()).to(next(state.model.parameters()).device)
                add_input_quantizer(module, quantizer)
                self._quantizers.append(quantizer)
        if traced is not None:
            trace_calls(state.model)  # each of these layers checks its input

    def _activation_scheme(self) -> QuantizationScheme:
        from sparse_accel.nn.fake_quantize import QuantizationScheme

        return QuantizationScheme(self.activation_bits, reduce_range=self.reduce_range)

    def bind(self, state: State) -> None:
        from sparse_accel.nn.fake_quantize import Observers

        self._observers = Observers(self._quantizers)

    def step_begin(self, progress: Progress) -> None:
        enabled = progress.reached(self.start_epoch)
        frozen = self.freeze_epoch is not None and progress.reached(self.freeze_epoch)
        # With a freeze at the start, the first step still sets the ranges that are then frozen.
        self._switch(enabled, observing=enabled and (not frozen or self._observers.fresh))
        if self.freeze_bn_stats_epoch is not None and progress.reached(self.freeze_bn_stats_epoch):
            for module in self._batch_norms:
                module.eval()

    def step_end(self, progress: Progress) -> None:
        if self._quantizers[0].observing:
            self._observers.update()

    def finish(self) -> None:
        self._switch(self._quantizers[0].enabled, observing=False)

    def calibrate(self, forward: Callable[[], None]) -> None:
        """Sets the initial ranges before the first step with quantization, from all rows of that step."""
        if not self._quantizers[0].enabled or any(quantizer.ready for quantizer in self._quantizers):
            return
        for quantizer in self._quantizers:
            quantizer.calibrating = True
        forward()
        for quantizer in self._quantizers:
            quantizer.calibrating = False
        self._observers.calibrate()

    def step_skipped(self) -> None:
        self._observers.reset()

    def apply_at_once(self, forwards: Callable[[], Iterator[None]]) -> None:
        """Updates the ranges with each batch, as in as many training steps; nothing else changes."""
        self._switch(enabled=True, observing=True)
        for quantizer in self._quantizers:
            quantizer.train()  # quantizers observe in training mode only; the model around them stays in eval mode
        for _ in forwards():
            self._observers.update()
        self.finish()

    def _switch(self, enabled: bool, observing: bool) -> None:
        for quantizer in self._quantizers:
            quantizer.enabled, quantizer.observing = enabled, observing

    def structure_final(self, progress: Progress) -> bool:
        return not self._observers.fresh and (self.freeze_epoch is None or progress.reached(self.freeze_epoch))

    def state_dict(self) -> dict[str, torch.Tensor]:
        import torch

        ready = torch.tensor([quantizer.ready for quantizer in self._observers.quantizers])
        return {"minimum": self._observers.minimum, "maximum": self._observers.maximum, "ready": ready}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        if {name: value.shape for name, value in state.items()} != {n: v.shape for n, v in self.state_dict().items()}:
            raise ValueError(f"the ranges of {self.name} belong to other quantizers")
        self._observers.load(state["minimum"], state["maximum"], state["ready"].tolist())
        self._switch(enabled=not self._observers.fresh, observing=False)  # the next step_begin sets `observing`

    def phase(self) -> str:
        first = self._quantizers[0]
        return "" if not first.enabled else "QAT" if first.observing else "QAT, ranges frozen"

    def metrics(self) -> dict[str, float]:
        """Returns the phase: 0 before quantization, 1 while ranges are updated, 2 when they are frozen."""
        first = self._quantizers[0]
        return {"quantization/phase": float(first.enabled) * (1.0 if first.observing else 2.0)}


def _with_quantized_input(model: torch.nn.Module, layout: Layout) -> set[str]:
    """Returns the names of the modules whose input is an output that has a quantizer.

    A second quantizer of the same numbers would be removed by onnxruntime, together with its rounding.
    """
    from torch import Tensor

    modules = dict(model.named_modules())
    outputs = [
        call.output
        for call in layout.calls
        if getattr(modules[call.module], "output_quantizer", None) is not None and isinstance(call.output, Tensor)
    ]
    return {call.module for call in layout.calls if any(call.input is output for output in outputs)}


# Names of heads that `submodules` may list, and an encoder without a head does not have.
_HEADS = ("classifier", "pre_classifier", "qa_outputs", "cls", "lm_head")


def _name_in(model: torch.nn.Module, part: str) -> str:
    """Returns the name of a submodule: in an encoder without a head, names have no prefix such as `bert.`."""
    is_encoder = getattr(model, "base_model", None) is model
    return part.removeprefix(f"{getattr(model, 'base_model_prefix', '')}.") if is_encoder else part


def _kind(model: torch.nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))


def _parts(model: torch.nn.Module) -> list[str]:
    """Returns the names that `submodules` usually lists: the children of the backbone, and the head."""
    parts: list[str] = []
    for name, child in model.named_children():
        inner = [f"{name}.{grandchild}" for grandchild, _ in child.named_children()]
        is_backbone = name == getattr(model, "base_model_prefix", None)
        parts += inner if is_backbone and inner else [name]
    return parts
