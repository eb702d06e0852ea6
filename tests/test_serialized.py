"""E-graphs in the egraph-serialize format are read as search spaces that every classical extractor works on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xrlflow.cost.base import Cost
from xrlflow.egraph.serialized import read_egraph
from xrlflow.errors import UserError
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


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_egraph(tmp_path / "none.json")
