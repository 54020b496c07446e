"""Secrets as shells, files, errors and clouds write them, and innocent values of configs, models and runs.

Each was written before the recogniser was tuned on any, and half of them (`unseen`) was not looked at while it was
tuned. `{}` is the secret; values are made up from parts, so that the repository holds nothing a scanner could find.
"""

from __future__ import annotations

import random
import string
import zlib

__all__ = ["INNOCENTS", "SECRETS", "unseen"]

ALNUM = string.ascii_letters + string.digits


def unseen(text: str) -> bool:
    """Whether a line belongs to the half that was not looked at."""
    return zlib.crc32(text.encode()) % 2 == 1


SHAPES = r"""
machine api.example.org\n  login alice\n  password {}
machine api.example.org login alice password {}
default login anonymous password {}
Incorrect API key provided: {}. You can find your API key in the dashboard.
Your secret access key is {}
the secret access key is {} and must be kept
redis-cli -h cache -a {} ping
redis-cli --pass {} -h cache
zip -P {} -r out.zip checkpoint
unzip -P {} data.zip
7z x -p{} data.7z
ldapsearch -x -D cn=admin,dc=org -w {} -b dc=org
smbclient //files/share -U alice%{}
<add key="ApiKey" value="{}" />
variable "db_password" {{ type = string\n default = "{}" }}
user,api_key\nalice,{}
echo {} | sudo -S apt-get install -y git
https://alice:start@{}@host.example.org/path
mysql -u root -p{} runs
mysql --user=root --password={} runs
PGPASSWORD={} psql -h db runs
psql postgresql://alice:{}@db.example.org/runs
mongosh -u alice -p {} runs
mongo --username alice --password {} runs
sshpass -p {} ssh node1
sshpass -p{} scp a node1:
openssl enc -aes-256-cbc -k {} -in a
openssl rsa -passin pass:{} -in key.pem
openssl genrsa -passout pass:{} 2048
gpg --batch --passphrase {} -d a.gpg
keytool -list -storepass {} -keystore a.jks
java -Djavax.net.ssl.keyStorePassword={} -jar a.jar
curl -H "Authorization: Bearer {}" https://api.example.org
curl -u alice:{} https://api.example.org
curl --user alice:{} https://api.example.org
curl -d password={} https://api.example.org
curl --proxy-user alice:{} https://api.example.org
curl --oauth2-bearer {} https://api.example.org
wget --user=alice --password={} https://data.example.org
http -a alice:{} https://api.example.org
docker login -u alice -p {} registry.example.org
docker run -e API_KEY={} image
docker run --env HF_TOKEN={} image
kubectl create secret generic db --from-literal=password={}
kubectl create secret docker-registry r --docker-password={}
kubectl --token={} get pods
helm install db chart --set auth.password={}
aws configure set aws_secret_access_key {}
az login --service-principal -u app -p {} --tenant t
hf auth login --token {}
huggingface-cli login --token {}
wandb login {}
wandb login --relogin {}
{{"username":"alice","key":"{}"}}
git clone https://{}@code.example.org/a/b.git
git clone https://oauth2:{}@code.example.org/a/b.git
git config http.extraheader "AUTHORIZATION: basic {}"
//registry.example.org/:_authToken={}
pip install --index-url https://__token__:{}@pkgs.example.org/simple pkg
twine upload -u __token__ -p {} dist/*
vault login {}
vault kv put secret/db password={}
consul kv get -token={} a
export SERVICE_TOKEN={}
setx API_KEY {}
$env:API_KEY="{}"
set PASSWORD={}
os.environ["OPENAI_API_KEY"] = "{}"
os.environ.setdefault("WANDB_API_KEY", "{}")
ENV API_KEY={}
ARG GITHUB_TOKEN={}
- POSTGRES_PASSWORD={}
- name: DB_PASSWORD\n  value: {}
[client]\npassword={}
spring.datasource.password={}
define('DB_PASSWORD', '{}');
$password = '{}';
<password>{}</password>
<property name="password" value="{}"/>
connectionString="Server=s;User Id=u;Password={};"
jdbc:mysql://db/runs?user=alice&password={}
Driver=x;UID=sa;PWD={};
DefaultEndpointsProtocol=https;AccountName=a;AccountKey={};EndpointSuffix=core
Endpoint=sb://a.example.org/;SharedAccessKeyName=root;SharedAccessKey={}
amqp://alice:{}@queue:5672/v
redis://:{}@cache:6379/0
ftp://alice:{}@files.example.org
mongodb+srv://alice:{}@cluster.example.org/runs
https://api.example.org/v1?api_key={}
https://api.example.org/v1?token={}&x=1
https://api.example.org/v1?a=1&access_token={}
https://blob.example.org/c/a?sv=2022&sig={}
Invalid token: {}
invalid api key '{}'
AuthenticationError: Invalid API Key: {}
authentication failed for token {}
login failed for alice with password {}
the password is {}
my passphrase is "{}"
token {} has expired
X-Api-Key: {}
api-key: {}
Cookie: session={}
Set-Cookie: sessionid={}; Path=/; HttpOnly
AWS4-HMAC-SHA256 Credential=a/20260101/r/s3/aws4_request, SignedHeaders=host, Signature={}
otpauth://totp/x:alice?secret={}&issuer=x
aws_secret_access_key = {}
[remote]\ntype = sftp\npass = {}
sftp://alice:{}@files.example.org/data
node1 ansible_host=10.0.0.1 ansible_ssh_pass={}
ansible_become_password: {}
ansible-playbook a.yml --extra-vars "db_pass={}"
ConvertTo-SecureString "{}" -AsPlainText -Force
net use z: \\files\share {} /user:alice
mount -t cifs //files/a /mnt -o username=alice,password={}
lftp -u alice,{} sftp://files
RSYNC_PASSWORD={} rsync -a a b
sqlplus alice/{}@db
xfreerdp /u:alice /p:{} /v:host
net user alice {} /add
echo alice:{} | chpasswd
echo {} | docker login --username alice --password-stdin
mosquitto_pub -h b -u alice -P {} -t a
influx -username alice -password {}
clickhouse-client --password {}
cqlsh -u alice -p {} host
rabbitmqctl add_user alice {}
RESTIC_PASSWORD={} restic backup a
export BORG_PASSPHRASE='{}'
etcdctl --user root:{} get a
svn checkout --username alice --password {} https://svn.example.org
nmcli device wifi connect home password {}
psk="{}"
ValueError: Invalid value for hub_token: {}
DEBUG: headers={{'authorization': 'Bearer {}'}}
Traceback: requests.get(url, auth=('alice', '{}'))
boto3.client("s3", aws_secret_access_key="{}")
openai.api_key = "{}"
client = OpenAI(api_key="{}")
login(token="{}")
HfApi(token='{}')
Trainer(hub_token='{}')
wandb.login(key="{}")
secrets:\n  api: {}
credentials "app.example.org" {{ token = "{}" }}
provider "x" {{ api_token = "{}" }}
token: "{}"  # prod
refresh_token={}&grant_type=refresh_token
grant_type=password&username=alice&password={}
client_id=abc&client_secret={}
"api_key": "{}", "model": "m"
api_key='{}' is not valid
WARNING: using password {} from the environment
key: {}  (api key, rotate monthly)
""".strip().splitlines()

_rng = random.Random(20281128)  # noqa: S311  # made-up secrets


def _value(place: int) -> str:
    """A token of 20 to 44 letters and digits; for every third shape a password of words and digits."""
    if place % 3 == 2:
        words = _rng.choice(("tiger", "maple", "river", "copper")) + _rng.choice(("Moon", "Stone", "Lake"))
        return f"{words}{_rng.randrange(100, 9999)}{_rng.choice('!$#x')}"
    return "".join(_rng.choices(ALNUM, k=_rng.randrange(20, 45))) + "7aZ"


SECRETS = [  # shape, text, secret
    (shape, shape.replace("\\n", "\n").format(value), value)
    for place, shape in enumerate(SHAPES)
    for value in [_value(place)]
]

_HEX = "0123456789abcdef"


def _hex(n: int) -> str:
    return "".join(_rng.choices(_HEX, k=n))


INNOCENTS = [
    line.replace("<40>", _hex(40)).replace("<64>", _hex(64)).replace("<8>", _hex(8)).replace("<32>", _hex(32))
    for line in r"""
pass: second
pass: first
pass: 2
passes: 3
dataset_pin: <40>
pin: <40>
pin_memory: true
sid: speaker12session34utt0056
sid: spk0041_utt00213_seg07
sort_key=length_then_id_bucket_16x2
sort_key: len_input_ids_desc_v2
cache_key: train-00007-of-00128-3f2a91bc.arrow
cache_key=pile_shard_00012_of_00300_tok_v3
primary_key: example_id_0000123_v2
foreign_key: run_2024_11_28_a1b2_id
group_key: bucket_512x8_len2048
fw_bw_overlap_v2_dp8_tp4_pp2_zero1_run3
run_name: fw_bw_overlap_v2_dp8_tp4_pp2_zero1_run3
run: llama3-8b-lora-r16-a32-lr2e-4-bs64-2026-11-28
run_name: qwen2_5_7b_instruct_sft_r64_a128_seed42
experiment: exp017b_ablate_dropout0p05_r8_v3
wandb_run_id: 3k9x2p1q
wandb_project: lora-sweeps-2026q4
wandb_name: gemma2_9b_it_dpo_beta0p1_r32_step1200
run_id: 20261128T213517Z-7f3a9c
revision: <40>
commit: <40>
git_sha: <40>
git_hash: <8>
_commit_hash: <40>
transformers_commit: <40>
sha256: <64>
md5: <32>
checksum: sha256:<64>
etag: "<32>"
dataset_fingerprint: <8><8>
_fingerprint: <8><8>
base_model: meta-llama/Llama-3.1-8B-Instruct
model: mistralai/Mixtral-8x7B-Instruct-v0.1
model: Qwen/Qwen2.5-Coder-32B-Instruct-GPTQ-Int4
model: deepseek-ai/DeepSeek-R1-Distill-Qwen-14B
model: TheBloke/Llama-2-13B-chat-GGUF
model: unsloth/gemma-3-27b-it-unsloth-bnb-4bit
model: openai/whisper-large-v3-turbo
model: sentence-transformers/all-MiniLM-L6-v2
model: google/flan-t5-xxl-sharded-fp16
model: facebook/wav2vec2-large-xlsr-53
model: microsoft/Phi-3-mini-128k-instruct
model: bigscience/bloomz-7b1-mt
model: tiiuae/falcon-180B-chat
model: EleutherAI/pythia-6.9b-deduped-v0
model: stabilityai/stable-diffusion-xl-base-1.0
model: black-forest-labs/FLUX.1-dev
model: NousResearch/Hermes-3-Llama-3.1-70B
model: HuggingFaceH4/zephyr-7b-beta
model: allenai/OLMo-2-1124-13B-Instruct
model: 01-ai/Yi-1.5-34B-Chat-16K
model: nvidia/Llama-3_1-Nemotron-51B-Instruct
model: bartowski/gemma-2-27b-it-GGUF-Q4_K_M
dataset: HuggingFaceH4/ultrachat_200k
dataset: argilla/ultrafeedback-binarized-preferences-cleaned
dataset: Open-Orca/SlimOrca-Dedup
dataset: teknium/OpenHermes-2.5
dataset: tatsu-lab/alpaca
dataset: allenai/c4:en.noblocklist
dataset: mozilla-foundation/common_voice_17_0
dataset: wikitext-103-raw-v1
dataset: s3://bucket-of-data/train/shard_00001_of_00128.parquet
dataset: gs://team-data/sft/v3/2026-11-28/train-00003-of-00064.jsonl
data_files: data/train-00000-of-00004-9a8f7c6b5d4e3f21.parquet
cache_dir: /home/alice/.cache/huggingface/hub/models--meta-llama--Llama-3.1-8B/snapshots/<40>
output_dir: outputs/2026-11-28_21-35-17_r16_alpha32
logging_dir: runs/Nov28_21-35-17_node1
resume_from_checkpoint: outputs/checkpoint-12000
deepspeed: configs/ds_zero3_bf16_offload_v2.json
fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer
target_modules: ["q_proj", "k_proj", "v_proj", "o_proj"]
target_modules: model.layers.(0|1|2).self_attn.q_proj
modules_to_save: ["embed_tokens", "lm_head"]
lora_dropout: 0.05
optimizer: paged_adamw_8bit
optim: adamw_torch_fused
optim: adafactor_no_scale_v2
lr_scheduler_type: cosine_with_min_lr
attn_implementation: flash_attention_2
bnb_4bit_quant_type: nf4
bnb_4bit_compute_dtype: bfloat16
pad_token: <|finetune_right_pad_id|>
eos_token: <|eot_id|>
bos_token: <|begin_of_text|>
unk_token: <unk>
pad_token_id: 128004
eos_token_id: [128001, 128008, 128009]
additional_special_tokens: ["<|im_start|>", "<|im_end|>"]
tokens_per_second: 12840.5
num_input_tokens_seen: 10485760
max_new_tokens: 512
tokenizer_name: meta-llama/Llama-3.2-1B
tokenizer_revision: <40>
tokens: 1048576
train_tokens: 2_000_000_000
token_count: 4096
first_token: <s>
stop_token: </answer>
image_token: <image>
max_tokens: 8192
hub_model_id: alice/llama3-8b-sft-r16-v2
hub_strategy: every_save
push_to_hub: false
hub_private_repo: true
hub_token: null
use_auth_token: true
use_auth_token: false
token: true
token: null
token: <|endoftext|>
auth: none
auth: oauth2
auth_type: kerberos
login: alice
user: alice
username: alice_smith_2
authors: A. Smith and B. Jones (2026)
author: alice
keys: ["q_proj", "v_proj"]
key: lr
key: train/loss
key: model.layers.31.self_attn.k_proj.lora_A.weight
key_size: 128
key_dim: 128
num_key_value_heads: 8
key_padding_mask: true
key_value_length: 4096
past_key_values: null
state_dict key model.layers.10.mlp.experts.63.down_proj.lora_B.default.weight is missing
unexpected key base_model.model.model.layers.3.self_attn.q_proj.lora_magnitude_vector
missing keys: lm_head.weight, model.embed_tokens.weight
KeyError: 'lora_alpha'
KeyError: model.layers.0.self_attn.q_proj
cookiecutter: cookiecutter-ml-template-v2
secret_sauce: false
secretary_dataset: secretary-problems-100k-v2
password_dataset: rockyou-filtered-10k
task: password_strength_classification_v2
labels: ["password_reset", "login_issue", "refund_request"]
label: password_reset
intent: change_pin
intent: card_pin_blocked_v2
prompt: How do I reset my password?
prompt: Write a short story about a secret garden.
text: the token ring network was slow
text: Please pass: second left, then straight on.
text: his pass to the striker was intercepted
message: forward pass took 120 ms
message: backward pass: 240 ms
message: loss diverged at step 1200, token budget exhausted
message: access denied for user alice
message: 401 Client Error: Unauthorized for url: https://hub.example.org/api/models/a/b
message: Repository not found or token missing
message: Invalid token: expected a string
message: unexpected token } in JSON at position 12
message: Token indices sequence length is longer than the maximum (5012 > 4096)
message: the key is missing
message: authentication is not configured
message: bearer tokens are not supported
message: the API key is read from the environment
message: password: see the wiki
message: set the password with --password
message: use --token TOKEN to log in
message: export HF_TOKEN=<your token>
message: export HF_TOKEN=$HF_TOKEN
message: password: ${{ secrets.REGISTRY_PASSWORD }}
message: api_key: ${API_KEY}
message: api_key=os.environ["API_KEY"]
api_key: ENV
api_key: ""
password: ""
password_env: DB_PASSWORD
api_key_env_var: OPENAI_API_KEY
api_key_name: OPENAI_API_KEY
secret_name: hf-hub-secret
secretKeyRef: hub-credentials
tokenFile: /var/run/secrets/tokens/vault-token
key_file: /etc/ssl/private/server.key
ssh_key_path: ~/.ssh/id_ed25519
credentials_file: ~/.aws/credentials
auth_method: iam_role
webhook_enabled: false
signature: def forward(self, input_ids, attention_mask=None)
signature_columns: ["input_ids", "attention_mask", "labels"]
sign: positive
design: ablation_2x3_factorial_v2
assign: round_robin
basic: true
basic_block: ResNetBasicBlockV2x64
digest: sha256:<64>
bearing: 42.5
seed: 20261128
seed: 1234567890123456789
uuid: 7f3a9c2e-1b4d-4e8f-9a6b-5c7d8e9f0a1b
id: 7f3a9c2e1b4d4e8f9a6b5c7d8e9f0a1b
session: 5f2c7a9e
job_id: 48213077
slurm_job: 48213077_12
node: gpu-a100-80g-node0132
hostname: ip-10-12-34-56.ec2.internal
gpu: NVIDIA-A100-SXM4-80GB
gpu_uuid: GPU-7f3a9c2e-1b4d-4e8f-9a6b-5c7d8e9f0a1b
image: nvcr.io/nvidia/pytorch:24.10-py3
image: registry.example.org/team/trainer@sha256:<64>
pip: git+https://github.com/huggingface/peft.git@<40>
pip: torch==2.9.1+cu128
url: https://huggingface.co/meta-llama/Llama-3.1-8B/tree/<40>
url: https://wandb.ai/team/lora-sweeps-2026q4/runs/3k9x2p1q
url: https://github.com/huggingface/trl/pull/2381#discussion_r1912345678
url: https://arxiv.org/abs/2402.09353v6
url: http://user@host.example.org/path
url: https://files.example.org/d/a1b2c3d4?page=2&sort=name
url: https://api.example.org/v1/models?sort_key=created_at_desc_2
email: alice.smith@example.org
reward_model: sfairXC/FsfairX-LLaMA3-RM-v0.1
template: chatml_with_tools_v2
system_prompt: You are a helpful assistant. Keep the secret word hidden.
stage: sft_then_dpo_v2
split: train[:10%]+validation
split: test_2k_v1_2026
metric: pass@1
metric: pass@10
pass@1: 0.42
eval_pass: 0.42
eval/pass_rate: 0.87
num_passes: 4
second_pass: true
two_pass: v2_rerank_top64
multi_pass: 3
compass: north
bypass: true
bypass_key: none
passage: wiki_2018_passages_psgs_w100
passthrough: true
pathway: kegg_hsa04110_v2
patience: 3
pattern: layers\.(1[0-9]|2[0-3])\.mlp
pat: layers.*.q_proj
pw: 2.5
pwl_points: 16
tok: bpe_32k_v2_nfkc
tok: llama3_tiktoken_128256_v1
tok/s: 12840
cred: high
credit_assignment: gae_lambda0p95_v2
authenticity: 0.93
keystone: v3
keyboard: qwerty
monkey_patch: sdp_attention_v2
monkey: 12
turkey: 3
hotkey: ctrl_shift_k
keyframes: 24
""".strip().splitlines()
]
