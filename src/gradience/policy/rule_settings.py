"""Which settings each rule of check is about: fields of the snapshot, for pointing at their line in a file."""

from __future__ import annotations

from typing import Final

from gradience.schema.findings import Finding

__all__ = ["SETTINGS_OF", "settings_of"]

SETTINGS_OF: Final[dict[str, tuple[str, ...]]] = {
    "VAL001": (),  # the value it found names it
    "SEC001": (),
    "LR001": ("lr",),
    "LR002": ("lr",),
    "LR003": ("lr",),
    "LR004": ("lr",),
    "LR005": ("lr", "r"),
    "LR006": ("name",),
    "LR007": ("lr", "init"),
    "TGT001": ("target_modules",),
    "TGT002": ("target_modules", "exclude_modules", "target_parameters"),
    "TGT003": ("target_modules",),
    "TGT004": ("task_type", "modules_to_save"),
    "TGT005": ("trainable_token_indices", "modules_to_save", "target_modules"),
    "RNK001": ("r",),
    "ALP001": ("alpha", "use_rslora"),
    "ALP002": ("alpha",),
    "NUM001": ("dtype", "autocast_adapter_dtype"),
    "BIA001": ("bias",),
    "REC001": ("logging_steps", "logging_strategy"),
    "REC002": ("eval_strategy",),
    "REC003": ("logging_nan_inf_filter",),
    "REC004": ("save_steps", "save_strategy"),
    "REC005": ("output_dir",),
    "BAT001": ("batch_size", "gradient_accumulation"),
    "STP001": ("max_steps", "epochs"),
    "EPO001": ("epochs",),
    "SCH001": ("lr_scheduler",),
    "SCH002": ("warmup_steps", "warmup_ratio"),
    "SCH003": ("warmup_ratio",),
    "SRV001": (),  # the feature it found names it
    "SRV002": (),
    "SRV003": (),
    "SRV004": ("r", "rank_pattern"),
}
_FEATURES: Final = {
    "dora": "use_dora",
    "rslora": "use_rslora",
    "token_rows": "trainable_token_indices",
    "some_layers": "layers_to_transform",
    "beyond_attention": "target_modules",
    "peft_format": "peft_type",
}
_SAID: Final = {  # what VAL001 calls a value, where that is no field
    "adam eps": "eps",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "batch size": "batch_size",
    "gradient accumulation": "gradient_accumulation",
    "number of processes": "world_size",
}


def settings_of(finding: Finding) -> list[str]:
    """Return the fields, or keys of the file, that a finding is about, the nearest first."""
    if finding.id == "SEC001":
        return [str(finding.values.get("key", ""))]
    if "feature" in finding.values:
        feature = str(finding.values["feature"])
        return [_FEATURES.get(feature, feature)]
    if finding.id == "VAL001":
        names = (name.partition("[")[0] for name in finding.values)
        return ["betas" if name.startswith("adam beta") else _SAID.get(name, name) for name in names]
    return list(SETTINGS_OF.get(finding.id, ()))
