"""`python -m xrlflow.zoo list` tells the models of the zoo, `python -m xrlflow.zoo build NAME -o FILE` writes one."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..errors import UserError
from . import MODELS, build, tell
from .registry import PREFIX

USAGE = """\
python -m xrlflow.zoo list [NAME]
       python -m xrlflow.zoo build NAME -o FILE [--seed N] [--SIZE VALUE]..."""

DESCRIPTION = """\
list          the models: inputs, number of operators, number of weights; of one NAME all sizes and their defaults
build NAME    write one as ONNX, with seeded random weights; NAME -o FILE without the word does the same

Sizes are set by --SIZE VALUE or --set SIZE=VALUE: --layers 2, --batch 4, --blocks 1,2. A batch or a number of tokens
may be the name of a symbol: --batch batch. transformers:NAME exports a model of that package (the `models` extra)."""


class _Parser(argparse.ArgumentParser):
    """An argument parser that reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 0, or 2 for bad input."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words[:1] == ["list"]:
            print(_described(words[1]) if len(words) == 2 else _listed(words[1:]), end="")
            return 0
        if words[:1] == ["build"]:
            words = words[1:]
            if not words:
                raise UserError("build needs the NAME of a model; `python -m xrlflow.zoo list` tells them")
        return _built(words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _built(words: list[str]) -> int:
    parser = _Parser(
        prog="python -m xrlflow.zoo", usage=USAGE, description=DESCRIPTION, epilog=f"models: {', '.join(MODELS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME", nargs="?", help="the model; without it the names are listed")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="where to write it (default: NAME.onnx)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the weights (default: 0)")
    parser.add_argument(
        "--set", metavar="SIZE=VALUE", action="append", default=[], help="change a size, such as layers=2 (repeatable)"
    )
    options, rest = parser.parse_known_args(words)
    if options.name is None and not rest:
        print("\n".join(MODELS))
        return 0
    if options.name is None:
        raise UserError(f"{rest[0]} before the NAME of a model; write build NAME -o FILE {rest[0]} …")
    sizes = dict(_size(f"--set {text}", *text.partition("=")[::2]) for text in options.set)
    sizes.update(_sizes(rest))
    model = build(options.name, **{"seed": options.seed, **sizes})
    path = options.output or Path(f"{options.name.replace(':', '-')}.onnx")
    write(model.SerializeToString(), path)
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


def _sizes(rest: list[str]) -> Iterable[tuple[str, Any]]:
    """The sizes in --SIZE VALUE and --SIZE=VALUE."""
    words = iter(rest)
    for word in words:
        if not word.startswith("--"):
            raise UserError(f"unexpected {word!r}; sizes are given as --SIZE VALUE")
        name, equals, value = word[2:].partition("=")
        if not equals:
            value = next(words, "--")
        if not value or value.startswith("--"):
            raise UserError(f"{word} needs a value, such as {word} 2")
        yield _size(word, name, value)


def _size(where: str, name: str, value: str) -> tuple[str, Any]:
    """A size and its value: a number, numbers separated by commas, true, false, or a name."""
    name = name.replace("-", "_")
    if not name.isidentifier() or not value:
        raise UserError(f"{where}: expected SIZE=VALUE, such as layers=2")
    if value in ("true", "false"):
        return name, value == "true"
    try:
        if "," in value:
            return name, tuple(map(int, value.strip(",").split(",")))
        return name, float(value) if "." in value else int(value)
    except ValueError:
        return name, value


def _listed(words: list[str]) -> str:
    if words:
        raise UserError(f"unexpected {words[1]!r}; list takes at most one NAME")
    rows = [("name", "what", "inputs", "operators", "parameters")]
    rows += [row(name) for name in MODELS]
    widths = [max(len(r[i]) for r in rows) for i in range(5)]
    lines = [
        "  ".join(v.rjust(w) if i > 2 else v.ljust(w) for i, (v, w) in enumerate(zip(r, widths, strict=True)))
        for r in rows
    ]
    lines.append("")
    lines.append(f"{PREFIX}NAME, exported by that package: {', '.join(_exports())}")
    return "\n".join(lines) + "\n"


def row(name: str) -> tuple[str, str, str, str, str]:
    """The row of a model in the table: name, what it is, inputs, number of operators, number of weights."""
    told = tell(name)
    shapes = list(dict.fromkeys("×".join(map(str, shape)) for shape in told.inputs.values()))
    return name, MODELS[name].what, ", ".join(shapes), f"{told.operators:,}", f"{told.parameters:,}"


def _described(name: str) -> str:
    if name.startswith(PREFIX):
        from .catalogue import FAMILIES

        if name.removeprefix(PREFIX) not in FAMILIES:
            raise UserError(f"there is no export {name!r}; choose from {', '.join(_exports())}")
        kind = FAMILIES[name.removeprefix(PREFIX)].kind
        return f"{name}: {kind}\nsizes: exporter, dynamic=true, dtype=float32, seed=0\n"
    if name not in MODELS:
        raise UserError(f"there is no model {name!r} in the zoo; choose from {', '.join(MODELS)}")
    entry, told = MODELS[name], tell(name)
    lines = [f"{name}: {entry.what}" + (f" ({entry.source})" if entry.source else "")]
    if entry.twin:
        lines.append(f"faithful: {entry.twin}")
    lines += [f"input: {value} {list(shape)}" for value, shape in told.inputs.items()]
    lines.append(f"operators: {told.operators:,}, parameters: {told.parameters:,}")
    lines += [f"size: {size} = {_shown(value)}" for size, value in entry.parameters.items()]
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _exports() -> list[str]:
    from .catalogue import FAMILIES

    return list(FAMILIES)


if __name__ == "__main__":
    sys.exit(main())
