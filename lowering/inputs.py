"""Inputs made up for a graph: random, but such that the graph can run on them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx

from ..egraph.dimension import evaluate
from ..egraph.graph import UNKNOWN, Graph, TensorType
from ..errors import UserError
from .onnx_tensor import OnnxSource, Symbols, numpy_dtype, stored_weight, tensor_type
from .roles import Role, input_roles

DISTRIBUTIONS = ("normal", "uniform", "wide")
"""Of floating-point inputs: standard normal; uniform in [0, 1); normal with deviation 4 and some zeros."""

VALUES = ("random", "small", "ones", "zeros")
"""How simple made-up values are: drawn from the distribution; the same with indices of at most 1; ones; zeros."""

DEFAULT_EXTENT = 2
"""Extent of a symbolic dimension that no binding is given for."""

RANKS = (2, 4, 3, 1, 0)
"""Ranks tried for an input of unknown rank whose uses say nothing."""

GUESSES = len(RANKS) + 1
"""How many guesses `random_inputs` can be asked for."""

MASKED = 1e4
"""What a made-up additive mask takes from a score (negative infinity in the distribution "wide")."""


def random_inputs(
    graph: Graph,
    seed: int,
    symbols: Mapping[str, int] | None = None,
    distribution: str = "normal",
    values: str = "random",
    guess: int = 0,
) -> dict[str, Any]:
    """One value for each input of the graph; the same seed gives the same values.

    Integer inputs that index something are in its range, those that are counts, lengths, axes or shapes are small and
    valid; other integers are 1 with a few 0 (masks), 8-bit ones take any value. Floating-point masks are 0 and very
    negative where they are added before a softmax, 0 and 1 where they are multiplied. Symbolic dimensions are taken
    from `symbols`, else they are `DEFAULT_EXTENT`. Inputs that the model has a default for get it. values: one of
    `VALUES`. guess: which guess of the shape of inputs without a rank.

    Sequences and optional values get elements of their declared type. Raises `UserError` for types that cannot be
    made up.
    """
    roles = input_roles(graph)
    found: dict[str, Any] = {}
    kinds = {str(n.attrs["name"]): n.type for n in graph.nodes if n.op == "Input"}
    source = graph.source if isinstance(graph.source, OnnxSource) else None
    declared = {i.name: i.type for i in source.skeleton.graph.input} if source is not None else {}
    binding = dict(symbols or {})
    for name in graph.input_names:
        kind = kinds[name]
        if source is not None and name in source.defaults:
            found[name] = np.array(stored_weight(source.defaults[name], name, source.store).load())
            continue
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])  # by name: other inputs do not matter
        maker = _Maker(rng, name, roles[name], binding, distribution, values)
        if isinstance(kind, TensorType) and kind.dtype != UNKNOWN:
            found[name] = maker.tensor(kind if kind.shape is not None else _guessed(graph, name, kind.dtype, guess))
        elif name in declared:
            found[name] = maker.value(declared[name])
        else:
            raise UserError(f"input {name!r} has no known type: give the model's inputs types first")
    return found


class _Maker:
    """Makes the value of one input."""

    def __init__(
        self, rng: np.random.Generator, name: str, role: Role, binding: dict[str, int], distribution: str, values: str
    ) -> None:
        self.rng, self.name, self.role, self.binding = rng, name, role, binding
        self.distribution, self.values = distribution, values

    def value(self, proto: onnx.TypeProto) -> Any:
        """A value of any declared type: sequences have two elements, optional values are there."""
        which = proto.WhichOneof("value")
        if which == "sequence_type":
            return [self.value(proto.sequence_type.elem_type) for _ in range(2)]
        if which == "optional_type":
            return self.value(proto.optional_type.elem_type)
        if which == "map_type":
            key = proto.map_type.key_type
            text = key == onnx.TensorProto.STRING
            made = self.value(proto.map_type.value_type)
            item = made.reshape(-1)[0].item() if isinstance(made, np.ndarray) and made.size else made
            return {("a" if text else 0): item, ("b" if text else 1): item}
        kind = tensor_type(proto, Symbols())
        if kind is None or kind.dtype == UNKNOWN:
            raise UserError(f"input {self.name!r} is of a type that cannot be made up; give it in --inputs")
        return self.tensor(TensorType(kind.shape if kind.shape is not None else (DEFAULT_EXTENT,), kind.dtype))

    def tensor(self, kind: TensorType) -> np.ndarray:
        assert kind.shape is not None
        binding = {**dict.fromkeys(kind.symbols, DEFAULT_EXTENT), **self.binding}
        shape = tuple(max(0, evaluate(d, binding)) for d in kind.shape)
        dtype = kind.dtype
        if dtype == "string":
            words = {"random": ("text", "a", "1"), "zeros": ("",)}.get(self.values, ("1",))
            return np.asarray(self.rng.choice(np.array(words, object), shape), object).reshape(shape)
        if dtype == "bool":
            return self._mask(shape, 0.7)
        try:
            to = numpy_dtype(dtype)
        except KeyError as error:
            raise UserError(f"input {self.name!r} is of type {dtype}, which cannot be made up") from error
        if "int" in dtype:
            return self._integers(shape, dtype).astype(to)
        if dtype.startswith("complex"):
            return np.asarray(self._floats(shape) + 1j * self._floats(shape)).astype(to)
        with np.errstate(over="ignore", invalid="ignore"):
            return self._floats(shape).astype(to)

    def _mask(self, shape: tuple[int, ...], share: float) -> np.ndarray:
        """Booleans, most of them true."""
        if self.role.truth or self.values == "ones":
            return np.ones(shape, bool)
        if self.values == "zeros":
            return np.zeros(shape, bool)
        mask = np.asarray(self.rng.random(shape) < share)
        if not mask.ndim:
            return np.asarray(True)
        mask[..., :1] = True  # a row that is masked out as a whole would be NaN in many models
        return mask

    def _integers(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        role = self.role
        if role.extents is not None and shape == (len(role.extents),):
            return np.array(self._extents())
        limits = role.limits(self.binding)
        sums = any(r.scale == np.inf for r in role.ranges)
        if limits is None or (limits == (0, 1) and (sums or role.mask)):
            if dtype in ("int8", "uint8", "int4", "uint4") and limits is None and not role.mask:
                bits = 4 if dtype.endswith("4") else 8
                low = 0 if dtype.startswith("u") else -(1 << (bits - 1))
                if self.values in ("random", "small"):
                    return np.asarray(self.rng.integers(low, low + (1 << bits), shape))
            return self._mask(shape, 0.9).astype(np.int64)
        low, high = limits
        if self.values == "random":
            return np.asarray(self.rng.integers(low, high, shape, endpoint=True))
        if self.values == "small":
            return np.asarray(self.rng.integers(low, min(high, low + 1), shape, endpoint=True))
        return np.full(shape, max(low, min(high, 1)) if self.values == "ones" else low)

    def _extents(self) -> list[int]:
        out: list[int] = []
        for d in self.role.extents or ():
            if not isinstance(d, int) and any(s not in self.binding for s in d.symbols):
                out.append(1 if -1 in out else -1)
            else:
                out.append(evaluate(d, self.binding))
        return out

    def _floats(self, shape: tuple[int, ...]) -> np.ndarray:
        role = self.role
        if self.values in ("ones", "zeros"):
            base = np.zeros(shape) if self.values == "zeros" or role.mask == "added" else np.ones(shape)
            limits = role.limits(self.binding)
            return base if limits is None else np.clip(base, *limits)
        if role.mask == "added":
            fill = -np.inf if self.distribution == "wide" else -MASKED
            return np.where(self._mask(shape, 0.85), 0.0, fill)
        if role.mask == "factor":
            return self._mask(shape, 0.85).astype(np.float64)
        limits = role.limits(self.binding)
        if limits is not None:  # floats that are cast to indices, scales of Resize
            return np.asarray(self.rng.integers(*limits, shape, endpoint=True)).astype(np.float64)
        if self.distribution == "uniform":
            made = self.rng.random(shape)
        else:
            made = self.rng.standard_normal(shape)
            if self.distribution == "wide":
                made = made * 4 * (self.rng.random(shape) < 0.9)
        return np.abs(made) + 0.1 if role.positive else np.asarray(made)


def _guessed(graph: Graph, name: str, dtype: str, guess: int) -> TensorType:
    """A shape for an input of unknown rank: what its uses with weights suggest first, then one rank after another."""
    shapes = list(dict.fromkeys(_used_shapes(graph, name)))
    ranks = [tuple(f"?{name}.{k}" for k in range(rank)) for rank in RANKS]
    every = [*shapes, *ranks]
    return TensorType(every[guess % len(every)], dtype)


def _used_shapes(graph: Graph, name: str) -> Iterator[tuple[int | str, ...]]:
    index = next(i for i, n in enumerate(graph.nodes) if n.op == "Input" and n.attrs["name"] == name)
    for node in graph.nodes:
        op = node.op.removeprefix("::")
        if index not in node.inputs:
            continue
        others = [graph.nodes[k].type for k in node.inputs if k != index]
        shapes = [t.shape for t in others if isinstance(t, TensorType) and t.concrete and t.shape is not None]
        first = node.inputs[0] == index
        free = [f"?{name}.{k}" for k in range(8)]
        for shape in shapes[:1]:
            known = [d for d in shape if isinstance(d, int)]
            if op in ("MatMul", "Gemm") and len(known) == 2:
                yield (free[0], known[0]) if first else (known[1], free[0])
            elif op == "Conv" and first and len(known) > 2:
                yield (free[0], known[1], *(max(8, 2 * d) for d in known[2:]))
            elif op in ("BatchNormalization", "InstanceNormalization") and first:
                yield (free[0], known[0], free[1], free[2])
            elif op in ("Add", "Sub", "Mul", "Div", "Where", "Max", "Min", "Pow", "PRelu") and known:
                yield tuple(known)
