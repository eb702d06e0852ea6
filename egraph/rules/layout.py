"""Transposes, reshapes, concatenations and splits: cancelled, flattened, and moved through functions of one operand."""

from __future__ import annotations

from ..pointwise import PLAIN
from .language import Guard, Rule, T

_PLAIN = (*PLAIN, "IsNaN")
_PARAMETERS: dict[str, dict[str, object]] = {
    "Gelu": {"approximate": "none"}, "Swish": {"alpha": 1.0}, "LeakyRelu": {"alpha": 0.1}, "Elu": {"alpha": 0.5},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5}, "Clip": {"min": -1.0, "max": 0.5}, "Cast": {"to": "float64"},
}  # fmt: skip
"""Functions with attributes, and values of them for the examples."""
_AXES = "work is done in the form with more axes, which other rules know best: in both, every operator is made twice"
_BACK = ("Relu", "Sigmoid", "Tanh", "Erf")
"""Functions through which transposes also move towards the operand, where they may fold or cancel."""


def _through(op: str) -> list[Rule]:
    """An element-wise function commutes with anything that only moves elements; movements gather behind it."""
    name, more = op.lower(), ", **a" if op in _PARAMETERS else ""
    values = {"a": _PARAMETERS[op]} if op in _PARAMETERS else {}
    rules = [
        Rule(
            f"{name}-transpose",
            f"{op}(Transpose(x, perm=p){more})",
            f"Transpose({op}(x{more}), perm=p)",
            examples=[{"x": T(2, 3, 5), "p": (2, 0, 1), **values}],
        ),
        Rule(
            f"{name}-reshape",
            f"{op}(Reshape(x, shape=n){more})",
            f"Reshape({op}(x{more}), shape=n)",
            where=[Guard("x.rank >= len(n)", _AXES, kind="growth", counter={"x": T(6, 5), "n": (2, 3, 5), **values})],
            examples=[{"x": T(2, 3, 5), "n": (5, 6), **values}],
        ),
    ]
    if op in _BACK:
        rules.append(
            Rule(
                f"transpose-{name}",
                f"Transpose({op}(x), perm=p)",
                f"{op}(Transpose(x, perm=p))",
                examples=[{"x": T(2, 3, 5), "p": (1, 2, 0)}],
            )
        )
    return rules


RULES = [
    Rule(
        "transpose-transpose",
        "Transpose(Transpose(x, perm=p), perm=q)",
        "Transpose(x, perm=composed(p, q))",
        examples=[{"x": T(2, 3, 5), "p": (2, 0, 1), "q": (0, 2, 1)}, {"x": T(2, 3), "p": (1, 0), "q": (1, 0)}],
    ),
    Rule(
        "transpose-identity",
        "Transpose(x, perm=p)",
        "x",
        where=[
            Guard(
                "list(p) == sorted(p)",
                "the permutation must move nothing",
                counter={"x": T(3, 3), "p": (1, 0)},
            )
        ],
        examples=[{"x": T(2, 3, 5), "p": (0, 1, 2)}],
    ),
    Rule(
        "reshape-reshape",
        "Reshape(Reshape(x, shape=m), shape=n)",
        "Reshape(x, shape=n)",
        examples=[
            {"x": T(2, 6), "m": (3, 4), "n": (12, 1)},
            {"x": T(4, 3), "m": (12,), "n": (4, 3)},
            {"x": T(5, 6), "m": (5, 2, 3), "n": (5, 3, 2)},
        ],
    ),
    Rule(
        "reshape-identity",
        "Reshape(x, shape=n)",
        "x",
        where=[
            Guard("tuple(n) == x.shape", "the shape must stay the same", counter={"x": T(2, 3), "n": (3, 2)}),
        ],
        examples=[{"x": T(2, 3, 5), "n": (2, 3, 5)}],
    ),
    Rule(
        "transpose-as-reshape",
        "Transpose(x, perm=p)",
        "Reshape(x, shape=[x.shape[i] for i in p])",
        where=[
            Guard(
                "[i for i in p if not one(x.shape[i])] == sorted(i for i in p if not one(x.shape[i]))",
                "only axes of extent 1 may move, else elements change their order",
                counter={"x": T(1, 3, 3), "p": (0, 2, 1)},
            )
        ],
        examples=[{"x": T(1, 3, 5), "p": (1, 0, 2)}, {"x": T(2, 1, 1, 7), "p": (0, 3, 1, 2)}],
    ),
    *(rule for op in (*_PLAIN, *_PARAMETERS) for rule in _through(op)),
]
