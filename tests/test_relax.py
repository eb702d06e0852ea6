"""Relax modules survive being read and written back: structurally equal up to names, whatever they hold."""

import re
import textwrap
import warnings
from pathlib import Path

import pytest

from xrlflow.lowering.tvm_module import tvm

tvm = tvm()

from xrlflow.lowering.relax_module import UnreadFunction, regions, rewritten  # noqa: E402


def script(text):
    """A module from the functions of its text."""
    header = "@I.ir_module\nclass Module:\n"
    return tvm.script.from_source(header + textwrap.indent(text, "    "))


TEXT = (Path(__file__).parent / "data" / "relax_modules.txt").read_text(encoding="utf-8")
MODULES = dict(re.findall(r"^=== (\w+)\n(.*?)(?=^===|\Z)", TEXT, re.MULTILINE | re.DOTALL))


def test_there_are_many():
    assert len(MODULES) >= 30


@pytest.mark.parametrize("name", MODULES)
def test_round_trip(name):
    module = script(MODULES[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnreadFunction)
        found = rewritten(module, lambda region: region.graph)
    tvm.ir.assert_structural_equal(module, found, map_free_vars=True)


def test_core_operators_are_read_as_such():
    counts = {}
    for text in MODULES.values():
        for region in regions(script(text)):
            for op, n in region.graph.count().items():
                counts[op] = counts.get(op, 0) + n
    print(counts)
