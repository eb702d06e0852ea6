"""ONNX's own cases for every operator go through: read and written, and read, saturated, extracted and written.

Each case of `onnx.backend.test.case.node` is a small model with inputs and expected outputs. It has one of these
outcomes, and `data/backend_cases.tsv` lists all that do not pass:

    pass              ONNX Runtime gives the expected outputs, for the input and for what we write
    runtime differs   it runs the input but gives other outputs; for what we write it gives the same ones
    runtime cannot    it does not run the input, for the reason given; where ONNX's reference implementation gives the
                      expected outputs, it also does for what we write
    refused           `load` refuses the model in one line

`python tests/test_backend_cases.py` writes the list anew.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from xrlflow import saturate
from xrlflow.errors import UserError
from xrlflow.lowering import load, to_onnx
from xrlflow.lowering.onnx_forms import meant_for
from xrlflow.pipeline import extract

ort.set_default_logger_severity(4)
TABLE = Path(__file__).parent / "data" / "backend_cases.tsv"
CHUNKS = 32
STEP = 40
FUSED_OPSET = 24
"""An opset that ONNX Runtime has kernels for and that has Attention, RMSNormalization and RotaryEmbedding."""
PLAIN = frozenset((
    "FLOAT", "DOUBLE", "FLOAT16", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "BOOL",
    "STRING",
))  # fmt: skip
"""Element types that go in and out of ONNX Runtime as numpy arrays."""


class Case(NamedTuple):
    name: str
    model: ModelProto
    inputs: list[Any]
    outputs: list[Any]
    rtol: float
    atol: float


@cache
def cases() -> list[Case]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    assert all(len(c.data_sets) == 1 for c in found)
    return [Case(c.name, c.model, *map(list, c.data_sets[0]), c.rtol, c.atol) for c in found]


@cache
def table() -> dict[str, str]:
    lines = [line.split("\t") for line in TABLE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return dict(lines)


def versions() -> str:
    return f"# onnx {onnx.__version__}, onnxruntime {ort.__version__}"


def recorded() -> bool:
    """Whether the table was made with the installed versions; with others the set of cases and kernels differs."""
    return TABLE.read_text(encoding="utf-8").startswith(versions() + "\n")


def plain(kind: onnx.TypeProto) -> bool:
    """Whether values of this type can be given to and taken from the runtime as they are."""
    return not kind.HasField("tensor_type") or TensorProto.DataType.Name(kind.tensor_type.elem_type) in PLAIN


def run(model: ModelProto, inputs: list[Any]) -> list[Any]:
    """The model's outputs by ONNX Runtime. Narrow inputs are given as initializers and narrow outputs are cast."""
    adapted, feeds, fed = ModelProto(), {}, []
    adapted.CopyFrom(model)
    for info, value in zip(model.graph.input, inputs, strict=False):
        if plain(info.type):
            feeds[info.name] = array(value) if isinstance(value, (TensorProto, np.generic)) else value
            fed.append(info)
        else:
            tensor = TensorProto()
            tensor.CopyFrom(value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value)))
            tensor.name = info.name
            adapted.graph.initializer.append(tensor)
    del adapted.graph.input[:]
    adapted.graph.input.extend([*fed, *model.graph.input[len(inputs) :]])
    for info in adapted.graph.output:
        if not plain(info.type):
            seen = f"{info.name}__seen"
            adapted.graph.node.append(helper.make_node("Cast", [info.name], [seen], to=TensorProto.FLOAT))
            info.name, info.type.tensor_type.elem_type = seen, TensorProto.FLOAT
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(adapted.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def reference(model: ModelProto, inputs: list[Any]) -> list[Any]:
    """The model's outputs by ONNX's reference implementation."""
    from onnx.reference import ReferenceEvaluator

    names = [i.name for i in model.graph.input]
    feeds = {n: array(v) if isinstance(v, TensorProto) else v for n, v in zip(names, inputs, strict=False)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(ReferenceEvaluator(model).run(None, feeds))


def array(value: Any) -> np.ndarray:
    return np.asarray(numpy_helper.to_array(value) if isinstance(value, TensorProto) else value)


def same(a: Any, b: Any, case: Case) -> bool:
    if a is None or b is None:
        return a is b
    if isinstance(a, list) or isinstance(b, list):
        both = isinstance(a, list) and isinstance(b, list) and len(a) == len(b)
        return both and all(same(x, y, case) for x, y in zip(a, b, strict=True))
    a, b = array(a), array(b)
    if a.shape != b.shape:
        return False
    if {a.dtype.kind, b.dtype.kind} & set("OUS"):
        return a.astype(str).tolist() == b.astype(str).tolist()
    if a.dtype != b.dtype and a.dtype.kind in "fiub" and b.dtype.kind in "fiub" and a.dtype != np.float32:
        return False  # narrow types come as float32
    kind = np.complex128 if "c" in (a.dtype.kind, b.dtype.kind) else np.float64
    return np.allclose(a.astype(kind), b.astype(kind), rtol=case.rtol, atol=case.atol, equal_nan=True)


def equal(found: list[Any], wanted: list[Any], case: Case) -> bool:
    return len(found) == len(wanted) and all(same(a, b, case) for a, b in zip(found, wanted, strict=True))


def valid(model: ModelProto) -> tuple[bool, bool]:
    """Whether the checker passes, and strict shape inference."""
    verdicts = []
    for check in (
        lambda: onnx.checker.check_model(model, full_check=True),
        lambda: onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True),
    ):
        try:
            check()
            verdicts.append(True)
        except Exception:  # noqa: BLE001 (each has its own)
            verdicts.append(False)
    return verdicts[0], verdicts[1]


def reason(error: Exception) -> str:
    """Why the runtime does not run a model, in few words."""
    text = str(error)
    known = {
        "locale": "locale",
        "NOT_IMPLEMENTED": "no kernel for these types",
        "is not a registered function/op": "unknown operator",
        "Exception during initialization": "attribute not supported",
        "Non-zero status code": "operator fails",
    }
    return next((words for part, words in known.items() if part in text), text.splitlines()[0])


def transformed(model: ModelProto, optimise: bool, runtime: bool = False) -> ModelProto:
    """What we write. `runtime`: for ONNX Runtime, with its own operators, and in an opset that has the fused ones."""
    graph = load(model)
    if runtime:
        with contextlib.suppress(UserError):  # not every operator has adapters
            graph = load(model, opset=max(graph.source.opset, FUSED_OPSET))
        graph = meant_for(graph, "onnxruntime")
    if optimise:
        space = saturate(graph, max_enodes=2000, max_iterations=3)
        found = extract(space, "climb", target="roofline:epyc-1t", seconds=None, steps=50)
        graph = space.to_graph(found.selection)
    return ModelProto.FromString(to_onnx(graph).SerializeToString())


def check_form(model: ModelProto, written: ModelProto, runtime: bool = False) -> None:
    """Versions and interface are kept, and what was valid stays so."""
    kept = list(written.opset_import)[: len(model.opset_import)]
    domains = {"", *(o.domain for o in model.opset_import)}
    if runtime:
        domains.add("com.microsoft")
    else:
        assert written.ir_version == model.ir_version
        assert kept == list(model.opset_import)
    assert {o.domain for o in written.opset_import} <= domains
    assert list(written.graph.input) == list(model.graph.input)
    assert list(written.graph.output) == list(model.graph.output)
    before, after = valid(model), valid(written)
    assert after[0] or not before[0], "the checker does not pass any more"
    assert after[1] or not before[1], "strict shape inference does not pass any more"


def outcome(case: Case, optimise: bool, runtime: bool = False) -> str:
    """What becomes of a case. Raises `AssertionError` for whatever is wrong."""
    try:
        written = transformed(case.model, optimise, runtime)
    except UserError as error:
        return f"refused: {error}"
    check_form(case.model, written, runtime)
    try:
        found = run(case.model, case.inputs)
    except Exception as error:  # noqa: BLE001 (ONNX Runtime raises a type for each of its codes)
        try:
            known = equal(reference(case.model, case.inputs), case.outputs, case)
        except Exception:  # noqa: BLE001 (the reference implementation lacks operators too)
            known = False
        if known:
            assert equal(reference(written, case.inputs), case.outputs, case), "the reference gives other outputs"
        return f"runtime cannot: {reason(error)}"
    if equal(found, case.outputs, case):
        assert equal(run(written, case.inputs), case.outputs, case), "what was written gives other outputs"
        return "pass"
    assert equal(run(written, case.inputs), found, case), "what was written gives other outputs than the input"
    return "runtime differs"


def outcomes(chunk: int, optimise: bool, runtime: bool = False) -> tuple[dict[str, str], list[str]]:
    """The outcomes of every `CHUNKS`th case, and what went wrong."""
    found, wrong = {}, []
    for case in cases()[chunk::CHUNKS]:
        try:
            found[case.name] = outcome(case, optimise, runtime)
        except Exception as error:  # noqa: BLE001 (all that is wrong in a chunk is told at once)
            wrong.append(f"{case.name}: {type(error).__name__}: {error}")
    return found, wrong


def judge(chunk: int, optimise: bool, runtime: bool = False) -> None:
    found, wrong = outcomes(chunk, optimise, runtime)
    assert not wrong
    if recorded():
        listed = {name: table().get(name, "pass") for name in found}
        assert {n: o for n, o in found.items() if o not in listed[n].split(" | ")} == {}
    else:
        assert {n: o for n, o in found.items() if o.startswith("refused") and "opset" not in o} == {}


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_cases_that_are_read_and_written_give_their_outputs(chunk: int) -> None:
    judge(chunk, optimise=False)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_cases_that_are_also_saturated_and_extracted_give_their_outputs(chunk: int) -> None:
    judge(chunk, optimise=True)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_cases_that_are_rewritten_for_onnx_runtime_give_their_outputs(chunk: int) -> None:
    judge(chunk, optimise=True, runtime=True)


def test_a_share_of_the_cases_is_saturated_and_extracted_in_every_run() -> None:
    judge(0, optimise=True)


def test_every_case_has_an_outcome() -> None:
    if not recorded():
        pytest.skip(f"the table is one of {TABLE.read_text(encoding='utf-8').splitlines()[0][2:]}")
    assert table().keys() <= {c.name for c in cases()}
    kinds = Counter(o.partition(":")[0] for o in table().values())
    assert {"pass": len(cases()) - len(table()), **kinds} == {
        "pass": 1737,
        "runtime cannot": 118,
        "pass | runtime cannot": 4,
        "runtime differs": 21,
        "pass | runtime differs": 1,
        "refused": 3,
    }


def relabelled(case: Case, opset: int) -> ModelProto | None:
    """The same nodes under another opset, where they are valid there (what they mean may differ)."""
    model = ModelProto()
    model.CopyFrom(case.model)
    for imported in model.opset_import:
        if imported.domain == "":
            imported.version = opset
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception:  # noqa: BLE001 (the checker raises several unrelated types)
        return None
    return model


def converted(case: Case, opset: int) -> ModelProto | None:
    from onnx.version_converter import convert_version

    try:
        return convert_version(case.model, opset)
    except Exception:  # noqa: BLE001 (not every operator has adapters)
        return None


@pytest.mark.parametrize("opset", range(7, 26))
def test_cases_in_other_opsets_give_what_the_runtime_gives(opset: int) -> None:
    compared = 0
    for case in cases()[opset::STEP]:
        for model in (relabelled(case, opset), converted(case, opset)):
            if model is None:
                continue
            model.ir_version = min(model.ir_version, 10)
            try:
                wanted = run(model, case.inputs)
            except Exception:  # noqa: BLE001 (ONNX Runtime raises a type for each of its codes)
                continue
            written = transformed(model, optimise=compared % 4 == 0)
            check_form(model, written)
            assert equal(run(written, case.inputs), wanted, case), case.name
            compared += 1
    assert compared >= (10 if opset < 13 else 20)


def write_table() -> None:
    lines = [versions(), "# case, outcome of its input model where that is not `pass`"]
    for case in cases():
        found = outcome(case, optimise=False)
        depends = found == "runtime cannot: locale" or (found == "runtime differs" and "16" in case.name)
        if found != "pass":
            lines.append(f"{case.name}\t{'pass | ' * depends}{found}")
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_table()
