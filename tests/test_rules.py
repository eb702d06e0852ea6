"""Every rule equals what it says; every guard refuses its counter-example, and must."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from xrlflow.egraph.dimension import dimension
from xrlflow.egraph.extent import viewed
from xrlflow.egraph.graph import Graph, GraphBuilder, TensorType, Weight, attributes, meet
from xrlflow.egraph.operators import IllTyped
from xrlflow.egraph.rules import families, rule_set
from xrlflow.egraph.rules.language import Free, Guard, Rule, T, W
from xrlflow.egraph.saturate import environment, saturate
from xrlflow.egraph.terms import Term, TermGraph
from xrlflow.lowering import NotEvaluable, evaluate_node
from xrlflow.lowering.evaluation import bound

RULES = rule_set()
CASES = [pytest.param(r, e, id=f"{r.name}-{i}") for r in RULES for i, e in enumerate(r.examples)]
GUARDS = [pytest.param(r, g, id=f"{r.name}-{i}") for r in RULES for i, g in enumerate(r.where)]
DISTRIBUTIONS = ("normal", "uniform", "wide", "integers")


class Instance:
    """The left side of a rule, built for one example, with values for its free terms under a binding of symbols."""

    def __init__(
        self, rule: Rule, example: Any, distribution: str = "normal", seed: int = 0, binding: Any = None
    ) -> None:
        self.rule, self.terms, self.binding = rule, TermGraph(), binding or {}
        self.rng, self.distribution = np.random.default_rng(seed), distribution
        self.inputs: dict[int, np.ndarray] = {}
        self.names = {name: self.bind(name, value) for name, value in example.items()}
        self.scope = {**environment(self.terms), **self.names}
        exec(rule.left, self.scope)
        self.names |= {p.result: self.scope[p.result] for p in rule.patterns}

    def values(self, free: Free) -> np.ndarray:
        shape = free.type.at(self.binding).shape
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
            return viewed(value)
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
                memo[k] = evaluate_node(op, bound(attrs, self.binding), [memo[o] for o in self.terms.operands[k]])
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


# Symbolic extents: what a rule accepts must be right for every binding


def symbolic(rule: Rule, example: Any, extents: tuple[int, ...]) -> Any:
    """The example with symbols for these extents, in inputs and in attributes that hold shapes."""
    shaped = {name for p in rule.patterns for q in p.walk() for a, name in q.named if a == "shape"}

    def change(name: str, value: Any) -> Any:
        if isinstance(value, list) and value and isinstance(value[0], Free):
            return [change(name, v) for v in value]
        if isinstance(value, Free) and value.kind == "input":
            return Free(
                TensorType([f"n{d}" if d in extents else d for d in value.type.shape], value.type.dtype), "input"
            )
        if name in shaped:
            return tuple(dimension(f"n{d}") if d in extents else d for d in value)
        return value

    return {name: change(name, value) for name, value in example.items()}


def inputs_of(example: Any) -> list[Free]:
    every = [v for value in example.values() for v in (value if isinstance(value, list) else [value])]
    return [v for v in every if isinstance(v, Free) and v.kind == "input"]


def fires_symbolically(rule: Rule, example: Any) -> int:
    """How many ways of making extents symbolic the rule accepts; each is checked under several bindings."""
    extents = sorted({d for free in inputs_of(example) for d in free.type.shape})
    accepted = 0
    for chosen in [(d,) for d in extents] + [tuple(extents)]:
        case = symbolic(rule, example, chosen)
        bindings = [{f"n{d}": d for d in chosen}, *({f"n{d}": k for d in chosen} for k in (1, 2, 4)),
                    {f"n{d}": 3 + i for i, d in enumerate(chosen)}]  # fmt: skip
        try:
            instance = Instance(rule, case, binding=bindings[0])
            if rule.refusal(instance.names) is not None:
                continue
            instance.right()
        except (IllTyped, TypeError):
            continue
        for binding in bindings:
            instance = Instance(rule, case, binding=binding)
            right = instance.right()
            for name, left in instance.roots().items():
                meet(left.type, right[name].type)
                try:
                    a = instance.evaluate(left.key)
                except NotEvaluable:  # an extent too small for a window: not a binding that the model has
                    continue
                b = instance.evaluate(right[name].key)
                assert a.shape == b.shape == left.type.at(binding).shape, (chosen, binding)
                assert float((a - b).abs().max()) <= 1e-12 * float(a.abs().max()), (chosen, binding)
        accepted += 1
    return accepted


@pytest.mark.parametrize(("rule", "example"), CASES)
def test_what_a_rule_accepts_of_symbolic_extents_is_right_for_every_binding(rule: Rule, example: Any) -> None:
    fires_symbolically(rule, example)


@pytest.mark.parametrize(("rule", "guard"), GUARDS)
def test_guards_hold_for_every_binding(rule: Rule, guard: Guard) -> None:
    fires_symbolically(rule, guard.counter)


def test_most_rules_work_on_symbolic_extents() -> None:
    refusing = {r.name for r in RULES if not any(fires_symbolically(r, e) for e in r.examples)}
    assert refusing == {"add-constants"}  # speaks of constants only


def test_siblings_merge_over_symbolic_extents() -> None:
    builder = GraphBuilder()
    x = builder.input("x", TensorType(("n", 4), "float32"))
    ys = [builder.op("MatMul", x, builder.weight(np.eye(4, dtype=np.float32) * k)) for k in (2, 3)]
    space = saturate(builder.build({"a": ys[0], "b": ys[1]}))
    assert space.report.fired == {"merge-sibling-matmuls": 1}
    assert W(2).kind == "weight"
