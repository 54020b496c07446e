"""The verb ``check``: a configuration from files, Structs and overrides to a report."""

from __future__ import annotations

import os
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
from gradience.configs.peft import CONFIG_NAME
from gradience.configs.training import ARGS_NAMES, STATE_NAME
from gradience.errors import ConfigError, RecorderError
from gradience.policy.config_rules import RULES, judge_config, rule_by_id
from gradience.policy.facts import Facts, Unknown
from gradience.policy.objective import objective_of
from gradience.schema.config import ConfigSnapshot, LoraSnapshot
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

    Sources, in this order: `config` (a Struct), `document` (one file of any shape, or the folder a run left),
    `peft_dir` and `training_dir` (folders), `peft` and `training` (files), `overrides` (a Struct). `task` names what is
    trained (`sst2`, `sft`, `dpo`, ...); `ignore` holds ids of rules to leave out.

    Raises:
        ConfigError: a source cannot be read, nothing was given, or a rule id is not known.

    """
    ignored = _known_rules(ignore)
    places = ((document, _read_any), (peft_dir, _read_adapter_of), (training_dir, _read_training_of))
    files = ((peft, read_peft), (training, read_training))
    layers = [read(Path(place)) for place, read in places + files if place is not None]
    given = [Layer(config=config)] if config is not None else []
    on_top = [Layer(config=overrides)] if overrides is not None else []
    whole = stack([*given, *layers, *on_top])
    if whole.config == ConfigSnapshot():
        message = "nothing to check"
        raise ConfigError(message, advice="give a config file, --peft-dir, --training-dir, or settings such as --lr")
    return _report(whole, _complete(whole, task), ignored)


def _read_any(place: Path) -> Layer:
    """Read one file, or a folder that a run left: its adapter config, its arguments, and what its log shows."""
    if not os.path.isdir(place) and place.name != STATE_NAME:  # noqa: PTH112  # never raises
        return read_document(place)
    found = _read_run(place)
    if isinstance(found, Layer):
        return found
    if not (place / CONFIG_NAME).is_file():
        raise ConfigError(str(found), advice=f"give a folder with {STATE_NAME} or {CONFIG_NAME}") from found
    return read_peft_dir(place)  # an adapter without a log


def _read_adapter_of(folder: Path) -> Layer:
    """Read the adapter config of a folder, else that of the checkpoint which its run came furthest with."""
    if not folder.is_dir() or (folder / CONFIG_NAME).is_file():
        return read_peft_dir(folder)
    found = _read_run(folder)
    if not isinstance(found, Layer) or not any(source.role == "adapter" for source in found.sources):
        return read_peft_dir(folder)
    adapter = ConfigSnapshot(model_name=found.config.model_name, lora=found.config.lora)
    return Layer(config=adapter, sources=tuple(source for source in found.sources if source.role == "adapter"))


def _read_training_of(folder: Path) -> Layer:
    """Read the training arguments of a folder, else what the log of its run shows of them."""
    if not folder.is_dir() or any((folder / name).is_file() for name in ARGS_NAMES):
        return read_training_dir(folder)
    found = _read_run(folder)
    if not isinstance(found, Layer):
        return read_training_dir(folder)
    sources = tuple(source for source in found.sources if source.role != "adapter")
    config = msgspec.structs.replace(found.config, model_name=None, lora=LoraSnapshot())
    return msgspec.structs.replace(found, config=config, sources=sources)


def _read_run(place: Path) -> Layer | RecorderError:
    """Return the configuration of the run that a folder or file is of, or why there is none."""
    from gradience.importers import read_folder_config  # noqa: PLC0415  # a config file need not pay for it

    try:
        return read_folder_config(place)
    except RecorderError as error:
        return error


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
