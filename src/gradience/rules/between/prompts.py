"""Rules between what two files say of the prompt: what was trained, and what is served."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from gradience.configs.families import other_model
from gradience.configs.prompts import calls_in, form_in
from gradience.folder.prompts import LinkKind, PromptLink
from gradience.rules import Observation, Rule, Unknown, cite
from gradience.schema import Severity
from gradience.schema.document import RuleGroup

Links: TypeAlias = Sequence[PromptLink]

_OLLAMA: Final = "https://github.com/ollama/ollama/blob/fb30760996871fa9460115c753afd2c60d4ab0f7"
_NEAREST: Final = cite(f"{_OLLAMA}/template/template.go", "takes a template of its own at a distance under 100 letters")
_MODELFILE: Final = cite(
    f"{_OLLAMA}/docs/modelfile.mdx", "stop ends generation; SYSTEM is the template's system message"
)
_SERVED: Final[tuple[LinkKind, ...]] = ("export", "merged", "modelfile", "server")
_RAW: Final = "{{.Prompt}}"
_SWITCH: Final = re.compile(
    r"enable_thinking\s+is\s+false|not\s+enable_thinking|enable_thinking\s*==\s*false", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class PromptRule(Rule[Links]):
    """A rule on the prompt that several files state."""

    groups: tuple[RuleGroup, ...] = ("between",)


def _of(links: Links, *kinds: LinkKind) -> list[PromptLink]:
    return [link for kind in kinds for link in links if link.kind == kind]


def _trained(links: Links) -> PromptLink:
    """The link that shows the prompt of training: a recipe, rows of text, else the tokenizer that was saved."""
    recipes = [link for link in _of(links, "recipe") if link.form or link.name or link.template]
    if len({link.form for link in recipes}) > 1:
        raise Unknown(f"{len(recipes)} recipes of training lie there, with different templates: give the one")
    for link in (*recipes, *_of(links, "rows", "tokenizer")):
        if link.form is not None:
            return link
    if recipes:
        raise Unknown(f"which turns the template of {recipes[0].where} writes is not known")
    raise Unknown("no file shows the template of training: no recipe that names one, no tokenizer with one")


def _is_raw(link: PromptLink) -> bool:
    """Whether a Modelfile leaves the prompt as it is."""
    return link.template is not None and "".join(link.template.split()) in {"", _RAW}


@PromptRule("PRM501", severity="warning", confidence=0.75, evidence=(_NEAREST,))
def _no_template(links: Links) -> Iterator[Observation]:
    """a Modelfile without the template of training

    training used a chat template, and the Modelfile is made of a file and has no TEMPLATE, or one of the bare prompt

    Why: Ollama does not run the tokenizer's template: it takes one of its own that is nearly equal to the GGUF's, or
        sends the prompt raw. The adapter then gets a prompt it never saw.
    Scope: Modelfiles whose FROM is a file or folder; a model of Ollama's library brings its own template
    Action: write TEMPLATE with the turns of training, and PARAMETER stop with the token that ends them
    Verify: ollama show --modelfile NAME
    Seen: https://github.com/hiyouga/LlamaFactory/issues/6020 -- the exported model talks nonsense in Ollama only
    """
    files = _of(links, "modelfile")
    if not files:
        raise Unknown("no Modelfile")
    trained = _trained(links)
    for link in files:
        if link.from_file and _is_raw(link):
            lacks = "no TEMPLATE" if not link.template else "a TEMPLATE of the bare prompt"
            yield Observation(
                f"{trained.says} is the template of training, and {link.where} has {lacks}: Ollama takes one of its "
                "own that resembles the GGUF's, or sends raw text",
                {"trained": trained.where, "served": link.where},
            )


@PromptRule("PRM502", severity="warning", confidence=0.85)
def _other_form(links: Links) -> Iterator[Observation]:
    """trained with one template, served with another

    a file that serves or exports the model names another template than training had, or begins turns otherwise; or
    chat_template.jinja does, beside the chat_template of tokenizer_config.json

    Why: The adapter learnt to answer after the turns of one template: after others it answers like the base, or never
        stops.
    Scope: recipes and commands of LLaMA-Factory, ms-swift, Axolotl and TRL, scripts for Unsloth, that set chat_template
        or write Alpaca's ### text, rows of text, tokenizers, Modelfiles and --chat-template, as far as they show which
        turns they write; plain text is compared with a tokenizer's template only where a server's command is at hand,
        which applies it to chats
    Action: serve with the template of training
    Verify: the text that the server makes of one message, beside a row of training
    Seen: https://github.com/hiyouga/LlamaFactory/issues/6020 -- the exported model talks nonsense in Ollama only
    Source: transformers/tokenization_utils_base.py:PreTrainedTokenizerBase._from_pretrained@5.24.0 -- a file of the
        template goes before the field of tokenizer_config.json
    """
    for link in links:
        other = link._replace(template=link.hidden, template_in="")
        if link.form is not None and other.form not in {None, link.form}:
            yield Observation(
                f"{link.says} lies beside {other.says}: transformers takes the former, and what reads only "
                "tokenizer_config.json the latter",
                {"taken": link.template_in, "passed_over": link.where},
            )
    trained = _trained(links)
    # A recipe's template need not be the saved tokenizer's, which a server applies
    beside = _of(links, "tokenizer") if trained.kind in {"recipe", "rows"} else []
    chats = ""
    if beside and not trained.name and trained.form is not None and not trained.form.begins.startswith(("<", "[")):
        chats = next((link.where for link in _of(links, "server") if link.program == "server" and not link.form), "")
        beside = beside if chats else []
    compared = 0
    for link in (*_of(links, *_SERVED), *beside):
        if link.model and trained.model and link.model != trained.model:
            continue  # a recipe for another model
        form = link.form
        is_renamed = bool(link.program and link.program == trained.program and link.name != trained.name)
        if form is None and not is_renamed:
            continue
        compared += 1
        if is_renamed or form != trained.form:
            yield Observation(
                f"trained with {trained.says}, and {_verb(link, chats)} {link.says}: the model gets other turns than "
                "it learnt",
                {"trained": trained.where, "served": link.where},
            )
    if not compared:
        raise Unknown("no other file shows its turns")


def _verb(link: PromptLink, chats: str) -> str:
    tokenizer = f"{chats} serves chats with" if chats else "the tokenizer has"
    return {"export": "exported with", "tokenizer": tokenizer, "merged": "the merged model has"}.get(
        link.kind, "served with"
    )


@PromptRule("PRM503", severity="warning", confidence=0.8, evidence=(_MODELFILE,))
def _other_end(links: Links) -> Iterator[Observation]:
    """the end token of training is not that of serving

    the merged or exported tokenizer has another eos_token than the one saved beside the adapter, or the latter than
    TRL was told; or generation_config.json names neither it nor what ends the turns of training (info, if only the
    tokenizer shows these); or a Modelfile whose TEMPLATE writes the turns of training has PARAMETER stop, and not for
    the token that ends them, which is not the eos_token

    Why: Generation ends at the served end token: another one is never written, and the answer runs on.
    Scope: a tokenizer beside the adapter, or a recipe that states eos_token; the base's generation_config.json where no
        merged model has one
    Action: take the tokenizer that was saved with the adapter; add PARAMETER stop
    Verify: an answer ends before the limit of tokens
    Seen: https://github.com/hiyouga/LlamaFactory/issues/7454 -- chats on a base model: vLLM does not stop
    Source: trl/trainer/sft_trainer.py:SFTTrainer.__init__@1.16.0 -- gives the tokenizer the eos_token of its config
    Source: transformers/generation/utils.py:GenerationMixin._prepare_special_tokens@5.24.0 -- ends at the eos_token_id
        of the generation config
    """
    stated = [link for link in _of(links, "recipe", "tokenizer") if link.eos]
    if not stated:
        raise Unknown("no tokenizer with an end token lies beside the adapter")
    trained = stated[0]
    beside = stated[1:] if trained.kind == "recipe" else []  # two tokenizers beside adapters are of two of them
    for link in (*_of(links, "merged"), *beside):
        if link.eos and link.eos != trained.eos:
            yield Observation(
                f"the end token is {trained.eos} in {trained.where}, and {link.eos} in {link.where}",
                {"trained": trained.eos, "served": link.eos},
            )
    try:
        shown = _trained(links)
    except Unknown:
        shown = trained
    turns = shown.form.ends if shown.form is not None else ""
    served = [link for link in _of(links, "merged") if link.ends]
    for link in served or [link for link in _of(links, "tokenizer", "base") if link.ends]:
        if turns in link.ends or (not turns and trained.eos in link.ends):
            continue
        severity: Severity | None = None
        if trained.eos not in link.ends:
            end = trained.eos
            says = f"the end token is {end} in {trained.where}"
        else:
            end, severity = turns, "info" if shown.kind == "tokenizer" and not served else None
            says = f"turns end with {end} in {shown.template_in or shown.where}"
        yield Observation(
            f"{says}, and the generation config beside {link.where} ends at {', '.join(link.ends)}: generate() of "
            f"transformers goes on after {end}",
            {"trained": end, "served": list(link.ends)},
            severity=severity,
        )
    for link in _of(links, "modelfile"):
        form = link.form
        ends = form.ends if form is not None else ""
        if ends and form == trained.form and trained.eos != ends and link.stops and ends not in link.stops:
            yield Observation(
                f"{link.where} writes turns that end with {ends}, and stops at {', '.join(link.stops)} only; the "
                f"end token of {trained.where} is {trained.eos}",
                {"token": ends, "stops": list(link.stops)},
            )


@PromptRule("PRM504", severity="info", confidence=0.7, evidence=(_MODELFILE,))
def _other_system(links: Links) -> Iterator[Observation]:
    """another system prompt than in training

    the training recipe states a system prompt, and what serves or exports the model states another or none; or all rows
    begin with one system text, and a Modelfile states another; a warning if a Modelfile has SYSTEM, and a TEMPLATE that
    writes neither .System nor .Messages

    Why: The adapter's behaviour is learnt beside the system text that all its rows had.
    Scope: default_system (LLaMA-Factory), system (ms-swift), default_system_message (Axolotl), the first rows of
        --data, SYSTEM (Modelfile); rows may have one of their own
    Action: state the same system prompt
    Verify: answers with and without it
    Seen: https://github.com/ollama/ollama/issues/3848 -- a SYSTEM that the template does not write
    """
    for link in _of(links, "modelfile"):
        if link.system and link.template and not any(name in link.template for name in (".System", ".Messages")):
            yield Observation(
                f"{link.where} has SYSTEM {link.system[:60]!r}, which its TEMPLATE writes nowhere: neither .System nor "
                ".Messages",
                {"served": link.where},
                severity="warning",
            )
    trained = next((link for link in _of(links, "recipe", "rows") if link.system), None)
    if trained is None:
        raise Unknown("no recipe states a system prompt, and no rows have one text of it")
    for link in _of(links, "export", "modelfile", "server"):
        is_told = link.kind != "server" or link.program not in {"server", "Unsloth"}
        # Beside rows, a client may send what a file does not state
        if link.system != trained.system and (link.system if trained.kind == "rows" else is_told):
            what = "none" if not link.system else f"{link.system[:60]!r}"
            yield Observation(
                f"the system prompt is {str(trained.system)[:60]!r} in {trained.where}, and {what} in {link.where}",
                {"trained": trained.where, "served": link.where},
            )


@PromptRule("PRM505", severity="warning", confidence=0.75)
def _bos_twice(links: Links) -> Iterator[Observation]:
    """BOS is written by the template and by the tokenizer

    a Modelfile's TEMPLATE begins with the BOS token, or a script gives the text of a chat template that writes it to
    the tokenizer, without add_special_tokens=False, or to TRL's SFTTrainer; and the tokenizer adds one itself

    Why: Each text then begins with two: a context that one side of training and serving does not have.
    Scope: tokenizers whose add_bos_token or tokenizer.json says so; scripts in which a tokenizer is called on what its
        own apply_chat_template(tokenize=False) returned, or which is the column of text or the formatting_func of TRL
    Action: leave the BOS token out of TEMPLATE; add_special_tokens=False in the script
    Verify: llama.cpp warns that the prompt begins with 2 BOS tokens; the first two input_ids of a row
    Seen: https://github.com/unslothai/unsloth/pull/10312 -- rendered prompts carry two BOS tokens
    Seen: https://github.com/MakazhanAlpamys/Soup/pull/788 -- TRL gives a column of text to the tokenizer
    """
    known = [link for link in _of(links, "tokenizer", "merged", "base") if link.bos and link.adds_bos is not None]
    if not known:
        raise Unknown("no tokenizer states whether it adds a BOS token")
    own = known[0]
    bos, adds = own.bos or "", f"{own.where} adds it ({own.adds_bos})"
    for link in links if own.adds_bos else ():
        if link.kind == "modelfile" and (link.template or "").lstrip().startswith(bos):
            yield Observation(f"the TEMPLATE of {link.where} begins with {bos}, and {adds}", {"token": bos})
        if link.encodes and any(word in (own.template or "") for word in (bos, "bos_token")):
            yield Observation(
                f"{link.where} calls {link.encodes} on what the chat template wrote, {bos} first, and {adds}",
                {"token": bos, "call": link.encodes},
            )


@PromptRule("PRM506", severity="error", confidence=0.85)
def _other_answers(links: Links) -> Iterator[Observation]:
    """answers are looked for in another form than they have

    a script tells Unsloth's train_on_responses_only to look for answers behind the tokens of one form, and the template
    that it names, or that of the tokenizer beside the adapter, writes another

    Why: No answer is found: every label is -100, and the loss is 0.
    Scope: response_part in plain words, of a form whose turns begin with tokens of its own
    Action: take response_part from the text that apply_chat_template makes of a row
    Verify: decode the labels of a row that are not -100
    Seen: https://github.com/unslothai/unsloth/issues/1128 -- rows in ChatML, parts of Llama 3: all labels are -100
    """
    scripts = [link for link in _of(links, "recipe") if form_in(link.answers) is not None]
    if not scripts:
        raise Unknown("no script says behind which tokens answers stand")
    for link in scripts:
        written = next((one for one in (link, *_of(links, "tokenizer")) if one.form is not None), None)
        if written is not None and written.form != form_in(link.answers):
            yield Observation(
                f"{link.where} looks for answers behind {link.answers.strip()!r}, and they are written with "
                f"{written.says}: every label is -100",
                {"response_part": link.answers, "written": written.where},
            )


@PromptRule("PRM507", severity="warning", confidence=0.85)
def _other_calls(links: Links) -> Iterator[Observation]:
    """calls of tools in a form that the server's parser does not look for

    the template that is served writes calls behind one mark, and --tool-call-parser looks for another

    Why: No call is found: it stays in the answer as text, and tool_calls is empty.
    Scope: parsers of vLLM and SGLang that look for one mark, in commands beside the run or --server-flags
    Action: take the parser of the form that the template writes
    Verify: an answer that calls a tool has tool_calls
    Seen: https://github.com/vllm-project/vllm/issues/17161 -- the call stayed in content, until the parser was hermes
    """
    servers = [link for link in _of(links, "server") if link.parser]
    if not servers:
        raise Unknown("no command of a server names a parser of calls")
    for link in servers:
        written = next((one for one in (link, *_of(links, "merged", "tokenizer", "base")) if one.template), None)
        marks = written and calls_in(written.template or "", link.parser)
        if written and marks and not link.name:
            yield Observation(
                f"the template of {written.template_in or written.where} writes calls of tools behind {marks[0]}, and "
                f"the parser {link.parser} ({link.where}) looks for {marks[1]}: no call is found",
                {"written": marks[0], "sought": marks[1], "parser": link.parser},
            )


@PromptRule("PRM508", severity="warning", confidence=0.7)
def _other_thoughts(links: Links) -> Iterator[Observation]:
    """trained without thoughts, served with them

    a recipe sets enable_thinking to false, and a server's command does not, while the template that is served leaves
    thoughts out only where it is told to; info of a merged model without such a command

    Why: The adapter learnt to answer after an empty block of thought; without it the model begins to think.
    Scope: recipes of LLaMA-Factory and ms-swift; vLLM, SGLang, llama-server, MLX-LM and LLaMA-Factory's own server
    Action: --default-chat-template-kwargs '{"enable_thinking": false}' (vLLM), --chat-template-kwargs (llama-server),
        or chat_template_kwargs in each request
    Verify: the answer to one message begins without <think>
    Seen: https://github.com/hiyouga/LlamaFactory/issues/9765 -- the merged model thinks, the recipe's server did not
    """
    trained = next((link for link in _of(links, "recipe") if link.thinks is False), None)
    if trained is None:
        raise Unknown("no recipe turns thinking off")
    switched = next(
        (one for one in _of(links, "merged", "tokenizer", "base") if _SWITCH.search(one.template or "")), None
    )
    for link in _of(links, "server") or ([switched] if switched is not None and switched.kind == "merged" else []):
        own = link.program == trained.program or (switched if link.template is None else _SWITCH.search(link.template))
        if own and not link.name.endswith("nothink") and link.thinks is not False:
            yield Observation(
                f"{trained.where} sets enable_thinking to false, and {link.where} does not: unless each request does, "
                "the template lets the model think",
                {"trained": trained.where, "served": link.where},
                severity="info" if link.kind == "merged" else None,
            )


@PromptRule("PRM509", severity="info", confidence=0.8, evidence=(_MODELFILE,))
def _less_room(links: Links) -> Iterator[Observation]:
    """less context than the rows of training had

    a server's command or a Modelfile has a context that is shorter than the longest row that training takes; a warning
    of a Modelfile, and of a context that slots divide

    Why: vLLM refuses a longer prompt, and Ollama cuts its beginning off in silence.
    Scope: cutoff_len, max_length, sequence_len and max_seq_length of recipes; --max-model-len, --context-length,
        --ctx-size, num_ctx; --parallel of llama-server without --kv-unified
    Action: give the context that training had, if rows were so long (check --data counts them)
    Verify: the server's log of a prompt as long as the longest row
    Seen: https://github.com/ollama/ollama/issues/6648 -- bad answers to long prompts, until num_ctx was raised
    Seen: https://github.com/ggml-org/llama.cpp/issues/11681 -- the context is divided by the number of slots
    """
    trained = max(
        (link for link in _of(links, "recipe") if link.longest), key=lambda link: link.longest or 0, default=None
    )
    served = [link for link in links if link.room]
    if trained is None or trained.longest is None or not served:
        raise Unknown("no recipe states the length of rows" if trained is None else "no file states the context served")
    for link in served:
        room = (link.room or trained.longest) // max(link.slots, 1)
        if link.room and room < trained.longest:
            slots = f" ({link.room:,} in {link.slots} slots)" if link.slots > 1 else ""
            yield Observation(
                f"{trained.where} takes rows of up to {trained.longest:,} tokens, and {link.where} serves "
                f"{room:,}{slots}, the answer included",
                {"trained": trained.longest, "served": room},
                severity="warning" if link.kind == "modelfile" or link.slots > 1 else None,
            )


@PromptRule("PRM510", severity="warning", confidence=0.8)
def _other_base(links: Links) -> Iterator[Observation]:
    """an adapter is applied to another model than it was trained on

    by their names, the model that a command, script, recipe or Modelfile applies the adapter to differs from that of
    adapter_config.json in size, tuning (instruct or base) or family; an error of another size

    Why: The update was learnt on other weights: shapes differ, or the sum is of no model.
    Scope: names that state a size or a tuning; quantised forms are one model; --lora-modules and the like, ADAPTER,
        adapter_name_or_path, PeftModel.from_pretrained
    Action: apply the adapter to the model that adapter_config.json names
    Verify: gradience verify, of a merged model; the loss on rows of training
    Seen: https://github.com/vllm-project/vllm/issues/12106 -- the adapter of a 7B model is served with one of 72B
    Seen: https://github.com/ollama/ollama/pull/3333 -- an adapter of another base: behaviour is undefined
    """
    own = next(iter(_of(links, "adapter")), None)
    if own is None:
        raise Unknown("no file applies an adapter whose base is named")
    for link in links:
        differs = other_model(own.base, link.base) if link.base and link is not own else ""
        if differs:
            yield Observation(
                f"{own.where} names {own.base} as the base, and {link.where} applies the adapter to {link.base}: "
                f"a model of another {differs}",
                {"trained": own.base, "served": link.base},
                severity="error" if differs == "size" else None,
            )


PROMPT_RULES: Final[tuple[Rule[Links], ...]] = (
    _no_template,
    _other_form,
    _other_end,
    _other_system,
    _bos_twice,
    _other_answers,
    _other_calls,
    _other_thoughts,
    _less_room,
    _other_base,
)
