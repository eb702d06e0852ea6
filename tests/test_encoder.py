"""The policy network: any size, batch equals single, and numbering does not matter."""

import numpy as np
import pytest
import torch

from xrlflow.cost.base import bind
from xrlflow.cost.roofline import roofline
from xrlflow.egraph.graph import GraphBuilder, TensorType
from xrlflow.policy.encoder import PolicyNetwork, collate, log_probabilities, sample
from xrlflow.policy.environment import ExtractionEnv
from xrlflow.policy.features import Layout, View, kind
from xrlflow.policy.puzzles import SpaceBuilder, puzzle


def state(seed, blocks=4, moves=3):
    space = puzzle(np.random.default_rng(seed), blocks)
    env = ExtractionEnv(space, bind(roofline("h200"), space, 1.2))
    _, info = env.reset()
    rng = np.random.default_rng(seed)
    for _ in range(moves):
        _, _, _, _, info = env.step(int(rng.choice(np.flatnonzero(info["action_mask"][:-1]))))
    return env.layout, env.seen


@pytest.fixture
def net():
    torch.manual_seed(0)
    made = PolicyNetwork()
    for p in made.parameters():  # last layers start near zero; make differences visible
        torch.nn.init.normal_(p, std=0.2)
    return made.eval()


@torch.no_grad()
def run(net, states):
    batch = collate(states)
    scores, values = net(batch)
    return batch, scores, values


def test_one_score_for_each_legal_action_and_one_value_for_each_graph(net):
    states = [state(s, blocks) for s, blocks in ((0, 2), (1, 5), (2, 12))]
    _, scores, values = run(net, states)
    assert scores.shape == (sum(int(v.mask.sum()) for _, v in states),)
    assert values.shape == (3,)
    assert torch.isfinite(scores).all() and torch.isfinite(values).all()


def test_a_batch_gives_what_single_graphs_give(net):
    states = [state(s, 2 + s) for s in range(4)]
    _, scores, values = run(net, states)
    alone = [run(net, [s]) for s in states]
    assert torch.allclose(scores, torch.cat([a[1] for a in alone]), atol=1e-4)
    assert torch.allclose(values, torch.cat([a[2] for a in alone]), atol=1e-4)


def permuted(fixed: Layout, seen: View, rng):
    """The same state with e-nodes, classes and actions numbered otherwise; and the new number of each action."""
    n, c, a = len(fixed.enode), len(fixed.eclass), len(seen.mask)
    pn, pc, pa = rng.permutation(n), rng.permutation(c), np.append(rng.permutation(a - 1), a - 1)  # new -> old
    to_n, to_c, to_a = np.argsort(pn), np.argsort(pc), np.argsort(pa)
    edges = rng.permutation(fixed.operand.shape[1])
    sites = rng.permutation(fixed.sites.shape[1])
    layout = Layout(
        kinds=fixed.kinds[pn], nodes=fixed.nodes[pn], classes=fixed.classes[pc], member=to_c[fixed.member[pn]],
        operand=np.stack([to_c[fixed.operand[0]], to_n[fixed.operand[1]]])[:, edges],
        sites=np.stack([to_a[fixed.sites[0]], to_n[fixed.sites[1]]])[:, sites],
        target=fixed.target, width=fixed.width[pa[:-1]], enode=fixed.enode[pn], eclass=fixed.eclass[pc],
    )  # fmt: skip
    view = View(seen.chosen[pn], seen.live[pc], seen.moves[pa], seen.mask[pa], seen.progress)
    return layout, view, to_a


@pytest.mark.parametrize("seed", range(3))
def test_numbering_does_not_matter(net, seed):
    fixed, seen = state(seed)
    layout, view, to_a = permuted(fixed, seen, np.random.default_rng(seed))
    batch, scores, value = run(net, [(fixed, seen)])
    again, moved, same = run(net, [(layout, view)])
    by_action = dict(zip(again.legal.tolist(), moved.tolist(), strict=True))
    expected = [by_action[int(to_a[a])] for a in batch.legal.tolist()]
    assert scores.tolist() == pytest.approx(expected, abs=1e-4)
    assert value.item() == pytest.approx(same.item(), abs=1e-4)
    assert np.std(expected) > 1e-3, "void if all actions score alike"


def test_attributes_matter():
    """A stride-2 convolution does not look like a stride-1 one, nor an axis like another."""
    g = GraphBuilder()
    x = g.input("x", TensorType((1, 8, 16, 16), "float32"))
    w = g.weight(np.zeros((8, 8, 3, 3), dtype=np.float32))
    conv = lambda s: g.op("Conv", x, w, strides=(s, s), dilations=(1, 1), pads=(1, 1, 1, 1), group=1)
    cats = [g.op("Concat", x, x, axis=k) for k in (1, 2)]
    graph = g.build({"a": conv(1), "b": conv(2), "c": cats[0], "d": cats[1]})
    space = SpaceBuilder(graph).build()
    env = ExtractionEnv(space, bind(roofline("a100"), space))
    rows = env.layout.nodes[:, 9:15]  # strides to axis
    ops = [space.ops[i] for i in env.layout.enode]
    for op in ("Conv", "Concat"):
        a, b = rows[[k for k, o in enumerate(ops) if o == op]]
        assert not np.allclose(a, b)


def test_operators_unknown_to_rules_have_stable_kinds():
    assert kind("::Gelu") == kind("::Gelu")
    assert kind("::Gelu") > kind("Reshape") > kind("Nonsense") == 0


def test_probabilities_sum_to_one_in_each_graph(net):
    states = [state(s, 3) for s in range(3)]
    batch, scores, _ = run(net, states)
    logp = log_probabilities(scores, batch)
    for g in range(3):
        assert logp[batch.action_graph == g].exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_only_legal_actions_are_drawn_as_often_as_their_probability_says(net):
    batch, scores, _ = run(net, [state(0, 3)] * 2)
    logp = log_probabilities(scores, batch)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([sample(logp, batch, generator) for _ in range(4000)])
    assert ((drawn >= 0) & (drawn < len(scores))).all()
    assert (batch.action_graph[drawn] == torch.tensor([0, 1])).all()
    share = torch.bincount(drawn.flatten(), minlength=len(scores)) / 4000
    assert torch.allclose(share, logp.exp(), atol=0.03)
    likeliest = sample(logp, batch, greedy=True)
    for g in range(2):
        assert logp[likeliest[g]] == logp[batch.action_graph == g].max()


def test_gradients_reach_every_weight():
    net = PolicyNetwork(hidden=16, rounds=2)
    batch = collate([state(0), state(1)])
    scores, values = net(batch)
    (log_probabilities(scores, batch).square().sum() + values.square().sum()).backward()
    without = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert without <= {"score.bias"}, "only the scores' common offset cancels in the softmax"
