"""Relay text and parameters: recorded modules compute what TVM 0.15 recorded, come back equal, and can be moved on."""

import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import xrlflow
from xrlflow.egraph.graph import GraphBuilder, TensorType
from xrlflow.errors import UserError
from xrlflow.extract import main
from xrlflow.lowering import evaluate, to_onnx
from xrlflow.lowering.relay import NotInRelay, NotRelay, read, read_text, write
from xrlflow.lowering.relay_arrays import read_metadata, read_params, written_metadata, written_params
from xrlflow.lowering.relay_forms import WRITTEN
from xrlflow.lowering.relay_text import parse, printed

DATA = Path(__file__).parent / "data" / "relay"
FILES = sorted(DATA.glob("*.relay"))
ROOFLINE = {"method": "saturation", "target": "roofline:epyc-1t", "max_steps": 200}
ROOFLINE_FLAGS = ["--method", "saturation", "--target", "roofline:epyc-1t", "--max-steps", "200"]


def params_of(path):
    return None if path.stem.endswith("_frozen") else path.with_suffix(".params")


def recorded(path):
    with np.load(path.with_name(path.stem.removesuffix("_frozen") + ".npz")) as arrays:
        return {"x": arrays["x"]}, arrays["y"]


@pytest.fixture(params=FILES, ids=lambda p: p.stem)
def path(request):
    return request.param


def test_a_module_computes_what_tvm_recorded_and_comes_back_equal(path):
    graph = read(path, params_of(path))
    x, y = recorded(path)
    (found,) = evaluate(graph, x)
    assert np.abs(found - y).max() < 2e-6
    assert not any(graph.nodes[i].opaque for i in graph.operators)
    text, arrays = write(graph)
    before, after = parse(path.read_text()), parse(text)
    assert before.functions == after.functions
    if params_of(path) is None:
        assert not arrays
        one, two = read_metadata(before.metadata), read_metadata(after.metadata)
        assert all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    else:
        known = read_params(params_of(path).read_bytes())
        kept = read_params(arrays)
        assert all(np.array_equal(known[name], kept[name]) for name in kept)
        assert {name for name, _ in after.functions[0].params} == {*x, *kept}


def test_a_module_is_written_as_tvm_prints_it(path):
    """Letter by letter, comments and the metadata's numbering left out: what TVM prints, TVM parses."""
    text, _ = write(read(path, params_of(path)))
    plain = re.sub(r" ?/\*.*?\*/|#\[metadata\].*", "", path.read_text(), flags=re.DOTALL)
    assert text.split("#[metadata]")[0].split("\n") == [line.rstrip() for line in plain.split("\n")]


def test_an_optimised_module_computes_the_same(path):
    graph = read(path, params_of(path))
    # BERT and ViT have biases that are all zero: carried through products they would be added without end
    assert xrlflow.saturate(graph).report.stop_reason == "saturated"
    result = xrlflow.optimize(graph, **ROOFLINE)
    assert result.improved
    text, arrays = write(result.graph)
    again = read_text(text, read_params(arrays) if arrays else None)
    assert bool(arrays) == (params_of(path) is not None)
    x, y = recorded(path)
    assert np.abs(evaluate(again, x)[0] - y).max() < 5e-6


def test_a_module_is_moved_on_to_onnx(path):
    x, y = recorded(path)
    model = to_onnx(read(path, params_of(path)))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.abs(session.run(None, x)[0] - y).max() < 5e-6


@pytest.mark.parametrize("name", ["mlp", "conv_bn_residual", "bert_2l"])
def test_a_module_is_moved_on_to_relax(name):
    from xrlflow.lowering.relax import from_graph
    from xrlflow.lowering.tvm_module import compile_module, fuse, tvm, tvm_target

    path = DATA / f"{name}.relay"
    x, y = recorded(path)
    module = from_graph(read(path, params_of(path)))
    target = tvm_target("llvm")
    vm = tvm().relax.VirtualMachine(compile_module(fuse(module, target), target), tvm().cpu())
    found = vm["main"](tvm().runtime.tensor(x["x"], tvm().cpu()))
    assert np.abs(found.numpy() - y).max() < 5e-6


def operator_graphs():
    """A graph of each core operator that can be written, in forms that Relay spells differently."""
    g = GraphBuilder()
    cases = {}

    def case(op, *shapes, **attrs):
        nonlocal g
        dtype = attrs.pop("dtype", "float32")
        g = GraphBuilder()
        kinds = [s if isinstance(s, TensorType) else TensorType(s, dtype) for s in shapes]
        node = g.op(op, *(g.input(f"x{k}", kind) for k, kind in enumerate(kinds)), **attrs)
        kind = g.nodes[node].type
        outputs = [g.get(node, k) for k in range(len(kind.items))] if hasattr(kind, "items") else [node]
        number = sum(key.startswith(f"{op}-") for key in cases)
        cases[f"{op}-{number}"] = g.build({f"y{k}": i for k, i in enumerate(outputs)})

    for op in ("Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Neg", "Abs", "Sin", "Cos", "Floor", "Ceil", "Sign", "IsNaN"):
        case(op, (2, 3))
    for op in ("Sqrt", "Log", "Reciprocal"):
        case(op, (2, 3))
    for op in (
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Min",
        "Max",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
    ):
        case(op, (2, 3), (3,))
    for op in ("And", "Or"):
        case(op, (2, 3), (3,), dtype="bool")
    case("Not", (2, 3), dtype="bool")
    case("Where", TensorType((2, 3), "bool"), (2, 3), (3,))
    for approximate in ("none", "tanh"):
        case("Gelu", (2, 3), approximate=approximate)
    case("HardSigmoid", (2, 3), alpha=0.3, beta=0.4)
    case("HardSwish", (2, 3))
    case("Elu", (2, 3), alpha=1.5)
    case("Softplus", (2, 3))
    case("RMSNormalization", (2, 3), (3,), axis=1, epsilon=0.01)
    case("Gemm", (2, 3), (3, 4), alpha=1.0, beta=1.0, transA=0, transB=0)
    case("Gemm", (3, 2), (4, 3), (4,), alpha=0.5, beta=2.0, transA=1, transB=1)
    case("Swish", (2, 3), alpha=1.0)
    case("Swish", (2, 3), alpha=1.5)
    case("LeakyRelu", (2, 3), alpha=0.2)
    case("Clip", (2, 3), min=-0.5, max=0.5)
    case("Clip", (2, 3), min=0.0, max=float("inf"))
    case("Cast", (2, 3), to="float64")
    for a, b in (
        ((2, 3), (3, 4)),
        ((5, 2, 3), (3, 4)),
        ((5, 2, 3), (5, 3, 4)),
        ((2, 5, 2, 3), (5, 3, 4)),
        ((2, 3), (5, 3, 4)),
    ):
        case("MatMul", a, b)
    window = {"strides": (2, 1), "dilations": (1, 2), "pads": (1, 0, 1, 2)}
    case("Conv", (1, 4, 8, 9), (6, 2, 3, 3), **window, group=2)
    case("Conv", (1, 4, 8, 9), (6, 4, 3, 3), (6,), **window, group=1)
    case("Conv", (1, 4, 8), (6, 4, 3), strides=(1,), dilations=(1,), pads=(1, 1), group=1)
    case("MaxPool", (1, 4, 9, 9), kernel=(3, 3), strides=(2, 2), pads=(0, 0, 0, 0), dilations=(1, 1), ceil=1)
    for include in (0, 1):
        case(
            "AveragePool", (1, 4, 8, 8), kernel=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1), dilations=(1, 1), ceil=0,
            include_pad=include,
        )  # fmt: skip
    case("GlobalAveragePool", (1, 4, 8, 8))
    case("BatchNormalization", (2, 4, 3, 3), (4,), (4,), (4,), (4,), epsilon=0.01)
    case("LayerNormalization", (2, 3, 4), (4,), (4,), axis=2, epsilon=0.01)
    case("LayerNormalization", (2, 3, 4), (3, 4), (3, 4), axis=1, epsilon=0.01)
    case("LayerNormalization", (2, 3, 4), (4,), axis=2, epsilon=0.01)
    case("Softmax", (2, 3, 4), axis=1)
    for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"):
        case(op, (2, 3, 4), axes=(0, 2), keepdims=0)
    case("Concat", (2, 3), (2, 1), axis=1)
    case("Split", (2, 6), axis=1, sizes=(1, 2, 3))
    case("Slice", (4, 5, 6), axes=(0, 2), starts=(1, 0), ends=(3, 4))
    case("Transpose", (2, 3, 4), perm=(2, 0, 1))
    case("Reshape", (2, 3, 4), shape=(6, 4))
    case("Expand", (3, 1), shape=(2, 3, 4))
    case("Pad", (2, 3), pads=(1, 0, 2, 1), value=0.5)
    case("Gather", (5, 3), TensorType((2, 2), "int64"), axis=0)
    return cases


OPERATORS = operator_graphs()
SPELLED_OUT = ("Gelu", "HardSigmoid", "HardSwish", "Elu", "Softplus", "RMSNormalization", "Gemm")


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_is_written_so_that_it_is_read_as_the_same(name):
    graph = OPERATORS[name]
    text, arrays = write(graph)
    again = read_text(text, read_params(arrays) if arrays else None)
    rng = np.random.default_rng(0)
    inputs = {}
    for node in graph.nodes:
        if node.op == "Input":
            shape, dtype = node.type.shape, node.type.dtype
            x = rng.integers(0, 2, shape) if dtype != "float32" else 0.1 + rng.random(shape)
            inputs[node.attrs["name"]] = x.astype(dtype)
    for a, b in zip(evaluate(graph, inputs), evaluate(again, inputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-7, atol=1e-12)  # numbers are float32 in the text
    # what a written module computes is written as it was
    assert parse(write(again)[0]).functions == parse(text).functions


def test_every_form_is_tried():
    assert {name.partition("-")[0] for name in OPERATORS} - set(SPELLED_OUT) == set(WRITTEN)


def test_what_has_no_form_is_refused():
    g = GraphBuilder()
    q = [g.input(name, TensorType((1, 2, 3, 4), "float32")) for name in "qkv"]
    with pytest.raises(NotInRelay, match="Relay has no Attention"):
        write(g.build({"y": g.op("Attention", *q, scale=1.0, causal=0)}))


MLP = (DATA / "mlp.relay").read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MLP.replace("sigmoid(", "nn.fancy("), "line 8: the operator nn.fancy is not known"),
        (MLP.replace("units=48)", "units=48, out_dtype=\"float16\")", 1), "line 3: nn.dense with out_dtype=float16"),
        (MLP.replace("%4", "%77", 1), "%4 is used before"),
        (MLP.replace("@main", "@other"), "no function is called main"),
        (MLP[: len(MLP) // 2], "line"),
        ("", "no function is defined"),
        ("def @main(%x: Tensor[(2), float32]) { fn (%y) { %y } }", "line 1: 'fn' is not read"),
        ("type List[A] { Nil }", "line 1: definitions of types"),
        ("def @main(%x: Tensor[(2), float32]) { add(%x, meta[relay.Constant][0]) }", "show_meta_data"),
        ("def @main(%x: Tensor[(2), float32]) { add(%x, ` ) }", "is no Relay"),
        ("def @main(%x: Tensor[(2, 3), float32], %y: Tensor[(5), float32]) {\n  add(%x, %y)\n}", "line 2: add"),
        ("def @main(%x: Tensor[(2, 3), float32]) {\n  nn.conv2d(%x)\n}", "line 2: nn.conv2d"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_named_with_its_line(text, said):
    with pytest.raises(NotRelay, match=said.replace("(", r"\(")):
        read_text(text)


def test_broken_parameters_get_one_line():
    data = (DATA / "mlp.params").read_bytes()
    for broken in (data[:-100], data[:40], b"", b"nonsense", data.replace(b"a_weight", b"a_weighx")[:200]):
        with pytest.raises(NotRelay, match="the parameters"):
            read_params(broken)
    with pytest.raises(NotRelay, match=r"a_weight is float32\[3\]"):
        read_text(MLP, {"a_weight": np.zeros(3, np.float32)})
    with pytest.raises(NotRelay, match="none of the parameters"):
        read_text(MLP, {"other": np.zeros(3, np.float32)})
    with pytest.raises(NotRelay, match="not as TVM writes it"):
        read_metadata("{}")


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "bool", "bfloat16"])
def test_arrays_survive(dtype):
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    arrays = {"a": np.arange(6).reshape(2, 3).astype(kind), "b": np.array(1).astype(kind)}
    again = read_params(written_params(arrays))
    assert all(again[k].dtype == a.dtype and np.array_equal(again[k], a) for k, a in arrays.items())
    found = read_metadata(written_metadata(list(arrays.values())))
    assert all(np.array_equal(a, b) for a, b in zip(found, arrays.values(), strict=True))


def test_text_that_is_printed_is_read_as_the_same():
    text = """
    def @main(%x: Tensor[(2, ?), float32], %t: (Tensor[(2), int8], bool)) -> Tensor[(2), float32] {
      let %a = add(%x, -1.5f);
      let %b: Tensor[(2), float32] = f.g(%a, axis=[1, [2, 3]], name="say \\"x\\"", flag=True, none=None, d=float16);
      %3 = (%a, %b.0, meta[relay.Constant][2], 3i64, True);
      @other(%3.1, (%a,))
    }
    def @other(%x: float32) { %x }
    """
    module = parse(text)
    assert parse(printed(module)) == module
    assert [f.name for f in module.functions] == ["main", "other"]


def computed(text, **inputs):
    """What a function's body computes of arrays."""
    kinds = ", ".join(f"%{k}: Tensor[({', '.join(map(str, v.shape))}), {v.dtype}]" for k, v in inputs.items())
    return evaluate(read_text(f"def @main({kinds}) {{ {text} }}"), inputs)


def test_defaults_are_those_of_tvm():
    a, b = np.arange(4.0, dtype="float32").reshape(1, 2, 2), np.arange(4.0, 8, dtype="float32").reshape(1, 2, 2)
    np.testing.assert_array_equal(computed("nn.batch_matmul(%a, %b)", a=a, b=b)[0], a @ b)
    np.testing.assert_array_equal(
        computed("nn.batch_matmul(%a, %b, transpose_b=True)", a=a, b=b)[0], a @ b.transpose(0, 2, 1)
    )
    x = np.array([[-4.0, 2.0]], "float32")
    np.testing.assert_array_equal(computed("nn.leaky_relu(%x)", x=x)[0], [[-1.0, 2.0]])
    np.testing.assert_array_equal(computed("mean(%x, axis=[])", x=x)[0], -1.0)
    np.testing.assert_allclose(computed("nn.softmax(%x)", x=x)[0].sum(-1), [1.0])
    image = np.arange(16.0, dtype="float32").reshape(1, 1, 4, 4)
    np.testing.assert_array_equal(computed("nn.adaptive_avg_pool2d(%x)", x=image)[0], image)
    assert computed("nn.global_avg_pool2d(%x)", x=image)[0].item() == 7.5
    assert computed("%0 = nn.avg_pool2d(%x, pool_size=[2, 2], padding=[1, 1]); %0", x=image)[0].shape == (1, 1, 5, 5)
    np.testing.assert_array_equal(
        computed('strided_slice(%x, begin=[0, 0, 1, -2], end=[1, 1, 2, -1], slice_mode="size")', x=image)[0],
        image[:, :, 1:3, 2:],
    )
    np.testing.assert_array_equal(computed("reshape(%x, newshape=[0, -1])", x=image)[0], image.reshape(1, 16))


def test_indices_of_onnx_may_be_negative_and_those_of_relay_are_not():
    g = GraphBuilder()
    x, i = g.input("x", TensorType((5, 3), "float32")), g.input("i", TensorType((2,), "int64"))
    both = g.op("Add", g.op("Gather", x, i, axis=0), g.op("Gather", x, g.weight(np.array([-1, 1])), axis=0))
    graph = g.build({"y": both})
    text, arrays = write(graph)
    assert "where" in text
    again = read_text(text, read_params(arrays) if arrays else None)
    inputs = {"x": np.arange(15.0, dtype="float32").reshape(5, 3), "i": np.array([-2, 0])}
    np.testing.assert_array_equal(evaluate(graph, inputs)[0], evaluate(again, inputs)[0])
    assert (np.array(read_params(arrays)["folded_0"]) >= 0).all()
    assert "where" not in write(again)[0].replace("where(", "", 1)


@pytest.mark.parametrize("name", ["0", "input.1", "a:b", "x y"])
def test_inputs_may_be_called_anything(name):
    g = GraphBuilder()
    x = g.input(name, TensorType((2, 3), "float32"))
    graph = g.build({"y": g.op("Add", g.op("Relu", x), g.op("Exp", x))})
    again = read_text(write(graph)[0])
    array = np.random.default_rng(0).standard_normal((2, 3)).astype("float32")
    (given,) = again.input_names
    np.testing.assert_array_equal(evaluate(graph, {name: array})[0], evaluate(again, {given: array})[0])


def test_functions_keep_their_attributes_and_the_form_of_their_result():
    text = 'def @main(%x: Tensor[(2, 3), float32], hash="1", Inline=1) { %0 = nn.relu(%x); (%0,) }'
    text += "\ndef @f(%y: bool) { %y }"
    again, _ = write(read_text(text))
    assert parse(again) == parse(text)
    with pytest.raises(NotRelay, match="function f has constants"):
        read_text(text.replace("{ %y }", "{ add(%y, meta[relay.Constant][0]) }"))


def test_names_with_dots_and_parts_of_parts():
    module = parse("def @main(%l1.0.w: Tensor[(2i64, 3), float32]) { %0 = ((%l1.0.w, 1f), 2f); add(%0.0.1, %l1.0.w) }")
    (function,) = module.functions
    assert [(name, kind.shape) for name, kind in function.params] == [("l1.0.w", (2, 3))]
    assert function.result.args[0].index == 1
    assert function.result.args[0].of.index == 0
    assert function.result.args[1].name == "l1.0.w"


@pytest.mark.parametrize("dtype", ["float64", "int32"])
def test_one_sided_clips_have_no_other_side(dtype):
    g = GraphBuilder()
    low, high = 0.0 if dtype == "float64" else -3.0, float("inf")
    graph = g.build({"y": g.op("Clip", g.input("x", TensorType((3,), dtype)), min=low, max=high)})
    x = np.array([-5, 1, 1e300 if dtype == "float64" else 7]).astype(dtype)
    again = read_text(write(graph)[0])
    np.testing.assert_array_equal(evaluate(again, {"x": x})[0], np.maximum(x, low))


def test_no_parameters_that_are_read_are_overwritten(tmp_path, capsys):
    params = tmp_path / "out.params"
    params.write_bytes((DATA / "mlp.params").read_bytes())
    options = ["--method", "original", "--target", "roofline:epyc-1t", "--quiet"]
    assert main([str(DATA / "mlp.relay"), "--params", str(params), "-o", str(tmp_path / "out.relay"), *options]) == 2
    assert "--params" in capsys.readouterr().err
    assert params.read_bytes() == (DATA / "mlp.params").read_bytes()
    assert not (tmp_path / "out.relay").exists()


def test_a_model_of_onnx_can_be_written_as_relay(tmp_path):
    from xrlflow import zoo

    source, out = tmp_path / "m.onnx", tmp_path / "m.relay"
    xrlflow.save(xrlflow.load(zoo.build("inception-tiny")), source)
    assert main([str(source), "-o", str(out), "--quiet", *ROOFLINE_FLAGS]) == 0
    before, after = xrlflow.load(source), read(out, tmp_path / "m.params")
    x = np.random.default_rng(0).standard_normal(before.nodes[0].type.shape).astype("float32")
    (name,), (given,) = before.input_names, after.input_names
    np.testing.assert_allclose(evaluate(before, {name: x})[0], evaluate(after, {given: x})[0], rtol=1e-5, atol=1e-6)


def test_the_command_reads_and_writes_relay(tmp_path, capsys):
    model, params = str(DATA / "mlp.relay"), str(DATA / "mlp.params")
    options = ["--method", "saturation", "--target", "roofline:epyc-1t", "--max-steps", "200", "--quiet"]
    out, record = tmp_path / "out.relay", tmp_path / "run.json"
    assert main([model, "--params", params, "-o", str(out), "--json", str(record), *options]) == 0
    x, y = recorded(DATA / "mlp.relay")
    assert np.abs(evaluate(read(out, tmp_path / "out.params"), x)[0] - y).max() < 2e-6
    assert json.loads(record.read_text())["improved"]
    assert main([model, "--params", params, "-o", str(tmp_path / "out.onnx"), *options]) == 0
    assert np.abs(evaluate(xrlflow.load(tmp_path / "out.onnx"), x)[0] - y).max() < 2e-6
    again = tmp_path / "again.relay"
    assert main([model, "--params", params, "-o", str(again), "--replay", str(record), "--quiet"]) == 0
    assert again.read_bytes() == out.read_bytes()
    # what nothing better was found for is the file itself
    same = tmp_path / "same.relay"
    assert main([model, "--params", params, "-o", str(same), "--method", "original", "--quiet"]) == 0
    assert same.read_bytes() == Path(model).read_bytes()
    assert (tmp_path / "same.params").read_bytes() == Path(params).read_bytes()
    for wrong in (["--opset", "17"], ["--shape", "x=1,32"], ["--params", str(tmp_path / "none.params")]):
        assert main([model, *wrong, *options]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_parameters_belong_to_relay(tmp_path):
    xrlflow.save(xrlflow.load(to_onnx(read(DATA / "mlp.relay"))), tmp_path / "m.onnx")
    with pytest.raises(UserError, match="only a Relay module"):
        xrlflow.optimize(tmp_path / "m.onnx", params=str(DATA / "mlp.params"), method="original")
