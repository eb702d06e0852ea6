"""The whole way: load, saturate, price, extract, verify, confirm. What the command line and `xrlflow.optimize` run."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from .egraph.graph import Graph
from .errors import UserError
from .judging import LEAST_VERDICT, Judge
from .options import Options
from .pricing import cost_model, refine
from .progress import Progress
from .result import Result

if TYPE_CHECKING:
    from .cost.base import Cost, CostModel
    from .cost.target import Choices, Target
    from .cost.verdict import Verdict
    from .egraph.nearness import Off
    from .egraph.space import SearchSpace, Selection
    from .policy.base import Extraction

REBUILDS = 3
"""How often the e-graph is built again without the rule that a failed verification named."""

SHARES = {"saturate": 0.1, "price": 0.3, "extract": 0.1, "verify": 0.2}
"""Shares of the time budget; what a stage does not use is left to the later ones, and confirming takes the rest."""


def optimize(
    source: Any, example_inputs: Sequence[Any] | None = None, *, progress: bool | None = False,
    verdicts: dict[str, Verdict] | None = None, **options: Any,
) -> Any:  # fmt: skip
    """Optimise a model: `source` is a path, an `onnx.ModelProto`, its bytes, an
    `onnx_ir.Model`, the result of `torch.onnx.export` or a `Graph`; `options` as in `Options`.

    Or it is a `torch.nn.Module`, with example inputs: then it returns the module to use instead
    (`torch_module.optimized`).

    Else returns a `Result`; nothing is written. `progress` shows a line on standard error (None: only on a terminal).
    verdicts: a dictionary to share between runs, so that methods which choose the same program get one measurement.
    Raises `UserError` for bad input or options and `TargetUnavailable` for a target that this machine has not.
    """
    if example_inputs is not None:
        from .torch_module import optimized

        return optimized(source, example_inputs, **options)
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
        refine(cost, seconds or 60.0, seed)
    chosen = extractor(method, **options)
    return chosen.extract(space, cost, Budget(seconds, steps), np.random.default_rng(seed))


def find_target(name: str | None, threads: int, custom_ops: tuple[str, ...] = (), **options: Unpack[Choices]) -> Target:
    """The target of this name, the default one for None; options as `parse_target` takes them."""
    from .cost.target import default_target, parse_target

    if name is None:
        return default_target(threads, custom_ops, **options)
    return parse_target(name, threads, custom_ops, **options)


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
    excluded: dict[str, str] = field(default_factory=dict)
    """Rules that this run goes on without, and why."""
    points: list[dict[str, int]] = field(default_factory=lambda: [{}])
    """Bindings of the model's symbols to measure at."""
    portion: float = 1.0
    """Share of the time left that the verdict on this candidate may take; the rest is for the next one."""

    def __post_init__(self) -> None:
        self.options.check()
        self.started = time.monotonic()
        libraries: Any = self.options.custom_ops
        one = isinstance(libraries, (str, os.PathLike))
        self.options.custom_ops = tuple(os.fspath(p) for p in ((libraries,) if one else libraries))
        if self.options.custom_ops:
            from .lowering.ort_session import session_options

            session_options(custom_ops=self.options.custom_ops)  # refuses what cannot be loaded
        o = self.options
        self.target = find_target(
            o.target, o.threads, o.custom_ops, provider=o.provider, level=o.level, tracker=o.tracker, key=o.key
        )
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
        from .lowering.onnx_forms import meant_for

        with Progress(self.shown, self.options.budget if self.timed else None) as self.progress:
            with self.stage("load", "reading the model"):
                graph = meant_for(self.load(), self.target.kind)
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
            params=self.options.params,
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
            points = [point(graph, extents, label) for label, extents in told]
            if not input_symbols(graph):
                left = " left by --shape" if self.options.shape else ""
                raise UserError(f"--at: the model's inputs have no symbolic dimensions{left} to measure at")
            return points
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
        failed, blamed = None, list[str]()
        for attempt in range(1 + REBUILDS):
            self.attempt(graph, result)
            if result.improved or not result.guilty or attempt == REBUILDS or (self.timed and not self.left()):
                break
            # the account of the first failure is the one to give, should nothing come of the rest
            failed = failed or (result.outcome, result.exit_code, result.verification, result.guilty)
            blamed.append(result.guilty[0])
            # first each suspect by itself: one that was blamed wrongly is let in again
            without = blamed[-1:] if attempt < 2 else list(dict.fromkeys((*blamed, *result.guilty)))
            self.excluded = dict.fromkeys(without, "a program that it led to failed verification")
            result.guilty, result.exit_code = (), 0
        if failed and not result.improved:
            result.outcome, result.exit_code, result.verification, result.guilty = failed
        excluded = {} if result.space is None else result.space.report.excluded
        for rule, why in excluded.items():
            what = f"rule {rule} was left out: {why}" if rule else f"the model contradicts itself: {why}"
            self.notes.append(f"{what} (please report this)" if rule else what)

    def attempt(self, graph: Graph, result: Result) -> None:
        """One search, from saturation to the verdict on its candidates, without the rules that are known to fail."""
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
            if result.verdict is not None and self.left() < LEAST_VERDICT:
                entry["outcome"] = "no time was left to measure it"
                continue
            others = {c.selection for c in candidates} - seen
            self.portion = 2 / 3 if others else 1.0
            with tempfile.TemporaryDirectory(prefix="xrlflow-") as folder:
                Judge(self).decide(graph, found, result, Path(folder))
            entry["outcome"] = result.outcome
        if self.target.kind == "onnxruntime" and result.verification is None:
            self.try_runtime()

    def try_runtime(self) -> None:
        """Note if the target cannot even load the original: where there is no candidate nothing else would tell."""
        from .lowering.plain_session import PlainSession, why

        with tempfile.TemporaryDirectory(prefix="xrlflow-") as folder:
            try:
                PlainSession(self.source, Path(folder) / "original.onnx", False, self.options.custom_ops)
            except Exception as error:  # noqa: BLE001 (the runtime's are of many types)
                self.notes.append(why(error))

    def saturate(self, graph: Graph) -> SearchSpace:
        from .egraph.rules import rule_set
        from .egraph.saturate import saturate

        try:
            rules = rule_set(self.options.rules, self.options.without, graph.writes)
        except KeyError as error:
            from .egraph.rules import families

            raise UserError(f"unknown rule or family {error.args[0]!r}; families are {', '.join(families())}") from None
        off: Sequence[Off] = ()
        if self.options.explain_misses:
            from .misses import switched_off

            off = switched_off(graph, self.options.without, self.options.rules)
        space = saturate(
            graph,
            [r for r in rules if r.name not in self.excluded],
            max_enodes=self.options.max_enodes,
            seconds=self.share("saturate"),
            progress=lambda i, n: self.progress.say(f"iteration {i}, {n} terms"),
            explain=self.options.explain_misses,
            off=off,
        )
        report = replace(space.report, excluded={**self.excluded, **space.report.excluded})
        return replace(space, report=report)

    def price(self, space: SearchSpace) -> Cost:
        from .cost.base import AtPoints, bind

        start, share = time.monotonic(), self.share("price") or 0.0
        model = cost_model(self.target, self.options.cost, self.options, share / len(self.points), self.progress.bar)
        cost = bind(AtPoints(model, self.points), space, self.options.max_weight_growth)
        refine(cost, share - (time.monotonic() - start), self.options.seed)
        # what extractors look at (sizes, FLOPs) is the space at the first point; e-nodes have the same numbers in both
        cost = replace(cost, space=space.at(self.points[0]))
        if note := getattr(model, "note", ""):
            self.notes.append(note)
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
        names = {"auto": [options.classical, "rl"], "saturation": [options.classical]}.get(
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
