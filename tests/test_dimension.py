"""Symbolic dimensions: what the algebra says holds for every binding, and what it cannot say it refuses."""

from __future__ import annotations

import itertools
import pickle
import random

import pytest

from xrlflow.egraph.dimension import (
    Undecided,
    divided,
    evaluate,
    least,
    natural,
    sign,
    substitute,
    symbol,
)
from xrlflow.egraph.extent import Extent, viewed
from xrlflow.egraph.graph import Conflict, TensorType, TupleType, meet
from xrlflow.egraph.operators import IllTyped, broadcast, infer

N, S = symbol("n"), symbol("s")
BINDINGS = [{"n": n, "s": s} for n, s in itertools.product((0, 1, 2, 3, 7, 32), repeat=2)]


def random_dimension(rng, depth=3):
    """A dimension, and the function of a binding that it should be."""
    kind = rng.choice(["symbol", "number"]) if depth == 0 else rng.choice(["add", "sub", "mul", "div", "min"])
    if kind == "symbol":
        name = rng.choice("ns")
        return symbol(name), lambda b: b[name]
    if kind == "number":
        value = rng.randint(-3, 6)
        return value, lambda b: value
    x, f = random_dimension(rng, depth - 1)
    y, g = random_dimension(rng, depth - 1)
    k = rng.randint(1, 4)
    if kind == "add":
        return x + y, lambda b: f(b) + g(b)
    if kind == "sub":
        return x - y, lambda b: f(b) - g(b)
    if kind == "mul":
        return x * y, lambda b: f(b) * g(b)
    if kind == "div":
        return x // k, lambda b: f(b) // k
    return least(x, k), lambda b: min(f(b), k)


@pytest.mark.parametrize("seed", range(300))
def test_arithmetic_is_that_of_integers_under_every_binding(seed):
    d, value = random_dimension(random.Random(seed))
    for binding in BINDINGS:
        assert evaluate(d, binding) == value(binding)
        assert substitute(d, binding) == value(binding)
    if (known := sign(d)) is not None:
        assert {(value(b) > 0) - (value(b) < 0) for b in BINDINGS} == {known}
    if natural(d):
        assert min(value(b) for b in BINDINGS) >= 0


@pytest.mark.parametrize("seed", range(200))
def test_exact_quotients_are_exact(seed):
    rng = random.Random(seed)
    (a, _), (b, _) = random_dimension(rng, 2), random_dimension(rng, 2)
    if b != 0:
        assert divided(a * b, b) is a or divided(a * b, b) == a
    quotient = divided(a, b) if b != 0 else None
    if quotient is not None:
        assert quotient * b == a


def test_equal_polynomials_are_one_object():
    assert (N + 1) * (N - 1) is N * N - 1
    assert N - N == 0 and (2 * N) // 2 is N
    assert pickle.loads(pickle.dumps(N * S + 3)) is N * S + 3
    assert str(N * S * 2 - N + 1) == "2*n*s-n+1"
    assert (6 * N + 5) // 3 is 2 * N + 1
    assert (N + 3) // 2 != (N + 3) and str((N + 3) // 2) == "((n+1)//2)+1"


def test_what_depends_on_the_binding_is_undecided():
    n = viewed(N)
    assert viewed(N) == n and n + 1 > n and n * 2 >= n and n + 1 != n and n + 1 != 0
    assert (n * 12) // 12 == n and (n * 12) % 4 == 0
    for question in (
        lambda: n == 1,
        lambda: n != 1,
        lambda: n > 3,
        lambda: bool(n),
        lambda: n % 2,
        lambda: n == viewed(S),
        lambda: max(n, 5),
        lambda: n in (3, 4),
    ):
        with pytest.raises(Undecided):
            question()
    with pytest.raises(TypeError):
        range(n)  # type: ignore[call-overload]
    assert isinstance(n, Extent) and n.of is N


def test_shapes_are_a_lattice():
    unknown, ranked, fixed = (
        TensorType(None, "float32"),
        TensorType(("n", "?1"), "float32"),
        TensorType((4, 5), "float32"),
    )
    assert meet(unknown, ranked) == meet(ranked, unknown) == ranked
    assert meet(ranked, fixed) == meet(fixed, ranked) == fixed
    assert meet(TensorType(("?1", 3), "float32"), TensorType(("n", "?2"), "float32")) == TensorType(("n", 3), "float32")
    assert meet(TensorType((4,), "undefined"), TensorType(("n",), "int64")) == TensorType((4,), "int64")
    for a, b in (
        (fixed, TensorType((4, 6), "float32")),
        (fixed, TensorType((4, 5), "float16")),
        (fixed, TensorType((4,), "float32")),
        (TensorType((N + 1,), "float32"), TensorType((N,), "float32")),
        (fixed, TupleType((fixed,))),
    ):
        with pytest.raises(Conflict):
            meet(a, b)


def test_operators_reckon_with_symbols():
    x = TensorType(("n", 3, "h", "w"), "float32")
    conv = {"strides": (2, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1}
    out = infer("Conv", tuple(conv.items()), [x, TensorType((8, 3, 3, 3), "float32")])
    for h, w in itertools.product((5, 6, 9), repeat=2):
        assert out.at({"n": 2, "h": h, "w": w}).shape == (2, 8, (h - 1) // 2 + 1, w)
    row = TensorType(("n", "s", 768), "float32")
    assert infer("Reshape", (("shape", (N * S, 12, 64)),), [row]).shape == (N * S, 12, 64)
    assert infer("Concat", (("axis", 1),), [row, row]).shape == (N, 2 * S, 768)
    with pytest.raises(IllTyped):
        infer("Reshape", (("shape", (N, 12, 64)),), [row])
    with pytest.raises(IllTyped):
        broadcast((N,), (S,))
    assert broadcast((N, 1), (1, S)) == (N, S)
    # a table of 512 positions cut to s: where it can be added to s positions, it has s of them
    assert broadcast((N, S), (1, least(S, 512))) == (N, S)
    with pytest.raises(IllTyped):
        broadcast((S,), (least(N, 512),))
