"""TVM and ONNX Runtime as lowerings: what is compiled computes the same, tuned or not, and CUDA kernels come out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from xrlflow.egraph.graph import GraphBuilder, TensorType
from xrlflow.lowering import to_onnx, tvm_module, tvm_schedules, tvm_tasks, tvm_tuner
from xrlflow.lowering.ort_session import Session

ROOT = Path(__file__).resolve().parents[1]


def model_of(op, x, weights, dtype=1, relu=True, **attrs):
    """One operator with seeded weights, and a Relu behind it."""
    rng = np.random.default_rng(0)
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    nodes = [helper.make_node(op, ["x", *weights], ["y"], **attrs)]
    if relu:
        nodes.append(helper.make_node("Relu", ["y"], ["z"]))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", dtype, x)],
        [helper.make_tensor_value_info(nodes[-1].output[0], dtype, None)],
        [numpy_helper.from_array(rng.standard_normal(s).astype(kind), n) for n, s in weights.items()],
    )  # fmt: skip
    import onnx

    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made)


def conv(channels=16, outputs=32, extent=14, kernel=3, stride=1, batch=1):
    shapes = {"w": (outputs, channels, kernel, kernel), "b": (outputs,)}
    return model_of("Conv", [batch, channels, extent, extent], shapes, strides=[stride] * 2, pads=[kernel // 2] * 4)


def matmul(x=(24, 64), w=(64, 48)):
    return model_of("MatMul", x, {"w": w})


MODELS = {
    "conv": conv(),
    "conv of stride 2": conv(stride=2, extent=15),
    "conv over a prime extent": conv(extent=13),
    "1x1 conv over 7x7": conv(extent=7, kernel=1),
    "conv with odd channels": conv(channels=5, outputs=20),
    "conv of a batch": conv(batch=2),
    "matmul": matmul(),
    "matrix by vector": matmul((1, 64), (64, 128)),
    "batched matmul": matmul((4, 24, 64), (4, 64, 48)),
    "stacked by shared matmul": matmul((4, 24, 64), (64, 48)),
}


@pytest.fixture(scope="module")
def target():
    return tvm_module.tvm_target("llvm")


def fused_of(model, target):
    return tvm_module.fuse(tvm_module.import_onnx(model), target)


@pytest.mark.parametrize("name", MODELS)
def test_compiled_models_agree_with_onnxruntime(name):
    program, session = tvm_module.build(MODELS[name]), Session(MODELS[name])
    inputs = tvm_module.timing_inputs(program.specs)
    for a, b in zip(program.run(inputs), session.run(inputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_every_tiled_schedule_computes_what_the_plain_one_does(name, target):
    import tvm

    task = tvm_tasks.tasks_of(fused_of(MODELS[name], target), target)[0]

    def run(module):
        arguments = tvm_tuner._tensors(task.module, tvm.cpu())
        tvm.tirx.build(module, target=target)(*arguments)
        return arguments[-1].numpy()

    expected = run(task.module)
    schedules = list(tvm_schedules.blocked(task.module))
    assert schedules, "no tile fits"
    for schedule in schedules:
        np.testing.assert_allclose(run(schedule.mod), expected, rtol=1e-4, atol=1e-5)


def test_operators_without_a_product_have_no_tiles(target):
    soft = model_of("Softmax", [8, 32], {}, axis=-1)
    for task in tvm_tasks.tasks_of(fused_of(soft, target), target):
        assert list(tvm_schedules.blocked(task.module)) == []


def test_operators_are_fused(target):
    assert [t.name for t in tvm_tasks.tasks_of(fused_of(conv(), target), target)] == ["fused_conv2d_add_relu"]


def test_tuning_makes_a_convolution_faster_and_keeps_its_results(tmp_path, target):
    model = conv(channels=64, outputs=64, extent=28)
    plain = tvm_module.build(model)
    inputs = tvm_module.timing_inputs(plain.specs)
    report = tvm_tuner.tune(fused_of(model, target), target, tmp_path, trials=4, seconds=30)
    assert report.judge and report.tasks[0].tiled and report.measured == 4
    tuned = tvm_module.build(model, schedules=tmp_path)
    np.testing.assert_allclose(tuned.run(inputs)[0], plain.run(inputs)[0], rtol=1e-4, atol=1e-4)
    assert min(tuned.time(inputs)) < min(plain.time(inputs, 1, 2)) / 3


def test_records_are_reused_by_another_graph_with_the_same_kernel(tmp_path, target):
    assert tvm_tuner.tune(fused_of(conv(), target), target, tmp_path, trials=3, seconds=30).measured == 3
    other = conv()
    other.graph.name = "another"
    again = tvm_tuner.tune(fused_of(other, target), target, tmp_path, trials=3, seconds=30)
    assert again.measured == 0 and again.tasks[0].ms < float("inf")


def test_a_damaged_record_costs_one_kernel(tmp_path, target):
    fused = fused_of(conv(), target)
    tvm_tuner.tune(fused, target, tmp_path, trials=3, seconds=30)
    (record,) = tmp_path.iterdir()
    record.write_text(record.read_text()[:50])
    assert tvm_tuner.tune(fused, target, tmp_path, trials=0, seconds=0).tasks[0].trials == 0
    nonsense = {"trials": 9, "ms": 1.0, "default": False, "tiled": True, "trace": [["nonsense"], []]}
    record.write_text(json.dumps(nonsense))
    assert tvm_module.build(conv(), schedules=tmp_path).seconds > 0


def test_no_time_means_untuned_and_no_judge(tmp_path, target):
    report = tvm_tuner.tune(fused_of(conv(), target), target, tmp_path, trials=8, seconds=0)
    assert not report.complete and not report.judge and report.measured == 0


def test_symbolic_extents_take_the_given_value_or_one():
    model = model_of("Abs", ["batch", 8], {})
    assert [s.shape for s in tvm_module.input_specs(model)] == [(1, 8)]
    program = tvm_module.build(model, symbols={"batch": 3})
    assert program.run(tvm_module.timing_inputs(program.specs))[0].shape == (3, 8)


def test_a_program_written_and_loaded_computes_the_same(tmp_path, target):
    executable = tvm_module.compile_module(fused_of(matmul(), target), target)
    specs = tvm_module.input_specs(matmul())
    executable.export_library(str(tmp_path / "p.so"))
    loaded = tvm_module.Program(str(tmp_path / "p.so"), specs, "llvm")
    inputs = tvm_module.timing_inputs(specs)
    np.testing.assert_array_equal(loaded.run(inputs)[0], tvm_module.build(matmul()).run(inputs)[0])


def test_code_digests_tell_programs_apart(target):
    digest = [tvm_module.code_digest(fused_of(m, target)) for m in (conv(), conv(), conv(stride=2))]
    assert digest[0] == digest[1] != digest[2]


def test_odd_input_names_do_not_spoil_cuda_source_nor_the_model():
    model = model_of("Abs", [4, 8], {})
    model.graph.input[0].name = model.graph.node[0].input[0] = "gpu_0/data:0"
    before = model.SerializeToString()
    source = tvm_module.cuda_source(tvm_module.compile_cuda(model))
    assert "__global__" in source and "gpu_0" not in source
    assert model.SerializeToString() == before
    program = tvm_module.build(model)
    assert program.run({"gpu_0/data:0": -np.ones((4, 8), np.float32)})[0].min() == 1


@pytest.mark.parametrize("dtype", [1, 10])
@pytest.mark.parametrize("which", ["matmul", "conv"])
def test_cuda_kernels_come_out_without_a_gpu_and_nvcc_takes_them(which, dtype, tmp_path):
    if which == "matmul":
        model = model_of("MatMul", [64, 128], {"w": (128, 256)}, dtype)
    else:
        model = model_of("Conv", [1, 16, 14, 14], {"w": (32, 16, 3, 3)}, dtype, pads=[1] * 4)
    source = tvm_module.cuda_source(tvm_module.compile_cuda(model, arch="sm_90"))
    assert "__global__" in source and ("half" in source) == (dtype == 10)
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is missing")
    (tmp_path / "k.cu").write_text(source)
    command = [nvcc, "-cubin", "-arch=sm_90", "-w", "-o", str(tmp_path / "k.cubin"), str(tmp_path / "k.cu")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    assert (tmp_path / "k.cubin").read_bytes().startswith(b"\x7fELF")


@pytest.mark.slow
def test_cuda_candidates_can_be_built_without_a_gpu():
    target = tvm_module.tvm_target("cuda", arch="sm_90")
    import tvm

    task = tvm_tasks.tasks_of(fused_of(matmul((64, 128), (128, 256)), target), target)[0]
    found = list(tvm_tuner._candidates(task, target, 3))
    assert len(found) == 3 and found[0][0] is None
    for _, module in found:
        with target:
            assert tvm.tirx.build(module, target=target) is not None


def test_the_gpu_benchmark_says_in_one_line_that_there_is_no_gpu(tmp_path):
    from xrlflow.cost.target import gpu_name

    if gpu_name() is not None:
        pytest.skip("there is a GPU")
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--out", str(tmp_path / "r.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4 and len(done.stderr.splitlines()) == 1 and "no CUDA GPU" in done.stderr


@pytest.mark.slow
def test_the_gpu_benchmark_compiles_cases_without_a_gpu(tmp_path):
    out = tmp_path / "r.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--out", str(out), "--compile-only"]
    subprocess.run([*command, "--only", "matmul-128"], capture_output=True, timeout=120, check=True)
    result = json.loads(out.read_text())
    assert [c["status"] for c in result["cases"]] == ["passed", "passed"] and result["stop_reason"] == "done"
    assert all(c["kernels"] == 1 for c in result["cases"])


def test_the_order_of_a_constant_operand_makes_no_other_kernel():
    """`bias + product` is tuned once with `product + bias`; the model that was given stays as it is."""
    digests = []
    for flipped in (False, True):
        g = GraphBuilder()
        x = g.input("x", TensorType((8, 16), "float32"))
        w, b = (g.weight(np.ones(s, np.float32)) for s in ((16, 32), (32,)))
        y = g.op("MatMul", x, w)
        model = to_onnx(g.build({"y": g.op("Add", *((b, y) if flipped else (y, b)))}))
        before = model.SerializeToString()
        target = tvm_module.tvm_target("llvm")
        (task,) = tvm_tasks.tasks_of(tvm_module.fuse(tvm_module.import_onnx(model), target), target)
        assert model.SerializeToString() == before
        digests.append((task.digest, [list(n.input) for n in model.graph.node]))
    assert digests[0][0] == digests[1][0] and digests[0][1] != digests[1][1]


def test_a_kernel_that_still_gains_is_tuned_further(target, tmp_path):
    """Until the last candidates gain nothing, or it has had three times as many; a second call adds nothing."""
    fused = fused_of(conv(), target)
    first = tvm_tuner.tune(fused, target, tmp_path, trials=4, seconds=120, plateau=True)
    (task,) = first.tasks
    assert task.settled(8) or task.trials >= 3 * 8
    assert task.trials >= 4 and first.summary()["kernels"] == 1
    again = tvm_tuner.tune(fused, target, tmp_path, trials=4, seconds=120, plateau=True)
    assert again.measured == 0 and again.tasks[0].improved == task.improved
    gaining = tvm_tasks.Task("t", 1, "d", None, 0.0, 0.0, trials=8, improved=7)
    assert not gaining.settled(8)
    gaining.trials = 9
    assert gaining.settled(8)


def test_weights_that_are_listed_as_inputs_are_none():
    """As models of old IR versions have them, whatever they are called."""
    x = helper.make_tensor_value_info("data/0", TensorProto.FLOAT, (2, 3))
    w = helper.make_tensor_value_info("fc/w", TensorProto.FLOAT, (3, 4))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 4))
    weight = numpy_helper.from_array(np.ones((3, 4), np.float32), "fc/w")
    graph = helper.make_graph([helper.make_node("MatMul", ["data/0", "fc/w"], ["y"])], "g", [x, w], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=3)
    assert len(tvm_module.import_onnx(model)["main"].params) == len(tvm_module.input_specs(model)) == 1


def test_scalars_are_inputs_like_others():
    g = GraphBuilder()
    x, c = g.input("x", TensorType((3,), "float32")), g.input("c", TensorType((), "float32"))
    program = tvm_module.build(to_onnx(g.build({"y": g.op("Mul", x, c)})))
    inputs = {"x": np.arange(3, dtype=np.float32), "c": np.array(2, np.float32)}
    np.testing.assert_array_equal(program.run(inputs)[0], [0, 2, 4])
    assert program.time(inputs, 1, 1)[0] > 0


def test_nothing_to_tune_is_tuned(tmp_path, target):
    """A module that only calls functions of the runtime has no kernels."""
    tuned = tvm_tuner.tune(tvm_module.tvm().IRModule({}), target, tmp_path, 4, 1.0)
    assert (tuned.tasks, tuned.complete) == ([], True)


def test_workers_import_what_compiles_without_torch():
    """TVM is imported first there, and torch barred; whoever imports it then cannot time a single kernel."""
    code = "from xrlflow.lowering.tvm_module import tvm; tvm(); import xrlflow.lowering.tvm_sources"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "XRLFLOW_WORKER": "1"}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-500:]
