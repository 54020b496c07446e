"""Each number of a log, a trainer's state or a config in turn is one that no program means: a report, or one line."""

from __future__ import annotations

import json
from pathlib import Path

from tables import every, few

from gradience.cli.main import main
from gradience.telemetry.codec import parse

RUN = Path(__file__).parents[1] / "golden" / "readme" / "run.jsonl"
ODD = ["1e308", "-1e308", "5e-324", '"Infinity"', '"-Infinity"', '"NaN"', "NaN", "1e999", "9" * 400, "-1", "0", "0.5",
       "99999999999999999999", "true", "null", '"x"', '"1e400"', "[]", "{}"]  # fmt: skip
LAST = {"step": 20, "epoch": 1.0, "train_runtime": 10.0, "train_samples_per_second": 8.0, "total_flos": 1e12,
        "train_loss": 1.5, "init_mem_gpu_alloc_delta": 1, "train_mem_gpu_alloc_delta": 1}  # fmt: skip
STATE = {
    "global_step": 20, "epoch": 1.0, "max_steps": 40, "num_train_epochs": 2, "train_batch_size": 4, "logging_steps": 10,
    "save_steps": 10, "num_input_tokens_seen": 9,
    "log_history": [
        {"step": 10, "epoch": 0.5, "loss": 2.0, "grad_norm": 1.0, "learning_rate": 1e-4, "num_tokens": 100},
        {"step": 10, "epoch": 0.5, "eval_loss": 2.1, "eval_runtime": 1.0, "eval_samples_per_second": 3.0},
        {"step": 20, "epoch": 1.0, "loss": 1.0, "grad_norm": 1.0, "learning_rate": 1e-4, "num_tokens": 200},
        LAST,
    ],
}  # fmt: skip
AXOLOTL = {"base_model": "m", "adapter": "lora", "lora_r": 8, "lora_alpha": 16, "micro_batch_size": 2, "num_epochs": 3,
           "learning_rate": 1e-4, "saves_per_epoch": 2, "evals_per_epoch": 2, "val_set_size": 0.1}  # fmt: skip
TORCHTUNE = {
    "model": {"_component_": "torchtune.models.llama3.lora_llama3_8b", "lora_rank": 8, "lora_alpha": 16},
    "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-4},
    "batch_size": 2, "epochs": 3, "max_steps_per_epoch": 10, "gradient_accumulation_steps": 1,
}  # fmt: skip
PEFT = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "learning_rate": 1e-4, "warmup_ratio": 0.1,
        "num_train_epochs": 1, "per_device_train_batch_size": 1, "max_steps": 9, "save_steps": 5}  # fmt: skip


def places(value, at=()):
    """Where the numbers of a document are."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*at, key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield at


def with_odd(document, at, odd):
    """The document as JSON, with a number's place taken."""
    changed = json.loads(json.dumps(document))
    *path, last = at
    inner = changed
    for key in path:
        inner = inner[key]
    inner[last] = "@"
    return json.dumps(changed).replace('"@"', odd)


def ended(capsys, *line):
    code = main([str(part) for part in line])
    said = capsys.readouterr().err
    assert code == 0 or (code == 2 and said.count("\n") == 1), said
    return code


LINES = RUN.read_text().splitlines()
KINDS = {parse(line.encode())[0]["event"]: number for number, line in enumerate(LINES)}  # the last line of each kind
IN_LOG = [(n, at, odd) for n in KINDS.values() for at in places(json.loads(LINES[n])) for odd in ODD]


FOUND = [  # that were errors of int, float and round
    (0, ("config", "training", "max_steps"), "9" * 400),
    (0, ("config", "training", "warmup_steps"), "-1e308"),
    (248, ("epoch",), "5e-324"),
    (251, ("metrics", "energy_rank_90_p50"), "9" * 400),
    (251, ("metrics", "modules", 0, "r"), "9" * 400),
]


@every(("number", "at", "odd"), [*few(IN_LOG, each=61), *FOUND])
def test_an_odd_number_in_a_log_ends_in_its_story(number, at, odd, tmp_path, capsys):
    lines = [*LINES[:number], with_odd(json.loads(LINES[number]), at, odd), *LINES[number + 1 :]]
    (tmp_path / "run.jsonl").write_text("\n".join(lines) + "\n")
    assert ended(capsys, "monitor", tmp_path / "run.jsonl") == 0


@every(("at", "odd"), few([(at, odd) for at in places(STATE) for odd in ODD], each=29))
def test_an_odd_number_in_a_trainer_s_state_is_imported_around(at, odd, tmp_path, capsys):
    (tmp_path / "trainer_state.json").write_text(with_odd(STATE, at, odd))
    if ended(capsys, "import", tmp_path / "trainer_state.json", "--out", tmp_path / "run.jsonl") == 0:
        assert ended(capsys, "monitor", tmp_path / "run.jsonl") == 0


CONFIGS = [(document, at, odd) for document in (PEFT, AXOLOTL, TORCHTUNE) for at in places(document) for odd in ODD]


@every(("document", "at", "odd"), few(CONFIGS, each=17))
def test_an_odd_number_in_a_config_is_judged_or_refused(document, at, odd, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(with_odd(document, at, odd))
    ended(capsys, "check", tmp_path / "config.yaml")
