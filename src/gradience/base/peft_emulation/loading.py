"""Which of an adapter's tensors PEFT would load: their names beside those of the model, as its loader compares them.

PEFT 0.21.2 puts the adapter's name into each name of a file and gives all to `load_state_dict` with `strict=False`
(`utils/save_and_load.py`). A name that the model does not have is passed over; the user sees a warning of missing keys,
or nothing. So the names have to be those that `save_pretrained` writes, to the letter.

The model's names come from the headers of the base's weights, which tell them all. Without these they come from the
table of families (`configs.families`), by the base's model type or name, and only a difference at the beginning of
names counts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

from gradience.adapters.layout import PREFIX, module_path, parse_key
from gradience.adapters.patterns import dotted_tails
from gradience.base.coverage import wanted_of
from gradience.base.peft_emulation.layout import Declared, Layout, Site, read_layout, renamed
from gradience.base.peft_emulation.targets import ALL_LINEAR, ModuleChoice, NotFollowedError, matched_names, resolve
from gradience.base.weights import find_shards
from gradience.configs.families import Family, family_of
from gradience.errors import AdapterError
from gradience.schema import Json
from gradience.schema.events import LoraSnapshot

Modules: TypeAlias = Mapping[str, Mapping[str, str]]
"""Modules of an adapter by path, with their tensors by field."""
Misnaming: TypeAlias = Literal["no_prefix", "prefix_twice", "adapter_name", "wrapper", "live_wrapper"]

_WRAPPERS: Final = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_LIVE: Final = (".modules_to_save.", ".original_module.")
_LIVE_PART: Final = re.compile(r"(?<=\.)(?:modules_to_save|original_module)\.(?:default\.)?")
_NUMBER: Final = re.compile(r"(?<=\.)\d+(?=\.|$)")
_STACK: Final = 3  # axes of a parameter that holds a layer's experts
_TURNED: Final = frozenset({"aria", "gpt_oss", "openai_privacy_filter"})  # whose experts are stored (in, out)
_WITH_A_HEAD: Final = frozenset({"CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"})
_OTHER_FACTORS: Final = frozenset({"use_qalora", "use_bdlora"})  # whose factors have sides of their own
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


class Loading(NamedTuple):
    """An adapter's modules beside those of the model that it is loaded onto, as PEFT compares their names."""

    model: str
    """The model in words, and how its names are known."""
    modules: int
    """Modules of the adapter that were looked for."""
    strange: tuple[str, ...] = ()
    """Those that the model does not have."""
    mended: tuple[str, ...] = ()
    """What these are called in the model, if a beginning makes the difference; in their order, else empty."""
    change: str = ""
    """What would have to change, in words: "after adding `model.`"."""
    other_shape: tuple[str, ...] = ()
    """Those whose factors do not fit the weight, each with both shapes."""
    missing: tuple[str, ...] = ()
    """Modules of the model that the config's targets match, and that the file lacks."""


class Model(NamedTuple):
    """The model that an adapter is for: its name, its folder if that is at hand, and its config.json as it stands."""

    name: str | None
    folder: Path | None
    config: Mapping[str, Json]

    @property
    def written_class(self) -> str:
        """The class that its config.json names; empty if it names none."""
        names = self.config.get("architectures")
        return str(names[0]) if isinstance(names, list) and names else ""


class Names(NamedTuple):
    """What PEFT's loader makes of the names in an adapter's file; the fields are those of `rules.between.Parts`."""

    misnamed: Mapping[Misnaming, Sequence[str]]
    untargeted: tuple[str, ...] | None
    loading: Loading | None = None
    no_loading: str = ""


def names_of(tensors: Declared, lora: LoraSnapshot, model: Model) -> Names:
    """What PEFT's loader makes of the names of an adapter's tensors, by their form, its targets and its model."""
    modules, outside = adapted_names(tensors), None
    with suppress(NotFollowedError):
        outside = untargeted(wanted_of(lora), modules)
    names = Names(misnamed(tensors), None if outside is None else tuple(outside))
    try:
        return names._replace(loading=_loading(modules, tensors, lora, model))
    except NoModelError as error:
        return names._replace(no_loading=str(error))


def _loading(modules: Modules, tensors: Declared, lora: LoraSnapshot, model: Model) -> Loading:
    """The adapter's modules beside those of its model.

    Raises:
        NoModelError: it is not known which modules the model has.
    """
    if not modules:
        raise NoModelError("no factor of a module of LoRA is in the file")
    own = str(lora.extras.get("base_model_class") or "")
    if own and not lora.extras.get("base_model_type"):
        raise NoModelError(f"{own} is no class of transformers: its modules are not known")
    if model.folder is not None and _has_weights(model.folder):
        return _beside_files(modules, tensors, lora, model, model.folder)
    kind = model.config.get("model_type") if model.config else lora.extras.get("base_model_type")
    family = family_of(model.name, kind if isinstance(kind, str) else None)
    if family is None:
        raise NoModelError("no config of the base is at hand, and its name is of no family known here (--base)")
    return _beside_family(modules, family, model.name or family.name, model.written_class or own, lora.task_type)


def _has_weights(base: Path) -> bool:
    try:
        return bool(find_shards(base))
    except (AdapterError, OSError):
        return False


def _beside_files(modules: Modules, tensors: Declared, lora: LoraSnapshot, model: Model, base: Path) -> Loading:
    own = str(lora.extras.get("base_model_class") or "")
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
    variants = lora.extras.get("variants")
    plain = not isinstance(variants, list) or _OTHER_FACTORS.isdisjoint(map(str, variants))
    return Loading(
        model=f"the class of {own or model.written_class or layout.architecture.model_type}, by the base's files",
        modules=len(modules),
        strange=tuple(strange),
        mended=() if change is None else tuple(map(change.of, strange)),
        change="" if change is None else str(change),
        other_shape=tuple(other_shapes(modules, tensors, layout)) if plain else (),
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


def misnamed(names: Iterable[str]) -> dict[Misnaming, list[str]]:
    """The tensors whose names PEFT's loader does not look for, by what is wrong; of any base, by their form alone."""
    found: dict[Misnaming, list[str]] = defaultdict(list)
    every = dict.fromkeys(names)
    for name in every:
        if (fault := _misnaming(name, every)) is not None:
            found[fault].append(name)
    return dict(found)


def _misnaming(name: str, every: Collection[str]) -> Misnaming | None:
    key = parse_key(name)
    # With bias="all" PEFT itself writes such biases, beside those of the plain names.
    live = any(part in name for part in _LIVE) and _LIVE_PART.sub("", name) not in every
    if key is None and not live:
        return None  # of another kind: what it is called is not compared here
    inner = name.removeprefix(PREFIX)
    if inner.startswith("module.") or any(f".{wrapper}." in f".{name}" for wrapper in _WRAPPERS):
        return "wrapper"
    if not name.startswith("base_model."):
        return "no_prefix"
    if inner.startswith(PREFIX):
        return "prefix_twice"
    if live:
        return "live_wrapper"
    return "adapter_name" if key is not None and key.adapter and key.field.startswith("lora_") else None


def adapted_names(tensors: Iterable[str]) -> dict[str, dict[str, str]]:
    """The modules that the file holds factors of, by path, with their tensors by field, in its order."""
    modules: dict[str, dict[str, str]] = {}
    for name in tensors:
        if (key := parse_key(name)) is not None and key.field.startswith(("lora_A", "lora_B", "lora_embedding")):
            modules.setdefault(key.module, {})[key.field] = name
    return modules


def starred(name: str) -> str:
    """A path with a star for each number.

    >>> starred("model.layers.11.mlp.experts.3.up_proj"), starred("lm_head")
    ('model.layers.*.mlp.experts.*.up_proj', 'lm_head')
    """
    return _NUMBER.sub("*", name)


class Change(NamedTuple):
    """The change at the beginning of names by which they become names of the model."""

    taken: str
    put: str

    def of(self, name: str) -> str:
        """The name after the change."""
        return self.put + name.removeprefix(self.taken)

    def __str__(self) -> str:
        """The change in words."""
        if not self.taken:
            return f"after adding `{self.put}`"
        return f"with `{self.put}` in place of `{self.taken}`" if self.put else f"after taking `{self.taken}` away"


def change_of(strange: Sequence[str], known: Collection[str]) -> Change | None:
    """The one change at the beginning that makes every strange name a known one; None if there is no such change.

    All names are starred. Two names are taken for one where they agree from a list of layers on.

    >>> change_of(["layers.*.q"], {"model.layers.*.q", "lm_head"})
    Change(taken='', put='model.')
    """
    changes: set[Change] | None = None
    by_tail: dict[str, set[str]] = defaultdict(set)
    for name in known:
        for tail in dotted_tails(name):
            if "*" in tail and not tail.startswith("*"):
                by_tail[tail].add(name[: len(name) - len(tail)])
    for name in strange:
        longest = next((tail for tail in dotted_tails(name) if tail in by_tail), None)
        if longest is None:
            return None
        taken = name[: len(name) - len(longest)]
        fitting = {Change(taken, put) for put in by_tail[longest]}
        changes = fitting if changes is None else changes & fitting
        if not changes:
            return None
    return min(changes, key=lambda change: len(change.put), default=None) if changes else None


def strange_names(modules: Iterable[str], layout: Layout, also: Collection[str] = ()) -> list[str]:
    """The modules that the model does not have, under any name that transformers gives them as it loads a file.

    `also` are starred names that modules have in the class's code, if the files name them otherwise.
    """

    def has(name: str) -> bool:
        return name in layout.sites or name in layout.containers or starred(name) in also

    return [path for path in map(module_path, modules) if not has(path) and not has(renamed(path))]


def untargeted(wanted: ModuleChoice, modules: Iterable[str]) -> list[str] | None:
    """The modules of the file on which PEFT puts no adapter, since the config's own targets do not match them.

    None if that cannot be told: targets that PEFT works out itself, or parameters.

    Raises:
        NotFollowedError: an expression cannot be matched safely.
    """
    if wanted.modules is None or (isinstance(wanted.modules, str) and wanted.modules.lower() == ALL_LINEAR):
        return None
    paths = list(dict.fromkeys(path for module in modules if not _is_nested(path := module_path(module))))
    held = tuple(parameter.rpartition(".")[0] for parameter in wanted.parameters)
    hit = matched_names(wanted, paths)
    return [path for path in paths if path not in hit and not (held and path.endswith(held))]


def _is_nested(path: str) -> bool:
    """Whether a module is, or is in, what transformers 5 fuses: PEFT moves its targets to parameters by itself."""
    return path.endswith((".experts", ".gate", ".out_proj")) or ".experts." in path


def missing_names(wanted: ModuleChoice, modules: Iterable[str], layout: Layout) -> list[str]:
    """The modules that PEFT adapts and the file has no factors of; none if the files name the modules otherwise.

    Raises:
        NotFollowedError: the configuration asks for something that is not emulated here.
    """
    there = {module_path(module) for module in modules}
    stacks = {name for name in there if name.endswith(".experts")}
    if not all(name in layout.sites or name in layout.containers for name in there):
        return []
    adapted = resolve(wanted, layout).adapted
    return [name for name in adapted if name not in there and name.rpartition(".")[0] not in stacks]


def other_shapes(modules: Mapping[str, Mapping[str, str]], tensors: Declared, layout: Layout) -> list[str]:
    """The modules whose factors do not fit the weight of their name, each with what it has and what it needs."""
    found = []
    for module, fields in modules.items():
        a, b = (tensors.get(fields.get(field, "")) for field in ("lora_A", "lora_B"))
        path = module_path(module)
        if a is None or b is None or len(a[0]) != 2 or len(b[0]) != 2:
            continue
        site = layout.sites.get(path) or layout.sites.get(renamed(path))
        factors = (b[0][0], a[0][1])
        fitting = [_matrix(site)] if site is not None else _of_experts(path, layout)
        if fitting and None not in fitting and factors not in fitting:
            turned = " (its axes are swapped)" if factors[::-1] in fitting else ""
            found.append(f"{path}: {_by(factors)} in the file, {_by(fitting[0] or ())} in the model{turned}")
    return found


def _matrix(site: Site) -> tuple[int, int] | None:
    """The (out, in) of a matrix that plain factors adapt."""
    return (site.shape[0], site.shape[1]) if site.kind == "linear" and len(site.shape) == 2 else None


def _of_experts(path: str, layout: Layout) -> list[tuple[int, int] | None]:
    """The (out, in) of one expert in each stack that a module holds."""
    stacks = [
        site.shape[1:]
        for name, site in layout.sites.items()
        if name.rpartition(".")[0] == path and site.kind == "parameter" and len(site.shape) == _STACK
    ]
    turned = layout.architecture.model_type in _TURNED
    return [(shape[1], shape[0]) if turned else (shape[0], shape[1]) for shape in stacks]


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
