"""Names that announce a secret, word by word: by themselves, before `key`, before `tokens`, and those that do not."""

from __future__ import annotations

from tables import every
from wire import HIDDEN

from gradience.telemetry.redact import hide_in
from gradience.telemetry.secrets import hide_secrets, holds_secret, kind_of


def words(text: str) -> list[str]:
    return text.split()


ALONE = words(
    "secret secrets password passwords passwd passphrase passphrases pwd passw0rd authorization auth credential"
    " credentials creds cookie cookies bearer jwt webhook webhooks mnemonic passwort passe contrasena senha sessionid"
)
OF_A_KEY = words(
    "api access secret private account auth authorization signing sign encryption encrypt storage master license"
    " licence subscription service deploy ssh gpg pgp rsa jwt hmac fernet session admin client shared kaggle wandb"
    " comet openai anthropic cohere mistral stripe mailgun sendgrid age hf azure aws gcp"
)
OF_TOKENS = words("api access auth hub hf refresh bearer secret user bot github gitlab oauth id")
OF_A_TOKENIZER = words(
    "pad eos bos unk sep cls mask image audio video boi eoi start end stop next first last special prefix suffix"
    " middle fim"
)
NO_PASSWORD = words("forward backward fwd bwd first second third single one two multi by band")
AFTER = words("value val plain plaintext raw b64 base64 old new base prod dev staging url uri header json 2 v3")
GLUED = words(
    "dbpassword mypasswd apitoken hubtoken sessiontoken bottoken apikey masterkeys connstr connectionstring"
    " connection_string conn_str mypassphrase mypwd mysecret mycredential mycookies mywebhook apitokens accesstokens"
    " authtokens hubtokens hftokens refreshtokens bearertokens bottokens githubtokens sessiontokens oauthtokens"
    " idtokens accesskey secretkey privatekey accountkey authkey clientkey signingkey encryptionkey storagekey sshkey"
    " masterkey sharedkey dbpass userpass smtppass mysqlpass pgpass rootpass adminpass redispass sudopass"
)
NAMES = {
    "secret": [
        *ALONE,
        *(f"my_{word}" for word in [*ALONE, "pass"]),
        *(f"my-{word.capitalize()}" for word in [*ALONE, "pass"]),
        *words("DB_PASSW0RD Passw0rd db_pass connStr password_old_2"),
        *(f"{word}{key}" for word in OF_A_KEY for key in ("_key", "Key", "-keys")),
        *(f"{word}_{noun}" for word in NO_PASSWORD for noun in ("password", "secret")),
        *(f"api_key_{word}" for word in AFTER),
        *GLUED,
    ],
    "token": ["token", "my_token", "hubToken", *(f"{w}_{noun}" for w in OF_TOKENS for noun in ("token", "tokens"))],
    "key": words("sort_key primary-key key my.key pat pw cred tok sid my_pat my_pw my_cred my_tok my_sid"),
    "pin": ["pin", "my_pin"],
    "word": ["pass"],
    "": [
        *words(
            "sort_keys primary-keys keys my.keys num_tokens max_new_tokens tokens string query_string lr _ __ conn_id"
        ),
        *words("compass_heading authored"),
        "",
        *AFTER,
        *(f"{word}{token}" for word in OF_A_TOKENIZER for token in ("_token", "Token")),
        *(f"{word}_pass" for word in NO_PASSWORD),
    ],
}


@every(("kind", "names"), NAMES.items())
def test_each_name_has_its_kind_and_hides_in_a_text_what_it_hides_in_a_mapping(kind, names):
    value = "aB3dE5gH7jK9mN1pQ2sT4vW6"
    assert {name: kind_of(name) for name in names} == dict.fromkeys(names, kind)
    for name in names:
        hides = bool(kind) and kind != "word"
        assert holds_secret(name, value) is bool(kind)
        if hides:  # a quick look for words that hint at a secret comes first, and must know every such name
            assert hide_secrets(f"x {name}={value} z") == f"x {name}={HIDDEN} z"


@every("label", ["name", "key", "option", "variable", "field"])
@every("held", ["value", "val", "default", "values"])
def test_a_pair_of_a_name_and_a_value_is_judged_by_the_name(label, held):
    assert hide_in({label: "API_KEY", held: "a"}) == {label: "API_KEY", held: HIDDEN}
    assert hide_in({label: "lr", held: "a"}) == {label: "lr", held: "a"}
