"""The ranks that an audit suggests as text: what each would keep and save, by which rule, and the next command."""

from __future__ import annotations

import os.path
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
from msgspec.structs import replace

from gradience.blocks import Block, Heading, count, megabytes, number, percent, table
from gradience.blocks.text import shortened
from gradience.configs.commands import fill
from gradience.rules.weights import LARGE_SIZE
from gradience.rules.weights.utilization import LOW, under_used
from gradience.schema import Real
from gradience.schema.audit import AuditReport, RankDisagreement, RankPattern
from gradience.schema.document import Finding

_MODULES: Final = 8  # modules of a rank pattern listed without --verbose
_RULES: Final = {"energy_90": "k@90%", "effective_rank": "effective rank", "stable_rank": "stable rank", "knee": "knee"}
_SUGGESTED_FOR: Final = {"median": "most modules (median)", "p90": "worst-case tail (p90)"}
_BRIEFLY: Final = {"median": "most modules", "p90": "the tail"}
_OF_TEXT: Final = frozenset({"CAUSAL_LM", "SEQ_CLS"})
"""PEFT's task types of models that `gradience resize --kl` runs on texts."""


def update_size(norm: float | None, size: float | None) -> str | None:
    """The size of an update in words, from its norm and from that norm over the norm of freshly initialised weights."""
    if norm is None or size is None:
        return None
    far = "; far above ordinary updates (under 1)" if size > LARGE_SIZE.value else ""
    return f"norm {norm:.3g}, {size:.3g} of freshly initialised weights of these shapes{far}"


def utilization(used: Real | None, readings: Iterable[Finding]) -> str:
    """The mean utilization as text, with what the readings say of one that is low."""
    low = any(one.id == under_used.id for one in readings)
    return f"{percent(used)}, {LOW}" if low else percent(used)


def suggested(report: AuditReport, *, verbose: bool) -> Iterator[Block]:
    """The suggested ranks with their cost and saving; `verbose` gives every candidate, and what other rules say."""
    if not report.suggested:
        return
    highest = max(m.r for m in report.modules)
    if all(item.rank >= highest for item in report.suggested.values()):
        yield f"Suggested rank: {highest}, the present one; the spectra show nothing to leave out"
    elif verbose:
        yield Heading("Suggested rank (compress after training; verify with eval)")
        yield from _candidates(report)
    else:
        saved = {item.rank: f"; saves {megabytes(item.bytes_saved)}" for item in report.candidates}
        uses: dict[int, list[str]] = {}
        for of, item in report.suggested.items():
            uses.setdefault(item.rank, []).append(_BRIEFLY[of])
        ranks = (f"{rank} ({' and '.join(of)}{saved.get(rank, '')})" for rank, of in uses.items())
        yield f"Suggested rank (now {highest}): {' or '.join(ranks)}"
        yield "  To compress to after training, not to train with; verify with eval."
        return
    yield ""


def _candidates(report: AuditReport) -> Iterator[Block]:
    candidates = table(
        (
            ("r", ">4", lambda c: str(c.rank)),
            ("energy kept", ">11", lambda c: percent(c.energy_kept)),
            ("rel. error", ">10", lambda c: percent(c.relative_error)),
            ("worst module", ">12", lambda c: percent(c.relative_error_worst)),
            ("saves", "<24", lambda c: f"{count(c.params_saved)} params, {megabytes(c.bytes_saved)}"),
            ("suggested for", "<", lambda c: _purposes(report, c.rank)),
        ),
        report.candidates,
    )
    present = max((m.r for m in report.modules), default=0)
    if present not in {item.rank for item in report.candidates}:
        row = (str(present), percent(1.0), "-", "-", "the present rank", _purposes(report, present))
        candidates = replace(candidates, rows=(*candidates.rows, row))
    yield candidates
    others = [rule for rule in report.rank_rules if rule.rule != "energy_90"]
    if others:
        ranks = ", ".join(f"{_RULES[r.rule]} {r.median_rank}/{r.p90_rank}" for r in others)
        yield f"  k@90% decides; other rules say (median/p90): {ranks}"
    yield from _of_each(report)


def _of_each(report: AuditReport) -> Iterator[Block]:
    each, named = report.like_suggested, report.suggested
    if each is not None:
        yield (
            f"  each module at its own k@90% (resize --like-suggested): relative error {percent(each.relative_error)}, "
            f"saves {count(each.params_saved)} params, {megabytes(each.bytes_saved)}"
        )
    if any(item.for_engines != item.rank for item in named.values()):
        listed = ", ".join(f"{item.for_engines} for {_SUGGESTED_FOR[name]}" for name, item in named.items())
        yield f"  for engines that want a power of two: {listed}"


def next_command(report: AuditReport) -> Iterator[Block]:
    """The command that makes an adapter of low utilization smaller, if no finding asks for anything else first.

    With a model of text it measures on the user's inputs how small; another adapter is cut by its weights.
    """
    highest = max((m.r for m in report.modules), default=0)
    is_smaller = any(item.rank < highest for item in report.suggested.values())
    wasteful = any(one.id == under_used.id for one in report.readings)
    asked_first = any(finding.severity != "info" for finding in report.findings)
    if not (wasteful and is_smaller) or asked_first or report.resized_as == "not":
        return
    how = "--base MODEL --data TEXTS --kl .003" if report.task_type in _OF_TEXT else "--like-suggested"
    place = os.path.normpath(report.peft_dir)
    new = "smaller" if place in {".", ".."} else f"{place.removesuffix('.safetensors')}-smaller"
    out = f"{new}.safetensors" if report.format == "kohya" else new  # of kohya's, each adapter is one file
    base = report.base.path if report.base else report.beside.base
    known = {"ADAPTER": report.peft_dir, "MODEL": base, "TEXTS": report.beside.texts, "NEW": out}
    if report.resized_as == "converted":
        known |= {"ONE": f"{new}-one"}
        line = f"gradience convert ADAPTER --out ONE && gradience resize ONE {how} --out NEW"
    else:
        line = f"gradience resize ADAPTER {how} --out NEW"
    command, lacking = fill(line, known)
    yield f"Next: {command}"
    if lacking:
        yield f"    Replace {lacking}."


def _purposes(report: AuditReport, rank: int) -> str:
    """The purposes for which the rank is suggested; empty if it is not suggested."""
    ranks = report.suggested
    return ", ".join(text for key, text in _SUGGESTED_FOR.items() if key in ranks and ranks[key].rank == rank)


def rank_rules(report: AuditReport) -> Iterator[Block]:
    """The ranks by each rule, and the modules for which the rules differ by more than a power of two."""
    yield "Rules for a rank (median/p90, then as ranks):"
    for rule in report.rank_rules:
        yield (
            f"  {_RULES[rule.rule]:<15} {number(rule.median, '.3g'):>5}/{number(rule.p90, '.3g'):<5}"
            f" r={rule.median_rank}/{rule.p90_rank:<4} {rule.says}"
        )
    groups: dict[tuple[int, ...], list[RankDisagreement]] = {}
    for item in report.rank_disagreements:
        groups.setdefault(tuple(item.buckets.values()), []).append(item)
    if groups:
        yield f"  More than a power of two apart on {len(report.rank_disagreements)} of {len(report.modules)} modules:"
    for items in sorted(groups.values(), key=len, reverse=True):
        yield f"    {len(items)} x  {', '.join(f'{_RULES[name]} {rank}' for name, rank in items[0].buckets.items())}"
        yield from (f"      {item.name}: {item.why}" for item in items)
    yield ""


def rank_pattern(pattern: RankPattern, *, verbose: bool) -> Iterator[Block]:
    """The pattern as JSON for LoraConfig, with its cost and saving."""
    yield "Rank per layer (each module at its k@90%, scaling unchanged; arguments of peft.LoraConfig):"
    fields = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
    arguments = {name: getattr(pattern, name) for name in fields}
    text = msgspec.json.format(msgspec.json.encode(arguments), indent=2).decode()
    yield from (f"  {line}" for line in text.splitlines())
    yield (
        f"  keeps {percent(pattern.energy_kept)} of the energy; relative error {percent(pattern.relative_error)};"
        f" saves {count(pattern.params_saved)} params, {megabytes(pattern.bytes_saved)}"
    )
    ranks = Counter(item.rank for item in pattern.modules)
    yield "  modules by rank: " + ", ".join(f"r={rank}: {n}" for rank, n in sorted(ranks.items()))
    lines = [
        f"    r={item.r:<3} -> {item.rank:<3} error {percent(item.relative_error):>6}  {item.name}"
        for item in sorted(pattern.modules, key=lambda item: -item.relative_error)
    ]
    yield from shortened(lines, None if verbose else _MODULES, of="with smaller errors", indent=4)
    yield ""
