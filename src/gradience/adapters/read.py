"""The one entry: an adapter's files to its modules, whatever format they are in.

The format is told by the tensors' names, then by the config's fields; never by a file's name. Both PEFT and
MLX-LM call their config `adapter_config.json`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gradience.adapters.config import AdapterConfig, read_config
from gradience.adapters.folder import AdapterFiles
from gradience.adapters.kohya import is_diffusers, is_kohya, read_diffusers, read_kohya
from gradience.adapters.mlx import is_mlx, is_torchtune, read_full, read_mlx, read_torchtune
from gradience.adapters.modules import Adapter
from gradience.adapters.peft import is_peft, read_peft
from gradience.adapters.tensors import ShardedFiles, TensorSource

__all__ = ["read_adapter"]


def read_adapter(files: AdapterFiles, open_weights: Callable[[Path], TensorSource]) -> Adapter:
    """Return the adapter that the files hold.

    Args:
        files: from `find_files`.
        open_weights: opens one weights file; the caller decides whether pickles are welcome.

    Raises:
        AdapterError: a file is missing, damaged, or of a type that the config contradicts.
    """
    shards = [open_weights(path) for path in files.shards]
    source = ShardedFiles(files.weights, shards) if shards else open_weights(files.weights)
    adapter = _read(source, files)
    notes = [*adapter.notes, *_notes(files)]
    return replace(adapter, notes=notes, weights=list(files.shards) or [files.weights], source=source)


def _read(source: TensorSource, files: AdapterFiles) -> Adapter:  # noqa: PLR0911  # one return a format reads best
    keys = source.tensors
    if is_mlx(keys):
        return read_mlx(source, read_config(files.config))
    if is_torchtune(keys):
        return read_torchtune(source, read_config(files.config))
    if is_kohya(keys):
        return read_kohya(source, _optional(files))
    if is_peft(keys) and (files.config.is_file() or not is_diffusers(keys, source.metadata)):
        return read_peft(source, read_config(files.config))
    if is_diffusers(keys, source.metadata):
        return read_diffusers(source)
    config = _optional(files)
    if config.peft_type is None and config.fine_tune_type == "full":
        return read_full(source, config)
    return read_peft(source, config)


def _optional(files: AdapterFiles) -> AdapterConfig:
    return read_config(files.config) if files.config.is_file() else AdapterConfig()


def _notes(files: AdapterFiles) -> list[str]:
    notes = []
    if files.others:
        names = ", ".join(path.name for path in files.others)
        notes.append(f"the folder also holds adapters in sub-folders, which were not read: {names}")
    links = [(path, _elsewhere(path)) for path in (files.config, *(files.shards or (files.weights,)))]
    return notes + [
        f"{path.name} is a link to another place, which was read: {target}" for path, target in links if target
    ]


def _elsewhere(path: Path) -> Path | None:
    """Return where a link leads outside its folder, except into a hub cache's own blobs."""
    if not path.is_symlink():
        return None
    target, home = path.resolve(), path.parent.resolve()
    in_cache = target.parent.name == "blobs" and home.is_relative_to(target.parent.parent / "snapshots")
    return None if target.is_relative_to(home) or in_cache else target
