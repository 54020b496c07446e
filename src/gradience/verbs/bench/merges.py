"""The verb `bench merge`: merges of adapters, each judged on each adapter's own data beside that adapter alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from gradience.errors import AdapterError, GradienceError
from gradience.io.paths import PathLike, Progress
from gradience.schema.bench import BenchReport
from gradience.schema.merge import MergeMethod
from gradience.verbs.bench.contest import Contest, Entrant, Entry, Options, Sources, anchors
from gradience.verbs.bench.store import Store, adapter_digest, opened_store
from gradience.verbs.merge import merge_adapters
from gradience.verbs.writing import open_sides

METHODS: Final[tuple[MergeMethod, ...]] = ("linear", "svd", "ties")
_DENSITY: Final = 0.5  # of DARE, which has no default of its own: its paper's least for adapters of one base
_DEFAULTS: Final = Options()


def bench_merge(
    paths: Sequence[PathLike],
    out: PathLike,
    *,
    data: Sequence[PathLike] = (),
    methods: Sequence[MergeMethod] = METHODS,
    weights: Sequence[Sequence[float] | None] = (None,),
    density: float | None = None,
    options: Options = _DEFAULTS,
    progress: Progress | None = None,
) -> BenchReport:
    """Score merges of adapters on each adapter's own data, beside that adapter alone.

    A merge holds where it does on the data of all adapters. Where adapters have heads of their own, each data set is
    scored with the head of its adapter.

    Args:
        paths: two adapters or more, of one base. They are not changed.
        out: a folder for merges, evaluations and the report; it may be that of an earlier run.
        data: one file for each adapter, in their order; an evaluator with data of its own needs none.
        methods: of `merge_adapters`.
        weights: each list has one number per adapter; None is the method's default.
        density: the share of entries that TIES and DARE keep; without it 0.2 and 0.5.
        options: base, metric, tolerance, seeds and limits.
        progress: called with (evaluations done, in all, the current one).

    Raises:
        GradienceError: the adapters cannot be merged, or an evaluation fails; evaluations before it are kept.
    """
    sides = open_sides(paths)
    if data and len(data) != len(sides):
        raise GradienceError(f"{len(data)} data files for {len(sides)} adapters", advice="give one for each, in order")
    rows: list[Path | None] = [*map(Path, data)] or [None] * len(sides)
    own_heads = any("full_module" in side.adapter.roles.values() for side in sides)
    with opened_store(Path(out)) as store:
        contest = Contest(store, options, sides[0].path, progress)
        for file in rows:
            contest.evaluator(file)  # what is missing is an error before any work
        recipes = {
            _name(method, some): _recipe(method, some, density, options.seed) for method in methods for some in weights
        }
        entries = []
        for side, file in zip(sides, rows, strict=True):
            heads = side.name if own_heads else None
            merges = [
                Entrant(name, "candidate", _merged(store, name, paths, recipe, heads), _words(recipe))
                for name, recipe in recipes.items()
            ]
            own = Entrant(f"{side.name} alone", "reference", side.path, "the adapter as given")
            entries.append(Entry(side.name, file, [own, *merges, *anchors(store, side.path, seed=options.seed)]))
        return contest.report(entries, Sources("merge", paths))


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


def _merged(store: Store, name: str, paths: Sequence[PathLike], recipe: dict[str, Any], heads: str | None) -> Path:
    how = {"of": [adapter_digest(Path(path)) for path in paths], "heads": heads, **recipe}

    def make(out: Path) -> None:
        try:
            merge_adapters(paths, out, heads_from=heads, **recipe)
        except ValueError as error:
            raise AdapterError(f"{name}: {error}", advice="see 'gradience merge --help'") from error

    return store.made(name if heads is None else f"{name}-{heads}", how, make)
