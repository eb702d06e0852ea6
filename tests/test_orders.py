"""A pattern of sums and products finds every order of their operands; sums have one form."""

from __future__ import annotations

import numpy as np
import pytest

from xrlflow.egraph.graph import GraphBuilder, TensorType
from xrlflow.egraph.orders import orders
from xrlflow.egraph.rules.language import Guard, Rule, T
from xrlflow.egraph.saturate import saturate

X = TensorType((2, 3), "float32")
SWISH = Rule("swish", "Mul(x, Sigmoid(x))", "Tanh(x)", examples=[{"x": T(2, 3)}])
"""No identity: what is tested is matching."""


@pytest.mark.parametrize(
    ("left", "guard", "count"),
    [
        ("Mul(x, Sigmoid(x))", "True", 2),
        ("Mul(x, y)", "True", 1),
        ("Add(Mul(x, y), Mul(x, z))", "True", 4),
        ("Add(MatMul(x, w), MatMul(x, v))", "True", 1),
        ("Mul(Add(x, b), s)", "True", 2),
        ("Mul(Add(x, b), s)", "s.const and x.rank > 0", 1),
        ("Mul(Add(x, b), s)", "s.all_equal(2.0)", 1),
        ("Mul(Add(x, b), s)", "s.const or x.rank > 0", 2),
        ("Sub(x, Exp(y))", "True", 1),
        ("Concat(Mul(x, Exp(x)), *ys, axis=k)", "True", 2),
    ],
)
def test_orders_that_differ_in_names_only_or_put_constants_first_are_left_out(
    left: str, guard: str, count: int
) -> None:
    assert len(orders(Rule("r", left, "x", where=[Guard(guard, "")]))) == count


def test_a_rule_of_too_many_orders_is_refused() -> None:
    deep = "Add(x0, Exp(x0))"
    for i in range(1, 6):
        deep = f"Add(x{i}, {deep})"
    with pytest.raises(ValueError, match="64 orders"):
        orders(Rule("deep", deep, "x0"))


@pytest.mark.parametrize("late", [False, True])
def test_a_product_is_found_in_either_order(late: bool) -> None:
    builder = GraphBuilder()
    x = builder.input("x", X)
    s = builder.op("Sigmoid", x)
    # a class is as old as its oldest term: Neg(Neg(x)) is younger than Sigmoid(x) until it is found to be x
    y = builder.op("Neg", builder.op("Neg", x)) if late else x
    rules = [SWISH, Rule("neg-neg", "Neg(Neg(x))", "x")]
    space = saturate(builder.build({"y": builder.op("Mul", s, y)}), rules)
    assert space.report.fired.get("swish") == 1


def test_the_same_sum_is_one_class_whatever_its_operands_turn_out_to_be() -> None:
    builder = GraphBuilder()
    x, y = builder.input("x", X), builder.input("y", X)
    a = builder.op("Neg", builder.op("Neg", x))
    left, right = builder.op("Add", a, y), builder.op("Add", y, builder.op("Relu", x))
    rules = [Rule("neg-neg", "Neg(Neg(x))", "x"), Rule("wrong", "Relu(x)", "x")]
    space = saturate(builder.build({"l": left, "r": right}), rules)
    assert space.roots[0] == space.roots[1]
    assert sum(op == "Add" for op in space.ops) == 1


def test_constants_stay_last() -> None:
    builder = GraphBuilder()
    c = builder.weight(np.ones(3, np.float32) * 2)
    y = builder.op("Mul", c, builder.op("Sigmoid", builder.input("x", X)))
    rule = Rule("scale", "Mul(Sigmoid(x), c)", "Sigmoid(x)", where=[Guard("c.const", "")])
    assert saturate(builder.build({"y": y}), [rule]).report.fired == {"scale": 1}
