"""The sites of a base that a configuration's targets match, and the number of entries that LoRA adds there.

The rules are those of PEFT 0.21.2, `tuners/tuners_utils.py`. An entry of a list matches a name that equals it or ends
with a dot and the entry. A string is a regular expression for the whole name. `all-linear` means every linear layer but
the output layer. `exclude_modules` and `modules_to_save` are applied first. `layers_to_transform` reads the first
number in a name, or by `layers_pattern`; like `modules_to_save` that is read as an expression.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from gradience.adapters.patterns import Expressions, PatternTable, dotted_tails, layer_number, whole
from gradience.base.peft_emulation import DEFAULT_TARGETS, MAMBA_TYPES
from gradience.base.peft_emulation.layout import Layout, Site
from gradience.errors import AdapterError
from gradience.schema.events import LoraSnapshot

ALL_LINEAR: Final = "all-linear"

_IN_MAMBA: Final = ("out_proj", "conv1d")
_ADAPTABLE: Final = ("linear", "embedding", "conv", "packed")

Test = Callable[[str], bool]

_CONVERTING: Final = 5  # transformers' major version
_SAVED_HEADS: Final = {  # PeftModelFor...: modules_to_save of their own
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}

_MATRIX: Final = 2
_STACK: Final = 3


class NotFollowedError(Exception):
    """The configuration asks for something of PEFT that is not emulated here; the message says what."""


class ModuleChoice(NamedTuple):
    """The fields of a configuration that choose modules, in PEFT's terms."""

    modules: Sequence[str] | str | None = None
    parameters: Sequence[str] = ()
    exclude: Sequence[str] | str = ()
    save: Sequence[str] = ()
    layers: Sequence[int] | None = None
    layers_pattern: Sequence[str] = ()
    task_type: str | None = None


class Hits(NamedTuple):
    """The result of matching: sites that PEFT adapts, sites it refuses with the reason, entries without a match.

    `doubled` names parameters that two targets share because transformers 5 fuses them: PEFT doubles rank and alpha
    there.
    """

    adapted: list[str]
    refused: list[tuple[str, str]]
    unmatched: list[str]
    unmatched_excludes: list[str]
    doubled: frozenset[str] = frozenset()


def resolve(wanted: ModuleChoice, layout: Layout) -> Hits:
    """The sites of the layout that the targets match.

    Raises:
        NotFollowedError: target_modules is null and PEFT has no default, or an expression cannot be matched safely.
    """
    converts = layout.transformers >= _CONVERTING and bool(layout.architecture.expert_names)
    # PEFT looks up its default only after the conversion for fused experts, which turns null into an empty list.
    if wanted.modules is None and not wanted.parameters:
        wanted = wanted._replace(modules=() if converts else _default(layout))
    guard = _guard(wanted)
    entries = wanted.modules
    if converts:
        wanted, doubled = _as_parameters(wanted, layout, guard)
    else:
        doubled = frozenset()
    if isinstance(wanted.modules, str) and wanted.modules.lower() == ALL_LINEAR:
        wanted = wanted._replace(modules=_all_linear(layout))
    targeted = _targeted(wanted)
    # PEFT matches a block as well as a layer, and then raises because it cannot adapt it.
    names = [*layout.containers, *(name for name, site in layout.sites.items() if site.kind != "parameter")]
    hit = sorted(name for name in names if not guard(name) and targeted(name))
    reasons = {name: _refusal(name, layout) or _saved_too(name, wanted) for name in hit}
    refused = [(name, reason) for name, reason in reasons.items() if reason is not None]
    adapted = [name for name, reason in reasons.items() if reason is None]
    parameters = _parameters(wanted.parameters, layout)
    return Hits(
        adapted=adapted + [name for name in parameters if name not in adapted],
        refused=refused,
        unmatched=_without_a_hit(entries, [*hit, *parameters], layout),
        unmatched_excludes=_without_a_hit(wanted.exclude, names, layout),
        doubled=doubled,
    )


def matched_names(wanted: ModuleChoice, names: Iterable[str]) -> set[str]:
    """Those of the names that the targets match and nothing excludes, whatever modules they are of.

    Raises:
        NotFollowedError: an expression cannot be matched safely.
    """
    guard, targeted = _guard(wanted), _targeted(wanted)
    return {name for name in names if not guard(name) and targeted(name)}


def saved_names(wanted: ModuleChoice) -> tuple[str, ...]:
    """The entries of `modules_to_save`, and those that PEFT adds for the task type."""
    return (*wanted.save, *_SAVED_HEADS.get(wanted.task_type or "", ()))


def _saved_too(name: str, wanted: ModuleChoice) -> str | None:
    """PEFT's reason to refuse a target that is also saved whole, or None.

    PEFT wraps every module whose name ends with a saved name, whether LoRA adapts it or not.
    """
    return (
        "also saved whole (modules_to_save): exclude_modules keeps LoRA off it"
        if (name.endswith(saved_names(wanted) or ("\0",)))
        else None
    )


def _default(layout: Layout) -> Sequence[str] | str:
    names = DEFAULT_TARGETS.get(layout.architecture.model_type)
    if names is None:
        raise NotFollowedError(
            f"target_modules is null, and PEFT has no default for {layout.architecture.model_type!r}"
        )
    return names


def _all_linear(layout: Layout) -> list[str]:
    outputs = {layout.output}
    return [name for name, site in layout.sites.items() if site.kind in {"linear", "packed"} and name not in outputs]


def _ends_with(entries: Iterable[str]) -> Test:
    """A test whether a name, or the rest of it after one of its dots, is among the entries of a list."""
    known = set(entries)

    def test(name: str) -> bool:
        return any(tail in known for tail in dotted_tails(name))

    return test


def _expression(pattern: str, what: str) -> Test:
    """A test whether the expression matches the whole of a name."""
    with _followed(what):
        table = PatternTable([whole(pattern)])

    def test(name: str) -> bool:
        with _followed(what):
            return bool(table.matching(name))

    return test


@contextmanager
def _followed(what: str) -> Iterator[None]:
    """A block in which a pattern that cannot be matched is the reason that PEFT is not followed."""
    try:
        yield
    except AdapterError as error:
        raise NotFollowedError(f"{what}: {error.message}") from error


def _guard(wanted: ModuleChoice) -> Test:
    """A test for modules that PEFT does not adapt: those excluded and those saved whole.

    PEFT reads the names of `modules_to_save` as expressions here, and as plain ends of names where it saves.
    """
    excluded = (
        _expression(wanted.exclude, "exclude_modules")
        if isinstance(wanted.exclude, str)
        else _ends_with(wanted.exclude)
    )
    names = saved_names(wanted) if wanted.task_type == "SEQ_CLS" else wanted.save  # others add theirs after matching
    with _followed("modules_to_save"):
        saved = Expressions({rf"(^|.*\.){pattern}($|\..*)": pattern for pattern in names})

    def test(name: str) -> bool:
        with _followed("modules_to_save"):
            return excluded(name) or saved.first(name) is not None

    return test


def _targeted(wanted: ModuleChoice) -> Test:
    if wanted.modules is None:
        return lambda _: False
    if isinstance(wanted.modules, str):
        return _expression(wanted.modules, "target_modules")
    listed, whole = _ends_with(wanted.modules), set(wanted.modules)
    if not wanted.layers:
        return listed
    layers = set(wanted.layers)
    with _followed("layers_pattern"):
        number = layer_number(wanted.layers_pattern)

    def test(name: str) -> bool:
        # PEFT asks for the layer only of a name that it matched by its end, not of one that the list states in full.
        with _followed("layers_pattern"):
            return name in whole or (listed(name) and number(name) in layers)

    return test


def _refusal(name: str, layout: Layout) -> str | None:
    """PEFT's reason to raise when a target hits this module, or None."""
    if layout.architecture.model_type in MAMBA_TYPES and name.rpartition(".")[2] in _IN_MAMBA:
        return "PEFT refuses it in Mamba models"
    site = layout.sites.get(name)
    if site is None:
        return "a block of modules, no layer with a weight"
    if site.kind == "router":
        return "a router: name its weight in target_parameters"
    return None if site.kind in _ADAPTABLE else "a norm or another layer that PEFT has no LoRA for"


def _parameters(targets: Sequence[str], layout: Layout) -> list[str]:
    """The sites that target_parameters matches, by the path of a bare parameter or of a module's weight."""
    test = _ends_with(targets)
    if not targets:
        return []
    paths = {name: name if site.kind == "parameter" else f"{name}.weight" for name, site in layout.sites.items()}
    return sorted(name for name, path in paths.items() if test(path))


def _as_parameters(wanted: ModuleChoice, layout: Layout, guard: Test) -> tuple[ModuleChoice, frozenset[str]]:
    """The targets after PEFT moved those of fused experts to target_parameters, and the doubled parameters."""
    renamed = layout.architecture.expert_names
    modules = _leaves(wanted, layout, guard) if isinstance(wanted.modules, str) else set(wanted.modules or ())
    if not modules:
        return wanted, frozenset()
    moved = {target: old for target in modules for old in renamed if target == old or target.endswith(f".{old}")}
    halves = {old for old in moved.values() if renamed[old] == "gate_up_proj"}
    both = {old for old, new in renamed.items() if new == "gate_up_proj"}
    if halves and halves != both:
        missing = ", ".join(sorted(both - halves))
        raise NotFollowedError(f"PEFT refuses {', '.join(sorted(halves))} without {missing}: transformers 5 fuses them")
    parameters = {*wanted.parameters, *(renamed[old] for old in moved.values())}
    kept = wanted._replace(modules=sorted(modules - moved.keys()), parameters=sorted(parameters))
    return kept, frozenset({"gate_up_proj"} if halves else ())


def _leaves(wanted: ModuleChoice, layout: Layout, guard: Test) -> set[str]:
    """The leaf names that a target string matches, as PEFT resolves it for models with fused experts."""
    renamed = layout.architecture.expert_names
    if str(wanted.modules).lower() == ALL_LINEAR:
        return {name.rpartition(".")[2] for name in _all_linear(layout)} | renamed.keys()
    test = _targeted(wanted)
    names = [*layout.containers, *layout.sites, *(f"{name}.weight" for name in layout.sites)]
    leaves = {name.rpartition(".")[2] for name in names if not guard(name) and test(name)}
    for old, new in renamed.items():
        holders = (name.rpartition(".")[0] for name in names if name.endswith(f".{new}"))
        if old not in leaves and any(test(f"{holder}.{old}") for holder in holders):
            leaves.add(old)
    return leaves


def _without_a_hit(targets: Sequence[str] | str | None, hits: Iterable[str], layout: Layout) -> list[str]:
    """The entries of a list that match no name; none for a string."""
    if targets is None or isinstance(targets, str):
        return []
    tails = {tail for name in hits for tail in dotted_tails(name)}
    renamed = layout.architecture.expert_names if layout.transformers >= _CONVERTING else {}
    return sorted(
        target for target in set(targets) if target not in tails and renamed.get(target.rpartition(".")[2]) is None
    )


def lora_sizes(lora: LoraSnapshot, hits: Hits, layout: Layout) -> list[int | None]:
    """The number of entries in LoRA's factors at each adapted site, None if it cannot be known."""
    try:
        ranks = PatternTable(lora.rank_pattern or {})
        return [_size(lora, name, layout.sites[name], ranks, hits) for name in hits.adapted]
    except AdapterError as error:
        raise NotFollowedError(f"rank_pattern: {error.message}") from error


def narrow_sites(lora: LoraSnapshot, hits: Hits, layout: Layout) -> dict[str, int]:
    """The number of adapted sites with a smaller side below their rank, by the last component of their names."""
    ranks = PatternTable(lora.rank_pattern or {})
    matrices = ((name, site) for name in hits.adapted if len((site := layout.sites[name]).shape) == _MATRIX)
    too_high = [name for name, site in matrices if (_rank(lora, name, site, ranks, hits) or 0) > min(site.shape)]
    return dict(Counter(name.rpartition(".")[2] for name in too_high))


def _size(lora: LoraSnapshot, name: str, site: Site, ranks: PatternTable, hits: Hits) -> int | None:
    rank = _rank(lora, name, site, ranks, hits)
    if rank is None or rank < 1 or site.kind == "packed":
        return None
    if site.kind == "conv":
        if site.shape[1] == 1 < site.shape[0]:
            return None  # depthwise by its shape; a header lacks the number of groups that would decide
        out, width, *kernel = site.shape
        return rank * (width * math.prod(kernel) + out) + _per_output(lora, out)
    if len(site.shape) == _STACK:
        return rank * site.shape[0] * (site.shape[1] + site.shape[2])
    rows, width = site.shape
    outputs = width if site.kind == "embedding" else rows
    extra = 0 if site.kind in {"parameter", "router"} else _per_output(lora, outputs)
    return rank * (rows + width) + extra


def _per_output(lora: LoraSnapshot, outputs: int) -> int:
    """The number of entries that DoRA's magnitude and the bias of lora_bias add."""
    return outputs * (bool(lora.use_dora) + bool(lora.extras.get("lora_bias")))


def _rank(lora: LoraSnapshot, name: str, site: Site, ranks: PatternTable, hits: Hits) -> int | None:
    """The rank at a site: that of the first matching pattern, as in PEFT, else r, or 2 r if PEFT doubles it."""
    path = f"{name}.weight" if site.kind == "router" else name
    # PEFT adds the doubled rank as a last pattern, so a pattern of the user's comes first.
    keys = ranks.matching(path)
    if keys:
        return (lora.rank_pattern or {})[keys[0]]
    doubled = name.rpartition(".")[2] in hits.doubled
    return None if lora.r is None else lora.r * (2 if doubled else 1)
