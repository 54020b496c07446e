"""A server that is started to be asked once: the user's command, on a free port of this machine."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPException
from typing import Final

from gradience.errors import GradienceError
from gradience.io.programs import Started, short, started, words
from gradience.io.web import Request, ask

PORT: Final = "{port}"
"""What makes of a text a command: the place of the port in it."""

_HOST: Final = "127.0.0.1"
_POLL: Final = 0.1  # seconds
_ANSWER: Final = 1 << 20  # bytes of an answer, and values in it
_SECONDS: Final = 5.0  # that one answer may take


@contextmanager
def serving(command: str, *, timeout: float) -> Iterator[str]:
    """The address of a server, which ends with the context.

    Args:
        command: starts it, with {port} where the port goes; as of llama-server or vllm serve.
        timeout: seconds that it may take to answer.

    Raises:
        GradienceError: it cannot be started, ends by itself, or does not answer in time.
    """
    with socket.socket() as free:
        free.bind((_HOST, 0))
        port = free.getsockname()[1]
    argv, address = words(command, {"port": str(port)}, required="port"), f"http://{_HOST}:{port}"
    with started(argv) as program:
        _wait(program, argv, address, timeout)
        yield address


def _wait(program: Started, argv: list[str], address: str, timeout: float) -> None:
    until = time.monotonic() + timeout
    while not _answers(address):
        if program.process.poll() is not None:
            raise GradienceError(f"{short(argv)} ended: {program.last_words()}", advice="it has to serve until the end")
        if time.monotonic() > until:
            raise GradienceError(f"{short(argv)} does not answer at {address} in {timeout:g} s", advice="see --timeout")
        time.sleep(_POLL)


def _answers(address: str) -> bool:
    """Whether the server is ready; while a model is loaded, some answer that they are not."""
    request = Request(f"{address}/v1/models")
    try:
        reply = ask(request, deadline=_SECONDS, most_bytes=_ANSWER, most_values=_ANSWER)
    except (OSError, ValueError, HTTPException):
        return False
    return reply.code < HTTPStatus.INTERNAL_SERVER_ERROR
