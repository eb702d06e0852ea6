"""ONNX operators in core form: for each, how its node of any opset becomes a core operator of `egraph.operators`.

A converter takes a `Site` and returns a `Core`, or raises `NotCore` with the reason: the node then stays opaque.
Operator versions are those of https://onnx.ai/onnx/operators/; every converter knows opsets 7 to 24 and later ones
that changed element types only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ..egraph.dimension import Dimension, Polynomial, divided, symbols_of
from ..egraph.graph import TensorType
from ..egraph.operators import BINARY, COMPARISONS, FLOATS, LOGICAL, PLAIN, REDUCTIONS, IllTyped, broadcast
from .onnx_tensor import dtype_name

_EPSILON = float(np.float32(1e-5))


class NotCore(Exception):
    """The node does not fit the core form; the message says why."""


class Core(NamedTuple):
    """A core operator: its name, which of the node's operands it takes, and its attributes.

    results: which of the node's outputs its parts are, if it has several and they are not simply all of them.
    """

    op: str
    operands: tuple[int, ...]
    attrs: dict[str, Any]
    results: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Site:
    """One ONNX node as converters see it.

    attrs: the node's own attributes. types: the operands' types, None for an operand that is not given.
    constant: value of an operand that is a weight, else None. outputs: how many outputs are given and read.
    listed: how many outputs are given at all. result: the type that ONNX inferred for the first output, if any.
    extents: what an operand holds, flat, where it is a small tensor of extents, constant or symbolic.
    given: symbols that a dimension of some input of the model tells. reads: which outputs are read.
    """

    op: str
    opset: int
    attrs: dict[str, Any]
    types: Sequence[TensorType | None]
    constant: Callable[[int], np.ndarray | None]
    outputs: int
    listed: int
    result: TensorType | None
    extents: Callable[[int], list[Dimension] | None] = lambda k: None
    given: frozenset[str] = frozenset()
    reads: frozenset[int] = frozenset()

    def has(self, k: int) -> bool:
        return k < len(self.types) and self.types[k] is not None

    def shape(self, k: int = 0) -> tuple[Dimension, ...]:
        kind = self.types[k] if self.has(k) else None
        if kind is None or kind.shape is None:
            raise NotCore(f"the rank of operand {k} is not known")
        return kind.shape

    def known_shape(self, k: int = 0) -> tuple[int, ...]:
        shape = self.shape(k)
        known = tuple(d for d in shape if isinstance(d, int))
        if len(known) < len(shape):
            raise NotCore(f"operand {k} has extents that are not known")
        return known

    def values(self, k: int) -> tuple[int, ...] | None:
        """Operand k as integers; None if it is not given."""
        if not self.has(k):
            return None
        value = self.constant(k)
        if value is None:
            raise NotCore(f"operand {k} is computed, not constant")
        if value.dtype.kind not in "iu":
            raise NotCore(f"operand {k} holds no integers")
        return tuple(int(v) for v in value.reshape(-1))

    def axis(self, axis: int, rank: int) -> int:
        if not -rank <= axis < rank:
            raise NotCore(f"axis {axis} of a tensor of rank {rank}")
        return axis % rank

    def axes(self, since: int) -> tuple[int, ...] | None:
        """`axes`: an attribute below opset `since`, the second operand from then on."""
        if self.opset < since:
            found = self.attrs.get("axes")
            return None if found is None else tuple(found)
        return self.values(1)


Converter = Callable[[Site], Core]
CONVERTERS: dict[str, Converter] = {}


def converts(*ops: str, attrs: str = "", outputs: int = 1) -> Callable[[Converter], Converter]:
    """Register a converter, for nodes with no attributes but `attrs` and at most `outputs` outputs that are read."""
    known = frozenset(attrs.split())

    def register(convert: Converter) -> Converter:
        def checked(site: Site) -> Core:
            unknown = sorted(site.attrs.keys() - known)
            if unknown:
                raise NotCore(f"attribute {unknown[0]}")
            if site.outputs > outputs:
                raise NotCore("a second output is used")
            return convert(site)

        CONVERTERS.update(dict.fromkeys(ops, checked))
        return checked

    return register


@converts(*PLAIN, *BINARY, *COMPARISONS, *LOGICAL, "Not", "Where", "MatMul", "GlobalAveragePool")
def _plain(s: Site) -> Core:
    return Core(s.op, tuple(range(len(s.types))), {})


@converts("IsNaN")
def _is_nan(s: Site) -> Core:
    _floating(s)
    return Core("IsNaN", (0,), {})


def _floating(s: Site) -> None:
    kind = s.types[0]
    if kind is None or kind.dtype not in FLOATS:
        raise NotCore(f"an operand of type {kind}")


@converts("Gelu", attrs="approximate")
def _gelu(s: Site) -> Core:
    approximate = s.attrs.get("approximate", "none")
    if approximate not in ("none", "tanh"):
        raise NotCore(f"approximate {approximate}")
    return Core("Gelu", (0,), {"approximate": approximate})


_SLOPES = {"Swish": 1.0, "LeakyRelu": float(np.float32(0.01)), "Elu": 1.0}


@converts(*_SLOPES, attrs="alpha")
def _sloped(s: Site) -> Core:
    return Core(s.op, (0,), {"alpha": float(s.attrs.get("alpha", _SLOPES[s.op]))})


@converts("HardSigmoid", attrs="alpha beta")
def _hard_sigmoid(s: Site) -> Core:
    attrs = {"alpha": float(s.attrs.get("alpha", np.float32(0.2))), "beta": float(s.attrs.get("beta", 0.5))}
    return Core("HardSigmoid", (0,), attrs)


def _number(s: Site, k: int, default: float) -> float:
    """Operand k, one constant number that a float64 holds."""
    if not s.has(k):
        return default
    value = s.constant(k)
    if value is None or value.size != 1:
        raise NotCore(f"operand {k} is no constant number")
    number = float(value.reshape(-1)[0])
    if np.isnan(number) or (value.dtype.kind in "iu" and abs(number) >= 2.0**53):
        raise NotCore(f"operand {k} is {number}")
    return number


@converts("Clip", attrs="min max")
def _clip(s: Site) -> Core:
    if s.opset < 11:
        largest = float(np.finfo(np.float32).max)
        low, high = float(s.attrs.get("min", -largest)), float(s.attrs.get("max", largest))
    else:
        low, high = _number(s, 1, -np.inf), _number(s, 2, np.inf)
    return Core("Clip", (0,), {"min": float(low), "max": float(high)})


@converts("Cast", attrs="to saturate")
def _cast(s: Site) -> Core:
    return Core("Cast", (0,), {"to": dtype_name(s.attrs["to"])})


@converts("Expand")
def _expand(s: Site) -> Core:
    wanted = s.extents(1)
    if wanted is None:
        if s.result is None or s.result.shape is None:
            raise NotCore("the shape is computed from what is not known")
        return _expanded(s, s.result.shape)
    try:
        return _expanded(s, broadcast(s.shape(), wanted))
    except IllTyped as error:
        raise NotCore(str(error)) from error


def _expanded(s: Site, shape: Sequence[Dimension]) -> Core:
    told = {d.name for d in s.shape() if isinstance(d, Polynomial)} | s.given
    if not told.issuperset(symbols_of(shape)):
        raise NotCore(f"an extent of {tuple(shape)} is neither known nor the operand's own")
    if any(isinstance(d, int) and d < 0 for d in shape):
        raise NotCore(f"shape {tuple(shape)}")
    return Core("Expand", (0,), {"shape": tuple(shape)})


@converts("Pad", attrs="mode pads value")
def _pad(s: Site) -> Core:
    if s.attrs.get("mode", "constant") != "constant":
        raise NotCore(f"mode {s.attrs['mode']}")
    rank = len(s.shape())
    pads = s.attrs.get("pads") if s.opset < 11 else s.values(1)
    value = float(s.attrs.get("value", 0.0)) if s.opset < 11 else _number(s, 2, 0.0)
    axes = s.values(3)
    if pads is None or min(pads, default=0) < 0:
        raise NotCore(f"pads {pads}")
    chosen = range(rank) if axes is None else [s.axis(a, rank) for a in axes]
    if len(pads) != 2 * len(chosen) or len(set(chosen)) != len(chosen):
        raise NotCore("pads and axes do not fit together")
    every = [0] * (2 * rank)
    for k, a in enumerate(chosen):
        every[a], every[rank + a] = pads[k], pads[len(chosen) + k]
    return Core("Pad", (0,), {"pads": tuple(every), "value": value})


@converts("Gather", attrs="axis")
def _gather(s: Site) -> Core:
    return Core("Gather", (0, 1), {"axis": s.axis(s.attrs.get("axis", 0), len(s.shape()))})


@converts("Sum")
def _sum(s: Site) -> Core:
    if len(s.types) != 2:
        raise NotCore("a sum of other than two operands")
    return Core("Add", (0, 1), {})


@converts("Gemm", attrs="alpha beta transA transB")
def _gemm(s: Site) -> Core:
    return gemm_core(s)


def gemm_core(s: Site) -> Core:
    """A Gemm, whatever else the node does."""
    addend = s.has(2)
    attrs = {
        "alpha": float(s.attrs.get("alpha", 1.0)),
        "beta": float(s.attrs.get("beta", 1.0)) if addend else 1.0,
        "transA": int(bool(s.attrs.get("transA", 0))),
        "transB": int(bool(s.attrs.get("transB", 0))),
    }
    return Core("Gemm", (0, 1, 2) if addend else (0, 1), attrs)


def _pads(s: Site, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> tuple[int, ...]:
    """Explicit padding: all begins, then all ends."""
    n, auto = len(kernel), s.attrs.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        pads = tuple(s.attrs.get("pads", (0,) * (2 * n)))
        if len(pads) != 2 * n or min(pads) < 0:
            raise NotCore(f"pads {pads}")
        return pads
    if s.attrs.get("ceil_mode", 0):
        raise NotCore("auto_pad together with ceil_mode")
    if auto == "VALID":
        return (0,) * (2 * n)
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise NotCore(f"auto_pad {auto}")
    if any(d != 1 for d in dilations):
        raise NotCore("auto_pad together with dilations")  # runtimes disagree
    begins, ends = [], []
    for extent, k, stride in zip(s.shape()[2:], kernel, strides, strict=True):
        if stride == 1:
            total = k - 1  # whatever the extent
        elif isinstance(extent, int):
            total = max((-(-extent // stride) - 1) * stride + k - extent, 0)
        else:
            raise NotCore("auto_pad over an extent that is not known")
        small, large = total // 2, total - total // 2
        begins.append(large if auto == "SAME_LOWER" else small)
        ends.append(small if auto == "SAME_LOWER" else large)
    return (*begins, *ends)


def _window(s: Site, kernel: Sequence[int]) -> dict[str, Any]:
    ones = (1,) * len(kernel)
    strides, dilations = tuple(s.attrs.get("strides", ones)), tuple(s.attrs.get("dilations", ones))
    if not kernel or len(s.shape()) != len(kernel) + 2 or {len(strides), len(dilations)} != {len(kernel)}:
        raise NotCore("window attributes of different lengths")
    if min(*kernel, *strides, *dilations) < 1:
        raise NotCore("window attributes below 1")
    return {"strides": strides, "dilations": dilations, "pads": _pads(s, kernel, strides, dilations)}


@converts("Conv", attrs="auto_pad dilations group kernel_shape pads strides")
def _conv(s: Site) -> Core:
    return conv_core(s)


def conv_core(s: Site) -> Core:
    """A convolution, whatever else the node does."""
    weight = s.known_shape(1)
    if len(weight) < 3 or tuple(s.attrs.get("kernel_shape", weight[2:])) != weight[2:]:
        raise NotCore("kernel_shape does not fit the weight")
    attrs = {**_window(s, weight[2:]), "group": int(s.attrs.get("group", 1))}
    return Core("Conv", (0, 1, 2) if s.has(2) else (0, 1), attrs)


@converts("BatchNormalization", attrs="epsilon momentum spatial training_mode", outputs=1)
def _batch_normalization(s: Site) -> Core:
    if s.attrs.get("training_mode", 0) or s.listed > 1 or not s.attrs.get("spatial", 1):
        raise NotCore("training mode, or statistics of single positions")
    return Core("BatchNormalization", (0, 1, 2, 3, 4), {"epsilon": float(s.attrs.get("epsilon", _EPSILON))})


@converts("MaxPool", attrs="auto_pad ceil_mode dilations kernel_shape pads storage_order strides")
def _max_pool(s: Site) -> Core:
    kernel = tuple(s.attrs["kernel_shape"])
    return Core("MaxPool", (0,), {"kernel": kernel, **_window(s, kernel), "ceil": int(s.attrs.get("ceil_mode", 0))})


@converts("AveragePool", attrs="auto_pad ceil_mode count_include_pad dilations kernel_shape pads strides")
def _average_pool(s: Site) -> Core:
    kernel = tuple(s.attrs["kernel_shape"])
    attrs = {"kernel": kernel, **_window(s, kernel), "ceil": int(s.attrs.get("ceil_mode", 0))}
    return Core("AveragePool", (0,), {**attrs, "include_pad": int(bool(s.attrs.get("count_include_pad", 0)))})


@converts("Softmax", attrs="axis")
def _softmax(s: Site) -> Core:
    rank = len(s.shape())
    if s.opset >= 13:
        return Core("Softmax", (0,), {"axis": s.axis(s.attrs.get("axis", -1), rank)})
    # Up to opset 12 the operand is coerced to a matrix [before axis, from axis on]: the softmax of one axis only
    # where all others from there on have extent 1.
    axis = s.axis(s.attrs.get("axis", 1), rank)
    wide = [i for i in range(axis, rank) if s.shape()[i] != 1]
    if len(wide) > 1:
        raise NotCore("a softmax over several axes")
    return Core("Softmax", (0,), {"axis": wide[0] if wide else axis})


@converts("LayerNormalization", attrs="axis epsilon stash_type")
def _layer_normalization(s: Site) -> Core:
    if s.attrs.get("stash_type", 1) != 1:
        raise NotCore("stash_type other than float")
    axis = s.axis(s.attrs.get("axis", -1), len(s.shape()))
    attrs = {"axis": axis, "epsilon": float(s.attrs.get("epsilon", _EPSILON))}
    return Core("LayerNormalization", (0, 1, 2) if s.has(2) else (0, 1), attrs)


@converts("RMSNormalization", attrs="axis epsilon stash_type")
def _rms_normalization(s: Site) -> Core:
    if s.attrs.get("stash_type", 1) != 1:
        raise NotCore("stash_type other than float")
    axis = s.axis(s.attrs.get("axis", -1), len(s.shape()))
    return Core("RMSNormalization", (0, 1), {"axis": axis, "epsilon": float(s.attrs.get("epsilon", _EPSILON))})


@converts(*REDUCTIONS, attrs="axes keepdims noop_with_empty_axes")
def _reduce(s: Site) -> Core:
    rank, axes = len(s.shape()), s.axes(since=13 if s.op == "ReduceSum" else 18)
    if axes is None and not s.attrs.get("noop_with_empty_axes", 0):
        axes = tuple(range(rank))
    if not axes:
        raise NotCore("no axes")
    resolved = tuple(sorted({s.axis(a, rank) for a in axes}))
    return Core(s.op, (0,), {"axes": resolved, "keepdims": int(bool(s.attrs.get("keepdims", 1)))})


@converts("Concat", attrs="axis")
def _concat(s: Site) -> Core:
    return Core("Concat", tuple(range(len(s.types))), {"axis": s.axis(s.attrs["axis"], len(s.shape()))})


@converts("Split", attrs="axis num_outputs split", outputs=1 << 30)
def _split(s: Site) -> Core:
    axis = s.axis(s.attrs.get("axis", 0), len(s.shape()))
    sizes = s.values(1) if s.opset >= 13 else s.attrs.get("split")
    if sizes is None:
        extent, parts = s.shape()[axis], s.listed
        if not isinstance(extent, int):
            raise NotCore("Split of an extent that is not known")
        if s.opset >= 18 and s.attrs.get("num_outputs") != parts:
            raise NotCore("num_outputs does not fit")
        part = -(-extent // parts)
        sizes = (*(part,) * (parts - 1), extent - part * (parts - 1))
        if s.opset < 18 and extent % parts:
            raise NotCore("Split into unequal parts")
    if len(sizes) != s.listed:
        raise NotCore("Split with more or fewer outputs than sizes")
    return Core("Split", (0,), {"axis": axis, "sizes": tuple(sizes)})


@converts("Slice", attrs="axes ends starts")
def _slice(s: Site) -> Core:
    if s.opset < 10:
        starts, ends, axes, steps = s.attrs["starts"], s.attrs["ends"], s.attrs.get("axes"), None
    else:
        starts, ends, axes, steps = s.values(1), s.values(2), s.values(3), s.values(4)
    if starts is None or ends is None or any(step != 1 for step in steps or ()):
        raise NotCore("a step other than 1")
    shape = s.shape()
    axes = [s.axis(a, len(shape)) for a in (range(len(starts)) if axes is None else axes)]
    if not len(axes) == len(starts) == len(ends) or len(set(axes)) != len(axes):
        raise NotCore("bounds and axes do not fit together")
    bounds = []
    for axis, start, end in sorted(zip(axes, starts, ends, strict=True)):
        extent = shape[axis]
        if not isinstance(extent, int):
            raise NotCore("Slice of an extent that is not known")
        first, last, _ = slice(start, end, 1).indices(extent)
        bounds.append((axis, first, max(first, last)))
    ordered = {"axes": [b[0] for b in bounds], "starts": [b[1] for b in bounds], "ends": [b[2] for b in bounds]}
    return Core("Slice", (0,), ordered)


@converts("Transpose", attrs="perm")
def _transpose(s: Site) -> Core:
    rank = len(s.shape())
    return Core("Transpose", (0,), {"perm": tuple(s.attrs.get("perm", range(rank - 1, -1, -1)))})


def _reshaped(s: Site, shape: Sequence[Dimension]) -> Core:
    if 0 in s.shape() or 0 in shape:
        raise NotCore("an empty tensor")  # a 0 in the shape would mean "as before" in older opsets
    told = {d.name for d in s.shape() if isinstance(d, Polynomial)} | s.given
    if reshape_target(s.shape(), shape) is None and not told.issuperset(symbols_of(shape)):
        raise NotCore(f"more than one extent of {tuple(shape)} is neither known nor the operand's own")
    return Core("Reshape", (0,), {"shape": tuple(shape)})


def reshape_target(before: Sequence[Dimension], after: Sequence[Dimension]) -> list[int] | None:
    """What ONNX's Reshape is to be told: 0 for an extent that stays in its place, -1 for one other, else numbers."""
    target = [
        d if isinstance(d, int) else (0 if i < len(before) and before[i] is d else -1) for i, d in enumerate(after)
    ]
    return target if target.count(-1) <= 1 else None


@converts("Reshape", attrs="allowzero")
def _reshape(s: Site) -> Core:
    before = s.shape()
    wanted = s.extents(1)
    if wanted is None:
        # A shape that the model computes is as good as constant where ONNX could follow the computation.
        if s.result is None or s.result.shape is None:
            raise NotCore("the shape is computed from what is not known")
        return _reshaped(s, s.result.shape)
    if 0 in wanted and s.attrs.get("allowzero", 0):
        raise NotCore("an empty tensor")
    copied_from_nowhere = any(d == 0 and i >= len(before) for i, d in enumerate(wanted))
    if copied_from_nowhere or wanted.count(-1) > 1 or any(isinstance(d, int) and d < -1 for d in wanted):
        raise NotCore(f"shape {wanted}")
    shape = [before[i] if d == 0 else d for i, d in enumerate(wanted)]
    if -1 in shape:
        rest = divided(prod(before), -prod(shape))
        if rest is None:
            raise NotCore(f"shape {wanted} for a tensor of shape {before}")
        shape[shape.index(-1)] = rest
    return _reshaped(s, shape)


@converts("Flatten", attrs="axis")
def _flatten(s: Site) -> Core:
    shape = s.shape()
    axis = s.attrs.get("axis", 1)
    if not -len(shape) <= axis <= len(shape):
        raise NotCore(f"axis {axis}")
    axis = axis + len(shape) if axis < 0 else axis
    return _reshaped(s, (prod(shape[:axis]), prod(shape[axis:])))


@converts("Squeeze", attrs="axes")
def _squeeze(s: Site) -> Core:
    shape, axes = s.shape() if s.axes(since=13) is not None else s.known_shape(), s.axes(since=13)
    gone = {s.axis(a, len(shape)) for a in axes} if axes is not None else {i for i, d in enumerate(shape) if d == 1}
    if any(shape[a] != 1 for a in gone):
        raise NotCore("Squeeze of an extent other than 1")
    return _reshaped(s, [d for i, d in enumerate(shape) if i not in gone])


@converts("Unsqueeze", attrs="axes")
def _unsqueeze(s: Site) -> Core:
    shape, axes = list(s.shape()), s.axes(since=13)
    if axes is None:
        raise NotCore("no axes")
    rank = len(shape) + len(axes)
    made = sorted(s.axis(a, rank) for a in axes)
    if len(set(made)) != len(made):
        raise NotCore("an axis given twice")
    for a in made:
        shape.insert(a, 1)
    return _reshaped(s, shape)


def convert(site: Site) -> Core:
    """The node's core form. Raises `NotCore`, or `KeyError` for an attribute that ONNX demands and that is missing."""
    converter = CONVERTERS.get(site.op)
    if converter is None:
        raise NotCore("not a core operator")
    return converter(site)
