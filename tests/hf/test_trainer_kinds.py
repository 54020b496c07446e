"""Which kind of trainer a TRL config is of: read from the object, from its JSON, and recorded by the callback."""

from __future__ import annotations

import importlib

import pytest
from tables import every

from gradience.configs.training import objective_of, read_training, read_training_object

pytestmark = pytest.mark.oracle("trl")

KINDS = {
    ("trl", "SFTConfig"): ("sft", "sft"),
    ("trl", "DPOConfig"): ("preference", "preference"),
    ("trl", "KTOConfig"): ("preference", "preference"),
    ("trl.experimental.orpo", "ORPOConfig"): ("preference", "preference"),
    ("trl.experimental.cpo", "CPOConfig"): ("preference", "preference"),
    ("trl.experimental.tpo", "TPOConfig"): ("preference", "preference"),
    ("trl", "GRPOConfig"): ("rl", "rl"),
    ("trl", "RLOOConfig"): ("rl", "rl"),
    ("trl.experimental.online_dpo", "OnlineDPOConfig"): ("rl", "rl"),
    ("trl", "RewardConfig"): ("reward", "reward"),
    ("trl.experimental.gkd", "GKDConfig"): ("distillation", "unknown"),
    ("trl.experimental.gold", "GOLDConfig"): ("distillation", "unknown"),
}


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


def made(module, name, out):
    pytest.importorskip(module, reason="this TRL has no such trainer")
    cls = getattr(importlib.import_module(module), name)
    return cls(output_dir=str(out), use_cpu=True, bf16=False, report_to=[])


@every(("where", "kinds"), KINDS.items(), ids=[name for _, name in KINDS])
def test_a_config_of_trl_says_what_it_trains_as_an_object_and_as_json(where, kinds, tmp_path):
    arguments = made(*where, tmp_path)
    path = tmp_path / "training_args.json"
    path.write_text(arguments.to_json_string())
    for layer in (read_training_object(arguments), read_training(path)):
        assert layer.config.training.extras["trainer"] == kinds[0]
        assert objective_of(layer.config).kind == kinds[1]
        assert not layer.unknown_keys


def test_plain_training_arguments_say_no_kind(tmp_path):
    from transformers import TrainingArguments

    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    assert "trainer" not in read_training_object(arguments).config.training.extras


@pytest.mark.parametrize(
    ("module", "name", "rows"),
    [
        ("trl.experimental.orpo", "ORPO", [{"prompt": "w1 w2 w3", "chosen": " w4 w5 w6", "rejected": " w7 w8 w9"}]),
        (
            "trl",
            "KTO",
            [
                {"prompt": "w1 w2 w3", "completion": " w4 w5 w6", "label": True},
                {"prompt": "w1 w2 w3", "completion": " w7 w8 w9", "label": False},
            ],
        ),
    ],
    ids=["ORPO", "KTO"],
)
def test_a_run_of_preference_training_is_recorded_as_one(
    module, name, rows, training, callback, log, tokenizer, tmp_path
):
    from datasets import Dataset

    trl = pytest.importorskip(module, reason="this TRL has no such trainer")
    settings = {"max_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 2, "save_strategy": "no"}
    arguments = getattr(trl, f"{name}Config")(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], max_length=16, **settings
    )
    run = getattr(trl, f"{name}Trainer")(
        model=training.llama(),
        args=arguments,
        train_dataset=Dataset.from_list(rows * 4),
        processing_class=tokenizer,
        callbacks=[callback()],
    )
    run.train()
    events = log(tmp_path)
    assert events.steps == [1, 2]
    config = events[0].config
    assert config.training.extras["trainer"] == "preference"
    assert objective_of(config).kind == "preference"
