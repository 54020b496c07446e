"""Where a base model's weights are: a folder, one file, a sharded index, or the hub's cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from gradience.errors import AdapterError

__all__ = ["find_shards"]

_ONE_FILE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_REPO_PARTS: Final = 2  # organisation and name
_ADVICE: Final = "give a folder with model.safetensors or model.safetensors.index.json"


class _Index(msgspec.Struct):
    """What a sharded checkpoint's index says; other keys are ignored."""

    weight_map: dict[str, str]


def find_shards(path: Path) -> list[Path]:
    """Return the base's safetensors files, in order of their names.

    A path that does not exist but reads as `organisation/name` is looked up in the hub's local cache;
    nothing is ever downloaded.

    Raises:
        AdapterError: nothing is there, or the checkpoint is incomplete or of another format.
    """
    place = path if os.path.exists(path) else _cached(path)  # noqa: PTH110  # Path.exists raises on long names
    if place.is_file():
        return _shards(place) if place.name.endswith(".index.json") else [place]
    if not place.is_dir():
        raise AdapterError(f"{place} is neither a folder nor a file of weights", advice=_ADVICE)
    folder = _snapshot(place)
    if (folder / _INDEX).is_file():
        return _shards(folder / _INDEX)
    if (folder / _ONE_FILE).is_file():
        return [folder / _ONE_FILE]
    found = sorted(p for p in folder.glob("*.safetensors") if p.is_file() and not p.name.startswith("adapter"))
    if found:
        return found
    held = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    pickled = any(folder.glob("*.bin"))
    advice = "only safetensors are read: save the model again with safe_serialization=True" if pickled else _ADVICE
    raise AdapterError(f"no base weights in {folder} (it holds {held})", advice=advice)


def _shards(index: Path) -> list[Path]:
    try:
        named = msgspec.json.decode(index.read_bytes(), type=_Index).weight_map.values()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise AdapterError(f"cannot read {index}: {error}", advice="download it again") from error
    if any(Path(name).name != name for name in named):
        raise AdapterError(f"{index} names files outside its folder", advice="download the model again")
    files = sorted({index.parent / name for name in named})
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise AdapterError(
            f"{len(missing)} of {len(files)} shards of {index} are missing (first: {missing[0] if missing else '-'})",
            advice="the download is incomplete: download the model again",
        )
    return files


def _snapshot(folder: Path) -> Path:
    """Return the revision's folder of a hub cache entry, or the folder itself."""
    snapshots = folder / "snapshots"
    if not snapshots.is_dir():
        return folder
    main = folder / "refs" / "main"
    if main.is_file() and (chosen := snapshots / main.read_text().strip()).is_dir():
        return chosen
    revisions = sorted(p for p in snapshots.iterdir() if p.is_dir())
    if len(revisions) == 1:
        return revisions[0]
    raise AdapterError(
        f"{folder} holds {len(revisions)} revisions and no refs/main",
        advice="give one of the folders in snapshots/",
    )


def _cached(path: Path) -> Path:
    if len(path.parts) <= _REPO_PARTS and not path.is_absolute():
        entry = _hub_cache() / "--".join(("models", *path.parts))
        if entry.is_dir():
            return entry
        raise AdapterError(f"no such base: {path} is neither a path nor in {_hub_cache()}", advice=_ADVICE)
    raise AdapterError(f"no such base: {path}", advice=_ADVICE)


def _hub_cache() -> Path:
    """Return the hub's cache as huggingface_hub finds it."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache)
    home = os.environ.get("HF_HOME")
    return (Path(home) if home else Path.home() / ".cache" / "huggingface") / "hub"
