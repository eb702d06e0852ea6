"""The database of latencies, and the worker processes that fill it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import pytest

from xrlflow.cost.database import FILE, Database, Latency, cache_folder
from xrlflow.cost.worker import Worker, WorkerDied, WorkerError, WorkerTimeout, together


def test_what_is_put_is_found_again_by_another_database(tmp_path):
    with Database(tmp_path) as db:
        db.put("k", "t", 1.5, threads=2, state="untuned", repeats=5)
        assert db.get("k", "t", 2, "untuned") == Latency(1.5, {"repeats": 5})
    with Database(tmp_path) as db:
        assert db.get("k", "t", 2, "untuned") == Latency(1.5, {"repeats": 5})


@pytest.mark.parametrize("other", [("x", "t", 1, "s"), ("k", "x", 1, "s"), ("k", "t", 2, "s"), ("k", "t", 1, "x")])
def test_every_part_of_the_key_tells_entries_apart(tmp_path, other):
    with Database(tmp_path) as db:
        db.put("k", "t", 1.0, 1, "s")
        assert db.get(*other) is None


def test_a_kernel_that_cannot_run_is_remembered_as_infinite(tmp_path):
    with Database(tmp_path) as db:
        db.put("k", "t", float("inf"), reason="crash")
        assert db.get("k", "t") == Latency(float("inf"), {"reason": "crash"})


def test_putting_again_replaces(tmp_path):
    with Database(tmp_path) as db:
        db.put("k", "t", 1.0)
        db.put("k", "t", 2.0)
        assert db.get("k", "t").ms == 2.0 and len(db) == 1


def _fill(folder: str, who: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Database(folder) as db:
            for i in range(100):
                db.put(f"{who}-{i}", "t", i)
                db.put("shared", "t", who)


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=_fill, args=(str(tmp_path), who)) for who in range(3)]
    for p in running:
        p.start()
    for p in running:
        p.join(60)
    assert [p.exitcode for p in running] == [0, 0, 0]
    with Database(tmp_path) as db:
        assert len(db) == 301
        assert all(db.get(f"{who}-{i}", "t").ms == i for who in range(3) for i in range(100))


def test_a_file_that_is_no_database_is_set_aside_with_a_warning(tmp_path):
    (tmp_path / FILE).write_bytes(b"this is no database" * 100)
    with pytest.warns(UserWarning, match="set aside"):
        db = Database(tmp_path)
    db.put("k", "t", 1.0)
    assert db.get("k", "t") == Latency(1.0)
    aside = [p for p in tmp_path.iterdir() if ".damaged-" in p.name]
    assert len(aside) == 1 and aside[0].read_bytes().startswith(b"this is no database")


def test_a_file_damaged_in_the_middle_is_set_aside(tmp_path):
    with Database(tmp_path) as db:
        for i in range(2000):
            db.put(f"kernel-{i:06d}", "t", i)
    with sqlite3.connect(tmp_path / FILE) as raw:
        raw.execute("pragma wal_checkpoint(truncate)")
    raw.close()
    data = bytearray((tmp_path / FILE).read_bytes())
    data[4096 : len(data) - 4096] = os.urandom(len(data) - 8192)
    (tmp_path / FILE).write_bytes(data)
    with pytest.warns(UserWarning, match="damaged"):
        db = Database(tmp_path)
    assert len(db) == 0
    db.put("k", "t", 1.0)
    assert Database(tmp_path).get("k", "t").ms == 1.0


def test_a_folder_that_cannot_be_made_gives_a_database_in_memory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="not kept"):
        db = Database(tmp_path / "file" / "cache")
    db.put("k", "t", 1.0)
    assert db.get("k", "t").ms == 1.0


def test_a_lock_that_stays_is_a_warning_and_no_error(tmp_path):
    db = Database(tmp_path, timeout=0.1)
    other = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    other.execute("begin immediate")
    with pytest.warns(UserWarning, match="busy"):
        db.put("k", "t", 1.0)
    other.execute("rollback")
    db.put("k", "t", 2.0)
    assert db.get("k", "t").ms == 2.0


def test_the_environment_chooses_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XRLFLOW_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("XRLFLOW_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "xrlflow"


def test_schedules_of_targets_are_kept_apart(tmp_path):
    db = Database(tmp_path)
    assert db.schedules("a").is_dir() and db.schedules("a") != db.schedules("b")


def test_a_worker_answers_and_stays():
    with Worker() as w:
        first = w.call("os:getpid", timeout=30)
        assert first != os.getpid()
        assert w.call("os:getpid", timeout=30) == first and w.starts == 1


def test_an_exception_comes_back_as_its_text_and_the_worker_stays():
    with Worker() as w:
        with pytest.raises(WorkerError, match=r"ZeroDivisionError"):
            w.call("operator:truediv", 1, 0, timeout=30)
        assert w.call("operator:add", 1, 2, timeout=30) == 3 and w.starts == 1


def test_a_crash_costs_one_call():
    with Worker() as w:
        with pytest.raises(WorkerDied, match="exit code 3"):
            w.call("os:_exit", 3, timeout=30)
        assert w.call("operator:add", 1, 2, timeout=30) == 3 and w.starts == 2


def test_a_segmentation_fault_is_named():
    with Worker() as w, pytest.raises(WorkerDied, match="SIGSEGV"):
        w.call("ctypes:string_at", 0, timeout=30)


def test_a_hang_costs_one_call_and_its_time_limit():
    with Worker() as w:
        w.call("os:getpid", timeout=30)
        start = time.monotonic()
        with pytest.raises(WorkerTimeout):
            w.call("time:sleep", 60, timeout=0.5)
        assert time.monotonic() - start < 5
        assert w.call("operator:add", 1, 2, timeout=30) == 3


def test_what_a_task_prints_does_not_garble_the_answer():
    with Worker() as w:
        w.call("builtins:print", "x" * 100, timeout=30)
        assert w.call("os:system", "echo hello", timeout=30) == 0
        assert w.call("operator:add", 1, 2, timeout=30) == 3


def test_a_result_that_cannot_be_sent_is_an_error():
    with Worker() as w:
        with pytest.raises(WorkerError, match="cannot be sent"):
            w.call("threading:Lock", timeout=30)
        assert w.call("operator:add", 1, 2, timeout=30) == 3


def test_threads_reach_the_libraries():
    with Worker(threads=3, environment={"XRLFLOW_TEST": "yes"}) as w:
        assert w.call("os:getenv", "TVM_NUM_THREADS", timeout=30) == "3"
        assert w.call("os:getenv", "XRLFLOW_TEST", timeout=30) == "yes"


def test_ctrl_c_does_not_wait_for_workers() -> None:
    code = """
from functools import partial
from xrlflow.cost.worker import Worker, together
workers = Worker(), Worker()
for w in workers:
    w.call("os:getpid", timeout=60)
print("ready", flush=True)
together([partial(w.call, "time:sleep", 60.0, timeout=90.0) for w in workers], workers)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(0.5)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in process.communicate(timeout=60)[1]
        assert time.monotonic() - start < 20


def test_jobs_side_by_side_give_their_results_in_order() -> None:
    with Worker() as one, Worker() as two:
        numbers = [partial(worker.call, "math:sqrt", x, timeout=60.0) for worker, x in ((one, 4.0), (two, 9.0))]
        assert together(numbers, [one, two]) == [2.0, 3.0]
        with pytest.raises(WorkerError, match="math domain"):
            together([numbers[0], partial(two.call, "math:sqrt", -1.0, timeout=60.0)], [one, two])


def test_a_worker_does_not_outlive_its_parent():
    code = (
        "import os, sys; sys.path[:] = %r\n"
        "from xrlflow.cost.worker import Worker\n"
        "w = Worker(); print(w.call('os:getpid', timeout=30), flush=True)\n"
        "import threading; threading.Thread(target=lambda: w.call('time:sleep', 60), daemon=True).start()\n"
        "import time; time.sleep(0.3); os._exit(0)"
    ) % (sys.path,)
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True).stdout)
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.05)
    pytest.fail("the worker is still there")
