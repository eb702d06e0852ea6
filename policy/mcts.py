"""Monte Carlo tree search over substitutions: UCT (Kocsis, Szepesvári 2006) whose rollouts are descents.

A node of the tree is a program, an edge a move. Each round goes down from the input by upper confidence bounds, adds
one program, and descends from there (after a few random moves, so that two rollouts from one program differ); how much
cheaper than the input the program is that the descent ends in, is what the edges on the way are credited with, their
best and their mean mixed, since what counts in the end is the best. Moves are tried in order of what they change the
cost by, and only so many of them as the visits of a node warrant (progressive widening, Coulom 2007): spaces have
thousands of moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .base import Budget, Extraction, Meter
from .climb import Climb, begin, finish, look
from .state import Snapshot, State

if TYPE_CHECKING:
    from ..cost.base import Cost
    from ..egraph.space import SearchSpace


@dataclass
class _Node:
    """A program of the tree. moves: those not tried yet, the last one next; None before they were looked at."""

    here: Snapshot
    moves: list[int] | None = None
    children: list[_Node] = field(default_factory=list)
    visits: int = 0
    total: float = 0.0
    best: float = 0.0
    done: bool = False


class MCTS:
    """UCT. explore: weight of what is rarely tried, in units of the best gain so far. widen: a node of n visits has at
    most n**widen + 1 children. shuffle: random moves before a descent, at most. mix: share of the best against the mean
    in the worth of an edge. group: whether moves are grouped or single sites. patience: rounds in a row that may bring
    nothing, where the budget has no end."""

    name = "mcts"

    def __init__(
        self,
        explore: float = 0.5,
        widen: float = 0.6,
        shuffle: int = 3,
        mix: float = 0.5,
        group: bool = True,
        patience: int = 300,
    ) -> None:
        self.explore, self.widen, self.shuffle, self.mix = explore, widen, shuffle, mix
        self.group, self.patience = group, patience

    def extract(self, space: SearchSpace, cost: Cost, budget: Budget, rng: np.random.Generator) -> Extraction:
        meter, state = begin(space, cost, budget, self.group)
        rules = state.rules
        root = _Node(state.snapshot())
        self.seen = {root.here.key}
        best, vain = root.here, 0
        self.descend = Climb(chains=0, sideways=0)
        while not (root.done or meter.exhausted or vain >= self.patience):
            path = self._down(root, state, meter)
            self._roll(path[-1], state, meter, rng, first=len(path) == 1)
            if state.cost < best.cost - rules.epsilon:
                best, vain = state.snapshot(), 0
            else:
                vain += 1
            gain = max(0.0, 1 - state.cost / root.here.cost) if root.here.cost > 0 else 0.0
            for node in path:
                node.visits += 1
                node.total += gain
                node.best = max(node.best, gain)
        reason = meter.reason if meter.exhausted else "whole tree searched" if root.done else "no better for long"
        return finish(space, cost, state, best, meter, reason, self.name)

    def _down(self, root: _Node, state: State, meter: Meter) -> list[_Node]:
        """From the root to a node that was not there before, or has nothing left to try."""
        path = [root]
        while True:
            node = path[-1]
            if not node.visits:
                return path
            if node.moves is None:
                state.restore(node.here)
                look(state, meter)
                usable = np.flatnonzero(state.known & state.fits)
                node.moves = usable[np.argsort(-state.delta[usable], kind="stable")].tolist()
            if node.moves and len(node.children) <= node.visits**self.widen:
                state.restore(node.here)
                a = node.moves.pop()
                if state.apply(a) and state.bytes <= state.rules.bytes_limit and state.key not in self.seen:
                    self.seen.add(state.key)
                    meter.evaluations += a >= state.rules.n_sites
                    node.children.append(_Node(state.snapshot()))
                    path.append(node.children[-1])
                    return path
                continue
            open_ = [child for child in node.children if not child.done]
            if not open_:
                if node.moves:  # the moves that were allowed led nowhere
                    node.visits += 1
                    continue
                node.done = True
                return path
            scale = max(root.best, 1e-12)
            path.append(max(open_, key=lambda child: self._worth(child, node, scale)))

    def _worth(self, child: _Node, parent: _Node, scale: float) -> float:
        if not child.visits:
            return math.inf
        exploited = self.mix * child.best + (1 - self.mix) * child.total / child.visits
        return exploited / scale + self.explore * math.sqrt(math.log(parent.visits + 1) / child.visits)

    def _roll(self, node: _Node, state: State, meter: Meter, rng: np.random.Generator, first: bool) -> None:
        """Descend from a node, after some random moves if it is not the first time."""
        state.restore(node.here)
        for _ in range(0 if first or (not node.visits and rng.random() < 0.5) else int(rng.integers(self.shuffle + 1))):
            for _ in range(20):
                a = int(rng.integers(len(state.rules)))
                move = state.evaluate(a)
                if move is not None and state.bytes + move.bytes <= state.rules.bytes_limit:
                    meter.evaluations += 1
                    state.apply(a)
                    break
        self.descend.steepest(state, meter)
