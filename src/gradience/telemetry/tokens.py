"""Patterns of secrets that are recognised by their form: by a vendor's prefix, or by the command that takes them.

A single search for the possible beginnings (`BEGINNING`) rules out most texts.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Final, TypeAlias

Shapes: TypeAlias = tuple[tuple[str, re.Pattern[str]], ...]

# Requires a capital or a digit next to a letter; else the text may be words: sk-learn-pipelines-2024, hf_transformers.
_MIXED: Final = r"(?=[A-Za-z0-9_-]{0,64}(?:[A-Z]|[0-9][a-z]|[a-z][0-9]))"
_START: Final = r"(?<![A-Za-z0-9])"
_TEXT: Final = r"[A-Za-z0-9_-]"

_PREFIXES: Final = (
    r"(?:pscale_(?:tkn|pw|oauth)_|sntrys_|figd_|ntn_|secret_(?:lambdalabs_)?|PMAK-|glsa_|glc_|sq0[a-z]{3}-|rpa_|csk-"
    r"|pa-(?=[A-Za-z0-9_-]{40})|tvly-|pcsk_|CCIPAT_|fm[12]_|Fo1_|vercel_blob_rw_|pnu_|ATATT3|ATCTT3|ATBB|AKCp|EAACEdE"
    r"|EAAAE|LTAI|hf_jwt_|dp\.(?:pt|st|ct|sa|scim|audit)\.)"
)

_SHAPES: Final = (
    ("hub token", _START + r"(?:hf|api_org)_(?:oauth_)?(?:[A-Za-z0-9]{30,}|" + _MIXED + r"[A-Za-z0-9]{16,})"),
    ("api key", _START + r"(?:sk|rk|pk)-" + _MIXED + _TEXT + r"{20,}"),
    ("payment key", _START + r"(?:[rs]k_(?:live|test)|whsec)_[A-Za-z0-9]{16,}"),
    ("github token", _START + r"(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})"),
    ("gitlab token", _START + r"gl(?:pat|ptt|dt|rt|cbt|agent|soat|imt|ft)-" + _TEXT + r"{16,}"),
    ("aws key id", _START + r"(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}(?![0-9A-Za-z])"),
    ("google api key", _START + r"AIza" + _TEXT + r"{30,}"),
    ("google token", _START + r"(?:ya29\.|GOCSPX-|1//0)" + _TEXT + r"{20,}"),
    ("slack token", _START + r"xox[abeoprs]-[0-9A-Za-z-]{10,}|" + _START + r"xapp-[0-9A-Za-z-]{20,}"),
    (
        "webhook",
        r"(?:hooks\.slack\.com/(?:services|workflows|triggers)|discord(?:app)?\.com/api/webhooks)/[\w/-]{20,}",
    ),
    ("webhook", r"https?://hooks?\.[\w.-]{1,200}/[^\s\"'<>]{16,}"),
    ("telegram token", _START + r"[0-9]{8,10}:AA" + _TEXT + r"{33}(?![A-Za-z0-9_-])"),
    ("discord token", _START + r"[MNO]" + _TEXT + r"{23,27}\." + _TEXT + r"{6}\." + _TEXT + r"{27,40}"),
    ("npm token", _START + r"npm_[A-Za-z0-9]{30,}"),
    ("pypi token", _START + r"pypi-" + _TEXT + r"{30,}"),
    ("docker token", _START + r"dckr_(?:pat|oat)_" + _TEXT + r"{20,}"),
    ("vault token", _START + r"hv[sbr]\." + _TEXT + r"{20,}"),
    ("terraform token", _START + r"[A-Za-z0-9]{14}\.atlasv1\." + _TEXT + r"{20,}"),
    ("sendgrid key", _START + r"SG\." + _TEXT + r"{16,200}\." + _TEXT + r"{16,}"),
    ("databricks token", _START + r"dapi[0-9a-f]{32}(?![0-9a-f])"),
    ("replicate token", _START + r"r8_[A-Za-z0-9]{30,}"),
    ("shop token", _START + r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"),
    ("mail key", _START + r"key-[0-9a-f]{32}(?![0-9a-f])"),
    ("vendor key", _START + r"(?:lin_api_[A-Za-z0-9]{30,}|NR(?:AK|JS|II)-[A-Za-z0-9]{20,})"),
    (
        "vendor key",
        _START + r"(?:xai-|gsk_|pplx-|nvapi-|tgp_v1_|wandb_v1_|lsv2_(?:pt|sk)_|do[opr]_v1_|fw_|jina_)"
        r"(?=[A-Za-z_-]{0,64}[0-9])" + _TEXT + r"{20,}",
    ),
    ("json web token", _START + r"eyJ" + _TEXT + r"{8,300}\." + _TEXT + r"{8,2000}\." + _TEXT + r"*"),
    (
        "private key",
        r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----(?:(?!-----END)[\s\S])*(?:-----END [A-Z ]{0,40}KEY-----|$)",
    ),
    ("age key", r"AGE-SECRET-KEY-1[0-9A-Z]{50,}"),
    ("private key", r"-----BEGIN PGP PRIVATE KEY BLOCK-----(?:(?!-----END)[\s\S])*(?:-----END[A-Z ]{0,40}-----|$)"),
    ("private key", r"(?<=Private-Lines: )\d{1,4}\s(?:[A-Za-z0-9+/=]{4,64}\s?)+"),
    (
        "vendor key",
        _START + r"(?:(?:sbp|sntryu|rubygems|bkua)_|(?:local|pul)-|SK)[0-9a-f]{32,}",
    ),
    (
        "vendor key",
        _START + _PREFIXES + r"(?=[A-Za-z_/+-]{0,64}[0-9])(?=\S{0,64}[A-Z]|[a-z0-9-]{40})[A-Za-z0-9_+/=-]{20,}",
    ),
    ("vendor key", _START + r"(?:a[ks]-[A-Za-z0-9]{22}|npg_[A-Za-z0-9]{12,}|sk_[0-9a-f]{48})(?![A-Za-z0-9])"),
    ("vendor key", _START + r"pat[A-Za-z0-9]{14}\.[0-9a-f]{64}"),
    ("vendor key", _START + r"(?:AKID[A-Za-z0-9]{32}|v1\.0-[0-9a-f]{24}-[0-9a-f]{140,}|sl\.[A-Za-z0-9_-]{100,})"),
    ("webhook", r"(?<=\.office\.com)/webhookb?2?/[^\s\"'<>]{16,}"),
)
# The beginnings of all shapes above. A text in which this single search finds nothing has none of them.
BEGINNING: Final = re.compile(
    r"hf_|api_org_|[srp]k[-_]|whsec_|gh[pousr]_|github_pat|gl[a-z]{2,5}-|A[KSBC][IC]A|AIza|ya29|GOCSPX|1//0|xox|xapp-"
    r"|hooks?\.|/webhooks|:AA|[MNO][A-Za-z0-9_-]{23}|npm_|pypi-|dckr_|hv[sbr]\.|atlasv1|SG\.|dapi|r8_|shp|key-|lin_api_"
    r"|NR[AJI]|xai-|pplx-|nvapi|tgp_|wandb_|lsv2_|do[opr]_v1|fw_|jina_|eyJ|-----BEGIN|AGE-SECRET|Private-Lines|sbp_|sntry"
    r"|rubygems_|bkua_|local-|pul-|SK[0-9a-f]{8}|pscale_|figd_|ntn_|secret_|PMAK-|gls?[ac]_|sq0|rpa_|csk-|pa-(?=[A-Za-z0-9_-]{40})|tvly-|pcsk_"
    r"|CCIPAT|fm[12]_|Fo1_|vercel_|pnu_|AT[AC]TT3|ATBB|AKCp|EAA[CA]|LTAI|dp\.[a-z]{2,5}\.|a[ks]-|npg_|sk_[0-9a-f]{8}"
    r"|pat[A-Za-z0-9]{14}\.|AKID|v1\.0-|sl\.|/webhook"
)
_SHAPES_OF_WORDS: Final = (
    (
        "authorization",
        r"(?i)\b(?:bearer|basic|digest|apikey)\s{1,8}(?=[^\s]{0,256}[0-9=])[A-Za-z0-9+/_.=-]{16,}",
    ),
    ("authorization", r"(?i)\btoken\s{1,8}(?=[^\s]{0,256}[0-9=])[A-Za-z0-9_=-]{16,}(?![A-Za-z0-9/.])"),
    (
        "signature",
        r"(?i)(?<=[?&;])(?:sig|signature|x-(?:amz|goog)-signature|\w{0,40}accesskey|accountkey)=[\w%+/=-]{16,}",
    ),
    ("key of a request", r"(?i)(?<=[?&])(?:key|code|access|auth|sig|signature|session_?id|sid)=[^\s&#\"'<>]{16,}"),
)

# Secrets that are recognised only by their place in a command. The named group is the secret.
COMMANDS: Final = re.compile(
    r"\b(?:curl|wget|https?)\b[^\n|;]{0,200}?\s(?:-u|--user)[ =][^\s:'\"]{1,64}:(?P<user>[^\s'\"]+)"
    r"|\bsshpass\s+-p\s*(?P<ssh>[^\s]+)"
    r"|\b(?:docker|podman|helm|oras|az|crane)\b[^\n|;]{0,40}\blogin\b[^\n|;]{0,200}?\s-p[ =](?P<login>[^\s]+)"
    r"|\bmysql(?:dump|admin)?\b[^\n|;]{0,200}?\s-p(?P<mysql>[^\s]+)"
    r"|\b(?:wandb|comet|neptune|swanlab|clearml)\s+login\b[^\n|;]{0,80}?\s(?P<tracker>[A-Za-z0-9_=]{20,})"
)


@cache
def shapes() -> Shapes:
    """Names and patterns of secrets with a form of their own. They are compiled when a text first needs them."""
    return _compiled(_SHAPES)


@cache
def shapes_of_words() -> Shapes:
    """Names and patterns of secrets that follow a word, such as `Bearer` or `sig=`."""
    return _compiled(_SHAPES_OF_WORDS)


def _compiled(patterns: tuple[tuple[str, str], ...]) -> Shapes:
    return tuple((name, re.compile(pattern)) for name, pattern in patterns)
