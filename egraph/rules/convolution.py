"""Convolutions: batch normalisation and scales folded, biases taken in, siblings merged, kernels enlarged."""

from __future__ import annotations

from .language import C, Guard, Rule, T, W

_A = {"strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0), "group": 1}
_SAME = {"strides": (1, 1), "dilations": (1, 1), "pads": (1, 1, 1, 1), "group": 1}
_STRIDED = {"strides": (2, 1), "dilations": (1, 1), "pads": (0, 1, 1, 0), "group": 1}
_GROUPED = {"strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0), "group": 2}
_ORDER = "siblings merge in the order of their weights, one after the other, else every subset of a group is made"
_PER_CHANNEL = "the constant must hold one number, or one for each output channel"

# s as a column for each output channel: (o,) or (1, o, 1, 1) → (o, 1, 1, 1)
_CHANNEL = (
    "(s.elements == 1 or (s.rank >= y.rank - 1 and s.elements == y.shape[1] and s.shape[1 - y.rank] == y.shape[1]))"
)
_COLUMN = "Reshape(s, shape=[s.elements] + [1] * (w.rank - 1))"


RULES = [
    Rule(
        "batch-norm-after-conv",
        "BatchNormalization(Conv(x, w, **a), g, h, m, v, epsilon=e)",
        """
k = Div(g, Sqrt(Add(v, constant(np.array(e), v.dtype))))
root = Conv(x, Mul(w, Reshape(k, shape=[w.shape[0]] + [1] * (w.rank - 1))), Sub(h, Mul(m, k)), **a)
""",
        where=[
            Guard(
                "w.const and g.const and h.const and m.const and v.const",
                "weights and statistics must be constants, so that they fold",
                kind="growth",
                counter={"x": T(1, 2, 5, 5), "w": T(3, 2, 3, 3), "g": W(3), "h": W(3), "m": W(3), "v": C([0.5, 1.0, 2.0]), "a": _A, "e": 2.0**-16},
            )
        ],
        tag="range",
        examples=[
            {"x": T(1, 2, 5, 5), "w": W(3, 2, 3, 3), "g": W(3), "h": W(3), "m": W(3), "v": C([0.5, 1.0, 2.0]), "a": _STRIDED, "e": 2.0**-16},
            {"x": T(2, 4, 5, 5), "w": W(2, 2, 1, 3), "g": W(2), "h": W(2), "m": W(2), "v": C([0.5, 1.0]), "a": _GROUPED, "e": 0.0009765625},
        ],
    ),
    Rule(
        "batch-norm-after-biased-conv",
        "BatchNormalization(Conv(x, w, b, **a), g, h, m, v, epsilon=e)",
        """
k = Div(g, Sqrt(Add(v, constant(np.array(e), v.dtype))))
root = Conv(x, Mul(w, Reshape(k, shape=[w.shape[0]] + [1] * (w.rank - 1))), Add(h, Mul(Sub(b, m), k)), **a)
""",
        where=[
            Guard(
                "w.const and b.const and g.const and h.const and m.const and v.const",
                "weights and statistics must be constants, so that they fold",
                kind="growth",
                counter={"x": T(1, 2, 5, 5), "w": T(3, 2, 3, 3), "b": W(3), "g": W(3), "h": W(3), "m": W(3), "v": C([0.5, 1.0, 2.0]), "a": _A, "e": 2.0**-16},
            )
        ],
        tag="range",
        examples=[
            {"x": T(1, 2, 5, 5), "w": W(3, 2, 3, 3), "b": W(3), "g": W(3), "h": W(3), "m": W(3), "v": C([0.5, 1.0, 2.0]), "a": _SAME, "e": 2.0**-16},
        ],
    ),
    Rule(
        "add-as-conv-bias",
        "y = Conv(x, w, **a); root = Add(y, s)",
        "root = Conv(x, w, Reshape(s, shape=[y.shape[1]]), **a)",
        where=[
            Guard("s.const and not y.const", "the addend must be a constant", kind="growth", counter={"x": T(1, 2, 5, 5), "w": W(3, 2, 3, 3), "s": T(1, 3, 1, 1), "a": _A}),
            Guard(
                "s.rank in (y.rank - 1, y.rank) and s.elements == y.shape[1] and s.shape[1 - y.rank] == y.shape[1]",
                "the addend must hold one value for each output channel, along the channel axis",
                counter={"x": T(1, 2, 5, 5), "w": W(3, 2, 3, 3), "s": W(3, 1), "a": _A},
            ),
        ],
        examples=[
            {"x": T(1, 2, 5, 5), "w": W(3, 2, 3, 3), "s": W(1, 3, 1, 1), "a": _SAME},
            {"x": T(2, 4, 5, 5), "w": W(6, 2, 3, 1), "s": W(6, 1, 1), "a": _GROUPED},
        ],
    ),
    Rule(
        "add-to-conv-bias",
        "y = Conv(x, w, b, **a); root = Add(y, s)",
        "root = Conv(x, w, Add(b, Reshape(s, shape=[y.shape[1]])), **a)",
        where=[
            Guard("s.const and b.const and not y.const", "the addends must be constants", kind="growth", counter={"x": T(1, 2, 5, 5), "w": W(3, 2, 3, 3), "b": W(3), "s": T(1, 3, 1, 1), "a": _A}),
            Guard(
                "s.rank in (y.rank - 1, y.rank) and s.elements == y.shape[1] and s.shape[1 - y.rank] == y.shape[1]",
                "the addend must hold one value for each output channel, along the channel axis",
                counter={"x": T(1, 2, 5, 5), "w": W(3, 2, 3, 3), "b": W(3), "s": W(3, 1), "a": _A},
            ),
        ],
        examples=[{"x": T(1, 2, 5, 5), "w": W(3, 2, 3, 3), "b": W(3), "s": W(1, 3, 1, 1), "a": _SAME}],
    ),
    Rule(
        "scale-conv-weight",
        "y = Conv(x, w, **a); root = Mul(y, s)",
        f"root = Conv(x, Mul(w, {_COLUMN}), **a)",
        where=[
            Guard("w.const and s.const and not x.const", "w and s must be constants, so that their product folds", kind="growth", counter={"x": T(1, 2, 5, 5), "w": T(3, 2, 3, 3), "s": W(1, 3, 1, 1), "a": _A}),
            Guard(f"s.rank <= y.rank and {_CHANNEL}", _PER_CHANNEL, counter={"x": T(1, 2, 5, 5), "w": W(3, 2, 3, 3), "s": W(3, 1), "a": _A}),
        ],
        tag="range",
        examples=[
            {"x": T(1, 2, 5, 5), "w": W(3, 2, 3, 3), "s": W(1, 3, 1, 1), "a": _SAME},
            {"x": T(2, 4, 5, 5), "w": W(6, 2, 3, 1), "s": C(0.5), "a": _GROUPED},
        ],
    ),
    Rule(
        "scale-biased-conv-weight",
        "y = Conv(x, w, b, **a); root = Mul(y, s)",
        f"root = Conv(x, Mul(w, {_COLUMN}), Mul(b, Reshape(s, shape=[s.elements])), **a)",
        where=[
            Guard("w.const and b.const and s.const and not x.const", "w, b and s must be constants, so that their products fold", kind="growth", counter={"x": T(1, 2, 5, 5), "w": T(3, 2, 3, 3), "b": W(3), "s": W(1, 3, 1, 1), "a": _A}),
            Guard(f"s.rank <= y.rank and {_CHANNEL}", _PER_CHANNEL, counter={"x": T(1, 2, 5, 5), "w": W(3, 2, 3, 3), "b": W(3), "s": W(3, 1), "a": _A}),
        ],
        tag="range",
        examples=[{"x": T(1, 2, 5, 5), "w": W(3, 2, 3, 3), "b": W(3), "s": W(3, 1, 1), "a": _SAME}],
    ),
    Rule(
        "merge-sibling-convs",
        "y1 = Conv(x, w, **a); y2 = Conv(x, v, **a)",
        """
m = Split(Conv(x, Concat(w, v, axis=0), **a), axis=1, sizes=[w.shape[0], v.shape[0]])
y1 = m[0]; y2 = m[1]
""",
        where=[
            Guard("w.const and v.const", "both kernels must be weights, so that their concatenation folds", kind="growth", counter={"x": T(1, 2, 5, 5), "w": T(3, 2, 3, 3), "v": T(4, 2, 3, 3), "a": _A}),
            Guard("w.shape[2:] == v.shape[2:]", "the kernels must have one size", counter={"x": T(1, 2, 5, 5), "w": W(3, 2, 3, 1), "v": W(4, 2, 3, 3), "a": _A}),
            Guard("a['group'] == 1", "outputs of grouped convolutions do not stay with their group", counter={"x": T(1, 4, 5, 5), "w": W(2, 2, 3, 3), "v": W(4, 2, 3, 3), "a": _GROUPED}),
            Guard("x.next_sibling(w, v)", _ORDER, kind="growth", counter={"v": W(3, 2, 3, 3), "w": W(4, 2, 3, 3), "x": T(1, 2, 5, 5), "a": _A}),
        ],
        examples=[{"x": T(1, 2, 5, 5), "w": W(3, 2, 3, 3), "v": W(4, 2, 3, 3), "a": _STRIDED}],
        source="TASO's conv merge",
    ),
    Rule(
        "merge-sibling-biased-convs",
        "y1 = Conv(x, w, b, **a); y2 = Conv(x, v, c, **a)",
        """
m = Split(Conv(x, Concat(w, v, axis=0), Concat(b, c, axis=0), **a), axis=1, sizes=[w.shape[0], v.shape[0]])
y1 = m[0]; y2 = m[1]
""",
        where=[
            Guard("w.const and v.const and b.const and c.const", "kernels and biases must be weights, so that their concatenation folds", kind="growth", counter={"x": T(1, 2, 5, 5), "w": T(3, 2, 3, 3), "v": T(4, 2, 3, 3), "b": W(3), "c": W(4), "a": _A}),
            Guard("w.shape[2:] == v.shape[2:]", "the kernels must have one size", counter={"x": T(1, 2, 5, 5), "w": W(3, 2, 3, 1), "v": W(4, 2, 3, 3), "b": W(3), "c": W(4), "a": _A}),
            Guard("a['group'] == 1", "outputs of grouped convolutions do not stay with their group", counter={"x": T(1, 4, 5, 5), "w": W(2, 2, 3, 3), "v": W(4, 2, 3, 3), "b": W(2), "c": W(4), "a": _GROUPED}),
            Guard("x.next_sibling(w, v)", _ORDER, kind="growth", counter={"v": W(3, 2, 3, 3), "w": W(4, 2, 3, 3), "x": T(1, 2, 5, 5), "b": W(4), "c": W(3), "a": _A}),
        ],
        examples=[{"x": T(1, 2, 5, 5), "w": W(3, 2, 3, 3), "v": W(4, 2, 3, 3), "b": W(3), "c": W(4), "a": _SAME}],
        source="TASO's conv merge",
    ),
    Rule(
        "enlarge-biased-kernel",
        "y1 = Conv(x, w, b, **a); y2 = Conv(x, v, c, **d)",
        """
z = constant(np.zeros([*w.shape[:2], 1, 1]), w.dtype)
t = Concat(z, w, z, axis=2)
u = constant(np.zeros([*w.shape[:2], 3, 1]), w.dtype)
y1 = Conv(x, Concat(u, t, u, axis=3), b, **d)
""",
        where=[
            Guard("w.const and v.const and w.lowest >= 0", "the kernels must be weights, so that the padding folds", kind="growth", counter={"x": T(1, 2, 5, 5), "w": T(3, 2, 1, 1), "v": T(4, 2, 3, 3), "b": W(3), "c": W(4), "a": _A, "d": _SAME}),
            Guard("w.shape[2:] == (1, 1) and v.shape[2:] == (3, 3)", "a 1×1 kernel grows to the 3×3 of its sibling", counter={"x": T(1, 2, 5, 5), "w": W(3, 2, 3, 3), "v": W(4, 2, 3, 3), "b": W(3), "c": W(4), "a": _A, "d": _SAME}),
            Guard("a['pads'] == (0, 0, 0, 0) and d['pads'] == (1, 1, 1, 1)", "the padding must grow by just what the kernel grows", counter={"x": T(1, 2, 5, 5), "w": W(3, 2, 1, 1), "v": W(4, 2, 3, 3), "b": W(3), "c": W(4), "a": {**_A, "pads": (1, 1, 0, 0)}, "d": _SAME}),
            Guard("a['strides'] == d['strides']", "the strides must agree", counter={"x": T(1, 2, 5, 5), "w": W(3, 2, 1, 1), "v": W(4, 2, 3, 3), "b": W(3), "c": W(4), "a": {**_A, "strides": (2, 1)}, "d": {**_SAME, "strides": (1, 2)}}),
            Guard("d['dilations'] == (1, 1)", "a dilated kernel reaches further than its padding", counter={"x": T(1, 2, 7, 7), "w": W(3, 2, 1, 1), "v": W(4, 2, 3, 3), "b": W(3), "c": W(4), "a": _A, "d": {**_SAME, "dilations": (2, 2)}}),
            Guard("a['group'] == 1 and d['group'] == 1", "outputs of grouped convolutions do not stay with their group", counter={"x": T(1, 4, 5, 5), "w": W(4, 4, 1, 1), "v": W(4, 2, 3, 3), "b": W(4), "c": W(4), "a": _A, "d": {**_SAME, "group": 2}}),
        ],
        examples=[{"x": T(1, 2, 5, 5), "w": W(3, 2, 1, 1), "v": W(4, 2, 3, 3), "b": W(3), "c": W(4), "a": _A, "d": _SAME}],
        source="TASO's kernel enlargement (a hand-written rule there)",
    ),
    Rule(
        "sum-of-convs",
        "Add(Conv(x, w, **a), Conv(y, v, **a))",
        "Conv(Concat(x, y, axis=1), Concat(w, v, axis=1), **a)",
        where=[
            Guard("w.const and v.const", "both kernels must be weights, so that their concatenation folds", kind="growth", counter={"x": T(1, 2, 5, 5), "y": T(1, 3, 5, 5), "w": T(4, 2, 3, 3), "v": T(4, 3, 3, 3), "a": _A}),
            Guard("w.shape[0] == v.shape[0] and w.shape[2:] == v.shape[2:]", "the kernels must have one size and as many outputs", counter={"x": T(1, 2, 5, 5), "y": T(1, 3, 5, 5), "w": W(4, 2, 3, 3), "v": W(1, 3, 3, 3), "a": _A}),
            Guard("x.shape[0] == y.shape[0] and x.shape[2:] == y.shape[2:]", "the images must have one size", counter={"x": T(1, 2, 5, 5), "y": T(2, 3, 5, 5), "w": W(4, 2, 3, 3), "v": W(4, 3, 3, 3), "a": _A}),
            Guard("a['group'] == 1", "inputs of grouped convolutions do not stay with their group", counter={"x": T(1, 4, 5, 5), "y": T(1, 4, 5, 5), "w": W(4, 2, 3, 3), "v": W(4, 2, 3, 3), "a": _GROUPED}),
        ],
        examples=[{"x": T(1, 2, 5, 5), "y": T(1, 3, 5, 5), "w": W(4, 2, 3, 3), "v": W(4, 3, 3, 3), "a": _SAME}],
        source="TENSAT's conv-concat-add",
    ),
    Rule(
        "sum-of-biased-convs",
        "Add(Conv(x, w, b, **a), Conv(y, v, c, **a))",
        "Conv(Concat(x, y, axis=1), Concat(w, v, axis=1), Add(b, c), **a)",
        where=[
            Guard("w.const and v.const and b.const and c.const", "the weights must be constants, so that they fold", kind="growth", counter={"x": T(1, 2, 5, 5), "y": T(1, 3, 5, 5), "w": T(4, 2, 3, 3), "v": T(4, 3, 3, 3), "b": W(4), "c": W(4), "a": _A}),
            Guard("w.shape[0] == v.shape[0] and w.shape[2:] == v.shape[2:]", "the kernels must have one size and as many outputs", counter={"x": T(1, 2, 5, 5), "y": T(1, 3, 5, 5), "w": W(4, 2, 3, 3), "v": W(1, 3, 3, 3), "b": W(4), "c": W(1), "a": _A}),
            Guard("x.shape[0] == y.shape[0] and x.shape[2:] == y.shape[2:]", "the images must have one size", counter={"x": T(1, 2, 5, 5), "y": T(2, 3, 5, 5), "w": W(4, 2, 3, 3), "v": W(4, 3, 3, 3), "b": W(4), "c": W(4), "a": _A}),
            Guard("a['group'] == 1", "inputs of grouped convolutions do not stay with their group", counter={"x": T(1, 4, 5, 5), "y": T(1, 4, 5, 5), "w": W(4, 2, 3, 3), "v": W(4, 2, 3, 3), "b": W(4), "c": W(4), "a": _GROUPED}),
        ],
        examples=[{"x": T(1, 2, 5, 5), "y": T(1, 3, 5, 5), "w": W(4, 2, 3, 3), "v": W(4, 3, 3, 3), "b": W(4), "c": W(4), "a": _SAME}],
        source="TENSAT's conv-concat-add",
    ),
]  # fmt: skip
