"""Core operators as Relax calls, for nodes that the module has no spelling of its own for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..egraph.graph import Node, TensorType
from .relax_dimensions import Extents
from .relax_operators import BINARY, REDUCTIONS, UNARY
from .tvm_module import tvm

Written = Callable[[Any, Node, Sequence[Any], Sequence[TensorType], Extents], Any]
"""From `tvm.relax.op`, a node, the expressions and types of its operands, and the extents: the call."""


def _call(name: str) -> Written:
    def write(op: Any, node: Node, xs: Sequence[Any], types: Sequence[TensorType], extents: Extents) -> Any:
        found = op
        for part in name.split("."):
            found = getattr(found, part)
        return found(*xs)

    return write


def _constant_like(value: float, kind: TensorType) -> Any:
    from tvm import relax

    tvm()
    return relax.const(value, kind.dtype)


def _written_conv(op: Any, node: Node, xs: Sequence[Any], types: Sequence[TensorType], extents: Extents) -> Any:
    a, n = node.attrs, len(node.attrs["strides"])
    conv = getattr(op.nn, f"conv{n}d")
    out = conv(xs[0], xs[1], strides=a["strides"], padding=a["pads"], dilation=a["dilations"], groups=a["group"])
    if len(xs) == 2:
        return out
    channels = types[1].shape[0] if types[1].shape else 1
    return op.add(out, op.reshape(xs[2], extents.shape((1, channels, *[1] * n))))


def _written_pool(op: Any, node: Node, xs: Sequence[Any], types: Sequence[TensorType], extents: Extents) -> Any:
    a, n = node.attrs, len(node.attrs["kernel"])
    pool = getattr(op.nn, f"{'max' if node.op == 'MaxPool' else 'avg'}_pool{n}d")
    more = {} if node.op == "MaxPool" else {"count_include_pad": bool(a["include_pad"])}
    if a["ceil"]:  # where that makes a window more than ONNX has, the type does not fit and it is refused
        more["ceil_mode"] = True
    return pool(xs[0], a["kernel"], strides=a["strides"], padding=a["pads"], dilation=a["dilations"], **more)


def _written_slice(op: Any, node: Node, xs: Sequence[Any], types: Sequence[TensorType], extents: Extents) -> Any:
    a = node.attrs
    return op.strided_slice(xs[0], a["axes"], a["starts"], a["ends"])


def _written_split(op: Any, node: Node, xs: Sequence[Any], types: Sequence[TensorType], extents: Extents) -> Any:
    bounds, at = [], 0
    for size in node.attrs["sizes"][:-1]:
        at += size
        bounds.append(at)
    return op.split(xs[0], bounds, node.attrs["axis"])


def _written_pad(op: Any, node: Node, xs: Sequence[Any], types: Sequence[TensorType], extents: Extents) -> Any:
    pads = node.attrs["pads"]
    half = len(pads) // 2
    widths = [w for pair in zip(pads[:half], pads[half:], strict=True) for w in pair]
    return op.nn.pad(xs[0], widths, pad_value=node.attrs["value"])


def _written_clip(op: Any, node: Node, xs: Sequence[Any], types: Sequence[TensorType], extents: Extents) -> Any:
    low, high = node.attrs["min"], node.attrs["max"]
    if math.isfinite(low) and math.isfinite(high):
        from tvm import tirx as tir

        # numbers of the tensor's own type
        if "int" in types[0].dtype:
            limits = np.iinfo(types[0].dtype)
            bounds = (min(max(int(k), int(limits.min)), int(limits.max), (1 << 63) - 1) for k in (low, high))
            return op.clip(xs[0], *(tir.IntImm("int64", k) for k in bounds))
        return op.clip(xs[0], tir.FloatImm("float64", low), tir.FloatImm("float64", high))
    out = xs[0]
    if math.isfinite(low):
        out = op.maximum(out, _constant_like(low, types[0]))
    return op.minimum(out, _constant_like(high, types[0])) if math.isfinite(high) else out


def _tail(node: Node, kind: TensorType) -> list[int]:
    return list(range(node.attrs["axis"] - len(kind.shape or ()), 0))


def _written_layer_norm(op: Any, node: Node, xs: Sequence[Any], types: Sequence[TensorType], extents: Extents) -> Any:
    axes = _tail(node, types[0])
    tail = (types[0].shape or ())[node.attrs["axis"] :]
    scale = xs[1] if types[1].shape == tail else op.broadcast_to(xs[1], extents.shape(tail))
    if len(xs) == 3:
        bias = xs[2] if types[2].shape == tail else op.broadcast_to(xs[2], extents.shape(tail))
        return op.nn.layer_norm(xs[0], scale, bias, axes, node.attrs["epsilon"])
    from tvm import relax

    zero = op.broadcast_to(relax.const(0.0, types[0].dtype), extents.shape(tail))
    return op.nn.layer_norm(xs[0], scale, zero, axes, node.attrs["epsilon"], center=False)


def _written_rms_norm(op: Any, node: Node, xs: Sequence[Any], types: Sequence[TensorType], extents: Extents) -> Any:
    tail = (types[0].shape or ())[node.attrs["axis"] :]
    scale = xs[1] if types[1].shape == tail else op.broadcast_to(xs[1], extents.shape(tail))
    return op.nn.rms_norm(xs[0], scale, _tail(node, types[0]), node.attrs["epsilon"])


def _written_reduction(name: str) -> Written:
    def write(op: Any, node: Node, xs: Sequence[Any], types: Sequence[TensorType], extents: Extents) -> Any:
        return getattr(op, name)(xs[0], list(node.attrs["axes"]), bool(node.attrs["keepdims"]))

    return write


WRITTEN: dict[str, Written] = {
    **{op: _call(name) for name, op in (*UNARY.items(), *BINARY.items())},
    **{op: _written_reduction(name) for name, op in REDUCTIONS.items()},
    "Gelu": lambda op, node, xs, types, extents: (
        op.nn.gelu_tanh(xs[0]) if node.attrs["approximate"] == "tanh" else op.nn.gelu(xs[0])
    ),
    "Swish": lambda op, node, xs, types, extents: (
        op.nn.silu(xs[0])
        if node.attrs["alpha"] == 1
        else op.multiply(xs[0], op.sigmoid(op.multiply(xs[0], _constant_like(node.attrs["alpha"], types[0]))))
    ),
    "Reciprocal": lambda op, node, xs, types, extents: op.divide(_constant_like(1.0, types[0]), xs[0]),
    "LeakyRelu": lambda op, node, xs, types, extents: op.nn.leakyrelu(xs[0], node.attrs["alpha"]),
    "Clip": _written_clip,
    "Cast": lambda op, node, xs, types, extents: op.astype(xs[0], node.attrs["to"]),
    "MatMul": lambda op, node, xs, types, extents: op.matmul(xs[0], xs[1]),
    "Conv": _written_conv,
    "MaxPool": _written_pool,
    "AveragePool": _written_pool,
    "GlobalAveragePool": lambda op, node, xs, types, extents: op.mean(
        xs[0], list(range(2, len(types[0].shape or ()))), True
    ),
    "BatchNormalization": lambda op, node, xs, types, extents: op.nn.batch_norm(
        *xs, axis=1, epsilon=node.attrs["epsilon"], training=False
    )[0],
    "LayerNormalization": _written_layer_norm,
    "RMSNormalization": _written_rms_norm,
    "Softmax": lambda op, node, xs, types, extents: op.nn.softmax(xs[0], node.attrs["axis"]),
    "Concat": lambda op, node, xs, types, extents: op.concat(list(xs), node.attrs["axis"]),
    "Split": _written_split,
    "Slice": _written_slice,
    "Transpose": lambda op, node, xs, types, extents: op.permute_dims(xs[0], list(node.attrs["perm"])),
    "Reshape": lambda op, node, xs, types, extents: op.reshape(xs[0], extents.shape(node.attrs["shape"])),
    "Expand": lambda op, node, xs, types, extents: op.broadcast_to(xs[0], extents.shape(node.attrs["shape"])),
    "Pad": _written_pad,
    "Gather": lambda op, node, xs, types, extents: op.take(xs[0], xs[1], node.attrs["axis"]),
}  # fmt: skip
"""Core operators that Relax has, or that are a few calls there; rules may introduce these."""
