"""Redaction: secrets never reach a log, long texts and absolute paths only if asked for.

A length limit does not stop secrets (a hub token has 37 characters), so every string is scanned, keys included.
"""

from __future__ import annotations

import re
import zlib
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec

from gradience.errors import RecorderError, SchemaError
from gradience.schema.events import Event, TrainStep
from gradience.telemetry.codec import (
    MAX_LINE_BYTES,
    JsonObject,
    convert,
    decode,
    decode_known,
    encode,
    encode_document,
    to_document,
)

_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SECRET_KEY: Final = re.compile(
    r"(?:^|[_\-. ])(?:token|secret|password|passwd|passphrase|pwd|api[_-]?key|access[_-]?key|secret[_-]?key"
    r"|private[_-]?key|account[_-]?key|auth[_-]?key|authorization|credentials?|connection[_-]?string|cookie)$",
    re.IGNORECASE,
)
_BARE_TOKEN_KEY: Final = re.compile(r"(?:^|[_\-. ])token$", re.IGNORECASE)
_TOKENIZER_KEY: Final = re.compile(
    r"(?:^|[_\-. ])(?:pad|eos|bos|unk|sep|cls|mask|image|audio|video|boi|eoi|start|end|stop|next|first|last|special"
    r"|prefix|suffix|middle|fim|decoder[_-]start)[_-]token$",
    re.IGNORECASE,
)
_TOKENIZER_VALUE: Final = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|.{0,7}", re.DOTALL)
_PLAIN_KEY: Final = re.compile(r"(?:^|[_\-. ])key$", re.IGNORECASE)
_OPAQUE: Final = re.compile(r"(?=[^0-9]*[0-9])(?=[^A-Za-z]*[A-Za-z])[A-Za-z0-9+/=_-]{24,}")
_WANDB_KEY: Final = re.compile(r"wandb|weights_?and_?biases", re.IGNORECASE)

# A digit or a capital within, or it may be words: sk-learn-pipelines, hf_transformers.
_MIXED: Final = r"(?=[A-Za-z0-9_-]*[A-Z0-9])"
_START: Final = r"(?<![A-Za-z0-9])"
_ASSIGNED: Final = (
    r"(?i)(?:token|secret|password|passwd|passphrase|pwd|api[_-]?key|access[_-]?key|account[_-]?key)"
    r"[\"']?\s*[=:]\s*[\"']?(?=[^\s\"']{0,80}[0-9])(?=[^\s\"']{0,80}[a-z])[^\s\"',;]{10,}"
)

_SHAPES: Final = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("hub token", _START + r"(?:hf|api_org)_(?:[A-Za-z0-9]{30,}|" + _MIXED + r"[A-Za-z0-9]{16,})"),
        ("api key", _START + r"(?:sk|rk|pk)-" + _MIXED + r"[A-Za-z0-9_-]{20,}"),
        ("payment key", _START + r"[rs]k_(?:live|test)_[A-Za-z0-9]{16,}"),
        ("github token", _START + r"(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})"),
        ("gitlab token", _START + r"gl(?:pat|ptt|dt|rt|cbt|agent)-[A-Za-z0-9_-]{16,}"),
        ("aws key id", _START + r"(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}(?![0-9A-Za-z])"),
        ("google api key", _START + r"AIza[0-9A-Za-z_-]{30,}"),
        ("google token", _START + r"ya29\.[0-9A-Za-z_-]{20,}"),
        ("slack token", _START + r"xox[abeoprs]-[0-9A-Za-z-]{10,}|" + _START + r"xapp-[0-9A-Za-z-]{20,}"),
        ("webhook", r"(?:hooks\.slack\.com/(?:services|workflows)|discord(?:app)?\.com/api/webhooks)/[\w/-]{20,}"),
        ("telegram token", _START + r"[0-9]{8,10}:AA[A-Za-z0-9_-]{33}(?![A-Za-z0-9_-])"),
        ("npm token", _START + r"npm_[A-Za-z0-9]{30,}"),
        ("pypi token", _START + r"pypi-[A-Za-z0-9_-]{30,}"),
        ("sendgrid key", _START + r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"),
        ("databricks token", _START + r"dapi[0-9a-f]{32}(?![0-9a-f])"),
        ("replicate token", _START + r"r8_[A-Za-z0-9]{30,}"),
        ("vendor key", _START + r"(?:xai-|gsk_|pplx-|nvapi-|tgp_v1_|wandb_v1_|lsv2_pt_|dop_v1_)[A-Za-z0-9_-]{20,}"),
        ("json web token", _START + r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"),
        ("private key", r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:(?!-----END)[\s\S])*(?:-----END [A-Z ]*KEY-----|$)"),
        ("age key", r"AGE-SECRET-KEY-1[0-9A-Z]{50,}"),
        ("authorization", r"(?i)\b(?:bearer|basic)\s+(?=[^\s]*[0-9=])[A-Za-z0-9+/_.=-]{16,}"),
        ("url password", r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"),
        ("signature", r"(?i)(?<=[?&;])(?:sig|signature|x-amz-signature|\w*accesskey|accountkey)=[\w%+/=-]{16,}"),
        ("secret", _ASSIGNED),
    )
)
_HEX40: Final = re.compile(r"(?<![0-9a-fA-F])[0-9a-f]{40}(?![0-9a-fA-F])")
DEFAULT_MAX_STR_LEN: Final = 256
MAX_KEY_LEN: Final = 128
_CONSTANT: Final = frozenset({"schema", "ts", "event", "step", "seq"})  # of the envelope: never text of a user
_IDS: Final = frozenset({"run_id", "session"})
_WHOLE_PATH: Final = re.compile(
    r"/(?=\S|$)|~(?:[A-Za-z_][\w.-]*)?(?:/|$)|\.{1,2}/|[A-Za-z]:[/\\]|\\\\[\w.-]+\\|file://"
)
_HOME_IN_TEXT: Final = re.compile(
    r"(?<![\w.:/\\-])(?:/(?:home|Users|root|mnt|scratch|gpfs|lustre|data|tmp|var|workspace|content)(?:/[\w.@+=-]+)+"
    r"|~(?:[A-Za-z_][\w.-]*)?(?:/[\w.@+=-]+)+|[A-Za-z]:[\\/](?:[\w.@+=-]+[\\/])+[\w.@+=-]+)/?"
)
_TAIL_OF_WORDS: Final = re.compile(r"\s[^/\\]*$")  # a sentence that begins with a path, not a path with spaces
_SEPARATORS: Final = re.compile(r"[/\\]+")


def holds_secret(key: str, value: str) -> bool:
    """Whether a key's name marks its value as a secret.

    >>> holds_secret("hubToken", "a1b2c3d4e5"), holds_secret("pad_token", "<pad>")
    (True, False)
    """
    if _is_secret_key(key):
        return not (_is_bare_token_key(key) and _TOKENIZER_VALUE.fullmatch(value))
    return bool(_is_plain_key(key) and _OPAQUE.fullmatch(value))


def hide_secrets(text: str, key: str = "") -> str:
    """Return the text with everything in it that has the shape of a secret replaced, and named.

    >>> hide_secrets("login with hf_" + "aB3" * 12)
    'login with <redacted: hub token>'
    """
    for name, shape in _SHAPES:
        text = shape.sub(f"<redacted: {name}>", text)
    return _HEX40.sub("<redacted: api key>", text) if _WANDB_KEY.search(key) else text


@lru_cache(maxsize=4096)
def _is_secret_key(key: str) -> bool:
    name = _CAMEL.sub("_", key)
    return bool(_SECRET_KEY.search(name)) and not _TOKENIZER_KEY.search(name)


@lru_cache(maxsize=4096)
def _is_bare_token_key(key: str) -> bool:
    return bool(_BARE_TOKEN_KEY.search(_CAMEL.sub("_", key)))


@lru_cache(maxsize=4096)
def _is_plain_key(key: str) -> bool:
    return bool(_PLAIN_KEY.search(_CAMEL.sub("_", key)))


class Redaction(NamedTuple):
    """How much of a string may be written."""

    allow_text: bool = False
    max_str_len: int = DEFAULT_MAX_STR_LEN


DEFAULT_REDACTION: Final = Redaction()


def redact_text(text: str, rule: Redaction = DEFAULT_REDACTION, *, key: str = "") -> str:
    """Return the text as it may be written: a secret or a long text is described instead, a path becomes its last part.

    >>> redact_text("hf_" + "a" * 34)
    '<redacted: hub token>'
    >>> redact_text("/mnt/models/llama")
    'llama'
    """
    if holds_secret(key, text):
        return "<redacted: secret key>"
    if len(text) > rule.max_str_len and not rule.allow_text:
        return f"<redacted: text of {len(text)} characters>"
    text = hide_secrets(text, key)
    if _WHOLE_PATH.match(text) and not _TAIL_OF_WORDS.search(text):
        return _basename(text)
    return _HOME_IN_TEXT.sub(lambda hit: _basename(hit[0]), text)


def to_line(event: Event, rule: Redaction = DEFAULT_REDACTION, *, bare: bool = False) -> bytes:
    """Return the event's line without its newline: redacted, and read back, so that no log holds what no reader reads.

    Args:
        event: of any kind.
        rule: how much of a string may be written.
        bare: the event holds no text but our own, so that nothing need be redacted: the writer's hot path.

    Raises:
        RecorderError: the event is not valid, or the line is too long.
    """
    try:
        line = encode(event) if bare else encode_document(redact_document(to_document(event), rule))
        _read_back(line)
    except (msgspec.MsgspecError, SchemaError, TypeError, ValueError, RecursionError) as error:
        raise RecorderError(
            f"not a valid {type(event).__name__} event: {error}", advice="see the event's fields in gradience.schema"
        ) from error
    if len(line) > MAX_LINE_BYTES:
        message = f"a {type(event).__name__} event of {len(line)} bytes; a line may have {MAX_LINE_BYTES}"
        raise RecorderError(message, advice="record a summary, or split it into several events")
    return line


def _read_back(line: bytes) -> None:
    try:
        decode_known(line)
    except msgspec.ValidationError:
        decode(line)  # an extra of the name `extras` is a value like any other


def redact_document(document: JsonObject, rule: Redaction) -> JsonObject:
    """Return an event's document as it may be written. The envelope stays: it identifies the run."""
    return {
        _key(k): v if k in _CONSTANT else redact_id(v) if k in _IDS else _redact(v, rule, k)
        for k, v in document.items()
    }


def redact_event(event: Event, rule: Redaction = DEFAULT_REDACTION) -> Event:
    """Return the event as a log would hold it, for those that no log holds; itself where nothing is to hide."""
    if type(event) is TrainStep and event.run_id == redact_id(event.run_id):  # text only in its extras
        extras = {_key(k): _redact(v, rule, k) for k, v in event.extras.items()}
        return event if extras == event.extras else msgspec.structs.replace(event, extras=extras)
    document = to_document(event)
    safe = redact_document(document, rule)
    return event if safe == document else convert(safe)  # type: ignore[return-value]  # of a known name


@lru_cache(maxsize=256)
def redact_id(name: Any) -> Any:
    """Return a run's or session's id, which is text of the user's and must not hold a secret."""
    return hide_secrets(name) if isinstance(name, str) else name


def _redact(value: Any, rule: Redaction, key: str) -> Any:
    kind = type(value)
    if kind is float or kind is int:
        return value
    if isinstance(value, str):
        return redact_text(value, rule, key=key)
    if isinstance(value, dict):
        return {_key(k): _redact(v, rule, f"{key}.{k}" if _opens(key) else k) for k, v in value.items()}
    if isinstance(value, list):
        return [_redact(v, rule, key) for v in value]
    return value


def _opens(key: str) -> bool:
    """Whether the keys below a key are suspect as well, as in `wandb.key`."""
    return "wandb" in key.lower()


@lru_cache(maxsize=4096)
def _key(key: str) -> str:
    """Return a key without secrets, and short: metric names are text of the user's, too."""
    safe = hide_secrets(key)
    if len(safe) <= MAX_KEY_LEN:
        return safe
    return f"{safe[: MAX_KEY_LEN - 9]}~{zlib.crc32(key.encode(errors='replace')):08x}"


def _basename(path: str) -> str:
    return _SEPARATORS.split(path.rstrip("/\\"))[-1] or "<path>"
