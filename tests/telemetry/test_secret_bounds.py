"""How long a secret must be to be taken for one: each shape at its least length, and a character under it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NamedTuple

import pytest
from tables import every

from gradience.schema import SCHEMA_ID, TrainStep
from gradience.schema.events import Alert
from gradience.telemetry.redact import below, hide_in, names_beside, names_in, redact_event, redact_text, to_line
from gradience.telemetry.secrets import hide_secrets, holds_secret


class Pair(NamedTuple):
    name: str
    held: dict[str, str]


@dataclass(frozen=True)
class Held:
    name: str
    db_pass: str
    pair: Pair | None


BODY = "aB3dE5gH7jK9mN1pQ2" * 20
HEX = "0a1b2c3d4e5f6789" * 10
SHAPES = [  # (name, what stands before, the characters, the least number of them)
    ("hub token", "hf_", BODY, 16),
    ("hub token", "hf_", "abcdefghij" * 9, 30),  # of one case it may be words
    ("hub token", "api_org_", BODY, 16),
    ("api key", "sk-", BODY, 20),
    ("payment key", "sk_live_", BODY, 16),
    ("payment key", "whsec_", BODY, 16),
    ("github token", "ghp_", BODY, 20),
    ("github token", "github_pat_", BODY, 20),
    ("gitlab token", "glpat-", BODY, 16),
    ("aws key id", "AKIA", "0A1B2C3D4E5F6G7H", 16),
    ("google api key", "AIza", BODY, 30),
    ("google token", "ya29.", BODY, 20),
    ("google token", "GOCSPX-", BODY, 20),
    ("slack token", "xoxb-", BODY, 10),
    ("slack token", "xapp-", BODY, 20),
    ("webhook", "hooks.slack.com/services/", BODY, 20),
    ("webhook", "discord.com/api/webhooks/", BODY, 20),
    ("webhook", "https://hook.example.com/", BODY, 16),
    ("npm token", "npm_", BODY, 30),
    ("pypi token", "pypi-", BODY, 30),
    ("docker token", "dckr_pat_", BODY, 20),
    ("vault token", "hvs.", BODY, 20),
    ("terraform token", "aB3dE5gH7jK9mN.atlasv1.", BODY, 20),
    ("sendgrid key", f"SG.{BODY[:16]}.", BODY, 16),
    ("databricks token", "dapi", HEX[:32], 32),
    ("replicate token", "r8_", BODY, 30),
    ("shop token", "shpat_", HEX[:32], 32),
    ("mail key", "key-", HEX[:32], 32),
    ("vendor key", "lin_api_", BODY, 30),
    ("vendor key", "NRAK-", BODY, 20),
    ("vendor key", "gsk_", BODY, 20),
    ("json web token", f"eyJ{BODY[:8]}.", BODY, 8),
    ("telegram token", "12345678:AA", BODY[:33], 33),
    ("discord token", f"M{BODY[:23]}.{BODY[:6]}.", BODY, 27),
    ("age key", "AGE-SECRET-KEY-1", "0A1B2C3D4E" * 6, 50),
    ("authorization", "Bearer ", "abc1def2" * 9, 16),
    ("signature", "https://x.org/a?sig=", "abc1def2" * 9, 16),
    ("key of a request", "https://x.org/a?code=", "abc1def2" * 9, 16),
    ("vendor key", "pa-", BODY, 40),
    ("vendor key", "figd_", BODY, 20),
    ("vendor key", "figd_", "abc1efghij" * 9, 40),  # of one case it may be words
    ("vendor key", "sbp_", HEX, 32),
    ("vendor key", "ak-", BODY[:22], 22),
    ("vendor key", "npg_", BODY, 12),
    ("vendor key", "sk_", HEX[:48], 48),
    ("vendor key", "AKID", BODY, 32),
    ("vendor key", "patA0b1C2d3E4f5G6.", HEX, 64),
    ("vendor key", f"v1.0-{HEX[:24]}-", HEX, 140),
    ("vendor key", "sl.", BODY, 100),
    ("webhook", "https://x.office.com/webhook/", BODY, 16),
    ("private key", "Private-Lines: 1\n", BODY[:64], 4),
    ("secret key", "wandb login ", BODY, 20),
]
NO_SHAPES = [  # a character too many, too few in the middle, none that tells it from a word, or a letter before it
    "AKIA0A1B2C3D4E5F6G7HI",
    "AKIA0A1B2C3D4E5F6G7Hi",
    "xAKIA0A1B2C3D4E5F6G7H",
    "1AKIA0A1B2C3D4E5F6G7H",
    *(f"{digits}:AA{BODY[:size]}" for digits, size in (("12345678", 34), ("1234567", 33), ("12345678901", 33))),
    f"dapi{HEX[:33]}",
    f"key-{HEX[:33]}",
    f"ak-{BODY[:23]}",
    f"sk_{HEX[:49]}",
    *(f"M{BODY[:a]}.{BODY[:b]}.{BODY[:27]}" for a, b in ((22, 6), (28, 6), (23, 5), (23, 7))),
    f"SG.{BODY[:15]}.{BODY[:16]}",
    f"eyJ{BODY[:7]}.{BODY[:8]}.",
    *(f"{begin}{'abcdefghij' * 3}" for begin in ("sk-", "gsk_", "figd_", "Bearer ", "token ")),
    f"xhf_{BODY[:30]}",
]


@every(("name", "before", "body", "least"), SHAPES, ids=[f"{s[0]}-{s[1][:12]}" for s in SHAPES])
def test_a_secret_of_the_least_length_is_hidden_and_a_shorter_text_is_not(name, before, body, least):
    # a JWT ends with a dot and a signature, which may be empty
    tail = "." if name == "json web token" else ""
    assert f"<redacted: {name}>" in hide_secrets(f"{before}{body[:least]}{tail}")
    shorter = f"{before}{body[: least - 1]}{tail}"
    assert f"<redacted: {name}>" not in hide_secrets(shorter)


def test_what_is_almost_a_secret_is_none():
    hidden = {text: hide_secrets(f"a {text} z") for text in NO_SHAPES}
    odd = {text: found for text, found in hidden.items() if found != f"a {text} z"}
    assert [found for found in odd.values() if "<redacted: random token>" not in found] == []
    for digits in ("12345678", "1234567890"):
        assert hide_secrets(f"{digits}:AA{BODY[:33]}") == "<redacted: telegram token>"
    for size in (23, 27):
        assert hide_secrets(f"M{BODY[:size]}.{BODY[:6]}.{BODY[:27]}") == "<redacted: discord token>"
    assert hide_secrets("_AKIA0A1B2C3D4E5F6G7H") == "_<redacted: aws key id>"
    for size in (16, 200):
        assert hide_secrets(f"SG.{BODY[:size]}.{BODY[:16]}") == "<redacted: sendgrid key>"
    shown = "docker --config /etc/docker/conf login x.org -p <redacted: secret key>"
    assert hide_secrets(shown.replace("<redacted: secret key>", "tiger")) == shown
    for size, hidden in ((64, True), (65, False)):
        text = f"curl -u {'j' * size}:tiger https://x"
        assert hide_secrets(text) == (text.replace("tiger", "<redacted: secret key>") if hidden else text)


@pytest.mark.parametrize(("digits", "hidden"), [(39, False), (40, True), (41, False)])
def test_forty_hexadecimal_digits_are_a_key_under_the_name_of_wandb(digits, hidden):
    value = HEX[:digits]
    assert (hide_secrets(value, "wandb") != value) is hidden
    assert hide_secrets(value, "sha1") == value


@every(
    ("key", "value", "secret"),
    [
        ("key", BODY[:16], True),
        ("key", BODY[:15], False),
        ("key", "a" * 24, False),
        ("key", "a" * 23 + "1", True),
        ("key", "a" * 22 + "1", False),
        ("token", "12345678", True),
        ("token", "1234567", False),
        ("token", "<|endoftext|>", False),
        ("token", "[PAD]", False),
        ("password", "x", True),
        ("password", "none", False),
        ("password", " None\n", False),
        ("password", "", False),
        ("password", "  ", False),
        ("password", "none of these", True),
        ("password", "0", True),
        ("token", "", False),
        ("token", "a" * 7 + " ", True),
        ("token", "<a><b>c", False),
        ("token", "<a><b>cd", True),
        ("key", "a1" * 8, True),
        ("key", "1" * 24, False),
        ("key", "abcdefghabcdefg1", False),
        ("tokens", "x" * 20, False),
        ("first_pass", "x" * 20, False),
        ("pass", "x", False),
        ("2", "x" * 20, False),
        ("password", "<redacted: secret key>", False),
        ("bypass", "x" * 20, False),
        ("forward_pass", "x" * 20, False),
        ("db_pass", "x", True),
        ("api_key_v2", "x", True),
        ("api_key_old", "x", True),
        ("num_tokens", "x" * 20, False),
        ("access_tokens", "x" * 20, True),
        ("eos_token", "x" * 20, False),
        ("sort_keys", "x" * 30, False),
        ("my_key", "abcdefgh1abcdefg", True),  # two changes that share their digit
        ("my_key", "12345678a1234567", True),
        ("my_key", "abcdefgh1abcdef", False),  # 15 characters
        ("my_key", "abcdefghabcdefg1", False),  # one change
        ("connection_string", "x", True),
        ("query_string", "x" * 20, False),
        ("k" * 200 + "_password", "x", True),
        ("password" + "_k" * 100, "x", False),
    ],
)
def test_a_name_marks_its_value_by_its_noun(key, value, secret):
    assert holds_secret(key, value) is secret


@every(
    ("text", "shown"),
    [
        ("https://joe@x.org/a", "https://joe@x.org/a"),
        ("https://joe:pw@x.org/a", "https://<redacted: url password>@x.org/a"),
        ("https://" + "a" * 15 + "@x.org", "https://" + "a" * 15 + "@x.org"),
        ("https://" + "a" * 16 + "@x.org", "https://<redacted: url password>@x.org"),
        ("https://a1bcdefgh@x.org", "https://a1bcdefgh@x.org"),
        ("https://a1bcdefghi@x.org", "https://<redacted: url password>@x.org"),
        ("https://abcdefghij@x.org", "https://abcdefghij@x.org"),
        ("https://x.org:8080/@me", "https://x.org:8080/@me"),
        ("https://joe:8080@x.org/a", "https://<redacted: url password>@x.org/a"),  # digits alone are no port here
        ("https://joe:p/w@x.org/a", "https://<redacted: url password>@x.org/a"),
        (f"https://{BODY[:24]}/aB3@{'h' * 77}.com", f"https://<redacted: url password>@{'h' * 77}.com"),
        (f"https://{'ab3d' * 6}/aB3@{'h' * 77}.com", f"https://<redacted: url password>@{'h' * 77}.com"),
        (f"https://{'ab3d' * 6}/aB3@{'h' * 78}.com", f"https://{'ab3d' * 6}/aB3@{'h' * 78}.com"),  # no host's length
        (f"https://{BODY[:24]}/aB3@part@x.com/", "https://<redacted: url password>@x.com/"),
        ("?password=tiger&lr=1", "?password=<redacted: secret key>&lr=1"),
        ("a?lr=1&password=tiger&x=1", "a?lr=1&password=<redacted: secret key>&x=1"),
        ("password=tiger&x=1", "password=<redacted: secret key>"),  # no query: the value goes on
        ("password: tiger", "password: tiger"),  # prose
        ("password: tiger1", "password: <redacted: secret key>"),
        ("password: t1ger", "password: t1ger"),
        ("password=tiger", "password=<redacted: secret key>"),
        ("--password tiger", "--password <redacted: secret key>"),
        ("password tiger", "password tiger"),
        ("Cookie: a=b; c=d", "Cookie: <redacted: secret key>"),
        (f"Authorization: Bearer {BODY[:20]}", "Authorization: <redacted: authorization>"),
        ("Set-Cookie: a=b; c=d", "Set-Cookie: <redacted: secret key>"),
        ("Proxy-Authorization: a=b; c=d", "Proxy-Authorization: <redacted: secret key>"),
        ('passwords=["a", ["b"]] x', "passwords=<redacted: secret key> x"),
        ("key=[1, 2]", "key=[1, 2]"),
        ("with API_KEY (a1b2c3d4e5f6g7h8 of x)", "with API_KEY (<redacted: secret key> of x)"),
        *((f"password=tiger{end} x", f"password=<redacted: secret key>{end} x") for end in ",;.)}]"),
    ],
)
def test_a_secret_is_known_by_its_place(text, shown):
    assert hide_secrets(text) == shown


def test_below_a_secret_name_every_text_is_hidden_and_beside_it_none():
    hidden = "<redacted: secret key>"
    assert hide_in({"api_key": ["a", {"deep": "b"}], "lr": "c"}) == {"api_key": [hidden, {"deep": hidden}], "lr": "c"}
    assert hide_in([{"name": "API_KEY", "value": "a"}, {"name": "lr", "value": "b"}]) == [
        {"name": "API_KEY", "value": hidden},
        {"name": "lr", "value": "b"},
    ]
    assert hide_in(["--api-key", "a", "--lr", "b"]) == ["--api-key", hidden, "--lr", "b"]
    assert hide_in(("password", "a")) == ("password", hidden)
    assert hide_in(["password", "a", "b"]) == ["password", "a", "b"]
    assert names_beside(["--token=x", "a"], "k") == ["k", "k"]
    name = f"{'x' * 119}_password"
    assert hide_in([name, "a"]) == [name, hidden]
    assert hide_in([f"x{name}", "a"]) == [f"x{name}", "a"]  # of 129 characters
    assert names_in({"key": "lr", "value": 1}) == ["key", "value"]
    long = f"{'x' * 200}_api_key"  # judged by its end
    assert names_in({"key": long, "value": 1}) == ["key", long]
    assert names_in({"key": f"api_key_{'x' * 200}", "value": 1}) == ["key", "value"]
    assert below("hub_token", "eos_token") == "hub_token"
    assert below("hub_token", "password") == "password"
    long = f"{'x' * 200}_hub_token"  # judged by its end
    assert below(long, "value") == long
    assert below(f"hub_token_{'x' * 200}", "value") == "value"
    pair = Pair("a", {"password": "b"})
    assert hide_in(pair) == Pair("a", {"password": hidden})
    assert type(hide_in(pair)) is Pair
    assert hide_in(Held("a", "b", pair)) == Held("a", hidden, Pair("a", {"password": hidden}))
    assert hide_in({"api_key": Held("a", "b", None)}) == {"api_key": Held(hidden, hidden, None)}
    for harmless in (Pair("a", {"lr": "b"}), Held("a", "", Pair("a", {}))):
        assert hide_in(harmless) is harmless


@every(
    ("most", "make"),
    [  # the most characters of a part, and a text where it has so many: patterns are bounded to stay fast
        (512, lambda n: f"<password>{'t' * n}</password>"),
        (128, lambda n: f"<{'x' * (n - 9)}_password>tiger</{'x' * (n - 9)}_password>"),
        (512, lambda n: f"https://joe:{'p' * (n - 4)}@x.org"),
        (80, lambda n: f"name: API_KEY,{' ' * n}value: tiger"),
        (4, lambda n: f"name{' ' * n}: API_KEY, value: tiger"),
        (4, lambda n: f"name:{' ' * n}API_KEY, value: tiger"),
        (4, lambda n: f"name: API_KEY, value{' ' * n}: tiger"),
        (4, lambda n: f"name: API_KEY, value:{' ' * n}tiger"),
        (128, lambda n: f"name: {'x' * (n - 8)}_api_key, value: tiger"),
        (400, lambda n: f"password\n {'x' * (n - 1)} input_value=tiger"),
        (128, lambda n: f"{'x' * (n - 9)}_password\n  input_value=tiger"),
        (8, lambda n: f"password{' ' * n}=tiger"),
        (4, lambda n: f"password{' ' * n}is 'tiger1'"),
        (4, lambda n: f"password is{' ' * n}'tiger1'"),
        (40, lambda n: f"--password{' ' * n}tiger"),  # 8 of the sign, and twice 16 before the value
        (32, lambda n: f"password={chr(10) * n}tiger1"),
        (8, lambda n: f'password{chr(92) * n}"=tiger'),
    ],
)
def test_how_far_a_secret_may_stand_from_its_name(most, make):
    assert "tiger" not in hide_secrets(make(most)) != make(most)
    assert hide_secrets(make(most + 1)) == make(most + 1)


@every(
    "text",
    [
        "name: API_KEY, value: {}",
        '"name": "API_KEY", "value": "{}"',
        "name=API_KEY value={}",
        "hub_token\n  Input should be valid [type=x, input_value='{}', input_type=str]",
        "<password>{}</password>",
        "password: {}",
        "password={} x",
        "X-Api-Key: {}",
        "--password {}",
        '("api-key", "{}")',
        "curl -u joe:{} https://x",
        "docker login -p {} x",
        "wandb login {}",
    ],
)
def test_a_secret_with_a_form_of_its_own_is_said_to_be_of_its_kind_and_a_note_stays_as_it_is(text):
    shown = hide_secrets(text.format(TOKEN))
    assert shown == text.format(SHOWN)
    assert hide_secrets(shown) == shown


def test_of_a_long_text_the_beginning_is_kept_and_the_rest_counted():
    limit = 65 * 1024
    assert hide_secrets("x " * (limit // 2)) == "x " * (limit // 2)
    assert hide_secrets("x" * (limit + 7)) == "x" * limit + " <7 more characters>"


TOKEN = "hf_" + "aB3" * 12
SHOWN = "<redacted: hub token>"


def test_what_of_an_event_is_text_of_a_user_is_hidden_and_its_envelope_stays():
    head = {"schema": SCHEMA_ID, "ts": 1.0, "step": 1, "seq": 2}
    alert = Alert(**head, run_id="r", session=f"s {TOKEN}", severity="info", code="c", message=f"see {TOKEN}")
    shown = json.loads(to_line(alert))
    assert (shown["message"], shown["session"], shown["run_id"]) == (f"see {SHOWN}", f"s {SHOWN}", "r")
    assert {key: shown[key] for key in head} == head
    row = TrainStep(**head, run_id=f"r {TOKEN}", loss=1.0)
    assert redact_event(row).run_id == f"r {SHOWN}"
    plain = TrainStep(**head, run_id="r", loss=1.0)
    assert redact_event(plain) is plain
    assert redact_text("tiger", key="db_pass") == redact_text("x" * 300, key="db_pass") == "<redacted: secret key>"
