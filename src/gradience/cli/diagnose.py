"""``gradience diagnose``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cyclopts.types import PositiveFloat

from gradience.cli import options as opt
from gradience.cli.output import COULD_NOT_JUDGE
from gradience.schema.findings import RuleGroup

_GROUPS: Final[tuple[RuleGroup, ...]] = ("config", "base", "log", "weights", "weights_and_base", "joins")


def diagnose(
    path: Path | None = None,
    /,
    *,
    run: Path | None = None,
    adapter: Path | None = None,
    config: Path | None = None,
    base: opt.Base = None,
    task: opt.Task = None,
    gap_threshold: PositiveFloat | None = None,
    options: opt.Options = opt.DEFAULT_OPTIONS,
    verbose: opt.Details = False,
) -> int:
    """Join a run's config, log and weights into one verdict with its causes.

    Exit code 2 means that the run could not be judged: no source was found, or one cannot be read. It takes precedence
    over --fail-on.

    Parameters
    ----------
    path:
        The folder that a run left: of a Trainer, or with a run.jsonl.
    run:
        Path to the log, if it is elsewhere: anything that gradience monitor reads.
    adapter:
        Path to the adapter, if it is elsewhere or one of several.
    config:
        Path to the configuration, if it is elsewhere: anything that gradience check reads.
    gap_threshold:
        Held-out over train perplexity from which the gap is a finding. Default: 1.5.
    """
    resolved = options.resolved()
    from gradience.verbs.diagnose.sources import find_sources  # noqa: PLC0415  # --help pays for nothing of this

    sources = find_sources(path, run=run, adapter=adapter, config=config)
    if sources.weights.path is not None:
        from gradience.verbs.device import prepare_jax  # noqa: PLC0415  # only where there are weights

        prepare_jax("auto")
    from gradience.verbs.diagnose import diagnose_sources  # noqa: PLC0415  # imports jax, after its environment is set

    report = diagnose_sources(
        sources,
        base=base,
        task=task,
        gap_threshold=resolved.gap(gap_threshold),
        **resolved.rules,
    )
    from gradience.render.check import diagnose_text  # noqa: PLC0415  # --help needs none of it
    from gradience.verbs.diagnose import source_locations  # noqa: PLC0415  # the same

    code = resolved.show(
        report,
        lambda it: diagnose_text(it, verbose=verbose),
        report.causes,
        groups=_GROUPS,
        locations=lambda: source_locations(report),
        not_run=report.not_run,
    )
    return code if report.complete else COULD_NOT_JUDGE
