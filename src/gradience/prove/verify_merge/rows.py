"""The rows of the report: each module's weight is found in the base and the merged model, aligned, and judged.

The adapter may also hold tensors whole (heads, biases and token rows), which a merge copies into the model.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Final, Literal, NamedTuple

import numpy as np
from msgspec.structs import replace

from gradience.adapters import is_embedding
from gradience.adapters.layout import PREFIX, Adapter, Module
from gradience.adapters.traits import Operation, obstacles
from gradience.base.coded import Coded, coded, refuse_unread
from gradience.base.forms import UnreadCodesError
from gradience.base.weights import BaseTensor, BaseWeights
from gradience.errors import AdapterError
from gradience.io.safetensors import DTYPES, TensorSource
from gradience.prove.verify_merge.codes import CodesVerdict, of_codes
from gradience.prove.verify_merge.delta import FLOATS, Delta, Matrix, PlainDelta, WholeDelta, delta_of, head, stored
from gradience.prove.verify_merge.judge import FAILING, Judgement, verdict_on
from gradience.prove.verify_merge.measure import Case, Workers, compare_copy, same_length, token_rows
from gradience.schema import NonFinite, real
from gradience.schema.audit import LeftoverReason
from gradience.schema.merge import VerifiedModule

_PARTS: Final = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "up_proj": (("up_proj",),),
    "down_proj": (("down_proj",), ("w2",)),
}
"""The layers of one expert that transformers 5 stacks to a parameter in memory, and saves as separate tensors."""
_OLD_PATHS: Final = ((".mlp.experts", ".block_sparse_moe.experts"),)
_PACKED: Final = ("qweight", "weight_packed")  # without what they need beside them
_OUTPUTS: Final = ("lm_head.weight", "embed_out.weight")
_SAVED: Final = re.compile(r"\.modules_to_save(?:\.[^.]+)?(?=\.[^.]+$)")
_ROWS: Final = re.compile(r"\.token_adapter\.trainable_tokens_delta(?:\.[^.]+)?$")


class WeightPlace(NamedTuple):
    """The location of a weight: one tensor, or several tensors stacked along their rows."""

    tensors: tuple[BaseTensor, ...]
    expert: int | None = None
    shared: bool = False
    """Whether an output layer was asked for, and the embedding whose matrix it shares was found."""

    @property
    def dtype(self) -> str:
        """The first tensor's dtype (safetensors' name)."""
        return self.tensors[0].info.dtype

    @property
    def name(self) -> str:
        """The tensors' names, joined by a plus, with the expert's index if the weight is a slice."""
        names = " + ".join(found.name for found in self.tensors)
        return names if self.expert is None else f"{names}[{self.expert}]"


def names_of(module: Module, adapter: Adapter) -> tuple[str, str]:
    """Return the names of the module's weight in the base and in the merged model; layer replication changes them."""
    own = module.base_name or f"{module.name}.weight"
    if not adapter.config.layer_replication or module.expert is not None:
        return own, own
    return own, f"{module.name.partition(':')[0]}.{own.rpartition('.')[2]}"


def find_place(weights: BaseWeights, name: str, expert: int | None = None) -> WeightPlace | None:
    """Return the location of the weight of that name, or None if the model has none."""
    if (found := weights.find(name)) is not None:
        return WeightPlace((found,), expert)
    if expert is not None:
        return next(_in_parts(weights, name, expert), None)
    if name.endswith(_OUTPUTS) and (shared := _embedding(weights)) is not None:
        return WeightPlace((shared,), shared=True)
    return None


def _in_parts(weights: BaseWeights, name: str, expert: int) -> Iterator[WeightPlace]:
    path, _, parameter = name.rpartition(".")
    paths = [path, *(path.replace(new, old) for new, old in _OLD_PATHS if new in path)]
    for stem in paths:
        for parts in _PARTS.get(parameter, ()):
            found = [weights.find(f"{stem}.{expert}.{part}.weight") for part in parts]
            present = tuple(one for one in found if one is not None)
            if len(present) == len(parts):
                yield WeightPlace(present)


def _embedding(weights: BaseWeights) -> BaseTensor | None:
    """Return the input embedding: among tensors named like an embedding, the one with most rows."""
    names = [name for file in weights.files for name in file.tensors if name.endswith(".weight")]
    found = [weights.find(name) for name in names if is_embedding(name.removesuffix(".weight"))]
    return max((one for one in found if one is not None), key=lambda one: one.info.shape[0], default=None)


def reason_missing(weights: BaseWeights, name: str) -> str:
    """Return the likely reason for which a weight is missing."""
    stem, _, leaf = name.rpartition(".")
    if (kept := weights.find(f"{stem}.base_layer.{leaf}")) is not None:
        return f"has {kept.name} instead of {name}: it was saved with the adapter beside it, not merged"
    packed = (weights.find(f"{stem}.{suffix}") for suffix in _PACKED)
    if (found := next((one for one in packed if one is not None), None)) is not None:
        return f"has {found.name} instead of {name}: it is quantised, and there is not a number to compare"
    return f"has no {name}"


def refusal(weights: BaseWeights, place: WeightPlace) -> str | None:
    """Return the reason for which the tensors cannot be compared, or None."""
    return next((why for found in place.tensors if (why := weights.refusal(found)) is not None), None)


class Copy(NamedTuple):
    """A tensor of the adapter (`key`), its `name` in a model, and the rows that it replaces there (None: all)."""

    key: str
    name: str
    kind: Literal["replacement", "rows"] = "replacement"
    rows: tuple[int, ...] | None = None


def copies_of(adapter: Adapter) -> Iterator[Copy]:
    """Yield the tensors that a merge copies into the model."""
    placed = {key for module in (*adapter.modules, *adapter.base_dependent) for key in module.keys.values()}
    adapted = {module.name for module in adapter.modules}
    for key, role in adapter.roles.items():
        name = key.removeprefix(PREFIX)
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
    found = {}
    for key, role in adapter.roles.items():
        if role == "base_copy" and key.endswith(".base_layer.weight"):
            found[key.removeprefix(PREFIX).removesuffix(".base_layer.weight")] = key
    return found


def _token_rows(adapter: Adapter, path: str) -> tuple[int, ...] | None:
    asked = adapter.config.trainable_token_indices
    if isinstance(asked, dict):
        asked = next((rows for name, rows in asked.items() if f".{path}".endswith(f".{name}")), None)
    return None if asked is None else tuple(asked)


class VerifiedRows:
    """The rows of one adapter, from its base and a merged model.

    `used` are the base's tensors that the adapter accounts for, `touched` those of the merged model.
    """

    def __init__(self, adapter: Adapter, base: BaseWeights, merged: BaseWeights, *, workers: Workers = map) -> None:
        self.touched: set[str] = set()
        self.used: set[str] = set()
        self.ed = self.dd = 0.0
        self.summed_in: Counter[str] = Counter()
        self.dtypes: Counter[str] = Counter()
        self._adapter = adapter
        self._base = base
        self._merged = merged
        self._workers = workers
        self._unknown_base = next(obstacles(adapter, Operation.REPLAY), None)
        self._copies = base_copies(adapter)
        self._places: set[str] = set()

    @property
    def _source(self) -> TensorSource:
        if self._adapter.source is None:
            raise AdapterError("internal error: adapter has no tensor source")
        return self._adapter.source

    def update(self, module: Module) -> list[VerifiedModule]:
        """Return a module's rows: one for its weight, and one for its bias if LoRA has a bias there (lora_bias)."""
        try:
            rows = [self._weight(module)]
        except AdapterError as error:
            rows = [VerifiedModule(name=module.name, verdict="not_compared", reason=str(error))]
        if "lora_B.bias" in module.keys:
            try:
                rows.append(self._bias(module))
            except AdapterError as error:
                rows.append(VerifiedModule(name=f"{module.name}.bias", verdict="not_compared", reason=str(error)))
        return rows

    def _weight(self, module: Module) -> VerifiedModule:
        with ExitStack() as files:
            return self._judged(module, files)

    def _judged(self, module: Module, files: ExitStack) -> VerifiedModule:
        in_base, in_merged = names_of(module, self._adapter)
        m = self._stored(self._merged, in_merged, module.expert, files)
        w = self._before(module, in_base, files)
        if m.name in self._places:
            raise AdapterError(f"another update of the adapter goes to {m.name}, too")
        self._places.add(m.name)
        w, m, delta, note = fitted(module, w, m)
        plain = self._plain(module, w.data.shape) if isinstance(delta, WholeDelta) else None
        case = Case(w.data, m.data, w.dtype, m.dtype, delta, self._workers)
        judged = verdict_on(case, module, plain=plain)
        if judged.verdict in FAILING and w.codes is not None:  # or W was not rounded to the dtype it is computed in
            case = Case(w.codes.whole(), m.data, "F32", m.dtype, delta, self._workers)
            unrounded = verdict_on(case, module, plain=plain)
            judged = judged if unrounded.verdict in FAILING else unrounded
        if judged.verdict in FAILING and self._unknown_base is not None:
            judged = judged._replace(verdict="not_compared", reason=module.note or self._unknown_base.text)
        if m.shared:
            note = f"{in_merged} shares the embedding's matrix"
        told = CodesVerdict(judged, None, None)
        codes = m.codes or w.codes
        if codes is not None:
            every = slice(None)
            update = delta.rows(every)
            told = of_codes(
                w.data[every],
                m.data[every],
                update,
                judged,
                base=w.codes,
                merged=m.codes,
            )
        row = self._row(module.name, told.judged, w, m, note)
        form = None if codes is None else codes.form
        return replace(row, codes=form, lost=_real(told.lost), expected_lost=_real(told.expected))

    def _before(self, module: Module, name: str, files: ExitStack) -> Held:
        """Return W: the base's weight, or its copy in the adapter's file, as for a resized vocabulary."""
        key = self._copies.get(module.name)
        place = find_place(self._base, name, module.expert)
        if place is not None and key is not None:
            self.used.update(found.name for found in place.tensors)
        if key is not None:
            data = self._source.read(key)
            return Held(f"{key} (in the adapter)", self._source.tensors[key].dtype, data.reshape(len(data), -1))
        return self._stored(self._base, name, module.expert, files)

    def _stored(self, weights: BaseWeights, name: str, expert: int | None, files: ExitStack) -> Held:
        """The weight of a parameter, decoded if it is in codes; the tensors that hold it are accounted for."""
        names, whose = (self.touched, "the merged model") if weights is self._merged else (self.used, "the base")
        found = coded(weights, name, expert)
        if found is not None:
            names.update(found.names)
            label = found.name if expert is None else f"{found.name}[{expert}]"
            return Held(label, found.dtype, found.whole().astype(DTYPES[found.dtype]), found)
        place = self._place(weights, name, expert, whose)
        names.update(one.name for one in place.tensors)
        return Held(place.name, place.dtype, stored(place.tensors, place.expert, files), shared=place.shared)

    def _place(self, weights: BaseWeights, name: str, expert: int | None, whose: str) -> WeightPlace:
        place = find_place(weights, name, expert)
        if place is None:
            try:
                refuse_unread(weights, name)
            except UnreadCodesError as error:
                raise AdapterError(f"{whose}: {name} is {error}") from error
            raise AdapterError(f"{whose} {reason_missing(weights, name)}")
        if (why := refusal(weights, place)) is not None:
            raise AdapterError(f"{whose}: {place.name}: {why}")
        return place

    def _plain(self, module: Module, shape: tuple[int, ...]) -> PlainDelta | None:
        """Return s B A of a module whose true update is a function of W; None if the file holds no factors of it."""
        if any(module is one for one in self._adapter.base_dependent):
            return None
        b, a = module.load()
        transposed = (len(b), a.shape[1]) != shape
        return PlainDelta(a.T, b.T, module.scale) if transposed else PlainDelta(b, a, module.scale)

    def _bias(self, module: Module) -> VerifiedModule:
        base, merged = (f"{name.rpartition('.')[0]}.bias" for name in names_of(module, self._adapter))
        w, m = self._vector(self._base, base, "the base"), self._vector(self._merged, merged, "the merged model")
        self.used.add(w.name)
        self.touched.add(m.name)
        update = module.scale * self._source.read(module.keys["lora_B.bias"]).astype(np.float32)
        if update.size != w.data.size or update.size != m.data.size:
            raise AdapterError(f"biases of {update.size}, {w.data.size} and {m.data.size} entries")
        case = Case(w.data, m.data, w.dtype, m.dtype, WholeDelta(update.reshape(1, -1), 1, is_known=True))
        return self._row(f"{module.name}.bias", verdict_on(case, module), w, m, None)

    def _vector(self, weights: BaseWeights, name: str, whose: str) -> Held:
        found = weights.find(name)
        if found is None:
            raise AdapterError(f"{whose} has no {name}")
        if found.info.dtype not in FLOATS:
            raise AdapterError(f"{whose}: {found.name} is stored as {found.info.dtype}")
        return Held(found.name, found.info.dtype, found.file.read(found.name).reshape(1, -1))

    def _row(self, name: str, judged: Judgement, w: Held, m: Held, note: str | None) -> VerifiedModule:
        sums, resolved = judged.sums, judged.verdict != "not_compared"
        if resolved and math.isfinite(sums.ed) and math.isfinite(sums.dd):
            self.ed, self.dd = self.ed + sums.ed, self.dd + sums.dd
        if judged.verdict == "exact" and judged.summed_in is not None:
            self.summed_in[judged.summed_in] += 1
        self.dtypes[f"{w.stored} -> {m.stored}"] += 1
        return VerifiedModule(
            name=name,
            verdict=judged.verdict,
            reason="; ".join(text for text in (judged.reason, note) if text) or None,
            base_tensor=w.name,
            merged_tensor=m.name,
            base_dtype=w.stored,
            merged_dtype=m.stored,
            summed_in=judged.summed_in,
            factor=judged.factor,
            precision=judged.precision,
            without_base_change=judged.without_base_change,
            coefficient=_real(sums.coefficient),
            expected_coefficient=_real(sums.expected),
            residual=_real(sums.residual),
            changed=sums.changed / sums.entries if sums.entries else None,
        )

    def copy(self, copy: Copy) -> VerifiedModule:
        """Return the row of a tensor that the adapter holds whole or in part (some of its rows)."""
        try:
            return self._copy(copy)
        except AdapterError as error:
            return VerifiedModule(name=copy.name, kind=copy.kind, verdict="not_compared", reason=str(error))

    def _copy(self, copy: Copy) -> VerifiedModule:
        place = find_place(self._merged, copy.name)
        if place is None:
            raise AdapterError(f"the merged model has no {copy.name}")
        found, base = place.tensors[0], find_place(self._base, copy.name)
        self.touched.add(found.name)
        if base is not None:
            self.used.add(base.tensors[0].name)
        own = self._source.tensors[copy.key].dtype
        if not {own, found.info.dtype} <= FLOATS:
            raise AdapterError(f"stored as {found.info.dtype}, in the adapter as {own}")
        held, m = self._source.read(copy.key), found.file.read(found.name)
        w = base.tensors[0].file.read(base.tensors[0].name) if base and base.dtype in FLOATS else None
        if copy.kind == "rows":
            m, w = token_rows(m, copy.rows, len(held)), None if w is None else token_rows(w, copy.rows, len(held))
        held, m, note = same_length(held, m, copy.name)
        w = w if w is not None and w.shape == m.shape else None
        result = compare_copy(held, w, m, (own, "" if base is None else base.dtype, found.info.dtype))
        self.dtypes[f"{own} -> {found.info.dtype}"] += 1
        return VerifiedModule(
            name=copy.name,
            kind=copy.kind,
            verdict=result.verdict,
            reason="; ".join(text for text in (result.reason, note) if text) or None,
            base_tensor=None if base is None else base.name,
            merged_tensor=found.name,
            base_dtype=None if base is None else base.dtype,
            merged_dtype=found.info.dtype,
        )

    def skipped(self) -> list[VerifiedModule]:
        """Return rows for the adapter's tensors that are not understood, as `not_compared`."""
        waiting = {module.name for module in self._adapter.base_dependent}
        return [
            VerifiedModule(name=item.name, verdict="not_compared", reason=item.reason)
            for item in self._adapter.skipped
            if item.name not in waiting and item.cause is not LeftoverReason.TRAINING_ONLY
        ]


def _real(value: float | None) -> float | NonFinite | None:
    return None if value is None else real(value)


class Held(NamedTuple):
    """A tensor as a matrix, with its name and dtype."""

    name: str
    dtype: str
    data: Matrix
    codes: Coded | None = None
    """What holds it, if it is stored in codes."""
    shared: bool = False
    """Whether it is the embedding's, asked for as the output layer's."""

    @property
    def stored(self) -> str:
        """The dtype, or the form of the codes."""
        return self.dtype if self.codes is None else self.codes.form


def fitted(module: Module, w: Held, m: Held) -> tuple[Held, Held, Delta, str | None]:
    """Return W, M and dW with one shape, and a note; rows of an extended vocabulary that one of them lacks are cut off.

    Raises:
        AdapterError: their shapes do not fit.
    """
    if w.data.shape == m.data.shape and w.data.shape in {module.shape, module.shape[::-1], (0, 0)}:
        return w, m, delta_of(module, w.data), None
    if module.dense is None and is_embedding(module.name) and w.data.shape[1] == m.data.shape[1] == module.shape[1]:
        counts = (len(w.data), len(m.data), module.shape[0])
        n = min(counts)
        b, a = module.load()
        note = f"rows of base, merged model and adapter: {', '.join(map(str, counts))}: the first {n} are compared"
        w, m = (held._replace(data=head(held.data, n)) for held in (w, m))
        return w, m, PlainDelta(b[:n], a, module.scale), note
    if w.data.shape != m.data.shape:
        raise AdapterError(f"{m.name} is of shape {list(m.data.shape)}, in the base {list(w.data.shape)}")
    return w, m, delta_of(module, w.data), None
