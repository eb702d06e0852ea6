"""Graphs written as Relay text. What the module had is written as it was: its bindings are replayed on the graph."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..egraph.graph import Attributes, Graph, GraphBuilder, TensorType, TupleType, Type, Weight
from .decomposition import spelled_out
from .folding import fold_constants
from .relay_arrays import read_params, written_metadata, written_params
from .relay_forms import WRITTEN, NotInRelay, call
from .relay_operators import Value
from .relay_reader import RelaySource, Replay, read_text
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
    Text,
    Tuple,
    TupleKind,
    parts,
    printed,
)


class _Missing(Exception):
    """A node that a graph has not."""


class _Lookup(GraphBuilder):
    """A builder that only finds what a graph has."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.nodes, self.weights = list(graph.nodes), dict(graph.weights)
        self._index = {(n.op, n.inputs, n.attributes): i for i, n in enumerate(self.nodes)}

    def add(self, op: str, inputs: Iterable[int], attrs: Attributes, type: Type, names: tuple[str, ...] = ()) -> int:
        key = (op, tuple(inputs), attrs)
        if key not in self._index:
            raise _Missing
        return self._index[key]


def write(graph: Graph) -> tuple[str, bytes]:
    """A graph as Relay text and a parameter file (empty where constants are in the text's metadata).

    What the module had before is written as it was. Raises `NotInRelay` for what Relay has not.
    """
    return _Writer(spelled_out(graph, WRITTEN.__contains__, not isinstance(graph.source, RelaySource))).written()


def checked(graph: Graph) -> tuple[bytes, bytes]:
    """The same as bytes, once the text, read again, computed what the graph does; else raises `NotInRelay`."""
    from .verification import verify

    text, params = write(graph)
    again = read_text(text, read_params(params) if params else None, "the module written")
    renamed = dict(zip(again.input_names, _inputs_of(graph), strict=True))
    nodes = tuple(
        replace(n, attributes=(("name", renamed[str(n.attrs["name"])]),)) if n.op == "Input" else n for n in again.nodes
    )
    again = replace(again, nodes=nodes, input_names=tuple(renamed.values()), output_names=graph.output_names)
    found = verify(graph, again, samples=1)
    if found.verdict == "failed":
        raise NotInRelay(f"the Relay text computes something else ({found.detail}); please report this")
    return text.encode(), params


def _inputs_of(graph: Graph) -> list[str]:
    """The names of a graph's inputs, in the order in which a module that is written has them."""
    source = graph.source
    told = [name for name, _ in source.function.params] if isinstance(source, RelaySource) else []
    return [*(n for n in told if n in graph.input_names), *(n for n in graph.input_names if n not in told)]


class _Writer:
    def __init__(self, graph: Graph) -> None:
        source = graph.source
        self.graph = graph
        self.source = source if isinstance(source, RelaySource) else RelaySource(Function("main", (), (), Name("")))
        self.names = _identifiers(graph.input_names)
        """What the inputs are called in the text."""
        self.made: list[tuple[str, Expr]] = []
        self.exprs: dict[int, Expr] = {}
        self.done: dict[str, Expr] = {}
        self.params: dict[str, str] = {}
        """Digests of the parameters that are used, by name."""
        self.constants: list[str] = []
        self.new: dict[str, Weight] = {}
        self.fresh: list[int] = []
        """Nodes that the module had not."""
        self.known, self.results = self._replayed()
        self.names_of: dict[int, list[str]] = {}
        for name, value in self.known.items():
            if isinstance(value, int):
                self.names_of.setdefault(value, []).append(name)
        self.constant = self._constant()

    def _replayed(self) -> tuple[dict[str, Value], Value | None]:
        """The nodes of the variables that the module had, as far as the graph has them, and of its result."""
        lookup, function = _Lookup(self.graph), self.source.function
        weights = [self.graph.weights.get(d) for d in self.source.constants]
        replay = Replay(lookup, function, [w for w in weights if w is not None], "")
        if None in weights:  # numbers of constants would be wrong
            replay.constants = [w if w is not None else Weight.of(np.zeros(0), "") for w in weights]
        digest = {str(n.attrs["digest"]): i for i, n in enumerate(self.graph.nodes) if n.op == "Weight"}
        inputs = {str(n.attrs["name"]): i for i, n in enumerate(self.graph.nodes) if n.op == "Input"}
        for name, _ in function.params:
            found = digest.get(self.source.params[name]) if name in self.source.params else inputs.get(name)
            if found is not None:
                replay.values[name] = found
        for name, expr in function.bindings:
            try:
                replay.values[name] = replay.value(expr)
            except (_Missing, NotRelay):
                continue
        try:
            return replay.values, replay.value(function.result) if function.bindings else None
        except (_Missing, NotRelay):
            return replay.values, None

    def _constant(self) -> dict[int, Weight]:
        """The weights of constant expressions, as far as they are folded."""
        nodes, const = self.graph.nodes, set[int]()
        for i in self.graph.live:
            n = nodes[i]
            if n.op == "Weight" or (n.inputs and not n.opaque and all(k in const for k in n.inputs)):
                const.add(i)
        wanted = [
            i
            for i in sorted(const)
            if nodes[i].op not in ("Weight", "Absent") and isinstance(nodes[i].type, TensorType)
        ]
        part = replace(self.graph, outputs=tuple(wanted), output_names=tuple(str(i) for i in wanted), source=None)
        folded = fold_constants(part)
        found = {}
        for i, k in zip(wanted, folded.outputs, strict=True):
            if folded.nodes[k].op == "Weight":
                found[i] = folded.weights[str(folded.nodes[k].attrs["digest"])]
        return found

    def written(self) -> tuple[str, bytes]:
        wanted = self._needed()
        for name, expr in self.source.function.bindings:
            if name in wanted:
                self._recorded(name, expr)
        if self._same():
            result = self._rewritten(self.source.function.result)
        else:
            outputs = self.graph.outputs
            for i in self.fresh:  # operands first, lest this recurse through the whole graph
                if self.graph.nodes[i].op != "Transpose":
                    self.expr(i)
            found = [self.expr(i) for i in outputs]
            known = self.source.function
            one = len(found) == 1 and not isinstance(known.result, Tuple) and not isinstance(known.returns, TupleKind)
            result = found[0] if one else Tuple(tuple(found))
        return self._text(result)

    def _same(self) -> bool:
        """Whether the module's own result is the graph's."""
        results = self.results if isinstance(self.results, tuple) else (self.results,)
        return results == self.graph.outputs

    def _needed(self) -> set[str]:
        """Variables of the module that are written as they were: what others, or new nodes, read of them."""
        bindings, needed = dict(self.source.function.bindings), set[str]()
        seen = set[int]()
        names: list[str] = []
        nodes: list[int] = []
        if self._same():
            names += _names(self.source.function.result)
        else:
            nodes += self.graph.outputs
        while names or nodes:
            if names:
                name = names.pop()
                if name in needed or name not in bindings:
                    continue
                needed.add(name)
                names += _names(bindings[name])
                continue
            i = nodes.pop()
            if i in seen:
                continue
            seen.add(i)
            if own := [n for n in self.names_of.get(i, ()) if n in bindings]:
                names.append(own[0])
            elif i not in self.constant:
                self.fresh.append(i)
                nodes += self.graph.nodes[i].inputs
        self.fresh.sort()
        return needed

    def _recorded(self, name: str, expr: Expr) -> None:
        made = self._rewritten(expr)
        self.done[name] = self.bound(made)
        value = self.known[name]
        if isinstance(value, int):
            self.exprs.setdefault(value, self.done[name])

    def _rewritten(self, e: Expr) -> Expr:
        """An expression of the module with the names that its parts have now."""
        if isinstance(e, Name):
            if e.name in self.done:
                return self.done[e.name]
            return self._leaf(self.known[e.name], e.name)
        if isinstance(e, Part):
            return Part(self._rewritten(e.of), e.index)
        if isinstance(e, Tuple):
            return Tuple(tuple(map(self._rewritten, e.fields)))
        if isinstance(e, Call):
            return replace(e, args=tuple(map(self._rewritten, e.args)))
        if isinstance(e, Meta):
            return self._meta(self.source.constants[e.index])
        return e

    def _leaf(self, value: Value, name: str) -> Expr:
        assert isinstance(value, int)
        if self.graph.nodes[value].op == "Weight":
            self.params[name] = str(self.graph.nodes[value].attrs["digest"])
            return Name(name)
        return Name(self.names.get(name, name))

    def _meta(self, digest: str) -> Expr:
        if digest not in self.constants:
            self.constants.append(digest)
        return Meta(self.constants.index(digest))

    # What a form asks

    def expr(self, i: int) -> Expr:
        if i not in self.exprs:
            self.exprs[i] = self._made(i)
        return self.exprs[i]

    def shape(self, i: int) -> tuple[int, ...]:
        kind = self.graph.nodes[i].type
        if not isinstance(kind, TensorType) or not kind.concrete:
            raise NotInRelay("a shape that is not known")
        return kind.shape  # type: ignore[return-value]

    def transposed(self, i: int) -> Expr:
        node, rank = self.graph.nodes[i], len(self.shape(i))
        last = (*range(rank - 2), rank - 1, rank - 2)
        if node.op == "Transpose" and tuple(node.attrs["perm"]) == last:
            return self.expr(node.inputs[0])
        weight = self.constant.get(i) or (
            self.graph.weights[str(node.attrs["digest"])] if node.op == "Weight" else None
        )
        if weight is not None:
            return self._weight(Weight.of(np.asarray(np.swapaxes(weight.load(), -1, -2), order="C"), weight.name))
        return self.bound(call("transpose", self.expr(i), axes=last))

    def bound(self, e: Expr) -> Expr:
        name = str(len(self.made))
        self.made.append((name, e))
        return Name(name)

    def _made(self, i: int) -> Expr:
        node = self.graph.nodes[i]
        if node.op == "Input":
            return Name(self.names[str(node.attrs["name"])])
        if node.op == "Weight":
            digest = str(node.attrs["digest"])
            for name, known in self.source.params.items():
                if known == digest:
                    return self._leaf(i, name)
            if digest in self.source.constants:
                return self._meta(digest)
            return self._weight(self.graph.weights[digest])
        if i in self.constant:
            return self._weight(self.constant[i])
        if node.op == "Get":
            return Part(self.expr(node.inputs[0]), int(node.attrs["index"]))
        if node.op not in WRITTEN:
            raise NotInRelay(f"Relay has no {node.op}")
        return self.bound(WRITTEN[node.op](self, node, node.inputs))

    def _weight(self, weight: Weight) -> Expr:
        """A constant that the module had not: a number, or one more parameter or constant."""
        if weight.type.shape == () and weight.type.dtype != "bfloat16":
            return Scalar(weight.load().item(), weight.type.dtype)
        self.new[weight.digest] = weight
        if self.source.frozen:
            return self._meta(weight.digest)
        for name, digest in self.params.items():
            if digest == weight.digest:
                return Name(name)
        taken = {*self.params, *(name for name, _ in self.source.function.params), *self.names.values()}
        k = 0
        while f"folded_{k}" in taken:
            k += 1
        self.params[f"folded_{k}"] = weight.digest
        return Name(f"folded_{k}")

    def _text(self, result: Expr) -> tuple[str, bytes]:
        weights = {**self.graph.weights, **self.new}
        made = self.made
        if isinstance(result, Name) and made and result.name == made[-1][0]:  # as Relay prints it
            result = made.pop()[1]
        kinds = dict(self.source.function.params)
        params: list[tuple[str, Any]] = []
        inputs = {str(n.attrs["name"]): n for n in self.graph.nodes if n.op == "Input"}
        for name in dict.fromkeys([*kinds, *self.graph.input_names, *self.params]):
            if name in self.params:
                params.append((name, _kind(weights[self.params[name]].type)))
            elif name in self.names:
                params.append((self.names[name], kinds.get(name) or _kind(inputs[name].type)))
        known = self.source.function
        function = Function("main", tuple(params), tuple(made), result, known.attrs, known.returns)
        metadata = written_metadata([np.asarray(weights[d].load()) for d in self.constants])
        text = printed(Text((function, *self.source.others), metadata))
        arrays = {name: np.asarray(weights[d].load()) for name, d in self.params.items()}
        return text, written_params(arrays) if arrays else b""


def _identifiers(names: Sequence[str]) -> dict[str, str]:
    """Names that Relay can have, for any: letters, digits and underscores; a number would be a variable of the body."""
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"\W", "_", name)
        plain = plain if plain[:1].isalpha() or plain.startswith("_") else f"v{plain}"
        while plain in found.values():
            plain += "_"
        found[name] = plain
    return found


def _kind(kind: Type) -> TensorKind:
    if isinstance(kind, TupleType) or kind.shape is None:
        raise NotInRelay("a shape that is not known")
    return TensorKind(tuple(d if isinstance(d, int) else "?" for d in kind.shape), kind.dtype)


def _names(e: Expr) -> list[str]:
    """The variables that an expression reads."""
    return [e.name] if isinstance(e, Name) else [name for part in parts(e) for name in _names(part)]
