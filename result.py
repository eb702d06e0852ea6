"""What a run returns: the graph to use, whether it is the original, and the account of how it came about."""

from __future__ import annotations

import html
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .account import Substitution, as_json
from .errors import UserError

if TYPE_CHECKING:
    from .cost.base import Cost
    from .cost.confirm import Verdict
    from .egraph.graph import Graph
    from .egraph.space import SearchSpace
    from .lowering.verification import Verification
    from .pipeline import Options
    from .policy.base import Extraction

SCHEMA = "xrlflow/run/1"


@dataclass
class Result:
    """Outcome of `optimize`.

    graph: the graph to use, the original's own where nothing better was found (`improved` tells). model: the ONNX
    model of an improved graph, else None. predicted: cost before and after in ms under the cost model. verdict: the
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

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model: the improved one, or a byte copy of the input. The file appears whole or not at all.

        Raises `UserError` when the path cannot be written.
        """
        from .lowering.onnx_writer import save

        if self.improved:
            save(self.graph, path)
        elif isinstance(self.source, (str, os.PathLike)):
            copy_model(self.source, path)
        elif isinstance(self.source, bytes):
            write_file(path, self.source)
        elif hasattr(self.source, "SerializeToString"):
            write_file(path, self.source.SerializeToString(deterministic=True))
        else:
            save(self.graph, path)
        self.output = os.path.basename(os.fspath(path))

    @property
    def report(self) -> dict[str, Any]:
        """The run's record, as `--json` writes it: no absolute paths, no weights."""
        from .pipeline import name_of

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
        if space is not None:
            record["egraph"] = {
                "classes": space.n_classes,
                "enodes": space.n_nodes,
                "iterations": space.report.iterations,
                "seconds": space.report.seconds,
                "stop_reason": space.report.stop_reason,
                "fired": dict(space.report.fired),
            }
        if self.cost is not None and self.predicted is not None:
            before, after = self.predicted
            record["cost"] = {"model": self.cost.name, "original": before, "optimized": after}
        if extraction is not None:
            points = extraction.trace.points
            record["extraction"] = {
                "extractor": extraction.extractor,
                "stop_reason": extraction.stop_reason,
                "considered": self.considered,
                "trace": [[n, s, c] for n, s, c in points],
            }
        if self.verdict is not None:
            v = self.verdict
            record["latency"] = {
                "original_ms": v.original_ms, "optimized_ms": v.optimized_ms, "speedup": v.speedup,
                "ci_low": v.ci_low, "ci_high": v.ci_high, "verdict": v.verdict, "judge": v.judge,
                "settings": v.settings,
            }  # fmt: skip
        if self.verification is not None:
            c = self.verification
            record["verification"] = {
                "verdict": c.verdict, "max_abs": c.max_abs, "max_rel": c.max_rel, "cosine": c.cosine,
                "samples": c.samples, "guilty": list(self.guilty),
            }  # fmt: skip
        record["substitutions"] = as_json(self.substitutions)
        record["notes"] = list(self.notes)
        record["seconds"] = dict(self.seconds)
        record["output"] = self.output
        return record

    def save_report(self, path: str | os.PathLike[str]) -> None:
        """Write `report` as JSON."""
        write_file(path, (json.dumps(self.report, indent=2) + "\n").encode())

    def lines(self) -> list[str]:
        """The account in words."""
        from .pipeline import name_of

        graph, space = self.original, self.space
        assert graph is not None
        out = [f"{name_of(self.source)}: {len(graph.operators)} operators, {graph.coverage:.0%} of them known to rules"]
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
        out.extend(f"  {s}" for s in self.substitutions)
        if self.verification is not None:
            out.append(f"verification {self.verification}")
        if self.verdict is not None:
            out.append(f"on {self.target}: {self.verdict}")
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
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{target}: cannot write there ({error.strerror}); choose another place") from error


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write all of it or nothing: to a temporary file in the same folder, then renamed."""
    _place(path, lambda f: f.write(data))


def copy_file(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Copy a file byte for byte; nothing happens if both are the same file."""
    if Path(path).exists() and os.path.samefile(source, path):
        return
    with open(source, "rb") as original:
        _place(path, lambda f: shutil.copyfileobj(original, f))


def copy_model(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Copy an ONNX file byte for byte, after the external data files that it names."""
    import onnx

    model = onnx.load(source, load_external_data=False)
    tensors = [*model.graph.initializer, *(a.t for n in model.graph.node for a in n.attribute if a.HasField("t"))]
    locations = {e.value: None for t in tensors for e in t.external_data if e.key == "location"}
    here, there = Path(source).parent, Path(path).parent
    for location in locations:  # the reader has refused locations outside the model's folder
        if here.resolve() != there.resolve():
            (there / location).parent.mkdir(parents=True, exist_ok=True)
            copy_file(here / location, there / location)
    copy_file(source, path)


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
