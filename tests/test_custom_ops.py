"""Operators from a shared library take part in every session: verification, pricing, confirming."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import xrlflow
from xrlflow.cost.confirm import confirm
from xrlflow.cost.database import Database
from xrlflow.cost.kernels import kernels
from xrlflow.cost.target import parse_target
from xrlflow.egraph.saturate import saturate
from xrlflow.errors import UserError
from xrlflow.extract import main
from xrlflow.lowering import load, verify
from xrlflow.lowering.opaque import OpaqueRunner

SOURCE = r"""
/* acme.Triple(x) = 3 x in float32. The runtime's Python package brings no headers, so its C interface is spoken by
   layout: positions in the table OrtApi and in the structure OrtCustomOp do not change between versions. */
#include <stddef.h>
#include <stdint.h>

typedef void *(*Call)();
typedef struct { const void *(*get_api)(uint32_t version); } ApiBase;
enum { CREATE_DOMAIN = 26, DOMAIN_ADD = 27, ADD_DOMAIN = 28, DATA = 51, RANK = 61, DIMENSIONS = 62, ELEMENTS = 64,
       SHAPE = 65, INPUT = 90, OUTPUT = 91, RELEASE_SHAPE = 99 };
static const Call *api;

typedef struct Operator {
    uint32_t version;
    void *(*create)(const struct Operator *, const void *, const void *);
    const char *(*name)(const struct Operator *);
    const char *(*provider)(const struct Operator *);
    int (*input_type)(const struct Operator *, size_t);
    size_t (*inputs)(const struct Operator *);
    int (*output_type)(const struct Operator *, size_t);
    size_t (*outputs)(const struct Operator *);
    void (*compute)(void *, void *);
    void (*destroy)(void *);
    int (*characteristics[7])(const struct Operator *, size_t);
    void *later[32];
} Operator;

static void *create(const Operator *o, const void *a, const void *i) { return (void *)&api; }
static const char *name(const Operator *o) { return "Triple"; }
static const char *provider(const Operator *o) { return NULL; }
static int type(const Operator *o, size_t i) { return 1; }
static size_t one(const Operator *o) { return 1; }
static int none(const Operator *o, size_t i) { return 0; }
static void destroy(void *kernel) {}

static void compute(void *kernel, void *context) {
    const void *x;
    void *y, *shape;
    float *from, *to;
    size_t rank, n;
    int64_t dimensions[16];
    api[INPUT](context, (size_t)0, &x);
    api[SHAPE](x, &shape);
    api[RANK](shape, &rank);
    api[DIMENSIONS](shape, dimensions, rank);
    api[ELEMENTS](shape, &n);
    api[OUTPUT](context, (size_t)0, dimensions, rank, &y);
    api[DATA](x, &from);
    api[DATA](y, &to);
    for (size_t i = 0; i < n; i++) to[i] = 3 * from[i];
    api[RELEASE_SHAPE](shape);
}

static Operator triple = {1, create, name, provider, type, one, type, one, compute, destroy,
                          {none, none, none, none, none, none, none}, {0}};

void *RegisterCustomOps(void *options, const ApiBase *base) {
    void *domain, *failed;
    api = (const Call *)base->get_api(1);
    if ((failed = api[CREATE_DOMAIN]("acme", &domain))) return failed;
    if ((failed = api[DOMAIN_ADD](domain, &triple))) return failed;
    return api[ADD_DOMAIN](options, domain);
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A compiled library with the operator acme.Triple."""
    compiler = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler is here")
    folder = tmp_path_factory.mktemp("library")
    (folder / "triple.c").write_text(SOURCE)
    out = folder / "libtriple.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-O1", "-o", out, folder / "triple.c"], check=True)
    return str(out)


def model(error: float = 0.0) -> onnx.ModelProto:
    """Two products of a matrix that is transposed to and fro, each followed by the custom operator."""
    w = np.random.default_rng(0).standard_normal((2, 16, 16)).astype(np.float32)
    nodes = [helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("Transpose", ["t"], ["u"])]
    for k in range(2):
        nodes.append(helper.make_node("MatMul", ["u", f"w{k}"], [f"h{k}"]))
        nodes.append(helper.make_node("Triple", [f"h{k}"], [f"t{k}"], domain="acme"))
    nodes.append(helper.make_node("Add", ["t0", "t1"], ["y"]))
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 16]) for n in "xy"]
    tensors = [numpy_helper.from_array(w[k] * np.float32(1 + error * k), f"w{k}") for k in range(2)]
    known = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 16]) for n in ("t0", "t1")]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], tensors, value_info=known)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def test_models_with_custom_operators_are_verified(library: str) -> None:
    assert verify(model(), model(), custom_ops=[library]).passed
    assert verify(model(), model(0.01), custom_ops=[library]).verdict == "failed"
    without = verify(model(), model())
    assert without.verdict == "unverified"
    assert "acme:Triple; --custom-ops" in without.detail


def test_the_reference_computes_custom_operators(library: str) -> None:
    graph = load(model())
    runner = OpaqueRunner(graph, [library])
    index = next(i for i, n in enumerate(graph.nodes) if n.opaque)
    x = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(runner(index, [x])[0], 3 * x)


def test_a_run_verifies_with_the_library(library: str) -> None:
    options = {"method": "saturation", "target": "roofline:a100", "max_steps": 200}
    result = xrlflow.optimize(model(), custom_ops=(library,), **options)
    assert result.improved, result
    assert result.verification is not None
    assert result.verification.passed
    assert not xrlflow.optimize(model(), **options).improved


def test_pricing_and_confirming_run_custom_operators(library: str, tmp_path: Path) -> None:
    space = saturate(load(model()))
    target = parse_target("onnxruntime", 1, (library,))
    costs = kernels(target, Database(tmp_path / "cache"), seconds=30.0)
    prices = costs.prices(space)
    assert not costs.coverage.failed
    assert all(0 < prices[i] < np.inf for i in space.baseline if "acme" in space.ops[i])
    slower = model()
    slower.graph.node.append(helper.make_node("Triple", ["y"], ["z"], domain="acme"))
    slower.graph.node.append(helper.make_node("Triple", ["z"], ["unused"], domain="acme"))
    slower.graph.output[0].name = "z"
    verdict = confirm(model(), slower, target, 2.0, blocks=1, controls=0)
    assert verdict.original_ms is not None, verdict
    with pytest.raises(UserError, match="cannot run"):
        confirm(model(), slower, parse_target("onnxruntime"), 2.0)


def test_the_library_is_part_of_what_measurements_are_remembered_by(library: str, tmp_path: Path) -> None:
    plain, with_it = parse_target("onnxruntime"), parse_target("onnxruntime", 1, (library,))
    assert plain.fingerprint() != with_it.fingerprint()
    other = tmp_path / "other.so"
    other.write_bytes(Path(library).read_bytes() + b"\0")
    assert parse_target("onnxruntime", 1, (str(other),)).fingerprint() != with_it.fingerprint()
    copy = tmp_path / "copy.so"
    copy.write_bytes(Path(library).read_bytes())
    assert parse_target("onnxruntime", 1, (str(copy),)).fingerprint() == with_it.fingerprint()


@pytest.mark.parametrize("kind", ["missing", "text", "no entry point"])
def test_a_library_that_cannot_be_loaded_is_one_line_and_exit_code_2(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "lib.so", tmp_path / "out.onnx"
    if kind == "text":
        path.write_text("no library")
    elif kind == "no entry point":
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler is here")
        (tmp_path / "empty.c").write_text("int nothing;")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", path, tmp_path / "empty.c"], check=True)
    source = tmp_path / "model.onnx"
    onnx.save(model(), source)
    assert main([str(source), "-o", str(out), "--custom-ops", str(path), "--target", "roofline:epyc-1t"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "lib.so" in said[0]
    assert not out.exists()
    with pytest.raises(UserError):
        verify(model(), model(), custom_ops=[str(path)])
