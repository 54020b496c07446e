"""What one training step will take of the card's memory, foretold from the configuration and the base's config.json.

`models.cost` follows the step in a confined process. Here is what is asked of it, and what the answer is held against.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from msgspec.structs import asdict, replace

from gradience.blocks import counted
from gradience.configs.settings import LORA
from gradience.configs.training import method_of, objective_of
from gradience.errors import ConfigError
from gradience.io.confined import Confined, Foreign, Limits
from gradience.io.reading import decode_json, read_small
from gradience.schema import Json
from gradience.schema.document import Coverage
from gradience.schema.events import ConfigSnapshot, LoraSnapshot, TrainingSnapshot
from gradience.schema.memory import PAIRED, Memory, MemoryChange, MemoryParts, Reached, Step

METHOD: Final = "one step followed on torch's meta device"
_TARGET: Final = "gradience.models.cost:Follower"
_NEEDED: Final = ("torch", "transformers", "peft")
MEMORY: Final = 4 << 30  # bytes: a Llama of 3B takes 0.4 GB, an adapter that is made of numbers 1 GB
SECONDS: Final = 120.0  # processor time: 3 s, and 10 s
# Of what is allocated, where the longest batch meets a fresh cache: measured 1.03 to 1.10.
_RESERVED: Final = (1.0, 1.1)
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*((?:[kmgt]i?)?b?)\s*", re.IGNORECASE)
_MOST: Final = 1 << 20  # bytes of a config.json
_HALF: Final = frozenset({"bfloat16", "float16"})
_FOLLOWED: Final = {"dpo": "dpo", "kto": "kto", "orpo": "orpo", "reward": "reward", "grpo": "rl", "rloo": "rl"}
_OTHERWISE: Final[dict[str, str]] = {  # objectives whose step is another one than that of supervised training
    "preference": "answers come in pairs, or a reference passes beside the model, or both",
    "reward": "a pair is two rows, through a head of one value",
    "distillation": "a teacher passes beside the model",
    "rl": "the rows are generated, and what generates them takes memory too",
}
_STEPS: Final = "only supervised steps and those of TRL's DPO, KTO, ORPO, reward, GRPO and RLOO trainers are followed"
_REFERENCES: Final = {
    "adapter": "a reference pass with the adapter off",
    "model": "a second model as reference",
    "": "a reference that passed before training",
}
_FEWEST: Final = 64  # tokens below which a shorter limit is no advice


def parse_size(text: str) -> int:
    """The bytes that a text such as `24GiB`, `80 GB` or `80G` states; a number alone is of GiB, as cards are sold.

    >>> parse_size("24"), parse_size("24GiB"), parse_size("1.5 GB"), parse_size("24G"), parse_size("1000 b")
    (25769803776, 25769803776, 1500000000, 24000000000, 1000)

    Raises:
        ConfigError: it states none, or nothing.
    """
    hit = _SIZE.fullmatch(text)
    size = 0
    if hit is not None:
        number, unit = hit[1], hit[2].lower() or "gib"
        size = int(float(number) * (1024 if "i" in unit else 1000) ** "bkmgt".index(unit[0]))
    if size <= 0:
        raise ConfigError(f"--memory: expected a size such as 24GiB, got {text!r}", advice="correct the option")
    return size


def foretell(
    config: ConfigSnapshot,
    *,
    base: Path,
    adapter: Mapping[str, Any] | None,
    length: int | None = None,
    limit: int | None = None,
    coverage: Coverage | None = None,
) -> Memory:
    """The peak of one step on one device, and, if it passes a limit, changes that would fit.

    Args:
        config: the configuration.
        base: folder of the base's config.json.
        adapter: the fields of the adapter's config; None if they are those that `config` has.
        length: tokens of a row, in place of the configuration's.
        limit: memory of the card, bytes.
        coverage: what the targets reach, for the parts that need no model.
    """
    parts = _parts_alone(coverage)
    try:
        step, assumed = _asked(config, base, adapter, length)
        follow = _follower()
        followed = follow(step)
        spared = follow(replace(step, autocast=config.training.dtype)).peak if _saves(step, config) else followed.peak
    except Foreign as error:
        return Memory(parts=parts, reason=str(error), limit_bytes=limit)
    peak = followed.peak
    without = [f"no autocast, with which it is {spared / 2**30:.1f} GiB"] if spared < peak else []
    # Each change is followed anew: what it spares depends on what else fills the peak.
    changes = [] if limit is None or peak <= limit else _fitting(follow, step, config, limit)
    return Memory(
        peak_bytes=peak,
        reserved_bytes=[int(size * share) for size, share in zip((min(spared, peak), peak), _RESERVED, strict=True)],
        parts=followed.parts,
        reached=followed.reached if step.adapter else None,
        assumes=[*assumed(replace(step, attention=followed.attention)), *without],
        method=METHOD,
        limit_bytes=limit,
        changes=changes,
    )


def _parts_alone(coverage: Coverage | None) -> MemoryParts | None:
    if coverage is None or coverage.adapter_bytes is None:
        return None
    return MemoryParts(adapter=coverage.adapter_bytes, optimizer=coverage.optimizer_bytes or 0)


def _follower() -> Any:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise Foreign(f"it needs {' and '.join(missing)}: in the clone, pip install -e '.[hf]'")
    confined = Confined(_TARGET, imports=_NEEDED, limits=Limits(MEMORY, SECONDS))

    def follow(step: Step) -> _Followed:
        seen = confined.call("attempt", asdict(step))
        if isinstance(seen, str):
            kind = f" with {step.adapter['peft_type']}" if "peft_type" in step.adapter else ""
            raise Foreign(
                f"the installed transformers and PEFT make no step of this base{kind} without its weights ({seen})"
            )
        return msgspec.convert(seen, _Followed)

    return follow


class _Followed(NamedTuple):
    parts: MemoryParts
    reached: Reached
    attention: str

    @property
    def peak(self) -> int:
        return sum(asdict(self.parts).values())


def _asked(
    config: ConfigSnapshot, base: Path, adapter: Mapping[str, Any] | None, length: int | None
) -> tuple[Step, Callable[[Step], Iterator[str]]]:
    """The step to follow, and what is assumed of one.

    Raises:
        Foreign: the configuration does not say what must be known.
    """
    training, extras = config.training, config.training.extras
    kind: str = objective_of(config).kind
    kind = str(extras.get("trainer")) if kind == "unknown" else kind
    method = method_of(config) if kind in _OTHERWISE else ""
    if (differs := _OTHERWISE.get(kind)) and method not in _FOLLOWED:
        raise Foreign(f"{_STEPS}, and this is {kind} training, where {differs}")
    if training.batch_size is None:
        raise Foreign("the batch per device is not stated (per_device_train_batch_size)")
    completion = _completion(training.extras) if _FOLLOWED.get(method) == "rl" else 0
    length = length or _row(training, completion)
    if length is None:
        together = ", of a prompt and its completion together" if completion else ""
        raise Foreign(f"the length is not stated (max_length): give --max-length{together}")
    if completion >= length:
        raise Foreign(f"completions of {completion:,} tokens leave no prompt in a row of {length:,}")
    declared = _declared(base)
    attention, text = str(extras.get("attn_implementation") or ""), declared.get("text_config") or declared
    if attention not in {"", "eager"} and isinstance(text, dict) and text.get("attn_logit_softcapping"):
        raise Foreign(f"attention by {attention} is not followed where scores are capped (attn_logit_softcapping)")
    packed = bool(extras.get("packing"))
    half = str(declared.get("dtype") or declared.get("torch_dtype") or "").removeprefix("torch.")
    autocast = training.dtype if training.dtype in _HALF and half not in _HALF else ""
    fields = dict(adapter) if adapter is not None else _lora(config.lora)
    step = Step(
        base=str(base),
        adapter=fields,
        task=config.lora.task_type or "",
        batch=training.batch_size,
        length=length,
        padded=not packed and (training.batch_size > 1 or _FOLLOWED.get(method) in PAIRED),
        accumulates=(training.gradient_accumulation or 1) > 1,
        checkpointing=bool(extras.get("gradient_checkpointing")),
        autocast=autocast or "",
        attention=attention,
        bits=_bits(extras, declared),
        optimizer=config.optimizer.name or "adamw_torch",
        fused_loss=bool(extras.get("use_liger_kernel")),
        adapter_float32=config.lora.extras.get("autocast_adapter_dtype") is not False,
    )
    if method:
        step = _as_trained(step, config, method, completion)
    return step, partial(_assumed, config=config, half=half, packed=packed)


def _completion(extras: Mapping[str, Json]) -> int:
    stated = extras.get("max_completion_length")
    if not isinstance(stated, int):
        raise Foreign("the length of the completions is not stated (max_completion_length)")
    return stated


def _row(training: TrainingSnapshot, completion: int) -> int | None:
    prompt = training.extras.get("max_prompt_length")
    if not completion:
        return training.max_length
    return prompt + completion if isinstance(prompt, int) else None


def _as_trained(step: Step, config: ConfigSnapshot, method: str, completion: int) -> Step:
    """The step with what a trainer of TRL adds to it, by its config and else by its defaults (TRL 1.16)."""
    training, extras = config.training, config.training.extras
    objective = _FOLLOWED[method]
    beta = extras.get("beta", 0.05 if method == "rloo" else 0.0)
    referred = bool(beta) if objective == "rl" else objective in {"dpo", "kto"}
    if extras.get("precompute_ref_log_probs"):
        referred = False
    turns = extras.get("steps_per_generation")
    turns = turns if isinstance(turns, int) else training.gradient_accumulation or 1
    return replace(
        step,
        objective=objective,
        reference="" if not referred else "adapter" if step.adapter else "model",
        completion=completion,
        generated=0 if objective != "rl" or extras.get("use_vllm") else step.batch * turns,
        dropout=not extras.get("disable_dropout", objective != "rl"),
    )


def _saves(step: Step, config: ConfigSnapshot) -> bool:
    """Whether autocast may be on over weights that are in half precision already: the settings do not tell."""
    return not step.autocast and config.training.dtype in _HALF


def _assumed(step: Step, config: ConfigSnapshot, half: str, *, packed: bool) -> Iterator[str]:
    pairs = f"{counted(step.batch, 'pair')}, so " if step.objective in PAIRED else ""
    rows = f"{step.batch * (2 if pairs else 1)} x {step.length:,}"
    yield f"{pairs}{rows} tokens{', packed' if packed else ', padded' if step.padded else ''}"
    yield from _of_objective(step, config)
    yield f"weights in {half or 'float32'}"
    yield "recomputed activations" if step.checkpointing else "no checkpointing"
    yield f"attention by {step.attention}"
    if config.optimizer.name is None:
        yield "AdamW, as nothing names the optimizer"
    if step.bits:
        yield f"{step.bits}-bit linear layers"
    if step.fused_loss and not step.objective:
        yield "a loss in chunks"
    yield "one device, no sharding; without the driver's context"


def _of_objective(step: Step, config: ConfigSnapshot) -> Iterator[str]:
    if step.objective in {"dpo", "kto"}:
        yield _REFERENCES[step.reference]
    if step.completion:
        yield f"{counted(step.completion, 'token')} of them generated"
        if "beta" not in config.training.extras:
            yield "a reference, as beta is not stated" if step.reference else "no reference, as beta is not stated"
        elif step.reference:
            yield _REFERENCES[step.reference]
        rows = f"{counted(step.generated, 'completion')} that the model itself generates at once"
        yield rows if step.generated else "what vLLM takes is left out"
    if step.objective == "orpo":
        yield "all logits, as in TRL 1.16"
    elif step.objective not in {"", "reward"}:
        # Read from 1.9.0: _compute_loss of DPO and KTO, _get_per_token_logps_and_entropies of GRPO and RLOO.
        older = f"; TRL 1.9 holds all logits{' of the completions' * (step.objective == 'rl')} at once"
        yield f"the loss in tiles of the logits, as in TRL 1.16{'' if step.fused_loss else older}"


def _declared(base: Path) -> dict[str, Any]:
    path = base / "config.json"
    try:
        return decode_json(read_small(path, most=_MOST, what="a model's config"), dict[str, Any])
    except FileNotFoundError:
        raise Foreign("the base has no config.json at hand") from None
    except (OSError, ValueError, RecursionError):  # whose texts are msgspec's and the system's
        raise Foreign("the base's config.json cannot be read, or is no JSON object") from None


def _bits(extras: Mapping[str, Json], declared: Mapping[str, Any]) -> int:
    """Bits of the base's linear weights by the training's settings, else by the base's own; 0 if they are not coded."""
    coded = declared.get("quantization_config")
    own: Mapping[str, Any] = coded if isinstance(coded, dict) else {}
    for bits in (4, 8):
        name = f"load_in_{bits}bit"
        if extras.get(name) or own.get(name) or own.get("bits") == bits or own.get("w_bit") == bits:
            return bits
    return 0


def peft_fields(lora: LoraSnapshot) -> dict[str, Any]:
    """The settings of a snapshot under PEFT's names, but for where the matrices start, which takes no memory."""
    fields = {item.native[0]: getattr(lora, item.field, lora.extras.get(item.field)) for item in LORA if item.native}
    return {name: value for name, value in fields.items() if value is not None and name != "init_lora_weights"}


def _lora(lora: LoraSnapshot) -> dict[str, Any]:
    """The fields of a LoraConfig that a snapshot holds; none if it is of no adapter."""
    if lora.r is None and lora.target_modules is None:
        return {}
    if lora.peft_type not in {None, "LORA"}:
        raise Foreign(f"the settings of {lora.peft_type} are not at hand: give --adapter")
    return {"peft_type": "LORA", **peft_fields(lora)}


def _fitting(follow: Any, step: Step, config: ConfigSnapshot, limit: int) -> list[MemoryChange]:
    """Changes each of which makes the step fit, the cheapest first; if none does alone, the fewest that do together."""

    def tried(words: list[str], changed: Step) -> MemoryChange:
        return MemoryChange(change=" and ".join(words), peak_bytes=follow(changed).peak)

    changes = list(_changes(step, config))
    fitting: list[MemoryChange] = []
    with suppress(Foreign):  # one that cannot be followed ends the search: its process may be gone
        fitting += [one for words, of in changes if (one := tried([words], replace(step, **of))).peak_bytes <= limit]
        for n in range(2, 0 if fitting else len(changes) + 1):
            together = {name: value for _, of in changes[:n] for name, value in of.items()}
            if (joined := tried([words for words, _ in changes[:n]], replace(step, **together))).peak_bytes <= limit:
                return [joined]
    return fitting


def _changes(step: Step, config: ConfigSnapshot) -> Iterator[tuple[str, dict[str, Any]]]:
    longest = config.training.extras.get("length_p99")
    if isinstance(longest, int) and not step.completion and _FEWEST <= longest < step.length:
        yield f"max_length {longest:,}, which 99 % of the rows keep within", {"length": longest}
    if not step.checkpointing:
        yield "gradient_checkpointing, for about a third more time", {"checkpointing": True}
    if step.batch > 1 and step.objective != "kto":  # whose divergence is of answers that change places
        # One row alone has nothing that it could be padded to.
        times = step.batch * (config.training.gradient_accumulation or 1)
        yield (
            f"batch 1 with {times} x accumulation",
            {"batch": 1, "accumulates": True, "padded": step.objective in PAIRED},
        )
    if not step.bits and step.adapter:
        yield "load_in_4bit", {"bits": 4}
