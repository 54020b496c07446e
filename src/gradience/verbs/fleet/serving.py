"""What a multi-LoRA server wastes on padding: each adapter takes the room of the server's maximal rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final, NamedTuple

from gradience.rules.config.serving import RANKS
from gradience.schema.fleet import RankBuckets, Serving

_VLLM: Final = next(sizes for sizes in RANKS if sizes.engine == "vllm")
room_for: Final = _VLLM.room_for
"""The least max_lora_rank that holds a rank; None above all."""
_BYTES: Final = 2  # of a number: servers hold adapters in 16 bits
_MOST_BUCKETS: Final = 3


class Load(NamedTuple):
    """Adapters of one rank: how many, the sum over their modules of rows + columns, and of r (rows + columns)."""

    adapters: int
    width: int
    used: int


def serving(base: str, loads: Mapping[int, Load]) -> Serving:
    """What one base's adapters take on a server, by their largest rank, and the splits that waste least."""
    served = {rank: load for rank, load in loads.items() if room_for(rank) is not None}
    largest = room_for(max(loads, default=0))
    used = sum(load.used for load in served.values()) * _BYTES
    splits = [
        best_split(served, parts) for parts in range(1, min(_MOST_BUCKETS, len({room_for(r) for r in served})) + 1)
    ]
    return Serving(
        base_model=base,
        adapters=sum(load.adapters for load in loads.values()),
        ranks={str(rank): load.adapters for rank, load in sorted(loads.items())},
        max_lora_rank=largest,
        used_bytes=used,
        padding_bytes=splits[0].padding_bytes if splits else 0,
        buckets=splits,
    )


def padding(load: Load, size: int) -> int:
    """Bytes of zeros beside the factors of these adapters on a server of that size."""
    return (load.width * size - load.used) * _BYTES


def best_split(loads: Mapping[int, Load], parts: int) -> RankBuckets:
    """The sizes of that many servers that waste least, each adapter on the smallest that holds it."""
    ranks = sorted(loads)

    @cache
    def best(start: int, left: int) -> tuple[int, tuple[int, ...]]:
        """The least padding of the ranks from `start` on, and the ends of their groups."""
        if left == 1 or start == len(ranks) - 1:
            return _cost(loads, ranks[start:]), (len(ranks),)
        options: list[tuple[int, tuple[int, ...]]] = [(_cost(loads, ranks[start:]), (len(ranks),))]
        for end in range(start + 1, len(ranks)):
            rest, ends = best(end, left - 1)
            options.append((_cost(loads, ranks[start:end]) + rest, (end, *ends)))
        return min(options)

    total, ends = best(0, parts)
    groups = [ranks[start:end] for start, end in zip((0, *ends), ends, strict=False)]
    return RankBuckets(
        max_lora_ranks=[room_for(group[-1]) or 0 for group in groups],
        adapters=[sum(loads[rank].adapters for rank in group) for group in groups],
        padding_bytes=total,
    )


def _cost(loads: Mapping[int, Load], ranks: Sequence[int]) -> int:
    size = room_for(ranks[-1]) or 0
    return sum(padding(loads[rank], size) for rank in ranks)
