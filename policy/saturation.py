"""The best of the classical extractors within a budget: climbing, then integer programming from what that found.

Before both, integer programming has a small share of the budget by itself: most programs are proved at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import Budget, Extraction, Trace
from .climb import Climb
from .ilp import ILP
from .problem import REDUCING
from .substitution import SETTING_UP

if TYPE_CHECKING:
    from ..cost.base import Cost
    from ..egraph.space import SearchSpace

CLIMB = 0.2
"""Share of the budget for climbing where the cost is a sum, so that something can be proved."""

PROBE, REDUCTIONS = 0.1, 10.0
"""Share of the budget for proving at once; none where reducing takes more than one part in so many of that share."""

FOUND = 1.5
"""It has so many times at least what setting it up takes: a large step is made at once."""

SUM, HALF = 0.2, 0.5
"""Shares where it is not: of the whole for the cheapest sum, of the rest for climbing from the input."""


class Saturation:
    """ILP, shortly; climb from the input; ILP from the better one. Where the time is too short to reduce the problem,
    only climb.

    Under a cost of fused kernels, which is no sum: climb from the input, and from the program with the cheapest sum.
    `extras` as those of ILP.
    """

    name = "saturation"

    def extract(self, space: SearchSpace, cost: Cost, budget: Budget, rng: np.random.Generator) -> Extraction:
        if cost.ledger([], []) is None:
            each = math.inf if budget.seconds is None else budget.seconds / space.n_nodes
            if each < SETTING_UP:
                only = ILP().extract(space, cost, budget, rng)  # what greedy extraction finds
                return self._joined([only], only.stop_reason, only.extras)
            found = []
            if PROBE * each >= REDUCTIONS * REDUCING:
                found.append(ILP().extract(space, cost, _share(budget, PROBE), rng))
                if found[0].stop_reason == "optimal":
                    return self._joined(found, "optimal", found[0].extras)
                budget = _rest(budget, found[0].trace)
            climb = max(CLIMB, FOUND * SETTING_UP / each) if each >= SETTING_UP + REDUCING else 1.0
            found.append(Climb().extract(space, cost, _share(budget, climb), rng))
            best = min(found, key=lambda e: e.cost).selection
            found.append(ILP(best).extract(space, cost, _rest(budget, found[-1].trace), rng))
            return self._joined(found, found[-1].stop_reason, found[-1].extras)
        sums = ILP().extract(space, cost, _share(budget, SUM), rng)
        rest = _rest(budget, sums.trace)
        near = Climb().extract(space, cost, _share(rest, HALF), rng)
        far = Climb(start=sums.selection).extract(space, cost, _rest(rest, near.trace), rng)
        return self._joined([sums, near, far], far.stop_reason, sums.extras)

    def _joined(self, found: Sequence[Extraction], reason: str, extras: Mapping[str, Any]) -> Extraction:
        """The best of these, with the traces one after the other."""
        trace = Trace()
        for one in found:
            for n, seconds, ms in one.trace.points:
                if ms < trace.best_after(1 << 62):
                    trace.points.append((n + trace.evaluations, seconds + trace.seconds, ms))
            trace.evaluations += one.trace.evaluations
            trace.seconds += one.trace.seconds
        best = min(found, key=lambda e: e.cost)
        return Extraction(best.selection, best.cost, trace, reason, self.name, extras)


def _share(budget: Budget, share: float) -> Budget:
    return Budget(
        None if budget.seconds is None else share * budget.seconds,
        None if budget.steps is None else max(1, int(share * budget.steps)),
    )


def _rest(budget: Budget, spent: Trace) -> Budget:
    return Budget(
        None if budget.seconds is None else max(0.0, budget.seconds - spent.seconds),
        None if budget.steps is None else max(1, budget.steps - spent.evaluations),
    )
