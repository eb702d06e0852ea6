"""The extractor `rl`: rollouts of the learned policy from the original program, the cheapest program met.

The first rollout always takes the likeliest action, the others draw. Nothing else searches: the result is the
policy's own.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .artefact import load_policy
from .base import Budget, Extraction, Meter
from .climb import look
from .encoder import PolicyNetwork, collate, log_probabilities, one_thread, sample
from .environment import ExtractionEnv
from .state import Snapshot

if TYPE_CHECKING:
    from ..cost.base import Cost
    from ..egraph.space import SearchSpace

BATCH = 8
"""Rollouts side by side at most."""

ROOM = 6000
"""E-nodes in a batch of rollouts at most, so that large spaces take memory and time for few rollouts at once."""


class LearnedPolicy:
    """Rollouts of a policy.

    policy: a file made by `python -m xrlflow.train`; None takes the shipped one. rollouts: how many at most. horizon:
    steps of a rollout at most; None takes 40, and more where the original offers more substitutions that pay.
    network: a network to use instead of a file, for tests and comparisons.

    Looking at the moves of a state prices their programs, so they count as evaluations, as they do for `climb`;
    `extras["steps"]` are the moves taken.
    """

    name = "rl"

    def __init__(
        self,
        policy: str | os.PathLike[str] | None = None,
        rollouts: int = 32,
        horizon: int | None = None,
        network: PolicyNetwork | None = None,
    ) -> None:
        self.rollouts, self.horizon = rollouts, horizon
        self.network, self.account = (network, {}) if network is not None else load_policy(policy)

    @torch.no_grad()
    @one_thread()
    def extract(self, space: SearchSpace, cost: Cost, budget: Budget, rng: np.random.Generator) -> Extraction:
        meter = Meter(budget)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        first = ExtractionEnv(space, cost)
        rules = first.rules
        meter.evaluations, taken = 1, 0
        meter.improved(rules.original_cost)
        best = first.state.snapshot()
        reason, finished = "rollouts done", 0
        look(first.state, meter)
        if not meter.exhausted:
            first.reset()
            paying = int((first.state.delta[first.seen.mask[:-1]] < 0).sum())
            horizon = self.horizon or int(np.clip(2 * paying, 40, 400))
            first.horizon = horizon
        while finished < self.rollouts and rules.actions and not meter.exhausted:
            wide = min(BATCH, max(1, ROOM // space.n_nodes), self.rollouts - finished) if finished else 1
            playing = [first.twin() for _ in range(wide)]
            for env in playing:
                env.reset()
            surest = playing[0] if not finished else None
            while playing and not meter.exhausted:
                actions = self._choose(playing, surest, generator)
                taken += sum(a != first.stop for a in actions)
                found = self._step(playing, actions, meter)
                best = found or best
            finished += wide
        if not rules.actions:
            reason = "no moves"
        elif finished < self.rollouts or meter.exhausted:
            reason = meter.reason
        first.state.restore(best)
        selection = first.state.selection()
        extras = {"steps": taken, "rollouts": finished, **self.trained_for(cost)}
        return Extraction(selection, cost.total(selection), meter.trace, reason, self.name, extras)

    def _choose(
        self, playing: list[ExtractionEnv], surest: ExtractionEnv | None, generator: torch.Generator
    ) -> list[int]:
        """An action for each environment, drawn but for `surest`, which gets the likeliest."""
        batch = collate([(env.layout, env.seen) for env in playing])
        logits = log_probabilities(self.network(batch)[0], batch)
        row = sample(logits, batch, generator)
        if playing[0] is surest:
            row[0] = sample(logits, batch, greedy=True)[0]
        chosen: list[int] = batch.legal[row].tolist()
        return chosen

    def _step(self, playing: list[ExtractionEnv], actions: list[int], meter: Meter) -> Snapshot | None:
        """Take the actions, drop environments whose rollout ended; the best program if it is better than any before."""
        best = None
        ended: list[ExtractionEnv] = []
        for env, action in zip(playing, actions, strict=True):
            before = env.state.evaluations
            _, _, stopped, truncated, _ = env.step(action)
            meter.evaluations += env.state.evaluations - before
            if meter.improved(env.best_cost):
                best = env.best_snapshot
            if stopped or truncated:
                ended.append(env)
            if meter.exhausted:
                break
        playing[:] = [env for env in playing if env not in ended]
        return best

    def trained_for(self, cost: Cost) -> dict[str, Any]:
        """The targets that the policy was trained for, and a warning if this cost is for none of them."""
        targets = list(self.account.get("targets", ()))
        if not targets:
            return {}
        told: dict[str, Any] = {"trained_for": targets}
        if cost.name not in targets:
            warning = (
                f"the policy was trained for {', '.join(targets)}, not for {cost.name}; "
                "python -m xrlflow.train --policy FILE MODEL fine-tunes one"
            )
            told["warnings"] = (warning,)
        return told
