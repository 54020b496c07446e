"""The one door through which models, tokenizers and configs of strangers are loaded by transformers and PEFT.

A folder may name Python code of its own (`auto_map`), which transformers would run once somebody says yes. Here nobody
is asked and nothing of it runs. Nothing is downloaded, and only folders of regular files are opened.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from gradience.io.reading import decode_json, read_small, refuse_compressed
from gradience.io.safetensors import SafetensorsFile, ShardedFiles, indexed_files

_MOST_JSON: Final = 512 << 20  # bytes; the largest tokenizer.json on the hub has 33 MB, an index of weights 4 MB
_MOST_CONFIG: Final = 5 << 20  # bytes, as for every reader of an adapter's config
ADAPTER_CONFIG: Final = "adapter_config.json"
_IMPORTING: Final = ("megatron_config",)  # with it PEFT imports the module that `megatron_core` names
_OF_OTHERS: Final = "XLORA"  # for which PEFT reads, or downloads, each adapter that the config names
_MOST_LAYERS: Final = 4096  # the deepest model on the hub has some hundred
_MOST_PARTS: Final = 1 << 17  # layers times experts: Kimi K2 has 23 424
_MOST_LABELS: Final = 1 << 20  # each has a name, which transformers makes up
FEW_LAYERS: Final = 512  # that no file need hold a tensor of: made in seconds, and some models share one among all
_CONFIG: Final = "config.json"
_MOST_FILES: Final = 100_000
_OWN_CODE: Final = "custom code"
_NOT_PLAIN: Final = "Weights only load failed"
_SHOWN: Final = 160  # characters of an error's first line


def load(kind: Any, place: str | os.PathLike[str], *args: Any, **options: Any) -> Any:
    """What `kind.from_pretrained` returns for a folder, or for organisation/name in the hub's local cache.

    Args:
        kind: a class of transformers.
        place: the folder or name.
        args: further arguments.
        options: further options; nothing can allow code of the folder, or a download.

    Raises:
        OSError: the folder holds something other than regular files.
        ValueError: its config.json states more layers or experts than a library could make in minutes.
        Exception: anything, because a library reads files of a stranger.
    """
    refuse_special(place)
    _refuse_deep(place)
    return kind.from_pretrained(os.fspath(place), *args, **options, local_files_only=True, trust_remote_code=False)


def load_model(kind: Any, place: str | os.PathLike[str], **options: Any) -> Any:
    """What `load` returns for a model, and never one with an adapter on it.

    Beside a model's files, transformers would find an `adapter_config.json`, and silently load that adapter too.

    Raises:
        ValueError: there is one.
        AdapterError: its files of weights are damaged, or name others outside the folder.
        Exception: as for `load`.
    """
    from transformers.utils import find_adapter_config_file  # as heavy as `kind`

    refuse_special(place)
    if find_adapter_config_file(os.fspath(place), local_files_only=True) is not None:
        raise ValueError("it holds an adapter too, which would be loaded on top: give a folder with the model alone")
    _tensors_beside(_config_file(place))
    return load(kind, place, **options)


def _tensors_beside(config: Path) -> int | None:
    """The number of tensors in the files of weights beside a config; None if they are not of safetensors.

    Their index and headers are checked on the way.

    Raises:
        AdapterError: an index or header is wrong, or a tensor is there twice, or a pickle is compressed.
    """
    folder = config.parent
    for pickled in folder.glob("pytorch_model*.bin"):
        refuse_compressed(pickled)
    one, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if not one.is_file() and not index.is_file():
        return None
    files = [one] if one.is_file() else indexed_files(index)  # transformers, too, prefers the one file
    return len(ShardedFiles(folder, [SafetensorsFile(path) for path in files]).tensors)


def load_adapter(kind: Any, model: Any, folder: str | os.PathLike[str]) -> Any:
    """What PEFT's `kind.from_pretrained` returns for a model and a folder with a config that `adapter_config` passed.

    Raises:
        Exception: as for `load`.
    """
    return kind.from_pretrained(model, os.fspath(folder))


def adapter_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of the config in an adapter's local folder that PEFT is about to be given.

    Raises:
        OSError: the folder is none, or holds something other than regular files.
        ValueError: the config names a Python module to be imported, or other adapters, or is no JSON object.
    """
    refuse_special(folder)
    raw = read_small(Path(folder) / ADAPTER_CONFIG, most=_MOST_CONFIG, what="an adapter's config")
    return refuse_foreign(decode_json(raw, dict[str, Any]))


def refuse_foreign(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of an adapter's config that PEFT may be given.

    Raises:
        ValueError: they name a Python module to be imported, or other adapters.
    """
    if named := [name for name in _IMPORTING if fields.get(name)]:
        raise ValueError(f"its config has {named[0]}, for which PEFT imports a module of any name")
    if fields.get("peft_type") == _OF_OTHERS:
        raise ValueError(f"it is {_OF_OTHERS}, for which PEFT loads adapters from wherever the config says")
    return fields


def refuse_special(place: str | os.PathLike[str]) -> None:
    """Refuse a folder with a pipe or device, which a library would open and wait for, or with a huge JSON file.

    Raises:
        OSError: there is one; a name that is no local folder is not looked at.
    """
    if not os.path.isdir(place):  # noqa: PTH112  # a hub's name is not a path
        return
    with os.scandir(place) as entries:
        for number, entry in enumerate(entries):
            with suppress(FileNotFoundError):  # a link to nothing
                status = entry.stat()
                if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                    raise OSError(errno.EINVAL, "a pipe or device, not a regular file", entry.path)
                if entry.name.endswith(".json") and status.st_size > _MOST_JSON:
                    message = f"larger than {_MOST_JSON >> 20} MiB, the limit for a model's or tokenizer's JSON"
                    raise OSError(errno.EFBIG, message, entry.path)
            if number > _MOST_FILES:
                raise OSError(errno.E2BIG, f"more than {_MOST_FILES} files", os.fspath(place))


def _refuse_deep(place: str | os.PathLike[str]) -> None:
    """Refuse a config.json that states more layers, or layers times experts, than can be made in reasonable time.

    Raises:
        ValueError: it does.
    """
    config = _config_file(place)
    fields = _fields(config)
    counts = {word: _largest(fields, word) for word in ("layer", "block", "depth", "expert")}
    # Each layer has all of its experts, so both may be moderate, and their product without end.
    most = max(counts.values()) if counts["expert"] <= 1 else counts["layer"] * counts["expert"]
    if max(counts.values()) > _MOST_LAYERS or most > _MOST_PARTS:
        stated = ", ".join(f"{count:,} ({word})" for word, count in counts.items() if count)
        raise ValueError(f"its config.json states parts without end: {stated}; the limit is {_MOST_LAYERS:,}")
    tensors = _tensors_beside(config) if counts["layer"] > FEW_LAYERS else None
    if tensors is not None and counts["layer"] > tensors:
        raise ValueError(f"its config.json states {counts['layer']:,} layers, and its files hold {tensors:,} tensors")
    if (labels := _largest(fields, "num_labels")) > _MOST_LABELS:
        raise ValueError(f"its config.json states {labels:,} labels; the limit is {_MOST_LABELS:,}")


def _config_file(place: str | os.PathLike[str]) -> Path:
    """The config.json of a folder, or of a name in the hub's cache; it may not exist."""
    path = Path(place) / _CONFIG
    if not path.is_file():
        from huggingface_hub import try_to_load_from_cache  # comes with every library that this is the door of

        with suppress(ValueError):  # it is no name either
            path = Path(str(try_to_load_from_cache(os.fspath(place), _CONFIG)))
    return path


def _fields(config: Path) -> dict[str, Any]:
    """The fields of a config; none of one that cannot be read, which is left to the library."""
    try:
        return decode_json(read_small(config, most=_MOST_CONFIG, what="a model's config"), dict[str, Any])
    except (OSError, ValueError, RecursionError):
        return {}


def _largest(fields: Any, word: str) -> int:
    """The largest number in fields whose name has a word and does not end in `size`."""
    most = 0
    for key, value in fields.items():
        if isinstance(value, dict):
            most = max(most, _largest(value, word))
        # `expert_intermediate_size` or `block_size` is a width, not a number of parts.
        elif word in key and not key.endswith("size"):
            some = [one for one in (value if isinstance(value, list) else [value]) if type(one) is int]
            most = max([most, *some, sum(some) if word == "depth" else 0])  # depths of stages add up
    return most


def reason(error: BaseException) -> str:
    """What a library's error says, on one line; that something wants to run code is said in our words."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    # transformers' own words would advise to allow it.
    if _OWN_CODE in text or "trust_remote_code" in text:
        return "it needs Python code of its own (auto_map), which gradience never runs"
    if _NOT_PLAIN in text:  # torch goes on with how to run it
        return "its pickle holds more than tensors, and is never run"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{Path(os.fsdecode(error.filename)).name}: {error.strerror}"
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return (first or type(error).__name__)[:_SHOWN]
