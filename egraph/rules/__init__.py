"""The rules, one file per family; each rule is one readable definition with its guards and its own tests.

Here are mathematics only: profit is the extractor's business, matching that of `egraph.saturate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from importlib import import_module

from .language import Guard, Rule

__all__ = ["FAMILIES", "Guard", "Rule", "families", "rule_set"]

FAMILIES = (
    "elementwise", "geometry", "distribution", "masks", "layout", "transpose", "reshape", "slices", "activation",
    "matmul", "gemm", "batches", "merging", "heads", "convolution", "kernels", "siblings", "patches", "pooling",
    "attention", "normalisation", "functions", "indexing", "rotary", "runtime",
)  # fmt: skip
"""Names of the families, each a module of this package with its `RULES`, in the order in which they fire."""


@cache
def families() -> dict[str, tuple[Rule, ...]]:
    """All rules by family, in the order in which they fire."""
    found = {name: import_module(f".{name}", __name__).RULES for name in FAMILIES}
    result = {name: tuple(replace(r, family=name) for r in rules) for name, rules in found.items()}
    names = [r.name for rules in result.values() for r in rules]
    assert len(names) == len(set(names)), "rule names must be unique"
    return result


def rule_set(
    only: Iterable[str] | None = None,
    without: Iterable[str] = (),
    writable: Callable[[str], bool] | None = None,
) -> tuple[Rule, ...]:
    """The rules of the families `only` (all by default), less the rules or families named in `without`.

    Rules tagged `approx` are never among them unless named. `writable` tells whether an operator can be written in the
    model's opset for its target: rules that introduce one that cannot are left out. Raises `KeyError` with the
    unknown name.
    """
    known = families()
    rules = {r.name: r for group in known.values() for r in group}
    wanted, unwanted = list(known) if only is None else list(only), set(without)
    for name in (*wanted, *sorted(unwanted)):
        if name not in known and name not in rules:
            raise KeyError(name)
    chosen = [r for name in wanted for r in known.get(name, (rules.get(name),)) if r is not None]
    return tuple(
        r for r in chosen
        if r.name not in unwanted and r.family not in unwanted and (r.tag != "approx" or r.name in wanted)
        and (writable is None or all(map(writable, r.introduces)))
    )  # fmt: skip
