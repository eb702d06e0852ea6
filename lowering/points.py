"""Extents by name: models specialised to given shapes, and the points at which dynamic models are measured.

Both are told as `NAME=1,128`, where NAME is an input (all of its extents; `?` leaves one open) or a symbolic dimension
(one extent). Commas also separate names: `batch=1,seq=128`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from onnx import GraphProto, ModelProto, TypeProto

from ..egraph.dimension import Least, Polynomial, evaluate
from ..egraph.graph import Graph, TensorType, TupleType, made_up
from ..errors import UserError
from .bindings import completed, input_symbols
from .onnx_bodies import subgraphs
from .onnx_tensor import ANONYMOUS, anonymous

Extents: TypeAlias = dict[str, tuple[int | None, ...]]
"""Extents by the name of an input or of a symbol; None for one that is left open."""

SEQUENCE, IMAGE = 128, 224
"""Usual extents of a sequence and of an image's side."""

_SEQUENTIAL = re.compile(r"seq|len|token|time|frame|step|past|context|kv", re.IGNORECASE)
_SIDE = re.compile(r"height|width|^[hw]$|size|image", re.IGNORECASE)


def parse_extents(texts: str | Sequence[str] | Mapping[str, int | Sequence[int]], option: str) -> Extents:
    """The extents that an option tells, as text or as a mapping. Raises `UserError` with the option's name."""
    if isinstance(texts, Mapping):
        pairs = [(str(k), list(v) if isinstance(v, Sequence) else [v]) for k, v in texts.items()]
        parts: list[Any] = [(name, [str(d) for d in values]) for name, values in pairs]
    else:
        parts = []
        for token in ",".join([texts] if isinstance(texts, str) else texts).split(","):
            name, equals, value = token.rpartition("=")
            if equals:
                parts.append((name.strip(), [value.strip()]))
            elif parts:
                parts[-1][1].append(token.strip())
            else:
                raise UserError(f"{option} {token!r}: write NAME=EXTENT,EXTENT,…")
    found: Extents = {}
    for name, values in parts:
        try:
            wanted = tuple(map(_extent, values))
        except ValueError as error:
            raise UserError(f"{option} {name}={','.join(values)}: {error}") from None
        if found.setdefault(name, wanted) != wanted:
            raise UserError(f"{option}: two shapes for {name!r}")
    return found


def _extent(text: str) -> int | None:
    if text in ("?", "-1", "None"):
        return None
    if not text.isdecimal():
        raise ValueError(f"{text!r} is no extent; give whole numbers, or ? to leave one open")
    if len(text) > 18:
        raise ValueError(f"{text} is too large an extent")
    return int(text)


def resolve(shapes: Mapping[str, Sequence[int | str] | None], extents: Extents, label: str) -> dict[str, int]:
    """The extents of symbols, for a model whose inputs have these shapes (ints and symbols; None: no known rank).

    Raises `UserError` for names that the model has not, wrong ranks, and extents that contradict the model or each
    other.
    """
    symbols = {d for shape in shapes.values() for d in shape or () if isinstance(d, str)}
    found: dict[str, int] = {}

    def note(key: str, extent: int, what: str) -> None:
        if found.setdefault(key, extent) != extent:
            raise UserError(f"{label}: {what} is to be {extent} and {found[key]} at once")

    for name, values in extents.items():
        shape = shapes.get(name)
        if name in shapes and shape is None:
            raise UserError(f"{label}: input {name!r} has no known rank; fix its shape with --shape")
        if shape is not None and (len(values) == len(shape) or name not in symbols):
            if len(values) != len(shape):
                raise UserError(f"{label}: input {name!r} has {len(shape)} dimensions, not {len(values)}")
            for axis, (d, extent) in enumerate(zip(shape, values, strict=True)):
                if extent is None:
                    continue
                if isinstance(d, int):
                    if d != extent:
                        raise UserError(f"{label}: axis {axis} of input {name!r} is {d} in the model, not {extent}")
                else:
                    note(d, extent, f"axis {axis} of input {name!r}")
        elif name in symbols:
            if len(values) != 1 or values[0] is None:
                raise UserError(f"{label}: {name!r} is one dimension: give it one extent, a whole number")
            note(name, values[0], f"the dimension {name!r}")
        else:
            known = ", ".join([*map(repr, shapes), *map(repr, sorted(symbols))])
            raise UserError(f"{label}: no input and no dimension is named {name!r}; there are {known}")
    return found


def input_shapes(model: ModelProto) -> dict[str, list[int | str] | None]:
    """Shapes of a model's inputs, initializers left out; None for those of unknown rank."""
    constant = {t.name for t in model.graph.initializer}
    found: dict[str, list[int | str] | None] = {}
    for info in model.graph.input:
        kind = info.type.tensor_type
        if info.name not in constant and info.type.HasField("tensor_type"):
            dims = [
                d.dim_value if d.HasField("dim_value") else _symbol(d.dim_param, info.name, axis)
                for axis, d in enumerate(kind.shape.dim)
            ]
            found[info.name] = dims if kind.HasField("shape") else None
    return found


def _symbol(name: str, value: str, axis: int) -> str:
    return anonymous(value, axis) if name in ANONYMOUS else name


def specialise(model: ModelProto, extents: Extents, label: str) -> None:
    """Give symbolic dimensions of the model's inputs fixed extents, wherever their names occur, in place."""
    shapes = input_shapes(model)
    for info in model.graph.input:
        if info.name in extents and shapes.get(info.name, ()) is None:  # of no known rank: now it has one
            for extent in extents[info.name]:
                d = info.type.tensor_type.shape.dim.add()
                if extent is not None:
                    d.dim_value = extent
    named = resolve(input_shapes(model), extents, label)
    for info in model.graph.input:
        for axis, d in enumerate(info.type.tensor_type.shape.dim):
            symbol = _symbol(d.dim_param, info.name, axis)
            if symbol in named and not d.HasField("dim_value"):
                d.dim_value = named[symbol]
    _name(model.graph, named)


def _name(graph: GraphProto, named: Mapping[str, int]) -> None:
    stack = [graph]
    while stack:
        body = stack.pop()
        for info in (*body.input, *body.output, *body.value_info):
            _fix(info.type, named)
        stack.extend(inner for node in body.node for inner in subgraphs(node))


def _fix(kind: TypeProto, named: Mapping[str, int]) -> None:
    if kind.HasField("tensor_type"):
        for d in kind.tensor_type.shape.dim:
            if d.dim_param in named:
                d.dim_value = named[d.dim_param]


def settle(model: ModelProto, graph: Graph) -> None:
    """Write what a specialised graph knows of its outputs into the model's outputs; names that are none now go."""
    own = {s for n in graph.nodes if n.op == "Input" for s in n.type.symbols}
    kinds = dict(zip(graph.output_names, (graph.nodes[i].type for i in graph.outputs), strict=True))
    for info in model.graph.output:
        kind, dims = kinds.get(info.name), info.type.tensor_type.shape.dim
        if isinstance(kind, TensorType) and kind.shape is not None and len(dims) == len(kind.shape):
            for d, known in zip(dims, kind.shape, strict=True):
                if isinstance(known, int):
                    d.dim_value = known
                elif known.name is not None and not made_up(known.name):
                    d.dim_param = known.name
                elif not own.issuperset(known.symbols) or d.dim_param not in own:
                    d.Clear()


# Where to measure


def point(graph: Graph, extents: Extents, label: str) -> dict[str, int]:
    """The binding of all symbols of a graph's inputs that extents tell; the others take their usual extents."""
    shapes: dict[str, list[int | str] | None] = {}
    for node in graph.nodes:
        if node.op == "Input" and isinstance(node.type, TensorType):
            dims = [d if isinstance(d, int) else d.name or str(d) for d in node.type.shape or ()]
            shapes[str(node.attrs["name"])] = dims if node.type.shape is not None else None
    given = resolve(shapes, extents, label)
    return completed(graph, usual_extents(graph) | given)


def usual_extents(graph: Graph) -> dict[str, int]:
    """An extent for each symbol of the inputs: batches 1, sequences 128, sides of images 224, the rest 1.

    By name where it tells, else by place. Less where the graph shows a bound: a table of 64 positions, say.
    """
    found: dict[str, int] = {}
    for node in graph.nodes:
        kind = node.type
        if node.op != "Input" or not isinstance(kind, TensorType) or kind.shape is None:
            continue
        for axis, d in enumerate(kind.shape):
            name = d.name if isinstance(d, Polynomial) else None
            if name is not None and name not in found and "+" not in name:
                found[name] = _usual(name, axis, kind)
    for bound_symbol, bound in _bounds(graph):
        if bound_symbol in found:
            found[bound_symbol] = max(1, min(found[bound_symbol], bound))
    return {name: found[name] for name in input_symbols(graph) if name in found}


def _usual(name: str, axis: int, kind: TensorType) -> int:
    if not name.startswith("?"):
        if "batch" in name.lower():
            return 1
        if _SEQUENTIAL.search(name):
            return SEQUENCE
        if _SIDE.search(name):
            return IMAGE
    if axis > 1 and kind.rank == 4 and "float" in kind.dtype:
        return IMAGE
    return SEQUENCE if axis == 1 and (kind.rank or 0) in (2, 3) else 1


def _bounds(graph: Graph) -> list[tuple[str, int]]:
    found: dict[tuple[str, int], None] = {}
    for node in graph.nodes:
        for kind in node.type.items if isinstance(node.type, TupleType) else (node.type,):
            for d in kind.shape or ():
                if isinstance(d, Polynomial):
                    for monomial, _ in d.terms:
                        for atom, _ in monomial:
                            if isinstance(atom, Least) and len(atom.of.symbols) == 1:
                                slack = atom.bound - evaluate(atom.of, {atom.of.symbols[0]: 0})
                                found[atom.of.symbols[0], slack] = None
    return list(found)
