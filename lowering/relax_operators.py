"""Relax operators that are core operators.

`READ` says for each Relax operator which core operator a call of it is; whatever does not fit exactly raises `NotCore`
and stays opaque.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..egraph.dimension import Dimension
from ..egraph.graph import TensorType
from .relax_dimensions import Extents


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
    if call.attrs["axis"] is None:
        raise NotCore("a flat tensor is indexed")
    if str(call.attrs["mode"]) != "fast" and not _inside(call.args[1], call.shape()[call.axis()]):
        raise NotCore("indices may lie outside")  # the other modes say what is there
    return Core("Gather", {"axis": call.axis()})


def _inside(indices: Any, extent: Dimension) -> bool:
    """Whether indices are constants of which none is outside an axis or counts from its end."""
    value: Any = getattr(indices, "value", None)
    if not hasattr(value, "numpy") or not isinstance(extent, int):
        return False
    array = value.numpy()
    return bool(array.size and array.min() >= 0 and array.max() < extent)


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
