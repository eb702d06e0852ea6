"""Large moves for a search over substitutions: some neighbouring classes of a program are chosen anew, exactly."""

from __future__ import annotations

import numpy as np

from ..egraph.space import IllegalSelection
from .base import Meter
from .neighbourhood import NODES, Neighbourhoods
from .problem import Problem, Reduction
from .state import Snapshot, State


class Leaps:
    """Leaps from the program of `state`.

    shake: how much prices are shaken where the cost is more than their sum (standard deviation of the logarithm).
    """

    def __init__(self, state: State, rng: np.random.Generator, shake: float) -> None:
        self.state, self.rng, self.shake = state, rng, shake
        rules = state.rules
        self.fused = state.ledger is not None
        self.problem = Problem(rules.space, rules.cost)
        self.price = np.array(self.problem.price)
        # What a sum of prices makes superfluous need not be so for a cost of kernels.
        self.reduction = Reduction(self.problem, dominate=not self.fused)
        parts = self.reduction.parts
        self.near = [Neighbourhoods(self.problem, part, rng) for part in parts]
        self.odds = np.array([float(part.enodes) for part in parts])
        """How often each part is leapt in; 0 once all of it was chosen at once, by a sum that says all."""

    def landed(self, meter: Meter) -> Snapshot | None:
        """Where a leap from here leads; None if it leads nowhere else."""
        if not self.odds.any():
            return None
        state, problem = self.state, self.problem
        number = int(self.rng.choice(len(self.near), p=self.odds / self.odds.sum()))
        near = self.near[number]
        live = {c: i for c, i in enumerate(state.choice) if state.refs[c] and not state.rules.const[c]}
        here = self.reduction.translated(live)
        if self.fused:
            problem.price = list(self.price * np.exp(self.shake * self.rng.standard_normal(len(self.price))))
        all_of_it, size = near.whole, near.size
        found, spent = near.step({c: here[c] for c in near.part.classes if c in here}, meter.left, NODES)
        meter.evaluations += spent
        if all_of_it and near.size > size and not self.fused:
            self.odds[number] = 0.0
        whole = {**live, **found}
        try:
            landed = state.snapshot_of(problem.selection(whole))
        except IllegalSelection:
            return None
        if landed.key == state.key or landed.bytes > state.rules.bytes_limit:
            return None
        return landed
