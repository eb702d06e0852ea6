"""The whole way: load, saturate, price, extract, verify, confirm. What the command line and `xrlflow.optimize` run."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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

# Shares of the time budget; what a stage does not use is left to the later ones, and confirming takes the rest.
SHARES = {"saturate": 0.1, "price": 0.3, "extract": 0.1}


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


def find_target(name: str | None, threads: int) -> Target:
    """The target of this name, the default one for None."""
    from .cost.target import default_target, parse_target

    return default_target(threads) if name is None else parse_target(name, threads)


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

    def __post_init__(self) -> None:
        self.options.check()
        self.started = time.monotonic()
        self.target = find_target(self.options.target, self.options.threads)
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
            return self.source
        self.source = plain(self.source)
        return load(self.source)

    def search(self, graph: Graph, result: Result) -> None:
        if self.options.method == "original":
            result.stop("the original was asked for")
            return
        with self.stage("saturate", "saturating"):
            result.space = space = self.saturate(graph)
        with self.stage("price", "pricing"):
            result.cost = cost = self.price(space)
        with self.stage("extract", "extracting"):
            candidates = self.extract(space, cost)
        seen: set[Selection] = set()
        for found in candidates:
            entry = {"extractor": found.extractor, "cost": found.cost, "stop_reason": found.stop_reason}
            result.considered.append(entry)
            if found.selection in seen or result.improved or result.exit_code:
                continue
            seen.add(found.selection)
            self.judge(graph, found, result)
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
        from .cost.base import bind

        seconds = self.share("price")
        model = cost_model(self.target, self.options.cost, self.options, seconds or 0.0, self.progress.bar)
        cost = bind(model, space, self.options.max_weight_growth)
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

    def judge(self, graph: Graph, found: Extraction, result: Result) -> None:
        """Verify and confirm what an extractor chose; it replaces the original only if both say so."""
        from .lowering.onnx_forms import NotWritable
        from .lowering.onnx_writer import to_onnx

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
            try:
                model = to_onnx(optimized)
            except NotWritable as error:
                result.stop(f"the candidate cannot be written in the model's opset ({error}): the original is returned")
                return
        original = to_onnx(graph) if isinstance(self.source, Graph) else self.source
        if self.options.verify and not self.verified(original, model, found, result):
            return
        if self.target.measured:
            result.verdict = self.confirm(original, model)
            if result.verdict.verdict != "faster" or not result.verdict.judge:
                why = result.verdict.verdict if result.verdict.judge else "not a judge"
                result.stop(f"not measured faster ({why}): the original is returned")
                return
        result.accept(optimized, model)

    def confirm(self, original: Any, model: Any) -> Verdict:
        """Measure the candidate against the original, unless these two were measured before."""
        from .cost.confirm import confirm

        pair = hashlib.sha256(f"{self.target.fingerprint()} {self.options.trials}".encode())
        for side in (original, model):  # by content: two models may bear one name
            pair.update(b"\0" + content_of(side))
        if pair.hexdigest() not in self.verdicts:
            with self.stage("measure", "confirming against the original"):
                self.verdicts[pair.hexdigest()] = confirm(
                    original,
                    model,
                    self.target,
                    seconds=max(10.0, self.left()),
                    trials=self.options.trials,
                    seed=self.options.seed,
                    progress=self.progress.say,
                )
        return self.verdicts[pair.hexdigest()]

    def verified(self, original: Any, model: Any, found: Extraction, result: Result) -> bool:
        from .lowering.check import guilty_rules
        from .lowering.verification import verify

        with self.stage("verify", "verifying"):
            result.verification = verify(original, model, seed=self.options.seed)
            if result.verification.passed:
                return True
            if result.verification.verdict == "failed":
                assert result.space is not None
                result.guilty = guilty_rules(result.space, found.selection, seed=self.options.seed)
                blamed = ", ".join(result.guilty) or "no single rule; the difference may be one of rounding"
                result.stop(f"verification failed ({blamed}): the original is returned", exit_code=3)
            else:
                result.stop(f"{result.verification}: the original is returned (--no-verify accepts it unchecked)")
        return False


def content_of(model: Any) -> bytes:
    """The bytes of a model's file or proto; external data is not followed."""
    if isinstance(model, bytes):
        return model
    if isinstance(model, (str, os.PathLike)):
        with open(model, "rb") as f:
            return f.read()
    return bytes(model.SerializeToString(deterministic=True))


def name_of(source: Any) -> str:
    """What to call a model in reports: the file's name without its folder."""
    if isinstance(source, (str, os.PathLike)):
        return os.path.basename(os.fspath(source))
    return "model"
