"""What batches of sequences cost: padding in random order, and the sequences that packing makes of them."""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Sequence

from gradience.schema.data import Batching


def batching(lengths: Sequence[int], *, per_batch: int, batch_size: int, max_length: int | None, seed: int) -> Batching:
    """Padding and packing of sequences that are cut already.

    Args:
        lengths: tokens of each sequence.
        per_batch: sequences of a batch: twice the rows where a row is a pair.
        batch_size: rows of a batch, for the report.
        max_length: tokens of a packed sequence; None: packing is not counted.
        seed: of the order.
    """
    total = sum(lengths)
    order = list(lengths)
    random.Random(seed).shuffle(order)  # noqa: S311  # an order of rows, not a secret
    room = sum(max(order[i : i + per_batch]) * len(order[i : i + per_batch]) for i in range(0, len(order), per_batch))
    packed = None if max_length is None or not total else packed_count(lengths, max_length)
    return Batching(
        batch_size=batch_size,
        padding_share=1.0 - total / room if room else None,
        packed_sequences=packed,
        packed_padding_share=None if not packed or max_length is None else max(0.0, 1 - total / (packed * max_length)),
    )


def packed_count(lengths: Sequence[int], room: int) -> int:
    """Bins of `room` tokens that best-fit decreasing fills, as `trl.pack_dataset(strategy="bfd")` does."""
    free: list[int] = []  # spaces that a bin has left, each once
    bins_with: Counter[int] = Counter()
    bins = 0
    for length in sorted((min(length, room) for length in lengths if length), reverse=True):
        place = bisect_left(free, length)
        if place == len(free):
            bins += 1
            left = room - length
        else:
            space = free[place]
            bins_with[space] -= 1
            if not bins_with[space]:
                del free[place]
            left = space - length
        if left:
            if not bins_with[left]:
                insort(free, left)
            bins_with[left] += 1
    return bins
