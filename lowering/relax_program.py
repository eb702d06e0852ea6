"""Graphs that were read from Relax as programs of their own: run, compared, written to files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..egraph.graph import UNKNOWN, Graph, TensorType, attributes
from .decomposition import spelled_out
from .plain_session import first_line
from .relax_dimensions import Extents
from .relax_file import LARGE, packed, pieces, with_weights
from .relax_forms import WRITTEN
from .relax_region import NUMBERS, variables
from .relax_source import RelaxSource, Value
from .relax_writer import NotInRelax, write_region
from .tvm_module import tvm
from .tvm_sources import Main


@dataclass
class RelaxModel:
    """A graph that was read from Relax, as a module whose function "main" takes its inputs and gives its outputs.

    schedules: folder of tuned schedules to run it with; without them it is many times slower. runs: makes a session
    of it, by default `RelaxSession`. binding: extents of symbols in it that are known. For each extent that the region
    reads from outside, and that none of its inputs has, "main" has a further parameter, a tensor of that extent. Raises
    `NotInRelax` if the region reads what no caller of such a function could give it.
    """

    graph: Graph
    schedules: Path | None = None
    runs: Callable[[RelaxModel], Any] | None = None
    binding: Mapping[str, int] = field(default_factory=dict)
    file: Path | None = None

    @cached_property
    def parts(self) -> tuple[Any, dict[str, np.ndarray]]:
        """The module with large weights as parameters, and these; with the functions that opaque expressions call."""
        graph, weights = _apart(self.graph)
        try:
            return _program(graph, list(weights), self.binding), weights
        except NotInRelax:
            raise
        except Exception as error:  # TVM's are of many types
            raise NotInRelax(first_line(error)) from error

    @property
    def module(self) -> Any:
        """The module."""
        return with_weights(*self.parts)

    def SerializeToString(self, deterministic: bool = True) -> bytes:  # noqa: N802 (as protos have it)
        """The module as `relax_file` has it."""
        return packed(*self.parts)

    def written(self, path: Path) -> Path:
        """Where its file is: `path`, unless it was written before."""
        if self.file is None or not self.file.exists():
            with path.open("wb") as file:
                file.writelines(pieces(*self.parts))
            self.file = path
        return self.file

    def session(self) -> Any:
        """Compiled for this machine's processor."""
        return (self.runs or RelaxSession)(self)


def from_graph(graph: Graph) -> Any:
    """A graph of core operators, whatever it was read from, as a Relax module with a function "main".

    Raises `NotInRelax` for operators that Relax has not.
    """
    return _of_inputs(graph, graph.source if isinstance(graph.source, RelaxSource) else None).module


def of_region(graph: Graph, region: Graph, binding: Mapping[str, int]) -> RelaxModel:
    """Operators of a region, opaque ones among them, put together anew, as a program. binding: extents of the region's
    symbols. Raises `NotInRelax`."""
    assert isinstance(region.source, RelaxSource)
    found = _of_inputs(graph, region.source)
    found.binding = binding
    _ = found.parts
    return found


def _of_inputs(graph: Graph, region: RelaxSource | None) -> RelaxModel:
    """A graph as a program of its inputs. region: where it is from, if that is Relax; else it is ONNX's."""
    from tvm import relax
    from tvm import tirx as tir

    from .folding import fold_constants  # by torch, which worker processes do without

    tvm()
    extents = Extents()
    kinds = {str(n.attrs["name"]): n.type for n in graph.nodes if n.op == "Input"}
    for symbol in dict.fromkeys(s for kind in kinds.values() for s in kind.symbols):
        var = tir.Var(symbol.lstrip("?").replace(".", "_"), "int64")
        extents.symbols[var], extents.expressions[symbol] = symbol, var
    leaves = {
        name: relax.Var(name, extents.relax_type(kind)) for name, kind in kinds.items() if isinstance(kind, TensorType)
    }
    if len(leaves) < len(kinds):
        raise NotInRelax("an input that is no tensor")
    source = RelaxSource(extents, leaves)
    if region is not None:
        source.opaques, source.module = region.opaques, region.module
        extents.symbols.update(region.extents.symbols)
    plain = spelled_out(graph.with_source(source), WRITTEN.__contains__, wrapped=region is None)
    return RelaxModel(fold_constants(plain))


class RelaxSession:
    """A region that TVM runs to see what it computes, in this process."""

    def __init__(self, model: RelaxModel) -> None:
        self.main = Main(model.module, model.schedules)
        self.inputs = list(model.graph.input_names)
        self.outputs = list(model.graph.output_names)

    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        return list(self.main([inputs[name] for name in self.inputs]))


def _apart(graph: Graph) -> tuple[Graph, dict[str, np.ndarray]]:
    """The graph with its large weights as inputs, and these by their names."""
    from tvm import relax

    source, weights, nodes = graph.source, dict[str, np.ndarray](), list(graph.nodes)
    assert isinstance(source, RelaxSource)
    leaves = dict(source.leaves)
    for i in graph.live:
        node = nodes[i]
        if node.op != "Weight" or not isinstance(node.type, TensorType) or node.type.bytes < LARGE:
            continue
        digest = str(node.attrs["digest"])
        if isinstance(source.constants.get(digest), relax.Call) or node.type.dtype not in NUMBERS:
            continue
        name = f"weight:{len(weights)}"
        weights[name] = np.asarray(graph.weights[digest].load())
        leaves[name] = relax.Var(name, source.extents.relax_type(node.type))
        nodes[i] = replace(node, op="Input", attributes=attributes(name=name))
    return replace(graph, nodes=tuple(nodes), source=replace(source, leaves=leaves)), weights


def _program(graph: Graph, weights: Sequence[str], binding: Mapping[str, int]) -> Any:
    """The module of a graph. weights: names of inputs that become the last parameters. binding: extents of symbols."""
    from tvm import relax

    source = graph.source
    assert isinstance(source, RelaxSource)
    params = {}
    for node in graph.nodes:
        if node.op == "Input":
            name = str(node.attrs["name"])
            params[name] = relax.Var(name.replace(".", "_").replace(":", "_"), source.leaves[name].ty)
    outputs = [graph.nodes[i].type for i in graph.outputs]
    if any(not isinstance(t, TensorType) or t.dtype == UNKNOWN for t in outputs):
        raise NotInRelax("a region that gives something else than tensors")
    targets: list[tuple[Any, Value]] = [
        (relax.Var(f"out{k}", source.extents.relax_type(t)), k)
        for k, t in enumerate(outputs) if isinstance(t, TensorType)
    ]  # fmt: skip
    inner = replace(source, leaves=dict(params), outputs=targets)
    ordered = [params[name] for name in (*graph.input_names, *weights)]
    bindings = write_region(graph.with_source(inner), source.module, ordered)
    results = [var for var, _ in targets]
    free = set().union(*(variables(b.value) for b in bindings)) - {b.var for b in bindings} - set(ordered)
    shapes = {v: relax.ShapeExpr(v.ty.values) for v in free if getattr(v.ty, "values", None) is not None}
    if len(shapes) < len(free):
        raise NotInRelax(f"a region that reads {min(v.name for v in free - set(shapes))}, which is no tensor")
    body: Any = results[0] if len(results) == 1 else relax.Tuple(results)
    block = relax.SeqExpr([relax.DataflowBlock(bindings)], body)
    function = relax.Function([*ordered, *shapes], block, body.ty, True).bind_params(shapes)
    symbols = source.extents.symbols
    # TVM gives them in the order of their addresses
    unknown = sorted(relax.analysis.free_symbolic_vars(function), key=lambda v: (symbols.get(v, ""), v.name))
    if any(str(v.ty.dtype) != "int64" for v in unknown):
        raise NotInRelax(f"a region that reads the number {unknown[0].name} from outside")
    if unknown:
        names = {p.name for p in function.params}
        extents = [relax.Var(_fresh(f"extent_{v.name}", names), relax.TensorType([v], "bool")) for v in unknown]
        here = len(graph.input_names)
        ordered = [*function.params[:here], *extents, *function.params[here:]]
        function = relax.Function(ordered, function.body, function.ret_ty, True)
    known = {v: binding[name] for v, name in symbols.items() if name in binding and v in unknown}
    if known:
        function = function.bind_symbolic_vars(known)
    function = function.with_attr("global_symbol", "main")
    if source.module is None:
        module = tvm().IRModule({})
    else:
        module = tvm().IRModule(dict(_others(source.module)), None, source.module.global_infos)
    module.update_func(relax.GlobalVar("main"), function)
    module = relax.transform.Normalize()(module)
    module = relax.transform.DeadCodeElimination(["main"])(module)  # of functions that the region does not call
    try:
        relax.analysis.well_formed(module)
    except Exception as error:  # TVM's are of many types
        raise NotInRelax(f"not well-formed: {str(error).splitlines()[0]}") from error
    return module


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _others(module: Any) -> Sequence[tuple[Any, Any]]:
    """The functions of a module that expressions can call; its "main" makes way."""
    return [(var, f) for var, f in module.functions_items() if var.name_hint != "main"]
