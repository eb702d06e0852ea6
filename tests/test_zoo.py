"""Every model of the zoo is valid ONNX, runs, keeps its activations in range and is the same each time it is built."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import xrlflow
from xrlflow import zoo
from xrlflow.cost.base import Cost, bind, graph_cost
from xrlflow.cost.roofline import roofline
from xrlflow.egraph.space import SearchSpace
from xrlflow.errors import UserError
from xrlflow.lowering import fold_constants, load, to_onnx, verify
from xrlflow.zoo.__main__ import main
from xrlflow.zoo.builder import outline
from xrlflow.zoo.registry import TINY as SUFFIX

TINY = [name for name in zoo.MODELS if name.endswith(SUFFIX)]
PAPER = [name for name in zoo.MODELS if name.endswith("-paper")]
QUICK = [*TINY, "squeezenet", "shufflenet", "inception", "inception-block", "mlp-tower", "channels-last"]
LARGE = [name for name in zoo.MODELS if name not in QUICK]
ACTIVATIONS = {"Relu", "Sigmoid", "Tanh", "Erf", "Clip"}


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, seed: int = 0, **extents: int) -> list[np.ndarray]:
    """The model's outputs under ONNX Runtime, on random inputs; `extents` are those of its symbols."""
    made = session(model)
    random = np.random.default_rng(seed)
    feed = {}
    for i in made.get_inputs():
        shape = [extents.get(d, d) for d in i.shape]
        feed[i.name] = (
            random.integers(0, 2, shape) if i.type == "tensor(int64)" else random.standard_normal(shape, np.float32)
        )
    return made.run(None, feed)


def check(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    outputs = run(model)
    for declared, value, again in zip(inferred.graph.output, outputs, run(model, seed=1), strict=True):
        assert [d.dim_value for d in declared.type.tensor_type.shape.dim] == list(value.shape)
        assert np.isfinite(value).all() and np.abs(value).max() < 100
        assert value.std() > 0
        assert not np.allclose(value, again, rtol=1e-3), "the output must depend on the input"


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("name", QUICK)
def test_model_is_valid_and_runs(name: str) -> None:
    check(zoo.build(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_large_model_is_valid_and_runs(name: str) -> None:
    check(zoo.build(name))


@pytest.mark.parametrize("name", TINY)
def test_same_seed_makes_same_bytes_and_another_seed_other_weights(name: str) -> None:
    assert zoo.build(name, seed=3).SerializeToString() == zoo.build(name, seed=3).SerializeToString()
    assert zoo.build(name, seed=3).SerializeToString() != zoo.build(name, seed=4).SerializeToString()


@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("name", TINY)
def test_model_can_be_built_at_older_and_newer_opsets(name: str, opset: int) -> None:
    model = zoo.build(name, opset=opset)
    assert model.opset_import[0].version == opset
    old, new = run(model)[0], run(zoo.build(name))[0]
    # Up to opset 16 the layer norms are spelled out; the function must be the same.
    np.testing.assert_allclose(old, new, rtol=1e-3, atol=1e-4)


def test_small_models_are_the_large_ones_with_other_extents() -> None:
    for name in TINY:
        tiny = zoo.MODELS[name]
        full = zoo.MODELS[tiny.what.removesuffix(", every extent shrunk")]
        assert tiny.builder is full.builder
        assert {s: v for s, v in tiny.sizes.items() if isinstance(v, bool)} == {
            s: v for s, v in full.sizes.items() if isinstance(v, bool)
        }


# -- outlines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUICK)
def test_outline_counts_what_the_model_has(name: str) -> None:
    told, model = zoo.tell(name), zoo.build(name)
    assert told.operators == len(model.graph.node)
    floats = [t for t in model.graph.initializer if t.data_type == t.FLOAT]
    assert told.parameters == sum(int(np.prod(t.dims)) for t in floats)
    assert told.inputs == {i.name: tuple(d.dim_value for d in i.type.tensor_type.shape.dim) for i in model.graph.input}


def test_published_numbers_of_weights() -> None:
    """What is commonly stated, in millions; statistics of batch normalisation and masks are counted here, too."""
    counts = {
        "bert": 109.2, "vit": 86.6, "gpt2": 124, "vgg19": 143.7, "resnet50-v1.5": 25.6, "resnext50": 25.1,
        "mobilenet-v2": 3.5, "efficientnet": 5.3, "convnext": 28.6, "nasnet-a": 5.3, "nasnet-a-large": 88.9,
        "inception-v3": 23.9,
    }  # fmt: skip
    for name, millions in counts.items():
        assert zoo.tell(name).parameters / 1e6 == pytest.approx(millions, rel=0.02), name


# -- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize("name", [n for n in [*TINY, "shufflenet"] if "batch" in zoo.MODELS[n].parameters])
def test_batch_reaches_every_output(name: str, batch: int) -> None:
    for output in run(zoo.build(name, batch=batch)):
        assert output.shape[0] == batch


SYMBOLIC = {name: zoo.MODELS[name].symbolic for name in TINY}


def test_most_models_take_symbols() -> None:
    assert sum("batch" in s for s in SYMBOLIC.values()) > 25
    assert all("tokens" in SYMBOLIC[name] for name in ("bert-tiny", "llama-tiny", "transducer-paper-tiny"))
    assert sum("image" in s for s in SYMBOLIC.values()) > 8


@pytest.mark.parametrize("name", [n for n, symbols in SYMBOLIC.items() if symbols and n != "nasrnn-paper-tiny"])
def test_symbolic_extents_give_what_fixed_ones_give(name: str) -> None:
    symbols = SYMBOLIC[name]
    model = zoo.build(name, **{s: s for s in symbols})
    found = {d.dim_param for i in model.graph.input for d in i.type.tensor_type.shape.dim} - {""}
    assert found == set(symbols)
    assert any(d.dim_param or not d.HasField("dim_value") for d in model.graph.output[0].type.tensor_type.shape.dim)
    for batch, tokens, image in ((1, 5, 96), (3, 4, 80)):
        extents = {k: v for k, v in (("batch", batch), ("tokens", tokens), ("image", image)) if k in symbols}
        fixed = zoo.build(name, **extents)
        for one, two in zip(run(model, **extents), run(fixed), strict=True):
            assert one.shape == two.shape
        if "tokens" not in symbols or "position" not in "".join(t.name for t in model.graph.initializer):
            np.testing.assert_allclose(run(model, **extents)[0], run(fixed)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "sizes", "complaint"),
    [
        ("bret", {}, "no model 'bret'"),
        ("bert", {"depth": 2}, "no size 'depth'"),
        ("bert-tiny", {"heads": 3}, "multiple of heads"),
        ("bert-tiny", {"layers": 0}, "'layers' of model bert-tiny must be at least 1, not 0"),
        ("bert-tiny", {"hidden": "h"}, "must be a number, not 'h'"),
        ("bert-tiny", {"batch": "two words"}, "a number or the name of a symbol"),
        ("bert-tiny", {"batch": True}, "a number or the name of a symbol"),
        ("bert-paper-tiny", {"tokens": 5}, "keys are not transposed"),
        ("vit-tiny", {"patch": 5}, "multiple of patch"),
        ("llama-tiny", {"kv_heads": 3}, "multiple of kv_heads"),
        ("inception-tiny", {"width": 12}, "multiple of 8"),
        ("inception-v3-tiny", {"image": 64}, "at least 75"),
        ("inception-v3-tiny", {"blocks": (1, 5, 1)}, "up to 3, 4 and 2"),
        ("resnext-tiny", {"stages": 3}, "numbers separated by commas"),
        ("vgg19-bn-tiny", {"image": 13}, "multiple of 4"),
        ("nas-cells-tiny", {"nodes": 1, "operators": 100_000}, "only 400 cells"),
        ("nasrnn-paper-tiny", {"batch": "batch"}, "a batch that is a number"),
        ("resnext50-paper", {"norm": 1}, "true or false"),
        ("bert", {"vocab": 10**9}, "do not fit into one ONNX file"),
        ("shufflenet", {"image": 128}, "fixed Reshape"),
        ("mlp-tower", {"opset": 7}, "opset 7"),
        ("squeezenet", {"opset": 8}, "opset 8"),
        ("transformers:bret", {}, "no export 'bret'"),
        ("transformers:bert", {"layers": 2}, "no size 'layers'"),
        ("transformers:bert", {"exporter": "none"}, "no exporter 'none'"),
        ("transformers:whisper", {"exporter": "legacy"}, "cannot be exported by legacy"),
    ],
)
def test_impossible_request_is_the_users_error(name: str, sizes: dict[str, int], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        zoo.build(name, **sizes)


# -- faithful models -------------------------------------------------------------------------------------------------


def test_light_model_keeps_the_published_graph_and_gets_weights_of_its_own() -> None:
    model = zoo.squeezenet()
    count = operators(model)
    assert (count["Conv"], count["Relu"], count["Concat"], count["MaxPool"]) == (26, 26, 8, 3)
    assert "ConstantOfShape" not in count
    assert [i.name for i in model.graph.input] == ["data_0"], "weights are not inputs"
    weights = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer]
    kernels = [w for w in weights if w.ndim == 4]
    assert len(kernels) == 26
    for w in kernels:
        assert w.std() == pytest.approx((2 / np.prod(w.shape[1:])) ** 0.5, rel=0.1)


def test_batch_normalisation_statistics_vary_and_variances_are_positive() -> None:
    for name, count in (("shufflenet", 49), ("mobilenet-v2-tiny", 10), ("inception-v3-tiny", 41)):
        model = zoo.build(name)
        values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        norms = [n for n in model.graph.node if n.op_type == "BatchNormalization"]
        assert len(norms) == count
        for norm in norms:
            scale, bias, mean, variance = (values[n] for n in norm.input[1:])
            assert variance.min() > 0.2 and scale.min() > 0.2
            assert min(scale.std(), bias.std(), mean.std(), variance.std()) > 0.001


def test_bert_has_the_operators_of_an_export() -> None:
    count = operators(zoo.bert(layers=2, hidden=8, heads=2, tokens=4, vocab=11))
    # per layer: q, k, v, output, two of the feed-forward part, scores and context; and the pooler's
    assert count["MatMul"] == 2 * 8 + 1
    assert (count["Softmax"], count["Erf"], count["LayerNormalization"]) == (2, 2, 5)
    assert count["Transpose"] == 2 * 5


def test_bert_attention_mask_hides_a_token() -> None:
    made = session(zoo.bert(layers=1, hidden=8, heads=2, tokens=4, vocab=11))
    mask = np.zeros((1, 1, 1, 4), np.float32)
    mask[..., 3] = -1e9
    ids = np.array([[1, 2, 3, 4]])
    feed = {"token_type_ids": np.zeros_like(ids), "attention_mask": mask}
    before, after = (made.run(None, feed | {"input_ids": i})[0] for i in (ids, np.array([[1, 2, 3, 9]])))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert not np.allclose(before[:, 3], after[:, 3])


@pytest.mark.parametrize("name", ["llama-tiny", "gpt2-tiny", "deep-decoder-tiny"])
def test_decoder_is_causal_and_position_aware(name: str) -> None:
    made = session(zoo.build(name, tokens=5))
    first, later, swapped = (
        made.run(None, {"input_ids": np.array([ids])})[0] for ids in ([1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [2, 1, 3, 4, 5])
    )
    np.testing.assert_array_equal(first[:, :4], later[:, :4])
    assert not np.allclose(first[:, 4], later[:, 4])
    assert not np.allclose(first[:, 2], swapped[:, 2])


@pytest.mark.parametrize("name", ["t5-tiny", "whisper-tiny"])
def test_decoder_across_an_encoder_is_causal_and_sees_all_of_the_encoder(name: str) -> None:
    made = session(zoo.build(name))
    random = np.random.default_rng(0)
    feed = {
        i.name: random.integers(1, 20, i.shape) if "int" in i.type else random.standard_normal(i.shape, np.float32)
        for i in made.get_inputs()
    }
    ids = feed["decoder_input_ids"]
    other = ids.copy()
    other[:, -1] += 1
    one, two = (made.run(None, feed | {"decoder_input_ids": i})[0] for i in (ids, other))
    np.testing.assert_array_equal(one[:, :-1], two[:, :-1])
    assert not np.allclose(one[:, -1], two[:, -1])
    source = next(n for n in feed if n in ("input_ids", "input_features"))
    changed = feed[source].copy()
    changed[..., -1] += 1
    assert not np.allclose(one[:, 0], made.run(None, feed | {source: changed})[0][:, 0])


def test_grouped_query_attention_repeats_key_and_value_heads() -> None:
    sizes = {"layers": 1, "hidden": 16, "heads": 4, "intermediate": 24, "tokens": 5, "vocab": 13}
    assert operators(zoo.llama(kv_heads=2, **sizes))["Expand"] == 2
    assert "Expand" not in operators(zoo.llama(kv_heads=None, **sizes))


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("resnext-tiny", {2}),
        ("mobilenet-v2-tiny", {8, 24, 36}),
        ("convnext-tiny", {8, 12}),
        ("efficientnet-tiny", {8, 24, 36}),
    ],
)
def test_convolutions_are_grouped(name: str, groups: set[int]) -> None:
    nodes = zoo.build(name).graph.node
    found = [a.i for n in nodes if n.op_type == "Conv" for a in n.attribute if a.name == "group"]
    assert set(found) == groups | {1}


def test_efficientnet_writes_the_mean_of_its_gate_either_way() -> None:
    pooled, reduced = zoo.build("efficientnet-tiny"), zoo.build("efficientnet-tiny", pool=False)
    assert operators(pooled)["GlobalAveragePool"] == 4 and operators(reduced)["ReduceMean"] == 3
    np.testing.assert_allclose(run(pooled)[0], run(reduced)[0], rtol=1e-4, atol=1e-5)


def test_transposes_surround_every_convolution_of_the_net_with_channels_last() -> None:
    model = zoo.build("channels-last-tiny")
    makers = {output: n for n in model.graph.node for output in n.output}
    for node in model.graph.node:
        if node.op_type in ("Conv", "MaxPool"):
            assert makers[node.input[0]].op_type == "Transpose"
            (user,) = [n for n in model.graph.node if node.output[0] in n.input]
            assert user.op_type == "Transpose"


def test_recurrent_cell_shares_its_weights_and_passes_its_memory_on() -> None:
    short, long = zoo.build("nasrnn-cell-tiny"), zoo.build("nasrnn-cell-tiny", steps=5)
    assert zoo.tell("nasrnn-cell-tiny").parameters == zoo.tell("nasrnn-cell-tiny", steps=5).parameters
    assert operators(long)["MatMul"] == 10 and operators(short)["MatMul"] == 4
    made = session(short)
    feed = {i.name: np.ones(i.shape, np.float32) for i in made.get_inputs()}
    one, two = (made.run(None, feed | {"c": np.full((1, 8), v, np.float32)})[0] for v in (0, 1))
    assert not np.allclose(one, two)


# -- as in the papers ------------------------------------------------------------------------------------------------


def test_every_paper_graph_has_a_faithful_twin() -> None:
    assert len(PAPER) == 11
    for name in PAPER:
        twin = zoo.MODELS[zoo.MODELS[name].twin]
        assert twin.what and twin.source
        assert not twin.twin


@pytest.mark.parametrize("name", [n for n in TINY if zoo.MODELS[n].twin])
def test_paper_graphs_have_no_softmax_no_norm_and_no_bias(name: str) -> None:
    model = zoo.build(name)
    assert set(operators(model)) <= {
        "MatMul", "Add", "Mul", "Relu", "Sigmoid", "Tanh", "Reshape", "Transpose", "Concat", "Conv", "MaxPool",
        "AveragePool", "GlobalAveragePool",
    }  # fmt: skip
    vectors = [t.name for t in model.graph.initializer if len(t.dims) == 1 and t.data_type == t.FLOAT]
    assert not vectors, "biases, scales and statistics are vectors"
    assert all(len(n.input) == 2 for n in model.graph.node if n.op_type == "Conv")


@pytest.mark.parametrize("name", [n for n in TINY if zoo.MODELS[n].twin and not n.startswith("nasrnn")])
def test_faithful_twins_have_what_the_paper_graphs_lack(name: str) -> None:
    twin = zoo.build(zoo.MODELS[name].twin)
    count = operators(twin)
    attentive = any(kind in name for kind in ("bert", "vit", "dalle", "transducer"))
    assert count["Softmax"] if attentive or "squeezenet" in name else count["BatchNormalization"]
    if attentive:
        assert count["LayerNormalization"] and count["Div"] and ACTIVATIONS & set(count)
    assert any(len(t.dims) == 1 and t.data_type == t.FLOAT for t in twin.graph.initializer)


@pytest.mark.parametrize(
    ("name", "inputs", "count"),
    [
        # layer: q, k, v, scores, context, output
        ("bert-paper", (64, 1024), {"MatMul": 8 * 6, "Reshape": 8 * 4, "Transpose": 8 * 4, "Relu": 1}),
        ("vit-paper", (64, 768), {"MatMul": 12 * 8, "Reshape": 12 * 4, "Transpose": 12 * 4, "Relu": 1, "Add": 24}),
        (
            "dalle-paper",
            (16, 768),
            {"MatMul": 8 * 9, "Reshape": 32, "Transpose": 32, "Relu": 9, "Add": 24, "Mul": 8},
        ),
        (
            "transducer-paper",
            (80, 512),
            {"MatMul": 2 + 14 * 8 + 2, "Reshape": 56, "Transpose": 56, "Relu": 15, "Add": 28, "Concat": 1},
        ),
        (
            "inception-v3-paper",
            (1, 3, 299, 299),
            {"Conv": 94, "Relu": 94, "MaxPool": 4, "AveragePool": 10, "Concat": 11},
        ),
        (
            "squeezenet-paper",
            (1, 3, 224, 224),
            {"Conv": 26, "Relu": 26, "Concat": 8, "MaxPool": 3, "GlobalAveragePool": 1},
        ),
        ("resnext50-paper", (1, 3, 224, 224), {"Conv": 53, "Relu": 53, "Add": 16, "MaxPool": 1}),
        ("resnet50-paper", (1, 3, 224, 224), {"Conv": 53, "Relu": 53, "Add": 16, "MaxPool": 1}),
        ("vgg19-paper", (1, 3, 224, 224), {"Conv": 16, "Relu": 18, "MaxPool": 5, "MatMul": 3, "Reshape": 1}),
        (
            "nasnet-a-paper",
            (1, 128, 56, 56),
            # 15 normal cells: 2 + 5 · 2 convolutions; 3 reductions: 2 + 5 · 2
            {"Conv": 18 * 12, "Relu": 36, "Add": 90, "Concat": 18, "AveragePool": 15 * 3 + 3 * 2, "MaxPool": 1 + 3 * 2},
        ),
        (
            "nasrnn-paper",
            (1, 512),
            {"MatMul": 80, "Add": 40 + 15, "Mul": 20, "Relu": 10, "Sigmoid": 25, "Tanh": 40},
        ),
    ],
)  # fmt: skip
def test_paper_graphs_have_their_operators(name: str, inputs: tuple[int, ...], count: dict[str, int]) -> None:
    told = zoo.tell(name)
    assert set(told.inputs.values()) == {inputs}
    with outline():
        assert operators(zoo.build(name)) == count
    assert told.operators == sum(count.values())


def test_attention_of_the_paper_bert_is_dead_but_paid_for() -> None:
    """Each layer goes on with a product of its own input; what attention made is an output that nothing reads."""
    model = zoo.build("bert-paper-tiny", layers=3)
    outputs = [o.name for o in model.graph.output]
    assert outputs == ["attention_0", "attention_1", "attention_2", "y"]
    read = {name for node in model.graph.node for name in node.input}
    assert not read & set(outputs)
    makers = {output: n for n in model.graph.node for output in n.output}
    chain, value = [], "y"
    while value in makers:
        chain.append(makers[value].op_type)
        value = makers[value].input[0]
    assert chain == ["MatMul"] * 3 + ["Relu"], "the way to the result has no attention"
    graph = load(model)
    assert sum(graph.nodes[i].op == "MatMul" for i in graph.operators) == 3 * 6


def test_keys_are_transposed_where_the_papers_transpose_them() -> None:
    def perms(name: str) -> set[tuple[int, ...]]:
        nodes = zoo.build(name).graph.node
        return {tuple(a.ints) for n in nodes if n.op_type == "Transpose" for a in n.attribute}

    assert perms("bert-paper-tiny") == perms("vit-paper-tiny") == {(1, 0, 2)}
    assert perms("dalle-paper-tiny") == perms("transducer-paper-tiny") == {(1, 0, 2), (1, 2, 0)}


def test_paper_vit_has_no_activation_in_its_perceptrons_and_others_have_relu() -> None:
    assert operators(zoo.build("vit-paper-tiny"))["Relu"] == 1
    assert operators(zoo.build("dalle-paper-tiny"))["Relu"] == 1 + 2
    assert operators(zoo.build("transducer-paper-tiny"))["Relu"] == 2 + 1


def test_mask_of_the_paper_dalle_is_a_weight_of_each_layer() -> None:
    masks = [t for t in zoo.build("dalle-paper-tiny").graph.initializer if t.name.endswith("mask")]
    assert [tuple(t.dims) for t in masks] == [(4, 5, 5)] * 2


def test_pool_at_the_end_of_the_paper_inception_has_windows_of_one_pixel() -> None:
    last = zoo.build("inception-v3-paper-tiny").graph.node[-1]
    assert last.op_type == "AveragePool"
    assert {tuple(a.ints) for a in last.attribute if a.name == "kernel_shape"} == {(1, 1)}


def test_stem_makes_of_tasos_nasnet_the_one_of_tensat() -> None:
    assert zoo.tell("nasnet-a-paper", stem=True).inputs == {"x": (1, 3, 224, 224)}
    assert zoo.tell("nasnet-a-paper", stem=True).operators == zoo.tell("nasnet-a-paper").operators + 2


# -- for measuring scale ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [500, 2000, 20_000])
def test_deep_decoder_has_as_many_operators_as_asked_for(count: int) -> None:
    told = zoo.tell("deep-decoder", operators=count)
    assert count <= told.operators < count + 61
    assert told.parameters < 4_000_000


def test_cells_do_not_repeat() -> None:
    model = zoo.build("nas-cells", operators=1000)
    assert 1000 <= len(model.graph.node) < 1100
    cells: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.name.startswith("cell."):
            cell = node.name.split("/")[0]
            inside = [name.removeprefix(cell) if name.startswith(cell + "/") else "…" for name in node.input]
            cells.setdefault(cell, []).append(f"{node.op_type} {inside}")
    assert len(cells) > 15
    assert len({tuple(c) for c in cells.values()}) > 0.95 * len(cells)
    assert operators(zoo.build("nas-cells-tiny", seed=1)) != operators(zoo.build("nas-cells-tiny", seed=2))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("deep-decoder", 20_000), ("nas-cells", 5000)])
def test_models_for_measuring_scale_run(name: str, count: int) -> None:
    check(zoo.build(name, operators=count))


# -- through the optimiser -------------------------------------------------------------------------------------------


@lru_cache(maxsize=None)
def saturated(name: str) -> tuple[onnx.ModelProto, SearchSpace, Cost]:
    model = zoo.build(name)
    space = xrlflow.saturate(load(model))
    return model, space, bind(roofline("epyc-1t"), space)


@pytest.mark.parametrize("name", TINY)
def test_model_is_optimised_and_stays_the_same_function(name: str) -> None:
    model, space, cost = saturated(name)
    assert space.report.stop_reason not in ("node limit", "match limit", "time limit")
    found = xrlflow.extract(space, "climb", cost=cost, steps=60, seconds=None)
    assert found.cost <= cost.prices[space.baseline].sum() * (1 + 1e-9)
    result = verify(model, to_onnx(space.to_graph(found.selection)))
    assert result.passed, result


@pytest.mark.parametrize("name", TINY)
def test_a_selection_costs_what_the_written_model_costs(name: str) -> None:
    _, space, cost = saturated(name)
    for method in ("climb", "random"):
        found = xrlflow.extract(space, method, cost=cost, steps=30, seconds=None)
        graph = space.to_graph(found.selection)
        chosen = Counter(space.ops[i] for i in space.selected(found.selection) if not space.const[space.node_class[i]])
        for written in (graph, fold_constants(graph), load(to_onnx(graph))):
            spent = graph_cost(space, cost, found.selection, written)
            # Weights computed in two ways are one once they are folded, and then so are the operators that read them.
            fewer = written is not graph and chosen - Counter(written.nodes[i].op for i in written.operators)
            if set(fewer or ()) - {"Get", "Input"}:
                assert spent < found.cost
            else:
                assert spent == pytest.approx(found.cost, rel=1e-12)


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["bert-tiny", "--set", "layers=2", "--seed", "5"],
        ["build", "bert-tiny", "--layers", "2", "--seed", "5"],
        ["build", "bert-tiny", "--layers=2", "--seed=5"],
    ],
)
def test_command_writes_a_model(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    assert main([*arguments, "-o", str(path)]) == 0
    expected = zoo.build("bert-tiny", layers=2, seed=5)
    assert onnx.load(path).SerializeToString() == expected.SerializeToString()
    assert f"{len(expected.graph.node)} operators" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_sizes_of_the_command_may_be_numbers_lists_words_and_symbols(tmp_path: Path) -> None:
    path = str(tmp_path / "model.onnx")
    assert main(["build", "llama-tiny", "-o", path, "--kv-heads", "4", "--theta", "5000.5", "--batch", "b"]) == 0
    model = onnx.load(path)
    assert "Expand" not in operators(model) and model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "b"
    assert main(["build", "resnext-tiny", "-o", path, "--stages", "1,", "--norm", "false"]) == 0
    assert operators(onnx.load(path))["BatchNormalization"] == 0


def test_list_tells_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    lines = {line.split()[0]: line for line in said.splitlines() if line}
    assert set(zoo.MODELS) <= set(lines)
    told = zoo.tell("vgg19")
    assert lines["vgg19"].split()[-3:] == ["1×3×224×224", f"{told.operators:,}", f"{told.parameters:,}"]
    assert "transformers:NAME" in said and "whisper" in said.splitlines()[-1]
    assert main(["list", "bert-paper"]) == 0
    said = capsys.readouterr().out
    assert "faithful: bert" in said and "size: layers = 8" in said
    assert main(["list", "transformers:llama"]) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["bret"],
        ["build"],
        ["build", "bret"],
        ["build", "bert-tiny", "--layers"],
        ["build", "bert-tiny", "--layers", "two"],
        ["build", "bert-tiny", "--layers", "--heads", "2"],
        ["build", "bert-tiny", "--depth", "2"],
        ["build", "bert-tiny", "vit-tiny"],
        ["build", "bert-tiny", "--seed", "-1"],
        ["build", "bert-tiny", "--seed", "one"],
        ["build", "bert-tiny", "-o"],
        ["build", "--layers", "2"],
        ["build", "transformers:bret"],
        ["list", "bret"],
        ["list", "bert", "vit"],
        ["bert-tiny", "--set", "layers=two"],
        ["bert-tiny", "--set", "layers"],
        ["bert-tiny", "-o", "no/such/folder.onnx"],
    ],
)
def test_command_reports_bad_input_in_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and not said.out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_command_exports_from_transformers(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs the `models` extra")
    pytest.importorskip("transformers", reason="needs the `models` extra")
    path = tmp_path / "model.onnx"
    assert main(["build", "transformers:bert", "-o", str(path), "--dynamic", "false", "--seed", "2"]) == 0
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert all(d.HasField("dim_value") for i in model.graph.input for d in i.type.tensor_type.shape.dim)
    assert operators(model)["Softmax"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_import_is_light() -> None:
    heavy = ("onnx", "onnxruntime", "torch", "tvm", "egglog", "transformers")
    code = f"import sys, xrlflow.zoo, xrlflow.zoo.catalogue; print([m for m in {heavy!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_table_in_the_docs_is_current() -> None:
    script = Path(__file__).parent.parent / "docs" / "zoo_table.py"
    done = subprocess.run([sys.executable, script, "--check"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
