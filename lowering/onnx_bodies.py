"""What a node's bodies and functions do: the names they define and read, and whether they are random."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from .onnx_tensor import stored_weight

_RANDOM = ("Random", "Multinomial", "Bernoulli", "Dropout", "Sampling")
_PURE_DOMAINS = ("", "ai.onnx.ml", "com.microsoft")


def domain_of(domain: str) -> str:
    """The domain under one name: the default one has two."""
    return "" if domain == "ai.onnx" else domain


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
        for name in _free_names(body):
            found.setdefault(name)
    return tuple(found)


def _free_names(body: onnx.GraphProto) -> list[str]:
    bound = {i.name for i in body.input} | {i.name for i in body.initializer}
    bound |= {s.values.name for s in body.sparse_initializer}
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
    found = {i.name for i in body.input} | {i.name for i in body.initializer}
    for node in body.node:
        found.update(node.output)
        for inner in subgraphs(node):
            found |= names_within(inner)
    return found - {""}


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


def impure(node: NodeProto, domain: str, functions: Mapping[tuple[str, str], onnx.FunctionProto]) -> bool:
    """Whether two equal nodes may give different results: random, stateful, or of an unknown domain."""
    stack: list[NodeProto] = [node]
    seen: set[tuple[str, str]] = set()
    while stack:
        n = stack.pop()
        key = (domain_of(n.domain), n.op_type)
        if key in functions:
            if key not in seen:
                seen.add(key)
                stack.extend(functions[key].node)
            continue
        if key[0] not in _PURE_DOMAINS or any(part in n.op_type for part in _RANDOM):
            return True
        for body in subgraphs(n):
            stack.extend(body.node)
    return False


def internalise(node: NodeProto, folder: Path | None) -> None:
    """Read the external data of tensors in attributes and bodies: the proto must stand for itself."""
    for a in node.attribute:
        for tensor in (a.t, *a.tensors) if a.HasField("t") or a.tensors else ():
            _embed(tensor, folder)
    for body in subgraphs(node):
        for tensor in body.initializer:
            _embed(tensor, folder)
        for inner in body.node:
            internalise(inner, folder)


def _embed(tensor: TensorProto, folder: Path | None) -> None:
    if tensor.data_location == TensorProto.EXTERNAL:
        array = stored_weight(tensor, tensor.name, folder).load()
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(array, order="C"), tensor.name))
