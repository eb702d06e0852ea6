"""What exporters leave behind goes: masks computed anew, casts, broadcasts, constant expressions, dead code."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from onnx import TensorProto, checker, helper, numpy_helper

from xrlflow.egraph.graph import GraphBuilder, TensorType, attributes
from xrlflow.egraph.operators import core_operators
from xrlflow.egraph.rules import rule_set
from xrlflow.egraph.saturate import saturate
from xrlflow.egraph.space import SearchSpace
from xrlflow.lowering import evaluate, fold_constants, load
from xrlflow.lowering.check import check_enodes


def saturated(builder: GraphBuilder, **outputs: int) -> SearchSpace:
    space = saturate(builder.build(outputs), rule_set(without=["runtime", "rotary"]))
    assert space.report.stop_reason == "saturated"
    assert not check_enodes(space).mismatches
    return space


def kinds(space: SearchSpace, output: int = 0) -> set[str]:
    """The operators that compute an output, one way or another."""
    return {space.ops[i] for i in space.nodes_of(int(space.roots[output]))}


def number(builder: GraphBuilder, value: float, dtype: str = "float32") -> int:
    return builder.weight(np.asarray(value, dtype=dtype))


# Masks


def causal(builder: GraphBuilder, flipped: bool, known: bool) -> int:
    """0 where a key is no later than the query, else the smallest number, as legacy and dynamo exports write it."""
    q = builder.input("q", TensorType((1, 1, 5, 1), "int64"))
    k = builder.input("k", TensorType((1, 1, 1, 5), "int64"))
    allowed = builder.op("GreaterOrEqual", q, k) if flipped else builder.op("LessOrEqual", k, q)
    if known:
        allowed = builder.op("And", builder.weight(np.ones((), dtype=bool)), allowed)
    zero, least = number(builder, 0.0), number(builder, np.finfo(np.float32).min)
    if flipped:
        return builder.op("Where", builder.op("Not", allowed), least, zero)
    return builder.op("Where", allowed, zero, least)


def test_a_mask_written_in_two_ways_is_computed_once() -> None:
    builder = GraphBuilder()
    space = saturated(builder, a=causal(builder, False, True), b=causal(builder, True, False))
    assert space.roots[0] == space.roots[1]


def test_a_mask_that_every_layer_computes_anew_is_one_when_it_is_loaded() -> None:
    shared = [helper.make_tensor_value_info("m", TensorProto.INT64, [2, 5])]
    nodes, tensors, outputs = [], [], []
    for layer in range(3):
        tensors += [
            numpy_helper.from_array(np.float32(0), f"zero{layer}"),
            numpy_helper.from_array(np.float32(-3e38), f"least{layer}"),
        ]
        nodes += [
            helper.make_node("Cast", ["m"], [f"kept{layer}"], to=TensorProto.BOOL),
            helper.make_node("Where", [f"kept{layer}", f"zero{layer}", f"least{layer}"], [f"mask{layer}"]),
            helper.make_node("Neg", [f"unused{layer - 1}" if layer else f"mask{layer}"], [f"unused{layer}"]),
        ]
        outputs.append(helper.make_tensor_value_info(f"mask{layer}", TensorProto.FLOAT, [2, 5]))
    graph = helper.make_graph(nodes, "masks", shared, outputs, tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    checker.check_model(proto)
    loaded = load(proto)
    assert sorted(loaded.nodes[i].op for i in loaded.operators) == ["Cast", "Where"], "shared, and no dead code"


def test_a_shifted_window_is_masked_once() -> None:
    """Swin: masked_fill(d != 0, -100).masked_fill(d == 0, 0)."""
    builder = GraphBuilder()
    d = builder.input("d", TensorType((4, 16, 16), "float32"))
    zero, low = number(builder, 0.0), number(builder, -100.0)
    same = builder.op("Equal", d, zero)
    mask = builder.op("Where", same, zero, builder.op("Where", builder.op("Not", same), low, d))
    space = saturated(builder, mask=mask)
    once = [i for i in space.nodes_of(int(space.roots[0])) if all(space.const[k] for k in space.child_lists[i][1:])]
    assert once, "only numbers are chosen from"


def test_the_guard_against_masked_rows_leaves_the_attention() -> None:
    builder = GraphBuilder()
    s = builder.input("scores", TensorType((2, 3, 5, 7), "float32"))
    v = builder.input("v", TensorType((2, 3, 7, 4), "float32"))
    p = builder.op("Softmax", s, axis=3)
    guarded = builder.op("Where", builder.op("IsNaN", p), number(builder, 0.0), p)
    space = saturated(builder, y=builder.op("MatMul", guarded, v))
    assert kinds(space) >= {"MatMul", "Where"}
    graph = builder.build({"y": builder.op("MatMul", guarded, v)})
    scores = np.random.default_rng(0).normal(size=(2, 3, 5, 7))
    scores[:, :, 2, :] = -np.inf
    scores[:, :, 4, 1:] = -np.inf
    values = {"scores": scores, "v": np.random.default_rng(1).normal(size=(2, 3, 7, 4))}
    (want,) = evaluate(graph, values)
    for i in space.nodes_of(int(space.roots[0])):
        other = space.to_graph(
            space.selection(np.where(np.arange(space.n_classes) == space.roots[0], i, _choice(space)))
        )
        np.testing.assert_allclose(evaluate(other, values)[0], want, atol=1e-12)


def _choice(space: SearchSpace) -> np.ndarray:
    choice = space.original.choice.copy()
    for c in range(space.n_classes):
        if choice[c] < 0:
            choice[c] = next(iter(space.nodes_of(c)))
    return choice


def test_a_row_that_is_masked_whole_keeps_its_guard() -> None:
    """Nothing says that softmax's operand is finite, so the guard may not go."""
    builder = GraphBuilder()
    s = builder.input("scores", TensorType((5, 7), "float32"))
    p = builder.op("Softmax", s, axis=1)
    guarded = builder.op("Where", builder.op("IsNaN", p), number(builder, 0.0), p)
    space = saturated(builder, guarded=guarded, plain=p)
    assert space.roots[0] != space.roots[1]


# Casts


def test_a_cast_there_and_back_goes() -> None:
    """Llama in float16: the softmax's result is cast to float32 and back."""
    builder = GraphBuilder()
    x = builder.input("x", TensorType((3, 5), "float16"))
    p = builder.op("Softmax", x, axis=1)
    back = builder.op("Cast", builder.op("Cast", p, to="float32"), to="float16")
    space = saturated(builder, back=back, plain=p)
    assert space.roots[0] == space.roots[1]


@pytest.mark.parametrize(("first", "middle"), [("float32", "float16"), ("float32", "int64"), ("int64", "float32")])
def test_a_cast_through_a_narrower_type_stays(first: str, middle: str) -> None:
    builder = GraphBuilder()
    x = builder.input("x", TensorType((3, 5), first))
    space = saturated(builder, y=builder.op("Cast", builder.op("Cast", x, to=middle), to=first), x=builder.op("Neg", x))
    assert "Cast" in kinds(space) and not kinds(space) & {"Input"}


# Broadcasts and gathers


def test_token_types_that_are_all_alike_are_looked_up_once() -> None:
    """BERT: the row of type ids is expanded to the batch, looked up, and added to the words."""
    builder = GraphBuilder()
    words = builder.input("words", TensorType((4, 6, 8), "float32"))
    ids = builder.input("ids", TensorType((1, 6), "int64"))
    table = builder.weight(np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32))
    found = builder.op("Gather", table, builder.op("Expand", ids, shape=(4, 6)), axis=0)
    total = builder.op("Add", words, found)
    space = saturate(builder.build({"y": total}))
    adds = [i for i in space.nodes_of(int(space.roots[0])) if space.ops[i] == "Add"]
    smallest = min(space.types[k].elements for i in adds for k in space.child_lists[i])
    assert smallest == 6 * 8


def test_a_mask_is_not_expanded_before_it_is_added() -> None:
    builder = GraphBuilder()
    scores = builder.input("scores", TensorType(("b", 4, "s", "s"), "float32"))
    keep = builder.input("keep", TensorType(("b", 1, 1, "s"), "bool"))
    wide = builder.op("Expand", keep, shape=builder.nodes[scores].type.shape)
    mask = builder.op("Where", wide, number(builder, 0.0), number(builder, -1e4))
    space = saturated(builder, y=builder.op("Add", scores, mask))
    narrow = [
        i for i in space.nodes_of(int(space.roots[0]))
        if space.ops[i] == "Add" and any(space.types[k].shape == space.types[space.node_class[0]].shape or
                                         space.types[k].shape[1] == 1 for k in space.child_lists[i])
    ]  # fmt: skip
    assert narrow


def test_parts_that_are_gathered_one_by_one_become_slices() -> None:
    """BLOOM: query, key and value are rows 0, 1 and 2 of an axis."""
    builder = GraphBuilder()
    x = builder.input("x", TensorType((2, 5, 4, 3, 8), "float32"))
    parts = {n: builder.op("Gather", x, number(builder, i, "int64"), axis=3) for i, n in enumerate("qkv")}
    space = saturated(builder, **parts)
    for output in range(3):
        assert "Reshape" in kinds(space, output)


# Constants and dead code

F, I, B = "float32", "int64", "bool"
CONSTANT: dict[str, tuple[list[tuple[str, tuple[int, ...]]], dict[str, object]]] = {
    **{op: ([(F, (2, 3))], {}) for op in ("Relu", "Sigmoid", "Tanh", "Erf", "Sqrt", "Exp", "Neg", "Abs", "Reciprocal",
                                          "Sin", "Cos", "Log", "Softplus", "Floor", "Ceil", "Sign", "HardSwish")},
    **{op: ([(F, (2, 3)), (F, (3,))], {}) for op in ("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Equal",
                                                    "Greater", "GreaterOrEqual", "Less", "LessOrEqual")},
    **{op: ([(F, (2, 3))], {"axes": (1,), "keepdims": 1})
       for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")},
    **{op: ([(B, (2, 3)), (B, (3,))], {}) for op in ("And", "Or")},
    "Not": ([(B, (2, 3))], {}), "IsNaN": ([(F, (2, 3))], {}), "Cast": ([(F, (2, 3))], {"to": "int64"}),
    "Gelu": ([(F, (2, 3))], {"approximate": "tanh"}), "Swish": ([(F, (2, 3))], {"alpha": 1.5}),
    "LeakyRelu": ([(F, (2, 3))], {"alpha": 0.1}), "Elu": ([(F, (2, 3))], {"alpha": 0.5}),
    "HardSigmoid": ([(F, (2, 3))], {"alpha": 0.2, "beta": 0.5}), "Clip": ([(F, (2, 3))], {"min": 0.0, "max": 1.0}),
    "Where": ([(B, (2, 3)), (F, (3,)), (F, (2, 1))], {}), "MatMul": ([(F, (2, 3)), (F, (3, 5))], {}),
    "Gemm": ([(F, (2, 3)), (F, (3, 5))], {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}),
    "Conv": ([(F, (1, 2, 4, 4)), (F, (3, 2, 1, 1))],
             {"strides": (1, 1), "dilations": (1, 1), "pads": (0,) * 4, "group": 1}),
    "BatchNormalization": ([(F, (2, 3)), (F, (3,)), (F, (3,)), (F, (3,)), (F, (3,))], {"epsilon": 1e-5}),
    "MaxPool": ([(F, (1, 2, 4, 4))],
                {"kernel": (2, 2), "strides": (2, 2), "pads": (0,) * 4, "dilations": (1, 1), "ceil": 0}),
    "AveragePool": ([(F, (1, 2, 4, 4))], {"kernel": (2, 2), "strides": (2, 2), "pads": (0,) * 4,
                                          "dilations": (1, 1), "ceil": 0, "include_pad": 0}),
    "GlobalAveragePool": ([(F, (1, 2, 4, 4))], {}), "Softmax": ([(F, (2, 3))], {"axis": 1}),
    "LayerNormalization": ([(F, (2, 3)), (F, (3,))], {"axis": 1, "epsilon": 1e-5}),
    "RMSNormalization": ([(F, (2, 3)), (F, (3,))], {"axis": 1, "epsilon": 1e-5}),
    "Concat": ([(F, (2, 3)), (F, (2, 1))], {"axis": 1}), "Transpose": ([(F, (2, 3))], {"perm": (1, 0)}),
    "Slice": ([(F, (2, 3))], {"axes": (1,), "starts": (0,), "ends": (2,)}), "Reshape": ([(F, (2, 3))], {"shape": (6,)}),
    "Expand": ([(F, (2, 1))], {"shape": (2, 3)}), "Pad": ([(F, (2, 3))], {"pads": (0, 1, 1, 0), "value": 0.5}),
    "Gather": ([(F, (2, 3)), (I, (2,))], {"axis": 1}), "Split": ([(F, (2, 3))], {"axis": 1, "sizes": (1, 2)}),
}  # fmt: skip


def test_every_core_operator_is_folded() -> None:
    """Of operators that runtimes fuse, none is ever constant: attention and the like read activations."""
    from xrlflow.egraph.fused import FUSED

    assert set(CONSTANT) == {op for op in core_operators() if op not in FUSED} - {"Get"}
    rng = np.random.default_rng(0)
    for op, (operands, attrs) in CONSTANT.items():
        builder, weights = GraphBuilder(), []
        for dtype, shape in operands:
            values = rng.uniform(0.3, 0.9, shape) if dtype == F else rng.integers(0, 2, shape)
            weights.append(builder.weight(values.astype(dtype)))
        made = builder.op(op, *weights, **attrs)
        if op == "Split":
            made = builder.add("Get", [made], attributes(index=1), builder.nodes[made].type.items[1])  # type: ignore[attr-defined]
        graph = builder.build({"y": made})
        folded = fold_constants(graph)
        assert [n.op for n in folded.nodes] == ["Weight"], op
        np.testing.assert_allclose(
            evaluate(folded, {})[0].astype(float), evaluate(graph, {})[0].astype(float), rtol=1e-6, err_msg=op
        )


def test_a_constant_that_rounding_may_take_over_a_step_is_not_folded() -> None:
    """T5's buckets: log(16 / 8) / log(16) · 8 is 2 in float32, and 1.9999999945 with a float32 divisor in float64."""
    builder = GraphBuilder()
    distance = builder.weight(np.array([9, 16, 31], dtype=np.float32))
    ratio = builder.op("Log", builder.op("Div", distance, number(builder, 8.0)))
    scaled = builder.op("Mul", builder.op("Div", ratio, number(builder, log(16))), number(builder, 8.0))
    graph = fold_constants(builder.build({"bucket": builder.op("Cast", scaled, to="int64")}))
    assert [n.op for n in graph.nodes] == ["Weight", "Cast"]


def test_a_constant_step_of_whole_numbers_is_folded() -> None:
    """Swin: regions are numbered, and equal numbers compared."""
    builder = GraphBuilder()
    regions = builder.weight(np.arange(5, dtype=np.int64))
    row = builder.op("Cast", regions, to="float32")
    difference = builder.op("Sub", row, builder.op("Reshape", row, shape=(5, 1)))
    graph = fold_constants(builder.build({"same": builder.op("Equal", difference, number(builder, 0.0))}))
    assert [n.op for n in graph.nodes] == ["Weight"]


def test_a_constant_step_far_from_rounding_is_folded() -> None:
    builder = GraphBuilder()
    x = builder.op("Exp", builder.weight(np.array([0.3, 1.1], dtype=np.float32)))
    graph = fold_constants(builder.build({"y": builder.op("Greater", x, number(builder, 2.0))}))
    assert [n.op for n in graph.nodes] == ["Weight"]
    assert evaluate(graph, {})[0].tolist() == [False, True]


def test_operators_that_do_nothing_leave_when_a_model_is_loaded() -> None:
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in "xy"]
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Dropout", ["a"], ["b", "mask"]),
        helper.make_node("Cast", ["b"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Relu", ["c"], ["y"]),
        helper.make_node("Exp", ["c"], ["dead"]),
    ]
    proto = helper.make_model(
        helper.make_graph(nodes, "idle", info[:1], info[1:]), opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    )
    graph = load(proto)
    space = saturate(graph)
    (relu,) = [i for i in space.nodes_of(int(space.roots[0])) if space.ops[i] == "Relu" and space.ops[
        next(iter(space.nodes_of(space.child_lists[i][0])))] in ("Input", "Cast")]  # fmt: skip
    assert "Dropout" not in "".join(space.ops) and "Exp" not in space.ops
    assert any(space.ops[j] == "Input" for j in space.nodes_of(space.child_lists[relu][0]))
