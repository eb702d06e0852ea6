"""The command line and the Python verbs: results, exit codes, one-line errors, nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import xrlflow
from xrlflow import zoo
from xrlflow.egraph.rules.language import Rule
from xrlflow.extract import main

ROOFLINE = ["--target", "roofline:epyc-1t", "--max-steps", "300"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for name in ("bert-tiny", "inception-tiny"):
        found[name] = folder / f"{name}.onnx"
        found[name].write_bytes(zoo.build(name).SerializeToString())
    return found


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xrlflow.extract", *map(str, arguments)],
        capture_output=True, text=True, env={**os.environ, **environment}, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("method", ["saturation", "greedy", "greedy-group", "random", "rl", "auto"])
def test_every_method_gives_a_verified_model(models: dict[str, Path], tmp_path: Path, method: str) -> None:
    out, record = tmp_path / "out.onnx", tmp_path / "run.json"
    code = main([str(models["bert-tiny"]), "-o", str(out), "--method", method, "--json", str(record), *ROOFLINE])
    assert code == 0
    onnx.checker.check_model(onnx.load(out), full_check=True)
    run = json.loads(record.read_text())
    assert run["cost"]["optimized"] <= run["cost"]["original"]
    if run["improved"]:
        assert run["verification"]["verdict"] == "passed"
        assert run["substitutions"]
    else:
        assert out.read_bytes() == models["bert-tiny"].read_bytes()


def test_saturation_and_the_policy_improve_the_models(models: dict[str, Path]) -> None:
    for method in ("saturation", "rl"):
        for path in models.values():
            result = xrlflow.optimize(path, method=method, target="roofline:a100", max_steps=300)
            assert result.improved, (method, path.name)
            assert result.predicted is not None
            assert result.predicted[1] < result.predicted[0]


def test_the_cost_of_the_selection_is_that_of_the_exported_graph(models: dict[str, Path]) -> None:
    from xrlflow.cost.base import bind
    from xrlflow.cost.roofline import roofline

    model = roofline("epyc-1t")
    for path in models.values():
        result = xrlflow.optimize(path, method="saturation", target="roofline:epyc-1t", max_steps=300)
        again = xrlflow.saturate(xrlflow.load(result.model), rules=[])
        cost = bind(model, again)
        assert result.predicted is not None
        assert cost.prices[again.baseline].sum() == pytest.approx(result.predicted[1], rel=1e-9)


@pytest.mark.parametrize("cost", ["roofline:epyc-1t", pytest.param("fusion", marks=pytest.mark.slow)])
def test_same_bytes_in_different_processes(models: dict[str, Path], tmp_path: Path, cost: str) -> None:
    written = []
    for seed in ("1", "2"):
        out = tmp_path / f"{seed}.onnx"
        words = ("--method", "auto", "--cost", cost, *ROOFLINE)
        done = command(models["bert-tiny"], "-o", out, *words, PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        written.append(out.read_bytes())
    assert written[0] == written[1]
    assert written[0] != models["bert-tiny"].read_bytes()


def test_what_fusion_gains_is_what_it_says(models: dict[str, Path]) -> None:
    """The prediction is that of the input's kernels and of the result's, each read and fused by itself."""
    from xrlflow.cost.base import bind
    from xrlflow.cost.fusion import fusion

    result = xrlflow.optimize(
        models["bert-tiny"], method="saturation", target="roofline:epyc-1t", cost="fusion", max_steps=300
    )
    assert result.improved and result.predicted is not None
    for model, said in zip((models["bert-tiny"], result.model), result.predicted, strict=True):
        read = bind(fusion("epyc-1t"), xrlflow.saturate(xrlflow.load(model), rules=[]))
        assert read.before == pytest.approx(said, rel=1e-6)


def bad_inputs(folder: Path, model: Path) -> dict[str, list[str]]:
    (folder / "short.onnx").write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    (folder / "foreign.onnx").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(200)))
    (folder / "empty.onnx").write_bytes(b"")
    out = str(folder / "out.onnx")
    good = str(model)
    return {
        "missing": [str(folder / "none.onnx"), "-o", out],
        "truncated": [str(folder / "short.onnx"), "-o", out],
        "foreign": [str(folder / "foreign.onnx"), "-o", out],
        "empty": [str(folder / "empty.onnx"), "-o", out],
        "folder": [str(folder), "-o", out],
        "unknown flag": [good, "-o", out, "--faster"],
        "unknown target": [good, "-o", out, "--target", "abacus"],
        "unknown device": [good, "-o", out, "--target", "roofline:abacus"],
        "unknown method": [good, "-o", out, "--method", "magic"],
        "unknown rule": [good, "-o", out, "--without", "magic", *ROOFLINE],
        "unknown cost": [good, "-o", out, "--cost", "magic", *ROOFLINE],
        "another's fusion": [good, "-o", out, "--cost", "fusion", "--target", "onnxruntime"],
        "not a number": [good, "-o", out, "--budget", "soon"],
        "no budget": [good, "-o", out, "--budget", "0"],
        "unwritable output": [good, "-o", str(folder / "none" / "out.onnx")],
        "output is a folder": [good, "-o", str(folder)],
        "missing policy": [good, "-o", out, "--method", "rl", "--policy", str(folder / "none.pt"), *ROOFLINE],
    }


CASES = [
    "missing", "truncated", "foreign", "empty", "folder", "unknown flag", "unknown target", "unknown device",
    "unknown method", "unknown rule", "unknown cost", "another's fusion", "not a number", "no budget",
    "unwritable output", "output is a folder", "missing policy",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_line_and_exit_code_2(
    case: str, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = bad_inputs(tmp_path, models["bert-tiny"])[case]
    before = sorted(p.name for p in tmp_path.iterdir())
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.strip().splitlines()) == 1
    assert "Traceback" not in said.err
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_target_that_is_not_here_is_exit_code_4(models: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    from xrlflow.cost.target import usable_targets

    if not usable_targets()["cuda"]:
        pytest.skip("a GPU is here")
    assert main([str(models["bert-tiny"]), "--target", "cuda"]) == 4
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def planted(*_: Any, **__: Any) -> tuple[Rule, ...]:
    """An unsound rule that looks profitable."""
    return (Rule("planted-softmax", "Softmax(x, axis=k)", "x"),)


def test_a_failed_verification_returns_the_original_and_names_the_rule(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("xrlflow.egraph.rules.rule_set", planted)
    out, record = tmp_path / "out.onnx", tmp_path / "run.json"
    source = models["bert-tiny"]
    code = main([str(source), "-o", str(out), "--method", "saturation", "--json", str(record), *ROOFLINE])
    assert code == 3
    assert out.read_bytes() == source.read_bytes()
    assert "planted-softmax" in capsys.readouterr().out
    run = json.loads(record.read_text())
    assert run["verification"]["guilty"] == ["planted-softmax"]
    assert not run["improved"]


def test_after_a_failed_verification_the_search_goes_on_without_the_rule(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xrlflow.egraph.rules import rule_set

    families = ("merging", "matmul", "normalisation")
    rules = rule_set(families)
    monkeypatch.setattr("xrlflow.egraph.rules.rule_set", lambda *_, **__: (*rules, *planted()))
    result = xrlflow.optimize(models["bert-tiny"], method="saturation", target="roofline:epyc-1t", max_steps=300)
    assert result.improved
    assert result.exit_code == 0
    assert result.verification is not None
    assert result.verification.passed
    assert list(result.report["egraph"]["excluded"]) == ["planted-softmax"]
    assert any("planted-softmax was left out" in note for note in result.notes)
    assert "planted-softmax" not in result.report["rules"]
    monkeypatch.undo()
    sound = xrlflow.optimize(
        models["bert-tiny"], method="saturation", target="roofline:epyc-1t", max_steps=300, rules=families
    )
    assert result.predicted == sound.predicted


def test_the_record_tells_what_each_rule_did(models: dict[str, Path]) -> None:
    result = xrlflow.optimize(models["bert-tiny"], method="saturation", target="roofline:epyc-1t", max_steps=300)
    rules = result.report["rules"]
    assert rules
    for name, rule in rules.items():
        assert rule["matches"] == rule["firings"] + rule["known"] + rule["unfit"] + sum(rule["refused"].values()), name
    chosen = {name for name, rule in rules.items() if rule["chosen"]}
    assert chosen
    assert chosen <= {name for name, rule in rules.items() if rule["firings"]}
    assert {r for s in result.substitutions for r in s.rules} <= set(rules)
    assert result.space is not None
    shown = result.space._repr_html_()
    assert all(name in shown for name in rules)


def test_without_verification_the_planted_rule_goes_through(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xrlflow.egraph.rules.rule_set", planted)
    result = xrlflow.optimize(
        models["bert-tiny"], method="saturation", target="roofline:epyc-1t", max_steps=300, verify=False
    )
    assert result.improved
    assert xrlflow.verify(models["bert-tiny"], result.model).verdict == "failed"


def test_interrupted_runs_leave_the_original(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("xrlflow.judging.Judge.decide", stop)
    out = tmp_path / "out.onnx"
    assert main([str(models["bert-tiny"]), "-o", str(out), "--method", "saturation", *ROOFLINE]) == 0
    assert out.read_bytes() == models["bert-tiny"].read_bytes()


def test_the_original_is_a_byte_copy(models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    assert main([str(models["bert-tiny"]), "-o", str(out), "--method", "original", *ROOFLINE]) == 0
    assert out.read_bytes() == models["bert-tiny"].read_bytes()


def test_a_copy_of_the_original_brings_its_external_data(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    source, out = tmp_path / "in" / "model.onnx", tmp_path / "out" / "copy.onnx"
    proto = onnx.load(models["bert-tiny"])
    onnx.save(proto, source, save_as_external_data=True, location="weights.bin", size_threshold=256)
    assert main([str(source), "-o", str(out), "--method", "original", *ROOFLINE]) == 0
    assert out.read_bytes() == source.read_bytes()
    assert xrlflow.verify(models["bert-tiny"], out).passed


def test_output_may_name_the_input(models: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(models["bert-tiny"].read_bytes())
    assert main([str(path), "-o", str(path), "--method", "saturation", *ROOFLINE]) == 0
    assert xrlflow.verify(models["bert-tiny"], path).passed
    assert path.read_bytes() != models["bert-tiny"].read_bytes()


def test_quiet_prints_nothing(models: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(models["bert-tiny"]), "--method", "saturation", "--quiet", *ROOFLINE]) == 0
    assert capsys.readouterr() == ("", "")


def test_the_record_has_the_schema_and_no_paths(models: dict[str, Path], tmp_path: Path) -> None:
    result = xrlflow.optimize(models["inception-tiny"], method="saturation", target="roofline:a100", max_steps=300)
    result.save(tmp_path / "out.onnx")
    record = result.report
    assert {
        "schema", "model", "target", "method", "seed", "versions", "graph", "egraph", "cost", "verification",
        "substitutions", "seconds", "output",
    } <= set(record)  # fmt: skip
    assert set(record["graph"]) == {"nodes", "opaque", "coverage"}
    assert {"classes", "enodes", "iterations", "seconds", "stop_reason"} <= set(record["egraph"])
    assert {"rules", "site", "scope", "predicted_gain", "measured_gain"} <= set(record["substitutions"][0])
    gain = sum(s["predicted_gain"] for s in record["substitutions"])
    assert gain == pytest.approx(record["cost"]["original"] - record["cost"]["optimized"], rel=1e-6)
    assert str(tmp_path) not in json.dumps(record)
    assert record["output"] == "out.onnx"


def test_public_names() -> None:
    assert xrlflow.__all__ == [
        "Result", "UserError", "__version__", "extract", "load", "optimize", "saturate", "save", "verify",
    ]  # fmt: skip
    for name in xrlflow.__all__:
        assert hasattr(xrlflow, name)


def test_the_verbs_work_one_by_one(models: dict[str, Path], tmp_path: Path) -> None:
    graph = xrlflow.load(models["bert-tiny"])
    space = xrlflow.saturate(graph)
    found = xrlflow.extract(space, "climb", target="roofline:a100", steps=200)
    chosen = space.to_graph(found.selection)
    xrlflow.save(chosen, tmp_path / "chosen.onnx")
    assert xrlflow.verify(graph, tmp_path / "chosen.onnx").passed
    for shown in (graph, space, xrlflow.optimize(graph, method="original", target="roofline:a100")):
        assert "<" in shown._repr_html_()


def test_unknown_options_are_user_errors(models: dict[str, Path]) -> None:
    with pytest.raises(xrlflow.UserError, match="unknown method"):
        xrlflow.optimize(models["bert-tiny"], method="magic")
    with pytest.raises(xrlflow.UserError, match="speed"):
        xrlflow.optimize(models["bert-tiny"], speed=9)


LIGHT = """
import sys, xrlflow, xrlflow.extract, xrlflow.__main__
try:
    xrlflow.extract.main(["--help"])
except SystemExit:
    pass
print(",".join(m for m in ("torch", "tvm", "egglog", "onnx", "numpy.random", "rich") if m in sys.modules))
"""


def test_import_and_help_load_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].replace("numpy.random", "") == ""


def test_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    from xrlflow.__main__ import main as umbrella

    assert umbrella([]) == 0
    assert "extract" in capsys.readouterr().out
    assert umbrella(["magic"]) == 2
    assert umbrella(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "roofline:a100: usable" in said
    assert "onnxruntime" in said


def test_models_in_memory_work_too() -> None:
    proto = zoo.build("mlp-tower-tiny")
    result = xrlflow.optimize(proto, method="saturation", target="roofline:a100", max_steps=200)
    assert result.extraction is not None
    assert np.isfinite(result.extraction.cost)


def test_verdicts_are_shared_by_content_not_by_name(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xrlflow.cost.verdict import Verdict

    asked = []

    def confirm(*_: Any, **__: Any) -> Verdict:
        asked.append(1)
        return Verdict(1.0, 1.0, 1.0, 1.0, 1.0, "tie")

    monkeypatch.setattr("xrlflow.cost.confirm.confirm", confirm)
    again = tmp_path / models["bert-tiny"].name
    proto = onnx.load(models["bert-tiny"])
    proto.doc_string = "another original that leads to the same candidate but for this text"
    again.write_bytes(proto.SerializeToString())
    options = {"method": "saturation", "target": "onnxruntime", "cost": "roofline:a100", "max_steps": 300}
    verdicts: dict[str, Any] = {}
    for path in (models["bert-tiny"], models["bert-tiny"], again):
        assert not xrlflow.optimize(path, verdicts=verdicts, **options).improved
    assert len(asked) == len(verdicts) == 2


@pytest.mark.parametrize("left", [None, 5.0])
def test_a_second_candidate_is_measured_in_what_time_is_left(
    left: float | None, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one leaves it a third; without ten seconds there is no verdict on it, lest the budget be overrun."""
    from xrlflow.cost.verdict import Verdict
    from xrlflow.pipeline import Run
    from xrlflow.policy.base import Budget, extractor

    class Hasty:
        def extract(self, space: Any, cost: Any, budget: Any, rng: Any) -> Any:
            return extractor("climb").extract(space, cost, Budget(None, 60), rng)

    seconds: list[float] = []

    def confirm(*_: Any, **options: Any) -> Verdict:
        seconds.append(options["seconds"])
        return Verdict(1.0, 1.0, 1.0, 1.0, 1.0, "tie")

    monkeypatch.setattr("xrlflow.cost.confirm.confirm", confirm)
    monkeypatch.setattr(
        "xrlflow.policy.base.extractor", lambda name, **o: Hasty() if name == "rl" else extractor(name, **o)
    )
    if left is not None:
        monkeypatch.setattr(Run, "left", lambda self: left)
    result = xrlflow.optimize(
        models["bert-tiny"], method="auto", target="onnxruntime", cost="roofline:a100", max_steps=300, budget=90.0
    )
    assert len({c["cost"] for c in result.considered}) == 2, "both found the same"
    if left is None:
        assert 10 < seconds[0] <= 60 and seconds[0] < seconds[1]
    else:
        assert seconds == [10.0] and result.considered[1]["outcome"] == "no time was left to measure it"


def test_the_account_of_auto_speaks_of_the_candidate_judged_last(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from xrlflow.policy.base import Extraction, Trace, extractor

    class Unchanged:
        """Finds nothing: what auto looks at after a better candidate was not measured faster."""

        def extract(self, space: Any, cost: Any, budget: Any, rng: Any) -> Extraction:
            return Extraction(space.original, cost.total(space.original), Trace(), "done", "rl")

    from xrlflow.cost.verdict import Verdict

    monkeypatch.setattr(
        "xrlflow.policy.base.extractor", lambda name, **o: Unchanged() if name == "rl" else extractor(name, **o)
    )
    monkeypatch.setattr("xrlflow.cost.confirm.confirm", lambda *_, **__: Verdict(1.0, 2.0, 0.5, 0.5, 0.5, "slower"))
    result = xrlflow.optimize(
        models["bert-tiny"], method="auto", target="onnxruntime", cost="roofline:a100", max_steps=300
    )
    assert [c["extractor"] for c in result.considered] == ["saturation", "rl"]
    assert "slower" in result.considered[0]["outcome"]
    assert "nothing cheaper" in result.considered[1]["outcome"]
    assert result.verdict is None and result.verification is None and not result.substitutions


def test_no_file_of_the_run_is_overwritten(tmp_path, capsys):
    model, data = tmp_path / "model.onnx", tmp_path / "data.npz"
    onnx.save(zoo.build("mlp-tower-tiny"), model)
    np.savez(data, x=np.zeros(3))
    (tmp_path / "link.json").symlink_to(model)
    before = {p: p.read_bytes() for p in (model, data)}
    for options in (
        ["--json", str(model)],
        ["--json", str(tmp_path / "link.json")],
        ["-o", str(tmp_path / "out"), "--json", str(tmp_path / "out")],
        ["--inputs", str(data), "--json", str(data)],
        ["--inputs", str(data), "-o", str(data)],
    ):
        assert main([str(model), *options, *ROOFLINE]) == 2
        assert "name another one" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in (model, data)} == before
    assert not (tmp_path / "out").exists()
