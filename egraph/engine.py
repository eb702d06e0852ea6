"""egglog as the engine: it holds the terms, finds the matches of every rule and closes equality under congruence.

Python decides what a match leads to (guards and right sides need shapes, attributes and constants), so the traffic
goes in bulk both ways: new terms and unions enter as relations read from files (for 10,000 terms 0.05 s, against
2 s for one command a term), and matches come back as relations over keys. `(Ref k)` names the class of key k.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import egglog.bindings as eg

from .graph import attributes
from .rules.language import Pattern, Rule
from .terms import TermGraph

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
    text: str
    operators: tuple[tuple[str, int], ...]


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
        self.arities: set[int] = set()
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

    def run(self, *texts: str) -> None:
        for text in texts:
            self.graph.run_program(*self.graph.parse_program(text))

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
        return self._learn()

    def _learn(self) -> int:
        """Take over the classes that congruence merged."""
        merged = 0
        smallest: dict[Any, int] = {}
        for row in self.graph.freeze().functions["Ref"].rows:
            key = self.graph.value_to_i64(row.inputs[0])
            other = smallest.setdefault(row.output, key)
            if self.terms.find(other) != self.terms.find(key):
                self.terms.merge(other, key)
                merged += 1
            smallest[row.output] = min(other, key)
        self.values = smallest
        return merged

    def search(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """New matches as (rule number, column name → key(s) or attributes), in an order that depends on keys only."""
        self._compile()
        self.run("(run match 1)")
        functions = self.graph.freeze().functions
        found: list[tuple[int, tuple[int, ...], Query]] = []
        for query in self.queries:
            for row in functions[query.relation].rows:
                cells = tuple(
                    self.terms.find(self.values[v]) if c.kind == "term" else self.graph.value_to_i64(v)
                    for v, c in zip(row.inputs, query.columns, strict=True)
                )
                found.append((query.rule, cells, query))
        self.run("(run forget 1)")
        found.sort(key=lambda m: m[:2])
        for rule, cells, query in found:
            match: dict[str, Any] = {}
            for cell, column in zip(cells, query.columns, strict=True):
                if column.item >= 0:
                    match.setdefault(column.name, []).append(cell)
                else:
                    match[column.name] = cell
            yield rule, match

    def _compile(self) -> None:
        """Compile the rules whose operators are declared by now, for every number of starred operands that occurs."""
        arities = sorted({*STAR_ARITIES, *(n for op, n in self.declared if op == "Concat" and n <= 16)})
        known = {q.relation for q in self.queries}
        for number, rule in enumerate(self.rules):
            for arity in arities if rule.starred else [0]:
                relation = f"m{number}_{arity}"
                if relation in known:
                    continue
                query = self._query(number, rule, arity, relation)
                if any(o not in self.declared for o in query.operators):
                    continue  # no such operator in the e-graph yet, so nothing to find
                kinds = " ".join("T" if c.kind == "term" else "i64" for c in query.columns)
                names = " ".join(f"c{i}" for i in range(len(query.columns)))
                self.run(
                    f"(relation {relation} ({kinds}))",
                    query.text,
                    f"(rule (({relation} {names})) ((delete ({relation} {names}))) :ruleset forget)",
                )
                self.queries.append(query)

    def _query(self, number: int, rule: Rule, arity: int, relation: str) -> Query:
        atoms: list[str] = []
        columns: dict[str, Column] = {}
        operators: list[tuple[str, int]] = []

        def visit(p: Pattern) -> str:
            operands: list[str] = []
            for operand in p.operands:
                if isinstance(operand, Pattern):
                    operands.append(visit(operand))
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
            operators.append((p.op, len(operands)))
            atoms.append(f"(= {result} ({p.op}_{len(operands)} {attribute} {' '.join(operands)}))")
            return result

        for pattern in rule.patterns:
            visit(pattern)
        text = f"(rule ({' '.join(atoms)}) (({relation} {' '.join(columns)})) :ruleset match)"
        return Query(number, relation, tuple(columns.values()), text, tuple(operators))
