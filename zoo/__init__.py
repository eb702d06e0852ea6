"""Models by construction: the papers' graphs and faithful real ones, with seeded weights, as `onnx.ModelProto`.

`MODELS` names them all; `build(name, **sizes)` makes one; `python -m xrlflow.zoo build NAME -o FILE` writes one.
NAME-paper is a graph as the papers' scripts have it; NAME-tiny keeps the structure and shrinks every extent, for tests
and for training policies; `transformers:NAME` is an export, if that package is installed. docs/zoo.md has the table.
"""

from __future__ import annotations

from .coded import bert_coded, dalle_coded, transducer_coded, vit_coded
from .decoders import deep_decoder, gpt2, t5, whisper
from .encoders import dalle, transducer
from .inception import inception, inception_block, inception_v3
from .light import LIGHT, light, resnet50, squeezenet
from .mobile import channels_last, convnext, efficientnet, mobilenet_v2
from .nasnet import nas_cells, nasnet, nasnet_coded
from .recurrent import mlp_tower, nas_cell, nasrnn
from .registry import MODELS, Entry, Outline, build, tell
from .residual import resnext, squeezenet_coded, vgg
from .transformers import bert, llama, vit

__all__ = [
    "LIGHT", "MODELS", "Entry", "Outline", "bert", "bert_coded", "build", "channels_last", "convnext", "dalle",
    "dalle_coded", "deep_decoder", "efficientnet", "gpt2", "inception", "inception_block", "inception_v3", "light",
    "llama", "mlp_tower", "mobilenet_v2", "nas_cell", "nas_cells", "nasnet", "nasnet_coded", "nasrnn", "resnet50",
    "resnext", "squeezenet", "squeezenet_coded", "t5", "tell", "transducer", "transducer_coded", "vgg", "vit",
    "vit_coded", "whisper",
]  # fmt: skip
