"""UTL204: low utilization, the reading of an adapter that its owner asks for most."""

from __future__ import annotations

from typing import Final

from gradience.rules import Observation, Threshold
from gradience.rules.weights import TINY_RMS, WeightsRule, modules_analysed, suggests_ranks, typical_entry
from gradience.schema import as_float
from gradience.schema.audit import AuditReport

LOW_UTILIZATION = Threshold(
    "low_utilization", 0.25, "mean stable rank over rank", "a project convention, no source found"
)

LOW: Final = f"under {LOW_UTILIZATION.value:.0%}: likely over-provisioned"


def over_provisioned(used: float, median: int | None, tail: int | None) -> Observation:
    """The reading of a utilization under the threshold, with the ranks to compress to: of most modules, of the tail."""
    to = ""
    if median is not None:
        ranks = f"r={median}" if tail in {None, median} else f"r={median} (most modules) or r={tail} (the tail)"
        to = f" Compress to {ranks} after training, do not train with it; verify with eval."
    return Observation(
        f"Utilization {used:.1%}, {LOW}.{to}",
        {"utilization": used, "rank_median": median, "rank_90": tail},
    )


@WeightsRule(
    "UTL204",
    severity="info",
    reading=True,
    confidence=0.6,
    groups=("weights", "log"),
    needs=(modules_analysed,),
    thresholds=(LOW_UTILIZATION, TINY_RMS),
)
def under_used(report: AuditReport) -> Observation | None:
    """low utilization

    the mean utilization of an adapter that was trained is under {low_utilization}, and the entries of its largest
    update are {tiny_rms} or more

    Why: An update of few directions can be stored at a lower rank.
    Scope: after training; at r >= 16 it is usual, and says nothing of training with less
    Verify: gradience bench: held-out loss of the adapter and of a smaller one.
    Source: public adapters -- 17 of 22 are under it: most adapters can be compressed after training
    """
    used, ranks = report.summary.utilization_mean, report.suggested
    if used is None or as_float(used) >= LOW_UTILIZATION.value or not suggests_ranks(report.health.verdict):
        return None
    if report.is_scaled and max(map(typical_entry, report.modules)) < TINY_RMS.value:
        return None  # of what was hardly trained, nothing was used
    return over_provisioned(
        as_float(used), *(ranks[name].rank if name in ranks else None for name in ("median", "p90"))
    )
