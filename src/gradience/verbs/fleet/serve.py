"""Which adapters of a fleet one process of a serving engine can serve together, and what each of the others needs.

What the engines do stands in `rules/config/serving.toml`; here adapters are grouped by it. Adapters with equal settings
and equal shapes are judged once, so the work grows with the number of different ones.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import msgspec

from gradience.adapters.groups import grouped
from gradience.blocks import counted
from gradience.configs.commands import fill, known_of, said
from gradience.configs.families import plain_name
from gradience.errors import few
from gradience.folder.beside import base_of
from gradience.rules import judge
from gradience.rules.config.facts import CheckContext, Facts
from gradience.rules.config.serving import (
    CONVERTED,
    EFFECT_RULES,
    ENGINES,
    FACTS,
    FEATURES,
    TRAIN_WITHOUT,
    Engine,
    Processes,
    engine_of,
    mend_of_shared,
    room_for,
    shared_settings,
    unjudged,
    unknown_features,
)
from gradience.schema.audit import Beside
from gradience.schema.document import Finding
from gradience.schema.events import ConfigSnapshot
from gradience.schema.fleet import Counted, EnginePlan, Misfit, Served, ServingGroup, Unfit

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_PLANNED: Final = "verdict in ('trained', 'near_untrained', 'partial', 'not_analysed')"
_MOST_SLOTS: Final = 8  # SGLang's default of max_loras_per_batch; what a user's traffic needs is not known
_BYTES: Final = 2  # bytes per number: servers hold adapters in 16 bits
_OF_THE_BASE: Final = {"new_rows": "new tokens", "prefix": "prefixes of names"}
"""Features that show only beside the base."""
_TO_PEFT: Final = ("gradience convert ADAPTER --to peft --out NEW",)

_CANDIDATES: Final = f"""select path, nullif(base_model, ''), coalesce(shapes, ''), coalesce(r, 0), settings,
    coalesce(dtypes, ''), coalesce(format, ''), upper(coalesce(peft_type, 'LORA'))
    from adapters where {_PLANNED} order by path"""  # noqa: S608  # our own
_OTHERS: Final = f"""select coalesce(verdict, status), count(*) from adapters
    where not coalesce({_PLANNED}, false) group by 1 order by 1"""  # noqa: S608  # our own

Shapes: TypeAlias = Mapping[str, tuple[int, int]]
"""The adapted modules of an adapter, each with (rows, columns)."""


class Candidate(NamedTuple):
    """An adapter that could be served."""

    path: str
    base: str | None
    shape: str
    r: int
    settings: str | None
    dtypes: str
    format: str
    peft_type: str


class Kind(NamedTuple):
    """The settings that adapters share; by engine what it makes of them, and the features that it is not known of."""

    config: ConfigSnapshot
    findings: Mapping[str, Sequence[Finding]]
    unknown: Mapping[str, Sequence[str]]


Flags: TypeAlias = Mapping[str, tuple[str, ...]]


def plan_engines(base: DuckDBPyConnection, engines: Sequence[str], flags: Flags) -> list[EnginePlan]:
    """A plan for each engine, with the flags of its server, from the tables of an opened fleet."""
    candidates = [Candidate(*row) for row in base.execute(_CANDIDATES).fetchall()]
    left_out = [Counted(value=verdict, adapters=n) for verdict, n in base.execute(_OTHERS).fetchall()]
    shapes = _shapes(base)
    judged = _judged(candidates, shapes, CheckContext(engines=tuple(engines), flags=flags))
    return [_plan(engine, judged, shapes, left_out, flags) for engine in engines]


def _shapes(base: DuckDBPyConnection) -> dict[str, dict[str, tuple[int, int]]]:
    """The modules of one adapter for each key of shapes."""
    sql = f"""select shapes, name, modules.rows, modules.columns from modules join (
        select coalesce(shapes, '') as shapes, min(path) as path from adapters
        where {_PLANNED} group by 1) using (path)"""  # noqa: S608  # our own
    shapes: dict[str, dict[str, tuple[int, int]]] = {}
    for key, name, rows, columns in base.execute(sql).fetchall():
        shapes.setdefault(key, {})[name] = (rows, columns)
    return shapes


def _judged(
    candidates: Sequence[Candidate], shapes: Mapping[str, Shapes], around: CheckContext
) -> list[tuple[Candidate, Kind | None]]:
    """Each adapter with what its settings and the names of its modules make it; equal ones are judged once."""
    groups = {key: grouped(_tensors(modules)) for key, modules in shapes.items()}
    keys = [(one.settings, one.shape if one.format == "peft" else "") for one in candidates]
    kinds = {
        key: _kind(key[0], around._replace(groups=groups.get(key[1]) if key[1] else None))
        for key in dict.fromkeys(keys)
    }
    return [(one, kinds[key]) for one, key in zip(candidates, keys, strict=True)]


def _tensors(modules: Iterable[str]) -> Iterator[str]:
    """The name of one factor of each module, as in the file: PEFT wraps an expert parameter's module for each."""
    names = dict.fromkeys(name.partition("[") for name in modules)
    whole = dict.fromkeys(name if not bracket else _wrapped(*name.rpartition(".")[::2]) for name, bracket, _ in names)
    return (f"{name}.lora_A.weight" for name in whole)


def _wrapped(module: str, leaf: str) -> str:
    return module if leaf == "down_proj" else f"{module}.base_layer"


def _kind(settings: str | None, around: CheckContext) -> Kind | None:  # its key
    if settings is None:
        return None
    config = msgspec.json.decode(settings, type=ConfigSnapshot)
    beside = msgspec.convert(config.extras.get("beside") or {}, dict[str, list[str]])
    around = around._replace(groups=None if around.groups is None else {**around.groups, **beside})
    of_each = {name: Facts(config, around=around._replace(engines=(name,))) for name in around.engines}
    return Kind(
        config,
        {name: judge(EFFECT_RULES, facts).told for name, facts in of_each.items()},
        {name: unknown_features(name, facts) for name, facts in of_each.items()},
    )


def _plan(
    named: str,
    judged: Sequence[tuple[Candidate, Kind | None]],
    shapes: Mapping[str, Shapes],
    left_out: list[Counted],
    flags: Flags,
) -> EnginePlan:
    engine = engine_of(named)
    title, process = ENGINES[engine].title, ENGINES[engine].process
    misfits: dict[_Reason, list[Unfit]] = {}
    fit: list[_Fit] = []
    for one, kind in judged:
        reasons = [_Reason("", f"not judged: {why}")] if (why := unjudged(named)) else []
        reasons = reasons or list(_reasons(named, one, kind))
        for reason in reasons:
            misfits.setdefault(reason, []).append(_unfit(one, reason))
        if not reasons and kind is not None:
            fit.append((one, kind))
    groups = (
        []
        if process is None
        else [_group(named, process, *group, shapes) for group in _grouped(engine, process, fit, shapes)]
    )
    return EnginePlan(
        engine=named,
        title=title,
        says="" if process is None else process.says,
        source="" if process is None else str(process.source),
        groups=groups,
        misfits=[
            Misfit(id=reason.id, reason=reason.text, source=reason.source, action=reason.action, adapters=adapters)
            for reason, adapters in misfits.items()
        ],
        left_out=left_out,
        notes=[*_not_judged(engine, [one for one, _ in judged]), *_one_base(groups), *_flagged(engine, groups, flags)],
    )


_Fit: TypeAlias = tuple[Candidate, Kind]


class _Reason(NamedTuple):
    """Why an adapter is not served as it was trained; `commands` have ADAPTER, NEW, MODEL and N to be filled in."""

    id: str
    text: str
    source: str = ""
    action: str | None = None
    commands: tuple[str, ...] = ()


def _flagged(engine: Engine, groups: Sequence[ServingGroup], flags: Flags) -> Iterator[str]:
    """Yield what a flag of the server that was not given would have to name."""
    known, targets = ENGINES[engine].flags, sorted({target for group in groups for target in group.targets})
    if known is not None and targets and known.targets not in flags:
        yield (
            f"if it is started with --{known.targets}, name {', '.join(targets)} there: modules that the flag does not "
            f"name are left out in silence ({known.source}); --server-flags judges by your command"
        )


def _reasons(named: str, one: Candidate, kind: Kind | None) -> Iterator[_Reason]:
    """Yield the reasons for which an engine does not serve an adapter as it was trained."""
    engine = engine_of(named)
    name = ENGINES[engine].title
    if one.peft_type != "LORA":
        text = f"not judged: of {name} only what it does with LoRA is known, and its peft_type is {one.peft_type}"
        yield _Reason("", text, commands=_TO_PEFT)
        return
    findings = () if kind is None else kind.findings.get(named, ())
    yield from map(_reason, findings)
    if one.format != "peft" and not findings and (engine, one.format) != ("mlx", "mlx-lm"):
        text = f"not judged: of {name} only what it does with PEFT's files is known, and it is in {one.format}'s format"
        yield _Reason("", text, commands=_TO_PEFT)
        return
    if kind is None:
        audit = "put its adapter_config.json beside the weights, and audit the fleet again"
        yield _Reason("", "not judged: no settings beside the weights", action=audit)


def _reason(item: Finding) -> _Reason:
    source, action = item.evidence[0].source, item.action or ""
    if "feature" not in item.values:
        is_command = action.startswith("gradience ")
        return _Reason(item.id, item.message, source, None if is_command else action, (action,) if is_command else ())
    feature = FEATURES[str(item.values["feature"])]
    action = feature.remark or ("" if feature.commands else TRAIN_WITHOUT)
    return _Reason(item.id, item.message, source, action or None, feature.commands)


def _base_of(one: Candidate) -> str | None:
    return base_of([one.base], Path(one.path))


def _unfit(one: Candidate, reason: _Reason) -> Unfit:
    names = {**known_of(one.path, Beside(base=_base_of(one)), rank=one.r), "NEW": f"{one.path}-served"}
    command, lacking = fill(" && ".join(reason.commands), names)
    return Unfit(path=one.path, command=f"{command}  # replace {lacking}" if lacking else command or None)


def _grouped(
    engine: Engine, process: Processes, fit: Sequence[_Fit], shapes: Mapping[str, Shapes]
) -> list[tuple[_Base, Sequence[_Fit]]]:
    """The adapters that one process can serve, with their base, most adapters first."""
    groups: dict[tuple[_Base, object], list[_Fit]] = {}
    bases = [_Base(one.base, str(kind.config.extras.get("revision") or "") or None) for one, kind in fit]
    others = _other_shapes(zip(bases, (one.shape for one, _ in fit), strict=True), shapes)
    for base, (one, kind) in zip(bases, fit, strict=True):
        key = tuple(shared_settings(engine, kind.config.lora).values())
        groups.setdefault((base._replace(other=others.get((base, one.shape))), key), []).append((one, kind))
    parted = [
        (base, part)
        for (base, _), group in groups.items()
        for part in (_nested(group, shapes) if process.nested else [group])
    ]
    return sorted(parted, key=lambda part: -len(part[1]))


class _Base(NamedTuple):
    """A base model as adapters declare it; `other` is a module whose shape differs from that of most."""

    name: str | None
    revision: str | None
    other: str | None = None


def _other_shapes(named: Iterable[tuple[_Base, str]], shapes: Mapping[str, Shapes]) -> dict[tuple[_Base, str], str]:
    """For a base and a key of shapes the first module that most adapters of the base have in another shape."""
    counts: dict[_Base, Counter[str]] = {}
    for base, key in named:
        counts.setdefault(base, Counter())[key] += 1
    others: dict[tuple[_Base, str], str] = {}
    for base, keys in counts.items():
        usual: dict[str, tuple[int, int]] = {}
        for key, _ in keys.most_common():
            modules = shapes.get(key, {})
            strange = next((name for name, shape in modules.items() if usual.get(name, shape) != shape), None)
            if strange is None:
                # The shapes that most adapters have came first, and stay.
                usual = {**modules, **usual}
            else:
                here, there = (" x ".join(map(str, shape)) for shape in (modules[strange], usual[strange]))
                others[base, key] = f"{strange} is {here} and not {there}"
    return others


def _nested(group: Sequence[_Fit], shapes: Mapping[str, Shapes]) -> list[list[_Fit]]:
    """The adapters in groups, of which the first has every module of the others."""
    by_shape: dict[str, list[_Fit]] = {}
    for item in group:
        by_shape.setdefault(item[0].shape, []).append(item)
    parts: list[tuple[frozenset[str], list[_Fit]]] = []
    for key in sorted(by_shape, key=lambda key: -len(shapes.get(key, ()))):
        names = frozenset(shapes.get(key, ()))
        part = next((members for leader, members in parts if names <= leader), None)
        if part is None:
            parts.append((names, by_shape[key]))
        else:
            part.extend(by_shape[key])
    return [members for _, members in parts]


def _group(
    named: str, process: Processes, base: _Base, members: Sequence[_Fit], shapes: Mapping[str, Shapes]
) -> ServingGroup:
    group = [one for one, _ in members]
    modules: dict[str, tuple[int, int]] = {}
    for key in dict.fromkeys(one.shape for one in group):
        modules |= shapes.get(key, {})
    size = _size(engine_of(named), process, group, sum(rows + columns for rows, columns in modules.values()))
    names = served_names([one.path for one in group])
    slots = 1 if process.alone or process.nested else min(len(group), _MOST_SLOTS)
    targets = sorted({name.rpartition(".")[2] for name in modules})
    word = str if "!r" in process.command + process.adapter else shlex.quote  # Python quotes by itself
    return ServingGroup(
        base_model=base.name,
        revision=base.revision,
        adapters=[
            Served(name=name, path=one.path, argument=process.adapter.format(name=word(name), path=word(one.path)))
            for name, one in zip(names, group, strict=True)
        ],
        ranks={str(r): n for r, n in sorted(Counter(one.r for one in group).items())},
        **size._asdict(),
        targets=targets,
        slots=slots,
        command=process.command.strip().format(
            base=word(base.name or "MODEL"),
            rank=size.rank,
            slots=slots,
            targets=" ".join(targets),
            first=group[0].path,
            adapters="{adapters}",
        ),
        notes=[
            *_notes(process, base, shared_settings(engine_of(named), members[0][1].config.lora), group, names),
            *_unsure(named, members),
        ],
    )


class _Size(NamedTuple):
    """The rank that a process makes room for and what a slot takes, as the fields of `ServingGroup`."""

    rank: int
    slot_bytes: int | None = None
    next_rank: int | None = None
    without_largest: int | None = None
    largest: Sequence[str] = ()


def _size(engine: Engine, process: Processes, group: Sequence[Candidate], width: int) -> _Size:
    """The size of a slot of so many rows and columns, and what it would be without the adapters of the largest rank.

    Said of these only if they are less than half of the group: a heuristic for whom the others pay.
    """
    rooms = Counter(room_for(engine, one.r) or one.r for one in group)
    rank, lower = max(rooms), max((room for room in rooms if room < max(rooms)), default=None)
    if not process.padded:
        return _Size(rank)
    if lower is None or 2 * rooms[rank] >= len(group):
        return _Size(rank, rank * width * _BYTES)
    largest = [one.path for one in group if (room_for(engine, one.r) or one.r) == rank]
    return _Size(rank, rank * width * _BYTES, lower, lower * width * _BYTES, largest)


def served_names(paths: Sequence[str]) -> list[str]:
    """A name for each path: as many of its last parts as no other path ends in.

    >>> served_names(["runs/a/peft", "runs/b/peft", "runs/c"])
    ['a/peft', 'b/peft', 'c']
    """
    parts = [path.rstrip("/").split("/") for path in paths]
    depth = dict.fromkeys(range(len(paths)), 1)
    names = {n: parts[n][-1] for n in depth}
    open_ = list(depth)
    while open_:
        counts = Counter(names.values())
        open_ = [n for n in open_ if counts[names[n]] > 1 and depth[n] < len(parts[n])]
        for n in open_:
            depth[n] += 1
            names[n] = "/".join(parts[n][-depth[n] :])
    return [names[n] for n in range(len(paths))]


def _shown(name: str, value: Hashable) -> str:
    if isinstance(value, frozenset):
        return f"{name} {', '.join(sorted(map(str, value)))}"
    return name if value is True else f"{name} {value}"


def _notes(
    process: Processes, base: _Base, shared: Mapping[str, object], group: Sequence[Candidate], names: Sequence[str]
) -> Iterator[str]:
    for name, value in shared.items():
        if value:
            yield said(f"apart from others because of {_shown(name, value)}: {mend_of_shared(name)}", {})
    if base.name is None:
        yield "no base is declared: whether they are of one base is not known"
    if base.other is not None:
        yield f"of another base than most that declare {base.name}: {base.other}"
    longer = sum("/" in name for name in names)
    if longer and "name" in process.adapter:
        yield f"the folders of {longer} have the name of another's: they are served by more of the path"
    wide = sum("F32" in one.dtypes.split(",") for one in group)
    if wide and process.padded:
        yield f"the factors of {counted(wide, 'adapter')} are float32, and become of the base's dtype"
    if process.alone and len(group) > 1:
        yield "each of them needs a model of its own"


def _unsure(named: str, members: Sequence[_Fit]) -> Iterator[str]:
    """Yield the features of adapters of which it is not known what the engine does with them."""
    title = ENGINES[engine_of(named)].title
    counts = Counter(name for _, kind in members for name in kind.unknown.get(named, ()))
    for name, n in counts.items():
        yield (
            f"{counted(n, 'adapter')} with {name}, and what {title} does with that is not known: "
            "compare outputs first (gradience verify)"
        )


def _not_judged(engine: Engine, adapters: Sequence[Candidate]) -> Iterator[str]:
    """Yield what is known of the engine and a fleet does not show, and that nothing is known."""
    known = {fact.feature for fact in FACTS if fact.row.engine == engine}
    if unseen := [words for feature, words in _OF_THE_BASE.items() if feature in known]:
        bases = {_base_of(one) for one in adapters}
        names = {"MODEL": bases.pop() if len(bases) == 1 else None}
        asks = f"gradience check --adapter ADAPTER --base MODEL --serve {engine}"
        yield said(f"the base is not looked at, so these are not judged: {', '.join(unseen)}: {asks}", names)
    if ENGINES[engine].process is None:
        yield f"how {ENGINES[engine].title} serves several adapters is not known here"


def _one_base(groups: Sequence[ServingGroup]) -> Iterator[str]:
    """Yield a note on groups whose bases have the same name but for the owner, the folder and the quantisation."""
    bases: dict[str, set[str]] = {}
    for group in groups:
        if group.base_model:
            bases.setdefault(plain_name(group.base_model).rpartition("/")[2].lower(), set()).add(group.base_model)
    for names in bases.values():  # the owner and the folder are no part of the name
        if len(names) > 1:
            yield f"{few(sorted(names))} may be one base under several names: if they are, one process serves all"


def not_judged(plans: Iterable[EnginePlan]) -> set[str]:
    """The paths of the adapters of which it is not known how an engine serves them."""
    return {one.path for plan in plans for misfit in plan.misfits if not misfit.id for one in misfit.adapters}


def findings_of_plans(plans: Iterable[EnginePlan]) -> Iterator[tuple[str, Finding]]:
    """Yield a finding for each adapter that an engine does not serve as it was trained, with the adapter's path.

    An adapter that could not be judged gives none.
    """
    named = [(item.engine, misfit) for item in plans for misfit in item.misfits if misfit.id not in {"", CONVERTED}]
    for engine, misfit in named:
        for one in misfit.adapters:
            action, told = one.command or misfit.action, misfit.reason
            finding = Finding(id=misfit.id, severity="warning", message=told, action=action, values={"engine": engine})
            yield one.path, finding
