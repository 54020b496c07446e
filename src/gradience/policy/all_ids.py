"""The ids of every check of every command: what a project's settings may name."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["all_ids"]


def all_ids() -> Sequence[str]:
    """Return the ids of check's rules, monitor's detectors, audit's checks and diagnose's joins."""
    from gradience.policy.adapter_table import ADAPTER_CHECKS  # noqa: PLC0415  # tables that most runs do not need
    from gradience.policy.config_rules import RULES  # noqa: PLC0415
    from gradience.policy.joins_table import JOINS  # noqa: PLC0415
    from gradience.policy.run_detectors import DETECTORS  # noqa: PLC0415

    return [item.id for table in (RULES, DETECTORS, ADAPTER_CHECKS, JOINS) for item in table]
