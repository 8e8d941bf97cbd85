"""Where a graph has GELU: x/2 (1 + erf(x / sqrt(2))), or x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).

Exporters write it as one operator, or as products and sums in an order of their own: products are taken apart into a
constant and factors, so that the order does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from sparse_accel.runtime.graph import Graph, Node

ERF, TANH = 1, 2

_SQRT_HALF, _SQRT_2_OVER_PI = math.sqrt(1 / 2), math.sqrt(2 / math.pi)
# Roots are written with 4 digits and more; other constants only have the error of float32.
_TOLERANCE = {_SQRT_HALF: 1e-4, _SQRT_2_OVER_PI: 1e-4}


@dataclass(frozen=True, eq=False)
class Gelu:
    """GELU of a value: its kind (ERF or TANH), and the node that computes it."""

    kind: int
    last: Node


def find_gelus(graph: Graph, inputs: Collection[str]) -> dict[str, Gelu]:
    """Returns the GELU of each of these values that is read by nothing but its GELU."""
    found = {}
    for node in graph.nodes:
        if node.kind == "Gelu" and node.input(0) in inputs and graph.only_reader(node.input(0)):
            kinds = {b"none": ERF, b"tanh": TANH}
            if kind := kinds.get(node.attribute("approximate", b"none") or b""):
                found[node.input(0)] = Gelu(kind, node)
        elif node.kind in ("Erf", "Tanh"):
            for last in _products_after(graph, node):
                if match := _gelu(graph, last, inputs):
                    found[match[0]] = match[1]
                    break
    return found


def _products_after(graph: Graph, node: Node) -> Iterator[Node]:
    """The products that 1 + erf(...) goes into, nearest first."""
    add = graph.only_reader(node.output, "Add")
    product = graph.only_reader(add.output, "Mul", "Div") if add else None
    for _ in range(3):
        if product is None:
            return
        yield product
        product = graph.only_reader(product.output, "Mul", "Div")


def _gelu(graph: Graph, last: Node, inputs: Collection[str]) -> tuple[str, Gelu] | None:
    """Returns x and its GELU, if `last` computes one of a value x out of `inputs`."""
    half = _Product(graph, last.output, inputs)
    if not (half.has(0.5, 2) and (x := next((name for name in half.factors if name in inputs), None))):
        return None
    inside = {*half.nodes}
    curve = _plus_one(graph, half.without(x), inside)
    node = graph.producer(curve, "Erf", "Tanh")
    if node is None:
        return None
    inside.add(node)
    argument = _Product(graph, node.input(0), inputs)
    inside.update(argument.nodes)
    if node.kind == "Erf":
        fits = argument.has(_SQRT_HALF, 1) and argument.factors == [x]
    else:
        fits = _is_tanh_argument(graph, argument, x, inputs, inside)
    private = {x, *(node.output for node in inside if node is not last)}
    if not fits or any(name in graph.outputs or not inside.issuperset(graph.readers(name)) for name in private):
        return None
    return x, Gelu(ERF if node.kind == "Erf" else TANH, last)


def _is_tanh_argument(graph: Graph, argument: _Product, x: str, inputs: Collection[str], inside: set[Node]) -> bool:
    """Whether a product is sqrt(2/pi) (x + 0.044715 x^3), or sqrt(2/pi) x (1 + 0.044715 x^2)."""
    if argument.has(_SQRT_2_OVER_PI, 1):
        add = graph.producer(argument.factors[0], "Add")
        cubic = _Product(graph, add.other_input(x), inputs) if add and add.other_input(x) else None
        if add and cubic and cubic.has(0.044715, 3) and set(cubic.factors) == {x}:
            inside.update({add, *cubic.nodes})
            return True
    elif argument.has(_SQRT_2_OVER_PI, 2) and x in argument.factors:
        square = _Product(graph, _plus_one(graph, argument.without(x), inside), inputs)
        inside.update(square.nodes)
        return square.has(0.044715, 2) and set(square.factors) == {x}
    return False


def _plus_one(graph: Graph, name: str, inside: set[Node]) -> str:
    """The value y, if `name` is y + 1; empty if it is not. Notes the sum among the nodes of the pattern."""
    add = graph.producer(name, "Add")
    if add is None:
        return ""
    inside.add(add)
    return next((add.other_input(each) for each in add.inputs if graph.scalar(each) == 1.0), "")


class _Product:
    """A value as a constant times factors: Mul, Div by a constant, and small powers are taken apart.

    Args:
        stop: values that are not taken apart.
    """

    def __init__(self, graph: Graph, value: str, stop: Collection[str]) -> None:
        self.constant = 1.0
        self.factors: list[str] = []
        self.nodes: set[Node] = set()
        left = [value]
        # The bound is more than the longest form of GELU has; without one, x * x, squared 60 times, has no end.
        for _ in range(16):
            if not left:
                return
            name = left.pop()
            node = None if name in stop else graph.producer(name, "Mul", "Div", "Pow")
            number = graph.scalar(name)
            if number is not None:
                self.constant *= number
            elif node and node.kind == "Mul" and len(node.inputs) == 2:
                left.extend(node.inputs)
                self.nodes.add(node)
            elif node and node.kind == "Div" and graph.scalar(node.input(1)):
                self.constant /= graph.scalar(node.input(1)) or math.nan
                left.append(node.input(0))
                self.nodes.add(node)
            elif node and node.kind == "Pow" and graph.scalar(node.input(1)) in (2.0, 3.0):
                left.extend([node.input(0)] * int(graph.scalar(node.input(1)) or 0))
                self.nodes.add(node)
            else:
                self.factors.append(name)
        self.constant = math.nan  # too long to be any of the products that are looked for

    def has(self, constant: float, factors: int) -> bool:
        """Whether the constant is this one, up to rounding, and there are this many factors."""
        tolerance = _TOLERANCE.get(constant, 1e-6)
        return math.isclose(self.constant, constant, rel_tol=tolerance) and len(self.factors) == factors

    def without(self, name: str) -> str:
        """The other one of two factors; empty if both are `name`."""
        return next((each for each in self.factors if each != name), "")
