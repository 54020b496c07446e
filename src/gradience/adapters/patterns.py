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
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias, TypeVar

import re2

from gradience.errors import AdapterError
from gradience.io.confined import Confined, Foreign, Limits, allow

Groups: TypeAlias = Mapping[str, str | None]
"""The named groups of a match."""
_Match = Callable[[str], Groups | None]
Number: TypeAlias = int | float
_T = TypeVar("_T", int, float)

# A module's path as plain text, with dots bare or escaped as re.escape does.
_PLAIN: Final = re.compile(r"(?:[A-Za-z0-9_.]|\\[.])+")
# RE2 and re read these differently: [:alpha:] within a set; a repeat without its lower bound; \12, which is a
# back-reference for re and an octal number for RE2; \B in an empty text.
_READ_OTHERWISE: Final = re.compile(r"\[:|\{,|\\[1-9B]")
_ORDINARY_NAME: Final = re.compile(r"[ -~]*")  # printable ASCII: \w, \d, \b and $ mean the same to RE2 and re

# Lazy, as PEFT's: the first number is the layer's, and a later one may be an expert's.
_FIRST_NUMBER: Final = r".*?\.[^.]*\.(?P<idx>\d+)\."

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
        self._others: list[tuple[int, _Match]] = []
        backtracking = _Backtracking()
        for index, key in enumerate(self.keys):
            if _PLAIN.fullmatch(key) is None:
                self._others.append((index, _matcher(rf"(.*\.)?({key})$", key, backtracking)))
                continue
            text, wildcards = _plain_text(key)
            self._plain.setdefault((len(text), wildcards), {})[_blanked(text, wildcards)] = index

    def matching(self, name: str) -> list[str]:
        """The keys that match a module's name, in order. PEFT applies the first."""
        spellings = (name, name[:-1]) if name.endswith("\n") else (name,)  # `$` also matches before a final newline
        hits = {hit for text in spellings for hit in self._plain_hits(text)}
        hits.update(index for index, match in self._others if match(name) is not None)
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


class Expressions:
    """Regular expressions, matched as `re.match` matches them, in bounded time.

    Args:
        expressions: each with the pattern of the config that is in it, for errors.

    Raises:
        AdapterError: as `PatternTable`.
    """

    def __init__(self, expressions: Mapping[str, str]) -> None:
        backtracking = _Backtracking()
        self._matches = [_matcher(expression, shown, backtracking) for expression, shown in expressions.items()]

    def first(self, name: str) -> Groups | None:
        """The named groups of the first that matches a name from its beginning; None if none does."""
        return next((groups for match in self._matches if (groups := match(name)) is not None), None)


def layer_number(patterns: Sequence[str]) -> Callable[[str], int | None]:
    """A function from a module's name to the number of its layer, by `layers_pattern`; None if it is in none of these.

    PEFT reads the patterns as expressions, and the first that matches decides (check_target_module_exists).

    Raises:
        AdapterError: as `PatternTable`.
    """
    listed = {rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.": pattern for pattern in patterns}
    table = Expressions(listed or {_FIRST_NUMBER: ""})

    def number(name: str) -> int | None:
        digits = (table.first(name) or {}).get("idx")
        return None if digits is None else int(digits)

    return number


def _matcher(expression: str, shown: str, backtracking: _Backtracking) -> _Match:
    """A function that matches as `re.match` does, with `shown` in its errors."""
    try:
        # Also of one that RE2 will match: what `re` refuses, PEFT would refuse.
        _compiled(expression)
    except (re.error, RecursionError, OverflowError, ValueError) as error:
        raise AdapterError(
            f"the pattern {_short(shown)} in the adapter config is not a regular expression: {error}",
            advice="PEFT would refuse it too: correct rank_pattern or alpha_pattern",
        ) from error
    linear = _linear(expression)

    def match(name: str) -> Groups | None:
        if linear is not None and _ORDINARY_NAME.fullmatch(name) is not None:
            return linear(name)
        return backtracking.match(expression, shown, name)

    return match


def _compiled(expression: str) -> re.Pattern[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # re warns of sets that a later Python may read otherwise
        return re.compile(expression)


def _linear(expression: str) -> _Match | None:
    """RE2's match of an ordinary name, or None if RE2 rejects the expression or would read it differently."""
    if _READ_OTHERWISE.search(expression):
        return None
    options = re2.Options()
    options.log_errors = False  # else the C++ library writes errors to stderr
    options.never_capture = True  # groups without a name
    try:
        pattern = re2.compile(expression, options)
    except (re2.error, UnicodeEncodeError):
        return None
    return lambda name: None if (hit := pattern.match(name)) is None else hit.groupdict()


class Backtracker:
    """Python's own matcher, in a process that ends when it has taken its seconds of processor time for all names."""

    def __init__(self, seconds: float) -> None:
        self._until = time.process_time() + seconds

    def match(self, expression: str, name: str) -> Groups | None:
        """The named groups of `re.match`; None if it refuses the name."""
        # Never 0, which `allow` would take for the usual budget.
        allow(max(self._until - time.process_time(), 0.001))
        hit = _compiled(expression).match(name)
        return None if hit is None else hit.groupdict()


class _Backtracking:
    """The process of one table, started when a name first needs it."""

    def __init__(self) -> None:
        self._process: Confined | None = None

    def match(self, expression: str, key: str, name: str) -> Groups | None:
        try:
            if self._process is None:
                self._process = Confined(f"{__name__}:Backtracker", _SECONDS, limits=Limits(seconds=_SECONDS))
            groups: Groups | None = self._process.call("match", expression, name)
        except Foreign as error:
            self._process = None  # it has ended
            where = f"the pattern {_short(key)} in the adapter config"
            raise AdapterError(
                f"{where} cannot be matched on the name {_short(name)}: {error}",
                advice="write it without repeats of what can match in several ways, or without look-around and "
                "back-references",
            ) from error
        return groups


def _short(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "...")
