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


@pytest.mark.parametrize(("form", "scaled", "biased", "rank"), CASES)
def test_three_projections_become_one_product(form: str, scaled: str | None, biased: bool, rank: int) -> None:
    order = ORDERS[CASES.index((form, scaled, biased, rank)) % 6]
    assert products(projections(form, order, scaled, biased, rank)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("form", "scaled", "biased", "rank"), CASES)
def test_three_projections_become_one_product_in_every_order_of_weights(
    form: str, scaled: str | None, biased: bool, rank: int, order: str
) -> None:
    assert products(projections(form, order, scaled, biased, rank)) == 1
