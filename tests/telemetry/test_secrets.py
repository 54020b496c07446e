"""Secrets by their shape, place and name, to their last character; and how much of a text is shown."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import NamedTuple

from hypothesis import given, strategies as st
from tables import every
from wire import HIDDEN

from gradience.schema import SCHEMA_ID
from gradience.schema.events import Alert, TrainStep
from gradience.telemetry.redact import (
    Redaction,
    below,
    hide_in,
    names_beside,
    names_in,
    redact_document,
    redact_event,
    redact_text,
    to_line,
)
from gradience.telemetry.secrets import hide_secrets, holds_secret


def words(text: str) -> list[str]:
    return text.split()


MIXED = "aB3dE5gH7jK9mN1pQ2sT4vW6xY8zA0bC2dF4gH6j"  # 40 characters


HEX = "0a1b2c3d4e5f6789" * 10


COMMANDS = [
    *(f"{program} -s -u joe:%s https://x" for program in ("curl", "wget", "http", "https")),
    *(f"curl {option}joe:%s https://x" for option in ("--user ", "--user=", "-u ", "-u=")),
    *(f"sshpass -p{gap}%s ssh x" for gap in ("", " ", "  ")),
    *(f"{p} login x.org -u joe -p{gap}%s" for p in words("docker podman helm oras az crane") for gap in " ="),
    *(f"{program} -u joe -p%s db" for program in ("mysql", "mysqldump", "mysqladmin")),
    *(f"{program} login --relogin %s" for program in words("wandb comet neptune swanlab clearml")),
]


def test_a_secret_in_a_command_is_hidden_whatever_the_program():
    shown = {command: hide_secrets(command % MIXED[:20]) for command in COMMANDS}
    assert shown == {command: command % "<redacted: secret key>" for command in COMMANDS}


class Pair(NamedTuple):
    name: str
    held: dict[str, str]


@dataclass(frozen=True)
class Held:
    name: str
    db_pass: str
    pair: Pair | None


BODY = "aB3dE5gH7jK9mN1pQ2" * 20


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
        ("pass", "x", False),
        ("2", "x" * 20, False),
        ("password", "<redacted: secret key>", False),
        ("my_key", "abcdefgh1abcdefg", True),  # two changes that share their digit
        ("my_key", "12345678a1234567", True),
        ("my_key", "abcdefgh1abcdef", False),  # 15 characters
        ("my_key", "abcdefghabcdefg1", False),  # one change
        ("k" * 200 + "_password", "x", True),
        ("password" + "_k" * 100, "x", False),
        ("pass", "second", False),
        ("pass", "2", False),
        ("pass", "0.42", False),
        ("pass", "tiger1", True),
        ("pass", "tiger", False),
        ("sid", "a1b2c3d4" * 5, True),
        ("pin", "a1b2c3d4" * 5, False),  # a commit or digest
        ("pin", "A1b2c3d4" * 5, True),
        ("cache_key", "train-00007-of-00128-3f2a91bc.arrow", False),
        ("cache_key", "pile_shard_00012_of_00300_tok_v3", False),
        ("cache_key", "speaker12session34utt0056", False),
        *(("password", word, False) for word in ("true", "False", "NULL", "yes", "off", "default", "...")),
        *(("api_key", word, False) for word in ("$TOKEN", "${TOKEN}", "{token}", "MY_API_KEY", "***", "os.getenv(1)")),
        ("api_key", "${{ secrets.X }}", False),
        ("api_key", "<your token>", False),
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
        ("https://joe:p:w@x.org/a@b", "https://<redacted: url password>@x.org/a@b"),
        ("https://a/b:c@x.org", "https://a/b:c@x.org"),
        ("https://x.org/aB3/aB3/aB3/aB3/aB3/@hub.com/x", "https://x.org/aB3/aB3/aB3/aB3/aB3/@hub.com/x"),
        (f"https://x/{'ab3de5gh7jk9mn1pq2' * 2}@hub.com", "https://<redacted: url password>@hub.com"),
        (f"https://x/{'ab3de5gh7jk9mn1pq2' * 2}@hub", f"https://x/{'ab3de5gh7jk9mn1pq2' * 2}@hub"),
        ("https://x/aB3dE5gH7jK9m@hub.com", "https://x/aB3dE5gH7jK9m@hub.com"),
        ("git+ssh://abcdefghijklmnop@x.org", "git+ssh://<redacted: url password>@x.org"),
        ("https://<redacted: hub token>@x.org", "https://<redacted: hub token>@x.org"),
        ("https://x.org:8080/@me", "https://x.org:8080/@me"),
        ("https://joe:8080@x.org/a", "https://<redacted: url password>@x.org/a"),  # digits alone are no port here
        ("https://joe:p/w@x.org/a", "https://<redacted: url password>@x.org/a"),
        (f"https://{BODY[:24]}/aB3@{'h' * 77}.com", f"https://<redacted: url password>@{'h' * 77}.com"),
        (f"https://{'ab3d' * 6}/aB3@{'h' * 77}.com", f"https://<redacted: url password>@{'h' * 77}.com"),
        (f"https://{'ab3d' * 6}/aB3@{'h' * 78}.com", f"https://{'ab3d' * 6}/aB3@{'h' * 78}.com"),  # no host's length
        (f"https://{BODY[:24]}/aB3@part@x.com/", "https://<redacted: url password>@x.com/"),
        ("a" * 3, "a" * 3),
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


@every(
    ("key", "digits", "hidden"),
    [
        ("wandb", 39, False),
        ("wandb", 40, True),
        ("wandb", 41, False),
        ("sha1", 40, False),
        ("x" * 200 + ".wandb", 40, True),  # a long key is judged by its end
        ("wandb" + "x" * 128, 40, False),
    ],
)
def test_forty_hexadecimal_digits_are_a_key_under_the_name_of_wandb(key, digits, hidden):
    assert hide_secrets(HEX[:digits], key) == ("<redacted: api key>" if hidden else HEX[:digits])


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


# --- what is hidden ----------------------------------------------------------------------------------------------
ROOTS = re.findall(r"\w+", "home Users root mnt scratch gpfs lustre data tmp var workspace content")


PLACES = [  # the secret between [[ and ]]
    "password: |\n  [[tiger\n  lion]]\nlr: 1",
    "password:\n- [[tiger\n- lion]]\nlr: 1",
    "password: >-\n [[tiger]]\n",
    "tokens:\n- a\n",
    "password=- [[tiger]] lr=1",  # no block, as no colon is before it
    'api_key = "[[ti ger]]" # x',
    "api_key='[[tiger]]' x",
    'api_key="[[tiger]]',
    '{"password": "[[tiger]]", "lr": 1}',
    '{"password": null}',
    '{"password": [[["a", "b"]]], "x": 1}',
    '{"api_key": [[{"a": [1, 2]}]], "x": 1}',
    "password=[[(a b)]] c",
    "password=[[[a]]",
    "https://x.org/?password=[[tiger]]&x=1#f",
    'https://x.org/?a=1&password=[[tiger]]"',
    "redirect=https%3A%2F%2Fx.org%3Fpassword%3D[[tiger]]%26x%3D1",
    "Authorization: [[Bearer]]",
    "Authorization: [[secret words here]]\nNext: x",
    '"Authorization: [[secret words]]" tail',
    "curl -H 'X-Api-Key: [[abc def]]' url",
    "x-auth: [[abc def]]\nb",
    "x-frame: abc def\nb",
    "password: [[tiger1]], lr: 2",
    "password=[[tiger]]).",
    "password=--lr",
    "password=<redacted: x> a",
    "password is tiger",
    "the password -> [[tiger9]] then",
    "-password [[tiger]] --x",
    "--token 1234567",
    "--token [[12345678]]",
    "ENV API_KEY [[a1b2c3d4e5f6g7h8]] x",
    "ENV API_KEY a1b2c3d4e5f6g7h x",
    '("api-key", "[[abc12345]]")',
    '("api-key", "abc1234")',
    '("api-key", "abcdefgh")',
    '("key", "abc12345")',
    "(api-key, abc12345)",
    '["--password", "[[tiger]]"]',
    "password:\nuser: joe",
    "password:\n  [[tiger1]]",
    "name: db\npassword: [[tiger]]\nlr: 1",
    "name: db\npassword: [[tiger]]",
    "a password: tiger\nlr: 1",
    "password: tiger cat\nlr: 1",
    "password: [[tiger]]\r\nlr: 1",
    "- password: [[tiger]]\n",
    "<password>[[tiger]]</password>",
    "<password>tig</password>",
    "<user>tiger</user>",
    "name: API_KEY, value: [[tiger]]",
    "name=lr value=tiger",
    "password\n  Input should be valid [type=x, input_value='[[tiger]]', input_type=str]",
    "lr\n  Input should be [input_value=tiger]",
    "curl -u joe:[[tiger]] https://x",
    "sshpass -p [[tiger]] ssh x",
    "docker login -u joe -p [[tiger]] x",
    "mysql -u joe -p[[tiger]] db",
    "wandb login [[abcdefghij0123456789]]",
    "wandb login abcdefghij012345678",
    "a" * 300 + " password=[[tiger]]",
    "conn_string=[[tiger]]",
    "key=[[a1b2c3d4e5f6g7h8]]",
    "key=a1b2c3d4e5f6g7h",
    "hf_token: null",
    "token: <pad>",
    "a password=[[x]], a secret=[[y]] and a token=[[12345678]]",
    "pwd=[[x]]",
    'the password is "tigers" there',
    "the password `[[tiger12]]` there",
    "user,password,lr\njoe,[[tiger]],1\nann,[[lion]],2\nshort,row\nann,,2",
    "user,password=[[tiger]]\njoe,lion",
    "password\ntiger, lion",
    'Authorization: "[[secret words]]" tail',
    "Cookie: '[[secret words]]' tail",
    '-H "Cookie: [[secret words]]" tail',
    "prompt_logprobs: /v1/completions: none; logprobs token by token: /v1/completions: no token ids",
    "api_key=SecretStr[[('hunter2xyz')]], r=8",
]


@every("marked", PLACES)
def test_a_secret_is_hidden_to_its_last_character_and_nothing_beside_it(marked):
    text = re.sub(r"\[\[(.*?)\]\](?!\])", r"\1", marked, flags=re.DOTALL)
    shown = re.sub(r"\[\[(.*?)\]\](?!\])", HIDDEN, marked, flags=re.DOTALL)
    assert hide_secrets(text) == shown


def test_values_are_hidden_by_the_names_around_them():
    secret = {"api_key": ["a", {"b": 1, "c": "d", 5: "e"}]}
    assert hide_in(secret) == {"api_key": [HIDDEN, {"b": 1, "c": HIDDEN, 5: HIDDEN}]}
    harmless = {"lr": [1, 2.5, None, "x", float("nan")], "loss": float("nan"), "a": ("b", True)}
    assert hide_in(harmless) is harmless
    for _ in range(2):  # the same texts again, as other objects
        again = json.loads('{"lr": "constant", "a": ["cosine"]}')
        assert hide_in(again) is again
    assert hide_in({"password=tiger": 1}) == {f"password={HIDDEN}": 1}
    assert hide_in(["--lr", "a", "-token", "b1b1b1b1"]) == ["--lr", "a", "-token", HIDDEN]
    assert hide_in(["api_key", "b"]) == ["api_key", HIDDEN]
    assert hide_in(["hf_token", "abcdef"]) == ["hf_token", "abcdef"]
    assert hide_in(["hf_token", "abcde12345"]) == ["hf_token", HIDDEN]
    assert hide_in(["k" * 129, "x"]) == ["k" * 129, "x"]
    assert names_beside(["--api-key", "v", "x"], "k") == ["k", "api-key", "k"]
    assert names_beside(["api_key", "v", "x"], "k") == ["k", "k", "k"]
    assert hide_in({"password=tiger": 1, "password=lion": 2}) == {f"password={HIDDEN}": 2}  # two names become one
    assert names_beside(["password", 1234], "k") == ["k", "password"]  # a value need be no text
    assert names_beside([1234, "password"], "k") == ["k", "k"]
    assert names_beside(["v", "--api-key"], "k") == ["k", "k"]
    assert names_beside([f"--{'x' * 150}-password", "v", "w"], "k") == ["k", f"{'x' * 150}-password", "k"]
    assert names_beside(["--field=password", "v", "w"], "k") == ["k", "k", "k"]
    assert names_in({"option": "password", "default": 1, "help": 2}) == ["option", "password", "help"]
    assert names_in({"name": 3, "value": 1}) == ["name", "value"]
    assert names_in({"key": f"{'x' * 200}_api_key", "value": 1}) == ["key", f"{'x' * 200}_api_key"]
    assert names_in({"key": f"api_key_{'x' * 200}", "value": 1}) == ["key", "value"]
    assert below(f"{'x' * 200}_hub_token", "value") == f"{'x' * 200}_hub_token"
    assert below(f"hub_token_{'x' * 200}", "value") == "value"
    assert [below(*pair) for pair in (("hub_token", "value"), ("hub_token", "api_key"), ("a_key", "x"))] == [
        "hub_token",
        "api_key",
        "x",
    ]
    assert below("x" * 200 + "wandb", "key") == "key"
    assert below("my_WandB", "key") == "my_WandB.key"


@every(
    ("text", "shown"),
    [
        ("/mnt/models/llama", "llama"),
        ("/mnt/models/llama/", "llama"),
        ("~/x/y", "y"),
        ("./x", "x"),
        ("C:\\a\\b", "b"),
        ("C:\\a\\b\\", "b"),
        ("C:/a\\b//", "b"),
        ("~~/alice/My Drive/llama".replace("~~", "/home"), "llama"),
        ("/home/alice/x is missing", "x is missing"),
        ("no file ~/alice/x.json, and none in /scratch/alice/y", "no file x.json, and none in y"),
        ("~", "~"),
        ("~/", "~"),
        ("~joe/a", "a"),
        ("../a/b", "b"),
        ("file:///a/b", "b"),
        (".hidden/b", ".hidden/b"),
        ("\\\\host\\share\\f", "f"),
        ("/", "<path>"),
        ("/a/b is a sentence", "/a/b is a sentence"),
        ("see /home/joe/run.log now", "see run.log now"),
        ("see /opt/joe/run.log now", "see /opt/joe/run.log now"),
        ("cp /home/joe/a.log /tmp/joe/b.log ~/c/d.log", "cp a.log b.log d.log"),
        ("see C:\\Users\\joe\\run.log now", "see run.log now"),
        ("x" * 256, "x" * 256),
        ("x" * 257, "<redacted: text of 257 characters>"),
    ],
)
def test_a_path_is_shown_as_its_last_part_and_a_long_text_as_its_length(text, shown):
    assert redact_text(text) == shown
    if len(text) > 256:
        assert redact_text(text, Redaction(allow_text=True)) == text
        assert redact_text(text, Redaction(max_str_len=257)) == text
        for root in ROOTS:
            assert redact_text(f"see /{root}/joe/run.log now") == "see run.log now"


def test_a_key_is_cut_at_128_characters_and_keeps_a_sum_of_the_rest():
    def key(name: str) -> str:
        return next(iter(redact_document({name: 1}, Redaction())))

    assert key("a" * 128) == "a" * 128
    for length in (129, 1024, 1025, 2000):
        cut = key("a" * length)
        assert re.fullmatch(r"a{119}~[0-9a-f]{8}", cut)
        assert len(cut) == 128
    assert key("a" * 129) != key("a" * 130)
    assert key("hf_" + "aB3" * 12) == "<redacted: hub token>"
    for before in (90, 110, 118):  # a secret is hidden before the key is cut
        assert "hf_" not in key("x" * before + " hf_" + "aB3" * 12)
    argv = {"argv": ["train.py", "--api-key", "tiger", "--lr", "1"], "pair": ["password", "lion"]}
    assert redact_document(argv, Redaction()) == {
        "argv": ["train.py", "--api-key", HIDDEN, "--lr", "1"],
        "pair": ["password", HIDDEN],
    }
    kept = {"schema": "/a/b", "run_id": "/home/joe/x", "session": "/home/joe/y", "step": 1, "note": "/home/joe/x"}
    assert redact_document(kept, Redaction()) == {**kept, "note": "x"}


@given(st.text(max_size=300), st.sampled_from([Redaction(), Redaction(allow_text=True)]))
def test_redacting_twice_changes_nothing_more(text: str, rule: Redaction) -> None:
    once = redact_text(text, rule)
    assert redact_text(once, rule) == once


def test_redaction_takes_time_in_proportion_to_the_text() -> None:
    for text in (
        "a" * 60_000,
        "token " * 10_000,
        "-----BEGIN PRIVATE KEY-----" * 2_000,
        "/x" * 30_000,
        "eyJ.a" * 12_000,
    ):
        hide_secrets(text)  # would not return in this lifetime if a pattern backtracked


@given(st.sampled_from([shape for shape in SHAPES if shape[3] >= 10]), st.text(max_size=20), st.text(max_size=20))
def test_a_secret_is_found_inside_any_text(shape, before, after):
    _, begin, body, least = shape
    assert body[:least] not in hide_secrets(f"{before} {begin}{body[:least]} {after}")


NAMES_OF_MODELS_AND_DATA = """
    meta-llama/Llama-3-8B Qwen/Qwen2.5-0.5B-Instruct mistralai/Mixtral-8x7B-v0.1 distilbert-base-uncased
    hf-internal-testing/tiny-random-distilbert HuggingFaceH4/zephyr-7b-beta unsloth/llama-3-8b-bnb-4bit
    sentence-transformers/all-MiniLM-L6-v2 microsoft/Phi-3-mini-4k-instruct stabilityai/stable-diffusion-xl-base-1.0
    openai/clip-vit-large-patch14-336 TheBloke/Llama-2-13B-chat-GPTQ deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B
    task-specific-finetuned-llama-v2 HuggingFaceH4/ultrachat_200k databricks/databricks-dolly-15k org/name@main
    b3BlbkFJ/dGVzdC1kYXRhc2V0 c3N0Mi10cmFpbi1zcGxpdA== risk-assessment-dataset-2024-for-llms s3://bucket/data/train
    hf://datasets/org/name https://huggingface.co/datasets/org/name data-00000-of-00128.parquet runs/toy/peft
    checkpoint-500/trainer_state.json ae68cdfc-0d9d-45f7-8a8c-c0ffa3dbf191 2025-01-31T12:34:56.789012+00:00 2.13.0+cu128
    e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 9fceb02d0ae598e95dc970b74767f19372d61af8
    OptimizerNames.ADAMW_TORCH_FUSED user@example.org 1..10 samples/s c\\d .*\\.(q|k|v|o)_proj torch.bfloat16
    base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight hf_transformers_based_summarization_model
"""
VALUES = """
    pad_token=<|finetune_right_pad_id|> eos_token=</s> unk_token=[UNK] padToken=<pad> tokenizer.eos_token=<|im_end|>
    token=<pad> stop_token=<|eot_id|> token_count=1k tokenizer=meta-llama/Llama-3-8B mean_token_accuracy=0.51
    max_tokens=4096 keyword=sentiment-classification-of-2019-tweets label_key=label text_key=instruction passes=3
    secretary=no monkey=banana key=query_key_value key_proj=k_proj password_policy=none author=alice authority=x
    cookies_per_batch=x wandb_project=lora-sst2 wandb_run_id=3k2j1h0g tokenizer_class=PreTrainedTokenizerFast
"""
SENTENCES = [
    "loss went from 0.69 to NaN at step 1200/5000",
    "~50 tokens/s, about ~1/3 of the peak",
    "use r=8 and/or alpha=16",
    "token accuracy = 0.87 (num_tokens: 123456)",
    "max_tokens=4096 pad_token=<pad>",
    "basic classification of reviews",
    "bearer of the highest stable rank: q_proj",
    "the API key concept is explained in the docs",
    "pass@1 = 0.5; pass@10 = 0.75",
    "see https://arxiv.org/abs/2402.12354 and https://example.org/a/b?page=2#top",
    "12:30:45 epoch 1/3, 3:AAAA",
    "sk-learn-pipelines-for-text-classification",
    "key: value, secret sauce: attention",
    "password reset emails are class three",
    "\U0001f984 \u2013 ok",
]


def test_an_innocent_text_stays_as_it_is() -> None:
    texts = [("model_name", name) for name in NAMES_OF_MODELS_AND_DATA.split()]
    texts += [(key, value) for key, _, value in (pair.partition("=") for pair in VALUES.split())]
    texts += [("message", sentence) for sentence in SENTENCES]
    assert [(key, text, shown) for key, text in texts if (shown := redact_text(text, key=key)) != text] == []
