"""The verbs `bench` and `bench merge`: compare candidates with an adapter on held-out data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from gradience.errors import GradienceError
from gradience.io import PathLike, Progress
from gradience.rewriting.sides import open_sides
from gradience.schema.compare import BenchReport
from gradience.schema.merge import MergeMethod
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
        options: base, metric, tolerance and limits.
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
        smaller, notes = made(store, names, making)
        entrants = [Contender(FULL, "reference", adapter, "the adapter as given"), *smaller]
        entrants += anchors(store, adapter, seed=options.seed)
        return contest.report("resize", [Entry("held-out", rows, entrants)], [path], notes)


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
        options: base, metric, tolerance and limits.
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
