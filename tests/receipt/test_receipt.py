"""A receipt holds what base and adapter give to its sequences, and is small, private and cheap."""

from __future__ import annotations

import json

import msgspec
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from gradience.cli.main import main
from gradience.schema.receipt import Receipt
from gradience.verbs.receipt.run import make_receipt, read_receipt, write_receipt


@torch.no_grad()
def of_torch(model, row):
    """The log-probabilities of a row's next tokens, without anything of ours."""
    scores = model(input_ids=torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
    places = range(row.first, row.first + len(row.base))
    return [float(scores[i, row.ids[i + 1]]) for i in places]


def test_log_probabilities_are_torchs_of_base_and_adapter(llama, held):
    base = AutoModelForCausalLM.from_pretrained(llama.base, dtype=torch.float32)
    plain = [of_torch(base, row) for row in held.rows]
    adapted = PeftModel.from_pretrained(base, llama.adapter).eval()
    for row, expected in zip(held.rows, plain, strict=True):
        assert row.base == pytest.approx(expected, abs=6e-5)
        assert row.adapter == pytest.approx(of_torch(adapted, row), abs=6e-5)


def test_the_rows_that_the_adapter_changes_most_are_kept_and_cost_twice_their_passes(held):
    effects = [sum((a - b) ** 2 for a, b in zip(row.adapter, row.base, strict=True)) for row in held.rows]
    assert len(held.rows) == 16
    assert effects == sorted(effects, reverse=True)
    assert held.forward_rows == 2 * 24 + 4 * 4
    assert held.forward_rows <= 2 * (2 * len(held.rows))


def test_noise_grows_as_bits_go(held):
    noise = {one.of: one.residual for one in held.noise}
    assert list(noise) == ["batch", "bfloat16", "int8", "int4"]
    assert noise["batch"] < 1e-5 < noise["int8"] < noise["int4"] < 1.0
    assert noise["bfloat16"] > 1e-4


def test_it_is_small_holds_no_text_and_is_read_as_it_was_written(held, receipt):
    raw = receipt.read_bytes()
    assert len(raw) <= 20_000
    assert b"w1" not in raw
    assert read_receipt(receipt) == held
    assert msgspec.json.decode(raw, type=Receipt, strict=True) == held


def test_text_is_kept_where_it_is_asked_for(llama, texts, tmp_path, capsys):
    out = tmp_path / "receipt.json"
    argv = ["receipt", str(llama.adapter), "--base", str(llama.base), "--data", str(texts), "--out", str(out)]
    assert main([*argv, "--keep-text", "--rows", "4"]) == 0
    made = read_receipt(out)
    assert len(made.rows) == 4
    assert all("w" in row.text for row in made.rows)
    assert "their text" in capsys.readouterr().out
    assert main(argv) == 2  # it is there already
    assert read_receipt(out) == made


def test_long_rows_stay_within_the_size(llama, tmp_path):
    rows = tmp_path / "rows.txt"
    rows.write_text("\n".join(" ".join(f"w{(7 * i + j) % 56}" for j in range(200)) for i in range(40)))
    made = make_receipt(llama.adapter, llama.base, prompts=rows)
    assert {len(row.base) for row in made.rows} == {40}
    assert write_receipt(made, tmp_path / "receipt.json", sources=[]) <= 20_000


def test_a_prompt_is_not_predicted_and_only_its_end_is_kept(llama, tmp_path):
    rows = tmp_path / "rows.jsonl"
    prompt, completion = " ".join(f"w{i % 50}" for i in range(50)), " w3 w9 w27 w4"
    rows.write_text(json.dumps({"prompt": prompt, "completion": completion}) + "\n")
    (row,) = make_receipt(llama.adapter, llama.base, prompts=rows).rows
    assert len(row.ids) <= 64
    assert row.first + len(row.base) == len(row.ids) - 1
    assert len(row.base) == 5  # the completion, and the token that ends it


def test_the_adapters_digest_is_of_its_tensors_not_of_its_file(llama, held, changed):
    same = changed("same", inference_mode=False)
    other = changed("other", tensors=lambda name, x: 2 * x if "lora_B" in name else x)
    from gradience.models import load_model
    from gradience.models.states import digest_of

    assert digest_of(load_model(llama.base, same)) == held.adapter
    assert digest_of(load_model(llama.base, other)) != held.adapter
