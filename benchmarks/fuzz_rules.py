"""Random graphs saturated, every e-node evaluated: an e-node that does not compute its class is a failure.

    python benchmarks/fuzz_rules.py --count 10000 --jobs 2       # goes on where it was stopped
    python benchmarks/fuzz_rules.py --only 1234                  # one graph again, shrunk, as code

Graph n of a seed is the same on every machine (`random_graphs`). Each is saturated under small limits with all rules
and checked in float64, e-node by e-node, types included; each fifth also in a prime field, exactly, with the rules that
hold by algebra alone; of each seventh, and of those that pad with -inf, a fifth of the inputs' elements is -inf, and
the rules are those that leave infinities what they are. A mismatch counts if it is there for three draws of the inputs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import isinf
from pathlib import Path
from typing import Any

from random_graphs import random_graph

from xrlflow.egraph.graph import LEAVES, Graph, GraphBuilder, TensorType
from xrlflow.egraph.rules import rule_set
from xrlflow.egraph.rules.language import Rule
from xrlflow.egraph.saturate import saturate
from xrlflow.egraph.space import SearchSpace
from xrlflow.lowering.check import Mismatch, check_enodes
from xrlflow.lowering.finite_field import PrimeField
from xrlflow.lowering.instances import in_field, mask_safe

Examination = Callable[[Graph], tuple[SearchSpace, list[Mismatch], int]]
"""Saturates and checks: the space, the mismatches, the number of e-nodes compared."""

RESULTS = Path(__file__).parent / "results"
CHUNK = 50
"""Graphs of one work item, the unit in which a run goes on."""
LIMITS = {"max_enodes": 500, "max_iterations": 4}
TOLERANCE = {"float32": 1e-6, "float16": 2e-3}
"""Relative to the tensor's largest element. Rules that look for √2 or 1/6 accept them as the dtype rounds them."""


@dataclass
class Outcome:
    """What a graph showed."""

    enodes: int = 0
    checked: int = 0
    exact: int = 0
    fired: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Rules:
    """The rules, those that hold by algebra alone, and those that leave infinities what they are."""

    every: tuple[Rule, ...]
    field: tuple[Rule, ...]
    masked: tuple[Rule, ...]

    @classmethod
    def known(cls) -> Rules:
        every = rule_set()
        return cls(every, tuple(r for r in every if in_field(r, 1)), tuple(r for r in every if mask_safe(r, 1)))

    @property
    def digest(self) -> str:
        """Of the texts and guards of all rules: results of other rules are no results of these."""
        text = "\n".join(f"{r}|{[g.test for g in r.where]}|{r.tag}" for r in self.every)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def mismatches(space: SearchSpace, tolerance: float, masked: float = 0.0) -> list[Mismatch]:
    """E-nodes that are wrong for three draws of the inputs."""
    found = check_enodes(space, 0, tolerance, masked=masked).mismatches
    for seed in (1, 2):
        if found:
            again = {m.enode for m in check_enodes(space, seed, tolerance, masked=masked).mismatches}
            found = [m for m in found if m.enode in again]
    return found


def tolerance_of(graph: Graph) -> float:
    narrow = any(isinstance(n.type, TensorType) and n.type.dtype == "float16" for n in graph.nodes)
    return TOLERANCE["float16" if narrow else "float32"]


def infinite(graph: Graph) -> bool:
    """Whether a graph makes infinities itself, which cancel to NaN elsewhere where products are put together."""
    return any(n.op == "Pad" and isinf(n.attrs["value"]) for n in graph.nodes)


def examinations(number: int, rules: Rules) -> Mapping[str, Examination]:
    """The checks of graph `number`: each gives the space, the mismatches and the number of e-nodes compared."""

    def reals(graph: Graph) -> tuple[SearchSpace, list[Mismatch], int]:
        masked = 0.2 if number % 7 == 3 or infinite(graph) else 0.0
        space = saturate(graph, rules.masked if masked else rules.every, **LIMITS)  # type: ignore[arg-type]
        return space, mismatches(space, tolerance_of(graph), masked), space.n_nodes

    def exactly(graph: Graph) -> tuple[SearchSpace, list[Mismatch], int]:
        space = saturate(graph, rules.field, **LIMITS)  # type: ignore[arg-type]
        report = check_enodes(space, number, arithmetic=PrimeField(number))
        return space, report.mismatches, report.checked

    checks = {"float64": reals}
    if number % 5 == 2:
        checks["prime field"] = exactly
    return checks


def examine(seed: int, number: int, rules: Rules) -> Outcome:
    """Saturate graph `number` and check it."""
    outcome = Outcome()
    graph = random_graph(seed, number, rules.every)
    for arithmetic, check in examinations(number, rules).items():
        try:
            space, found, compared = check(graph)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a failure of this graph
            outcome.failures.append(f"{number} ({arithmetic}): {type(error).__name__}: {str(error)[:300]}")
            continue
        outcome.enodes += space.n_nodes
        outcome.checked += compared
        outcome.exact += compared if arithmetic == "prime field" else 0
        outcome.fired.update(space.report.fired)
        if found:
            worst = max(found, key=lambda m: m.difference)
            outcome.failures.append(f"{number} ({arithmetic}): {len(found)} e-nodes, {worst}")
    return outcome


# Shrinking and printing


def shrunk(graph: Graph, fails: Callable[[Graph], bool], tries: int = 150) -> Graph:
    """A smaller graph that still fails: one output, and inputs in the place of what is not needed for it."""
    for name, output in zip(graph.output_names, graph.outputs, strict=True):
        one = rebuilt(graph, {name: output}, frozenset())
        if fails(one):
            graph = one
            break
    while tries > 0:
        for k in [
            k for k in graph.live if graph.nodes[k].op not in LEAVES and isinstance(graph.nodes[k].type, TensorType)
        ]:
            tries -= 1
            smaller = rebuilt(graph, dict(zip(graph.output_names, graph.outputs, strict=True)), frozenset({k}))
            if len(smaller.nodes) < len(graph.nodes) and fails(smaller):
                graph = smaller
                break
        else:
            return graph
    return graph


def rebuilt(graph: Graph, outputs: dict[str, int], cut: frozenset[int]) -> Graph:
    """The part of the graph that these outputs need, with the nodes in `cut` made inputs."""
    builder, made = GraphBuilder(), {}
    builder.weights = dict(graph.weights)
    needed, stack = set(outputs.values()), list(outputs.values())
    while stack:
        k = stack.pop()
        for i in () if k in cut else graph.nodes[k].inputs:
            if i not in needed:
                needed.add(i)
                stack.append(i)
    for k in sorted(needed):
        node = graph.nodes[k]
        if k in cut or node.op == "Input":
            assert isinstance(node.type, TensorType)
            made[k] = builder.input(f"c{k}" if k in cut else str(node.attrs["name"]), node.type)
        else:
            made[k] = builder.add(node.op, tuple(made[i] for i in node.inputs), node.attributes, node.type)
    return builder.build({name: made[k] for name, k in outputs.items()})


def code(graph: Graph) -> str:
    """The graph as a program that builds, saturates and checks it."""
    lines = [
        "import numpy as np",
        "from xrlflow.egraph.dimension import symbol",
        "from xrlflow.egraph.graph import GraphBuilder, TensorType, Weight",
        "from xrlflow.egraph.saturate import saturate",
        "from xrlflow.lowering.check import check_enodes",
        "inf, g = float('inf'), GraphBuilder()",
    ]
    symbols = sorted({s for n in graph.nodes for s in n.type.symbols})
    lines += [f"{s} = symbol({s!r})" for s in symbols]
    for k, node in enumerate(graph.nodes):
        attrs = node.attrs
        if node.op == "Input":
            assert isinstance(node.type, TensorType)
            made = f"g.input({attrs['name']!r}, TensorType({node.type.shape}, {node.type.dtype!r}))"
        elif node.op == "Weight":
            array = graph.weights[str(attrs["digest"])].load()
            made = f"g.weight(np.array({array.tolist()}, {str(array.dtype)!r}).reshape({array.shape}))"
        elif node.op == "Get":
            made = f"g.get(v{node.inputs[0]}, {attrs['index']})"
        else:
            arguments = [repr(node.op), *(f"v{i}" for i in node.inputs), *(f"{a}={v!r}" for a, v in attrs.items())]
            made = f"g.op({', '.join(arguments)})"
        lines.append(f"v{k} = {made}")
    outputs = ", ".join(f"{n!r}: v{k}" for n, k in zip(graph.output_names, graph.outputs, strict=True))
    return "\n".join([*lines, f"print(check_enodes(saturate(g.build({{{outputs}}}))).mismatches)"])


def explain(seed: int, number: int, rules: Rules) -> None:
    """Print the failure of one graph, and the smallest graph found that shows it, as code."""
    graph = random_graph(seed, number, rules.every)
    for arithmetic, check in examinations(number, rules).items():

        def fails(g: Graph, check: Any = check) -> bool:
            try:
                return bool(check(g)[1])
            except Exception:  # noqa: BLE001 - a failure as well
                return True

        if not fails(graph):
            print(f"# {number} ({arithmetic}): clean")
            continue
        small = shrunk(graph, fails)
        print(f"# {number} ({arithmetic})")
        try:
            for mismatch in check(small)[1]:
                print(f"#   {mismatch}")
        except Exception as error:  # noqa: BLE001
            print(f"#   {type(error).__name__}: {error}")
        print(code(small))


# Many graphs

_RULES: list[Rules] = []
"""The rules, of each worker process its own."""


def _chunk(work: tuple[int, int, int]) -> dict[str, Any]:
    seed, start, count = work
    if not _RULES:
        _RULES.append(Rules.known())
    begun, total = time.monotonic(), Outcome()
    for number in range(start, start + count):
        one = examine(seed, number, _RULES[0])
        total.enodes += one.enodes
        total.checked += one.checked
        total.exact += one.exact
        total.fired.update(one.fired)
        total.failures += one.failures
    return {"start": start, "count": count, "enodes": total.enodes, "checked": total.checked, "exact": total.exact,
            "seconds": round(time.monotonic() - begun, 1), "fired": dict(sorted(total.fired.items())),
            "failures": total.failures}  # fmt: skip


def write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    new = path.with_suffix(f"{path.suffix}.{os.getpid()}")
    new.write_text(text, "utf-8")
    new.replace(path)


def table(run: dict[str, Any], rules: Rules) -> str:
    """The results for people to read."""
    chunks = run["chunks"]
    fired: Counter[str] = Counter()
    for chunk in chunks:
        fired.update(chunk["fired"])
    total = {k: sum(c[k] for c in chunks) for k in ("count", "enodes", "checked", "exact", "seconds")}
    failures = [f for c in chunks for f in c["failures"]]
    silent = [r.name for r in rules.every if not fired[r.name]]
    rare = ", ".join(f"`{n}`" for n in silent) or "none"
    about = (
        f"`{run['command']}`, seed {run['seed']}, {run['machine']}, {run['date']}, {len(rules.every)} rules "
        f"({len(rules.field)} of them hold over the field, {len(rules.masked)} leave infinities what they are)."
    )
    row: dict[str, object] = {
        "graphs": f"{total['count']:,}", "e-nodes": f"{total['enodes']:,}", "compared": f"{total['checked']:,}",
        "of these in the prime field": f"{total['exact']:,}", "firings": f"{fired.total():,}",
        "rules that fired": f"{len(rules.every) - len(silent)} of {len(rules.every)}",
        "CPU minutes": f"{total['seconds'] / 60:.0f}", "failures": len(failures),
    }  # fmt: skip
    lines = ["# Random graphs, every e-node checked", "", about, ""]
    lines += [f"| {' | '.join(map(str, cells))} |" for cells in (row, ["---"] * len(row), row.values())]
    lines += ["", f"Rules that never fired: {rare}.", "", *(f"- {f}" for f in failures)]
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="graphs (default 1000)")
    parser.add_argument("--start", type=int, default=0, help="number of the first graph")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--only", type=int, help="examine and shrink this graph alone")
    parser.add_argument("--json", type=Path, default=RESULTS / "fuzz_rules.json", help="results; .md beside it")
    args = parser.parse_args(arguments)
    rules = Rules.known()
    if args.only is not None:
        explain(args.seed, args.only, rules)
        return 0
    run: dict[str, Any] = json.loads(args.json.read_text("utf-8")) if args.json.exists() else {}
    if run.get("rules") != rules.digest or run.get("seed") != args.seed:
        run = {"rules": rules.digest, "seed": args.seed, "chunks": []}
    run["command"] = " ".join(["python benchmarks/fuzz_rules.py", *(arguments or sys.argv[1:])])
    run["machine"] = f"{os.cpu_count()}-core {platform.machine()}"
    run["date"] = datetime.now(UTC).date().isoformat()
    done = {c["start"] for c in run["chunks"]}
    work = [(args.seed, s, CHUNK) for s in range(args.start, args.start + args.count, CHUNK) if s not in done]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:  # threads of libraries do not survive a fork
        for chunk in pool.imap_unordered(_chunk, work):
            run["chunks"] = sorted([*run["chunks"], chunk], key=lambda c: c["start"])
            write(args.json, json.dumps(run, indent=1) + "\n")
            write(args.json.with_suffix(".md"), table(run, rules))
            print(f"{chunk['start']}: {chunk['seconds']} s, {len(chunk['failures'])} failures", flush=True)
            for failure in chunk["failures"]:
                print(f"  {failure}", flush=True)
    return 1 if any(c["failures"] for c in run["chunks"]) else 0


if __name__ == "__main__":
    sys.exit(main())
