r"""Match PEFT's rank_pattern and alpha_pattern in bounded time, whatever the pattern.

PEFT applies the first key of the dict for which `re.match(rf"(.*\.)?({key})$", name)` holds (`peft/utils/other.py`,
get_pattern_key): a regular expression anchored at the end, beginning at a dot or at the start. This module does not
call `re` that way, for two reasons. A config is untrusted, and `(a+)+` makes a backtracking matcher run for years. And
a rank search (EVA) writes one key per module, so n modules would cost n^2 matches.

So keys that are plain names are found by hashing. Other keys are matched by RE2, whose time is linear in the name. RE2
has no look-around and no back-references, and may differ from `re` on names outside ASCII. Such cases are matched by
`re`, if a bound on the number of paths of a backtracking matcher allows it; else the key is refused.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

import re2

from gradience.errors import AdapterError

Test = Callable[[str], bool]

# A module's path as plain text, with dots bare or escaped as re.escape does.
_PLAIN: Final = re.compile(r"(?:[A-Za-z0-9_.]|\\[.])+")
# RE2 and re read these differently: [:alpha:] within a set; a repeat without its lower bound; \12, which is a
# back-reference for re and an octal number for RE2; \B in an empty text.
_READ_OTHERWISE: Final = re.compile(r"\[:|\{,|\\[1-9B]")
_ORDINARY_NAME: Final = re.compile(r"[ -~]*")  # printable ASCII: \w, \d, \b and $ mean the same to RE2 and re

_MOST_PATHS: Final = 5e7  # limit of steps on one name: two seconds at the very worst (measured: 0.6 s)
_USUAL_NAME: Final = 64  # characters
_LONGEST_TEXT: Final = 80  # characters of a pattern in a message

_QUANTIFIER: Final = re.compile(r"(?:([*+?])|\{(\d+)?(,)?(\d+)?\})[?+]?")
_CLASS: Final = re.compile(r"\[\^?\]?(?:[^\]\\]|\\.)*\]", re.DOTALL)
_COMMENT: Final = re.compile(r"\(\?#[^)]*\)")
_OPENING: Final = re.compile(r"\((?:\?(?:P<\w+>|P=\w+|\(\w+\)|<?[=!]|>|[a-zA-Z-]*:))?")
_DEEPEST: Final = 50  # levels of nested groups


def dotted_tails(path: str) -> list[str]:
    """The tails of a dotted path: the path itself, then the part after each of its dots.

    >>> dotted_tails("layers.0.q_proj")
    ['layers.0.q_proj', '0.q_proj', 'q_proj']
    """
    parts = path.split(".")
    return [".".join(parts[i:]) for i in range(len(parts))]


class PatternTable:
    """The keys of one pattern dict, in the dict's order.

    Raises:
        AdapterError: a key is not a regular expression, or cannot be matched in bounded time.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self.keys = list(keys)
        # (length, positions of wildcard dots) -> {the key's text with the wildcards blanked out: index of the key}.
        self._plain: dict[tuple[int, tuple[int, ...]], dict[str, int]] = {}
        self._others: list[tuple[int, Test]] = []
        for index, key in enumerate(self.keys):
            if _PLAIN.fullmatch(key) is None:
                self._others.append((index, _matcher(key)))
                continue
            text, wildcards = _plain_text(key)
            self._plain.setdefault((len(text), wildcards), {})[_blanked(text, wildcards)] = index

    def matching(self, name: str) -> list[str]:
        """The keys that match a module's name, in order. PEFT applies the first."""
        spellings = (name, name[:-1]) if name.endswith("\n") else (name,)  # `$` also matches before a final newline
        hits = {hit for text in spellings for hit in self._plain_hits(text)}
        hits.update(index for index, matches in self._others if matches(name))
        return [self.keys[index] for index in sorted(hits)]

    def _plain_hits(self, name: str) -> Iterable[int]:
        for (length, wildcards), keys in self._plain.items():
            start = len(name) - length
            if start < 0 or (start > 0 and (name[start - 1] != "." or "\n" in name[:start])):
                continue
            tail = name[start:]
            if any(tail[i] == "\n" for i in wildcards):
                continue
            hit = keys.get(_blanked(tail, wildcards))
            if hit is not None:
                yield hit


def _plain_text(key: str) -> tuple[str, tuple[int, ...]]:
    """The text that a plain key matches, and the positions of its wildcards, which are unescaped dots."""
    parts = key.split(r"\.")
    wildcards, start = [], 0
    for part in parts:
        wildcards += [start + i for i, character in enumerate(part) if character == "."]
        start += len(part) + 1
    return ".".join(parts), tuple(wildcards)


def _blanked(text: str, wildcards: tuple[int, ...]) -> str:
    parts, last = [], 0
    for i in wildcards:
        parts.append(text[last:i])
        last = i + 1
    return "\0".join([*parts, text[last:]])


def _matcher(key: str) -> Test:
    """A function that tells whether PEFT's `re.match` would accept a name for the key."""
    peft = rf"(.*\.)?({key})$"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # re warns of sets that a later Python may read otherwise
            compiled = re.compile(peft)
    except (re.error, RecursionError, OverflowError, ValueError) as error:
        raise AdapterError(
            f"the pattern {_short(key)} in the adapter config is not a regular expression: {error}",
            advice="PEFT would refuse it too: correct rank_pattern or alpha_pattern",
        ) from error
    linear = _linear(peft)
    if linear is None and _most_paths(key, _USUAL_NAME) > _MOST_PATHS:
        raise _unbounded(key)

    def matches(name: str) -> bool:
        if linear is not None and _ORDINARY_NAME.fullmatch(name) is not None:
            return linear(name)
        # The prefix can end at each dot, and the key is tried after each.
        if (name.count(".") + 1) * _most_paths(key, len(name)) > _MOST_PATHS:
            raise _unbounded(key, name)
        return compiled.match(name) is not None

    return matches


def _linear(expression: str) -> Test | None:
    """RE2's test of an ordinary name, or None if RE2 rejects the expression or would read it differently."""
    if _READ_OTHERWISE.search(expression):
        return None
    options = re2.Options()
    options.log_errors = False  # else the C++ library writes errors to stderr
    options.never_capture = True
    try:
        pattern = re2.compile(expression, options)
    except (re2.error, UnicodeEncodeError):
        return None
    return lambda name: pattern.fullmatch(name) is not None


def _unbounded(key: str, name: str | None = None) -> AdapterError:
    where = "" if name is None else f" on the name {_short(name)}"
    return AdapterError(
        f"the pattern {_short(key)} in the adapter config could take for ever to match{where}",
        advice="write it without repeats of what can match in several ways, or without look-around and back-references",
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "...")


class _Cost(NamedTuple):
    """Upper bounds for a part of an expression: the ways it can match from one position, and the steps to try all."""

    paths: float = 1.0
    steps: float = 1.0

    def then(self, other: _Cost) -> _Cost:
        return _Cost(self.paths * other.paths, self.steps + self.paths * other.steps)

    def either(self, other: _Cost) -> _Cost:
        return _Cost(self.paths + other.paths, self.steps + other.steps)

    def repeated(self, least: int, most: float, length: int) -> _Cost:
        """The cost of this part repeated. On a name of `length` characters it repeats at most that often.

        If the body matches in only one way, there is one path per number of rounds, and one pass tries them all. If it
        matches in p > 1 ways, there are about p^rounds paths; without an upper limit that counts as infinite.
        """
        rounds = min(most, max(length, least))
        if self.paths > 1.0 and rounds > 1:
            paths = math.inf if math.isinf(most) else _power(self.paths + 1.0, rounds)
            return _Cost(paths, paths * rounds * self.steps)
        return _Cost(self.paths * (rounds - least) + 1.0, rounds * self.steps + 1.0)


def _power(base: float, exponent: float) -> float:
    try:
        return float(base**exponent)
    except OverflowError:
        return math.inf


def _most_paths(key: str, length: int) -> float:
    """A bound on the steps that a backtracking matcher takes for the key, at one position in a name of that length."""
    cost, end = _alternatives(key, 0, length, 0)
    return cost.steps if end == len(key) else math.inf


def _alternatives(key: str, at: int, length: int, depth: int) -> tuple[_Cost, int]:
    """The cost from a position to the group's closing parenthesis, and the position of that parenthesis."""
    if depth > _DEEPEST:
        return _Cost(math.inf, math.inf), len(key) + 1
    total: _Cost | None = None
    branch = _Cost()
    while at < len(key) and key[at] != ")":
        if key[at] == "|":
            total, branch = branch if total is None else total.either(branch), _Cost()
            at += 1
            continue
        item, at = _item(key, at, length, depth)
        branch = branch.then(item)
    return (branch if total is None else total.either(branch)), at


def _item(key: str, at: int, length: int, depth: int) -> tuple[_Cost, int]:
    """The cost of one character, set or group with its repeats, and the position after it."""
    cost = _Cost()
    if (comment := _COMMENT.match(key, at)) is not None:
        return cost, comment.end()
    if (opening := _OPENING.match(key, at)) is not None:
        cost, at = _alternatives(key, opening.end(), length, depth + 1)
        at += 1
        if opening[0].endswith(("=", "!")):  # look-around is not retried in another way
            cost = _Cost(1.0, cost.steps)
    elif key[at] == "[" and (found := _CLASS.match(key, at)) is not None:
        at = found.end()
    else:
        at += 2 if key[at] == "\\" else 1
    while (repeat := _QUANTIFIER.match(key, at)) is not None:
        cost = cost.repeated(*_bounds(repeat), length)
        at = repeat.end()
    return cost, at


def _bounds(repeat: re.Match[str]) -> tuple[int, float]:
    symbol, low, comma, high = repeat.groups()
    if symbol is not None:
        return (1 if symbol == "+" else 0), (1 if symbol == "?" else math.inf)
    least = int(low or 0)
    return least, (float(high) if high else math.inf if comma else least)
