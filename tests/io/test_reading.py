"""The guarded opening, the limits of decoding, and signals that wait."""

from __future__ import annotations

import gc
import io
import json
import os
import signal
import socket
import struct
import zipfile
from pathlib import Path

import msgspec
import pytest
from tables import every

from gradience.io import interrupt, reading
from gradience.io.reading import (
    MAX_DEPTH,
    MAX_NAME,
    MAX_PARTS,
    check_depth,
    decode_json,
    is_zip,
    name_fault,
    open_regular,
    read_small,
)


def test_a_socket_a_folder_and_a_device_are_refused_by_their_kinds(tmp_path):
    (tmp_path / "d").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "p")  # of no writer, that an opening would wait for
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(os.path.relpath(tmp_path / "s"))
        for path, kind in (
            (tmp_path, "a folder"),
            *((tmp_path / kind[2], kind) for kind in ("a socket", "a device", "a pipe")),
        ):
            with pytest.raises(OSError, match=f"{kind}, not a regular file"):
                open_regular(path)


def test_a_refused_file_leaves_no_descriptor_open(tmp_path):
    os.mkfifo(tmp_path / "p")
    gc.collect()  # files of earlier tests that would be closed meanwhile
    before = set(Path("/proc/self/fd").iterdir())
    for _ in range(5):
        with pytest.raises(OSError, match="a pipe"):
            open_regular(tmp_path / "p")
    assert set(Path("/proc/self/fd").iterdir()) <= before


def test_a_file_at_the_limit_is_read_and_one_byte_more_is_refused_by_the_limits_name(tmp_path):
    path = tmp_path / "c"
    path.write_bytes(b"x" * 2048)
    assert read_small(path, most=2048, what="a config") == b"x" * 2048
    path.write_bytes(b"x" * 2049)
    with pytest.raises(OSError, match="larger than 2 KiB, the limit for a config"):
        read_small(path, most=2048, what="a config")


def test_a_file_that_claims_no_size_is_read_no_further_than_the_limit():
    with pytest.raises(OSError, match="larger than 16 bytes, the limit for a status"):
        read_small("/proc/self/status", most=16, what="a status")


@every(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_nesting_at_the_limit_is_decoded_and_one_level_more_is_refused(opening, closing):
    deepest = opening * MAX_DEPTH + "1" + closing * MAX_DEPTH
    assert decode_json(deepest, object) == json.loads(deepest)
    several = f"[{','.join([opening * (MAX_DEPTH - 1) + '1' + closing * (MAX_DEPTH - 1)] * 2)}]"
    assert decode_json(several, object) == json.loads(several)
    with pytest.raises(RecursionError, match="nested more than 64 levels"):
        decode_json(opening + deepest + closing, object)


@every(
    "text",
    [
        json.dumps(["[" * 1000, "{" * 1000, '\\"[[' * 200]),
        json.dumps([[[n]] for n in range(1000)]),
        json.dumps({'"[': {"\\\\": ["[" * 100]}}),
    ],
)
def test_brackets_in_texts_and_beside_each_other_are_no_nesting(text):
    check_depth(text)
    assert decode_json(text.encode(), object) == json.loads(text)


def test_nesting_that_is_never_closed_is_refused():
    with pytest.raises(RecursionError):
        check_depth(b"[" * (MAX_DEPTH + 1))
    with pytest.raises(msgspec.DecodeError):
        decode_json("[" * MAX_DEPTH, object)


def test_a_name_is_bounded_in_length_and_in_parts_and_has_whole_characters():
    assert name_fault("a" * MAX_NAME) is None
    assert name_fault("a" * (MAX_NAME + 1)) == "is 1025 characters long, over the limit of 1024"
    assert name_fault(".".join("a" * MAX_PARTS)) is None
    assert name_fault(".".join("a" * (MAX_PARTS + 1))) == "has 65 dotted parts, over the limit of 64"
    assert name_fault("\U00010000\ud7ff\ue000") is None
    for half in "\ud800", "\udbff", "\udc00", "\udfff":
        assert name_fault(f"a{half}") == "holds half of a surrogate pair, which is no character"


def test_a_signal_waits_for_the_end_of_the_outermost_block(monkeypatch):
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    done = []
    try:
        interrupt.install()
        with pytest.raises(SystemExit) as ended, interrupt.held():  # noqa: PT012  # the end of the block raises
            with interrupt.held():
                os.kill(os.getpid(), signal.SIGTERM)
                done.append("inner")
            done.append("outer")
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    assert done == ["inner", "outer"]
    assert ended.value.code == 143


def test_a_damaged_end_of_an_archive_is_no_archive(tmp_path):
    path = tmp_path / "adapter_model.bin"
    parts = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 2)  # it says that it is one of two files
    path.write_bytes(bytes(64) + parts + b"PK\x05\x06" + bytes(18))
    with pytest.raises(zipfile.BadZipFile):
        zipfile.is_zipfile(path)
    assert not is_zip(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"")
    assert is_zip(path)


def test_a_line_over_the_limit_is_passed_over_unless_it_has_no_end(monkeypatch):
    def lines(data: bytes) -> list[tuple[int, bytes | None]]:
        return list(reading.numbered_lines(io.BufferedReader(io.BytesIO(data)), 5))

    long = b"x" * (2 << 20)
    assert lines(b"ab\n" + b"abcd\n" + b"abcde\n" + long + b"\n" + b"abcd") == [
        *((1, b"ab\n"), (2, b"abcd\n"), (3, None), (4, None), (5, b"abcd")),
    ]
    monkeypatch.setattr(reading, "MAX_SKIPPED", 2 << 20)
    with pytest.raises(ValueError, match=r"^a line of more than 2 MiB$"):
        lines(long + long)
