r"""PEFT's rank_pattern and alpha_pattern, matched in time linear in the name, whatever the pattern.

PEFT applies the first key of the dict for which `re.match(rf"(.*\.)?({key})$", name)` holds
(`peft/utils/other.py`, get_pattern_key): a regular expression anchored at the end, beginning at a dot or at
the start. Two things keep that from being called as it stands. A config comes from a stranger, and `(a+)+`
makes a backtracking matcher run for years; and a rank search (EVA) writes one key per module, so that n
modules cost n^2 matches. So keys that are plain names are found by hashing, and the others run as finite
automata. What an automaton cannot express (look-around, back-references) is left to `re`, but only where no
repeat stands inside another.
"""

from __future__ import annotations

import re
import re._constants as op  # type: ignore[import-not-found]  # the parser has no public name
import re._parser as parser  # type: ignore[import-not-found]
from collections.abc import Callable, Iterable
from typing import Any, Final

from gradience.adapters.automaton import Automaton, NotRegularError
from gradience.errors import AdapterError

__all__ = ["PatternTable"]

_LONGEST_NAME: Final = 400  # characters, for the patterns that only `re` can match
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.]+")

Test = Callable[[str], bool]


class PatternTable:
    """The keys of one pattern dict, in its order.

    Raises:
        AdapterError: a key is no regular expression, or one that cannot be matched in bounded time.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self.keys = list(keys)
        self._plain: dict[tuple[int, tuple[int, ...]], dict[str, int]] = {}
        self._others: list[tuple[int, Test]] = []
        for index, key in enumerate(self.keys):
            holes = _dotted_name(key)
            if holes is None:
                tree = _parse(key)
                holes = _plain_text(tree)
            if holes is None:
                self._others.append((index, _matcher(key, tree)))
                continue
            text, anys = holes
            self._plain.setdefault((len(text), anys), {}).setdefault(_mask(text, anys), index)

    def matching(self, name: str) -> list[str]:
        """Return the keys that match the module of that name, in order: PEFT applies the first."""
        spellings = (name, name[:-1]) if name.endswith("\n") else (name,)  # `$` also stands before a last newline
        hits = {hit for text in spellings for hit in self._plain_hits(text)}
        hits.update(index for index, matches in self._others if matches(name))
        return [self.keys[index] for index in sorted(hits)]

    def _plain_hits(self, name: str) -> Iterable[int]:
        for (length, anys), keys in self._plain.items():
            start = len(name) - length
            if start < 0 or (start > 0 and (name[start - 1] != "." or "\n" in name[:start])):
                continue
            tail = name[start:]
            if any(tail[i] == "\n" for i in anys):
                continue
            hit = keys.get(_mask(tail, anys))
            if hit is not None:
                yield hit


def _dotted_name(key: str) -> tuple[str, tuple[int, ...]] | None:
    """Return what `_plain_text` would, without parsing, for what is at sight no more than a module's path."""
    if _PLAIN.fullmatch(key) is None:
        return None
    return key, tuple(i for i, character in enumerate(key) if character == ".")


def _parse(key: str) -> Any:  # re's parse tree has no public type
    try:
        re.compile(rf"(.*\.)?({key})$")
        return parser.parse(key)
    except (re.error, RecursionError, OverflowError, ValueError) as error:
        raise AdapterError(
            f"the pattern {_short(key)} in the adapter config is no regular expression: {error}",
            advice="PEFT would refuse it too: correct rank_pattern or alpha_pattern",
        ) from error


def _short(key: str) -> str:
    return repr(key if len(key) <= 80 else key[:77] + "...")  # noqa: PLR2004  # a terminal line


def _plain_text(tree: Any) -> tuple[str, tuple[int, ...]] | None:
    """Return (text, where it has a wildcard) of a pattern made of letters and dots only, or None."""
    if tree.state.flags & ~re.UNICODE.value or not len(tree):
        return None
    text: list[str] = []
    anys: list[int] = []
    for code, argument in tree:
        if code is op.ANY:
            anys.append(len(text))
            text.append(".")
        elif code is op.LITERAL and argument != ord("\n"):
            text.append(chr(argument))
        else:
            return None
    return "".join(text), tuple(anys)


def _mask(text: str, anys: tuple[int, ...]) -> str:
    if not anys:
        return text
    parts, last = [], 0
    for i in anys:
        parts.append(text[last:i])
        last = i + 1
    return "\0".join([*parts, text[last:]])


def _matcher(key: str, tree: Any) -> Test:
    try:
        return Automaton(key, tree).matches
    except NotRegularError:
        if _repeats_within_repeats(tree):
            raise AdapterError(
                f"the pattern {_short(key)} in the adapter config could take for ever to match",
                advice="write it without a repeat inside a repeat",
            ) from None
    compiled = re.compile(rf"(.*\.)?({key})$")

    def matches(name: str) -> bool:
        if len(name) > _LONGEST_NAME:
            raise AdapterError(f"the name {_short(name)} is too long for the pattern {_short(key)}")
        return compiled.match(name) is not None

    return matches


def _repeats_within_repeats(tree: Any, *, inside: bool = False) -> bool:
    """Return whether a repeat stands inside another, or more than three beside each other."""
    unbounded = 0
    for code, argument in tree:
        repeats = code in _REPEATS
        unbounded += repeats
        if repeats and inside:
            return True
        for child in _children(argument):
            if _repeats_within_repeats(child, inside=inside or repeats):
                return True
    return unbounded > 3  # noqa: PLR2004  # each one is a power of the name's length


def _children(argument: Any) -> Iterable[Any]:
    if isinstance(argument, parser.SubPattern):
        yield argument
    elif isinstance(argument, list | tuple):
        for item in argument:
            yield from _children(item)


_REPEATS: Final = (op.MAX_REPEAT, op.MIN_REPEAT, getattr(op, "POSSESSIVE_REPEAT", None))
