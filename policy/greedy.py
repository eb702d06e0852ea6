"""Greedy extraction: TASO's cost-based backtracking search (Jia et al., SOSP 2019, algorithm 2) over substitutions.

The cheapest program in the queue is expanded by every substitution; a new program enters the queue if it costs less
than `alpha` times the best one so far. With alpha = 1 only improvements do (plain greedy). `greedy` takes single
sites without co-switching, as TASO's substitutions do; `greedy-group` the moves of the learned policy.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import numpy as np

from .base import Budget, Extraction
from .climb import begin, finish, look
from .state import Snapshot

if TYPE_CHECKING:
    from ..cost.base import Cost
    from ..egraph.space import SearchSpace


class Greedy:
    """TASO's search. alpha: tolerated temporary loss. queue: how many programs wait at most (the dearest are
    dropped)."""

    name = "greedy"
    group = False

    def __init__(self, alpha: float = 1.05, queue: int = 1000) -> None:
        self.alpha, self.queue = alpha, queue

    def extract(self, space: SearchSpace, cost: Cost, budget: Budget, rng: np.random.Generator) -> Extraction:
        meter, state = begin(space, cost, budget, self.group)
        best_cost, best = state.cost, state.snapshot()
        seen = {state.key}
        waiting: list[tuple[float, int, Snapshot, int]] = []  # cost, age, the program before, the action from there
        here, age = best, 0
        reason = "queue empty"
        while True:
            look(state, meter)
            costs = here.cost + state.delta
            order = np.flatnonzero(state.known & state.fits & (costs < self.alpha * best_cost - state.rules.epsilon))
            for a in order[np.argsort(costs[order], kind="stable")].tolist():
                key = state.key_after(a)
                if key in seen or costs[a] >= self.alpha * best_cost - state.rules.epsilon:
                    continue
                seen.add(key)
                age += 1
                heapq.heappush(waiting, (float(costs[a]), age, here, a))
            if len(waiting) > 2 * self.queue:
                waiting = heapq.nsmallest(self.queue, waiting)
            if meter.exhausted or not waiting:
                reason = meter.reason if meter.exhausted and waiting else reason
                break
            _, _, before, a = heapq.heappop(waiting)
            state.restore(before)
            if not state.apply(a) or state.bytes > state.rules.bytes_limit:
                state.restore(before)  # an orbit's growth is only a guess
            here = state.snapshot()
            if here.cost < best_cost - state.rules.epsilon:
                best_cost, best = here.cost, here
                meter.improved(best_cost)
        return finish(space, cost, state, best, meter, reason, self.name)


class GreedyGroup(Greedy):
    """TASO's search over group moves: isomorphic sites as one, users of a merge together."""

    name = "greedy-group"
    group = True
