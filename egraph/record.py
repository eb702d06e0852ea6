"""A program as plain data, without the weights of the model that it was made from: what a run's record keeps to replay.

Weights are named by their digests and taken from the model again; small constants that rules made are kept themselves.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .dimension import Least, Polynomial, Quotient
from .graph import Graph, GraphBuilder, TensorType, TupleType, Type, Weight

VERSION = 1


class NotRecorded(ValueError):
    """The data is no program, or one of another model."""


def record(graph: Graph, original: Graph) -> dict[str, Any]:
    """`graph`, made from `original`, as plain values for JSON."""
    made = {d: w for d, w in graph.weights.items() if d not in original.weights}
    return {
        "version": VERSION,
        "nodes": [
            [n.op, list(n.inputs), [[k, _plain(v)] for k, v in n.attributes], _type(n.type), list(n.names)]
            for n in graph.nodes
        ],
        "outputs": list(graph.outputs),
        "output_names": list(graph.output_names),
        "constants": {d: _array(w) for d, w in made.items()},
    }


def restore(data: Mapping[str, Any], original: Graph) -> Graph:
    """The program that `record` wrote down, with the weights of `original`.

    Raises `NotRecorded` if it is none, or needs what `original` has not.
    """
    try:
        if data["version"] != VERSION:
            raise NotRecorded(f"a program in form {data['version']}; this version reads {VERSION}")
        made = {str(d): replace(_weight(w), digest=str(d)) for d, w in data["constants"].items()}
        builder = GraphBuilder()
        builder.input_names, builder.opaques = list(original.input_names), dict(original.opaques)
        for op, inputs, attrs, kind, names in data["nodes"]:
            frozen = tuple((str(k), _value(v)) for k, v in attrs)
            if op == "Weight":
                digest = str(dict(frozen)["digest"])
                weight = original.weights.get(digest) or made[digest]
                builder.weights[digest] = weight
            if "::" in op and dict(frozen).get("proto") not in original.opaques:
                raise NotRecorded(f"the model has no such operator {op}")
            if any(not 0 <= int(i) < len(builder.nodes) for i in inputs):
                raise NotRecorded("an operator reads what is not there")
            builder.add(str(op), [int(i) for i in inputs], frozen, _read_type(kind), tuple(map(str, names)))
        outputs = [int(o) for o in data["outputs"]]
        names = [str(n) for n in data["output_names"]]
        if len(builder.nodes) != len(data["nodes"]) or any(not 0 <= o < len(builder.nodes) for o in outputs):
            raise NotRecorded("it is damaged")
        if tuple(names) != original.output_names:
            raise NotRecorded("the model has other outputs")
    except NotRecorded:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotRecorded(f"the model lacks {error}, or the record is damaged") from None
    return Graph(
        tuple(builder.nodes), tuple(outputs), original.input_names, tuple(names), builder.weights,
        dict(original.opaques), original.source,
    )  # fmt: skip


def _plain(value: Any) -> Any:
    """An attribute's value; tuples become lists, infinite numbers and dimensions are told apart by a key."""
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Polynomial):
        return {"sum": [[[[_atom(a), p] for a, p in monomial], c] for monomial, c in value.terms]}
    if isinstance(value, float):
        return {"float": value.hex()}
    return value


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_value(v) for v in value)
    if isinstance(value, dict):
        if "float" in value:
            return float.fromhex(value["float"])
        return Polynomial(tuple((tuple((_read_atom(a), int(p)) for a, p in m), int(c)) for m, c in value["sum"]))
    return value


def _atom(atom: Any) -> Any:
    if isinstance(atom, Quotient):
        return {"of": _plain(atom.of), "by": atom.by}
    return {"of": _plain(atom.of), "bound": atom.bound} if isinstance(atom, Least) else atom


def _read_atom(atom: Any) -> Any:
    if not isinstance(atom, dict):
        return str(atom)
    of = _value(atom["of"])
    return Quotient(of, int(atom["by"])) if "by" in atom else Least(of, int(atom["bound"]))


def _type(kind: Type) -> Any:
    if isinstance(kind, TupleType):
        return {"items": [_type(t) for t in kind.items]}
    return [kind.dtype, None if kind.shape is None else _plain(kind.shape)]


def _read_type(kind: Any) -> Type:
    if isinstance(kind, dict):
        items = tuple(_read_type(t) for t in kind["items"])
        return TupleType(items)  # type: ignore[arg-type]
    dtype, shape = kind
    return TensorType(None if shape is None else _value(shape), str(dtype))


def _array(weight: Weight) -> dict[str, Any]:
    array = np.asarray(weight.load())
    return {
        "dtype": weight.type.dtype, "stored": str(array.dtype), "shape": list(array.shape), "name": weight.name,
        "data": base64.b64encode(array.tobytes()).decode(),
    }  # fmt: skip


def _weight(data: Mapping[str, Any]) -> Weight:
    stored = np.dtype(data["stored"])
    if stored.hasobject:
        raise NotRecorded("a constant is no tensor of numbers")
    array = np.frombuffer(base64.b64decode(data["data"]), stored).reshape([int(d) for d in data["shape"]])
    return Weight.of(array, str(data["name"]), str(data["dtype"]))
