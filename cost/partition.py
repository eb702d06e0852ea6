"""TVM's `FuseOps` on a graph of primitive functions: which of them become one kernel.

The algorithm is that of TVM's graph partitioner: every function is fused into its immediate post-dominator, if the
patterns on all paths between allow it; products first, so that element-wise functions follow them, then what only moves
elements. Source: apache/tvm, src/relax/transform/fuse_ops.cc and src/relax/analysis/graph_partitioner.cc; Chen et al.:
TVM, an automated end-to-end optimizing compiler for deep learning (OSDI 2018), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .patterns import Kind

NOBODY = -1
MOST = 256
"""Functions of one kernel at most."""


def barrier(kind: int) -> bool:
    """Whether functions of this kind take nothing in from before them, so that no kernel reaches across."""
    return kind in (Kind.FUSABLE, Kind.OPAQUE)


def partition(kinds: Sequence[int], readers: Sequence[Sequence[int]], sealed: Sequence[bool]) -> list[int]:
    """For each function the number of its kernel: that of the function that gives the kernel's result.

    kinds: pattern kinds, in an order in which the functions can run. readers: the functions that read each one.
    sealed: functions whose result is also needed outside, which therefore end a kernel.
    """
    n = len(kinds)
    parent, depth, path = [NOBODY] * n, [1] * n, [int(Kind.OPAQUE)] * n
    for i in range(n - 1, -1, -1):
        if not sealed[i] and readers[i]:
            parent[i], path[i] = _dominator(readers[i], kinds, parent, depth, path)
            depth[i] = depth[parent[i]] + 1 if parent[i] >= 0 else 1
    groups = _Groups(kinds, readers)
    for phase in (0, 1):
        for i in range(n):
            sink = parent[i]
            if sink < 0 or groups.kind[i] == Kind.OPAQUE or groups.find(i) == groups.find(sink):
                continue
            if groups.size[groups.find(i)] + groups.size[groups.find(sink)] > MOST:
                continue
            if groups.kind[i] == Kind.FUSABLE:
                if phase == 0 and path[i] == Kind.ELEMENTWISE and groups.clear(i, sink, _simple):
                    groups.fuse(i, sink)
            elif groups.kind[i] <= Kind.BROADCAST:
                if path[i] <= Kind.REDUCTION and groups.clear(i, sink, _pointwise):
                    groups.fuse(i, sink)
            elif groups.kind[i] == Kind.INJECTIVE and phase == 1 and groups.clear(i, sink, _injective):
                groups.fuse(i, sink)
    return [groups.find(i) for i in range(n)]


def _dominator(
    readers: Sequence[int], kinds: Sequence[int], parent: list[int], depth: list[int], path: list[int]
) -> tuple[int, int]:
    """The immediate post-dominator of a function with these readers, NOBODY if there is none, and the largest kind on
    the way to it. An edge has the kind of the function that reads."""
    found, worst = readers[0], kinds[readers[0]]
    for other in readers[1:]:
        worst = max(worst, kinds[other])
        a, b = found, other
        while a != b:
            if a < 0 or b < 0:
                return NOBODY, worst
            if depth[a] < depth[b]:
                worst, b = max(worst, path[b]), parent[b]
            elif depth[b] < depth[a]:
                worst, a = max(worst, path[a]), parent[a]
            else:
                worst, a, b = max(worst, path[a], path[b]), parent[a], parent[b]
        found = a
    return found, worst


def _simple(kind: int, last: bool) -> bool:
    return kind <= Kind.BROADCAST


def _pointwise(kind: int, last: bool) -> bool:
    # the last one may have been fused into a product already
    return kind <= Kind.INJECTIVE or (last and kind in (Kind.REDUCTION, Kind.FUSABLE))


def _injective(kind: int, last: bool) -> bool:
    return kind <= Kind.INJECTIVE


class _Groups:
    """Disjoint sets of functions, each with the kind that counts when others are to join it."""

    def __init__(self, kinds: Sequence[int], readers: Sequence[Sequence[int]]) -> None:
        self.kind = list(map(int, kinds))
        self.anchored = [k == Kind.FUSABLE for k in kinds]
        self.size = [1] * len(kinds)
        self.root = list(range(len(kinds)))
        self.readers = readers

    def find(self, i: int) -> int:
        while self.root[i] != i:
            self.root[i] = self.root[self.root[i]]
            i = self.root[i]
        return i

    def between(self, source: int, sink: int) -> list[int]:
        """What lies on paths from `source` to `sink`, without the two."""
        seen, stack = {source, sink}, list(self.readers[source])
        found = []
        while stack:
            i = stack.pop()
            if i not in seen:
                seen.add(i)
                found.append(i)
                stack.extend(self.readers[i])
        return found

    def clear(self, source: int, sink: int, allowed: Callable[[int, bool], bool]) -> bool:
        """Whether the kinds of all groups on the way, the sink's included, are allowed."""
        return allowed(self.kind[self.find(sink)], True) and all(
            allowed(self.kind[self.find(i)], False) for i in self.between(source, sink)
        )

    def fuse(self, source: int, sink: int) -> None:
        """Put `source`, and all on its way to `sink`, into the sink's group."""
        for i in (source, *self.between(source, sink)):
            child, target = self.find(i), self.find(sink)
            if child == target:
                continue
            self.root[child] = target
            self.size[target] += self.size[child]
            if self.anchored[child]:
                self.anchored[target] = True
                self.kind[target] = max(self.kind[target], self.kind[child])
