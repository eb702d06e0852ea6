"""How much of real models the rules reach, beside what other tools reach: `benchmarks/results/coverage.md`.

    python benchmarks/coverage.py                               # the usual families, by both of torch's exporters
    python benchmarks/coverage.py --families bert llama --no-ablation

For each export: the share of its roofline time that rules touch; the roofline cost that climbing reaches, with the
operators of ONNX alone and with ONNX Runtime's own; what ONNX Runtime's transformer optimiser, onnxsim and onnxslim
reach, each in the best of its forms that computes what the original computes; and the cost with each family of rules
left out. A model is done once: its record is kept in a folder that git ignores until the code or the model changes.

Needs the `models` and `bench` extras: pip install -e '.[models,bench]'.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import hashlib
import io
import json
import multiprocessing
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from math import exp, log
from pathlib import Path
from typing import Any
from unittest import mock

from catalogue import FAMILIES, Variant
from exports import FOLDER, ROOT, processor, write
from opponents import TOOLS, pinned, quiet, results, size, versions

import xrlflow

DEVICES = ("epyc-1t", "h200")
POINT = {
    "batch": 4, "images": 4, "sequence": 64, "target": 24, "past": 32, "total": 96, "height": 64, "width": 64,
    "samples": 1600,
}  # fmt: skip
"""Extents at which everything is priced: within what the models' tables of positions hold."""

STEPS, SECONDS = 2000, 3.0
"""Budget of climbing: cost evaluations, and seconds at most."""

SATURATION = 10.0
"""Seconds that saturation may take at most."""

SAMPLES = 2
"""Made-up inputs on which results are verified, at least."""

USUAL = (
    "bert", "distilbert", "deberta", "gpt2", "opt", "llama", "qwen3", "mixtral", "t5", "bart", "vit", "clip", "swin",
    "convnext",
)  # fmt: skip
"""Families that are examined unless others are named: each by both exporters."""

OURS = ("standard", "contrib")
"""With the operators of the model's opset alone; with ONNX Runtime's own as well."""

SOURCES = ("egraph", "cost", "lowering", "policy", "benchmarks/coverage.py", "benchmarks/opponents.py")


def code() -> str:
    """A digest of the code that a record depends on."""
    digest = hashlib.blake2b(digest_size=8)
    for source in SOURCES:
        path = ROOT / source
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def case(path: Path) -> tuple[dict[str, int], dict[str, Any]]:
    """A binding of the model's symbols, `POINT` where the model runs there, and inputs that it runs on."""
    import tempfile

    from xrlflow.lowering import load
    from xrlflow.lowering.cases import Cases
    from xrlflow.lowering.plain_session import PlainSession
    from xrlflow.lowering.points import point
    from xrlflow.lowering.reference import Reference

    graph = load(path)
    wanted = {k: v for k, v in POINT.items() if k in point(graph, {}, "the model")}
    cases = Cases(Reference(graph, ()), 1, 0, [wanted], None, time.monotonic(), 30.0)
    with tempfile.TemporaryDirectory() as folder:
        for binding, inputs, _ in cases.of(PlainSession(path, Path(folder) / "model.onnx", False)):
            return binding, inputs
    raise RuntimeError(f"{path.name} runs nowhere: {cases.tried}")


def priced(model: Any, inputs: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of a model's graph as our reader reads it at the extents of `inputs`, by device."""
    from xrlflow.cost.base import bind
    from xrlflow.cost.roofline import roofline
    from xrlflow.egraph.saturate import saturate
    from xrlflow.lowering import load

    # the reader takes the extents of value infos for stale; those of a run are not
    with mock.patch("xrlflow.lowering.onnx_inference._forget"):
        graph = load(pinned(model, inputs))
    space = saturate(graph, [], max_iterations=1)
    lost = sorted({space.ops[i] for i in space.baseline.tolist() if not space.node_type(i).concrete})
    if lost:
        raise RuntimeError(f"the types of {', '.join(lost)} are not known")
    return {d: float(bind(roofline(d), space).prices[space.baseline].sum()) for d in DEVICES}


def rules_for(graph: Any, without: Sequence[str] = ()) -> Any:
    from xrlflow.egraph.rules import rule_set

    return rule_set(None, without, graph.writes)


def climbed(space: Any, device: str, binding: dict[str, int]) -> tuple[Any, float, float]:
    """What climbing chooses from a space, what it costs, and what the input costs there."""
    import numpy as np

    from xrlflow.cost.base import AtPoints, bind
    from xrlflow.cost.roofline import roofline
    from xrlflow.policy.base import Budget, extractor

    cost = bind(AtPoints(roofline(device), [binding]), space)
    cost = replace(cost, space=space.at(binding))
    found = extractor("climb").extract(cost.space, cost, Budget(SECONDS, STEPS), np.random.default_rng(0))
    return found, found.cost, float(cost.prices[space.baseline].sum())


def shares(space: Any, device: str, binding: dict[str, int]) -> dict[str, float]:
    """Shares of the input's roofline time: what some rule gives a choice for, and what some program does without.

    choice: of the e-nodes of the input graph, those whose class holds another e-node, made by a rule. touched: those
    and the ones whose class some program of the space does not compute at all, for they are inside a left side that
    a rule replaced. opaque: operators that no rule can speak of.
    """
    from xrlflow.cost.base import AtPoints, bind
    from xrlflow.cost.roofline import roofline
    from xrlflow.egraph.operators import core

    prices = bind(AtPoints(roofline(device), [binding]), space).prices
    total = float(prices[space.baseline].sum()) or 1.0
    time_of = dict.fromkeys(("choice", "touched", "opaque"), 0.0)
    original = set(space.baseline.tolist())
    needed: dict[int, bool] = {}
    for i in space.baseline.tolist():
        c = int(space.node_class[i])
        choice = any(space.rules[j] for j in space.nodes_of(c) if j != i and j not in original)
        if not choice and c not in needed:
            needed[c] = not derivable(space, c)
        time_of["choice"] += prices[i] * choice
        time_of["touched"] += prices[i] * (choice or not needed[c])
        time_of["opaque"] += prices[i] * (not core(space.ops[i]))
    return {name: float(found / total) for name, found in time_of.items()}


def derivable(space: Any, without: int) -> bool:
    """Whether the roots can be computed by e-nodes of which none reads the class `without`."""
    waiting = [len(set(kids)) for kids in space.child_lists]
    known = bytearray(space.n_classes)
    stack = [int(space.node_class[i]) for i, n in enumerate(waiting) if n == 0]
    while stack:
        c = stack.pop()
        if known[c] or c == without:
            continue
        known[c] = 1
        for i in space.parents[c]:
            waiting[i] -= 1
            if waiting[i] == 0:
                stack.append(int(space.node_class[i]))
    return all(known[c] for c in space.roots.tolist())


def checked(original: Path, model: Any, binding: dict[str, int]) -> str:
    """ "" if the model computes what the original computes, else what is wrong."""
    from xrlflow.lowering.verification import verify

    found = verify(original, model, samples=SAMPLES, symbols=[binding] if binding else None, seconds=20.0)
    return "" if found.passed else str(found)


def by_us(path: Path, binding: dict[str, int], inputs: dict[str, Any], record: dict[str, Any]) -> None:
    from xrlflow.egraph.saturate import saturate
    from xrlflow.lowering import load, to_onnx
    from xrlflow.lowering.onnx_forms import meant_for

    for name in OURS:
        graph = meant_for(load(path), "onnxruntime" if name == "contrib" else "any")
        space = saturate(graph, rules_for(graph), seconds=SATURATION)
        report = space.report
        own: dict[str, Any] = {
            "enodes": space.n_nodes, "seconds": report.seconds, "stop": report.stop_reason,
            "fired": dict(sorted(report.fired.items(), key=lambda item: (-item[1], item[0]))),
        }  # fmt: skip
        record[name] = own
        for device in DEVICES:
            entry: dict[str, Any] = {"shares": shares(space, device, binding)}
            own[device] = entry
            found, entry["climbed"], entry["input"] = climbed(space, device, binding)
            written = to_onnx(space.to_graph(found.selection))
            entry["wrong"] = checked(path, written, binding)
            entry["cost"] = record["original"][device] if entry["wrong"] else priced(written, inputs)[device]


def by_others(path: Path, family: str, binding: dict[str, int], inputs: dict[str, Any], record: dict[str, Any]) -> None:
    import onnx

    for tool in TOOLS:
        own: dict[str, Any] = {"failures": {}}
        record[tool] = own
        prices: dict[str, dict[str, float]] = {}
        models: dict[str, Any] = {}
        for form, file in results(tool, path, family).items():
            if isinstance(file, str):
                own["failures"][form] = file
                continue
            models[form] = onnx.load(file)
            try:
                prices[form] = priced(models[form], inputs)
            except Exception as error:  # noqa: BLE001 (what a tool wrote need not run)
                own["failures"][form] = f"cannot be run: {(str(error).splitlines() or [''])[0][:200]}"
        verdicts: dict[str, str] = {}
        for device in DEVICES:
            own[device] = {"cost": record["original"][device], "form": "the original"}
            for form in sorted(prices, key=lambda f: prices[f][device]):
                if prices[form][device] >= record["original"][device]:
                    break
                if form not in verdicts:
                    verdicts[form] = checked(path, models[form], binding)
                    if verdicts[form]:
                        own["failures"][form] = verdicts[form]
                if not verdicts[form]:
                    own[device] = {"cost": prices[form][device], "form": form}
                    break


def ablation(path: Path, binding: dict[str, int]) -> dict[str, dict[str, float]]:
    """By family, and for "" (none left out), the share of the input's cost that is left, by device.

    A family of which no rule fired can be left out without being tried.
    """
    from xrlflow.egraph.rules import FAMILIES as RULES
    from xrlflow.egraph.saturate import saturate
    from xrlflow.lowering import load
    from xrlflow.lowering.onnx_forms import meant_for

    graph = meant_for(load(path), "onnxruntime")
    found: dict[str, dict[str, float]] = {}
    fired: set[str] = set()
    for family in ("", *RULES):
        if family and family not in fired:
            found[family] = found[""]
            continue
        rules = rules_for(graph, [family] if family else [])
        space = saturate(graph, rules, seconds=SATURATION)
        if not family:
            fired = {rule.family for rule in rules if space.report.fired.get(rule.name)}
        found[family] = {}
        for device in DEVICES:
            _, after, before = climbed(space, device, binding)
            found[family][device] = after / before
    return found


def examined(variant: Variant, folder: Path, ablate: bool, key: str) -> dict[str, Any]:
    """The record of one export, from the folder if it was made with the same code and versions."""
    quiet()
    path = variant.file()
    file = folder / f"{variant.name}.json"
    record: dict[str, Any] = {}
    if file.exists():
        record = json.loads(file.read_text(encoding="utf-8"))
    if record.get("key") != key or record.get("file") != path.name:
        started = time.monotonic()
        record = {"key": key, "file": path.name, "name": variant.name, "family": variant.family}
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            import onnx

            binding, inputs = case(path)
            record |= {"point": binding, "operators": size(path), "original": priced(onnx.load(path), inputs)}
            by_us(path, binding, inputs, record)
            by_others(path, variant.family, binding, inputs, record)
        record["seconds"] = time.monotonic() - started
        write(file, json.dumps(record, indent=1))
    if ablate and "ablation" not in record:
        record["ablation"] = ablation(path, record["point"])
        write(file, json.dumps(record, indent=1))
    return record


# The page


def mean(values: Sequence[float]) -> float:
    """Geometric mean."""
    return exp(sum(map(log, values)) / len(values)) if values else float("nan")


def kept(record: dict[str, Any], tool: str, device: str) -> float:
    """The share of the original's cost that a tool leaves."""
    return float(record[tool][device]["cost"] / record["original"][device])


HEAD = """\
| model | nodes | original, ms | touched | choice | opaque | xrlflow | + contrib | onnxruntime | onnxsim | onnxslim |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"""

COLUMNS = """\
- *nodes*: of the file. *original*: its roofline cost at the extents named in the JSON file, in ms. Every graph is
  priced alike: read by our reader at these extents, so that shape arithmetic costs nobody anything, with the types of
  all values as a run of it shows them. ONNX Runtime's own operators cost their arithmetic and their traffic, like any
  other.
- *touched*, *choice*, *opaque*: shares of the input's roofline time. *choice*: operators whose class holds another
  e-node, made by a rule. *touched*: those, and operators that some program of the space does without, since they are
  inside a left side that a rule replaced. *opaque*: operators of which no rule can speak.
- *xrlflow*, *+ contrib*: cost that climbing reaches, as a share of the original's, with the operators of the model's
  opset alone, and with ONNX Runtime's own besides. The written model is what is priced, and it is verified.
- *onnxruntime*: `onnxruntime.transformers.optimizer`, the cheapest of its verified forms (model types, levels 0, 1, 2
  and 99, attention in one piece or three). *onnxsim*, *onnxslim*: as they come. A form that is wrong or does not run
  does not count; failures are listed below.
"""


ABLATION = """\
Cost that climbing reaches with ONNX Runtime's operators allowed, as a share of the input's in the search space, where
shape arithmetic counts: geometric mean over the models; how many of them cost more on a device without the family."""


def number(share: float) -> str:
    return f"{share:.3f}"


def rows(records: Sequence[dict[str, Any]], device: str) -> list[str]:
    found = [HEAD]
    for r in records:
        own = r["standard"][device]["shares"]
        cells = [r["name"].removesuffix("-dynamic"), str(r["operators"]), f"{r['original'][device]:.4g}"]
        cells += [f"{100 * own[k]:.0f} %" for k in ("touched", "choice", "opaque")]
        shares_kept = {t: kept(r, t, device) for t in (*OURS, *TOOLS)}
        best = min(round(v, 3) for v in shares_kept.values())
        cells += [f"**{number(v)}**" if round(v, 3) == best else number(v) for v in shares_kept.values()]
        found.append("| " + " | ".join(cells) + " |")
    average = [
        sum(r["standard"][device]["shares"][k] for r in records) / len(records) for k in ("touched", "choice", "opaque")
    ]
    means = [mean([kept(r, t, device) for r in records]) for t in (*OURS, *TOOLS)]
    cells = ["mean (geometric for costs)", "", "", *(f"{100 * a:.0f} %" for a in average), *map(number, means)]
    return [*found, "| " + " | ".join(cells) + " |"]


def ablated(records: Sequence[dict[str, Any]]) -> list[str]:
    from xrlflow.egraph.rules import FAMILIES as RULES

    have = [r for r in records if "ablation" in r]
    if not have:
        return []
    found = ["| without | " + " | ".join(DEVICES) + " | models that cost more |", "|---|" + "--:|" * (len(DEVICES) + 1)]
    for family in ("", *RULES):
        worse = sum(any(r["ablation"][family][d] > r["ablation"][""][d] * (1 + 1e-6) for d in DEVICES) for r in have)
        costs = [mean([r["ablation"][family][d] for r in have]) for d in DEVICES]
        cells = [family or "nothing", *map(number, costs), str(worse) if family else ""]
        found.append("| " + " | ".join(cells) + " |")
    return found


def failures(records: Sequence[dict[str, Any]]) -> list[str]:
    found = []
    for r in records:
        for name in OURS:
            found += [
                f"- {r['name']}, ours ({name}, {d}): {r[name][d]['wrong']}" for d in DEVICES if r[name][d]["wrong"]
            ]
        for tool in TOOLS:
            reasons: dict[str, list[str]] = {}
            for form, why in r[tool]["failures"].items():
                reasons.setdefault(why, []).append(form)
            found += [f"- {r['name']}, {tool} ({'; '.join(forms)}): {why}" for why, forms in reasons.items()]
    return found or ["None."]


def page(record: dict[str, Any]) -> str:
    """The record as a Markdown page."""
    records = record["models"]
    packages = ", ".join(f"{package} {v}" for package, v in record["versions"].items())
    settings = (
        f"{record['machine']}; {record['date']}; {packages}. {len(records)} exports of "
        f"{len({r['family'] for r in records})} families of models, random weights, dynamic axes. Climbing: at most "
        f"{STEPS} cost evaluations and {SECONDS:g} s."
    )
    lines = ["# Coverage", "", f"    {record['command']}", "", settings, ""]
    for device in DEVICES:
        lines += [f"## roofline:{device}", "", *rows(records, device), ""]
    lines += [COLUMNS]
    if any("ablation" in r for r in records):
        lines += ["## Without a family of rules", "", ABLATION, "", *ablated(records), ""]
    return "\n".join([*lines, "## What failed", "", *failures(records), ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(USUAL), metavar="NAME")
    parser.add_argument("--exporters", nargs="+", choices=("dynamo", "legacy"), default=["dynamo", "legacy"])
    parser.add_argument("--no-ablation", action="store_true", help="only with all families of rules")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--folder", type=Path, default=FOLDER.parent / "coverage", help="where records are kept")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "coverage", help="no suffix")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    wanted = [Variant(f, e, True) for f in options.families for e in options.exporters if e not in FAMILIES[f].lacking]
    key = f"{code()} {json.dumps(versions(), sort_keys=True)}"
    record: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/coverage.py", *sys.argv[1:]]),
        "machine": processor(),
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "versions": {"xrlflow": xrlflow.__version__, **versions()},
        "models": [],
    }
    found: dict[str, dict[str, Any]] = {}
    task: Callable[..., dict[str, Any]] = examined
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        waiting = {pool.submit(task, v, options.folder, not options.no_ablation, key): v for v in wanted}
        for future in as_completed(waiting):
            name = waiting[future].name
            try:
                found[name] = future.result()
            except Exception as error:  # noqa: BLE001 (one model costs one model)
                print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                continue
            r = found[name]
            costs = " ".join(f"{t} {kept(r, t, DEVICES[0]):.3f}" for t in (*OURS, *TOOLS))
            print(f"{name}: {costs} ({r['seconds']:.0f} s)", flush=True)
            # written after every model, so that an interrupted run leaves what it found
            record["models"] = [found[v.name] for v in wanted if v.name in found]
            write(options.output.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
            write(options.output.with_suffix(".md"), page(record))
    return 0 if len(found) == len(wanted) else 1


if __name__ == "__main__":
    sys.exit(main())
