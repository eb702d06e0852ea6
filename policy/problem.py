"""Extraction under a sum of prices, boiled down to what is left to choose.

What a search over single moves need not know, an exact one lives on: which classes every solution has, which e-nodes
none of the best has, and into which parts the choice falls that do not concern each other.

- *Constants* and other classes that can be had for nothing drop out.
- *Dominators* (Prosser 1959, here of an and-or graph with cycles): what every well-founded derivation of a class needs.
  What those of the outputs need is *forced*, and free for all who read it. An e-node that needs a class which cannot be
  had without the e-node's own can never be used.
- *Domination*: an e-node goes if another of its class is no dearer and needs nothing that is not there anyhow.
- *Decomposition*: classes are in one part if one reads the other, unless that is forced and on no cycle with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from .orbits import components
from .part import Part, dominators
from .tree import CAP, finite_prices, smallest_trees, tree_costs

if TYPE_CHECKING:
    from ..cost.base import Cost
    from ..egraph.space import SearchSpace, Selection


REDUCING = 5e-5
"""Seconds that a problem and its reduction take for each e-node, roughly: neither can be interrupted."""


class Problem:
    """The choice of e-nodes under `cost.prices`.

    price: ms of each e-node. kids: the classes that each e-node needs and that cost something. weights: the constants
    that it reads. options: the e-nodes of each class that can be used. roots: what must be there.
    weighted: whether the limit on weight bytes is part of the problem; else a solution may break it. per_byte: ms that
    an e-node costs more for each byte of weights that it reads.
    """

    def __init__(self, space: SearchSpace, cost: Cost, weighted: bool = False, per_byte: float = 0.0) -> None:
        self.space, self.weighted, self.per_byte = space, weighted, per_byte
        self.limit = cost.weight_limit
        const = space.const.tolist()
        self.home: list[int] = space.node_class.tolist()
        self.price = finite_prices(space, cost.prices)
        smallest, self.fixed = smallest_trees(space)
        none: tuple[int, ...] = ()
        self.weights = [none] * space.n_nodes
        if any(const):
            self.weights = [
                tuple(dict.fromkeys(k for k in kids if const[k])) if not const[c] else none
                for c, kids in zip(self.home, space.child_lists, strict=True)
            ]
        self.held = {c for c in space.roots.tolist() if const[c]}
        if per_byte:
            for i, read in enumerate(self.weights):
                self.price[i] += per_byte * sum(self.size(k) for k in read)
        usable = [
            not const[c] and p < CAP and c not in kids and all(smallest[k] >= 0 for k in kids)
            for c, kids, p in zip(self.home, space.child_lists, self.price, strict=True)
        ]
        # A class is free if it has a tree that costs nothing, and reads no weights where these count.
        paid = [
            (CAP if not ok else p + (1.0 if weighted and w else 0.0))
            for p, ok, w in zip(self.price, usable, self.weights, strict=True)
        ]
        tree, best = tree_costs(space, paid, space.const.tolist())
        self.tree = tree
        """Cost of the cheapest tree of each class, ms."""
        self.free = {c: best[c] for c, t in enumerate(tree) if t == 0 and not const[c]}
        """Classes that cost nothing, and the e-node by which they do."""
        costly = [t > 0 for t in tree]
        self.options = {
            c: [i for i in space.nodes_of(c) if usable[i]] for c in range(space.n_classes) if costly[c] and not const[c]
        }
        kids = space.child_lists
        self.kids = {
            i: tuple(dict.fromkeys(k for k in kids[i] if costly[k])) for own in self.options.values() for i in own
        }
        self.roots = [c for c in dict.fromkeys(space.roots.tolist()) if costly[c]]

    def size(self, c: int) -> float:
        """Bytes of constant `c`."""
        return float(self.space.types[c].bytes)

    def selection(self, chosen: Mapping[int, int]) -> Selection:
        """The program that these e-nodes, one for each class that costs something, make; `IllegalSelection` if none."""
        choice = list(self.fixed)
        for c, i in self.free.items():
            choice[c] = i
        for c, i in chosen.items():
            choice[c] = i
        return self.space.selection(choice)


class Reduction:
    """A problem without what need not be looked at.

    options: what is left of those given (by default the problem's). parts: what is to be decided. instead: for each
    e-node that another makes superfluous, that one. decided: what is forced and has no alternative; base: its ms.
    within: a part, to which all is confined. dominate: whether e-nodes go that another makes superfluous.
    """

    def __init__(
        self,
        problem: Problem,
        options: Mapping[int, Sequence[int]] | None = None,
        within: Part | None = None,
        dominate: bool = True,
    ) -> None:
        self.problem, self.dominate = problem, dominate
        given = problem.options if options is None else options
        self.options = {c: list(found) for c, found in given.items()}
        self.kids: Mapping[int, tuple[int, ...]] = problem.kids if within is None else within.kids
        self.roots = problem.roots if within is None else [c for c in within.classes if c in within.forced]
        self.instead: dict[int, int] = {}
        self.decided: dict[int, int] = {}
        self.forced: set[int] = set(self.roots)
        self.parts: list[Part] = []
        changed = True
        while changed:
            known, before = len(self.forced), {id(part) for part in self.parts}
            self.parts = self._split(self._reached())
            self.forced.update(*(part.forced for part in self.parts))
            removed = sum(self._filter(part) for part in self.parts if id(part) not in before)
            changed = removed > 0 or len(self.forced) > known
        for part in self.parts:
            if part.enodes == len(part.forced):  # nothing to choose
                self.decided |= {c: part.options[c][0] for c in part.classes}
        self.parts = [p for p in self.parts if p.classes[0] not in self.decided]
        self.base = sum(problem.price[i] for i in self.decided.values())

    def translated(self, chosen: Mapping[int, int]) -> dict[int, int]:
        """The e-nodes of a program, each replaced by what makes it superfluous."""
        found = {}
        for c in self.options:
            if c in chosen:
                i = chosen[c]
                while i in self.instead:
                    i = self.instead[i]
                found[c] = i
        return found

    def _reached(self) -> list[int]:
        """The classes that the roots can lead to, in the order met; others lose their e-nodes."""
        order, seen = list(self.roots), set(self.roots)
        for c in order:  # grows while it is gone through
            for i in self.options.get(c, ()):
                for k in self.kids[i]:
                    if k not in seen:
                        seen.add(k)
                        order.append(k)
        self.options = {c: self.options.get(c, []) for c in order}
        return order

    def _split(self, reached: list[int]) -> list[Part]:
        kids, options = self.kids, self.options
        number = {c: n for n, c in enumerate(reached)}
        below = [list(dict.fromkeys(number[k] for i in options[c] for k in kids[i])) for c in reached]
        ring = dict(zip(reached, components(len(reached), below), strict=True))
        forced = self.forced = forced_near(self.forced, options, kids)

        def matters(c: int, k: int) -> bool:
            return k not in forced or (ring[c] >= 0 and ring[c] == ring[k])

        parent = {c: c for c in reached}

        def find(c: int) -> int:
            while parent[c] != c:
                parent[c] = c = parent[parent[c]]
            return c

        for c, under in zip(reached, below, strict=True):
            for n in under:
                if matters(c, reached[n]):
                    parent[find(c)] = find(reached[n])
        groups: dict[int, list[int]] = {}
        sizes: dict[int, int] = {}
        for c in reached:
            groups.setdefault(0 if self.problem.weighted else find(c), []).append(c)  # a limit concerns all
            sizes[ring[c]] = sizes.get(ring[c], 0) + 1
        parts, before = [], {part.classes[0]: part for part in self.parts}
        for classes in groups.values():
            # Parts only fall apart, lose e-nodes and have more forced: the same numbers are the same part.
            was, enodes = before.get(classes[0]), sum([len(options[c]) for c in classes])
            given = forced.intersection(classes)
            if was is not None and (len(was.classes), was.enodes, was.given) == (len(classes), enodes, len(given)):
                parts.append(was)
                continue
            own = {i: tuple(k for k in kids[i] if matters(c, k)) for c in classes for i in options[c]}
            rings = {c: ring[c] for c in classes if ring[c] >= 0}
            part = Part(classes, {c: options[c] for c in classes}, own, given, rings, sizes)
            dominators(part)
            parts.append(part)
        return parts

    def _filter(self, part: Part) -> int:
        """Take out e-nodes that can never be used, or that another makes superfluous; how many."""
        price, weights = self.problem.price, self.problem.weights
        weighted = self.problem.weighted
        removed = 0
        for c in part.classes:
            mine = 1 << part.place[c]
            if len(self.options[c]) == 1:
                if part.below(self.options[c][0]) & mine:
                    self.options[c] = []
                    removed += 1
                continue
            below = {i: part.below(i) for i in self.options[c]}
            kept: list[int] = []
            # fewest operands first: only what needs no more than another does can make that superfluous
            for i in sorted(self.options[c], key=lambda i: (price[i], len(part.kids[i]), i)):
                if below[i] & mine:
                    continue
                for j in kept if self.dominate else ():
                    if part.has(below[i], part.kids[j]) and not (weighted and set(weights[j]) - set(weights[i])):
                        self.instead[i] = j
                        break
                else:
                    kept.append(i)
            removed += len(self.options[c]) - len(kept)
            self.options[c] = sorted(kept)
        return removed


def forced_near(
    roots: Iterable[int], options: Mapping[int, Sequence[int]], kids: Mapping[int, tuple[int, ...]]
) -> set[int]:
    """Classes that the roots cannot do without, as far as that shows from class to class."""
    forced = set(roots)
    work = list(forced)
    while work:
        own = options[work.pop()]
        common = set(kids[own[0]]) if own else set()
        for i in own[1:]:
            common.intersection_update(kids[i])
        work += common - forced
        forced |= common
    return forced
