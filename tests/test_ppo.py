"""PPO: advantages by their definition, and learning that shows."""

import numpy as np
import pytest
import torch

from xrlflow.cost.base import bind
from xrlflow.cost.devices import DEVICES
from xrlflow.cost.fusion import fusion
from xrlflow.cost.roofline import roofline
from xrlflow.egraph.saturate import saturate
from xrlflow.policy.encoder import PolicyNetwork
from xrlflow.policy.ppo import Arguments, advantage, play, train
from xrlflow.policy.pretraining import NoisyFusion, random_network, task, training_set
from xrlflow.policy.puzzles import puzzle

QUICK = {"slots": 4, "steps": 12, "horizon": 10, "minibatch": 24, "hidden": 16, "rounds": 1}


def tasks(n, device="a100"):
    spaces = [puzzle(np.random.default_rng(100 + s), 3) for s in range(n)]
    return [task(f"puzzle {s}", space, bind(roofline(device), space, 1.2), 500) for s, space in enumerate(spaces)]


@pytest.mark.parametrize("seed", range(5))
def test_advantages_are_the_weighted_sums_of_the_definition(seed):
    """A_t = sum of (gamma lambda)^k delta_{t+k} up to the end of the episode; a cut episode goes on in its last
    value."""
    rng = np.random.default_rng(seed)
    steps, gamma, lam = 12, 0.9, 0.8
    rewards, values = rng.normal(size=(steps, 1)), rng.normal(size=(steps + 1, 1))
    ended = rng.random((steps, 1)) < 0.3
    cut = ended & (rng.random((steps, 1)) < 0.5)
    rest = np.where(cut, rng.normal(size=(steps, 1)), 0.0)
    found = advantage(rewards, values, ended, rest, gamma, lam)
    for t in range(steps):
        expected, weight = 0.0, 1.0
        for k in range(t, steps):
            following = rest[k, 0] if ended[k, 0] else values[k + 1, 0]
            expected += weight * (rewards[k, 0] + gamma * following - values[k, 0])
            weight *= gamma * lam
            if ended[k, 0]:
                break
        assert found[t, 0] == pytest.approx(expected)


def test_without_discount_advantages_are_returns_minus_values():
    rewards = np.array([[1.0], [2.0], [3.0], [4.0]])
    values = np.zeros((5, 1))
    ended = np.array([[False], [True], [False], [True]])
    rest = np.array([[0.0], [0.0], [0.0], [10.0]])  # the first episode stops, the second is cut
    assert advantage(rewards, values, ended, rest, 1.0, 1.0).ravel().tolist() == [3.0, 2.0, 17.0, 14.0]


def test_training_beats_the_same_network_untrained():
    """On the spaces it practises on, half a minute is enough."""
    practice = tasks(4)
    args = Arguments(seed=3, iterations=10, slots=8, steps=24, horizon=12, hidden=16, rounds=2, minibatch=48)
    torch.manual_seed(3)
    untrained = PolicyNetwork(16, 2)
    net, curve = train(practice, args)
    gain = lambda n: np.mean([(1 - play(n, t, 8, 6, seed=0)[:, -1].mean()) / t.reference for t in practice])
    assert gain(net) > gain(untrained) + 0.15
    assert curve[-1].gain > curve[0].gain
    assert curve[-1].entropy < curve[0].entropy


def test_same_seed_same_weights_and_curve():
    practice = tasks(2)
    (a, first), (b, second) = (train(practice, Arguments(seed=5, iterations=2, **QUICK)) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert [(c.gain, c.kl) for c in first] == [(c.gain, c.kl) for c in second]
    other, _ = train(practice, Arguments(seed=6, iterations=2, **QUICK))
    assert not all(torch.equal(p, q) for p, q in zip(a.parameters(), other.parameters(), strict=True))


def test_the_curve_is_made_of_plausible_numbers():
    _, curve = train(tasks(2), Arguments(seed=1, iterations=3, **QUICK))
    assert [c.steps for c in curve] == [48, 96, 144]
    for c in curve:
        assert c.episodes > 0 and 0 <= c.stopped <= 1 and 0 <= c.clipped <= 1
        assert 0 < c.length <= 10
        assert c.entropy > 0 and c.kl > -1e-6 and c.explained <= 1


def test_a_time_limit_ends_training():
    _, curve = train(tasks(1), Arguments(seed=1, seconds=2.0, **QUICK))
    assert curve and curve[-2].seconds < 2.0 if len(curve) > 1 else curve


def test_play_never_gets_worse_and_random_play_needs_no_network():
    t = tasks(1)[0]
    for net in (None, PolicyNetwork(16, 1)):
        best = play(net, t, 3, 8, seed=0)
        assert best.shape == (3, 9)
        assert (np.diff(best, axis=1) <= 1e-12).all() and (best[:, 0] == 1).all()


def test_the_training_set_is_made_of_different_legal_spaces():
    found = training_set(seed=3, networks=6, puzzles=3, zoo=())
    assert len(found) >= 5
    for t in found:
        assert t.cost.legal(t.space.original)
        assert 0.005 < t.reference < 1
    assert len({(t.space.n_nodes, round(t.reference, 6)) for t in found}) == len(found)


def test_random_networks_are_reproducible():
    a, b = (random_network(np.random.default_rng(4)) for _ in range(2))
    assert a.nodes == b.nodes


def test_tasks_may_have_costs_of_fused_kernels():
    """Off by random factors, which are the same whatever is asked for first, and in another process."""
    found = training_set(seed=3, networks=3, puzzles=2, zoo=(), fused=1.0)
    assert found and all(t.cost.name.startswith("fusion:") for t in found)
    rng = np.random.default_rng(5)
    space = saturate(random_network(rng), [], max_iterations=1)
    device = DEVICES["a100"]
    plain = bind(fusion("a100"), space).total(space.original)
    totals = []
    for first in ("prices", "total"):
        model = NoisyFusion(device, np.random.default_rng(7), 0.5)
        cost = bind(model, space)
        if first == "prices":
            model.prices(space)
        totals.append(cost.total(space.original))
    assert totals[0] == totals[1] != pytest.approx(plain, rel=1e-6)
    assert bind(NoisyFusion(device, np.random.default_rng(7), 0.0), space).total(space.original) == pytest.approx(plain)
    # without them nothing has changed for whoever trains as the shipped policy was trained
    assert all(t.cost.name.startswith("roofline:") for t in training_set(seed=3, networks=3, puzzles=2, zoo=()))
