"""The verb `bench`: an adapter beside smaller versions of itself, on held-out data of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gradience.errors import GradienceError
from gradience.io.paths import PathLike, Progress
from gradience.schema.bench import BenchReport
from gradience.verbs.bench.candidates import FULL, Making, default_names, made
from gradience.verbs.bench.contest import Contest, Entrant, Entry, Options, Sources, anchors
from gradience.verbs.bench.retrain import retrained
from gradience.verbs.bench.store import file_hash, opened_store

_DEFAULTS: Final = Options()


def bench_adapter(
    path: PathLike,
    out: PathLike,
    *,
    data: PathLike | None = None,
    candidates: Sequence[str] | None = None,
    calibrate: PathLike | None = None,
    retrain: str | None = None,
    options: Options = _DEFAULTS,
    progress: Progress | None = None,
) -> BenchReport:
    """Score an adapter, smaller versions of it and two anchors on held-out data.

    Always there are `full` (the adapter), `base` (its update zero) and `shuffled` (its update permuted: the same
    norms, no information). Folder and evaluations stay in `out`: a run that was killed goes on where it stopped.

    Args:
        path: the folder that PEFT saved. It is not changed.
        out: a folder for candidates, evaluations and the report; it may be that of an earlier run.
        data: JSONL with an example on each line: text, prompt and completion, messages, or text and label.
        candidates: `svd:RANK`, `p90`, `energy:SHARE`, `params:N`, `kl:NATS` or `adapter:FOLDER`.
        calibrate: inputs without labels for `kl:`, others than the data.
        retrain: a command that trains an adapter of rank {r} with seed {seed} into the folder {out}.
        options: base, metric, tolerance, seeds and limits.
        progress: called with (evaluations done, in all, the current one).

    Raises:
        GradienceError: an input cannot be used, or an evaluation fails; evaluations before it are kept.
    """
    adapter, rows = Path(path), None if data is None else Path(data)
    inputs = None if calibrate is None else Path(calibrate)
    if rows is not None and inputs is not None and file_hash(rows) == file_hash(inputs):
        raise GradienceError(
            f"{inputs} is what candidates are judged by: chosen on it, they would look better than they are",
            advice="give other inputs to --calibrate",
        )
    with opened_store(Path(out)) as store:
        contest = Contest(store, options, adapter, progress)
        contest.evaluator(rows)  # what is missing is an error before any work
        making = Making(adapter, options.base, inputs, options.seed)
        names = candidates if candidates is not None else default_names(adapter, calibrated=inputs is not None)
        plain = [name for name in names if not name.startswith("retrain:")]
        found, notes = made(store, plain, making)
        entrants = [Entrant(FULL, "reference", adapter, "the adapter as given"), *found]
        entrants += anchors(store, adapter, seed=options.seed)
        entry = Entry("held-out", rows, entrants)
        if retrain is not None:
            ranks = [name.removeprefix("retrain:") for name in names if name.startswith("retrain:")]
            entry, more = retrained(store, contest, entry, command=retrain, ranks=ranks, options=options)
            notes += more
        return contest.report([entry], Sources("resize", [path], notes))
