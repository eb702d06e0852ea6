"""Proximal policy optimisation (Schulman et al., 2017) of the extraction policy, in one file.

Follows CleanRL's layout; what matters in the implementation:

1. many search spaces at once: each slot plays one task and draws a new one after every episode; 2. invalid actions
are not in the softmax at all (they have no logits), so no mask constant appears; 3. generalised advantage estimation
with γ = 1; an episode that ends by Stop has no value left, one that runs out of steps is bootstrapped from the value
of the state it was cut off in, *before* the slot is reset; 4. advantages are normalised over each minibatch; the
value loss is not clipped; 5. learning rate and entropy bonus go down linearly over training.

Metrics of an iteration, in `Curve`: see its fields.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .encoder import PolicyNetwork, collate, log_probabilities, one_thread, sample
from .environment import ExtractionEnv
from .features import Layout, View
from .pretraining import Task


@dataclass(frozen=True)
class Arguments:
    """Everything that steers a training run."""

    seed: int = 1
    """Seed of task sampling, action sampling, minibatches and the network's first weights."""
    iterations: int = 10_000
    """Rounds of collecting and learning at most; whichever of this and `seconds` ends first."""
    seconds: float | None = None
    """Wall-clock seconds of training at most; results then depend on the machine, the curve says how far it came."""
    slots: int = 16
    """Episodes played at the same time."""
    steps: int = 48
    """Steps of each slot in an iteration."""
    horizon: int = 40
    """Steps after which an episode is cut off."""
    learning_rate: float = 1e-3
    """Of Adam at the start; falls linearly to a tenth."""
    gamma: float = 1.0
    """Discount: 1, so that a late gain counts as much as an early one."""
    gae_lambda: float = 0.95
    """Trade-off between bias and variance of the advantages."""
    epochs: int = 2
    """Passes over the collected steps in an iteration."""
    minibatch: int = 96
    """States in a minibatch."""
    clip: float = 0.2
    """How far the probability ratio may move before its gradient is cut."""
    entropy: float = 0.01
    """Weight of the entropy bonus at the start; falls linearly to a tenth."""
    value: float = 0.5
    """Weight of the value loss."""
    grad_norm: float = 0.5
    """Gradients are scaled down to this norm."""
    target_kl: float = 0.05
    """An iteration's learning stops when the policy moved further than this."""
    shaping: float = 0.5
    """Weight of the potential in the environment's reward."""
    hidden: int = 48
    """Width of the network's embeddings."""
    rounds: int = 3
    """Rounds of messages in the network."""
    threads: int = 1
    """Threads that torch uses."""


@dataclass(frozen=True)
class Curve:
    """What one iteration did."""

    iteration: int
    """Number of the iteration, from 0."""
    steps: int
    """Environment steps taken since training began."""
    seconds: float
    """Since training began."""
    episodes: int
    """Episodes that ended in this iteration."""
    gain: float
    """Mean over these of (original's cost - best cost) / what climb gains there; 1 means as good as climb."""
    length: float
    """Mean length of these episodes in steps."""
    stopped: float
    """Share of these that ended by Stop."""
    policy_loss: float
    """Mean clipped surrogate loss."""
    value_loss: float
    """Mean squared error of the values against the returns."""
    entropy: float
    """Mean entropy of the policy in nats."""
    kl: float
    """Mean approximate KL divergence of the old from the new policy (Schulman's k3 estimator)."""
    clipped: float
    """Share of probability ratios that were clipped."""
    explained: float
    """1 - Var(return - value) / Var(return): how much of the returns the values explain."""


class Pool:
    """Environments of the tasks; several slots may play the same task at once."""

    def __init__(self, tasks: Sequence[Task], args: Arguments) -> None:
        self.tasks, self.args = tasks, args
        self.free: list[list[ExtractionEnv]] = [[] for _ in tasks]

    def take(self, rng: np.random.Generator) -> tuple[int, ExtractionEnv]:
        k = int(rng.integers(len(self.tasks)))
        t = self.tasks[k]
        if self.free[k]:
            env = self.free[k].pop()
        else:
            env = ExtractionEnv(t.space, t.cost, self.args.horizon, shaping=self.args.shaping, scale=t.reference)
        env.reset()
        return k, env

    def give(self, k: int, env: ExtractionEnv) -> None:
        self.free[k].append(env)


def train(
    tasks: Sequence[Task],
    args: Arguments,
    network: PolicyNetwork | None = None,
    progress: Callable[[Curve], None] | None = None,
) -> tuple[PolicyNetwork, list[Curve]]:
    """Train on these tasks, from `network` if given (it is changed). Returns the network and the curve."""
    # Seeding
    threads = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    generator = torch.Generator().manual_seed(args.seed)

    net = network or PolicyNetwork(args.hidden, args.rounds)
    optimizer = torch.optim.Adam(net.parameters(), lr=args.learning_rate, eps=1e-5)
    pool = Pool(tasks, args)
    playing = [pool.take(rng) for _ in range(args.slots)]
    age = np.zeros(args.slots)
    curve: list[Curve] = []
    started = time.perf_counter()

    for iteration in range(args.iterations):
        spent = time.perf_counter() - started
        done_share = max(iteration / args.iterations, spent / args.seconds if args.seconds else 0.0)
        if done_share >= 1:
            break
        remaining = 1 - 0.9 * done_share
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * remaining

        # Collect
        states: list[tuple[Layout, View]] = []  # step after step, slot after slot
        rows = np.zeros((args.steps, args.slots), dtype=np.int64)  # the legal action taken, counted within its state
        log_probs = np.zeros((args.steps, args.slots), dtype=np.float32)
        values = np.zeros((args.steps + 1, args.slots), dtype=np.float32)
        rewards = np.zeros((args.steps, args.slots), dtype=np.float32)
        ended = np.zeros((args.steps, args.slots), dtype=bool)
        rest = np.zeros((args.steps, args.slots), dtype=np.float32)  # value of the state an episode was cut off in
        finished: list[tuple[float, float, bool]] = []
        for t in range(args.steps):
            now = [(env.layout, env.seen) for _, env in playing]
            states += now
            batch = collate(now)
            with torch.no_grad():
                scores, value = net(batch)
                logp = log_probabilities(scores, batch)
                row = sample(logp, batch, generator)
            first = torch.searchsorted(batch.action_graph, torch.arange(args.slots))
            values[t] = value.numpy()
            log_probs[t] = logp[row].numpy()
            rows[t] = (row - first).numpy()
            cut: list[tuple[int, tuple[Layout, View]]] = []
            for s, action in enumerate(batch.legal[row].tolist()):
                k, env = playing[s]
                _, reward, stopped, truncated, _ = env.step(action)
                rewards[t, s] = reward
                age[s] += 1
                if stopped or truncated:
                    ended[t, s] = True
                    gain = (1 - env.best_cost / env.rules.original_cost) / tasks[k].reference
                    finished.append((gain, age[s], stopped))
                    if truncated:
                        cut.append((s, (env.layout, env.seen)))
                    pool.give(k, env)
                    playing[s] = pool.take(rng)
                    age[s] = 0
            if cut:
                with torch.no_grad():
                    _, value = net(collate([state for _, state in cut]))
                rest[t, [s for s, _ in cut]] = value.numpy()
        with torch.no_grad():
            values[args.steps] = net(collate([(env.layout, env.seen) for _, env in playing]))[1].numpy()

        # Advantages
        advantages = advantage(rewards, values, ended, rest, args.gamma, args.gae_lambda)
        returns = advantages + values[:-1]

        # Learn
        flat = {
            "row": torch.from_numpy(rows.reshape(-1)), "logp": torch.from_numpy(log_probs.reshape(-1)),
            "advantage": torch.from_numpy(advantages.reshape(-1)), "return": torch.from_numpy(returns.reshape(-1)),
        }  # fmt: skip
        totals: list[tuple[float, ...]] = []
        for _ in range(args.epochs):
            order = rng.permutation(len(states))
            for start in range(0, len(order), args.minibatch):
                index = order[start : start + args.minibatch]
                batch = collate([states[i] for i in index])
                scores, value = net(batch)
                logp = log_probabilities(scores, batch)
                first = torch.searchsorted(batch.action_graph, torch.arange(batch.size))
                ratio_log = logp[first + flat["row"][index]] - flat["logp"][index]
                ratio = ratio_log.exp()
                adv = flat["advantage"][index]
                adv = (adv - adv.mean()) / (adv.std() + 1e-8)
                policy_loss = -torch.min(adv * ratio, adv * ratio.clamp(1 - args.clip, 1 + args.clip)).mean()
                value_loss = (value - flat["return"][index]).square().mean()
                entropy = -(logp * logp.exp()).sum() / batch.size
                loss = policy_loss + args.value * value_loss - args.entropy * remaining * entropy
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), args.grad_norm)
                optimizer.step()
                with torch.no_grad():
                    kl = ((ratio - 1) - ratio_log).mean()
                    clipped = ((ratio - 1).abs() > args.clip).float().mean()
                totals.append(tuple(float(x.detach()) for x in (policy_loss, value_loss, entropy, kl, clipped)))
            if totals[-1][3] > args.target_kl:
                break

        spread = float(returns.var())
        gain, length, stopped_share = np.mean(finished, axis=0).tolist() if finished else (0.0, 0.0, 0.0)
        policy_loss_, value_loss_, entropy_, kl_, clipped_ = np.mean(totals, axis=0).tolist()
        curve.append(
            Curve(
                iteration=iteration,
                steps=(iteration + 1) * args.steps * args.slots,
                seconds=time.perf_counter() - started,
                episodes=len(finished),
                gain=gain,
                length=length,
                stopped=stopped_share,
                policy_loss=policy_loss_,
                value_loss=value_loss_,
                entropy=entropy_,
                kl=kl_,
                clipped=clipped_,
                explained=1 - float((returns - values[:-1]).var()) / spread if spread > 0 else 0.0,
            )
        )
        if progress:
            progress(curve[-1])
    torch.set_num_threads(threads)
    return net, curve


def advantage(
    rewards: np.ndarray, values: np.ndarray, ended: np.ndarray, rest: np.ndarray, gamma: float, lam: float
) -> np.ndarray:
    """Generalised advantage estimates (Schulman et al., 2016).

    rewards, ended, rest are [steps, slots], values [steps + 1, slots]. Where an episode `ended`, the value that
    follows is `rest` (0 after Stop, the value of the last state after a cut) and nothing flows back from the next
    episode.
    """
    out = np.zeros_like(rewards)
    flowing = np.zeros(rewards.shape[1], dtype=rewards.dtype)
    for t in range(len(rewards) - 1, -1, -1):
        following = np.where(ended[t], rest[t], values[t + 1])
        delta = rewards[t] + gamma * following - values[t]
        flowing = delta + gamma * lam * np.where(ended[t], 0.0, flowing)
        out[t] = flowing
    return out


@torch.no_grad()
@one_thread()
def play(net: PolicyNetwork | None, task: Task, rollouts: int, steps: int, seed: int) -> np.ndarray:
    """Best cost so far, as a share of the original's, after each step: float[rollouts, steps + 1].

    Rollouts run side by side. Without a network actions are uniformly random legal ones, Stop left out. One that stops
    starts again from the original and keeps its best, so that all take the same number of steps.
    """
    first = ExtractionEnv(task.space, task.cost, steps)
    first.reset()
    envs = [first, *(first.twin() for _ in range(rollouts - 1))]
    for env in envs:
        env.reset()
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    best = np.ones((rollouts, steps + 1))
    for t in range(steps):
        if net is None:
            legal = [np.flatnonzero(env.seen.mask) for env in envs]
            actions = [int(rng.choice(a[:-1] if len(a) > 1 else a)) for a in legal]
        else:
            batch = collate([(env.layout, env.seen) for env in envs])
            actions = batch.legal[sample(log_probabilities(net(batch)[0], batch), batch, generator)].tolist()
        for k, (env, action) in enumerate(zip(envs, actions, strict=True)):
            _, _, stopped, _, _ = env.step(action)
            best[k, t + 1] = min(best[k, t], env.best_cost / env.rules.original_cost)
            if stopped:
                env.reset()
    return best
