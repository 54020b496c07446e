"""The receipt of an adapter at the end of its training, from the model in memory and rows of its evaluation set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from peft import PeftModel

from gradience.data import template_digest
from gradience.errors import GradienceError
from gradience.hf.digests import IGNORED
from gradience.models import LoadedModel, Task
from gradience.models.inputs import ModelInput
from gradience.schema.receipt import Tokens
from gradience.verbs.receipt.rows import CANDIDATES
from gradience.verbs.receipt.run import receipt_of, write_receipt
from gradience.verbs.receipt.targets import PROBE

_TASKS: Final[dict[str, Task]] = {"CAUSAL_LM": "causal-lm", "SEQ_CLS": "sequence-classification"}
_ROWS: Final = 16


def write_at_end(model: Any, tokenizer: Any, batches: Iterable[Mapping[str, Any]] | None, log: Path) -> int:
    """Write the receipt of a model in training, and return its size in bytes. The model is left as it was.

    Args:
        model: PEFT's model.
        tokenizer: the tokenizer; None if there is none.
        batches: batches of the evaluation or training set; the first rows are used.
        log: the log of the run; the receipt is written beside it, as private as it is, and replaces an older one.

    Raises:
        GradienceError: the model has no adapter, is trained on several devices, or there is no row.
    """
    out = log.with_name("receipt.json")
    if not isinstance(model, PeftModel):
        raise GradienceError("the model is none of PEFT's")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise GradienceError("the training is distributed", advice="run 'gradience receipt' on the adapter")
    task = _TASKS.get(str(getattr(model.active_peft_config.task_type, "value", model.active_peft_config.task_type)))
    if task is None:
        raise GradienceError(f"the model is for {model.active_peft_config.task_type}")
    with torch.random.fork_rng(devices=[]):  # a loader draws a seed
        examples = list(islice(_examples(batches or (), task), round(CANDIDATES * _ROWS)))
    if not examples:
        raise GradienceError("no batch has a row of token ids")
    loaded = LoadedModel(model, task, next(model.parameters()).device, None)
    with _evaluating(model):
        made = receipt_of(loaded, examples, rows=_ROWS)
    made = msgspec.structs.replace(
        made,
        adapter_name=out.parent.name,
        base_name=Path(str(model.active_peft_config.base_model_name_or_path or "")).name,
        tokens=None if tokenizer is None else _tokens(tokenizer),
    )
    return write_receipt(made, out, sources=[log], force=True)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """A context in which the model is in evaluation mode, and after which it is as before."""
    modes = {module: module.training for module in model.modules()}
    # PEFT freezes an adapter that it switches off, and unfreezes all of it as it switches it on again.
    trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, flag in trained.items():
            parameter.requires_grad_(flag)


def _examples(batches: Iterable[Mapping[str, Any]], task: Task) -> Iterator[ModelInput]:
    for batch in batches:
        ids, mask, labels = (batch.get(name) for name in ("input_ids", "attention_mask", "labels"))
        if ids is None:
            return
        for row in range(len(ids)):
            kept = mask[row].bool() if mask is not None else torch.ones_like(ids[row]).bool()
            tokens = tuple(ids[row][kept].tolist())
            first = 0
            if task == "causal-lm" and labels is not None:
                counted = (labels[row][kept] != IGNORED).nonzero()
                # A token is predicted at the place before it.
                first = max(int(counted[0]) - 1, 0) if len(counted) else len(tokens)
            stop = len(tokens) - 1 if task == "causal-lm" else len(tokens)
            if first < stop:
                yield ModelInput(tokens, first, stop)


def _tokens(tokenizer: Any) -> Tokens | None:
    """How a tokenizer in memory treats the text of our own."""
    if not callable(getattr(tokenizer, "apply_chat_template", None)):
        return None
    template = template_digest(tokenizer.chat_template)
    turn = [{"role": "user", "content": PROBE}]
    chat = tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"] if template else []
    return Tokens(text=PROBE, ids=list(tokenizer(PROBE)["input_ids"]), chat=list(chat), template=template)
