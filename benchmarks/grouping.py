"""What grouped moves are worth: `benchmarks/results/grouping.md` and `grouping.json`.

    python benchmarks/grouping.py                             # goes on where it was stopped

Greedy search, climbing (without its leaps, which are no substitutions) and MCTS, each with *atomic* moves (one class is
switched, and nothing else but what it needs) and with *grouped* ones (all users of a merge at once; all sites that look
alike at once), with the same number of cost evaluations, under the sum of operators (roofline) and under the cost of
fused kernels. Built examples in which each single move loses and all together win: n products of one input that could
be one, each followed by an activation. And models of the zoo.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from datetime import UTC, datetime
from typing import Any

import numpy as np
from exports import ROOT, processor, write

from xrlflow.cost.base import bind
from xrlflow.cost.fusion import fusion
from xrlflow.cost.roofline import roofline
from xrlflow.egraph.graph import Graph, GraphBuilder, TensorType
from xrlflow.egraph.saturate import saturate
from xrlflow.lowering import load
from xrlflow.policy.base import Budget, Extractor
from xrlflow.policy.climb import Climb
from xrlflow.policy.greedy import Greedy, GreedyGroup
from xrlflow.policy.mcts import MCTS
from xrlflow.zoo import build

RESULTS = ROOT / "benchmarks" / "results"
BUILT = {f"{n} products": n for n in (2, 3, 5, 8)}
REAL = (
    "bert-paper", "vit-paper", "dalle-paper", "nasrnn-cell", "inception-v3-paper", "squeezenet-paper", "nasnet-a-paper",
)  # fmt: skip
DEVICE = "a100"
EVALUATIONS = (300, 1000, 3000)


def methods(group: bool) -> dict[str, Extractor]:
    return {
        "greedy": GreedyGroup() if group else Greedy(),
        "climb": Climb(leaps=0, group=group),
        "mcts": MCTS(group=group, patience=1 << 30),
    }


def products(n: int) -> Graph:
    """n products of one input with different weights, each followed by Tanh."""
    g = GraphBuilder()
    x = g.input("x", TensorType((8, 256), "float32"))
    rng = np.random.default_rng(0)
    weights = [g.weight(rng.standard_normal((256, 64)).astype(np.float32)) for _ in range(n)]
    return g.build({f"y{k}": g.op("Tanh", g.op("MatMul", x, w)) for k, w in enumerate(weights)})


def examined(name: str) -> dict[str, Any]:
    graph = products(BUILT[name]) if name in BUILT else load(build(name))
    space = saturate(graph, seconds=60.0)
    record: dict[str, Any] = {"name": name, "enodes": space.n_nodes, "saved": {}}
    for model in (roofline(DEVICE), fusion(DEVICE)):
        cost = bind(model, space)
        original = cost.total(space.original)
        for group in (False, True):
            for method, chosen in methods(group).items():
                budget = Budget(None, EVALUATIONS[-1])
                found = chosen.extract(space, cost, budget, np.random.default_rng(0))
                saved = [1 - min(original, found.trace.best_after(n)) / original for n in EVALUATIONS]
                kind = "roofline" if model.name.startswith("roofline") else "fusion"
                record["saved"][f"{kind} {method} {'grouped' if group else 'atomic'}"] = saved
    return record


def report(records: list[dict[str, Any]]) -> str:
    command = shlex.join(["python", "benchmarks/grouping.py", *sys.argv[1:]])
    lines = [
        "# What grouped moves are worth",
        f"\n    {command}\n",
        f"{processor()}; {datetime.now(UTC):%Y-%m-%d}; {DEVICE}. Saved of the input's cost, in per cent, with",
        f"{' / '.join(map(str, EVALUATIONS))} cost evaluations; in each cell atomic moves, then grouped ones.",
    ]
    names = list(methods(True))
    for kind in ("roofline", "fusion"):
        lines += [
            f"\n## {kind}\n",
            f"| | e-nodes | {' | '.join(f'{m}, atomic | {m}, grouped' for m in names)} |",
            f"|---|--:|{'--:|--:|' * len(names)}",
        ]
        for r in records:
            cells = [
                " / ".join(f"{100 * x:.1f}" for x in r["saved"][f"{kind} {m} {which}"])
                for m in names
                for which in ("atomic", "grouped")
            ]
            lines.append(f"| {r['name']} | {r['enodes']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", default=[*BUILT, *REAL])
    options = parser.parse_args()
    file = RESULTS / "grouping.json"
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in options.names:
        if name not in known:
            known[name] = examined(name)
            print(name, {k: round(v[-1], 4) for k, v in known[name]["saved"].items()}, flush=True)
            write(file, json.dumps(known, indent=0))
            write(RESULTS / "grouping.md", report([known[n] for n in [*BUILT, *REAL] if n in known]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
