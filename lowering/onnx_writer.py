"""Graphs written as ONNX models, in the opset, IR version and names of the model they came from."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..egraph.graph import Graph, Node, TensorType, TupleType, Weight
from ..errors import UserError
from .onnx_bodies import names_within, rename, subgraphs
from .onnx_forms import FORMS, tensor
from .onnx_tensor import (
    OnnxSource,
    StoredTensor,
    Uniform,
    dtype_code,
    numpy_dtype,
    stored_weight,
    value_info,
)

DEFAULT_OPSET, DEFAULT_IR = 18, 8
"""Versions of a graph that did not come from an ONNX model."""

EXTERNAL_LIMIT = (1 << 31) - (1 << 26)
"""Bytes of weights beyond which they go to a data file: protobuf messages end at 2 GiB."""


def save(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Fold constants and write the graph to `path`, through a temporary file in the same folder.

    Weights go to `<path>.data` if they came from external data or exceed 2 GB.
    Raises `UserError` if the folder does not exist or cannot be written.
    """
    target = Path(path)
    if target.is_dir() or not target.parent.is_dir():
        raise UserError(f"{target} cannot be written: " + ("a folder" if target.is_dir() else "no such folder"))
    from .folding import fold_constants

    folded = fold_constants(graph)
    external = isinstance(folded.source, OnnxSource) and folded.source.external
    try:
        if external or folded.weight_bytes > EXTERNAL_LIMIT:
            data = target.with_name(target.name + ".data")
            with _Replacing(data) as stream:
                model = _Writer(folded, _Externals(stream, data.name)).model()
                # Both files are complete before either is put in place.
                with _Replacing(target) as main:
                    main.write(model.SerializeToString(deterministic=True))
        else:
            with _Replacing(target) as main:
                main.write(_Writer(folded, None).model().SerializeToString(deterministic=True))
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from error


def to_onnx(graph: Graph, fold: bool = True) -> ModelProto:
    """The graph as a model that holds its weights; constant expressions are folded unless `fold` is False."""
    from .folding import fold_constants

    return _Writer(fold_constants(graph) if fold else graph, None).model()


class _Replacing:
    """A file that appears under its name, complete, when the block ends without an exception."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Any:
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        self.temporary = Path(name)
        self.stream = os.fdopen(handle, "wb")
        return self.stream

    def __exit__(self, kind: object, *_: object) -> None:
        self.stream.close()
        if kind is None:
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(self.temporary, 0o666 & ~mask)  # mkstemp's files are private
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)


class _Externals:
    """Appends tensors to a data file."""

    def __init__(self, stream: Any, name: str) -> None:
        self.stream, self.name, self.offset = stream, name, 0

    def put(self, tensor: TensorProto, data: memoryview | bytes) -> None:
        padding = -self.offset % 4096  # so that readers can map each tensor
        self.stream.write(b"\0" * padding)
        self.offset += padding
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        size = len(data)
        for key, value in (("location", self.name), ("offset", self.offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        self.stream.write(data)
        self.offset += size


class _Writer:
    def __init__(self, graph: Graph, externals: _Externals | None) -> None:
        self.graph, self.externals = graph, externals
        self.source = graph.source if isinstance(graph.source, OnnxSource) else None
        self.out = ModelProto()
        if self.source:
            self.out.CopyFrom(self.source.skeleton)
        else:
            self.out.ir_version = DEFAULT_IR
            self.out.producer_name = "xrlflow"
            self.out.graph.name = "graph"
        imports = [o for o in self.out.opset_import if o.domain in ("", "ai.onnx")]
        if not imports:
            self.out.opset_import.add(domain="", version=DEFAULT_OPSET)
        self.opset = imports[0].version if imports else DEFAULT_OPSET
        self.nodes = self.out.graph.node
        self.live = graph.live
        self.protos = {i: self._proto(graph.nodes[i]) for i in self.live if graph.nodes[i].opaque}
        self.constants: dict[bytes, str] = {}
        self.serial = 0
        self._name_values()

    def _proto(self, node: Node) -> NodeProto:
        return NodeProto.FromString(self.graph.opaques[str(node.attrs["proto"])])

    # Names

    def _name_values(self) -> None:
        """Give every live value its name: the source's where that is free, else one made from the operator."""
        graph, nodes = self.graph, self.graph.nodes
        self.used = {*graph.input_names, *graph.output_names}
        for proto in self.protos.values():
            for body in subgraphs(proto):
                self.used.update(names_within(body))
        if self.source:
            self.used.update(self.source.defaults)
        self.names: dict[int, str] = {}
        self.copies: list[tuple[int, str]] = []
        """Outputs that need an Identity: a value that has another name already."""
        for index, name in zip(graph.outputs, graph.output_names, strict=True):
            node = nodes[index]
            if node.op == "Input":
                if node.attrs["name"] != name:
                    self.copies.append((index, name))
            elif index in self.names or name in graph.input_names or (node.op == "Weight" and node.names != (name,)):
                self.copies.append((index, name))
            else:
                self.names[index] = name
        parts: dict[tuple[int, int], int] = {}
        for i in self.live:
            node = nodes[i]
            if node.op == "Input":
                self.names[i] = str(node.attrs["name"])
            elif node.op == "Absent":
                self.names[i] = ""
            elif node.op == "Get":
                parts[node.inputs[0], node.attrs["index"]] = i
            if i not in self.names and isinstance(node.type, TensorType):
                wanted = node.names[0] if node.names else ""
                generated = f"{_short(node.op)}_{i}"
                self.names[i] = self.free(wanted, wanted or generated if node.op == "Weight" else generated)
        self.parts = parts

    def free(self, wanted: str, generated: str) -> str:
        """`wanted`, or `generated` with a number if that is taken."""
        name = wanted or generated
        if name in self.used:
            name = generated
        base, k = name, 1
        while name in self.used:
            k += 1
            name = f"{base}_{k}"
        self.used.add(name)
        return name

    # Constants

    def constant(self, value: Sequence[int] | np.ndarray, hint: str) -> str:
        """Name of an initializer with this content, made when first asked for; lists are int64."""
        array = value if isinstance(value, np.ndarray) else np.array(value, np.int64)
        key = f"{array.dtype}{array.shape}".encode() + array.tobytes()
        if key not in self.constants:
            text = "x".join(map(str, array.reshape(-1)[:8].tolist()))
            self.constants[key] = self.free(f"{hint}_{text}" if text else hint, hint)
            self._initializer(numpy_helper.from_array(array, self.constants[key]))
        return self.constants[key]

    def _initializer(self, tensor: TensorProto) -> None:
        if self.out.ir_version < 4 and tensor.name not in self.declared:
            # Up to IR version 3 initializers have to be inputs; a Constant does without.
            proto = TensorProto()
            proto.CopyFrom(tensor)
            proto.ClearField("name")
            self.emit("Constant", [], [tensor.name], value=proto)
        else:
            self.out.graph.initializer.append(tensor)

    def _weight(self, weight: Weight, name: str) -> None:
        load = weight.load
        if isinstance(load, Uniform) and self.opset >= 9:
            value = numpy_helper.from_array(load.value.reshape(1))
            self.emit("ConstantOfShape", [self.constant(load.shape, "shape")], [name], value=value)
            return
        if isinstance(load, StoredTensor) and not self.externals:
            tensor = TensorProto()
            tensor.CopyFrom(load.proto)
            tensor.name = name
            self._initializer(tensor)
            return
        array = np.asarray(load(), order="C")
        if self.externals and array.nbytes >= 1024 and array.dtype.kind in "fiubc":
            shape = tuple(weight.type.shape or ())
            tensor = TensorProto(name=name, data_type=dtype_code(weight.type.dtype), dims=[int(d) for d in shape])
            self.externals.put(tensor, array.reshape(-1).view(np.uint8).data)
        else:
            if str(array.dtype) != weight.type.dtype and array.dtype.kind in "iu":
                array = array.view(numpy_dtype(weight.type.dtype))  # bits of a type that numpy lacks
            tensor = numpy_helper.from_array(array, name)
        self._initializer(tensor)

    # The model

    def model(self) -> ModelProto:
        graph, nodes = self.graph, self.graph.nodes
        present = {self.names[i] for i in self.live if nodes[i].op == "Weight"}
        self.declared = {i.name for i in self.out.graph.input} & present
        self._interface()
        for i in self.live:
            if nodes[i].op == "Weight":
                self._weight(graph.weights[str(nodes[i].attrs["digest"])], self.names[i])
        for i in self.live:
            node = nodes[i]
            if node.op in ("Input", "Weight", "Absent", "Get"):
                continue
            operands = [self.names[k] for k in node.inputs]
            if node.opaque:
                self._opaque(node, self.protos[i], operands, self._outputs(i))
            else:
                FORMS[node.op](self, node, operands, self._outputs(i))
        for index, name in self.copies:
            self.emit("Identity", [self.names[index]], [name])
        return self.out

    def _outputs(self, i: int) -> list[str]:
        """Names of a node's outputs."""
        node = self.graph.nodes[i]
        if not isinstance(node.type, TupleType):
            return [self.names[i]]
        names = []
        for k in range(len(node.type.items)):
            part = self.parts.get((i, k))
            if part is not None:
                names.append(self.names[part])
            elif k in node.attrs.get("missing", ()):
                names.append("")
            else:
                own = node.names[k] if k < len(node.names) else ""
                names.append(self.free(own, f"{_short(node.op)}_{i}_{k}"))
        return names

    def _interface(self) -> None:
        """Inputs and outputs: the source's own value infos where it has them."""
        graph, out = self.graph, self.out.graph
        inputs = {i.name: _copied(i) for i in out.input}
        outputs = {o.name: _copied(o) for o in out.output}
        kinds = {str(n.attrs["name"]): n.type for n in graph.nodes if n.op == "Input"}
        wanted = set(graph.input_names)
        order = [n for n in inputs if n in wanted or (self.out.ir_version < 4 and n in self.declared)]
        order += [n for n in graph.input_names if n not in inputs]
        del out.input[:], out.output[:]
        for name in order:
            kind = kinds.get(name)
            out.input.append(inputs[name] if name in inputs else value_info(name, tensor(kind)))
        for index, name in zip(graph.outputs, graph.output_names, strict=True):
            out.output.append(outputs[name] if name in outputs else value_info(name, tensor(graph.nodes[index].type)))
        for name, default in (self.source.defaults if self.source else {}).items():
            if name in wanted:
                out.initializer.append(self._resident(default))
        for i in self.live:
            node = graph.nodes[i]
            if node.opaque and not node.op.startswith("::"):  # ONNX cannot infer the types of other domains
                kinds_out = node.type.items if isinstance(node.type, TupleType) else (node.type,)
                for name, kind in zip(self._outputs_if_named(i), kinds_out, strict=True):
                    if name and kind.dtype != "undefined" and name not in graph.output_names:
                        out.value_info.append(value_info(name, kind))

    def _outputs_if_named(self, i: int) -> list[str]:
        node = self.graph.nodes[i]
        if not isinstance(node.type, TupleType):
            return [self.names[i]]
        found = [self.parts.get((i, k)) for k in range(len(node.type.items))]
        return ["" if part is None else self.names[part] for part in found]

    def _resident(self, tensor: TensorProto) -> TensorProto:
        if tensor.data_location != TensorProto.EXTERNAL:
            return tensor
        folder = self.source.path.parent if self.source and self.source.path else None
        array = stored_weight(tensor, tensor.name, folder).load()
        return numpy_helper.from_array(np.asarray(array, order="C"), tensor.name)

    def emit(self, op: str, inputs: Iterable[str], outputs: Iterable[str], **attrs: Any) -> None:
        self.nodes.append(helper.make_node(op, list(inputs), list(outputs), f"{op}_{self.serial}", **attrs))
        self.serial += 1

    def _opaque(self, node: Node, proto: NodeProto, operands: list[str], outputs: list[str]) -> None:
        captures = node.attrs.get("captures", ())
        regular, captured = operands[: len(operands) - len(captures)], operands[len(operands) - len(captures) :]
        proto.input.extend(regular)
        proto.output.extend(outputs)
        proto.name = f"{proto.op_type}_{self.serial}"
        self.serial += 1
        renamed = {old: new for old, new in zip(captures, captured, strict=True) if old != new}
        if renamed:
            for body in subgraphs(proto):
                rename(body, renamed)
        self.nodes.append(proto)


def _short(op: str) -> str:
    return op.rpartition("::")[2]


def _copied(info: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(info)
    return copy
