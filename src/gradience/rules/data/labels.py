"""Rules on labels: their balance, their range, and whether there is more than one."""

from __future__ import annotations

from collections.abc import Iterator

from gradience.rules.data.rows import counted, values
from gradience.rules.rule import Observation, Rule, Threshold, Unknown
from gradience.schema.data import DataReport
from gradience.schema.findings import Evidence

MAJORITY = Threshold("majority", 0.9, "share of rows", "proposal: guessing one class is right in 9 of 10")
FEW_LABELS = Threshold("few_labels", 20, "rows", "proposal: fewer are no sample")


def _labelled(data: DataReport) -> str | None:
    return None if data.labels else "the rows have no label"


def _balance(data: DataReport) -> Iterator[Observation]:
    if data.rows_read < FEW_LABELS.value:
        raise Unknown(f"{data.rows_read} rows, under {FEW_LABELS.value:g}")
    if data.labels_total < 2:
        raise Unknown("one label only (see DAT317)")
    label, most = next(iter(data.labels.items()))
    part = most / data.rows_read
    if part >= MAJORITY.value:
        yield Observation(
            f"{part:.0%} of {data.rows_read:,} rows have the label {label}",
            {"label": label, "rows": most, "share": part, "labels": data.labels_total},
        )


def _range(data: DataReport) -> Iterator[Observation]:
    rows = data.seen.label_out_of_range
    if rows.count:
        bound = f"0 to {data.num_labels - 1}" if data.num_labels else "0 and more"
        yield Observation(
            f"{counted(rows, data.rows_read)} have a label outside of {bound}",
            values(rows, data.rows_read, num_labels=data.num_labels),
        )
    elif data.num_labels is None:
        raise Unknown("the number of classes is not known (num_labels, or --base with its config.json)")


def _one_class(data: DataReport) -> Iterator[Observation]:
    if data.labels_total == 1:
        label = next(iter(data.labels))
        yield Observation(
            f"all {data.rows_read:,} rows have the label {label}", {"label": label, "rows": data.rows_read}
        )


def _classified(data: DataReport) -> str | None:
    return None if data.trainer == "classification" else "the rows are not classified"


RULES = (
    Rule(
        id="DAT315",
        severity="warning",
        title="unbalanced classes",
        groups=("data",),
        condition="{majority} of at least {few_labels} rows have one label",
        observe=_balance,
        needs=(_labelled,),
        confidence=0.7,
        scope="classification and KTO",
        rationale="Accuracy looks high for a model that always answers the same.",
        action="weight the classes, or report balanced accuracy or F1",
        verify="accuracy per class",
        thresholds=(MAJORITY, FEW_LABELS),
        evidence=(Evidence(source="definition", says="rows of the most frequent label over all rows"),),
    ),
    Rule(
        id="DAT316",
        severity="error",
        title="labels out of range",
        groups=("data", "log"),
        condition="a label is below 0, or not below the number of classes",
        observe=_range,
        needs=(_labelled, _classified),
        confidence=0.95,
        scope="classification with whole numbers as labels",
        rationale="Cross entropy raises on the CPU, and ends a CUDA context with an assertion.",
        action="set num_labels, or map the labels to 0 and up",
        verify="max(label) < model.config.num_labels",
        evidence=(Evidence(source="torch 2.13, cross_entropy", says="Target out of bounds"),),
        settings=("num_labels",),
    ),
    Rule(
        id="DAT317",
        severity="error",
        title="one class only",
        groups=("data",),
        condition="every row has the same label",
        observe=_one_class,
        needs=(_labelled,),
        confidence=0.9,
        scope="classification and KTO",
        rationale="The model learns to answer one label; the loss goes to 0 and looks like success.",
        action="look at how rows were selected: sorted files cut at the front have one class",
        verify="the labels of the whole file (--samples all)",
        evidence=(Evidence(source="definition", says="one label among all rows read"),),
    ),
)
