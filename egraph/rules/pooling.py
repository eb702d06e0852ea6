"""Pooling and global averages: moved past convolutions, concatenations and monotone functions, padded, composed."""

from __future__ import annotations

from typing import Any

from .convolution import attributes
from .kernels import POINTWISE
from .language import Example, Guard, Rule, T, W

_MONOTONE: dict[str, dict[str, float]] = {
    "Relu": {}, "Tanh": {}, "Clip": {"min": -0.25, "max": 0.5}, "LeakyRelu": {"alpha": 0.125},
}  # fmt: skip
"""Functions that keep the order of numbers, so the largest one stays the largest; with attributes for the examples."""
_INSIDE = (
    "max(a['pads']) == 0 or (max(a['dilations']) == 1 and all(p < k for p, k in zip(a['pads'], [*a['kernel']] * 2)))"
)
_EMPTY = "a window that holds nothing but padding has no largest element"
_BIASED_MEAN = "a['include_pad'] == 0 or not any(a['pads'])"
_SHIFTED = "counted padding takes part in the mean before the bias, but not behind it"
_POINTWISE = "the convolution must look at each position by itself, and at every one"


def _max(**changes: Any) -> dict[str, Any]:
    return {"kernel": (3, 2), "strides": (2, 1), "pads": (1, 0, 0, 1), "dilations": (1, 1), "ceil": 0, **changes}


def _mean(**changes: Any) -> dict[str, Any]:
    return {**_max(), "include_pad": 1, **changes}


def _monotone(op: str) -> Rule:
    """The largest of the values of a monotone function is its value at the largest."""
    name, more = op.lower(), ", **f" if _MONOTONE[op] else ""
    values: dict[str, Any] = {"f": _MONOTONE[op]} if _MONOTONE[op] else {}
    hollow = {"x": T(1, 2, 5, 5), "a": _max(pads=(3, 0, 0, 0)), **values}
    where = [Guard(_INSIDE, _EMPTY, counter=hollow)]
    if op == "LeakyRelu":
        falling = {"x": T(1, 2, 5, 5), "a": _max(), "f": {"alpha": -0.5}}
        where = [Guard("f['alpha'] > 0", "a falling function turns the order round", counter=falling)]
    examples: list[Example] = [{"x": T(2, 3, 7, 5), "a": _max(ceil=1), **values}]
    return Rule(
        f"max-pool-of-{name}", f"MaxPool({op}(x{more}), **a)", f"{op}(MaxPool(x, **a){more})", where, examples=examples
    )


def _concatenations(op: str, a: dict[str, Any]) -> list[Rule]:
    """Pooling treats channels one by one."""
    name, more = {"MaxPool": "max-pool", "AveragePool": "average-pool"}.get(op, "global-pool"), ", **a" if a else ""
    values = {"a": a} if a else {}
    spatial = Guard(
        "k <= 1",
        "windows reach over the seam of spatial axes",
        counter={"xs": [T(1, 2, 5, 3), T(1, 2, 4, 3)], "k": 2, **values},
    )
    sizes = Guard(
        "x.shape[2:] == y.shape[2:]",
        "the images must have one size",
        counter={"x": T(1, 2, 8, 5), "y": T(1, 3, 9, 5), **values},
    )
    rules = [
        Rule(
            f"{name}-of-concat", f"{op}(Concat(*xs, axis=k){more})", f"Concat(*[{op}(x{more}) for x in xs], axis=k)", [spatial],
            examples=[{"xs": [T(1, 2, 5, 7), T(1, 3, 5, 7), T(1, 1, 5, 7)], "k": 1, **values}],
        ),
        Rule(
            f"concat-of-{name}s", f"Concat({op}(x{more}), {op}(y{more}), axis=1)", f"{op}(Concat(x, y, axis=1){more})", [sizes],
            examples=[{"x": T(1, 2, 5, 7), "y": T(1, 3, 5, 7), **values}],
        ),
    ]  # fmt: skip
    return rules if a else rules[:1]  # a single element of each channel is concatenated for next to nothing


def _past_convolutions(biased: bool) -> list[Rule]:
    """A mean over positions commutes with a convolution that looks at each position by itself."""
    kind, b = ("biased-pointwise-conv", ", b") if biased else ("pointwise-conv", "")
    own: dict[str, Any] = {"b": W(3)} if biased else {}
    seen: dict[str, Any] = {"x": T(1, 2, 5, 7), "w": W(3, 2, 1, 1), **own}
    plain, wide = attributes(), {**seen, "w": W(3, 2, 3, 3)}
    grouped = {"x": T(2, 4, 5, 7), "w": W(6, 2, 1, 1), **({"b": W(6)} if biased else {}), "d": attributes(group=2)}
    const = Guard(
        "w.const and not x.const",
        "only weights are applied elsewhere for nothing",
        "growth",
        {**seen, "w": T(3, 2, 1, 1), "a": _mean(include_pad=0), "d": plain},
    )
    pointwise = Guard(
        POINTWISE.format("w", "d"),
        _POINTWISE,
        counter={**wide, "a": _mean(include_pad=0), "d": attributes(pads=(1, 1, 1, 1))},
    )
    shifted = [Guard(_BIASED_MEAN, _SHIFTED, counter={**seen, "a": _mean(), "d": plain})] if biased else []
    examples: list[Example] = [
        {**seen, "a": _mean(include_pad=0, ceil=1), "d": plain},
        {**grouped, "a": _mean(pads=(0, 0, 0, 0))},
    ]
    return [
        Rule(
            f"average-pool-of-{kind}", f"AveragePool(Conv(x, w{b}, **d), **a)", f"Conv(AveragePool(x, **a), w{b}, **d)",
            [const, pointwise, *shifted], examples=examples, source="DenseNet's transitions; Diverse Branch Block, transform V (Ding et al., 2021)",
        ),
        Rule(
            f"{kind}-of-average-pool", f"Conv(AveragePool(x, **a), w{b}, **d)", f"AveragePool(Conv(x, w{b}, **d), **a)",
            [
                const, pointwise, *shifted,
                Guard("max(a['strides']) == 1", "before a pooling that leaves positions out the convolution has more to do", "growth", {**seen, "a": _mean(include_pad=0), "d": plain}),
            ],
            "range", [{**e, "a": {**e["a"], "strides": (1, 1)}} for e in examples], "Inception's pooled branch becomes a sibling of the others",
        ),
        Rule(
            f"global-pool-of-{kind}", f"GlobalAveragePool(Conv(x, w{b}, **d))", f"Conv(GlobalAveragePool(x), w{b}, **d)",
            [
                Guard("w.const and not x.const", "only weights are applied elsewhere for nothing", "growth", {**seen, "w": T(3, 2, 1, 1), "d": plain}),
                Guard(POINTWISE.format("w", "d"), _POINTWISE, counter={**seen, "d": attributes(strides=(2, 1))}),
            ],
            examples=[{**seen, "d": plain}, grouped], source="classifier heads: the mean of a linear map is the map of the mean",
        ),
    ]  # fmt: skip


RULES = [
    *(_monotone(op) for op in _MONOTONE),
    *(rule for op, a in (("MaxPool", _max()), ("AveragePool", _mean()), ("GlobalAveragePool", {})) for rule in _concatenations(op, a)),
    *(rule for biased in (False, True) for rule in _past_convolutions(biased)),
    Rule(
        "reduce-mean-as-global-pool",
        "ReduceMean(x, axes=k, keepdims=d)",
        "y = GlobalAveragePool(x); root = y if d else Reshape(y, shape=x.shape[:2])",
        where=[
            Guard("x.rank > 2 and tuple(k) == tuple(range(2, x.rank))", "the mean must be over all spatial axes, and them only", counter={"x": T(2, 3, 5, 7), "k": (1, 2), "d": 1}),
            Guard("x.rank > 3", "means over the last axis of sequences are norms", "growth", {"x": T(2, 3, 5), "k": (2,), "d": 1}),
        ],
        examples=[{"x": T(2, 3, 5, 7), "k": (2, 3), "d": 1}, {"x": T(2, 3, 5, 7), "k": (2, 3), "d": 0}],
    ),
    Rule(
        "global-pool-as-reduce-mean",
        "GlobalAveragePool(x)",
        "ReduceMean(x, axes=[*range(2, x.rank)], keepdims=1)",
        examples=[{"x": T(2, 3, 5, 7)}, {"x": T(2, 3, 5)}],
    ),
    Rule(
        "average-pool-as-global-pool",
        "AveragePool(x, **a)",
        "GlobalAveragePool(x)",
        where=[
            Guard("tuple(a['kernel']) == x.shape[2:] and max(a['dilations']) == 1", "one window must cover the whole image", counter={"x": T(1, 2, 5, 7), "a": _mean(kernel=(5, 3), strides=(1, 9), pads=(0, 0, 0, 0))}),
            Guard("not any(a['pads'])", "around padding there is more than one window, or a smaller mean", counter={"x": T(1, 2, 5, 7), "a": _mean(kernel=(5, 7), strides=(9, 9))}),
        ],
        examples=[{"x": T(1, 2, 5, 7), "a": _mean(kernel=(5, 7), pads=(0, 0, 0, 0))}],
    ),
    *(
        Rule(
            f"{name}-identity",
            f"{op}(x, **a)",
            "x",
            where=[
                Guard("all(k == 1 for k in a['kernel'])", "a window must hold one element", counter={"x": T(1, 2, 5, 7), "a": {**a, "kernel": (3, 1), "strides": (1, 1), "pads": (1, 0, 1, 0)}}),
                Guard("all(s == 1 for s in a['strides']) and not any(a['pads'])", "every element must have a window, and nothing else", counter={"x": T(1, 2, 5, 7), "a": {**a, "kernel": (1, 1), "pads": (0, 0, 0, 0)}}),
            ],
            examples=[{"x": T(1, 2, 5, 7), "a": {**a, "kernel": (1, 1), "strides": (1, 1), "pads": (0, 0, 0, 0)}}],
        )
        for name, op, a in (("max-pool", "MaxPool", _max()), ("average-pool", "AveragePool", _mean()))
    ),
    Rule(
        "max-pool-of-max-pool",
        "MaxPool(MaxPool(x, **a), **d)",
        """
k = [i + j - 1 for i, j in zip(a['kernel'], d['kernel'])]
root = MaxPool(x, **{**d, 'kernel': k, 'pads': [i + j for i, j in zip(a['pads'], d['pads'])]})
""",
        where=[
            Guard("all(s == 1 for s in a['strides'])", "windows that leave positions out leave gaps between them", counter={"x": T(1, 2, 9, 9), "a": _max(strides=(4, 1)), "d": _max(strides=(1, 1))}),
            Guard("max(a['dilations']) == 1 and max(d['dilations']) == 1", "dilated windows have gaps", counter={"x": T(1, 2, 9, 9), "a": _max(strides=(1, 1), dilations=(2, 1)), "d": _max()}),
            Guard("a['ceil'] == 0 and d['ceil'] == 0", "windows beyond the padding are dropped or not, once for each pooling", "growth", {"x": T(1, 2, 9, 9), "a": _max(strides=(1, 1)), "d": _max(ceil=1)}),
            Guard("all(p < k for p, k in zip(d['pads'], [*d['kernel']] * 2))", _EMPTY, counter={"x": T(1, 2, 9, 9), "a": _max(strides=(1, 1)), "d": _max(pads=(3, 0, 0, 0))}),
        ],
        examples=[{"x": T(1, 2, 9, 8), "a": _max(strides=(1, 1)), "d": _max()}, {"x": T(1, 2, 7, 7), "a": _max(kernel=(5, 5), strides=(1, 1), pads=(2, 2, 2, 2)), "d": _max(kernel=(5, 5), strides=(1, 1), pads=(2, 2, 2, 2))}],
        source="spatial pyramids in series (YOLOv5)",
    ),
    Rule(
        "sum-of-average-pools",
        "Add(AveragePool(x, **a), AveragePool(y, **a))",
        "AveragePool(Add(x, y), **a)",
        where=[Guard("x.shape == y.shape", "operands of different shapes broadcast in the sum of means but not before them", counter={"x": T(1, 2, 1, 5), "y": T(1, 2, 5, 5), "a": _mean(strides=(1, 1), pads=(1, 0, 1, 0))})],
        tag="range",
        examples=[{"x": T(1, 2, 5, 7), "y": T(1, 2, 5, 7), "a": _mean()}],
        source="NASNet's cells",
    ),
    Rule(
        "pad-into-average-pool",
        "AveragePool(Pad(x, pads=p, value=f), **a)",
        """
n = len(p) // 2
root = AveragePool(x, **{**a, 'pads': [i + j for i, j in zip(a['pads'], [*p[2:n], *p[n + 2:]])], 'include_pad': 1})
""",
        where=[
            Guard("f == 0 and (a['include_pad'] == 1 or not any(a['pads']))", "padding is zero, and all of it counts or none", counter={"x": T(1, 2, 5, 7), "p": (0, 0, 1, 0, 0, 0, 0, 1), "f": 1.0, "a": _mean()}),
            Guard("not any((*p[:2], *p[len(p) // 2 : len(p) // 2 + 2]))", "pooling pads spatial axes only", counter={"x": T(1, 2, 5, 7), "p": (0, 1, 0, 0, 0, 0, 0, 1), "f": 0.0, "a": _mean()}),
            Guard("all(i + j < k for i, j, k in zip(a['pads'], [*p[2 : len(p) // 2], *p[len(p) // 2 + 2 :]], [*a['kernel']] * 2))", "runtimes refuse padding that is no smaller than the window", "growth", {"x": T(1, 2, 5, 7), "p": (0, 0, 3, 0, 0, 0, 0, 1), "f": 0.0, "a": _mean()}),
            Guard("a['ceil'] == 0", "a last window may begin in the padding here and be dropped there", counter={"x": T(1, 2, 4, 4), "p": (0, 0, 0, 0, 0, 0, 1, 0), "f": 0.0, "a": _mean(kernel=(2, 2), strides=(4, 1), pads=(0, 0, 0, 0), ceil=1)}),
        ],
        examples=[{"x": T(1, 2, 5, 7), "p": (0, 0, 1, 0, 0, 0, 2, 0), "f": 0.0, "a": _mean(pads=(1, 0, 0, 1))}, {"x": T(1, 2, 5, 7), "p": (0, 0, 1, 1, 0, 0, 0, 1), "f": 0.0, "a": _mean(pads=(0, 0, 0, 0), include_pad=0)}],
    ),
    Rule(
        "pad-into-max-pool",
        "MaxPool(Pad(x, pads=p, value=f), **a)",
        "n = len(p) // 2; root = MaxPool(x, **{**a, 'pads': [i + j for i, j in zip(a['pads'], [*p[2:n], *p[n + 2:]])]})",
        where=[
            Guard("f == -float('inf')", "only the smallest number is never the largest", counter={"x": T(1, 2, 5, 7), "p": (0, 0, 1, 0, 0, 0, 0, 1), "f": 0.0, "a": _max()}),
            Guard("not any((*p[:2], *p[len(p) // 2 : len(p) // 2 + 2]))", "pooling pads spatial axes only", counter={"x": T(1, 2, 5, 7), "p": (0, 1, 0, 0, 0, 0, 0, 1), "f": float("-inf"), "a": _max()}),
            Guard("all(i + j < k for i, j, k in zip(a['pads'], [*p[2 : len(p) // 2], *p[len(p) // 2 + 2 :]], [*a['kernel']] * 2))", "runtimes refuse padding that is no smaller than the window", "growth", {"x": T(1, 2, 5, 7), "p": (0, 0, 3, 0, 0, 0, 0, 1), "f": float("-inf"), "a": _max()}),
            Guard("a['ceil'] == 0", "a last window may begin in the padding here and be dropped there", counter={"x": T(1, 2, 4, 4), "p": (0, 0, 0, 0, 0, 0, 1, 0), "f": float("-inf"), "a": _max(kernel=(2, 2), strides=(4, 1), pads=(0, 0, 0, 0), ceil=1)}),
        ],
        examples=[{"x": T(1, 2, 5, 7), "p": (0, 0, 1, 0, 0, 0, 2, 0), "f": float("-inf"), "a": _max(pads=(1, 0, 0, 1))}],
    ),
    Rule(
        "zero-pad-into-max-pool",
        "MaxPool(Pad(Relu(x), pads=p, value=f), **a)",
        "n = len(p) // 2; root = MaxPool(Relu(x), **{**a, 'pads': [i + j for i, j in zip(a['pads'], [*p[2:n], *p[n + 2:]])]})",
        where=[
            Guard("f == 0 and not any((*p[:2], *p[len(p) // 2 : len(p) // 2 + 2]))", "zero is the smallest that Relu gives; pooling pads spatial axes only", counter={"x": T(1, 2, 5, 7), "p": (0, 0, 1, 0, 0, 0, 0, 1), "f": 0.5, "a": _max(pads=(0, 0, 0, 0))}),
            Guard("all(i + j < k for i, j, k in zip(a['pads'], [*p[2 : len(p) // 2], *p[len(p) // 2 + 2 :]], [*a['kernel']] * 2)) and max(a['dilations']) == 1", _EMPTY, counter={"x": T(1, 2, 5, 7), "p": (0, 0, 3, 0, 0, 0, 0, 1), "f": 0.0, "a": _max(pads=(0, 0, 0, 0))}),
            Guard("a['ceil'] == 0", "a last window may begin in the padding here and be dropped there", counter={"x": T(1, 2, 4, 4), "p": (0, 0, 0, 0, 0, 0, 1, 0), "f": 0.0, "a": _max(kernel=(2, 2), strides=(4, 1), pads=(0, 0, 0, 0), ceil=1)}),
        ],
        examples=[{"x": T(1, 2, 5, 7), "p": (0, 0, 1, 1, 0, 0, 1, 0), "f": 0.0, "a": _max(pads=(0, 0, 0, 0))}],
        source="Keras' residual networks: ZeroPadding2D in front of MaxPooling2D",
    ),
]  # fmt: skip
