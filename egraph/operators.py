"""The core operators: for each, its type rule and what rules and costs need to know of it.

The semantics are those of ONNX at internal opset 23, with every optional attribute made explicit, static operands
(axes, shapes, pads, bounds) turned into attributes, and negative axes resolved. `lowering.onnx_reader` brings other
opsets into this form. Operators that only some opsets or runtimes have are core all the same: which of them may be
written is told to `rules.rule_set`.

| operator | inputs | attributes |
|---|---|---|
| Relu Sigmoid Tanh Erf Sqrt Exp Neg Abs Reciprocal Sin Cos Log Softplus Floor Ceil Sign HardSwish | x | |
| Gelu | x | approximate (none or tanh) |
| Swish | x, giving x·sigmoid(alpha·x) | alpha |
| LeakyRelu Elu | x | alpha |
| HardSigmoid | x | alpha, beta |
| Clip | x | min, max (float, infinite where there is none) |
| Cast | x | to (a dtype's name) |
| Not IsNaN | x | |
| Add Sub Mul Div Pow Min Max | x, y (numpy broadcasting) | |
| Equal Greater GreaterOrEqual Less LessOrEqual And Or | x, y | |
| Where | condition, x, y | |
| MatMul | x, y (numpy.matmul) | |
| Gemm | a, b, [c] | alpha, beta (float), transA, transB (0/1) |
| Conv | x, w, [b] | strides, dilations, pads (begin…, end…), group |
| BatchNormalization | x, scale, bias, mean, variance | epsilon |
| MaxPool | x | kernel, strides, pads, dilations, ceil (0/1) |
| AveragePool | x | kernel, strides, pads, dilations, ceil, include_pad (0/1) |
| GlobalAveragePool | x | |
| Softmax | x | axis |
| LayerNormalization | x, scale, [bias] | axis, epsilon |
| RMSNormalization | x, scale | axis, epsilon |
| ReduceMean ReduceSum ReduceMax ReduceMin | x | axes, keepdims (0/1) |
| Concat | x0, x1, … | axis |
| Split | x (tuple-valued) | axis, sizes |
| Slice | x | axes, starts, ends (0 ≤ start ≤ end ≤ extent, step 1) |
| Transpose | x | perm |
| Reshape | x | shape (no 0, no -1; may hold symbolic dimensions) |
| Expand | x | shape (the result's; may hold symbolic dimensions) |
| Pad | x, padded with one number | pads (begin…, end…, of all axes), value |
| Gather | x, indices | axis |
| Get | a tuple | index |

The fused operators, of newer opsets or of one runtime alone, are in `egraph.fused`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import fused, movement
from .dimension import Dimension, sign
from .graph import TensorType, Type
from .pointwise import BINARY, COMPARISONS, ELEMENTWISE, FLOATS, INTEGERS, LOGICAL, PARAMETRIC, PLAIN, UNARY
from .registry import (
    IllTyped,
    axis_of,
    broadcast,
    concrete,
    core,
    core_operators,
    infer,
    same_dtype,
    shape_of,
    typed,
)

__all__ = [
    "BINARY", "COMPARISONS", "ELEMENTWISE", "FLOATS", "INTEGERS", "LOGICAL", "NORMALISING", "PARAMETRIC", "PLAIN",
    "REDUCTIONS", "UNARY", "VIEWS", "WINDOWED", "IllTyped", "broadcast", "core", "core_operators", "fused", "infer",
    "movement",
]  # fmt: skip

REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")
NORMALISING = ("Softmax", "LayerNormalization", "RMSNormalization")
WINDOWED = ("MaxPool", "AveragePool")
VIEWS = ("Reshape",)
"""Operators that move no data."""


@typed("MatMul")
def _matmul(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    a, b = shape_of(xs[0]), shape_of(xs[1])
    if not a or not b:
        raise IllTyped("MatMul of a scalar")
    left, right = (1, *a) if len(a) == 1 else a, (*b, 1) if len(b) == 1 else b
    if left[-1] != right[-2]:
        raise IllTyped(f"MatMul of {xs[0]} and {xs[1]}: inner extents differ")
    out = list(broadcast(left[:-2], right[:-2]))
    out += [left[-2]] if len(a) > 1 else []
    out += [right[-1]] if len(b) > 1 else []
    return TensorType(tuple(out), same_dtype("MatMul", *xs))


@typed("Gemm")
def _gemm(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    a, b = shape_of(xs[0]), shape_of(xs[1])
    if len(a) != 2 or len(b) != 2:
        raise IllTyped(f"Gemm of {xs[0]} and {xs[1]}: matrices needed")
    a = a[::-1] if attrs["transA"] else a
    b = b[::-1] if attrs["transB"] else b
    if a[1] != b[0]:
        raise IllTyped(f"Gemm of {xs[0]} and {xs[1]}: inner extents differ")
    out = (a[0], b[1])
    if len(xs) == 3 and broadcast(shape_of(xs[2]), out) != out:
        raise IllTyped(f"Gemm's addend {xs[2]} does not broadcast to {out}")
    return TensorType(out, same_dtype("Gemm", *xs))


def window(extent: Dimension, kernel: int, stride: int, dilation: int, pad: int, ceil: bool = False) -> Dimension:
    """Extent of a convolution's or pooling's result along one axis; `pad` is the sum of both sides."""
    span = extent + (pad - dilation * (kernel - 1) - 1)
    if sign(span) == -1:
        raise IllTyped(f"a window of {kernel} over an extent of {extent} with padding {pad}")
    return ((span + (stride - 1)) // stride if ceil else span // stride) + 1


def _windows(attrs: dict[str, Any], x: Sequence[Dimension], kernel: Sequence[int], ceil: bool) -> list[Dimension]:
    n = len(kernel)
    pads, out = attrs["pads"], []
    for i in range(n):
        pad = pads[i] + pads[n + i]
        extent = window(x[2 + i], kernel[i], attrs["strides"][i], attrs["dilations"][i], pad, ceil)
        # With ceil, a last window that would start in the padding behind the data is dropped (ONNX 1.16, torch).
        if ceil:
            late = sign((extent - 1) * attrs["strides"][i] - (x[2 + i] + pads[i]))
            if late is None:
                raise IllTyped("ceil_mode over a symbolic extent")
            extent = extent - (late >= 0)
        out.append(extent)
    return out


@typed("Conv")
def _conv(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    x, w = shape_of(xs[0]), concrete(xs[1], "Conv")
    group = attrs["group"]
    if len(x) != len(w) or len(x) < 3 or len(attrs["strides"]) != len(w) - 2:
        raise IllTyped(f"Conv of {xs[0]} with {xs[1]}")
    if x[1] != w[1] * group or w[0] % group:
        raise IllTyped(f"Conv of {xs[0]} with {xs[1]} in {group} groups: channels do not fit")
    if len(xs) == 3 and xs[2].shape != (w[0],):
        raise IllTyped(f"Conv's bias is {xs[2]}, not one value for each of {w[0]} outputs")
    return TensorType((x[0], w[0], *_windows(attrs, x, w[2:], False)), same_dtype("Conv", *xs))


@typed("MaxPool", "AveragePool")
def _pool(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    x = shape_of(xs[0])
    if len(x) != len(attrs["kernel"]) + 2:
        raise IllTyped(f"a pooling window of rank {len(attrs['kernel'])} over {xs[0]}")
    return TensorType((*x[:2], *_windows(attrs, x, attrs["kernel"], bool(attrs["ceil"]))), xs[0].dtype)


@typed("GlobalAveragePool")
def _global_pool(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    x = shape_of(xs[0])
    if len(x) < 3:
        raise IllTyped(f"GlobalAveragePool of {xs[0]}")
    return TensorType((*x[:2], *([1] * (len(x) - 2))), xs[0].dtype)


@typed("BatchNormalization")
def _batch_norm(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    x = shape_of(xs[0])
    if len(xs) != 5 or len(x) < 2 or any(p.shape != (x[1],) for p in xs[1:]):
        raise IllTyped("BatchNormalization needs four vectors, one value for each channel")
    return TensorType(x, same_dtype("BatchNormalization", *xs))


@typed("Softmax")
def _softmax(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    axis_of(attrs["axis"], len(shape_of(xs[0])), "Softmax")
    return xs[0]


@typed("LayerNormalization")
def _layer_norm(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    x = shape_of(xs[0])
    tail = x[axis_of(attrs["axis"], len(x), "LayerNormalization") :]
    if any(broadcast(shape_of(p), tail) != tail for p in xs[1:]):
        raise IllTyped(f"LayerNormalization's scale does not broadcast to {tail}")
    return TensorType(x, same_dtype("LayerNormalization", *xs))


@typed("RMSNormalization")
def _rms_norm(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    x = shape_of(xs[0])
    tail = x[axis_of(attrs["axis"], len(x), "RMSNormalization") :]
    if broadcast(shape_of(xs[1]), tail) != tail:
        raise IllTyped(f"RMSNormalization's scale does not broadcast to {tail}")
    return TensorType(x, same_dtype("RMSNormalization", *xs))


@typed(*REDUCTIONS)
def _reduce(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    x = shape_of(xs[0])
    axes = {axis_of(a, len(x), "reduction") for a in attrs["axes"]}
    kept = [1 if i in axes else d for i, d in enumerate(x) if attrs["keepdims"] or i not in axes]
    return TensorType(tuple(kept), xs[0].dtype)


@typed("Get")
def _get(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    raise AssertionError("handled by infer")
