"""What a graph says about its values, and what remains of it when nodes are replaced."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from qdq_graphs import GraphBuilder

from sparse_accel.runtime.graph import Graph


def chain() -> onnx.ModelProto:
    """y = |-x| + w; two nodes lead nowhere."""
    builder = GraphBuilder()
    x = builder.input("x", ["batch", 4])
    builder.input("given", [4])
    negative = builder.op("Neg", x, output="negative")
    builder.op("Exp", builder.op("Abs", negative), output="unused")
    total = builder.op("Add", builder.op("Abs", negative, output="positive"), builder.constant(np.ones(4), "w"))
    builder.constant(np.ones(4), "nobody reads this")
    return builder.model(total, given=np.zeros(4, np.float32))


def test_who_computes_and_reads_a_value() -> None:
    graph = Graph(chain())
    negative = graph.producer("negative")
    assert negative and negative.kind == "Neg" and negative.inputs == ("x",)
    assert graph.producer("negative", "Abs", "Neg") is negative
    assert graph.producer("negative", "Abs") is graph.producer("x") is graph.producer("") is None
    assert [node.kind for node in graph.readers("negative")] == ["Abs", "Abs"]
    assert graph.only_reader("negative") is None
    reader = graph.only_reader("positive", "Add")
    assert reader and reader.other_input("positive") == "w" and reader.other_input("x") == ""
    assert graph.only_reader("positive", "Mul") is None
    assert graph.only_reader(next(iter(graph.outputs))) is None


def test_constants_and_shapes() -> None:
    model = chain()
    model.graph.node.append(helper.make_node("Constant", [], ["three"], value_float=3.0))
    model.graph.node.append(helper.make_node("Constant", [], ["some"], value_ints=[1, 2]))
    graph = Graph(model)
    assert graph.scalar("three") == 3.0 and graph.constant("three").dtype == np.float32  # type: ignore[union-attr]
    assert graph.scalar("some") is None and graph.constant("some").tolist() == [1, 2]  # type: ignore[union-attr]
    assert graph.constant("w").tolist() == [1] * 4  # type: ignore[union-attr]
    assert graph.constant("x") is None and graph.constant("given") is None and graph.constant("?") is None
    assert graph.initializer("w") is not None and graph.initializer("given") is None
    assert graph.shape("positive") == ("batch", 4) and graph.shape("?") is None
    assert graph.is_float("positive") and not graph.is_float("?")
    assert graph.token_axes(0) == {"batch"}


def test_assembling_drops_what_is_unused() -> None:
    model = chain()
    model.metadata_props.add(key="made by", value="a test")
    model.graph.value_info.append(helper.make_tensor_value_info("positive", TensorProto.FLOAT, ["batch", 4]))
    graph = Graph(model)
    replaced = graph.producer("positive")
    assert replaced
    new = helper.make_node("Cube", ["x", "three"], ["positive"], "new", domain="mine")
    three, four = (
        numpy_helper.from_array(np.array(number, np.float32), name) for number, name in ((3, "three"), (4, "four"))
    )
    found = graph.assemble({replaced: [new]}, [three, four], [helper.make_opsetid("mine", 1)])
    assert [node.op_type for node in found.graph.node] == ["Cube", "Add"]
    assert [tensor.name for tensor in found.graph.initializer] == ["w", "given", "three"]  # an input keeps its default
    assert not found.graph.value_info and found.metadata_props == model.metadata_props
    assert {each.domain: each.version for each in found.opset_import} == {"": 18, "mine": 1}
    assert len(model.graph.node) == 5


def test_new_names_are_new() -> None:
    graph = Graph(chain())
    names = [graph.fresh_name(name) for name in ("w", "w", "node_0", "free")]
    assert names == ["w'", "w''", "node_0'", "free"]


def test_attributes_of_another_type_are_not_read() -> None:
    builder = GraphBuilder()
    x = builder.input("x", ["a", "b"])
    for values in ([1, 0], 1, 1.5, "text"):
        builder.op("Transpose", x, perm=values)
    found = [node.attribute("perm", (0, 1)) for node in Graph(builder.model()).nodes]
    assert found == [(1, 0), None, None, None]
    assert Graph(builder.model()).nodes[0].attribute("axis", -1) == -1


def test_what_is_read_inside_of_a_node_is_read() -> None:
    model = chain()
    body = helper.make_graph([helper.make_node("Neg", ["positive"], ["inside"])], "body", [], [])
    nested = helper.make_graph([helper.make_node("If", ["flag"], [], then_branch=body)], "nested", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["chosen"], then_branch=nested, else_branch=nested))
    graph = Graph(model)
    assert [node.kind for node in graph.readers("positive")] == ["Add", "If"]
    assert graph.only_reader("positive") is None
    model.graph.output.append(helper.make_tensor_value_info("chosen", TensorProto.FLOAT, None))
    assert "positive" in {name for node in Graph(model).assemble({}).graph.node for name in node.output}


def test_a_value_that_is_an_input_is_not_computed() -> None:
    model = chain()
    model.graph.input.append(helper.make_tensor_value_info("positive", TensorProto.FLOAT, None))
    with pytest.raises(ValueError, match="'positive' twice"):
        Graph(model)
