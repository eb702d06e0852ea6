"""Extents as data: the integer arithmetic by which models compute shapes, on symbolic dimensions.

Exporters write a reshape to `[batch, -1, 12, 64]` as Shape, Gather, Unsqueeze, Concat, Reshape. Following the values
of such small integer tensors, as object arrays of `Dimension`, turns the chain into one Reshape with a known target,
and gives the results of Expand, Range or Slice their types. Nothing here is a guess: what is not certain for every
binding is None.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..egraph.dimension import Dimension, Polynomial, caps, dimension, divided, least, natural, sign
from ..egraph.graph import SMALL, TensorType
from ..egraph.operators import IllTyped, broadcast

Extents = np.ndarray
"""An object array whose elements are `Dimension` or bool."""

BROADCASTING = frozenset((
    "Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Sum", "Mean", "Where", "Equal", "Less", "Greater",
    "LessOrEqual", "GreaterOrEqual", "And", "Or", "Xor", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor",
))  # fmt: skip
"""Element-wise operators of several operands."""

UNARY = frozenset((
    "Cast", "CastLike", "Not", "IsNaN", "IsInf", "Clip", "Gelu", "Elu", "Selu", "Celu", "LeakyRelu", "PRelu",
    "Softsign", "Softplus", "HardSigmoid", "HardSwish", "Mish", "Sign", "Reciprocal", "Log", "Ceil", "Floor", "Round",
    "Cos", "Sin", "Tan", "Acos", "Asin", "Atan", "Cosh", "Sinh", "Acosh", "Asinh", "Atanh", "BitwiseNot", "CumSum",
    "LogSoftmax", "Hardmax", "ThresholdedRelu", "Shrink", "InstanceNormalization", "LpNormalization", "LRN", "Trilu",
))  # fmt: skip
"""Operators whose result has the shape of the first operand."""

_FAR = 1 << 31
"""Slices that end here or later end where the tensor ends."""


class Unknown(Exception):
    """The result is not known for every binding."""


def as_extents(array: np.ndarray) -> Extents | None:
    """A small integer or boolean array as extents."""
    if array.dtype.kind not in "iub" or array.size > SMALL:
        return None
    out = np.empty(array.shape, object)
    out[...] = array.astype(object)
    return out


def as_array(extents: Extents, dtype: str) -> np.ndarray | None:
    """The plain array, if no symbol is in it."""
    values = extents.reshape(-1).tolist()
    if any(isinstance(v, Polynomial) for v in values):
        return None
    return np.array(values, np.dtype(dtype)).reshape(extents.shape)


def follow(op: str, operands: Operands) -> Extents | None:
    """The operator's result on these operands, or None where it is large, no integer, or depends on more than them."""
    rule = _RULES.get(op)
    if rule is None:
        return None
    try:
        result = np.asarray(rule(operands), dtype=object)
    except (Unknown, ValueError, IndexError, KeyError, TypeError):
        return None
    return result if result.size <= SMALL else None


def result_shape(op: str, operands: Operands) -> tuple[Dimension, ...] | None:
    """Shape of the result of an operator whose extents depend on its operands' values, or None."""
    try:
        if op in BROADCASTING:
            shape: tuple[Dimension, ...] = ()
            for k in range(len(operands.types)):
                shape = broadcast(shape, operands.shape(k))
            return shape
        if op in UNARY:
            return operands.shape(0)
        rule = _SHAPES.get(op)
        found = None if rule is None else rule(operands)
        # Negative extents are those of a damaged model, in which the operator cannot run.
        return None if found is None or any(isinstance(d, int) and d < 0 for d in found) else found
    except (Unknown, IllTyped, ValueError, IndexError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class Operands:
    """What is known of a node when it is read.

    attrs: its attributes. held: what each operand holds, where it is a small tensor of extents. types: the operands'
    types, None for one that is not given. facts: dimensions that are not negative in any run, because some value of the
    model has them.
    """

    attrs: dict[str, Any]
    opset: int
    held: Sequence[Extents | None]
    types: Sequence[TensorType | None]
    facts: Collection[Polynomial] = ()

    def natural(self, d: Dimension) -> bool:
        """Whether `d` is 0 or more wherever the model runs."""
        return natural(d) or any(natural(d - fact) for fact in self.facts)

    def least(self, a: Dimension, b: Dimension) -> Dimension:
        if self.natural(a - b) or any(b == least(a, c) for c in caps(b)):
            return b
        if self.natural(b - a) or any(a == least(b, c) for c in caps(a)):
            return a
        if isinstance(b, int):
            return least(a, b)
        if isinstance(a, int):
            return least(b, a)
        raise Unknown

    def greatest(self, a: Dimension, b: Dimension) -> Dimension:
        return a + b - self.least(a, b)

    def value(self, k: int) -> Extents:
        found = self.held[k] if k < len(self.held) else None
        if found is None:
            raise Unknown
        return found

    def given(self, k: int) -> bool:
        return k < len(self.types) and self.types[k] is not None

    def shape(self, k: int) -> tuple[Dimension, ...]:
        kind = self.types[k] if k < len(self.types) else None
        if kind is None or kind.shape is None:
            raise Unknown
        return kind.shape

    def ints(self, k: int) -> np.ndarray:
        found = as_array(self.value(k), "int64")
        if found is None:
            raise Unknown
        return found

    def axes(self, since: int) -> tuple[int, ...] | None:
        if self.opset < since:
            found = self.attrs.get("axes")
            return None if found is None else tuple(found)
        return tuple(self.ints(1).reshape(-1).tolist()) if self.given(1) else None


def _shape(s: Operands) -> Extents:
    return _row(s.shape(0)[s.attrs.get("start") : s.attrs.get("end")])


def _row(dims: Sequence[Dimension]) -> Extents:
    out = np.empty(len(dims), object)
    out[:] = dims
    return out


def _gather(s: Operands) -> Extents:
    return np.asarray(np.take(s.value(0), s.ints(1), axis=s.attrs.get("axis", 0)), dtype=object)


def _unsqueeze(s: Operands) -> Extents:
    return np.expand_dims(s.value(0), s.axes(13) or ())


def _squeeze(s: Operands) -> Extents:
    axes = s.axes(13)
    return np.squeeze(s.value(0), axes)


def _slice(s: Operands) -> Extents:
    x = s.value(0)
    if s.opset < 10:
        starts, ends = s.attrs["starts"], s.attrs["ends"]
        axes, steps = s.attrs.get("axes"), None
    else:
        starts, ends = s.ints(1).tolist(), s.ints(2).tolist()
        axes = s.ints(3).tolist() if s.given(3) else None
        steps = s.ints(4).tolist() if s.given(4) else None
    index: list[Any] = [slice(None)] * x.ndim
    for k, axis in enumerate(axes if axes is not None else range(len(starts))):
        if steps is not None and steps[k] < 0 and starts[k] < -x.shape[axis]:
            raise Unknown  # numpy has it start before the first element, ONNX at it
        index[axis] = slice(starts[k], ends[k], steps[k] if steps is not None else 1)
    return np.asarray(x[tuple(index)], dtype=object)


def _cast(s: Operands) -> Extents:
    x, to = s.value(0), s.attrs.get("to")
    if to == 9:  # bool
        return _row([_truth(s, v) for v in x.reshape(-1)]).reshape(x.shape)
    if to not in (6, 7):  # int32, int64
        raise Unknown
    return _row([v if isinstance(v, Polynomial) else int(v) for v in x.reshape(-1)]).reshape(x.shape)


def _truth(s: Operands, v: Dimension) -> bool:
    if isinstance(v, Polynomial) and not s.natural(v - 1):
        raise Unknown
    return bool(isinstance(v, Polynomial) or v)


def _arithmetic(f: Callable[[Operands, Dimension, Dimension], Any]) -> Callable[[Operands], Extents]:
    def rule(s: Operands) -> Extents:
        a, b = np.broadcast_arrays(s.value(0), s.value(1))
        return _row([f(s, x, y) for x, y in zip(a.reshape(-1), b.reshape(-1), strict=True)]).reshape(a.shape)

    return rule


def _quotient(s: Operands, a: Dimension, b: Dimension) -> Dimension:
    exact = divided(a, b)
    if exact is not None:
        return exact
    if not isinstance(b, int) or b <= 0 or not s.natural(a):  # ONNX rounds towards zero
        raise Unknown
    return a // b


def _remainder(s: Operands, a: Dimension, b: Dimension) -> Dimension:
    if s.attrs.get("fmod", 0) or b == 0:
        raise Unknown
    if isinstance(a, int) and isinstance(b, int):
        return a % b  # both take the sign of the divisor
    if divided(a, b) is not None:
        return 0
    if not isinstance(b, int) or b < 0:
        raise Unknown
    return a - (a // b) * b


def _compared(holds: Callable[[int], bool]) -> Callable[[Operands, Dimension, Dimension], bool]:
    """A comparison by the sign of the difference."""

    def compare(s: Operands, a: Dimension, b: Dimension) -> bool:
        known = sign(a - b)
        if known is not None:
            return holds(known)
        if s.natural(a - b) and holds(0) == holds(1):
            return holds(1)
        if s.natural(b - a) and holds(0) == holds(-1):
            return holds(-1)
        if s.natural(a - b - 1):
            return holds(1)
        if s.natural(b - a - 1):
            return holds(-1)
        raise Unknown

    return compare


def _mapped(f: Callable[[Any], Any]) -> Callable[[Operands], Extents]:
    def rule(s: Operands) -> Extents:
        x = s.value(0)
        return _row([f(v) for v in x.reshape(-1)]).reshape(x.shape)

    return rule


def _where(s: Operands) -> Extents:
    c, a, b = np.broadcast_arrays(s.value(0), s.value(1), s.value(2))
    cells = zip(c.reshape(-1), a.reshape(-1), b.reshape(-1), strict=True)
    return _row([x if bool(z) else y for z, x, y in cells]).reshape(c.shape)


def _filled(s: Operands) -> Extents:
    fill = s.attrs.get("value")
    value = 0.0 if fill is None else np.asarray(fill).reshape(-1)[0]
    if not isinstance(value, np.integer):
        raise Unknown
    out = np.empty(tuple(s.ints(0).tolist()), object)
    out[...] = int(value)
    return out


def _range(s: Operands) -> Extents:
    start, limit, delta = (int(s.ints(k)) for k in range(3))
    return _row(list(range(start, limit, delta)[: SMALL + 1]))


def _reduced(f: Callable[[Any], Any], since: int) -> Callable[[Operands], Extents]:
    def rule(s: Operands) -> Extents:
        x, axes = s.value(0), s.axes(since)
        if x.ndim != 1 or axes not in (None, (0,), (-1,)):
            raise Unknown
        total = f(x.tolist())
        return _row([total]) if s.attrs.get("keepdims", 1) else np.array(total, object)

    return rule


def _size(s: Operands) -> Extents:
    return np.array(prod(s.shape(0)), object)


_RULES: dict[str, Callable[[Operands], Extents]] = {
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Concat": lambda s: np.concatenate([s.value(k) for k in range(len(s.held))], axis=s.attrs.get("axis", 0)),
    "Reshape": lambda s: s.value(0).reshape(tuple(s.ints(1).tolist())),
    "Slice": _slice,
    "Cast": _cast,
    "Identity": lambda s: s.value(0),
    "Add": _arithmetic(lambda s, a, b: a + b),
    "Sub": _arithmetic(lambda s, a, b: a - b),
    "Mul": _arithmetic(lambda s, a, b: a * b),
    "Div": _arithmetic(_quotient),
    "Mod": _arithmetic(_remainder),
    "Min": _arithmetic(lambda s, a, b: s.least(a, b)),
    "Max": _arithmetic(lambda s, a, b: s.greatest(a, b)),
    "Equal": _arithmetic(_compared(lambda sign: sign == 0)),
    "Less": _arithmetic(_compared(lambda sign: sign < 0)),
    "LessOrEqual": _arithmetic(_compared(lambda sign: sign <= 0)),
    "Greater": _arithmetic(_compared(lambda sign: sign > 0)),
    "GreaterOrEqual": _arithmetic(_compared(lambda sign: sign >= 0)),
    "And": _arithmetic(lambda s, a, b: bool(a) and bool(b)),
    "Or": _arithmetic(lambda s, a, b: bool(a) or bool(b)),
    "Not": _mapped(lambda v: not v),
    "Neg": _mapped(lambda v: -v),
    "Transpose": lambda s: np.transpose(s.value(0), s.attrs.get("perm")),
    "Where": _where,
    "ConstantOfShape": _filled,
    "Expand": lambda s: np.broadcast_to(s.value(0), tuple(s.ints(1).tolist())),
    "Range": _range,
    "ReduceProd": _reduced(prod, 18),
    "ReduceSum": _reduced(sum, 13),
}


def _expanded(s: Operands) -> tuple[Dimension, ...]:
    return broadcast(s.shape(0), [dimension(d) for d in s.value(1).reshape(-1)])


def _ranged(s: Operands) -> tuple[Dimension, ...]:
    start, limit, delta = (s.value(k).reshape(-1)[0] for k in range(3))
    if delta != 1 or not s.natural(limit - start):
        raise Unknown
    return (limit - start,)


def _sliced(s: Operands) -> tuple[Dimension, ...]:
    out = list(s.shape(0))
    starts, ends = s.value(1).reshape(-1), s.value(2).reshape(-1)
    axes = s.ints(3).tolist() if s.given(3) else range(len(starts))
    steps = s.ints(4).tolist() if s.given(4) else [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step != 1:
            raise Unknown
        extent = out[axis]
        first, last = _bound(s, start, extent), _bound(s, end, extent)
        # both lie between 0 and the extent, so only a slice that has both can be empty because they cross
        if not (_same(first, 0) or _same(last, extent) or s.natural(last - first)):
            raise Unknown
        out[axis] = last - first
    return tuple(out)


def _same(a: Dimension, b: Dimension) -> bool:
    return a is b or (isinstance(a, int) and a == b)


def _bound(s: Operands, at: Dimension, extent: Dimension) -> Dimension:
    """Where a slice begins or ends, between 0 and the extent."""
    if isinstance(at, int):
        if at >= _FAR:
            return extent
        if at < 0:
            return extent - s.least(extent, -at) if at > -_FAR else 0
    if not s.natural(at):
        raise Unknown
    return s.least(at, extent)


def _padded(s: Operands) -> tuple[Dimension, ...]:
    shape = s.shape(0)
    if s.opset < 11:
        pads = list(s.attrs["pads"])
    else:
        pads = [dimension(d) for d in s.value(1).reshape(-1)]
    axes = s.ints(3).reshape(-1).tolist() if s.given(3) else list(range(len(shape)))
    if len(pads) != 2 * len(axes):
        raise Unknown
    out = list(shape)
    for k, axis in enumerate(axes):
        out[axis] = out[axis] + pads[k] + pads[len(axes) + k]
    return tuple(out)


def _tiled(s: Operands) -> tuple[Dimension, ...]:
    repeats = [dimension(d) for d in s.value(1).reshape(-1)]
    return tuple(d * r for d, r in zip(s.shape(0), repeats, strict=True))


def _gathered(s: Operands) -> tuple[Dimension, ...]:
    shape, axis = s.shape(0), s.attrs.get("axis", 0)
    axis = axis + len(shape) if axis < 0 else axis
    return (*shape[:axis], *s.shape(1), *shape[axis + 1 :])


def _resized(s: Operands) -> tuple[Dimension, ...]:
    if s.opset < 13 or s.attrs.get("axes") or s.attrs.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        raise Unknown
    sizes = [dimension(d) for d in s.value(3).reshape(-1)]
    if len(sizes) != len(s.shape(0)):
        raise Unknown
    return tuple(sizes)


_SHAPES: dict[str, Callable[[Operands], tuple[Dimension, ...]]] = {
    "Expand": _expanded,
    "ConstantOfShape": lambda s: tuple(dimension(d) for d in s.value(0).reshape(-1)),
    "Range": _ranged,
    "Slice": _sliced,
    "Pad": _padded,
    "Tile": _tiled,
    "Resize": _resized,
    "Gather": _gathered,
    "GatherElements": lambda s: s.shape(1),
}

FOLLOWED = frozenset(_RULES)
"""Operators whose results `follow` may know."""

SHAPED = BROADCASTING | UNARY | frozenset(_SHAPES)
"""Operators whose results' shapes `result_shape` may know."""
