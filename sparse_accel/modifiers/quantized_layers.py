"""Which layers of a model a QuantizationModifier quantizes, and how: in both forms, a scheme for each layer by name.

The form without a scheme names parts of a model (`layers_in_parts`), the form with a scheme takes all layers but those
that it ignores (`layers_of_scheme`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sparse_accel.errors import UsageError, listed, nearest
from sparse_accel.modifiers.quantization_scheme import LayerScheme, TensorScheme

if TYPE_CHECKING:
    from torch import nn

    from sparse_accel.modifiers.state import State
    from sparse_accel.nn.fake_quantize import FakeQuantize
    from sparse_accel.nn.layer_outputs import Layout

# The classes of layers with a weight that is quantized.
WITH_WEIGHT = ("Linear", "Embedding", "Conv1d", "Conv2d")
# SparseML's wrappers of the products in attention, which recipes may list: these products stay in float here.
_ATTENTION_PRODUCT = "QATMatMul"
# Names of heads that `submodules` may list, and an encoder without a head does not have.
_HEADS = ("classifier", "pre_classifier", "qa_outputs", "cls", "lm_head")


def add_quantizers(model: nn.Module, schemes: Mapping[str, LayerScheme]) -> list[FakeQuantize]:
    """Adds the quantizers of layers, switched off, and returns them in the order of `schemes`.

    Args:
        schemes: by the name of the layer; one without a weight gets a quantizer of its input only.
    """
    from sparse_accel.nn.layers import add_input_quantizer, make_sparse, plain_class_name

    found: list[FakeQuantize] = []
    device = next(model.parameters()).device
    for name, scheme in schemes.items():
        module = model.get_submodule(name)
        if plain_class_name(module) not in WITH_WEIGHT:
            if scheme.input is not None:
                found.append(_quantizer(scheme.input, 1).to(device))
                add_input_quantizer(module, found[-1])
            continue
        layer = make_sparse(module)
        channels = len(layer.weight) if scheme.weight and scheme.weight.per_channel else 1
        layer.input_quantizer = _quantizer(scheme.input, 1) if scheme.input else None
        layer.weight_quantizer = _quantizer(scheme.weight, channels) if scheme.weight else None
        layer.output_quantizer = _quantizer(scheme.output, 1) if scheme.output else None
        for quantizer in (layer.input_quantizer, layer.weight_quantizer, layer.output_quantizer):
            if quantizer is not None:
                found.append(quantizer.to(layer.weight.device))
    return found


def _quantizer(scheme: TensorScheme, channels: int) -> FakeQuantize:
    from sparse_accel.nn.fake_quantize import FakeQuantize

    return FakeQuantize(scheme.to_quantization_scheme(), channels, scheme.averaging_constant)


# --- the form without a scheme ----------------------------------------------------------------------------------------


def layers_in_parts(
    state: State,
    name: str,
    submodules: Sequence[str],
    scheme_of: Callable[[str], LayerScheme | None],
    custom: Sequence[str],
    custom_scheme: LayerScheme,
) -> dict[str, LayerScheme]:
    """Returns the schemes of the layers in `submodules`, by name; those of the classes `custom` come last.

    Args:
        name: of the modifier, for messages.
        submodules: names of modules; empty: the entire model.
        scheme_of: returns the scheme of a class of layers with a weight; None: they stay in float.
        custom: class names of further layers, which get a quantizer of their input.
        custom_scheme: theirs.

    Raises:
        UsageError: the model has no such module or class, or a layer of such a class cannot be quantized.
    """
    from sparse_accel.nn.layers import plain_class_name

    model = state.model
    modules = dict(model.named_modules())
    _check_submodules(state, name, submodules, modules)
    parts = [name_in(model, part) for part in submodules] or [""]
    inside = {
        each: module
        for each, module in modules.items()
        if any(part == "" or each == part or each.startswith(part + ".") for part in parts)
    }
    found: dict[str, LayerScheme] = {}
    for each, module in inside.items():
        kind = plain_class_name(module)
        if kind in WITH_WEIGHT and (scheme := scheme_of(kind)):
            found[each] = scheme
    if not custom:
        return found
    layout = _traced(model)
    for each in _custom_layers(state, name, inside, custom, _with_quantized_input(found, layout)):
        found[each] = custom_scheme
    return found


def check_classes_left_out(state: State, name: str, kinds: Sequence[str]) -> None:
    """Checks `exclude_module_types`. Classes that the model lacks may be listed: a recipe is for several models.

    Args:
        name: of the modifier, for messages.
        kinds: class names of layers that stay in float.

    Raises:
        UsageError: a name is like that of a class that would be quantized then.
    """
    from torch import nn

    from sparse_accel.nn.layers import plain_class_name

    present = {plain_class_name(module) for module in state.model.modules()}
    for kind in dict.fromkeys(kinds):
        if kind in present or hasattr(nn, kind):
            continue
        key = f"{name}: exclude_module_types: this {_kind(state.model)} model has no layer of class '{kind}'."
        if like := nearest(kind, sorted(present & {*WITH_WEIGHT})):
            raise UsageError(f"{key}{like}")
        state.notices.append(f"{key} This entry is ignored")


def _check_submodules(state: State, name: str, submodules: Sequence[str], modules: Mapping[str, Any]) -> None:
    model = state.model
    for part in submodules:
        if (own := name_in(model, part)) in modules:
            continue
        parent, _, last = own.rpartition(".")
        headless = getattr(model, "base_model", None) is model and part in _HEADS
        if headless or getattr(modules.get(parent), last, part) is None:  # a pooler, which token classifiers lack
            state.notices.append(f"{name}: submodules: {type(model).__name__} has no {part}; this entry is ignored")
            continue
        raise UsageError(
            f"{name}: submodules: this {_kind(model)} model has no module '{part}'.{nearest(part, modules)} "
            f"Its modules are: {', '.join(_parts(model))}. Use these names, or leave submodules out"
        )


def _custom_layers(
    state: State, name: str, inside: Mapping[str, nn.Module], custom: Sequence[str], quantized: set[str]
) -> list[str]:
    """Returns the names of the layers of exactly these classes, without those whose input is quantized already.

    Args:
        inside: the modules of `submodules`, by name.
        quantized: the names of modules whose input is quantized already.
    """
    from sparse_accel.nn.layers import takes_input_quantizer

    key = f"{name}: custom_quantizable_module_types"
    classes = {type(module).__name__: takes_input_quantizer(module) for module in state.model.modules()}
    chosen: list[str] = []
    for kind in dict.fromkeys(custom):
        usable = sorted(each for each, takes in classes.items() if takes)
        if kind not in classes:
            raise UsageError(
                f"{key}: this {_kind(state.model)} model has no layer of class '{kind}'.{nearest(kind, usable)} It "
                f"has {', '.join(usable)}"
            )
        found = {each: module for each, module in inside.items() if type(module).__name__ == kind}
        if not found:
            state.notices.append(f"{key}: there is no {kind} in submodules; this entry is ignored")
        if once := [each for each in found if each in quantized]:
            state.notices.append(
                f"{key}: the inputs of {len(once)} of {len(found)} layers of class {kind} are outputs that are "
                f"quantized already ({listed(once, 2)}): they are quantized once. "
                "quantize_linear_activations: false quantizes the inputs instead"
            )
        for each, module in found.items():
            if each in quantized:
                continue
            if not takes_input_quantizer(module):
                raise UsageError(
                    f"{key}: {each or 'the model'} ({kind}) contains other layers: name the classes of these "
                    f"instead. The model has {', '.join(usable)}"
                )
            chosen.append(each)
    return chosen


def _traced(model: nn.Module) -> Layout | None:
    """What a forward calls; None for a model that does not say what its inputs are."""
    from sparse_accel.nn.layer_outputs import trace_calls

    return trace_calls(model) if hasattr(model, "dummy_inputs") else None


def _with_quantized_input(schemes: Mapping[str, LayerScheme], layout: Layout | None) -> set[str]:
    """Returns the names of the modules whose input is an output that has a quantizer.

    A second quantizer of the same numbers would be removed by onnxruntime, together with its rounding.
    """
    if layout is None:
        return set()
    having = {each for each, scheme in schemes.items() if scheme.output is not None}
    outputs = {id(call.output) for call in layout.calls if call.module in having}
    return {call.module for call in layout.calls if id(call.input) in outputs}


# --- the form with a scheme -------------------------------------------------------------------------------------------


def layers_of_scheme(
    state: State,
    name: str,
    scheme: LayerScheme,
    overrides: Mapping[str, LayerScheme],
    ignore: Sequence[str],
    strict: bool,
) -> dict[str, LayerScheme]:
    """Returns the schemes of all layers of a model, by name, as SparseML chooses them.

    Layers with a weight get all that their scheme says, but an Embedding no quantizer of its input, which is integers.
    Of other layers without layers inside, the inputs are quantized, except for Dropout, Identity, losses, batch
    normalization, and what does not compute one tensor from one.

    Args:
        name: of the modifier, for messages.
        scheme: of all layers that no override is for.
        overrides: by the beginning of names (the longest that fits decides), or by class.
        ignore: beginnings of names, or classes, of layers that stay in float.
        strict: whether an entry that matches nothing is an error.

    Raises:
        UsageError: an entry of `ignore` or `overrides` matches nothing, or only modules that contain the layers; or a
            scheme asks for the outputs of a layer without a weight.
    """
    from sparse_accel.nn.layers import plain_class_name

    model = state.model
    layout = _traced(model)
    kinds = {each: plain_class_name(module) for each, module in model.named_modules() if each and _is_leaf(module)}
    quantizable = {
        each
        for each, kind in kinds.items()
        if kind in WITH_WEIGHT or _computes(each, model.get_submodule(each), layout)
    }
    found: dict[str, LayerScheme] = {}
    for each, kind in kinds.items():
        if each not in quantizable or _entry_for(model, ignore, each, kind) is not None:
            continue
        entry = _entry_for(model, overrides, each, kind)
        of_layer = scheme if entry is None else overrides[entry]
        if kind == "Embedding":
            of_layer = replace(of_layer, input=None)  # token ids
        elif kind not in WITH_WEIGHT:
            if of_layer.output is not None:
                raise UsageError(
                    f"{name}: output_activations of {each} ({kind}): only outputs of {', '.join(WITH_WEIGHT)} can be "
                    f"quantized. Add {kind} to ignore, or give it a scheme of its own in scheme_overrides: "
                    f"{{{kind}: {{output_activations: null}}}}"
                )
            of_layer = LayerScheme(input=of_layer.input)
        if of_layer != LayerScheme():
            found[each] = of_layer
    _check_entries(state, f"{name}: ignore", ignore, kinds, kinds, strict)
    _check_entries(state, f"{name}: scheme_overrides", list(overrides), kinds, quantizable, strict)
    once = [each for each in _with_quantized_input(found, layout) if each in found and found[each].weight is None]
    if once:
        state.notices.append(
            f"{name}: the inputs of {listed(sorted(once), 2)} are outputs that are quantized already: they are "
            "quantized once"
        )
    return {each: of_layer for each, of_layer in found.items() if each not in once}


def _entry_for(model: nn.Module, entries: Collection[str], name: str, kind: str) -> str | None:
    """Returns the entry that is for a layer: the longest with which its name begins, else its class; None: none is."""
    named = [entry for entry in entries if name.startswith(name_in(model, entry))]
    return max(named, key=len) if named else kind if kind in entries else None


def _check_entries(
    state: State, key: str, entries: Sequence[str], kinds: Mapping[str, str], subject: Collection[str], strict: bool
) -> None:
    """Raises UsageError for an entry that matches nothing, or no layer; notes what else an entry matches.

    Args:
        key: modifier and key, for messages.
        kinds: the classes of all layers, by name.
        subject: the names of the layers on which an entry has an effect.
    """
    model = state.model
    classes = sorted(set(kinds.values()))
    for entry in entries:
        prefix = name_in(model, entry)
        matched = [each for each, kind in kinds.items() if each.startswith(prefix) or kind == entry]
        if entry == _ATTENTION_PRODUCT:
            state.notices.append(f"{key}: products in attention are never quantized here: {entry} has no effect")
        elif not matched and any(type(module).__name__ == entry for module in model.modules()):
            raise UsageError(
                f"{key}: modules of class {entry} contain layers, each with a scheme of its own: name the layers, or "
                f"their classes ({', '.join(classes)})"
            )
        elif not matched and strict:
            raise UsageError(
                f"{key}: this {_kind(model)} model has no layer of class '{entry}', and none whose name begins so."
                f"{nearest(entry, [*classes, *dict(model.named_modules())])} It has {', '.join(classes)}. With strict: "
                "false, such an entry is ignored"
            )
        elif matched and not any(each in subject for each in matched):
            state.notices.append(f"{key}: {entry} has no effect: such layers are never quantized")
        beyond = [each for each in matched if each.startswith(prefix) and each[len(prefix) : len(prefix) + 1].isdigit()]
        if beyond and prefix[-1:].isdigit():
            state.notices.append(
                f"{key}: {entry} also matches {beyond[0]}, because its name begins so, as in SparseML; {entry}. with a "
                "dot does not"
            )


def _is_leaf(module: nn.Module) -> bool:
    """Whether no layers are inside of a module; quantizers do not count."""
    from sparse_accel.nn.fake_quantize import FakeQuantize

    if isinstance(module, FakeQuantize):
        return False
    return all(isinstance(child, FakeQuantize) for child in module.children())


def _computes(name: str, module: nn.Module, layout: Layout | None) -> bool:
    """Whether a layer without a weight computes a tensor of floats from one, and changes its numbers.

    Without a layout, only its class tells. Rotary embeddings read nothing but the type of their input.
    """
    from torch import Tensor, nn

    containers = (nn.ModuleList, nn.ModuleDict, nn.Sequential, nn.ParameterList, nn.ParameterDict)
    passing = (nn.Identity, nn.modules.loss._Loss, nn.modules.batchnorm._BatchNorm, *containers)
    if isinstance(module, passing) or "dropout" in type(module).__name__.lower():
        return False
    if layout is None:
        return True
    calls = layout.calls_of(name)
    tensors = [value for call in calls for value in (call.input, call.output)]
    return bool(calls) and all(isinstance(each, Tensor) and each.is_floating_point() for each in tensors)


# --- names ------------------------------------------------------------------------------------------------------------


def name_in(model: nn.Module, part: str) -> str:
    """Returns the name of a submodule: in an encoder without a head, names have no prefix such as `bert.`."""
    is_encoder = getattr(model, "base_model", None) is model
    return part.removeprefix(f"{getattr(model, 'base_model_prefix', '')}.") if is_encoder else part


def _kind(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))


def _parts(model: nn.Module) -> list[str]:
    """Returns the names that `submodules` usually lists: the children of the backbone, and the head."""
    parts: list[str] = []
    for name, child in model.named_children():
        inner = [f"{name}.{grandchild}" for grandchild, _ in child.named_children()]
        is_backbone = name == getattr(model, "base_model_prefix", None)
        parts += inner if is_backbone and inner else [name]
    return parts
