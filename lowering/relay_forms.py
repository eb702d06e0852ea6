"""Core operators as Relay calls, for nodes that the module did not have before."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Protocol, TypeAlias

import numpy as np

from ..egraph.graph import Node, TensorType
from .onnx_forms import NotWritable
from .relax_operators import BINARY, REDUCTIONS, UNARY
from .relay_text import Call, Expr, Part, Scalar, Tuple


class NotInRelay(NotWritable):
    """A graph that cannot be written as Relay."""


class Writing(Protocol):
    """What a form needs of the writer."""

    def expr(self, i: int) -> Expr:
        """The expression of a node's value."""

    def shape(self, i: int) -> tuple[int, ...]:
        """The extents of a node's value."""

    def transposed(self, i: int) -> Expr:
        """A matrix, or a batch of matrices, with its last two axes exchanged."""

    def bound(self, e: Expr) -> Expr:
        """A new variable that is bound to an expression."""


Form: TypeAlias = Callable[[Writing, Node, Sequence[int]], Expr]


def call(op: str, *args: Expr, **attrs: Any) -> Call:
    """A call; lists become tuples."""
    told = tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in attrs.items())
    return Call(op, args, told)


def _plain(name: str) -> Form:
    return lambda w, node, xs: call(name, *map(w.expr, xs))


def _reshaped(w: Writing, e: Expr, shape: Sequence[int]) -> Expr:
    return w.bound(call("reshape", e, newshape=tuple(shape)))


def _matmul(w: Writing, node: Node, xs: Sequence[int]) -> Expr:
    a, b = xs
    left, right = w.shape(a), w.shape(b)
    out = _shape(node)
    if len(left) < 2 or len(right) < 2:
        raise NotInRelay("a product with a vector")
    if len(right) == 2:  # all rows together
        x = w.expr(a) if len(left) == 2 else _reshaped(w, w.expr(a), (prod(left[:-1]), left[-1]))
        rows = call("nn.dense", x, w.transposed(b), units=right[1])
        return rows if len(left) == 2 else call("reshape", w.bound(rows), newshape=out)
    batch = out[:-2]
    x, y = w.expr(a), w.expr(b)
    if left[:-2] != batch:
        x = w.bound(call("broadcast_to", x, shape=(*batch, *left[-2:])))
    if right[:-2] != batch:
        y = w.bound(call("broadcast_to", y, shape=(*batch, *right[-2:])))
    if len(batch) != 1:
        x = _reshaped(w, x, (prod(batch), *left[-2:]))
        y = _reshaped(w, y, (prod(batch), *right[-2:]))
    product = call("nn.batch_matmul", x, y, transpose_a=False, transpose_b=False)
    return product if len(batch) == 1 else call("reshape", w.bound(product), newshape=out)


def _shape(node: Node) -> tuple[int, ...]:
    kind = node.type
    if not isinstance(kind, TensorType) or not kind.concrete:
        raise NotInRelay(f"{node.op} of a shape that is not known")
    return kind.shape  # type: ignore[return-value]


def _form(n: int) -> str:
    return {1: "1d", 2: "2d", 3: "3d"}[n]


def _conv(w: Writing, node: Node, xs: Sequence[int]) -> Expr:
    a, kernel = node.attrs, w.shape(xs[1])
    product = call(
        f"nn.conv{_form(len(kernel) - 2)}", w.expr(xs[0]), w.expr(xs[1]), strides=a["strides"], padding=a["pads"],
        dilation=a["dilations"], groups=a["group"], channels=kernel[0], kernel_size=kernel[2:],
    )  # fmt: skip
    return product if len(xs) == 2 else call("nn.bias_add", w.bound(product), w.expr(xs[2]))


def _pool(w: Writing, node: Node, xs: Sequence[int]) -> Expr:
    a = node.attrs
    name = f"nn.{'max' if node.op == 'MaxPool' else 'avg'}_pool{_form(len(a['kernel']))}"
    attrs = {"pool_size": a["kernel"], "strides": a["strides"], "dilation": a["dilations"], "padding": a["pads"]}
    if a["ceil"]:
        attrs["ceil_mode"] = True
    if a.get("include_pad"):
        attrs["count_include_pad"] = True
    return call(name, w.expr(xs[0]), **attrs)


def _global_pool(w: Writing, node: Node, xs: Sequence[int]) -> Expr:
    return call("mean", w.expr(xs[0]), axis=tuple(range(2, len(_shape(node)))), keepdims=True)


def _batch_norm(w: Writing, node: Node, xs: Sequence[int]) -> Expr:
    return Part(w.bound(call("nn.batch_norm", *map(w.expr, xs), epsilon=node.attrs["epsilon"])), 0)


def _layer_norm(w: Writing, node: Node, xs: Sequence[int]) -> Expr:
    shape, axis, epsilon = w.shape(xs[0]), node.attrs["axis"], node.attrs["epsilon"]
    if axis == len(shape) - 1 and len(xs) == 3 and w.shape(xs[1]) == w.shape(xs[2]) == shape[-1:]:
        return call("nn.layer_norm", *map(w.expr, xs), axis=axis, epsilon=epsilon)
    axes, x, dtype = tuple(range(axis, len(shape))), w.expr(xs[0]), _dtype(node)
    mean = w.bound(call("mean", x, axis=axes, keepdims=True))
    variance = w.bound(call("variance", x, mean, axis=axes, keepdims=True))
    root = w.bound(call("sqrt", w.bound(call("add", variance, Scalar(epsilon, dtype)))))
    scaled = call("multiply", w.bound(call("divide", w.bound(call("subtract", x, mean)), root)), w.expr(xs[1]))
    return scaled if len(xs) == 2 else call("add", w.bound(scaled), w.expr(xs[2]))


def _clip(w: Writing, node: Node, xs: Sequence[int]) -> Expr:
    low, high, x, dtype = node.attrs["min"], node.attrs["max"], w.expr(xs[0]), _dtype(node)
    if math.isfinite(low) and math.isfinite(high):
        return call("clip", x, a_min=low, a_max=high)
    if not math.isfinite(low) and not math.isfinite(high):
        return x
    op, limit = ("maximum", low) if math.isfinite(low) else ("minimum", high)
    return call(op, x, Scalar(limit if "float" in dtype else int(limit), dtype))


def _dtype(node: Node) -> str:
    return node.type.dtype if isinstance(node.type, TensorType) else "float32"


def _swish(w: Writing, node: Node, xs: Sequence[int]) -> Expr:
    x, alpha = w.expr(xs[0]), node.attrs["alpha"]
    scaled = x if alpha == 1 else w.bound(call("multiply", x, Scalar(alpha, _dtype(node))))
    return call("multiply", x, w.bound(call("sigmoid", scaled)))


def _concat(w: Writing, node: Node, xs: Sequence[int]) -> Expr:
    return call("concatenate", w.bound(Tuple(tuple(map(w.expr, xs)))), axis=node.attrs["axis"])


def _split(w: Writing, node: Node, xs: Sequence[int]) -> Expr:
    bounds = tuple(np.cumsum(node.attrs["sizes"])[:-1].tolist())
    return call("split", w.expr(xs[0]), indices_or_sections=bounds, axis=node.attrs["axis"])


def _slice(w: Writing, node: Node, xs: Sequence[int]) -> Expr:
    shape, a = w.shape(xs[0]), node.attrs
    found = dict(zip(a["axes"], zip(a["starts"], a["ends"], strict=True), strict=True))
    begin, end = zip(*(found.get(k, (0, d)) for k, d in enumerate(shape)), strict=True)
    return call("strided_slice", w.expr(xs[0]), begin=begin, end=end, strides=(1,) * len(shape))


def _pad(w: Writing, node: Node, xs: Sequence[int]) -> Expr:
    pads = node.attrs["pads"]
    half = len(pads) // 2
    widths = tuple(zip(pads[:half], pads[half:], strict=True))
    return call("nn.pad", w.expr(xs[0]), Scalar(node.attrs["value"], _dtype(node)), pad_width=widths)


def _reduce(name: str) -> Form:
    def write(w: Writing, node: Node, xs: Sequence[int]) -> Expr:
        return call(name, w.expr(xs[0]), axis=node.attrs["axes"], keepdims=bool(node.attrs["keepdims"]))

    return write


WRITTEN: dict[str, Form] = {
    **{op: _plain(name) for name, op in (*UNARY.items(), *BINARY.items())},
    **{op: _reduce(name) for name, op in REDUCTIONS.items()},
    "Swish": _swish,
    "Reciprocal": lambda w, node, xs: call("divide", Scalar(1.0, _dtype(node)), w.expr(xs[0])),
    "LeakyRelu": lambda w, node, xs: call("nn.leaky_relu", w.expr(xs[0]), alpha=node.attrs["alpha"]),
    "Clip": _clip,
    "Cast": lambda w, node, xs: call("cast", w.expr(xs[0]), dtype=node.attrs["to"]),
    "MatMul": _matmul,
    "Conv": _conv,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _global_pool,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "Softmax": lambda w, node, xs: call("nn.softmax", w.expr(xs[0]), axis=node.attrs["axis"]),
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Transpose": lambda w, node, xs: call("transpose", w.expr(xs[0]), axes=node.attrs["perm"]),
    "Reshape": lambda w, node, xs: call("reshape", w.expr(xs[0]), newshape=_shape(node)),
    "Expand": lambda w, node, xs: call("broadcast_to", w.expr(xs[0]), shape=_shape(node)),
    "Pad": _pad,
    "Gather": lambda w, node, xs: call("take", w.expr(xs[0]), w.expr(xs[1]), axis=node.attrs["axis"]),
}  # fmt: skip
"""Core operators that Relay has, or that are a few calls there."""
