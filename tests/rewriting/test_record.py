"""What lies beside an adapter that was written: its record, its config as PEFT's, and nothing where writing failed."""

from __future__ import annotations

import hashlib
import json
import time
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from tables import every

from gradience.errors import OutputError
from gradience.io.safetensors import planned
from gradience.rewriting import writing
from gradience.rewriting.writing import Changes, NewAdapter, SourceFiles, provenance_of, refuse_to_lose, write_adapter
from gradience.schema.writing import ModuleChange, Provenance


def record_of(verb: str) -> Provenance:
    return provenance_of(verb, SourceFiles([]), {}, Changes([]))


def test_a_record_has_the_files_with_their_digests_and_each_module(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abc")
    (tmp_path / "b.bin").write_bytes(b"")
    files = [tmp_path / name for name in ("a.bin", "missing", "b.bin")]
    changes = Changes(
        [
            ModuleChange(name="q", rank_before=8, rank_after=4, relative_error=0.25),
            ModuleChange(name="v", rank_before=8, rank_after=8, relative_error=1.25),  # rounding may add to it
            ModuleChange(name="z", rank_before=8, rank_after=1, relative_error=None),
        ],
        1.5,
        ["a note"],
    )
    before = time.time()
    found = provenance_of("resize", SourceFiles(files), {"rank": 4}, changes)
    assert [(one.name, one.bytes, one.digest) for one in found.sources] == [
        ("a.bin", 3, f"sha256:{hashlib.sha256(b'abc').hexdigest()}"),
        ("b.bin", 0, f"sha256:{hashlib.sha256(b'').hexdigest()}"),
    ]
    assert before <= found.created <= time.time()
    assert (found.operation, found.version, found.options) == ("resize", version("gradience"), {"rank": 4})
    assert [(m.name, m.rank_before, m.rank_after, m.relative_error, m.kl_predicted) for m in found.modules] == [
        ("q", 8, 4, 0.25, None),
        ("v", 8, 8, 1.0, None),
        ("z", 8, 1, None, None),
    ]
    assert (found.relative_error, found.notes, found.calibration) == (1.0, ["a note"], None)
    assert record_of("x").relative_error is None


def test_an_error_of_hashing_is_raised_where_the_digests_are_asked_for(tmp_path, monkeypatch):
    def broken(_files: Any) -> Any:
        raise PermissionError(13, "denied")

    monkeypatch.setattr(writing, "file_digest", broken)
    (tmp_path / "a").write_text("")
    sources = SourceFiles([tmp_path / "a"])
    with pytest.raises(PermissionError):
        sources.hashed()


def contents(*, fails: bool = False) -> NewAdapter:
    def load() -> np.ndarray:
        if fails:
            raise OutputError("no number", advice="none")
        return np.arange(3.0, dtype=np.float32)

    return NewAdapter([planned("x", "F32", (3,), load)], {"r": 4, "alpha": None, "b": [1]})


def test_a_folder_is_as_peft_saves_one_with_the_record_beside_it(tmp_path):
    write_adapter(tmp_path / "out", contents(), lambda: record_of("merge"), sources=SourceFiles([]))
    names = ["adapter_config.json", "adapter_model.safetensors", "gradience_provenance.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    text = (tmp_path / "out" / "adapter_config.json").read_text()
    assert text == '{\n  "alpha": null,\n  "b": [\n    1\n  ],\n  "r": 4\n}\n'
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", framework="numpy") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert opened.get_tensor("x").tolist() == [0.0, 1.0, 2.0]
    written = (tmp_path / "out" / "gradience_provenance.json").read_text()
    assert json.loads(written)["operation"] == "merge"
    assert written.endswith("}\n")
    assert '\n  "operation"' in written


@pytest.mark.parametrize("fails", ["a tensor", "the record", "a file that came meanwhile"])
def test_with_force_an_old_adapter_stays_until_the_new_one_is_complete(fails, tmp_path):
    """And whatever happens nothing else is left in the folder above."""
    out = tmp_path / "out"
    record = record_of("merge")
    write_adapter(out, contents(), lambda: record, sources=SourceFiles([]))
    with pytest.raises(OutputError, match="exists already"):
        write_adapter(out, contents(), lambda: record_of("resize"), sources=SourceFiles([]))
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def told() -> Any:
        if fails == "the record":
            raise OutputError("no record", advice="none")
        if fails == "a file that came meanwhile":
            (out / "thesis.txt").write_text("mine")
        return record

    with pytest.raises(OutputError) as error:
        write_adapter(out, contents(fails=fails == "a tensor"), told, force=True, sources=SourceFiles([]))
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    if fails == "a file that came meanwhile":
        assert after.pop("thesis.txt") == b"mine"
        assert error.value.message == f"{out} holds more than an adapter, which --force would remove: thesis.txt"
        assert error.value.advice == "choose another name, or move these away"
    assert after == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    if fails != "a file that came meanwhile":
        write_adapter(out, contents(), lambda: record_of("resize"), force=True, sources=SourceFiles([]))
        assert json.loads((out / "gradience_provenance.json").read_text())["operation"] == "resize"


@every(
    ("names", "lost"),
    [
        (["adapter_config.json"], None),
        (["gradience_provenance.json"], None),  # a merge that was cut short has its record alone
        (["adapter_model.safetensors"], "holds no adapter"),
        (["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors"], None),
        (["adapter_config.json", "adapter_model-00001-of-00002.safetensors", "adapters-00001-of-00009.bin"], None),
        (["adapter_config.json", "adapter_model.safetensors.index.json"], None),
        (["adapter_config.json", "adapter_model-1-of-2.safetensors"], "adapter_model-1-of-2.safetensors"),
        (["adapter_config.json", "config.json"], "config.json"),
        (["adapter_config.json", "sub/x"], "sub/"),
        (["adapter_config.json", *"abcde"], "a, b, c, d, e"),
        (["adapter_config.json", *"abcdefg"], "a, b, c, d, e"),
    ],
)
def test_what_force_would_remove_beside_an_adapter_is_named(names, lost, tmp_path):
    for name in names:
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    if lost is None:
        refuse_to_lose(tmp_path / "out")
        return
    with pytest.raises(OutputError) as error:
        refuse_to_lose(tmp_path / "out")
    said = str(error.value)
    assert lost in said
    assert "f, g" not in said
    assert ("2 more" in said) is (len(names) == 8)


def test_a_link_is_no_file_of_an_adapter(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").write_text("{}")
    (tmp_path / "out" / "adapter_config.json").write_text("{}")
    (tmp_path / "out" / "adapter_model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=r"would remove: adapter_model\.safetensors \("):
        refuse_to_lose(tmp_path / "out")
