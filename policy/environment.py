"""Extraction as a Markov decision process, as a Gymnasium environment.

State: a program of the frozen search space, at first the original. Action: one of the legal substitutions, or Stop
(the last action). Reward: by how much the best program so far got cheaper, as a share of the original's cost, plus
potential-based shaping (Ng, Harada, Russell, ICML 1999) with Φ(s) = -weight · (cost of s - cost of the original): a
good move is seen at once, a detour costs first and pays later, and over an episode that ends by Stop the shaping sums
to zero. With γ = 1 a late gain is worth as much as an early one. Nothing is paid for a step as such.

The end by Stop is a termination. Running out of steps is a truncation: the state has a value left, and a learner should
bootstrap from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

from .features import (
    CLASS_FEATURES,
    KINDS,
    MOVE_FEATURES,
    NODE_FEATURES,
    PROGRESS_FEATURES,
    TARGET_FEATURES,
    Layout,
    View,
    layout,
    view,
)
from .state import Snapshot, State
from .substitution import Substitutions

if TYPE_CHECKING:
    from ..cost.base import Cost
    from ..egraph.space import SearchSpace, Selection

Observation = dict[str, np.ndarray]


class ExtractionEnv(gymnasium.Env[Observation, np.int64]):
    """One search space under one cost.

    horizon: steps until truncation. atomic: an action changes one class and what it needs, without co-switching and
    without orbits; there the temporary loss of a merge is visible. shaping: weight of the potential. scale: what
    rewards are divided by, as a share of the original's cost; training passes what can be gained, so that all spaces
    weigh alike.

    Actions are numbered as in `Substitutions.actions`; `info["action_mask"]` and `observation["mask"]` say which are
    legal. An illegal action changes nothing and costs a step.
    Observation: the arrays of `features.Layout` and `features.View` by name. All extents are fixed for one space. The
    same without copies: `layout` and, after each step, `seen`.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"]}

    def __init__(
        self,
        space: SearchSpace,
        cost: Cost,
        horizon: int = 64,
        atomic: bool = False,
        shaping: float = 1.0,
        scale: float = 1.0,
        render_mode: str | None = None,
    ) -> None:
        self.rules = Substitutions(space, cost, group=not atomic)
        self.layout: Layout = layout(self.rules)
        self.horizon, self.shaping, self.scale, self.render_mode = horizon, shaping, scale, render_mode
        self.state = State(self.rules)
        self._start = self.state.snapshot()
        self._best = self._start
        self._steps = 0
        self.seen: View
        self.action_space = spaces.Discrete(len(self.rules) + 1)
        self.observation_space = self._observation_space()

    def twin(self) -> ExtractionEnv:
        """A second environment of the same kind at the original program; what never changes is shared."""
        other = object.__new__(ExtractionEnv)
        other.__dict__.update(self.__dict__)
        self.state.restore(self._start)
        self.state.refresh()
        other.state = self.state.copy()
        other._best, other._steps = self._start, 0
        return other

    @property
    def stop(self) -> int:
        """The number of the action Stop."""
        return len(self.rules)

    @property
    def best_cost(self) -> float:
        """Cost (ms) of the best program of this episode."""
        return self._best.cost

    @property
    def best_snapshot(self) -> Snapshot:
        """The best program of this episode, for `State.restore`."""
        return self._best

    def best(self) -> Selection:
        """The best program of this episode."""
        state = State(self.rules)
        state.restore(self._best)
        return state.selection()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Back to the original program."""
        super().reset(seed=seed)
        self.state.restore(self._start)
        self._best, self._steps = self._start, 0
        return self._observe(), self._info()

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        a, state = int(action), self.state
        self._steps += 1
        unit = self.scale * max(self.rules.original_cost, 1e-12)
        before, best = state.cost, self._best.cost
        stopped = a == self.stop
        if not stopped and self.seen.mask[a]:
            here = state.snapshot() if a >= self.rules.n_sites else None
            state.apply(a)
            if here is not None and state.bytes > self.rules.bytes_limit:
                state.restore(here)  # the growth of an orbit is only estimated by the mask
            if state.cost < best - self.rules.epsilon:
                self._best = state.snapshot()
        # Φ is 0 at the start and in the terminal state, so that shaping sums to nothing over a whole episode.
        shaped = (state.cost - self._start.cost) if stopped else (before - state.cost)
        reward = (best - self._best.cost + self.shaping * shaped) / unit
        truncated = not stopped and self._steps >= self.horizon
        return self._observe(), float(reward), stopped, truncated, self._info()

    def render(self) -> str | None:
        """One line: the step, this program's cost, the best one's and the original's, in ms."""
        if self.render_mode != "ansi":
            return None
        return (
            f"step {self._steps}: {self.state.cost:.4g} ms, best {self._best.cost:.4g} ms, "
            f"original {self._start.cost:.4g} ms"
        )

    def _info(self) -> dict[str, Any]:
        return {
            "action_mask": self.seen.mask.astype(np.int8),
            "cost": self.state.cost,
            "best_cost": self._best.cost,
            "evaluations": self.state.evaluations,
        }

    def _observe(self) -> Observation:
        fixed = self.layout
        seen = view(self.state, fixed, self._best.cost, 1 - self._steps / self.horizon)
        self.seen = seen
        unchanging = {
            "kinds": fixed.kinds, "nodes": fixed.nodes, "classes": fixed.classes, "member": fixed.member,
            "operand": fixed.operand, "sites": fixed.sites, "target": fixed.target,
        }  # fmt: skip
        return {
            **{name: array.copy() for name, array in unchanging.items()},  # Gymnasium wants new data every time
            "chosen": seen.chosen, "live": seen.live, "moves": seen.moves, "mask": seen.mask.astype(np.int8),
            "progress": seen.progress,
        }  # fmt: skip

    def _observation_space(self) -> spaces.Dict:
        n, c, a = len(self.layout.enode), len(self.layout.eclass), len(self.rules)

        def real(*shape: int) -> spaces.Box:
            return spaces.Box(-np.inf, np.inf, shape, np.float32)

        def index(high: int, *shape: int) -> spaces.Box:
            return spaces.Box(0, max(high - 1, 0), shape, np.int64)

        edges, sites = self.layout.operand.shape[1], self.layout.sites.shape[1]
        return spaces.Dict(
            {
                "kinds": index(KINDS, n),
                "nodes": real(n, NODE_FEATURES),
                "classes": real(c, CLASS_FEATURES),
                "member": index(c, n),
                "operand": index(max(n, c), 2, edges),
                "sites": index(max(n, a), 2, sites),
                "target": real(TARGET_FEATURES),
                "chosen": real(n),
                "live": real(c, 2),
                "moves": real(a + 1, MOVE_FEATURES),
                "mask": spaces.Box(0, 1, (a + 1,), np.int8),
                "progress": real(PROGRESS_FEATURES),
            }
        )
