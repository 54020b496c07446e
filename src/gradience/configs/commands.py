"""Commands in what is said to a user: words in capitals are filled in, or it is said what each stands for."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple, TypeAlias

import msgspec

from gradience.schema.audit import Beside
from gradience.schema.document import Finding

Known: TypeAlias = Mapping[str, str | None]
"""What a word in capitals stands for here; None or no entry if that cannot be known."""

_MEANINGS: Final = {
    "ADAPTER": "the adapter's folder",
    "RUN": "the run's log or folder",
    "MODEL": "the base model",
    "TEXTS": "a file of rows",
    "TRAIN": "the file of training rows",
    "HELDOUT": "a file of held-out rows",
    "N": "a rank",
    "SIZE": "the device's memory, such as 24GiB",
    "ONE": "a new folder",
    "NEW": "a new folder",
}
_WORD: Final = re.compile(rf"(?<![\w-])(?:{'|'.join(_MEANINGS)})(?:_\d+)?(?![\w-])")


class Filled(NamedTuple):
    """A text whose words are filled in as far as known, and what to put for the others, in words; empty if for none."""

    text: str
    lacking: str


def fill(text: str, known: Known) -> Filled:
    """Fill in the words of a command, quoted for a shell.

    >>> fill("gradience audit ADAPTER --base MODEL", {"ADAPTER": "my run"})
    Filled(text="gradience audit 'my run' --base MODEL", lacking='MODEL by the base model')
    """
    names = {word: value for word, value in known.items() if value}
    rest: dict[str, list[str]] = {}
    for word in dict.fromkeys(_WORD.findall(text)):
        if word not in names:
            rest.setdefault(_MEANINGS[word.partition("_")[0]], []).append(word)
    parts = [f"{', '.join(words)}{' each' if len(words) > 1 else ''} by {what}" for what, words in rest.items()]
    text = _WORD.sub(lambda found: shlex.quote(names[found[0]]) if found[0] in names else found[0], text)
    return Filled(text, " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:]))))


def said(text: str, known: Known) -> str:
    """A sentence with its commands filled in, and after it what is left to replace. Without a command it is as it was.

    >>> said("Compare it (gradience audit ADAPTER --base MODEL).", {"ADAPTER": "out"})
    'Compare it (gradience audit out --base MODEL). Replace MODEL by the base model.'
    """
    if "gradience " not in text:
        return text
    filled, lacking = fill(text, known)
    if not lacking:
        return filled
    return f"{filled} Replace {lacking}." if filled.endswith(".") else f"{filled} (replace {lacking})"


def with_commands(findings: Iterable[Finding], known: Callable[[], Known]) -> list[Finding]:
    """The findings with the commands of their actions filled in; `known` is asked only if one has such a command."""
    listed = list(findings)
    if not any(_WORD.search(text) for finding in listed for text in (finding.action, finding.verify) if text):
        return listed
    names = known()
    return [
        msgspec.structs.replace(
            finding,
            action=finding.action and said(finding.action, names),
            verify=finding.verify and said(finding.verify, names),
        )
        for finding in listed
    ]


def known_of(adapter: str | None, beside: Beside, *, rank: int | None = None) -> Known:
    """What the words stand for in commands on an adapter; what they write goes beside it."""
    place = None if adapter is None else os.path.normpath(adapter)
    new = None if place is None else "new" if place in {".", ".."} else f"{place}-new"
    return {
        "ADAPTER": adapter,
        "MODEL": beside.base,
        "TEXTS": beside.texts,
        "TRAIN": beside.texts,
        "HELDOUT": beside.held_out,
        "N": None if rank is None else str(rank),
        "ONE": new and f"{new}-one",
        "NEW": new,
    }
