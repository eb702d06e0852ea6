"""xrlflow: make neural networks faster without changing what they compute.

    >>> import xrlflow
    >>> result = xrlflow.optimize("model.onnx", method="rl", target="onnxruntime")
    >>> result.save("fast.onnx")

`load`, `saturate`, `extract`, `optimize`, `verify` and `save` are the verbs; the same steps as the command
`python -m xrlflow.extract`. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .egraph.saturate import saturate as saturate
    from .lowering.onnx_files import save as save
    from .lowering.onnx_reader import load as load
    from .lowering.verification import verify as verify
    from .pipeline import extract as extract
    from .pipeline import optimize as optimize
    from .result import Result as Result

__version__ = "0.1.0"
__all__ = ["Result", "UserError", "__version__", "extract", "load", "optimize", "saturate", "save", "verify"]

# `extract` is also the module behind `python -m xrlflow.extract`; that module can be called (see there).
_HOMES = {
    "Result": ".result",
    "UserError": ".errors",
    "load": ".lowering.onnx_reader",
    "optimize": ".pipeline",
    "save": ".lowering.onnx_files",
    "saturate": ".egraph.saturate",
    "verify": ".lowering.verification",
}


def __getattr__(name: str) -> Any:
    if name == "extract":
        return import_module(".extract", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
