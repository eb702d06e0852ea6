"""Weights that stay in their files, and files that are written whole or not at all."""

import gc
import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

import xrlflow
from xrlflow.egraph.graph import GraphBuilder, TensorType, Weight
from xrlflow.errors import UserError
from xrlflow.extract import main
from xrlflow.lowering import onnx_files, onnx_wire
from xrlflow.lowering.folding import LATE, Folded, fold_constants
from xrlflow.lowering.onnx_files import copy, data_path, locations, save
from xrlflow.lowering.onnx_reader import load
from xrlflow.lowering.onnx_tensor import ExternalTensor, Uniform, uniform_weight
from xrlflow.lowering.onnx_writer import to_onnx
from xrlflow.options import METHODS

F32 = TensorProto.FLOAT
X = helper.make_tensor_value_info("x", F32, [2, 64])
Y = helper.make_tensor_value_info("y", F32, [2, "columns"])


def noise(*shape, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) / 8).astype(np.float32)


def model(nodes, weights, inputs=(X,), outputs=(Y,), ir_version=9):
    graph = helper.make_graph(nodes, "g", list(inputs), list(outputs), weights)
    return helper.make_model(graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", 18)])


def linear(columns=96, seed=0):
    """y = x @ w, with w as an initializer."""
    weight = numpy_helper.from_array(noise(64, columns, seed=seed), "w")
    return model([helper.make_node("MatMul", ["x", "w"], ["y"])], [weight])


def stored(proto, path, data="w.data", **fields):
    """Write a model with external data; `fields` replace what the first initializer says of its place."""
    onnx.save(proto, path, save_as_external_data=True, location=data, size_threshold=0)
    if fields:
        found = onnx.load(path, load_external_data=False)
        entries = {e.key: e.value for e in found.graph.initializer[0].external_data} | fields
        del found.graph.initializer[0].external_data[:]
        for key, value in entries.items():
            if value is not None:
                found.graph.initializer[0].external_data.add(key=key, value=str(value))
        Path(path).write_bytes(found.SerializeToString())
    return path


def run(source, **feeds):
    source = source if isinstance(source, bytes) else str(source)
    feeds = feeds or {"x": noise(2, 64, seed=9)}
    return ort.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, feeds)


def refused(source):
    with pytest.raises(UserError) as caught:
        load(source)
    text = str(caught.value)
    assert "\n" not in text
    return text


def only_weight(graph):
    (weight,) = graph.weights.values()
    return weight


# Large tensors stay in the model's own file


def inline():
    """More than a megabyte of weights, one of them in a Constant."""
    weights = [numpy_helper.from_array(noise(64, 10_000), "w"), numpy_helper.from_array(noise(10_000, seed=1), "b")]
    constant = numpy_helper.from_array(noise(2, 10_000, seed=2) + 1, "c")
    constant.doc_string = weights[0].doc_string = "kept"
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["i"]),
        helper.make_node("Constant", [], ["k"], value=constant),
        helper.make_node("Mul", ["i", "k"], ["y"]),
    ]
    return model(nodes, weights)


def test_large_weights_stay_in_the_model_s_file_and_are_written_as_they_were(tmp_path):
    proto = inline()
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    graph = load(path)
    loads = {w.name: w.load for w in graph.weights.values()}
    assert isinstance(loads["w"], ExternalTensor) and isinstance(loads["k"], ExternalTensor)
    assert not graph.source.external
    np.testing.assert_array_equal(loads["w"](), noise(64, 10_000))
    assert set(graph.weights) == set(load(proto).weights)  # digests do not depend on where the bytes lie
    save(graph, tmp_path / "out.onnx")
    assert os.listdir(tmp_path).count("out.onnx.data") == 0
    out = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(out, full_check=True)
    assert out.graph.initializer[0].doc_string == "kept"
    np.testing.assert_array_equal(run(tmp_path / "out.onnx")[0], run(path)[0])
    # what is streamed is what protobuf would have written
    streamed, whole = onnx.load(tmp_path / "out.onnx"), to_onnx(graph)
    assert streamed.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)


def test_skimming_agrees_with_protobuf_on_damaged_files(monkeypatch):
    monkeypatch.setattr(onnx_wire, "LARGE", 100)
    proto = linear(20)
    proto.graph.node.insert(
        0, helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(noise(30, 3), "k"))
    )
    data, rng, seen = proto.SerializeToString(), random.Random(0), 0

    def filled(skimmed, original):
        found = onnx.ModelProto.FromString(skimmed)
        nodes = (a.t for n in found.graph.node for a in n.attribute if a.HasField("t"))
        for tensor in (*found.graph.initializer, *nodes):
            place = {e.key: e.value for e in tensor.external_data}
            if place.get("location") == "own":
                begin = int(place["offset"])
                tensor.raw_data = original[begin : begin + int(place["length"])]
                tensor.ClearField("data_location")
                del tensor.external_data[:]
        return found.SerializeToString(deterministic=True)

    assert len(data) > 5000
    assert len(onnx_wire.skim(memoryview(data), "own")) < 600
    for _ in range(3000):
        damaged = bytearray(data[: rng.choice((len(data), len(data), rng.randrange(len(data))))])
        for _ in range(rng.randrange(3)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            expected = onnx.ModelProto.FromString(bytes(damaged)).SerializeToString(deterministic=True)
        except DecodeError:
            expected = None
        skimmed = onnx_wire.skim(memoryview(damaged), "own")
        if skimmed is not None and expected is not None:
            assert filled(skimmed, bytes(damaged)) == expected
            seen += 1
        elif skimmed is not None:
            with pytest.raises(DecodeError):
                onnx.ModelProto.FromString(skimmed)
    assert seen > 1000


OTHER_PROCESS = """
import importlib.util, json, resource, sys
from xrlflow.lowering.onnx_files import save
from xrlflow.lowering.onnx_reader import load
from xrlflow.lowering.folding import fold_constants
def status(field):
    return int(next(l for l in open("/proc/self/status") if l.startswith(field)).split()[1]) * 1024
spec = importlib.util.spec_from_file_location("tests", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
digests = list(fold_constants(tests.siblings()).weights)
before, used = status("RssAnon"), status("VmData")
resource.setrlimit(resource.RLIMIT_DATA, (used + 30_000_000, used + 30_000_000))
for name in sys.argv[2:]:
    save(load(name), name + ".out")
print(json.dumps({"grown": status("RssAnon") - before, "digests": digests}))
"""
"""What is asked of a process of its own: it may allocate no more than 30 MB for models of 64 MB."""


@pytest.fixture(scope="module")
def large_models(tmp_path_factory):
    """The same large model with its weights inside and outside."""
    folder = tmp_path_factory.mktemp("large")
    weights = [numpy_helper.from_array(noise(64, 25_000, seed=k), f"w{k}") for k in range(10)]
    nodes = [helper.make_node("MatMul", ["x", f"w{k}"], [f"y{k}"]) for k in range(10)]
    outputs = [helper.make_tensor_value_info(f"y{k}", F32, None) for k in range(10)]
    (folder / "m.onnx").write_bytes(model(nodes, weights, outputs=outputs).SerializeToString())
    return [folder / "m.onnx", stored(model(nodes, weights, outputs=outputs), folder / "e.onnx", "e.data")]


@pytest.fixture(scope="module")
def other_process(large_models):
    command = [sys.executable, "-c", OTHER_PROCESS, __file__, *map(str, large_models)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONHASHSEED": "1"}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_reading_and_writing_hold_no_weights_in_memory(other_process, large_models):
    assert other_process["grown"] < 30_000_000
    for path in large_models:
        assert run(f"{path}.out")[3].tobytes() == run(path)[3].tobytes()


# Where external data may lie


@pytest.mark.parametrize(
    "location", ["", "/etc/passwd", "../w.data", "a/../../w.data", ".", "a", "w\0.data", "w" * 5000, "loop", "link"]
)
def test_data_outside_the_model_s_folder_are_refused(tmp_path, location):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a").mkdir()
    (tmp_path / "w.data").write_bytes(bytes(100_000))
    (folder / "link").symlink_to("../w.data")
    (folder / "loop").symlink_to("loop")
    assert "'w'" in refused(stored(linear(), folder / "m.onnx", location=location))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"offset": -8}, "'-8'"),
        ({"offset": 1 << 64}, "offset"),
        ({"offset": 10**19 - 1}, "too short"),
        ({"offset": "9" * 5000}, "offset"),
        ({"offset": "0x10"}, "'0x10'"),
        ({"offset": "1.5"}, "'1.5'"),
        ({"offset": 24_577}, "too short"),
        ({"length": 24_572}, "needs 24576 bytes"),
        ({"length": -1}, "'-1'"),
        ({"length": "³"}, "length"),
        ({"location": "none.data"}, "missing"),
        ({"location": None}, "not a file below"),
    ],
)
def test_places_that_cannot_be_are_refused(tmp_path, fields, words):
    assert words in refused(stored(linear(), tmp_path / "m.onnx", **fields))


def test_length_and_offset_may_be_left_out(tmp_path):
    path = stored(linear(), tmp_path / "m.onnx", length=None, offset=None)
    np.testing.assert_array_equal(only_weight(load(path)).load(), noise(64, 96))


@pytest.mark.timeout(30)
def test_pipes_and_devices_are_refused_and_never_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(stored(linear(), tmp_path / "m.onnx", location="pipe"))
    assert "not a regular file" in refused(tmp_path / "pipe")
    assert "not a regular file" in refused("/dev/zero")
    for path in ("/dev/null", tmp_path / "pipe"):
        with pytest.raises(UserError, match="device or a pipe"):
            save(load(linear()), path)
    assert Path("/dev/null").is_char_device()


def test_weights_of_impossible_types_and_shapes_are_refused(tmp_path):
    for damage in (
        lambda t: setattr(t, "data_type", 999), lambda t: setattr(t, "data_type", 0),
        lambda t: setattr(t, "data_type", TensorProto.STRING), lambda t: t.dims.__setitem__(0, -64),
        lambda t: t.dims.__setitem__(0, 1 << 62),
    ):  # fmt: skip
        for external in (False, True):
            path = tmp_path / "m.onnx"
            path.write_bytes(linear().SerializeToString())
            if external:
                stored(linear(), path)
            proto = onnx.load(path, load_external_data=False)
            damage(proto.graph.initializer[0])
            path.write_bytes(proto.SerializeToString())
            assert "'w'" in refused(path)


def test_links_are_followed_where_the_model_is_one(tmp_path):
    """A model hub's cache: links to files that lie together elsewhere."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    stored(linear(), tmp_path / "blobs" / "m.onnx")
    for name in ("m.onnx", "w.data"):
        (tmp_path / "snapshot" / name).symlink_to(f"../blobs/{name}")
    np.testing.assert_array_equal(only_weight(load(tmp_path / "snapshot" / "m.onnx")).load(), noise(64, 96))


def test_models_in_memory_cannot_have_external_data(tmp_path):
    path = stored(linear(), tmp_path / "m.onnx")
    for source in (path.read_bytes(), onnx.load(path, load_external_data=False)):
        text = refused(source)
        assert "'w'" in text and "give the model's path" in text


def branches(location=None):
    """An If whose bodies hold a weight and a Constant each."""

    def body(k):
        nodes = [
            helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(noise(96, seed=10 + k), "c")),
            helper.make_node("MatMul", ["x", "v"], ["h"]),
            helper.make_node("Add", ["h", "c"], ["r"]),
        ]
        weight = numpy_helper.from_array(noise(64, 96, seed=k), "v")
        return helper.make_graph(nodes, f"b{k}", [], [helper.make_tensor_value_info("r", F32, [2, 96])], [weight])

    choose = helper.make_node("If", ["p"], ["z"], then_branch=body(0), else_branch=body(1))
    condition = helper.make_tensor_value_info("p", TensorProto.BOOL, [])
    return model([choose, helper.make_node("Relu", ["z"], ["y"])], [], [X, condition])


def outside(proto, path, location="b.data"):
    """Write a model with all tensors of bodies and attributes in a data file."""
    offset = 0
    with (path.parent / location).open("wb") as stream:
        for tensor in onnx_files.tensors(proto):
            data = tensor.raw_data
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", offset), ("length", len(data))):
                tensor.external_data.add(key=key, value=str(value))
            stream.write(data)
            offset += len(data)
    path.write_bytes(proto.SerializeToString())
    return path


def test_external_tensors_in_bodies_and_attributes_are_found(tmp_path):
    whole = branches()
    path = outside(branches(), tmp_path / "m.onnx")
    assert locations(path) == ("b.data",)
    (tmp_path / "out").mkdir()
    save(load(path), tmp_path / "out" / "o.onnx")
    copy(path, tmp_path / "out" / "c.onnx")
    for k in (True, False):
        feeds = {"x": noise(2, 64), "p": np.array(k)}
        for made in ("o.onnx", "c.onnx"):
            expected = run(whole.SerializeToString(), **feeds)[0]
            np.testing.assert_array_equal(run(tmp_path / "out" / made, **feeds)[0], expected)
    for bad in ("../b.data", "/etc/passwd", ""):
        proto = onnx.load(path, load_external_data=False)
        tensor = proto.graph.node[0].attribute[0].g.initializer[0]
        tensor.external_data[0].value = bad
        (tmp_path / "bad.onnx").write_bytes(proto.SerializeToString())
        assert "not a file below" in refused(tmp_path / "bad.onnx")


# Handles


def test_a_weight_stays_readable_when_its_file_is_replaced_and_notices_when_it_is_rewritten(tmp_path):
    weight = only_weight(load(stored(linear(), tmp_path / "m.onnx")))
    other = tmp_path / "other"
    other.write_bytes(bytes(24_576))
    os.replace(other, tmp_path / "w.data")
    np.testing.assert_array_equal(weight.load(), noise(64, 96))
    weight = only_weight(load(tmp_path / "m.onnx"))
    assert not weight.load().any()
    with (tmp_path / "w.data").open("r+b") as f:
        f.truncate(100)
    with pytest.raises(UserError, match="was changed"):
        weight.load()


def test_a_thousand_data_files_do_not_exhaust_the_handles(tmp_path):
    weights, nodes = [], []
    for k in range(1200):
        tensor = TensorProto(name=f"w{k}", data_type=F32, dims=[64], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=f"w{k}.bin")
        (tmp_path / f"w{k}.bin").write_bytes(np.full(64, k, np.float32).tobytes())
        weights.append(tensor)
        nodes.append(helper.make_node("Add", [f"t{k - 1}" if k else "x", f"w{k}"], [f"t{k}"]))
    nodes[-1].output[0] = "y"
    path = tmp_path / "m.onnx"
    path.write_bytes(model(nodes, weights).SerializeToString())
    graph = load(path)
    before = len(os.listdir("/proc/self/fd"))
    save(graph, tmp_path / "o.onnx")
    assert before < 150
    del graph
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) < before - 50  # and they are given back
    assert sum(float(w.load()[0]) for w in load(tmp_path / "o.onnx").weights.values()) == sum(range(1200))


@pytest.mark.parametrize("dtype", ["INT4", "UINT4", "FLOAT8E4M3FN", "BFLOAT16", "FLOAT16", "BOOL", "COMPLEX64"])
def test_external_weights_of_every_width_come_back_bit_by_bit(tmp_path, dtype):
    code = getattr(TensorProto, dtype)
    count = 4097 if dtype in ("INT4", "UINT4") else 4096  # an odd number of half bytes
    size = -(-count * {"INT4": 4, "UINT4": 4, "BOOL": 8, "FLOAT8E4M3FN": 8, "COMPLEX64": 64}.get(dtype, 16) // 8)
    data = np.random.default_rng(0).integers(0, 2 if dtype == "BOOL" else 100, size).astype(np.uint8)
    data[-1] = 1
    tensor = TensorProto(name="w", data_type=code, dims=[count], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.data")
    (tmp_path / "w.data").write_bytes(data.tobytes())
    out = helper.make_tensor_value_info("y", code, [count])
    proto = model([helper.make_node("Identity", ["w"], ["y"])], [tensor], [], [out], ir_version=10)
    proto.opset_import[0].version = 21
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    save(load(tmp_path / "m.onnx"), tmp_path / "o.onnx")
    assert (tmp_path / "o.onnx.data").read_bytes() == data.tobytes()
    inside = onnx.load(tmp_path / "o.onnx")
    assert load(inside).weights.keys() == load(tmp_path / "m.onnx").weights.keys()


# Writing


def listing(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_while_files_get_their_names_changes_nothing(tmp_path, monkeypatch, failing, existing):
    graph = load(stored(linear(seed=1), tmp_path / "in.onnx"))
    (tmp_path / "out").mkdir()
    if existing:
        save(load(stored(linear(seed=2), tmp_path / "old.onnx", "old.data")), tmp_path / "out" / "o.onnx")
        assert set(listing(tmp_path / "out")) == {"o.onnx", "o.onnx.data"}
    before, calls, replace = listing(tmp_path / "out"), [], os.replace

    def broken(a, b):
        calls.append(b)
        if len(calls) == failing + 1:
            raise OSError(5, "planted")
        replace(a, b)

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(UserError, match="planted"):
        save(graph, tmp_path / "out" / "o.onnx")
    assert listing(tmp_path / "out") == before
    monkeypatch.undo()
    save(graph, tmp_path / "out" / "o.onnx")
    assert set(listing(tmp_path / "out")) == {"o.onnx", "o.onnx.data"}
    np.testing.assert_array_equal(run(tmp_path / "out" / "o.onnx")[0], run(tmp_path / "in.onnx")[0])


def test_a_weight_that_cannot_be_loaded_leaves_no_file(tmp_path):
    g = GraphBuilder()
    x = g.input("x", TensorType((2, 64), "float32"))
    broken = Weight("w", TensorType((64, 5000), "float32"), "0" * 32, lambda: 1 / 0)
    graph = g.build({"y": g.op("MatMul", x, g.weight(broken))})
    for external in (False, True):
        with pytest.raises(ZeroDivisionError):
            save(graph, tmp_path / "o.onnx", external=external)
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("location", ["w.data", "m.onnx.data"])
def test_a_model_may_be_saved_over_itself(tmp_path, location):
    path = stored(linear(), tmp_path / "m.onnx", location)
    expected = run(path)[0]
    graph = load(path)
    for _ in range(3):  # the third time the weights of the first graph lie in no file that has a name
        save(graph, path)
        np.testing.assert_array_equal(run(path)[0], expected)
    assert set(listing(tmp_path)) == {"m.onnx", "m.onnx.data", location}


def test_data_that_another_model_needs_are_not_replaced(tmp_path):
    other = stored(linear(seed=3), tmp_path / "other.onnx", "o.onnx.data")
    expected = run(other)[0]
    graph = load(stored(linear(), tmp_path / "in.onnx", "in.data"))
    save(graph, tmp_path / "o.onnx")
    assert locations(tmp_path / "o.onnx") == ("o.onnx.1.data",)
    save(graph, tmp_path / "o.onnx")  # its own file is replaced
    assert locations(tmp_path / "o.onnx") == ("o.onnx.1.data",)
    (tmp_path / "twin.onnx").write_bytes((tmp_path / "o.onnx").read_bytes())
    save(load(stored(linear(seed=4), tmp_path / "in.onnx", "in.data")), tmp_path / "o.onnx")
    assert locations(tmp_path / "o.onnx") == ("o.onnx.2.data",)
    np.testing.assert_array_equal(run(other)[0], expected)
    np.testing.assert_array_equal(run(tmp_path / "twin.onnx")[0], noise(2, 64, seed=9) @ noise(64, 96))


def test_weights_of_the_input_are_never_the_output(tmp_path, capsys):
    path = stored(linear(), tmp_path / "m.onnx", "weights.onnx")
    before = listing(tmp_path)
    for write in (lambda p: save(load(path), p), lambda p: copy(path, p)):
        with pytest.raises(UserError, match=r"holds the weights of m\.onnx"):
            write(tmp_path / "weights.onnx")
    for flag in ("-o", "--json"):
        assert main([str(path), flag, str(tmp_path / "weights.onnx"), "--target", "roofline:a100"]) == 2
        assert "holds the weights of m.onnx" in capsys.readouterr().err
    assert listing(tmp_path) == before


def test_an_unknown_file_is_not_replaced_by_data(tmp_path):
    (tmp_path / "o.onnx.data").write_bytes(b"precious")
    assert data_path(tmp_path / "o.onnx", None).name == "o.onnx.1.data"
    save(load(stored(linear(), tmp_path / "m.onnx")), tmp_path / "o.onnx")
    assert (tmp_path / "o.onnx.data").read_bytes() == b"precious"


# Copying


def test_a_copy_does_not_take_the_place_of_other_data(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    source = stored(linear(), tmp_path / "in" / "m.onnx")
    other = stored(linear(seed=5), tmp_path / "out" / "other.onnx")
    before = listing(tmp_path / "out")
    with pytest.raises(UserError, match=r"another file of that name"):
        copy(source, tmp_path / "out" / "m.onnx")
    assert listing(tmp_path / "out") == before
    copy(other, tmp_path / "out" / "again.onnx")  # in one folder data are shared
    (tmp_path / "out" / "again.onnx").unlink()
    (tmp_path / "out" / "w.data").write_bytes((tmp_path / "in" / "w.data").read_bytes())
    copy(source, tmp_path / "out" / "m.onnx")  # the same data are no conflict
    np.testing.assert_array_equal(run(tmp_path / "out" / "m.onnx")[0], run(source)[0])


def test_a_copy_replaces_the_data_of_the_model_it_replaces_and_makes_folders(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    source = outside(linear(), tmp_path / "in" / "m.onnx", "sub/w.data")
    outside_other = tmp_path / "out" / "sub"
    outside_other.mkdir()
    outside(linear(seed=5), tmp_path / "out" / "m.onnx", "sub/w.data")
    copy(source, tmp_path / "out" / "m.onnx")
    np.testing.assert_array_equal(run(tmp_path / "out" / "m.onnx")[0], run(source)[0])
    (tmp_path / "new").mkdir()
    copy(source, tmp_path / "new" / "n.onnx")
    np.testing.assert_array_equal(run(tmp_path / "new" / "n.onnx")[0], run(source)[0])
    before = listing(tmp_path / "in")
    copy(source, source)
    assert listing(tmp_path / "in") == before


def test_the_original_is_copied_with_its_data_by_the_command(tmp_path):
    source = stored(linear(), tmp_path / "m.onnx")
    (tmp_path / "out").mkdir()
    result = xrlflow.optimize(source, method="original", target="roofline:a100")
    result.save(tmp_path / "out" / "m.onnx")
    assert (tmp_path / "out" / "m.onnx").read_bytes() == source.read_bytes()
    assert (tmp_path / "out" / "w.data").read_bytes() == (tmp_path / "w.data").read_bytes()


# Folding


def siblings(scale=True):
    """Two products of x; the second reads a scaled weight."""
    g = GraphBuilder()
    x = g.input("x", TensorType((2, 256), "float32"))
    a, b = (g.weight(noise(256, 256, seed=k), f"w{k}") for k in range(2))
    scaled = g.op("Mul", b, g.weight(np.array(0.5, np.float32), "half")) if scale else b
    joined = g.op("Concat", a, scaled, axis=1)
    return g.build({"y": g.op("MatMul", x, joined)})


def test_large_folded_weights_are_computed_when_they_are_loaded():
    graph = siblings()
    reads = []
    for digest, weight in list(graph.weights.items()):
        array = weight.load()
        graph.weights[digest] = Weight(
            weight.name, weight.type, digest, lambda a=array, n=weight.name: reads.append(n) or a, weight.value
        )
    folded = fold_constants(graph)
    weight = only_weight(folded)
    assert isinstance(weight.load, Folded) and weight.type.bytes >= LATE
    assert "w0" not in reads and "w1" not in reads
    expected = np.concatenate([noise(256, 256), noise(256, 256, seed=1) * np.float32(0.5)], 1)
    np.testing.assert_array_equal(weight.load(), expected)
    assert sorted(set(reads) - {"half"}) == ["w0", "w1"]


def test_what_is_folded_late_is_what_is_folded_at_once(monkeypatch):
    from xrlflow.lowering import folding

    g = GraphBuilder()
    x = g.input("x", TensorType((2, 256), "float32"))
    a, b = (g.weight(noise(256, 256, seed=k) * 100, f"w{k}") for k in range(2))
    product = g.op("MatMul", g.op("Add", g.op("Transpose", a, perm=(1, 0)), b), g.op("Exp", g.op("Neg", b)))
    parts = g.op("Split", product, axis=1, sizes=(100, 156))
    cut = g.op("Slice", g.get(parts, 1), axes=(0, 1), starts=(0, 10), ends=(256, 150))
    graph = g.build({"y": g.op("MatMul", x, cut), "z": g.op("MatMul", x, g.get(parts, 0))})
    late = {w.name: w for w in fold_constants(graph).weights.values()}
    monkeypatch.setattr(folding, "LATE", 1 << 40)
    at_once = list(fold_constants(graph).weights.values())
    assert len(late) == 1 or len(at_once) == 2
    for now, then in zip(at_once, fold_sorted(graph, monkeypatch), strict=True):
        assert isinstance(then.load, Folded) and not isinstance(now.load, Folded)
        np.testing.assert_array_equal(now.load(), then.load())


def fold_sorted(graph, monkeypatch):
    from xrlflow.lowering import folding

    monkeypatch.setattr(folding, "LATE", 1 << 12)
    return list(fold_constants(graph).weights.values())


def test_integers_that_may_fail_are_not_put_off():
    g = GraphBuilder()
    x = g.input("x", TensorType((20_000,), "int64"))
    zero = g.op("Div", g.weight(np.ones(20_000, np.int64)), g.weight(np.zeros(20_000, np.int64)))
    graph = fold_constants(g.build({"y": g.op("Add", x, zero)}))
    assert graph.count() == {"Add": 1, "Div": 1}


def test_digests_of_folded_weights_are_of_the_expression(other_process):
    assert other_process["digests"] == list(fold_constants(siblings()).weights)
    assert set(fold_constants(siblings()).weights).isdisjoint(fold_constants(siblings(scale=False)).weights)


def test_uniform_weights_stay_so_when_they_are_moved():
    g = GraphBuilder()
    x = g.input("x", TensorType((2, 512, 300), "float32"))
    filled = g.weight(uniform_weight(np.float32(3), (1, 600, 512), "u"))
    moved = g.op("Slice", g.op("Transpose", filled, perm=(0, 2, 1)), axes=(2,), starts=(0,), ends=(300,))
    graph = fold_constants(g.build({"y": g.op("Add", x, g.op("Reshape", moved, shape=(512, 300)))}))
    weight = only_weight(graph)
    assert isinstance(weight.load, Uniform) and weight.type.shape == (512, 300)
    assert to_onnx(graph).ByteSize() < 2000


# Growth


def shared(alive):
    """Three products of x that can be merged; with `alive` another operator keeps the second weight."""
    nodes = [helper.make_node("MatMul", ["x", n], [f"p{n}"]) for n in "abc"]
    outputs = [helper.make_tensor_value_info(f"p{n}", F32, [2, 256]) for n in "abc"]
    if alive:
        nodes.append(helper.make_node("Gather", ["b", "i"], ["r"], axis=0))
        outputs.append(helper.make_tensor_value_info("r", F32, [3, 256]))
    weights = [numpy_helper.from_array(noise(64, 256, seed=k), n) for k, n in enumerate("abc")]
    inputs = [X, helper.make_tensor_value_info("i", TensorProto.INT64, [3])][: 1 + alive]
    return model(nodes, weights, inputs, outputs)


def initializer_bytes(path):
    return sum(numpy_helper.to_array(t).nbytes for t in onnx.load(path).graph.initializer)


OPTIONS = {"target": "roofline:a100", "max_steps": 300}


@pytest.mark.parametrize(("method", "extractor"), [*((m, "climb") for m in METHODS), ("saturation", "tree")])
def test_no_extractor_lets_the_weights_grow_beyond_the_limit(tmp_path, method, extractor):
    out, original = tmp_path / "o.onnx", 3 * 64 * 256 * 4
    options = {**OPTIONS, "method": method, "extractor": extractor}
    result = xrlflow.optimize(shared(alive=True), **options)
    result.save(out)
    assert initializer_bytes(out) <= 1.05 * original + 1e4
    assert {n.op_type for n in onnx.load(out).graph.node} >= {"MatMul", "Gather"}


def test_with_more_room_the_merge_is_taken_and_without_the_other_reader_it_costs_none(tmp_path):
    out, original = tmp_path / "o.onnx", 3 * 64 * 256 * 4
    for alive, growth in ((True, 2.0), (False, 1.0)):
        result = xrlflow.optimize(shared(alive), method="saturation", max_weight_growth=growth, **OPTIONS)
        result.save(out)
        assert result.improved
        assert sum(n.op_type == "MatMul" for n in onnx.load(out).graph.node) == 1
        assert initializer_bytes(out) <= growth * original + 1e4
        assert (initializer_bytes(out) > 1.2 * original) == alive
        assert result.cost.space.weight_bytes(result.extraction.selection) == pytest.approx(
            initializer_bytes(out), abs=1000
        )


def test_a_weight_that_takes_no_room_in_the_file_may_not_begin_to(tmp_path):
    fill = helper.make_node("ConstantOfShape", ["s"], ["b"], value=numpy_helper.from_array(np.array([0.5], np.float32)))
    proto = shared(alive=False)
    del proto.graph.initializer[1]
    proto.graph.initializer.append(numpy_helper.from_array(np.array([64, 256]), "s"))
    proto.graph.node.insert(0, fill)
    for growth, products in ((1.05, 3), (2.0, 1)):
        result = xrlflow.optimize(proto, method="saturation", max_weight_growth=growth, **OPTIONS)
        result.save(tmp_path / "o.onnx")
        assert sum(n.op_type == "MatMul" for n in onnx.load(tmp_path / "o.onnx").graph.node) == products
        assert initializer_bytes(tmp_path / "o.onnx") <= growth * 2 * 64 * 256 * 4 + 1e4


def test_a_weight_that_two_operators_read_counts_once():
    nodes = [helper.make_node("MatMul", ["x", "a"], ["p"]), helper.make_node("MatMul", ["z", "a"], ["y"])]
    z = helper.make_tensor_value_info("z", F32, [3, 64])
    p = helper.make_tensor_value_info("p", F32, [2, 256])
    proto = model(nodes, [numpy_helper.from_array(noise(64, 256), "a")], [X, z], [p, Y])
    assert load(proto).weight_bytes == 64 * 256 * 4
    space = xrlflow.saturate(load(proto))
    assert space.weight_bytes(space.original) == 64 * 256 * 4


# Models that are too large for memory go through files


def test_a_model_with_external_data_goes_through_the_pipeline_by_files(tmp_path):
    weights = [numpy_helper.from_array(noise(64, 256, seed=k), n) for k, n in enumerate("abc")]
    nodes = [helper.make_node("MatMul", ["x", n], [f"p{n}"]) for n in "abc"]
    outputs = [helper.make_tensor_value_info(f"p{n}", F32, [2, 256]) for n in "abc"]
    path = stored(model(nodes, weights, outputs=outputs), tmp_path / "m.onnx")
    expected = run(path)
    result = xrlflow.optimize(path, method="saturation", **OPTIONS)
    assert result.improved and result.model is None and result.verification.passed
    result.save(path)  # over its input
    assert locations(path) == ("m.onnx.data",)
    for a, b in zip(run(path), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    result.save(tmp_path / "again.onnx")  # the graph still reads what it was made from
    assert (tmp_path / "again.onnx.data").read_bytes() == (tmp_path / "m.onnx.data").read_bytes()


def test_onnx_runtime_s_program_is_the_same_wherever_the_weights_lie(tmp_path, monkeypatch):
    from xrlflow.lowering.ort_session import optimised_digest

    (tmp_path / "in.onnx").write_bytes(inline().SerializeToString())
    inside, outside_ = str(tmp_path / "in.onnx"), str(stored(inline(), tmp_path / "out.onnx"))
    digest = optimised_digest(inside)
    assert optimised_digest(outside_) == digest
    monkeypatch.setattr(onnx_files, "RESIDENT", 1)  # as for large models
    assert optimised_digest(inside) == digest
    (tmp_path / "w.data").write_bytes((tmp_path / "w.data").read_bytes()[::-1])
    assert optimised_digest(outside_) != digest


def test_saving_from_two_threads_gives_two_whole_models(tmp_path):
    graph = load(stored(linear(), tmp_path / "m.onnx"))
    threads = [threading.Thread(target=save, args=(graph, tmp_path / f"o{k}.onnx")) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len({run(tmp_path / f"o{k}.onnx")[0].tobytes() for k in range(4)}) == 1
