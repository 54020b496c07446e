"""Folders in place of the adapter: each is named for what it is."""

from __future__ import annotations

import json

import pytest
import torch
from tables import every
from tiny_models import write_texts

from gradience.cli.main import main
from gradience.verbs.receipt.run import verify_served


def asked(receipt, target, llama, **options):
    return verify_served(receipt, str(target), base=llama.base, adapter=llama.adapter, **options)


def test_the_adapter_and_its_merge_are_the_same(llama, receipt, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    found = asked(receipt, llama.adapter, llama)
    assert (found.verdict, found.kind, found.precision) == ("same", "adapter", "float32")
    assert found.residual < 1e-3
    assert found.compared == found.of
    model = AutoModelForCausalLM.from_pretrained(llama.base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, llama.adapter).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    merged.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    found = verify_served(receipt, str(tmp_path / "merged"))
    assert (found.verdict, found.kind, found.precision) == ("same", "model", "float32")
    found = asked(receipt, tmp_path / "half", llama)
    assert (found.verdict, found.precision) == ("same", "bfloat16")
    merged.to(torch.float32).save_pretrained(tmp_path / "wide")  # rounded to bfloat16, and stored in float32
    found = verify_served(receipt, str(tmp_path / "wide"))
    assert (found.verdict, found.precision) == ("same", "bfloat16")


def test_the_base_is_named(llama, receipt):
    found = verify_served(receipt, str(llama.base))
    assert found.verdict == "the_base"
    assert [one.id for one in found.findings] == ["RCP501"]
    assert (found.from_base, found.share) == (pytest.approx(0.0, abs=1e-4), pytest.approx(0.0, abs=1e-4))


def zero_of(word):
    return lambda name, x: x * 0 if word in name and "lora_B" in name else x


@every(
    ("fault", "verdict", "told"),
    [
        ({"lora_alpha": 8}, "wrong_scale", 2.0),
        ({"lora_alpha": 3}, "wrong_scale", 0.75),
        ({"use_rslora": True}, "wrong_scale", 2.0),
        ({"tensors": zero_of("v_proj")}, "part_missing", {"self_attn.v_proj"}),
        ({"tensors": zero_of("layers.1.")}, "part_missing", {"q_proj", "v_proj", "down_proj"}),
        ({"tensors": zero_of("mlp")}, "part_missing", {"mlp.down_proj"}),
        ({"tensors": lambda name, x: x + 0.01 * torch.sin(torch.arange(x.numel()).reshape(x.shape))},
         "another_checkpoint", None),
        ({"tensors": lambda name, x: x.flip(0)}, "another_adapter", None),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_cause(fault, verdict, told, llama, receipt, changed):
    found = asked(receipt, changed(**fault), llama)
    assert found.verdict == verdict, found.story
    if verdict == "wrong_scale":
        assert found.factor == pytest.approx(told, rel=0.02)
        assert ("alpha / sqrt(r) in place of alpha / r" in found.story) is (told == 2.0)  # the root of r = 4
    if verdict == "part_missing":
        assert {any(name.endswith(end) for end in told) for name in found.missing} == {True}
        assert {end for end in told if any(name.endswith(end) for name in found.missing)} == told


def test_without_the_models_at_hand_a_fault_is_not_the_same(receipt, llama, changed):
    found = verify_served(receipt, str(changed(lora_alpha=8)), base=llama.base)
    assert found.verdict in {"another_checkpoint", "another_adapter"}
    assert any("--peft-dir" in note for note in found.notes)


def test_another_tokenizer_is_told_from_another_adapter(llama, receipt, tmp_path, changed):
    place = changed()
    from tiny_models import save_tokenizer

    save_tokenizer(place)
    raw = json.loads((place / "tokenizer.json").read_text())
    raw["post_processor"] = None  # no token at the beginning and the end
    (place / "tokenizer.json").write_text(json.dumps(raw))
    found = asked(receipt, place, llama)
    assert found.verdict == "tokens_or_template_differ"
    assert [one.id for one in found.findings] == ["RCP506"]


@every(
    ("form", "says"),
    [
        ("json", '"verdict": "the_base"'),
        ("github", "::error file="),
        ("sarif", '"ruleId": "RCP501"'),
        ("text", "Verdict: THE BASE"),
    ],
)
def test_the_command_says_it_in_every_format(form, says, llama, receipt, capsys):
    assert main(["verify-served", str(receipt), str(llama.base), "--format", form]) == 1
    assert says in capsys.readouterr().out


def test_exit_codes_are_0_1_and_2(llama, receipt, tmp_path, capsys):
    base = ["--base", str(llama.base)]
    assert main(["verify-served", str(receipt), str(llama.adapter), *base]) == 0
    assert main(["verify-served", str(receipt), str(llama.base)]) == 1
    for bad in (
        [str(tmp_path / "none.json"), str(llama.base)],
        [str(llama.base / "config.json"), str(llama.base)],
        [str(receipt), str(llama.adapter)],  # an adapter without its base
        [str(receipt), str(tmp_path / "nothing")],
        [str(receipt), str(receipt)],
        [str(receipt), "http://127.0.0.1:9", "--timeout", "2"],
        [str(receipt), str(llama.base), "--adapter", str(llama.adapter)],
    ):
        capsys.readouterr()
        assert main(["verify-served", *bad]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("gradience: ")
        assert "bug" not in said.err


def test_the_adapter_at_hand_must_be_the_receipts(llama, receipt, changed, capsys):
    argv = ["verify-served", str(receipt), str(llama.base), "--base", str(llama.base), "--adapter"]
    for fault, said in (
        ({"tensors": zero_of("q_proj")}, "not the adapter of the receipt"),
        ({"lora_alpha": 8}, "adapter_config.json has changed"),
        ({"lora_alpha": 0}, "adapter_config.json has changed"),
    ):
        assert main([*argv, str(changed(**fault))]) == 2
        assert said in capsys.readouterr().err


@every(
    "rows",
    ["", "w1\n", '{"prompt": "w1", "completion": ""}\n', '{"no": 1}\n'],
)
def test_rows_without_a_prediction_are_refused(rows, llama, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text(rows.replace("w1", ""))
    argv = ["receipt", str(llama.adapter), "--base", str(llama.base), "--prompts", str(path)]
    assert main([*argv, "--out", str(tmp_path / "receipt.json")]) == 2
    assert not (tmp_path / "receipt.json").exists()
    assert capsys.readouterr().err.startswith("gradience: ")


def test_a_receipt_with_unequal_rows_is_refused(receipt, tmp_path, llama, capsys):
    held = json.loads(receipt.read_text())
    held["rows"][0]["base"].append(-1.0)
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(held))
    assert main(["verify-served", str(bad), str(llama.base)]) == 2
    assert "$.rows[0]" in capsys.readouterr().err
    del held["rows"][0]["base"][-2:], held["rows"][0]["adapter"][-1:]  # as many, but fewer than the row predicts
    bad.write_text(json.dumps(held))
    assert main(["verify-served", str(bad), str(llama.base)]) == 2
    assert "$.rows[0]" in capsys.readouterr().err
    write_texts(bad, 3)
    assert main(["verify-served", str(bad), str(llama.base)]) == 2
