"""The kernels cost on small spaces: what is measured, remembered, estimated, and what a failure costs."""

from __future__ import annotations

import time

import numpy as np
import onnx
import pytest

from xrlflow.cost import measurement
from xrlflow.cost.base import CostModel, bind
from xrlflow.cost.bench import Bench
from xrlflow.cost.database import Database
from xrlflow.cost.kernels import Kernels, kernels, promise
from xrlflow.cost.references import REFERENCES
from xrlflow.cost.roofline import roofline
from xrlflow.cost.target import Target, default_target, parse_target, target_names, usable_targets
from xrlflow.cost.worker import Worker, WorkerDied, WorkerError, WorkerTimeout, room
from xrlflow.egraph.graph import GraphBuilder, TensorType, Weight, attributes
from xrlflow.egraph.saturate import saturate
from xrlflow.egraph.space import SearchSpace, Selection
from xrlflow.errors import TargetUnavailable, UserError
from xrlflow.lowering import load, to_onnx
from xrlflow.lowering.ort_session import Session, optimised_digest
from xrlflow.lowering.single import NotSingle, kernel_of, single_model
from xrlflow.lowering.tvm_module import build

F32 = "float32"
ORT = Target("onnxruntime")


def space_of(graph, extra=(), const=()):
    """The space of a graph, with further e-nodes (class, op, child classes, attributes)."""
    rows = [(c, n.op, n.inputs, n.attributes) for c, n in enumerate(graph.nodes)] + list(extra)
    order = sorted(range(len(rows)), key=lambda i: rows[i][0])
    rows = [rows[i] for i in order]
    constant = np.array([n.op == "Weight" for n in graph.nodes])
    constant[list(const)] = True
    choice = np.full(len(graph.nodes), -1, np.int32)
    for c in graph.live:
        choice[c] = order.index(c)
    return SearchSpace(
        tuple(r[1] for r in rows), tuple(r[3] for r in rows), np.array([r[0] for r in rows], np.int32),
        np.cumsum([0, *(len(r[2]) for r in rows)]).astype(np.int32),
        np.array([k for r in rows for k in r[2]], np.int32),
        tuple(n.type for n in graph.nodes), constant, np.array(graph.outputs, np.int32),
        tuple(() for _ in rows), tuple(n.names for n in graph.nodes), Selection(choice), choice[choice >= 0], graph,
    )  # fmt: skip


def small():
    """Relu(x @ w₀) beside Relu(x @ w₁), where both products are one kernel; the first may also be a Gemm."""
    rng = np.random.default_rng(0)
    g = GraphBuilder()
    x = g.input("x", TensorType((32, 64), F32))
    w = [g.weight(rng.standard_normal((64, 96)).astype(np.float32), f"w{k}") for k in range(2)]
    y = [g.op("MatMul", x, k) for k in w]
    z = g.op("Add", g.op("Relu", y[0]), g.op("Relu", y[1]))
    s = g.op("Split", z, axis=1, sizes=(48, 48))
    graph = g.build({"a": g.get(s, 0), "b": g.get(s, 1)})
    gemm = attributes(alpha=1.0, beta=1.0, transA=0, transB=0)
    return space_of(graph, [(y[0], "Gemm", (x, w[0]), gemm)])


@pytest.mark.parametrize(("kind", "trials"), [("onnxruntime", 0), ("llvm", 0)])
def test_each_distinct_kernel_is_measured_once_and_remembered(kind, trials, tmp_path):
    space = small()
    model = kernels(Target(kind), Database(tmp_path), trials, seconds=60)
    assert isinstance(model, CostModel)
    cost = bind(model, space)
    # MatMul, Gemm, Relu, Add, Split; the two products and the two Relus are one kernel each
    assert (model.coverage.kernels, model.coverage.measured, model.coverage.estimated) == (5, 5, 0)
    price = {op: cost.prices[i] for i, op in enumerate(space.ops)}
    assert all(0 < price[op] < 50 for op in ("MatMul", "Gemm", "Relu", "Add", "Split"))
    assert price["Input"] == price["Weight"] == price["Get"] == 0
    again = kernels(Target(kind), Database(tmp_path), trials, seconds=0)
    assert np.array_equal(bind(again, space).prices, cost.prices)
    assert (again.coverage.remembered, again.coverage.measured) == (5, 0)


def test_a_tuned_product_is_cheaper_than_an_untuned_one(tmp_path):
    g = GraphBuilder()
    x, w = g.input("x", TensorType((64, 256), F32)), g.weight(np.ones((256, 256), np.float32))
    space = space_of(g.build({"y": g.op("MatMul", x, w)}))
    tuned, plain = (
        bind(kernels(Target("llvm"), Database(tmp_path), t, seconds=60), space).total(space.original) for t in (4, 0)
    )
    assert tuned < plain / 3


def test_without_time_everything_is_estimated_by_roofline(tmp_path):
    space = small()
    model = kernels(ORT, Database(tmp_path), seconds=0)
    assert np.array_equal(bind(model, space).prices, bind(roofline("epyc-1t"), space).prices)
    assert model.coverage.estimated == model.coverage.kernels == 5


def test_estimates_are_calibrated_by_the_median_of_their_operator(tmp_path):
    space, database = small(), Database(tmp_path)
    rough = roofline("epyc-1t").prices(space)
    matmul, relu = space.ops.index("MatMul"), space.ops.index("Relu")
    for i, factor in ((matmul, 3.0), (relu, 5.0)):
        state = Bench(ORT, database, 0).state
        database.put(kernel_of(space, i).key, ORT.fingerprint(), factor * rough[i], 1, state)
    prices = bind(kernels(ORT, database, seconds=0), space).prices
    gemm = space.ops.index("Gemm")
    assert prices[matmul] == pytest.approx(3 * rough[matmul])
    assert prices[gemm] == pytest.approx(4 * rough[gemm])  # no Gemm is known: the median of all


class Faulty:
    """A worker whose calls fail for one operator, and otherwise cost 1 ms."""

    def __init__(self, op, error):
        self.op, self.error, self.calls, self.ready = op, error, [], []

    def call(self, function, *args, timeout=None):
        if function.endswith("time_kernels"):
            ready, self.ready = self.ready, []
            return {key: [5.0, 1.0, 0.9] for key in ready}
        if not function.endswith("prepare_kernel"):
            return None
        import onnx

        key, data = args[:2]
        op = onnx.load_model_from_string(data).graph.node[0].op_type
        if key not in REFERENCES:
            self.calls.append(op)
            if op == self.op:
                if type(self.error) is not WorkerError:
                    self.ready = []  # what was ready went with the process
                raise self.error
        self.ready.append(key)
        return {"ms": 1.0}


@pytest.mark.parametrize("error", [WorkerDied("crash"), WorkerError("no such kernel"), WorkerTimeout("hang")])
def test_a_kernel_that_fails_is_infinite_and_the_search_goes_on(error, tmp_path):
    space, worker = small(), Faulty("Gemm", error)
    model = Kernels(ORT, Database(tmp_path), seconds=60, worker=worker)
    prices = bind(model, space).prices
    assert prices[space.ops.index("Gemm")] == np.inf
    assert prices[space.ops.index("MatMul")] == prices[space.ops.index("Add")] == 1.0
    assert model.coverage.failed == 1
    bind(Kernels(ORT, Database(tmp_path), seconds=60, worker=worker), space)
    # one that dies among others is tried once more by itself: it may have died of what they took
    assert worker.calls.count("Gemm") == (2 if isinstance(error, WorkerDied) else 1)


def test_the_original_keeps_a_finite_cost_even_if_its_kernel_fails(tmp_path):
    space = small()
    model = Kernels(ORT, Database(tmp_path), seconds=60, worker=Faulty("MatMul", WorkerDied("crash")))
    cost = bind(model, space)
    assert 0 < cost.total(space.original) < np.inf


def test_the_originals_kernels_come_first(tmp_path):
    worker = Faulty("", None)
    bind(Kernels(ORT, Database(tmp_path), seconds=60, worker=worker), small())
    assert worker.calls.index("Gemm") == len(worker.calls) - 1


def test_enodes_that_no_good_selection_uses_are_not_measured(tmp_path):
    space = small()
    relu = next(c for c in range(space.n_classes) if space.ops[space.class_ptr[c]] == "Relu")
    g = space.graph
    # a detour: transposing a huge operand that only this e-node reads
    big = GraphBuilder()
    big.nodes, big.weights, big.input_names = list(g.nodes), dict(g.weights), list(g.input_names)
    huge = big.input("huge", TensorType((4096, 4096), F32))
    turned = big.op("Transpose", huge, perm=(1, 0))
    graph = big.build({"a": g.outputs[0], "b": g.outputs[1]})
    wide = space_of(graph, [(relu, "Mul", (turned, turned), ())])
    regret, hopeless = promise(wide, roofline("epyc-1t").prices(wide))
    mul = wide.ops.index("Mul")
    assert hopeless[mul] and regret[mul] > 1 and not hopeless[wide.ops.index("MatMul")]
    model = Kernels(ORT, Database(tmp_path), seconds=60, worker=Faulty("", None))
    bind(model, wide)
    assert model.coverage.useless >= 1


def test_reshapes_are_free(tmp_path):
    g = GraphBuilder()
    x = g.input("x", TensorType((4, 8), F32))
    space = space_of(g.build({"y": g.op("Relu", g.op("Reshape", x, shape=(32,)))}))
    prices = bind(Kernels(ORT, Database(tmp_path), seconds=60, worker=Faulty("", None)), space).prices
    assert prices[space.ops.index("Reshape")] == 0 and prices[space.ops.index("Relu")] == 1.0


def test_progress_is_told_for_each_kernel(tmp_path):
    told = []
    model = Kernels(ORT, Database(tmp_path), seconds=60, progress=lambda *a: told.append(a), worker=Faulty("", None))
    bind(model, small())
    assert told == [(k, 5) for k in range(1, 6)]


def test_a_constant_operand_makes_another_kernel():
    space = small()
    product = space.ops.index("MatMul")
    known = kernel_of(space, product)
    free = SearchSpace(**{**{f: getattr(space, f) for f in space.__dataclass_fields__}, "const": space.const & False})
    assert known.constant == (False, True) and kernel_of(free, product).key != known.key
    model = single_model(known, space)
    assert [i.name for i in model.graph.input] == ["x0"] and len(model.graph.initializer) == 1


def test_symbolic_extents_are_one_and_unknown_shapes_no_kernel():
    g = GraphBuilder()
    x = g.input("x", TensorType(("batch", 8), F32))
    space = space_of(g.build({"y": g.op("Relu", x)}))
    assert kernel_of(space, 1).inputs[0].shape == (1, 8)
    g = GraphBuilder()
    x = g.input("x", TensorType(None, F32))
    y = g.add("::Clip", (x,), attributes(proto="p", outputs=1), TensorType(None, F32))
    with pytest.raises(NotSingle):
        kernel_of(space_of(g.build({"y": y})), 1)


def test_an_opaque_operator_is_measured_with_its_own_small_constants(tmp_path):
    from onnx import helper

    g = GraphBuilder()
    x = g.input("x", TensorType((4, 8), F32))
    axes = g.weight(Weight.of(np.array([1], np.int64), "axes"))
    proto = helper.make_node("ReduceMax", [], [], keepdims=1).SerializeToString()
    g.opaques["p"] = proto
    y = g.add("::ReduceMax", (x, axes), attributes(proto="p", outputs=1), TensorType((4, 1), F32))
    space = space_of(g.build({"y": y}))
    model = kernels(ORT, Database(tmp_path), seconds=60)
    cost = bind(model, space)
    assert model.coverage.measured == 1 and model.coverage.failed == 0
    assert 0 < cost.total(space.original) < 10


def test_target_names_are_parsed():
    assert parse_target("llvm", threads=2) == Target("llvm", "", 2)
    assert parse_target("roofline:h200").device == "h200" and not parse_target("roofline:h200").measured
    assert str(parse_target("roofline:a100")) == "roofline:a100"


@pytest.mark.parametrize("text", ["", "gpu", "roofline", "roofline:tpu", "llvm:x"])
def test_an_unknown_target_is_a_user_error_that_lists_the_valid_ones(text):
    with pytest.raises(UserError, match=r"onnxruntime.*roofline:h200") as e:
        parse_target(text)
    assert e.value.exit_code == 2


def test_cuda_without_a_gpu_is_unavailable(monkeypatch):
    monkeypatch.setattr("xrlflow.cost.target.gpu_name", lambda: None)
    with pytest.raises(TargetUnavailable, match="no CUDA GPU") as e:
        parse_target("cuda")
    assert e.value.exit_code == 4
    assert usable_targets()["cuda"] and not usable_targets()["llvm"] and list(usable_targets()) == target_names()
    assert default_target().kind == "llvm"


def test_a_gpu_is_the_default_target(monkeypatch):
    monkeypatch.setattr("xrlflow.cost.target.gpu_name", lambda: "A GPU")
    assert default_target().kind == "cuda"


def test_fingerprints_tell_targets_apart_and_stay(monkeypatch):
    targets = [Target("llvm"), Target("llvm", threads=2), ORT, Target("roofline", "a100"), Target("roofline", "h200")]
    prints = [t.fingerprint() for t in targets]
    assert len(set(prints)) == 5 and prints == [t.fingerprint() for t in targets]
    monkeypatch.setattr("xrlflow.cost.target.cpu_model", lambda: "another processor")
    assert Target("llvm").fingerprint() != prints[0]


def test_a_measurement_survives_the_death_of_its_process(tmp_path):
    with Worker() as worker:
        with pytest.raises(WorkerDied):
            worker.call("os:abort", timeout=30)
        model = Kernels(ORT, Database(tmp_path), seconds=60, worker=worker)
        bind(model, small())
        assert model.coverage.measured == 5 and worker.starts == 2


def test_what_takes_too_much_memory_costs_one_call():
    with Worker(memory=1 << 30) as worker:
        assert worker.call("builtins:len", b"abc", timeout=30) == 3
        with pytest.raises(WorkerError, match="Memory"):
            worker.call("numpy:ones", (1 << 29,), timeout=60)  # 4 GiB
        assert worker.call("numpy:ones", (3,), timeout=30).sum() == 3


def test_workers_that_measure_get_most_of_the_memory_there_is(monkeypatch, tmp_path):
    limits = []

    class Watched(Worker):
        def __init__(self, *args, memory=None, **kwargs):
            limits.append(memory)
            super().__init__(*args, memory=memory, **kwargs)

    monkeypatch.setattr("xrlflow.cost.bench.Worker", Watched)
    bind(Kernels(ORT, Database(tmp_path), seconds=30), small())
    assert limits == [room()] and limits[0] > 1 << 30


def test_what_measured_kernels_choose_costs_what_is_written(tmp_path, monkeypatch):
    # The pipeline refuses a graph whose operators are not those of the selection; measured prices must not confuse it.
    import xrlflow
    from xrlflow import zoo

    monkeypatch.setenv("XRLFLOW_CACHE", str(tmp_path))
    found = xrlflow.optimize(
        zoo.build("bert-tiny"), target="onnxruntime", method="saturation", budget=20, max_steps=200
    )
    assert found.substitutions and "please report" not in found.outcome
    assert found.verification.passed and found.verdict is not None


def test_provider_and_level_are_options_of_the_runtime(tmp_path):
    plain, basic = parse_target("onnxruntime"), parse_target("onnxruntime", level="basic")
    assert plain.fingerprint() != basic.fingerprint() and basic.description()["level"] == "basic"
    with pytest.raises(UserError, match="unknown optimisation level 'most'"):
        parse_target("onnxruntime", level="most")
    with pytest.raises(TargetUnavailable, match=r"has only .*CPUExecutionProvider"):
        parse_target("onnxruntime", provider="NoSuchProvider")
    with pytest.raises(UserError, match="options of the target onnxruntime"):
        parse_target("llvm", level="basic")
    g = GraphBuilder()
    x, w = g.input("x", TensorType((4, 8), F32)), g.weight(np.ones((8, 8), np.float32))
    path = str(tmp_path / "model.onnx")
    onnx.save(to_onnx(g.build({"y": g.op("Add", g.op("MatMul", x, w), g.weight(np.ones(8, np.float32)))})), path)
    # the runtime makes one operator of the product and the sum, unless it is told not to optimise
    assert optimised_digest(path, level="none") != optimised_digest(path, level="all")
    cost = bind(
        kernels(parse_target("onnxruntime", level="none"), Database(tmp_path), seconds=60), saturate(load(path))
    )
    assert 0 < cost.total(cost.space.original) < 10


class Counted:
    """A program that takes `ms`; calls: how it was timed."""

    def __init__(self, ms):
        self.ms, self.calls = ms, []

    def time(self, inputs, number=1, repeat=5, warm=True):
        self.calls.append((number, repeat, warm))
        time.sleep((number * repeat + warm) * self.ms / 1e3)
        return [self.ms] * repeat


def test_long_runs_are_few(monkeypatch):
    """Nothing is run before what takes long, and rounds end when the time does."""
    programs = {"short": Counted(0.1), "middle": Counted(10.0), "long": Counted(60.0)}
    monkeypatch.setattr(measurement, "_kept", {k: (p, {}, p.ms) for k, p in programs.items()})
    figures = measurement.time_kernels(5, 40, 0.0, 0.2)
    assert {k: len(f) for k, f in figures.items()} == dict.fromkeys(programs, 3)
    assert [programs[k].calls[0] for k in programs] == [(20, 2, True), (1, 3, True), (1, 1, False)]
    assert not measurement._kept
    assert measurement.round_seconds(60.0) == pytest.approx(0.06)
    assert measurement.round_seconds(10.0) == pytest.approx(0.04)


@pytest.mark.parametrize("warm", [True, False])
def test_both_kinds_of_programs_are_timed_with_and_without_a_run_before(warm):
    g = GraphBuilder()
    model = to_onnx(g.build({"y": g.op("Relu", g.input("x", TensorType((4, 4), F32)))}))
    x = {"x": np.ones((4, 4), np.float32)}
    for program in (Session(model.SerializeToString()), build(model)):
        figures = program.time(x, 2, 3, warm)
        assert len(figures) == 3 and all(0 < ms < 1000 for ms in figures)
