"""The learned policy really chooses: on graphs it was not trained on it beats chance and its own untrained shape."""

import json
import math

import numpy as np
import pytest
import torch

from xrlflow.cost.base import Cost, bind
from xrlflow.cost.roofline import roofline
from xrlflow.egraph.saturate import saturate
from xrlflow.errors import UserError
from xrlflow.policy.artefact import PRETRAINED, load_policy, save_policy
from xrlflow.policy.base import Budget, extractor
from xrlflow.policy.encoder import PolicyNetwork
from xrlflow.policy.ppo import play
from xrlflow.policy.pretraining import Task, priced, random_network, task, training_set, zoo_space
from xrlflow.policy.puzzles import puzzle
from xrlflow.train import main

STEPS = 12


@pytest.fixture(scope="module")
def held_out():
    """Zoo models and random networks that the shipped policy has not seen; all have something to gain."""
    found = []
    for name in ("vit-tiny", "inception-tiny", "squeezenet-tiny", "resnext-tiny", "llama-tiny"):
        space = zoo_space(name)
        found += [task(f"{name} {d}", space, bind(roofline(d), space)) for d in ("a100", "epyc-1t")]
    rng = np.random.default_rng(20_000)
    while len(found) < 16:
        space = saturate(random_network(rng), max_enodes=900, seconds=5.0)
        if 60 < space.n_nodes < 400:
            made = task(f"network {len(found)}", space, priced(space, rng))
            found += [made] if made.reference > 0.01 else []
    return [t for t in found if t.reference > 0.01]


def gains(net, t, seed):
    """Share of climb's gain that the best program has after 12 steps, mean of 4 rollouts."""
    return (1 - play(net, t, 4, STEPS, seed)[:, -1].mean()) / t.reference


@pytest.fixture(scope="module")
def learned(held_out):
    """For each held-out space what the shipped policy gains, with two seeds."""
    return gains_of(load_policy()[0], held_out)


def gains_of(net, tasks):
    return [np.mean([gains(net, t, s) for s in (0, 1)]) for t in tasks]


def sign_test(wins, losses):
    """One-sided p-value of so many wins against losses if both were as likely."""
    n = wins + losses
    return sum(math.comb(n, k) for k in range(wins, n + 1)) / 2**n


def compare(better, worse):
    """Mean difference, and the p-value of a sign test over spaces."""
    wins = sum(a > b + 1e-9 for a, b in zip(better, worse, strict=True))
    losses = sum(b > a + 1e-9 for a, b in zip(better, worse, strict=True))
    return np.mean(np.subtract(better, worse)), sign_test(wins, losses)


def test_held_out_spaces_are_not_in_the_training_set(held_out):
    seen = {(t.space.ops, t.space.attributes) for t in training_set(networks=6, puzzles=3)}
    assert len(held_out) >= 14
    assert not seen & {(t.space.ops, t.space.attributes) for t in held_out}
    account = load_policy()[1]
    assert not any(name in account["command"] for name in ("vit", "inception", "squeezenet", "resnext", "llama"))


def test_the_shipped_policy_beats_random_actions_on_unseen_graphs(held_out, learned):
    better, p = compare(learned, gains_of(None, held_out))
    assert better > 0.15 and p < 0.01


def test_the_shipped_policy_beats_the_same_network_untrained_on_unseen_graphs(held_out, learned):
    torch.manual_seed(0)
    untrained = PolicyNetwork(**load_policy()[1]["network"]).eval()
    better, p = compare(learned, gains_of(untrained, held_out))
    assert better > 0.15 and p < 0.01


def test_the_policy_leaves_a_local_optimum_that_descent_is_stuck_in():
    """On Llama's blocks the moves that pay most lead to a dead end; the policy was never shown that model."""
    space = zoo_space("llama-tiny")
    cost = bind(roofline("a100"), space)
    stuck = extractor("greedy-group", alpha=1.0).extract(space, cost, Budget(steps=5000), np.random.default_rng(0))
    learned = extractor("rl").extract(space, cost, Budget(steps=5000), np.random.default_rng(0))
    assert learned.cost < 0.99 * stuck.cost


def test_its_result_is_legal_its_own_and_reproducible(held_out):
    t = held_out[0]
    a, b = (extractor("rl").extract(t.space, t.cost, Budget(steps=3000), np.random.default_rng(5)) for _ in range(2))
    assert a.selection == b.selection and a.trace.points[-1][0] == b.trace.points[-1][0]
    assert t.cost.legal(a.selection)
    assert a.cost == pytest.approx(t.cost.total(a.selection))
    assert a.trace.points[-1][2] == pytest.approx(a.cost)
    assert a.extras["steps"] > 0


def test_an_untrained_policy_gets_no_help(held_out):
    """One rollout of a network that never learned falls short of climb somewhere: nothing else searches."""
    torch.manual_seed(1)
    net = PolicyNetwork().eval()
    run = lambda t: extractor("rl", network=net, rollouts=1).extract(
        t.space, t.cost, Budget(), np.random.default_rng(0)
    )
    shortfall = [run(t).cost / t.cost.total(t.space.original) - (1 - t.reference) for t in held_out[:8]]
    assert max(shortfall) > 0.01


@pytest.mark.parametrize("steps", [1, 30, 400])
def test_it_keeps_its_budget(held_out, steps):
    t = held_out[0]
    found = extractor("rl").extract(t.space, t.cost, Budget(steps=steps), np.random.default_rng(0))
    assert all(n <= steps + 64 for n, _, _ in found.trace.points)
    assert found.stop_reason == "out of steps"
    assert t.cost.legal(found.selection)


def test_a_space_without_choices_comes_back_as_it_is():
    from xrlflow.egraph.graph import GraphBuilder, TensorType
    from xrlflow.policy.puzzles import SpaceBuilder

    g = GraphBuilder()
    space = SpaceBuilder(g.build({"y": g.op("Tanh", g.input("x", TensorType((2, 2), "float32")))})).build()
    found = extractor("rl").extract(space, bind(roofline("a100"), space), Budget(), np.random.default_rng(0))
    assert found.selection == space.original and found.stop_reason == "no moves"


def test_it_says_when_the_target_is_not_one_it_was_trained_for():
    space = puzzle(np.random.default_rng(0), 2)
    known, other = bind(roofline("a100"), space), bind(roofline("h100"), space)
    run = lambda cost: extractor("rl", rollouts=1).extract(space, cost, Budget(), np.random.default_rng(0)).extras
    assert "warnings" not in run(known)
    assert "not for roofline:h100" in run(other)["warnings"][0]
    assert "roofline:a100" in run(other)["trained_for"]


def test_the_shipped_file_is_small_and_says_how_it_was_made():
    assert PRETRAINED.stat().st_size < 2_000_000
    _, account = load_policy()
    assert account["command"].startswith("python -m xrlflow.train ") and "--seed" in account["command"]
    assert account["seconds"] <= 600 and account["arguments"]["threads"] <= 2
    assert account["curve"][-1][2] > account["curve"][0][2]
    assert set(account["versions"]) >= {"torch", "numpy", "python"}
    assert "/tmp" not in json.dumps(account) and "/work" not in json.dumps(account)


def test_files_that_are_no_policies_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such policy file"):
        load_policy(tmp_path / "none.pt")
    bad = tmp_path / "bad.pt"
    bad.write_bytes(b"not a policy")
    with pytest.raises(UserError, match="not a policy file"):
        load_policy(bad)
    torch.save({"weights": {}, "account": json.dumps({"features": -1})}, bad)
    with pytest.raises(UserError, match="features of version -1"):
        load_policy(bad)
    torch.save({"weights": print, "account": "{}"}, bad)  # a pickle that would import something
    with pytest.raises(UserError, match="not a policy file"):
        load_policy(bad)


def test_what_is_saved_is_loaded(tmp_path):
    torch.manual_seed(2)
    net = PolicyNetwork(hidden=16, rounds=1)
    save_policy(tmp_path / "p.pt", net, {"command": "x"})
    again, account = load_policy(tmp_path / "p.pt")
    assert account["command"] == "x" and account["network"] == {"hidden": 16, "rounds": 1}
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    assert [f.name for f in tmp_path.iterdir()] == ["p.pt"]


def test_the_command_line_trains_and_fine_tunes(tmp_path, capsys):
    out, tuned = tmp_path / "policy.pt", tmp_path / "tuned.pt"
    assert main(["--out", str(out), "--iterations", "1", "--networks", "1", "--puzzles", "2", "--quiet"]) == 0
    fine = ["mlp-tower-tiny", "--policy", str(out), "--out", str(tuned), "--iterations", "1"]
    assert main([*fine, "--target", "roofline:h100"]) == 0
    assert "iteration" in capsys.readouterr().out
    _, account = load_policy(tuned)
    assert "roofline:h100" in account["targets"] and account["fine_tuned_from"]
    assert not torch.equal(load_policy(out)[0].score.weight, load_policy(tuned)[0].score.weight)
    space = puzzle(np.random.default_rng(0), 2)
    found = extractor("rl", policy=tuned).extract(
        space, bind(roofline("h100"), space), Budget(), np.random.default_rng(0)
    )
    assert "warnings" not in found.extras


def test_mistakes_on_the_command_line_are_one_line(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "p.pt"), "--policy", "none.pt"]) == 2
    assert main(["--out", str(tmp_path / "p.pt"), "--policy", "none.pt", "vit-tiny"]) == 2
    assert main(["--out", str(tmp_path / "p.pt"), "--minutes", "0"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3 and all(line.startswith("xrlflow.train: ") for line in lines)


@pytest.mark.slow
def test_fine_tuning_on_a_model_does_not_make_it_worse_there(tmp_path):
    out = tmp_path / "tuned.pt"
    assert main(["vit-tiny", "--policy", str(PRETRAINED), "--out", str(out), "--iterations", "8", "--quiet"]) == 0
    space = zoo_space("vit-tiny")
    t = task("vit", space, bind(roofline("a100"), space))
    assert isinstance(t, Task) and isinstance(t.cost, Cost)
    before, after = (np.mean([gains(load_policy(p)[0], t, s) for s in range(4)]) for p in (PRETRAINED, out))
    assert after > before - 0.05
