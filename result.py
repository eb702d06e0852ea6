"""What a run returns: the graph to use, whether it is the original, and the account of how it came about."""

from __future__ import annotations

import html
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import misses
from .account import Substitution, as_json, extraction_record, proof, rule_account
from .errors import UserError

if TYPE_CHECKING:
    from .cost.base import Cost
    from .cost.verdict import Verdict
    from .egraph.graph import Graph
    from .egraph.space import SearchSpace
    from .lowering.verification import Verification
    from .options import Options
    from .policy.base import Extraction

SCHEMA = "xrlflow/run/1"


@dataclass
class Result:
    """Outcome of `optimize`.

    graph: the graph to use, the original's own where nothing better was found (`improved` tells). model: the ONNX
    model of an improved graph, None where its weights are large or in a data file (`save` writes it then), and None for
    the original. predicted: cost before and after in ms under the cost model. verdict: the
    end-to-end measurement. guilty: rules that a failed verification named. exit_code: 0, or 3 when verification failed.
    """

    graph: Graph
    source: Any
    target: str
    options: Options
    model: Any = None
    improved: bool = False
    outcome: str = ""
    exit_code: int = 0
    space: SearchSpace | None = None
    cost: Cost | None = None
    extraction: Extraction | None = None
    considered: list[dict[str, Any]] = field(default_factory=list)
    predicted: tuple[float, float] | None = None
    substitutions: list[Substitution] = field(default_factory=list)
    verification: Verification | None = None
    verdict: Verdict | None = None
    points: list[tuple[dict[str, int], Verdict]] = field(default_factory=list)
    """Each measuring point of a dynamic model with its verdict; `verdict` is the one that counts."""
    guilty: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    output: str | None = None
    original: Graph | None = None

    def __post_init__(self) -> None:
        self.original = self.graph

    def stop(self, outcome: str, exit_code: int = 0) -> None:
        """The original it is, for this reason."""
        self.outcome, self.exit_code = outcome, exit_code

    def accept(self, graph: Graph, model: Any) -> None:
        """The candidate replaces the original."""
        self.graph, self.model, self.improved = graph, model, True
        self.outcome = "measured faster" if self.verdict else "predicted cheaper"
        if self.verification is None or not self.verification.passed:
            self.outcome += ", unverified"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model: the improved one, or a byte copy of the input. The file appears whole or not at all.

        An input that was specialised or converted to another opset is written so. Raises `UserError` when the path
        cannot be written.
        """
        from .lowering.onnx_files import copy, save

        if Path(path).suffix == ".relay":
            self._save_relay(Path(path))
        elif self.improved or getattr(self.graph.source, "altered", False):
            save(self.graph, path)
        elif isinstance(self.source, (str, os.PathLike)):
            copy(self.source, path)
        elif isinstance(self.source, bytes):
            write_file(path, self.source)
        elif hasattr(self.source, "SerializeToString"):
            write_file(path, self.source.SerializeToString(deterministic=True))
        else:
            save(self.graph, path)
        self.output = os.path.basename(os.fspath(path))

    def _save_relay(self, path: Path) -> None:
        """Write Relay text, and its parameters beside it as NAME.params."""
        from .lowering.relay import RelaySource, checked

        params = self.options.params
        untouched = not self.improved and isinstance(self.graph.source, RelaySource)
        if untouched and isinstance(self.source, (str, os.PathLike)) and not isinstance(params, Mapping):
            text = Path(self.source).read_bytes()
            arrays = b"" if params is None else Path(params).read_bytes()
        else:
            text, arrays = checked(self.graph)
        if arrays:
            check_writable(path)
            write_file(path.with_suffix(".params"), arrays)
        write_file(path, text)

    @property
    def converted_from(self) -> int | None:
        """The opset that the model had, if it was converted to another one."""
        return getattr(self.graph.source, "converted_from", None)

    @property
    def misses(self) -> list[misses.NearMiss]:
        """Where rules almost fired, those with the most at stake first; of a run with `explain_misses`."""
        if self.space is None or self.cost is None:
            return []
        return misses.near_misses(self.space, self.cost, None if self.extraction is None else self.extraction.selection)

    @property
    def report(self) -> dict[str, Any]:
        """The run's record, as `--json` writes it: no absolute paths, no weights."""
        from .lowering.quantisation import quantised

        graph, space, extraction = self.original, self.space, self.extraction
        assert graph is not None
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "model": name_of(self.source),
            "target": self.target,
            "method": self.options.method,
            "seed": self.options.seed,
            "versions": versions(),
            "outcome": self.outcome,
            "improved": self.improved,
            "graph": {
                "nodes": len(graph.operators),
                "opaque": sum(graph.nodes[i].opaque for i in graph.operators),
                "coverage": graph.coverage,
            },
        }
        if self.converted_from is not None:
            record["graph"] |= {"opset": graph.source.opset, "converted_from": self.converted_from}
        if (part := quantised(graph)) is not None:
            record["graph"]["quantised"] = dict(part.record)
        if space is not None:
            record["egraph"] = {
                "classes": space.n_classes,
                "enodes": space.n_nodes,
                "iterations": space.report.iterations,
                "seconds": space.report.seconds,
                "stop_reason": space.report.stop_reason,
                "fired": dict(space.report.fired),
                "excluded": dict(space.report.excluded),
            }
            record["rules"] = rule_account(space, None if extraction is None else extraction.selection)
        if self.cost is not None and self.predicted is not None:
            before, after = self.predicted
            record["cost"] = {"model": self.cost.name, "original": before, "optimized": after}
        if extraction is not None:
            record["extraction"] = extraction_record(extraction) | {"considered": self.considered}
        if self.verdict is not None:
            v = self.verdict
            record["latency"] = {
                "original_ms": v.original_ms, "optimized_ms": v.optimized_ms, "speedup": v.speedup,
                "ci_low": v.ci_low, "ci_high": v.ci_high, "verdict": v.verdict, "judge": v.judge,
                "settings": v.settings,
                "points": [{"at": at, "speedup": p.speedup, "verdict": p.verdict} for at, p in self.points],
            }  # fmt: skip
        if self.verification is not None:
            c = self.verification
            record["verification"] = {
                "verdict": c.verdict, "max_abs": c.max_abs, "max_rel": c.max_rel, "cosine": c.cosine,
                "samples": c.samples, "guilty": list(self.guilty), "judge": c.judge, "detail": c.detail,
                "notes": list(c.notes), "bindings": [dict(b) for b in c.bindings],
            }  # fmt: skip
        from .egraph.record import record as recorded

        record["replay"] = {
            "shape": self.options.shape if isinstance(self.options.shape, (str, dict)) else list(self.options.shape),
            "opset": self.options.opset,
            "program": recorded(self.graph, graph) if self.improved else None,
        }
        timings = getattr(getattr(self.cost, "model", None), "timings", None)
        if timings is not None:
            record["kernels"] = {key: ms if math.isfinite(ms) else None for key, ms in sorted(timings.known.items())}
        record["substitutions"] = as_json(self.substitutions)
        if self.options.explain_misses:
            record["misses"] = misses.as_json(self.misses)
        record["notes"] = list(self.notes)
        record["seconds"] = dict(self.seconds)
        record["output"] = self.output
        return record

    def save_report(self, path: str | os.PathLike[str]) -> None:
        """Write `report` as JSON."""
        write_file(path, (json.dumps(self.report, indent=2) + "\n").encode())

    def save_egraph(self, path: str | os.PathLike[str]) -> None:
        """Write the search space and its costs as egraph-serialize JSON. Raises `UserError` if there is none."""
        from .egraph.serialized import serialized

        if self.space is None or self.cost is None:
            raise UserError("there is no e-graph to write: nothing was searched")
        write_file(path, json.dumps(serialized(self.space, self.cost.prices)).encode())

    def lines(self) -> list[str]:
        """The account in words."""
        from .lowering.quantisation import quantised

        graph, space = self.original, self.space
        assert graph is not None
        out = [f"{name_of(self.source)}: {len(graph.operators)} operators, {graph.coverage:.0%} of them known to rules"]
        if self.converted_from is not None:
            out.append(f"converted from opset {self.converted_from} to {graph.source.opset}")
        if (part := quantised(graph)) is not None:
            out.append(str(part))
        if space is not None:
            r = space.report
            out.append(
                f"e-graph: {space.n_nodes} e-nodes in {space.n_classes} classes, {r.iterations} iterations, "
                f"{r.stop_reason}, {r.seconds:.2f} s"
            )
        if self.extraction is not None and self.predicted is not None and self.cost is not None:
            before, after = self.predicted
            out.append(
                f"{self.extraction.extractor}: {before:.4g} → {after:.4g} ms predicted by {self.cost.name} "
                f"({self.extraction.stop_reason})"
            )
            if proved := proof(extraction_record(self.extraction)):
                out.append(f"  {proved}")
        out.extend(f"  {s}" for s in self.substitutions)
        if self.verification is not None:
            out.append(f"verification {self.verification}")
        if self.verdict is not None:
            for at, verdict in self.points or [({}, self.verdict)]:
                where = "".join(f", {name}={extent}" for name, extent in at.items())
                out.append(f"on {self.target}{where}: {verdict}")
        if self.options.explain_misses:
            out.extend(misses.as_text(self.misses))
        out.extend(f"note: {n}" for n in self.notes)
        out.append(f"outcome: {self.outcome}" + (f"; {self.output} written" if self.output else ""))
        return out

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def __repr__(self) -> str:
        return f"Result({self.outcome}, improved={self.improved})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(', '.join(s.rules))}</td><td>{s.scope}</td>"
            f"<td>{html.escape(', '.join(s.site[:2]))}</td><td>{s.predicted_gain:.4f}</td></tr>"
            for s in self.substitutions
        )
        head = "<br>".join(html.escape(line) for line in self.lines() if not line.startswith("  "))
        table = f"<tr><th>rules</th><th>sites</th><th>first at</th><th>predicted gain, ms</th></tr>{rows}"
        return f"<div>{head}<table>{table if rows else ''}</table></div>"


def name_of(source: Any) -> str:
    """What to call a model in reports: the file's name without its folder."""
    if isinstance(source, (str, os.PathLike)):
        return os.path.basename(os.fspath(source))
    return "model"


def versions() -> dict[str, str]:
    """Versions of what takes part in a run."""
    from importlib.metadata import PackageNotFoundError, version

    from . import __version__

    found = {"python": ".".join(map(str, sys.version_info[:3])), "xrlflow": __version__}
    for package in ("egglog", "onnx", "onnxruntime", "apache-tvm", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raises `UserError` unless a file could be written there. Asked before any work is done."""
    target = Path(path)
    folder = target.parent
    if target.is_dir():
        raise UserError(f"{target}: is a folder; name a file to write")
    if not folder.is_dir():
        raise UserError(f"{target}: the folder {folder} does not exist; make it first")
    if target.exists() and not target.is_file():
        raise UserError(f"{target}: is a device or a pipe; name a file to write")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{target}: cannot write there ({error.strerror}); choose another place") from error


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write all of it or nothing: to a temporary file in the same folder, then renamed."""
    _place(path, lambda f: f.write(data))


def _place(path: str | os.PathLike[str], fill: Any) -> None:
    target = Path(path)
    check_writable(target)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as f:
            fill(f)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
