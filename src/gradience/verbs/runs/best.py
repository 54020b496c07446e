"""Rank runs by a metric, among runs that the metric can compare, and say how large a difference must be to count.

Two runs are compared if nothing in their logs shows that the metric means another thing in each: the same data, as many
evaluation examples, the same objective, and for losses and perplexities also the same model, since a loss per token
depends on the tokenizer.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from statistics import NormalDist, median
from typing import Any, Final, Literal, NamedTuple

from gradience.errors import GradienceError
from gradience.folder.runs import names_of_runs
from gradience.rules.log import DETECTORS
from gradience.schema.fleet import (
    RUN_SETTINGS,
    RUNS_BEST_SCHEMA_ID,
    BestRun,
    ComparableRuns,
    Noise,
    RankedRun,
    RunsBestReport,
    UnrankedRun,
)
from gradience.tables.query import opened
from gradience.tables.store import Store
from gradience.verbs.runs.run import refuse_unknown_columns

Goal = Literal["least", "most"]

_LESS_IS_MORE: Final = re.compile(r"(?:^|[/_])(?:loss|ppl|perplexity|wer|cer|ter|mae|mse|rmse|error|nll|runtime)$")
_BY_TOKENS: Final = re.compile(r"(?:^|[/_])(?:loss|ppl|perplexity|nll)$")
_SHARE: Final = re.compile(r"(?:^|[/_])accuracy$")
_ROUNDED: Final = 0.02  # of the number of examples: the Trainer rounds its rate to 3 digits
_DEVIATIONS: Final = 2.0  # standard deviations of a difference of two runs
_EQUAL_BUT_FOR_SEED: Final = ("settings", *(name for name in RUN_SETTINGS if name != "seed"))
_MEDIAN_DIFFERENCE: Final = math.sqrt(2.0) * NormalDist().inv_cdf(0.75)  # of two of a normal distribution, in its sigma


class _Valued(NamedTuple):
    """A run with its best value of the metric."""

    row: dict[str, Any]
    value: float
    step: int | None
    last: float
    examples: float | None

    @property
    def key(self) -> tuple[str, str]:
        """The log and the run in it."""
        return self.row["path"], self.row["run"]


def best_runs(
    store: Store, metric: str | None = None, *, by: str | None = None, goal: Goal | None = None, top: int = 5
) -> RunsBestReport:
    """The best runs of each group of comparable runs. A run counts by its best logged value of a metric.

    A run whose loss was not finite is not ranked: its best value is from before it broke, or of a masked loss.

    Args:
        store: the store that `collect_runs` returned.
        metric: split and name, such as `eval/accuracy`; `train/loss` is the loss of training rows. By default
            the held-out loss that most runs have.
        by: a column of `runs` to group by as well.
        goal: whether less or more is better; by default less for losses, perplexities and errors.
        top: how many runs of a group to rank.

    Raises:
        GradienceError: no run has the metric, or there is no such column.
    """
    if by is not None:
        refuse_unknown_columns([by])
    metric = metric or _usual_metric(store)
    wanted: Goal = goal or ("least" if _LESS_IS_MORE.search(metric) else "most")
    every, known = _valued(store, metric, wanted)
    broken = _broken(store)
    runs = [run for run in every if run.key not in broken]
    if not every:
        raise GradienceError(f"no run has {metric[:60]!r}", advice=f"there are {', '.join(known)[:400]}")
    groups = [_group(key, members, metric, wanted, top) for key, members in _comparable(runs, metric, by)]
    groups.sort(key=lambda group: (-group.runs, group.group, group.data or "", group.model or ""))
    return RunsBestReport(
        schema=RUNS_BEST_SCHEMA_ID,
        metric=metric,
        goal=wanted,
        by=by,
        best=[_first(group) for group in groups],
        groups=groups,
        not_ranked=_not_ranked(broken, every),
    )


def _usual_metric(store: Store) -> str:
    """The held-out loss that most runs have; if none has one, the usual name, for the refusal to name it."""
    sql = """select split || '/' || metric from evals where metric = 'loss'
        group by 1 order by count(distinct (path, run)) desc, 1 limit 1"""
    with opened(store) as base:
        return next((str(name) for (name,) in base.execute(sql).fetchall()), "eval/loss")


def _broken(store: Store) -> dict[tuple[str, str], str]:
    """What each run with a loss that was not finite says of it, by log and run."""
    ids = sorted(
        rule.id for rule in DETECTORS if any("not_finite" in (sign, getattr(sign, "name", "")) for sign in rule.signs)
    )
    sql = "select path, run, message from findings where list_contains($ids, id) and severity = 'error'"
    with opened(store) as base:
        return {(path, run): message for path, run, message in base.execute(sql, {"ids": ids}).fetchall()}


def _not_ranked(broken: Mapping[tuple[str, str], str], runs: Iterable[_Valued]) -> list[UnrankedRun]:
    values = {run.key: run.value for run in runs}
    keys = sorted(broken)
    return [
        UnrankedRun(name=name, path=key[0], run=key[1], value=values.get(key), reason=broken[key])
        for key, name in zip(keys, names_of_runs(keys), strict=True)
    ]


def _valued(store: Store, metric: str, goal: Goal) -> tuple[list[_Valued], list[str]]:
    """The runs that have the metric, and the metrics that there are."""
    split, _, name = metric.rpartition("/")
    order = "value" if goal == "least" else "value desc"
    sql = f"""with found as (
            select path, run, step, value from evals where split = $split and metric = $name
            union all select path, run, step, loss from rows
                where $split = 'train' and $name = 'loss' and loss is not null),
        per_run as (
            select path, run, first(value order by {order}, step) as value, first(step order by {order}, step) as step,
                last(value order by step nulls first) as last from found group by path, run),
        sizes as (
            select path, run, median(spent.value * rate.value) as examples from evals as spent
            join evals as rate using (path, run, step, split)
            where split = $split and spent.metric = 'runtime' and rate.metric = 'samples_per_second' group by path, run)
        select per_run.value, per_run.step, last, examples, runs.* from per_run join runs using (path, run)
        left join sizes using (path, run) order by path, run"""  # noqa: S608  # `order` is one of two words
    with opened(store) as base:
        cursor = base.execute(sql, {"split": split, "name": name})
        names = [column for column, *_ in cursor.description][4:]
        runs = [
            _Valued(dict(zip(names, cells, strict=True)), value, step, last, examples)
            for value, step, last, examples, *cells in cursor.fetchall()
        ]
        metrics = "select distinct split || '/' || metric from evals union select 'train/loss' order by 1 limit 100"
        return runs, [text for (text,) in base.execute(metrics).fetchall()]


def _comparable(runs: Iterable[_Valued], metric: str, by: str | None) -> Iterator[tuple[str, list[_Valued]]]:
    """The groups of runs whose logs show no difference in what the metric means; each with its value of `by`."""
    alike: dict[tuple[str, ...], list[_Valued]] = defaultdict(list)
    for run in runs:
        row = run.row
        group = "" if by is None else str(row[by] if row[by] is not None else "not recorded")
        model = str(row["model"]) if _BY_TOKENS.search(metric) else ""
        alike[group, str(row["data"]), str(row["objective"]), model].append(run)
    for (group, *_), members in alike.items():
        yield from ((group, same) for same in _by_examples(members))


def _by_examples(runs: Sequence[_Valued]) -> Iterator[list[_Valued]]:
    """Split runs whose evaluations were of different sizes; those of unknown size stay together."""
    unknown = [run for run in runs if run.examples is None]
    sized = sorted((run for run in runs if run.examples is not None), key=lambda run: run.examples or 0.0)
    if unknown:
        yield unknown
    begun = 0
    for place, (one, other) in enumerate(pairwise(sized), 1):
        if (other.examples or 0.0) > (one.examples or 0.0) * (1.0 + _ROUNDED):
            yield sized[begun:place]
            begun = place
    if sized:
        yield sized[begun:]


def _group(name: str, members: Sequence[_Valued], metric: str, goal: Goal, top: int) -> ComparableRuns:
    sign = 1.0 if goal == "least" else -1.0
    ranked = sorted(members, key=lambda run: (sign * run.value, run.row["path"], run.row["run"]))
    noise = _between_seeds(members) or _of_share(metric, ranked[0])
    row, examples = ranked[0].row, ranked[0].examples
    labels = names_of_runs([run.key for run in ranked])
    return ComparableRuns(
        group=name,
        data=row["data"],
        objective=row["objective"],
        model=row["model"] if len({run.row["model"] for run in members}) == 1 else None,
        examples=None if examples is None else max(round(examples), 1),
        runs=len(members),
        noise=noise,
        ranked=[_ranked(run, label, ranked[0], noise) for run, label in zip(ranked[:top], labels, strict=False)],
    )


def _ranked(run: _Valued, name: str, best: _Valued, noise: Noise | None) -> RankedRun:
    beyond = None if noise is None else abs(run.value - best.value) > noise.difference
    row = run.row
    return RankedRun(
        name=name, path=row["path"], run=row["run"], value=run.value, step=run.step, last=run.last,
        lr=row["lr"], r=row["r"], worse_than_noise=beyond,
    )  # fmt: skip


def _between_seeds(runs: Sequence[_Valued]) -> Noise | None:
    """The noise between finished runs with equal settings, if at least two differ in their seed alone.

    The standard deviation is from the median difference of two such runs (Shamos 1976): one run that went wrong makes a
    variance as large as it likes, and the median hardly larger.
    """
    equal: dict[tuple[Any, ...], list[_Valued]] = defaultdict(list)
    for run in runs:
        if run.row["seed"] is not None and run.row["finished"]:
            equal[tuple(run.row[name] for name in _EQUAL_BUT_FOR_SEED)].append(run)
    sets = [members for members in equal.values() if len({run.row["seed"] for run in members}) > 1]
    pairs = (pair for members in sets for pair in combinations(members, 2))
    apart = [abs(one.value - other.value) for one, other in pairs if one.row["seed"] != other.row["seed"]]
    spread = median(apart) / _MEDIAN_DIFFERENCE if apart else 0.0
    if not spread:  # as many values are equal: the metric is too coarse to show it
        return None
    compared = sum(map(len, sets))
    return Noise(difference=_DEVIATIONS * math.sqrt(2.0) * spread, source="seeds", n=compared, groups=len(sets))


def _of_share(metric: str, best: _Valued) -> Noise | None:
    """The noise of a share of right answers, as if the answers of two runs were independent."""
    if not _SHARE.search(metric) or best.examples is None or not 0.0 <= best.value <= 1.0:
        return None
    n = max(round(best.examples), 1)
    p = (best.value * n + 1.0) / (n + 2.0)  # add-one: no answer wrong does not mean no noise
    return Noise(difference=_DEVIATIONS * math.sqrt(2.0 * p * (1.0 - p) / n), source="examples", n=n)


def _first(group: ComparableRuns) -> BestRun:
    best = group.ranked[0]
    return BestRun(
        group=group.group, runs=group.runs, path=best.path, run=best.run, value=best.value, step=best.step,
        last=best.last,
    )  # fmt: skip
