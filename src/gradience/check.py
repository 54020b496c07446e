"""The verb ``check``: a configuration from files, Structs and overrides to a report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path

import msgspec

from gradience.configs import (
    Layer,
    read_document,
    read_peft,
    read_peft_dir,
    read_training,
    read_training_dir,
    stack,
)
from gradience.errors import ConfigError
from gradience.policy.config_rules import RULES, judge_config, rule_by_id
from gradience.policy.facts import Facts, Unknown
from gradience.policy.objective import objective_of
from gradience.schema.config import ConfigSnapshot
from gradience.schema.reports import CHECK_SCHEMA_ID, CheckReport
from gradience.schema.scalars import Real, as_float, real

__all__ = ["check_config"]

Place = str | PathLike[str]

_QUANTITIES = {  # name in the report -> property of Facts
    "scaling": "scaling",
    "scaling_r_lr": "early_step",
    "batch_per_process": "batch_per_process",
    "effective_batch": "effective_batch",
    "planned_steps": "steps",
    "warmup_share": "warmup_share",
}
_OF_LORA = {"scaling", "scaling_r_lr"}
_MAX_TASK = 256  # characters


def check_config(
    config: ConfigSnapshot | None = None,
    *,
    document: Place | None = None,
    peft_dir: Place | None = None,
    training_dir: Place | None = None,
    peft: Place | None = None,
    training: Place | None = None,
    overrides: ConfigSnapshot | None = None,
    task: str | None = None,
    ignore: Iterable[str] = (),
) -> CheckReport:
    """Return what the rules say of a configuration. A later source wins over an earlier one.

    Sources, in this order: `config` (a Struct), `document` (one file of any shape), `peft_dir` and
    `training_dir` (folders), `peft` and `training` (files), `overrides` (a Struct). `task` names what is
    trained (`sst2`, `sft`, `dpo`, ...); `ignore` holds ids of rules to leave out.

    Raises:
        ConfigError: a source cannot be read, nothing was given, or a rule id is not known.

    """
    ignored = _known_rules(ignore)
    places = ((document, read_document), (peft_dir, read_peft_dir), (training_dir, read_training_dir))
    files = ((peft, read_peft), (training, read_training))
    layers = [read(Path(place)) for place, read in places + files if place is not None]
    given = [Layer(config=config)] if config is not None else []
    on_top = [Layer(config=overrides)] if overrides is not None else []
    whole = stack([*given, *layers, *on_top])
    if whole.config == ConfigSnapshot():
        message = "nothing to check"
        raise ConfigError(message, advice="give a config file, --peft-dir, --training-dir, or settings such as --lr")
    return _report(whole, _complete(whole, task), ignored)


def _report(whole: Layer, config: ConfigSnapshot, ignored: frozenset[str]) -> CheckReport:
    verdict = judge_config(config, transformers=_transformers(), ignore=ignored)
    n_judged = len(RULES) - len({item.id for item in verdict.not_run})
    return CheckReport(
        schema=CHECK_SCHEMA_ID,
        sources=list(whole.sources),
        config=config,
        derived={**dict(_derived(config)), "rules_judged": n_judged},
        findings=verdict.findings,
        not_run=verdict.not_run,
        unknown_keys=list(dict.fromkeys(whole.unknown_keys)),
    )


def _complete(whole: Layer, task: str | None) -> ConfigSnapshot:
    """Add what no single source says: task and objective, the keys of secrets, and alpha / r."""
    config = whole.config
    stated = {"task": task[:_MAX_TASK]} if task else {}
    lora = config.lora
    if lora.r is not None and lora.r > 0 and lora.alpha is not None:
        lora = msgspec.structs.replace(lora, alpha_over_r=real(as_float(lora.alpha) / lora.r))
    secrets = {"secret_keys": whole.secret_keys, "masked_keys": whole.masked_keys}
    extras = {key: list(dict.fromkeys(names)) for key, names in secrets.items() if names}
    training = msgspec.structs.replace(config.training, extras={**config.training.extras, **extras})
    named = msgspec.structs.replace(config, lora=lora, training=training, extras={**config.extras, **stated})
    objective = objective_of(named)
    if objective.kind == "unknown":
        return named
    understood = {"objective": objective.kind, "objective_because": objective.because}
    return msgspec.structs.replace(named, extras={**named.extras, **understood})


def _derived(config: ConfigSnapshot) -> Iterator[tuple[str, Real]]:
    facts = Facts(config)
    for name, quantity in _QUANTITIES.items():
        if name in _OF_LORA and facts.not_lora:
            continue
        try:
            yield name, real(float(getattr(facts, quantity)))
        except Unknown:
            continue  # the rules that need it say why


def _known_rules(ids: Iterable[str]) -> frozenset[str]:
    wanted = {rule_id.strip().upper() for rule_id in ids}
    strange = sorted(rule_id for rule_id in wanted if rule_by_id(rule_id) is None)
    if strange:
        message = f"no rule is called {', '.join(strange)}"
        raise ConfigError(message, advice=f"rules: {' '.join(rule.id for rule in RULES)}")
    return frozenset(wanted)


def _transformers() -> str | None:
    """Return the version of transformers installed here, without importing it."""
    try:
        return version("transformers")
    except PackageNotFoundError:
        return None
