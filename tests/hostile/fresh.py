"""A fourth corpus of secrets and innocent values, written at once when the recogniser was done with the third."""

from __future__ import annotations

import random
import string

__all__ = ["INNOCENTS", "SECRETS"]

ALNUM = string.ascii_letters + string.digits
KINDS = {
    "a": lambda r: "".join(r.choices(ALNUM, k=40)),
    "h": lambda r: "".join(r.choices("0123456789abcdef", k=32)),
    "p": lambda r: "".join(r.choices(string.ascii_letters, k=6)) + "#" + "".join(r.choices(ALNUM, k=5)),
    "w": lambda r: r.choice(["sunflower", "Winter", "dragon", "letmein"]) + str(r.randrange(1000, 9999)),
    "b": lambda r: "".join(r.choices(ALNUM + "+/", k=42)) + "==",
    "n": lambda r: "".join(r.choices(string.digits, k=10)),
}

SHAPES = r"""
h export WANDB_API_KEY={}
a HF_TOKEN={} accelerate launch train.py
a HUGGING_FACE_HUB_TOKEN: {}
p os.environ["MLFLOW_TRACKING_PASSWORD"] = "{}"
h wandb login {}
a huggingface-cli login --token {}
a hf auth login --token {}
a login(token="{}")
a model = AutoModel.from_pretrained("org/m", token="{}")
a push_to_hub(repo, use_auth_token="{}")
h wandb.login(key="{}")
a comet_ml.init(api_key="{}")
a neptune.init_run(project="me/p", api_token="{}")
a {"hub_token": "{}"}
a hub_token: {}
p git clone https://alice:{}@git.example.org/team/repo.git
a git remote set-url origin https://oauth2:{}@gitlab.example.org/x.git
p postgresql://svc:{}@db.example.org:5432/runs
p postgres+psycopg2://svc:{}@db/runs?sslmode=require
p mysql -u root -p{} runs
p PGPASSWORD={} psql -h db runs
p redis://:{}@cache:6379/0
p mongodb+srv://user:{}@cluster0.example.net/test
p amqp://guest:{}@rabbit:5672//
p sshpass -p {} ssh node7
p curl -u alice:{} https://api.example.org/v1
a curl -H "Authorization: Bearer {}" https://api.example.org
a curl -H 'X-Api-Key: {}' https://api.example.org
a wget --header="PRIVATE-TOKEN: {}" https://gitlab.example.org/f
p wget --user=bob --password={} https://files.example.org/a
a https://api.example.org/v1/models?api_key={}
a https://storage.example.org/x.bin?X-Amz-Signature={}&X-Amz-Date=20250101T000000Z
a https://acct.blob.core.windows.net/c/f?sv=2022-11-02&sig={}
a https://hooks.slack.com/services/T00000000/B00000000/{}
a https://discord.com/api/webhooks/1234567890/{}
a aws_secret_access_key = {}
a AWS_SECRET_ACCESS_KEY="{}"
a AWS_SESSION_TOKEN={}
a aws configure set aws_secret_access_key {}
a "SecretAccessKey": "{}",
b AccountKey={};EndpointSuffix=core.windows.net
b DefaultEndpointsProtocol=https;AccountName=x;AccountKey={}
b SharedAccessKey={}
p Server=db;Database=runs;User Id=sa;Password={};
p jdbc:sqlserver://db:1433;databaseName=r;user=sa;password={}
a "client_secret": "{}"
a client_secret={}&grant_type=client_credentials
a "refresh_token":"{}"
a access_token={}
a Set-Cookie: session={}; HttpOnly
a Cookie: sessionid={}
b Authorization: Basic {}
a Proxy-Authorization: Bearer {}
a authorization: token {}
a {"headers": {"Authorization": "Bearer {}"}}
a OPENAI_API_KEY='{}'
a openai.api_key = "{}"
a ANTHROPIC_API_KEY: "{}"
a client = OpenAI(api_key="{}", base_url="http://localhost:8000/v1")
a --api-key {} --port 8000
a --api-key={}
a --hf_token {}
p --password '{}'
p --db-password="{}"
p password: {}
p passwd={}
p "pwd": "{}"
w password = {}
w db_password: "{}"
w passphrase: {}
p DB_PASS={}
p user=admin password={} host=db
h secret_key: {}
a SECRET_KEY = '{}'
a jwt_secret={}
a encryption_key: {}
h signing_secret: {}
a private_token: {}
a deploy_token={}
a bot_token: "{}"
a <password>{}</password>
a <add key="ClientSecret" value="{}" />
a env:\n  - name: HF_TOKEN\n    value: {}
a ENV API_TOKEN {}
a ARG GITHUB_TOKEN={}
p docker login -u bob -p {} registry.example.org
a echo "{}" | docker login --username bob --password-stdin
b "auth": "{}"
a //registry.npmjs.org/:_authToken={}
p [pypi]\nusername = bob\npassword = {}
p machine files.example.org login bob password {}
a kubectl create secret generic s --from-literal=token={}
a helm upgrade r c --set auth.token={}
p ansible_become_pass: {}
p smtp_password={}
a variable "api_token" { default = "{}" }
a Error: invalid API key: {}
a 401 Unauthorized: token '{}' has expired
a The access token {} is not valid for this repo
p Login failed with password "{}"
p username: bob, password: {}, host: h
a {'token': '{}', 'repo': 'org/m'}
a Namespace(hub_token='{}', lr=0.0001)
"""

SECRETS: list[tuple[str, str]] = []
_rng = random.Random(20261129)  # noqa: S311  # made-up secrets, the same in every run
for _line in SHAPES.strip().splitlines():
    _kind, _, _shape = _line.partition(" ")
    _secret = KINDS[_kind](_rng)
    SECRETS.append((_shape.replace("\\n", "\n").replace("{}", _secret), _secret))

INNOCENTS = r"""
model_name_or_path: meta-llama/Llama-3.1-8B-Instruct
base_model: mistralai/Mixtral-8x7B-v0.1
base_model_name_or_path: Qwen/Qwen2.5-Coder-32B-Instruct-GPTQ-Int4
revision: 5d853ed7d16ac794afa8f5c9c7f59f4e9c950954
commit: 9fceb02d0ae598e95dc970b74767f19372d61af8
code_revision: refs/pr/12
git_sha: a1b2c3d4e5f6
run_name: llama3-8b-sft-lora-r16-a32-lr2e-4-bs8-seed42
run_name: qwen2.5-7b_dpo_beta0.1_2025-03-14_09-26-53
run_id: 3f2a9c1e
wandb_run_id: x7k2p9qd
experiment: exp_017_ablation_no_dropout_v3
output_dir: /data/checkpoints/gemma-2-9b-it-qlora/checkpoint-1500
logging_dir: runs/Mar14_09-26-53_node017
dataset: HuggingFaceH4/ultrachat_200k
dataset_name: tatsu-lab/alpaca
dataset_config: wikitext-103-raw-v1
dataset_revision: e0c6a1f3b5d7c9e2a4b6d8f0a1c3e5b7d9f1a3c5
data_files: s3://corpus-eu/tokenized/shard-00017-of-00128.parquet
train_file: gs://bucket/data/train-00000-of-00016-a09b74b3ef9c3b56.parquet
tokenizer: google/gemma-2-2b
tokenizer_class: PreTrainedTokenizerFast
pad_token: <|endoftext|>
eos_token: <|im_end|>
bos_token: <s>
unk_token: <unk>
pad_token_id: 128001
eos_token_id: 151645
mask_token: [MASK]
additional_special_tokens: ["<|im_start|>", "<|im_end|>"]
max_new_tokens: 512
max_tokens: 4096
num_tokens: 1500000000
tokens_per_second: 18234.5
tokens_seen: 73400320
num_input_tokens_seen: 12058624
token_accuracy: 0.8123
mean_token_accuracy: 0.7712
tokenizer_path: /models/tok
token_type_ids: [0, 0, 1]
use_auth_token: false
token: true
hub_token: null
hub_token: <HUB_TOKEN>
push_to_hub_token: <PUSH_TO_HUB_TOKEN>
token_env: HF_TOKEN
api_key_env: OPENAI_API_KEY
api_key: ${OPENAI_API_KEY}
key: value
sort_key: length
primary_key: example_id
group_by_key: domain
key_proj: k_proj
attention_key_bias: false
key_value_heads: 8
num_key_value_heads: 8
kv_key_cache_dtype: fp8_e4m3
cache_key: tokenized-4096-packed
label_key: labels
text_key: text
target_modules: ["q_proj", "k_proj", "v_proj", "o_proj"]
modules_to_save: ["embed_tokens", "lm_head"]
layers_to_transform: [0, 1, 2, 3]
lora_alpha: 32
lora_dropout: 0.05
bias: none
task_type: CAUSAL_LM
init_lora_weights: pissa_niter_16
rank_pattern: {"model.layers.0.self_attn.q_proj": 16}
peft_type: LORA
peft_version: 0.18.1
optim: paged_adamw_8bit
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: {"min_lr_rate": 0.1}
warmup_ratio: 0.03
learning_rate: 2e-4
weight_decay: 0.01
max_grad_norm: 1.0
adam_epsilon: 1e-08
gradient_checkpointing: true
attn_implementation: flash_attention_2
torch_dtype: bfloat16
bnb_4bit_quant_type: nf4
deepspeed: configs/zero3_bf16_offload.json
fsdp: full_shard auto_wrap
fsdp_config: {"fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer"}
ddp_timeout: 180000000
dataloader_num_workers: 8
report_to: ["wandb", "tensorboard"]
project: instruction-tuning-2025Q1
wandb_project: lora-rank-sweep
entity: research-nlp
tags: ["sft", "lora", "r64", "ablation-7"]
notes: second pass over the filtered data, with the pass rate as the filter
pass: 2
num_pass: 3
passed: true
pass_rate: 0.61
pass@1: 0.322
pass_at_10: 0.71
author: Jane Doe
hostname: gpu-node-017.cluster.internal
master_addr: 10.0.12.7
master_port: 29500
cuda: 12.4
driver: 550.54.15
gpu: NVIDIA H100 80GB HBM3
job_id: 8812345_17
slurm_job_id: 4412093
uuid: 550e8400-e29b-41d4-a716-446655440000
trial_id: trial_0003_lr=0.0002_r=16
study: optuna-tpe-2025-02-11
sweep_id: r8q1x2zb
seed: 3407
data_seed: 20250101
timestamp: 2025-03-14T09:26:53.589793+00:00
version: v2.3.1-rc4+cu124
image: nvcr.io/nvidia/pytorch:25.01-py3
image_digest: sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
checksum: md5:d41d8cd98f00b204e9800998ecf8427e
content_hash: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
file_sha256: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
etag: "33a64df551425fcc55e4d42a148795d9f25f89d4"
url: https://huggingface.co/meta-llama/Llama-3.1-8B/resolve/main/config.json
url: https://arxiv.org/abs/2106.09685
homepage: https://example.org/docs/guide?page=2&lang=en
endpoint: http://localhost:8000/v1
base_url: https://api.example.org/v1/chat/completions
tracking_uri: http://mlflow.internal:5000
artifact_location: s3://mlflow-artifacts/17/3f2a9c1e5b7d4f60a8c2e4d6f8091a2b/artifacts
chat_template: {% for m in messages %}{{ m.content }}{% endfor %}
system_prompt: You are a helpful assistant. Never reveal the password of a user.
instruction: Reset the password of my account
prompt: What is a bearer token and how does basic authorization work?
description: Secrets of the ancient world, a dataset of short stories
dataset: secrets-of-history-v2
model: password-strength-classifier-base
dataset_name: rockyou-password-strength
task: token-classification
metric_for_best_model: eval_loss
loss: 0.6931471805599453
lr: 0.00019987654321
grad_norm: 1.2345678901234567
eval_loss: 1.0986122886681098
epoch: 2.9973333333333333
train_runtime: 12345.6789
train_samples_per_second: 17.234
total_flos: 1.2345678901234568e+18
split: validation[:10%]
streaming: true
preprocessing: packed-2048-shuffled-buffer10000
shard: part-00042-tid-8817263544120987-c000.snappy.parquet
file: pytorch_model-00002-of-00003.bin
file: model-00001-of-00004.safetensors
adapter: adapter_model.safetensors
checkpoint: checkpoint-12000-best-f1-0.8734
resume_from: ckpt/step_0012000_loss_0.4321
layer: base_model.model.model.layers.31.mlp.down_proj.lora_B.default.weight
module: transformer.h.11.attn.c_attn
param: vision_tower.vision_model.encoder.layers.23.self_attn.k_proj.bias
name: Meta-Llama-3-8B-Instruct-abliterated-v3-GGUF-Q4_K_M
name: TinyLlama-1.1B-intermediate-step-1431k-3T
name: bert-large-uncased-whole-word-masking-finetuned-squad
name: xlm-roberta-base-finetuned-conll03-english
name: stabilityai/stable-diffusion-xl-base-1.0
name: openai/whisper-large-v3-turbo
name: deepseek-ai/DeepSeek-R1-Distill-Qwen-32B
name: nvidia/Llama-3_3-Nemotron-Super-49B-v1
name: unsloth/Meta-Llama-3.1-8B-bnb-4bit
name: TheBloke/Mistral-7B-Instruct-v0.2-AWQ
name: sentence-transformers/all-MiniLM-L6-v2
name: facebook/opt-iml-max-30b
speaker: spk0042utt1183
sid: conv-12-turn-03
session: morning-run-3
session_id: 17
user: alice
username: bob
user_agent: python-requests/2.32.3
auth_type: none
auth: disabled
authorization: required
credentials: default
credential_type: iam-role
secret_name: hf-credentials
secret_ref: vault/data/training
password_file: /run/secrets/db_password
token_file: /var/run/secrets/token
key_file: ~/.ssh/id_ed25519.pub
keyframe: 12
keypoints: 17
monkey: capuchin
passage: The quick brown fox
passenger_count: 3
compass_heading: 271.5
tokenize: true
secretary_problem: e-threshold
cookie_cutter: default
bearing: 271
signature_columns: ["input_ids", "labels"]
hash: 1234567
id: chatcmpl-9x8y7z
row_id: 000000012345
phone_encoder: wav2vec2-lv-60-espeak-cv-ft
hparams: lr=3e-4,wd=0.1,bs=256,warmup=2000,clip=1.0
cmd: python train.py --lr 1e-4 --max-tokens 4096 --tokenizer org/tok --save-every 500
cmd: torchrun --nproc_per_node 8 --master_port 29501 sft.py --token_dropout 0.1
env: CUDA_VISIBLE_DEVICES=0,1,2,3 NCCL_DEBUG=INFO TOKENIZERS_PARALLELISM=false
loss_type: dpo_norm
reward_model: RLHFlow/ArmoRM-Llama3-8B-v0.1
vllm_args: --max-model-len 8192 --gpu-memory-utilization 0.9
""".strip().splitlines()
