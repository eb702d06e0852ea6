"""Large moves for a search over substitutions: some neighbouring classes of a program are chosen anew, exactly."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..egraph.space import IllegalSelection
from .base import Meter
from .neighbourhood import NODES, Neighbourhoods
from .part import Part, alike
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
        groups = alike(parts, self.problem.price) if rules.group else [[n] for n in range(len(parts))]
        self.alike = [[parts[n] for n in group] for group in groups]
        """Parts that differ in names only leap together."""
        self.near = [Neighbourhoods(self.problem, group[0], rng) for group in self.alike]
        self.odds = np.array([float(len(group) * group[0].enodes) for group in self.alike])
        """How often each group is leapt in; 0 once all of it was chosen at once, by a sum that says all."""

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
        part, others = near.part, self.alike[number][1:]
        mine = {c: here[c] for c in part.classes if c in here}
        if others and not self.fused:  # what one of them has by luck
            offers = [mine, *(other.renamed(here, part) for other in others)]
            mine = min(offers, key=lambda chosen: self._sum(part, chosen))
        all_of_it, size = near.whole, near.size
        found, spent = near.step(mine, meter.left, NODES)
        meter.evaluations += spent
        if all_of_it and near.size > size and not self.fused:
            self.odds[number] = 0.0
        whole = {**live, **mine, **found}
        wide = dict(whole)
        for other in others:
            wide |= part.renamed({**mine, **found}, other)
        for chosen in (wide, whole) if others else (whole,):
            landed = self._snapshot(chosen)
            if landed is not None:
                return landed
        return None

    def _sum(self, part: Part, chosen: Mapping[int, int]) -> float:
        own = part.program(chosen)
        return np.inf if own is None else sum(self.problem.price[i] for i in own.values())

    def _snapshot(self, chosen: Mapping[int, int]) -> Snapshot | None:
        """The program of these e-nodes, if it is a legal one and another."""
        state = self.state
        try:
            landed = state.snapshot_of(self.problem.selection(chosen))
        except IllegalSelection:
            return None
        if landed.key == state.key or landed.bytes > state.rules.bytes_limit:
            return None
        return landed
