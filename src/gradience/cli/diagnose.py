"""``gradience diagnose``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter
from cyclopts.types import PositiveFloat

from gradience.cli.output import exit_code, print_document, print_text
from gradience.policy.run_detectors import DEFAULT_GAP
from gradience.schema.scalars import Severity

__all__ = ["diagnose"]

_COULD_NOT_JUDGE: Final = 2


def diagnose(
    path: Path | None = None,
    /,
    *,
    run: Path | None = None,
    adapter: Path | None = None,
    config: Path | None = None,
    base: Path | None = None,
    task: str | None = None,
    gap_threshold: PositiveFloat = DEFAULT_GAP,
    fail_on: Severity | None = None,
    verbose: Annotated[bool, Parameter(alias="-v")] = False,
    json: bool = False,
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
        Held-out over train perplexity from which the gap is a finding.
    fail_on:
        Exit with 1 if a cause is at least this severe.
    verbose:
        Show the grounds of each cause: why, confidence, scope, evidence, what would verify it.
    json:
        Print one JSON document (schemas/diagnose-report-v1.schema.json).
    """
    from gradience.diagnosis.sources import find_sources  # noqa: PLC0415  # --help pays for nothing of this

    sources = find_sources(path, run=run, adapter=adapter, config=config)
    if sources.weights.path is not None:
        from gradience.cli.device import prepare_jax  # noqa: PLC0415  # only where there are weights

        prepare_jax("auto")
    from gradience.diagnosis.run import diagnose_sources  # noqa: PLC0415  # imports jax, after its environment is set

    report = diagnose_sources(sources, base=base, task=task, gap_threshold=gap_threshold)
    if json:
        print_document(report)
    else:
        from gradience.render.diagnose import diagnose_text  # noqa: PLC0415  # only for people

        print_text(diagnose_text(report, verbose=verbose))
    return exit_code(report.causes, fail_on) if report.complete else _COULD_NOT_JUDGE
