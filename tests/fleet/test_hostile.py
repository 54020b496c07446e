"""A fleet with a hostile adapter of each kind among sound ones comes to its end, with a row for each."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest
from fleet_inputs import factors, peft

from gradience.cli.main import main
from gradience.tables.query import open_fleet, query_fleet
from gradience.verbs.fleet.audit import audit_fleet
from gradience.verbs.fleet.show import show_fleet

_SPEC = importlib.util.spec_from_file_location("hostile_inputs", Path(__file__).parents[1] / "hostile" / "inputs.py")
inputs = importlib.util.module_from_spec(_SPEC)  # its folder has a secrets.py, which workers must not meet
_SPEC.loader.exec_module(inputs)

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def hostile(root):
    """Folders of adapters that are damaged, lie, are huge by their word, or are no file at all."""
    made = inputs.factors()
    inputs.adapter(root / "deep-config", config="[" * 100_000)
    inputs.adapter(root / "huge-config", config='{"a": "' + "x" * 20_000_000 + '"}')
    inputs.adapter(root / "no-utf8", config="{}")
    (root / "no-utf8" / CONFIG).write_bytes(b'{"peft_type": "\xff"}')
    inputs.adapter(root / "nan", {k: v * float("nan") for k, v in made.items()})
    inputs.adapter(root / "huge-numbers", inputs.factors(scale=1e30))
    inputs.adapter(root / "bomb-layers", config={"layer_replication": [[0, 10**9]] * 10})
    inputs.adapter(root / "regex", config={"rank_pattern": {"(a+)+$" * 50: 4}})
    for name, header in {
        "no-json": b"not json at all",
        "negative": json.dumps({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}).encode(),
        "claims": json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode(),
        "many-axes": json.dumps({"x": {"dtype": "F32", "shape": [1] * 5000, "data_offsets": [0, 4]}}).encode(),
        "twice": b"{%b,%b}" % ((b'"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}',) * 2),
    }.items():
        (inputs.adapter(root / name) / WEIGHTS).write_bytes(inputs.container(header, b"\0" * 4))
    (inputs.adapter(root / "length") / WEIGHTS).write_bytes(b"\xff" * 64)
    (inputs.adapter(root / "empty") / WEIGHTS).write_bytes(b"")
    pickled = root / "pickle"
    pickled.mkdir()
    (pickled / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    (pickled / CONFIG).write_text(json.dumps(inputs.CONFIG))
    for name, place in {"device": "/dev/zero", "nowhere": "gone", "itself": WEIGHTS}.items():
        (root / name).mkdir()
        (root / name / WEIGHTS).symlink_to(place)
        (root / name / CONFIG).write_text(json.dumps(inputs.CONFIG))
    (root / "pipe").mkdir()
    os.mkfifo(root / "pipe" / WEIGHTS)
    (root / "folder" / WEIGHTS).mkdir(parents=True)
    (root / "folder" / CONFIG).write_text(json.dumps(inputs.CONFIG))
    inputs.adapter(root / "\x1b[31mred\u202e")
    inputs.adapter(Path(os.fsdecode(os.fsencode(root) + b"/not-utf8-\xff")))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_fleet_of_hostile_adapters_comes_to_its_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "many"
    hostile(root)
    for number in range(3):
        peft(root / f"sound-{number}", factors(number))
    report = audit_fleet(root, out=tmp_path / "fleet", workers=1)
    rows = {row["path"].removeprefix(f"{root}/"): row for row in open_fleet(tmp_path / "fleet").adapters.to_pylist()}
    assert report.found == len(rows) == sum(1 for _ in root.iterdir())
    assert report.crashed == 0
    assert {rows[f"sound-{number}"]["verdict"] for number in range(3)} == {"trained"}
    assert rows["nan"]["verdict"] == "broken"
    assert all(row["error"] for row in rows.values() if row["status"] == "error")
    failed = {name for name, row in rows.items() if row["status"] == "error"}
    assert {"deep-config", "huge-config", "no-json", "negative", "claims", "length", "empty", "pickle"} <= failed
    assert {"device", "nowhere", "itself", "pipe", "folder", "twice", "many-axes", "bomb-layers"} <= failed
    assert not (tmp_path / "owned").exists()
    assert audit_fleet(root, out=tmp_path / "fleet", workers=1).audited == 0
    assert show_fleet(tmp_path / "fleet").adapters == len(rows)
    assert query_fleet(tmp_path / "fleet", "select count(*) from adapters").rows == [[len(rows)]]
    assert main(["fleet", "show", str(tmp_path / "fleet"), "--verbose"]) == 0
    assert "\x1b" not in capsys.readouterr().out
