"""Policy files: weights of the network and a JSON account of how they were made, read without executing anything."""

from __future__ import annotations

import json
import os
import pickle
import platform
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from .encoder import FEATURE_VERSION, PolicyNetwork

PRETRAINED = Path(__file__).with_name("pretrained.pt")
"""The policy that ships with the package."""


def versions() -> dict[str, str]:
    """Versions that a training run depends on."""
    found = {"python": platform.python_version()}
    for package in ("torch", "torch-geometric", "numpy", "egglog"):
        found[package] = metadata.version(package)
    return found


def save_policy(path: str | os.PathLike[str], net: PolicyNetwork, account: dict[str, Any]) -> None:
    """Write weights and account. `account` must be JSON; network sizes and versions are added."""
    full = {
        **account,
        "features": FEATURE_VERSION,
        "network": {"hidden": net.hidden, "rounds": net.rounds},
        "versions": versions(),
    }
    path = Path(path)
    weights = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    os.close(handle)
    try:
        torch.save({"weights": weights, "account": json.dumps(full)}, temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load_policy(path: str | os.PathLike[str] | None = None) -> tuple[PolicyNetwork, dict[str, Any]]:
    """The network in a policy file (default: the shipped one) and its account.

    Raises `UserError` for a file that is missing, is no policy, or was made for other features.
    """
    path = Path(path or PRETRAINED)
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        account = json.loads(stored["account"])
        if account["features"] != FEATURE_VERSION:
            raise UserError(
                f"{path.name}: made for features of version {account['features']}, this is version {FEATURE_VERSION}; "
                "train it again with python -m xrlflow.train"
            )
        net = PolicyNetwork(**account["network"])
        net.load_state_dict(stored["weights"])
    except FileNotFoundError:
        raise UserError(f"{path.name}: no such policy file") from None
    except (RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path.name}: not a policy file ({str(error).splitlines()[0]})") from error
    return net.eval(), account
