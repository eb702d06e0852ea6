"""What exporters write in pieces is found again, in the operands' order and with the constants they write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import pi, sqrt

import numpy as np
import pytest

from xrlflow.cost.base import bind
from xrlflow.cost.roofline import roofline
from xrlflow.egraph.graph import Graph, GraphBuilder, TensorType
from xrlflow.egraph.rules import rule_set
from xrlflow.egraph.saturate import saturate
from xrlflow.lowering import evaluate
from xrlflow.lowering.check import check_enodes
from xrlflow.lowering.onnx_forms import available
from xrlflow.policy.base import Budget, extractor

RNG = np.random.default_rng(5)
SHAPE = (2, 5, 8)


class Model(GraphBuilder):
    """A graph written as an exporter would."""

    def __init__(self, dtype: str = "float32", shape: Sequence[int] = SHAPE) -> None:
        super().__init__()
        self.dtype = dtype
        self.x = self.input("x", TensorType(tuple(shape), dtype))

    def number(self, value: float, *shape: int) -> int:
        return self.weight(np.full(shape, value, dtype=self.dtype))

    def values(self, *shape: int, dtype: str | None = None) -> int:
        return self.weight(RNG.normal(size=shape).astype(dtype or self.dtype))

    def mean(self, x: int) -> int:
        return self.op("ReduceMean", x, axes=(2,), keepdims=1)


def optimised(graph: Graph, opset: int, tolerance: float = 1e-6) -> Graph:
    """The cheapest graph for an H200 that the climber finds with what this opset has."""
    rules = rule_set(writable=partial(available, opset=opset))
    space = saturate(graph, rules)
    assert space.report.stop_reason == "saturated"
    assert not check_enodes(space, tolerance=tolerance).mismatches
    rng = np.random.default_rng(0)
    found = extractor("climb").extract(space, bind(roofline("h200"), space), Budget(20, 500), rng)
    return space.to_graph(found.selection)


def operators(graph: Graph) -> list[str]:
    """Operators that are left to run: no constants are among them."""
    const = set[int]()
    for i, node in enumerate(graph.nodes):
        if node.op == "Weight" or (node.op != "Input" and set(node.inputs) <= const):
            const.add(i)
    return sorted(graph.nodes[i].op for i in graph.operators if i not in const)


def same(a: Graph, b: Graph) -> bool:
    inputs = {n.attrs["name"]: RNG.normal(size=n.type.shape) for n in a.nodes if n.op == "Input"}
    return all(
        np.allclose(x, y, rtol=1e-5, atol=1e-5) for x, y in zip(evaluate(a, inputs), evaluate(b, inputs), strict=True)
    )


Pattern = Callable[[Model], int]


def rms(m: Model, ms: int, *, quotient: str) -> int:
    root = m.op("Sqrt", m.op("Add", ms, m.number(1e-6)))
    if quotient == "divide":
        return m.op("Div", m.x, root)
    inverse = m.op("Div", m.number(1.0), root) if quotient == "one over" else m.op("Reciprocal", root)
    return m.op("Mul", m.x, inverse)


def rms_legacy(m: Model) -> int:
    """Llama by torch's older exporter: Pow 2, one over the root, the weight first."""
    ms = m.mean(m.op("Pow", m.x, m.number(2.0)))
    return m.op("Mul", m.values(8), rms(m, ms, quotient="one over"))


def rms_dynamo(m: Model) -> int:
    """Llama by torch's newer exporter."""
    return m.op("Mul", m.values(8), rms(m, m.mean(m.op("Pow", m.x, m.number(2.0))), quotient="reciprocal"))


def rms_gemma(m: Model) -> int:
    """Gemma: x·x, one more than the weight, which comes last."""
    scale = m.op("Add", m.values(8), m.number(1.0))
    return m.op("Mul", rms(m, m.mean(m.op("Mul", m.x, m.x)), quotient="divide"), scale)


def rms_power(m: Model) -> int:
    """Gemma 3n: the mean square to the power of -½."""
    ms = m.op("Add", m.mean(m.op("Pow", m.x, m.number(2.0))), m.number(1e-6))
    return m.op("Mul", m.op("Mul", m.x, m.op("Pow", ms, m.number(-0.5))), m.values(8))


@pytest.mark.parametrize("pattern", [rms_legacy, rms_dynamo, rms_gemma, rms_power])
def test_rms_norm(pattern: Pattern) -> None:
    m = Model()
    graph = m.build({"y": pattern(m)})
    new = optimised(graph, 23)
    assert operators(new) == ["RMSNormalization"] and same(graph, new)
    assert "RMSNormalization" not in operators(optimised(graph, 22))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rms_norm_of_a_narrow_type_is_found_between_its_casts(dtype: str) -> None:
    m = Model()
    m.x = m.op("Cast", m.input("h", TensorType(SHAPE, dtype)), to="float32")
    norm = rms(m, m.mean(m.op("Pow", m.x, m.number(2.0))), quotient="one over")
    weight = m.op("Cast", m.values(8), to=dtype)
    graph = m.build({"y": m.op("Mul", weight, m.op("Cast", norm, to=dtype))})
    new = optimised(graph, 23)
    assert operators(new) == ["RMSNormalization"]
    assert new.nodes[new.outputs[0]].type == TensorType(SHAPE, dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_norm_that_squares_in_a_narrow_type_stays(dtype: str) -> None:
    """Its squares may be infinite, those of the operator are not: it does not compute the same."""
    m = Model()
    m.x = m.input("h", TensorType(SHAPE, dtype))
    epsilon = m.op("Cast", m.number(1e-3), to=dtype)
    root = m.op("Sqrt", m.op("Add", m.mean(m.op("Mul", m.x, m.x)), epsilon))
    new = optimised(m.build({"y": m.op("Div", m.x, root)}), 23)
    assert "RMSNormalization" not in operators(new)


def layer_norm(m: Model, x: int, power: bool = True, affine: bool = True) -> int:
    d = m.op("Sub", x, m.mean(x))
    v = m.mean(m.op("Pow", d, m.number(2.0)) if power else m.op("Mul", d, d))
    y = m.op("Div", d, m.op("Sqrt", m.op("Add", v, m.number(1e-5))))
    return m.op("Add", m.op("Mul", y, m.values(8)), m.values(8)) if affine else y


@pytest.mark.parametrize("power", [False, True])
def test_layer_norm(power: bool) -> None:
    """As exported below opset 17: scale and bias come in as well."""
    m = Model()
    graph = m.build({"y": layer_norm(m, m.x, power)})
    new = optimised(graph, 17)
    assert operators(new) == ["LayerNormalization"] and same(graph, new)
    assert len(new.nodes[new.outputs[0]].inputs) == 3
    assert "LayerNormalization" not in operators(optimised(graph, 16))


def test_norms_over_other_axes_stay() -> None:
    m = Model()
    ms = m.op("ReduceMean", m.op("Mul", m.x, m.x), axes=(1,), keepdims=1)
    new = optimised(m.build({"y": rms(m, ms, quotient="divide")}), 23)
    assert "RMSNormalization" not in operators(new)


def test_a_scale_folds_into_all_products_behind_a_norm() -> None:
    """Where the opset has no norm with a scale, no product with the scale is left."""
    m = Model()
    y = rms_legacy(m)
    outputs = {name: m.op("MatMul", y, m.values(8, n)) for name, n in (("gate", 16), ("up", 16))}
    graph = m.build(outputs)
    new = optimised(graph, 22)
    assert same(graph, new)
    assert operators(new).count("Mul") + operators(new).count("Pow") == 1, "the square"


def test_sibling_norms_of_one_tensor_become_one() -> None:
    """Parallel attention and feed-forward: scales and biases go into the weights behind."""
    m = Model()
    ys = [m.op("LayerNormalization", m.x, m.values(8), m.values(8), axis=2, epsilon=1e-5) for _ in range(2)]
    outputs = {
        name: m.op("Add", m.op("MatMul", y, m.values(8, n)), m.values(n))
        for name, y, n in (("attention", ys[0], 24), ("feed-forward", ys[1], 32))
    }
    graph = m.build(outputs)
    new = optimised(graph, 17)
    assert same(graph, new)
    assert operators(new).count("LayerNormalization") == 1
    assert not {"Mul", "Add"} & set(operators(new))


def erf(m: Model, quotient: bool) -> int:
    inner = m.op("Div", m.x, m.number(sqrt(2))) if quotient else m.op("Mul", m.x, m.number(sqrt(0.5)))
    return m.op("Erf", inner)


def tanh(m: Model, factored: bool) -> int:
    x, c, k = m.x, m.number(sqrt(2 / pi)), m.number(0.044715)
    if factored:  # BLOOM
        square = m.op("Mul", m.op("Mul", x, k), x)
        return m.op("Tanh", m.op("Mul", m.op("Mul", x, c), m.op("Add", square, m.number(1.0))))
    cube = m.op("Mul", m.op("Pow", x, m.number(3.0)), k)
    return m.op("Tanh", m.op("Mul", m.op("Add", x, cube), c))


def last(m: Model, t: int) -> int:
    return m.op("Mul", m.op("Mul", m.x, m.op("Add", t, m.number(1.0))), m.number(0.5))


def first(m: Model, t: int) -> int:
    return m.op("Mul", m.op("Mul", m.x, m.number(0.5)), m.op("Add", t, m.number(1.0)))


def reversed_order(m: Model, t: int) -> int:
    return m.op("Mul", m.op("Add", m.number(1.0), t), m.op("Mul", m.number(0.5), m.x))


def inside(m: Model, t: int) -> int:
    return m.op("Mul", m.x, m.op("Mul", m.op("Add", t, m.number(1.0)), m.number(0.5)))


@pytest.mark.parametrize(
    ("inner", "approximate"),
    [
        (partial(erf, quotient=True), "none"),
        (partial(erf, quotient=False), "none"),
        (partial(tanh, factored=False), "tanh"),
        (partial(tanh, factored=True), "tanh"),
    ],
)
def test_gelu(inner: Pattern, approximate: str) -> None:
    m = Model()
    ways = (last, first, reversed_order, inside)
    graph = m.build({way.__name__: way(m, inner(m)) for way in ways})
    new = optimised(graph, 20)
    assert operators(new) == ["Gelu"] and same(graph, new)
    assert new.nodes[new.outputs[0]].attrs == {"approximate": approximate}
    assert "Gelu" not in operators(optimised(graph, 19))


def test_exact_gelu_of_a_narrow_type_has_that_types_root() -> None:
    """√2 is 1.4140625 in float16 and there is no nearer number."""
    m = Model("float16")
    assert operators(optimised(m.build({"y": last(m, erf(m, True))}), 20, tolerance=2e-4)) == ["Gelu"]


def test_another_function_is_no_gelu() -> None:
    m = Model()

    def odd(root: float = sqrt(2), half: float = 0.5, one: float = 1.0, inner: int | None = None) -> int:
        t = m.op("Erf", m.op("Div", m.x, m.number(root))) if inner is None else inner
        return m.op("Mul", m.op("Mul", m.x, m.op("Add", t, m.number(one))), m.number(half))

    cube = m.op("Mul", m.op("Pow", m.x, m.number(3.0)), m.number(0.0447))
    tanh_ = m.op("Tanh", m.op("Mul", m.op("Add", m.x, cube), m.number(sqrt(2 / pi))))
    wrong = [odd(root=1.4142), odd(half=0.51), odd(one=1.01), odd(inner=tanh_)]
    assert "Gelu" not in saturate(m.build({str(i): y for i, y in enumerate(wrong)})).ops
    assert "Gelu" in saturate(m.build({"y": odd()})).ops


def test_a_maximum_with_zero_is_a_relu() -> None:
    m = Model()
    space = saturate(m.build({"max": m.op("Max", m.number(0.0), m.x), "relu": m.op("Relu", m.x)}))
    assert space.roots[0] == space.roots[1]


def test_exact_and_approximate_gelu_never_meet() -> None:
    m = Model()
    kinds = [m.op("Gelu", m.x, approximate=a) for a in ("none", "tanh")]
    pieces = [last(m, erf(m, True)), first(m, tanh(m, False))]
    space = saturate(m.build({str(i): y for i, y in enumerate((*kinds, *pieces))}))
    exact, approximate, erf_class, tanh_class = space.roots.tolist()
    assert exact == erf_class and approximate == tanh_class and exact != approximate


@pytest.mark.parametrize("alpha", [1.0, 1.702])
@pytest.mark.parametrize("swapped", [False, True])
def test_swish(alpha: float, swapped: bool) -> None:
    m = Model()
    s = m.op("Sigmoid", m.x if alpha == 1.0 else m.op("Mul", m.number(alpha), m.x))
    graph = m.build({"y": m.op("Mul", s, m.x) if swapped else m.op("Mul", m.x, s)})
    new = optimised(graph, 24)
    assert operators(new) == ["Swish"] and same(graph, new)
    assert new.nodes[new.outputs[0]].attrs["alpha"] == pytest.approx(alpha)
    assert "Swish" not in operators(optimised(graph, 23))


def hard_swish(m: Model) -> int:
    """torch: x · relu6(x + 3) / 6."""
    six = m.op("Clip", m.op("Add", m.x, m.number(3.0)), min=0.0, max=6.0)
    return m.op("Div", m.op("Mul", m.x, six), m.number(6.0))


def hard_swish_inside(m: Model) -> int:
    six = m.op("Min", m.op("Relu", m.op("Add", m.x, m.number(3.0))), m.number(6.0))
    return m.op("Mul", m.x, m.op("Div", six, m.number(6.0)))


def logistic(m: Model) -> int:
    return m.op("Div", m.number(1.0), m.op("Add", m.op("Exp", m.op("Neg", m.x)), m.number(1.0)))


def softplus(m: Model) -> int:
    return m.op("Log", m.op("Add", m.number(1.0), m.op("Exp", m.x)))


def relu6(m: Model) -> int:
    return m.op("Min", m.op("Relu", m.x), m.number(6.0))


@pytest.mark.parametrize(
    ("pattern", "op"),
    [(hard_swish, "HardSwish"), (hard_swish_inside, "HardSwish"), (logistic, "Sigmoid"), (softplus, "Softplus"),
     (relu6, "Clip")],
)  # fmt: skip
def test_functions_in_pieces(pattern: Pattern, op: str) -> None:
    m = Model()
    graph = m.build({"y": pattern(m)})
    new = optimised(graph, 22)
    assert operators(new) == [op] and same(graph, new)
