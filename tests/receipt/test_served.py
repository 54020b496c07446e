"""Folders in place of the adapter: each is named for what it is."""

from __future__ import annotations

import json
import sys
from urllib.request import urlopen

import pytest
import torch
from jsonschema import Draft202012Validator
from tables import every
from tiny_models import write_texts

from gradience.cli.main import main
from gradience.schema.export import json_schema
from gradience.verbs.receipt.run import verify_served
from gradience.verbs.verify.started import serving


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
    assert any("--adapter" in note for note in found.notes)


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


def test_the_command_names_what_answers_in_words_and_as_a_document(llama, receipt, capsys):
    argv = ["verify", str(llama.base), "--receipt", str(receipt)]
    assert main(argv) == 1
    assert "Verdict: THE BASE" in capsys.readouterr().out
    assert main([*argv, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    Draft202012Validator(json_schema("verify-served")).validate(document)
    assert (document["verdict"], [one["id"] for one in document["findings"]]) == ("the_base", ["RCP501"])
    assert main([*argv, "--fail-on", "never"]) == 0


def test_exit_codes_are_0_1_and_2(llama, receipt, tmp_path, capsys):
    base = ["--base", str(llama.base)]
    asked = ["--receipt", str(receipt)]
    assert main(["verify", str(llama.adapter), *base, *asked]) == 0
    assert main(["verify", str(llama.base), *asked]) == 1
    for bad in (
        [str(llama.base), "--receipt", str(tmp_path / "none.json")],
        [str(llama.base), "--receipt", str(llama.base / "config.json")],
        [str(llama.adapter), *asked],  # an adapter without its base
        [str(llama.adapter), *base],  # and without a receipt
        [str(tmp_path / "nothing"), *asked],
        [str(tmp_path / "model.gguf"), *asked],
        [str(receipt), *asked],
        ["http://127.0.0.1:9"],
        ["http://127.0.0.1:9", *asked, "--timeout", "2"],
        [f"{tmp_path / 'no program'} --port {{port}}", *asked],
        [f"{sys.executable} -c pass {{port}}", *asked],
        [f"{sys.executable} -c 'import time; time.sleep(60)' {{port}}", *asked, "--timeout", ".5"],
        ["http://127.0.0.1:9", *asked, "--adapter", str(llama.adapter)],
    ):
        capsys.readouterr()
        assert main(["verify", *bad]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("gradience: ")
        assert "bug" not in said.err


def test_the_adapter_at_hand_must_be_the_receipts(llama, receipt, changed, capsys):
    argv = ["--base", str(llama.base), "--receipt", str(receipt), "--adapter"]
    for fault, said in (
        ({"tensors": zero_of("q_proj")}, "not the adapter of the receipt"),
        ({"lora_alpha": 8}, "adapter_config.json has changed"),
        ({"lora_alpha": 0}, "adapter_config.json has changed"),
    ):
        assert main(["verify", str(llama.adapter), *argv, str(changed(**fault))]) == 2
        assert said in capsys.readouterr().err


@every(
    "rows",
    ["", "w1\n", '{"prompt": "w1", "completion": ""}\n', '{"no": 1}\n'],
)
def test_rows_without_a_prediction_are_refused(rows, llama, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text(rows.replace("w1", ""))
    argv = ["receipt", str(llama.adapter), "--base", str(llama.base), "--data", str(path)]
    assert main([*argv, "--out", str(tmp_path / "receipt.json")]) == 2
    assert not (tmp_path / "receipt.json").exists()
    assert capsys.readouterr().err.startswith("gradience: ")


def test_a_receipt_with_unequal_rows_is_refused(receipt, tmp_path, llama, capsys):
    held = json.loads(receipt.read_text())
    held["rows"][0]["base"].append(-1.0)
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(held))
    assert main(["verify", str(llama.base), "--receipt", str(bad)]) == 2
    assert "$.rows[0]" in capsys.readouterr().err
    del held["rows"][0]["base"][-2:], held["rows"][0]["adapter"][-1:]  # as many, but fewer than the row predicts
    bad.write_text(json.dumps(held))
    assert main(["verify", str(llama.base), "--receipt", str(bad)]) == 2
    assert "$.rows[0]" in capsys.readouterr().err
    write_texts(bad, 3)
    assert main(["verify", str(llama.base), "--receipt", str(bad)]) == 2


SERVER = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"data": [{"id": "one"}, {"id": "two"}]}).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_command_serves_on_a_free_port_until_it_was_asked(receipt, tmp_path, capsys):
    (tmp_path / "server.py").write_text(SERVER)
    command = f"{sys.executable} {tmp_path / 'server.py'} {{port}}"
    assert main(["verify", command, "--receipt", str(receipt)]) == 2
    assert "2 models are served (give --model NAME: one, two)" in capsys.readouterr().err
    with serving(command, timeout=60.0) as address:
        assert urlopen(f"{address}/v1/models").status == 200  # noqa: S310  # on the loopback
    with pytest.raises(OSError, match=r"refused"):
        urlopen(f"{address}/v1/models")  # noqa: S310  # as above
