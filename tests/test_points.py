"""Dynamic models: specialised by --shape, measured at --at, verified at several bindings, as dynamic as they came."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import xrlflow
from xrlflow.egraph.space import Selection
from xrlflow.errors import UserError
from xrlflow.extract import main
from xrlflow.lowering import load, verify
from xrlflow.lowering.points import parse_extents, usual_extents

F, I64 = TensorProto.FLOAT, TensorProto.INT64
QUICK = ["--target", "roofline:epyc-1t", "--max-steps", "200", "--method", "saturation"]


def noise(*shape):
    return np.random.default_rng(list(shape)).standard_normal(shape).astype(np.float32)


def attention():
    """Two heads over [batch, seq, 8], its shapes computed as exporters do, masked, ids in and all extents out."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        *(helper.make_node("MatMul", ["x", f"w{k}"], [k]) for k in "qkv"),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["b"]),
        helper.make_node("Gather", ["shape", "one"], ["s"]),
        helper.make_node("Unsqueeze", ["b", "axis"], ["b1"]),
        helper.make_node("Unsqueeze", ["s", "axis"], ["s1"]),
        helper.make_node("Concat", ["b1", "s1", "heads", "size"], ["split"], axis=0),
        *(helper.make_node("Reshape", [k, "split"], [f"{k}4"]) for k in "qkv"),
        *(helper.make_node("Transpose", [f"{k}4"], [f"{k}t"], perm=p) for k, p in
          (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3]))),
        helper.make_node("MatMul", ["qt", "kt"], ["scores"]),
        helper.make_node("Mul", ["scores", "scale"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "vt"], ["o"]),
        helper.make_node("Transpose", ["o"], ["ot"], perm=[0, 2, 1, 3]),
        helper.make_node("Mul", ["heads", "size"], ["width"]),
        helper.make_node("Concat", ["b1", "s1", "width"], ["joined"], axis=0),
        helper.make_node("Reshape", ["ot", "joined"], ["y"]),
    ]  # fmt: skip
    weights = [numpy_helper.from_array(noise(50, 8), "table"), numpy_helper.from_array(np.float32(0.5), "scale")]
    weights += [numpy_helper.from_array(noise(8, 8) * (i + 1), f"w{k}") for i, k in enumerate("qkv")]
    for name, value in (("zero", 0), ("one", 1), ("axis", [0]), ("heads", [2]), ("size", [4])):
        weights.append(numpy_helper.from_array(np.array(value, np.int64), name))
    graph = helper.make_graph(
        nodes, "attention", [helper.make_tensor_value_info("ids", I64, ["batch", "seq"])],
        [helper.make_tensor_value_info("y", F, ["batch", "seq", 8])], weights,
    )  # fmt: skip
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


@pytest.fixture
def path(tmp_path):
    onnx.save(attention(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def dims(value):
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def run(model, ids):
    data = str(model) if not isinstance(model, onnx.ModelProto) else model.SerializeToString()
    return ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"ids": ids})[0]


def test_a_dynamic_model_is_optimised_and_stays_dynamic(path, tmp_path):
    out = tmp_path / "out.onnx"
    assert main([str(path), "-o", str(out), "--quiet", "--json", str(tmp_path / "run.json"), *QUICK]) == 0
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["improved"] and record["graph"]["coverage"] > 0.9
    assert "merge-sibling-matmuls" in {r for s in record["substitutions"] for r in s["rules"]}
    bindings = record["verification"]["bindings"]
    assert len(bindings) >= 3 and {1} in [set(b.values()) for b in bindings]
    assert any(b["batch"] != b["seq"] for b in bindings)
    assert "costs taken at batch=1, seq=128" in " ".join(record["notes"])
    written = onnx.load(out)
    onnx.checker.check_model(written, full_check=True)
    assert dims(written.graph.input[0]) == ["batch", "seq"] and dims(written.graph.output[0]) == ["batch", "seq", 8]
    assert "Shape" not in {n.op_type for n in written.graph.node}
    for shape in ((1, 1), (2, 5), (3, 17), (1, 128)):
        ids = np.random.default_rng(0).integers(0, 50, shape)
        np.testing.assert_allclose(run(out, ids), run(path, ids), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text", ["ids=2,16", "batch=2,seq=16"])
def test_shape_specialises(path, tmp_path, text):
    out = tmp_path / "out.onnx"
    assert main([str(path), "-o", str(out), "--quiet", "--shape", text, *QUICK]) == 0
    written = onnx.load(out)
    onnx.checker.check_model(written, full_check=True)
    assert dims(written.graph.input[0]) == [2, 16] and dims(written.graph.output[0]) == [2, 16, 8]
    ids = np.random.default_rng(0).integers(0, 50, (2, 16))
    np.testing.assert_allclose(run(out, ids), run(path, ids), rtol=1e-4, atol=1e-5)


def test_a_specialised_model_is_written_so_where_nothing_was_faster(path, tmp_path):
    out = tmp_path / "out.onnx"
    assert main([str(path), "-o", str(out), "--quiet", "--shape", "ids=?,16", "--method", "original"]) == 0
    assert dims(onnx.load(out).graph.input[0]) == ["batch", 16]
    assert verify(load(path, shapes={"seq": 16}), out).passed


def test_extents_leave_open_what_they_do_not_tell(path):
    graph = load(path, shapes={"seq": 7})
    node = graph.nodes[0]
    assert str(node.type) == "int64[batch,7]"
    assert str(load(path, shapes="ids=?,9").nodes[0].type) == "int64[batch,9]"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shape", "ids=1,2,3"], "input 'ids' has 2 dimensions, not 3"),
        (["--shape", "idz=1,2"], "no input and no dimension is named 'idz'; there are 'ids', 'batch', 'seq'"),
        (["--shape", "ids=1,x"], "'x' is no extent"),
        (["--shape", "128"], "write NAME=EXTENT"),
        (["--shape", "batch=99999999999999999999"], "too large an extent"),
        (["--shape", "ids=1,2", "--shape", "batch=3"], "to be 3 and 1 at once"),
        (["--at", "batch=?"], "give it one extent"),
        (["--at", "ids=1,2", "--shape", "ids=1,2"], "no symbolic dimensions left by --shape"),
    ],
)
def test_wrong_extents_are_one_clear_line(path, tmp_path, capsys, options, message):
    assert main([str(path), "-o", str(tmp_path / "out.onnx"), *options, *QUICK]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out.onnx").exists()


def test_dimensions_without_a_name_and_inputs_without_a_rank_can_be_fixed(tmp_path):
    onnx.save(pyramid(), tmp_path / "model.onnx")
    graph = load(tmp_path / "model.onnx", shapes={"?x.3": 40, "n": 2})
    assert str(graph.nodes[0].type) == "float32[2,3,h,40]"
    proto = attention()
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    assert load(proto, shapes="ids=2,?").coverage > 0.8 > load(proto).coverage
    with pytest.raises(UserError, match="no known rank; fix its shape with --shape"):
        xrlflow.optimize(proto, at="ids=2,3", target="roofline:epyc-1t")


def test_names_of_dimensions_that_are_none_now_leave_the_outputs():
    proto = attention()
    dims = proto.graph.output[0].type.tensor_type.shape.dim
    dims[1].dim_param = "past + seq"
    graph = load(proto, shapes={"batch": 2})
    out = graph.source.skeleton.graph.output[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in out] == [2, "seq", 8]


def test_one_point_needs_no_list(path):
    options = {"target": "roofline:epyc-1t", "max_steps": 50, "method": "saturation"}
    for at in ("batch=2,seq=3", {"batch": 2, "seq": 3}, [{"batch": 2, "seq": 3}]):
        assert {"batch": 2, "seq": 3} in [
            dict(b) for b in xrlflow.optimize(path, at=at, **options).verification.bindings
        ]
    for wrong in (5, [5], None):
        with pytest.raises(UserError, match="at must be points"):
            xrlflow.optimize(path, at=wrong, **options)


def test_at_moves_the_costs_and_nothing_else(path):
    options = {"target": "roofline:epyc-1t", "max_steps": 50, "method": "saturation"}
    small, large, both = (
        xrlflow.optimize(path, at=at, **options)
        for at in (["batch=1,seq=4"], [{"batch": 4, "seq": 512}], ["ids=1,4", "ids=4,512"])
    )
    assert small.predicted[0] < large.predicted[0] / 10
    assert {"batch": 4, "seq": 512} in [dict(b) for b in large.verification.bindings]
    assert both.predicted[0] == pytest.approx(small.predicted[0])  # every point counts alike, in units of the first
    assert {4, 512} <= {e for b in both.verification.bindings for e in b.values()}


def test_a_result_must_not_be_slower_at_any_point(path, monkeypatch):
    from xrlflow.cost import confirm as module
    from xrlflow.cost.verdict import Verdict

    asked = []

    def fake(original, candidate, target, *, symbols, **_):
        asked.append(symbols["seq"])
        slow = symbols["seq"] == 64
        return Verdict(1.0, 1.0, 0.9 if slow else 1.2, 0.8, 1.3, "slower" if slow else "faster", True, "", {})

    monkeypatch.setattr(module, "confirm", fake)
    options = {"target": "onnxruntime", "cost": "roofline:epyc-1t", "max_steps": 50, "method": "saturation"}
    good = xrlflow.optimize(path, at=["ids=1,8", "ids=1,32"], **options)
    assert good.improved and asked == [8, 32]
    assert [p["at"]["seq"] for p in good.report["latency"]["points"]] == [8, 32]
    bad = xrlflow.optimize(path, at=["ids=1,8", "ids=1,64", "ids=1,32"], **options)
    assert not bad.improved and "slower" in bad.outcome


def test_extents_are_parsed_from_text_and_mappings():
    assert parse_extents("x=1,2,batch=3", "--at") == {"x": (1, 2), "batch": (3,)}
    assert parse_extents(["x=1,?", "a=b=4"], "--at") == {"x": (1, None), "a=b": (4,)}
    assert parse_extents({"x": [1, 2], "n": 3}, "at") == {"x": (1, 2), "n": (3,)}
    with pytest.raises(UserError, match="two shapes"):
        parse_extents("x=1,x=2", "--shape")


def test_usual_extents_go_by_name_and_place():
    def usual(*inputs):
        infos = [helper.make_tensor_value_info(name, dtype, shape) for name, dtype, shape in inputs]
        nodes = [helper.make_node("Identity", [i[0]], [f"{i[0]}_"]) for i in inputs]
        outs = [helper.make_tensor_value_info(f"{i[0]}_", i[1], None) for i in inputs]
        graph = helper.make_graph(nodes, "g", infos, outs)
        return usual_extents(load(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])))

    assert usual(("x", F, ["batch", 3, "height", "width"])) == {"batch": 1, "height": 224, "width": 224}
    assert usual(("x", F, [None, 3, None, None])) == {"?x.0": 1, "?x.2": 224, "?x.3": 224}
    assert usual(("ids", I64, ["N", "T"])) == {"N": 1, "T": 128}
    assert usual(("a", F, ["n", "sequence_length", 8])) == {"n": 1, "sequence_length": 128}


def test_selections_cost_what_the_exported_graph_costs(path):
    from xrlflow.cost.base import graph_cost

    result = xrlflow.optimize(path, target="roofline:epyc-1t", max_steps=50, method="saturation")
    space, cost = result.space, result.cost
    chosen = result.extraction.selection
    assert graph_cost(space, cost, chosen, space.to_graph(chosen)) == pytest.approx(cost.total(chosen), rel=1e-12)
    # a graph that is not the selection's has another cost, so the check can fail
    other = space.to_graph(space.original)
    assert graph_cost(space, cost, chosen, other) != pytest.approx(cost.total(chosen), rel=1e-6)
    assert isinstance(chosen, Selection)


def pyramid():
    """Strided convolutions and pooling over an image of any size, its maps resized to rows and joined."""
    attrs = {"pads": [1, 1, 1, 1], "strides": [2, 2], "kernel_shape": [3, 3]}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], **attrs),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Reshape", ["b", "rows"], ["b1"]),
        helper.make_node("Reshape", ["c", "rows"], ["c1"]),
        helper.make_node("Concat", ["b1", "c1"], ["d"], axis=2),
        helper.make_node("Transpose", ["d"], ["e"], perm=[0, 2, 1]),
        helper.make_node("Shape", ["e"], ["shape"]),
        helper.make_node("Slice", ["shape", "one", "two"], ["length"]),
        helper.make_node("ConstantOfShape", ["length"], ["zeros"]),
        helper.make_node("Unsqueeze", ["zeros", "last"], ["z"]),
        helper.make_node("Add", ["e", "z"], ["y"]),
    ]
    weights = [numpy_helper.from_array(noise(4, 3, 3, 3), "w")]
    for name, value in (("rows", [0, 4, -1]), ("one", [1]), ("two", [2]), ("last", [1])):
        weights.append(numpy_helper.from_array(np.array(value, np.int64), name))
    graph = helper.make_graph(
        nodes, "pyramid", [helper.make_tensor_value_info("x", F, ["n", 3, "h", None])],
        [helper.make_tensor_value_info("y", F, None)], weights,
    )  # fmt: skip
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.parametrize("make", [attention, pyramid])
def test_inferred_types_are_those_of_the_values_at_every_binding(make):
    model = make()
    graph = load(model)
    kinds = {graph.nodes[i].names[0]: graph.nodes[i].type for i in graph.live if graph.nodes[i].names}
    made = [o for n in model.graph.node for o in n.output if o in kinds]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    symbols = {s for kind in kinds.values() for s in kind.symbols}
    assert len(made) > 8 and not any(s.startswith("unk__") for s in symbols)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        binding = dict(zip(sorted(symbols), rng.integers(5, 40, len(symbols)).tolist(), strict=True))
        node = next(n for n in graph.nodes if n.op == "Input")
        shape = node.type.at(binding).shape
        array = rng.integers(0, 50, shape) if node.type.dtype == "int64" else rng.random(shape, np.float32)
        for name, value in zip(made, session.run(made, {str(node.attrs["name"]): array}), strict=True):
            assert kinds[name].at(binding).shape == value.shape, name


def test_images_of_any_size_go_through(tmp_path):
    onnx.save(pyramid(), tmp_path / "model.onnx")
    graph = load(tmp_path / "model.onnx")
    assert graph.coverage > 0.8
    xrlflow.save(graph, tmp_path / "out.onnx")
    found = verify(tmp_path / "model.onnx", tmp_path / "out.onnx", symbols={"n": 2, "h": 33, "?x.3": 50})
    assert found.passed and len(found.bindings) >= 3


def test_prices_that_depend_on_more_than_types_are_those_of_the_graph_too(path):
    # measured kernels: what is constant counts, and an e-node that was not worth measuring is only estimated
    from xrlflow.cost.base import Cost, graph_cost, payable

    space = xrlflow.saturate(load(path))
    prices = np.random.default_rng(0).random(space.n_nodes) * payable(space)
    cost = Cost(space, prices, "random")
    for method in ("climb", "greedy", "random"):
        found = xrlflow.extract(space, method, cost=cost, steps=60, seconds=None)
        graph = space.to_graph(found.selection)
        assert graph_cost(space, cost, found.selection, graph) == pytest.approx(found.cost, rel=1e-12)
