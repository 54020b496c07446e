"""The commands ``gradience import``, ``validate``, ``schema`` and ``rules``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import NonNegativeInt

from gradience.cli import options as opt
from gradience.cli.main import UNUSABLE
from gradience.cli.output import DONE, emit_json, print_document, print_text
from gradience.errors import RecorderError
from gradience.importers import import_run as write_log
from gradience.importers.sources import Format
from gradience.importers.table import parse_map
from gradience.render.findings import import_text, rule_text, rules_text, validate_logs_text, validate_text
from gradience.schema.export import SchemaName, schema_text
from gradience.telemetry.reader import DEFAULT_MAX_ISSUES, validate_log, validate_logs


def schema(name: SchemaName = "telemetry", /) -> int:
    """Print a JSON Schema (draft 2020-12) of what gradience writes.

    Parameters
    ----------
    name:
        telemetry is one line of a run.jsonl; the others are what --json prints.
    """
    emit_json(schema_text(name).rstrip("\n"))
    return DONE


def rules(rule_id: str | None = None, /, *, md: opt.Flag = False, json: opt.AsJson = False) -> int:
    """List every rule, the rules of a group or with a common prefix, or explain one.

    Parameters
    ----------
    rule_id:
        An id such as LR001, or a prefix of ids such as LR; case does not matter. Or a group: config, base, serve, data,
        log, weights, weights_and_base, joins, merge, served.
    md:
        Print them as a page of Markdown: when each reports, only where, and its thresholds.
    """
    from gradience.rules import list_rules  # all rules, for those who ask

    report = list_rules(rule_id)
    if json:
        print_document(report)
    elif md:
        from gradience.render.rules import rules_markdown  # for those who ask

        print_text(rules_markdown(report.rules))
    elif len(report.rules) == 1:
        print_text(rule_text(report.rules[0]))
    else:
        print_text(rules_text(report.rules))
    return DONE


def validate(*logs: Path, max_issues: NonNegativeInt = DEFAULT_MAX_ISSUES, json: opt.AsJson = False) -> int:
    """Check every line of logs against the telemetry schema.

    Exits with 2 if one of the logs is not valid. Warns of names that look like one that readers know.

    Parameters
    ----------
    logs:
        One run.jsonl or several.
    max_issues:
        How many faults to list of each log; all are counted.
    """
    if not logs:
        raise RecorderError("no log to check", advice="give one run.jsonl or several")
    if len(logs) == 1:
        report = validate_log(logs[0], max_issues=max_issues)
        opt.print_report(report, validate_text, json=json)
        return DONE if report.valid else UNUSABLE
    reports = validate_logs(logs, max_issues=max_issues)
    opt.print_report(reports, validate_logs_text, json=json)
    return DONE if reports.valid else UNUSABLE


def import_run(
    source: Path,
    /,
    *,
    out: Path | None = None,
    columns: Annotated[list[str] | None, Parameter(name="--map", negative=())] = None,
    kind: Annotated[Format | None, Parameter(name="--format")] = None,
    run: str | None = None,
    force: opt.Flag = False,
    json: opt.AsJson = False,
) -> int:
    """Turn a finished run of another program into a run.jsonl.

    Reads an output folder of the Hugging Face Trainer, TRL, Axolotl, Unsloth, LLaMA-Factory or ms-swift, any CSV
    or JSON-lines table, TensorBoard event files, trackio's database, MLflow's stores, W&B's offline logs, and what
    torchtune, MLX-LM, Megatron, NeMo, verl, OpenRLHF, MMEngine (XTuner) and Ludwig leave. The source is never changed.

    Parameters
    ----------
    source:
        The output folder, a folder of such folders, a trainer_state.json, or a log.
    out:
        The run.jsonl to write; without it, run.jsonl in the source folder.
    columns:
        Columns of a table, such as loss=train/loss,step=_step,eval.loss=val_loss; may be repeated.
    kind:
        The source's format, where its content leaves it open.
    run:
        Only the run of this name, where the source holds several.
    force:
        Overwrite the log if it is there.
    """
    report = write_log(source, out, kind=kind, columns=parse_map(columns) if columns else None, run=run, force=force)
    return opt.print_report(report, import_text, json=json)
