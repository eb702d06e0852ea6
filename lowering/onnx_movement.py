"""ONNX operators that only move elements, in core form."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ..egraph.dimension import Dimension, Polynomial, divided, symbols_of
from ..egraph.operators import IllTyped, broadcast
from .onnx_sites import Core, NotCore, Site, converts, number


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
    value = float(s.attrs.get("value", 0.0)) if s.opset < 11 else number(s, 2, 0.0)
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
