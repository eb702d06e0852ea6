"""The exports of `xrlflow.zoo.catalogue`, kept in the folder that git ignores."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

from exports import FOLDER

from xrlflow.zoo import catalogue
from xrlflow.zoo.catalogue import FAMILIES

__all__ = ["FAMILIES", "Variant", "variants"]


class Variant(catalogue.Variant):
    """One export of a family."""

    def file(self, folder: Path = FOLDER) -> Path:
        """The exported model, from the folder or made now. Raises whatever the exporter raises."""
        return super().file(folder)


def variants(name: str) -> list[Variant]:
    """All exports of a family: both exporters, dynamic and static, then the narrow twins by the quicker exporter."""
    return [Variant(*astuple(v)) for v in catalogue.variants(name)]
