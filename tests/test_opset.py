"""Opsets 7 to 25 are read and written as they came, or converted where that is asked for; the numbers stay the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import xrlflow
from xrlflow.errors import UserError
from xrlflow.extract import main
from xrlflow.lowering import load, save, to_onnx
from xrlflow.lowering.onnx_opset import convert_opset
from xrlflow.zoo import build

ort.set_default_logger_severity(4)
F, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
OPSETS = range(7, 26)
node = helper.make_node


def value(name, shape=None, dtype=F):
    return helper.make_tensor_value_info(name, dtype, shape)


def weight(name, array, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(array, dtype), name)


def noise(*shape):
    return np.random.default_rng([7, *shape]).standard_normal(shape).astype(np.float32) / 2


def dozen(opset, batch="batch"):
    """A model with a dozen operators whose form differs between opsets, in the form of this one."""
    weights = [
        weight("kernel", noise(6, 3, 3, 3)), weight("scale", 1 + noise(6) / 4), weight("shift", noise(6)),
        weight("mean", noise(6)), weight("variance", noise(6) ** 2 + 0.5), weight("matrix", noise(54, 8)),
        weight("bias", noise(8)), weight("dense", noise(8, 8)),
    ]  # fmt: skip

    def variant(since, op, inputs, outputs, key, constant, dtype=np.int64, **attrs):
        """`key` is an attribute below opset `since`, an input from then on."""
        if opset < since:
            attrs[key] = list(constant) if isinstance(constant, list) else constant
        else:
            name = f"{outputs[0]}_{key}"
            weights.append(weight(name, constant, dtype))
            inputs = [*inputs, name]
        return node(op, inputs, outputs, name=f"the_{outputs[0]}", **attrs)

    if opset < 11:
        clip = node("Clip", ["act"], ["clipped"], min=0.0, max=6.0)
    else:
        weights.extend([weight("low", 0.0), weight("high", 6.0)])
        clip = node("Clip", ["act", "low", "high"], ["clipped"])
    if opset < 10:
        sliced = node("Slice", ["soft"], ["part"], axes=[1], starts=[0], ends=[8])
    else:
        weights.extend([weight("starts", [0], np.int64), weight("ends", [8], np.int64), weight("axes", [1], np.int64)])
        sliced = node("Slice", ["soft", "starts", "ends", "axes"], ["part"])
    weights.append(weight("flat", [0, -1], np.int64))
    nodes = [
        node("Conv", ["x", "kernel"], ["conv"], name="the_conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["conv", "scale", "shift", "mean", "variance"], ["norm"], epsilon=1e-3),
        node("Relu", ["norm"], ["act"], doc_string="rectifies"),
        clip,
        node("MaxPool", ["clipped"], ["pool"], kernel_shape=[2, 2], strides=[2, 2]),
        variant(13, "Unsqueeze", ["pool"], ["wide"], "axes", [1]),
        variant(13, "Squeeze", ["wide"], ["narrow"], "axes", [1]),
        node("Reshape", ["narrow", "flat"], ["rows"]),
        node("Gemm", ["rows", "matrix", "bias"], ["dense_out"], alpha=0.5),
        node("Dropout", ["dense_out"], ["kept"]),
        node("Softmax", ["kept"], ["soft"], axis=1),
        sliced,
        node("MatMul", ["part", "dense"], ["mixed"]),
        variant(13, "ReduceSum", ["mixed"], ["total"], "axes", [1], keepdims=1),
        variant(18, "ReduceMean", ["mixed"], ["middle"], "axes", [1], keepdims=1),
        node("Sub", ["total", "middle"], ["apart"]),
        variant(13, "Split", ["mixed"], ["left", "right"], "split", [4, 4], axis=1),
        node("Concat", ["left", "right", "apart"], ["joined"], axis=1),
        node("Elu", ["joined"], ["y"], alpha=0.5),
    ]  # fmt: skip
    inputs = [value("x", [batch, 3, 6, 6])]
    ir = 3 if opset < 9 else 8
    if ir == 3:
        inputs += [value(t.name, list(t.dims), t.data_type) for t in weights]
    graph = helper.make_graph(nodes, "dozen", inputs, [value("y", [batch, 9])], weights, doc_string="a dozen")
    return helper.make_model(graph, ir_version=ir, opset_imports=[helper.make_opsetid("", opset)], producer_name="me")


def run(proto, x):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = proto if isinstance(proto, str) else proto.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})


def imported(proto):
    return next(o.version for o in proto.opset_import if o.domain == "")


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_is_read_and_written_as_it_came(opset):
    proto = dozen(opset)
    onnx.checker.check_model(proto, full_check=True)
    out = to_onnx(load(proto))
    onnx.checker.check_model(out, full_check=True)
    onnx.shape_inference.infer_shapes(out, check_type=True, strict_mode=True)
    assert (imported(out), out.ir_version) == (opset, proto.ir_version)
    # every node is back as it was; only Dropout, which does nothing, is gone
    kept = [n for n in proto.graph.node if n.op_type != "Dropout"]
    assert [n.op_type for n in out.graph.node] == [n.op_type for n in kept]
    for a, b in zip(kept, out.graph.node, strict=True):
        assert (a.name, a.doc_string, list(a.output), list(a.attribute)) == (
            b.name, b.doc_string, list(b.output), list(b.attribute),
        )  # fmt: skip
    assert {t.name for t in out.graph.initializer} >= {"kernel", "matrix", "dense", "flat"}
    x = noise(2, 3, 6, 6)
    np.testing.assert_allclose(run(out, x)[0], run(proto, x)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("target", [7, 9, 10, 12, 13, 17, 18, 21, 25])
def test_conversion_upward_keeps_numbers_and_names(target):
    for opset in (7, 9, 11, 13, 17, 20, 23):
        if opset >= target:
            continue
        proto = dozen(opset)
        out = to_onnx(load(proto, opset=target))
        onnx.checker.check_model(out, full_check=True)
        assert imported(out) == target
        least = helper.find_min_ir_version_for([helper.make_opsetid("", target)])
        assert out.ir_version == max(proto.ir_version, least)
        assert [i.name for i in out.graph.input if i.name == "x" or out.ir_version >= 4] == ["x"]
        assert (out.producer_name, out.graph.name, out.graph.doc_string) == ("me", "dozen", "a dozen")
        assert {"the_conv", "the_left", "the_total"} <= {n.name for n in out.graph.node}
        x = noise(2, 3, 6, 6)
        np.testing.assert_allclose(run(out, x)[0], run(proto, x)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("opset", [25, 21, 18, 13])
def test_conversion_downward_keeps_numbers(opset):
    proto = dozen(opset)
    for target in (20, 17, 14, 13, 12, 11, 9, 8, 7):
        if target >= opset:
            continue
        out = to_onnx(load(proto, opset=target))
        onnx.checker.check_model(out, full_check=True)
        assert (imported(out), out.ir_version) == (target, 8)
        x = noise(2, 3, 6, 6)
        np.testing.assert_allclose(run(out, x)[0], run(proto, x)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("nodes", "opset", "target", "why"),
    [
        ([node("Celu", ["x"], ["y"], name="bend")], 18, 11, "Celu 'bend': opset 11 has no such operator"),
        ([node("Softmax", ["x"], ["y"], axis=0)], 13, 12, "Softmax 'y': before opset 13 it cannot run along axis 0"),
        ([node("ReduceMean", ["x", "axes"], ["y"])], 18, 17, "'axes' is computed or large"),
        ([node("Reshape", ["x", "axes"], ["y"], allowzero=1)], 14, 13, "attribute allowzero came after opset 13"),
        ([node("Clip", ["x", "low"], ["y"])], 13, 7, "'low' is computed or large"),
        ([node("Gemm", ["x", "x"], ["y"], transB=1)], 13, 10, "another number of inputs"),
    ],
)
def test_what_an_older_opset_cannot_say_is_refused_by_name(nodes, opset, target, why):
    inputs = [value("x", [3, 4]), value("axes", [1], I64), value("low", [])]
    graph = helper.make_graph(nodes, "g", inputs, [value("y")])
    proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])
    with pytest.raises(UserError, match=f"cannot be converted from opset {opset} to {target}") as caught:
        load(proto, opset=target)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_opsets_that_cannot_be_are_refused():
    for opset in (0, 6, 29, -1):
        with pytest.raises(UserError, match="opset must be between 7 and"):
            load(dozen(13), opset=opset)
    old = dozen(7)
    old.opset_import[0].version = 6
    with pytest.raises(UserError, match=r"opset 6 is older than 7; convert it with onnx\.version_converter"):
        load(old)


def test_a_conversion_that_changes_results_is_refused(monkeypatch):
    from xrlflow.lowering import onnx_opset

    real = onnx_opset.onnx.version_converter.convert_version

    def wrong(model, version):
        out = real(model, version)
        next(n for n in out.graph.node if n.op_type == "Gemm").attribute[0].f = 0.25
        return out

    monkeypatch.setattr(onnx_opset.onnx.version_converter, "convert_version", wrong)
    with pytest.raises(UserError, match="converted from opset 13 to 18, it computes something else"):
        load(dozen(13), opset=18)
    assert imported(to_onnx(load(dozen(13), opset=18, verify=False))) == 18


def test_a_model_that_cannot_be_compared_is_refused_unless_that_is_accepted():
    proto = dozen(13)
    proto.graph.node.append(node("Magic", ["y"], ["z"], domain="acme"))
    proto.graph.output.append(value("z", ["batch", 9]))
    proto.opset_import.append(helper.make_opsetid("acme", 1))
    with pytest.raises(UserError, match="--no-verify"):
        load(proto, opset=18)
    out = to_onnx(load(proto, opset=18, verify=False))
    assert [n.op_type for n in out.graph.node if n.domain] == ["Magic"]


def everything(opset=17):
    """A model with all that ONNX's converter has no place for."""
    proto = dozen(opset)
    graph = proto.graph
    then = helper.make_graph(
        [node("Squeeze", ["y", "first"], ["t0"]), node("Mul", ["t0", "double"], ["t"])], "then", [], [value("t")]
    )
    other = helper.make_graph(
        [node("Neg", ["y"], ["e0"]), node("Squeeze", ["e0", "first"], ["e"])], "other", [], [value("e")]
    )
    graph.node.append(node("If", ["flag"], ["chosen"], then_branch=then, else_branch=other, name="branch"))
    graph.node.append(node("f", ["y"], ["g"], domain="my"))
    graph.node.append(node("Add", ["g", "sparse"], ["h"]))
    graph.node.append(node("SequenceConstruct", ["h", "y"], ["many"]))
    graph.node[0].metadata_props.add(key="scope", value="model.conv")
    graph.input.append(value("flag", [], BOOL))
    graph.initializer.append(weight("first", [0], np.int64))
    graph.initializer.append(weight("double", 2.0))
    graph.sparse_initializer.append(
        helper.make_sparse_tensor(weight("sparse", [2.0, 3.0]), weight("", [1, 4], np.int64), [9])
    )
    graph.output.extend([value("chosen", ["k"]), helper.make_tensor_sequence_value_info("many", F, None)])
    graph.value_info.append(value("conv", ["batch", 6, 6, 6]))
    graph.metadata_props.add(key="graph", value="kept")
    annotation = graph.quantization_annotation.add(tensor_name="conv")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="step")
    graph.initializer.append(weight("step", 0.1))
    proto.metadata_props.add(key="model", value="kept")
    f = helper.make_function("my", "f", ["a"], ["o"], [node("Celu", ["a"], ["o"])], [helper.make_opsetid("", opset)])
    proto.functions.append(f)
    proto.opset_import.append(helper.make_opsetid("my", 1))
    return proto


def test_conversion_keeps_what_the_converter_has_no_place_for():
    proto = everything()
    onnx.checker.check_model(proto)
    out = to_onnx(load(proto, opset=21))
    onnx.checker.check_model(out)
    graph = out.graph
    names = {n.name: n for n in graph.node}
    assert {p.key: p.value for p in names["the_conv"].metadata_props} == {"scope": "model.conv"}
    assert [p.value for p in (*graph.metadata_props, *out.metadata_props)] == ["kept", "kept"]
    assert [s.values.name for s in graph.sparse_initializer] == ["sparse"]
    assert [a.tensor_name for a in graph.quantization_annotation] == ["conv"]
    assert "step" in {t.name for t in graph.initializer}
    assert [f.name for f in out.functions] == ["f"]
    assert graph.output[2].type.HasField("sequence_type")
    assert "conv" in {i.name for i in graph.value_info}
    feeds = {"x": noise(1, 3, 6, 6), "flag": np.array(True)}
    for a, b in zip(*(ort.InferenceSession(m.SerializeToString()).run(None, feeds) for m in (proto, out)), strict=True):
        for p, q in zip(a, b, strict=True):
            np.testing.assert_allclose(p, q, rtol=1e-5, atol=1e-6)


def test_constants_that_bodies_capture_do_not_stop_a_conversion_downward():
    out = to_onnx(load(everything(17), opset=12))
    onnx.checker.check_model(out)
    assert imported(out) == 12
    body = next(a.g for n in out.graph.node if n.op_type == "If" for a in n.attribute if a.name == "then_branch")
    assert next(n for n in body.node if n.op_type == "Squeeze").attribute[0].name == "axes"


def test_functions_are_inlined_where_the_new_opset_would_change_them():
    f = helper.make_function(
        "my", "f", ["a"], ["o"], [node("Celu", ["a"], ["c"]), node("PRelu", ["c", "slope"], ["o"])],
        [helper.make_opsetid("", 13)],
    )  # fmt: skip
    f.node.insert(0, node("Constant", [], ["slope"], value_float=0.5))
    graph = helper.make_graph([node("f", ["x"], ["y"], domain="my")], "g", [value("x", [3])], [value("y", [3])])
    imports = [helper.make_opsetid("", 13), helper.make_opsetid("my", 1)]
    proto = helper.make_model(graph, ir_version=8, opset_imports=imports, functions=[f])
    kept = to_onnx(load(proto, opset=14))
    assert [n.op_type for n in kept.graph.node] == ["f"]
    stale = to_onnx(load(proto, opset=20))  # Constant changed in opset 19
    assert "f" not in {n.op_type for n in stale.graph.node}
    x = np.array([-1, 0.2, 3], np.float32)
    np.testing.assert_allclose(run(stale, x)[0], run(proto, x)[0], rtol=1e-6)


def test_large_weights_are_not_handed_to_the_converter(monkeypatch, tmp_path):
    from xrlflow.lowering import onnx_opset

    sizes = []
    real = onnx_opset.onnx.version_converter.convert_version
    monkeypatch.setattr(
        onnx_opset.onnx.version_converter, "convert_version", lambda m, v: (sizes.append(m.ByteSize()), real(m, v))[1]
    )
    big = noise(512, 512)
    constant = node("Constant", [], ["c"], value=weight("", big))
    nodes = [
        constant,
        node("MatMul", ["x", "w"], ["h"]),
        node("MatMul", ["h", "c"], ["i"]),
        node("Softmax", ["i"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [value("x", [2, 512])], [value("y", [2, 512])], [weight("w", big + 1)])
    proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    out = to_onnx(load(proto, opset=18))
    assert max(sizes) < 10_000
    x = noise(2, 512)
    np.testing.assert_allclose(run(out, x)[0], run(proto, x)[0], rtol=1e-5)
    path = tmp_path / "in.onnx"  # and with external data
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    onnx.save(copy, path, save_as_external_data=True, location="in.data")
    (tmp_path / "out").mkdir()
    save(load(path, opset=18), tmp_path / "out" / "out.onnx")
    assert imported(onnx.load(tmp_path / "out" / "out.onnx")) == 18
    np.testing.assert_allclose(run(str(tmp_path / "out" / "out.onnx"), x)[0], run(proto, x)[0], rtol=1e-5)
    assert max(sizes) < 10_000


def test_nothing_is_converted_that_is_in_the_opset_already():
    proto = dozen(13)
    assert convert_opset(proto, 13) is proto


def test_the_command_writes_the_opset_even_if_the_original_is_returned(tmp_path, capsys):
    source, out, record = tmp_path / "in.onnx", tmp_path / "out.onnx", tmp_path / "run.json"
    onnx.save(dozen(13), source)
    arguments = [
        str(source),
        "-o",
        str(out),
        "--target",
        "roofline:epyc-1t",
        "--max-steps",
        "20",
        "--json",
        str(record),
    ]
    assert main([*arguments, "--opset", "18", "--method", "original"]) == 0
    assert "converted from opset 13 to 18" in capsys.readouterr().out
    assert imported(onnx.load(out)) == 18
    saved = json.loads(record.read_text())
    assert (saved["graph"]["opset"], saved["graph"]["converted_from"]) == (18, 13)
    x = noise(2, 3, 6, 6)
    np.testing.assert_allclose(run(str(out), x)[0], run(str(source), x)[0], rtol=1e-6)
    assert main([*arguments, "--opset", "18", "--method", "saturation"]) == 0
    assert imported(onnx.load(out)) == 18
    assert main([*arguments, "--method", "original"]) == 0
    assert out.read_bytes() == source.read_bytes()
    capsys.readouterr()
    assert main([*arguments, "--opset", "3"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_graph_is_in_its_opset_already():
    graph = load(dozen(13))
    with pytest.raises(UserError, match="opset"):
        xrlflow.optimize(graph, opset=18, target="roofline:epyc-1t", method="original")
    assert not xrlflow.optimize(graph, opset=13, target="roofline:epyc-1t", method="original").improved


def test_a_model_that_is_specialised_as_well_is_compared_at_its_extents(tmp_path: Path) -> None:
    """The original runs at any extents, the converted model at one: only there they can be compared."""
    onnx.save(build("llama-tiny", tokens="n"), tmp_path / "m.onnx")
    graph = load(tmp_path / "m.onnx", shapes={"n": 8}, opset=20)
    assert graph.source.opset == 20 and not any(node.type.symbols for node in graph.nodes)
