"""Lookups of embeddings: where they are found, and that the kernels' floats are onnxruntime's."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from kernel_reference import run_plain, run_rewritten
from onnx import TensorProto, helper
from qdq_graphs import GraphBuilder

from sparse_accel.runtime.library import load_library
from sparse_accel.runtime.loading import VARIABLE
from sparse_accel.runtime.rewrite import rewrite

INT64 = TensorProto.INT64


def embedding(
    *,
    kind: Any = np.int8,
    size: int = 20,
    output: dict[str, Any] | None = None,
    ids: int = INT64,
    axis: int = 0,
    read_twice: bool = False,
) -> onnx.ModelProto:
    """A table of 30 rows, looked up, dequantized, and quantized again if there is an output; then y = 2 x."""
    build = GraphBuilder()
    names = build.input("ids", ["batch", "tokens"], ids)
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    table = build.constant(build.random.integers(low, high + 1, (30, size)).astype(kind), "words.weight_quantized")
    rows = build.op("Gather", table, names, axis=axis)
    zero = build.constant(kind(3))
    x = build.op("DequantizeLinear", rows, build.constant(np.float32(0.01)), zero)
    if read_twice:
        x = build.op("Add", x, build.op("Cast", rows, to=TensorProto.FLOAT))
    if output is not None:
        x = build.quantize(x, **output)
    return build.model(build.op("Mul", x, build.constant(2.0), output="y"))


def with_kernels(model: onnx.ModelProto, isa: str, monkeypatch: pytest.MonkeyPatch) -> onnxruntime.InferenceSession:
    monkeypatch.setenv(VARIABLE, isa)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(load_library().path))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


OUTPUTS: list[dict[str, Any] | None] = [
    None,
    {"scale": 0.007, "zero_point": 81},
    {"scale": 0.02, "zero_point": 0},
    {"scale": 0.01, "zero_point": 60, "bounds": (-0.6, 0.67)},
]


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("size", [1, 7, 16, 33])
def test_the_same_floats(size: int, kind: Any, output: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = embedding(kind=kind, size=size, output=output)
    found = rewrite(model)
    assert [each.operator for each in found.operators] == ["Lookup"]
    assert [node.op_type for node in found.model.graph.node] == ["Lookup", "Mul"]
    for shape in ((2, 5), (1, 200), (0, 4), (3, 0)):
        ids = np.random.default_rng(0).integers(-30, 30, shape)
        expected = run_plain(model, {"ids": ids})[0]
        np.testing.assert_array_equal(run_rewritten(found.model, {"ids": ids})["y"], expected)
        for isa in load_library().instruction_sets:
            np.testing.assert_array_equal(
                with_kernels(found.model, isa, monkeypatch).run(None, {"ids": ids})[0], expected
            )


@pytest.mark.parametrize(
    "different",
    [{"ids": TensorProto.INT32}, {"axis": 1}, {"read_twice": True}],
    ids=["ids of 32 bits", "columns", "integers that others read"],
)
def test_others_are_left(different: dict[str, Any]) -> None:
    assert rewrite(embedding(**different)).operators == ()


@pytest.mark.parametrize("ids", [[[30]], [[0, -31]], [[2**40]]])
@pytest.mark.parametrize("isa", load_library().instruction_sets)
def test_ids_outside_of_the_table_are_an_error(isa: str, ids: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session = with_kernels(rewrite(embedding()).model, isa, monkeypatch)
    with pytest.raises(Exception, match="an id is outside of the table"):
        session.run(None, {"ids": np.array(ids, dtype=np.int64)})


@pytest.mark.parametrize(
    "attributes, message",
    [
        ({}, "the scale of a table"),
        ({"scale": float("nan")}, "the scale of a table"),
        ({"scale": 1.0, "zero_point": 300}, "zero point of a table"),
        ({"scale": 1.0, "y_scale": float("inf")}, "the scale of an input"),
        ({"scale": 1.0, "y_scale": 1.0, "y_lowest": 9, "y_highest": 3}, "lowest and the highest"),
    ],
)
def test_wrong_attributes(attributes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = helper.make_graph(
        [helper.make_node("Lookup", ["ids", "table"], ["y"], domain="sparse_accel", **attributes)],
        "lookup",
        [helper.make_tensor_value_info("ids", INT64, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])],
        [onnx.numpy_helper.from_array(np.zeros((4, 4), dtype=np.int8), "table")],
    )
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("sparse_accel", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=10)
    with pytest.raises(Exception, match=message):
        with_kernels(model, "portable", monkeypatch)


def test_a_table_that_is_no_initializer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = rewrite(embedding()).model
    (table,) = (each for each in model.graph.initializer if each.name == "words.weight_quantized")
    model.graph.input.append(helper.make_tensor_value_info(table.name, TensorProto.INT8, list(table.dims)))
    model.graph.initializer.remove(table)
    with pytest.raises(Exception, match="table must be an initializer"):
        with_kernels(model, "portable", monkeypatch)
