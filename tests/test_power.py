"""The power of verification: a small error planted into any test model is found.

An error may pass only if it hardly shows: the float64 reference, on the inputs that verification ran, changes by less
than twice the tolerances. So do biases of keys (softmax takes them out) and roundings of weights that matter little.
Weights whose error of 1 % may pass are listed in `HIDDEN`, with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from xrlflow import zoo
from xrlflow.lowering import load, random_inputs, verify
from xrlflow.lowering.bindings import candidates
from xrlflow.lowering.comparison import TOLERANCES
from xrlflow.lowering.inputs import DISTRIBUTIONS
from xrlflow.lowering.reference import Reference

Change = Callable[[np.ndarray], np.ndarray]

ERRORS: dict[str, Change] = {
    "1 % of all": lambda a: a * 1.01,
    "1 % of each": lambda a: a * (1 + 0.01 * np.random.default_rng(0).choice((-1, 1), a.shape)),
    "rounded to float16": lambda a: a.astype(np.float16),
    "dropped": np.zeros_like,
    "shuffled": lambda a: np.roll(a.reshape(-1), 1).reshape(a.shape),
}

HIDDEN = {
    "bert-tiny": {"layer.0/attention/key/bias"},  # the same is added to all scores of a query, so softmax drops it
    "vit-tiny": {"layer.0/attention/key/bias"},
}

TINY = [name for name in zoo.MODELS if name.endswith("-tiny")]
LARGE = ["squeezenet", "shufflenet", "inception-v1", "inception-v2", "resnet50", "densenet121", "inception-block"]
EXPORTS = Path(__file__).parent.parent / ".build" / "models"
CACHED = [p for p in sorted(EXPORTS.glob("*-*.onnx")) if "float16" not in p.name][:24]
"""Exports that benchmarks or other tests left behind, in float32."""


def planted(proto: onnx.ModelProto, name: str, change: Change) -> onnx.ModelProto:
    """The model with one weight changed."""
    out = onnx.ModelProto()
    out.CopyFrom(proto)
    tensor = next(t for t in out.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(array)).astype(array.dtype), name))
    return out


def weights(proto: onnx.ModelProto, count: int) -> list[str]:
    """Names of some floating-point weights, from the first to the last."""
    found = []
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f" and array.size > 1 and np.abs(array).max() > 0:
            found.append(tensor.name)
    return [found[i] for i in np.unique(np.linspace(0, len(found) - 1, count).astype(int))]


def visible(proto: onnx.ModelProto, other: onnx.ModelProto, samples: int = 3) -> float:
    """How much the float64 reference changes on the inputs of `verify`, in units of what is tolerated."""
    one, two = Reference(load(proto)), Reference(load(other))
    relative, absolute = TOLERANCES["float32"]
    bindings = list(candidates(one.graph))[:samples] or [{}]
    worst = 0.0
    for k in range(samples):
        inputs = random_inputs(one.graph, k, bindings[k % len(bindings)], DISTRIBUTIONS[k % len(DISTRIBUTIONS)])
        for a, b in zip(one.run(inputs), two.run(inputs), strict=True):
            scale = np.abs(a).max()
            worst = max(worst, float((np.abs(a - b) / (relative * np.abs(a) + absolute * scale + 1e-30)).max()))
    return worst


def missed(proto: onnx.ModelProto, names: list[str], errors: dict[str, Change]) -> dict[tuple[str, str], float]:
    """The planted errors that verification passes, and how visible each is."""
    found = {}
    for name in names:
        for error, change in errors.items():
            other = planted(proto, name, change)
            result = verify(proto, other)
            assert result.verdict in ("passed", "failed"), result
            if result.passed:
                found[name, error] = visible(proto, other)
    return found


def slowly(model: str) -> object:
    """The name as a parameter; with more than 60 operators only for the slow run."""
    return pytest.param(model, marks=pytest.mark.slow if zoo.tell(model).operators > 60 else ())


@pytest.mark.parametrize("model", map(slowly, TINY))
def test_errors_in_small_models_are_found(model: str) -> None:
    proto = zoo.build(model)
    hidden = HIDDEN.get(model, set())
    found = missed(proto, [*weights(proto, 4), *sorted(hidden)], ERRORS)
    assert all(size < 2 for size in found.values()), found
    assert {name for name, error in found if error == "1 % of all"} == hidden


@pytest.mark.slow
@pytest.mark.parametrize("model", [*LARGE, *CACHED], ids=lambda m: m if isinstance(m, str) else m.stem)
def test_errors_in_large_models_are_found(model: str | Path) -> None:
    proto = zoo.build(model) if isinstance(model, str) else onnx.load(model)
    found = missed(proto, weights(proto, 4), {k: ERRORS[k] for k in ("1 % of all", "1 % of each", "dropped")})
    assert all(size < 2 for size in found.values()), found


@pytest.mark.parametrize("model", TINY)
def test_an_equal_model_passes_with_no_difference(model: str) -> None:
    proto = zoo.build(model)
    assert verify(proto, proto).max_abs == 0


def test_swapped_weights_are_found() -> None:
    proto = zoo.build("bert-tiny")
    tensors = {t.name: t for t in proto.graph.initializer}
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, tensor in tensors.items():
        if len(tensor.dims) == 2 and numpy_helper.to_array(tensor).dtype.kind == "f":
            by_shape.setdefault(tuple(tensor.dims), []).append(name)
    pairs = [(names[k], names[k + 1]) for names in by_shape.values() for k in range(len(names) - 1)]
    assert len(pairs) >= 3
    for first, second in pairs:
        one, two = (numpy_helper.to_array(tensors[n]) for n in (first, second))
        other = planted(planted(proto, first, lambda a, two=two: two), second, lambda a, one=one: one)
        assert verify(proto, other).verdict == "failed", (first, second)


AXES = ("Softmax", "Concat", "ReduceMean", "LayerNormalization", "Gather", "Split", "Transpose")


@pytest.mark.parametrize("model", ["bert-tiny", "llama-tiny", "inception-tiny", "squeezenet-tiny"])
def test_a_wrong_axis_is_found(model: str) -> None:
    proto = zoo.build(model)
    tried = 0
    for k, node in enumerate(proto.graph.node):
        attributes = {a.name: a for a in node.attribute}
        if node.op_type not in AXES or not ({"axis", "axes", "perm"} & attributes.keys()):
            continue
        other = onnx.ModelProto()
        other.CopyFrom(proto)
        changed = next(a for a in other.graph.node[k].attribute if a.name in ("axis", "axes", "perm"))
        if changed.name == "perm":
            changed.ints[-1], changed.ints[-2] = changed.ints[-2], changed.ints[-1]
        elif changed.name == "axes":
            changed.ints[0] -= 1
        else:
            changed.i = changed.i - 1
        del other.graph.value_info[:]
        for output in other.graph.output:
            output.type.tensor_type.ClearField("shape")
        result = verify(proto, other)
        tried += 1
        assert result.verdict == "failed", (node.op_type, node.name)
        if tried == 6:
            break
    assert tried


def test_an_error_in_one_element_that_shows_is_found() -> None:
    proto = zoo.build("mlp-tower-tiny")
    for name in weights(proto, 3):
        array = next(numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == name)
        place = np.unravel_index(np.argmax(np.abs(array)), array.shape)

        def change(a: np.ndarray, place: tuple[np.intp, ...] = place) -> np.ndarray:
            out = a.copy()
            out[place] *= 1.01
            return out

        other = planted(proto, name, change)
        assert verify(proto, other).verdict == "failed" or visible(proto, other) < 2


@pytest.mark.slow
def test_what_the_optimiser_makes_of_the_cached_exports_passes() -> None:
    import xrlflow

    for path in CACHED:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        result = xrlflow.optimize(path, method="saturation", target="roofline:epyc-1t", max_steps=300)
        assert result.verification is None or result.verification.passed, (path.name, result.verification)
