"""The whole way: load, saturate, price, extract, verify, confirm. What the command line and `xrlflow.optimize` run."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .account import substitutions
from .egraph.graph import Graph
from .errors import UserError
from .progress import Progress
from .result import Result

if TYPE_CHECKING:
    from .cost.base import Cost, CostModel
    from .cost.confirm import Verdict
    from .cost.target import Target
    from .egraph.space import SearchSpace, Selection
    from .policy.base import Extraction

METHODS = ("auto", "rl", "saturation", "greedy", "greedy-group", "random", "original")
EXTRACTORS = ("climb", "tree")

SEARCHABLE = 1e9
"""Bytes of weights up to which a guilty rule is looked for: every weight is held in float64 then."""

# Shares of the time budget; what a stage does not use is left to the later ones, and confirming takes the rest.
SHARES = {"saturate": 0.1, "price": 0.3, "extract": 0.1, "verify": 0.2}


@dataclass
class Options:
    """What a run may be told.

    method: how to choose; "auto" tries climbing and the policy and keeps the cheaper result.
    extractor: what "saturation" extracts with.
    target: llvm, cuda, onnxruntime or roofline:DEVICE; None takes cuda where a GPU is found, else llvm.
    cost: "kernels" (measured) or roofline:DEVICE; None measures kernels unless the target is a roofline.
    budget: seconds for everything. max_steps: cost evaluations of an extractor; with a roofline target and this set,
    no decision depends on time and the result's bytes only on input, seed, flags and version.
    trials: schedules tried for each kernel that TVM tunes.
    shape: extents that specialise symbolic dimensions, as `load` takes them. at: points to measure a dynamic model at,
    each a binding of symbols or text as `--at` takes it; the result is slower at none of them.
    inputs: an .npz file or a mapping of arrays, one for each of the model's inputs: verified and measured on them too.
    custom_ops: shared libraries of operators for ONNX Runtime.
    opset: convert the model to this opset first; the result has it, too, where the original is returned.
    """

    method: str = "auto"
    extractor: str = "climb"
    target: str | None = None
    cost: str | None = None
    budget: float = 120.0
    max_steps: int | None = None
    max_enodes: int = 50_000
    max_weight_growth: float = 1.05
    rules: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    threads: int = 1
    trials: int = 4
    policy: str | None = None
    seed: int = 0
    verify: bool = True
    inputs: str | os.PathLike[str] | Mapping[str, Any] | None = None
    custom_ops: tuple[str, ...] = ()
    opset: int | None = None
    shape: Any = ()
    at: Sequence[str | Mapping[str, int]] = ()

    def check(self) -> None:
        """Raises `UserError` for a value that makes no sense."""
        if self.method not in METHODS:
            raise UserError(f"unknown method {self.method!r}: give one of {', '.join(METHODS)}")
        if self.extractor not in EXTRACTORS:
            raise UserError(f"unknown extractor {self.extractor!r}: give one of {', '.join(EXTRACTORS)}")
        for name, least in (
            ("budget", 1e-9),
            ("max_enodes", 1),
            ("max_weight_growth", 1.0),
            ("threads", 1),
            ("trials", 0),
        ):
            if not getattr(self, name) >= least:  # also refuses NaN
                raise UserError(f"{name.replace('_', '-')} must be at least {least:g}, not {getattr(self, name)}")
        if self.max_steps is not None and self.max_steps < 1:
            raise UserError(f"max-steps must be at least 1, not {self.max_steps}")
        if self.seed < 0:
            raise UserError(f"seed must not be negative, not {self.seed}")


def optimize(
    source: Any, *, progress: bool | None = False, verdicts: dict[str, Verdict] | None = None, **options: Any
) -> Result:
    """Optimise a model: `source` is a path, an `onnx.ModelProto`, its bytes, an
    `onnx_ir.Model`, the result of `torch.onnx.export` or a `Graph`; `options` as in `Options`.

    Returns a `Result`; nothing is written. `progress` shows a line on standard error (None: only on a terminal).
    verdicts: a dictionary to share between runs, so that methods which choose the same program get one measurement.
    Raises `UserError` for bad input or options and `TargetUnavailable` for a target that this machine has not.
    """
    try:
        chosen = Options(**options)
    except TypeError as error:
        raise UserError(f"optimize: {error}") from error
    return Run(source, chosen, progress, {} if verdicts is None else verdicts).result()


def extract(
    space: SearchSpace,
    method: str = "climb",
    *,
    target: str = "roofline:epyc-1t",
    cost: Cost | CostModel | None = None,
    seconds: float | None = 10.0,
    steps: int | None = None,
    seed: int = 0,
    max_weight_growth: float = 1.05,
    **options: Any,
) -> Extraction:
    """Choose one program of a saturated space with one extractor (`xrlflow.policy.base.names()` lists them).

    cost: a cost model, or one already bound to this space; None takes the roofline of `target`, or the kernels
    measured on it. seconds, steps: the extractor's budget, the steps being cost evaluations.
    """
    from .cost.base import Cost, bind
    from .policy.base import Budget, extractor

    if not isinstance(cost, Cost):
        if cost is None:
            cost = cost_model(find_target(target, 1), None, Options(), seconds or 60.0, None)
        cost = bind(cost, space, max_weight_growth)
    chosen = extractor("climb" if method == "saturation" else method, **options)
    return chosen.extract(space, cost, Budget(seconds, steps), np.random.default_rng(seed))


def find_target(name: str | None, threads: int, custom_ops: tuple[str, ...] = ()) -> Target:
    """The target of this name, the default one for None."""
    from .cost.target import default_target, parse_target

    return default_target(threads, custom_ops) if name is None else parse_target(name, threads, custom_ops)


def cost_model(
    target: Target, name: str | None, options: Options, seconds: float, tell: Callable[[int, int], None] | None
) -> CostModel:
    """The cost model called `name` for this target; None takes the target's own."""
    from .cost.roofline import roofline

    if name is None:
        name = "kernels" if target.measured else f"roofline:{target.device}"
    kind, _, device = name.partition(":")
    if kind == "roofline":
        return roofline(device)
    if kind != "kernels" or device:
        raise UserError(f"unknown cost {name!r}: give kernels or roofline:DEVICE")
    if not target.measured:
        raise UserError(f"cost kernels needs a target that is measured, not {target}")
    from .cost.database import Database
    from .cost.kernels import kernels

    return kernels(target, Database(), trials=options.trials, seconds=seconds, progress=tell)


@dataclass
class Run:
    """One run of the pipeline, stage by stage."""

    source: Any
    options: Options
    shown: bool | None = False
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    given: dict[str, np.ndarray] | None = None
    """What to run the model on, if the user said."""
    points: list[dict[str, int]] = field(default_factory=lambda: [{}])
    """Bindings of the model's symbols to measure at."""

    def __post_init__(self) -> None:
        self.options.check()
        self.started = time.monotonic()
        libraries: Any = self.options.custom_ops
        one = isinstance(libraries, (str, os.PathLike))
        self.options.custom_ops = tuple(os.fspath(p) for p in ((libraries,) if one else libraries))
        if self.options.custom_ops:
            from .lowering.ort_session import session_options

            session_options(custom_ops=self.options.custom_ops)  # refuses what cannot be loaded
        self.target = find_target(self.options.target, self.options.threads, self.options.custom_ops)
        # With a roofline and a step budget nothing may depend on the clock.
        self.timed = self.target.measured or self.options.max_steps is None

    @contextmanager
    def stage(self, name: str, label: str) -> Iterator[None]:
        self.progress.begin(label)
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start

    def left(self) -> float:
        return max(0.0, self.options.budget - (time.monotonic() - self.started))

    def share(self, stage: str) -> float | None:
        """Seconds that a stage may take; None where time must not matter."""
        return min(self.left(), SHARES[stage] * self.options.budget) if self.timed else None

    def result(self) -> Result:
        with Progress(self.shown, self.options.budget if self.timed else None) as self.progress:
            with self.stage("load", "reading the model"):
                graph = self.load()
                if self.options.inputs is not None:
                    from .lowering.feeds import read_inputs

                    self.given = read_inputs(self.options.inputs, graph)
                self.points = self.measuring_points(graph)
            result = Result(graph, self.source, str(self.target), self.options)
            try:
                self.search(graph, result)
            except KeyboardInterrupt:
                # Only what was verified and confirmed may replace the original; nothing was by now.
                result.stop("interrupted: the original is returned")
        result.notes.extend(self.notes)
        result.seconds = {**self.seconds, "total": time.monotonic() - self.started}
        return result

    def load(self) -> Graph:
        from .lowering.onnx_reader import load, plain

        if isinstance(self.source, Graph):
            if self.options.shape:
                raise UserError("shape: a Graph has its shapes already; give them to `load`, or a model to `optimize`")
            if self.options.opset not in (None, getattr(self.source.source, "opset", None)):
                raise UserError("opset: a Graph is in its opset already; give it to `load`, or a model to `optimize`")
            return self.source
        self.source = plain(self.source)
        return load(
            self.source,
            shapes=self.options.shape,
            opset=self.options.opset,
            verify=self.options.verify,
            custom_ops=self.options.custom_ops,
        )

    def measuring_points(self, graph: Graph) -> list[dict[str, int]]:
        """Bindings of the model's symbols to measure at; one, and empty, for a model that has none."""
        from .lowering.bindings import completed, input_symbols
        from .lowering.feeds import bound_symbols
        from .lowering.points import parse_extents, point

        if self.options.at:
            if self.given is not None:
                raise UserError("--at and --inputs exclude each other: the inputs have their extents")
            told = [(f"--at {text}", parse_extents(text, "--at")) for text in self.options.at]
            if not input_symbols(graph):
                raise UserError("--at: the model's inputs have no symbolic dimensions; --shape and --at are for those")
            return [point(graph, extents, label) for label, extents in told]
        if self.given is not None:
            return [completed(graph, bound_symbols(graph, self.given))]
        found = point(graph, {}, "usual extents")
        if found:
            at = ", ".join(f"{name}={extent}" for name, extent in found.items())
            self.notes.append(f"dynamic model, costs taken at {at} (--at chooses other extents)")
        return [found]

    def search(self, graph: Graph, result: Result) -> None:
        if self.options.method == "original":
            result.stop("the original was asked for")
            return
        with self.stage("saturate", "saturating"):
            result.space = space = self.saturate(graph)
        with self.stage("price", "pricing"):
            result.cost = cost = self.price(space)
        with self.stage("extract", "extracting"):
            candidates = self.extract(cost.space, cost)
        seen: set[Selection] = set()
        for found in candidates:
            entry = {"extractor": found.extractor, "cost": found.cost, "stop_reason": found.stop_reason}
            result.considered.append(entry)
            if found.selection in seen or result.improved or result.exit_code:
                continue
            seen.add(found.selection)
            with tempfile.TemporaryDirectory(prefix="xrlflow-") as folder:
                self.judge(graph, found, result, Path(folder))
            entry["outcome"] = result.outcome

    def saturate(self, graph: Graph) -> SearchSpace:
        from .egraph.rules import rule_set
        from .egraph.saturate import saturate

        try:
            rules = rule_set(self.options.rules, self.options.without)
        except KeyError as error:
            from .egraph.rules import families

            raise UserError(f"unknown rule or family {error.args[0]!r}; families are {', '.join(families())}") from None
        return saturate(
            graph,
            rules,
            max_enodes=self.options.max_enodes,
            seconds=self.share("saturate"),
            progress=lambda i, n: self.progress.say(f"iteration {i}, {n} terms"),
        )

    def price(self, space: SearchSpace) -> Cost:
        from .cost.base import AtPoints, bind

        seconds = (self.share("price") or 0.0) / len(self.points)
        model = cost_model(self.target, self.options.cost, self.options, seconds, self.progress.bar)
        cost = bind(AtPoints(model, self.points), space, self.options.max_weight_growth)
        # what extractors look at (sizes, FLOPs) is the space at the first point; e-nodes have the same numbers in both
        cost = replace(cost, space=space.at(self.points[0]))
        coverage = getattr(model, "coverage", None)
        if coverage is not None and coverage.estimated:
            self.notes.append(
                f"{coverage.measured} kernels measured, {coverage.estimated} estimated by the calibrated roofline "
                "(a longer --budget measures more; measured ones are remembered)"
            )
        return cost

    def extract(self, space: SearchSpace, cost: Cost) -> list[Extraction]:
        from .policy.base import Budget, extractor

        options = self.options
        names = {"auto": [options.extractor, "rl"], "saturation": [options.extractor]}.get(
            options.method, [options.method]
        )
        share = self.share("extract")
        found: list[Extraction] = []
        for name in names:
            chosen = extractor(name, **({"policy": options.policy} if name == "rl" and options.policy else {}))
            budget = Budget(share / len(names) if share is not None else None, options.max_steps)
            extraction = chosen.extract(space, cost, budget, np.random.default_rng(options.seed))
            self.progress.say(f"{name}: {extraction.cost:.4f} ms")
            self.notes.extend(extraction.extras.get("warnings", ()))
            found.append(extraction)
        return sorted(found, key=lambda e: e.cost)

    def judge(self, graph: Graph, found: Extraction, result: Result, folder: Path) -> None:
        """Verify and confirm what an extractor chose; it replaces the original only if both say so.

        folder: an empty one for models that are too large to be held in memory.
        """
        from .cost.base import graph_cost
        from .lowering.onnx_forms import NotWritable

        space, cost = result.space, result.cost
        assert space is not None and cost is not None
        before = float(cost.prices[space.baseline].sum())
        # the account speaks of one program only, so nothing of one judged before may stay
        result.verification = result.verdict = None
        result.predicted, result.extraction = (before, found.cost), found
        result.substitutions = substitutions(space, found.selection, cost)
        if not result.substitutions or found.cost > before * (1 - 1e-9):
            result.stop(f"{found.extractor} found nothing cheaper")
            result.substitutions = []
            return
        with self.stage("lower", "writing the candidate"):
            optimized = space.to_graph(found.selection)
            exported = graph_cost(space, cost, optimized)
            if not math.isclose(exported, found.cost, rel_tol=1e-9):
                result.stop(
                    f"the graph to be written costs {exported:.6g} ms, the selection {found.cost:.6g}: please report "
                    "this; the original is returned"
                )
                return
            if grown(graph, optimized) > self.options.max_weight_growth:
                result.stop("the candidate's weights would grow beyond --max-weight-growth: the original is returned")
                return
            try:
                model = runnable(optimized, folder / "candidate.onnx")
            except NotWritable as error:
                result.stop(f"the candidate cannot be written in the model's opset ({error}): the original is returned")
                return
        altered = isinstance(self.source, Graph) or getattr(graph.source, "altered", False)
        original = runnable(graph, folder / "original.onnx") if altered else self.source
        if not self.verified(original, model, found, result):
            return
        if self.target.measured:
            result.verdict = self.confirmed(original, model, result)
            if result.verdict.verdict != "faster" or not result.verdict.judge:
                why = result.verdict.verdict if result.verdict.judge else "not a judge"
                result.stop(f"not measured faster ({why}): the original is returned")
                return
        result.accept(optimized, None if isinstance(model, Path) else model)

    def confirmed(self, original: Any, model: Any, result: Result) -> Verdict:
        """The verdict over all measuring points: faster at one of them at least, and slower at none."""
        points = self.points
        ran = [dict(b) for b in result.verification.bindings] if result.verification is not None else []
        if not self.options.at and self.given is None and points[0] and ran and points[0] not in ran:
            points = [max(ran, key=lambda b: math.prod(b.values()))]
            at = ", ".join(f"{name}={extent}" for name, extent in points[0].items())
            self.notes.append(f"measured at {at}: the original does not run at the usual extents (--at chooses)")
        result.points = []
        for k, binding in enumerate(points):
            verdict = self.confirm(binding, original, model, self.left() / (len(points) - k))
            result.points.append((binding, verdict))
            if verdict.verdict == "slower" or not verdict.judge:
                return verdict
        return min((v for _, v in result.points), key=lambda v: (v.verdict != "faster", v.speedup))

    def confirm(self, binding: dict[str, int], original: Any, model: Any, seconds: float) -> Verdict:
        """Measure the candidate against the original at one point, unless these two were measured before."""
        from .cost.confirm import confirm

        pair = hashlib.sha256(f"{self.target.fingerprint()} {self.options.trials} {sorted(binding.items())}".encode())
        for side in (original, model):  # by content: two models may bear one name
            pair.update(content_of(side))
        for name, array in (self.given or {}).items():
            pair.update(f"{name} {array.dtype}{array.shape}".encode())
            pair.update(repr(array.tolist()).encode() if array.dtype == object else array.tobytes())
        if pair.hexdigest() not in self.verdicts:
            with self.stage("measure", "confirming against the original"):
                self.verdicts[pair.hexdigest()] = confirm(
                    original,
                    model,
                    self.target,
                    seconds=max(10.0, seconds),
                    trials=self.options.trials,
                    inputs=self.given,
                    symbols=binding,
                    seed=self.options.seed,
                    progress=self.progress.say,
                )
        return self.verdicts[pair.hexdigest()]

    def verified(self, original: Any, model: Any, found: Extraction, result: Result) -> bool:
        from .lowering.check import guilty_rules
        from .lowering.verification import Verification, verify

        if not self.options.verify:
            result.verification = Verification("unverified", detail="--no-verify was given")
            return True
        with self.stage("verify", "verifying"):
            result.verification = verify(
                original,
                model,
                seed=self.options.seed,
                symbols=[p for p in self.points if p],
                inputs=self.given,
                custom_ops=self.options.custom_ops,
                seconds=self.share("verify"),
            )
            ran = [dict(b) for b in result.verification.bindings]
            for text, binding in zip(self.options.at, self.points, strict=False):
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
    digest = hashlib.sha256()
    if isinstance(model, (str, os.PathLike)):
        from .lowering.onnx_files import locations

        path = Path(model)
        for name in ("", *locations(path)):
            with open(path.parent / name if name else path, "rb") as f:
                digest.update(hashlib.file_digest(f, "sha256").digest())
    else:
        digest.update(model if isinstance(model, bytes) else model.SerializeToString(deterministic=True))
    return digest.digest()


def name_of(source: Any) -> str:
    """What to call a model in reports: the file's name without its folder."""
    if isinstance(source, (str, os.PathLike)):
        return os.path.basename(os.fspath(source))
    return "model"
