"""Faults of a text's encoding."""

from __future__ import annotations

import re
from typing import Final

# The lead byte of two or three bytes of UTF-8, and what follows it, as Latin-1 or cp1252 shows them.
_BROKEN: Final = re.compile(
    r"[\u00c2-\u00df][\u0080-\u00bf\u0152-\u0178\u02c6-\u2122]|[\u00e0-\u00ef][\u0080-\u00bf\u0152-\u0178\u02c6-\u2122]{2}"
)
_RARE: Final = (0x07C0, 0x0800)  # letters of N'Ko, whose bytes are those of "ß" and a sign: "5ß€" is no mojibake
REPLACEMENT: Final = "\ufffd"


def is_mojibake(text: str) -> bool:
    """Whether a part of the text is UTF-8 that was decoded as Latin-1 or cp1252.

    >>> is_mojibake("caf\u00c3\u00a9"), is_mojibake("caf\u00e9 S\u00c3O")
    (True, False)
    """
    return not text.isascii() and any(_decodes(hit[0]) for hit in _BROKEN.finditer(text))


def _decodes(piece: str) -> bool:
    for encoding in ("cp1252", "latin-1"):
        try:
            found = piece.encode(encoding).decode("utf-8")
        except UnicodeError:
            continue
        return ord(found) < _RARE[0] or ord(found) >= _RARE[1]
    return False
