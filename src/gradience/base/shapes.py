"""The shape numbers of open models by their names, for a base of which no file is at hand.

shapes.toml holds them with their sources, and is written by benchmarks/shapes.py. No dtype is among them.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from gradience.base.weights import local_folder
from gradience.errors import MissingBaseError
from gradience.io.reading import own_table


class _Model(msgspec.Struct, frozen=True):
    names: str
    source: str
    config: dict[str, Any]


class _Models(msgspec.Struct, frozen=True):
    models: list[_Model]


_MODELS: Final = own_table(__file__, "shapes.toml", _Models).models
_BY_NAME: Final = {name: model for model in _MODELS for name in model.names.split()}


@contextmanager
def folder_of(base: Path) -> Iterator[tuple[Path, str]]:
    """The folder of a base's files, and ""; if none is at hand, one with a config.json by the name, and its source.

    Raises:
        MissingBaseError: there is no such path, and nothing of that name in the hub's local cache or in the table.
        AdapterError: the cache holds several revisions, and names none.
    """
    try:
        place = local_folder(base)
    except MissingBaseError:
        if (model := _BY_NAME.get(str(base))) is None:
            raise
    else:
        yield place, ""
        return
    config = {"dtype": "bfloat16"} | model.config
    if config.get("sliding_window") == 0:  # TOML has no null
        config["sliding_window"] = None
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_bytes(msgspec.json.encode(config))
        yield Path(folder), model.source
