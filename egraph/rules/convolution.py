"""One convolution takes in what is around it: norms, scales, biases and padding, in front of it and behind."""

from __future__ import annotations

from typing import Any

from .language import C, Free, Guard, Rule, T, W


def attributes(**changes: Any) -> dict[str, Any]:
    """Attributes of an unpadded 2-D convolution of stride 1, with some of them changed."""
    return {"strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0), "group": 1, **changes}


PLAIN = attributes()
SAME = attributes(pads=(1, 1, 1, 1))
STRIDED = attributes(strides=(2, 1), pads=(0, 1, 1, 0))
GROUPED = attributes(group=2)
FOLDS = "weights and what they take in must be constants, so that they fold"
_PER_CHANNEL = "the constant must hold one number, or one for each channel, along the channel axis"
# c is one number or one for each of y's channels: (o,) is only right behind a reshape to (o, 1, 1)
_CHANNEL = "({0}.rank <= {1}.rank and ({0}.elements == 1 or ({0}.rank >= {1}.rank - 1 and {0}.elements == {1}.shape[1] and {0}.shape[1 - {1}.rank] == {1}.shape[1])))"
_ADDEND = "s.rank in (y.rank - 1, y.rank) and s.elements == y.shape[1] and s.shape[1 - y.rank] == y.shape[1]"
_ONE_EACH = "the addend must hold one value for each output channel, along the channel axis"
# a scale of BatchNormalization, and a constant for each output channel as a column of the kernel
_SCALE = "Div(g, Sqrt(Add(v, constant(np.array(e), v.dtype))))"
_COLUMN = "Reshape({}, shape=[{}.elements] + [1] * (w.rank - 1))"
# the kernel times one number for each input channel: by groups it is (g, o, i, …)
_GROUPS = "n = [a['group'], w.shape[0] // a['group'], *w.shape[1:]]"
_TIMES = "Reshape(Mul(Reshape(w, shape=n), Reshape({0}, shape=[n[0], 1, n[2]] + [1] * (w.rank - 2) if {0}.elements > 1 else [1] * (w.rank + 1))), shape=w.shape)"
_TOTAL = "ReduceSum({}, axes=[*range(1, w.rank)], keepdims=0)"
_X: Free = T(1, 2, 5, 5)
_NORM: dict[str, Any] = {"g": W(3), "h": W(3), "m": W(3), "v": C([0.5, 1.0, 2.0]), "e": 2.0**-16}
_SMALL: dict[str, Any] = {"g": W(2), "h": W(2), "m": W(2), "v": C([0.5, 1.0]), "e": 0.0009765625}


def _with_and_without_bias(biased: bool) -> list[Rule]:
    """The rules that do to a convolution's bias what they do to its weight."""
    kind, b = ("biased-conv", ", b") if biased else ("conv", "")
    constant = " and b.const" if biased else ""
    own: dict[str, Any] = {"b": W(3)} if biased else {}
    two: dict[str, Any] = {"b": W(2)} if biased else {}
    six: dict[str, Any] = {"b": W(6)} if biased else {}
    seen = {"x": _X, "w": W(3, 2, 3, 3), **own}
    return [
        Rule(
            f"batch-norm-after-{kind}",
            f"BatchNormalization(Conv(x, w{b}, **a), g, h, m, v, epsilon=e)",
            f"""
k = {_SCALE}
root = Conv(x, Mul(w, {_COLUMN.format("k", "k")}), Add(h, Mul({"Sub(b, m)" if biased else "Neg(m)"}, k)), **a)
""",
            where=[Guard(f"w.const{constant} and g.const and h.const and m.const and v.const", FOLDS, "growth", {**seen, "w": T(3, 2, 3, 3), "a": PLAIN, **_NORM})],
            tag="range",
            examples=[
                {**seen, "a": STRIDED, **_NORM},
                {"x": T(2, 4, 5, 5), "w": W(2, 2, 1, 3), **two, "a": GROUPED, **_SMALL},
            ],
        ),
        Rule(
            "add-to-conv-bias" if biased else "add-as-conv-bias",
            f"y = Conv(x, w{b}, **a); root = Add(y, s)",
            f"c = Reshape(s, shape=[y.shape[1]]); root = Conv(x, w, {'Add(b, c)' if biased else 'c'}, **a)",
            where=[
                Guard(f"s.const{constant} and not y.const", FOLDS, "growth", {**seen, "s": T(1, 3, 1, 1), "a": PLAIN}),
                Guard(_ADDEND, _ONE_EACH, counter={**seen, "s": W(3, 1), "a": PLAIN}),
            ],
            examples=[
                {**seen, "s": W(1, 3, 1, 1), "a": SAME},
                {"x": T(2, 4, 5, 5), "w": W(6, 2, 3, 1), **six, "s": W(6, 1, 1), "a": GROUPED},
            ],
        ),
        Rule(
            f"scale-{kind}-weight",
            f"y = Conv(x, w{b}, **a); root = Mul(y, s)",
            f"root = Conv(x, Mul(w, {_COLUMN.format('s', 's')}){', Mul(b, Reshape(s, shape=[s.elements]))' if biased else ''}, **a)",
            where=[
                Guard(f"w.const and s.const{constant} and not x.const", FOLDS, "growth", {**seen, "w": T(3, 2, 3, 3), "s": W(1, 3, 1, 1), "a": PLAIN}),
                Guard(_CHANNEL.format("s", "y"), _PER_CHANNEL, counter={**seen, "s": W(3, 1), "a": PLAIN}),
            ],
            tag="range",
            examples=[
                {**seen, "s": W(1, 3, 1, 1), "a": SAME},
                {"x": T(2, 4, 5, 5), "w": W(6, 2, 3, 1), **six, "s": C(0.5), "a": GROUPED},
                {"x": T(1, 2, 7), "w": W(3, 2, 3), **own, "s": W(3, 1), "a": {"strides": (2,), "dilations": (1,), "pads": (1, 0), "group": 1}},
            ],
        ),
        Rule(
            f"scale-before-{kind}",
            f"Conv(Mul(x, s), w{b}, **a)",
            f"{_GROUPS}; root = Conv(x, {_TIMES.format('s')}{b}, **a)",
            where=[
                Guard("w.const and s.const and not x.const", FOLDS, "growth", {**seen, "s": T(1, 2, 1, 1), "a": PLAIN}),
                Guard(_CHANNEL.format("s", "x"), _PER_CHANNEL, counter={**seen, "s": W(5, 1), "a": PLAIN}),
            ],
            tag="range",
            examples=[
                {**seen, "s": W(1, 2, 1, 1), "a": STRIDED},
                {"x": T(2, 4, 5, 5), "w": W(6, 2, 3, 1), **six, "s": W(4, 1, 1), "a": GROUPED},
                {"x": T(2, 4, 5, 5), "w": W(6, 2, 3, 1), **six, "s": C(0.5), "a": GROUPED},
            ],
        ),
        Rule(
            f"shift-before-{kind}",
            f"Conv(Add(x, s), w{b}, **a)",
            f"""
{_GROUPS}; c = {_TOTAL.format(_TIMES.format("s"))}
root = Conv(x, w, {"Add(b, c)" if biased else "c"}, **a)
""",
            where=[
                Guard(f"w.const and s.const{constant} and not x.const", FOLDS, "growth", {**seen, "s": T(1, 2, 1, 1), "a": PLAIN}),
                Guard(_CHANNEL.format("s", "x"), _PER_CHANNEL, counter={**seen, "s": W(5, 1), "a": PLAIN}),
                Guard("not any(a['pads'])", "padding is not shifted, so near the edges less arrives", counter={**seen, "s": W(1, 2, 1, 1), "a": SAME}),
            ],
            tag="range",
            examples=[
                {**seen, "s": W(1, 2, 1, 1), "a": attributes(strides=(2, 1), dilations=(1, 2))},
                {"x": T(2, 4, 5, 5), "w": W(6, 2, 3, 1), **six, "s": W(4, 1, 1), "a": GROUPED},
                {**seen, "s": C(0.5), "a": PLAIN},
            ],
            source="normalised images: (x - mean) / deviation in front of the first convolution",
        ),
        Rule(
            f"batch-norm-before-{kind}",
            f"Conv(BatchNormalization(x, g, h, m, v, epsilon=e), w{b}, **a)",
            f"""
k = {_SCALE}; s = Sub(h, Mul(m, k))
{_GROUPS}; c = {_TOTAL.format(_TIMES.format("s"))}
root = Conv(x, {_TIMES.format("k")}, {"Add(b, c)" if biased else "c"}, **a)
""",
            where=[
                Guard(f"w.const{constant} and g.const and h.const and m.const and v.const", FOLDS, "growth", {**seen, "w": T(3, 2, 3, 3), "a": PLAIN, **_SMALL}),
                Guard("not any(a['pads'])", "padding is not shifted, so near the edges less arrives", counter={**seen, "a": SAME, **_SMALL}),
            ],
            tag="range",
            examples=[
                {**seen, "a": attributes(strides=(2, 1), dilations=(1, 2)), **_SMALL},
                {"x": T(2, 3, 5, 5), "w": W(6, 1, 3, 1), **six, "a": attributes(group=3), **_NORM},
            ],
        ),
        Rule(
            f"pad-into-{kind}",
            f"Conv(Pad(x, pads=p, value=f), w{b}, **a)",
            f"""
n = len(p) // 2
q = [*p[2:n], *p[n + 2:]]
root = Conv(x, w{b}, **{{**a, 'pads': [i + j for i, j in zip(a['pads'], q)]}})
""",
            where=[
                Guard("f == 0", "a convolution pads with zeros", counter={**seen, "p": (0, 0, 1, 1, 0, 0, 1, 1), "f": 1.0, "a": PLAIN}),
                Guard("not any((*p[:2], *p[len(p) // 2 : len(p) // 2 + 2]))", "a convolution pads its spatial axes only", counter={"x": T(1, 1, 5, 5), "w": W(3, 2, 3, 3), **own, "p": (0, 1, 1, 1, 0, 0, 1, 1), "f": 0.0, "a": PLAIN}),
            ],
            examples=[
                {**seen, "p": (0, 0, 0, 2, 0, 0, 1, 3), "f": 0.0, "a": STRIDED},
                {"x": T(2, 4, 5, 3), "w": W(6, 2, 3, 1), **six, "p": (0, 0, 1, 0, 0, 0, 0, 2), "f": 0.0, "a": GROUPED},
            ],
            source="TensorFlow's SAME padding, which PyTorch models write as a Pad of their own",
        ),
    ]  # fmt: skip


RULES = [
    *(rule for biased in (False, True) for rule in _with_and_without_bias(biased)),
    Rule(
        "batch-norm-as-scale",
        "BatchNormalization(x, g, h, m, v, epsilon=e)",
        f"k = {_SCALE}; root = Add(Mul(x, k), Sub(h, Mul(m, k)))",
        where=[
            Guard("g.const and h.const and m.const and v.const and not x.const", FOLDS, "growth", {"x": T(2, 3), **_NORM, "g": T(3)}),
            Guard("x.rank == 2", "behind a matrix product only: convolutions take norms in by rules of their own, and elsewhere one operator is better than two", "growth", {"x": T(2, 3, 5), **_NORM}),
        ],
        tag="range",
        examples=[{"x": T(5, 3), **_NORM}],
    ),
]  # fmt: skip
