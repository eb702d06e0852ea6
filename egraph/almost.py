"""Patterns that almost match: all of a left side is there, but one operator is another one, or one stands between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

from .extent import viewed
from .nearness import SITES, Miss
from .operators import IllTyped, core
from .rules.language import HELPERS, Pattern, Rule
from .terms import COMMUTATIVE, Term, TermGraph

STEPS = 400_000
"""Operators that are looked at altogether."""
ENOUGH = 3
"""Operators of the pattern that must be there for another operator in place of one to be worth telling."""

Env = dict[str, Any]


class _Done(Exception):
    pass


@dataclass
class Almost:
    """Looks for left sides with one operator amiss among the operators of the input graph and what is equal to them."""

    terms: TermGraph
    own: int
    """Terms up to this one are the input graph's."""
    rules: Sequence[Rule]
    steps: int = 0
    members: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seen = set()
        for key in range(len(self.terms)):
            kids = tuple(map(self.terms.find, self.terms.operands[key]))
            signature = (self.terms.find(key), self.terms.ops[key], self.terms.attribute_ids[key], kids)
            if signature not in seen:
                seen.add(signature)
                self.members.setdefault(signature[0], []).append(key)

    def misses(self, index: Mapping[int, int]) -> tuple[Miss, ...]:
        """What almost matched, by rule and operator in the way. index: the number of each class by its smallest key."""
        by_op: dict[str, list[int]] = {}
        for key in range(self.own):
            if not self.terms.const[self.terms.find(key)]:
                by_op.setdefault(self.terms.ops[key], []).append(self.terms.find(key))
        found: dict[tuple[str, str], dict[tuple[int, ...], None]] = {}
        try:
            for rule in self.rules:
                if len(rule.patterns) > 1 or rule.starred:
                    continue
                pattern = rule.patterns[0]
                size = sum(p.op != "Get" for p in pattern.walk())
                if size < 2:
                    continue
                for c in dict.fromkeys(by_op.get(pattern.op, ())):
                    best = self.best(rule, pattern, size, c)
                    if best is not None and all(k in index for k in best[1]):
                        sites = found.setdefault((rule.name, best[0]), {})
                        if len(sites) < SITES:
                            sites.setdefault(tuple(index[k] for k in best[1]))
        except _Done:
            pass  # what was found by then is told
        return tuple(Miss(rule, "structure", reason, tuple(sites)) for (rule, reason), sites in found.items())

    def best(self, rule: Rule, pattern: Pattern, size: int, c: int) -> tuple[str, tuple[int, ...]] | None:
        """What stands in the way of a match in class c, and the classes of the operators that do match."""
        found = None
        for env, wrong in self.walk(pattern, c, {}, None, None):
            if wrong is None:
                return None  # it does match here
            matched = [env[p.result] for p in pattern.walk() if p.op != "Get" and p.result in env]
            if found is None and (wrong[1] or len(matched) >= max(ENOUGH, size - 1)) and self.holds(rule, env):
                found = wrong[0], tuple(matched)
        return found

    def walk(
        self, p: Pattern | str, c: int, env: Env, wrong: tuple[str, bool] | None, above: str | None
    ) -> Iterator[tuple[Env, tuple[str, bool] | None]]:
        """All ways to match p in class c with at most one operator amiss; `wrong` says which, and whether between."""
        self.steps += 1
        if self.steps > STEPS:
            raise _Done
        if isinstance(p, str):
            if env.get(p, c) == c:
                yield {**env, p: c}, wrong
            return
        there = [k for k in self.members[c] if self.terms.ops[k] == p.op]
        for key in there:
            bound = self.attributes(p, key, {**env, p.result: c})
            kids = [self.terms.find(k) for k in self.terms.operands[key]]
            if bound is None or len(kids) != len(p.operands):
                continue
            for order in dict.fromkeys(permutations(kids) if p.op in COMMUTATIVE else [tuple(kids)]):
                yield from self.operands(p, order, 0, bound, wrong)
        if there or wrong is not None or above is None or self.terms.const[c]:
            return
        first = self.members[c][0]
        op = self.terms.ops[first]
        if first >= self.own or op in ("Input", "Weight", "Get"):
            return
        opaque = "" if core(op) else ", which no rule knows,"
        for k in dict.fromkeys(map(self.terms.find, self.terms.operands[first])):
            yield from self.walk(p, k, env, (f"{op}{opaque} stands between {p.op} and {above}", True), above)
        yield env, (f"{above} reads the result of {op}{opaque} where the rule wants {p.op}", False)

    def operands(
        self, p: Pattern, kids: tuple[int, ...], at: int, env: Env, wrong: tuple[str, bool] | None
    ) -> Iterator[tuple[Env, tuple[str, bool] | None]]:
        if at == len(kids):
            yield env, wrong
            return
        for bound, amiss in self.walk(p.operands[at], kids[at], env, wrong, p.op):
            yield from self.operands(p, kids, at + 1, bound, amiss)

    def attributes(self, p: Pattern, key: int, env: Env) -> Env | None:
        attrs = self.terms.attrs(key)
        if any(attrs.get(a) != value for a, value in p.fixed):
            return None
        for attribute, name in p.named:
            value = viewed(attrs[attribute])
            if f"={name}" in env and env[f"={name}"] != attrs[attribute]:
                return None
            env |= {f"={name}": attrs[attribute], name: value}
        return env | ({p.whole: attrs} if p.whole else {})

    def holds(self, rule: Rule, env: Env) -> bool:
        """Whether no guard that can be asked refuses: those that speak of what is missing cannot."""
        classes = {n for p in rule.patterns[0].walk() for n in (p.result, *p.operands) if isinstance(n, str)}
        names = {k: Term(self.terms, v) if k in classes else v for k, v in env.items() if not k.startswith("=")}
        for guard in rule.where:
            try:
                if not eval(guard.code, {**HELPERS, **names}):  # the text is the rule author's, never the user's
                    return False
            except NameError:
                continue
            except (TypeError, IllTyped):
                return False
        return True
