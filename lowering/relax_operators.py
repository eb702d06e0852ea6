"""Relax operators that are core operators, and core operators in Relax.

`READ` says for each Relax operator which core operator a call of it is; whatever does not fit exactly raises `NotCore`
and stays opaque. `WRITTEN` says how a core operator is written; the module's own spelling is preferred if there is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..egraph.dimension import Dimension
from ..egraph.graph import Node, TensorType
from .relax_dimensions import Extents
from .tvm_module import tvm


class NotCore(ValueError):
    """A call that is no core operator."""


@dataclass
class Call:
    """A call of a Relax operator.

    args: its arguments. attrs: its attributes. types: of those arguments that are tensors (None for the others), or of
    the parts of a tuple. used: which parts of its result are read, if that is a tuple.
    """

    args: Sequence[Any]
    attrs: Mapping[str, Any]
    types: Sequence[TensorType | None]
    extents: Extents
    result: TensorType
    used: frozenset[int] = frozenset()

    def rank(self, k: int = 0) -> int:
        return len(self.shape(k))

    def shape(self, k: int = 0) -> tuple[Dimension, ...]:
        kind = self.types[k] if k < len(self.types) else None
        if kind is None or kind.shape is None:
            raise NotCore("a shape is unknown")
        return kind.shape

    def axis(self, name: str = "axis") -> int:
        return int(self.attrs[name]) % max(1, self.rank())

    def axes(self, name: str = "axis") -> list[int]:
        found = self.attrs[name]
        return list(range(self.rank())) if found is None else sorted(int(a) % self.rank() for a in found)


@dataclass(frozen=True)
class Core:
    """A core operator: its name, attributes, and which arguments are its operands (None: all that are tensors).

    result: the part of the call's tuple that it gives, if that is a tuple of which others are not read.
    """

    op: str
    attrs: Mapping[str, Any]
    operands: Sequence[int] | None = None
    result: int | None = None


Reader = Callable[[Call], Core]

UNARY = {
    "nn.relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "erf": "Erf", "sqrt": "Sqrt", "exp": "Exp",
    "negative": "Neg", "abs": "Abs", "sin": "Sin", "cos": "Cos", "log": "Log", "floor": "Floor", "ceil": "Ceil",
    "sign": "Sign", "logical_not": "Not", "isnan": "IsNaN",
}  # fmt: skip
BINARY = {
    "add": "Add", "subtract": "Sub", "multiply": "Mul", "divide": "Div", "power": "Pow", "minimum": "Min",
    "maximum": "Max", "equal": "Equal", "greater": "Greater", "greater_equal": "GreaterOrEqual", "less": "Less",
    "less_equal": "LessOrEqual", "logical_and": "And", "logical_or": "Or", "where": "Where",
}  # fmt: skip
REDUCTIONS = {"mean": "ReduceMean", "sum": "ReduceSum", "max": "ReduceMax", "min": "ReduceMin"}
POOLS = {"max_pool": "MaxPool", "avg_pool": "AveragePool"}
LAYOUTS = {1: ("NCW", "OIW"), 2: ("NCHW", "OIHW"), 3: ("NCDHW", "OIDHW")}


def _same(name: str, **attrs: Any) -> Reader:
    return lambda call: Core(name, attrs)


def _clip(call: Call) -> Core:
    return Core("Clip", {"min": _number(call.args[1]), "max": _number(call.args[2])}, [0])


def _number(expr: Any) -> float:
    value = getattr(expr, "value", None)
    if isinstance(value, (int, float)):
        return float(value)
    raise NotCore("a limit is no number")


def _astype(call: Call) -> Core:
    return Core("Cast", {"to": str(call.attrs["dtype"])})


def _matmul(call: Call) -> Core:
    _no_other_dtype(call)
    return Core("MatMul", {})


def _no_other_dtype(call: Call) -> None:
    wanted, kind = call.attrs.get("out_dtype"), call.types[0]
    if wanted is not None and str(wanted) not in ("", "void") and (kind is None or str(wanted) != kind.dtype):
        raise NotCore("a result of another element type")


def _conv(n: int) -> Reader:
    def read(call: Call) -> Core:
        a = call.attrs
        if (a["data_layout"], a["kernel_layout"]) != LAYOUTS[n] or a["out_layout"] not in ("", a["data_layout"]):
            raise NotCore(f"layout {a['data_layout']}, {a['kernel_layout']}")
        _no_other_dtype(call)
        return Core(
            "Conv",
            {
                "strides": _ints(a["strides"]), "dilations": _ints(a["dilation"]), "pads": _ints(a["padding"]),
                "group": int(a["groups"]),
            },
        )  # fmt: skip

    return read


def _pool(name: str, n: int) -> Reader:
    def read(call: Call) -> Core:
        a = call.attrs
        if a["layout"] != LAYOUTS[n][0] or a["out_layout"] not in ("", a["layout"]):
            raise NotCore(f"layout {a['layout']}")
        if a["ceil_mode"]:
            raise NotCore("windows that reach beyond the padding")  # TVM counts those that ONNX drops
        attrs = {
            "kernel": _ints(a["pool_size"]), "strides": _ints(a["strides"]), "pads": _ints(a["padding"]),
            "dilations": _ints(a["dilation"]), "ceil": 0,
        }  # fmt: skip
        if name == "AveragePool":
            attrs["include_pad"] = int(a["count_include_pad"])
        return Core(name, attrs)

    return read


def _global_pool(call: Call) -> Core:
    if any(int(d) != 1 for d in call.attrs["output_size"]) or call.attrs["layout"] not in ("NCW", "NCHW", "NCDHW"):
        raise NotCore("an adaptive pool to more than one element")
    return Core("GlobalAveragePool", {})


def _batch_norm(call: Call) -> Core:
    a = call.attrs
    if a["training"] or not (a["center"] and a["scale"]) or int(a["axis"]) % call.rank() != 1 or call.used - {0}:
        raise NotCore("batch normalisation that is trained, or without scale and bias")
    return Core("BatchNormalization", {"epsilon": float(a["epsilon"])}, result=0)


def _layer_norm(call: Call) -> Core:
    a, axes = call.attrs, call.axes("axes")
    if not (a["center"] and a["scale"]) or axes != list(range(axes[0], call.rank())):
        raise NotCore("a layer normalisation over other than the last axes")
    return Core("LayerNormalization", {"axis": axes[0], "epsilon": float(a["epsilon"])})


def _rms_norm(call: Call) -> Core:
    axes = call.axes("axes")
    if axes != list(range(axes[0], call.rank())):
        raise NotCore("a normalisation over other than the last axes")
    return Core("RMSNormalization", {"axis": axes[0], "epsilon": float(call.attrs["epsilon"])})


def _softmax(call: Call) -> Core:
    return Core("Softmax", {"axis": call.axis()})


def _reduce(name: str) -> Reader:
    return lambda call: Core(name, {"axes": call.axes(), "keepdims": int(call.attrs["keepdims"])})


def _concat(call: Call) -> Core:
    return Core("Concat", {"axis": call.axis()})


def _split(call: Call) -> Core:
    from tvm import tirx as tir

    axis, told = call.axis(), call.attrs["indices_or_sections"]
    extent = call.shape()[axis]
    if not isinstance(extent, int):
        raise NotCore("a symbolic extent is split")
    if isinstance(told, (int, tir.IntImm)):
        each = -(-extent // int(told))
        bounds = [min(k * each, extent) for k in range(int(told))]
    else:
        bounds = [0, *(int(k) for k in told)]
    sizes = [b - a for a, b in zip(bounds, [*bounds[1:], extent], strict=True)]
    if min(sizes) < 0 or sum(sizes) != extent:
        raise NotCore("parts that overlap")
    return Core("Split", {"axis": axis, "sizes": sizes})


def _slice(call: Call) -> Core:
    axes, starts, ends, *rest = (_tuple(a) for a in call.args[1:])
    if any(step != 1 for step in (rest[0] if rest else ())):
        raise NotCore("a slice with steps")
    found: dict[int, tuple[int, int]] = {}
    for axis, start, end in zip(axes, starts, ends, strict=True):
        n = call.shape()[axis % call.rank()]
        if not isinstance(n, int):
            raise NotCore("a symbolic extent is sliced")
        start, end = (max(0, min(n, k + n if k < 0 else k)) for k in (start, end))
        found[axis % call.rank()] = start, max(start, end)
    order = sorted(found)
    return Core(
        "Slice", {"axes": order, "starts": [found[a][0] for a in order], "ends": [found[a][1] for a in order]}, [0]
    )


def _tuple(expr: Any) -> list[int]:
    values = [getattr(f, "value", f) for f in getattr(expr, "fields", (None,))]
    if not all(isinstance(v, int) for v in values):
        raise NotCore("a bound that is no number")
    return [int(v) for v in values if v is not None]


def _permute(call: Call) -> Core:
    told = call.attrs["axes"]
    perm = range(call.rank() - 1, -1, -1) if told is None else (int(a) % call.rank() for a in told)
    return Core("Transpose", {"perm": list(perm)})


def _reshape(call: Call) -> Core:
    if call.result.shape is None:
        raise NotCore("a shape is unknown")
    return Core("Reshape", {"shape": call.result.shape}, [0])


def _expand(call: Call) -> Core:
    if call.result.shape is None:
        raise NotCore("a shape is unknown")
    return Core("Expand", {"shape": call.result.shape}, [0])


def _pad(call: Call) -> Core:
    widths = _ints(call.attrs["pad_width"])
    if str(call.attrs["pad_mode"]) != "constant" or min(widths, default=0) < 0:
        raise NotCore("padding with other than a number")
    return Core("Pad", {"pads": [*widths[::2], *widths[1::2]], "value": float(call.attrs["pad_value"])})


def _take(call: Call) -> Core:
    if call.attrs["axis"] is None or str(call.attrs["mode"]) != "fast":  # the others say what an index outside means
        raise NotCore("a flat tensor is indexed, or indices may lie outside")
    return Core("Gather", {"axis": call.axis()})


def _ints(values: Any) -> list[int]:
    return [int(v) for v in values]


READ: dict[str, Reader] = {
    **{name: _same(op) for name, op in (*UNARY.items(), *BINARY.items())},
    **{name: _reduce(op) for name, op in REDUCTIONS.items()},
    **{f"nn.conv{n}d": _conv(n) for n in LAYOUTS},
    **{f"nn.{name}{n}d": _pool(op, n) for n in LAYOUTS for name, op in POOLS.items()},
    **{f"nn.adaptive_avg_pool{n}d": _global_pool for n in LAYOUTS},
    **dict.fromkeys(("reshape", "flatten", "squeeze", "expand_dims", "nn.batch_flatten"), _reshape),
    "nn.gelu": _same("Gelu", approximate="none"),
    "nn.gelu_tanh": _same("Gelu", approximate="tanh"),
    "nn.silu": _same("Swish", alpha=1.0),
    "nn.leakyrelu": lambda call: Core("LeakyRelu", {"alpha": float(call.attrs["alpha"])}),
    "clip": _clip,
    "astype": _astype,
    "matmul": _matmul,
    "nn.batch_norm": _batch_norm,
    "nn.layer_norm": _layer_norm,
    "nn.rms_norm": _rms_norm,
    "nn.softmax": _softmax,
    "concat": _concat,
    "split": _split,
    "strided_slice": _slice,
    "permute_dims": _permute,
    "broadcast_to": _expand,
    "nn.pad": _pad,
    "take": _take,
}
"""By the operator's name without "relax."."""

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
