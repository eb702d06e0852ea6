"""Convolutions that do the same to one image, or to several, become one: kernels side by side, enlarged, by groups."""

from __future__ import annotations

from typing import Any

from .convolution import FOLDS, GROUPED, PLAIN, SAME, STRIDED, attributes
from .language import Guard, Rule, T, W

_ORDER = "siblings merge in the order of their weights, one after the other, else every subset of a group is made"
_SIZE = "the kernels must have one size"
# the kernel grows to its sibling's size
_GROWS = """all(
    q - p + s - r == (m - n) * e
    for p, q, r, s, e, n, m in zip(
        a['pads'], d['pads'], a['pads'][len(d['strides']):], d['pads'][len(d['strides']):], d['dilations'], w.shape[2:], v.shape[2:]
    )
)"""


def _merges(biased: bool) -> list[Rule]:
    """Siblings merged, with or without biases."""
    kind, b, c = ("biased-convs", ", b", ", c") if biased else ("convs", "", "")
    both, constants = (", Concat(b, c, axis=0)", " and b.const and c.const") if biased else ("", "")
    own: dict[str, Any] = {"b": W(3), "c": W(4)} if biased else {}
    swapped: dict[str, Any] = {"b": W(4), "c": W(3)} if biased else {}
    pair: dict[str, Any] = {"b": W(2), "c": W(4)} if biased else {}
    x = T(1, 2, 5, 5)
    seen: dict[str, Any] = {"x": x, "w": W(3, 2, 3, 3), "v": W(4, 2, 3, 3), **own}
    grouped: dict[str, Any] = {"x": T(1, 4, 5, 5), "w": W(2, 2, 3, 3), "v": W(4, 2, 3, 3), **pair}
    small: dict[str, Any] = {**seen, "w": W(3, 2, 1, 1)}
    folds = Guard(f"w.const and v.const{constants}", FOLDS, "growth", {**seen, "v": T(4, 2, 3, 3), "a": PLAIN})
    size = Guard("w.shape[2:] == v.shape[2:]", _SIZE, counter={**seen, "w": W(3, 2, 3, 1), "a": PLAIN})
    reordered = {"v": W(3, 2, 3, 3), "w": W(4, 2, 3, 3), "x": x, **swapped, "a": PLAIN}
    joined = "Reshape(Concat(Reshape({0}, shape=[g, p, *{0}.shape[1:]]), Reshape({1}, shape=[g, q, *{1}.shape[1:]]), axis=1), shape=[g * (p + q), *{0}.shape[1:]])"
    return [
        Rule(
            f"merge-sibling-{kind}",
            f"y1 = Conv(x, w{b}, **a); y2 = Conv(x, v{c}, **a)",
            f"""
m = Split(Conv(x, Concat(w, v, axis=0){both}, **a), axis=1, sizes=[w.shape[0], v.shape[0]])
y1 = m[0]; y2 = m[1]
""",
            where=[
                size,
                Guard("a['group'] == 1", "outputs of grouped convolutions do not stay with their group", counter={**grouped, "a": GROUPED}),
                folds,
                Guard("x.next_sibling(w, v) and x.latest(y1, w) and x.latest(y2, v)", _ORDER, "growth", reordered),
            ],
            examples=[{**seen, "a": STRIDED}, {**seen, "a": SAME}],
            source="TASO's conv merge",
        ),
        Rule(
            f"merge-sibling-grouped-{kind}",
            f"y1 = Conv(x, w{b}, **a); y2 = Conv(x, v{c}, **a)",
            f"""
g = a['group']; p = w.shape[0] // g; q = v.shape[0] // g
y = Conv(x, {joined.format("w", "v")}{", " + joined.format("b", "c") if biased else ""}, **a)
m = Split(Reshape(y, shape=[y.shape[0], g, p + q, *y.shape[2:]]), axis=2, sizes=[p, q])
y1 = Reshape(m[0], shape=y1.shape); y2 = Reshape(m[1], shape=y2.shape)
""",
            where=[
                Guard("a['group'] > 1", "without groups the kernels need no interleaving", "growth", {**seen, "a": PLAIN}),
                Guard(f"w.const and v.const{constants}", FOLDS, "growth", {**grouped, "v": T(4, 2, 3, 3), "a": GROUPED}),
                Guard("w.shape[2:] == v.shape[2:]", _SIZE, counter={**grouped, "w": W(2, 2, 3, 1), "a": GROUPED}),
                Guard("x.next_sibling(w, v) and x.latest(y1, w) and x.latest(y2, v)", _ORDER, "growth", {"v": W(2, 2, 3, 3), "w": W(4, 2, 3, 3), "x": T(1, 4, 5, 5), **({"b": W(4), "c": W(2)} if biased else {}), "a": GROUPED}),
            ],
            examples=[
                {**grouped, "a": attributes(group=2, strides=(2, 1))},
                {"x": T(2, 3, 5, 5), "w": W(3, 1, 3, 2), "v": W(6, 1, 3, 2), **({"b": W(3), "c": W(6)} if biased else {}), "a": attributes(group=3)},
            ],
            source="TASO's grouped merge, with the outputs put back into the groups' order",
        ),
        Rule(
            f"enlarge-{'biased-' if biased else ''}kernel",
            f"y1 = Conv(x, w{b}, **a); y2 = Conv(x, v{c}, **d)",
            f"""
n = len(d['strides'])
t = [(q - p) // e for p, q, e in zip(a['pads'], d['pads'], [*d['dilations']] * 2)]
y1 = Conv(x, Pad(w, pads=[0, 0, *t[:n], 0, 0, *t[n:]], value=0.0){b}, **d)
""",
            where=[
                Guard("w.shape[2:] != v.shape[2:]", "the kernel must be smaller than its sibling's", "growth", {**seen, "a": PLAIN, "d": PLAIN}),
                Guard("all(p <= q and (q - p) % e == 0 for p, q, e in zip(a['pads'], d['pads'], [*d['dilations']] * 2))", "the kernel grows by what the padding grows, a dilation at a time", counter={**small, "x": T(1, 2, 9, 9), "a": attributes(pads=(1, 0, 1, 0)), "d": attributes(dilations=(1, 2), pads=(1, 1, 1, 1))}),
                Guard(_GROWS, "the kernel must grow to just its sibling's size, which it merges with then", "growth", {**small, "a": attributes(pads=(1, 1, 0, 0)), "d": SAME}),
                Guard("a['strides'] == d['strides']", "the strides must agree", counter={**small, "a": attributes(strides=(2, 1)), "d": {**SAME, "strides": (1, 2)}}),
                Guard("all(i == j or n == 1 for i, j, n in zip(a['dilations'], d['dilations'], w.shape[2:]))", "the dilations must agree", counter={**small, "w": W(3, 2, 3, 2), "x": T(1, 2, 9, 9), "a": attributes(dilations=(2, 2)), "d": attributes(pads=(0, 0, 0, 1))}),
                Guard("a['group'] == d['group']", "the groups must agree", counter={**small, "x": T(1, 4, 5, 5), "w": W(4, 4, 1, 1), "a": PLAIN, "d": {**SAME, "group": 2}, **({"b": W(4)} if biased else {})}),
                Guard("w.const and v.const and w.lowest >= 0 and not (w.joined or v.joined) and x.latest(y1, w) and x.latest(y2, v)", FOLDS + ", and each kernel grows by itself, in its latest form", "growth", {**small, "w": T(3, 2, 1, 1), "a": PLAIN, "d": SAME}),
            ],
            examples=[
                {**small, "a": PLAIN, "d": SAME},
                {**small, "w": W(3, 2, 1, 3), "a": attributes(pads=(0, 1, 0, 1), strides=(1, 2)), "d": {**SAME, "strides": (1, 2)}},
                {**grouped, "x": T(1, 4, 7, 7), "w": W(2, 2, 3, 1), "a": GROUPED, "d": attributes(group=2, dilations=(1, 2), pads=(0, 0, 0, 4))},
            ],
            source="TASO's kernel enlargement (a hand-written rule there)",
        ),
        Rule(
            f"concat-of-{kind}",
            f"Concat(Conv(x, w{b}, **a), Conv(y, v{c}, **d), axis=1)",
            f"Conv(Concat(x, y, axis=1), Concat(w, v, axis=0){both}, **{{**a, 'group': a['group'] + d['group']}})",
            where=[
                Guard(f"w.const and v.const{constants} and x != y", FOLDS + "; over one image siblings merge", "growth", {**seen, "y": T(1, 2, 5, 5), "w": W(4, 2, 3, 3), "v": T(4, 2, 3, 3), "a": PLAIN, "d": PLAIN, **({"b": W(4)} if biased else {})}),
                Guard("w.shape[0] // a['group'] == v.shape[0] // d['group']", "each group must have as many outputs, else they shift from group to group", counter={**seen, "y": T(1, 2, 5, 5), "w": W(2, 2, 3, 3), "a": PLAIN, "d": PLAIN, **({"b": W(2)} if biased else {})}),
                Guard("w.shape[1:] == v.shape[1:]", "the kernels must have one size and as many inputs", counter={**seen, "y": T(1, 3, 5, 5), "w": W(4, 2, 3, 3), "v": W(4, 3, 3, 3), "a": PLAIN, "d": PLAIN, **({"b": W(4)} if biased else {})}),
                Guard("x.shape[0] == y.shape[0] and x.shape[2:] == y.shape[2:]", "the images must have one size", counter={**seen, "x": T(1, 2, 7, 5), "y": T(1, 2, 8, 5), "w": W(4, 2, 3, 3), "a": attributes(strides=(2, 1)), "d": attributes(strides=(2, 1)), **({"b": W(4)} if biased else {})}),
                Guard("all(a[k] == d[k] for k in ('strides', 'dilations', 'pads'))", "the windows must move alike", counter={**seen, "y": T(1, 2, 5, 5), "w": W(4, 2, 3, 3), "a": SAME, "d": attributes(pads=(2, 0, 0, 2)), **({"b": W(4)} if biased else {})}),
            ],
            examples=[
                {**seen, "y": T(1, 2, 5, 5), "w": W(4, 2, 3, 3), "a": STRIDED, "d": STRIDED, **({"b": W(4)} if biased else {})},
                {"x": T(2, 2, 5, 5), "y": T(2, 3, 5, 5), "w": W(4, 1, 3, 1), "v": W(6, 1, 3, 1), **({"b": W(4), "c": W(6)} if biased else {}), "a": GROUPED, "d": attributes(group=3)},
            ],
            source="TASO's grouped merge, with the guard that is missing there; depthwise convolutions over a concatenation",
        ),
    ]  # fmt: skip


RULES = [rule for biased in (False, True) for rule in _merges(biased)]
