"""The account of a result: which substitutions separate it from the input, where, and their predicted gains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from .cost.base import Cost
    from .egraph.space import SearchSpace, Selection
    from .policy.base import Extraction


@dataclass(frozen=True)
class Substitution:
    """A connected region of the graph that was replaced.

    rules: names of the rules that made the new operators. site: names of the values at the region's edge, as the
    input model calls them. scope: how many equal regions (same rules, same operators out and in) this entry stands
    for. removed, added: operators of one region. predicted_gain: milliseconds under the cost model, all regions
    together. measured_gain: milliseconds, or None when it was not measured on its own.
    """

    rules: tuple[str, ...]
    site: tuple[str, ...]
    scope: int
    removed: tuple[str, ...]
    added: tuple[str, ...]
    predicted_gain: float
    measured_gain: float | None = None

    def __str__(self) -> str:
        times = f" at {self.scope} sites" if self.scope > 1 else ""
        where = f" ({self.site[0]})" if self.site else ""
        what = "saves" if self.predicted_gain >= 0 else "costs"
        rules = ", ".join(self.rules) or "shared by congruence"
        return f"{rules}{times}{where}: {what} {abs(self.predicted_gain):.4f} ms (predicted)"


def substitutions(space: SearchSpace, selection: Selection, cost: Cost) -> list[Substitution]:
    """What `selection` changed against the input graph, the largest predicted gain first.

    Regions are the connected components of the classes that the two do not compute alike; constants are left out,
    they are folded. Operators that rules proved superfluous (`Transpose(Transpose(x))`) make regions of their own.
    """
    old, new = space.original.choice, selection.choice
    differ = [c for c in range(space.n_classes) if old[c] != new[c] and not space.const[c]]
    regions = _components(space, differ, selection)
    found: dict[tuple[Any, ...], Substitution] = {}
    parts = [
        ([int(old[c]) for c in region if old[c] >= 0], [int(new[c]) for c in region if new[c] >= 0])
        for region in regions
    ]
    gains = _gains(cost.kernels(space.original), cost.kernels(selection), parts)
    for region, (out, put), gain in zip(regions, parts, gains, strict=True):
        _note(found, space, out, put, region, gain)
    extra = list(space.baseline.tolist())
    for c in range(space.n_classes):
        if old[c] in extra:
            extra.remove(int(old[c]))
    for i in extra:
        _note(found, space, [i], [], [int(space.node_class[i])], float(cost.prices[i]))
    return sorted(found.values(), key=lambda s: (-s.predicted_gain, s.site))


Kernels: TypeAlias = list[tuple[frozenset[int], float]]


def _gains(before: Kernels, after: Kernels, regions: list[tuple[list[int], list[int]]]) -> list[float]:
    """Milliseconds that each region saves: what its kernels took less what they take, those that several regions share
    in equal parts. regions: the e-nodes that went and that came.

    A kernel is a region's if an e-node of it went or came, or was in one kernel with such a one.
    """
    of_before, of_after = _owners(before), _owners(after)
    claims: list[tuple[set[int], set[int]]] = []
    for out, put in regions:
        old = {k for i in out for k in of_before.get(i, ())}
        new = {k for i in put for k in of_after.get(i, ())}
        new |= {k for n in old for i in before[n][0] for k in of_after.get(i, ())}
        old |= {k for n in new for i in after[n][0] for k in of_before.get(i, ())}
        claims.append((old, new))
    shares = [Counter(k for claim in claims for k in claim[side]) for side in (0, 1)]
    return [
        sum(before[k][1] / shares[0][k] for k in sorted(old)) - sum(after[k][1] / shares[1][k] for k in sorted(new))
        for old, new in claims
    ]


def _owners(kernels: Kernels) -> dict[int, list[int]]:
    """The kernels of each e-node, by number."""
    found: dict[int, list[int]] = {}
    for k, (members, _) in enumerate(kernels):
        for i in members:
            found.setdefault(i, []).append(k)
    return found


def _note(
    found: dict[tuple[Any, ...], Substitution],
    space: SearchSpace,
    out: list[int],
    put: list[int],
    region: Iterable[int],
    gain: float,
) -> None:
    rules = {r for i in put for r in space.rules[i]}
    if not put:
        rules = {r for c in region for i in space.nodes_of(c) for r in space.rules[i]}
    site = tuple(n for c in region for n in space.names[c][:1])
    removed, added = (tuple(sorted(space.ops[i] for i in nodes if space.ops[i] != "Get")) for nodes in (out, put))
    key = (tuple(sorted(rules)), removed, added)
    known = found.get(key)
    if known is not None:
        found[key] = Substitution(
            key[0], known.site + site, known.scope + 1, removed, added, known.predicted_gain + gain
        )
    else:
        found[key] = Substitution(key[0], site, 1, removed, added, gain)


def _components(space: SearchSpace, classes: list[int], selection: Selection) -> list[list[int]]:
    """Connected components of `classes` along the edges of both selections, each sorted."""
    parent = {c: c for c in classes}

    def find(c: int) -> int:
        while parent[c] != c:
            parent[c] = parent[parent[c]]
            c = parent[c]
        return c

    for c in classes:
        for choice in (space.original.choice, selection.choice):
            if choice[c] >= 0:
                for k in space.child_lists[int(choice[c])]:
                    if k in parent:
                        parent[find(c)] = find(k)
    groups: dict[int, list[int]] = {}
    for c in classes:
        groups.setdefault(find(c), []).append(c)
    return sorted(groups.values())


def as_json(items: list[Substitution], limit: int = 8) -> list[dict[str, Any]]:
    """For the run's record; at most `limit` names of each site."""
    return [{**asdict(s), "site": list(s.site[:limit])} for s in items]


def rule_account(space: SearchSpace, selection: Selection | None) -> dict[str, dict[str, Any]]:
    """What each rule did in saturation, and how many operators of `selection` it made.

    For each rule that had a match: matches (= firings + known + unfit + all refused), firings, known, unfit, refused
    (by reason), enodes (terms made), seconds, chosen (operators of the selection that it made or that its firings
    made equal to another, constants left out).
    """
    chosen: Counter[str] = Counter()
    if selection is not None:
        for i in selection.choice[selection.choice >= 0].tolist():
            if not space.const[space.node_class[i]]:
                chosen.update(space.rules[i])
    return {
        name: {**asdict(s), "refused": dict(s.refused), "chosen": chosen[name]}
        for name, s in space.report.rules.items()
    }


def extraction_record(found: Extraction) -> dict[str, Any]:
    """How an extraction came about, for JSON."""
    record: dict[str, Any] = {
        "extractor": found.extractor,
        "stop_reason": found.stop_reason,
        "evaluations": found.trace.evaluations,
        "trace": [list(point) for point in found.trace.points],
    }
    return record | {key: found.extras[key] for key in ("lower_bound", "gap", "proof") if key in found.extras}


def proof(record: Mapping[str, Any]) -> str:
    """What the extraction of this record proved, in words; "" if it is of an extractor that proves nothing."""
    if "proof" not in record:
        return ""
    if record["proof"] == "optimal":
        return "proved: no program of the e-graph is cheaper"
    if record["lower_bound"] is None:
        return "not proved: " + record["proof"].removeprefix("none: ")
    return f"not proved: none is below {record['lower_bound']:.6g}, a gap of {100 * record['gap']:.2g} %"
