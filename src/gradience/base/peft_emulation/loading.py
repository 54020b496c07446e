"""Which of an adapter's tensors PEFT would load: their names beside those of the model, as its loader compares them.

PEFT 0.21.2 puts the adapter's name into each name of a file and gives all to `load_state_dict` with `strict=False`
(`utils/save_and_load.py`). A name that the model does not have is passed over; the user sees a warning of missing keys,
or nothing. So the names have to be those that `save_pretrained` writes, to the letter.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

from gradience.adapters.layout import PREFIX, module_path, parse_key
from gradience.adapters.patterns import dotted_tails
from gradience.base.peft_emulation.layout import Declared, Layout, Site, renamed
from gradience.base.peft_emulation.targets import ALL_LINEAR, ModuleChoice, matched_names, resolve

Misnaming: TypeAlias = Literal["no_prefix", "prefix_twice", "adapter_name", "wrapper", "live_wrapper"]

_WRAPPERS: Final = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_LIVE: Final = (".modules_to_save.", ".original_module.")
_LIVE_PART: Final = re.compile(r"(?<=\.)(?:modules_to_save|original_module)\.(?:default\.)?")
_NUMBER: Final = re.compile(r"(?<=\.)\d+(?=\.|$)")
_STACK: Final = 3  # axes of a parameter that holds a layer's experts
_TURNED: Final = frozenset({"aria", "gpt_oss", "openai_privacy_filter"})  # whose experts are stored (in, out)


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
