"""Model-local functions: inlined where rules could use what is inside, else kept; the same numbers always."""

from __future__ import annotations

import zlib

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

import xrlflow
from xrlflow.lowering import load, onnx_functions, onnx_reader, to_onnx, verify
from xrlflow.lowering.onnx_functions import inline

ort.set_default_logger_severity(4)
F, BOOL = TensorProto.FLOAT, TensorProto.BOOL
node = helper.make_node


def value(name, shape=(3, 4), dtype=F):
    return helper.make_tensor_value_info(name, dtype, shape)


def function(name, inputs, outputs, nodes, opset=18, domain="my", uses=(), **fields):
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in uses)]
    return helper.make_function(domain, name, list(inputs), list(outputs), nodes, imports, **fields)


X = value("x")


def model(nodes, functions, inputs=(X,), outputs=("y",), weights=(), opset=18, domains=("my",)):
    graph = helper.make_graph(nodes, "g", list(inputs), [value(o) for o in outputs], list(weights))
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, ir_version=10, opset_imports=imports, functions=functions)


def weight(name, *shape):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)


def referring(op, inputs, outputs, own, outer, kind=AttributeProto.FLOAT):
    """A node whose attribute `own` is the function's attribute `outer`."""
    found = node(op, inputs, outputs)
    found.attribute.add(name=own, ref_attr_name=outer, type=kind)
    return found


def run(proto, **inputs):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(
        None, inputs
    )


def ops(graph):
    return [graph.nodes[i].op for i in graph.operators]


def written(proto, extra=None):
    """The model after load and save, valid and with the same numbers."""
    onnx.checker.check_model(proto, full_check=True)
    graph = load(proto)
    out = to_onnx(graph)
    onnx.checker.check_model(out, full_check=True)
    inputs = {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32), **(extra or {})}
    for a, b in zip(run(proto, **inputs), run(out, **inputs), strict=True):
        np.testing.assert_array_equal(a, b)
    return graph, out


def exported():
    """In the style of torch's exporter: a module's function calls aten functions, which hold the operators."""
    aten = "pkg.aten"
    linear = function(
        "linear", ["x", "w", "b"], ["o"],
        [
            node("Transpose", ["w"], ["t"], perm=[1, 0]), node("MatMul", ["x", "t"], ["m"]),
            node("Add", ["m", "b"], ["o"]),
        ],
        domain=aten,
    )  # fmt: skip
    gelu = function(
        "gelu", ["x"], ["o"],
        [
            node("Constant", [], ["half"], value_float=0.5), node("Constant", [], ["one"], value_float=1.0),
            node("Constant", [], ["root"], value_float=1.4142135),
            node("Div", ["x", "root"], ["d"]), node("Erf", ["d"], ["e"]), node("Add", ["e", "one"], ["s"]),
            node("Mul", ["x", "s"], ["p"]), node("Mul", ["p", "half"], ["o"]),
        ],
        domain=aten,
    )  # fmt: skip
    softmax = function("softmax", ["x"], ["o"], [node("Softmax", ["x"], ["o"], axis=-1)], domain=aten)
    names = ["x", *(f"{k}{j}" for j in "qkv" for k in "wb"), "wo", "bo"]
    block = function(
        "Block", names, ["y"],
        [
            *(node("linear", ["x", f"w{j}", f"b{j}"], [j], name=f"linear_{j}", domain=aten) for j in "qkv"),
            node("Transpose", ["k"], ["kt"], perm=[1, 0]), node("MatMul", ["q", "kt"], ["scores"]),
            node("softmax", ["scores"], ["p"], domain=aten), node("MatMul", ["p", "v"], ["mixed"]),
            node("linear", ["mixed", "wo", "bo"], ["h"], domain=aten), node("gelu", ["h"], ["g"], domain=aten),
            node("Add", ["g", "x"], ["y"]),
        ],
        domain="pkg.modules", uses=(aten,),
    )  # fmt: skip
    nodes, weights, previous = [], [], "x"
    for layer in range(3):
        own = [f"{n}_{layer}" for n in names[1:]]
        weights += [weight(n, 4, 4) if n[0] == "w" else weight(n, 4) for n in own]
        following = f"h{layer}" if layer < 2 else "y"
        nodes.append(node("Block", [previous, *own], [following], name=f"layers.{layer}", domain="pkg.modules"))
        previous = following
    return model(nodes, [linear, gelu, softmax, block], weights=weights, domains=("pkg.modules", aten))


def test_functions_that_hide_core_operators_are_inlined(monkeypatch):
    proto = exported()
    graph, out = written(proto)
    assert graph.coverage == 1.0
    assert len(graph.operators) == 3 * (4 * 3 + 4 + 5 + 1)  # four linear, attention, gelu, the sum
    assert not out.functions
    assert "layers.1/linear_q/m" in {name for n in out.graph.node for name in n.output}
    monkeypatch.setattr(onnx_reader, "inline", lambda model: 0)
    kept = load(proto)
    assert (len(kept.operators), kept.coverage) == (3, 0.0)  # three calls of which rules know nothing


def test_inlined_layers_are_optimised_and_verified():
    proto = exported()
    result = xrlflow.optimize(proto, method="saturation", target="roofline:epyc-1t", max_steps=200)
    assert result.improved
    assert result.verification.passed
    assert result.substitutions
    assert not any(n.domain for n in result.model.graph.node)


def test_names_documentation_and_metadata_survive_inlining():
    inner = node("Relu", ["a"], ["o"], name="act", doc_string="the only one")
    inner.metadata_props.add(key="scope", value="inner")
    call = node("f", ["x"], ["y"], name="encoder", domain="my")
    call.metadata_props.add(key="scope", value="outer")
    call.metadata_props.add(key="line", value="7")
    _, out = written(model([call], [function("f", ["a"], ["o"], [inner])]))
    (relu,) = out.graph.node
    assert (relu.name, relu.op_type, relu.doc_string) == ("encoder/act", "Relu", "the only one")
    assert {p.key: p.value for p in relu.metadata_props} == {"scope": "inner", "line": "7"}
    assert list(relu.output) == ["y"]


def test_attributes_are_bound_given_or_by_default_and_left_out_without_either():
    body = [
        referring("LeakyRelu", ["a"], ["b"], "alpha", "slope"),
        referring("Gemm", ["b", "w"], ["c"], "alpha", "scale"),
        referring("Transpose", ["c"], ["t"], "perm", "order", AttributeProto.INTS),
        node("Add", ["t", "t"], ["o"]),
    ]
    defaults = [helper.make_attribute("slope", 0.5)]
    f = function("f", ["a", "w"], ["o"], body, attributes=["scale", "order"], attribute_protos=defaults)
    nodes = [
        node("f", ["x", "w"], ["h"], domain="my", scale=2.0),
        node("f", ["h", "v"], ["y"], domain="my", slope=0.25, order=[0, 1]),
    ]
    proto = model(nodes, [f], weights=[weight("w", 4, 3), weight("v", 3, 4)])
    graph, _ = written(proto)
    slopes = [graph.nodes[i].attrs["alpha"] for i in graph.operators if graph.nodes[i].op == "LeakyRelu"]
    assert slopes == [0.5, 0.25]  # ONNX's own inliner gives 0.01 for the first
    assert [graph.nodes[i].attrs["alpha"] for i in graph.operators if graph.nodes[i].op == "Gemm"] == [2.0, 1.0]


def test_nested_functions_and_bodies_get_names_of_their_own():
    # the same names everywhere: in the graph, in the function, in its body, in the inner function
    inner = function("inner", ["a"], ["o"], [node("Neg", ["a"], ["t"]), node("Exp", ["t"], ["o"])])
    then = helper.make_graph([node("Mul", ["t", "a"], ["b"])], "then", [], [value("b", None)])
    other = helper.make_graph([node("Sub", ["t", "a"], ["b2"])], "else", [], [value("b2", None)])
    outer = function(
        "outer", ["a", "c"], ["o"],
        [
            node("inner", ["a"], ["t"], domain="my"), node("Relu", ["t"], ["r"]),
            node("If", ["c"], ["b"], then_branch=then, else_branch=other), node("Add", ["b", "r"], ["o"]),
        ],
        uses=("my",),
    )  # fmt: skip
    then.output[0].name = "bb"
    outer.node[2].attribute[0].g.node[0].output[0] = "bb" if outer.node[2].attribute[0].name == "then_branch" else "b2"
    for a in outer.node[2].attribute:
        a.g.output[0].name = a.g.node[0].output[0]
    nodes = [
        node("Tanh", ["x"], ["t"]), node("outer", ["t", "flag"], ["r"], domain="my"),
        node("outer", ["r", "flag"], ["o"], domain="my"), node("Add", ["o", "t"], ["y"]),
    ]  # fmt: skip
    proto = model(nodes, [inner, outer], inputs=(value("x"), value("flag", [], BOOL)))
    for flag in (True, False):
        graph, out = written(proto, {"flag": np.array(flag)})
    assert ops(graph).count("::If") == 2
    assert not out.functions
    names = [name for n in out.graph.node for name in n.output]
    assert len(set(names)) == len(names)
    assert {"t", "r", "y"} <= set(names)


def test_inputs_that_are_passed_on_and_optional_ones_that_are_not_given():
    f = function(
        "f",
        ["a", "low", "high"],
        ["o", "a", "o"],
        [node("Clip", ["a", "low", "high"], ["s"]), node("Abs", ["s"], ["o"])],
    )
    nodes = [node("f", ["x", "", "top"], ["p", "q", "r"], domain="my"), node("f", ["q"], ["s", "", ""], domain="my"),
             node("Sum", ["p", "q", "r", "s"], ["y"])]  # fmt: skip
    proto = model(nodes, [f], weights=[numpy_helper.from_array(np.float32(0.5), "top")])
    graph = load(proto)
    x = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)
    clipped = np.abs(np.minimum(x, 0.5))
    np.testing.assert_allclose(run(to_onnx(graph), x=x)[0], 2 * clipped + x + np.abs(x), rtol=1e-6)


def test_overloads_are_told_apart():
    one = function("f", ["a"], ["o"], [node("Relu", ["a"], ["o"])])
    two = function("f", ["a"], ["o"], [node("Neg", ["a"], ["o"])], overload="int")
    three = function("f", ["a"], ["o"], [node("Celu", ["a"], ["o"])], overload="kept")
    nodes = [node("f", ["x"], ["a"], domain="my", overload="int"), node("f", ["a"], ["b"], domain="my"),
             node("f", ["b"], ["y"], domain="my", overload="kept")]  # fmt: skip
    graph, out = written(model(nodes, [one, two, three]))
    assert ops(graph) == ["Neg", "Relu", "my::f"]
    assert [f.overload for f in out.functions] == ["kept"]
    assert out.graph.node[-1].overload == "kept"


def test_functions_without_core_operators_stay_untouched():
    f = function(
        "f", ["a"], ["o"], [node("Celu", ["a"], ["c"]), node("Softsign", ["c"], ["o"])], doc_string="kept", uses=("my",)
    )
    proto = model([node("f", ["x"], ["h"], domain="my", name="call"), node("Relu", ["h"], ["y"])], [f])
    graph, out = written(proto)
    assert ops(graph) == ["my::f", "Relu"]
    assert list(out.functions) == [f]
    assert list(out.graph.node) == list(proto.graph.node)


def test_functions_of_domains_with_kernels_stay_calls():
    f = function("Gelu", ["a"], ["o"], [node("Relu", ["a"], ["o"])], domain="com.microsoft")
    graph = load(model([node("Gelu", ["x"], ["y"], domain="com.microsoft")], [f], domains=("com.microsoft",)))
    assert ops(graph) == ["com.microsoft::Gelu"]


def test_functions_called_from_bodies_only_are_kept_and_those_called_twice_too():
    f = function("f", ["a"], ["o"], [node("Relu", ["a"], ["o"])])
    then = helper.make_graph([node("f", ["x"], ["t"], domain="my")], "then", [], [value("t")])
    other = helper.make_graph([node("Neg", ["x"], ["e"])], "else", [], [value("e")])
    nodes = [node("If", ["flag"], ["y"], then_branch=then, else_branch=other)]
    inputs = (value("x"), value("flag", [], BOOL))
    graph, out = written(model(nodes, [f], inputs), {"flag": np.array(True)})
    assert ops(graph) == ["::If"]
    assert [g.name for g in out.functions] == ["f"]
    both = [node("f", ["x"], ["h"], domain="my"), nodes[0], node("Add", ["h", "y0"], ["y"])]
    both[1] = node("If", ["flag"], ["y0"], then_branch=then, else_branch=other)
    graph, out = written(model(both, [f], inputs), {"flag": np.array(True)})
    assert ops(graph)[0] == "Relu"
    assert [g.name for g in out.functions] == ["f"]


def test_another_opset_is_inlined_only_where_it_means_the_same():
    same = function("same", ["a"], ["o"], [node("Relu", ["a"], ["r"]), node("Erf", ["r"], ["o"])], opset=17)
    other = function(
        "other", ["a"], ["o"], [node("Softmax", ["a"], ["s"], axis=0), node("Relu", ["s"], ["o"])], opset=11
    )
    nodes = [node("same", ["x"], ["h"], domain="my"), node("other", ["h"], ["y"], domain="my")]
    proto = model(nodes, [same, other])
    graph = load(proto)
    assert ops(graph) == ["Relu", "Erf", "my::other"]
    x = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    np.testing.assert_array_equal(run(to_onnx(graph), x=x)[0], run(proto, x=x)[0])


def test_domains_that_only_a_function_imports_are_imported_then():
    f = function("f", ["a"], ["o"], [node("Trilu", ["a"], ["g"], domain="com.microsoft"), node("Relu", ["g"], ["o"])],
                 uses=("com.microsoft",), value_info=[value("g", ["rows", 4])])  # fmt: skip
    graph, out = written(model([node("f", ["x"], ["y"], domain="my")], [f]))
    assert ops(graph) == ["com.microsoft::Trilu", "Relu"]
    assert "com.microsoft" in {o.domain for o in out.opset_import}


def test_random_functions_never_merge():
    body = [node("RandomNormalLike", ["a"], ["r"]), node("Add", ["a", "r"], ["o"])]
    kept = [node("RandomNormalLike", ["a"], ["r"]), node("Celu", ["r"], ["o"])]
    for nodes, count in ((body, "::RandomNormalLike"), (kept, "my::f")):
        f = function("f", ["a"], ["o"], nodes)
        calls = [
            node("f", ["x"], ["p"], domain="my"),
            node("f", ["x"], ["q"], domain="my"),
            node("Sub", ["p", "q"], ["y"]),
        ]
        graph = load(model(calls, [f]))
        assert ops(graph).count(count) == 2
        assert np.abs(run(to_onnx(graph), x=np.zeros((3, 4), np.float32))[0]).max() > 0


def test_large_weights_are_shared_by_the_copies_of_a_function():
    constant = node("Constant", [], ["w"], value=weight("", 64, 4, 4))
    f = function(
        "f",
        ["a"],
        ["o"],
        [constant, node("MatMul", ["a", "w"], ["m"]), node("ReduceMean", ["m", "ax"], ["o"], keepdims=0)],
    )
    f.node.insert(0, node("Constant", [], ["ax"], value_ints=[0]))
    nodes = [
        node("f", ["x"], ["a"], domain="my"),
        node("f", ["a"], ["b"], domain="my"),
        node("f", ["b"], ["y"], domain="my"),
    ]
    proto = model(nodes, [f])
    _, out = written(proto)
    assert out.ByteSize() < proto.ByteSize() + 2000


def test_functions_that_multiply_without_end_are_left_alone(monkeypatch):
    functions = [function("f0", ["a"], ["o"], [node("Relu", ["a"], ["o"])])]
    for k in range(1, 40):
        calls = [node(f"f{k - 1}", ["a"], ["t"], domain="my"), node(f"f{k - 1}", ["t"], ["o"], domain="my")]
        functions.append(function(f"f{k}", ["a"], ["o"], calls, uses=("my",)))
    proto = model([node("f39", ["x"], ["y"], domain="my")], functions)
    assert inline(proto) == 0
    monkeypatch.setattr(onnx_functions, "LIMIT", 100)
    small = model([node("f6", ["x"], ["y"], domain="my")], functions[:7])
    assert inline(small) == 127
    assert len(small.graph.node) == 64


def test_functions_that_call_themselves_are_left_alone():
    f = function("f", ["a"], ["o"], [node("Relu", ["a"], ["t"]), node("g", ["t"], ["o"], domain="my")], uses=("my",))
    g = function("g", ["a"], ["o"], [node("f", ["a"], ["o"], domain="my")], uses=("my",))
    h = function("h", ["a"], ["o"], [node("Relu", ["a"], ["t"]), node("f", ["t"], ["o"], domain="my")], uses=("my",))
    assert inline(model([node("h", ["x"], ["y"], domain="my")], [f, g, h])) == 0


def test_a_deep_nest_of_functions_needs_no_recursion():
    functions = [function("f0", ["a"], ["o"], [node("Relu", ["a"], ["o"])])]
    functions += [
        function(f"f{k}", ["a"], ["o"], [node(f"f{k - 1}", ["a"], ["o"], domain="my")], uses=("my",))
        for k in range(1, 3000)
    ]
    proto = model([node("f2999", ["x"], ["y"], domain="my")], functions)
    assert inline(proto) == 3000
    assert [n.op_type for n in proto.graph.node] == ["Relu"]


@pytest.mark.parametrize("seed", range(8))
def test_random_call_graphs_compute_the_same(seed):
    rng = np.random.default_rng(seed)
    functions, names = [], []
    for k in range(6):
        body, have = [], ["a", "b"]
        for j in range(int(rng.integers(1, 6))):
            p, q = (have[int(i)] for i in rng.integers(0, len(have), 2))
            if names and rng.random() < 0.5:
                body.append(node(str(rng.choice(names)), [p, q], [f"v{j}"], domain="my", name=f"n{j}"))
            elif rng.random() < 0.5:
                body.append(node(str(rng.choice(["Add", "Mul", "Max", "Min"])), [p, q], [f"v{j}"]))
            else:
                body.append(node(str(rng.choice(["Tanh", "Celu", "Sigmoid", "Softsign"])), [p], [f"v{j}"]))
            have.append(f"v{j}")
        functions.append(function(f"f{k}", ["a", "b"], [have[-1]], body, uses=("my",)))
        names.append(f"f{k}")
    calls, have = [], ["x", "x"]
    for j in range(8):
        p, q = (have[int(i)] for i in rng.integers(0, len(have), 2))
        calls.append(node(str(rng.choice(names)), [p, q], [f"v{j}"], domain="my"))
        have.append(f"v{j}")
    calls.append(node("Sum", have, ["y"]))
    written(model(calls, functions))


def test_verification_takes_models_with_functions():
    assert verify(exported(), load(exported())).passed
