"""The role of each tensor that is no part of a module's update: heads, biases, copies of the base, leftovers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from gradience.adapters.config import AdapterConfig
from gradience.adapters.layout import PREFIX, Role, Skipped
from gradience.adapters.names import is_embedding
from gradience.schema.audit import LeftoverReason

_TRAINING_ONLY: Final = re.compile(r"\.(?:lora_velora_embed|lora_monteclora_sampler|ranknum)(?:\.|$)")
_FACTOR_OF_A_TYPE: Final = re.compile(
    r"(?:^|\.)(?:adamss|beft|boft|c3a|deft|delora|fourierft|frod|glora|gralora|hada|hira|hra|ia3|lily|ln_tuning"
    r"|lokr|lora|miss|oft|osf|peanut|poly_lora|poly|psoft|pvera|randlora|road|shira|supertuning|tinylora"
    r"|unilora|vblora|vera|waveft|internal_xlora)_\w+"
)
_HEAD: Final = re.compile(
    r"^(?:\w+\.)?(?:score|classifier|classification_head|qa_outputs|v_head|value_head|reward_head|summary|pre_classifier)"
    r"(?:\.\w+)*\.(?:weight|bias)$"
)
_MANY: Final = 8


def other_role(key: str, config: AdapterConfig) -> Role:  # noqa: PLR0911  # one return a role reads best
    """The role of a tensor that `parse_key` does not place."""
    name = key.removeprefix(PREFIX)
    # The order matters: a saved module may hold any of the names that are tested further down.
    if ".trainable_tokens_" in name:
        return "token_rows"
    if key in {"base_model.vera_A", "base_model.vera_B"}:
        return "lora_pair"
    # With bias="none" PEFT saves a bias of the base only as part of a copied layer.
    if name.endswith(".bias") and ".base_layer." in name:
        return "bias" if config.bias != "none" else "base_copy"
    if ".original_module." in name or name.endswith((".base_layer.weight", ".token_adapter.base_layer.weight")):
        return "base_copy"
    if ".modules_to_save." in name or _saved_whole(name, config.modules_to_save or []):
        return "full_module"
    if name.endswith(".bias") and config.bias != "none":
        return "bias"
    if _FACTOR_OF_A_TYPE.search(name) or name == "prompt_embeddings":
        return "not_analysed"
    if name.endswith(".weight") and is_embedding(name.removesuffix(".weight")):
        return "full_module"  # save_embedding_layers, or a vocabulary that was resized
    if _HEAD.search(name):
        return "full_module"  # PEFT saves a task's head whole, and older files do not name it in modules_to_save
    return "unknown"


def _saved_whole(name: str, saved: list[str]) -> bool:
    """Whether a path within the name ends with a name that is saved, not only at a dot: PEFT's `_set_trainable`."""
    return any(f"{module}." in name for module in saved)


def explained(roles: dict[str, Role]) -> list[Skipped]:
    """The reasons why tensors are not analysed, one entry for many of a kind."""
    by_cause: dict[LeftoverReason, list[str]] = {}
    for key, role in roles.items():
        if role == "unknown":
            by_cause.setdefault(LeftoverReason.UNKNOWN, []).append(key)
        elif role == "not_analysed":
            training = _TRAINING_ONLY.search(key) is not None
            why = LeftoverReason.TRAINING_ONLY if training else LeftoverReason.KIND_NOT_ANALYSED
            by_cause.setdefault(why, []).append(key)
    return [entry for cause, keys in by_cause.items() for entry in _entries(keys, cause)]


_TEXTS: Final = {
    LeftoverReason.UNKNOWN: "not part of any adapter layout known here",
    LeftoverReason.TRAINING_ONLY: "used in training only",
    LeftoverReason.KIND_NOT_ANALYSED: "a tensor of a kind that is not analysed",
}


def _entries(keys: list[str], cause: LeftoverReason) -> Iterable[Skipped]:
    if len(keys) <= _MANY:
        return [Skipped(key, _TEXTS[cause], cause) for key in keys]
    return [Skipped(f"{keys[0]} and {len(keys) - 1} more", _TEXTS[cause], cause)]
