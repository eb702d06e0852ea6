"""Made-up inputs fit what the model does with them, and inputs that the user gives are checked."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from xrlflow.egraph.graph import GraphBuilder, TensorType
from xrlflow.errors import UserError
from xrlflow.lowering import load, random_inputs, verify
from xrlflow.lowering.feeds import bound_symbols, load_arrays, read_inputs, save_arrays
from xrlflow.lowering.roles import input_roles

F, I, B = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
node = helper.make_node
TABLE = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)


def model(nodes, inputs, outputs, opset=17, functions=(), **weights):
    infos = [
        [v if not isinstance(v, tuple) else helper.make_tensor_value_info(*v) for v in values]
        for values in (inputs, outputs)
    ]
    graph = helper.make_graph(
        nodes, "g", *infos, [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()]
    )
    imports = [helper.make_opsetid("", opset)] + [helper.make_opsetid("local", 1)] * bool(functions)
    return helper.make_model(graph, opset_imports=imports, ir_version=10, functions=list(functions))


def made(proto, name, count=20, **options):
    """All values that an input gets over several seeds, in one row."""
    graph = load(proto)
    return np.concatenate([np.asarray(random_inputs(graph, s, **options)[name]).reshape(-1) for s in range(count)])


WAYS = {
    "Gather": ([node("Gather", ["table", "ids"], ["y"])], 0, 9),
    "Cast": ([node("Cast", ["ids"], ["i"], to=TensorProto.INT32), node("Gather", ["table", "i"], ["y"])], 0, 9),
    "Add of a constant": ([node("Add", ["ids", "two"], ["i"]), node("Gather", ["table", "i"], ["y"])], 0, 7),
    "Sub of a constant": ([node("Sub", ["ids", "two"], ["i"]), node("Gather", ["table", "i"], ["y"])], 2, 11),
    "Where": (
        [node("Equal", ["ids", "two"], ["c"]), node("Where", ["c", "two", "ids"], ["i"]),
         node("Gather", ["table", "i"], ["y"])], 0, 9,
    ),
    "Slice and Concat": (
        [node("Slice", ["ids", "zero", "one", "axis"], ["s"]), node("Concat", ["s", "ids"], ["i"], axis=1),
         node("Gather", ["table", "i"], ["y"])], 0, 9,
    ),
    "two tables": (
        [node("Gather", ["table", "ids"], ["a"]), node("Gather", ["table", "ids"], ["b"], axis=1),
         node("ReduceSum", ["a"], ["c"], keepdims=0), node("Add", ["b", "c"], ["y"])], 0, 3,
    ),
    "sum of two": ([node("Add", ["ids", "ids"], ["i"]), node("Gather", ["table", "i"], ["y"])], 0, 4),
    "GatherND": ([node("Unsqueeze", ["ids", "last"], ["i"]), node("GatherND", ["table", "i"], ["y"])], 0, 3),
    "OneHot": ([node("OneHot", ["ids", "depth", "values"], ["y"])], 0, 4),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_indices_lie_in_every_table_that_they_reach(way):
    nodes, low, high = WAYS[way]
    proto = model(
        nodes, [("ids", I, ["b", "s"])], [("y", F, None)],
        table=TABLE, two=np.array(2), zero=np.array([0]), one=np.array([1]), axis=np.array([1]), last=np.array([2]),
        depth=np.array(5), values=np.array([0, 1], np.float32),
    )  # fmt: skip
    found = made(proto, "ids", symbols={"b": 4, "s": 5})
    assert (found.min(), found.max()) == (low, high)
    assert verify(proto, proto).passed


def test_indices_that_a_body_or_a_function_uses_are_in_range():
    inner = helper.make_graph(
        [node("Gather", ["table", "ids"], ["r"])], "b", [], [helper.make_tensor_value_info("r", F, None)]
    )
    other = helper.make_graph(
        [node("Gather", ["table", "zero"], ["q"])], "c", [], [helper.make_tensor_value_info("q", F, None)]
    )
    branch = model(
        [node("If", ["flag"], ["y"], then_branch=inner, else_branch=other)],
        [("ids", I, [6]), ("flag", B, [])], [("y", F, None)], table=TABLE, zero=np.zeros(6, np.int64),
    )  # fmt: skip
    look = helper.make_function(
        "local", "Look", ["t", "i"], ["o"], [node("Identity", ["i"], ["k"]), node("Gather", ["t", "k"], ["o"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    call = model(
        [node("Look", ["table", "ids"], ["y"], domain="local")], [("ids", I, [6])], [("y", F, None)],
        functions=[look], table=TABLE,
    )  # fmt: skip
    for proto in (branch, call):
        assert made(proto, "ids").max() == 9
        assert made(proto, "ids").min() == 0


def test_symbolic_tables_bound_indices_by_their_extent():
    proto = model(
        [node("GatherElements", ["cache", "ids"], ["y"])],
        [("cache", F, ["n", 3]), ("ids", I, ["k", 3])],
        [("y", F, None)],
    )
    assert made(proto, "ids", symbols={"n": 7, "k": 50}).max() == 6
    assert made(proto, "ids", symbols={"n": 1, "k": 50}).max() == 0
    assert len(verify(proto, proto).bindings) == 3


def test_positions_computed_from_a_mask_keep_it_at_zero_and_one():
    proto = model(
        [node("CumSum", ["mask", "axis"], ["c"]), node("Sub", ["c", "one"], ["p"]),
         node("Gather", ["table", "p"], ["y"])],
        [("mask", I, ["b", "s"])], [("y", F, None)], table=TABLE, axis=np.array(1), one=np.array(1),
    )  # fmt: skip
    assert set(made(proto, "mask")) <= {0, 1}
    assert verify(proto, proto).passed


def test_floating_point_masks_are_what_their_use_suggests():
    added = model(
        [node("Add", ["scores", "mask"], ["s"]), node("Softmax", ["s"], ["y"], axis=-1)],
        [("scores", F, ["b", 8]), ("mask", F, ["b", 8])], [("y", F, None)],
    )  # fmt: skip
    scores = model(
        [node("MatMul", ["x", "w"], ["q"]), node("Add", ["q", "mask"], ["s"]), node("Softmax", ["s"], ["y"], axis=-1)],
        [("x", F, ["b", 4]), ("mask", F, ["b", 10])], [("y", F, None)], w=TABLE.T.copy(),
    )  # fmt: skip
    assert set(made(scores, "mask")) == {0.0, -1e4}
    assert set(made(scores, "mask", distribution="wide")) == {0.0, -np.inf}
    assert not input_roles(load(added))["scores"].mask
    factor = model(
        [node("Sub", ["one", "mask"], ["m"]), node("Mul", ["m", "large"], ["y"])],
        [("mask", F, ["b", 8])], [("y", F, None)], one=np.float32(1), large=np.float32(-3e38),
    )  # fmt: skip
    assert set(made(factor, "mask")) == {0.0, 1.0}


USES = {
    "TopK": ([node("TopK", ["x", "n"], ["y", "i"], axis=1)], ("n", I, [1]), 1, 5),
    "trip count": (None, ("n", I, []), 1, 3),
    "lengths": ([node("ReverseSequence", ["x", "n"], ["y"], batch_axis=0, time_axis=1)], ("n", I, [3]), 1, 5),
    "axes": ([node("ReduceSum", ["x", "n"], ["y"])], ("n", I, [1]), 0, 0),
    "repeats": ([node("Tile", ["x", "n"], ["y"])], ("n", I, [2]), 1, 2),
    "shape of a constant": ([node("ConstantOfShape", ["n"], ["y"])], ("n", I, [2]), 1, 3),
    "starts": ([node("Slice", ["x", "n", "ends"], ["y"])], ("n", I, [1]), 0, 0),
}


@pytest.mark.parametrize("use", USES)
def test_counts_lengths_and_axes_are_small_and_valid(use):
    nodes, given, low, high = USES[use]
    if nodes is None:
        infos = [helper.make_tensor_value_info(*v) for v in (("k", I, []), ("c", B, []), ("v", F, [3, 5]))]
        results = [helper.make_tensor_value_info(*v) for v in (("c2", B, []), ("v2", F, [3, 5]))]
        body = helper.make_graph(
            [node("Identity", ["c"], ["c2"]), node("Add", ["v", "x"], ["v2"])], "b", infos, results
        )
        nodes = [node("Loop", ["n", "", "x"], ["y"], body=body)]
    proto = model(nodes, [("x", F, [3, 5]), given], [("y", F, None)], ends=np.array([3]))
    found = made(proto, "n", count=60)
    assert (found.min(), found.max()) == (low, high)
    assert verify(proto, proto).passed


def test_shapes_given_as_inputs_fit():
    proto = model([node("Reshape", ["x", "s"], ["y"])], [("x", F, ["a", 6]), ("s", I, [3])], [("y", F, [2, 3, "c"])])
    result = verify(proto, proto)
    assert result.passed
    assert len(result.bindings) == 3
    assert not any("simple" in note for note in result.notes)


@pytest.mark.parametrize(
    "code",
    [
        TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.DOUBLE, TensorProto.INT8,
        TensorProto.UINT16, TensorProto.BOOL, TensorProto.STRING, TensorProto.COMPLEX64,
    ],
)  # fmt: skip
def test_inputs_of_every_element_type_are_made(code):
    proto = model([node("Identity", ["x"], ["y"])], [("x", code, ["n", 3])], [("y", code, ["n", 3])], 22)
    found = random_inputs(load(proto), 0)["x"]
    assert found.shape == (2, 3)
    assert found.dtype == helper.tensor_dtype_to_np_dtype(code)


def test_sequences_and_optional_values_are_made():
    sequence = model(
        [node("SequenceAt", ["s", "k"], ["y"])],
        [helper.make_tensor_sequence_value_info("s", F, [2, 3]), ("k", I, [])], [("y", F, [2, 3])],
    )  # fmt: skip
    assert len(random_inputs(load(sequence), 0)["s"]) == 2
    assert verify(sequence, sequence).passed
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(F, [2]))
    maybe = model([node("OptionalGetElement", ["o"], ["y"])], [helper.make_value_info("o", kind)], [("y", F, [2])], 18)
    assert verify(maybe, maybe).passed


def test_inputs_of_unknown_rank_take_one_that_their_use_allows():
    proto = model(
        [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["y"])], [("x", F, None)], [("y", F, None)], w=TABLE
    )
    assert random_inputs(load(proto), 0)["x"].shape == (2, 10)
    assert verify(proto, proto).passed
    squeezed = model(
        [node("Squeeze", ["x", "axes"], ["y"])], [("x", F, None)], [("y", F, None)], axes=np.array([0, 1, 2])
    )
    assert verify(squeezed, squeezed).passed


def test_simpler_values_are_tried_where_random_ones_do_not_run():
    # an index computed in a way that nothing is known about
    proto = model(
        [node("Mul", ["x", "x"], ["q"]), node("Mod", ["q", "hundred"], ["m"]), node("Mul", ["m", "large"], ["i"]),
         node("Gather", ["table", "i"], ["y"])],
        [("x", TensorProto.UINT8, [30])], [("y", F, None)],
        table=TABLE, hundred=np.uint8(100), large=np.uint8(9),
    )  # fmt: skip
    proto.graph.node.insert(3, node("Cast", ["i"], ["j"], to=I))
    proto.graph.node[4].input[1] = "j"
    result = verify(proto, proto)
    assert result.passed
    assert "simple" in str(result)


# Inputs that the user gives


def pair():
    g = GraphBuilder()
    x, m = g.input("x", TensorType(("n", 3), "float32")), g.input("m", TensorType(("n",), "int64"))
    return g.build({"y": g.op("Relu", x), "m": g.op("Neg", m)})


GOOD = {"x": np.ones((4, 3), np.float32), "m": np.arange(4)}
WRONG = {
    "missing": ({"x": GOOD["x"]}, "'m' (int64[n]) is missing"),
    "unknown": ({**GOOD, "z": np.ones(2)}, "no input 'z'; its inputs are 'x', 'm'"),
    "shape": ({**GOOD, "x": np.ones((4, 2), np.float32)}, "'x' is float32[4,2], the model expects float32[n,3]"),
    "rank": ({**GOOD, "x": np.ones(3, np.float32)}, "'x' is float32[3], the model expects float32[n,3]"),
    "extents": ({**GOOD, "m": np.arange(5)}, "'n' is 4 in input 'x', but 5 in 'm'"),
    "type": ({**GOOD, "m": np.ones(4) * 0.5}, "'m' is float64[4], the model expects int64[n], and not every value"),
    "precision": ({**GOOD, "x": np.full((4, 3), 0.1)}, "'x' is float64[4,3], the model expects float32[n,3], and not"),
    "text": ({**GOOD, "m": np.array(list("abcd"))}, "'m' is <U1[4], the model expects int64[n]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_are_refused_in_one_line(case, tmp_path):
    arrays, what = WRONG[case]
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    for source in (path, arrays):
        with pytest.raises(UserError) as caught:
            read_inputs(source, pair())
        assert what in str(caught.value)
        assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("inputs: ")


@pytest.mark.parametrize("case", ["none", "text", "object", "single", "damaged"])
def test_files_that_are_no_arrays_are_refused(case, tmp_path):
    path = tmp_path / "data.npz"
    if case == "text":
        path.write_text("x = 1")
    elif case == "object":
        np.savez(path, x=np.array([{"code": print}], object), m=GOOD["m"])
    elif case == "single":
        with path.open("wb") as f:
            np.save(f, GOOD["x"])
    elif case == "damaged":
        np.savez(path, **GOOD)
        data = path.read_bytes()
        path.write_bytes(data[:60] + b"\xff" * 40 + data[100:])
    with pytest.raises(UserError, match=r"data\.npz"):
        read_inputs(path, pair())


def test_inputs_are_converted_where_no_value_changes():
    found = read_inputs({"x": np.arange(12.0).reshape(4, 3), "m": np.arange(4, dtype=np.int8)}, pair())
    assert [a.dtype for a in found.values()] == [np.float32, np.int64]
    assert bound_symbols(pair(), found) == {"n": 4}


def test_given_inputs_are_compared_first_and_give_the_extents():
    graph = pair()
    result = verify(graph, graph, inputs=GOOD)
    assert result.samples == 4
    assert result.bindings[0] == {"n": 4}
    assert len(result.bindings) == 4


def test_a_difference_that_only_the_given_inputs_show_fails():
    def clipped(top):
        return model(
            [node("Clip", ["x", "low", "top"], ["y"])],
            [("x", F, [3])],
            [("y", F, [3])],
            low=np.float32(-1e9),
            top=np.float32(top),
        )

    assert verify(clipped(1e4), clipped(2e4)).passed
    assert verify(clipped(1e4), clipped(2e4), inputs={"x": np.float32([0, 3e4, 1])}).verdict == "failed"


def test_given_inputs_that_the_model_cannot_run_on_are_an_error():
    proto = model([node("Gather", ["table", "ids"], ["y"])], [("ids", I, ["n"])], [("y", F, None)], table=TABLE)
    with pytest.raises(UserError, match="given inputs"):
        verify(proto, proto, inputs={"ids": np.array([99])})


def test_arrays_of_any_name_and_type_survive_their_way_to_a_worker(tmp_path):
    import ml_dtypes

    arrays = {
        "file": np.arange(3), "a/b": np.ones((2, 2), ml_dtypes.bfloat16), "": np.array(1.5),
        "text": np.array(["a", "bcd"], object), "half": np.ones(2, np.float16), "none": np.zeros((0, 3), np.int32),
    }  # fmt: skip
    save_arrays(tmp_path / "a.npz", arrays)
    found = load_arrays(tmp_path / "a.npz")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


# The command


def test_the_command_verifies_on_the_given_inputs(tmp_path, capsys):
    import json

    import onnx

    from xrlflow import zoo
    from xrlflow.extract import main

    source, data, record, out = (tmp_path / n for n in ("m.onnx", "data.npz", "run.json", "out.onnx"))
    proto = zoo.build("bert-tiny")
    onnx.save(proto, source)
    arrays = random_inputs(load(proto), 3)
    np.savez(data, **arrays)
    flags = ["--method", "saturation", "--target", "roofline:a100", "--max-steps", "300"]
    assert main([str(source), "-o", str(out), "--inputs", str(data), "--json", str(record), *flags]) == 0
    run = json.loads(record.read_text())
    assert run["improved"]
    assert run["verification"]["samples"] == 4
    out.unlink()
    np.savez(data, **{**arrays, "input_ids": arrays["input_ids"][:, :3]})
    capsys.readouterr()
    assert main([str(source), "-o", str(out), "--inputs", str(data), *flags]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "'input_ids' is int64[1,3], the model expects int64[1,6]" in said[0]
    assert not out.exists()


def unknown_operator():
    """A model that rules can improve, with an operator that no runtime here knows."""
    from xrlflow import zoo

    proto = zoo.build("bert-tiny")
    output = proto.graph.output[0].name
    for n in proto.graph.node:
        n.output[:] = ["before" if name == output else name for name in n.output]
    proto.graph.node.append(node("Magic", ["before"], [output], domain="acme"))
    proto.opset_import.append(helper.make_opsetid("acme", 1))
    return proto


def test_what_cannot_be_verified_is_refused_unless_the_user_wants_it(tmp_path):
    import json

    import onnx

    from xrlflow.extract import main

    source, record, out = (tmp_path / n for n in ("m.onnx", "run.json", "out.onnx"))
    onnx.save(unknown_operator(), source)
    flags = [
        "--method",
        "saturation",
        "--target",
        "roofline:a100",
        "--max-steps",
        "300",
        "--json",
        str(record),
        "--quiet",
    ]
    assert main([str(source), "-o", str(out), *flags]) == 0
    run = json.loads(record.read_text())
    assert not run["improved"]
    assert run["verification"]["verdict"] == "unverified"
    assert "unverified" in run["outcome"]
    assert "acme:Magic" in run["outcome"]
    assert out.read_bytes() == source.read_bytes()
    assert main([str(source), "-o", str(out), "--no-verify", *flags]) == 0
    run = json.loads(record.read_text())
    assert run["improved"]
    assert run["verification"]["verdict"] == "unverified"
    assert "unverified" in run["outcome"]
    assert out.read_bytes() != source.read_bytes()


def test_confirming_measures_on_the_given_inputs(tmp_path, monkeypatch):
    import xrlflow
    from xrlflow.cost.verdict import Verdict

    seen = {}

    def confirm(*_, **options):
        seen.update(options)
        return Verdict(1.0, 1.0, 1.0, 1.0, 1.0, "tie")

    monkeypatch.setattr("xrlflow.cost.confirm.confirm", confirm)
    w = [np.eye(16, dtype=np.float32) * k for k in (1, 2)]
    proto = model(
        [node("MatMul", ["x", "a"], ["p"]), node("MatMul", ["x", "b"], ["q"]), node("Add", ["p", "q"], ["y"])],
        [("x", F, ["n", 16])], [("y", F, ["n", 16])], a=w[0], b=w[1],
    )  # fmt: skip
    x = np.ones((5, 16), np.float32)
    result = xrlflow.optimize(
        proto, method="saturation", target="onnxruntime", cost="roofline:a100", max_steps=100, inputs={"x": x}
    )
    assert result.verdict is not None, result
    np.testing.assert_array_equal(seen["inputs"]["x"], x)
    assert seen["symbols"] == {"n": 5}


def test_confirming_runs_on_the_given_inputs_in_its_workers(tmp_path):
    from xrlflow.cost.confirm import confirm
    from xrlflow.cost.target import parse_target

    def network(table):
        return model(
            [node("Gather", ["table", "ids"], ["g"]), node("Relu", ["g"], ["y"])],
            [("ids", I, ["file"])],
            [("y", F, None)],
            table=table,
        )

    one, two = network(TABLE), network(np.concatenate([TABLE, TABLE]))
    target = parse_target("onnxruntime")
    good = confirm(one, two, target, 2.0, blocks=1, controls=0, inputs={"ids": np.array([9, 3, 1])})
    assert good.original_ms is not None
    with pytest.raises(UserError, match="cannot run"):  # the arrays themselves reach the model
        confirm(one, two, target, 2.0, blocks=1, controls=0, inputs={"ids": np.array([15, 3, 1])})
