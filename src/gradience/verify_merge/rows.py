"""The rows of a report: what an adapter changes, looked up in both models and judged."""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

import numpy as np

from gradience.adapters.lora import base_changing
from gradience.adapters.modules import Adapter, Array, Module
from gradience.adapters.tensors import TensorSource
from gradience.base.weights import BaseWeights
from gradience.errors import AdapterError
from gradience.schema.scalars import NonFinite, real
from gradience.schema.verify_merge import VerifiedModule
from gradience.verify_merge.copies import Copy, base_copies, compare_copy
from gradience.verify_merge.delta import Delta, PlainDelta, WholeDelta
from gradience.verify_merge.dtypes import FLOATS
from gradience.verify_merge.judge import Judge, Judgement
from gradience.verify_merge.measure import Case, Workers
from gradience.verify_merge.places import Place, find_place, names_of, read_place, reason_missing, refusal
from gradience.verify_merge.replay import in_words
from gradience.verify_merge.shapes import Held, chosen, fitted, same_length

__all__ = ["Rows"]

_TRAINING: Final = "used in training only"  # of tensors that no merge knows
_FAILING: Final = {"absent", "scaled", "other"}


class Rows:
    """One adapter between two models. `touched` and `used` are the tensors that it accounts for in each."""

    def __init__(self, adapter: Adapter, base: BaseWeights, merged: BaseWeights, *, workers: Workers = map) -> None:
        self.touched: set[str] = set()
        self.used: set[str] = set()
        self.ed = self.dd = 0.0
        self.replays: Counter[str] = Counter()
        self.dtypes: Counter[str] = Counter()
        self._adapter = adapter
        self._base = base
        self._merged = merged
        self._judge = Judge()
        self._workers = workers
        self._copies = base_copies(adapter)
        self._places: set[str] = set()

    @property
    def _source(self) -> TensorSource:
        if self._adapter.source is None:
            raise AdapterError("the adapter's tensors are not at hand")
        return self._adapter.source

    def update(self, module: Module) -> list[VerifiedModule]:
        """Return the rows of a module: of its weight, and of its bias where LoRA has one."""
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
        in_base, in_merged = names_of(module, self._adapter)
        after = self._place(self._merged, in_merged, module.expert, "the merged model")
        self.touched.update(found.name for found in after.tensors)
        w = self._before(module, in_base)
        if after.name in self._places:
            raise AdapterError(f"another update of the adapter goes to {after.name}, too")
        self._places.add(after.name)
        m = Held(after.name, after.dtype, read_place(self._merged, after))
        w, m, delta, note = fitted(module, w, m)
        plain = self._plain(module, w.data) if isinstance(delta, WholeDelta) else None
        case = Case(w.data, m.data, w.dtype, m.dtype, delta, self._workers)
        judged = _unless_base_unknown(self._judge.verdict(case, module, plain=plain), module, self._adapter)
        if after.shared:
            note = f"{in_merged} shares the embedding's matrix"
        return self._row(module.name, judged, w, m, note)

    def _before(self, module: Module, name: str) -> Held:
        """Return W: the base's, or the copy of it that the adapter's file holds (a vocabulary that was resized)."""
        key = self._copies.get(module.name)
        place = find_place(self._base, name, module.expert)
        if place is not None:
            self.used.update(found.name for found in place.tensors)
        if key is not None:
            data = self._source.read(key)
            return Held(f"{key} (in the adapter)", self._source.tensors[key].dtype, data.reshape(len(data), -1))
        place = self._place(self._base, name, module.expert, "the base")
        return Held(place.name, place.dtype, read_place(self._base, place))

    def _place(self, weights: BaseWeights, name: str, expert: int | None, whose: str) -> Place:
        place = find_place(weights, name, expert)
        if place is None:
            raise AdapterError(f"{whose} {reason_missing(weights, name)}")
        if (why := refusal(weights, place)) is not None:
            raise AdapterError(f"{whose}: {place.name}: {why}")
        return place

    def _plain(self, module: Module, w: Array) -> Delta | None:
        """Return s B A, where the true update is a function of W and the file holds factors."""
        if any(module is one for one in self._adapter.needs_base):
            return None
        b, a = module.load()
        turned = (len(b), a.shape[1]) != w.shape
        return PlainDelta(a.T, b.T, module.scale) if turned else PlainDelta(b, a, module.scale)

    def _bias(self, module: Module) -> VerifiedModule:
        base, merged = (f"{name.rpartition('.')[0]}.bias" for name in names_of(module, self._adapter))
        w, m = self._vector(self._base, base, "the base"), self._vector(self._merged, merged, "the merged model")
        self.used.add(w.name)
        self.touched.add(m.name)
        update = module.scale * self._source.read(module.keys["lora_B.bias"]).astype(np.float32)
        if update.size != w.data.size or update.size != m.data.size:
            raise AdapterError(f"biases of {update.size}, {w.data.size} and {m.data.size} entries")
        case = Case(w.data, m.data, w.dtype, m.dtype, WholeDelta(update.reshape(1, -1), 1))
        return self._row(f"{module.name}.bias", self._judge.verdict(case, module), w, m, None)

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
        if judged.replay is not None:
            self.replays[in_words(judged.replay, m.dtype)] += 1
        self.dtypes[f"{w.dtype} -> {m.dtype}"] += 1
        return VerifiedModule(
            name=name,
            verdict=judged.verdict,
            reason="; ".join(text for text in (judged.reason, note) if text) or None,
            base_tensor=w.name,
            merged_tensor=m.name,
            base_dtype=w.dtype,
            merged_dtype=m.dtype,
            replay=judged.replay,
            factor=judged.factor,
            precision=judged.precision,
            coefficient=_real(sums.coefficient),
            expected_coefficient=_real(sums.expected),
            residual=_real(sums.residual),
            changed=sums.changed / sums.entries if sums.entries else None,
        )

    def copy(self, copy: Copy) -> VerifiedModule:
        """Return the row of a tensor that the adapter holds whole, or of which it holds rows."""
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
            m, w = chosen(m, copy.rows, len(held)), None if w is None else chosen(w, copy.rows, len(held))
        held, m, note = same_length(held, m, copy.name)
        w = w if w is not None and w.shape == m.shape else None
        result = compare_copy(held, w, m, (own, None if base is None else base.dtype, found.info.dtype))
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
        """Return rows for what the adapter holds beside, and that is not understood."""
        waiting = {module.name for module in self._adapter.needs_base}
        return [
            VerifiedModule(name=item.name, verdict="not_compared", reason=item.reason)
            for item in self._adapter.skipped
            if item.name not in waiting and item.reason != _TRAINING
        ]


def _real(value: float | None) -> float | NonFinite | None:
    return None if value is None else real(value)


def _unless_base_unknown(judged: Judgement, module: Module, adapter: Adapter) -> Judgement:
    """Return the verdict, or none where the adapter's start changed the base in a way that is not known here."""
    changed = base_changing(adapter.config.init_lora_weights) is not None and module.dense is None
    if judged.verdict in _FAILING and (changed or adapter.config.use_qalora):
        return judged._replace(verdict="not_compared", reason=module.note or "its base was changed at the start")
    return judged
