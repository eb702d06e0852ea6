"""Convolutions as matrix products, where sequences meet images: pointwise ones, and those that cut into patches."""

from __future__ import annotations

from typing import Any

from .convolution import FOLDS, GROUPED, PLAIN, attributes
from .kernels import POINTWISE
from .language import Guard, Rule, T, W

_POINTWISE = "the convolution must look at each position by itself"
_MATRIX = "Transpose(Reshape(w, shape=[w.shape[0], w.shape[1]]), perm=(1, 0))"
_GROUPS = "a product mixes all channels"


def _products(biased: bool) -> list[Rule]:
    """Products with a convolution's weight, for one with a bias or without."""
    kind, b = ("biased-", ", b") if biased else ("", "")
    constants = " and b.const" if biased else ""
    own: dict[str, Any] = {"b": W(5)} if biased else {}
    four: dict[str, Any] = {"b": W(4)} if biased else {}

    def product(x: str, w: str) -> str:
        return f"Add(MatMul({x}, {w}), b)" if biased else f"MatMul({x}, {w})"

    seen: dict[str, Any] = {
        "x": T(1, 3, 4, 6),
        "w": W(5, 3, 2, 2),
        **own,
        "a": attributes(strides=(2, 2)),
        "n": (1, 5, 6),
    }
    image: dict[str, Any] = {"x": T(2, 4, 6, 3), "w": W(5, 3, 1, 1), **own, "a": PLAIN, "p": (0, 3, 1, 2)}
    return [
        Rule(
            f"{kind}patches-as-matmul",
            f"y = Conv(x, w{b}, **a); root = Transpose(Reshape(y, shape=n), perm=(0, 2, 1))",
            f"""
k, m, c = w.shape[2:], w.rank - 2, prod(w.shape[1:])
cut = [x.shape[0], x.shape[1]] + [e for pair in zip(y.shape[2:], k) for e in pair]
whole = Transpose(Reshape(x, shape=[n[0], c, n[2]]), perm=(0, 2, 1)) if c == w.shape[1] else Reshape(
    Transpose(Reshape(x, shape=cut), perm=[0, *range(2, 2 * m + 2, 2), 1, *range(3, 2 * m + 3, 2)]), shape=[n[0], n[2], c])
root = {product("whole", "Transpose(Reshape(w, shape=[w.shape[0], c]), perm=(1, 0))")}
""",
            where=[
                Guard(f"w.const{constants} and not x.const", FOLDS, "growth", {**seen, "w": T(5, 3, 2, 2)}),
                Guard("len(n) == 3 and n[1] == w.shape[0] and n[0] == x.shape[0]", "the result must be flattened over positions only", counter={**seen, "n": (1, 6, 5)}),
                Guard("w.shape[2:] == tuple(a['strides']) and not any(a['pads']) and all(d == 1 or k == 1 for d, k in zip(a['dilations'], w.shape[2:]))", "windows must touch and not overlap", counter={**seen, "x": T(1, 3, 3, 5), "a": attributes(strides=(2, 2), pads=(1, 1, 0, 0))}),
                Guard("all(e % k == 0 for e, k in zip(x.shape[2:], w.shape[2:]))", "the patches must cover the image, with nothing left", counter={**seen, "x": T(1, 3, 5, 6)}),
                Guard("a['group'] == 1", _GROUPS, counter={**seen, "x": T(1, 6, 4, 6), "w": W(4, 3, 2, 2), **four, "a": attributes(strides=(2, 2), group=2), "n": (1, 4, 6)}),
            ],
            examples=[seen, {**seen, "x": T(2, 3, 4, 6), "w": W(5, 3, 1, 1), "a": PLAIN, "n": (2, 5, 24)}, {**seen, "x": T(2, 3, 6), "w": W(5, 3, 2), "a": {"strides": (2,), "dilations": (1,), "pads": (0, 0), "group": 1}, "n": (2, 5, 3)}],
            source="patch embeddings (Dosovitskiy et al., 2021); SegFormer's reduced keys and values",
        ),
        Rule(
            f"{kind}pointwise-conv-of-channels-last",
            f"Conv(Transpose(x, perm=p), w{b}, **a)",
            f"root = Transpose({product('x', _MATRIX)}, perm=p)",
            where=[
                Guard(f"w.const{constants} and not x.const", FOLDS, "growth", {**image, "w": T(5, 3, 1, 1)}),
                Guard("tuple(p) == (0, x.last, *range(1, x.last))", "the channels must be the last axis, and the others in order", counter={"x": T(2, 3, 4, 3), "w": W(5, 3, 1, 1), **own, "a": PLAIN, "p": (0, 1, 2, 3)}),
                Guard(POINTWISE.format("w", "a"), _POINTWISE, counter={**image, "w": W(5, 3, 2, 1)}),
                Guard("a['group'] == 1", _GROUPS, counter={**image, "x": T(2, 4, 6, 4), "w": W(4, 2, 1, 1), **four, "a": GROUPED}),
            ],
            examples=[image, {**image, "x": T(2, 7, 3), "w": W(5, 3, 1), "a": {"strides": (1,), "dilations": (1,), "pads": (0, 0), "group": 1}, "p": (0, 2, 1)}],
            source="models that were written with channels last; the sequences of Conformer (Gulati et al., 2020)",
        ),
    ]  # fmt: skip


RULES = [rule for biased in (False, True) for rule in _products(biased)]
