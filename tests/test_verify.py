"""Verification passes what computes the same and fails what does not."""

from __future__ import annotations

import time

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import xrlflow
from xrlflow.egraph.graph import GraphBuilder, TensorType, Weight
from xrlflow.lowering import load, save, to_onnx, verify
from xrlflow.lowering.plain_session import PlainSession


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


def test_an_original_that_is_nan_everywhere_passes_with_a_warning():
    result = verify(logarithm(-1e9), logarithm(-1e9))
    assert result.passed
    assert "NaN" in result.notes[0]
    assert not verify(logarithm(-1e9), logarithm(1e9)).passed  # numbers where the original has NaN


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


def test_empty_tensors_are_legal_and_mentioned():
    g = GraphBuilder()
    x = g.input("x", TensorType((0, 3), "float32"))
    graph = g.build({"y": g.op("Relu", x)})
    result = verify(graph, graph)
    assert result.passed
    assert "empty" in str(result)
    both = g.build({"y": g.op("Relu", x), "z": g.op("Exp", g.input("w", TensorType((2,), "float32")))})
    assert "empty" not in str(verify(both, both))


def model(nodes, inputs, outputs, opset=17, domains=(), **weights):
    """A model; inputs and outputs as (name, type, shape), weights as arrays or tensors."""
    tensors = [
        a if isinstance(a, TensorProto) else numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()
    ]
    infos = [[helper.make_tensor_value_info(*v) for v in values] for values in (inputs, outputs)]
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    graph = helper.make_graph(nodes, "g", *infos, tensors)
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


F, I = TensorProto.FLOAT, TensorProto.INT64
W = noise(16, 16, seed=3) / 4


def magic():
    return model(
        [helper.make_node("Magic", ["x"], ["y"], domain="acme")], [("x", F, [2])], [("y", F, [2])], 17, ["acme"]
    )


def test_models_that_onnx_runtime_cannot_run_are_unverified_and_the_operator_is_named():
    result = verify(magic(), magic())
    assert result.verdict == "unverified"
    assert not result.passed
    assert "lacks the operator acme:Magic" in str(result)
    good = magic()
    good.graph.node[0].CopyFrom(helper.make_node("Relu", ["x"], ["y"]))
    assert verify(good, magic()).verdict == "failed"


@pytest.mark.parametrize("random", ["RandomNormalLike", "Dropout"])
def test_random_models_are_compared_with_the_random_values_fixed(random):
    def network(before=1.0, after=1.0):
        node = helper.make_node(random, ["h"], ["r"])
        if random == "Dropout":
            node.input.extend(["ratio", "training"])
        return model(
            [
                helper.make_node("MatMul", ["x", "w"], ["h"]), node, helper.make_node("Add", ["h", "r"], ["s"]),
                helper.make_node("MatMul", ["s", "v"], ["y"]),
            ],
            [("x", F, ["n", 16])], [("y", F, ["n", 16])],
            w=np.float32(before) * W, v=np.float32(after) * W, ratio=np.float32(0.5), training=np.array(True),
        )  # fmt: skip

    result = verify(network(), network())
    assert result.passed
    assert result.judge == "the reference evaluator"
    assert "random" in str(result)
    assert verify(network(), network(after=1.01)).verdict == "failed"
    assert "other operands" in verify(network(), network(before=1.01)).detail


def test_random_models_whose_other_operators_cannot_be_computed_are_unverified():
    both = magic()
    both.graph.node.insert(0, helper.make_node("RandomNormalLike", ["x"], ["r"]))
    both.graph.node[1].input[0] = "r"
    assert "acme" in verify(both, both).detail


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


def test_several_bindings_of_symbolic_dimensions_are_run():
    g = GraphBuilder()
    x, z = g.input("x", TensorType(("n", 3), "float32")), g.input("z", TensorType(("m", 3), "float32"))
    graph = g.build({"y": g.op("Relu", x), "z": g.op("Relu", z)})
    result = verify(graph, graph)
    assert len(result.bindings) == 3
    assert {"n": 1, "m": 1} in result.bindings
    assert any(b["n"] != b["m"] for b in result.bindings)
    assert "3 bindings" in str(result)


def test_a_program_that_is_right_at_some_extents_only_fails():
    g = GraphBuilder()
    x = g.input("x", TensorType(("n", 3), "float32"))
    graph = g.build({"y": g.op("Relu", x)})
    first = np.ones((2, 3), np.float32)  # right for n = 2 and, by broadcasting, for n = 1 only in value
    g2 = GraphBuilder()
    x2 = g2.input("x", TensorType(("n", 3), "float32"))
    bound = g2.build({"y": g2.add("Mul", (g2.op("Relu", x2), g2.weight(first)), (), TensorType(("n", 3), "float32"))})
    assert verify(graph, bound, samples=1).passed
    assert not verify(graph, bound, samples=3).passed


def test_bindings_that_the_caller_names_are_compared_in_addition():
    g = GraphBuilder()
    x = g.input("x", TensorType(("n", 3), "float32"))
    graph = g.build({"y": g.op("Relu", x)})
    result = verify(graph, graph, symbols=[{"n": 40}, {"n": 41}])
    assert [b["n"] for b in result.bindings][:2] == [40, 41]
    assert len(result.bindings) == 5
    assert {"n": 40} in verify(graph, graph, symbols={"n": 40}).bindings


def vision(error=0.0):
    """An image network that leaves nothing of small images."""
    w = noise(4, 3, 7, 7) * (1 + error)
    return model(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], strides=[4, 4]),
            helper.make_node("MaxPool", ["c"], ["p"], kernel_shape=[3, 3], strides=[2, 2]),
            helper.make_node("ReduceMean", ["p"], ["y"], axes=[2, 3]),
        ],
        [("x", F, ["batch", 3, "height", "width"])], [("y", F, None)], w=w.astype(np.float32),
    )  # fmt: skip


def test_extents_that_leave_nothing_to_compare_do_not_count():
    result = verify(vision(), vision())
    assert len(result.bindings) == 3
    assert all(b["height"] >= 16 for b in result.bindings)
    assert any(b["height"] != b["width"] for b in result.bindings)
    assert verify(vision(), vision(0.01)).verdict == "failed"


def test_fewer_than_three_bindings_are_mentioned():
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    only = model([node], [("x", F, ["n"])], [("y", F, [4, 8])], shape=np.array([4, 8]))
    result = verify(only, only)
    assert result.passed
    assert result.bindings == ({"n": 32},)
    assert "only 1 binding" in str(result)


def test_names_of_dimensions_that_are_sums_are_computed():
    joined = model(
        [helper.make_node("Concat", ["past", "x"], ["k"], axis=1), helper.make_node("Add", ["k", "mask"], ["y"])],
        [("past", F, ["b", "past_len"]), ("x", F, ["b", "len"]), ("mask", F, ["b", "past_len + len"])],
        [("y", F, ["b", "total"])],
    )
    result = verify(joined, joined)
    assert len(result.bindings) == 3
    assert all(b["past_len + len"] == b["past_len"] + b["len"] for b in result.bindings)


def test_no_input_is_tried_that_would_take_too_long(monkeypatch):
    run = PlainSession.run
    monkeypatch.setattr(PlainSession, "run", lambda self, inputs: (time.sleep(0.2), run(self, inputs))[1])
    assert verify(network(), network(merged=True), seconds=0.7).samples == 1
    assert verify(network(), network(merged=True), seconds=20).samples == 3


def test_the_time_limit_is_kept_but_one_sample_is_compared():
    result = verify(network(), network(merged=True), samples=1000, seconds=0.05)
    assert result.passed
    assert 1 <= result.samples < 200


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


# Values that rounding decides


def tie(error, op="ArgMax"):
    """Scores of which each occurs twice, the second time with a small error."""
    w = np.concatenate([W, W * np.float32(1 + error)], 1)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"])]
    if op == "TopK":
        nodes.append(helper.make_node("TopK", ["h", "k"], ["v", "y"], axis=1))
        return model(nodes, [("x", F, ["n", 16])], [("y", I, ["n", 4])], w=w, k=np.array([4]))
    nodes.append(helper.make_node(op, ["h"], ["y"], axis=1))
    return model(nodes, [("x", F, ["n", 16])], [("y", I, ["n", 1])], w=w)


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin", "TopK"])
def test_indices_may_differ_only_where_the_scores_are_equal(op):
    result = verify(tie(0, op), tie(1e-6, op))
    assert result.passed
    assert "ties" in str(result)
    shuffled = tie(0, op)
    w = numpy_helper.to_array(shuffled.graph.initializer[0])
    shuffled.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.roll(w, 3, 1), "w"))
    assert verify(tie(0, op), shuffled).verdict == "failed"


def quantised(error=0.0, output="y"):
    """Two layers with quantised activations; the output is int8 ("q") or dequantised ("y")."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("QuantizeLinear", ["h", "s", "z"], ["a"]),
        helper.make_node("DequantizeLinear", ["a", "s", "z"], ["b"]), helper.make_node("MatMul", ["b", "w"], ["m"]),
        helper.make_node("QuantizeLinear", ["m", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]  # fmt: skip
    kind = TensorProto.INT8 if output == "q" else F
    weights = {"w": W * np.float32(1 + error), "s": np.float32(0.02), "z": np.int8(0)}
    return model(nodes, [("x", F, [512, 16])], [(output, kind, [512, 16])], **weights)


@pytest.mark.parametrize("output", ["q", "y"])
def test_quantised_values_may_be_one_step_off_only_where_rounding_decides(output):
    near = verify(quantised(output=output), quantised(2e-7, output))
    assert near.passed, near
    assert verify(quantised(output=output), quantised(0.01, output)).verdict == "failed"
    assert verify(quantised(output=output), quantised(0.001, output)).verdict == "failed"


# Narrow types


def narrow(error, code):
    dtype = helper.tensor_dtype_to_np_dtype(code)

    def tensor(name, array):
        return helper.make_tensor(name, code, array.shape, array.astype(dtype).tobytes(), raw=True)

    return model(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("HardSwish", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "v"], ["z"]), helper.make_node("Cast", ["z"], ["c"], to=code),
            helper.make_node("Relu", ["c"], ["y"]),
        ],
        [("x", code, ["n", 16])], [("y", code, ["n", 16])], 22, w=tensor("w", W * (1 + error)), v=tensor("v", W),
    )  # fmt: skip


@pytest.mark.parametrize("code", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_errors_of_one_percent_are_caught_in_narrow_types(code):
    good = verify(narrow(0, code), narrow(0, code))
    assert good.passed
    assert verify(narrow(0, code), narrow(0.01, code)).verdict == "failed"
    if code == TensorProto.BFLOAT16:  # ONNX Runtime has no such kernels for the CPU
        assert good.judge == "the reference evaluator"
        assert "lacks the operator MatMul" in str(good)


def gelu(code, cubic=None, opset=20):
    """A product and GELU by the hyperbolic tangent, as gelu_new has it; one operator without `cubic`."""
    dtype = helper.tensor_dtype_to_np_dtype(code)
    w, given = W, {}
    made = [helper.make_node("MatMul", ["x", "w"], ["h"])]
    if cubic is None:
        made.append(helper.make_node("Gelu", ["h"], ["g"], approximate="tanh"))
    else:
        given = {"k": cubic, "r": np.sqrt(2 / np.pi), "half": 0.5, "one": 1.0}
        steps = [("Mul", "h", "h"), ("Mul", 0, "h"), ("Mul", 1, "k"), ("Add", "h", 2), ("Mul", 3, "r")]
        for i, (op, a, b) in enumerate(steps):
            made.append(helper.make_node(op, [f"t{k}" if isinstance(k, int) else k for k in (a, b)], [f"t{i}"]))
        made += [
            helper.make_node("Tanh", ["t4"], ["t"]), helper.make_node("Add", ["t", "one"], ["s"]),
            helper.make_node("Mul", ["h", "half"], ["m"]), helper.make_node("Mul", ["m", "s"], ["g"]),
        ]  # fmt: skip
    made.append(helper.make_node("MatMul", ["g", "w"], ["y"]))
    kept = {name: np.asarray(v, np.float32).astype(dtype) for name, v in (("w", w), *given.items())}
    tensors = {name: helper.make_tensor(name, code, a.shape, a.tobytes(), raw=True) for name, a in kept.items()}
    return model(made, [("x", code, ["n", 16])], [("y", code, ["n", 16])], opset, **tensors)


@pytest.mark.parametrize(("code", "wrong"), [(TensorProto.FLOAT16, 0.03), (TensorProto.BFLOAT16, 0.1)])
def test_numbers_that_a_narrow_type_only_approaches_may_be_recognised(code, wrong):
    approached = verify(gelu(code, 0.044715), gelu(code))
    assert approached.passed, approached
    for other in (1 - wrong, 1 + wrong):
        assert verify(gelu(code, 0.044715 * other), gelu(code)).verdict == "failed"


def test_steps_that_no_input_reaches_excuse_nothing():
    """A position by Ceil(Log(constant)), as in relative attention: noise on the constant flips it, no input does."""
    edge = np.nextafter(np.float32(8), np.float32(0))

    def positioned(error):
        rows = np.arange(5, dtype=np.float32)[:, None] * np.ones((5, 16), np.float32)
        return model(
            [
                helper.make_node("Log", ["c"], ["l"]), helper.make_node("Div", ["l", "two"], ["d"]),
                helper.make_node("Ceil", ["d"], ["e"]), helper.make_node("Cast", ["e"], ["i"], to=TensorProto.INT64),
                helper.make_node("Gather", ["t", "i"], ["p"]), helper.make_node("MatMul", ["x", "w"], ["h"]),
                helper.make_node("Add", ["h", "p"], ["y"]),
            ],
            [("x", F, ["n", 16])], [("y", F, ["n", 16])], 17, c=np.float32([edge]),
            two=np.float32(np.log(2)), t=rows, w=W * np.float32(1 + error),
        )  # fmt: skip

    assert verify(positioned(0), positioned(0)).passed
    assert verify(positioned(0), positioned(0.01)).verdict == "failed"


def test_nan_weights_are_legal():
    bad = W.copy()
    bad[0, 0] = np.nan
    both = model([helper.make_node("MatMul", ["x", "w"], ["y"])], [("x", F, ["n", 16])], [("y", F, ["n", 16])], w=bad)
    result = verify(both, both)
    assert result.passed
    assert "weight 'w' holds NaN" in str(result)
    other = model([helper.make_node("MatMul", ["x", "w"], ["y"])], [("x", F, ["n", 16])], [("y", F, ["n", 16])], w=W)
    assert verify(both, other).verdict == "failed"


def test_a_target_that_cannot_load_the_original_says_so():
    node = helper.make_node("Bogus", ["x"], ["y"], domain="acme")
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    graph = helper.make_graph([node], "g", infos[:1], infos[1:])
    model = helper.make_model(graph, ir_version=8, opset_imports=imports)
    options = {"cost": "roofline:epyc-1t", "max_steps": 5}
    found = xrlflow.optimize(model, target="onnxruntime", **options)
    assert any("lacks the operator acme:Bogus" in note for note in found.notes)
    assert not xrlflow.optimize(model, target="roofline:epyc-1t", **options).improved
