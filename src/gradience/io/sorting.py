"""Names in the order in which people count: layer 2 before layer 10."""

from __future__ import annotations

import re
from typing import Final

_DIGITS: Final = re.compile(r"(\d+)")
_MOST_DIGITS: Final = 9  # int() of a longer one costs more than its order is worth


def natural_key(name: str) -> list[tuple[int, str]]:
    """A sort key that compares runs of digits as numbers.

    Numbers of more than nine digits come after all others, in the order of their text.

    >>> sorted(["layers.10.k", "layers.2.k"], key=natural_key)
    ['layers.2.k', 'layers.10.k']
    """
    return [
        (-1, part) if i % 2 == 0 else (int(part), "") if len(part) <= _MOST_DIGITS else (10**_MOST_DIGITS, part)
        for i, part in enumerate(_DIGITS.split(name))
    ]
