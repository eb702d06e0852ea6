"""The reference evaluator agrees with ONNX Runtime, and folding changes nothing but the place of the work."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from xrlflow.egraph.graph import GraphBuilder, TensorType, Weight
from xrlflow.errors import UserError
from xrlflow.lowering import NotEvaluable, evaluate, evaluate_node, fold_constants, random_inputs, to_onnx
from xrlflow.lowering.onnx_tensor import OnnxSource

ort.set_default_logger_severity(4)


def noise(*shape, seed=0):
    return np.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape), np.float32)


def build(op, shapes, **attrs):
    """A graph of one operator on inputs of these shapes; every part of a Split is an output."""
    g = GraphBuilder()
    inputs = [g.input(f"x{k}", TensorType(tuple(s), "float32")) for k, s in enumerate(shapes)]
    node = g.op(op, *inputs, **attrs)
    parts = range(len(attrs["sizes"])) if op == "Split" else ()
    return g.build({f"y{k}": g.get(node, k) for k in parts} or {"y": node})


def reference(graph, inputs):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    skeleton = onnx.ModelProto(ir_version=11)
    skeleton.opset_import.add(domain="", version=24)
    skeleton.graph.name = "newest"
    model = to_onnx(graph.with_source(OnnxSource(skeleton, {}, False, None)))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


X, V = (2, 6, 7, 9), (6,)
POOL = {"kernel": (3, 2), "strides": (2, 1), "pads": (1, 0, 1, 1), "dilations": (1, 1), "ceil": 0}
CONV = {"strides": (2, 1), "pads": (1, 0, 2, 1), "dilations": (1, 2)}
CASES = [
    *((["Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Neg", "Abs"][k], [X], {}) for k in range(7)),
    *((op, [X, (3, 1, 6, 1, 9)], {}) for op in ("Add", "Sub", "Mul", "Div")),
    ("Add", [(), X], {}),
    ("Div", [X, ()], {}),
    ("MatMul", [(2, 1, 3, 4), (5, 4, 6)], {}),
    ("MatMul", [(4,), (2, 4, 3)], {}),
    ("MatMul", [(2, 3, 4), (4,)], {}),
    ("MatMul", [(4,), (4,)], {}),
    ("Gemm", [(4, 3), (5, 4), (5,)], {"alpha": 0.5, "beta": 2.0, "transA": 1, "transB": 1}),
    ("Gemm", [(3, 4), (4, 5)], {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}),
    ("Gemm", [(3, 4), (4, 5), (3, 1)], {"alpha": 1.0, "beta": -1.0, "transA": 0, "transB": 0}),
    ("Conv", [X, (4, 3, 3, 2), (4,)], {**CONV, "group": 2}),
    ("Conv", [X, (6, 1, 3, 2)], {**CONV, "group": 6}),
    ("Conv", [(2, 3, 9), (5, 3, 4)], {"strides": (2,), "pads": (0, 3), "dilations": (1,), "group": 1}),
    ("Conv", [(2, 0, 7, 9), (4, 0, 3, 2), (4,)], {**CONV, "group": 1}),
    ("Conv", [(2, 0, 7, 9), (4, 0, 3, 2)], {**CONV, "group": 2}),
    ("Conv", [X, (0, 6, 3, 2), (0,)], {**CONV, "group": 1}),
    ("Conv", [(0, 6, 7, 9), (4, 6, 3, 2), (4,)], {**CONV, "group": 1}),
    *((op, [(0, 6, 7, 9)], {**POOL, **more}) for op, more in (("MaxPool", {}), ("AveragePool", {"include_pad": 1}))),
    (
        "Conv",
        [(1, 2, 5, 4, 6), (3, 2, 2, 2, 2)],
        {"strides": (1, 2, 1), "pads": (1, 0, 0, 0, 1, 2), "dilations": (1,) * 3, "group": 1},
    ),
    ("MaxPool", [X], POOL),
    ("MaxPool", [X], {**POOL, "ceil": 1, "strides": (2, 2), "pads": (0, 0, 0, 0)}),
    ("MaxPool", [X], {**POOL, "dilations": (2, 3)}),
    ("AveragePool", [X], {**POOL, "include_pad": 0}),
    ("AveragePool", [X], {**POOL, "include_pad": 1}),
    ("AveragePool", [X], {**POOL, "include_pad": 0, "ceil": 1, "strides": (3, 3)}),
    (
        "AveragePool",
        [X],
        {**POOL, "include_pad": 1, "ceil": 1, "kernel": (3, 3), "strides": (2, 2), "pads": (0, 0, 0, 0)},
    ),
    ("GlobalAveragePool", [X], {}),
    ("GlobalAveragePool", [(2, 3, 4)], {}),
    ("Softmax", [X], {"axis": 1}),
    ("LayerNormalization", [X, (7, 9), (9,)], {"axis": 2, "epsilon": 1e-3}),
    ("LayerNormalization", [X, (9,)], {"axis": 3, "epsilon": 1e-5}),
    ("ReduceMean", [X], {"axes": (1, 3), "keepdims": 0}),
    ("ReduceMean", [X], {"axes": (2,), "keepdims": 1}),
    ("Concat", [(2, 3, 4), (2, 1, 4), (2, 3, 4)], {"axis": 1}),
    ("Split", [X], {"axis": 1, "sizes": (1, 2, 3)}),
    ("Slice", [X], {"axes": (1, 3), "starts": (2, 0), "ends": (2, 5)}),
    ("Transpose", [X], {"perm": (3, 0, 2, 1)}),
    ("Transpose", [()], {"perm": ()}),
    ("Reshape", [X], {"shape": (12, 63)}),
    ("Reshape", [(1, 1)], {"shape": ()}),
    *((op, [X], {}) for op in ("Reciprocal", "Sin", "Cos", "Softplus", "Floor", "Ceil", "Sign", "HardSwish")),
    ("Gelu", [X], {"approximate": "none"}),
    ("Gelu", [X], {"approximate": "tanh"}),
    ("Swish", [X], {"alpha": 1.702}),
    ("LeakyRelu", [X], {"alpha": 0.3}),
    ("Elu", [X], {"alpha": 1.5}),
    ("HardSigmoid", [X], {"alpha": 0.25, "beta": 0.4}),
    ("Clip", [X], {"min": -0.5, "max": 0.25}),
    ("Clip", [X], {"min": float("-inf"), "max": 0.25}),
    ("Min", [X, (3, 1, 6, 1, 9)], {}),
    ("Max", [X, (9,)], {}),
    ("RMSNormalization", [X, (7, 9)], {"axis": 2, "epsilon": 1e-3}),
    ("RMSNormalization", [X, (9,)], {"axis": 3, "epsilon": 1e-5}),
    *((op, [X], {"axes": (0, 3), "keepdims": k}) for op in ("ReduceSum", "ReduceMax", "ReduceMin") for k in (0, 1)),
    ("Expand", [(6, 1, 9)], {"shape": (2, 6, 7, 9)}),
    ("Pad", [(2, 3, 4)], {"pads": (0, 1, 2, 1, 0, 3), "value": -1.5}),
]


@pytest.mark.parametrize(("op", "shapes", "attrs"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_core_operators_agree_with_onnx_runtime(op, shapes, attrs):
    graph = build(op, shapes, **attrs)
    inputs = {f"x{k}": noise(*s, seed=k) for k, s in enumerate(shapes)}
    for kind, dtype in (("float64", np.float64), ("float32", np.float32)):
        found = evaluate(graph, inputs, kind)
        for j, (a, b) in enumerate(zip(found, reference(graph, inputs), strict=True)):
            assert a.dtype == dtype
            assert a.shape == b.shape == graph.nodes[graph.outputs[j]].type.shape
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_positive_operators_agree_with_onnx_runtime():
    for op, shapes in (("Sqrt", [X]), ("Pow", [X, ()])):
        graph = build(op, shapes)
        inputs = {f"x{k}": np.asarray(np.abs(noise(*s))) for k, s in enumerate(shapes)}
        np.testing.assert_allclose(evaluate(graph, inputs)[0], reference(graph, inputs)[0], rtol=1e-5)


def test_batch_normalization_agrees_with_onnx_runtime():
    graph = build("BatchNormalization", [X, V, V, V, V], epsilon=1e-3)
    inputs = {f"x{k}": noise(*s, seed=k) for k, s in enumerate([X, V, V, V, V])}
    inputs["x4"] = np.abs(inputs["x4"])
    np.testing.assert_allclose(evaluate(graph, inputs)[0], reference(graph, inputs)[0], rtol=1e-4, atol=1e-5)


A, B = (2, 3, 4), (3, 1)


@pytest.mark.parametrize("op", ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
def test_comparisons_agree_with_onnx_runtime(op):
    graph = build(op, [A, B])
    inputs = {"x0": np.round(noise(*A)), "x1": np.round(noise(*B, seed=1))}
    found = evaluate(graph, inputs)[0]
    assert found.dtype == bool
    assert found.any()
    assert not found.all()
    np.testing.assert_array_equal(found, reference(graph, inputs)[0])


def test_conditions_agree_with_onnx_runtime():
    g = GraphBuilder()
    a, b = g.input("a", TensorType((2, 1, 4), "bool")), g.input("b", TensorType((3, 1), "bool"))
    x, y = g.input("x", TensorType((3, 4), "float32")), g.input("y", TensorType((), "float32"))
    chosen = g.op("Where", g.op("Or", g.op("And", a, g.op("Not", b)), g.op("IsNaN", x)), x, y)
    graph = g.build({"chosen": chosen, "count": g.op("ReduceSum", g.op("Cast", a, to="int64"), axes=(0,), keepdims=1)})
    rng = np.random.default_rng(0)
    inputs = {"a": rng.random((2, 1, 4)) < 0.5, "b": rng.random((3, 1)) < 0.5, "x": noise(3, 4), "y": noise()}
    inputs["x"][1, 2] = np.nan
    for found, expected in zip(evaluate(graph, inputs, "float32"), reference(graph, inputs), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("axis", "shape"), [(0, (2, 3)), (1, (5,)), (2, ())])
def test_gather_agrees_with_onnx_runtime(axis, shape):
    g = GraphBuilder()
    x, indices = g.input("x", TensorType((4, 5, 6), "float32")), g.input("i", TensorType(shape, "int64"))
    graph = g.build({"y": g.op("Gather", x, indices, axis=axis)})
    inputs = {"x": noise(4, 5, 6), "i": np.random.default_rng(0).integers(-4, 4, shape)}
    np.testing.assert_array_equal(evaluate(graph, inputs, "float32")[0], reference(graph, inputs)[0])
    with pytest.raises(NotEvaluable, match="beyond"):
        evaluate(graph, {**inputs, "i": np.full(shape, 7)})


@pytest.mark.parametrize("to", ["int64", "int32", "bool", "float16", "float64", "uint8"])
def test_casts_agree_with_onnx_runtime(to):
    g = GraphBuilder()
    graph = g.build({"y": g.op("Cast", g.input("x", TensorType(A, "float32")), to=to)})
    x = np.abs(noise(*A)) * 40
    found, expected = evaluate(graph, {"x": x})[0], reference(graph, {"x": x})[0]
    if "float" in to:  # the rounding is left out: over the reals a cast changes nothing
        np.testing.assert_array_equal(found, x.astype(np.float64))
    else:
        np.testing.assert_array_equal(found, expected)
    if "int" in to:  # runtimes differ; it is not folded, and evaluated as x86 does where that is certain
        with pytest.raises(NotEvaluable, match="cannot hold"):
            evaluate_node("Cast", {"to": to}, [torch.tensor([1e30])])
    if to in ("int64", "int32"):
        huge = np.full(A, -np.inf, np.float32)
        np.testing.assert_array_equal(evaluate(graph, {"x": huge})[0], reference(graph, {"x": huge})[0])


def test_every_core_operator_has_a_rule():
    from xrlflow.egraph import fused, operators
    from xrlflow.lowering import semantics

    assert {*semantics.RULES, *fused.FUSED} == set(operators.core_operators()) - {"Get", "Cast"}


def test_integers_are_exact():
    big = 2**53 + 1
    a, b = torch.tensor([big, -7, 7]), torch.tensor([1, 2, -2])
    assert evaluate_node("Add", {}, [a, b]).tolist() == [big + 1, -5, 5]
    assert evaluate_node("Mul", {}, [a, b]).tolist() == [big, -14, -14]
    assert evaluate_node("Div", {}, [a, b]).tolist() == [big, -3, -3]  # towards zero
    assert evaluate_node("MatMul", {}, [a, b]).tolist() == big - 14 - 14
    assert evaluate_node("Relu", {}, [a]).tolist() == [big, 0, 7]
    gemm = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    assert evaluate_node("Gemm", gemm, [a[None, :], b[:, None]]).tolist() == [[big - 28]]
    with pytest.raises(NotEvaluable, match="Sqrt"):
        evaluate_node("Sqrt", {}, [a])
    with pytest.raises(NotEvaluable, match="by 0"):
        evaluate_node("Div", {}, [a, b * 0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_float_type_can_be_evaluated(dtype):
    graph = build("Softmax", [(3, 4)], axis=1)
    found = evaluate(graph, {"x0": noise(3, 4)}, dtype)[0]
    np.testing.assert_allclose(found.astype(float).sum(1), 1, atol=2e-2)
    assert str(found.dtype) == ("float32" if dtype == "bfloat16" else dtype) or str(found.dtype) == dtype


def test_infinite_masks_and_values_are_handled():
    mask = np.array([[0, -np.inf, 0]], np.float32)
    g = GraphBuilder()
    x = g.input("x", TensorType((1, 3), "float32"))
    graph = g.build({"y": g.op("Softmax", g.op("Add", x, g.weight(mask)), axis=1)})
    assert evaluate(graph, {"x": np.zeros((1, 3), np.float32)})[0].tolist() == [[0.5, 0, 0.5]]
    pool = {**POOL, "include_pad": 0}
    x0 = np.full((1, 1, 7, 9), -np.inf, np.float32)
    assert np.isneginf(evaluate_node("MaxPool", POOL, [torch.from_numpy(x0)]).numpy()).all()
    assert np.isneginf(evaluate_node("AveragePool", pool, [torch.from_numpy(x0)]).numpy()).all()


def test_opaque_operators_are_refused_by_name():
    g = GraphBuilder()
    x = g.input("x", TensorType((2,), "float32"))
    graph = g.build({"y": g.add("::Clip", (x,), (), TensorType((2,), "float32"))})
    with pytest.raises(NotEvaluable, match="Clip"):
        evaluate(graph, {"x": np.zeros(2, np.float32)})


def test_deep_chains_need_no_recursion():
    g = GraphBuilder()
    node = g.weight(np.ones(3, np.float32))
    x = g.input("x", TensorType((3,), "float32"))
    for _ in range(10_000):
        node = g.op("Neg", node)
        x = g.op("Neg", x)
    graph = fold_constants(g.build({"y": g.op("Add", x, node)}))
    assert graph.count() == {"Neg": 10_000, "Add": 1}
    assert evaluate(graph, {"x": np.ones(3, np.float32)})[0].tolist() == [2, 2, 2]


# Folding


def weights_of(graph):
    return [graph.weights[graph.nodes[i].attrs["digest"]] for i in graph.live if graph.nodes[i].op == "Weight"]


def test_constant_expressions_become_one_weight_rounded_once():
    g = GraphBuilder()
    a, b = noise(8, 5, seed=1), noise(5, 7, seed=2)
    product = g.op("MatMul", g.weight(a, "a"), g.weight(b, "b"))
    both = g.op("Concat", g.op("Transpose", product, perm=(1, 0)), g.weight(noise(2, 8), "c"), axis=0)
    x = g.input("x", TensorType((3, 8), "float32"))
    g.input("unused", TensorType((1,), "float32"))
    graph = fold_constants(g.build({"y": g.op("Gemm", x, both, alpha=1.0, beta=1.0, transA=0, transB=1)}))
    assert graph.count() == {"Gemm": 1}
    assert graph.input_names == ("x", "unused")
    (weight,) = weights_of(graph)
    assert weight.name == "a+b+c"
    exact = np.concatenate([(a.astype(float) @ b.astype(float)).T, noise(2, 8)])
    np.testing.assert_array_equal(weight.load(), exact.astype(np.float32))


def test_folding_changes_no_result():
    g = GraphBuilder()
    x = g.input("x", TensorType((2, 3, 8, 8), "float32"))
    w = g.op("Mul", g.weight(noise(4, 3, 3, 3)), g.weight(noise(4, 1, 1, 1, seed=1)))
    parts = g.op("Split", w, axis=0, sizes=(1, 3))
    y = g.op("Conv", x, g.get(parts, 1), strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1), group=1)
    graph = g.build({"y": y, "w": g.get(parts, 0), "raw": w})
    folded = fold_constants(graph)
    assert folded.count() == {"Conv": 1}
    inputs = {"x": noise(2, 3, 8, 8)}
    for a, b in zip(evaluate(graph, inputs), evaluate(folded, inputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert fold_constants(folded).count() == folded.count()


def test_expressions_that_would_blow_up_stay():
    g = GraphBuilder()
    column, row = g.op("Neg", g.weight(noise(500, 1))), g.weight(noise(1, 500))
    x = g.input("x", TensorType((500, 500), "float32"))
    graph = fold_constants(g.build({"y": g.op("Mul", x, g.op("Add", column, row))}))
    assert graph.count() == {"Add": 1, "Mul": 1}  # Neg is folded, the outer sum is not
    assert sum(w.type.elements for w in weights_of(graph)) == 1000


def test_half_precision_is_folded_in_double_precision():
    import ml_dtypes

    for dtype in (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)):
        a = (noise(6, 64) * 30).astype(dtype)
        g = GraphBuilder()
        x = g.input("x", TensorType((6, 6), str(dtype)))
        product = g.op("MatMul", g.weight(a), g.op("Transpose", g.weight(a), perm=(1, 0)))
        (weight,) = weights_of(fold_constants(g.build({"y": g.op("Add", x, product)})))
        exact = a.astype(float) @ a.astype(float).T
        assert weight.type == TensorType((6, 6), str(dtype))
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(weight.load().astype(float), exact.astype(dtype).astype(float))


def test_types_that_torch_lacks_are_kept():
    import ml_dtypes

    g = GraphBuilder()
    w = g.weight(Weight.of(np.ones((2, 3), ml_dtypes.float8_e4m3fn), "w"))
    graph = fold_constants(g.build({"y": g.op("Transpose", w, perm=(1, 0))}))
    assert graph.count() == {"Transpose": 1}


def test_folding_without_constants_returns_the_same_program():
    graph = build("Relu", [(2, 3)])
    assert fold_constants(graph) == graph


# Inputs


def opaque(g, op, inputs, kind, **attrs):
    import onnx

    from xrlflow.egraph.graph import attributes

    data = onnx.helper.make_node(op.rpartition("::")[2], [], [], **attrs).SerializeToString()
    g.opaques[f"{op}{attrs}"] = data
    return g.add(op, inputs, attributes(proto=f"{op}{attrs}", outputs=1, captures=()), kind)


def test_indices_are_in_range_and_masks_are_mostly_one():
    g = GraphBuilder()
    ids, mask = g.input("ids", TensorType(("n", 50), "int64")), g.input("mask", TensorType(("n", 50), "int64"))
    flat = g.op("Transpose", ids, perm=(1, 0))
    rows = opaque(g, "::Gather", [g.weight(noise(7, 4)), flat], TensorType((50, "n", 4), "float32"))
    columns = opaque(g, "::Gather", [g.weight(noise(9, 5)), flat], TensorType((9, 50, "n"), "float32"), axis=1)
    graph = g.build({"a": rows, "b": columns, "mask": mask})
    inputs = random_inputs(graph, 0, {"n": 3})
    assert inputs["ids"].shape == (3, 50)
    assert set(inputs["ids"].reshape(-1)) == set(range(5))  # the smaller of 7 and, along axis 1, 5
    assert 0.7 < inputs["mask"].mean() < 1
    assert random_inputs(graph, 0)["ids"].shape == (2, 50)


def test_inputs_depend_on_seed_and_name_only():
    graph = build("Add", [(3, 4), (3, 4)])
    first, again, other = (random_inputs(graph, s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first["x0"], again["x0"])
    assert not np.array_equal(first["x0"], other["x0"])
    assert not np.array_equal(first["x0"], first["x1"])
    np.testing.assert_array_equal(first["x0"], random_inputs(build("Relu", [(3, 4)]), 1)["x0"])


def test_inputs_of_unknown_type_are_refused():
    g = GraphBuilder()
    graph = g.build({"y": g.input("x", TensorType(None, "undefined"))})
    with pytest.raises(UserError, match="'x'"):
        random_inputs(graph, 0)
