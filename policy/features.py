"""What the policy sees of a search space and a state: plain arrays, ready for a graph network.

The graph is bipartite: classes read e-nodes of their own (membership), e-nodes read classes (operands). E-nodes
inside constant classes are left out, the constants themselves stay as classes. No feature names a weight, a site or a
position, so equal parts look equal wherever they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, log1p, log10, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cost.roofline import flops, traffic
from ..egraph.graph import TensorType, TupleType, Type

if TYPE_CHECKING:
    from .state import State
    from .substitution import Substitutions

OPERATORS = (
    "Input", "Get", "Relu", "Sigmoid", "Tanh", "Erf", "Sqrt", "Exp", "Neg", "Abs", "Add", "Sub", "Mul", "Div", "Pow",
    "MatMul", "Gemm", "Conv", "BatchNormalization", "MaxPool", "AveragePool", "GlobalAveragePool", "Softmax",
    "LayerNormalization", "ReduceMean", "Concat", "Split", "Slice", "Transpose", "Reshape", "Reciprocal", "Sin", "Cos",
    "Log", "Softplus", "Floor", "Ceil", "Sign", "HardSwish", "Gelu", "Swish", "LeakyRelu", "Elu", "HardSigmoid", "Clip",
    "Cast", "Not", "IsNaN", "Min", "Max", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or",
    "Where", "RMSNormalization", "ReduceSum", "ReduceMax", "ReduceMin", "Expand", "Pad", "Gather", "Attention",
    "RotaryEmbedding", "MultiHeadAttention", "FusedMatMul", "FusedGemm", "FusedConv", "BiasGelu", "FastGelu",
    "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
)  # fmt: skip
"""Kinds that have an embedding of their own; opaque operators share `HASHED` more."""

HASHED = 8
KINDS = 1 + len(OPERATORS) + HASHED
"""0 is an operator that is neither known nor opaque."""

DTYPES = ("float32", "float16", "bfloat16", "float64", "int8", "int32", "int64", "bool")

NODE_FEATURES = 18
CLASS_FEATURES = 8 + len(DTYPES)
MOVE_FEATURES = 12
TARGET_FEATURES = 6
PROGRESS_FEATURES = 5


def kind(op: str) -> int:
    """Number of an operator's embedding; a stable hash for opaque ones."""
    if op in OPERATORS:
        return 1 + OPERATORS.index(op)
    if "::" in op:
        return 1 + len(OPERATORS) + sum((k + 1) * ord(ch) for k, ch in enumerate(op)) % HASHED
    return 0


@dataclass(frozen=True, eq=False)
class Layout:
    """The part of the observation that never changes for a space and a cost.

    Shapes, with N e-nodes, C classes, E operand edges, A actions (without Stop), S sites of all actions: kinds
    int64[N]; nodes float32[N, NODE_FEATURES]; classes float32[C, CLASS_FEATURES]; member int64[N] the class of each
    e-node; operand int64[2, E] (class, e-node); sites int64[2, S] (action, e-node); target float32[TARGET_FEATURES].
    width float32[A]: log of the number of sites of each action. enode and eclass are the space's own numbers.
    """

    kinds: np.ndarray
    nodes: np.ndarray
    classes: np.ndarray
    member: np.ndarray
    operand: np.ndarray
    sites: np.ndarray
    target: np.ndarray
    width: np.ndarray
    enode: np.ndarray
    eclass: np.ndarray


def layout(rules: Substitutions) -> Layout:
    """The unchanging features of a space under a cost."""
    space = rules.space
    enode = np.array([i for i in range(space.n_nodes) if rules.usable[i]], dtype=np.int64)
    used = {rules.klass[i] for i in enode.tolist()} | {k for i in enode.tolist() for k in rules.kids[i]}
    eclass = np.array(sorted(used), dtype=np.int64)
    class_at = {int(c): k for k, c in enumerate(eclass)}
    node_at = {int(i): k for k, i in enumerate(enode)}
    work = np.zeros((len(enode), 2))
    for k, i in enumerate(enode.tolist()):
        if rules.price[i] > 0:
            work[k, 0] = flops(space.ops[i], space.attrs(i), space.child_types(i), space.node_type(i))[0]
            work[k, 1] = traffic(space.ops[i], space.child_types(i), space.node_type(i))
    price = np.array([rules.price[i] for i in enode])
    mine = np.array([node_at[i] for i in space.original.choice.tolist() if i in node_at], dtype=np.int64)
    scale = max(rules.original_cost, 1e-12)
    typical = float(np.median(price[mine][price[mine] > 0])) if (price[mine] > 0).any() else scale
    nodes = np.array(
        [_node(rules, i, price[k] / scale, price[k] / typical, *work[k]) for k, i in enumerate(enode.tolist())]
    )
    operand = [(class_at[c], k) for k, i in enumerate(enode.tolist()) for c in rules.kids[i]]
    sites = [(a, node_at[i]) for a, action in enumerate(rules.actions) for i in action.nodes]
    return Layout(
        kinds=np.array([kind(space.ops[i]) for i in enode], dtype=np.int64),
        nodes=nodes.astype(np.float32).reshape(len(enode), NODE_FEATURES),
        classes=np.array([_class(rules, c) for c in eclass.tolist()], dtype=np.float32),
        member=np.array([class_at[rules.klass[i]] for i in enode.tolist()], dtype=np.int64),
        operand=np.array(operand, dtype=np.int64).reshape(-1, 2).T.copy(),
        sites=np.array(sites, dtype=np.int64).reshape(-1, 2).T.copy(),
        target=_target(price[mine], work[mine], scale),
        width=np.log([float(len(a.nodes)) for a in rules.actions] or [1.0]).astype(np.float32)[: len(rules)],
        enode=enode,
        eclass=eclass,
    )


def _node(rules: Substitutions, i: int, share: float, multiple: float, work: float, moved: float) -> list[float]:
    attrs: dict[str, Any] = rules.space.attrs(i)
    kernel = attrs.get("kernel") or _kernel(rules, i)
    axis = attrs.get("axis", attrs.get("axes", (-1,)))
    axis = axis[0] if isinstance(axis, tuple) and axis else axis
    rank = getattr(rules.space.node_type(i), "rank", None) or 0
    return [
        log1p(1e2 * share),
        log10(share + 1e-5) / 5 + 1,
        min(log1p(multiple), 5.0),
        float(share == 0),
        log10(work + 1) / 10,
        log10(moved + 1) / 10,
        log10((work + 1) / (moved + 1)) / 4,
        len(rules.kids[i]) / 4,
        sum(rules.const[k] for k in rules.kids[i]) / 4,
        float(max(attrs.get("strides", (1,)), default=1)) / 2,
        log(prod(kernel)) / 4 if kernel else 0.0,
        log1p(float(attrs.get("group", 1))) / 4,
        float(max(attrs.get("pads", (0,)), default=0)) / 4,
        (float(axis) + 1) / 4 if isinstance(axis, int) else 0.0,
        (rank - float(axis)) / 4 if isinstance(axis, int) else 0.0,
        len(attrs.get("sizes", ())) / 4,
        float(attrs.get("index", -1) + 1) / 4,
        float(bool(rules.space.rules[i])),
    ]


def _kernel(rules: Substitutions, i: int) -> tuple[int, ...]:
    """Spatial extents of a convolution's weight."""
    if rules.space.ops[i] != "Conv":
        return ()
    shape = getattr(rules.space.child_types(i)[1], "shape", None) or ()
    return tuple(d for d in shape[2:] if isinstance(d, int))


def _class(rules: Substitutions, c: int) -> list[float]:
    kind_: Type = rules.space.types[c]
    first: TensorType = kind_.items[0] if isinstance(kind_, TupleType) else kind_
    held = rules.size[c] / max(1.0, rules.bytes_limit)
    return [
        log10(kind_.bytes + 1) / 10,
        float(rules.const[c]),
        log10(held + 1e-6) / 6 + 1 if rules.const[c] else 0.0,
        float(isinstance(kind_, TupleType)),
        (first.rank or 0) / 4,
        len(rules.options[c]) / 4,
        float(c in rules.root_classes),
        float(rules.component[c] >= 0),
        *(float(first.dtype == d) for d in DTYPES),
    ]


def _target(price: np.ndarray, work: np.ndarray, scale: float) -> np.ndarray:
    """What the prices of the original tell of the target: launches, arithmetic, bandwidth. No device name is needed."""
    paid = price > 0
    if not paid.any():
        return np.zeros(TARGET_FEATURES, dtype=np.float32)
    p, (f, b) = price[paid], work[paid].T
    low = p.min()
    heavy = p >= np.quantile(p, 0.8)
    return np.array(
        [
            low * len(p) / scale,  # share of the time that launches take, if the cheapest operator is all launch
            log10(scale) / 4,
            log10(low) / 4,
            log10((f[heavy].sum() + 1) / p[heavy].sum()) / 12,
            log10((b[~heavy].sum() + 1) / max(p[~heavy].sum(), low)) / 12,
            log10(len(p)) / 3,
        ],
        dtype=np.float32,
    )


@dataclass(frozen=True, eq=False)
class View:
    """The part of the observation that changes.

    chosen float32[N]; live float32[C, 2] (live or not, log fan-out); moves float32[A + 1, MOVE_FEATURES], mask bool[A
    + 1] (the last row is Stop); progress float32[PROGRESS_FEATURES].
    """

    chosen: np.ndarray
    live: np.ndarray
    moves: np.ndarray
    mask: np.ndarray
    progress: np.ndarray


def view(state: State, fixed: Layout, best: float, left: float, mask: np.ndarray | None = None) -> View:
    """The changing features of a state. best: cost (ms) of the best program so far; left: share of the steps left."""
    rules = state.rules
    n = len(rules)
    refs = np.array(state.refs, dtype=np.float32)[fixed.eclass]
    live = np.stack([refs > 0, np.log1p(refs)], axis=1).astype(np.float32)
    chosen = np.array(state.choice, dtype=np.int64)[fixed.eclass][fixed.member] == fixed.enode
    chosen &= live[fixed.member, 0] > 0
    legal = state.legal if mask is None else mask
    scale = max(rules.original_cost, 1e-12)
    room = max(0.0, rules.bytes_limit - state.bytes)
    delta = np.where(legal, state.delta, 0.0) / scale
    growth = np.where(legal, state.growth, 0.0)
    moves = np.zeros((n + 1, MOVE_FEATURES), dtype=np.float32)
    gain = np.maximum(-delta, 0.0)
    loss = np.maximum(delta, 0.0)
    top = float(gain.max(initial=0.0))
    moves[:n, 0] = np.log1p(1e2 * gain) - np.log1p(1e2 * loss)
    moves[:n, 1] = np.log1p(1e4 * gain) / 3 - np.log1p(1e4 * loss) / 3
    moves[:n, 2] = delta < -1e-9
    moves[:n, 3] = delta > 1e-9
    moves[:n, 4] = gain / top if top > 1e-9 else 0.0
    moves[:n, 5] = (gain >= top * (1 - 1e-9)) & (top > 1e-9)
    moves[:n, 6] = np.clip(growth / max(room, 1.0), -2, 2)
    moves[:n, 7] = np.sign(growth) * np.log1p(np.abs(growth) / (0.001 * rules.bytes_limit))
    moves[:n, 8] = np.log1p(1e2 * np.maximum(gain, 0) / np.maximum(0.01, growth / max(room, 1.0)))
    moves[:n, 9] = fixed.width
    moves[:n, 10] = top > 1e-9
    moves[n, 10] = top > 1e-9
    moves[n, 11] = 1.0
    progress = np.array(
        [
            1 - state.cost / scale,
            1 - best / scale,
            log1p(1e2 * max(0.0, (state.cost - best) / scale)),
            min(room / max(rules.bytes_limit, 1.0), 1.0),
            left,
        ],
        dtype=np.float32,
    )
    return View(chosen.astype(np.float32), live, moves, np.append(legal, True), progress)
