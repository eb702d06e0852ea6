"""The extractors on search spaces that the shipped policy was not trained on: `benchmarks/results/extractors.md`.

    python benchmarks/extractors.py [--networks 12] [--seeds 2] [--out FILE without suffix]
    python benchmarks/extractors.py --cost fusion       # benchmarks/results/extractors_fusion.md

Two tables. *Equal evaluations*: every extractor gets the same number of cost evaluations, and looking at a neighbouring
program counts as one for all of them. *Equal steps*: the shipped policy, the same network untrained and uniformly
random legal actions take the same number of environment steps; one row says how often the policy lost. The figure is
the mean over spaces of the share of the best known gain; best known is the best of all runs of this script, not a
proved optimum.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xrlflow import load, saturate, zoo
from xrlflow.cost.base import Cost, CostModel, bind
from xrlflow.cost.fusion import fusion
from xrlflow.cost.roofline import roofline
from xrlflow.cost.target import cpu_model
from xrlflow.egraph.space import SearchSpace
from xrlflow.policy.artefact import load_policy
from xrlflow.policy.base import Budget, extractor
from xrlflow.policy.encoder import PolicyNetwork
from xrlflow.policy.ppo import play
from xrlflow.policy.pretraining import Task, priced, random_network

RESULTS = Path(__file__).resolve().parent / "results" / "extractors"
MODELS: dict[str, dict[str, Any]] = {
    "vit-tiny": {}, "inception-tiny": {}, "squeezenet-tiny": {}, "llama-tiny": {}, "resnext-tiny": {},
    "mlp-tower-tiny": {}, "nasrnn-tiny": {}, "inception": {"blocks": 3},
    "vit": {"layers": 3, "hidden": 192, "heads": 3, "intermediate": 384},
    "bert": {"layers": 4, "hidden": 256, "heads": 4, "intermediate": 512, "vocab": 500},
    "llama": {"layers": 2, "hidden": 128, "heads": 4, "kv_heads": 2, "intermediate": 256, "vocab": 500},
}  # fmt: skip
DEVICES = ("a100", "epyc-1t")
METHODS = ("tree", "greedy", "greedy-group", "climb", "random", "rl")
EVALUATIONS = (100, 300, 1000, 3000)
STEPS = (5, 10, 20, 40)
LEAST_GAIN = 0.003
"""Spaces where no run saves this share of the cost are left out: there is nothing to choose."""


def spaces(networks: int, model: Callable[[str], CostModel]) -> list[tuple[str, SearchSpace, Cost]]:
    """The held-out spaces: zoo models on two devices, and random networks of a seed that training does not use."""
    found = []
    for name, sizes in MODELS.items():
        space = saturate(load(zoo.build(name, **sizes)))
        label = name + "".join(f" {k}={v}" for k, v in sizes.items() if k in ("layers", "blocks"))
        found += [(f"{label}, {d}", space, bind(model(d), space)) for d in DEVICES]
    rng = np.random.default_rng(9999)
    while len(found) < 2 * len(MODELS) + networks:
        space = saturate(random_network(rng), max_enodes=900)
        if 60 < space.n_nodes <= 450:
            cost = priced(space, rng, fused=float(model is fusion))
            found.append((f"random network {len(found) - 2 * len(MODELS)}", space, cost))
    return found


def gains(space: SearchSpace, cost: Cost, seeds: int, policy: str | None) -> dict[str, list[float]]:
    """Share of the original's cost that each method saves, for each number of evaluations, mean over seeds."""
    original = cost.total(space.original)
    options = {m: {"policy": policy} if m == "rl" else {} for m in METHODS}

    def gain(method: str, steps: int, seed: int) -> float:
        chosen = extractor(method, **options[method])
        return 1 - chosen.extract(space, cost, Budget(steps=steps), np.random.default_rng(seed)).cost / original

    return {m: [float(np.mean([gain(m, n, s) for s in range(seeds)])) for n in EVALUATIONS] for m in METHODS}


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(r) + " |" for r in [head, ["---"] * len(head), *rows]]


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--networks", type=int, default=12)
    p.add_argument("--seeds", type=int, default=2)
    p.add_argument("--cost", choices=("roofline", "fusion"), default="roofline")
    p.add_argument("--policy", help="a policy in place of the shipped one")
    p.add_argument("--out", type=Path)
    args = p.parse_args()
    fused = args.cost == "fusion"
    args.out = args.out or RESULTS.with_name(RESULTS.name + "_fusion" * fused)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    players = {
        "shipped policy": load_policy(args.policy)[0],
        "untrained network": PolicyNetwork().eval(),
        "random actions": None,
    }
    started, names = time.monotonic(), []
    shares: dict[str, list[list[float]]] = {m: [] for m in METHODS}
    walks: dict[str, list[list[float]]] = {m: [] for m in players}
    for name, space, cost in spaces(args.networks, fusion if fused else roofline):
        found = gains(space, cost, args.seeds, args.policy)
        best = max(max(v) for v in found.values())
        if best < LEAST_GAIN:
            print(f"{name}: nothing to gain", flush=True)
            continue
        names.append(name)
        for m in METHODS:
            shares[m].append([g / best for g in found[m]])
        task = Task(name, space, cost, best)
        for m, net in players.items():
            runs = [1 - play(net, task, 4, max(STEPS), s)[:, list(STEPS)].mean(0) for s in range(args.seeds)]
            walks[m].append((np.mean(runs, 0) / best).tolist())
        last = ", ".join(f"{m} {shares[m][-1][-1]:.2f}" for m in METHODS)
        print(f"{name} ({space.n_nodes} e-nodes, {best:.1%}): {last}", flush=True)
    mean = {m: np.mean(v, 0) for m, v in (shares | walks).items()}
    lost = (np.array(walks["shipped policy"]) < np.array(walks["random actions"]) - 1e-9).sum(0)
    command = shlex.join(["python", "benchmarks/extractors.py", *sys.argv[1:]])
    facts = f"{cpu_model().split('  ')[0]}, Python {platform.python_version()}; {dt.datetime.now(dt.UTC).date()}"
    lines = [
        "# Extractors on held-out search spaces", "", f"    {command}", "",
        f"{facts}; cost {args.cost}; {len(names)} spaces, {args.seeds} seeds, {time.monotonic() - started:.0f} s.",
        "Share of the best known gain, mean over spaces.",
        "", "## Equal cost evaluations", "",
        *table(["evaluations", *map(str, EVALUATIONS)], [[m, *(f"{x:.3f}" for x in mean[m])] for m in METHODS]),
        "", "## Equal environment steps", "",
        *table(["steps", *map(str, STEPS)], [
            *([m, *(f"{x:.3f}" for x in mean[m])] for m in players),
            ["spaces where the policy lost to random", *map(str, lost)],
        ]), "",
    ]  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".md").write_text("\n".join(lines))
    record = {
        "command": command,
        "spaces": names,
        "evaluations": EVALUATIONS,
        "shares": shares,
        "steps": STEPS,
        "walks": walks,
    }
    args.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
