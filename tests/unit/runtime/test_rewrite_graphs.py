"""What a graph is beside its layers: shared weights, graphs inside of nodes, names, and damage of all kinds."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_reference import run_plain, run_rewritten
from onnx import TensorProto, helper
from rewriting import built, rewritten

from sparse_accel.runtime.rewrite import Rewrite, rewrite


def test_layers_that_share_their_weights() -> None:
    builder, x = built()
    weight = builder.weight("shared", 8, 8)
    hidden = builder.op("Neg", builder.op("MatMul", builder.quantize(x), weight))
    y = builder.op("MatMul", builder.quantize(hidden, scale=0.05), weight)
    found = rewritten(builder.model(y), ["Linear", "Linear"])
    stored = [tensor.name for tensor in found.model.graph.initializer]
    assert sorted(stored) == sorted(set(stored)) and stored.count("shared.weight_quantized") == 1
    left = rewritten(builder.model(y), [], frozenset({"shared.weight_quantized"}))
    assert [each.layer for each in left.kept] == ["shared"]


def test_a_graph_inside_of_a_node_keeps_what_it_reads() -> None:
    builder, x = built()
    product = builder.linear("layer", x, 8, 8, bias=False)
    y = builder.add_bias("layer", product, 8)
    branches = []
    for name in ("then_branch", "else_branch"):
        inside = helper.make_node("Neg", [product], [f"{name}/y"])
        output = helper.make_tensor_value_info(f"{name}/y", TensorProto.FLOAT, None)
        branches.append(helper.make_graph([inside], name, [], [output]))
    condition = builder.constant(np.array(True))
    chosen = builder.op("If", condition, then_branch=branches[0], else_branch=branches[1])
    model = builder.model(y, chosen)
    found = rewrite(model)
    assert [node.op_type for node in found.model.graph.node] == ["Linear", "Add", "If"]
    assert found.model.graph.node[0].output[0] == product
    inputs = {"x": np.ones((1, 2, 8), np.float32)}
    for ours, plain in zip(run_rewritten(found.model, inputs).values(), run_plain(model, inputs), strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-4)


def test_an_operator_that_the_model_defines_itself_is_none_of_onnx() -> None:
    builder, x = built()
    model = builder.model(builder.linear("layer", x, 8, 4))
    body = [helper.make_node("MatMul", ["a", "b"], ["c"])]
    opset = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("mine", "QuantizeLinear", ["a", "b"], ["c"], body, opset))
    assert [each.operator for each in rewrite(model).operators] == ["Linear"]
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            node.domain = "mine"
    assert rewrite(model).operators == ()


def test_names_that_are_taken_are_not_taken_again() -> None:
    builder, x = built()
    y = builder.linear("layer", x, 8, 8, bias=False)
    first = rewrite(builder.model(y))
    taken = next(t.name for t in first.model.graph.initializer if t.name not in builder.constants)
    builder, x = built()
    y = builder.op("Sub", builder.linear("layer", x, 8, 8, bias=False), builder.constant(np.ones(8, np.float32), taken))
    rewritten(builder.model(y), ["Linear"])


def test_an_empty_model_is_returned() -> None:
    model = onnx.ModelProto()
    assert rewrite(model) == Rewrite(model, (), ())


def test_graphs_that_cannot_run_are_errors() -> None:
    builder, x = built()
    y = builder.linear("layer", x, 8, 4)
    twice = builder.model(y)
    twice.graph.node.append(twice.graph.node[-1])
    with pytest.raises(ValueError, match="twice"):
        rewrite(twice)
    cyclic = builder.model(y)
    cyclic.graph.node[0].input[0] = y
    with pytest.raises(ValueError, match="before it is computed"):
        rewrite(cyclic)
    without = builder.model(y)
    del without.graph.node[-1]
    with pytest.raises(ValueError, match="nothing in this graph computes"):
        rewrite(without)
    named = builder.model(y)
    named.graph.initializer.append(named.graph.initializer[0])
    with pytest.raises(ValueError, match="two initializers"):
        rewrite(named)


@given(data=st.data())
def test_a_damaged_graph_is_rewritten_or_refused(data: st.DataObject) -> None:
    """Whatever is wrong with a graph: a ValueError, or a model in which every value is computed before it is read."""
    model = onnx.ModelProto()
    model.CopyFrom(DAMAGED)
    for _ in range(data.draw(st.integers(1, 3))):
        node = data.draw(st.sampled_from(list(model.graph.node)))
        tensor = data.draw(st.sampled_from(list(model.graph.initializer)))
        names = [name for each in model.graph.node for name in (*each.input, *each.output)]
        match data.draw(st.integers(0, 9)):
            case 0:
                model.graph.node.remove(node)
            case 1 if node.input:
                node.input[data.draw(st.integers(0, len(node.input) - 1))] = data.draw(
                    st.sampled_from([*names, "", "?"])
                )
            case 2 if node.input:
                node.input.pop()
            case 3:
                node.input.append(data.draw(st.sampled_from(names)))
            case 4:
                tensor.dims[:] = data.draw(st.lists(st.sampled_from([-1, 0, 1, 8, 20, 2**62]), max_size=3))
            case 5:
                tensor.raw_data = data.draw(st.binary(max_size=8))
            case 6:
                tensor.data_type = data.draw(st.integers(0, 30))
            case 7 if node.attribute:
                name = data.draw(st.sampled_from(list(node.attribute))).name
                del node.attribute[:]
                value: Any = data.draw(st.sampled_from([0, 7, 1.5, "?", [1], [0, 1, 2, 3], [9, 9, 9, 9], [0.5]]))
                node.attribute.append(helper.make_attribute(name, value))
            case 8 if node.output:
                node.output.pop()
            case 9:
                node.op_type = data.draw(st.sampled_from(sorted({each.op_type for each in model.graph.node})))
    try:
        found = rewrite(model)
    except ValueError as error:
        assert str(error)[0].islower()  # a sentence of ours, not one of Python's or numpy's
        return
    known = {value.name for value in model.graph.input} | {t.name for t in found.model.graph.initializer} | {""}
    for node in found.model.graph.node:
        assert known.issuperset(node.input)
        known.update(node.output)
    assert known.issuperset(value.name for value in model.graph.output)


def damaged() -> onnx.ModelProto:
    """One block with attention and feed-forward, undamaged."""
    builder, x = built()
    q, k, v = (builder.linear(name, x, 8, 8) for name in ("query", "key", "value"))
    keys = builder.split(k, 2, 4, [0, 2, 3, 1])
    scores = builder.op("MatMul", builder.split(q, 2, 4, [0, 2, 1, 3]), keys)
    powers = builder.op("Softmax", builder.op("Mul", scores, builder.constant(0.5)), axis=-1)
    y = builder.join(builder.op("MatMul", powers, builder.split(v, 2, 4, [0, 2, 1, 3])))
    y = builder.norm("norm", builder.op("Add", builder.linear("output", y, 8, 8), x), 8)
    return builder.model(builder.feed_forward("block", y, 8, 20))


DAMAGED = damaged()


def test_the_undamaged_block() -> None:
    rewritten(DAMAGED, ["Linear", "Attention", "LinearAddNorm", "FeedForward"])
