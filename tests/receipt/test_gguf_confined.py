"""A GGUF file is opened in a process of its own: what its library does there, the caller is told in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from tables import every

from gradience.errors import AdapterError
from gradience.io import confined
from gradience.schema.receipt import RECEIPT_SCHEMA_ID, Receipt, ReceiptRow
from gradience.verbs.receipt import targets

# A library that does with a file what the file says, in place of llama.cpp, whose crashes cannot be had at will.
LIBRARY = """
import os
import numpy as np
class Llama:
    def __init__(self, path, **_):
        self.does = open(path).read()
        if self.does == "crash": os.abort()
        if self.does == "raise": raise ValueError("no such\\nmodel")
        while self.does == "loop": pass
        if self.does == "fill": self.held = np.ones(1 << 30)
        self.metadata = {"quantize.imatrix.file": "x", "general.file_type": "no number"}
        if self.does == "sound": self.metadata["general.file_type"] = "7"
    def n_vocab(self): return "many" if self.does == "odd" else 5
    def tokenize(self, *_, **__): return [1, 2]
    def reset(self): pass
    def eval(self, ids):
        if self.does == "crash later": os.abort()
        self.scores = np.zeros((len(ids), 5))
"""
ROW = ReceiptRow(ids=[1, 2, 3], first=0, base=[-1.0, -1.0], adapter=[-1.0, -1.0])


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama_cpp.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(targets, "_GGUF_SECONDS", 0.5)
    monkeypatch.setattr(targets, "_GGUF_MEMORY", 1 << 30)
    confined._end_helper()  # it has the paths of its start


@pytest.mark.usefixtures("library")
@every(
    ("does", "said"),
    [
        ("crash", "it crashes the library that reads it"),
        ("crash later", "it crashes the library that reads it"),
        ("raise", "cannot load .*: ValueError: no such model"),
        ("loop", "it takes more than 0 s of processor time|it takes more than 1 s of processor time"),
        ("fill", "memory"),
        ("odd", "invalid literal for int"),
        ("no number", ""),
        ("sound", ""),
    ],
)
def test_what_a_file_does_to_its_library_is_told_in_words(tmp_path: Path, does: str, said: str) -> None:
    place = tmp_path / "model.gguf"
    place.write_text(does)
    held = Receipt(schema=RECEIPT_SCHEMA_ID, rows=[ROW], task="causal-lm", adapter="sha256:0", noise=[])
    if said:
        with pytest.raises(AdapterError, match=said):
            targets.read_target(held, str(place), base=None, model=None, timeout=1.0)
        return
    found = targets.read_target(held, str(place), base=None, model=None, timeout=1.0)
    assert found.precision == ("int8" if does == "sound" else "int4")
    assert [values.round(4).tolist() for values in found.reading] == [[-1.6094, -1.6094]]
