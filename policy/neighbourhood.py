"""Large-neighbourhood search (Shaw 1998): all but a few classes of a program are held, and these are chosen exactly."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .formulation import Formulation, nodes_of
from .part import Part
from .problem import Problem, Reduction

SMALLEST, FIRST = 20, 100
"""E-nodes of a neighbourhood at least, and of the first one."""

NODES = 50
"""Branch-and-bound nodes after which a neighbourhood is too large."""

GROWTH, CUT = 1.15, 0.7
"""A neighbourhood that was searched to its end makes the next one larger; one that was not, smaller."""


class Neighbourhoods:
    """Neighbourhoods of programs in one part of a problem.

    Each is grown from a class that the program has, over readers and operands, those that it has not included.
    """

    def __init__(self, problem: Problem, part: Part, rng: np.random.Generator) -> None:
        self.problem, self.part, self.rng = problem, part, rng
        near: dict[int, dict[int, None]] = {c: {} for c in part.classes}
        for c in part.classes:
            for i in part.options[c]:
                for k in part.kids[i]:
                    near[c][k] = near[k][c] = None
        self.near = {c: list(found) for c, found in near.items()}
        self.size = float(FIRST)

    @property
    def whole(self) -> bool:
        """Whether the last neighbourhood was large enough to be everything."""
        return self.size > self.part.enodes

    def around(self, c: int) -> set[int]:
        """Classes around `c` that have about as many e-nodes as a neighbourhood should have."""
        inside, rim, seen, size = set[int](), [c], {c}, 0
        while rim and size < self.size:
            at = int(self.rng.integers(min(len(rim), 8)))
            here = rim.pop(at)
            inside.add(here)
            size += len(self.part.options[here])
            new = [k for k in self.near[here] if k not in seen]
            self.rng.shuffle(new)
            seen.update(new)
            rim += new
        return inside

    def step(self, chosen: Mapping[int, int], seconds: float, evaluations: float) -> tuple[dict[int, int], int]:
        """The best program of one neighbourhood of `chosen` as far as that was found within about so many seconds and
        evaluations; and the evaluations that it took."""
        part = self.part
        seeds = sorted(part.live(chosen))
        inside = self.around(seeds[int(self.rng.integers(len(seeds)))])
        options = {c: [chosen[c]] for c in seeds} | {c: part.options[c] for c in inside}
        reduced = Reduction(self.problem, options, part)
        start = reduced.translated(chosen)
        found, spent, done = dict(reduced.decided), 0, True
        for rest in reduced.parts:
            own = {c: start[c] for c in rest.classes if c in start}
            plain = Formulation(self.problem, rest)
            with_flow = Formulation(self.problem, rest, [plain.dearest()]) if rest.component else plain
            solved = with_flow.solve(seconds, min(NODES, nodes_of(evaluations - spent) or NODES), own)
            spent += solved.work
            done &= solved.optimal
            found |= own if solved.values is None else with_flow.chosen(solved.values)
        self.size = max(SMALLEST, self.size * (GROWTH if done else CUT))
        return found, max(1, spent)
