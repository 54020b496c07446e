"""Where an adapter's files are: a folder, or the files themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from gradience.errors import AdapterError

__all__ = ["AdapterFiles", "find_files"]

CONFIG_NAME: Final = "adapter_config.json"
_WEIGHT_NAMES: Final = ("adapter_model.safetensors", "adapters.safetensors", "adapter_model.bin")


class AdapterFiles(NamedTuple):
    """The two files an audit reads."""

    folder: Path
    config: Path
    weights: Path


def find_files(path: Path, *, config: Path | None = None, weights: Path | None = None) -> AdapterFiles:
    """Return the adapter's files; explicit ones win over what the folder holds.

    Raises:
        AdapterError: the folder or a file is missing.
    """
    if not path.exists():
        raise AdapterError(f"no such file or folder: {path}", advice="give the folder that PEFT saved")
    folder = path if path.is_dir() else path.parent
    found = weights or (path if path.is_file() else _weights_in(folder))
    if not found.is_file():
        raise AdapterError(f"no weights file at {found}", advice="give it with --weights FILE")
    return AdapterFiles(folder, config or _config_beside(found, folder), found)


def _config_beside(weights: Path, folder: Path) -> Path:
    beside = weights.parent / CONFIG_NAME
    return beside if beside.is_file() else folder / CONFIG_NAME


def _weights_in(folder: Path) -> Path:
    for name in _WEIGHT_NAMES:
        if (folder / name).is_file():
            return folder / name
    others = sorted(p for p in folder.glob("*.safetensors") if p.is_file())
    if len(others) == 1:
        return others[0]
    held = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    what = "no adapter weights" if not others else f"{len(others)} weights files, none named as PEFT does,"
    raise AdapterError(
        f"{what} in {folder} (it holds {held})",
        advice=f"expected {_WEIGHT_NAMES[0]}; give another with --weights FILE",
    )
