"""``gradience diagnose``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter
from cyclopts.types import PositiveFloat

from gradience.cli.options import NONE_GIVEN, Options
from gradience.cli.output import Format, print_document, print_for_programs, print_text
from gradience.schema.diagnose import DiagnoseReport
from gradience.schema.findings import RuleGroup

_COULD_NOT_JUDGE: Final = 2
_GROUPS: Final[tuple[RuleGroup, ...]] = ("config", "base", "log", "weights", "weights_and_base", "joins")


def diagnose(
    path: Path | None = None,
    /,
    *,
    run: Path | None = None,
    adapter: Path | None = None,
    config: Path | None = None,
    base: Path | None = None,
    task: str | None = None,
    gap_threshold: PositiveFloat | None = None,
    judging: Options = NONE_GIVEN,
    verbose: Annotated[bool, Parameter(alias="-v", negative=())] = False,
) -> int:
    """Join a run's config, log and weights into one verdict with its causes.

    Exit code 2 means that it could not judge: there is no source that could be judged, or one that is there cannot
    be read. It goes before --fail-on.

    Parameters
    ----------
    path:
        The folder that a run left: of a Trainer, or with a run.jsonl.
    run:
        The log, where it is elsewhere: anything that gradience monitor reads.
    adapter:
        The adapter, where it is elsewhere or one of several.
    config:
        The configuration, where it is elsewhere: anything that gradience check reads.
    base:
        The base model, for audit and check: a folder with safetensors, or organisation/name in the hub's local cache.
    task:
        What was trained: a data set's name (sst2, glue/mnli) or sft, dpo, grpo, ...
    gap_threshold:
        Held-out over train perplexity from which the gap is a finding; 1.5 without it.
    verbose:
        Show the grounds of each cause: why, confidence, scope, evidence, what would verify it.
    """
    settled = judging.settled()
    from gradience.verbs.diagnose.sources import find_sources  # noqa: PLC0415  # --help pays for nothing of this

    sources = find_sources(path, run=run, adapter=adapter, config=config)
    if sources.weights.path is not None:
        from gradience.cli.output import prepare_jax  # noqa: PLC0415  # only where there are weights

        prepare_jax("auto")
    from gradience.verbs.diagnose.run import diagnose_sources  # noqa: PLC0415  # imports jax, after its environment is set

    report = diagnose_sources(
        sources,
        base=base,
        task=task,
        gap_threshold=settled.gap(gap_threshold),
        select=settled.select,
        ignore=settled.ignore,
        settings=settled.settings,
    )
    _show(report, settled.format, verbose=verbose)
    return settled.exit_code(report.causes) if report.complete else _COULD_NOT_JUDGE


def _show(report: DiagnoseReport, kind: Format, *, verbose: bool) -> None:
    if kind == "json":
        print_document(report)
    elif kind == "text":
        from gradience.render.check import diagnose_text  # noqa: PLC0415  # only for people

        print_text(diagnose_text(report, verbose=verbose))
    else:
        from gradience.verbs.diagnose.run import source_locations  # noqa: PLC0415  # only for programs

        print_for_programs(
            kind, report.causes, locations=source_locations(report), groups=_GROUPS, not_run=report.not_run
        )
