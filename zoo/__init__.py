"""Models by construction: the papers' graphs and faithful real ones, with seeded weights, as `onnx.ModelProto`.

`MODELS` names them all; `build(name, **sizes)` makes one; `python -m xrlflow.zoo NAME -o FILE` writes one. The `-tiny`
entries keep the structure and shrink every extent, for tests and for training policies.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .convolutional import inception, inception_block, resnext
from .light import LIGHT, light, resnet50, squeezenet
from .recurrent import mlp_tower, nasrnn
from .transformers import bert, llama, vit

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = [
    "LIGHT", "MODELS", "bert", "build", "inception", "inception_block", "light", "llama", "mlp_tower", "nasrnn",
    "resnet50", "resnext", "squeezenet", "vit",
]  # fmt: skip

MODELS: dict[str, Callable[..., ModelProto]] = {
    "squeezenet": squeezenet,
    "resnet50": resnet50,
    **{n.replace("_", "-"): partial(light, n) for n in LIGHT if n not in ("squeezenet", "resnet50")},
    "bert": bert,
    "vit": vit,
    "llama": llama,
    "inception": inception,
    "inception-block": inception_block,
    "resnext50": resnext,
    "nasrnn": nasrnn,
    "mlp-tower": mlp_tower,
    "squeezenet-tiny": partial(squeezenet, image=33),
    "bert-tiny": partial(bert, layers=1, hidden=16, heads=2, intermediate=24, tokens=6, vocab=50),
    "vit-tiny": partial(vit, layers=1, hidden=16, heads=2, intermediate=24, image=16, patch=8, classes=10),
    "llama-tiny": partial(llama, layers=1, hidden=16, heads=4, kv_heads=2, intermediate=24, tokens=6, vocab=50),
    "inception-tiny": partial(inception, blocks=1, channels=8, image=7, width=8, classes=10),
    "resnext-tiny": partial(resnext, stages=(1, 1), cardinality=2, width=4, image=32, stem=8, classes=10),
    "nasrnn-tiny": partial(nasrnn, steps=2, hidden=8),
    "mlp-tower-tiny": partial(mlp_tower, towers=2, layers=1, width=8, batch=3),
}
"""Every model by name. All take `seed`; the other sizes are the keyword arguments of the function behind the name."""


def build(name: str, **sizes: Any) -> ModelProto:
    """The model `name` of `MODELS`; `sizes` override its extents.

    The same name, sizes and numpy version give the same bytes. Raises `UserError` for an unknown name, an
    unknown size or sizes that do not go together.
    """
    if name not in MODELS:
        raise UserError(f"there is no model {name!r} in the zoo; choose from {', '.join(MODELS)}")
    known = inspect.signature(MODELS[name]).parameters
    for size in sizes:
        if size not in known:
            raise UserError(f"model {name} has no size {size!r}; it has {', '.join(known)}")
    try:
        return MODELS[name](**sizes)
    except ValueError as error:
        raise UserError(f"model {name}: {error}") from error
