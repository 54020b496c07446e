"""The options of ``receipt``."""

# Annotations are evaluated here, so that a record of the command line that inherits these fields has their types.
from dataclasses import dataclass

from gradience.ranges import Count, VerbOptions, Whole


@dataclass(frozen=True, kw_only=True)
class ReceiptOptions(VerbOptions):
    """What goes into a receipt.

    Parameters
    ----------
    rows:
        Sequences that are kept: those that the adapter changes most, of half as many more that are read.
    seed:
        Seed of the choice of rows from the file.
    token_ids:
        The file holds lists of token ids, or objects with input_ids.
    keep_text:
        Keep the text of the rows. Without it only token ids are kept.
    """

    rows: Count = 16
    seed: Whole = 0
    token_ids: bool = False
    keep_text: bool = False
