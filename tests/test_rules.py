"""Every rule equals what it says: over the reals, over a finite field, with infinities and in float16; every guard
refuses its counter-example, and must."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from xrlflow.egraph.dimension import dimension
from xrlflow.egraph.fused import CONTRIB
from xrlflow.egraph.graph import GraphBuilder, TensorType, meet
from xrlflow.egraph.operators import IllTyped
from xrlflow.egraph.rules import families, rule_set
from xrlflow.egraph.rules.language import Free, Guard, Rule, T, W
from xrlflow.egraph.saturate import saturate
from xrlflow.egraph.terms import COMMUTATIVE
from xrlflow.lowering import NotEvaluable, instances
from xrlflow.lowering.arithmetic import REALS, Rounded
from xrlflow.lowering.instances import (
    DISTRIBUTIONS,
    Distribution,
    Instance,
    field_proof,
    in_field,
    keeps_infinities,
    mask_safe,
    unbounded,
)

RULES = rule_set()
CASES = [pytest.param(r, e, id=f"{r.name}-{i}") for r in RULES for i, e in enumerate(r.examples)]
GUARDS = [pytest.param(r, g, id=f"{r.name}-{i}") for r in RULES for i, g in enumerate(r.where)]


@pytest.mark.parametrize(("rule", "example"), CASES)
def test_both_sides_are_equal(rule: Rule, example: Any) -> None:
    for distribution in DISTRIBUTIONS:
        instance = Instance(rule, example, distribution)
        assert rule.refusal(instance.names) is None
        assert instance.largest_difference() < 1e-12, distribution


# Over a prime field: exact, so that no tolerance hides a difference

_FORMS = ("", "-halved-last", "-halved-first", "-multiplied-out")
FLOAT_ONLY: dict[str, tuple[str, ...]] = {
    "the function is not negative": ("relu-of-sigmoid", "relu-of-abs", "abs-of-relu"),
    "the order of the bounds, 0 and 6 say": ("clip-of-relu", "clip-of-clip"),
    "the function is increasing": ("max-pool-of-tanh", "max-pool-of-leakyrelu"),
    "what is padded with is below all elements": ("pad-into-max-pool",),
    "the constants √2, √(2/π) and 0.044715, as the dtype rounds them": tuple(
        f"{name}{form}" for name in ("gelu", "gelu-by-quotient", "tanh-gelu", "tanh-gelu-factored") for form in _FORMS
    ),
    "clip(6x, 0, 6) = 6·clip(x, 0, 1)": (
        "hard-sigmoid-from-clip", "hard-swish", "hard-swish-from-clip"
    ),
}  # fmt: skip
"""Properties of real functions and numbers beyond algebra, and the rules that rely on them: float64 alone speaks."""
REAL = frozenset(name for names in FLOAT_ONLY.values() for name in names)


@cache
def chances(name: str) -> list[float | None]:
    """For each example of a rule, the bound on the chance that it holds over the field by accident, if it does."""
    (rule,) = (r for r in RULES if r.name == name)
    return [field_proof(rule, example) for example in rule.examples]


@pytest.mark.parametrize(("rule", "example"), CASES)
def test_both_sides_are_equal_over_a_prime_field(rule: Rule, example: Any) -> None:
    """Where they are, the chance that they would be if they were not equal has a bound, unless numbers are ordered."""
    chance = chances(rule.name)[list(rule.examples).index(example)]
    if rule.name in REAL:
        return
    assert chance is not None, "over the reals only, or wrong: if it relies on a property, FLOAT_ONLY says on which"
    assert chance < 1e-6 or chance == 1.0


def test_most_rules_have_a_bound() -> None:
    """Those without are about Relu, Max, Clip, comparisons and the like."""
    without = [r.name for r in RULES if r.name not in REAL and chances(r.name)[0] == 1.0]
    assert len(without) < 0.25 * len(RULES)


def test_the_list_of_rules_that_only_float64_speaks_for_is_no_longer_than_it_must_be() -> None:
    known = {r.name: r for r in RULES}
    for name in sorted(REAL):
        assert name in known, f"{name} is no rule"
        assert None in chances(name), f"{name} holds over the field"


def test_the_field_tells_what_real_functions_do_from_what_any_function_does() -> None:
    def holds(left: str, right: str) -> bool:
        return in_field(Rule("planted", left, right, examples=[{"x": T(3, 4), "y": T(3, 4)}]))

    assert holds("Exp(Add(x, y))", "Exp(Add(y, x))")
    assert not holds("Exp(Add(x, y))", "Mul(Exp(x), Exp(y))")
    assert not holds("Relu(Add(x, y))", "Add(Relu(x), Relu(y))")
    assert not holds("Add(x, y)", "Add(x, Mul(y, constant(np.array(1 + 2.0**-20), y.dtype)))")


# Infinities: masks are made of them

_ORDER = "inf - inf: an infinite element's products are summed in another order"
_GROWN = "inf · 0: an infinite value of the image meets the zeros that the kernel grows by"
INFINITE = {
    "enlarge-kernel": _GROWN,
    "enlarge-biased-kernel": _GROWN,
    "matmul-later-product-first": _ORDER,
    "matmul-earlier-product-first": _ORDER,
    "matmul-of-residual": _ORDER,
    "matmul-of-diffused": _ORDER,
}
"""Rules whose right side may be NaN, or finite, where the left side is not, and why: nothing for masks."""


@pytest.mark.parametrize(("rule", "example"), CASES)
def test_infinities_stay_what_they_are(rule: Rule, example: Any) -> None:
    """-inf in one input, then ±inf; a mask is one operand of a sum."""
    for name in unbounded(example):
        for distribution in instances.INFINITE:
            kept = keeps_infinities(rule, example, name, distribution)
            assert kept or rule.name in INFINITE, f"{name} is {distribution}"


def test_the_list_of_rules_that_infinities_break_is_no_longer_than_it_must_be() -> None:
    known = {r.name: r for r in RULES}
    for name in INFINITE:
        assert not mask_safe(known[name]), name


# float16: tags say which rules stay in range

HALF = Rounded("float16")
FEW = 3


def in_half(rule: Rule, example: Any, distribution: Distribution, seed: int) -> Iterator[tuple[Any, Any, Any]]:
    """For each root, where the left side is finite in float16 and in truth: its float16, the right's, the truth."""
    instance = Instance(rule, example, distribution, seed)
    for (left, right), (truth, _) in zip(instance.sides(HALF), instance.sides(), strict=True):
        if left.is_floating_point():
            finite = left.isfinite() & truth.isfinite()
            yield left[finite], right[finite], truth[finite]


def only_in_float32(rule: Rule) -> bool:
    return any(q.op in CONTRIB for p in rule.patterns for q in p.walk())


@pytest.mark.parametrize(("rule", "example"), [c for c in CASES if c.values[0].tag == "exact"])  # type: ignore[attr-defined, union-attr]
def test_exact_rules_stay_finite_in_float16(rule: Rule, example: Any) -> None:
    """Inputs are of every magnitude up to 60,000, subnormals among them; weights are below 256."""
    if only_in_float32(rule):
        pytest.skip("what ONNX Runtime alone has, it has in float32")
    for distribution, seeds in (("full", range(FEW)), ("wide", range(1))):
        for seed in seeds:
            for _, right, _ in in_half(rule, example, distribution, seed):  # type: ignore[arg-type]
                assert right.isfinite().all(), f"{distribution} {seed}: it is no exact rule but a range one"


@pytest.mark.parametrize(("rule", "example"), [c for c in CASES if c.values[0].tag == "exact"])  # type: ignore[attr-defined, union-attr]
def test_exact_rules_are_as_accurate_in_float16(rule: Rule, example: Any) -> None:
    """Each side rounds once an operator; numbers about 1, errors relative to the largest of the result.

    A right side of up to a few operators more may err a few roundings more: four times the left side's error, and four
    half units in the last place where that is smaller.
    """
    for left, right, truth in in_half(rule, example, "normal", 0):
        if not left.numel() or not right.isfinite().all():
            continue
        scale = truth.abs().max().clamp_min(2.0**-14)
        own, other = ((v - truth).abs().max() / scale for v in (left, right))
        assert other <= 4 * max(float(own), 2.0**-11)


_INSIDE = "what it holds inside is an operator's own affair: kernels may keep it in float16"
_BEFORE = "in float16 the left side overflows before the right side does"
HARMLESS = {
    **dict.fromkeys(
        ("attention-of-scaled-queries", "attention-of-scaled-keys", "masked-attention-of-scaled-queries",
         "masked-attention-of-scaled-keys", "rms-norm", "rms-norm-by-power", "layer-norm", "sibling-layer-norms",
         "sibling-rms-norms", "matmul-scaled", "matmul-scaled-left", "matmul-scaled-right", "fused-matmul-scaled",
         "fused-matmul-scaled-left", "fused-matmul-scaled-right"), _INSIDE),
    **dict.fromkeys(
        ("multiply-reciprocal", "softplus-from-exponential", "hard-swish-from-clip"), _BEFORE),
    **dict.fromkeys(
        ("residual-into-conv", "residual-into-biased-conv", "sum-of-convs-over-one-image",
         "sum-of-biased-convs-over-one-image"), "weights are added, which here are below 256"),
    "sum-with-own-product": "one is added to a factor: only the last number below the limit overflows",
}  # fmt: skip
"""Rules tagged `range` for which no operator of the right side overflows where the left side does not."""


def stretched(value: Any, rng: np.random.Generator) -> Any:
    """The example with its given constants scaled by powers of two: the class of constants that the rule is about."""
    if isinstance(value, list):
        return [stretched(v, rng) for v in value]
    if not isinstance(value, Free) or value.values is None or "float" not in value.type.dtype:
        return value
    factor = 2.0 ** int(rng.integers(-22, 16))
    return replace(value, values=tuple(float(np.clip(np.float16(v * factor), -6e4, 6e4)) for v in value.values))


@pytest.mark.parametrize("rule", [pytest.param(r, id=r.name) for r in RULES if r.tag == "range"])
@pytest.mark.filterwarnings("ignore:overflow")
def test_range_rules_do_overflow_in_float16(rule: Rule) -> None:
    """On some input, for some constants that the guards accept; else they would be exact."""
    assert overflows(rule) != (rule.name in HARMLESS)


def overflows(rule: Rule) -> bool:
    rng = np.random.default_rng(0)
    for seed in range(48):
        for example in rule.examples:
            case = {n: stretched(v, rng) for n, v in example.items()} if seed % 2 else example
            distribution: Distribution = "wide" if seed % 4 > 1 else "full"
            if seed % 2 and rule.refusal(Instance(rule, case, distribution, seed).names) is not None:
                continue
            if any(not right.isfinite().all() for _, right, _ in in_half(rule, case, distribution, seed)):
                return True
    return False


@pytest.mark.parametrize(("rule", "example"), CASES)
def test_saturation_reaches_the_right_side(rule: Rule, example: Any) -> None:
    space = saturate(Instance(rule, example).graph(), [rule], max_iterations=3)
    assert space.report.fired.get(rule.name, 0) > 0
    used = {name for i in range(space.n_nodes) for name in space.rules[i]}
    assert used == {rule.name}


@pytest.mark.parametrize(("rule", "guard"), GUARDS)
def test_guard_refuses_its_counter_example(rule: Rule, guard: Guard) -> None:
    assert guard.counter is not None, "every guard shows what it keeps out"
    others = Rule(rule.name, rule.lhs, rule.rhs, where=[guard])
    assert others.refusal(Instance(rule, guard.counter).names) is guard
    if guard.kind == "sound":
        worst = max(Instance(rule, guard.counter, d).largest_difference() for d in DISTRIBUTIONS)
        assert worst > 1e-6, "the rule is right without this guard"


@pytest.mark.parametrize(("rule", "guard"), GUARDS)
def test_saturation_refuses_with_the_reason(rule: Rule, guard: Guard) -> None:
    alone = Rule(rule.name, rule.lhs, rule.rhs, where=[guard])
    report = saturate(Instance(rule, guard.counter).graph(), [alone], max_iterations=1).report
    refused = report.refused.get(rule.name, {})
    assert guard.reason in refused or (not refused and reordered(rule, guard))
    assert not report.fired or refused


def reordered(rule: Rule, guard: Guard) -> bool:
    """Whether the normal form of sums and products (constants last, else by age) takes the counter-example apart."""
    instance = Instance(rule, guard.counter)
    keys = [k for k in range(len(instance.terms)) if instance.terms.ops[k] in COMMUTATIVE]
    return any(instance.terms.ops[instance.terms.operands[k][0]] == "Input" for k in keys)


def test_every_rule_has_examples_and_a_family() -> None:
    for family, rules in families().items():
        for rule in rules:
            assert rule.examples, rule.name
            assert rule.family == family


def test_rule_set_selects_and_excludes() -> None:
    assert {r.family for r in rule_set(["matmul"])} == {"matmul"}
    assert "merge-sibling-matmuls" not in {r.name for r in rule_set(without=["merge-sibling-matmuls"])}
    assert not any(r.family == "layout" for r in rule_set(without=["layout"]))
    with pytest.raises(KeyError, match="no-such-rule"):
        rule_set(without=["no-such-rule"])


def test_an_unsound_rule_is_caught_by_the_same_check() -> None:
    wrong = Rule("wrong", "Relu(Add(x, y))", "Add(Relu(x), Relu(y))", examples=[{"x": T(3, 4), "y": T(3, 4)}])
    assert Instance(wrong, wrong.examples[0]).largest_difference() > 1e-3


def test_a_left_side_must_speak_of_core_operators() -> None:
    with pytest.raises(ValueError, match="NoSuchOperator"):
        _ = Rule("bad", "NoSuchOperator(x)", "x").patterns


# Symbolic extents: what a rule accepts must be right for every binding


def symbolic(rule: Rule, example: Any, extents: tuple[int, ...]) -> Any:
    """The example with symbols for these extents, in inputs and in attributes that hold shapes."""
    shaped = {name for p in rule.patterns for q in p.walk() for a, name in q.named if a == "shape"}

    def change(name: str, value: Any) -> Any:
        if isinstance(value, list) and value and isinstance(value[0], Free):
            return [change(name, v) for v in value]
        if isinstance(value, Free) and value.kind == "input":
            return Free(
                TensorType([f"n{d}" if d in extents else d for d in value.type.shape], value.type.dtype), "input"
            )
        if name in shaped:
            return tuple(dimension(f"n{d}") if d in extents else d for d in value)
        return value

    return {name: change(name, value) for name, value in example.items()}


CONCRETE = {"batch-norm-of-concat"}
"""Rules that refuse every symbolic extent of their examples: those count channels."""


def inputs_of(example: Any) -> list[Free]:
    every = [v for value in example.values() for v in (value if isinstance(value, list) else [value])]
    return [v for v in every if isinstance(v, Free) and v.kind == "input"]


def fires_symbolically(rule: Rule, example: Any) -> tuple[int, int]:
    """How many ways of making extents symbolic give a left side, and how many of these the rule accepts.

    What it accepts is checked under several bindings.
    """
    extents = sorted({d for free in inputs_of(example) for d in free.type.shape})
    built = accepted = 0
    for chosen in [(d,) for d in extents] + [tuple(extents)]:
        case = symbolic(rule, example, chosen)
        bindings = [{f"n{d}": d for d in chosen}, *({f"n{d}": k for d in chosen} for k in (1, 2, 4)),
                    {f"n{d}": 3 + i for i, d in enumerate(chosen)}]  # fmt: skip
        try:
            instance = Instance(rule, case, binding=bindings[0])
            built += 1
            if rule.refusal(instance.names) is not None:
                continue
            instance.right()
        except (IllTyped, TypeError):
            continue
        for binding in bindings:
            instance = Instance(rule, case, binding=binding)
            right = instance.right()
            for name, left in instance.roots().items():
                meet(left.type, right[name].type)
                try:
                    (a,) = instance.evaluate([left.key])
                except NotEvaluable:  # an extent too small for a window: not a binding that the model has
                    continue
                (b,) = instance.evaluate([right[name].key])
                assert a.shape == b.shape == left.type.at(binding).shape, (rule.name, chosen, binding)
                assert REALS.difference(a, b) < 1e-12, (rule.name, chosen, binding)
        accepted += 1
    return built, accepted


@cache
def symbolic_counts(name: str) -> tuple[int, int]:
    """How many symbolic left sides a rule's examples give, and how many of these it accepts."""
    (rule,) = (r for r in RULES if r.name == name)
    found = [fires_symbolically(rule, example) for example in rule.examples]
    return sum(built for built, _ in found), sum(accepted for _, accepted in found)


@pytest.mark.parametrize("name", [r.name for r in RULES])
def test_what_a_rule_accepts_of_symbolic_extents_is_right_for_every_binding(name: str) -> None:
    built, accepted = symbolic_counts(name)
    assert accepted or not built or name in CONCRETE, "it refuses every symbolic extent of its examples"


@pytest.mark.parametrize(("rule", "guard"), GUARDS)
def test_guards_hold_for_every_binding(rule: Rule, guard: Guard) -> None:
    fires_symbolically(rule, guard.counter)


def test_most_rules_work_on_symbolic_extents() -> None:
    assert sum(symbolic_counts(r.name)[1] > 0 for r in RULES) > 0.8 * len(RULES)


def test_siblings_merge_over_symbolic_extents() -> None:
    builder = GraphBuilder()
    x = builder.input("x", TensorType(("n", 4), "float32"))
    ys = [builder.op("MatMul", x, builder.weight(np.eye(4, dtype=np.float32) * k)) for k in (2, 3)]
    space = saturate(builder.build({"a": ys[0], "b": ys[1]}))
    assert space.report.fired == {"merge-sibling-matmuls": 1}
    assert W(2).kind == "weight"
