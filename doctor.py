"""What this machine can do: usable targets, versions, the cache, the policy."""

from __future__ import annotations

import platform
from pathlib import Path

from .result import versions


def report() -> str:
    """The findings as text."""
    from .cost.database import cache_folder
    from .cost.target import default_target, usable_targets

    lines = [f"machine   {platform.machine()}, Python {platform.python_version()}"]
    lines += [f"version   {name} {found}" for name, found in versions().items() if name != "python"]
    for name, reason in usable_targets().items():
        lines.append(f"target    {name}: {reason or 'usable'}")
    lines.append(f"default   {default_target()}")
    folder = cache_folder()
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) if folder.is_dir() else 0
    lines.append(f"cache     {shortened(folder)}: {size / 1e6:.1f} MB (XRLFLOW_CACHE moves it)")
    lines.append(f"policy    {policy()}")
    return "\n".join(lines)


def shortened(path: Path) -> str:
    """The path with the home folder written ~."""
    try:
        return str(Path("~") / path.relative_to(Path.home()))
    except ValueError:
        return str(path)


def policy() -> str:
    """The shipped policy, in a line."""
    from .policy.artefact import PRETRAINED, load_policy

    account = load_policy()[1]
    return f"{PRETRAINED.name}: trained for {', '.join(account.get('targets', ()))}; by {account.get('command', '?')}"
