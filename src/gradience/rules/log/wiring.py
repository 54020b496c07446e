"""WIR170 to WIR189, LED412: does what was meant to train, is it saved, does a resumed run go on with what was saved?

The rules read the `wiring` events: what was seen in the model, its optimizers and its schedule as the run began,
resumed, made its first steps and saved, and in how it was called; of a resume also the digests of what was fed. A log
without such events cannot be judged. What people do on purpose is no finding: norms, biases and embeddings trained
beside a LoRA, and modules around the adapted model; a part that is frozen but in the optimizer, to be unfrozen; base
parameters that require a gradient but are in no optimizer; tensors in the optimizer beside the model's, such as those
of a loss; experts that a step does not use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import Final

from gradience.adapters import OUTPUTS
from gradience.errors import few
from gradience.rules import Observation, Premise, Threshold, cite
from gradience.rules.between.saved import tied_apart, untied
from gradience.rules.log.facts import LogRule, Place, RunFacts, Values, log_rule, seen, shown
from gradience.rules.log.recorded import everything_masked
from gradience.schema import as_float
from gradience.schema.document import Evidence
from gradience.schema.events import Wiring
from gradience.schema.wiring import (
    BY_LORA,
    AdapterWiring,
    DataWiring,
    GradientWiring,
    OptimizerWiring,
    ParameterGroup,
    PassWiring,
)

BASE_SHARE = Threshold("base_share", 0.5, "of the base's parameters", "a judgement: over half was not unfrozen by hand")
LOOKED = Threshold("looked", 4, "optimizer steps", "A has no gradient before B moved, and a warm-up's first rate is 0")
SAVED_SHARE = Threshold("saved_share", 0.9, "of the adapter's parameters", "a judgement: DoRA's magnitudes are fewer")
REPEATED = Threshold(
    "repeated", 0.1, "of the rows of a resume, seen before in its epoch", "arithmetic: five times what `once` lets pass"
)
ONCE = Threshold("once", 0.98, "of the rows of an epoch, different ones", "sampling with replacement repeats more")
COMPARED = Threshold("compared", 3, "steps", "arithmetic: of fewer steps half is one")
KEPT = Threshold("kept", 0.5, "of the steps compared", "a judgement: some loops step more often than they set to zero")
UNMOVED = Threshold(
    "unmoved", 0.9, "of the elements with a gradient", "measured: 0 in float32, under .1 at usual rates"
)
AT_RATE = Threshold(
    "at_rate", 0.5, "of the peak rate", "a judgement: a warm-up begins with steps that are lost later, too"
)
LOST_STEPS = Threshold("lost_steps", 2, "steps of the schedule", "arithmetic: a save between two steps is one behind")

_OURS: Final = ("adapter", "whole", "head")
_SWITCH_ON: Final = "Call model.enable_adapter_layers(), or model.set_adapter(name) with the adapter that trains."
_UNMERGE: Final = "Call model.unmerge_adapter() before training."
_SKIP: Final = (
    "Skip the batches that were seen: accelerator.skip_first_batches(loader, n), a stateful loader, or a Trainer with "
    "ignore_data_skip at False."
)
SUPERVISED: Final[Premise[RunFacts]] = Premise(
    "a token of the batches seen is supervised",
    lambda facts: "no token is supervised, so there is no gradient" if everything_masked(facts) else None,
)
_LOOKED: Final = cite("gradience.hf.wiring", "the tensors themselves were looked at, by identity, as the run began")
_KEPT: Final = cite(
    "gradience.hf.digests",
    "digests are sums over all elements, or over every n-th above 50 MB: equal tensors, equal sums",
)
_CALLED: Final = cite("gradience.hf.passes", "hooks on its modules see how the model is called")


def _recorded(facts: RunFacts) -> str | None:
    return None if facts.run.wirings else "the log has no wiring event"


def _of(facts: RunFacts, *phases: str) -> list[Wiring]:
    return [wiring for wiring in facts.run.wirings if wiring.phase in phases]


def _looks(facts: RunFacts) -> Iterator[tuple[Wiring, AdapterWiring]]:
    """The looks at a model with an adapter, at the beginning and at a resume."""
    for wiring in _of(facts, "start", "resume"):
        if wiring.adapter is not None:
            yield wiring, wiring.adapter


def _when(wiring: Wiring) -> str:
    if wiring.phase == "gradients":
        return f"At step {wiring.step}"
    return f"After the resume from step {wiring.step}" if wiring.phase == "resume" else "From the start"


def _group(wiring: Wiring, kind: str) -> ParameterGroup | None:
    return next((group for group in wiring.groups if group.kind == kind), None)


RECORDED: Final = Premise("the log has a wiring event", _recorded)


@dataclass(frozen=True, kw_only=True)
class _WiringRule(LogRule):
    """A rule on what trains: most that it finds ruins a run, so it is judged while training runs and told first."""

    needs: tuple[Premise[RunFacts], ...] = (RECORDED,)
    evidence: tuple[Evidence, ...] = (_LOOKED,)
    place: Place = "broken"
    live: bool = True


@_WiringRule(
    "WIR170",
    severity="critical",
    confidence=0.95,
    phrase=lambda v: f"the base trains: {v.get('trained')} of its parameters",
    thresholds=(BASE_SHARE,),
)
def _base_trains(facts: RunFacts) -> Observation | None:
    """the base trains

    an adapter is in the model, and the optimizer also trains weight matrices of the base that modules_to_save does
    not name; a warning if they are under {base_share} of the base

    Why: What the base learns is not saved with the adapter, and its optimizer state fills the memory.
    Scope: runs with a wiring event and an adapter; not norms, biases, embeddings, heads, modules_to_save
    Action: Freeze the base before the optimizer is made: for n, p in model.named_parameters():
        p.requires_grad_("lora_" in n), or load the adapter with PeftModel.from_pretrained(base, path,
        is_trainable=True).
    Verify: Call model.print_trainable_parameters().
    Seen: https://github.com/Blaizzy/mlx-vlm/issues/2178 -- a resumed LoRA run trains the whole base, 27 times the
        parameters
    """
    for wiring, adapter in _looks(facts):
        base = [group for group in wiring.groups if group.kind == "base" and group.matrices]
        optimizer = wiring.optimizer
        # Under ZeRO and an FSDP that flattens the optimizer holds tensors of its own: identity tells no parameter
        if optimizer is not None and not optimizer.sharded:
            base = [group for group in base if group.kind in optimizer.held_kinds]
        trained = sum(group.trainable for group in base)
        whole = sum(group.parameters for group in wiring.groups if group.kind == "base")
        own = _group(wiring, "adapter")
        if not trained:
            continue
        most = trained >= BASE_SHARE.value * whole
        times = f", {trained / own.trainable:.3g} times as many as the adapter's" if own and own.trainable else ""
        return Observation(
            f"{_when(wiring)}, {trained} of the base's {whole} parameters are trained beside the adapter{times}.",
            {"trained": trained, "base": whole, "adapter": own.trainable if own else 0, "step": wiring.step},
            severity=None if most else "warning",
            confidence=None if most else 0.6,
            rationale=None if adapter.trainable_tensors else "The adapter itself is frozen.",
            evidence=seen(f"trainable base parameters at step {wiring.step}: {trained}"),
        )
    return None


def _frozen_says(v: Values) -> str | None:
    if "off" in v:
        return "the adapter is switched off"
    return f"{v['modules']} adapted modules are frozen" if "modules" in v else "the adapter is frozen"


@_WiringRule("WIR171", severity="critical", confidence=0.95, phrase=_frozen_says, thresholds=(LOOKED,))
def _adapter_frozen(facts: RunFacts) -> Observation | None:
    """the adapter is frozen

    no tensor of the active adapters is trainable, or a step calls the model without the adapter that trains; a
    warning if some adapted modules are frozen and the optimizer does not hold them. Where something else trains
    and the optimizer holds what is frozen, it may be unfrozen yet: that is said if it still is after {looked} steps

    Why: A frozen adapter stays what it was.
    Scope: runs with a wiring event and an adapter
    Action: Load it with PeftModel.from_pretrained(base, path, is_trainable=True).
    Verify: Call model.print_trainable_parameters().
    Seen: https://github.com/huggingface/trl/issues/6700 -- an adapter loaded without is_trainable=True: GRPO does
        nothing
    """
    for wiring, adapter in _looks(facts):
        if adapter.disabled:
            return Observation(
                f"{_when(wiring)}, the adapter is switched off.",
                {"step": wiring.step, "off": True},
                action=_SWITCH_ON,
                evidence=seen("disable_adapters is set"),
            )
        if adapter.frozen_tensors and adapter.trainable_tensors == 0 and not _may_thaw(facts, wiring):
            return _all_frozen(wiring, adapter)
        awaited = wiring.optimizer is None or wiring.optimizer.frozen_adapter > 0
        if adapter.frozen_layers and adapter.trainable_tensors and not awaited:
            return Observation(
                f"{_when(wiring)}, {adapter.frozen_layers} of {adapter.layers} adapted modules are frozen, and the "
                "optimizer does not hold them.",
                {"modules": adapter.frozen_layers, "of": adapter.layers, "step": wiring.step},
                severity="warning",
                confidence=0.6,
                evidence=seen(f"frozen: {few(adapter.frozen_names)}"),
            )
    for wiring, passes in _passes(facts):
        if passes.off:
            return Observation(
                f"At step {wiring.step} the model was called without the adapter that trains: it is switched off, or "
                "another one is active.",
                {"step": wiring.step, "off": True},
                action=_SWITCH_ON,
                evidence=seen("the forward pass of an adapted module"),
            )
    return None


def _all_frozen(wiring: Wiring, adapter: AdapterWiring) -> Observation:
    other = adapter.inactive_trainable
    beside = f"; {other} tensors of an adapter that is not active are trainable" if other else ""
    count = wiring.optimizer.frozen_adapter if wiring.optimizer is not None else 0
    vain = f". The optimizer holds {count} of them, to no effect" if count and not other else ""
    return Observation(
        f"{_when(wiring)}, none of the adapter's {adapter.frozen_tensors} tensors is trainable{beside}{vain}.",
        {"frozen": adapter.frozen_tensors, "step": wiring.step, "inactive": other},
        action=f'Call model.set_adapter("{_other(adapter)}") before the optimizer is made.' if other else None,
        evidence=seen(f"frozen: {few(adapter.frozen_names)}"),
    )


def _may_thaw(facts: RunFacts, begun: Wiring) -> bool:
    """Whether what is frozen may be meant to train later: another part trains, and it is not seen frozen still.

    An optimizer of the adapter and that part alone was chosen: of it only saves tell.
    """
    optimizer = begun.optimizer
    if optimizer is None or not optimizer.frozen_adapter or not optimizer.held:
        return False
    chosen = optimizer.held_frozen == optimizer.frozen_adapter
    later = [at for at in _of(facts, "save" if chosen else "gradients", "save") if at.adapter is not None]
    since = [at for at in later if (at.step or 0) - (begun.step or 0) >= LOOKED.value]
    return not since or any(at.adapter is not None and at.adapter.trainable_tensors for at in since)


def _passes(facts: RunFacts) -> Iterator[tuple[Wiring, PassWiring]]:
    """The steps at which the model began to be called in another way."""
    for wiring in _of(facts, "pass"):
        if wiring.passes is not None:
            yield wiring, wiring.passes


def _other(adapter: AdapterWiring) -> str:
    return next((name for name in adapter.names if name not in adapter.active), "default")


@_WiringRule(
    "WIR172",
    severity="critical",
    confidence=0.95,
    phrase=lambda v: (
        f"{v['doubled']} tensors are in two optimizers"
        if "doubled" in v
        else f"the optimizer misses {v.get('missing')} trainable tensors"
    ),
    thresholds=(BASE_SHARE,),
)
def _optimizer_misses(facts: RunFacts) -> Observation | None:
    """the optimizer holds something else

    the optimizer holds none of the trainable tensors, or others of their shapes; or, with an adapter, it does not
    hold trainable tensors of it, or of modules_to_save, or of a head whose weights at a save are those of the start;
    a warning if two hold the same tensors

    Why: What the optimizer does not hold never changes, whatever its gradient.
    Scope: runs with a wiring event and an optimizer that is not sharded
    Action: Make the optimizer after the model is adapted, loaded and moved: optimizer = AdamW([p for p in
        model.parameters() if p.requires_grad]).
    Verify: Compare a weight before and after a step.
    Seen: https://github.com/adapter-hub/adapters/issues/260 -- the optimizer was made before the adapter, and lacks
        its parameters
    """
    for wiring in _of(facts, "start", "resume", "gradients"):
        optimizer = wiring.optimizer
        if optimizer is None or optimizer.sharded:
            continue
        missing = {kind: count for kind, count in optimizer.missing.items() if kind in _OURS}
        # Strangers of the shapes that are missing are the parameters of the model before it was made or loaded anew
        lost = optimizer.replaced > 0 and optimizer.replaced >= BASE_SHARE.value * sum(optimizer.missing.values())
        if lost or (optimizer.held == 0 and optimizer.missing):
            return _other_model(wiring, optimizer)
        probe = _is_probe(missing, optimizer) and not _head_stays(facts, wiring)
        if wiring.adapter is not None and missing and not probe:
            kinds = ", ".join(f"{count} of {_called(kind, optimizer)}" for kind, count in missing.items())
            return Observation(
                f"{_when(wiring)}, the optimizer does not hold {sum(missing.values())} trainable tensors: {kinds}.",
                {"missing": sum(missing.values()), "kinds": missing, "step": wiring.step},
                evidence=seen(f"not held: {few(optimizer.missing_names)}"),
            )
        if optimizer.doubled:
            return Observation(
                f"{_when(wiring)}, {optimizer.doubled} tensors are held by more than one optimizer: each moves them.",
                {"doubled": optimizer.doubled, "step": wiring.step},
                severity="warning",
                confidence=0.8,
                rationale="Two optimizers that move one tensor take steps of twice the length, each with its own "
                "moments.",
                action="Give each optimizer parameters of its own.",
                evidence=seen(f"{few(optimizer.names)}: {optimizer.held + optimizer.doubled} tensors held"),
            )
    return None


def _is_probe(missing: dict[str, int], optimizer: OptimizerWiring) -> bool:
    """Whether all that is missing is a head, whose training is often left out on purpose."""
    return "adapter" not in missing and "whole" not in missing and "adapter" in optimizer.held_kinds


def _head_stays(facts: RunFacts, begun: Wiring) -> bool:
    """Whether the head's weights at a later save are those of the start, though they require gradients."""
    old = _group(begun, "head")
    saved = (_group(wiring, "head") for wiring in _of(facts, "save") if (wiring.step or 0) > (begun.step or 0))
    return old is not None and old.digest is not None and any(at and at.digest == old.digest for at in saved)


def _called(kind: str, optimizer: OptimizerWiring) -> str:
    """What a kind of parameters is called: a module that is saved whole by its name."""
    _, _, whole = next((n for n in optimizer.missing_names if ".modules_to_save." in n), "").partition("base_model.")
    named = whole.partition(".modules_to_save.")[0].rpartition(".")[2]
    return f"the head or other module {named}, trained whole" if kind == "whole" and named else f"the {kind}"


def _other_model(wiring: Wiring, optimizer: OptimizerWiring) -> Observation:
    missing = sum(optimizer.missing.values())
    if optimizer.held_frozen and not optimizer.strangers:
        return Observation(
            f"{_when(wiring)}, the optimizer holds none of the {missing} trainable tensors: all "
            f"{optimizer.held_frozen} that it holds are frozen.",
            {"missing": missing, "frozen": optimizer.held_frozen, "step": wiring.step},
            evidence=seen(f"not held: {few(optimizer.missing_names)}"),
        )
    return Observation(
        f"{_when(wiring)}, the optimizer holds {optimizer.strangers} tensors that are not the model's, and misses "
        f"{missing} that are trainable: it was made for another model object.",
        {"strangers": optimizer.strangers, "missing": missing, "replaced": optimizer.replaced, "step": wiring.step},
        evidence=seen(f"not held: {few(optimizer.missing_names)}"),
    )


@_WiringRule(
    "WIR173",
    severity="error",
    confidence=0.9,
    needs=(RECORDED, SUPERVISED),
    phrase=lambda v: f"{v['silent']} modules receive no gradient" if "silent" in v else "no gradient arrives",
    thresholds=(LOOKED,),
)
def _no_gradient(facts: RunFacts) -> Observation | None:
    """no gradient arrives

    adapted modules received no gradient in the first steps, {looked} or more; critical if no trainable tensor
    received one

    Why: Their weights stay as they began: the forward pass does not use them, or cuts the graph.
    Scope: runs whose first steps were looked at; experts of a layer count as one
    Action: Look for detach(), no_grad() or an unused branch before those modules, or leave them out of
        target_modules.
    Verify: Print p.grad of the modules named, after backward().
    Seen: https://github.com/huggingface/transformers/issues/26221 -- reentrant checkpointing lets no gradient reach
        the adapter
    """
    for wiring in _of(facts, "gradients"):
        of = wiring.gradients
        if of is None or not of.tensors:
            continue
        if of.rows and of.invoked == 0 and not of.reached:
            return _never_invoked(of)
        # Detached tensors never get a gradient, so one look is enough; A gets one only after B has moved
        if not of.reached and (of.detached == of.tensors or of.steps >= LOOKED.value):
            return _none_at_all(wiring, of)
        if of.silent and of.steps >= LOOKED.value:
            return Observation(
                f"In the first {of.steps} steps {of.silent} of {of.modules} adapted modules received no gradient.",
                {"silent": of.silent, "modules": of.modules, "steps": of.steps},
                evidence=seen(f"without a gradient: {few(of.silent_names)}"),
            )
        alone = "adapter" in of.unreached and of.modules and of.silent == of.modules
        if alone and of.detached:
            return _none_at_all(wiring, of)
    return None


def _never_invoked(of: GradientWiring) -> Observation:
    return Observation(
        f"None of the first {of.rows} rows has the invocation tokens of the aLoRA: it acts on no token, and receives "
        "no gradient.",
        {"tensors": of.tensors, "steps": of.steps, "rows": of.rows},
        severity="critical",
        action="Put the invocation into each row, as the ids of alora_invocation_tokens: those of the text within a "
        "template may be others than those of the text alone.",
        evidence=seen(f"{of.rows} rows without them, {of.tensors} trainable tensors without a gradient"),
    )


def _none_at_all(wiring: Wiring, of: GradientWiring) -> Observation:
    why = ", because the inputs of the recomputed layers need none" if wiring.frozen_inputs else ""
    action = "Call model.enable_input_require_grads(), or pass use_reentrant=False." if wiring.frozen_inputs else None
    return Observation(
        f"No trainable tensor received a gradient in the first {of.steps} steps{why}.",
        {"tensors": of.tensors, "steps": of.steps, "frozen_inputs": wiring.frozen_inputs},
        severity="critical",
        action=action,
        evidence=seen(f"{of.tensors} trainable tensors, {of.detached} of them with no gradient at all"),
    )


@_WiringRule(
    "WIR181",
    severity="error",
    confidence=0.9,
    phrase=lambda _: "no gradient can flow through the recomputed layers",
    evidence=(),
)
def _inputs_frozen(facts: RunFacts) -> Observation | None:
    """checkpointing without gradients

    activations are recomputed by reentrant checkpointing and the inputs need no gradient

    Why: The layers are run without a graph, and run again only if an input of theirs needs a gradient.
    Scope: runs with a wiring event; models of transformers
    Action: Call model.enable_input_require_grads(), or set use_reentrant to False.
    Verify: See whether torch warns that none of the inputs have requires_grad=True.
    Seen: https://github.com/huggingface/transformers/issues/26221 -- checkpointing with LoRA: no input has
        requires_grad=True
    Source: torch.utils.checkpoint (2.13) -- reentrant: a warning if no input has requires_grad=True
    """
    wiring = next((wiring for wiring in _of(facts, "start", "resume") if wiring.frozen_inputs), None)
    looks = [each.gradients for each in facts.run.wirings if each.gradients is not None]
    if wiring is None or any(of.silent < of.modules if of.modules else of.reached > 0 for of in looks):
        return None
    if any(of.rows and of.invoked == 0 for of in looks):
        return None  # WIR173 names the cause
    return Observation(
        "Activations are recomputed by reentrant checkpointing, and the inputs need no gradient: none will flow.",
        {"step": wiring.step},
    )


@_WiringRule(
    "WIR174",
    severity="critical",
    confidence=0.95,
    phrase=lambda v: "the model is adapted twice" if "nested" in v else "the adapter is merged while it trains",
    evidence=(_LOOKED,),
)
def _wrapped_twice(facts: RunFacts) -> Observation | None:
    """adapted twice, or merged

    an adapted model is inside an adapted model, or the adapter is merged while it trains

    Why: Two adapters are added, and what is saved is only the outer one.
    Scope: runs with a wiring event and an adapter
    Action: Call get_peft_model() only on a model without an adapter; to go on with one, use
        PeftModel.from_pretrained(base, path, is_trainable=True) alone.
    Verify: See whether a parameter's name has "base_model.model" twice.
    Seen: https://github.com/huggingface/peft/issues/2115 -- get_peft_model before PeftModel.from_pretrained: the
        outputs are those of the base
    Source: huggingface/peft, get_peft_model (0.21) -- a model that is adapted already is wrapped once more
    """
    for wiring, adapter in _looks(facts):
        if adapter.nested:
            return Observation(
                f"{_when(wiring)}, the model is adapted {adapter.nested + 1} times over: an adapted model was wrapped "
                "again.",
                {"nested": adapter.nested, "step": wiring.step},
            )
        if adapter.merged and wiring.adapter is not None:
            return Observation(
                f"{_when(wiring)}, the adapter {few(adapter.merged)} is merged into the base weights while it trains.",
                {"merged": list(adapter.merged), "step": wiring.step},
                action=_UNMERGE,
            )
    for wiring, passes in _passes(facts):
        if passes.merged:
            return Observation(
                f"At step {wiring.step} the adapter was merged into the base weights while it trains.",
                {"merged": [], "step": wiring.step},
                action=_UNMERGE,
                evidence=seen("the forward pass of an adapted module"),
            )
    return None


def _saved_before(facts: RunFacts) -> str | None:
    if facts.run.wirings and not _of(facts, "resume"):
        return "the run was not resumed"
    return None if any(_resumes(facts)) else "what was saved at the step of the resume was not recorded"


SAVED_BEFORE: Final = Premise("the run was resumed at a step whose save was recorded", _saved_before)
RESUMED: Final[Premise[RunFacts]] = Premise(
    "the run was resumed", lambda facts: None if _of(facts, "resume") else "no resume was recorded in this log"
)


@_WiringRule(
    "WIR175",
    severity="critical",
    confidence=0.95,
    needs=(RECORDED, SAVED_BEFORE),
    phrase=lambda v: f"resumed at step {v.get('step')} from other weights than were saved",
    evidence=(_KEPT,),
)
def _resumed_weights(facts: RunFacts) -> Iterator[Observation]:
    """resumed from other weights

    at a resume the digest of the weights is not that of the save at that step; a warning if their dtype changed

    Why: What was learnt before the save is lost, or other weights than the adapter's are under it.
    Scope: resumes in the same log as the save
    Action: Load the adapter of that checkpoint before training: PeftModel.from_pretrained(base, checkpoint,
        is_trainable=True), or trainer.train(resume_from_checkpoint=checkpoint).
    Verify: Compare the loss of the first steps with the last before the save.
    Seen: https://github.com/huggingface/diffusers/issues/12689 -- after a resume training starts from the untrained
        adapter
    """
    for before, now in _resumes(facts):
        for group in now.groups:
            old = _group(before, group.kind)
            if old is None:
                continue
            # Digests over other tensors, or over every n-th element of another n, say nothing of each other
            same_set = old.trainable_tensors == group.trainable_tensors and old.sampled == group.sampled
            if same_set and old.digest and group.digest and old.digest != group.digest:
                yield _other_weights(now, old, group)
                break
            kept = old.tensors == group.tensors and old.frozen_sampled == group.frozen_sampled and same_set
            if kept and old.frozen_digest and group.frozen_digest and old.frozen_digest != group.frozen_digest:
                yield Observation(
                    f"At the resume from step {now.step} the frozen {group.kind} weights are not those of the save.",
                    {"step": now.step, "kind": group.kind, "frozen": True},
                    action="Load the base model that the run began with: its name and its revision.",
                    evidence=seen(f"digest {old.frozen_digest} saved, {group.frozen_digest} resumed"),
                )
                break


def _other_weights(now: Wiring, old: ParameterGroup, new: ParameterGroup) -> Observation:
    dtype = "" if old.dtypes == new.dtypes else f", which were {few(old.dtypes)} and are {few(new.dtypes)}"
    return Observation(
        f"At the resume from step {now.step} the trainable {new.kind} weights are not those that were saved{dtype}.",
        {"step": now.step, "kind": new.kind, "frozen": False},
        severity="warning" if dtype else None,
        evidence=seen(f"digest {old.digest} saved, {new.digest} resumed"),
    )


def _resumes(facts: RunFacts) -> Iterator[tuple[Wiring, Wiring]]:
    """Each resume with the save at its step."""
    saves: dict[int | None, Wiring] = {}
    for wiring in facts.run.wirings:
        if wiring.phase == "save":
            saves[wiring.step] = wiring
        elif wiring.phase == "resume" and wiring.step in saves:
            yield saves[wiring.step], wiring


@_WiringRule(
    "WIR176",
    severity="error",
    confidence=0.95,
    needs=(RECORDED, SAVED_BEFORE),
    place="later",
    phrase=lambda v: f"resumed at step {v.get('step')} with a new optimizer",
    evidence=(_KEPT,),
)
def _resumed_optimizer(facts: RunFacts) -> Iterator[Observation]:
    """resumed with a new optimizer

    at a resume the optimizer has no state although it had one at the save; a warning if it has another

    Why: Adam's moments are estimated anew: the first steps are too long, and the loss often jumps.
    Scope: resumes in the same log as the save
    Action: Load its state: optimizer.load_state_dict(torch.load(path)); in a Trainer, leave save_only_model off.
    Verify: Look at the gradient norm and the loss after the resume.
    Seen: https://github.com/OpenGVLab/InternVL/issues/689 -- training from a saved adapter does not go on where the
        loss was
    """
    for before, now in _resumes(facts):
        old, new = before.optimizer, now.optimizer
        if old is None or new is None or not old.states or old.sharded or new.sharded:
            continue
        if not new.states:
            yield Observation(
                f"At the resume from step {now.step} the optimizer is new: it has no state of the {old.states} tensors "
                "for which it had one at the save.",
                {"step": now.step, "states": old.states},
                evidence=seen("no state in the optimizer"),
            )
        elif old.digest and new.digest and old.digest != new.digest and _alike(old, new):
            yield Observation(
                f"At the resume from step {now.step} the optimizer's state is not the one that was saved.",
                {"step": now.step, "states": new.states},
                severity="warning",
                evidence=seen(f"digest {old.digest} saved, {new.digest} resumed"),
            )


def _alike(old: OptimizerWiring, new: OptimizerWiring) -> bool:
    return old.names == new.names and old.states == new.states and old.sampled == new.sampled


@_WiringRule(
    "WIR177",
    severity="warning",
    confidence=0.9,
    needs=(RECORDED, RESUMED),
    place="later",
    phrase=lambda v: f"resumed at step {v.get('step')} with other data",
    thresholds=(REPEATED, ONCE),
    evidence=(_KEPT,),
)
def _resumed_data(facts: RunFacts) -> Iterator[Observation]:
    """resumed with other data

    at a resume the rows of a step, their order or the data set are not those of the save; or over {repeated} of the
    rows fed to the end of the epoch were fed before in it, where {once} of those are different. An epoch whose end
    is not known is not over while rows come that were never fed

    Why: Steps before and after the resume cannot be compared, and rows come twice or never.
    Scope: resumes in one log: by the loader at the save and now, or by the digests of what was fed
    Action: Resume with the batch size, the accumulation, the data and the seed of the run that is resumed.
    Verify: Compare the settings of both run_start events.
    Source: transformers/training_args.py:TrainingArguments@5.24.0 -- ignore_data_skip lets a resumed run begin with
        the first rows
    """
    for before, now in _resumes(facts):
        old, new = before.data, now.data
        if old is None or new is None:
            continue
        was, became = _effective(old), _effective(new)
        if was and became and was != became:
            yield Observation(
                f"Since the resume from step {now.step} a step has {became} rows; it had {was}.",
                {"step": now.step, "before": was, "now": became},
                evidence=seen(f"effective batch {was} before, {became} after"),
            )
        if new.skips is False:
            yield Observation(
                f"The resume from step {now.step} begins the data anew: rows that were trained on come again first.",
                {"step": now.step, "skips": False},
                action="Leave ignore_data_skip at False, so that the resume skips the rows that were seen.",
            )
        by_epoch = () if _ends_an_epoch(now, new) else ("sampler_seed",)
        names = ("rows", "fingerprint", "sampler", "seed", *by_epoch)
        other = [name for name in names if _differs(old, new, name)]
        if other:
            yield Observation(
                f"Since the resume from step {now.step} the data come in another order: {few(other)} changed.",
                {"step": now.step, "changed": list(other)},
                evidence=seen(*(f"{name}: {getattr(old, name)} before, {getattr(new, name)} after" for name in other)),
            )
    yield from _fed_again(facts)


def _ends_an_epoch(now: Wiring, data: DataWiring) -> bool:
    """Whether a pass over the data ends at a resume's step; then the next order may have another seed."""
    begin, end = _epoch(now.step or 0, data)
    return (now.step or 0) in {begin, end}


def _fed_again(facts: RunFacts) -> Iterator[Observation]:
    """Rows that a resume feeds though they were fed before in the same pass over the data, or in another order."""
    resume = next((wiring for wiring in reversed(facts.run.wirings) if wiring.phase == "resume"), None)
    if resume is None or not facts.run.fed_before or not facts.run.fed:
        return
    at = resume.step or 0
    if resume.data is None:
        yield from _other_size(facts, at)
    begin, end = _by_digests(facts, at) if resume.data is None else _epoch(at, resume.data)
    earlier = [row for step in range(begin + 1, at + 1) for row in _rows(facts.run.fed_before, step)]
    since = [row for step in range(at + 1, end + 1) for row in _rows(facts.run.fed, step)]
    seen_rows = frozenset(earlier)
    again = sum(row in seen_rows for row in since)
    once = len(seen_rows) >= ONCE.value * len(earlier)
    if since and once and again > REPEATED.value * len(since):
        anew = _rows(facts.run.fed, at + 1) == _rows(facts.run.fed_before, begin + 1)
        how = "begins the data anew" if anew else "has another order of the data"
        yield Observation(
            f"The resume from step {at} {how}: {again} of its first {len(since)} rows were trained on before in the "
            "same epoch.",
            {"step": at, "again": again, "rows": len(since)},
            action=_SKIP,
            evidence=seen("digests of the rows of each step, from step_digests"),
        )


def _other_size(facts: RunFacts, at: int) -> Iterator[Observation]:
    """Steps of another number of rows: those next to the resume, each a number that several steps in a row have."""
    span = int(COMPARED.value)
    old = {_count(facts.run.fed_before, step) for step in range(at - span + 1, at + 1)}
    new = {_count(facts.run.fed, step) for step in range(at + 1, at + span + 1)}
    if len(old) == len(new) == 1 and 0 not in old | new and old != new:
        was, became = *old, *new
        yield Observation(
            f"Since the resume from step {at} a step has {became} rows; it had {was}.",
            {"step": at, "before": was, "now": became},
            evidence=seen(f"digests of {was} rows a step before, of {became} after"),
        )


def _count(fed: Mapping[int, str], step: int) -> int:
    """The rows of a step, with those beyond the ones that are told one by one; 0 if not known."""
    # The text of a step has a digest for each row, | between micro-batches, +N:SUM for N rows beyond the first ones,
    # and ? for a micro-batch that could not be read (gradience.hf.fed)
    rows = fed.get(step, "").replace("|", " ").split()
    return 0 if any(row.startswith("?") for row in rows) else sum(_together(row) for row in rows)


def _together(row: str) -> int:
    return int(row[1:].partition(":")[0]) if row.startswith("+") else 1


def _by_digests(facts: RunFacts, at: int) -> tuple[int, int]:
    """The steps between which the pass over the data lies that a resume's step is in, by the rows alone.

    A pass begins as a row comes again, and is as long as those before; the first one goes on while rows come that were
    never fed. None is known if passes differ in length, or a step before the resume is not known: of a long run the
    first and the newest steps are.
    """
    before = [_rows(facts.run.fed_before, step) for step in range(1, at + 1)]
    if not all(before):
        return at, at
    begins, current, end = [0], set[str](), at
    for place, rows in enumerate(before):
        if current.intersection(rows):
            begins, current = [*begins, place], set()
        current.update(rows)
    if len(begins) > 1:
        lengths = {b - a for a, b in pairwise(begins)}
        return (begins[-1], begins[-1] + max(lengths)) if len(lengths) == 1 else (at, at)
    for step in sorted(step for step in facts.run.fed if step > at):
        rows = _rows(facts.run.fed, step)
        end = end if current.issuperset(rows) else step
        current.update(rows)
    return 0, end


def _epoch(step: int, data: DataWiring) -> tuple[int, int]:
    """The steps between which the pass over the data lies that a step is in; none where that is not sure."""
    size, rows = _effective(data), data.rows
    if not size or not rows or (rows % size and step >= rows // size):
        return step, step  # whether the last, smaller batch makes a step is not known
    steps = rows // size
    begin = step - step % steps
    return begin, begin + steps


def _rows(fed: Mapping[int, str], step: int) -> list[str]:
    """The digests of the rows of a step; none where they are not known one by one."""
    rows = fed.get(step, "").replace("|", " ").split()
    return [] if any(row.startswith(("?", "+")) for row in rows) else rows


def _effective(data: DataWiring) -> int | None:
    parts = (data.batch_size, data.accumulation or 1, data.world_size or 1)
    return None if parts[0] is None else parts[0] * parts[1] * parts[2]


def _differs(old: DataWiring, new: DataWiring, name: str) -> bool:
    before, now = getattr(old, name), getattr(new, name)
    return before is not None and now is not None and before != now


@_WiringRule(
    "WIR178",
    severity="error",
    confidence=0.9,
    needs=(RECORDED, RESUMED),
    place="later",
    phrase=lambda v: f"the schedule began anew at step {v.get('step')}",
    thresholds=(LOST_STEPS, COMPARED),
    evidence=(),
)
def _resumed_schedule(facts: RunFacts) -> Iterator[Observation]:
    """the schedule began anew

    at a resume the schedule is {lost_steps} steps or more behind the save, and gives another rate; or, where no
    schedule was seen, the first {compared} rates logged after it are the run's first ones, after a leap that is
    larger than any between two rows before

    Why: The run warms up and decays once more, which was not planned.
    Scope: resumes in one log; not schedules with restarts or cycles
    Action: Load its state: scheduler.load_state_dict(torch.load(path)).
    Verify: Plot lr over the steps.
    Seen: https://github.com/alibaba/TorchEasyRec/pull/664 -- the schedule is not saved, and a resume restarts it
    Source: gradience.hf.wiring -- the schedule's own count of steps was read
    """
    for before, now in _resumes(facts):
        old, new = before.schedule, now.schedule
        if old is None or new is None or old.step is None or new.step is None:
            continue
        lost = old.step - new.step
        rates = [(as_float(a), as_float(b)) for a, b in zip(old.rates, new.rates, strict=False)]
        if lost >= LOST_STEPS.value and any(a != b for a, b in rates):
            was, became = max(rates, key=lambda pair: abs(pair[0] - pair[1]))
            yield Observation(
                f"At the resume from step {now.step} the learning rate's schedule is at its step {new.step}; it was at "
                f"{old.step}. The rate goes from {was:.3g} to {became:.3g}.",
                {"step": now.step, "schedule_before": old.step, "schedule_now": new.step},
                evidence=seen(f"schedule at {old.step} before, at {new.step} after"),
            )
    if not any(wiring.schedule for wiring in facts.run.wirings):
        yield from _rates_anew(facts)


def _rates_anew(facts: RunFacts) -> Iterator[Observation]:
    """The logged rates of the run's beginning once more after its last resume."""
    at = next((wiring.step or 0 for wiring in reversed(facts.run.wirings) if wiring.phase == "resume"), 0)
    rows = [(s, rate) for s, rate in zip(facts.series.steps, facts.series.rates, strict=False) if isfinite(rate)]
    before, after = ([row for row in rows if (row[0] > at) is later] for later in (False, True))
    first, again = ([rate for _, rate in part[: int(COMPARED.value)]] for part in (before, after))
    name = (facts.config.training.lr_scheduler or "").lower()
    if len(before) <= COMPARED.value or first != again or "restart" in name or "cycl" in name:
        return
    leap = abs(after[0][1] - before[-1][1])
    if after[0][0] - at == before[0][0] and leap > max(abs(b[1] - a[1]) for a, b in pairwise(before)):
        yield Observation(
            f"After the resume from step {at} the learning rates are those of the run's beginning: it goes from "
            f"{before[-1][1]:.3g} to {after[0][1]:.3g}.",
            {"step": at, "rate_before": before[-1][1], "rate_now": after[0][1]},
            confidence=0.8,
            evidence=seen(f"rates {few([f'{rate:.3g}' for rate in first])} at the beginning, and after step {at}"),
        )


def _lacks_a_part(wiring: Wiring) -> bool:
    """Whether the only adapter, a LoRA, was saved without a part that is large."""
    saved, adapter, own = wiring.saved, wiring.adapter, _group(wiring, "adapter")
    if saved is None or adapter is None or own is None or _is_sharded(wiring):
        return False
    whole = len(adapter.names) == 1 and adapter.methods == ["LORA"]
    return whole and saved.parameters < SAVED_SHARE.value * own.parameters


@_WiringRule(
    "WIR179",
    severity="critical",
    confidence=1.0,
    phrase=lambda v: f"the adapter saved at step {v.get('step')} {'lacks a part' if 'saved' in v else 'is empty'}",
    thresholds=(SAVED_SHARE,),
    evidence=(),
)
def _saved_empty(facts: RunFacts) -> Observation | None:
    """saved empty

    the adapter file that was just saved holds no parameter; an error if a LoRA's holds under {saved_share} of the
    parameters in the model

    Why: Under ZeRO-3 or FSDP each process holds a part, and a save that does not gather writes none of it.
    Scope: saves that the recorder saw
    Action: Gather before saving: set "stage3_gather_16bit_weights_on_model_save": true, or use
        accelerator.get_state_dict(model).
    Verify: Open the file: gradience audit lists its tensors.
    Seen: https://github.com/huggingface/accelerate/issues/3508 -- an adapter saved under ZeRO-3 holds tensors of
        shape [0]
    Source: the file's header -- tensors and their shapes
    """
    for wiring in _of(facts, "save"):
        saved = wiring.saved
        if saved is not None and wiring.adapter is not None and saved.parameters == 0:
            return Observation(
                f"The adapter saved at step {wiring.step} is empty: {saved.file} holds {saved.tensors} tensors and no "
                "parameter.",
                {"step": wiring.step, "tensors": saved.tensors},
                evidence=seen(f"{saved.file}: {saved.tensors} tensors, {saved.parameters} parameters"),
            )
        own = _group(wiring, "adapter")
        if saved is not None and own is not None and _lacks_a_part(wiring):
            return Observation(
                f"The adapter saved at step {wiring.step} lacks a part: {saved.file} holds {saved.parameters} "
                f"parameters, the model's adapter has {own.parameters}.",
                {"step": wiring.step, "tensors": saved.tensors, "saved": saved.parameters, "of": own.parameters},
                severity="error",
                action="Save with model.save_pretrained(path), or pass it a state_dict that has all of the adapter.",
                evidence=seen(f"{saved.file}: {saved.tensors} tensors; the adapter has {own.tensors}"),
            )
    return None


def _is_sharded(wiring: Wiring) -> bool:
    return wiring.optimizer is not None and wiring.optimizer.sharded


@_WiringRule(
    "WIR182",
    severity="warning",
    confidence=0.8,
    place="later",
    phrase=lambda v: f"the evaluation at step {v.get('step')} is not of the model that trains",
    evidence=(_CALLED,),
)
def _evaluated_another(facts: RunFacts) -> Observation | None:
    """another model is evaluated

    an evaluation ends without a call of the model that trains since the last step, or only with calls without its
    adapter

    Why: Its loss says nothing of the training: the best checkpoint is chosen by it, and overfitting hides.
    Scope: evaluations that end before the next step; not compiled models, whose calls are not seen
    Action: Evaluate the object that trains, not a copy or the base; an average of the weights or another process
        may be meant.
    Verify: Evaluate twice with a step between: a loss that is the same to the last digit is of another model.
    Seen: https://github.com/unslothai/unsloth/issues/1067 -- held-out loss is the same to the last digit while
        training goes on
    """
    for wiring in _of(facts, "evaluation"):
        seen_there = wiring.evaluation
        if seen_there is None:
            continue
        if not seen_there.called:
            return Observation(
                f"The evaluation at step {wiring.step} did not call the model that trains.",
                {"step": wiring.step, "called": False},
                evidence=seen("no call of its modules since the last step, though training calls them"),
            )
        if seen_there.adapted is False:
            return Observation(
                f"The evaluation at step {wiring.step} called the model without the adapter that trains.",
                {"step": wiring.step, "called": True},
                action=_SWITCH_ON,
                evidence=seen("the adapted modules were called switched off, or with another adapter active"),
            )
    return None


@_WiringRule(
    "WIR183",
    severity="warning",
    confidence=0.8,
    place="later",
    phrase=lambda v: f"evaluation mode from step {v.get('step')}",
    evidence=(_CALLED,),
)
def _in_eval_mode(facts: RunFacts) -> Observation | None:
    """trains in evaluation mode

    the model is in evaluation mode in the forward pass of a step, and has dropout above 0

    Why: from_pretrained returns a model in evaluation mode, and an evaluation leaves it so: no dropout acts, and
        activations are not recomputed.
    Scope: runs with a wiring event and dropout; not compiled models
    Action: Call model.train() before the loop, and after each evaluation.
    Verify: Print model.training in the loop.
    Seen: https://github.com/pytorch/tutorials/issues/1624 -- eval() of the first evaluation, and never train()
        again
    """
    rates = _dropouts(facts)
    for wiring, passes in _passes(facts) if rates else ():
        if not passes.training:
            return Observation(
                f"Step {wiring.step} was made in evaluation mode: the dropout of {few(rates)} does not act.",
                {"step": wiring.step, "dropouts": rates},
                evidence=seen("module.training is False in the forward pass"),
            )
    return None


def _dropouts(facts: RunFacts) -> list[str]:
    """The rates of dropout above 0; they are keys of a JSON object, so they are text."""
    kinds = next((wiring.dropouts for wiring in _of(facts, "start", "resume")), {})
    return [rate for rate in kinds if float(rate) > 0.0]


@_WiringRule(
    "WIR184", severity="error", confidence=0.95, phrase=lambda _: "the schedule sets the rates of another optimizer"
)
def _other_schedule(facts: RunFacts) -> Observation | None:
    """the schedule of another optimizer

    the schedule's optimizer is none of those that train

    Why: The rate of the optimizer that trains stays what it was: no warm-up, no decay.
    Scope: runs with a wiring event, a schedule and an optimizer that is not sharded
    Action: Make the schedule for the optimizer that trains: get_scheduler(name, optimizer=optimizer, ...).
    Verify: Print optimizer.param_groups[0]['lr'] over the steps.
    Seen: https://github.com/roboterax/video-prediction-policy/issues/14 -- the scheduler is of a second optimizer:
        the rate never changes
    """
    for wiring in _of(facts, "start", "resume"):
        optimizer, schedule = wiring.optimizer, wiring.schedule
        if schedule is not None and schedule.foreign and optimizer is not None and not optimizer.sharded:
            return Observation(
                f"{_when(wiring)}, the schedule {schedule.name} sets the rates of an optimizer that is not the one "
                "that trains.",
                {"step": wiring.step, "schedule": schedule.name},
                evidence=seen("schedule.optimizer is another object"),
            )
    return None


def _still_says(v: Values) -> str:
    if "backward" in v:
        return "the optimizer makes no step"
    return f"learning rate 0 {'from the start' if v.get('all') else 'for ' + str(v.get('tensors')) + ' tensors'}"


@_WiringRule("WIR180", severity="warning", confidence=0.8, phrase=_still_says, thresholds=(LOOKED,))
def _stands_still(facts: RunFacts) -> Observation | None:
    """the adapter stands still

    after the first steps, {looked} or more, a group of the optimizer with the adapter's tensors has the rate 0, now
    and as its peak, while another group has a rate; or all groups have the rate 0 at each of them, unless LRS109 says
    so of the rows of a run that has ended; an error if as many backward passes were made, the optimizer made no step,
    and the adapter's weights are those of the start

    Why: A group of rate 0 never learns, unless the loop raises its rate later, and neither does one without steps.
    Scope: runs whose first steps were looked at
    Action: Set the rate of that group: optimizer.param_groups[i]["lr"].
    Verify: Print the rates of optimizer.param_groups.
    Seen: https://github.com/paiml/entrenar/issues/264 -- with accumulation the adapter was never updated, and
        training looked well
    """
    begun = None
    for wiring in facts.run.wirings:
        begun = wiring if wiring.phase in {"start", "resume"} else begun
        of, first = wiring.optimizer, wiring.gradients
        if wiring.phase != "gradients" or of is None or first is None:
            continue
        if begun is not None and first.backward >= LOOKED.value and not of.sharded and _unmoved(begun, wiring):
            return _no_step(first)
        if first.steps < LOOKED.value:
            continue
        zero = [group for group in of.rates if as_float(group.lr) == 0.0 and not as_float(group.peak or 0.0)]
        ours = [group for group in zero if "adapter" in group.kinds]
        if ours and any(as_float(group.lr) > 0.0 for group in of.rates):
            count = sum(group.tensors for group in ours)
            return Observation(
                f"{count} tensors are in a group of the optimizer whose learning rate is 0, the adapter's among them.",
                {"tensors": count, "step": wiring.step},
                evidence=seen(f"rates {few([f'{as_float(group.lr):g}' for group in of.rates])}"),
            )
        if first.rateless == first.steps and not _in_rows(facts):
            return Observation(
                f"The learning rate was 0 at each of the first {first.steps} steps.",
                {"tensors": sum(group.tensors for group in of.rates), "step": wiring.step, "all": True},
                action="Look at the schedule: does it count epochs, or divide the step by a whole number?"
                if any(as_float(group.peak or 0.0) > 0.0 for group in of.rates)
                else "Set a learning rate above 0.",
                evidence=seen(f"peaks {few([f'{as_float(group.peak or 0.0):g}' for group in of.rates])}"),
            )
    return None


def _in_rows(facts: RunFacts) -> bool:
    """Whether LRS109 says of the rows that the rate was 0; it is not asked before the run has ended."""
    return facts.run.end is not None and len(facts.rate.values) >= LOOKED.value and facts.peak_rate <= 0.0


def _unmoved(begun: Wiring, now: Wiring) -> bool:
    """Whether the adapter's weights are those of the beginning."""
    old, new = _group(begun, "adapter"), _group(now, "adapter")
    return old is not None and new is not None and old.digest is not None and old.digest == new.digest


def _no_step(first: GradientWiring) -> Observation:
    return Observation(
        f"After {first.backward} backward passes the optimizer has made no step: the adapter is as it began.",
        {"backward": first.backward},
        severity="error",
        confidence=0.95,
        action="Call optimizer.step() after backward(), before zero_grad().",
        evidence=seen("the digest of its weights is that of the start"),
    )


@_WiringRule(
    "WIR185",
    severity="error",
    confidence=0.95,
    phrase=lambda _: "gradients are not set to zero between steps",
    thresholds=(COMPARED, KEPT),
    evidence=(),
)
def _gradients_kept(facts: RunFacts) -> Observation | None:
    """gradients are not set to zero

    in the first steps, {compared} or more compared, at {kept} of them the gradient was added to that of the step
    before

    Why: Each step then follows the sum of all gradients so far, the oldest of weights that are gone.
    Scope: runs whose first steps were looked at; not sharded or sparse gradients
    Action: Call optimizer.zero_grad() after each optimizer.step().
    Verify: Print p.grad right after the step: it is what the next gradient is added to.
    Seen: https://github.com/tenstorrent/tt-blacksmith/pull/711 -- LoRA training without zero_grad
    Source: gradience.hf.leftover -- hooks see what each backward pass adds, and what is there then
    """
    for wiring in _of(facts, "gradients"):
        of = wiring.gradients
        if of is not None and of.compared >= COMPARED.value and of.kept >= KEPT.value * of.compared:
            return Observation(
                f"At {of.kept} of {of.compared} steps the gradient was added to that of the step before: it is not set "
                "to zero between steps.",
                {"kept": of.kept, "compared": of.compared, "step": wiring.step},
                evidence=seen("one tensor's gradient, beside what each backward pass added to it"),
            )
    return None


@_WiringRule(
    "WIR186",
    severity="warning",
    confidence=0.8,
    phrase=lambda v: f"not prepared: the {few(v.get('parts') or [])}",
    evidence=(),
)
def _not_prepared(facts: RunFacts) -> Observation | None:
    """not prepared

    Accelerate has prepared some of model, optimizer and loader, and not the model or the optimizer; or, with several
    processes, not the loader; or there is an Accelerator that has prepared nothing, of which mixed precision,
    accumulation or several processes were asked

    Why: What is not prepared has no mixed precision, no accumulation and no device, and with several processes
        no gradients in common and no rows of its own.
    Scope: loops that hand their parts to TelemetryWriter.watch; schedules and loaders are left out on purpose
    Action: Prepare them together: model, optimizer, loader = accelerator.prepare(model, optimizer, loader).
    Verify: See whether type(optimizer) is AcceleratedOptimizer.
    Source: accelerate/accelerator.py:Accelerator.prepare@1.15.0 -- wraps what it is given: what it is not given is
        not moved or synchronised
    """
    for wiring in _of(facts, "start", "resume"):
        alone = (wiring.world_size or 1) == 1
        if wiring.asked:
            return Observation(
                f"{_when(wiring)}, there is an Accelerator, and its prepare has made nothing; what it was asked for "
                f"does not happen: {few(wiring.asked)}.",
                {"step": wiring.step, "parts": list(wiring.unprepared), "asked": list(wiring.asked)},
                confidence=0.6,
                evidence=seen(f"not marked as prepared: {few(wiring.unprepared)}"),
            )
        parts = [part for part in wiring.unprepared if part != "loader" or not alone]
        if parts:
            return Observation(
                f"{_when(wiring)}, accelerator.prepare has not made the {' and the '.join(parts)}, but other parts.",
                {"step": wiring.step, "parts": parts},
                severity=None if alone else "error",
                evidence=seen(f"not marked as prepared: {few(wiring.unprepared)}"),
            )
    return None


@_WiringRule(
    "WIR187",
    severity="warning",
    confidence=0.8,
    phrase=lambda v: (
        f"the adapter saved at step {v.get('step')} is not the model's"
        if "tensor" in v
        else f"the last save is of step {v.get('step')} of {v.get('last')}"
    ),
    evidence=(),
)
def _saved_stale(facts: RunFacts) -> Observation | None:
    """saved before the last step

    the adapter file that was just saved holds other values than the model, which are not those of an average of its
    weights: on the way from the beginning to now; or a run that ended well made one optimizer step after its last save;
    info if it made more

    Why: A state that was copied before the last steps, or of another model object, lacks what they taught.
    Scope: saves that the recorder is told of; of files LoRA factors, compared in the file's dtype
    Action: Take the state after the last optimizer step: model.save_pretrained(path).
    Verify: Load the file and compare one tensor with the model's.
    Seen: https://github.com/ViperEkura/AstrAI/pull/27 -- checkpoints were saved before the optimizer step that they
        name
    Source: gradience.hf.wiring -- the smallest factor in the file, beside the model's of that name
    """
    for wiring in _of(facts, "save"):
        if wiring.saved is not None and wiring.saved.differs:
            of = wiring.saved.of_step
            whose = "another model's" if of is None else f"those of step {of}"
            return Observation(
                f"The adapter saved at step {wiring.step} is not the model's: {wiring.saved.differs} has other values "
                f"in {wiring.saved.file}, {whose}.",
                {"step": wiring.step, "tensor": wiring.saved.differs, "of_step": of},
                evidence=seen(f"{wiring.saved.differs}: the file's values beside the model's"),
            )
    # Digests are told of each step, rows of some: the last step may have none
    kept, last = max((wiring.step or 0 for wiring in _of(facts, "save")), default=0), max(facts.run.fed, default=0)
    if facts.status == "ok" and 0 < kept < last:
        return Observation(
            f"The last save is of step {kept}; the run ended after step {last}.",
            {"step": kept, "last": last},
            severity=None if last - kept == 1 else "info",
            evidence=seen(f"steps {kept + 1} to {last}, and no save after them"),
        )
    return None


@_WiringRule(
    "WIR188",
    severity="warning",
    confidence=0.8,
    phrase=lambda v: f"the new head {few(v.get('heads') or [])} is frozen",
    evidence=(),
)
def _head_frozen(facts: RunFacts) -> Observation | None:
    """a new head is frozen

    the head of a classifier, reward or value model is frozen, and its weights have the spread with which they are
    drawn

    Why: A drawn head stays as it is, and is not saved with the adapter: loaded again, the base gets another one.
    Scope: runs with a wiring event and an adapter; not heads of language models
    Action: Name it in modules_to_save, or set task_type to SEQ_CLS or TOKEN_CLS, which does so.
    Verify: Call model.print_trainable_parameters(), and look for the head in the saved file.
    Seen: https://github.com/TNI-playground/Fed_HeLLo/issues/2 -- LoRA alone is trained, and the new classifier head
        stays random
    Source: transformers, PreTrainedModel._init_weights (5.24) -- weights of initializer_range, biases of 0
    """
    for wiring, adapter in _looks(facts):
        if adapter.new_heads and not (group := _group(wiring, "head") or ParameterGroup(kind="head")).trainable:
            return Observation(
                f"{_when(wiring)}, the head {few(adapter.new_heads)} is frozen, and its weights are new.",
                {"step": wiring.step, "heads": list(adapter.new_heads), "parameters": group.parameters},
                evidence=seen("the spread of its weights is that of their initialisation"),
            )
    return None


@_WiringRule(
    "WIR189",
    severity="warning",
    confidence=0.8,
    place="later",
    phrase=lambda v: f"the evaluation at step {v.get('step')} draws dropout",
    evidence=(_CALLED,),
)
def _evaluated_in_training(facts: RunFacts) -> Observation | None:
    """evaluates in training mode

    every call of the model since the last step, up to an evaluation's end, was without gradients and in training mode,
    and it has dropout above 0

    Why: Dropout is drawn at each evaluation: its loss is higher than the model's, and another each time.
    Scope: evaluations without gradients (torch.no_grad) that end before the next step; not compiled models
    Action: Call model.eval() before an evaluation, and model.train() after it.
    Verify: Evaluate twice without a step between: the loss is the same.
    Source: torch/nn/modules/module.py:Module.eval@2.13.0 -- evaluation mode changes what dropout does
    """
    rates = _dropouts(facts)
    for wiring in _of(facts, "evaluation") if rates else ():
        if wiring.evaluation is not None and wiring.evaluation.training:
            return Observation(
                f"The evaluation at step {wiring.step} was made in training mode: the dropout of {few(rates)} acts.",
                {"step": wiring.step, "dropouts": rates},
                evidence=seen("module.training is True in every call since the last step"),
            )
    return None


@_WiringRule(
    "WIR190",
    severity="warning",
    confidence=0.85,
    place="later",
    phrase=lambda v: f"{shown(v, 'share', '.0%')} of the weights in 16 bits stay as they began",
    thresholds=(UNMOVED, AT_RATE),
)
def _rounded_away(facts: RunFacts) -> Observation | None:
    """steps are lost to rounding

    in 16 bits, with an optimizer that keeps no copy in 32, {unmoved} of the elements that have a gradient, and were
    not 0 at first, have the value that they began with after 8 steps, at {at_rate} of the peak rate or more

    Why: A step under half a unit in the last place is rounded away, at each step anew: bfloat16 has 8 bits, so it takes
        a step of 1/512 of the weight to move it.
    Scope: optimizers of torch and bitsandbytes; a part of each tensor is looked at; B of a LoRA begins as 0
    Action: Keep what trains in float32 (bf16=True computes in bfloat16 all the same), or raise the learning rate.
    Verify: Print the dtype of the parameters that train.
    Source: peft/mapping_func.py:get_peft_model@0.21.2 -- autocast_adapter_dtype holds adapters in float32 for this
    Source: arithmetic -- 1 + 1/512 is 1 in bfloat16
    """
    for wiring in _of(facts, "gradients"):
        of, optimizer = wiring.gradients, wiring.optimizer
        if of is None or optimizer is None or of.unmoved < max(1, UNMOVED.value * of.narrow):
            continue
        rates = [(as_float(one.lr), as_float(one.lr if one.peak is None else one.peak)) for one in optimizer.rates]
        if rates and all(lr > 0.0 and lr >= AT_RATE.value * peak for lr, peak in rates):
            return Observation(
                f"After {of.steps} steps {of.unmoved} of {of.narrow} elements in 16 bits that have a gradient still "
                f"have the value that they began with: steps at a rate of {max(rates)[0]:.3g} are rounded away.",
                {"share": of.unmoved / of.narrow, "elements": of.narrow, "lr": max(rates)[0]},
                evidence=seen("values compared bit by bit; B of a LoRA, which begins as 0, is left out"),
            )
    return None


@_WiringRule(
    "LED412",
    severity="error",
    confidence=0.85,
    phrase=lambda v: (
        f"the adapter {few(v['lacking'])} trains and is not saved"
        if v.get("lacking")
        else f"trained and not saved: {v.get('kinds')}"
    ),
    evidence=(),
)
def _not_in_the_save(facts: RunFacts) -> Observation | None:
    """trained, and not in the save

    at a save an active adapter trains of which no file lies in the folder; a warning if single tensors train, beside or
    in the adapters that were saved, and are in none of the files

    Why: What is in no file is lost as the process ends, and the model that is loaded is another than the one evaluated.
    Scope: saves of PEFT's LoRA that the recorder saw, by the headers; not sharded models, nor where another file of
        weights lies in the folder. What the optimizer does not hold does not train
    Action: Save all of it: save_pretrained(path) without selected_adapters; name whole modules in modules_to_save.
    Verify: Load what was saved, and compare its outputs with those of the model in memory.
    Seen: https://github.com/huggingface/peft/issues/1059 -- a model of several adapters is loaded with one
    Source: peft/peft_model.py:PeftModel.save_pretrained@0.21.2 -- writes the adapters of selected_adapters alone
    """
    for wiring in _of(facts, "save"):
        saved, adapter, optimizer = wiring.saved, wiring.adapter, wiring.optimizer
        if saved is None or adapter is None or _is_sharded(wiring) or not saved.parameters:
            continue
        missing = {} if optimizer is None else optimizer.missing
        if saved.lacking and "adapter" not in missing:
            return Observation(
                f"At step {wiring.step} the adapters {few(adapter.active)} are active, and of {few(saved.lacking)}, "
                f"which trains, there is no file: {few(saved.adapters) or 'none'} was saved.",
                {"step": wiring.step, "lacking": list(saved.lacking), "adapters": list(saved.adapters)},
                evidence=seen(f"{saved.file}: {saved.tensors} tensors"),
            )
        held = (
            saved.absent if optimizer is None else {k: n for k, n in saved.absent.items() if k in optimizer.held_kinds}
        )
        lost = sum(held.values())
        if lost and not ("adapter" in held and _lacks_a_part(wiring)):  # which WIR179 tells
            kinds = few([f"tensors of {_NAMES.get(kind, f'the {kind}')} ({count})" for kind, count in held.items()])
            return Observation(
                f"What trains is in no file of the save at step {wiring.step}: {kinds}.",
                {"step": wiring.step, "absent": lost, "kinds": kinds},
                severity="warning",
                evidence=seen(f"not in the file: {few(saved.absent_names)}"),
            )
    return None


_NAMES: Final = {"whole": "modules trained whole", "norm": "the norms"}


def _tied_apart(facts: RunFacts) -> Observation | None:
    for _, adapter in _looks(facts):
        if adapter.untied:
            whole = [name for name in adapter.untied if not name.endswith(BY_LORA)]
            heads = [name for name in whole if name in OUTPUTS]
            by_lora = [name.removesuffix(BY_LORA) for name in adapter.untied if name.endswith(BY_LORA)]
            return tied_apart(heads, [name for name in whole if name not in heads], by_lora)
    return None


RULES: Final[tuple[LogRule, ...]] = (
    _evaluated_in_training,
    _not_in_the_save,
    log_rule(untied, _tied_apart, needs=(RECORDED,), live=True),
    _base_trains,
    _adapter_frozen,
    _optimizer_misses,
    _no_gradient,
    _wrapped_twice,
    _resumed_weights,
    _resumed_optimizer,
    _resumed_data,
    _resumed_schedule,
    _saved_empty,
    _stands_still,
    _inputs_frozen,
    _evaluated_another,
    _in_eval_mode,
    _other_schedule,
    _gradients_kept,
    _not_prepared,
    _saved_stale,
    _head_frozen,
    _rounded_away,
)
