"""What becomes of a candidate: it is written, verified and measured, and replaces the original only if all agree."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .account import substitutions
from .egraph.graph import Graph
from .errors import UserError
from .result import Result

if TYPE_CHECKING:
    from .cost.verdict import Verdict
    from .pipeline import Run
    from .policy.base import Extraction

LEAST_VERDICT = 10.0
"""Seconds of a verdict at least; a second candidate gets none where fewer are left."""

SEARCHABLE = 1e9
"""Bytes of weights up to which a guilty rule is looked for: every weight is held in float64 then."""


class Judge:
    """Judges the candidates of one run."""

    def __init__(self, run: Run) -> None:
        self.run, self.options = run, run.options
        self.compiling = 0.0
        """Seconds that compiling took of verifying."""

    def decide(self, graph: Graph, found: Extraction, result: Result, folder: Path) -> None:
        """Verify and confirm what an extractor chose; it replaces the original only if both say so.

        folder: an empty one for models that are too large to be held in memory.
        """
        from .cost.base import graph_cost
        from .lowering.onnx_forms import NotWritable
        from .lowering.own_program import OwnProgram

        space, cost = result.space, result.cost
        assert space is not None and cost is not None
        before = cost.before
        # the account speaks of one program only, so nothing of one judged before may stay
        result.verification = result.verdict = None
        result.predicted, result.extraction = (before, found.cost), found
        result.substitutions = substitutions(space, found.selection, cost)
        if not result.substitutions or found.cost > before * (1 - 1e-9):
            result.stop(f"{found.extractor} found nothing cheaper")
            result.substitutions = []
            return
        with self.run.stage("lower", "writing the candidate"):
            optimized = space.to_graph(found.selection)
            exported = graph_cost(space, cost, found.selection, optimized)
            chosen = float(cost.prices[found.selection.choice[found.selection.choice >= 0]].sum())
            if not math.isclose(exported, chosen, rel_tol=1e-9):
                result.stop(
                    f"the graph to be written costs {exported:.6g} ms, the selection {chosen:.6g}: please report "
                    "this; the original is returned"
                )
                return
            if grown(graph, optimized) > self.options.max_weight_growth:
                result.stop("the candidate's weights would grow beyond --max-weight-growth: the original is returned")
                return
            try:
                model = runnable(optimized, folder / "candidate.onnx")
            except NotWritable as error:
                result.stop(f"the candidate cannot be written as the model is ({error}): the original is returned")
                return
            altered = isinstance(self.run.source, Graph) or getattr(graph.source, "altered", False)
            original = runnable(graph, folder / "original.onnx") if altered else self.run.source
            for side, name in ((original, "original"), (model, "candidate")):
                if isinstance(side, OwnProgram):
                    side.written(folder / f"{name}.program")  # once, for all that follows
        with self._apart(original, model):
            if not self.verified(original, model, found, result):
                return
        if self.run.target.measured:
            result.verdict = self.confirmed(original, model, result)
            if result.verdict.verdict != "faster" or not result.verdict.judge:
                why = result.verdict.verdict if result.verdict.judge else "not a judge"
                result.stop(f"not measured faster ({why}): the original is returned")
                return
        result.accept(optimized, None if isinstance(model, Path) else model)

    @contextmanager
    def _apart(self, original: Any, model: Any) -> Iterator[None]:
        """While programs of regions are verified, they are run in a process of their own; ONNX models need none."""
        from .lowering.own_program import OwnProgram

        if not isinstance(model, OwnProgram):
            yield
            return
        from .cost.apart import Apart
        from .cost.database import Database

        if self.run.target.kind == "llvm" and not self.run.target.tracker:
            # as they will be run, and so in a time that can be borne
            original.schedules = model.schedules = Database().schedules(self.run.target.fingerprint())
        with Apart() as apart:
            if self.options.verify:
                with self.run.stage("verify", "compiling both to verify"):
                    start = time.monotonic()
                    apart.expect(original, model)
                    self.compiling = time.monotonic() - start
            original.runs = model.runs = apart.session
            yield
        original.runs = model.runs = None

    def confirmed(self, original: Any, model: Any, result: Result) -> Verdict:
        """The verdict over all measuring points: faster at one of them at least, and slower at none."""
        points = self.run.points
        ran = [dict(b) for b in result.verification.bindings] if result.verification is not None else []
        if not self.options.at and self.run.given is None and points[0] and ran and points[0] not in ran:
            points = [max(ran, key=lambda b: math.prod(b.values()))]
            at = ", ".join(f"{name}={extent}" for name, extent in points[0].items())
            self.run.notes.append(f"measured at {at}: the original does not run at the usual extents (--at chooses)")
        result.points = []
        for k, binding in enumerate(points):
            seconds = self.run.portion * self.run.left() / (len(points) - k)
            verdict = self.confirm(binding, original, model, seconds, max(result.predicted or (0.0,)))
            result.points.append((binding, verdict))
            if verdict.verdict == "slower" or not verdict.judge:
                return verdict
        return min((v for _, v in result.points), key=lambda v: (v.verdict != "faster", v.speedup))

    def confirm(
        self, binding: dict[str, int], original: Any, model: Any, seconds: float, expected_ms: float
    ) -> Verdict:
        """Measure the candidate against the original at one point, unless these two were measured before."""
        from .cost.confirm import confirm

        target, verdicts = self.run.target, self.run.verdicts
        pair = hashlib.sha256(f"{target.fingerprint()} {self.options.trials} {sorted(binding.items())}".encode())
        for side in (original, model):  # by content: two models may bear one name
            pair.update(content_of(side))
        for name, array in (self.run.given or {}).items():
            pair.update(f"{name} {array.dtype}{array.shape}".encode())
            pair.update(repr(array.tolist()).encode() if array.dtype == object else array.tobytes())
        if pair.hexdigest() not in verdicts:
            with self.run.stage("measure", "confirming against the original"):
                verdicts[pair.hexdigest()] = confirm(
                    original,
                    model,
                    target,
                    seconds=max(LEAST_VERDICT, seconds),
                    trials=self.options.trials,
                    inputs=self.run.given,
                    symbols=binding,
                    seed=self.options.seed,
                    expected_ms=expected_ms,
                    progress=self.run.progress.say,
                )
        return verdicts[pair.hexdigest()]

    def verified(self, original: Any, model: Any, found: Extraction, result: Result) -> bool:
        from .lowering.check import guilty_rules
        from .lowering.verification import Verification, verify

        if not self.options.verify:
            result.verification = Verification("unverified", detail="--no-verify was given")
            return True
        share = self.run.share("verify")
        with self.run.stage("verify", "verifying"):
            result.verification = verify(
                original,
                model,
                seed=self.options.seed,
                symbols=[p for p in self.run.points if p],
                inputs=self.run.given,
                custom_ops=self.options.custom_ops,
                seconds=None if share is None else max(0.0, share - self.compiling),
            )
            ran = [dict(b) for b in result.verification.bindings]
            for text, binding in zip(self.options.at, self.run.points, strict=False):
                if result.verification.passed and binding not in ran:
                    raise UserError(f"--at {text}: the original does not run at these extents")
            if result.verification.passed:
                return True
            if result.verification.verdict == "failed":
                assert result.space is not None
                blamed = "not looked for in a model of this size"
                if result.space.graph.weight_bytes <= SEARCHABLE:
                    result.guilty = guilty_rules(result.space, found.selection, seed=self.options.seed)
                    blamed = ", ".join(result.guilty) or "no single rule; the difference may be one of rounding"
                result.stop(f"verification failed ({blamed}): the original is returned", exit_code=3)
            else:
                result.stop(f"{result.verification}: the original is returned (--no-verify accepts it unchecked)")
        return False


def grown(graph: Graph, optimized: Graph) -> float:
    """How many times the weights that the graph's file holds the optimised one's would hold.

    Costs count the extents of constants alone (`SearchSpace.weight_bytes`). A file may also keep an expression for a
    large constant, or one value that fills it; where a rewrite makes a real weight of those, only this tells.
    """
    from .cost.base import WEIGHT_SLACK
    from .lowering.folding import fold_constants
    from .lowering.onnx_files import written_bytes

    before = max(written_bytes(graph), written_bytes(fold_constants(graph)))
    after = written_bytes(fold_constants(optimized)) - WEIGHT_SLACK
    return after / before if before else 1.0 + max(0.0, after)


def runnable(graph: Graph, path: Path) -> Any:
    """The graph as a model in memory; written to `path`, and that path, if its weights are large or in a data file.

    Raises `UserError` if there is no room for the file.
    """
    from .lowering.onnx_files import RESIDENT, save
    from .lowering.onnx_writer import to_onnx

    if hasattr(graph.source, "program"):
        return graph.source.program(graph)
    if graph.weight_bytes <= RESIDENT and not getattr(graph.source, "external", False):
        return to_onnx(graph)
    free = shutil.disk_usage(path.parent).free
    if free < 1.1 * graph.weight_bytes:
        raise UserError(
            f"the model takes {graph.weight_bytes / 1e9:.1f} GB, but for temporary files {tempfile.gettempdir()} has "
            f"{free / 1e9:.1f} GB: let TMPDIR name a folder with more"
        )
    save(graph, path, external=True)
    return path


def content_of(model: Any) -> bytes:
    """A digest of a model's proto, or of its file and the data files that it names."""
    from .lowering.own_program import OwnProgram

    digest = hashlib.sha256()
    if isinstance(model, OwnProgram) and model.file is not None:
        with open(model.file, "rb") as f:
            digest = hashlib.file_digest(f, "sha256")
    elif isinstance(model, (str, os.PathLike)):
        from .lowering.onnx_files import locations

        path = Path(model)
        for name in ("", *locations(path)):
            with open(path.parent / name if name else path, "rb") as f:
                digest.update(hashlib.file_digest(f, "sha256").digest())
    else:
        digest.update(model if isinstance(model, bytes) else model.SerializeToString(deterministic=True))
    return digest.digest()
