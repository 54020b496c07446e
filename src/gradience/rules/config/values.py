"""Values that cannot be meant, and secrets that should not be there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from gradience.rules.config.facts import Facts, about_lora
from gradience.rules.rule import Observation, Rule, Unknown
from gradience.schema.config import ConfigSnapshot
from gradience.schema.findings import Evidence
from gradience.schema.scalars import Json, NonFinite, as_float, real

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


def _value_out_of_range(facts: Facts) -> Iterator[Observation]:
    ranges = [item for item in _RANGES if not (item.of_lora and about_lora(facts))]
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
        raise Unknown(f"not given, so not checked: {', '.join(missing)}")


def _judged(name: str, value: float, holds: Callable[[float], bool], wanted: str) -> Iterator[Observation]:
    if math.isfinite(value) and holds(value):
        return
    must = wanted if math.isfinite(value) else f"a finite number, {wanted}"
    shown = f"{value:g}" if math.isfinite(value) else real(value)
    yield Observation(f"{name} is {shown}; it must be {must}", {name: value}, action=f"set {name} to a value {wanted}")


def _patterns(facts: Facts) -> Iterator[Observation]:
    if about_lora(facts):
        return
    for pattern, rank in (facts.config.lora.rank_pattern or {}).items():
        yield from _judged(f"rank_pattern[{pattern}]", float(rank), _counts, "at least 1")
    for pattern, alpha in (facts.config.lora.alpha_pattern or {}).items():
        yield from _judged(f"alpha_pattern[{pattern}]", as_float(alpha), _above_zero, "above 0")


def _betas(facts: Facts) -> Iterator[Observation]:
    for index, beta in enumerate(facts.config.optimizer.betas or [], start=1):
        yield from _judged(f"adam beta{index}", as_float(beta), _below_one, "at least 0 and below 1")


def _secret_set(facts: Facts) -> Iterator[Observation]:
    extras = facts.config.training.extras
    for key in extras.get("secret_keys") or []:
        yield Observation(f"{key} is set in the configuration (its value was not read)", {"key": key})
    masked = extras.get("masked_keys") or []
    if masked:
        raise Unknown(f"{', '.join(masked)}: masked in the file, as transformers does whether set or not")


_FIELDS: Final = {  # of values that are called otherwise in a message
    "adam eps": "eps",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "batch size": "batch_size",
    "gradient accumulation": "gradient_accumulation",
    "number of processes": "world_size",
}


def _fields_of(values: Mapping[str, Json]) -> Iterator[str]:
    names = (name.partition("[")[0] for name in values)
    return ("betas" if name.startswith("adam beta") else _FIELDS.get(name, name) for name in names)


RULES = (
    Rule(
        id="VAL001",
        severity="error",
        title="value out of range",
        groups=("config",),
        condition="a value that is not finite, or outside the range in which it has a meaning (lr, r and alpha above "
        "0, dropout and betas from 0 to below 1, counts of at least 1, ...)",
        observe=_value_out_of_range,
        settings=_fields_of,
        confidence=1.0,
        evidence=(Evidence(source="definition", says="outside the range in which the quantity has a meaning"),),
        rationale="A run with this value fails at start, or trains nothing.",
        action="correct the value",
        scope="every run",
        verify="the library that reads the value refuses it, or one step shows no change",
    ),
    Rule(
        id="SEC001",
        severity="warning",
        title="a secret in the configuration",
        groups=("config",),
        condition="a key that holds a secret is set; its value is not read",
        observe=_secret_set,
        settings=lambda values: [str(values.get("key", ""))],
        confidence=0.95,
        evidence=(
            Evidence(
                source="experiment, transformers 5.24; huggingface/transformers#34612",
                says="training_args.bin is a pickle of the arguments, and hub_token stands in it in clear text",
            ),
        ),
        rationale="The trainer writes its arguments beside every checkpoint, and people upload checkpoints.",
        action="log in with `hf auth login` or an environment variable; revoke it if shared",
        scope="every key ending in token, api_key, secret or password, save a tokenizer's",
        verify="search the output folder for the token's first characters",
    ),
)
