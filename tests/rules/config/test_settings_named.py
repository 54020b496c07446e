"""A rule names the settings that it is about as the snapshot has them: `check` finds their lines in files by these."""

from __future__ import annotations

from gradience.rules.config import RULES
from gradience.schema.events import ConfigSnapshot, LoraSnapshot, OptimizerSnapshot, TrainingSnapshot

FURTHER = {  # of files, kept as extras
    *("autocast_adapter_dtype", "exclude_modules", "logging_strategy", "output_dir", "target_parameters"),
    *("layers_pattern", "layers_to_transform", "trainable_token_indices"),
    *("attn_implementation", "neat_packing", "packing", "packing_strategy", "prompt_template"),
}
SNAPSHOTS = (ConfigSnapshot, LoraSnapshot, OptimizerSnapshot, TrainingSnapshot)


def test_every_setting_that_a_rule_names_is_a_field() -> None:
    fields = {field for snapshot in SNAPSHOTS for field in snapshot.__struct_fields__}
    named = {(rule.id, name) for rule in RULES if not callable(rule.settings) for name in rule.settings}
    assert len({name for _, name in named}) > 25
    assert {(rule, name) for rule, name in named if name not in fields | FURTHER} == set()
