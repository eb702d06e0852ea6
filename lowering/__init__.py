"""The way in and out: models read into graphs and written back, evaluated, compiled, run and verified.

Nothing heavy is imported until one of the functions is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evaluation import NotEvaluable as NotEvaluable
    from .evaluation import evaluate as evaluate
    from .evaluation import evaluate_node as evaluate_node
    from .folding import fold_constants as fold_constants
    from .inputs import random_inputs as random_inputs
    from .onnx_files import save as save
    from .onnx_forms import available as available
    from .onnx_reader import load as load
    from .onnx_writer import to_onnx as to_onnx
    from .verification import Verification as Verification
    from .verification import verify as verify

# No module may bear the name of a function: importing it would put the module in the function's place.
_HOMES = {
    "NotEvaluable": "evaluation",
    "Verification": "verification",
    "available": "onnx_forms",
    "evaluate": "evaluation",
    "evaluate_node": "evaluation",
    "fold_constants": "folding",
    "load": "onnx_reader",
    "random_inputs": "inputs",
    "save": "onnx_files",
    "to_onnx": "onnx_writer",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
