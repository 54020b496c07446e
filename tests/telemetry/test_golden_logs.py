from __future__ import annotations

from collections import Counter
from pathlib import Path

from golden_logs import BAD, EXPECTED, GOOD, documents, lines
from tables import every

from gradience.schema import BadLine
from gradience.telemetry import TelemetryReader
from gradience.telemetry.codec import soften
from gradience.telemetry.reader import validate_log

NAMES = {path.stem: path for path in GOOD}


@every("path", GOOD, ids=lambda path: path.stem)
def test_a_good_log_is_valid_and_every_line_an_event(path: Path) -> None:
    report = validate_log(path)
    assert report.issues == []
    assert report.valid
    assert report.lines == len(lines(path)) == sum(1 for _ in TelemetryReader(path))


@every("path", BAD, ids=lambda path: path.stem)
def test_every_fault_of_a_bad_log_is_named_by_line_and_path(path: Path) -> None:
    report = validate_log(path)
    expected = Counter((line, where) for line, where in EXPECTED[path.stem])
    assert Counter((issue.line, issue.path) for issue in report.issues) == expected
    assert not report.valid
    for issue in report.issues:
        assert issue.reason
        assert (issue.expected is None) == (issue.path is None)
        assert issue.path is None or issue.got is not None


@every("path", [p for p in BAD if p.stem not in {"other_schema", "bare_nan"}], ids=lambda p: p.stem)
def test_a_bad_line_is_a_value_and_reading_goes_on(path: Path) -> None:
    items = list(TelemetryReader(path).read())
    assert len(items) == len(lines(path))
    bad = {item.line for item in items if isinstance(item, BadLine)}
    read = {n for n, document in documents(path).items() if isinstance(document, dict) and soften(document)}
    assert bad == {line for line, at in EXPECTED[path.stem] if not (line in read and at in {"$.status", *OPEN})}


OPEN = {"$.severity", "$.recommendations[0].severity", "$.config.task_profile"}


def test_whole_floats_are_integers_to_the_reader() -> None:
    row, evaluation, start = TelemetryReader(NAMES["whole_floats"])
    assert (row.step, row.seq, evaluation.metrics.n, start.config.lora.rank_pattern) == (4, 7, 256, {"q": 4})
    assert type(row.step) is int


def test_the_log_of_a_released_version_still_reads() -> None:
    reader = TelemetryReader(NAMES["released-0.1.0"])
    run = reader.summarize().last
    assert run.config.optimizer.lr == 2e-4
    assert run.config.lora.use_rslora
    assert run.latest_eval("test").metrics.extras == {"f1": 0.6}
    assert run.end.status == "ok"
    assert run.record.missing == run.record.duplicates == 0
