"""The optimiser as a pass over Relax modules.

    from xrlflow.lowering.relax import Optimize, pipeline

    module = Optimize(method="saturation", budget=60)(module)                     # alone
    passes = tvm.ir.transform.Sequential([Optimize(), relax.get_pipeline("zero")])
    executable = tvm.compile(module, target, relax_pipeline=pipeline(target))     # with tuned schedules

Each region of a module (`relax_module`) is searched by itself: verified against what it computed before, run by TVM,
and replaced only where it was measured faster. What the pass did is the module's attribute `ACCOUNT`, as JSON.
"""

from __future__ import annotations

import json
import time
import warnings
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .relax_module import Region, UnreadFunction, regions, rewritten
from .relax_program import from_graph
from .tvm_module import compile_module, fuse, scheduled, tvm

if TYPE_CHECKING:
    from ..egraph.graph import Graph

__all__ = ["ACCOUNT", "Optimize", "UnreadFunction", "compiled", "from_graph", "pipeline", "regions", "rewritten"]

ACCOUNT = "xrlflow"
"""Attribute of a module that tells what the pass did."""

_BUDGET = 120.0
_PASS = tvm().transform.module_pass


@_PASS(opt_level=0, name="xrlflow.Optimize")
class Optimize:
    """Finds faster forms of the dataflow blocks of a module's Relax functions.

    method, budget (seconds, for the whole module), and further options are those of `xrlflow.optimize`. target: one of
    its targets, or a `tvm.target.Target`; by default the one in whose scope the pass runs, else `xrlflow.optimize`'s.
    Kernels are fused and timed as `pipeline` compiles them. Under a roofline nothing is measured, and the cheapest
    program is taken.

    What cannot be read, or cannot be verified, stays as it was; a `UnreadFunction` warning names it.
    """

    def __init__(self, method: str = "auto", target: Any = None, budget: float = _BUDGET, **options: Any) -> None:
        from ..options import Options

        self.method, self.target, self.budget, self.options = method, target, budget, options
        Options(method=method, budget=budget, **options).check()

    def transform_module(self, module: Any, context: Any) -> Any:
        """The module with what was found, as TVM calls it."""
        search = _Search(self)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", UnreadFunction)
            search.work = sum(len(r.graph.operators) for r in regions(module))
        left = list(dict.fromkeys(str(w.message) for w in told if issubclass(w.category, UnreadFunction)))
        found = rewritten(module, search.improved, search.refused)
        account = {"target": search.target, "method": self.method, "regions": search.account, "left": left}
        return found.with_attr(ACCOUNT, json.dumps(account))


class _Search:
    """One run of the pass. work: operators that are still to be looked at, by which the budget is shared."""

    def __init__(self, told: Any) -> None:
        self.told = told
        self.target = _target_name(told.target)
        self.options = {"threads": _threads(told.target), **told.options}
        self.end = time.monotonic() + told.budget
        self.work = 0
        self.account: list[dict[str, Any]] = []

    def improved(self, region: Region) -> Graph | None:
        from ..options import Options
        from ..pipeline import Run

        size = len(region.graph.operators)
        budget = (self.end - time.monotonic()) * size / max(1, self.work)
        self.work -= size
        record: dict[str, Any] = {"function": region.function, "block": region.block, "operators": size}
        self.account.append(record)
        if not size or budget <= 0:
            record["outcome"] = "nothing to do" if not size else "no time was left"
            return None
        options = Options(method=self.told.method, target=self.target, budget=budget, **self.options)
        try:
            result = Run(region.graph, options).result()
        except UserError as error:
            record["outcome"] = f"left as it is: {error}"
            warnings.warn(f"{region.function}: {record['outcome']}", UnreadFunction, stacklevel=2)
            return None
        report = result.report
        record |= {"outcome": result.outcome, "improved": result.improved, "notes": list(result.notes)}
        record |= {k: report[k] for k in ("cost", "latency", "verification", "substitutions") if k in report}
        found: Graph | None = result.model.graph if result.improved else None  # as it was verified
        return found

    def refused(self, region: Region, why: str) -> None:
        """What was found for the last region cannot take its place in the module after all."""
        self.account[-1] |= {"improved": False, "outcome": f"left as it is: {why}"}


def _target_name(target: Any) -> str | None:
    """The name of one of our targets for a `tvm.target.Target`; the current one's by default."""
    found = tvm().target.Target.current(allow_none=True) if target is None else target
    if found is None or isinstance(found, str):
        return found
    return str(found.kind.name if hasattr(found.kind, "name") else found.kind)


def _threads(target: Any) -> int:
    """The threads that a `tvm.target.Target` is for; the current one's by default."""
    found = tvm().target.Target.current(allow_none=True) if target is None else target
    cores = None if found is None or isinstance(found, str) else found.attrs.get("num-cores")
    return max(1, int(cores)) if cores is not None else 1


def pipeline(target: Any = None, tuned: bool = True, **options: Any) -> Any:
    """A pass for `relax_pipeline=`: `Optimize` with these options, then TVM's default pipeline for the target.

    tuned: with the schedules that `python -m xrlflow.tune`, or a search, has left in the cache.
    """

    @_PASS(opt_level=0, name="xrlflow.pipeline")
    def run(module: Any, context: Any) -> Any:
        from tvm import relax

        of = tvm().target.Target(target) if target is not None else tvm().target.Target.current(allow_none=False)
        optimize: Any = Optimize(target=of, **options)
        with of:
            module = fuse(optimize(module), of)
            known = _schedules(module, of, options.get("threads", _threads(of))) if tuned else None
            return relax.get_default_pipeline(of)(scheduled(module, known))

    return run


def compiled(module: Any, target: Any, threads: int = 1) -> Any:
    """A `relax.VMExecutable` of a module, with the schedules that were left in the cache."""
    module = fuse(module, target)
    return compile_module(module, target, _schedules(module, target, threads))


def _schedules(module: Any, target: Any, threads: int) -> Any:
    from ..cost.database import Database
    from ..cost.target import parse_target
    from .tvm_tasks import recorded

    name = _target_name(target)
    if name not in ("llvm", "cuda"):
        return None
    return recorded(module, target, Database().schedules(parse_target(name, threads).fingerprint()))
