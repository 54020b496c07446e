"""Rows 14 and 15, nesting and digits: one decoder bounds both, whoever asks."""

from __future__ import annotations

import json

import pytest
from hostile.inputs import CONFIG, adapter, base, container, log_line, run_log, trainer_state
from tables import grid, once


def nested(depth, core="NaN", opening="[", closing="]"):
    return opening * depth + core + closing * depth


DEEP = {
    "480 lists around NaN": nested(480),
    "900 lists around NaN": nested(900),
    "480 objects around Infinity": nested(480, "Infinity", '{"a":', "}"),
    "990 lists around nothing": nested(990, ""),
    "20000 lists": nested(20_000, "1"),
    "20000 lists never closed": "[" * 20_000,
    "lists and objects in turn": nested(300, "-Infinity", '[{"a":', "}]"),
}
LOG_VERBS = ["monitor L", "validate L", "diagnose L", "report L", "check L", "import L --out o", "monitor L --json"]


@grid(each=3, event=["train_step", "run_start", "of another program"], verb=LOG_VERBS, case=DEEP)
def test_a_deep_line_of_a_log_is_a_bad_line_or_one_line_of_error(run, tmp_path, verb, case, event):
    lines = {
        "train_step": log_line("train_step", 4, loss=1.0)[:-1],
        "run_start": log_line("run_start", config={})[:-1],
        "of another program": '{"step": 4, "loss": 1.0',
    }
    deep = f'{lines[event]}, "deep": {DEEP[case]}}}'
    if event == "of another program":
        (tmp_path / "L").write_text("".join(f'{{"step": {n}, "loss": 1.0}}\n' for n in range(3)) + deep + "\n")
    else:
        run_log(tmp_path / "L", deep)
    told = run(*verb.split())
    assert told.code in {0, 2}
    assert len(told.errors) <= (told.code == 2)


DOCUMENTS = [
    ("base/model.safetensors.index.json", "verify-merge --base base --adapter a --merged base"),
    ("base/model.safetensors.index.json", "check --peft-dir a --base base"),
    ("base/model.safetensors.index.json", "audit a --base base --no-cache"),
    ("base/config.json", "check --peft-dir a --base base"),
    ("x/adapter_model.safetensors.index.json", "audit x"),
    ("a/adapter_config.json", "audit a"),
    ("a/adapter_config.json", "check --peft-dir a"),
    ("a/adapter_config.json", "convert a --to mlx --out o"),
    ("out/trainer_state.json", "import out --out o.jsonl"),
    ("out/trainer_state.json", "diagnose out"),
    ("table.json", "import table.json --out o.jsonl"),
]


@once(document=DOCUMENTS, case=[*DEEP, "200000 lists"])
def test_a_deep_document_is_one_line_of_error(run, tmp_path, document, case):
    name, line = document
    deep = DEEP.get(case) or nested(200_000, "1")
    adapter(tmp_path / "a")
    base(tmp_path / "base")
    (tmp_path / "x").mkdir()
    trainer_state(tmp_path / "out" / "trainer_state.json")
    text = {
        "adapter_config.json": f'{json.dumps(CONFIG)[:-1]}, "rank_pattern": {deep}}}',
        "trainer_state.json": f'{{"log_history": [{{"step": 1, "loss": 1.0}}], "x": {deep}}}',
        "table.json": f'[{{"step": 1, "loss": 1.0, "x": {deep}}}]',
    }
    path = tmp_path / name
    path.write_text(text.get(path.name, f'{{"metadata": {deep}, "weight_map": {{"x": "model.safetensors"}}}}'))
    if path.name == "model.safetensors.index.json":
        (tmp_path / "base" / "model.safetensors").unlink()
    told = run(*line.split())
    assert told.code in {0, 2}
    assert len(told.errors) <= (told.code == 2)
    assert len(told.err) < 1000


@grid(each=2, verb=["audit", "check"], case=DEEP)
def test_a_deep_header_of_a_weights_file_is_one_line_of_error(run, tmp_path, verb, case):
    adapter(tmp_path / "a")
    base(tmp_path / "base")
    at = "a/adapter_model.safetensors" if verb == "audit" else "base/model.safetensors"
    (tmp_path / at).write_bytes(container(f'{{"__metadata__": {{"a": {DEEP[case]}}}}}'.encode()))
    told = run(verb, *(("a",) if verb == "audit" else ("--peft-dir", "a", "--base", "base")))
    assert told.code == 2
    assert len(told.errors) <= 1


NUMBERS = {
    "hexadecimal": "0x" + "f" * 4000,
    "hexadecimal, longer": "0x" + "f" * 200_000,
    "octal": "0o" + "7" * 9000,
    "old octal": "0" + "7" * 9000,
    "binary": "0b" + "1" * 20_000,
    "decimal": "9" * 5000,
    "decimal with underscores": "1" + "_000" * 2000,
    "sexagesimal": "1" + ":59" * 3000,
    "a float of many digits": "1." + "9" * 50_000,
    "an exponent of many digits": "1e" + "9" * 5000,
    "a year of many digits": "9" * 5000 + "-01-01",
}


@once(key=["r", "bf16", "use_rslora", "model_name", "max_steps", "unheard_of"], case=NUMBERS)
def test_a_number_of_thousands_of_digits_in_yaml_is_one_line_of_error_or_taken_for_text(run, tmp_path, key, case):
    (tmp_path / "c.yaml").write_text(f"lr: 1e-4\nlora_alpha: 8\n{key}: {NUMBERS[case]}\n")
    told = run("check", "c.yaml", "--json")
    assert told.code in {0, 2}
    assert len(told.errors) == (told.code == 2)
    assert len(told.err) < 1000


HUGE = {
    "r": '{"peft_type": "LORA", "r": %s}' % ("9" * 5000),
    "alpha of 400 digits": '{"peft_type": "LORA", "r": 8, "lora_alpha": %s}' % ("9" * 400),
    "alpha of 5000 digits and a half": '{"peft_type": "LORA", "r": 8, "lora_alpha": -%s.5}' % ("9" * 5000),
    "in a pattern": '{"peft_type": "LORA", "r": 8, "rank_pattern": {"q_proj": %s}}' % ("9" * 5000),
}


@once(verb=["audit a", "check --peft-dir a", "convert a --to mlx --out o"], case=HUGE)
def test_a_number_of_thousands_of_digits_in_json_is_one_line_of_error(run, tmp_path, verb, case):
    adapter(tmp_path / "a", config=HUGE[case])
    told = run(*verb.split())
    assert told.code in {0, 2}
    assert len(told.errors) == (told.code == 2)


LONG = "x" * 257
OPTIONS = [
    ("--set", "targets=" + "t" * 100_000),
    ("--set", "targets=" + ",".join(["q_proj"] * 5000)),
    ("--set", "r=" + "9" * 5000),
    ("--set", "r=" + "9" * 400),
    ("--set", "r=" + str(2**63)),
    ("--set", "r=0x" + "f" * 4000),
    ("--set", "lr=" + "9" * 400),
    ("--set", "lr=1e999"),
    ("--set", "lr=nan"),
    ("--set", "alpha=inf"),
    ("--set", "alpha=" + "9" * 5000),
    ("--task", LONG),
    ("--serve", "vllm," * 10_000),
    ("--base", "b" * 5000),
    ("--select", "L" * 5000),
    ("--ignore", "LR001," * 3000),
    ("--settings", "s" * 5000),
    ("--peft-dir", "a\0b"),
    ("--peft-dir", "d" * 300),
    ("--peft-dir", "d/" * 3000),
    ("--training-dir", "d" * 300),
    ("--training", "d" * 300),
]


@pytest.mark.parametrize(("option", "value"), OPTIONS, ids=[f"{o}-{len(v)}-{v[:9]!r}" for o, v in OPTIONS])
def test_no_value_of_an_option_ends_in_a_traceback(run, option, value):
    told = run("check", "--set", "lr=1e-4", option, value)
    assert told.code in {0, 2}
    assert len(told.errors) == (told.code == 2)
    assert len(told.err) < 1000


LINES = [
    "merge a a --weights {} --out o",
    "merge-check a a --weights {}",
    "resize a --rank {} --out o",
    "resize a --max-mb {} --out o",
    "audit a --top-wasteful {}",
    "merge a a --method dare_ties --density 0.5 --seed {} --out o",
    "merge a a --method svd --rank {} --out o",
    "compare a a --top {}",
    "monitor run.jsonl --gap-threshold {}",
    "validate run.jsonl --max-issues {}",
]
VALUES = ["9" * 30, "9" * 5000, "1e999", "nan", "-1", "1,1e308", "1e308,1e308", "nan,1"]


@once(line=LINES, value=VALUES)
def test_no_number_of_an_option_ends_in_a_traceback(run, tmp_path, line, value):
    adapter(tmp_path / "a")
    base(tmp_path / "base")
    run_log(tmp_path / "run.jsonl")
    told = run(*line.format(value).split())
    assert told.code in {0, 1, 2}
    assert len(told.errors) <= (told.code == 2)
    assert len(told.err) < 1000


@pytest.mark.parametrize(
    "text", ["{" * 5000, "[" * 5000, "- " * 5000, "? " * 5000, "{a: " * 3000 + "1", "&a " * 5000, "!x " * 5000]
)
def test_a_deep_yaml_file_is_one_line_of_error_soon(run, tmp_path, text):
    (tmp_path / "c.yaml").write_text(f"lr: {text}\n")
    (tmp_path / "d.yaml").write_text(text)
    for name in ("c.yaml", "d.yaml"):
        assert run("check", name, limit_s=4).refused
