"""Relay's operators as core operators: each call becomes one or several nodes of a graph.

Semantics: TVM 0.15's `relay.op` (the operators that ONNX and torch models import to). Layouts other than
channels-first, and whatever has no core form, are refused by name.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np

from ..egraph.graph import GraphBuilder, TensorType, Weight
from .onnx_tensor import numpy_dtype
from .relax_operators import BINARY, REDUCTIONS, UNARY
from .relay_text import Symbol


class NotReadable(ValueError):
    """A call with attributes that have no core form; the text says which."""


Value: TypeAlias = "int | tuple[Value, ...]"

LAYOUTS = {"1d": ("NCW", "OIW"), "2d": ("NCHW", "OIHW"), "3d": ("NCDHW", "OIDHW")}


class Site:
    """One call: its operands in a graph that is being built, and its attributes with Relay's defaults."""

    def __init__(self, builder: GraphBuilder, name: str, args: Sequence[Value], attrs: dict[str, Any]) -> None:
        self.builder, self.name, self.args, self.told = builder, name, args, attrs

    def get(self, name: str, default: Any = None) -> Any:
        value = self.told.get(name, default)
        return value.text if isinstance(value, Symbol) else value

    def x(self, k: int = 0) -> int:
        if k >= len(self.args) or not isinstance(self.args[k], int):
            raise NotReadable(f"operand {k} is no tensor")
        return self.args[k]  # type: ignore[return-value]

    def kind(self, i: int) -> TensorType:
        found = self.builder.nodes[i].type
        if not isinstance(found, TensorType) or not found.concrete:
            raise NotReadable("an operand's shape is not known")
        return found

    def shape(self, i: int) -> tuple[int, ...]:
        return self.kind(i).shape  # type: ignore[return-value]

    def op(self, op: str, *xs: int, **attrs: Any) -> int:
        return self.builder.op(op, *xs, **attrs)

    def number(self, value: float, like: int) -> int:
        return self.builder.weight(Weight.of(np.array(value, numpy_dtype(self.kind(like).dtype)), ""))

    def constant(self, i: int) -> np.ndarray | None:
        """The content of a small constant."""
        node = self.builder.nodes[i]
        return self.builder.weights[str(node.attrs["digest"])].value if node.op == "Weight" else None

    def axis(self, name: str = "axis", default: int = -1, of: int | None = None) -> int:
        rank = len(self.shape(self.x() if of is None else of))
        return int(self.get(name, default)) % max(1, rank)

    def reshape(self, i: int, shape: Sequence[int]) -> int:
        return i if self.shape(i) == tuple(shape) else self.op("Reshape", i, shape=tuple(shape))

    def transpose(self, i: int, perm: Sequence[int]) -> int:
        return self.op("Transpose", i, perm=tuple(perm))

    def default(self, name: str, *usual: Any) -> None:
        """Refuse an attribute that is told and has another value than these."""
        if name in self.told and self.get(name) not in (None, "", *usual):
            raise NotReadable(f"{name}={self.get(name)}")


Reading: TypeAlias = Callable[[Site], Value]


def _plain(op: str, **attrs: Any) -> Reading:
    return lambda s: s.op(op, *(s.x(k) for k in range(len(s.args))), **attrs)


def _identity(s: Site) -> Value:
    return s.args[0]


def _dtype(s: Site) -> None:
    s.default("out_dtype", s.kind(s.x()).dtype)


def _dense(s: Site) -> int:
    _dtype(s)
    return s.op("MatMul", s.x(), s.transpose(s.x(1), (1, 0)))


def _matmul(s: Site) -> int:
    _dtype(s)
    a, b = s.x(), s.x(1)
    a = s.transpose(a, (1, 0)) if s.get("transpose_a", False) else a
    return s.op("MatMul", a, s.transpose(b, (1, 0)) if s.get("transpose_b", False) else b)


def _batch_matmul(s: Site) -> int:
    _dtype(s)
    a, b = s.x(), s.x(1)
    a = s.transpose(a, (0, 2, 1)) if s.get("transpose_a", False) else a
    return s.op("MatMul", a, s.transpose(b, (0, 2, 1)) if s.get("transpose_b", False) else b)


def _bias_add(s: Site) -> int:
    axis, rank = s.axis(default=1), len(s.shape(s.x()))
    bias = s.reshape(s.x(1), (s.shape(s.x(1))[0], *[1] * (rank - 1 - axis)))
    return s.op("Add", s.x(), bias)


def _window(s: Site, n: int, name: str, default: int) -> tuple[int, ...]:
    told = s.get(name)
    if told is None:
        return (default,) * n
    values = (told,) if isinstance(told, int) else tuple(told)
    return tuple(int(v) for v in (values * n if len(values) == 1 else values))


def _pads(s: Site, n: int) -> tuple[int, ...]:
    told = s.get("padding", (0,))
    pads = (told,) if isinstance(told, int) else tuple(int(p) for p in told)
    return pads * (2 * n // len(pads))  # one for all, one for each axis, or both ends of each


def _conv(form: str) -> Reading:
    def read(s: Site) -> int:
        layout, kernel = LAYOUTS[form]
        n = len(layout) - 2
        s.default("data_layout", layout)
        s.default("kernel_layout", kernel)
        s.default("out_layout", layout)
        _dtype(s)
        return s.op(
            "Conv", s.x(), s.x(1), strides=_window(s, n, "strides", 1), dilations=_window(s, n, "dilation", 1),
            pads=_pads(s, n), group=int(s.get("groups", 1)),
        )  # fmt: skip

    return read


def _pool(op: str, form: str) -> Reading:
    def read(s: Site) -> int:
        n = len(LAYOUTS[form][0]) - 2
        s.default("layout", LAYOUTS[form][0])
        s.default("out_layout", LAYOUTS[form][0])
        pads, ceil = _pads(s, n), int(s.get("ceil_mode", False))
        attrs: dict[str, Any] = {
            "kernel": _window(s, n, "pool_size", 1), "strides": _window(s, n, "strides", 1), "pads": pads,
            "dilations": _window(s, n, "dilation", 1), "ceil": ceil,
        }  # fmt: skip
        if op == "AveragePool":
            attrs["include_pad"] = int(s.get("count_include_pad", False))
        if ceil and not _same_windows(s, n, attrs):
            raise NotReadable("ceil_mode=True with a window that begins in the padding")
        return s.op(op, s.x(), **attrs)

    return read


def _same_windows(s: Site, n: int, a: dict[str, Any]) -> bool:
    """Whether rounding up makes as many windows as ONNX has, which leaves out those that begin behind the data."""
    for i, extent in enumerate(s.shape(s.x())[2:]):
        span = a["dilations"][i] * (a["kernel"][i] - 1) + 1
        windows = -(-(extent + a["pads"][i] + a["pads"][n + i] - span) // a["strides"][i]) + 1
        if (windows - 1) * a["strides"][i] >= extent + a["pads"][i]:
            return False
    return True


def _global_pool(s: Site) -> int:
    s.default("layout", "NCHW", "NCW", "NCDHW")
    size = s.get("output_size", (1,) if "global" in s.name else ())
    sizes = (size,) if isinstance(size, int) else tuple(size or ())
    if not sizes:
        return s.x()  # to the size that it has
    if any(int(v) != 1 for v in sizes):
        raise NotReadable(f"output_size={size}")
    return s.op("GlobalAveragePool", s.x())


def _batch_norm(s: Site) -> Value:
    if s.axis(default=1) != 1:
        raise NotReadable("another axis than 1")
    s.default("center", True)
    s.default("scale", True)
    y = s.op("BatchNormalization", *(s.x(k) for k in range(5)), epsilon=float(s.get("epsilon", 1e-5)))
    return (y, s.x(3), s.x(4))


def _layer_norm(s: Site) -> int:
    s.default("center", True)
    s.default("scale", True)
    axis = s.axis()
    if axis != len(s.shape(s.x())) - 1:
        raise NotReadable("another axis than the last")
    return s.op("LayerNormalization", s.x(), s.x(1), s.x(2), axis=axis, epsilon=float(s.get("epsilon", 1e-5)))


def _axes(s: Site) -> tuple[int, ...]:
    rank, told = len(s.shape(s.x())), s.get("axis")
    if told in (None, ()):
        return tuple(range(rank))
    found = {int(a) % max(1, rank) for a in ((told,) if isinstance(told, int) else told)}
    return tuple(sorted(set(range(rank)) - found if s.get("exclude", False) else found))


def _reduce(op: str) -> Reading:
    return lambda s: s.op(op, s.x(), axes=_axes(s), keepdims=int(s.get("keepdims", False)))


def _variance(s: Site) -> int:
    s.default("unbiased", False)
    axes, keep = _axes(s), int(s.get("keepdims", False))
    mean = s.x(1)
    kept = tuple(1 if i in axes else d for i, d in enumerate(s.shape(s.x())))
    difference = s.op("Sub", s.x(), s.reshape(mean, kept))
    return s.op("ReduceMean", s.op("Mul", difference, difference), axes=axes, keepdims=keep)


def _concatenate(s: Site) -> int:
    parts = s.args[0]
    if not isinstance(parts, tuple) or not all(isinstance(p, int) for p in parts):
        raise NotReadable("its operand is no tuple of tensors")
    return s.op("Concat", *parts, axis=s.axis(default=0, of=parts[0]))  # type: ignore[arg-type]


def _split(s: Site) -> Value:
    axis, told = s.axis(default=0), s.get("indices_or_sections")
    extent = s.shape(s.x())[axis]
    if isinstance(told, int):
        if extent % told:
            raise NotReadable(f"{extent} in {told} parts")
        sizes = [extent // told] * told
    else:
        bounds = [0, *map(int, told), extent]
        sizes = [b - a for a, b in itertools.pairwise(bounds)]
    node = s.op("Split", s.x(), axis=axis, sizes=tuple(sizes))
    return tuple(s.builder.get(node, k) for k in range(len(sizes)))


def _strided_slice(s: Site) -> int:
    s.default("slice_mode", "end", "size")
    shape, size = s.shape(s.x()), s.get("slice_mode", "end") == "size"
    begin, end, strides = (tuple(s.get(k) or ()) for k in ("begin", "end", "strides"))
    axes = s.get("axes") or tuple(range(len(begin)))
    if any(int(k) != 1 for k in strides) and not size:
        raise NotReadable(f"strides={list(strides)}")
    found: dict[int, tuple[int, int]] = {}
    for axis, start, stop in zip(axes, begin, end, strict=True):
        n = shape[axis]
        start = max(0, min(n, start + n if start < 0 else start))
        stop = (n if stop < 0 else start + stop) if size else (stop + n if stop < 0 else stop)
        found[axis % len(shape)] = start, max(start, min(n, stop))
    order = sorted(found)
    return s.op(
        "Slice",
        s.x(),
        axes=tuple(order),
        starts=tuple(found[a][0] for a in order),
        ends=tuple(found[a][1] for a in order),
    )


def _transpose(s: Site) -> int:
    rank, told = len(s.shape(s.x())), s.get("axes")
    return s.transpose(s.x(), [a % rank for a in told] if told else list(range(rank - 1, -1, -1)))


def _reshape(s: Site) -> int:
    before, told = s.shape(s.x()), s.get("newshape")
    shape: list[int] = []
    for k, d in enumerate(told):
        if d == 0 and not s.get("allowzero", False):
            shape.append(before[k])
        elif d < -1:
            raise NotReadable(f"newshape={list(told)}")
        else:
            shape.append(int(d))
    if -1 in shape:
        rest = prod(d for d in shape if d != -1)
        shape[shape.index(-1)] = prod(before) // rest if rest else 0
    return s.op("Reshape", s.x(), shape=tuple(shape))


def _squeeze(s: Site) -> int:
    before, told = s.shape(s.x()), s.get("axis")
    gone = {k for k, d in enumerate(before) if d == 1} if told is None else {a % len(before) for a in told}
    return s.op("Reshape", s.x(), shape=tuple(d for k, d in enumerate(before) if k not in gone))


def _expand_dims(s: Site) -> int:
    before, number = list(s.shape(s.x())), int(s.get("num_newaxis", 1))
    at = int(s.get("axis")) % (len(before) + 1)
    return s.op("Reshape", s.x(), shape=(*before[:at], *[1] * number, *before[at:]))


def _batch_flatten(s: Site) -> int:
    shape = s.shape(s.x())
    return s.op("Reshape", s.x(), shape=(shape[0], prod(shape[1:])))


def _broadcast_to(s: Site) -> int:
    return s.op("Expand", s.x(), shape=tuple(int(d) for d in s.get("shape")))


def _pad(s: Site) -> int:
    s.default("pad_mode", "constant")
    widths = s.get("pad_width")
    value = s.constant(s.x(1)) if len(s.args) > 1 else np.array(s.get("pad_value", 0.0))
    if value is None:
        raise NotReadable("padding with what is computed")
    pads = (*(int(w[0]) for w in widths), *(int(w[1]) for w in widths))
    return s.op("Pad", s.x(), pads=pads, value=float(value.reshape(-1)[0]))


def _take(s: Site) -> int:
    if s.get("mode", "clip") not in ("clip", "fast") or int(s.get("batch_dims", 0)):
        raise NotReadable(f"mode={s.get('mode')}")
    x = s.x()
    told = s.get("axis")
    if told is None:
        x = s.reshape(x, (prod(s.shape(x)),))
    return s.op("Gather", x, s.x(1), axis=0 if told is None else int(told) % len(s.shape(x)))


def _shape_of(s: Site) -> int:
    return s.builder.weight(Weight.of(np.array(s.shape(s.x()), numpy_dtype(s.get("dtype", "int32"))), ""))


def _filled(value: float) -> Reading:
    def read(s: Site) -> int:
        return s.builder.weight(Weight.of(np.full(s.get("shape"), value, numpy_dtype(s.get("dtype", "float32"))), ""))

    return read


def _clip(s: Site) -> int:
    return s.op("Clip", s.x(), min=float(s.get("a_min")), max=float(s.get("a_max")))


def _cast(s: Site) -> int:
    return s.x() if s.get("dtype") == s.kind(s.x()).dtype else s.op("Cast", s.x(), to=s.get("dtype"))


def _rsqrt(s: Site) -> int:
    return s.op("Reciprocal", s.op("Sqrt", s.x()))


def _softmax(s: Site) -> int:
    return s.op("Softmax", s.x(), axis=s.axis())


def _prelu_like(s: Site) -> int:
    return s.op("LeakyRelu", s.x(), alpha=float(s.get("alpha", 0.25)))


READ: dict[str, Reading] = {
    **{name: _plain(op) for name, op in (*UNARY.items(), *BINARY.items())},
    **{name: _reduce(op) for name, op in REDUCTIONS.items()},
    **{f"nn.conv{form}": _conv(form) for form in LAYOUTS},
    **{f"nn.{name}_pool{form}": _pool(op, form) for form in LAYOUTS for name, op in
       (("max", "MaxPool"), ("avg", "AveragePool"))},
    **{f"nn.{name}{form}": _global_pool for form in LAYOUTS for name in ("global_avg_pool", "adaptive_avg_pool")},
    "nn.dense": _dense, "nn.matmul": _matmul, "nn.batch_matmul": _batch_matmul, "nn.bias_add": _bias_add,
    "nn.batch_norm": _batch_norm, "nn.layer_norm": _layer_norm, "nn.softmax": _softmax, "nn.pad": _pad,
    "nn.leaky_relu": _prelu_like, "nn.batch_flatten": _batch_flatten, "nn.dropout": lambda s: (s.x(), s.x()),
    "variance": _variance, "concatenate": _concatenate, "split": _split, "strided_slice": _strided_slice,
    "transpose": _transpose, "reshape": _reshape, "squeeze": _squeeze, "expand_dims": _expand_dims,
    "broadcast_to": _broadcast_to, "take": _take, "shape_of": _shape_of, "clip": _clip, "cast": _cast,
    "rsqrt": _rsqrt, "copy": _identity, "zeros": _filled(0.0), "ones": _filled(1.0),
}  # fmt: skip
"""By the operator's name."""
