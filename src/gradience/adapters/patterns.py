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

from gradience.errors import AdapterError

_MOST_STATES: Final = 20_000
_MOST_CACHED: Final = 4_096
_PREFIX: Final = parser.parse(r"(.*\.)?")

Test = Callable[[str], bool]


class NotRegularError(Exception):
    """The pattern needs more than a finite automaton."""


class Automaton:
    """Thompson's construction, run on sets of states; sets and their steps are remembered.

    A state is a list of (what it consumes, next) with None for a free step and an anchor's code for a
    condition on the position.
    """

    def __init__(self, key: str, tree: Any) -> None:
        if tree.state.flags & ~re.UNICODE.value:
            raise NotRegularError
        self._key = key
        self._edges: list[list[tuple[Any, int]]] = []
        end = self._state()
        self._end = end
        body = self._sequence(tree, end)
        self._start = self._sequence(_PREFIX, body)
        self._steps: dict[tuple[frozenset[int], str], frozenset[int]] = {}

    def matches(self, name: str) -> bool:
        r"""Return whether `re.match(rf"(.*\.)?({key})$", name)` would match."""
        last = len(name) - 1
        states = self._closure({self._start}, at_start=True, at_end=not name or name == "\n")
        for position, character in enumerate(name):
            if not states:
                return False
            if character == "\n" and position == last and self._end in states:
                return True
            at_end = position == last or (position == last - 1 and name[last] == "\n")
            states = self._step(states, character, at_end=at_end)
        return self._end in states

    def _step(self, states: frozenset[int], character: str, *, at_end: bool) -> frozenset[int]:
        key = (states, character)
        known = None if at_end else self._steps.get(key)
        if known is not None:
            return known
        reached = {
            following
            for state in states
            for test, following in self._edges[state]
            if callable(test) and test(character)
        }
        closed = self._closure(reached, at_start=False, at_end=at_end)
        if not at_end:
            if len(self._steps) >= _MOST_CACHED:
                self._steps.clear()
            self._steps[key] = closed
        return closed

    def _closure(self, states: set[int], *, at_start: bool, at_end: bool) -> frozenset[int]:
        allowed = {None: True, "start": at_start, "end": at_end}
        seen, waiting = set(states), list(states)
        while waiting:
            for test, following in self._edges[waiting.pop()]:
                if not callable(test) and allowed[test] and following not in seen:
                    seen.add(following)
                    waiting.append(following)
        return frozenset(seen)

    def _state(self, *edges: tuple[Any, int]) -> int:
        if len(self._edges) >= _MOST_STATES:
            raise AdapterError(
                f"the pattern {self._key[:80]!r} in the adapter config is too large to match",
                advice="write it without large counted repeats",
            )
        self._edges.append(list(edges))
        return len(self._edges) - 1

    def _sequence(self, tree: Any, following: int) -> int:
        for code, argument in reversed(list(tree)):
            following = self._one(code, argument, following)
        return following

    def _one(self, code: Any, argument: Any, following: int) -> int:
        if code in {op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN}:
            return self._state((_character_test(code, argument), following))
        if code is op.SUBPATTERN:
            _, add, remove, tree = argument
            if add or remove:
                raise NotRegularError
            return self._sequence(tree, following)
        if code is op.BRANCH:
            return self._state(*((None, self._sequence(tree, following)) for tree in argument[1]))
        if code in {op.MAX_REPEAT, op.MIN_REPEAT}:
            return self._repeat(argument, following)
        if code is op.AT and argument in _ANCHORS:
            return self._state((_ANCHORS[argument], following))
        raise NotRegularError

    def _repeat(self, argument: Any, following: int) -> int:
        least, most, tree = argument
        if most is op.MAXREPEAT:
            loop = self._state((None, following))
            self._edges[loop].append((None, self._sequence(tree, loop)))
            following = loop
        else:
            end = following
            for _ in range(most - least):
                following = self._state((None, end), (None, self._sequence(tree, following)))
        for _ in range(least):
            following = self._sequence(tree, following)
            self._state()  # counts an empty body too, so that (){10**9} ends
        return following


_ANCHORS: Final = {op.AT_BEGINNING: "start", op.AT_BEGINNING_STRING: "start", op.AT_END: "end"}


def _character_test(code: Any, argument: Any) -> Test:
    if code is op.ANY:
        return lambda c: c != "\n"
    if code is not op.IN:
        letter, wanted = chr(argument), code is op.LITERAL
        return lambda c: (c == letter) is wanted
    negate = argument[0][0] is op.NEGATE
    tests = [_set_member(kind, value) for kind, value in argument[negate:]]
    return lambda c: any(test(c) for test in tests) is not negate


def _set_member(kind: Any, value: Any) -> Test:
    if kind is op.LITERAL:
        return lambda c: ord(c) == value
    if kind is op.RANGE:
        return lambda c: value[0] <= ord(c) <= value[1]
    if kind is op.CATEGORY and value in _CATEGORIES:
        return _CATEGORIES[value]
    raise NotRegularError


_CATEGORIES: Final[dict[Any, Test]] = {
    op.CATEGORY_DIGIT: lambda c: c.isdecimal(),
    op.CATEGORY_NOT_DIGIT: lambda c: not c.isdecimal(),
    op.CATEGORY_SPACE: lambda c: c.isspace(),
    op.CATEGORY_NOT_SPACE: lambda c: not c.isspace(),
    op.CATEGORY_WORD: lambda c: c.isalnum() or c == "_",
    op.CATEGORY_NOT_WORD: lambda c: not (c.isalnum() or c == "_"),
}


_LONGEST_NAME: Final = 400  # characters, for the patterns that only `re` can match
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.]+")


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
    return repr(key if len(key) <= 80 else key[:77] + "...")  # a terminal line


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
    return unbounded > 3  # each one is a power of the name's length


def _children(argument: Any) -> Iterable[Any]:
    if isinstance(argument, parser.SubPattern):
        yield argument
    elif isinstance(argument, list | tuple):
        for item in argument:
            yield from _children(item)


_REPEATS: Final = (op.MAX_REPEAT, op.MIN_REPEAT, getattr(op, "POSSESSIVE_REPEAT", None))
