"""Hill climbing by substitutions: down to a local optimum, then out of it by annealing while budget remains.

Where moves are very many, whole orbits of them come first. Then descent over the group moves, over plateaus and along
chains too: a scale that moves through a transpose and a reshape costs about the same at each step and pays at the last,
where it folds into a weight. Then rounds of simulated annealing (Kirkpatrick, Gelatt, Vecchi 1983) from the best
program so far, each cooled down to the scale of the smallest gains and ended by a descent. Annealing looks at one
random move a step, so a round costs no more evaluations than it has steps. Between rounds it leaps: the e-nodes of some
neighbouring classes are chosen anew, all at once and exactly, by the sum of prices (`neighbourhood`), in all layers
that are alike. Where the cost is more than a sum, prices are shaken at random for each leap, so that what it proposes
varies. Deterministic for a seed and a budget in steps.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .base import Budget, Extraction, Meter
from .leaps import Leaps
from .problem import REDUCING
from .state import Snapshot, State
from .substitution import Substitutions

if TYPE_CHECKING:
    from ..cost.base import Cost
    from ..egraph.space import SearchSpace, Selection

MANY = 4096
"""Where there are more moves than this, not all of them are looked at before one is taken."""

REPEATED = 32
"""Sites of an orbit, on average, from which on a space is one of layers that are alike."""


class Climb:
    """Descent, chains, then annealed rounds.

    heat: temperature at which a round starts, in units of the median size of a move's change of cost; it ends
    `cooling` times colder. sweeps: steps of the first round for each action of the space (at least 1,000 steps).
    sideways: how many moves that change no cost it makes in a row, those that the last one opened first.
    chains, links, slack: how many chains it tries out of a local optimum, how long each may be, and by what share of
    the cost it may rise on the way. leaps: how many leaps in a row may bring nothing, between two rounds. shake: the
    standard deviation of the logarithm by which prices are shaken for them. patience: how many rounds in a row may
    bring nothing, each twice as long as the one before, until it stops although budget remains. chunk: moves looked at
    before a descent takes the best of them; with fewer moves it is steepest descent. start: a legal program to start
    from instead of the input. group: whether moves are grouped or single sites.
    """

    name = "climb"

    def __init__(
        self,
        heat: float = 2.0,
        cooling: float = 50.0,
        sweeps: int = 20,
        patience: int = 5,
        chunk: int = 512,
        sideways: int = 64,
        chains: int = 64,
        links: int = 8,
        slack: float = 0.01,
        leaps: int = 40,
        shake: float = 0.3,
        start: Selection | None = None,
        group: bool = True,
    ) -> None:
        self.heat, self.cooling, self.sweeps, self.patience, self.chunk = heat, cooling, sweeps, patience, chunk
        self.sideways = sideways
        self.chains, self.links, self.slack = chains, links, slack
        self.leaps, self.shake, self.start = leaps, shake, start
        self.group = group

    def extract(self, space: SearchSpace, cost: Cost, budget: Budget, rng: np.random.Generator) -> Extraction:
        meter = Meter(budget)
        state = State(Substitutions(space, cost, self.group))
        rules, failures = state.rules, 0
        if self.start is not None:
            state.restore(state.snapshot_of(self.start))
        meter.evaluations = 1
        meter.improved(state.cost)
        leaps = None
        if len(rules) > MANY:
            self._together(state, meter)
            # where layers are alike, leaps are few, and single moves many
            if len(rules.orbit_sites) > REPEATED * len(rules.orbit_start) and not rules.fused:
                leaps = self._leaps(state, meter, rng)
                if leaps is not None:
                    self._leap(leaps, meter, alone=True)
        self.steepest(state, meter)
        sizes = np.abs(state.delta[state.known])
        sizes = sizes[sizes > rules.epsilon]
        length = max(1000, self.sweeps * len(rules))
        if leaps is None and sizes.size:
            leaps = self._leaps(state, meter, rng)
        before = np.inf
        while state.cost < before - rules.epsilon and not meter.exhausted:
            before = state.cost
            if leaps is not None:  # first: what they find, chains find later if at all
                self._leap(leaps, meter)
            self._descend(state, meter)
        best = state.snapshot()
        while sizes.size and failures < self.patience and not meter.exhausted:
            failures += 1
            if leaps is not None and self._leap(leaps, meter):
                best, failures = state.snapshot(), 0
            here = self._anneal(state, meter, rng, self.heat * float(np.median(sizes)), length)
            state.restore(here)
            self._descend(state, meter)
            if state.cost < best.cost - rules.epsilon:
                best, failures = state.snapshot(), 0
            else:
                length *= 2
            state.restore(best)
        reason = meter.reason if meter.exhausted else ("local optimum" if sizes.size else "no moves")
        return finish(space, cost, state, best, meter, reason, self.name)

    def _descend(self, state: State, meter: Meter) -> None:
        """Moves that lower the cost until there is none, nor a chain of moves that does, or the budget is gone."""
        while True:
            self.steepest(state, meter)
            if meter.exhausted or not (self._cross(state, meter) or self._chain(state, meter)):
                return

    def _cross(self, state: State, meter: Meter) -> bool:
        """Walk along a plateau until a move lowers the cost; False, and back at the start, if none does."""
        rules, start = state.rules, state.snapshot()
        visited = {state.key}
        before = np.zeros(len(rules), dtype=bool)
        for _ in range(self.sideways):
            look(state, meter)
            usable = state.known & state.fits
            if (usable & (state.delta < -rules.epsilon)).any():
                return True
            flat = usable & (np.abs(state.delta) <= rules.epsilon)
            options = [*np.flatnonzero(flat & ~before).tolist(), *np.flatnonzero(flat & before).tolist()]
            a = next((a for a in options if state.key_after(a) not in visited), -1)
            if a < 0 or meter.exhausted or not state.apply(a):
                break
            visited.add(state.key)
            before = flat
        state.restore(start)
        return False

    def _chain(self, state: State, meter: Meter) -> bool:
        """Look for a chain of moves, each opened by the last, that ends below; False, and nothing changed, if none.

        Ejection chains (Glover 1996), greedy in each link and never dearer than the start by more than `slack`.
        """
        rules, start = state.rules, state.snapshot()
        goal, limit = start.cost - rules.epsilon, start.cost * (1 + self.slack)
        look(state, meter)
        usable = state.known & state.fits
        starts = np.flatnonzero(usable & (state.delta <= limit - start.cost))
        for a in starts[np.argsort(state.delta[starts], kind="stable")][: self.chains].tolist():
            before, visited, link = usable, {start.key}, a
            for _ in range(self.links):
                if meter.exhausted or not state.apply(link):
                    break
                if state.cost < goal:
                    meter.improved(state.cost)
                    return True
                visited.add(state.key)
                look(state, meter)
                now = state.known & state.fits
                options = np.flatnonzero(now & (~before | (state.cost + state.delta < goal)))
                ranked = options[np.argsort(state.delta[options], kind="stable")].tolist()
                link = next((b for b in ranked if state.key_after(b) not in visited), -1)
                if link < 0 or state.cost + state.delta[link] > limit:
                    break
                before = now
            state.restore(start)
            if meter.exhausted:
                break
        return False

    def _together(self, state: State, meter: Meter) -> None:
        """Moves of whole orbits, by what the one in their middle says: where moves are many, this is known at once."""
        rules, vain = state.rules, set[int]()
        sizes = np.diff([*rules.orbit_start.tolist(), len(rules.orbit_sites)])
        middle = rules.orbit_sites[rules.orbit_start + sizes // 2]
        while len(middle) and not meter.exhausted:
            for a in middle.tolist():
                meter.evaluations += state.renewed(a)
            gain = np.where(state.known[middle] & state.fits[middle], state.delta[middle] * sizes, 0.0)
            gain[list(vain)] = 0.0
            k = int(gain.argmin())
            if gain[k] >= -rules.epsilon:
                return
            move = state.evaluate(rules.n_sites + k)
            meter.evaluations += 1
            if move is not None and move.cost < -rules.epsilon and state.bytes + move.bytes <= rules.bytes_limit:
                state.apply(rules.n_sites + k)
                meter.improved(state.cost)
                vain.clear()
            else:
                vain.add(k)

    def _leaps(self, state: State, meter: Meter, rng: np.random.Generator) -> Leaps | None:
        """What leaps from `state`, if there is time for that."""
        usable = self.leaps and meter.affords(1.5 * REDUCING * state.rules.space.n_nodes) and not meter.exhausted
        return Leaps(state, rng, self.shake) if usable else None

    def _leap(self, leaps: Leaps, meter: Meter, alone: bool = False) -> bool:
        """Leap from the best program, and descend (unless leaps are to be alone), until nothing comes of it for some
        time; whether anything did."""
        state, vain, better = leaps.state, 0, False
        while vain < self.leaps and leaps.odds.any() and not meter.exhausted:
            start = state.snapshot()
            landed = leaps.landed(meter)
            vain += 1
            if landed is None or landed.cost > start.cost * (1 + self.slack):
                continue
            state.restore(landed)
            meter.improved(state.cost)
            if not alone and (state.ledger is not None or state.cost < start.cost - state.rules.epsilon):
                self.steepest(state, meter)
            if state.cost < start.cost - state.rules.epsilon:
                vain, better = 0, True
            else:
                state.restore(start)
        return better

    def steepest(self, state: State, meter: Meter) -> None:
        """The move that lowers the cost most, again and again; where many are unknown, the best of the known ones."""
        while True:
            a = -1
            while a < 0:
                some = 0 if state.stale > MANY and self._best(state) >= 0 else look(state, meter, self.chunk)
                a = self._best(state)
                if a < 0 and not some:
                    return
            if a >= state.rules.n_sites:  # the sum over an orbit's sites is a guess
                move = state.evaluate(a)
                meter.evaluations += 1
                if move is None or move.cost >= -state.rules.epsilon or not state.fits[a]:
                    continue
            state.apply(a)
            meter.improved(state.cost)
            if meter.exhausted:
                return

    @staticmethod
    def _best(state: State) -> int:
        """Of the moves that are known, the one that lowers the cost most; -1 if none does."""
        gain = np.where(state.known & state.fits, state.delta, 0.0)
        a = int(gain.argmin()) if gain.size else -1
        return a if a >= 0 and gain[a] < -state.rules.epsilon else -1

    def _anneal(self, state: State, meter: Meter, rng: np.random.Generator, heat: float, length: int) -> Snapshot:
        """So many Metropolis steps from `heat` (ms) down; the cheapest program of the colder half."""
        rules = state.rules
        length = int(min(length, meter.limit - meter.evaluations))
        best, tried = None, 0
        for step in range(length):
            move = None
            while move is None or state.bytes + move.bytes > rules.bytes_limit:
                if meter.exhausted or tried > 100 * (length + len(rules)):
                    return best or state.snapshot()
                a = int(rng.integers(len(rules)))
                move = state.evaluate(a)
                meter.evaluations += move is not None
                tried += 1
            temperature = heat * self.cooling ** (-step / length)
            if move.cost <= 0 or rng.random() < math.exp(-move.cost / temperature):
                state.apply(a)
                if meter.improved(state.cost) or (2 * step > length and (best is None or state.cost < best.cost)):
                    best = state.snapshot()
        return best or state.snapshot()


def look(state: State, meter: Meter, at_most: int | None = None) -> int:
    """Bring (at most so many of) the moves of `state` up to date as far as the budget allows; how many were not."""
    done = 0
    while state.stale and not meter.exhausted and (at_most is None or done < at_most):
        before = state.evaluations
        done += state.refresh(64)
        meter.evaluations += state.evaluations - before
    state.refresh(0)  # orbits
    return done


def begin(space: SearchSpace, cost: Cost, budget: Budget, group: bool = True) -> tuple[Meter, State]:
    """What a search over substitutions starts with: the meter, and the input, which counts as one evaluation."""
    meter = Meter(budget)
    state = State(Substitutions(space, cost, group))
    meter.evaluations = 1
    meter.improved(state.cost)
    return meter, state


def finish(
    space: SearchSpace, cost: Cost, state: State, best: Snapshot, meter: Meter, reason: str, name: str
) -> Extraction:
    """The extraction that ends a search with `best`, priced afresh."""
    state.restore(best)
    selection = state.selection()
    return Extraction(selection, cost.total(selection), meter.trace, reason, name)
