"""What a run's rows show while they come, and what the recorder says of it.

Judged by the rules of `monitor` that a person at the screen would act on, and only where a cheap look at the newest row
gives a reason to: a number that is not finite, a loss of 0, no gradient, three rows well above the lowest loss, an
evaluation. A rule speaks once a run, through the logger `gradience`, which by default is on stderr.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from gradience.rules.rule import Threshold
from gradience.schema.events import ConfigSnapshot, Eval, EvalMetrics
from gradience.schema.findings import SEVERITIES, Finding
from gradience.schema.scalars import SCHEMA_ID, as_float
from gradience.telemetry.logfile import logger
from gradience.telemetry.reader import RunSummary
from gradience.telemetry.secrets import hide_secrets
from gradience.telemetry.series import RunSeries, rate_of

LIVE: Final = ("NUM101", "NUM102", "DIV104", "GRD108", "OVF110")
HIGH = Threshold("high", 1.3, "times the lowest loss, in three rows running", "a judgement: a reason to look, no more")
SMALL = Threshold("small", 1e-3, "of the first gradient norm", "a judgement: a reason to look, no more")

_ROWS: Final = 3
_PAUSE: Final = 20  # a twentieth of the rows so far passes between two looks for the same reason
_GRAVE: Final = frozenset({"warning", "error", "critical"})

_LEVELS: Final = {"warning": logging.WARNING, "error": logging.ERROR, "critical": logging.CRITICAL}


def live_ids(asked: Iterable[str]) -> frozenset[str]:
    """Return the rules named for `stop_on`, in upper case.

    Raises:
        ValueError: one of them does not speak while training runs.
    """
    wanted = frozenset(name.upper() for name in ([asked] if isinstance(asked, str) else asked))
    if strange := sorted(wanted - set(LIVE)):
        raise ValueError(f"stop_on: expected ids among {', '.join(LIVE)}, got {', '.join(strange)}")
    return wanted


class Lookout:
    """One run's rows and evaluations as they come, and the findings on them that are new.

    Args:
        config: the run's configuration, which several rules read.
        stop_on: ids for which training is to stop.
    """

    def __init__(self, config: ConfigSnapshot, stop_on: Collection[str] = ()) -> None:
        self._config, self._stop_on = config, stop_on
        self._run = RunSeries("live", config=config)
        self._said: set[str] = set()
        self._lowest = self._bar = math.inf
        self._least_norm = math.inf  # no norm was seen
        self._high = 0
        self._next = {"odd": 0, "high": 0}

    def row(self, step: int, row: Mapping[str, Any]) -> Sequence[Finding]:
        """Take one row of training by its known columns; return what it newly shows."""
        if (given := row.get("loss")) is None:
            return ()
        loss, measured, run = as_float(given), row.get("grad_norm"), self._run
        norm = math.nan if measured is None else as_float(measured)
        run.steps.append(step)
        run.losses.append(loss)
        run.grad_norms.append(norm)
        run.rates.append(rate_of(row.get("lr")))
        run.last_step = step
        if self._least_norm < norm < math.inf and 0.0 < loss < self._bar:  # a row like most
            if loss < self._lowest:
                self._lowest, self._bar = loss, HIGH.value * loss
            self._high = 0
            return ()
        return self._unusual(step, loss, norm, logged=measured is not None)

    def evaluation(self, step: int, split: str, metrics: Mapping[str, Any]) -> Sequence[Finding]:
        """Take one evaluation of one split; return what it newly shows."""
        loss = metrics.get("loss")
        if loss is None:
            return ()
        measured = EvalMetrics(loss=loss, accuracy=metrics.get("accuracy"), n=metrics.get("n"))
        self._run.evals.append(Eval(schema=SCHEMA_ID, ts=None, run_id="live", step=step, split=split, metrics=measured))
        self._run.last_step = max(step, self._run.last_step or 0)
        return self._judge()

    def stops(self, findings: Iterable[Finding]) -> list[str]:
        """Return the ids among new findings for which training is to stop."""
        return [finding.id for finding in findings if finding.id in self._stop_on]

    def _unusual(self, step: int, loss: float, norm: float, *, logged: bool) -> Sequence[Finding]:
        if logged and math.isnan(norm):
            self._run.lost_norms.add(step)
        if loss < self._lowest and loss > 0.0:
            self._lowest, self._bar = loss, HIGH.value * loss
        if math.isinf(self._least_norm) and math.isfinite(norm):  # the first
            self._least_norm = SMALL.value * norm
        if not math.isfinite(loss) or loss == 0.0 or (logged and not self._least_norm < norm < math.inf):
            return self._look("odd")
        self._high = self._high + 1 if loss > self._bar else 0
        return self._look("high") if self._high >= _ROWS else ()

    def _look(self, reason: str) -> Sequence[Finding]:
        rows = len(self._run.steps)
        if rows < self._next[reason]:
            return ()
        self._next[reason] = rows + 1 + rows // _PAUSE
        return self._judge()

    def _judge(self) -> Sequence[Finding]:
        from gradience.rules.log import DETECTORS  # noqa: PLC0415  # a run that shows nothing needs none of it
        from gradience.rules.rule import judge  # noqa: PLC0415  # the same
        from gradience.verbs.monitor import facts_of  # noqa: PLC0415  # the same

        facts = facts_of(RunSummary(Path()), self._run, self._config)
        rules = [rule for rule in DETECTORS if rule.id in LIVE and rule.id not in self._said]
        found = [finding for finding in judge(rules, facts).findings if finding.severity in _GRAVE]
        self._said.update(finding.id for finding in found)
        return list({finding.id: finding for finding in reversed(found)}.values())


class Voice:
    """Says findings, one line each; nothing where it is not `loud`."""

    def __init__(self, *, loud: bool) -> None:
        self._loud = loud

    def config(self, config: ConfigSnapshot) -> None:
        """Say the findings on a configuration, warnings and graver, as training begins."""
        if not self._loud:
            return
        from gradience.rules.config import judge_config  # noqa: PLC0415  # a silent run needs none of it

        for finding in judge_config(config).findings:
            self._say(finding, "")

    def finding(self, finding: Finding, step: int) -> None:
        """Say a finding on the rows up to a step."""
        self._say(finding, f" at step {step}")

    def stop(self, step: int, reason: str) -> None:
        """Say that training ends early, and by what."""
        if self._loud:
            logger.warning("gradience: training stops after step %d, by %s", step, reason)

    def _say(self, finding: Finding, at: str) -> None:
        if self._loud and SEVERITIES.index(finding.severity) >= SEVERITIES.index("warning"):
            text = hide_secrets(" -> ".join(part for part in (finding.message, finding.action) if part))
            logger.log(_LEVELS[finding.severity], "gradience: %s%s: %s", finding.id, at, text)
