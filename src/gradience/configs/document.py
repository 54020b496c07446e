"""A configuration in one file of the user's own: canonical, flat, or anything in between.

Canonical is the shape of ``ConfigSnapshot``, as a log's ``run_start`` holds it, also wrapped as ``config``.
Flat is one level of keys under the names people use. Both may be mixed: a section is a scope, no more.
Recipes of MLX-LM, torchtune, Axolotl and LLaMA-Factory are recognised by their keys and read by their own names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gradience.configs.files import read_mapping
from gradience.configs.peft import note_adapter
from gradience.configs.recipes import RECIPES
from gradience.configs.settings import (
    LORA,
    OPTIMIZER,
    RUN,
    TRAINING,
    Draft,
    Layer,
    Level,
    Setting,
    knows_lora,
    knows_training,
    layer_of,
)
from gradience.configs.training import PICKLED, note_training, output_dir, read_training
from gradience.configs.values import Fields
from gradience.errors import ConfigError
from gradience.schema.reports import SourceFile

_SECTIONS: tuple[tuple[str, Level, tuple[Setting, ...]], ...] = (
    ("optimizer", "optimizer", OPTIMIZER),
    ("lora", "lora", LORA),
    ("peft", "lora", LORA),
    ("lora_config", "lora", LORA),
    ("training", "training", TRAINING),
    ("training_args", "training", TRAINING),
)
_BARE_NAME = "name"  # the optimizer's, inside its section only: at the top it names something else
_COMPUTED = {"alpha_over_r", "extras"}
_ENVELOPE = {"schema", "ts", "run_id", "event", "step", "seq", "session", "meta", "resumed_from_step"}


def read_document(path: Path) -> Layer:
    """Read a configuration of any shape; ConfigError where no key of it is a setting."""
    if path.suffix in PICKLED:
        return read_training(path)
    if path.name.endswith("_results.json"):
        raise ConfigError(f"{path} is the summary of a run, not its settings", advice=f"give the folder, {path.parent}")
    outer = Fields(read_mapping(path), str(path))
    wrapped = outer.section("config")
    draft = Draft()
    levels, unknown = _read_levels(wrapped or outer, draft)
    if wrapped is not None:
        unknown += outer.left_over(_ENVELOPE.__contains__)
        levels.append(outer)
    if draft.is_empty:
        message = f"{path}: no setting this program knows in it"
        raise ConfigError(message, advice="give keys such as lr, r, lora_alpha, target_modules, max_steps")
    place = next((found for item in levels if (found := output_dir(item))), None)
    return layer_of(draft, SourceFile(role="config", path=str(path)), levels, unknown=unknown, output_dir=place)


def _read_levels(fields: Fields, draft: Draft) -> tuple[list[Fields], list[str]]:
    """Read every level into the draft; return the levels, and the keys nobody knows."""
    for fits, read in RECIPES:
        if fits(fields):
            return [fields], read(fields, draft)
    sections = list(_sections(fields, draft))
    unknown = _read_flat(fields, draft)
    return [fields, *sections], unknown + [key for item in sections for key in item.left_over(_known)]


def _sections(fields: Fields, draft: Draft) -> Iterator[Fields]:
    for key, level, settings in _SECTIONS:
        section = fields.section(key)
        if section is not None:
            yield section
            yield from _read_section(section, draft, level, settings)
    yield from _read_extras(fields, draft, "run")


def _read_section(section: Fields, draft: Draft, level: Level, settings: tuple[Setting, ...]) -> Iterator[Fields]:
    draft.read(level, settings, section, loose=True)
    if level == "lora":
        note_adapter(section, draft)
    if level == "training":
        draft.read("optimizer", _without_bare_name(), section, loose=True)
        note_training(section, draft)
    yield from _read_extras(section, draft, level)


def _read_extras(fields: Fields, draft: Draft, level: Level) -> Iterator[Fields]:
    extras = fields.section("extras")
    if extras is not None:
        draft.keep(level, extras.scalars())
        yield extras


def _read_flat(fields: Fields, draft: Draft) -> list[str]:
    draft.read("run", RUN, fields, loose=True)
    draft.read("optimizer", _without_bare_name(fields), fields, loose=True)
    draft.read("lora", LORA, fields, loose=True)
    draft.read("training", TRAINING, fields, loose=True)
    note_adapter(fields, draft)
    note_training(fields, draft)
    if draft.get("lora", "peft_type") not in {None, "LORA"}:
        return []  # another method's keys: none of PEFT's LoRA settings, and not unknown to PEFT
    return list(fields.left_over(_known))


def _without_bare_name(fields: Fields | None = None) -> tuple[Setting, ...]:
    sectioned = fields is not None and fields.section("optimizer") is not None
    dropped = {_BARE_NAME, "optimizer"} if sectioned else {_BARE_NAME}
    return tuple(item._replace(loose=tuple(name for name in item.loose if name not in dropped)) for item in OPTIMIZER)


def _known(key: str) -> bool:
    return key in _COMPUTED or key in _ENVELOPE or knows_lora(key) or knows_training(key)
