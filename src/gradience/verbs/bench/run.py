"""The verbs `bench` and `bench merge`: compare candidates with an adapter on held-out data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final

from gradience.adapters.open import open_adapter
from gradience.errors import AdapterError, GradienceError
from gradience.io import PathLike, Progress
from gradience.io.programs import run, words
from gradience.io.reading import real_path
from gradience.rewriting.sides import open_sides
from gradience.schema.compare import BenchReport
from gradience.schema.merge import MergeMethod
from gradience.verbs.audit.run import audit_adapter
from gradience.verbs.bench.contest import (
    FULL,
    Contest,
    Entry,
    Making,
    anchors,
    default_names,
    made,
    require_packages,
    scaled,
)
from gradience.verbs.bench.evaluators import digest_of_command
from gradience.verbs.bench.judge import BASE, Contender
from gradience.verbs.bench.options import BenchOptions
from gradience.verbs.bench.store import BenchStore, adapter_digest, file_hash, opened_store, refusing
from gradience.verbs.merge.methods import weights_of
from gradience.verbs.merge.run import merge_adapters

_DEFAULTS: Final = BenchOptions()

METHODS: Final[tuple[MergeMethod, ...]] = ("linear", "svd", "ties")
_DENSITY: Final = 0.5  # DARE has no default density; this is its paper's least for adapters of one base


def bench_adapter(
    path: PathLike,
    out: PathLike,
    *,
    data: PathLike | None = None,
    candidates: Sequence[str] | None = None,
    calibration_data: PathLike | None = None,
    retrain: str | None = None,
    options: BenchOptions = _DEFAULTS,
    progress: Progress | None = None,
) -> BenchReport:
    """Score an adapter, smaller versions of it and two anchors on held-out data.

    Always scored are `full` (the adapter), `base` (its update zero) and `shuffled` (its update permuted: the same
    norms, no information). Folders and evaluations stay in `out`, so a run that was killed goes on where it stopped.

    Args:
        path: the folder that PEFT saved. It is not changed.
        out: a folder for candidates, evaluations and the report; it may be that of an earlier run.
        data: JSONL with an example on each line: text, prompt and completion, messages, or text and label.
        candidates: `svd:RANK`, `p90`, `energy:SHARE`, `params:N`, `kl:NATS` or `adapter:FOLDER`.
        calibration_data: inputs without labels for `kl:`, other than the data.
        retrain: a command that trains an adapter of rank {r} with seed {seed} into the folder {out}.
        options: base, metric, tolerance, seeds and limits.
        progress: called with (evaluations done, evaluations in all, the current one).

    Raises:
        GradienceError: an input cannot be used, or an evaluation fails; earlier evaluations are kept.
    """
    adapter, rows = Path(path), None if data is None else Path(data)
    inputs = None if calibration_data is None else Path(calibration_data)
    if rows is not None and inputs is not None and file_hash(rows) == file_hash(inputs):
        raise GradienceError(
            f"{inputs} is what candidates are judged by: chosen on it, they would look better than they are",
            advice="give other rows to --calibration-data",
        )
    require_packages(options)
    with opened_store(Path(out), [adapter, *(file for file in (rows, inputs) if file is not None)]) as store:
        contest = Contest(store, options, adapter, progress)
        contest.evaluator(rows)  # raises before any work if something is missing
        making = Making(adapter, options.base, inputs, options.seed)
        names = candidates if candidates is not None else default_names(adapter, calibrated=inputs is not None)
        plain = [name for name in names if not name.startswith("retrain:")]
        smaller, notes = made(store, plain, making)
        entrants = [Contender(FULL, "reference", adapter, "the adapter as given"), *smaller]
        entrants += anchors(store, adapter, seed=options.seed)
        entry = Entry("held-out", rows, entrants)
        if retrain is not None:
            ranks = [name.removeprefix("retrain:") for name in names if name.startswith("retrain:")]
            entry, more = retrained(store, contest, entry, command=retrain, ranks=ranks, options=options)
            notes += more
        return contest.report("resize", [entry], [path], notes)


def retrained(
    store: BenchStore, contest: Contest, entry: Entry, *, command: str, ranks: Sequence[str], options: BenchOptions
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
        evaluations = contest.scored(entry._replace(entrants=[entry.entrants[0], *seeds]), evaluator)
        means = [evaluations[one.name].mean for one in seeds]
        place = means.index(min(means) if evaluator.higher_is_better else max(means))
        each = ", ".join(f"{mean:.4g}" for mean in means)
        worst.append(
            Contender(f"retrain:{r}", "candidate", seeds[place].folder, f"worst of {len(means)} seeds ({each})")
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
    ranks = sorted({item.rank for item in suggested.values()}, reverse=True)
    if not ranks:
        raise AdapterError("the audit suggests no rank for this adapter", advice="name one: --candidates retrain:8")
    return ranks


def _trained(store: BenchStore, command: str, rank: int, seed: int, timeout: float) -> Path:
    """The folder of a trained adapter. If it is missing, the training is run.

    A failed training leaves its files in a folder whose name ends in `.unfinished`.
    """

    def make(out: Path) -> None:
        # A new one each time: an adapter that a failed training left is not taken for this one's.
        drafts = (out.with_name(f"{out.name}.{number}.unfinished") for number in count(1))
        draft = next(folder for folder in drafts if not folder.exists())
        draft.mkdir(parents=True)
        argv = words(command, {"r": str(rank), "seed": str(seed), "out": str(real_path(draft))}, required="out")
        run(argv, timeout=timeout)
        try:
            open_adapter(draft)
        except AdapterError as error:
            raise AdapterError(
                f"the training of rank {rank}, seed {seed} left no adapter: {error.message}", advice="save it in {out}"
            ) from error
        draft.rename(out)

    return store.made(f"retrain-{rank}-{seed}", {"command": digest_of_command(command), "r": rank, "seed": seed}, make)


def bench_merge(
    paths: Sequence[PathLike],
    out: PathLike,
    *,
    data: Sequence[PathLike] = (),
    methods: Sequence[MergeMethod] = METHODS,
    weights: Sequence[Sequence[float] | None] = (None,),
    density: float | None = None,
    options: BenchOptions = _DEFAULTS,
    progress: Progress | None = None,
) -> BenchReport:
    """Score merges of adapters on each adapter's own data, and compare them with that adapter alone.

    Beside the merges, each adapter is scored alone at its weight in them: what it loses is dilution, and the rest of a
    merge's loss is by the other adapters and the method. A merge holds if it holds on the data of all adapters. If
    adapters have their own heads, each data set is scored with its adapter's head.

    Args:
        paths: two adapters or more, of one base. They are not changed.
        out: a folder for merges, evaluations and the report; it may be that of an earlier run.
        data: one file for each adapter, in their order; an evaluator with its own data needs none.
        methods: methods of `merge_adapters`.
        weights: each list has one number per adapter; None is the method's default.
        density: the share of entries that TIES and DARE keep; without it 0.2 and 0.5.
        options: base, metric, tolerance, seeds and limits.
        progress: called with (evaluations done, evaluations in all, the current one).

    Raises:
        GradienceError: the adapters cannot be merged, or an evaluation fails; earlier evaluations are kept.
    """
    require_packages(options)
    sides = open_sides(paths)
    if data and len(data) != len(sides):
        raise GradienceError(f"{len(data)} data files for {len(sides)} adapters", advice="give one for each, in order")
    rows: list[Path | None] = [*map(Path, data)] or [None] * len(sides)
    own_heads = any("full_module" in side.adapter.roles.values() for side in sides)
    with opened_store(Path(out), [*map(Path, paths), *map(Path, data or ())]) as store:
        contest = Contest(store, options, sides[0].path, progress)
        for file in rows:
            contest.evaluator(file)  # raises before any work if something is missing
        recipes = {
            _name(method, some): _recipe(method, some, density, options.seed) for method in methods for some in weights
        }
        parts = {name: weights_of(len(sides), recipe["weights"], recipe["method"]) for name, recipe in recipes.items()}
        entries = []
        for place, (side, file) in enumerate(zip(sides, rows, strict=True)):
            heads = side.name if own_heads else None
            merges = [
                Contender(name, "candidate", _merged(store, name, paths, recipe, heads), _words(recipe))
                for name, recipe in recipes.items()
            ]
            own = Contender(f"{side.name} alone", "reference", side.path, "the adapter as given")
            diluted = _at_weights(store, side.path, {part[place] for part in parts.values()})
            named = {0.0: BASE, 1.0: own.name, **{weight: one.name for weight, one in diluted.items()}}
            entrants = [own, *merges, *diluted.values(), *anchors(store, side.path, seed=options.seed)]
            alone = {name: named[part[place]] for name, part in parts.items()}
            entries.append(Entry(side.name, file, entrants, alone=alone))
        return contest.report("merge", entries, paths, [])


def _at_weights(store: BenchStore, adapter: Path, weights: Iterable[float]) -> dict[float, Contender]:
    """The adapter alone at each weight, as anchors; without 0 and 1, at which it is the base and itself."""
    return {
        weight: Contender(f"alone:{weight:g}", "anchor", scaled(store, adapter, weight), "alone at its merge weight")
        for weight in sorted(weights)
        if weight not in {0.0, 1.0}
    }


def _name(method: str, weights: Sequence[float] | None) -> str:
    return method if weights is None else f"{method}:{','.join(f'{w:g}' for w in weights)}"


def _recipe(method: MergeMethod, weights: Sequence[float] | None, density: float | None, seed: int) -> dict[str, Any]:
    if method.startswith("dare"):
        density = density or _DENSITY
    elif method != "ties":
        density = None
    return {"method": method, "weights": weights and list(weights), "density": density, "seed": seed}


def _words(recipe: dict[str, Any]) -> str:
    density = f", density {recipe['density']:g}" if recipe["density"] else ""
    return f"merged by {recipe['method']}{density}"


def _merged(store: BenchStore, name: str, paths: Sequence[PathLike], recipe: dict[str, Any], heads: str | None) -> Path:
    how = {"of": [adapter_digest(Path(path)) for path in paths], "heads": heads, **recipe}

    def make(out: Path) -> None:
        with refusing(name, "see 'gradience merge --help'"):
            merge_adapters(paths, out, heads_from=heads, force_mix=True, **recipe)

    return store.made(name if heads is None else f"{name}-{heads}", how, make)
