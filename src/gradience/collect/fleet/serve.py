"""Which adapters of a fleet one process of a serving engine can serve together, and what each of the others needs.

What the engines do stands in `rules/config/serving.toml`; here adapters are grouped by it. Adapters with equal settings
and equal shapes are judged once, so the work grows with the number of different ones.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from gradience.adapters.traits import start_of
from gradience.configs.families import plain_name
from gradience.errors import few
from gradience.rules import judge
from gradience.rules.config.facts import CheckContext, Facts
from gradience.rules.config.serving import (
    EFFECT_RULES,
    ENGINES,
    FACTS,
    FEATURES,
    PROCESSES,
    RANKS,
    SETTINGS,
    TRAIN_WITHOUT,
    Engine,
    Processes,
)
from gradience.schema.document import Finding
from gradience.schema.events import ConfigSnapshot
from gradience.schema.fleet import Counted, EnginePlan, Misfit, Served, ServingGroup, Unfit

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SERVED: Final = "verdict in ('trained', 'near_untrained')"
_MOST_SLOTS: Final = 8  # SGLang's default of max_loras_per_batch; what a user's traffic needs is not known
_BYTES: Final = 2  # bytes per number: servers hold adapters in 16 bits
_OF_THE_BASE: Final = ("new_rows", "prefix", "base")  # features that show only beside the base
_TO_PEFT: Final = ("gradience convert ADAPTER --to peft --out NEW",)
_RANKS: Final = {sizes.engine: sizes for sizes in RANKS}

Shapes = Mapping[str, tuple[int, int]]
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
    """The settings that adapters share, and what engines make of them."""

    config: ConfigSnapshot
    findings: Mapping[str, Sequence[Finding]]
    """By engine."""


def plan_engines(base: DuckDBPyConnection, engines: Sequence[Engine]) -> list[EnginePlan]:
    """A plan for each engine, from the tables of an opened fleet."""
    found = base.execute(
        "select path, nullif(base_model, ''), shape_key, coalesce(r, 0), settings, coalesce(dtypes, ''), "
        f"coalesce(format, ''), upper(coalesce(peft_type, 'LORA')) from adapters where {SERVED} order by path"  # noqa: S608  # our own
    ).fetchall()
    candidates = [Candidate(*row) for row in found]
    others = base.execute(
        f"select coalesce(verdict, status), count(*) from adapters where not coalesce({SERVED}, false) group by 1 order by 1"  # noqa: S608  # our own
    ).fetchall()
    shapes = _shapes(base)
    judged = _judged(candidates, shapes, engines)
    left_out = [Counted(value=verdict, adapters=n) for verdict, n in others]
    return [_plan(engine, judged, shapes, left_out) for engine in engines]


def _shapes(base: DuckDBPyConnection) -> dict[str, dict[str, tuple[int, int]]]:
    """The modules of one adapter for each key of shapes."""
    sql = f"""select shape_key, name, modules.rows, modules.columns from modules join (
        select shape_key, min(path) as path from adapters where {SERVED} group by 1) using (path)"""  # noqa: S608  # our own
    shapes: dict[str, dict[str, tuple[int, int]]] = {}
    for key, name, rows, columns in base.execute(sql).fetchall():
        shapes.setdefault(key, {})[name] = (rows, columns)
    return shapes


def _judged(
    candidates: Sequence[Candidate], shapes: Mapping[str, Shapes], engines: Sequence[Engine]
) -> list[tuple[Candidate, Kind | None]]:
    """Each adapter with what its settings and the names of its modules make it; equal ones are judged once."""
    experts = {key for key, modules in shapes.items() if any("experts" in name.split(".") for name in modules)}
    keys = [(one.settings, one.shape in experts) for one in candidates]
    kinds = {key: _kind(*key, engines) for key in dict.fromkeys(keys)}
    return [(one, kinds[key]) for one, key in zip(candidates, keys, strict=True)]


def _kind(settings: str | None, experts: bool, engines: Sequence[Engine]) -> Kind | None:  # noqa: FBT001  # its key
    if settings is None:
        return None
    config = msgspec.json.decode(settings, type=ConfigSnapshot)
    if experts:
        lora = msgspec.structs.replace(config.lora, extras={**config.lora.extras, "experts": True})
        config = msgspec.structs.replace(config, lora=lora)
    findings: dict[str, list[Finding]] = {}
    for item in judge(EFFECT_RULES, Facts(config, around=CheckContext(engines=tuple(engines)))).findings:
        findings.setdefault(str(item.values["engine"]), []).append(item)
    return Kind(config, findings)


def _plan(
    engine: Engine,
    judged: Sequence[tuple[Candidate, Kind | None]],
    shapes: Mapping[str, Shapes],
    left_out: list[Counted],
) -> EnginePlan:
    process = PROCESSES.get(engine)
    misfits: dict[_Reason, list[Unfit]] = {}
    fit: list[tuple[Candidate, Kind]] = []
    for one, kind in judged:
        reasons = list(_reasons(engine, one, kind))
        for reason in reasons:
            misfits.setdefault(reason, []).append(_unfit(one, reason))
        if not reasons and kind is not None:
            fit.append((one, kind))
    groups = [] if process is None else [_group(process, *group, shapes) for group in _grouped(process, fit, shapes)]
    return EnginePlan(
        engine=engine,
        title=ENGINES[engine],
        says="" if process is None else process.says,
        source="" if process is None else str(process.source),
        groups=groups,
        misfits=[
            Misfit(id=reason.id, reason=reason.text, source=reason.source, action=reason.action, adapters=adapters)
            for reason, adapters in misfits.items()
        ],
        left_out=left_out,
        notes=[*_not_judged(engine), *_one_base(groups)],
    )


class _Reason(NamedTuple):
    """Why an adapter is not served as it was trained; `commands` have ADAPTER, NEW, BASE and N to be filled in."""

    id: str
    text: str
    source: str = ""
    action: str | None = None
    commands: tuple[str, ...] = ()


def _reasons(engine: Engine, one: Candidate, kind: Kind | None) -> Iterator[_Reason]:
    """Yield the reasons for which an engine does not serve an adapter as it was trained."""
    name = ENGINES[engine]
    found = [] if kind is None else kind.findings.get(engine, ())
    for item in found:
        feature = next(value for key, value in FEATURES.items() if key == item.values["feature"])
        action = feature.remark or (None if feature.commands else TRAIN_WITHOUT)
        yield _Reason(item.id, item.message, item.evidence[0].source, action, feature.commands)
    start = start_of(None if kind is None else kind.config.lora.init)
    if one.peft_type != "LORA":
        yield _Reason(
            "", f"not judged: peft_type {one.peft_type}, and the rows on {name} are about LoRA", "", None, _TO_PEFT
        )
    elif one.format != "peft" and not found and not (engine == "mlx" and one.format == "mlx-lm"):
        yield _Reason(
            "", f"not judged: {one.format}'s format, and the rows on {name} are about PEFT's", "", None, _TO_PEFT
        )
    elif kind is None:
        yield _Reason(
            "", "not judged: no settings beside the weights", "", "audit the fleet again, with adapter_config.json"
        )
    elif start.changes_base:
        text = f"init_lora_weights={kind.config.lora.init} changed the base that it was trained on: the update is for that one"
        yield _Reason("", text, "", None, (f"{_TO_PEFT[0]} --base BASE",))
    sizes = _RANKS.get(engine)
    if sizes is not None and sizes.sizes and sizes.room_for(one.r) is None:
        command = f"gradience resize ADAPTER --rank {max(sizes.sizes)} --out NEW"
        yield _Reason(
            "SRV004", f"{name} has no room for rank {one.r}: {sizes.says}", str(sizes.source), None, (command,)
        )


def _unfit(one: Candidate, reason: _Reason) -> Unfit:
    names = {
        "ADAPTER": shlex.quote(one.path),
        "NEW": shlex.quote(f"{one.path}-served"),
        "ONE": shlex.quote(f"{one.path}-one"),
        "N": str(one.r),
    } | ({"BASE": shlex.quote(one.base)} if one.base else {})
    filled = [" ".join(names.get(word, word) for word in command.split(" ")) for command in reason.commands]
    return Unfit(path=one.path, command=" && ".join(filled) or None)


def _grouped(
    process: Processes, fit: Sequence[tuple[Candidate, Kind]], shapes: Mapping[str, Shapes]
) -> Iterator[tuple[_Base, Sequence[Candidate]]]:
    """Yield the adapters that one process can serve, with their base, most adapters first."""
    groups: dict[tuple[_Base, Hashable], list[Candidate]] = {}
    named = [(_Base(one.base, str(kind.config.extras.get("revision") or "") or None), one, kind) for one, kind in fit]
    others = _other_shapes(((base, one) for base, one, _ in named), shapes)
    for base, one, kind in named:
        key = tuple(SETTINGS[name](kind.config.lora) for name in process.same)
        groups.setdefault((base._replace(other=others.get((base, one.shape))), key), []).append(one)
    parted = [
        (base, part)
        for (base, _), group in groups.items()
        for part in (_nested(group, shapes) if process.nested else [group])
    ]
    yield from sorted(parted, key=lambda part: -len(part[1]))


class _Base(NamedTuple):
    """A base model as adapters declare it; `other` is a module whose shape differs from that of most."""

    name: str | None
    revision: str | None
    other: str | None = None


def _other_shapes(
    named: Iterable[tuple[_Base, Candidate]], shapes: Mapping[str, Shapes]
) -> dict[tuple[_Base, str], str]:
    """For each base and key of shapes, the first module, with its shape, that most adapters of the base have otherwise."""
    counts: dict[_Base, Counter[str]] = {}
    for base, one in named:
        counts.setdefault(base, Counter())[one.shape] += 1
    others: dict[tuple[_Base, str], str] = {}
    for base, keys in counts.items():
        usual: dict[str, tuple[int, int]] = {}
        for key, _ in keys.most_common():
            modules = shapes.get(key, {})
            strange = next((name for name, shape in modules.items() if usual.get(name, shape) != shape), None)
            if strange is None:
                usual = {**modules, **usual}
            else:
                others[base, key] = f"{strange} is {' x '.join(map(str, modules[strange]))}"
    return others


def _nested(group: Sequence[Candidate], shapes: Mapping[str, Shapes]) -> list[list[Candidate]]:
    """The adapters in groups, of which the first has every module of the others."""
    parts: list[tuple[frozenset[str], list[Candidate]]] = []
    by_shape: dict[str, list[Candidate]] = {}
    for one in group:
        by_shape.setdefault(one.shape, []).append(one)
    for key in sorted(by_shape, key=lambda key: -len(shapes.get(key, ()))):
        names = frozenset(shapes.get(key, ()))
        part = next((members for leader, members in parts if names <= leader), None)
        if part is None:
            parts.append((names, by_shape[key]))
        else:
            part.extend(by_shape[key])
    return [members for _, members in parts]


def _group(process: Processes, base: _Base, group: Sequence[Candidate], shapes: Mapping[str, Shapes]) -> ServingGroup:
    sizes = _RANKS.get(process.engine)
    rooms = Counter(one.r if sizes is None else sizes.room_for(one.r) or one.r for one in group)
    modules: dict[str, tuple[int, int]] = {}
    for key in dict.fromkeys(one.shape for one in group):
        modules |= shapes.get(key, {})
    rank, width = max(rooms), sum(rows + columns for rows, columns in modules.values())
    lower = max((room for room in rooms if room < rank), default=None)
    few_need_it = process.padded and lower is not None and 2 * rooms[rank] < len(group)
    names = served_names([one.path for one in group])
    slots = 1 if process.alone or process.nested else min(len(group), _MOST_SLOTS)
    targets = sorted({name.rpartition(".")[2] for name in modules})
    filled = {
        "base": shlex.quote(base.name or "BASE"), "rank": rank, "slots": slots, "targets": " ".join(targets),
        "first": group[0].path, "adapters": "{adapters}",
    }  # fmt: skip
    return ServingGroup(
        base_model=base.name,
        revision=base.revision,
        adapters=[
            Served(name=name, path=one.path, argument=process.adapter.format(name=name, path=one.path))
            for name, one in zip(names, group, strict=True)
        ],
        ranks={str(r): n for r, n in sorted(Counter(one.r for one in group).items())},
        rank=rank,
        targets=targets,
        slots=slots,
        slot_bytes=rank * width * _BYTES if process.padded else None,
        without_largest=lower * width * _BYTES if few_need_it and lower is not None else None,
        next_rank=lower if few_need_it else None,
        largest=[one.path for one in group if few_need_it and (sizes.room_for(one.r) if sizes else one.r) == rank],
        command=process.command.format(**filled),
        notes=list(_notes(process, base, group, names)),
    )


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


def _notes(process: Processes, base: _Base, group: Sequence[Candidate], names: Sequence[str]) -> Iterator[str]:
    if base.name is None:
        yield "no base is declared: whether they are of one base is not known"
    if base.other is not None:
        yield f"they declare the same base as others, and have other shapes: {base.other}"
    longer = sum("/" in name for name in names)
    if longer:
        yield f"{longer} share the name of their folder with another: such a name has more of the path here"
    wide = sum("F32" in one.dtypes.upper() or "FLOAT32" in one.dtypes.upper() for one in group)
    if wide and process.padded:
        yield f"the factors of {wide} are float32 and are rounded to the base's dtype"
    if process.alone and len(group) > 1:
        yield "each of them needs a model of its own"


def _not_judged(engine: Engine) -> Iterator[str]:
    """Yield what the table knows of the engine and a fleet does not show, and what it does not know."""
    unseen = [FEATURES[fact.feature].name for fact in FACTS if fact.engine == engine and fact.feature in _OF_THE_BASE]
    if unseen:
        words = [
            re.sub(r" below \{old\} where the base has \{there\}", " below another prefix than the base's", name)
            for name in unseen
        ]
        yield f"not judged, because the base is not looked at: {', '.join(words)} (gradience check --base BASE --serve {engine})"
    if engine not in PROCESSES:
        yield f"how {ENGINES[engine]} serves several adapters is not known here"


def _one_base(groups: Sequence[ServingGroup]) -> Iterator[str]:
    """Yield a note on groups whose bases have the same name but for the owner, the folder and the quantisation."""
    bases: dict[str, set[str]] = {}
    for group in groups:
        if group.base_model:
            bases.setdefault(plain_name(group.base_model).lower(), set()).add(group.base_model)
    for names in bases.values():
        if len(names) > 1:
            yield f"{few(sorted(names))} may be one base under several names: if they are, one process serves all"


def findings_of_plans(plans: Iterable[EnginePlan]) -> Iterator[tuple[str, Finding]]:
    """Yield a finding for each adapter that an engine does not serve as it was trained, with the adapter's path.

    An adapter that could not be judged gives none.
    """
    for plan in plans:
        for misfit in plan.misfits:
            for one in misfit.adapters if misfit.id else ():
                values: dict[str, Any] = {"engine": plan.engine}
                yield (
                    one.path,
                    Finding(
                        id=misfit.id,
                        severity="warning",
                        message=misfit.reason,
                        action=one.command or misfit.action,
                        values=values,
                    ),
                )
