"""A run of bindings of a Relax dataflow block, read into a graph.

A region computes tensors from tensors, without side effects. Its inputs are what it reads from outside of it; its
outputs are what is read after it. Operators that fit the core form exactly become core operators (`relax_operators`);
every other expression (`call_tir`, `call_dps_packed`, calls of other functions, shapes, …) is opaque: it is kept as it
stands, with slots for the operands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto

from ..egraph.dimension import Dimension
from ..egraph.graph import UNKNOWN, Graph, GraphBuilder, TensorType, TupleType, Type, Weight, attributes
from ..egraph.operators import IllTyped, infer
from .onnx_tensor import numpy_dtype
from .relax_dimensions import Extents
from .relax_operators import READ, Call, NotCore
from .relax_source import RelaxSource, Template, Value, Whole
from .tvm_module import tvm

IMPURE = ("print", "assert_op", "call_inplace_packed", "call_tir_inplace", "multinomial_from_uniform", "dropout")
"""In the names of operators whose calls are never merged with others."""


FILLED = ("arange", "full", "zeros", "ones", "full_like", "zeros_like", "ones_like")
"""Operators that make constants."""

LARGEST = 1 << 20
"""Elements of such a constant at most; a larger one stays what makes it."""

NUMBERS = ("float64", "float32", "float16", "int64", "int32", "int8", "uint8", "bool")
"""Element types whose arrays are read and kept as numpy has them."""


class Unreadable(ValueError):
    """A construct that regions cannot hold; the text names it."""


def read_region(bindings: Sequence[Any], read_after: Collection[Any], extents: Extents, module: Any = None) -> Graph:
    """The graph of some bindings, its `source` a `RelaxSource`. read_after: variables that are read after them. module:
    what they call functions of.

    Raises `Unreadable` for what no region can hold.
    """
    reader = _Reader(bindings, read_after, extents)
    reader.source.module = module
    return reader.graph()


class _Reader:
    def __init__(self, bindings: Sequence[Any], read_after: Collection[Any], extents: Extents) -> None:
        self.bindings, self.read_after = bindings, read_after
        self.builder = GraphBuilder()
        self.source = RelaxSource(extents)
        self.values: dict[Any, Value] = {}
        self.names: set[str] = set()
        self.outside: dict[Any, Value] = {}
        self.used: dict[Any, set[int]] = {}
        """Which parts of a tuple are read; all of them, where it is read as a whole."""
        self.inner = {b.var for b in bindings}

    def graph(self) -> Graph:
        from tvm import relax

        self._uses()
        for binding in self.bindings:
            if not isinstance(binding, relax.VarBinding):
                raise Unreadable(f"a {type(binding).__name__} of {binding.var.name}")
            self.values[binding.var] = self._value(binding.var, binding.value)
        outputs: dict[str, int] = {}

        def tell(value: Value, name: str) -> Value:
            if isinstance(value, Whole):
                value = self._parts(value)
            if isinstance(value, tuple):
                return tuple(tell(v, f"{name}.{k}") for k, v in enumerate(value))
            outputs[name] = value
            return len(outputs) - 1

        for binding in self.bindings:
            var = binding.var
            if var in self.read_after:
                self.source.outputs.append((var, tell(self.values[var], self._fresh(f"{var.name}:out"))))
        return self.builder.build(outputs, self.source)

    def _uses(self) -> None:
        """Note which parts of tuple-valued variables are read, by what is read itself: importers take all parts."""
        from tvm import relax

        for var in self.read_after:
            self.used.setdefault(var, set()).update(range(64))
        for binding in reversed(self.bindings):
            value = getattr(binding, "value", None)
            if isinstance(value, relax.TupleGetItem) and isinstance(value.tuple_value, relax.Var):
                if binding.var in self.used:
                    self.used.setdefault(value.tuple_value, set()).add(int(value.index))
            else:
                for var in variables(value):
                    self.used.setdefault(var, set()).update(range(64))

    def _parts(self, whole: Whole) -> tuple[Value, ...]:
        return tuple(self.builder.get(whole.node, k) for k in range(whole.parts))

    def _fresh(self, wanted: str) -> str:
        name, k = wanted, 0
        while name in self.names:
            k += 1
            name = f"{wanted}_{k}"
        self.names.add(name)
        return name

    def _value(self, var: Any, expr: Any) -> Value:
        from tvm import relax

        if isinstance(expr, relax.Var):
            return self._read(expr)
        if isinstance(expr, relax.Tuple):
            return tuple(self._value(var, part) for part in expr.fields)
        if isinstance(expr, relax.TupleGetItem):
            whole, k = self._value(var, expr.tuple_value), int(expr.index)
            if isinstance(whole, Whole):
                return self.builder.get(whole.node, k, (self._fresh(var.name),))
            if isinstance(whole, tuple):
                return whole[k]
        elif isinstance(expr, _constant()):
            return self._constant(expr)
        elif isinstance(expr, (relax.If, relax.Function, relax.SeqExpr)):
            raise Unreadable(f"{type(expr).__name__} in {var.name}")
        elif isinstance(expr, relax.Call):
            name = str(getattr(expr.op, "name", ""))
            reader = READ.get(name.removeprefix("relax."))
            if name == "relax.rsqrt":
                return self._rsqrt(var, expr)
            if name == "relax.stack":
                return self._stack(var, expr)
            if name == "relax.nn.dropout" and self.used.get(var, set()) <= {0}:
                return self._value(var, expr.args[0]), -1  # what TVM makes of it, too; only its mask would be news
            if name.removeprefix("relax.") in FILLED and (known := self._filled(var, expr)) is not None:
                return known
            if reader is not None:
                try:
                    return self._core(var, expr, reader)
                except (NotCore, IllTyped, KeyError, TypeError, ValueError, AttributeError):
                    pass  # whatever does not fit exactly stays opaque
        return self._opaque(var, expr)

    def _read(self, var: Any) -> Value:
        """What a variable holds; those from outside become inputs, tuples of them part by part."""
        if var in self.values:
            return self.values[var]
        if var not in self.outside:
            self.outside[var] = self._leaf(var, var, var.name)
        return self.outside[var]

    def _leaf(self, expr: Any, var: Any, name: str) -> Value:
        from tvm import relax

        kind = var.ty if expr is var else expr.ty
        if isinstance(kind, relax.TupleType):
            parts = [relax.TupleGetItem(expr, k) for k in range(len(kind.fields))]
            return tuple(self._leaf(part, var, f"{name}.{k}") for k, part in enumerate(parts))
        name = self._fresh(name)
        self.source.leaves[name] = expr
        return self.builder.input(name, self.source.extents.tensor_type(kind))

    def _constant(self, expr: Any) -> int:
        from tvm import relax

        if not isinstance(expr.ty, relax.TensorType):
            raise Unreadable("a constant that is no tensor")
        weight = Weight.of(expr.value.numpy(), dtype=str(expr.ty.dtype))
        self.source.constants.setdefault(weight.digest, expr)
        return self.builder.weight(weight)

    def _filled(self, var: Any, expr: Any) -> int | None:
        """A constant that is written as what makes it: one value everywhere, or numbers in a row."""
        from tvm import relax

        kind, name = self.source.extents.tensor_type(var.ty), str(expr.op.name).removeprefix("relax.")
        if not kind.concrete or kind.dtype not in NUMBERS or kind.elements > LARGEST:
            return None
        shape, dtype = [int(d) for d in kind.shape or () if isinstance(d, int)], numpy_dtype(kind.dtype)
        if name == "arange":
            bounds = [b for a in expr.args if isinstance(b := getattr(a, "value", None), int)]
            if len(bounds) != 3 or "int" not in kind.dtype:
                return None
            array, made = np.arange(bounds[0], bounds[1], bounds[2], dtype=dtype), expr
        else:
            plain = {"zeros": 0, "ones": 1}.get(name.removesuffix("_like"))
            fill = expr.args[1] if plain is None else relax.const(plain, kind.dtype)
            if not isinstance(fill, _constant()):
                return None
            array = np.full(shape, fill.value.numpy().reshape(-1)[0], dtype)
            made = relax.op.full(shape, fill, kind.dtype) if name.endswith("_like") else expr
        if list(array.shape) != shape:
            return None
        weight = Weight.of(array, self._fresh(var.name), kind.dtype)
        self.source.constants.setdefault(weight.digest, made)
        return self.builder.weight(weight)

    def _slot(self, expr: Any) -> bool:
        """Whether an argument is an operand: a tensor, or something that the region computes."""
        from tvm import relax

        if isinstance(expr, _constant()):
            return isinstance(expr.ty, relax.TensorType)
        if not isinstance(expr, relax.Var):
            return False
        return expr in self.inner or _tensors(expr.ty)

    def _template(self, expr: Any) -> tuple[list[int], Template]:
        """The nodes in the slots of an expression, and what fills them."""
        from tvm import relax

        found: list[int] = []

        def of(value: Value) -> Template:
            if isinstance(value, Whole):
                value = self._parts(value)
            if isinstance(value, tuple):
                parts = [of(v) for v in value]
                return lambda xs: relax.Tuple([part(xs) for part in parts])
            k = len(found)
            found.append(value)
            return lambda xs: xs[k]

        def walk(e: Any) -> Template:
            if self._slot(e):
                return of(self._constant(e) if isinstance(e, _constant()) else self._read(e))
            if isinstance(e, relax.Tuple):
                parts = [walk(f) for f in e.fields]
                return lambda xs: relax.Tuple([part(xs) for part in parts])
            if isinstance(e, relax.Call):
                args = [walk(a) for a in e.args]
                return lambda xs: relax.Call(e.op, [a(xs) for a in args], e.attrs, e.ty_args, e.span)
            if isinstance(e, relax.TupleGetItem):
                whole = walk(e.tuple_value)
                return lambda xs: relax.TupleGetItem(whole(xs), e.index)
            if isinstance(e, (relax.If, relax.Function, relax.SeqExpr)):
                raise Unreadable(type(e).__name__)
            return lambda xs: e

        return found, walk(expr)

    def _core(self, var: Any, expr: Any, reader: Callable[[Call], Any]) -> Value:
        from tvm import relax

        nodes, fill = self._template(expr)
        first = expr.args[0]
        parts = list(first.fields) if isinstance(first, relax.Tuple) else list(expr.args)
        slots = [k for k, a in enumerate(parts) if self._slot(a)]
        if len(slots) != len(nodes):
            raise NotCore("an operand is a tuple")
        types: list[TensorType | None] = [None] * len(parts)
        for k, i in zip(slots, nodes, strict=True):
            kind = self.builder.nodes[i].type
            types[k] = kind if isinstance(kind, TensorType) else None
        result = self.source.extents.tensor_type(var.ty)
        used = frozenset(self.used.get(var, ()))
        core = reader(Call(parts, attributes_of(expr), types, self.source.extents, result, used))
        if core.operands is not None and [slots.index(k) for k in core.operands] != list(range(len(nodes))):
            raise NotCore("an operand that the core operator has not")
        attrs = attributes(**core.attrs)
        kinds = [self.builder.nodes[i].type for i in nodes]
        kind = infer(core.op, attrs, kinds)
        if core.result is not None:
            fill = _part(fill, core.result)
        self._agree(var.ty, kind, core.result)
        names = (self._fresh(var.name),)
        self.source.spell(core.op, attrs, kinds, names[0], fill)
        index = self.builder.add(core.op, nodes, attrs, kind, names)
        if isinstance(kind, TupleType):
            return Whole(index, len(kind.items))
        if core.result is not None:
            return tuple(index if k == core.result else -1 for k in range(len(var.ty.fields)))
        return index

    def _agree(self, said: Any, kind: Type, part: int | None) -> None:
        """Refuse what Relax gives another type than the core operator has."""
        known = said.fields if isinstance(kind, TupleType) else [said if part is None else said.fields[part]]
        for a, b in zip(known, kind.items if isinstance(kind, TupleType) else [kind], strict=True):
            found = self.source.extents.tensor_type(a)
            if found.dtype not in (b.dtype, UNKNOWN) or (found.shape is not None and found.shape != b.shape):
                raise NotCore(f"{b}, but Relax says {found}")

    def _rsqrt(self, var: Any, expr: Any) -> Value:
        """1/√x is the reciprocal of a root; the writer makes one call of both again."""
        nodes, _ = self._template(expr)
        kind = self.builder.nodes[nodes[0]].type if len(nodes) == 1 and self._slot(expr.args[0]) else None
        if not isinstance(kind, TensorType) or kind.shape is None:
            return self._opaque(var, expr)
        name = self._fresh(var.name)
        root = self.builder.add("Sqrt", nodes, (), kind, (self._fresh(f"{name}:root"),))
        return self.builder.add("Reciprocal", (root,), (), kind, (name,))

    def _stack(self, var: Any, expr: Any) -> Value:
        """Tensors along a new axis are concatenated along it; the writer makes one call of it again."""
        from tvm import relax

        kind, fields = self.source.extents.tensor_type(var.ty), expr.args[0]
        if not isinstance(fields, relax.Tuple) or not all(map(self._slot, fields.fields)) or not kind.shape:
            return self._opaque(var, expr)
        nodes, _ = self._template(expr)
        if len({self.builder.nodes[i].type for i in nodes}) != 1:
            return self._opaque(var, expr)
        told = expr.attrs.axis
        axis = (0 if told is None else int(told)) % len(kind.shape)
        shape = (*kind.shape[:axis], 1, *kind.shape[axis + 1 :])
        name = self._fresh(var.name)
        try:
            parts = [
                self.builder.op("Reshape", i, names=(self._fresh(f"{name}:part{k}"),), shape=shape)
                for k, i in enumerate(nodes)
            ]
            found = self.builder.op("Concat", *parts, names=(name,), axis=axis)
            self._agree(var.ty, self.builder.nodes[found].type, None)
        except (IllTyped, NotCore):
            return self._opaque(var, expr)
        self.source.stacks[self.builder.nodes[found].names[0]] = None if told is None else int(told)
        return found

    def _opaque(self, var: Any, expr: Any) -> Value:
        from tvm import relax

        nodes, fill = self._template(expr)
        label = str(getattr(getattr(expr, "op", None), "name", None) or _label(expr))
        kind = var.ty if untyped(expr) else expr.ty
        digest, symbols = self._digest(fill, nodes)
        extra: dict[str, Any] = {"extents": symbols} if symbols else {}
        if any(part in label for part in IMPURE):
            extra["unique"] = len(self.builder.nodes)
        extents = _extents(expr)
        if extents is not None:
            weight = Weight.of(np.array(extents, np.int64))
            self.builder.weight(weight)
            extra["known"] = weight.digest
        self.source.opaques[digest] = fill
        # everyone takes this for an operator that nothing is known of
        self.builder.opaques.setdefault(digest, NodeProto(op_type=label, name=digest).SerializeToString())
        items: tuple[TensorType, ...] = (self.source.extents.tensor_type(kind),)
        if isinstance(kind, relax.TupleType) and not any(isinstance(f, relax.TupleType) for f in kind.fields):
            items = tuple(self.source.extents.tensor_type(f) for f in kind.fields)
            if not items:
                raise Unreadable(f"the empty tuple of {label}")
            attrs = attributes(proto=digest, outputs=len(items), captures=(), **extra)
            index = self.builder.add(f"::{label}", nodes, attrs, TupleType(items), (self._fresh(var.name),))
            return Whole(index, len(items))
        if isinstance(kind, relax.TupleType):
            raise Unreadable(f"the nested tuple of {label}")
        attrs = attributes(proto=digest, outputs=1, captures=(), **extra)
        return self.builder.add(f"::{label}", nodes, attrs, items[0], (self._fresh(var.name),))

    def _digest(self, fill: Template, nodes: Sequence[int]) -> tuple[str, tuple[Dimension, ...]]:
        """What tells an opaque expression from others: its text, with the slots numbered, their types, and what the
        functions that it calls are, since kernels are remembered by this from one module to the next. And the symbols
        in it, which are numbers where it is timed."""
        from tvm import relax

        slots = [relax.Var(f"slot{k}", relax.ObjectType()) for k in range(len(nodes))]
        filled = fill(slots)
        known = self.source.extents.symbols
        # TVM gives them in the order of their addresses
        free = sorted(relax.analysis.free_symbolic_vars(filled), key=lambda v: (known.get(v, ""), v.name))
        symbols = [known.get(v, v.name) for v in free]
        kinds = [str(self.builder.nodes[i].type) for i in nodes]
        text = f"2|{filled.script(show_meta=True)}|{symbols}|{kinds}|{self._called(filled)}"
        digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        return digest, tuple(self.source.extents.dimension(v) for v in free if v in known)

    def _called(self, expr: Any) -> list[tuple[str, int]]:
        """The functions that an expression calls, and those that these call, with hashes of what they are."""
        import tvm_ffi

        module, found, todo = self.source.module, dict[str, int](), functions(expr)
        while todo:
            var = todo.pop()
            if module is None or var.name_hint in found or var not in module.functions:
                continue
            found[var.name_hint] = int(tvm_ffi.structural_hash(module[var], map_free_vars=True))
            todo += functions(module[var])
        return sorted(found.items())


def _part(fill: Template, k: int) -> Template:
    from tvm import relax

    return lambda xs: relax.TupleGetItem(fill(xs), k)


def _extents(expr: Any) -> list[int] | None:
    """What a shape as a tensor holds, if that is known; importers ask for extents that they could tell."""
    from tvm import relax, tirx

    if str(getattr(getattr(expr, "op", None), "name", "")) != "relax.shape_to_tensor":
        return None
    kind = expr.args[0].ty
    values = kind.values if isinstance(kind, relax.ShapeType) else None
    if values is None or not all(isinstance(v, tirx.IntImm) for v in values):
        return None
    return [int(v) for v in values]


def _label(expr: Any) -> str:
    op = getattr(expr, "op", None)
    return str(getattr(op, "name_hint", None) or type(expr).__name__)


def _constant() -> Any:
    """The class of constants."""
    from tvm.ir import GenericConst

    return GenericConst


def _tensors(kind: Any) -> bool:
    """Whether a type is a tensor, or a tuple of tensors."""
    from tvm import relax

    if isinstance(kind, relax.TupleType):
        return all(_tensors(f) for f in kind.fields)
    return isinstance(kind, relax.TensorType)


def attributes_of(call: Any) -> Mapping[str, Any]:
    """The attributes of a call as a dictionary."""
    attrs = call.attrs
    if attrs is None:
        return {}
    return {f.name: getattr(attrs, f.name) for f in type(attrs).__tvm_ffi_type_info__.fields}


def variables(expr: Any) -> set[Any]:
    """The variables that an expression reads, extents left out."""
    from tvm import relax
    from tvm.ir import PrimType

    found: set[Any] = set()

    def visit(e: Any) -> None:
        if isinstance(e, relax.Var) and not isinstance(e.ty, PrimType):
            found.add(e)

    if expr is not None:
        relax.analysis.post_order_visit(expr, visit)
    return found


def functions(expr: Any) -> list[Any]:
    """The functions of a module that an expression, or one of its functions, calls; tensor programs call none."""
    from tvm import relax, tirx

    found: list[Any] = []

    def visit(e: Any) -> None:
        if isinstance(e, tvm().ir.GlobalVar):
            found.append(e)

    if not isinstance(expr, tirx.PrimFunc):
        relax.analysis.post_order_visit(expr, visit)
    return found


def untyped(expr: Any) -> bool:
    """Whether TVM has not yet inferred the type of an expression."""
    return type(expr.ty).__name__ == "Type"
