"""Core operators over a prime field: an exact test of identities, without rounding and without tolerances.

Numbers are residues modulo a prime near 2³¹. Sums, products and quotients are those of the field; float constants are
the dyadic rationals that they are; Exp, Erf, Sqrt, … are *uninterpreted*: random functions of their operand, the same
wherever they are applied. Max, Relu, comparisons and all else that orders numbers use one random total order of the
residues. So two sides that agree do so by algebra alone, for every choice of these functions, and by nothing that
only holds of real numbers, such as exp(a - b) = exp(a)/exp(b) or relu(2x) = 2·relu(x): those are for float64.

How far agreement on random residues goes is the Schwartz-Zippel lemma: if an element differs, its difference is a
quotient of polynomials whose numerator, of degree D, vanishes on at most a share D/p of the inputs. A function applied
to two operands gives unrelated numbers unless they coincide, which for operands that differ is just as rare.
`PrimeField.bound` reckons with the degrees that were met, which are carried along. It speaks of the shapes, attributes
and constants of the instance, and takes the hash that stands for a random function to be one. Where numbers are
ordered, there is no such bound: there it is the number of instances that counts.

Mirage (Wu et al., 2024) tests its candidates over finite fields in this way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import isfinite, isnan, prod
from typing import Any, TypeAlias

import numpy as np
import torch

from ..egraph.fused import FUSED
from ..egraph.graph import TensorType
from .arithmetic import REALS
from .evaluation import NotEvaluable, Tensor, evaluate_node
from .fused_evaluation import Speller
from .semantics import padded, pooling

PRIME = 2_147_483_629
"""The second largest prime below 2³¹. Of the largest, 2³¹ - 1, the powers of 2 repeat after 31."""

INFINITY = 1_234_567_891
"""Stands for infinity: some number of which nothing else is known. What infinities do, float64 must show."""

MOVES = ("Concat", "Split", "Slice", "Transpose", "Reshape", "Expand", "Gather", "Where")
"""Operators that the reference evaluator moves residues with, as it does other numbers."""


class NotInField(NotEvaluable):
    """There is no such number in the field, or no meaning for the operator; the message says which."""


@dataclass(frozen=True, eq=False)
class Residues:
    """A tensor over the field: residues as int64, and bounds on the degrees of the quotients they are values of."""

    values: Tensor
    numerator: int = 0
    denominator: int = 0


Value: TypeAlias = Residues | Tensor | tuple[Any, ...]
"""Residues for floating-point numbers; integers and booleans are tensors of their own."""


class PrimeField:
    """Arithmetic modulo `PRIME` with random functions that `seed` chooses."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.coincidences = 0
        """Bound, times the prime, on the chance that operands of one function coincide though they differ."""
        self.applied: dict[str, tuple[int, int, int]] = {}

    # Leaves

    def random(self, shape: Sequence[int], rng: np.random.Generator) -> Residues:
        """Independent uniform residues: variables, of degree 1."""
        return Residues(torch.from_numpy(np.asarray(rng.integers(0, PRIME, tuple(shape)))), 1)

    def constant(self, array: np.ndarray) -> Residues:
        """These floating-point numbers, each m·2ᵉ. Raises `NotInField` for NaN."""
        array = np.asarray(array, dtype=np.float64)
        return Residues(torch.tensor([_residue(float(v)) for v in array.flat], dtype=torch.int64).reshape(array.shape))

    # Arithmetic

    def add(self, x: Residues, y: Residues) -> Residues:
        n = max(x.numerator + y.denominator, y.numerator + x.denominator)
        return Residues((x.values + y.values) % PRIME, n, x.denominator + y.denominator)

    def multiply(self, x: Residues, y: Residues) -> Residues:
        return Residues(
            x.values * y.values % PRIME, x.numerator + y.numerator, x.denominator + y.denominator
        )  # both below 2³¹, so the product is below 2⁶²

    def negate(self, x: Residues) -> Residues:
        return Residues(-x.values % PRIME, x.numerator, x.denominator)

    def invert(self, x: Residues) -> Residues:
        """1/x by Fermat's little theorem. Raises `NotInField` where x is 0."""
        if bool((x.values == 0).any()):
            raise NotInField("division by 0")
        return Residues(_power(x.values, PRIME - 2), x.denominator, x.numerator)

    def total(self, x: Residues, axes: Sequence[int], keep: bool = True) -> Residues:
        """The sum over some axes."""
        terms = prod(x.values.shape[a] for a in axes)
        summed = x.values.sum(tuple(axes), keepdim=keep) % PRIME if axes else x.values
        return Residues(summed, x.numerator + max(terms - 1, 0) * x.denominator, terms * x.denominator)

    def mean(self, x: Residues, axes: Sequence[int], keep: bool = True) -> Residues:
        count = self.constant(np.array(float(prod(x.values.shape[a] for a in axes))))
        return self.multiply(self.total(x, axes, keep), self.invert(count))

    def apply(self, name: str, *xs: Residues) -> Residues:
        """An uninterpreted function of the operands."""
        for x in xs:
            self._met(name, x)
        out = np.uint64(int.from_bytes(hashlib.blake2b(f"{self.seed} {name}".encode(), digest_size=8).digest(), "big"))
        with np.errstate(over="ignore"):
            for x in xs:
                out = _mixed(out + x.values.numpy().astype(np.uint64))
        return Residues(torch.from_numpy(np.asarray(out % np.uint64(PRIME), dtype=np.int64)), 1)

    def greater(self, x: Residues, y: Residues) -> Tensor:
        """x > y in the field's random order; distinct residues are told apart but for a chance of 2⁻³¹ a pair."""
        return self.apply("order", x).values > self.apply("order", y).values

    def largest(self, x: Residues, y: Residues, sign: int = 1) -> Residues:
        """The greater of both, or the lesser where `sign` is -1."""
        a, b = torch.broadcast_tensors(x.values, y.values)
        first = self.greater(x, y) if sign > 0 else self.greater(y, x)
        return Residues(torch.where(first, a, b), max(x.numerator, y.numerator), max(x.denominator, y.denominator))

    def _met(self, name: str, x: Residues) -> None:
        count, n, d = self.applied.get(name, (0, 0, 0))
        new, n, d = x.values.numel(), max(n, x.numerator), max(d, x.denominator)
        self.applied[name] = (count + new, n, d)
        self.coincidences += (new * count + new * new // 2) * (n + d)

    def bound(self, x: Residues, y: Residues) -> float:
        """An upper bound on the chance that an element at which both differ as expressions is the same residue.

        1, so none, where numbers were ordered: of two outcomes of a comparison one may show the difference.
        """
        if "order" in self.applied:
            return 1.0
        degree = max(x.numerator + y.denominator, y.numerator + x.denominator)
        return min(1.0, (degree + self.coincidences) / PRIME)

    # Operators

    def node(self, op: str, attrs: Mapping[str, Any], xs: Sequence[Value]) -> Value:
        """The result of one core operator. Raises `NotInField` where it has none over the field."""
        if not any(isinstance(x, Residues) for x in xs):
            if op == "Cast" and "float" in attrs["to"]:
                return self._numbers(xs[0])
            return evaluate_node(op, attrs, list(xs))  # type: ignore[arg-type]
        if op in FUSED:
            return Speller(self.node, self.constant, lambda x: x.values.shape)(op, attrs, xs)
        if op in MOVES or op == "Pad":
            attrs = {**attrs, "value": _residue(attrs["value"])} if op == "Pad" else attrs
            return self._moved(op, attrs, xs)
        if op == "IsNaN":
            assert isinstance(xs[0], Residues)
            return torch.zeros_like(xs[0].values, dtype=torch.bool)
        rule = _OPERATORS.get(op)
        if not all(isinstance(x, Residues) for x in xs) or rule is None:
            raise NotInField(f"{op} over the field")
        return rule(self, dict(attrs), *xs)

    def _numbers(self, x: Value) -> Residues:
        assert isinstance(x, Tensor)
        return Residues(x.to(torch.int64) % PRIME)

    def _moved(self, op: str, attrs: Mapping[str, Any], xs: Sequence[Value]) -> Value:
        residues = [x for x in xs if isinstance(x, Residues)]
        n, d = max(x.numerator for x in residues), max(x.denominator for x in residues)
        out = evaluate_node(op, attrs, [x.values if isinstance(x, Residues) else x for x in xs])  # type: ignore[misc]
        return tuple(Residues(v, n, d) for v in out) if isinstance(out, tuple) else Residues(out, n, d)

    # As an arithmetic

    def leaf(self, kind: TensorType, array: np.ndarray, given: bool, rng: np.random.Generator) -> Value:
        if "float" not in kind.dtype:
            return REALS.leaf(kind, array, given, rng)
        return self.constant(array) if given else self.random(np.shape(array), rng)

    def stored(self, value: Value) -> Value:
        return value

    def difference(self, a: Value, b: Value, floor: float = 0.0) -> float:
        """0 where all elements are the same, else infinite."""
        if isinstance(a, tuple) and isinstance(b, tuple):
            return 0.0 if len(a) == len(b) and not any(map(self.difference, a, b)) else float("inf")
        x, y = (v.values if isinstance(v, Residues) else v for v in (a, b))
        same = isinstance(x, Tensor) and isinstance(y, Tensor) and torch.equal(x, y)
        return 0.0 if same and isinstance(a, Residues) == isinstance(b, Residues) else float("inf")


def _residue(number: float) -> int:
    if not isfinite(number):
        if isnan(number):
            raise NotInField("NaN is no residue")
        return INFINITY if number > 0 else PRIME - INFINITY
    numerator, denominator = float(number).as_integer_ratio()
    return numerator * pow(denominator, -1, PRIME) % PRIME


def _power(x: Tensor, exponent: int) -> Tensor:
    out = torch.ones_like(x)
    while exponent:
        if exponent & 1:
            out = out * x % PRIME
        x, exponent = x * x % PRIME, exponent >> 1
    return out


def _mixed(z: Any) -> Any:
    """The finaliser of splitmix64, a permutation of 64-bit numbers."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


_Operator = Callable[..., Value]


def _function(name: str) -> _Operator:
    """An uninterpreted function, one for each set of attributes."""
    return lambda f, a, x: f.apply(" ".join([name, *(f"{k}={a[k]}" for k in sorted(a))]), x)


def _pow(f: PrimeField, a: dict[str, Any], x: Residues, y: Residues) -> Residues:
    exponents = sorted(set(y.values.reshape(-1).tolist()))
    if len(exponents) == 1 and not y.numerator:
        if exponents[0] <= 8:
            out, shape = f.constant(np.ones(())), torch.broadcast_shapes(x.values.shape, y.values.shape)
            for _ in range(exponents[0]):
                out = f.multiply(out, x)
            return Residues(out.values.expand(shape), out.numerator, out.denominator)
        if exponents[0] == PRIME - 1:
            out = f.invert(x)
            return Residues(
                out.values.expand(torch.broadcast_shapes(x.values.shape, y.values.shape)),
                out.numerator,
                out.denominator,
            )
        if exponents[0] in (_residue(0.5), _residue(-0.5)):
            base = torch.broadcast_tensors(x.values, y.values)[0]
            root = f.apply("Sqrt", Residues(base, x.numerator, x.denominator))
            return root if exponents[0] == _residue(0.5) else f.invert(root)
    return f.apply("Pow", x, y)


def _matmul(f: PrimeField, a: dict[str, Any], x: Residues, y: Residues) -> Residues:
    left = x.values[None] if x.values.dim() == 1 else x.values
    right = y.values[:, None] if y.values.dim() == 1 else y.values
    products = f.multiply(Residues(left[..., :, :, None], x.numerator, x.denominator),
                          Residues(right[..., None, :, :], y.numerator, y.denominator))  # fmt: skip
    out = f.total(products, (products.values.dim() - 2,), keep=False)
    values = out.values
    values = values.squeeze(-1) if y.values.dim() == 1 else values
    values = values.squeeze(-1 if y.values.dim() == 1 else -2) if x.values.dim() == 1 else values
    return Residues(values, out.numerator, out.denominator)


def _gemm(f: PrimeField, a: dict[str, Any], x: Residues, y: Residues, z: Residues | None = None) -> Residues:
    left = Residues(x.values.t() if a["transA"] else x.values, x.numerator, x.denominator)
    right = Residues(y.values.t() if a["transB"] else y.values, y.numerator, y.denominator)
    out = f.multiply(_matmul(f, a, left, right), f.constant(np.array(a["alpha"])))
    return out if z is None else f.add(out, f.multiply(z, f.constant(np.array(a["beta"]))))


def _windows(x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
             extents: Sequence[int]) -> Iterator[tuple[tuple[int, ...], Tensor]]:  # fmt: skip
    """For each position in the window, the elements of (padded) x under it, of shape (n, c, *extents)."""
    for position in product(*map(range, kernel)):
        cut = [slice(p * d, p * d + (e - 1) * s + 1, s)
               for p, d, s, e in zip(position, dilations, strides, extents, strict=True)]  # fmt: skip
        yield position, x[(slice(None), slice(None), *cut)]


def _conv(f: PrimeField, a: dict[str, Any], x: Residues, w: Residues, b: Residues | None = None) -> Residues:
    n, kernel, group = x.values.dim() - 2, w.values.shape[2:], a["group"]
    image = padded(x.values, a["pads"][:n], a["pads"][n:], 0)
    extents = [(image.shape[2 + i] - a["dilations"][i] * (kernel[i] - 1) - 1) // a["strides"][i] + 1 for i in range(n)]
    outputs, inputs = w.values.shape[:2]
    out = torch.zeros((x.values.shape[0], outputs, *extents), dtype=torch.int64)
    for position, under in _windows(image, kernel, a["strides"], a["dilations"], extents):
        at: tuple[Any, ...] = (slice(None), slice(None), *position)
        factor = w.values[at].reshape(1, outputs, inputs, *[1] * n)
        grouped = under.reshape(under.shape[0], group, 1, inputs, *extents).expand(
            -1, -1, outputs // group, *[-1] * (n + 1)
        )
        out += (grouped.reshape(under.shape[0], outputs, inputs, *extents) * factor % PRIME).sum(2)
    terms, d = max(inputs * prod(kernel), 1), x.denominator + w.denominator
    result = Residues(out % PRIME, x.numerator + w.numerator + (terms - 1) * d, terms * d)
    return result if b is None else f.add(result, _column(b, n))


def _column(p: Residues, n: int) -> Residues:
    """A value for each channel, against (batch, channels, n spatial axes)."""
    return Residues(p.values.reshape(1, -1, *[1] * n), p.numerator, p.denominator)


def _batch_normalization(f: PrimeField, a: dict[str, Any], x: Residues, *ps: Residues) -> Residues:
    scale, bias, mean, variance = (_column(p, x.values.dim() - 2) for p in ps)
    deviation = f.apply("Sqrt", f.add(variance, f.constant(np.array(a["epsilon"]))))
    centred = f.add(x, f.negate(mean))
    return f.add(f.multiply(f.multiply(centred, f.invert(deviation)), scale), bias)


def _max_pool(f: PrimeField, a: dict[str, Any], x: Residues) -> Residues:
    extents, begins, ends = pooling(a, x.values)
    order = padded(f.apply("order", x).values, begins, ends, -1)
    image = padded(x.values, begins, ends, 0)
    best: tuple[Tensor, Tensor] | None = None
    places = zip(_windows(order, a["kernel"], a["strides"], a["dilations"], extents),
                 _windows(image, a["kernel"], a["strides"], a["dilations"], extents), strict=True)  # fmt: skip
    for (_, ranks), (_, under) in places:
        if best is None:
            best = ranks, under
        else:
            best = torch.maximum(best[0], ranks), torch.where(ranks > best[0], under, best[1])
    assert best is not None
    return Residues(best[1], x.numerator, x.denominator)


def _average_pool(f: PrimeField, a: dict[str, Any], x: Residues) -> Residues:
    n = len(a["kernel"])
    extents, begins, ends = pooling(a, x.values)
    given = a["pads"][n:]
    ones = torch.ones((1, 1, *x.values.shape[2:]), dtype=torch.int64)
    if a["include_pad"]:
        ones = padded(ones, begins, given, 1)
        ones = padded(ones, [0] * n, [e - p for e, p in zip(ends, given, strict=True)], 0)
    else:
        ones = padded(ones, begins, ends, 0)
    image = padded(x.values, begins, ends, 0)
    total, count = (
        torch.stack([u for _, u in _windows(t, a["kernel"], a["strides"], a["dilations"], extents)]).sum(0)
        for t in (image, ones)
    )
    terms = prod(a["kernel"])
    summed = Residues(total % PRIME, x.numerator + (terms - 1) * x.denominator, terms * x.denominator)
    return f.multiply(summed, f.invert(Residues(count)))


def _softmax(f: PrimeField, a: dict[str, Any], x: Residues) -> Residues:
    powers = f.apply("Exp", x)
    return f.multiply(powers, f.invert(f.total(powers, (a["axis"],))))


def _layer_normalization(
    f: PrimeField, a: dict[str, Any], x: Residues, scale: Residues, bias: Residues | None = None
) -> Residues:
    axes = tuple(range(a["axis"], x.values.dim()))
    out = _rms_normalization(f, a, f.add(x, f.negate(f.mean(x, axes))), scale)
    return out if bias is None else f.add(out, bias)


def _rms_normalization(f: PrimeField, a: dict[str, Any], x: Residues, scale: Residues) -> Residues:
    axes = tuple(range(a["axis"], x.values.dim()))
    mean = f.mean(f.multiply(x, x), axes)
    deviation = f.apply("Sqrt", f.add(mean, f.constant(np.array(a["epsilon"]))))
    return f.multiply(f.multiply(x, f.invert(deviation)), scale)


def _extreme(sign: int) -> _Operator:
    def reduce(f: PrimeField, a: dict[str, Any], x: Residues) -> Residues:
        axes = [i % x.values.dim() for i in a["axes"]]
        rest = [i for i in range(x.values.dim()) if i not in axes]
        flat = x.values.permute(*rest, *axes).reshape(*[x.values.shape[i] for i in rest], -1)
        ranks = f.apply("order", Residues(flat, x.numerator, x.denominator)).values * sign
        found = flat.gather(-1, ranks.argmax(-1, keepdim=True)).squeeze(-1)
        shape = [1 if i in axes else d for i, d in enumerate(x.values.shape)] if a["keepdims"] else found.shape
        return Residues(found.reshape(shape), x.numerator, x.denominator)

    return reduce


def _clip(f: PrimeField, a: dict[str, Any], x: Residues) -> Residues:
    x = f.largest(x, f.constant(np.array(a["min"]))) if isfinite(a["min"]) else x
    return f.largest(x, f.constant(np.array(a["max"])), -1) if isfinite(a["max"]) else x


def _sigmoid(f: PrimeField, x: Residues) -> Residues:
    return f.invert(f.add(f.apply("Exp", f.negate(x)), f.constant(np.ones(()))))


def _hard_sigmoid(f: PrimeField, a: dict[str, Any], x: Residues) -> Residues:
    line = f.add(f.multiply(x, f.constant(np.array(a["alpha"]))), f.constant(np.array(a["beta"])))
    return _clip(f, {"min": 0.0, "max": 1.0}, line)


def _leaky_relu(f: PrimeField, a: dict[str, Any], x: Residues) -> Residues:
    scaled, zero = f.multiply(x, f.constant(np.array(a["alpha"]))), f.constant(np.zeros(()))
    n, d = max(x.numerator, scaled.numerator), max(x.denominator, scaled.denominator)
    return Residues(torch.where(f.greater(zero, x), scaled.values, x.values), n, d)


def _cast(f: PrimeField, a: dict[str, Any], x: Residues) -> Value:
    if "float" in a["to"]:
        return x
    if a["to"] == "bool":
        return x.values != 0
    return f.apply("Cast", x).values  # some integer


_OPERATORS: dict[str, _Operator] = {
    **{op: _function(op) for op in ("Tanh", "Erf", "Sqrt", "Exp", "Sin", "Cos", "Log", "Floor", "Ceil", "Sign",
                                    "HardSwish", "Gelu", "Elu")},
    "Sigmoid": lambda f, a, x: _sigmoid(f, x),
    "Softplus": lambda f, a, x: f.apply("Log", f.add(f.apply("Exp", x), f.constant(np.ones(())))),
    "HardSigmoid": _hard_sigmoid,
    "Relu": lambda f, a, x: f.largest(x, f.constant(np.zeros(()))),
    "Abs": lambda f, a, x: f.largest(x, f.negate(x)),
    "Neg": lambda f, a, x: f.negate(x),
    "Reciprocal": lambda f, a, x: f.invert(x),
    "Swish": lambda f, a, x: f.multiply(x, _sigmoid(f, f.multiply(x, f.constant(np.array(a["alpha"]))))),
    "LeakyRelu": _leaky_relu,
    "Clip": _clip,
    "Cast": _cast,
    "Add": lambda f, a, x, y: f.add(x, y),
    "Sub": lambda f, a, x, y: f.add(x, f.negate(y)),
    "Mul": lambda f, a, x, y: f.multiply(x, y),
    "Div": lambda f, a, x, y: f.multiply(x, f.invert(y)),
    "Pow": _pow,
    "Max": lambda f, a, x, y: f.largest(x, y),
    "Min": lambda f, a, x, y: f.largest(x, y, -1),
    "Equal": lambda f, a, x, y: x.values == y.values,
    "Greater": lambda f, a, x, y: f.greater(x, y),
    "GreaterOrEqual": lambda f, a, x, y: ~f.greater(y, x),
    "Less": lambda f, a, x, y: f.greater(y, x),
    "LessOrEqual": lambda f, a, x, y: ~f.greater(x, y),
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "BatchNormalization": _batch_normalization,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda f, a, x: f.mean(x, range(2, x.values.dim())),
    "Softmax": _softmax,
    "LayerNormalization": _layer_normalization,
    "RMSNormalization": _rms_normalization,
    "ReduceMean": lambda f, a, x: f.mean(x, a["axes"], bool(a["keepdims"])),
    "ReduceSum": lambda f, a, x: f.total(x, a["axes"], bool(a["keepdims"])),
    "ReduceMax": _extreme(1),
    "ReduceMin": _extreme(-1),
}  # fmt: skip
