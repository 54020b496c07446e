"""Values that cannot be meant, and secrets that should not be there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from gradience.rules.config.facts import Facts
from gradience.rules.config.hits import Hit, Rule
from gradience.rules.evidence import MECHANICAL, TOKEN_PICKLE
from gradience.rules.rule import Unknown
from gradience.schema.config import ConfigSnapshot
from gradience.schema.findings import Finding
from gradience.schema.scalars import NonFinite, as_float, real

Number = float | NonFinite | None


class _Range(NamedTuple):
    name: str
    read: Callable[[ConfigSnapshot], Number]
    holds: Callable[[float], bool]
    wanted: str
    of_lora: bool = False


def _above_zero(value: float) -> bool:
    return value > 0


def _not_negative(value: float) -> bool:
    return value >= 0


def _below_one(value: float) -> bool:
    return 0 <= value < 1


def _counts(value: float) -> bool:
    return value >= 1


_RANGES = (
    _Range("lr", lambda c: c.optimizer.lr, _above_zero, "above 0"),
    _Range("weight_decay", lambda c: c.optimizer.weight_decay, _not_negative, "0 or more"),
    _Range("adam eps", lambda c: c.optimizer.eps, _not_negative, "0 or more"),
    _Range("r", lambda c: c.lora.r, _counts, "at least 1", of_lora=True),
    _Range("lora_alpha", lambda c: c.lora.alpha, _above_zero, "above 0", of_lora=True),
    _Range("lora_dropout", lambda c: c.lora.dropout, _below_one, "at least 0 and below 1", of_lora=True),
    _Range("batch size", lambda c: c.training.batch_size, _counts, "at least 1"),
    _Range("gradient accumulation", lambda c: c.training.gradient_accumulation, _counts, "at least 1"),
    _Range("number of processes", lambda c: c.training.world_size, _counts, "at least 1"),
    _Range("max_steps", lambda c: c.training.max_steps, _counts, "at least 1"),
    _Range("epochs", lambda c: c.training.epochs, _above_zero, "above 0"),
    _Range("warmup_steps", lambda c: c.training.warmup_steps, _not_negative, "0 or more"),
    _Range("warmup_ratio", lambda c: c.training.warmup_ratio, lambda v: 0 <= v <= 1, "between 0 and 1"),
    _Range("max_grad_norm", lambda c: c.training.max_grad_norm, _not_negative, "0 or more"),
)
_ALWAYS_WANTED = {"lr", "r", "lora_alpha"}


def _value_out_of_range(facts: Facts) -> Iterator[Hit]:
    ranges = [item for item in _RANGES if not (item.of_lora and facts.not_lora)]
    missing = []
    for item in ranges:
        value = item.read(facts.config)
        if value is None:
            missing += [item.name] if item.name in _ALWAYS_WANTED else []
        else:
            yield from _judged(item.name, as_float(value), item.holds, item.wanted)
    yield from _patterns(facts)
    yield from _betas(facts)
    if missing:
        reason = f"not given, so not checked: {', '.join(missing)}"
        raise Unknown(reason)


def _judged(name: str, value: float, holds: Callable[[float], bool], wanted: str) -> Iterator[Hit]:
    if math.isfinite(value) and holds(value):
        return
    must = wanted if math.isfinite(value) else f"a finite number, {wanted}"
    shown = f"{value:g}" if math.isfinite(value) else real(value)
    yield Hit(f"{name} is {shown}; it must be {must}", {name: value}, action=f"set {name} to a value {wanted}")


def _patterns(facts: Facts) -> Iterator[Hit]:
    if facts.not_lora:
        return
    for pattern, rank in (facts.config.lora.rank_pattern or {}).items():
        yield from _judged(f"rank_pattern[{pattern}]", float(rank), _counts, "at least 1")
    for pattern, alpha in (facts.config.lora.alpha_pattern or {}).items():
        yield from _judged(f"alpha_pattern[{pattern}]", as_float(alpha), _above_zero, "above 0")


def _betas(facts: Facts) -> Iterator[Hit]:
    for index, beta in enumerate(facts.config.optimizer.betas or [], start=1):
        yield from _judged(f"adam beta{index}", as_float(beta), _below_one, "at least 0 and below 1")


def _secret_set(facts: Facts) -> Iterator[Hit]:
    extras = facts.config.training.extras
    for key in extras.get("secret_keys") or []:
        yield Hit(f"{key} is set in the configuration (its value was not read)", {"key": key})
    masked = extras.get("masked_keys") or []
    if masked:
        reason = f"{', '.join(masked)}: masked in the file, as transformers does whether set or not"
        raise Unknown(reason)


RULES = (
    Rule(
        id="VAL001",
        severity="error",
        title="value out of range",
        condition=_value_out_of_range,
        confidence=1.0,
        evidence=(MECHANICAL,),
        rationale="A run with this value fails at start, or trains nothing.",
        action="correct the value",
        scope="every run",
        verify="the library that reads the value refuses it, or one step shows no change",
        about_lora=False,
    ),
    Rule(
        id="SEC001",
        severity="warning",
        title="a secret in the configuration",
        condition=_secret_set,
        confidence=0.95,
        evidence=(TOKEN_PICKLE,),
        rationale="The trainer writes its arguments beside every checkpoint, and people upload checkpoints.",
        action="log in with `hf auth login` or an environment variable; revoke it if shared",
        scope="every key ending in token, api_key, secret or password, save a tokenizer's",
        verify="search the output folder for the token's first characters",
        about_lora=False,
    ),
)


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
