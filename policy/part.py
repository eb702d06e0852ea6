"""A part of an extraction problem, which can be solved by itself, and what its classes cannot do without."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class Part:
    """A part of a problem that can be solved by itself.

    classes: those whose e-node is to be chosen. options: the e-nodes of each. kids: what each e-node needs, as far as
    that is in question. forced: the classes that must be there. given: how many of them were known to be when the part
    was made. component: the strongly connected component of each class that lies on a cycle, and how many classes that
    has. needs: what each class cannot be had without, itself included, as bits by the places in `classes`.
    """

    classes: list[int]
    options: dict[int, list[int]]
    kids: dict[int, tuple[int, ...]]
    forced: set[int]
    component: dict[int, int]
    sizes: dict[int, int]
    needs: dict[int, int] = field(default_factory=dict)
    place: dict[int, int] = field(default_factory=dict)
    given: int = 0

    def __post_init__(self) -> None:
        self.place = {c: n for n, c in enumerate(self.classes)}
        self.given = len(self.forced)

    @property
    def enodes(self) -> int:
        """How many e-nodes there are to choose from."""
        return sum(len(self.options[c]) for c in self.classes)

    def below(self, i: int) -> int:
        """What e-node `i` cannot be had without, as bits."""
        found = 0
        for k in self.kids[i]:
            found |= self.needs[k]
        return found

    def has(self, found: int, classes: Iterable[int]) -> bool:
        """Whether these bits have all of the classes."""
        return all(found >> self.place[k] & 1 for k in classes)

    def members(self, found: int) -> Iterator[int]:
        """The classes of these bits."""
        while found:
            low = found & -found
            yield self.classes[low.bit_length() - 1]
            found ^= low

    def together(self, c: int, k: int) -> bool:
        """Whether the two classes lie on a cycle."""
        return c in self.component and self.component[c] == self.component.get(k, -1)

    def signature(self, price: Sequence[float]) -> tuple[object, ...]:
        """Equal for parts that are the same but for the numbers of their classes and e-nodes, at these prices."""
        place = self.place
        return tuple(
            (c in self.forced, *((price[i], tuple(place[k] for k in self.kids[i])) for i in self.options[c]))
            for c in self.classes
        )

    def renamed(self, chosen: Mapping[int, int], there: Part) -> dict[int, int]:
        """The e-nodes of `there`, a part like this one, that correspond to those chosen in this one."""
        return {
            d: there.options[d][self.options[c].index(chosen[c])]
            for c, d in zip(self.classes, there.classes, strict=True)
            if c in chosen and chosen[c] in self.options[c]
        }

    def live(self, chosen: Mapping[int, int]) -> set[int]:
        """The classes that a program has which takes these e-nodes."""
        found: set[int] = set()
        stack = list(self.forced)
        while stack:
            c = stack.pop()
            if c not in found:
                found.add(c)
                stack.extend(self.kids[chosen[c]])
        return found

    def program(self, chosen: Mapping[int, int]) -> dict[int, int] | None:
        """What of these e-nodes a program has; None if they are too few, or need each other."""
        found: dict[int, int] = {}
        state: dict[int, bool] = {}  # of classes met: whether all below was met
        stack = [(f, False) for f in self.classes if f in self.forced]
        while stack:
            c, back = stack.pop()
            if back:
                state[c] = True
            elif c not in state:
                if c not in chosen:
                    return None
                state[c], found[c] = False, chosen[c]
                stack.append((c, True))
                stack.extend((k, False) for k in self.kids[chosen[c]])
            elif not state[c]:
                return None
        return found

    def tops(self) -> list[int]:
        """The forced classes that no other forced one needs."""
        covered = 0
        for f in self.forced:
            covered |= self.needs[f] & ~(1 << self.place[f])
        return [f for f in self.classes if f in self.forced and not covered >> self.place[f] & 1]


def alike(parts: Sequence[Part], price: Sequence[float]) -> list[list[int]]:
    """The places of these parts, in groups of those that are the same but for their names."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for n, part in enumerate(parts):
        groups.setdefault(part.signature(price), []).append(n)
    return list(groups.values())


def dominators(part: Part) -> None:
    """Work out what each class of a part cannot be had without, and which of these are forced.

    The greatest fixpoint: an unfounded derivation is one that needs everything, so that cycles prove nothing.
    """
    everything = (1 << len(part.classes)) - 1
    needs = part.needs = dict.fromkeys(part.classes, everything)
    readers: dict[int, list[int]] = {c: [] for c in part.classes}
    for c in part.classes:
        for i in part.options[c]:
            for k in part.kids[i]:
                readers[k].append(c)
    order = _founded(part)
    stale = dict.fromkeys(part.classes, True)
    while any(stale.values()):
        for c in order:
            if stale[c]:
                stale[c] = False
                found = everything
                for i in part.options[c]:
                    found &= part.below(i)
                found |= 1 << part.place[c]
                if found != needs[c]:
                    needs[c] = found
                    for r in readers[c]:
                        stale[r] = True
    forced = 0
    for f in part.forced:
        forced |= needs[f]
    part.forced = set(part.members(forced))


def _founded(part: Part) -> list[int]:
    """All classes, each after those by which it can be derived first; those that cannot be derived come last."""
    readers: dict[int, list[tuple[int, int]]] = {c: [] for c in part.classes}
    missing: dict[int, int] = {}
    order: dict[int, None] = {}
    for c in part.classes:
        for i in part.options[c]:
            missing[i] = len(part.kids[i])
            if not missing[i]:
                order[c] = None
            for k in part.kids[i]:
                readers[k].append((i, c))
    queue = list(order)
    for k in queue:  # grows while it is gone through
        for i, c in readers[k]:
            missing[i] -= 1
            if not missing[i] and c not in order:
                order[c] = None
                queue.append(c)
    return list(dict.fromkeys([*queue, *part.classes]))
