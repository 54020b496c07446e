"""What two files beside a run say of the prompt: as they are written, and the rules that compare them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

from adapter_files import lora, saved
from tables import every

from gradience import audit_adapter, check_config, check_data, diagnose
from gradience.configs.families import other_model
from gradience.folder.prompts import PromptLink, prompt_links
from gradience.rules import judge
from gradience.rules.between.prompts import PROMPT_RULES
from gradience.rules.judged import OF_PROMPT

CHATML: Final = "{{ '<|im_start|>' + role + content + '<|im_end|>' }}"
LLAMA3: Final = "{{ '<|start_header_id|>' + role + content + '<|eot_id|>' }}"
GO: Final = "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
RECIPE: Final = "model_name_or_path: org/m-8b\nstage: sft\ndo_train: true\ntemplate: qwen\nlearning_rate: 1.0e-4\n"
EXPORT: Final = "model_name_or_path: org/m-8b\nadapter_name_or_path: out\nexport_dir: merged\n"

ONLY: Final = "train_on_responses_only(SFTTrainer(), response_part='<|im_start|>assistant\\n')\n"
BOS: Final = {"bos_token": "<s>"}

Files = dict[str, Any]


def written(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def adapter(template: str = CHATML, eos: str = "<|im_end|>", **fields: Any) -> Files:
    """An adapter with the tokenizer that was saved beside it."""
    tokenizer = {"chat_template": template, "eos_token": {"content": eos}, **fields}
    return {"adapter_model.safetensors": "", "adapter_config.json": {}, "tokenizer_config.json": tokenizer}


def merged(template: str = CHATML, eos: str = "<|im_end|>") -> Files:
    return {"merged/tokenizer_config.json": {"chat_template": template, "eos_token": eos}}


def modelfile(template: str | None = GO, start: str = "./m.gguf", **more: str) -> Files:
    lines = [f"# TEMPLATE of a note\nFROM {start}", *(f"{name} {text}" for name, text in more.items())]
    lines += [] if template is None else [f'TEMPLATE """{template}"""']
    return {"Modelfile": "\n".join(lines).replace("STOP", "PARAMETER stop") + "\n"}


def said(folder: Path, files: Files) -> dict[str, str]:
    links = prompt_links([written(folder, files)])
    return {finding.id: finding.message for finding in judge(PROMPT_RULES, links).findings}


OWN: Final = "a template that begins turns with <|im_start|> (tokenizer_config.json in run)"
OTHERS: Final = ": the model gets other turns than it learnt"
RAW: Final = "Ollama takes one of its own that resembles the GGUF's, or sends raw text"
HEADERS: Final = "begins turns with <|start_header_id|>"
CHAT: Final = "begins turns with <|im_start|>"
TOK: Final = "tokenizer_config.json in run"
SERVED: Final = f"trained with {OWN}, and served with"
QWEN: Final = f"trained with template qwen that {CHAT} (train.yaml), and"
LOOKS: Final = "train.py looks for answers behind '<|im_start|>assistant', and they are written with"

FAULTY: Final[list[tuple[str, Files, str]]] = [
    ("PRM501", adapter() | modelfile(None), f"{OWN} is the template of training, and Modelfile has no TEMPLATE: {RAW}"),
    (
        "PRM501",
        adapter() | modelfile(" {{ .Prompt }} ", start="."),
        f"{OWN} is the template of training, and Modelfile has a TEMPLATE of the bare prompt: {RAW}",
    ),
    (
        "PRM502",
        adapter(LLAMA3, "<|eot_id|>") | modelfile(GO),
        f"trained with a template that {HEADERS} ({TOK}), and served with a template that {CHAT} (Modelfile){OTHERS}",
    ),
    (
        "PRM502",
        {"train.yaml": RECIPE, "export.yaml": EXPORT + "template: llama3\n"},
        f"{QWEN} exported with template llama3 that {HEADERS} (export.yaml){OTHERS}",
    ),
    (
        "PRM502",
        {"train.yaml": RECIPE, "export.yaml": EXPORT + "template: qwen3\n"},
        f"{QWEN} exported with template qwen3 that {CHAT} (export.yaml){OTHERS}",
    ),  # one form, and another text: of qwen3 with thoughts and without
    (
        "PRM502",
        {"train.yaml": RECIPE} | merged(LLAMA3),
        f"{QWEN} the merged model has a template that {HEADERS} (tokenizer_config.json in merged){OTHERS}",
    ),
    (
        "PRM502",
        adapter()
        | {"serve.sh": "vllm serve m --chat-template mistral.jinja\n", "mistral.jinja": "[INST]{{ x }}[/INST]"},
        f"{SERVED} a template that begins turns with [INST] (--chat-template in serve.sh){OTHERS}",
    ),
    (
        "PRM502",
        adapter() | {"serve.sh": "llama-server -m m.gguf --chat-template llama3\n"},
        f"{SERVED} template llama3 that {HEADERS} (--chat-template in serve.sh){OTHERS}",
    ),
    (
        "PRM502",
        {"train.yaml": RECIPE, "chat.yaml": "model: org/m-8b\ntemplate: llama3\n"},
        f"{QWEN} served with template llama3 that {HEADERS} (chat.yaml){OTHERS}",
    ),  # nothing in it trains: it serves
    (
        "PRM503",
        adapter() | merged(eos="<|endoftext|>"),
        f"the end token is <|im_end|> in {TOK}, and <|endoftext|> in tokenizer_config.json in merged",
    ),
    (
        "PRM503",
        adapter(eos="<|endoftext|>") | modelfile(STOP='"<|endoftext|>"'),
        (
            "Modelfile writes turns that end with <|im_end|>, and stops at <|endoftext|> only; "
            f"the end token of {TOK} is <|endoftext|>"
        ),
    ),
    (
        "PRM504",
        {"train.yaml": RECIPE + "default_system: You are a clerk.\n"} | modelfile(),
        "the system prompt is 'You are a clerk.' in train.yaml, and none in Modelfile",
    ),
    (
        "PRM504",
        {"train.yaml": RECIPE + "default_system: You are a clerk.\n"} | modelfile(SYSTEM="You are a cook."),
        "the system prompt is 'You are a clerk.' in train.yaml, and 'You are a cook.' in Modelfile",
    ),
    (
        "PRM505",
        adapter(**BOS, add_bos_token=True) | modelfile("<s>" + GO),
        f"the TEMPLATE of Modelfile begins with <s>, and {TOK} adds it (add_bos_token)",
    ),
    (
        "PRM502",
        adapter() | {"sft.yaml": "model_name_or_path: org/m\nchat_template_path: org/Llama-3.2-1B-Instruct\n"},
        f"trained with template Llama-3.2-1B-Instruct that {HEADERS} (sft.yaml), and the tokenizer has {OWN}{OTHERS}",
    ),
    (
        "PRM502",
        adapter(LLAMA3) | {"train.py": "SFTConfig(chat_template_path='own.jinja')\n", "own.jinja": CHATML},
        (
            f"trained with a template that {CHAT} (train.py), and the tokenizer has "
            f"a template that {HEADERS} ({TOK}){OTHERS}"
        ),
    ),
    (
        "PRM502",
        adapter() | {"chat.py": "t = unsloth.get_chat_template(t, chat_template = 'llama-3.1')\nm.generate()\n"},
        f"{SERVED} template llama-3.1 that {HEADERS} (chat.py){OTHERS}",
    ),
    (
        "PRM503",
        adapter() | {"train.py": "SFTConfig(eos_token='<|endoftext|>')\n"},
        f"the end token is <|endoftext|> in train.py, and <|im_end|> in {TOK}",
    ),
    (
        "PRM506",
        adapter(LLAMA3) | {"train.py": f"get_chat_template(t, chat_template='llama-3')\n{ONLY}"},
        f"{LOOKS} template llama-3 that {HEADERS} (train.py): every label is -100",
    ),
    (
        "PRM506",
        adapter(LLAMA3) | {"train.py": f"'\\d'\n{ONLY}"},
        f"{LOOKS} a template that {HEADERS} ({TOK}): every label is -100",
    ),
]

LONG: Final = {"train.yaml": RECIPE + "cutoff_len: 2048\n"}
IDS: Final = {"added_tokens": [{"id": 0, "content": "<|endoftext|>"}, {"id": 2, "content": "<|im_end|>"}]}
ALPACA: Final = "SFTTrainer()\nPROMPT = 'Below.\\n\\n### Instruction:\\n{}\\n\\n### Response:\\n'\n"
SERVE: Final = {"serve.sh": "pip install vllm\nvllm serve m \\\n  --max-model-len 9\n"}
CALLS: Final = CHATML + "<tool_call>{{ call | tojson }}</tool_call>"
BEGINS: Final = {
    "tokenizer.json": {
        "post_processor": {"processors": [{"type": "ByteLevel"}, {"single": [{"SpecialToken": {"id": "<s>"}}]}]}
    }
}
ENCODED: Final = "Trainer()\ntext = tok.apply_chat_template(m, tokenize=False)\nids = tok(text, max_length=9)\n"
COLUMN: Final = (
    "d = d.map(lambda r: {'text': tok.apply_chat_template(r, tokenize=False)})\nd = d.map(lambda r: tok([r['text']]))\n"
)


TEXT: Final = "d = d.map(lambda r: {'text': tok.apply_chat_template(r['messages'], tokenize=False)})\n"
LIST: Final = (
    "texts = [tok.apply_chat_template(r, tokenize=False) for r in rows]\nd = Dataset.from_dict({'said': texts})\n"
)
FORM: Final = "def form(r):\n    said = tok.apply_chat_template(r, tokenize=False)\n    return said\n"


def encoded(call: str) -> str:
    return (
        f"train.py calls {call} on what the chat template wrote, <s> first, and tokenizer_config.json in run adds it "
        "(tokenizer.json)"
    )


FAULTY += [
    *(
        ("PRM505", adapter("{{ bos_token }}", **BOS) | BEGINS | {"train.py": text}, encoded("SFTTrainer"))
        for text in (
            f"{TEXT}SFTTrainer()\n",
            f"{LIST}SFTTrainer(args=SFTConfig(dataset_text_field='said'))\n",
            f"{FORM}SFTTrainer(formatting_func=form)\n",
            f"{FORM.replace('    said =', '    return').replace('return said', '')}SFTTrainer(formatting_func=form)\n",
        )
    ),
    (
        "PRM503",
        adapter() | {"tokenizer.json": IDS, "generation_config.json": {"eos_token_id": 0}},
        (
            "the end token is <|im_end|> in tokenizer_config.json in run, and the generation config beside "
            "tokenizer_config.json in run ends at <|endoftext|>: generate() of transformers goes on after <|im_end|>"
        ),
    ),
    (
        "PRM502",
        adapter() | {"chat_template.jinja": LLAMA3},
        (
            "a template that begins turns with <|start_header_id|> (chat_template.jinja in run) lies beside a template "
            "that begins turns with <|im_start|> (tokenizer_config.json in run): transformers takes the former, and "
            "what reads only tokenizer_config.json the latter"
        ),
    ),
    (
        "PRM502",
        adapter() | {"train.py": ALPACA} | SERVE,
        (
            "trained with a template that begins turns with ### Instruction: (train.py), and serve.sh serves chats "
            "with a template that begins turns with <|im_start|> (tokenizer_config.json in run): the model gets other "
            "turns than it learnt"
        ),
    ),
    (
        "PRM502",
        adapter(LLAMA3) | {"train.sh": "swift sft \\\n  --model org/m --dataset d \\\n  --template 'qwen2_5'\n"},
        (
            "trained with template qwen2_5 that begins turns with <|im_start|> (train.sh), and the tokenizer has a "
            "template that begins turns with <|start_header_id|> (tokenizer_config.json in run): the model gets other "
            "turns than it learnt"
        ),
    ),
    (
        "PRM507",
        adapter(CALLS) | {"serve.sh": "vllm serve m --enable-auto-tool-choice --tool-call-parser=mistral\n"},
        (
            "the template of tokenizer_config.json in run writes calls of tools behind <tool_call>, and the parser "
            "mistral (serve.sh) looks for [TOOL_CALLS]: no call is found"
        ),
    ),
    (
        "PRM507",
        adapter("")
        | {
            "own.jinja": "<tool_call>\n<function=",
            "compose.yaml": "x: --chat-template own.jinja\n  --tool-call-parser hermes",
        },
        (
            "the template of --chat-template in compose.yaml writes calls of tools behind <function=, and the parser "
            "hermes (--chat-template in compose.yaml) looks for <tool_call>: no call is found"
        ),
    ),
    (
        "PRM505",
        adapter("{{ bos_token }}" + LLAMA3, **BOS) | BEGINS | {"train.py": ENCODED},
        encoded("tok(text, max_length=9)"),
    ),
    ("PRM505", adapter("<s>" + LLAMA3, **BOS) | BEGINS | {"train.py": COLUMN}, encoded("tok([r['text']])")),
]

FAULTY += [
    (
        "PRM502",
        adapter() | {"train.py": f"tok.chat_template = {LLAMA3!r}\nSFTTrainer()\n"},
        (
            "trained with a template that begins turns with <|start_header_id|> (train.py), and the tokenizer has a "
            "template that begins turns with <|im_start|> (tokenizer_config.json in run): the model gets other turns "
            "than it learnt"
        ),
    ),
    (
        "PRM502",
        adapter(LLAMA3) | {"train.py": "model, tok = setup_chat_format(model, tok)\nSFTTrainer()\n"},
        (
            "trained with a template that begins turns with <|im_start|> (train.py), and the tokenizer has a template "
            "that begins turns with <|start_header_id|> (tokenizer_config.json in run): the model gets other turns "
            "than it learnt"
        ),
    ),
    (
        "PRM502",  # a script that is no recipe of a template does not hide the one that is
        adapter(LLAMA3, **BOS) | {"train.yaml": RECIPE, "eval.py": ENCODED},
        (
            "trained with template qwen that begins turns with <|im_start|> (train.yaml), and the tokenizer has a "
            "template that begins turns with <|start_header_id|> (tokenizer_config.json in run): the model gets other "
            "turns than it learnt"
        ),
    ),
    (
        "PRM504",
        {"train.yaml": "base_model: org/m-8b\nchat_template: chatml\ndatasets: []\ndefault_system_message: Be brief.\n"}
        | modelfile(SYSTEM="Be Mario."),
        "the system prompt is 'Be brief.' in train.yaml, and 'Be Mario.' in Modelfile",
    ),
]

AXOLOTL: Final = "base_model: org/m-8b\nsequence_len: 4096\ndatasets:\n- {path: a, type: TYPE}\n"
JINJA: Final = (
    AXOLOTL.replace("TYPE", "chat_template") + "chat_template: jinja\nchat_template_jinja: " + json.dumps(LLAMA3)
)
QWEN3: Final = CHATML + "{%- if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
MUTE: Final = RECIPE.replace("qwen", "qwen3") + "\nenable_thinking: false\ncutoff_len: 2048\n"
ASKS: Final = "to false, and serve.sh does not: unless each request does, the template lets the model think"
FAULTY += [
    (
        "PRM502",
        adapter() | {"train.yaml": JINJA},
        f"trained with a template that {HEADERS} (train.yaml), and the tokenizer has {OWN}{OTHERS}",
    ),
    (
        "PRM502",
        {"train.yaml": AXOLOTL.replace("TYPE", "alpaca")} | modelfile(),
        (
            "trained with a template that begins turns with ### Instruction: (train.yaml), and served with a template "
            f"that {CHAT} (Modelfile){OTHERS}"
        ),
    ),
    (
        "PRM502",
        adapter() | modelfile(None, start="llama3.2:3b"),
        f"{SERVED} template llama3.2 that {HEADERS} (Modelfile){OTHERS}",
    ),
    (
        "PRM503",
        adapter(eos="<|endoftext|>") | {"tokenizer.json": IDS, "generation_config.json": {"eos_token_id": 0}},
        (
            f"turns end with <|im_end|> in {TOK}, and the generation config beside {TOK} ends at <|endoftext|>: "
            "generate() of transformers goes on after <|im_end|>"
        ),
    ),
    (
        "PRM503",
        adapter(eos="<|endoftext|>")
        | merged(eos="<|endoftext|>")
        | {"merged/tokenizer.json": IDS, "merged/config.json": {"eos_token_id": 0}},
        (
            f"turns end with <|im_end|> in {TOK}, and the generation config beside tokenizer_config.json in merged "
            "ends at <|endoftext|>: generate() of transformers goes on after <|im_end|>"
        ),
    ),
    (
        "PRM504",
        modelfile("<|im_start|>user\n{{ .Prompt }}<|im_end|>", SYSTEM="Be kind."),
        "Modelfile has SYSTEM 'Be kind.', which its TEMPLATE writes nowhere: neither .System nor .Messages",
    ),
    (
        "PRM508",
        adapter(QWEN3) | {"train.yaml": MUTE, "serve.sh": "vllm serve m\n"},
        f"train.yaml sets enable_thinking {ASKS}",
    ),
    (
        "PRM508",
        {"train.yaml": MUTE, "serve.yaml": "model_name_or_path: org/m-8b\ntemplate: qwen3\n"},
        f"train.yaml sets enable_thinking {ASKS.replace('.sh', '.yaml')}",
    ),
    (
        "PRM508",
        {"train.yaml": MUTE} | merged(QWEN3),
        f"train.yaml sets enable_thinking {ASKS.replace('serve.sh', 'tokenizer_config.json in merged')}",
    ),
    (
        "PRM509",
        {"train.yaml": MUTE, "serve.sh": "vllm serve m --max-model-len 1K\n"},
        "train.yaml takes rows of up to 2,048 tokens, and serve.sh serves 1,024, the answer included",
    ),
    (
        "PRM509",
        {"train.yaml": RECIPE + "cutoff_len: 2048\n"} | modelfile(**{"PARAMETER num_ctx": "2047"}),
        "train.yaml takes rows of up to 2,048 tokens, and Modelfile serves 2,047, the answer included",
    ),
    (
        "PRM509",
        LONG | {"serve.sh": "llama-server -m m.gguf -c 8188 -np 4\n"},
        (
            "train.yaml takes rows of up to 2,048 tokens, and serve.sh serves 2,047 (8,188 in 4 slots), the answer "
            "included"
        ),
    ),
    (
        "PRM509",
        {
            "sft.yaml": "model_name_or_path: org/m\nmax_length: 4097\n",
            "compose.yaml": 'command: ["--max-model-len", "4096"]\nx: vllm serve m\n',
        },
        "sft.yaml takes rows of up to 4,097 tokens, and compose.yaml serves 4,096, the answer included",
    ),
]

SOUND: Final[list[Files]] = [
    adapter(LLAMA3) | {"train.yaml": JINJA},
    adapter() | {"train.yaml": AXOLOTL.replace("TYPE", "chat_template") + "chat_template: tokenizer_default\n"},
    adapter(LLAMA3) | {"train.yaml": AXOLOTL + "chat_template: tokenizer_default_fallback_chatml\n"},
    adapter(LLAMA3)
    | {"train.yaml": AXOLOTL.replace("}", "}\n- {path: b, type: chat_template}").replace("TYPE", "alpaca")},
    adapter(eos="<|endoftext|>") | {"tokenizer.json": IDS, "generation_config.json": {"eos_token_id": [0, 2]}},
    adapter(eos="<|endoftext|>")
    | merged(eos="<|endoftext|>")
    | {"tokenizer.json": IDS, "generation_config.json": {"eos_token_id": 0}}
    | {"merged/tokenizer.json": IDS, "merged/generation_config.json": {"eos_token_id": 2}},
    adapter("", "<|endoftext|>") | {"tokenizer.json": IDS, "generation_config.json": {"eos_token_id": 0}},
    modelfile("{{ .System }}{{ .Prompt }}", SYSTEM="Be kind."),
    modelfile(GO, SYSTEM="Be kind."),
    adapter(QWEN3)
    | {"train.yaml": MUTE, "serve.sh": "vllm serve m --default-chat-template-kwargs '{\"enable_thinking\": false}'\n"},
    adapter(QWEN3) | {"train.yaml": MUTE, "serve.sh": "llama-server -m m.gguf --reasoning-budget 0 -c 2048\n"},
    adapter() | {"train.yaml": MUTE, "serve.sh": "vllm serve m --max-model-len 4k\n"},
    LONG | {"serve.sh": "llama-server -m m.gguf -c 8192 -np 4\n"},
    LONG | {"serve.sh": "llama-server -m m.gguf -c 8188 -np 4 -kvu\n"},
    adapter(QWEN3) | {"train.yaml": MUTE.replace("false", "true"), "serve.sh": "vllm serve m\n"},
    {"train.yaml": MUTE, "serve.yaml": "model_name_or_path: org/m-8b\ntemplate: qwen3\nenable_thinking: false\n"},
    {"train.yaml": RECIPE} | modelfile(**{"PARAMETER num_ctx": "9"}),
    adapter() | {"train.py": f"tok.chat_template = {CHATML!r}\nSFTTrainer()\n"},
    adapter() | {"train.py": f"tok.chat_template = {LLAMA3!r}\nload()\n"},
    adapter() | {"train.py": "setup_chat_format(model, tok)\nSFTTrainer()\n"},
    adapter(LLAMA3) | {"train.py": "if tok.chat_template is None:\n    setup_chat_format(model, tok)\nSFTTrainer()\n"},
    adapter() | {"train.py": ALPACA, "infer.py": ENCODED.replace("Trainer()", "load()")},
    adapter() | {"train.py": ALPACA, "build.sh": "cp llama-server out\n"},
    adapter("{{ bos_token }}", **BOS) | BEGINS | {"train.py": f"{ENCODED}def f(text):\n    pass\n"},
    adapter("{{ bos_token }}", **BOS) | BEGINS | {"train.py": ENCODED.replace("ids", "text = raw\nids")},
    adapter("{{ bos_token }}", **BOS) | BEGINS | {"train.py": ENCODED.replace("tok", "processor")},
    adapter() | {"tokenizer.json": IDS, "generation_config.json": {"eos_token_id": [0, 2]}},
    adapter() | {"tokenizer.json": IDS, "generation_config.json": {"eos_token_id": [0, 5]}},
    adapter() | {"tokenizer.json": IDS, "generation_config.json": {}},
    adapter(eos="</s>") | {"tokenizer.json": IDS, "generation_config.json": {"eos_token_id": 2}},
    adapter() | {"chat_template.jinja": CHATML + " "},
    adapter("") | {"chat_template.jinja": CHATML},
    adapter() | {"train.py": ALPACA},
    adapter("") | {"train.py": ALPACA} | SERVE,
    adapter() | {"train.py": ALPACA.replace("SFTTrainer", "load")} | SERVE,
    adapter() | {"train.py": f"{ALPACA}tok.apply_chat_template(m)\n"} | SERVE,
    adapter()
    | {"train.py": ALPACA, "serve.sh": "vllm serve m --chat-template own.jinja\n", "own.jinja": "### Instruction:"},
    adapter(LLAMA3) | {"train.sh": "swift sft --model org/m --dataset d --template $NAME\n"},
    adapter(LLAMA3) | {"train.sh": "python own.py --model org/m --dataset d --template qwen\n"},
    adapter(CALLS) | {"serve.sh": "vllm serve m --tool-call-parser hermes\n"},
    adapter(CALLS) | {"serve.sh": "vllm serve m --tool-call-parser llama3_json\n"},
    adapter() | {"serve.sh": "vllm serve m --tool-call-parser mistral\n"},
    adapter(LLAMA3, **BOS) | BEGINS | {"train.py": ENCODED},
    adapter("{{ bos_token }}", **BOS) | {"train.py": ENCODED},
    adapter("{{ bos_token }}", **BOS, add_bos_token=False) | BEGINS | {"train.py": ENCODED},
    adapter("{{ bos_token }}", **BOS) | BEGINS | {"train.py": ENCODED.replace("=9", "=9, add_special_tokens=False")},
    adapter("{{ bos_token }}", **BOS) | BEGINS | {"train.py": ENCODED.replace("tok(text", "tok(other")},
    *(
        adapter("{{ bos_token }}", **BOS) | BEGINS | {"train.py": text}
        for text in (
            f"{TEXT}Trainer()\n",
            f"{TEXT}SFTTrainer(args=SFTConfig(dataset_text_field='other'))\n",
            f"import unsloth\n{TEXT}SFTTrainer()\n",
            f"{TEXT.replace('False)', 'False).removeprefix(tok.bos_token)')}SFTTrainer()\n",
            f"{TEXT.replace('text', 'said')}SFTTrainer()\n",
            f"{FORM}SFTTrainer()\n",
            f"{FORM.replace('False', 'True')}SFTTrainer(formatting_func=form)\n",
        )
    ),
    adapter("{{ bos_token }}", **BOS) | BEGINS | {"train.py": ENCODED.replace("tokenize=False", "tokenize=True")},
    adapter() | {"train.py": f"get_chat_template(t, chat_template='gemma_chatml')\n{ONLY}"},
    adapter(LLAMA3) | {"train.py": ONLY.replace("<|im_start|>assistant", "### Response:")},
    adapter(LLAMA3) | {"train.py": ONLY.replace("'<|im_start|>assistant\\n'", "part")},
    adapter(LLAMA3) | {"train.py": f"({ONLY}", "other.py": "get_chat_template(t)"},
    adapter() | {"sft.yaml": "model_name_or_path: org/m\nchat_template_path: org/Qwen3-0.6B\neos_token: <|im_end|>\n"},
    adapter() | modelfile(),
    adapter(LLAMA3) | modelfile(None, start="llama3.2:3b"),
    adapter() | modelfile(None, start="llama3.2:3b-text"),
    adapter() | modelfile(None, start="codestral"),
    adapter() | modelfile(None, start="someone/llama3.2"),
    adapter() | modelfile(None, start="hf.co/org/m-GGUF"),
    adapter("") | modelfile(None),
    adapter() | merged(),
    adapter(eos="<|endoftext|>") | modelfile(STOP='"<|im_end|>"'),
    adapter(eos="<|endoftext|>") | modelfile(),  # Ollama has the tokens of the GGUF beside it
    adapter() | modelfile(STOP='"<|im_start|>"'),
    adapter(**BOS, add_bos_token=False) | modelfile("<s>" + GO),
    adapter(**BOS, add_bos_token=True) | modelfile(),
    {"train.yaml": RECIPE, "export.yaml": EXPORT + "template: qwen\n"},
    {"train.yaml": RECIPE, "export.yaml": EXPORT.replace("m-8b", "other") + "template: llama3\n"},
    {"train.yaml": RECIPE, "other.yaml": RECIPE.replace("qwen", "llama3")} | modelfile(),
    {"train.yaml": RECIPE} | merged() | modelfile(),
    {"train.yaml": RECIPE + "default_system: You are a clerk.\n"} | modelfile(SYSTEM="You are a clerk."),
    adapter() | {"serve.sh": "llama-server -m m.gguf --chat-template chatml\n"},
    adapter() | {"serve.sh": "vllm serve m --enable-lora\n"},
]


@every(("rule", "files", "message"), FAULTY)
def test_what_differs_between_two_files_is_said_with_both(
    rule: str, files: Files, message: str, tmp_path: Path
) -> None:
    assert said(tmp_path / "run", files) == {rule: message}


ENDLESS: Final = adapter(eos="<|endoftext|>") | {"tokenizer.json": IDS, "generation_config.json": {"eos_token_id": 0}}


@every(
    ("files", "severity"),
    [
        (ENDLESS, "info"),  # that chats were trained is shown by the tokenizer alone
        (ENDLESS | {"train.yaml": RECIPE}, "warning"),
        (adapter() | {"tokenizer.json": IDS, "generation_config.json": {"eos_token_id": 0}}, "warning"),
        (modelfile("{{ .Prompt }}<|im_end|>", SYSTEM="Be kind."), "warning"),
        ({"train.yaml": RECIPE + "default_system: Be kind.\n"} | modelfile(SYSTEM="Be brief."), "info"),
        ({"train.yaml": MUTE} | merged(QWEN3), "info"),
        ({"train.yaml": MUTE, "serve.sh": "vllm serve m\n"} | merged(QWEN3), "warning"),
        (LONG | {"serve.sh": "vllm serve m --max-model-len 2047\n"}, "info"),
        (LONG | modelfile(**{"PARAMETER num_ctx": "2047"}), "warning"),
        (LONG | {"serve.sh": "llama-server -m m.gguf --ctx-size 4094 --parallel 2\n"}, "warning"),
    ],
)
def test_how_grave_it_is_depends_on_what_shows_it(files: Files, severity: str, tmp_path: Path) -> None:
    links = prompt_links([written(tmp_path / "run", files)])
    assert [finding.severity for finding in judge(PROMPT_RULES, links).findings] == [severity]


@every(("files",), [(files,) for files in SOUND])
def test_files_that_agree_are_not_spoken_of(files: Files, tmp_path: Path) -> None:
    assert said(tmp_path / "run", files) == {}


def test_the_tokenizer_of_an_adapter_whose_weights_are_gone_is_not_that_of_serving(tmp_path: Path) -> None:
    gone = {"adapter_config.json": {}, "tokenizer_config.json": {"eos_token": "</s>"}}
    folders = [written(tmp_path / "run" / "checkpoint-5", adapter()), written(tmp_path / "run", gone)]
    assert judge(PROMPT_RULES, prompt_links(folders)).findings == []


def test_the_run_that_lies_beside_its_modelfile_is_told_the_same_by_every_verb_on_weights(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", lora("q_proj"))
    files = {name: text for name, text in adapter().items() if name.startswith("tokenizer")} | modelfile(None)
    message = said(run, files)["PRM501"]
    for verb in (audit_adapter, diagnose):
        told = {finding.id: finding.message for finding in verb(run).findings if finding.id in OF_PROMPT}
        assert told == {"PRM501": message}
        assert not OF_PROMPT & {finding.id for finding in verb(run, ignore=["PRM5"]).findings}
    (run / "Modelfile").unlink()
    assert not OF_PROMPT & {finding.id for finding in diagnose(run).findings}


def why(*links: PromptLink) -> dict[str, str]:
    return {item.id: item.reason for item in judge(PROMPT_RULES, links).not_run}


def test_a_check_says_the_same_of_the_prompt_with_the_data_and_without(tmp_path: Path) -> None:
    written(tmp_path, {"train.yaml": RECIPE.replace("qwen", "llama3"), **adapter()})
    rows = [
        {"messages": [{"role": "user", "content": f"a{i}"}, {"role": "assistant", "content": f"b{i}"}]} for i in (1, 2)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    told = [
        {one.message for one in report.findings if one.id == "PRM502"}
        for report in (check_config(tmp_path / "train.yaml"), check_data(data, document=tmp_path / "train.yaml"))
    ]
    assert told[0] == told[1]
    assert len(told[0]) == 1
    left_out = check_data(data, document=tmp_path / "train.yaml", ignore=["PRM502"])
    assert [one.reason for one in left_out.not_run if one.id == "PRM502"] == ["ignored on request"]


@every(
    ("systems", "told"),
    [
        (
            ("Be brief.", "Be brief."),
            "the system prompt is 'Be brief.' in the first 2 rows of rows.jsonl, and 'Be Mario.' in Modelfile",
        ),
        (("Be brief.", "Be kind."), None),
        (("Be Mario.", "Be Mario."), None),
        (("Be brief.",), None),
        (("", ""), None),
    ],
)
def test_rows_and_the_options_of_a_server_are_links_too(
    systems: tuple[str, ...], told: str | None, tmp_path: Path
) -> None:
    written(tmp_path, {"train.yaml": RECIPE, **adapter(CALLS), **modelfile(SYSTEM="Be Mario.")})
    rows = [
        [{"role": "system", "content": text}] * bool(text)
        + [{"role": "user", "content": f"a{i}"}, {"role": "assistant", "content": f"b{i}"}]
        for i, text in enumerate(systems)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(f"{json.dumps({'messages': turns})}\n" for turns in rows))
    report = check_data(
        data, document=tmp_path / "train.yaml", serve=["sglang@0.5"], server_flags="--tool-call-parser mistral"
    )
    found = {one.id: one.message for one in report.findings if one.id.startswith("PRM")}
    assert found.pop("PRM507").startswith(f"the template of tokenizer_config.json in {tmp_path.name} writes calls")
    assert found == ({} if told is None else {"PRM504": told})


def test_rows_of_plain_text_are_compared_with_the_template_of_chats(tmp_path: Path) -> None:
    written(tmp_path, adapter() | {"adapter_config.json": {"r": 8}, "train.yaml": "learning_rate: 1.0e-4\n"})
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(f'{{"text": "### Instruction:\\n{i}\\n### Response:\\n{i + 5}"}}\n' for i in range(3)))
    told = (
        "trained with a template that begins turns with ### Instruction: (the first 3 rows of rows.jsonl), and --serve "
        "vllm serves chats with a template that begins turns with <|im_start|> (tokenizer_config.json in "
        f"{tmp_path.name}): the model gets other turns than it learnt"
    )
    for serve, expected in (([], []), (["vllm"], [told])):
        report = check_data(data, document=tmp_path / "train.yaml", serve=serve)
        assert [one.message for one in report.findings if one.id == "PRM502"] == expected


def test_what_cannot_be_compared_is_not_judged() -> None:
    bare, served = PromptLink("tokenizer", "tok"), PromptLink("modelfile", "Modelfile", template="", from_file=True)
    no_template = "no file shows the template of training: no recipe that names one, no tokenizer with one"
    assert why(bare, served) == {
        "PRM501": no_template,
        "PRM502": no_template,
        "PRM503": "no tokenizer with an end token lies beside the adapter",
        "PRM504": "no recipe states a system prompt, and no rows have one text of it",
        "PRM505": "no tokenizer states whether it adds a BOS token",
        "PRM506": "no script says behind which tokens answers stand",
        "PRM507": "no command of a server names a parser of calls",
        "PRM508": "no recipe turns thinking off",
        "PRM509": "no recipe states the length of rows",
        "PRM510": "no file applies an adapter whose base is named",
    }
    trained = bare._replace(template=CHATML)
    assert why(trained, trained) | {"PRM501": "no Modelfile", "PRM502": "no other file shows its turns"} == why(
        trained, trained
    )


def test_the_base_is_a_link_and_a_damaged_file_is_none(tmp_path: Path) -> None:
    base = written(tmp_path / "base", {"tokenizer_config.json": {"bos_token": "<s>", "add_bos_token": True}})
    run = written(
        tmp_path / "run", modelfile("<s>" + GO) | {"tokenizer_config.json": "{", "a.yaml": "a: [", "b.sh": "\0"}
    )
    links = prompt_links([run, tmp_path / "nowhere"], base=base)
    assert [link.kind for link in links] == ["modelfile", "base"]
    assert [finding.id for finding in judge(PROMPT_RULES, links).findings] == ["PRM505"]


def test_a_recipe_that_is_asked_for_is_the_only_one_of_training(tmp_path: Path) -> None:
    run = written(tmp_path, {"train.yaml": RECIPE, "other.yaml": RECIPE.replace("qwen", "llama3")})
    links = prompt_links([run], recipes=[run / "other.yaml"])
    assert [(link.kind, link.name) for link in links] == [("recipe", "llama3")]
    assert len(prompt_links([run])) == 2


OF_3B: Final = "org/Llama-3.2-3B-Instruct"
MERGE: Final = "m = AutoModelForCausalLM.from_pretrained('org/m-1B')\nPeftModel.from_pretrained(m, 'o')\n"
LORA: Final = "--enable-lora --lora-modules own=out"


@every(
    ("files", "served", "differs"),
    [
        (modelfile(None, "llama3.2:1b", ADAPTER="./out"), "llama3.2:1b", "size"),
        (modelfile(None, "llama3.2:3b-text-fp16", ADAPTER="./out"), "llama3.2:3b-text-fp16", "tuning"),
        (modelfile(None, "./Llama-3.2-3B.Q4_K_M.gguf", ADAPTER="./out"), "./Llama-3.2-3B.Q4_K_M.gguf", "tuning"),
        ({"serve.sh": f"vllm serve org/Llama-3.2-3B {LORA}\n"}, "org/Llama-3.2-3B", "tuning"),
        ({"serve.sh": f"vllm serve \\\n  org/Llama-3.2-1B \\\n {LORA}\n"}, "org/Llama-3.2-1B", "size"),
        ({"serve.sh": f"python -m vllm.entrypoints.a --model org/Qwen-3B {LORA}\n"}, "org/Qwen-3B", "family"),
        ({"serve.sh": "llama-server -m Llama-3.2-1B-Q8_0.gguf --lora a.gguf\n"}, "Llama-3.2-1B-Q8_0.gguf", "size"),
        ({"export.yaml": f"{EXPORT}template: llama3\n"}, "org/m-8b", "size"),
        ({"merge.py": f"B = 'org/m-1B'\n{MERGE.replace(repr('org/m-1B'), 'B')}"}, "org/m-1B", "size"),
        ({"infer.py": "LLM(model='org/m-1B', enable_lora=True)\n"}, "org/m-1B", "size"),
    ],
)  # fmt: skip
def test_the_model_an_adapter_is_applied_to_is_that_of_training(
    files: Files, served: str, differs: str, tmp_path: Path
) -> None:
    """By its names; without an adapter, or where it is named as it was, nothing is said."""
    links = prompt_links([written(tmp_path / "run", files)], trained_on=OF_3B)
    (finding,) = [one for one in judge(PROMPT_RULES, links).findings if one.id == "PRM510"]
    where = next(iter(files))
    assert finding.message == (
        f"adapter_config.json names {OF_3B} as the base, and {where} applies the adapter to {served}: "
        f"a model of another {differs}"
    )
    assert finding.severity == ("error" if differs == "size" else "warning")
    same = {name: str(text).replace(served, OF_3B) for name, text in files.items()}
    bare = {name: re.sub("ADAPTER|adapter_name|--lora|--enable-lora|PeftModel|enable_lora", "o", str(text))
            for name, text in files.items()}  # fmt: skip
    for name, others in (("same", same), ("bare", bare)):
        links = prompt_links([written(tmp_path / name, others)], trained_on=OF_3B)
        assert "PRM510" not in {one.id for one in judge(PROMPT_RULES, links).findings}, name


@every(
    ("trained", "served", "differs"),
    [
        ("org/Qwen3-8B", "org/Qwen3-8B-Base", "tuning"),
        ("org/Llama-2-7b-hf", "org/Llama-2-7b-chat-hf", "tuning"),
        ("org/Llama-2-7b-hf", "TheBloke/Llama-2-7B-GPTQ", ""),
        ("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", "org/Llama-3.1-8B-Instruct-quantized.w8a8", ""),
        ("org/Llama-3.1-8B", "org/Llama-3-8B", "family"),
        ("org/Llama-3.1-8B", "outputs/merged", ""),
        ("org/Llama-3.1-8B", "./other-8b", ""),
        ("org/Qwen3-30B-A3B", "qwen3:30b-a3b", ""),
        ("org/Qwen3-8B", "llama3.1:8b", "family"),
        ("org/DeepSeek-R1-Distill-Qwen-7B", "deepseek-r1:7b", ""),
        ("org/Llama-3.2-3B", "llama3.2:3b-text", ""),
        ("org/gemma-3-4b-pt", "org/gemma-3-4b-it", "tuning"),
        ("org/SmolLM2-135M", "org/SmolLM2-360M", "size"),
        ("org/Qwen2.5-7B-Instruct-1M", "org/Qwen2.5-7B-Instruct", ""),
    ],
)
def test_two_names_of_one_model_are_told_from_two_models(trained: str, served: str, differs: str) -> None:
    assert other_model(trained, served) == differs


def test_a_script_that_names_two_models_or_trains_applies_none(tmp_path: Path) -> None:
    texts = {"two": MERGE + MERGE.replace("1B", "3B"), "trains": f"{MERGE}Trainer()\n", "bare": MERGE[:58]}
    for name, text in texts.items():
        assert prompt_links([written(tmp_path / name, {"a.py": text})], trained_on=OF_3B) == ()
