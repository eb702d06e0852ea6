"""Extraction from e-graphs that others made: `python -m xrlflow.extract egraph.json`."""

from __future__ import annotations

import os
import time
from dataclasses import fields
from typing import Any

import numpy as np

from .account import extraction_record, proof
from .errors import UserError
from .options import Options
from .result import name_of, versions

SCHEMA = "xrlflow/egraph/1"

MEANT = ("method", "extractor", "budget", "max_steps", "seed")
"""The options that an e-graph file has a use for."""


def extract_egraph(path: str | os.PathLike[str], options: Options) -> dict[str, Any]:
    """Choose one node of each needed class of the e-graph in an egraph-serialize JSON file, by the costs in the file.

    Returns the record: `cost` (original: null, for there is none; optimized; lower_bound, null where nothing was
    proved), `choices` (class id → node id), `extraction`, and what was asked for. Raises `UserError` for a file that is
    malformed and for options that concern models.
    """
    from .cost.base import Cost
    from .egraph.serialized import read_egraph
    from .policy.base import Budget, extractor

    options.check()
    if options.method == "rl":
        raise UserError("method rl is for models: its policy looks at tensors, which an e-graph file has not")
    told = [f.name for f in fields(Options) if f.name not in MEANT and getattr(options, f.name) != f.default]
    if told:
        flags = ", ".join("no-verify" if name == "verify" else name.replace("_", "-") for name in told)
        raise UserError(f"{flags}: only for models; an e-graph file has its own costs, and nothing of it is run")
    name = options.classical if options.method in ("auto", "saturation") else options.method
    start = time.monotonic()
    source = read_egraph(path)
    loaded = time.monotonic()
    cost = Cost(source.space, source.costs, "file")
    budget = Budget(
        max(0.0, options.budget - (loaded - start)) if options.max_steps is None else None, options.max_steps
    )
    found = extractor(name).extract(source.space, cost, budget, np.random.default_rng(options.seed))
    done = time.monotonic()
    spent = {"load": loaded - start, "extract": done - loaded, "total": done - start}
    return {
        "schema": SCHEMA,
        "model": name_of(path),
        "method": options.method,
        "seed": options.seed,
        "versions": versions(),
        "egraph": {"classes": source.space.n_classes, "enodes": source.space.n_nodes},
        "cost": {"original": None, "optimized": found.cost, "lower_bound": found.extras.get("lower_bound")},
        "choices": source.choices(found.selection),
        "extraction": extraction_record(found),
        "seconds": spent,
    }


def summary(record: dict[str, Any]) -> str:
    """The record in words."""
    cost, graph, how = record["cost"], record["egraph"], record["extraction"]
    lines = [f"{record['model']}: {graph['enodes']} e-nodes in {graph['classes']} classes"]
    lines.append(
        f"{how['extractor']}: cost {cost['optimized']:.10g} ({how['stop_reason']}), {len(record['choices'])} classes, "
        f"{record['seconds']['extract']:.2f} s"
    )
    return "\n".join([*lines, *filter(None, [proof(how)])])
