"""Hill climbing by substitutions: down to a local optimum, then again from a perturbed one while budget remains.

Iterated local search (Lourenço, Martin, Stützle 2003): steepest descent over the group moves; a kick of a few random legal
moves; descent again; the new optimum is kept if it is no worse. Deterministic for a seed and a budget in steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .base import Budget, Extraction, Meter
from .substitution import Snapshot, State, Substitutions

if TYPE_CHECKING:
    from ..cost.base import Cost
    from ..egraph.space import SearchSpace


class Climb:
    """Steepest descent with random kicks.

    kick: how many random moves a kick makes at most. patience: how many kicks in a row may bring nothing before it
    stops although budget remains.
    """

    name = "climb"

    def __init__(self, kick: int = 4, patience: int = 200) -> None:
        self.kick, self.patience = kick, patience

    def extract(self, space: SearchSpace, cost: Cost, budget: Budget, rng: np.random.Generator) -> Extraction:
        meter = Meter(budget)
        state = State(Substitutions(space, cost))
        meter.evaluations = 1
        meter.improved(state.cost)
        best = here = state.snapshot()
        if self._descend(state, meter):
            best = here = state.snapshot()
        rules, failures = state.rules, 0
        while rules.actions and failures < self.patience and not meter.exhausted:
            failures += 1
            self._shake(state, rng)
            self._descend(state, meter)
            if state.cost <= here.cost + rules.epsilon:
                here = state.snapshot()
            if state.cost < best.cost - rules.epsilon:
                best, failures = here, 0
            state.restore(here)
        reason = meter.reason if meter.exhausted else ("no moves" if not rules.actions else "local optimum")
        return finish(space, cost, state, best, meter, reason, self.name)

    def _descend(self, state: State, meter: Meter) -> bool:
        """Steepest moves until none lowers the cost or the budget is gone; whether the cost fell."""
        start, lower = state.cost, state.rules.epsilon
        while True:
            look(state, meter)
            gain = np.where(state.closable & (state.bytes + state.growth <= state.rules.bytes_limit), state.delta, 0.0)
            if not gain.size or gain.min() >= -lower or not state.apply(int(gain.argmin())):
                return state.cost < start - lower
            meter.improved(state.cost)
            if meter.exhausted:
                return state.cost < start - lower

    def _shake(self, state: State, rng: np.random.Generator) -> None:
        for _ in range(int(rng.integers(1, self.kick + 1))):
            for _attempt in range(50):
                a = int(rng.integers(len(state.rules)))
                if state.closable[a] and state.bytes + state.growth[a] <= state.rules.bytes_limit:
                    # The move may be stale after the moves before it, so its growth is looked at again.
                    move = state.evaluate(a)
                    if move and state.bytes + move.bytes <= state.rules.bytes_limit:
                        state.apply(a)
                        break


def look(state: State, meter: Meter) -> None:
    """Bring the moves of `state` up to date as far as the budget allows; moves not looked at are not closable."""
    while state.stale:
        if meter.exhausted:
            state.blind()
            return
        before = state.evaluations
        state.refresh(64)
        meter.evaluations += state.evaluations - before


def finish(
    space: SearchSpace, cost: Cost, state: State, best: Snapshot, meter: Meter, reason: str, name: str
) -> Extraction:
    """The extraction that ends a search with `best`, priced afresh."""
    state.restore(best)
    selection = state.selection()
    return Extraction(selection, cost.total(selection), meter.trace, reason, name)
