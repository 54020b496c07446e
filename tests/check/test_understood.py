"""The configuration as understood: every line of it, by what was given and what was not."""

from __future__ import annotations

from typing import Any

from tables import every

from gradience import check_config
from gradience.verbs.check.view import check_text

LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": ["v_proj", "q_proj"]}
BARE, NO_ALPHA, TARGETS = {"peft_type": "LORA", "r": 4}, "Adapter:    LoRA  r=4", "Targets:    q_proj, v_proj"
RATE, EARLY = "Optimizer:  lr=1e-4", "Early step: 1.2e-03 (scaling x r x lr)"
STEPS = {"per_device_train_batch_size": 3, "max_steps": 50}


def understood(given: dict[str, Any]) -> list[str]:
    lines = check_text(check_config({"learning_rate": 1e-4} | given)).split("Config as understood:\n")[1].splitlines()
    return [line.removeprefix("  ") for line in lines[: lines.index("")]]


@every(
    ("given", "lines"),
    [
        (LORA, ["Adapter:    LoRA  r=4 alpha=6 scaling=1.5", TARGETS, RATE, "Early step: 6.0e-04 (scaling x r x lr)"]),
        (
            LORA | {"use_rslora": True, "use_dora": True, "lora_dropout": 0.1, "bias": "all", "init": "pissa"},
            ["Adapter:    rsLoRA+DoRA  r=4 alpha=6 scaling=3 dropout=0.1 bias=all init=pissa", TARGETS, RATE, EARLY],
        ),
        (
            {"task": "sst2"} | LORA,
            ["Task:       sst2 (classification, by task sst2)", "Adapter:    LoRA  r=4 alpha=6 scaling=1.5", TARGETS,
             RATE, "Early step: 6.0e-04 (scaling x r x lr; shipped recipes for supervised training 3e-3 to 1e-2)"],
        ),
        ({"peft_type": "IA3"}, ["Adapter:    IA3: recognised; the rules about LoRA do not apply", RATE]),
        (BARE | {"target_modules": None}, [NO_ALPHA, "Targets:    PEFT's default (target_modules is null)", RATE]),
        (BARE | {"target_modules": "all-linear"}, [NO_ALPHA, "Targets:    all-linear", RATE]),
        ({"optim": "adamw_torch", "weight_decay": 0.01, "lr_scheduler_type": "cosine"},
         ["Optimizer:  adamw_torch lr=1e-4 cosine weight_decay=0.01"]),
        ({"optimizer": {"lr": 1e-4, "extras": {"lr_from": "log"}}},
         [f"{RATE} (the largest logged; the configured rate may be higher)"]),
        (STEPS, [RATE, "Batch:      3 x 1 accumulation = 3 per step and process", "Length:     50 steps"]),
        (STEPS | {"gradient_accumulation_steps": 2, "world_size": 5},
         [RATE, "Batch:      3 x 2 accumulation x 5 processes = 30 per step", "Length:     50 steps"]),
        ({"training": {"batch_size": 3, "extras": {"batch_from": "the log"}}},
         [RATE, "Batch:      3 per device; gradient accumulation not given"]),
        ({"training": {"batch_size": 3, "extras": {"samples_per_step": 24}}},
         [RATE, "Batch:      24 per step (by the log's summary; 3 per device)"]),
        ({"max_steps": 50, "warmup_steps": 5}, [RATE, "Length:     50 steps, warmup 10.0%"]),
        ({"max_steps": 50000, "warmup_steps": 49}, [RATE, "Length:     50000 steps, warmup under 0.1%"]),
        ({"max_steps": 50000, "warmup_steps": 50}, [RATE, "Length:     50000 steps, warmup 0.1%"]),
    ],
)  # fmt: skip
def test_a_line_says_what_was_given_and_what_follows(given: dict[str, Any], lines: list[str]) -> None:
    assert understood(given) == lines
