"""A worker process: runs functions by name, so that a crash, hang or lack of memory there costs one call only.

A frame on the pipes is eight bytes of length and a pickle. The child answers on its own copy of stdout; whatever
else prints there goes to stderr, which is dropped.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import IO, Any, Self, TypeVar

T = TypeVar("T")


class WorkerError(RuntimeError):
    """The function raised; the message holds the exception's type and text."""

    @property
    def device_lost(self) -> bool:
        """Whether a remote device went away (`tvm_remote.DeviceLost`): that says nothing about the program."""
        return "DeviceLost" in str(self)


class WorkerDied(WorkerError):
    """The process ended during the call (crash, out of memory, exit)."""


def unknown_function(error: WorkerError) -> bool:
    """Whether TVM did not find a function there; one that a user registers is in the user's process alone."""
    return "Cannot find ffi::Function" in str(error)


class WorkerTimeout(WorkerError):
    """The call did not return in time; the process was killed."""


def _write(stream: IO[bytes], value: Any) -> None:
    data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(len(data).to_bytes(8, "little") + data)
    stream.flush()


def _read(stream: IO[bytes]) -> Any:
    """The next value; EOFError when the other side is gone."""
    head = stream.read(8)
    if len(head) < 8:
        raise EOFError
    size = int.from_bytes(head, "little")
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return pickle.loads(data)


class Worker:
    """One persistent child process, started on the first call and again after it died.

    threads: what the numeric libraries in it are told to use.
    environment: further variables for it. memory: bytes of data that it may hold (Linux); what asks for more fails.
    """

    def __init__(
        self, threads: int = 1, environment: Mapping[str, str] | None = None, memory: int | None = None
    ) -> None:
        self._environment = {
            "OMP_NUM_THREADS": str(threads),
            "OPENBLAS_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TVM_NUM_THREADS": str(threads),
            "XRLFLOW_WORKER": "1",
            "XRLFLOW_WORKER_MEMORY": str(memory or ""),
            **(environment or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.starts = 0
        """How often a process was started."""

    def start(self) -> None:
        """Start the process if none is running. Returns at once; the first call waits for it."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        boot = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-c", boot],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("XRLFLOW_WORKER_STDERR") else subprocess.DEVNULL,
            env={**os.environ, **self._environment},
            start_new_session=os.name != "nt",
        )
        self.starts += 1
        self._answers = queue.SimpleQueue()
        threading.Thread(target=_collect, args=(self._process.stdout, self._answers), daemon=True).start()

    def call(self, function: str, *args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        """The result of `function` ("package.module:name"; called with picklable arguments).

        timeout: seconds, the start of the process included. Raises `WorkerTimeout`, `WorkerDied` or `WorkerError`;
        after the first two the next call starts a new process.
        """
        self.start()
        process = self._process
        assert process is not None and process.stdin is not None
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            _write(process.stdin, (function, args, kwargs))
        except OSError:
            raise self._death(function) from None
        try:
            answer = self._answers.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            self.kill()
            raise WorkerTimeout(f"{function} took more than {timeout:.1f} s") from None
        except BaseException:  # Ctrl-C: the answer that comes later belongs to nobody
            self.kill()
            raise
        if answer is None:
            raise self._death(function)
        good, value = answer
        if not good:
            raise WorkerError(value)
        return value

    def _death(self, function: str) -> WorkerDied:
        process = self._process
        if process is None:  # another thread ended it
            return WorkerDied(f"the worker was ended during {function}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        code = process.returncode
        self.kill()
        how = f"exit code {code}"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                how = signal.Signals(-code).name
        return WorkerDied(f"the worker ended during {function} ({how})")

    def kill(self) -> None:
        """End the process, and what it started, at once."""
        process, self._process = self._process, None
        if process is None:
            return
        if os.name != "nt":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()

    def close(self) -> None:
        """End the process."""
        self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.kill()


def _collect(stream: IO[bytes], answers: queue.SimpleQueue[Any]) -> None:
    """Move answers from the pipe to the queue; None at its end."""
    try:
        while True:
            answers.put(_read(stream))
    except Exception:  # noqa: BLE001  (end of file, a closed pipe, half a pickle: the process is done for)
        answers.put(None)


def _receive(stream: IO[bytes], tasks: queue.SimpleQueue[Any]) -> None:
    """Move tasks from the pipe to the queue; ends the process when the parent is gone, even amid a task."""
    try:
        while True:
            tasks.put(_read(stream))
    except Exception:  # noqa: BLE001  (whatever it is, there is no parent to tell)
        os._exit(0)


def room(share: float = 0.75) -> int | None:
    """Bytes: this share of the machine's memory, a worker's limit; None where it cannot be told."""
    try:
        return int(share * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return None


def together(jobs: Sequence[Callable[[], T]], workers: Sequence[Worker]) -> list[T]:
    """The results of jobs that call workers, each in its own thread. A job that fails, or Ctrl-C, ends them all."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        running = [pool.submit(job) for job in jobs]
        try:
            return [job.result() for job in running]
        except BaseException:
            for worker in workers:
                worker.kill()  # or the other threads would go on until they are done
            raise


def roomy(path: str | os.PathLike[str]) -> bool:
    """Whether several processes may hold the model in this file, which takes several times its size there."""
    return os.path.getsize(path) <= (room() or 1 << 34) // 12


def resolve(function: str) -> Callable[..., Any]:
    """The function that "package.module:name" names."""
    module, _, name = function.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def main() -> None:
    """The child: take tasks from stdin, answer on stdout, until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then kills this process
    limit = os.environ.get("XRLFLOW_WORKER_MEMORY")
    if limit and sys.platform == "linux":  # elsewhere the limit does not count what is mapped
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
    # Out of memory: let the system end this process first.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as f:
        f.write("900")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, tasks), daemon=True).start()
    while True:
        function, args, kwargs = tasks.get()
        try:
            answer = (True, resolve(function)(*args, **kwargs))
        except Exception as e:  # noqa: BLE001  (the parent is told and judges)
            answer = (False, f"{type(e).__name__}: {e}"[:2000])
        try:
            _write(answers, answer)
        except (pickle.PicklingError, TypeError, AttributeError) as e:
            _write(answers, (False, f"the result cannot be sent: {e}"))
