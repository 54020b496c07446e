r"""Write PEFT's rank_pattern and alpha_pattern, and match them in bounded time, whatever the pattern.

PEFT applies the first key of the dict for which `re.match(rf"(.*\.)?({key})$", name)` holds (`peft/utils/other.py`,
get_pattern_key): a regular expression anchored at the end, beginning at a dot or at the start. This module does not
call `re` that way, for two reasons. A config is untrusted, and `(a+)+` makes a backtracking matcher run for years. And
a rank search (EVA) writes one key per module, so n modules would cost n^2 matches.

So keys that are plain names are found by hashing. Other keys are matched by RE2, whose time is linear in the name. RE2
has no look-around and no back-references, and may differ from `re` on names outside ASCII. Such cases are matched by
`re` in a process of its own, which ends when its time is up; the key is then refused.
"""

from __future__ import annotations

import math
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple, TypeAlias, TypeVar

import re2

from gradience.errors import AdapterError
from gradience.io.confined import Confined, Foreign, Limits, allow

Test = Callable[[str], bool]
Number: TypeAlias = int | float
_T = TypeVar("_T", int, float)

# A module's path as plain text, with dots bare or escaped as re.escape does.
_PLAIN: Final = re.compile(r"(?:[A-Za-z0-9_.]|\\[.])+")
# RE2 and re read these differently: [:alpha:] within a set; a repeat without its lower bound; \12, which is a
# back-reference for re and an octal number for RE2; \B in an empty text.
_READ_OTHERWISE: Final = re.compile(r"\[:|\{,|\\[1-9B]")
_ORDINARY_NAME: Final = re.compile(r"[ -~]*")  # printable ASCII: \w, \d, \b and $ mean the same to RE2 and re

_SECONDS: Final = 1.0  # processor time of all names of one table: those of real patterns take some milliseconds
_LONGEST_TEXT: Final = 80  # characters of a pattern in a message


def dotted_tails(path: str) -> list[str]:
    """The tails of a dotted path: the path itself, then the part after each of its dots.

    >>> dotted_tails("layers.0.q_proj")
    ['layers.0.q_proj', '0.q_proj', 'q_proj']
    """
    parts = path.split(".")
    return [".".join(parts[i:]) for i in range(len(parts))]


def first_matches(keys: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """The key that PEFT applies to each module, by the module's name; modules that no key matches are left out.

    >>> first_matches(["q_proj", "(q|k)_proj"], ["h.0.q_proj", "h.0.k_proj", "h.0.v_proj"])
    {'h.0.q_proj': 'q_proj', 'h.0.k_proj': '(q|k)_proj'}

    Raises:
        AdapterError: as `PatternTable`.
    """
    table = PatternTable(keys)
    return {name: hits[0] for name in names if (hits := table.matching(name))}


def whole(expression: str) -> str:
    """A key that matches the names of which the expression matches all, as PEFT reads a string in target_modules."""
    return f"^(?:{expression})$"


class Patterns(NamedTuple):
    """The four fields of a LoraConfig that set every module's rank and alpha."""

    r: int
    lora_alpha: Number
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, Number]


def patterns_of(
    ranks: Mapping[str, int], alphas: Mapping[str, Number], *, default: tuple[int, Number] | None = None
) -> Patterns:
    """The LoraConfig fields for modules given by path, as PEFT matches paths; both mappings have the same keys.

    The default rank and alpha are `default` if given. Otherwise they are the commonest values, and the mappings must
    not be empty.
    """
    r, alpha = default or (_commonest(ranks.values()), _commonest(alphas.values()))
    tails = {tail for path in ranks for tail in dotted_tails(path)[1:]}
    return Patterns(
        r,
        alpha,
        {_key(path, tails): rank for path, rank in ranks.items() if rank != r},
        {_key(path, tails): value for path, value in alphas.items() if value != alpha},
    )


def alpha_for(scale: float, rank: int, *, rslora: bool) -> Number:
    """The alpha that gives scaling s at the rank: s r, or s sqrt(r) with rsLoRA. Whole numbers are returned as int."""
    alpha = scale * (math.sqrt(rank) if rslora else rank)
    near = round(alpha)
    return near if math.isclose(alpha, near, rel_tol=1e-12) else alpha


def _commonest(values: Iterable[_T]) -> _T:
    return Counter(values).most_common(1)[0][0]


def _key(path: str, tails: set[str]) -> str:
    return ("^" if path in tails else "") + re.escape(path)


class PatternTable:
    """The keys of one pattern dict, in the dict's order.

    Raises:
        AdapterError: a key is not a regular expression; by `matching`, it takes longer than a second to match.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self.keys = list(keys)
        # (length, positions of wildcard dots) -> {the key's text with the wildcards blanked out: index of the key}.
        self._plain: dict[tuple[int, tuple[int, ...]], dict[str, int]] = {}
        self._others: list[tuple[int, Test]] = []
        backtracking = _Backtracking()
        for index, key in enumerate(self.keys):
            if _PLAIN.fullmatch(key) is None:
                self._others.append((index, _matcher(key, backtracking)))
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
            # The dots of PEFT's expression stand for any character but a line's end.
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


def _matcher(key: str, backtracking: _Backtracking) -> Test:
    """A function that tells whether PEFT's `re.match` would accept a name for the key."""
    peft = rf"(.*\.)?({key})$"
    try:
        # Also of a key that RE2 will match: what `re` refuses, PEFT would refuse.
        _compiled(peft)
    except (re.error, RecursionError, OverflowError, ValueError) as error:
        raise AdapterError(
            f"the pattern {_short(key)} in the adapter config is not a regular expression: {error}",
            advice="PEFT would refuse it too: correct rank_pattern or alpha_pattern",
        ) from error
    linear = _linear(peft)

    def matches(name: str) -> bool:
        if linear is not None and _ORDINARY_NAME.fullmatch(name) is not None:
            return linear(name)
        return backtracking.matches(peft, key, name)

    return matches


def _compiled(expression: str) -> re.Pattern[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # re warns of sets that a later Python may read otherwise
        return re.compile(expression)


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


class Backtracker:
    """Python's own matcher, in a process that ends when it has taken its seconds of processor time for all names."""

    def __init__(self, seconds: float) -> None:
        self._until = time.process_time() + seconds

    def matches(self, expression: str, name: str) -> bool:
        """Whether `re.match` accepts the name."""
        # Never 0, which `allow` would take for the usual budget.
        allow(max(self._until - time.process_time(), 0.001))
        return _compiled(expression).match(name) is not None


class _Backtracking:
    """The process of one table, started when a name first needs it."""

    def __init__(self) -> None:
        self._process: Confined | None = None

    def matches(self, expression: str, key: str, name: str) -> bool:
        try:
            if self._process is None:
                self._process = Confined(f"{__name__}:Backtracker", _SECONDS, limits=Limits(seconds=_SECONDS))
            return bool(self._process.call("matches", expression, name))
        except Foreign as error:
            self._process = None  # it has ended
            where = f"the pattern {_short(key)} in the adapter config"
            raise AdapterError(
                f"{where} cannot be matched on the name {_short(name)}: {error}",
                advice="write it without repeats of what can match in several ways, or without look-around and "
                "back-references",
            ) from error


def _short(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "...")
