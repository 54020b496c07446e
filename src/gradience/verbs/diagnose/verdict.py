"""The verdict of a diagnosis: by its causes, and by what the reports show though no finding says it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from gradience.rules.judged import LOOK
from gradience.rules.weights import USUAL_SIZE
from gradience.schema import as_float
from gradience.schema.audit import AuditReport
from gradience.schema.diagnose import Cause, Verdict
from gradience.schema.document import SEVERITIES
from gradience.schema.reports import CheckReport, MonitorReport

_EVERY_RECIPE: Final = 5e-2  # scaling x r x lr: five times the highest of shipped recipes for supervised training


def verdict_of(causes: Sequence[Cause], *, complete: bool, doubt: bool = False, alone: bool = False) -> Verdict:
    """The verdict by the most severe cause; without a cause, by whether enough could be judged, and by doubts.

    A warning of the settings alone lets expect what neither the log nor the weights show: it is worth a look. Of
    settings without a log or weights that were analysed, nothing is known of the run they made.
    """
    worst = max((SEVERITIES.index(cause.severity) for cause in causes), default=-1)
    if worst >= SEVERITIES.index("error"):
        return "broken"
    if any(cause.severity == "warning" and not _of_settings(cause) for cause in causes):
        return "needs_attention"
    if not complete:
        return "could_not_judge"
    pieces = [piece for cause in causes for piece in cause.pieces]
    look = doubt or any(piece.id in LOOK or piece.severity not in {None, "info"} for piece in pieces)
    return "worth_a_look" if look else "could_not_judge" if alone else "no_fault_found"


def _of_settings(cause: Cause) -> bool:
    return bool(cause.pieces) and all(piece.source == "config" for piece in cause.pieces)


def doubts(
    log: MonitorReport | None, config: CheckReport | None, weights: AuditReport | None, *, lost: bool = False
) -> Iterator[bool]:
    """Facts over which no verdict says that no problems were found.

    An adapter whose settings are there and whose weights are not (`lost`). A clause of the log's story: of held-out
    data, of an end before its time, or of what cannot be told. The first step of the settings, where no log shows what
    came of it; with rsLoRA there is none to compare with. The update's size.
    """
    yield lost
    if log is not None:
        yield any(part.doubt for part in log.story_parts)
    if config is not None and (log is None or log.account.learns is not True):
        supervised = config.config.extras.get("objective") in {"sft", "classification"}
        step = as_float(config.derived.get("scaling_r_lr", 0.0))
        yield supervised and not config.config.lora.use_rslora and step > _EVERY_RECIPE
    if weights is not None:
        yield (weights.summary.update_size or 0.0) > USUAL_SIZE.value
