"""Matrix products: siblings merged, constants folded, linearity."""

from __future__ import annotations

from .language import C, Guard, Rule, T, W

_ORDER = "siblings merge in the order of their weights, one after the other, else every subset of a group is made"

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
    Rule(
        "matmul-of-product",
        "MatMul(MatMul(x, w), v)",
        "MatMul(x, MatMul(w, v))",
        where=[
            Guard(
                "w.const and v.const and not x.const",
                "only where the product of two weights folds into one",
                kind="growth",
                counter={"x": T(3, 5), "w": T(5, 2), "v": W(2, 7)},
            ),
            Guard(
                "x.rank >= 2 and w.rank >= 2 and v.rank >= 2",
                "a product with a vector is no associative one",
                counter={"x": T(3, 3), "w": W(3), "v": W(3, 3)},
            ),
        ],
        examples=[{"x": T(3, 5), "w": W(5, 2), "v": W(2, 7)}, {"x": T(2, 3, 5), "w": W(5, 2), "v": W(2, 7)}],
    ),
    Rule(
        "scale-matmul-weight",
        "Mul(MatMul(x, w), s)",
        "MatMul(x, Mul(w, s))",
        where=[
            Guard(
                "w.const and s.const and not x.const",
                "w and s must be constants, so that their product folds",
                kind="growth",
                counter={"x": T(3, 5), "w": T(5, 2), "s": C(2.0)},
            ),
            Guard(
                "w.rank == 2 and x.rank >= 2 and (s.elements == 1 or s.shape == (w.shape[1],))",
                "s must be one number, or one for each column of the matrix w",
                counter={"x": T(5, 5), "w": W(5, 5), "s": W(5, 1)},
            ),
        ],
        tag="range",
        examples=[{"x": T(3, 5), "w": W(5, 2), "s": C(0.125)}, {"x": T(2, 3, 5), "w": W(5, 4), "s": W(4)}],
    ),
    Rule(
        "scale-matmul-operand",
        "Mul(MatMul(x, y), s)",
        "MatMul(Mul(x, s), y)",
        where=[
            Guard(
                "s.const and s.elements == 1 and s.rank <= x.rank",
                "s must be one constant number: only that passes through a product",
                counter={"x": T(5, 5), "y": T(5, 5), "s": W(5)},
            ),
            Guard(
                "not x.const and not y.const",
                "with a weight among the factors, the weight takes the scale",
                kind="growth",
                counter={"x": T(3, 5), "y": W(5, 2), "s": C(2.0)},
            ),
        ],
        tag="range",
        examples=[{"x": T(3, 5), "y": T(5, 2), "s": C(0.125)}, {"x": T(2, 3, 5), "y": T(2, 5, 4), "s": C(0.5)}],
    ),
    Rule(
        "sum-of-matmuls",
        "Add(MatMul(x, w), MatMul(x, v))",
        "MatMul(x, Add(w, v))",
        where=[
            Guard(
                "w.const and v.const and not x.const",
                "w and v must be weights, so that their sum folds",
                kind="growth",
                counter={"x": T(3, 5), "w": T(5, 2), "v": W(5, 2)},
            ),
            Guard(
                "w.shape == v.shape",
                "a vector's product is a row, but added to a matrix it is a row of the factor",
                counter={"x": T(3, 3), "w": W(3), "v": W(3, 3)},
            ),
        ],
        examples=[{"x": T(3, 5), "w": W(5, 2), "v": W(5, 2)}],
    ),
    Rule(
        "matmul-of-sum",
        "Add(MatMul(x, w), MatMul(y, w))",
        "MatMul(Add(x, y), w)",
        where=[
            Guard(
                "x.shape == y.shape",
                "operands of different shapes broadcast in the sum of products but not before them",
                counter={"x": T(5), "y": T(3, 3, 5), "w": W(3, 5, 2)},
            ),
        ],
        examples=[{"x": T(3, 5), "y": T(3, 5), "w": W(5, 2)}, {"x": T(2, 3, 5), "y": T(2, 3, 5), "w": T(2, 5, 4)}],
    ),
    Rule(
        "transpose-of-matmul",
        "Transpose(MatMul(x, y), perm=p)",
        "MatMul(Transpose(y, perm=swapped(y.rank)), Transpose(x, perm=swapped(x.rank)))",
        where=[
            Guard(
                "x.rank >= 2 and y.rank >= 2",
                "a vector has no two axes to exchange",
                counter={"x": T(5), "y": T(2, 5, 4), "p": (1, 0)},
            ),
            Guard(
                "tuple(p) == swapped(len(p))",
                "the permutation must exchange the last two axes and nothing else",
                counter={"x": T(3, 3, 3), "y": T(3, 3, 3), "p": (1, 0, 2)},
            ),
        ],
        examples=[{"x": T(3, 5), "y": T(5, 2), "p": (1, 0)}, {"x": T(2, 3, 5), "y": T(2, 5, 4), "p": (0, 2, 1)}],
    ),
]
