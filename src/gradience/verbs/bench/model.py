"""The built-in evaluation of a causal model or a classifier: loss, accuracy, exact match, and how outputs differ.

Every example is scored in one forward pass. Exact match under greedy decoding is found without decoding: the completion
is reproduced if and only if each of its tokens is the most probable one after the tokens before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from gradience.adapters.open import open_adapter
from gradience.errors import ConfigError, GradienceError
from gradience.models import FIRST, LoadedModel, active, drop_adapter, load_adapter, load_model
from gradience.models.inputs import Batch, Example, Inputs, batches, read_inputs
from gradience.schema.scalars import real
from gradience.verbs.bench.store import Evaluation

if TYPE_CHECKING:
    from gradience.models.outputs import Reference, Scored

BuiltIn: TypeAlias = Literal["loss", "accuracy", "exact-match"]

_OTHER: Final = "candidate"  # the name in PEFT of the adapter beside the reference
_ALL: Final = 1 << 40  # inputs


def default_metric(adapter: Path) -> BuiltIn:
    """Return `accuracy` if the adapter's config says that the model is a classifier, else `loss`."""
    _, opened = open_adapter(adapter)
    return "accuracy" if opened.config.task_type in {"SEQ_CLS", "TOKEN_CLS"} else "loss"


class ModelEvaluator:
    """Scores adapters on one file of rows, and compares them with a reference. The model is loaded when needed."""

    def __init__(self, metric: BuiltIn, *, base: str, data: Path, longest: int, of: dict[str, Any]) -> None:
        self.name: str = metric
        self.higher_is_better = metric != "loss"
        self.of = {"built_in": metric, "longest": longest, **of}
        self._metric = metric
        self._base = base
        self._data = data
        self._longest = longest
        self._held: _Held | None = None

    def evaluate(self, adapter: Path, reference: Path | None) -> Evaluation:
        """The scores of an adapter, and the KL divergence and flips from the reference, if there is one.

        Raises:
            GradienceError: the base does not fit, the data cannot be read or have no labels, or torch is missing.
        """
        first = adapter if reference is None else reference
        if self._held is None or self._held.reference != first:
            self._held = None  # freed first, because two models may not fit in memory
            self._held = _Held(first, self._base, self._data, self._longest)
        rows = self._held.scored(None if reference is None else adapter)
        return self._evaluation(rows, compared=reference is not None)

    def _evaluation(self, rows: Sequence[Scored], *, compared: bool) -> Evaluation:
        from gradience.models.outputs import divergence  # noqa: PLC0415  # imports torch, which is loaded by now

        known = sorted((row for row in rows if row.known), key=lambda row: row.place)
        if self._metric == "exact-match":
            scores, weights = [float(row.hits == row.known) for row in known], [1.0] * len(known)
        else:
            sums = [row.loss if self._metric == "loss" else float(row.hits) for row in known]
            scores = [value / row.known for value, row in zip(sums, known, strict=True)]
            weights = [float(row.known) for row in known]
        apart = divergence(rows) if compared else None
        return Evaluation(
            unit="example",
            scores=[real(score) for score in scores],
            weights=weights,
            kl=None if apart is None else real(apart.kl),
            flips=None if apart is None else apart.flips,
            notes=self._held.notes if self._held is not None else [],
        )


class _Held:
    """A loaded model with the reference adapter, and the data as tokens."""

    def __init__(self, reference: Path, base: str, data: Path, longest: int) -> None:
        self.reference = reference
        self._loaded = load_model(base, reference)
        read = read_inputs(data, self._loaded, most=_ALL, longest=longest)
        found = read._replace(examples=list(dict.fromkeys(read.examples)))  # a repeated example adds no information
        _refuse_unlabelled(data, found, self._loaded)
        self.notes = _notes(data, found)
        from gradience.models.outputs import Reference, tokens_within  # noqa: PLC0415  # imports torch, loaded by now

        self._examples: list[Example] = found.examples
        self._parts: list[Batch] = batches(found.examples, tokens=tokens_within(self._loaded), pad=self._loaded.pad)
        self._outputs: Reference = Reference(self._loaded)

    def scored(self, adapter: Path | None) -> list[Scored]:
        """The scores of an adapter, compared with the reference; None scores the reference itself."""
        from gradience.models.outputs import scored  # noqa: PLC0415  # as above

        if adapter is None:
            return list(scored(self._loaded, self._examples, self._parts))
        load_adapter(self._loaded, adapter, _OTHER)
        try:
            with active(self._loaded, FIRST):
                return list(
                    scored(
                        self._loaded,
                        self._examples,
                        self._parts,
                        reference=self._outputs,
                        state=lambda: active(self._loaded, _OTHER),
                    )
                )
        finally:
            drop_adapter(self._loaded, _OTHER)


def _refuse_unlabelled(data: Path, found: Inputs, loaded: LoadedModel) -> None:
    """Refuse data on which scores would say nothing.

    Raises:
        ConfigError: there are no examples, or a classifier's examples have no label, an unknown one, or all the same.
        GradienceError: the model is a token classifier.
    """
    if not found.examples:
        raise ConfigError(f"{data} has no example with a prediction to score", advice="give held-out examples")
    if loaded.task == "token-classification":
        raise GradienceError("token classification is not scored here", advice="give a command as --metric")
    if loaded.task != "sequence-classification":
        return
    names = getattr(loaded.config, "label2id", None) or {}
    classes = int(loaded.config.num_labels)
    seen = set()
    for example in found.examples:
        label = names.get(example.label) if isinstance(example.label, str) else example.label
        if label is None or not 0 <= label < classes:
            raise ConfigError(
                f"{data}: a row has the label {example.label!r}, expected a number from 0 to {classes - 1}"
                + (f", or one of {', '.join(names)}" if names else ""),
                advice="give rows with text and label",
            )
        seen.add(label)
    if len(seen) == 1:
        raise ConfigError(
            f"{data} has rows of one class only ({seen.pop()}): accuracy on them says nothing",
            advice="give held-out rows of all classes",
        )


def _notes(data: Path, found: Inputs) -> list[str]:
    notes = []
    if found.found > len(found.examples):
        left = found.found - len(found.examples)
        notes.append(f"{data.name}: {left} rows are left out: they repeat another, or have no prediction to score")
    if found.cut:
        notes.append(f"{data.name}: {found.cut} rows are longer than the model or --max-length, and were cut")
    return notes
