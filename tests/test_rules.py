"""Every rule equals what it says; every guard refuses its counter-example, and must."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from xrlflow.egraph.graph import Graph, GraphBuilder, TensorType, Weight, attributes
from xrlflow.egraph.operators import IllTyped
from xrlflow.egraph.rules import families, rule_set
from xrlflow.egraph.rules.language import Free, Guard, Rule, T, W
from xrlflow.egraph.saturate import environment, saturate
from xrlflow.egraph.terms import Term, TermGraph
from xrlflow.lowering import evaluate_node

RULES = rule_set()
CASES = [pytest.param(r, e, id=f"{r.name}-{i}") for r in RULES for i, e in enumerate(r.examples)]
GUARDS = [pytest.param(r, g, id=f"{r.name}-{i}") for r in RULES for i, g in enumerate(r.where)]
DISTRIBUTIONS = ("normal", "uniform", "wide", "integers")


class Instance:
    """The left side of a rule, built for one example, with values for its free terms."""

    def __init__(self, rule: Rule, example: Any, distribution: str = "normal", seed: int = 0) -> None:
        self.rule, self.terms = rule, TermGraph()
        self.rng, self.distribution = np.random.default_rng(seed), distribution
        self.inputs: dict[int, np.ndarray] = {}
        self.names = {name: self.bind(name, value) for name, value in example.items()}
        self.scope = {**environment(self.terms), **self.names}
        exec(rule.left, self.scope)
        self.names |= {p.result: self.scope[p.result] for p in rule.patterns}

    def values(self, free: Free) -> np.ndarray:
        shape = free.type.shape
        if free.values is not None:
            return np.asarray(free.values).reshape(shape)
        if free.type.dtype == "int64" or self.distribution == "integers":
            return self.rng.integers(-4, 5, shape).astype(np.float64)
        if self.distribution == "uniform":
            return self.rng.uniform(0.5, 2.0, shape)
        scale = 1e3 if self.distribution == "wide" else 1.0
        return self.rng.normal(size=shape) * scale

    def bind(self, name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [self.bind(f"{name}{i}", v) for i, v in enumerate(value)]
        if not isinstance(value, Free):
            return value
        array = self.values(value)
        if value.kind == "weight":
            # float64 arrays declared as the example's dtype: the check is over the reals
            digest = Weight.of(array.astype(value.type.dtype), name)
            weight = Weight(name, value.type, digest.digest, lambda: array, digest.value)
            return Term(self.terms, self.terms.weight(weight))
        key = self.terms.add("Input", attributes(name=name), (), value.type)
        self.inputs[key] = array
        return Term(self.terms, key)

    def roots(self) -> dict[str, Term]:
        return {r: self.scope[r] for r in self.rule.roots}

    def right(self) -> dict[str, Term]:
        scope = dict(self.scope)
        exec(self.rule.right, scope)
        return {r: scope[r] for r in self.rule.roots}

    def evaluate(self, key: int) -> Any:
        memo: dict[int, Any] = {}
        for k in range(key + 1):  # operands have smaller keys
            op, attrs = self.terms.ops[k], self.terms.attrs(k)
            integer = getattr(self.terms.types[k], "dtype", "") == "int64"
            if op == "Input":
                memo[k] = torch.as_tensor(self.inputs[k]).to(torch.int64 if integer else torch.float64)
            elif op == "Weight":
                array = self.terms.weights[attrs["digest"]].load()
                memo[k] = torch.as_tensor(array).to(torch.int64 if integer else torch.float64)
            elif op == "Get":
                memo[k] = memo[self.terms.operands[k][0]][attrs["index"]]
            else:
                memo[k] = evaluate_node(op, attrs, [memo[o] for o in self.terms.operands[k]])
        return memo[key]

    def largest_difference(self) -> float:
        """Over the roots, relative to the left side's scale; infinite where types differ or one side is ill-typed."""
        try:
            right = self.right()
        except (IllTyped, TypeError, IndexError):
            return float("inf")
        worst = 0.0
        for name, left in self.roots().items():
            if right[name].type != left.type:
                return float("inf")
            a, b = (self.evaluate(t.key).to(torch.float64) for t in (left, right[name]))
            worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)))
        return worst


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(("rule", "example"), CASES)
def test_both_sides_are_equal(rule: Rule, example: Any, distribution: str) -> None:
    instance = Instance(rule, example, distribution)
    assert rule.refusal(instance.names) is None
    assert instance.largest_difference() < 1e-12


def graph_of(instance: Instance) -> Graph:
    """The left side as a graph, for saturation."""
    builder, made = GraphBuilder(), {}
    builder.weights = dict(instance.terms.weights)
    for k in range(len(instance.terms)):
        kind = instance.terms.types[k]
        if instance.terms.ops[k] == "Input":
            made[k] = builder.input(instance.terms.attrs(k)["name"], kind)  # type: ignore[arg-type]
        else:
            operands = [made[o] for o in instance.terms.operands[k]]
            made[k] = builder.add(instance.terms.ops[k], operands, attributes(**instance.terms.attrs(k)), kind)
    return builder.build({name: made[t.key] for name, t in instance.roots().items()})


@pytest.mark.parametrize(("rule", "example"), CASES)
def test_saturation_reaches_the_right_side(rule: Rule, example: Any) -> None:
    space = saturate(graph_of(Instance(rule, example)), [rule], max_iterations=3)
    assert space.report.fired.get(rule.name, 0) > 0
    used = {name for i in range(space.n_nodes) for name in space.rules[i]}
    assert used == {rule.name}


@pytest.mark.parametrize(("rule", "guard"), GUARDS)
def test_guard_refuses_its_counter_example(rule: Rule, guard: Guard) -> None:
    assert guard.counter is not None, "every guard shows what it keeps out"
    instance = Instance(rule, guard.counter)
    others = Rule(rule.name, rule.lhs, rule.rhs, where=[guard])
    assert others.refusal(instance.names) is guard
    if guard.kind == "sound":
        assert instance.largest_difference() > 1e-6, "the rule is right without this guard"


@pytest.mark.parametrize(("rule", "guard"), GUARDS)
def test_saturation_refuses_with_the_reason(rule: Rule, guard: Guard) -> None:
    alone = Rule(rule.name, rule.lhs, rule.rhs, where=[guard])
    report = saturate(graph_of(Instance(rule, guard.counter)), [alone], max_iterations=1).report
    refused = report.refused.get(rule.name, {})
    assert guard.reason in refused or (not refused and reordered(rule, guard))
    assert not report.fired or refused


def reordered(rule: Rule, guard: Guard) -> bool:
    """Whether the normal form of sums and products (constants last, else by age) takes the counter-example apart."""
    instance = Instance(rule, guard.counter)
    keys = [k for k in range(len(instance.terms)) if instance.terms.ops[k] in ("Add", "Mul")]
    return any(instance.terms.ops[instance.terms.operands[k][0]] == "Input" for k in keys)


def test_every_rule_has_examples_and_a_family() -> None:
    for family, rules in families().items():
        for rule in rules:
            assert rule.examples, rule.name
            assert rule.family == family


def test_rule_set_selects_and_excludes() -> None:
    assert {r.family for r in rule_set(["matmul"])} == {"matmul"}
    assert "merge-sibling-matmuls" not in {r.name for r in rule_set(without=["merge-sibling-matmuls"])}
    assert not any(r.family == "layout" for r in rule_set(without=["layout"]))
    with pytest.raises(KeyError, match="no-such-rule"):
        rule_set(without=["no-such-rule"])


def test_an_unsound_rule_is_caught_by_the_same_check() -> None:
    wrong = Rule("wrong", "Relu(Add(x, y))", "Add(Relu(x), Relu(y))", examples=[{"x": T(3, 4), "y": T(3, 4)}])
    assert Instance(wrong, wrong.examples[0]).largest_difference() > 1e-3


def test_a_left_side_must_speak_of_core_operators() -> None:
    with pytest.raises(ValueError, match="NoSuchOperator"):
        _ = Rule("bad", "NoSuchOperator(x)", "x").patterns


def test_symbolic_extents_are_not_reckoned_with() -> None:
    builder = GraphBuilder()
    x = builder.input("x", TensorType(("n", 4), "float32"))
    ys = [builder.op("MatMul", x, builder.weight(np.eye(4, dtype=np.float32) * k)) for k in (2, 3)]
    space = saturate(builder.build({"a": ys[0], "b": ys[1]}))
    assert space.report.fired == {"merge-sibling-matmuls": 1}
    assert W(2).kind == "weight"
