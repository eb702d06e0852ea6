"""Large moves for a search over substitutions: some neighbouring classes of a program are chosen anew, exactly."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..egraph.space import IllegalSelection
from .base import Meter
from .neighbourhood import Neighbourhoods
from .part import Part, alike
from .problem import Problem, Reduction
from .state import Snapshot, State

LARGE = 4096
"""In a space of so many classes two groups of parts are leapt in at once, in one of twice as many three, and so on."""


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
        """Where a leap from here leads; None if it leads nowhere else.

        By a sum of prices parts do not concern each other. So where a space is large, and coming down from a leap takes
        long, several are leapt in at once.
        """
        left = int(np.count_nonzero(self.odds))
        if not left:
            return None
        state = self.state
        live = {c: i for c, i in enumerate(state.choice) if state.refs[c] and not state.rules.const[c]}
        here = self.reduction.translated(live)
        if self.fused:
            shaken = self.price * np.exp(self.shake * self.rng.standard_normal(len(self.price)))
            self.problem.price = list(shaken)
        some = 1 if self.fused else min(left, 1 + len(state.choice) // LARGE)
        odds = self.odds / self.odds.sum()
        # What the reduction found superfluous was replaced in all parts, also those that are not leapt in.
        bases = [live] if self.fused else [{**live, **self.reduction.decided, **here}, live]
        whole, wide = dict[int, int](), dict[int, int]()
        for number in self.rng.choice(len(self.near), some, replace=False, p=odds).tolist():
            found = self._leapt(number, here, meter)
            part, *others = self.alike[number]
            whole |= found
            wide |= found
            for other in others:
                wide |= part.renamed(found, other)
        for base in bases:
            for chosen in (whole,) if wide == whole else (wide, whole):
                landed = self._snapshot({**base, **chosen})
                if landed is not None:
                    return landed
        return None

    def _leapt(self, number: int, here: Mapping[int, int], meter: Meter) -> dict[int, int]:
        """The e-nodes of the first part of a group after a leap in it, from the cheapest of those that are alike."""
        near, (part, *others) = self.near[number], self.alike[number]
        mine = {c: here[c] for c in part.classes if c in here}
        if others and not self.fused:
            mine = min((mine, *(other.renamed(here, part) for other in others)), key=lambda own: self._sum(part, own))
        all_of_it, size = near.whole, near.size
        found, spent = near.step(mine, meter.left, meter.limit - meter.evaluations)
        meter.evaluations += spent
        if all_of_it and near.size > size and not self.fused:
            self.odds[number] = 0.0
        return {**mine, **found}

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
