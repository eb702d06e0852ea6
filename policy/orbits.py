"""Which sites of a search space look alike: Weisfeiler-Leman colours of its e-classes, and cycles among them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..egraph.space import SearchSpace

ROUNDS = 3
"""How far colours look. More would tell the first and the last of equal layers from the others."""


def colours(space: SearchSpace, rounds: int = ROUNDS) -> np.ndarray:
    """Colours of e-nodes, uint64[n]: equal ones have isomorphic neighbourhoods of radius `rounds`.

    One-dimensional Weisfeiler-Leman refinement over classes and e-nodes in both directions (Shervashidze et al.,
    JMLR 2011). Which weight a constant holds is not looked at, only its type. A multiset of colours is the sum of their
    hashes, 64 bits wide: two that differ agree by chance once in 10^19.
    """
    home, const, n = space.node_class, space.const, space.n_classes
    roots = np.zeros(n, bool)
    roots[space.roots] = True
    klass = _mixed(_numbered(list(zip(const.tolist(), space.types, roots.tolist(), strict=True))))
    label = _mixed(
        _numbered(
            [
                None if k else (op, attrs)
                for op, attrs, k in zip(space.ops, space.attributes, const[home].tolist(), strict=True)
            ]
        )
    )
    node = label
    reader = np.repeat(np.arange(space.n_nodes), np.diff(space.child_ptr))
    position = (np.arange(len(space.children)) - space.child_ptr[reader]).astype(np.uint64)
    for _ in range(rounds):
        node = _mixed(
            label + _mixed(klass[home], 1) + _sums(_mixed(klass[space.children] + position, 2), reader, len(label))
        )
        mine = _sums(_mixed(node, 3), home, n)
        read = _sums(_mixed(node[reader] + position, 4), space.children, n)
        klass = _mixed(klass + np.where(const, np.uint64(0), mine + _mixed(read, 5)))
    return _mixed(node + _mixed(klass[home], 1))


def _mixed(values: np.ndarray, salt: int = 0) -> np.ndarray:
    """A hash of each of these uint64 (Steele et al., SplitMix64, OOPSLA 2014)."""
    x = values + np.uint64((2 * salt + 1) * 0x9E3779B97F4A7C15 & (1 << 64) - 1)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _sums(values: np.ndarray, groups: np.ndarray, n: int) -> np.ndarray:
    """Sums of the uint64 in each of n groups."""
    found = np.zeros(n, np.uint64)
    np.add.at(found, groups, values)
    return found


def _numbered(keys: Sequence[Hashable]) -> np.ndarray:
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(k, len(seen)) for k in keys], np.uint64)


def orbits(space: SearchSpace, candidates: Sequence[int]) -> list[list[int]]:
    """Sets of at least two of the candidate e-nodes with equal colours, one e-node a class, in order of the first."""
    node, home = colours(space).tolist(), space.node_class.tolist()
    found: dict[int, list[int]] = {}
    last: dict[int, int] = {}
    for i in candidates:
        c = home[i]
        if last.get(node[i]) != c:  # of several alike in one class the first stands for all
            found.setdefault(node[i], []).append(i)
            last[node[i]] = c
    return [nodes for nodes in found.values() if len(nodes) > 1]


def components(n: int, below: Sequence[Sequence[int]]) -> list[int]:
    """Number of the strongly connected component of each vertex, -1 for one that lies on no cycle (Tarjan 1972)."""
    index, low, found = [0] * n, [0] * n, [-1] * n
    on_stack = bytearray(n)
    path: list[int] = []
    counter = parts = 0
    for root in range(n):
        if index[root]:
            continue
        work = [(root, 0)]
        while work:
            v, position = work.pop()
            if not position:
                counter += 1
                index[v] = low[v] = counter
                path.append(v)
                on_stack[v] = 1
            descend = False
            for p in range(position, len(below[v])):
                w = below[v][p]
                if not index[w]:
                    work += [(v, p + 1), (w, 0)]
                    descend = True
                    break
                if on_stack[w]:
                    low[v] = min(low[v], low[w])
            if descend:
                continue
            if low[v] == index[v]:
                members = []
                while True:
                    w = path.pop()
                    on_stack[w] = 0
                    members.append(w)
                    if w == v:
                        break
                if len(members) > 1:
                    for w in members:
                        found[w] = parts
                    parts += 1
            if work:
                parent = work[-1][0]
                low[parent] = min(low[parent], low[v])
    return found
