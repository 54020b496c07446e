"""The verb `bench mitigate`: intruder dimensions scaled down, beside plain scaling of alpha by the same change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from gradience.adapters.open import open_adapter
from gradience.errors import AdapterError, GradienceError
from gradience.io.paths import PathLike, Progress
from gradience.schema.bench import BenchReport
from gradience.verbs.bench.anchors import write_scaled
from gradience.verbs.bench.candidates import FULL
from gradience.verbs.bench.contest import Contest, Entrant, Entry, Options, Sources, anchors
from gradience.verbs.bench.store import Store, adapter_digest, opened_store
from gradience.verbs.mitigate import mitigate_adapter

SCALES: Final = (0.0, 0.5)
_DEFAULTS: Final = Options()


def bench_mitigate(
    path: PathLike,
    out: PathLike,
    *,
    data: PathLike | None = None,
    kept: PathLike | None = None,
    scales: Sequence[float] = SCALES,
    options: Options = _DEFAULTS,
    progress: Progress | None = None,
) -> BenchReport:
    """Score copies of an adapter with less of its intruder dimensions, each beside alpha scaled by the same change.

    The change is norm(dW - dW') over norm(dW), Frobenius, of all modules together: alpha x (1 - change) has it, too.

    Args:
        path: the folder that PEFT saved. It is not changed.
        out: a folder for candidates, evaluations and the report; it may be that of an earlier run.
        data: held-out rows of what was trained: the verdict is on them.
        kept: rows of what should not be forgotten: reported beside it.
        scales: what is left of dW along each intruder.
        options: base (which is needed), metric, tolerance, seeds and limits.
        progress: called with (evaluations done, in all, the current one).

    Raises:
        GradienceError: there is no intruder, or an evaluation fails; evaluations before it are kept.
    """
    adapter = Path(path)
    if options.base is None:
        raise GradienceError("intruders are told from the base's directions", advice="give the model with --base")
    with opened_store(Path(out)) as store:
        contest = Contest(store, options, adapter, progress)
        files = [("held-out", data, True), *([("kept", kept, False)] if kept is not None else [])]
        for _, file, _ in files:
            contest.evaluator(None if file is None else Path(file))  # what is missing is an error before any work
        candidates = [one for scale in scales for one in _pair(store, adapter, options.base, scale, options.seed)]
        if not candidates:
            raise AdapterError(
                "no scale changes this adapter: it has no intruder dimension, or its scale is 1",
                advice="'gradience audit --base W --intruders' counts them",
            )
        candidates = list({one.name: one for one in candidates}.values())  # two scales may share an alpha
        own = Entrant(FULL, "reference", adapter, "the adapter as given")
        entrants = [own, *candidates, *anchors(store, adapter, seed=options.seed)]
        entries = [Entry(name, None if file is None else Path(file), entrants, on) for name, file, on in files]
        return contest.report(entries, Sources("mitigate", [path]))


def _pair(store: Store, adapter: Path, base: PathLike, scale: float, seed: int) -> list[Entrant]:
    """The adapter with its intruders at that scale, and with alpha scaled by the same change; none without a change."""
    source, name = adapter_digest(adapter), f"scale:{scale:g}"

    def make(out: Path) -> None:
        try:
            mitigate_adapter(adapter, base, out, scale=scale, seed=seed)
        except ValueError as error:
            raise AdapterError(f"{name}: {error}", advice="see 'gradience mitigate --help'") from error

    calmed = store.made(name, {"of": source, "base": str(base), "scale": scale, "seed": seed}, make)
    change = relative_change(adapter, calmed)
    if change <= 0.0:
        return []
    factor = float(f"{1.0 - change:.4g}")
    scaled = store.made(
        f"alpha-{factor:g}", {"of": source, "alpha": factor}, partial(write_scaled, adapter, factor=factor)
    )
    return [
        Entrant(name, "candidate", calmed, f"{scale:g} of the update along each intruder; change {change:.1%}"),
        Entrant(f"alpha:{factor:g}", "candidate", scaled, f"the whole update times {factor:g}, as beside {name}"),
    ]


def relative_change(before: Path, after: Path) -> float:
    """norm(dW - dW') / norm(dW) over all modules, of an adapter and a copy of which only lora_B differs."""
    removed = whole = 0.0
    others = {module.name: module for module in open_adapter(after)[1].modules}
    for module in open_adapter(before)[1].modules:
        (b, a), (new_b, new_a) = (
            tuple(np.asarray(x, np.float64) for x in one.load()) for one in (module, others[module.name])
        )
        whole += module.scale**2 * float(np.sum((b.T @ b) * (a @ a.T)))
        left, right = np.hstack([b, -new_b]), np.vstack([a, new_a])
        removed += module.scale**2 * max(0.0, float(np.sum((left.T @ left) * (right @ right.T))))
    return math.sqrt(removed / whole) if whole > 0.0 else 0.0
