"""The rows of the report: each module's weight is found in the base and the merged model, aligned, and judged.

The adapter may also hold tensors whole (heads, biases and token rows), which a merge copies into the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, Literal, NamedTuple, TypeAlias

import numpy as np

from gradience.adapters import is_embedding
from gradience.adapters.layout import PREFIX, Adapter, Array, Module
from gradience.adapters.traits import Operation, obstacles
from gradience.base.coded import CodedWeight, weight_of
from gradience.base.forms import DamagedCodesError, UnreadCodesError
from gradience.base.weights import BaseTensor, BaseWeights, plain_factors
from gradience.errors import AdapterError
from gradience.io.safetensors import DTYPES, TensorSource
from gradience.schema import NonFinite, real
from gradience.schema.audit import LeftoverReason
from gradience.schema.merge import VerifiedModule
from gradience.verbs.verify.codes import of_codes
from gradience.verbs.verify.delta import FLOATS, Delta, PlainDelta, WholeDelta, delta_of
from gradience.verbs.verify.judge import FAILING, Judgement, copied, verdict_on
from gradience.verbs.verify.measure import Case, EntrySums

_OUTPUTS: Final = ("lm_head.weight", "embed_out.weight")
_SAVED: Final = re.compile(r"\.modules_to_save(?:\.[^.]+)?(?=\.[^.]+$)")
_ROWS: Final = re.compile(r"\.token_adapter\.trainable_tokens_delta(?:\.[^.]+)?$")


class StoredTensor(NamedTuple):
    """A tensor as the file of one of the three has it, or as its codes give it back."""

    name: str
    dtype: str
    data: Array
    coded: CodedWeight | None = None
    note: str | None = None

    @property
    def stored(self) -> str:
        """The dtype, or the form of the codes."""
        return self.dtype if self.coded is None else self.coded.form


class ModelTensors:
    """The tensors of base or merged model. `used` are the names of those that the adapter accounts for."""

    def __init__(self, weights: BaseWeights, whose: str) -> None:
        self.weights, self.whose = weights, whose
        self.used: set[str] = set()

    def weight(self, name: str, expert: int | None = None) -> StoredTensor:
        """The weight of a parameter as a matrix.

        Raises:
            AdapterError: there is none, or it cannot be read as numbers.
        """
        shared = self._shared(name) if expert is None else None
        try:
            weight = weight_of(self.weights, name if shared is None else shared.name, expert)
        except DamagedCodesError:
            raise
        except UnreadCodesError as error:
            raise AdapterError(f"{self.whose}: {name} is {error.message}") from error
        except AdapterError as error:
            raise AdapterError(f"{self.whose}: {error.message}") from error
        if weight is None:
            raise AdapterError(f"{self.whose} {self._reason_missing(name)}")
        self.used |= weight.names
        numbers = weight.floats()
        data = numbers if weight.coded is None else numbers.astype(DTYPES[weight.dtype])
        note = None if shared is None else f"{name} shares the embedding's matrix"
        return StoredTensor(weight.key, weight.dtype, data, weight.coded, note)

    def find(self, name: str) -> BaseTensor | None:
        """The tensor of that name, or the embedding that an output layer shares; None if there is neither."""
        return self.weights.find(name) or self._shared(name)

    def tensor(self, name: str) -> BaseTensor:
        """The same; AdapterError if there is none."""
        tensor = self.find(name)
        if tensor is None:
            raise AdapterError(f"{self.whose} has no {name}")
        self.used.add(tensor.name)
        return tensor

    def _shared(self, name: str) -> BaseTensor | None:
        """The embedding in place of an output layer: among tensors named like one, that with most rows."""
        if not name.endswith(_OUTPUTS) or self.weights.find(name) is not None:
            return None
        names = [one for one in self.weights.names if one.endswith(".weight") and is_embedding(one[: -len(".weight")])]
        tensors = [one for one in map(self.weights.find, names) if one is not None]
        return max(tensors, key=lambda one: one.info.shape[0], default=None)

    def _reason_missing(self, name: str) -> str:
        stem, _, leaf = name.rpartition(".")
        if (kept := self.weights.find(f"{stem}.base_layer.{leaf}")) is not None:
            return f"has {kept.name} instead of {name}: it was saved with the adapter beside it, not merged"
        return f"has no {name}"


class Sources(NamedTuple):
    """The three that are compared, opened."""

    adapter: Adapter
    tensors: TensorSource
    """Those of the adapter's file."""
    base: ModelTensors
    merged: ModelTensors
    obstacle: str | None
    """Why the base that the adapter was trained on is not known; None if it is."""


def opened(adapter: Adapter, base: BaseWeights, merged: BaseWeights) -> Sources:
    """Return the adapter beside the files of base and merged model."""
    if adapter.source is None:
        raise AdapterError("internal error: adapter has no tensor source")
    unknown = next(obstacles(adapter, Operation.REPLAY), None)
    sides = ModelTensors(base, "the base"), ModelTensors(merged, "the merged model")
    return Sources(adapter, adapter.source, *sides, unknown)


class TensorVerdict(NamedTuple):
    """The verdict on one tensor, and the sums behind it."""

    told: VerifiedModule
    sums: EntrySums = EntrySums()


Kind: TypeAlias = Literal["update", "replacement", "rows"]


class TensorTask(NamedTuple):
    """A tensor that is to be judged; `judge` raises AdapterError if it cannot be compared."""

    name: str
    judge: Callable[[], TensorVerdict]
    kind: Kind = "update"

    def row(self) -> TensorVerdict:
        """Return its row."""
        try:
            return self.judge()
        except AdapterError as error:
            return TensorVerdict(
                VerifiedModule(name=self.name, kind=self.kind, verdict="not_compared", reason=error.message)
            )


def tasks_of(of: Sources) -> Iterator[TensorTask]:
    """Yield a module's weight, its bias if LoRA has one there (lora_bias), and what the adapter holds whole."""
    bases, places = base_copies(of.adapter), set[str]()
    for module in (*of.adapter.modules, *of.adapter.base_dependent):
        yield TensorTask(module.name, partial(_weight, of, module, bases.get(module.name), places))
        if "lora_B.bias" in module.keys:
            yield TensorTask(f"{module.name}.bias", partial(_bias, of, module))
    for copy in copies_of(of.adapter):
        yield TensorTask(copy.name, partial(_copy, of, copy), copy.kind)


def left_over(adapter: Adapter) -> list[TensorVerdict]:
    """Return rows for the adapter's tensors that are not understood, as `not_compared`."""
    waiting = {module.name for module in adapter.base_dependent}
    return [
        TensorVerdict(VerifiedModule(name=item.name, verdict="not_compared", reason=item.reason))
        for item in adapter.skipped
        if item.name not in waiting and item.cause is not LeftoverReason.TRAINING_ONLY
    ]


def names_of(module: Module, adapter: Adapter) -> tuple[str, str]:
    """Return the names of the module's weight in the base and in the merged model; layer replication changes them."""
    own = module.base_name or f"{module.name}.weight"
    if not adapter.config.layer_replication or module.expert is not None:
        return own, own
    return own, f"{module.name.partition(':')[0]}.{own.rpartition('.')[2]}"


def _weight(of: Sources, module: Module, copy: str | None, places: set[str]) -> TensorVerdict:
    """Judge a module's weight. The base's may be a `copy` in the adapter's file, as for a resized vocabulary."""
    in_base, in_merged = names_of(module, of.adapter)
    m = of.merged.weight(in_merged, module.expert)
    if copy is None:
        w = of.base.weight(in_base, module.expert)
    else:
        if (unused := of.base.find(in_base)) is not None:
            # It stands in the merged model in another form, so `Untouched` must not call it missing.
            of.base.used.add(unused.name)
        data = of.tensors.read(copy)
        w = StoredTensor(f"{copy} (in the adapter)", of.tensors.tensors[copy].dtype, data.reshape(len(data), -1))
    if m.name in places:
        raise AdapterError(f"another update of the adapter goes to {m.name}, too")
    places.add(m.name)
    w, m, delta, note = fitted(module, w, m)
    case = Case(w.data, m.data, w.dtype, m.dtype, delta)
    judged = _judged(of, module, case, w.coded)
    if m.coded is not None or w.coded is not None:
        judged = of_codes(case, judged, base=w.coded, merged=m.coded)
    return _row(module.name, judged, w, m, m.note or note)


def _judged(of: Sources, module: Module, case: Case, coded: CodedWeight | None) -> Judgement:
    plain = None
    if isinstance(case.delta, WholeDelta) and all(module is not one for one in of.adapter.base_dependent):
        plain = PlainDelta(*plain_factors(module, case.w.shape), module.scale)  # s B A beside a function of W
    judged = verdict_on(case, module, plain=plain)
    if judged.verdict in FAILING and coded is not None:  # or W was not rounded to the dtype it is computed in
        unrounded = verdict_on(replace(case, w=coded.whole(), base="F32"), module, plain=plain)
        judged = judged if unrounded.verdict in FAILING else unrounded
    if judged.verdict in FAILING and of.obstacle is not None:
        return judged._replace(verdict="not_compared", reason=module.note or of.obstacle)
    return judged


def fitted(module: Module, w: StoredTensor, m: StoredTensor) -> tuple[StoredTensor, StoredTensor, Delta, str | None]:
    """Return W, M and dW with one shape, and a note; rows of an extended vocabulary that one of them lacks are cut off.

    Raises:
        AdapterError: their shapes do not fit.
    """
    shapes = w.data.shape, m.data.shape
    if module.dense is None and is_embedding(module.name) and len({shape[1] for shape in (*shapes, module.shape)}) == 1:
        counts = (len(w.data), len(m.data), module.shape[0])
        if (n := min(counts)) < max(counts):
            b, a = module.load()
            note = f"rows of base, merged model and adapter: {', '.join(map(str, counts))}: the first {n} are compared"
            w, m = (held._replace(data=held.data[:n]) for held in (w, m))
            return w, m, PlainDelta(b[:n], a, module.scale), note
    if len(set(shapes)) > 1:
        raise AdapterError(f"{m.name} is of shape {list(m.data.shape)}, in the base {list(w.data.shape)}")
    return w, m, delta_of(module, w.data), None


def _bias(of: Sources, module: Module) -> TensorVerdict:
    names = (f"{name.rpartition('.')[0]}.bias" for name in names_of(module, of.adapter))
    w, m = (_vector(side, name) for side, name in zip((of.base, of.merged), names, strict=True))
    update = module.scale * of.tensors.read(module.keys["lora_B.bias"]).astype(np.float32)
    if len(sizes := (update.size, w.data.size, m.data.size)) != sizes.count(update.size):
        raise AdapterError("biases of {}, {} and {} entries".format(*sizes))
    case = Case(w.data, m.data, w.dtype, m.dtype, WholeDelta(update.reshape(1, -1), 1, is_known=True))
    return _row(f"{module.name}.bias", verdict_on(case, module), w, m, None)


def _vector(side: ModelTensors, name: str) -> StoredTensor:
    tensor = side.tensor(name)
    if tensor.info.dtype not in FLOATS:
        raise AdapterError(f"{side.whose}: {tensor.name} is stored as {tensor.info.dtype}")
    return StoredTensor(tensor.name, tensor.info.dtype, tensor.file.read(tensor.name).reshape(1, -1))


def _row(
    name: str, judged: Judgement, w: StoredTensor | None, m: StoredTensor, note: str | None, *, kind: Kind = "update"
) -> TensorVerdict:
    sums = judged.sums
    row = VerifiedModule(
        name=name,
        kind=kind,
        verdict=judged.verdict,
        reason="; ".join(text for text in (judged.reason, note) if text) or None,
        base_tensor=w and w.name,
        merged_tensor=m.name,
        base_dtype=w and w.stored,
        merged_dtype=m.stored,
        summed_in=judged.summed_in,
        factor=judged.factor,
        precision=judged.precision,
        without_base_change=judged.without_base_change,
        coefficient=_real(sums.coefficient),
        expected_coefficient=_real(sums.expected),
        residual=_real(sums.residual),
        codes=next((held.stored for held in (m, w) if held is not None and held.coded is not None), None),
        lost=_real(judged.lost),
        expected_lost=_real(judged.expected_lost),
        changed=sums.changed / sums.entries if sums.entries else None,
    )
    return TensorVerdict(row, sums)


def _real(value: float | None) -> float | NonFinite | None:
    return None if value is None else real(value)


class Copy(NamedTuple):
    """A tensor of the adapter (`key`), its `name` in a model, and the rows that it replaces there (None: all)."""

    key: str
    name: str
    kind: Kind = "replacement"
    rows: tuple[int, ...] | None = None


def copies_of(adapter: Adapter) -> Iterator[Copy]:
    """Yield the tensors that a merge copies into the model."""
    placed = {key for module in (*adapter.modules, *adapter.base_dependent) for key in module.keys.values()}
    adapted = {module.name for module in adapter.modules}
    for key, role in adapter.roles.items():
        name = key.removeprefix(PREFIX)
        # PEFT keeps the module as it was before training beside the trained one; a merge drops it.
        if key in placed or ".original_module." in name:
            continue
        if role == "token_rows" and (hit := _ROWS.search(name)):
            path = name[: hit.start()]
            yield Copy(key, f"{path}.weight", "rows", _token_rows(adapter, path))
        elif role in {"full_module", "bias", "base_copy"}:
            plain = _SAVED.sub("", name).replace(".base_layer.", ".")
            if role != "base_copy" or plain.rpartition(".")[0] not in adapted:
                yield Copy(key, plain)


def base_copies(adapter: Adapter) -> Mapping[str, str]:
    """Return the adapted modules whose base weight is in the adapter's file, with the name of that tensor."""
    keys = {}
    for key, role in adapter.roles.items():
        if role == "base_copy" and key.endswith(".base_layer.weight"):
            keys[key.removeprefix(PREFIX).removesuffix(".base_layer.weight")] = key
    return keys


def _token_rows(adapter: Adapter, path: str) -> tuple[int, ...] | None:
    indices = adapter.config.trainable_token_indices
    if isinstance(indices, dict):
        indices = next((rows for name, rows in indices.items() if f".{path}".endswith(f".{name}")), None)
    return None if indices is None else tuple(indices)


def _copy(of: Sources, copy: Copy) -> TensorVerdict:
    """Judge a tensor that the adapter holds whole or in part (some of its rows)."""
    target, base = of.merged.tensor(copy.name), of.base.find(copy.name)
    if base is not None:
        of.base.used.add(base.name)
    own, dtype = of.tensors.tensors[copy.key].dtype, target.info.dtype
    if not {own, dtype} <= FLOATS:
        raise AdapterError(f"stored as {dtype}, in the adapter as {own}")
    values, m, w = of.tensors.read(copy.key), target.file.read(target.name), None
    if base is not None and base.info.dtype in FLOATS:
        w = base.file.read(base.name)
    if copy.kind == "rows":
        m, w = (
            token_rows(m, copy.rows, len(values)),
            None if w is None else token_rows(w, copy.rows, len(values)),
        )
    values, m, note = same_length(values, m, copy.name)
    w = w if w is not None and w.shape == m.shape else None
    judged = copied(values, w, m, (own, "" if base is None else base.info.dtype, dtype))
    before = None if base is None else StoredTensor(base.name, base.info.dtype, m if w is None else w)
    return _row(copy.name, judged, before, StoredTensor(target.name, dtype, m), note, kind=copy.kind)


def token_rows(x: Array, rows: Sequence[int] | None, n: int) -> Array:
    """Return the rows of x with the given numbers.

    Raises:
        AdapterError: there are not exactly `n` numbers, or x has too few rows.
    """
    if rows is None or len(rows) != n or (rows and max(rows) >= len(x)):
        raise AdapterError(f"{n} token rows do not fit trainable_token_indices and a tensor of {len(x)} rows")
    return x[list(rows)]


def same_length(held: Array, m: Array, name: str) -> tuple[Array, Array, str | None]:
    """Return both arrays cut to the same number of rows, and a note, if the vocabulary was padded or extended.

    Raises:
        AdapterError: the shapes differ in another way.
    """
    if held.shape == m.shape:
        return held, m, None
    n = min(len(held), len(m)) if held.ndim and m.ndim else 0
    if held.shape[1:] != m.shape[1:] or not is_embedding(name.rpartition(".")[0]) or n == 0:
        raise AdapterError(f"of shape {list(m.shape)}, in the adapter {list(held.shape)}")
    return held[:n], m[:n], f"{max(len(held), len(m)) - n} rows are in one of them only"
