"""The passport of a rule: what shows that its fault is met, and not only thought of.

A rule has at least one. Its docstring, or a constant in its `evidence`, names it in one of these forms:

| form | kind |
|---|---|
| `Seen: https://github.com/OWNER/NAME -- the file, and what was seen in it` | a public run, configuration or data set |
| `Seen: public repositories -- how many, and in which it was right` | the same, counted in docs/evidence/rules.md |
| `Seen: https://github.com/OWNER/NAME/issues/N -- the symptom` | a complaint whose cause it names |
| `Source: peft/utils/other.py:get_pattern_key@0.21.2 -- what it does` | behaviour of a library |
| `Source: https://huggingface.co/docs/... -- what the page says` | documented behaviour of a library |
| `Source: arithmetic -- why no run can survive it` | a ruin that follows from numbers alone |

A paper, a judgement, a trial on drawn curves or an own benchmark may be a source, and is no passport.
"""

from __future__ import annotations

import re
from typing import Final

from gradience.schema.document import Evidence, Passport, PassportKind

COUNTED: Final = "public repositories"
"""The place of a rule that docs/evidence/rules.md counts."""

_SEEN: Final[dict[PassportKind, str]] = {
    "complaint": r"https://[^/\s]+/\S+/(issues|pull|discussions|merge_requests)/\d+",
    "public run": rf"{COUNTED}|https://[^/\s]+(/[\w.-]+){{2,3}}",
}
_CITED: Final[dict[PassportKind, str]] = {
    "complaint": _SEEN["complaint"],
    "library": r"[\w-]+(/[\w.-]+)*\.\w+:[\w.]+@[\w.]+|https://(?!(www\.)?(arxiv|doi)\.org/)[^/\s]+/\S+",
    "arithmetic": "arithmetic",
}


def passport(ground: Evidence, *, seen: bool) -> Passport | None:
    """The ground as a passport, by the form of its source; None if it has none of the forms."""
    forms = _SEEN if seen else _CITED
    kind = next((kind for kind, form in forms.items() if re.fullmatch(form, ground.source)), None)
    return None if kind is None else Passport(kind=kind, source=ground.source, says=ground.says)
