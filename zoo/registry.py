"""The models by name: what each is, where it comes from, its sizes, and how to make one."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .builder import outline
from .coded import bert_coded, dalle_coded, transducer_coded, vit_coded
from .decoders import deep_decoder, gpt2, t5, whisper
from .encoders import dalle, transducer
from .inception import inception, inception_block, inception_v3
from .light import LIGHT, light, resnet50, squeezenet
from .mobile import channels_last, convnext, efficientnet, mobilenet_v2
from .nasnet import nas_cells, nasnet, nasnet_coded
from .recurrent import mlp_tower, nas_cell, nasrnn
from .residual import resnext, squeezenet_coded, vgg
from .transformers import bert, llama, vit

if TYPE_CHECKING:
    from onnx import ModelProto

PREFIX = "transformers:"
"""Names that begin so are exports from the transformers package (`catalogue`)."""

TINY = "-tiny"


@dataclass(frozen=True)
class Entry:
    """One model of the zoo. sizes: what this entry sets of the builder's arguments. twin: of a paper's graph, the
    name of the faithful model."""

    name: str
    what: str
    source: str
    builder: Callable[..., ModelProto]
    sizes: Mapping[str, Any] = field(default_factory=dict)
    twin: str = ""

    def __call__(self, **sizes: Any) -> ModelProto:
        return self.builder(**{**self.sizes, **sizes})

    @property
    def parameters(self) -> dict[str, Any]:
        """All sizes and their defaults."""
        known = inspect.signature(self.builder).parameters
        return {name: self.sizes.get(name, parameter.default) for name, parameter in known.items()}

    @property
    def symbolic(self) -> tuple[str, ...]:
        """The sizes that may be names of symbols."""
        known = inspect.signature(self.builder).parameters
        return tuple(name for name, parameter in known.items() if parameter.annotation == "Size")


@dataclass(frozen=True)
class Outline:
    """What a model has, told without making its weights. inputs: name → shape."""

    inputs: dict[str, tuple[int | str, ...]]
    operators: int
    parameters: int


_ENTRIES: dict[str, Entry] = {}
_SMALL: dict[str, str] = {}


def _add(
    name: str, what: str, source: str, builder: Callable[..., ModelProto], sizes: dict[str, Any] | None = None,
    tiny: dict[str, Any] | None = None, twin: str = "", small: str = "",
) -> None:  # fmt: skip
    """An entry, and its small one `small` (NAME-tiny) with the sizes `tiny`."""
    _ENTRIES[name] = Entry(name, what, source, builder, MappingProxyType(sizes or {}), twin)
    if tiny is not None:
        short = small or name + TINY
        of = MappingProxyType({**(sizes or {}), **tiny})
        _ENTRIES[short] = Entry(short, f"{name}, every extent shrunk", source, builder, of, _SMALL.get(twin, ""))
        _SMALL[name] = short


_LETTERS = {"hidden": 16, "heads": 2, "intermediate": 24}
_CODED = {"layers": 2, "hidden": 16, "heads": 4, "tokens": 4}
_PUBLISHED = "light models of the onnx package"

_add(
    "squeezenet", "SqueezeNet 1.1, published graph", "Iandola et al., 2016", squeezenet, tiny={"image": 33},
)  # fmt: skip
_add("resnet50", "ResNet-50, published graph", "He et al., 2016", resnet50)
for _name in LIGHT:
    if _name not in ("squeezenet", "resnet50"):
        _add(_name.replace("_", "-"), "published graph, image 224", _PUBLISHED, partial(light, _name))
_add(
    "bert", "BERT-base encoder", "Devlin et al., 2019", bert,
    tiny={"layers": 1, **_LETTERS, "tokens": 6, "vocab": 50},
)  # fmt: skip
_add(
    "vit", "ViT-Base/16", "Dosovitskiy et al., 2021", vit,
    tiny={"layers": 1, **_LETTERS, "image": 16, "patch": 8, "classes": 10},
)  # fmt: skip
_add(
    "llama", "small Llama decoder: grouped queries, rotary, SwiGLU", "Touvron et al., 2023", llama,
    tiny={"layers": 1, **_LETTERS, "heads": 4, "kv_heads": 2, "tokens": 6, "vocab": 50},
)  # fmt: skip
_add(
    "gpt2", "GPT-2 small: one Gemm for q, k, v; tanh GELU", "Radford et al., 2019", gpt2,
    tiny={"layers": 1, "hidden": 16, "heads": 2, "tokens": 5, "vocab": 50},
)  # fmt: skip
_add(
    "t5", "T5 small: RMS norm, relative position bias, cross attention", "Raffel et al., 2020", t5,
    tiny={"layers": 1, **_LETTERS, "tokens": 7, "targets": 5, "vocab": 50, "buckets": 8, "distance": 16},
)  # fmt: skip
_add(
    "whisper", "Whisper tiny: 1-D convolutions, cross attention", "Radford et al., 2023", whisper,
    tiny={"layers": 1, "hidden": 16, "heads": 2, "mels": 6, "frames": 14, "targets": 5, "vocab": 50},
)  # fmt: skip
_add(
    "dalle", "DALL-E mini's text encoder", "Dayma et al., 2021; X-RLflow's sizes", dalle,
    tiny={"layers": 1, **_LETTERS, "tokens": 5, "vocab": 50},
)  # fmt: skip
_add(
    "transducer", "transformer transducer (T-T)", "Zhang et al., 2020; X-RLflow's sizes", transducer,
    tiny={"audio_layers": 1, "label_layers": 1, **_LETTERS, "tokens": 7, "labels": 3, "features": 5, "left": 3},
)  # fmt: skip
_add(
    "inception-v3", "InceptionV3", "Szegedy et al., 2016", inception_v3,
    tiny={"shrink": 16, "blocks": (1, 1, 1), "image": 75, "classes": 10},
)  # fmt: skip
_add(
    "inception", "three Inception-A blocks", "Szegedy et al., 2016", inception,
    tiny={"blocks": 1, "channels": 8, "image": 7, "width": 8, "classes": 10},
)  # fmt: skip
_add("inception-block", "one Inception-A block", "Szegedy et al., 2016", inception_block)
_add(
    "resnext50", "ResNeXt-50 32×4d", "Xie et al., 2017", resnext, small="resnext-tiny",
    tiny={"stages": (1, 1), "cardinality": 2, "width": 4, "image": 32, "stem": 8, "classes": 10},
)  # fmt: skip
_add(
    "resnet50-v1.5", "ResNet-50 as torchvision has it, any image", "He et al., 2016", resnext,
    {"cardinality": 1, "width": 64},
    {"stages": (1, 1), "width": 8, "image": 32, "stem": 8, "classes": 10},
)  # fmt: skip
_add(
    "vgg19-bn", "VGG-19 with batch normalisation", "Simonyan and Zisserman, 2015", vgg,
    tiny={"stages": (1, 2), "width": 8, "hidden": 24, "image": 12, "classes": 10},
)  # fmt: skip
_add(
    "nasnet-a", "NASNet-A mobile (4 @ 1056)", "Zoph et al., 2018", nasnet,
    tiny={"repeats": 1, "filters": 8, "stem": 4, "stages": 1, "image": 35, "classes": 10},
)  # fmt: skip
_add(
    "nasnet-a-large", "NASNet-A large (6 @ 4032)", "Zoph et al., 2018", nasnet,
    {"repeats": 6, "filters": 168, "stem": 96, "image": 331},
)  # fmt: skip
_add(
    "nasrnn", "searched recurrent cell, 5 steps, each with weights of its own", "Zoph and Le, 2017; TASO", nasrnn,
    tiny={"steps": 2, "hidden": 8},
)  # fmt: skip
_add(
    "nasrnn-cell", "the same cell with memory, biases and shared weights", "Zoph and Le, 2017", nas_cell,
    tiny={"steps": 2, "hidden": 8},
)  # fmt: skip
_add(
    "mobilenet-v2", "MobileNetV2: depthwise, Clip", "Sandler et al., 2018", mobilenet_v2,
    tiny={"blocks": (1, 2), "shrink": 4, "head": 16, "image": 32, "classes": 10},
)  # fmt: skip
_add(
    "efficientnet", "EfficientNet-B0: squeeze and excitation, SiLU", "Tan and Le, 2019", efficientnet,
    tiny={"blocks": (1, 2), "shrink": 4, "head": 16, "image": 32, "classes": 10},
)  # fmt: skip
_add(
    "convnext", "ConvNeXt tiny: depthwise 7×7, layer norm, GELU", "Liu et al., 2022", convnext,
    tiny={"depths": (1, 1), "widths": (8, 12), "image": 32, "classes": 10},
)  # fmt: skip
_add(
    "channels-last", "residual net between Transposes, as tf2onnx writes it", "", channels_last,
    tiny={"blocks": 1, "width": 6, "image": 8},
)  # fmt: skip
_add(
    "mlp-tower", "parallel perceptrons over one input", "", mlp_tower,
    tiny={"towers": 2, "layers": 1, "width": 8, "batch": 3},
)  # fmt: skip
_add(
    "bert-paper", "BERT as coded: attention that nothing reads, no softmax", "X-RLflow, TASO, TENSAT", bert_coded,
    tiny=_CODED, twin="bert",
)  # fmt: skip
_add(
    "vit-paper", "ViT as coded: no softmax, no activation", "X-RLflow", vit_coded,
    tiny={**_CODED, "intermediate": 24}, twin="vit",
)  # fmt: skip
_add(
    "dalle-paper", "DALL-E mini as coded: no softmax, mask as a weight", "X-RLflow", dalle_coded,
    tiny={**_CODED, "tokens": 5, "intermediate": 24}, twin="dalle",
)  # fmt: skip
_add(
    "transducer-paper", "T-T as coded: no softmax, one input for both encoders", "X-RLflow", transducer_coded,
    tiny={"audio_layers": 1, "label_layers": 1, **_LETTERS, "tokens": 7, "features": 5}, twin="transducer",
)  # fmt: skip
_add(
    "inception-v3-paper", "InceptionV3 as coded: Conv and Relu only", "X-RLflow, TASO, TENSAT", inception_v3,
    {"as_coded": True}, {"shrink": 16, "blocks": (1, 1, 1), "image": 75}, "inception-v3",
)  # fmt: skip
_add(
    "squeezenet-paper", "SqueezeNet 1.1, Conv and Relu only", "X-RLflow, TENSAT", squeezenet_coded,
    tiny={"shrink": 4, "image": 33, "classes": 10}, twin="squeezenet",
)  # fmt: skip
_add(
    "resnext50-paper", "ResNeXt-50 32×4d as coded: Conv and Relu only", "X-RLflow, TASO, TENSAT", resnext,
    {"as_coded": True}, {"stages": (1, 1), "cardinality": 2, "width": 4, "image": 32, "stem": 8},
    "resnext50",
)  # fmt: skip
_add(
    "resnet50-paper", "ResNet-50, Conv and Relu only", "TASO, TENSAT", resnext,
    {"as_coded": True, "cardinality": 1, "width": 64}, {"stages": (1, 1), "width": 8, "image": 32, "stem": 8},
    "resnet50-v1.5",
)  # fmt: skip
_add(
    "vgg19-paper", "VGG-19, Conv, Relu and MatMul only", "TENSAT", vgg,
    {"as_coded": True}, {"stages": (1, 2), "width": 8, "hidden": 24, "image": 12, "classes": 10}, "vgg19-bn",
)  # fmt: skip
_add(
    "nasnet-a-paper", "NASNet-A as coded: no norms, 15 cells on 128 channels", "TASO", nasnet_coded,
    tiny={"channels": 4, "cells": 1, "image": 9}, twin="nasnet-a",
)  # fmt: skip
_add(
    "nasrnn-paper", "nasrnn whose first state is a weight", "TASO, TENSAT", nasrnn, {"as_coded": True},
    {"steps": 2, "hidden": 8}, "nasrnn-cell",
)  # fmt: skip
_add(
    "deep-decoder", "llama layers by the number of operators", "for measuring scale", deep_decoder,
    tiny={"operators": 100, "hidden": 16, "heads": 2, "kv_heads": 1, "intermediate": 12, "tokens": 4, "vocab": 20},
)  # fmt: skip
_add(
    "nas-cells", "random cells, no two alike", "for measuring scale", nas_cells,
    tiny={"operators": 60, "nodes": 3, "width": 3, "image": 6},
)  # fmt: skip

MODELS: Mapping[str, Entry] = MappingProxyType(_ENTRIES)
"""Every model by name. All take `seed` and `opset`; the other sizes are those of the function behind the name."""


def build(name: str, **sizes: Any) -> ModelProto:
    """The model `name` of `MODELS`, or an export `transformers:FAMILY`; `sizes` override its extents.

    Extents that are typed `Size` may be names of symbols. The same name, sizes and numpy version give the same bytes.
    Raises `UserError` for an unknown name, an unknown size or sizes that do not go together.
    """
    if name.startswith(PREFIX):
        from .catalogue import build as exported

        return exported(name.removeprefix(PREFIX), **sizes)
    if name not in MODELS:
        raise UserError(f"there is no model {name!r} in the zoo; choose from {', '.join(MODELS)} or {PREFIX}NAME")
    entry = MODELS[name]
    known = inspect.signature(entry.builder).parameters
    for size, value in sizes.items():
        if size not in known:
            raise UserError(f"model {name} has no size {size!r}; it has {', '.join(known)}")
        _check(f"size {size!r} of model {name}", str(known[size].annotation), value, 0 if size in _FROM_ZERO else 1)
    try:
        return entry(**sizes)
    except (ValueError, MemoryError) as error:
        raise UserError(f"model {name}: {str(error) or 'not enough memory'}") from error


def tell(name: str, **sizes: Any) -> Outline:
    """What the model `name` has: inputs, number of operators, number of weights. Raises as `build` does."""
    with outline():
        graph = build(name, **sizes).graph
    return Outline(
        {i.name: tuple(d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim) for i in graph.input},
        len(graph.node),
        sum(math.prod(t.dims) for t in graph.initializer if t.data_type == t.FLOAT),
    )


_FROM_ZERO = ("seed", "left")
"""Sizes that may be 0."""

_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a number"),
    "Size": ((int, str), "a number or the name of a symbol"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "tuple[int, ...]": ((tuple, list), "numbers separated by commas"),
}
"""What sizes are annotated with: the types of their values, and how to say so."""


def _check(what: str, annotation: str, value: Any, least: int) -> None:
    """Raise `UserError` unless the value is of the annotated type and its numbers are at least `least`."""
    kinds = annotation.split(" | ")
    if value is None and "None" in kinds:
        return
    kind = kinds[0]
    types, wanted = _KINDS[kind]
    numbers: Any = value if kind.startswith("tuple") and isinstance(value, types) else (value,)
    good = isinstance(value, types) and (kind == "bool") is isinstance(value, bool)
    good = good and (not isinstance(value, str) or value.isidentifier())
    good = good and (not kind.startswith("tuple") or (bool(numbers) and all(isinstance(v, int) for v in numbers)))
    if not good:
        raise UserError(f"{what} must be {wanted}, not {value!r}")
    if kind not in ("float", "bool") and any(isinstance(v, int) and v < least for v in numbers):
        raise UserError(f"{what} must be at least {least}, not {value!r}")
