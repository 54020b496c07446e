"""`adapter_config.json` as an audit needs it, and PEFT's rule for rank and alpha by module."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gradience.errors import AdapterError

__all__ = ["AdapterConfig", "matching_pattern", "read_config", "scaling"]

Positive = Annotated[int, Meta(ge=1)]


class AdapterConfig(msgspec.Struct, kw_only=True, frozen=True):
    """The fields of PEFT's LoraConfig that decide what the tensors mean. Other keys are ignored."""

    peft_type: str | None = None
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    r: Positive = 8
    lora_alpha: float = 8.0
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    bias: str = "none"
    rank_pattern: dict[str, Any] | None = None
    alpha_pattern: dict[str, float] | None = None
    modules_to_save: list[str] | None = None
    init_lora_weights: bool | str | None = True
    target_modules: list[str] | str | None = None
    target_parameters: list[str] | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    alora_invocation_tokens: list[int] | None = None
    peft_version: str | None = None


def read_config(path: Path) -> AdapterConfig:
    """Return the adapter's configuration.

    Raises:
        AdapterError: the file is missing, not JSON, or a field has the wrong type.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise AdapterError(
            f"cannot read {path}: {error.strerror}",
            advice="scaling needs it: give it with --adapter-config, or save the adapter again",
        ) from error
    try:
        return msgspec.json.decode(raw, type=AdapterConfig)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise AdapterError(f"{path} is no PEFT adapter config: {error}", advice="give the right file") from error


def matching_pattern(patterns: Iterable[str], name: str) -> str | None:
    """Return the first pattern that PEFT would apply to the module, or None.

    PEFT anchors each key at the end of the module path, beginning at a dot or at the start, and reads it
    as a regular expression; the first key in the dict's order wins (`peft/utils/other.py`).
    """
    for key in patterns:
        try:
            if re.match(rf"(.*\.)?({key})$", name):
                return key
        except re.error as error:
            raise AdapterError(
                f"the pattern {key!r} in the adapter config is no regular expression: {error}",
                advice="PEFT would refuse it too: correct rank_pattern or alpha_pattern",
            ) from error
    return None


def scaling(config: AdapterConfig, name: str, r: int) -> tuple[float, float]:
    """Return (alpha, s) of a module: s = alpha / r, or alpha / sqrt(r) with rsLoRA."""
    patterns = config.alpha_pattern or {}
    key = matching_pattern(patterns, name)
    alpha = config.lora_alpha if key is None else patterns[key]
    return alpha, alpha / (math.sqrt(r) if config.use_rslora else r)
