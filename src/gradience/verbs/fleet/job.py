"""One adapter's audit as a job of a worker process. Every engine runs this function, so the rows are the same."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Final

import msgspec

from gradience.adapters.layout import Adapter
from gradience.adapters.open import CONFIG_NAME, AdapterFiles, Buffer, Bytes, Layouts, find_files, open_adapter
from gradience.errors import GradienceError
from gradience.io.reading import open_regular
from gradience.schema.document import writable
from gradience.schema.fleet import AdapterRow, RunRow
from gradience.verbs.fleet import Result, rows_of

_CHUNK: Final = 1 << 20
_ENDING: Final = ".safetensors"
_MOST_HELD: Final = 1 << 26  # most bytes of a file that a worker reads whole

SAME: Final = b""
"""The answer for an adapter whose content is unchanged."""


class Job(msgspec.Struct, frozen=True):
    """An adapter to audit; the first fields are those of `find.Found`."""

    path: str
    place: str
    files: tuple[str, ...]
    stamp: str
    remote: bool = False
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
    try:
        return _audited(job)
    except (GradienceError, OSError, MemoryError) as error:
        return failed(job, str(error) or type(error).__name__)
    except Exception as error:  # noqa: BLE001  # last resort: one adapter must not end the job
        return failed(job, f"a bug of gradience, not of the adapter: {type(error).__name__}: {error}", crashed=True)


def failed(job: Job, reason: str, *, crashed: bool = False) -> bytes:
    """The row of an adapter without numbers. A crash gets no stamp, so the next job tries the adapter again."""
    row = AdapterRow(
        path=job.path,
        status="crashed" if crashed else "error",
        error=" ".join(reason.split()),
        rules=job.rules,
        stamp="" if crashed else job.stamp,
    )
    return encoded([row], [], [])


def _audited(job: Job) -> bytes:
    if job.fault is not None:
        raise GradienceError(job.fault)
    with _local(job) as place:
        found = _of_one_file(job, place)
        return _of_any_files(job, place) if found is None else found  # not `or`: SAME is empty but an answer


def _local(job: Job) -> AbstractContextManager[Path]:
    if job.remote:
        from gradience.verbs.fleet.find import fetched  # noqa: PLC0415  # fsspec is needed for URLs only

        return fetched(job.place, job.files)
    return nullcontext(Path(job.place))


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
    from gradience.base.weights import factors_of  # noqa: PLC0415  # numpy in workers only
    from gradience.spectral.grams import grams_and_sketch  # noqa: PLC0415  # numpy and JAX in workers only
    from gradience.verbs.audit import audit_opened  # noqa: PLC0415  # the same
    from gradience.verbs.audit.against_base import BaseOptions  # noqa: PLC0415  # the same

    names = [module.name for module in adapter.modules]
    grams, sketch = grams_and_sketch(names, [factors_of(module) for module in adapter.modules])
    beside = None if job.base is None else BaseOptions(Path(job.base))
    report = audit_opened(place, files, adapter, beside=beside, grams=grams)
    row, modules, findings = rows_of(job.path, report, (job.rules, job.stamp, *hashes), sketch)
    return encoded([row], modules, findings)


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
    from xxhash import xxh3_128  # noqa: PLC0415  # extra [fleet]; SHA-256 would take as long as the audit

    content, weights = xxh3_128(), xxh3_128()
    digests = [(name, _digest(path)) for name, path in files]
    if last is not None and data is not None:
        digests.append((last, xxh3_128(data.data).digest()))
    for name, digest in digests:
        role = b"config" if name == CONFIG_NAME else b"weights"
        content.update(role + digest)
        if role == b"weights":
            weights.update(digest)
    return content.hexdigest(), weights.hexdigest()


def _digest(path: Path) -> bytes:
    from xxhash import xxh3_128  # noqa: PLC0415  # as above

    digest = xxh3_128()
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.digest()


def is_failure(answer: bytes | None) -> bool:
    """Whether an answer says that a source has no numbers."""
    if answer == SAME:
        return False
    return answer is None or msgspec.msgpack.decode(answer, type=Result).failed


def encoded(heads: Sequence[AdapterRow | RunRow], *others: Sequence[msgspec.Struct]) -> bytes:
    """Encode rows as bytes, in the form in which every engine passes them between processes."""
    failed = any(head.error is not None for head in heads)
    return msgspec.msgpack.encode(Result(failed, tuple(_raw(rows) for rows in (heads, *others))))


def _raw(rows: Sequence[msgspec.Struct]) -> msgspec.Raw:
    values = [msgspec.structs.astuple(row) for row in rows]
    try:
        return msgspec.Raw(msgspec.msgpack.encode(values))
    except UnicodeEncodeError:  # a message quotes a name that is not UTF-8
        return msgspec.Raw(msgspec.msgpack.encode(writable(msgspec.to_builtins(values))))
