"""The losses of TRL's trainers on torch's meta device, as far as they hold memory: passes, logits and their tiles.

Read from TRL 1.16. DPO, KTO, GRPO and RLOO score tokens in tiles of the logits and never hold them whole
(`trainer/utils.py:add_fused_lm_head`, `kernels/chunked_logprob.py`); ORPO holds all of them
(`experimental/orpo/orpo_trainer.py:concatenated_forward`); a reward model has one value in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradience.schema.memory import Step

_TOKENS, _WORDS = 4096, 32768  # of a tile
_FOLDED: Final = (3.25, 7.25)  # tiles of float32 that torch makes of one, forward and backward, where Triton is not
_As: TypeAlias = Callable[[str], AbstractContextManager[None]]  # counts what is made within as of that kind


class _Tiles(torch.autograd.Function):
    """Logarithms of probabilities from tiles of the logits, which the backward pass makes again."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, step: Step, of_kind: _As) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.step, ctx.of_kind = step, of_kind
        with of_kind("loss"):
            _tile(hidden, weight, step, _FOLDED[0])
        return hidden.new_empty(len(hidden), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # noqa: ARG004
        hidden, weight = ctx.saved_tensors
        sums = [
            one.new_empty(one.shape, dtype=torch.float32) if needed else None
            for one, needed in zip((hidden, weight), ctx.needs_input_grad, strict=False)
        ]
        with ctx.of_kind("loss"):
            _tile(hidden, weight, ctx.step, _FOLDED[1])
        of_hidden, of_weight = (
            None if one is None else one.to(of.dtype) for one, of in zip(sums, (hidden, weight), strict=True)
        )
        return of_hidden, of_weight, None, None


def _tile(hidden: Tensor, weight: Tensor, step: Step, folded: float) -> None:
    dtype = getattr(torch, step.autocast) if step.autocast else hidden.dtype
    rows, words = min(len(hidden), _TOKENS), min(len(weight), _WORDS)
    on_cpu = step.device == "cpu"
    # A device gives the buffer whole; of a CPU's memory only what is written to is taken.
    tile = hidden.new_empty((rows, words if on_cpu else _WORDS), dtype=dtype)
    low = [one[:n].to(dtype) for one, n in ((hidden, rows), (weight, words))]
    if on_cpu:
        hidden.new_empty((int(folded * rows), words), dtype=torch.float32)
    del tile, low


def loss_of(step: Step, base: Any, adapted: Any, reference: Any, batch: dict[str, Tensor], of_kind: _As) -> Tensor:
    """The loss of the step's objective; `reference` is a second model, or None.

    Raises:
        NotImplementedError: the model has no head whose logits could be scored.
    """
    if step.objective == "reward":
        chosen, rejected = adapted(**batch).logits.squeeze(-1).chunk(2)
        return -functional.logsigmoid(chosen - rejected).mean()
    if base.get_output_embeddings() is None:
        raise NotImplementedError("no language model's head")
    if step.objective == "orpo":
        return _odds_ratio(step, adapted, batch)
    probes = 2 if step.objective == "kto" else 1  # KTO estimates a divergence from answers of other prompts
    with torch.no_grad():
        for _ in range(probes - 1):
            _scores(step, base, adapted, batch, of_kind)
    scored = _scores(step, base, adapted, batch, of_kind).sum(1)
    # In GRPO and RLOO the reference passes before the step, with no activations beside it.
    if step.reference and not step.completion:
        beside, off = (base, adapted.disable_adapter()) if reference is None else (reference, nullcontext())
        with torch.no_grad(), off:
            for _ in range(probes):
                _scores(step, beside, adapted if reference is None else reference, batch, of_kind)
    return -functional.logsigmoid(scored).mean()


@contextmanager
def _headless(base: Any) -> Iterator[Tensor]:
    """A context in which the model gives its hidden states in place of logits; the head's weight."""
    head = base.get_output_embeddings()
    base.set_output_embeddings(nn.Identity())
    try:
        yield head.weight
    finally:
        base.set_output_embeddings(head)


def _scores(step: Step, base: Any, model: Any, batch: dict[str, Tensor], of_kind: _As) -> Tensor:
    with _headless(base) as weight:
        states = model(**batch, use_cache=False).logits
    # Without Triton every position is scored, and not only those of the completion.
    first = -step.completion - 1 if step.completion and step.device != "cpu" else 0
    kept = states[:, first:-1]
    scores: Tensor = _Tiles.apply(kept.reshape(-1, kept.shape[-1]), weight, step, of_kind)  # type: ignore[no-untyped-call]  # torch's
    return scores.view(kept.shape[:2])


def _odds_ratio(step: Step, adapted: Any, batch: dict[str, Tensor]) -> Tensor:
    logits = adapted(**batch, use_cache=False).logits
    if step.autocast:
        logits = logits.float()  # as accelerate does with what a model under autocast returns
    pairs = len(logits) // 2
    labels = batch["input_ids"]
    told = logits[:pairs, :-1].contiguous().view(-1, logits.shape[-1])
    of_chosen = functional.cross_entropy(told, labels[:pairs, 1:].reshape(-1))
    shifted, index = logits[:, :-1], labels[:, 1:].unsqueeze(-1)
    if logits.dtype == torch.float32:
        sums = torch.stack([torch.logsumexp(row, -1) for row in shifted])
        scored = shifted.gather(-1, index).squeeze(-1) - sums
    else:
        rows = zip(shifted, index, strict=True)
        scored = torch.stack([functional.log_softmax(row, -1).gather(-1, at) for row, at in rows]).squeeze(-1)
    chosen, rejected = scored.mean(-1).chunk(2)
    return of_chosen - functional.logsigmoid(chosen - rejected).mean()


def generated(step: Step, base: Any, adapted: Any, ids: Tensor) -> None:
    """Follow what the model holds while it generates: the cache of all rows, when the last token is made."""
    checkpoints, training = base.is_gradient_checkpointing, adapted.training
    if checkpoints:
        base.gradient_checkpointing_disable()
    adapted.eval()
    prompt = ids.new_ones((step.generated, max(1, step.length - step.completion)))
    with torch.no_grad():
        made = adapted(input_ids=prompt, attention_mask=torch.ones_like(prompt), use_cache=True, logits_to_keep=1)
        cache = made.past_key_values
        del made
        for layer in cache.layers:
            kept = step.length - 1
            if layer.is_sliding:
                layer.cumulative_length, kept = kept, min(kept, layer.sliding_window - 1)
            layer.keys, layer.values = (
                one.new_empty((*one.shape[:-2], kept, one.shape[-1])) for one in (layer.keys, layer.values)
            )
        mask = ids.new_ones((step.generated, step.length))
        last = adapted(input_ids=prompt[:, :1], attention_mask=mask, past_key_values=cache, use_cache=True).logits
        torch.softmax(last[:, -1].float(), -1)
    adapted.train(training)
    if checkpoints:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
