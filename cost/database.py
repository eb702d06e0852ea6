"""The database that remembers: kernel latencies in one SQLite file, tuned schedules in folders beside it.

Several processes may use one database at once (write-ahead log, busy time-out). A cache must never stop a search: a
damaged file is set aside with a warning and a new one begun, and a folder that cannot be written gives a
database in memory.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SCHEMA = 1
FILE = f"kernels-v{SCHEMA}.sqlite"
COLUMNS = ("kernel", "target", "threads", "state", "ms", "detail", "made")

_CREATE = """
create table if not exists latency (
    kernel text not null, target text not null, threads integer not null, state text not null,
    ms real not null, detail text not null, made real not null,
    primary key (kernel, target, threads, state)
) without rowid
"""


def cache_folder() -> Path:
    """`XRLFLOW_CACHE` if set, else the platform's folder for a user's caches. Not created."""
    chosen = os.environ.get("XRLFLOW_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "xrlflow"


@dataclass(frozen=True)
class Latency:
    """A remembered measurement: `ms` (inf when the kernel cannot run) and what else was noted."""

    ms: float
    detail: dict[str, Any] = field(default_factory=dict)


class Database:
    """Kernel latencies by (kernel hash, target fingerprint, threads, tuning state).

    folder: where the file and the schedules lie; by default `cache_folder()`.

    A process that forks must open its own.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, timeout: float = 10.0) -> None:
        self.folder = Path(folder) if folder is not None else cache_folder()
        self.path: Path | None = self.folder / FILE
        self._timeout = timeout
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._db = self._open()
        except (OSError, sqlite3.Error) as e:
            warnings.warn(f"the cache {self.folder} cannot be used ({e}); measurements are not kept", stacklevel=2)
            self.path = None
            self._db = self._connect(":memory:")

    def _connect(self, path: str | Path) -> sqlite3.Connection:
        db = sqlite3.connect(path, timeout=self._timeout, isolation_level=None, check_same_thread=False)
        try:
            db.execute("pragma journal_mode=wal")
            db.execute("pragma synchronous=normal")
            db.execute(_CREATE)
            if db.execute("pragma quick_check(1)").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("the file is malformed")
        except BaseException:
            db.close()
            raise
        return db

    def _open(self) -> sqlite3.Connection:
        assert self.path is not None
        try:
            return self._connect(self.path)
        except sqlite3.OperationalError:
            raise  # locked, or no permission: the file itself is not to blame
        except sqlite3.DatabaseError as e:
            self._set_aside(str(e))
            return self._connect(self.path)

    def _set_aside(self, reason: str) -> None:
        assert self.path is not None
        aside = self.path.with_name(f"{self.path.name}.damaged-{int(time.time())}-{os.getpid()}")
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        try:
            os.replace(self.path, aside)
        except FileNotFoundError:
            return  # another process was faster
        warnings.warn(f"{self.path.name} is damaged ({reason}); set aside as {aside.name}", stacklevel=4)

    def _execute(self, sql: str, values: tuple[Any, ...]) -> list[Any]:
        """Rows of a statement; after damage once more on a new file, and nothing if the file stays locked."""
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.OperationalError as e:
            warnings.warn(f"the cache is busy ({e}); going on without it", stacklevel=3)
            return []
        except sqlite3.DatabaseError as e:
            self._db.close()
            if self.path is None:
                raise
            self._set_aside(str(e))
            self._db = self._open()
            return self._db.execute(sql, values).fetchall()

    def get(self, kernel: str, target: str, threads: int = 1, state: str = "") -> Latency | None:
        """What is known of a kernel, or None."""
        rows = self._execute(
            "select ms, detail from latency where kernel=? and target=? and threads=? and state=?",
            (kernel, target, threads, state),
        )
        return Latency(rows[0][0], json.loads(rows[0][1])) if rows else None

    def many(self, kernels: Iterable[str], target: str, threads: int = 1, state: str = "") -> dict[str, Latency]:
        """What is known of some kernels."""
        wanted, found = list(dict.fromkeys(kernels)), dict[str, Latency]()
        for k in range(0, len(wanted), 500):  # SQLite's limit of variables is 999 in old versions
            part = wanted[k : k + 500]
            rows = self._execute(
                "select kernel, ms, detail from latency where target=? and threads=? and state=? and kernel in "
                f"({', '.join('?' * len(part))})",
                (target, threads, state, *part),
            )
            found |= {kernel: Latency(ms, json.loads(detail)) for kernel, ms, detail in rows}
        return found

    def put(self, kernel: str, target: str, ms: float, threads: int = 1, state: str = "", **detail: Any) -> None:
        """Remember a kernel's milliseconds, replacing what was known under this key."""
        self._execute(
            "insert or replace into latency values (?, ?, ?, ?, ?, ?, ?)",
            (kernel, target, threads, state, float(ms), json.dumps(detail, sort_keys=True), time.time()),
        )

    def rows(self) -> list[dict[str, Any]]:
        """Every latency, by kernel: kernel, target, threads, state, ms, detail (JSON) and when it was made (a time)."""
        found = self._execute(f"select {', '.join(COLUMNS)} from latency order by kernel, target, threads, state", ())
        return [dict(zip(COLUMNS, row, strict=True)) for row in found]

    def insert(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put rows of another database in place of what is known under their keys: all of them, or none."""
        self._db.execute("begin immediate")
        try:
            for row in rows:
                values = tuple(row[c] for c in COLUMNS)
                self._db.execute(
                    f"insert or replace into latency ({', '.join(COLUMNS)}) values (?, ?, ?, ?, ?, ?, ?)", values
                )
        except BaseException:
            self._db.execute("rollback")
            raise
        self._db.execute("commit")

    def schedules(self, target: str) -> Path:
        """The folder of tuned schedules of a target (a MetaSchedule JSON database); created."""
        path = self.folder / f"schedules-{target}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def __len__(self) -> int:
        rows = self._execute("select count(*) from latency", ())
        return int(rows[0][0]) if rows else 0

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Database({len(self)} latencies{'' if self.path else ', in memory'})"
