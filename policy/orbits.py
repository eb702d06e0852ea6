"""Which sites of a search space look alike: Weisfeiler-Leman colours of its e-classes, and cycles among them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..egraph.space import SearchSpace

ROUNDS = 3
"""How far colours look. More would tell the first and the last of equal layers from the others."""


def colours(space: SearchSpace, rounds: int = ROUNDS) -> tuple[list[int], list[int]]:
    """Colours of classes and of e-nodes: equal ones have isomorphic neighbourhoods of radius `rounds`.

    One-dimensional Weisfeiler-Leman refinement over classes and e-nodes in both directions (Shervashidze et al.,
    JMLR 2011). Which weight a constant holds is not looked at, only its type. Colours are numbered by first appearance.
    """
    kids, const = space.child_lists, space.const.tolist()
    roots = set(space.roots.tolist())
    klass = _numbered([(const[c], t, c in roots) for c, t in enumerate(space.types)])
    plain = [
        () if const[c] else (op, attrs)
        for op, attrs, c in zip(space.ops, space.attributes, space.node_class.tolist(), strict=True)
    ]
    label = _numbered(plain)
    node = label
    readers: list[list[tuple[int, int]]] = [[] for _ in range(space.n_classes)]  # (e-node, operand position)
    for i, found in enumerate(kids):
        for position, c in enumerate(found):
            readers[c].append((i, position))
    for _ in range(rounds):
        node = _numbered(
            [(label[i], klass[space.node_class[i]], *(klass[k] for k in kids[i])) for i in range(len(label))]
        )
        klass = _numbered(
            [
                (
                    klass[c],
                    () if const[c] else tuple(sorted(node[i] for i in space.nodes_of(c))),
                    tuple(sorted((node[i], p) for i, p in readers[c])) if not const[c] else (),
                )
                for c in range(space.n_classes)
            ]
        )
    node = _numbered([(node[i], klass[space.node_class[i]]) for i in range(len(label))])
    return klass, node


def _numbered(keys: Sequence[Hashable]) -> list[int]:
    seen: dict[Hashable, int] = {}
    return [seen.setdefault(k, len(seen)) for k in keys]


def orbits(space: SearchSpace, candidates: Sequence[int]) -> list[list[int]]:
    """Sets of at least two of the candidate e-nodes with equal colours, one e-node a class, in order of the first."""
    _, node = colours(space)
    found: dict[int, list[int]] = {}
    last: dict[int, int] = {}
    for i in candidates:
        c = int(space.node_class[i])
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
