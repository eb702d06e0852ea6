"""Writes a model of the zoo: `python -m xrlflow.zoo NAME -o FILE [--set SIZE=VALUE]`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from . import MODELS, build


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m xrlflow.zoo",
        description="Write a model of the zoo as ONNX, with seeded random weights.",
        epilog=f"models: {', '.join(MODELS)}",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="the model; without it the names are listed")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="where to write it (default: NAME.onnx)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default: 0)")
    parser.add_argument(
        "--set", metavar="SIZE=VALUE", action="append", default=[], help="change a size, such as layers=2 (repeatable)"
    )
    options = parser.parse_args(arguments)
    if options.name is None:
        print("\n".join(MODELS))
        return 0
    try:
        model = build(options.name, seed=options.seed, **dict(_size(text) for text in options.set))
        path = options.output or Path(f"{options.name}.onnx")
        write(model.SerializeToString(), path)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{path}: {len(model.graph.node)} operators, {path.stat().st_size / 1e6:.1f} MB")
    return 0


def write(data: bytes, path: Path) -> None:
    """Write `data` to `path` in one step, so that no reader sees a part of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def _size(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, tuple(map(int, value.split(","))) if "," in value else int(value)
    except ValueError:
        raise UserError(f"--set {text}: expected SIZE=INTEGER, such as layers=2") from None


if __name__ == "__main__":
    sys.exit(main())
