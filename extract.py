"""`python -m xrlflow.extract MODEL -o OUT`: optimise an ONNX model.

The module can also be called: `xrlflow.extract(space, method)` chooses one program of a saturated space
(`pipeline.extract`).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import UserError

if TYPE_CHECKING:
    from .options import Options

EPILOG = """exit codes: 0 done (also when the original is returned because nothing was faster), 2 bad input or usage,
3 verification failed (the original is written, the guilty rule named), 4 target not available"""


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see --help)", file=sys.stderr)
        raise SystemExit(2)


def parser() -> argparse.ArgumentParser:
    p = Parser(
        "xrlflow.extract", description="Make an ONNX model faster without changing what it computes.", epilog=EPILOG
    )
    p.add_argument(
        "model",
        metavar="MODEL",
        help="the ONNX file to optimise; or a Relay module (FILE.relay, see --params); or an e-graph, as "
        "egraph-serialize JSON (FILE.json)",
    )
    p.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="where to write the result: ONNX, or Relay text if it ends in .relay (parameters go to OUT.params); "
        "without it nothing is written",
    )
    p.add_argument(
        "--method",
        default="auto",
        metavar="METHOD",
        help="auto, rl, saturation, greedy, greedy-group, beam, mcts, random or original (default: %(default)s)",
    )
    p.add_argument(
        "--extractor",
        metavar="NAME",
        help="what the method saturation extracts with: climb, ilp, dag or tree (default: climb, then ilp from there)",
    )
    p.add_argument(
        "--target",
        metavar="TARGET",
        help="llvm, cuda, onnxruntime or roofline:DEVICE (default: cuda where a GPU is found, else llvm)",
    )
    p.add_argument(
        "--cost",
        metavar="COST",
        help="what the search goes by: fusion (kernels as TVM fuses them; default on llvm and cuda), kernels (each "
        "operator's own; default on onnxruntime), fusion:DEVICE or roofline:DEVICE (computed)",
    )
    p.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: %(default)s)")
    p.add_argument(
        "--budget", type=float, default=120.0, metavar="SECONDS", help="time for everything (default: %(default)s)"
    )
    p.add_argument(
        "--max-steps",
        type=int,
        metavar="N",
        help="cost evaluations an extractor may make; with a roofline target the result is then reproducible",
    )
    p.add_argument(
        "--max-enodes",
        type=int,
        metavar="N",
        help="size limit of the e-graph (default: 50000, or 20 for each operator of a large model)",
    )
    p.add_argument(
        "--max-weight-growth",
        type=float,
        default=1.05,
        metavar="F",
        help="how many times the original's weight bytes a result may hold (default: %(default)s)",
    )
    p.add_argument("--rules", metavar="FAMILIES", help="only these rules or families, separated by commas")
    p.add_argument(
        "--without", action="append", default=[], metavar="RULE", help="leave out this rule or family; repeatable"
    )
    p.add_argument(
        "--trials", type=int, default=4, metavar="N", help="schedules TVM tries for a kernel (default: %(default)s)"
    )
    p.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME=N,N",
        help="fix an input's shape (? leaves an extent open), or a dimension (batch=1), in the result; repeatable",
    )
    p.add_argument(
        "--at",
        action="append",
        default=[],
        metavar="NAME=N,N",
        help="measure a dynamic model at these extents (batch=1,seq=128); repeatable: never slower at any of them; "
        "not with --inputs, whose extents count",
    )
    p.add_argument("--params", metavar="FILE", help="the parameters of a Relay module (MODEL.relay)")
    p.add_argument("--opset", type=int, metavar="N", help="convert the model to this opset (default: keep its own)")
    p.add_argument("--policy", metavar="FILE", help="a trained policy (default: the one shipped)")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="seed of all random choices (default: %(default)s)")
    p.add_argument(
        "--inputs", metavar="DATA.npz", help="arrays for all of the model's inputs: verify and measure on them too"
    )
    p.add_argument(
        "--custom-ops",
        action="append",
        default=[],
        metavar="LIB",
        help="a shared library of operators for ONNX Runtime; repeatable",
    )
    p.add_argument(
        "--provider",
        default="",
        metavar="NAME",
        help="execution provider of the target onnxruntime (default: the CPU's)",
    )
    p.add_argument(
        "--level",
        default="all",
        metavar="LEVEL",
        help="what the target onnxruntime optimises by itself, on both sides: none, basic, extended or all "
        "(default: %(default)s)",
    )
    add_tracker(p)
    p.add_argument("--json", metavar="FILE", help="write the run's record there")
    p.add_argument(
        "--save-egraph",
        metavar="FILE.json",
        help="write the e-graph and the cost of each e-node there, as egraph-serialize JSON",
    )
    p.add_argument(
        "--replay",
        metavar="RUN.json",
        help="write what the run of this record found, without searching or measuring; verified again",
    )
    p.add_argument(
        "--explain-misses", action="store_true", help="tell where rules almost fired, why not, and what was at stake"
    )
    p.add_argument("--no-verify", action="store_true", help="do not compare the result with the original")
    p.add_argument("--quiet", action="store_true", help="print errors only")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p  # fmt: skip


def add_tracker(p: argparse.ArgumentParser) -> None:
    """The options for devices elsewhere."""
    p.add_argument(
        "--tracker", default="", metavar="HOST:PORT", help="measure on devices behind this RPC tracker (llvm and cuda)"
    )
    p.add_argument("--key", default="", metavar="KEY", help="what these devices are called by the tracker")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(arguments)
    try:
        return run(args)
    except UserError as error:
        if args.debug:
            raise
        print(f"xrlflow.extract: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("xrlflow.extract: interrupted, nothing written", file=sys.stderr)
        return 130


def run(args: argparse.Namespace) -> int:
    from .lowering.onnx_files import check_apart
    from .options import Options
    from .pipeline import Run
    from .result import check_writable

    for path in (args.output, args.json, args.save_egraph):
        if path is not None:
            check_writable(path)
            if os.path.exists(path) and os.path.exists(args.model) and not args.model.endswith(".relay"):
                check_apart(Path(args.model), Path(path))
    check_distinct(args)
    options = Options(
        method=args.method, extractor=args.extractor, target=args.target, cost=args.cost, budget=args.budget,
        max_steps=args.max_steps, max_enodes=args.max_enodes, max_weight_growth=args.max_weight_growth,
        rules=None if args.rules is None else tuple(r for r in args.rules.split(",") if r),
        without=tuple(args.without), threads=args.threads, trials=args.trials, policy=args.policy, seed=args.seed,
        verify=not args.no_verify, inputs=args.inputs, custom_ops=tuple(args.custom_ops), opset=args.opset,
        shape=tuple(args.shape), at=tuple(args.at), explain_misses=args.explain_misses, provider=args.provider,
        level=args.level, tracker=args.tracker, key=args.key, params=args.params,
    )  # fmt: skip
    if args.model.endswith(".json"):
        return run_egraph(args, options)
    if args.save_egraph is not None and (args.replay is not None or args.method == "original"):
        raise UserError("--save-egraph: there is no e-graph to write, for nothing is searched with these options")
    if args.replay is not None:
        from .replay import replay

        result = replay(args.model, args.replay, options)
    else:
        result = Run(args.model, options, False if args.quiet else None).result()
    if args.output is not None:
        result.save(args.output)
    if args.json is not None:
        result.save_report(args.json)
    if args.save_egraph is not None:
        result.save_egraph(args.save_egraph)
    if not args.quiet:
        print(result)
    elif result.exit_code:
        print(f"xrlflow.extract: {result.outcome}", file=sys.stderr)
    return result.exit_code


def run_egraph(args: argparse.Namespace, options: Options) -> int:
    """Extract from an e-graph that somebody else made."""
    import json

    from .foreign import extract_egraph, summary
    from .result import write_file

    for flag, value in (("-o", args.output), ("--replay", args.replay), ("--save-egraph", args.save_egraph)):
        if value is not None:
            raise UserError(f"{flag} is for models; what is chosen of an e-graph is written by --json")
    record = extract_egraph(args.model, options)
    if args.json is not None:
        write_file(args.json, (json.dumps(record, indent=2) + "\n").encode())
    if not args.quiet:
        print(summary(record))
    return 0


def check_distinct(args: argparse.Namespace) -> None:
    """Raises `UserError` if a file that is to be written is one that is read, or is to be written twice.

    OUT may be MODEL: the model is replaced by its result then.
    """
    read = [
        ("MODEL", args.model),
        ("--params", args.params),
        ("--inputs", args.inputs),
        ("--policy", args.policy),
        ("--replay", args.replay),
    ]
    read += [("--custom-ops", library) for library in args.custom_ops]
    named = [(what, os.path.realpath(path)) for what, path in read if path is not None]
    written = [("-o", args.output), ("--json", args.json), ("--save-egraph", args.save_egraph)]
    if args.output is not None and args.output.endswith(".relay"):
        written.append(("the parameters of -o", str(Path(args.output).with_suffix(".params"))))
    for what, path in written:
        if path is None:
            continue
        for other, taken in named:
            if os.path.realpath(path) == taken and (what, other) != ("-o", "MODEL"):
                raise UserError(f"{what} {path}: that is the file of {other}; name another one")
        named.append((what, os.path.realpath(path)))


class _Callable(ModuleType):
    """Lets `xrlflow.extract` be the verb as well as the module."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """See `xrlflow.pipeline.extract`."""
        from .pipeline import extract

        return extract(*args, **options)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    sys.exit(main())
