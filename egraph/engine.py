"""egglog as the engine: it holds the terms, finds the matches of every rule and closes equality under congruence.

Python decides what a match leads to (guards and right sides need shapes, attributes and constants), so the traffic
goes in bulk both ways: new terms and unions enter as relations read from files (for 10,000 terms 0.05 s, against
2 s for one command a term), and matches come back as relations over keys. `(Ref k)` names the class of key k.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import egglog.bindings as eg

from .graph import attributes
from .orders import orders
from .rules.language import Pattern, Rule
from .terms import COMMUTATIVE, ORIGINAL, TermGraph

# Not PanicSpan: formatting an error with one panics and hides the message.
_SPAN = eg.EgglogSpan(eg.SrcFile(None, ""), 0, 0)
STAR_ARITIES = (2, 3, 4)
"""Numbers of operands for which `*xs` patterns are compiled even where the input graph has none such."""


@dataclass(frozen=True)
class Column:
    """One column of a match: a term under `name` (star patterns: element `item`), or the attributes of a pattern."""

    name: str
    kind: str  # "term" or "attributes"
    item: int = -1


@dataclass(frozen=True)
class Query:
    """One egglog rule that records the matches of a rewrite rule, for given numbers of starred operands."""

    rule: int
    relation: str
    columns: tuple[Column, ...]
    texts: tuple[str, ...]
    """One for each order of commutative operands; all fill the same relation."""


class Engine:
    """An egglog e-graph that mirrors a `TermGraph` and searches it for `rules`."""

    def __init__(self, terms: TermGraph, rules: Sequence[Rule]) -> None:
        self.terms = terms
        self.rules = rules
        self.graph = eg.EGraph()
        self.declared: dict[tuple[str, int], str] = {}
        self.sent = 0
        self.unions: list[tuple[int, int]] = []
        self.queries: list[Query] = []
        self.named: dict[str, Query] = {}
        self.seen: dict[str, set[tuple[int, ...]]] = {}
        self.seconds: dict[int, float] = {}
        """Time that egglog took to look for each rule's matches."""
        self.run(
            "(sort T)",
            "(constructor Ref (i64) T)",
            "(relation same (i64 i64))",
            "(ruleset insert)",
            "(ruleset match)",
            "(ruleset forget)",
            "(rule ((same a b)) ((union (Ref a) (Ref b))) :ruleset insert)",
        )

    def close(self) -> None:
        """Free the e-graph. egglog wants that done by the thread that made it, so it is not left to the collector."""
        del self.graph

    def run(self, *texts: str) -> list[Any]:
        """Run commands, each text by itself: long texts take egglog quadratic time. Returns the last one's results."""
        found: list[Any] = []
        for text in texts:
            found = self.graph.run_program(*self.graph.parse_program(text))
        return found

    def constructor(self, op: str, arity: int) -> str:
        """egglog's name of this operator with this many operands, declared on first use."""
        name = self.declared.get((op, arity))
        if name is None:
            name = f"{op}_{arity}" if op.isalnum() else f"Opaque{len(self.declared)}_{arity}"
            self.declared[op, arity] = name
            names = [f"x{i}" for i in range(arity)]
            self.run(
                f"(constructor {name} (i64 {' '.join(['T'] * arity)}) T)",
                f"(relation in_{name} (i64 i64 {' '.join(['i64'] * arity)}))",
                f"(rule ((in_{name} k a {' '.join(names)}))"
                f" ((union (Ref k) ({name} a {' '.join(f'(Ref {x})' for x in names)}))) :ruleset insert)",
            )
        return name

    def union(self, a: int, b: int) -> None:
        """Note that keys a and b are equal; egglog learns it with the next `flush`."""
        self.unions.append((a, b))
        self.terms.merge(a, b)

    def flush(self) -> int:
        """Send new terms and unions, let egglog close them under congruence; returns how many classes that merged."""
        terms, new = self.terms, range(self.sent, len(self.terms))
        files: dict[str, list[str]] = {}
        for key in new:
            name = self.constructor(terms.ops[key], len(terms.operands[key]))
            row = (key, terms.attribute_ids[key], *terms.operands[key])
            files.setdefault(f"in_{name}", []).append("\t".join(map(str, row)))
        files["same"] = [f"{a}\t{b}" for a, b in self.unions]
        with tempfile.TemporaryDirectory(prefix="xrlflow-") as folder:
            for relation, rows in files.items():
                path = Path(folder, relation)
                path.write_text("\n".join(rows) + "\n" if rows else "")
                if rows:
                    self.graph.run_program(eg.Input(_SPAN, relation, str(path)))
        self.sent, self.unions = len(self.terms), []
        self.run("(run-schedule (saturate (run insert)))")
        merged = self._learn()
        return merged + self.flush() if self._reordered() else merged

    def _reordered(self) -> bool:
        """Put commutative operands in order again, which mergers may have changed; tells whether any were not."""
        terms, before = self.terms, len(self.terms)
        for key in range(before):
            if terms.ops[key] in COMMUTATIVE:
                kids = terms.operands[key]
                if terms.ordered(kids) != tuple(map(terms.find, kids)):
                    terms.maker = terms.makers[key]
                    same = terms.add(terms.ops[key], terms.attribute_table[terms.attribute_ids[key]], kids)
                    if terms.find(same) != terms.find(key):
                        self.union(key, same)
        terms.maker = ORIGINAL
        return len(terms) > before or bool(self.unions)

    def _learn(self) -> int:
        """Take over the classes that congruence merged."""
        merged = 0
        smallest: dict[Any, int] = {}
        number, find, parent = self.graph.value_to_i64, self.terms.find, self.terms.parent
        for row in self.graph.freeze().functions["Ref"].rows:
            key, value = number(row.inputs[0]), row.output
            other = smallest.setdefault(value, key)
            if other == key:
                continue
            if parent[key] != other and find(other) != find(key):
                self.terms.merge(other, key)
                merged += 1
            if key < other:
                smallest[value] = key
        self.values = smallest
        return merged

    def search(self) -> list[tuple[Query, tuple[int, ...]]]:
        """Matches that were never seen: the query and, for each of its columns, a key or a number of attributes.

        They come in the order of rules, then keys. Keys are the smallest of their classes.
        """
        self._compile()
        for output in self.run("(run match 1)"):
            for name, spent in output.report.search_and_apply_time_per_rule.items():
                query = self.named.get(name)
                if query is not None:
                    self.seconds[query.rule] = self.seconds.get(query.rule, 0.0) + spent.total_seconds()
        functions, number, values = self.graph.freeze().functions, self.graph.value_to_i64, self.values
        found: list[tuple[int, tuple[int, ...], Query]] = []
        for query in self.queries:
            kinds, seen = [c.kind == "term" for c in query.columns], self.seen.setdefault(query.relation, set())
            for row in functions[query.relation].rows:
                cells = tuple([values[v] if t else number(v) for v, t in zip(row.inputs, kinds, strict=True)])
                if cells not in seen:
                    seen.add(cells)
                    found.append((query.rule, cells, query))
        self.run("(run forget 1)")
        found.sort(key=lambda m: m[:2])
        return [(query, cells) for _, cells, query in found]

    def _compile(self) -> None:
        """Compile the rules whose operators are declared by now, for every number of starred operands that occurs."""
        arities = sorted({*STAR_ARITIES, *(n for op, n in self.declared if op == "Concat" and n <= 16)})
        known = {q.relation for q in self.queries}
        for number, rule in enumerate(self.rules):
            for arity in arities if rule.starred else [0]:
                relation = f"m{number}_{arity}"
                if relation in known or not self._present(rule, arity):
                    continue
                query = self._query(number, rule, arity, relation)
                kinds = " ".join("T" if c.kind == "term" else "i64" for c in query.columns)
                names = " ".join(f"c{i}" for i in range(len(query.columns)))
                self.run(
                    f"(relation {relation} ({kinds}))",
                    *query.texts,
                    f"(rule (({relation} {names})) ((delete ({relation} {names}))) :ruleset forget)",
                )
                self.queries.append(query)
                self.named.update((f"{relation}_{i}", query) for i in range(len(query.texts)))

    def _present(self, rule: Rule, arity: int) -> bool:
        """Whether the e-graph has all operators of the left side; else there is nothing to find, and nothing to pay."""
        return all(
            (p.op, sum(arity if isinstance(o, str) and o.startswith("*") else 1 for o in p.operands)) in self.declared
            for root in rule.patterns
            for p in root.walk()
        )

    def _query(self, number: int, rule: Rule, arity: int, relation: str) -> Query:
        columns: dict[str, Column] = {}

        def visit(p: Pattern, atoms: list[str]) -> str:
            operands: list[str] = []
            for operand in p.operands:
                if isinstance(operand, Pattern):
                    operands.append(visit(operand, atoms))
                elif operand.startswith("*"):
                    for i in range(arity):
                        columns[f"v_{operand[1:]}_{i}"] = Column(operand[1:], "term", i)
                        operands.append(f"v_{operand[1:]}_{i}")
                else:
                    columns.setdefault(f"v_{operand}", Column(operand, "term"))
                    operands.append(f"v_{operand}")
            if p.op == "Get" and p.fixed:  # all attributes known: let egglog compare their number
                attribute = str(self.terms.attribute_id(attributes(**dict(p.fixed))))
            else:
                attribute = f"a_{p.whole}" if p.whole else f"a_{p.result}"
                columns.setdefault(attribute, Column(attribute, "attributes"))
            result = f"v_{p.result}"
            columns.setdefault(result, Column(p.result, "term"))
            atoms.append(f"(= {result} ({p.op}_{len(operands)} {attribute} {' '.join(operands)}))")
            return result

        bodies: list[list[str]] = []
        for patterns in orders(rule):
            bodies.append([])
            for pattern in patterns:
                visit(pattern, bodies[-1])
        head = f"({relation} {' '.join(columns)})"
        texts = tuple(
            f'(rule ({" ".join(body)}) ({head}) :ruleset match :name "{relation}_{i}")' for i, body in enumerate(bodies)
        )
        return Query(number, relation, tuple(columns.values()), texts)
