"""What the shipped policy learns from: search spaces of random small networks, puzzles and small zoo models.

Every task is a space with prices. Prices come from the rooflines of several devices, of operators by themselves and of
the kernels that fusion makes of them, multiplied for each kind of kernel by a log-normal factor: measured kernels
deviate from any model too, and the policy shall read prices, not remember operators. Weight limits vary, so that room
for growth has to be spent with care.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import exp
from typing import TYPE_CHECKING

import numpy as np

from ..cost.base import Cost, CostModel, bind
from ..cost.devices import DEVICES as DESCRIBED
from ..cost.devices import Device
from ..cost.fusion import Fusion, fusion
from ..cost.ledger import Fuser, Members
from ..cost.roofline import roofline
from ..cost.units import Pricer, Units
from ..egraph.graph import Graph, GraphBuilder, TensorType, Weight
from .base import Budget, extractor
from .puzzles import puzzle

if TYPE_CHECKING:
    from ..egraph.space import SearchSpace

DEVICES = ("epyc-1t", "a100", "h200")
"""Rooflines that the shipped policy is trained for."""

GROWTH = (1.05, 1.05, 1.2, 1.5)
"""Weight limits are drawn from these; the default limit most often."""

LARGEST = 500
"""Spaces with more e-nodes are left out of the training set."""


@dataclass(frozen=True)
class Task:
    """A space to practise on. reference: share of the original's cost (0 to 1) that `climb` saves; rewards are divided
    by it, so that a space where 2 % can be had teaches as much as one with 40 %."""

    name: str
    space: SearchSpace
    cost: Cost
    reference: float


def task(name: str, space: SearchSpace, cost: Cost, evaluations: int = 2000, seed: int = 0) -> Task:
    """A task with the reference that climb reaches in so many evaluations without leaps (at least 0.5 %)."""
    original = cost.total(space.original)
    found = extractor("climb", leaps=0).extract(space, cost, Budget(steps=evaluations), np.random.default_rng(seed))
    return Task(name, space, cost, max(1 - found.cost / max(original, 1e-12), 0.005))


def priced(space: SearchSpace, rng: np.random.Generator, spread: float = 0.35, fused: float = 0.0) -> Cost:
    """A random device's roofline, with or without fusion; each kind of kernel (operators, attributes, types) off by a
    log-normal factor.

    fused: how likely it is a cost of fused kernels.
    """
    device, growth = str(rng.choice(DEVICES)), float(rng.choice(GROWTH))
    exact = rng.random() < 0.4
    if fused and rng.random() < fused:
        return bind(fusion(device) if exact else NoisyFusion(DESCRIBED[device], rng, spread), space, growth)
    cost = bind(roofline(device), space, growth)
    if exact:
        return cost
    factors: dict[object, float] = {}
    prices = cost.prices.copy()
    for i in np.flatnonzero(prices > 0).tolist():
        key = (space.ops[i], space.attributes[i], tuple(space.child_types(i)))
        if key not in factors:
            factors[key] = exp(spread * rng.standard_normal())
        prices[i] *= factors[key]
    return replace(cost, prices=prices, name=f"{cost.name}{NOISE}")


NOISE = " × noise"
"""End of the names of costs that are off by random factors."""


class NoisyFusion(Fusion):
    """The fusion cost of a device, each kind of kernel off by a log-normal factor, whichever is asked for first."""

    def __init__(self, device: Device, rng: np.random.Generator, spread: float) -> None:
        super().__init__(device)
        self.name += NOISE
        self.seed, self.spread = int(rng.integers(2**62)), spread

    def pricer(self, units: Units, fuser: Fuser, scale: float) -> Pricer:
        return _NoisyPricer(super().pricer(units, fuser, scale), self)


class _NoisyPricer(Pricer):
    def __init__(self, plain: Pricer, model: NoisyFusion) -> None:
        super().__init__(plain.units, plain.found, plain.device, plain.scale)
        self.model = model
        self.factors: dict[object, float] = {}

    def price(self, members: Members) -> float:
        units = self.units
        key = tuple(
            (units.ops[i], j, units.attributes[i], tuple(units.types[k] for k in units.kids[i])) for i, j in members
        )
        if key not in self.factors:
            # a digest, not `hash`: the same kernels have the same factors in every process
            digest = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")
            draw = np.random.default_rng([self.model.seed, digest]).standard_normal()
            self.factors[key] = exp(self.model.spread * draw)
        return super().price(members) * self.factors[key]


def training_set(
    seed: int = 0, networks: int = 60, puzzles: int = 30, zoo: Sequence[str] = ("bert-tiny",), fused: float = 0.0
) -> list[Task]:
    """Random networks (saturated with all rules), puzzles, and these zoo models on every device.

    fused: share of the first two whose cost is that of fused kernels; zoo models have both if it is more than 0.
    """
    from ..egraph.saturate import saturate

    rng = np.random.default_rng(seed)
    found: list[Task] = []
    while len(found) < networks:
        space = saturate(random_network(rng), max_enodes=2 * LARGEST, seconds=5.0)
        if 30 < space.n_nodes <= LARGEST:
            found.append(task(f"network {len(found)}", space, priced(space, rng, fused=fused)))
    for k in range(puzzles):
        space = puzzle(rng, int(rng.integers(2, 8)))
        found.append(task(f"puzzle {k}", space, priced(space, rng, fused=fused)))
    for name in zoo:
        space = zoo_space(name)
        makers: list[Callable[[str], CostModel]] = [roofline, fusion] if fused else [roofline]
        models = [make(d) for make in makers for d in DEVICES]
        found += [task(f"{name} on {m.name}", space, bind(m, space)) for m in models]
    return [t for t in found if t.reference > 0.006]


def zoo_space(name: str) -> SearchSpace:
    """The saturated space of a zoo model, or of an ONNX file if the name ends so."""
    from ..egraph.saturate import saturate
    from ..lowering import load
    from ..zoo import build

    return saturate(load(name if name.endswith(".onnx") else build(name)))


# -- random networks -----------------------------------------------------------------------------------------------


class _Net:
    """A graph under construction, with cheap weights."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.g = rng, GraphBuilder()

    def w(self, *shape: int) -> int:
        value = np.float32(self.rng.standard_normal())
        return self.g.weight(Weight.of(np.broadcast_to(value, shape)))

    def shape(self, x: int) -> tuple[int, ...]:
        kind = self.g.nodes[x].type
        assert isinstance(kind, TensorType) and kind.shape is not None
        return tuple(d for d in kind.shape if isinstance(d, int))

    def activation(self, x: int) -> int:
        return self.g.op(str(self.rng.choice(["Relu", "Relu", "Tanh", "Sigmoid"])), x)

    def linear(self, x: int, out: int, bias: bool) -> int:
        y = self.g.op("MatMul", x, self.w(self.shape(x)[-1], out))
        return self.g.op("Add", y, self.w(out)) if bias else y


def _attention(net: _Net, x: int) -> int:
    g, (tokens, width) = net.g, net.shape(x)
    heads = int(net.rng.choice([2, 4]))
    bias, scaled, out_bias = (bool(b) for b in net.rng.integers(0, 2, size=3))
    inner = int(net.rng.choice([width, width // 2]))
    parts = []
    for _ in range(3):
        p = g.op("Reshape", net.linear(x, inner, bias), shape=(tokens, heads, inner // heads))
        parts.append(p)
    q = g.op("Transpose", parts[0], perm=(1, 0, 2))
    k = g.op("Transpose", parts[1], perm=(1, 2, 0))
    v = g.op("Transpose", parts[2], perm=(1, 0, 2))
    if scaled and net.rng.random() < 0.5:
        q = g.op("Mul", q, net.w(1))
    s = g.op("MatMul", q, k)
    if scaled:
        s = g.op("Mul", s, net.w(1))
    a = g.op("Transpose", g.op("MatMul", g.op("Softmax", s, axis=2), v), perm=(1, 0, 2))
    y = net.linear(g.op("Reshape", a, shape=(tokens, inner)), width, out_bias)
    return g.op("Add", x, y)


def _mlp(net: _Net, x: int) -> int:
    width = net.shape(x)[-1]
    bias = bool(net.rng.integers(0, 2))
    h = net.activation(net.linear(x, 2 * width, bias))
    return net.g.op("Add", net.linear(h, width, bias), x)


def _gated(net: _Net, x: int) -> int:
    width = net.shape(x)[-1]
    up, gate = net.linear(x, 2 * width, False), net.activation(net.linear(x, 2 * width, False))
    return net.linear(net.g.op("Mul", up, gate), width, False)


def _towers(net: _Net, x: int) -> int:
    width = net.shape(x)[-1]
    same = bool(net.rng.integers(0, 2))
    outs = [
        net.activation(y) if same or net.rng.random() < 0.7 else y
        for y in (net.linear(x, int(net.rng.choice([width // 2, width])), same) for _ in range(net.rng.integers(2, 4)))
    ]
    return net.linear(net.g.op("Concat", *outs, axis=1), width, False)


def _recurrent(net: _Net, x: int) -> int:
    width = net.shape(x)[-1]
    h = net.activation(x)
    a, b = net.linear(x, width, False), net.linear(h, width, False)
    return net.activation(net.g.op("Add", a, b))


def _lowrank(net: _Net, x: int) -> int:
    width = net.shape(x)[-1]
    return net.linear(net.linear(x, int(net.rng.choice([8, 16, 32, 64])), False), width, False)


def _conv(net: _Net, x: int, out: int, kernel: int, stride: int = 1, group: int = 1, bias: bool = False) -> int:
    c = net.shape(x)[1]
    operands = [x, net.w(out, c // group, kernel, kernel)] + ([net.w(out)] if bias else [])
    p = kernel // 2
    return net.g.op(
        "Conv", *operands, strides=(stride, stride), dilations=(1, 1), pads=(p, p, p, p), group=group
    )  # fmt: skip


def _norm(net: _Net, x: int) -> int:
    c = net.shape(x)[1]
    return net.g.op("BatchNormalization", x, net.w(c), net.w(c), net.w(c), net.w(c), epsilon=1e-5)


def _fire(net: _Net, x: int) -> int:
    c = net.shape(x)[1]
    s = net.g.op("Relu", _conv(net, x, c // 2, 1, bias=True))
    left = net.g.op("Relu", _conv(net, s, c // 2, 1, bias=True))
    return net.g.op("Concat", left, net.g.op("Relu", _conv(net, s, c // 2, 3, bias=True)), axis=1)


def _inception(net: _Net, x: int) -> int:
    c = net.shape(x)[1]
    branches = []
    for _ in range(int(net.rng.integers(2, 4))):
        y = _conv(net, x, c // int(net.rng.choice([2, 4])), int(net.rng.choice([1, 1, 3])))
        y = net.g.op("Relu", _norm(net, y) if net.rng.random() < 0.3 else y)
        branches.append(net.g.op("Relu", _conv(net, y, c // 2, 3)) if net.rng.random() < 0.4 else y)
    return net.g.op("Concat", *branches, axis=1)


def _residual(net: _Net, x: int) -> int:
    c = net.shape(x)[1]
    group = int(net.rng.choice([1, 1, 2, 4]))
    y = net.g.op("Relu", _norm(net, _conv(net, x, c, 3, group=group)))
    y = _conv(net, y, c, 1)
    short = _conv(net, x, c, 1) if net.rng.random() < 0.5 else x
    return net.g.op("Relu", net.g.op("Add", _norm(net, y) if net.rng.random() < 0.5 else y, short))


_FLAT: tuple[Callable[[_Net, int], int], ...] = (_attention, _attention, _mlp, _gated, _towers, _recurrent, _lowrank)
_IMAGE: tuple[Callable[[_Net, int], int], ...] = (_fire, _inception, _residual)


def random_network(rng: np.random.Generator) -> Graph:
    """One to four random blocks, sometimes equal ones: attention, gated and plain MLPs, towers, convolutions."""
    net = _Net(rng)
    if rng.random() < 0.65:
        tokens, width = int(rng.choice([1, 8, 16, 64, 128])), int(rng.choice([32, 64, 128, 256, 512]))
        x = net.g.input("x", TensorType((tokens, width), "float32"))
        blocks, count = _FLAT, int(rng.integers(1, 4))
    else:
        side, width = int(rng.choice([7, 14, 28, 56])), int(rng.choice([16, 32, 64, 128]))
        x = net.g.input("x", TensorType((1, width, side, side), "float32"))
        blocks, count = _IMAGE, int(rng.integers(1, 4))
    repeat = blocks[int(rng.integers(len(blocks)))] if rng.random() < 0.3 else None
    count += repeat is not None
    for _ in range(count):
        x = (repeat or blocks[int(rng.integers(len(blocks)))])(net, x)
    return net.g.build({"y": x})
