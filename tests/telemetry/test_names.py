"""Names that announce a secret, word by word: by themselves, before `key`, before `tokens`, and those that do not."""

from __future__ import annotations

from tables import every

from gradience.telemetry.redact import hide_in
from gradience.telemetry.secrets import holds_secret, kind_of

SECRETS = (  # by themselves
    *("secret", "secrets", "password", "passwords", "passwd", "passphrase", "passphrases", "pwd", "pass", "passw0rd"),
    *("DB_PASSW0RD", "Passw0rd"),
    *("authorization", "auth", "credential", "credentials", "creds", "cookie", "cookies", "bearer", "jwt"),
    *("webhook", "webhooks", "mnemonic", "passwort", "passe", "contrasena", "senha", "sessionid"),
)
OF_A_KEY = (
    *("api", "access", "secret", "private", "account", "auth", "authorization", "signing", "sign", "encryption"),
    *("encrypt", "storage", "master", "license", "licence", "subscription", "service", "deploy", "ssh", "gpg", "pgp"),
    *("rsa", "jwt", "hmac", "fernet", "session", "admin", "client", "shared", "kaggle", "wandb", "comet", "openai"),
    *("anthropic", "cohere", "mistral", "stripe", "mailgun", "sendgrid", "age", "hf", "azure", "aws", "gcp"),
)
OF_TOKENS = ("api", "access", "auth", "hub", "hf", "refresh", "bearer", "secret", "user", "bot", "github", "gitlab")
OF_A_TOKENIZER = (
    *("pad", "eos", "bos", "unk", "sep", "cls", "mask", "image", "audio", "video", "boi", "eoi", "start", "end"),
    *("stop", "next", "first", "last", "special", "prefix", "suffix", "middle", "fim"),
)
NO_PASSWORD = (
    *("forward", "backward", "fwd", "bwd", "first", "second", "third", "single", "one", "two", "multi", "by", "band"),
)
AFTER = (
    *("value", "val", "plain", "plaintext", "raw", "b64", "base64", "old", "new", "base", "prod", "dev", "staging"),
    *("url", "uri", "header", "json", "2", "v3"),
)


@every("word", SECRETS)
def test_a_word_is_a_secret_by_itself_and_behind_another(word):
    assert kind_of(f"my_{word}") == kind_of(f"my-{word.capitalize()}") == "secret"
    assert kind_of(word) == ("word" if word == "pass" else "secret")


@every("word", OF_A_KEY)
def test_a_key_of_these_is_a_secret(word):
    assert kind_of(f"{word}_key") == kind_of(f"{word}Key") == kind_of(f"{word}-keys") == "secret"


@every("name", ["sort_key", "primary-key", "key", "my.key"])
def test_another_key_may_be_one(name):
    assert kind_of(name) == "key"
    assert kind_of(f"{name}s") == ""
    assert not holds_secret(name, "name")
    assert holds_secret(name, "a1B2c3D4e5F6g7H8i9J0k1L2")


@every("word", [*OF_TOKENS, "oauth", "id"])
def test_tokens_of_these_are_tokens(word):
    assert kind_of(f"{word}_tokens") == kind_of(f"{word}_token") == "token"


def test_tokens_of_others_are_counted():
    assert kind_of("num_tokens") == kind_of("max_new_tokens") == kind_of("tokens") == ""
    assert kind_of("token") == kind_of("my_token") == "token"


@every("word", OF_A_TOKENIZER)
def test_a_token_of_a_tokenizer_is_none(word):
    assert kind_of(f"{word}_token") == kind_of(f"{word}Token") == ""


@every("word", ["pat", "pw", "cred", "tok", "pin", "sid"])
def test_an_ambiguous_word_is_a_secret_where_the_value_is_opaque(word):
    assert kind_of(word) == kind_of(f"my_{word}") == ("pin" if word == "pin" else "key")


def test_a_pin_is_none_where_it_is_a_commit_or_digest():
    value = "a1b2c3d4" * 5
    assert holds_secret("sid", value)
    assert not holds_secret("pin", value)
    assert holds_secret("pin", value.replace("a", "A"))


@every(("value", "hidden"), [("second", False), ("2", False), ("0.42", False), ("tiger1", True), ("tiger", False)])
def test_a_bare_pass_is_a_password_if_it_is_no_word_or_number(value, hidden):
    assert holds_secret("pass", value) is hidden
    assert holds_secret("db_pass", value) is True


@every(
    "value",
    ["$TOKEN", "${TOKEN}", "${{ secrets.X }}", "<your token>", "{token}", "MY_API_KEY", "***", "os.environ['X']"],
)
def test_what_stands_for_a_secret_is_none(value):
    assert not holds_secret("api_key", value)


@every(
    "value", ["train-00007-of-00128-3f2a91bc.arrow", "pile_shard_00012_of_00300_tok_v3", "speaker12session34utt0056"]
)
def test_a_name_under_an_ambiguous_word_is_none(value):
    assert not holds_secret("cache_key", value)


@every("word", NO_PASSWORD)
def test_a_pass_of_these_is_no_password(word):
    assert kind_of(f"{word}_pass") == ""
    assert kind_of(f"{word}_password") == kind_of(f"{word}_secret") == "secret"
    assert kind_of("db_pass") == "secret"


@every("word", AFTER)
def test_what_stands_behind_a_secret_s_name_does_not_hide_it(word):
    assert kind_of(f"api_key_{word}") == "secret"
    assert kind_of(word) == ""


@every(
    "name",
    [
        *("dbpassword", "mypasswd", "apitoken", "hubtoken", "sessiontoken", "bottoken", "apikey", "masterkeys"),
        *("dbpass", "smtppass", "rootpass", "connstr", "connectionstring", "connection_string", "conn_str"),
        *("mypassphrase", "mypwd", "mysecret", "mycredential", "mycookies", "mywebhook"),
        *(
            f"{first}tokens"
            for first in (*OF_TOKENS, "session", "oauth", "id")
            if first not in {"secret", "user", "gitlab"}
        ),
        *(f"{first}key" for first in ("api", "access", "secret", "private", "account", "auth", "client", "signing")),
        *("encryptionkey", "storagekey", "sshkey", "masterkey", "sharedkey"),
        *(f"{who}pass" for who in ("db", "user", "smtp", "mysql", "pg", "root", "admin", "redis", "sudo")),
    ],
)
def test_words_that_are_written_as_one_are_secrets(name):
    assert kind_of(name) == "secret"


@every("name", ["string", "query_string", "lr", "", "_", "compass_heading", "authored"])
def test_other_names_are_none(name):
    assert kind_of(name) == ""


@every("label", ["name", "key", "option", "variable", "field"])
@every("held", ["value", "val", "default", "values"])
def test_a_pair_of_a_name_and_a_value_is_judged_by_the_name(label, held):
    assert hide_in({label: "API_KEY", held: "a"}) == {label: "API_KEY", held: "<redacted: secret key>"}
    assert hide_in({label: "lr", held: "a"}) == {label: "lr", held: "a"}


@every("value", ["", "true", "False", "none", "NULL", "yes", "no", "auto", "on", "off", "default", "...", " None "])
def test_a_value_that_says_nothing_is_no_secret(value):
    assert not holds_secret("password", value)


def test_any_other_value_of_a_secret_is_one():
    assert holds_secret("password", "x")
    assert not holds_secret("password", "<redacted: secret key>")


@every(("value", "hidden"), [("<pad>", False), ("[PAD]", False), ("1234567", False), ("12345678", True)])
def test_a_token_of_seven_characters_is_a_tokenizer_s(value, hidden):
    assert holds_secret("my_token", value) is hidden
