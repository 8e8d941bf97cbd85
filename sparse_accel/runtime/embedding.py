"""Where a graph looks up rows of an embedding of integers:

    Gather(int8 table, ids) -> DequantizeLinear [-> QuantizeLinear -> DequantizeLinear]

These pass over all numbers up to four times to compute a function of 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from sparse_accel.runtime.graph import Graph, Node
from sparse_accel.runtime.patterns import NotThis, QuantizedInput, quantized_input, scales_of

_KINDS = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)


@dataclass(frozen=True, eq=False)
class Lookup:
    """Rows of a table, as floats.

    Attributes:
        table: name of an initializer [entries, size], int8 or uint8.
        ids: name of the int64 ids.
        output: the integers that the rows are rounded to; None: they are not.
        last: the node that computes them.
    """

    table: str
    ids: str
    scale: float
    zero_point: int
    output: QuantizedInput | None
    last: Node


def find_lookups(graph: Graph) -> list[Lookup]:
    """Returns the lookups whose integers are read by nothing but their DequantizeLinear."""
    found = []
    for node in graph.nodes:
        rows = graph.only_reader(node.output, "DequantizeLinear") if node.kind == "Gather" else None
        if rows is None or rows.input(0) != node.output or not graph.is_int64(node.input(1)):
            continue
        table = graph.initializer(node.input(0))
        if table is None or len(table.dims) != 2 or table.data_type not in _KINDS or node.attribute("axis", 0) != 0:
            continue
        if (numbers := _numbers(graph, rows)) is None:
            continue
        output, last = _output(graph, rows)
        found.append(Lookup(node.input(0), node.input(1), *numbers, output, last))
    return found


def _numbers(graph: Graph, rows: Node) -> tuple[float, int] | None:
    """The scale and zero point of a whole table of 8-bit integers."""
    try:
        scales = scales_of(graph, rows)
    except NotThis:
        return None
    zero = graph.constant(rows.input(2)) if rows.input(2) else np.zeros((), np.int8)
    if scales.size != 1 or zero is None or zero.size != 1 or zero.dtype not in (np.int8, np.uint8):
        return None
    return float(scales.reshape(())), int(zero.reshape(()))


def _output(graph: Graph, rows: Node) -> tuple[QuantizedInput | None, Node]:
    """How the rows are rounded after it, if nothing else reads them before, and the last node."""
    quantize = graph.only_reader(rows.output, "QuantizeLinear", "Clip")
    if quantize and quantize.kind == "Clip":
        quantize = graph.only_reader(quantize.output, "QuantizeLinear")
    last = graph.only_reader(quantize.output, "DequantizeLinear") if quantize else None
    if last is None:
        return None, rows
    try:
        output = quantized_input(graph, last)
    except NotThis:
        return None, rows
    return (output, last) if output.x == rows.output else (None, rows)
