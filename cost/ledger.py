"""The kernels of one program and what they cost, kept up to date where the program changes.

Kernels never reach across a *seal*: the result of an operator that is needed outside, or by an operator that takes
nothing in (a product), or that can only end a kernel, or that two operators read whose results do not meet again before
a seal. So the program falls apart into small *pieces*, connected by what is not sealed, and `FuseOps` can be run on
each by itself: within a piece the post-dominators are those of the whole graph, and what lies behind a seal could not
be fused anyway. A change concerns the pieces that it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from .partition import partition
from .patterns import Kind, Primitive
from .units import Pricer, Units

FAR = 32
"""So many single readers are followed to see where they lead."""

REMEMBERED = 1 << 18
"""Pieces whose prices are remembered at once."""

Members = Sequence[tuple[int, int]]
"""The primitives of a kernel: (unit, number of the primitive), in an order in which they can run."""


class Piece(NamedTuple):
    """A connected part of the program: the values in it, those that are sealed, and what their kernels cost, in ms."""

    values: tuple[int, ...]
    sealed: frozenset[int]
    cost: float


class Seals(NamedTuple):
    """Which values are sealed, as far as it was asked for; `plain` leaves aside where readers lead."""

    plain: dict[int, bool]
    known: dict[int, bool]


class Fuser:
    """How the units of a space or graph fuse, and what kernels cost.

    price: milliseconds of a kernel. Pieces that were met before are remembered.
    """

    def __init__(self, units: Units, price: Callable[[Members], float]) -> None:
        self.units, self.price = units, price
        none: tuple[Primitive, ...] = ()
        self.found = [units.primitives(i) if on else none for i, on in enumerate(units.active)]
        self.edges = [self._edges(i) for i in range(len(units.ops))]
        """For each unit what it reads, and the largest pattern kind among the primitives that read it."""
        self.uses: list[list[tuple[int, int, int]]] = [[] for _ in units.types]
        """For each value the units that read it: what each gives, its number, and the largest kind that reads."""
        for i, edges in enumerate(self.edges):
            for k, kind in edges.items():
                self.uses[k].append((units.value[i], i, kind))
        self.ends = [not f or f[-1].kind in (Kind.REDUCTION, Kind.OPAQUE) for f in self.found]
        """Whether each unit can only end a kernel."""
        self.highest = [int(Kind.BROADCAST if f and f[-1].kind == Kind.FUSABLE else Kind.FUSABLE) for f in self.found]
        """The least kind of a reader that a kernel of each unit cannot take in."""
        self.pricers: tuple[Pricer, ...] = ()
        """What `price` asks, one for each measuring point, if it does."""
        self._pieces: dict[frozenset[int], float] = {}

    def forget(self) -> None:
        """Price pieces anew: kernels cost something else now."""
        self._pieces.clear()

    def _edges(self, i: int) -> dict[int, int]:
        edges: dict[int, int] = {}
        for p in self.found[i]:
            for r in p.reads:
                if r >= 0 and not self.units.constant[self.units.kids[i][r]]:
                    k = self.units.kids[i][r]
                    edges[k] = max(edges.get(k, 0), int(p.kind))
        return edges

    def cost(self, chosen: dict[int, int], sealed: dict[int, bool]) -> float:
        """Milliseconds of a piece: the unit of each of its values, and which values are sealed."""
        key = frozenset((i << 1) | sealed[c] for c, i in chosen.items())
        known = self._pieces.get(key)
        if known is None:
            if len(self._pieces) >= REMEMBERED:
                self._pieces.clear()
            known = self._pieces[key] = sum(self.price(kernel) for kernel in self.kernels(chosen, sealed))
        return known

    def kernels(self, chosen: dict[int, int], sealed: dict[int, bool]) -> list[list[tuple[int, int]]]:
        """The kernels of a piece."""
        nodes = [(i, j) for i in self._order(chosen, sealed) for j in range(len(self.found[i]))]
        if len(nodes) == 1:
            return [nodes]
        number = {node: n for n, node in enumerate(nodes)}
        readers: list[list[int]] = [[] for _ in nodes]
        kinds = [int(self.found[i][j].kind) for i, j in nodes]
        shut = [False] * len(nodes)
        for n, (i, j) in enumerate(nodes):
            for r in self.found[i][j].reads:
                if r < 0:
                    readers[number[i, ~r]].append(n)
                    continue
                k = self.units.kids[i][r]
                if k in chosen and not sealed[k]:
                    readers[number[chosen[k], len(self.found[chosen[k]]) - 1]].append(n)
            if j == len(self.found[i]) - 1:
                shut[n] = sealed[self.units.value[i]]
        groups = partition(kinds, readers, shut)
        kernels: dict[int, list[tuple[int, int]]] = {}
        for n, group in enumerate(groups):
            kernels.setdefault(group, []).append(nodes[n])
        for group, members in kernels.items():  # the result last
            members.remove(nodes[group])
            members.append(nodes[group])
        return list(kernels.values())

    def _order(self, chosen: dict[int, int], sealed: dict[int, bool]) -> list[int]:
        """The units of a piece in the order in which TVM's importer meets them: operands first, the first one first.

        The order decides which of two products a sum is fused to.
        """
        order: list[int] = []
        opened: set[int] = set()
        for start in sorted(c for c in chosen if sealed[c]):
            stack = [start]
            while stack:
                c = stack[-1]
                if c not in opened:
                    opened.add(c)
                    stack.extend(k for k in reversed(self.units.kids[chosen[c]]) if k in chosen and k not in opened)
                else:
                    stack.pop()
                    if chosen[c] not in order:
                        order.append(chosen[c])
        return order


class Ledger:
    """The pieces of one program, changed with it.

    choice: the unit of each value; refs: how many live units and outputs read it (0: it is not live). Both are the
    caller's lists, which it changes in place before it calls `settle`.
    """

    def __init__(self, fuser: Fuser, choice: list[int], refs: list[int]) -> None:
        self.fuser = fuser
        self.choice, self.refs = choice, refs
        self.piece: list[Piece | None] = [None] * len(choice)
        """The piece of each live value."""
        self.log: list[tuple[int, Piece | None]] = []
        self.touched: set[int] = set()
        """Values that the last calls of `settle` looked at."""

    def copy(self, choice: list[int], refs: list[int]) -> Ledger:
        """Another ledger at the same program, for other lists that hold the same."""
        other = Ledger(self.fuser, choice, refs)
        other.piece = list(self.piece)
        return other

    def settle(self, changed: Iterable[int]) -> float:
        """Take note that these values got another unit or other readers, or became live or dead; the change in ms."""
        refs, units, piece = self.refs, self.fuser.units, self.piece
        delta, position = 0.0, 0
        todo = list(dict.fromkeys(changed))
        fresh: dict[int, None] = {}
        seals = Seals({}, {})
        while position < len(todo):
            c = todo[position]
            position += 1
            if not units.constant[c] and c not in fresh:
                self.touched.add(c)
                old = piece[c]
                if old is not None:
                    delta -= self._drop(old, todo)
                if refs[c] and units.active[self.choice[c]]:
                    delta += self._connect(c, seals, fresh, todo)
            if position == len(todo):
                todo += self._unsettled(fresh, seals)
        return delta

    def _connect(self, c: int, seals: Seals, fresh: dict[int, None], todo: list[int]) -> float:
        """Put the piece of `c` into the books; the change in ms."""
        chosen = self._connected(c, seals)
        delta = 0.0
        for d in chosen:
            before = self.piece[d]
            if before is not None:
                delta -= self._drop(before, todo)
        sealed = {d: seals.known[d] for d in chosen}
        made = Piece(tuple(chosen), frozenset(d for d in chosen if sealed[d]), self.fuser.cost(chosen, sealed))
        for d in chosen:
            self.log.append((d, None))
            self.piece[d] = made
            fresh[d] = None
        self.touched.update(chosen)
        return delta + made.cost

    def _unsettled(self, fresh: dict[int, None], seals: Seals) -> list[int]:
        """What values of new pieces read, and is sealed now where it was not, or the other way round."""
        found = []
        for c in fresh:
            for k in self.fuser.edges[self.choice[c]]:
                piece = self.piece[k]
                if piece is not None and k not in fresh and (k in piece.sealed) != self.sealed(k, seals):
                    found.append(k)
        return found

    def _drop(self, old: Piece, todo: list[int]) -> float:
        """Take a piece out of the books; its values have to be looked at again. Returns what it cost."""
        for d in old.values:
            self.log.append((d, old))
            self.piece[d] = None
        todo.extend(old.values)
        return old.cost

    def _connected(self, start: int, seals: Seals) -> dict[int, int]:
        """The values that are connected with `start` by what is not sealed, with their units."""
        choice, refs, fuser = self.choice, self.refs, self.fuser
        active, constant = fuser.units.active, fuser.units.constant
        found = {start: choice[start]}
        stack = [start]
        while stack:
            c = stack.pop()
            i = choice[c]
            if not self.sealed(c, seals):
                for d, j, _ in fuser.uses[c]:
                    if choice[d] == j and refs[d] and d not in found:
                        found[d] = j
                        stack.append(d)
            for k, kind in fuser.edges[i].items():
                if k in found or constant[k] or kind >= Kind.FUSABLE or not refs[k] or not active[choice[k]]:
                    continue
                if not self.sealed(k, seals):
                    found[k] = choice[k]
                    stack.append(k)
        return found

    def sealed(self, c: int, seals: Seals) -> bool:
        """Whether nothing of the kernel that gives live value `c` can reach beyond it."""
        state = seals.known.get(c)
        if state is None:
            state = seals.known[c] = self._shut(c, seals) or self._parted(c, seals)
        return state

    def _shut(self, c: int, seals: Seals) -> bool:
        """Whether it is needed outside, or by what takes nothing in, or can only end a kernel."""
        state = seals.plain.get(c)
        if state is not None:
            return state
        self.touched.add(c)
        choice, refs, fuser = self.choice, self.refs, self.fuser
        i = choice[c]
        state = fuser.ends[i] or c in fuser.units.roots
        if not state:
            highest, read = fuser.highest[i], False
            for d, j, kind in fuser.uses[c]:
                if choice[d] == j and refs[d]:
                    read = True
                    if kind >= highest:
                        state = True
                        break
            state = state or not read
        seals.plain[c] = state
        return state

    def _parted(self, c: int, seals: Seals) -> bool:
        """Whether one of the readers ends its kernel, and another one leads elsewhere: then nothing post-dominates."""
        readers = self._live_readers(c)
        if len(readers) < 2:
            return False
        ends = [d for d in readers if self._shut(d, seals)]
        if not ends:
            return False
        if len(ends) > 1:
            return True
        (end,) = ends
        for d in readers:
            if d == end:
                continue
            for _ in range(FAR):
                if d == end:
                    break
                if self._shut(d, seals):
                    return True
                further = self._live_readers(d)
                if len(further) != 1:
                    break
                d = further[0]
        return False

    def _live_readers(self, c: int) -> list[int]:
        self.touched.add(c)
        choice, refs = self.choice, self.refs
        return [d for d, j, _ in self.fuser.uses[c] if choice[d] == j and refs[d]]

    def undo(self, mark: int = 0) -> None:
        """Back to what was when the log had `mark` entries."""
        for c, before in reversed(self.log[mark:]):
            self.piece[c] = before
        del self.log[mark:]

    def kernels(self) -> list[list[tuple[int, int]]]:
        """The kernels of the program, piece by piece."""
        pieces = {id(p): p for p in self.piece if p is not None}
        return [
            kernel
            for p in pieces.values()
            for kernel in self.fuser.kernels(
                {c: self.choice[c] for c in p.values}, {c: c in p.sealed for c in p.values}
            )
        ]


def settled(fuser: Fuser, choice: list[int], order: Iterable[int]) -> tuple[Ledger, float]:
    """The ledger of a whole program, and its cost in ms. order: the live values."""
    refs = [0] * len(choice)
    live = list(order)
    for c in live:
        refs[c] += c in fuser.units.roots
        for k in set(fuser.units.kids[choice[c]]):
            refs[k] += 1
    ledger = Ledger(fuser, choice, refs)
    cost = ledger.settle(live)
    ledger.log.clear()
    return ledger, cost
