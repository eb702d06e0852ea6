"""How reshapes and permutations map axes: what rules that move them need to reckon.

Every answer holds for all bindings of symbolic extents: extents count as equal only where they are the same
expression, and as 1 only where they are known to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from ..extent import Extent

Block: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]


def one(extent: Any) -> bool:
    """Whether an extent is 1 for every binding. Unlike `extent == 1`, which an undecided extent makes a refusal."""
    return isinstance(extent, int) and extent == 1


def same(a: Any, b: Any) -> bool:
    """Whether two extents are the same for every binding."""
    if isinstance(a, Extent) and isinstance(b, Extent):
        return a.of == b.of
    return isinstance(a, int) and isinstance(b, int) and a == b


def alike(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two shapes are the same for every binding."""
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


def product(extents: Sequence[Any]) -> Any:
    total: Any = 1
    for e in extents:
        total = total * e
    return total


def inverse(perm: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes `perm`."""
    return tuple(sorted(range(len(perm)), key=perm.__getitem__))


def padded(shape: Sequence[Any], rank: int) -> tuple[Any, ...]:
    """The shape with leading ones, as broadcasting to this rank sees it."""
    return (*[1] * (rank - len(shape)), *shape)


def stripped(shape: Sequence[Any]) -> tuple[Any, ...]:
    """The shape without leading ones, which broadcasting adds by itself."""
    start = next((i for i, e in enumerate(shape) if not one(e)), len(shape))
    return tuple(shape[start:])


def blocks(shape: Sequence[Any], target: Sequence[Any]) -> list[Block]:
    """Smallest runs of axes of `shape` that a reshape to `target` turns into runs of `target`'s axes, in order.

    Axes of extent 1 are in no run. For (2, 3, 20) to (6, 1, 4, 5): [((0, 1), (0,)), ((2,), (2, 3))].
    """
    xs = [i for i, e in enumerate(shape) if not one(e)]
    ys = [j for j, e in enumerate(target) if not one(e)]
    found: list[Block] = []
    i = j = 0
    while i < len(xs) and j < len(ys):
        # the first pair of ends with equal products closes a block
        ends = ((a, b) for a in range(i + 1, len(xs) + 1) for b in range(j + 1, len(ys) + 1))
        for a, b in ends:
            if same(product([shape[k] for k in xs[i:a]]), product([target[k] for k in ys[j:b]])):
                found.append((tuple(xs[i:a]), tuple(ys[j:b])))
                i, j = a, b
                break
        else:
            break
    if i < len(xs) or j < len(ys):  # what cannot be told apart is one block
        found.append((tuple(xs[i:]), tuple(ys[j:])))
    return found


def moved(shape: Sequence[Any], target: Sequence[Any], perm: Sequence[int]) -> tuple[int, ...] | None:
    """The permutation q for which Transpose(Reshape(x, target), perm) = Reshape(Transpose(x, q), …), if there is one.

    The axes of each block must stay together and in order.
    """
    order = [axis for axis in perm if not one(target[axis])]
    by_first = {ys[0]: (xs, ys) for xs, ys in blocks(shape, target) if ys}
    moves: list[int] = [i for i, e in enumerate(shape) if one(e)]  # wherever these go, no element moves
    at = 0
    while at < len(order):
        xs, ys = by_first.get(order[at], ((), ()))
        if not ys or tuple(order[at : at + len(ys)]) != ys:
            return None
        moves.extend(xs)
        at += len(ys)
    return tuple(moves) if len(moves) == len(shape) else None


def kept(shape: Sequence[Any], target: Sequence[Any], axis: int) -> int | None:
    """The axis of `shape` that a reshape to `target` leaves whole as `axis`, if it does."""
    for xs, ys in blocks(shape, target):
        if ys == (axis,) and len(xs) == 1 and same(shape[xs[0]], target[axis]):
            return xs[0]
    return None


def spread(operand: Sequence[Any], target: Sequence[Any], shape: Sequence[Any]) -> tuple[Any, ...] | None:
    """The shape that `operand`, broadcast against `target`, must have against `shape`, of which `target` is a reshape.

    It has no leading ones, so that there is one for each operand.

    None where it varies along a part of a block only, or is larger than `target`.
    """
    if len(operand) > len(target):
        return None
    full = padded(operand, len(target))
    found: list[Any] = [1] * len(shape)
    covered: set[int] = {j for j, e in enumerate(target) if one(e) and one(full[j])}
    for xs, ys in blocks(shape, target):
        if all(same(full[j], target[j]) for j in ys):
            for i in xs:
                found[i] = shape[i]
        elif not all(one(full[j]) for j in ys):
            return None
        covered.update(ys)
    return stripped(found) if len(covered) == len(target) else None


def parted(shape: Sequence[Any], axis: int, sizes: Sequence[int], index: int, target: Sequence[Any]) -> Any:
    """How to reshape before splitting: Reshape(Split(x, axis, sizes)[index], target) = Split(Reshape(x, s), k, n)[index].

    Returns (s, k, n), or None. The parts' axis must be the outermost of the run of axes that the reshape regroups.
    """
    part = [*shape[:axis], sizes[index], *shape[axis + 1 :]]
    xs, ys = next((b for b in blocks(part, target) if axis in b[0]), ((), ()))
    if not xs or xs[0] != axis or not ys or any(not isinstance(n, int) for n in sizes):
        return None
    rest, inner = product([part[i] for i in xs[1:]]), product([target[j] for j in ys[1:]])
    if not isinstance(rest, int) or not isinstance(inner, int) or any(n * rest % inner for n in sizes):
        return None
    n = tuple(size * rest // inner for size in sizes)
    return (*target[: ys[0]], sum(n), *target[ys[0] + 1 :]), ys[0], n
