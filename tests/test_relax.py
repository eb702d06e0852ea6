"""Relax modules survive being read and written back: structurally equal up to names, whatever they hold."""

import re
import textwrap
import warnings
from collections import Counter
from pathlib import Path

import pytest

from xrlflow.lowering.tvm_module import tvm

tvm = tvm()

from xrlflow.cost import measurement  # noqa: E402
from xrlflow.cost.target import Target  # noqa: E402
from xrlflow.egraph.saturate import saturate  # noqa: E402
from xrlflow.lowering.cluster import cluster_model, cluster_of  # noqa: E402
from xrlflow.lowering.folding import fold_constants  # noqa: E402
from xrlflow.lowering.relax_dimensions import Extents  # noqa: E402
from xrlflow.lowering.relax_module import UnreadFunction, regions, rewritten  # noqa: E402
from xrlflow.lowering.relax_region import read_region  # noqa: E402
from xrlflow.lowering.single import kernel_of, single_model  # noqa: E402


def script(text):
    """A module from the functions of its text."""
    header = "@I.ir_module\nclass Module:\n"
    return tvm.script.from_source(header + textwrap.indent(text, "    "))


TEXT = (Path(__file__).parent / "data" / "relax_modules.txt").read_text(encoding="utf-8")
MODULES = dict(re.findall(r"^=== (\w+)\n(.*?)(?=^===|\Z)", TEXT, re.MULTILINE | re.DOTALL))


def test_there_are_many():
    assert len(MODULES) >= 30


@pytest.mark.parametrize("name", MODULES)
def test_round_trip(name):
    module = script(MODULES[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnreadFunction)
        found = rewritten(module, lambda region: region.graph)
    tvm.ir.assert_structural_equal(module, found, map_free_vars=True)


def opaque(text):
    """How often each operator of a module stays opaque."""
    graphs = [region.graph for region in regions(script(text))]
    return Counter(g.nodes[i].op.split("::")[1] for g in graphs for i in g.operators if g.nodes[i].opaque)


OPAQUE = {
    # of no core operator
    "call_tir": 3, "call_dps_packed": 1, "call_pure_packed": 1, "cumsum": 2, "zeros": 1, "shape_of": 1,
    "shape_to_tensor": 1, "nonzero": 1, "nn.log_softmax": 1, "tile": 1, "argmax": 1, "floor_divide": 1, "variance": 1,
    # of unknown shapes
    "exp": 2, "negative": 2,
    # with steps; windows beyond the padding, another layout; another result type, another layout; trained; without
    # a bias; of a flat tensor, of indices that may lie outside
    "strided_slice": 2, "nn.max_pool2d": 2, "matmul": 1, "nn.conv2d": 1, "nn.batch_norm": 1, "nn.layer_norm": 1,
    "take": 2,
}  # fmt: skip


def test_core_operators_are_read_as_such():
    found = sum((opaque(text) for text in MODULES.values()), Counter())
    functions = {"other": 1, "first": 1, "second": 1}
    assert found == functions | {f"relax.{name}": n for name, n in OPAQUE.items()}


def test_parts_that_nobody_reads():
    """TVM's ONNX importer takes all parts of a batch normalisation; the first is all that is read further."""
    lines = MODULES["batch_norm"].splitlines()
    at = next(k for k, line in enumerate(lines) if "y = t[0]" in line)
    text = "\n".join([*lines[: at + 1], "        u = t[1]", "        v1 = t[2]", *lines[at + 1 :]])
    assert "u = t[1]" in text
    assert opaque(text) == {}


def test_dropout_without_its_mask_is_its_operand():
    """TVM compiles it to a copy and a mask of ones."""
    text = """
@R.function
def main(x: R.Tensor((2, 3), "float32")):
    with R.dataflow():
        a = R.nn.relu(x)
        d = R.nn.dropout(a, rate=0.5)
        b = d[0]
        m = d[1]
        y = R.nn.relu(b)
        R.output(y)
    return y
"""
    [region] = regions(script(text))
    assert region.graph.count() == {"Relu": 2}
    assert opaque(text.replace("R.output(y)", "R.output(y, m)").replace("return y", "return (y, m)")) == {
        "relax.nn.dropout": 1
    }
    module = script(text.replace("R.output(y)", "R.output(b)").replace("return y", "return b"))
    expected = script(
        text.split("        d = ", maxsplit=1)[0].replace("a =", "b =") + "        R.output(b)\n    return b\n"
    )
    tvm.ir.assert_structural_equal(expected, rewritten(module, lambda region: region.graph), map_free_vars=True)


def test_what_is_known_of_shapes_is_numbers_only():
    """Extents may be expressions; a stack may say no axis; its fields may be expressions in code that is no script."""
    text = """
@R.function
def main(x: R.Tensor(("n", 3), "float32"), y: R.Tensor(("n", 3), "float32")):
    n = T.int64()
    with R.dataflow():
        s = R.shape_to_tensor(R.shape([T.Cast("int64", T.Cast("int32", n)), 3]))
        z = R.stack((x, y), axis=None)
        R.output(s, z)
    return (s, z)
"""
    module = script(text)
    assert opaque(text) == {"relax.shape_to_tensor": 1}
    tvm.ir.assert_structural_equal(module, rewritten(module, lambda region: region.graph), map_free_vars=True)


def test_expressions_in_a_stack_are_kept():
    from tvm import relax

    x = relax.Var("x", relax.TensorType([2, 3], "float32"))
    out = relax.DataflowVar("out", relax.TensorType([2, 2, 3], "float32"))
    block = relax.DataflowBlock([relax.VarBinding(out, relax.op.stack([relax.op.nn.relu(x), x], 0))])
    graph = read_region(block.bindings, {out}, Extents())
    assert graph.count() == {"relax.stack": 1}


def test_symbols_of_opaque_operators_are_told_in_one_order():
    """TVM tells them in the order of their addresses, which each run has others of."""
    text = """
@R.function
def main(x: R.Tensor(("n", "k", "a", "b"), "float32")):
    n = T.int64()
    k = T.int64()
    a = T.int64()
    b = T.int64()
    with R.dataflow():
        y = R.zeros(R.shape([n, k, a, b, a * b]), "float32")
        R.output(y)
    return y
"""
    digests = {region.graph.nodes[-1].attrs["proto"] for _ in range(8) for region in regions(script(text))}
    assert len(digests) == 1


@pytest.mark.parametrize(("n", "slower"), [(4, False), (1 << 20, True)])
def test_opaque_operators_are_timed_at_their_extents(n, slower, tmp_path):
    (region,) = regions(script(MODULES["call_tir_with_symbols"]))
    plain = saturate(region.graph, [], max_iterations=1)
    space = plain.at({"n": n})
    (i,) = [i for i, op in enumerate(space.ops) if "::" in op]
    cluster = cluster_of(space, [i])
    program = cluster_model(cluster, space)
    try:
        found = measurement.prepare_kernel("k", program.SerializeToString(), Target("llvm"), str(tmp_path), 2, 10.0)
    finally:
        measurement.drop()
    assert (found["ms"] > 0.01) == slower
    assert cluster.key != cluster_of(plain.at({"n": 7}), [i]).key


def test_folded_regions_can_be_saturated():
    text = """
@R.function
def main(x: R.Tensor((2, 3), "float32")):
    with R.dataflow():
        t = R.shape_to_tensor(R.shape_of(x))
        R.output(t)
    return t
"""
    (region,) = regions(script(text))
    assert "Weight" in saturate(region.graph, []).ops
    assert "::relax.shape_to_tensor" in saturate(fold_constants(region.graph), []).ops


@pytest.mark.parametrize("mode", ["fast", "clip", "wrap"])
@pytest.mark.parametrize(("indices", "core"), [("[0, 4]", True), ("[0, 5]", False), ("[-1, 2]", False)])
def test_indices_that_lie_inside_mean_the_same_in_every_mode(mode, indices, core):
    text = f"""
@R.function
def main(x: R.Tensor((5, 3), "float32")):
    with R.dataflow():
        y = R.take(x, R.const({indices}, "int64"), axis=0, mode="{mode}")
        R.output(y)
    return y
"""
    assert opaque(text) == ({} if core or mode == "fast" else {"relax.take": 1})


def test_functions_are_told_apart_by_what_they_compute():
    """Kernels are remembered from one module to the next, where a function of the same name may be another."""
    text = MODULES["call_tir"]

    def digests(text):
        graph = next(iter(regions(script(text)))).graph
        return {graph.nodes[i].attrs["proto"] for i in graph.operators if graph.nodes[i].opaque}

    assert digests(text) == digests(text.replace("R.nn.relu(b)", "R.nn.gelu(b)"))
    assert digests(text).isdisjoint(digests(text.replace("T.float32(2)", "T.float32(3)")))


@pytest.mark.parametrize("name", ["call_tir", "call_tir_two_outputs", "normalisations", "indices"])
@pytest.mark.parametrize(
    "made",
    [lambda s, i: cluster_model(cluster_of(s, [i]), s), lambda s, i: single_model(kernel_of(s, i), s)],
    ids=["cluster", "single"],
)
def test_kernels_of_opaque_operators_are_programs_that_run(name, made, tmp_path):
    """ONNX has no such operator: they are timed as Relax."""
    (region,) = regions(script(MODULES[name]))
    space = saturate(region.graph, [], max_iterations=1)
    opaque = [i for i, op in enumerate(space.ops) if "::" in op]
    assert opaque
    for i in opaque:
        model = made(space, i).SerializeToString()
        try:
            found = measurement.prepare_kernel("kernel", model, Target("llvm"), str(tmp_path), 2, 10.0)
        finally:
            measurement.drop()
        assert 0 < found["ms"] < 100
