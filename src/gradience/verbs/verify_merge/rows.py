"""One verdict out of many: what every module together says."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple

import numpy as np

from gradience.adapters.kinds.lora import base_changing
from gradience.adapters.layout import PREFIX, Adapter, Array, Module
from gradience.base.weights import BaseWeights
from gradience.errors import AdapterError
from gradience.io.safetensors import TensorSource
from gradience.schema.merge import ModuleVerdict, VerifiedModule, VerifyVerdict
from gradience.schema.scalars import NonFinite, real
from gradience.verbs.verify_merge.delta import (
    FLOATS,
    HALVES,
    UNIT,
    Delta,
    PlainDelta,
    WholeDelta,
    narrower,
    rounded,
    working,
)
from gradience.verbs.verify_merge.judge import Judge, Judgement
from gradience.verbs.verify_merge.measure import Case, Held, Workers, chosen, fitted, in_words, same_length
from gradience.verbs.verify_merge.places import Place, find_place, names_of, read_place, reason_missing, refusal

_FAILING: Final = {
    "absent": "without the update",
    "scaled": "with another factor of it",
    "other": "with something else",
}
_PROVEN: Final = {"exact", "within_rounding"}
_MOST: Final = 5  # reasons of one kind that are named


def concluded(rows: Sequence[VerifiedModule]) -> tuple[VerifyVerdict, list[str]]:
    """Return the verdict of the whole, and why it is not `contained`."""
    failing = [_phrase(rows, verdict, f"{words}") for verdict, words in _FAILING.items() if _named(rows, verdict)]
    if failing:
        return "not_contained", failing
    missed = [row for row in rows if row.verdict == "not_compared"]
    if missed:
        by_reason: dict[str, list[str]] = {}
        for row in missed:
            by_reason.setdefault(row.reason or "", []).append(row.name)
        named = [f"{_first(names)} not compared: {reason}" for reason, names in by_reason.items()]
        more = [f"and {len(named) - _MOST} more reasons"] if len(named) > _MOST else []
        return "inconclusive", [*named[:_MOST], *more]
    if not any(row.verdict in _PROVEN for row in rows):
        reasons = dict.fromkeys(row.reason or "" for row in rows)
        return "inconclusive", [f"no module can tell: {reason}" for reason in reasons]
    return "contained", []


def _named(rows: Sequence[VerifiedModule], verdict: str) -> list[str]:
    return [row.name for row in rows if row.verdict == verdict]


def _phrase(rows: Sequence[VerifiedModule], verdict: str, words: str) -> str:
    names = _named(rows, verdict)
    return f"{len(names)} of {len(rows)} {words} (first: {names[0]})"


def _first(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} (first: {names[0]})"


_TRAINING: Final = "used in training only"  # of tensors that no merge knows
_ROWS_FAILING: Final = {"absent", "scaled", "other"}


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
        if any(module is one for one in self._adapter.base_dependent):
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
        waiting = {module.name for module in self._adapter.base_dependent}
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
    if judged.verdict in _ROWS_FAILING and (changed or adapter.config.use_qalora):
        return judged._replace(verdict="not_compared", reason=module.note or "its base was changed at the start")
    return judged


_SPAN: Final = 1 << 20  # entries that are cast at a time
_LEAST: Final = 2.0**-25  # half of float16's least step
_SAVED: Final = re.compile(r"\.modules_to_save(?:\.[^.]+)?(?=\.[^.]+$)")
_ROWS: Final = re.compile(r"\.token_adapter\.trainable_tokens_delta(?:\.[^.]+)?$")


class Copy(NamedTuple):
    """A tensor of the adapter, the name it has in a model, and which rows it replaces there (None: all)."""

    key: str
    name: str
    kind: Literal["replacement", "rows"] = "replacement"
    rows: tuple[int, ...] | None = None


class Copied(NamedTuple):
    """What was found of one; fields as of `VerifiedModule`."""

    verdict: ModuleVerdict
    reason: str | None = None


def copies_of(adapter: Adapter) -> Iterator[Copy]:
    """Return the tensors that a merge copies into the model."""
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
    """Return the adapted modules whose base weight is in the adapter's file, and the tensor there."""
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


def compare_copy(held: Array, w: Array | None, m: Array, dtypes: tuple[str, str | None, str]) -> Copied:
    """Return whether M holds the adapter's values.

    Args:
        held: the adapter's.
        w: the base's, of the same shape; None where it has none.
        m: the merged model's.
        dtypes: safetensors' names of the three dtypes.
    """
    seen = _Seen(dtypes, None if w is None else w.reshape(-1))
    held, m = held.reshape(-1), m.reshape(-1)
    for start in range(0, len(held), _SPAN):
        if not seen.look(held, m, slice(start, start + _SPAN)):
            return Copied("other", reason="the merged tensor holds NaN or infinite numbers")
    return seen.verdict()


class _Seen:
    """What still holds of a tensor that is gone through span by span."""

    def __init__(self, dtypes: tuple[str, str | None, str], w: Array | None) -> None:
        own, base, self._merged = dtypes
        self._kind = working(own, self._merged)
        self._w = w if base in FLOATS else None
        self._through = list(dict.fromkeys((self._merged, own, *HALVES)))
        self._from_base = list(dict.fromkeys((self._merged, *HALVES))) if self._w is not None else []
        self._near = True
        self._left = self._size = 0.0

    def look(self, held: Array, m: Array, at: slice) -> bool:
        """Return whether M is finite there, and drop what no longer holds."""
        x, y = held[at].astype(self._kind), m[at].astype(self._kind)
        if not np.isfinite(y).all():
            return False
        self._through = [t for t in self._through if np.array_equal(y, _cast(x, t, self._merged))]
        if self._from_base and self._w is not None:
            w = self._w[at].astype(self._kind)
            self._from_base = [t for t in self._from_base if np.array_equal(y, _cast(w, t, self._merged))]
        left = np.abs(y - x)
        self._near = self._near and bool(np.all(left <= 2.0 * UNIT[self._merged] * np.abs(x) + _LEAST))
        self._left, self._size = self._left + float(np.vdot(left, left)), self._size + float(np.vdot(x, x))
        return True

    def verdict(self) -> Copied:
        if self._through and self._from_base:
            return Copied("unresolved", reason="the adapter's values are the base's")
        if self._through:
            return Copied("exact")
        if self._from_base:
            return Copied("absent")
        if self._near:
            return Copied("within_rounding")
        relative = math.sqrt(self._left / self._size) if self._size > 0.0 else math.inf
        return Copied("other", reason=f"norm(M - saved) / norm(saved): {relative:.3g}")


def _cast(x: Array, through: str, merged: str) -> Array:
    x = rounded(x, through)
    return rounded(x, merged) if narrower(merged, through) else x
