"""Relay modules, as text with parameters: read, written, moved on to Relax and ONNX. No TVM is needed for text.

    graph = read("model.relay", params="model.params")
    text, params = write(graph)

Relay was TVM's language up to version 0.19; these are modules as `mod.astext(show_meta_data=True)` prints them, and
parameters as `relay.save_param_dict` stores them. The whole of the function "main" has to consist of operators that are
known here (`relay_operators`); another one is named, with its line.
"""

from __future__ import annotations

from .relay_forms import NotInRelay
from .relay_reader import RelaySource, read, read_text
from .relay_text import NotRelay
from .relay_writer import checked, write

__all__ = ["NotInRelay", "NotRelay", "RelaySource", "checked", "read", "read_text", "write"]
