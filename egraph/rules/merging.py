"""Siblings merged: products and sums that share an operand."""

from __future__ import annotations

from .language import C, Guard, Rule, T, W

_ORDER = "siblings merge in the order of their weights, one after the other, else every subset of a group is made"


def _bias_of_one(name: str, part: int, both: str) -> Rule:
    """A bias of one part only: the other part's is zero, so that further merges see one operator."""
    other = 1 - part
    example = {"t": T(4, 7), "k": 1, "n": (3, 4), "b": W(3 + part), "m": (2, 2, 4 - part)}
    return Rule(
        f"bias-of-{name}-part",
        f"s = Split(t, axis=k, sizes=n); y = Add(s[{part}], b); z = s[{other}]; r = Reshape(z, shape=m)",
        f"""
zero = constant(np.zeros((n[{other}],)), b.dtype)
p = Split(Add(t, Concat({both}, axis=0)), axis=k, sizes=n)
y = p[{part}]; z = p[{other}]
""",
        where=[
            Guard(
                "b.const and not t.const",
                "only constants are joined for nothing",
                kind="growth",
                counter={**example, "b": T(3 + part)},
            ),
            Guard(
                "not b.all_equal(0.0)",
                "an addend of zero vanishes",
                kind="growth",
                counter={**example, "b": C([0.0] * (3 + part))},
            ),
            Guard(
                "len(n) == 2",
                "a third part needs an addend as well",
                counter={**example, "n": (3, 3, 1), "b": W(3), "m": (12,)},
            ),
            Guard(
                f"k == t.last and t.rank > 1 and b.rank == 1 and same(b.shape[0], n[{part}])",
                "the addend must be a vector with one value for each column of its part",
                counter={**example, "b": W(1)},
            ),
        ],
        examples=[example, {"t": T(2, 3, 4), "k": 2, "n": (2, 2), "b": W(2), "m": (12,)}],
        source="Whisper: queries and values have a bias, keys have none",
    )


RULES = [
    Rule(
        "merge-sibling-matmuls",
        "y1 = MatMul(x, w); y2 = MatMul(x, v)",
        """
m = Split(MatMul(x, Concat(w, v, axis=1)), axis=y1.last, sizes=[w.shape[1], v.shape[1]])
y1 = m[0]; y2 = m[1]
""",
        where=[
            Guard(
                "w.const and v.const",
                "both right operands must be weights, so that their concatenation folds",
                kind="growth",
                counter={"x": T(3, 5), "w": T(5, 2), "v": T(5, 7)},
            ),
            Guard(
                "w.rank == 2 and v.rank == 2",
                "the right operands must be matrices: of higher ranks axis 1 is not the column axis",
                counter={"x": T(3, 5), "w": W(3, 5, 2), "v": W(3, 5, 2)},
            ),
            Guard(
                "x.next_sibling(w, v)",
                _ORDER,
                kind="growth",
                counter={"v": W(5, 2), "w": W(5, 7), "x": T(3, 5)},
            ),
        ],
        examples=[{"x": T(3, 5), "w": W(5, 2), "v": W(5, 7)}, {"x": T(2, 3, 5), "w": W(5, 4), "v": W(5, 1)}],
        source="TASO's matmul merge; QKV and gate/up projections",
    ),
    *(_bias_of_one(*case) for case in (("first", 0, "b, zero"), ("second", 1, "zero, b"))),
    Rule(
        "merge-biases",
        "s = Split(t, axis=k, sizes=n); y1 = Add(s[0], b); y2 = Add(s[1], c)",
        "p = Split(Add(t, Concat(b, c, axis=b.last)), axis=k, sizes=n); y1 = p[0]; y2 = p[1]",
        where=[
            Guard(
                "b.const and c.const",
                "both addends must be constants, so that their concatenation folds",
                kind="growth",
                counter={"t": T(3, 5), "k": 1, "n": (2, 3), "b": T(2), "c": T(3)},
            ),
            Guard(
                "not (b.all_equal(0.0) and c.all_equal(0.0))",
                "addends that are all zero vanish",
                kind="growth",
                counter={"t": T(3, 5), "k": 1, "n": (2, 3), "b": C([0.0, 0.0]), "c": C([0.0, 0.0, 0.0])},
            ),
            Guard(
                "len(n) == 2",
                "every part needs its own addend",
                counter={"t": T(2, 5), "k": 1, "n": (2, 2, 1), "b": W(2), "c": W(2)},
            ),
            Guard(
                "k == t.last",
                "the split must be along the last axis, the addends' axis",
                counter={"t": T(4, 3), "k": 0, "n": (1, 3), "b": W(3), "c": W(3)},
            ),
            Guard(
                "b.rank == 1 and c.rank == 1 and b.shape[0] == n[0] and c.shape[0] == n[1]",
                "the addends must be vectors with one value for each column",
                counter={"t": T(4, 5), "k": 1, "n": (2, 3), "b": W(1), "c": W(1)},
            ),
        ],
        coarse=True,  # more than three siblings get their biases two by two
        examples=[{"t": T(4, 5), "k": 1, "n": (2, 3), "b": W(2), "c": W(3)}],
    ),
    Rule(
        "merge-three-biases",
        "s = Split(t, axis=k, sizes=n); y1 = Add(s[0], b); y2 = Add(s[1], c); y3 = Add(s[2], d)",
        "p = Split(Add(t, Concat(b, c, d, axis=0)), axis=k, sizes=n); y1 = p[0]; y2 = p[1]; y3 = p[2]",
        where=[
            Guard(
                "b.const and c.const and d.const",
                "the addends must be constants, so that their concatenation folds",
                kind="growth",
                counter={"t": T(3, 6), "k": 1, "n": (2, 3, 1), "b": T(2), "c": T(3), "d": T(1)},
            ),
            Guard(
                "not (b.all_equal(0.0) and c.all_equal(0.0) and d.all_equal(0.0))",
                "addends that are all zero vanish",
                kind="growth",
                counter={"t": T(3, 4), "k": 1, "n": (1, 2, 1), "b": C([0.0]), "c": C([0.0, 0.0]), "d": C([0.0])},
            ),
            Guard(
                "len(n) == 3",
                "every part needs its own addend",
                counter={"t": T(2, 6), "k": 1, "n": (2, 2, 1, 1), "b": W(2), "c": W(2), "d": W(1)},
            ),
            Guard(
                "k == t.last",
                "the split must be along the last axis, the addends' axis",
                counter={"t": T(6, 2), "k": 0, "n": (2, 3, 1), "b": W(2), "c": W(2), "d": W(2)},
            ),
            Guard(
                "all(v.rank == 1 and v.shape[0] == e for v, e in zip((b, c, d), n))",
                "the addends must be vectors with one value for each column",
                counter={"t": T(4, 6), "k": 1, "n": (2, 3, 1), "b": W(1), "c": W(1), "d": W(1)},
            ),
        ],
        examples=[{"t": T(4, 6), "k": 1, "n": (2, 3, 1), "b": W(2), "c": W(3), "d": W(1)}],
    ),
]
