"""Rewrites a model, and checks that the result is valid and computes the same."""

from __future__ import annotations

import numpy as np
import onnx
from kernel_reference import run_plain, run_rewritten
from qdq_graphs import GraphBuilder

from sparse_accel.runtime.rewrite import Rewrite, rewrite

SIZES = {"batch": 2, "tokens": 5}


def rewritten(model: onnx.ModelProto, expected: list[str], leave: frozenset[str] = frozenset()) -> Rewrite:
    """Rewrites a model, and checks its operators, that the result is valid and computes the same for random inputs."""
    onnx.checker.check_model(model, full_check=True)
    before = model.SerializeToString()
    found = rewrite(model, leave)
    assert [each.operator for each in found.operators] == expected
    assert model.SerializeToString() == before
    onnx.checker.check_model(found.model)
    assert [node.op_type for node in found.model.graph.node if node.domain == "sparse_accel"] == expected
    assert {each.domain: each.version for each in found.model.opset_import}.get("sparse_accel", 1) == 1
    random = np.random.default_rng(1)
    inputs = {
        value.name: random.normal(
            size=[axis.dim_value or SIZES.get(axis.dim_param, 3) for axis in value.type.tensor_type.shape.dim]
        ).astype(np.float32)
        for value in model.graph.input
    }
    ours = run_rewritten(found.model, inputs)
    for value, plain in zip(model.graph.output, run_plain(model, inputs), strict=True):
        np.testing.assert_allclose(ours[value.name], plain, atol=1e-4, rtol=1e-4)
    return found


def built(width: int = 8, axes: tuple[str, ...] = ("batch", "tokens"), opset: int = 18) -> tuple[GraphBuilder, str]:
    """A builder, and its input x [*axes, width]."""
    builder = GraphBuilder(opset)
    return builder, builder.input("x", [*axes, width])
