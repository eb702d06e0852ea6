"""Functions that exporters write in pieces: GELU, SiLU, sigmoid, softplus, the hard ones."""

from __future__ import annotations

from math import pi, sqrt

from .language import C, Guard, Rule, T

_ONE = "n.all_equal(1.0) and n.fits(x)"
_ONE_REASON = "one must be added"
_CUBIC = 0.044715
_ROOT = sqrt(2.0 / pi)


def _gelu(name: str, approximate: str, inner: str, constants: dict[str, float], wrong: str) -> list[Rule]:
    """½x·(1 + t) in the four ways to multiply it out; `inner` is t, an odd function of x with these constants.

    The exact function (t = erf) and the approximate one (t = tanh) differ by up to 5·10⁻⁴ and are never exchanged.
    """
    ways = {
        "": f"Mul(Mul(x, h), Add({inner}, n))",
        "-halved-last": f"Mul(Mul(x, Add({inner}, n)), h)",
        "-halved-first": f"Mul(x, Mul(Add({inner}, n), h))",
        "-multiplied-out": f"Mul(x, Add(Mul({inner}, h), n))",
    }
    rules = []
    for way, left in ways.items():
        one = 0.5 if way == "-multiplied-out" else 1.0
        values = {"h": 0.5, "n": one, **constants}
        example = {"x": T(2, 3), **{k: C(v) for k, v in values.items()}}
        rules.append(
            Rule(
                f"{name}{way}",
                left,
                f"Gelu(x, approximate='{approximate}')",
                where=[
                    Guard(
                        " and ".join(f"{k}.near({v!r}) and {k}.fits(x)" for k, v in values.items()),
                        "the constants must be GELU's, as far as their type can tell, and one number each",
                        counter={**example, wrong: C(1.25 * constants[wrong])},
                    ),
                ],
                examples=[example, {**example, "x": T(5, 7, 3)}],
                source="GELU; transformers' gelu, gelu_new and BloomGelu",
            )
        )
    return rules


_ROOT_HALF, _ROOT_TWO = sqrt(0.5), sqrt(2.0)

RULES = [
    *_gelu("gelu", "none", "Erf(Mul(x, r))", {"r": _ROOT_HALF}, "r"),
    *_gelu("gelu-by-quotient", "none", "Erf(Div(x, r))", {"r": _ROOT_TWO}, "r"),
    *_gelu(
        "tanh-gelu",
        "tanh",
        "Tanh(Mul(Add(x, Mul(Mul(Mul(x, x), x), k)), r))",
        {"k": _CUBIC, "r": _ROOT},
        "k",
    ),
    *_gelu(
        "tanh-gelu-factored",
        "tanh",
        "Tanh(Mul(Mul(x, r), Add(Mul(Mul(x, k), x), m)))",
        {"k": _CUBIC, "r": _ROOT, "m": 1.0},
        "k",
    ),
    Rule(
        "swish",
        "Mul(x, Sigmoid(x))",
        "Swish(x, alpha=1.0)",
        examples=[{"x": T(2, 3)}, {"x": T(5, 7, 3)}],
        source="SiLU",
    ),
    Rule(
        "scaled-swish",
        "Mul(x, Sigmoid(Mul(x, c)))",
        "Swish(x, alpha=float(c.uniform))",
        where=[
            Guard("c.uniform is not None", "the inner factor must be one number", counter={"x": T(5, 3), "c": T(3)}),
            Guard("c.fits(x)", "the result must keep the operand's shape", counter={"x": T(1, 3), "c": C([[1.5]] * 2)}),
        ],
        examples=[{"x": T(2, 3), "c": C(1.5)}, {"x": T(5, 7, 3), "c": C([0.25])}],
        source="CLIP's quick GELU has 1.702",
    ),
    Rule(
        "sigmoid-from-exponential",
        "Reciprocal(Add(Exp(Neg(x)), n))",
        "Sigmoid(x)",
        where=[Guard(_ONE, _ONE_REASON, counter={"x": T(2, 3), "n": C(2.0)})],
        examples=[{"x": T(2, 3), "n": C(1.0)}, {"x": T(5, 7, 3), "n": C([1.0])}],
    ),
    Rule(
        "softplus-from-exponential",
        "Log(Add(Exp(x), n))",
        "Softplus(x)",
        where=[Guard(_ONE, _ONE_REASON, counter={"x": T(2, 3), "n": C(2.0)})],
        tag="range",
        examples=[{"x": T(2, 3), "n": C(1.0)}],
    ),
    Rule(
        "hard-sigmoid",
        "Clip(Add(Mul(x, s), b), min=0.0, max=1.0)",
        "HardSigmoid(x, alpha=float(s.uniform), beta=float(b.uniform))",
        where=[
            Guard(
                "s.uniform is not None and b.uniform is not None",
                "slope and offset must be one number each",
                counter={"x": T(5, 3), "s": T(3), "b": C(0.5)},
            ),
            Guard(
                "s.fits(x) and b.fits(x)",
                "the result must keep the operand's shape",
                counter={"x": T(1, 3), "s": C([[0.25]] * 2), "b": C(0.5)},
            ),
        ],
        examples=[{"x": T(2, 3), "s": C(0.25), "b": C(0.5)}, {"x": T(5), "s": C([0.125]), "b": C([0.75])}],
    ),
    Rule(
        "hard-sigmoid-from-clip",
        "Mul(Clip(Add(x, b), min=0.0, max=m), s)",
        "HardSigmoid(x, alpha=float(s.uniform), beta=float(b.uniform) / m)",
        where=[
            Guard(
                "s.uniform is not None and m > 0.0 and s.near(1.0 / m)",
                "the slope must be the reciprocal of the bound",
                counter={"x": T(9), "b": C(2.0), "m": 4.0, "s": C(0.5)},
            ),
            Guard("b.uniform is not None", "the offset must be one number", counter={"x": T(9, 3), "b": T(3), "m": 4.0, "s": C(0.25)}),
            Guard(
                "s.fits(x) and b.fits(x)",
                "the result must keep the operand's shape",
                counter={"x": T(1, 3), "b": C([[2.0]] * 2), "m": 4.0, "s": C(0.25)},
            ),
        ],
        examples=[{"x": T(9), "b": C(2.0), "m": 4.0, "s": C(0.25)}, {"x": T(5, 7), "b": C([3.0]), "m": 8.0, "s": C(0.125)}],
        source="torch: hardsigmoid(x) = relu6(x + 3) / 6",
    ),
    Rule(
        "hard-swish",
        "Mul(x, HardSigmoid(x, alpha=a, beta=b))",
        "HardSwish(x)",
        where=[
            Guard(
                "abs(a - 1.0 / 6.0) < 1e-7",
                "HardSwish's slope is ⅙",
                counter={"x": T(9), "a": 0.2, "b": 0.5},
            ),
            Guard("b == 0.5", "HardSwish's offset is ½", counter={"x": T(9), "a": 1.0 / 6.0, "b": 0.25}),
        ],
        examples=[{"x": T(9), "a": 1.0 / 6.0, "b": 0.5}, {"x": T(5, 7), "a": 1.0 / 6.0, "b": 0.5}],
    ),
    Rule(
        "hard-swish-from-clip",
        "Mul(Mul(x, Clip(Add(x, b), min=0.0, max=6.0)), s)",
        "HardSwish(x)",
        where=[
            Guard("b.all_equal(3.0) and b.fits(x)", "the offset must be 3", counter={"x": T(9), "b": C(2.0), "s": C(1.0 / 6.0)}),
            Guard("s.near(1.0 / 6.0) and s.fits(x)", "the factor must be ⅙", counter={"x": T(9), "b": C(3.0), "s": C(0.25)}),
        ],
        tag="range",
        examples=[{"x": T(9), "b": C(3.0), "s": C(1.0 / 6.0)}, {"x": T(5, 7), "b": C([3.0]), "s": C(1.0 / 6.0)}],
    ),
]  # fmt: skip
