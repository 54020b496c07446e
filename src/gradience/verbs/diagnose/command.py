"""The command ``gradience diagnose``, which joins everything that a run left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

from gradience.commands import options as opt
from gradience.commands.output import code_of, emit
from gradience.errors import GradienceError
from gradience.schema.document import RuleGroup
from gradience.verbs.diagnose.options import DiagnoseOptions

_DIAGNOSE: Final = DiagnoseOptions()
_GROUPS: Final[tuple[RuleGroup, ...]] = ("config", "base", "log", "weights", "weights_and_base", "between", "joins")


def diagnose(
    path: Path | None = None,
    /,
    *,
    options: Annotated[DiagnoseOptions, opt.RECORD] = _DIAGNOSE,
    judging: opt.Options = opt.DEFAULT_OPTIONS,
    verbose: opt.Details = False,
) -> int:
    """Join a run's config, log and weights into one verdict with its findings.

    Exit code 2 means that the run could not be judged: no source was found, or one cannot be read. It takes precedence
    over --fail-on. Exit code 3: neither a log nor weights could be judged, and the settings show nothing wrong.

    Parameters
    ----------
    path:
        The folder that a run left: of a Trainer, or with a run.jsonl.
    """
    resolved = judging.resolved()
    options = replace(options, gap_threshold=resolved.gap(options.gap_threshold))
    from gradience.folder import find  # --help pays for nothing of this

    def table(place: Path | None) -> str:
        """The table of the runs of a place, where no run is named."""
        if place is None or options.run is not None or resolved.format != "text":
            return ""
        from gradience.verbs.runs.command import table_before  # most folders hold one run

        return table_before(place, gap_threshold=options.gap_threshold, **resolved.rules)

    try:
        found = find(path, run=options.run, adapter=options.adapter, config=options.config)
    except GradienceError:  # that asks to choose one of several runs, or of a place that is none
        emit(table(path))
        raise
    if found.weights.path is not None:
        from gradience.device import prepare_jax  # only where there are weights

        prepare_jax("auto")
    from gradience.verbs.diagnose.run import diagnose_found  # imports jax, after its environment is set

    report = diagnose_found(found, options, **resolved.rules)
    from gradience.verbs.diagnose.run import source_locations  # the same
    from gradience.verbs.diagnose.view import diagnose_text  # --help needs none of it

    several = report.monitor.other_runs if report.monitor else found.log.path is None
    before = table(found.log.path or found.folder) if several else ""
    code = resolved.show(
        report,
        lambda it: before + diagnose_text(it, verbose=verbose, fails=resolved.fail_on is not None or not it.complete),
        report.findings,
        groups=_GROUPS,
        locations=lambda: source_locations(report),
        not_run=report.not_run,
    )
    return code_of(report, code)
