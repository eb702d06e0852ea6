"""The core operators: for each, its type rule and what rules and costs need to know of it.

The semantics are those of ONNX at internal opset 22, with every optional attribute made explicit, static operands
(axes, shapes, pads) turned into attributes, and negative axes resolved. `lowering.onnx_reader` brings other
opsets into this form.

| operator | inputs | attributes |
|---|---|---|
| Relu Sigmoid Tanh Erf Sqrt Exp Neg Abs | x | |
| Add Sub Mul Div Pow | x, y (numpy broadcasting) | |
| MatMul | x, y (numpy.matmul) | |
| Gemm | a, b, [c] | alpha, beta (float), transA, transB (0/1) |
| Conv | x, w, [b] | strides, dilations, pads (begin…, end…), group |
| BatchNormalization | x, scale, bias, mean, variance | epsilon |
| MaxPool | x | kernel, strides, pads, dilations, ceil (0/1) |
| AveragePool | x | kernel, strides, pads, dilations, ceil, include_pad (0/1) |
| GlobalAveragePool | x | |
| Softmax | x | axis |
| LayerNormalization | x, scale, [bias] | axis, epsilon |
| ReduceMean | x | axes, keepdims (0/1) |
| Concat | x0, x1, … | axis |
| Split | x (tuple-valued) | axis, sizes |
| Slice | x | axes, starts, ends (0 ≤ start ≤ end ≤ extent, step 1) |
| Transpose | x | perm |
| Reshape | x | shape (no 0, no -1; may hold symbolic dimensions) |
| Get | a tuple | index |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, cast

from .dimension import Dimension, caps, least, sign
from .graph import Attributes, TensorType, TupleType, Type

UNARY = ("Relu", "Sigmoid", "Tanh", "Erf", "Sqrt", "Exp", "Neg", "Abs")
BINARY = ("Add", "Sub", "Mul", "Div", "Pow")
ELEMENTWISE = (*UNARY, *BINARY)
NORMALISING = ("Softmax", "LayerNormalization")
WINDOWED = ("MaxPool", "AveragePool")
VIEWS = ("Reshape",)
"""Operators that move no data."""


class IllTyped(ValueError):
    """The operator cannot be applied to operands of these types."""


_RULES: dict[str, Callable[[dict[str, Any], list[TensorType]], Type]] = {}


def _typed(*ops: str) -> Callable[[Callable[[dict[str, Any], list[TensorType]], Type]], None]:
    def register(rule: Callable[[dict[str, Any], list[TensorType]], Type]) -> None:
        for op in ops:
            _RULES[op] = rule

    return register


def core(op: str) -> bool:
    """Whether rules know this operator."""
    return op in _RULES


def core_operators() -> tuple[str, ...]:
    """Names of all core operators."""
    return tuple(_RULES)


def infer(op: str, attrs: Attributes, inputs: Sequence[Type]) -> Type:
    """Type of the operator's result. Raises `IllTyped` with the reason when there is none or it is not known."""
    rule = _RULES.get(op)
    if rule is None:
        raise IllTyped(f"{op} is not a core operator")
    if op == "Get":
        kind = inputs[0]
        index = dict(attrs)["index"]
        if not isinstance(kind, TupleType) or not 0 <= cast(int, index) < len(kind.items):
            raise IllTyped(f"Get {index} of {kind}")
        return kind.items[cast(int, index)]
    for kind in inputs:
        if not isinstance(kind, TensorType) or kind.shape is None:
            raise IllTyped(f"{op} needs operands of known rank, not {kind}")
    return rule(dict(attrs), cast(list[TensorType], list(inputs)))


def shape_of(t: TensorType) -> tuple[Dimension, ...]:
    assert t.shape is not None
    return t.shape


def concrete(t: TensorType, op: str) -> tuple[int, ...]:
    if not t.concrete:
        raise IllTyped(f"{op} needs known extents, not {t}")
    return cast(tuple[int, ...], t.shape)


def same_dtype(op: str, *types: TensorType) -> str:
    if len({t.dtype for t in types}) != 1:
        raise IllTyped(f"{op} of {', '.join(map(str, types))}: one dtype needed")
    return types[0].dtype


def bounds(d: Dimension, other: Dimension) -> bool:
    """Whether `other` is min(d, c), c > 1: with each other they broadcast only where both are the same."""
    return any(other == least(d, c) for c in caps(other) if c > 1)


def broadcast(a: Sequence[Dimension], b: Sequence[Dimension]) -> tuple[Dimension, ...]:
    """Shape of an element-wise operation on operands of these shapes (numpy's rule)."""
    n = max(len(a), len(b))
    out: list[Dimension] = []
    for x, y in zip((1,) * (n - len(a)) + tuple(a), (1,) * (n - len(b)) + tuple(b), strict=True):
        if x not in (y, 1) and y != 1:
            if bounds(x, y) or bounds(y, x):
                x = x if bounds(x, y) else y
            elif 1 in caps(y) and y == least(x, 1):
                pass  # y is 1, or both are 0
            elif 1 in caps(x) and x == least(y, 1):
                x = y
            else:
                raise IllTyped(f"shapes {tuple(a)} and {tuple(b)} do not broadcast")
        out.append(y if x == 1 else x)
    return tuple(out)


@_typed(*UNARY)
def _unary(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    return xs[0]


@_typed(*BINARY)
def _binary(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    return TensorType(broadcast(shape_of(xs[0]), shape_of(xs[1])), same_dtype("element-wise operator", *xs))


@_typed("MatMul")
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


@_typed("Gemm")
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


@_typed("Conv")
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


@_typed("MaxPool", "AveragePool")
def _pool(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    x = shape_of(xs[0])
    if len(x) != len(attrs["kernel"]) + 2:
        raise IllTyped(f"a pooling window of rank {len(attrs['kernel'])} over {xs[0]}")
    return TensorType((*x[:2], *_windows(attrs, x, attrs["kernel"], bool(attrs["ceil"]))), xs[0].dtype)


@_typed("GlobalAveragePool")
def _global_pool(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    x = shape_of(xs[0])
    if len(x) < 3:
        raise IllTyped(f"GlobalAveragePool of {xs[0]}")
    return TensorType((*x[:2], *([1] * (len(x) - 2))), xs[0].dtype)


@_typed("BatchNormalization")
def _batch_norm(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    x = shape_of(xs[0])
    if len(xs) != 5 or len(x) < 2 or any(p.shape != (x[1],) for p in xs[1:]):
        raise IllTyped("BatchNormalization needs four vectors, one value for each channel")
    return TensorType(x, same_dtype("BatchNormalization", *xs))


def _axis(axis: int, rank: int, op: str) -> int:
    if not 0 <= axis < rank:
        raise IllTyped(f"{op}: axis {axis} of a tensor of rank {rank}")
    return axis


@_typed("Softmax")
def _softmax(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    _axis(attrs["axis"], len(shape_of(xs[0])), "Softmax")
    return xs[0]


@_typed("LayerNormalization")
def _layer_norm(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    x = shape_of(xs[0])
    tail = x[_axis(attrs["axis"], len(x), "LayerNormalization") :]
    if any(broadcast(shape_of(p), tail) != tail for p in xs[1:]):
        raise IllTyped(f"LayerNormalization's scale does not broadcast to {tail}")
    return TensorType(x, same_dtype("LayerNormalization", *xs))


@_typed("ReduceMean")
def _reduce_mean(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    x = shape_of(xs[0])
    axes = {_axis(a, len(x), "ReduceMean") for a in attrs["axes"]}
    kept = [1 if i in axes else d for i, d in enumerate(x) if attrs["keepdims"] or i not in axes]
    return TensorType(tuple(kept), xs[0].dtype)


@_typed("Concat")
def _concat(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    first = shape_of(xs[0])
    axis = _axis(attrs["axis"], len(first), "Concat")
    total: Dimension = 0
    for t in xs:
        shape = shape_of(t)
        if len(shape) != len(first) or any(
            a != b for i, (a, b) in enumerate(zip(shape, first, strict=True)) if i != axis
        ):
            raise IllTyped(f"Concat along {axis} of {', '.join(map(str, xs))}")
        total = total + shape[axis]
    return TensorType((*first[:axis], total, *first[axis + 1 :]), same_dtype("Concat", *xs))


@_typed("Split")
def _split(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    x, sizes = shape_of(xs[0]), attrs["sizes"]
    axis = _axis(attrs["axis"], len(x), "Split")
    if sum(sizes) != x[axis] or min(sizes) < 0:
        raise IllTyped(f"Split of {xs[0]} along {axis} into {sizes}")
    return TupleType(tuple(TensorType((*x[:axis], s, *x[axis + 1 :]), xs[0].dtype) for s in sizes))


@_typed("Slice")
def _slice(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    out = list(shape_of(xs[0]))
    for axis, start, end in zip(attrs["axes"], attrs["starts"], attrs["ends"], strict=True):
        extent = out[_axis(axis, len(out), "Slice")]
        if not isinstance(extent, int) or not 0 <= start <= end <= extent:
            raise IllTyped(f"Slice {start}:{end} along axis {axis} of {xs[0]}")
        out[axis] = end - start
    return TensorType(tuple(out), xs[0].dtype)


@_typed("Transpose")
def _transpose(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    x, perm = shape_of(xs[0]), attrs["perm"]
    if sorted(perm) != list(range(len(x))):
        raise IllTyped(f"Transpose of {xs[0]} by {perm}")
    return TensorType(tuple(x[p] for p in perm), xs[0].dtype)


@_typed("Reshape")
def _reshape(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    shape = tuple(attrs["shape"])
    if prod(shape_of(xs[0])) != prod(shape):
        raise IllTyped(f"Reshape of {xs[0]} to {shape}")
    return TensorType(shape, xs[0].dtype)


@_typed("Get")
def _get(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    raise AssertionError("handled by infer")
