"""Several convolutions, or one and what it is added to, become one with another kernel: sums, residuals, chains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .convolution import FOLDS, GROUPED, PLAIN, SAME, STRIDED, attributes
from .language import Guard, Rule, T, W

POINTWISE = "all(e == 1 for e in {0}.shape[2:]) and all(e == 1 for e in {1}['strides']) and not any({1}['pads'])"
"""Whether the convolution with weight {0} and attributes {1} looks at each position by itself."""


def _sums(biased: bool) -> list[Rule]:
    """Sums of convolutions. biased: whether those have a bias."""
    kind, b, c = ("biased-conv", ", b", ", c") if biased else ("conv", "", "")
    total, constants = (", Add(b, c)", " and b.const and c.const") if biased else ("", "")
    own: dict[str, Any] = {"b": W(4), "c": W(4)} if biased else {}
    one: dict[str, Any] = {"b": W(3)} if biased else {}
    constant, four = (" and b.const", {"b": W(4)}) if biased else ("", {})
    seen: dict[str, Any] = {"x": T(1, 2, 5, 5), "y": T(1, 3, 5, 5), "w": W(4, 2, 3, 3), "v": W(4, 3, 3, 3), **own}
    alone: dict[str, Any] = {"x": T(1, 2, 5, 5), "w": W(4, 2, 3, 3), "v": W(4, 2, 3, 3), **own}
    return [
        Rule(
            f"sum-of-{kind}s",
            f"Add(Conv(x, w{b}, **a), Conv(y, v{c}, **a))",
            f"Conv(Concat(x, y, axis=1), Concat(w, v, axis=1){total}, **a)",
            where=[
                Guard(f"w.const and v.const{constants}", FOLDS, "growth", {**seen, "v": T(4, 3, 3, 3), "a": PLAIN}),
                Guard("w.shape[0] == v.shape[0] and w.shape[2:] == v.shape[2:]", "the kernels must have one size and as many outputs", counter={**seen, "v": W(1, 3, 3, 3), "a": PLAIN, **({"c": W(1)} if biased else {})}),
                Guard("x.shape[0] == y.shape[0] and x.shape[2:] == y.shape[2:]", "the images must have one size", counter={**seen, "y": T(2, 3, 5, 5), "a": PLAIN}),
                Guard("a['group'] == 1", "inputs of grouped convolutions do not stay with their group", counter={**seen, "x": T(1, 4, 5, 5), "y": T(1, 4, 5, 5), "v": W(4, 2, 3, 3), "a": GROUPED}),
            ],
            examples=[{**seen, "a": SAME}],
            source="TENSAT's conv-concat-add",
        ),
        Rule(
            f"sum-of-{kind}s-over-one-image",
            f"Add(Conv(x, w{b}, **a), Conv(x, v{c}, **a))",
            f"Conv(x, Add(w, v){total}, **a)",
            where=[
                Guard(f"w.const and v.const{constants} and not x.const", FOLDS, "growth", {**alone, "v": T(4, 2, 3, 3), "a": PLAIN}),
                Guard("w.shape == v.shape", "the kernels must have one size and as many outputs", counter={**alone, "x": T(1, 2, 3, 3), "v": W(4, 2, 1, 1), "a": PLAIN}),
            ],
            tag="range",
            examples=[{**alone, "a": STRIDED}, {**alone, "x": T(2, 4, 5, 5), "a": GROUPED}],
            source="TASO; RepVGG and Diverse Branch Block, transform II (Ding et al., 2021)",
        ),
        Rule(
            f"residual-into-{kind}",
            f"Add(Conv(x, w{b}, **a), x)",
            f"""
i, n = w.shape[1], w.shape[2:]
e = np.zeros(w.shape)
e[(np.arange(i * a['group']), np.arange(i * a['group']) % i, *[p // d for p, d in zip(a['pads'], a['dilations'])])] = 1
root = Conv(x, Add(w, constant(e, w.dtype)){b}, **a)
""",
            where=[
                Guard(f"w.const{constant} and not x.const and w.elements <= 65536", "the kernel must be a constant, and a small one: its sum with the identity's is a new weight", "growth", {"x": T(1, 3, 5, 5), "w": T(3, 3, 1, 1), **one, "a": PLAIN}),
                Guard("w.shape[0] == w.shape[1] * a['group']", "each channel must have a result of its own", counter={"x": T(1, 1, 5, 5), "w": W(3, 1, 1, 1), **one, "a": PLAIN}),
                Guard("all(s == 1 for s in a['strides'])", "a stride leaves positions out", counter={"x": T(1, 3, 1, 1), "w": W(3, 3, 1, 1), **one, "a": attributes(strides=(2, 1), pads=(1, 0, 0, 0))}),
                Guard("all(p % d == 0 and p + q == d * (k - 1) for p, q, d, k in zip(a['pads'], a['pads'][w.rank - 2 :], a['dilations'], w.shape[2:]))", "an element of the kernel must lie on the position of the result", counter={"x": T(1, 3, 5, 5), "w": W(3, 3, 1, 3), **one, "a": attributes(pads=(0, 1, 0, 3), dilations=(1, 2))}),
            ],
            tag="range",
            examples=[
                {"x": T(1, 3, 5, 4), "w": W(3, 3, 3, 1), **one, "a": attributes(pads=(1, 0, 1, 0))},
                {"x": T(1, 3, 5, 7), "w": W(3, 1, 3, 3), **one, "a": attributes(group=3, pads=(2, 1, 2, 1), dilations=(2, 1))},
                {"x": T(2, 4, 5, 5), "w": W(4, 2, 1, 1), **four, "a": GROUPED},
            ],
            source="RepVGG (Ding et al., 2021); conditional position encodings (Chu et al., 2021)",
        ),
    ]  # fmt: skip


def _chains(inner: bool, outer: bool) -> list[Rule]:
    """A pointwise convolution beside another one is a product with its weight. inner, outer: which have a bias."""
    c, b = ", c" if inner else "", ", b" if outer else ""
    name = {(0, 0): "", (1, 0): "biased-inner-", (0, 1): "biased-outer-", (1, 1): "biased-"}[inner, outer]
    constants = "".join(f" and {n.strip(', ')}.const" for n in (c, b) if n)
    own: dict[str, Any] = {**({"c": W(4)} if inner else {}), **({"b": W(3)} if outer else {})}
    first, second = (
        {"x": T(1, 2, 5, 5), "w": W(4, 2, 1, 1), "v": W(3, 4, 3, 2), **own},
        {"x": T(1, 2, 5, 5), "w": W(4, 2, 3, 2), "v": W(3, 4, 1, 1), **own},
    )
    fewer = "the product must not be larger than its factors"
    both_plain = "a['group'] == 1 and d['group'] == 1"
    groups = "channels that are grouped in one of them would have to be mixed"

    def bias(shifts: str) -> str:
        """The bias of the product, given what the inner bias becomes."""
        return {(0, 0): "", (1, 0): f", {shifts}", (0, 1): ", b", (1, 1): f", Add(b, {shifts})"}[inner, outer]

    after = bias(
        "Reshape(MatMul(Reshape(v, shape=[v.shape[0], v.shape[1]]), Reshape(c, shape=[c.elements, 1])), shape=[v.shape[0]])"
    )
    before = bias(
        "ReduceSum(Mul(v, Reshape(c, shape=[1, c.elements] + [1] * (v.rank - 2))), axes=[*range(1, v.rank)], keepdims=0)"
    )
    rules = [
        Rule(
            f"{name}pointwise-conv-of-conv",
            f"Conv(Conv(x, w{c}, **a), v{b}, **d)",
            f"u = Reshape(MatMul(Reshape(v, shape=[v.shape[0], v.shape[1]]), Reshape(w, shape=[w.shape[0], prod(w.shape[1:])])), shape=[v.shape[0], *w.shape[1:]]); root = Conv(x, u{after}, **a)",
            where=[
                Guard(f"w.const and v.const{constants} and not x.const", FOLDS, "growth", {**second, "v": T(3, 4, 1, 1), "a": PLAIN, "d": PLAIN}),
                Guard(POINTWISE.format("v", "d"), "the second convolution must look at each position by itself", counter={**second, "v": W(3, 4, 1, 1), "a": PLAIN, "d": attributes(strides=(2, 1))}),
                Guard(both_plain, groups, counter={**second, "w": W(4, 1, 3, 2), "a": GROUPED, "d": PLAIN}),
                Guard("v.shape[0] * prod(w.shape[1:]) <= w.elements + v.elements", fewer, "growth", {**second, "w": W(1, 2, 3, 2), "v": W(3, 1, 1, 1), "a": PLAIN, "d": PLAIN, **({"c": W(1)} if inner else {})}),
            ],
            tag="range",
            examples=[{**second, "a": STRIDED, "d": PLAIN}],
            source="Diverse Branch Block, transform III (Ding et al., 2021)",
        ),
        Rule(
            f"{name}conv-of-pointwise-conv",
            f"Conv(Conv(x, w{c}, **a), v{b}, **d)",
            f"""
q = [0, *range(2, v.rank), 1]
u = MatMul(Transpose(v, perm=q), Reshape(w, shape=[w.shape[0], w.shape[1]]))
root = Conv(x, Transpose(u, perm=inverse(q)){before}, **d)
""",
            where=[
                Guard(f"w.const and v.const{constants} and not x.const", FOLDS, "growth", {**first, "v": T(3, 4, 3, 2), "a": PLAIN, "d": PLAIN}),
                Guard(POINTWISE.format("w", "a"), "the first convolution must look at each position by itself", counter={**first, "a": attributes(strides=(2, 1)), "d": PLAIN}),
                Guard("not all(e == 1 for e in v.shape[2:])", "where both are pointwise one rule is enough", "growth", {**first, "v": W(3, 4, 1, 1), "a": PLAIN, "d": PLAIN}),
                Guard(both_plain, groups, counter={**first, "w": W(4, 1, 1, 1), "a": GROUPED, "d": PLAIN}),
                Guard("w.shape[1] * v.elements <= (w.elements + v.elements) * v.shape[1]", fewer, "growth", {**first, "w": W(1, 2, 1, 1), "v": W(3, 1, 3, 3), "a": PLAIN, "d": PLAIN, **({"c": W(1)} if inner else {})}),
            ],
            tag="range",
            examples=[{**first, "a": PLAIN, "d": attributes(strides=(2, 1)) if inner else STRIDED}],
            source="Diverse Branch Block, transform III (Ding et al., 2021)",
        ),
    ]  # fmt: skip
    if inner:
        padded = Guard(
            "not any(d['pads'])",
            "the second convolution's padding has no bias of the first",
            counter={**first, "a": PLAIN, "d": SAME},
        )
        rules[1] = replace(rules[1], where=[*rules[1].where, padded])
    return rules


RULES = [
    *(rule for biased in (False, True) for rule in _sums(biased)),
    *(rule for inner in (False, True) for outer in (False, True) for rule in _chains(inner, outer)),
]
