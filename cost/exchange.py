"""What the database holds, as a file to take to another machine, and back."""

from __future__ import annotations

import gzip
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from .database import Database

FORMAT = "xrlflow-measurements"
VERSION = 1


@dataclass(frozen=True)
class Holding:
    """What is known for one target fingerprint, thread count and tuning state.

    kernels: latencies. failed: those among them that cannot run. schedules: tuned schedules (of the target, whatever
    the state).
    """

    target: str
    threads: int
    state: str
    kernels: int
    failed: int
    schedules: int


def holdings(database: Database) -> list[Holding]:
    """What the database holds, by target and tuning state."""
    counts: dict[tuple[str, int, str], list[int]] = {}
    for row in database.rows():
        found = counts.setdefault((row["target"], row["threads"], row["state"]), [0, 0])
        found[0] += 1
        found[1] += row["ms"] == math.inf
    return [Holding(*key, n[0], n[1], len(_schedules(database, key[0]))) for key, n in sorted(counts.items())]


def _schedules(database: Database, target: str) -> dict[str, Path]:
    folder = database.folder / f"schedules-{target}"
    return {p.name: p for p in sorted(folder.glob("*.json"))} if folder.is_dir() else {}


def export(database: Database, path: str | os.PathLike[str]) -> int:
    """Write everything to one file, compressed if its name ends in .gz; returns the number of latencies."""
    rows = [{**row, "ms": None if row["ms"] == math.inf else row["ms"]} for row in database.rows()]
    schedules: dict[str, dict[str, Any]] = {}
    for target in sorted({p.name.removeprefix("schedules-") for p in database.folder.glob("schedules-*")}):
        for name, file in _schedules(database, target).items():
            schedules.setdefault(target, {})[name] = json.loads(file.read_text(encoding="utf-8"))
    data = json.dumps({"format": FORMAT, "version": VERSION, "latencies": rows, "schedules": schedules}).encode()
    _replace(Path(path), gzip.compress(data, mtime=0) if os.fspath(path).endswith(".gz") else data)
    return len(rows)


def merge(database: Database, path: str | os.PathLike[str]) -> tuple[int, int]:
    """Take over what a file has that is newer, and schedules that are faster: how many latencies and schedules.

    Raises `UserError` for a file that is none of ours; nothing is taken over then.
    """
    rows, schedules = _read(Path(path))
    known = {(r["kernel"], r["target"], r["threads"], r["state"]): r["made"] for r in database.rows()}
    fresh = [r for r in rows if r["made"] > known.get((r["kernel"], r["target"], r["threads"], r["state"]), -math.inf)]
    database.insert(fresh)
    taken = 0
    for target, records in schedules.items():
        folder = database.schedules(target)
        for name, record in records.items():
            taken += _better(folder / name, record)
    return len(fresh), taken


def _better(file: Path, record: Mapping[str, Any]) -> bool:
    """Write a schedule's record if there is none, or a slower one."""

    def ms(found: Mapping[str, Any]) -> float:
        return math.inf if found.get("ms") is None else float(found["ms"])

    try:
        if ms(json.loads(file.read_text(encoding="utf-8"))) <= ms(record):
            return False
    except (OSError, ValueError, TypeError, AttributeError):
        pass  # none, or a damaged one
    _replace(file, json.dumps(record).encode())
    return True


def _read(path: Path) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    try:
        data = path.read_bytes()
        content = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        if content["format"] != FORMAT or content["version"] != VERSION:
            raise ValueError
        rows = [
            {
                "kernel": str(r["kernel"]), "target": str(r["target"]), "threads": int(r["threads"]),
                "state": str(r["state"]), "ms": math.inf if r["ms"] is None else float(r["ms"]),
                "detail": str(r["detail"]), "made": float(r["made"]),
            }
            for r in content["latencies"]
        ]  # fmt: skip
        schedules = {_plain(t): {_plain(n): dict(r) for n, r in s.items()} for t, s in content["schedules"].items()}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, KeyError, TypeError, AttributeError, EOFError):
        raise UserError(f"{path}: no measurements that this version exported") from None
    return rows, schedules


def _plain(name: str) -> str:
    """A name that stays in its folder."""
    if not name or os.path.basename(name) != name or name.startswith("."):
        raise ValueError(name)
    return name


def _replace(path: Path, data: bytes) -> None:
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".xrlflow-")
        with os.fdopen(handle, "wb") as f:
            f.write(data)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
