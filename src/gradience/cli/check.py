"""``gradience check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gradience.check import check_config
from gradience.cli.formats import Format, chosen_format, print_for_programs
from gradience.cli.output import exit_code, print_document, print_text
from gradience.cli.overrides import Overrides
from gradience.cli.preferences import project_settings, severity
from gradience.configs.preferences import FailOn
from gradience.schema.reports import CheckReport

__all__ = ["check"]

_Repeat = Parameter(negative=())
_Switch = Parameter(negative="")
_NONE_GIVEN = Overrides()


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
    overrides: Annotated[Overrides, Parameter(name="*")] = _NONE_GIVEN,
    serve: Annotated[list[str] | None, _Repeat] = None,
    select: Annotated[list[str] | None, _Repeat] = None,
    ignore: Annotated[list[str] | None, _Repeat] = None,
    fail_on: FailOn | None = None,
    settings: Path | None = None,
    isolated: Annotated[bool, _Switch] = False,
    verbose: Annotated[bool, Parameter(alias="-v")] = False,
    format: Format | None = None,  # noqa: A002  # the option's name
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
    base:
        The base model: a folder, or organisation/name in the hub's local cache. Counts what the targets reach, from
        config.json and safetensors headers; nothing is loaded or downloaded.
    serve:
        Engines the adapter is meant for, with commas between: vllm, lorax, slora, llamacpp, mlx. Says what each will
        make of it.
    select:
        Apply only these rules: an id, or the beginning of ids such as LR; may be repeated.
    ignore:
        Leave these rules out, likewise.
    fail_on:
        Exit with 1 if a finding is at least this severe.
    settings:
        A file with settings, instead of the nearest gradience.toml or pyproject.toml with [tool.gradience].
    isolated:
        Read no file with settings.
    verbose:
        Show the grounds of each finding, and what could not be judged.
    format:
        text; json (schemas/check-report-v1.schema.json); sarif (2.1.0); github (annotations of a workflow).
    json:
        The same as --format json.

    """
    kind, project = chosen_format(format, json=json), project_settings(settings, isolated=isolated)
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
        select=select or (),
        ignore=ignore or (),
        settings=project.path,
    )
    _show(report, kind, verbose=verbose)
    return exit_code(report.findings, severity(fail_on, project))


def _show(report: CheckReport, kind: Format, *, verbose: bool) -> None:
    if kind == "json":
        print_document(report)
    elif kind == "text":
        from gradience.render.check import check_text  # noqa: PLC0415  # only for people

        print_text(check_text(report, verbose=verbose))
    else:
        from gradience.check.places import places, rule_cards  # noqa: PLC0415  # only for programs

        where = places(report)
        print_for_programs(kind, report.findings, places=where, known=rule_cards(), not_run=report.not_run)
