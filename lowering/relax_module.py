"""The regions of a Relax module: read one by one, and replaced one by one.

A dataflow block falls into regions at its `match_cast`s, which define symbols: what comes after one may need them. All
else of a module (bindings outside of dataflow blocks, branches, other functions, attributes) stays as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..egraph.graph import Graph
from .relax_dimensions import Extents
from .relax_region import Unreadable, read_region, variables
from .relax_writer import NotInRelax, write_region
from .tvm_module import tvm


@dataclass(frozen=True)
class Region:
    """A region of a function: the graph of bindings `start` to `end` of the block of that number."""

    function: str
    block: int
    start: int
    end: int
    graph: Graph


class UnreadFunction(UserWarning):
    """A function, or a part of it, was left as it is."""


def regions(module: Any) -> Iterator[Region]:
    """The regions of a module, function by function. What cannot be read is left out, with a warning that names it."""
    tvm()
    from tvm import relax

    for var, function in module.functions_items():
        if isinstance(function, relax.Function) and isinstance(function.body, relax.SeqExpr) and not _taken(function):
            yield from _regions(module, var.name_hint, function)


def _taken(function: Any) -> bool:
    """Whether a function is a kernel or a pattern that somebody else matches as it stands."""
    return any(name in (function.attrs or {}) for name in ("Primitive", "Composite", "Codegen"))


def _regions(module: Any, name: str, function: Any) -> Iterator[Region]:
    from tvm import relax

    extents = Extents()
    for number, block in enumerate(function.body.blocks):
        if not isinstance(block, relax.DataflowBlock):
            continue
        for start, end in _runs(block.bindings):
            bindings = block.bindings[start:end]
            read_after = {b.var for b in bindings} & _read_elsewhere(function, number, start, end)
            try:
                yield Region(name, number, start, end, read_region(bindings, read_after, extents, module))
            except Unreadable as error:
                warnings.warn(f"{name}: left as it is, because of {error}", UnreadFunction, stacklevel=2)


def _runs(bindings: Any) -> Iterator[tuple[int, int]]:
    """The longest runs of plain bindings."""
    from tvm import relax

    start = 0
    for k, binding in enumerate([*bindings, None]):
        if not isinstance(binding, relax.VarBinding):
            if k > start:
                yield start, k
            start = k + 1


def _read_elsewhere(function: Any, number: int, start: int, end: int) -> set[Any]:
    """The variables that are read outside of a run of bindings, or by the function's caller."""
    from tvm import relax

    found = variables(function.body.body)
    for n, block in enumerate(function.body.blocks):
        for k, binding in enumerate(block.bindings):
            if n != number or not start <= k < end:
                found |= variables(binding.value)
    for binding in function.body.blocks[number].bindings[start:end]:
        if not isinstance(binding.var, relax.DataflowVar):  # visible outside the block: kept even if nobody reads it
            found.add(binding.var)
    return found


def rewritten(
    module: Any, change: Callable[[Region], Graph | None], refused: Callable[[Region, str], None] | None = None
) -> Any:
    """The module with its regions replaced by what `change` makes of them (None: the region stays as it is).

    A region that cannot be written, or makes the module ill-formed, stays, with a warning; `refused` is told why.
    """
    from tvm import relax

    for region in reversed(list(regions(module))):  # the places of those before it in its block stay right
        graph = change(region)
        if graph is None:
            continue
        why = "it would be ill-formed"
        try:
            candidate = replaced(module, region, graph)
            if relax.analysis.check_well_formed(candidate):
                module = candidate
                continue
        except NotInRelax as error:
            why = str(error)
        warnings.warn(f"{region.function}: left as it is, because of {why}", UnreadFunction, stacklevel=2)
        if refused is not None:
            refused(region, why)
    return module


def replaced(module: Any, region: Region, graph: Graph) -> Any:
    """The module with a graph in the place of a region. Those behind it in its block have other places then."""
    from tvm import relax

    function = module[region.function]
    blocks = list(function.body.blocks)
    block = blocks[region.block]
    bindings = list(block.bindings)
    written = write_region(graph, module, function.params)
    blocks[region.block] = relax.DataflowBlock([*bindings[: region.start], *written, *bindings[region.end :]])
    body = relax.SeqExpr(blocks, function.body.body)
    made = relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs, function.span)
    found = tvm().IRModule(dict(module.functions_items()), module.attrs, module.global_infos)
    found.update_func(module.get_global_var(region.function), made)
    return relax.transform.Normalize()(found)
