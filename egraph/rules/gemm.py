"""Gemm: as a product and a sum, for which all other rules are, and back, as one operator."""

from __future__ import annotations

from .language import C, Guard, Rule, T, W

_PLAIN = "factors other than 1 need products of their own"
_PARTS = "x, y = Transpose(a, perm=(1, 0)) if u else a, Transpose(b, perm=(1, 0)) if v else b"
_AB = {"a": T(3, 5), "b": W(5, 2), "u": 0, "v": 0}

RULES = [
    Rule(
        "gemm-as-sum",
        "Gemm(a, b, c, alpha=f, beta=g, transA=u, transB=v)",
        f"{_PARTS}; root = Add(MatMul(x, y), Reshape(c, shape=stripped(c.shape)))",
        where=[Guard("f == 1 and g == 1", _PLAIN, counter={**_AB, "c": W(2), "f": 0.5, "g": 1.0})],
        examples=[
            {**_AB, "c": W(2), "f": 1.0, "g": 1.0},
            {**_AB, "c": T(3, 1), "f": 1.0, "g": 1.0},
            {"a": T(5, 3), "b": W(2, 5), "c": W(1, 2), "u": 1, "v": 1, "f": 1.0, "g": 1.0},
        ],
        undoes=("sum-as-gemm", "sum-as-flattened-gemm"),
    ),
    Rule(
        "gemm-as-product",
        "Gemm(a, b, alpha=f, beta=g, transA=u, transB=v)",
        f"{_PARTS}; root = MatMul(x, y)",
        where=[Guard("f == 1", _PLAIN, counter={**_AB, "f": 0.5, "g": 1.0})],
        examples=[{**_AB, "f": 1.0, "g": 1.0}, {"a": T(5, 3), "b": T(2, 5), "u": 1, "v": 1, "f": 1.0, "g": 1.0}],
    ),
    Rule(
        "scaled-gemm-as-sum",
        "Gemm(a, b, c, alpha=f, beta=g, transA=u, transB=v)",
        f"""
{_PARTS}
left, right = [constant(np.array(n), a.dtype) for n in (f, g)]
root = Add(Mul(MatMul(x, y), left), Mul(Reshape(c, shape=stripped(c.shape)), right))
""",
        where=[
            Guard(
                "f != 1 or g != 1",
                "factors of 1 vanish",
                kind="growth",
                counter={**_AB, "c": W(2), "f": 1.0, "g": 1.0},
            )
        ],
        tag="range",
        examples=[{**_AB, "c": W(2), "f": 0.5, "g": 2.0}, {**_AB, "c": T(3, 1), "f": 1.0, "g": 0.25}],
        undoes=("sum-as-gemm", "sum-as-flattened-gemm"),
    ),
    Rule(
        "sum-as-gemm",
        "Add(MatMul(x, w), c)",
        "Gemm(x, w, c, alpha=1.0, beta=1.0, transA=0, transB=0)",
        where=[
            Guard(
                "x.rank == 2 and w.rank == 2",
                "Gemm is of matrices",
                counter={"x": T(2, 3, 5), "w": W(5, 2), "c": W(2)},
            ),
            Guard(
                "alike(root.shape, (x.shape[0], w.shape[1]))",
                "Gemm does not broadcast the product",
                counter={"x": T(1, 5), "w": W(5, 2), "c": T(3, 2)},
            ),
        ],
        examples=[{"x": T(3, 5), "w": W(5, 2), "c": W(2)}, {"x": T(3, 5), "w": T(5, 2), "c": T(3, 2)}],
    ),
    Rule(
        "sum-as-flattened-gemm",
        "Add(MatMul(x, w), c)",
        """
n = (product(x.shape[:-1]), w.shape[1])
y = Gemm(Reshape(x, shape=(n[0], w.shape[0])), w, Reshape(c, shape=spread(c.shape, root.shape, n)),
         alpha=1.0, beta=1.0, transA=0, transB=0)
root = Reshape(y, shape=root.shape)
""",
        where=[
            Guard(
                "x.rank > 2 and w.rank == 2",
                "w must be one matrix for all rows",
                counter={"x": T(2, 3, 5), "w": W(2, 5, 7), "c": W(7)},
            ),
            Guard(
                "len(root.shape) == x.rank and alike(root.shape[:-1], x.shape[:-1])"
                " and spread(c.shape, root.shape, (product(x.shape[:-1]), w.shape[1])) is not None",
                "the addend must be one for each column, or for each element",
                counter={"x": T(2, 3, 5), "w": W(5, 7), "c": T(3, 1)},
            ),
        ],
        examples=[
            {"x": T(2, 3, 5), "w": W(5, 7), "c": W(7)},
            {"x": T(2, 3, 5), "w": W(5, 7), "c": T(2, 3, 7)},
            {"x": T(2, 3, 5), "w": W(5, 7), "c": C(0.5)},
        ],
    ),
]
