"""Matrix products: constants folded, linearity. Siblings are merged in `merging`."""

from __future__ import annotations

from .language import C, Guard, Rule, T, W

_VECTOR = "a product with a vector is no associative one"


def _of_concatenated(count: int) -> list[Rule]:
    """Concatenated products that share an operand are one product."""
    names, number = "abcd"[:count], {2: "", 3: "three-", 4: "four-"}[count]
    rows = {n: T(2 + i, 5) for i, n in enumerate(names)}
    columns = {n: W(5, 2 + i) for i, n in enumerate(names)}
    return [
        Rule(
            f"concat-of-{number}matmuls-of-one-weight",
            f"Concat({', '.join(f'MatMul({n}, w)' for n in names)}, axis=k)",
            f"MatMul(Concat({', '.join(names)}, axis=k), w)",
            where=[
                Guard(
                    "w.rank == 2 and a.rank >= 2",
                    "of higher ranks axis k is not an axis of the rows, and vectors have no rows",
                    counter={**{n: T(2, 3, 5) for n in names}, "w": T(2, 5, 4), "k": 0},
                ),
                Guard(
                    "k != a.last",
                    "along the last axis the products of several weights would be concatenated",
                    counter={**{n: T(4, 4) for n in names}, "w": T(4, 4), "k": 1},
                ),
            ],
            examples=[{**rows, "w": W(5, 4), "k": 0}, {**rows, "w": T(5, 4), "k": 0}],
            source="TASO 74",
        ),
        Rule(
            f"concat-of-{number}matmuls-of-one-operand",
            f"Concat({', '.join(f'MatMul(x, {n})' for n in names)}, axis=k)",
            f"MatMul(x, Concat({', '.join(names)}, axis=1))",
            where=[
                Guard(
                    f"{' and '.join(f'{n}.rank == 2' for n in names)} and k == x.last",
                    "the columns of matrices must be concatenated",
                    counter={"x": T(5, 5), **{n: W(5, 5) for n in names}, "k": 0},
                ),
                Guard(
                    "len({n.const for n in (" + ", ".join(names) + ")}) == 1",
                    "some weights among the operands would be copied each time",
                    kind="growth",
                    counter={"x": T(3, 5), **columns, "a": T(5, 2), "k": 1},
                ),
            ],
            examples=[{"x": T(3, 5), **columns, "k": 1}, {"x": T(2, 3, 5), **{n: T(5, 3) for n in names}, "k": 2}],
            source="TASO 8 and 73",
        ),
    ]


RULES = [
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
                _VECTOR,
                counter={"x": T(3, 3), "w": W(3), "v": W(3, 3)},
            ),
        ],
        innermost="x",
        tag="range",
        examples=[{"x": T(3, 5), "w": W(5, 2), "v": W(2, 7)}, {"x": T(2, 3, 5), "w": W(5, 2), "v": W(2, 7)}],
    ),
    Rule(
        "matmul-later-product-first",
        "MatMul(MatMul(x, y), z)",
        "MatMul(x, MatMul(y, z))",
        where=[
            Guard(
                "not (y.const and z.const)",
                "a product of two weights is taken anyway, and it folds",
                kind="growth",
                counter={"x": T(3, 5), "y": W(5, 2), "z": W(2, 7)},
            ),
            Guard(
                "x.rank >= 2 and y.rank >= 2 and z.rank >= 2",
                _VECTOR,
                counter={"x": T(3, 3), "y": T(3), "z": T(3, 3)},
            ),
            Guard(
                "not (x.const or y.const or z.const) or later_first(x, y, z)",
                "with a weight among the factors, the other order must take fewer multiplications",
                kind="growth",
                counter={"x": T(2, 5), "y": W(5, 4), "z": T(4, 7)},
            ),
        ],
        tag="range",
        examples=[
            {"x": T(3, 5), "y": T(5, 4), "z": T(4, 1)},
            {"x": T(2, 7, 2), "y": T(2, 2, 5), "z": T(2, 5, 3)},
            {"x": T(7, 3), "y": T(3, 7), "z": T(2, 7, 2)},
        ],
        source="TASO 1, 4, 9, 12 to 14; attention without softmax, graph convolution. n factors have n³/6 products",
    ),
    Rule(
        "matmul-earlier-product-first",
        "MatMul(x, MatMul(y, z))",
        "MatMul(MatMul(x, y), z)",
        where=[
            Guard(
                "x.rank >= 2 and y.rank >= 2 and z.rank >= 2",
                _VECTOR,
                counter={"x": T(3, 3), "y": T(3), "z": T(3, 3)},
            ),
            Guard(
                "not (x.const or y.const or z.const) or x.const and y.const or earlier_first(x, y, z)",
                "with a weight among the factors, the other order must take fewer multiplications",
                kind="growth",
                counter={"x": T(7, 5), "y": W(5, 4), "z": T(4, 2)},
            ),
        ],
        tag="range",
        examples=[
            {"x": T(1, 5), "y": T(5, 4), "z": T(4, 7)},
            {"x": W(3, 5), "y": W(5, 2), "z": T(2, 1)},
            {"x": T(5, 3), "y": T(2, 3, 4), "z": T(4, 7)},
        ],
        source="TASO 2, 5, 16 to 21",
    ),
    Rule(
        "matmul-of-residual",
        "MatMul(Add(x, MatMul(x, w)), v)",
        "MatMul(x, Add(v, MatMul(w, v)))",
        where=[
            Guard(
                "x.rank >= 2 and w.rank == 2 and v.rank == 2",
                "both products must be those of matrices: added to a matrix, a vector is a row",
                counter={"x": T(3, 3), "w": T(3), "v": T(3, 2)},
            ),
            Guard(
                "w.const and v.const or v.shape[1] * w.shape[0] <= x.elements",
                "the second factor must fold, or be smaller than the first",
                kind="growth",
                counter={"x": T(3, 5), "w": T(5, 5), "v": T(5, 7)},
            ),
        ],
        tag="range",
        examples=[{"x": T(3, 5), "w": W(5, 5), "v": W(5, 2)}, {"x": T(2, 7, 3), "w": T(3, 3), "v": T(3, 2)}],
        source="TASO 7",
    ),
    Rule(
        "matmul-of-diffused",
        "MatMul(Add(y, MatMul(x, y)), z)",
        "p = MatMul(y, z); root = Add(p, MatMul(x, p))",
        where=[
            Guard(
                "x.rank == 2 and y.rank == 2 and z.rank == 2",
                "all three must be matrices",
                counter={"x": T(3, 3, 3), "y": T(3), "z": T(3, 2)},
            ),
            Guard(
                "z.shape[1] < z.shape[0]",
                "the product must be narrower than y",
                kind="growth",
                counter={"x": T(3, 3), "y": T(3, 2), "z": T(2, 5)},
            ),
        ],
        tag="range",
        examples=[{"x": T(3, 3), "y": T(3, 5), "z": T(5, 2)}],
        source="TASO 15; graph convolution with self-loops",
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
        "scale-biased-matmul-weight",
        "Mul(Add(MatMul(x, w), b), s)",
        "Add(MatMul(x, Mul(w, s)), Mul(b, s))",
        where=[
            Guard(
                "w.const and b.const and s.const and not x.const and b.rank <= 1",
                "w, b and s must be constants, so that their products fold without growing",
                kind="growth",
                counter={"x": T(3, 5), "w": T(5, 2), "b": W(2), "s": W(2)},
            ),
            Guard(
                "w.rank == 2 and x.rank >= 2 and s.shape == (w.shape[1],)",
                "s must hold one number for each column of the matrix w",
                counter={"x": T(5, 5), "w": W(5, 5), "b": W(5), "s": W(5, 1)},
            ),
        ],
        tag="range",
        examples=[
            {"x": T(3, 5), "w": W(5, 2), "b": W(2), "s": W(2)},
            {"x": T(2, 3, 5), "w": W(5, 4), "b": C(0.5), "s": W(4)},
        ],
        source="layer scale: CaiT, ConvNeXt, DINOv2",
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
                "w.shape == v.shape",
                "a vector's product is a row, but added to a matrix it is a row of the factor",
                counter={"x": T(3, 3), "w": W(3), "v": W(3, 3)},
            ),
        ],
        tag="range",
        examples=[{"x": T(3, 5), "w": W(5, 2), "v": W(5, 2)}, {"x": T(3, 5), "w": T(5, 2), "v": T(5, 2)}],
        source="TASO 31",
    ),
    Rule(
        "sum-of-different-matmuls",
        "Add(MatMul(x, w), MatMul(y, v))",
        "MatMul(Concat(x, y, axis=x.last), Concat(w, v, axis=0))",
        where=[
            Guard(
                "x.rank >= 2 and w.rank == 2 and v.rank == 2 and w.shape[1] == v.shape[1]",
                "both right operands must be matrices with the same columns",
                counter={"x": T(3), "y": T(3), "w": T(3, 3), "v": T(3, 1)},
            ),
            Guard(
                "x.shape[:-1] == y.shape[:-1]",
                "both left operands must have the same rows",
                counter={"x": T(3, 2), "y": T(1, 5), "w": T(2, 4), "v": T(5, 4)},
            ),
            Guard(
                "not x == y and not w == v",
                "a shared operand is factored out",
                kind="growth",
                counter={
                    "x": T(3, 2),
                    "y": T(3, 2),
                    "w": C([[1.0, 2.0], [3.0, 4.0]]),
                    "v": C([[1.0, 2.0], [3.0, 4.0]]),
                },
            ),
            Guard(
                "w.const and v.const and w.lowest == w.highest and v.lowest == v.highest"
                " or 2 * (w.elements + v.elements + x.elements + y.elements) < 3 * w.shape[1] * (x.elements // w.shape[0])",
                "two weights (not siblings merged before) must fold, or copying the operands must take less than the addition",
                kind="growth",
                counter={"x": T(3, 2), "y": T(3, 5), "w": T(2, 4), "v": T(5, 4)},
            ),
        ],
        examples=[
            {"x": T(3, 2), "y": T(3, 5), "w": W(2, 4), "v": W(5, 4)},
            {"x": T(2, 3, 2), "y": T(2, 3, 1), "w": W(2, 7), "v": W(1, 7)},
            {"x": T(7, 1), "y": T(7, 1), "w": T(1, 11), "v": T(1, 11)},
        ],
        source="TASO 70; the two products of a recurrent cell",
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
        tag="range",
        examples=[{"x": T(3, 5), "y": T(3, 5), "w": W(5, 2)}, {"x": T(2, 3, 5), "y": T(2, 3, 5), "w": T(2, 5, 4)}],
    ),
    Rule(
        "matmul-of-narrow-sum",
        "MatMul(Add(x, y), w)",
        "Add(MatMul(x, w), MatMul(y, w))",
        where=[
            Guard(
                "x.shape == y.shape",
                "operands of different shapes broadcast in the sum but not in their products",
                counter={"x": T(5), "y": T(3, 3, 5), "w": W(3, 5, 2)},
            ),
            Guard(
                "not x.const and not y.const and w.rank >= 2 and w.shape[-2] > 2 * w.shape[-1]",
                "the products must be so narrow that their sum takes less than the sum before them",
                kind="growth",
                counter={"x": T(3, 5), "y": T(3, 5), "w": W(5, 3)},
            ),
        ],
        tag="range",
        examples=[{"x": T(7, 13), "y": T(7, 13), "w": W(13, 1)}],
        source="TASO 22, in the other direction",
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
    *(rule for count in (2, 3, 4) for rule in _of_concatenated(count)),
    Rule(
        "matmul-of-row-concat",
        "MatMul(Concat(*xs, axis=k), w)",
        "Concat(*[MatMul(x, w) for x in xs], axis=k)",
        where=[
            Guard(
                "w.rank == 2 and all(x.rank >= 2 for x in xs)",
                "of factors of higher ranks axis k is not an axis of the rows, and of vectors there are none",
                counter={"xs": [T(2, 3, 5), T(1, 3, 5)], "w": T(3, 5, 2), "k": 0},
            ),
            Guard(
                "k != xs[0].last",
                "the last axis is summed over",
                counter={"xs": [T(3, 3), T(3, 3)], "w": T(6, 2), "k": 1},
            ),
        ],
        examples=[
            {"xs": [T(3, 5), T(1, 5)], "w": T(5, 2), "k": 0},
            {"xs": [T(2, 1, 5), T(2, 3, 5)], "w": W(5, 4), "k": 1},
        ],
        source="TASO 3",
    ),
]
