"""The first step of an audit: an adapter, where it comes from, and what lies beside it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from gradience.adapters.layout import Adapter
from gradience.adapters.open import AdapterFiles, open_adapter
from gradience.configs.beside import beside, optimizer_beside
from gradience.io import PathLike
from gradience.schema.audit import Beside


class OpenAdapter(NamedTuple):
    """An adapter, and where it comes from in the report's words; factors in memory come from nowhere."""

    adapter: Adapter
    path: str = ""
    weights: str = ""
    config: Path | None = None
    """None for a format without a config."""
    beside: Beside = Beside()
    optimizer: str | None = None
    """None if nothing says which trained it."""


def open_files(
    path: PathLike,
    *,
    adapter_config: PathLike | None = None,
    weights: PathLike | None = None,
    optimizer: str | None = None,
) -> OpenAdapter:
    """Open an adapter's files; `optimizer` wins over the training arguments beside them.

    Raises:
        AdapterError: files are missing, damaged or of another format.
    """
    files, adapter = open_adapter(path, adapter_config=adapter_config, weights=weights)
    return opened_of(Path(path), files, adapter, optimizer=optimizer)


def opened_of(path: Path, files: AdapterFiles, adapter: Adapter, *, optimizer: str | None = None) -> OpenAdapter:
    """An adapter that is open already, with what lies beside it."""
    return OpenAdapter(
        adapter,
        path=str(path),
        weights=str(files.weights),
        config=files.config if files.config.is_file() else None,
        optimizer=optimizer or optimizer_beside(files.config),
        beside=beside(path, adapter.config.base_model_name_or_path),
    )
