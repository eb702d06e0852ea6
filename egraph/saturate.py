"""Saturation: fill an e-graph with every equivalent graph that the rules reach, and freeze it.

Each iteration lets egglog find all new matches; each match is put to its rule's guards, the right side is built,
and the two are united. Types are checked before uniting, so an ill-typed rule is refused by name instead of
spoiling the e-graph.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .engine import Engine
from .extent import viewed
from .graph import LEAVES, Conflict, Graph, TensorType, Type, meet
from .operators import IllTyped, core_operators
from .rules import rule_set
from .rules.language import HELPERS, Rule
from .space import SaturationReport, SearchSpace, Selection
from .terms import ORIGINAL, Term, TermGraph, constant, operator

NARROW = ("float16", "bfloat16")

MATCHES = 10
"""Matches that are looked at, for each e-node of the limit: a rule that refuses all of a million must end as well."""


def saturate(
    graph: Graph,
    rules: Sequence[Rule] | None = None,
    *,
    max_enodes: int = 50_000,
    max_iterations: int = 12,
    seconds: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SearchSpace:
    """The search space of all graphs that `rules` (default: every sound one) reach from `graph`.

    Stops when no rule finds anything new ("saturated"), or at a limit ("node limit", "match limit",
    "iteration limit", "time limit"); what was found by then is kept. `progress(iteration, terms)` is called once an
    iteration.
    """
    saturation = Saturation(graph, rule_set() if rules is None else rules)
    try:
        return saturation.run(max_enodes, max_iterations, seconds, progress)
    finally:
        saturation.engine.close()


def environment(terms: TermGraph) -> dict[str, Any]:
    """What the texts of rules may call: operators as functions on terms, and the helpers."""
    operators = {op: operator(terms, op) for op in core_operators() if op != "Get"}
    return {**HELPERS, **operators, "constant": lambda array, dtype: constant(terms, array, dtype)}


@dataclass
class Saturation:
    """One saturation: the terms, the engine, and what each rule did."""

    graph: Graph
    rules: Sequence[Rule]
    terms: TermGraph = field(default_factory=TermGraph)
    fired: dict[str, int] = field(default_factory=dict)
    refused: dict[str, dict[str, int]] = field(default_factory=dict)
    united: list[tuple[int, int]] = field(default_factory=list)
    """(rule, key of the right side's root) of every union."""

    def __post_init__(self) -> None:
        self.keys = self.terms.insert(self.graph)
        self.engine = Engine(self.terms, self.rules)
        self.names = environment(self.terms)
        self.seen: set[tuple[Any, ...]] = set()
        self.uniform: dict[tuple[Type, float], int] = {}
        self.looked_at = 0

    def run(
        self,
        max_enodes: int,
        max_iterations: int,
        seconds: float | None,
        progress: Callable[[int, int], None] | None = None,
    ) -> SearchSpace:
        start = time.monotonic()
        self.flush()
        stop, iteration, looked = "iteration limit", 0, 0
        while iteration < max_iterations:
            iteration += 1
            before, unions = len(self.terms), len(self.united)
            for count, (rule, match) in enumerate(self.engine.search()):
                if len(self.terms) >= max_enodes:
                    stop = "node limit"
                    break
                looked += 1
                if looked > MATCHES * max_enodes:
                    stop = "match limit"
                    break
                if seconds is not None and count % 64 == 0 and time.monotonic() - start > seconds:
                    stop = "time limit"
                    break
                self.fire(rule, match)
            self.flush()
            if progress:
                progress(iteration, len(self.terms))
            if stop != "iteration limit":
                break
            if len(self.terms) == before and len(self.united) == unions:
                stop = "saturated"
                break
        for conflict in self.terms.conflicts:
            self.refused.setdefault("congruence", {}).setdefault(conflict, 1)
        report = SaturationReport(iteration, time.monotonic() - start, stop, dict(self.fired), dict(self.refused))
        return self.freeze(report)

    def flush(self) -> None:
        """Let egglog know what is new, equal constants first: x + 0 has one form, not one for each way to make a 0."""
        for key in range(self.looked_at, len(self.terms)):
            number = self.terms.uniform[key]
            if number is not None and isinstance(self.terms.types[key], TensorType):
                first = self.uniform.setdefault((self.terms.types[key], number), key)
                if self.terms.find(first) != self.terms.find(key):
                    self.engine.union(first, key)
        self.looked_at = len(self.terms)
        self.engine.flush()

    def bind(self, rule: Rule, match: dict[str, Any]) -> dict[str, Any] | None:
        """The rule's names for a match, or None where its attributes do not fit."""
        names: dict[str, Any] = {}
        raw: dict[str, Any] = {}
        for name, key in match.items():
            if name.startswith("a_"):
                continue
            names[name] = [Term(self.terms, k) for k in key] if isinstance(key, list) else Term(self.terms, key)
        for root in rule.patterns:
            for p in root.walk():
                if p.op == "Get" and p.fixed:
                    continue
                attrs = dict(self.terms.attribute_table[match[f"a_{p.whole}" if p.whole else f"a_{p.result}"]])
                if p.whole:
                    names[p.whole] = {k: viewed(v) for k, v in attrs.items()}
                for attribute, name in p.named:
                    if raw.setdefault(name, attrs[attribute]) != attrs[attribute]:
                        return None
                    names[name] = viewed(attrs[attribute])
                if any(attrs[attribute] != value for attribute, value in p.fixed):
                    return None
        return names

    def fire(self, number: int, match: dict[str, Any]) -> bool:
        """Apply one match; returns whether the e-graph learnt anything."""
        rule = self.rules[number]
        signature = (number, *((k, tuple(v) if isinstance(v, list) else v) for k, v in match.items()))
        if signature in self.seen:
            return False
        self.seen.add(signature)
        names = self.bind(rule, match)
        if names is None:
            return False
        roots = {r: names[r] for r in rule.roots}
        if not rule.folds and all(t.const for t in roots.values()):
            return False
        if rule.tag == "range" and any(t.dtype in NARROW for t in roots.values()):
            return self.refuse(rule, "may overflow in a narrow dtype")
        guard = rule.refusal(names)
        if guard is not None:
            return self.refuse(rule, guard.reason)
        self.terms.maker = number
        try:
            scope = {**self.names, **names}
            exec(rule.right, scope)  # the text is the rule author's, never the user's
        except (IllTyped, TypeError) as error:
            return self.refuse(rule, f"ill-typed: {error}" if isinstance(error, IllTyped) else "unknown extents")
        finally:
            self.terms.maker = ORIGINAL
        learnt = False
        for root, old in roots.items():
            try:
                meet(old.type, scope[root].type)
            except Conflict as conflict:
                return self.refuse(rule, f"types differ: {conflict}")
        for root, old in roots.items():
            new = scope[root]
            if self.terms.find(old.key) != self.terms.find(new.key):
                self.engine.union(old.key, new.key)
                self.united.append((number, new.key))
                learnt = True
        if learnt:
            self.fired[rule.name] = self.fired.get(rule.name, 0) + 1
        return learnt

    def refuse(self, rule: Rule, reason: str) -> bool:
        reasons = self.refused.setdefault(rule.name, {})
        reasons[reason] = reasons.get(reason, 0) + 1
        return False

    def freeze(self, report: SaturationReport) -> SearchSpace:
        """The flat arrays of everything that the graph's outputs can reach."""
        terms, find = self.terms, self.terms.find
        makers: dict[int, list[str]] = {}
        for number, key in self.united:
            makers.setdefault(key, []).append(self.rules[number].name)
        # e-node (class, operator, attributes, operand classes) → smallest key, whether original, rules
        Signature = tuple[int, str, int, tuple[int, ...]]
        enodes: dict[Signature, tuple[int, bool, dict[str, None]]] = {}
        signature_of: list[Signature] = []
        for key in range(len(terms)):
            kids = tuple(find(k) for k in terms.operands[key])
            signature = (find(key), terms.ops[key], terms.attribute_ids[key], kids)
            signature_of.append(signature)
            first, original, rules = enodes.get(signature, (key, False, {}))
            if terms.makers[key] == ORIGINAL:
                original = True
            else:
                rules.setdefault(self.rules[terms.makers[key]].name)
            for name in makers.get(key, ()):
                rules.setdefault(name)
            enodes[signature] = (first, original, rules)
        baseline = [signature_of[self.keys[i]] for i in self.graph.live]
        by_class: dict[int, list[Signature]] = {}
        for signature in enodes:  # in the order of smallest keys
            by_class.setdefault(signature[0], []).append(signature)
        keep = set(baseline)
        for c, members in by_class.items():
            if terms.const[c]:  # constants are folded: one acyclic way to compute each is enough
                members[:] = members[:1]
            else:  # an e-node that needs its own class can never be selected
                members[:] = [s for s in members if c not in s[3] or s in keep]
        live = {s[0] for s in baseline if not terms.const[s[0]]} | {find(self.keys[o]) for o in self.graph.outputs}
        stack = sorted(live)
        while stack:
            for signature in by_class[stack.pop()]:
                for k in signature[3]:
                    if k not in live:
                        live.add(k)
                        stack.append(k)
        classes = sorted(live)
        index = {c: i for i, c in enumerate(classes)}
        listed = [s for c in classes for s in by_class[c]]
        position = {s: i for i, s in enumerate(listed)}
        children = [[index[k] for k in s[3]] for s in listed]
        names: list[tuple[str, ...]] = [()] * len(classes)
        for key, node in zip(self.keys, self.graph.nodes, strict=True):
            c = find(key)
            if c in index and node.names and not names[index[c]]:
                names[index[c]] = node.names
        choice = np.full(len(classes), -1, dtype=np.int32)
        for c in classes:
            # the smallest key's operands have smaller keys still, so this choice is acyclic
            own = [s for s in by_class[c] if enodes[s][1]] or by_class[c]
            choice[index[c]] = position[min(own, key=lambda s: enodes[s][0])]
        space = SearchSpace(
            ops=tuple(s[1] for s in listed),
            attributes=tuple(terms.attribute_table[s[2]] for s in listed),
            node_class=np.array([index[s[0]] for s in listed], dtype=np.int32),
            child_ptr=np.cumsum([0, *map(len, children)], dtype=np.int32),
            children=np.array([k for kids in children for k in kids], dtype=np.int32),
            types=tuple(terms.types[c] for c in classes),
            const=np.array([terms.const[c] for c in classes], dtype=bool),
            roots=np.array([index[find(self.keys[o])] for o in self.graph.outputs], dtype=np.int32),
            rules=tuple(tuple(enodes[s][2]) if not enodes[s][1] or enodes[s][2] else () for s in listed),
            names=tuple(names),
            original=Selection(choice),
            baseline=np.array(self._baseline(position, signature_of), dtype=np.int32),
            graph=replace(self.graph, weights=dict(terms.weights)),
            report=report,
        )
        return replace(space, original=space.selection(choice))

    def _baseline(self, position: dict[Any, int], signature_of: list[Any]) -> list[int]:
        """The e-nodes of the input graph's live operators, with repetition where rules made two of them one."""
        live = [self.keys[i] for i in self.graph.live if self.graph.nodes[i].op not in LEAVES]
        return [
            position[signature_of[k]]
            for k in live
            if signature_of[k] in position and not self.terms.const[self.terms.find(k)]
        ]
