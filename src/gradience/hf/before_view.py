"""What is about to be trained, as blocks: `gradience.preflight`."""

from __future__ import annotations

from collections.abc import Iterator

from gradience.blocks import Block, Title, brief, count, counted, facts, findings
from gradience.blocks.text import as_text
from gradience.schema import as_float
from gradience.schema.preflight import FirstBatches, PreflightReport
from gradience.schema.wiring import ParameterGroup
from gradience.verbs.check.view import config_facts, memory_blocks


def preflight_blocks(report: PreflightReport) -> Iterator[Block]:
    """The objects as understood, what trains, what it is fed, and the findings."""
    yield Title("GRADIENCE PREFLIGHT")
    yield config_facts(report.check)
    yield facts((pair for pair in _facts(report) if pair[1]), indent=2)
    yield ""
    yield from memory_blocks(report.check.memory, counted=True)
    if report.findings:
        yield f"Findings ({len(report.findings)}):"
        yield findings(report.findings, verbose=False)
    else:
        yield "No findings, by the rules that can be judged before training."
    yield from (f"Note: {note}." for note in report.notes)


preflight_text = as_text(preflight_blocks)
"""The report for a terminal."""


def _facts(report: PreflightReport) -> Iterator[tuple[str, str]]:
    trained = [group for group in report.groups if group.trainable]
    yield "Trains", "; ".join(map(_trained, trained)) or "nothing"
    yield "Frozen", "; ".join(text for group in report.groups if (text := _frozen(group)))
    if report.adapter is not None and len(report.adapter.names) > 1:
        yield "Adapters", f"{', '.join(report.adapter.names)}; active: {', '.join(report.adapter.active) or 'none'}"
    yield "Rate", _rates(report)
    yield from _batches(report.batches)


def _trained(group: ParameterGroup) -> str:
    where = f" in {', '.join(group.dtypes)} on {', '.join(group.devices)}"
    return f"{group.kind} {count(group.trainable)} parameters, {counted(group.trainable_tensors, 'tensor')}{where}"


def _frozen(group: ParameterGroup) -> str:
    frozen = group.parameters - group.trainable
    dtypes = "" if group.trainable else f" in {', '.join(group.dtypes)}"
    return f"{group.kind} {count(frozen)}{dtypes}" if frozen else ""


def _rates(report: PreflightReport) -> str:
    planned = ", ".join(f"{brief(as_float(one.lr))} at step {one.step}" for one in report.rates)
    groups = report.optimizer.rates if report.optimizer is not None else []
    several = [f"{brief(as_float(one.lr))} for {' and '.join(one.kinds)}" for one in groups]
    apart = f"; by part {', '.join(several)}" if len({as_float(one.lr) for one in groups}) > 1 else ""
    return f"{planned} ({report.schedule}){apart}" if planned else report.schedule


def _batches(batches: FirstBatches) -> Iterator[tuple[str, str]]:
    if not batches.inputs:
        yield "Inputs", f"not looked at: {batches.reason}"
        return
    yield "Inputs", ", ".join(f"{name} {shape}" for name, shape in batches.inputs.items())
    yield "Then", batches.reason
    known = {name: value for name, value in batches.counts.items() if isinstance(value, int)}
    rows, tokens = known.get("rows", 0), known.get("tokens", 0)
    if not rows or not tokens:
        return
    padding = known.get("padding", 0)
    first = counted(known.get("batches", 0), "micro-batch").replace("batchs", "batches")
    yield (
        "Fed",
        (
            f"{counted(rows, 'row')} and {counted(tokens, 'token')} in the first {first}, "
            f"{padding / (tokens + padding):.1%} padding, the longest row {known.get('longest', 0):,}"
        ),
    )
    yield "In loss", _in_the_loss(batches, known, tokens)


def _in_the_loss(batches: FirstBatches, known: dict[str, int], tokens: int) -> str:
    if batches.judged:
        kept, of = batches.judged["kept"], batches.judged["tokens"]
        return f"{kept:,} of {of:,} tokens ({kept / of:.1%}), by completion_mask"
    if "supervised" in known:
        kept, bare = known["supervised"], known.get("rows_unsupervised", 0)
        rows = f"; {counted(bare, 'row')} without one" if bare else ""
        return f"{kept:,} of {tokens:,} tokens ({kept / tokens:.1%}); masked {1 - kept / tokens:.1%}{rows}"
    if "label_min" in known:
        return f"class labels {known['label_min']} to {known.get('label_max')}"
    return "not known: the batch has no labels"
