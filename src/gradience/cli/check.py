"""``gradience check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gradience.check import check_config
from gradience.cli.formats import Format, print_for_programs
from gradience.cli.judging import NONE_GIVEN, Options
from gradience.cli.output import print_document, print_text
from gradience.cli.overrides import Overrides
from gradience.schema.reports import CheckReport
from gradience.schema.rules import RuleGroup

__all__ = ["check"]

_NO_OVERRIDES = Overrides()


def check(
    config: Path | None = None,
    /,
    *,
    task: str | None = None,
    peft_dir: Path | None = None,
    training_dir: Path | None = None,
    peft: Path | None = None,
    training: Path | None = None,
    base: Path | None = None,
    overrides: Annotated[Overrides, Parameter(name="*")] = _NO_OVERRIDES,
    serve: Annotated[list[str] | None, Parameter(negative=())] = None,
    judging: Options = NONE_GIVEN,
    verbose: Annotated[bool, Parameter(alias="-v", negative=())] = False,
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
    base:
        The base model: a folder, or organisation/name in the hub's local cache. Counts what the targets reach, from
        config.json and safetensors headers; nothing is loaded or downloaded.
    serve:
        Engines the adapter is meant for, with commas between: vllm, lorax, slora, llamacpp, mlx. Says what each will
        make of it.
    verbose:
        Show the grounds of each finding, and what could not be judged.
    """
    settled = judging.settled()
    report = check_config(
        document=config,
        peft_dir=peft_dir,
        training_dir=training_dir,
        peft=peft,
        training=training,
        overrides=overrides.snapshot(),
        base=base,
        task=task,
        serve=serve or (),
        select=settled.select,
        ignore=settled.ignore,
        settings=settled.settings,
    )
    _show(report, settled.format, verbose=verbose)
    return settled.exit_code(report.findings)


def _show(report: CheckReport, kind: Format, *, verbose: bool) -> None:
    if kind == "json":
        print_document(report)
    elif kind == "text":
        from gradience.render.check import check_text  # noqa: PLC0415  # only for people

        print_text(check_text(report, verbose=verbose))
    else:
        from gradience.check.places import places  # noqa: PLC0415  # only for programs

        groups: tuple[RuleGroup, ...] = ("config", "base", "serve")
        print_for_programs(kind, report.findings, places=places(report), groups=groups, not_run=report.not_run)
