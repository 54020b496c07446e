"""Places to layers of a configuration: a file of any shape, a folder, or what the log of a run shows."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from gradience.configs import Layer, read_document, read_peft_dir, read_training_dir
from gradience.configs.peft import CONFIG_NAME
from gradience.configs.training import ARGS_NAMES, STATE_NAME
from gradience.errors import ConfigError, RecorderError
from gradience.schema.config import ConfigSnapshot, LoraSnapshot

__all__ = ["read_adapter_of", "read_any", "read_training_of"]


def read_any(place: Path) -> Layer:
    """Read one file, or a folder that a run left: its adapter config, its arguments, and what its log shows."""
    if not os.path.isdir(place) and place.name != STATE_NAME:  # noqa: PTH112  # never raises
        return read_document(place)
    found = _read_run(place)
    if isinstance(found, Layer):
        return found
    if not (place / CONFIG_NAME).is_file():
        raise ConfigError(str(found), advice=f"give a folder with {STATE_NAME} or {CONFIG_NAME}") from found
    return read_peft_dir(place)  # an adapter without a log


def read_adapter_of(folder: Path) -> Layer:
    """Read the adapter config of a folder, else that of the checkpoint which its run came furthest with."""
    if not folder.is_dir() or (folder / CONFIG_NAME).is_file():
        return read_peft_dir(folder)
    found = _read_run(folder)
    if not isinstance(found, Layer) or not any(source.role == "adapter" for source in found.sources):
        return read_peft_dir(folder)
    adapter = ConfigSnapshot(model_name=found.config.model_name, lora=found.config.lora)
    return Layer(config=adapter, sources=tuple(source for source in found.sources if source.role == "adapter"))


def read_training_of(folder: Path) -> Layer:
    """Read the training arguments of a folder, else what the log of its run shows of them."""
    if not folder.is_dir() or any((folder / name).is_file() for name in ARGS_NAMES):
        return read_training_dir(folder)
    found = _read_run(folder)
    if not isinstance(found, Layer):
        return read_training_dir(folder)
    sources = tuple(source for source in found.sources if source.role != "adapter")
    config = msgspec.structs.replace(found.config, model_name=None, lora=LoraSnapshot())
    return msgspec.structs.replace(found, config=config, sources=sources)


def _read_run(place: Path) -> Layer | RecorderError:
    """Return the configuration of the run that a folder or file is of, or why there is none."""
    from gradience.importers import read_folder_config  # noqa: PLC0415  # a config file need not pay for it

    try:
        return read_folder_config(place)
    except RecorderError as error:
        return error
