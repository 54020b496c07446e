"""The folder of a trial, which keeps candidates and evaluations, each complete or absent.

Both are named by a hash of everything that they depend on. So a run that was killed continues where it stopped, and a
kept result is not used after the adapter, the data or a command has changed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from filelock import FileLock, Timeout

from gradience.adapters.open import open_adapter
from gradience.base.weights import identity
from gradience.errors import AdapterError, ConfigError, GradienceError, OutputError
from gradience.io import make_folder
from gradience.io.atomic import atomic_file
from gradience.io.reading import decode_json, open_regular, read_small
from gradience.schema import Real, as_float
from gradience.schema.compare import BenchReport
from gradience.spectral.grams import Floats

REPORT_NAME: Final = "bench.json"
MOST_SCORE: Final = 1e100
"""A score beyond this, in size, is no measurement: it counts as infinite, so that sums and squares stay finite."""
_VERSION: Final = 2
_EVALUATIONS: Final = "evaluations"
_LARGEST: Final = 256 << 20  # bytes of an evaluation: a score takes about 40, and a test set may have a million
_UNFIT: Final = re.compile(r"[^A-Za-z0-9.-]+")
_MOST_WEIGHT: Final = 1e15  # tokens of an example
_HASH: Final = 12  # hexadecimal digits of the hash in a name


class Evaluation(msgspec.Struct, kw_only=True, frozen=True):
    """The scores of one adapter, one per example with its weight."""

    scores: list[Real]
    weights: list[float]
    kl: Real | None = None
    flips: float | None = None
    notes: list[str] = []

    @property
    def values(self) -> Floats:
        """The scores (n,)."""
        return np.array([as_float(score) for score in self.scores])

    @property
    def mean(self) -> float:
        """The weighted mean of the scores."""
        with np.errstate(invalid="ignore"):  # infinities of both signs: no number
            return float(np.asarray(self.weights) @ self.values / math.fsum(self.weights))


class _EvaluationDocument(msgspec.Struct):
    version: int
    of: dict[str, Any]
    evaluation: Evaluation


def digest_of(what: dict[str, Any]) -> str:
    """The SHA-256 hash of a description, as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def adapter_digest(adapter: Path) -> str:
    """A hash of an adapter's weights and config.

    Raises:
        AdapterError: the adapter cannot be read.
    """
    files, opened = open_adapter(adapter)
    return identity([*([files.config] if files.config.is_file() else []), *opened.weights])


def file_hash(path: Path) -> str:
    """The SHA-256 hash of a file's content, in hexadecimal digits.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        with open_regular(path) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", advice="give a file of held-out rows") from error


@contextmanager
def refusing(name: str, advice: str) -> Iterator[None]:
    """A context that turns a ValueError, raised while a candidate is made, into an error that names the candidate.

    Raises:
        AdapterError: the block raised ValueError.
    """
    try:
        yield
    except ValueError as error:
        raise AdapterError(f"{name}: {error}", advice=advice) from error


class BenchStore:
    """One trial's folder. `evaluated` and `reused` count the evaluations of this run."""

    def __init__(self, folder: Path, sources: Sequence[Path]) -> None:
        self.folder, self._sources = folder, sources
        self.evaluated = 0
        self.reused = 0

    def made(self, name: str, how: dict[str, Any], make: Callable[[Path], None]) -> Path:
        """The folder of a candidate, which `make` writes if it is missing, complete or not at all."""
        place = self.folder / "candidates" / f"{slug(name)}-{digest_of(how)[:_HASH]}"
        if not place.is_dir():
            make(place)
        return place

    def evaluation(self, name: str, of: dict[str, Any], evaluate: Callable[[], Evaluation]) -> Evaluation:
        """The evaluation that `of` describes: the kept one, or else the result of `evaluate`, which is then kept."""
        place = self.folder / _EVALUATIONS / f"{slug(name)}-{digest_of(of)[:_HASH]}.json"
        kept = _read(place, of)
        if kept is not None:
            self.reused += 1
            return kept
        result = evaluate()
        with atomic_file(place, sources=self._sources, force=True) as draft:
            draft.write_bytes(msgspec.json.encode(_EvaluationDocument(_VERSION, of, result)))
        self.evaluated += 1
        return result

    def keep_report(self, document: str) -> None:
        """Write the report, and replace an earlier one."""
        with atomic_file(self.folder / REPORT_NAME, sources=self._sources, force=True) as draft:
            draft.write_text(document + "\n", encoding="utf-8")


@contextmanager
def opened_store(folder: Path, sources: Sequence[Path]) -> Iterator[BenchStore]:
    """A context that yields the store in a folder. Only one process at a time can use it.

    Args:
        folder: it may be new.
        sources: the adapters and data: what others may not read of them, they may not read of the store.

    Raises:
        OutputError: the folder holds something else, cannot be written to, or is in use by another process.
    """
    try:
        if folder.is_dir() and any(folder.iterdir()) and not (folder / _EVALUATIONS).is_dir():
            raise OutputError(f"{folder} is not empty, and no folder of gradience bench", advice="give another --out")
        make_folder(folder / _EVALUATIONS)
        with FileLock(folder / ".lock", timeout=0):
            yield BenchStore(folder, sources)
    except Timeout as error:
        raise OutputError(f"another process is running a bench in {folder}", advice="wait, or give another") from error
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror}", advice="give another --out") from error


def slug(name: str) -> str:
    """The name reduced to characters that are safe in a file name.

    >>> slug("linear:0.5,0.5")
    'linear-0.5-0.5'
    """
    return _UNFIT.sub("-", name).strip("-.")[:60] or "x"


def _read(place: Path, of: dict[str, Any]) -> Evaluation | None:
    """The kept evaluation, or None if it is missing, damaged, or described differently. It is then run again."""
    if not place.is_file():
        return None
    try:
        document = decode_json(read_small(place, most=_LARGEST, what="an evaluation"), _EvaluationDocument)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    kept = document.evaluation
    sound = len(kept.scores) == len(kept.weights) > 0 and all(1.0 <= w <= _MOST_WEIGHT for w in kept.weights)
    sound = sound and bool(np.all((np.abs(kept.values) <= MOST_SCORE) | ~np.isfinite(kept.values)))
    # Compared whole, because the file's name has but a part of the hash.
    return kept if sound and document.version == _VERSION and document.of == of else None


def report_path(path: Path) -> Path:
    """The path of the report in a trial's folder. A path that is not a folder is returned as it is."""
    return path / REPORT_NAME if path.is_dir() else path


def read_report(path: Path) -> BenchReport:
    """Read a bench's report from the trial's folder or from the report's file.

    Raises:
        GradienceError: the report is missing, or is not a report of a bench.
    """
    place = report_path(path)
    try:
        return decode_json(read_small(place, most=_LARGEST, what="a bench report"), BenchReport)
    except OSError as error:
        raise GradienceError(f"cannot read {place}: {error.strerror}", advice="give the --out of a bench") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise GradienceError(f"{place} is not a bench report: {error}", advice="give the --out of a bench") from error
