"""What saturation reaches and what it does not, its limits, its determinism, and the check of every e-node."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from xrlflow.egraph.graph import Graph, GraphBuilder, TensorType
from xrlflow.egraph.rules import rule_set
from xrlflow.egraph.rules.language import Guard, Rule
from xrlflow.egraph.saturate import saturate
from xrlflow.egraph.space import IllegalSelection, SearchSpace
from xrlflow.lowering.check import check_enodes

F = "float32"


def projections(n: int = 3, width: int = 8, biased: bool = True) -> Graph:
    """n projections of one input, as in attention."""
    rng = np.random.default_rng(0)
    g = GraphBuilder()
    x = g.input("x", TensorType((4, width), F))
    outputs = {}
    for i in range(n):
        y = g.op("MatMul", x, g.weight(rng.normal(size=(width, width + i)).astype(F)))
        outputs[f"y{i}"] = g.op("Add", y, g.weight(rng.normal(size=width + i).astype(F))) if biased else y
    return g.build(outputs)


def fire_module() -> Graph:
    """SqueezeNet's squeeze and expand, on a small image."""
    rng = np.random.default_rng(1)
    g = GraphBuilder()

    def conv(x: int, o: int, k: int) -> int:
        i = g.nodes[x].type.shape[1]  # type: ignore[union-attr, index]
        pads = (k // 2,) * 4
        w, b = g.weight(rng.normal(size=(o, i, k, k)).astype(F)), g.weight(rng.normal(size=o).astype(F))
        y = g.op("Conv", x, w, b, strides=(1, 1), dilations=(1, 1), pads=pads, group=1)
        return g.op("Relu", y)

    squeezed = conv(g.input("x", TensorType((1, 6, 7, 7), F)), 4, 1)
    return g.build({"y": g.op("Concat", conv(squeezed, 8, 1), conv(squeezed, 8, 3), axis=1)})


def cancelling() -> Graph:
    """Two transposes that undo each other between two activations."""
    g = GraphBuilder()
    y = g.op("Relu", g.input("x", TensorType((2, 3, 5), F)))
    y = g.op("Transpose", g.op("Transpose", y, perm=(2, 0, 1)), perm=(1, 2, 0))
    return g.build({"y": g.op("Sigmoid", y)})


def operators(space: SearchSpace, op: str) -> list[int]:
    return [i for i in range(space.n_nodes) if space.ops[i] == op]


def test_three_projections_become_one_matmul_and_one_addition() -> None:
    space = saturate(projections())
    assert space.report.stop_reason == "saturated"
    widths = [space.node_type(i).shape[1] for i in operators(space, "MatMul")]  # type: ignore[union-attr, index]
    assert 8 + 9 + 10 in widths
    merged = [i for i in operators(space, "Add") if space.node_type(i).shape == (4, 27)]  # type: ignore[union-attr]
    assert merged


def test_siblings_merge_in_one_order_only() -> None:
    space = saturate(projections(2, biased=False))
    assert space.report.fired["merge-sibling-matmuls"] == 1
    assert len(operators(space, "MatMul")) == 3


def test_no_split_part_merges_with_a_stranger() -> None:
    """Not reachable: projections of different inputs share no operand."""
    g = GraphBuilder()
    w = [g.weight(np.eye(4, dtype=F) * k) for k in (1, 2)]
    ys = [g.op("MatMul", g.input(f"x{i}", TensorType((4, 4), F)), w[i]) for i in range(2)]
    space = saturate(g.build({"a": ys[0], "b": ys[1]}))
    assert not space.report.fired


def test_the_fire_module_becomes_one_convolution() -> None:
    space = saturate(fire_module())
    channels = {space.node_type(i).shape[1] for i in operators(space, "Conv")}  # type: ignore[union-attr, index]
    assert 16 in channels
    assert space.report.fired["enlarge-biased-kernel"] == 1


def test_superfluous_operators_leave_the_original_but_stay_in_its_cost() -> None:
    space = saturate(cancelling())
    original = [space.ops[i] for i in space.selected(space.original)]
    assert sorted(original) == ["Input", "Relu", "Sigmoid"]
    assert sorted(space.ops[i] for i in space.baseline) == ["Relu", "Sigmoid", "Transpose", "Transpose"]


def test_original_selection_is_the_input_graph() -> None:
    for graph in (projections(), fire_module()):
        space = saturate(graph)
        back = space.to_graph(space.original)
        assert back.count() == graph.count()
        assert back.output_names == graph.output_names


def test_limits_stop_saturation_and_say_so() -> None:
    graph = projections(5)
    assert saturate(graph, max_iterations=1).report.stop_reason == "iteration limit"
    assert saturate(graph, max_enodes=40).report.stop_reason == "node limit"
    assert saturate(graph, seconds=0.0).report.stop_reason == "time limit"


def test_limits_keep_a_legal_space() -> None:
    space = saturate(projections(5), max_enodes=60)
    assert space.topological(space.original.choice)


def test_chains_of_additions_do_not_explode() -> None:
    g = GraphBuilder()
    y = g.input("x0", TensorType((4, 4), F))
    for i in range(1, 12):
        y = g.op("Add", y, g.input(f"x{i}", TensorType((4, 4), F)))
    assert saturate(g.build({"y": y})).n_nodes == 23


def test_a_cycle_is_refused() -> None:
    space = saturate(cancelling())
    choice = space.original.choice.copy()
    relu = space.node_class[operators(space, "Relu")[0]]
    looping = [i for i in space.nodes_of(int(relu)) if space.ops[i] == "Transpose"]
    assert looping, "Relu(x) also equals the transpose of its transpose"
    choice[relu] = looping[0]
    inner = int(space.child_lists[looping[0]][0])
    choice[inner] = next(i for i in space.nodes_of(inner) if space.child_lists[i] == (relu,))
    with pytest.raises(IllegalSelection, match="need each other"):
        space.selection(choice)


@pytest.mark.parametrize("make", [projections, fire_module, cancelling])
def test_every_enode_computes_its_class(make: object) -> None:
    report = check_enodes(saturate(make()))  # type: ignore[operator]
    assert report.checked > 0
    assert report.mismatches == []
    assert report.worst < 1e-10


WRONG = [
    Rule("planted-relu", "Relu(Conv(x, w, b, **a))", "Conv(x, w, b, **a)"),
    Rule(
        "planted-order", "Concat(x, y, axis=k)", "Concat(y, x, axis=k)", where=[Guard("x.shape == y.shape", "one type")]
    ),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda r: r.name)
def test_a_planted_unsound_rule_is_caught_and_named(wrong: Rule) -> None:
    report = check_enodes(saturate(fire_module(), [*rule_set(), wrong]))
    assert report.mismatches
    assert wrong.name in {name for m in report.mismatches for name in m.rules}


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
import hashlib
from test_saturation import fire_module, projections
from xrlflow.egraph.saturate import saturate
for graph in (fire_module(), projections()):
    s = saturate(graph)
    text = repr((s.ops, s.attributes, s.node_class.tolist(), s.children.tolist(), s.rules, s.original.choice.tolist()))
    print(hashlib.sha256(text.encode()).hexdigest())
"""


def test_the_space_is_the_same_in_different_processes() -> None:
    from pathlib import Path

    script = SCRIPT.format(folder=str(Path(__file__).parent))
    runs = [
        subprocess.run([sys.executable, "-c", script], env={**__import__("os").environ, "PYTHONHASHSEED": seed},
                       capture_output=True, text=True, check=True).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert runs[0] == runs[1]


def test_siblings_merge_in_runs_not_in_subsets() -> None:
    """Eight siblings have 7 pairs and 6 longer runs from the first on; the subsets would be 247."""
    space = saturate(projections(8, biased=False))
    assert space.report.stop_reason == "saturated"
    assert len(operators(space, "MatMul")) == 8 + 7 + 6
    assert space.report.fired["merge-sibling-matmuls"] == 7 + 6


def test_a_convolution_of_another_size_does_not_part_siblings() -> None:
    rng = np.random.default_rng(2)
    g = GraphBuilder()
    x = g.input("x", TensorType((1, 3, 5, 5), F))
    ys = {}
    for i, k in enumerate((1, 3, 1)):
        w = g.weight(rng.normal(size=(2 + i, 3, k, k)).astype(F))
        ys[f"y{i}"] = g.op("Conv", x, w, strides=(1, 1), dilations=(1, 1), pads=(k // 2,) * 4, group=1)
    space = saturate(g.build(ys))
    merged = [tuple(t.shape) for t in (space.types[space.child_lists[i][1]] for i in operators(space, "Conv"))]  # type: ignore[union-attr, arg-type]
    assert (2 + 4, 3, 1, 1) in merged


ALL_RELUS = Rule("all-relus-are-equal", "a = Relu(x); b = Relu(y)", "a = Relu(y); b = Relu(x)")
FREE_ADDEND = Rule("any-addend-is-zero", "Add(x, c)", "x", where=[Guard("c.const", "a constant")], folds=True)
RELU_TWICE = Rule("relu-relu", "Relu(Relu(x))", "Relu(x)")


def shapes_of_values(twice: bool = False) -> Graph:
    """Two opaque results whose shapes differ, of operands that an unsound rule takes for equal."""
    g = GraphBuilder()
    outputs = {}
    for i in (2, 3):
        y = g.op("Relu", g.input(f"x{i}", TensorType((4, 5), F)))
        y = g.op("Relu", y) if twice else y
        outputs[f"y{i}"] = g.add("domain::Mask", (y,), (), TensorType((i,), F))
    return g.build(outputs)


def sum_of_numbers() -> Graph:
    g = GraphBuilder()
    c = g.op("Add", g.weight(np.full(3, 2, F)), g.weight(np.full(3, 5, F)))
    return g.build({"y": g.op("Mul", g.input("x", TensorType((3,), F)), c)})


@pytest.mark.parametrize(
    ("graph", "wrong", "what"),
    [
        (shapes_of_values(), ALL_RELUS, "types float32[2] and float32[3]"),
        (shapes_of_values(twice=True), ALL_RELUS, "types float32[2] and float32[3]"),
        (sum_of_numbers(), FREE_ADDEND, "the constants 2 and 7"),
    ],
)
def test_a_contradiction_names_the_rule_and_the_space_is_built_without_it(graph: Graph, wrong: Rule, what: str) -> None:
    rules = [RELU_TWICE, *rule_set(), wrong]
    space = saturate(graph, rules)
    assert dict(space.report.excluded) == {wrong.name: what}
    assert not any(wrong.name in names for names in space.rules)
    rest = saturate(graph, [r for r in rules if r is not wrong])
    assert (space.ops, space.children.tolist()) == (rest.ops, rest.children.tolist())
    assert not rest.report.excluded


def test_a_sound_rule_on_the_way_to_a_contradiction_is_kept() -> None:
    """The inner operands are equal by the unsound rule alone; the outer ones by congruence and a sound rule as well."""
    space = saturate(shapes_of_values(twice=True), [RELU_TWICE, ALL_RELUS])
    assert list(space.report.excluded) == [ALL_RELUS.name]
    assert space.report.fired[RELU_TWICE.name] == 2


def test_a_contradiction_in_no_time_leaves_the_original() -> None:
    graph = shapes_of_values()
    space = saturate(graph, [ALL_RELUS], seconds=0.0)
    assert not space.report.fired
    assert space.to_graph(space.original).count() == graph.count()


def test_asking_each_question_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts of guards are remembered by what they depend on, and repeated matches left out: both must be exact."""
    from xrlflow.egraph.matching import Binder

    graphs = [projections(5), fire_module(), cancelling()]
    remembered = [saturate(g) for g in graphs]
    monkeypatch.setattr(Binder, "refusal", lambda self, cells, bound: self.rule.refusal(self.names(cells, bound)))
    monkeypatch.setattr(Binder, "repeats", lambda self, cells: False)
    for graph, before in zip(graphs, remembered, strict=True):
        after = saturate(graph)
        assert (before.ops, before.attributes, before.rules) == (after.ops, after.attributes, after.rules)
        assert before.children.tolist() == after.children.tolist()
        assert before.report.fired == after.report.fired
