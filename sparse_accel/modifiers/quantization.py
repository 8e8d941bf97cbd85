"""Quantization-aware training: from an epoch on, layers compute with 8-bit weights and activations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sparse_accel.console import warn
from sparse_accel.errors import UsageError, counted, listed
from sparse_accel.modifiers.base import FieldError, Modifier
from sparse_accel.modifiers.quantization_scheme import (
    LayerScheme,
    TensorScheme,
    parse_scheme,
    parse_weight_options,
)
from sparse_accel.modifiers.quantized_layers import (
    WITH_WEIGHT,
    add_quantizers,
    check_classes_left_out,
    layers_in_parts,
    layers_of_scheme,
)
from sparse_accel.progress import ROUNDING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sparse_accel.modifiers.state import State
    from sparse_accel.nn.fake_quantize import FakeQuantize
    from sparse_accel.progress import Progress

# The keys of one form each, with the values that they have there if they are left out.
_WITHOUT_SCHEME: dict[str, Any] = {
    "submodules": None,
    "quantize_embeddings": True,
    "quantize_embedding_activations": True,
    "quantize_linear_activations": True,
    "quantize_conv_activations": True,
    "exclude_module_types": [],
    "custom_quantizable_module_types": [],
    "activation_bits": 8,
    "weight_bits": 8,
    "reduce_range": False,
    "tensorrt": False,
    "weight_qconfig_kwargs": None,
}
_WITH_SCHEME: dict[str, Any] = {"scheme": "default", "scheme_overrides": {}, "ignore": [], "strict": True}
# Values of these that say nothing, so that they do not choose a form.
_SILENT: tuple[Any, ...] = (None, {}, [])
# For each class of layers with outputs that may be quantized: the key that says so.
_OUTPUTS = {
    "Linear": "quantize_linear_activations",
    "Embedding": "quantize_embedding_activations",
    "Conv1d": "quantize_conv_activations",
    "Conv2d": "quantize_conv_activations",
}


@dataclass(kw_only=True)
class QuantizationModifier(Modifier):
    """Trains with fake quantization: weights int8 symmetric, one scale per tensor or per row, and 8-bit activations.

    It has two forms. A key of the form without a scheme (`submodules`, `quantize_...`, `exclude_module_types`,
    `custom_quantizable_module_types`, `..._bits`, `reduce_range`, `tensorrt`, `weight_qconfig_kwargs`) selects that:
    Linear and convolution layers get a quantizer each for input, weight and output, Embedding layers for weight and
    output, layers of `custom_quantizable_module_types` for their input; activations are uint8 affine.

    Otherwise `scheme` says how layers are quantized: see
    [quantization.md](quantization.md#the-form-with-a-scheme). Keys of both forms together are an error.

    Weights are symmetric, so that a pruned 0 stays the integer 0. Ranges follow a moving average of the minimum and
    maximum of each step (constant 0.01; Jacob et al. 2018, arXiv 1712.05877), over training data only. Token ids,
    and the products in attention, are never quantized.
    """

    end_epoch: float = -1.0
    """Must be left out: quantization stays until the end of training."""
    disable_quantization_observer_epoch: float | None = None
    """Epoch at which ranges freeze; left out: they are updated until the end of training."""
    freeze_bn_stats_epoch: float | None = None
    """Epoch at which the statistics of batch normalization freeze; left out: never."""
    num_calibration_steps: int | None = None
    """Number of batches of training rows that ranges start from, in eval mode; left out: the rows of the first step
    with quantization, and with --one_shot up to 32 batches. In your own loop, pass `gradient_loader` to
    `RecipeRun.bind`."""
    scheme: str | dict[str, Any] | None = None
    """How layers are quantized: default, deepsparse or tensorrt, or a mapping with input_activations, weights and
    output_activations, each null or a mapping with num_bits, symmetric, strategy (tensor or channel) and kwargs
    (averaging_constant, reduce_range); left out: default."""
    scheme_overrides: dict[str, Any] | None = None
    """Other schemes for some layers, by class name or by the beginning of names: the longest that fits decides, then
    the class. Left out: none."""
    ignore: list[str] | None = None
    """Class names of layers to keep in float, or beginnings of names; left out: none."""
    strict: bool | None = None
    """Whether an entry of ignore or scheme_overrides that matches nothing is an error; left out: true."""
    submodules: list[str] | None = None
    """Names of the modules to quantize, such as bert.encoder; left out: the entire model."""
    quantize_embeddings: bool | None = None
    """Quantize the weights of Embedding layers; false: these layers stay in float. Left out: true."""
    quantize_embedding_activations: bool | None = None
    """Quantize the outputs of quantized Embedding layers; left out: true."""
    quantize_linear_activations: bool | None = None
    """Quantize the outputs of Linear layers; their inputs are always quantized. Left out: true."""
    quantize_conv_activations: bool | None = None
    """Quantize the outputs of convolution layers; their inputs are always quantized. Left out: true."""
    exclude_module_types: list[str] | None = None
    """Class names of layers to keep in float, such as Conv1d or LayerNorm; left out: none."""
    custom_quantizable_module_types: list[str] | None = None
    """Class names of further layers whose inputs are quantized, such as GELUActivation, also if `exclude_module_types`
    has them; left out: none."""
    activation_bits: int | None = None
    """Bits per activation, 2 to 8; left out: 8."""
    weight_bits: int | None = None
    """Bits per weight, 2 to 8; left out: 8."""
    reduce_range: bool | None = None
    """Use one bit less for activations, for CPUs without VNNI; left out: false."""
    tensorrt: bool | None = None
    """Quantize as TensorRT needs it: activations int8 symmetric, and no outputs; left out: false."""
    weight_qconfig_kwargs: dict[str, Any] | None = None
    """Options of the weights' quantizers: qscheme (per_tensor_symmetric, or per_channel_symmetric for one scale per
    row), averaging_constant, reduce_range."""

    needs_rows: ClassVar[bool] = True
    acts_at_once: ClassVar[bool] = True
    one_at_a_time: ClassVar[bool] = True
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "activation_qconfig_kwargs": (None, {}),
        "exclude_batchnorm": (True,),
        "model_fuse_fn_name": (None,),
        "model_fuse_fn_kwargs": (None, {}),
    }
    known_later: ClassVar[dict[str, str]] = {
        "activation_qconfig_kwargs": "activations are uint8 affine, the default of SparseML; a scheme has other ones",
    }
    without_effect: ClassVar[dict[str, str]] = {
        "model_fuse_fn_name": "encoders have no convolution, batch normalization and ReLU to fuse",
        "model_fuse_fn_kwargs": "encoders have no convolution, batch normalization and ReLU to fuse",
        "exclude_batchnorm": "batch normalization is never quantized",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.end_epoch != -1:
            raise FieldError("end_epoch", "quantization stays until the end of training: leave end_epoch out")
        freeze = self.disable_quantization_observer_epoch
        if freeze == -1:
            self.disable_quantization_observer_epoch = None
        elif freeze is not None and freeze < max(self.start_epoch, 0) - ROUNDING:
            raise FieldError(
                "disable_quantization_observer_epoch",
                f"ranges would freeze at epoch {freeze:g}, before quantization begins at epoch "
                f"{max(self.start_epoch, 0):g}: freeze them later",
            )
        if self.num_calibration_steps is not None and self.num_calibration_steps < 1:
            raise FieldError("num_calibration_steps", f"expected a number from 1 on, got {self.num_calibration_steps}")
        self._choose_form()
        self._quantizers: list[FakeQuantize] = []
        self._batch_norms: list[nn.Module] = []

    def _choose_form(self) -> None:
        """Sets the keys of the form that the recipe has to their values, and reads the scheme."""
        first = [key for key in _WITHOUT_SCHEME if getattr(self, key) is not None]
        second = [key for key in ("scheme", "scheme_overrides", "ignore") if getattr(self, key) not in _SILENT]
        second += ["strict"] if self.strict is False else []
        if first and second:
            raise FieldError(
                second[0],
                f"belongs to the form with a scheme, and {listed(first, 4)} to the one without: use the keys of one "
                "form. ignore does what exclude_module_types does",
            )
        self._has_scheme = not first
        for key, value in (_WITH_SCHEME if self._has_scheme else _WITHOUT_SCHEME).items():
            if getattr(self, key) is None:
                setattr(self, key, False if self.tensorrt and key in _OUTPUTS.values() else copy.copy(value))
        if self._has_scheme:
            self._read_scheme()
        else:
            self.scheme = self.scheme_overrides = self.ignore = self.strict = None
            self._check_without_scheme()

    def _read_scheme(self) -> None:
        self._scheme = parse_scheme("scheme", self.scheme)
        overrides = self.scheme_overrides or {}
        for key, entries in (("ignore", self.ignore or []), ("scheme_overrides", overrides)):
            if "" in entries:
                raise FieldError(key, "an empty name matches all layers: name a class, or the beginning of names")
        self._overrides = {
            each: parse_scheme("scheme_overrides", written, (each,)) for each, written in overrides.items()
        }

    def _check_without_scheme(self) -> None:
        for key in ("activation_bits", "weight_bits"):
            if not 2 <= getattr(self, key) <= 8:
                raise FieldError(key, f"expected 2 to 8, got {getattr(self, key)}")
        if self.reduce_range and self.activation_bits == 2:
            raise FieldError("reduce_range", "of 2 bits per activation, none may be left unused")
        if "" in (self.submodules or []):
            raise FieldError("submodules", "has an empty name: name modules, or leave submodules out for all")
        for kind in self.custom_quantizable_module_types or []:
            if kind in WITH_WEIGHT:
                message = f"{kind} layers are quantized without this key: remove {kind} from its list"
                raise FieldError("custom_quantizable_module_types", message)
        self._weight = parse_weight_options(
            "weight_qconfig_kwargs", self.weight_qconfig_kwargs or {}, int(self.weight_bits or 8)
        )

    @property
    def freeze_epoch(self) -> float | None:
        """The epoch at which ranges freeze; None: never."""
        return self.disable_quantization_observer_epoch

    @property
    def calibration_batches(self) -> int | None:
        return self.num_calibration_steps

    def events(self) -> list[tuple[float, str]]:
        events = [(max(self.start_epoch, 0.0), f"quantization-aware training begins: {self._in_words()}")]
        if self.freeze_epoch is not None:
            events.append((self.freeze_epoch, "quantization ranges freeze"))
        return events

    def _in_words(self) -> str:
        if self._has_scheme:
            name = self.scheme if isinstance(self.scheme, str) else "of its own"
            others = [counted(len(self._overrides), "override")] if self._overrides else []
            others += [f"without {listed(self.ignore, 4)}"] if self.ignore else []
            return ", ".join([f"scheme {name} (the entire model", *others]) + ")"
        where = ", ".join(self.submodules) if self.submodules else "the entire model"
        further = ["embeddings"] if self.quantize_embeddings else []
        further += [f"inputs of {kind}" for kind in self.custom_quantizable_module_types or []]
        also = f", {' and '.join(further)} too" if further else ""
        return f"{self.weight_bits}-bit weights, {self.activation_bits}-bit activations ({where}{also})"

    def attach(self, state: State) -> None:
        import torch

        from sparse_accel.nn.layer_outputs import trace_calls
        from sparse_accel.nn.layers import export_obstacles

        model = state.model
        schemes = self._schemes_of_layers(state)
        if not schemes:
            where = ", ".join(self.submodules or ["the model"])
            left_out = "scheme, scheme_overrides and ignore" if self._has_scheme else "exclude_module_types"
            raise UsageError(
                f"{self.name}: nothing to quantize in {where}: it has no Linear, Embedding or convolution layer, or "
                f"{left_out} leave all of them in float"
            )
        self._quantizers = add_quantizers(model, schemes)
        if self.custom_quantizable_module_types and hasattr(model, "dummy_inputs"):
            trace_calls(model)  # each of these layers checks its input
        for reason, names in export_obstacles(model, only_enabled=False).items():
            warn(f"{self.name}: {listed(names, 3)}: {reason}")
        self._batch_norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        if self.freeze_bn_stats_epoch is not None and not self._batch_norms:
            notice = "freeze_bn_stats_epoch has no effect: the model has no batch normalization"
            state.notices.append(f"{self.name}: {notice}")

    def _schemes_of_layers(self, state: State) -> dict[str, LayerScheme]:
        if self._has_scheme:
            strict = self.strict is not False
            return layers_of_scheme(state, self.name, self._scheme, self._overrides, self.ignore or [], strict)
        outputs = [key for key in dict.fromkeys(_OUTPUTS.values()) if getattr(self, key)]
        if self.tensorrt and outputs:
            state.notices.append(f"{self.name}: tensorrt leaves outputs in float: {listed(outputs)} has no effect")
        check_classes_left_out(state, self.name, self.exclude_module_types or [])
        custom = self.custom_quantizable_module_types or []
        inputs = LayerScheme(input=self._activation)
        return layers_in_parts(state, self.name, self.submodules or [], self._scheme_of_class, custom, inputs)

    def _scheme_of_class(self, kind: str) -> LayerScheme | None:
        """How a class of layers is quantized in the form without a scheme; None: it stays in float."""
        if kind in (self.exclude_module_types or []) or (kind == "Embedding" and not self.quantize_embeddings):
            return None
        # SparseML's engine for TensorRT takes no quantized outputs: the inputs of the next layers are quantized.
        has_output = getattr(self, _OUTPUTS[kind]) and not self.tensorrt
        has_input = kind != "Embedding"
        return LayerScheme(
            self._activation if has_input else None, self._weight, self._activation if has_output else None
        )

    @property
    def _activation(self) -> TensorScheme:
        """An activation in the form without a scheme."""
        bits, symmetric = int(self.activation_bits or 8), bool(self.tensorrt)
        return TensorScheme(bits, signed=symmetric, symmetric=symmetric, reduce_range=bool(self.reduce_range))

    def bind(self, state: State) -> None:
        from sparse_accel.nn.fake_quantize import Observers

        self._observers = Observers(self._quantizers)
        self._forwards = state.forwards

    def step_begin(self, progress: Progress) -> None:
        enabled = progress.reached(self.start_epoch)
        frozen = self.freeze_epoch is not None and progress.reached(self.freeze_epoch)
        if enabled and self._observers.fresh and self.num_calibration_steps is not None:
            self._run_batches()
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
        self._collect(True)
        forward()
        self._collect(False)
        self._observers.calibrate()

    def step_skipped(self) -> None:
        self._observers.reset()

    def apply_at_once(self, forwards: Callable[[], Iterator[None]]) -> None:
        """Updates the ranges with each batch, as in as many training steps; nothing else changes."""
        for quantizer in self._quantizers:
            quantizer.train()  # quantizers observe in training mode only; the model around them stays in eval mode
        if self.num_calibration_steps is not None:
            self._run_batches()
        else:
            self._switch(enabled=True, observing=True)
            for _ in forwards():
                self._observers.update()
        self.finish()

    def _run_batches(self) -> None:
        """Sets the ranges from the first of the batches of `num_calibration_steps`, and moves them with the others."""
        assert self._forwards is not None and self.num_calibration_steps is not None
        self._switch(enabled=True, observing=True)
        self._collect(True)  # a range that a part of the batch sets would depend on how processes split the batch
        for _ in self._forwards(self.num_calibration_steps):
            if self._observers.fresh:
                self._collect(False)
                self._observers.calibrate()
                self._observers.fresh = False
            else:
                self._observers.update()

    def _collect(self, calibrating: bool) -> None:
        for quantizer in self._quantizers:
            quantizer.calibrating = calibrating

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
