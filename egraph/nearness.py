"""Near misses: where a rule almost fired, and what stood in its way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from .rules.language import Rule
from .terms import TermGraph

if TYPE_CHECKING:
    from .matching import Binder, Cells

Kind = Literal["guard", "tag", "off", "structure", "fired", "growth"]

SITES = 4096
"""Places that are noted for one rule and reason."""


@dataclass(frozen=True)
class Miss:
    """Places where one rule did not fire, for one reason.

    kind: "guard" (a condition of soundness is not met), "tag" (exact over the reals, but not safe in this dtype),
    "off" (the rule is not among those that may fire: approximate, or it makes an operator that the model's opset or the
    target lacks), "structure" (one operator of the pattern is another one), "growth" (refused to keep the e-graph
    small), "fired" (it did fire; whether it is in the result, the search space cannot know).
    sites: for each place, the classes of the operators that the rule would have replaced, results first.
    """

    rule: str
    kind: Kind
    reason: str
    sites: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Off:
    """A rule that is not to fire, and why."""

    rule: Rule
    reason: str
    kind: Kind = "off"


@dataclass
class Ledger:
    """Notes each refusal and each firing with its place."""

    entries: dict[tuple[int, Kind, str], dict[tuple[tuple[int, str], ...], None]] = field(default_factory=dict)
    """(rule, kind, reason) → places, each a key and an operator for each pattern."""

    def refused(self, binder: Binder, cells: Cells, reason: str, kind: Kind) -> None:
        if len(binder.results) < 2 and kind in ("guard", "growth"):
            return  # one operator of a kind is no pattern that almost matched
        places = self.entries.setdefault((binder.query.rule, kind, reason), {})
        if len(places) < SITES:
            places.setdefault(tuple((cells[i], op) for i, op in binder.results))

    def fired(self, binder: Binder, cells: Cells) -> None:
        self.refused(binder, cells, "", "fired")

    def misses(self, terms: TermGraph, own: int, rules: Sequence[Rule], index: Mapping[int, int]) -> tuple[Miss, ...]:
        """What was noted and concerns operators of the input graph, the terms up to `own`, and not what rules made.

        index: the number of each class by its smallest key.
        """
        original: dict[int, set[str]] = {}
        for key in range(own):
            original.setdefault(terms.find(key), set()).add(terms.ops[key])
        done: dict[int, set[int]] = {}
        found: list[Miss] = []
        entries = sorted(self.entries.items(), key=lambda e: (e[0][0], e[0][1] != "fired", e[0][1:]))
        for (number, kind, reason), places in entries:
            sites: dict[tuple[int, ...], None] = {}
            for place in places:
                keys = [terms.find(k) for k, _ in place]
                if any(op not in original.get(k, ()) for k, (_, op) in zip(keys, place, strict=True)):
                    continue
                if kind == "fired":
                    done.setdefault(number, set()).add(keys[0])
                elif keys[0] in done.get(number, ()):
                    continue  # in another order of its operands, say, it did fire here
                if all(k in index for k in keys):
                    sites.setdefault(tuple(index[k] for k in keys))
            if sites:
                found.append(Miss(rules[number].name, kind, reason, tuple(sites)))
        return tuple(found)
