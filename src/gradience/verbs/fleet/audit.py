"""The verb `fleet audit`: worker processes audit every adapter below some roots into one store.

A store of adapters and a store of runs are updated in the same way. `plan_of` finds what is new or out of date.
`carry_out` writes the workers' answers in batches, so that a job that is killed loses little.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from gradience.adapters.files import CONFIG_NAME, WEIGHT_NAMES, AdapterFiles, find_files
from gradience.adapters.groups import grouped
from gradience.adapters.layout import Adapter
from gradience.adapters.open import Buffer, Bytes, Layouts, open_adapter
from gradience.device import prepare_jax
from gradience.errors import AdapterError, ConfigError, GradienceError, MissingPackageError, few, require, said
from gradience.folder import Documents, OpenAdapter
from gradience.io import PathLike
from gradience.io.reading import open_regular, real_path
from gradience.schema import Json
from gradience.schema.fleet import FLEET_AUDIT_SCHEMA_ID, AdapterRow, FleetAuditReport, RowStatus
from gradience.spectral import cores, use_threads
from gradience.tables import WorkerResult, encoded
from gradience.tables.query import FLEET, opened
from gradience.tables.store import Store, Writer
from gradience.verbs.audit.options import AuditOptions
from gradience.verbs.fleet.find import find_adapters
from gradience.verbs.fleet.records import Known, Source, rows_of, version_of_rules
from gradience.verbs.fleet.workers import Done, carried_out

_CHUNK: Final = 1 << 20
_ENDING: Final = ".safetensors"
_SOUGHT: Final = f"looked for {CONFIG_NAME}, and {few(WEIGHT_NAMES, 9)} or other tensors of an adapter"
_MOST_HELD: Final = 1 << 26  # most bytes of a file that a worker reads whole

SAME: Final = b""
"""The answer for an adapter whose content is unchanged."""

BATCH: Final = 128  # most adapters of a part
BATCH_SECONDS: Final = 10.0  # most work that a killed job loses, beside the jobs in flight


def audit_fleet(
    *roots: PathLike,
    out: PathLike,
    listed: Iterable[str] = (),
    base: PathLike | None = None,
    workers: int | None = None,
    progress: Callable[[JobProgress], None] | None = None,
) -> FleetAuditReport:
    """Audit every adapter below the roots into a fleet, and report what was done.

    An adapter whose files and rules are unchanged is not read again. A killed job can be resumed, and the result is the
    same as without the interruption. Adapters that no longer exist lose their rows.

    Args:
        roots: folders or weights files.
        out: the fleet's folder.
        listed: further places; one that is missing becomes a row with its error.
        base: a base model with which every update is compared; its name is not compared with what adapters declare.
        workers: how many processes; by default one for each core.
        progress: called after each adapter.

    Raises:
        AdapterError: a root is missing, or there is no adapter and never was one.
        GradienceError: a package is missing, or the folder holds something else.
        OutputError: another job is writing the fleet, or it cannot be written.
    """
    require("pyarrow", "duckdb", "xxhash", extra="fleet", what="a fleet")
    start = time.monotonic()
    count = workers or cores()
    store = Store(Path(out), FLEET)
    listed = tuple(listed)
    if not store.parts and next(find_adapters(roots, listed), None) is None:
        where = few([os.fspath(root) for root in roots], 3) or "the listed places"
        raise AdapterError(f"no adapter below {where}", advice=_SOUGHT)
    with store.writing() as writer:
        known, rules = known_rows(store), rules_version(base)
        adapters = find_adapters(roots, listed, known=known.keys())
        beside = None if base is None else os.fspath(base)
        plan = plan_of((Job(*item, base=beside, rules=rules) for item in adapters), known, rules)
        store.keep_private(Path(job.place) for job in plan.jobs)
        answers = _answers(plan.jobs, min(count, max(1, len(plan.jobs))))
        tally, same = carry_out(writer, plan, answers, crashed, progress)
        if tally.done or plan.gone:
            known = known_rows(store)
    errors, deaths = failures_in(known)
    return FleetAuditReport(
        schema=FLEET_AUDIT_SCHEMA_ID,
        out=str(out),
        workers=count,
        found=plan.found,
        audited=tally.done - same,
        unchanged=plan.found - tally.done + same,
        removed=plan.removed,
        errors=errors,
        crashed=deaths,
        seconds=time.monotonic() - start,
    )


def crashed(job: Job) -> bytes:
    """The rows of an adapter on which workers died."""
    return failed(job, "worker processes died on it twice", "")


def _answers(jobs: Sequence[Job], workers: int) -> Iterator[Done[Job]]:
    return carried_out(audit_job, jobs, workers=workers, prepare=prepare_worker) if jobs else iter(())


def rules_version(base: PathLike | None) -> str:
    """The version of everything but the adapter that a row depends on: the rules, and the base compared with."""
    own = version_of_rules("weights", "weights_and_base", "between")
    return own if base is None else f"{own} base {real_path(base)}"


def prepare_worker() -> None:
    """Restrict a worker's libraries to one thread on the CPU."""
    prepare_jax("cpu", serial_kernels=True)

    use_threads(1)


class JobProgress(NamedTuple):
    """The progress of a job: sources done, sources in all, and failures so far."""

    done: int
    total: int
    failures: int


def known_rows(store: Store) -> dict[str, Known]:
    """The sources that have rows, by path. DuckDB reads them, because it starts sooner than pyarrow."""
    if not store.parts:
        return {}
    with opened(store) as base:
        sql = f"select path, stamp, rules, content_hash, error is not null from {store.tables.head}"  # noqa: S608  # our own table
        return {path: Known(*rest) for path, *rest in base.execute(sql).fetchall()}


def failures_in(known: Mapping[str, Known]) -> tuple[int, int]:
    """Two counts of sources without numbers: those with an error, and those on which workers died."""
    without = [row for row in known.values() if row.failed]
    return sum(bool(row.stamp) for row in without), sum(not row.stamp for row in without)


class Plan(NamedTuple):
    """The work to do: jobs, sources whose rows are removed first, and counts of sources found and removed."""

    jobs: Sequence[Job]
    gone: Sequence[str]
    found: int
    removed: int


def plan_of(found: Iterable[Job], known: dict[str, Known], rules: str) -> Plan:
    """Plan the jobs for sources that are new or out of date.

    Args:
        found: a job for every source there is.
        known: the sources that have rows.
        rules: the version of the rules that rows must have.
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
            # Rows of current rules stay until the answer comes: perhaps only the times of the files have changed.
            current = bool(row.content_hash) and row.rules == rules
            jobs.append(job.knowing(row.content_hash) if current else job)
            gone += [] if current else [job.path]
    removed = known.keys() - there
    return Plan(jobs, [*gone, *removed], len(there), len(removed))


def carry_out(
    writer: Writer,
    plan: Plan,
    answers: Iterable[Done[Job]],
    crashed: Callable[[Job], bytes],
    progress: Callable[[JobProgress], None] | None = None,
) -> tuple[JobProgress, int]:
    """Write the answers in batches as they come.

    Args:
        writer: writer of the store.
        plan: the plan that is answered; the rows it drops are dropped first.
        answers: of the workers.
        crashed: gives the rows of a job on which workers died.
        progress: called after each answer.

    Returns:
        The number of answers, and how many of these are of sources with unchanged content.
    """
    writer.replace(dict.fromkeys(plan.gone))
    batch: list[bytes] = []
    replaced: dict[str, str | None] = {}
    tally, same, last = JobProgress(0, len(plan.jobs), 0), 0, time.monotonic()
    for job, answer in answers:
        if answer == SAME:
            replaced[job.path] = job.stamp
            same += 1
        else:
            batch.append(crashed(job) if answer is None else answer)
            if job.known_hash:
                replaced[job.path] = None
        tally = JobProgress(tally.done + 1, tally.total, tally.failures + is_failure(answer))
        if progress is not None:
            progress(tally)
        if len(batch) >= BATCH or time.monotonic() - last > BATCH_SECONDS:
            # Old rows go before the new ones come: after a kill in between an adapter has no row, and never two.
            writer.replace(replaced)
            writer.add(batch)
            batch, replaced, last = [], {}, time.monotonic()
    writer.replace(replaced)
    writer.add(batch)
    if tally.done or plan.gone:
        writer.compact()
    return tally, same


class Job(msgspec.Struct, frozen=True):
    """An adapter to audit; the first fields are those of `find.AdapterPlace`."""

    path: str
    place: str
    files: tuple[str, ...]
    stamp: str
    fault: str | None = None
    known_hash: str = ""
    """The content hash in its row, or "". If the content still has this hash, nothing is computed."""
    base: str | None = None
    rules: str = ""

    def knowing(self, content_hash: str) -> Job:
        """This job for a source whose rows have that content hash."""
        return msgspec.structs.replace(self, known_hash=content_hash)


def audit_job(job: Job) -> bytes:
    """The rows of one adapter; if it cannot be read, a row with the error."""
    return answered(job, _audited, failed, "the adapter")


def answered(job: Job, work: Callable[[Job], bytes], failed: Callable[[Job, str, str], bytes], what: str) -> bytes:
    """The answer for a source: its rows, or the row of a failure, without a stamp where the source may be whole."""
    try:
        return work(job)
    except MissingPackageError as error:
        return failed(job, str(error), "")
    except (GradienceError, OSError, MemoryError) as error:
        return failed(job, said(error) or type(error).__name__, job.stamp)
    except Exception as error:  # noqa: BLE001  # last resort: one source must not end the job
        return failed(job, f"a bug of gradience, not of {what}: {type(error).__name__}: {error}", "")


def failed(job: Job, reason: str, stamp: str) -> bytes:
    """The row of an adapter without numbers. Without a stamp it is tried again at the next call."""
    status: RowStatus = "error" if stamp else "crashed"
    row = AdapterRow(path=job.path, status=status, error=" ".join(reason.split()), rules=job.rules, stamp=stamp)
    return encoded([row], [], [])


def _audited(job: Job) -> bytes:
    if job.fault is not None:
        raise GradienceError(job.fault)
    place = Path(job.place)
    rows = _of_one_file(job, place)
    return _of_any_files(job, place) if rows is None else rows  # not `or`: SAME is empty but an answer


def _of_one_file(job: Job, place: Path) -> bytes | None:
    """The rows of an adapter in a single safetensors file that fits into memory, read once; None for any other."""
    *others, last = job.files
    if not last.endswith(_ENDING) or others not in ([], [CONFIG_NAME]):
        return None
    files = find_files(place)
    if files.weights.name != last or files.shards:
        return None
    data = _kept().buffer.read(files.weights)
    if data is None:
        return None
    hashes = _hashes([(name, files.folder / name) for name in others], last, data)
    if job.known_hash and job.known_hash == hashes[0]:
        return SAME
    return _computed(job, place, hashes, files, _kept().layouts.read(files, data))


def _of_any_files(job: Job, place: Path) -> bytes:
    folder = place if place.is_dir() else place.parent
    hashes = _hashes([(name, folder / name) for name in job.files])
    if job.known_hash and job.known_hash == hashes[0]:
        return SAME
    return _computed(job, place, hashes, *open_adapter(place))


def _computed(job: Job, place: Path, hashes: tuple[str, str], files: AdapterFiles, adapter: Adapter) -> bytes:
    from gradience.base.weights import factors_of  # numpy in workers only
    from gradience.spectral.grams import grams_and_sketch  # numpy and JAX in workers only
    from gradience.verbs.audit.report import audit_documents, with_joint  # the same

    names = [module.name for module in adapter.modules]
    grams, sketch = grams_and_sketch(names, [factors_of(module) for module in adapter.modules])
    options = AuditOptions(base=None if job.base is None else Path(job.base))
    documents = Documents.of_adapter(OpenAdapter.of_files(place, files, adapter))
    report = with_joint(audit_documents(documents, options, left_out={}, grams=grams), documents, {})
    pairs = {name for name, role in adapter.roles.items() if role == "lora_pair"}
    dtypes = sorted({info.dtype for name, info in adapter.tensors.items() if name in pairs})
    settings = _settings(files.config, adapter)
    source = Source(job.path, job.rules, job.stamp, *hashes, settings, ",".join(dtypes) or None, list(sketch))
    row, modules, findings = rows_of(source, report)
    return encoded([row], modules, findings)


def _settings(path: Path, adapter: Adapter) -> str | None:
    """The configuration beside the weights as JSON; None if there is none, or none that settings can be read from."""
    from gradience.configs.document import read_peft  # in workers only

    if not path.is_file():
        return None
    try:
        config = read_peft(path).config
    except ConfigError:
        return None
    noted: dict[str, Json] = {"revision": adapter.config.revision} if isinstance(adapter.config.revision, str) else {}
    whole = [name for name, role in adapter.roles.items() if role in {"full_module", "base_copy"}]
    if whole and adapter.file_format.is_peft:
        noted["beside"] = {group: [*names] for group, names in grouped(whole).items()}
    return msgspec.json.encode(msgspec.structs.replace(config, extras={**config.extras, **noted})).decode()


class _Kept:
    """Objects that a worker process keeps from job to job."""

    def __init__(self) -> None:
        self.buffer = Buffer(_MOST_HELD)
        self.layouts = Layouts()


@cache
def _kept() -> _Kept:
    return _Kept()


def _hashes(files: list[tuple[str, Path]], last: str | None = None, data: Bytes | None = None) -> tuple[str, str]:
    """128-bit XXH3 hashes over all files' contents with their roles, and over the weights alone.

    Args:
        files: names and paths, in order.
        last: the name of one more file, given as bytes.
        data: the bytes of `last`.
    """
    from xxhash import xxh3_128  # extra [fleet]; SHA-256 would take as long as the audit

    content, weights = xxh3_128(), xxh3_128()
    digests = [(name, _digest(path)) for name, path in files]
    if last is not None and data is not None:
        digests.append((last, xxh3_128(data.data).digest()))
    for name, digest in digests:
        role = b"config" if name == CONFIG_NAME else b"weights"
        # By role: a copy whose file has another name is the same adapter.
        content.update(role + digest)
        if role == b"weights":
            weights.update(digest)
    return content.hexdigest(), weights.hexdigest()


def _digest(path: Path) -> bytes:
    from xxhash import xxh3_128  # as above

    digest = xxh3_128()
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.digest()


def is_failure(answer: bytes | None) -> bool:
    """Whether an answer says that a source has no numbers."""
    if answer == SAME:
        return False
    return answer is None or msgspec.msgpack.decode(answer, type=WorkerResult).failed
