"""Shape arithmetic is followed on symbols, and what is known of a value's shape holds at every binding."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from xrlflow.egraph.dimension import evaluate, symbol
from xrlflow.lowering import load

ort.set_default_logger_severity(4)
F, I64 = TensorProto.FLOAT, TensorProto.INT64
EXTENTS = (0, 1, 2, 3, 7, 10)
N, M = symbol("n"), symbol("m")


def ints(**values):
    return [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in values.items()]


def model(nodes, weights=(), shape=("n", "m"), opset=18):
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", F, shape)], [onnx.ValueInfoProto(name="y")], list(weights)
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])


def known(proto, name="y"):
    """What is known of a value's shape; the types of all values are held against ONNX Runtime's at every binding."""
    graph = load(proto)
    kinds = {graph.nodes[i].names[0]: graph.nodes[i].type for i in graph.live if graph.nodes[i].names}
    kinds["y"] = graph.nodes[graph.outputs[0]].type
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    made = [o for n in proto.graph.node for o in n.output if o in kinds]
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=o) for o in made)
    session = ort.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    ran = 0
    for n, m in itertools.product(EXTENTS, EXTENTS):
        binding = {"n": n, "m": m}
        shape = next(n.type for n in graph.nodes if n.op == "Input").at(binding).shape
        try:
            found = session.run(made, {"x": np.zeros(shape, np.float32)})
        except Exception:  # noqa: BLE001 (extents the operators have no meaning for)
            continue
        ran += 1
        for o, value in zip(made, found, strict=True):
            for d, extent in zip(kinds[o].shape, value.shape, strict=True):
                if isinstance(d, int) or all(s in binding for s in d.symbols):
                    assert evaluate(d, binding) == extent, (o, kinds[o], value.shape, binding)
    assert ran >= 3
    return kinds[name].shape


def extent_of_x(axis):
    """Nodes that make the scalar-shaped vector [extent of x along the axis], called `e`."""
    return [helper.make_node("Shape", ["x"], ["e"], start=axis, end=axis + 1)]


CASES = {
    "slice from the end": ([helper.make_node("Slice", ["x", "a", "b", "c"], ["y"])], ints(a=[-1], b=[1 << 62], c=[0]),
                           lambda: (N - (N - _min(N, 1)), M)),
    "slice to the end": ([helper.make_node("Slice", ["x", "a", "b", "c"], ["y"])], ints(a=[0], b=[-2], c=[1]),
                         lambda: (N, M - _min(M, 2))),
    "slice by an extent": (
        [*extent_of_x(1), helper.make_node("Slice", ["x", "a", "e", "c"], ["y"])], ints(a=[0], c=[1]), lambda: (N, M)),
    "pad": ([helper.make_node("Pad", ["x", "a"], ["y"])], ints(a=[1, 0, 2, 3]), lambda: (N + 3, M + 3)),
    "pad by an extent": (
        [*extent_of_x(0), helper.make_node("Concat", ["z", "e", "z", "z"], ["p"], axis=0),
         helper.make_node("Pad", ["x", "p"], ["y"])],
        ints(z=[0]), lambda: (N, M + N)),
    "pads in reverse, as torch writes them": (
        [*extent_of_x(0), helper.make_node("Concat", ["e", "o", "z", "z"], ["p"], axis=0),
         helper.make_node("Reshape", ["p", "s"], ["q"]), helper.make_node("Slice", ["q", "l", "f", "z", "l"], ["r"]),
         helper.make_node("Transpose", ["r"], ["t"], perm=[1, 0]), helper.make_node("Reshape", ["t", "l"], ["u"]),
         helper.make_node("Pad", ["x", "u"], ["y"])],
        ints(z=[0], o=[1], s=[-1, 2], l=[-1], f=[-(1 << 62)]), lambda: (N, M + N + 1)),
    "tile": ([*extent_of_x(0), helper.make_node("Concat", ["e", "o"], ["r"], axis=0),
              helper.make_node("Tile", ["x", "r"], ["y"])], ints(o=[3]), lambda: (N * N, M * 3)),
    "gather rows": (
        [helper.make_node("Gather", ["x", "i"], ["y"], axis=0)], ints(i=[[0, 0], [0, 0]]), lambda: (2, 2, M)),
    "remainder": (
        [*extent_of_x(0), helper.make_node("Mod", ["e", "four"], ["r"]), helper.make_node("Sub", ["four", "r"], ["s"]),
         helper.make_node("Concat", ["z", "z", "s", "z"], ["p"], axis=0), helper.make_node("Pad", ["x", "p"], ["y"])],
        ints(z=[0], four=[4]), lambda: ((N // 4) * 4 + 4, M)),
    "the smaller of two": (
        [*extent_of_x(0), helper.make_node("Min", ["e", "four"], ["r"]),
         helper.make_node("Slice", ["x", "z", "r", "z"], ["y"])], ints(z=[0], four=[4]), lambda: (_min(N, 4), M)),
    "a choice that every binding decides alike": (
        [*extent_of_x(0), helper.make_node("GreaterOrEqual", ["e", "z"], ["t"]),
         helper.make_node("Where", ["t", "e", "z"], ["r"]), helper.make_node("Expand", ["o", "r"], ["y"])],
        ints(z=[0], o=[1]), lambda: (N,)),
}  # fmt: skip


def _min(d, bound):
    from xrlflow.egraph.dimension import least

    return least(d, bound)


@pytest.mark.parametrize("case", CASES)
def test_shapes_that_extents_decide_are_known(case):
    nodes, weights, wanted = CASES[case]
    assert known(model(nodes, weights)) == wanted()


def test_slices_that_may_cross_are_not_known():
    nodes = [*extent_of_x(0), helper.make_node("Slice", ["x", "e", "two", "z"], ["y"])]
    shape = known(model(nodes, ints(two=[2], z=[1])))
    assert not {"n", "m"} & set(shape[1].symbols)


def test_a_choice_that_bindings_decide_is_not_made():
    nodes = [
        *extent_of_x(0),
        helper.make_node("Greater", ["e", "z"], ["t"]),
        helper.make_node("Where", ["t", "e", "o"], ["r"]),
        helper.make_node("Expand", ["o", "r"], ["y"]),
    ]
    (extent,) = known(model(nodes, ints(z=[0], o=[1])))
    assert extent is not N


def test_an_extent_that_some_value_has_is_not_negative():
    """A convolution's result of extent n // 2 - 1: whoever slices there need not ask whether that is negative."""
    conv = helper.make_node("Conv", ["x", "w"], ["c"], strides=[2], kernel_shape=[4])
    weights = [
        numpy_helper.from_array(np.ones((2, 2, 4), np.float32), "w"),
        *ints(z=[0], l=[-1], two=[2], p=[0, 0, 0, 0, 0, 1]),
    ]
    nodes = [conv, helper.make_node("Pad", ["c", "p"], ["d"]), helper.make_node("Slice", ["d", "z", "l", "two"], ["y"])]
    proto = model(nodes, weights, shape=("m", 2, "n"))
    assert known(proto) == (M, 2, N // 2 - 1)


def test_of_values_that_nobody_needs_nothing_is_learnt():
    conv = helper.make_node("Conv", ["x", "w"], ["unused"], strides=[2], kernel_shape=[4])
    arithmetic = [
        helper.make_node("Shape", ["x"], ["e"], start=2, end=3),
        helper.make_node("Div", ["e", "two"], ["h"]),
        helper.make_node("Sub", ["h", "o"], ["i"]),
        helper.make_node("Max", ["i", "z"], ["j"]),
        helper.make_node("Expand", ["o", "j"], ["y"]),
    ]
    weights = [numpy_helper.from_array(np.ones((2, 2, 4), np.float32), "w"), *ints(z=[0], o=[1], two=[2])]
    (extent,) = known(model([conv, *arithmetic], weights, shape=("m", 2, "n")))
    assert extent is not N // 2 - 1


def test_operators_that_do_nothing_are_passed_over():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Cast", ["a"], ["b"], to=F),
        helper.make_node("Shape", ["b"], ["s"]),
        helper.make_node("Expand", ["b", "s"], ["c"]),
        helper.make_node("Tile", ["c", "once"], ["d"]),
        helper.make_node("Pad", ["d", "none"], ["e"]),
        helper.make_node("Neg", ["e"], ["y"]),
    ]
    proto = model(nodes, ints(once=[1, 1], none=[0, 0, 0, 0]))
    graph = load(proto)
    assert [graph.nodes[i].op for i in graph.operators] == ["Relu", "Neg"]
    assert known(proto) == (N, M)


def test_operators_that_may_do_something_stay():
    one = ints(s=[1, 2])
    cases = [
        ([helper.make_node("Cast", ["x"], ["y"], to=TensorProto.DOUBLE)], []),
        ([helper.make_node("Expand", ["x", "s"], ["y"])], one),
        ([helper.make_node("Tile", ["x", "s"], ["y"])], one),
        ([helper.make_node("Pad", ["x", "p"], ["y"])], ints(p=[1, 0, -1, 0])),
    ]
    for nodes, weights in cases:
        graph = load(model(nodes, weights))
        assert [graph.nodes[i].op.removeprefix("::") for i in graph.operators] == [nodes[0].op_type]


def test_the_same_extents_are_computed_once():
    nodes = [
        *(helper.make_node("Shape", ["x"], [f"s{k}"]) for k in range(2)),
        *(helper.make_node("Gather", [f"s{k}", "o"], [f"g{k}"]) for k in range(2)),
        helper.make_node("Concat", ["g0", "g1"], ["t"], axis=0),
        helper.make_node("ConstantOfShape", ["t"], ["y"]),
    ]
    graph = load(model(nodes, ints(o=[1])))
    assert graph.count() == {"Shape": 1, "Gather": 1, "Concat": 1, "ConstantOfShape": 1}


def test_broadcast_with_the_last_element_is_the_whole():
    nodes = [
        helper.make_node("Slice", ["x", "l", "f", "z"], ["a"]),
        helper.make_node("Div", ["x", "a"], ["y"]),
    ]
    assert known(model(nodes, ints(z=[0], l=[-1], f=[1 << 62]))) == (N, M)
