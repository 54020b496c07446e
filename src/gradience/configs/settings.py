"""The settings, read of files by their names (`names.toml`), and the layers of a configuration.

known.toml, in the same folder, lists the keys that are known although no setting is read from them. Its lists are
parsed only if a file holds keys that were not read. Keys that are in no list are reported as `unknown_keys`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec

from gradience.configs.values import (
    Fields,
    Malformed,
    as_text,
    flag,
    keyword,
    layer_numbers,
    layer_ranges,
    name_list,
    names,
    pattern,
    place,
    profile,
    real,
    reals,
    short_name,
    short_names,
    strategy,
    text,
    token_indices,
    upper,
    whole,
)
from gradience.io.reading import own_table, read_small
from gradience.names import NAMES, Level, Names, Program, SettingNames
from gradience.schema import Json, as_float, real as on_the_wire
from gradience.schema.events import ConfigSnapshot, LoraSnapshot, OptimizerSnapshot, TrainingSnapshot
from gradience.schema.flat import unchecked
from gradience.schema.reports import InputFile

S = TypeVar("S", bound=msgspec.Struct)

_FAMILIES = ("vllm_", "unsloth_", "_")  # settings of engines, and private fields of a dataclass

ALIKE: Final = 0.85  # difflib ratio from which a key may be a misspelt name
_DIGITS: Final = re.compile(r"\d+")
_SHORT: Final = 4  # characters: shorter keys resemble too many names
_CANDIDATES: Final = 5  # names that are compared letter by letter
_SWAP: Final = 2  # edits that difflib makes of two letters swapped: one put in, one left out

_LARGEST = 1 << 20  # bytes


class Layer(msgspec.Struct, kw_only=True, frozen=True):
    """The part of a configuration that one source gives, and that source's unknown, secret and masked keys."""

    config: ConfigSnapshot = ConfigSnapshot()
    sources: tuple[InputFile, ...] = ()
    unknown_keys: tuple[str, ...] = ()
    secret_keys: tuple[str, ...] = ()
    masked_keys: tuple[str, ...] = ()
    output_dir: str | None = None
    """The folder that the run will write to. It is the user's own path, so it is read and never reported."""
    base: str | None = None
    """The base model as the source names it: a folder, or a name on the hub. Read, and never reported, likewise."""
    log: str = ""
    """The log that settings were read from, in a few words; empty if none was read."""


def layer_of(
    draft: Draft,
    source: InputFile,
    levels: Iterable[Fields],
    *,
    unknown: Iterable[str] = (),
    output_dir: str | None = None,
) -> Layer:
    """The layer of one source: the settings in the draft, and the secret and masked keys of the document's levels."""
    parts = list(levels)
    return Layer(
        config=draft.snapshot(),
        sources=(source,),
        unknown_keys=tuple(unknown),
        secret_keys=tuple(key for level in parts for key in level.secrets()),
        masked_keys=tuple(key for level in parts for key in level.masked()),
        output_dir=output_dir,
        base=next((base for level in parts if (base := _base_of(level))), None),
    )


def _base_of(fields: Fields) -> str | None:
    names = next(item.names(fields) for item in RUN if item.field == "model_name")
    return next((base for name in names if (base := fields.take([name], place)) is not None), None)


def stack(layers: Iterable[Layer]) -> Layer:
    """The layers as one layer. If two set the same field, the later layer wins."""
    whole = Layer()
    for layer in layers:
        whole = Layer(
            config=overlay(whole.config, layer.config),
            sources=whole.sources + layer.sources,
            unknown_keys=whole.unknown_keys + layer.unknown_keys,
            secret_keys=whole.secret_keys + layer.secret_keys,
            masked_keys=whole.masked_keys + layer.masked_keys,
            output_dir=layer.output_dir or whole.output_dir,
            base=layer.base or whole.base,
            log=layer.log or whole.log,
        )
    return whole


def overlay(lower: S, upper: S) -> S:
    """A copy of `lower` in which every field that `upper` sets is replaced. Their `extras` are merged."""
    changes = {
        field.name: _joined(field.name, getattr(lower, field.name), getattr(upper, field.name))
        for field in _fields(type(upper))
        if getattr(upper, field.name) != _default_of(field)
    }
    return msgspec.structs.replace(lower, **changes)


@cache  # msgspec reads the annotations anew at every call
def _fields(kind: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(kind)


def _joined(name: str, lower: object, upper: object) -> object:
    if isinstance(upper, msgspec.Struct) and isinstance(lower, msgspec.Struct):
        return overlay(lower, upper)
    if name == "extras" and isinstance(upper, dict) and isinstance(lower, dict):
        return {**lower, **upper}
    return upper


def stated_fields(config: ConfigSnapshot) -> frozenset[str]:
    """The names of the settings of all levels that a configuration sets."""
    levels = (config, config.optimizer, config.lora, config.training)
    fields = [(level, field) for level in levels for field in _fields(type(level))]
    named = (field.name for level, field in fields if getattr(level, field.name) != _default_of(field))
    return frozenset(named).union(*(level.extras for level in levels))


def _default_of(field: msgspec.structs.FieldInfo) -> object:
    return field.default_factory() if field.default is msgspec.NODEFAULT else field.default


def states_adapter(lora: LoraSnapshot) -> bool:
    """Whether the settings are of an adapter; a task type alone, or a dropout, is not."""
    stated = (lora.peft_type, lora.r, lora.target_modules)
    return any(stated) or bool(lora.extras.get("target_modules_null") or lora.extras.get("target_parameters"))


def with_ratio(lora: LoraSnapshot) -> LoraSnapshot:
    """The adapter's settings with alpha / r filled in, if both are known and r is positive."""
    if lora.r is None or lora.r <= 0 or lora.alpha is None:
        return lora
    return msgspec.structs.replace(lora, alpha_over_r=on_the_wire(as_float(lora.alpha) / lora.r))


def maybe(value: Json) -> bool | None:
    """Return a yes or no, or None for a word such as `auto` that leaves it to the machine."""
    try:
        return flag(value)
    except Malformed:
        if isinstance(value, str):
            return None
        raise


def split_names(value: str) -> list[str]:
    """Return the names in a comma-separated text."""
    return [name.strip() for name in value.split(",") if name.strip()]


def comma_names(value: Json) -> list[str]:
    """Return the names in a list or in a comma-separated text."""
    named = names(value)
    return named if isinstance(named, list) else split_names(named)


class Setting(NamedTuple):
    """One setting: its field in the snapshot and its names in files."""

    field: str
    read: Callable[[Json], object]
    native: tuple[str, ...]
    loose: tuple[str, ...] = ()
    extra: bool = False  # kept in the level's `extras`: the snapshot has no field for it

    def names(self, fields: Fields) -> tuple[str, ...]:
        """Return every name of the setting, without loose names that hold a section in this file."""
        return self.native + tuple(name for name in self.loose if not fields.is_mapping(name))


def some_of(settings: tuple[Setting, ...], *fields: str) -> tuple[Setting, ...]:
    """The settings of a table that fill the named snapshot fields."""
    return tuple(item for item in settings if item.field in fields)


_READERS: Final[dict[str, Callable[[Json], object]]] = {
    **{
        read.__name__: read for read in (as_text, flag, keyword, layer_numbers, layer_ranges, name_list, names, profile)
    },
    **{
        read.__name__: read
        for read in (real, reals, short_name, short_names, strategy, text, token_indices, upper, whole)
    },
    "maybe": maybe,
    "whole_pattern": pattern(whole),
    "real_pattern": pattern(real),
}
_SNAPSHOTS: Final[dict[Level, type[msgspec.Struct]]] = {
    "run": ConfigSnapshot,
    "optimizer": OptimizerSnapshot,
    "lora": LoraSnapshot,
    "training": TrainingSnapshot,
}


def _setting(level: Level, field: str, named: SettingNames, native: Sequence[str], loose: Names = "") -> Setting:
    extra = field not in _SNAPSHOTS[level].__struct_fields__
    return Setting(field, _READERS[named.read], tuple(native), tuple(loose.split()), extra)


def recipe(program: Program, section: str = "", **readers: Callable[[Json], object]) -> dict[Level, list[Setting]]:
    """The settings that a program's recipe has in a section, by level; `readers` are its own of a setting's value."""
    levels: dict[Level, list[Setting]] = {}
    for level, table in NAMES.settings.items():
        for field, named in table.items():
            paths = [path.rpartition(".") for path in getattr(named, program).split()]
            if native := [name for place, _, name in paths if place == section]:
                setting = _setting(level, field, named, native)
                levels.setdefault(level, []).append(setting._replace(read=readers.get(field, setting.read)))
    return levels


RUN, OPTIMIZER, LORA, TRAINING = (
    tuple(
        _setting(level, field, named, named.native.split(), named.loose)
        for field, named in NAMES.settings[level].items()
        if named.native or named.loose
    )
    for level in _SNAPSHOTS
)
OF_ANY_METHOD = some_of(LORA, "peft_type", "task_type", "modules_to_save")  # mean the same for every peft_type


class Draft:
    """A snapshot being collected, level by level."""

    def __init__(self) -> None:
        self._values: dict[Level, dict[str, Json]] = {"run": {}, "optimizer": {}, "lora": {}, "training": {}}
        self._extras: dict[Level, dict[str, Json]] = {"run": {}, "optimizer": {}, "lora": {}, "training": {}}

    def read(self, level: Level, settings: Iterable[Setting], fields: Fields, *, loose: bool) -> None:
        """Take the settings out of the fields, by all their names if `loose`, else by native names.

        A setting that contradicts one already in the draft is an error.
        """
        for setting in settings:
            value = fields.take(setting.names(fields) if loose else setting.native, setting.read)
            if value is None:
                continue
            before = self.get(level, setting.field)
            if before is not None and before != value:
                raise fields.contradiction(setting.field)
            self.set(level, setting.field, value, extra=setting.extra)

    def read_all(self, table: Mapping[Level, Iterable[Setting]], fields: Fields) -> None:
        """Take the settings of several levels out of the fields, by their native names."""
        for level, settings in table.items():
            self.read(level, settings, fields, loose=False)

    def set(self, level: Level, field: str, value: Json, *, extra: bool = False) -> None:
        """Set one value."""
        (self._extras if extra else self._values)[level][field] = value

    def get(self, level: Level, field: str) -> Json:
        """The value set so far, or None."""
        return self._values[level].get(field, self._extras[level].get(field))

    @property
    def is_empty(self) -> bool:
        """Whether no setting was set at all."""
        return not any(self._values.values()) and not any(self._extras.values())

    def unset(self, level: Level, field: str) -> None:
        """Forget a value that turned out to mean "not set"."""
        self._values[level].pop(field, None)

    def forget(self, level: Level) -> None:
        """Forget a level whose settings the program does not use."""
        self._values[level].clear()
        self._extras[level].clear()

    def keep(self, level: Level, extras: dict[str, Json]) -> None:
        """Add plain values that have no field of their own."""
        self._extras[level] = {**extras, **self._extras[level]}

    def snapshot(self) -> ConfigSnapshot:
        """The snapshot of all that was set."""
        return unchecked(  # each value was checked when it was set
            ConfigSnapshot,
            **self._values["run"],
            extras=self._extras["run"],
            optimizer=unchecked(OptimizerSnapshot, **self._values["optimizer"], extras=self._extras["optimizer"]),
            lora=unchecked(LoraSnapshot, **self._values["lora"], extras=self._extras["lora"]),
            training=unchecked(TrainingSnapshot, **self._values["training"], extras=self._extras["training"]),
        )


Dialect: TypeAlias = Literal["lora", "training", "trl", "axolotl", "llama_factory", "mlx", "torchtune"]


@cache
def _lists() -> dict[str, frozenset[str]]:
    return {name: frozenset(words.split()) for name, words in own_table(__file__, "known.toml", dict[str, str]).items()}


def known_keys(dialect: Dialect) -> frozenset[str]:
    """The keys that are known in a dialect, although some are not read as settings."""
    return _lists()[dialect]


def nearest_known(key: str) -> str | None:
    """The known name, of any dialect, that the last dotted part of a key misspells; None if it misspells none.

    A slip is one letter too many, too few, wrong or swapped, or a separator left out. A name that has other words, an
    abbreviation or a plural is the name of another program.

    >>> nearest_known("learning_rat"), nearest_known("model.lora_rnak"), nearest_known("my_own_note")
    ('learning_rate', 'lora_rank', None)
    >>> nearest_known("max_seq_le"), nearest_known("quantization"), nearest_known("warmupsteps")
    (None, None, 'warmup_steps')
    """
    last = key.rpartition(".")[2].lower()
    if len(last) < _SHORT or last[-1].isdigit():  # one of a series, such as alpha1 and alpha2
        return None
    names = sorted(name for name in frozenset().union(*_lists().values()) if name[:1] == last[:1])
    others = [name for name in names if _DIGITS.sub("", name) != _DIGITS.sub("", last)]  # load_in_4bit, load_in_8bit
    alike = get_close_matches(last, others, n=_CANDIDATES, cutoff=ALIKE)
    return next((name for name in alike if is_slip(last, name)), None)


def is_slip(written: str, meant: str) -> bool:
    """Whether a name is another but for one letter too many, too few, wrong or swapped, or a separator left out."""
    ours, theirs = written.split("_"), meant.split("_")
    if len(ours) != len(theirs):
        return written.replace("_", "") == meant.replace("_", "")
    differing = [(one, other) for one, other in zip(ours, theirs, strict=True) if one != other]
    return len(differing) == 1 and _is_one_letter(*differing[0])


def _is_one_letter(word: str, other: str) -> bool:
    if min(len(word), len(other)) < _SHORT - 1 or f"{word}s" == other or word == f"{other}s":
        return False
    steps = SequenceMatcher(None, word, other, autojunk=False).get_opcodes()
    edits = [max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in steps if tag != "equal"]
    return sum(edits) == 1 or (sum(edits) == _SWAP and sorted(word) == sorted(other))


def knows_lora(key: str) -> bool:
    """Whether PEFT has a LoRA setting of this name, or had one."""
    return key in known_keys("lora")


def knows_training(key: str) -> bool:
    """Whether transformers or TRL has a training argument of this name, or had one."""
    return key in known_keys("training") or key in known_keys("trl") or key.startswith(_FAMILIES)


def is_setting(name: str) -> bool:
    """Whether a file may have a setting under this name."""
    return any(name in item.native + item.loose for table in (RUN, OPTIMIZER, LORA, TRAINING) for item in table)


def keys_of(field: str) -> list[str]:
    """Return the keys that may hold a snapshot field in a file. The field's own name is the last."""
    levels = (NAMES.settings[level] for level in ("lora", "optimizer", "training", "run"))
    keys = (f"{named.native} {named.loose} {named.parts}".split() for table in levels if (named := table.get(field)))
    return [*chain.from_iterable(keys), field]


def line_of(path: Path, keys: Iterable[str]) -> int | None:
    """Return the line, counted from 1, of the first key that the file has; None if it has none of them."""
    if path.suffix.lower() not in {".json", ".yaml", ".yml"}:
        return None
    try:
        text = read_small(path, most=_LARGEST, what="a config").decode()
    except (OSError, UnicodeDecodeError):
        return None
    before = "" if path.suffix.lower() == ".json" else r"^[^#\n]*?"  # a commented line of YAML does not count
    for key in keys:
        hit = re.search(rf"""{before}(["']?)(?<![\w.-]){re.escape(key)}\1\s*:""", text, re.MULTILINE)
        if hit is not None:
            return text.count("\n", 0, hit.end()) + 1
    return None
