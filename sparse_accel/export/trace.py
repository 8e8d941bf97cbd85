"""Tracing: from a PyTorch model to an ONNX graph in which every Linear and Embedding is one node with its name.

torch.export sees a placeholder instead of each such layer, and of each quantizer in front of another layer, so the
exporter and its optimizer cannot change the weights: `lower.py` adds them afterwards, in the requested format. The
exporter writes everything else (attention, LayerNorm, activations, masks), with the model's names for its parameters.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import onnx
import torch
from torch import Tensor, nn

from sparse_accel.errors import UsageError
from sparse_accel.nn.layers import SparseEmbedding, SparseLayer, SparseLinear
from sparse_accel.tasks import task_of

# The operator domain of the placeholders; `lower.py` replaces all of them.
DOMAIN = "sparse_accel"
# The opset of PyTorch's exporter; `opset.py` rewrites the graph for older opsets.
NATIVE_OPSET = 18
_EXAMPLE_TOKENS = 8
_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def trace(model: nn.Module, tokenizer: Any, *, sequence_length: int | None = None, opset: int = 18) -> onnx.ModelProto:
    """Returns the graph of a model, from token ids to logits or embeddings, with placeholders for its layers.

    Args:
        model: of transformers, with the head of a task or with pooling, float32.
        tokenizer: determines the inputs: input_ids, attention_mask and, if it makes them, token_type_ids.
        sequence_length: number of tokens per row; None leaves it open. The batch size is always open.
        opset: of the graph, at least NATIVE_OPSET.

    Returns:
        A model with inputs (batch, sequence) int64, the outputs that its task names, such as `logits` (batch, labels)
        float32, and nodes
        `sparse_accel::Linear`, `sparse_accel::Embedding` and `sparse_accel::InputQuantizer` with one input, and the
        attributes `layer`, the layer's name, and `rank`, the input's number of axes.

    Raises:
        UsageError: the exporter cannot trace this architecture, or fixed an axis that should be open.
    """
    keys = task_of(model).logit_keys
    model = _with_outputs(_with_placeholders(model), keys)
    inputs = example_inputs(model, tokenizer, sequence_length or _EXAMPLE_TOKENS)
    axes: dict[int, Any] = {0: "batch"} if sequence_length else {0: "batch", 1: "sequence"}
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    try:
        with _quiet():
            program = torch.onnx.export(
                model,
                (),
                kwargs=inputs,
                dynamic_shapes={name: axes for name in inputs},
                input_names=list(inputs),
                output_names=list(keys),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        raise UsageError(
            f"PyTorch's ONNX exporter cannot trace this {kind} ({_reason(error)}). "
            "Known to work: BERT, MiniLM, RoBERTa, XLM-R, DistilBERT, ELECTRA, ALBERT, DeBERTa-v2, ModernBERT, MPNet"
        ) from error
    assert program is not None
    proto = program.model_proto
    for value in proto.graph.input:
        for axis in axes:
            if not value.type.tensor_type.shape.dim[axis].dim_param:
                raise UsageError(
                    f"the exporter fixed the {axes[axis]} axis of this {kind}"
                    + ("" if axis == 0 else ": pass --sequence_length N, and pad every text to N tokens")
                )
    return proto


def example_inputs(model: nn.Module, tokenizer: Any, tokens: int) -> dict[str, Tensor]:
    """Returns two rows of `tokens` ids each, the second one padded, by the input names of model and tokenizer."""
    ids = torch.full((2, tokens), int(tokenizer.unk_token_id or tokenizer.mask_token_id or 5))
    mask = torch.ones_like(ids)
    ids[1, -1], mask[1, -1] = int(tokenizer.pad_token_id or 0), 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if "token_type_ids" in tokenizer.model_input_names and "token_type_ids" in _parameters(model):
        inputs["token_type_ids"] = torch.zeros_like(ids)
    return inputs


def plain_inputs(tokens: int = 4) -> dict[str, Tensor]:
    """Returns the smallest input that every classifier accepts: one row of ids without padding."""
    return {"input_ids": torch.full((1, tokens), 2), "attention_mask": torch.ones((1, tokens), dtype=torch.int64)}


def _parameters(model: nn.Module) -> set[str]:
    return set(inspect.signature(type(model).forward).parameters)


def _with_placeholders(model: nn.Module) -> nn.Module:
    """Returns a copy whose Linear and Embedding layers are placeholders, and whose attention is plain operations."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    if hasattr(model, "set_attn_implementation"):
        # Runtimes fuse plain operations, but PyTorch's fused attention is exported with guards against empty rows.
        cast(Any, model).set_attn_implementation("eager")
    for name, module in model.named_modules():
        if type(module) in (nn.Linear, SparseLinear):
            module.forward = _placeholder("Linear", name, int(module.out_features), input_axes=-1)
        elif type(module) in (nn.Embedding, SparseEmbedding):
            module.forward = _placeholder("Embedding", name, int(module.embedding_dim), input_axes=None)
        elif not isinstance(module, SparseLayer) and (quantizer := getattr(module, "input_quantizer", None)):
            quantizer.forward = _placeholder("InputQuantizer", name, input_axes=None)
    return model


def _with_outputs(model: nn.Module, keys: Sequence[str]) -> nn.Module:
    """Changes a model, in place, to return only these of its outputs; hidden states would be outputs of the graph."""
    whole = model.forward

    @functools.wraps(whole)  # the exporter reads the names of the inputs
    def forward(*arguments: Any, **inputs: Any) -> tuple[Tensor, ...]:
        found = whole(*arguments, **inputs)
        return tuple(found[key] for key in keys)

    model.forward = forward
    return model


def _placeholder(kind: str, layer: str, *width: int, input_axes: int | None) -> Callable[[Tensor], Tensor]:
    """Returns a forward whose output has the first `input_axes` axes of its input (None: all), and one of `width` if
    that is given."""

    def forward(x: Tensor) -> Tensor:
        found: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{kind}",
            (x,),
            {"layer": layer, "rank": x.ndim},
            dtype=torch.float32,
            shape=(*x.shape[:input_axes], *width),
            version=1,
        )
        return found

    return forward


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the exporter's own messages (missing packages, shortened names) inside the block."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _reason(error: BaseException) -> str:
    """The innermost cause on one line, because the exporter wraps it several times in advice for its own developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
