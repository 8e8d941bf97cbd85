"""GELU is found in every form that exporters write, and nothing else is taken for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import helper
from qdq_graphs import GraphBuilder
from rewriting import built, rewritten

SQRT2 = 2**0.5


def erf_forms() -> dict[str, Callable[[GraphBuilder, str], str]]:
    """x * 0.5 * (1 + erf(x / sqrt(2))) with its factors, terms and operands in every order."""
    found: dict[str, Callable[[GraphBuilder, str], str]] = {}
    for order in itertools.permutations(("x", "half", "curve")):
        for divided, swapped in itertools.product((True, False), repeat=2):

            def make(
                builder: GraphBuilder, x: str, order: Any = order, divided: Any = divided, swap: Any = swapped
            ) -> str:
                constant = builder.constant
                if divided:
                    argument = builder.op("Div", x, constant(SQRT2))
                else:
                    argument = builder.op("Mul", *([x, constant(0.7071)][:: -1 if swap else 1]))
                terms = [builder.op("Erf", argument), constant(1.0)]
                factors = {"x": x, "half": constant(0.5), "curve": builder.op("Add", *terms[:: -1 if swap else 1])}
                first = builder.op("Mul", factors[order[0]], factors[order[1]])
                return builder.op("Mul", *[first, factors[order[2]]][:: -1 if swap else 1])

            found[f"{' '.join(order)} {'div' if divided else 'mul'} {swapped}"] = make
    return found


def tanh_form(builder: GraphBuilder, x: str, *, cube: str = "pow") -> str:
    """gelu_new of transformers, with x^3 as a power or as products."""
    constant = builder.constant
    power = ""
    if cube == "pow":
        power = builder.op("Mul", constant(0.044715), builder.op("Pow", x, constant(3.0)))
    elif cube == "integer power":
        power = builder.op("Mul", constant(0.044715), builder.op("Pow", x, constant(np.int64(3))))
    elif cube == "products":
        power = builder.op("Mul", builder.op("Mul", constant(0.044715), x), builder.op("Mul", x, x))
    if cube == "factored":
        square = builder.op("Mul", builder.op("Mul", x, x), constant(0.044715))
        inner = builder.op(
            "Mul", builder.op("Mul", x, constant(0.7978845608)), builder.op("Add", constant(1.0), square)
        )
    else:
        inner = builder.op("Mul", builder.op("Add", x, power), constant(0.7978845608))
    curve = builder.op("Add", builder.op("Tanh", inner), constant(1.0))
    return builder.op("Mul", builder.op("Mul", constant(0.5), x), curve)


FORMS: dict[str, tuple[Callable[[GraphBuilder, str], str], int]] = {
    **{name: (make, 1) for name, make in erf_forms().items()},
    "operator": (lambda builder, x: builder.op("Gelu", x), 1),
    "operator none": (lambda builder, x: builder.op("Gelu", x, approximate="none"), 1),
    "operator tanh": (lambda builder, x: builder.op("Gelu", x, approximate="tanh"), 2),
    "tanh pow": (tanh_form, 2),
    "tanh integer power": (lambda builder, x: tanh_form(builder, x, cube="integer power"), 2),
    "tanh products": (lambda builder, x: tanh_form(builder, x, cube="products"), 2),
    "tanh factored": (lambda builder, x: tanh_form(builder, x, cube="factored"), 2),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_gelu(form: str) -> None:
    make, kind = FORMS[form]
    builder, x = built(opset=20)
    y = builder.op("Abs", make(builder, builder.linear("layer", x, 8, 6)))
    found = rewritten(builder.model(y), ["Linear"])
    node = found.model.graph.node[0]
    assert {each.name: helper.get_attribute_value(each) for each in node.attribute}["activation"] == kind
    assert [node.op_type for node in found.model.graph.node] == ["Linear", "Abs"]


def almost_gelu(
    builder: GraphBuilder,
    x: str,
    other: str,
    *,
    half: float = 0.5,
    one: float = 1.0,
    root: float = SQRT2,
    swap: bool = False,
    curve: str = "Erf",
) -> str:
    argument = builder.op("Div", other if swap else x, builder.constant(root))
    total = builder.op("Add", builder.op(curve, argument), builder.constant(one))
    return builder.op("Mul", x, builder.op("Mul", builder.constant(half), total))


@pytest.mark.parametrize(
    "changes",
    [{"half": 0.6}, {"one": 1.1}, {"root": 2.0}, {"swap": True}, {"curve": "Sin"}, {"curve": "Tanh"}],
    ids=str,
)
def test_what_is_almost_gelu_stays(changes: dict[str, Any]) -> None:
    builder, x = built()
    linear, other = builder.linear("layer", x, 8, 8), builder.op("Neg", x)
    found = rewritten(builder.model(almost_gelu(builder, linear, other, **changes)), ["Linear"])
    assert len(found.model.graph.node) >= 5


@pytest.mark.parametrize("read", range(4), ids=["x", "x / sqrt(2)", "erf", "sum"])
def test_gelu_of_which_a_part_is_needed_elsewhere_stays(read: int) -> None:
    builder, x = built()
    linear = builder.linear("layer", x, 8, 8)
    y = builder.gelu(linear)
    part = [linear, *(node.output[0] for node in builder.nodes[-5:])][read]
    found = rewritten(builder.model(y, builder.op("Neg", part)), ["Linear"])
    assert "Erf" in [node.op_type for node in found.model.graph.node]
    found = rewritten(builder.model(y, part), ["Linear"])
    assert "Erf" in [node.op_type for node in found.model.graph.node]


def test_products_without_end_are_not_followed() -> None:
    builder, x = built()
    y = builder.linear("layer", x, 8, 8)
    power = y
    for _ in range(80):
        power = builder.op("Mul", power, power)
    rewritten(builder.model(builder.op("Tanh", power)), ["Linear"])
