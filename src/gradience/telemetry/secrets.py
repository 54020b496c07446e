"""How secrets look: the names of keys that hold them, and the shapes of the values themselves."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

__all__ = ["hide_secrets", "holds_secret"]

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


def holds_secret(key: str, value: str) -> bool:
    """Return whether the name of a key says that its value is a secret.

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
