"""What the scripts of this folder share: the folder where exports are kept, which git ignores, and what runs write.

The exports are those of `xrlflow.zoo.exports`. Written of a run: the machine, versions, files that appear whole.

Needs the `models` extra: pip install -e '.[models]'.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from xrlflow.zoo.exports import DTYPES, EXPORTERS, PACKAGES, Axes, Example, cached, check, export, installed

__all__ = [
    "DTYPES", "EXPORTERS", "FOLDER", "PACKAGES", "ROOT", "Axes", "Example", "cached", "check", "export", "installed",
    "processor", "write",
]  # fmt: skip

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".build" / "models"
"""Where exports are kept."""


def processor() -> str:
    """The processor's own name and the number of its cores that this process may use."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = names[0] if names else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def write(path: Path, content: str | bytes) -> None:
    """Write a file that appears whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.replace(partial, path)
