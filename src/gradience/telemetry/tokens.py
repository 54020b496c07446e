"""Patterns of secrets that are recognised by their form: by a vendor's prefix, or by the command that takes them.

A single search for the possible beginnings (`BEGINNING`) rules out most texts.
"""

from __future__ import annotations

import binascii
import re
from functools import cache
from typing import Final, TypeAlias

Shapes: TypeAlias = tuple[tuple[str, re.Pattern[str]], ...]

# Requires a capital or a digit next to a letter; else the text may be words: sk-learn-pipelines-2024, hf_transformers.
_MIXED: Final = r"(?=[A-Za-z0-9_-]{0,64}(?:[A-Z]|[0-9][a-z]|[a-z][0-9]))"
_START: Final = r"(?<![A-Za-z0-9])"
_TEXT: Final = r"[A-Za-z0-9_-]"
_CHUNK: Final = r"(?=[A-Za-z0-9_-]{0,64}[A-Za-z0-9]{12})"  # the parts of a run's name are shorter

_PREFIXES: Final = (
    r"(?:pscale_(?:tkn|pw|oauth)_|sntrys_|figd_|ntn_|secret_(?:lambdalabs_)?|PMAK-|glsa_|glc_|sq0[a-z]{3}-|rpa_|csk-"
    r"|pa-(?=[A-Za-z0-9_-]{40})|tvly-|pcsk_|CCIPAT_|fm[12]_|Fo1_|vercel_blob_rw_|pnu_|ATATT3|ATCTT3|ATBB|AKCp|EAACEdE"
    r"|EAAAE|LTAI|hf_jwt_|dp\.(?:pt|st|ct|sa|scim|audit)\.)"
)

_SHAPES: Final = (
    ("hub token", _START + r"(?:hf|api_org)_(?:oauth_)?(?:[A-Za-z0-9]{30,}|" + _MIXED + r"[A-Za-z0-9]{16,})"),
    ("api key", _START + r"(?:sk|rk|pk)-" + _CHUNK + _MIXED + _TEXT + r"{20,}"),
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
        r"(?=[A-Za-z_-]{0,64}[0-9])" + _CHUNK + _TEXT + r"{20,}",
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
# The beginnings of all shapes above. A text in which this single search finds nothing has none of them. By their first
# letters: re then passes over most places at once.
BEGINNING: Final = re.compile(
    r"-----BEGIN|/(?:webhooks|webhook)|1//0|:AA|A(?:[KSBC][IC]A|Iza|GE-SECRET|T[AC]TT3|TBB|KCp|KID)|CCIPAT|EAA[CA]"
    r"|Fo1_|GOCSPX|LTAI|M[A-Za-z0-9_-]{23}|N(?:[A-Za-z0-9_-]{23}|R[AJI])|O[A-Za-z0-9_-]{23}|P(?:rivate-Lines|MAK-)"
    r"|S(?:G\.|K[0-9a-f]{8})|a(?:pi_org_|tlasv1|[ks]-)|bkua_|csk-|d(?:ckr_|api|o[opr]_v1|p\.[a-z]{2,5}\.)|eyJ"
    r"|f(?:w_|igd_|m[12]_)|g(?:h[pousr]_|ithub_pat|l[a-z]{2,5}-|ls?[ac]_)|h(?:f_|ooks?\.|v[sbr]\.)|jina_|key-"
    r"|l(?:in_api_|sv2_|ocal-)|n(?:pm_|vapi|tn_|pg_)"
    r"|p(?:k[-_]|ypi-|plx-|ul-|scale_|a-(?=[A-Za-z0-9_-]{40})|csk_|nu_|at[A-Za-z0-9]{14}\.)|r(?:k[-_]|8_|ubygems_|pa_)"
    r"|s(?:k[-_]|hp|bp_|ntry|ecret_|q0|k_[0-9a-f]{8}|l\.)|t(?:gp_|vly-)|v(?:ercel_|1\.0-)|w(?:hsec_|andb_)"
    r"|x(?:ox|app-|ai-)|ya29"
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

# A value that no word is: a digit and a letter, and eight characters at least.
_VALUE: Final = r"(?=[^\s'\"]{0,64}[0-9])(?=[^\s'\"]{0,64}[A-Za-z])[^\s'\"|&]{8,}"
_REST: Final = r"\b[^\n|;]{0,200}?\s"  # further words of the same command

# Secrets that are recognised only by their place in a command. The named group is the secret.
COMMANDS: Final = re.compile(
    rf"\b(?:curl|wget|https?|etcdctl){_REST}(?:-[uaU]|--(?:proxy-)?user)[ =][^\s:'\"]{{1,64}}:(?P<user>[^\s'\"]+)"
    r"|\bsshpass\s+-p\s*(?P<ssh>[^\s]+)"
    r"|\b(?:docker|podman|helm|oras|az|crane)\b[^\n|;]{0,40}\blogin\b[^\n|;]{0,200}?\s-p[ =](?P<login>[^\s]+)"
    rf"|\b(?:mysql(?:dump|admin)?|mariadb){_REST}-p(?P<mysql>[^\s]+)"
    r"|\b(?:wandb|comet|neptune|swanlab|clearml|vault)\s+login\b[^\n|;]{0,80}?\s(?P<tracker>[A-Za-z0-9_=.]{20,})"
    rf"|\bredis-cli{_REST}(?:-a|--pass)[ =](?P<redis>[^\s]+)"
    rf"|\b(?:un)?zip{_REST}-P\s?(?P<zip>[^\s]+)"
    r"|\b(?:7z[ar]?|rar|unrar)\s[^\n|;]{0,200}?-h?p(?P<archive>[^\s]+)"
    rf"|\bldap[a-z]+{_REST}-w\s?(?P<ldap>[^\s]+)"
    rf"|\b(?:smb[a-z]+|rpcclient|net){_REST}-U\s?[^\s%]{{1,64}}%(?P<smb>[^\s]+)"
    rf"|\bmosquitto_[a-z]+{_REST}-P\s?(?P<mqtt>[^\s]+)"
    rf"|\b(?:mongo[a-z]*|cqlsh|twine|snowsql|rdesktop|ncftp[a-z]*|cypher-shell|impala-shell){_REST}-p[ =]?(?P<p>[^\s]+)"
    rf"|\bopenssl{_REST}-[kK]\s(?P<openssl>[^\s]+)"
    r"|\bpass:(?P<pass>[^\s'\"]{6,})"
    rf"|\bx?freerdp{_REST}/p:(?P<rdp>[^\s]+)"
    rf"|\bssh-keygen\b{_REST}-[NP]\s?['\"]?(?P<keygen>[^\s'\"]+)"
    r"|\brclone\s+obscure\s+['\"]?(?P<rclone>[^\s'\"]+)"
    r"|<\(\s{0,4}(?:echo|printf)\s+(?:-n\s+)?['\"]?(?P<process>[^\s'\")]+)"
    rf"|\blftp{_REST}-u\s[^\s,]{{1,64}},(?P<lftp>[^\s]+)"
    r"|\bnet\s+use\s[^\n|;]{0,80}\s(?P<share>[^\s/\\]+)\s+/user:|\bnet\s+user\s+[^\s]{1,64}\s(?P<account>[^\s/]+)"
    r"|\bsqlplus\s[^\n|;]{0,40}?[^\s/@]{1,64}/(?P<oracle>[^\s@/]+)@"
    r"|\brabbitmqctl\s+(?:add_user|change_password)\s+[^\s]{1,64}\s(?P<rabbit>[^\s]+)"
    r"|\becho\s+(?:-n\s+)?['\"]?(?:[\w.-]{1,32}:)?(?P<echo>[^\s'\":|]+)['\"]?\s*\|\s*"
    r"(?:sudo\b[^\n|]{0,40}\s-S|chpasswd|passwd|kinit|cryptsetup|su\b|[^\n|]{0,120}(?:--password-stdin|--with-token|-stdin))"
    r"|\b(?:chpasswd|sudo\s+-S\b[^\n]{0,80}|kinit\b[^\n]{0,80})\s*<<<\s*['\"]?(?:[\w.-]{1,32}:)?(?P<here>[^\s'\"]+)"
    r"|\bConvertTo-SecureString\s+(?:-String\s+)?['\"]?(?P<powershell>[^\s'\"]+)"
    r"|\blogin\s+[^\s]{1,64}\s+password\s+(?P<netrc>[^\s]+)|\blogin\s+anonymous\s+password\s+(?P<ftp>[^\s]+)"
    r"|\"username\"\s{0,4}:\s{0,4}\"[^\"]{0,64}\"\s{0,4},\s{0,4}\"key\"\s{0,4}:\s{0,4}\"(?P<kaggle>[^\"]{8,})\""
    r"|(?i:\b(?:pass(?:word|phrase|wd|code)|secret)(?:[ \t]{1,4}(?:provided|supplied|given|used|is|was|of|to|as))?"
    r"[ \t]{1,4}(?P<mark>[\"'`]))(?P<quoted>[^\s\"'`]{6,})(?P=mark)"
    r"|(?i:\b(?:pass(?:word|phrase|wd|code)|secret|token|credential"
    r"|(?:api|access|secret|private|licen[sc]e)[ _-]?key)s?(?![\w.-])"
    rf"(?:[ \t]+(?:provided|supplied|given|used|found|is|was|of|value))?[ \t]*[:=]?[ \t]*['\"(\[]?)(?P<said>{_VALUE})"
)
# The programs and words above. A text in which this single search finds nothing has none of them.
TOOLS: Final = re.compile(
    r"redis-cli|ssh-keygen|rclone|<\(|zip|7z|rar|ldap|smb|rpcclient|\bnet\s|mosquitto|mongo|cqlsh|twine|snowsql|rdesktop|ncftp|kinit|shell|openssl"
    r"|pass|freerdp|lftp|sqlplus|rabbitmqctl|echo|SecureString|username|etcdctl|mariadb|vault|login|curl|wget|https?\s"
    r"|mysql|(?i:passw|passc|passp|secret|token|credential|key)"
)

# Letters and digits as no name has them: often another class of character than the one before.
# `sha512-...` in a lock file is a package's digest, which everybody may know.
LONG: Final = re.compile(r"(?<![A-Za-z0-9])(?<!sha256-)(?<!sha384-)(?<!sha512-)[A-Za-z0-9]{24,200}(?![A-Za-z0-9])")
_CHANGE: Final = re.compile(r"(?<=[a-z])[A-Z0-9]|(?<=[A-Z])[a-z0-9]|(?<=[0-9])[A-Za-z]")
_SPOKEN: Final = re.compile(r"[A-Z]?(?=[a-z]{0,9}[aeiouy])[a-z]{2,}")  # half of a name at least
_OFTEN: Final = 0.42  # a random text of base 62 changes at 0.62 of its places, a CamelCase name at 0.3


def is_random(text: str) -> bool:
    """Whether letters and digits are mixed as in a random text of base 62.

    >>> is_random("q7Zx0PbT4mKd9RsW2vLc8YhA"), is_random("Qwen2ForSequenceClassification")
    (True, False)
    """
    kinds = (str.islower, str.isupper, str.isdigit)
    few = min(sum(map(kind, text)) for kind in kinds)
    words = sum(len(word) for word in _SPOKEN.findall(text))
    if few < 2 or len(_CHANGE.findall(text)) < _OFTEN * (len(text) - 1) or words > len(text) / 2:
        return False
    # A piece that was cut out of base64 may begin at any of the four places of a group.
    return not any(_is_coded_text(text[start:]) for start in range(4))


def _is_coded_text(text: str) -> bool:
    """Whether a text is base64 of ASCII, such as a config's."""
    raw = binascii.a2b_base64(text[: len(text) // 4 * 4])
    return raw.isascii() and all(byte >= 0x20 or byte in b"\t\n\r" for byte in raw)


_WORDY: Final = re.compile(
    r"[A-Z]?[a-z]{0,15}[0-9]{0,8}[A-Za-z]{0,2}|[0-9]{1,20}|[A-Z]{1,8}[0-9]{0,8}|[a-z]{2,20}[0-9]{0,8}"
)
_SEPARATED: Final = re.compile(r"[-_./:+=@]+")


def is_name(text: str) -> bool:
    """Whether a text is put together from words and numbers, such as a run's name, a shard or a model's id.

    >>> is_name("fw_bw_overlap_v2_dp8_tp4_run3"), is_name("train-00007-of-00128-3f2a91bc.arrow")
    (True, True)
    """
    parts = [part for part in _SEPARATED.split(text) if part]
    odd = sum(not _WORDY.fullmatch(part) for part in parts)
    # One part of four may be a digest or a random suffix, as in a shard's or a run's name.
    return len(parts) >= 3 and 4 * odd <= len(parts) and max(map(len, parts)) <= 20


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
