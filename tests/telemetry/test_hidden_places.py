"""Secrets by their place and name, to their last character, and how much of a text is shown."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tables import every
from wire import HIDDEN, ROW

from gradience.schema.events import TrainStep
from gradience.telemetry import TelemetryReader
from gradience.telemetry.codec import decode
from gradience.telemetry.redact import Redaction, below, hide_in, names_beside, names_in, redact_document, redact_text
from gradience.telemetry.secrets import hide_secrets, holds_secret, kind_of

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
]


@every("marked", PLACES)
def test_a_secret_is_hidden_to_its_last_character_and_nothing_beside_it(marked):
    text = re.sub(r"\[\[(.*?)\]\](?!\])", r"\1", marked, flags=re.DOTALL)
    shown = re.sub(r"\[\[(.*?)\]\](?!\])", HIDDEN, marked, flags=re.DOTALL)
    assert hide_secrets(text) == shown


@every(
    ("before", "secret", "after"),
    [
        ("https://", "joe:p:w", "@x.org/a@b"),
        ("https://a/b:c@x.org", None, ""),
        ("https://host:80/x@y", None, ""),
        ("https://x.org/aB3/aB3/aB3/aB3/aB3/@hub.com/x", None, ""),
        ("https://", "x/" + "ab3de5gh7jk9mn1pq2" * 2, "@hub.com"),
        ("https://x/" + "ab3de5gh7jk9mn1pq2" * 2 + "@hub", None, ""),
        ("https://x/aB3dE5gH7jK9m@hub.com", None, ""),
        ("git+ssh://", "abcdefghijklmnop", "@x.org"),
        ("ssh://u1@x", None, ""),
        ("https://<redacted: hub token>@x.org", None, ""),
    ],
)
def test_the_user_of_an_address_is_hidden_where_it_is_a_password_or_a_token(before, secret, after):
    text = f"{before}{secret or ''}{after}"
    assert hide_secrets(text) == (f"{before}<redacted: url password>{after}" if secret else text)


@every(
    ("name", "kind"),
    [
        ("hubToken", "token"),
        ("pad_token", ""),
        ("api_tokens", "token"),
        ("num_tokens", ""),
        ("pat", "key"),
        ("api_keys", "secret"),
        ("keys", ""),
        ("key", "key"),
        ("sort_key", "key"),
        ("forward_pass", ""),
        ("db_pass", "secret"),
        ("password2", "secret"),
        ("password_v2", "secret"),
        ("password_old_2", "secret"),
        ("db_connstr", "secret"),
        ("conn_str", "secret"),
        ("conn_id", ""),
        ("v2", ""),
        ("", ""),
        ("__", ""),
        ("2", ""),
        ("url", ""),
    ],
)
def test_the_kind_of_a_name(name, kind):
    assert kind_of(name) == kind


def test_a_long_name_is_judged_by_its_last_128_characters_and_a_long_text_by_its_first_65_kib():
    assert holds_secret("x" * 500 + "_password", "tiger")
    assert not holds_secret("password_" + "x" * 120, "tiger")
    assert holds_secret("_password" + "", "x" * 500)
    most = 65 * 1024
    assert hide_secrets("x" * most) == "x" * most
    assert hide_secrets("x" * (most + 1)) == "x" * most + " <1 more characters>"
    assert hide_secrets("x" * most + "y" * 9) == "x" * most + " <9 more characters>"
    assert hide_secrets("hf_" + "aB3" * 12, "k" * 300) == "<redacted: hub token>"


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
    argv = {"argv": ["train.py", "--api-key", "tiger", "--lr", "1"], "pair": ["password", "lion"]}
    assert redact_document(argv, Redaction()) == {
        "argv": ["train.py", "--api-key", HIDDEN, "--lr", "1"],
        "pair": ["password", HIDDEN],
    }
    kept = {"schema": "/a/b", "run_id": "/home/joe/x", "session": "/home/joe/y", "step": 1, "note": "/home/joe/x"}
    assert redact_document(kept, Redaction()) == {**kept, "note": "x"}


def test_a_row_keeps_its_types_through_the_codec():
    row = decode(json.dumps({**ROW, "lr": [0.5, "NaN"], "x": {"y": 1}}).encode())
    assert isinstance(row, TrainStep)
    assert (row.lr, row.extras) == ([0.5, "NaN"], {"x": {"y": 1}})


def test_logs_have_paths(tmp_path):
    assert isinstance(TelemetryReader(_one(tmp_path)).path, Path)


def _one(folder: Path) -> Path:
    (folder / "run.jsonl").write_text(json.dumps(ROW))
    return folder / "run.jsonl"


@every("name", [5, None, 1.5, ["a"]])
def test_an_id_that_is_no_text_is_left_as_it_is(name):
    document = {"run_id": name, "session": "s"}
    if isinstance(name, list):  # which no cache can hold
        document = {"run_id": "r", "session": "s", "x": name}
    assert redact_document(document, Redaction()) == document
