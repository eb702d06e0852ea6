"""Targets: what a program is measured on, whether this machine has it, and how it is told apart from others."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypedDict, Unpack

from ..errors import TargetUnavailable, UserError
from ..lowering.ort_session import LEVELS
from .devices import DEVICES
from .worker import Worker, WorkerError

if TYPE_CHECKING:
    from ..lowering.tvm_remote import Facts

_LOWERING = f"{__package__.rpartition('.')[0]}.lowering"

KINDS = ("llvm", "cuda", "onnxruntime")
"""Targets that are measured. `roofline:DEVICE` is computed."""


@dataclass(frozen=True)
class Target:
    """What to measure on.

    kind: "llvm" (host CPU through TVM), "cuda" (GPU through TVM), "onnxruntime" (host CPU) or "roofline".
    device: the device description's name for "roofline", else empty.
    threads: CPU threads that a kernel may use; part of every database key.
    custom_ops: shared libraries of operators that ONNX Runtime loads. provider: what runs its operators, "" for the
    CPU's. level: of its optimisations (`LEVELS`).
    tracker: "HOST:PORT" of an RPC tracker, "" for this machine; key: what the devices behind it are called. "llvm" and
    "cuda" are a processor and a GPU over there then. there: what these devices are; `require` asks them.
    """

    kind: str
    device: str = ""
    threads: int = 1
    custom_ops: tuple[str, ...] = ()
    provider: str = ""
    level: str = "all"
    tracker: str = ""
    key: str = ""
    there: Facts | None = field(default=None, compare=False, repr=False)

    @property
    def measured(self) -> bool:
        """Whether programs are run, rather than computed about."""
        return self.kind != "roofline"

    @property
    def estimator(self) -> str:
        """The roofline device that stands in for kernels which were not measured."""
        return self.device or ("h100" if self.kind == "cuda" else "epyc-1t")

    @property
    def tunable(self) -> bool:
        """Whether its kernels are compiled by TVM, and so tuned."""
        return self.kind in ("llvm", "cuda")

    def available(self) -> bool:
        """Whether this machine can measure it."""
        try:
            self.require()
        except TargetUnavailable:
            return False
        return True

    def require(self) -> Target:
        """The target itself, remote devices asked what they are.

        Raises `TargetUnavailable` with the reason when it cannot be measured from here, `UserError` for options that it
        has not.
        """
        if self.level not in LEVELS:
            raise UserError(f"unknown optimisation level {self.level!r}: give one of {', '.join(LEVELS)}")
        if self.kind != "onnxruntime" and (self.provider or self.level != "all"):
            raise UserError(f"provider and optimisation level are options of the target onnxruntime, not of {self}")
        if bool(self.tracker) != bool(self.key):
            raise UserError("a tracker and the key of its devices belong together: give both or none")
        if self.tracker and not self.tunable:
            raise UserError(f"{self} is not measured through a tracker: give the target llvm or cuda")
        if self.tracker:
            return replace(self, there=facts(self.tracker, self.key, self.kind))
        reason = why_unavailable(self.kind)
        if reason is not None:
            raise TargetUnavailable(f"target {self}: {reason}")
        if self.provider:
            from ..lowering.ort_session import providers

            providers(self.provider)
        return self

    @property
    def machines(self) -> int:
        """How many devices measure side by side."""
        return self._asked.servers if self.tracker else 1

    @property
    def _asked(self) -> Facts:
        return self.there or facts(self.tracker, self.key, self.kind)

    @property
    def library_suffix(self) -> str:
        """Ending of compiled programs: objects that are linked over there, where this machine's linker is no use."""
        foreign = self.tracker and platform.machine() not in self._asked.triple
        return ".tar" if foreign else ".so"

    def fingerprint(self) -> str:
        """Twelve hex digits that differ whenever latencies may: processor, threads, versions (see `description`)."""
        text = json.dumps(self.description(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

    def description(self) -> dict[str, str | int]:
        """What the fingerprint is made of."""
        told: dict[str, str | int] = {"kind": self.kind, "device": self.device, "threads": self.threads}
        if self.tunable:
            told["tvm"] = _version("apache-tvm")
        if self.tracker:
            there = self._asked
            told |= {"key": self.key, "cpu": there.cpu, "machine": there.triple}
            return told | ({"gpu": there.gpu} if there.gpu else {})
        if self.kind in ("llvm", "onnxruntime"):
            told |= {"cpu": cpu_model(), "machine": platform.machine()}
        if self.kind == "cuda":
            told["gpu"] = gpu_name() or "none"
        if self.kind == "onnxruntime":
            told["onnxruntime"] = _version("onnxruntime")
            if self.custom_ops:
                told["custom_ops"] = " ".join(map(_digest, self.custom_ops))
            if self.provider:
                told["provider"] = self.provider
            if self.level != "all":
                told["level"] = self.level
        return told

    def __str__(self) -> str:
        name = f"{self.kind}:{self.device}" if self.device else self.kind
        return f"{name}@{self.key}" if self.key else name


class Choices(TypedDict, total=False):
    """Further fields of a `Target`, by name."""

    provider: str
    level: str
    tracker: str
    key: str


def parse_target(text: str, threads: int = 1, custom_ops: tuple[str, ...] = (), **options: Unpack[Choices]) -> Target:
    """The target that `text` names: llvm, cuda, onnxruntime or roofline:DEVICE.

    custom_ops: shared libraries of operators, of use to onnxruntime only. options: further fields of `Target`.

    Raises `UserError` for an unknown name, and `TargetUnavailable` when this machine cannot run it.
    """
    if threads < 1:
        raise UserError(f"threads must be at least 1, not {threads}")
    kind, _, device = text.strip().partition(":")
    if not (kind == "roofline" and device in DEVICES) and (kind not in KINDS or device):
        raise UserError(f"unknown target {text!r}: give one of {', '.join(target_names())}")
    return Target(kind, device, threads, custom_ops, **options).require()


def target_names() -> list[str]:
    """All names that `parse_target` knows."""
    return [*KINDS, *(f"roofline:{d}" for d in DEVICES)]


def usable_targets() -> dict[str, str]:
    """Each target by name with "" if it is usable here, else the reason why not."""
    return {name: why_unavailable(name.partition(":")[0]) or "" for name in target_names()}


def default_target(threads: int = 1, custom_ops: tuple[str, ...] = (), **options: Unpack[Choices]) -> Target:
    """cuda where a GPU is found (behind the tracker, if one is given), else llvm."""
    if options.get("tracker") and options.get("key"):
        try:
            return parse_target("cuda", threads, custom_ops, **options)
        except TargetUnavailable:
            return parse_target("llvm", threads, custom_ops, **options)
    return parse_target("cuda" if why_unavailable("cuda") is None else "llvm", threads, custom_ops, **options)


def facts(tracker: str, key: str, kind: str) -> Facts:
    """What the devices behind a tracker are. Raises `TargetUnavailable` with the reason if they cannot be asked."""
    from ..lowering.tvm_remote import parse_tracker

    try:
        parse_tracker(tracker)
    except ValueError as error:
        raise UserError(f"tracker {error}") from None
    if importlib.util.find_spec("tvm") is None:
        raise TargetUnavailable(f"target {kind}@{key}: the package apache-tvm is not installed")
    with Worker() as worker:  # TVM need not be imported here
        try:
            found: Facts = worker.call(f"{_LOWERING}.tvm_remote:facts", tracker, key, kind, timeout=120.0)
        except WorkerError as error:
            raise TargetUnavailable(f"target {kind}@{key}: {str(error).partition(': ')[2] or error}") from None
    return found


def why_unavailable(kind: str) -> str | None:
    """The reason why this machine cannot measure targets of this kind, or None if it can. Imports no TVM."""
    if kind == "roofline":
        return None
    package = "onnxruntime" if kind == "onnxruntime" else "tvm"
    if importlib.util.find_spec(package) is None:
        return f"the package {'onnxruntime' if kind == 'onnxruntime' else 'apache-tvm'} is not installed"
    if kind == "cuda" and gpu_name() is None:
        return "no CUDA GPU is found on this machine; use llvm, onnxruntime or roofline:DEVICE"
    return None


@functools.cache
def gpu_name() -> str | None:
    """Name of the first CUDA GPU as its driver tells it, or None. Asks the driver directly, so no TVM is imported."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        device, text = ctypes.c_int(), ctypes.create_string_buffer(256)
        if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0) or cuda.cuDeviceGetName(text, 256, device):
            return None
    except OSError:
        return None
    return text.value.decode(errors="replace")


@functools.cache
def cpu_model() -> str:
    """The processor's name and instruction sets, as far as the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            facts = dict(line.split(":", 1) for line in f.read().split("\n\n")[0].splitlines() if ":" in line)
    except OSError:
        return platform.processor() or platform.machine()
    found = {k.strip(): v.strip() for k, v in facts.items()}
    sets = sorted(w for w in found.get("flags", "").split() if w.startswith(("avx", "amx", "fma", "vnni")))
    known = [found.get(k, "") for k in ("model name", "cpu family", "model")]
    return " ".join([*known, *sets]).strip() or platform.machine()


def _digest(path: str) -> str:
    """Digest of a file's content; of its name if it cannot be read."""
    try:
        with open(path, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()[:16]
    except OSError:
        return path


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
