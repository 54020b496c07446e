"""A fifth corpus of secrets and innocent values, written at once when the recogniser was done with the fourth.

Sentences that quote a password, tools and files that the others lack; and values of configs, logs and data sets.
"""

from __future__ import annotations

import random

from hostile.fresh import KINDS

__all__ = ["INNOCENTS", "SECRETS"]

SHAPES = r"""
p Login failed for user alice with password "{}"
p could not connect: password '{}' was rejected
p The password "{}" is too weak
w FATAL: password authentication failed (tried the password "{}")
p wrong password: "{}"
p my password is "{}", please keep it
p set the password to '{}' and restart
p with secret "{}" in the vault
a using token "{}" from the cache
p the passphrase `{}` does not open the key
a Invalid token: {}
a invalid_api_key: {} is not a valid key
a openai.AuthenticationError: Incorrect API key provided: {}. You can find yours online
a requests.exceptions.HTTPError: 403 for url: https://api.example.org/v2/m?token={}
a huggingface_hub.errors.HfHubHTTPError: 401 for https://user:{}@huggingface.co/api/whoami
h wandb: ERROR api_key {} must be 40 characters
a {"error": {"message": "bad key", "api_key": "{}"}}
a ValueError: hub_token={} is expired
a TypeError: login() got token='{}'
p OperationalError: (psycopg2) connection to "postgresql://train:{}@pg:5432/r" failed
a token = os.getenv("HF_TOKEN", "{}")
a os.environ.setdefault('COMET_API_KEY', '{}')
a monkeypatch.setenv("AZURE_CLIENT_SECRET", "{}")
a process.env.NPM_TOKEN = "{}"
p const password = "{}";
p let dbPassword: String = "{}".into();
a private static final String API_KEY = "{}";
a #define API_SECRET "{}"
a $env:HF_TOKEN = "{}"
a set HF_TOKEN={}
a setx OPENAI_API_KEY "{}"
a fish_add set -x WANDB_API_KEY {}
a docker run -e HF_TOKEN={} trainer:latest
a docker run --env "MLFLOW_TRACKING_TOKEN={}" img
a singularity exec --env HF_TOKEN={} x.sif python t.py
a srun --export=ALL,HF_TOKEN={} python train.py
a sbatch --export HF_TOKEN={},SEED=1 job.sh
a ray job submit --runtime-env-json '{"env_vars": {"HF_TOKEN": "{}"}}' -- python t.py
a sky launch --env HF_TOKEN={} task.yaml
a modal secret create hf HF_TOKEN={}
a gh secret set HF_TOKEN --body "{}"
a gh auth login --with-token <<< {}
a git -c http.extraHeader="Authorization: Bearer {}" clone https://example.org/r
a pip install --index-url https://__token__:{}@pypi.example.org/simple pkg
a pip config set global.index-url https://u:{}@pypi.example.org/simple
a uv publish --token {}
p twine upload -u bob -p {} dist/x
a conda config --set custom_token {}
a npm config set //registry.example.org/:_authToken={}
a cargo login --token {}
p scp://bob:{}@files.example.org/data
p sftp -o Password={} bob@files.example.org
p rsync --password {} bob@h::data
p mount -t cifs -o username=bob,password={} //h/s /mnt
p mc alias set store https://s3.example.org bob --secret-key {}
a s3cmd --access_key=AKIAIOSFODNN7EXAMPLE --secret_key={} ls
a rclone config create r s3 secret_access_key={}
a aws configure set aws_session_token {}
b az storage blob list --account-key {}
b AZURE_STORAGE_CONNECTION_STRING=AccountName=a;AccountKey={};Endpoint=x
a gcloud auth activate-service-account --key-file=/k --access-token={}
a kubectl --token={} get pods
a kubectl config set-credentials bob --token={}
p kubectl create secret docker-registry r --docker-password={}
a vault kv put secret/hf token={}
a consul kv get -token={} x
p influx --password '{}' -host h
p mongosh "mongodb://bob:{}@h:27017/runs"
p clickhouse-client --user bob --password {} -q 'select 1'
p snowsql -a acct -u bob -p {}
p trino --user bob --password={}
p psql "host=h user=bob password={} dbname=r"
p redis-cli -u redis://default:{}@h:6379
a [hf]\ntoken = {}
a [default]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = {}
p [client]\nuser=bob\npassword={}
a api:\n  token: {}\n  url: https://x
p database:\n  user: bob\n  password: "{}"
a secrets:\n  hf_token: {}
p <property name="hibernate.connection.password">{}</property>
p <connection password="{}" user="bob"/>
a <string name="api_key">{}</string>
a spring.datasource.password={}
a {"name": "HF_TOKEN", "value": "{}"}
a [{"key": "api_key", "value": "{}"}]
a ('api_key', '{}')
a [('Authorization', 'Bearer {}')]
a {b'authorization': b'Bearer {}'}
a headers = {"x-api-key": "{}"}
a X-Auth-Token: {}
a Ocp-Apim-Subscription-Key: {}
a api-key: {}
a Authorization: Token token={}
a grpc-metadata-authorization: Bearer {}
a ws://h/socket?access_token={}
a https://h/cb#access_token={}&state=1
a https://h/reset?reset_token={}
a https://h/d?api-key={}&x=1
a trainer.push_to_hub(token="{}")
a HfApi(token='{}').whoami()
a AutoModel.from_pretrained("m", use_auth_token='{}')
a wandb.init(settings=wandb.Settings(api_key="{}"))
a neptune.init(api_token='{}', project='x')
a args.hub_token = '{}'
a +trainer.logger.api_key={} model=x
a hydra.job.env_set.HF_TOKEN={}
a --report_to wandb --wandb_key {}
a --hub-token='{}' --seed 1
a --hf-token "{}" --lr 1e-4
"""

SECRETS: list[tuple[str, str]] = []
_rng = random.Random(20261130)  # noqa: S311  # made-up secrets, the same in every run
for _line in SHAPES.strip().splitlines():
    _kind, _, _shape = _line.partition(" ")
    _secret = KINDS[_kind](_rng)
    SECRETS.append((_shape.replace("\\n", "\n").replace("{}", _secret), _secret))

INNOCENTS = r"""
auth: disabled
authorization: required
authentication: optional
auth: kerberos
credentials: inherited
password: optional
password: required
token: optional
secret: required
token: word-level
tokens: 1.2T
token_budget: 20B
tokens_per_batch: 4M
n_tokens_k: 512
max_prompt_tokens: 1024
completion_tokens: 17
token_level_loss: true
token_type: wordpiece
token_dropout: 0.1
token_mixer: pooling
token_merging_ratio: 0.5
cls_token_id: 101
image_token_index: 32000
image_token: <image>
video_token: <|video_pad|>
tool_token: [TOOL_CALLS]
audio_token: <|AUDIO|>
stop_token: </s>
answer_token: "### Answer:"
response_token: <|assistant|>
key: train/loss
key: model.layers.0
keys: ["input_ids", "attention_mask"]
dict_key: image_embeds
key_size: 64
key_dim: 128
key_padding_mask: true
dataset_key: conversations
metric_key: eval_rouge2
index_key: __index_level_0__
monitor_key: val/acc
reward_key: rewards/accuracy_reward/mean
map_key: prompt -> instruction
foreign_key: question_id
keybinding: ctrl+c
secret_santa: 3
password_length: 12
password_hash: bcrypt
passphrase_words: 6
cookie: none
cookies: accepted
session: 12
session: evening-2
sid: 0017
sid: utt-000123
pin: 1
pin_memory: true
pin: v2.1.0
pin: numpy==1.26.4
pat: main
psk: none
pw: 0.5
tok: gpt2
tok: cl100k_base
cred: 0.95
bearer: none
webhook: disabled
pass: all
pass: two-stage
bypass: true
pass_through: q8
pass@8: 0.512
pass_threshold: 0.75
encompass: yes
author: J. Smith
authors: Hu et al., 2021
authority: ISO
auth_mode: sso
api_version: 2024-06-01
api_base: http://127.0.0.1:8080
api_type: open_ai
access: public
access_mode: rw
private: false
public_key_url: https://example.org/keys.txt
signature: sft(prompt, answer)
digest: 12
sha: 3c8c5f2
commit_hash: 0b1c2d3e4f5a69788796a5b4c3d2e1f001122334
model_revision: 8c22764a7e3675c50d4c7c9a4edb474456022b16
git_commit: 7f1c9f9
dataset_fingerprint: 4f1b2c8d9e0a7b63
fingerprint: a9d8c7b6e5f40312
cache_file: cache-7d4e2f9a1b3c5d6e.arrow
cache_files: ["cache-1f2e3d4c5b6a7988_00000_of_00008.arrow"]
arrow: data-00003-of-00012.arrow
download_checksum: 1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90a
blob: blobs/4a5d8f0c2e7b9136a8c0e2f4d6b81a3c5e7f9021
snapshot: models--org--m/snapshots/6f1d2e3c4b5a69788796a5b4c3d2e1f001122334
xet_hash: 5b3c1a9f7e2d4c6b8a0f1e3d5c7b9a2f4e6d8c0b1a3f5e7d9c2b4a6f8e0d1c3b
layer_hash: murmur3-x64-128
event_file: events.out.tfevents.1741940813.node017.12345.0
run_dir: run-20250314_092653-x7k2p9qd
run_dir: offline-run-20251103_174420-4qz8m1vt
sweep: bayes-lr-rank-2025w14
trial: 7b1e9c54_3
ray_trial: train_fn_9f3d2_00007_7_lr=0.0003,r=32_2025-11-03_17-44-20
job: sft-llama31-8b-h100x8-zero3-20251103
pod: trainer-worker-0-7d9c5b6f8d-x2k4m
node: ip-10-0-12-7.eu-west-1.compute.internal
instance: p5.48xlarge
gpu_uuid: GPU-3f2a9c1e-5b7d-4f60-a8c2-e4d6f8091a2b
image: ghcr.io/org/trainer:sha-5d853ed
image: pytorch/pytorch:2.7.0-cuda12.8-cudnn9-devel
wheel: flash_attn-2.7.4.post1+cu12torch2.6cxx11abiFALSE-cp311-cp311-linux_x86_64.whl
wheel: triton-3.2.0-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64.whl
nccl: 2.21.5+cuda12.4
driver: 570.86.10
python: 3.11.9 (main, Apr 6 2024, 17:59:24) [GCC 11.4.0]
kernel: Linux-5.15.0-1073-aws-x86_64-with-glibc2.35
cpu: AMD EPYC 9R14 96-Core Processor
run_name: mistral7b-sft-r32a64-qkvo-bf16-4096ctx-3ep
run_name: gemma2-27b-kto-bs64-lr5e-7-b0.1-v4
run_name: phi3mini4k_lora_r8_do05_wd01_cosine_s1337
run_name: Q25-7B-GRPO-G16-kl1e-3-clip0.2-ppo2-20251101T0930
run_name: exp42b_rsLoRA_r128_LoftQ4bit_nf4dq
run_name: baseline_fp8e4m3_tp4pp2dp8_cp2
run_name: 2025-11-03_17-44-20_a100x4
run_name: DPO-b0.05-lr1e6-ep1-UF60k
run_name: tulu3-sft-mix-0225-olmo2-7b
run_name: s1K-1.1-deepseek-r1-32B-bs16-lr1e-5
name: Llama-3.3-70B-Instruct-FP8-dynamic
name: Qwen3-235B-A22B-Thinking-2507-FP8
name: gpt-oss-120b-mxfp4
name: SmolLM3-3B-Base
name: DeepSeek-V3-0324-UD-IQ2_XXS
name: bge-m3-unsupervised
name: roberta-large-mnli
name: t5-v1_1-xxl-encoder-bf16
name: clip-vit-large-patch14-336
name: siglip2-so400m-patch16-naflex
name: wav2vec2-xls-r-300m-en-to-15
name: microsoft/Phi-3.5-MoE-instruct
name: CohereForAI/c4ai-command-r-plus-08-2024
name: allenai/OLMo-2-1124-13B-Instruct-RM
name: nvidia/Nemotron-H-47B-Base-8K
name: 01-ai/Yi-1.5-34B-Chat-16K
name: internlm/internlm2_5-7b-chat-1m
module: base_model.model.model.language_model.layers.27.mlp.experts.63.down_proj.lora_A.weight
module: model.visual.blocks.31.attn.qkv.weight
module: down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_k.lora_B
module: lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_attn1_to_out_0.alpha
module: single_transformer_blocks.37.proj_mlp.lora_down.weight
dataset: HuggingFaceFW/fineweb-edu-score-2
dataset: open-r1/OpenR1-Math-220k
dataset: nvidia/Llama-Nemotron-Post-Training-Dataset-v1
dataset: argilla/ultrafeedback-binarized-preferences-cleaned
dataset: cais/mmlu/abstract_algebra
dataset: json:/data/sft/2025-11/train_v7_dedup_minhash0.8.jsonl
file: part-00007-3f2a9c1e-5b7d-4f60-a8c2-e4d6f8091a2b-c000.zstd.parquet
file: shard_000123_of_004096.tar
file: consolidated.00.pth
file: optimizer_bin_0/__7_3.distcp
file: global_step1200/bf16_zero_pp_rank_3_mp_rank_00_optim_states.pt
file: ggml-model-Q5_K_S.gguf
url: https://github.com/huggingface/peft/blob/9fceb02d0ae598e95dc970b74767f19372d61af8/src/peft/utils/save_and_load.py#L231
url: https://wandb.ai/team/project/runs/x7k2p9qd/workspace?nw=nwuseralice
url: https://example.org/paper.pdf?version=3&page=12
url: http://localhost:6006/#scalars&_smoothingWeight=0.6
url: s3://bucket/prefix/year=2025/month=11/day=03/run=17
url: hf://datasets/org/name@refs/convert/parquet/default/train/0000.parquet
url: file:///mnt/data/a%20b/c.jsonl
url: ssh://git@github.com/org/repo.git
url: git@github.com:org/repo.git
cmd: accelerate launch --num_processes 8 --config_file zero3.yaml sft.py --lora_r 16 --seed 7
cmd: python -m vllm.entrypoints.openai.api_server --model org/m --max-lora-rank 64
cmd: lm_eval --model hf --tasks gsm8k,mmlu --num_fewshot 5 --batch_size auto:4
cmd: tokenizers train --vocab-size 32000 --special-tokens '<s>'
cmd: ssh -p 2222 -N -L 6006:localhost:6006 alice@node017
cmd: rsync -avP data/ alice@node017:/scratch/data/
cmd: docker run -p 8080:80 --gpus all trainer:v3
cmd: grep -P 'token\s+\d+' log.txt | head -p 3
cmd: zip -r out.zip adapter && unzip -p out.zip config.json
cmd: mysql --version; psql -p 5433 -U reader runs
cmd: curl -u : https://example.org
text: Please enter your password to continue.
text: The secret to success is 100 percent effort.
text: A bearer token is issued after login; see section 4.2 for basic authentication.
text: The "password" field is required.
text: Passwords "must be" at least 12 characters long.
text: She whispered the password, "Swordfish", and the door opened.
text: the token "ing" occurs 1532 times
text: token 'Ġthe' has id 262
text: expected token "}" but found ","
text: key "q_proj" not found in rank_pattern
text: missing key 'model.layers.31.mlp.gate_proj.weight' in state_dict
text: KeyError: 'input_ids'
text: unexpected key "base_model.model.lm_head.weight"
text: the secret "Santa" list has 12 names
text: with key 'learning_rate' set to 2e-4
text: special token "<|im_end|>" is not in the vocabulary
text: tokens "w17" and "w42" are never produced
text: auth "none" is used in tests
text: the pass 'warmup' took 3.2 s
text: RuntimeError: CUDA error: device-side assert triggered at 0x7f3a9c1e5b7d
text: size mismatch for lm_head.weight: torch.Size([128256, 4096]) vs [128264, 4096]
text: loss 2.3015 at step 1200, grad norm 17.23, lr 1.9987e-04
text: ETA 3h42m, 18234.5 tok/s, 41.7% MFU, 63.2/80.0 GiB
text: seed=3407 deterministic=1 cudnn.benchmark=0
text: eval_gsm8k_flexible-extract,exact_match: 0.7710
text: checkpoint-12000/adapter_model.safetensors (167.8 MB, sha256 9f86d081884c7d65)
""".strip().splitlines()
