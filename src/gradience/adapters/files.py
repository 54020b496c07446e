"""The files of an adapter, by their names alone: its config, its weights or their shards, and other adapters there.

No file is opened but an index of shards, and this module imports nothing heavy.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, NamedTuple

from gradience.errors import AdapterError

CONFIG_NAME: Final = "adapter_config.json"
WEIGHT_NAMES: Final = ("adapter_model.safetensors", "adapters.safetensors", "adapter_model.bin", "adapter_model.pt")
STATE_OF_OPTIMIZER: Final = "optimizer.pt"
CHECKPOINT: Final = re.compile(r"checkpoint-(\d{1,15})")
"""The name that the Trainer gives to a checkpoint's folder; the group is the step."""

INDEX_NAMES: Final = (
    "adapter_model.safetensors.index.json",
    "model.safetensors.index.json",
    "adapters.safetensors.index.json",
    "adapter_model.bin.index.json",
)


def holds_adapter(folder: Path) -> bool:
    """Whether a folder holds weights under a name that PEFT or MLX-LM gives them."""
    return any((folder / name).is_file() for name in WEIGHT_NAMES)


class AdapterFiles(NamedTuple):
    """The files of an adapter. `config` may not exist, because some formats have none.

    `shards` is empty if one file holds all weights; otherwise `weights` is the index or one of the shards. `others`
    are sub-folders with further adapters, which PEFT saves beside the one named `default`.
    """

    folder: Path
    config: Path
    weights: Path
    shards: tuple[Path, ...] = ()
    others: tuple[Path, ...] = ()


def find_files(path: Path, *, config: Path | None = None, weights: Path | None = None) -> AdapterFiles:
    """The adapter's files; a config or weights file given explicitly takes precedence over the folder's.

    Raises:
        AdapterError: the folder or a file is missing, or several adapters could be meant.
    """
    if not os.path.exists(path):  # noqa: PTH110  # Path.exists raises where a name is too long
        raise AdapterError(f"no such file or folder: {path}", advice="give the folder that PEFT saved")
    folder = path if path.is_dir() else path.parent
    file = weights or (path if path.is_file() else _weights_in(folder))
    others: tuple[Path, ...] = ()
    if file is None:
        folder, file = _only_nested(folder)
    elif weights is None and path.is_dir():
        others = tuple(_nested(folder))  # PEFT saves adapters not named `default` in sub-folders
    if not os.path.isfile(file):  # noqa: PTH113  # as above
        raise AdapterError(f"no weights file at {file}", advice="give the weights file itself")
    if config is not None and not os.path.isfile(config):  # noqa: PTH113  # as above
        raise AdapterError(f"no config file at {config}", advice="give it with --adapter-config FILE")
    return AdapterFiles(folder, config or _config_beside(file, folder), file, _shards(file), others)


def _config_beside(weights: Path, folder: Path) -> Path:
    # With --weights, the config of the given folder is used if there is none beside the weights.
    beside = weights.parent / CONFIG_NAME
    return beside if beside.is_file() else folder / CONFIG_NAME


def _weights_in(folder: Path) -> Path | None:
    """The folder's weights file or index, or None if it holds none."""
    for name in (*WEIGHT_NAMES, *INDEX_NAMES):
        if (folder / name).is_file():
            return folder / name
    # kohya's scripts, for one, name the file as the user says.
    others = sorted(p for p in folder.glob("*.safetensors") if p.is_file())
    if len(others) == 1 or (others and _is_shard(others[0])):
        return others[0]
    if others:
        raise AdapterError(
            f"{len(others)} weights files, none named as PEFT does, in {folder} ({_listed(others)})",
            advice=f"expected {WEIGHT_NAMES[0]}; if they have another name, give the file itself",
        )
    return None


def _nested(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.iterdir() if p.is_dir() and any((p / n).is_file() for n in (*WEIGHT_NAMES, *INDEX_NAMES))
    )


def _only_nested(folder: Path) -> tuple[Path, Path]:
    """The one sub-folder that holds an adapter, and its weights."""
    nested = _nested(folder)
    if len(nested) == 1:
        file = _weights_in(nested[0])
        if file is not None:
            return nested[0], file
    if nested:
        raise AdapterError(
            f"{folder} holds {len(nested)} adapters in sub-folders ({_listed(nested)})",
            advice=f"give one of them, for example {nested[-1]}",
        )
    from gradience.adapters.formats import distributed_advice, orbax_advice  # the same

    if (advice := orbax_advice(folder) or distributed_advice(folder, config=CONFIG_NAME)) is not None:
        raise AdapterError(f"no adapter weights that can be read from {folder}", advice=advice)
    raise AdapterError(
        f"no adapter weights in {folder} (it holds {_listed(sorted(folder.iterdir())) or 'nothing'})",
        advice=f"expected {WEIGHT_NAMES[0]}; if they have another name, give the file itself",
    )


def _listed(paths: list[Path]) -> str:
    most = 8
    return ", ".join(p.name for p in paths[:most]) + (", ..." if len(paths) > most else "")


def _is_shard(path: Path) -> bool:
    return "-of-" in path.name


def _shards(weights: Path) -> tuple[Path, ...]:
    """The shards that together hold the weights, or an empty tuple if one file holds them all."""
    if weights.name.endswith(".index.json"):
        from gradience.io.safetensors import indexed_files  # numpy, which names alone do not need

        return tuple(indexed_files(weights))
    if not _is_shard(weights):
        return ()
    # adapter_model-00001-of-00002.safetensors
    stem, total = weights.stem.rpartition("-of-")[::2]
    prefix = stem.rstrip("0123456789")
    shards = sorted(weights.parent.glob(f"*-of-{total}{weights.suffix}"))
    shards = [p for p in shards if p.name.startswith(prefix)]
    if not total.isdecimal() or len(shards) != int(total):
        raise AdapterError(f"{len(shards)} shards beside {weights}, expected {total}", advice="copy the missing ones")
    return tuple(shards)
