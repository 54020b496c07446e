"""Where a written adapter came from: which files, by which operation, at what cost."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from gradience.schema.scalars import Fraction, Json, NonNegativeInt

__all__ = ["PROVENANCE_SCHEMA_ID", "ModuleChange", "Provenance", "SourceFile"]

PROVENANCE_SCHEMA_ID: Final = "gradience.vnext.provenance/v1"


class SourceFile(msgspec.Struct, kw_only=True, frozen=True):
    """One file that was read, by name and content; never by where it lay."""

    name: str
    bytes: NonNegativeInt
    digest: Annotated[str, Meta(description="`sha256:...`, or `etag:...` of a file in the hub's cache.")]


class ModuleChange(msgspec.Struct, kw_only=True, frozen=True):
    """What became of one module's update."""

    name: str
    rank_before: NonNegativeInt
    rank_after: NonNegativeInt
    relative_error: Annotated[
        Fraction | None,
        Meta(description="Frobenius norm of what was left out over that of the update; null where it is zero."),
    ] = None


class Provenance(msgspec.Struct, kw_only=True, frozen=True):
    """The record that is written beside an adapter, as `gradience_provenance.json`."""

    schema: str = PROVENANCE_SCHEMA_ID
    operation: Annotated[str, Meta(description="The verb: `resize`, `convert`, `merge`, ...")]
    version: Annotated[str, Meta(description="Of the program that wrote it.")]
    created: Annotated[float, Meta(description="Unix time in seconds.")]
    options: Annotated[dict[str, Json], Meta(description="What was asked for, without paths.")] = {}
    sources: list[SourceFile] = []
    relative_error: Annotated[
        Fraction | None, Meta(description="Of the whole: over all modules' squared Frobenius norms.")
    ] = None
    modules: list[ModuleChange] = []
    notes: list[str] = []
