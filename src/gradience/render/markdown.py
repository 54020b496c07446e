"""A run in Markdown, short enough for a comment on a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from gradience.render.text import clean, count, number, percent
from gradience.schema.audit import AuditReport
from gradience.schema.findings import Finding, NotRun, gravest_first
from gradience.schema.reports import CheckReport, MonitorReport

__all__ = ["escape", "report_markdown"]

_MOST_FINDINGS: Final = 20
_MOST_TEXT: Final = 300  # characters of one cell
_SPECIAL: Final = re.compile(r"[\\`*\[\]<|~$&#]|(?<![^\W_])_|_(?![^\W_])|(?<=https):(?=//)|(?<=http):(?=//)|(?<=www)\.")
_SUMMONS: Final = re.compile(r"([@#])(?=\w)")


def report_markdown(
    run: MonitorReport | None,
    audit: AuditReport | None = None,
    check: CheckReport | None = None,
    *,
    missing: Sequence[NotRun] = (),
) -> str:
    """Return the report: the story, a table of facts, the findings, the suggested ranks, what was not judged."""
    return "\n".join(_lines(run, audit, check, missing)) + "\n"


def escape(text: str) -> str:
    r"""Return text that Markdown shows as it is: no markup, table cell, link, mention or reference of it.

    >>> escape("a|b @me <b> to_q")
    'a\\|b @<!-- -->me \\<b> to_q'
    """
    flat = clean(text)
    cut = flat if len(flat) <= _MOST_TEXT else f"{flat[: _MOST_TEXT - 3]}..."
    return _SUMMONS.sub(r"\1<!-- -->", _SPECIAL.sub(r"\\\g<0>", cut))


def _lines(
    run: MonitorReport | None, audit: AuditReport | None, check: CheckReport | None, missing: Sequence[NotRun]
) -> Iterator[str]:
    yield f"### Gradience report: {escape(_model(run, audit, check))}"
    yield ""
    if run is not None and run.story:
        yield f"{escape(run.story[:1].upper() + run.story[1:])}."
        yield ""
    yield from _table(("", ""), [*_run_facts(run), *_weight_facts(audit)])
    findings = [("log", run), ("weights", audit), ("config", check)]
    yield from _findings([(name, f) for name, report in findings if report is not None for f in report.findings])
    yield from _ranks(audit)
    yield from _not_judged([*missing, *(run.not_run if run else ()), *(check.not_run if check else ())])
    yield "<sub>Hypotheses: verify on held-out data. It instruments, you decide.</sub>"


def _model(run: MonitorReport | None, audit: AuditReport | None, check: CheckReport | None) -> str:
    names = (
        run.config.model_name if run else None,
        audit.base_model if audit else None,
        check.config.model_name if check else None,
    )
    known = next((name for name in names if name), "unnamed model")
    return "/".join(known.rstrip("/").split("/")[-2:])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield a table; the cells are Markdown already."""
    body = [f"| {' | '.join(row)} |" for row in rows]
    if body:
        yield f"| {' | '.join(head)} |"
        yield f"|{'---|' * len(head)}"
        yield from body
        yield ""


def _run_facts(run: MonitorReport | None) -> Iterator[tuple[str, str]]:
    if run is None:
        return
    t, planned = run.train, run.config.training.max_steps
    yield "Data set", escape(run.config.dataset_name or "not recorded")
    at = "" if t.last_step is None else f", step {t.last_step}" + (f" of {planned}" if planned else "")
    yield "Status", escape(run.status.replace("_", " ") + at)
    if t.rows:
        best = "" if t.min_loss is None else f" (lowest {number(t.min_loss, '.4g')} at step {t.min_loss_step})"
        yield "Training loss", f"{number(t.first_loss, '.4g')} to {number(t.last_loss, '.4g')}{best}, {t.rows} rows"
    for point in run.evals:
        accuracy = "" if point.metrics.accuracy is None else f", accuracy {percent(point.metrics.accuracy)}"
        at = "" if point.step is None else f" at step {point.step}"
        yield f"Newest evaluation, {escape(point.split)}", f"loss {number(point.metrics.loss, '.4g')}{accuracy}{at}"
    if run.gap is not None:
        yield "Perplexity gap", f"{number(run.gap.ratio)}x"


def _weight_facts(audit: AuditReport | None) -> Iterator[tuple[str, str]]:
    if audit is None:
        return
    s = audit.summary
    yield "Adapter", escape(f"{audit.health.verdict.replace('_', ' ')} ({audit.health.reason})")
    yield "Parameters", f"{count(s.total_lora_params)} in {s.n_layers} modules"
    used = f"stable rank {number(s.stable_rank_mean)}, utilization {percent(s.utilization_mean)}"
    yield "Update, means", used


def _findings(found: Sequence[tuple[str, Finding]]) -> Iterator[str]:
    sources: dict[tuple[str, str], list[str]] = {}
    for source, finding in found:
        sources.setdefault((finding.id, finding.message), []).append(source)
    unique = {(f.id, f.message): f for _, f in reversed(found)}
    ranked = gravest_first([unique[key] for key in sources])
    yield f"**Findings: {len(ranked) or 'none, of what could be judged'}**"
    yield ""
    yield from _table(
        ("Severity", "Id", "What was seen", "Consider", "Source"),
        [
            (
                f"**{f.severity}**" if f.severity != "info" else "info",
                f.id,
                escape(f.message),
                escape(f.action or "-"),
                ", ".join(sources[f.id, f.message]),
            )
            for f in ranked[:_MOST_FINDINGS]
        ],
    )
    if len(ranked) > _MOST_FINDINGS:
        yield f"{len(ranked) - _MOST_FINDINGS} more are not shown."
        yield ""


def _ranks(audit: AuditReport | None) -> Iterator[str]:
    if audit is None or not audit.suggested:
        return
    yield "**Suggested ranks** (compress after training; verify with an evaluation)"
    yield ""
    words = {"median": "most modules", "p90": "worst-case tail"}
    yield from _table(
        ("For", "Rank", "Energy kept", "Relative error", "Worst module", "Saves"),
        [
            (
                words.get(key, escape(key)),
                str(s.rank),
                percent(s.energy_kept),
                percent(s.relative_error),
                percent(s.relative_error_worst),
                f"{count(s.params_saved)} parameters",
            )
            for key, s in audit.suggested.items()
        ],
    )


def _not_judged(items: Sequence[NotRun]) -> Iterator[str]:
    if not items:
        return
    yield f"<details><summary>Not judged: {len(items)}</summary>"
    yield ""
    yield from (f"- {escape(item.id)}: {escape(item.reason)}" for item in items)
    yield ""
    yield "</details>"
    yield ""
