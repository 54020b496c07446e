"""The modules of the class that an adapter's config and its base's config.json name, beside those of its file.

The names come from the headers of the base's weights, which tell them all. Without these they come from the table of
families (`configs.families`), by the base's model type or name, and only a difference at the beginning of names counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gradience.adapters.layout import module_path
from gradience.base.coverage import wanted_of
from gradience.base.peft_emulation.layout import Layout, read_layout, renamed
from gradience.base.peft_emulation.loading import change_of, missing_names, other_shapes, starred, strange_names
from gradience.base.peft_emulation.targets import NotFollowedError
from gradience.base.weights import find_shards
from gradience.configs.families import Family, family_of
from gradience.errors import AdapterError
from gradience.rules.between import Loading, Parts
from gradience.schema.events import LoraSnapshot

Modules = Mapping[str, Mapping[str, str]]

_WITH_A_HEAD: Final = frozenset({"CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"})
_OTHER_FACTORS: Final = ("use_qalora", "use_bdlora")  # whose factors have sides of their own
_MOST_UNKNOWN: Final = 0.5  # share of the modules that a family's table may lack: a class of one's own has others

_TAKEN: Final = frozenset(
    [
        "",
        "model.",
        "model.model.",
        "transformer.",
        "language_model.",
        "language_model.model.",
        "model.language_model.",
        "base_model.model.",
        "base_model.model.model.",
        "module.",
    ]
)
"""Beginnings that names have by mistake, or in another class of transformers."""

_RENAMED_SINCE: Final = frozenset({"Qwen2-VL"})  # whose classes had other names within one major version


class NoModelError(Exception):
    """The names of the model's modules are not known; the message says why."""


def loading_of(modules: Modules, parts: Parts, lora: LoraSnapshot, *, named: str | None, base: Path | None) -> Loading:
    """The adapter's modules beside those of its model.

    Raises:
        NoModelError: it is not known which modules the model has.
    """
    if not modules:
        raise NoModelError("no factor of a module of LoRA is in the file")
    own = str(lora.extras.get("base_model_class") or "")
    if own and not lora.extras.get("base_model_type"):
        raise NoModelError(f"{own} is no class of transformers: its modules are not known")
    if base is not None and _has_weights(base):
        return _beside_files(modules, parts, lora, base, own)
    kind = parts.base.get("model_type") if parts.base else lora.extras.get("base_model_type")
    family = family_of(named, kind if isinstance(kind, str) else None)
    if family is None:
        raise NoModelError("no config of the base is at hand, and its name is of no family known here (--base)")
    return _beside_family(modules, family, named or family.name, _class_of(parts) or own, lora.task_type)


def _has_weights(base: Path) -> bool:
    try:
        return bool(find_shards(base))
    except (AdapterError, OSError):
        return False


def _class_of(parts: Parts) -> str:
    """The class that the base's config.json names; empty if it names none."""
    names = parts.base.get("architectures") if parts.base else None
    return str(names[0]) if isinstance(names, list) and names else ""


def _beside_files(modules: Modules, parts: Parts, lora: LoraSnapshot, base: Path, own: str) -> Loading:
    try:
        layout = read_layout(base, transformers=None, task_type=lora.task_type)
    except AdapterError as error:
        raise NoModelError(error.message) from error
    if layout.is_renamed:
        kind = layout.architecture.model_type
        raise NoModelError(f"transformers {layout.transformers} renames modules of {kind} as it loads the files")
    if _is_bare(own) or (not own and lora.task_type in {None, "FEATURE_EXTRACTION"}):
        layout = _bare_if_closer(modules, layout)
    family = family_of(None, layout.architecture.model_type)
    strange = strange_names(modules, layout, () if family is None or not _is_composed(family) else _starred(family))
    change = change_of([*map(starred, strange)], {*map(starred, layout.sites)})
    plain = not any(parts.config and parts.config.get(key) for key in _OTHER_FACTORS)
    return Loading(
        model=f"the class of {own or _class_of(parts) or layout.architecture.model_type}, by the base's files",
        modules=len(modules),
        strange=tuple(strange),
        mended=() if change is None else tuple(map(change.of, strange)),
        change="" if change is None else str(change),
        other_shape=tuple(other_shapes(modules, parts.tensors, layout)) if plain else (),
        missing=_missing(modules, lora, layout, strange),
    )


def _is_bare(name: str) -> bool:
    return name.endswith("Model") and not name.endswith("LMHeadModel")


def _bare_if_closer(modules: Modules, layout: Layout) -> Layout:
    """The layout of the model without a head, if the adapter's names are its."""
    bare = layout.moved("", layout.architecture.prefix)
    return bare if len(strange_names(modules, bare)) < len(strange_names(modules, layout)) else layout


def _missing(modules: Modules, lora: LoraSnapshot, layout: Layout, strange: list[str]) -> tuple[str, ...]:
    """What the targets match and the file lacks; nothing where the names differ, since all would lack."""
    if strange:
        return ()
    try:
        return tuple(missing_names(wanted_of(lora), modules, layout))
    except NotFollowedError:
        return ()


def _starred(family: Family) -> frozenset[str]:
    """The paths of a family's modules, with a star for each number; some are named by one."""
    return frozenset(map(starred, family.paths))


def _is_composed(family: Family) -> bool:
    """Whether models of the family hold a language model beside a tower: classes and versions name them otherwise."""
    return any(part in path for path in family.paths for part in ("language_model", "vision", "visual"))


def _beside_family(modules: Modules, family: Family, model: str, own: str, task: str | None) -> Loading:
    """The adapter beside the names that its family's table has: below which modules its layers lie."""
    paths = _starred(family)
    if _is_composed(family) and (not own or family.name in _RENAMED_SINCE):
        raise NoModelError(f"models of the family {family.name} have several classes: their names differ (--base)")
    may_be_bare = _is_bare(own) or (not own and task not in _WITH_A_HEAD)
    known = paths | ({path.partition(".")[2] for path in paths} if may_be_bare else frozenset())
    ends = {path.partition("*")[2] for path in paths if "*" in path}
    of_family = [path for path in map(module_path, modules) if starred(path).partition("*")[2] in ends]
    if len(of_family) < _MOST_UNKNOWN * len(modules):
        raise NoModelError(f"its modules are not those of the family {family.name}: a class of its own (--base)")
    strange = [path for path in of_family if starred(path) not in known and starred(renamed(path)) not in known]
    change = change_of([*map(starred, strange)], paths)
    if change is None or change.taken not in _TAKEN:
        change, strange = None, []  # below a module that no class of transformers has: a class of its own
    return Loading(
        model=f"{model}, by the names of the family {family.name}",
        modules=len(modules),
        strange=tuple(strange),
        mended=() if change is None else tuple(map(change.of, strange)),
        change="" if change is None else str(change),
    )
