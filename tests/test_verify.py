"""Verification passes what computes the same and fails what does not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from xrlflow.egraph.graph import GraphBuilder, TensorType, Weight
from xrlflow.lowering import load, save, to_onnx, verify


def noise(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def network(error=0.0, layer=1, dtype="float32", merged=False):
    """A perceptron of three layers; `error` is that of one layer's weights; `merged` is the same by other means."""
    g = GraphBuilder()
    x = g.input("x", TensorType(("n", 32), dtype))
    for k in range(3):
        w = (noise(32, 32, seed=k) / np.sqrt(32)).astype(dtype)
        if k == layer:
            w = (w * (1 + error)).astype(dtype)
        if merged:  # x·w as two halves
            halves = g.op("MatMul", x, g.weight(w[:, :20])), g.op("MatMul", x, g.weight(w[:, 20:]))
            x = g.op("Concat", *halves, axis=1)
        else:
            x = g.op("MatMul", x, g.weight(w))
        x = g.op("Tanh", g.op("Add", x, g.weight(noise(32, seed=9 + k).astype(dtype))))
    return g.build({"y": x})


def test_equal_programs_pass():
    result = verify(network(), network(merged=True))
    assert result.passed
    assert result.verdict == "passed"
    assert result.samples == 3
    assert result.max_rel < 1e-5
    assert result.cosine > 0.999999
    assert str(result).startswith("passed: largest difference")


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_planted_error_of_one_percent_in_one_layer_fails(layer):
    result = verify(network(), network(error=0.01, layer=layer))
    assert not result.passed
    assert result.verdict == "failed"
    assert result.worst == "y"
    assert "allowed" in str(result)


def test_a_planted_error_fails_where_some_operators_are_opaque():
    def clipped(error):
        proto = to_onnx(network(error=error))
        proto.graph.node[-1].output[0] = "h"
        proto.graph.node.append(helper.make_node("HardSwish", ["h"], ["y"]))
        return proto

    assert verify(clipped(0), clipped(0)).passed
    assert not verify(clipped(0), clipped(0.01)).passed


def test_the_reference_gets_past_opaque_operators():
    from xrlflow.lowering import evaluate, random_inputs
    from xrlflow.lowering.opaque import OpaqueRunner

    # Token numbers cannot be perturbed, so the original's own error is known only if Gather can be passed.
    g = network()
    proto = to_onnx(g)
    proto.graph.input[0].CopyFrom(helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"]))
    proto.graph.initializer.append(numpy_helper.from_array(noise(50, 32), "table"))
    proto.graph.node.insert(0, helper.make_node("Gather", ["table", "ids"], ["x"]))
    graph = load(proto)
    ids = random_inputs(graph, 0, {"n": 9})
    (found,) = evaluate(graph, ids, opaque=OpaqueRunner(graph))
    (expected,) = evaluate(g, {"x": noise(50, 32)[ids["ids"]]})
    np.testing.assert_array_equal(found, expected)
    assert verify(graph, graph).passed


def test_graphs_protos_bytes_and_paths_are_accepted(tmp_path):
    graph = network()
    proto = to_onnx(graph)
    save(graph, tmp_path / "m.onnx")
    for model in (graph, proto, proto.SerializeToString(), tmp_path / "m.onnx", str(tmp_path / "m.onnx")):
        assert verify(model, proto, samples=1).passed
        assert verify(proto, model, samples=1).passed


def test_half_precision_has_its_own_tolerance():
    assert verify(network(dtype="float16"), network(dtype="float16", merged=True)).passed
    assert not verify(network(dtype="float16"), network(error=0.05, dtype="float16")).passed


def scaled(first, second, dtype):
    """(x · first) · second."""
    g = GraphBuilder()
    x = g.input("x", TensorType((64,), dtype))
    for factor in (first, second):
        x = g.op("Mul", x, g.weight(np.asarray(factor, dtype)))
    return g.build({"y": x})


@pytest.mark.parametrize(
    ("dtype", "small", "large"), [("float32", 2.0**-100, 2.0**127), ("float16", 2.0**-10, 2.0**15)]
)
def test_infinities_that_the_original_has_not_fail(dtype, small, large):
    # ONNX Runtime's CPU kernels compute float16 in float32, where nothing overflows: other targets do not.
    result = verify(scaled(small, large, dtype), scaled(large, small, dtype), samples=3)
    assert result.verdict == "failed"
    assert "infinite" in result.detail
    assert verify(scaled(small, large, dtype), scaled(small, large, dtype)).passed


def logarithm(constant, squared=False):
    g = GraphBuilder()
    x = g.input("x", TensorType((64,), "float32"))
    y = g.op("Mul", x, x) if squared else x
    return g.build({"y": g.op("Sqrt", g.op("Add", y, g.weight(np.asarray(constant, np.float32))))})


def test_nan_may_only_stand_where_the_original_has_it():
    assert verify(logarithm(0), logarithm(0)).passed  # roots of negative numbers on both sides
    assert not verify(logarithm(0, squared=True), logarithm(0)).passed


def test_an_original_that_is_nan_everywhere_proves_nothing():
    result = verify(logarithm(-1e9), logarithm(-1e9))
    assert result.verdict == "unavailable"
    assert not result.passed


def gathered(shift=0):
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Gather", ["table", "ids"], ["rows"]),
                helper.make_node("ReduceSum", ["rows"], ["sums"], keepdims=0, noop_with_empty_axes=0),
                helper.make_node("Add", ["rows", "shift"], ["y"]),
            ],
            "g",
            [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
            [
                helper.make_tensor_value_info("y", TensorProto.INT64, ["n", 3]),
                helper.make_tensor_value_info("sums", TensorProto.INT64, []),
            ],
            [
                numpy_helper.from_array(np.arange(15).reshape(5, 3), "table"),
                numpy_helper.from_array(np.array(shift), "shift"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def test_integers_have_to_be_equal_and_indices_stay_in_range():
    assert verify(gathered(), gathered(), samples=6).passed
    result = verify(gathered(), gathered(shift=1))
    assert result.verdict == "failed"
    assert "elements differ" in result.detail


def test_other_outputs_or_shapes_fail():
    g = GraphBuilder()
    x = g.input("x", TensorType((2, 3), "float32"))
    one, other, wide = g.build({"y": x}), g.build({"z": x}), g.build({"y": g.op("Reshape", x, shape=(3, 2))})
    assert "outputs" in verify(one, other).detail
    assert "[3, 2]" in verify(one, wide).detail


def test_empty_tensors_say_nothing():
    g = GraphBuilder()
    x = g.input("x", TensorType((0, 3), "float32"))
    graph = g.build({"y": g.op("Relu", x)})
    assert verify(graph, graph).verdict == "unavailable"
    both = g.build({"y": g.op("Relu", x), "z": g.op("Exp", g.input("w", TensorType((2,), "float32")))})
    assert verify(both, both).passed


def test_models_that_onnx_runtime_cannot_run_are_not_verified():
    node = helper.make_node("Magic", ["x"], ["y"], domain="acme")
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "xy"]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    proto = helper.make_model(helper.make_graph([node], "g", info[:1], info[1:]), opset_imports=imports, ir_version=8)
    result = verify(proto, proto)
    assert result.verdict == "unavailable"
    assert "acme" in str(result)
    good = onnx.ModelProto()
    good.CopyFrom(proto)
    good.graph.node[0].CopyFrom(helper.make_node("Relu", ["x"], ["y"]))
    assert verify(good, proto).verdict == "failed"


def test_random_models_cannot_be_compared():
    node = helper.make_node("RandomNormalLike", ["x"], ["y"])
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [64]) for n in "xy"]
    proto = helper.make_model(
        helper.make_graph([node], "g", info[:1], info[1:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    assert verify(proto, proto).verdict == "unavailable"


def cancelling(order):
    """Sums that cancel: the original's own rounding error is as large as the result."""
    g = GraphBuilder()
    x = g.input("x", TensorType((64,), "float32"))
    big = g.op("Mul", x, g.weight(np.asarray(1e4, np.float32)))
    terms = [big, x, g.op("Neg", big)]
    total = terms[order[0]]
    for k in order[1:]:
        total = g.op("Add", total, terms[k])
    return g.build({"y": total})


def test_errors_are_judged_against_the_originals_own():
    assert verify(cancelling((0, 1, 2)), cancelling((0, 1, 2))).passed
    rough = verify(cancelling((0, 1, 2)), cancelling((0, 2, 1)))
    assert rough.passed  # closer to the exact result than the original
    assert rough.max_rel > 1e-4
    assert not verify(cancelling((0, 2, 1)), cancelling((0, 1, 2))).passed  # and the other way round it is a loss


def test_several_extents_of_symbolic_dimensions_are_tried_and_bindings_are_kept():
    g = GraphBuilder()
    x = g.input("x", TensorType(("n", 3), "float32"))
    graph = g.build({"y": g.op("Relu", x)})
    first = np.ones((2, 3), np.float32)  # right for n = 2 and, by broadcasting, for n = 1 only in value
    g2 = GraphBuilder()
    x2 = g2.input("x", TensorType(("n", 3), "float32"))
    bound = g2.build({"y": g2.add("Mul", (g2.op("Relu", x2), g2.weight(first)), (), TensorType(("n", 3), "float32"))})
    assert verify(graph, bound, samples=1).passed
    assert not verify(graph, bound, samples=3).passed
    assert verify(graph, bound, samples=3, symbols={"n": 2}).passed


def test_outputs_that_ignore_the_inputs_are_mentioned():
    g = GraphBuilder()
    x = g.input("x", TensorType((3,), "float32"))
    constant = g.weight(Weight.of(np.ones(3, np.float32), "c"))
    graph = g.build({"y": g.op("Mul", x, constant), "z": g.op("Exp", constant)})
    assert "z did not depend" in str(verify(graph, graph))


def test_loading_back_a_saved_graph_verifies(tmp_path):
    graph = network()
    save(graph, tmp_path / "m.onnx")
    assert verify(graph, load(tmp_path / "m.onnx")).max_abs == 0
