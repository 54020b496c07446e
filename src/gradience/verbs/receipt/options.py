"""The options of ``receipt``."""

from dataclasses import dataclass

from gradience.ranges import Count, Seed, VerbOptions


@dataclass(frozen=True, kw_only=True)
class ReceiptOptions(VerbOptions):
    """What goes into a receipt.

    Parameters
    ----------
    rows:
        Sequences that are kept: those that the adapter changes most, of half as many more that are read.
    seed:
        Seed of the choice of rows from the file.
    keep_text:
        Keep the text of the rows. Without it only token ids are kept.
    """

    rows: Count = 16
    seed: Seed = 0
    keep_text: bool = False
