"""Devices behind an RPC tracker: programs are compiled here, and run and timed where a server offers itself.

TVM's own tracker and servers are used as they are:

    python -m tvm.exec.rpc_tracker --port 9190
    python -m xrlflow.serve --tracker HOST:9190 --key board       # on each device

A server hands out one session at a time, each in a process of its own. If that crashes, TVM's server ends too, which
`xrlflow.serve` starts again then. Servers under one key are devices of one sort: any of them may take any program.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import tempfile
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from .tvm_module import tvm

WAIT = 60.0
"""Seconds to wait for a server that is free."""

RESTART = 10.0
"""Seconds to wait for a server where there is none at all: one that a program took along comes back by then."""

_BIG = 1
"""The runtime's name for "use big cores first", of its thread pools."""


class DeviceLost(RuntimeError):
    """No session can be had, or the one that there was is gone: nothing was learnt about the program."""


def parse_tracker(tracker: str) -> tuple[str, int]:
    """Host and port of "HOST:PORT". Raises `ValueError` for anything else."""
    host, _, port = tracker.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{tracker!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def reach(tracker: str) -> None:
    """Raises `ConnectionError` if nothing answers at this address."""
    try:
        socket.create_connection(parse_tracker(tracker), timeout=5.0).close()
    except OSError as error:
        raise ConnectionError(f"no tracker answers at {tracker}: {error}") from None


def connect(tracker: str) -> Any:
    """A connection to a tracker; `ConnectionError` at once if there is none, where TVM would try for 25 s."""
    reach(tracker)
    tvm()
    from tvm import rpc

    return rpc.connect_tracker(*parse_tracker(tracker))


def servers(tracker: str, key: str) -> tuple[int, int]:
    """How many servers offer themselves under a key, and how many of them are free."""
    with contextlib.closing(connect(tracker)) as connection:
        return _count(connection, key)


def _count(connection: Any, key: str) -> tuple[int, int]:
    summary = connection.summary()
    known = sum(info["key"] == f"server:{key}" for info in summary["server_info"])
    return known, summary["queue_info"].get(key, {}).get("free", 0)


@dataclass(frozen=True)
class Facts:
    """What a device is. servers: how many there are of it. cpu, triple: as LLVM names its processor and system. gpu:
    its GPU's name, "" if it has none; arch: that GPU's architecture ("sm_90")."""

    servers: int
    cpu: str
    triple: str
    gpu: str = ""
    arch: str = ""


def facts(tracker: str, key: str, kind: str) -> Facts:
    """What the devices under a key are, as the first free one tells.

    Raises `ConnectionError` without a tracker and `LookupError` without a server, or without a GPU for kind "cuda".
    """
    known, _ = servers(tracker, key)
    if not known:
        raise LookupError(f"the tracker {tracker} has no server under the key {key!r}")
    with Remote(tracker, key, kind, session_seconds=60.0) as remote:
        found = {}
        for name, function in (("cpu", "llvm_get_system_cpu"), ("triple", "llvm_get_system_triple")):
            try:
                found[name] = str(remote.function(f"target.{function}")())
            except Exception:  # noqa: BLE001  (a runtime without compiler does not know)
                raise LookupError(
                    f"the server under {key!r} does not tell its processor: start it from a full TVM installation"
                ) from None
        if kind == "cuda":
            if not remote.device.exist:
                raise LookupError(f"the server under {key!r} has no CUDA GPU")
            version = str(remote.device.compute_version)
            found |= {"gpu": str(remote.device.device_name), "arch": "sm_" + version.replace(".", "")}
        return Facts(known, **found)


class Remote:
    """A session on a device: what `tvm_module.Here` is for this machine.

    threads: that kernels may use there. session_seconds: after so long the server ends the session, whatever it does.
    wait: seconds to wait for a free server. Raises `DeviceLost` if none becomes free.
    """

    def __init__(
        self, tracker: str, key: str, kind: str, threads: int = 1, session_seconds: float = 600.0, wait: float = WAIT
    ) -> None:
        self.tracker, self.key, self.kind, self.threads = tracker, key, kind, threads
        self.session_seconds, self.wait = session_seconds, wait
        self._session: Any = None
        self._loaded = 0
        self.renew()

    def renew(self) -> None:
        """Another session, of this device or of one like it; what was loaded is gone. Raises `DeviceLost`."""
        self.close()
        start = time.monotonic()
        try:
            with contextlib.closing(connect(self.tracker)) as connection:
                while not (count := _count(connection, self.key))[1]:
                    limit = self.wait if count[0] else min(RESTART, self.wait)
                    if time.monotonic() - start > limit:
                        raise DeviceLost(f"no server under {self.key!r} became free within {limit:.0f} s")
                    time.sleep(0.1)
                self._session = connection.request(
                    self.key, max_retry=1, session_timeout=max(1, round(self.session_seconds))
                )
            self.device = self._session.cuda(0) if self.kind == "cuda" else self._session.cpu(0)
            self.function("runtime.config_threadpool")(_BIG, self.threads)
        except DeviceLost:
            raise
        except Exception as error:  # noqa: BLE001  (TVM raises errors of many types here)
            raise DeviceLost(f"no session under {self.key!r} from {self.tracker}: {error}") from None

    def function(self, name: str) -> Any:
        """A global function of the other side."""
        return self._session.get_function(name)

    def alive(self) -> bool:
        """Whether the session still answers."""
        try:
            self.function("tvm.rpc.server.workpath")
        except Exception:  # noqa: BLE001  (whatever it is, there is no answer)
            return False
        return True

    def load(self, built: Any) -> Any:
        """A compiled module there. Raises `DeviceLost` if the session is gone."""
        same = platform.machine() in self.function("target.llvm_get_system_triple")()
        # Another architecture's linker is at hand there, not here.
        with tempfile.TemporaryDirectory(prefix="xrlflow-") as folder:
            path = os.path.join(folder, f"program.{'so' if same else 'tar'}")
            built.export_library(path)
            return self.load_file(path)

    def load_file(self, path: str) -> Any:
        """A library there that `export_library` wrote here."""
        # a name of its own: a file that is loaded there must not be written over
        self._loaded += 1
        name = f"{self._loaded}-{os.path.basename(path)}"
        self._session.upload(path, name)
        return self._session.load_module(name)

    def close(self) -> None:
        """Give the device back."""
        self._session, self.device = None, None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
