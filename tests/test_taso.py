"""TASO's generated substitutions: which hold, and that what holds is reached by the rules here."""

from __future__ import annotations

import numpy as np
import pytest
from taso import Sides, Substitution, read, sides_of, substitutions
from taso_rules import Verdict, examine

from xrlflow.egraph.graph import GraphBuilder, TensorType, Weight
from xrlflow.egraph.rules import rule_set
from xrlflow.egraph.saturate import saturate
from xrlflow.lowering import evaluate

EVERY = substitutions()
BY_NAME = {s.name: s for s in EVERY}
VOID = {"32", "33", "34", "35", "53", "54", "55", "56", "86", "87", "99", "100", "101", "102"}
REPEATS = {"85": "70", "98": "91", "118": "92", "119": "93"}
IDENTICAL = {"63", "64"}
GUARDED = {"92", "93"}
ONLY_EQUAL = {"59", "61"}
"""These pay where the kernels of a convolution are computed, and there only."""
ORDER = {str(i) for i in (*range(23, 31), *range(41, 45), 38, 39, 45, 46, 48, 49, 50, 51, 52)}
"""Both sides are one sum or product (once common factors are taken out) in another order."""


def verdict(substitution: Substitution) -> Verdict:
    return examine(substitution, EVERY[: EVERY.index(substitution)], rule_set())


def test_the_files_hold_all_that_taso_generated() -> None:
    assert sum(len(s.lefts) == 1 for s in EVERY) == 120
    assert sum(len(s.lefts) == 2 for s in EVERY) == 7


@pytest.mark.parametrize("substitution", EVERY, ids=lambda s: s.name)
def test_what_holds_is_reached(substitution: Substitution) -> None:
    v = verdict(substitution)
    name = substitution.name
    if name in VOID:
        assert v.kind == "void"
    elif name in REPEATS:
        assert (v.kind, v.same) == ("repeat", REPEATS[name])
    elif name in IDENTICAL:
        assert v.kind == "identical"
    else:
        assert v.kind == ("guarded" if name in GUARDED else "sound")
        assert v.found in (("equal up to order",) if name in ORDER else ("found", "equal"))
        assert not v.pays or v.found == "found" or name in ONLY_EQUAL, "what can pay is found from the left side alone"


def test_without_its_rules_a_substitution_is_missed() -> None:
    rules = rule_set(without=["matmul", "batches", "merging"])
    assert examine(BY_NAME["22"], [], rules).found == "missing"
    assert examine(BY_NAME["m3"], [], rules).found == "missing"


def test_a_wrong_substitution_is_seen_to_be_wrong() -> None:
    left, right = read("(relu (ewadd ?a ?b))"), read("(ewadd (relu ?a) (relu ?b))")
    assert examine(Substitution("wrong", (left,), (right,)), [], rule_set()).kind == "unsound"


def grouped(widths: tuple[int, int], outputs: tuple[int, int]) -> tuple[float, bool, dict[str, int]]:
    """The grouped merge of two convolutions side by side: its error, and whether a rule made it, else why not."""
    b, rng = GraphBuilder(), np.random.default_rng(0)
    a = {"strides": (1, 1), "dilations": (1, 1), "pads": (1, 1, 1, 1)}
    images = [rng.standard_normal((1, c, 5, 5)) for c in widths]
    kernels = [rng.standard_normal((o, widths[0], 3, 3)).astype(np.float32) for o in outputs]
    xs = [b.input(f"x{i}", TensorType(x.shape, "float32")) for i, x in enumerate(images)]
    ws = [b.weight(Weight.of(w, f"w{i}")) for i, w in enumerate(kernels)]
    parts = [b.op("Conv", x, w, group=c // widths[0], **a) for x, w, c in zip(xs, ws, widths, strict=True)]
    graph = b.build({"y": b.op("Concat", *parts, axis=1)})
    joined, stacked = b.op("Concat", *xs, axis=1), b.op("Concat", *ws, axis=0)
    group = sum(widths) // widths[0]
    both = b.build({"y": graph.outputs[0], "z": b.op("Conv", joined, stacked, group=group, **a)})
    y, z = evaluate(both, {f"x{i}": x for i, x in enumerate(images)})
    space = saturate(graph)
    merged = any(
        op == "Conv" and dict(attrs)["group"] == group for op, attrs in zip(space.ops, space.attributes, strict=True)
    )
    refused = space.report.refused.get("concat-of-convs", {})
    return float(np.abs(y - z).max() / np.abs(y).max()), merged, dict(refused)


def test_grouped_merge_with_equal_groups_is_made() -> None:
    error, merged, _ = grouped((2, 2), (3, 3))
    assert error < 1e-12
    assert merged


def test_grouped_merge_with_unequal_outputs_is_refused_by_name() -> None:
    error, merged, refused = grouped((2, 2), (2, 4))
    assert error > 0.5, "what TASO's substitution does here is wrong"
    assert not merged
    assert any("outputs" in reason for reason in refused)


@pytest.mark.parametrize("name", sorted(GUARDED))
def test_grouped_substitutions_hold_at_equal_groups_only(name: str) -> None:
    def alike(sides: Sides) -> bool:
        outputs = {sides.extent(sides.shapes.shapes[n][0]) for n in ("input_10", "input_11")}
        return len(outputs) == 1

    errors = [(alike(s), s.error()) for s in sides_of(BY_NAME[name], ())]
    assert {good for good, _ in errors} == {True, False}
    assert all((error < 1e-12) == good for good, error in errors)


def tower_pair(levels: int) -> GraphBuilder:
    """Two inputs through the same stack of weights, and a third, of the second's result."""
    b, rng = GraphBuilder(), np.random.default_rng(1)
    ws = [b.weight(Weight.of(rng.standard_normal((6, 6)).astype(np.float32), f"w{i}")) for i in range(levels)]
    for name in ("x", "y"):
        h = b.input(name, TensorType((3, 6), "float32"))
        for w in ws:
            h = b.op("Relu", b.op("MatMul", h, w))
        b.names = [*getattr(b, "names", []), h]  # type: ignore[attr-defined]
    return b


def test_towers_that_share_weights_merge_level_by_level() -> None:
    b = tower_pair(3)
    first, second = b.names  # type: ignore[attr-defined]
    space = saturate(b.build({"a": first, "b": second}))
    batched = [i for i in range(space.n_nodes) if space.ops[i] == "MatMul" and space.node_type(i).shape == (6, 6)]
    assert len(batched) >= 3
    assert space.report.stop_reason == "saturated"


def test_products_that_need_each_other_do_not_merge() -> None:
    b = GraphBuilder()
    w = b.weight(Weight.of(np.random.default_rng(2).standard_normal((6, 6)).astype(np.float32), "w"))
    first = b.op("MatMul", b.input("x", TensorType((3, 6), "float32")), w)
    second = b.op("MatMul", b.op("Relu", first), w)
    space = saturate(b.build({"y": second}))
    assert "merge-matmuls-of-one-weight" not in space.report.fired


def test_steps_of_a_recurrence_merge_in_runs_of_eight() -> None:
    b, rng = GraphBuilder(), np.random.default_rng(3)
    w = b.weight(Weight.of(rng.standard_normal((4, 4)).astype(np.float32), "w"))
    ys = {f"y{i}": b.op("MatMul", b.input(f"x{i}", TensorType((1, 4), "float32")), w) for i in range(20)}
    space = saturate(b.build(ys), rule_set(["batches", "geometry"]))
    assert space.report.fired["merge-matmuls-of-one-weight"] == 7 + 7 + 3
    assert space.report.stop_reason == "saturated"
