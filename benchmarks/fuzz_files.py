"""Damaged files through the command: each must end in a right file or in one clear line.

    python benchmarks/fuzz_files.py                       # 2,000 mutants
    python benchmarks/fuzz_files.py --seconds 600 --seed 7
    python benchmarks/fuzz_files.py --only 1234           # one mutant again, with its traceback

Mutant n of a seed is the same on every machine. A worker process runs `xrlflow.extract.main` on it with a memory limit
and a time limit, then judges what it left behind. Exit code 0 asks for a file that ONNX accepts and the runtime runs
where they did so before, with the same outputs; exit code 2 for one line on standard error and no file. Whatever else
happens is a failure; its mutant is kept in `--keep`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from mutants import mutant, surroundings

MEMORY = 8 << 30
"""Bytes of address space that a worker may take."""

SECONDS = 20.0
"""A mutant that takes longer hangs."""

PATIENCE = 1.0
"""Seconds that the runtime may take for a mutant; those that need longer count as not run."""

COMMAND = ["--target", "roofline:epyc-1t", "--method", "saturation", "--max-steps", "20", "--max-enodes", "1000"]


class Wrong(Exception):
    """What the command left behind is not as it must be."""


# In the worker


def examine(number: int, seed: int, folder: Path, say: Any, rules: bool = True) -> str:
    """Run the command on a mutant and judge the result; returns the outcome, raises `Wrong`."""
    from xrlflow.extract import main

    _, data = mutant(number, seed)
    surroundings(folder)
    source = folder / "in.onnx"
    out = out_of(source)
    source.write_bytes(data)
    before = sorted(p.name for p in folder.iterdir())
    said, printed = io.StringIO(), io.StringIO()
    say("command")
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
        code = main([str(source), "-o", str(out), *COMMAND, *([] if rules else ["--rules", "elementwise"])])
    lines = said.getvalue().splitlines()
    after = sorted(p.name for p in folder.iterdir())
    if source.read_bytes() != data:
        raise Wrong("the input was changed")
    if code == 2:
        if len(lines) != 1 or "Traceback" in lines[0] or printed.getvalue():
            raise Wrong(f"exit code 2 with {len(lines)} lines: {lines[:3]}")
        if after != before:
            raise Wrong(f"exit code 2, and {sorted(set(after) - set(before))} were written")
        return f"refused: {lines[0].partition(': ')[2].replace(str(source), 'MODEL')}"
    if code not in (0, 3):
        raise Wrong(f"exit code {code}")
    if set(after) - set(before) - {"out.onnx.data"} != {"out.onnx"}:
        raise Wrong(f"{sorted(set(after) ^ set(before))} after exit code {code}")
    if lines:
        raise Wrong(f"exit code {code} and {lines[:3]} on standard error")
    same = out.read_bytes() == data
    from xrlflow.errors import UserError
    from xrlflow.lowering import load, save

    # A result that is not cheaper is a copy of the input, so what the writer makes of the graph is looked at as well.
    say("save")
    written = [] if same else [out]
    try:
        save(load(source), folder / "saved.onnx")
        written.append(folder / "saved.onnx")
    except UserError as error:
        raise Wrong(f"read, but not written again: {error}") from error
    verdict = judge(source, written, say)
    return f"{'verification failed' if code else 'copied' if same else 'improved'}, {verdict}"


def judge(source: Path, written: list[Path], say: Any) -> str:
    """Whether files are as valid as their source and compute the same; returns how far that could be seen."""
    import onnx

    say("check of the input")
    try:
        onnx.checker.check_model(str(source), full_check=True)
        valid = True
    except Exception:  # noqa: BLE001 (the checker raises several unrelated types)
        valid = False
    if valid:
        say("check of the output")
        for path in written:
            try:
                onnx.checker.check_model(str(path), full_check=True)
            except Exception as error:
                if path != out_of(source) and hidden(error):
                    return "valid only while extents are not known"
                raise Wrong(f"{path.name} is not valid, the input is: {error}") from error
    say("run of the input")
    try:
        feeds, wanted = run(source, None)
    except Exception:  # noqa: BLE001 (ONNX Runtime raises a type for each of its codes)
        return "valid, not run" if valid else "not valid"
    say("run of the output")
    for path in written:
        try:
            _, found = run(path, feeds)
        except Exception as error:
            if path != out_of(source) and hidden(error):
                return "runs only while extents are not known"
            raise Wrong(f"{path.name} does not run, the input does: {str(error).splitlines()[0]}") from error
        # A rewritten float32 model may overflow elsewhere: weights near 1e38 are not what it is compared for.
        finite = path == out_of(source)
        if not all(alike(a, b, finite) for a, b in zip(wanted, found, strict=True)):
            if same_graph(path, source):
                return "the runtime gives other outputs for the same graph"  # it reads memory that nothing wrote
            raise Wrong(f"{path.name} gives other outputs than the input")
    return "runs" if valid else "not valid, runs"


def same_graph(a: Path, b: Path) -> bool:
    import onnx

    one, other = (onnx.load(p, load_external_data=False).graph for p in (a, b))
    return bool(one == other)


def out_of(source: Path) -> Path:
    return source.with_name("out.onnx")


def hidden(error: Exception) -> bool:
    """Whether a check saw that operands do not fit: the input hides that from it where it computes their shapes."""
    return "ShapeInferenceError" in str(error)


def run(path: Path, feeds: dict[str, Any] | None) -> tuple[dict[str, Any], list[Any]]:
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    if feeds is None:
        feeds = {i.name: fed(i) for i in session.get_inputs()}
    limits = ort.RunOptions()  # a damaged Loop may go on for ever
    timer = threading.Timer(PATIENCE, lambda: setattr(limits, "terminate", True))
    timer.start()
    try:
        return feeds, session.run(None, feeds, limits)
    finally:
        timer.cancel()


def fed(info: Any) -> np.ndarray:
    """Something to feed an input with."""
    shape = [d if isinstance(d, int) else 2 for d in info.shape]
    if any(d > 1000 for d in shape) or np.prod([float(d) for d in shape]) > 1e6:
        raise ValueError(f"{info.name} is too large to be fed")
    rng = np.random.default_rng(len(info.name))
    kind = info.type.removeprefix("tensor(").removesuffix(")")
    if kind == "string":
        return np.full(shape, "a", dtype=object)
    dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
    return np.asarray(rng.standard_normal(shape) * 2).astype(np.dtype(dtype))


def alike(a: Any, b: Any, finite: bool = False) -> bool:
    """Whether two outputs are equal up to rounding, with `finite` where the first one is a finite number."""
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(alike(x, y, finite) for x, y in zip(a, b, strict=True))
    if not isinstance(a, np.ndarray) or a.dtype.kind not in "fiub":
        return np.array_equal(np.asarray(a), np.asarray(b))
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    x, y = a.astype(np.float64), b.astype(np.float64)
    if finite:
        x, y = x[np.isfinite(x)], y[np.isfinite(x)]
    return bool(np.allclose(x, y, rtol=1e-3, atol=1e-5, equal_nan=True))


def work(seed: int, quick: bool) -> None:
    """Examine the mutants whose numbers come in, one a line; answer each with a line of JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with the answers

    def say(stage: str) -> None:
        channel.write(json.dumps({"stage": stage}) + "\n")

    for line in sys.stdin:
        number = int(line)
        with tempfile.TemporaryDirectory(prefix="xrlflow-fuzz-") as folder:
            try:
                answer = {"outcome": examine(number, seed, Path(folder), say, not quick or number % 5 == 0)}
            except Wrong as error:
                answer = {"failure": str(error)}
            except (Exception, SystemExit):  # noqa: BLE001 (that is what is looked for)
                answer = {"failure": " | ".join(traceback.format_exc().strip().splitlines()[-4:])}
        channel.write(json.dumps(answer) + "\n")


# In the parent


class Worker:
    """A process that examines mutants; a new one takes its place when it dies."""

    def __init__(self, seed: int, quick: bool) -> None:
        self.arguments = [sys.executable, __file__, "--worker", "--seed", str(seed), *(["--quick"] if quick else [])]
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, number: int) -> dict[str, str]:
        if self.process is None:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(
                self.arguments, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment, bufsize=0
            )
        process, stage = self.process, "start"
        assert process.stdin and process.stdout
        with contextlib.suppress(BrokenPipeError):  # of a worker that died in between; that it is silent tells
            process.stdin.write(f"{number}\n".encode())
        deadline = time.monotonic() + SECONDS + (60 if not hasattr(self, "warm") else 0)
        self.warm = True
        while True:
            if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self.close()
                return {"failure": f"no end after {SECONDS:g} s, in stage {stage!r}", "stage": stage}
            line = process.stdout.readline()
            if not line:
                self.process = None
                return {"failure": f"killed by signal {-process.wait()} in stage {stage!r}", "stage": stage}
            answer: dict[str, str] = json.loads(line)
            if "stage" not in answer:
                return answer
            stage = answer["stage"]

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process = None


def ours(answer: dict[str, str]) -> bool:
    """Whether a failure is one of this package: others may die of an input that we only compare with."""
    return "failure" in answer and answer.get("stage") not in ("check of the input", "run of the input")


def fuzz(
    count: int,
    seed: int = 0,
    seconds: float | None = None,
    quick: bool = False,
    first: int = 0,
    keep: Path | None = None,
) -> tuple[Counter[str], list[str]]:
    """Examine `count` mutants, or as many as fit in `seconds`. Returns how many had each outcome, and the failures.

    quick: four of five mutants meet one family of rules only, which takes a third of the time.
    """
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    worker, start = Worker(seed, quick), time.monotonic()
    try:
        for number in range(first, first + count):
            if seconds is not None and time.monotonic() - start > seconds:
                break
            answer = worker.ask(number)
            if "outcome" in answer:
                outcomes[answer["outcome"]] += 1
            elif not ours(answer):
                outcomes[f"another library dies: {answer['failure']}"] += 1
            else:
                what, data = mutant(number, seed)
                failures.append(f"--seed {seed} --only {number} ({what}): {answer['failure']}")
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{seed}-{number}.onnx").write_bytes(data)
    finally:
        worker.close()
    return outcomes, failures


def kinds(outcomes: Counter[str]) -> Counter[str]:
    """The outcomes without names and numbers."""
    import re

    found: Counter[str] = Counter()
    for text, n in outcomes.items():
        found[re.sub(r"'[^']*'|\"[^\"]*\"|/\S+|-?\d+|(?<= node )\S+ \(\w+\)", "…", text)[:150]] += n
    return found


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--count", type=int, default=2000, metavar="N")
    p.add_argument("--first", type=int, default=0, metavar="N", help="number of the first mutant")
    p.add_argument("--seed", type=int, default=0, metavar="N")
    p.add_argument("--seconds", type=float, metavar="S", help="go on for so long instead of for --count mutants")
    p.add_argument("--quick", action="store_true", help="all rules for one mutant of five only")
    p.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the mutants that fail there")
    p.add_argument("--only", type=int, metavar="N", help="examine this mutant in this process")
    p.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.worker:
        work(args.seed, args.quick)
        return 0
    if args.only is not None:
        print(mutant(args.only, args.seed)[0])
        with tempfile.TemporaryDirectory(prefix="xrlflow-fuzz-") as folder:
            print(examine(args.only, args.seed, Path(folder), print))
        return 0
    count = args.count if args.seconds is None else 1 << 40
    outcomes, failures = fuzz(count, args.seed, args.seconds, args.quick, args.first, args.keep)
    print(f"{sum(outcomes.values()) + len(failures)} mutants of seed {args.seed}\n")
    for text, n in kinds(outcomes).most_common():
        print(f"{n:6}  {text}")
    print(f"\n{len(failures)} failures")
    for failure in failures:
        print(f"- {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
