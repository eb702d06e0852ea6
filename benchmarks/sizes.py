"""How extraction grows with the e-graph: `benchmarks/results/sizes.md`, `sizes.json` and `sizes.png`.

    python benchmarks/sizes.py [--enodes 1000 3000 10000 30000 100000]

E-graphs of models of the zoo that come in any size, saturated with all rules: a decoder whose layers are all alike, and
random cells of which no two are. Each run is a process of its own. `tree` and `dag` run to their end; `climb` has so
many seconds, and what counts is when it was within 0.1 % of where it ended: its plateau. So has `saturation`, which
stops earlier if it has proved that nothing is cheaper. Memory is the most that the process held, with the e-graph that
was saturated, and what extraction added to that. Needs matplotlib (the `notebooks` extra).
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from typing import Any

from exports import ROOT, processor, write

RESULTS = ROOT / "benchmarks" / "results"
ENODES_PER_OPERATOR = {"deep-decoder": 6.5, "nas-cells": 6.3}
EXTRACTORS = {"tree": "tab:blue", "dag": "tab:orange", "climb": "tab:green", "saturation": "tab:red"}
TIMED = ("climb", "saturation")
DEVICE = "epyc-1t"
PLATEAU, NEAR = 1e-3, 1e-2


def measured(name: str, operators: int, method: str, seconds: float) -> dict[str, Any]:
    """One run, in this process."""
    import numpy as np

    from xrlflow import load, saturate, zoo
    from xrlflow.cost.base import bind
    from xrlflow.cost.roofline import roofline
    from xrlflow.policy.base import Budget, extractor

    space = saturate(load(zoo.build(name, operators=operators).SerializeToString()), max_enodes=1_000_000)
    cost = bind(roofline(DEVICE), space)
    chosen = extractor(method)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = chosen.extract(space, cost, Budget(seconds), np.random.default_rng(0))
    took = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plateau, near = (next(s for _, s, ms in found.trace.points if ms <= found.cost * (1 + x)) for x in (PLATEAU, NEAR))
    return {
        "model": name, "operators": operators, "enodes": space.n_nodes, "extractor": method,
        "seconds": plateau if method in TIMED else took, "near": near if method in TIMED else took, "ran": took,
        "saved": 1 - found.cost / cost.before, "gap": found.extras.get("gap"),
        "mib": peak / 1024, "added": (peak - before) / 1024,
    }  # fmt: skip


def report(records: list[dict[str, Any]], note: str = "") -> str:
    command = shlex.join(["python", "benchmarks/sizes.py", *sys.argv[1:]])
    lines = [
        "# How extraction grows with the e-graph",
        f"\n    {command}\n",
        f"{processor()}; {datetime.now(UTC):%Y-%m-%d}; one thread; roofline:{DEVICE}. Seconds: of `climb` and",
        "`saturation`, until they were within 0.1 % and 1 % of what they had in the end. Gap: to the lower bound that",
        "was proved; 0: nothing is cheaper. MiB: the most that the process held, and what extraction added.",
        f"{note}\n",
        "![seconds against e-nodes](sizes.png)\n",
        "| model | e-nodes | extractor | s | to 1 % | ran, s | saved | gap | MiB | added |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in records:
        gap = "" if r["gap"] is None else f"{100 * r['gap']:.2g} %"
        times = " | ".join(f"{r[key]:.2f}" for key in ("seconds", "near", "ran"))
        lines.append(
            f"| {r['model']} | {r['enodes']} | {r['extractor']} | {times} | {100 * r['saved']:.1f} % | {gap} "
            f"| {r['mib']:.0f} | {r['added']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def plot(records: list[dict[str, Any]]) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for model, style in zip(ENODES_PER_OPERATOR, ("-o", "--s"), strict=True):
        for method, colour in EXTRACTORS.items():
            own = [r for r in records if (r["model"], r["extractor"]) == (model, method)]
            label = f"{method}, {model}"
            axes.plot([r["enodes"] for r in own], [r["seconds"] for r in own], style, color=colour, label=label)
    axes.set(xscale="log", yscale="log", xlabel="e-nodes", ylabel="seconds (climb, saturation: to the plateau)")
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(RESULTS / "sizes.png", dpi=120)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--enodes", nargs="+", type=int, default=[1000, 3000, 10000, 30000, 100000])
    parser.add_argument("--models", nargs="+", default=list(ENODES_PER_OPERATOR), choices=list(ENODES_PER_OPERATOR))
    parser.add_argument("--seconds", type=float, default=30.0, help="of climb and saturation")
    parser.add_argument("--note", default="", help="what a reader should know of this run")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        model, operators, method = options.one
        print(json.dumps(measured(model, int(operators), method, options.seconds)))
        return 0
    records: list[dict[str, Any]] = []
    for model in options.models:
        for enodes in options.enodes:
            for method in EXTRACTORS:
                operators = str(round(enodes / ENODES_PER_OPERATOR[model]))
                command = [sys.executable, __file__, "--one", model, operators, method]
                command += ["--seconds", str(options.seconds)]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                records.append(json.loads(out.splitlines()[-1]))
                print(records[-1], flush=True)
                write(RESULTS / "sizes.json", json.dumps(records, indent=0))
                write(RESULTS / "sizes.md", report(records, options.note))
    plot(records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
