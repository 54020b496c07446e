"""One request to an address that the user named, and to no other; the only way out to a network.

The whole exchange has one deadline: the look-up of the name, the connection, every byte of head and body. A server that
sends a byte now and then is left at its end, like one that sends nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from threading import Lock, Thread
from typing import Any, Final, NamedTuple
from urllib.error import HTTPError
from urllib.request import (
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    ProxyHandler,
    Request as _Request,
    build_opener,
)

from gradience.io.reading import count_values

_END: Final = 0.2  # seconds that the thread of an exchange has to end once its connection is shut


class Request(NamedTuple):
    """What is asked of a server: POST if there is a body, else GET."""

    address: str
    body: bytes | None = None
    headers: Mapping[str, str] = {}
    by_proxy: bool = False
    """Whether a proxy that the environment names is used."""


class TooMuch(ValueError):  # noqa: N818  # what it says is how much
    """A reply is beyond a limit."""


class Reply(NamedTuple):
    """What a server answered, whatever it answered."""

    code: int
    reason: str
    body: bytes


def ask(request: Request, *, deadline: float, most_bytes: int, most_values: int) -> Reply:
    """Send a request and return the whole reply. Redirects are not followed: their code is that of the reply.

    Args:
        request: its address begins with http: or https:, and its headers are printable ASCII.
        deadline: seconds from now in which the reply must be whole.
        most_bytes: of the reply's body.
        most_values: of a body that is JSON. Each takes some 50 bytes once it is decoded.

    Raises:
        TimeoutError: the reply is not whole in time.
        OSError: there is no connection, or it breaks.
        ValueError: the address or a header cannot be sent.
        TooMuch: the body is beyond a limit.
        HTTPException: the reply is not HTTP.
    """
    exchange = _Exchange(request, deadline, most_bytes)
    thread = Thread(target=exchange.run, daemon=True)  # the look-up of a name cannot be ended otherwise
    thread.start()
    try:
        thread.join(deadline)
    finally:
        exchange.end()
    thread.join(_END)
    if exchange.error is not None:
        raise exchange.error
    if exchange.reply is None:
        raise TimeoutError(f"no whole answer within {deadline:g} s")
    if len(exchange.reply.body) > most_bytes:
        raise TooMuch(f"an answer of over {most_bytes:,} bytes")
    if count_values(exchange.reply.body) > most_values:
        raise TooMuch(f"an answer of over {most_values:,} values")
    return exchange.reply


class _Exchange:
    """A request and its reply in a thread of their own. `end` shuts every connection that the thread opened."""

    def __init__(self, request: Request, deadline: float, most: int) -> None:
        self._request, self._deadline, self._most = request, deadline, most
        self._lock, self._sockets, self._is_over = Lock(), list[socket.socket](), False
        self.reply: Reply | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            reply = self._asked()
        except Exception as error:  # noqa: BLE001  # `ask` raises it
            with self._lock:
                # After the end it would be an error of the connection that `end` shut.
                self.error = None if self._is_over else error
        else:
            with self._lock:
                self.reply = None if self._is_over else reply

    def _asked(self) -> Reply:
        address, body, headers, by_proxy = self._request
        request = _Request(address, body, dict(headers), method="GET" if body is None else "POST")  # noqa: S310  # see `ask`
        # If no handler is for proxies, urllib adds one that takes them from the environment.
        handlers = [_Stays(), _Http(self), _Https(self), *([] if by_proxy else [ProxyHandler({})])]
        try:
            with build_opener(*handlers).open(request, timeout=self._deadline) as answer:
                # A byte beyond the limit is enough to show that there are more.
                return Reply(answer.status, answer.reason, answer.read(self._most + 1))
        except HTTPError as error:
            body = b""
            with error, suppress(OSError, ValueError, HTTPException):  # the code says enough
                body = error.read(self._most + 1)
            return Reply(error.code, str(error.reason), body)

    def keep(self, opened: socket.socket) -> None:
        """Take note of a connection, by a second descriptor: TLS takes the first one away before it shakes hands."""
        with self._lock:
            if self._is_over:
                raise TimeoutError
            self._sockets.append(opened.dup())

    def end(self) -> None:
        """Shut the connections, at which the thread ends."""
        with self._lock:
            self._is_over = True
            for one in self._sockets:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()


class _Stays(HTTPRedirectHandler):
    """Follows no redirect: the answer is then an error with the redirect's code."""

    def redirect_request(self, *_args: Any, **_more: Any) -> None:
        """Refuse."""


def _kept(kind: type[HTTPConnection], exchange: _Exchange) -> type[HTTPConnection]:
    """A class of connections of which each socket is known to the exchange as soon as it is open."""

    class TrackedConnection(kind):  # type: ignore[misc, valid-type]  # one of two classes of the standard library
        # http.client has no hook for a new socket but the attribute that holds it.
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "sock" and isinstance(value, socket.socket):
                exchange.keep(value)

    return TrackedConnection


class _Http(HTTPHandler):
    def __init__(self, exchange: _Exchange) -> None:
        super().__init__()
        self._kind = _kept(HTTPConnection, exchange)

    def http_open(self, req: _Request) -> HTTPResponse:
        return self.do_open(self._kind, req)


class _Https(HTTPSHandler):
    def __init__(self, exchange: _Exchange) -> None:
        super().__init__()
        self._kind = _kept(HTTPSConnection, exchange)

    def https_open(self, req: _Request) -> HTTPResponse:
        return self.do_open(self._kind, req)
