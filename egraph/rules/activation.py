"""Element-wise functions against concatenation and split."""

from __future__ import annotations

from .language import Guard, Rule, T

_FUNCTIONS = ("Relu", "Sigmoid", "Tanh")


def _commuting(op: str) -> list[Rule]:
    name = op.lower()
    return [
        Rule(
            f"{name}-of-concat",
            f"{op}(Concat(*xs, axis=k))",
            f"Concat(*[{op}(x) for x in xs], axis=k)",
            examples=[{"xs": [T(2, 3), T(2, 5), T(2, 1)], "k": 1}, {"xs": [T(2, 3), T(1, 3)], "k": 0}],
        ),
        Rule(
            f"concat-of-{name}s",
            f"Concat({op}(x), {op}(y), axis=k)",
            f"{op}(Concat(x, y, axis=k))",
            examples=[{"x": T(2, 3), "y": T(2, 5), "k": 1}],
        ),
        Rule(
            f"concat-of-three-{name}s",
            f"Concat({op}(x), {op}(y), {op}(z), axis=k)",
            f"{op}(Concat(x, y, z, axis=k))",
            examples=[{"x": T(2, 3), "y": T(2, 5), "z": T(2, 2), "k": 1}],
        ),
        Rule(
            f"concat-of-four-{name}s",
            f"Concat({op}(x), {op}(y), {op}(z), {op}(u), axis=k)",
            f"{op}(Concat(x, y, z, u, axis=k))",
            examples=[{"x": T(2, 3), "y": T(2, 5), "z": T(2, 2), "u": T(2, 1), "k": 1}],
        ),
        Rule(
            f"{name}-of-split-parts",
            f"s = Split(x, axis=k, sizes=n); y1 = {op}(s[i]); y2 = {op}(s[j])",
            f"t = Split({op}(x), axis=k, sizes=n); y1 = t[i]; y2 = t[j]",
            where=[
                Guard(
                    "i < j",
                    "each pair once, in the order of the parts",
                    kind="growth",
                    counter={"x": T(2, 6), "k": 1, "n": (2, 4), "i": 1, "j": 0},
                ),
                Guard(
                    "len(n) == 2",
                    "every part must be used under the function, else it works more than before",
                    kind="growth",
                    counter={"x": T(2, 6), "k": 1, "n": (2, 3, 1), "i": 0, "j": 1},
                ),
            ],
            examples=[{"x": T(2, 6), "k": 1, "n": (2, 4), "i": 0, "j": 1}],
        ),
        Rule(
            f"{name}-of-three-split-parts",
            f"s = Split(x, axis=k, sizes=n); y1 = {op}(s[0]); y2 = {op}(s[1]); y3 = {op}(s[2])",
            f"t = Split({op}(x), axis=k, sizes=n); y1 = t[0]; y2 = t[1]; y3 = t[2]",
            where=[
                Guard(
                    "len(n) == 3",
                    "every part must be used under the function, else it works more than before",
                    kind="growth",
                    counter={"x": T(2, 6), "k": 1, "n": (2, 2, 1, 1)},
                ),
            ],
            examples=[{"x": T(2, 6), "k": 1, "n": (2, 3, 1)}],
        ),
    ]


RULES = [rule for op in _FUNCTIONS for rule in _commuting(op)]
