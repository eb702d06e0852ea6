"""Why rules did not fire where they almost did, and what that might cost: what `--explain-misses` shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cost.base import Cost
    from .egraph.graph import Graph
    from .egraph.nearness import Off
    from .egraph.space import SearchSpace, Selection

SHOWN = 12
"""Near misses that the text shows; the record holds `RECORDED`."""
RECORDED = 100
NAMES = 3


@dataclass(frozen=True)
class NearMiss:
    """One rule and one reason for which it did not fire, or fired in vain.

    kind: see `egraph.nearness.Miss`; "not chosen" where the rule fired and no cheaper program uses what it made.
    places: how many. at: names of results that it would have computed otherwise, the dearest first. stake: cost of the
    operators that it would have replaced and that are in the result still, each once, in ms: more than that cannot
    have been missed.
    """

    rule: str
    kind: str
    reason: str
    places: int
    at: tuple[str, ...]
    stake: float

    def __str__(self) -> str:
        where = ", ".join(self.at)
        more = f" and {self.places - len(self.at)} more" if self.places > len(self.at) else ""
        times = "1 place" if self.places == 1 else f"{self.places} places"
        return f"{self.rule} at {times} ({where}{more}): {self.reason}; at stake {self.stake:.4g} ms"


def near_misses(space: SearchSpace, cost: Cost, selection: Selection | None = None) -> list[NearMiss]:
    """The near misses of a space that was saturated with `explain=True`, those with the most at stake first.

    What was refused only to keep the e-graph small comes last. selection: what was chosen; without it nothing can be
    said of rules that fired in vain.
    """
    chosen = space.original if selection is None else selection
    used = {
        r for i in chosen.choice[chosen.choice >= 0].tolist() if not space.const[space.node_class[i]]
        for r in space.rules[i]
    }  # fmt: skip
    price: dict[int, float] = {}
    for i in space.baseline.tolist():
        c = int(space.node_class[i])
        if chosen.choice[c] != i:  # something better was found for it, or it is not needed any more
            continue
        price[c] = price.get(c, 0.0) + float(cost.prices[i])
    found: list[NearMiss] = []
    for miss in space.report.misses:
        kind, reason = str(miss.kind), miss.reason
        if kind == "fired":
            if selection is None or miss.rule in used:
                continue
            kind, reason = "not chosen", "it fired, but no cheaper program uses what it made"
            read = sum(_shared(space, site) for site in miss.sites)
            if read:
                reason += (
                    f" (at {read} of them an inner result has other users, or is an output, and is computed anyway)"
                )
        sites = sorted(miss.sites, key=lambda site: -sum(price.get(c, 0.0) for c in dict.fromkeys(site)))
        stake = sum(price.get(c, 0.0) for c in dict.fromkeys(c for site in sites for c in site))
        if stake <= 0:
            continue
        at = tuple(dict.fromkeys(_name(space, site[0]) for site in sites))[:NAMES]
        found.append(NearMiss(miss.rule, kind, reason, len(sites), at, stake))
    return sorted(found, key=lambda m: (m.kind == "growth", -m.stake, m.rule, m.reason))


def _name(space: SearchSpace, c: int) -> str:
    if space.names[c]:
        return space.names[c][0]
    return f"{space.ops[int(space.original.choice[c])] if space.original.choice[c] >= 0 else 'class'} {c}"


def _shared(space: SearchSpace, site: Sequence[int]) -> bool:
    """Whether the original graph reads an inner result of the site elsewhere, or gives it out."""
    inner = set(site[1:]) - {site[0]}
    if inner & set(space.roots.tolist()):
        return True
    own = set(site)
    chosen = space.original.choice
    return any(
        int(space.node_class[i]) not in own and chosen[space.node_class[i]] == i
        for c in inner
        for i in space.parents[c]
    )


def switched_off(graph: Graph, without: Sequence[str] = (), only: Sequence[str] | None = None) -> list[Off]:
    """The rules that may not fire in this model, each with what would let it.

    without, only: rules and families that the user left out, or asked for; nothing is said of those left out.
    """
    from .egraph.nearness import Off
    from .egraph.rules import families

    found: list[Off] = []
    for family, rules in families().items():
        for rule in rules:
            asked = only is None or rule.name in only or family in only
            if not asked or rule.name in without or family in without:
                continue
            lacking = [op for op in rule.introduces if not graph.writes(op)]
            if lacking:
                found.append(Off(rule, _need(lacking, graph.source)))
            elif rule.tag == "approx" and (only is None or rule.name not in only):
                found.append(Off(rule, f"approximate, so off unless it is named (--rules {family},{rule.name})"))
    return found


def _need(ops: Sequence[str], source: Any) -> str:
    """What would let these operators be written in a model from this source."""
    from .lowering.onnx_forms import SINCE, reachable

    names = " and ".join(ops)
    lacking = set(getattr(source, "lacking", ())) & set(ops)
    if lacking:
        return f"it makes {names}, but this runtime has no kernel for {' and '.join(sorted(lacking))}"
    contrib = bool(getattr(source, "contrib", False))
    for opset in range(getattr(source, "opset", 7) + 1, max(SINCE.values()) + 1):
        if all(reachable(op, opset, contrib) for op in ops):
            return f"it makes {names}, which needs opset {opset} (--opset {opset})"
    if all(reachable(op, max(SINCE.values()), True) for op in ops):
        return f"it makes {names}, which only ONNX Runtime has (--target onnxruntime)"
    return f"it makes {names}, which cannot be written for this target"


def as_json(items: Sequence[NearMiss]) -> list[dict[str, Any]]:
    """For the run's record."""
    return [asdict(m) for m in items[:RECORDED]]


def as_text(items: Sequence[NearMiss]) -> list[str]:
    """For the terminal: one line for each of the most promising."""
    lines = [f"near miss: {m}" for m in items[:SHOWN]]
    if len(items) > SHOWN:
        lines.append(f"near miss: {len(items) - SHOWN} more are in the record (--json)")
    return lines
