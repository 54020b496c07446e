"""Which tokens of a sequence over the length limit a trainer keeps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

from gradience.schema.reports import Overlong


def cut_at(limit: int, mask: Sequence[int] | None, length: int, how: Overlong) -> list[int] | range:
    """The places of the tokens that are kept of a sequence.

    Args:
        limit: the most tokens that are kept.
        mask: 1 for each token of an answer; None if there are only such.
        length: tokens of the sequence.
        how: the end is cut off, the beginning, or a part of each question and answer; of a row that is left out or
            refused, the first tokens are taken.
    """
    if how == "cut_left":
        return range(max(length - limit, 0), length)
    if how != "shared" or mask is None or length <= limit:
        return range(min(length, limit))
    kept: list[int] = []
    for asked, answered in _turns(mask):
        left, right = shares(len(asked), len(answered), limit - len(kept))
        kept += [*asked[:left], *answered[:right]]
    return kept


def shares(asked: int, answered: int, room: int) -> tuple[int, int]:
    """The tokens that LLaMA-Factory 0.9 keeps of a question and of its answer.

    The shorter of the two stays whole if it takes less than half of the room, the answer before the question. Otherwise
    the room is shared in proportion to both.

    >>> shares(150, 29, 64), shares(10, 150, 64), shares(60, 40, 50), shares(5, 5, 64)
    ((35, 29), (10, 54), (30, 20), (5, 5))
    """
    if 2 * answered < room:
        most = room
    elif 2 * asked < room:
        most = room - asked
    else:
        most = int(room * (answered / max(asked + answered, 1)))  # rounded as there
    answer = min(most, answered)
    return min(room - answer, asked), answer


def _turns(mask: Sequence[int]) -> list[tuple[range, range]]:
    """The places of each question, and of the answer after it."""
    runs = [(bit, [i for i, _ in group]) for bit, group in groupby(enumerate(mask), key=itemgetter(1))]
    if runs and runs[0][0]:
        runs.insert(0, (0, []))
    if len(runs) % 2:
        runs.append((1, []))
    return [(_span(asked), _span(answered)) for (_, asked), (_, answered) in zip(runs[::2], runs[1::2], strict=True)]


def _span(places: Sequence[int]) -> range:
    return range(places[0], places[-1] + 1) if places else range(0)
