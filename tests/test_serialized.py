"""E-graphs in the egraph-serialize format are read as search spaces that every classical extractor works on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xrlflow import zoo
from xrlflow.cost.base import Cost
from xrlflow.egraph.serialized import read_egraph
from xrlflow.errors import UserError
from xrlflow.extract import main
from xrlflow.policy.base import Budget, extractor


def node(op: str, eclass: str, cost: float, *children: str) -> dict[str, Any]:
    return {"op": op, "eclass": eclass, "cost": cost, "children": list(children)}


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """f and g each look cheaper without h, but h serves both; and one e-node that needs its own class."""
    nodes = {
        "root": node("pair", "r", 0, "f1", "g1"),
        "f1": node("f", "f", 5),
        "f2": node("f'", "f", 1, "h"),
        "g1": node("g", "g", 5),
        "g2": node("g'", "g", 1, "h"),
        "g3": node("id", "g", 0, "g1"),
        "h": node("h", "h", 6),
    }
    path = tmp_path / "shared.json"
    path.write_text(json.dumps({"nodes": nodes, "root_eclasses": ["r"]}))
    return path


def test_the_space_holds_what_the_file_holds(shared: Path) -> None:
    space, costs, *_ = read_egraph(shared)
    assert (space.n_nodes, space.n_classes) == (7, 4)
    assert costs.sum() == 18
    assert [space.ops[i] for i in space.selected(space.original)] == ["g", "f", "pair"]


def test_climbing_finds_the_shared_subterm_that_trees_miss(shared: Path) -> None:
    space, costs, *_ = read_egraph(shared)
    cost = Cost(space, costs, "file", growth_limit=1.0)
    budget = Budget(steps=200)
    tree, climb = (extractor(n).extract(space, cost, budget, np.random.default_rng(0)) for n in ("tree", "climb"))
    assert tree.cost == 10
    assert climb.cost == 8


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nodes": {"a": {}}, "root_eclasses": []}', '{"nodes": 3}'])
def test_other_files_are_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(UserError, match="is no egraph-serialize JSON"):
        read_egraph(path)


LEAF = node("x", "c", 1)


@pytest.mark.parametrize(
    ("nodes", "roots", "message"),
    [
        ({"a": node("f", "r", 1, "gone"), "b": LEAF}, ["r"], "node 'a' has child 'gone', which is not there"),
        ({"a": node("f", "r", 1, "b"), "b": {**LEAF, "subsumed": True}}, ["r"], "child 'b', which is subsumed"),
        ({"a": LEAF}, [], '"root_eclasses" names no class'),
        ({"a": LEAF}, None, '"root_eclasses" names no class'),
        ({"a": LEAF}, ["r"], "root class 'r' has no node"),
        ({"a": node("f", "r", 1, "a")}, ["r"], "root class 'r' has no finite term"),
        ({"a": {**LEAF, "cost": float("nan")}}, ["c"], "node 'a': its cost is nan"),
        ({"a": {**LEAF, "cost": float("inf")}}, ["c"], "node 'a': its cost is inf"),
        ({"a": {**LEAF, "cost": -1}}, ["c"], "node 'a': its cost is -1"),
        ({"a": {**LEAF, "cost": "dear"}}, ["c"], "node 'a': its cost is 'dear'"),
        ({"a": {**LEAF, "cost": True}}, ["c"], "node 'a': its cost is True"),
        ({"a": {**LEAF, "children": "b"}}, ["c"], "node 'a': \"children\" is no list"),
        ({"a": {"op": "f"}}, ["c"], "node 'a' is no object with"),
        ({"a": 3}, ["c"], "node 'a' is no object with"),
    ],
)
def test_malformed_egraphs_are_refused_naming_the_place(
    tmp_path: Path, nodes: dict[str, Any], roots: list[str] | None, message: str
) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({"nodes": nodes, "root_eclasses": roots}))
    with pytest.raises(UserError) as caught:
        read_egraph(path)
    assert str(caught.value).startswith("bad.json: is no egraph-serialize JSON: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_subsumed_nodes_are_not_chosen(tmp_path: Path) -> None:
    nodes = {"dear": node("f", "r", 5), "cheap": {**node("g", "r", 1), "subsumed": True}}
    path = tmp_path / "subsumed.json"
    path.write_text(json.dumps({"nodes": nodes, "root_eclasses": ["r"]}))
    assert read_egraph(path).nodes == ("dear",)


def test_the_command_line_extracts_and_writes_the_choices(shared: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out.json"
    arguments = [
        str(shared),
        "--method",
        "saturation",
        "--extractor",
        "climb",
        "--max-steps",
        "500",
        "--json",
        str(out),
    ]
    assert main(arguments) == 0
    record = json.loads(out.read_text())
    assert record["cost"] == {"original": None, "optimized": 8.0, "lower_bound": None}
    assert record["choices"] == {"r": "root", "f": "f2", "g": "g2", "h": "h"}
    assert "climb: cost 8" in capsys.readouterr().out


def test_the_command_line_proves_by_default(shared: Path, tmp_path: Path, capfd: Any) -> None:
    out = tmp_path / "out.json"
    assert main([str(shared), "--budget", "20", "--json", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["cost"] == {"original": None, "optimized": 8.0, "lower_bound": 8.0}
    text = capfd.readouterr().out
    assert "proved: no program of the e-graph is cheaper" in text
    assert "HiGHS" not in text, "the solver's banner"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-o", "out.onnx"], "-o is for models"),
        (["--method", "rl"], "method rl is for models"),
        (["--target", "llvm"], "target: only for models"),
        (["--max-weight-growth", "2", "--no-verify"], "max-weight-growth, no-verify: only for models"),
        (["--shape", "batch=1", "--inputs", "x.npz"], "inputs, shape: only for models"),
        (["--method", "saturation", "--extractor", "best"], "unknown extractor 'best'"),
    ],
)
def test_options_for_models_are_refused(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, flags: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(shared), *flags]) == 2
    assert message in capsys.readouterr().err


def test_an_egraph_that_nothing_is_searched_in_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: Any
) -> None:
    model, ours, out = tmp_path / "m.onnx", tmp_path / "ours.json", tmp_path / "out.onnx"
    model.write_bytes(zoo.build("bert-tiny").SerializeToString())
    assert main([str(model), "--method", "original", "--save-egraph", str(ours), "-o", str(out)]) == 2
    assert "there is no e-graph to write" in capsys.readouterr().err
    assert not ours.exists()
    assert not out.exists()


def test_an_egraph_of_ours_is_written_and_extracted_from(tmp_path: Path, capsys: Any) -> None:
    """What others would extract from our e-graph is what we extract from it."""
    model, ours, back = tmp_path / "m.onnx", tmp_path / "ours.json", tmp_path / "back.json"
    model.write_bytes(zoo.build("bert-tiny").SerializeToString())
    target = ["--target", "roofline:a100", "--max-steps", "3000"]
    assert main([str(model), *target, "--method", "saturation", "--max-weight-growth", "9", "--save-egraph", str(ours),
                 "--json", str(tmp_path / "run.json")]) == 0  # fmt: skip
    assert main([str(ours), "--max-steps", "3000", "--json", str(back)]) == 0
    run, again = (json.loads(p.read_text()) for p in (tmp_path / "run.json", back))
    assert again["extraction"]["proof"] == run["extraction"]["proof"] == "optimal"
    assert again["cost"]["optimized"] == pytest.approx(run["cost"]["optimized"])


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_egraph(tmp_path / "none.json")
