"""How many candidates a second the fusion cost prices: `benchmarks/results/fusion_speed.md`.

    python benchmarks/fusion_speed.py

A candidate is a move of a search: what a grouped substitution would cost, co-switches included. *First*: all moves of
the original, on a space that was never priced. *Walk*: along 300 random moves, what each of them made stale.
Seconds are the processor's, of one thread.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime

import numpy as np
from exports import ROOT, processor, write

import xrlflow
from xrlflow.cost.base import bind
from xrlflow.cost.fusion import fusion
from xrlflow.cost.roofline import roofline
from xrlflow.egraph.saturate import saturate
from xrlflow.lowering import load
from xrlflow.policy.state import State
from xrlflow.policy.substitution import Substitutions
from xrlflow.zoo import build

MODELS = {"bert": {"layers": 6}, "inception-v3": {}, "llama": {}, "vit": {}, "squeezenet": {}, "nasnet-a": {}}


def rates(space: xrlflow.egraph.space.SearchSpace, model: object, steps: int = 300) -> tuple[float, float, float]:
    """Seconds to bind the cost, and candidates a second at first and along a walk."""
    start = time.process_time()
    cost = bind(model, space)  # type: ignore[arg-type]
    rules = Substitutions(space, cost)
    bound = time.process_time() - start
    start = time.process_time()
    state = State(rules)
    state.refresh()
    first = state.evaluations / (time.process_time() - start)
    before, rng = state.evaluations, np.random.default_rng(0)
    start = time.process_time()
    for _ in range(steps):
        legal = np.flatnonzero(state.legal)
        if not len(legal):
            break
        state.apply(int(rng.choice(legal)))
    return bound, first, (state.evaluations - before) / (time.process_time() - start)


def main() -> int:
    lines = [
        "# Candidates a second",
        "\n    python benchmarks/fusion_speed.py\n",
        f"{processor()}; {datetime.now(UTC):%Y-%m-%d}; xrlflow {xrlflow.__version__}; roofline of an H200.\n",
        "| model | e-nodes | bind, s | first | walk | additive, first | walk |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, sizes in MODELS.items():
        space = saturate(load(build(name, **sizes)))
        bound, *fused = rates(space, fusion("h200"))
        _, *added = rates(space, roofline("h200"))
        figures = " | ".join(f"{n:,.0f}" for n in (*fused, *added))
        lines.append(f"| {name} | {space.n_nodes:,} | {bound:.2f} | {figures} |")
        print(lines[-1], flush=True)
    write(ROOT / "benchmarks" / "results" / "fusion_speed.md", "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
