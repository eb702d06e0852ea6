"""torch modules, optimised: `xrlflow.optimize(module, example_inputs)` and `torch.compile(module, backend="xrlflow")`.

A module is exported (`torch.export`), read through TVM's importer, optimised, and run by TVM or ONNX Runtime with
tensors that share their memory with torch's. What comes out was compared with the module itself on the example inputs,
and is kept only if it is not slower than it.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .errors import UserError
from .lowering.plain_session import first_line
from .lowering.relax_module import regions
from .options import Options
from .pipeline import Run, find_target
from .result import Result

ROUNDS = 15
"""Timed runs of the module and of what replaces it, in turn."""

SLOWER = 1.02
"""Above this many times the module's own time it is slower."""


class NotTaken(UserError):
    """A module that cannot be optimised, or is not worth it; the message says why."""


class EagerWarning(UserWarning):
    """A module is run by torch as it is; the message says why."""


class OptimizedModule(torch.nn.Module):
    """A module whose forward pass is an optimised program; for inference, on tensors of the example inputs' shapes.

    result: the run's account (`xrlflow.Result`); None for TVM targets. report: what the comparison with the
    module said: `ms` and `original_ms` of a run, and `max_abs`, the largest difference.
    """

    def __init__(self, runner: Callable[..., list[torch.Tensor]], shape: Callable[[list[Any]], Any]) -> None:
        super().__init__()
        self.runner, self.shape = runner, shape
        self.result: Result | None = None
        self.report: dict[str, Any] = {}

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.shape(self.runner(*inputs))


def optimized(
    module: torch.nn.Module, example_inputs: Sequence[torch.Tensor], *, keep: bool = False, **options: Any
) -> OptimizedModule:
    """The optimised form of a module for inputs like these.

    options: those of `xrlflow.optimize`; the default target is "onnxruntime" for tensors in main memory, "cuda" for
    those on a GPU. keep: return it even if it is slower than the module. Raises `NotTaken` with the reason where the
    module cannot be exported or run so, or what came out is slower.
    """
    given: Any = example_inputs
    inputs = (given,) if isinstance(given, torch.Tensor) else tuple(given)
    if not all(isinstance(x, torch.Tensor) for x in inputs):
        raise NotTaken("example inputs that are no tensors")
    try:
        Options(**options).check()
    except TypeError as error:
        raise UserError(f"optimize: {error}") from error
    inputs = tuple(x.detach().clone() for x in inputs)  # nothing of the caller's is written to
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            made = _made(module, inputs, options)
            flat, spec = torch.utils._pytree.tree_flatten(module(*inputs))
            found = OptimizedModule(made.run, lambda outputs: torch.utils._pytree.tree_unflatten(outputs, spec))
            found.result = made.result
            try:
                outputs = found.runner(*inputs)
            except Exception as error:  # the runtimes' are of many types
                raise NotTaken(f"it does not run: {first_line(error)}") from error
            found.report = {"max_abs": _compared(flat, outputs), **_timed(module, found, inputs)}
    finally:
        for m, mode in modes.items():
            m.training = mode
    before, after = found.report["original_ms"], found.report["ms"]
    if not keep and after > SLOWER * before:
        raise NotTaken(f"torch runs it in {before:.3g} ms, the optimised form takes {after:.3g} ms")
    return found


@dataclass(frozen=True)
class _Made:
    """What runs a program, and the account of how it was found."""

    run: Callable[..., list[torch.Tensor]]
    result: Result | None


def _made(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], told: Mapping[str, Any]) -> _Made:
    options = dict(told)
    if options.get("target") is None:
        options["target"] = "cuda" if any(x.is_cuda for x in inputs) else "onnxruntime"
    target = find_target(options["target"], options.get("threads", 1))
    relax = _imported(module, inputs)
    if target.kind in ("llvm", "cuda"):
        return _by_tvm(relax, target.kind, options)
    return _by_runtime(relax, options)


def _imported(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Any:
    """The Relax module of a torch module."""
    from .lowering.tvm_module import tvm

    tvm()
    from tvm.relax.frontend.torch import from_exported_program

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.export(module, inputs)
            told = exported.run_decompositions().graph_signature  # only then are changes in place outputs
            if told.buffers_to_mutate or told.user_inputs_to_mutate:
                raise NotTaken("it changes its buffers or inputs in place")
            return from_exported_program(exported)
    except NotTaken:
        raise
    except Exception as error:  # torch's and TVM's are of many types
        hint = ""
        if "_transformer_encoder_layer_fwd" in str(error):  # one operator for the whole layer
            hint = "; torch.backends.mha.set_fastpath_enabled(False) lets its parts be seen"
        raise NotTaken(f"it cannot be exported: {first_line(error)}{hint}") from error


def _by_tvm(module: Any, kind: str, options: Mapping[str, Any]) -> _Made:
    from .lowering.relax import Optimize, compiled
    from .lowering.tvm_module import device, tvm, tvm_target

    of = tvm_target(kind, options.get("threads", 1))
    find: Any = Optimize(**options)
    try:
        executable = compiled(find(module), of, options.get("threads", 1))
    except Exception as error:
        raise NotTaken(f"TVM cannot compile it: {first_line(error)}") from error
    from tvm.relax import VirtualMachine

    vm = VirtualMachine(executable, device(kind))
    wanted = len(module["main"].params)

    def run(*inputs: torch.Tensor) -> list[torch.Tensor]:
        outputs = vm["main"](*(tvm().runtime.from_dlpack(_aligned(x)) for x in inputs[:wanted]))
        parts = [outputs] if hasattr(outputs, "__dlpack__") else list(outputs)
        return [torch.utils.dlpack.from_dlpack(part) for part in parts]

    return _Made(run, None)


def _aligned(x: torch.Tensor) -> torch.Tensor:
    """A tensor as TVM takes it: dense, and beginning at a multiple of 64 bytes."""
    x = x.detach().contiguous()
    return x.clone() if x.data_ptr() % 64 else x


def _by_runtime(module: Any, options: Mapping[str, Any]) -> _Made:
    from .lowering import to_onnx
    from .lowering.ort_session import Session

    found = list(regions(module))
    function = module["main"]
    if len(found) != 1 or len(function.body.blocks) != 1:
        raise NotTaken("TVM's importer makes more than plain dataflow of it, which ONNX Runtime cannot take")
    graph = found[0].graph
    unknown = sorted({graph.nodes[i].op.removeprefix("::") for i in graph.operators if graph.nodes[i].opaque})
    if unknown:
        raise NotTaken(f"ONNX Runtime cannot take {', '.join(unknown)} from TVM's importer; the target llvm can")
    leaves = graph.source.leaves  # what the reader called the parameters
    names = [next((n for n, leaf in leaves.items() if leaf.same_as(p)), "") for p in function.params]
    try:
        model = to_onnx(graph.with_source(None))
        result = Run(model, Options(**options)).result()
        session = Session(model if result.model is None else result.model, options.get("threads", 1))
    except Exception as error:  # the runtime's are of many types
        raise NotTaken(f"ONNX Runtime does not run it: {first_line(error)}") from error
    known = {spec.name for spec in session.specs}

    def run(*inputs: torch.Tensor) -> list[torch.Tensor]:
        feeds = {n: x.detach().contiguous().numpy() for n, x in zip(names, inputs, strict=False) if n in known}
        return [torch.from_numpy(np.asarray(y)) for y in session.run(feeds)]

    return _Made(run, result)


def _compared(expected: Sequence[Any], found: Sequence[torch.Tensor]) -> float:
    """The largest difference; raises `NotTaken` if it is more than rounding explains."""
    if len(expected) != len(found):
        raise NotTaken(f"{len(found)} outputs instead of {len(expected)}")
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        if not isinstance(a, torch.Tensor) or a.shape != b.shape or a.dtype != b.dtype:
            raise NotTaken("outputs of another type")
        x, y = a.double(), b.double()
        finite = x.isfinite()
        scale = float(x[finite].abs().max()) if finite.any() else 0.0
        loose = 2e-2 if a.dtype in (torch.float16, torch.bfloat16) else 2e-4
        largest = float((x - y)[finite].abs().nan_to_num(torch.inf).max()) if finite.any() else 0.0
        alike = torch.equal(x[~finite].nan_to_num(), y[~finite].nan_to_num()) and torch.equal(x.isnan(), y.isnan())
        if not alike or largest > loose * max(scale, 1e-3):
            raise NotTaken(f"its outputs differ by {largest:.2g} from the module's, whose largest is {scale:.2g}")
        worst = max(worst, largest)
    return worst


def _timed(module: torch.nn.Module, found: OptimizedModule, inputs: tuple[torch.Tensor, ...]) -> dict[str, float]:
    """Median milliseconds of both, run in turn; torch with as many threads as it is set to."""
    times: tuple[list[float], list[float]] = ([], [])
    for k in range(ROUNDS + 3):
        for side, program in enumerate((module, found)):
            start = time.perf_counter()
            program(*inputs)
            if inputs and inputs[0].is_cuda:
                torch.cuda.synchronize()
            if k >= 3:
                times[side].append(1e3 * (time.perf_counter() - start))
    return {"original_ms": statistics.median(times[0]), "ms": statistics.median(times[1])}


# torch.compile


def backend(graph: torch.fx.GraphModule, example_inputs: Sequence[Any], **told: Any) -> Callable[..., Any]:
    """`torch.compile(module, backend="xrlflow", options={"budget": 60, …})`, for inference.

    Parameters count as constants; should one be changed, or a gradient be asked for, torch runs the graph itself. So it
    does, with one warning (`EagerWarning`), where the graph cannot be taken.
    """
    options = dict(told.get("options") or {})
    try:
        # real tensors, as outside of torch's compiler
        with torch._guards.tracing(None), torch.utils._python_dispatch._disable_current_modes():
            return _compiled(graph, example_inputs, options)
    except NotTaken as error:
        warnings.warn(f"xrlflow: torch runs this graph as it is, because {error}", EagerWarning, stacklevel=2)
        return graph.forward
    except UserError as error:
        raise RuntimeError(f"xrlflow: {error}") from error


def _compiled(
    graph: torch.fx.GraphModule, example_inputs: Sequence[Any], options: dict[str, Any]
) -> Callable[..., Any]:
    if torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in example_inputs):
        raise NotTaken("gradients are wanted (use torch.no_grad())")
    if not all(isinstance(x, torch.Tensor) for x in example_inputs):
        raise NotTaken("its shapes are dynamic (use dynamic=False)")
    fixed = {k for k, node in enumerate(graph.graph.find_nodes(op="placeholder")) if _static(node, example_inputs[k])}
    constants = {k: example_inputs[k] for k in fixed}
    states = {k: _state(x) for k, x in constants.items()}
    module = _Bound(graph, constants, len(example_inputs))
    rest = [x for k, x in enumerate(example_inputs) if k not in fixed]
    found = optimized(module, [_real(x) for x in rest], **options)

    def run(*inputs: Any) -> Any:
        same = all(inputs[k] is x and _state(x) == states[k] for k, x in constants.items())
        if not same or (torch.is_grad_enabled() and any(x.requires_grad for x in inputs)):
            return graph.forward(*inputs)
        return found(*(x for k, x in enumerate(inputs) if k not in fixed))

    return run


def _state(x: torch.Tensor) -> tuple[int, int]:
    """What changes with a tensor's content, as far as torch keeps count."""
    return x._version, x.data_ptr()


def _static(node: Any, example: Any) -> bool:
    """Whether an input of a graph is a parameter or buffer of the module."""
    told = node.meta.get("tensor_dict") or {}
    return isinstance(example, torch.nn.Parameter) or "_dynamo_static_input_type" in told


def _real(x: torch.Tensor) -> torch.Tensor:
    """A tensor with numbers, for one that may have none."""
    if type(x).__name__ != "FakeTensor":
        return x.detach()
    if x.dtype.is_floating_point:
        return torch.randn(tuple(int(d) for d in x.shape), dtype=x.dtype, device=x.device)
    return torch.zeros(tuple(int(d) for d in x.shape), dtype=x.dtype, device=x.device)


class _Bound(torch.nn.Module):
    """A graph with some of its inputs bound, as buffers."""

    def __init__(self, graph: torch.fx.GraphModule, constants: Mapping[int, torch.Tensor], count: int) -> None:
        super().__init__()
        self.graph_module, self.fixed, self.count = graph, sorted(constants), count
        for k, x in constants.items():
            self.register_buffer(f"constant_{k}", x.detach().clone())

    def forward(self, *inputs: torch.Tensor) -> Any:
        rest = iter(inputs)
        return self.graph_module(
            *(getattr(self, f"constant_{k}") if k in self.fixed else next(rest) for k in range(self.count))
        )
