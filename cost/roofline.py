"""The roofline cost: launch + max(FLOPs / peak, bytes / bandwidth). Needs no hardware and never varies.

Williams, Waterman, Patterson: Roofline, an insightful visual performance model (CACM 2009). Every operator reads its
operands from memory and writes its result there, so the model knows neither caches nor fusion. Symbolic extents
count 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np

from ..egraph.dimension import Dimension
from ..egraph.graph import Attributes, TensorType, TupleType, Type
from ..egraph.operators import REDUCTIONS, VIEWS
from ..egraph.space import SearchSpace
from ..errors import UserError
from .base import FREE, payable
from .devices import DEVICES, Device

OPAQUE_VIEWS = (
    "::Identity", "::Squeeze", "::Unsqueeze", "::Flatten", "::Shape", "::Size", "::relax.shape_of",
    "::relax.shape_to_tensor",
)  # fmt: skip
"""Opaque operators that move no data."""

_PER_ELEMENT = {
    # Polynomial approximations of transcendental functions take about ten multiply-adds; nominal.
    "Sigmoid": 10.0, "Tanh": 10.0, "Erf": 10.0, "Exp": 10.0, "Pow": 20.0, "Sqrt": 4.0, "Div": 4.0,
    "Softmax": 14.0, "LayerNormalization": 8.0, "BatchNormalization": 2.0, "RMSNormalization": 6.0,
    "Reciprocal": 4.0, "Sin": 10.0, "Cos": 10.0, "Log": 10.0, "Softplus": 20.0, "Gelu": 14.0, "Swish": 11.0,
    "BiasGelu": 15.0, "FastGelu": 15.0, "SkipLayerNormalization": 9.0,
    "SkipSimplifiedLayerNormalization": 7.0, "RotaryEmbedding": 3.0,
    "Elu": 10.0, "HardSigmoid": 2.0, "HardSwish": 3.0, "LeakyRelu": 2.0, "Clip": 2.0,
}  # fmt: skip
"""FLOPs for each element of the result, where it is not 1."""

_MOVES = ("Concat", "Split", "Slice", "Transpose", "Expand", "Pad", "Gather", "Cast")
"""Operators that only copy."""


def price(device: Device, op: str, attrs: dict[str, Any] | Attributes, inputs: Sequence[Type], output: Type) -> float:
    """Milliseconds of one operator, core or opaque, on `device`; 0 for leaves, `Get` and views."""
    if op in FREE or op in VIEWS or op in OPAQUE_VIEWS:
        return 0.0
    known = dict(attrs)
    work, matrix = flops(op, known, inputs, output, device.lanes)
    dtype = _first(output).dtype
    seconds = max(work / device.peak(dtype, matrix), traffic(op, inputs, output) / device.bandwidth)
    return device.launch + 1e3 * seconds


def traffic(op: str, inputs: Sequence[Type], output: Type) -> float:
    """Bytes that the operator reads and writes. Slice and Gather read only what they keep."""
    if op == "Slice":
        return 2.0 * output.bytes
    if op in ("Gather", "::Gather"):
        return 2.0 * output.bytes + sum(t.bytes for t in inputs[1:])
    return output.bytes + sum(t.bytes for t in inputs if not (isinstance(t, TensorType) and t.dtype == "absent"))


def flops(op: str, attrs: dict[str, Any], inputs: Sequence[Type], output: Type, lanes: int = 1) -> tuple[float, bool]:
    """Floating-point operations, and whether matrix units do them.

    With `lanes` > 1 a grouped convolution pays for whole tiles: outputs per group are rounded up to a multiple of
    `lanes`, because a group cannot share a tile with its neighbour. A depthwise one is vectorised over
    channels or space instead and pays nothing extra.
    """
    name = op.rsplit("::", 1)[-1]
    if name in _MATRIX and len(inputs) > 1:
        return _MATRIX[name](attrs, [_first(t) for t in inputs], _first(output), lanes), True
    if op in _MOVES:
        return 0.0, False
    if op in ("MaxPool", "AveragePool"):
        return _elements(output) * prod(attrs["kernel"]), False
    if op == "GlobalAveragePool" or op in REDUCTIONS:
        return _elements(inputs[0]), False
    return _PER_ELEMENT.get(op, 1.0) * _elements(output), False


Flops: TypeAlias = Callable[[dict[str, Any], list[TensorType], TensorType, int], float]


def _matmul(attrs: dict[str, Any], xs: list[TensorType], out: TensorType, lanes: int) -> float:
    return 2.0 * out.elements * _extent(_dims(xs[0])[-1:])


def _gemm(attrs: dict[str, Any], xs: list[TensorType], out: TensorType, lanes: int) -> float:
    inner = _dims(xs[0])[-2:][0 if attrs.get("transA") else -1 :]
    return 2.0 * out.elements * _extent(inner[:1]) + (out.elements if len(xs) > 2 and xs[2].dtype != "absent" else 0)


def _conv(attrs: dict[str, Any], xs: list[TensorType], out: TensorType, lanes: int) -> float:
    w = _dims(xs[1])
    group = int(attrs.get("group", 1))
    reduction = _extent(w[1:])
    per_group = max(1, _extent(w[:1]) // group)
    padding = 1.0
    if group > 1 and _extent(w[1:2]) > 1:
        padding = -(-per_group // lanes) * lanes / per_group
    return 2.0 * out.elements * reduction * padding + (out.elements if len(xs) > 2 and xs[2].dtype != "absent" else 0)


def _conv_transpose(attrs: dict[str, Any], xs: list[TensorType], out: TensorType, lanes: int) -> float:
    return 2.0 * xs[0].elements * _extent(_dims(xs[1])[1:])


def _activated(product: Flops) -> Flops:
    """A product with an activation, and of a convolution perhaps another addend."""

    def work(attrs: dict[str, Any], xs: list[TensorType], out: TensorType, lanes: int) -> float:
        name = str(attrs.get("activation", "Relu"))
        ends = _PER_ELEMENT.get(name, 1.0) * bool(name) + (len(xs) > 3)
        return product(attrs, xs, out, lanes) + ends * out.elements

    return work


def _fused_matmul(attrs: dict[str, Any], xs: list[TensorType], out: TensorType, lanes: int) -> float:
    inner = _dims(xs[0])[-2:][0 if attrs.get("transA") else -1 :]
    return 2.0 * out.elements * _extent(inner[:1])


def _attention(attrs: dict[str, Any], xs: list[TensorType], out: TensorType, lanes: int) -> float:
    """Both products and the softmax between them; an additive mask is one operation for each score more.

    q [B,H,S,D] and k [B,H,T,D], or q [B,S,H·D] and k [B,T,H·D] with the number of heads; ONNX Runtime's Attention,
    which is opaque, of x [B,S,M] and the weights of all three projections [M,3·N].
    """
    q, k = _dims(xs[0]), _dims(xs[1])
    if len(q) == 3 and len(k) == 2:  # how many heads there are is not known here: the softmax is left out
        return 2.0 * _extent(q) * _extent(k[1:]) + 4.0 * out.elements * _extent(q[1:2])
    keys = _extent(k[-2:-1])
    queries = _extent(q[:-1]) * (int(attrs.get("heads", 1)) if len(q) == 3 else 1)
    per_score = _PER_ELEMENT["Softmax"] + (len(xs) > 3)
    return 2.0 * keys * (_extent(q) + out.elements) + per_score * queries * keys


def _recurrent(attrs: dict[str, Any], xs: list[TensorType], out: TensorType, lanes: int) -> float:
    steps = _extent(_dims(xs[0])[:2])
    return 2.0 * steps * sum(x.elements for x in xs[1:3])


_MATRIX: dict[str, Flops] = {
    "MatMul": _matmul, "FusedMatMul": _fused_matmul, "MatMulInteger": _matmul, "Gemm": _gemm,
    "FusedGemm": _activated(_gemm), "Conv": _conv, "FusedConv": _activated(_conv), "ConvInteger": _conv,
    "ConvTranspose": _conv_transpose, "Attention": _attention, "MultiHeadAttention": _attention,
    "LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent,
}  # fmt: skip


def _dims(t: TensorType) -> tuple[Dimension, ...]:
    return t.shape or (1,)


def _extent(dims: Sequence[Dimension]) -> int:
    return prod(d if isinstance(d, int) else 1 for d in dims)


def _first(t: Type) -> TensorType:
    return t.items[0] if isinstance(t, TupleType) else t


def _elements(t: Type) -> float:
    return float(sum(i.elements for i in t.items)) if isinstance(t, TupleType) else float(t.elements)


class Roofline:
    """The roofline of one device as a `CostModel`."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.name = f"roofline:{device.name}"

    def prices(self, space: SearchSpace) -> np.ndarray:
        """float64[n_nodes], milliseconds; a pure function of the space and the device."""
        out = np.zeros(space.n_nodes)
        known: dict[tuple[str, Attributes, tuple[Type, ...], Type], float] = {}
        for i in np.flatnonzero(payable(space)).tolist():
            key = (space.ops[i], space.attributes[i], tuple(space.child_types(i)), space.node_type(i))
            if key not in known:
                known[key] = price(self.device, *key)
            out[i] = known[key]
        return out

    def __repr__(self) -> str:
        return self.name


def roofline(device: str) -> Roofline:
    """The roofline of a device in `DEVICES`. Raises `UserError` naming the known ones."""
    if device not in DEVICES:
        raise UserError(f"unknown device {device!r}: roofline knows {', '.join(DEVICES)}")
    return Roofline(DEVICES[device])
