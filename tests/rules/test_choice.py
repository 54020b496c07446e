"""Which rules are chosen, in which order they are listed, and how an objective is told apart from its neighbours."""

from __future__ import annotations

import msgspec
import pytest

from gradience.configs.training import objective_by_names, objective_of
from gradience.errors import ConfigError
from gradience.rules import GROUPS, all_ids, cards_of, excluded_rules, list_rules, matching, rule_cards
from gradience.rules.config import judge_config
from gradience.rules.config.adapter import part_of
from gradience.schema.document import Excluded
from gradience.schema.events import TELLING, ConfigSnapshot
from gradience.telemetry.signals import KEPT


def test_an_entry_is_the_beginning_of_an_id_and_not_a_part_of_it():
    assert matching(["LR001", "XLR001"], ["LR"], "select") == ["LR001"]
    with pytest.raises(ConfigError, match="no rule is called 001"):
        matching(["LR001"], ["001"], "select")


def test_a_settings_file_may_name_the_rules_of_other_verbs_and_yields_to_the_arguments(tmp_path):
    ids = ["LR001", "LR003", "TGT001"]
    path = tmp_path / "gradience.toml"
    path.write_text('select = ["LR", "DIV103"]\nignore = ["LR003", "MRG401"]\n')
    unselected, ignored = Excluded.NOT_SELECTED.value, Excluded.IGNORED.value
    assert excluded_rules(ids, settings=path) == {"LR003": ignored, "TGT001": unselected}
    assert excluded_rules(ids, select=["TGT"], settings=path) == {"LR001": unselected, "LR003": unselected}
    assert excluded_rules(ids, ignore=["TGT"], settings=path) == {"TGT001": unselected}
    with pytest.raises(ConfigError, match="no rule is called DIV103"):
        excluded_rules(ids, select=["DIV103"], settings=path)
    path.write_text('ignore = ["LR003"]\n')
    assert excluded_rules(ids, settings=path) == {"LR003": ignored}


def test_cards_come_by_their_first_group_and_are_found_by_any():
    places = [GROUPS.index(card.groups[0]) for card in rule_cards()]
    assert places == sorted(places)
    both = {card.id for card in cards_of("config", "data")}
    assert both == {card.id for card in cards_of("config")} | {card.id for card in cards_of("data")}
    assert {"LR001", "DAT301"} <= both
    assert "DAT301" in {card.id for card in cards_of("log")}
    assert [card.id for card in list_rules().rules] == list(all_ids())
    with pytest.raises(ConfigError, match="unknown rule ''"):
        list_rules("")


def test_an_objective_is_known_by_the_first_telling_name_and_preferences_before_rewards():
    assert objective_by_names({"rewards/margins", "rewards/chosen", "loss"}) == (
        "preference",
        "the log has rewards/chosen",
        False,
    )
    told = {
        "preference": "rewards/margins rewards/chosen rewards/accuracies "
        "log_odds_ratio log_odds_chosen odds_ratio_loss",
        "rl": "reward reward_std frac_reward_zero_std objective/kl group_reward_std "
        "critic/rewards/mean critic/score/mean actor/pg_clipfrac actor/ppo_kl mismatch_kl/mean mismatch_kl/all/mean",
        "reward": "mean_reward min_reward max_reward",
    }
    kinds = {name: kind for kind, names in told.items() for name in names.split()}
    assert {name: objective_by_names({name, "loss"}) for name in kinds} == {
        name: (kind, f"the log has {name}", False) for name, kind in kinds.items()
    }
    assert kinds.keys() == TELLING <= KEPT  # a log keeps the values that tell
    both = objective_by_names({"reward", "kl", "rewards/chosen"})
    assert both is not None
    assert both.kind == "preference"
    rewards = objective_by_names({"reward_std", "reward", "loss"})
    assert rewards is not None
    assert (rewards.kind, rewards.because) == ("rl", "the log has reward")
    for snapshot, kind, because in (
        ({"num_labels": 0}, "unknown", "no task, task_type or trainer says it"),
        ({"num_labels": 1}, "classification", "1 labels"),
        ({"extras": {"task": "a/b/sst2"}}, "classification", "task a/b/sst2"),
    ):
        found = objective_of(msgspec.convert(snapshot, ConfigSnapshot))
        assert (found.kind, found.because) == (kind, because)


def test_an_adapter_is_kept_in_fp16_only_if_that_was_asked_for():
    for dtype, autocast, answer in (
        ("float16", False, ["NUM001"]),
        ("fp16", False, ["NUM001"]),
        ("float16", True, []),
        ("float16", "auto", []),
        ("bfloat16", False, []),
        ("float16", None, ["? autocast_adapter_dtype is not given"]),
        (None, False, ["? dtype (fp16, bf16) is not given"]),
    ):
        snapshot = {"training": {"dtype": dtype}, "lora": {"r": 8, "extras": {"autocast_adapter_dtype": autocast}}}
        verdict = judge_config(msgspec.convert(snapshot, ConfigSnapshot))
        said = [found.id for found in verdict.findings if found.id == "NUM001"]
        assert said + [f"? {item.reason}" for item in verdict.not_run if item.id == "NUM001"] == answer


def test_a_name_alone_may_be_of_either_part_of_a_layer_whatever_its_case():
    for name in ("proj", "dense", "c_proj", "output"):
        assert part_of(name) == part_of(name.upper()) == "either"
    assert [part_of(f"x.{name}") for name in ("dense", "C_PROJ", "output")] == ["either", "either", "mlp"]
