"""The verb `verify-merge`: check that a merged model contains an adapter, with one tensor in memory at a time.

Every module of the adapter gets its own verdict. Together the verdicts decide whether the model contains the adapter.
Tensors that the adapter does not touch are compared with the base's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np

from gradience.adapters.layout import Adapter
from gradience.adapters.open import open_adapter
from gradience.base.coded import Coded, coded
from gradience.base.weights import BaseTensor, BaseWeights, find_shards
from gradience.errors import AdapterError
from gradience.io import PathLike, Progress
from gradience.io.safetensors import DTYPES
from gradience.prove.verify_merge.delta import FLOATS
from gradience.prove.verify_merge.judge import FAILING
from gradience.prove.verify_merge.measure import blocks, is_cast, relative_change
from gradience.prove.verify_merge.rows import VerifiedRows, copies_of
from gradience.schema import real
from gradience.schema.merge import (
    VERIFY_MERGE_SCHEMA_ID,
    MergedAnswers,
    OtherTensor,
    VerifiedModule,
    VerifyMergeReport,
    VerifyVerdict,
)

_PROVEN: Final = {"exact", "within_rounding"}
_BLOCK: Final = 1 << 19  # bytes that are compared at a time; they fit in a processor's cache
_MOST: Final = 5  # reasons that are named; further ones are counted


def verify_merged(
    base: PathLike,
    adapter: PathLike,
    merged: PathLike,
    *,
    adapter_config: PathLike | None = None,
    weights: PathLike | None = None,
    receipt: PathLike | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> VerifyMergeReport:
    """Return whether a merged model contains an adapter, from the three sets of files alone.

    Each tensor M of the merged model is first compared, bit for bit, with W + dW of the base's W and the adapter's dW,
    rounded to float32 or to M's own dtype. If that does not fit, M is compared with W + dW within the rounding bound of
    the dtypes, with W, and with W + f dW. Heads and biases that the adapter holds whole are
    compared directly. Tensors that the adapter does not touch are compared with the base's. Weights in codes
    are compared as the codes give them back. Outputs are compared with a receipt's only, if one is given.

    Args:
        base: the base model: a folder with safetensors, or organisation/name in the hub's local cache.
        adapter: the folder that PEFT (or MLX-LM, kohya, diffusers) saved, or its weights file.
        merged: the merged model, in the same forms as `base`.
        adapter_config: the adapter_config.json, if it is not beside the weights.
        weights: the weights file, if it has an unusual name.
        receipt: a file of `gradience receipt`, to ask the merged model for the same; it is loaded by transformers.
        threads: the number of threads; more than one is faster only if BLAS has one (OPENBLAS_NUM_THREADS=1).
        progress: called with (tensors done, tensors in all, the tensor's name).

    Raises:
        AdapterError: base, adapter or merged model cannot be read, or the adapter has nothing that a merge would add.
        ConfigError: the receipt cannot be read.
    """
    files, held = open_adapter(adapter, adapter_config=adapter_config, weights=weights)
    before = BaseWeights(find_shards(Path(base)))
    if held.by_peft and "not_analysed" in held.roles.values():  # trained rows of an embedding are copied, not merged
        from gradience.models.merged import with_merges  # torch, only where PEFT has to merge

        held = with_merges(held, files.config, before)
    after = _merged_weights(Path(merged))
    shown = progress or (lambda _done, _total, _name: None)
    with ThreadPoolExecutor(max(1, threads)) as pool:
        rows = VerifiedRows(held, before, after, workers=pool.map if threads > 1 else map)
        found = _judged(held, rows, shown, extra=sum(len(file.tensors) for file in after.files))
        rest = Rest(before, after, touched=rows.touched, used=rows.used)
        done, total = len(found), len(found) + len(rest.names)
        others = list(rest.compare(lambda name: shown(done + rest.compared, total, name)))
    shown(total, total, "")
    found += rows.skipped()
    verdict, reasons = concluded(found)
    return VerifyMergeReport(
        schema=VERIFY_MERGE_SCHEMA_ID,
        base=str(base),
        adapter=str(adapter),
        merged=str(merged),
        verdict=verdict,
        reasons=reasons,
        counts=dict(Counter(row.verdict for row in found).most_common()),
        coefficient=real(rows.ed / rows.dd) if rows.dd > 0.0 else None,
        summed_in=dict(rows.summed_in),
        dtypes=dict(rows.dtypes),
        modules=found,
        untouched=rest.compared,
        others=others,
        answers=None if receipt is None else _answers(receipt, merged),
        notes=held.notes,
    )


def _answers(receipt: PathLike, merged: PathLike) -> MergedAnswers:
    from gradience.prove.receipt import read_receipt, verify_served  # torch, late

    read_receipt(receipt)
    try:
        told = verify_served(receipt, str(merged))
    except AdapterError as error:  # in codes, for one, it is loaded by bitsandbytes only
        return MergedAnswers(receipt=str(receipt), verdict="cannot_tell", story=f"The merged model is not run: {error}")
    return MergedAnswers(receipt=str(receipt), verdict=told.verdict, story=told.story, residual=told.residual)


def _judged(adapter: Adapter, rows: VerifiedRows, shown: Progress, *, extra: int) -> list[VerifiedModule]:
    """Return a row for each module, and for each tensor that the adapter holds whole.

    `extra` is the number of tensors of the merged model, for the progress.

    Raises:
        AdapterError: the adapter has no module and no such tensor.
    """
    modules, copies = [*adapter.modules, *adapter.base_dependent], list(copies_of(adapter))
    if not modules and not copies:
        why = adapter.skipped[0].reason if adapter.skipped else "it holds no tensor"
        raise AdapterError(
            f"the adapter holds nothing that a merge would add: {why}", advice="'gradience audit' says what it holds"
        )
    total = max(extra, len(modules) + len(copies))
    found: list[VerifiedModule] = []
    for module in modules:
        shown(len(found), total, module.name)
        found += rows.update(module)
    for copy in copies:
        shown(len(found), total, copy.name)
        found.append(rows.copy(copy))
    return found


def _merged_weights(path: Path) -> BaseWeights:
    try:
        return BaseWeights(find_shards(path))
    except AdapterError as error:
        raise AdapterError(f"the merged model: {error}", advice=error.advice) from error


def concluded(rows: Sequence[VerifiedModule]) -> tuple[VerifyVerdict, list[str]]:
    """Return the verdict on the whole model, and the reasons if it is not `contained`."""
    failing = [_phrase(rows, verdict, words) for verdict, words in FAILING.items() if _named(rows, verdict)]
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


class Rest:
    """The tensors of base and merged model that the adapter does not touch, compared one after the other."""

    def __init__(self, base: BaseWeights, merged: BaseWeights, *, touched: set[str], used: set[str]) -> None:
        """Take the names of tensors that are already compared: `touched` in the merged model, `used` in the base."""
        self._base, self._merged = base, merged
        self.names = [name for file in merged.files for name in file.tensors if name not in touched]
        self._held = {name for file in base.files for name in file.tensors}
        self._left = {name: None for file in base.files for name in file.tensors if name not in used}
        self._prefixes = {pair for name in (*touched, *self.names) if (pair := self._prefix(name)) is not None}
        self.compared = 0

    def _prefix(self, name: str) -> tuple[str, str] | None:
        """Return (prefix of the merged model's name, prefix of the base's) if one name is the other with a prefix."""
        found = self._base.find(name)
        if found is None or found.name == name:
            return None
        if name.endswith(found.name):
            return name.removesuffix(found.name), ""
        return ("", found.name.removesuffix(name)) if found.name.endswith(name) else None

    def _in_base(self, name: str) -> BaseTensor | None:
        """Return the base's tensor of that name, or of the name with its prefix changed as for another tensor."""
        renamed = (f"{own}{name.removeprefix(dropped)}" for dropped, own in self._prefixes)
        known = next((one for one in (name, *renamed) if one in self._held), None)
        return self._base.find(known or name)

    def _in_codes(self, name: str, m: BaseTensor, w: BaseTensor | None) -> Coded | None:
        """The base's weight of that name, if it is in codes there and in floats in the merged model."""
        if m.info.dtype not in FLOATS or (w is not None and w.info.dtype in FLOATS):
            return None
        try:
            found = coded(self._base, name)
        except AdapterError:
            return None  # the tensor's own comparison names it
        return found if found is not None and found.shape == m.info.shape else None

    def compare(self, progress: Callable[[str], None]) -> Iterator[OtherTensor]:
        """Yield the tensors that differ, are added or missing, or cannot be compared."""
        for name in self.names:
            progress(name)
            m, w = self._merged.find(name), self._in_base(name)
            if m is not None and (codes := self._in_codes(name, m, w)) is not None:
                self._left = {one: None for one in self._left if one not in codes.names}
                self.compared += 1
                relative = _from_codes(codes, m)
                if relative is not None:
                    yield OtherTensor(name=name, what="changed", relative_change=real(relative))
                continue
            if m is None or w is None:
                yield OtherTensor(name=name, what="added")
                continue
            self._left.pop(w.name, None)
            self.compared += 1
            try:
                relative = _difference(w, m)
            except AdapterError as error:
                yield OtherTensor(name=name, what="not_compared", reason=str(error))
                continue
            if relative is not None:
                yield OtherTensor(name=name, what="changed", relative_change=real(relative))
        for name in self._left:
            yield OtherTensor(name=name, what="missing")


def _from_codes(w: Coded, m: BaseTensor) -> float | None:
    """Return norm(M - W) / norm(W), or None if M is W as its codes give it back, rounded to M's dtype, or before."""
    exact, held = w.whole(), m.file.read(m.name)
    if any(np.array_equal(x.astype(held.dtype), held) for x in (exact, exact.astype(DTYPES[w.dtype]))):
        return None
    return relative_change(exact, held, "F32", m.info.dtype)


def _difference(w: BaseTensor, m: BaseTensor) -> float | None:
    """Return norm(M - W) / norm(W), or None if M is a copy or a cast of W.

    Raises:
        AdapterError: the tensors cannot be compared.
    """
    if w.info.shape != m.info.shape:
        raise AdapterError(f"of shape {list(m.info.shape)}, in the base {list(w.info.shape)}")
    own, merged = w.info.dtype, m.info.dtype
    if own == merged:
        if _same_bytes(w, m):
            return None
        if own not in DTYPES:
            raise AdapterError(f"its bytes are others, and {own} is not read as numbers")
        if own not in FLOATS:  # integers and quantised codes are compared as float64 numbers
            return relative_change(w.file.read(w.name), m.file.read(m.name), "F64", "F64")
    if not {own, merged} <= FLOATS:
        raise AdapterError(f"stored as {merged}, in the base as {own}")
    x, y = w.file.read(w.name), m.file.read(m.name)
    return None if is_cast(lambda: blocks(x, y, own, merged), merged) else relative_change(x, y, own, merged)


def _same_bytes(w: BaseTensor, m: BaseTensor) -> bool:
    """Return whether two tensors of one size have equal bytes. Comparing 8 bytes at once is 15 times as fast."""
    size = w.info.nbytes
    with w.file.reader(w.name) as before, m.file.reader(m.name) as after:
        for start in range(0, size, _BLOCK):
            count = min(_BLOCK, size - start)
            x, y = np.empty(count, np.uint8), np.empty(count, np.uint8)
            before.into(start, x)
            after.into(start, y)
            whole = count // 8 * 8
            same = np.array_equal(x[:whole].view(np.uint64), y[:whole].view(np.uint64))
            if not (same and np.array_equal(x[whole:], y[whole:])):
                return False
    return True
