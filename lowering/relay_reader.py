"""Relay modules read into graphs: the bindings of the function "main", one after the other.

All of it has to consist of operators that are known here (`relay_operators`); another one is named, with its line.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..egraph.graph import Graph, GraphBuilder, TensorType, Weight
from ..egraph.operators import IllTyped
from ..errors import UserError
from .onnx_tensor import numpy_dtype
from .relay_arrays import read_metadata, read_params
from .relay_forms import WRITTEN
from .relay_operators import READ, NotReadable, Site, Value
from .relay_text import (
    Call,
    Expr,
    Function,
    Meta,
    Name,
    NotRelay,
    Part,
    Scalar,
    TensorKind,
    Tuple,
    parse,
    parts,
)


@dataclass(frozen=True)
class RelaySource:
    """What the writer needs of a module beside its graph.

    function: "main". others: the other functions, which it does not call. params, constants: digests of the parameters
    by name, and of the metadata's constants.
    """

    function: Function
    others: tuple[Function, ...] = ()
    params: Mapping[str, str] = field(default_factory=dict)
    constants: tuple[str, ...] = ()

    altered = True
    """To other runtimes this is another model than the file: it has to be written for them."""

    @property
    def frozen(self) -> bool:
        """Whether constants are in the metadata, rather than parameters."""
        return bool(self.constants)

    def writes(self, op: str) -> bool:
        """Whether a rule may introduce this core operator."""
        return op in WRITTEN


def read(
    source: str | os.PathLike[str], params: str | os.PathLike[str] | Mapping[str, np.ndarray] | None = None
) -> Graph:
    """The graph of a file's function "main"; its parameters' values become weights, other parameters inputs.

    Raises `NotRelay` (a `UserError`) for what is no Relay, has an operator that is not known, or does not fit.
    """
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or 'no text'}") from None
    return read_text(text, _arrays(params), str(path))


def _arrays(params: str | os.PathLike[str] | Mapping[str, np.ndarray] | None) -> Mapping[str, np.ndarray]:
    if params is None or isinstance(params, Mapping):
        return params or {}
    file = Path(params)
    try:
        return read_params(file.read_bytes(), str(file))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None


def read_text(text: str, params: Mapping[str, np.ndarray] | None = None, label: str = "the module") -> Graph:
    """The same, from the text and arrays by name."""
    module = parse(text, label)
    main = next((f for f in module.functions if f.name == "main"), None)
    if main is None:
        names = ", ".join(f.name for f in module.functions)
        raise NotRelay(f"{label}: no function is called main (there is {names})")
    others = tuple(f for f in module.functions if f is not main)
    for other in others:  # kept as they are, so numbers of constants, which change, must not be in them
        if any(_reads_meta(e) for e in (*(e for _, e in other.bindings), other.result)):
            raise NotRelay(f"{label}: the function {other.name} has constants in the metadata; only main may")
    constants = [Weight.of(a, f"constant_{k}") for k, a in enumerate(read_metadata(module.metadata, label))]
    builder = GraphBuilder()
    reading = Replay(builder, main, constants, label)
    known = params or {}
    for name, kind in main.params:
        if not isinstance(kind, TensorKind):
            raise NotRelay(f"{label}: the parameter {name} is a tuple")
        if name in known:
            array = known[name]
            if array.shape != kind.shape or _dtype(array) != kind.dtype:
                raise NotRelay(f"{label}: the parameter {name} is {_dtype(array)}{list(array.shape)}, not {kind}")
            reading.values[name] = builder.weight(Weight.of(array, name, _dtype(array)))
        else:
            extents = (f"?{name}.{k}" if d == "?" else d for k, d in enumerate(kind.shape))
            reading.values[name] = builder.input(name, TensorType(extents, kind.dtype))
    if known and not any(name in known for name, _ in main.params):  # a few that are not used are usual
        raise NotRelay(f"{label}: none of the parameters given is one of the module's")
    outputs = reading.outputs()
    weights = {n: builder.nodes[i] for n, _ in main.params if isinstance(i := reading.values[n], int)}
    digests = {n: str(node.attrs["digest"]) for n, node in weights.items() if node.op == "Weight"}
    source = RelaySource(main, others, digests, tuple(w.digest for w in constants))
    return builder.build(outputs, source)


def _reads_meta(e: Expr) -> bool:
    return isinstance(e, Meta) or any(map(_reads_meta, parts(e)))


def _dtype(array: np.ndarray) -> str:
    return str(array.dtype)


class Replay:
    """Goes through a function's bindings and makes, or finds, the nodes that they are."""

    def __init__(self, builder: GraphBuilder, function: Function, constants: Sequence[Weight], label: str) -> None:
        self.builder, self.function, self.constants, self.label = builder, function, constants, label
        self.values: dict[str, Value] = {}

    def outputs(self) -> dict[str, int]:
        for name, expr in self.function.bindings:
            self.values[name] = self.named(name, self.value(expr))
        found = self.named("result", self.value(self.function.result))
        each = found if isinstance(found, tuple) else (found,)
        if not all(isinstance(p, int) for p in each):
            raise NotRelay(f"{self.label}: the result is a tuple of tuples")
        return {f"output_{k}" if len(each) > 1 else "output": p for k, p in enumerate(each) if isinstance(p, int)}

    def named(self, name: str, value: Value) -> Value:
        if isinstance(value, int):
            node = self.builder.nodes[value]
            if not node.names and node.op not in ("Input", "Weight"):
                self.builder.nodes[value] = replace(node, names=(f"v{name}" if name.isdigit() else name,))
        return value

    def value(self, e: Expr) -> Value:
        if isinstance(e, Name):
            if e.name not in self.values:
                raise NotRelay(f"{self.label}: %{e.name} is used before it is defined")
            return self.values[e.name]
        if isinstance(e, Part):
            whole = self.value(e.of)
            if not isinstance(whole, tuple) or e.index >= len(whole):
                raise NotRelay(f"{self.label}: there is no part {e.index}")
            return whole[e.index]
        if isinstance(e, Scalar):
            return self.builder.weight(Weight.of(np.array(e.value, numpy_dtype(e.dtype)), ""))
        if isinstance(e, Meta):
            if e.index >= len(self.constants):
                raise NotRelay(
                    f"{self.label}: meta[relay.Constant][{e.index}] is not in the metadata "
                    "(print the module with show_meta_data=True)"
                )
            return self.builder.weight(self.constants[e.index])
        if isinstance(e, Tuple):
            return tuple(self.value(f) for f in e.fields)
        return self.call(e)

    def call(self, e: Call) -> Value:
        where = f"{self.label}, line {e.line}"
        if e.op not in READ:
            raise NotRelay(f"{where}: the operator {e.op} is not known")
        args = [self.value(a) for a in e.args]
        try:
            return READ[e.op](Site(self.builder, e.op, args, dict(e.attrs)))
        except (NotReadable, IllTyped) as error:
            raise NotRelay(f"{where}: {e.op} with {error} is not known") from None
        except (KeyError, IndexError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise NotRelay(f"{where}: {e.op} does not fit its operands ({type(error).__name__}: {error})") from None
