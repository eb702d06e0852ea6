"""Damaged model files end in a right file or in one clear line: no crash, hang, traceback or wrong file."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from xrlflow.errors import UserError
from xrlflow.extract import main
from xrlflow.lowering import load

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
F = TensorProto.FLOAT


def script(name: str) -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))  # scripts import their neighbours
    try:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


def test_two_thousand_mutants_end_well() -> None:
    fuzz_files = script("fuzz_files")
    outcomes, failures = fuzz_files.fuzz(2000, seed=0, quick=True)
    assert not failures
    assert sum(outcomes.values()) == 2000
    # Both ways of ending well are common, and every refusal names its reason: none is a surprise turned into a line.
    share = {word: sum(n for text, n in outcomes.items() if word in text) for word in ("refused", "runs", "improved")}
    assert share["refused"] > 500 and share["runs"] > 200 and share["improved"] > 5
    assert not [text for text in outcomes if "could not be read" in text]


def test_a_worker_that_dies_is_noticed_and_replaced() -> None:
    worker = script("fuzz_files").Worker(0, True)
    try:
        assert "outcome" in worker.ask(0)
        worker.process.kill()
        assert "killed by signal 9" in worker.ask(1)["failure"]
        assert "outcome" in worker.ask(1)
    finally:
        worker.close()


def test_a_wrong_file_is_noticed(tmp_path: Path) -> None:
    fuzz_files, model = script("fuzz_files"), script("mutants").seeds()["convolutional"]
    source, good, wrong, invalid = (tmp_path / f"{name}.onnx" for name in ("in", "good", "wrong", "invalid"))
    source.write_bytes(model.SerializeToString())
    good.write_bytes(model.SerializeToString())
    assert fuzz_files.judge(source, [good], print) == "runs"
    other = onnx.load(source)
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w"))
    wrong.write_bytes(other.SerializeToString())
    with pytest.raises(fuzz_files.Wrong, match="other outputs"):
        fuzz_files.judge(source, [good, wrong], print)
    del other.graph.node[0].input[:]
    invalid.write_bytes(other.SerializeToString())
    with pytest.raises(fuzz_files.Wrong, match="not valid"):
        fuzz_files.judge(source, [invalid], print)


def test_seeds_are_valid_and_mutants_are_the_same_again() -> None:
    mutants = script("mutants")
    for name, model in mutants.seeds().items():
        if name not in ("external", "sparse"):  # data beside the file; types that shape inference does not have
            onnx.checker.check_model(model, full_check=True)
    assert [mutants.mutant(n, 3) for n in range(50)] == [mutants.mutant(n, 3) for n in range(50)]


# Damage that is aimed


def command(model: onnx.ModelProto | bytes, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command on a model that it must refuse; returns what it says."""
    source, out = folder / "in.onnx", folder / "out.onnx"
    data = model if isinstance(model, bytes) else model.SerializeToString()
    source.write_bytes(data)
    before = sorted(os.listdir(folder))
    options = ["--target", "roofline:epyc-1t", "--method", "saturation", "--max-steps", "20"]
    assert main([str(source), "-o", str(out), *options]) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1 and "Traceback" not in said.err
    assert sorted(os.listdir(folder)) == before and source.read_bytes() == data
    return said.err


def accepted(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Run the command on a model that it must let through; returns what it writes."""
    source, out = folder / "in.onnx", folder / "out.onnx"
    source.write_bytes(model.SerializeToString())
    options = ["--target", "roofline:epyc-1t", "--method", "saturation", "--max-steps", "20", "--quiet"]
    assert main([str(source), "-o", str(out), *options]) == 0
    return onnx.load(out)


def value(name: str, *shape: int | str, dtype: int = F) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def ints(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def model_of(*nodes: onnx.NodeProto, weights: tuple[TensorProto, ...] = (), **fields: object) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "g", [value("x", 2, 3)], [value("y", 2, 3)], list(weights))
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("my", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9, **fields)


RELU = helper.make_node("Relu", ["x"], ["y"], "relu")
HUGE = 10**18


@pytest.mark.parametrize(
    "location",
    ["/etc/passwd", "../secret.bin", "fifo", "/dev/zero", "", ".", "link", "none.bin", "folder/../../secret.bin"],
)
def test_external_data_outside_the_folder_or_of_no_regular_file_is_refused(
    location: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"\0" * 24)
    os.mkfifo(folder / "fifo")
    (folder / "link").symlink_to(tmp_path / "secret.bin")
    (folder / "folder").mkdir()
    weight = TensorProto(name="w", data_type=F, dims=[2, 3], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=location)
    said = command(model_of(helper.make_node("Add", ["x", "w"], ["y"]), weights=(weight,)), folder, capsys)
    assert "'w'" in said


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("ConstantOfShape", ["huge"], ["y"]),
        helper.make_node("Expand", ["x", "huge"], ["y"]),
        helper.make_node("Tile", ["x", "huge"], ["y"]),
        helper.make_node("Reshape", ["x", "huge"], ["y"]),
        helper.make_node("Pad", ["x", "pads"], ["y"]),
        helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[HUGE], pads=[HUGE, HUGE], strides=[1]),
        helper.make_node("Slice", ["x", "zero", "most", "one"], ["y"]),
        helper.make_node("Split", ["x"], ["y"], num_outputs=HUGE),
        helper.make_node("Unsqueeze", ["x", "huge"], ["y"]),
        helper.make_node("Concat", ["x"] * 200, ["y"], axis=HUGE),
        helper.make_node("Transpose", ["x"], ["y"], perm=[HUGE, -HUGE]),
        helper.make_node("Range", ["start", "end", "step"], ["y"]),
        helper.make_node("OneHot", ["zero", "deep", "x"], ["y"]),
    ],
    ids=lambda n: n.op_type,
)
def test_huge_numbers_take_neither_memory_nor_time(node: onnx.NodeProto, tmp_path: Path) -> None:
    scalars = [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in (("start", 0), ("end", HUGE), ("step", 1))]
    weights = [ints("huge", HUGE, HUGE), ints("pads", HUGE, 0, 0, HUGE), ints("zero", 0), ints("one", 1)]
    weights += [ints("most", 2**63 - 1), ints("deep", HUGE), *scalars]
    model = model_of(node, weights=tuple(weights))
    # that slice is all of x, and rules know it
    written = "Identity" if node.op_type == "Slice" else node.op_type
    assert accepted(model, tmp_path).graph.node[0].op_type == written


def test_functions_that_call_themselves_or_nothing_are_kept(tmp_path: Path) -> None:
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("my", 1)]
    call = helper.make_node("F", ["x"], ["y"], domain="my")

    def function(name: str, body: str) -> onnx.FunctionProto:
        return helper.make_function(
            "my", name, ["a"], ["b"], [helper.make_node(body, ["a"], ["b"], domain="my")], imports
        )

    recursive = [function("F", "F")], [function("F", "G"), function("G", "F")]
    for functions in (*recursive, [function("F", "Missing")]):
        kept = accepted(model_of(call, functions=functions), tmp_path)
        assert [n.op_type for n in kept.graph.node] == ["F"]
        assert list(kept.functions) == functions


def length_delimited(field: int, data: bytes) -> bytes:
    size, n = b"", len(data)
    while n > 127:
        size, n = size + bytes([n & 127 | 128]), n >> 7
    return bytes([field << 3 | 2]) + size + bytes([n]) + data


HEADER = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'


def test_bodies_nested_a_thousand_deep_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = b""
    for _ in range(1000):
        attribute = length_delimited(1, b"then_branch") + length_delimited(6, body) + bytes([20 << 3 | 0, 1, 5])
        node = length_delimited(2, b"y") + length_delimited(4, b"If") + length_delimited(5, attribute)
        body = length_delimited(1, node)
    model = model_of()
    model.ClearField("graph")
    graph = body + length_delimited(12, value("y", 2, 3).SerializeToString())
    command(model.SerializeToString() + length_delimited(7, graph), tmp_path, capsys)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"PK\x03\x04" + b"\0" * 200, "zip archive"),
        (b"\x80\x02}q\x00." * 20, "pickle"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 200, "HDF5"),
        (b"\x1c\0\0\0TFL3" + b"\0" * 200, "TensorFlow Lite"),
        (len(HEADER).to_bytes(8, "little") + HEADER + b"\0" * 8, "safetensors"),
        (b"# Weights\n\nof my model\n" * 10, "text file"),
        (b"\x93NUMPY\x01\0" + b"v" * 100, "numpy"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"", "empty"),
    ],
    ids=lambda a: a if isinstance(a, str) else "",
)
def test_other_kinds_of_files_are_said_to_be_what_they_seem(
    data: bytes, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = command(data, tmp_path, capsys)
    assert word in said and str(tmp_path / "in.onnx") in said


def test_names_that_are_no_text_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = model_of(RELU).SerializeToString().replace(b"Relu", b"R\xff\xfeu")
    assert "UTF-8" in command(data, tmp_path, capsys)


def test_messages_name_the_node_and_the_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost = model_of(helper.make_node("Relu", ["h"], ["y"], "second"))
    said = command(lost, tmp_path, capsys)
    assert "second" in said and "Relu" in said and "'h'" in said
    loop = model_of(helper.make_node("Add", ["x", "y"], ["h"], "a"), helper.make_node("Relu", ["h"], ["y"], "b"))
    assert "cycle" in command(loop, tmp_path, capsys)
    short = ints("w", 1, 2)
    short.raw_data = short.raw_data[:-1]
    assert "'w'" in command(model_of(helper.make_node("Add", ["x", "w"], ["y"]), weights=(short,)), tmp_path, capsys)


def test_what_nobody_foresaw_is_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from xrlflow.lowering import onnx_reader

    for error, word in ((KeyError("k"), "KeyError"), (RecursionError(), "nested"), (MemoryError(), "memory")):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(onnx_reader._Reader, "_opaque", fail)
        said = command(model_of(helper.make_node("Celu", ["x"], ["y"], "bound")), tmp_path, capsys)
        assert word in said and "in.onnx could not be read" in said
        if word == "KeyError":
            assert "'bound'" in said and "--debug" in said
    monkeypatch.undo()
    with pytest.raises(UserError, match="is no model"):
        load(3)


@pytest.mark.parametrize("special", [np.nan, -np.inf, np.inf, 3e38, 1e-45])
def test_special_numbers_in_weights_are_legal(special: float, tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.array([0, special, 1], np.float32), "w")
    nodes = (helper.make_node("Add", ["x", "w"], ["h"]), helper.make_node("Softmax", ["h"], ["y"]))
    assert len(accepted(model_of(*nodes, weights=(weight,)), tmp_path).graph.node) == 2


def test_zero_size_dimensions_are_legal(tmp_path: Path) -> None:
    join = helper.make_node("Concat", ["x", "none"], ["c"], axis=0)
    turn = helper.make_node("Transpose", ["c"], ["y"], perm=[1, 0])
    graph = helper.make_graph(
        [join, turn],
        "g", [value("x", 0, 3)], [value("y", 3, 0)], [numpy_helper.from_array(np.zeros((0, 3), np.float32), "none")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(accepted(model, tmp_path), full_check=True)
