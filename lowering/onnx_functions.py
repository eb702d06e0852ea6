"""Model-local functions: kept as calls, or inlined where rules could use what is inside.

A function is inlined, at load, when a node of the main graph calls it and its body, or that of a function it calls,
holds an operator that rules know or arithmetic on shapes: a call would hide it. All others stay calls, and their protos
stay untouched:

- functions without such an operator, and those called from bodies (of If, Loop, …) only, into which no rule looks;
- functions of the domains in which a runtime may have a kernel of that name (`com.microsoft`, `ai.onnx`, …): the body
  is then only a description, and the kernel is faster;
- functions that import another opset than the model, if one of their operators is another in the two versions;
- functions that call themselves, and all of them if the graph would grow beyond `LIMIT` nodes.

ONNX's own inliner (`onnx.inliner`, 1.23) leaves out the default values of a function's attributes, all metadata and
the overload of a name, so this one is our own. It copies nodes only, never the weights of the main graph.

On models in the style of torch's exporter (layers as functions that call `aten` functions) no operator was known to
rules before inlining, and nine of ten are after it; see `tests/test_functions.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto

from .onnx_bodies import Key, called, domain_of, names_within, subgraphs
from .onnx_operators import CONVERTERS

LIMIT = 500_000
"""Nodes that a graph may have after inlining: nested calls can multiply."""

_EXTENTS = ("Shape", "Size", "Gather")
"""Operators that the arithmetic on shapes begins with: the reader computes it where it can see it."""

_KERNELS = ("", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "com.microsoft", "com.ms.internal.nhwc")
"""Domains whose functions describe operators that runtimes may have kernels for."""


def called_as(f: FunctionProto) -> Key:
    """What a node has to call to call this function."""
    return domain_of(f.domain), f.name, f.overload


def functions_of(model: ModelProto) -> dict[Key, FunctionProto]:
    """The model's functions; of equal keys the first."""
    found: dict[Key, FunctionProto] = {}
    for f in model.functions:
        found.setdefault(called_as(f), f)
    return found


def inline(model: ModelProto, wanted: set[Key] | None = None) -> int:
    """Inline functions in place; returns the number of calls that were replaced.

    wanted: which functions, wherever they are called; None takes those that rules could use, where rules look.
    """
    functions = functions_of(model)
    if not functions:
        return 0
    versions = {domain_of(o.domain): o.version for o in model.opset_import}
    if wanted is None:
        chosen = _useful(functions, versions)
    else:
        order = set(_order(functions))
        chosen = {key for key in wanted & order if fitting(functions[key], functions, versions)}
    if _size(model, functions, chosen) > LIMIT:
        return 0
    inliner = _Inliner(model, functions, chosen, wanted is not None)
    if wanted is not None or any(called(n) in chosen for n in model.graph.node):
        inliner.run()
        _drop_unused(model, chosen)
    return inliner.count


def calls_within(nodes: Iterable[NodeProto]) -> Iterator[Key]:
    """What the nodes and those in their bodies call, whether it is a function or not."""
    stack = list(nodes)
    while stack:
        node = stack.pop()
        yield called(node)
        for body in subgraphs(node):
            stack.extend(body.node)


def _order(functions: Mapping[Key, FunctionProto]) -> list[Key]:
    """The functions, callees first; those that call themselves, or one that does, are left out."""
    callers: dict[Key, list[Key]] = {key: [] for key in functions}
    waiting: dict[Key, int] = {}
    for key, f in functions.items():
        callees = {c: None for c in calls_within(f.node) if c in functions}
        waiting[key] = len(callees)
        for c in callees:
            callers[c].append(key)
    ready = [key for key, count in waiting.items() if not count]
    order = []
    while ready:
        key = ready.pop()
        order.append(key)
        for caller in callers[key]:
            waiting[caller] -= 1
            if not waiting[caller]:
                ready.append(caller)
    return order


def _useful(functions: Mapping[Key, FunctionProto], versions: dict[str, int]) -> set[Key]:
    """The functions to inline; `versions` learns the domains that only they import."""
    found: set[Key] = set()
    known_to_rules = CONVERTERS.keys() | set(_EXTENTS)
    for key in _order(functions):
        f = functions[key]
        known = any(
            called(n) in found
            or (called(n) not in functions and not domain_of(n.domain) and n.op_type in known_to_rules)
            for n in f.node
        )
        if known and key[0] not in _KERNELS and fitting(f, functions, versions):
            found.add(key)
            for o in f.opset_import:
                versions.setdefault(domain_of(o.domain), o.version)
    return found


def fitting(f: FunctionProto, functions: Mapping[Key, FunctionProto], versions: Mapping[str, int]) -> bool:
    """Whether every operator of a function means the same under the model's opset imports."""
    own = {domain_of(o.domain): o.version for o in f.opset_import}
    differing = {d for d, version in own.items() if versions.get(d, version) != version}
    if not differing:
        return True
    for domain, op, overload in set(calls_within(f.node)):
        if domain not in differing or (domain, op, overload) in functions:
            continue
        try:
            a, b = (onnx.defs.get_schema(op, v, domain) for v in (own[domain], versions[domain]))
        except onnx.defs.SchemaError:
            return False
        if a.since_version != b.since_version:
            return False
    return True


def _size(model: ModelProto, functions: Mapping[Key, FunctionProto], chosen: set[Key]) -> int:
    """Nodes of the main graph after inlining."""
    size: dict[Key, int] = {}
    for key in _order(functions):
        if key in chosen:
            size[key] = sum(size.get(called(n), 1) for n in functions[key].node)
    return sum(size.get(called(n), 1) for n in model.graph.node)


def _drop_unused(model: ModelProto, inlined: set[Key]) -> None:
    """Remove inlined functions that nothing calls any more."""
    functions = functions_of(model)
    needed = set(calls_within(model.graph.node)) & functions.keys()
    needed |= functions.keys() - inlined
    stack = sorted(needed)
    while stack:
        for key in set(calls_within(functions[stack.pop()].node)) & functions.keys() - needed:
            needed.add(key)
            stack.append(key)
    kept = [f for f in model.functions if called_as(f) in needed]
    if len(kept) < len(model.functions):
        copies = [f.SerializeToString() for f in kept]
        del model.functions[:]
        model.functions.extend(FunctionProto.FromString(data) for data in copies)


class _Inliner:
    def __init__(
        self, model: ModelProto, functions: Mapping[Key, FunctionProto], chosen: set[Key], everywhere: bool
    ) -> None:
        self.model, self.functions, self.chosen, self.everywhere = model, functions, chosen, everywhere
        self.used = names_within(model.graph)
        self.node_names = {n.name for n in model.graph.node}
        self.count = 0

    def run(self) -> None:
        if self.everywhere:
            for f in self.model.functions:
                if called_as(f) not in self.chosen:
                    self._inline_in(f)
        self._inline_in(self.model.graph)

    def _inline_in(self, scope: GraphProto | FunctionProto) -> None:
        """Replace the calls in a graph, body or function, and in the bodies within where those are asked for, too."""
        imports = (scope if isinstance(scope, FunctionProto) else self.model).opset_import
        nodes: list[NodeProto] = []
        stack = [scope.node[i] for i in range(len(scope.node) - 1, -1, -1)]
        infos: list[onnx.ValueInfoProto] = []
        while stack:
            node = stack.pop()
            if called(node) in self.chosen:
                expanded, types = self._expanded(node, self.functions[called(node)], imports)
                stack.extend(reversed(expanded))
                infos.extend(types)
                continue
            if self.everywhere:
                for body in subgraphs(node):
                    self._inline_in(body)
            nodes.append(node)
        copy = GraphProto()
        copy.node.extend(nodes)
        del scope.node[:]
        scope.node.MergeFrom(copy.node)
        scope.value_info.extend(infos)

    def _fresh(self, name: str, prefix: str) -> str:
        base = found = f"{prefix}/{name}"
        k = 1
        while found in self.used:
            k += 1
            found = f"{base}_{k}"
        self.used.add(found)
        return found

    def _node_name(self, name: str) -> str:
        base, k = name, 1
        while name in self.node_names:  # ONNX Runtime refuses some models with two nodes of one name
            k += 1
            name = f"{base}_{k}"
        self.node_names.add(name)
        return name

    def _expanded(
        self, call: NodeProto, f: FunctionProto, imports: Any
    ) -> tuple[list[NodeProto], list[onnx.ValueInfoProto]]:
        """The nodes of a function's body in place of a call, and types of values that ONNX cannot infer."""
        self.count += 1
        prefix = call.name or f.name
        own = {domain_of(o.domain) for o in imports}
        imports.extend(o for o in f.opset_import if domain_of(o.domain) not in own)
        scope = {name: (call.input[k] if k < len(call.input) else "") for k, name in enumerate(f.input)}
        results: dict[str, str] = {}
        copies: list[tuple[str, str]] = []
        for name, result in zip(f.output, call.output, strict=False):
            if result and (name in scope or name in results):
                copies.append((name, result))  # an input that is passed on, or one value under two names
            elif result:
                results[name] = result
        scope.update(results)
        given = {a.name: a for a in call.attribute}
        attributes = {a.name: given.get(a.name, a) for a in f.attribute_proto}
        attributes.update({name: given[name] for name in f.attribute if name in given})
        nodes = [self._node(n, scope, attributes, prefix) for n in f.node]
        nodes += [onnx.helper.make_node("Identity", [scope[a]], [b], "Identity") for a, b in copies]
        for node in nodes:
            if node.name:
                node.name = self._node_name(f"{prefix}/{node.name}")
            there = {p.key for p in node.metadata_props}
            node.metadata_props.extend(p for p in call.metadata_props if p.key not in there)
        foreign = {name for n in f.node if domain_of(n.domain) for name in n.output}
        infos = [
            _local_info(i, scope[i.name])
            for i in f.value_info
            if i.name in foreign and scope[i.name] not in call.output
        ]
        return nodes, infos

    def _node(
        self, node: NodeProto, scope: dict[str, str], attributes: Mapping[str, AttributeProto], prefix: str
    ) -> NodeProto:
        """A copy in the caller's names; `scope` learns the names that the node defines."""
        copy = NodeProto()
        copy.CopyFrom(node)
        self._bind(copy, attributes)
        for body in subgraphs(copy):
            self._body(body, dict(scope), attributes, prefix)
        copy.input[:] = [scope.get(name, name) for name in node.input]
        copy.output[:] = [self._defined(name, scope, prefix) for name in node.output]
        return copy

    def _defined(self, name: str, scope: dict[str, str], prefix: str) -> str:
        if name and name not in scope:
            scope[name] = self._fresh(name, prefix)
        return scope[name] if name else ""

    def _bind(self, node: NodeProto, attributes: Mapping[str, AttributeProto]) -> None:
        """Replace references to the function's attributes by their values; without a value the attribute goes."""
        if not any(a.ref_attr_name for a in node.attribute):
            return
        bound: list[AttributeProto] = []
        for a in node.attribute:
            if not a.ref_attr_name:
                bound.append(a)
            elif a.ref_attr_name in attributes:
                value = AttributeProto()
                value.CopyFrom(attributes[a.ref_attr_name])
                value.name = a.name
                bound.append(value)
        copy = NodeProto()
        copy.attribute.extend(bound)
        del node.attribute[:]
        node.attribute.MergeFrom(copy.attribute)

    def _body(
        self, body: GraphProto, scope: dict[str, str], attributes: Mapping[str, AttributeProto], prefix: str
    ) -> None:
        # what the body defines hides the function's values and gets names of its own
        tensors = [*body.initializer, *(s.values for s in body.sparse_initializer)]
        for definition in (*body.input, *tensors):
            scope.pop(definition.name, None)
        for definition in (*body.input, *tensors):
            definition.name = self._defined(definition.name, scope, prefix)
        for node in body.node:
            for name in node.output:
                scope.pop(name, None)
        for k, node in enumerate(body.node):
            body.node[k].CopyFrom(self._node(node, scope, attributes, prefix))
        for info in (*body.value_info, *body.output):
            info.name = scope.get(info.name, info.name)


def _local_info(info: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    """A function's value info in the main graph, where its names of extents mean nothing."""
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(info)
    copy.name = name
    if copy.type.HasField("tensor_type"):
        for d in copy.type.tensor_type.shape.dim:
            d.ClearField("dim_param")
    return copy
