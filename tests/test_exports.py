"""Models exported from transformers go through, whole: loaded and saved, optimised and saved.

The exports are made once and kept in .build/models; `benchmarks/fidelity.py` runs the same checks over all of them.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

pytestmark = pytest.mark.slow
pytest.importorskip("onnxscript", reason="needs the `models` extra")
pytest.importorskip("transformers", reason="needs the `models` extra")

import catalogue  # noqa: E402
import fidelity  # noqa: E402

STEPS = 30
KINDS = ("encoder", "decoder", "encoder–decoder", "vision", "audio", "convolutional")

# The exporter by torch.export takes several seconds for each model: only its dynamic exports are made here. The narrow
# twins are the legacy exporter's, where it has any.
CHECKED = [v for name in catalogue.FAMILIES for v in catalogue.variants(name) if v.dynamic or v.exporter == "legacy"]


def test_catalogue_has_every_kind_of_model():
    kinds = [f.kind for f in catalogue.FAMILIES.values()]
    assert len(kinds) >= 14
    assert all(any(wanted in kind for kind in kinds) for wanted in KINDS)
    for name in catalogue.FAMILIES:
        found = catalogue.variants(name)
        assert {v.dtype for v in found} == {"float32", "float16", "bfloat16"}, name
        assert {v.dynamic for v in found} == {True, False}, name


@pytest.fixture(scope="module")
def rows():
    """What became of each model, in the order in which two processes find out."""
    subjects = [*fidelity.light_models(), *CHECKED]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        yield {subject: pool.submit(fidelity.account, subject, STEPS) for subject in subjects}


@pytest.mark.parametrize("path", fidelity.light_models(), ids=lambda p: p.stem)
def test_light_models_go_through(path, rows):
    row = rows[path].result()
    assert "error" not in row, row["error"]
    assert row["coverage"] >= 0.9


@pytest.mark.parametrize("variant", CHECKED, ids=lambda v: v.name)
def test_exports_go_through(variant, rows):
    row = rows[variant].result()
    assert "error" not in row, row["error"]
    assert row["coverage"] > 0.5
    assert row["extents"] > 100 or not variant.dynamic or variant.dtype == "bfloat16"


@pytest.mark.parametrize("name", catalogue.FAMILIES)
def test_extents_of_dynamic_exports_are_followed(name, rows):
    """Shape arithmetic is understood: what a static export shows as core operators a dynamic one shows too."""
    exporter = "dynamo" if "legacy" in catalogue.FAMILIES[name].lacking else "legacy"
    dynamic = rows[catalogue.Variant(name, exporter, True)].result()["coverage"]
    if exporter == "legacy":
        assert dynamic >= rows[catalogue.Variant(name, exporter, False)].result()["coverage"] - 0.08
    else:
        assert dynamic > 0.8
