"""What layers compute inside of a forward: which outputs a model has, and a recorder that keeps some of them.

Everything works by forward hooks on module objects. They stay the same objects when `accelerator.prepare` wraps a
model, so hooks survive DDP, FSDP2 and DeepSpeed. Shapes: R rows, T tokens, W width, A attention heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparse_accel.distributed.launch import block_lists
from sparse_accel.errors import UsageError, with_article
from sparse_accel.nn.blocks import SkippableBlock

# What the axes of an output after the rows are: (tokens, ..., width), (heads, tokens, tokens), (channels, height,
# width), or (..., width).
Axes = Literal["tokens", "attention", "channels", "width"]


@dataclass(frozen=True)
class LayerOutput:
    """Names one tensor inside of a model's forward.

    Attributes:
        module: name of the module, as in `named_modules`.
        call: which call of the module in one forward, from 0: one that several blocks share is called several times.
        part: which element of an output that is a tuple; -1: the first input of the module instead of an output.
    """

    module: str
    call: int = 0
    part: int = 0

    def __str__(self) -> str:
        what = f"the input of {self.module}" if self.part < 0 else self.module
        return f"{what} (call {self.call})" if self.call else what


class Recorder:
    """Keeps some outputs of layers of each forward of a model, until the next one. It records between `start` and
    `stop`.

    Forwards inside of a backward (gradient checkpointing) are not recorded, because they do not begin at the model.

    Args:
        model: the plain model; wrapping it later is fine.
        wanted: the outputs to keep.
        training: True: record forwards in training mode with gradients only; False: those in eval mode without
            gradients only.
    """

    def __init__(self, model: nn.Module, wanted: Iterable[LayerOutput], *, training: bool) -> None:
        self.model = model
        self.wanted = list(dict.fromkeys(wanted))
        self.training = training
        self._handles: list[Any] = []
        self._recording = False
        self._calls: dict[str, int] = {}
        self._found: dict[int, Tensor] = {}
        if training:  # else a model that was compiled before `start` would go on without the hooks
            torch._dynamo.config.skip_nnmodule_hook_guards = False

    def start(self) -> None:
        """Adds the hooks, unless they are there."""
        if self._handles:
            return
        self._handles = [
            self.model.register_forward_pre_hook(self._begin),
            self.model.register_forward_hook(self._end),
        ]
        for name in dict.fromkeys(each.module for each in self.wanted):
            parts = [(each.call, each.part, number) for number, each in enumerate(self.wanted) if each.module == name]
            self._handles.append(self._add_hook(name, parts))

    def stop(self) -> None:
        """Removes the hooks, and forgets what was recorded."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._recording = [], False
        self._calls, self._found = {}, {}

    def take(self) -> dict[LayerOutput, Tensor]:
        """Returns the outputs of the last forward that was recorded, and forgets them. Those in blocks that are skipped
        (`nn.blocks`) are left out.

        Raises:
            UsageError: there was none since the last call.
        """
        wanted = {number: each for number, each in enumerate(self.wanted) if not _is_skipped(self.model, each)}
        if missing := [each for number, each in wanted.items() if number not in self._found]:
            raise UsageError(
                f"the output of {missing[0]} was not seen: outputs of layers are recorded in forwards of the model "
                f"{'in training mode, with gradients' if self.training else 'in eval mode'}, one before each loss"
                + (": call model.train() before the loop" if self.training else "")
            )
        found, self._found = self._found, {}
        return {each: found[number] for number, each in wanted.items()}

    def _begin(self, model: nn.Module, inputs: Any) -> None:
        self._recording = model.training == torch.is_grad_enabled() == self.training
        if self._recording:
            self._calls, self._found = {}, {}

    def _end(self, model: nn.Module, inputs: Any, output: Any) -> None:
        self._recording = False

    def _add_hook(self, name: str, parts: list[tuple[int, int, int]]) -> Any:
        def record(module: nn.Module, inputs: Any, options: Any, output: Any) -> None:
            if not self._recording:
                return
            number = self._calls.get(name, 0)
            self._calls[name] = number + 1
            for call, part, key in parts:
                if call == number:
                    self._found[key] = first_input(inputs, options) if part < 0 else part_of(output, part)

        return self.model.get_submodule(name).register_forward_hook(record, with_kwargs=True)


def _is_skipped(model: nn.Module, output: LayerOutput) -> bool:
    """Returns True for the output of a block that is skipped, and for what is inside of one; a skipped block still has
    its input."""
    parts = output.module.split(".")
    last = len(parts) if output.part >= 0 else len(parts) - 1
    outer = (model.get_submodule(".".join(parts[:length])) for length in range(1, last + 1))
    return any(isinstance(each, SkippableBlock) and each.skipped for each in outer)


def part_of(output: Any, part: int) -> Any:
    """Returns an element of an output that is a tuple, or the output itself if it is a tensor."""
    return output[part] if isinstance(output, tuple | list) else output


def first_input(inputs: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """Returns the first argument of a forward, by position or, if there is none, by name."""
    return inputs[0] if inputs else next(iter(options.values()))


# --- finding outputs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One call of a module in a forward.

    Attributes:
        module: its name.
        number: which call of this module, from 0.
        input: the first input.
        output: what it returned.
    """

    module: str
    number: int
    input: Any
    output: Any


@dataclass(frozen=True)
class Layout:
    """What `trace_calls` found in a model.

    Attributes:
        model: the model.
        calls: all calls of its modules, in the order in which they ended.
        rows, tokens: of the forward.
    """

    model: nn.Module
    calls: list[Call]
    rows: int
    tokens: int

    def calls_of(self, module: str) -> list[Call]:
        """Returns the calls of one module."""
        return [call for call in self.calls if call.module == module]

    def shape_of(self, output: LayerOutput) -> tuple[int, ...]:
        """Returns the shape of an output, which begins with the number of rows.

        Raises:
            ValueError: it is not a tensor of numbers with an entry for each row of the batch.
        """
        call = self.calls_of(output.module)[output.call]
        value = call.input if output.part < 0 else part_of(call.output, output.part)
        if not isinstance(value, Tensor):
            kind = with_article(type(value).__name__)
            raise ValueError(f"{output} returns {kind}, not a tensor: name a layer inside of it")
        if not value.is_floating_point() or value.ndim < 2 or value.shape[0] != self.rows:
            raise ValueError(f"{output} does not return a vector for each row or token: it cannot be compared")
        return tuple(value.shape)

    def axes_of(self, output: LayerOutput) -> Axes:
        """Returns what the axes after the rows are; raises ValueError as `shape_of`."""
        shape = self.shape_of(output)
        if len(shape) == 4 and isinstance(self.model.get_submodule(output.module), nn.Conv2d):
            return "channels"
        if len(shape) == 4 and shape[2:] == (self.tokens, self.tokens):
            return "attention"
        return "tokens" if len(shape) > 2 and shape[1] == self.tokens else "width"


@torch.no_grad()
def trace_calls(model: nn.Module) -> Layout:
    """Runs one forward over a few tokens, in eval mode, and returns the calls of all modules. The model is unchanged,
    and no random numbers are drawn.

    Raises:
        UsageError: the model does not say what its inputs are: it has no `dummy_inputs`, as transformers' models have.
    """
    given: dict[str, Tensor] | None = getattr(model, "dummy_inputs", None)
    if given is None:
        raise UsageError(
            f"the layers of {type(model).__name__} cannot be compared: it has no `dummy_inputs`, which transformers' "
            "models have: a dict of example inputs"
        )
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in given.items()}
    if "input_ids" in inputs:  # without a mask, transformers warns of ids that may be padding
        inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
    calls: list[Call] = []
    numbers: dict[str, int] = {}
    handles = []

    def add(name: str) -> Any:
        def record(module: nn.Module, arguments: Any, options: Any, output: Any) -> None:
            number = numbers.get(name, 0)
            numbers[name] = number + 1
            first = first_input(arguments, options) if arguments or options else None
            calls.append(Call(name, number, first, output))

        return record

    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_hook(add(name), with_kwargs=True))
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, flag in training.items():
            module.training = flag
    first = next(iter(inputs.values()))
    return Layout(model, calls, first.shape[0], first.shape[1])


def hidden_state_outputs(layout: Layout) -> list[LayerOutput]:
    """Returns the outputs of the model's blocks, (R, T, W), in order: the entries of its outermost ModuleLists. A block
    that is used several times (ALBERT) counts as often."""
    blocks = {
        f"{name}.{number}" for name, entries in block_lists(layout.model).items() for number in range(len(entries))
    }
    shape = (layout.rows, layout.tokens)
    return [
        LayerOutput(call.module, call.number)
        for call in layout.calls
        if call.module in blocks and _shape(part_of(call.output, 0))[:-1] == shape
    ]


def attention_outputs(layout: Layout) -> list[LayerOutput]:
    """Returns the attention probabilities, (R, A, T, T), in order; only a model with `eager` attention has some. Where
    a module passes on those of a module inside of it, the inner one is taken."""
    found = []
    for call in layout.calls:
        for part, value in enumerate(call.output) if isinstance(call.output, tuple | list) else []:
            shape = _shape(value)
            if len(shape) == 4 and shape[0] == layout.rows and shape[2:] == (layout.tokens, layout.tokens):
                found.append(LayerOutput(call.module, call.number, part))
                break
    names = {each.module for each in found}
    outer = {
        name for name in names if any(other.startswith(f"{name}.") for other in names) or (not name and names - {""})
    }
    return [each for each in found if each.module not in outer]


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()
