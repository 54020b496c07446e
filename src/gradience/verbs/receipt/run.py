"""The verb `receipt`, and what it is for: write down what an adapter answers, and ask whatever serves it for the same.

The receipt holds log-probabilities of given tokens under the base and under base and adapter. What is read from a
target is placed beside them: by its distance from either, and, with base and adapter at hand, by its distance from
what would be read if a part were missing or the scale another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from gradience.errors import AdapterError, ConfigError, GradienceError, OptionError
from gradience.io import PathLike, Progress
from gradience.io.atomic import atomic_file
from gradience.io.reading import decode_json, read_small, real_path
from gradience.rules import judge
from gradience.rules.served import FINE, SERVED_RULES
from gradience.schema.receipt import (
    RECEIPT_SCHEMA_ID,
    VERIFY_SERVED_SCHEMA_ID,
    NoiseOf,
    Part,
    Receipt,
    ReceiptRow,
    SelfDistance,
    VerifyServedReport,
)
from gradience.verbs.receipt.options import ReceiptOptions
from gradience.verbs.receipt.rows import SAMPLED, candidates
from gradience.verbs.receipt.targets import (
    TargetAnswer,
    digest_of_base,
    examples_of,
    read_target,
    tokens_differ,
    tokens_of,
    with_own_head,
)
from gradience.verbs.receipt.verdict import Conclusion, LogProbPairs, conclude, vector_of

if TYPE_CHECKING:
    from gradience.models import LoadedModel
    from gradience.models.inputs import ModelInput
    from gradience.models.probes import Probes
    from gradience.models.reading import Reading

LARGEST: Final = 20_000
"""Bytes of a receipt as it is written. Sequences are left out beyond it."""

_NOISE_ROWS: Final = 4  # a quarter of 16: with the candidates, twice the passes that the rows themselves need
_DIGITS: Final = 4  # of a log-probability in nats: a hundredth of the noise of bfloat16
_LARGEST_READ: Final = 1 << 20  # bytes
_LONGEST_WAIT: Final = 86_400.0  # seconds: a day


def make_receipt(
    adapter: PathLike,
    base: PathLike,
    *,
    prompts: PathLike | None = None,
    options: ReceiptOptions | None = None,
    progress: Progress | None = None,
) -> Receipt:
    """Return the receipt of an adapter on its base.

    Args:
        adapter: the folder that PEFT saved.
        base: the base model: a folder, or organisation/name in the hub's local cache.
        prompts: rows of text, prompts or conversations, or token ids, as for `gradience resize --data`; or a
            recipe in YAML that names them. None: as a recipe beside the adapter names them, else sampled by the model.
        options: how many rows, and whether their text is kept.
        progress: called with (steps done, steps in all, name of the step).

    Raises:
        AdapterError: base or adapter cannot be read, or the adapter changes nothing on these rows.
        ConfigError: the rows cannot be read.
        GradienceError: torch, transformers or PEFT is not installed.
    """
    from gradience.models import load_model  # torch, late

    chosen = options or ReceiptOptions()
    chosen.refuse_bad()
    loaded = load_model(base, adapter)
    pool = candidates(loaded, adapter, prompts, chosen)
    made = receipt_of(loaded, pool.examples, rows=chosen.rows, progress=progress)
    return msgspec.structs.replace(
        made,
        rows_from=pool.origin,
        forward_rows=made.forward_rows + (len(pool.examples) if pool.origin == SAMPLED else 0),
        adapter_name=real_path(adapter).name,
        base=digest_of_base(Path(base)),
        base_name=Path(base).name,
        rows=[msgspec.structs.replace(row, text=_text(loaded, row)) for row in made.rows]
        if chosen.keep_text
        else made.rows,
    )


def receipt_of(
    loaded: LoadedModel, examples: Sequence[ModelInput], *, rows: int, progress: Progress | None = None
) -> Receipt:
    """Return the receipt of a model in memory, on those sequences that the adapter changes most.

    Raises:
        AdapterError: the adapter changes nothing on any sequence, or an output is not finite.
        GradienceError: receipts are not written of the model's task.
    """
    from gradience.models.reading import as_base, read_loaded, window  # torch, late
    from gradience.models.states import digest_of, rounded  # the same

    if loaded.task not in {"causal-lm", "sequence-classification"}:
        raise GradienceError(f"no receipt is written of a model for {loaded.task}")
    shown = progress or (lambda _done, _total, _name: None)
    windows = list(dict.fromkeys(window(example) for example in examples))
    shown(0, 6, "the adapter")
    with_adapter = read_loaded(loaded, windows)
    shown(1, 6, "the base")
    with_base = read_loaded(loaded, windows, state=as_base(loaded))
    order = sorted(range(len(windows)), key=lambda i: -_effect(with_adapter[i], with_base[i]))[:rows]
    kept = [windows[i] for i in order]
    ref, base = ([values[i] for i in order] for values in (with_adapter, with_base))
    if not _effect(np.concatenate(ref), np.concatenate(base)):
        raise AdapterError("the adapter changes no log-probability", advice="'gradience audit' says what it holds")
    some = slice(None, None, max(1, len(kept) // _NOISE_ROWS))  # of each size of effect
    formats: tuple[NoiseOf, ...] = ("bfloat16", "int8", "int4")
    noise = [_noise("batch", read_loaded(loaded, kept[some], alone=True), ref[some], base[some])]
    for number, name in enumerate(formats):
        shown(2 + number, 6, f"noise of {name}")
        read = read_loaded(loaded, kept[some], state=rounded(loaded, name))
        noise.append(_noise(name, read, ref[some], base[some]))
    shown(6, 6, "")
    made = Receipt(
        schema=RECEIPT_SCHEMA_ID,
        task=loaded.task,
        adapter=digest_of(loaded),
        tokens=None if loaded.tokenizer is None else tokens_of(loaded.tokenizer),
        rows=[_row(example, b, a) for example, b, a in zip(kept, base, ref, strict=True)],
        noise=noise,
        dtype=str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
        device=loaded.device.type,
        forward_rows=2 * len(windows) + 4 * len(kept[some]),
    )
    # The last row is the one that the adapter changes least.
    while len(msgspec.json.encode(made)) > LARGEST - _ROOM and len(made.rows) > 1:
        made = msgspec.structs.replace(made, rows=made.rows[:-1])
    return made


_ROOM: Final = 600  # bytes for the names and the base's digest


def _effect(adapter: Any, base: Any) -> float:
    return float(((vector_of([adapter]) - vector_of([base])) ** 2).sum())


def _noise(of: NoiseOf, read: Reading, ref: Reading, base: Reading) -> SelfDistance:
    y, a, b = vector_of(read), vector_of(ref), vector_of(base)
    size = float(np.linalg.norm(a - b))
    return SelfDistance(of=of, residual=float(np.linalg.norm(y - a)) / size if size else 0.0, predictions=len(y))


def _row(example: ModelInput, base: Any, adapter: Any) -> ReceiptRow:
    # float32 may put the log-probability of a sure token a little above 0.
    base, adapter = ([min(0.0, round(float(v), _DIGITS)) for v in values] for values in (base, adapter))
    return ReceiptRow(ids=list(example.ids), first=example.first, base=base, adapter=adapter)


def _text(loaded: LoadedModel, row: ReceiptRow) -> str:
    return "" if loaded.tokenizer is None else loaded.tokenizer.decoded([row.ids])[0]


def write_receipt(receipt: Receipt, out: PathLike, *, sources: Iterable[Path], force: bool = False) -> int:
    """Write a receipt as JSON on one line, and return its size in bytes.

    Args:
        receipt: it holds token ids of the rows that it was made of.
        out: the file to write.
        sources: the adapter, and the files of rows: one that only its owner may read makes the receipt private, too.
        force: replace the file if it exists.

    Raises:
        OutputError: the file exists, or cannot be written.
    """
    place = Path(out)
    with atomic_file(place, sources=sources, force=force) as partial:
        return partial.write_bytes(msgspec.json.encode(receipt) + b"\n")


def read_receipt(path: PathLike) -> Receipt:
    """Return the receipt of a file.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    advice = "give a file that 'gradience receipt' wrote"
    try:
        receipt = decode_json(read_small(path, most=_LARGEST_READ, what="a receipt"), Receipt)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}", advice=advice) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is no receipt: {error}", advice=advice) from error
    if not receipt.rows:
        raise ConfigError(f"{path} has no rows", advice=advice)
    for number, row in enumerate(receipt.rows):
        fits = receipt.task != "causal-lm" or 0 < len(row.base) == len(row.ids) - 1 - row.first
        if len(row.base) != len(row.adapter) or not row.ids or not fits:
            raise ConfigError(
                f"{path}: $.rows[{number}] has {len(row.base)} and {len(row.adapter)} log-probabilities "
                f"for {len(row.ids)} tokens from {row.first}",
                advice=advice,
            )
    return receipt


def verify_served(
    receipt: PathLike,
    target: str,
    *,
    base: PathLike | None = None,
    adapter: PathLike | None = None,
    model: str | None = None,
    timeout: float = 120.0,
    foretold: Mapping[str, frozenset[str]] | None = None,
    progress: Progress | None = None,
) -> VerifyServedReport:
    """Return whether a target answers as the adapter of a receipt does, and if not, what it is.

    Args:
        receipt: the receipt's file.
        target: a folder (an adapter, with `base`; or a merged model), or a server's address.
        base: the base of the receipt. With `adapter`, parts and scales are tried to explain a difference.
        adapter: the adapter of the receipt.
        model: the name under which a server serves the adapter.
        timeout: seconds that one request may take.
        foretold: modules that the engine is known to leave out together, by what they are called; tried as parts are.
        progress: called with (steps done, steps in all, name of the step).

    Raises:
        GradienceError: the receipt or the target cannot be read, or base and adapter are not the receipt's.
    """
    if not 0.0 < timeout <= _LONGEST_WAIT:
        raise OptionError(f"--timeout is {timeout!s:.40}, expected seconds above 0, at most {_LONGEST_WAIT:.0f}")
    record = read_receipt(receipt)
    if adapter is not None and base is None:
        raise AdapterError("--adapter is loaded on its base, and none is given", advice="give --base MODEL")
    place = None if base is None else Path(base)
    answer = read_target(record, str(target), base=place, model=model, timeout=timeout)
    probes = None if place is None or adapter is None else _probes(record, place, Path(adapter), foretold, progress)
    concluded = _concluded(record, answer, probes, place)
    report = VerifyServedReport(
        schema=VERIFY_SERVED_SCHEMA_ID,
        receipt=str(receipt),
        target=str(target),
        kind=answer.kind,
        how=answer.how,
        precision=answer.precision,
        verdict=concluded.verdict,
        story=concluded.story,
        residual=concluded.residual,
        share=concluded.share,
        from_base=concluded.from_base,
        noise=concluded.noise,
        factor=concluded.factor,
        missing=sorted(concluded.missing),
        tried=[Part(name=name, residual=size) for name, size in concluded.tried],
        compared=concluded.compared,
        of=sum(len(row.base) for row in record.rows),
        notes=_notes(record, answer, concluded, has_models=probes is not None),
    )
    return msgspec.structs.replace(report, findings=judge(SERVED_RULES, report).findings)


def _probes(
    held: Receipt, base: Path, adapter: Path, foretold: Mapping[str, frozenset[str]] | None, progress: Progress | None
) -> Probes:
    from gradience.models import load_model  # torch, late
    from gradience.models.probes import Probes  # the same
    from gradience.models.states import digest_of  # the same

    loaded = load_model(base, adapter)
    if digest_of(loaded) != held.adapter:
        raise AdapterError(
            f"{adapter} is not the adapter of the receipt: its tensors have another digest",
            advice="give the adapter that the receipt was written of",
        )
    _refuse_other_outputs(held, loaded)
    return Probes(loaded, examples_of(held.rows), progress, foretold)


def _refuse_other_outputs(held: Receipt, loaded: LoadedModel) -> None:
    """Refuse a base, or a config of the adapter, that gives other log-probabilities than the receipt holds.

    Its tensors' digest says nothing of either, and what a mistake gives would be repeated on another model.
    """
    from gradience.models.reading import read_loaded  # torch, late
    from gradience.models.states import rounded  # the same

    rows = examples_of(held.rows)
    e = LogProbPairs(held, read_loaded(loaded, rows))
    noise = e.distance(e.seen(read_loaded(loaded, rows, state=rounded(loaded, "bfloat16"))))
    most = max(noise, *(e.noise.get(of, 0.0) for of in ("batch", "bfloat16")))  # either may be of another dtype
    if (away := e.distance(e.a)) > max(e.rounded, FINE.value * most):
        raise AdapterError(
            f"base and adapter at hand give other log-probabilities than the receipt holds, by {away:.2g} of the "
            "adapter's effect: the base is another one, or adapter_config.json has changed",
            advice="give base and adapter as they were when the receipt was written",
        )


def _without_outputs(held: Receipt, found: TargetAnswer) -> Conclusion | None:
    """The verdict where outputs do not count, or there are none."""
    if differs := found.miscounted or tokens_differ(held.tokens, found.tokens):
        return Conclusion("tokens_or_template_differ", f"Tokens differ: {differs}")
    if found.is_base:
        return Conclusion("the_base", "The base answers, without the adapter: the weights are its own, bit for bit")
    if found.classes:
        classes = len(held.rows[0].base)
        return Conclusion("another_adapter", f"Another head answers: of {found.classes} classes, and not of {classes}")
    if found.not_said:
        return Conclusion("cannot_tell", f"No log-probabilities, so nothing is known of what answers: {found.not_said}")
    return None


def _concluded(held: Receipt, found: TargetAnswer, probes: Probes | None, base: Path | None) -> Conclusion:
    if (conclusion := _without_outputs(held, found)) is not None:
        return conclusion
    is_model_of_classes = held.task != "causal-lm" and found.kind == "model"
    own_head = with_own_head(held, base) if is_model_of_classes and base is not None else None
    evidence = LogProbPairs(held, found.reading)
    conclusion = conclude(
        evidence, precision=found.precision, exact=found.kind == "adapter", probes=probes, own_head=own_head
    )
    if is_model_of_classes and base is None and conclusion.verdict in {"another_adapter", "another_checkpoint"}:
        return conclusion._replace(
            verdict="cannot_tell", story=f"{conclusion.story}; or the base with its own head: give --base"
        )
    return conclusion


def _notes(held: Receipt, found: TargetAnswer, concluded: Conclusion, *, has_models: bool) -> list[str]:
    notes, compared = [], concluded.compared
    if found.kind == "endpoint" and found.not_said:
        notes.append("Give the folder that it serves, or serve that by an engine that gives them.")
    if found.kind == "endpoint" and 0 < compared < (of := sum(len(row.base) for row in held.rows)):
        notes.append(
            f"The server names the most probable tokens only: {of - compared} of {of} log-probabilities are not "
            "compared, and whether those tokens became less probable still is lost."
        )
    if held.tokens is not None and found.tokens is None:
        notes.append("The target does not say how it turns text into tokens: tokenizer and template are not compared.")
    elif (
        held.tokens is not None
        and found.tokens is not None
        and held.tokens.chat
        and not (found.tokens.chat or found.tokens.template)
    ):
        notes.append("The target does not say what its chat template gives: the template is not compared.")
    if not has_models and concluded.verdict != "same":
        notes.append("Parts and scales are tried with --base MODEL --adapter FOLDER.")
    return notes
