"""TASO's generated substitutions against this rule set: `benchmarks/results/taso_rules.md`.

    python benchmarks/taso_rules.py [--out FILE without suffix]

Every substitution is built as a graph at several sizes and checked in float64. For a sound one the left side alone is
saturated and the right side looked up in the e-graph (`found`); else both sides are put into one graph and saturated
(`equal`), at last compared in the normal form of sums and products (`equal up to order`). Each is tried with all terms
inputs, and with those that stand where a weight does as weights. The right side *can pay* if the roofline of one
of two devices prices it below the left side at one of the sizes; constants are folded and cost nothing.
"""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
import json
import platform
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from taso import Sides, Substitution, sides_of, substitutions, void

from xrlflow.cost.devices import DEVICES
from xrlflow.cost.roofline import price as roofline_price
from xrlflow.cost.target import cpu_model
from xrlflow.egraph.graph import Attributes, Graph
from xrlflow.egraph.rules import Rule, rule_set
from xrlflow.egraph.saturate import Limits, Saturation
from xrlflow.egraph.terms import COMMUTATIVE, TermGraph

RESULTS = Path(__file__).resolve().parent / "results" / "taso_rules"
TARGETS = ("h200", "epyc-1t")
TOLERANCE = 1e-10


# What an e-graph holds


def lookup(terms: TermGraph, graph: Graph) -> list[int]:
    """The class of each of `graph`'s outputs in an e-graph, -1 where it is not there."""

    def signature(op: str, attrs: Attributes, kids: Iterable[int]) -> tuple[str, Attributes, tuple[int, ...]]:
        return op, attrs, tuple(sorted(kids)) if op in COMMUTATIVE else tuple(kids)

    index = {}
    for key in range(len(terms)):
        attrs = terms.attribute_table[terms.attribute_ids[key]]
        index[signature(terms.ops[key], attrs, map(terms.find, terms.operands[key]))] = terms.find(key)
    found: list[int] = []
    for node in graph.nodes:
        found.append(index.get(signature(node.op, node.attributes, (found[i] for i in node.inputs)), -1))
    return [found[o] for o in graph.outputs]


def up_to_order(terms: TermGraph) -> dict[int, int]:
    """Class → representative, once sums (and products) of the same terms in another order are taken for equal."""
    same = {c: c for c in {terms.find(k) for k in range(len(terms))}}

    def find(c: int) -> int:
        c = terms.find(c)
        while same[c] != c:
            c = same[c]
        return c

    changed = True
    while changed:
        changed = False
        forms: dict[Any, int] = {}
        flat: dict[tuple[str, int], set[tuple[int, ...]]] = {}
        for key in (*range(len(terms)), *range(len(terms))):  # again, for what a class got only after its users
            c, op, kids = find(key), terms.ops[key], [find(k) for k in terms.operands[key]]
            signatures: set[Any] = {(op, terms.attribute_ids[key], tuple(kids))}
            if op in COMMUTATIVE:
                sums = {
                    tuple(sorted((*a, *b)))
                    for a in flat.get((op, kids[0]), {(kids[0],)})
                    for b in flat.get((op, kids[1]), {(kids[1],)})
                }
                mine = flat.setdefault((op, c), set())
                mine |= {s for s in sums if len(s) <= 8}
                signatures = {(op, s) for s in sums}
            for signature in signatures:
                other = find(forms.setdefault(signature, c))
                if other != find(c):
                    same[max(other, find(c))] = min(other, find(c))
                    changed = True
    return {c: find(c) for c in same}


@dataclass(frozen=True)
class Verdict:
    """What is known of one substitution."""

    substitution: Substitution
    kind: str
    """`sound`, `guarded` (only at some sizes), `void`, `identical`, `repeat`."""
    error: float = 0.0
    """Worst difference over the sizes."""
    found: str = ""
    """`found`, `equal`, `equal up to order` or `missing`."""
    how: str = ""
    """`inputs` or `weights`: what the terms were."""
    pays: str = ""
    """Where the right side costs less than the left: `inputs`, `weights`, both or nowhere."""
    rules: tuple[str, ...] = ()
    """The rules that fired in the saturation that decided."""
    same: str = ""
    """The earlier substitution that a repeat repeats."""


def price(graph: Graph, weights: frozenset[str], device: str) -> float:
    """Roofline cost of a graph as it is, in milliseconds; what depends on weights only is folded and free."""
    const: set[int] = set()
    total = 0.0
    for i in graph.live:
        node = graph.nodes[i]
        if node.attrs.get("name") in weights or (node.inputs and const.issuperset(node.inputs)):
            const.add(i)
        else:
            types = [graph.nodes[k].type for k in node.inputs]
            total += roofline_price(DEVICES[device], node.op, node.attributes, types, node.type)
    return total


def cheaper(sides: Sides) -> bool:
    left, right = sides.graph(right=False, values=False), sides.graph(left=False, values=False)
    w = sides.weights
    return any(price(right, w, d) < price(left, w, d) * (1 - 1e-9) for d in TARGETS)


RANK = {"found": 0, "equal": 1, "equal up to order": 2, "missing": 3}


def saturated(graph: Graph, rules: Sequence[Rule]) -> tuple[Saturation, list[int], tuple[str, ...]]:
    """The e-graph of `graph`, the classes of its outputs, and the names of the rules that fired."""
    done = Saturation(graph, rules).run(Limits(20_000, 12, None, None))
    classes = [done.terms.find(done.keys[o]) for o in graph.outputs]
    return done, classes, tuple(sorted(rules[n].name for n, t in done.tallies.items() if t.firings))


def reached(sides: Sides, rules: Sequence[Rule]) -> tuple[str, tuple[str, ...]]:
    """How the rules reach the right side, and which of them fired."""
    alone, classes, fired = saturated(sides.graph(right=False), rules)
    if lookup(alone.terms, sides.graph(left=False)) == classes:
        return "found", fired
    both, classes, fired = saturated(sides.graph(), rules)
    n = len(classes) // 2
    if classes[:n] == classes[n:]:
        return "equal", fired
    order = up_to_order(both.terms)
    if [order[c] for c in classes[:n]] == [order[c] for c in classes[n:]]:
        return "equal up to order", fired
    return "missing", fired


def examine(substitution: Substitution, earlier: Sequence[Substitution], rules: Sequence[Rule]) -> Verdict:
    """Classify one substitution and look for it."""
    if any(void(t) for t in (*substitution.lefts, *substitution.rights)):
        return Verdict(substitution, "void")
    for e in earlier:
        if substitution.canonical == e.canonical:
            return Verdict(substitution, "repeat", same=e.name)
    errors = [s.error() for s in sides_of(substitution, ())]
    kind = "sound" if max(errors) < TOLERANCE else "guarded" if min(errors) < TOLERANCE else "unsound"
    if kind == "unsound":
        return Verdict(substitution, kind, max(errors))
    best = Verdict(substitution, kind, max(errors), "missing")
    pays = []
    for how, weights in (("inputs", ()), ("weights", substitution.weights)):
        if how == "weights" and not weights:
            continue
        every = [s for s, e in zip(sides_of(substitution, weights), errors, strict=True) if e < TOLERANCE]
        graph = every[0].graph()
        n = len(substitution.lefts)
        if kind == "sound" and graph.outputs[:n] == graph.outputs[n:]:
            return Verdict(substitution, "identical")
        paying = [s for s in every if cheaper(s)]
        if not paying and kind == "sound":
            paying = list(itertools.islice(filter(cheaper, sides_of(substitution, weights, large=True)), 1))
        if paying:
            pays.append(how)
        for sides in paying[:2] or every[:1]:
            found, fired = reached(sides, rules)
            if RANK[found] < RANK[best.found]:
                best = Verdict(substitution, kind, max(errors), found, how, "", fired)
    return replace(best, pays=" and ".join(pays))


def verdicts(rules: Sequence[Rule] | None = None) -> Iterator[Verdict]:
    """All of TASO's substitutions, in the files' order."""
    rules = rule_set() if rules is None else rules
    every = substitutions()
    for i, s in enumerate(every):
        yield examine(s, every[:i], rules)


WHY = {
    "void": "a convolution reads one term as image and kernel",
    "identical": "the activation is an operator of its own here, so both sides are the same graph",
    "equal": "the right side costs no less: it is not made, but where it is there, it is found equal",
    "equal up to order": "only the order of a sum or product differs: taken for equal in its normal form, never made",
}


EXPLANATION = (
    "*found*: the right side is in the e-graph that was saturated from the left side alone. *equal*: both sides are",
    "one class once both are in the graph. *equal up to order*: so they are in the normal form of sums and products.",
    "*inputs*, *weights*: what the terms were that stand where a weight does. *pays*: the right side is cheaper by",
    "the roofline of h200 or epyc-1t at some of the sizes tried, constants folded. *by*: the rules that fired.",
)


def row(v: Verdict) -> list[str]:
    why = WHY.get(v.kind) or WHY.get(v.found, "")
    if v.kind == "repeat":
        why = f"the same as {v.same}"
    elif v.found == "equal" and v.pays:
        why = "pays only where both kernels are computed, which is no convolutional network"
    elif v.kind == "guarded":
        why = f"only with as many inputs and outputs in each group; else refused, it would be wrong by {v.error:.2f}"
    found = f"{v.found}, {v.how}" if v.found else ""
    return [
        v.substitution.name,
        f"`{v.substitution}`",
        v.kind,
        v.pays,
        found,
        ", ".join(v.rules) if v.rules else "",
        why,
    ]


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--out", type=Path, default=RESULTS)
    args = p.parse_args()
    started, every = time.monotonic(), []
    for v in verdicts():
        every.append(v)
        print(v.substitution.name, v.kind, v.found, v.how, flush=True)
    held = [v for v in every if v.kind in ("sound", "guarded")]
    counts = Counter(v.kind for v in every)
    reached = Counter(v.found for v in held)
    paying = [v for v in held if v.pays]
    command = shlex.join(["python", "benchmarks/taso_rules.py", *sys.argv[1:]])
    cpu = cpu_model().split("  ")[0]
    doubled = sum(len(v.substitution.lefts) == 2 for v in every)
    of_kinds = ", ".join(f"{n} {k}" for k, n in counts.most_common())
    first = sum(v.found == "found" for v in paying)
    date = dt.datetime.now(dt.UTC).date()
    lines = [
        "# TASO's generated substitutions", "",
        f"    {command}", "",
        f"{cpu}, Python {platform.python_version()}; {date}; {time.monotonic() - started:.0f} s.", "",
        f"{len(every)} substitutions ({doubled} with two outputs): {of_kinds}.",
        f"Of the {len(held)} that hold: {', '.join(f'{n} {k}' for k, n in reached.most_common())}.",
        f"{len(paying)} of them can pay; {first} of these are found from the left side alone.",
        "", *EXPLANATION, "",
        "| | substitution | holds | pays | reached | by | why |", "| --- | --- | --- | --- | --- | --- | --- |",
        *("| " + " | ".join(row(v)) + " |" for v in every), "",
    ]  # fmt: skip
    write(args.out.with_suffix(".md"), "\n".join(lines))
    records = [
        {
            "name": v.substitution.name, "substitution": str(v.substitution), "kind": v.kind, "error": v.error,
            "found": v.found, "how": v.how, "pays": v.pays, "rules": v.rules,
        }
        for v in every
    ]  # fmt: skip
    write(args.out.with_suffix(".json"), json.dumps({"command": command, "substitutions": records}, indent=1) + "\n")
    print(args.out.with_suffix(".md"))
    return 0 if all(v.found != "missing" for v in held) else 1


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
