"""Secrets as programs and people write them, and what looks like a secret and is none.

Each line is here because it alone, or with one other, fails for some fault of the recogniser: of six corpora with 2 900
lines, which were written before it was tuned on them, these are the ones that a mutation of a pattern, a word or a
bound is seen by. A secret stands as its class and length between brackets, so that the repository holds nothing that a
scanner could find: letters and digits (a), hexadecimal (h), base64 (b), base64 of URLs (t); or as a password in words.
"""

from __future__ import annotations

import random
import re
import string

__all__ = ["INNOCENTS", "SECRETS"]

ALPHABETS = {
    "a": string.ascii_letters + string.digits,
    "b": string.ascii_letters + string.digits + "+/",
    "h": "0123456789abcdef",
    "t": string.ascii_letters + string.digits + "_-",
}
_rng = random.Random(20281130)  # noqa: S311  # made-up secrets


def _drawn(said: str) -> str:
    """A secret of a class and length, with a letter and a digit among its first four; another text as it is."""
    if not re.fullmatch(r"[abht]\d\d", said):
        return said
    body = "".join(_rng.choices(ALPHABETS[said[0]], k=int(said[1:]) - 4))
    return f"{_rng.choice('abcdef')}7e{_rng.randrange(10)}{body}"


def _line(line: str) -> tuple[str, str]:
    """The text of a line, and its secret."""
    before, said, after = re.split("[\u27e6\u27e7]", line.replace("\\n", "\n"))
    secret = _drawn(said)
    return f"{before}{secret}{after}", secret


SECRETS = [
    _line(line)
    for line in r"""
"auth": "⟦mapleMoon41⟧"
"pwd": "⟦hNBCCF#APMqh⟧"
- name: DB_PASSWORD\n  value: ⟦riverStone88⟧
1 error\npassword\n  bad value [type=x, input_value='⟦mapleLake77⟧', input_type=str]
<add key="ApiKey" value="⟦mapleLake41⟧" />
ARG GITHUB_TOKEN=⟦mapleStone41⟧
ConvertTo-SecureString "⟦riverMoon41⟧" -AsPlainText -Force
DEBUG: headers={'authorization': 'Bearer ⟦mapleLake8999x⟧'}
FATAL: password authentication failed (tried the password "⟦dragon5502⟧")
Login failed with password "⟦WVgAra#UasGa⟧"
PGPASSWORD=⟦riverLake3898#⟧ psql -h db runs
Set-Cookie: sid=⟦tigerStone8134⟧; Path=/
WARNING: using password ⟦copperMoon7532#⟧ from the environment
[remote]\ntype = sftp\npass = ⟦tigerStone5734x⟧
ansible_become_pass: ⟦qjezCo#qcfHw⟧
authentication failed for token ⟦copperStone3532!⟧
aws configure set aws_secret_access_key ⟦riverMoon9045!⟧
client_id=abc&client_secret=⟦copperStone9262#⟧
client_secrets:\n  - x\n  - ⟦riverLake41⟧\nlr: 1
clientsecret: ⟦maple17stone⟧
cqlsh -u alice -p ⟦copperMoon1311$⟧ host
curl --proxy-user bob:⟦copperLake77⟧ https://api.example.org
curl --user alice:⟦riverStone41⟧ https://api.example.org
curl -H "Authorization: Bearer ⟦riverLake3646#⟧" https://api.example.org
curl -u alice:⟦...Tiger2024⟧ https://api.example.org/v1
curl -u alice:⟦TXZXBt#Sv7f7⟧ https://api.example.org/v1
db_password -> ⟦copperMoon915!⟧
docker login -u bob -p ⟦mhKopW#EvpKs⟧ registry.example.org
env API_KEY=⟦mapleStone31⟧ python train.py
env REFRESHTOKEN=⟦tigerMoon41⟧ python train.py
fetched https://api.example.org/v1?session_cookie=⟦tigerLake41⟧ in 3 s
gh secret set HF_TOKEN --body "⟦a40⟧"
git config http.extraheader "AUTHORIZATION: basic ⟦mapleStone2451x⟧"
kaggle.json: {"username":"alice","key":"⟦tigerStone7315$⟧"}
keytool -list -storepass ⟦a42⟧ -keystore a.jks
ldapsearch -x -D cn=admin,dc=org -w ⟦copperMoon788x⟧ -b dc=org
let dbPassword: String = "⟦wXqsqh#hCpv7⟧".into();
login used PMAK-⟦h58⟧ today
login used SK⟦4444444444444444aaaaaaaaaaaaaaaa⟧ today
login used SK⟦h32⟧ today
login used ak-⟦a22⟧ today
login used bkua_⟦h40⟧ today
login used local-⟦h40⟧ today
login used npg_⟦a16⟧ today
login used pul-⟦h40⟧ today
login used rubygems_⟦h48⟧ today
login used sbp_⟦h40⟧ today
login used sk_⟦h48⟧ today
login used sntryu_⟦h64⟧ today
login used sq0atp-⟦a22⟧ today
login:\n  hub_token: "⟦copperLake42⟧"\n
mosquitto_pub -h b -u alice -P ⟦copperStone8949#⟧ -t a
mysql -u root -p⟦$Tiger9secret⟧ runs
mysql -u root -p⟦EEOsBi#c9ckX⟧ runs
net use z: \\files\share ⟦riverStone4423!⟧ /user:alice
net user alice ⟦copperLake971#⟧ /add
nmcli device wifi connect home password ⟦mapleMoon8233$⟧
openssl enc -aes-256-cbc -k ⟦tigerMoon6821#⟧ -in a
os.environ.setdefault("WANDB_API_KEY", "⟦copperLake8359#⟧")
password: ⟦idhVZZ#PJttT⟧
psk="⟦a23⟧"
python t.py --auth '⟦riverStone941⟧' --lr 1e-4
python t.py --openai_key '⟦mapleMoon573⟧' --lr 1e-4
ran wandb login --relogin ⟦h40⟧ now
redis-cli -a ⟦$RedisPass99x⟧ ping
redis://:⟦mGrcCe#RLxnq⟧@cache:6379/0
refreshtoken: ⟦riverMoon412⟧
set the password to '⟦LuGhly#uNerU⟧' and restart
snowsql -a acct -u bob -p ⟦uoDnFQ#JCCkG⟧
sshpass -p ⟦HPgnvQ#mJ6h1⟧ ssh node7
sshpass -p ⟦xxxTiger2024⟧ ssh node7
started as train.py --lr 1e-4 --session_cookie ⟦mapleLake43⟧ --seed 1
the secret access key is ⟦mapleMoon1670$⟧ and must be kept
token = os.getenv("HF_TOKEN", "⟦a40⟧")
twine upload -u __token__ -p ⟦tigerMoon4065$⟧ dist/*
twine upload -u bob -p ⟦JOjtoP#FWSo8⟧ dist/x
unzip -P ⟦riverMoon43⟧ data.zip
variable "db_password" { type = string\n default = "⟦riverStone6783x⟧" }
wandb login ⟦a23⟧
wget --header="PRIVATE-TOKEN: ⟦riverStone43⟧" https://gitlab.example.org/f
with secret "⟦jQmtsw#qbroA⟧" in the vault
zip -P ⟦copperMoon6224!⟧ -r out.zip checkpoint
zip -P ⟦xxxyyyZ99⟧ -r out.zip checkpoint
{"KAGGLE_KEY": [{"id": 1, "held": ["⟦tigerMoon43⟧"]}]}
{"KAGGLE_KEY": {"value": "⟦tigerLake43⟧"}}
{"PGPASSWORD": {"value": "⟦windowtiger53⟧"}}
{"authtoken": "⟦tigerStone43⟧"}
{"authtoken": {"value": "⟦copperMoon43⟧"}}
{"clientsecret": [{"id": 1, "held": ["⟦copperLake43⟧"]}]}
{"clientsecret": {"value": "⟦copperStone43⟧"}}
{"db_pass": {"value": "⟦staplegarden30⟧"}}
{"seen": ["PMAK-⟦h58⟧"]}
{"seen": ["SK⟦h32⟧"]}
{"seen": ["ak-⟦a22⟧"]}
{"seen": ["bkua_⟦h40⟧"]}
{"seen": ["local-⟦h40⟧"]}
{"seen": ["npg_⟦riverStone44⟧"]}
{"seen": ["pul-⟦h40⟧"]}
{"seen": ["rubygems_⟦h48⟧"]}
{"seen": ["sbp_⟦h40⟧"]}
{"seen": ["sk_⟦h48⟧"]}
{"seen": ["sntryu_⟦h64⟧"]}
{"seen": ["sq0atp-⟦a22⟧"]}
{"signing_key": [{"id": 1, "held": ["⟦mapleMoon45⟧"]}]}
{"signing_key": {"value": "⟦mapleLake45⟧"}}
""".strip().splitlines()
]
"""Texts, each with the secret in it."""

INNOCENTS = [
    line.replace("\\n", "\n")
    for line in r"""
additional_special_tokens: ["<|im_start|>", "<|im_end|>"]
answer_token: "### Answer:"
api_key: ${OPENAI_API_KEY}
auth: disabled
auth: kerberos
auth: none
auth: oauth2
authorization: required
cache_key=pile_shard_00012_of_00300_tok_v3
config_b64: eyJsciI6IDAuNzkxNjIyMTY2NzMxMzE3LCAiciI6IDYxLCAidGFyZ2V0cyI6IFsicV9wcm9qIiwgInZfcHJvaiJdfQ==
config_b64: eyJsciI6IDAuODE0NjQ4ODk0NDU4Mzk5OSwgInIiOiAyOSwgInRhcmdldHMiOiBbInFfcHJvaiIsICJ2X3Byb2oiXX0=
cookies: accepted
credentials: default
credentials: inherited
dataset_pin: dbebdbe43d8186df8bd805771ae29609b5ead48a
env: CUDA_VISIBLE_DEVICES=0,1,2,3 NCCL_DEBUG=INFO TOKENIZERS_PARALLELISM=false
experiment: exp017b_ablate_dropout0p05_r8_v3
fw_bw_overlap_v2_dp8_tp4_pp2_zero1_run3
keys: ["input_ids", "attention_mask"]
keys: ["q_proj", "v_proj"]
mask_token: [MASK]
message: api_key: ${API_KEY}
message: api_key=os.environ["API_KEY"]
message: use --token TOKEN to log in
model: secret_agent_llama_7b_instruct_v2
model_name: hf_transformers_finetuned_model_v2
note: auth: none\nport: 8000
note: local-batch-size 4, as-trained-adapters-are-merged-2024, dp.st.age
note: the password is 'required' in the form, the key is 'loss'
note: the token meta-llama/Llama-3.1-8B is not in the vocabulary
note: wandb login first; please run huggingface-cli login
pass: second
pass: two-stage
pass_threshold: 0.75
password: optional
path: runs/local-20240101-llama/checkpoint-500
pin: d4c895ce3ebbd7958117fd7043c3d7828be3efc4
pip: git+https://github.com/huggingface/peft.git@acf8593037b6bb2129530cdae8015adf9e549805
ran `sshpass -p $SSH_PASS`; then wandb login xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
report_to: ["wandb", "tensorboard"]
run_name: fw_bw_overlap_v2_dp8_tp4_pp2_zero1_run3
run_name: phi3mini4k_lora_r8_do05_wd01_cosine_s1337
secret: "false"
secret: false
sid: speaker12session34utt0056
sid: spk0041_utt00213_seg07
sort_key=length_then_id_bucket_16x2
text: the secret "Santa" list has 12 names
token: optional
tool_token: [TOOL_CALLS]
two_pass: v2_rerank_top64
url: hf://datasets/org/name@refs/convert/parquet/default/train/0000.parquet
webhook: off
""".strip().splitlines()
]
"""Settings and texts that hold no secret."""
