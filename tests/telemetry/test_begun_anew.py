"""A log that vanished while it was written goes on with its opening, once, and the line that was written in vain."""

from __future__ import annotations

import pytest

from gradience.telemetry.logfile import LogFile


@pytest.mark.parametrize(
    ("opening", "line", "held"),
    [(b"", b"b", b"b\n"), (b"a", b"b", b"a\nb\n"), (b"a", b"a", b"a\n")],
)
def test_what_is_written_again(tmp_path, opening, line, held):
    path = tmp_path / "run.jsonl"
    log = LogFile(path, sibling=None, fsync="never")
    log.append(b"before", durable=False)
    log.opening = opening
    path.unlink()
    with pytest.warns(RuntimeWarning, match="and 1 of its events are lost"):
        log.append(line, durable=True)
    assert path.read_bytes() == held
    assert log.lost == 1
    log.append(b"after", durable=True)
    log.close()
    assert path.read_bytes() == held + b"after\n"
