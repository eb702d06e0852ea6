"""Saturation: fill an e-graph with every equivalent graph that the rules reach, and freeze it.

Each iteration lets egglog find all new matches; each match is put to its rule's guards, the right side is built,
and the two are united. Types are checked before uniting, so an ill-typed rule is refused by name instead of
spoiling the e-graph. Should a class come to contradict itself all the same, the rules that led there are found, and
the e-graph is built again without the guilty one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .almost import Almost
from .blame import Firing, suspects
from .engine import Engine, Query
from .freezing import freeze
from .graph import Conflict, Graph, TensorType, Type, meet
from .matching import Binder, Cells
from .nearness import Ledger, Off
from .operators import IllTyped, core_operators
from .report import RuleStatistics, SaturationReport
from .rules import rule_set
from .rules.language import HELPERS, Rule
from .space import SearchSpace
from .terms import ORIGINAL, TermGraph, constant, operator

NARROW = ("float16", "bfloat16")
CHAIN = "the links of a chain are brought together from the innermost on, one after the other"
OVERFLOW = "may overflow in a narrow dtype"

LEAST, ENODES = 50_000, 20
"""Size limit of the e-graph: at least so many e-nodes, and so many for each node of the graph."""
MATCHES = 10
"""Matches that are looked at, for each e-node of the limit: a rule that refuses all of a million must end as well."""


def saturate(
    graph: Graph,
    rules: Sequence[Rule] | None = None,
    *,
    max_enodes: int | None = None,
    max_iterations: int = 50,
    seconds: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    explain: bool = False,
    off: Sequence[Off] = (),
) -> SearchSpace:
    """The search space of all graphs that `rules` (default: every sound one) reach from `graph`.

    Stops when no rule finds anything new ("saturated"), or at a limit ("node limit", "match limit",
    "iteration limit", "time limit"); what was found by then is kept. `progress(iteration, terms)` is called once an
    iteration. Rules that make a class contradict itself are left out (`report.excluded`).

    max_enodes: size limit; 50,000, or 20 for each node of a large graph, unless given.
    explain: note in `report.misses` where rules almost fired. off: rules that are not to fire, each with the reason;
    with `explain` the places where they would are noted as well.
    """
    chosen = tuple(rule_set(writable=graph.writes) if rules is None else rules)
    if max_enodes is None:
        max_enodes = max(LEAST, ENODES * len(graph.nodes))
    limits = Limits(max_enodes, max_iterations, None if seconds is None else time.monotonic() + seconds, progress)
    start, excluded = time.monotonic(), dict[str, str]()
    while True:
        kept = [r for r in chosen if r.name not in excluded]
        saturation = Saturation(graph, kept, explain, tuple(off)).run(limits)
        contradiction = saturation.contradiction
        if contradiction is None:
            return saturation.space(time.monotonic() - start, excluded)
        named = saturation.suspects()
        alone = named if len(named) == 1 else [n for n in named if _sound_without(graph, kept, n, limits)]
        excluded |= dict.fromkeys(alone or named, contradiction)
        if not named:  # nothing fired, so it is the model itself that says two things of one value
            return saturation.space(time.monotonic() - start, {"": contradiction})


def _sound_without(graph: Graph, rules: Sequence[Rule], name: str, limits: Limits) -> bool:
    rest = [r for r in rules if r.name != name]
    return Saturation(graph, rest).run(limits).contradiction is None


def environment(terms: TermGraph) -> dict[str, Any]:
    """What the texts of rules may call: operators as functions on terms, and the helpers."""
    operators = {op: operator(terms, op) for op in core_operators() if op != "Get"}
    return {**HELPERS, **operators, "constant": lambda array, dtype: constant(terms, array, dtype)}


@dataclass(frozen=True)
class Limits:
    """When a saturation ends although there is more to find. `deadline` is a time of `time.monotonic`."""

    enodes: int
    iterations: int
    deadline: float | None
    progress: Callable[[int, int], None] | None

    @property
    def late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline


@dataclass
class Tally:
    """What one rule did so far."""

    matches: int = 0
    firings: int = 0
    known: int = 0
    unfit: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class Saturation:
    """One saturation: the terms, the engine, and what each rule did."""

    graph: Graph
    rules: Sequence[Rule]
    explain: bool = False
    off: tuple[Off, ...] = ()
    terms: TermGraph = field(default_factory=TermGraph)
    firings: list[Firing] = field(default_factory=list)
    """Every union that was made, and which rule made it."""
    stop: str = "iteration limit"
    iteration: int = 0

    def __post_init__(self) -> None:
        self.keys = self.terms.insert(self.graph)
        self.own = len(self.terms)
        off = [o.rule for o in self.off] if self.explain else []
        self.all: list[Rule] = [*self.rules, *off]
        self.names = environment(self.terms)
        self.binders: dict[str, Binder] = {}
        self.tallies: dict[int, Tally] = {}
        self.ledger = Ledger() if self.explain else None
        self.retired: set[int] = set()
        """Splits that a finer one has taken the place of. gone: those of earlier iterations."""
        self.gone: set[int] = set()
        self.uniform: dict[tuple[Type, float], int] = {}
        self.looked_at = 0

    def run(self, limits: Limits) -> Saturation:
        """Search and fire until nothing is new, or a limit is reached, or a class contradicts itself."""
        self.engine = Engine(self.terms, self.all)
        try:
            self.flush()
            looked = 0
            while self.iteration < limits.iterations and self.stop == "iteration limit":
                self.iteration += 1
                before, unions, current = len(self.terms), len(self.firings), -1
                clock = time.perf_counter()
                for count, (query, cells) in enumerate(self.engine.search()):
                    if query.rule != current:
                        now = time.perf_counter()
                        if current >= 0:
                            self.tallies[current].seconds += now - clock
                        current, clock = query.rule, now
                        self.tallies.setdefault(current, Tally())
                    if len(self.terms) >= limits.enodes:
                        self.stop = "node limit"
                        break
                    looked += 1
                    if looked > MATCHES * limits.enodes:
                        self.stop = "match limit"
                        break
                    if count % 64 == 0 and limits.late:
                        self.stop = "time limit"
                        break
                    self.fire(query, cells)
                if current >= 0:
                    self.tallies[current].seconds += time.perf_counter() - clock
                self.flush()
                if limits.progress:
                    limits.progress(self.iteration, len(self.terms))
                if self.terms.conflicts:
                    self.stop = "contradiction"
                elif self.stop == "iteration limit" and len(self.terms) == before and len(self.firings) == unions:
                    self.stop = "saturated"
        finally:
            self.engine.close()
        return self

    def flush(self) -> None:
        """Let egglog know what is new, equal constants first: x + 0 has one form, not one for each way to make a 0."""
        for key in range(self.looked_at, len(self.terms)):
            number = self.terms.uniform[key]
            if number is not None and isinstance(self.terms.types[key], TensorType):
                first = self.uniform.setdefault((self.terms.types[key], number), key)
                if self.terms.find(first) != self.terms.find(key):
                    self.engine.union(first, key)
                    self.firings.append((None, first, key))
        self.looked_at = len(self.terms)
        self.engine.flush()
        self.retired = {self.terms.find(key) for key in self.retired}
        self.gone = set(self.retired)

    def fire(self, query: Query, cells: Cells) -> bool:
        """Apply one match; returns whether the e-graph learnt anything."""
        number, rule, terms = query.rule, self.all[query.rule], self.terms
        tally = self.tallies[number]
        tally.matches += 1
        binder = self.binders.get(query.relation)
        if binder is None:
            binder = self.binders[query.relation] = Binder(terms, rule, query)
        if binder.splits and self.retired.intersection(terms.find(cells[i]) for i in binder.splits):
            # but those that retire it, which all match at once
            if binder.superseded < 0 or terms.find(cells[binder.superseded]) in self.gone:
                tally.unfit += 1
                return False
        bound = binder.attributes(cells)
        if (
            bound is None
            or (not rule.folds and all(terms.const[terms.find(cells[i])] for _, i in binder.roots))
            or (rule.undoes and any(self.maker(terms.find(cells[i])) in rule.undoes for _, i in binder.roots))
        ):
            tally.unfit += 1
            return False
        if rule.tag == "range" and any(getattr(terms.types[terms.find(cells[i])], "dtype", "") in NARROW
                                       for _, i in binder.roots):  # fmt: skip
            return self.refuse(binder, cells, OVERFLOW, "tag")
        if binder.repeats(cells):
            tally.known += 1
            return False
        if binder.link(cells):
            return self.refuse(binder, cells, CHAIN, "growth")
        guard = binder.refusal(cells, bound)
        if guard is not None:
            return self.refuse(binder, cells, guard.reason, "guard" if guard.kind == "sound" else "growth")
        if number >= len(self.rules):
            turned = self.off[number - len(self.rules)]
            return self.refuse(binder, cells, turned.reason, turned.kind)
        before = len(terms)
        terms.maker = number
        try:
            names = binder.names(cells, bound)
            scope = {**self.names, **names}
            exec(rule.right, scope)  # the text is the rule author's, never the user's
            roots = [(names[r], scope[r]) for r, _ in binder.roots]
            for old, new in roots:
                meet(old.type, new.type)
        except (IllTyped, TypeError, Conflict) as error:
            terms.forget(before)  # what was built of the right side by then
            reason = "unknown extents"
            if isinstance(error, Conflict):
                reason = f"types differ: {error}"
            elif isinstance(error, IllTyped):
                reason = f"ill-typed: {error}"
            return self.refuse(binder, cells, reason, "guard")
        finally:
            terms.maker = ORIGINAL
        learnt = False
        for old, new in roots:
            if terms.find(old.key) != terms.find(new.key):
                self.engine.union(old.key, new.key)
                self.firings.append((number, old.key, new.key))
                learnt = True
        if learnt:
            tally.firings += 1
            if self.ledger is not None:
                self.ledger.fired(binder, cells)
        else:
            tally.known += 1
        binder.done(cells)
        if binder.superseded >= 0:
            key = terms.find(cells[binder.superseded])
            if terms.makers[key] != ORIGINAL:
                self.retired.add(key)
        return learnt

    def maker(self, key: int) -> str:
        """Name of the rule that made this term, empty for the input graph's."""
        made = self.terms.makers[key]
        return "" if made == ORIGINAL else self.all[made].name

    def refuse(self, binder: Binder, cells: Cells, reason: str, kind: Any) -> bool:
        refused = self.tallies[binder.query.rule].refused
        refused[reason] = refused.get(reason, 0) + 1
        if self.ledger is not None:
            self.ledger.refused(binder, cells, reason, kind)
        return False

    @property
    def contradiction(self) -> str | None:
        """The first thing that is said of a value and cannot be, or None."""
        return self.terms.conflicts[0][2] if self.terms.conflicts else None

    def suspects(self) -> list[str]:
        """The rules whose firings lead to the first contradiction."""
        pairs = [(a, b) for a, b, _ in self.terms.conflicts[:1]]
        return [self.rules[number].name for number in suspects(self.terms, self.firings, pairs)]

    def statistics(self) -> dict[str, RuleStatistics]:
        """What each rule did, in the order in which they are tried."""
        made = Counter(self.terms.makers[self.own :])
        return {
            self.rules[n].name: RuleStatistics(
                t.matches, t.firings, t.known, t.unfit, t.refused, made[n], t.seconds + self.engine.seconds.get(n, 0.0)
            )
            for n, t in sorted(self.tallies.items())
            if n < len(self.rules)
        }

    def space(self, seconds: float, excluded: Mapping[str, str]) -> SearchSpace:
        """The frozen search space with its report."""
        stop = "contradiction" if "" in excluded else self.stop
        report = SaturationReport(
            self.iteration, seconds, stop, self.statistics(), dict(excluded), terms=len(self.terms)
        )
        names = [r.name for r in self.rules]
        united = [(n, key) for n, _, key in self.firings if n is not None]
        space, index = freeze(self.graph, self.terms, self.keys, names, united, report)
        if self.ledger is None:
            return space
        misses = self.ledger.misses(self.terms, self.own, self.all, index)
        misses += Almost(self.terms, self.own, self.rules).misses(index)
        return replace(space, report=replace(report, misses=misses))
