"""What one source says, and how sources lie on top of each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from gradience.schema.config import ConfigSnapshot
from gradience.schema.reports import SourceFile

__all__ = ["Layer", "overlay", "stack"]

S = TypeVar("S", bound=msgspec.Struct)


class Layer(msgspec.Struct, kw_only=True, frozen=True):
    """The part of a configuration that one source gives, and what it held besides."""

    config: ConfigSnapshot = ConfigSnapshot()
    sources: tuple[SourceFile, ...] = ()
    unknown_keys: tuple[str, ...] = ()
    secret_keys: tuple[str, ...] = ()
    masked_keys: tuple[str, ...] = ()
    output_dir: str | None = None
    """Where the run will write: a place of the user's, looked at and never reported."""


def stack(layers: Iterable[Layer]) -> Layer:
    """Return the layers as one: a later one wins where both say something."""
    whole = Layer()
    for layer in layers:
        whole = Layer(
            config=overlay(whole.config, layer.config),
            sources=whole.sources + layer.sources,
            unknown_keys=whole.unknown_keys + layer.unknown_keys,
            secret_keys=whole.secret_keys + layer.secret_keys,
            masked_keys=whole.masked_keys + layer.masked_keys,
            output_dir=layer.output_dir or whole.output_dir,
        )
    return whole


def overlay(lower: S, upper: S) -> S:
    """Return `lower` with every field that `upper` says laid over it; `extras` are joined."""
    said = {
        field.name: _joined(field.name, getattr(lower, field.name), getattr(upper, field.name))
        for field in msgspec.structs.fields(upper)
        if getattr(upper, field.name) != _unsaid(field)
    }
    return msgspec.structs.replace(lower, **said)


def _joined(name: str, lower: object, upper: object) -> object:
    if isinstance(upper, msgspec.Struct) and isinstance(lower, msgspec.Struct):
        return overlay(lower, upper)
    if name == "extras" and isinstance(upper, dict) and isinstance(lower, dict):
        return {**lower, **upper}
    return upper


def _unsaid(field: msgspec.structs.FieldInfo) -> object:
    return field.default_factory() if field.default is msgspec.NODEFAULT else field.default
