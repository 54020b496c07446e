"""What a server may answer: each dialect of log-probabilities, what is no answer, and what is said of that."""

from __future__ import annotations

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from tables import every

from gradience.errors import GradienceError, OptionError
from gradience.schema.receipt import RECEIPT_SCHEMA_ID, Receipt, ReceiptRow, Tokens
from gradience.verbs.receipt import endpoint
from gradience.verbs.receipt.endpoint import Endpoint, RefusedError
from gradience.verbs.receipt.run import verify_served, write_receipt

ROWS, FIRSTS = [[1, 4, 2, 7, 3, 5, 9, 6, 8], [0, 5, 5, 9]], [1, 0]
BROKEN = 10  # a token that is half of a character
TOKENS = 11


def own(before, token):
    """The log-probability of a token after others."""
    return -0.5 * (1 + (3 * sum(before) + 5 * token + len(before)) % 17)


def text(ids):
    return "".join("\N{REPLACEMENT CHARACTER}" if one == BROKEN else chr(ord("a") + one) for one in ids)


TRUTH = [[own(ids[:i], ids[i]) for i in range(first + 1, len(ids))] for ids, first in zip(ROWS, FIRSTS, strict=True)]

ECHOED = {
    "whole": lambda ids: [None, *(own(ids[:i], ids[i]) for i in range(1, len(ids))), -0.1],
    "without the first": lambda ids: [*(own(ids[:i], ids[i]) for i in range(1, len(ids))), -0.1],
    "another token's": lambda ids: [own(ids[: i + 1], ids[i]) for i in range(len(ids))],
    "too short": lambda ids: [None] * (len(ids) - 1),
}
NAMED = {
    "ids": lambda top: {"content": [{"top_logprobs": [{"id": i, "logprob": p} for i, p in top.items()]}, {}]},
    "token_id": lambda top: {"top_logprobs": [{f"token_id:{i}": p for i, p in top.items()}, {}]},
    "text": lambda top: {"top_logprobs": [{text([i]): p for i, p in top.items()}, {}]},
    "ids beside texts": lambda top: NAMED["ids"](top) | {"top_logprobs": [{text([i]): -9.0 for i in range(TOKENS)}]},
    "others": lambda _: {"content": [{"top_logprobs": [{"id": 99, "logprob": -1.0}]}]},
    "no names": lambda _: {"top_logprobs": []},
}


class Dialect(Endpoint):
    """A server that knows some requests. It names the `most` probable tokens and leaves out the last `short` tables."""

    def __init__(self, *, prompt="", echo="", named="", most=1000, kinds=(list, str), counts=True, short=0):
        self.model = "m"
        self.prompt, self.echo, self.named, self.most = prompt, echo, named, most
        self.kinds, self.counts, self.short = kinds, counts, short

    def _asked(self, path, body=None):
        assert path == "/v1/completions"
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 1, 0)
        if not isinstance(body["prompt"], self.kinds):
            raise RefusedError("no such prompt")
        ids = [ord(one) - ord("a") for one in body["prompt"]] if isinstance(body["prompt"], str) else body["prompt"]
        usage = {"prompt_tokens": len(ids) if self.counts else None}
        return {"choices": [self._choice(ids, body), {}], "usage": usage}

    def _choice(self, ids, body):
        if "prompt_logprobs" in body and self.prompt:
            assert body["prompt_logprobs"] == 0  # the prompt's own tokens, and none beside them
            each = {"table": lambda p: {"logprob": p, "rank": 1}, "number": lambda p: p}[self.prompt]
            tables = [{"99": each(-9.0), str(ids[i]): each(own(ids[:i], ids[i]))} for i in range(1, len(ids))]
            return {"prompt_logprobs": [None, *tables][: len(ids) - self.short]}
        if body.get("echo"):
            assert body["logprobs"] == 1
            return {"logprobs": {"token_logprobs": ECHOED[self.echo](ids)}} if self.echo else {}
        if "logprobs" in body and self.named:
            if body["logprobs"] > self.most:
                raise RefusedError("too many")
            top = sorted(range(TOKENS), key=lambda token: -own(ids, token))[: self.most]
            return {"logprobs": NAMED[self.named]({token: own(ids, token) for token in top})}
        return {}


COUNTED = [len(ids) for ids in ROWS]
BY_ONE = "of /v1/completions, token by token"


@every(
    ("server", "how", "counts"),
    [
        ({"prompt": "table"}, "prompt_logprobs of /v1/completions", COUNTED),
        ({"prompt": "number", "echo": "whole"}, "prompt_logprobs of /v1/completions", COUNTED),
        ({"prompt": "table", "counts": False}, "prompt_logprobs of /v1/completions", COUNTED),
        ({"prompt": "table", "kinds": str}, "prompt_logprobs of /v1/completions", COUNTED),
        ({"echo": "whole"}, "echo with logprobs of /v1/completions", COUNTED),
        ({"echo": "whole", "counts": False}, "echo with logprobs of /v1/completions", [0, 0]),
        ({"echo": "whole", "named": "ids"}, "echo with logprobs of /v1/completions", COUNTED),
        ({"echo": "without the first", "named": "ids"}, "echo with logprobs of /v1/completions", COUNTED),
        ({"echo": "without the first", "named": "text"}, "echo with logprobs of /v1/completions", COUNTED),
        ({"echo": "whole", "named": "others"}, "echo with logprobs of /v1/completions", COUNTED),
        ({"echo": "another token's", "named": "ids"}, f"the 1000 most probable next tokens {BY_ONE}", COUNTED),
        ({"echo": "too short", "named": "token_id"}, f"the 1000 most probable next tokens {BY_ONE}", COUNTED),
        ({"named": "ids", "counts": False}, f"the 1000 most probable next tokens {BY_ONE}", [0, 0]),
        ({"named": "text"}, "the 1000 most probable next tokens of /v1/completions, by their text, token by token",
         COUNTED),
    ],
)  # fmt: skip
def test_each_dialect_gives_the_models_numbers(server, how, counts):
    for order in (slice(None), slice(None, None, -1)):
        found = Dialect(**server).read(ROWS[order], FIRSTS[order], text)
        assert (found.how, found.tokens) == (how, counts[order])
        for values, true in zip(found.reading, TRUTH[order], strict=True):
            assert values.tolist() == true


@every(
    ("most", "asked", "named"),
    [(20, 20, "ids"), (19, 5, "ids"), (5, 5, "ids"), (5, 5, "ids beside texts")],  # two tokens may have one text
)
def test_a_token_that_is_not_named_has_no_number(most, asked, named):
    found = Dialect(named=named, most=most).read(ROWS, FIRSTS, text)
    assert found.how.startswith(f"the {asked} most probable next tokens")
    for ids, first, values, true in zip(ROWS, FIRSTS, found.reading, TRUTH, strict=True):
        for i, (value, p) in enumerate(zip(values, true, strict=True), first + 1):
            better = sum(own(ids[:i], token) > p for token in range(TOKENS))
            assert value == p if better < most else np.isnan(value)


def test_what_a_server_does_not_give_is_missing_or_refused():
    short = Dialect(prompt="table", short=2).read(ROWS, FIRSTS, None).reading
    assert [np.isnan(values).tolist() for values in short] == [[False] * 5 + [True] * 2, [False, True, True]]
    half = Dialect(named="text").read([[1, BROKEN, 2, 3]], [0], text).reading[0]
    assert np.isnan(half).tolist() == [True, False, False]
    for choices in (None, [], [3], 3):
        server = Dialect()
        server._asked = lambda *_, held=choices: {"choices": held}
        with pytest.raises(RefusedError, match="an answer without choices"):
            server.read(ROWS, FIRSTS, None)
    for server in (
        {"named": "ids", "most": 4},
        {"named": "text"},
        {"named": "no names"},
        {"prompt": "table", "kinds": str},
    ):
        with pytest.raises(RefusedError, match=r"prompt_logprobs: .*echo with logprobs: .*logprobs token by token: "):
            Dialect(**server).read(ROWS, FIRSTS, None)


@every(
    ("value", "number"),
    [(-1.5, -1.5), (-2, -2.0), (None, None), (True, None), ("-1", None), (-(10**400), None), (float("-inf"), None)],
)
def test_only_finite_numbers_are_log_probabilities(value, number):
    assert [endpoint.log_probability(value)] == pytest.approx([np.nan if number is None else number], nan_ok=True)


def asked_for_tokens(known):
    """A server that knows these requests for tokens: of which path, with which keys, what it answers."""

    class Tokens(Endpoint):
        def __init__(self):
            self.model = "m"

        def _asked(self, path, body=None):
            for place, given, answer in known:
                if place == path and given.items() <= body.items():
                    return answer
            raise RefusedError("not known")

    return Tokens()


TURN = {"messages": [{"role": "user", "content": "hi"}]}


@every(
    ("known", "plain", "chat"),
    [
        ([], None, None),
        ([("/tokenize", {"prompt": "hi"}, {"tokens": [1, 2]})], [1, 2], None),
        ([("/tokenize", {**TURN, "add_generation_prompt": True}, {"tokens": [3]})], None, [3]),
        ([("/tokenize", {"content": "hi", "add_special": True}, {"tokens": [4]}),
          ("/apply-template", TURN, {"prompt": "<hi>"}),
          ("/tokenize", {"content": "<hi>", "add_special": False, "parse_special": True}, {"tokens": [5]})], [4], [5]),
        ([("/tokenize", {}, {"tokens": []})], None, None),
        ([("/tokenize", {}, {"tokens": [1, "1"]})], None, None),
        ([("/tokenize", {}, {"tokens": 1})], None, None),
    ],
)  # fmt: skip
def test_the_tokens_of_a_text_and_of_a_turn(known, plain, chat):
    server = asked_for_tokens([*known, ("/apply-template", TURN, {"prompt": None})])
    assert server.tokens_of("hi") == plain
    assert server.chat_tokens_of("hi") == chat


class Talker(BaseHTTPRequestHandler):
    """Answers what the server holds as `answer`, and keeps the request."""

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        self.wfile.write(self.server.answer)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.wfile.write(self.server.posted)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def answer(body=b"", code=200, headers=""):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {code} Said\r\n{headers}\r\n".encode() + body


def listed(*names):
    return answer({"data": [{"id": name} for name in names]})


@pytest.fixture(scope="module")
def running():
    with HTTPServer(("127.0.0.1", 0), Talker) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def server(running, monkeypatch):
    """A server on the loopback, and a proxy in the environment that nothing may ask."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("GRADIENCE_API_KEY", raising=False)
    running.seen, running.answer, running.posted = [], listed("m"), answer({}, 404)
    running.address = f"http://127.0.0.1:{running.server_port}"
    return running


def test_an_answer_beyond_the_limit_is_refused(server, monkeypatch):
    server.answer = answer(b'{"data": [{"id": "m"}], "more": "%s"}' % (b"x" * 165))  # 200 bytes
    monkeypatch.setattr(endpoint, "_LARGEST", 200)
    assert Endpoint(server.address).model == "m"
    monkeypatch.setattr(endpoint, "_LARGEST", 199)
    with pytest.raises(GradienceError, match="the server lists no model"):
        Endpoint(server.address)


@every(
    ("names", "wanted", "model", "error"),
    [
        (["m"], None, "m", ""),
        (["m", "n"], "n", "n", ""),
        ([], "n", "n", ""),
        (["m", "n"], None, "", "2 models are served"),
        ([], None, "", "the server lists no model"),
        (["m"], "n", "", "no model 'n' is served"),
    ],
)
def test_the_model_is_the_one_that_is_named_or_the_only_one(names, wanted, model, error, server):
    server.answer = listed(*names)
    if not error:
        assert Endpoint(server.address, model=wanted).model == model
        return
    with pytest.raises(GradienceError, match=error) as found:
        Endpoint(server.address, model=wanted)
    assert ", ".join(names) in found.value.advice


@every("end", ["", "/", "/v1", "/v1/"])
def test_requests_go_to_the_address_with_the_key(end, server, monkeypatch):
    server.seen = []
    Endpoint(server.address + end)
    monkeypatch.setenv("GRADIENCE_API_KEY", "k")
    Endpoint(server.address + end)
    assert server.seen == [("/v1/models", None), ("/v1/models", "Bearer k")]


@every(("chat", "verdict"), [([2], "tokens_or_template_differ"), ([1], "cannot_tell")])
def test_a_chat_template_that_gives_other_tokens_is_told(chat, verdict, server, tmp_path):
    row = ReceiptRow(ids=[1, 2], base=[-1.0], adapter=[-2.0])
    tokens = Tokens(text="hi", ids=[1], chat=chat)
    held = Receipt(schema=RECEIPT_SCHEMA_ID, task="causal-lm", adapter="", rows=[row], noise=[], tokens=tokens)
    write_receipt(held, tmp_path / "receipt.json", sources=[])
    server.posted = answer({"tokens": [1]})
    found = verify_served(tmp_path / "receipt.json", server.address)
    assert (found.verdict, "chat template" in found.story) == (verdict, chat == [2])


CHUNKED = "Transfer-Encoding: chunked\r\n"


@every(
    ("raw", "said"),
    [
        (answer({"error": {"message": "a key is needed"}}, 401), "the server answers /v1/models: 401 a key is needed"),
        (answer({"error": "no"}, 403), "the server answers /v1/models: 403 no"),
        (answer({"detail": "busy"}, 503), "the server answers /v1/models: 503 busy"),
        (answer({"message": "busy"}, 503), "the server answers /v1/models: 503 busy"),
        (answer(b"<html>", 503), "the server answers /v1/models: 503 Said"),
        (answer(b"zz", 503, CHUNKED), "the server answers /v1/models: 503 Said"),
        (answer(b"[" * 1000, 503), "the server answers /v1/models: 503 Said"),
        (answer(b"", 302, "Location: http://127.0.0.1:9/\r\n"), "the server answers /v1/models: 302"),
        *((answer({}, code), "the server lists no model") for code in (400, 404, 405, 413, 422, 500, 501)),
        (answer({"data": None}), "the server lists no model"),
        (answer({"data": [3, {}]}), "the server lists no model"),
        (answer([]), "no usable answer from .*: Expected `object`"),
        (answer(b"<html>"), "no usable answer from .*: JSON is malformed"),
        (answer(b"[" * 1000), "no usable answer from .*: nested more than"),
        (answer(b"zz", 200, CHUNKED), "no usable answer from .*: IncompleteRead"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "no usable answer from .*: SSH-2.0-OpenSSH_9.6(?= [(]|$)"),
        (b"", "no usable answer from .*: Remote end closed connection"),
    ],
)
def test_what_is_no_answer_is_said(raw, said, server, monkeypatch):
    monkeypatch.setenv("GRADIENCE_API_KEY", "tiger")
    server.answer = raw
    with pytest.raises(GradienceError, match=said) as found:
        Endpoint(server.address)
    assert ("GRADIENCE_API_KEY" in found.value.advice) is (" 401 " in said or " 403 " in said)
    assert "tiger" not in str(found.value)


@every(
    ("address", "said"),
    [
        ("127.0.0.1:8000", "is no address"),
        ("ftp://127.0.0.1", "is no address"),
        ("http://", "is no address"),
        ("http://user@127.0.0.1", "is no address"),
        ("http://[::1", "is no address"),
        ("http://127.0.0.1:x", "is no address"),
        ("http://127.0.0.1:99999", "is no address"),
        ("http://127.0.0.1:0", "is no address"),
        ("http://a b", "no usable answer"),
    ],
)
def test_what_is_no_address_is_refused(address, said):
    with pytest.raises(GradienceError, match=said):
        Endpoint(address)


@every(
    ("key", "sent"),
    [
        ("tiger-47\r\n", "tiger-47"),
        (" tiger-47", "tiger-47"),
        ("tiger\r47", None),
        ("tig\u00e9r", None),
        ("ti\x00r", None),
    ],
)
def test_a_key_is_sent_without_its_line_end_or_refused_unseen(key, sent, server, monkeypatch):
    monkeypatch.setattr("os.environ", {**os.environ, "GRADIENCE_API_KEY": key})  # a NUL is in no real environment
    server.answer = answer({"error": f"wrong key {sent}"}, 401)
    with pytest.raises(GradienceError) as found:
        Endpoint(server.address)
    assert "ti" not in str(found.value).replace("printable", "").replace("environment", "")
    assert ("401 wrong key <the key>" in str(found.value)) is (sent is not None)


@every("timeout", [float("inf"), float("nan"), 0.0, -1.0, 1e300])
def test_a_time_without_end_is_refused(timeout):
    with pytest.raises(OptionError, match="expected seconds above 0, at most 86400"):
        verify_served("no file", "http://127.0.0.1:9", timeout=timeout)
