"""Baselines: the original as it is, and random walks over legal moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .base import Budget, Extraction, Meter
from .climb import begin, finish

if TYPE_CHECKING:
    from ..cost.base import Cost
    from ..egraph.space import SearchSpace


class Original:
    """The input program itself."""

    name = "original"

    def extract(self, space: SearchSpace, cost: Cost, budget: Budget, rng: np.random.Generator) -> Extraction:
        meter = Meter(budget)
        meter.evaluations = 1
        total = cost.total(space.original)
        meter.improved(total)
        return Extraction(space.original, total, meter.trace, "nothing to choose", self.name)


class RandomWalk:
    """Random legal moves, each as likely as any other, from the original; the cheapest program met.

    length: moves after which a walk starts again. steps: moves in all where the budget names no limit of steps.
    """

    name = "random"

    def __init__(self, length: int = 64, steps: int = 10_000, group: bool = True) -> None:
        self.length, self.steps, self.group = length, steps, group

    def extract(self, space: SearchSpace, cost: Cost, budget: Budget, rng: np.random.Generator) -> Extraction:
        meter, state = begin(space, cost, budget, self.group)
        meter.limit = min(meter.limit, self.steps)
        rules = state.rules
        start = best = state.snapshot()
        reason, moves, failures = "", 0, 0
        while not meter.exhausted:
            move = None
            if rules.actions:
                a = int(rng.integers(len(rules)))
                move = state.evaluate(a)
            if move is None or state.bytes + move.bytes > rules.bytes_limit:
                failures += 1
                if failures > 100 * len(rules) + 100:
                    reason = "no legal moves"
                    break
                continue
            meter.evaluations += 1
            state.apply(a)
            failures, moves = 0, moves + 1
            if meter.improved(state.cost):
                best = state.snapshot()
            if moves % self.length == 0:
                state.restore(start)
        return finish(space, cost, state, best, meter, reason or meter.reason, self.name)
