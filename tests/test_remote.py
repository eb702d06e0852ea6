"""Devices behind an RPC tracker, on loopback: work is shared, and a device that dies loses nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import helper, numpy_helper

from xrlflow import extract, serve, tune
from xrlflow.cost.batches import Job
from xrlflow.cost.bench import Bench
from xrlflow.cost.confirm import confirm
from xrlflow.cost.database import Database
from xrlflow.cost.target import Target, parse_target
from xrlflow.cost.worker import Worker
from xrlflow.errors import TargetUnavailable, UserError
from xrlflow.lowering import tvm_module
from xrlflow.lowering.tvm_remote import Remote

KEY = "board"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Farm:
    """A tracker and servers on this machine. logs: what each server wrote."""

    def __init__(self, folder: Path, servers: int) -> None:
        self.tracker = f"127.0.0.1:{free_port()}"
        self.logs = [folder / f"server{k}.log" for k in range(servers)]
        host, _, port = self.tracker.partition(":")
        end = ["--port-end", "65535"]  # TVM's own is below most free ports
        self.processes = [
            self.start(folder / "tracker.log", "tvm.exec.rpc_tracker", "--host", host, "--port", port, *end)
        ]
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        for log in self.logs:
            own = ["--host", host, "--port", str(free_port()), "--tracker", self.tracker, "--key", KEY]
            self.processes.append(self.start(log, "xrlflow.serve", *own))
        with Worker() as worker:
            while time.monotonic() < deadline:
                found = worker.call("xrlflow.lowering.tvm_remote:servers", self.tracker, KEY, timeout=60)
                if found[0] == servers:
                    return
                time.sleep(0.2)
        raise RuntimeError("the servers did not come up")

    def start(self, log: Path, what: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-u", "-m", what, *arguments]
        with log.open("wb") as out:
            return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)

    def kill(self, server: int) -> None:
        """End a server with its sessions, as a device that loses its power."""
        os.killpg(self.processes[1 + server].pid, signal.SIGKILL)

    def crash(self) -> int:
        """End all sessions, as programs that crash do; how many there were."""
        sessions = [
            session
            for process in self.processes[1:]
            for server in psutil.Process(process.pid).children()
            for session in server.children()
        ]
        for session in sessions:
            session.send_signal(signal.SIGSEGV)
        return len(sessions)

    def sessions(self, server: int) -> int:
        return self.logs[server].read_text(errors="replace").count("connected from")

    def loads(self, server: int) -> int:
        """Programs that a server was given."""
        return self.logs[server].read_text(errors="replace").count("load_module")

    def close(self) -> None:
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    found = Farm(tmp_path_factory.mktemp("farm"), 2)
    yield found
    found.close()


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Farm]:
    """A farm of whose servers some are to die."""
    found = Farm(tmp_path, 2)
    yield found
    found.close()


def product(rows: int, columns: int = 64, extra: int = 0) -> onnx.ModelProto:
    """x · w, and `extra` products by the identity more."""
    shape, out = [rows, 64], [rows, columns]
    weights = [np.random.default_rng(0).standard_normal((64, columns)).astype(np.float32)]
    weights += [np.eye(columns, dtype=np.float32)] * extra
    nodes = [helper.make_node("MatMul", [f"v{k}", f"w{k}"], [f"v{k + 1}"]) for k in range(len(weights))]
    ends = [helper.make_tensor_value_info(n, 1, s) for n, s in (("v0", shape), (f"v{len(weights)}", out))]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(w, f"w{k}") for k, w in enumerate(weights)]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def jobs(number: int) -> list[Job]:
    return [Job(f"product of {k} rows", "MatMul", partial(product, k)) for k in range(1, number + 1)]


@pytest.mark.slow
def test_two_servers_share_the_work_and_nothing_is_lost_when_one_dies(mortal: Farm, tmp_path: Path) -> None:
    target = parse_target("llvm", tracker=mortal.tracker, key=KEY)
    assert target.machines == 2 and str(target) == f"llvm@{KEY}"
    known: dict[str, float] = {}
    both = threading.Event()

    def progress(done: int, total: int) -> None:
        if not both.is_set() and mortal.loads(0) > 3 and mortal.loads(1) > 3 and done < total - 10:
            both.set()
            mortal.kill(0)

    wanted = jobs(48)
    with Bench(target, Database(tmp_path / "db"), 0) as bench:
        bench.measure(wanted, known, time.monotonic() + 240, progress)
    assert both.is_set(), "one of the servers did nothing"
    assert sorted(known) == sorted(job.key for job in wanted)
    assert all(0 < ms < 50 for ms in known.values())
    # what was measured over there is remembered for these devices, and not for this machine
    assert len(Bench(target, Database(tmp_path / "db"), 0).remembered(known)) == len(wanted)
    assert not Bench(Target("llvm"), Database(tmp_path / "db"), 0).remembered(known)


@pytest.mark.slow
def test_without_any_device_measuring_ends_and_says_so(mortal: Farm, tmp_path: Path) -> None:
    target = parse_target("llvm", tracker=mortal.tracker, key=KEY)
    for k in range(2):
        mortal.kill(k)
    known: dict[str, float] = {}
    with Bench(target, Database(tmp_path / "db"), 0) as bench:
        start = time.monotonic()
        bench.measure(jobs(3), known, time.monotonic() + 300)
        assert not known and "no device" in bench.note
        assert time.monotonic() - start < 120


@pytest.mark.slow
def test_a_verdict_over_there(farm: Farm, tmp_path: Path) -> None:
    """Both sides of a comparison are on one device; a session that crashes costs a block, not the verdict."""
    target = parse_target("llvm", tracker=farm.tracker, key=KEY)
    crashed: list[int] = []

    def crash() -> None:
        while not crashed[0]:
            time.sleep(0.02)
            crashed[0] = farm.crash()

    def progress(text: str) -> None:
        if text.startswith("timing, block 2") and not crashed:
            crashed.append(0)
            threading.Thread(target=crash).start()

    verdict = confirm(
        product(64, extra=3), product(64), target, 40, database=Database(tmp_path / "db"), trials=2, progress=progress
    )
    assert verdict.speedup > 1.5 and verdict.verdict == "faster", str(verdict)
    assert verdict.settings["target"] == f"llvm@{KEY}"
    assert verdict.settings["sessions_lost"] == crashed[0] == 1
    assert list((tmp_path / "db").glob("schedules-*/*.json"))


@pytest.mark.slow
def test_tuning_over_there(farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: object) -> None:
    monkeypatch.setenv("XRLFLOW_CACHE", str(tmp_path / "cache"))
    onnx.save(product(64, extra=1), tmp_path / "model.onnx")
    code = tune.main(
        [str(tmp_path / "model.onnx"), "--target", "llvm", "--seconds", "20", "--trials", "4",
         "--tracker", farm.tracker, "--key", KEY]
    )  # fmt: skip
    assert code == 0
    assert farm.loads(0) + farm.loads(1) >= 4


@pytest.mark.slow
def test_a_search_for_a_remote_device(farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XRLFLOW_CACHE", str(tmp_path / "cache"))
    onnx.save(product(64, extra=3), tmp_path / "model.onnx")
    code = extract.main(
        [str(tmp_path / "model.onnx"), "-o", str(tmp_path / "out.onnx"), "--target", "llvm", "--budget", "60",
         "--tracker", farm.tracker, "--key", KEY, "--json", str(tmp_path / "run.json"), "--quiet"]
    )  # fmt: skip
    assert code == 0 and (tmp_path / "out.onnx").exists()
    assert farm.sessions(0) + farm.sessions(1) > 2


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({"tracker": "127.0.0.1:1", "key": KEY}, TargetUnavailable, "no tracker answers at 127.0.0.1:1"),
        ({"tracker": "nowhere", "key": KEY}, UserError, "not HOST:PORT"),
        ({"tracker": "127.0.0.1:9190"}, UserError, "belong together"),
        ({"key": KEY}, UserError, "belong together"),
    ],
)
def test_what_cannot_be_reached_is_said(options: dict[str, str], error: type[UserError], what: str) -> None:
    with pytest.raises(error, match=what):
        parse_target("llvm", **options)  # type: ignore[arg-type]


def test_a_key_that_no_server_has_is_said(farm: Farm) -> None:
    with pytest.raises(TargetUnavailable, match="no server under the key 'other'") as e:
        parse_target("llvm", tracker=farm.tracker, key="other")
    assert e.value.exit_code == 4
    with pytest.raises(TargetUnavailable, match="no CUDA GPU"):
        parse_target("cuda", tracker=farm.tracker, key=KEY)


def test_serving_for_nobody_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for tracker, what in (("nowhere", "not HOST:PORT"), ("127.0.0.1:1", "no tracker answers")):
        assert serve.main(["--tracker", tracker, "--key", KEY]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("xrlflow.serve: --tracker: ") and what in line


def test_other_targets_have_no_tracker() -> None:
    with pytest.raises(UserError, match="not measured through a tracker"):
        parse_target("onnxruntime", tracker="127.0.0.1:9190", key=KEY)


def test_a_device_of_another_architecture_links_for_itself(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent to one are objects, since this machine's linker is no use there."""
    monkeypatch.setattr("xrlflow.lowering.tvm_remote.platform.machine", lambda: "riscv64")
    model = product(8)
    target = tvm_module.tvm_target("llvm")
    built = tvm_module.compile_module(tvm_module.fuse(tvm_module.import_onnx(model), target), target)
    specs = tvm_module.input_specs(model)
    inputs = tvm_module.timing_inputs(specs)
    with Remote(farm.tracker, KEY, "llvm") as there:
        program = tvm_module.Program(built, specs, there)
        found = program.run(inputs)
        assert len(program.time(inputs, 1, 3)) == 3
        del program
    (expected,) = tvm_module.Program(built, specs, "llvm").run(inputs)
    np.testing.assert_array_equal(found[0], expected)
    assert any(".tar" in log.read_text(errors="replace") for log in farm.logs)
