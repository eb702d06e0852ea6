"""A program of the search space, changed in place: what substitutions do, and what they would do.

Switches cost time in proportion to what they change. Moves that were worked out are remembered until a change touches
something that they looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nsmallest
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .substitution import Substitutions

if TYPE_CHECKING:
    from ..egraph.space import Selection

REACH = 3
"""How many cheap links (projections, slices) may lie between a newly live producer and a user that co-switches."""


class Move(NamedTuple):
    """What an action would do in a state: change of cost (ms) and of weight bytes, and of the state's key."""

    cost: float
    bytes: float
    key: int


class Snapshot(NamedTuple):
    """A program, to come back to."""

    choice: list[int]
    refs: list[int]
    cost: float
    bytes: float
    key: int


class State:
    """A program of the space: one e-node for each live class, kept complete, acyclic and priced.

    choice: e-node of each class (meaningful where live). refs: how many live e-nodes and outputs read each class.
    cost: ms. bytes: weight bytes. key: a hash of the selection. evaluations: programs priced so far.
    """

    def __init__(self, rules: Substitutions) -> None:
        self.rules = rules
        n = rules.space.n_classes
        self.choice = rules.space.original.choice.tolist()
        self.refs = [0] * n
        self.cost = self.bytes = 0.0
        self.key = 0
        self.evaluations = 0
        self._plan: dict[int, int] = {}
        self._refs_log: list[int] = []
        self._choice_log: list[tuple[int, int]] = []
        self._born: list[int] = []
        self._touched: set[int] = set()
        self._low: dict[int, int] = {}
        for c in rules.root_classes:
            self._acquire(c)
        self.ledger = rules.cost.ledger(self.choice, self.refs)
        """Books of a cost that is more than a sum of prices; None for one that is not."""
        if self.ledger is not None:
            self.cost = self.ledger.settle([c for c, n in enumerate(self.refs) if n])
        self._forget()
        a = len(rules.actions)
        self.delta = np.zeros(a)
        """Change of cost (ms) of each action; meaningful where `closable`."""
        self.growth = np.zeros(a)
        """Change of weight bytes of each action."""
        self.closable = np.zeros(a, dtype=bool)
        """Whether each action changes the state and leads to a complete, acyclic program."""
        self.turn = [0] * rules.n_sites
        """Change of the key of each site action."""
        self._stale = set(range(rules.n_sites))
        self._old = np.ones(a, dtype=bool)
        self._summed = False
        self._watchers: list[dict[int, int]] = [{} for _ in range(n)]

    def copy(self) -> State:
        """Another state at the same program that knows the same moves; it starts to count evaluations at 0."""
        other = object.__new__(State)
        other.__dict__.update(self.__dict__)
        other.choice, other.refs, other.turn = list(self.choice), list(self.refs), list(self.turn)
        other.delta, other.growth = self.delta.copy(), self.growth.copy()
        other.closable, other._old = self.closable.copy(), self._old.copy()
        other.evaluations = 0
        other._plan, other._low, other._touched = {}, {}, set()
        other._refs_log, other._choice_log, other._born = [], [], []
        other._stale = set(self._stale)
        other._watchers = [dict(w) for w in self._watchers]
        if self.ledger is not None:
            other.ledger = self.ledger.copy(other.choice, other.refs)
        return other

    # -- looking ---------------------------------------------------------------------------------------------------

    @property
    def legal(self) -> np.ndarray:
        """bool[actions]: which actions may be taken; all stale moves are worked out first."""
        self.refresh()
        return self.closable & self.fits

    @property
    def fits(self) -> np.ndarray:
        """bool[actions]: which actions keep the weights within the limit, as far as moves are known."""
        return self.bytes + self.growth <= self.rules.bytes_limit

    @property
    def known(self) -> np.ndarray:
        """bool[actions]: `closable` without the moves that are stale."""
        return self.closable & ~self._old

    @property
    def stale(self) -> int:
        """How many moves have to be worked out again."""
        return len(self._stale)

    def stale_actions(self) -> list[int]:
        """The actions whose moves have to be worked out again: those near the last changes."""
        return sorted(self._stale)

    def refresh(self, at_most: int | None = None) -> int:
        """Work out the moves that the last changes made stale, the first `at_most` of them; how many were.

        Orbits are summed from their sites, as if these did not touch each other; `evaluate` is exact.
        """
        todo = sorted(self._stale) if at_most is None else nsmallest(at_most, self._stale)
        for a in todo:
            self.evaluate(a)
        if not self._stale and not self._summed:
            self._sum()
        return len(todo)

    def renewed(self, a: int) -> bool:
        """Work out this one move if it is stale; whether it was."""
        if a not in self._stale:
            return False
        self.evaluate(a)
        return True

    def _sum(self) -> None:
        r = self.rules
        n, self._summed = r.n_sites, True
        if not len(r.orbit_sites):
            return
        on = self.closable[r.orbit_sites]
        self.delta[n:] = np.add.reduceat(np.where(on, self.delta[r.orbit_sites], 0.0), r.orbit_start)
        self.growth[n:] = np.add.reduceat(np.where(on, self.growth[r.orbit_sites], 0.0), r.orbit_start)
        self.closable[n:] = np.add.reduceat(on.astype(np.int64), r.orbit_start) > 1  # of one site its own action speaks
        self._old[n:] = False

    def evaluate(self, a: int) -> Move | None:
        """What action `a` would do here, or None where it changes nothing or cannot be completed without a cycle.

        Weight growth is not looked at. The state stays as it is; the move is remembered until a change touches it.
        """
        nodes, touched, low = self.rules.actions[a].nodes, self._touched, self._low
        touched.clear()
        low.clear()
        if self.ledger is not None:
            self.ledger.touched.clear()
        cost, size, key = self.cost, self.bytes, self.key
        done = self._perform(nodes) and self.key != key
        move = Move(self.cost - cost, self.bytes - size, self.key ^ key)
        self._undo(0, 0, 0, cost, size, key)
        self.closable[a], self._old[a] = done, False
        if a < self.rules.n_sites:
            self._stale.discard(a)
            self.turn[a] = move.key
            refs = self.refs
            if self.ledger is not None:
                touched |= self.ledger.touched
            for c in touched:
                self._watchers[c][a] = refs[c] - low[c] if c in low else 0
        if not done:
            return None
        self.evaluations += 1
        self.delta[a], self.growth[a] = move.cost, move.bytes
        return move

    def key_after(self, a: int) -> int:
        """The key of the program that action `a` leads to; of an orbit as far as its sites do not touch each other."""
        r = self.rules
        if a < r.n_sites:
            return self.key ^ self.turn[a]
        key = self.key
        start = r.orbit_start[a - r.n_sites]
        for site in r.orbit_sites[start : start + len(r.actions[a].nodes)].tolist():
            key ^= self.turn[site] if self.closable[site] else 0
        return key

    def selection(self) -> Selection:
        """This program as a selection."""
        return self.rules.space.selection(self._complete(self.choice, self.refs))

    def _complete(self, choice: Sequence[int], refs: Sequence[int]) -> list[int]:
        r = self.rules
        return [f if k else (i if n else -1) for i, n, f, k in zip(choice, refs, r.fixed, r.const, strict=True)]

    # -- changing --------------------------------------------------------------------------------------------------

    def apply(self, a: int) -> bool:
        """Take action `a`; False, and nothing changes, where it cannot be completed."""
        self._touched.clear()
        cost, size, key = self.cost, self.bytes, self.key
        if not self._perform(self.rules.actions[a].nodes):
            self._undo(0, 0, 0, cost, size, key)
            return False
        net: dict[int, int] = {}
        for k in self._refs_log:
            if k >= 0:
                net[k] = net.get(k, 0) + 1
            else:
                net[~k] = net.get(~k, 0) - 1
        switched = {c for c, _ in self._choice_log}
        if self.ledger is not None:  # which readers a class has matters there, not only how many
            switched.update(net)
        self._forget()
        self._old[self.rules.n_sites :] = True
        self._summed = False
        for c in switched:
            self._spoil(c, 0)
        for c, by in net.items():
            if by and c not in switched:
                self._spoil(c, min(self.refs[c], self.refs[c] - by))
        return True

    def _forget(self) -> None:
        self._refs_log.clear()
        self._choice_log.clear()
        self._born.clear()
        if self.ledger is not None:
            self.ledger.log.clear()

    def snapshot(self) -> Snapshot:
        return Snapshot(list(self.choice), list(self.refs), self.cost, self.bytes, self.key)

    def snapshot_of(self, selection: Selection) -> Snapshot:
        """Any program of the space as a snapshot."""
        r = self.rules
        choice = [i if i >= 0 else j for i, j in zip(selection.choice.tolist(), self.choice, strict=True)]
        refs = [0] * len(choice)
        cost = size = 0.0
        key = 0
        stack = list(r.root_classes)
        while stack:
            c = stack.pop()
            refs[c] += 1
            if refs[c] > 1:
                continue
            if r.const[c]:
                size += r.size[c]
                continue
            cost += r.paid[choice[c]]
            key ^= r.keys[choice[c]]
            stack.extend(r.kids[choice[c]])
        return Snapshot(choice, refs, r.cost.total(selection) if self.ledger is not None else cost, size, key)

    def restore(self, to: Snapshot) -> None:
        kids, fused = self.rules.kids, self.ledger is not None
        changed: set[int] = set()
        for c, (m, n, i, j) in enumerate(zip(self.refs, to.refs, self.choice, to.choice, strict=True)):
            if m != n or i != j:
                self._spoil(c, 0 if i != j or fused else min(m, n))
                if fused:
                    changed.update((c, *(kids[i] if m else ()), *(kids[j] if n else ())))
        self.choice, self.refs = list(to.choice), list(to.refs)
        self.cost, self.bytes, self.key = to.cost, to.bytes, to.key
        if self.ledger is not None:
            for c in changed:
                self._spoil(c, 0)
            self.ledger.choice, self.ledger.refs = self.choice, self.refs
            self.ledger.settle(changed)
            self.ledger.log.clear()
        self._old[self.rules.n_sites :] = True
        self._summed = False

    def _spoil(self, c: int, least: int) -> None:
        """Forget moves that depend on class `c`, whose number of readers changed but was at least `least` all the time.

        A move that takes away fewer readers than that does the same before and after.
        """
        watchers = self._watchers[c]
        if watchers:
            gone = [a for a, dip in watchers.items() if dip >= least]
            self._stale.update(gone)
            self._old[gone] = True
            for a in gone:
                del watchers[a]

    # -- how a switch is done --------------------------------------------------------------------------------------

    def _perform(self, nodes: Sequence[int]) -> bool:
        """Switch at every site where that is possible; False if there was none."""
        any_done = False
        for i in nodes:
            c = self.rules.klass[i]
            self._touched.add(c)
            if self.refs[c] and self.choice[c] != i:
                start = len(self._born)
                if self._switch(c, i):
                    any_done = True
                    if self.rules.group:
                        self._coswitch(start)
        return any_done

    def _switch(self, c: int, i: int) -> bool:
        """Let live class `c` use e-node `i`, with all that it needs; False, and nothing changes, if that makes a
        cycle."""
        r, refs = self.rules, self.refs
        kids = r.kids[i]
        plan = self._plan = dict[int, int]()
        known: dict[int, bool] = {}
        for k in kids:
            self._touched.add(k)
            if r.const[k]:
                continue
            if refs[k]:
                if self._reaches(k, c, known):
                    return False
            elif not self._close(k, c, plan, known):
                return False
        old, at = self.choice[c], (len(self._refs_log), len(self._choice_log))
        for k in kids:
            self._acquire(k)
        self._choice_log.append((c, old))
        self.choice[c] = i
        self.cost += r.paid[i] - r.paid[old]
        self.key ^= r.keys[i] ^ r.keys[old]
        for k in r.kids[old]:
            self._release(k)
        if self.ledger is not None:
            changed = {k if k >= 0 else ~k for k in self._refs_log[at[0] :]}
            changed.update(d for d, _ in self._choice_log[at[1] :])
            self.cost += self.ledger.settle(changed)
        return True

    def _reaches(self, k: int, target: int, known: dict[int, bool]) -> bool:
        """Whether live class `k` needs `target`; only classes of one strongly connected component can."""
        if k == target:
            return True
        r = self.rules
        mine = r.component[target]
        if mine < 0 or r.component[k] != mine:
            return False
        if k in known:
            return known[k]
        stack, seen = [k], {k}
        while stack:
            d = stack.pop()
            self._touched.add(d)
            for x in r.kids[self.choice[d]]:
                if x == target or known.get(x):
                    known[k] = True
                    return True
                if r.component[x] == mine and x not in seen:
                    seen.add(x)
                    stack.append(x)
        known.update(dict.fromkeys(seen, False))
        return False

    def _close(self, k: int, target: int, plan: dict[int, int], known: dict[int, bool]) -> bool:
        """Plan an e-node for dead class `k` such that nothing it needs needs `target`; False if there is none."""
        if k in plan:
            return plan[k] >= 0
        plan[k] = -1  # on the way: who comes back here goes in a circle
        r, refs = self.rules, self.refs
        self._touched.add(k)
        options = r.options[k]
        if len(options) > 1:
            options = sorted(options, key=self._expected)
        for i in options:
            for x in r.kids[i]:
                if r.const[x]:
                    continue
                self._touched.add(x)
                if self._reaches(x, target, known) if refs[x] else not self._close(x, target, plan, known):
                    break
            else:
                plan[k] = i
                return True
        return False

    def _expected(self, i: int) -> float:
        """What e-node `i` of a dead class is expected to cost with what it needs."""
        total = self.rules.price[i]
        for x in self.rules.kids[i]:
            self._touched.add(x)
            if not self.refs[x]:
                total += self.rules.marginal[x]
        return total

    def _coswitch(self, start: int) -> None:
        """Switch live users of the classes born since `start`, where that lowers the cost."""
        r, refs, touched, born = self.rules, self.refs, self._touched, self._born
        near: dict[int, int] = {}  # dead classes that need only what is live, and how many links they are away
        position = start
        while position < len(born):
            queue = [(born[position], 0)] if refs[born[position]] else []
            position += 1
            while queue:
                k, far = queue.pop()
                for i in r.readers[k]:
                    d = r.klass[i]
                    touched.add(d)
                    if refs[d]:
                        if self.choice[d] == i:
                            continue
                        self._try(d, i, near)
                    elif far < REACH and d not in near and self._ready(i, near):
                        near[d] = far + 1
                        queue.append((d, far + 1))

    def _ready(self, i: int, near: dict[int, int]) -> bool:
        for x in self.rules.kids[i]:
            self._touched.add(x)
            if not (self.rules.const[x] or self.refs[x] or x in near):
                return False
        return True

    def _try(self, d: int, i: int, near: dict[int, int]) -> None:
        """Switch live class `d` to `i` if that needs only what is at hand and lowers the cost."""
        if not self._ready(i, near) or not self._promises(d, i):
            return
        booked = 0 if self.ledger is None else len(self.ledger.log)
        at = len(self._refs_log), len(self._choice_log), booked, self.cost, self.bytes, self.key
        births = len(self._born)
        if self._switch(d, i) and self.cost >= at[3] - self.rules.epsilon:
            self._undo(*at)
            del self._born[births:]

    def _promises(self, d: int, i: int) -> bool:
        """Whether switching live class `d` to `i` could lower the cost, if all that it needs came for nothing."""
        r, refs, low = self.rules, self.refs, self._low
        kept = r.kids[i]
        stack = [self.choice[d]]
        gain = -r.paid[i] - r.epsilon  # fused, it may come for nothing
        left: dict[int, int] = {}
        while stack:
            j = stack.pop()
            gain += r.price[j]
            if gain > 0:
                return True
            for k in r.kids[j]:
                if r.const[k] or k in kept:
                    continue
                n = left[k] = left.get(k, refs[k]) - 1
                self._touched.add(k)
                low[k] = min(n, low.get(k, n))
                if not n:
                    stack.append(self.choice[k])
        return False

    def _acquire(self, first: int) -> None:
        r, refs, log = self.rules, self.refs, self._refs_log
        stack = [first]
        while stack:
            k = stack.pop()
            n = refs[k]
            refs[k] = n + 1
            log.append(k)
            if n:
                continue
            if r.const[k]:
                self.bytes += r.size[k]
                continue
            i = self._plan.get(k, -1)
            if i < 0:
                i = self.choice[k]  # only while the original is set up
            elif i != self.choice[k]:
                self._choice_log.append((k, self.choice[k]))
                self.choice[k] = i
            self.cost += r.paid[i]
            self.key ^= r.keys[i]
            self._born.append(k)
            stack.extend(r.kids[i])

    def _release(self, first: int) -> None:
        r, refs, log = self.rules, self.refs, self._refs_log
        stack = [first]
        while stack:
            k = stack.pop()
            n = refs[k] - 1
            refs[k] = n
            log.append(~k)
            if n:
                continue
            if r.const[k]:
                self.bytes -= r.size[k]
                continue
            i = self.choice[k]
            self.cost -= r.paid[i]
            self.key ^= r.keys[i]
            stack.extend(r.kids[i])

    def _undo(self, refs_mark: int, choice_mark: int, booked: int, cost: float, size: float, key: int) -> None:
        """Back to the state at these marks; everything undone counts as touched."""
        if self.ledger is not None:
            self.ledger.undo(booked)
        refs, touched, low, log = self.refs, self._touched, self._low, self._refs_log
        for k in reversed(log[refs_mark:]):
            if k >= 0:
                refs[k] -= 1
                touched.add(k)
            else:
                k = ~k
                if refs[k] < low.get(k, 1 << 30):
                    low[k] = refs[k]
                refs[k] += 1
                touched.add(k)
        del log[refs_mark:]
        for c, old in reversed(self._choice_log[choice_mark:]):
            self.choice[c] = old
            touched.add(c)
        del self._choice_log[choice_mark:]
        if not refs_mark:
            self._born.clear()
        self.cost, self.bytes, self.key = cost, size, key
