"""The check of every e-node finds what is wrong and nothing else: on nets of all kinds, with unsound rules planted as
controls, with guards taken away, and on random graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xrlflow.egraph import orders
from xrlflow.egraph.graph import Graph, GraphBuilder, TensorType, Weight
from xrlflow.egraph.rules import rule_set
from xrlflow.egraph.rules.language import C, Guard, Rule, T
from xrlflow.egraph.saturate import saturate
from xrlflow.egraph.space import SearchSpace
from xrlflow.lowering import load
from xrlflow.lowering.check import check_enodes, culprits
from xrlflow.lowering.finite_field import PrimeField
from xrlflow.lowering.instances import Instance, in_field
from xrlflow.zoo import MODELS, build

F = "float32"
RULES = rule_set()

TINY = [name for name in MODELS if name.endswith("-tiny")]
QUICK = [
    "squeezenet-paper", "bert", "vit", "llama", "inception-v3", "resnext", "nasrnn-cell", "mlp-tower", "mobilenet-v2",
    "efficientnet", "channels-last", "convnext", "gpt2", "t5", "whisper",
]  # fmt: skip
"""One of each kind."""


@cache
def net(name: str) -> Graph:
    return load(build(name))


def saturated(graph: Graph, *planted: Rule, max_enodes: int = 3000) -> SearchSpace:
    return saturate(graph, [*planted, *RULES], max_enodes=max_enodes, max_iterations=5)


NETS = [pytest.param(n, id=n, marks=() if n.removesuffix("-tiny") in QUICK else pytest.mark.slow) for n in TINY]


@pytest.mark.parametrize("name", NETS)
def test_every_enode_of_a_net_computes_its_class(name: str) -> None:
    space = saturated(net(name))
    assert not space.report.excluded
    assert space.report.fired
    report = check_enodes(space, tolerance=1e-6)
    assert report.mismatches == []
    assert report.checked > 0
    assert report.skipped == 0


def test_nets_of_all_kinds_are_among_them() -> None:
    assert {f"{name}-tiny" for name in QUICK} <= set(TINY)


# Unsound rules, planted: each must be found and named


def grouped() -> Graph:
    """Two grouped convolutions of one image, with unequal numbers of outputs."""
    rng, g = np.random.default_rng(0), GraphBuilder()
    x = g.input("x", TensorType((1, 4, 5, 5), F))
    attrs = {"strides": (1, 1), "dilations": (1, 1), "pads": (1, 1, 1, 1), "group": 2}
    return g.build(
        {f"y{o}": g.op("Conv", x, g.weight(rng.normal(size=(o, 2, 3, 3)).astype(F)), **attrs) for o in (2, 6)}
    )


def turned() -> Graph:
    """A softmax that is transposed afterwards, so that its axis is another."""
    g = GraphBuilder()
    y = g.op("Softmax", g.input("x", TensorType((4, 4), F)), axis=1)
    return g.build({"y": g.op("Relu", g.op("Transpose", y, perm=(1, 0)))})


def casts() -> Graph:
    """Numbers that go through integers."""
    g = GraphBuilder()
    y = g.op("Cast", g.op("Cast", g.input("x", TensorType((3, 5), F)), to="int64"), to=F)
    return g.build({"y": g.op("Sigmoid", y)})


def square() -> Graph:
    """A product of square matrices."""
    g = GraphBuilder()
    x, y = (g.input(n, TensorType((3, 3), F)) for n in "xy")
    return g.build({"z": g.op("MatMul", g.op("Relu", x), y)})


def zoo(name: str) -> Callable[[], Graph]:
    return lambda: net(f"{name}-tiny")


PLANTED: list[tuple[Rule, Callable[[], Graph]]] = [
    (
        Rule(
            "merges-grouped-convs",
            "y1 = Conv(x, w, **a); y2 = Conv(x, v, **a)",
            """
m = Split(Conv(x, Concat(w, v, axis=0), **a), axis=1, sizes=[w.shape[0], v.shape[0]])
y1 = m[0]; y2 = m[1]
""",
            where=[Guard("w.lowest < v.lowest", "once", kind="growth")],
        ),
        grouped,
    ),
    (Rule("relu-is-linear", "Relu(Add(x, y))", "Add(Relu(x), Relu(y))"), zoo("resnext")),
    (
        Rule(
            "softmax-keeps-its-axis", "Transpose(Softmax(x, axis=k), perm=p)", "Softmax(Transpose(x, perm=p), axis=k)"
        ),
        turned,
    ),
    (
        Rule(
            "concat-commutes",
            "Concat(x, y, axis=k)",
            "Concat(y, x, axis=k)",
            where=[Guard("x.shape == y.shape", "one type")],
        ),
        zoo("squeezenet"),
    ),
    (
        Rule(
            "split-from-the-end",
            "s = Split(x, axis=k, sizes=n); root = s[0]",
            "root = Slice(x, axes=[k], starts=[x.shape[k] - n[0]], ends=[x.shape[k]])",
        ),
        zoo("gpt2"),
    ),
    (Rule("scales-sigmoid", "Mul(Sigmoid(x), y)", "Sigmoid(Mul(x, y))"), zoo("efficientnet")),
    (Rule("casts-cancel", "Cast(Cast(x, to=a), to=b)", "x"), casts),
    (Rule("gelu-is-gelu", "Gelu(x, approximate='none')", "Gelu(x, approximate='tanh')"), zoo("bert")),
    (Rule("reshape-eats-transpose", "Reshape(Transpose(x, perm=p), shape=n)", "Reshape(x, shape=n)"), zoo("vit")),
    (Rule("matmul-commutes", "MatMul(x, y)", "MatMul(y, x)"), square),
    (
        Rule(
            "mean-of-a-part",
            "ReduceMean(x, axes=a, keepdims=1)",
            "ReduceMean(Slice(x, axes=[x.last], starts=[0], ends=[2]), axes=a, keepdims=1)",
            where=[Guard("x.last in a", "the last axis goes")],
        ),
        zoo("llama"),
    ),
    (
        Rule(
            "stride-is-ignored",
            "y = Conv(x, w, b, **a)",
            "y = Slice(Conv(x, w, b, **{**a, 'strides': (1, 1)}), axes=[2, 3], starts=[0, 0], ends=y.shape[2:])",
            where=[Guard("a['strides'] != (1, 1)", "there is a stride", kind="growth")],
        ),
        zoo("squeezenet"),
    ),
    (
        Rule(
            "layer-norm-is-rms-norm",
            "LayerNormalization(x, s, b, axis=k, epsilon=e)",
            "Add(RMSNormalization(x, s, axis=k, epsilon=e), b)",
        ),
        zoo("whisper"),
    ),
    (Rule("mask-is-forgotten", "Softmax(Add(x, m), axis=k)", "Softmax(x, axis=k)"), zoo("t5")),
    (
        Rule(
            "padding-is-counted", "AveragePool(x, **a)", "AveragePool(x, **{**a, 'include_pad': 1 - a['include_pad']})"
        ),
        zoo("inception-v3"),
    ),
    (Rule("tanh-of-difference", "Tanh(Add(x, y))", "Tanh(Sub(x, y))"), zoo("nasrnn-cell")),
    (Rule("clip-has-no-top", "Clip(x, min=a, max=b)", "Relu(x)"), zoo("mobilenet-v2")),
]


@pytest.mark.parametrize(("wrong", "make"), PLANTED, ids=[r.name for r, _ in PLANTED])
def test_a_planted_unsound_rule_is_caught_and_named(wrong: Rule, make: Callable[[], Graph]) -> None:
    graph = make()
    space = saturated(graph, wrong, max_enodes=1000)
    assert space.report.fired[wrong.name] > 0
    report = check_enodes(space, tolerance=1e-6)
    assert wrong.name in report.suspects
    assert wrong.name in str(next(m for m in report.mismatches if wrong.name in m.rules))
    named = culprits(graph, [wrong, *RULES], report.suspects, tolerance=1e-6, max_enodes=1000, max_iterations=5)
    assert named == (wrong.name,)


def test_the_prime_field_names_it_as_well() -> None:
    graph = square()
    wrong = Rule("matmul-commutes", "MatMul(x, y)", "MatMul(y, x)")
    exact = [r for r in RULES if in_field(r)]
    assert check_enodes(saturate(graph, exact), arithmetic=PrimeField()).mismatches == []
    report = check_enodes(saturate(graph, [wrong]), arithmetic=PrimeField())
    assert report.suspects == (wrong.name,)


def test_an_enode_that_has_not_the_type_of_its_class_is_told() -> None:
    space = saturated(square())
    types = tuple(TensorType((3, 4), F) if space.ops[space.original.choice[c]] == "Relu" else t
                  for c, t in enumerate(space.types))  # fmt: skip
    (mismatch, *_) = check_enodes(replace(space, types=types)).mismatches
    assert mismatch.type == "float64[3, 3], not float32[3,4]"
    assert "Relu" in str(mismatch)


# Guards taken away: what they keep out would be found

SOUND = [pytest.param(r, g, id=f"{r.name}-{i}") for r in RULES for i, g in enumerate(r.where) if g.kind == "sound"]


@pytest.mark.parametrize(("rule", "guard"), SOUND)
def test_without_the_guard_its_counter_example_is_found(
    rule: Rule, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the check of every e-node, or earlier: types that differ, or a right side that has none, stop the firing.

    Or later, where the right side has a type but no value, as quotients of integers by 0 have none.
    """
    assert guard.counter is not None
    monkeypatch.setattr(orders, "MOST", 1000)  # a guard that asks for constants also rules out orders of operands
    loose = replace(rule, where=[g for g in rule.where if g is not guard])
    graph = Instance(rule, guard.counter).graph()
    space = saturate(graph, [loose], max_enodes=300, max_iterations=3)
    refused = space.report.refused.get(rule.name, {})
    if any(reason.startswith(("types differ", "ill-typed", "unknown extents")) for reason in refused):
        return
    if not space.report.fired:
        assert refused or not matches(rule, graph)
        return
    reports = [check_enodes(space, seed, 1e-6) for seed in range(3)]
    assert any(rule.name in r.suspects or r.skipped for r in reports)


def matches(rule: Rule, graph: Graph) -> bool:
    """Whether the left side's operators, in some order of commutative operands, are there at all."""
    statistics = saturate(graph, [rule], max_iterations=1).report.rules.get(rule.name)
    return statistics is not None and statistics.matches > 0


# Random graphs


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The fuzzer, a script that is no part of the package."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    return import_module("fuzz_rules")


@cache
def sound_rules(fuzz: Any) -> Any:
    return fuzz.Rules.known()


def clean(fuzz: Any, numbers: range) -> None:
    outcomes = [fuzz.examine(1, n, sound_rules(fuzz)) for n in numbers]
    assert [f for o in outcomes for f in o.failures] == []
    assert sum(len(o.fired) > 0 for o in outcomes) > 0.9 * len(outcomes)
    assert sum(o.exact for o in outcomes) > len(outcomes) / 2


def test_random_graphs_are_clean(fuzz: Any) -> None:
    clean(fuzz, range(40))


@pytest.mark.slow
def test_a_thousand_random_graphs_are_clean(fuzz: Any) -> None:
    clean(fuzz, range(40, 1040))


def test_random_graphs_are_the_same_again_and_varied(fuzz: Any) -> None:
    graphs = [fuzz.random_graph(1, n, RULES) for n in range(40)]
    assert [g.nodes for g in graphs] == [fuzz.random_graph(1, n, RULES).nodes for n in range(40)]
    kinds = [node.type for g in graphs for node in g.nodes if isinstance(node.type, TensorType)]
    assert {"float32", "float16", "int64", "bool"} <= {k.dtype for k in kinds}
    assert any(k.symbols for k in kinds)
    assert len({node.op for g in graphs for node in g.nodes}) > 40
    assert sum(len(g.outputs) > 1 for g in graphs) > 20


def test_the_fuzzer_finds_an_unsound_rule_and_prints_a_program_that_shows_it(fuzz: Any, capsys: Any) -> None:
    wrong = Rule("planted", "Sigmoid(Add(x, y))", "Sigmoid(Sub(x, y))", examples=[{"x": T(2, 3), "y": T(2, 3)}])
    rules = fuzz.Rules((*RULES[:20], wrong), (), ())
    number = next(n for n in range(200) if fuzz.examine(1, n, rules).failures)
    fuzz.explain(1, number, rules)
    text = capsys.readouterr().out
    assert "planted" in text
    *program, last = [line for line in text.splitlines() if not line.startswith("#")]
    scope: dict[str, Any] = {}
    exec("\n".join(program), scope)
    graph = eval(last.removeprefix("print(check_enodes(saturate(").removesuffix(")).mismatches)"), scope)
    assert graph.count()["Sigmoid"] == 1
    assert sum(graph.count().values()) <= 4
    assert "planted" in check_enodes(saturate(graph, rules.every)).suspects


def test_what_is_left_of_a_difference_of_equals_is_rounding(fuzz: Any) -> None:
    """Graph 6826 takes a convolution from itself, in one piece and as a part of a merged one: 0 and 4e-16."""
    assert fuzz.examine(0, 6826, sound_rules(fuzz)).failures == []


def test_an_error_far_below_what_was_added_up_is_found_all_the_same() -> None:
    """x + 1000 - 1000 is not 1.00001 x, though the error is a hundred-millionth of what was added."""
    g = GraphBuilder()
    x, big = g.input("x", TensorType((3, 5), F)), g.weight(Weight.of(np.full((3, 5), 1000.0, np.float32), "big"))
    graph = g.build({"y": g.op("Sub", g.op("Add", x, big), big)})
    example = {"x": T(2), "c": C(1.0)}
    wrong = Rule("planted", "Sub(Add(x, c), c)", "Mul(x, constant(np.array(1.00001), x.dtype))", examples=[example])
    assert check_enodes(saturate(graph, [wrong]), tolerance=1e-6).suspects == ("planted",)
