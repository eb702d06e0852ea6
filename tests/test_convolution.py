"""What the rules of convolutional nets reach together: blocks that become one convolution, merges that are refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from xrlflow.cost.base import bind
from xrlflow.cost.roofline import roofline
from xrlflow.egraph.graph import Graph, GraphBuilder, TensorType
from xrlflow.egraph.rules import families, rule_set
from xrlflow.egraph.rules.language import T, W
from xrlflow.egraph.saturate import saturate
from xrlflow.egraph.space import SearchSpace
from xrlflow.lowering.check import check_enodes
from xrlflow.lowering.instances import Instance
from xrlflow.policy.base import Budget, extractor

CONV = {"strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0), "group": 1}
SAME = {**CONV, "pads": (1, 1, 1, 1)}
POOL = {"kernel": (3, 3), "strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "ceil": 0, "include_pad": 0}
RULES = {r.name: r for r in rule_set()}


class Net(GraphBuilder):
    """A graph with seeded weights over one image."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.rng = np.random.default_rng(0)
        self.image = self.input("x", TensorType(shape, "float32"))

    def random(self, *shape: int, positive: bool = False) -> int:
        values = self.rng.uniform(0.5, 2, shape) if positive else self.rng.normal(size=shape)
        return self.weight(values.astype(np.float32))

    def conv(self, x: int, *kernel: int, bias: bool = False, **attributes: Any) -> int:
        operands = [self.random(*kernel), *([self.random(kernel[0])] if bias else [])]
        return self.op("Conv", x, *operands, **{**CONV, **attributes})

    def norm(self, x: int, channels: int) -> int:
        statistics = [*(self.random(channels) for _ in range(3)), self.random(channels, positive=True)]
        return self.op("BatchNormalization", x, *statistics, epsilon=1e-5)


def best(graph: Graph, device: str = "h200") -> tuple[Counter[str], SearchSpace]:
    """The operators of the cheapest graph that climbing finds, constants aside; every e-node is checked on the way."""
    space = saturate(graph, rule_set(without=["runtime"]))
    assert space.report.stop_reason == "saturated"
    report = check_enodes(space)
    assert not report.mismatches
    found = extractor("climb").extract(
        space, bind(roofline(device), space, 4.0), Budget(20, 2000), np.random.default_rng(0)
    )
    chosen = [space.ops[i] for i in space.selected(found.selection) if not space.const[space.node_class[i]]]
    return Counter(op for op in chosen if op not in ("Input", "Get", "Reshape")), space


def test_a_block_of_three_branches_becomes_one_convolution() -> None:
    """RepVGG: 3×3, 1×1 and the identity, each with batch normalisation, added."""
    net = Net(1, 4, 7, 6)
    branches = [
        net.norm(net.conv(net.image, 4, 4, 3, 3, pads=SAME["pads"]), 4),
        net.norm(net.conv(net.image, 4, 4, 1, 1), 4),
    ]
    total = net.op("Add", net.op("Add", *branches), net.image)
    assert best(net.build({"y": total}))[0] == {"Conv": 1}


def test_a_normalised_image_needs_no_normalising() -> None:
    net = Net(1, 3, 9, 9)
    mean, deviation = net.random(1, 3, 1, 1), net.random(1, 3, 1, 1, positive=True)
    y = net.op("Div", net.op("Sub", net.image, mean), deviation)
    assert best(net.build({"y": net.conv(y, 4, 3, 3, 3, strides=(2, 2))}))[0] == {"Conv": 1}


def test_padding_keeps_a_shift_out_of_the_convolution() -> None:
    """Of a padded convolution only the scale goes into the kernel: the padding is not shifted."""
    net = Net(1, 3, 9, 9)
    y = net.op("Add", net.op("Mul", net.image, net.random(3, 1, 1)), net.random(3, 1, 1))
    space = best(net.build({"y": net.conv(y, 4, 3, 3, 3, pads=SAME["pads"])}))[1]
    reason = "padding is not shifted, so near the edges less arrives"
    assert space.report.refused["shift-before-conv"][reason] >= 1
    assert "shift-before-conv" not in space.report.fired


def test_padding_and_norms_around_a_depthwise_convolution_fold() -> None:
    net = Net(1, 4, 7, 7)
    y = net.op("Pad", net.image, pads=(0, 0, 0, 0, 0, 0, 1, 1), value=0.0)
    y = net.norm(net.conv(y, 4, 1, 3, 3, strides=(2, 2), group=4), 4)
    y = net.norm(net.conv(y, 6, 4, 1, 1), 6)
    assert best(net.build({"y": y}))[0] == {"Conv": 2}


def test_the_pooled_branch_merges_with_its_siblings() -> None:
    """Inception: pooling behind the pointwise convolution leaves four convolutions of one image, which merge."""
    net = Net(1, 8, 6, 6)
    heads = [net.conv(net.image, n, 8, 1, 1, bias=True) for n in (3, 2, 2)]
    pooled = net.op("AveragePool", net.image, **POOL)
    ops, space = best(net.build({f"y{i}": y for i, y in enumerate((*heads, net.conv(pooled, 2, 8, 1, 1, bias=True)))}))
    assert ops == {"Conv": 1, "Split": 1, "AveragePool": 1}
    assert space.report.fired["biased-pointwise-conv-of-average-pool"] == 1


def test_a_transition_pools_before_it_convolves() -> None:
    """DenseNet: as many operators, but the convolution works on a quarter of the positions."""
    net = Net(1, 6, 8, 8)
    pool = {**POOL, "kernel": (2, 2), "strides": (2, 2), "pads": (0, 0, 0, 0)}
    y = net.op("AveragePool", net.conv(net.image, 3, 6, 1, 1), **pool)
    space = saturate(net.build({"y": y}))
    assert space.report.fired["average-pool-of-pointwise-conv"] == 1
    cost = bind(roofline("epyc-1t"), space)
    found = extractor("climb").extract(space, cost, Budget(5, 100), np.random.default_rng(0))
    assert found.cost < cost.prices[space.baseline].sum()


def test_stages_of_folding_do_not_multiply_merges() -> None:
    """Each sibling has four forms (bare, normalised, scaled, shifted); merging all with all takes 45 merges, not 13."""
    net = Net(1, 4, 6, 6)
    heads = []
    for n in (3, 2, 5):
        y = net.norm(net.conv(net.image, n, 4, 3, 3), n)
        y = net.op("Add", net.op("Mul", y, net.random(n, 1, 1)), net.random(n, 1, 1))
        heads.append(net.op("Relu", y))
    ops, space = best(net.build({f"y{i}": y for i, y in enumerate(heads)}))
    assert ops["Conv"] == 1
    assert space.report.fired["merge-sibling-biased-convs"] < 20


def test_transposes_around_pooled_pointwise_and_spatial_convolutions_vanish() -> None:
    """A net written with channels last, each operator between two transposes: none is left but those at the ends."""
    last, first = (0, 2, 3, 1), (0, 3, 1, 2)
    net = Net(2, 6, 5, 3)

    def first_and_back(op: str, x: int, *operands: int, **attributes: Any) -> int:
        y = net.op(op, net.op("Transpose", x, perm=first), *operands, **attributes)
        return net.op("Transpose", y, perm=last)

    y = first_and_back("Conv", net.image, net.random(4, 3, 3, 3), **SAME)
    y = net.op("Relu", net.op("Add", y, net.random(4)))
    y = first_and_back("MaxPool", y, **{k: v for k, v in POOL.items() if k != "include_pad"})
    y = first_and_back("Conv", y, net.random(5, 4, 1, 1), **CONV)
    y = net.op("ReduceMean", net.op("Relu", y), axes=(1, 2), keepdims=0)
    ops, _ = best(net.build({"y": y}))
    assert ops["Transpose"] <= 1


def test_patches_are_a_matrix_product() -> None:
    net = Net(2, 3, 8, 12)
    y = net.op("Reshape", net.conv(net.image, 5, 3, 4, 4, bias=True, strides=(4, 4)), shape=(2, 5, 6))
    space = best(net.build({"y": net.op("Transpose", y, perm=(0, 2, 1))}))[1]
    assert space.report.fired["biased-patches-as-matmul"] == 1
    assert "MatMul" in space.ops


# Merges of grouped convolutions: where groups would mix, the rules refuse


def naive(widths: tuple[int, int], outputs: tuple[int, int]) -> float:
    """What concatenating the kernels of concatenated images does, relative to the result: TASO's grouped merge."""
    rule = RULES["concat-of-convs"]
    example = {"x": T(1, widths[0], 5, 5), "y": T(1, widths[1], 5, 5), "w": W(outputs[0], widths[0], 3, 3),
               "v": W(outputs[1], widths[1], 3, 3), "a": CONV, "d": CONV}  # fmt: skip
    return Instance(rule, example).largest_difference()


def test_a_grouped_merge_needs_as_many_outputs_in_each_group() -> None:
    assert naive((2, 2), (4, 4)) < 1e-12
    assert 0.3 < naive((2, 2), (2, 4)) < 10
    assert naive((2, 3), (4, 4)) == float("inf")


def test_the_grouped_merge_is_refused_where_it_would_be_wrong() -> None:
    for outputs, wanted in (((4, 4), True), ((2, 4), False)):
        net = Net(1, 4, 5, 5)
        parts = net.op("Split", net.image, axis=1, sizes=(2, 2))
        halves = [net.conv(net.op("Get", parts, index=i), n, 2, 3, 3) for i, n in enumerate(outputs)]
        ops, space = best(net.build({"y": net.op("Concat", *halves, axis=1)}))
        assert (space.report.fired.get("concat-of-convs", 0) > 0) is wanted
        assert (ops == {"Conv": 1}) is wanted
        if not wanted:
            assert any("shift from group to group" in reason for reason in space.report.refused["concat-of-convs"])


def test_grouped_siblings_merge_with_their_outputs_put_in_order() -> None:
    """Concatenating the kernels of grouped siblings, as of others, gives outputs of the wrong groups."""
    example = {"x": T(1, 4, 5, 5), "w": W(2, 2, 3, 3), "v": W(4, 2, 3, 3), "a": {**CONV, "group": 2}}
    assert 0.3 < Instance(RULES["merge-sibling-convs"], example).largest_difference() < 10
    assert Instance(RULES["merge-sibling-grouped-convs"], example).largest_difference() < 1e-12
    net = Net(1, 4, 5, 5)
    heads = [net.conv(net.image, n, 2, 3, 3, group=2) for n in (2, 4)]
    assert best(net.build({"a": heads[0], "b": heads[1]}))[0] == {"Conv": 1, "Split": 1}


@pytest.mark.parametrize("padded", [True, False])
def test_small_kernels_grow_to_merge_where_their_padding_allows_it(padded: bool) -> None:
    """1×3 and 3×1 beside 3×3: with the padding that keeps extents all three become one convolution."""
    net = Net(1, 4, 7, 7)
    heads = [
        net.conv(net.image, 2, 4, k, m, pads=(k // 2, m // 2) * 2 if padded else (0,) * 4)
        for k, m in ((1, 3), (3, 1), (3, 3))
    ]
    ops, _ = best(net.build({f"y{i}": y for i, y in enumerate(heads)}))
    assert ops["Conv"] == (1 if padded else 3)


def test_the_families_are_of_one_noun_each() -> None:
    assert {"convolution", "kernels", "siblings", "patches", "pooling"} <= set(families())


def test_a_norm_behind_a_matrix_product_goes_into_it() -> None:
    net = Net(3, 5)
    y = net.norm(net.op("Gemm", net.image, net.random(5, 7), net.random(7), alpha=1.0, beta=1.0, transA=0, transB=0), 7)
    assert best(net.build({"y": y}))[0] == {"Gemm": 1}
