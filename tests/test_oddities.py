"""Legal models of unusual form keep it: names of any kind, values that are leaves and outputs at once, great depth."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from xrlflow import saturate
from xrlflow.extract import main
from xrlflow.lowering import load, save, verify
from xrlflow.pipeline import extract

ort.set_default_logger_severity(4)
F, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
OPTIONS = ["--target", "roofline:epyc-1t", "--max-steps", "20", "--quiet"]


def value(name: str, *shape: int | str, dtype: int = F) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def weight(name: str, *shape: int) -> TensorProto:
    rng = np.random.default_rng([zlib.crc32(name.encode()), *shape])
    return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)


def model(
    nodes: list[NodeProto], inputs: list[ValueInfoProto], outputs: list[ValueInfoProto],
    weights: tuple[TensorProto, ...] = (), ir: int = 9,
) -> ModelProto:  # fmt: skip
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=ir)


def run(proto: ModelProto | Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    data = str(proto) if isinstance(proto, Path) else proto.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def feeds_of(proto: ModelProto) -> dict[str, np.ndarray]:
    weights = {t.name for t in proto.graph.initializer}
    found = {}
    for k, info in enumerate(proto.graph.input):
        if info.name not in weights:
            kind = info.type.tensor_type
            array = np.random.default_rng(k).standard_normal(
                [d.dim_value if d.HasField("dim_value") else 2 for d in kind.shape.dim]
            )
            found[info.name] = np.asarray(array).astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return found


def goes_through(proto: ModelProto, folder: Path) -> list[ModelProto]:
    """The model read and written, and saturated, extracted and written: valid, with the same interface and outputs."""
    onnx.checker.check_model(proto, full_check=True)
    source = folder / "in.onnx"
    source.write_bytes(proto.SerializeToString())
    graph = load(source)
    save(graph, folder / "saved.onnx")
    space = saturate(graph, max_enodes=2000, max_iterations=4)
    found = extract(space, "climb", target="roofline:epyc-1t", seconds=None, steps=30)
    save(space.to_graph(found.selection), folder / "chosen.onnx")
    assert main([str(source), "-o", str(folder / "out.onnx"), *OPTIONS]) == 0
    feeds = feeds_of(proto)
    wanted, written = run(proto, feeds), []
    for name in ("saved", "chosen", "out"):
        out = onnx.load(folder / f"{name}.onnx")
        onnx.checker.check_model(out, full_check=True)
        assert list(out.graph.input) == list(proto.graph.input)
        assert list(out.graph.output) == list(proto.graph.output)
        assert (out.ir_version, list(out.opset_import)) == (proto.ir_version, list(proto.opset_import))
        for a, b in zip(wanted, run(folder / f"{name}.onnx", feeds), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        written.append(out)
    return written


def node(op: str, inputs: str, outputs: str, **attrs: Any) -> NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), **attrs)


X, Y = value("x", 2, 3), value("y", 2, 3)
W = weight("w", 2, 3)


@pytest.mark.parametrize("ir", [3, 4, 9])
def test_initializers_may_be_inputs(ir: int, tmp_path: Path) -> None:
    proto = model([node("Add", "x w", "y")], [X, value("w", 2, 3)], [Y], (W,), ir)
    for out in goes_through(proto, tmp_path):
        if ir >= 4:  # then whoever runs the model may give another value
            x, other = np.ones((2, 3), np.float32), np.full((2, 3), 5, np.float32)
            np.testing.assert_array_equal(run(out, {"x": x, "w": other})[0], x + other)


def test_initializers_may_be_outputs(tmp_path: Path) -> None:
    goes_through(model([node("Relu", "x", "y")], [X], [value("w", 2, 3), Y], (W,)), tmp_path)


def test_initializers_may_be_inputs_and_outputs(tmp_path: Path) -> None:
    proto = model([node("Mul", "x w", "y")], [X, value("w", 2, 3)], [value("w", 2, 3), Y], (W,))
    goes_through(proto, tmp_path)


def test_inputs_may_be_outputs(tmp_path: Path) -> None:
    goes_through(model([node("Relu", "x", "y")], [X], [value("x", 2, 3), Y]), tmp_path)


def test_one_value_may_be_several_outputs(tmp_path: Path) -> None:
    nodes = [node("Relu", "x", "a"), node("Relu", "x", "b"), node("Identity", "a", "c"), node("Relu", "b", "d")]
    outputs = [value(name, 2, 3) for name in "dcbax"]
    goes_through(model([*nodes, node("Identity", "x", "e")], [X], [*outputs, value("e", 2, 3)]), tmp_path)


def test_an_output_may_be_listed_twice(tmp_path: Path) -> None:
    goes_through(model([node("Relu", "x", "y")], [X], [Y, Y]), tmp_path)  # the checker and the runtime accept that


def test_inputs_that_nothing_reads_stay(tmp_path: Path) -> None:
    inputs = [value("before", 7), X, value("after", "n", 4, dtype=I64), value("w", 2, 3)]
    goes_through(model([node("Relu", "x", "y")], inputs, [Y], (W,)), tmp_path)


NAMES = {
    "spaces": " two  words ", "unicode": "Größe/层.0::注意力🙂", "newline": "a\nb\r\t", "quotes": "it's \"x\" `y`",
    "slashes": "/a//b\\c/../d", "brackets": "x[0]{1}<2>(3)", "digits": "0", "long": "n" * 10_000, "control": "\x01\x7f",
    "percent": "%s%d{}{0}", "query": "?x.0", "keyword": "None", "blank": " ", "egglog": "(union a b) ; \"",
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMES)
def test_names_may_be_any_text(kind: str, tmp_path: Path) -> None:
    name = NAMES[kind]
    nodes = [
        helper.make_node("MatMul", [name, name + "w"], [name + "m"], name),
        helper.make_node("Clip", [name + "m"], [name + "c"], name + "clip"),
        helper.make_node("MatMul", [name, name + "v"], [name + "y"], name + "again"),
    ]
    inputs = [helper.make_tensor_value_info(name, F, [name + "n", 3])]
    outputs = [helper.make_tensor_value_info(name + end, F, [name + "n", 3]) for end in "cy"]
    weights = (weight(name + "w", 3, 3), weight(name + "v", 3, 3))
    for out in goes_through(model(nodes, inputs, outputs, weights), tmp_path)[:1]:
        assert [o for n in out.graph.node for o in n.output] == [name + "m", name + "c", name + "y"]


def test_names_that_the_writer_would_make_may_be_taken(tmp_path: Path) -> None:
    # The search merges the two products: what it writes for that needs names of its own.
    taken = ["Split_5", "MatMul_4", "Concat_3", "Get_6", "Slice_5", "sizes_3x3", "starts_0", "ends_3", "axes_1"]
    nodes = [node("MatMul", f"x {taken[k]}", f"m{k}") for k in (0, 1)]
    nodes += [node("Relu" if k % 2 else "Tanh", f"m{k % 2}", taken[k + 2]) for k in range(7)]
    outputs = [value(name, 2, 3) for name in taken[2:]]
    goes_through(model(nodes, [X], outputs, (weight(taken[0], 3, 3), weight(taken[1], 3, 3))), tmp_path)


def test_graphs_may_have_no_nodes(tmp_path: Path) -> None:
    goes_through(model([], [X], [value("x", 2, 3)]), tmp_path)
    goes_through(model([], [], [value("w", 2, 3)], (W,)), tmp_path)


def test_models_may_have_no_inputs(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["c"], value=weight("", 2, 3))
    nodes = [constant, node("Add", "c w", "s"), node("Relu", "s", "y")]
    for out in goes_through(model(nodes, [], [Y], (W,)), tmp_path)[:1]:
        assert len(out.graph.input) == 0


def test_all_outputs_may_be_constant(tmp_path: Path) -> None:
    nodes = [node("Add", "w w", "y"), node("Identity", "w", "z"), node("Shape", "x", "s")]
    goes_through(model(nodes, [X], [Y, value("z", 2, 3), value("s", 2, dtype=I64)], (W,)), tmp_path)


def test_an_output_may_be_both_constant_and_read(tmp_path: Path) -> None:
    nodes = [node("Relu", "w", "c"), node("Add", "x c", "y")]
    goes_through(model(nodes, [X], [value("c", 2, 3), Y], (W,)), tmp_path)


def test_scalars_and_empty_tensors_go_through(tmp_path: Path) -> None:
    nodes = [node("Relu", "s", "t"), node("Concat", "e e", "f", axis=0), node("Mul", "f s", "g")]
    inputs = [value("s"), value("e", 0, 4)]
    goes_through(model(nodes, inputs, [value("t"), value("g", 0, 4)]), tmp_path)


def chain(length: int) -> ModelProto:
    ops = ("Relu", "Neg", "Clip", "Tanh")
    nodes = [helper.make_node(ops[k % 4], [f"v{k}"], [f"v{k + 1}"]) for k in range(length)]
    return model(nodes, [value("v0", 2, 3)], [value(f"v{length}", 2, 3)])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["saturation", "rl"])
def test_chains_of_ten_thousand_nodes_need_no_recursion(method: str, tmp_path: Path) -> None:
    proto = chain(10_000)
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    source.write_bytes(proto.SerializeToString())
    assert main([str(source), "-o", str(out), *OPTIONS, "--method", method]) == 0
    assert verify(source, out, samples=1).passed


def test_chains_of_two_thousand_nodes_need_no_recursion(tmp_path: Path) -> None:
    goes_through(chain(2000), tmp_path)


@pytest.mark.slow
def test_twenty_thousand_nodes_go_through(tmp_path: Path) -> None:
    nodes, weights = [], []
    for k in range(5000):  # independent and chained parts
        nodes += [
            helper.make_node("MatMul", [f"v{k}", f"w{k % 10}"], [f"m{k}"]),
            helper.make_node("Add", [f"m{k}", f"b{k % 10}"], [f"a{k}"]),
            helper.make_node("Tanh", [f"a{k}"], [f"t{k}"]),
            helper.make_node("Add", [f"t{k}", f"v{k}"], [f"v{k + 1}"]),
        ]
    for k in range(10):
        weights += [weight(f"w{k}", 3, 3), weight(f"b{k}", 3)]
    proto = model(nodes, [value("v0", 2, 3)], [value("v5000", 2, 3)], tuple(weights))
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    source.write_bytes(proto.SerializeToString())
    assert main([str(source), "-o", str(out), *OPTIONS, "--method", "saturation", "--max-enodes", "60000"]) == 0
    assert verify(source, out, samples=1).verdict != "failed"
