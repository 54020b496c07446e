"""The verb `verify` on a merged model: does it contain an adapter? One tensor is in memory at a time.

Every module of the adapter gets its own verdict. Together the verdicts decide whether the model contains the adapter.
Tensors that the adapter does not touch are compared with the base's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gradience.base.weights import BaseWeights, find_shards
from gradience.errors import AdapterError
from gradience.io import PathLike, Progress
from gradience.rewriting.sides import open_stored
from gradience.rules import judge
from gradience.rules.merged import MERGED_RULES
from gradience.schema import Real, real
from gradience.schema.merge import (
    VERIFY_MERGED_SCHEMA_ID,
    MergedAnswers,
    VerifiedModule,
    VerifyMergedReport,
    VerifyVerdict,
)
from gradience.verbs.verify.judge import FAILING
from gradience.verbs.verify.loads import read_merged
from gradience.verbs.verify.rows import Sources, TensorVerdict, left_over, opened, tasks_of
from gradience.verbs.verify.untouched import Untouched

_PROVEN: Final = {"exact", "within_rounding"}
_MOST: Final = 5  # reasons that are named; further ones are counted


def verify_merged(
    base: PathLike,
    adapter: PathLike,
    merged: PathLike,
    *,
    adapter_config: PathLike | None = None,
    weights: PathLike | None = None,
    receipt: PathLike | None = None,
    progress: Progress | None = None,
) -> VerifyMergedReport:
    """Return whether a merged model contains an adapter, from the three sets of files alone.

    Each tensor M of the merged model is first compared, bit for bit, with W + dW of the base's W and the adapter's dW,
    rounded to float32 or to M's own dtype. If that does not fit, M is compared with W + dW within the rounding bound of
    the dtypes, with W, and with W + f dW. Heads and biases that the adapter holds whole are
    compared directly. Tensors that the adapter does not touch are compared with the base's. Weights in codes
    are compared as the codes give them back. Outputs are compared with a receipt's only, if one is given. Whether the
    folder would load as it is, its findings say.

    Args:
        base: the base model: a folder with safetensors, or organisation/name in the hub's local cache.
        adapter: the folder that PEFT (or MLX-LM, kohya, diffusers) saved, or its weights file.
        merged: the merged model, in the same forms as `base`.
        adapter_config: the adapter_config.json, if it is not beside the weights.
        weights: the weights file, if it has an unusual name.
        receipt: a file of `gradience receipt`, to ask the merged model for the same; it is loaded by transformers.
        progress: called with (tensors done, tensors in all, the tensor's name).

    Raises:
        AdapterError: base, adapter or merged model cannot be read, or the adapter has nothing that a merge would add.
        ConfigError: the receipt cannot be read.
    """
    stored = open_stored(adapter, adapter_config=adapter_config, weights=weights)
    files, opened_adapter = stored.files, stored.adapter
    before = BaseWeights(find_shards(Path(base)))
    if (
        opened_adapter.by_peft and "not_analysed" in opened_adapter.roles.values()
    ):  # trained rows of an embedding are copied, not merged
        from gradience.models.merged import with_merges  # torch, only where PEFT has to merge

        opened_adapter = with_merges(opened_adapter, files.config, before)
    after = _merged_weights(Path(merged))
    shown = progress or (lambda _done, _total, _name: None)
    sources = opened(opened_adapter, before, after)
    rows = _judged(sources, shown)
    untouched = Untouched(sources.base, sources.merged)
    total = len(rows) + len(untouched.names)
    others = list(untouched.compare(lambda name: shown(len(rows) + untouched.compared, total, name)))
    shown(total, total, "")
    rows += left_over(opened_adapter)
    modules = [row.told for row in rows]
    verdict, reasons = concluded(modules)
    loads = judge(MERGED_RULES, read_merged(after, before, stored))
    return VerifyMergedReport(
        schema=VERIFY_MERGED_SCHEMA_ID,
        base=str(base),
        adapter=str(adapter),
        merged=str(merged),
        verdict=verdict,
        reasons=reasons,
        counts=dict(Counter(row.verdict for row in modules).most_common()),
        coefficient=_coefficient(rows),
        summed_in=dict(Counter(row.summed_in for row in modules if row.verdict == "exact" and row.summed_in)),
        dtypes=dict(Counter(f"{row.base_dtype} -> {row.merged_dtype}" for row in modules if row.base_dtype)),
        modules=modules,
        untouched=untouched.compared,
        others=others,
        answers=None if receipt is None else _answers(receipt, merged),
        findings=loads.findings,
        not_run=loads.not_run,
        notes=opened_adapter.notes,
    )


def _coefficient(rows: Sequence[TensorVerdict]) -> Real | None:
    """Return <M - W, dW> / |dW|^2 over all updates that were compared."""
    sums = [row.sums for row in rows if row.told.verdict != "not_compared"]
    finite = [(one.ed, one.dd) for one in sums if math.isfinite(one.ed) and math.isfinite(one.dd)]
    ed, dd = map(sum, zip(*finite, strict=True)) if finite else (0.0, 0.0)
    return real(ed / dd) if dd > 0.0 else None


def _answers(receipt: PathLike, merged: PathLike) -> MergedAnswers:
    from gradience.verbs.receipt.run import read_receipt, verify_served  # torch, late

    read_receipt(receipt)
    try:
        report = verify_served(receipt, str(merged))
    except AdapterError as error:  # in codes, for one, it is loaded by bitsandbytes only
        story = f"The merged model is not run: {error.message}"
        return MergedAnswers(receipt=str(receipt), verdict="cannot_tell", story=story)
    return MergedAnswers(receipt=str(receipt), verdict=report.verdict, story=report.story, residual=report.residual)


def _judged(sources: Sources, shown: Progress) -> list[TensorVerdict]:
    """Return a row for each module, and for each tensor that the adapter holds whole.

    Raises:
        AdapterError: the adapter has no module and no such tensor.
    """
    tasks = list(tasks_of(sources))
    if not tasks:
        why = next((item.reason for item in sources.adapter.skipped), "it holds no tensor")
        raise AdapterError(
            f"the adapter holds nothing that a merge would add: {why}", advice="'gradience audit' says what it holds"
        )
    total, rows = max(len(tasks), len(sources.merged.weights.names)), []
    for done, task in enumerate(tasks):
        shown(done, total, task.name)
        rows.append(task.row())
    return rows


def _merged_weights(path: Path) -> BaseWeights:
    try:
        return BaseWeights(find_shards(path))
    except AdapterError as error:
        raise AdapterError(f"the merged model: {error.message}", advice=error.advice) from error


def concluded(rows: Sequence[VerifiedModule]) -> tuple[VerifyVerdict, list[str]]:
    """Return the verdict on the whole model, and the reasons if it is not `contained`."""
    by_verdict: dict[str, list[VerifiedModule]] = {}
    for row in rows:
        by_verdict.setdefault(row.verdict, []).append(row)
    failing = [
        f"{len(members)} of {len(rows)} {words} (first: {members[0].name})"
        for verdict, words in FAILING.items()
        if (members := by_verdict.get(verdict))
    ]
    if failing:
        return "not_contained", failing
    if missed := by_verdict.get("not_compared"):
        by_reason: dict[str, list[str]] = {}
        for row in missed:
            by_reason.setdefault(row.reason or "", []).append(row.name)
        named = [f"{_first(names)} not compared: {reason}" for reason, names in by_reason.items()]
        more = [f"and {len(named) - _MOST} more reasons"] if len(named) > _MOST else []
        return "inconclusive", [*named[:_MOST], *more]
    if not _PROVEN & by_verdict.keys():
        return "inconclusive", [f"no module can tell: {reason}" for reason in {row.reason or "": None for row in rows}]
    return "contained", []


def _first(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} (first: {names[0]})"
