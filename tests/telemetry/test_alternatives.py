"""Every form that a secret may have beside the first one: each prefix of a vendor, each command, each parameter."""

from __future__ import annotations

from gradience.telemetry.secrets import _AMBIGUOUS, _KEYS_OF, _TOKENS_OF, _WORDS, hide_secrets, holds_secret


def words(text: str) -> list[str]:
    return text.split()


MIXED = "aB3dE5gH7jK9mN1pQ2sT4vW6xY8zA0bC2dF4gH6j"  # 40 characters
HEX = "0a1b2c3d4e5f6789" * 10
FORMS = {
    "hub token": [f"{p}{MIXED}" for p in ("hf_", "hf_oauth_", "api_org_", "api_org_oauth_")],
    "api key": [f"{p}{MIXED}" for p in ("sk-", "rk-", "pk-", "sk-proj-")],
    "payment key": [f"{p}_{MIXED}" for p in ("sk_live", "rk_live", "sk_test", "rk_test", "whsec")],
    "github token": [f"gh{kind}_{MIXED}" for kind in "pousr"],
    "gitlab token": [f"gl{kind}-{MIXED}" for kind in words("pat ptt dt rt cbt agent soat imt ft")],
    "aws key id": [f"{p}0A1B2C3D4E5F6G7H" for p in ("AKIA", "ASIA", "ABIA", "ACCA")],
    "google token": [f"{p}{MIXED}" for p in ("ya29.", "GOCSPX-", "1//0")],
    "discord token": [f"{first}{MIXED[:23]}.{MIXED[:6]}.{MIXED[:27]}" for first in "MNO"],
    "slack token": [f"xox{kind}-{MIXED}" for kind in "abeoprs"],
    "webhook": [
        *(f"https://hooks.slack.com/{p}/{MIXED}" for p in ("services", "workflows", "triggers")),
        *(f"{p}.com/api/webhooks/{MIXED}" for p in ("discord", "discordapp")),
        *(f"{p}.x.org/{MIXED}" for p in ("https://hook", "http://hook", "https://hooks")),
        *(f"https://x.office.com{p}/{MIXED}" for p in ("/webhook", "/webhookb2", "/webhook2")),
    ],
    "json web token": [f"eyJ{MIXED * n}.{MIXED * n}.{MIXED}" for n in (1, 7)],
    "vault token": [f"hv{kind}.{MIXED}" for kind in "sbr"],
    "docker token": [f"dckr_{kind}_{MIXED}" for kind in ("pat", "oat")],
    "shop token": [f"shp{kind}_{HEX[:32]}" for kind in ("at", "ca", "pa", "ss")],
    "vendor key": [
        *(f"NR{kind}-{MIXED}" for kind in ("AK", "JS", "II")),
        *(f"{p}{MIXED}" for p in words("xai- gsk_ pplx- nvapi- tgp_v1_ wandb_v1_ lsv2_pt_ lsv2_sk_ fw_ jina_")),
        *(f"do{kind}_v1_{MIXED}" for kind in "opr"),
        *(f"{p}{HEX[:32]}" for p in words("sbp_ sntryu_ rubygems_ bkua_ local- pul- SK")),
        *(f"pscale_{kind}_{MIXED}" for kind in ("tkn", "pw", "oauth")),
        *(f"{p}{MIXED}" for p in words("sntrys_ figd_ ntn_ secret_ secret_lambdalabs_ PMAK- glsa_ glc_ sq0atp- rpa_")),
        *(f"{p}{MIXED}" for p in words("csk- pa- tvly- pcsk_ CCIPAT_ fm1_ fm2_ Fo1_ vercel_blob_rw_ pnu_ ATATT3")),
        *(f"{p}{MIXED}" for p in words("ATCTT3 ATBB AKCp EAACEdE EAAAE LTAI hf_jwt_")),
        *(f"dp.{kind}.{MIXED}" for kind in ("pt", "st", "ct", "sa", "scim", "audit")),
        *(f"{p}{MIXED[:22]}" for p in ("ak-", "as-", "npg_")),
        f"sk_{HEX[:48]}",
        f"pat{MIXED[:14]}.{HEX[:64]}",
        f"AKID{MIXED[:32]}",
        f"v1.0-{HEX[:24]}-{HEX[:140]}",
        f"sl.{MIXED * 3}",
    ],
    "authorization": [f"{word} {MIXED}" for word in ("Bearer", "basic", "Digest", "apikey", "token")],
    "signature": [
        f"https://x.org/a{sign}{name}={MIXED}"
        for sign in "?&;"
        for name in ("sig", "signature", "X-Amz-Signature", "X-Goog-Signature", "SharedAccessKey", "AccountKey")
    ],
    "key of a request": [
        f"https://x.org/a?{p}={MIXED}" for p in words("key code access auth session_id sessionid sid")
    ],
}
COMMANDS = [
    *(f"{program} -s -u joe:%s https://x" for program in ("curl", "wget", "http", "https")),
    *(f"curl {option}joe:%s https://x" for option in ("--user ", "--user=", "-u ", "-u=")),
    *(f"sshpass -p{gap}%s ssh x" for gap in ("", " ", "  ")),
    *(f"{p} login x.org -u joe -p{gap}%s" for p in words("docker podman helm oras az crane") for gap in " ="),
    *(f"{program} -u joe -p%s db" for program in ("mysql", "mysqldump", "mysqladmin")),
    *(f"{program} login --relogin %s" for program in words("wandb comet neptune swanlab clearml")),
]


def test_every_form_of_a_secret_is_known_by_its_kind():
    shown = {text: hide_secrets(f"a {text} z") for texts in FORMS.values() for text in texts}
    dotted = ".".join(MIXED[place : place + 5] for place in range(0, 40, 5))
    assert hide_secrets(f"a Bearer {dotted} z") == "a <redacted: authorization> z"
    assert {
        text: shown[text]
        for kind, texts in FORMS.items()
        for text in texts
        if f"<redacted: {kind}>" not in shown[text] or MIXED[:20] in shown[text] or HEX[:20] in shown[text]
    } == {}


def test_a_secret_in_a_command_is_hidden_whatever_the_program():
    shown = {command: hide_secrets(command % MIXED[:20]) for command in COMMANDS}
    assert shown == {command: command % "<redacted: secret key>" for command in COMMANDS}


def test_a_name_that_marks_a_secret_in_a_mapping_does_so_in_a_text():
    """A quick look for words that hint at a secret comes first, and must know every such name."""
    names = [
        *_WORDS,
        *(f"{first}{last}" for first in _KEYS_OF for last in ("_key", "_keys", "-key")),
        *(f"{first}_{last}" for first in _TOKENS_OF for last in ("token", "tokens")),
        *(f"{first}{name}{last}" for name in _AMBIGUOUS for first in ("", "my_", "MY-") for last in ("", "_2", "_old")),
        *(f"{who}pass" for who in words("db user smtp mysql pg root admin redis sudo")),
        *words("connection_string conn_str connstr connectionstring connStr db_password_2 token_v2 password_b64"),
    ]
    value = MIXED[:24]
    assert [name for name in names if not holds_secret(name, value)] == []
    assert [name for name in names if hide_secrets(f"x {name}={value} z") != f"x {name}=<redacted: secret key> z"] == []


def test_a_value_ends_with_its_text_its_line_or_its_quotes():
    hidden = "<redacted: secret key>"
    for text, shown in (
        ("pwd=x", f"pwd={hidden}"),
        ("pwd=abc", f"pwd={hidden}"),
        ('Authorization: "secret words" tail', f'Authorization: "{hidden}" tail'),
        ("Cookie: 'secret words' tail", f"Cookie: '{hidden}' tail"),
        ("Authorization: secret words\ntail", f"Authorization: {hidden}\ntail"),
        ('-H "Cookie: secret words" tail', f'-H "Cookie: {hidden}" tail'),
    ):
        assert hide_secrets(text) == shown
