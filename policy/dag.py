"""Greedy extraction that sees sharing: each class takes the e-node whose operands' programs together are cheapest.

As `tree`, but what two operands both need counts once: the cost of an e-node is that of the *union* of the programs
chosen for its operands (the "greedy DAG" extraction of the e-graph community). Classes are settled in order of that
cost, so the choice is acyclic by construction. A program is a set of classes; to keep the sets small, what every
program has (forced classes) and what costs nothing is left out: that is there, or free, anyhow.

Then classes choose again from the outputs down, given what is live by now, among the e-nodes whose operands were
settled before them, so that the choice stays acyclic.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import numpy as np

from .base import Budget, Extraction, Meter, uncollected
from .problem import forced_near
from .tree import CAP, finite_prices, repaired, tree_costs

if TYPE_CHECKING:
    from ..cost.base import Cost
    from ..egraph.space import SearchSpace

LARGEST = 128
"""A set of more classes than this is not kept; what is in it counts once for each reader then, as in `tree`."""


class Dag:
    """Greedy over sets. The budget is not looked at: its work is that of a few passes over the e-nodes."""

    name = "dag"

    def extract(self, space: SearchSpace, cost: Cost, budget: Budget, rng: np.random.Generator) -> Extraction:
        meter = Meter(budget)
        meter.evaluations = 1
        selection, repairs = repaired(space, cost, greedily(space, cost)[1])
        total = cost.total(selection)
        meter.improved(total)
        return Extraction(selection, total, meter.trace, "fixpoint", self.name, {"repaired": repairs})


def greedily(space: SearchSpace, cost: Cost) -> tuple[list[int], list[int]]:
    """The e-node of each class in the program of cheapest trees, and in the one that this extractor finds; either may
    hold too many weights."""
    with uncollected():
        greedy = _Greedy(space, cost)
        first = greedy.settled()
        second = greedy.again(first)
        return greedy.cheapest, min((second, first), key=greedy.cost)


class _Greedy:
    def __init__(self, space: SearchSpace, cost: Cost) -> None:
        self.space, self.prices, self.home = space, finite_prices(space, cost.prices), space.node_class.tolist()
        tree, self.cheapest = tree_costs(space, self.prices)
        self.free = free = [t == 0 for t in tree]
        lost = {c for c, t in enumerate(tree) if t == np.inf}
        self.paying = {
            i: tuple(dict.fromkeys([k for k in kids if not free[k]]))
            for i, (p, c, kids) in enumerate(zip(self.prices, self.home, space.child_lists, strict=True))
            if p < CAP and not free[c] and not (lost and not lost.isdisjoint(kids))
        }
        """The operands of each usable e-node that cost something."""
        self.options: dict[int, list[int]] = {c: [] for c in range(space.n_classes) if not free[c]}
        for i in self.paying:
            self.options[self.home[i]].append(i)
        self.roots = [c for c in dict.fromkeys(space.roots.tolist()) if not free[c]]
        forced = forced_near(self.roots, self.options, self.paying)
        self.forced = forced
        self.local = {i: tuple([k for k in kids if k not in forced]) for i, kids in self.paying.items()}
        """Those of them that are not there anyhow."""
        n = space.n_classes
        self.sets: list[frozenset[int]] = [frozenset()] * n
        """What each class would bring in; with its cost, and the cost of what was cut off."""
        self.costs, self.rest, self.paid = [0.0] * n, [0.0] * n, [0.0] * n
        self.rank = [n] * n
        """When each class was settled."""

    def cost(self, choice: list[int]) -> float:
        live, stack = set(self.roots), list(self.roots)
        while stack:
            for k in self.paying[choice[stack.pop()]]:
                if k not in live:
                    live.add(k)
                    stack.append(k)
        return sum(self.prices[choice[c]] for c in live)

    def settled(self) -> list[int]:
        """Settle one class after the other, the cheapest first."""
        n, prices, local, costs, rank = self.space.n_classes, self.prices, self.local, self.costs, self.rank
        found, parents = list(self.cheapest), self.space.parents
        missing = {i: len(kids) for i, kids in self.paying.items()}
        heap = [(prices[i], i) for i, k in missing.items() if not k]
        heapq.heapify(heap)
        settled = 0
        while heap:
            ms, i = heapq.heappop(heap)
            c = self.home[i]
            if rank[c] < n:
                continue
            rank[c], found[c], self.paid[c] = settled, i, prices[i]
            settled += 1
            if c not in self.forced:
                self._keep(c, i, ms)
            for j in parents[c]:
                if j in missing:
                    missing[j] -= 1
                    if not missing[j] and rank[self.home[j]] == n:
                        kids = local[j]
                        below = (costs[kids[0]] if kids else 0.0) if len(kids) < 2 else self._union(kids)
                        heapq.heappush(heap, (prices[j] + below, j))
        return found

    def _keep(self, c: int, i: int, ms: float) -> None:
        kids, sets = self.local[i], self.sets
        self.costs[c] = ms
        if sum([len(sets[k]) for k in kids]) >= LARGEST:
            self.rest[c], sets[c] = ms - self.prices[i], frozenset((c,))
        else:
            self.rest[c] = sum([self.rest[k] for k in kids])
            sets[c] = frozenset((c,)).union(*[sets[k] for k in kids])

    def _union(self, kids: tuple[int, ...]) -> float:
        """What these classes cost together."""
        largest = max(kids, key=lambda k: len(self.sets[k]))
        total, seen = self.costs[largest], self.sets[largest]
        for k in kids:
            if k != largest:
                new = self.sets[k] - seen
                if new:
                    total += sum(self.paid[x] for x in new) + self.rest[k]
                    seen = seen | new
        return total

    def again(self, choice: list[int]) -> list[int]:
        """Choose again from the outputs down."""
        found, rank, paid = list(choice), self.rank, self.paid
        there = self.forced | set(self.roots)
        live = set(self.roots)
        heap = [-rank[c] for c in live]
        heapq.heapify(heap)
        at = {rank[c]: c for c in self.options}
        while heap:
            c = at[-heapq.heappop(heap)]
            options = self.options[c]
            if len(options) > 1:
                best = np.inf
                for i in options:
                    if any(rank[k] >= rank[c] for k in self.paying[i]):
                        continue
                    new = [k for k in self.local[i] if k not in there]
                    ms = self.prices[i]
                    if new:
                        brought = self.sets[new[0]].union(*[self.sets[k] for k in new[1:]]) - there
                        ms += sum([paid[x] for x in brought]) + sum([self.rest[k] for k in new])
                    if ms < best:
                        best, found[c] = ms, i
            for k in self.paying[found[c]]:
                if k not in live:
                    live.add(k)
                    there.add(k)
                    heapq.heappush(heap, -rank[k])
        return found
