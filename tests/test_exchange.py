"""Measurements taken to another machine and back, and the commands for it."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest

from xrlflow.cache import main
from xrlflow.cost.database import Database
from xrlflow.cost.exchange import Holding, export, holdings, merge
from xrlflow.errors import UserError


def filled(folder: Path) -> Database:
    """Two kernels of one target, one of which cannot run, one of another, and a schedule."""
    db = Database(folder)
    db.put("k1", "here", 1.5, 1, "4 trials", op="MatMul")
    db.put("k2", "here", math.inf, 1, "4 trials", reason="crash")
    db.put("k1", "there", 0.5, 2)
    (db.schedules("here") / "a.json").write_text(json.dumps({"kernel": "k", "ms": 2.0, "trace": [1]}))
    return db


@pytest.mark.parametrize("name", ["all.json", "all.json.gz"])
def test_everything_arrives(name: str, tmp_path: Path) -> None:
    with filled(tmp_path / "one") as one, Database(tmp_path / "two") as two:
        assert export(one, tmp_path / name) == 3
        assert merge(two, tmp_path / name) == (3, 1)
        assert two.rows() == one.rows()
        assert two.get("k2", "here", 1, "4 trials") == one.get("k2", "here", 1, "4 trials")
        assert (two.schedules("here") / "a.json").read_text() == (one.schedules("here") / "a.json").read_text()
        assert merge(two, tmp_path / name) == (0, 0)
        assert holdings(two) == [Holding("here", 1, "4 trials", 2, 1, 1), Holding("there", 2, "", 1, 0, 0)]


def test_the_newer_latency_and_the_faster_schedule_stay(tmp_path: Path) -> None:
    with filled(tmp_path / "one") as one, filled(tmp_path / "two") as two:
        export(one, tmp_path / "all.json")
        two.put("k1", "here", 9.0, 1, "4 trials")
        (two.schedules("here") / "a.json").write_text(json.dumps({"kernel": "k", "ms": 1.0}))
        merge(two, tmp_path / "all.json")
        known = two.get("k1", "here", 1, "4 trials")
        assert known is not None and known.ms == 9.0
        assert json.loads((two.schedules("here") / "a.json").read_text())["ms"] == 1.0
        export(two, tmp_path / "back.json")
        assert merge(one, tmp_path / "back.json")[1] == 1
        known = one.get("k1", "here", 1, "4 trials")
        assert known is not None and known.ms == 9.0


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(format="other"),
        lambda c: c.update(version=99),
        lambda c: c["latencies"][0].pop("made"),
        lambda c: c["latencies"][0].update(ms="fast"),
        lambda c: c["schedules"].update({"../out": {"x.json": {}}}),
        lambda c: c["schedules"]["here"].update({"/etc/passwd": {}}),
        lambda c: c.update(schedules=[1]),
    ],
)
def test_a_file_of_another_kind_changes_nothing(change, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with filled(tmp_path / "one") as one, Database(tmp_path / "two") as two:
        export(one, tmp_path / "all.json")
        content = json.loads((tmp_path / "all.json").read_text())
        change(content)
        (tmp_path / "all.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"all\.json: no measurements"):
            merge(two, tmp_path / "all.json")
        assert not two.rows() and not list((tmp_path / "two").glob("schedules-*"))


@pytest.mark.parametrize("data", [b"", b"\x1f\x8bxx", b"PK", gzip.compress(b"[]", mtime=0)[:-4], b"\xff\xfe"])
def test_a_damaged_file_is_one_line_and_exit_code_2(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XRLFLOW_CACHE", str(tmp_path / "cache"))
    (tmp_path / "bad.gz").write_bytes(data)
    assert main(["merge", str(tmp_path / "bad.gz")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("xrlflow.cache: ") and error.count("\n") == 1 and "bad.gz" in error


def test_the_command_says_what_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XRLFLOW_CACHE", str(tmp_path / "cache"))
    filled(tmp_path / "cache").close()
    assert main(["stats"]) == 0
    told = capsys.readouterr().out
    assert "3 latencies" in told and "2 kernels, 1 of them cannot run, 1 schedules" in told
    assert main(["export", str(tmp_path / "out.json")]) == 0
    assert main(["merge", str(tmp_path / "out.json")]) == 0
    assert "0 latencies and 0 schedules taken over" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "nowhere" / "out.json")]) == 2
