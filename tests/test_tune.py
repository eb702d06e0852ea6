"""Tuning from the command line: kernels are shared between processes, kept, and used by later runs."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from xrlflow.cost.target import Target
from xrlflow.errors import UserError
from xrlflow.tune import main, tune
from xrlflow.zoo import build


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XRLFLOW_CACHE", str(tmp_path / "cache"))
    onnx.save(build("mlp-tower-tiny"), tmp_path / "model.onnx")
    return str(tmp_path / "model.onnx")


def test_processes_share_the_kernels_and_a_second_run_has_nothing_to_do(model: str) -> None:
    target = Target("llvm")
    first = tune(model, target, 60.0, 8, workers=2)
    assert first["kernels"] > 2 and first["tuned"] == first["kernels"] and first["complete"] and first["judge"]
    assert first["measured"] == first["trials"] >= first["kernels"]
    again = tune(model, target, 60.0, 8)
    assert again["measured"] == 0 and again["trials"] == first["trials"]


def test_too_little_time_leaves_the_rest_to_the_next_run(model: str) -> None:
    found = tune(model, Target("llvm"), 0.01, 2)
    assert not found["complete"] and found["tuned"] < found["kernels"]
    assert tune(model, Target("llvm"), 60.0, 2)["complete"]


def test_what_tvm_does_not_compile_is_not_tuned(model: str) -> None:
    with pytest.raises(UserError, match="llvm or cuda"):
        tune(model, Target("onnxruntime"), 1.0, 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [(["none.onnx"], "none.onnx"), (["MODEL", "--workers", "0"], "--workers"), (["MODEL", "--target", "x"], "target")],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str], said: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([model if w == "MODEL" else w for w in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("xrlflow.tune: ") and error.count("\n") == 1 and said in error


def test_the_command_says_what_was_done(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([model, "--target", "llvm", "--seconds", "60", "--trials", "8"]) == 0
    told = capsys.readouterr().out
    assert "kernels tuned" in told and told.rstrip().endswith("a judge")
