"""One test for a table of cases, where each case is a look-up: a test of its own costs 4 ms beside it.

A case that fails does not end the test. Each failure is reported with the values of its case.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import pytest

__all__ = ["SLOW", "every", "few", "grid", "met", "once"]

SLOW = bool(os.environ.get("GRADIENCE_SLOW"))

Case = type(pytest.param())


def met(*axes: Iterable[Any], each: int) -> list[tuple[Any, ...]]:
    """The cells of a grid, one of so many along each axis; all of them with GRADIENCE_SLOW=1.

    Of three axes of at least `each` values, any two values of two axes still meet.
    """
    cells = itertools.product(*(enumerate(axis) for axis in axes))
    return [tuple(value for _, value in cell) for cell in cells if SLOW or sum(place for place, _ in cell) % each == 0]


def few(cases: Iterable[Any], *, each: int) -> list[Any]:
    """One of so many cases of a dear law; all of them with GRADIENCE_SLOW=1."""
    return list(cases)[:: 1 if SLOW else each]


def once(**axes: Iterable[Any]) -> pytest.MarkDecorator:
    """`parametrize` for a grid of dear cells, of which the usual run takes so few that each value of each axis is met.

    Cell n has the n-th value of each axis, which begins anew where it ends. With GRADIENCE_SLOW=1 all cells are run.
    """
    values = [list(axis) for axis in axes.values()]
    row = range(max(map(len, values)))
    cells = [tuple(axis[n % len(axis)] for axis in values) for n in row]
    return pytest.mark.parametrize(tuple(axes), list(itertools.product(*values)) if SLOW else cells)


def grid(*, each: int, **axes: Iterable[Any]) -> pytest.MarkDecorator:
    """`parametrize` for the cells of a grid that `met` gives, by the names of its axes."""
    return pytest.mark.parametrize(tuple(axes), met(*axes.values(), each=each))


def every(names: str | tuple[str, ...], cases: Iterable[Any], *, ids: Any = None) -> Callable[..., Any]:
    """Make one test that runs the body for every case, in the form of `pytest.mark.parametrize`.

    Fixtures are made once for all cases. But what a case changed by `monkeypatch` is undone before the next case, what
    it left in `capsys` is dropped, and its `tmp_path` is a folder of its own.
    """
    words = tuple(name.strip() for name in names.split(",")) if isinstance(names, str) else names
    table = list(cases)
    alone = isinstance(names, str) and len(words) == 1
    rows = [case.values if isinstance(case, Case) else (case,) if alone else tuple(case) for case in table]
    assert rows, "a table without cases shows nothing"
    titles = (
        [getattr(case, "id", None) or "" for case in table]
        if ids is None
        else list(map(ids, table) if callable(ids) else ids)
    )

    def decorated(test: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(test)
        assert set(words) <= set(signature.parameters), (words, test.__name__)

        @functools.wraps(test)
        def whole(**fixtures: Any) -> None:
            failures = []
            for number, (title, row) in enumerate(zip(titles, rows, strict=True)):
                values = dict(zip(words, row, strict=True))
                try:
                    _one(test, fixtures, values, number)
                except (Exception, pytest.fail.Exception) as failure:  # noqa: BLE001  # it is raised below
                    failure.add_note(f"case {number}{title and f' ({title})'}: {values}")
                    failures.append(failure)
            if failures:
                said = "".join(f"\n  {note}" for failure in failures for note in failure.__notes__)
                raise BaseExceptionGroup(f"{len(failures)} of {len(rows)} cases failed:{said}", failures)

        del whole.__wrapped__  # pytest would ask for the table's names as fixtures
        left = [one for name, one in signature.parameters.items() if name not in words]
        whole.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
        return whole

    return decorated


def _one(test: Callable[..., None], fixtures: Mapping[str, Any], values: dict[str, Any], number: int) -> None:
    own = dict(fixtures)
    with ExitStack() as stack:
        if "monkeypatch" in own:
            own["monkeypatch"] = stack.enter_context(pytest.MonkeyPatch.context())
        if "capsys" in own:
            stack.callback(own["capsys"].readouterr)
        if "tmp_path" in own:
            own["tmp_path"] /= str(number)
            own["tmp_path"].mkdir()
        test(**own, **values)
