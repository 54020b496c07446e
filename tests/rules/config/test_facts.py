"""What follows from a configuration: numbers with their units, or the reason why they cannot be known."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from tables import every

from gradience.rules import Unknown
from gradience.rules.config.facts import Facts, quantities
from gradience.schema.events import ConfigSnapshot

BY_EIGHT = {"batch_size": 8, "world_size": 1}
BY_THREE_EIGHTS = {"batch_size": 4, "world_size": 2, "gradient_accumulation": 3}


def facts(**sections: Any) -> Facts:
    return Facts(msgspec.convert(sections, ConfigSnapshot))


@every(
    ("name", "sections", "value"),
    [
        ("scaling", {"lora": {"r": 16, "alpha": 32}}, 2.0),
        ("scaling", {"lora": {"r": 16, "alpha": 32, "use_rslora": True}}, 8.0),
        ("scaling", {"lora": {"r": 1, "alpha": 3}}, 3.0),
        ("early_step", {"lora": {"r": 16, "alpha": 32}, "optimizer": {"lr": 1e-4}}, 3.2e-3),
        ("early_step", {"lora": {"r": 16, "alpha": 32, "use_rslora": True}, "optimizer": {"lr": 1e-4}}, 1.28e-2),
        ("batch_per_process", {"training": {"batch_size": 4, "gradient_accumulation": 8}}, 32),
        ("batch_per_process", {"training": {"batch_size": 4}}, 4),
        ("batch_per_process",
         {"training": {"batch_size": 4, "gradient_accumulation": 2, "extras": {"batch_from": "the log"}}}, 8),
        (
            "epochs",
            {
                "training": {
                    "max_steps": 10,
                    "batch_size": 4,
                    "world_size": 3,
                    "extras": {"train_examples": 60, "train_tokens": 6000},
                }
            },
            2.0,
        ),
        ("effective_batch", {"training": {"batch_size": 4, "gradient_accumulation": 8, "world_size": 2}}, 64),
        ("effective_batch", {"training": {"extras": {"samples_per_step": 32}}}, 32),
        *(
            ("effective_batch", {"training": {"batch_size": 4, "world_size": 2, **log}}, 8)
            for log in (
                {"extras": {"samples_per_step": 0}},
                {"extras": {"samples_per_step": "32"}},
                {"gradient_accumulation": 1, "extras": {"samples_per_step": 32}},
            )
        ),
        *(
            (
                "steps",
                {"training": {"batch_size": 8, "world_size": 1, "epochs": epochs, "extras": {"train_examples": n}}},
                steps,
            )
            for epochs, n, steps in (
                *((1.0, 9, 2), (2.5, 16, 5), (2.5, 24, 8), (2.9, 8, 3)),  # an epoch in part makes its last step whole
                *((1.0, 1, 1), (2.0, 801, 202), (0.01, 8, 1)),
            )
        ),
        *(
            (
                "steps",
                {"training": {**BY_THREE_EIGHTS, "epochs": 1.5, "extras": {"train_examples": n, "drop_last": drop}}},
                steps,
            )
            for n, drop, steps in ((25, False, 3), (25, True, 2), (32, True, 3), (15, True, 2))
        ),
        ("steps", {"training": {"max_steps": 7, "epochs": 2.0}}, 7),
        ("logged_every", {"training": {"logging_steps": 10.0}}, 10.0),
        ("logged_every", {"training": {"logging_steps": 0.1, "max_steps": 200}}, 20.0),
        ("logged_every", {"training": {"logging_steps": 1.0, "max_steps": 200}}, 1.0),
        ("logged_every", {"training": {"extras": {"logging_strategy": "no"}}}, math.inf),
        ("saved_every", {"training": {"save_strategy": "steps", "save_steps": 50.0}}, 50.0),
        ("saved_every", {"training": {"save_strategy": "steps", "save_steps": 0.25, "max_steps": 400}}, 100.0),
        ("saved_every", {"training": {"save_strategy": "steps", "save_steps": 1.0, "max_steps": 400}}, 1.0),
        ("saved_every", {"training": {"save_strategy": "no"}}, math.inf),
        ("warmup_share", {"training": {"warmup_steps": 1.0, "max_steps": 100}}, 0.01),
        ("warmup_share", {"training": {"warmup_steps": 0.99}}, 0.99),
        ("warmup_share", {"training": {"warmup_steps": 10.0, "warmup_ratio": 0.9, "max_steps": 100}}, 0.1),
        ("warmup_share", {"training": {"warmup_steps": 0.0, "warmup_ratio": 0.3}}, 0.3),
        ("warmup_share", {"training": {"warmup_steps": 0.0}}, 0.0),
        ("has_warmup", {"training": {"warmup_steps": 0.0, "warmup_ratio": 0.0}}, False),
        ("has_warmup", {"training": {"warmup_ratio": 0.1}}, True),
        ("is_adam", {"optimizer": {"name": "AdamW"}}, True),
        ("is_adam", {"optimizer": {"name": "sgd"}}, False),
        ("is_adam", {}, None),
    ],
)  # fmt: skip
def test_a_quantity_is_what_the_trainer_would_make_of_it(name: str, sections: dict[str, Any], value: float) -> None:
    assert getattr(facts(**sections), name) == pytest.approx(value)


@every(
    ("name", "sections", "reason"),
    [
        ("lr", {}, "lr is not given"),
        ("lr", {"optimizer": {"lr": 0.0}}, "lr is not a positive number (see VAL001)"),
        ("lr", {"optimizer": {"lr": "Infinity"}}, "lr is not a positive number (see VAL001)"),
        ("adam_lr", {"optimizer": {"lr": 1e-4, "name": "lion"}},
         "optimizer lion is not of the Adam family: no published band"),
        ("r", {"lora": {"r": 0}}, "r is below 1 (see VAL001)"),
        ("effective_batch", {"training": {"batch_size": 4}}, "number of processes is not given"),
        ("effective_batch", {"training": {"batch_size": 4, "world_size": 0}},
         "number of processes is below 1 (see VAL001)"),
        ("batch_per_process", {"training": {"batch_size": 4, "gradient_accumulation": 0}},
         "gradient accumulation is below 1 (see VAL001)"),
        ("steps", {"training": {"batch_size": 8, "world_size": 1, "epochs": 1.0, "extras": {"train_examples": 0}}},
         None),
        ("steps", {"training": {"epochs": 1.0, "extras": {"train_examples": "9"}}}, None),
        ("steps", {"training": {**BY_EIGHT, "epochs": 1.0, "extras": {"train_examples": 7, "drop_last": True}}},
         "the data are less than one batch, which dataloader_drop_last leaves out"),
        ("coverage", {}, "the base model is not given (--base)"),
        ("logged_every", {"training": {"extras": {"logging_strategy": "epoch"}}}, None),
        ("saved_every", {"training": {"save_strategy": "best"}}, None),
        ("saved_every", {"training": {"save_strategy": "steps", "save_steps": 0.5}}, None),
        ("has_warmup", {}, "warmup is not given"),
    ],
)  # fmt: skip
def test_what_cannot_be_known_says_why(name: str, sections: dict[str, Any], reason: str | None) -> None:
    with pytest.raises(Unknown) as unknown:
        getattr(facts(**sections), name)
    assert str(unknown.value)
    assert reason is None or str(unknown.value) == reason


def test_quantities_are_those_that_the_configuration_determines() -> None:
    sections = {
        "optimizer": {"lr": 1e-4},
        "lora": {"r": 16, "alpha": 32},
        "training": {"batch_size": 4, "world_size": 2},
    }
    assert quantities(msgspec.convert(sections, ConfigSnapshot)) == pytest.approx(
        {"scaling": 2.0, "scaling_r_lr": 3.2e-3, "batch_per_process": 4.0, "effective_batch": 8.0}
    )
    other = {**sections, "lora": {"r": 16, "alpha": 32, "peft_type": "IA3"}}
    assert quantities(msgspec.convert(other, ConfigSnapshot)).keys() == {"batch_per_process", "effective_batch"}
