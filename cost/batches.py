"""One series of kernel timings: a queue of kernels, and what each worker does with it, batch by batch."""

from __future__ import annotations

import contextlib
import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..lowering.single import NotSingle
from .measurement import round_seconds
from .references import REFERENCES, pace, reference_model
from .worker import Worker, WorkerDied, WorkerError, WorkerTimeout, room, unknown_function

if TYPE_CHECKING:
    import onnx

    from ..lowering.relax_program import RelaxModel
    from .bench import Bench

KERNEL_SECONDS = 60.0
"""A kernel that takes longer than this to compile, tune and time is given up."""

BATCH, BYTES, SECONDS = 48, 1 << 30, 20.0
"""Most kernels that are timed together, most bytes of their models, and seconds after which no more are made ready."""

SHARE = 8
"""Most kernels in a batch where several devices share the work."""

ROUNDS, SPREAD = (5, 40), 2.0
"""Rounds of a batch, at least and at most, and the seconds after which no more are begun than the least."""

LONG, LONG_SPREAD = (30, 200), 6.0
"""The same for kernels that are timed once more, together, because a choice hangs on them."""

DRIFT = 0.05
"""Changes of the machine's speed below this are not told from noise, and left alone."""

RECOVERY = 15.0
"""Seconds that a device which was lost has to come back."""

RETRIES = 2
"""A kernel whose tuning crashes or hangs is tried so often again: behind the schedule that did it."""

LOSSES = 2
"""A kernel during which so many sessions were lost is what loses them."""

_TASKS = f"{__package__}.measurement"
_REMOTE = f"{__package__.rpartition('.')[0]}.lowering.tvm_remote"


@dataclass(frozen=True)
class Job:
    """A kernel to time. key: what it is remembered under. label: its operators. model: makes it a model, of ONNX or
    Relax. copies: how often the kernel is in that model."""

    key: str
    label: str
    model: Callable[[], onnx.ModelProto | RelaxModel]
    copies: int = 1


@dataclass
class _Entry:
    """A job in the queue. losses: sessions lost over it. alone: whether it is timed by itself, lest it harm others."""

    job: Job
    losses: int = 0
    alone: bool = False
    retries: int = RETRIES
    found: dict[str, Any] = field(default_factory=dict)
    """What making it ready said."""


class Batches:
    """One call of `Bench.measure`: a queue of kernels, and what each worker does with it."""

    def __init__(
        self,
        bench: Bench,
        jobs: Sequence[Job],
        known: dict[str, float],
        deadline: float,
        progress: Callable[[int, int], None] | None,
        settle: bool = False,
    ) -> None:
        self.bench, self.known, self.deadline, self.progress = bench, known, deadline, progress
        self.settle = settle
        self.rounds, self.spread = (LONG, LONG_SPREAD) if settle else (ROUNDS, SPREAD)
        self.queue = deque(_Entry(job) for job in jobs)
        self.done, self.total = 0, len(jobs)
        self.lock = threading.Lock()
        target = bench.target
        self.folder = str(bench.database.schedules(target.fingerprint())) if bench.trials and target.tunable else ""
        self.most = (2 if settle else 1) * BATCH if target.machines == 1 else SHARE
        self.bytes = min(BYTES, (room() or BYTES) // 12)  # models take several times their size when they are compiled
        self.seconds = 60.0 if settle else SECONDS
        self.active = 0
        """Workers that serve."""

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def serve(self, worker: Worker) -> None:
        """Take kernels from the queue and time them, batch by batch, until there are none or the time is over."""
        with self.lock:
            self.active += 1
        failures = 0
        while self.queue and self.left > 0:
            try:
                ready = self.prepare(worker)
                if ready:
                    self.time(worker, ready)
                    failures = 0
            except _Lost:
                failures += 1
                worker.close()  # what it had loaded over there is of no use
                if failures > LOSSES or self.superfluous():
                    break

    def superfluous(self) -> bool:
        """Whether there are fewer devices left than workers, and none comes back soon; the caller ends then."""
        target, until = self.bench.target, time.monotonic() + min(RECOVERY, self.left)
        while target.tracker and self.queue:
            there = 0
            with contextlib.suppress(WorkerError), Worker() as asking:
                there = asking.call(f"{_REMOTE}:servers", target.tracker, target.key, timeout=30.0)[0]
            with self.lock:
                if there >= self.active:
                    return False
                if time.monotonic() > until:
                    self.active -= 1
                    return True
            time.sleep(1.0)
        return False

    def prepare(self, worker: Worker) -> list[_Entry]:
        """Make kernels ready in a worker; those that are."""
        ready: list[_Entry] = []
        begun, size, needed, slowest = False, 0, 0.0, 0.0
        start = time.monotonic()
        while len(ready) < self.most and size < self.bytes and time.monotonic() - start < self.seconds:
            if ready and self.left < needed + 1.5 * slowest:
                break  # one more could cost the others their figures
            entry = self.take(alone=not ready)
            if entry is None:
                break
            try:
                model = entry.job.model().SerializeToString()
            except (NotSingle, ValueError):
                self.count()
                continue
            if not begun:
                self.begin(worker, entry)
                begun = True
            before = time.monotonic()
            try:
                entry.found = self.made_ready(worker, entry.job.key, model)
            except WorkerTimeout as e:
                if self.left <= 0.05 * KERNEL_SECONDS:  # the budget ended, not the kernel's own limit
                    self.again([entry])
                    for one in ready:  # what a single run took is better than nothing
                        self.known.setdefault(one.job.key, one.found["ms"] / one.job.copies)
                    return []
                if self.may_go_on(entry):
                    self.again([*ready, entry])
                else:
                    self.again(ready)
                    self.remember(entry.job, np.inf, reason=str(e))
                begun, ready, size, needed = False, [], 0, 0.0
            except WorkerError as e:
                if e.device_lost:
                    self.again(ready)
                    self.lost(entry, e)
                died = isinstance(e, WorkerDied)
                if ready and (died or "emory" in str(e) or "bad_alloc" in str(e)):
                    # Perhaps what was ready already took the memory that it lacked.
                    entry.alone = True
                    self.again([*ready, entry] if died else [entry])
                    return [] if died else ready
                if died and self.may_go_on(entry):
                    self.again([entry])
                    return []
                if unknown_function(e):  # the user's own, which only the user's process has
                    self.count()
                    continue
                self.remember(entry.job, np.inf, reason=str(e)[:300])
                begun &= not died
            else:
                ready.append(entry)
                size += len(model)
                needed += self.rounds[0] * round_seconds(entry.found["ms"])
                slowest = max(slowest, time.monotonic() - before)
                if entry.alone:
                    break
        return ready

    def may_go_on(self, entry: _Entry) -> bool:
        """Whether tuning a kernel that broke off can go on behind the schedule that it broke off at."""
        entry.retries -= 1
        return bool(self.folder) and entry.retries >= 0

    def begin(self, worker: Worker, entry: _Entry) -> None:
        """Get a worker ready for a batch that begins with `entry`: the reference kernels come first."""
        try:
            worker.call(f"{_TASKS}:warm_up", self.bench.target, timeout=max(30.0, self.left))
            for name in REFERENCES:
                try:
                    self.made_ready(worker, name, reference_model(name).SerializeToString())
                except WorkerError as e:
                    if isinstance(e, (WorkerDied, WorkerTimeout)) or e.device_lost:
                        raise  # else a target that cannot run a reference goes without
        except WorkerError:
            self.again([entry])
            raise _Lost from None

    def made_ready(self, worker: Worker, key: str, model: bytes) -> dict[str, Any]:
        limit = min(KERNEL_SECONDS, self.left)
        found: dict[str, Any] = worker.call(
            f"{_TASKS}:prepare_kernel", key, model, self.bench.target, self.folder, self.bench.trials, 0.8 * limit,
            timeout=max(0.1, limit),
        )  # fmt: skip
        return found

    def time(self, worker: Worker, ready: list[_Entry]) -> None:
        """Time a batch that is ready."""
        limit = max(10.0, 2 * self.rounds[0] * sum(round_seconds(e.found["ms"]) for e in ready)) + 60.0
        left = max(0.0, self.left)
        try:
            figures = worker.call(
                f"{_TASKS}:time_kernels", *self.rounds, min(self.spread, left), left, timeout=limit
            )  # fmt: skip
        except WorkerError as e:
            lost = e.device_lost
            if len(ready) == 1:
                if lost:
                    self.lost(ready[0], e)
                self.remember(ready[0].job, np.inf, reason=str(e)[:300])
                return
            for entry in ready:  # if it was one of them that did it, it shall be alone the next time
                entry.losses += lost
                entry.alone = not lost or entry.losses >= LOSSES
            self.again(ready)
            if lost:
                raise _Lost from None
            return
        drift = self.drift(figures)
        for entry in ready:
            job, found = entry.job, dict(entry.found)
            ms = statistics.median(figures[job.key]) / job.copies / drift
            found.pop("ms")
            if found.get("complete", True):
                self.remember(job, ms, op=job.label, drift=round(drift, 4), settled=self.settle, **found)
            else:
                self.known[job.key] = ms  # good enough for now, yet not what the key promises
                self.bench.settled.add(job.key)
                self.count()

    def drift(self, figures: Mapping[str, Sequence[float]]) -> float:
        """How many times slower the machine is than when the references were first timed; 1 if about as fast."""
        bench, known = self.bench, dict[str, float]()
        key = (bench.target.threads, bench.state_of(""))
        with self.lock:
            for name in REFERENCES:
                if name in figures:
                    found = bench.database.get(name, bench.target.fingerprint(), *key)
                    known[name] = statistics.median(figures[name]) if found is None else found.ms
                    if found is None:
                        bench.database.put(name, bench.target.fingerprint(), known[name], *key)
        slower = pace(figures, known)
        return slower if abs(math.log(slower)) > math.log1p(DRIFT) else 1.0

    # The queue

    def take(self, alone: bool) -> _Entry | None:
        """The next kernel; None if there is none, or it is one to be timed alone and the caller has others."""
        with self.lock:
            if not self.queue or (self.queue[0].alone and not alone):
                return None
            return self.queue.popleft()

    def again(self, entries: Sequence[_Entry]) -> None:
        """Put kernels back that another's failure, or a lost device, kept from being timed."""
        with self.lock:
            self.queue.extendleft(reversed(entries))

    def lost(self, entry: _Entry, error: WorkerError) -> None:
        """Note that a session was lost over a kernel, and go on with the next one; always raises."""
        entry.losses += 1
        if "no server" in str(error) or "no session" in str(error) or entry.losses < LOSSES:
            self.again([entry])
        else:
            self.remember(entry.job, np.inf, reason=f"{entry.losses} devices were lost over it: {str(error)[:200]}")
        raise _Lost

    def remember(self, job: Job, ms: float, **detail: object) -> None:
        target = self.bench.target
        with self.lock:
            self.known[job.key] = ms
            if self.settle or ms == math.inf:
                self.bench.settled.add(job.key)
            self.bench.database.put(job.key, target.fingerprint(), ms, target.threads, self.bench.state, **detail)
        self.count()

    def count(self) -> None:
        with self.lock:
            self.done += 1
            done = min(self.done, self.total)
        if self.progress is not None:
            self.progress(done, self.total)


class _Lost(Exception):
    """A device went away; its worker looks for another."""
