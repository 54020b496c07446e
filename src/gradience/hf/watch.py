"""Count what a model is fed: a forward pre-hook that counts tokens, supervised tokens and padding in some batches.

The hook reads the batch that the model gets anyway. It iterates no loader, draws no random number and changes no input.
It keeps counts and hashes of rows; no token leaves the process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, Self, TypeGuard

import torch

from gradience.data.asked import AskedRow, ControlTokens, Vocabulary, foreign_in
from gradience.data.tokens import Sequence as TokenSequence
from gradience.hf.digests import IGNORED, MIX, mixed_bits
from gradience.hf.fed import Hook
from gradience.hf.snapshot import unwrapped
from gradience.rules.data import ASKED_LIVE

FIRST: Final = 8  # micro-batches watched from the beginning
EVERY: Final = 100  # one in so many later micro-batches is watched
_ASKED: Final = 8  # rows, of the first micro-batches, that are asked one by one
_MOST_READ: Final = 2048  # tokens of a row that are read as text
_MOST_HASHES: Final = 1_000_000  # hashes of rows that are kept, about 100 MB
_MOST_EVALUATED: Final = 20_000  # rows of evaluations whose hashes are kept, about 2 MB
_LOOKED: Final = 4096  # rows of the embedding whose mean and spread are taken, and those of a batch
_MEAN: Final = 0.1  # of the spread: a row so near to the mean of all was not trained
_PARTING: Final = ("seq_idx", "cu_seq_lens_q", "cu_seqlens", "cu_seq_lens")  # which part documents beside a mask, too
_COUNTS: Final = ("rows", "tokens", "padding", "supervised", "rows_unsupervised", "rows_at_limit", "rows_with_end")

Values = dict[str, Any]
_Beside = Sequence[list[int] | None]


class BatchWatch:
    """A hook on one model and its counts; also a context manager that removes the hook.

    Args:
        model: any module that gets `input_ids`, and `labels` if it computes its own loss.
        max_length: the length at which rows are cut; rows of that length are counted.
        ends: end tokens beside those of the model's configuration.
        tokenizer: that of the run; without it, what needs its tokens is not asked.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        max_length: int | None = None,
        ends: Sequence[int] = (),
        tokenizer: Any = None,
    ) -> None:
        self.batches = 0
        self.watched = 0
        self._limit = max_length if isinstance(max_length, int) else None  # a Trainer's may be anything
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._without_labels = False
        self._packed = False
        self._repeated = 0
        self._hashes: set[int] = set()
        self._labels: tuple[int, int] | None = None
        self._of_classes = [0, 0]  # batches of several rows with class labels; of them, those of one class
        self._trained: set[int] = set()  # hashes of all rows seen in training, of every epoch
        self._evaluated: set[int] = set()
        self._longest = 0
        self._failed: str | None = None
        self._classes = _classes(model)
        self._ends = [*_end_ids(model), *ends]
        self._tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
        self._vocabulary = _vocabulary(self._tokenizer, self._ends)
        self._asked: Counter[str] = Counter()
        self._rows_asked = 0
        self._wanted: dict[str, int] | None = None if _is_causal(model) else {}
        self._handles = [
            model.register_forward_pre_hook(Hook(self._see), with_kwargs=True),
            model.register_forward_hook(Hook(self._answered), with_kwargs=True),
        ]
        self._embedding = _frozen_embedding(model)

    def __enter__(self) -> Self:
        """Begin a block in which the model is watched."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the hook."""
        self.close()

    @property
    def settled(self) -> bool:
        """Whether the first batches have been counted."""
        return self.watched >= FIRST

    def close(self) -> None:
        """Remove the hooks; the counts stay."""
        for handle in self._handles:
            handle.remove()

    def new_epoch(self) -> None:
        """Forget which rows were seen, because a new epoch repeats them."""
        self._hashes.clear()

    def values(self) -> Values:
        """The counts as the `metrics` event of kind `data` has them; None for a count that could not be made."""
        known = {name: None if self._is_hidden(name) else n for name, n in self._counts.items()}
        low, high = self._labels if self._labels is not None else (None, None)
        return {
            "batches": self.batches,
            "watched": self.watched,
            **known,
            "rows_repeated": self._repeated,
            "longest": self._longest,
            "max_length": self._limit,
            "label_min": low,
            "label_max": high,
            "num_labels": self._classes,
            "label_batches": self._of_classes[0],
            "label_batches_alike": self._of_classes[1],
            "rows_known": len(self._trained),
            "eval_rows": len(self._evaluated),
            "eval_rows_trained": len(self._evaluated & self._trained),
            "packed": self._packed,
            "asked": dict(+self._asked),
            "rows_asked": self._rows_asked,
            "wanted": self._wanted or {},
            "unseen": self._unseen(),
        }

    def _is_hidden(self, name: str) -> bool:
        if name == "rows_at_limit":
            return self._limit is None
        if name == "rows_with_end":
            return self._without_labels or not self._ends
        return self._without_labels and name in {"supervised", "rows_unsupervised"}

    def _unseen(self) -> str | None:
        """The reason why no batch was counted, or None."""
        if self._failed is not None:
            return self._failed
        if not self.batches:
            return "no batch in training mode passed the hook: the model is compiled, or another one is called"
        return None if self.watched else "no input_ids among the inputs"

    def _see(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Count a batch. Evaluation, generation and reference passes have no gradient and are not counted.

        Of an evaluation, whose batches have labels, only the hashes of rows are kept.
        """
        if not module.training or not torch.is_grad_enabled():
            self._see_evaluation(module, args, kwargs)
            return
        self._take_batch(args, kwargs)

    def see(self, batch: Mapping[str, Any]) -> None:
        """Count a batch that the model would be called with."""
        self._take_batch((), batch)

    def _take_batch(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        number = self.batches
        self.batches = number + 1
        if (number >= FIRST and number % EVERY) or self._failed is not None:
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        if not _are_ids(ids):
            return
        try:
            with torch.no_grad():
                self._count(ids, kwargs)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:  # inputs of an unforeseen shape
            self._failed = f"the batch could not be counted: {type(error).__name__}"

    def _see_evaluation(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        wanted = not module.training and "labels" in kwargs and len(self._evaluated) < _MOST_EVALUATED
        if not wanted or not _are_ids(ids) or self._failed is not None:
            return
        with torch.no_grad(), suppress(RuntimeError, ValueError, TypeError, IndexError):  # a batch is left out
            mask = _mask_of(ids, kwargs.get("attention_mask"))
            rows, places = _rows_of(ids, mask, kwargs.get("position_ids"))
            self._evaluated.update(_by_row(_mixed(ids, places) * mask, rows, int(rows.max()) + 1).tolist())

    def _count(self, ids: torch.Tensor, kwargs: Mapping[str, Any]) -> None:
        mask = _mask_of(ids, kwargs.get("attention_mask"))
        labels = kwargs.get("labels")
        of_tokens = isinstance(labels, torch.Tensor) and labels.shape == ids.shape
        rows, places = _rows_of(ids, mask, kwargs.get("position_ids"))
        self._packed |= len(ids) == 1 and bool((rows[-1] > 0).any())
        n = int(rows.max()) + 1
        lengths = _by_row(mask, rows, n)
        hashes = _by_row(_mixed(ids, places) * mask, rows, n)
        table = [lengths, hashes]
        if of_tokens:
            kept = (labels != IGNORED) & mask.bool()
            table.append(_by_row(kept, rows, n))
            table.append(_by_row(kept & torch.isin(ids, self._end_tensor(ids)), rows, n))
        self._take([column.tolist() for column in table], ids.numel())
        if isinstance(labels, torch.Tensor) and not of_tokens and self._are_classes(labels):
            low, high = int(labels.min()), int(labels.max())
            self._take_labels(low, high)
            if labels.numel() > 1:
                self._of_classes[0] += 1
                self._of_classes[1] += low == high
        self._without_labels |= not of_tokens
        self.watched += 1
        if self.watched <= FIRST and self._rows_asked < _ASKED:
            few = ids[: _ASKED - self._rows_asked]
            beside = [_beside(few, kwargs.get(name)) for name in ("attention_mask", "position_ids")]
            known = self._vocabulary._replace(untaught=_untaught(few, self._embedding))
            self._ask(few.tolist(), (*beside, _beside(few, labels if of_tokens else None)), known, _are_parted(kwargs))

    def _ask(self, ids: list[list[int]], beside: tuple[_Beside, ...], known: Vocabulary, parted: bool) -> None:  # noqa: FBT001  # of all rows
        """Ask each row of a batch what a row of a file is asked, as far as it needs no text."""
        for row, given, places, own in zip(ids, *beside, strict=True):
            mask = None if given is None else [*map(bool, given)]
            self._rows_asked += 1
            if mask is not None and _is_hidden(mask, own):
                self._asked["unattended"] += 1
                continue
            begin, end = _attended(row, mask, own)
            self._asked["foreign_tokens"] += _has_foreign(row[begin:end][:_MOST_READ], self._tokenizer)
            placeless = places is not None and end - begin > 1 and len({*places[begin:end]}) == 1
            self._asked["placeless"] += placeless
            columns: Values = {"input_ids": row, "stored": {"attention_mask": given}}
            columns |= {} if own is None else {"labels": own}  # padding in the loss, too
            anew = places is not None and not placeless and 0 in places[begin + 1 : end]
            # transformers parts documents by their positions where there is no mask.
            columns |= {"parted": True} if parted or (anew and given is None) else {"masked": True} if anew else {}
            kept = None if own is None else [int(label != IGNORED) for label in own[begin:end]]
            asked = AskedRow(columns, known, (TokenSequence(row[begin:end], kept),))
            self._asked.update({name for test in ASKED_LIVE for name in test.of(asked)})

    def _answered(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Values, output: Any) -> None:
        """Look at the gradient of the first batch's logits, by which the loss says what token it wants where."""
        ids, logits = kwargs.get("input_ids", args[0] if args else None), getattr(output, "logits", None)
        wanting = self._wanted is None and module.training and isinstance(logits, torch.Tensor) and logits.requires_grad
        if wanting and _are_ids(ids) and logits is not None and logits.shape[:-1] == ids.shape:
            self._wanted = {}
            logits.register_hook(partial(self._take_wanted, ids))

    def _take_wanted(self, ids: torch.Tensor, gradient: torch.Tensor) -> None:
        with torch.no_grad(), suppress(RuntimeError, NotImplementedError):
            low, wanted = gradient.min(-1)
            by_place = {"own": wanted == ids, "next": wanted == ids.roll(-1, 1), "of": low < 0.0}
            self._wanted = {name: int((seen & (low < 0.0)).sum()) for name, seen in by_place.items()}

    def _take(self, table: list[list[int]], room: int) -> None:
        lengths, hashes, *of_labels = table
        counts = self._counts
        counts["rows"] += len(lengths)
        counts["tokens"] += sum(lengths)
        counts["padding"] += room - sum(lengths)
        self._longest = max(self._longest, *lengths)
        if self._limit is not None:
            counts["rows_at_limit"] += sum(length >= self._limit for length in lengths)
        if of_labels:
            supervised, ends = of_labels
            counts["supervised"] += sum(supervised)
            counts["rows_unsupervised"] += supervised.count(0)
            counts["rows_with_end"] += len(ends) - ends.count(0)
        for value in hashes:
            self._repeated += value in self._hashes
            if len(self._hashes) < _MOST_HASHES:
                self._hashes.add(value)
            if len(self._trained) < _MOST_HASHES:
                self._trained.add(value)

    def _are_classes(self, labels: torch.Tensor) -> bool:
        """Whether labels are one class a row. A decoder's labels of another length than the inputs are none."""
        return not labels.is_floating_point() and labels.numel() > 0 and (labels.ndim == 1 or self._classes is not None)

    def _take_labels(self, low: int, high: int) -> None:
        before = self._labels or (low, high)
        self._labels = min(low, before[0]), max(high, before[1])

    def _end_tensor(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self._ends or [-1], device=ids.device, dtype=ids.dtype)


def _beside(ids: torch.Tensor, given: object) -> _Beside:
    """What a batch gives beside the tokens of its first rows; nothing where it is of another shape."""
    fits = isinstance(given, torch.Tensor) and given.ndim == ids.ndim and given[: len(ids)].shape == ids.shape
    return given[: len(ids)].tolist() if isinstance(given, torch.Tensor) and fits else [None] * len(ids)


def _is_hidden(mask: list[bool], labels: list[int] | None) -> bool:
    """Whether the mask hides all tokens of a row, or all those in the loss."""
    kept = mask if labels is None else [bit for bit, label in zip(mask, labels, strict=True) if label != IGNORED]
    return not any(mask) or (bool(kept) and not any(kept))


def _attended(row: list[int], mask: list[bool] | None, labels: list[int] | None) -> tuple[int, int]:
    """The places between which a row is no padding; without a mask that is equal tokens at its end outside the loss."""
    if mask is not None:
        return mask.index(True), len(mask) - mask[::-1].index(True)
    end = len(row)
    while labels is not None and end > 1 and row[end - 1] == row[-1] and labels[end - 1] == IGNORED:
        end -= 1
    return 0, end if len(row) - end > 1 else len(row)


def _vocabulary(tokenizer: Any, ends: Sequence[int]) -> Vocabulary:
    """What is known of a tokenizer's tokens; of one that does not tell, the end tokens alone."""
    pad, end, bos = (getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "eos", "bos"))
    added: dict[str, object] = getattr(tokenizer, "get_added_vocab", dict)()
    return Vocabulary(
        ends=frozenset(ends) | (frozenset([end]) if isinstance(end, int) else frozenset()),
        controls=frozenset(one for one in added.values() if isinstance(one, int)),
        pad=pad if isinstance(pad, int) and pad != end else None,
        bos=bos if isinstance(bos, int) else None,
    )


def _has_foreign(ids: list[int], tokenizer: Any) -> bool:
    """Whether a row has, in pieces, turn tokens that the tokenizer does not know and its template does not write."""
    try:
        # Llama 2's [INST] is text in its own format, with a template and without.
        tokens = {token for token in foreign_in([tokenizer.decode(ids)], ControlTokens()) if token.startswith("<|")}
        if not tokens or not (unknown := tokens - tokenizer.get_vocab().keys()):
            return False
        if not tokenizer.chat_template:
            return True
        turns = [{"role": role, "content": ""} for role in ("user", "assistant")]
        # A template may put a token together of its parts.
        written = tokenizer.chat_template + tokenizer.apply_chat_template(turns, tokenize=False)
        return any(token not in written for token in unknown)
    except Exception:  # noqa: BLE001  # a tokenizer or a template of any kind, or none
        return False


def watch_batches(model: torch.nn.Module, *, max_length: int | None = None, tokenizer: Any = None) -> BatchWatch:
    """Count what a model is fed in your own training loop; `values()` of the result has the counts.

    Args:
        model: the module that is called with `input_ids`; for a compiled model, the result of `torch.compile`.
        max_length: the length at which rows are cut.
        tokenizer: that of the run, by which padding and turns are known in the first batches.
    """
    return BatchWatch(model, max_length=max_length, tokenizer=tokenizer)


def _is_causal(model: torch.nn.Module) -> bool:
    return any(kind in type(_inner(model)).__name__ for kind in ("CausalLM", "LMHeadModel"))


def _frozen_embedding(model: torch.nn.Module) -> Any:
    """The embedding of the tokens, if nothing of it trains and its numbers can be read."""
    with suppress(AttributeError, NotImplementedError):
        layer: Any = _inner(model).get_input_embeddings()
        weight = layer.weight
        plain = isinstance(weight, torch.Tensor) and weight.ndim == 2 and weight.is_floating_point()
        if plain and weight.numel() and not weight.is_meta and not any(one.requires_grad for one in layer.parameters()):
            return layer
    return None


def _untaught(ids: torch.Tensor, layer: Any) -> frozenset[int]:
    """The tokens whose embedding is the mean of all, as a resize leaves it, without the one that pads."""
    if layer is None:
        return frozenset()
    rows: torch.Tensor = layer.weight.detach()
    some = rows[:: -(-len(rows) // _LOOKED)].float()
    mean, own = some.mean(0), ids.unique()[:_LOOKED]
    spread = (some - mean).norm(dim=1).median()
    near = own[(rows[own].float() - mean).norm(dim=1) < _MEAN * spread]
    return frozenset(near.tolist()) - {getattr(layer, "padding_idx", None)}


def _are_parted(kwargs: Mapping[str, Any]) -> bool:
    """Whether documents are parted by their lengths, or by a mask that is square or numbers them."""
    mask, ids = kwargs.get("attention_mask"), kwargs.get("input_ids")
    tells = isinstance(mask, torch.Tensor) and (ids is None or mask.shape != ids.shape or int(mask.max()) > 1)
    return tells or any(kwargs.get(name) is not None for name in _PARTING)


def _are_ids(ids: object) -> TypeGuard[torch.Tensor]:
    """Whether a value holds the tokens of some rows."""
    return (
        isinstance(ids, torch.Tensor) and ids.ndim == 2 and not ids.is_floating_point() and ids.numel() > 0
    )  # rows and tokens


def _mask_of(ids: torch.Tensor, given: object) -> torch.Tensor:
    """1 for each token, 0 for padding."""
    if isinstance(given, torch.Tensor) and given.shape == ids.shape:
        return (given != 0).to(torch.int64)
    return torch.ones_like(ids, dtype=torch.int64)


def _rows_of(ids: torch.Tensor, mask: torch.Tensor, positions: object) -> tuple[torch.Tensor, torch.Tensor]:
    """The row of each token and its place in that row. A packed row begins where position_ids restart at 0."""
    if isinstance(positions, torch.Tensor) and positions.shape == ids.shape and len(ids) == 1:
        begins = (positions == 0).to(torch.int64)
        # A packed batch may begin within a row, whose positions then go on.
        begins[:, 0] = 1
        return begins.cumsum(1) - 1, positions.to(torch.int64)
    rows = torch.arange(len(ids), device=ids.device).unsqueeze(1).expand_as(ids)
    return rows, mask.cumsum(1)


def _by_row(values: torch.Tensor, rows: torch.Tensor, n: int) -> torch.Tensor:
    """The sum of the values in each of n rows."""
    sums = torch.zeros(n, dtype=torch.int64, device=values.device)
    return sums.index_add_(0, rows.reshape(-1), values.to(torch.int64).reshape(-1))


def _mixed(ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """A number for each token and place; the sum of these over a row is the row's hash."""
    mixed: torch.Tensor = mixed_bits((ids.to(torch.int64) + 1) * MIX[0] + places * MIX[1])
    return mixed


def _inner(model: torch.nn.Module) -> Any:
    """The model inside DistributedDataParallel, torch.compile and PEFT."""
    inner = unwrapped(model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def _end_ids(model: torch.nn.Module) -> list[int]:
    inner = _inner(model)
    for config in (getattr(inner, "generation_config", None), getattr(inner, "config", None)):
        ids = getattr(config, "eos_token_id", None)
        if isinstance(ids, int):
            return [ids]
        if isinstance(ids, list) and ids:
            return [one for one in ids if isinstance(one, int)]
    return []


def _classes(model: torch.nn.Module) -> int | None:
    """The number of classes if the model has a classification head, else None."""
    inner = _inner(model)
    count = getattr(getattr(inner, "config", None), "num_labels", None)
    return count if isinstance(count, int) and "Classification" in type(inner).__name__ else None
