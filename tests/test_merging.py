"""Projections of one input merge, however an exporter writes them and in whatever order the model keeps its weights."""

from __future__ import annotations

from itertools import permutations

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
WIDTH = {"q": 6, "k": 6, "v": 10}
FORMS = ("sum", "gemm", "gemm-transposed", "transposed")
SCALES = (None, "q-before-bias", "q-after-bias", "k-after-bias")
PRODUCTS = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm")


def projections(
    form: str, order: str, scaled: str | None = None, biased: bool = True, rank: int = 3, dtype: str = F
) -> Graph:
    """Queries, keys and values of one input, with the weights made in this order."""
    rng = np.random.default_rng(0)
    g = GraphBuilder()
    rows = 7 if form.startswith("gemm") or rank == 2 else 0
    x = g.input("x", TensorType((7, 8) if rank == 2 else (1, 7, 8), dtype))
    flat = g.op("Reshape", x, shape=(7, 8)) if rows and rank == 3 else x
    weights, biases = {}, {}
    for name in order:
        n = WIDTH[name]
        shape = (n, 8) if "transposed" in form else (8, n)
        weights[name] = g.weight(rng.normal(size=shape).astype(dtype))
        biases[name] = g.weight(rng.normal(size=n).astype(dtype))
    scale = g.weight(np.array(0.25, dtype))
    outputs = {}
    for name in "qkv":
        w, b = weights[name], biases[name]
        mine = scaled is not None and scaled.startswith(name)
        if form.startswith("gemm") and scaled != f"{name}-before-bias":
            attrs = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": int(form == "gemm-transposed")}
            y = g.op("Gemm", flat, w, *([b] if biased else []), **attrs)
        else:
            y = g.op("MatMul", flat, g.op("Transpose", w, perm=(1, 0)) if "transposed" in form else w)
            if scaled == f"{name}-before-bias":
                y, mine = g.op("Mul", y, scale), False
            y = g.op("Add", y, b) if biased else y
        y = g.op("Mul", y, scale) if mine else y
        outputs[name] = g.op("Reshape", y, shape=(7, 2, WIDTH[name] // 2))
    return g.build(outputs)


def best(space: SearchSpace) -> list[str]:
    """Operators of the roofline-best graph, those on constants left out."""
    cost = bind(roofline("h200"), space, 1.05)
    selection = extractor("climb").extract(space, cost, Budget(10, 500), np.random.default_rng(0)).selection
    return [space.ops[i] for i in space.selected(selection) if not space.const[space.node_class[i]]]


def products(graph: Graph) -> int:
    space = saturate(graph)
    assert space.report.stop_reason == "saturated"
    return sum(op in PRODUCTS for op in best(space))


ORDERS = ["".join(p) for p in permutations("qkv")]
CASES = [
    (form, scaled, biased, rank)
    for form in FORMS
    for scaled in SCALES
    for biased in (True, False)
    for rank in (2, 3)
    if biased or scaled != "q-before-bias"
]
FEW = [(form, scaled, (i + j) % 3 > 0 or scaled == "q-before-bias", 2 + (i + j) % 2)
       for i, form in enumerate(FORMS) for j, scaled in enumerate(SCALES)]  # fmt: skip


@pytest.mark.parametrize(("form", "scaled", "biased", "rank"), FEW)
def test_three_projections_become_one_product(form: str, scaled: str | None, biased: bool, rank: int) -> None:
    order = ORDERS[FEW.index((form, scaled, biased, rank)) % 6]
    assert products(projections(form, order, scaled, biased, rank)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("form", "scaled", "biased", "rank"), CASES)
def test_three_projections_become_one_product_in_every_order_of_weights(
    form: str, scaled: str | None, biased: bool, rank: int, order: str
) -> None:
    assert products(projections(form, order, scaled, biased, rank)) == 1


def test_a_scale_is_no_obstacle_in_a_narrow_type_where_it_stays_behind_the_product() -> None:
    """Moving a scale into a weight may leave float16's range, so it is not done; the siblings merge all the same."""
    ops = best(saturate(projections("sum", "kqv", "q-after-bias", dtype="float16")))
    assert sum(op in PRODUCTS for op in ops) == 1
    assert "Mul" in ops


def test_a_projection_without_bias_merges_with_biased_ones() -> None:
    """As in Whisper, where keys have no bias."""
    g, rng = GraphBuilder(), np.random.default_rng(0)
    x = g.input("x", TensorType((1, 7, 8), F))
    outputs = {}
    for name in "qkv":
        y = g.op("MatMul", x, g.weight(rng.normal(size=(8, 6)).astype(F)))
        y = y if name == "k" else g.op("Add", y, g.weight(rng.normal(size=6).astype(F)))
        outputs[name] = g.op("Reshape", y, shape=(7, 2, 3))
    ops = best(saturate(g.build(outputs)))
    assert sum(op in PRODUCTS for op in ops) == 1
    assert ops.count("Add") == 0


def test_forms_of_one_weight_do_not_multiply_merges() -> None:
    """A scale that folds gives each weight a second form: the merges stay those of one form after the other."""
    g, rng = GraphBuilder(), np.random.default_rng(0)
    x, scale = g.input("x", TensorType((7, 8), F)), g.weight(rng.uniform(1, 2, 8).astype(F))
    scaled = g.op("Mul", x, scale)
    ys = {f"y{i}": g.op("MatMul", scaled, g.weight(rng.normal(size=(8, 3 + i)).astype(F))) for i in range(4)}
    space = saturate(g.build(ys))
    assert space.report.stop_reason == "saturated"
    assert space.report.fired["merge-sibling-matmuls"] <= 3 * 6


def test_queries_and_keys_are_turned_together() -> None:
    """A rotary embedding, written out, works on queries and keys at once once their products are one."""
    g, rng = GraphBuilder(), np.random.default_rng(0)
    x = g.input("x", TensorType((1, 7, 16), F))
    cos, sin = (g.input(n, TensorType((1, 1, 7, 8), F)) for n in ("cos", "sin"))
    outputs = {}
    for name, heads in (("q", 4), ("k", 2), ("v", 2)):
        y = g.op("MatMul", x, g.weight(rng.normal(size=(16, 8 * heads)).astype(F)))
        y = g.op("Transpose", g.op("Reshape", y, shape=(1, 7, heads, 8)), perm=(0, 2, 1, 3))
        if name != "v":
            low = g.op("Slice", y, axes=(3,), starts=(0,), ends=(4,))
            high = g.op("Slice", y, axes=(3,), starts=(4,), ends=(8,))
            turned = g.op("Concat", g.op("Neg", high), low, axis=3)
            y = g.op("Add", g.op("Mul", y, cos), g.op("Mul", turned, sin))
        outputs[name] = y
    space = saturate(g.build(outputs), rule_set(without=["rotary"]))
    ops = best(space)
    assert ops.count("Mul") == 2
    assert ops.count("Neg") == 1
    assert sum(op in PRODUCTS for op in ops) <= 2  # values beside: as many launches whether they merge as well or not
    assert not check_enodes(space).mismatches


def test_gemm_becomes_a_sum_and_a_sum_a_gemm_but_not_back_again() -> None:
    """The 2-D twin of a product would be merged, transposed and folded a second time."""
    space = saturate(projections("sum", "qkv"))
    flat = [i for i in range(space.n_nodes) if space.ops[i] == "MatMul" and len(space.node_type(i).shape) == 2]  # type: ignore[union-attr, arg-type]
    assert not flat
    assert any(op == "Gemm" for op in space.ops)


@pytest.mark.parametrize("form", FORMS)
def test_every_enode_of_merged_projections_computes_its_class(form: str) -> None:
    report = check_enodes(saturate(projections(form, "vqk", "k-after-bias")))
    assert report.checked > 0
    assert report.mismatches == []
