"""The bench: kernels timed together, what a failure costs, and what is done about a machine that changes its speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xrlflow.cost.batches import DRIFT, Job
from xrlflow.cost.bench import Bench
from xrlflow.cost.database import Database
from xrlflow.cost.references import REFERENCES, reference_model
from xrlflow.cost.target import Target
from xrlflow.cost.worker import WorkerDied, WorkerError, WorkerTimeout
from xrlflow.lowering.ort_session import Session

ORT = Target("onnxruntime")
ELSEWHERE = Target("llvm", tracker="127.0.0.1:1", key="board")


class Machine:
    """A worker on a machine `slow` times slower than another; `on` may raise when a kernel is made ready or timed."""

    def __init__(self, slow: float = 1.0, on: Callable[[str, str], None] = lambda what, key: None) -> None:
        self.slow, self.on = slow, on
        self.ready: list[str] = []
        self.batches: list[list[str]] = []
        self.closed = 0

    def call(self, function: str, *args: Any, timeout: float | None = None) -> Any:
        task = function.rpartition(":")[2]
        try:
            if task == "prepare_kernel":
                self.on("prepare", args[0])
                self.ready.append(args[0])
                return {"ms": 1.0}
            if task == "time_kernels":
                for key in self.ready:
                    self.on("time", key)
                kernels, self.ready = self.ready, []
                self.batches.append([k for k in kernels if k not in REFERENCES])
                return {k: [self.slow * f * len(k) for f in (0.5, 1.0, 1.0, 1.0, 7.0)] for k in kernels}
        except WorkerError as e:
            if isinstance(e, (WorkerDied, WorkerTimeout)) or "DeviceLost" in str(e):
                self.ready = []
            raise
        return None

    def close(self) -> None:
        self.closed += 1
        self.ready = []


def measured(machine: Machine, keys: list[str], folder: Path, target: Target = ORT, **options: Any) -> dict[str, float]:
    known: dict[str, float] = {}
    jobs = [Job(k, "Op", lambda: reference_model(REFERENCES[0]), **options) for k in keys]
    with Bench(target, Database(folder), 0, machine) as bench:  # type: ignore[arg-type]
        bench.measure(jobs, known, time.monotonic() + 60)
    return known


def failing(key: str, error: Exception, what: str = "prepare", times: int = 99) -> Callable[[str, str], None]:
    left = [times]

    def on(now: str, of: str) -> None:
        if (now, of) == (what, key) and left[0]:
            left[0] -= 1
            raise error

    return on


def test_kernels_are_timed_together_and_the_median_counts(tmp_path: Path) -> None:
    machine = Machine()
    assert measured(machine, ["a", "bb"], tmp_path) == {"a": 1.0, "bb": 2.0}
    assert machine.batches == [["a", "bb"]]
    assert measured(Machine(), ["cccc"], tmp_path, copies=4) == {"cccc": 1.0}


def test_a_machine_that_got_slower_is_seen_by_the_references(tmp_path: Path) -> None:
    assert measured(Machine(), ["a"], tmp_path) == {"a": 1.0}
    assert measured(Machine(slow=1.5), ["b"], tmp_path) == pytest.approx({"b": 1.0})
    assert measured(Machine(slow=0.8), ["c"], tmp_path) == pytest.approx({"c": 1.0})
    # what noise does every day is left alone
    assert measured(Machine(slow=1 + DRIFT / 2), ["d"], tmp_path) == pytest.approx({"d": 1 + DRIFT / 2})


@pytest.mark.parametrize("error", [WorkerDied("SIGSEGV"), WorkerTimeout("hung"), WorkerError("ValueError: no")])
def test_who_fails_costs_nobody_else(error: WorkerError, tmp_path: Path) -> None:
    machine = Machine(on=failing("c", error))
    assert measured(machine, list("abcd"), tmp_path) == {"a": 1.0, "b": 1.0, "c": np.inf, "d": 1.0}


@pytest.mark.parametrize("error", [WorkerDied("SIGKILL"), WorkerError("MemoryError: std::bad_alloc")])
def test_who_lacks_memory_only_beside_others_is_timed_alone(error: WorkerError, tmp_path: Path) -> None:
    machine = Machine(on=failing("c", error, times=1))
    assert measured(machine, list("abcd"), tmp_path) == dict.fromkeys("abcd", 1.0)
    assert ["c"] in machine.batches


def test_who_crashes_only_when_all_are_run_is_found(tmp_path: Path) -> None:
    machine = Machine(on=failing("c", WorkerDied("SIGSEGV"), "time"))
    assert measured(machine, list("abcd"), tmp_path) == {"a": 1.0, "b": 1.0, "c": np.inf, "d": 1.0}
    assert all(len(batch) == 1 for batch in machine.batches)


def test_a_device_that_is_lost_says_nothing_about_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "fingerprint", lambda self: "there")
    monkeypatch.setattr(Target, "machines", 1)
    monkeypatch.setattr("xrlflow.cost.batches.Batches.superfluous", lambda self: False)
    lost = WorkerError("DeviceLost: the session ended")
    machine = Machine(on=failing("c", lost, times=1))
    assert measured(machine, list("abcd"), tmp_path / "one", ELSEWHERE) == dict.fromkeys("abcd", 1.0)
    assert machine.closed == 1
    # nor does the second time, unless it is always the same one
    machine = Machine(on=failing("c", lost, times=9))
    expected = {"a": 1.0, "b": 1.0, "c": np.inf, "d": 1.0}
    assert measured(machine, list("abcd"), tmp_path / "two", ELSEWHERE) == expected
    machine = Machine(on=failing("b", lost, "time", times=1))
    assert measured(machine, list("abcd"), tmp_path / "three", ELSEWHERE) == dict.fromkeys("abcd", 1.0)


def test_a_budget_that_ends_amid_a_kernel_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is killed then, and what was ready in it has only been run once."""
    left = iter([60.0] * 30)

    def on(what: str, key: str) -> None:
        if key == "c":
            monkeypatch.setattr("xrlflow.cost.batches.Batches.left", -1.0)
            raise WorkerTimeout("the budget ended")

    monkeypatch.setattr("xrlflow.cost.batches.Batches.left", property(lambda self: next(left)))
    assert measured(Machine(on=on), list("abcd"), tmp_path) == {"a": 1.0, "b": 1.0}
    assert not Bench(ORT, Database(tmp_path), 0).remembered("abcd")


def test_a_settling_that_is_cut_short_leaves_what_was_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single run is better than nothing, but not than an earlier timing."""
    left = iter([60.0] * 30)

    def on(what: str, key: str) -> None:
        if key == "b":
            monkeypatch.setattr("xrlflow.cost.batches.Batches.left", -1.0)
            raise WorkerTimeout("the budget ended")

    monkeypatch.setattr("xrlflow.cost.batches.Batches.left", property(lambda self: next(left)))
    known = {"a": 0.25, "b": 0.5}
    jobs = [Job(k, "Op", lambda: reference_model(REFERENCES[0])) for k in "ab"]
    with Bench(ORT, Database(tmp_path), 0, Machine(on=on)) as bench:  # type: ignore[arg-type]
        bench.measure(jobs, known, time.monotonic() + 60, settle=True)
    assert known == {"a": 0.25, "b": 0.5}


def test_the_references_run() -> None:
    for name in REFERENCES:
        assert 0.001 < min(Session(reference_model(name)).time(number=2, repeat=3)) < 50


@pytest.mark.parametrize("error", [WorkerDied("SIGSEGV"), WorkerTimeout("hung")])
def test_a_schedule_that_crashes_or_hangs_costs_a_trial_and_not_the_kernel(error: WorkerError, tmp_path: Path) -> None:
    """What tunes goes on behind it the next time; where nothing is tuned, a crash is the kernel's own."""
    target = Target("llvm")
    jobs = [Job(k, "Op", lambda: reference_model(REFERENCES[0])) for k in "abcd"]
    for times, expected in ((2, 1.0), (9, np.inf)):
        known: dict[str, float] = {}
        machine = Machine(on=failing("c", error, times=times))
        with Bench(target, Database(tmp_path / str(times)), 4, machine) as bench:  # type: ignore[arg-type]
            bench.measure(jobs, known, time.monotonic() + 60)
        assert known == {"a": 1.0, "b": 1.0, "c": expected, "d": 1.0}
