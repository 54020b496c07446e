"""What a report shows and no finding says: over these facts no verdict says that no problems were found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gradience.rules.weights import USUAL_SIZE
from gradience.schema import as_float
from gradience.schema.audit import AuditReport
from gradience.schema.reports import CheckReport, MonitorReport

_EVERY_RECIPE: Final = 5e-2  # scaling x r x lr: five times the highest of shipped recipes for supervised training


def of_log(report: MonitorReport) -> bool:
    """Whether a clause of the story casts doubt: held-out data, an end before its time, or what cannot be told."""
    return any(part.doubt for part in report.story_parts)


def of_config(report: CheckReport) -> bool:
    """Whether the early step is far over every recipe's; with rsLoRA there is none to compare with."""
    supervised = report.config.extras.get("objective") in {"sft", "classification"}
    step = report.derived.get("scaling_r_lr")
    return supervised and not report.config.lora.use_rslora and step is not None and as_float(step) > _EVERY_RECIPE


def of_weights(report: AuditReport) -> bool:
    """Whether the update is larger than ordinary ones."""
    size = report.summary.update_size
    return size is not None and size > USUAL_SIZE.value


def doubts(log: MonitorReport | None, config: CheckReport | None, weights: AuditReport | None) -> Iterator[bool]:
    """Each fact, of the reports that there are; what a log shows goes before what settings let expect."""
    if log is not None:
        yield of_log(log)
    if config is not None and (log is None or log.account.learns is not True):
        yield of_config(config)
    if weights is not None:
        yield of_weights(weights)
