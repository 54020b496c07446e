"""Branches of the rules on a configuration that no entry of their table decides, and the facts that they read."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tables import every

from gradience.configs.training import objective_by_names
from gradience.rules import Unknown, Verdict
from gradience.rules.config import RULES, judge_config, settings_of
from gradience.rules.config.adapter import part_of, reaches_mlp
from gradience.rules.config.facts import CheckContext, Facts
from gradience.rules.config.serving import RANKS
from gradience.schema.document import Finding
from gradience.schema.events import ConfigSnapshot


def config(*, adapter: bool = True, **sections: Any) -> ConfigSnapshot:
    """A snapshot from plain sections; of LoRA, unless they say otherwise or there is to be no adapter."""
    lora = {**({"peft_type": "LORA"} if adapter else {}), **sections.pop("lora", {})}
    return msgspec.convert({**sections, "lora": lora}, ConfigSnapshot)


def judged(snapshot: ConfigSnapshot, *, transformers: str | None = None) -> Verdict:
    """Return the verdict on a snapshot."""
    return judge_config(snapshot, transformers=transformers)


def lora(**fields: Any) -> ConfigSnapshot:
    return config(lora=fields)


def training(**fields: Any) -> ConfigSnapshot:
    return config(training=fields)


def rate(lr: float, task: str | None = "sft", **lora_fields: Any) -> ConfigSnapshot:
    extras = {"task": task} if task else {}
    return config(optimizer={"lr": lr}, lora=lora_fields, extras=extras)


def test_a_misspelt_key_is_named_with_the_setting_that_was_meant() -> None:
    keys = ("learning_rat", "model.lora_rnak", "note")
    found = [f for f in judge_config(training(), around=CheckContext(unknown_keys=keys)).findings if f.id == "KEY001"]
    assert [f.message for f in found] == [
        "no setting is called learning_rat; did you mean learning_rate?",
        "no setting is called model.lora_rnak; did you mean lora_rank?",
    ]
    assert settings_of(found[0]) == ["learning_rat"]


@every(("transformers", "fires"), [("4.57.0", False), ("5.1.2", False), ("5.2.0", True), ("6.0.dev0", True)])
def test_warmup_ratio_matters_only_where_it_was_removed(transformers: str, *, fires: bool) -> None:
    """The version decides, and an unknown one is said."""
    verdict = judged(training(warmup_ratio=0.1), transformers=transformers)
    assert ("SCH003" in {item.id for item in verdict.findings}) is fires
    assert "SCH003" in {item.id for item in judged(training(warmup_ratio=0.1)).not_run}


@every("rule", RULES, ids=lambda rule: rule.id)
def test_rule_is_complete_data(rule: Any) -> None:
    """The table can be printed and argued with."""
    assert rule.title
    assert rule.evidence
    assert 0 < rule.confidence <= 1
    for text in (rule.rationale, rule.action, rule.scope, rule.verify):
        assert text
    for threshold in rule.thresholds:
        assert threshold.unit
        assert threshold.source


def test_another_peft_method_gets_no_lora_rule() -> None:
    """IA3 has no rank to judge; values and recording still count."""
    once = {"eval_strategy": "no", "epochs": 2.0}
    verdict = judged(config(lora={"peft_type": "IA3"}, optimizer={"lr": 1e-6}, training=once))
    assert {item.id for item in verdict.findings} == {"REC002"}
    assert "IA3" in next(item.reason for item in verdict.not_run if item.id == "LR001")


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
        (CheckContext(output=("run.jsonl",)), {"LR001", "REC001", "REC004", "REC005", "SCH003"}),
        (BEGUN._replace(output=("run.jsonl",)), {"LR001"}),
        (LOGGED._replace(output=("run.jsonl",)), set()),
        (WEIGHED._replace(output=("run.jsonl",)), {"LR001", "REC001", "REC004"}),
    ],
)
def test_what_a_rule_predicts_is_said_of_runs_to_come_or_beside_the_log(
    around: CheckContext, judged_there: set[str]
) -> None:
    """A finished run is not judged by what is installed here, nor by what its log would have shown."""
    verdict = judge_config(WRONG, transformers="5.24.0", around=around)
    asked = {"LR001", "REC001", "REC004", "REC005", "SCH003"}
    assert {item.id for item in verdict.findings} & asked == judged_there
    reasons = {item.id: item.reason for item in verdict.not_run if item.id in asked}
    assert reasons.keys() == asked - judged_there
    assert all("begun" in reason and around.begun in reason for reason in reasons.values())


def test_the_verdict_on_a_run_that_has_begun_does_not_depend_on_what_is_installed() -> None:
    for around in (BEGUN, LOGGED, WEIGHED):
        verdicts = [judge_config(WRONG, transformers=here, around=around) for here in (None, "4.57.0", "5.24.0")]
        assert verdicts[0] == verdicts[1] == verdicts[2]


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


@every("limit", [-1, 0])
def test_a_limit_of_steps_that_is_none_is_no_value_out_of_range(limit: int) -> None:
    """-1 is the Trainer's default: epochs decide."""
    verdict = judged(training(max_steps=limit, epochs=2.0))
    assert "VAL001" not in {item.id for item in verdict.findings}
    assert Facts(training(max_steps=limit)).max_steps is None
    assert Facts(training(max_steps=1)).max_steps == 1


def test_the_premises_of_a_rule_are_on_its_card() -> None:
    (rule,) = [rule for rule in RULES if rule.id == "LR001"]
    assert rule.premises == [
        "the adapter is LoRA",
        "an adapter is configured",
        "no log shows yet what came of it, or the log is read beside it",
        "the objective is known to be supervised",
    ]


def test_low_rate_names_the_default_it_equals() -> None:
    """People rarely chose it; MLX-LM's is named in MLX-LM's files only."""
    mlx = msgspec.structs.replace(rate(1e-5), extras={"task": "sft", "format": "mlx-lm"})
    trl = config(optimizer={"lr": 2e-5}, training={"extras": {"trainer": "sft"}})
    for name, snapshot in (("transformers", rate(5e-5)), ("TRL", trl), ("MLX", mlx)):
        assert name in next(item.message for item in judged(snapshot).findings if item.id == "LR001")
    for lr in (1e-5, 2e-5):  # 2e-5 is the default of a trainer that this is not
        assert "default" not in next(item.message for item in judged(rate(lr)).findings if item.id == "LR001")


def mlx_run(lr: float, *, scale: float) -> ConfigSnapshot:
    snapshot = rate(lr)
    lora = msgspec.structs.replace(snapshot.lora, r=8, alpha=8 * scale)
    return msgspec.structs.replace(snapshot, lora=lora, extras={"task": "sft", "format": "mlx-lm"})


def test_mlxs_rate_is_judged_with_its_scale() -> None:
    """Its scale is 10 or 20, where PEFT's is 1 or 2: rates of PEFT's recipes would be far too high."""
    (found,) = [item for item in judged(mlx_run(1e-5, scale=20.0)).findings if item.id == "LR001"]
    assert (found.action, "1.6e-03" in found.message) == ("try 2e-05 to 6e-05", True)
    assert "LR001" not in {item.id for item in judged(mlx_run(2e-5, scale=20.0)).findings}


def test_many_epochs_are_graver_without_evaluation() -> None:
    """With evaluation the best checkpoint can be kept."""
    blind = judged(training(epochs=10.1, eval_strategy="no")).findings
    seeing = judged(training(epochs=10.1, eval_strategy="epoch")).findings
    assert next(item.severity for item in blind if item.id == "EPO001") == "warning"
    assert next(item.severity for item in seeing if item.id == "EPO001") == "info"


def test_findings_come_gravest_first_and_ignored_rules_are_named() -> None:
    """What matters is on top, and leaving out is no pass."""
    once = {"eval_strategy": "no", "epochs": 2.0}
    snapshot = config(optimizer={"lr": 1e-5}, lora={"r": 0}, training=once, extras={"task": "sft"})
    verdict = judge_config(snapshot, left_out={"LR001": "ignored on request"})
    assert [item.id for item in verdict.findings] == ["VAL001", "REC002"]
    assert len(verdict.not_run) > 1  # what could not be judged comes first, what was not asked for last
    assert (verdict.not_run[-1].id, verdict.not_run[-1].reason) == ("LR001", "ignored on request")


@every(
    ("training", "batch"),
    [
        ({"extras": {"samples_per_step": 32}}, 32),
        ({"batch_size": 4, "world_size": 2, "extras": {"samples_per_step": 0}}, 8),
        ({"batch_size": 4, "world_size": 2, "extras": {"samples_per_step": "32"}}, 8),
        ({"batch_size": 4, "world_size": 2, "gradient_accumulation": 1, "extras": {"samples_per_step": 32}}, 8),
    ],
)
def test_the_batch_is_that_of_the_settings_unless_a_log_alone_counts_it(training: dict[str, Any], batch: int) -> None:
    assert Facts(config(training=training)).effective_batch == batch


@every(
    ("training", "steps"),
    [
        ({"batch_size": 8, "world_size": 1, "epochs": 1.0, "extras": {"train_examples": 9}}, 2),
        ({"batch_size": 8, "world_size": 1, "epochs": 2.5, "extras": {"train_examples": 16}}, 5),
        ({"batch_size": 8, "world_size": 1, "epochs": 2.9, "extras": {"train_examples": 8}}, 2),
        ({"batch_size": 8, "world_size": 1, "epochs": 1.0, "extras": {"train_examples": 1}}, 1),
        ({"batch_size": 8, "world_size": 1, "epochs": 1.0, "extras": {"train_examples": 0}}, None),
        ({"epochs": 1.0, "extras": {"train_examples": "9"}}, None),
    ],
)
def test_steps_are_whole_batches_times_epochs(training: dict[str, Any], steps: int | None) -> None:
    facts = Facts(config(training=training))
    if steps is None:
        with pytest.raises(Unknown, match="neither max_steps nor the size of the data"):
            _ = facts.steps
    else:
        assert facts.steps == steps


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
    [("All-Linear", True), (["q_proj", "dense"], None), (["q_proj", "x"], None), ([], None), (".*k_proj|.*foo", False)],
)
def test_names_that_leave_the_mlp_open_are_no_ground(targets: list[str] | str, *, reached: bool | None) -> None:
    assert reaches_mlp(targets) is reached


@pytest.mark.parametrize("sizes", RANKS, ids=lambda sizes: sizes.engine)
def test_an_engine_has_the_sizes_and_the_default_of_its_source(sizes: Any) -> None:
    stated = {
        "vllm": ((1, 8, 16, 32, 64, 128, 256, 320, 512), 16, 1, 1),
        "tensorrt": ((), 64, 1, 1),
        "lorax": ((), None, 8, 16),
    }
    assert (sizes.sizes, sizes.default, sizes.least, sizes.step) == stated[sizes.engine]


@every(
    ("names", "shown"),
    [
        ({"rewards/margins", "rewards/chosen"}, ("preference", "the log has rewards/chosen", False)),
        ({"reward", "rewards/margins"}, ("preference", "the log has rewards/margins", False)),
        ({"reward", "mean_reward"}, ("rl", "the log has reward", False)),
        ({"mean_reward"}, ("reward", "the log has mean_reward", False)),
        (set(), None),
    ],
)
def test_the_names_of_logged_values_show_an_objective(names: set[str], shown: tuple[str, str, bool] | None) -> None:
    assert objective_by_names(names) == shown


def test_a_finding_of_no_rule_on_a_configuration_is_about_no_setting() -> None:
    assert settings_of(Finding(id="NUM101", severity="error", message="x")) == []


def test_a_finding_and_not_judged_stand_together_only_where_a_part_was_judged() -> None:
    """VAL001 finds a value out of range, and says which others were not given."""
    verdict = judge_config(config(optimizer={"lr": 0.0}))
    assert [item.message for item in verdict.findings if item.id == "VAL001"] == ["lr is 0; it must be above 0"]
    reasons = {item.id: item.reason for item in verdict.not_run}
    assert reasons["VAL001"] == "not given, so not checked: r, lora_alpha"
    both = {item.id for item in verdict.findings} & reasons.keys()
    assert both == {"VAL001"}


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
