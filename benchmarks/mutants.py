"""Small valid models of every kind, and ways to damage them: what `fuzz_files.py` feeds the command with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

F, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
HUGE = (2**31, 2**40, 10**18, 2**63 - 1, -1, -(2**31), -(2**63), 0, 7)
"""Integers that fit nowhere."""

Mutation = Callable[[ModelProto, np.random.Generator], object]
MUTATIONS: dict[str, Mutation] = {}


class Unfit(Exception):
    """The model has nothing that this mutation could change."""


# Models


def _value(name: str, shape: list[int | str] | None, dtype: int = F) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def _weight(name: str, *shape: int) -> TensorProto:
    rng = np.random.default_rng([len(name), *shape])
    return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)


def _ints(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def _model(
    nodes: list[NodeProto], inputs: list[ValueInfoProto], outputs: list[ValueInfoProto],
    weights: Sequence[TensorProto] = (), opset: int = 18, ir: int = 8, **fields: Any,
) -> ModelProto:  # fmt: skip
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    imports = [helper.make_opsetid("", opset), *fields.pop("imports", ())]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir, **fields)


def _convolutional() -> ModelProto:
    n = helper.make_node
    nodes = [
        n("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        n("BatchNormalization", ["c", "s", "b", "m", "v"], ["bn"], "norm"),
        n("Relu", ["bn"], ["r"], "relu"),
        n("MaxPool", ["r"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        n("Flatten", ["p"], ["f"], "flatten"),
        n("Gemm", ["f", "k"], ["y"], "head", transB=1),
    ]
    weights = [_weight("w", 4, 3, 3, 3), *(_weight(name, 4) for name in "sbm"), _weight("k", 5, 16)]
    weights.append(numpy_helper.from_array(np.ones(4, np.float32), "v"))
    return _model(nodes, [_value("x", [1, 3, 4, 4])], [_value("y", [1, 5])], weights)


def _attention() -> ModelProto:
    n = helper.make_node
    nodes = [
        *(n("MatMul", ["x", f"w{k}"], [f"p{k}"], f"project_{k}") for k in "qkv"),
        *(n("Reshape", [f"p{k}", "heads"], [f"h{k}"], f"heads_{k}") for k in "qkv"),
        n("Transpose", ["hq"], ["q"], "tq", perm=[0, 2, 1, 3]),
        n("Transpose", ["hk"], ["k"], "tk", perm=[0, 2, 3, 1]),
        n("Transpose", ["hv"], ["v"], "tv", perm=[0, 2, 1, 3]),
        n("MatMul", ["q", "k"], ["scores"], "scores"),
        n("Div", ["scores", "root"], ["scaled"], "scale"),
        n("Add", ["scaled", "mask"], ["masked"], "mask_add"),
        n("Softmax", ["masked"], ["a"], "softmax", axis=-1),
        n("MatMul", ["a", "v"], ["o"], "context"),
        n("Transpose", ["o"], ["t"], "back", perm=[0, 2, 1, 3]),
        n("Slice", ["t", "zero", "two", "one"], ["y"], "cut"),
    ]
    weights = [*(_weight(f"w{k}", 8, 8) for k in "qkv"), _ints("heads", 2, 4, 2, 4), _weight("root", 1)]
    weights.append(numpy_helper.from_array(np.triu(np.full((4, 4), -np.inf, np.float32), 1), "mask"))
    weights += [_ints("zero", 0), _ints("one", 1), _ints("two", 2)]
    return _model(nodes, [_value("x", [2, 4, 8])], [_value("y", [2, 2, 2, 4])], weights)


def _dynamic() -> ModelProto:
    n = helper.make_node
    nodes = [
        n("Shape", ["x"], ["s"], "shape"),
        n("Gather", ["s", "i"], ["batch"], "gather"),
        n("Concat", ["batch", "rest"], ["to"], "concat", axis=0),
        n("Reshape", ["x", "to"], ["r"], "reshape"),
        n("Split", ["r", "parts"], ["a", "b"], "split", axis=1),
        n("Concat", ["b", "a"], ["y"], "join", axis=1),
        n("ReduceMean", ["y", "axes"], ["z"], "mean", keepdims=0),
    ]
    weights = [_ints("i", 0), _ints("rest", -1), _ints("parts", 5, 7), _ints("axes", 1)]
    outputs = [_value("y", ["N", 12]), _value("z", ["N"])]
    return _model(nodes, [_value("x", ["N", 3, 4])], outputs, weights)


def _conditional() -> ModelProto:
    n = helper.make_node
    inner = helper.make_graph([n("Mul", ["a", "w"], ["t2"])], "inner", [], [_value("t2", [2, 3])])
    then = helper.make_graph(
        [n("If", ["c"], ["t"], then_branch=inner, else_branch=inner)], "then", [], [_value("t", [2, 3])]
    )
    other = helper.make_graph([n("Add", ["a", "a"], ["e"])], "else", [], [_value("e", [2, 3])])
    nodes = [n("Relu", ["x"], ["a"], "relu"), n("If", ["c"], ["y"], "if", then_branch=then, else_branch=other)]
    inputs = [_value("x", [2, 3]), _value("c", [], BOOL)]
    return _model(nodes, inputs, [_value("y", [2, 3])], [_weight("w", 2, 3)])


def _loop() -> ModelProto:
    n = helper.make_node
    body = helper.make_graph(
        [n("MatMul", ["state", "w"], ["next"]), n("Identity", ["go"], ["on"]), n("Relu", ["next"], ["seen"])],
        "body", [_value("k", [], I64), _value("go", [], BOOL), _value("state", [2, 2])],
        [_value("on", [], BOOL), _value("next", [2, 2]), _value("seen", [2, 2])],
    )  # fmt: skip
    step = helper.make_graph(
        [n("Add", ["sum", "row"], ["total"]), n("Identity", ["total"], ["copy"])],
        "step", [_value("sum", [2]), _value("row", [2])], [_value("total", [2]), _value("copy", [2])],
    )  # fmt: skip
    nodes = [
        n("Loop", ["trips", "", "x"], ["last", "all"], "loop", body=body),
        n("Scan", ["first", "last"], ["final", "y"], "scan", body=step, num_scan_inputs=1),
    ]
    outputs = [_value("y", [2, 2]), _value("all", [3, 2, 2])]
    return _model(
        nodes, [_value("x", [2, 2])], outputs, [_ints_scalar("trips", 3), _weight("w", 2, 2), _weight("first", 2)]
    )


def _ints_scalar(name: str, value: int) -> TensorProto:
    return numpy_helper.from_array(np.array(value, np.int64), name)


def _functions() -> ModelProto:
    n = helper.make_node
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("my", 1)]
    double = helper.make_function("my", "Double", ["a"], ["b"], [n("Add", ["a", "a"], ["b"])], imports)
    twice = helper.make_function(
        "my", "Twice", ["a"], ["c"],
        [n("Double", ["a"], ["b"], domain="my"), n("Double", ["b"], ["c"], domain="my")], imports,
    )  # fmt: skip
    nodes = [n("Twice", ["x"], ["h"], "call", domain="my"), n("Tanh", ["h"], ["y"], "tanh")]
    return _model(
        nodes, [_value("x", [2, 3])], [_value("y", [2, 3])], functions=[double, twice], imports=imports[1:], ir=9
    )


def _quantised() -> ModelProto:
    n = helper.make_node
    zero = numpy_helper.from_array(np.array(128, np.uint8), "zero")
    scale = numpy_helper.from_array(np.array(0.05, np.float32), "scale")
    weight = numpy_helper.from_array(np.arange(12, dtype=np.int8).reshape(3, 4), "w")
    signed = numpy_helper.from_array(np.array(0, np.int8), "none")
    nodes = [
        n("QuantizeLinear", ["x", "scale", "zero"], ["q"], "quantise"),
        n("DequantizeLinear", ["q", "scale", "zero"], ["d"], "dequantise"),
        n("DequantizeLinear", ["w", "scale", "none"], ["dw"], "weights"),
        n("MatMul", ["d", "dw"], ["m"], "product"),
        n("QuantizeLinear", ["m", "scale", "zero"], ["qm"], "requantise"),
        n("DequantizeLinear", ["qm", "scale", "zero"], ["y"], "result"),
    ]
    return _model(nodes, [_value("x", [2, 3])], [_value("y", [2, 4])], [zero, scale, weight, signed])


def _sequences() -> ModelProto:
    n = helper.make_node
    nodes = [
        n("SplitToSequence", ["x", "size"], ["parts"], "split", axis=0),
        n("SequenceAt", ["parts", "i"], ["first"], "at"),
        n("ConcatFromSequence", ["parts"], ["joined"], "join", axis=1),
        n("Relu", ["first"], ["y"], "relu"),
    ]
    outputs = [_value("y", ["a", "b"]), _value("joined", ["c", "d"])]
    return _model(nodes, [_value("x", [4, 2])], outputs, [_ints_scalar("size", 2), _ints_scalar("i", 1)])


def _strings() -> ModelProto:
    n = helper.make_node
    words = helper.make_tensor("words", TensorProto.STRING, [2, 2], [b"a", "ß".encode(), b"", b"c d"])
    nodes = [
        n("Concat", ["s", "words"], ["both"], "join", axis=0),
        n("Reshape", ["both", "flat"], ["y"], "flatten"),
        n("Equal", ["s", "words"], ["same"], "equal"),
    ]
    outputs = [_value("y", [8], TensorProto.STRING), _value("same", [2, 2], BOOL)]
    return _model(nodes, [_value("s", [2, 2], TensorProto.STRING)], outputs, [words, _ints("flat", -1)], 19, 9)


def _external() -> ModelProto:
    proto = _model(
        [helper.make_node("MatMul", ["x", "w"], ["h"], "product"), helper.make_node("Add", ["h", "b"], ["y"], "bias")],
        [_value("x", [2, 8])], [_value("y", [2, 8])], [_weight("w", 8, 8), _weight("b", 8)],
    )  # fmt: skip
    offset = 0
    for tensor in proto.graph.initializer:
        size = len(tensor.raw_data)
        onnx.external_data_helper.set_external_data(tensor, "weights.bin", offset, size)
        tensor.ClearField("raw_data")
        offset += size
    return proto


def external_data() -> bytes:
    """The file `weights.bin` that the model "external" names."""
    return _weight("w", 8, 8).raw_data + _weight("b", 8).raw_data


def _sparse() -> ModelProto:
    values = numpy_helper.from_array(np.array([2, 3], np.float32), "sparse")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([1, 4])), [6])
    constant = helper.make_node(
        "Constant",
        [],
        ["c"],
        "constant",
        sparse_value=helper.make_sparse_tensor(
            numpy_helper.from_array(np.array([1.5], np.float32)), numpy_helper.from_array(np.array([[0, 2]])), [2, 6]
        ),
    )
    nodes = [
        constant,
        helper.make_node(
            "ConstantOfShape", ["to"], ["z"], "filled", value=numpy_helper.from_array(np.ones(1, np.float32))
        ),
        helper.make_node("Sum", ["x", "sparse", "c", "z"], ["y"], "sum"),
    ]
    proto = _model(nodes, [_value("x", [2, 6])], [_value("y", [2, 6])], [_ints("to", 2, 6)])
    proto.graph.sparse_initializer.append(sparse)
    return proto


def _old() -> ModelProto:
    n = helper.make_node
    nodes = [
        n("Gemm", ["x", "w", "b"], ["h"], "gemm"),
        n("Dropout", ["h"], ["d", "mask"], "dropout", ratio=0.5),
        n("Softmax", ["d"], ["s"], "softmax"),
        n("Slice", ["s"], ["y"], "slice", axes=[1], starts=[0], ends=[3]),
    ]
    inputs = [_value("x", [2, 3]), _value("w", [3, 4]), _value("b", [4])]
    return _model(nodes, inputs, [_value("y", [2, 3])], [_weight("w", 3, 4), _weight("b", 4)], 8, 3)


def _narrow() -> ModelProto:
    n = helper.make_node
    nodes = [
        n("DequantizeLinear", ["w4", "s"], ["w"], "unpack"),
        n("Cast", ["x"], ["h"], "cast", to=TensorProto.FLOAT16),
        n("MatMul", ["h", "w"], ["m"], "product"),
        n("Cast", ["m"], ["y"], "back", to=F),
    ]
    packed = helper.make_tensor("w4", TensorProto.INT4, [3, 3], list(range(-4, 5)))
    scale = numpy_helper.from_array(np.array(0.5, np.float16), "s")
    return _model(nodes, [_value("x", [2, 3])], [_value("y", [2, 3])], [packed, scale], 21, 10)


@cache
def seeds() -> dict[str, ModelProto]:
    """Valid models, each of another kind."""
    makers = {
        "convolutional": _convolutional, "attention": _attention, "dynamic": _dynamic, "conditional": _conditional,
        "loop": _loop, "functions": _functions, "quantised": _quantised, "sequences": _sequences, "strings": _strings,
        "external": _external, "sparse": _sparse, "old": _old, "narrow": _narrow,
    }  # fmt: skip
    return {name: make() for name, make in makers.items()}


# Parts of a model that mutations choose from


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _pick(rng: np.random.Generator, items: list[Any]) -> Any:
    if not items:
        raise Unfit
    return items[int(rng.integers(len(items)))]


def _graph(m: ModelProto, rng: np.random.Generator) -> GraphProto:
    graphs = list(_graphs(m.graph))
    return graphs[0] if rng.random() < 0.6 else _pick(rng, graphs)


def _nodes(m: ModelProto) -> list[NodeProto]:
    return [n for g in _graphs(m.graph) for n in g.node] + [n for f in m.functions for n in f.node]


def _node(m: ModelProto, rng: np.random.Generator) -> NodeProto:
    return _pick(rng, _nodes(m))


def _attribute(m: ModelProto, rng: np.random.Generator) -> AttributeProto:
    return _pick(rng, [a for n in _nodes(m) for a in n.attribute])


def _tensors(m: ModelProto) -> list[TensorProto]:
    found = [t for g in _graphs(m.graph) for t in g.initializer]
    found += [part for s in m.graph.sparse_initializer for part in (s.values, s.indices)]
    return found + [a.t for n in _nodes(m) for a in n.attribute if a.HasField("t")]


def _tensor(m: ModelProto, rng: np.random.Generator) -> TensorProto:
    return _pick(rng, _tensors(m))


def _names(m: ModelProto) -> list[str]:
    names = [n for node in _nodes(m) for n in (*node.input, *node.output)]
    return sorted({*names, *(t.name for t in _tensors(m)), *(i.name for i in m.graph.input)})


def _info(m: ModelProto, rng: np.random.Generator) -> ValueInfoProto:
    return _pick(rng, [i for g in _graphs(m.graph) for i in (*g.input, *g.output, *g.value_info)])


def _mutation(function: Mutation) -> Mutation:
    MUTATIONS[function.__name__.strip("_")] = function
    return function


# Damage to the graph


@_mutation
def _rename_input(m: ModelProto, rng: np.random.Generator) -> None:
    node = _pick(rng, [n for n in _nodes(m) if n.input])
    node.input[int(rng.integers(len(node.input)))] = _pick(rng, [*_names(m), "nowhere", "", "nowhere"])


@_mutation
def _rename_output(m: ModelProto, rng: np.random.Generator) -> None:
    node = _node(m, rng)
    node.output[int(rng.integers(len(node.output)))] = _pick(rng, [*_names(m), "elsewhere", "", "\n", "a" * 10_000])


@_mutation
def _drop_input(m: ModelProto, rng: np.random.Generator) -> None:
    del _pick(rng, [n for n in _nodes(m) if n.input]).input[-1]


@_mutation
def _drop_inputs(m: ModelProto, rng: np.random.Generator) -> None:
    del _node(m, rng).input[:]


@_mutation
def _add_input(m: ModelProto, rng: np.random.Generator) -> None:
    _node(m, rng).input.extend([_pick(rng, _names(m))] * int(rng.integers(1, 4)))


@_mutation
def _add_output(m: ModelProto, rng: np.random.Generator) -> None:
    _node(m, rng).output.append(_pick(rng, ["extra", "", *_names(m)]))


@_mutation
def _drop_output(m: ModelProto, rng: np.random.Generator) -> None:
    del _node(m, rng).output[-1]


@_mutation
def _drop_node(m: ModelProto, rng: np.random.Generator) -> None:
    graph = _graph(m, rng)
    if not graph.node:
        raise Unfit
    del graph.node[int(rng.integers(len(graph.node)))]


@_mutation
def _repeat_node(m: ModelProto, rng: np.random.Generator) -> None:
    graph = _graph(m, rng)
    graph.node.append(_pick(rng, list(graph.node)))


@_mutation
def _turn_nodes(m: ModelProto, rng: np.random.Generator) -> None:
    graph = _graph(m, rng)
    nodes = [NodeProto.FromString(n.SerializeToString()) for n in graph.node][::-1]
    del graph.node[:]
    graph.node.extend(nodes)


@_mutation
def _cycle(m: ModelProto, rng: np.random.Generator) -> None:
    node = _pick(rng, [n for n in m.graph.node if n.input])
    node.input[0] = _pick(rng, [o for n in m.graph.node for o in n.output])


@_mutation
def _other_operator(m: ModelProto, rng: np.random.Generator) -> None:
    known = [
        "",
        "Relu",
        "Split",
        "Conv",
        "If",
        "Constant",
        "Reshape",
        "Gemm",
        "Concat",
        "Cast",
        "Unheard",
        "Loop",
        "Add",
    ]
    _node(m, rng).op_type = _pick(rng, known)


@_mutation
def _other_domain(m: ModelProto, rng: np.random.Generator) -> None:
    _node(m, rng).domain = _pick(rng, ["", "ai.onnx", "my", "nobody", "com.microsoft", "ai.onnx.ml", "\u2028"])


@_mutation
def _swap_interface(m: ModelProto, rng: np.random.Generator) -> None:
    _info(m, rng).name = _pick(rng, [*_names(m), "", "nowhere"])


@_mutation
def _drop_interface(m: ModelProto, rng: np.random.Generator) -> None:
    graph = _graph(m, rng)
    side = graph.input if rng.random() < 0.5 else graph.output
    if not side:
        raise Unfit
    del side[int(rng.integers(len(side)))]


@_mutation
def _repeat_interface(m: ModelProto, rng: np.random.Generator) -> None:
    graph = _graph(m, rng)
    side = graph.input if rng.random() < 0.5 else graph.output
    side.append(_pick(rng, list(side)))


@_mutation
def _weight_is_output(m: ModelProto, rng: np.random.Generator) -> None:
    t = _tensor(m, rng)
    m.graph.output.append(helper.make_tensor_value_info(t.name or "none", F, None))


@_mutation
def _input_is_output(m: ModelProto, rng: np.random.Generator) -> None:
    m.graph.output.append(_pick(rng, list(m.graph.input)))


# Damage to types and shapes


@_mutation
def _dimension(m: ModelProto, rng: np.random.Generator) -> None:
    info = _info(m, rng)
    dims = info.type.tensor_type.shape.dim
    if not dims:
        raise Unfit
    d = dims[int(rng.integers(len(dims)))]
    if rng.random() < 0.3:
        d.dim_param = _pick(rng, ["", "N", "N + 1", "2 * (N", "a" * 1000, "?x.0", "unk__0", "N\n"])
    else:
        d.dim_value = _pick(rng, [*HUGE, 1, 2, 5])


@_mutation
def _rank(m: ModelProto, rng: np.random.Generator) -> None:
    dims = _info(m, rng).type.tensor_type.shape.dim
    if rng.random() < 0.5 and dims:
        del dims[-1]
    else:
        dims.add().dim_value = 2


@_mutation
def _no_shape(m: ModelProto, rng: np.random.Generator) -> None:
    _info(m, rng).type.tensor_type.ClearField("shape")


@_mutation
def _element_type(m: ModelProto, rng: np.random.Generator) -> None:
    kind = _info(m, rng).type.tensor_type
    kind.elem_type = int(_pick(rng, [0, 2, 6, 7, 8, 9, 10, 11, 14, 16, 17, 22, 99, 2**31 - 1, -1]))


@_mutation
def _other_type(m: ModelProto, rng: np.random.Generator) -> None:
    info = _info(m, rng)
    which = int(rng.integers(4))
    if which == 0:
        info.ClearField("type")
    elif which == 1:
        info.type.sequence_type.elem_type.tensor_type.elem_type = F
    elif which == 2:
        info.type.map_type.key_type = I64
    else:
        info.type.optional_type.elem_type.tensor_type.elem_type = F


@_mutation
def _wrong_value_info(m: ModelProto, rng: np.random.Generator) -> None:
    shape = _pick(rng, [[3], [10**18, 2], [], ["N", "M"], [0]])
    m.graph.value_info.append(_value(_pick(rng, _names(m)), shape, _pick(rng, [F, I64, BOOL])))


# Damage to weights


@_mutation
def _drop_weight(m: ModelProto, rng: np.random.Generator) -> None:
    if not m.graph.initializer:
        raise Unfit
    del m.graph.initializer[int(rng.integers(len(m.graph.initializer)))]


@_mutation
def _repeat_weight(m: ModelProto, rng: np.random.Generator) -> None:
    m.graph.initializer.append(_pick(rng, list(m.graph.initializer)))


@_mutation
def _rename_weight(m: ModelProto, rng: np.random.Generator) -> None:
    _tensor(m, rng).name = _pick(rng, [*_names(m), "", "nowhere"])


@_mutation
def _weight_dims(m: ModelProto, rng: np.random.Generator) -> None:
    t = _tensor(m, rng)
    if t.dims and rng.random() < 0.7:
        t.dims[int(rng.integers(len(t.dims)))] = _pick(rng, list(HUGE))
    else:
        t.dims.append(_pick(rng, list(HUGE)))


@_mutation
def _weight_type(m: ModelProto, rng: np.random.Generator) -> None:
    _tensor(m, rng).data_type = int(_pick(rng, [0, 2, 6, 7, 8, 9, 10, 11, 14, 16, 17, 22, 23, 99, -1]))


@_mutation
def _weight_data(m: ModelProto, rng: np.random.Generator) -> None:
    t = _tensor(m, rng)
    which = int(rng.integers(4))
    if which == 0:
        t.raw_data = t.raw_data[: len(t.raw_data) // 2]
    elif which == 1:
        t.raw_data = t.raw_data + b"\x00\x01"
    elif which == 2:
        t.float_data.extend([1.0, float("nan")])
    else:
        t.ClearField("raw_data")
        t.string_data.append(b"\xff\xfe")


@_mutation
def _weight_values(m: ModelProto, rng: np.random.Generator) -> None:
    t = _tensor(m, rng)
    if t.data_type == I64 and t.raw_data:
        values = np.frombuffer(t.raw_data, np.int64).copy()
        if values.size:
            values[int(rng.integers(values.size))] = _pick(rng, list(HUGE))
        t.raw_data = values.tobytes()
    elif t.data_type == F and t.raw_data:
        floats = np.frombuffer(t.raw_data, np.float32).copy()
        floats[int(rng.integers(floats.size))] = _pick(rng, [np.nan, np.inf, -np.inf, 0.0, 3e38, 1e-45])
        t.raw_data = floats.tobytes()
    else:
        raise Unfit


@_mutation
def _empty_weight(m: ModelProto, rng: np.random.Generator) -> None:
    t = _tensor(m, rng)
    name, kind = t.name, t.data_type
    t.Clear()
    t.name, t.data_type = name, kind
    t.dims.append(0)


@_mutation
def _external_place(m: ModelProto, rng: np.random.Generator) -> None:
    t = _tensor(m, rng)
    del t.external_data[:]
    t.data_location = TensorProto.EXTERNAL
    places = [
        "nowhere.bin",
        "/etc/passwd",
        "../weights.bin",
        "fifo",
        "/dev/zero",
        "",
        ".",
        "weights.bin",
        "link",
        "\n",
        "a\0b",
    ]
    t.external_data.add(key="location", value=_pick(rng, places))
    if rng.random() < 0.5:
        key = _pick(rng, ["offset", "length", "checksum", "basepath"])
        t.external_data.add(key=key, value=_pick(rng, ["-1", "abc", "", "1e3", str(10**30), "4", "1", "\u0664"]))


# Damage to attributes


@_mutation
def _drop_attribute(m: ModelProto, rng: np.random.Generator) -> None:
    node = _pick(rng, [n for n in _nodes(m) if n.attribute])
    del node.attribute[int(rng.integers(len(node.attribute)))]


@_mutation
def _attribute_value(m: ModelProto, rng: np.random.Generator) -> None:
    a = _attribute(m, rng)
    if a.ints:
        a.ints[int(rng.integers(len(a.ints)))] = _pick(rng, [*HUGE, 1, 2, 3])
    elif a.type == AttributeProto.INT:
        a.i = _pick(rng, [*HUGE, 1, 2, 3])
    elif a.type == AttributeProto.FLOAT:
        a.f = _pick(rng, [float("nan"), float("inf"), -1.0, 0.0])
    else:
        raise Unfit


@_mutation
def _attribute_length(m: ModelProto, rng: np.random.Generator) -> None:
    a = _pick(rng, [a for n in _nodes(m) for a in n.attribute if a.ints])
    if rng.random() < 0.5:
        del a.ints[-1]
    else:
        a.ints.extend([1] * int(rng.integers(1, 100)))


@_mutation
def _attribute_type(m: ModelProto, rng: np.random.Generator) -> None:
    a = _attribute(m, rng)
    which = int(rng.integers(6))
    if which == 0:
        a.type = int(rng.integers(0, 15))
    elif which == 1:
        a.type, a.s = AttributeProto.STRING, b"\xff\x00text"
    elif which == 2:
        a.type, a.f = AttributeProto.FLOAT, 0.5
    elif which == 3:
        a.type = AttributeProto.INTS
        a.ints.extend([1, 2])
    elif which == 4:
        a.ref_attr_name = "outer"
    else:
        a.type = AttributeProto.GRAPH


@_mutation
def _new_attribute(m: ModelProto, rng: np.random.Generator) -> None:
    name = _pick(
        rng, ["axis", "axes", "perm", "pads", "strides", "group", "alpha", "keepdims", "to", "unheard", "value", ""]
    )
    value = _pick(rng, [0, 5, -7, 10**18, 0.5, "text", [1, 2], [], [10**12] * 4])
    node = _node(m, rng)
    if isinstance(value, list) and not value:
        node.attribute.add(name=name, type=AttributeProto.INTS)
    else:
        node.attribute.append(helper.make_attribute(name, value))


@_mutation
def _repeat_attribute(m: ModelProto, rng: np.random.Generator) -> None:
    node = _pick(rng, [n for n in _nodes(m) if n.attribute])
    node.attribute.append(node.attribute[0])


# Damage to the model


@_mutation
def _opset(m: ModelProto, rng: np.random.Generator) -> None:
    version = _pick(rng, [None, 0, -1, 1, 6, 7, 13, 25, 26, 28, 99, 2**62])
    if version is None:
        del m.opset_import[:]
    else:
        m.opset_import[0].version = version


@_mutation
def _repeat_opset(m: ModelProto, rng: np.random.Generator) -> None:
    m.opset_import.add(domain=_pick(rng, ["", "ai.onnx", "my"]), version=int(rng.integers(0, 30)))


@_mutation
def _ir_version(m: ModelProto, rng: np.random.Generator) -> None:
    version = _pick(rng, [None, 0, -1, 1, 2, 3, 4, 13, 99, 2**62])
    if version is None:
        m.ClearField("ir_version")
    else:
        m.ir_version = version


@_mutation
def _function(m: ModelProto, rng: np.random.Generator) -> None:
    function = _pick(rng, list(m.functions))
    which = int(rng.integers(6))
    if which == 0:
        function.node.append(helper.make_node(function.name, list(function.input), ["again"], domain="my"))
    elif which == 1:
        function.name = "gone"
    elif which == 2:
        function.output.append("nothing")
    elif which == 3:
        m.functions.append(function)
    elif which == 4:
        del function.opset_import[:]
    else:
        function.node[0].input[0] = "outer"


@_mutation
def _capture(m: ModelProto, rng: np.random.Generator) -> None:
    body = _pick(rng, [g for g in _graphs(m.graph) if g is not m.graph][1:])
    if not body.node:
        raise Unfit
    body.node[0].input[0] = _pick(rng, ["nowhere", "y", *_names(m)])


@_mutation
def _body_interface(m: ModelProto, rng: np.random.Generator) -> None:
    body = _pick(rng, list(_graphs(m.graph))[1:])
    which = int(rng.integers(4))
    if which == 0:
        del body.output[:]
    elif which == 1:
        body.input.append(_value("more", [2]))
    elif which == 2:
        body.output.append(_value(_pick(rng, _names(m)), None))
    else:
        body.Clear()


@_mutation
def _no_graph(m: ModelProto, rng: np.random.Generator) -> None:
    if rng.random() < 0.5:
        m.ClearField("graph")
    else:
        del m.graph.node[:]


# Damage to the bytes


def _flip(data: bytearray, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(1, 9))):
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))


def _cut(data: bytearray, rng: np.random.Generator) -> None:
    del data[int(rng.integers(len(data))) :]


def _insert(data: bytearray, rng: np.random.Generator) -> None:
    at = int(rng.integers(len(data)))
    data[at:at] = rng.bytes(int(rng.integers(1, 20)))


def _remove(data: bytearray, rng: np.random.Generator) -> None:
    at = int(rng.integers(len(data)))
    del data[at : at + int(rng.integers(1, 20))]


def _copy(data: bytearray, rng: np.random.Generator) -> None:
    at, to, n = (int(rng.integers(len(data))) for _ in range(3))
    data[to:to] = data[at : at + n % 200]


def _ones(data: bytearray, rng: np.random.Generator) -> None:
    at = int(rng.integers(len(data)))
    data[at : at + 4] = b"\xff" * 4


BYTES = {"flip": _flip, "cut": _cut, "insert": _insert, "remove": _remove, "copy": _copy, "ones": _ones}


def mutant(number: int, seed: int = 0) -> tuple[str, bytes]:
    """The mutant of that number: what was done to which model, and the file's bytes. Equal for equal arguments."""
    rng = np.random.default_rng([seed, number])
    names = list(seeds())
    name = names[number % len(names)]
    data = seeds()[name].SerializeToString(deterministic=True)
    if rng.random() < 0.25:
        kind = _pick(rng, list(BYTES))
        raw = bytearray(data)
        BYTES[kind](raw, rng)
        return f"{name}: {kind}", bytes(raw)
    done = []
    for _ in range(1 + int(rng.random() < 0.25)):
        while True:
            kind = _pick(rng, list(MUTATIONS))
            model = ModelProto.FromString(data)
            try:
                MUTATIONS[kind](model, rng)
                data = model.SerializeToString(deterministic=True)
            except (Unfit, ValueError, TypeError, IndexError):
                continue
            done.append(kind)
            break
    return f"{name}: {', '.join(done)}", data


def surroundings(folder: Path) -> None:
    """What lies beside a mutant: the data file, a pipe that nobody writes to, and a link out of the folder."""
    (folder / "weights.bin").write_bytes(external_data())
    if not (folder / "fifo").exists():
        os.mkfifo(folder / "fifo")
        (folder / "link").symlink_to("/etc/passwd")
