"""How far extractors are from the proved optimum: `benchmarks/results/optima.md` and `optima.json`.

    python benchmarks/optima.py                               # goes on where it was stopped
    python benchmarks/optima.py --models bert-paper --seconds 30

E-graphs of zoo models under all rules, priced by roofline:a100 operator by operator. Integer programming says what the
best program costs, or what none is below; the others have so many seconds each, of their own. All run in this process,
one after the other; what an extractor found is priced again from scratch.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from datetime import UTC, datetime
from typing import Any

import numpy as np
from exports import ROOT, processor, write

from xrlflow.cost.base import bind
from xrlflow.cost.roofline import roofline
from xrlflow.egraph.saturate import saturate
from xrlflow.lowering import load
from xrlflow.policy.base import Budget, extractor
from xrlflow.zoo import MODELS, build

RESULTS = ROOT / "benchmarks" / "results"
HEURISTICS = ("tree", "dag", "greedy", "greedy-group", "climb", "beam", "mcts", "random")
LIKE = ("-paper",)
MORE = ("squeezenet", "inception-block", "nasrnn-cell", "mlp-tower", "nas-cells", "bert", "vit", "gpt2", "llama", "t5")
DEVICE = "a100"


def examined(name: str, seconds: float, exact: float) -> dict[str, Any]:
    graph = load(build(name))
    space = saturate(graph, seconds=60.0)
    cost = bind(roofline(DEVICE), space)
    record: dict[str, Any] = {
        "model": name, "operators": len(graph.operators), "enodes": space.n_nodes, "classes": space.n_classes,
        "original": cost.total(space.original), "found": {},
    }  # fmt: skip
    for method in (*HEURISTICS, "saturation"):
        budget = Budget(exact if method == "saturation" else seconds)
        found = extractor(method).extract(space, cost, budget, np.random.default_rng(0))
        again = cost.total(space.selection(found.selection.choice))
        assert math.isclose(again, found.cost, rel_tol=1e-9)
        record["found"][method] = {
            "cost": found.cost, "seconds": found.trace.seconds, "evaluations": found.trace.evaluations,
            "bound": found.extras.get("lower_bound"), "proof": found.extras.get("proof"),
        }  # fmt: skip
    return record


def report(records: list[dict[str, Any]]) -> str:
    command = shlex.join(["python", "benchmarks/optima.py", *sys.argv[1:]])
    lines = [
        "# How far extractors are from the optimum",
        f"\n    {command}\n",
        f"{processor()}; {datetime.now(UTC):%Y-%m-%d}; one thread; roofline:{DEVICE}, a sum over operators.",
        "Optimum: what integer programming proved, as a share of the input's cost; where it proved none, what it found",
        "and, in brackets, by how much none is better. The others: by how much their program is dearer than that.\n",
        f"| model | operators | e-nodes | optimum | s | {' | '.join(HEURISTICS)} |",
        f"|---|--:|--:|--:|--:|{'--:|' * len(HEURISTICS)}",
    ]
    proved, worst = 0, 0.0
    for r in records:
        best, found = r["found"]["saturation"], r["found"]
        share = f"{100 * best['cost'] / r['original']:.1f} %"
        above = {m: found[m]["cost"] / best["cost"] - 1 for m in HEURISTICS}
        if best["proof"] == "optimal":
            proved += 1
            worst = max(worst, min(above.values()))
        else:
            share += f" ({100 * (1 - best['bound'] / best['cost']):.1f} %)"
        cells = ["0" if abs(x) < 1e-6 else f"{100 * x:+.2f} %" for x in above.values()]
        row = [r["model"], str(r["operators"]), str(r["enodes"]), share, f"{best['seconds']:.1f}", *cells]
        lines.append(f"| {' | '.join(row)} |")
    lines.append(
        f"\nProved for {proved} of {len(records)}. There the best of the others is at most {100 * worst:.2f} % dearer."
    )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = [m for m in MODELS if m.endswith(LIKE) or m in MORE]
    parser.add_argument("--models", nargs="+", default=usual)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each extractor")
    parser.add_argument("--exact", type=float, default=10.0, help="of climbing and integer programming")
    options = parser.parse_args()
    file = RESULTS / "optima.json"
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in options.models:
        if name not in known:
            known[name] = examined(name, options.seconds, options.exact)
            print(name, {m: round(f["cost"], 6) for m, f in known[name]["found"].items()}, flush=True)
            write(file, json.dumps(known, indent=0))
            write(RESULTS / "optima.md", report([known[n] for n in usual if n in known]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
