"""Attention: fused from what exporters write, decomposed again, with repeated heads, scales and masks."""

from __future__ import annotations

import numpy as np
import pytest

from xrlflow.cost.base import bind
from xrlflow.cost.roofline import roofline
from xrlflow.egraph.graph import Graph, GraphBuilder, TensorType
from xrlflow.egraph.rules import rule_set
from xrlflow.egraph.saturate import saturate
from xrlflow.egraph.space import SearchSpace
from xrlflow.lowering.check import check_enodes
from xrlflow.policy.base import Budget, extractor

F = "float32"
BATCH, ROWS, KEYS, WIDE = 2, 5, 7, 8


def attention(
    heads: int = 4,
    groups: int = 4,
    scale: str = "scores",
    masked: bool = True,
    keys: str = "at-once",
    flat: bool = False,
) -> Graph:
    """Decomposed attention.

    scale: on the "scores", the "queries", or its root on "both" factors. keys: transposed "at-once", "swapped" as the
    last two axes, or "flattened" for it. flat: batches and heads are one axis of the products.
    """
    g = GraphBuilder()
    rows = g.input("x", TensorType((BATCH, ROWS, heads * WIDE), F))
    columns = [g.input(n, TensorType((BATCH, KEYS, groups * WIDE), F)) for n in ("k", "v")]

    def split(x: int, count: int, perm: tuple[int, ...] = (0, 2, 1, 3)) -> int:
        n = g.nodes[x].type.shape[1]  # type: ignore[union-attr, index]
        return g.op("Transpose", g.op("Reshape", x, shape=(BATCH, n, count, WIDE)), perm=perm)

    def repeated(x: int) -> int:
        if heads == groups:
            return x
        x = g.op("Reshape", x, shape=(BATCH, groups, 1, KEYS, WIDE))
        x = g.op("Expand", x, shape=(BATCH, groups, heads // groups, KEYS, WIDE))
        return g.op("Reshape", x, shape=(BATCH, heads, KEYS, WIDE))

    q, v = split(rows, heads), repeated(split(columns[1], groups))
    if keys == "at-once" and heads == groups:
        t = split(columns[0], groups, (0, 2, 3, 1))
    else:
        t = repeated(split(columns[0], groups))
        if keys == "flattened":
            t = g.op("Transpose", g.op("Reshape", t, shape=(BATCH * heads, KEYS, WIDE)), perm=(0, 2, 1))
            t = g.op("Reshape", t, shape=(BATCH, heads, WIDE, KEYS))
        else:
            t = g.op("Transpose", t, perm=(0, 1, 3, 2))
    number = g.weight(np.array(WIDE**-0.5 if scale != "both" else WIDE**-0.25, F))
    q = g.op("Mul", q, number) if scale in ("queries", "both") else q
    t = g.op("Mul", t, number) if scale == "both" else t
    if flat:
        q = g.op("Reshape", q, shape=(BATCH * heads, ROWS, WIDE))
        t = g.op("Reshape", t, shape=(BATCH * heads, WIDE, KEYS))
    p = g.op("MatMul", q, t)
    p = g.op("Reshape", p, shape=(BATCH, heads, ROWS, KEYS)) if flat else p
    p = g.op("Mul", p, number) if scale == "scores" else p
    p = g.op("Add", p, g.input("m", TensorType((BATCH, 1, ROWS, KEYS), F))) if masked else p
    y = g.op("MatMul", g.op("Softmax", p, axis=3), v)
    y = g.op("Reshape", g.op("Transpose", y, perm=(0, 2, 1, 3)), shape=(BATCH, ROWS, heads * WIDE))
    return g.build({"y": y})


def best(space: SearchSpace) -> list[str]:
    cost = bind(roofline("h200"), space, 1.05)
    selection = extractor("climb").extract(space, cost, Budget(10, 500), np.random.default_rng(0)).selection
    return [space.ops[i] for i in space.selected(selection) if not space.const[space.node_class[i]]]


PLAIN = rule_set(["elementwise", "layout", "transpose", "reshape", "matmul", "attention"])
WITHOUT_FUSED = [r for r in PLAIN if "Attention" not in r.introduces]
CASES = [
    (4, 4, "scores", True, "at-once", False),
    (4, 4, "scores", False, "swapped", False),
    (4, 4, "queries", True, "swapped", False),
    (4, 4, "both", True, "flattened", False),
    (4, 4, "scores", True, "swapped", True),
    (6, 2, "scores", True, "swapped", False),
    (6, 2, "both", False, "flattened", False),
    (6, 3, "queries", True, "swapped", False),
]


@pytest.mark.parametrize("case", CASES)
def test_decomposed_attention_is_one_operator(case: tuple[int, int, str, bool, str, bool]) -> None:
    space = saturate(attention(*case), PLAIN)
    assert space.report.stop_reason == "saturated"
    ops = best(space)
    assert ops.count("Attention") == 1
    assert not {"MatMul", "Softmax", "Mul", "Add", "Expand"} & set(ops)
    # of queries, keys and values, and of the result: no transpose is left but those that part the heads
    assert ops.count("Transpose") == 4
    assert any(
        _scale(space, i) == pytest.approx(WIDE**-0.5) for i in range(space.n_nodes) if space.ops[i] == "Attention"
    )


def _scale(space: SearchSpace, i: int) -> float:
    return float(dict(space.attributes[i])["scale"])  # type: ignore[arg-type]


@pytest.mark.parametrize("case", CASES)
def test_scales_meet_and_transposes_cancel_without_the_fused_operator(
    case: tuple[int, int, str, bool, str, bool],
) -> None:
    ops = best(saturate(attention(*case), WITHOUT_FUSED))
    assert ops.count("Mul") == 1
    assert ops.count("Transpose") == 4
    assert "Expand" not in ops


@pytest.mark.parametrize("case", CASES)
def test_every_enode_of_attention_computes_its_class(case: tuple[int, int, str, bool, str, bool]) -> None:
    report = check_enodes(saturate(attention(*case), PLAIN))
    assert report.checked > 0
    assert report.mismatches == []


@pytest.mark.parametrize("groups", [2, 6])
def test_attention_is_decomposed_again(groups: int) -> None:
    """A model that comes with Attention reaches everything that the plain form reaches."""
    g = GraphBuilder()
    q = g.input("q", TensorType((1, 6, 5, 8), F))
    k, v = (g.input(n, TensorType((1, groups, 7, 8), F)) for n in "kv")
    y = g.op("Attention", q, k, v, scale=0.125, causal=0)
    space = saturate(g.build({"y": y}), PLAIN)
    assert space.report.stop_reason == "saturated"
    shapes = [space.node_type(i).shape for i in range(space.n_nodes) if space.ops[i] == "MatMul"]  # type: ignore[union-attr]
    assert (1, 6, 5, 7) in shapes
    assert ((1, 2, 15, 7) in shapes) == (groups == 2), "queries of one group are rows of one product"
    assert check_enodes(space).mismatches == []


def test_attention_over_symbolic_extents() -> None:
    g = GraphBuilder()
    q, k, v = (g.input(n, TensorType(("batch", 4, "sequence", 8), F)) for n in "qkv")
    p = g.op("MatMul", q, g.op("Transpose", k, perm=(0, 1, 3, 2)))
    m = g.input("m", TensorType(("batch", 1, 1, "sequence"), F))
    y = g.op("MatMul", g.op("Softmax", g.op("Add", p, m), axis=3), v)
    assert "Attention" in best(saturate(g.build({"y": y}), PLAIN))


def test_a_mask_of_another_shape_is_refused() -> None:
    """Broadcast along the keys, it would be padded by the operator and not repeated."""
    g = GraphBuilder()
    q, k, v = (g.input(n, TensorType((1, 4, 5, 8), F)) for n in "qkv")
    p = g.op("MatMul", q, g.op("Transpose", k, perm=(0, 1, 3, 2)))
    y = g.op("MatMul", g.op("Softmax", g.op("Add", p, g.input("m", TensorType((1, 1, 5, 1), F))), axis=3), v)
    assert "Attention" not in saturate(g.build({"y": y}), PLAIN).ops
