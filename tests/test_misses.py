"""Near misses on small graphs where it is known what stands in the way, where, and what would help."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import xrlflow
from xrlflow.egraph.graph import Graph, GraphBuilder, TensorType
from xrlflow.egraph.nearness import Off
from xrlflow.egraph.rules import families
from xrlflow.egraph.rules.language import Guard, Rule
from xrlflow.egraph.saturate import saturate
from xrlflow.extract import main
from xrlflow.misses import NearMiss, near_misses

F = "float32"
NARROW = Rule(
    "fold-scale",
    "Mul(MatMul(x, w), s)",
    "MatMul(x, Mul(w, s))",
    where=[Guard("s.elements == 1", "the scale must be one number")],
)
FUSE = Rule("fuse", "Mul(x, Sigmoid(Add(x, c)))", "Add(x, c)")


def scaled(scale: tuple[int, ...], dtype: str = F) -> Graph:
    g = GraphBuilder()
    x = g.input("x", TensorType((64, 64), dtype))
    product = g.op("MatMul", x, g.weight(np.ones((64, 64), dtype)))
    g.nodes[-1] = g.nodes[-1].__class__("MatMul", g.nodes[-1].inputs, g.nodes[-1].attributes, g.nodes[-1].type, ("p",))
    y = g.op("Mul", product, g.weight(np.full(scale, 0.5, dtype)))
    return g.build({"y": y})


def found(graph: Graph, rules: list[Rule], off: tuple[Off, ...] = ()) -> list[NearMiss]:
    from xrlflow.cost.base import bind
    from xrlflow.cost.roofline import roofline

    space = saturate(graph, rules, explain=True, off=off)
    return near_misses(space, bind(roofline("epyc-1t"), space, 1.05))


def test_a_guard_that_refuses_is_told_with_its_reason_place_and_stake() -> None:
    (miss,) = found(scaled((64,)), [NARROW])
    assert (miss.rule, miss.kind, miss.reason, miss.places) == (
        "fold-scale",
        "guard",
        "the scale must be one number",
        1,
    )
    assert miss.stake > 0
    assert not found(scaled(()), [NARROW]), "where it fires nothing is missed"


def test_a_rule_that_may_overflow_is_told_in_half_precision_only() -> None:
    from dataclasses import replace

    ranged = replace(NARROW, tag="range")
    (miss,) = found(scaled((), "float16"), [ranged])
    assert miss.kind == "tag"
    assert "narrow dtype" in miss.reason
    assert not found(scaled(()), [ranged])


def test_a_rule_that_is_off_is_told_where_its_guards_hold() -> None:
    off = (Off(NARROW, "it makes Thing, which needs opset 99"),)
    (miss,) = found(scaled(()), [], off)
    assert (miss.kind, miss.reason) == ("off", "it makes Thing, which needs opset 99")
    (refused,) = found(scaled((64,)), [], off)
    assert refused.reason == "the scale must be one number", "another opset would not help here"


def gated(inner: str) -> Graph:
    """x · sigmoid(x + c), with an operator `inner` around the sum or, for Sub, in its place."""
    g = GraphBuilder()
    x = g.input("x", TensorType((4, 6), F))
    c = g.weight(np.arange(6, dtype=F))
    total = g.op("Sub" if inner == "Sub" else "Add", x, c)
    if inner not in ("", "Sub"):
        total = g.op(inner, total) if inner == "Relu" else g.add(inner, (total,), (), TensorType((4, 6), F))
    return g.build({"y": g.op("Mul", x, g.op("Sigmoid", total))})


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        ("Relu", "Relu stands between Add and Sigmoid"),
        ("domain::Quirk", "domain::Quirk, which no rule knows, stands between Add and Sigmoid"),
        ("", None),
    ],
)
def test_an_operator_in_the_way_is_named(inner: str, reason: str | None) -> None:
    misses = [m.reason for m in found(gated(inner), [FUSE]) if m.kind == "structure"]
    assert misses == ([] if reason is None else [reason])


def test_another_operator_in_place_of_one_is_named_where_enough_of_the_pattern_is_there() -> None:
    wide = Rule("wide", "Mul(x, Sigmoid(Tanh(Add(x, c))))", "x")
    g = GraphBuilder()
    x = g.input("x", TensorType((4, 6), F))
    y = g.op("Mul", x, g.op("Sigmoid", g.op("Tanh", g.op("Sub", x, g.weight(np.arange(6, dtype=F))))))
    (miss,) = found(g.build({"y": y}), [wide])
    assert miss.reason == "Tanh reads the result of Sub where the rule wants Add"
    assert not found(gated("Sub"), [FUSE]), "two operators of three are in many places"


def test_looking_for_misses_does_not_change_the_space() -> None:
    rules = [
        r for name in ("elementwise", "layout", "matmul", "merging") for r in families()[name] if r.tag != "approx"
    ]
    graph = gated("Relu")
    plain, told = saturate(graph, rules), saturate(graph, rules, explain=True, off=(Off(NARROW, "…"),))
    assert plain.ops == told.ops
    assert plain.children.tolist() == told.children.tolist()
    assert plain.report.misses == ()


def tanh_gelu(path: Path) -> Path:
    """GELU by erf at opset 17, where ONNX has no Gelu, in a model of a file."""
    w = np.random.default_rng(0).normal(size=(256, 256)).astype(F)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Div", ["h", "r"], ["d"]),
        helper.make_node("Erf", ["d"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["a"]),
        helper.make_node("Mul", ["h", "a"], ["m"]),
        helper.make_node("Mul", ["m", "half"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(v, n) for n, v in (("w", w), ("r", F_(2**0.5)), ("one", F_(1.0)), ("half", F_(0.5)))
    ]
    shape = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [512, 256]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "g", shape[:1], shape[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def F_(number: float) -> np.ndarray:
    return np.array(number, dtype=F)


def test_the_command_tells_which_opset_would_help(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, record = tanh_gelu(tmp_path / "gelu.onnx"), tmp_path / "run.json"
    options = ["--target", "roofline:epyc-1t", "--max-steps", "100", "--method", "saturation", "--json", str(record)]
    assert main([str(source), *options, "--explain-misses"]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("near miss: ")]
    misses = json.loads(record.read_text())["misses"]
    (gelu,) = [m for m in misses if "Gelu, which needs opset 20 (--opset 20)" in m["reason"]]
    assert gelu["places"] == 1
    assert gelu["at"] == ["y"]
    assert any(gelu["rule"] in line for line in shown)
    assert [m["stake"] for m in misses if m["kind"] != "growth"] == sorted(
        (m["stake"] for m in misses if m["kind"] != "growth"), reverse=True
    )
    assert main([str(source), *options, "--explain-misses", "--opset", "20"]) == 0
    capsys.readouterr()
    rules = json.loads(record.read_text())["rules"]
    assert rules[gelu["rule"]]["firings"] == 1


def test_a_run_that_was_not_asked_says_nothing_of_misses(tmp_path: Path) -> None:
    result = xrlflow.optimize(
        tanh_gelu(tmp_path / "g.onnx"), target="roofline:epyc-1t", max_steps=50, method="saturation"
    )
    assert "misses" not in result.report
    assert not result.misses
