"""Random graphs of core operators, made of rules' left sides stitched together and of operators drawn at random.

Graph n of a seed is the same on every machine with the same rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from xrlflow.egraph.dimension import dimension
from xrlflow.egraph.graph import Graph, GraphBuilder, TensorType, TupleType, Weight
from xrlflow.egraph.operators import COMPARISONS, IllTyped
from xrlflow.egraph.rules.language import Rule
from xrlflow.lowering.instances import Instance

EXTENTS = (1, 1, 2, 3, 4, 5, 6)
SMOOTH = ("Relu", "Sigmoid", "Tanh", "Erf", "Neg", "Abs", "Sin", "Cos", "Softplus", "HardSwish")
SHARP = ("Sqrt", "Exp", "Reciprocal", "Log", "Floor", "Ceil", "Sign")
"""Functions that are undefined, huge or discontinuous somewhere: rarer, since they magnify rounding."""
ARITHMETIC = ("Add", "Add", "Add", "Mul", "Mul", "Mul", "Sub", "Sub", "Div", "Min", "Max", "Pow")


class Random:
    """One random graph in the making."""

    def __init__(self, seed: int, number: int, rules: Sequence[Rule]) -> None:
        self.rng = np.random.default_rng([seed, number])
        self.rules = rules
        self.g = GraphBuilder()
        self.dtype = "float16" if self.rng.random() < 0.12 else "float32"
        self.symbolic = self.rng.random() < 0.15
        self.pool: list[int] = []
        """Nodes that the next operator may read: tensors of floats, integers and booleans."""
        self.seen = 0

    def pick(self, items: Sequence[Any]) -> Any:
        return items[int(self.rng.integers(len(items)))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def type(self, k: int) -> TensorType:
        kind = self.g.nodes[k].type
        assert isinstance(kind, TensorType)
        return kind

    def shape(self, k: int) -> tuple[Any, ...]:
        return self.type(k).shape or ()

    def input(self, shape: Sequence[Any], dtype: str | None = None) -> int:
        self.seen += 1
        k = self.g.input(f"x{self.seen}", TensorType(tuple(shape), dtype or self.dtype))
        self.pool.append(k)
        return k

    def fresh(self) -> int:
        shape: list[Any] = [int(self.pick(EXTENTS)) for _ in range(int(self.pick((0, 1, 2, 2, 3, 3, 4))))]
        if self.symbolic and shape and self.chance(0.6):
            shape[int(self.rng.integers(len(shape)))] = self.pick(("n", "n", "m"))
        return self.input(shape, None if self.chance(0.9) else str(self.pick(("int64", "bool"))))

    def weight(self, shape: Sequence[int], dtype: str | None = None) -> int:
        """Random numbers, or one number everywhere: zeros, ones and the like are what identities fire on."""
        dtype = dtype or self.dtype
        if dtype == "bool":
            return self.g.weight(self.rng.integers(0, 2, shape).astype(bool))
        if self.chance(0.35):
            array = np.full(shape, float(self.pick((0, 0, 1, 1, -1, 2, 0.5, 3))))
        else:
            # few bits, so that rules that multiply numbers into attributes do not round: the field would tell
            array = (
                np.round(self.rng.normal(size=shape) * 256) / 256
                if "float" in dtype
                else self.rng.integers(-3, 4, shape)
            )
        return self.g.weight(array.astype(dtype))

    def add(self, op: str, *operands: int, **attrs: Any) -> int | None:
        """The new node, or None where the operator does not apply."""
        try:
            k = self.g.op(op, *operands, **attrs)
        except (IllTyped, TypeError, IndexError, ZeroDivisionError):
            return None
        kind = self.g.nodes[k].type
        if isinstance(kind, TupleType):
            parts = [self.g.get(k, i) for i in range(len(kind.items))]
            self.pool.extend(p for p in parts if p not in self.pool)
        elif kind.elements <= 4096 and (kind.rank or 0) <= 6 and k not in self.pool:
            self.pool.append(k)
        return k

    def grow(self) -> None:
        """One more operator, or a rule's left side."""
        if self.chance(0.3):
            self.stitch()
            return
        x = self.pool[-1] if self.chance(0.5) else int(self.pick(self.pool))
        kind = self.type(x).dtype
        makers = FLOAT if "float" in kind else BOOLEAN if kind == "bool" else INTEGER
        names = list(makers)
        share = np.array([makers[n][0] for n in names])
        makers[names[int(self.rng.choice(len(names), p=share / share.sum()))]][1](self, x)

    # Rules' left sides

    def stitch(self) -> None:
        """A rule's left side on operands of the pool that fit, else on new inputs."""
        rule = self.pick(self.rules)
        cases = [*rule.examples, *(g.counter for g in rule.where if g.counter)]
        try:
            instance = Instance(rule, self.pick(cases), "normal", int(self.rng.integers(1 << 30)))
        except (IllTyped, TypeError, IndexError):
            return
        terms, made = instance.terms, {}
        for k in range(instance.size):
            kind, attrs = terms.types[k], terms.attrs(k)
            if terms.ops[k] == "Input":
                assert isinstance(kind, TensorType)
                made[k] = self.fitting(kind)
            elif terms.ops[k] == "Weight":
                weight = terms.weights[attrs["digest"]]
                dtype = self.dtype if "float" in weight.type.dtype else weight.type.dtype
                with np.errstate(over="ignore"):
                    made[k] = self.g.weight(Weight.of(weight.load().astype(dtype)))
            else:
                operands = [made[o] for o in terms.operands[k]]
                if terms.ops[k] == "Get":
                    made[k] = self.g.get(operands[0], attrs["index"])
                    self.pool.append(made[k])
                    continue
                if terms.ops[k] == "Cast" and "float" in attrs["to"] and self.dtype == "float16" and self.chance(0.5):
                    attrs["to"] = "float16"
                new = self.add(terms.ops[k], *operands, **attrs)
                if new is None:
                    return
                made[k] = new

    def fitting(self, kind: TensorType) -> int:
        """An operand of this type: one of the pool, one made to fit, or a new input."""
        dtype = self.dtype if "float" in kind.dtype else kind.dtype
        same = [k for k in self.pool if self.type(k).shape == kind.shape and self.type(k).dtype == dtype]
        if same and self.chance(0.7):
            return int(self.pick(same))
        large = [k for k in self.pool if self.type(k).concrete and self.type(k).elements == kind.elements
                 and self.type(k).dtype == dtype]  # fmt: skip
        if large and self.chance(0.5):
            return self.g.op("Reshape", int(self.pick(large)), shape=kind.shape)
        return self.input(kind.shape or (), dtype)

    def partner(self, x: int) -> int:
        """A second operand that broadcasts with x, from the pool or a new constant or input."""
        shape, dtype = self.shape(x), self.type(x).dtype
        if self.chance(0.35):
            known = [k for k in self.pool if self.type(k).dtype == dtype and self.shape(k) in (shape, shape[1:])]
            if known:
                return int(self.pick(known))
        kept = [d if self.chance(0.7) else 1 for d in shape][int(self.rng.integers(0, len(shape) + 1)) :]
        if self.chance(0.15):
            kept = [int(self.pick(EXTENTS)) if d == 1 else d for d in kept]
        if self.chance(0.6) and all(isinstance(d, int) for d in kept):
            return self.weight(kept, dtype)
        return self.input(kept, dtype)

    def build(self, operators: int) -> Graph:
        """The graph: everything that nothing reads is an output, and some more."""
        for _ in range(int(self.rng.integers(1, 4))):
            self.fresh()
        for _ in range(40 * operators):
            if sum(bool(n.inputs) for n in self.g.nodes) >= operators:
                break
            self.grow()
        used = {k for n in self.g.nodes for k in n.inputs}
        outputs = [
            k for k, n in enumerate(self.g.nodes) if k not in used and n.inputs and isinstance(n.type, TensorType)
        ]
        outputs += [k for k in self.pool if k in used and self.g.nodes[k].inputs and self.chance(0.1)]
        chosen = dict.fromkeys(outputs or self.pool)
        return self.g.build({f"y{i}": k for i, k in enumerate(chosen)})


# Operators drawn at random: each adds a node on x where it can

Maker = Callable[[Random, int], Any]


def _axis(r: Random, x: int) -> int:
    return int(r.rng.integers(max(len(r.shape(x)), 1)))


def _unary(ops: Sequence[str]) -> Maker:
    return lambda r, x: r.add(str(r.pick(ops)), x)


def _binary(ops: Sequence[str]) -> Maker:
    def make(r: Random, x: int) -> None:
        y = x if r.chance(0.05) else r.partner(x)
        r.add(str(r.pick(ops)), *((x, y) if r.chance(0.7) else (y, x)))

    return make


def _parametric(r: Random, x: int) -> None:
    op, attrs = r.pick((
        ("Gelu", {"approximate": "none"}), ("Gelu", {"approximate": "tanh"}), ("Swish", {"alpha": 1.0}),
        ("LeakyRelu", {"alpha": 0.125}), ("Elu", {"alpha": 1.0}), ("HardSigmoid", {"alpha": 0.25, "beta": 0.5}),
        ("Clip", {"min": 0.0, "max": 6.0}), ("Clip", {"min": 0.0, "max": float("inf")}),
        ("Clip", {"min": -1.0, "max": 1.0}),
    ))  # fmt: skip
    r.add(op, x, **attrs)


def _cast(r: Random, x: int) -> None:
    mine = r.type(x).dtype
    to = str(r.pick(("float32", "float16", "float64") if "float" in mine else (r.dtype, "int64", "bool", "int32")))
    y = r.add("Cast", x, to=to)
    if y is not None and "float" in to and to != r.dtype and r.chance(0.8):
        r.add("Cast", y, to=r.dtype)


def _matmul(r: Random, x: int) -> None:
    shape = r.shape(x)
    if not shape or not isinstance(shape[-1], int):
        return
    n = int(r.pick((1, 2, 3, 5, 7)))
    tall = [shape[-1], n]
    if r.chance(0.15) and len(shape) > 2 and all(isinstance(d, int) for d in shape):
        tall = [*shape[:-2], *tall]
    if r.chance(0.05):
        tall = [shape[-1]]
    elif r.chance(0.3):
        known = [
            k
            for k in r.pool
            if len(r.shape(k)) >= 2 and r.shape(k)[-2] == shape[-1] and r.type(k).dtype == r.type(x).dtype
        ]
        if known:
            r.add("MatMul", x, int(r.pick(known)))
            return
    y = r.weight(tall) if r.chance(0.8) else r.input(tall)
    product = r.add("MatMul", x, y)
    if product is not None and r.chance(0.3):
        r.add("MatMul", x, r.weight([*tall[:-1], int(r.pick((1, 2, 3)))]))
    if product is not None and r.chance(0.3):
        r.add("Add", product, r.weight([tall[-1]] if len(tall) > 1 else [1]))


def _gemm(r: Random, x: int) -> None:
    shape = r.shape(x)
    if len(shape) != 2 or not isinstance(shape[1], int) or not isinstance(shape[0], int):
        return
    n, ta, tb = int(r.pick((1, 3, 4))), int(r.chance(0.3)), int(r.chance(0.5))
    k = shape[0] if ta else shape[1]
    operands = [x, r.weight([n, k] if tb else [k, n])]
    if r.chance(0.6):
        operands.append(r.weight([n]))
    r.add("Gemm", *operands, alpha=float(r.pick((1, 1, 0.5))), beta=float(r.pick((1, 1, 2))), transA=ta, transB=tb)


def _conv(r: Random, x: int) -> None:
    shape = r.shape(x)
    if len(shape) not in (3, 4) or not isinstance(shape[1], int):
        return
    n = len(shape) - 2
    group = shape[1] if r.chance(0.2) else 2 if shape[1] % 2 == 0 and r.chance(0.3) else 1
    kernel = [int(r.pick((1, 1, 3, 2)))] * n if r.chance(0.8) else [int(r.pick((1, 3))) for _ in range(n)]
    pads = tuple([k // 2 for k in kernel] * 2) if r.chance(0.7) else tuple(int(v) for v in r.rng.integers(0, 2, 2 * n))
    stride = (2,) * n if r.chance(0.2) else (1,) * n
    attrs = {"strides": stride, "dilations": (1,) * n, "pads": pads, "group": group}
    for _ in range(2 if r.chance(0.35) else 1):
        outputs = group * int(r.pick((1, 2, 3)))
        operands = [x, r.weight([outputs, shape[1] // group, *kernel])]
        if r.chance(0.5):
            operands.append(r.weight([outputs]))
        y = r.add("Conv", *operands, **attrs)
        if y is not None and r.chance(0.3):
            r.add("BatchNormalization", y, *(r.weight([outputs]) for _ in range(3)),
                  r.g.weight(r.rng.uniform(0.5, 2.0, outputs).astype(r.dtype)), epsilon=2.0**-10)  # fmt: skip


def _pool(r: Random, x: int) -> None:
    n = len(r.shape(x)) - 2
    if n not in (1, 2):
        return
    op = str(r.pick(("MaxPool", "AveragePool", "GlobalAveragePool")))
    if op == "GlobalAveragePool":
        r.add(op, x)
        return
    kernel = (int(r.pick((1, 2, 3))),) * n
    attrs: dict[str, Any] = {"kernel": kernel, "strides": (int(r.pick((1, 1, 2))),) * n, "dilations": (1,) * n,
                             "pads": (kernel[0] // 2,) * 2 * n, "ceil": int(r.chance(0.2))}  # fmt: skip
    r.add(op, x, **attrs, **({} if op == "MaxPool" else {"include_pad": int(r.chance(0.5))}))


def _normalise(r: Random, x: int) -> None:
    shape = r.shape(x)
    if not shape or not isinstance(shape[-1], int):
        return
    op = str(r.pick(("Softmax", "LayerNormalization", "RMSNormalization")))
    if op == "Softmax":
        r.add(op, x, axis=_axis(r, x))
        return
    operands = [x, r.weight([shape[-1]])]
    if op == "LayerNormalization" and r.chance(0.7):
        operands.append(r.weight([shape[-1]]))
    r.add(op, *operands, axis=len(shape) - 1, epsilon=2.0**-10)


def _reduce(r: Random, x: int) -> None:
    rank = len(r.shape(x))
    if rank:
        axes = tuple(sorted(int(a) for a in r.rng.choice(rank, int(r.rng.integers(1, rank + 1)), replace=False)))
        op = str(r.pick(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")))
        r.add(op, x, axes=axes if r.chance(0.5) else axes[-1:], keepdims=int(r.chance(0.6)))


def _concat(r: Random, x: int) -> None:
    shape = r.shape(x)
    if not shape:
        return
    k, parts = _axis(r, x), [x]
    for _ in range(int(r.pick((1, 1, 2, 3)))):
        known = [i for i in r.pool if len(r.shape(i)) == len(shape) and r.type(i).dtype == r.type(x).dtype
                 and all(a == b for j, (a, b) in enumerate(zip(r.shape(i), shape, strict=True)) if j != k)]  # fmt: skip
        if known and r.chance(0.7):
            parts.append(int(r.pick(known)))
        else:
            new = [int(r.pick((1, 2, 3))) if i == k else d for i, d in enumerate(shape)]
            concrete = all(isinstance(d, int) for d in new)
            parts.append(
                r.weight(new, r.type(x).dtype) if concrete and r.chance(0.3) else r.input(new, r.type(x).dtype)
            )
    r.rng.shuffle(parts)
    r.add("Concat", *(int(p) for p in parts), axis=k)


def _split(r: Random, x: int) -> None:
    k = _axis(r, x)
    extent = r.shape(x)[k] if r.shape(x) else 0
    if isinstance(extent, int) and extent >= 2:
        cuts = sorted({int(c) for c in r.rng.integers(1, extent, int(r.pick((1, 1, 2))))})
        bounds = [0, *cuts, extent]
        r.add("Split", x, axis=k, sizes=tuple(b - a for a, b in pairwise(bounds)))


def _slice(r: Random, x: int) -> None:
    k = _axis(r, x)
    extent = r.shape(x)[k] if r.shape(x) else 0
    if isinstance(extent, int) and extent:
        start = int(r.rng.integers(0, extent))
        end = int(r.rng.integers(start + 1, extent + 1))
        r.add("Slice", x, axes=(k,), starts=(start,), ends=(end,))


def _transpose(r: Random, x: int) -> None:
    rank = len(r.shape(x))
    perm = tuple(int(p) for p in r.rng.permutation(rank))
    if rank >= 2 and r.chance(0.4):
        perm = (*range(rank - 2), rank - 1, rank - 2)
    r.add("Transpose", x, perm=perm)


def _reshape(r: Random, x: int) -> None:
    shape = list(r.shape(x))
    for _ in range(2):
        i = int(r.rng.integers(0, len(shape) + 1))
        if r.chance(0.3):
            shape.insert(i, 1)
        elif i + 1 < len(shape):
            shape[i : i + 2] = [shape[i] * shape[i + 1]]
        elif shape and isinstance(shape[-1], int) and shape[-1] % 2 == 0:
            shape[-1:] = [2, shape[-1] // 2]
    r.add("Reshape", x, shape=tuple(dimension(d) for d in shape))


def _expand(r: Random, x: int) -> None:
    shape = [int(r.pick((1, 2, 3))) if isinstance(d, int) and d == 1 and r.chance(0.7) else d for d in r.shape(x)]
    r.add("Expand", x, shape=tuple([2, *shape] if r.chance(0.3) else shape))


def _pad(r: Random, x: int) -> None:
    pads = tuple(int(p) for p in r.rng.integers(0, 2, 2 * len(r.shape(x))))
    r.add("Pad", x, pads=pads, value=float(r.pick((0, 0, 1))))


def _gather(r: Random, x: int) -> None:
    k = _axis(r, x)
    extent = r.shape(x)[k] if r.shape(x) else 0
    if isinstance(extent, int) and extent:
        shape = r.pick(((), (1,), (3,), (2, 2)))
        r.add("Gather", x, r.g.weight(r.rng.integers(0, extent, shape)), axis=k)


def _compare(r: Random, x: int) -> None:
    y = r.partner(x)
    c = r.add(str(r.pick(COMPARISONS)), x, y)
    if c is not None and r.chance(0.7):
        r.add("Where", c, x, r.partner(x))


def _where(r: Random, x: int) -> None:
    y = r.weight([], r.dtype) if r.chance(0.5) else r.input(r.shape(x), r.dtype)
    r.add("Where", x, y, r.weight([], r.dtype) if r.chance(0.3) else r.input(r.shape(x), r.dtype))


MOVES: dict[str, tuple[float, Maker]] = {
    "concat": (2, _concat), "split": (1.5, _split), "slice": (1.5, _slice), "transpose": (3, _transpose),
    "reshape": (3, _reshape), "expand": (0.7, _expand), "pad": (0.7, _pad), "gather": (0.7, _gather),
}  # fmt: skip
FLOAT: dict[str, tuple[float, Maker]] = {
    **MOVES, "smooth": (3, _unary(SMOOTH)), "sharp": (0.7, _unary(SHARP)), "parametric": (1, _parametric),
    "binary": (6, _binary(ARITHMETIC)), "matmul": (4, _matmul), "gemm": (1, _gemm), "conv": (3, _conv),
    "pool": (1, _pool), "normalise": (1.5, _normalise), "reduce": (1.5, _reduce),
    "compare": (0.5, _compare), "cast": (0.5, _cast),
    "nan": (0.2, _unary(("IsNaN",))),
}  # fmt: skip
"""Share and maker of each kind of operator on floating-point numbers."""
INTEGER: dict[str, tuple[float, Maker]] = {
    **MOVES, "binary": (4, _binary(("Add", "Sub", "Mul", "Div", "Min", "Max"))), "compare": (1, _compare),
    "cast": (2, _cast), "unary": (1, _unary(("Neg", "Abs", "Relu", "Sign"))),
}  # fmt: skip
BOOLEAN: dict[str, tuple[float, Maker]] = {
    **MOVES, "binary": (2, _binary(("And", "Or"))), "not": (1, _unary(("Not",))), "where": (3, _where),
    "cast": (1, _cast),
}  # fmt: skip


def random_graph(seed: int, number: int, rules: Sequence[Rule], operators: int = 14) -> Graph:
    """Graph `number` of this seed, of about that many operators."""
    return Random(seed, number, rules).build(operators)
