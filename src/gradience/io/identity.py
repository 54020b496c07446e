"""Whether this is the gradience that the environment has: another project on the package index has its name.

Both install a package `gradience` and a command `gradience`; where both are, files of one lie over the other's.
"""

from __future__ import annotations

from importlib.metadata import Distribution, distributions
from typing import Final

SUMMARY: Final = "Flight recorder and mechanic for LoRA fine-tuning: check a config, monitor a run, audit an adapter."
INSTALL: Final = "in the clone: pip install -e '.[hf]'"
"""How the extra for the Trainer callback is installed. From the index, `pip install gradience` is the other project."""


def other_project() -> str | None:
    """A warning if another project's distribution has this name; None if not."""
    found = [dist for dist in distributions(name="gradience") if _is_other(dist)]
    if not found:
        return None
    versions = ", ".join(sorted({dist.version for dist in found}))
    return (
        f"another project named gradience ({versions}) is installed in this environment, with the same package and "
        "command: pip uninstall gradience, then install this one from its clone or wheel"
    )


def _is_other(dist: Distribution) -> bool:
    return (dist.metadata["Summary"] or "").strip() != SUMMARY
