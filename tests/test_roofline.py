"""The roofline's prices, and totals of selections."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest

from xrlflow.cost.base import Cost, CostModel, bind
from xrlflow.cost.devices import DEVICES
from xrlflow.cost.roofline import price, roofline
from xrlflow.egraph.graph import Graph, GraphBuilder, TensorType, attributes
from xrlflow.egraph.operators import infer
from xrlflow.egraph.space import IllegalSelection, SearchSpace, Selection
from xrlflow.errors import UserError

F32 = "float32"
CONV = {"strides": (1, 1), "dilations": (1, 1), "pads": (1, 1, 1, 1), "group": 1}


def cost_of(op, *shapes, dtype=F32, device="epyc-1t", **attrs):
    inputs = [TensorType(tuple(s), dtype) for s in shapes]
    frozen = attributes(**attrs)
    return price(DEVICES[device], op, frozen, inputs, infer(op, frozen, inputs))


def tiny(const_weight: bool = True) -> SearchSpace:
    """Two ways to Relu(x + x) @ w, with an unneeded class and a constant product, written by hand."""
    g = GraphBuilder()
    x = g.input("x", TensorType((64, 64), F32))
    w = g.weight(np.ones((64, 64), np.float32), "w")
    ww = g.op("MatMul", w, w)
    y = g.op("Add", x, x)
    two = g.op("Relu", x)
    z = g.op("MatMul", y, ww)
    graph = g.build({"z": z})
    ops = [n.op for n in graph.nodes] + ["Mul"]
    classes = [*range(len(graph.nodes)), y]
    kids = [n.inputs for n in graph.nodes] + [(x, two)]
    attrs = [n.attributes for n in graph.nodes] + [()]
    order = sorted(range(len(ops)), key=lambda i: (classes[i], i))
    const = np.array([n.op == "Weight" for n in graph.nodes])
    const[ww] = const_weight
    choice = np.full(len(graph.nodes), -1, np.int32)
    for c in graph.live:
        choice[c] = next(k for k, i in enumerate(order) if i == c)
    return SearchSpace(
        tuple(ops[i] for i in order), tuple(attrs[i] for i in order),
        np.array([classes[i] for i in order], np.int32),
        np.concatenate([[0], np.cumsum([len(kids[i]) for i in order])]).astype(np.int32),
        np.array([k for i in order for k in kids[i]], np.int32),
        tuple(n.type for n in graph.nodes), const, np.array(graph.outputs, np.int32),
        tuple(() for _ in order), tuple(n.names for n in graph.nodes), Selection(choice), choice[choice >= 0], graph,
    )  # fmt: skip


@pytest.mark.parametrize("device", sorted(DEVICES))
def test_a_larger_matmul_never_costs_less(device):
    costs = [cost_of("MatMul", (8, k), (k, n), device=device) for k, n in [(8, 8), (64, 64), (512, 512), (4096, 4096)]]
    assert costs == sorted(costs) and costs[-1] > costs[0]


@pytest.mark.parametrize("device", sorted(DEVICES))
def test_no_price_is_below_the_launch_or_the_peak(device):
    d = DEVICES[device]
    m = n = k = 2048
    t = cost_of("MatMul", (m, k), (k, n), device=device)
    assert t >= d.launch + 1e3 * 2 * m * n * k / d.matrix[F32] * 0.999
    assert cost_of("Relu", (1,), device=device) >= d.launch


def test_merging_two_matmuls_saves_a_launch_and_the_shared_operand():
    one = cost_of("MatMul", (64, 512), (512, 512))
    both = cost_of("MatMul", (64, 512), (512, 1024))
    assert both < 2 * one


def test_known_price_of_a_convolution():
    # 64 outputs of 3x3x64 over 56x56, on 96 GFLOP/s: compute bound.
    t = cost_of("Conv", (1, 64, 56, 56), (64, 64, 3, 3), **CONV)
    assert t == pytest.approx(0.002 + 1e3 * 2 * 64 * 64 * 9 * 56 * 56 / 96e9)


def test_a_grouped_convolution_pays_for_partly_filled_tiles_but_less_than_a_dense_one():
    dense = cost_of("Conv", (1, 128, 14, 14), (128, 128, 3, 3), **CONV)
    grouped = cost_of("Conv", (1, 128, 14, 14), (128, 4, 3, 3), **{**CONV, "group": 32})
    filled = cost_of("Conv", (1, 128, 14, 14), (128, 16, 3, 3), **{**CONV, "group": 8})
    assert dense / 32 < grouped < dense
    # eight times fewer FLOPs a group, yet only half of each tile is used
    assert grouped == pytest.approx(filled / 4 * 2, rel=0.1)


def test_depthwise_convolution_is_not_charged_for_tiles():
    d = DEVICES["epyc-1t"]
    t = cost_of("Conv", (1, 256, 56, 56), (256, 1, 3, 3), **{**CONV, "group": 256})
    assert t <= d.launch + 1e3 * (2 * 256 * 9 * 56 * 56 / d.matrix[F32] + 8 * 256 * 56 * 56 / d.bandwidth)


@pytest.mark.parametrize(
    ("op", "attrs"),
    [("Transpose", {"perm": (1, 0)}), ("Split", {"axis": 0, "sizes": (256, 256)}), ("Concat", {"axis": 0})],
)
def test_copies_pay_their_bytes(op, attrs):
    t = cost_of(op, (512, 512), **attrs)
    assert t == pytest.approx(0.002 + 1e3 * 2 * 512 * 512 * 4 / 20e9)


def test_a_slice_reads_only_what_it_keeps():
    keep = {"axes": (0,), "starts": (0,)}
    small = cost_of("Slice", (4096, 512), ends=(8,), **keep)
    large = cost_of("Slice", (8, 512), ends=(8,), **keep)
    assert small == large


def test_reshape_and_get_are_free():
    assert cost_of("Reshape", (64, 64), shape=(4096,)) == 0
    assert price(DEVICES["h200"], "Get", attributes(index=0), [], TensorType((4,), F32)) == 0


def test_half_precision_is_faster_where_the_device_has_it():
    shapes = (4096, 4096), (4096, 4096)
    assert cost_of("MatMul", *shapes, dtype="float16", device="h200") < cost_of("MatMul", *shapes, device="h200") / 5


def test_symbolic_extents_count_one():
    assert cost_of("Relu", ("batch", 4096)) == cost_of("Relu", (1, 4096))


def test_opaque_operators_have_a_price_and_opaque_views_none():
    t = TensorType((64, 64), F32)
    assert price(DEVICES["a100"], "::Clip", (), [t, TensorType(None, "absent")], t) > 0
    assert price(DEVICES["a100"], "::Squeeze", (), [t], t) == 0


def test_absent_operands_and_gather_tables_are_not_read():
    d = DEVICES["epyc-1t"]
    t = TensorType((1000, 64), F32)
    assert price(d, "::Clip", (), [t, TensorType(None, "absent")], t) == price(d, "::Clip", (), [t], t)
    ids, out = TensorType((2,), "int64"), TensorType((2, 64), F32)
    assert price(d, "::Gather", (), [t, ids], out) < price(d, "::Clip", (), [t], t)


def test_devices_are_ordered_by_generation():
    big = [cost_of("Add", (1 << 24,), (1 << 24,), device=d) for d in ("epyc-1t", "a100", "h100", "h200")]
    assert big == sorted(big, reverse=True) and len(set(big)) == 4


def test_unknown_device_is_a_user_error_that_lists_the_known_ones():
    with pytest.raises(UserError, match=r"a100.*h200"):
        roofline("tpu")


def test_the_roofline_is_a_cost_model_and_deterministic():
    model = roofline("h200")
    assert isinstance(model, CostModel) and model.name == "roofline:h200"
    space = tiny()
    assert np.array_equal(model.prices(space), roofline("h200").prices(space))


def test_total_is_the_sum_over_selected_enodes_and_constants_are_free():
    space = tiny()
    cost = bind(roofline("epyc-1t"), space)
    picked = [space.ops[i] for i in space.selected(space.original)]
    assert "MatMul" in picked and picked.count("MatMul") == 2
    by_hand = cost_of("Add", (64, 64), (64, 64)) + cost_of("MatMul", (64, 64), (64, 64))
    assert cost.total(space.original) == pytest.approx(by_hand)


def test_a_class_that_is_not_constant_is_paid():
    paid, free = bind(roofline("epyc-1t"), tiny(False)), bind(roofline("epyc-1t"), tiny(True))
    assert paid.total(paid.space.original) > free.total(free.space.original)


def test_total_of_a_raw_choice_ignores_unneeded_classes():
    space = tiny()
    cost = bind(roofline("epyc-1t"), space)
    every = np.array([space.class_ptr[c] for c in range(space.n_classes)], np.int32)
    assert cost.total(every) == cost.total(space.original) == cost.total(every.tolist())
    with pytest.raises(IllegalSelection):
        cost.total(np.full(space.n_classes, -1))


def test_switching_adds_and_removes_exactly_the_changed_enodes():
    space = tiny()
    cost = bind(roofline("epyc-1t"), space)
    mul = space.ops.index("Mul")
    other = np.array([space.class_ptr[c] for c in range(space.n_classes)], np.int32)
    other[space.node_class[mul]] = mul
    picked = space.selection(other)
    add, relu = space.ops.index("Add"), space.ops.index("Relu")
    change = cost.prices[mul] + cost.prices[relu] - cost.prices[add]
    assert cost.total(picked) - cost.total(space.original) == pytest.approx(change)


def test_weights_may_grow_only_within_the_limit():
    space = tiny()
    assert bind(roofline("epyc-1t"), space).legal(space.original)
    assert not bind(roofline("epyc-1t"), space, max_weight_growth=0.1).legal(space.original)
    cost = Cost(space, np.zeros(space.n_nodes), "zero")
    assert cost.weight_limit == pytest.approx(prod((64, 64)) * 4 * 1.05 + 1e4)


@pytest.mark.parametrize("bad", [-1.0, float("nan")])
def test_bind_refuses_senseless_prices(bad):
    class Broken:
        name = "broken"

        def prices(self, space):
            return np.full(space.n_nodes, bad)

    with pytest.raises(ValueError, match="broken"):
        bind(Broken(), tiny())


def test_an_enode_that_cannot_run_makes_its_selection_infinite():
    space = tiny()
    prices = np.zeros(space.n_nodes)
    prices[space.ops.index("Add")] = np.inf
    assert Cost(space, prices, "x").total(space.original) == np.inf


def test_graph_helper_is_what_it_claims():
    graph = tiny().graph
    assert isinstance(graph, Graph) and tiny().to_graph(tiny().original).count() == {"MatMul": 2, "Add": 1}
