"""Where a graph has attention: softmax(scale q k^T + mask) v, with the heads of q, k, v cut out of their last axis.

    q [B, S, heads * size] -> Reshape [B, S, heads, size] -> Transpose [B, heads, S, size] -> MatMul(_, k) -> scale
      -> Add mask -> Softmax -> MatMul(_, v) -> Transpose [B, S, heads, size] -> Reshape [B, S, heads * size]

The scale may be on q, on k, on both, or on their product; k may be transposed in one step or in two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparse_accel.runtime.graph import Graph, Length, Node

# How the axes [B, S, heads, size] of q, k and v are transposed for the two products, and those of the result back.
_ROWS, _COLUMNS = (0, 2, 1, 3), (0, 2, 3, 1)


@dataclass(frozen=True, eq=False)
class Attention:
    """Attention over heads.

    Attributes:
        q, k, v: names of float values [B, S, heads * head_size].
        mask: name of a value [B or 1, 1, S or 1, S] that is added to the scores; empty if there is none.
        last: the node that computes the result [B, S, heads * head_size].
        splits: the nodes that read q, k and v.
    """

    q: str
    k: str
    v: str
    mask: str
    heads: int
    head_size: int
    scale: float
    last: Node
    splits: tuple[Node, Node, Node]


@dataclass(frozen=True)
class _Heads:
    """A value whose last axis was cut into heads, with what happened to it afterwards.

    Attributes:
        source: the value [B, S, width] that was cut.
        axes: the shape after the cut, [B, S, heads, size].
        permutation: the order of these axes in the value.
        scale: what it was multiplied by.
    """

    source: str
    axes: tuple[Length, ...]
    permutation: tuple[int, ...]
    scale: float
    split: Node


def find_attentions(graph: Graph) -> list[Attention]:
    """Returns every attention of which nothing but its result is read elsewhere, and whose shapes are known to fit."""
    found = (_attention(graph, node) for node in graph.nodes if node.kind == "Softmax")
    return [attention for attention in found if attention]


def _attention(graph: Graph, softmax: Node) -> Attention | None:
    if softmax.attribute("axis", -1 if graph.opset >= 13 else 1) not in (-1, 3):
        return None
    result = graph.only_reader(softmax.output, "MatMul")
    if result is None or result.input(0) != softmax.output:
        return None
    scores = _scores(graph, softmax)
    if scores is None:
        return None
    q, k, scale, mask = scores
    v = _heads(graph, result.input(1), result)
    if v is None or v.permutation != _ROWS or v.scale != 1.0:
        return None
    sizes = _sizes(graph, q, k, v)
    last = _joined(graph, result, q, sizes[0] * sizes[1]) if sizes else None
    if sizes is None or last is None:
        return None
    heads, size = sizes
    return Attention(q.source, k.source, v.source, mask, heads, size, scale, last, (q.split, k.split, v.split))


def _scores(graph: Graph, softmax: Node) -> tuple[_Heads, _Heads, float, str] | None:
    """Returns q, k, the scale and the mask (empty: none) of what a softmax is given."""
    value = softmax.input(0)
    add = graph.producer(value, "Add")
    if add is None:
        found = _scaled_product(graph, value, softmax)
        return (*found, "") if found else None
    if graph.only_reader(value) is not softmax or len(add.inputs) != 2:
        return None
    for scores, mask in (add.inputs, add.inputs[::-1]):
        if (found := _scaled_product(graph, scores, add)) and _is_mask(graph, mask):
            return *found, mask
    return None


def _scaled_product(graph: Graph, value: str, reader: Node) -> tuple[_Heads, _Heads, float] | None:
    """Returns q, k and the complete scale, if a value that only `reader` reads is scale * q k^T."""
    scale = 1.0
    if graph.only_reader(value) is reader and (step := _scaling(graph, value)):
        reader, value, scale = step
    product = graph.producer(value, "MatMul")
    if product is None or graph.only_reader(value) is not reader:
        return None
    q, k = _heads(graph, product.input(0), product), _heads(graph, product.input(1), product)
    if q is None or k is None or q.permutation != _ROWS or k.permutation != _COLUMNS:
        return None
    scale *= q.scale * k.scale
    return (q, k, scale) if math.isfinite(scale) else None


def _scaling(graph: Graph, value: str) -> tuple[Node, str, float] | None:
    """Returns the node, the other factor and the number, if a value is multiplied or divided by a number."""
    node = graph.producer(value, "Mul", "Div")
    if node is None or len(node.inputs) != 2:
        return None
    left, right = node.inputs
    if (number := graph.scalar(right)) is not None:
        if node.kind == "Mul":
            return node, left, number
        return (node, left, 1 / number) if number else None
    number = graph.scalar(left)
    return (node, right, number) if node.kind == "Mul" and number is not None else None


def _heads(graph: Graph, value: str, reader: Node) -> _Heads | None:
    """Follows a value back to where its heads were cut; None if something else happened to it, or reads it."""
    permutation: tuple[int, ...] = (0, 1, 2, 3)
    scale = 1.0
    # Longer than any exporter writes: Reshape, two transposes, a scale before, between and after.
    for _ in range(6):
        if graph.only_reader(value) is not reader:
            return None
        node = graph.producer(value, "Transpose", "Reshape", "Mul", "Div")
        if node is None:
            return None
        if node.kind == "Reshape":
            axes, source = graph.shape(value), graph.shape(node.input(0))
            if axes is None or source is None or len(axes) != 4 or len(source) != 3:
                return None
            return _Heads(node.input(0), axes, permutation, scale, node)
        if node.kind == "Transpose":
            order = node.attribute("perm", ()) or ()
            if sorted(order) != [0, 1, 2, 3]:
                return None
            permutation = tuple(order[axis] for axis in permutation)
            value = node.input(0)
        elif step := _scaling(graph, value):
            value, scale = step[1], scale * step[2]
        else:
            return None
        reader = node
    return None


def _sizes(graph: Graph, q: _Heads, k: _Heads, v: _Heads) -> tuple[int, int] | None:
    """Returns (heads, head size) if q, k and v are cut alike and only their last axis is; None otherwise."""
    width = (graph.shape(q.source) or (None,))[-1]
    found = set()
    for each in (q, k, v):
        source = graph.shape(each.source) or ()
        if not isinstance(width, int) or source[-1] != width:
            return None
        if source[:2] != (graph.shape(q.source) or ())[:2] and each.axes[:2] != q.axes[:2]:
            return None
        heads, size = each.axes[2:]
        known = isinstance(heads, int) and isinstance(size, int)
        if not isinstance(size, int):
            size = width // heads if isinstance(heads, int) and heads else 0
        if size < 1 or width % size or (known and heads != width // size):
            return None
        if not _rows_and_tokens_stay(graph, [source], each.axes, known):
            return None
        found.add((width // size, size))
    return found.pop() if len(found) == 1 else None


def _joined(graph: Graph, result: Node, q: _Heads, width: int) -> Node | None:
    """Returns the node that puts the heads of the result [B, heads, S, size] side by side again: [B, S, width]."""
    transpose = graph.only_reader(result.output, "Transpose")
    if transpose is None or transpose.attribute("perm", ()) != _ROWS:
        return None
    reshape = graph.only_reader(transpose.output, "Reshape")
    axes = graph.shape(reshape.output) if reshape and reshape.input(0) == transpose.output else None
    if axes is None or len(axes) != 3 or (isinstance(axes[2], int) and axes[2] != width):
        return None
    stay = _rows_and_tokens_stay(graph, [graph.shape(q.source) or (), q.axes], axes, axes[2] == width)
    return reshape if stay else None


def _rows_and_tokens_stay(
    graph: Graph, before: list[tuple[Length, ...]], after: tuple[Length, ...], others_are_known: bool
) -> bool:
    """Whether a Reshape keeps the first two axes.

    Args:
        before: what is known of the first two axes, in other words for the same lengths.
        after: the shape that they are reshaped to.
        others_are_known: whether the other axes are known to have as many numbers as before. There are as many in all:
            if one of the two axes stays, so does the other one.
    """
    equal = [any(lengths[axis] == after[axis] is not None for lengths in before) for axis in (0, 1)]
    likely = [any(_may_stay(graph, axis, lengths[axis], after[axis]) for lengths in before) for axis in (0, 1)]
    return all(one or other for one, other in zip(equal, likely, strict=True)) or (others_are_known and any(equal))


def _may_stay(graph: Graph, axis: int, before: Length, after: Length) -> bool:
    """Whether an axis of unknown length keeps it when a value is reshaped, if the other one does.

    A sum of embeddings has axes of unknown length for onnx, because any term could be broadcast. Where the Reshape
    names the length of token ids, [batch, tokens], on the same axis, that is what the axis has.
    """
    known = isinstance(before, int) or before in graph.token_axes(0) | graph.token_axes(1)
    return not known and after in graph.token_axes(axis)


def _is_mask(graph: Graph, name: str) -> bool:
    """Whether a value is a float mask that all heads share, with an axis of keys."""
    axes = graph.shape(name)
    return axes is not None and len(axes) == 4 and axes[1] == 1 and axes[3] != 1 and graph.is_float(name)
