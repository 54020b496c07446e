"""What may be compared with a receipt: an adapter's folder, a merged model, an endpoint. Each is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from gradience.adapters import layer_index
from gradience.base.weights import BaseWeights, find_shards, identity
from gradience.data import template_digest
from gradience.data.encoder import Chat, Encoder
from gradience.errors import AdapterError, ConfigError
from gradience.models.inputs import ModelInput
from gradience.schema.receipt import Receipt, ReceiptRow, Tokens
from gradience.verbs.receipt.endpoint import Endpoint, RefusedError
from gradience.verbs.receipt.precision import ORDER, precision_of

PROBE: Final = "Gradience 0.1: is 12345 + 678 = 13023?\n\tdef f(x):  return {'é': x}  # naïve 日本"
"""A text of our own on which tokenizers differ: digits, spaces, indents, accents, other scripts."""

_HALVES: Final = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float32"}
Kind = Literal["adapter", "model", "endpoint"]


class TargetAnswer(NamedTuple):
    """What was read: log-probabilities of each sequence, NaN where there is none, and how."""

    kind: Kind
    reading: list[npt.NDArray[np.float64]]
    how: str
    precision: str
    """`float32`, `bfloat16`, `float16`, `int8`, `int4`; empty if unknown."""
    tokens: Tokens | None
    """How the target's tokenizer treats the text of our own; None if it does not say."""
    not_said: str = ""
    """Why there are no log-probabilities."""
    miscounted: str = ""
    """In words, a sequence of which the target counts another number of tokens."""
    is_base: bool = False
    """Whether its weights are the base's, bit for bit."""
    classes: int = 0
    """Of a classifier with another number of classes than the receipt's: that number."""


def examples_of(rows: Sequence[ReceiptRow]) -> list[ModelInput]:
    """The receipt's sequences as inputs of a model."""
    return [ModelInput(tuple(row.ids), row.first, row.first + len(row.base)) for row in rows]


def tokens_of(encoder: Encoder) -> Tokens:
    """How a tokenizer and its template treat the text of our own."""
    chat: list[int] = []
    if encoder.template is not None:
        (encoding,) = encoder.chats([Chat([{"role": "user", "content": PROBE}], prompt=True)])
        chat = [] if isinstance(encoding, str) else encoding.ids
    return Tokens(text=PROBE, ids=encoder.texts([PROBE])[0], chat=chat, template=template_digest(encoder.template))


def read_target(receipt: Receipt, target: str, *, base: Path | None, model: str | None, timeout: float) -> TargetAnswer:
    """Read the receipt's sequences from a target.

    Args:
        receipt: the receipt.
        target: a folder, or the address of a server.
        base: the base of an adapter's folder; its tokenizer turns ids into text for a server that takes no ids.
        model: the name under which a server serves the adapter.
        timeout: seconds that one request may take.

    Raises:
        GradienceError: there is nothing of these at the target, or it cannot be read.
    """
    if target.startswith(("http://", "https://")):
        return _of_endpoint(receipt, target, base, model, timeout)
    place = Path(target)
    if place.suffix == ".gguf":
        raise AdapterError(f"{target}: a GGUF file is asked where it is served", advice=f"llama-server -m {place.name}")
    if not place.is_dir():
        raise AdapterError(
            f"{target} is no folder and no address",
            advice="give an adapter's or a model's folder, or http://host:port",
        )
    return _of_folder(receipt, place, base)


def _of_folder(receipt: Receipt, place: Path, base: Path | None) -> TargetAnswer:
    from gradience.models import HeadlessError, load_model  # torch, late
    from gradience.models.reading import read_loaded  # the same

    is_adapter = (place / "adapter_config.json").is_file()
    if not is_adapter and not (place / "config.json").is_file():
        raise AdapterError(
            f"{place} holds neither an adapter nor a model",
            advice="give a folder with adapter_config.json or config.json, and weights",
        )
    if is_adapter and base is None:
        raise AdapterError(f"{place} is an adapter, and no base is given", advice="give --base MODEL")
    task: Any = receipt.task
    kind: Kind = "adapter" if is_adapter else "model"
    unread = TargetAnswer(kind, [], "run by transformers", "", None)
    if task == "sequence-classification" and not is_adapter and digest_of_base(place) == receipt.base:
        return unread._replace(how="compared by its files", is_base=True)  # its head may be in no file, or its own
    try:
        loaded = load_model(base or place, place, task=task) if is_adapter else load_model(place, task=task)
    except HeadlessError as error:
        return unread._replace(how="not run", not_said=f"{error.message}: its head would be drawn at random")
    vocabulary = loaded.model.get_input_embeddings().weight.shape[0]
    largest = max(max(row.ids) for row in receipt.rows)
    tokens = None if loaded.tokenizer is None else tokens_of(loaded.tokenizer)
    if largest >= vocabulary:
        why = f"the receipt has token id {largest}, and the target ids up to {vocabulary - 1}"
        return unread._replace(tokens=tokens, miscounted=why)
    reading = read_loaded(loaded, examples_of(receipt.rows))
    if task != "causal-lm" and len(reading[0]) != len(receipt.rows[0].base):
        return unread._replace(tokens=tokens, classes=len(reading[0]))
    precision = "float32" if is_adapter else _precision(place)
    return TargetAnswer(kind, reading, f"run by transformers on {loaded.device.type}", precision, tokens)


def digest_of_base(base: Path) -> str:
    """`sha256:...` of the base's weights files."""
    return f"sha256:{identity(find_shards(base))}"


def with_own_head(receipt: Receipt, base: Path) -> list[npt.NDArray[np.float64]] | None:
    """What a classifier's base gives with the head in its own files; None if it has none with the same classes."""
    from gradience.models import HeadlessError, load_model  # torch, late
    from gradience.models.reading import read_loaded  # the same

    try:
        loaded = load_model(base, task="sequence-classification")
    except HeadlessError:
        return None
    reading = read_loaded(loaded, examples_of(receipt.rows))
    return reading if len(reading[0]) == len(receipt.rows[0].base) else None


def _precision(place: Path) -> str:
    """How finely the matrices are rounded: by their float dtype, and by the values of those in layers."""
    files = BaseWeights(find_shards(place)).files
    dtypes = {info.dtype for file in files for info in file.tensors.values() if len(info.shape) > 1}
    known = [_HALVES[dtype] for dtype in dtypes if dtype in _HALVES]
    if len(known) != len(dtypes) or not known:
        return ""
    inside = (
        file.read(name)
        for file in files
        for name, info in file.tensors.items()
        if len(info.shape) == 2 and layer_index(name) is not None
    )
    return precision_of(inside, min(known, key=ORDER.index))


def _of_endpoint(receipt: Receipt, address: str, base: Path | None, model: str | None, timeout: float) -> TargetAnswer:
    if receipt.task != "causal-lm":
        raise AdapterError(f"a receipt of {receipt.task} is not compared with an endpoint", advice="give a folder")
    served = Endpoint(address, model=model, timeout=timeout)
    tokens = _tokens_served(receipt, served)
    rows, firsts = [row.ids for row in receipt.rows], [row.first for row in receipt.rows]
    try:
        answered = served.read(rows, firsts, _decoder(base))
    except RefusedError as error:
        return TargetAnswer("endpoint", [], "asked over HTTP", "", tokens, not_said=error.message)
    counts = zip(rows, answered.tokens, strict=True)
    odd = next(
        (
            f"of a sequence of {len(ids)} tokens the server counts {count}"
            for ids, count in counts
            if count and count != len(ids)
        ),
        "",
    )
    return TargetAnswer("endpoint", answered.reading, answered.how, "", tokens, miscounted=odd)


def _tokens_served(receipt: Receipt, served: Endpoint) -> Tokens | None:
    if receipt.tokens is None:
        return None
    ids = served.tokens_of(receipt.tokens.text)
    if ids is None:
        return None
    chat = served.chat_tokens_of(receipt.tokens.text) if receipt.tokens.chat else None
    return Tokens(text=receipt.tokens.text, ids=ids, chat=chat or [])


def _decoder(base: Path | None) -> Callable[[Sequence[int]], str] | None:
    """Turn ids into text by the base's tokenizer."""
    if base is None:
        return None
    try:
        encoder = Encoder(base, masks=False)
    except ConfigError:
        return None
    return lambda ids: encoder.decoded([ids])[0]


def tokens_differ(own: Tokens | None, found: Tokens | None) -> str:
    """What differs between the tokens of the receipt and those of a target, in words; empty if nothing is known to."""
    if own is None or found is None:
        return ""
    if own.ids != found.ids:
        at = next((i for i, pair in enumerate(zip(own.ids, found.ids, strict=False)) if pair[0] != pair[1]), -1)
        what = f"{len(own.ids)} tokens, and there {len(found.ids)}" if at < 0 else f"another token at place {at}"
        return f"the same text has {what}"
    if own.chat and found.chat and own.chat != found.chat:
        return f"the chat template gives {len(found.chat)} tokens to a turn, and gave {len(own.chat)}"
    if own.template and found.template and own.template != found.template and not found.chat:
        return "the chat template is another text"
    return ""
