"""The operators of the domain sparse_accel in plain numpy, to run a rewritten graph without the library of kernels."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from scipy.special import erf

Array = np.ndarray
DOMAIN = "sparse_accel"


def run_rewritten(model: onnx.ModelProto, inputs: dict[str, Array]) -> dict[str, Array]:
    """Returns the outputs of a model with operators of sparse_accel whose weights are still int8.

    What stands between these operators runs in onnxruntime, without optimizations.
    """
    graph = model.graph
    values: dict[str, Any] = {"": None, **inputs}
    values |= {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    groups = [list(nodes) for _, nodes in itertools.groupby(graph.node, key=lambda node: node.domain == DOMAIN)]
    for number, nodes in enumerate(groups):
        if nodes[0].domain == DOMAIN:
            for node in nodes:
                attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
                operator = {"Linear": linear, "LinearAddNorm": linear_add_norm, "FeedForward": feed_forward}
                operator |= {"Lookup": lookup}
                function: Any = operator.get(node.op_type, attention)
                values[node.output[0]] = function(*(values[name] for name in node.input), **attributes)
            continue
        later = {name for group in groups[number + 1 :] for node in group for name in node.input}
        made = {name for node in nodes for name in node.output}
        wanted = made & (later | {value.name for value in graph.output})
        read = {name for node in nodes for name in node.input} - made - {""}
        values |= run({name: values[name] for name in read}, nodes, sorted(wanted), model)
    return {value.name: values[value.name] for value in graph.output}


def run(
    inputs: dict[str, Array], nodes: list[onnx.NodeProto], outputs: list[str], like: onnx.ModelProto
) -> dict[str, Array]:
    """Returns what nodes of another model compute."""
    kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in inputs.items()}
    graph = helper.make_graph(
        nodes,
        "part",
        [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    part = helper.make_model(graph, opset_imports=like.opset_import, ir_version=like.ir_version)
    return dict(zip(outputs, run_plain(part, inputs), strict=True))


def run_plain(model: onnx.ModelProto, inputs: dict[str, Array]) -> list[Array]:
    """Returns the outputs of a model in onnxruntime, without optimizations."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(None, inputs)
    return found


# --- the operators ----------------------------------------------------------------------------------------------------


def linear(x: Array, weight: Array, weight_scale: Array, bias: Array, *, activation: int = 0, **numbers: Any) -> Array:
    """x [.., K] quantized, times weight int8 [K, N], and bias [N]: float32 [.., N]."""
    assert weight.dtype == np.int8 and weight_scale.shape in [(1,), bias.shape] and bias.shape == weight.shape[1:]
    sums = quantized(x, "x", numbers) @ weight.astype(np.int32)
    return gelu((sums * (np.float32(numbers["x_scale"]) * weight_scale) + bias).astype(np.float32), activation)


def lookup(ids: Array, table: Array, *, scale: float, zero_point: int, **numbers: Any) -> Array:
    """Rows of a table int8 or uint8 [entries, size], dequantized, and quantized again where `numbers` say how."""
    y = (table[ids].astype(np.int32) - zero_point).astype(np.float32) * np.float32(scale)
    return quantized(y, "y", numbers).astype(np.float32) * np.float32(numbers["y_scale"]) if numbers else y


def quantized(x: Array, name: str, numbers: dict[str, Any]) -> Array:
    """Integers of x, as int32 without offset."""
    scale, zero, lowest, highest = (numbers[f"{name}_{each}"] for each in ("scale", "zero_point", "lowest", "highest"))
    assert 0 <= lowest <= highest <= 255 and 0 <= zero <= 255
    found: Array = np.clip(np.rint(x / np.float32(scale)) + zero, lowest, highest).astype(np.int32) - zero
    return found


def gelu(x: Array, kind: int) -> Array:
    if kind == 0:
        return x
    assert kind in (1, 2)
    curve = erf(x / math.sqrt(2)) if kind == 1 else np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    found: Array = (0.5 * x * (1 + curve)).astype(np.float32)
    return found


def layer_norm(x: Array, gamma: Array, beta: Array, epsilon: float) -> Array:
    assert gamma.shape == beta.shape == x.shape[-1:]
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.float32(epsilon))
    found: Array = (centred / deviation * gamma + beta).astype(np.float32)
    return found


def linear_add_norm(
    x: Array,
    weight: Array,
    weight_scale: Array,
    bias: Array,
    residual: Array,
    gamma: Array,
    beta: Array,
    *,
    epsilon: float,
    **numbers: Any,
) -> Array:
    y = linear(x, weight, weight_scale, bias, **numbers)
    assert y.shape == residual.shape
    return layer_norm(y + residual, gamma, beta, epsilon)


def feed_forward(x: Array, *others: Array, activation: int, epsilon: float, **numbers: Any) -> Array:
    """`others` are weight, scale and bias of both Linears, gamma, beta."""
    assert activation in (1, 2) and len(others) == 8
    hidden = linear(x, *others[:3], activation=activation, **numbers)
    second = {key.replace("hidden", "x"): value for key, value in numbers.items() if key.startswith("hidden")}
    return layer_norm(linear(hidden, *others[3:6], **second) + x, *others[6:], epsilon)


def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    *,
    heads: int,
    head_size: int,
    q_offset: int,
    k_offset: int,
    v_offset: int,
    scale: float,
) -> Array:
    """softmax(scale * q k^T + mask) v, with head h of q in its columns q_offset + h * head_size and on."""
    rows, tokens = q.shape[:2]

    def split(values: Array, offset: int) -> Array:
        """[B, S, *] -> [B, heads, S, size]."""
        cut = values[:, :, offset : offset + heads * head_size].reshape(rows, tokens, heads, head_size)
        return cut.transpose(0, 2, 1, 3)

    scores = np.float32(scale) * split(q, q_offset) @ split(k, k_offset).swapaxes(2, 3)
    if mask is not None:
        assert mask.ndim == 4 and mask.shape[1] == 1 and mask.shape[3] == tokens
        scores = scores + mask
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = powers / powers.sum(axis=-1, keepdims=True) @ split(v, v_offset)
    found: Array = mixed.transpose(0, 2, 1, 3).reshape(rows, tokens, heads * head_size).astype(np.float32)
    return found
