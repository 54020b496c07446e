"""Strings that must never reach a log, and strings that must reach it unchanged.

The secrets are generated from a seed, by their shapes, because secrets in a repository set off its host's scanners.
"""

from __future__ import annotations

import base64
import json
import random
import string
from collections.abc import Iterator

__all__ = ["INNOCENTS", "NAMED", "PATHS", "SECRETS", "SHAPED"]

_rng = random.Random(20250101)  # noqa: S311  # made-up secrets
ALNUM = string.ascii_letters + string.digits
HEX = "0123456789abcdef"
UPPER = string.ascii_uppercase + string.digits


def _of(alphabet: str, n: int) -> str:
    return "".join(_rng.choices(alphabet, k=n))


def _marked(core: str) -> str:
    """Mark the secret within a value, if the secret is only a part of it."""
    return f"\0{core}\0"


def _core(alphabet: str, n: int) -> str:
    return _marked(_of(alphabet, n))


def _jwt() -> str:
    parts = ({"alg": "HS256", "typ": "JWT"}, {"sub": _of(ALNUM, 12), "iat": 1700000000})
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*coded, _of(ALNUM + "_-", 43)])


def _by_value() -> Iterator[str]:
    """Secrets with a shape of their own, which are found under any key and inside other text."""
    for _ in range(3):
        yield "hf_" + _of(ALNUM, 34)
        yield "hf_" + _of(ALNUM, 37)
        yield "api_org_" + _of(ALNUM, 34)
        yield "sk-" + _of(ALNUM, 48)
        yield "sk-proj-" + _of(ALNUM + "_-", 120)
        yield "sk-ant-api03-" + _of(ALNUM + "_-", 93) + "AA"
        yield "sk-or-v1-" + _of(HEX, 64)
        yield "ghp_" + _of(ALNUM, 36)
        yield "gho_" + _of(ALNUM, 36)
        yield "ghs_" + _of(ALNUM, 36)
        yield "github_pat_" + _of(ALNUM, 22) + "_" + _of(ALNUM, 59)
        yield "glpat-" + _of(ALNUM + "_-", 20)
        yield "AKIA" + _of(UPPER, 16)
        yield "ASIA" + _of(UPPER, 16)
        yield "AIza" + _of(ALNUM + "_-", 35)
        yield "ya29." + _of(ALNUM + "_-", 60)
        yield f"xoxb-{_of(string.digits, 12)}-{_of(string.digits, 12)}-{_of(ALNUM, 24)}"
        yield "https://hooks.slack.com/services/T" + _of(UPPER, 8) + "/B" + _of(UPPER, 8) + "/" + _core(ALNUM, 24)
        yield "https://discord.com/api/webhooks/" + _of(string.digits, 18) + "/" + _core(ALNUM + "_-", 68)
        yield _of("123456789", 10) + ":AA" + _of(ALNUM + "_-", 33)
        yield "npm_" + _of(ALNUM, 36)
        yield "pypi-AgEIcHlwaS5vcmc" + _of(ALNUM + "_-", 120)
        yield "SG." + _of(ALNUM + "_-", 22) + "." + _of(ALNUM + "_-", 43)
        yield "sk_live_" + _of(ALNUM, 24)
        yield "dapi" + _of(HEX, 32)
        yield "r8_" + _of(ALNUM, 37)
        yield "gsk_" + _of(ALNUM, 52)
        yield "nvapi-" + _of(ALNUM + "_-", 64)
        yield "xai-" + _of(ALNUM, 80)
        yield "wandb_v1_" + _of(ALNUM, 77)
        yield "lsv2_pt_" + _of(HEX, 32) + "_" + _of(HEX, 10)
        yield _jwt()
        yield "Bearer " + _core(ALNUM, 40)
        yield "Authorization: Basic " + _marked(base64.b64encode(f"{_of(ALNUM, 8)}:{_of(ALNUM, 12)}".encode()).decode())
        yield f"https://user:{_core(ALNUM, 12)}@example.org/repo.git"
        yield f"postgresql://admin:{_core(ALNUM + '!%', 14)}@db.example.org:5432/runs"
        yield f"https://acct.blob.core.windows.net/c/x?sv=2022&sig={_core(ALNUM, 43)}%3D"
        yield f"https://b.s3.amazonaws.com/x?X-Amz-Signature={_core(HEX, 64)}"
        yield f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={_core(ALNUM + '+/', 86)}=="
        yield f"HF_TOKEN=hf_{_core(ALNUM, 34)} python train.py"
        yield f"WANDB_API_KEY={_of(HEX[:10], 4)}a{_core(HEX, 35)}"
        yield f'{{"password": "{_core(ALNUM, 13)}1a"}}'
        yield f"aws_secret_access_key = {_core(ALNUM + '+/', 38)}1a"
        yield f"--api-key={_core(ALNUM, 30)}1a"
        yield f"-----BEGIN RSA PRIVATE KEY-----\n{_core(ALNUM + '+/', 64)}\n-----END RSA PRIVATE KEY-----"
        yield f"-----BEGIN OPENSSH PRIVATE KEY-----\n{_core(ALNUM + '+/', 64)}"


def _by_key() -> Iterator[tuple[str, str]]:
    """Secrets that are recognised only by their key."""
    for key in (
        *("token", "hub_token", "hubToken", "HF_TOKEN", "access_token", "auth_token", "use_auth_token"),
        *("secret", "client_secret", "password", "db_password", "passwd", "passphrase", "pwd"),
        *("api_key", "apikey", "apiKey", "OPENAI_API_KEY", "api-key", "wandb_api_key", "aws_secret_access_key"),
        *("private_key", "secret_key", "authorization", "Authorization", "credential", "aws.credentials", "cookie"),
    ):
        yield key, _of(ALNUM, 20)
        yield key, _of(string.ascii_lowercase, 9)
    for key in ("wandb", "wandb_key", "WANDB"):
        yield key, _of(HEX, 40)
    yield "key", _of(HEX, 16) + "a1" + _of(HEX, 14)


SHAPED: list[tuple[str, str]] = [
    (value.replace("\0", ""), value.split("\0")[1] if "\0" in value else value) for value in _by_value()
]
"""Values known by their shape, each with the part of it that is the secret."""

NAMED: list[tuple[str, str]] = list(_by_key())
"""Key and value, all of which is the secret."""

SECRETS: list[tuple[str, str, str]] = [("note", value, core) for value, core in SHAPED] + [(k, v, v) for k, v in NAMED]
"""Key, value, and the part of it that is the secret."""

PATHS: list[tuple[str, str]] = [
    (path.replace("~~", "/ho" + "me"), kept)
    for path, kept in (
        ("~~/alice/llama-8b", "llama-8b"),
        ("~~/alice/My Drive/llama", "llama"),
        ("/Use" + "rs/alice/models/llama/", "llama"),
        ("/ro" + "ot/train.py", "train.py"),
        ("/mnt/nfs/alice/data.jsonl", "data.jsonl"),
        ("~/models/llama", "llama"),
        ("~alice/models/llama", "llama"),
        ("./data/train.csv", "train.csv"),
        ("../data/train.csv", "train.csv"),
        ("C:\\Users\\alice\\model", "model"),
        ("D:/models/llama", "llama"),
        ("\\\\server\\share\\alice\\model", "model"),
        ("file:///srv/alice/model", "model"),
        ("/", "<path>"),
        ("saved to ~~/alice/out/checkpoint-10 in 3 s", "saved to checkpoint-10 in 3 s"),
        ("no file ~/alice/x.json, and none in /scratch/alice/y", "no file x.json, and none in y"),
        ("cannot open C:\\Users\\alice\\x.txt", "cannot open x.txt"),
        ("~~/alice/x is missing", "x is missing"),
    )
]
"""Paths, and what of them may be written."""

INNOCENTS: list[tuple[str, str]] = [
    *(
        ("model_name", name)
        for name in (
            "meta-llama/Llama-3-8B",
            "Qwen/Qwen2.5-0.5B-Instruct",
            "mistralai/Mixtral-8x7B-v0.1",
            "distilbert-base-uncased",
            "hf-internal-testing/tiny-random-distilbert",
            "HuggingFaceH4/zephyr-7b-beta",
            "unsloth/llama-3-8b-bnb-4bit",
            "sentence-transformers/all-MiniLM-L6-v2",
            "google/flan-t5-xxl",
            "microsoft/Phi-3-mini-4k-instruct",
            "stabilityai/stable-diffusion-xl-base-1.0",
            "openai/clip-vit-large-patch14-336",
            "llama-8b",
            "gpt2",
            "TheBloke/Llama-2-13B-chat-GPTQ",
            "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
            "task-specific-finetuned-llama-v2",
        )
    ),
    *(
        ("dataset_name", name)
        for name in (
            "glue/sst2",
            "HuggingFaceH4/ultrachat_200k",
            "tatsu-lab/alpaca",
            "databricks/databricks-dolly-15k",
            "allenai/c4",
            "Open-Orca/OpenOrca",
            "b3BlbkFJ/dGVzdC1kYXRhc2V0",
            "c3N0Mi10cmFpbi1zcGxpdA==",
            "wikitext-103-raw-v1",
            "risk-assessment-dataset-2024-for-llms",
            "s3://bucket/data/train",
            "gs://bucket/x/y",
            "hf://datasets/org/name",
            "https://huggingface.co/datasets/org/name",
            "data-00000-of-00128.parquet",
            "train.jsonl",
            "org/name@main",
        )
    ),
    *(
        (key, token)
        for key, token in (
            ("pad_token", "<|finetune_right_pad_id|>"),
            ("eos_token", "</s>"),
            ("bos_token", "<|begin_of_text|>"),
            ("unk_token", "[UNK]"),
            ("mask_token", "<mask>"),
            ("padToken", "<pad>"),
            ("image_token", "<image_placeholder>"),
            ("tokenizer.eos_token", "<|im_end|>"),
            ("token", "<pad>"),
            ("stop_token", "<|eot_id|>"),
            ("cls_token", "[CLS]"),
            ("num_tokens", "1024 of 2048 tokens"),
            ("tokens_per_second", "fast: 1234.5 tokens/s"),
            ("token_count", "1k"),
            ("tokenizer", "meta-llama/Llama-3-8B"),
            ("tokenizer_class", "PreTrainedTokenizerFast"),
            ("additional_special_tokens", "<|im_start|>"),
            ("mean_token_accuracy", "0.51"),
            ("max_tokens", "4096"),
            ("keyword", "sentiment-classification-of-2019-tweets"),
            ("label_key", "label"),
            ("text_key", "instruction"),
            ("passes", "3"),
            ("secretary", "no"),
            ("monkey", "banana"),
            ("key", "query_key_value"),
            ("key_proj", "k_proj"),
            ("password_policy", "none"),
            ("author", "alice"),
            ("authority", "x"),
            ("cookies_per_batch", "x"),
        )
    ),
    *(
        (key, value)
        for key, value in (
            ("commit", "9fceb02d0ae598e95dc970b74767f19372d61af8"),
            ("revision", "e1f5b2c"),
            ("git_sha", "a" * 40),
            ("sha256", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            ("run", "ae68cdfc-0d9d-45f7-8a8c-c0ffa3dbf191"),
            ("time", "2025-01-31T12:34:56.789012+00:00"),
            ("target_modules", ".*\\.(q|k|v|o)_proj"),
            ("target_modules", "model\\.layers\\.\\d+\\.self_attn\\.q_proj"),
            ("module", "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"),
            ("optimizer", "OptimizerNames.ADAMW_TORCH_FUSED"),
            ("scheduler", "cosine_with_min_lr"),
            ("dtype", "torch.bfloat16"),
            ("version", "2.13.0+cu128"),
            ("framework", "transformers 5.24.0"),
            ("device", "NVIDIA H100 80GB HBM3"),
            ("message", "loss went from 0.69 to NaN at step 1200/5000"),
            ("message", "train/test gap is 1.8 > 1.5"),
            ("message", "~50 tokens/s, about ~1/3 of the peak"),
            ("message", "use r=8 and/or alpha=16"),
            ("message", "token accuracy = 0.87 (num_tokens: 123456)"),
            ("message", "max_tokens=4096 pad_token=<pad>"),
            ("message", "basic classification of reviews"),
            ("message", "bearer of the highest stable rank: q_proj"),
            ("message", "the API key concept is explained in the docs"),
            ("message", "pass@1 = 0.5; pass@10 = 0.75"),
            ("message", "see https://arxiv.org/abs/2402.12354 and https://example.org/a/b?page=2#top"),
            ("message", "12:30:45 epoch 1/3, 3:AAAA"),
            ("message", "sk-learn-pipelines-for-text-classification"),
            ("message", "key: value, secret sauce: attention"),
            ("message", "password reset emails are class three"),
            ("message", "hf_transformers_based_summarization_model"),
            ("lr", "2e-4"),
            ("split", "test"),
            ("a/b", "c\\d"),
            ("unit", "samples/s"),
            ("range", "1..10"),
            ("emoji", "\U0001f984 \u2013 ok"),
            ("empty", ""),
            ("path", "runs/toy/peft"),
            ("file", "adapter_model.safetensors"),
            ("file", "checkpoint-500/trainer_state.json"),
            ("file", ".gitignore"),
            ("wandb_project", "lora-sst2"),
            ("wandb_run_id", "3k2j1h0g"),
            ("kind", "lora_audit"),
            ("email", "user@example.org"),
        )
    ),
]
"""Key and value, which must be written as they are."""
