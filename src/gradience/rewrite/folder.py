"""An adapter folder as PEFT saves one, written whole or not at all, with a record of where it came from."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec

from gradience.adapters.write import PlannedTensor, write_safetensors
from gradience.base.identity import file_digest
from gradience.errors import AdapterError, OutputError
from gradience.schema.provenance import ModuleChange, Provenance, SourceFile
from gradience.whole import whole_folder

__all__ = ["CONFIG_NAME", "PROVENANCE_NAME", "WEIGHTS_NAME", "provenance_of", "raw_config", "write_adapter"]

WEIGHTS_NAME: Final = "adapter_model.safetensors"
CONFIG_NAME: Final = "adapter_config.json"
PROVENANCE_NAME: Final = "gradience_provenance.json"


def write_adapter(
    out: Path,
    *,
    tensors: Sequence[PlannedTensor],
    config: Mapping[str, Any],
    provenance: Provenance,
    force: bool = False,
    weights_name: str = WEIGHTS_NAME,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a folder with the weights, the config and the record; tensors are loaded one at a time.

    Args:
        out: the folder; it must not exist, or be empty, unless `force`.
        tensors: written in this order.
        config: `adapter_config.json`, keys sorted as PEFT does.
        provenance: from `provenance_of`.
        force: replace a folder that exists, once the new one is complete. Never the source of a tensor.
        weights_name: for formats other than PEFT's.
        metadata: of the safetensors header; PEFT's is `{"format": "pt"}`.

    Raises:
        OutputError: the folder exists, or cannot be written.
    """
    with whole_folder(out, force=force) as folder:
        write_safetensors(folder / weights_name, tensors, metadata={"format": "pt"} if metadata is None else metadata)
        _write(folder / CONFIG_NAME, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
        _write(folder / PROVENANCE_NAME, msgspec.json.format(msgspec.json.encode(provenance), indent=2) + b"\n")


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}", advice="check the space left") from error


def provenance_of(
    operation: str,
    files: Iterable[Path],
    *,
    options: Mapping[str, Any],
    modules: Sequence[ModuleChange] = (),
    relative_error: float | None = None,
    notes: Sequence[str] = (),
) -> Provenance:
    """Return the record of an operation on the files, which are hashed; `options` must not hold paths."""
    return Provenance(
        operation=operation,
        version=version("gradience"),
        created=time.time(),
        options=dict(options),
        sources=[SourceFile(name=f.name, bytes=f.stat().st_size, digest=file_digest(f)) for f in files if f.is_file()],
        relative_error=relative_error,
        modules=list(modules),
        notes=list(notes),
    )


def raw_config(path: Path) -> dict[str, Any]:
    """Return an adapter's config with every key it has, known or not.

    Raises:
        AdapterError: the file cannot be read, or is no JSON object.
    """
    try:
        config = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise AdapterError(f"cannot read {path}: {error.strerror}", advice="give the right file") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise AdapterError(f"{path} is no adapter config: {error}", advice="give the right file") from error
    return config
