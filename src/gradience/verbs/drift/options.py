"""The options of ``drift``."""

# Annotations are evaluated here, so that a record of the command line that inherits these fields has their types.
from dataclasses import dataclass

from gradience.ranges import Count, VerbOptions, Whole


@dataclass(frozen=True, kw_only=True)
class DriftOptions(VerbOptions):
    """Which texts an adapter's change is measured on.

    Parameters
    ----------
    rows:
        Texts of each file that are read, up to 40 predictions of each.
    seed:
        Seed of the choice of texts from a file.
    """

    rows: Count = 32
    seed: Whole = 0
