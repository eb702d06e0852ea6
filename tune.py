"""`python -m xrlflow.tune MODEL`: tune the kernels that TVM makes of a model, for all later runs to use.

Schedules are kept beside the database of measurements, one file a kernel; whatever compiles the same kernel for the
same target again uses them. A run goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    from .cost.target import Target


def parser() -> argparse.ArgumentParser:
    from .extract import Parser, add_tracker

    p = Parser("xrlflow.tune", description="Tune the kernels that TVM makes of models, for later runs to use.")
    p.add_argument("models", nargs="+", metavar="MODEL", help="ONNX files")
    p.add_argument("--target", metavar="TARGET", help="llvm or cuda (default: cuda where a GPU is found, else llvm)")
    p.add_argument("--seconds", type=float, default=120.0, metavar="N", help="for each model (default: %(default)s)")
    p.add_argument("--trials", type=int, default=32, metavar="N", help="candidates a kernel (default: %(default)s)")
    p.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads of a kernel (default: %(default)s)")
    p.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that share the kernels (default: one, or one for each device of a tracker); on one CPU they "
        "disturb each other's figures unless each has its cores",
    )
    add_tracker(p)
    p.add_argument("--at", default="", metavar="NAME=N,N", help="extents of a dynamic model (default: 1)")
    p.add_argument("--quiet", action="store_true", help="print errors only")
    return p


def tune(
    path: str,
    target: Target,
    seconds: float,
    trials: int,
    workers: int | None = None,
    symbols: dict[str, int] | None = None,
) -> dict[str, Any]:
    """Tune one model: kernels, how many of them are tuned, candidates measured now and ever, seconds, and whether
    verdicts about the model would count (`judge`). Raises `UserError` if it cannot be compiled."""
    from .cost.database import Database
    from .cost.worker import Worker, WorkerError, room

    workers = workers or target.machines
    if not target.tunable:
        raise UserError(f"{target}: only kernels that TVM compiles are tuned; give llvm or cuda")
    folder, start = str(Database().schedules(target.fingerprint())), time.monotonic()

    def work(part: tuple[int, int], limit: float, wanted: int) -> dict[str, Any]:
        with Worker(target.threads, memory=room()) as worker:
            found: dict[str, Any] = worker.call(
                "xrlflow.cost.measurement:tune_model", path, target, folder, wanted, limit, dict(symbols or {}), part,
                timeout=limit + 600.0,
            )  # fmt: skip
        return found

    try:
        with ThreadPoolExecutor(workers) as pool:
            parts = list(pool.map(lambda k: work((k, workers), seconds, trials), range(workers)))
        whole = work((0, 1), 0.0, 0)  # what all of them left
    except WorkerError as error:
        raise UserError(f"{path}: cannot be tuned for {target}: {error}") from None
    measured = sum(p["measured"] for p in parts)
    return {**whole, "measured": measured, "complete": all(p["complete"] for p in parts),
            "seconds": round(time.monotonic() - start, 1)}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(arguments)
    from .lowering.onnx_reader import load
    from .lowering.points import parse_extents, point
    from .pipeline import find_target

    try:
        for name in ("seconds", "trials", "threads", "workers"):
            if getattr(args, name) is not None and not getattr(args, name) > 0:
                raise UserError(f"--{name} must be more than 0, not {getattr(args, name)}")
        target = find_target(args.target, args.threads, tracker=args.tracker, key=args.key)
        for path in args.models:
            extents = parse_extents(args.at, "--at") if args.at else {}
            symbols = point(load(path), extents, "--at")
            found = tune(path, target, args.seconds, args.trials, args.workers, symbols)
            if not args.quiet:
                judge = "a judge" if found["judge"] else "not a judge yet"
                rest = "" if found["complete"] else "; more time would tune more"
                print(
                    f"{path}: {found['tuned']} of {found['kernels']} kernels tuned, {found['measured']} candidates "
                    f"measured in {found['seconds']} s, {judge}{rest}"
                )
    except UserError as error:
        print(f"xrlflow.tune: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("xrlflow.tune: interrupted; what was found so far is kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
