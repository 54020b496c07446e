"""What a recorder says while a program trains: through the logger `gradience`, which by default is on stderr."""

from __future__ import annotations

import logging
from typing import Final

from gradience.schema.config import ConfigSnapshot
from gradience.schema.findings import SEVERITIES, Finding
from gradience.telemetry.notice import logger
from gradience.telemetry.secrets import hide_secrets

_LEVELS: Final = {"warning": logging.WARNING, "error": logging.ERROR, "critical": logging.CRITICAL}


class Voice:
    """Says findings, one line each; nothing where it is not `loud`."""

    def __init__(self, *, loud: bool) -> None:
        self._loud = loud

    def config(self, config: ConfigSnapshot) -> None:
        """Say the findings on a configuration, warnings and graver, as training begins."""
        if not self._loud:
            return
        from gradience.rules.config.judge import judge_config  # noqa: PLC0415  # a silent run needs none of it

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
