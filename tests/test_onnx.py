"""ONNX in, ONNX out: what is read is what is written, for every core operator, opset and oddity."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from xrlflow import zoo
from xrlflow.egraph.graph import GraphBuilder, TensorType, Weight
from xrlflow.errors import UserError
from xrlflow.lowering import available, load, save, to_onnx, verify

ort.set_default_logger_severity(4)
F, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
LIGHT = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))


def value(name, dtype=F, shape=None):
    return helper.make_tensor_value_info(name, dtype, shape)


def weight(name, array, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(array, dtype), name)


def noise(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def model(nodes, inputs, outputs, weights=(), opset=18, ir=8, domains=(), **fields):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    proto = helper.make_model(graph, ir_version=ir, opset_imports=imports, **fields)
    return typed(proto) if opset < 100 else proto


def typed(proto):
    """The model with the shapes of its outputs, which the checker demands, where ONNX can infer them."""
    inferred = onnx.shape_inference.infer_shapes(proto)
    for o, found in zip(proto.graph.output, inferred.graph.output, strict=True):
        if not o.type.tensor_type.HasField("shape"):
            o.CopyFrom(found)
    return proto


def run(proto, inputs):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    data = proto if isinstance(proto, (str, bytes)) else proto.SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, {i.name: inputs[i.name] for i in session.get_inputs()})


def feed(proto, seed=0):
    rng = np.random.default_rng(seed)
    weights = {t.name for t in proto.graph.initializer}
    found = {}
    for i in proto.graph.input:
        if i.name not in weights:
            kind = i.type.tensor_type
            shape = [d.dim_value or 2 for d in kind.shape.dim]
            dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
            found[i.name] = np.asarray(
                rng.standard_normal(shape) if dtype != np.bool_ else rng.random(shape) < 0.5
            ).astype(dtype)
    return found


def round_trip(proto, seeds=1):
    """The model after load and save, checked to be valid, to keep its interface and to compute the same."""
    onnx.checker.check_model(proto, full_check=True)
    graph = load(proto)
    out = to_onnx(graph)
    onnx.checker.check_model(out, full_check=True)
    assert [o.name for o in out.graph.output] == [o.name for o in proto.graph.output]
    assert [i.name for i in out.graph.input] == [i.name for i in proto.graph.input]
    assert out.ir_version == proto.ir_version
    assert list(out.opset_import) == list(proto.opset_import)
    for seed in range(seeds):
        inputs = feed(proto, seed)
        for a, b in zip(run(proto, inputs), run(out, inputs), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6)
    return graph, out


def ops(graph):
    return [graph.nodes[i].op for i in graph.operators]


# Every core operator: (name, model maker for an opset, opsets, the core operators that it must be read as)

X = value("x", shape=[2, 6, 7, 9])
M = value("x", shape=[4, 6])


def one(op, opset, inputs=("x",), x=X, weights=(), n=1, **attrs):
    outputs = [f"y{k}" for k in range(n)]
    node = helper.make_node(op, list(inputs), outputs, **attrs)
    return model([node], [x], [value(o) for o in outputs], weights, opset)


def by_version(op, since, opset, key, constant, x=X, extra=(), n=1, **attrs):
    """An operator whose `key` is an attribute below opset `since` and an input from then on."""
    if opset < since:
        return one(op, opset, x=x, n=n, **{key: list(constant)}, **attrs)
    w = [weight(key, constant, np.int64)]
    return one(op, opset, ("x", *extra, key), x, w, n=n, **attrs)


def sliced(opset, starts, ends, axes):
    if opset < 10:
        return one("Slice", opset, starts=starts, ends=ends, axes=axes)
    w = [weight(k, v, np.int64) for k, v in (("starts", starts), ("ends", ends), ("axes", axes))]
    return one("Slice", opset, ("x", "starts", "ends", "axes"), weights=w)


def comparing(op, opset):
    nodes = [helper.make_node(op, ["x", "w"], ["c"]), helper.make_node("Cast", ["c"], ["y"], to=TensorProto.FLOAT)]
    return model(nodes, [X], [value("y")], [weight("w", noise(7, 1))], opset)


BN = [
    weight("s", noise(6)),
    weight("b", noise(6, seed=1)),
    weight("m", noise(6, seed=2)),
    weight("v", noise(6) ** 2 + 0.1),
]
LINE = value("x", shape=[3, 4, 5])

CASES = {
    "relu": (lambda o: one("Relu", o), (7, 13, 14, 22), ["Relu"]),
    "sigmoid": (lambda o: one("Sigmoid", o), (7, 22), ["Sigmoid"]),
    "tanh": (lambda o: one("Tanh", o), (7, 22), ["Tanh"]),
    "erf": (lambda o: one("Erf", o), (9, 13, 22), ["Erf"]),
    "abs-sqrt": (
        lambda o: model(
            [helper.make_node("Abs", ["x"], ["a"]), helper.make_node("Sqrt", ["a"], ["y"])], [X], [value("y")], opset=o
        ),
        (7, 22),
        ["Abs", "Sqrt"],
    ),
    "exp": (lambda o: one("Exp", o), (7, 22), ["Exp"]),
    "neg": (lambda o: one("Neg", o), (7, 22), ["Neg"]),
    "add": (lambda o: one("Add", o, ("x", "w"), weights=[weight("w", noise(6, 1, 9))]), (7, 13, 22), ["Add"]),
    "sub": (lambda o: one("Sub", o, ("w", "x"), weights=[weight("w", noise(3, 1, 6, 1, 1))]), (7, 22), ["Sub"]),
    "mul": (lambda o: one("Mul", o, ("x", "x")), (7, 22), ["Mul"]),
    "div": (lambda o: one("Div", o, ("x", "w"), weights=[weight("w", 2.5)]), (7, 22), ["Div"]),
    "pow": (lambda o: one("Pow", o, ("x", "w"), weights=[weight("w", 2.0)]), (7, 12, 15, 22), ["Pow"]),
    "sum-of-two": (lambda o: one("Sum", o, ("x", "w"), weights=[weight("w", noise(9))]), (8, 13, 22), ["Add"]),
    "matmul": (lambda o: one("MatMul", o, ("x", "w"), weights=[weight("w", noise(9, 5))]), (7, 13, 22), ["MatMul"]),
    "matmul-vector": (lambda o: one("MatMul", o, ("w", "x"), weights=[weight("w", noise(7))]), (13,), ["MatMul"]),
    "gemm": (
        lambda o: one(
            "Gemm",
            o,
            ("x", "w", "c"),
            M,
            [weight("w", noise(5, 6)), weight("c", noise(5))],
            transB=1,
            alpha=0.5,
            beta=2.0,
        ),
        (7, 11, 13, 22),
        ["Gemm"],
    ),
    "gemm-without-c": (
        lambda o: one("Gemm", o, ("x", "w"), M, [weight("w", noise(4, 5))], transA=1),
        (11, 22),
        ["Gemm"],
    ),
    "conv": (
        lambda o: one(
            "Conv",
            o,
            ("x", "w", "b"),
            weights=[weight("w", noise(4, 3, 3, 2)), weight("b", noise(4))],
            group=2,
            strides=[2, 1],
            pads=[1, 0, 2, 1],
            dilations=[1, 2],
        ),
        (7, 11, 22),
        ["Conv"],
    ),
    "conv-same-lower": (
        lambda o: one(
            "Conv", o, ("x", "w"), weights=[weight("w", noise(4, 6, 2, 4))], auto_pad="SAME_LOWER", strides=[2, 3]
        ),
        (7, 22),
        ["Conv"],
    ),
    "conv-1d": (
        lambda o: one("Conv", o, ("x", "w"), LINE, [weight("w", noise(2, 4, 3))], auto_pad="VALID"),
        (11,),
        ["Conv"],
    ),
    "batch-normalization": (
        lambda o: one("BatchNormalization", o, ("x", "s", "b", "m", "v"), weights=BN, epsilon=1e-3),
        (7, 9, 14, 15, 22),
        ["BatchNormalization"],
    ),
    "max-pool": (
        lambda o: one("MaxPool", o, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
        (7, 8, 12, 22),
        ["MaxPool"],
    ),
    "max-pool-dilated": (
        lambda o: one("MaxPool", o, kernel_shape=[3, 2], dilations=[2, 3], ceil_mode=1),
        (10, 22),
        ["MaxPool"],
    ),
    "max-pool-same": (
        lambda o: one("MaxPool", o, kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER"),
        (7, 22),
        ["MaxPool"],
    ),
    "average-pool": (
        lambda o: one("AveragePool", o, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]),
        (7, 11, 19, 22),
        ["AveragePool"],
    ),
    "average-pool-padded": (
        lambda o: one("AveragePool", o, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
        (7, 22),
        ["AveragePool"],
    ),
    "average-pool-dilated": (
        lambda o: one("AveragePool", o, kernel_shape=[3, 2], dilations=[2, 1]),
        (19, 22),
        ["AveragePool"],
    ),
    "global-average-pool": (lambda o: one("GlobalAveragePool", o), (7, 22), ["GlobalAveragePool"]),
    "softmax-last": (lambda o: one("Softmax", o, axis=3), (7, 11, 13, 22), ["Softmax"]),
    "softmax-inner": (lambda o: one("Softmax", o, axis=1), (13, 22), ["Softmax"]),
    "softmax-coerced": (lambda o: one("Softmax", o), (7, 12), ["::Softmax"]),
    "softmax-default": (lambda o: one("Softmax", o, x=M), (7, 12, 13, 22), ["Softmax"]),
    "layer-normalization": (
        lambda o: one(
            "LayerNormalization",
            o,
            ("x", "s", "b"),
            weights=[weight("s", noise(7, 9)), weight("b", noise(7, 9))],
            axis=-2,
        ),
        (17, 22),
        ["LayerNormalization"],
    ),
    "reduce-mean": (
        lambda o: by_version("ReduceMean", 18, o, "axes", [-1, 1], keepdims=0),
        (11, 13, 18, 22),
        ["ReduceMean"],
    ),
    "reduce-mean-all": (lambda o: one("ReduceMean", o), (7, 18), ["ReduceMean"]),
    "concat": (
        lambda o: one("Concat", o, ("x", "w", "x"), weights=[weight("w", noise(2, 1, 7, 9))], axis=1),
        (7, 13, 22),
        ["Concat"],
    ),
    "split": (lambda o: by_version("Split", 13, o, "split", [1, 2, 3], n=3, axis=1), (7, 11, 13, 18, 22), ["Split"]),
    "split-equal": (
        lambda o: one("Split", o, n=3, axis=1, **({"num_outputs": 3} if o >= 18 else {})),
        (7, 13, 18, 22),
        ["Split"],
    ),
    "slice": (lambda o: sliced(o, [-5, 1], [2**31 - 1, -1], [2, 3]), (7, 10, 13, 22), ["Slice"]),
    "transpose": (lambda o: one("Transpose", o, perm=[0, 2, 3, 1]), (7, 13, 22), ["Transpose"]),
    "transpose-default": (lambda o: one("Transpose", o), (7, 22), ["Transpose"]),
    "reshape": (
        lambda o: one("Reshape", o, ("x", "w"), weights=[weight("w", [0, -1, 9], np.int64)]),
        (7, 14, 19, 22),
        ["Reshape"],
    ),
    "flatten": (lambda o: one("Flatten", o, axis=2), (7, 9, 13, 22), ["Reshape"]),
    "flatten-negative": (lambda o: one("Flatten", o, axis=-1), (11, 22), ["Reshape"]),
    "squeeze": (
        lambda o: by_version("Squeeze", 13, o, "axes", [1], x=value("x", shape=[3, 1, 5])),
        (7, 11, 13, 22),
        ["Reshape"],
    ),
    "squeeze-all": (lambda o: one("Squeeze", o, x=value("x", shape=[3, 1, 5, 1])), (7, 22), ["Reshape"]),
    "unsqueeze": (lambda o: by_version("Unsqueeze", 13, o, "axes", [0, 2], x=LINE), (7, 11, 13, 22), ["Reshape"]),
    **{op.lower(): (partial(one, op), (7, 22), [op])
       for op in ("Reciprocal", "Sin", "Cos", "Softplus", "Floor", "Ceil")},
    "log": (lambda o: model(
        [helper.make_node("Exp", ["x"], ["e"]), helper.make_node("Log", ["e"], ["y"])], [X], [value("y")], opset=o
    ), (7, 22), ["Exp", "Log"]),
    "sign": (partial(one, "Sign"), (9, 13), ["Sign"]),
    "hard-swish": (partial(one, "HardSwish"), (14, 22), ["HardSwish"]),
    "gelu": (partial(one, "Gelu"), (20,), ["Gelu"]),
    "gelu-tanh": (partial(one, "Gelu", approximate="tanh"), (20,), ["Gelu"]),
    "swish": (partial(one, "Swish", alpha=1.5), (24,), ["Swish"]),
    "leaky-relu": (partial(one, "LeakyRelu"), (7, 16), ["LeakyRelu"]),
    "elu": (partial(one, "Elu", alpha=0.5), (7, 22), ["Elu"]),
    "hard-sigmoid": (partial(one, "HardSigmoid"), (7, 22), ["HardSigmoid"]),
    "clip": (lambda o: one("Clip", o, max=0.5) if o < 11 else one(
        "Clip", o, ("x", "", "top"), weights=[weight("top", np.float32(0.5), np.float32)]
    ), (7, 11, 12, 13), ["Clip"]),
    "clip-nothing": (partial(one, "Clip"), (7, 13), ["Clip"]),
    **{op.lower(): (lambda o, op=op: one(op, o, ("x", "w"), weights=[weight("w", noise(7, 1))]), (8, 13), [op])
       for op in ("Min", "Max")},
    **{op.lower(): (lambda o, op=op: comparing(op, o), (12, 16, 19), [op, "Cast"])
       for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")},
    "logic": (lambda o: model([
        helper.make_node("IsNaN", ["x"], ["n"]), helper.make_node("Greater", ["x", "w"], ["g"]),
        helper.make_node("Not", ["g"], ["h"]), helper.make_node("And", ["n", "h"], ["i"]),
        helper.make_node("Or", ["i", "g"], ["j"]), helper.make_node("Where", ["j", "x", "w"], ["y"]),
    ], [X], [value("y")], [weight("w", noise(9))], opset=o), (9, 13, 16, 20),
        ["IsNaN", "Greater", "Not", "And", "Or", "Where"]),
    "rms-normalization": (
        lambda o: one("RMSNormalization", o, ("x", "s"), weights=[weight("s", noise(9))]), (23,), ["RMSNormalization"]
    ),
    **{op.lower(): (
        lambda o, op=op: by_version(op, 13 if op == "ReduceSum" else 18, o, "axes", [-1, 1], keepdims=0),
        (11, 13, 18, 22), [op],
    ) for op in ("ReduceSum", "ReduceMax", "ReduceMin")},
    "expand": (
        lambda o: one("Expand", o, ("x", "w"), x=LINE, weights=[weight("w", [2, 3, 1, 1], np.int64)]),
        (8, 13), ["Expand"],
    ),
    "pad": (lambda o: one("Pad", o, x=LINE, pads=[0, 1, 0, 2, 0, 0], value=1.5) if o < 11 else one(
        "Pad", o, ("x", "p", "v"), x=LINE,
        weights=[weight("p", [0, 1, 0, 2, 0, 0], np.int64), weight("v", np.float32(1.5), np.float32)],
    ), (7, 11, 13, 18, 21), ["Pad"]),
    "pad-axes": (lambda o: one(
        "Pad", o, ("x", "p", "", "a"), x=LINE, weights=[weight("p", [1, 2], np.int64), weight("a", [-1], np.int64)],
    ), (18, 21), ["Pad"]),
    "gather": (
        lambda o: one("Gather", o, ("x", "i"), x=LINE, weights=[weight("i", [[2, -1], [0, 1]], np.int64)], axis=1),
        (7, 13), ["Gather"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "opset"), [(name, o) for name, case in CASES.items() for o in case[1]])
def test_core_operators_are_read_as_such_and_written_back(name, opset):
    make, _, expected = CASES[name]
    proto = make(opset)
    graph, out = round_trip(proto)
    assert ops(graph) == expected
    # What was written reads as the same program.
    again = load(out)
    assert ops(again) == expected
    assert [again.nodes[i].type for i in again.outputs] == [graph.nodes[i].type for i in graph.outputs]


def test_a_table_has_a_case_for_every_core_operator():
    from xrlflow.egraph.fused import FUSED
    from xrlflow.lowering.onnx_forms import FORMS

    tested = {op for _, _, expected in CASES.values() for op in expected}
    assert set(FORMS) - set(FUSED) <= tested  # those have a file of their own


@pytest.mark.parametrize("path", LIGHT, ids=lambda p: p.stem)
def test_light_models_keep_their_interface_and_are_valid(path, tmp_path):
    graph = load(path)
    save(graph, tmp_path / "out.onnx")
    source, out = onnx.load(path), onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(out, full_check=True)
    kept = {t.name for t in out.graph.initializer}
    assert [o.name for o in out.graph.output] == [o.name for o in source.graph.output]
    real = {i.name for i in source.graph.input} - {t.name for t in source.graph.initializer}
    assert {i.name for i in out.graph.input} == real | kept & {i.name for i in source.graph.input}
    # Weights made by ConstantOfShape are known constants, yet none of them is written out in full.
    assert not any(op == "::ConstantOfShape" for op in ops(graph))
    assert graph.coverage > 0.9
    assert (tmp_path / "out.onnx").stat().st_size < max(1e6, graph.weight_bytes / 4)


@pytest.mark.parametrize("name", ["light_squeezenet", "light_shufflenet"])
def test_light_models_compute_the_same(name, tmp_path):
    path = next(p for p in LIGHT if p.stem == name)
    save(load(path), tmp_path / "out.onnx")
    inputs = feed(onnx.load(path))
    for a, b in zip(run(str(path), inputs), run(str(tmp_path / "out.onnx"), inputs), strict=True):
        np.testing.assert_array_equal(a, b)


# Opaque operators


def test_if_keeps_its_bodies_and_captured_values_are_operands():
    then = helper.make_graph([helper.make_node("Mul", ["a", "w"], ["t"])], "then", [], [value("t")])
    other = helper.make_graph([helper.make_node("Add", ["a", "a"], ["e"])], "else", [], [value("e")])
    nodes = [
        helper.make_node("Identity", ["x"], ["x2"]),
        helper.make_node("Relu", ["x2"], ["a"]),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    proto = model(nodes, [value("x", shape=[3, 4]), value("c", BOOL, [])], [value("y")], [weight("w", noise(3, 4))])
    graph, _ = round_trip(proto, seeds=4)
    node = next(graph.nodes[i] for i in graph.operators if graph.nodes[i].op == "::If")
    assert node.attrs["captures"] == ("a", "w")
    assert [graph.nodes[i].op for i in node.inputs] == ["Input", "Relu", "Weight"]


def test_captured_values_are_renamed_in_bodies_where_their_name_changes():
    # `a` and `b` are the same value, so one name goes; `r` is captured through a Dropout; a nested body captures too.
    inner = helper.make_graph([helper.make_node("Add", ["b", "r"], ["i"])], "inner", [], [value("i")])
    nested = helper.make_node("If", ["c"], ["t"], then_branch=inner, else_branch=inner)
    then = helper.make_graph([nested], "then", [], [value("t")])
    other = helper.make_graph([helper.make_node("Sub", ["a", "b"], ["e"])], "else", [], [value("e")])
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Relu", ["x"], ["b"]),
        helper.make_node("Exp", ["x"], ["q"]),
        helper.make_node("Dropout", ["q"], ["r"]),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    graph, _ = round_trip(model(nodes, [value("x", shape=[3]), value("c", BOOL, [])], [value("y")]), seeds=4)
    assert sorted(ops(graph)) == ["::If", "Exp", "Relu"]


def test_loop_bodies_capture_outer_weights():
    body = helper.make_graph(
        [helper.make_node("MatMul", ["s", "w"], ["n"]), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [value("k", I64, []), value("go", BOOL, []), value("s", shape=[2, 2])],
        [value("on", BOOL, []), value("n", shape=[2, 2])],
    )
    nodes = [helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body)]
    weights = [weight("trips", 3, np.int64), weight("w", noise(2, 2))]
    graph, _ = round_trip(model(nodes, [value("x", shape=[2, 2])], [value("y", shape=[2, 2])], weights))
    assert [graph.nodes[i].op for i in graph.nodes[graph.operators[0]].inputs] == [
        "Weight",
        "Absent",
        "Input",
        "Weight",
    ]


def test_opaque_operators_keep_several_outputs():
    nodes = [
        helper.make_node("TopK", ["x", "k"], ["top", "where"], largest=0),
        helper.make_node("Relu", ["top"], ["y"]),
    ]
    proto = model(nodes, [value("x", shape=[3, 5])], [value("where", I64), value("y")], [weight("k", [2], np.int64)])
    graph, _ = round_trip(proto)
    assert ops(graph) == ["::TopK", "Relu"]
    assert str(graph.nodes[graph.outputs[1]].type) == "float32[3,2]"


def test_optional_inputs_that_are_not_given_stay_so():
    nodes = [
        helper.make_node("Celu", ["x"], ["c"]),
        helper.make_node("Resize", ["c", "", "scales"], ["y"], mode="nearest"),
    ]
    weights = [weight("scales", [1, 1, 2, 2])]
    graph, _ = round_trip(model(nodes, [X], [value("y")], weights))
    assert ops(graph) == ["::Celu", "::Resize"]


def test_optional_outputs_that_are_not_asked_for_stay_so():
    nodes = [helper.make_node("Dropout", ["x", "r", "train"], ["", "mask"])]
    weights = [weight("r", 0.5), weight("train", False, np.bool_)]
    graph = load(model(nodes, [M], [value("mask", BOOL)], weights))
    assert [list(n.output) for n in to_onnx(graph).graph.node] == [["", "mask"]]


def test_dropout_and_identity_are_other_names_of_their_input():
    nodes = [
        helper.make_node("Dropout", ["x"], ["d", "mask"]),
        helper.make_node("Identity", ["d"], ["i"]),
        helper.make_node("Relu", ["i"], ["r"]),
        helper.make_node("Dropout", ["r"], ["y"]),
    ]
    graph, out = round_trip(model(nodes, [X], [value("y")], opset=13))
    assert ops(graph) == ["Relu"]
    assert [(n.op_type, *n.output) for n in out.graph.node] == [("Relu", "y")]


def test_dropout_that_trains_or_whose_mask_is_read_stays():
    read = [helper.make_node("Dropout", ["x"], ["y", "mask"])]
    graph, _ = round_trip(model(read, [X], [value("y"), value("mask", BOOL)], opset=13))
    assert ops(graph) == ["::Dropout"]
    weights = [weight("r", 0.5), weight("t", True, np.bool_)]
    training = [helper.make_node("Dropout", ["x", "r", "t"], [name]) for name in ("y", "z")]
    graph = load(model(training, [X], [value("y"), value("z")], weights, opset=13))
    assert ops(graph) == ["::Dropout", "::Dropout"]  # two draws, not one


def test_random_operators_never_merge_and_others_do():
    nodes = [helper.make_node("RandomNormalLike", ["x"], [f"r{k}"]) for k in range(2)]
    nodes += [helper.make_node("Celu", ["x"], [f"c{k}"]) for k in range(2)]
    outputs = [value(n) for n in ("r0", "r1", "c0", "c1")]
    graph = load(model(nodes, [M], outputs))
    assert sorted(ops(graph)) == ["::Celu", "::RandomNormalLike", "::RandomNormalLike"]


def test_model_functions_stay_functions_even_under_a_core_operator_s_name():
    double = helper.make_function(
        "my", "Relu", ["a"], ["b"], [helper.make_node("Celu", ["a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    nodes = [helper.make_node("Relu", ["x"], ["h"], domain="my"), helper.make_node("Relu", ["h"], ["y"])]
    proto = model(nodes, [M], [value("y")], domains=["my"], functions=[double])
    graph, out = round_trip(proto)
    assert ops(graph) == ["my::Relu", "Relu"]
    assert len(out.functions) == 1


def test_operators_of_unknown_domains_pass_through_with_their_types():
    nodes = [helper.make_node("Magic", ["x"], ["m"], domain="acme", power=3), helper.make_node("Relu", ["m"], ["y"])]
    proto = model(nodes, [M], [value("y", shape=[7])], domains=["acme"])
    proto.graph.value_info.append(value("m", shape=[7]))
    graph = load(proto)
    assert ops(graph) == ["acme::Magic", "Relu"]
    out = to_onnx(graph)
    assert out.graph.node[0].domain == "acme"
    assert out.graph.node[0].attribute[0].i == 3
    assert ops(load(out)) == ["acme::Magic", "Relu"]  # the type of `m` was written too


def test_what_does_not_fit_the_core_form_stays_opaque():
    weights = [
        weight("s", [0], np.int64),
        weight("e", [6], np.int64),
        weight("a", [1], np.int64),
        weight("t", [2], np.int64),
    ]
    step = one("Slice", 18, ("x", "s", "e", "a", "t"), weights=weights)
    symbolic = one("Flatten", 18, x=value("x", shape=["n", 3, 4]))
    pool = helper.make_node("MaxPool", ["x"], ["y", "where"], kernel_shape=[2, 2])
    indices = model([pool], [X], [value("y"), value("where", I64)])
    computed = model(
        [helper.make_node("Add", ["p", "p"], ["q"]), helper.make_node("Reshape", ["x", "q"], ["y"])],
        [M, value("p", I64, [2])],
        [value("y", shape=[None, None])],
    )
    assert ops(load(symbolic)) == ["Reshape"]  # n rows of 12: one extent that Reshape can work out
    for proto in (step, indices, computed):
        graph = load(proto)
        onnx.checker.check_model(to_onnx(graph), full_check=True)
        assert any(op.startswith("::") for op in ops(graph))
    round_trip(step)
    round_trip(symbolic)
    round_trip(indices)


def test_shapes_that_the_model_computes_from_known_extents_are_constants():
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
    ]
    weights = [weight("zero", 0, np.int64), weight("axes", [0], np.int64), weight("rest", [-1], np.int64)]
    graph, out = round_trip(model(nodes, [X], [value("y")], weights))
    assert ops(graph) == ["Reshape"]
    assert [n.op_type for n in out.graph.node] == ["Reshape"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_models_of_onnx_s_own_test_suite_compute_the_same():
    from onnx.backend.test.case.node import collect_testcases

    from xrlflow.lowering import NotEvaluable, evaluate, random_inputs

    compared = evaluated = 0
    for case in collect_testcases(None):
        try:
            inputs = random_inputs(load(case.model), 0)
            expected = run(case.model, inputs)
        except Exception:  # noqa: BLE001 (types and operators that ONNX Runtime or the generator has not)
            continue
        graph = load(case.model)
        for a, b in zip(expected, run(to_onnx(graph), inputs), strict=True):
            if isinstance(a, np.ndarray) and a.dtype.kind in "fiub":
                half = a.dtype == np.float16  # folded constants are rounded once, not after each step
                np.testing.assert_allclose(
                    a, b, rtol=2e-3 if half else 1e-5, atol=2e-3 if half else 1e-6, err_msg=case.name
                )
                compared += 1
        try:
            found = evaluate(graph, inputs, "float32")
        except NotEvaluable:
            continue
        evaluated += 1
        for a, b in zip(expected, found, strict=True):
            close = 2e-3 if a.dtype == np.float16 else 1e-4  # the evaluator rounds nothing to half precision
            np.testing.assert_allclose(a, b, rtol=close, atol=close, err_msg=case.name)
    assert compared > 1000
    assert evaluated > 100


# Names, leaves, outputs


def test_outputs_may_be_inputs_weights_and_the_same_value_twice():
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Identity", ["w"], ["constant"]),
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Relu", ["x"], ["b"]),
        helper.make_node("Identity", ["a"], ["c"]),
    ]
    outputs = [value(n) for n in ("c", "same", "b", "constant", "a")]
    graph, _ = round_trip(model(nodes, [M], outputs, [weight("w", noise(100))]))
    assert ops(graph).count("Relu") == 1


def test_an_input_or_a_weight_can_itself_be_an_output():
    proto = model(
        [helper.make_node("Relu", ["x"], ["y"])],
        [M],
        [value("y"), value("x", shape=[4, 6]), value("w", shape=[5])],
        [weight("w", noise(5))],
    )
    round_trip(proto)


def test_odd_names_and_unused_inputs_are_kept():
    nodes = [helper.make_node("Relu", ["in put/0:é"], ["Relu_1"]), helper.make_node("Tanh", ["Relu_1"], ["out;put"])]
    graph, out = round_trip(
        model(nodes, [value("in put/0:é", shape=[2]), value("unused", shape=[3])], [value("out;put")])
    )
    assert graph.input_names == ("in put/0:é", "unused")
    assert [list(n.output) for n in out.graph.node] == [["Relu_1"], ["out;put"]]


def test_generated_names_avoid_names_inside_bodies():
    # The writer makes a name for the folded weight's shape constant; the body already uses names of that kind.
    then = helper.make_graph([helper.make_node("Relu", ["r"], ["shape_24"])], "then", [], [value("shape_24")])
    nodes = [
        helper.make_node("Reshape", ["x", "s"], ["r"]),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=then),
    ]
    other = helper.make_graph([helper.make_node("Relu", ["r"], ["e"])], "else", [], [value("e")])
    nodes[1].attribute[1].g.CopyFrom(other)
    proto = model(nodes, [M, value("c", BOOL, [])], [value("y")], [weight("s", [24], np.int64)])
    round_trip(proto, seeds=2)


def test_metadata_symbols_and_value_infos_of_the_interface_are_kept():
    x = helper.make_tensor_value_info("x", F, ["batch", 6], doc_string="pixels")
    proto = model(
        [helper.make_node("Relu", ["x"], ["y"])],
        [x],
        [value("y", shape=["batch", 6])],
        producer_name="p",
        doc_string="d",
    )
    helper.set_model_props(proto, {"key": "value"})
    graph, out = round_trip(proto)
    assert graph.nodes[0].type == TensorType(("batch", 6), "float32")
    assert out.graph.input[0] == x
    assert out.graph.output[0] == proto.graph.output[0]
    assert (out.producer_name, out.doc_string, out.metadata_props[0].value) == ("p", "d", "value")


def test_old_models_whose_weights_are_inputs_keep_that_form():
    proto = model(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        [X, value("w", shape=[2, 6, 1, 1])],
        [value("y")],
        [weight("w", noise(2, 6, 1, 1))],
        opset=8,
        ir=3,
    )
    graph, _ = round_trip(proto)
    assert graph.input_names == ("x",)


def test_weights_that_callers_may_override_stay_overridable():
    proto = model(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        [M, value("w", shape=[6])],
        [value("y")],
        [weight("w", noise(6))],
        ir=8,
    )
    graph, out = round_trip(proto)
    assert graph.input_names == ("x", "w")
    x, other = noise(4, 6), noise(6, seed=5)
    session = ort.InferenceSession(out.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x, "w": other})[0], x * other)


def test_equal_weights_are_stored_once():
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    _, out = round_trip(model(nodes, [M], [value("y")], [weight("a", noise(6, 6)), weight("b", noise(6, 6))]))
    assert len(out.graph.initializer) == 1


def test_sparse_weights_and_all_kinds_of_constants_are_weights():
    sparse = helper.make_sparse_tensor(weight("sparse", [2.0, 3.0]), weight("", [1, 4], np.int64), [6])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=weight("", noise(6))),
        helper.make_node("Constant", [], ["f"], value_float=0.5),
        helper.make_node("Constant", [], ["i"], value_ints=[4, 6]),
        helper.make_node("ConstantOfShape", ["i"], ["z"], value=weight("", [3.0])),
        helper.make_node("Sum", ["x", "c", "f", "z", "sparse"], ["y"]),
    ]
    proto = model(nodes, [M], [value("y")])
    proto.graph.sparse_initializer.append(sparse)
    graph = load(proto)
    assert [graph.nodes[i].op for i in graph.nodes[graph.operators[-1]].inputs] == ["Input", *["Weight"] * 4]
    x = noise(4, 6)
    dense = np.array([0, 2, 0, 0, 3, 0], np.float32)
    np.testing.assert_allclose(run(to_onnx(graph), {"x": x})[0], x + noise(6) + 0.5 + 3 + dense, rtol=1e-5)


@pytest.mark.parametrize(
    "dtype",
    [
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.DOUBLE,
        TensorProto.INT4,
        TensorProto.FLOAT8E4M3FN,
        TensorProto.UINT16,
        TensorProto.STRING,
    ],
)
def test_weights_of_every_type_are_written_as_they_were(dtype):
    values = [b"a", b"b", b"c"] if dtype == TensorProto.STRING else [1, 2, 3]
    tensor = helper.make_tensor("w", dtype, [3], values)
    proto = model([helper.make_node("Identity", ["w"], ["y"])], [], [value("y", dtype, [3])], [tensor], opset=21, ir=10)
    out = to_onnx(load(proto)).graph.initializer[0]
    np.testing.assert_array_equal(numpy_helper.to_array(out), numpy_helper.to_array(tensor))
    assert out.data_type == dtype


def test_constants_without_dimensions_keep_none():
    nodes = [
        helper.make_node("Constant", [], ["zero"], value_int=0),
        helper.make_node("Constant", [], ["one"], value_int=1),
        helper.make_node("Range", ["zero", "n", "one"], ["y"]),
    ]
    proto = model(nodes, [value("n", I64, [])], [value("y", I64, [None])])
    assert run(to_onnx(load(proto)), {"n": np.array(3)})[0].tolist() == [0, 1, 2]


def test_nodes_need_not_be_sorted():
    nodes = [helper.make_node("Relu", ["h"], ["y"]), helper.make_node("Tanh", ["x"], ["h"])]
    assert ops(load(model(nodes, [M], [value("y")]))) == ["Tanh", "Relu"]


def test_deep_chains_need_no_recursion():
    n = 10_000
    nodes = [helper.make_node("Relu" if k % 2 else "Neg", [f"v{k}"], [f"v{k + 1}"]) for k in range(n)]
    graph = load(model(nodes, [value("v0", shape=[2])], [value(f"v{n}")]))
    assert len(graph.operators) == n
    assert len(to_onnx(graph).graph.node) == n


# Files


def small():
    return CASES["conv"][0](13)


def test_the_same_graph_gives_the_same_bytes(tmp_path):
    for k, source in enumerate((LIGHT[2], small(), CASES["split"][0](18))):
        paths = [tmp_path / f"{k}-{j}.onnx" for j in range(2)]
        for path in paths:
            save(load(source), path)
        assert paths[0].read_bytes() == paths[1].read_bytes()
        save(load(paths[0]), paths[1])  # and writing what was written changes nothing
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_external_weights_are_mapped_and_written_as_such(tmp_path):
    proto = model([helper.make_node("MatMul", ["x", "w"], ["y"])], [M], [value("y")], [weight("w", noise(6, 500))])
    path = tmp_path / "in.onnx"
    expected = run(proto, feed(proto))
    onnx.save(proto, path, save_as_external_data=True, location="in.data", size_threshold=0)
    graph = load(path)
    (tmp_path / "out").mkdir()
    save(graph, tmp_path / "out" / "out.onnx")
    assert (tmp_path / "out" / "out.onnx").stat().st_size < 1000
    assert (tmp_path / "out" / "out.onnx.data").stat().st_size == 12_000
    onnx.checker.check_model(str(tmp_path / "out" / "out.onnx"), full_check=True)
    np.testing.assert_array_equal(run(str(tmp_path / "out" / "out.onnx"), feed(model([], [M], [])))[0], expected[0])
    # The digest does not depend on where the bytes lie.
    assert set(graph.weights) == set(load(onnx.load(path)).weights)
    save(graph, path)  # over its own source
    np.testing.assert_array_equal(run(str(path), feed(model([], [M], [])))[0], expected[0])


def test_large_weights_go_to_a_data_file(tmp_path, monkeypatch):
    from xrlflow.lowering import onnx_files

    monkeypatch.setattr(onnx_files, "EXTERNAL_LIMIT", 10_000)
    proto = model([helper.make_node("MatMul", ["x", "w"], ["y"])], [M], [value("y")], [weight("w", noise(6, 500))])
    save(load(proto), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").exists()
    np.testing.assert_array_equal(run(str(tmp_path / "out.onnx"), feed(proto))[0], run(proto, feed(proto))[0])


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")
    g = GraphBuilder()
    x = g.input("x", TensorType((2, 3), "float32"))
    broken = Weight("w", TensorType((3,), "float32"), "0" * 32, lambda: 1 / 0)
    graph = g.build({"y": g.op("Add", x, g.weight(broken))})
    with pytest.raises(ZeroDivisionError):
        save(graph, path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out.onnx"]


def test_graphs_built_by_hand_can_be_written():
    g = GraphBuilder()
    x = g.input("x", TensorType(("n", 6, 8), "float32"))
    parts = g.op("Split", g.op("Softmax", x, axis=1), axis=2, sizes=(3, 5))
    y = g.op("ReduceMean", g.get(parts, 1), axes=(2,), keepdims=0)
    out = to_onnx(g.build({"first": g.get(parts, 0), "mean": y}))
    onnx.checker.check_model(out, full_check=True)
    assert (out.opset_import[0].version, out.ir_version) == (18, 8)
    x0 = noise(2, 6, 8)
    soft = np.exp(x0) / np.exp(x0).sum(1, keepdims=True)
    first, mean = run(out, {"x": x0})
    np.testing.assert_allclose(first, soft[..., :3], rtol=1e-5)
    np.testing.assert_allclose(mean, soft[..., 3:].mean(-1), rtol=1e-5)


def test_a_softmax_of_an_inner_axis_can_be_written_in_old_opsets():
    source = load(CASES["relu"][0](11)).source
    g = GraphBuilder()
    x = g.input("x", TensorType((2, 6, 7, 9), "float32"))
    out = to_onnx(g.build({"y0": g.op("Softmax", x, axis=1)}, source))
    onnx.checker.check_model(out, full_check=True)
    inputs = feed(out)
    np.testing.assert_allclose(run(out, inputs)[0], run(CASES["softmax-inner"][0](13), inputs)[0], rtol=1e-5)


def test_operators_know_the_opset_that_brought_them():
    assert available("LayerNormalization", 17)
    assert not available("LayerNormalization", 16)
    assert not available("Erf", 8)
    assert available("MatMul", 7)


# Errors


def message(source):
    with pytest.raises(UserError) as caught:
        load(source)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_bad_files_are_named_in_one_line(tmp_path):
    assert "no such file" in message(tmp_path / "none.onnx")
    assert "folder" in message(tmp_path)
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"")
    assert "empty" in message(bad)
    bad.write_bytes(b"PK\x03\x04 not a model at all" * 20)
    assert "not an ONNX model" in message(bad)
    bad.write_bytes(LIGHT[0].read_bytes()[:-1000])
    assert "bad.onnx" in message(bad)
    assert "without a graph" in message(onnx.ModelProto(ir_version=8))
    assert "no outputs" in message(model([], [M], []))


def test_every_truncation_is_noticed_or_harmless():
    data = small().SerializeToString()
    for n in range(len(data)):
        try:
            load(data[:n])
        except UserError:
            continue
        onnx.checker.check_model(to_onnx(load(data[:n])))


def test_opsets_out_of_reach_are_refused():
    assert "opset 6 is older" in message(one("Relu", 6))
    assert "newer than" in message(one("Relu", 999))


def test_broken_graphs_are_refused():
    relu = helper.make_node("Relu", ["h"], ["y"])
    assert "'h'" in message(model([relu], [M], [value("y")]))
    assert "'z'" in message(model([helper.make_node("Relu", ["x"], ["y"])], [M], [value("z")]))
    assert "cycle" in message(model([relu, helper.make_node("Relu", ["y"], ["h"])], [M], [value("y")]))
    twice = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Tanh", ["x"], ["y"])]
    assert "twice" in message(model(twice, [M], [value("y")]))
    short = weight("w", noise(6))
    short.raw_data = short.raw_data[:-4]
    assert "'w'" in message(model([helper.make_node("Add", ["x", "w"], ["y"])], [M], [value("y")], [short]))


def test_external_data_that_is_missing_short_or_outside_is_refused(tmp_path):
    proto = model([helper.make_node("MatMul", ["x", "w"], ["y"])], [M], [value("y")], [weight("w", noise(6, 500))])
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="m.data", size_threshold=0)
    (tmp_path / "m.data").write_bytes(b"\0" * 100)
    assert "too short" in message(path)
    (tmp_path / "m.data").unlink()
    assert "missing" in message(path)
    outside = onnx.load(path, load_external_data=False)
    outside.graph.initializer[0].external_data[0].value = "../m.data"
    path.write_bytes(outside.SerializeToString())
    assert "not a file below" in message(path)
    assert "path" in message(outside)


def test_a_target_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        save(load(small()), tmp_path / "none" / "out.onnx")
    with pytest.raises(UserError, match="a folder"):
        save(load(small()), tmp_path)


def test_importing_the_package_loads_nothing_heavy():
    import subprocess
    import sys

    code = "import sys, xrlflow.lowering; print([m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_the_functions_stay_functions_after_their_modules_are_imported():
    from xrlflow import lowering

    for name in ("load", "save", "evaluate", "verify", "fold_constants", "random_inputs"):
        assert callable(getattr(lowering, name)), name


def test_models_of_onnx_ir_are_read() -> None:
    onnx_ir = pytest.importorskip("onnx_ir")
    proto = zoo.build("mlp-tower-tiny")
    again = load(onnx_ir.from_proto(proto))
    assert again.count() == load(proto).count()
    assert verify(proto, again).passed


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(UserError, match="a list is no model"):
        load([1, 2])
