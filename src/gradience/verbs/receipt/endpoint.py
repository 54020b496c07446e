"""Log-probabilities from a server that speaks OpenAI's completions.

Requests go to the address given and nowhere else: redirects are not followed, and no proxy is used. A key is read from
the environment and is in no message.
"""

from __future__ import annotations

import json
import os
import re
import sys
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from http.client import HTTPException
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gradience.errors import GradienceError
from gradience.io.reading import decode_json
from gradience.io.web import Reply, Request, TooMuch, ask
from gradience.rules.config.serving import ENGINES
from gradience.schema import Json
from gradience.telemetry.secrets import hide_secrets

TOP: Final = 1000
"""Most probable tokens that are asked for, where a server gives no log-probabilities of the prompt. Most give fewer."""

_LESS: Final = (20, 5)  # vLLM's and OpenAI's limits
_LARGEST: Final = 16 << 20  # bytes of an answer
_MOST_VALUES: Final = 500_000  # of an answer: a thousand tokens with twenty others each have a fifth of it
_KEY: Final = "GRADIENCE_API_KEY"
_REFUSED: Final = (400, 404, 405, 413, 422, 500, 501)  # of a request that a server does not know
_ID: Final = "token_id:"  # vLLM's, with return_tokens_as_token_ids
_BROKEN: Final = "\N{REPLACEMENT CHARACTER}"  # in place of bytes that are no character yet
_HELD: Final = 6  # tokens of which an echo is held against plain requests
_OFF: Final = 0.1  # nats by which both may differ
_WAYS: Final = ("prompt_logprobs", "echo with logprobs", "logprobs token by token")
_SHOWN: Final = 160  # characters of a server's message
_VERSION: Final = re.compile(r"\d[\w.+-]{0,40}")
_UNREAD: Final = (OSError, ValueError, HTTPException, RecursionError)  # of what does not speak HTTP, or not JSON


class RefusedError(GradienceError):
    """The server answers that it does not know the request."""


class EndpointAnswer(NamedTuple):
    """The log-probabilities of each sequence, NaN where a server did not give one, and how they were got."""

    reading: list[npt.NDArray[np.float64]]
    how: str
    tokens: list[int]
    """For each sequence, the number of prompt tokens that the server counted; 0 if it does not say."""


class _Question(NamedTuple):
    """Sequences, from which position on each is predicted, and the form in which they are put to a server."""

    rows: Sequence[Sequence[int]]
    firsts: Sequence[int]
    prompt: Callable[[Sequence[int]], Json]
    named: _TokenText | None
    """What a token is called where a server names it by its text; None without a tokenizer."""

    def each(self) -> Iterator[tuple[Sequence[int], int]]:
        """The token ids of each sequence, and the position of its first prediction."""
        return zip(self.rows, self.firsts, strict=True)


class _Naming(NamedTuple):
    """How many of the most probable tokens a server gives, and what it calls them; None: by their ids."""

    most: int
    text: _TokenText | None


class Endpoint:
    """A server, and the model that is asked there.

    Args:
        address: http://host:port, or that with a path such as /v1.
        model: the served model's name; may be left out if there is one only.
        timeout: seconds that one request may take, from the first byte sent to the last one received.

    Raises:
        GradienceError: nothing answers there, or it serves several models and none is named.
    """

    def __init__(self, address: str, *, model: str | None = None, timeout: float = 120.0) -> None:
        self._root = _root_of(address)
        self._timeout = timeout
        self._key = _key()
        self._models = self._listed()
        self.model = self._model(model)

    def _listed(self) -> list[dict[str, Json]]:
        try:
            listed = self._asked("/v1/models").get("data")
        except RefusedError:
            return []
        return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []

    def engine(self) -> str:
        """The engine that the server says to be, as `--serve` names it, with its version; empty if it does not say."""
        owners = {str(one.get("owned_by")) for one in self._models}
        for name, answers in ((name, one.answers) for name, one in ENGINES.items()):
            if answers is None or owners != {answers.owned_by}:
                continue
            try:
                version = self._asked(answers.version).get("version") if answers.version else None
            except GradienceError:
                version = None
            return f"{name}@{version}" if isinstance(version, str) and _VERSION.fullmatch(version) else name
        return ""

    def _model(self, wanted: str | None) -> str:
        names = [str(one["id"]) for one in self._models if "id" in one]
        if wanted is not None:
            if names and wanted not in names:
                raise GradienceError(f"no model {wanted!r} is served", advice=f"served: {', '.join(names[:8])}")
            return wanted
        if len(names) != 1:
            what = f"{len(names)} models are served" if names else "the server lists no model"
            raise GradienceError(what, advice=f"give --model NAME{': ' + ', '.join(names[:8]) if names else ''}")
        return names[0]

    def _asked(self, path: str, body: Mapping[str, Json] | None = None) -> dict[str, Json]:
        """The answer to a request, as an object.

        Raises:
            RefusedError: the server does not know the request.
            GradienceError: it does not answer, or with something else.
        """
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        data = None if body is None else json.dumps(body).encode()
        typed = {} if body is None else {"Content-Type": "application/json"}
        request = Request(self._root + path, data, {**headers, **typed})
        try:
            reply = ask(request, deadline=self._timeout, most_bytes=_LARGEST, most_values=_MOST_VALUES)
            if HTTPStatus.OK <= reply.code < HTTPStatus.MULTIPLE_CHOICES:
                return decode_json(reply.body, dict[str, Any])
        except TooMuch as error:
            # Another way of asking may have a smaller answer.
            raise RefusedError(f"{path}: {error}") from error
        except _UNREAD as error:
            reason = self._hidden(str(getattr(error, "reason", error)).strip())
            raise GradienceError(
                f"no usable answer from {self._root}{path}: {reason}", advice="check address and server"
            ) from error
        words = f"{path}: {reply.code} {self._hidden(_message(reply))}"
        if reply.code in _REFUSED:
            raise RefusedError(words)
        advice = f"put the key into the environment variable {_KEY}" if reply.code in {401, 403} else ""
        raise GradienceError(f"the server answers {words}", advice=advice)

    def _hidden(self, said: str) -> str:
        """The beginning of a message, without the key, which a server may repeat."""
        return hide_secrets(said.replace(self._key, "<the key>") if self._key else said)[:_SHOWN]

    def read(
        self, rows: Sequence[Sequence[int]], firsts: Sequence[int], text: Callable[[Sequence[int]], str] | None
    ) -> EndpointAnswer:
        """Ask for the log-probabilities of each sequence's next tokens from its `first` position on.

        Args:
            rows: token ids of each sequence.
            firsts: of each sequence, the position of the first prediction.
            text: turns ids into text, for a server that takes no token ids; None if there is no tokenizer.

        Raises:
            GradienceError: the server gives no log-probabilities in any way that is known.
        """
        reasons = []
        named = None if text is None else _TokenText(text)
        # Ids first: a server may split the text into other tokens.
        prompts: list[Callable[[Sequence[int]], Json]] = [list] if text is None else [list, text]
        for prompt in prompts:
            question = _Question(rows, firsts, prompt, named)
            for way, name in zip((self._prompt_logprobs, self._echo, self._forced), _WAYS, strict=True):
                try:
                    return way(question)
                except RefusedError as error:
                    reasons.append(f"{name}: {error.message}")
        raise RefusedError("; ".join(dict.fromkeys(reasons)))

    def _complete(self, prompt: Json, **more: Json) -> tuple[dict[str, Json], int]:
        """The first choice of a completion of one token, and the number of tokens that the server counted."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": 1, "temperature": 0, **more}
        answer = self._asked("/v1/completions", body)
        choices, usage = answer.get("choices"), answer.get("usage")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise RefusedError("/v1/completions: an answer without choices")
        count = usage.get("prompt_tokens") if isinstance(usage, dict) else 0
        return choices[0], count if isinstance(count, int) else 0

    def _prompt_logprobs(self, asked: _Question) -> EndpointAnswer:
        """VLLM's own parameter: for each token of the prompt a table from token id to log-probability."""
        readings, counts = [], []
        for ids, first in asked.each():
            choice, count = self._complete(asked.prompt(ids), prompt_logprobs=0)
            tables = choice.get("prompt_logprobs")
            if not isinstance(tables, list):
                raise RefusedError("/v1/completions: no prompt_logprobs in the answer")
            values = [_of_table(table, token) for table, token in zip(tables, ids, strict=False)]
            readings.append(_cut(values, len(ids), first))
            counts.append(count or len(tables))
        return EndpointAnswer(readings, "prompt_logprobs of /v1/completions", counts)

    def _echo(self, asked: _Question) -> EndpointAnswer:
        """OpenAI's old `echo`: the prompt comes back with the log-probability of each of its tokens."""
        readings, counts, shift = [], [], None
        for ids, first in asked.each():
            choice, count = self._complete(asked.prompt(ids), echo=True, logprobs=1)
            entry = choice.get("logprobs")
            values = entry.get("token_logprobs") if isinstance(entry, dict) else None
            if not isinstance(values, list) or len(values) < len(ids):
                raise RefusedError("/v1/completions: no log-probabilities of the prompt with echo")
            numbers = [log_probability(value) for value in values]
            if shift is None:
                shift = self._shift(asked, numbers)
            readings.append(_cut([*[float("nan")] * shift, *numbers], len(ids), first))
            counts.append(count)
        return EndpointAnswer(readings, "echo with logprobs of /v1/completions", counts)

    def _shift(self, asked: _Question, values: Sequence[float]) -> int:
        """How many tokens at the beginning are left out of the first echo, 0 or 1: it is held against plain requests.

        llama-cpp-python leaves out the first token if it begins a text, and otherwise gives each token the number of
        the next prediction.

        Raises:
            RefusedError: the echo's numbers are none of the tokens'.
        """
        ids, first = next(asked.each())
        try:
            naming = self._naming(asked)
        except RefusedError:
            return 0  # there is nothing to hold it against
        possible = {0, 1}
        for place in range(first, min(first + _HELD, len(ids) - 1)):
            plain, _ = self._next(asked, ids[: place + 1], ids[place + 1], naming)
            possible = {shift for shift in possible if not _off(values[place + 1 - shift], plain)}
        if not possible:
            raise RefusedError("/v1/completions: the numbers that echo gives are not those of the tokens")
        return min(possible)

    def _forced(self, asked: _Question) -> EndpointAnswer:
        """One request for each token: the prompt up to it, and the most probable next tokens, hopefully with it."""
        naming = self._naming(asked)
        readings, counts = [], []
        for ids, first in asked.each():
            values = []
            count = 0
            for place in range(first, len(ids) - 1):
                value, count = self._next(asked, ids[: place + 1], ids[place + 1], naming)
                values.append(value)
            readings.append(np.array(values, np.float64))
            counts.append(count + 1 if count else 0)
        by = ", by their text" if naming.text is not None else ""
        how = f"the {naming.most} most probable next tokens of /v1/completions{by}, token by token"
        return EndpointAnswer(readings, how, counts)

    def _next(self, asked: _Question, before: Sequence[int], token: int, naming: _Naming) -> tuple[float, int]:
        """The log-probability of a token after others, NaN if it is not named, and the count of tokens there."""
        choice, count = self._complete(asked.prompt(before), logprobs=naming.most)
        text = None if naming.text is None else naming.text.by(before, token)
        return _of_top(choice.get("logprobs"), token, text), count

    def _naming(self, asked: _Question) -> _Naming:
        """The largest number of most probable tokens that the server gives; by their text only where it has no ids.

        Raises:
            RefusedError: it gives none, or by their text and there is no tokenizer.
        """
        reason = "no token ids beside the log-probabilities"
        for most in (TOP, *_LESS):
            try:
                choice, _ = self._complete(asked.prompt(asked.rows[0]), logprobs=most)
            except RefusedError as error:
                reason = error.message
                continue
            entry = choice.get("logprobs")
            if _top_of(entry) or any(name.startswith(_ID) for name in _table_of(entry)):
                return _Naming(most, None)  # two tokens may have one text
            if _table_of(entry) and asked.named is not None:
                return _Naming(most, asked.named)
        raise RefusedError(reason)

    def tokens_of(self, text: str) -> list[int] | None:
        """The server's token ids of a text, with special tokens; None if it does not say."""
        for body in ({"model": self.model, "prompt": text}, {"content": text, "add_special": True}):
            if (tokens := self._tokens({**body})) is not None:
                return tokens
        return None

    def chat_tokens_of(self, text: str) -> list[int] | None:
        """The server's token ids of a conversation of one turn; None if it does not say."""
        messages = [{"role": "user", "content": text}]
        if (
            tokens := self._tokens({"model": self.model, "messages": messages, "add_generation_prompt": True})
        ) is not None:
            return tokens
        try:
            prompt = self._asked("/apply-template", {"messages": messages}).get("prompt")
        except GradienceError:
            return None
        return self._tokens({"content": prompt, "add_special": False, "parse_special": True})

    def _tokens(self, body: Mapping[str, Json]) -> list[int] | None:
        try:
            tokens = self._asked("/tokenize", body).get("tokens")
        except GradienceError:
            return None
        return tokens if isinstance(tokens, list) and tokens and all(type(one) is int for one in tokens) else None


def _root_of(address: str) -> str:
    """Scheme, host, port and path, without what is added to each request."""
    try:
        parts = urllib.parse.urlsplit(address)
        is_known = parts.scheme in {"http", "https"} and parts.hostname and not parts.username and parts.port != 0
    except ValueError:  # of a bracket without its other, or a port that is none
        is_known = False
    if not is_known:
        raise GradienceError(
            f"{address!r} is no address of a server", advice="expected http://host:port or http://host:port/v1"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}".removesuffix("/v1")


def _key() -> str:
    """The key of the environment, without the line end that a file of it may have; empty if there is none.

    Raises:
        GradienceError: it holds what no header can.
    """
    key = os.environ.get(_KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise GradienceError(f"the environment variable {_KEY} holds more than printable ASCII", advice="set it again")
    return key


def _message(reply: Reply) -> str:
    try:
        answer = decode_json(reply.body, dict[str, Any])
    except _UNREAD:
        return reply.reason
    inner = answer.get("error", answer.get("detail", answer.get("message", "")))
    return str(inner.get("message", inner) if isinstance(inner, dict) else inner)


def log_probability(value: Json) -> float:
    """The number, or NaN where it is none."""
    # JSON may hold a whole number that float() raises on; true is no number, though Python takes it for one.
    return float(value) if type(value) in {int, float} and abs(value) <= sys.float_info.max else float("nan")


def _cut(values: Sequence[float], count: int, first: int) -> npt.NDArray[np.float64]:
    """The values of tokens first + 1 to count - 1, NaN where they end; what follows is the token that was generated."""
    numbers = np.full(count - first - 1, np.nan)
    part = values[first + 1 : count]
    numbers[: len(part)] = part
    return numbers


def _off(echoed: float, plain: float) -> bool:
    """Whether two numbers of one token differ. A missing one says nothing."""
    return abs(echoed - plain) > _OFF


def _of_table(table: Json, token: int) -> float:
    entry = table.get(str(token)) if isinstance(table, dict) else None
    return log_probability(entry.get("logprob")) if isinstance(entry, dict) else log_probability(entry)


def _top_of(told: Json) -> list[dict[str, Json]]:
    """The entries of the first generated token that have a token id."""
    content = told.get("content") if isinstance(told, dict) else None
    first = content[0] if isinstance(content, list) and content else None
    top = first.get("top_logprobs") if isinstance(first, dict) else None
    return [one for one in top if isinstance(one, dict) and type(one.get("id")) is int] if isinstance(top, list) else []


def _table_of(told: Json) -> dict[str, Json]:
    """OpenAI's older form for the first generated token: from a token's text, or vLLM's `token_id:N`, to its number."""
    tables = told.get("top_logprobs") if isinstance(told, dict) else None
    first = tables[0] if isinstance(tables, list) and tables else None
    return first if isinstance(first, dict) else {}


def _of_top(told: Json, token: int, text: str | None) -> float:
    listed = {one["id"]: one.get("logprob") for one in _top_of(told)}
    table = _table_of(told)
    return log_probability(listed.get(token, table.get(f"{_ID}{token}", None if text is None else table.get(text))))


class _TokenText:
    """The text that a token adds to those before it, of a tokenizer that turns ids into text."""

    def __init__(self, text: Callable[[Sequence[int]], str]) -> None:
        self._text = text

    def by(self, ids: Sequence[int], token: int) -> str | None:
        """The text that `token` adds to that of `ids`; None if it adds no whole characters."""
        before, after = self._text(ids), self._text([*ids, token])
        added = after.removeprefix(before)
        return added if after.startswith(before) and added and _BROKEN not in added else None
