"""Whether a configuration, a log and an adapter can be of one run: what each states, held against the factors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from gradience.rules.joins.joins import Sign
from gradience.schema.audit import AuditReport, ModuleAudit
from gradience.schema.config import LoraSnapshot
from gradience.schema.diagnose import PieceSource
from gradience.schema.reports import MonitorReport
from gradience.schema.scalars import as_float

_SHOWN: Final = 3
_CONVERTED: Final = ("pissa", "olora", "corda", "eva", "loftq", "orthogonal")  # PEFT's subtract-able starts


class Stated(NamedTuple):
    """What one source states of the adapter, and which source that is."""

    where: str
    lora: LoraSnapshot


def disagreements(stated: Iterable[Stated], report: AuditReport) -> list[Sign]:
    """Return signs of a configuration that cannot be this adapter's, and of targets that hit no module.

    What a pattern or an expression leaves open is not held against it.
    """
    if not report.modules or report.format != "peft" or report.peft_type not in {None, "LORA"}:
        return []  # other formats have other names for modules and keep alpha elsewhere
    signs: list[Sign] = []
    for each in stated:
        signs += _of_one(each, report)
    return signs


def _of_one(stated: Stated, report: AuditReport) -> list[Sign]:
    modules, lora = report.modules, stated.lora
    if lora.peft_type not in {None, "LORA"}:
        return _pair(stated, f"peft_type {lora.peft_type}", "the file holds LoRA factors", modules)
    told = [*_rank(lora, modules), *_alpha(lora, modules), *_strangers(lora, modules)]
    signs = [sign for said, found in told for sign in _pair(stated, said, found, modules)]
    idle = _idle(lora, modules)
    if idle and not signs:
        names = ", ".join(idle[:_SHOWN]) + (f" and {len(idle) - _SHOWN} more" if len(idle) > _SHOWN else "")
        signs.append(Sign("config", "idle_targets", f"{stated.where}: target_modules {names}", values={"idle": names}))
        signs.append(Sign("weights", "adapted", f"{len(modules)} modules in the file, the first {modules[0].name}"))
    return signs


def _pair(stated: Stated, said: str, found: str, modules: Sequence[ModuleAudit]) -> list[Sign]:
    differs = f"{said} in {stated.where}, {found}"
    return [
        Sign("config", "other_config", f"{stated.where}: {said}", values={"differs": differs}),
        Sign("weights", "other_adapter", f"{found} ({len(modules)} modules)"),
    ]


def _rank(lora: LoraSnapshot, modules: Sequence[ModuleAudit]) -> Iterator[tuple[str, str]]:
    if lora.r is None:
        return
    allowed = {lora.r, *(lora.rank_pattern or {}).values()}
    wrong = [m for m in modules if m.r not in allowed]
    if wrong and not (_converted(lora) and all(m.r == 2 * lora.r for m in wrong)):
        yield f"r={lora.r}", f"r={wrong[0].r} on disk in {wrong[0].name}"


def _converted(lora: LoraSnapshot) -> bool:
    return (lora.init or "").lower().startswith(_CONVERTED)


def _alpha(lora: LoraSnapshot, modules: Sequence[ModuleAudit]) -> Iterator[tuple[str, str]]:
    if lora.alpha is None:
        return
    alpha = as_float(lora.alpha)
    allowed = {alpha, *(as_float(value) for value in (lora.alpha_pattern or {}).values())}
    wrong = [m for m in modules if m.alpha is not None and as_float(m.alpha) not in allowed]
    if wrong and not (_converted(lora) and all(as_float(m.alpha or 0.0) == 2 * alpha for m in wrong)):
        yield f"lora_alpha={alpha:g}", f"alpha={as_float(wrong[0].alpha or 0.0):g} in {wrong[0].name}"


def _strangers(lora: LoraSnapshot, modules: Sequence[ModuleAudit]) -> Iterator[tuple[str, str]]:
    """Yield modules in the file that no target names."""
    targets = lora.target_modules
    if not isinstance(targets, list) or not targets or lora.extras.get("target_parameters"):
        return
    strange = [m.name for m in modules if m.expert is None and not any(_names(t, m.name) for t in targets)]
    if strange:
        yield f"target_modules {', '.join(targets[:_SHOWN])}", f"{strange[0]} was adapted"


def _idle(lora: LoraSnapshot, modules: Sequence[ModuleAudit]) -> list[str]:
    targets = lora.target_modules
    if not isinstance(targets, list):
        return []
    return [target for target in targets if not any(_names(target, m.name) for m in modules)]


def _names(target: str, module: str) -> bool:
    """Whether PEFT's list of targets hits a module by this name: the whole path, or its end after a dot."""
    return module == target or module.endswith(f".{target}")


_RECORDED: Final = (("n_layers", "adapted modules"), ("total_lora_params", "LoRA parameters"))


def recorded_disagreements(monitor: MonitorReport, report: AuditReport) -> list[Sign]:
    """Return signs of an audit in the log that counted otherwise than the file in everything that both count.

    Programs differ in what they count as a LoRA parameter: one count alone says too little.
    """
    recorded = monitor.lora_audit or {}
    counts = [(recorded.get(key), getattr(report.summary, key), name) for key, name in _RECORDED]
    differ = [(told, found, name) for told, found, name in counts if type(told) is int and told != found]
    if not report.modules or len(differ) < len(_RECORDED):
        return []
    return [sign for told, found, name in differ for sign in _recorded_pair(name, told, found)]


def _recorded_pair(name: str, told: int, found: int) -> list[Sign]:
    source: PieceSource = "log"
    differs = f"{told} {name} recorded, {found} in the file"
    return [
        Sign(source, "other_log", f"its audit counted {told} {name}", values={"differs": differs}),
        Sign("weights", "other_adapter", f"{found} {name} in the file"),
    ]
