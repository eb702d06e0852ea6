"""Growth under control: what each rule did adds up, and chains grow by a few e-nodes a link, with all rules on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from xrlflow.egraph.graph import Graph, GraphBuilder, TensorType
from xrlflow.egraph.rules import families, rule_set
from xrlflow.egraph.rules.language import Rule
from xrlflow.egraph.saturate import saturate

F = "float32"
LONG = 140


def chain(op: str, constants: bool, links: int = LONG) -> Graph:
    """x₀ ∘ x₁ ∘ … ∘ xₙ, the later operands inputs, or weights with different values."""
    rng = np.random.default_rng(0)
    g = GraphBuilder()
    y = g.input("x0", TensorType((4, 6), F))
    for i in range(1, links + 1):
        z = g.weight(rng.normal(size=(6,)).astype(F)) if constants else g.input(f"x{i}", TensorType((4, 6), F))
        y = g.op(op, y, z)
    return g.build({"y": y})


def concatenations(links: int = LONG) -> Graph:
    g = GraphBuilder()
    y = g.input("x0", TensorType((4, 2), F))
    for i in range(1, links + 1):
        y = g.op("Concat", y, g.input(f"x{i}", TensorType((4, 1 + i % 3), F)), axis=1)
    return g.build({"y": y})


def residual_stream(blocks: int = LONG, width: int = 6) -> Graph:
    """A pre-norm decoder's stream: x + f(norm(x)), block after block, each with weights of its own."""
    rng = np.random.default_rng(1)
    g = GraphBuilder()
    x = g.input("x", TensorType((4, width), F))
    for _ in range(blocks):
        scale = g.weight(rng.normal(size=width).astype(F))
        normed = g.op("RMSNormalization", x, scale, axis=1, epsilon=1e-6)
        h = g.op("Sigmoid", g.op("MatMul", normed, g.weight(rng.normal(size=(width, width)).astype(F))))
        x = g.op("Add", x, h)
    return g.build({"y": x})


def enodes_a_link(make: Callable[[int], Graph], few: int = 40, many: int = LONG) -> float:
    """How many e-nodes, constants included, the last links add, each."""
    sizes = []
    for links in (few, many):
        space = saturate(make(links), max_iterations=200)
        assert space.report.stop_reason == "saturated"
        sizes.append(space.n_nodes)
    return (sizes[1] - sizes[0]) / (many - few)


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_a_chain_of_values_grows_by_its_own_links(op: str) -> None:
    """Each link is one operator and one input. Free associativity would grow like 3ⁿ."""
    assert enodes_a_link(lambda n: chain(op, False, n)) <= 4


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_a_chain_of_constants_gains_at_most_four_enodes_a_link(op: str) -> None:
    """A link is one operator and one weight; the constants before it are brought together with its own."""
    assert enodes_a_link(lambda n: chain(op, True, n)) <= 2 + 4


def test_a_chain_of_concatenations_grows_by_a_few_enodes_a_link() -> None:
    assert enodes_a_link(concatenations) <= 2 + 4


def test_a_residual_stream_gains_at_most_four_enodes_an_addition() -> None:
    """A block has six e-nodes: norm and its scale, product and its weight, sigmoid, addition."""
    assert enodes_a_link(residual_stream) <= 6 + 4


def test_what_rules_did_adds_up() -> None:
    graph = residual_stream(6)
    report = saturate(graph).report
    for name, s in report.rules.items():
        assert s.matches == s.firings + s.known + s.unfit + sum(s.refused.values()), name
        assert s.firings + s.known or not s.enodes, name
        assert s.seconds >= 0
    made = sum(s.enodes for s in report.rules.values())
    distinct = {(n.op, n.inputs, n.attributes) for n in graph.nodes}
    assert made == report.terms - len(distinct) > 0
    assert report.fired == {name: s.firings for name, s in report.rules.items() if s.firings}
    assert sum(s.seconds for s in report.rules.values()) <= report.seconds


def test_a_family_that_is_switched_off_does_nothing() -> None:
    graph = residual_stream(4)
    fired = set(saturate(graph).report.fired)
    family = {r.name: name for name, rules in families().items() for r in rules}
    assert fired, "else this shows nothing"
    for name in {family[r]: None for r in sorted(fired)}:
        assert name not in {family[r] for r in saturate(graph, rule_set(without=[name])).report.rules}
        assert {family[r] for r in saturate(graph, rule_set([name])).report.rules} == {name}
    for rule in sorted(fired)[:3]:
        assert rule not in saturate(graph, rule_set(without=[rule])).report.rules


def test_a_constant_moved_there_and_back_is_the_constant() -> None:
    """Rules that push transposes into weights would otherwise make new weights without end."""
    there = Rule("there", "Mul(Transpose(x, perm=p), c)", "Transpose(Mul(x, Transpose(c, perm=p)), perm=p)")
    back = Rule("back", "Transpose(Mul(x, c), perm=p)", "Mul(Transpose(x, perm=p), Transpose(c, perm=p))")
    undone = Rule("undone", "Transpose(Transpose(x, perm=p), perm=q)", "x")
    rng = np.random.default_rng(0)
    g = GraphBuilder()
    x = g.op("Transpose", g.input("x", TensorType((3, 5), F)), perm=(1, 0))
    y = g.op("Mul", x, g.weight(rng.normal(size=(5, 3)).astype(F)))
    space = saturate(g.build({"y": y}), [there, back, undone])
    assert space.report.stop_reason == "saturated"
    assert space.const.sum() == 2, "the weight and its transpose"
