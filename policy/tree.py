"""Tree extraction, as egg's default extractor does it: each class takes the e-node whose *tree* is cheapest.

A tree counts a shared operand once for each reader, so this extractor cannot see that a merged operator pays when all
its users switch, and its result may cost more than the original. That is the finding, so its own result is returned.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..egraph.space import IllegalSelection, Selection
from .base import Budget, Extraction, Meter, uncollected

if TYPE_CHECKING:
    from ..cost.base import Cost
    from ..egraph.space import SearchSpace

CAP = 1e300
"""Tree costs double with every residual connection; beyond this they are all the same."""


def tree_costs(
    space: SearchSpace, prices: Sequence[float], free: Sequence[bool] | None = None
) -> tuple[list[float], list[int]]:
    """Cheapest tree cost (ms) of each class and the e-node that has it (-1 and inf where there is no finite tree).

    Knuth's generalisation of Dijkstra's algorithm reaches the fixpoint of egg's bottom-up passes, and because classes
    are settled one after the other the choice is acyclic even where e-nodes cost nothing. Classes marked in `free`
    cost 0 and get no e-node. At equal cost the e-node with the lower number wins.
    """
    kids, klass = space.child_lists, space.node_class.tolist()
    cost, choice = [float("inf")] * space.n_classes, [-1] * space.n_classes
    settled = bytearray(space.n_classes)
    open_kids = [len(set(k)) for k in kids]
    readers = space.parents
    heap: list[tuple[float, int, int]] = []
    if free is not None:
        heap = [(0.0, -1, c) for c in range(space.n_classes) if free[c]]
    for i in range(space.n_nodes):
        if not open_kids[i] and prices[i] < CAP:
            heap.append((prices[i], i, klass[i]))
    heapq.heapify(heap)
    while heap:
        total, node, c = heapq.heappop(heap)
        if settled[c]:
            continue
        settled[c], cost[c], choice[c] = 1, total, node
        for i in readers[c]:
            open_kids[i] -= 1
            if not open_kids[i] and prices[i] < CAP and not settled[klass[i]]:
                heapq.heappush(heap, (min(CAP, prices[i] + sum(cost[k] for k in kids[i])), i, klass[i]))
    return cost, choice


def smallest_trees(space: SearchSpace) -> tuple[list[int], list[int]]:
    """For each class the e-node of its smallest tree (-1 where it has none), and the same with the original's e-nodes.

    The original's constants are closed among themselves and new ones read them, so the second serves for constants.
    """
    _, smallest = tree_costs(space, [1.0] * space.n_nodes)
    fixed = [i if i >= 0 else j for i, j in zip(space.original.choice.tolist(), smallest, strict=True)]
    return smallest, fixed


def finite_prices(space: SearchSpace, prices: np.ndarray) -> list[float]:
    """Prices (ms) where e-nodes that the original uses although they cannot run (inf) cost a thousand times the
    dearest other one, so that the original stays a solution and leaving them pays."""
    out = prices.astype(float)
    bound = 1e3 * float(out[np.isfinite(out)].max(initial=1.0))
    mine = space.original.choice[space.original.choice >= 0]
    out[mine] = np.minimum(out[mine], bound)
    return [float(p) for p in out]


class Tree:
    """egg's extractor. If the result holds more weight bytes than allowed, classes are switched back to the original's
    e-node, the ones nearest to the inputs first, until it is legal; `extras["repaired"]` counts them."""

    name = "tree"

    def extract(self, space: SearchSpace, cost: Cost, budget: Budget, rng: np.random.Generator) -> Extraction:
        meter = Meter(budget)
        with uncollected():
            _, choice = tree_costs(space, finite_prices(space, cost.prices))
        meter.evaluations = 1
        selection, repairs = repaired(space, cost, choice)
        total = cost.total(selection)
        meter.improved(total)
        return Extraction(selection, total, meter.trace, "fixpoint", self.name, {"repaired": repairs})


def repaired(space: SearchSpace, cost: Cost, choice: list[int]) -> tuple[Selection, int]:
    """The program that `choice` makes, with as many classes as in the original as it takes to be legal; how many."""
    selection, repairs = space.selection(choice), 0
    while not cost.legal(selection):
        choice = _repair(space, choice)
        selection = space.selection(choice)
        repairs += 1
    return selection, repairs


def _repair(space: SearchSpace, choice: list[int]) -> list[int]:
    """`choice` with one more class, and all that it needs, as in the original.

    The class is the first in topological order that brings in constants which the original does not hold and that the
    original needs too; classes which the original does not know go when their readers are switched back.
    """
    original = space.original.choice.tolist()
    order = space.topological(choice)
    held = {k for c in order if not space.const[c] for k in space.child_lists[choice[c]] if space.const[k]}
    held -= {
        k
        for c, i in enumerate(original)
        if i >= 0 and not space.const[c]
        for k in space.child_lists[i]
        if space.const[k]
    }
    guilty: set[int] = set()
    target = -1
    for c in order:
        if space.const[c]:
            continue
        kids = space.child_lists[choice[c]]
        if any(k in held or k in guilty for k in kids):
            if original[c] >= 0 and original[c] != choice[c]:
                target = c
                break
            if original[c] < 0:
                guilty.add(c)
    if target < 0:  # nothing to blame on one class: give up on the whole result
        return original
    found = list(choice)
    found[target] = original[target]
    try:
        space.topological(found)
    except IllegalSelection:  # what it reads now needs it: the original's whole cone is acyclic for sure
        stack = [target]
        while stack:
            c = stack.pop()
            if found[c] != original[c] or c == target:
                found[c] = original[c]
            stack.extend(k for k in space.child_lists[original[c]] if found[k] != original[k])
    return found
