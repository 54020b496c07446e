"""A regular expression as a finite automaton: boolean matching in time linear in the text."""

from __future__ import annotations

import re
import re._constants as op  # type: ignore[import-not-found]  # the parser has no public name
import re._parser as parser  # type: ignore[import-not-found]
from collections.abc import Callable
from typing import Any, Final

from gradience.errors import AdapterError

__all__ = ["Automaton", "NotRegularError"]

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
