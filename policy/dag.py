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

from ..egraph.space import Selection
from .base import Budget, Extraction, Meter
from .problem import forced_near
from .tree import CAP, finite_prices, repaired, tree_costs

if TYPE_CHECKING:
    from ..cost.base import Cost
    from ..egraph.space import SearchSpace

LARGEST = 2000
"""A set of more classes than this is not kept; what is in it counts once for each reader then, as in `tree`."""

PASSES = 3
"""Passes from the outputs down at most."""


class Dag:
    """Greedy over sets. The budget is not looked at: its work is that of a few passes over the e-nodes."""

    name = "dag"

    def extract(self, space: SearchSpace, cost: Cost, budget: Budget, rng: np.random.Generator) -> Extraction:
        meter = Meter(budget)
        meter.evaluations = 1
        greedy = _Greedy(space, cost)
        selection, repairs = repaired(space, cost, greedy.best)
        total = cost.total(selection)
        meter.improved(total)
        return Extraction(selection, total, meter.trace, "fixpoint", self.name, {"repaired": repairs})


def sharing(space: SearchSpace, cost: Cost) -> Selection:
    """The program that this extractor finds, which may hold too many weights."""
    return space.selection(_Greedy(space, cost).best)


class _Greedy:
    """best: the e-node of each class of the cheapest program found."""

    def __init__(self, space: SearchSpace, cost: Cost) -> None:
        self.space = space
        self.prices = finite_prices(space, cost.prices)
        self.kids, self.home = space.child_lists, space.node_class.tolist()
        tree, choice = tree_costs(space, self.prices)
        self.free = [t == 0 for t in tree]
        self.paying = [tuple({k for k in kids if not self.free[k]}) for kids in self.kids]
        """The operands of each e-node that cost something."""
        options = {
            c: [i for i in space.nodes_of(c) if self.prices[i] < CAP and all(tree[k] < np.inf for k in self.kids[i])]
            for c in range(space.n_classes)
            if not self.free[c]
        }
        self.options = options
        roots = [c for c in space.roots.tolist() if not self.free[c]]
        self.forced = forced_near(roots, options, dict(enumerate(self.paying)))
        self.best = self._settle(choice)
        best = self._cost(self.best)
        for _ in range(PASSES):
            again = self._again(self.best)
            ms = self._cost(again)
            if ms >= best * (1 - 1e-12):
                break
            self.best, best = again, ms

    def _cost(self, choice: list[int]) -> float:
        return sum(self.prices[choice[c]] for c in self.space.topological(choice))

    def _settle(self, choice: list[int]) -> list[int]:
        """Settle one class after the other, the cheapest first; free ones are as in `choice`."""
        n, prices, paying = self.space.n_classes, self.prices, self.paying
        self.sets: list[frozenset[int]] = [frozenset()] * n
        """What each class would bring in, forced and free ones left out; and its cost, and that of what was cut off."""
        self.costs, self.rest = [0.0] * n, [0.0] * n
        self.rank = [-1 if free else n for free in self.free]
        found = list(choice)
        paid = [0.0] * n
        open_ = {i: len(paying[i]) for own in self.options.values() for i in own}
        heap = [(prices[i], i) for i, k in open_.items() if not k]
        heapq.heapify(heap)
        settled = 0
        while heap:
            ms, i = heapq.heappop(heap)
            c = self.home[i]
            if self.rank[c] < n:
                continue
            self.rank[c], found[c], paid[c] = settled, i, prices[i]
            settled += 1
            if c not in self.forced:
                self._keep(c, i, ms)
            for j in self.space.parents[c]:
                if j in open_:
                    open_[j] -= 1
                    if not open_[j] and self.rank[self.home[j]] == n:
                        heapq.heappush(heap, (prices[j] + self._union(paying[j], paid), j))
        self.paid = paid
        return found

    def _keep(self, c: int, i: int, ms: float) -> None:
        sets = [self.sets[k] for k in self.paying[i]]
        union = frozenset((c,)).union(*sets)
        if len(union) > LARGEST:
            self.rest[c], union = ms - self.prices[i], frozenset((c,))
        else:
            self.rest[c] = sum(self.rest[k] for k in self.paying[i])
        self.sets[c], self.costs[c] = union, ms

    def _union(self, kids: tuple[int, ...], paid: list[float]) -> float:
        """What these classes cost together."""
        if len(kids) < 2:
            return self.costs[kids[0]] if kids else 0.0
        largest = max(kids, key=lambda k: len(self.sets[k]))
        total, seen = self.costs[largest], self.sets[largest]
        for k in kids:
            if k != largest:
                new = self.sets[k] - seen
                if new:
                    total += sum(paid[x] for x in new) + self.rest[k]
                    seen = seen | new
        return total

    def _again(self, choice: list[int]) -> list[int]:
        """Choose again from the outputs down."""
        found, rank, paid = list(choice), self.rank, self.paid
        live = {c for c in self.space.roots.tolist() if not self.free[c]}
        heap = [-rank[c] for c in live]
        heapq.heapify(heap)
        at = {rank[c]: c for c in self.options}
        there = live | self.forced
        while heap:
            c = at[-heapq.heappop(heap)]
            options = self.options[c]
            if len(options) > 1:
                best = np.inf
                for i in options:
                    ms = self.prices[i]
                    new: set[int] = set()
                    for k in self.paying[i]:
                        if rank[k] >= rank[c]:
                            ms = np.inf
                            break
                        if k not in there:
                            new |= self.sets[k]
                            ms += self.rest[k]
                    ms += sum(paid[x] for x in new if x not in there)
                    if ms < best:
                        best, found[c] = ms, i
            for k in self.paying[found[c]]:
                if k not in live:
                    live.add(k)
                    there.add(k)
                    heapq.heappush(heap, -rank[k])
        return found
