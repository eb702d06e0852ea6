"""Exact extraction: the cheapest program under a sum of prices by integer programming, and a bound on what is possible.

The problem is reduced and falls into parts (`problem`). Where the relaxation of a part does not prove the best program
known, neighbourhoods of that are searched exactly (`neighbourhood`), and then the part is solved by HiGHS from what
they found (`formulation`). Whatever the budget, there is a lower bound: the sum of the parts' own.

The limit on weight bytes is left aside at first. If the cheapest program breaks it, bytes are given a price, more and
more until the cheapest program keeps it, for there is often one as cheap that does; only then the limit, which makes
one part of all, becomes a row.

Under a cost of fused kernels the sum of operators by themselves is still what is minimised; the result is priced as the
cost says, and nothing is proved about it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..egraph.space import IllegalSelection, Selection
from .base import Budget, Extraction, Meter
from .dag import greedily
from .formulation import Formulation, nodes_of
from .neighbourhood import Neighbourhoods
from .part import Part, alike
from .problem import REDUCING, Problem, Reduction
from .tree import finite_prices

if TYPE_CHECKING:
    from ..cost.base import Cost
    from ..egraph.space import SearchSpace

GREEDY = 1.2e-5
"""Seconds that greedy extraction takes for each e-node, roughly."""

FLOW = 0.3
"""Share of the gap between relaxation and best program that flows must close to be worth their columns."""

RELATIVE = 1e-7
"""Gaps below this share are rounding."""

NEAR = 0.08
"""Share of a part's budget for neighbourhoods; HiGHS on the whole part has the rest."""

PATIENCE = 30
"""Neighbourhoods in a row that may bring nothing."""

BYTES = (1e-4, 1e-3, 1e-2, 1e-1)
"""What all weights together cost where bytes have a price, as shares of the best program's cost."""

LEAST = 0.1
"""Share of what is left of the budget that a part has at least; there is another round if something is left over."""

RARELY = 10.0
"""Programs are put together no more often than takes a share of one in so many of the time."""

SMALL = 100
"""Parts with no more e-nodes than this are solved at once."""


class ILP:
    """HiGHS over reduced, decomposed parts. start: a program to begin with, beside the input and the greedy ones.

    `extras` of its results: lower_bound in ms (None under a cost of kernels), gap (share of the cost), proof
    ("optimal", or why not), parts.
    """

    name = "ilp"

    def __init__(self, start: Selection | None = None) -> None:
        self.start = start

    def extract(self, space: SearchSpace, cost: Cost, budget: Budget, rng: np.random.Generator) -> Extraction:
        meter = Meter(budget)
        search = _Search(space, cost, meter, rng)
        search.begin(self.start)
        search.run()
        total = cost.total(search.best)
        if search.fused:
            meter.improved(total)
        return Extraction(search.best, total, meter.trace, search.reason, self.name, search.account())


class _Search:
    """One run. best: the cheapest legal program so far. relaxed: the e-nodes of the cheapest one, legal or not.
    bound: ms that no program is below."""

    def __init__(self, space: SearchSpace, cost: Cost, meter: Meter, rng: np.random.Generator) -> None:
        self.space, self.cost, self.meter, self.rng = space, cost, meter, rng
        self.fused = cost.ledger([], []) is not None
        self.prices = np.array(finite_prices(space, cost.prices))
        self.best, self.best_ms = space.original, math.inf
        self.bound = 0.0
        self.reason = ""
        self.parts = 0
        self.legal = True
        """Whether the relaxed program is legal."""

    def begin(self, start: Selection | None) -> None:
        """Take the input, the program to start from, and what greedy extraction finds."""
        space, cost = self.space, self.cost
        found = [space.original, start]
        if self.meter.affords(GREEDY * space.n_nodes):
            found += [space.selection(choice) for choice in greedily(space, cost)]
        for selection in found:
            if selection is not None:
                self.meter.evaluations += 1
                self.take(selection)

    def price(self, selection: Selection) -> float:
        picked = selection.choice
        return float(self.prices[picked[picked >= 0]].sum())

    def take(self, selection: Selection) -> None:
        """Keep this program if it is legal and cheaper."""
        ms = self.price(selection)
        if ms < self.best_ms and self.cost.legal(selection):
            self.best, self.best_ms = selection, ms
            if not self.fused:
                self.meter.improved(self.cost.total(selection))

    def run(self) -> None:
        if not self.meter.affords(REDUCING * self.space.n_nodes):
            self.reason = "out of time"
            return
        self.solve(Problem(self.space, self.cost))
        for share in BYTES:
            if self.legal or self.proved or self.meter.exhausted:
                break
            self.solve(Problem(self.space, self.cost, per_byte=share * self.best_ms / max(1.0, self.cost.weight_limit)))
        if not (self.proved or self.meter.exhausted):
            self.solve(Problem(self.space, self.cost, weighted=True))
        self.reason = "optimal" if self.proved else self.meter.reason if self.meter.exhausted else "no better near"

    @property
    def proved(self) -> bool:
        return self.bound >= self.best_ms * (1 - RELATIVE)

    def solve(self, problem: Problem) -> None:
        """Solve the parts of a problem, small ones first."""
        reduction = Reduction(problem)
        start = reduction.translated({c: i for c, i in enumerate(self.best.choice.tolist()) if i >= 0})
        self.relaxed = dict(reduction.decided)
        for part in reduction.parts:
            self.relaxed |= {c: start[c] for c in part.classes if c in start}
        self.problem, self.bounds = problem, {n: floor(problem, part) for n, part in enumerate(reduction.parts)}
        open_ = sorted(range(len(reduction.parts)), key=lambda n: (reduction.parts[n].enodes, n))
        self.parts, self.base = len(open_), reduction.base
        self.assembled, self.assembling = -math.inf, 0.0
        limited = min(self.meter.deadline, self.meter.limit) < math.inf
        while open_ and not self.meter.exhausted:
            open_ = self.round(reduction, open_)
            if not limited:  # each part had all the time that it wanted
                break
        self.assemble()
        if problem.per_byte:
            return
        self.bound = min(self.best_ms, max(self.bound, self.base + math.fsum(self.bounds.values())))

    def round(self, reduction: Reduction, numbers: Sequence[int]) -> list[int]:
        """Work on these parts, of those that are alike on one for all; those that are not solved."""
        unsolved = []
        left = float(sum(reduction.parts[n].enodes for n in numbers))
        for group in alike([reduction.parts[n] for n in numbers], self.problem.price):
            mine = [numbers[k] for k in group]
            if self.meter.exhausted:
                unsolved += mine
                continue
            size = len(mine) * reduction.parts[mine[0]].enodes
            search = _PartSearch(self, reduction.parts, mine, max(LEAST, size / left))
            search.run()
            if not search.done:
                unsolved += mine
            left -= size
        return unsolved

    def offer(self, chosen: Mapping[int, int]) -> None:
        """Take these e-nodes into the relaxed program; the whole of it is looked at from time to time."""
        self.relaxed |= chosen
        meter = self.meter
        if meter.deadline == math.inf or meter.seconds > self.assembled + RARELY * self.assembling:
            self.assemble()

    def assemble(self) -> None:
        """Take the relaxed program if it is legal."""
        start = self.meter.seconds
        try:
            selection = self.problem.selection(self.relaxed)
        except IllegalSelection:  # numbers of HiGHS that are only nearly whole
            return
        self.legal = self.cost.legal(selection)
        self.take(selection)
        self.assembled = self.meter.seconds
        self.assembling = self.assembled - start

    def account(self) -> dict[str, Any]:
        if self.fused:
            return {"lower_bound": None, "gap": None, "proof": "none: the cost is not a sum", "parts": self.parts}
        gap = 0.0 if self.proved else 1 - self.bound / self.best_ms if self.best_ms > 0 else 0.0
        proof = "optimal" if self.proved else f"within {100 * gap:.2g} %"
        bound = min(self.bound, self.cost.total(self.best))
        return {"lower_bound": bound, "gap": gap, "proof": proof, "parts": self.parts}


class _PartSearch:
    """The search of one part, for all that are alike. share: of what is left of the budget."""

    def __init__(self, search: _Search, parts: Sequence[Part], numbers: Sequence[int], share: float) -> None:
        self.search, self.numbers = search, numbers
        self.part, *self.others = (parts[n] for n in numbers)
        meter = search.meter
        now = meter.seconds
        self.end = now + share * (meter.deadline - meter.started - now)
        self.seconds = self.end - now
        self.last = meter.evaluations + share * (meter.limit - meter.evaluations)
        self.steps = self.last - meter.evaluations
        self.chosen = {c: search.relaxed[c] for c in self.part.classes if c in search.relaxed}
        self.ms = self.priced(self.chosen)
        if self.others:  # parts that are alike need not have fared alike
            for other in self.others:
                self.better(other.renamed(search.relaxed, self.part))
            self.offer(self.chosen)

    def priced(self, chosen: Mapping[int, int]) -> float:
        price = self.search.problem.price
        return math.fsum(price[chosen[c]] for c in self.part.live(chosen))

    @property
    def done(self) -> bool:
        return self.search.bounds[self.numbers[0]] >= self.ms * (1 - RELATIVE)

    @property
    def over(self) -> bool:
        meter = self.search.meter
        return meter.seconds >= self.end or meter.evaluations >= self.last

    def better(self, chosen: Mapping[int, int]) -> None:
        """Take a program of this part if it is one, and cheaper."""
        own = self.part.program(chosen)
        if own is not None and (ms := self.priced(own)) < self.ms * (1 - 1e-12):
            self.chosen, self.ms = {**self.chosen, **own}, ms
            self.offer(own)

    def offer(self, chosen: Mapping[int, int]) -> None:
        """Let the whole program have these e-nodes, and their like in the parts that are alike."""
        found = dict(chosen)
        for other in self.others:
            found |= self.part.renamed(chosen, other)
        self.search.offer(found)

    def raised(self, bound: float) -> None:
        for n in self.numbers:
            self.search.bounds[n] = max(self.search.bounds[n], min(bound, self.ms))

    def run(self) -> None:
        if self.part.enodes <= SMALL:
            self.solve(Formulation(self.search.problem, self.part))
            return
        flows = self.relax()
        if self.done:
            return
        self.look_around()
        if not (self.done or self.over):
            self.solve(Formulation(self.search.problem, self.part, flows))

    def relax(self) -> list[dict[int, int]]:
        """Bounds by the relaxation without and with flows; the flows that are worth it."""
        problem, part = self.search.problem, self.part
        plain = Formulation(problem, part, integer=False)
        flow = plain.dearest()
        found = []
        for flows in ([], [flow]):
            formulation = Formulation(problem, part, flows, integer=False) if flows else plain
            solved = formulation.solve(min(0.3 * self.seconds, self.end - self.search.meter.seconds))
            self.search.meter.evaluations += solved.work
            if solved.values is not None:
                self.better(formulation.chosen(solved.values))
            found.append(solved.bound)
            self.raised(solved.bound)
            if self.done or self.over:
                break
        gain = found[-1] - found[0]
        return [flow] if len(found) == 2 and gain >= FLOW * (self.ms - found[0]) else []

    def solve(self, whole: Formulation) -> None:
        meter = self.search.meter
        solved = whole.solve(
            self.end - meter.seconds, nodes_of(self.last - meter.evaluations), self.chosen, self.better
        )
        meter.evaluations += solved.work
        if solved.values is not None:
            self.better(whole.chosen(solved.values))
        self.raised(self.ms if solved.optimal and solved.cost >= self.ms * (1 - RELATIVE) else solved.bound)

    def look_around(self) -> None:
        """Neighbourhoods of the best program, until they bring nothing or their time is over."""
        meter = self.search.meter
        end = meter.seconds + NEAR * self.seconds
        last = meter.evaluations + NEAR * self.steps
        near, vain = Neighbourhoods(self.search.problem, self.part, self.search.rng), 0
        while vain < PATIENCE and meter.seconds < end and meter.evaluations < last and not near.whole:
            before = self.ms
            found, spent = near.step(self.chosen, end - meter.seconds, last - meter.evaluations)
            meter.evaluations += spent
            self.better(found)
            vain = 0 if self.ms < before else vain + 1


def floor(problem: Problem, part: Part) -> float:
    """Milliseconds that the forced classes of a part cost at least."""
    return math.fsum(min(problem.price[i] for i in part.options[f]) for f in part.forced)
