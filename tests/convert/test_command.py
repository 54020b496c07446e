"""The command: what it prints and writes, what it refuses, and that nothing is left of a run that did not end well."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest
from peft import IA3Config, LoHaConfig, LoraConfig, MissConfig
from peft_models import made
from safetensors.numpy import save_file
from tables import every

from gradience.cli.main import main
from gradience.errors import AdapterError
from gradience.verbs.convert.run import convert_adapter

LINEAR = ["q_proj", "up_proj"]


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    """A LoHa, and its folder."""
    return made(tmp_path_factory.mktemp("loha") / "old", LoHaConfig(r=3, alpha=5, target_modules=LINEAR)).folder


def test_json_is_one_document_that_follows_its_schema(product, root, tmp_path, capsys):
    out = tmp_path / "new"
    assert main(["convert", str(product), "--out", str(out), "--rank", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    jsonschema.validate(report, json.loads((root / "schemas" / "convert-report-v2.schema.json").read_text()))
    assert report["options"] == {"to": "peft", "rank": 2}
    assert {row["rank_after"] for row in report["modules"]} == {2}
    provenance = json.loads((out / "gradience_provenance.json").read_text())
    jsonschema.validate(provenance, json.loads((root / "schemas" / "provenance-v1.schema.json").read_text()))
    assert provenance["relative_error"] == report["relative_error"] > 0.1
    assert str(product) not in json.dumps(provenance)


def test_a_dry_run_prints_the_table_and_writes_nothing(product, capsys):
    before = sorted(product.parent.rglob("*"))
    assert main(["convert", str(product), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "dry run: nothing is written" in text
    assert "9>9" in text
    assert "exact" in text
    assert sorted(product.parent.rglob("*")) == before


def test_the_adapter_itself_is_never_written_over(product, capsys):
    before = (product / "adapter_model.safetensors").read_bytes()
    for out in (product, product.parent):
        assert main(["convert", str(product), "--out", str(out), "--force"]) == 2
        assert "is, or holds, an adapter that is read" in capsys.readouterr().err
    assert (product / "adapter_model.safetensors").read_bytes() == before


@every(
    ("arguments", "words"),
    [
        ([], "needs --out (give --out FOLDER, or try --dry-run first)"),
        (["--dry-run", "--rank", "2", "--energy", "0.9"], "both given"),
        (["--dry-run", "--rank", "0"], "rank"),
        (["--dry-run", "--energy", "1.001"], "energy"),
        (["--dry-run", "--energy", "0"], "energy"),
        (["--dry-run", "--rename", "x"], "no prefix"),
        (["--dry-run", "--base", "nowhere"], "no such base"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(product, capsys, arguments, words):
    assert main(["convert", str(product), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
            "what PEFT's merge makes of the base: give it with --base",
        ),
        (MissConfig(r=4, target_modules=LINEAR), "give it with --base"),
        (LoraConfig(r=4, target_modules=LINEAR, use_dora=True), "--base"),
        (LoraConfig(r=4, target_modules=LINEAR, init_lora_weights="pissa_niter_4"), "cannot be recomputed"),
        (LoraConfig(r=4, target_modules=LINEAR, init_lora_weights="olora"), "--base"),
        (LoraConfig(r=4, target_parameters=["q_proj.weight"], target_modules=[]), "plain PEFT LoRA already"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else value.peft_type.value,
)
def test_what_cannot_be_converted_is_refused_with_the_reason(make, capsys, config, words):
    case = make(config)
    assert main(["convert", str(case.folder), "--dry-run"]) == 2
    assert words in capsys.readouterr().err


def test_a_convolution_by_name_needs_the_base_for_its_kernel(make):
    case = make(LoHaConfig(r=2, target_modules=["conv2d"]))
    with pytest.raises(AdapterError, match="kernel"):
        convert_adapter(case.folder)


def test_a_base_without_the_weight_is_refused(make, tmp_path):
    case = make(MissConfig(r=4, target_modules=LINEAR))
    (tmp_path / "base").mkdir()
    save_file({"other.weight": np.zeros((4, 4), np.float32)}, tmp_path / "base" / "model.safetensors")
    with pytest.raises(AdapterError, match="the base has no weight for"):
        convert_adapter(case.folder, base=tmp_path / "base")
