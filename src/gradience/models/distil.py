"""Distillation: factors of a lower rank are trained until the model's outputs are near to those with the whole adapter.

The loss is the KL divergence KL(whole, lower) of the output distributions, in nats per prediction. The texts need no
labels (Hinton et al. 2015, arXiv 1503.02531; of adapters: LoRA-Squeeze, arXiv 2602.10993).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch

from gradience.io import Progress
from gradience.models import LoadedModel
from gradience.models.inputs import InputBatch, ModelInput
from gradience.models.outputs import Reference, batched, divergences, log_probs, logits_of, row_sizes
from gradience.models.states import LayerFactors, with_factors

STEPS: Final = 300
BATCH: Final = 8  # texts of a step
RATE: Final = 0.03  # of a factor's root mean square: about the largest change of an entry in a step


def distil(
    loaded: LoadedModel,
    layers: Mapping[str, Any],
    student: Mapping[str, LayerFactors],
    examples: Sequence[ModelInput],
    *,
    seed: int,
    progress: Progress | None = None,
) -> int | None:
    """Train factors in place, towards the outputs of the model with its own.

    Adam takes `STEPS` steps over groups of `BATCH` texts. The rate is relative to each factor's size, so that it does
    not depend on the adapter's scale, and falls to zero along half a cosine. A factor of zeros stays.

    Args:
        loaded: the model with the whole adapter.
        layers: PEFT's layers of the adapter, by path.
        student: the factors to train, of any rank, by path.
        examples: the texts.
        seed: seed of the order of the texts.
        progress: called with (steps done, steps in all, name of the work).

    Returns:
        The number of steps after which the loss or a gradient was not finite, which ends the training; else None.
    """
    weights = [factor.requires_grad_() for pair in student.values() for factor in pair]
    rates = [{"params": [w], "lr": RATE * float(w.detach().double().square().mean().sqrt())} for w in weights]
    optimizer = torch.optim.Adam(rates)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1.0 + math.cos(math.pi * step / STEPS)) / 2.0)
    teacher = Reference(loaded)
    groups = _groups(loaded, examples, torch.Generator().manual_seed(seed))
    for step, group in enumerate(itertools.islice(groups, STEPS)):
        # Of the whole group, so that each prediction counts the same, whichever batch it is in.
        total = sum(sum(row_sizes(loaded, part)) for _, part in group)
        loss = 0.0
        for place, part in group:
            # Not inference_mode: autograd cannot keep such a tensor for the backward pass.
            with torch.no_grad():
                known = teacher.of(place, part)
            with with_factors(layers, student), torch.enable_grad():
                apart = divergences(known, log_probs(logits_of(loaded, part))).sum() / total
            apart.backward()
            loss += float(apart.detach())
        if not math.isfinite(loss) or not all(w.grad is None or bool(w.grad.isfinite().all()) for w in weights):
            return step
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if progress is not None:
            progress(step + 1, STEPS, "recovering")
    return None


def _groups(
    loaded: LoadedModel, examples: Sequence[ModelInput], generator: torch.Generator
) -> Iterator[list[tuple[int, InputBatch]]]:
    """Yield groups of texts without end, each in numbered batches; the generator orders the groups, pass after pass."""
    number = itertools.count()
    starts = range(0, len(examples), BATCH)
    groups = [[(next(number), part) for part in batched(loaded, examples[at : at + BATCH])] for at in starts]
    while True:
        yield from (groups[place] for place in torch.randperm(len(groups), generator=generator).tolist())
