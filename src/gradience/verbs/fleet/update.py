"""A store brought up to date: what is out of date is done again by worker processes, and written in batches."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from gradience.verbs.fleet.engines import Done
from gradience.verbs.fleet.index import Known
from gradience.verbs.fleet.job import SAME, Job, is_failure
from gradience.verbs.fleet.query import opened
from gradience.verbs.fleet.store import Store, Writer

BATCH: Final = 128  # adapters of a part
BATCH_SECONDS: Final = 10.0  # what a killed job loses at most, beside what was in flight


class Tally(NamedTuple):
    """How far a job is: sources done, all of them, and failures so far."""

    done: int
    total: int
    failures: int


def known_rows(store: Store) -> dict[str, Known]:
    """The sources that have rows, by path; read by DuckDB, which starts sooner than pyarrow."""
    if not store.parts:
        return {}
    with opened(store) as base:
        sql = f"select path, stamp, rules, content_hash, error is not null from {store.tables.head}"  # noqa: S608  # our own table
        return {path: Known(*rest) for path, *rest in base.execute(sql).fetchall()}


def failures_in(known: Mapping[str, Known]) -> tuple[int, int]:
    """How many sources have an error in place of numbers, and on how many workers died."""
    failed = [row for row in known.values() if row.failed]
    return sum(bool(row.stamp) for row in failed), sum(not row.stamp for row in failed)


class Plan(NamedTuple):
    """What is to be done: jobs, sources whose rows go first, and counts."""

    jobs: Sequence[Job]
    gone: Sequence[str]
    found: int
    removed: int


def plan_of(found: Iterable[Job], known: dict[str, Known], rules: str) -> Plan:
    """The jobs for what is new or out of date.

    Args:
        found: a job for every source there is.
        known: those with rows.
        rules: the version that rows must be of.
    """
    jobs: list[Job] = []
    gone: list[str] = []
    there: set[str] = set()
    for job in found:
        there.add(job.path)
        row = known.get(job.path)
        if row is None:
            jobs.append(job)
        elif job.fault is not None or not row.stamp or row.stamp != job.stamp or row.rules != rules:
            current = bool(row.content_hash) and row.rules == rules
            jobs.append(job.knowing(row.content_hash) if current else job)
            gone += [] if current else [job.path]
    removed = known.keys() - there
    return Plan(jobs, [*gone, *removed], len(there), len(removed))


def cores() -> int:
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def carry_out(
    writer: Writer,
    plan: Plan,
    answers: Iterable[Done[Job]],
    crashed: Callable[[Job], bytes],
    progress: Callable[[Tally], None] | None = None,
) -> tuple[Tally, int]:
    """Write the answers in batches as they come.

    Args:
        writer: of the store.
        plan: what they answer; the rows it drops are dropped first.
        answers: from an engine.
        crashed: the rows of a job on which workers died.
        progress: called after each.

    Returns:
        How many there were, and how many of them of a source whose content was as it was.
    """
    writer.replace(dict.fromkeys(plan.gone))
    batch: list[bytes] = []
    replaced: dict[str, str | None] = {}
    tally, same, last = Tally(0, len(plan.jobs), 0), 0, time.monotonic()
    for job, answer in answers:
        if answer == SAME:
            replaced[job.path] = job.stamp
            same += 1
        else:
            batch.append(crashed(job) if answer is None else answer)
            if job.known_hash:
                replaced[job.path] = None
        tally = Tally(tally.done + 1, tally.total, tally.failures + is_failure(answer))
        if progress is not None:
            progress(tally)
        if len(batch) >= BATCH or time.monotonic() - last > BATCH_SECONDS:
            writer.replace(replaced)
            writer.add(batch)
            batch, replaced, last = [], {}, time.monotonic()
    writer.replace(replaced)
    writer.add(batch)
    if tally.done or plan.gone:
        writer.compact()
    return tally, same
