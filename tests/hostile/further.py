"""More made-up secrets in further shapes, and more innocents: what vendors, shells, frameworks and errors write.

Put together from parts, so that the repository holds nothing a scanner could find.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["INNOCENTS", "SECRETS"]

ALNUM = string.ascii_letters + string.digits
HEX = "0123456789abcdef"


class Secret(NamedTuple):
    """A secret where it may stand: under a key, in a value, and the text that no output may hold."""

    kind: str
    key: str
    value: Any
    core: str


_rng = random.Random(20260202)  # noqa: S311  # made-up secrets


def _of(n: int, alphabet: str = ALNUM) -> str:
    """Return letters and digits, both among the first five: of a hundred draws one may have no digit."""
    return alphabet[10] + alphabet[-1] + "".join(_rng.choices(alphabet, k=n - 4)) + alphabet[5] + alphabet[-3]


def _word() -> str:
    return _rng.choice(("tiger", "maple", "river")) + _rng.choice(("Moon", "Stone")) + str(_rng.randrange(100, 999))


# What vendors put before a token, in two halves; its alphabet and length.
PREFIXES = (
    *(("sb", "p_", HEX, 40), ("pscale", "_tkn_", ALNUM, 43), ("sntr", "ys_", ALNUM, 60), ("sntr", "yu_", HEX, 64)),
    *(
        ("fig", "d_", ALNUM, 40),
        ("nt", "n_", ALNUM, 46),
        ("secret", "_", ALNUM, 43),
        ("secret", "_lambdalabs_", ALNUM, 40),
    ),
    *(("PM", "AK-", HEX, 58), ("dp", ".pt.", ALNUM, 43), ("gl", "sa_", ALNUM, 41), ("gl", "c_", ALNUM, 60)),
    *(("ruby", "gems_", HEX, 48), ("ATA", "TT3xFf", ALNUM, 180), ("AT", "BB", ALNUM, 32), ("sl", ".", ALNUM, 130)),
    *(("EAA", "AE", ALNUM, 59), ("sq0", "atp-", ALNUM, 22), ("S", "K", HEX, 32), ("EAA", "CEdE", ALNUM, 120)),
    *(("LTA", "I5t", ALNUM, 20), ("AK", "ID", ALNUM, 32), ("a", "k-", ALNUM, 22), ("a", "s-", ALNUM, 22)),
    *(("rp", "a_", ALNUM, 40), ("cs", "k-", ALNUM, 48), ("p", "a-", ALNUM, 43), ("tv", "ly-dev-", ALNUM, 32)),
    *(("pc", "sk_", ALNUM, 70), ("s", "k_", HEX, 48), ("lo", "cal-", HEX, 40), ("np", "g_", ALNUM, 16)),
    *(("bk", "ua_", HEX, 40), ("CCI", "PAT_", ALNUM, 62), ("fm", "2_", ALNUM, 120), ("Fo", "1_", ALNUM, 43)),
    *(("vercel", "_blob_rw_", ALNUM, 40), ("pu", "l-", HEX, 40), ("AK", "Cp8", ALNUM, 67), ("pn", "u_", ALNUM, 36)),
)
FLAGS = (
    "--wandb-api-key",
    "--hub-token",
    "--hf_token",
    "--password",
    "--openai_key",
    "--smtp-pass",
    "--auth",
    "--token",
)
VARIABLES = ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "REDIS_AUTH", "SLACK_WEBHOOK_URL", "GROQ_API_KEY")
FIELDS = ("password", "api_key", "hub_token", "client_secret", "access_token", "db_password")
HEADERS = (
    *(
        "Authorization: Bearer {}",
        "Authorization: Basic {}=",
        "Authorization: {}",
        "X-API-Key: {}",
        "PRIVATE-TOKEN: {}",
    ),
    *("Cookie: sid={}; a=b", "X-Amz-Security-Token: {}", "Ocp-Apim-Subscription-Key: {}", "X-Vault-Token: {}"),
    'Authorization: Digest username="a", response="{}"',
)
URLS = (
    *(
        "https://me:{}@e.org/a",
        "redis://:{}@h:6379/0",
        "mongodb+srv://u:{}@c.m.net/?w=1",
        "git+https://{}@github.com/o/r",
    ),
    *(
        "https://e.org/cb#access_token={}&t=1",
        "https://e.org/d?token={}",
        "https://e.org/?jwt={}",
        "wss://h/?sessionid={}",
    ),
    *(
        "http_proxy=http://u:{}@proxy:3128",
        "jdbc:postgresql://h/db?user=a&password={}",
        "https://e.org/?api-key={}&q=1",
    ),
    "https://x.webhook.office.com/webhookb2/{}/IncomingWebhook",
)
COMMANDS = (
    *("curl -u alice:{} https://e.org/x", "curl --user alice:{} https://e.org/x", "mysql -h db -u root -p{} runs"),
    *(
        "sshpass -p {} ssh me@host",
        "docker login -u me -p {} r.example.org",
        "wandb login {}",
        "wandb login --relogin {}",
    ),
)
ENVIRONMENTS = (
    *("export {0}={1}; python t.py", 'export {0}="{1}" && python t.py', "ENV {0} {1}", "os.environ['{0}'] = '{1}'"),
    *("setx {0} {1}", '$env:{0} = "{1}"', "env:\n  - name: {0}\n    value: {1}\n  - name: LR\n    value: 1"),
    *(
        "[('{0}', '{1}'), ('LR', 1)]",
        "environ({{'HOME': '/root', '{0}': '{1}'}})",
        "machine e.org\n  login me\n  {0} {1}",
    ),
)
DOCUMENTS = (
    *(
        "model: a\nlogin:\n  {0}: {1}\n  lr: 1",
        'login:\n  {0}: "{1}"\n',
        "login:\n  {0}:\n    {1}\n  lr: 1",
        "{0}: |\n  {1}\nlr: 1",
    ),
    *("{0}s:\n  - x\n  - {1}\nlr: 1", "[login]\n{0} = '{1}'\n", "Namespace(lr=0.1, {0}='{1}')", "{{b'{0}': b'{1}'}}"),
    *("<{0}>{1}</{0}>", '<login {0}="{1}"/>', "{{&quot;{0}&quot;: &quot;{1}&quot;}}", "redirect%3F{0}%3D{1}%26x"),
    *("{0} -> {1}", "{0} is '{1}'", "1 error\n{0}\n  bad value [type=x, input_value='{1}', input_type=str]"),
)


def _secrets() -> Iterator[Secret]:
    for first, second, alphabet, n in PREFIXES:
        core = first + second + _of(n, alphabet)
        yield Secret(first + second, "note", f"login used {core} today", core)
        yield Secret(first + second, "seen", [core], core)
    for name, lines in (("url", URLS), ("command", COMMANDS)):
        for line in lines:
            core = _of(40, HEX) if "wandb" in line else _of(24)
            yield Secret(f"{name} {line}", "note", f"ran {line.format(core)} now", core)
    for line in HEADERS:
        core = _of(32)
        header, _, value = line.partition(": ")
        held = value.format(core)
        yield Secret(f"header {line}", "note", f"curl -H '{header}: {held}' https://e.org", core)
        yield Secret(f"header {line}", "note", f"> GET / HTTP/1.1\n> {header}: {held}\n> Accept: */*", core)
        yield Secret(f"header {line}", "headers", [[header, held]], core)
        yield Secret(f"header {line}", "note", f"(b'{header}', b'{held}')", core)
    yield from _named()


def _named() -> Iterator[Secret]:
    for flag in FLAGS:
        core = _of(24)
        yield Secret(f"flag {flag}", "note", f"python t.py {flag}={core} --lr 1e-4", core)
        yield Secret(f"flag {flag}", "args", ["t.py", f"{flag}={core}"], core)
        core = _word()
        yield Secret(f"flag {flag}", "note", f"python t.py {flag} '{core}' --lr 1e-4", core)
    for names, lines in ((VARIABLES, ENVIRONMENTS), (FIELDS, DOCUMENTS)):
        for name in names:
            for line in lines:
                core = _of(30)
                yield Secret(line, "note", line.format(name, core), core)
    for name in FIELDS:
        core = _word()
        inner = json.dumps({"cfg": json.dumps({name: core})})
        yield Secret("JSON in JSON", "note", json.dumps({"b": inner}), core)
        yield Secret("nested", "cfg", {"a": {"b": [{"c": {name: {"current": core}}}]}}, core)
        yield Secret("pairs", "cfg", [["lr", "1"], [name, core]], core)
    for kind in ("RSA PRIVATE", "OPENSSH PRIVATE", "ENCRYPTED PRIVATE", "PGP PRIVATE"):
        core, block = _of(64), " BLOCK" * kind.startswith("PGP")
        yield Secret(
            kind, "note", f"-----BEGIN {kind} KEY{block}-----\n{_of(64)}\n{core}\n-----END {kind} KEY{block}-----", core
        )
        yield Secret(kind, "note", f"-----BEGIN {kind} KEY{block}-----\n{core}\n", core)
    for name in (
        "passwort",
        "mot_de_passe",
        "senha",
        "creds",
        "jwt",
        "sessionid",
        "github_pat",
        "mnemonic",
        "passw0rd",
    ):
        core = _of(24)
        yield Secret(name, name, core, core)


SECRETS = list(_secrets())

_NAMED = (
    "max_tokens=4096 max_new_tokens=512 tokenizer_name=meta-llama/Llama-3.1-8B-Instruct pad_token=<|endoftext|> "
    "eos_token=<|eot_id|> unk_token=<unk> image_token=<image> special_tokens=<|im_start|> pad_token_id=151643 "
    "num_input_tokens_seen=1048576 key_proj=lora_A k_proj=q_proj monkey=banana monkey=capuchin_v2_final_large "
    "turkey=istanbul hockey=nhl_2023_24 token_type_ids=attention_mask tokenized_path=data/tok_llama3_4k "
    "sort_key=eval_rouge_l_f1 metric_key_prefix=eval_mmlu_5shot label_key=label_v2_clean_dedup key=input_ids "
    "key=model.layers.0.self_attn.k_proj prompt_key=messages_chatml_v2 cache_key=tokenize-4k-llama3 pin_memory=True "
    "pat=5 pw=pointwise cred=low sid=12 tok=bpe model=secret_agent_llama_7b_instruct_v2 model=csk-llama-3-8b "
    "model=pa-lora-Qwen2-7B-instruct-GPTQ-Int4 model=fm2_base_model_large model=glc_transformer_xl access=read-only "
    "path=runs/local-20240101-llama/checkpoint-500 path=/data/pat/exp1/adapter_model.safetensors basic=training "
    "path=s3://bucket/key/prefix/file.jsonl url=https://wandb.ai/team/proj/runs/abc12def?nw=nwuseralice digest=sha1 "
    "url=https://arxiv.org/abs/2106.09685v2 api=openai-compatible api_version=2024-06-01-preview session=train-2 "
    "api_base=http://localhost:8000/v1 password_min_length=8 optimizer=paged_adamw_8bit attn=flash_attention_2 "
    "revision=refs/pr/12 session_id=import-82c89923 num_keys=12 access_pattern=random hub_model_id=alice/qwen2-lora "
    "hub_strategy=every_save push_to_hub_token=none use_auth_token=false job_token_count=1200"
)
_SAID = (
    "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nWhat is the password policy?<|im_end|>",
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>'}}{% endfor %}",
    "the token meta-llama/Llama-3.1-8B is not in the vocabulary",
    "Setting `pad_token_id` to `eos_token_id`:151643 for open-end generation.",
    "tokens: 1.2B, tokens/s: 15.3k, tokens_seen=2147483648",
    "key: step\nvalue: loss\nmode: max",
    "tokenizer:\n  pad_token: <pad>\n  eos_token: </s>\n  max_length: 4096",
    "columns:\n  - input_ids\n  - labels\nkey: text",
    "auth: none\nport: 8000",
    "password:\nmax_steps: 100",
    "signature: (input_ids, attention_mask=None, labels=None)",
    "bypass: no, compass: yes, surpassed the baseline by 3.2%",
    "author: Jane Doe\nauthors: 3, authority granted",
    "(key, value) = ('attention', 'q_proj')",
    "('token', 'input_ids'), ('password', 'none')",
    "secretary problem, secrets of attention, cookiecutter-data-science",
    "curl -L https://example.org/data.tar.gz -o data.tar.gz",
    "wandb login first; please run huggingface-cli login",
    "docker run -p 8080:80 --gpus all image:latest",
    "mysql -h localhost -u root -P 3306 runs",
    "sid=12 pid=4242 pat=3 patience=5 pins: 4, pw_conv 1x1",
    "local-batch-size 4, as-trained-adapters-are-merged-2024, dp.st.age",
    "name: lr\nvalue: 0.0002\nname: token_budget, value: 4096",
    "<loss>1.25</loss> <think>reasoning about tokens</think>",
    "x -> y, key -> value, token -> embedding",
    "the password is 'required' in the form, the key is 'loss'",
)


def _innocents() -> Iterator[tuple[str, str]]:
    for pair in _NAMED.split():
        key, _, value = pair.partition("=")
        yield key, value
    yield from (("note", text) for text in _SAID)
    for n in range(12):
        digest = "".join(_rng.choices(HEX, k=64))
        yield from (
            ("commit", digest[:40]),
            ("base_commit", digest[:12]),
            ("sha256", digest),
            ("mlflow_run", digest[:32]),
        )
        yield "run_name", f"run-2024010{n % 9}_120{n:02d}0-{digest[:8]}"
        yield "run_name", f"qwen2.5-7b-lora-r16-a32-lr2e-4-{digest[:6]}"
        yield "image", f"pytorch/pytorch:2.{n}.0-cuda12.4-cudnn9-runtime@sha256:{digest}"
        yield "note", f"resumed from checkpoint-{n}000 at commit {digest[:40]}, dataset fingerprint {digest[:16]}"


INNOCENTS = list(_innocents())
