"""How slices, splits and concatenations cut an axis: what rules that move parts need to reckon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .axes import one


def offsets(extents: Sequence[int]) -> list[int]:
    """Where parts of these extents begin, and where the last one ends."""
    found = [0]
    for extent in extents:
        found.append(found[-1] + extent)
    return found


def nested(
    axes: Sequence[int],
    starts: Sequence[int],
    ends: Sequence[int],
    inner_axes: Sequence[int],
    inner_starts: Sequence[int],
    inner_ends: Sequence[int],
) -> dict[str, tuple[int, ...]]:
    """Attributes of the slice that is a slice of a slice."""
    found = {axis: (start, end) for axis, start, end in zip(axes, starts, ends, strict=True)}
    for axis, start, end in zip(inner_axes, inner_starts, inner_ends, strict=True):
        first = found.get(axis, (0, 0))[0]
        found[axis] = (first + start, first + end)
    order = sorted(found)
    return {
        "axes": tuple(order),
        "starts": tuple(found[a][0] for a in order),
        "ends": tuple(found[a][1] for a in order),
    }


def cut(extents: Sequence[int], start: int, end: int) -> list[tuple[int, int, int]]:
    """Which parts of these extents the places from `start` to `end` lie in: (part, start in it, end in it)."""
    begin = offsets(extents)
    return [
        (i, max(start - begin[i], 0), min(end - begin[i], extent))
        for i, extent in enumerate(extents)
        if begin[i] < end and start < begin[i + 1]
    ]


def seams(extents: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether an axis that consists of parts of these extents is split into `sizes` only where two parts meet."""
    return set(offsets(sizes)) <= set(offsets(extents))


def consecutive(values: Any, extent: Any) -> int | None:
    """The first of these indices into an axis, if each is by one larger than the one before."""
    if values is None or values.size == 0:
        return None
    found = [int(v) for v in values.reshape(-1)]
    if found[0] < 0:
        found = [v + extent for v in found]
    return found[0] if found == list(range(found[0], found[0] + len(found))) else None


def piece(
    shape: Sequence[Any], rank: int, axes: Sequence[int], starts: Sequence[int], ends: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    """What a slice of a result of this rank needs of an operand that is broadcast to it: attributes of a slice."""
    own = [j for j, axis in enumerate(axes) if axis >= rank - len(shape) and not one(shape[axis - rank + len(shape)])]
    return {
        "axes": tuple(axes[j] - rank + len(shape) for j in own),
        "starts": tuple(starts[j] for j in own),
        "ends": tuple(ends[j] for j in own),
    }


def without(axis: int, cut: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The slice `cut`, but for one axis that it leaves whole."""
    own = [j for j, a in enumerate(cut["axes"]) if a != axis]
    return {name: tuple(values[j] for j in own) for name, values in cut.items()}
