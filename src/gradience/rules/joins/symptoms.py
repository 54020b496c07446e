"""The symptoms of each source: tagged findings, and facts that mean something only next to others.

One such fact is whether a configuration, a log and an adapter can be of one run. For it, the statements of the
configuration and the log about the adapter are compared with the factors in the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean
from typing import Final, NamedTuple

from gradience.adapters import layer_label
from gradience.errors import few
from gradience.rules import Observation, Threshold
from gradience.rules.joins import Symptom, showing, shown
from gradience.rules.weights import TINY_RMS, WeightsRule, typical_entry
from gradience.rules.weights.rules import WEIGHTS_RULES
from gradience.schema import Json, as_float
from gradience.schema.audit import AuditReport, ModuleAudit
from gradience.schema.diagnose import PieceSource, SourceKind
from gradience.schema.document import Finding, NotRun
from gradience.schema.events import ConfigSnapshot, LoraSnapshot
from gradience.telemetry.series import RunSeries

EXPLODED_RMS = Threshold(
    "exploded_rms",
    0.2,
    "root mean square of an update's entries",
    "10 x transformers' initializer_range of 0.02; real adapters at hand had at most 0.0026",
)
FEW_LAYERS = Threshold("few_layers", 0.5, "adapted layers over the base's, at least", "a judgement")
MANY_LAYERS = Threshold("many_layers", 4, "layers of the base, at least", "a judgement: of fewer, half is one or none")
OUTGROWN = Threshold(
    "outgrown",
    1.5,
    "root mean square of lora_B's entries over the sum of the learning rates",
    "steady gradients give at most 1; 36 sane trainings had 0.05 to 0.88",
)
_SHOWN: Final = 3  # targets in a message
# Optimizers whose steps move an entry by about the rate at most: Adam's bound, arXiv 1412.6980, section 2.1; Lion's
# step is a sign, arXiv 2302.06675.
_SIGN_LIKE: Final = ("adam", "paged_adam", "pagedadam", "lion", "paged_lion", "pagedlion")
_OF_HEALTH: Final = frozenset(rule.id for rule in WEIGHTS_RULES if isinstance(rule, WeightsRule) and rule.verdicts)
_RECORDED: Final = (("n_layers", "adapted modules"), ("total_lora_params", "LoRA parameters"))


def log_symptoms(findings: Iterable[Finding], *, evaluated: bool) -> list[Symptom]:
    """The findings on the log, and the fact that nothing held-out was measured in it."""
    symptoms = symptoms_of("log", findings)
    return symptoms if evaluated else [*symptoms, _fact("log", "nothing_held_out", "the log holds no evaluation")]


def learnt_by(optimizer: str | None) -> list[Symptom]:
    """The fact that a run whose loss fell names Adam, whose updates seldom look trained by their spectrum alone."""
    name = optimizer or ""
    return [_fact("log", "learnt_by", f"the loss fell, by {name}", optimizer=name)] if "adam" in name.lower() else []


def symptoms_of(source: PieceSource, findings: Iterable[Finding]) -> list[Symptom]:
    """Findings on a source as symptoms."""
    return [_symptom(source, finding) for finding in findings]


def damage(reason: str) -> list[Symptom]:
    """The symptom of an adapter's file that ends too early, by the reason why it cannot be read; none without one."""
    return [_fact("weights", "damaged", reason, damaged=reason)] if reason else []


def weights_symptoms(report: AuditReport) -> list[Symptom]:
    """The findings on the weights, tagged with the health verdict, and plain facts about the weights."""
    return [*(_weights_symptom(report, finding) for finding in (*report.findings, *report.readings)), *_facts(report)]


def _weights_symptom(report: AuditReport, finding: Finding) -> Symptom:
    if finding.id not in _OF_HEALTH:
        return _symptom("weights", finding)
    verdict = report.health.verdict
    key = {"broken": "lost", "untrained": "zero", "near_untrained": "zero"}.get(verdict)
    tags = () if verdict == "broken" and not report.modules else (verdict,)  # an empty file holds no NaN
    return _symptom("weights", finding, tags=tags, **({key: report.health.reason} if key else {}))


def _symptom(source: PieceSource, finding: Finding, *, tags: Iterable[str] = (), **more: Json) -> Symptom:
    """A finding as a symptom, tagged with its severity and the names of its values."""
    marks = frozenset([*tags, *finding.values, finding.severity])
    values = {**finding.values, **more}
    for sign in shown(source, finding.id, marks):
        values |= sign.values(finding)
    return Symptom(source, finding.id, Observation(finding.message, values), finding, marks)


def _fact(source: SourceKind, name: str, says: str, **values: Json) -> Symptom:
    return Symptom(source, name, Observation(says, values))


def _facts(report: AuditReport) -> Iterator[Symptom]:
    sized = report.modules if report.is_scaled else []
    exploded = [(size, module) for module in sized if (size := typical_entry(module)) > EXPLODED_RMS.value]
    if exploded:
        size, module = max(exploded, key=lambda item: item[0])
        says = f"a typical entry of the update of {module.name} is {size:.2g}, over {EXPLODED_RMS.value:g}"
        yield _fact("weights", "exploded", says, exploded=says, rms=size)
    elif report.health.verdict == "trained":
        yield from _tiny(sized)
    yield from _few_layers(report.modules)
    if report.modules and not any(entry.role == "full_module" for entry in report.ledger):
        yield _fact("weights", "no_head", "the file holds LoRA factors and no full module")


def _tiny(modules: Sequence[ModuleAudit]) -> Iterator[Symptom]:
    size = max(map(typical_entry, modules), default=0.0)
    if 0.0 < size < TINY_RMS.value:
        says = f"a typical entry of the largest update is {size:.1g}, under {TINY_RMS.value:g}"
        yield _fact("weights", "tiny", says, tiny=says, rms=size)


def _few_layers(modules: Sequence[ModuleAudit]) -> Iterator[Symptom]:
    """A symptom if few layers are adapted.

    The base has at least as many layers as the highest number in a module's name says. If a name numbers something
    other than layers, nothing is said.
    """
    if any(not (layer_label(module.name) or "0").isdigit() for module in modules):
        return
    reached = {module.layer for module in modules if module.layer is not None}
    least = max(reached, default=0) + 1
    if least >= MANY_LAYERS.value and len(reached) < FEW_LAYERS.value * least:
        says = f"{len(reached)} of at least {least} layers are adapted"
        yield _fact("weights", "few_layers", says, few=says, layers=len(reached), least=least)


class Stated(NamedTuple):
    """The adapter settings that one source states, and the name of that source."""

    where: str
    lora: LoraSnapshot


def disagreements(stated: Iterable[Stated], report: AuditReport) -> list[Symptom]:
    """Symptoms of a configuration that cannot be this adapter's, and of targets that match no module.

    A pattern or a regular expression leaves some values open; those do not count as a disagreement.
    """
    if not report.modules or report.format != "peft" or report.peft_type not in {None, "LORA"}:
        return []  # other formats name modules differently and keep alpha elsewhere
    return [symptom for each in stated for symptom in _of_one(each, report)]


def _of_one(stated: Stated, report: AuditReport) -> list[Symptom]:
    modules, lora = report.modules, stated.lora
    if lora.peft_type not in {None, "LORA"}:
        return _pair(stated, f"peft_type {lora.peft_type}", "the file holds LoRA factors", modules)
    scale = _alpha(lora, modules) if report.is_scaled else ()
    conflicts = [*_rank(lora, modules), *scale, *_strangers(lora, modules)]
    if conflicts:
        return [symptom for claim, found in conflicts for symptom in _pair(stated, claim, found, modules)]
    return list(idle_targets(stated, report))


def idle_targets(stated: Stated, report: AuditReport) -> Iterator[Symptom]:
    """Symptoms of targets that name no module in the adapter's file."""
    modules = report.modules
    idle = _idle(stated.lora, modules) if modules and report.format == "peft" else []
    if not idle:
        return
    names, left = few(idle), sorted({module.name.rpartition(".")[2] for module in modules})
    adapted = f"{len(modules)} modules in the file, of the names {few(left)}"
    yield _fact("config", "idle_targets", f"{stated.where}: target_modules {names}", idle=names)
    yield _fact("weights", "adapted", adapted, adapted=few(left))


def _pair(stated: Stated, claim: str, found: str, modules: Sequence[ModuleAudit]) -> list[Symptom]:
    return [
        _fact("config", "other_config", f"{stated.where}: {claim}", differs=f"{claim} in {stated.where}, {found}"),
        _fact("weights", "other_adapter", f"{found} ({len(modules)} modules)"),
    ]


def _rank(lora: LoraSnapshot, modules: Sequence[ModuleAudit]) -> Iterator[tuple[str, str]]:
    if lora.r is None:
        return
    allowed = _or_converted(lora, [lora.r, *(lora.rank_pattern or {}).values()], 2)
    wrong = next((m for m in modules if m.r not in allowed), None)
    if wrong is not None:
        yield f"r={lora.r}", f"r={wrong.r} on disk in {wrong.name}"


def _alpha(lora: LoraSnapshot, modules: Sequence[ModuleAudit]) -> Iterator[tuple[str, str]]:
    if lora.alpha is None:
        return
    stated = [as_float(value) for value in (lora.alpha, *(lora.alpha_pattern or {}).values())]
    # The scaling of twice the rank is to be that of before: alpha / r, or alpha / sqrt(r) with rsLoRA
    allowed = _or_converted(lora, stated, 2**0.5 if lora.use_rslora else 2)
    wrong = next((m for m in modules if m.alpha is not None and as_float(m.alpha) not in allowed), None)
    if wrong is not None:
        yield f"lora_alpha={stated[0]:g}", f"alpha={as_float(wrong.alpha or 0.0):g} in {wrong.name}"


def _or_converted(lora: LoraSnapshot, stated: Sequence[float], times: float) -> set[float]:
    """The stated values; with those of the plain LoRA as which PEFT saves a start that was taken out of the base."""
    from gradience.adapters.traits import start_of  # numpy: only those who audited weights have it anyway

    return {*stated, *(times * value for value in stated if start_of(lora.init).doubled)}


def _strangers(lora: LoraSnapshot, modules: Sequence[ModuleAudit]) -> Iterator[tuple[str, str]]:
    """Yield a conflict if the file has a module that no target names."""
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
    """Whether PEFT's list of targets matches a module by this entry: the whole path, or its end after a dot."""
    return module == target or module.endswith(f".{target}")


def recorded_disagreements(run: RunSeries, report: AuditReport) -> list[Symptom]:
    """Symptoms of an audit in the log that disagrees with the file in all counts that both have.

    Programs differ in what they count as a LoRA parameter, so one differing count is not enough.
    """
    audit = run.latest_metrics.get("lora_audit")
    recorded = {} if audit is None else audit.metrics
    counts = [(recorded.get(key), getattr(report.summary, key), name) for key, name in _RECORDED]
    # type() and not isinstance, because JSON's true is an int to Python
    differ = [(logged, in_file, name) for logged, in_file, name in counts if type(logged) is int and logged != in_file]
    if not report.modules or len(differ) < len(_RECORDED):
        return []
    return [symptom for logged, in_file, name in differ for symptom in _recorded_pair(name, logged, in_file)]


def _recorded_pair(name: str, logged: int, found: int) -> list[Symptom]:
    differs = f"{logged} {name} recorded, {found} in the file"
    return [
        _fact("log", "other_log", f"its audit counted {logged} {name}", differs=differs),
        _fact("weights", "other_adapter", f"{found} {name} in the file"),
    ]


def outgrown(run: RunSeries, config: ConfigSnapshot, report: AuditReport) -> Iterator[Symptom]:
    """Symptoms of factors lora_B that moved further than the learning rates in the log allow."""
    moved, logged = rms_of_b(report.modules), sum_of_rates(run, config)
    if moved is None or logged is None or not moved > OUTGROWN.value * logged:
        return
    yield _fact("log", "summed_rates", f"its learning rates sum to at most {logged:.2g}", logged=logged)
    says = f"entries of lora_B began at 0 and are at {moved:.2g}"
    yield _fact("weights", "outgrown", says, moved=moved, times=moved / logged if logged else math.inf)


def rms_of_b(modules: Iterable[ModuleAudit]) -> float | None:
    """Root mean square of the entries of all lora_B that began at zero, each module counting alike; None without any.

    If each entry moved by S one way, it is S.
    """
    squares = [m.b_rms**2 for m in modules if m.b_rms is not None]
    return math.sqrt(fmean(squares)) if squares else None


def sum_of_rates(run: RunSeries, config: ConfigSnapshot) -> float | None:
    """The largest sum of learning rates that the log allows; None if no step is known to be as large as its rate.

    Between two rows it is the larger of theirs, before the first row the configured one, after the last row the last.
    """
    optimizer, planned = config.optimizer, config.training.planned_steps
    # What was seen in the run goes before the settings: a script may have made its own optimizer
    wired = (w.optimizer.names for w in reversed(run.wirings) if w.optimizer and w.optimizer.names)
    names = next(wired, [optimizer.name or ""])
    if optimizer.lr is None or optimizer.extras.get("lr_groups"):
        return None
    if not all(name.lower().startswith(_SIGN_LIKE) for name in names):
        return None
    total, step, rate = 0.0, 0, as_float(optimizer.lr)
    for at, next_rate in zip(run.steps, run.rates, strict=True):
        # A rate that was not logged is NaN; the next one that was stands for its steps, too
        if at > step and math.isfinite(next_rate):
            total, step, rate = total + (at - step) * max(rate, next_rate), at, next_rate
    return total + max(0, (run.last_step or 0) - step, (planned or 0) - step) * rate


def shows_learning(not_run: Iterable[NotRun], evaluations: int) -> bool:
    """Whether the log shows if its run learnt: by training losses that were judged, or by several evaluations."""
    judged = showing("log", "no_learning").keys().isdisjoint(item.id for item in not_run)
    return judged or evaluations > 1
