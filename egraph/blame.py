"""Which rules made two terms equal: asked when a class turns out to contradict itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from .terms import COMMUTATIVE, TermGraph

Firing = tuple[int | None, int, int]
"""A union: the rule's number (None for equal constants), the key it found, the key it made."""


def suspects(terms: TermGraph, firings: Iterable[Firing], pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Numbers of the rules by whose firings, and by congruence from them, each of these pairs of keys became equal.

    They are in the order in which the explanation, walked from the pairs down to operands, meets them.
    """
    links: dict[int, list[tuple[int, int | None]]] = {}
    for rule, old, new in firings:
        links.setdefault(old, []).append((new, rule))
        links.setdefault(new, []).append((old, rule))
    alike: dict[tuple[str, int, tuple[int, ...]], list[int]] = {}
    signature = []
    for key in range(len(terms)):
        signature.append((terms.ops[key], terms.attribute_ids[key], _kids(terms, key)))
        alike.setdefault(signature[key], []).append(key)
    found: dict[int, None] = {}
    waiting, asked = deque(pairs), set()
    while waiting:
        a, b = waiting.popleft()
        if a == b or (a, b) in asked:
            continue
        asked.add((a, b))
        for x, y, rule in _path(a, b, links, alike, signature):
            if rule is not None:
                found.setdefault(rule)
            elif signature[x] == signature[y]:  # equal because their operands are
                waiting.extend(zip(_sorted(terms, x), _sorted(terms, y), strict=True))
    return list(found)


def _sorted(terms: TermGraph, key: int) -> list[int]:
    kids = list(terms.operands[key])
    return sorted(kids, key=terms.find) if terms.ops[key] in COMMUTATIVE else kids


def _kids(terms: TermGraph, key: int) -> tuple[int, ...]:
    return tuple(map(terms.find, _sorted(terms, key)))


def _path(
    a: int,
    b: int,
    links: dict[int, list[tuple[int, int | None]]],
    alike: dict[tuple[str, int, tuple[int, ...]], list[int]],
    signature: list[tuple[str, int, tuple[int, ...]]],
) -> list[tuple[int, int, int | None]]:
    """Steps from a to b with as few firings as possible; empty if there are none."""
    came: dict[int, tuple[int, int | None] | None] = {a: None}
    cost, queue = {a: 0}, deque([a])
    while queue:
        x = queue.popleft()
        for y, rule in (*((k, None) for k in alike[signature[x]]), *links.get(x, ())):
            price = cost[x] + (rule is not None)
            if y not in cost or price < cost[y]:
                cost[y], came[y] = price, (x, rule)
                if rule is None:
                    queue.appendleft(y)
                else:
                    queue.append(y)
    steps: list[tuple[int, int, int | None]] = []
    while b in came and (step := came[b]) is not None:
        steps.append((step[0], b, step[1]))
        b = step[0]
    return steps
