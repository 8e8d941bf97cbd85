"""Builds ONNX graphs with quantized Linears by hand, in every form that the rewriting must or must not know."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray


class GraphBuilder:
    """Collects nodes and constants; every method that makes a value returns its name."""

    def __init__(self, opset: int = 18) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.constants: dict[str, Array] = {}
        self.random = np.random.default_rng(0)

    def input(self, name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def constant(self, values: Any, name: str = "") -> str:
        """Python floats become float32."""
        array = np.asarray(values)
        name = name or f"constant_{len(self.constants)}"
        self.constants[name] = array.astype(np.float32) if array.dtype == np.float64 else array
        return name

    def op(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], f"node_{len(self.nodes)}", **attributes))
        return output

    def model(self, *outputs: str, **initializers: Array) -> onnx.ModelProto:
        """The model with these outputs; `initializers` replace constants."""
        graph = helper.make_graph(
            self.nodes,
            "built",
            self.inputs,
            [],
            [numpy_helper.from_array(values, name) for name, values in (self.constants | initializers).items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        found = {
            value.name: value for value in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info
        }
        model.graph.output.extend(found.get(name, onnx.ValueInfoProto(name=name)) for name in outputs)
        return model

    # --- layers -------------------------------------------------------------------------------------------------------

    def quantize(
        self,
        x: str,
        scale: float = 0.02,
        zero_point: int = 120,
        bounds: tuple[float, ...] = (),
        *,
        signed: bool = False,
    ) -> str:
        """x quantized to uint8 and dequantized, clipped before if there are bounds; signed: to int8, by 128 lower."""
        zero = np.int8(zero_point - 128) if signed else np.uint8(zero_point)
        numbers = [self.constant(np.float32(scale)), self.constant(zero)]
        if bounds:
            x = self.op("Clip", x, *(self.constant(bound) for bound in bounds))
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, *numbers), *numbers)

    def weight(self, name: str, rows: int, columns: int, *, per_column: bool = False) -> str:
        """A dequantized weight [rows, columns], half of its integers zero."""
        integers = self.random.integers(-127, 128, (rows, columns)) * self.random.integers(0, 2, (rows, columns))
        scale: Any = np.float32(0.01)
        if per_column:
            scale = (self.random.random(columns) * 0.01 + 0.001).astype(np.float32)
        inputs = [
            self.constant(integers.astype(np.int8), f"{name}.weight_quantized"),
            self.constant(scale, f"{name}.weight_scale"),
            self.constant(np.zeros(scale.shape, dtype=np.int8), f"{name}.weight_zero_point"),
        ]
        settings: dict[str, Any] = {"axis": 1} if per_column else {}
        return self.op("DequantizeLinear", *inputs, **settings)

    def linear(self, name: str, x: str, rows: int, columns: int, *, bias: bool = True, **settings: Any) -> str:
        """A Linear as the exporter writes it; settings are of `quantize` and `weight`."""
        per_column = settings.pop("per_column", False)
        weight = self.weight(name, rows, columns, per_column=per_column)
        product = self.op("MatMul", self.quantize(x, **settings), weight)
        return self.add_bias(name, product, columns) if bias else product

    def matrix_linear(self, name: str, x: str, rows: int, columns: int, *, bias: bool = True) -> str:
        """A Linear of a matrix x, which the exporter makes a stack of one matrix."""
        axis = self.constant(np.array([0]))
        product = self.linear(name, self.op("Unsqueeze", x, axis), rows, columns, bias=False)
        product = self.op("Squeeze", product, axis)
        return self.add_bias(name, product, columns) if bias else product

    def add_bias(self, name: str, product: str, columns: int) -> str:
        values = self.random.normal(size=columns)
        return self.op("Add", product, self.constant(values, f"{name}.bias"))

    def gelu(self, x: str) -> str:
        """GELU as the exporter writes it."""
        curve = self.op("Erf", self.op("Div", x, self.constant(2**0.5)))
        half = self.op("Mul", self.constant(0.5), self.op("Add", curve, self.constant(1.0)))
        return self.op("Mul", x, half)

    def norm(self, name: str, x: str, width: int, **attributes: Any) -> str:
        gamma = self.constant(self.random.normal(size=width), f"{name}.weight")
        beta = self.constant(self.random.normal(size=width), f"{name}.bias")
        return self.op("LayerNormalization", x, gamma, beta, **attributes)

    def feed_forward(self, name: str, x: str, width: int, hidden: int) -> str:
        """Linear, GELU, Linear, residual, LayerNorm."""
        inner = self.gelu(self.linear(f"{name}.up", x, width, hidden))
        outer = self.linear(f"{name}.down", inner, hidden, width, scale=0.01, zero_point=20)
        return self.norm(f"{name}.norm", self.op("Add", outer, x), width)

    def split(self, x: str, heads: int, size: int, *orders: list[int]) -> str:
        """x [B, S, heads * size] cut into heads, and then transposed."""
        x = self.op("Reshape", x, self.constant(np.array([0, 0, heads, size])))
        for order in orders:
            x = self.op("Transpose", x, perm=order)
        return x

    def join(self, x: str) -> str:
        """[B, heads, S, size] as [B, S, heads * size]."""
        transposed = self.op("Transpose", x, perm=[0, 2, 1, 3])
        return self.op("Reshape", transposed, self.constant(np.array([0, 0, -1])))
