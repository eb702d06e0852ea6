"""The fusion cost of a target: kernels are timed once, as they are fused, and only those that a search asks for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from xrlflow.cost import bench
from xrlflow.cost.base import bind
from xrlflow.cost.database import Database
from xrlflow.cost.fused import FusedKernels, Timings, copies_of, pressure
from xrlflow.cost.fusion import FusionCost
from xrlflow.cost.references import REFERENCES
from xrlflow.cost.target import Target
from xrlflow.cost.worker import WorkerDied, WorkerTimeout
from xrlflow.egraph.graph import Graph, GraphBuilder, TensorType, Weight
from xrlflow.egraph.saturate import saturate
from xrlflow.egraph.space import SearchSpace
from xrlflow.lowering.cluster import cluster_model, cluster_of
from xrlflow.lowering.spread import Spread
from xrlflow.policy.base import Budget, extractor
from xrlflow.pricing import refine

LLVM = Target("llvm")


def branches() -> Graph:
    """Two products of one operand with activations, which can be merged, and a transpose that is not needed."""
    rng = np.random.default_rng(0)
    g = GraphBuilder()
    x = g.input("x", TensorType((16, 32), "float32"))
    w = [g.weight(Weight.of(rng.standard_normal((32, 24)).astype(np.float32), f"w{k}")) for k in range(2)]
    y = [g.op("Relu", g.op("MatMul", x, k)) for k in w]
    z = g.op("Add", *y)
    return g.build({"z": g.op("Transpose", g.op("Transpose", z, perm=(1, 0)), perm=(1, 0))})


@pytest.fixture
def space() -> SearchSpace:
    return saturate(branches())


class Clock:
    """A worker that says how long each kernel took instead of running it. calls: the operators of each model."""

    def __init__(self, ms: Any) -> None:
        self.ms = ms
        self.calls: list[list[str]] = []
        self.ready: dict[str, float] = {}
        self.batches: list[list[str]] = []

    def call(self, function: str, *args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        if function.endswith("time_kernels"):
            ready, self.ready = self.ready, {}
            self.batches.append([key for key in ready if key not in REFERENCES])
            return {key: [9 * ms, ms, ms, 0.9 * ms] for key, ms in ready.items()}
        if not function.endswith("prepare_kernel"):
            return None
        key, data = args[:2]
        ops = [n.op_type for n in onnx.load_model_from_string(data).graph.node]
        ms = 1.0 if key in REFERENCES else self.ms(ops)
        if key not in REFERENCES:
            self.calls.append(ops)
        if isinstance(ms, Exception):
            self.ready = {}  # what was ready went with the process
            raise ms
        self.ready[key] = ms
        return {"ms": ms}


def fused(folder: Path, clock: Clock, space: SearchSpace, seconds: float = 60.0) -> FusionCost:
    cost = bind(FusedKernels(LLVM, Database(folder), 0, seconds, worker=clock), space)  # type: ignore[arg-type]
    assert isinstance(cost, FusionCost)
    return cost


def test_the_kernels_of_the_input_are_timed_as_they_are_fused(space: SearchSpace, tmp_path: Path) -> None:
    clock = Clock(lambda ops: 1.0 if "MatMul" in ops else 0.25)
    cost = fused(tmp_path, clock, space)
    # the two products are one kernel each, of different operators; the transposes are what the input alone has
    assert sorted(clock.calls) == [["MatMul", "Relu"], ["MatMul", "Relu", "Add"], ["Transpose", "Transpose"]]
    assert cost.total(space.original) == pytest.approx(2.0)
    assert cost.before == pytest.approx(2.25)


def test_a_second_run_times_nothing_and_says_the_same(space: SearchSpace, tmp_path: Path) -> None:
    def search(clock: Clock) -> tuple[float, Any]:
        cost = fused(tmp_path, clock, space)
        refine(cost, 60.0)
        found = extractor("climb").extract(space, cost, Budget(None, 500), np.random.default_rng(0))
        return found.cost, found.selection

    first, second = Clock(lambda ops: 0.1 * len(ops)), Clock(lambda ops: pytest.fail("was timed again"))
    assert search(first) == search(second)
    assert first.calls and not second.calls


def test_only_what_a_search_asks_for_is_timed_and_the_choice_hangs_on_it(space: SearchSpace, tmp_path: Path) -> None:
    """The merged product is slow here, so what the roofline promised is found to be no gain."""
    clock = Clock(lambda ops: 5.0 if "Split" in ops or ops == ["MatMul"] else 1.0)
    cost = fused(tmp_path, clock, space)
    refine(cost, 60.0)
    found = extractor("climb").extract(space, cost, Budget(None, 500), np.random.default_rng(0))
    assert found.cost == pytest.approx(2.0)
    assert len(clock.calls) < 8 < space.n_nodes


def test_finalists_are_timed_once_more_together(space: SearchSpace, tmp_path: Path) -> None:
    """The merged product looked fast for a moment; beside the others it is slow, which is what counts and is kept."""
    seen: list[list[str]] = []
    own = {("MatMul", "Relu", "Add"): 10.0, ("MatMul", "Relu"): 1.0, ("Transpose", "Transpose"): 1.0}

    def ms(ops: list[str]) -> float:
        again = ops in seen
        seen.append(ops)
        return own.get(tuple(ops), 20.0 if again else 0.1)

    clock = Clock(ms)
    cost = fused(tmp_path, clock, space)
    refine(cost, 60.0)
    found = extractor("climb").extract(space, cost, Budget(None, 500), np.random.default_rng(0))
    assert found.cost == pytest.approx(11.0)
    # once more in one batch: the kernels of the input, and of what had been found
    assert any(set(clock.batches[0]) < set(batch) for batch in clock.batches[1:])
    asked = len(clock.calls)
    second = Clock(lambda ops: pytest.fail("was timed again"))
    again = fused(tmp_path, second, space)
    refine(again, 60.0)
    assert again.total(found.selection) == found.cost and not second.calls and asked > 3


@pytest.mark.parametrize("failure", [WorkerDied("SIGSEGV"), WorkerTimeout("hung"), WorkerDied("SIGKILL")])
def test_a_crash_costs_one_kernel_and_is_remembered(failure: Exception, space: SearchSpace, tmp_path: Path) -> None:
    """The candidates that need the kernel are not chosen, now or in the next run, and the search goes on."""
    failed = []
    for _ in range(2):
        clock = Clock(lambda ops: failure if "Split" in ops else 0.1 * len(ops))
        cost = fused(tmp_path, clock, space)
        refine(cost, 60.0)
        found = extractor("climb").extract(space, cost, Budget(None, 500), np.random.default_rng(0))
        assert found.cost == pytest.approx(0.5)
        failed.append(sum("Split" in ops for ops in clock.calls))
    assert failed[0] > 0 == failed[1]


def test_what_was_not_timed_is_estimated_from_kernels_of_its_kind() -> None:
    t = Timings()
    for n, (kind, rough, ms) in enumerate([("Conv", 1, 2), ("Conv", 2, 4), ("Conv", 3, 9), ("pointwise", 1, 0.5)]):
        t.known[str(n)], t.roofline[str(n)], t.kind[str(n)] = ms, rough, kind
    assert t.factors() == {"": 2.0, "Conv": 2.0}
    assert t.error == pytest.approx((1 / 3 + 1 / 4) / 2, abs=0.2)


def test_weights_are_as_cold_as_in_the_model(tmp_path: Path) -> None:
    """In copies that together read what the model reads; a kernel without weights is timed alone."""
    assert [pressure(w * 2**20) for w in (0, 1, 2, 3, 4.2, 20, 64, 1000)] == [1, 1, 2, 3, 4, 23, 64, 64]
    assert [copies_of(c, 4) for c in (100, 2**14, 2**20, 2**22, 2**30)] == [1, 32, 4, 1, 1]
    rng = np.random.default_rng(0)
    g = GraphBuilder()
    x = g.input("x", TensorType((4, 256), "float32"))
    for k in range(8):
        x = g.op("MatMul", x, g.weight(Weight.of(rng.standard_normal((256, 256)).astype(np.float32), f"w{k}")))
    found = saturate(g.build({"y": g.op("Softmax", x, axis=1)}), [])
    clock = Clock(lambda ops: 1.0 * len(ops))
    cost = fused(tmp_path, clock, found)
    assert sorted(map(len, clock.calls)) == [1, 8]  # one softmax; one kind of product, eight times with other weights
    assert cost.total(found.original) == pytest.approx(9.0)


def test_no_more_time_is_taken_than_was_given(space: SearchSpace, tmp_path: Path) -> None:
    clock = Clock(lambda ops: time.sleep(0.2) or 1.0)  # type: ignore[func-returns-value]
    start = time.monotonic()
    cost = fused(tmp_path, clock, space, seconds=0.3)
    assert time.monotonic() - start < 2.0
    assert 1 <= len(clock.calls) <= 2
    assert cost.model.coverage.estimated >= 1  # type: ignore[attr-defined]


# Kernels as models


def test_a_cluster_has_one_key_for_what_takes_the_same_time(space: SearchSpace) -> None:
    relus = [i for i in range(space.n_nodes) if space.ops[i] == "Relu" and not space.rules[i]]
    pairs = [(int(space.original.choice[space.child_lists[i][0]]), i) for i in relus]
    first, second = (cluster_of(space, pair) for pair in pairs[:2])
    assert first.key == second.key and first.label == "MatMul+Relu"
    assert cluster_of(space, pairs[0][1:]).key != first.key


def test_numbers_are_those_of_the_model() -> None:
    """How long erf takes depends on what it is of, so kernels that divide by √2 are not timed dividing by 0.1."""
    g = GraphBuilder()
    x = g.input("x", TensorType((4, 6), "float32"))
    root = g.weight(np.array(np.sqrt(2.0), np.float32))
    space = saturate(g.build({"y": g.op("Erf", g.op("Div", x, root)), "z": g.op("Mul", x, g.weight(np.ones(6, "f4")))}))
    erf = next(i for i in range(space.n_nodes) if space.ops[i] == "Erf")
    forms = [i for i in space.nodes_of(space.child_lists[erf][0]) if space.ops[i] in ("Div", "Mul")]
    assert {space.ops[i] for i in forms} == {"Div", "Mul"}
    for i in forms:
        cluster = cluster_of(space, [i, erf])
        (number,) = [n for n in cluster.numbers if n is not None]
        assert number == pytest.approx(np.sqrt(2.0) if space.ops[i] == "Div" else np.sqrt(0.5))
        (weight,) = cluster_model(cluster, space).graph.initializer
        assert onnx.numpy_helper.to_array(weight) == pytest.approx(number)
    vector = next(i for i in range(space.n_nodes) if space.ops[i] == "Mul" and i not in forms)
    assert cluster_of(space, [vector]).numbers == (None, None)


def test_constants_are_of_the_size_that_the_model_has_where_time_depends_on_it() -> None:
    """A product whose results reach erf is timed on weights like the model's, also on ones that rules made of them."""
    rng = np.random.default_rng(0)
    g = GraphBuilder()
    x = g.input("x", TensorType((4, 64), "float32"))
    w = [g.weight(Weight.of((s * rng.standard_normal((64, 32))).astype("f4"), f"w{s}")) for s in (0.02, 0.5)]
    turned = g.op("Transpose", g.weight(Weight.of(rng.standard_normal((32, 64)).astype("f4"))), perm=(1, 0))
    halved = g.op("Div", w[1], g.weight(np.array(2.0, "f4")))
    products = [g.op("MatMul", x, k) for k in (*w, turned, halved)]
    space = saturate(g.build({f"y{k}": g.op("Erf", p) for k, p in enumerate(products)}), [])
    found = {}
    for i in range(space.n_nodes):
        if space.ops[i] == "Erf":
            product = space.nodes_of(space.child_lists[i][0])[0]
            cluster = cluster_of(space, [product, i])
            (spread,) = [s for s in cluster.spreads if s is not None]
            found[round(spread.deviation, 2)] = cluster
            (weight,) = cluster_model(cluster, space).graph.initializer
            assert onnx.numpy_helper.to_array(weight).std() == pytest.approx(spread.deviation, rel=0.1)
    assert sorted(found) == pytest.approx([0.02, 0.25, 0.5, 1.0], abs=0.02)
    assert len({c.key for c in found.values()}) == 4
    # the like weights of other layers make no other kernel
    assert str(Spread(0.002, 0.5, -1.5)) == str(Spread(-0.0101, 0.53, -1.7)) != str(Spread(0.5, 0.5, -1.5))
    # where no operator's time depends on its argument, sizes make no other kernel
    keys = {cluster_of(space, [i]).key for i in range(space.n_nodes) if space.ops[i] == "MatMul"}
    assert len(keys) == 1


def test_a_part_of_a_tuple_that_is_computed_elsewhere_is_an_input() -> None:
    g = GraphBuilder()
    s = g.op("Split", g.input("x", TensorType((4, 6), "float32")), axis=1, sizes=(2, 4))
    space = saturate(g.build({"y": g.op("Relu", g.get(s, 0)), "z": g.get(s, 1)}), [])
    by_op = {space.ops[i]: i for i in range(space.n_nodes)}
    part = next(i for i in range(space.n_nodes) if space.ops[i] == "Get" and space.attrs(i)["index"] == 0)
    alone = cluster_of(space, [part, by_op["Relu"]])
    assert [str(t) for t in alone.inputs] == ["float32[4,2]"]
    whole = cluster_of(space, [by_op["Split"], part, by_op["Relu"]])
    model = cluster_model(whole, space)
    assert [n.op_type for n in model.graph.node] == ["Split", "Relu"]
    onnx.checker.check_model(model, full_check=True)


def test_a_kernel_that_tvm_compiles_and_times(space: SearchSpace, tmp_path: Path) -> None:
    cost = bind(FusedKernels(LLVM, Database(tmp_path), 0, 60.0), space)
    assert isinstance(cost, FusionCost)
    assert cost.model.coverage.measured == 3 and cost.model.coverage.failed == 0  # type: ignore[attr-defined]
    assert 0 < cost.total(space.original) < cost.before < 5.0


def test_the_bench_gives_back_no_process_of_others(tmp_path: Path) -> None:
    clock = Clock(lambda ops: 1.0)
    with bench.Bench(LLVM, Database(tmp_path), 0, clock):  # type: ignore[arg-type]
        pass  # a clock has no `close`, which would raise
