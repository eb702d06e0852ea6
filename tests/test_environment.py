"""The extraction environment: a standard Gymnasium environment whose rewards mean what they say."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from xrlflow.cost.base import bind
from xrlflow.cost.roofline import roofline
from xrlflow.egraph.graph import GraphBuilder, TensorType
from xrlflow.policy.environment import ExtractionEnv
from xrlflow.policy.puzzles import SpaceBuilder, puzzle


def env_of(seed=1, blocks=4, growth=1.2, **options):
    space = puzzle(np.random.default_rng(seed), blocks)
    return ExtractionEnv(space, bind(roofline("a100"), space, growth), **options)


def siblings(n):
    g = GraphBuilder()
    x = g.input("x", TensorType((8, 256), "float32"))
    ws = [g.weight(np.full((256, 64), float(k), dtype=np.float32)) for k in range(n)]
    ms = [g.op("MatMul", x, w) for w in ws]
    b = SpaceBuilder(g.build({f"y{k}": g.op("Tanh", m) for k, m in enumerate(ms)}))
    weights = b.op("merge", "Concat", *(b.of[w] for w in ws), axis=1)
    split = b.op("merge", "Split", b.op("merge", "MatMul", b.of[x], weights), axis=1, sizes=[64] * n)
    for k, m in enumerate(ms):
        b.also(b.of[m], "merge", "Get", split, index=k)
    return b.build()


def walk(env, rng, steps, stop=True):
    """Random legal actions, then Stop; yields what `step` returned."""
    _, info = env.reset()
    for _ in range(steps):
        legal = np.flatnonzero(info["action_mask"][:-1])
        if not legal.size:
            break
        out = env.step(int(rng.choice(legal)))
        info = out[-1]
        yield out
        if out[3]:
            return
    if stop:
        yield env.step(env.stop)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("atomic", [False, True])
def test_gymnasium_accepts_it(atomic):
    check_env(env_of(atomic=atomic), skip_render_check=True)


@pytest.mark.parametrize("shaping", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_rewards_of_an_episode_sum_to_the_gain_of_the_best_program(seed, shaping):
    """Shaping telescopes to nothing, and steps as such earn nothing: only the best program counts."""
    env = env_of(seed, shaping=shaping, scale=0.1)
    total = sum(out[1] for out in walk(env, np.random.default_rng(seed), 25))
    original = env.rules.original_cost
    assert total == pytest.approx((original - env.best_cost) / (0.1 * original), abs=1e-9)


def test_out_of_steps_is_a_truncation_and_stop_a_termination():
    env = env_of(horizon=5)
    outs = list(walk(env, np.random.default_rng(0), 50))
    assert [(o[2], o[3]) for o in outs] == [(False, False)] * 4 + [(False, True)]
    env.reset()
    _, _, terminated, truncated, _ = env.step(env.stop)
    assert (terminated, truncated) == (True, False)


def test_an_illegal_action_changes_nothing_and_earns_nothing():
    env = env_of()
    _, info = env.reset()
    illegal = int(np.flatnonzero(info["action_mask"] == 0)[0])
    cost = info["cost"]
    _, reward, terminated, _, info = env.step(illegal)
    assert (reward, terminated, info["cost"]) == (0.0, False, cost)


@pytest.mark.parametrize("atomic", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_masked_walks_stay_legal(seed, atomic):
    env = env_of(seed, growth=1.03, atomic=atomic, horizon=100)
    cost = env.rules.cost
    for out in walk(env, np.random.default_rng(seed), 40):
        selection = env.state.selection()  # raises on a cycle
        assert cost.legal(selection)
        assert out[4]["cost"] == pytest.approx(cost.total(selection))
    assert cost.total(env.best()) == pytest.approx(env.best_cost)
    env.rules.space.to_graph(env.best())


def test_a_merge_loses_at_first_in_atomic_steps_only():
    space = siblings(4)
    cost = bind(roofline("a100"), space, 10.0)
    atomic = ExtractionEnv(space, cost, atomic=True)
    _, info = atomic.reset()
    costs = [info["cost"]]
    for a, action in enumerate(atomic.rules.actions):
        if space.ops[action.nodes[0]] == "Get":
            costs.append(atomic.step(a)[4]["cost"])
    assert len(costs) == 5
    assert max(costs) > costs[0] > min(costs), "up at first, down when all users have switched"
    assert costs[-1] == min(costs)
    group = ExtractionEnv(space, cost)
    _, info = group.reset()
    merges = np.flatnonzero(info["action_mask"][:-1])
    for a in merges:
        group.reset()
        assert group.step(int(a))[4]["cost"] < costs[0]


def test_shaping_shows_a_temporary_loss_at_once():
    space = siblings(4)
    env = ExtractionEnv(space, bind(roofline("a100"), space, 10.0), atomic=True, shaping=1.0)
    _, info = env.reset()
    first = env.step(int(np.flatnonzero(info["action_mask"][:-1])[0]))
    assert first[1] < 0


def test_reset_starts_from_the_original_again():
    env = env_of(3)
    before, info = env.reset()
    list(walk(env, np.random.default_rng(0), 10))
    after, again = env.reset()
    assert env.state.selection() == env.rules.space.original
    assert all(np.array_equal(before[k], after[k]) for k in before)
    assert info["cost"] == pytest.approx(again["cost"])


def test_twins_do_not_disturb_each_other():
    env = env_of(2)
    env.reset()
    twin = env.twin()
    list(walk(twin, np.random.default_rng(0), 10))
    observation, _ = env.reset()
    fresh, _ = env_of(2).reset()
    assert all(np.allclose(observation[k], fresh[k]) for k in fresh)


def test_an_observation_says_what_is_chosen_and_live():
    env = env_of(1)
    observation, _ = env.reset()
    chosen = set(env.layout.enode[observation["chosen"] > 0].tolist())
    space = env.rules.space
    assert chosen == {i for i in space.original.choice.tolist() if i >= 0 and not space.const[space.node_class[i]]}
    live = set(env.layout.eclass[observation["live"][:, 0] > 0].tolist())
    assert {int(space.node_class[i]) for i in chosen} <= live
    assert env.render() is None
    assert "original" in ExtractionEnv.render(_with_text(env))


def _with_text(env):
    env.render_mode = "ansi"
    return env
