"""``gradience check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gradience.check import check_config
from gradience.cli.output import exit_code, print_document, print_text
from gradience.configs.values import keyword, short_name
from gradience.errors import ConfigError
from gradience.schema.config import ConfigSnapshot, LoraSnapshot, OptimizerSnapshot
from gradience.schema.scalars import Severity, TaskProfile, real

__all__ = ["check"]

_Repeat = Parameter(negative=())


def check(
    config: Path | None = None,
    /,
    *,
    task: str | None = None,
    peft_dir: Path | None = None,
    training_dir: Path | None = None,
    peft: Path | None = None,
    training: Path | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    optimizer: str | None = None,
    r: int | None = None,
    alpha: float | None = None,
    targets: Annotated[list[str] | None, _Repeat] = None,
    base: Path | None = None,
    model: str | None = None,
    dataset: str | None = None,
    task_profile: TaskProfile | None = None,
    notes: str | None = None,
    select: Annotated[list[str] | None, _Repeat] = None,
    ignore: Annotated[list[str] | None, _Repeat] = None,
    fail_on: Severity | None = None,
    verbose: Annotated[bool, Parameter(alias="-v")] = False,
    json: bool = False,
) -> int:
    """Validate a PEFT and training configuration before burning compute.

    Later sources win: config, then folders, then files, then single settings.

    Parameters
    ----------
    config:
        One JSON or YAML file of any shape: canonical, flat, PEFT's, TrainingArguments', or a run.jsonl; or the
        output folder of a run.
    task:
        What is trained: a data set's name (sst2, glue/mnli) or sft, dpo, grpo, ...
    peft_dir:
        A folder with an adapter_config.json.
    training_dir:
        A folder with a training_args.json.
    peft:
        An adapter_config.json by name.
    training:
        Training arguments as JSON or YAML by name.
    lr:
        Peak learning rate.
    weight_decay:
        Weight decay.
    optimizer:
        For example adamw_torch.
    r:
        Rank.
    alpha:
        lora_alpha.
    targets:
        Target modules: names with commas between, or repeated; one expression; or all-linear.
    base:
        The base model: a folder, or organisation/name in the hub's local cache. Counts what the targets reach, from
        config.json and safetensors headers; nothing is loaded or downloaded.
    model:
        The base model's name.
    dataset:
        Data set.
    task_profile:
        Coarse kind of task.
    notes:
        Kept in the report.
    select:
        Apply only these rules: an id, or the beginning of ids such as LR; may be repeated.
    ignore:
        Leave these rules out, likewise.
    fail_on:
        Exit with 1 if a finding is at least this severe.
    verbose:
        Show the grounds of each finding, and what could not be judged.
    json:
        Print one JSON document (schemas/check-report-v1.schema.json).

    """  # noqa: D405, D411  # `notes` is an option here, not a section
    overrides = ConfigSnapshot(
        model_name=short_name(model) if model else None,
        dataset_name=short_name(dataset) if dataset else None,
        task_profile=task_profile or "unknown",
        optimizer=OptimizerSnapshot(
            name=keyword(optimizer) if optimizer else None,
            lr=None if lr is None else real(lr),
            weight_decay=None if weight_decay is None else real(weight_decay),
        ),
        lora=LoraSnapshot(r=r, alpha=None if alpha is None else real(alpha), target_modules=_targets(targets)),
        notes=notes,
    )
    report = check_config(
        document=config,
        peft_dir=peft_dir,
        training_dir=training_dir,
        peft=peft,
        training=training,
        overrides=overrides,
        base=base,
        task=task,
        select=select or (),
        ignore=ignore or (),
    )
    if json:
        print_document(report)
    else:
        from gradience.render.check import check_text  # noqa: PLC0415  # only for people

        print_text(check_text(report, verbose=verbose))
    return exit_code(report.findings, fail_on)


def _targets(given: list[str] | None) -> list[str] | str | None:
    if not given:
        return None
    if len(given) == 1 and ("," not in given[0] or set(given[0]) & set("()[]|*")):
        only = given[0].strip()
        return only if only == "all-linear" or set(only) & set("()[]|*.") else [only]
    names = [name.strip() for item in given for name in item.split(",") if name.strip()]
    if not names:
        message = "--targets names no module"
        raise ConfigError(message, advice="for example --targets q_proj,v_proj")
    return names
