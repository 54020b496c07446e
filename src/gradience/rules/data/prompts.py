"""Rules on the prompt that rows are trained with, beside the one that the tokenizer's chat template writes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from gradience.data.asked import AskedRow, RowTests, row_kinds, row_test
from gradience.rules import Observation, Threshold, Unknown, premise
from gradience.rules.data.content import (
    HALF,
    SLIPS,
    SOME,
    DataRule,
    as_tokens,
    counted,
    of_tokens,
    on_rows,
    share,
    values,
)
from gradience.schema.reports import DataReport

ONE_SIDED = Threshold("one_sided", 2, "weighted ratio", "proposal: KTO's paper and TRL's docs ask for 1 to 1.33")
_HEADER: Final = 16  # tokens before an answer among which the control token that begins its turn is looked for
_PLAIN: Final = 3  # tokens of a header without one
_WRITTEN: Final = (
    (re.compile(r"^### Instruction:", re.MULTILINE), re.compile(r"^### Response:", re.MULTILINE)),
    (re.compile(r"^### (?:Human|User):", re.MULTILINE), re.compile(r"^### Assistant:", re.MULTILINE)),
    (re.compile(r"^(?:Human|USER|User):", re.MULTILINE), re.compile(r"\b(?:Assistant|ASSISTANT):")),
)


@row_kinds("several_answers", "last_answer_only")
def _of_answers(row: AskedRow) -> Iterator[str]:
    """What begins the supervised answer begins earlier ones too; of these no token is supervised."""
    if not row.columns.keys() & {"input_ids", "messages"}:
        return  # a prompt with examples in it is no conversation whose answers are all to be learnt
    for one in row.in_loss:
        if one.mask is None or 1 not in one.mask or one.mask[0]:
            continue
        last = len(one.mask) - one.mask[::-1].index(1)
        begun = next(i + 1 for i in range(last - 1, -1, -1) if not i or not one.mask[i - 1]) - 1
        header = _header(one.ids[max(begun - _HEADER, 0) : begun], row.vocabulary.controls)
        size = len(header)
        others = [i + size for i in range(begun - size) if one.ids[i] == header[0] and one.ids[i : i + size] == header]
        if size and others:
            yield "several_answers"
            if 1 not in one.mask[:begun]:
                yield "last_answer_only"
            return


def _header(before: list[int], controls: frozenset[int]) -> list[int]:
    """The tokens that begin the turn of an answer: from the last control token before it on."""
    starts = [i for i, one in enumerate(before) if one in controls]
    return before[starts[-1] :] if starts else before[-_PLAIN:]


@DataRule(
    "DAT361",
    severity="warning",
    confidence=0.7,
    groups=("data", "log"),
    needs=(of_tokens,),
    thresholds=(HALF, SOME),
)
def _last_answer(data: DataReport) -> Iterator[Observation]:
    """only the last answer of a conversation is supervised

    in {half} of the rows with several answers only the last is in the loss, and these are {some} of all rows

    Why: The earlier answers are read and not learnt, though they are as many as the turns.
    Scope: conversations that are tokenised already, or masked by the template; a set that holds a row for each answer
        learns all of them
    Action: supervise each answer, or make a row of each
    Verify: decode the supervised tokens of a row
    Seen: https://github.com/axolotl-ai-cloud/axolotl/issues/1761 -- only the last message of a conversation is trained
    Source: definition -- the tokens before the supervised answer are found again before others, which are masked
    """
    several, rows = data.rows_with("several_answers"), data.rows_with("last_answer_only")
    if share(rows, data.rows_read) >= SOME.value and share(rows, several.count) >= HALF.value:
        yield Observation(
            f"of {counted(rows, data.rows_read)} with several assistant turns only the last turn is in the loss",
            values(rows, data.rows_read, several=several.count),
        )


@row_test
def thought_added(row: AskedRow) -> bool:
    """The template adds a block of thought that the row does not have, and it is in the loss."""
    begins = [*row.vocabulary.think]
    told = any("/no_think" in content for content in row.contents)  # Qwen3 then begins with the block when it is served
    if not begins or not row.answers or told or "<think" in row.text or _thinks(row):
        return False
    return any(
        one.ids[i : i + len(begins)] == begins and (one.mask is None or one.mask[i])
        for one in row.in_loss
        for i, token in enumerate(one.ids)
        if token == begins[0]
    )


def _thinks(row: AskedRow) -> bool:
    return any(turn.get(name) for turn in row.turns for name in ("reasoning_content", "reasoning", "thinking"))


@DataRule("DAT362", severity="warning", confidence=0.75, needs=(of_tokens,), thresholds=(HALF,))
def _thought(data: DataReport) -> Iterator[Observation]:
    """the template adds a block of thought

    in {half} of the rows the chat template writes a <think> block that the row does not have, inside of the loss

    Why: The empty block is learnt: answers then begin with it, also where the prompt does not ask for it.
    Scope: templates that write <think> by themselves, as Qwen3's; rows without thoughts of their own and /no_think
    Action: train with a template without the block, or serve with the same one (enable_thinking=false for Qwen3)
    Verify: the text of a row after apply_chat_template
    Seen: https://github.com/QwenLM/Qwen3/issues/1618 -- after SFT each answer begins with an empty think block
    """
    rows = data.rows_with("thought_added")
    if share(rows, data.rows_read) >= HALF.value:
        yield on_rows(data, rows, "get a <think> block from the chat template that they do not have: it is learnt")


@row_test
def written_prompt(row: AskedRow) -> bool:
    """The text has a prompt in words, and the tokenizer has a chat template, which writes turns by its own tokens."""
    text = row.spoken.get("text")
    if not isinstance(text, str) or not row.vocabulary.own.templated:
        return False
    return any(asks.search(text) and answers.search(text) for asks, answers in _WRITTEN)


@premise("the rows are text")
def _text(data: DataReport) -> str | None:
    return None if data.format == "text" else "the rows are no text: the trainer writes their prompt"


@DataRule("DAT363", severity="info", confidence=0.8, needs=(_text, as_tokens), thresholds=(HALF,))
def _other_prompt(data: DataReport) -> Iterator[Observation]:
    """a prompt that the chat template does not write

    {half} of the rows are text with headers such as ### Instruction: and ### Response:, and the tokenizer has a chat
    template that writes other turns

    Why: A server that is given messages applies the chat template: the adapter then gets a prompt it never saw.
    Scope: rows of text; what the server does is not known here
    Action: serve with the very text of training (/v1/completions), or train on messages
    Verify: generate from both prompts
    Seen: https://github.com/unslothai/unsloth/issues/1832 -- trained on ### Response:, served by the chat template:
        very bad answers
    """
    rows = data.rows_with("written_prompt")
    if share(rows, data.rows_read) >= HALF.value:
        yield on_rows(
            data,
            rows,
            f"write their prompt in words (such as ### Instruction:), and the chat template of {data.tokenizer} is not "
            "used: a server that applies it sends another prompt",
        )


@premise("KTO trains")
def _kto(data: DataReport) -> str | None:
    return None if data.label_weights else "not KTO: no answer is weighted by its label"


@DataRule(
    "DAT364",
    severity="warning",
    confidence=0.8,
    needs=(_kto,),
    thresholds=(ONE_SIDED,),
    settings=("desirable_weight", "undesirable_weight"),
)
def _kto_weights(data: DataReport) -> Iterator[Observation]:
    """KTO's two sides are not in balance

    wanted or unwanted answers outweigh the others {one_sided} times or more, each counted by its weight

    Why: The side with less weight is hardly learnt, and the estimate of KL that both share is of the other.
    Scope: KTO; desirable_weight and undesirable_weight are 1 unless they are stated
    Action: set desirable_weight or undesirable_weight so that both sides weigh the same
    Verify: rewards/chosen and rewards/rejected in the log
    Seen: https://github.com/huggingface/trl/issues/1447 -- 2 000 wanted and 10 000 unwanted answers: rewards of NaN
    Source: trl/trainer/kto_config.py:KTOConfig@1.16.0 -- the weights counter unequal numbers of both kinds
    """
    wanted, unwanted = data.labels.get("True", 0), data.labels.get("False", 0)
    heavy, light = wanted * data.label_weights[0], unwanted * data.label_weights[1]
    if not (wanted and unwanted and heavy > 0 and light > 0):
        raise Unknown("all answers are of one kind")
    ratio = max(heavy / light, light / heavy)
    if ratio >= ONE_SIDED.value:
        name, value = (
            ("undesirable_weight", heavy / unwanted) if heavy > light else ("desirable_weight", light / wanted)
        )
        yield Observation(
            f"{wanted:,} wanted and {unwanted:,} unwanted answers, with weights of {data.label_weights[0]:g} and "
            f"{data.label_weights[1]:g}: one side weighs {ratio:.3g} times the other",
            {"wanted": wanted, "unwanted": unwanted, "ratio": ratio},
            action=f"set {name} to {value:.3g}",
        )


@DataRule(
    "DAT365", severity="warning", confidence=0.75, needs=(as_tokens,), thresholds=(SLIPS,), settings=("max_length",)
)
def _unread_limit(data: DataReport) -> Iterator[Observation]:
    """the limit is stated under a name that TRL no longer reads

    max_seq_length is stated without max_length, and {slips} of the rows are longer than TRL's own 1024 tokens

    Why: max_length stays at 1024, and what is beyond it is cut off in silence.
    Scope: TRL's trainers since max_seq_length was renamed; Axolotl, LLaMA-Factory and MLX-LM have names of their own
    Action: state max_length beside it
    Verify: trainer.args.max_length, and the longest row of a batch
    Seen: https://github.com/unslothai/unsloth/issues/2904 -- max_seq_length 15000, and rows are cut at 1024 tokens
    Source: trl/trainer/sft_config.py:SFTConfig@1.16.0 -- has max_length, of 1024, and no max_seq_length
    """
    rows = data.rows_with("over_default")
    if data.unread_length is not None and share(rows, data.rows_read) >= SLIPS.value:
        yield on_rows(
            data,
            rows,
            f"are longer than 1,024 tokens, at which TRL cuts: max_seq_length {data.unread_length:,} is not read by "
            "its trainers any more, and max_length is not stated",
            max_seq_length=data.unread_length,
        )


RULES = (_last_answer, _thought, _other_prompt, _kto_weights, _unread_limit)

ROW_TESTS: RowTests = (_of_answers, thought_added, written_prompt)
ASKED_LIVE: RowTests = (_of_answers,)
