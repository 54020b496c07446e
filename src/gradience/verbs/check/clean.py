"""``check --write-clean``: the rows of a data set without those whose fault is certain, and a ledger of these.

Certain is what no trainer could want: a line that is no row, a row that is equal to another in all of its columns, an
answer with nothing in it, a wanted answer whose text is broken where the question's is not. No row is changed: lines of
a JSONL file are copied byte for byte, rows of other files are written as JSON lines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from gradience.data import Columns, answers_of, question_of, text_of, unsaid
from gradience.data.equality import row_key
from gradience.data.measure import REPLACEMENT, is_mojibake
from gradience.data.rows import RowSource, UnusableRow, raw_lines
from gradience.data.tokens import Tokeniser
from gradience.errors import ConfigError
from gradience.io.atomic import atomic_file, refuse_file
from gradience.io.reading import real_path
from gradience.schema.reports import Cleaned

_LEDGER: Final = ".left-out.jsonl"


def refuse_clean(out: Path, read: Iterable[Path]) -> None:
    """Refuse an output that is no JSONL file, or whose name or ledger's name is taken.

    Args:
        out: the file to write.
        read: the data sets that are read. A file in the folder of one would be read with it the next time.

    Raises:
        ConfigError: it is no name of a JSONL file, names a data set, or is below one.
        OutputError: there is such a file.
    """
    places = [real_path(place) for place in read]
    if out.suffix.lower() != ".jsonl" or real_path(out) in places:
        raise ConfigError(f"--write-clean {out}: expected the name of a new .jsonl file", advice="give another name")
    if inside := next((place for place in places if real_path(out).is_relative_to(place)), None):
        message = f"--write-clean {out}: it would become part of {inside}, which is read"
        raise ConfigError(message, advice="give a place outside of that folder")
    refuse_file(out, force=None)
    refuse_file(ledger_of(out), force=None)


def ledger_of(out: Path) -> Path:
    """The file beside the output with a line for each row left out."""
    return out.with_name(out.name + _LEDGER)


def write_clean(source: RowSource, tokeniser: Tokeniser, out: Path, *, held_out: set[bytes]) -> Cleaned:
    """Write the rows whose faults are not certain, and the ledger.

    Args:
        source: the data set, of which every row is read.
        tokeniser: which reads rows into columns.
        out: the JSONL file to write.
        held_out: keys of the rows of the evaluation set.

    Raises:
        OutputError: a file is there already, or cannot be written.
    """
    reasons = dict(_reasons(source, tokeniser, held_out))
    new = partial(atomic_file, sources=[source.path], force=None)
    with new(out) as rows, new(ledger_of(out)) as ledger:  # named in the opposite order: no rows without their ledger
        with rows.open("wb") as file:
            file.writelines(line for number, line in raw_lines(source) if number not in reasons)
        with ledger.open("wb") as file:
            file.writelines(msgspec.json.encode({"row": n, "reason": why}) + b"\n" for n, why in reasons.items())
    kinds = Counter(why.partition(":")[0] for why in reasons.values())
    return Cleaned(
        path=str(out), ledger=str(ledger_of(out)), kept=source.count - len(reasons), left_out=dict(kinds.most_common())
    )


def _reasons(source: RowSource, tokeniser: Tokeniser, held_out: set[bytes]) -> Iterator[tuple[int, str]]:
    """Yield the numbers of rows to leave out, and why."""
    first: dict[bytes, int] = {}
    for row in source.rows():
        example = row if isinstance(row, UnusableRow) else next(tokeniser.examples([row]))
        if isinstance(example, UnusableRow):
            # A row that another format could take differs from its neighbours: which of them is wrong is not certain.
            if isinstance(row, UnusableRow) or not tokeniser.is_of_another_format(row[1]):
                yield example.number, f"cannot be used: {example.reason}"
            continue
        number, columns = example
        key = row_key(columns)
        reason = _fault_of(columns)
        if reason is None and key in held_out:
            reason = "is in the evaluation set"
        if reason is None and first.setdefault(key, number) != number:
            reason = f"repeats a row: {first[key]}"
        if reason is not None:
            yield number, reason


def _fault_of(columns: Columns) -> str | None:
    empty = unsaid(columns)
    if empty and all(empty):
        return "empty answer"
    wanted = text_of(columns["chosen"]) if "chosen" in columns else "\n".join(answers_of(columns))
    if columns.get("label") is False or _is_broken(question_of(columns)):  # the fault may be the subject
        return None
    return _is_broken(wanted)


def _is_broken(text: str) -> str | None:
    if REPLACEMENT in text:
        return "broken encoding: U+FFFD"
    return "broken encoding: UTF-8 decoded as Latin-1" if is_mojibake(text) else None


def keys_of(source: RowSource, tokeniser: Tokeniser) -> set[bytes]:
    """The keys of the rows of an evaluation set."""
    return {
        row_key(example[1]) for example in tokeniser.examples(source.rows()) if not isinstance(example, UnusableRow)
    }
