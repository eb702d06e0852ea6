"""`python -m xrlflow`: lists the commands; `python -m xrlflow doctor` says what this machine can do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from .errors import UserError

COMMANDS = {
    "extract": "optimise an ONNX model",
    "train": "train a policy, from scratch or on your models",
    "zoo": "write one of the models that come with the package",
    "tune": "tune the kernels of a model, for later runs to use",
    "serve": "let searches elsewhere measure on this machine",
    "cache": "what was measured, and how to take it to another machine",
    "doctor": "usable targets, versions, cache, policy",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in COMMANDS and words[0] != "doctor":
        module = import_module(f".{words[0]}", __package__)
        if words[0] == "zoo":
            module = import_module(".zoo.__main__", __package__)
        return int(module.main(words[1:]) or 0)
    if words == ["doctor"]:
        from .doctor import report

        try:
            print(report())
        except UserError as error:
            print(f"xrlflow doctor: {error}", file=sys.stderr)
            return error.exit_code
        return 0
    if words and words[0] not in ("-h", "--help"):
        print(f"xrlflow: unknown command {words[0]!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    print("usage: xrlflow COMMAND …  (or python -m xrlflow.COMMAND …; each has --help)\n")
    for name, what in COMMANDS.items():
        print(f"  {name:8} {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
