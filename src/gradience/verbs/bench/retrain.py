"""Adapters trained again at lower ranks by the user's own command, each rank judged by the worst of its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gradience.adapters.open import open_adapter
from gradience.errors import AdapterError, GradienceError
from gradience.verbs.audit import audit_adapter
from gradience.verbs.bench.candidates import Making, made
from gradience.verbs.bench.command import run, words
from gradience.verbs.bench.contest import Contest, Entrant, Entry, Options
from gradience.verbs.bench.store import Store


def retrained(
    store: Store, contest: Contest, entry: Entry, *, command: str, ranks: Sequence[str], options: Options
) -> tuple[Entry, list[str]]:
    """The entry with an adapter trained at each rank beside the truncated one of the same rank; and notes.

    Every seed is trained and scored; the seed with the worst score stands for its rank.

    Args:
        store: where the trainings are kept.
        contest: scores them.
        entry: the task, with the adapter first.
        command: trains, with {r}, {seed} and {out} filled in.
        ranks: those asked for; without any, those that the audit suggests.
        options: seeds, and the seconds of one training.

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
            Entrant(f"retrain:{r} seed {seed}", "candidate", _trained(store, command, r, seed, options.timeout))
            for seed in range(options.seed, options.seed + options.seeds)
        ]
        found = contest.scored(entry._replace(entrants=[entry.entrants[0], *seeds]), evaluator)
        means = [found[one.name].mean for one in seeds]
        place = means.index(min(means) if evaluator.higher_is_better else max(means))
        said = ", ".join(f"{mean:.4g}" for mean in means)
        worst.append(Entrant(f"retrain:{r}", "candidate", seeds[place].folder, f"worst of {len(means)} seeds ({said})"))
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
    """The folder of a training, which is run if it is not there; what a failed one left stays beside it."""

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
