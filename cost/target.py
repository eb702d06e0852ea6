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
from dataclasses import dataclass

from ..errors import TargetUnavailable, UserError
from .devices import DEVICES

KINDS = ("llvm", "cuda", "onnxruntime")
"""Targets that are measured. `roofline:DEVICE` is computed."""


@dataclass(frozen=True)
class Target:
    """What to measure on.

    kind: "llvm" (host CPU through TVM), "cuda" (GPU through TVM), "onnxruntime" (host CPU) or "roofline".
    device: the device description's name for "roofline", else empty.
    threads: CPU threads that a kernel may use; part of every database key.
    custom_ops: shared libraries of operators that ONNX Runtime loads.
    """

    kind: str
    device: str = ""
    threads: int = 1
    custom_ops: tuple[str, ...] = ()

    @property
    def measured(self) -> bool:
        """Whether programs are run, rather than computed about."""
        return self.kind != "roofline"

    @property
    def estimator(self) -> str:
        """The roofline device that stands in for kernels which were not measured."""
        return self.device or ("h100" if self.kind == "cuda" else "epyc-1t")

    def available(self) -> bool:
        """Whether this machine can measure it."""
        return why_unavailable(self.kind) is None

    def require(self) -> Target:
        """The target itself; raises `TargetUnavailable` with the reason when this machine has it not."""
        reason = why_unavailable(self.kind)
        if reason is not None:
            raise TargetUnavailable(f"target {self}: {reason}")
        return self

    def fingerprint(self) -> str:
        """Twelve hex digits that differ whenever latencies may: processor, threads, versions (see `description`)."""
        text = json.dumps(self.description(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

    def description(self) -> dict[str, str | int]:
        """What the fingerprint is made of."""
        facts: dict[str, str | int] = {"kind": self.kind, "device": self.device, "threads": self.threads}
        if self.kind in ("llvm", "onnxruntime"):
            facts |= {"cpu": cpu_model(), "machine": platform.machine()}
        if self.kind in ("llvm", "cuda"):
            facts["tvm"] = _version("apache-tvm")
        if self.kind == "cuda":
            facts["gpu"] = gpu_name() or "none"
        if self.kind == "onnxruntime":
            facts["onnxruntime"] = _version("onnxruntime")
            if self.custom_ops:
                facts["custom_ops"] = " ".join(map(_digest, self.custom_ops))
        return facts

    def __str__(self) -> str:
        return f"{self.kind}:{self.device}" if self.device else self.kind


def parse_target(text: str, threads: int = 1, custom_ops: tuple[str, ...] = ()) -> Target:
    """The target that `text` names: llvm, cuda, onnxruntime or roofline:DEVICE.

    custom_ops: shared libraries of operators, of use to onnxruntime only.

    Raises `UserError` for an unknown name, and `TargetUnavailable` when this machine cannot run it.
    """
    if threads < 1:
        raise UserError(f"threads must be at least 1, not {threads}")
    kind, _, device = text.strip().partition(":")
    if kind == "roofline" and device in DEVICES:
        return Target(kind, device, threads, custom_ops)
    if kind not in KINDS or device:
        raise UserError(f"unknown target {text!r}: give one of {', '.join(target_names())}")
    return Target(kind, "", threads, custom_ops).require()


def target_names() -> list[str]:
    """All names that `parse_target` knows."""
    return [*KINDS, *(f"roofline:{d}" for d in DEVICES)]


def usable_targets() -> dict[str, str]:
    """Each target by name with "" if it is usable here, else the reason why not."""
    return {name: why_unavailable(name.partition(":")[0]) or "" for name in target_names()}


def default_target(threads: int = 1, custom_ops: tuple[str, ...] = ()) -> Target:
    """cuda where a GPU is found, else llvm."""
    return parse_target("cuda" if why_unavailable("cuda") is None else "llvm", threads, custom_ops)


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
