"""Queries and keys as one tensor: what both parts of a split go through, the whole goes through once."""

from __future__ import annotations

from .language import Example, Guard, Rule, T

_BOTH = "every part must go through the operator, else it works on more than before"


def _rule(name: str, left: str, right: str, examples: list[Example], guards: list[Guard], more: str = "") -> Rule:
    """`left` is what part @ goes through."""
    wider: dict[str, object] = {"n": (*examples[0]["n"], 0)}
    parts = "; ".join(f"y{i + 1} = {left.replace('@', str(i))}" for i in (0, 1))
    return Rule(
        f"{name}-of-both-parts",
        f"s = Split(t, axis=k, sizes=n); {more}{parts}",
        f"p = Split({right}, axis=k, sizes=n); y1 = p[0]; y2 = p[1]",
        where=[Guard("len(n) == 2", _BOTH, kind="growth", counter={**examples[0], **wider}), *guards],
        examples=examples,
        source="rotary embeddings turn queries and keys alike",
    )


RULES = [
    *(
        _rule(
            op.lower(),
            f"{op}(s[@], c)",
            f"{op}(t, c)",
            [{"t": T(2, 7, 3), "k": 1, "n": (3, 4), "c": T(1, 3)}, {"t": T(2, 5), "k": 0, "n": (1, 1), "c": T(1, 5)}],
            [
                Guard(
                    "c.fits(t) and c.broadcasts_along(k, t.rank)",
                    "the common operand must be alike along the axis of the split",
                    counter={"t": T(4, 6), "k": 1, "n": (3, 3), "c": T(3)},
                )
            ],
        )
        for op in ("Mul", "Add")
    ),
    _rule(
        "sum",
        "Add(s[@], r[@])",
        "Add(t, u)",
        [{"t": T(2, 7), "u": T(2, 7), "k": 1, "n": (3, 4)}],
        [
            Guard(
                "alike(t.shape, u.shape)",
                "of broadcast operands the whole must not be larger than the parts",
                kind="growth",
                counter={"t": T(2, 7), "u": T(1, 7), "k": 1, "n": (3, 4)},
            )
        ],
        "r = Split(u, axis=k, sizes=n); ",
    ),
    _rule(
        "concat",
        "Concat(s[@], r[@], axis=j)",
        "Concat(t, u, axis=j)",
        [{"t": T(7, 2), "u": T(7, 3), "k": 0, "n": (3, 4), "j": 1}],
        [
            Guard(
                "j != k",
                "parts that are joined along the axis of the split come in another order",
                counter={"t": T(4, 2), "u": T(4, 2), "k": 0, "n": (2, 2), "j": 0},
            )
        ],
        "r = Split(u, axis=k, sizes=n); ",
    ),
    _rule(
        "slice",
        "Slice(s[@], axes=a, starts=b, ends=e)",
        "Slice(t, axes=a, starts=b, ends=e)",
        [{"t": T(7, 5), "k": 0, "n": (3, 4), "a": (1,), "b": (1,), "e": (3,)}],
        [
            Guard(
                "k not in a",
                "a slice along the axis of the split takes from each part",
                counter={"t": T(6, 5), "k": 0, "n": (3, 3), "a": (0,), "b": (0,), "e": (2,)},
            )
        ],
    ),
    Rule(
        "split-of-both-parts",
        """
s = Split(t, axis=k, sizes=n)
u = Split(s[0], axis=j, sizes=m); v = Split(s[1], axis=j, sizes=m)
y1 = u[i]; y2 = v[i]
""",
        "p = Split(Split(t, axis=j, sizes=m)[i], axis=k, sizes=n); y1 = p[0]; y2 = p[1]",
        where=[
            Guard(
                "len(n) == 2",
                _BOTH,
                kind="growth",
                counter={"t": T(7, 5), "k": 0, "n": (3, 4, 0), "j": 1, "m": (2, 3), "i": 1},
            ),
            Guard(
                "j != k",
                "parts of parts along one axis are parts of the whole",
                counter={"t": T(4, 5), "k": 0, "n": (2, 2), "j": 0, "m": (1, 1), "i": 1},
            ),
        ],
        examples=[{"t": T(7, 5), "k": 0, "n": (3, 4), "j": 1, "m": (2, 3), "i": 1}],
        source="rotary embeddings turn queries and keys alike",
    ),
    _rule(
        "rotation",
        "RotaryEmbedding(s[@], c, d, interleaved=i)",
        "RotaryEmbedding(t, c, d, interleaved=i)",
        [{"t": T(2, 7, 5, 4), "k": 1, "n": (3, 4), "c": T(2, 5, 2), "d": T(2, 5, 2), "i": 0}],
        [
            Guard(
                "k == 1",
                "parts of other axes than the heads' have angles of their own",
                counter={"t": T(4, 3, 5, 4), "k": 0, "n": (2, 2), "c": T(2, 5, 2), "d": T(2, 5, 2), "i": 0},
            )
        ],
    ),
]
