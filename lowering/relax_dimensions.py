"""Symbolic extents: TVM's integer expressions as dimensions, and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..egraph.dimension import Atom, Dimension, Least, Quotient, least, symbol
from ..egraph.graph import UNKNOWN, TensorType
from .tvm_module import tvm


class Extents:
    """The symbols of one function.

    Variables that bear one name get symbols of their own. What is no sum of products, quotients by a number or minimum
    with one is a symbol, too: equal expressions are equal extents, and nothing else is known of them.
    """

    def __init__(self) -> None:
        tvm()
        self.symbols: dict[Any, str] = {}
        self.expressions: dict[str, Any] = {}
        """What each symbol stands for."""

    def dimension(self, expr: Any) -> Dimension:
        """The dimension that an integer expression is."""
        from tvm import tirx as tir

        if isinstance(expr, int):
            return expr
        if isinstance(expr, tir.IntImm):
            return int(expr.value)
        if isinstance(expr, tir.Add):
            return self.dimension(expr.a) + self.dimension(expr.b)
        if isinstance(expr, tir.Sub):
            return self.dimension(expr.a) - self.dimension(expr.b)
        if isinstance(expr, tir.Mul):
            return self.dimension(expr.a) * self.dimension(expr.b)
        if isinstance(expr, tir.FloorDiv) and isinstance(expr.b, tir.IntImm) and expr.b.value > 0:
            return self.dimension(expr.a) // int(expr.b.value)
        if isinstance(expr, tir.Min) and isinstance(expr.b, tir.IntImm):
            return least(self.dimension(expr.a), int(expr.b.value))
        return self._symbol(expr)

    def _symbol(self, expr: Any) -> Dimension:
        from tvm import tirx as tir
        from tvm_ffi import structural_equal

        if isinstance(expr, tir.Var):
            if expr not in self.symbols:
                self._name(expr, expr.name)
            return symbol(self.symbols[expr])
        for name, known in self.expressions.items():
            if not isinstance(known, tir.Var) and structural_equal(known, expr):
                return symbol(name)
        return symbol(self._name(expr, f"?{len(self.expressions)}"))

    def _name(self, expr: Any, wanted: str) -> str:
        name, k = wanted, 0
        while name in self.expressions:
            k += 1
            name = f"{wanted}_{k}"
        self.expressions[name] = expr
        if type(expr).__name__ in ("Var", "SizeVar"):
            self.symbols[expr] = name
        return name

    def expression(self, d: Dimension) -> Any:
        """The integer expression that a dimension is."""
        from tvm import tirx as tir

        if isinstance(d, int):
            return tir.IntImm("int64", d)
        total: Any = None
        for monomial, coefficient in d.terms:
            term: Any = None if abs(coefficient) == 1 and monomial else tir.IntImm("int64", abs(coefficient))
            for atom, power in monomial:
                for _ in range(power):
                    factor = self._atom(atom)
                    term = factor if term is None else factor * term
            if total is None:
                total = term if coefficient > 0 else tir.IntImm("int64", 0) - term
            else:
                total = total + term if coefficient > 0 else total - term
        return total

    def _atom(self, atom: Atom) -> Any:
        from tvm import tirx as tir

        if isinstance(atom, Quotient):
            return tir.floordiv(self.expression(atom.of), tir.IntImm("int64", atom.by))
        if isinstance(atom, Least):
            return tir.min(self.expression(atom.of), tir.IntImm("int64", atom.bound))
        return self.expressions[atom]

    def shape(self, dims: Iterable[Dimension]) -> list[Any]:
        """The extents of a shape, as TVM's operators take them."""
        return [d if isinstance(d, int) else self.expression(d) for d in dims]

    def tensor_type(self, kind: Any) -> TensorType:
        """The type of a Relax tensor; of unknown element type for anything that is none."""
        from tvm import relax

        if not isinstance(kind, relax.TensorType):
            return TensorType(None, UNKNOWN)
        dtype = UNKNOWN if kind.dtype is None else str(kind.dtype)
        if not isinstance(kind.shape, relax.ShapeExpr):
            return TensorType(None, dtype)
        return TensorType(tuple(self.dimension(d) for d in kind.shape.values), dtype)

    def relax_type(self, kind: TensorType) -> Any:
        """The Relax type of a tensor."""
        from tvm import relax

        dtype = None if kind.dtype == UNKNOWN else kind.dtype
        return relax.TensorType(None if kind.shape is None else self.shape(kind.shape), dtype)
