"""One adapter's audit as a job of a worker process: the same function under every engine, so the rows are the same."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
from msgspec import inspect

from gradience.adapters.layout import Adapter
from gradience.adapters.open import CONFIG_NAME, AdapterFiles, Layouts, find_files, open_adapter
from gradience.errors import GradienceError
from gradience.io.held import Buffer, Bytes
from gradience.io.reading import open_regular
from gradience.schema.audit import AuditReport, ModuleAudit
from gradience.schema.document import writable
from gradience.schema.findings import Finding, RuleGroup, by_severity
from gradience.schema.fleet import AdapterRow, FindingRow, ModuleRow, RunRow
from gradience.schema.scalars import NonFinite, as_float

if TYPE_CHECKING:
    import pyarrow as pa


_NUMBERS: Final = "3"
"""Raised when a number in a row changes, or the way a rule is judged."""


@cache
def version_of_rules(*groups: RuleGroup) -> str:
    """What rows depend on beside their source, the rules of these groups: rows of another version are made again."""
    from gradience.rules.registry import cards_of  # noqa: PLC0415  # all rules; a query of a store needs none

    stated = msgspec.json.encode(cards_of(*groups))
    return f"{_NUMBERS}-{hashlib.sha256(stated).hexdigest()[:12]}"


Row: TypeAlias = type[msgspec.Struct]


class Result(msgspec.Struct, frozen=True, array_like=True):
    """What a worker returns for one source: the rows of each table, in order, each row as the values of its columns."""

    failed: bool
    """Whether the first table has a row without numbers."""
    tables: tuple[msgspec.Raw, ...]


def arrow_schema(row: Row) -> pa.Schema:
    """The Arrow schema of a table: a column for each field of the Struct, nullable where None is allowed."""
    import pyarrow as pa  # noqa: PLC0415  # extra [fleet]

    kind = inspect.type_info(row)
    assert isinstance(kind, inspect.StructType)  # noqa: S101  # the argument's type
    fields = [pa.field(field.encode_name, *_arrow(pa, field.type)) for field in kind.fields]
    return pa.schema(fields)


_SCALARS: Final[dict[type[inspect.Type], str]] = {
    inspect.StrType: "string",
    inspect.IntType: "int64",
    inspect.FloatType: "float64",
    inspect.BoolType: "bool_",
    inspect.LiteralType: "string",
}


def _arrow(pa: Any, kind: inspect.Type) -> tuple[Any, bool]:
    """An Arrow type, and whether it is nullable."""
    if isinstance(kind, inspect.Metadata):
        return _arrow(pa, kind.type)
    if isinstance(kind, inspect.UnionType):
        (inner,) = (one for one in kind.types if not isinstance(one, inspect.NoneType))
        return _arrow(pa, inner)[0], True
    if isinstance(kind, inspect.ListType):
        item = _arrow(pa, kind.item_type)[0]
        return pa.list_(pa.float32() if item == pa.float64() else item), False
    if isinstance(kind, inspect.StructType):
        return pa.struct([pa.field(f.encode_name, *_arrow(pa, f.type)) for f in kind.fields]), False
    return getattr(pa, _SCALARS[type(kind)])(), False


def rows_of(
    path: str, report: AuditReport, identity: tuple[str, str, str, str], sketch: Sequence[float]
) -> tuple[AdapterRow, list[ModuleRow], list[FindingRow]]:
    """The rows of one adapter.

    Args:
        path: their key.
        report: the audit.
        identity: version of the rules, stamp of the files, hash of the content and of the weights.
        sketch: of the update.
    """
    modules = [_module(path, place, module) for place, module in enumerate(report.modules)]
    found = [
        FindingRow(path=path, position=place, **finding_columns(item)) for place, item in enumerate(report.findings)
    ]
    return _adapter(path, report, identity, sketch), modules, found


def _adapter(
    path: str, report: AuditReport, identity: tuple[str, str, str, str], sketch: Sequence[float]
) -> AdapterRow:
    rules, stamp, content, weights = identity
    summary, ranks = report.summary, [m.r for m in report.modules]
    cut = report.suggested.get("p90")
    energies = [as_float(m.frobenius_norm or 0.0) ** 2 for m in report.modules if m.state == "ok"]
    worst = next((item.severity for item in by_severity(report.findings)), None)
    return AdapterRow(
        path=path,
        content_hash=content,
        weights_hash=weights,
        rules=rules,
        stamp=stamp,
        bytes=sum(entry.bytes for entry in report.ledger),
        format=report.format,
        peft_type=report.peft_type,
        base_model=report.base_model,
        verdict=report.health.verdict,
        reason=report.health.reason,
        modules=len(report.modules),
        not_analysed=len(report.not_analysed),
        r=max(ranks, default=None),
        r_min=min(ranks, default=None),
        module_types=",".join(sorted({m.module_type for m in report.modules})),
        shape_key=_shape_key(report.modules),
        params=summary.total_lora_params,
        stable_rank_mean=summary.stable_rank_mean,
        effective_rank_mean=summary.effective_rank_mean,
        utilization_mean=summary.utilization_mean,
        energy_rank_90_p50=summary.energy_rank_90_p50,
        energy_rank_90_p90=summary.energy_rank_90_p90,
        null_stable_rank_mean=summary.null_stable_rank_mean,
        frobenius_norm=math.sqrt(sum(energies)) if energies else None,
        relative_frobenius=report.base.relative_frobenius if report.base is not None else None,
        suggested_rank=cut.rank if cut is not None else None,
        bytes_saved=cut.bytes_saved if cut is not None else 0,
        findings=len(report.findings),
        worst=worst,
        sketch=list(sketch),
    )


def _shape_key(modules: Sequence[ModuleAudit]) -> str:
    shapes = sorted((m.name, *m.shape) for m in modules)
    return hashlib.sha256(repr(shapes).encode("utf-8", "surrogatepass")).hexdigest()[:16] if shapes else ""


_COPIED: Final = tuple(name for name in ModuleRow.__struct_fields__ if name in ModuleAudit.__struct_fields__)
_MAY_BE_NON_FINITE: Final = {"alpha", "scaling", "spectral_norm", "frobenius_norm", "udr", "relative_frobenius"}


def _module(path: str, place: int, module: ModuleAudit) -> ModuleRow:
    rows, columns = module.shape
    values = {name: getattr(module, name) for name in _COPIED}
    values |= {name: number_column(values[name]) for name in _MAY_BE_NON_FINITE}
    return ModuleRow(path=path, position=place, rows=rows, columns=columns, **values)


def number_column(value: float | NonFinite | None) -> float | None:
    """A column's number; NaN and the infinities are null, as `state` says why."""
    number = None if value is None else as_float(value)
    return number if number is not None and math.isfinite(number) else None


def finding_columns(finding: Finding) -> dict[str, Any]:
    """What a row says of a finding, beside whose it is."""
    return {name: getattr(finding, name) for name in ("id", "severity", "message", "action", "confidence")}


_CHUNK: Final = 1 << 20
_ENDING: Final = ".safetensors"
_MOST_HELD: Final = 1 << 26  # bytes of a file that a worker holds whole


class Job(msgspec.Struct, frozen=True):
    """An adapter to audit; fields as in `find.Found`."""

    path: str
    place: str
    files: tuple[str, ...]
    stamp: str
    remote: bool = False
    fault: str | None = None
    known_hash: str = ""
    """The content hash of its row: if it still holds, nothing is computed."""
    base: str | None = None
    rules: str = ""

    def knowing(self, content_hash: str) -> Job:
        """The job of a source that has rows of that content."""
        return msgspec.structs.replace(self, known_hash=content_hash)


SAME: Final = b""
"""The answer for an adapter whose content is as it was."""


def audit_job(job: Job) -> bytes:
    """The rows of one adapter; of one that cannot be read a row with the error."""
    try:
        return _audited(job)
    except (GradienceError, OSError, MemoryError) as error:
        return failed(job, str(error) or type(error).__name__)
    except Exception as error:  # noqa: BLE001  # the last resort: one adapter is no reason to end the job
        return failed(job, f"a bug of gradience, not of the adapter: {type(error).__name__}: {error}", crashed=True)


def failed(job: Job, reason: str, *, crashed: bool = False) -> bytes:
    """The rows of an adapter without numbers. A crash has no stamp: the next job tries again."""
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
        return _of_any_files(job, place) if found is None else found  # SAME is empty, and an answer


def _local(job: Job) -> AbstractContextManager[Path]:
    if job.remote:
        from gradience.verbs.fleet.find import fetched  # noqa: PLC0415  # fsspec only for those with URLs

        return fetched(job.place, job.files)
    return nullcontext(Path(job.place))


def _of_one_file(job: Job, place: Path) -> bytes | None:
    """The rows of an adapter in one safetensors file that memory holds, read once; None for another."""
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
    from gradience.base.update import factors_of  # noqa: PLC0415  # jax
    from gradience.spectral.sketch import grams_and_sketch  # noqa: PLC0415  # numpy and JAX in workers only
    from gradience.verbs.audit import audit_opened  # noqa: PLC0415  # the same
    from gradience.verbs.audit.against_base import BaseOptions  # noqa: PLC0415  # the same

    names = [module.name for module in adapter.modules]
    grams, sketch = grams_and_sketch(names, [factors_of(module) for module in adapter.modules])
    beside = None if job.base is None else BaseOptions(Path(job.base))
    report = audit_opened(place, files, adapter, beside=beside, grams=grams)
    row, modules, findings = rows_of(job.path, report, (job.rules, job.stamp, *hashes), sketch)
    return encoded([row], modules, findings)


class _Kept:
    """What a worker process keeps from job to job."""

    def __init__(self) -> None:
        self.buffer = Buffer(_MOST_HELD)
        self.layouts = Layouts()


@cache
def _kept() -> _Kept:
    return _Kept()


def _hashes(files: list[tuple[str, Path]], last: str | None = None, data: Bytes | None = None) -> tuple[str, str]:
    """XXH3 of 128 bits over all files' contents with their roles, and over the weights alone.

    Args:
        files: names and places, in order.
        last: the name of one more file, whose bytes are `data`.
        data: its bytes.
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
    """Whether an answer is a row without numbers."""
    if answer == SAME:
        return False
    return answer is None or msgspec.msgpack.decode(answer, type=Result).failed


def encoded(heads: Sequence[AdapterRow | RunRow], *others: Sequence[msgspec.Struct]) -> bytes:
    """Rows as bytes, in the form in which they cross a process on every engine."""
    failed = any(head.error is not None for head in heads)
    return msgspec.msgpack.encode(Result(failed, tuple(_raw(rows) for rows in (heads, *others))))


def _raw(rows: Sequence[msgspec.Struct]) -> msgspec.Raw:
    values = [msgspec.structs.astuple(row) for row in rows]
    try:
        return msgspec.Raw(msgspec.msgpack.encode(values))
    except UnicodeEncodeError:  # a name that is not UTF-8, in a message
        return msgspec.Raw(msgspec.msgpack.encode(writable(msgspec.to_builtins(values))))
