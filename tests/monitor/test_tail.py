"""A log that is written over in place is read again from its beginning."""

from __future__ import annotations

import pytest

from gradience.reading.follow import Tail
from gradience.telemetry.codec import MAX_LINE_BYTES


@pytest.mark.parametrize("at", [0, 1, 255])
def test_one_other_byte_of_the_first_256_is_another_log(tmp_path, at):
    path = tmp_path / "run.jsonl"
    text = bytearray(b"x" * 299 + b"\n")
    path.write_bytes(text)
    with Tail(path) as tail:
        assert list(tail.poll()) == [b"x" * 299]
        assert (list(tail.poll()), tail.restarts) == ([], 0)
        text[at] = ord("y")
        with path.open("r+b") as file:
            file.write(text)
        assert (list(tail.poll()), tail.restarts) == ([bytes(text[:-1])], 1)
        assert (list(tail.poll()), tail.restarts) == ([], 1)


def test_bytes_beyond_are_not_looked_at_and_a_shorter_file_is_another(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"x" * 299 + b"\n")
    with Tail(path) as tail:
        list(tail.poll())
        with path.open("r+b") as file:
            file.seek(256)
            file.write(b"y")
        assert (list(tail.poll()), tail.restarts) == ([], 0)
        with path.open("r+b") as file:
            file.truncate(299)
        assert (list(tail.poll()), tail.restarts) == ([], 1)
        with path.open("ab") as file:
            file.write(b"\nab")
        assert list(tail.poll()) == [b"x" * 256 + b"y" + b"x" * 42]
        with path.open("ab") as file:
            file.write(b"c\n")
        assert list(tail.poll()) == [b"abc"]
        for torn in (b"ab", b"x" * (MAX_LINE_BYTES + 1)):  # what was begun in a file is not ended by the next one
            with path.open("ab") as file:
                file.write(torn)
            assert list(tail.poll()) == []
            (tmp_path / "next").write_bytes(b"new\nno")
            (tmp_path / "next").replace(path)
            assert list(tail.poll()) == [b"new"]
            with path.open("ab") as file:
                file.write(b"w\n")
            assert list(tail.poll()) == [b"now"]
