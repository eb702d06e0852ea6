"""The fused operators: what they mean is what ONNX Runtime computes, and they are read and written as they are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from xrlflow import saturate
from xrlflow.egraph.fused import FUSED
from xrlflow.egraph.graph import Graph, GraphBuilder, TensorType, TupleType
from xrlflow.lowering import available, load, to_onnx, verify
from xrlflow.lowering.evaluation import evaluate
from xrlflow.lowering.onnx_forms import TVM_LACKS, meant_for
from xrlflow.lowering.onnx_tensor import OnnxSource
from xrlflow.pipeline import extract


def convolution(activation: str, *parameters: float) -> dict[str, Any]:
    window = {"strides": (1, 2), "dilations": (1, 1), "pads": (1, 0, 1, 0), "group": 1}
    return {**window, "activation": activation, "parameters": parameters}


GEMM = {"alpha": 0.5, "beta": 2.0, "transA": 0, "transB": 1}

CASES: list[tuple[str, list[tuple[int, ...]], dict[str, Any]]] = [
    ("Attention", [(2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)], {"scale": 0.3, "causal": 0}),
    ("Attention", [(2, 3, 5, 4), (2, 3, 5, 4), (2, 3, 5, 6)], {"scale": 0.5, "causal": 1}),
    ("Attention", [(2, 6, 5, 4), (2, 2, 7, 4), (2, 2, 7, 6)], {"scale": 0.3, "causal": 0}),
    ("Attention", [(2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6), (5, 7)], {"scale": 0.3, "causal": 0}),
    ("Attention", [(2, 6, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6), (2, 1, 5, 7)], {"scale": 0.3, "causal": 0}),
    ("Attention", [(2, 3, 5, 4), (2, 3, 5, 4), (2, 3, 5, 6), (1, 3, 5, 5)], {"scale": 0.3, "causal": 1}),
    ("RotaryEmbedding", [(2, 3, 5, 8), (2, 5, 4), (2, 5, 4)], {"interleaved": 0}),
    ("RotaryEmbedding", [(2, 3, 5, 8), (2, 5, 4), (2, 5, 4)], {"interleaved": 1}),
    ("MultiHeadAttention", [(2, 5, 12), (2, 7, 12), (2, 7, 18)], {"heads": 3, "scale": 0.4, "causal": 0}),
    ("MultiHeadAttention", [(2, 5, 12), (2, 5, 12), (2, 5, 18)], {"heads": 3, "scale": 0.4, "causal": 1}),
    ("MultiHeadAttention", [(2, 5, 12), (2, 7, 12), (2, 7, 18), (1, 3, 5, 7)], {"heads": 3, "scale": 0.4, "causal": 0}),
    ("MultiHeadAttention", [(2, 5, 12), (2, 7, 12), (2, 7, 18), (2, 1, 5, 7)], {"heads": 3, "scale": 0.4, "causal": 0}),
    ("FusedMatMul", [(2, 5, 3), (2, 7, 5)], {"alpha": -1.5, "transA": 1, "transB": 1}),
    ("FusedMatMul", [(4, 1, 3, 5), (2, 5, 7)], {"alpha": 0.25, "transA": 0, "transB": 0}),
    ("FusedMatMul", [(3, 5), (2, 7, 5)], {"alpha": 1.0, "transA": 0, "transB": 1}),
    ("FusedGemm", [(3, 5), (7, 5), (7,)], {**GEMM, "activation": "Relu", "parameters": ()}),
    ("FusedGemm", [(3, 5), (7, 5)], {**GEMM, "beta": 1.0, "activation": "LeakyRelu", "parameters": (0.25,)}),
    ("FusedGemm", [(3, 5), (7, 5), (3, 1)], {**GEMM, "activation": "HardSigmoid", "parameters": (0.25, 0.5)}),
    ("FusedConv", [(2, 3, 7, 9), (4, 3, 3, 3)], convolution("Relu")),
    ("FusedConv", [(2, 3, 7, 9), (4, 3, 3, 3), (4,)], convolution("Clip", 0.0, 1.5)),
    ("FusedConv", [(2, 3, 7, 9), (4, 3, 3, 3), (4,)], convolution("HardSigmoid", 0.25, 0.5)),
    ("FusedConv", [(2, 3, 7, 9), (4, 3, 3, 3), (4,)], convolution("LeakyRelu", 0.25)),
    ("FusedConv", [(2, 3, 7, 9), (4, 3, 3, 3), (4,), (2, 4, 7, 4)], convolution("Relu")),
    ("FusedConv", [(2, 3, 7, 9), (4, 3, 3, 3), (4,), (2, 4, 7, 4)], convolution("")),
    ("BiasGelu", [(2, 3, 5), (5,)], {}),
    ("FastGelu", [(2, 3, 5), (5,)], {}),
    ("SkipLayerNormalization", [(2, 3, 5), (2, 3, 5), (5,), (5,)], {"epsilon": 1e-3, "sum": 0}),
    ("SkipLayerNormalization", [(2, 3, 5), (2, 3, 5), (5,), (5,), (5,)], {"epsilon": 1e-3, "sum": 1}),
    ("SkipLayerNormalization", [(3, 5), (3, 5), (5,), (5,)], {"epsilon": 1e-3, "sum": 1}),
    ("SkipSimplifiedLayerNormalization", [(2, 3, 5), (2, 3, 5), (5,)], {"epsilon": 1e-3, "sum": 1}),
    ("SkipSimplifiedLayerNormalization", [(2, 3, 5), (2, 3, 5), (5,), (5,)], {"epsilon": 1e-3, "sum": 0}),
    ("SkipSimplifiedLayerNormalization", [(3, 5), (3, 5), (5,)], {"epsilon": 1e-3, "sum": 0}),
    # core operators that ONNX Runtime has under another name in older opsets
    ("RMSNormalization", [(2, 3, 5), (5,)], {"axis": 2, "epsilon": 1e-3}),
    ("Gelu", [(2, 3, 5)], {"approximate": "none"}),
    ("Gelu", [(2, 3, 5)], {"approximate": "tanh"}),
    ("Swish", [(2, 3, 5)], {"alpha": 1.5}),
]  # fmt: skip
IDS = [f"{op}-{i}" for i, (op, _, _) in enumerate(CASES)]


def graph_of(op: str, shapes: list[tuple[int, ...]], attrs: dict[str, Any], opset: int) -> Graph:
    """A graph of this one operator, in an opset."""
    base = helper.make_model(
        helper.make_graph([], "one", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]),
        opset_imports=[helper.make_opsetid("", opset)], ir_version=10,
    )  # fmt: skip
    g = GraphBuilder()
    node = g.op(op, *(g.input(f"x{i}", TensorType(s, "float32")) for i, s in enumerate(shapes)), **attrs)
    kind = g.nodes[node].type
    del base.graph.output[:]
    outputs = {f"y{k}": g.get(node, k) for k in range(2)} if isinstance(kind, TupleType) else {"y": node}
    return g.build(outputs, OnnxSource(base, {}, False, None))


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(
        None, inputs
    )


@pytest.mark.parametrize(("op", "shapes", "attrs"), CASES, ids=IDS)
def test_the_evaluator_computes_what_onnx_runtime_computes(op: str, shapes: Any, attrs: Any) -> None:
    opset = 23 if op in ("Attention", "RotaryEmbedding") else 18
    assert available(op, opset, contrib=True)
    graph = graph_of(op, shapes, attrs, opset)
    rng = np.random.default_rng(0)
    inputs = {f"x{i}": rng.normal(size=s).astype(np.float32) for i, s in enumerate(shapes)}
    model = to_onnx(graph)
    for found, wanted in zip(run(model, inputs), evaluate(graph, inputs), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("op", "shapes", "attrs"), CASES, ids=IDS)
def test_what_is_written_is_read_as_the_same_operator(op: str, shapes: Any, attrs: Any) -> None:
    graph = graph_of(op, shapes, attrs, 23 if op in ("Attention", "RotaryEmbedding") else 18)
    again = load(to_onnx(graph))
    wanted, found = (g.nodes[max(g.operators, key=lambda i: g.nodes[i].op == op)] for g in (graph, again))
    assert (found.op, found.type) == (op, wanted.type)
    for name, value in wanted.attrs.items():
        # ONNX keeps attributes in float32
        assert found.attrs[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6)), name


def weight(g: GraphBuilder, *shape: int) -> int:
    rng = np.random.default_rng(len(g.nodes))
    return g.weight(rng.normal(size=shape).astype(np.float32) / 4)


def block(g: GraphBuilder) -> dict[str, int]:
    """Masked attention of two heads, a residual sum with a norm, and an MLP with Gelu, as exporters write them."""
    x, mask = g.input("x", TensorType((2, 5, 8), "float32")), g.input("mask", TensorType((2, 1, 5, 5), "float32"))

    def linear(x: int, n: int, m: int) -> int:
        return g.op("Add", g.op("MatMul", x, weight(g, n, m)), weight(g, m))

    def heads(x: int) -> int:
        return g.op("Transpose", g.op("Reshape", linear(x, 8, 8), shape=(2, 5, 2, 4)), perm=(0, 2, 1, 3))

    q, k, v = heads(x), heads(x), heads(x)
    half = g.weight(np.array(0.5, np.float32))
    scores = g.op("Mul", g.op("MatMul", q, g.op("Transpose", k, perm=(0, 1, 3, 2))), half)
    found = g.op("MatMul", g.op("Softmax", g.op("Add", scores, mask), axis=3), v)
    flat = g.op("Reshape", g.op("Transpose", found, perm=(0, 2, 1, 3)), shape=(2, 5, 8))
    total = g.op("Add", linear(flat, 8, 8), x)
    normed = g.op("LayerNormalization", total, weight(g, 8), weight(g, 8), axis=2, epsilon=1e-5)
    y = g.op("Add", linear(g.op("Gelu", linear(normed, 8, 16), approximate="none"), 16, 8), total)
    return {"y": g.op("LayerNormalization", y, weight(g, 8), weight(g, 8), axis=2, epsilon=1e-5)}


def convolutions(g: GraphBuilder) -> dict[str, int]:
    x = g.input("x", TensorType((1, 3, 9, 7), "float32"))
    window = {"strides": (1, 1), "dilations": (1, 1), "pads": (1, 1, 1, 1), "group": 1}
    a = g.op("Relu", g.op("Conv", x, weight(g, 4, 3, 3, 3), weight(g, 4), **window))
    b = g.op("Conv", a, weight(g, 4, 4, 3, 3), weight(g, 4), **window)
    return {"y": g.op("Relu", g.op("Add", b, a))}


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (block, {"MultiHeadAttention": 1, "SkipLayerNormalization": 2}),
        (convolutions, {"FusedConv": 2}),
    ],
)
def test_rules_reach_the_runtimes_operators_and_come_back(build: Any, expected: dict[str, int]) -> None:
    g = GraphBuilder()
    graph = load(to_onnx(g.build(build(g))))
    for kind in ("any", "onnxruntime"):
        space = saturate(meant_for(graph, kind))
        found = extract(space, target="roofline:epyc-1t", seconds=None, steps=1000)
        written = to_onnx(space.to_graph(found.selection))
        own = Counter(node.op_type for node in written.graph.node if node.domain == "com.microsoft")
        assert verify(graph, written).passed
        if kind == "any":
            assert not own and "Attention" not in space.ops
        else:
            assert expected.items() <= own.items()
    again = saturate(meant_for(load(written), "onnxruntime"))
    back = {"MatMul", "Softmax", "LayerNormalization", "Add"} if build is block else {"Conv", "Relu"}
    assert back <= set(again.ops)


def test_every_fused_operator_is_compared() -> None:
    assert set(FUSED) <= {op for op, _, _ in CASES}


def test_tvm_takes_what_is_not_listed_as_lacking() -> None:
    from xrlflow.lowering.tvm_module import import_onnx

    for op, shapes, attrs in CASES:
        if available(op, 24):
            model = to_onnx(graph_of(op, shapes, attrs, 24))
            if op in TVM_LACKS:
                with pytest.raises(Exception, match=r"not supported|num_heads"):
                    import_onnx(model)
            else:
                import_onnx(model)


def test_a_graph_is_meant_for_a_target() -> None:
    graph = graph_of("Gelu", [(2, 3)], {"approximate": "none"}, 24)
    assert meant_for(graph, "onnxruntime").writes("BiasGelu")
    assert not any(meant_for(graph, kind).writes("BiasGelu") for kind in ("llvm", "cuda", "roofline"))
    assert meant_for(graph, "roofline").writes("Attention") and not meant_for(graph, "llvm").writes("Attention")


def test_a_step_towards_an_operator_is_in_the_space_but_in_no_program() -> None:
    older = meant_for(graph_of("Gelu", [(2, 3)], {"approximate": "none"}, 20), "onnxruntime")
    assert older.writes("Attention") and older.forbids("Attention")
    assert not meant_for(older, "roofline").writes("Attention")
    newer = meant_for(graph_of("Gelu", [(2, 3)], {"approximate": "none"}, 23), "onnxruntime")
    assert newer.writes("Attention") and not newer.forbids("Attention")


def test_available_tells_target_and_opset() -> None:
    assert available("FusedConv", 18, contrib=True) and not available("FusedConv", 25)
    assert available("RMSNormalization", 23) and not available("RMSNormalization", 22)
    assert available("RMSNormalization", 22, contrib=True)
    assert not available("Attention", 22, contrib=True) and available("Attention", 23)
