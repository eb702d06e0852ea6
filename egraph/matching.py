"""From matches to verdicts: what a match binds, and what the rule's guards say of it, each question asked once.

A guard that asks only for types, constness and known values answers alike wherever those are alike: in a model of
70 equal layers it is evaluated for one of them. Which guards are so is found out by watching what they ask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from .extent import viewed
from .orders import demanded_constants
from .rules.language import Guard, Rule
from .terms import Term, TermGraph

if TYPE_CHECKING:
    from .engine import Query

Cells = tuple[int, ...]
"""One match of a query: for each column the key of a term, or the number of a set of attributes."""

LOCAL = frozenset(
    (
        "type", "shape", "rank", "last", "elements", "dtype", "const", "uniform", "all_equal", "near", "fits",
        "broadcasts_along",
    )
)  # fmt: skip
"""What a guard may ask of a term that the term's type, constness and uniform value decide."""


class Watched:
    """A term that notes whether it was asked for more than `LOCAL`."""

    __slots__ = ("_term", "_watch")

    def __init__(self, term: Term, watch: list[bool]) -> None:
        self._term = term
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        if name not in LOCAL:
            self._watch[0] = True
        return getattr(self._term, name)

    def __getitem__(self, index: int) -> Any:
        self._watch[0] = True
        return self._term[index]

    def __eq__(self, other: object) -> bool:
        self._watch[0] = True
        return self._term == (other._term if isinstance(other, Watched) else other)

    def __hash__(self) -> int:
        self._watch[0] = True
        return hash(self._term)


_UNSEEN: Any = object()
_ASK: Any = object()
"""The guards ask for more than types: they are asked anew for every match."""


def picked(columns: Sequence[int]) -> Callable[[Cells], Cells]:
    """The function that takes these columns out of a match."""
    if len(columns) < 2:
        return lambda cells: tuple([cells[i] for i in columns])
    return itemgetter(*columns)


@dataclass
class Binder:
    """Reads the matches of one query of a rule."""

    terms: TermGraph
    rule: Rule
    query: Query
    _bound: dict[Cells, dict[str, Any] | None] = field(default_factory=dict)
    _done: set[Cells] = field(default_factory=set)
    _verdicts: dict[tuple[Cells, Cells], Guard | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns = self.query.columns
        self.attribute_cells = [i for i, c in enumerate(columns) if c.kind == "attributes"]
        self.term_cells = [i for i, c in enumerate(columns) if c.kind == "term"]
        self.kinds = [c.kind == "term" for c in columns]
        at = {c.name: i for i, c in enumerate(columns)}
        self.roots = [(r, at[r]) for r in self.rule.roots]
        self.results = [
            (at[p.result], p.op) for root in sorted(self.rule.patterns, key=lambda r: r.result not in self.rule.roots)
            for p in root.walk() if p.op != "Get"
        ]  # fmt: skip
        """The cell of each operator of the pattern, those that the rule gives an equal to first."""
        self.splits = [cell for cell, op in self.results if op == "Split" and not self.rule.coarse]
        self.superseded = at[self.rule.supersedes] if self.rule.supersedes else -1
        self.patterns = [
            (p, at[f"a_{p.whole}" if p.whole else f"a_{p.result}"])
            for root in self.rule.patterns
            for p in root.walk()
            if not (p.op == "Get" and p.fixed)
        ]

        used = self.rule.used
        self.inputs = [
            i for i, c in enumerate(columns)
            if (c.kind == "term" and (c.name in used or c.name in self.rule.roots))
            or any(i == cell and (p.whole in used or any(n in used for _, n in p.named)) for p, cell in self.patterns)
        ]  # fmt: skip
        self._input = picked(self.inputs)
        """The cells that the right side depends on, and what it is to equal."""
        asked = self.rule.asked
        self._fit = picked(self.attribute_cells)
        self._asked = picked([
            i for i in self.attribute_cells
            if any(i == cell and (p.whole in asked or any(n in asked for _, n in p.named)) for p, cell in self.patterns)
        ])  # fmt: skip
        self._facts = [i for i in self.term_cells if columns[i].name in asked]
        self.chain: tuple[list[int], int, str, list[int]] | None = None
        """Of rules on chains: the cells that may be no link, the cell of a link's attributes, its operator, and which
        of its operands are constant."""
        for p, cell in self.patterns:
            own = [o.lstrip("*") if isinstance(o, str) else "" for o in p.operands]
            if self.rule.innermost and self.rule.innermost in own:
                at_name = [i for i, c in enumerate(columns) if c.name == self.rule.innermost]
                last = demanded_constants(self.rule)
                constant = [i for i, o in enumerate(p.operands) if o in last]
                # of several operands, only two are what this rule makes flat again
                self.chain = ([] if len(at_name) > 2 else at_name), cell, p.op, constant

    def link(self, cells: Cells) -> bool:
        """Whether the match is the outer part of a chain whose inner part is brought together first."""
        if self.chain is None:
            return False
        inner, attributes, op, constant = self.chain
        terms = self.terms
        for i in inner:
            root = terms.find(cells[i])
            if terms.ops[root] == op and terms.attribute_ids[root] == cells[attributes]:
                kids = terms.operands[root]
                if all(terms.const[terms.find(kids[k])] for k in constant):
                    return True
        return False

    def repeats(self, cells: Cells) -> bool:
        """Whether the rule fired for the same right side and roots before: another way to the same match."""
        return self._input(cells) in self._done

    def done(self, cells: Cells) -> None:
        """Note that the rule fired here, or that there was nothing to learn."""
        find = self.terms.find
        self._done.add(self._input(cells))
        self._done.add(self._input(tuple([find(c) if t else c for c, t in zip(cells, self.kinds, strict=True)])))

    def attributes(self, cells: Cells) -> dict[str, Any] | None:
        """The values of the rule's attribute names, or None where the attributes do not fit."""
        key = self._fit(cells)
        found = self._bound.get(key, _UNSEEN)
        if found is _UNSEEN:
            found = self._bound[key] = self._bind(cells)
        return found

    def _bind(self, cells: Cells) -> dict[str, Any] | None:
        names: dict[str, Any] = {}
        raw: dict[str, Any] = {}
        for p, i in self.patterns:
            attrs = dict(self.terms.attribute_table[cells[i]])
            if p.whole:
                names[p.whole] = {k: viewed(v) for k, v in attrs.items()}
            for attribute, name in p.named:
                if raw.setdefault(name, attrs[attribute]) != attrs[attribute]:
                    return None
                names[name] = viewed(attrs[attribute])
            if any(attrs[attribute] != value for attribute, value in p.fixed):
                return None
        return names

    def names(self, cells: Cells, bound: dict[str, Any], watch: list[bool] | None = None) -> dict[str, Any]:
        """Everything that the rule's texts may name: its terms and its attributes."""
        names: dict[str, Any] = {k: dict(v) if isinstance(v, dict) else v for k, v in bound.items()}
        for i in self.term_cells:
            column = self.query.columns[i]
            term: Any = Term(self.terms, cells[i])
            if watch is not None:
                term = Watched(term, watch)
            if column.item >= 0:
                several: list[Any] = names.setdefault(column.name, [])
                several.append(term)
            else:
                names[column.name] = term
        return names

    def refusal(self, cells: Cells, bound: dict[str, Any]) -> Guard | None:
        """The first guard that is false for this match, or None if all hold."""
        if not self.rule.where:
            return None
        facts = self.terms.facts
        key = (self._asked(cells), tuple([facts(cells[i]) for i in self._facts]))
        found = self._verdicts.get(key, _UNSEEN)
        if found is _ASK:
            return self.rule.refusal(self.names(cells, bound))
        if found is _UNSEEN:
            watch = [False]
            found = self.rule.refusal(self.names(cells, bound, watch))
            self._verdicts[key] = _ASK if watch[0] else found
            if watch[0]:  # asked again of the terms themselves: what stands in for them is not to take part
                found = self.rule.refusal(self.names(cells, bound))
        return found
