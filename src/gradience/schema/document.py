"""Report documents: the Structs that verbs return, as JSON in which no key is ever missing, and as a summary.

A telemetry event omits fields at their default, because a log holds millions of events. A report is read by scripts, so
its document has every key of its schema at every level: empty lists, null and zero are written out. At a prompt and in
a notebook, a report is shown as a summary of a few lines; `print` shows what its command prints. Its lists are
available as tables for data frames.

The module also holds types that several reports share: a finding with its evidence, a rule that did not run, a rule's
description, and the modules that target_modules reach.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from pkgutil import resolve_name
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

import msgspec

from gradience.schema import Fraction, Json, NonFinite, NonNegativeInt, Severity, about, as_float

_WIDTH: Final = 160  # characters of one value in a summary
_SHOWN: Final = 12  # findings of a list that are named
_NAMES: Final = frozenset(get_args(NonFinite))

RULES_SCHEMA_ID: Final = "gradience.rules/v2"

RuleGroup: TypeAlias = Literal[
    "config",
    "base",
    "serve",
    "data",
    "log",
    "weights",
    "weights_and_base",
    "between",
    "joins",
    "merge",
    "merged",
    "served",
]
SEVERITIES: Final[tuple[Severity, ...]] = get_args(Severity)  # mildest first


def summary(report: msgspec.Struct) -> str:
    """Return the report's class and one line per field: scalars in full, findings by id, other lists by length.

    >>> from gradience.schema.document import RulesReport
    >>> print(summary(RulesReport(schema="gradience.rules/v2", rules=[])))
    RulesReport(
      rules=<0 items>,
    )
    """
    lines = [f"  {name}={_cut(shown)}," for name, shown in _fields(report)]
    return "\n".join([f"{type(report).__name__}(", *lines, ")"])


def as_html(report: msgspec.Struct) -> str:
    """Return the HTML that a notebook shows: the summary as one table, and the findings as another."""
    rows = "".join(f"<tr>{_cell(name, 'th')}{_cell(_cut(shown))}</tr>" for name, shown in _fields(report))
    items = [item for item in getattr(report, "findings", []) if _is_finding(item)]
    heads = ("severity", "id", "message", "action")
    rows_found = "".join(f"<tr>{''.join(_cell(str(getattr(item, key) or '')) for key in heads)}</tr>" for item in items)
    table = f"<table><tr>{''.join(_cell(key, 'th') for key in heads)}</tr>{rows_found}</table>" if rows_found else ""
    return f"<div><b>{type(report).__name__}</b><table>{rows}</table>{table}</div>"


def table_of(report: msgspec.Struct, name: str) -> list[dict[str, Any]]:
    """Return a list of the report as rows with equal keys, which `pandas.DataFrame` and `polars.DataFrame` accept.

    Structs within a row become columns `outer.inner`. A column of numbers becomes floats if one of them is not finite.

    Raises:
        ValueError: the report has no such list; the message has the names of those it has.
    """
    items = getattr(report, name, None) if name in report.__struct_fields__ else None
    if not (isinstance(items, list) and all(isinstance(item, msgspec.Struct) for item in items)):
        lists = [key for key in report.__struct_fields__ if isinstance(getattr(report, key), list)]
        raise ValueError(f"{type(report).__name__} has no table {name!r}; it has {', '.join(lists)}")
    rows = [dict(_flat(item, "")) for item in items]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    for key in keys:
        column = [row.get(key) for row in rows]
        real = any(
            isinstance(value, float) or value in _NAMES for value in column if not isinstance(value, list | dict)
        )
        if real and all(_is_number(value) for value in column if value is not None):
            column = [None if value is None else as_float(value) for value in column]
        for row, value in zip(rows, column, strict=True):
            row[key] = value
    return rows


def _fields(report: msgspec.Struct) -> Iterator[tuple[str, str]]:
    for name in report.__struct_fields__:
        value = getattr(report, name)
        if name != "schema" and value is not None and value != "":
            yield name, _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        if value and all(map(_is_finding, value)):
            more = f", and {len(value) - _SHOWN} more" if len(value) > _SHOWN else ""
            return f"[{', '.join(f'{item.id} {item.severity}' for item in value[:_SHOWN])}{more}]"
        return f"<{len(value)} items>"
    if isinstance(value, dict):
        return f"<{len(value)} keys>"
    if isinstance(value, msgspec.Struct):
        scalars = ((key, getattr(value, key)) for key in value.__struct_fields__)
        shown = [
            f"{key}={_scalar(item)}" for key, item in scalars if isinstance(item, str | int | float) and item != ""
        ]
        return f"{type(value).__name__}({', '.join(shown)})"
    return _scalar(value)


def _scalar(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) and math.isfinite(value) else repr(value)


def _cut(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}..."


def _cell(text: str, tag: str = "td") -> str:
    return f'<{tag} style="text-align:left">{html.escape(text)}</{tag}>'


def _is_finding(item: Any) -> bool:
    return isinstance(item, msgspec.Struct) and hasattr(item, "id") and hasattr(item, "severity")


def _flat(value: msgspec.Struct, prefix: str) -> Iterator[tuple[str, Any]]:
    for name in value.__struct_fields__:
        inner = getattr(value, name)
        if isinstance(inner, msgspec.Struct):
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", msgspec.to_builtins(inner) if isinstance(inner, Sequence | dict) else inner


def _is_number(value: Json) -> bool:
    return (isinstance(value, int | float) and not isinstance(value, bool)) or value in _NAMES


class Report(msgspec.Struct, kw_only=True, frozen=True):
    """The report of one verb of the library."""

    def to_dict(self) -> dict[str, Json]:
        """Return the document as plain dicts and lists, with every key of its schema."""
        document: dict[str, Json] = _expanded(self)
        return document

    def to_json(self) -> str:
        """Return the document as indented JSON, with every key of its schema."""
        return msgspec.json.format(msgspec.json.encode(self.to_dict())).decode()

    def table(self, name: str) -> list[dict[str, Any]]:
        """Return one of the report's lists as rows of plain values, for pandas.DataFrame or polars.DataFrame.

        Raises:
            ValueError: the report has no such list; the message has the names of those it has.
        """
        return table_of(self, name)

    def __repr__(self) -> str:
        """Return a summary: scalars, the ids of findings, the lengths of lists."""
        return summary(self)

    def __str__(self) -> str:
        """Return the text that the verb's command prints."""
        text: str = resolve_name("gradience.verbs:text_of")(self)  # which knows the views
        return text

    def _repr_html_(self) -> str:
        """Return the summary and the findings as HTML tables, for a notebook."""
        return as_html(self)


def _expanded(value: Json) -> Json:
    if isinstance(value, msgspec.Struct):
        config = value.__struct_config__
        tag = {} if config.tag_field is None else {config.tag_field: config.tag}
        keys = zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True)
        return tag | {key: _expanded(getattr(value, name)) for key, name in keys}
    if isinstance(value, dict):
        return {writable(key): _expanded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_expanded(item) for item in value]
    return writable(value)


def writable(value: Json) -> Json:
    r"""Return the value with texts that UTF-8 can encode: a byte of a path that is not UTF-8 becomes `\xff`.

    File names are bytes. Python keeps bytes that are not UTF-8 as lone surrogates, which JSON cannot represent.
    """
    if isinstance(value, str):
        return value if value.isascii() else _decodable(value)
    if isinstance(value, dict):
        return {writable(key): writable(item) for key, item in value.items()}
    return [writable(item) for item in value] if isinstance(value, list) else value


def _decodable(text: str) -> str:
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        raw = text.encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace")


_STEERING: Final = re.compile(  # Cc but newline, Cf, Zl and Zp of Unicode 16
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f"
    "\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0001-\U000e007f]"
)
_NOT_ASCII: Final = re.compile(r"[^\n\x20-\x7e]")


def escape_controls(text: str) -> str:
    """Return a JSON text of equal value, with escapes for characters that steer a terminal or reverse its text."""
    return _STEERING.sub(_escaped, text)


def escape_all(text: str) -> str:
    """Return a JSON text of equal value, in ASCII only."""
    return _NOT_ASCII.sub(_escaped, text)


def _escaped(hit: re.Match[str]) -> str:
    # An escape of JSON is a unit of UTF-16: a character beyond the first plane has two.
    units = hit[0].encode("utf-16-be")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


class Estimate(msgspec.Struct, kw_only=True, frozen=True):
    """A ratio of sums over texts, with its 95 % interval by the bootstrap over texts."""

    value: float
    low: float
    high: float


class Evidence(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One piece of evidence for a finding: a source in the literature, or a value seen in the input."""

    source: Annotated[str, about("Paper, document or experiment; or the place in the input.")]
    says: Annotated[str, about("What the source says, with its numbers.")]


PassportKind: TypeAlias = Literal["public run", "complaint", "library", "arithmetic"]


class Passport(Evidence, kw_only=True, frozen=True):
    """Why a rule exists: where it spoke and was right, or what shows that its fault is real."""

    kind: Annotated[
        PassportKind,
        about(
            "`public run`: a run, configuration, data set or adapter on which it spoke and was right. `complaint`: a "
            "thread of a public tracker whose cause it names. `library`: a documented behaviour or refusal. "
            "`arithmetic`: a ruin that follows from numbers alone."
        ),
    ]


class Finding(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One thing to look at: a hypothesis with its evidence. The user decides."""

    id: Annotated[str, about("Stable id of the rule, such as `LR001`.")]
    severity: Severity
    message: Annotated[str, about("One sentence that says what was seen.")]
    action: Annotated[str, about("What to consider doing; null if nothing is suggested.")] | None = None
    rationale: Annotated[str, about("Why it matters.")] | None = None
    confidence: Annotated[Fraction, about("How sure the rule is, 0 to 1: a judgement.")] | None = None
    scope: Annotated[str, about("Where the rule applies.")] | None = None
    verify: Annotated[str, about("What would confirm or refute it.")] | None = None
    evidence: list[Evidence] = []
    values: Annotated[dict[str, Json], about("The numbers that the rule compared, by name.")] = {}


class FindingRef(msgspec.Struct, kw_only=True, frozen=True):
    """A finding of one run in brief; its grounds are in that run's own report."""

    id: str
    severity: Severity
    message: str


class Excluded(Enum):
    """Reasons of rules that the user excluded; for every other rule that did not run, the input is the reason."""

    NOT_SELECTED = "not selected"
    IGNORED = "ignored on request"


class NotRun(msgspec.Struct, kw_only=True, frozen=True):
    """A check that could not run, and why: silence is not a pass."""

    id: str
    reason: str


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """The findings, most severe first, otherwise in the order given: the one order of severity."""
    return sorted(findings, key=lambda finding: -SEVERITIES.index(finding.severity))


class RuleThreshold(msgspec.Struct, kw_only=True, frozen=True):
    """A number that a rule compares a measured value with."""

    name: str
    value: float
    unit: Annotated[str, about("Unit of the value.")]
    source: Annotated[str, about("Where the number comes from; it says so if the number is a judgement or a proposal.")]


class RuleCard(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One rule: its condition, usual severity, confidence, evidence, and what would verify it."""

    id: Annotated[str, about("Stable id, such as `LR001`.")]
    title: str
    groups: Annotated[
        list[RuleGroup],
        about(
            "Where it applies. `config`: check; `base`: check --base; `serve`: check --serve; `data`: check --data; "
            "`log`: monitor; `weights`: audit; `weights_and_base`: audit --base; `joins`: diagnose, over findings of "
            "several of these groups; `merge`: merge --check; `served`: verify."
        ),
    ] = []
    severity: Annotated[Severity, about("Usual severity; a finding may be milder or graver.")]
    reading: Annotated[bool, about("Whether what it reports is a line of a report, and no finding.")] = False
    condition: Annotated[str, about("When the rule gives a finding.")] = ""
    premises: Annotated[list[str], about("What has to hold before the rule is asked; else it is not judged.")] = []
    confidence: Annotated[Fraction, about("How sure the rule is, 0 to 1: a judgement.")] | None = None
    scope: Annotated[str, about("Where the rule applies, and where it does not.")] = ""
    rationale: Annotated[str, about("Why it matters.")] = ""
    action: Annotated[str, about("What to consider doing.")] = ""
    verify: Annotated[str, about("What would confirm or refute it.")] = ""
    thresholds: list[RuleThreshold] = []
    passports: Annotated[list[Passport], about("What shows that the fault is real: at least one.")] = []
    evidence: Annotated[list[Evidence], about("Every source of the rule, with its numbers.")] = []


class RulesReport(Report, kw_only=True, frozen=True):
    """The rules, as `gradience rules --json` prints them."""

    schema: Literal["gradience.rules/v2"]
    rules: list[RuleCard]


class Refused(msgspec.Struct, kw_only=True, frozen=True):
    """A module that target_modules name but PEFT cannot adapt, so that get_peft_model raises."""

    name: str
    reason: str


class Coverage(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The modules that get an adapter, counted from the base's config.json and safetensors headers.

    Modules are matched by PEFT's rules; no weight is loaded.
    """

    base: Annotated[str, about("Folder name or hub id.")]
    model_type: Annotated[str, about("transformers' `model_type` of the base.")]
    layout: Annotated[str, about("Library whose module tree was assumed, such as `transformers 5`.")]
    modules: Annotated[NonNegativeInt, about("Modules and parameters that get an adapter.")]
    by_type: Annotated[dict[str, int], about("`modules` by type: attn, mlp, embedding, ...")] = {}
    layers: Annotated[NonNegativeInt, about("Layers with at least one adapted module.")]
    layers_total: Annotated[NonNegativeInt, about("Layers of the base.")]
    lora_params: (
        Annotated[NonNegativeInt, about("Entries of all A and B, biases and magnitudes; null if one is unknown.")]
        | None
    ) = None
    trainable_params: (
        Annotated[NonNegativeInt, about("lora_params plus trained_besides; null if one is unknown.")] | None
    ) = None
    trained_besides: Annotated[
        dict[str, int], about("Trained entries outside LoRA's factors (whole modules, biases, token rows), by kind.")
    ] = {}
    base_params: Annotated[
        NonNegativeInt, about("Entries of the base, as its files declare them; tied weights count once.")
    ] = 0
    adapter_dtype: Annotated[str, about("Dtype of LoRA's factors in training.")] = "float32"
    adapter_bytes: (
        Annotated[NonNegativeInt, about("Bytes of all trained entries in training; null if unknown.")] | None
    ) = None
    optimizer_bytes: (
        Annotated[NonNegativeInt, about("Bytes of optimizer states and gradients in one process; null if unknown.")]
        | None
    ) = None
    optimizer_assumption: Annotated[str, about("What optimizer_bytes assumes.")] = ""
    unmatched_targets: Annotated[list[str], about("Names in target_modules that match nothing.")] = []
    unmatched_saves: Annotated[list[str], about("Names in modules_to_save that end no module's name.")] = []
    narrow: Annotated[
        dict[str, NonNegativeInt], about("Adapted modules with fewer inputs or outputs than their rank, by name.")
    ] = {}
    unmatched_excludes: Annotated[list[str], about("Names in exclude_modules that match nothing.")] = []
    refused: list[Refused] = []
    vocabulary: Annotated[NonNegativeInt, about("Rows of the input embedding; null if unknown.")] | None = None
    added_tokens: Annotated[list[str], about("Tokens of the run's tokenizer that the base's tokenizer lacks.")] = []
    embedding_trained: Annotated[bool, about("Whether rows of the input embedding are trained.")] = False
    notes: Annotated[list[str], about("What was assumed, and what could not be counted.")] = []
