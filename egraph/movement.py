"""Type rules of the operators that only move elements."""

from __future__ import annotations

from math import prod
from typing import Any

from .dimension import Dimension
from .graph import TensorType, TupleType, Type
from .registry import IllTyped, axis_of, broadcast, same_dtype, shape_of, typed


@typed("Concat")
def _concat(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    first = shape_of(xs[0])
    axis = axis_of(attrs["axis"], len(first), "Concat")
    total: Dimension = 0
    for t in xs:
        shape = shape_of(t)
        if len(shape) != len(first) or any(
            a != b for i, (a, b) in enumerate(zip(shape, first, strict=True)) if i != axis
        ):
            raise IllTyped(f"Concat along {axis} of {', '.join(map(str, xs))}")
        total = total + shape[axis]
    return TensorType((*first[:axis], total, *first[axis + 1 :]), same_dtype("Concat", *xs))


@typed("Split")
def _split(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    x, sizes = shape_of(xs[0]), attrs["sizes"]
    axis = axis_of(attrs["axis"], len(x), "Split")
    if sum(sizes) != x[axis] or min(sizes) < 0:
        raise IllTyped(f"Split of {xs[0]} along {axis} into {sizes}")
    return TupleType(tuple(TensorType((*x[:axis], s, *x[axis + 1 :]), xs[0].dtype) for s in sizes))


@typed("Slice")
def _slice(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    out = list(shape_of(xs[0]))
    for axis, start, end in zip(attrs["axes"], attrs["starts"], attrs["ends"], strict=True):
        extent = out[axis_of(axis, len(out), "Slice")]
        if not isinstance(extent, int) or not 0 <= start <= end <= extent:
            raise IllTyped(f"Slice {start}:{end} along axis {axis} of {xs[0]}")
        out[axis] = end - start
    return TensorType(tuple(out), xs[0].dtype)


@typed("Transpose")
def _transpose(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    x, perm = shape_of(xs[0]), attrs["perm"]
    if sorted(perm) != list(range(len(x))):
        raise IllTyped(f"Transpose of {xs[0]} by {perm}")
    return TensorType(tuple(x[p] for p in perm), xs[0].dtype)


@typed("Reshape")
def _reshape(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    shape = tuple(attrs["shape"])
    if prod(shape_of(xs[0])) != prod(shape):
        raise IllTyped(f"Reshape of {xs[0]} to {shape}")
    return TensorType(shape, xs[0].dtype)


@typed("Expand")
def _expand(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    x, shape = shape_of(xs[0]), tuple(attrs["shape"])
    if len(shape) < len(x) or broadcast(x, shape) != shape:
        raise IllTyped(f"Expand of {xs[0]} to {shape}")
    return TensorType(shape, xs[0].dtype)


@typed("Pad")
def _pad(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    x, pads = shape_of(xs[0]), attrs["pads"]
    if len(pads) != 2 * len(x) or min(pads, default=0) < 0:
        raise IllTyped(f"Pad of {xs[0]} by {pads}")
    extents = (d + (pads[i] + pads[len(x) + i]) for i, d in enumerate(x))
    return TensorType(tuple(extents), xs[0].dtype)


@typed("Gather")
def _gather(attrs: dict[str, Any], xs: list[TensorType]) -> Type:
    x, indices = shape_of(xs[0]), shape_of(xs[1])
    axis = axis_of(attrs["axis"], len(x), "Gather")
    if xs[1].dtype not in ("int64", "int32"):
        raise IllTyped(f"Gather with indices of type {xs[1].dtype}")
    return TensorType((*x[:axis], *indices, *x[axis + 1 :]), xs[0].dtype)
