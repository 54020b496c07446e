"""Find and hide secrets in names, values and texts.

A secret is recognised by its own shape (`hf_...`, a private key), by the name beside it (`"db_pass": ...`, `--token
...`, `API_KEY=...`), or by its place (a URL's userinfo, an `Authorization` header). Every pattern takes time linear in
the text: look-aheads are bounded, names are matched without backtracking, and only the beginning of a long text is
kept.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from gradience.telemetry.tokens import (
    BEGINNING,
    COMMANDS,
    LONG,
    TOOLS,
    Shapes,
    is_name,
    is_random,
    shapes,
    shapes_of_words,
)

MAX_SCANNED: Final = 65 * 1024  # characters of one text: more than a line of a log may have
MAX_NAME: Final = 128  # last characters of a key that are examined: the noun stands at its end
_CACHED: Final = 256  # characters of a text that is cached: the texts that recur in a log are short

HIDDEN: Final = "<redacted: secret key>"

# Names ----------------------------------------------------------------------------------------------------------------

_PARTS: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[\W_]+")
_WORDS: Final = frozenset({
    "token", "secret", "secrets", "password", "passwords", "passwd", "passphrase", "passphrases", "pwd", "pass",
    "authorization", "auth", "credential", "credentials", "cookie", "cookies", "bearer", "webhook", "webhooks",
    "creds", "jwt", "mnemonic", "passwort", "passe", "contrasena", "senha", "sessionid", "kennwort", "wachtwoord",
    "parola", "haslo", "heslo", "jelszo", "sifre", "salasana", "lozinka",
})  # fmt: skip
# The last word of "password", "token" and "API key" in other scripts; in some of them no blank stands before it.
_ABROAD: Final = re.compile(
    r"(?:contrase\u00f1a|has\u0142o|jelsz\u00f3|l\u00f6senord|\u015fifre|parol\u0103|kh\u1ea9u"
    r"|\u043f\u0430\u0440\u043e\u043b[\u044c\u0430\u044f\u0435]|\u043b\u043e\u0437\u0438\u043d\u043a\u0430"
    r"|\u0442\u043e\u043a\u0435\u043d|\u03ba\u03c9\u03b4\u03b9\u03ba\u03cc\u03c2"
    r"|\u03c3\u03c5\u03bd\u03b8\u03b7\u03bc\u03b1\u03c4\u03b9\u03ba\u03cc|\u05e1\u05d9\u05e1\u05de[\u05d4\u05d0]"
    r"|\u0627\u0644\u0645\u0631\u0648\u0631|\u0627\u0644\u0633\u0631|\u067e\u0627\u0633\u0648\u0631\u062f"
    r"|\u06af\u0630\u0631\u0648\u0627\u0698\u0647|\u092a\u093e\u0938\u0935\u0930\u094d\u0921"
    r"|\u0e23\u0e2b\u0e31\u0e2a\u0e1c\u0e48\u0e32\u0e19|\u5bc6\u7801|\u5bc6\u78bc|\u53e3\u4ee4|\u5bc6\u94a5"
    r"|\u5bc6\u9470|\u91d1\u9470|\u4ee4\u724c|\u30d1\u30b9\u30ef\u30fc\u30c9|\u6697\u8a3c\u756a\u53f7"
    r"|\u30c8\u30fc\u30af\u30f3|(?i:api)\u30ad\u30fc|\ube44\ubc00\ubc88\ud638|\uc554\ud638|\ud1a0\ud070)$"
)
# A `key` alone is a column's or a dictionary's; after one of these words it opens something.
_KEYS_OF: Final = frozenset({
    "api", "access", "secret", "private", "account", "auth", "authorization", "signing", "sign", "encryption",
    "encrypt", "storage", "master", "license", "licence", "subscription", "service", "deploy", "ssh", "gpg",
    "pgp", "rsa", "jwt", "hmac", "fernet", "session", "admin", "client", "shared", "kaggle", "wandb", "comet",
    "openai", "anthropic", "cohere", "mistral", "stripe", "mailgun", "sendgrid", "age", "hf", "azure", "aws",
    "gcp",
})  # fmt: skip
# `tokens` are counts in most settings (`max_tokens`), and secrets behind one of these.
_TOKENS_OF: Final = frozenset({
    "api", "access", "auth", "hub", "hf", "refresh", "bearer", "secret", "user", "bot", "github", "gitlab",
    "oauth", "id",
})  # fmt: skip
# With these before it, a token is a piece of text: `pad_token`, `image_token`.
_OF_THE_TOKENIZER: Final = frozenset({
    "pad", "eos", "bos", "unk", "sep", "cls", "mask", "image", "audio", "video", "boi", "eoi", "start", "end",
    "stop", "next", "first", "last", "special", "prefix", "suffix", "middle", "fim", "per", "n", "num", "dummy",
    "added", "extra", "prev", "pred", "input", "output", "target", "source", "text", "vision", "placeholder", "tool",
    "answer", "response", "think", "observation",
})  # fmt: skip
# These mark a secret only if the value is opaque.
_AMBIGUOUS: Final = frozenset({"pat", "pw", "cred", "tok", "pin", "sid", "psk"})
# With these before it, `pass` is a run through something: `forward_pass`, `two_pass`.
_NOT_A_PASSWORD: Final = frozenset({
    "forward", "backward", "fwd", "bwd", "first", "second", "third", "single", "one", "two", "multi", "by",
    "band",
})  # fmt: skip
# These names are written together: `apikey`, `dbpass`, `hubtoken`.
_GLUED: Final = re.compile(
    r"(?:password|passwd|passphrase|pwd|secret|credential|cookie|webhook"
    r"|(?:auth|api|access|refresh|bearer|hub|hf|session|oauth|bot|github|id)token"
    r"|(?:api|access|secret|private|account|auth|client|signing|encryption|storage|ssh|master|shared)key"
    r"|(?:db|user|smtp|mysql|pg|root|admin|redis|sudo)pass|conn(?:ection)?str(?:ing)?)s?$"
)
_COUNTED: Final = re.compile(r"\d+|v\d+")
# These words may stand behind the noun: `hub_token_value`, `password_old`, `secret_b64`.
_AFTER: Final = frozenset({
    "value", "val", "plain", "plaintext", "raw", "b64", "base64", "old", "new", "base", "prod", "dev",
    "staging", "url", "uri", "header", "json",
})  # fmt: skip


def holds_secret(key: str, value: str) -> bool:
    """Whether a key's name marks its value as a secret.

    >>> holds_secret("hubToken", "a1b2c3d4e5"), holds_secret("pad_token", "<pad>")
    (True, False)
    """
    kind = kind_of(key[-MAX_NAME:])
    if not kind or value[:MAX_NAME].strip().lower() in _HARMLESS or _REDACTED.fullmatch(value):
        return False
    if _PLACEHOLDER.fullmatch(value) or (value.startswith("/") and _FOLDER.fullmatch(key)):
        return False
    if kind == "token":
        return not _TOKENIZER_VALUE.fullmatch(value)
    if kind == "word":  # `pass: second`, `pass: two-stage`, `pass: 2`
        return is_mixed(value.replace("-", "")) and not _NUMBER.fullmatch(value)
    if kind == "secret":
        return True
    is_opaque = bool(_OPAQUE.fullmatch(value) or _RANDOM.fullmatch(value))
    # A `pin` may be a commit or a digest, to which a version is pinned.
    return is_opaque and not (is_name(value) or _COMPOUND.fullmatch(value) or (kind == "pin" and _HEX.fullmatch(value)))


@lru_cache(maxsize=4096)
def kind_of(name: str) -> str:  # noqa: PLR0911  # one return for each form of a name
    """The kind of value that a name announces: `secret`; `token`, `key`, `pin`, `word`, maybe harmless; or ""."""
    plain = name.replace("w0rd", "word").replace("W0RD", "WORD")  # its capitals are split after the digit
    parts = [part.lower() for part in _PARTS.split(plain) if part]
    while parts and (_COUNTED.fullmatch(parts[-1]) or parts[-1] in _AFTER):
        parts.pop()
    if not parts:
        return ""
    if not parts[-1].isascii():
        return "secret" if _ABROAD.search(parts[-1]) else ""
    last, before = parts[-1].rstrip("0123456789"), parts[-2] if len(parts) > 1 else ""
    if last == "token":
        return "" if before in _OF_THE_TOKENIZER else "token"
    if last == "tokens":
        return "token" if before in _TOKENS_OF else ""
    if last in _AMBIGUOUS:
        return "pin" if last == "pin" else "key"
    if last in {"key", "keys"}:
        return "secret" if before in _KEYS_OF else "key" if last == "key" else ""
    if last == "pass" and (not before or before in _NOT_A_PASSWORD):
        return "" if before else "word"
    if last in _WORDS or _GLUED.search(last):
        return "secret"
    return "secret" if before in {"connection", "conn"} and last in {"string", "str"} else ""


_HARMLESS: Final = frozenset({  # settings, and ways to log in
    "", "true", "false", "none", "null", "yes", "no", "auto", "on", "off", "default", "...", "disabled", "enabled",
    "required", "optional", "inherited", "accepted", "missing", "unset", "empty", "anonymous", "public", "basic",
    "kerberos", "oauth2", "sso", "ldap",
})  # fmt: skip
_PLACEHOLDER: Final = re.compile(  # of a template, or the name of a variable that holds the secret
    r"\$[A-Z_][A-Z0-9_]*|\$\{[^{}]*\}?|\$?\{\{.*|<[A-Za-z][A-Za-z _-]*>?|%[A-Z_]+%|\{[a-z_.]*\}"
    r"|(?:os\.)?(?:environ|getenv)\b.*|[\w.]{0,40}\b(?:get\w{0,20}|input|load\w{0,20}|read\w{0,20}|open)\(.*|[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*_(?:KEY|TOKEN|SECRET|PASSWORD)|\*{3,}|x{3,12}|\.{3}"
)
# In a command, what closes it may stand behind it; 40 of an x are the key of `wandb login` in a manual.
_A_PLACEHOLDER: Final = re.compile(rf"(?:{_PLACEHOLDER.pattern}|x{{3,}})[\"'`\\,;:.)\]}}>|&]*")
_FOLDER: Final = re.compile(r"(?:OLD)?PWD")  # the shell's working folder
_NUMBER: Final = re.compile(r"[-+0-9.,_/%e ]+")
_HEX: Final = re.compile(r"[0-9a-f]{32,64}")
_COMPOUND: Final = re.compile(r"(?:[a-z]{3,15}[0-9]{1,6}){2,6}[a-z]{0,15}")  # speaker12session34utt0056
_NOTE: Final = "<redacted"  # the beginning of a note; after it comes a blank, which ends a value
_REDACTED: Final = re.compile(_NOTE + r"[^<>]*>")
_TOKENIZER_VALUE: Final = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|.{0,7}", re.DOTALL)
_OPAQUE: Final = re.compile(r"(?=[^0-9]*[0-9])(?=[^A-Za-z]*[A-Za-z])[A-Za-z0-9+/=_-]{24,}")
# 16 characters or more that change between letters and digits at least twice, as no word does.
_RANDOM: Final = re.compile(
    r"(?=(?:[A-Za-z+/=_-]*[A-Za-z][0-9]|[0-9+/=_-]*[0-9][A-Za-z])[A-Za-z0-9+/=_-]*?"
    r"(?:(?<=[A-Za-z])[0-9]|(?<=[0-9])[A-Za-z]))"
    r"[A-Za-z0-9+/=_-]{16,}"
)

# Places --------------------------------------------------------------------------------------------------------------

_HEX40: Final = re.compile(r"(?<![0-9a-fA-F])[0-9a-f]{40}(?![0-9a-fA-F])")
_WANDB_KEY: Final = re.compile(r"wandb|weights_?and_?biases", re.IGNORECASE)

_USERINFO: Final = re.compile(r"(?<=://)[^\s\"'<>]{1,512}(?=@)")
_TOKEN: Final = 16  # a URL's user of so many characters is taken for a token
_SHORT_TOKEN: Final = re.compile(r"(?=\D{0,9}\d)(?=[^A-Za-z]{0,9}[A-Za-z])\S{10,}")
_MAX_HOST: Final = 80
_HOST: Final = re.compile(r"[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}(?:[:/\s]|$)")
_PORT: Final = re.compile(r"[^:/@]*:\d{1,5}(?:/|$)")

# A name and the sign between it and its value: `=`, `:`; for an option also white space or the comma of a list.
_HINT: Final = re.compile(
    r"pass|pwd|secret|token|key|auth|cred|cookie|webhook|bearer|conn|basic |digest|sig|code=|access=|login|curl|wget"
    r"|https?\s|kennwort|wachtwoord|parola|haslo|heslo|jelszo|sifre|salasana|lozinka|mysql|jwt|(?:pat|pin|pw|sid|tok|psk)(?![a-z])|mnemonic|contrasena|senha|session_?id",
    re.IGNORECASE,
)
_ABROAD_HINT: Final = re.compile(_ABROAD.pattern.removesuffix("$"), re.IGNORECASE)
_NAMED: Final = re.compile(
    r"(?:(?<![\w.-])|(?<=%3F)|(?<=%26))(?P<dashes>-*+)(?P<name>[^\W\d][\w.-]*+)"
    r"(?P<quote>\\{0,8}[\"']|&quot;|&#3[49];)?\]?"
    r"(?P<sign>[ \t]{0,4}:[ \t]{0,4}[&?*]?[A-Za-z_][\w.]{0,40}[ \t]{0,4}=[ \t]{0,4}(?=[\"'])"  # with a type: `: str =`
    r"|[ \t]{0,8}(?:=>|->|:=|[=:\uff1a\uff1d])[ \t]{0,8}|%3D|[ \t]{1,4}(?:is|was)[ \t]{1,4}(?=[\"'])|,?[ \t]{1,8}|,)"
)
_OPEN: Final = re.compile(
    r"(?:\s|\\n){0,16}(?P<block>[|>][+-]?(?:\s|\\n)|-\s)?(?:\s|\\n){0,16}"  # `\n` may be two characters: a quoted text
    r"(?:[rbfu]?(?P<quote>\\{0,8}[\"']|&quot;|&#3[49];)|(?P<bracket>[\[{(]))?"
)
_ITEMS: Final = re.compile(
    r"[^\n]*(?:\n[ \t]*-[ \t][^\n]*|\n[ \t]+(?![\w.-]+:[ \n])[^\n]+)*"
)  # of a YAML list or block
_TAGGED: Final = re.compile(r"<(?P<name>[A-Za-z_][\w.-]{0,127})>(?P<value>[^<>\s]{4,512})</(?P=name)>")
_BESIDE: Final = re.compile(  # a name and a value as two fields, Terraform's variable, and pydantic's error of a field
    r"\b(?:name|key)[\"']?\s{0,4}[:=]\s{0,4}[\"']?(?P<name>[A-Za-z_][\w.-]{0,127})[\"']?,?\s{1,80}[\"']?value[\"']?\s{0,4}[:=]"
    r"\s{0,4}[\"']?(?P<value>[^\s\"',}]+)"
    r"|\bvariable\s{1,4}\"(?P<variable>[\w.-]{1,128})\"\s{0,4}\{[^{}]{0,400}?\bdefault\s{0,8}=\s{0,8}\"(?P<default>[^\"\n]+)"
    r"|^(?P<field>[A-Za-z_][\w.-]{0,127})\n[ \t]+[^\n]{0,400}?\binput_value=[\"']?(?P<input>[^\s\"',\]]+)",
    re.MULTILINE,
)
_BARE: Final = re.compile(r"(?:[^\s\"'\\]|\\(?!n))+")
_OF_A_QUERY: Final = re.compile(r"[^\s\"'&#]+")
_OF_A_CODED_QUERY: Final = re.compile(r"[^\s\"'&%]+")
_LINE: Final = re.compile(r"[^\n]+")
_PATH: Final = re.compile(r"(?:/[a-z0-9_.-]{1,24}){2}")
_PAIR: Final = 2
_LONG: Final = 24  # characters from which a random text is taken for a token wherever it stands
# What follows a word such as `password` is a secret if it is mixed as no word or version is.
_SAID: Final = re.compile(
    r"(?=.*[0-9])(?=.*[A-Za-z])(?:(?=.*[a-z])(?=.*[A-Z]).{8,}|(?=.*[!$#%&*^~?]).{8,}|.{20,})[^\s(){}<>=]*"
)
_PAIRED: Final = 8  # the second of a pair after a secret name is not a word if it has so many characters and a digit
_WHOLE_LINE: Final = frozenset({
    "authorization", "proxy-authorization", "cookie", "set-cookie",
})  # fmt: skip
_CLOSING: Final = {"[": "]", "{": "}", "(": ")"}


def hide_secrets(text: str, key: str = "") -> str:
    """Return the text with every secret, known by its shape, name or place, replaced by a note of its kind.

    Of a text over 65 KiB only the beginning is returned.

    >>> hide_secrets("login with hf_" + "aB3" * 12)
    'login with <redacted: hub token>'
    >>> hide_secrets("train.py --db-pass tiger --lr 1e-4")
    'train.py --db-pass <redacted: secret key> --lr 1e-4'
    """
    if len(text) <= _CACHED and len(key) <= _CACHED:
        hidden = _hide_short(text, key)  # the cache may return an equal text that is another object
        return text if hidden == text else hidden
    if len(text) > MAX_SCANNED:
        return f"{_hide(text[:MAX_SCANNED], key)} <{len(text) - MAX_SCANNED} more characters>"
    return _hide(text, key)


@lru_cache(maxsize=4096)
def _hide_short(text: str, key: str) -> str:
    return _hide(text, key)


def _hide(text: str, key: str) -> str:
    if len(text) < 4:  # nothing so short can hold one
        return text
    # URLs come before the shapes: the blank in a shape's note would end the URL, and leave a user's name in sight.
    if "://" in text and "@" in text:
        text = _USERINFO.sub(_userinfo, text)
    if BEGINNING.search(text):
        text = _replaced(shapes(), text)
    hinted = _HINT.search(text) is not None or not (text.isascii() or _ABROAD_HINT.search(text) is None)
    if hinted:
        text = _replaced(shapes_of_words(), text)
    if TOOLS.search(text):
        text = COMMANDS.sub(_without_group, text)
    if hinted:
        text = _BESIDE.sub(_without_value, _TAGGED.sub(_without_value, text))
        if "\n" in text and "," in text:
            text = _hide_columns(text)
        text = _hide_named(text)
    if len(text) >= _LONG:
        text = LONG.sub(lambda hit: "<redacted: random token>" if is_random(hit[0]) else hit[0], text)
    # 40 hexadecimal digits are a git commit as well as a key of W&B, so the name decides.
    return _HEX40.sub("<redacted: api key>", text) if _WANDB_KEY.search(key[-MAX_NAME:]) else text


def _replaced(patterns: Shapes, text: str) -> str:
    for name, shape in patterns:
        text = shape.sub(f"<redacted: {name}>", text)
    return text


def _without_group(hit: re.Match[str]) -> str:
    """The match with its one matched group hidden, unless that is a note already."""
    begin, end = hit.span(hit.lastgroup or 0)
    value = hit.string[begin:end]
    if value.startswith(_NOTE) or _A_PLACEHOLDER.fullmatch(value):
        return hit[0]
    if hit.lastgroup == "said" and (is_name(value) or not _SAID.fullmatch(value)):
        return hit[0]
    if hit.lastgroup == "quoted" and (value.isalpha() or is_name(value) or _NUMBER.fullmatch(value)):
        return hit[0]
    return f"{hit[0][: begin - hit.start()]}{HIDDEN}{hit[0][end - hit.start() :]}"


def _without_value(hit: re.Match[str]) -> str:
    """The match of a name and a value, with the value hidden if the name marks a secret."""
    groups = hit.groupdict()
    name = next((groups[one] for one in ("name", "field", "variable") if groups.get(one)), "")
    place = next((one for one in ("value", "input", "default") if groups.get(one)), "value")
    value = groups[place] or ""
    if value.startswith(_NOTE) or not holds_secret(name, value):
        return hit[0]
    begin, end = hit.span(place)
    return f"{hit[0][: begin - hit.start()]}{HIDDEN}{hit[0][end - hit.start() :]}"


def _userinfo(hit: re.Match[str]) -> str:
    """The part of a URL before its last @ if harmless (a user's name, a path with @); else a note in its place."""
    userinfo, after = hit[0], hit.string[hit.end() + 1 : hit.end() + 1 + _MAX_HOST]
    host = userinfo.partition("/")[0]
    ends = host.rfind("@") if len(host) < len(userinfo) else -1  # of a URL whose path has an @, too
    name, at, rest = (userinfo[:ends], "@", userinfo[ends + 1 :]) if ends != -1 else (userinfo, "", "")
    if ":" in host:
        is_secret = "/" not in name or not _PORT.match(name)
    elif "/" in name:  # base64 has slashes; host/path@version has them, too
        is_secret = "." not in host and bool(_HOST.match(after)) and bool(_OPAQUE.search(name))
    else:
        is_secret = len(name) >= _TOKEN or bool(_SHORT_TOKEN.fullmatch(name))
    return f"<redacted: url password>{at}{rest}" if is_secret else userinfo


def _hide_columns(text: str) -> str:
    """Return a CSV's text without the fields below a header's secret names."""
    header, *rows = text.split("\n")
    names = header.split(",")
    secret = [place for place, name in enumerate(names) if kind_of(name.strip(" \"'")[-MAX_NAME:]) == "secret"]
    if not secret or len(names) < _PAIR or "=" in header:
        return text
    shown = [header]
    for row in rows:
        fields = row.split(",")
        if len(fields) == len(names):
            fields = [HIDDEN if i in secret and value.strip() else value for i, value in enumerate(fields)]
        shown.append(",".join(fields))
    return "\n".join(shown)


def _hide_named(text: str) -> str:
    """Return the text without the values of secret names."""
    shown: list[str] = []
    done = position = 0
    while (hit := _NAMED.search(text, position)) is not None:
        # Not from the sign's end: in `db: password = "..."` the sign holds the next name, which looks like a type.
        position = hit.end("name")
        if not (kind_of(hit["name"][-MAX_NAME:]) or hit["name"].lower() in _WHOLE_LINE):
            continue
        begin, end = _value(text, hit)
        if begin < end:
            shown += [text[done:begin], HIDDEN]
            done = position = end
    return "".join([*shown, text[done:]]) if shown else text


def _value(text: str, hit: re.Match[str]) -> tuple[int, int]:  # noqa: PLR0911  # one return for each form of a value
    """Start and end of the secret value after a name; an empty span if it is harmless or absent."""
    name, sign = hit["name"], hit["sign"].strip()
    opened = _OPEN.match(text, hit.end())
    assert opened is not None  # noqa: S101  # it may be empty
    begin = opened.end()
    if opened["block"] and sign == ":":
        return begin, _end_of(_ITEMS, text, begin)
    if sign in {"", ","} and not hit["dashes"]:
        return _after_a_word(text, hit, opened)
    if opened["bracket"]:
        return (begin - 1, _balanced(text, begin - 1)) if kind_of(name) != "key" else (0, 0)
    is_header = name.lower() in _WHOLE_LINE or (name[:2].lower() == "x-" and kind_of(name) != "")
    if sign == ":" and is_header and not opened["quote"]:
        end = _end_of_header(text, hit.start(), begin)
        is_harmless = _REDACTED.match(text, begin) or text[begin:end].strip().lower() in _HARMLESS
        return (0, 0) if is_harmless else (begin, end)
    end = _end_of_value(text, hit, opened)
    value = text[begin:end]
    if value.endswith("(") and not opened["quote"]:  # what a call is given: `auth=HTTPBasicAuth("bob", "...")`
        return (
            (end - 1, _balanced(text, end - 1)) if holds_secret(name, value) and kind_of(name) == "secret" else (0, 0)
        )
    if kind_of(name) == "token" and (_PATH.match(value) or text[: hit.start()].endswith("by ")) and sign != "=":
        return 0, 0
    bare = value.rstrip(",;.)}]")
    if value.startswith(("--", _NOTE)) or not holds_secret(name, bare):
        return 0, 0
    if bare.endswith(":") and "\n" in text[hit.end() : begin]:  # it is the name on the next line: this one has no value
        return 0, 0
    is_said = sign in {":", "->", "is", "was"} and not (hit["quote"] or (sign == ":" and opened["quote"]))
    is_prose = is_said and not _is_a_line(text, hit.start(), end)
    return (0, 0) if is_prose and not is_mixed(bare) else (begin, begin + len(bare))


def _end_of_value(text: str, hit: re.Match[str], opened: re.Match[str]) -> int:
    begin = opened.end()
    if opened["quote"]:
        end = text.find(opened["quote"], begin)
        return len(text) if end == -1 else end
    if hit["sign"] == "%3D":
        return _end_of(_OF_A_CODED_QUERY, text, begin)
    of_a_query = text[max(0, hit.start() - 1) : hit.start()] in {"?", "&"}
    return _end_of(_OF_A_QUERY if of_a_query else _BARE, text, begin)


def _after_a_word(text: str, hit: re.Match[str], opened: re.Match[str]) -> tuple[int, int]:
    """Start and end of a value after a blank or comma, if it cannot be a word: `ENV API_KEY v`, `("api-key", "v")`."""
    begin, name = opened.end(), hit["name"]
    is_pair = "," in hit["sign"]
    if is_pair and not (hit["quote"] and opened["quote"]):
        return 0, 0
    end = _end_of_value(text, hit, opened)
    value = text[begin:end]
    plain = is_pair and kind_of(name) == "secret" and len(value) >= _PAIRED and not value.isalpha()
    is_said = kind_of(name) == "secret" and "_" in name and _SAID.fullmatch(value) and not is_name(value)
    is_secret = holds_secret(name, value) and (
        _RANDOM.fullmatch(value) or is_said or (plain and any(map(str.isdigit, value)))
    )
    return (begin, end) if is_secret else (0, 0)


def _end_of_header(text: str, start: int, begin: int) -> int:
    """The end of a header's value: the end of its line, or the closing quote if the header is quoted."""
    end = _end_of(_LINE, text, begin)
    around = text[max(0, start - 1) : start]
    closed = text.find(around, begin, end) if around in {"'", '"'} else -1
    return end if closed == -1 else closed


def _is_a_line(text: str, start: int, end: int) -> bool:
    """Whether a name and its value fill one line of several, as in YAML, so that they are not prose."""
    line = text[text.rfind("\n", 0, start) + 1 : start]
    return "\n" in text and not line.strip(" \t-") and text[end : end + 1] in {"", "\n", "\r"}


def _end_of(pattern: re.Pattern[str], text: str, begin: int) -> int:
    hit = pattern.match(text, begin)
    return begin if hit is None else hit.end()


def is_mixed(value: str) -> bool:
    """Whether a value is unlike a word: at least six characters, not all of them letters."""
    return len(value) >= 6 and not value.isalpha()


def _balanced(text: str, begin: int) -> int:
    """Index after the bracket that closes the one at `begin`; the text's end if none does."""
    expected: list[str] = []
    for place in range(begin, len(text)):
        char = text[place]
        if char in _CLOSING:
            expected.append(_CLOSING[char])
        elif expected and char == expected[-1]:
            expected.pop()
            if not expected:
                return place + 1
    return len(text)
