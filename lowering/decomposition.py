"""Core operators that a language lacks, as several that it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..egraph.graph import Graph, GraphBuilder, Node, TensorType, Weight
from .onnx_tensor import numpy_dtype


def spelled_out(graph: Graph, has: Callable[[str], bool], wrapped: bool = True) -> Graph:
    """The graph with each operator that `has` denies replaced by simpler ones, where this module knows how.

    wrapped: whether its indices may be negative and count from the end then, as ONNX's do; they are made positive.
    """

    def form_of(op: str) -> _Form | None:
        return _gather if wrapped and op == "Gather" else None if has(op) else _FORMS.get(op)

    if not any(form_of(graph.nodes[i].op) for i in graph.operators):
        return graph
    builder = GraphBuilder()
    builder.weights, builder.opaques = dict(graph.weights), dict(graph.opaques)
    builder.input_names = list(graph.input_names)
    made: list[int] = []
    for node in graph.nodes:
        inputs = tuple(made[k] for k in node.inputs)
        form = form_of(node.op)
        if form is None:
            made.append(builder.add(node.op, inputs, node.attributes, node.type, node.names))
        else:
            made.append(form(_Maker(builder), node, inputs))
    outputs = dict(zip(graph.output_names, (made[i] for i in graph.outputs), strict=True))
    return builder.build(outputs, graph.source)


class _Maker:
    def __init__(self, builder: GraphBuilder) -> None:
        self.builder = builder

    def op(self, op: str, *xs: int, **attrs: Any) -> int:
        return self.builder.op(op, *xs, **attrs)

    def number(self, value: float, like: int) -> int:
        kind = self.builder.nodes[like].type
        assert isinstance(kind, TensorType)
        return self.builder.weight(Weight.of(np.array(value, numpy_dtype(kind.dtype)), "", kind.dtype))


_Form = Callable[[_Maker, Node, tuple[int, ...]], int]


def _gather(m: _Maker, node: Node, xs: tuple[int, ...]) -> int:
    kind = m.builder.nodes[xs[0]].type
    assert isinstance(kind, TensorType)
    extent, indices = (kind.shape or ())[node.attrs["axis"]], xs[1]
    if isinstance(extent, int):
        below = m.op("Less", indices, m.number(0, indices))
        indices = m.op("Where", below, m.op("Add", indices, m.number(extent, indices)), indices)
    return m.op("Gather", xs[0], indices, axis=node.attrs["axis"])


def _gemm(m: _Maker, node: Node, xs: tuple[int, ...]) -> int:
    a = node.attrs
    left = m.op("Transpose", xs[0], perm=(1, 0)) if a["transA"] else xs[0]
    right = m.op("Transpose", xs[1], perm=(1, 0)) if a["transB"] else xs[1]
    y = m.op("MatMul", left, right)
    if a["alpha"] != 1:
        y = m.op("Mul", y, m.number(a["alpha"], y))
    if len(xs) == 2:
        return y
    return m.op("Add", y, xs[2] if a["beta"] == 1 else m.op("Mul", xs[2], m.number(a["beta"], xs[2])))


def _hard_sigmoid(m: _Maker, node: Node, xs: tuple[int, ...]) -> int:
    alpha, beta = node.attrs["alpha"], node.attrs["beta"]
    line = m.op("Add", m.op("Mul", xs[0], m.number(alpha, xs[0])), m.number(beta, xs[0]))
    return m.op("Clip", line, min=0.0, max=1.0)


def _hard_swish(m: _Maker, node: Node, xs: tuple[int, ...]) -> int:
    line = m.op("Add", m.op("Mul", xs[0], m.number(1 / 6, xs[0])), m.number(0.5, xs[0]))
    return m.op("Mul", xs[0], m.op("Clip", line, min=0.0, max=1.0))


def _elu(m: _Maker, node: Node, xs: tuple[int, ...]) -> int:
    zero = m.number(0.0, xs[0])
    below = m.op("Sub", m.op("Exp", m.op("Min", xs[0], zero)), m.number(1.0, xs[0]))
    return m.op("Add", m.op("Max", xs[0], zero), m.op("Mul", below, m.number(node.attrs["alpha"], xs[0])))


def _softplus(m: _Maker, node: Node, xs: tuple[int, ...]) -> int:
    """log(1 + eˣ) as max(x, 0) + log(1 + e^-|x|), which does not overflow."""
    rest = m.op("Add", m.op("Exp", m.op("Neg", m.op("Abs", xs[0]))), m.number(1.0, xs[0]))
    return m.op("Add", m.op("Max", xs[0], m.number(0.0, xs[0])), m.op("Log", rest))


def _rms_norm(m: _Maker, node: Node, xs: tuple[int, ...]) -> int:
    kind = node.type
    assert isinstance(kind, TensorType)
    axes = tuple(range(node.attrs["axis"], len(kind.shape or ())))
    narrow = kind.dtype in ("float16", "bfloat16")  # whose squares overflow, or lose all but a few digits
    x = m.op("Cast", xs[0], to="float32") if narrow else xs[0]
    mean = m.op("ReduceMean", m.op("Mul", x, x), axes=axes, keepdims=1)
    root = m.op("Sqrt", m.op("Add", mean, m.number(node.attrs["epsilon"], mean)))
    y = m.op("Div", x, root)
    return m.op("Mul", m.op("Cast", y, to=kind.dtype) if narrow else y, xs[1])


def _gelu(m: _Maker, node: Node, xs: tuple[int, ...]) -> int:
    x = xs[0]
    if node.attrs["approximate"] == "tanh":
        cube = m.op("Mul", m.op("Mul", m.op("Mul", x, x), x), m.number(0.044715, x))
        inner = m.op("Tanh", m.op("Mul", m.op("Add", x, cube), m.number(np.sqrt(2 / np.pi), x)))
    else:
        inner = m.op("Erf", m.op("Mul", x, m.number(np.sqrt(0.5), x)))
    return m.op("Mul", m.op("Mul", x, m.number(0.5, x)), m.op("Add", inner, m.number(1.0, x)))


_FORMS: dict[str, _Form] = {
    "Gemm": _gemm,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Elu": _elu,
    "Softplus": _softplus,
    "RMSNormalization": _rms_norm,
    "Gelu": _gelu,
}
