"""Beam search: of all programs that one move more leads to, the cheapest few are kept, whether cheaper or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .base import Budget, Extraction
from .climb import begin, finish, look
from .state import Snapshot

if TYPE_CHECKING:
    from ..cost.base import Cost
    from ..egraph.space import SearchSpace


class Beam:
    """Beam search over grouped moves (group=False: over single sites).

    width: programs kept at each depth. branch: moves of one program that are followed at most, the best first.
    patience: depths in a row that may bring nothing. A program that was kept before is not kept again.
    """

    name = "beam"

    def __init__(self, width: int = 8, branch: int = 16, patience: int = 16, group: bool = True) -> None:
        self.width, self.branch, self.patience, self.group = width, branch, patience, group

    def extract(self, space: SearchSpace, cost: Cost, budget: Budget, rng: np.random.Generator) -> Extraction:
        meter, state = begin(space, cost, budget, self.group)
        rules = state.rules
        best = state.snapshot()
        beam, seen, vain = [best], {best.key}, 0
        while beam and vain < self.patience and not meter.exhausted:
            before = best.cost
            found: dict[int, tuple[float, Snapshot, int]] = {}
            for here in beam:
                state.restore(here)
                look(state, meter)
                usable = np.flatnonzero(state.known & state.fits)
                order = usable[np.argsort(state.delta[usable], kind="stable")]
                for a in order[: self.branch].tolist():
                    key = state.key_after(a)
                    after = here.cost + float(state.delta[a])
                    if key not in seen and (key not in found or after < found[key][0]):
                        found[key] = after, here, a
            beam = []
            for _, here, a in sorted(found.values(), key=lambda item: item[0]):
                if len(beam) == self.width:
                    break
                state.restore(here)
                if not state.apply(a) or state.bytes > rules.bytes_limit or state.key in seen:
                    continue  # what an orbit leads to was only a guess
                meter.evaluations += a >= rules.n_sites
                seen.add(state.key)
                beam.append(state.snapshot())
                if state.cost < best.cost - rules.epsilon:
                    best = beam[-1]
                    meter.improved(best.cost)
            vain = 0 if best.cost < before else vain + 1
        reason = meter.reason if meter.exhausted else "no better within reach" if beam else "no moves"
        return finish(space, cost, state, best, meter, reason, self.name)
