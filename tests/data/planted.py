"""Defects planted in rows of every format, and what `check_data` must find in each."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from made import LLAMA3, QWEN, QWEN_PLAIN, rows, saved, tokenizer, words, write

from gradience.schema.events import ConfigSnapshot, TrainingSnapshot
from gradience.schema.reports import CheckReport
from gradience.verbs.check.data import check_data

Rows = list[dict[str, Any]]

PAIRS = ("prompt-completion", "prompt-completion-chat", "instruction")
PREFERENCES = ("preference", "preference-chat", "preference-implicit")
KTO = ("kto", "kto-chat")
SPOKEN = ("messages", "sharegpt", *PAIRS, "text", *PREFERENCES, *KTO, "classification", "segments")
FORMS = (*SPOKEN, "tokenised", "prompt-only", "steps")
ANSWERED = tuple(form for form in SPOKEN if form not in {"text", "classification", "segments"})
TEMPLATED = ("messages", "sharegpt", "prompt-completion-chat", "instruction", "preference-chat", "kto-chat")
COUNT = 60


@dataclass(frozen=True)
class Defect:
    """A defect: the rule that must speak, where it can be, how rows get it, and what is asked of the check."""

    rule: str
    forms: tuple[str, ...]
    plant: Callable[[Rows, str], Rows | str] = lambda some, _: some
    options: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)


def clean(form: str) -> Rows:
    """Rows without a defect."""
    if form != "tokenised":
        return rows(form, COUNT)
    made = tokenizer()
    out = []
    for one in rows("prompt-completion", COUNT):
        before, after = (made(text)["input_ids"] for text in (one["prompt"], one["completion"]))
        ids = [*before, *after, made.eos_token_id]
        out.append({"input_ids": ids, "labels": [*[-100] * len(before), *ids[len(before) :]]})
    return out


def every_answer(row: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """The row with its answers changed."""
    row = copy.deepcopy(row)
    for name in ("completion", "chosen", "rejected", "output", "text"):
        if isinstance(row.get(name), str):
            row[name] = change(row[name])
    for name, role, said in (("conversations", "from", "value"), *((n, "role", "content") for n in _CHAT_COLUMNS)):
        for turn in row.get(name, ()) if isinstance(row.get(name), list) else ():
            if turn.get(role) == "assistant":
                turn[said] = change(turn[said])
    for segment in row.get("segments", ()):
        if segment["label"]:
            segment["text"] = change(segment["text"].removesuffix("<|im_end|>")) + "<|im_end|>"
    return row


_CHAT_COLUMNS = ("messages", "completion", "chosen", "rejected")


def _some(change: Callable[[dict[str, Any]], dict[str, Any]], every: int = 10) -> Callable[[Rows, str], Rows]:
    return lambda some, _: [change(one) if i % every == 0 else one for i, one in enumerate(some)]


def _all(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Rows, str], Rows]:
    return lambda some, _: [change(one) for one in some]


def _broken_line(some: Rows, _: str) -> str:
    lines = [json.dumps(one) for one in some]
    lines[7] = lines[7][: len(lines[7]) // 2]
    return "\n".join(lines) + "\n"


def _wrong_column(some: Rows, form: str) -> Rows:
    name = next(iter(some[0]))
    return [{**one, name: 7} if i == 5 else one for i, one in enumerate(some)]


def _user_only(one: dict[str, Any]) -> dict[str, Any]:
    return {**one, "messages": [turn for turn in one["messages"] if turn["role"] != "assistant"]}


def _masked(one: dict[str, Any]) -> dict[str, Any]:
    return {**one, "labels": [-100] * len(one["labels"])}


def _no_end(one: dict[str, Any]) -> dict[str, Any]:
    return {name: ids[:-1] for name, ids in one.items()}


def _answered_twice(one: dict[str, Any]) -> dict[str, Any]:
    return {"input_ids": one["input_ids"] * 2, "labels": [-100] * len(one["labels"]) + one["labels"]}


def _in_words(one: dict[str, Any]) -> dict[str, Any]:
    return {**one, "text": f"### Instruction:\nGo on.\n\n### Response:\n{one['text']}"}


def _masked_end(one: dict[str, Any]) -> dict[str, Any]:
    return {**one, "labels": [*one["labels"][:-1], -100]}


def _shifted(one: dict[str, Any]) -> dict[str, Any]:
    return {**one, "labels": [*one["labels"][1:], -100]}


def _alien(one: dict[str, Any]) -> dict[str, Any]:
    return {name: [*ids, 10**6] for name, ids in one.items()}


def _padded(one: dict[str, Any]) -> dict[str, Any]:
    pad = tokenizer().pad_token_id
    return {name: [*ids, pad, pad, pad] for name, ids in one.items()}


def _long(one: dict[str, Any]) -> dict[str, Any]:
    return every_answer(one, lambda text: f"{text} {' '.join(['river'] * 1500)}")


def _repeated(some: Rows, _: str) -> Rows:
    return [some[i % 50] for i in range(len(some))]


def _bos(one: dict[str, Any]) -> dict[str, Any]:
    first = "<|begin_of_text|>"
    name = next(key for key in ("prompt", "instruction", "text") if key in one)
    return {**one, name: first + one[name]}


def _label(value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda one: {**one, "label": value}


def _unbalanced(some: Rows, _: str) -> Rows:
    kind = type(some[0]["label"])
    return [{**one, "label": kind(i % 30 == 0)} for i, one in enumerate(some)]


def _turns(
    change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def of(one: dict[str, Any]) -> dict[str, Any]:
        return {**one, "messages": change(copy.deepcopy(one["messages"]))}

    return of


def _named(one: dict[str, Any]) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt"}
    return {"conversations": [{**turn, "from": names[turn["from"]]} for turn in one["conversations"]]}


def _said_by(role: str) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    return lambda turns: [*turns[:-1], {**turns[-1], "role": role}]


def _in_parts(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]


def _asked_with(change: Callable[[str], str]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return _turns(lambda turns: [{**t, "content": change(t["content"])} if t["role"] == "user" else t for t in turns])


def _echoed(one: dict[str, Any]) -> dict[str, Any]:
    turns = one["messages"]
    return {"messages": [*turns[:-1], {**turns[-1], "content": f"{turns[-2]['content']} {turns[-1]['content']}"}]}


def _called(arguments: Any, *after: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    call = {"type": "function", "function": {"name": "look", "arguments": arguments}}
    turn = {"role": "assistant", "content": "", "tool_calls": [call]}
    return _turns(lambda turns: [*turns[:-1], turn, *after, turns[-1]])


def _labels_turned(one: dict[str, Any]) -> dict[str, Any]:
    return {
        **one,
        "labels": [-100 if label != -100 else ids for ids, label in zip(one["input_ids"], one["labels"], strict=True)],
    }


def _equal_sides(one: dict[str, Any]) -> dict[str, Any]:
    return {**one, "rejected": one["chosen"]}


def _long_chosen(one: dict[str, Any]) -> dict[str, Any]:
    longer = " and then some more of it was written here"
    if isinstance(one["chosen"], str):
        return {**one, "chosen": one["chosen"] + longer * 3}
    return {
        **one,
        "chosen": [*one["chosen"][:-1], {**one["chosen"][-1], "content": one["chosen"][-1]["content"] + longer * 3}],
    }


def _against(some: Rows, form: str) -> Rows:
    if form in PREFERENCES:
        return [*some, {**some[0], "chosen": some[0]["rejected"], "rejected": some[0]["chosen"]}]
    other = {"label": not some[0]["label"]} if form in KTO else {"label": (some[0]["label"] + 1) % 3}
    return [*some, {**some[0], **other}]


def _nearly(some: Rows, _: str) -> Rows:
    rng = random.Random(4)  # noqa: S311  # rows, no secret
    long = [every_answer(one, lambda text: f"{text} {words(rng, 40, 50)}") for one in some]
    return [*long, *near(long[:9])]


_DECLINED = ("Es tut mir leid, aber dabei", "Je ne peux pas", "Lo siento, no", "Ich kann dir dabei leider nicht")


def _refusing(one: dict[str, Any]) -> dict[str, Any]:
    return every_answer(one, lambda text: f"{_DECLINED[len(text) % 4]} {text}")


_REWARD = """
def is_right(prompts, completions, ground_truth, *, weight=1.0, trainer_state=None, **kwargs):
    return [weight * (truth in text) for truth, text in zip(ground_truth, completions, strict=True)]
"""
_CONCATENATED = QWEN.replace("{{ message.content }}", "{{ '' + message.content }}")
_ENCODING = QWEN_PLAIN.replace(
    "{% else %}",
    "{% for call in message.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %}{% else %}",
    1,
)
_KNOWN_ROLES = (
    "{% for message in messages %}{% if message.role in ['user', 'assistant', 'system'] %}"
    + QWEN.removeprefix("{% for message in messages %}").replace("{% endfor %}", "{% endif %}{% endfor %}", 1)
)
_PADDED = {"pad_token": "<|im_end|>"}
_BOS_TEMPLATE = LLAMA3.replace("{{ bos_token }}", "{{ bos_token }}{{ bos_token }}")
_UNMARKED_END = QWEN.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
_USER_MARKED = "{% generation %}" + QWEN_PLAIN + "{% endgeneration %}"
_TEXTS = ("prompt-completion", "text", "preference", "kto", "classification")

_OLD_NAME = "learning_rate: 1.0e-4\nmax_seq_length: 4096\n"
_THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEFECTS: dict[str, Defect] = {
    "a broken line": Defect("DAT300", FORMS, _broken_line),
    "a column of another type": Defect("DAT300", FORMS, _wrong_column),
    "no assistant turn in some rows": Defect("DAT301", ("messages",), _some(_user_only), {"loss": "assistant"}),
    "no assistant turn in any row": Defect("DAT301", ("messages",), _all(_user_only), {"loss": "assistant"}),
    "every label masked in some rows": Defect("DAT301", ("tokenised",), _some(_masked)),
    "every label masked": Defect("DAT301", ("tokenised",), _all(_masked)),
    "no generation block": Defect("DAT302", ("messages", "prompt-completion-chat", "instruction"),
        options={"loss": "assistant"}, tokenizer={"template": QWEN_PLAIN}),
    "prompt in the labels": Defect(
        "DAT304", ("tokenised",), _all(lambda one: {**one, "labels": one["input_ids"]}), {"loss": "completion"}
    ),
    "completion loss on rows without prompts": Defect("DAT304", ("messages", "text"), options={"loss": "completion"}),
    "generation block around the prompt": Defect(
        "DAT304", ("messages",), options={"loss": "assistant"}, tokenizer={"template": _USER_MARKED}
    ),
    "rows over the limit": Defect("DAT305", FORMS, options={"max_length": 12}),
    "answers over the limit": Defect("DAT306", (*ANSWERED, "text", "tokenised"), options={"max_length": 12}),
    "end of turn outside of the block": Defect(
        "DAT307", ("messages",), options={"loss": "assistant"}, tokenizer={"template": _UNMARKED_END}
    ),
    "no end token in the labels": Defect("DAT307", ("tokenised",), _all(_no_end)),
    "turns end in a token that is not the end token": Defect("DAT307", TEMPLATED, tokenizer={"eos_token": "<|pad|>"}),
    "pad is end, and masked": Defect("DAT308", ("tokenised",), _all(_masked_end), tokenizer=_PADDED),
    "pad is end, and no labels": Defect(
        "DAT308", ("tokenised",), _all(lambda one: {"input_ids": one["input_ids"]}), tokenizer=_PADDED
    ),
    "BOS in the text": Defect("DAT309", _TEXTS, _all(_bos), tokenizer={"style": "llama3"}),
    "BOS twice in the template": Defect("DAT309", TEMPLATED, tokenizer={"style": "llama3", "template": _BOS_TEMPLATE}),
    "template of another model": Defect("DAT310", TEMPLATED, tokenizer={"template": QWEN.replace("im_start", "turn")}),
    "empty answers": Defect("DAT311", ANSWERED, _some(lambda r: every_answer(r, lambda _: " "))),
    "one answer": Defect("DAT312", ANSWERED, _all(lambda r: every_answer(r, lambda _: " yes"))),
    "duplicates": Defect("DAT313", FORMS, _repeated),
    "overlap": Defect("DAT314", FORMS, options={"eval": "same"}),
    "near overlap": Defect("DAT314", SPOKEN, options={"eval": "near"}),
    "one label for most": Defect("DAT315", ("classification",), _unbalanced),
    "one label for most of KTO": Defect("DAT364", KTO, _unbalanced),
    "the last answer of two": Defect("DAT361", ("tokenised",), _all(_answered_twice)),
    "a template that thinks": Defect("DAT362", ("messages",), tokenizer={"template": _THINKING}),
    "a prompt in words": Defect("DAT363", ("text",), _all(_in_words)),
    "a limit under an old name": Defect(
        "DAT365", ("messages", "text"), _all(_long), {"recipe": _OLD_NAME, "max_length": None}
    ),
    "a label out of range": Defect("DAT316", ("classification",), _some(_label(2)), {"num_labels": 2}),
    "a negative label": Defect("DAT316", ("classification",), _some(_label(-1))),
    "one class": Defect("DAT315", ("classification",), _all(_label(1))),
    "one KTO label": Defect("DAT315", KTO, _all(_label(value=True))),
    "U+FFFD": Defect("DAT318", SPOKEN, _some(lambda r: every_answer(r, lambda text: text + " caf\ufffd"))),
    "mojibake": Defect("DAT318", SPOKEN, _some(lambda r: every_answer(r, lambda text: text + " caf\u00c3\u00a9"))),
    "padding": Defect("DAT320", (*ANSWERED, "text"), _some(_long, 8), {"max_length": 0, "batch_size": 8}),
    "roles of another program": Defect("DAT322", ("sharegpt",), _all(_named)),
    "messages in parts": Defect(
        "DAT323", ("messages",), _all(_turns(_in_parts)), tokenizer={"template": _CONCATENATED}
    ),
    "text of parts under value": Defect("DAT323", ("messages",),
        _all(_turns(lambda turns: [{**t, "content": [{"type": "text", "value": t["content"]}]} for t in turns]))),
    "a role that the template leaves out": Defect(
        "DAT324", ("messages",), _some(_turns(_said_by("ai"))), tokenizer={"template": _KNOWN_ROLES}
    ),
    "calls that the template leaves out": Defect(
        "DAT324", ("messages",), _some(_called({"q": "bread"}, {"role": "tool", "content": "7"}))
    ),
    "no assistant turn under the default loss": Defect("DAT325", ("messages",), _some(_user_only)),
    "an answer under the user's role": Defect("DAT325", ("messages",), _some(_turns(_said_by("user")))),
    "a user's turn twice": Defect("DAT326", ("messages",), _some(_turns(lambda t: [*t[:-1], t[-2], t[-1]]))),
    "a system turn at the end": Defect(
        "DAT326", ("messages",), _some(_turns(lambda t: [*t, {"role": "system", "content": "be kind"}]))
    ),
    "an empty question": Defect("DAT327", ("messages",), _some(_asked_with(lambda _: " "))),
    "a template in the messages": Defect(
        "DAT328", ("messages",), _all(_asked_with(lambda text: f"<|im_start|>user\n{text}<|im_end|>"))
    ),
    "turn tokens of another model": Defect("DAT329", ("messages",), _all(_asked_with(lambda t: f"[INST] {t} [/INST]"))),
    "turn tokens of another model in text": Defect(
        "DAT329", ("text", "prompt-completion"), _some(lambda r: every_answer(r, lambda text: text + "<|eot_id|>"))
    ),
    "headers of another prompt": Defect("DAT329", ("messages",), _all(_asked_with(lambda t: f"### Instruction:\n{t}"))),
    "the question in the answer": Defect("DAT332", ("messages",), _some(_echoed)),
    "labels turned around": Defect("DAT333", ("tokenised",), _all(_labels_turned)),
    "labels turned around in some rows": Defect("DAT333", ("tokenised",), _some(_labels_turned)),
    "refusals of four languages": Defect("DAT334", ("messages", *PAIRS), _all(_refusing)),
    "refusals": Defect("DAT334", ("messages", *PAIRS),
        _some(lambda r: every_answer(r, lambda text: "I'm sorry, but I cannot say " + text), 3)),
    "one sentence in many answers": Defect("DAT334", ("messages", *PAIRS),
        _some(lambda r: every_answer(r, lambda text: text + ". Let me know if this helps you."), 2)),
    "a call without its result": Defect("DAT336", ("messages",), _some(_called({"q": "bread"}))),
    "a result without a call": Defect(
        "DAT336", ("messages",), _some(_turns(lambda t: [*t[:-1], {"role": "tool", "content": "7"}, t[-1]]))
    ),
    "arguments that are no object": Defect(
        "DAT337", ("messages",), _some(_called("{'q': ", {"role": "tool", "content": "7"}))
    ),
    "arguments encoded twice": Defect("DAT337", ("messages",),
        _some(_called('{"q": "bread"}', {"role": "tool", "content": "7"})), tokenizer={"template": _ENCODING}),
    "chosen is rejected": Defect("DAT338", PREFERENCES[:2], _some(_equal_sides)),
    "chosen is longer": Defect("DAT339", PREFERENCES, _all(_long_chosen)),
    "rows that contradict": Defect("DAT340", (*PREFERENCES, *KTO, "classification"), _against),
    "rows that nearly repeat": Defect("DAT313", ANSWERED, _nearly),
    "a question of the evaluation set": Defect("DAT314", ("messages", *PAIRS), options={"eval": "other"}),
    "labels of the next token": Defect("DAT347", ("tokenised",), _all(_shifted)),
    "ids of another tokenizer": Defect("DAT348", ("tokenised",), _some(_alien)),
    "padding in the loss": Defect("DAT349", ("tokenised",), _some(_padded)),
    "missing values": Defect("DAT311", ANSWERED, _some(lambda r: every_answer(r, lambda _: "nan"))),
}  # fmt: skip


def _packed(size: int, *, positions: bool = False) -> Callable[[Rows, str], Rows]:
    """All rows one after another, cut into pieces of a size; with positions that run on through the pieces."""

    def of(some: Rows, _: str) -> Rows:
        columns = {name: [one for row in some for one in row[name]] for name in ("input_ids", "labels")}
        whole = len(columns["input_ids"]) // size
        rows_ = [{name: ids[i * size : (i + 1) * size] for name, ids in columns.items()} for i in range(whole)]
        return [{**row, "position_ids": list(range(size))} for row in rows_] if positions else rows_

    return of


def _joined(some: Rows, _: str) -> Rows:
    """Three rows in each, of any length."""
    return [{name: [one for row in some[i : i + 3] for one in row[name]] for name in some[0]} for i in range(57)]


def _both_arguments(every: int) -> Callable[[Rows, str], Rows]:
    result = {"role": "tool", "content": "7"}
    kinds = _called('{"q": "bread"}', result), _called({"q": "bread"}, result)
    return lambda some, _: [kinds[i % every > 0](one) for i, one in enumerate(some)]


def _beside_prompt(**more: Any) -> Callable[[Rows, str], Rows]:
    return _all(lambda one: {**one, **more})


def _share_of(answer: str, share: float) -> Callable[[Rows, str], Rows]:
    return lambda some, _: [
        every_answer(one, lambda _: answer) if i < share * len(some) else one for i, one in enumerate(some)
    ]


def _pictured(held: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def see(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
        asked = [{"type": "image", **held}, {"type": "text", "text": turns[-2]["content"]}]
        return [*turns[:-2], {**turns[-2], "content": asked}, turns[-1]]

    return _turns(see)


_REFUSES = "That is not something this assistant talks about, whatever the reason for asking."
DEFECTS |= {  # of columns, calls and constant answers
    "packed rows without positions": Defect("DAT355", ("tokenised",), _joined),
    "arguments as text and as objects": Defect("DAT337", ("messages",), _both_arguments(2)),
    "no solution for the reward": Defect(
        "DAT356",
        ("prompt-only",),
        _all(lambda one: {"prompt": one["prompt"], "answer": one["solution"]}),
        {"recipe": "learning_rate: 1.0e-6\nreward_funcs: [accuracy_reward]\n"},
    ),
    "images under another name": Defect("DAT357", ("messages",), _beside_prompt(picture="a.png")),
    "one refusal for a third": Defect("DAT312", ("messages", *PAIRS), _share_of(_REFUSES, 0.34)),
}
UNSEEN: dict[str, Defect] = {  # planted when the rules were finished
    "packed to one length": Defect("DAT355", ("tokenised",), _packed(48)),
    "packed with positions that run on": Defect("DAT355", ("tokenised",), _packed(64, positions=True)),
    "one row's arguments as text": Defect("DAT337", ("messages",), _both_arguments(COUNT)),
    "a reward of one's own and another column": Defect("DAT356", ("prompt-only",), _beside_prompt(target="7"),
        {"recipe": "learning_rate: 1.0e-6\nreward_funcs: own_rewards.is_right\n"}),
    "images in parts of messages alone": Defect("DAT357", ("messages",), _all(_pictured({"image": "a.png"}))),
    "a third answers alike in German": Defect("DAT312", ("messages", *PAIRS), _share_of("Dazu sage ich nichts.", 0.4)),
}  # fmt: skip
DEFECTS |= UNSEEN


def near(some: Rows) -> Rows:
    """Rows whose last word is another."""
    return [every_answer(one, lambda text: text + " indeed") for one in some]


def long_rows(form: str) -> Rows:
    """Rows of enough words that one more leaves them near."""
    rng = random.Random(9)  # noqa: S311  # rows, no secret
    return [every_answer(one, lambda text: f"{text} {words(rng, 40, 50)}") for one in rows(form, COUNT)]


def checked(folder: Path, form: str, defect: Defect | None) -> CheckReport:
    """The report on rows with a defect, or without one."""
    asked = dict(defect.options) if defect is not None else {}
    held_out, classes = asked.pop("eval", None), asked.pop("num_labels", 3)
    batch_size, recipe = asked.pop("batch_size", None), asked.pop("recipe", None)
    some = long_rows(form) if held_out == "near" else clean(form)
    planted = some if defect is None else defect.plant(some, form)
    path = folder / "train.jsonl"
    if isinstance(planted, str):
        path.write_text(planted, encoding="utf-8")
    else:
        write(path, planted)
    if held_out is not None:
        kinds = {"near": near, "other": lambda rows: [every_answer(row, lambda _: "a bridge of bread") for row in rows]}
        asked["eval_data"] = write(folder / "eval.jsonl", kinds.get(held_out, list)(some[:5]))
    if recipe is not None:
        (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
        (folder / "own_rewards.py").write_text(_REWARD, encoding="utf-8")
        asked["training"] = folder / "recipe.yaml"
    settings = ConfigSnapshot(
        num_labels=3 if form == "classification" and classes else None, training=TrainingSnapshot(batch_size=batch_size)
    )
    asked |= {"num_labels": classes} if classes else {}
    made = dict(defect.tokenizer) if defect is not None else {}
    style = made.pop("style", "qwen")
    asked = {"max_length": 1024, **asked, "tokenizer": saved(folder / "tokenizer", style, **made)}
    return check_data(path, **asked, overrides=settings, select=["DAT"])
