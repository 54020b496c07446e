"""The formats of audit for other programs: the findings of its report, at the weights file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gradience.cli.main import main

STEM = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"


@pytest.fixture
def untrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter whose B are all zero."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "peft"
    folder.mkdir()
    shapes = {"A": (4, 16), "B": (16, 4)}
    tensors = {
        STEM.format(i, half): np.full(shape, float(half == "A"), np.float32)
        for i in range(2)
        for half, shape in shapes.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    return folder


def test_github_points_at_the_weights_file(untrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "peft", "--format", "github", "--fail-on", "error"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(
        line.startswith("::error file=peft/adapter_model.safetensors,title=gradience TRN202::") for line in lines
    )
    assert all(line.startswith("::") for line in lines)


def test_sarif_has_the_findings_of_the_report_and_what_was_not_judged(
    untrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = pytest.importorskip("pydantic_sarif.model")
    main(["audit", "peft", "--json"])
    report = json.loads(capsys.readouterr().out)
    main(["audit", "peft", "--format", "sarif"])
    document = json.loads(capsys.readouterr().out)
    model.StaticAnalysisResultsFormatSarifVersion210JsonSchema.model_validate(document)
    run = document["runs"][0]
    assert [result["ruleId"] for result in run["results"]] == [item["id"] for item in report["findings"]]
    places = {result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in run["results"]}
    assert places == {"peft/adapter_model.safetensors"}
    notes = run["invocations"][0]["toolExecutionNotifications"]
    assert any(note["message"]["text"].startswith("MRG210 was not judged") for note in notes)
