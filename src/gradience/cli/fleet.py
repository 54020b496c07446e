"""``gradience fleet``: audit, show and query."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from gradience.cli import options as opt
from gradience.errors import AdapterError
from gradience.render.fleet import fleet_audit_text

if TYPE_CHECKING:
    from gradience.verbs.fleet.audit import Tally

Engine = Literal["local", "ray"]


def audit(
    *roots: str,
    out: Path | None = None,
    list: Path | None = None,  # noqa: A002  # the option's name
    base: opt.Base = None,
    engine: Engine = "local",
    workers: PositiveInt | None = None,
    address: str | None = None,
    json: opt.AsJson = False,
) -> int:
    """Audit every adapter below some folders or URLs, and keep the numbers as Parquet.

    A second call reads only what changed. One that was killed is taken up where it was.

    Parameters
    ----------
    roots:
        Folders, weights files, or fsspec URLs (s3://, gs://, hf://).
    out:
        The fleet's folder: written, or brought up to date.
    list:
        A file with one further path or URL on each line.
    engine:
        local: worker processes of this machine. ray: tasks of a Ray cluster (pip install 'gradience[ray]').
    workers:
        How many processes, or tasks at once. Default: one for each core.
    address:
        Of a Ray cluster, or auto. Default: a new one on this machine alone.
    """
    if not roots and list is None:
        raise AdapterError("no folder to look in", advice="give folders with adapters below, or --list FILE")
    if out is None:
        raise AdapterError("no output folder", advice="give --out FLEET")
    from gradience.verbs.fleet.audit import audit_fleet  # noqa: PLC0415  # the help needs none of it
    from gradience.verbs.fleet.find import read_list  # noqa: PLC0415  # the same

    report = audit_fleet(
        *roots,
        out=out,
        listed=() if list is None else read_list(list),
        base=base,
        engine=engine,
        workers=workers,
        address=address,
        progress=_progress(),
    )
    return opt.print_report(report, fleet_audit_text, json=json)


def _progress() -> Callable[[Tally], None]:
    """A function that writes rate, time left and failures to stderr: in place on a terminal, else now and then."""
    start = last = time.monotonic()
    watched = sys.stderr.isatty()

    def tell(tally: Tally) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < (0.2 if watched else 30.0) and tally.done < tally.total:
            return
        last = now
        rate = tally.done / max(now - start, 1e-9)
        left = f", {(tally.total - tally.done) / rate:.0f} s left" if tally.done < tally.total else ""
        failures = f", {tally.failures} failed" if tally.failures else ""
        line = f"fleet: {tally.done}/{tally.total}, {rate:.1f} a second{left}{failures}"
        end = "\r" if watched and tally.done < tally.total else "\n"
        sys.stderr.write(f"{line:<79}{end}" if watched else f"{line}{end}")
        sys.stderr.flush()

    return tell
