"""What a run found is written again from its record alone, byte by byte, and for no model but its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import xrlflow
from xrlflow.egraph.dimension import Least, symbol
from xrlflow.egraph.graph import Graph, GraphBuilder, TensorType
from xrlflow.egraph.record import NotRecorded, record, restore
from xrlflow.errors import UserError
from xrlflow.options import Options
from xrlflow.replay import replay
from xrlflow.zoo import build

MODELS: dict[str, dict[str, Any]] = {
    "bert-tiny": {}, "squeezenet-tiny": {}, "nasrnn-tiny": {}, "transducer-tiny": {}, "llama-tiny": {"tokens": "n"},
    "inception-v3-tiny": {}, "t5-tiny": {},
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> str:
    onnx.save(build("bert-tiny"), tmp_path / "model.onnx")
    return str(tmp_path / "model.onnx")


def run(model: str, folder: Path, *words: str, seed: str = "0") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xrlflow.extract", model, *words], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONHASHSEED": seed, "XRLFLOW_CACHE": str(folder / "cache")}, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_program_survives_as_plain_data(name: str) -> None:
    graph = xrlflow.load(build(name, **MODELS[name]))
    space = xrlflow.saturate(graph)
    found = xrlflow.extract(space, "climb", steps=400)
    program = space.to_graph(found.selection)
    assert found.selection != space.original
    again = restore(json.loads(json.dumps(record(program, graph))), graph)
    assert again == program and [n.names for n in again.nodes] == [n.names for n in program.nodes]
    assert again.weights.keys() == {str(n.attrs["digest"]) for n in program.nodes if n.op == "Weight"}


def test_numbers_and_dimensions_of_all_kinds_survive() -> None:
    g = GraphBuilder()
    n = symbol("n")
    x = g.input("x", TensorType((n, (3 * n + 1) // 2, 8), "float32"))
    y = g.op("Clip", x, min=float("-inf"), max=0.1)
    z = g.op("Reshape", y, shape=(n, (3 * n + 1) // 2, 4, 2))
    graph = g.build({"z": z, "again": z})
    nan = g.weight(np.array([np.nan, np.inf, -0.0], np.float32))
    made = g.build({"z": g.op("Mul", z, g.weight(np.array(1 / 3, np.float64).astype(np.float32))), "again": nan})
    for program in (graph, made):
        assert restore(json.loads(json.dumps(record(program, graph))), graph).nodes == program.nodes
    assert str(Least(n, 3)) == "min(n,3)"


def test_the_same_bytes_in_another_process_and_after_measuring(model: str, tmp_path: Path) -> None:
    first = run(model, tmp_path, "-o", "a.onnx", "--target", "roofline:h200", "--budget", "20", "--json", "a.json")
    assert first.returncode == 0, first.stderr
    again = run(model, tmp_path, "-o", "b.onnx", "--replay", "a.json", seed="7")
    assert again.returncode == 0, again.stderr
    assert "verification passed" in again.stdout and "replayed from a.json" in again.stdout
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert (tmp_path / "a.onnx").read_bytes() != Path(model).read_bytes()
    text = (tmp_path / "a.json").read_text()
    assert str(tmp_path) not in text


def test_what_was_specialised_and_converted_is_so_again(tmp_path: Path) -> None:
    onnx.save(build("llama-tiny", tokens="n"), tmp_path / "m.onnx")
    words = ["--shape", "n=8", "--opset", "20", "--target", "roofline:a100", "--max-steps", "200"]
    assert run("m.onnx", tmp_path, "-o", "a.onnx", "--json", "a.json", *words).returncode == 0
    done = run("m.onnx", tmp_path, "-o", "b.onnx", "--replay", "a.json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert onnx.load(tmp_path / "b.onnx").opset_import[0].version == 20


def test_where_the_original_was_returned_it_is_again(model: str, tmp_path: Path) -> None:
    assert run(model, tmp_path, "--method", "original", "--target", "roofline:h200", "--json", "a.json").returncode == 0
    done = run(model, tmp_path, "-o", "b.onnx", "--replay", "a.json")
    assert done.returncode == 0 and "returned the original" in done.stdout
    assert (tmp_path / "b.onnx").read_bytes() == Path(model).read_bytes()


def recorded(model: str, folder: Path) -> dict[str, Any]:
    result = xrlflow.optimize(model, target="roofline:h200", max_steps=200, method="saturation")
    result.save_report(folder / "run.json")
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    assert found["replay"]["program"]["nodes"]
    return found


def test_another_model_is_refused(model: str, tmp_path: Path) -> None:
    recorded(model, tmp_path)
    onnx.save(build("bert-tiny", seed=1), tmp_path / "other.onnx")
    for path in (tmp_path / "other.onnx",):
        with pytest.raises(UserError, match=r"run\.json: no record of this model"):
            replay(path, tmp_path / "run.json", Options())


def test_a_record_that_was_tampered_with_is_refused_or_fails_verification(model: str, tmp_path: Path) -> None:
    data = recorded(model, tmp_path)
    program = data["replay"]["program"]
    broken: list[Any] = [
        {**program, "version": 9}, {**program, "nodes": program["nodes"][:-1]}, {**program, "outputs": [10**6]},
        {**program, "output_names": ["other"]}, {**program, "nodes": [["Relu", [5], [], ["float32", [1]], []]]}, [], 3,
        {**program, "nodes": [[*n[:1], [-1], *n[2:]] if n[1] else n for n in program["nodes"]]},
    ]  # fmt: skip
    for bad in broken:
        (tmp_path / "bad.json").write_text(json.dumps({**data, "replay": {**data["replay"], "program": bad}}))
        with pytest.raises(UserError, match=r"bad\.json"):
            replay(model, tmp_path / "bad.json", Options())
    swapped = [["Neg", *n[1:]] if n[0] in ("Relu", "Erf", "Gelu", "Tanh") else n for n in program["nodes"]]
    assert swapped != program["nodes"]
    wrong = {**data, "replay": {**data["replay"], "program": {**program, "nodes": swapped}}}
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    result = replay(model, tmp_path / "wrong.json", Options())
    assert not result.improved and result.exit_code == 3


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"replay": 1, "target": "llvm"}', '{"target": "llvm"}'])
def test_what_is_no_record_is_one_line_and_exit_code_2(text: str, model: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    done = run(model, tmp_path, "-o", "out.onnx", "--replay", "run.json")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "run.json" in done.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_constants_that_rules_made_are_kept_and_must_be_whole() -> None:
    graph: Graph = xrlflow.load(build("inception-v3-tiny"))
    space = xrlflow.saturate(graph)
    data = record(space.to_graph(xrlflow.extract(space, "climb", steps=400).selection), graph)
    assert data["constants"]
    first = next(iter(data["constants"]))
    data["constants"][first]["shape"] = [7, *data["constants"][first]["shape"]]
    with pytest.raises(NotRecorded, match="reshape"):
        restore(data, graph)
