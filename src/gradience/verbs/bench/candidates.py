"""Make the candidates of a bench by their names: resized copies of an adapter, and on request retrained adapters.

Each candidate is kept in a folder of the trial's store and is not made again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from gradience.adapters.open import open_adapter
from gradience.errors import AdapterError, GradienceError
from gradience.io import PathLike
from gradience.verbs.audit import audit_adapter
from gradience.verbs.bench.contest import SHUFFLED, Contest, Entry, Options
from gradience.verbs.bench.evaluators import run, words
from gradience.verbs.bench.judge import BASE, Contender
from gradience.verbs.bench.store import Store, adapter_digest, file_hash, refusing
from gradience.verbs.resize import resize_adapter

FULL: Final = "full"
ALWAYS: Final = (FULL, BASE, SHUFFLED)
DEFAULT_KL: Final = ("kl:.003", "kl:.01")
_GRAMMAR: Final = "full, base, shuffled, p90, svd:RANK, energy:SHARE, params:N, kl:NATS or adapter:FOLDER"
_TYPES: Final[Mapping[str, Callable[[str], float]]] = {"svd": int, "energy": float, "params": int, "kl": float}
_CRITERIA: Final = {"svd": "rank", "energy": "energy", "params": "max_params", "kl": "kl"}


class Making(NamedTuple):
    """The inputs for making candidates. `kl:` candidates also need `base`, and `calibrate` with unlabelled inputs."""

    adapter: Path
    base: PathLike | None
    calibrate: Path | None
    seed: int


def default_names(adapter: Path, *, calibrated: bool) -> list[str]:
    """The default candidates: the audit's suggestion, 1/2 and 1/4 of the rank, and two limits of KL if calibrated."""
    rank = max((module.r for module in open_adapter(adapter)[1].modules), default=1)
    ranks = [k for k in dict.fromkeys((rank // 2, rank // 4)) if k >= 1]
    return ["p90", *(f"svd:{k}" for k in ranks), *(DEFAULT_KL if calibrated else ())]


def made(store: Store, names: Sequence[str], making: Making) -> tuple[list[Contender], list[str]]:
    """Make the candidates with these names, without the three that every bench has, and return them.

    The second result are notes on candidates that are left out because they equal another.

    Raises:
        GradienceError: a name is not known, or a candidate cannot be made.
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
        found.append(Contender(name, "candidate", folder, _words(name)))
    return found, notes


def _recipe(name: str, making: Making) -> dict[str, Any] | Path:
    """The options of `resize_adapter` for a candidate's name, or the adapter's folder that the name gives."""
    kind, _, value = name.partition(":")
    if name == "p90":
        return {"like_suggested": True}
    if kind == "adapter" and value:
        return Path(value)
    if kind not in _TYPES:
        raise GradienceError(f"{name!r} is not a candidate", advice=f"expected {_GRAMMAR}")
    try:
        number = _TYPES[kind](value)
    except ValueError as error:
        raise GradienceError(f"{name!r}: {value!r} is not a number", advice=f"expected {_GRAMMAR}") from error
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
        with refusing(name, f"expected {_GRAMMAR}"):
            resize_adapter(making.adapter, out, **options)

    return store.made(name, how, make)


def _is_as_large(folder: Path, adapter: Path) -> bool:
    """Whether the candidate in `folder` has the same ranks as the adapter."""
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


def retrained(
    store: Store, contest: Contest, entry: Entry, *, command: str, ranks: Sequence[str], options: Options
) -> tuple[Entry, list[str]]:
    """Add to the entry, for each rank, a retrained adapter and the truncated one; return the entry and notes.

    Every seed is trained and scored. The seed with the worst score represents its rank.

    Args:
        store: keeps the trained adapters.
        contest: scores the trained adapters.
        entry: the task, with the adapter first.
        command: the training command, in which {r}, {seed} and {out} are filled in.
        ranks: the ranks; if empty, those that the audit suggests.
        options: the seeds, and the time limit of one training in seconds.

    Raises:
        GradienceError: the command fails, or leaves no adapter in {out}.
    """
    words(command, {}, required="out")
    adapter = entry.entrants[0].folder
    chosen = _ranks(adapter, ranks)
    names = {one.name for one in entry.entrants}
    truncated, notes = made(
        store,
        [f"svd:{r}" for r in chosen if f"svd:{r}" not in names],
        Making(adapter, options.base, None, options.seed),
    )
    evaluator = contest.evaluator(entry.data)
    worst = []
    for r in chosen:
        seeds = [
            Contender(f"retrain:{r} seed {seed}", "candidate", _trained(store, command, r, seed, options.timeout))
            for seed in range(options.seed, options.seed + options.seeds)
        ]
        found = contest.scored(entry._replace(entrants=[entry.entrants[0], *seeds]), evaluator)
        means = [found[one.name].mean for one in seeds]
        place = means.index(min(means) if evaluator.higher_is_better else max(means))
        said = ", ".join(f"{mean:.4g}" for mean in means)
        worst.append(
            Contender(f"retrain:{r}", "candidate", seeds[place].folder, f"worst of {len(means)} seeds ({said})")
        )
    entrants = [*entry.entrants, *truncated, *worst]
    return entry._replace(entrants=entrants), notes


def _ranks(adapter: Path, asked: Sequence[str]) -> list[int]:
    if asked:
        try:
            ranks = [int(text) for text in asked]
        except ValueError as error:
            raise GradienceError(f"retrain:{asked[0]}: expected a rank", advice="such as retrain:8") from error
        return list(dict.fromkeys(ranks))
    suggested = audit_adapter(adapter).suggested
    found = sorted({item.rank for item in suggested.values()}, reverse=True)
    if not found:
        raise AdapterError("the audit suggests no rank for this adapter", advice="name one: --candidates retrain:8")
    return found


def _trained(store: Store, command: str, rank: int, seed: int, timeout: float) -> Path:
    """The folder of a trained adapter. If it is missing, the training is run.

    A failed training leaves its files in a folder whose name ends in `.unfinished`.
    """

    def make(out: Path) -> None:
        draft = out.with_name(f"{out.name}.unfinished")
        draft.mkdir(parents=True, exist_ok=True)
        argv = words(command, {"r": str(rank), "seed": str(seed), "out": str(draft.resolve())}, required="out")
        run(argv, timeout=timeout)
        try:
            open_adapter(draft)
        except AdapterError as error:
            raise AdapterError(
                f"the training of rank {rank}, seed {seed} left no adapter: {error}", advice="save it in {out}"
            ) from error
        draft.rename(out)

    return store.made(f"retrain-{rank}-{seed}", {"command": command, "r": rank, "seed": seed}, make)
