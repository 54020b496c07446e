"""The mutants of a mutation run: operators on the AST, each a small edit of the text, and a balanced sample of mutants.

The operators change numbers (by a tenth, or by one), comparisons, signs, `and`, `or` and `not`, guards and choices
(never or always taken), filters, flags, `min` and `max`, and the numbers and units in messages. Annotations,
decorators, docstrings and the text of the schema are not changed.
"""

from __future__ import annotations

import ast
import itertools
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

SMALL: Final = 20  # whole numbers from here on change by a tenth, smaller ones by one

_BOUND: Final = {ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Lt: ("<", "<="), ast.LtE: ("<=", "<")}
_EQUALITY: Final = {ast.Eq: ("==", "!="), ast.NotEq: ("!=", "==")}
_SIGN: Final = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*")}
_EXTREME: Final = {"min": "max", "any": "all", "minimum": "maximum", "argmin": "argmax", "floor": "ceil"}
_SWAPPED: Final = _EXTREME | {new: old for old, new in _EXTREME.items()}
_TYPES: Final = {"Annotated", "Literal", "Meta", "TypeVar"}  # read by msgspec and by type checkers
_TEXT: Final = (ast.JoinedStr, ast.List, ast.Tuple, ast.ListComp)
_LEAVES: Final = (ast.Return, ast.Raise, ast.Continue, ast.Break)
_FIELD: Final = re.compile(rb"(?<!\{)\{(?P<shown>[^{}:!]+)(?P<spec>:[^{}]*?(?P<type>[fgde%]))?\}")
_DIGITS: Final = re.compile(rb"(?<![\w.{:\\])\d+(?![\w}])")

Span = tuple[int, int]
Edit = tuple[str, Span, str]  # kind, first and last byte, new text


@dataclass(frozen=True)
class Mutant:
    """One edit of one file, from `old` to `new` at byte `start`, with the data by which its tests are found."""

    path: str  # relative to src/gradience
    room: str
    function: str  # qualified inside its module; at the module's level the name that is bound
    kind: str
    line: int
    start: int
    old: str
    new: str
    before: str  # the whole line before and after, with single spaces
    after: str
    covered: Span  # lines whose tests may notice
    names: tuple[str, ...]  # defined here at import, for code that runs before any test

    def applied(self, text: bytes) -> bytes:
        """Return the file's text after the edit."""
        return text[: self.start] + self.new.encode() + text[self.start + len(self.old.encode()) :]


class _Place(NamedTuple):
    function: str = ""
    lines: Span | None = None  # None: those of each statement itself
    names: tuple[str, ...] = ()


class _File:
    def __init__(self, room: str, path: str, text: bytes) -> None:
        self._room, self._path, self._text = room, path, text
        self._starts = [0, *itertools.accumulate(len(line) + 1 for line in text.split(b"\n"))]

    def mutants(self) -> Iterator[Mutant]:
        """Yield the mutants of the file from top to bottom."""
        for statement in ast.parse(self._text).body:
            names = defined(statement)
            is_definition = isinstance(statement, ast.FunctionDef | ast.ClassDef)
            yield from self._statement(statement, _Place("" if is_definition else ", ".join(names), names=names))

    def _statement(self, node: ast.stmt, place: _Place) -> Iterator[Mutant]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from self._definition(node, place)
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            here = place if place.lines else place._replace(lines=_own_lines(node))
            yield from self._mutants(self._of_statement(node), here)
            for part in _parts(node):
                if isinstance(part, ast.stmt):
                    yield from self._statement(part, place)
                else:
                    yield from self._mutants(self._of_expression(part), here)

    def _definition(self, node: ast.FunctionDef | ast.ClassDef, place: _Place) -> Iterator[Mutant]:
        """Yield the edits of a body, and of a class's fields and a function's defaults, which are set at import.

        Any caller sees the defaults, so tests that reach any line of the definition count for them.
        """
        inside = _Place(f"{place.function}.{node.name}".lstrip("."))
        at_import = inside._replace(lines=(node.lineno, node.end_lineno or node.lineno), names=place.names)
        if isinstance(node, ast.FunctionDef):
            for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
                yield from self._mutants(self._of_expression(default), at_import)
        for child in node.body:
            is_field = isinstance(node, ast.ClassDef) and not isinstance(child, ast.FunctionDef)
            yield from self._statement(child, at_import if is_field else inside)

    def _mutants(self, edits: Iterable[Edit], place: _Place) -> Iterator[Mutant]:
        for kind, (start, end), new in edits:
            line = self._text.count(b"\n", 0, start) + 1
            first, last = self._starts[line - 1], self._text.find(b"\n", end)
            head, old, tail = (self._text[a:b].decode() for a, b in ((first, start), (start, end), (end, last)))
            before, after = (" ".join(f"{head}{middle}{tail}".split()) for middle in (old, new))
            at = (self._path, self._room, place.function, kind, line, start)
            yield Mutant(*at, old, new, before, after, place.lines or (line, line), place.names)

    def _span(self, node: Any) -> Span:
        start, end = self._starts[node.lineno - 1], self._starts[node.end_lineno - 1]
        return start + node.col_offset, end + node.end_col_offset

    def _between(self, kind: str, left: ast.AST, right: ast.AST, swap: tuple[str, str]) -> Iterator[Edit]:
        """Yield the edit of the operator between two operands."""
        start = self._text.find(swap[0].encode(), self._span(left)[1], self._span(right)[0])
        if start >= 0:
            yield kind, (start, start + len(swap[0])), swap[1]

    def _forced(self, kind: str, test: ast.AST, *ends: str) -> Iterator[Edit]:
        """Yield edits that make a test always or never true. The test still runs, so names that it binds stay bound."""
        start, end = self._span(test)
        yield from ((kind, (start, end), f"({self._text[start:end].decode()}) {word}") for word in ends)

    def _of_statement(self, node: ast.stmt) -> Iterator[Edit]:
        if isinstance(node, ast.If) and not node.orelse and isinstance(node.body[-1], _LEAVES):
            yield from self._forced("guard", node.test, "and False", "or True")
        elif isinstance(node, ast.AugAssign) and type(node.op) in _SIGN:
            old, new = _SIGN[type(node.op)]
            yield from self._between("sign", node.target, node.value, (f"{old}=", f"{new}="))

    def _of_expression(self, node: ast.AST, parent: ast.AST | None = None) -> Iterator[Edit]:
        """Yield the edits of an expression and of its parts."""
        if isinstance(node, ast.JoinedStr):  # positions inside are not reliable before Python 3.12
            yield from self._of_message(*self._span(node))
        elif not _is_type(node):
            yield from self._of_operator(node)
            yield from self._of_value(node, parent)
            for child in ast.iter_child_nodes(node):
                if not (_is_reshape(node) and isinstance(child, ast.UnaryOp)):  # NumPy reads any negative size as -1
                    yield from self._of_expression(child, node)

    def _of_operator(self, node: ast.AST) -> Iterator[Edit]:
        match node:
            case ast.Compare(left=left, ops=ops, comparators=others):
                for op, a, b in zip(ops, (left, *others), others, strict=False):
                    for kind, table in (("bound", _BOUND), ("equality", _EQUALITY)):
                        if type(op) in table:
                            yield from self._between(kind, a, b, table[type(op)])
            case ast.BoolOp(op=op, values=values):
                swap = ("and", "or") if isinstance(op, ast.And) else ("or", "and")
                for a, b in itertools.pairwise(values):
                    yield from self._between("logic", a, b, swap)
            case ast.BinOp(op=op, left=a, right=b) if type(op) in _SIGN and not (_is_text(a) or _is_text(b)):
                yield from self._between("sign", a, b, _SIGN[type(op)])
            case ast.UnaryOp(op=ast.Not() | ast.USub() as op):
                start, kind = self._span(node)[0], "logic" if isinstance(op, ast.Not) else "sign"
                yield kind, (start, start + (4 if kind == "logic" else 1)), ""

    def _of_value(self, node: ast.AST, parent: ast.AST | None) -> Iterator[Edit]:
        match node:
            case ast.Constant(value=bool() as value):
                if parent is None or (isinstance(parent, ast.keyword) and parent.arg != "strict"):
                    yield "flag", self._span(node), str(not value)
            case ast.Constant(value=int() | float() as number):
                yield from ((kind, self._span(node), new) for kind, new in _moved(number, parent))
            case ast.IfExp(test=test):
                yield from self._forced("choice", test, "and False", "or True")
            case ast.comprehension(ifs=ifs):
                for test in ifs:
                    yield from self._forced("filter", test, "or True")
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name) as called) if name in _SWAPPED:
                end = self._span(called)[1]
                yield "extreme", (end - len(name), end), _SWAPPED[name]

    def _of_message(self, start: int, end: int) -> Iterator[Edit]:
        """Yield the edits of an f-string: a number that it shows, the number's unit, and a number in its own text."""
        text = self._text[start:end]
        for field in _FIELD.finditer(text):
            first, last = (start + at for at in field.span("shown"))
            if field["spec"] or field["shown"].startswith(b"len("):
                yield "message", (first, last), f"{field['shown'].decode()} + 1"
            if field["type"] == b"%":
                yield "unit", (start + field.start("type"), start + field.end("type")), "f"
        for digits in _DIGITS.finditer(text):
            yield "message", (start + digits.start(), start + digits.end()), str(int(digits[0]) + 1)


def _moved(number: float, parent: ast.AST | None) -> Iterator[tuple[str, str]]:
    is_axis = isinstance(parent, ast.keyword) and parent.arg in {"axis", "axes", "dim"}
    kind = "index" if is_axis or isinstance(parent, ast.Subscript | ast.Slice | ast.UnaryOp) else "number"
    if number in {100, 0.01}:
        yield "unit", repr(type(number)(1))
    if isinstance(number, int):
        step = number // 10 if number >= SMALL else 1
        yield from ((kind, str(number + by)) for by in (step, -step))
        return
    moved = (number * 1.1, number * 0.9) if number else (0.1,)
    yield from ((kind, repr(float(f"{value:.12g}"))) for value in moved)


def _is_type(node: ast.AST) -> bool:
    named = node.value if isinstance(node, ast.Subscript) else node.func if isinstance(node, ast.Call) else None
    return isinstance(named, ast.Name) and named.id in _TYPES


def _is_reshape(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "reshape"


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, _TEXT) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))


def _parts(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the parts of a statement, including its handlers and cases, without its annotation."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ExceptHandler | ast.match_case | ast.withitem):
            yield from _parts(child)
        elif child is not getattr(node, "annotation", None):
            yield child


def _own_lines(node: ast.stmt) -> Span:
    body = getattr(node, "body", None)
    return node.lineno, max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or node.lineno


def defined(node: ast.stmt) -> tuple[str, ...]:
    """Return the names that a statement binds: a function's, a class's, or the targets'."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return (node.name,)
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return tuple(name.id for target in targets if target for name in ast.walk(target) if isinstance(name, ast.Name))


def all_mutants(files: Iterable[tuple[str, str, bytes]]) -> list[Mutant]:
    """Return every mutant of the files (room, path and text of each), in the order of the source."""
    return [mutant for file in files for mutant in _File(*file).mutants()]


def sample(mutants: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """Return `count` mutants, equally many from each room, with its kinds in turn. One seed gives one sample."""
    chance = random.Random(seed)  # noqa: S311  # a sample, not a secret
    rooms: dict[str, dict[str, list[Mutant]]] = defaultdict(lambda: defaultdict(list))
    for mutant in mutants:
        rooms[mutant.room][mutant.kind].append(mutant)
    for found in (found for kinds in rooms.values() for found in kinds.values()):
        chance.shuffle(found)
    queues = (
        (mutant for turn in itertools.zip_longest(*kinds.values()) for mutant in turn if mutant)
        for kinds in rooms.values()
    )
    return list(itertools.islice((m for turn in itertools.zip_longest(*queues) for m in turn if m), count))
