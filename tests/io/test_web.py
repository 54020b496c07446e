"""A server that is slow on purpose, or answers too much, ends with the deadline or the limit of the one who asks."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest
from tables import every

from gradience.announce import WEBHOOK, Announcement, Announcer
from gradience.errors import GradienceError
from gradience.io.web import Reply, Request, ask
from gradience.verbs.receipt.endpoint import Endpoint

_BEAT = 0.05  # seconds between two bytes of a server that drips
_DEADLINE = 0.6
_SLACK = 3.0  # seconds, on a busy machine
HEAD = b"HTTP/1.1 200 OK\r\n"


def dripped(begin: bytes, each: bytes) -> Callable[[socket.socket], None]:
    def answer(peer: socket.socket) -> None:
        peer.sendall(begin)
        while True:
            time.sleep(_BEAT)
            peer.sendall(each)

    return answer


def whole(body: bytes) -> Callable[[socket.socket], None]:
    return lambda peer: peer.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)


DRIPS = {
    "nothing": dripped(b"", b""),
    "the first line": dripped(b"HTTP/1.1 2", b"0"),
    "headers": dripped(HEAD, b"a: b\r\n"),
    "a body": dripped(HEAD + b"Content-Length: 999\r\n\r\n", b"x"),
    "chunks": dripped(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "trailers": dripped(HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n"),
    "an error's body": dripped(b"HTTP/1.1 500 No\r\nContent-Length: 999\r\n\r\n", b"x"),
    "continues": dripped(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}
SECURE = {"a handshake": dripped(b"\x16\x03\x03\x3f\xff", b"\x02")}


@pytest.fixture
def served() -> Iterator[Callable[[Callable[[socket.socket], None]], int]]:
    """A function that serves in one way on a port of its own, which it gives."""
    opened: list[socket.socket] = []

    def serve(answer: Callable[[socket.socket], None]) -> int:
        listening = socket.create_server(("127.0.0.1", 0))
        opened.append(listening)

        def run() -> None:
            with suppress(OSError):
                while True:
                    peer, _ = listening.accept()
                    with closing(peer), suppress(OSError):
                        peer.recv(65536)
                        answer(peer)

        threading.Thread(target=run, daemon=True).start()
        return int(listening.getsockname()[1])

    yield serve
    for one in opened:
        one.close()


def _left(scheme: str, port: int) -> float:
    """The seconds until two who ask have left a server."""
    begun = time.monotonic()
    with pytest.raises((TimeoutError, OSError)):
        ask(Request(f"{scheme}://127.0.0.1:{port}/"), deadline=_DEADLINE, most_bytes=1000, most_values=9)
    with pytest.raises(GradienceError, match=rf"no whole answer within {_DEADLINE} s|timed out"):
        Endpoint(f"{scheme}://127.0.0.1:{port}", timeout=_DEADLINE)
    return time.monotonic() - begun


def _told(scheme: str, port: int, folder: Path) -> float:
    """The seconds that a webhook at a server takes."""
    begun = time.monotonic()
    os.environ[WEBHOOK] = f"{scheme}://127.0.0.1:{port}/"
    Announcer(["webhook"], folder).tell(Announcement("a", "b", "info"))
    return time.monotonic() - begun


def test_a_server_that_drips_is_left_at_the_deadline(
    served: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All of them at once, since each is only waited for."""
    ports = {drip: ("http", served(answer)) for drip, answer in DRIPS.items()}
    ports |= {drip: ("https", served(answer)) for drip, answer in SECURE.items()}
    with ThreadPoolExecutor(len(ports)) as pool:
        asked = {drip: pool.submit(_left, *port) for drip, port in ports.items()}
    seconds = {drip: one.result() for drip, one in asked.items()}
    assert {drip: s for drip, s in seconds.items() if not _DEADLINE < s < 2 * _DEADLINE + _SLACK} == {}
    monkeypatch.setattr("gradience.announce._SECONDS", _BEAT * 2)
    monkeypatch.setenv(WEBHOOK, "")
    seconds = {drip: _told(*port, tmp_path) for drip, port in [*ports.items()][::5]}
    assert {drip: s for drip, s in seconds.items() if not _BEAT < s < _DEADLINE + _SLACK} == {}


@every(
    ("answer", "said"),
    [
        (whole(b"x" * 1001), "over 1,000 bytes"),
        (whole(b"[" + b"1," * 400 + b"1]"), "over 99 values"),
        (whole(b"[1]"), None),
        (whole(b'["' + b"," * 400 + b'"]'), None),
    ],
)
def test_what_is_beyond_a_limit_is_no_answer(
    answer: Callable[[socket.socket], None], said: str | None, served: Callable[..., int]
) -> None:
    request = Request(f"http://127.0.0.1:{served(answer)}/", b"{}")
    if said is None:
        assert ask(request, deadline=9.0, most_bytes=1000, most_values=999).code == 200
        return
    with pytest.raises(ValueError, match=said):
        ask(request, deadline=9.0, most_bytes=1000, most_values=99)


def test_a_large_answer_takes_little_memory(served: Callable[..., int]) -> None:
    """60 MB of values: before they are decoded, they are counted."""
    body = b'{"choices": [[' + b"0.5, " * (12 << 20)
    port, child = served(whole(body[: 60 << 20])), os.fork()
    if not child:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with suppress(ValueError):
            ask(Request(f"http://127.0.0.1:{port}/"), deadline=60.0, most_bytes=64 << 20, most_values=500_000)
        os._exit(int((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10 > 250))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_reply_is_whole_whatever_its_code(served: Callable[..., int]) -> None:
    port = served(lambda peer: peer.sendall(b"HTTP/1.1 404 Gone\r\nContent-Length: 2\r\n\r\nno"))
    found = ask(Request(f"http://127.0.0.1:{port}/"), deadline=9.0, most_bytes=9, most_values=9)
    assert found == Reply(404, "Gone", b"no")
