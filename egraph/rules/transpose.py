"""Transposes moved: behind sums, products and norms, out of products, into weights, in front of splits."""

from __future__ import annotations

from ..operators import REDUCTIONS
from ..pointwise import BINARY
from .language import C, Guard, Rule, T, W

_SMALLER = "a constant of higher rank than x gives the result axes that the permutation does not know"
_FOLDS = "what is transposed in exchange must be a constant, so that it costs nothing"
_ORDERED = ("Sub", "Div", "Pow")
"""Operators of which a constant may be the first operand (of commutative ones it is the last)."""
_CONSTANT = "c if c.elements == 1 else Transpose(Reshape(c, shape=padded(c.shape, len(p))), perm=inverse(p))"


def _binary(op: str) -> list[Rule]:
    """Transposes of both operands, or of one beside a constant, move behind an element-wise operator."""
    name = op.lower()
    free = T(2, 3, 5)
    rules = [
        Rule(
            f"{name}-transposes",
            f"{op}(Transpose(x, perm=p), Transpose(y, perm=p))",
            f"Transpose({op}(x, y), perm=p)",
            examples=[{"x": free, "y": free, "p": (2, 0, 1)}, {"x": T(1, 3, 5), "y": T(2, 1, 1), "p": (1, 2, 0)}],
        )
    ]
    sides = [("transpose-constant", "Transpose(x, perm=p), c", f"x, {_CONSTANT}")]
    if op in _ORDERED:
        sides.append(("constant-transpose", "c, Transpose(x, perm=p)", f"{_CONSTANT}, x"))
    for suffix, left, right in sides:
        rules.append(
            Rule(
                f"{name}-{suffix}",
                f"{op}({left})",
                f"Transpose({op}({right}), perm=p)",
                where=[
                    Guard("c.const", _FOLDS, kind="growth", counter={"x": free, "c": T(5, 2, 1), "p": (2, 0, 1)}),
                    Guard("c.rank <= x.rank", _SMALLER, counter={"x": T(2, 3), "c": W(2, 3, 2), "p": (1, 0)}),
                ],
                examples=[
                    {"x": free, "c": W(5, 1, 3), "p": (2, 0, 1)},
                    {"x": free, "c": W(3), "p": (2, 0, 1)},
                    {"x": T(2, 3), "c": C(0.25), "p": (1, 0)},
                ],
            )
        )
    return rules


def _reduction(op: str) -> Rule:
    return Rule(
        f"{op.lower()}-transpose",
        f"{op}(Transpose(x, perm=p), axes=a, keepdims=k)",
        f"""
left = [i for i in (p if k else [p[i] for i in range(len(p)) if i not in a])]
y = {op}(x, axes=sorted([p[i] for i in a]), keepdims=k)
root = Transpose(y, perm=[sorted(left).index(i) for i in left])
""",
        examples=[
            {"x": T(2, 3, 5), "p": (2, 0, 1), "a": (0, 1), "k": 1},
            {"x": T(2, 3, 5, 7), "p": (3, 0, 2, 1), "a": (1,), "k": 0},
        ],
    )


RULES = [
    *(rule for op in BINARY for rule in _binary(op)),
    *(_reduction(op) for op in REDUCTIONS),
    Rule(
        "softmax-transpose",
        "Softmax(Transpose(x, perm=p), axis=k)",
        "Transpose(Softmax(x, axis=p[k]), perm=p)",
        examples=[{"x": T(2, 3, 5), "p": (2, 0, 1), "k": 0}, {"x": T(2, 3), "p": (1, 0), "k": 1}],
    ),
    Rule(
        "layer-norm-transpose",
        "LayerNormalization(Transpose(x, perm=p), s, b, axis=k, epsilon=e)",
        "Transpose(LayerNormalization(x, s, b, axis=k, epsilon=e), perm=p)",
        where=[
            Guard(
                "list(p[k:]) == list(range(k, len(p)))",
                "the normalised axes, the last ones, must stay where they are",
                counter={"x": T(3, 3, 3), "s": W(3), "b": W(3), "p": (0, 2, 1), "k": 2, "e": 1e-5},
            )
        ],
        examples=[{"x": T(2, 3, 5), "s": W(5), "b": W(5), "p": (1, 0, 2), "k": 2, "e": 1e-5}],
    ),
    Rule(
        "rms-norm-transpose",
        "RMSNormalization(Transpose(x, perm=p), s, axis=k, epsilon=e)",
        "Transpose(RMSNormalization(x, s, axis=k, epsilon=e), perm=p)",
        where=[
            Guard(
                "list(p[k:]) == list(range(k, len(p)))",
                "the normalised axes, the last ones, must stay where they are",
                counter={"x": T(3, 3, 3), "s": W(3), "p": (0, 2, 1), "k": 2, "e": 1e-5},
            )
        ],
        examples=[{"x": T(2, 3, 5), "s": W(5), "p": (1, 0, 2), "k": 2, "e": 1e-5}],
    ),
    Rule(
        "matmul-transposed-rows",
        "MatMul(Transpose(x, perm=p), w)",
        "Transpose(MatMul(x, w), perm=p)",
        where=[
            Guard(
                "w.rank == 2",
                "w must be one matrix for all rows: of several, each belongs to its batch",
                counter={"x": T(3, 3, 5), "w": W(3, 5, 2), "p": (1, 0, 2)},
            ),
            Guard(
                "p[-1] == len(p) - 1",
                "the last axis, along which the product sums, must stay",
                counter={"x": T(3, 3), "w": W(3, 3), "p": (1, 0)},
            ),
        ],
        examples=[
            {"x": T(2, 3, 5), "w": W(5, 2), "p": (1, 0, 2)},
            {"x": T(2, 3, 7, 5), "w": T(5, 4), "p": (2, 0, 1, 3)},
        ],
    ),
    Rule(
        "matmul-transposed-batches",
        "MatMul(Transpose(x, perm=p), Transpose(y, perm=p))",
        "Transpose(MatMul(x, y), perm=p)",
        where=[
            Guard(
                "len(p) > 2 and p[-1] == len(p) - 1 and p[-2] == len(p) - 2",
                "the axes of the matrices must stay: only batches may move",
                counter={"x": T(3, 3, 3), "y": T(3, 3, 3), "p": (0, 2, 1)},
            ),
        ],
        examples=[
            {"x": T(2, 3, 5, 7), "y": T(2, 3, 7, 4), "p": (1, 0, 2, 3)},
            {"x": T(2, 1, 5, 7), "y": T(1, 3, 7, 4), "p": (1, 0, 2, 3)},
        ],
    ),
    Rule(
        "flattened-transpose-into-weight",
        "MatMul(Reshape(Transpose(x, perm=p), shape=n), w)",
        """
l = len(n) - 1
t = [x.shape[i] for i in p][l:]
v = Transpose(Reshape(w, shape=[*t, w.shape[1]]), perm=[*[i - l for i in inverse(p)[l:]], len(t)])
root = MatMul(Reshape(x, shape=n), Reshape(v, shape=w.shape))
""",
        where=[
            Guard(
                "w.const and w.rank == 2",
                "w must be a constant matrix, so that its rows can be put in x's order for nothing",
                kind="growth",
                counter={"x": T(2, 3, 5), "p": (0, 2, 1), "n": (2, 15), "w": T(15, 7)},
            ),
            Guard(
                "len(n) < len(p) and list(p[:len(n) - 1]) == list(range(len(n) - 1))"
                " and alike(n[:-1], x.shape[:len(n) - 1])",
                "all axes that move must be flattened into the axis along which the product sums",
                counter={"x": T(3, 3, 3), "p": (1, 0, 2), "n": (3, 9), "w": W(9, 7)},
            ),
        ],
        examples=[
            {"x": T(2, 3, 5), "p": (0, 2, 1), "n": (2, 15), "w": W(15, 7)},
            {"x": T(2, 3, 5, 7), "p": (0, 3, 1, 2), "n": (2, 105), "w": W(105, 2)},
        ],
        source="a fully connected layer behind images in channels-last order",
    ),
    Rule(
        "transpose-of-expand",
        "Transpose(Expand(x, shape=n), perm=p)",
        "Expand(Transpose(x, perm=p), shape=[n[i] for i in p])",
        where=[
            Guard(
                "x.rank == len(n)",
                "an expansion to a higher rank has axes that x has not",
                counter={"x": T(3), "n": (3, 3), "p": (1, 0)},
            )
        ],
        examples=[{"x": T(2, 1, 5), "n": (2, 3, 5), "p": (2, 0, 1)}],
    ),
    Rule(
        "pad-transpose",
        "Pad(Transpose(x, perm=p), pads=n, value=v)",
        "Transpose(Pad(x, pads=[n[o + i] for o in (0, len(p)) for i in inverse(p)], value=v), perm=p)",
        examples=[{"x": T(2, 3, 5), "p": (2, 0, 1), "n": (1, 0, 2, 0, 0, 3), "v": 0.5}],
    ),
    Rule(
        "concat-of-transposes",
        "Concat(Transpose(x, perm=p), Transpose(y, perm=p), axis=k)",
        "Transpose(Concat(x, y, axis=p[k]), perm=p)",
        examples=[{"x": T(2, 3, 5), "y": T(2, 3, 1), "p": (2, 0, 1), "k": 0}],
    ),
    Rule(
        "slice-transpose",
        "Slice(Transpose(x, perm=p), axes=a, starts=b, ends=e)",
        """
at = sorted([(p[i], s, t) for i, s, t in zip(a, b, e)])
y = Slice(x, axes=[i for i, s, t in at], starts=[s for i, s, t in at], ends=[t for i, s, t in at])
root = Transpose(y, perm=p)
""",
        examples=[{"x": T(5, 7, 3), "p": (2, 0, 1), "a": (1, 2), "b": (1, 0), "e": (4, 5)}],
    ),
    Rule(
        "split-transpose",
        "s = Split(Transpose(x, perm=p), axis=k, sizes=n); root = s[i]",
        "root = Transpose(Split(x, axis=p[k], sizes=n)[i], perm=p)",
        examples=[{"x": T(2, 3, 7), "p": (2, 0, 1), "k": 0, "n": (2, 5), "i": 1}],
    ),
    Rule(
        "transpose-of-part",
        "s = Split(x, axis=k, sizes=n); root = Transpose(s[i], perm=p)",
        "root = Split(Transpose(x, perm=p), axis=inverse(p)[k], sizes=n)[i]",
        examples=[{"x": T(2, 3, 7), "p": (2, 0, 1), "k": 2, "n": (2, 5), "i": 1}],
        source="heads of merged projections: one transpose for all of them",
    ),
    Rule(
        "transpose-keys-like-queries",
        "s = Split(x, axis=k, sizes=n); y1 = Transpose(s[i], perm=p); y2 = Transpose(s[j], perm=q)",
        "y2 = Transpose(Split(Transpose(x, perm=p), axis=inverse(p)[k], sizes=n)[j], perm=swapped(len(p)))",
        where=[
            Guard(
                "len(p) > 2 and tuple(q) == composed(p, swapped(len(p)))",
                "the second permutation must be the first, and then an exchange of the last two axes",
                counter={"x": T(2, 3, 6), "k": 2, "n": (3, 3), "i": 0, "j": 1, "p": (1, 0, 2), "q": (0, 1, 2)},
            )
        ],
        examples=[
            {"x": T(2, 3, 7, 5), "k": 2, "n": (2, 5), "i": 0, "j": 1, "p": (0, 2, 1, 3), "q": (0, 2, 3, 1)},
        ],
        source="exporters transpose keys in one step: two make the first one common with queries and values",
    ),
]
