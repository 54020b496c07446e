"""VAL001 on values that cannot be meant, SEC001 on secrets in a configuration, KEY001 on misspelt keys.

VAL001 checks each value that is given and lists the required ones that are not. It can therefore report one value and
be unable to judge another of the same configuration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from gradience.configs.settings import ALIKE, nearest_known
from gradience.rules import Observation, Sign, Threshold, Unknown
from gradience.rules.config.facts import TO_COME, ConfigRule, Facts, about_lora, stops
from gradience.schema import Json, NonFinite, as_float, real
from gradience.schema.events import ConfigSnapshot

Number = float | NonFinite | None

MOST_UNKNOWN = Threshold(
    "most_unknown", 2, "keys that resemble no setting", "a judgement: with more of them, names are a program's own"
)


class _Range(NamedTuple):
    wanted: str
    holds: Callable[[float], bool]


_ABOVE_ZERO = _Range("above 0", lambda value: value > 0)
_NOT_NEGATIVE = _Range("0 or more", lambda value: value >= 0)
_COUNT = _Range("at least 1", lambda value: value >= 1)
_BELOW_ONE = _Range("at least 0 and below 1", lambda value: 0 <= value < 1)
_SHARE = _Range("between 0 and 1", lambda value: 0 <= value <= 1)


class _Value(NamedTuple):
    name: str
    read: Callable[[ConfigSnapshot], Number]
    range: _Range
    of_lora: bool = False


_VALUES = (
    _Value("lr", lambda c: c.optimizer.lr, _ABOVE_ZERO),
    _Value("weight_decay", lambda c: c.optimizer.weight_decay, _NOT_NEGATIVE),
    _Value("adam eps", lambda c: c.optimizer.eps, _NOT_NEGATIVE),
    _Value("r", lambda c: c.lora.r, _COUNT, of_lora=True),
    _Value("lora_alpha", lambda c: c.lora.alpha, _ABOVE_ZERO, of_lora=True),
    _Value("lora_dropout", lambda c: c.lora.dropout, _BELOW_ONE, of_lora=True),
    _Value("batch size", lambda c: c.training.batch_size, _COUNT),
    _Value("gradient accumulation", lambda c: c.training.gradient_accumulation, _COUNT),
    _Value("number of processes", lambda c: c.training.world_size, _COUNT),
    _Value("epochs", lambda c: c.training.epochs, _ABOVE_ZERO),
    _Value("num_labels", lambda c: c.num_labels, _COUNT),
    _Value("warmup_steps", lambda c: c.training.warmup_steps, _NOT_NEGATIVE),
    _Value("warmup_ratio", lambda c: c.training.warmup_ratio, _SHARE),
    # The Trainer clips above 0 only, so 0 is how clipping is turned off
    _Value("max_grad_norm", lambda c: c.training.max_grad_norm, _NOT_NEGATIVE),
)
_ALWAYS_WANTED = {"lr", "r", "lora_alpha"}


def _fields_of(values: Mapping[str, Json]) -> Iterator[str]:
    names = (name.partition("[")[0] for name in values)
    return ("betas" if name.startswith("adam beta") else _FIELDS.get(name, name) for name in names)


@ConfigRule(
    "VAL001",
    severity="error",
    confidence=1.0,
    settings=_fields_of,
    signs=(Sign("stops", frozenset({"lr", "lora_alpha", "epochs"}), values=stops),),
)
def _value_out_of_range(facts: Facts) -> Iterator[Observation]:
    """value out of range

    a value that is not finite, or outside the range in which it has a meaning (lr, r and alpha above 0, dropout and
    betas from 0 to below 1, counts of at least 1, ...)

    Why: A run with this value fails at start, or trains nothing.
    Scope: every run
    Action: correct the value
    Verify: the library that reads the value refuses it, or one step shows no change
    Source: peft/tuners/lora/layer.py:LoraLayer.update_layer@0.21.2 -- a rank of 0 or less is a ValueError
    """
    missing = []
    for item in _VALUES:
        if item.of_lora and about_lora(facts):
            continue
        value = item.read(facts.config)
        if value is None:
            missing += [item.name] if item.name in _ALWAYS_WANTED else []
        else:
            yield from _judged(item.name, value, item.range)
    yield from _patterns(facts)
    for index, beta in enumerate(facts.config.optimizer.betas or [], start=1):
        yield from _judged(f"adam beta{index}", beta, _BELOW_ONE)
    if missing:
        raise Unknown(f"not given, so not checked: {', '.join(missing)}")


def _judged(name: str, given: float | NonFinite, wanted: _Range) -> Iterator[Observation]:
    value = as_float(given)
    if math.isfinite(value) and wanted.holds(value):
        return
    must = wanted.wanted if math.isfinite(value) else f"a finite number, {wanted.wanted}"
    shown = f"{value:g}" if math.isfinite(value) else real(value)
    yield Observation(
        f"{name} is {shown}; it must be {must}", {name: value}, action=f"set {name} to a value {wanted.wanted}"
    )


def _patterns(facts: Facts) -> Iterator[Observation]:
    if about_lora(facts):
        return
    for pattern, rank in (facts.config.lora.rank_pattern or {}).items():
        yield from _judged(f"rank_pattern[{pattern}]", rank, _COUNT)
    for pattern, alpha in (facts.config.lora.alpha_pattern or {}).items():
        yield from _judged(f"alpha_pattern[{pattern}]", alpha, _ABOVE_ZERO)


@ConfigRule(
    "SEC001",
    severity="warning",
    confidence=0.95,
    settings=lambda values: [str(values.get("key", ""))],
)
def _secret_set(facts: Facts) -> Iterator[Observation]:
    """a secret in the configuration

    a key that holds a secret is set; its value is not read

    Why: The trainer writes its arguments beside every checkpoint, and people upload checkpoints.
    Scope: every key ending in token, api_key, secret or password, except a tokenizer's
    Action: log in with `hf auth login` or an environment variable; revoke it if shared
    Verify: search the output folder for the token's first characters
    Source: transformers/trainer.py:Trainer._save@5.24.0 -- pickles the arguments, hub_token among them, as
        training_args.bin
    """
    extras = facts.config.training.extras
    for key in extras.get("secret_keys") or []:
        yield Observation(f"{key} is set in the configuration (its value was not read)", {"key": key})
    masked = extras.get("masked_keys") or []
    if masked:
        raise Unknown(f"{', '.join(masked)}: masked in the file, as transformers does whether set or not")


_FIELDS: Final = {  # name in a message: field of the configuration, if they differ
    "adam eps": "eps",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "batch size": "batch_size",
    "gradient accumulation": "gradient_accumulation",
    "number of processes": "world_size",
}


@ConfigRule(
    "KEY001",
    severity="warning",
    confidence=0.85,
    needs=(TO_COME,),
    settings=lambda values: [str(values.get("key", ""))],
    thresholds=(Threshold("alike", ALIKE, "difflib's ratio", "arithmetic: four letters less one"), MOST_UNKNOWN),
)
def _misspelt(facts: Facts) -> Iterator[Observation]:
    """a key that nobody reads

    an unknown key is a known one but for a letter or a separator (similarity of at least {alike}), in the recipe of
    a known trainer or in a file with at most {most_unknown} other unknown keys

    Why: The run goes on without the setting, and nothing in its log says so.
    Scope: runs to come; PEFT's, transformers' and TRL's arguments, recipes of Axolotl, LLaMA-Factory, torchtune and
        MLX-LM. A run that has begun may have been another program's, whose names are not known here
    Action: write the known name, or remove the key
    Verify: the trainer's own dump of its arguments shows the value or the default
    Source: mlx_lm/lora.py:main@0.32.2 -- takes every key of the YAML file in silence, read or not
    """
    if facts.around.unknown_keys is None:
        raise Unknown("the settings come from no file: there is no key to look at")
    meant = {key: nearest_known(key) for key in facts.around.unknown_keys}
    others = sum(nearest is None for nearest in meant.values())
    if "format" not in facts.config.extras and others > MOST_UNKNOWN.value:
        raise Unknown(f"{others} keys are of no program known here: the file is of a program with names of its own")
    for key, nearest in meant.items():
        if nearest is not None:
            yield Observation(
                f"no setting is called {key}; did you mean {nearest}?",
                {"key": key, "nearest": nearest},
                action=f"write {nearest}, or remove the key",
            )


RULES = (_value_out_of_range, _secret_set, _misspelt)
