"""Element-wise functions against concatenation and split."""

from __future__ import annotations

from typing import Any

from .language import Guard, Rule, T

_FUNCTIONS: dict[str, dict[str, Any] | None] = {
    "Relu": None, "Sigmoid": None, "Tanh": None, "Erf": None, "Exp": None, "Neg": None, "Softplus": None,
    "HardSwish": None, "Gelu": {"approximate": "none"}, "Swish": {"alpha": 1.5}, "LeakyRelu": {"alpha": 0.125},
    "Elu": {"alpha": 0.5}, "HardSigmoid": {"alpha": 0.25, "beta": 0.5}, "Clip": {"min": -0.5, "max": 1.0},
}  # fmt: skip
"""Functions that follow a product or a convolution in some network, with attributes for the examples."""


def _commuting(op: str, attrs: dict[str, Any] | None) -> list[Rule]:
    name = op.lower()
    more, a = ("", {}) if attrs is None else (", **a", {"a": attrs})

    def of(x: str) -> str:
        return f"{op}({x}{more})"

    def concatenated(count: int, number: str) -> Rule:
        names = "xyzu"[:count]
        return Rule(
            f"concat-of-{number}{name}s",
            f"Concat({', '.join(map(of, names))}, axis=k)",
            of(f"Concat({', '.join(names)}, axis=k)"),
            examples=[{**{x: T(2, 3 + i) for i, x in enumerate(names)}, "k": 1, **a}],
        )

    return [
        Rule(
            f"{name}-of-concat",
            of("Concat(*xs, axis=k)"),
            f"Concat(*[{of('x')} for x in xs], axis=k)",
            examples=[{"xs": [T(2, 3), T(2, 5), T(2, 1)], "k": 1, **a}, {"xs": [T(2, 3), T(1, 3)], "k": 0, **a}],
        ),
        concatenated(2, ""),
        concatenated(3, "three-"),
        concatenated(4, "four-"),
        Rule(
            f"{name}-of-split-parts",
            f"s = Split(x, axis=k, sizes=n); y1 = {of('s[i]')}; y2 = {of('s[j]')}",
            f"t = Split({of('x')}, axis=k, sizes=n); y1 = t[i]; y2 = t[j]",
            where=[
                Guard(
                    "i < j",
                    "each pair once, in the order of the parts",
                    kind="growth",
                    counter={"x": T(2, 6), "k": 1, "n": (2, 4), "i": 1, "j": 0, **a},
                ),
                Guard(
                    "len(n) == 2",
                    "every part must be used under the function, else it works more than before",
                    kind="growth",
                    counter={"x": T(2, 6), "k": 1, "n": (2, 3, 1), "i": 0, "j": 1, **a},
                ),
            ],
            coarse=True,
            examples=[{"x": T(2, 6), "k": 1, "n": (2, 4), "i": 0, "j": 1, **a}],
        ),
        Rule(
            f"{name}-of-three-split-parts",
            f"s = Split(x, axis=k, sizes=n); y1 = {of('s[0]')}; y2 = {of('s[1]')}; y3 = {of('s[2]')}",
            f"t = Split({of('x')}, axis=k, sizes=n); y1 = t[0]; y2 = t[1]; y3 = t[2]",
            where=[
                Guard(
                    "len(n) == 3",
                    "every part must be used under the function, else it works more than before",
                    kind="growth",
                    counter={"x": T(2, 6), "k": 1, "n": (2, 2, 1, 1), **a},
                ),
            ],
            examples=[{"x": T(2, 6), "k": 1, "n": (2, 3, 1), **a}],
        ),
    ]


RULES = [rule for op, attrs in _FUNCTIONS.items() for rule in _commuting(op, attrs)]
