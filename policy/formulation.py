"""A part of an extraction problem as an integer program, for HiGHS.

Columns: x for each e-node (is it chosen), y for each class that need not be there (is it), t for each class on a cycle
(its place in an order, so that no class needs itself), and flows. Rows, beside those that define y and t:

- An e-node needs its operands; stronger, a class needs whatever *all* of its chosen e-nodes' derivations need: for each
  class c and class k, the sum of x over the e-nodes of c that cannot be had without k is at most y of k.
- *Flow*: from a forced class one unit flows down to leaves, at each class divided among its e-nodes, none of which may
  carry more than its x, and on to *one* operand of each e-node, fixed beforehand: the dearest. In a program the flow is
  a path, so this forbids nothing, but a fraction of a program cannot go round in circles any more, and pays for an
  operand in full if two halves of it arrive there by different ways. On e-graphs with cycles, and on deep ones, it
  closes most of the gap between the relaxation and the optimum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .part import Part
from .problem import Problem

if TYPE_CHECKING:
    import highspy

INFINITY = math.inf
TOPS = 3
"""From so many forced classes flows start, those of the dearest trees: each flow doubles the columns."""

SCALE = 1e4
"""Costs are scaled so that what is to be found costs about this much: HiGHS has absolute tolerances."""


PIVOTS = 50
"""Simplex iterations of a branch-and-bound node, roughly."""


def nodes_of(evaluations: float) -> int | None:
    """How many branch-and-bound nodes so many evaluations are, one at least; None if there is no limit."""
    return None if evaluations == float("inf") else max(1, int(evaluations / PIVOTS))


@dataclass
class Solved:
    """What HiGHS said. values: of the columns, None if there are none. cost, bound: ms. work: simplex iterations, one
    at least; each takes about as long as a move of climbing, and counts as an evaluation."""

    values: np.ndarray | None
    cost: float
    bound: float
    optimal: bool
    work: int


class Formulation:
    """The integer program of a part, or its relaxation.

    flows: for each flow, which operand of each e-node it goes on to. cycles: whether solutions of the integer program
    may not be cyclic; the relaxation does without these columns, which tell it nothing.
    """

    def __init__(
        self, problem: Problem, part: Part, flows: Sequence[Mapping[int, int]] = (), integer: bool = True
    ) -> None:
        self.problem, self.part, self.integer = problem, part, integer
        self.costs: list[float] = []
        self.upper: list[float] = []
        self._rows: list[tuple[float, float]] = []
        self._start, self._index, self._value = [0], list[int](), list[float]()
        self.x = {i: self._column(problem.price[i]) for c in part.classes for i in part.options[c]}
        self.y = {c: self._column() for c in part.classes if c not in part.forced}
        self.t = {c: self._column(upper=part.sizes[n] - 1.0) for c, n in part.component.items()} if integer else {}
        self.z: dict[int, int] = {}
        for c in part.classes:
            self._class(c)
        for c in self.t:
            self._order(c)
        if problem.weighted:
            self._limit()
        tops = sorted(part.tops(), key=lambda c: -problem.tree[c])[:TOPS]
        self.flows = [(top, onto, self._flow(top, onto)) for onto in flows for top in tops]

    def _column(self, cost: float = 0.0, upper: float = 1.0) -> int:
        self.costs.append(cost)
        self.upper.append(upper)
        return len(self.costs) - 1

    def _row(self, low: float, high: float, *terms: tuple[int, float]) -> None:
        self._rows.append((low, high))
        self._index.extend(j for j, _ in terms)
        self._value.extend(v for _, v in terms)
        self._start.append(len(self._index))

    def _class(self, c: int) -> None:
        part, x = self.part, self.x
        all_ = [(x[i], 1.0) for i in part.options[c]]
        if c in self.y:
            self._row(0.0, 0.0, *all_, (self.y[c], -1.0))
        else:
            self._row(1.0, 1.0, *all_)
        by: dict[int, int] = {}  # which e-nodes need each class, as bits
        for n, i in enumerate(part.options[c]):
            for k in part.members(part.below(i)):
                if k in self.y:
                    by[k] = by.get(k, 0) | 1 << n
        alike: dict[int, list[int]] = {}
        for k, who in by.items():
            alike.setdefault(who, []).append(k)
        for who, classes in alike.items():
            implied = 0
            for k in classes:
                implied |= part.needs[k] & ~(1 << part.place[k])
            own = [term for n, term in enumerate(all_) if who >> n & 1]
            for k in classes:
                if not implied >> part.place[k] & 1:
                    self._row(-INFINITY, 0.0, *own, (self.y[k], -1.0))

    def _order(self, c: int) -> None:
        """A class comes after those on a cycle with it that it needs (Miller, Tucker, Zemlin 1960)."""
        part, m = self.part, float(self.part.sizes[self.part.component[c]])
        by: dict[int, list[int]] = {}
        for i in part.options[c]:
            for k in part.kids[i]:
                if part.together(c, k):
                    by.setdefault(k, []).append(i)
        for k, own in by.items():
            self._row(1.0 - m, INFINITY, (self.t[c], 1.0), (self.t[k], -1.0), *((self.x[i], -m) for i in own))

    def _limit(self) -> None:
        """The weights that are read fit into the limit."""
        p = self.problem
        for i, column in self.x.items():
            for k in p.weights[i]:
                if k not in p.held and p.size(k) > 0:
                    if k not in self.z:
                        self.z[k] = self._column()
                    self._row(-INFINITY, 0.0, (column, 1.0), (self.z[k], -1.0))
        rest = p.limit - sum(p.size(k) for k in p.held)
        unit = max(1.0, rest)
        self._row(-INFINITY, rest / unit, *((column, p.size(k) / unit) for k, column in self.z.items()))

    def _flow(self, top: int, onto: Mapping[int, int]) -> dict[int, int]:
        part = self.part
        f = {i: self._column() for i in self.x}
        arriving: dict[int, list[int]] = {c: [] for c in part.classes}
        for i, k in onto.items():
            arriving[k].append(i)
        for i, column in f.items():
            self._row(-INFINITY, 0.0, (column, 1.0), (self.x[i], -1.0))
        for c in part.classes:
            terms = dict.fromkeys((f[i] for i in part.options[c]), 1.0)
            for i in arriving[c]:
                terms[f[i]] = terms.get(f[i], 0.0) - 1.0
            amount = 1.0 if c == top else 0.0
            self._row(amount, amount, *((j, v) for j, v in terms.items() if v))
        return f

    def dearest(self) -> dict[int, int]:
        """For each e-node its operand of the dearest tree."""
        tree = self.problem.tree
        kids = self.part.kids
        return {i: max(kids[i], key=lambda k: (tree[k], k)) for i in self.x if kids[i]}

    def start(self, chosen: Mapping[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Columns and values of the program that has these e-nodes: x and y, from which the others follow."""
        live = self.part.live(chosen)
        values = dict.fromkeys((*self.x.values(), *self.y.values()), 0.0)
        for c in live:
            values[self.x[chosen[c]]] = 1.0
            if c in self.y:
                values[self.y[c]] = 1.0
        return np.array(list(values), dtype=np.int32), np.array(list(values.values()))

    def chosen(self, values: Sequence[float] | np.ndarray) -> dict[int, int]:
        """The e-nodes of a solution, for each class that it has."""
        return {c: i for c in self.part.classes for i in self.part.options[c] if values[self.x[i]] > 0.5}

    def solve(
        self,
        seconds: float,
        nodes: int | None = None,
        start: Mapping[int, int] | None = None,
        better: Callable[[dict[int, int]], None] | None = None,
    ) -> Solved:
        """Solve it, from the program `start` if there is one, in so many seconds and branch-and-bound nodes.

        better: told of each program that is cheaper than those before.
        """
        import highspy

        scale = self._scale(start)
        h = _solver()
        options = {
            "output_flag": False, "threads": 1, "random_seed": 0, "time_limit": max(0.01, float(seconds)),
            "mip_rel_gap": 0.0, "mip_abs_gap": 1e-6,
        }  # fmt: skip
        if nodes is not None:
            options["mip_max_nodes"] = nodes
        for name, value in options.items():
            h.setOptionValue(name, value)
        h.passModel(self._model(scale))
        if start is not None and self.integer:
            columns, values = self.start(start)
            h.setSolution(len(columns), columns, values)
        if better is not None and self.integer:
            h.cbMipImprovingSolution.subscribe(lambda e: better(self.chosen(e.data_out.mip_solution)))
        h.run()
        info, optimal = h.getInfo(), h.getModelStatus() == highspy.HighsModelStatus.kOptimal
        work = max(1, int(info.simplex_iteration_count))
        if not self.integer:
            relaxed = np.asarray(h.getSolution().col_value) if optimal else None
            cost = info.objective_function_value / scale if optimal else INFINITY
            return Solved(relaxed, cost, cost if optimal else -INFINITY, optimal, work)
        bound = info.mip_dual_bound / scale
        if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
            return Solved(None, INFINITY, bound, optimal, work)
        found = np.asarray(h.getSolution().col_value)
        cost = float(np.dot(self.costs, found))
        if optimal and start is not None and cost > bound + 1e-6 * abs(bound):
            # Where presolving leaves nothing, HiGHS 1.16 gives back what it was started from as the solution.
            return self.solve(seconds, nodes, better=better)
        return Solved(found, cost, bound, optimal, work)

    def _scale(self, start: Mapping[int, int] | None) -> float:
        if all(c == int(c) for c in self.costs):
            return 1.0  # HiGHS uses that costs are whole numbers
        known = sum(self.problem.price[i] for i in start.values()) if start else sum(self.costs)
        return SCALE / known if known > 0 else 1.0

    def _model(self, scale: float) -> highspy.HighsLp:
        import highspy as h

        model = h.HighsLp()
        model.num_col_, model.num_row_ = len(self.costs), len(self._rows)
        model.col_cost_ = scale * np.array(self.costs)
        model.col_lower_, model.col_upper_ = np.zeros(len(self.costs)), np.array(self.upper)
        bounds = np.array(self._rows, dtype=float).reshape(-1, 2)
        model.row_lower_, model.row_upper_ = bounds[:, 0].copy(), bounds[:, 1].copy()
        model.a_matrix_.format_ = h.MatrixFormat.kRowwise
        model.a_matrix_.start_ = np.array(self._start, dtype=np.int32)
        model.a_matrix_.index_ = np.array(self._index, dtype=np.int32)
        model.a_matrix_.value_ = np.array(self._value)
        if self.integer:
            kinds = [h.HighsVarType.kInteger] * len(self.x)
            model.integrality_ = kinds + [h.HighsVarType.kContinuous] * (len(self.costs) - len(self.x))
        return model


def _solver() -> highspy.Highs:
    """A new solver. The first one of a process prints a banner to standard output, which is caught here."""
    import ctypes
    import os
    import sys

    import highspy

    if _banner_seen:
        return highspy.Highs()
    if sys.stdout is not None:
        sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # there is no standard output
        return highspy.Highs()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        made = highspy.Highs()
        ctypes.CDLL(None).fflush(None)  # what C has buffered goes where it was meant to go
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
    _banner_seen.append(True)
    return made


_banner_seen: list[bool] = []
