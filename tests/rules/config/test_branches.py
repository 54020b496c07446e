"""Branches of the rules on a configuration that no entry of their table decides, and the facts that they read."""

from __future__ import annotations

from typing import Any

import msgspec
from tables import every

from gradience.rules import Verdict
from gradience.rules.config import judge_config, settings_of
from gradience.rules.config.adapter import part_of, reaches_mlp
from gradience.rules.config.facts import CheckContext
from gradience.schema.document import Finding
from gradience.schema.events import ConfigSnapshot


def config(*, adapter: bool = True, **sections: Any) -> ConfigSnapshot:
    """A snapshot from plain sections; of LoRA, unless they say otherwise or there is to be no adapter."""
    lora = {**({"peft_type": "LORA"} if adapter else {}), **sections.pop("lora", {})}
    return msgspec.convert({**sections, "lora": lora}, ConfigSnapshot)


def judged(snapshot: ConfigSnapshot) -> Verdict:
    return judge_config(snapshot)


def lora(**fields: Any) -> ConfigSnapshot:
    return config(lora=fields)


def training(**fields: Any) -> ConfigSnapshot:
    return config(training=fields)


BEGUN = CheckContext(moment="begun", begun="adapter_model.safetensors")


LOGGED = CheckContext(moment="logged", begun="trainer_state.json")


WEIGHED = CheckContext(moment="weighed", begun="the log")


WRONG = config(  # a configuration that every rule on a run to come has something to say of
    optimizer={"lr": 1e-6},
    training={
        "max_steps": 500,
        "logging_steps": 500.0,
        "save_strategy": "no",
        "warmup_ratio": 0.1,
        "warmup_steps": 0.0,
        "lr_scheduler": "linear",
    },
    extras={"task": "sft"},
)


@every(
    ("around", "judged_there"),
    [
        (CheckContext(output=("run.jsonl",)), {"LR001", "REC001", "REC004", "REC005"}),
        (BEGUN._replace(output=("run.jsonl",)), {"LR001"}),
        (LOGGED._replace(output=("run.jsonl",)), set()),
        (WEIGHED._replace(output=("run.jsonl",)), {"LR001", "REC001", "REC004"}),
    ],
)
def test_what_a_rule_predicts_is_said_of_runs_to_come_or_beside_the_log(
    around: CheckContext, judged_there: set[str]
) -> None:
    """A finished run is not judged by what its log would have shown."""
    verdict = judge_config(WRONG, around=around)
    asked = {"LR001", "REC001", "REC004", "REC005"}
    assert {item.id for item in verdict.findings} & asked == judged_there
    reasons = {item.id: item.reason for item in verdict.not_run if item.id in asked}
    assert reasons.keys() == asked - judged_there
    assert all("begun" in reason and around.begun in reason for reason in reasons.values())


def test_passes_over_the_data_are_those_of_the_log() -> None:
    """A limit on steps may cut short what was configured, and hide how often the data came."""
    cut = config(training={"epochs": 20.0, "max_steps": 10, "extras": {"epochs_overridden": True}})
    for seen, found in ((2.0, False), (24.3, True)):
        verdict = judge_config(cut, around=WEIGHED._replace(epochs_seen=seen))
        assert ("EPO001" in {item.id for item in verdict.findings}) is found
        assert "EPO001" not in {item.id for item in verdict.not_run}


@every(
    ("share", "around", "severity"),
    [
        (0.9, CheckContext(), "warning"),
        (0.9, WEIGHED, "info"),  # the log shows what came of it after the warm-up
        (1.0, WEIGHED, "warning"),
        (1.0, BEGUN, "warning"),
    ],
)
def test_a_warm_up_that_ended_within_a_run_is_left_to_its_log(
    share: float, around: CheckContext, severity: str
) -> None:
    verdict = judge_config(training(warmup_steps=100.0 * share, max_steps=100), around=around)
    assert [item.severity for item in verdict.findings if item.id == "SCH002"] == [severity]


@every(
    ("name", "part"),
    [
        ("q_proj", "attn"),
        ("model.layers.0.mlp.dense", "mlp"),
        ("h.0.attn.c_proj", "attn"),
        ("output", "either"),
        ("experts.w_x", "mlp"),
        ("layer.self_attn.x", "attn"),
        ("x.UP_PROJ", "mlp"),
        ("lm_head", "unknown"),
        ("mlpx.dense", "either"),
        ("x.y.dense", "either"),
        ("foo_mlp.dense", "mlp"),
    ],
)
def test_a_module_is_of_the_part_that_its_name_or_its_path_names(name: str, part: str) -> None:
    assert part_of(name) == part


@every(
    ("targets", "reached"),
    [
        ("All-Linear", True),
        (["c_attn"], False),
        (["c_proj", "c_attn"], None),  # a suffix: GPT-2 has attn.c_proj and mlp.c_proj
        (["transformer.h.0.mlp.c_proj"], True),
        (["q_proj", "dense"], None),
        (["q_proj", "x"], None),
        ([], None),
        (r"model\..*self_attn.*", False),
        (r".*\.(q|k|v|o|gate|up|down)_proj", None),
        (r".*(q_proj|gate_proj)", True),
        (".*k_proj|.*foo", False),
    ],
)
def test_names_that_leave_the_mlp_open_are_no_ground(targets: list[str] | str, *, reached: bool | None) -> None:
    assert reaches_mlp(targets) is reached


def test_a_finding_of_no_rule_on_a_configuration_is_about_no_setting() -> None:
    assert settings_of(Finding(id="NUM101", severity="error", message="x")) == []


RANGES = [  # (section, field, values in the range, values outside)
    ("optimizer", "lr", [1e-9], [0.0, -1e-9]),
    ("optimizer", "weight_decay", [0.0], [-1e-9]),
    ("optimizer", "eps", [0.0], [-1e-9]),
    ("optimizer", "betas", [[0.0, 0.999]], [[0.9, 1.0], [-0.1, 0.9]]),
    ("lora", "r", [1], [0]),
    ("lora", "alpha", [1e-9], [0.0]),
    ("lora", "dropout", [0.0, 0.999], [1.0, -0.001]),
    ("lora", "rank_pattern", [{"q": 1}], [{"q": 0}]),
    ("lora", "alpha_pattern", [{"q": 1e-9}], [{"q": 0.0}]),
    ("training", "batch_size", [1], [0]),
    ("training", "gradient_accumulation", [1], [0]),
    ("training", "world_size", [1], [0]),
    ("training", "max_steps", [1, 0, -1], []),
    ("training", "epochs", [0.01], [0.0]),
    ("training", "warmup_steps", [0.0], [-1.0]),
    ("training", "warmup_ratio", [0.0, 1.0], [-0.001, 1.001]),
    ("training", "max_grad_norm", [0.0], [-0.1]),
]


@every(("section", "field", "good", "bad"), RANGES)
def test_a_value_at_the_end_of_its_range_is_fine_and_one_beside_it_is_an_error(
    section: str, field: str, good: list[Any], bad: list[Any]
) -> None:
    for values, count in ((good, 0), (bad, 1)):
        for value in values:
            verdict = judge_config(config(**{section: {field: value}}))
            assert len([item for item in verdict.findings if item.id == "VAL001"]) == count, value


def test_values_of_lora_are_not_judged_in_another_kind_of_adapter() -> None:
    values = {"r": 0, "alpha": 0.0, "dropout": 2.0, "rank_pattern": {"q": 0}, "alpha_pattern": {"q": 0.0}}
    snapshot = config(lora={"peft_type": "IA3", **values})
    assert "VAL001" not in {item.id for item in judge_config(snapshot).findings}
