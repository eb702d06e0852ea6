"""`--replay RUN.json`: what a run found, written again without searching or measuring, on this machine or another."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from .errors import UserError
from .options import Options
from .result import Result


def replay(source: Any, record: str | os.PathLike[str], options: Options) -> Result:
    """The result of the run that wrote `record` about this model; it is verified again, unless told otherwise.

    source: the model that the run was given. Of the options only those of verification count; all else is what the run
    was told. Raises `UserError` for a record that cannot be read, or is of another model.
    """
    from .egraph.record import NotRecorded, restore
    from .judging import runnable
    from .lowering.onnx_forms import meant_for
    from .lowering.onnx_reader import load, plain
    from .lowering.verification import Verification, verify

    name = os.path.basename(os.fspath(record))
    try:
        data = json.loads(Path(record).read_text(encoding="utf-8"))
        told, target = data["replay"], str(data["target"])
        shape, opset = told["shape"], told["opset"]
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error})") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{name}: no record of a run that can be replayed; --json writes one") from None
    source = plain(source)
    graph = load(
        source, shapes=shape, opset=opset, verify=options.verify, custom_ops=tuple(options.custom_ops),
        params=options.params,
    )  # fmt: skip
    graph = meant_for(graph, target.partition(":")[0])
    result = Result(graph, source, target, options)
    if told["program"] is None:
        result.stop(f"replayed from {name}: the run returned the original")
        return result
    try:
        program = restore(told["program"], graph)
    except NotRecorded as error:
        raise UserError(f"{name}: no record of this model ({error})") from None
    with tempfile.TemporaryDirectory(prefix="xrlflow-") as folder:
        model = runnable(program, Path(folder) / "candidate.onnx")
        altered = getattr(graph.source, "altered", False)
        original = runnable(graph, Path(folder) / "original.onnx") if altered else source
        result.verification = Verification("unverified", detail="--no-verify was given")
        if options.verify:
            result.verification = verify(original, model, seed=options.seed, custom_ops=options.custom_ops)
        if options.verify and not result.verification.passed:
            failed = result.verification.verdict == "failed"
            result.stop(f"replayed from {name}: {result.verification}: the original is returned", 3 if failed else 0)
            return result
    result.accept(program, None)
    result.outcome = f"replayed from {name}"
    return result
