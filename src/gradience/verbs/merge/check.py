"""``merge --check``: what a merge would write, what it would leave of each adapter, and where the adapters disagree.

All numbers follow from inner products of the updates and from the signs of their entries. No base model is needed, and
nothing is written.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Final, TypeAlias, Unpack

import msgspec
import numpy as np

from gradience.adapters import layer_index
from gradience.adapters.layout import Module
from gradience.errors import AdapterError
from gradience.folder.beside import beside as lies_beside
from gradience.io import PathLike, Progress
from gradience.rewriting.sides import (
    Matching,
    StoredAdapter,
    beside,
    config_differences,
    described,
    matched,
    open_sides,
)
from gradience.rules import excluded_rules, judge
from gradience.rules.merge import MERGE_RULES, TWINS
from gradience.schema.merge import (
    MERGE_CHECK_SCHEMA_ID,
    CheckedAdapter,
    CheckedModule,
    CheckedPair,
    Kept,
    MergeCheckReport,
    MergeReport,
    SignConflict,
)
from gradience.spectral.grams import Floats
from gradience.spectral.merging import Signs, pooled_signs, signs_of
from gradience.spectral.subspace import PairGeometry, Places
from gradience.verbs.merge.methods import Recipe, recipe_of
from gradience.verbs.merge.options import MergeKeywords, MergeOptions
from gradience.verbs.merge.pairs import obstacles_between, obstacles_of
from gradience.verbs.merge.run import heads_of, merge_sides

Products: TypeAlias = dict[str, Floats]

_DEFAULTS: Final = MergeOptions()
_SAMPLE: Final = 1 << 19  # entries of each update that are read in a module, unless `exact` asks for all


def merge_check(
    *paths: PathLike,
    options: MergeOptions = _DEFAULTS,
    exact: bool = False,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    settings: PathLike | None = None,
    progress: Progress | None = None,
    **keywords: Unpack[MergeKeywords],
) -> MergeCheckReport:
    """Return what a merge would write, what M = sum w_i dW_i leaves of each adapter, and their conflicts.

    No base model is needed, and nothing is written.

    Args:
        paths: two adapters or more, of one base model.
        options: the merge; its weights are those of M.
        exact: compare the signs of all entries; otherwise of about half a million in each module, in random rows.
        select: ids of rules, or beginnings of ids, to apply; all by default.
        ignore: ids, or beginnings of ids, to leave out.
        settings: a gradience.toml, or a pyproject.toml with `[tool.gradience]`, whose `select` and `ignore` apply if
            the arguments of that name are empty.
        progress: called with (modules done, in all, the module's name) while signs are counted.
        keywords: single options by name, such as `weights=[0.5, 0.5]`; they win over `options`.

    Raises:
        AdapterError: an adapter cannot be read.
        ConfigError: an id is not known, or the settings cannot be read.
        OptionError: an option is out of range, or there is not one weight for each adapter.
        TypeError: no option has such a name.
    """
    options = options.completed(keywords)
    recipe = recipe_of(len(paths), options)
    chosen = list(recipe.weights)
    ids = [rule.id for rule in MERGE_RULES]
    left_out = excluded_rules(ids, select=select, ignore=ignore, settings=settings)
    sides = open_sides(paths)
    matching = matched(sides, overlapping=False)
    if matching.odd and not matching.rows:
        raise AdapterError(_odd(sides, matching.odd[0]), advice="are they of one base model?")
    products = products_of(sides, matching)
    signs = dict(
        _signs(matching, products, chosen, most=None if exact else _SAMPLE, seed=options.seed, progress=progress)
    )
    total = total_of(products)
    pairs = [_pair(sides, chosen, total, places) for places in combinations(range(len(sides)), 2)]
    pooled = pooled_signs(list(signs.values()))
    modules = [_module(name, products[name], chosen, signs.get(name)) for name in _shared(matching)]
    merged, refused = _planned(sides, recipe, options)
    report = MergeCheckReport(
        schema=MERGE_CHECK_SCHEMA_ID,
        merged=merged,
        refused=refused,
        adapters=[
            CheckedAdapter(
                adapter=described(side, math.sqrt(total[place, place])),
                weight=chosen[place],
                weighted_norm=abs(chosen[place]) * math.sqrt(total[place, place]),
                kept=kept_of(total, chosen, place),
                obstacles=list(obstacles_of(side)),
                beside=lies_beside(side.path, [side.adapter.config.base_model_name_or_path], {}),
            )
            for place, side in enumerate(sides)
        ],
        differences=config_differences(sides),
        pairs=pairs,
        signs=None if pooled is None else _conflict(pooled),
        trials=trials_of(chosen, pairs),
        modules=modules,
        only_in=matching.partial,
        different_shapes=matching.odd,
        notes=[note for note in _notes(sides, matching, products) if note != refused],
    )
    verdict = judge(MERGE_RULES, report).without(left_out)
    return msgspec.structs.replace(report, findings=verdict.findings, not_run=verdict.not_run)


def _planned(sides: Sequence[StoredAdapter], recipe: Recipe, options: MergeOptions) -> tuple[MergeReport | None, str]:
    """What the merge would write, or why it would be refused."""
    try:
        return merge_sides(sides, recipe, options), ""
    except AdapterError as error:
        return None, str(error)


def _odd(sides: Sequence[StoredAdapter], name: str) -> str:
    """Return the message that no module has the same shape in all adapters, with one module as an example."""
    shapes = [
        f"{module.shape[0]} x {module.shape[1]} in {side.name}"
        for side in sides
        for module in side.adapter.modules
        if module.name == name
    ]
    return f"no module has the same shape in all adapters: {name} is {', '.join(shapes)}"


def _shared(matching: Matching) -> list[str]:
    """Return the names of the modules that at least two of the adapters have."""
    return [name for name, row in matching.rows.items() if sum(m is not None for m in row) >= 2]


def _pair(sides: Sequence[StoredAdapter], weights: Sequence[float], total: Floats, places: Places) -> CheckedPair:
    first, second = (sides[place].name for place in places)
    return CheckedPair(first=first, second=second, cosine=cosine_of(total, weights, places))


def trials_of(weights: Sequence[float], pairs: Sequence[CheckedPair]) -> list[list[float]]:
    """Return the weights to try: those given, and 1 for each adapter, or 1/n if they are all 1 already.

    Signs stay, and a weight of 0 too. Of nearly identical updates, which would add up, only those given.
    """
    own, whole = list(weights), [math.copysign(1.0, w) if w else 0.0 for w in weights]
    if any(pair.cosine is not None and pair.cosine >= TWINS.value for pair in pairs):
        return [own]
    return [own, whole if whole != own else [w / len(own) for w in whole]]


def _signs(
    matching: Matching,
    products: Products,
    weights: Sequence[float],
    *,
    most: int | None,
    seed: int,
    progress: Progress | None,
) -> Iterator[tuple[str, Signs]]:
    names = _shared(matching)
    for done, name in enumerate(names, 1):
        if is_finite(products[name]):
            modules = [(m, w) for m, w in zip(matching.rows[name], weights, strict=True) if m is not None]
            parts = [(*m.load(), w * m.scale) for m, w in modules]
            # Each module draws rows of its own, whichever others there are. Python's `hash` differs between processes.
            yield name, signs_of(parts, most=most, seed=zlib.crc32(f"{seed} {name}".encode()))
        if progress is not None:
            progress(done, len(names), name)


def _conflict(signs: Signs) -> SignConflict:
    fields = signs._asdict()
    del fields["weight"]
    return SignConflict(**fields)


def _module(name: str, table: Floats, weights: Sequence[float], signs: Signs | None) -> CheckedModule:
    if not is_finite(table):
        return CheckedModule(name=name, layer=layer_index(name), state="non_finite")
    cosines = [cosine_of(table, weights, places) for places in combinations(range(len(weights)), 2)]
    return CheckedModule(
        name=name,
        layer=layer_index(name),
        norms=[abs(w) * math.sqrt(table[place, place]) for place, w in enumerate(weights)],
        lowest_cosine=min((c for c in cosines if c is not None), default=None),
        kept=[kept_of(table, weights, place) for place in range(len(weights))],
        signs=None if signs is None else _conflict(signs),
    )


def _notes(sides: Sequence[StoredAdapter], matching: Matching, products: Products) -> list[str]:
    notes = [*obstacles_between(sides), *_heads(sides)]
    broken = [name for name, table in products.items() if not is_finite(table)]
    if broken:
        notes.append(f"{len(broken)} modules hold NaN or infinite numbers and are left out (first: {broken[0]})")
    if not _shared(matching):
        notes.append("the adapters have no module in common: their sum is each of them where it is")
    notes += [
        f"{side.name}: the numbers are of s B A, which is not the whole of its update"
        for side in sides
        if any(module.dense is not None or module.magnitude is not None for module in side.adapter.modules)
    ]
    return notes


def _heads(sides: Sequence[StoredAdapter]) -> list[str]:
    """Return, as a list, the reason for which heads or other whole tensors would stop a merge; empty without one."""
    try:
        heads_of(sides, None)
    except AdapterError as error:
        return [str(error)]
    return []


def products_of(sides: Sequence[StoredAdapter], matching: Matching) -> Products:
    """Return <dW_i, dW_j> of each module (n, n); each module is read once for all pairs of adapters.

    Inner products with an update that is not finite are not finite.
    """
    n = len(sides)
    products = {name: np.zeros((n, n)) for name in matching.rows}

    def take(pair: Places, one: Module, _two: Module, geometry: PairGeometry) -> None:
        table, (i, j) = products[one.name], pair
        table[i, j] = table[j, i] = geometry.inner

    for place, own in enumerate(beside(sides, matching, list(combinations(range(n), 2)), take, whole=False)):
        for name, energy in own.energies.items():
            if name in products:
                products[name][place, place] = energy
    return products


def is_finite(table: Floats) -> bool:
    """Return whether all inner products of a module are finite."""
    return bool(np.isfinite(table).all())


def total_of(products: Products) -> Floats:
    """Return the inner products (n, n) of whole adapters: the sum over the modules whose products are all finite."""
    tables = [table for table in products.values() if is_finite(table)]
    return np.asarray(sum(tables, np.zeros_like(next(iter(products.values())))))


def kept_of(table: Floats, weights: Sequence[float], place: int) -> Kept:
    """Return how much of one adapter M keeps, from all inner products.

    `coefficient` is <M, dW> / |dW|^2. `other` is the share of |M|^2 that is orthogonal to dW.
    """
    w = np.asarray(weights)
    along, own, whole = float(w @ table[:, place]), float(table[place, place]), float(w @ table @ w)
    if own <= 0.0:
        return Kept(coefficient=None, other=1.0 if whole > 0.0 else None)
    # A product of two ratios: that of the inner products may overflow.
    other = max(0.0, 1.0 - (along / own) * (along / whole)) if whole > 0.0 else None
    return Kept(coefficient=along / own, other=other)


def cosine_of(table: Floats, weights: Sequence[float], places: Places) -> float | None:
    """Return the cosine between two weighted updates; None if one of them is zero."""
    i, j = places
    size = abs(weights[i] * weights[j]) * math.sqrt(table[i, i]) * math.sqrt(table[j, j])
    # Rounding lifts the cosine of equal updates above 1, of which the arc cosine is not known.
    return max(-1.0, min(1.0, weights[i] * weights[j] * float(table[i, j]) / size)) if size > 0.0 else None
