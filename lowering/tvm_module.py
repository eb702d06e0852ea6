"""ONNX models through TVM: import, fuse, compile for the host or CUDA, run, time.

Which pipeline is used matters: `tvm.compile` alone does not fuse on llvm. Here it is always "zero" (legalise, fold
constants, fuse; tuned schedules applied), then the target's default pipeline; `PIPELINE` names it in results.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import re
import sys
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

    from .tvm_remote import Remote

PIPELINE = "zero+default"


@functools.cache
def tvm() -> Any:
    """The module `tvm`, imported without what is not needed here.

    `import tvm.s_tir.tensor_intrin` builds the intrinsics of every architecture, which takes 22 s; an empty package in
    its place lets the few that are needed be imported by name. In worker processes (`XRLFLOW_WORKER` set) torch, which
    TVM imports only to exchange tensors with it, is left out too.
    """
    if os.environ.get("XRLFLOW_WORKER") and "torch" not in sys.modules:
        sys.modules["torch"] = None  # type: ignore[assignment]
    module = importlib.import_module("tvm")
    name = "tvm.s_tir.tensor_intrin"
    if name not in sys.modules:
        package = types.ModuleType(name)
        package.__path__ = [os.path.join(os.path.dirname(str(module.s_tir.__file__)), "tensor_intrin")]
        sys.modules[name] = package
        module.s_tir.tensor_intrin = package
    return module


def tvm_target(
    kind: str, threads: int = 1, arch: str | None = None, cpu: str | None = None, triple: str | None = None
) -> Any:
    """A `tvm.target.Target`: "llvm" for a processor, or "cuda" for GPUs of an architecture with that processor as host.

    arch: "sm_90"; None takes this machine's GPU. cpu, triple: as LLVM names them; None takes this machine's.
    """
    t = tvm()
    own = t.get_global_func("target.llvm_get_system_triple")()
    host = {"kind": "llvm", "mcpu": cpu or t.get_global_func("target.llvm_get_system_cpu")(), "num-cores": threads}
    if triple is not None and triple != own:
        host["mtriple"] = triple
    if kind == "llvm":
        if (triple or own).startswith("x86_64"):
            importlib.import_module("tvm.s_tir.tensor_intrin.x86")  # schedules on x86 refer to it by name
        return t.target.Target(host)
    if arch is None:
        arch = "sm_" + str(t.cuda(0).compute_version).replace(".", "")
    limits = {
        "max_threads_per_block": 1024,
        "max_shared_memory_per_block": 49152,
        "thread_warp_size": 32,
    }
    return t.target.Target({"kind": "cuda", "arch": arch, **limits, "host": host})


def device(kind: str) -> Any:
    """The `tvm.runtime.Device` that a target kind runs on."""
    return tvm().cuda(0) if kind == "cuda" else tvm().cpu()


class Here:
    """This machine as the place where programs run; `tvm_remote.Remote` is one elsewhere."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.device = device(kind)

    def renew(self) -> None:
        """Nothing to do: this process is the session."""

    def alive(self) -> bool:
        return True

    def load(self, built: Any) -> Any:
        """A compiled module, ready to run."""
        return built

    def load_file(self, path: str) -> Any:
        """What `export_library` wrote."""
        return tvm().runtime.load_module(path)

    def close(self) -> None:
        """Nothing to do."""


def read_model(model: onnx.ModelProto | bytes | str | os.PathLike[str]) -> onnx.ModelProto:
    """The model itself, from a proto, its bytes or a file."""
    import onnx

    if isinstance(model, onnx.ModelProto):
        return model
    if isinstance(model, bytes):
        return onnx.load_model_from_string(model)
    return onnx.load(os.fspath(model))


def import_onnx(
    model: onnx.ModelProto | bytes | str | os.PathLike[str], symbols: Mapping[str, int] | None = None
) -> Any:
    """The Relax module of an ONNX model with its weights as constants.

    symbols: extents of named dimensions; unnamed and unlisted ones become 1, since only static shapes can be tuned.
    Raises whatever the importer raises where it does not know an operator.
    """
    tvm()
    from tvm.relax.frontend.onnx import from_onnx

    proto = read_model(model)
    with _plain_inputs(proto), _constants_last(proto):
        shapes = {spec.name: list(spec.shape) for spec in input_specs(proto, symbols)}
        return from_onnx(proto, shape_dict=shapes, keep_params_in_input=False)


@contextlib.contextmanager
def _plain_inputs(proto: onnx.ModelProto) -> Iterator[None]:
    """For a while give inputs with names like "gpu_0/data" plain ones: TVM writes them into CUDA source as they are."""
    from onnx import helper

    weights = {i.name for i in proto.graph.initializer}  # old models list them among the inputs
    odd = [
        (k, v.name)
        for k, v in enumerate(proto.graph.input)
        if not re.fullmatch(r"[A-Za-z_]\w*", v.name) and v.name not in weights
    ]
    try:
        for k, name in odd:
            proto.graph.input[k].name = f"xrlflow_input_{k}"
            proto.graph.node.insert(0, helper.make_node("Identity", [f"xrlflow_input_{k}"], [name]))
        yield
    finally:
        for k, name in odd:
            proto.graph.input[k].name = name
            del proto.graph.node[0]


@contextlib.contextmanager
def _constants_last(proto: onnx.ModelProto) -> Iterator[None]:
    """For a while let sums and products read their constants last, as programs from the search space do.

    Else `bias + product` and `product + bias` would be two kernels, tuned apart and by luck differently well.
    """
    graph = proto.graph
    constant = {i.name for i in graph.initializer} | {i.values.name for i in graph.sparse_initializer}
    turned = []
    for node in graph.node:
        if (node.input and all(name in constant for name in node.input)) or node.op_type == "Constant":
            constant.update(node.output)
        elif node.op_type in ("Add", "Mul") and not node.domain and node.input[0] in constant:
            turned.append(node)
    for node in turned:
        node.input[:] = node.input[::-1]
    try:
        yield
    finally:
        for node in turned:
            node.input[:] = node.input[::-1]


@dataclass(frozen=True)
class InputSpec:
    """Name, shape and numpy dtype name of a model's input."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def input_specs(model: onnx.ModelProto, symbols: Mapping[str, int] | None = None) -> list[InputSpec]:
    """The inputs that a caller feeds (initialisers are none), symbolic extents replaced by `symbols` or 1."""
    from onnx import helper

    from .onnx_tensor import ANONYMOUS, anonymous

    constant = {i.name for i in model.graph.initializer} | {i.values.name for i in model.graph.sparse_initializer}
    specs = []
    for value in model.graph.input:
        if value.name in constant:
            continue
        tensor = value.type.tensor_type
        shape = tuple(
            d.dim_value
            if d.HasField("dim_value")
            else (symbols or {}).get(anonymous(value.name, axis) if d.dim_param in ANONYMOUS else d.dim_param, 1)
            for axis, d in enumerate(tensor.shape.dim)
        )
        specs.append(InputSpec(value.name, shape, str(helper.tensor_dtype_to_np_dtype(tensor.elem_type))))
    return specs


def timing_inputs(specs: Sequence[InputSpec], seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs to time with: normal floats, all-true booleans, integers 0 (in range for every lookup)."""
    rng = np.random.default_rng(seed)
    out: dict[str, np.ndarray] = {}
    for s in specs:
        if s.dtype == "bool":
            out[s.name] = np.ones(s.shape, bool)
        elif np.issubdtype(np.dtype(s.dtype), np.integer):
            out[s.name] = np.zeros(s.shape, s.dtype)
        else:
            out[s.name] = rng.standard_normal(s.shape).astype(s.dtype)
    return out


def fuse(module: Any, target: Any) -> Any:
    """The module after TVM's zero pipeline: legalised, constants folded, operators fused; not scheduled."""
    from tvm import relax

    with target:
        return relax.get_pipeline("zero")(module)


def scheduled(module: Any, schedules: Any) -> Any:
    """A fused module with the schedules of a MetaSchedule database (None: as it is); call it in the target's scope."""
    from tvm import relax

    if schedules is None:
        return module
    with schedules:
        return relax.transform.MetaScheduleApplyDatabase()(module)


def compile_module(module: Any, target: Any, schedules: Any = None) -> Any:
    """A `relax.VMExecutable` of a fused module.

    schedules: a MetaSchedule database (as a context) whose tuned schedules are applied.
    """
    from tvm import relax

    with target:
        module = scheduled(module, schedules)
        return tvm().compile(module, target, relax_pipeline=relax.get_default_pipeline(target))


def code_digest(module: Any) -> str:
    """Digest of a lowered module, constants included: equal digests are the same program."""
    tvm()
    import tvm_ffi

    return f"{tvm_ffi.structural_hash(module) & (2**64 - 1):016x}"


class Program:
    """A compiled model on its device, ready to run.

    executable: or a library that was made of one. place: where it runs; a kind of target is this machine. seconds: what
    compiling took.
    """

    def __init__(
        self, executable: Any, specs: Sequence[InputSpec], place: str | Here | Remote, seconds: float = 0.0
    ) -> None:
        from tvm import relax

        where = Here(place) if isinstance(place, str) else place
        self.here = isinstance(where, Here)
        self.executable = executable
        self.specs = list(specs)
        self.device = where.device
        self.seconds = seconds
        loaded = where.load_file(executable) if isinstance(executable, str) else where.load(executable)
        self._vm = relax.VirtualMachine(loaded, self.device)

    def tensors(self, inputs: Mapping[str, np.ndarray]) -> list[Any]:
        """The inputs on the device, in the order of the model's."""
        runtime = tvm().runtime
        return [runtime.tensor(np.asarray(inputs[s.name], order="C"), self.device) for s in self.specs]

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs, in the model's order."""
        return [o.numpy() for o in flat(self._vm["main"](*self.tensors(inputs)))]

    def time(
        self, inputs: Mapping[str, np.ndarray], number: int = 1, repeat: int = 5, warm: bool = True
    ) -> list[float]:
        """Milliseconds of one run: `repeat` figures, each the mean of `number` runs. warm: after one that is not
        counted; elsewhere, where only the device's own clock can be trusted, there always is one."""
        tensors = self.tensors(inputs)
        if warm or not self.here:
            evaluate = self._vm.time_evaluator("main", self.device, number=number, repeat=repeat)
            return [1e3 * s for s in evaluate(*tensors).results]
        return [self._by_clock(tensors, number) for _ in range(repeat)]

    def _by_clock(self, tensors: Sequence[Any], number: int) -> float:
        self.device.sync()
        start = time.perf_counter()
        for _ in range(number):
            self._vm["main"](*tensors)
        self.device.sync()
        return 1e3 * (time.perf_counter() - start) / number


def flat(value: Any) -> list[Any]:
    """The tensors of a program's result, which may be nested tuples."""
    if hasattr(value, "numpy"):
        return [value]
    return [leaf for part in value for leaf in flat(part)]


def build(
    model: onnx.ModelProto | bytes | str | os.PathLike[str],
    kind: str = "llvm",
    threads: int = 1,
    schedules: str | os.PathLike[str] | None = None,
    symbols: Mapping[str, int] | None = None,
) -> Program:
    """Compile a model for this machine.

    schedules: folder of tuned schedules (`tvm_tuner`); kernels without one keep TVM's default schedule.
    """
    start = time.perf_counter()
    proto = read_model(model)
    target = tvm_target(kind, threads)
    fused = fuse(import_onnx(proto, symbols), target)
    known = None
    if schedules is not None:
        from .tvm_tasks import recorded

        known = recorded(fused, target, Path(schedules))
    executable = compile_module(fused, target, known)
    return Program(executable, input_specs(proto, symbols), kind, time.perf_counter() - start)


def compile_cuda(
    model: onnx.ModelProto | bytes | str | os.PathLike[str] | Any,
    arch: str = "sm_90",
    symbols: Mapping[str, int] | None = None,
) -> Any:
    """A `relax.VMExecutable` for CUDA GPUs of architecture `arch`; needs no GPU. `cuda_source` reads its kernels."""
    t = tvm()
    target = tvm_target("cuda", arch=arch)
    module = model if isinstance(model, t.IRModule) else import_onnx(model, symbols)
    return compile_module(fuse(module, target), target)


def cuda_source(executable: Any) -> str:
    """The CUDA source of all kernels of an executable; empty if it has none."""
    found: list[str] = []
    todo = [executable.mod]
    while todo:
        module = todo.pop()
        if module.kind == "cuda":
            found.append(module.inspect_source())
        todo.extend(module.imports)
    return "\n".join(found)
