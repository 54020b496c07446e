"""What a server may answer."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from gradience.errors import GradienceError
from gradience.prove.receipt import endpoint


class Talker(BaseHTTPRequestHandler):
    """Answers 200 bytes of a JSON document."""

    def do_GET(self) -> None:
        body = b'{"data": [{"id": "m"}], "more": "%s"}' % (b"x" * 165)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def address():
    with HTTPServer(("127.0.0.1", 0), Talker) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_answer_beyond_the_limit_is_refused(address, monkeypatch):
    monkeypatch.setattr(endpoint, "_LARGEST", 200)
    assert endpoint.Endpoint(address).model == "m"
    monkeypatch.setattr(endpoint, "_LARGEST", 199)
    with pytest.raises(GradienceError, match="the server lists no model"):
        endpoint.Endpoint(address)
