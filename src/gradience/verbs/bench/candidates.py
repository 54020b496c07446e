"""Candidates of an adapter by their names: how each is made, and in which folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from gradience.adapters.open import open_adapter
from gradience.errors import AdapterError, GradienceError
from gradience.io.paths import PathLike
from gradience.verbs.bench.contest import SHUFFLED, Entrant
from gradience.verbs.bench.judge import BASE
from gradience.verbs.bench.store import Store, adapter_digest, file_hash
from gradience.verbs.resize import resize_adapter

FULL: Final = "full"
ALWAYS: Final = (FULL, BASE, SHUFFLED)
DEFAULT_KL: Final = ("kl:.003", "kl:.01")
_GRAMMAR: Final = "full, base, shuffled, p90, svd:RANK, energy:SHARE, params:N, kl:NATS or adapter:FOLDER"
_TYPES: Final[Mapping[str, Callable[[str], float]]] = {"svd": int, "energy": float, "params": int, "kl": float}
_CRITERIA: Final = {"svd": "rank", "energy": "energy", "params": "max_params", "kl": "kl"}


class Making(NamedTuple):
    """What candidates are made of: the adapter; the base and unlabelled inputs, which `kl:` needs; the seed."""

    adapter: Path
    base: PathLike | None
    calibrate: Path | None
    seed: int


def default_names(adapter: Path, *, calibrated: bool) -> list[str]:
    """The audit's suggestion, a half and a quarter of the rank, and with inputs to calibrate on two sizes by KL."""
    rank = max((module.r for module in open_adapter(adapter)[1].modules), default=1)
    ranks = [k for k in dict.fromkeys((rank // 2, rank // 4)) if k >= 1]
    return ["p90", *(f"svd:{k}" for k in ranks), *(DEFAULT_KL if calibrated else ())]


def made(store: Store, names: Sequence[str], making: Making) -> tuple[list[Entrant], list[str]]:
    """The candidates by those names, beside the three that are always there; and notes on what is left out.

    Raises:
        GradienceError: a name is none that is known, or a candidate cannot be made.
    """
    recipes = [(name, _recipe(name, making)) for name in dict.fromkeys(names) if name not in ALWAYS]
    source = adapter_digest(making.adapter)
    found, notes, seen = [], [], {source: FULL}
    for name, recipe in recipes:
        folder = recipe if isinstance(recipe, Path) else _resized(store, name, recipe, source, making)
        digest = adapter_digest(folder)
        if digest in seen or (not isinstance(recipe, Path) and _is_as_large(folder, making.adapter)):
            notes.append(f"{name} is left out: it is the same adapter as {seen.get(digest, FULL)}")
            continue
        seen[digest] = name
        found.append(Entrant(name, "candidate", folder, _words(name)))
    return found, notes


def _recipe(name: str, making: Making) -> dict[str, Any] | Path:
    """Options of `resize_adapter`, or a folder that is there already."""
    kind, _, value = name.partition(":")
    if name == "p90":
        return {"like_suggested": True}
    if kind == "adapter" and value:
        return Path(value)
    if kind not in _TYPES:
        raise GradienceError(f"{name!r} is no candidate", advice=f"expected {_GRAMMAR}")
    try:
        number = _TYPES[kind](value)
    except ValueError as error:
        raise GradienceError(f"{name!r}: {value!r} is no number", advice=f"expected {_GRAMMAR}") from error
    if kind != "kl":
        return {_CRITERIA[kind]: number}
    if making.calibrate is None or making.base is None:
        raise GradienceError(
            f"{name} needs inputs to calibrate on", advice="give --base and --calibrate TEXTS, other ones than --data"
        )
    return {"kl": number, "base": making.base, "calibrate": making.calibrate, "seed": making.seed}


def _resized(store: Store, name: str, options: dict[str, Any], source: str, making: Making) -> Path:
    how: dict[str, Any] = {"of": source, **{key: str(value) for key, value in options.items()}}
    if making.calibrate is not None and "calibrate" in options:
        how["calibrate"] = file_hash(making.calibrate)

    def make(out: Path) -> None:
        try:
            resize_adapter(making.adapter, out, **options)
        except ValueError as error:
            raise AdapterError(f"{name}: {error}", advice=f"expected {_GRAMMAR}") from error

    return store.made(name, how, make)


def _is_as_large(folder: Path, adapter: Path) -> bool:
    """Whether a cut has left every rank as it was."""
    ranks = [{m.name: m.r for m in open_adapter(place)[1].modules} for place in (folder, adapter)]
    return ranks[0] == ranks[1]


def _words(name: str) -> str:
    kind, _, value = name.partition(":")
    return {
        "p90": "each module at the rank that the audit suggests",
        "svd": f"the best approximation of rank {value}",
        "energy": f"singular values with {value} of the energy",
        "params": f"at most {value} parameters",
        "kl": f"the smallest with measured KL <= {value}",
        "adapter": "as given",
    }[kind]
