"""Made-up secrets of many kinds in eight shapes, and strings that look like secrets and are none.

All are drawn from one seed and put together from parts, so that the repository holds nothing a scanner could find.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import string
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

__all__ = ["INNOCENTS", "KINDS", "KNOWN_BY_VALUE", "SECRETS", "SHAPES", "Innocent", "Secret"]

ALNUM = string.ascii_letters + string.digits
LOWER = string.ascii_lowercase + string.digits
HEX = "0123456789abcdef"
UPPER = string.ascii_uppercase + string.digits
URL = ALNUM + "_-"
B64 = ALNUM + "+/"

Random = random.Random


def _of(alphabet: str, n: int) -> Callable[[Random], str]:
    return lambda rng: "".join(rng.choices(alphabet, k=n))


def _after(prefix: str, alphabet: str, n: int) -> Callable[[Random], str]:
    return lambda rng: prefix + "".join(rng.choices(alphabet, k=n))


def _dotted(prefix: str, alphabet: str, *lengths: int, sep: str = ".") -> Callable[[Random], str]:
    return lambda rng: prefix + sep.join("".join(rng.choices(alphabet, k=n)) for n in lengths)


def _jwt(rng: Random) -> str:
    parts = ({"alg": "HS256", "typ": "JWT"}, {"sub": "".join(rng.choices(ALNUM, k=12)), "iat": 1_700_000_000})
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*coded, "".join(rng.choices(URL, k=43))])


def _word(rng: Random) -> str:
    """Return a password as people choose them: nothing in it looks like a secret but its place."""
    words = ("correct", "horse", "battery", "staple", "summer", "tiger", "orange", "garden", "window", "purple")
    return "".join(rng.choices(words, k=2)) + str(rng.randrange(10, 99))


def _mixed(rng: Random) -> str:
    return "".join(rng.choices(ALNUM, k=9)) + rng.choice("!%$") + "".join(rng.choices(ALNUM, k=4))


# By the value: a shape of its own gives it away wherever it stands. The key is where it usually stands.
_BY_VALUE: dict[str, tuple[str, Callable[[Random], str]]] = {
    "hub token": ("hf_token", _after("hf" + "_", ALNUM, 34)),
    "hub oauth token": ("hf_token", _after("hf" + "_oauth_", ALNUM, 34)),
    "hub organisation token": ("hub_token", _after("api" + "_org_", ALNUM, 34)),
    "openai key": ("openai_api_key", _after("sk" + "-proj-", URL, 60)),
    "anthropic key": ("anthropic_api_key", _after("sk" + "-ant-api03-", URL, 93)),
    "openrouter key": ("api_key", _after("sk" + "-or-v1-", HEX, 64)),
    "github token": ("github_token", _after("gh" + "p_", ALNUM, 36)),
    "github app token": ("github_token", _after("gh" + "s_", ALNUM, 36)),
    "github fine-grained token": ("github_token", _dotted("github" + "_pat_", ALNUM, 22, 59, sep="_")),
    "gitlab token": ("gitlab_token", _after("glpat" + "-", URL, 20)),
    "gitlab deploy token": ("gitlab_token", _after("gldt" + "-", URL, 20)),
    "aws key id": ("aws_access_key_id", _after("AK" + "IA", UPPER, 16)),
    "google api key": ("google_api_key", _after("AI" + "za", URL, 35)),
    "google oauth token": ("access_token", _after("ya" + "29.", URL, 60)),
    "google client secret": ("client_secret", _after("GOC" + "SPX-", URL, 28)),
    "slack token": ("slack_token", _dotted("xox" + "b-", string.digits, 12, 12, 24, sep="-")),
    "slack app token": ("slack_token", _dotted("xapp" + "-1-A", UPPER, 9, 12, 40, sep="-")),
    "npm token": ("npm_token", _after("npm" + "_", ALNUM, 36)),
    "pypi token": ("pypi_token", _after("pypi" + "-AgEI", URL, 80)),
    "docker token": ("docker_password", _after("dckr" + "_pat_", URL, 27)),
    "vault token": ("vault_token", _after("hv" + "s.", URL, 90)),
    "vault batch token": ("vault_token", _after("hv" + "b.", URL, 90)),
    "sendgrid key": ("sendgrid_api_key", _dotted("S" + "G.", URL, 22, 43)),
    "stripe key": ("stripe_key", _after("sk" + "_live_", ALNUM, 24)),
    "databricks token": ("databricks_token", _after("da" + "pi", HEX, 32)),
    "replicate token": ("replicate_api_token", _after("r8" + "_", ALNUM, 37)),
    "groq key": ("groq_api_key", _after("gs" + "k_", ALNUM, 52)),
    "nvidia key": ("nvidia_api_key", _after("nv" + "api-", URL, 64)),
    "xai key": ("xai_api_key", _after("xa" + "i-", ALNUM, 80)),
    "perplexity key": ("pplx_api_key", _after("pp" + "lx-", ALNUM, 48)),
    "wandb key": ("wandb_api_key", _after("wandb" + "_v1_", ALNUM, 77)),
    "langsmith key": ("langsmith_api_key", _dotted("lsv2" + "_pt_", HEX, 32, 10, sep="_")),
    "digitalocean token": ("do_token", _after("dop" + "_v1_", HEX, 64)),
    "shopify token": ("shopify_token", _after("shp" + "at_", HEX, 32)),
    "linear key": ("linear_api_key", _after("lin" + "_api_", ALNUM, 40)),
    "new relic key": ("newrelic_api_key", _after("NR" + "AK-", UPPER, 27)),
    "mailgun key": ("mailgun_key", _after("key" + "-", HEX, 32)),
    "telegram token": ("bot_token", lambda rng: f"{rng.randrange(10**9, 10**10 - 1)}:AA{_of(URL, 33)(rng)}"),
    "discord token": ("discord_token", _dotted("M", URL, 25, 6, 38)),
    "json web token": ("jwt", _jwt),
    "age key": ("age_key", _after("AGE-SECRET" + "-KEY-1", UPPER, 58)),
    "terraform token": ("terraform_token", lambda rng: f"{_of(ALNUM, 14)(rng)}.atlas" + "v1." + _of(URL, 62)(rng)),
}

# By the place: nothing in the value gives it away but the name beside it.
_BY_PLACE: dict[str, tuple[str, Callable[[Random], str]]] = {
    "password": ("password", _word),
    "passphrase": ("passphrase", _word),
    "postgres password": ("PGPASSWORD", _word),
    "mysql password": ("MYSQL_PWD", _word),
    "database password": ("db_pass", _word),
    "smtp password": ("smtpPassword", _mixed),
    "sudo password": ("sudo-password", _mixed),
    "auth token": ("authtoken", _of(LOWER, 24)),
    "ngrok token": ("NGROK_AUTHTOKEN", _of(ALNUM, 43)),
    "client secret": ("clientsecret", _of(URL, 32)),
    "list of api keys": ("api_keys", _of(ALNUM, 32)),
    "api key": ("apikey", _of(HEX, 32)),
    "cohere-like key": ("cohere_api_key", _of(ALNUM, 40)),
    "aws secret": ("aws_secret_access_key", _of(B64, 40)),
    "azure key": ("AZURE_STORAGE_KEY", _of(B64, 86)),
    "account key": ("account_key", _of(B64, 64)),
    "wandb key of 40": ("WANDB_API_KEY", _of(HEX, 40)),
    "kaggle key": ("KAGGLE_KEY", _of(HEX, 32)),
    "comet key": ("COMET_API_KEY", _of(ALNUM, 25)),
    "neptune token": ("NEPTUNE_API_TOKEN", _of(B64, 60)),
    "signing key": ("signing_key", _of(HEX, 64)),
    "encryption key": ("encryption_key", _of(B64, 44)),
    "session cookie": ("session_cookie", _of(LOWER, 26)),
    "refresh token": ("refreshToken", _of(URL, 40)),
    "bearer": ("bearer_token", _of(URL, 40)),
    "webhook": ("webhook_url", lambda rng: f"https://hooks.example.org/services/{_of(ALNUM, 30)(rng)}"),
    "connection string": ("connection_string", lambda rng: f"Server=db;Uid=sa;Pwd={_mixed(rng)};"),
}

KINDS = _BY_VALUE | _BY_PLACE
KNOWN_BY_VALUE = frozenset(_BY_VALUE)


class Secret(NamedTuple):
    """A secret in a shape."""

    kind: str
    shape: str
    key: str  # of the mapping in which it stands
    value: Any  # what stands there: text, a list or a mapping
    core: str  # the text that no output may hold


def _option(key: str) -> str:
    return "--" + key


def _header(kind: str, key: str, value: str) -> str:
    if kind == "session cookie":
        return f"Cookie: session={value}"
    if kind in _BY_VALUE:
        return f"Authorization: Token {value}"
    return f"X-{key.replace('_', '-').title()}: {value}"


def _url(kind: str, key: str, value: str) -> str:
    if "password" in kind or kind == "passphrase":
        return f"postgresql://me:{value.replace('a', 'a/', 1)}@db.example.org:5432/runs"
    if kind.endswith("key"):
        return f"https://api.example.org/v1/models?key={value}&alt=json"
    if kind == "webhook":
        return value
    if kind.endswith("token") or kind == "bearer":
        return f"https://{value}@git.example.org/me/repo.git"
    return f"https://api.example.org/v1?{key}={value}"


SHAPES: dict[str, Callable[[str, str, str], tuple[str, Any]]] = {
    "value": lambda _kind, key, v: (key, v),
    "nested": lambda _kind, key, v: (key, {"value": v}),
    "list": lambda _kind, key, v: (key, [{"id": 1, "held": [v]}]),
    "argument pair": lambda _kind, key, v: ("argv", ["train.py", "--lr", "1e-4", _option(key), v]),
    "inside text": lambda _kind, key, v: ("note", f"started as train.py --lr 1e-4 {_option(key)} {v} --seed 1"),
    "URL": lambda kind, key, v: ("note", f"fetched {_url(kind, key, v)} in 3 s"),
    "header": lambda kind, key, v: ("note", f"curl -H '{_header(kind, key, v)}' failed"),
    "environment": lambda _kind, key, v: ("note", f"env {key.upper().replace('-', '_')}={v} python train.py"),
}


def _secrets() -> Iterator[Secret]:
    rng = random.Random(20260101)  # noqa: S311  # made-up secrets
    for kind, (key, make) in KINDS.items():
        for shape, build in SHAPES.items():
            core = make(rng)
            place, value = build(kind, key, core)
            if shape == "URL" and value.startswith("fetched postgresql"):
                core = core.replace("a", "a/", 1)
            if kind == "connection string":
                core = core.partition("Pwd=")[2].rstrip(";")
            if kind == "webhook":
                core = core.rpartition("/")[2]
            yield Secret(kind, shape, place, value, core)


SECRETS: list[Secret] = list(_secrets())


class Innocent(NamedTuple):
    """A key and a value that a log must hold as they are."""

    kind: str
    key: str
    value: str


def _drawn(rng: Random, n: int) -> Iterator[Innocent]:
    """Yield what looks most like a secret: digits and letters without a meaning, of the commonest lengths."""
    for _ in range(n):
        text = "".join(rng.choices(ALNUM, k=30))
        digest = hashlib.sha256(text.encode())
        yield Innocent("sha256", "sha256", digest.hexdigest())
        yield Innocent("sha256", "checksum", f"sha256:{digest.hexdigest()}")
        yield Innocent("md5", "md5", hashlib.md5(text.encode(), usedforsecurity=False).hexdigest())
        yield Innocent("commit", "commit", hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
        yield Innocent("commit", "revision", digest.hexdigest()[:40])
        yield Innocent("commit", "git", f"at {digest.hexdigest()[:8]} (dirty)")
        yield Innocent("uuid", "run", str(uuid.UUID(bytes=digest.digest()[:16])))
        yield Innocent("uuid", "job_id", uuid.UUID(bytes=digest.digest()[16:]).hex)
        yield Innocent("wandb id", "run_name", f"silver-sweep-{rng.randrange(999)}-{''.join(rng.choices(LOWER, k=8))}")
        settings = {"lr": rng.random(), "r": rng.randrange(64), "targets": ["q_proj", "v_proj"]}
        yield Innocent("base64", "config_b64", base64.b64encode(json.dumps(settings).encode()).decode())
        yield Innocent("digest in base64", "etag", base64.b64encode(digest.digest()[:16]).decode())
        yield Innocent("number", "number", repr(rng.random() * 10 ** rng.randrange(-30, 30)))
        yield Innocent("number", "count", str(rng.randrange(10**18)))
        yield Innocent("checkpoint", "checkpoint", f"checkpoint-{rng.randrange(10**6)}")
        yield Innocent("shard", "file", f"model-{rng.randrange(1, 128):05d}-of-00128.safetensors")
        yield Innocent(
            "timestamp", "at", f"2025-0{rng.randrange(1, 9)}-1{rng.randrange(9)}T12:{rng.randrange(10, 59)}:00+00:00"
        )
        yield Innocent(
            "host", "host", f"gpu-{''.join(rng.choices(LOWER, k=5))}-{rng.randrange(99)}.cluster.example.org"
        )
        yield Innocent("etag", "etag", f'W/"{digest.hexdigest()[:32]}"')
        yield Innocent("docker", "image", f"registry.example.org/train@sha256:{digest.hexdigest()}")
        yield Innocent(
            "url", "url", f"https://example.org/runs/{digest.hexdigest()[:20]}?step={rng.randrange(10**5)}&tab=loss"
        )


_NAMES = {
    "model": (
        "meta-llama/Llama-3.1-70B-Instruct Qwen/Qwen2.5-0.5B-Instruct mistralai/Mixtral-8x7B-v0.1 gpt2 "
        "hf-internal-testing/tiny-random-LlamaForCausalLM HuggingFaceH4/zephyr-7b-beta unsloth/llama-3-8b-bnb-4bit "
        "sentence-transformers/all-MiniLM-L6-v2 google/flan-t5-xxl microsoft/Phi-3-mini-4k-instruct "
        "stabilityai/stable-diffusion-xl-base-1.0 TheBloke/Llama-2-13B-chat-GPTQ "
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B "
        "task-specific-finetuned-llama-v2 sk-learn-pipelines-for-tabular-data-2024 hf_transformers_finetuned_model_v2 "
        "risk-ranker-large-2024-06-01-final key-value-memory-network-large-v2 token-classification-bert-base-NER "
        "secret-santa/reddit-llama-8b password-strength/bert-tiny openai/clip-vit-large-patch14-336"
    ),
    "dataset": (
        "glue/sst2 HuggingFaceH4/ultrachat_200k tatsu-lab/alpaca databricks/databricks-dolly-15k allenai/c4 "
        "Open-Orca/OpenOrca wikitext-103-raw-v1 b3BlbkFJ/dGVzdC1kYXRhc2V0 s3://bucket/data/train gs://bucket/x/y "
        "hf://datasets/org/name https://huggingface.co/datasets/org/name data-00000-of-00128.parquet train.jsonl "
        "org/name@main git@github.com:org/repo.git ssh://git@example.org/org/repo.git "
        "security/leaked-password-statistics"
    ),
    "module": (
        "base_model.model.model.layers.0.self_attn.q_proj model.layers.31.mlp.down_proj lora_unet_down_blocks_0_attn "
        "key_proj k_proj attention.key encoder.layer.0.attention.self.key token_embedding wte tokenizer.json "
        "query_key_value num_key_value_heads past_key_values key_padding_mask"
    ),
}

_PHRASES = (
    ("pad_token", "<|finetune_right_pad_id|>"),
    ("eos_token", "</s>"),
    ("bos_token", "<|begin_of_text|>"),
    ("mask_token", "[MASK]"),
    ("image_token", "<image_placeholder>"),
    ("tokenizer.eos_token", "<|im_end|>"),
    ("token", "<pad>"),
    ("key", "loss"),
    ("sort_key", "eval_loss"),
    ("primary_key", "step"),
    ("metric_for_best_model", "eval_accuracy"),
    ("note", "Token indices sequence length is longer than the specified maximum (2048 > 1024)"),
    ("note", "train.py --max-new-tokens 512 --num-key-value-heads 8 --pad-token-id 0"),
    ("note", "the token budget is 2048 tokens per example, password prompts are left out"),
    ("note", "the key idea: basic training, then a bearer of good news"),
    ("note", "passes=3 bypass=true compass=north keys=12 tokens=4096 max_tokens=4096"),
    ("note", "monkey=banana turkey: 3 whiskey=5 hockey=puck"),
    ("note", "author=alice authority=none authors: 3"),
    ("note", "secret sauce: a warm-up of 3 %"),
    ("note", "secretary=alice passenger=42 passive: yes"),
    ("note", "tokens_per_second=15342.25 total_tokens=120000000"),
    ("note", "use_cache=False, gradient_checkpointing=True, attn_implementation=flash_attention_2"),
    ("note", "key: step, value: loss"),
    ("note", "mail to alice@example.org about lr: 1e-4"),
    ("note", "ratio 3:4@2x, see https://example.org/a?page=2"),
    ("note", "http://localhost:6006/#scalars"),
    ("note", "torch==2.6.0+cpu transformers>=5.0 peft@git+https://github.com/huggingface/peft@main"),
    ("cmd", "accelerate launch --num_processes 8 train.py --lr 1e-4 --tokenizer-name gpt2"),
    ("special_tokens", "<|im_start|>"),
    ("token_type", "input_ids"),
    ("tokenizer", "PreTrainedTokenizerFast"),
    ("author", "alice"),
    ("password_policy", "none"),
    ("keyboard", "qwerty"),
    ("passes", "3"),
    ("webhook", "off"),
    ("credential_type", "none"),
    ("auth", "none"),
    ("secret", "false"),
    ("use_auth_token", "true"),
)


def _innocents() -> Iterator[Innocent]:
    for kind, text in _NAMES.items():
        for name in text.split():
            yield Innocent(kind, f"{kind}_name", name)
    for key, phrase in _PHRASES:
        yield Innocent("phrase", key, phrase)
    for path in (
        "~/models/llama",
        "./data/train.csv",
        "/mnt/nfs/alice/data.jsonl",
        "C:\\Users\\alice\\model",
        "/srv/x",
    ):
        yield Innocent("path", "path", path)
    yield from _drawn(random.Random(20260102), 20)  # noqa: S311  # made-up hashes


INNOCENTS: list[Innocent] = list(_innocents())
