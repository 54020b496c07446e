"""What programs call one thing: `names.toml`, beside this file, as one record."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

from gradience.io.reading import own_table

Level: TypeAlias = Literal["run", "optimizer", "lora", "training"]
Program: TypeAlias = Literal["mlx", "torchtune", "axolotl", "llama_factory", "verl"]
Names: TypeAlias = str  # apart by spaces


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the file: a key that it does not know is an error."""


class SettingNames(_Table, frozen=True):
    """A setting: the reader of its value, and its names in files and recipes."""

    read: str
    native: Names = ""
    loose: Names = ""
    parts: Names = ""
    mlx: Names = ""
    torchtune: Names = ""
    axolotl: Names = ""
    llama_factory: Names = ""
    verl: Names = ""


class _Data(_Table, frozen=True):
    llama_factory_columns: dict[str, str]
    llama_factory_keys: dict[str, str]
    llama_factory_roles: dict[str, str]
    axolotl_fields: dict[str, str]
    axolotl_instruction: dict[str, str]
    axolotl_keys: dict[str, str]


class _Names(_Table, frozen=True):
    settings: dict[Level, dict[str, SettingNames]]
    sections: dict[str, Level]
    columns: dict[str, dict[str, Names]]
    beside: dict[str, dict[str, str]]
    held_out: dict[str, Names]
    metrics: dict[str, Names]
    printed: dict[str, dict[str, str]]
    log: dict[str, dict[str, Names]]
    events: dict[str, Names]
    choices: dict[str, dict[str, Names]]
    targets: dict[Program, dict[str, str]]
    data: _Data


NAMES: Final = own_table(__file__, "names.toml", _Names)


def columns_of(name: str) -> list[str]:
    """Return what loggers call a column, the preferred name first."""
    return [column for names in NAMES.columns[name].values() for column in names.split()]
