"""What a node's bodies and functions do: the names they define and read, and whether they are random."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from .onnx_storage import Store
from .onnx_tensor import stored_weight

_RANDOM = ("Random", "Multinomial", "Bernoulli", "Dropout", "Sampling")
_PURE_DOMAINS = ("", "ai.onnx.ml", "com.microsoft")


def domain_of(domain: str) -> str:
    """The domain under one name: the default one has two."""
    return "" if domain == "ai.onnx" else domain


Key: TypeAlias = tuple[str, str, str]
"""What a node calls: domain, name and overload."""


def called(node: NodeProto) -> Key:
    """The operator or function that a node calls."""
    return domain_of(node.domain), node.op_type, node.overload


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies that a node holds (of If, Loop, Scan and the like)."""
    for a in node.attribute:
        if a.type == onnx.AttributeProto.GRAPH:
            yield a.g
        elif a.type == onnx.AttributeProto.GRAPHS:
            yield from a.graphs


def captures(node: NodeProto) -> tuple[str, ...]:
    """Names of outer values that the node's bodies read, in order of first use."""
    found: dict[str, None] = {}
    for body in subgraphs(node):
        for name in free_names(body):
            found.setdefault(name)
    return tuple(found)


def free_names(body: onnx.GraphProto) -> list[str]:
    """Names of outer values that a body reads, in order of first use."""
    bound = set(_leaves(body))
    free: dict[str, None] = {}
    for n in body.node:
        for name in (*n.input, *captures(n)):
            if name and name not in bound:
                free.setdefault(name)
        bound.update(n.output)
    for o in body.output:
        if o.name and o.name not in bound:
            free.setdefault(o.name)
    return list(free)


def names_within(body: onnx.GraphProto) -> set[str]:
    """All names that a body and the bodies in it define."""
    found = set(_leaves(body))
    for node in body.node:
        found.update(node.output)
        for inner in subgraphs(node):
            found |= names_within(inner)
    return found - {""}


def _leaves(body: onnx.GraphProto) -> list[str]:
    """Names that a body defines without a node."""
    sparse = [s.values for s in body.sparse_initializer]
    return [definition.name for definition in (*body.input, *body.initializer, *sparse)]


def rename_own(body: onnx.GraphProto, wanted: Mapping[str, str], outer: Mapping[str, str] | None = None) -> None:
    """Rename values that a body, or a body in it, defines. What it reads from outside under such a name stays.

    outer: the renamed values of the bodies around it.
    """
    own = {*_leaves(body), *(name for node in body.node for name in node.output)}
    active = {**(outer or {}), **{old: new for old, new in wanted.items() if old in own}}
    sparse = [s.values for s in body.sparse_initializer]
    for value in (*body.input, *body.initializer, *sparse, *body.value_info, *body.output):
        value.name = active.get(value.name, value.name)
    for node in body.node:
        node.input[:] = [active.get(name, name) for name in node.input]
        node.output[:] = [active.get(name, name) for name in node.output]
        for inner in subgraphs(node):
            rename_own(inner, wanted, active)


def rename(body: onnx.GraphProto, renamed: dict[str, str]) -> None:
    """Rename outer values in a body; names that it defines itself hide them."""
    own = {i.name for i in body.input} | {i.name for i in body.initializer}
    renamed = {old: new for old, new in renamed.items() if old not in own}
    for node in body.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        for inner in subgraphs(node):
            rename(inner, renamed)
        renamed = {old: new for old, new in renamed.items() if old not in node.output}
    for o in body.output:
        o.name = renamed.get(o.name, o.name)


def impure(node: NodeProto, functions: Mapping[Key, onnx.FunctionProto]) -> bool:
    """Whether two equal nodes may give different results: random, stateful, training, or of an unknown domain."""
    stack: list[NodeProto] = [node]
    seen: set[Key] = set()
    while stack:
        n = stack.pop()
        key = called(n)
        if key in functions:
            if key not in seen:
                seen.add(key)
                stack.extend(functions[key].node)
            continue
        if key[0] not in _PURE_DOMAINS or any(part in n.op_type for part in _RANDOM) or _training(n):
            return True
        for body in subgraphs(n):
            stack.extend(body.node)
    return False


def _training(node: NodeProto) -> bool:
    """Whether this is a BatchNormalization that updates its statistics (up to opset 13 it then has five outputs)."""
    if node.op_type != "BatchNormalization":
        return False
    return len(node.output) > 1 or any(a.name == "training_mode" and a.i for a in node.attribute)


def internalise(node: NodeProto, store: Store | None) -> None:
    """Read the external data of tensors in attributes and bodies: the proto must stand for itself."""
    for a in node.attribute:
        for tensor in (a.t, *a.tensors) if a.HasField("t") or a.tensors else ():
            _embed(tensor, store)
    for body in subgraphs(node):
        for tensor in body.initializer:
            _embed(tensor, store)
        for inner in body.node:
            internalise(inner, store)


def _embed(tensor: TensorProto, store: Store | None) -> None:
    if tensor.data_location == TensorProto.EXTERNAL:
        array = stored_weight(tensor, tensor.name, store).load()
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(array, order="C"), tensor.name))
