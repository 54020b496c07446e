"""What never reaches the log: secrets always, long text and absolute paths unless asked for.

A length limit is no secret filter (a hub token has 37 characters), so every string is scanned.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from gradience.schema.events import Event, EventBase, TrainStep

__all__ = ["DEFAULT_MAX_STR_LEN", "MAX_KEY_LEN", "redact_event", "redact_text", "redact_value"]

DEFAULT_MAX_STR_LEN: Final = 256
MAX_KEY_LEN: Final = 128

_ENVELOPE = frozenset({"schema", "ts", "run_id", "event", "step", "seq", "session"})

_SECRET_KEY = re.compile(
    r"(?:^|[_\-. ])(?:token|secret|password|passwd|api[_-]?key|access[_-]?key|private[_-]?key"
    r"|authorization|credentials?)$",
    re.IGNORECASE,
)
_TOKENIZER_KEY = re.compile(
    r"(?:^|[_\-. ])(?:pad|eos|bos|unk|sep|cls|mask|image|audio|video|boi|eoi|start|end|stop)[_-]token$",
    re.IGNORECASE,
)
_SECRET_VALUES: Final = (
    ("hub token", re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}")),
    ("api key", re.compile(r"\bsk-[A-Za-z0-9_-]{20,}")),
    ("github token", re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})")),
    ("gitlab token", re.compile(r"\bglpat-[A-Za-z0-9_-]{16,}")),
    ("aws key id", re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    ("google api key", re.compile(r"\bAIza[0-9A-Za-z_-]{30,}")),
    ("slack token", re.compile(r"\bxox[abeoprs]-[0-9A-Za-z-]{10,}")),
    ("npm token", re.compile(r"\bnpm_[A-Za-z0-9]{30,}")),
    ("pypi token", re.compile(r"\bpypi-[A-Za-z0-9_-]{30,}")),
    ("json web token", re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*")),
    ("private key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*KEY-----|$)")),
    ("authorization", re.compile(r"(?i)\b(?:bearer|basic)\s+[A-Za-z0-9+/_.=-]{16,}")),
    ("url password", re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")),
    (
        "secret",
        re.compile(
            r"(?i)\b(?:[a-z0-9_]*(?:token|secret|password|passwd|api[_-]?key))\s*[=:]\s*[\"']?"
            r"(?=[^\s\"']*[0-9])(?=[^\s\"']*[a-z])[^\s\"',;]{12,}"
        ),
    ),
)
_WANDB_KEY = re.compile(r"wandb|weights_?and_?biases", re.IGNORECASE)
_HEX40 = re.compile(r"\b[0-9a-f]{40}\b")
_ABSOLUTE_PATH = re.compile(r"^(?:/|~[/\\]?|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\|file://)")
_SEPARATORS = re.compile(r"[/\\]+")


def redact_text(text: str, *, key: str = "", allow_text: bool, max_str_len: int = DEFAULT_MAX_STR_LEN) -> str:
    """Return the text as it may be written: a secret, a path or a long text is replaced, and says so.

    >>> redact_text("hf_" + "a" * 34, allow_text=True)
    '<redacted: hub token>'
    """
    if _SECRET_KEY.search(key) and not _TOKENIZER_KEY.search(key):
        return "<redacted: secret key>"
    for name, pattern in _SECRET_VALUES:
        text = pattern.sub(f"<redacted: {name}>", text)
    if _WANDB_KEY.search(key):
        text = _HEX40.sub("<redacted: api key>", text)
    if len(text) > max_str_len and not allow_text:
        return f"<redacted: text of {len(text)} characters>"
    if "\n" not in text and _ABSOLUTE_PATH.match(text):
        return _SEPARATORS.split(text.rstrip("/\\"))[-1] or "<path>"
    return text


def redact_value(
    value: Any,  # noqa: ANN401  # any JSON value
    *,
    key: str = "",
    allow_text: bool,
    max_str_len: int = DEFAULT_MAX_STR_LEN,
) -> Any:  # noqa: ANN401
    """Return the JSON value with every string in it redacted, and over-long keys cut."""
    if isinstance(value, str):
        return redact_text(value, key=key, allow_text=allow_text, max_str_len=max_str_len)
    if isinstance(value, dict):
        return {
            k if len(k) <= MAX_KEY_LEN else k[:MAX_KEY_LEN]: redact_value(
                v, key=k, allow_text=allow_text, max_str_len=max_str_len
            )
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [redact_value(v, key=key, allow_text=allow_text, max_str_len=max_str_len) for v in value]
    return value


def redact_event(event: Event, *, allow_text: bool, max_str_len: int = DEFAULT_MAX_STR_LEN) -> Event:
    """Return the event as it may be written. The envelope stays: it identifies the run."""
    if isinstance(event, TrainStep) and not event.extras:
        return event  # numbers only: the hot path
    plain = msgspec.to_builtins(event)
    safe = {
        k: v if k in _ENVELOPE else redact_value(v, key=k, allow_text=allow_text, max_str_len=max_str_len)
        for k, v in plain.items()
    }
    cls: type[EventBase] = type(event)
    return msgspec.convert(safe, cls)  # type: ignore[return-value]
