"""Rules on the tokens that the loss is computed on: none, too few, the prompt too, or answers without an end token."""

from __future__ import annotations

from collections.abc import Iterator

from gradience.data.asked import AskedRow, RowTests, row_test
from gradience.rules import ALL_MASKED, Observation, Sign, Unknown
from gradience.rules.data.content import HALF, DataRule, counted, of_tokens, on_rows, share, values
from gradience.schema import Severity
from gradience.schema.reports import DataReport


def unmarked(data: DataReport) -> bool:
    """Whether the loss is assistant-only but the chat template does not mark the answers."""
    conversations = bool(data.template) and data.format != "text"
    return data.masked_by == "trl" and data.loss == "assistant" and conversations and not data.template_marks_answers


@DataRule(
    "DAT302",
    severity="error",
    confidence=0.95,
    needs=(of_tokens,),
    settings=("assistant_only_loss",),
)
def _no_markers(data: DataReport) -> Iterator[Observation]:
    """template without generation markers under an assistant-only loss

    loss on the assistant's turns by TRL, and the chat template has no generation block

    Why: The mask is built from these blocks: without one every token is masked, or TRL 1.16 refuses to start.
    Scope: TRL's assistant_only_loss; a stock template that the installed TRL replaces by its own is not reported
    Action: give a copy (--set template=FILE) with a generation block around the assistant's content and its end token
    Verify: tokenizer.apply_chat_template(..., return_assistant_tokens_mask=True) holds a 1
    Seen: https://github.com/marin-community/marin/issues/7237 -- SFT on assistant turns trains on no token; the
        curve looks fine
    """
    if unmarked(data):
        yield Observation(
            f"the chat template of {data.template} has no {{% generation %}} block, and the loss is assistant-only",
            {"template": data.template, "loss": data.loss, "rows": data.rows_read},
        )


@row_test
def unsupervised(row: AskedRow) -> bool:
    """No token is supervised, before any cut."""
    return any(not (one.ids if one.mask is None else sum(one.mask)) for one in row.in_loss)


@DataRule(
    "DAT301",
    severity="error",
    confidence=0.95,
    groups=("data", "log"),
    needs=(of_tokens,),
    signs=(Sign("all_masked", frozenset({"critical"})),),
    settings=("assistant_only_loss", "completion_only_loss", "train_on_inputs", "train_on_prompt"),
    evidence=(ALL_MASKED,),
)
def _unsupervised(data: DataReport) -> Iterator[Observation]:
    """rows without a supervised token

    a row has no supervised token, even before any cut; critical if that is so in all rows

    Why: The loss of such a row is 0 or undefined; if all are so, the run trains nothing and logs a plausible or
        zero loss.
    Scope: losses on tokens; with the masks that the trainer builds from the template and the columns
    Action: look at these rows: no assistant turn, another role's name, an empty answer; or choose another --loss
    Verify: labels of trainer.train_dataset[i]: all -100
    Seen: https://github.com/huggingface/trl/issues/6668 -- every label is masked, the log says loss 0.0, and
        nothing warns
    """
    if unmarked(data):
        raise Unknown("the template marks no answer (see DAT302)")
    rows = data.rows_with("unsupervised")
    if rows.count:
        severity: Severity | None = "critical" if rows.count == data.rows_read else None
        yield on_rows(data, rows, "have no supervised token", severity=severity, loss=data.loss)


@row_test
def all_supervised(row: AskedRow) -> bool:
    """Every token is supervised."""
    return any(one.ids and (one.mask is None or sum(one.mask) == len(one.ids)) for one in row.in_loss)


@row_test
def mask_unused(row: AskedRow) -> bool:
    """The row holds a completion mask that the trainer does not apply."""
    return 0 in row.columns.get("completion_mask", ()) and all(one.mask is None for one in row.sequences)


@DataRule(
    "DAT304",
    severity="warning",
    confidence=0.85,
    needs=(of_tokens,),
    settings=("completion_only_loss", "assistant_only_loss"),
    thresholds=(HALF,),
)
def _prompt_supervised(data: DataReport) -> Iterator[Observation]:
    """the prompt is supervised despite the setting

    the loss is set on answers only, and every token is supervised in {half} of the rows; or rows hold a
    completion_mask that is not applied

    Why: The model learns to write prompts; the loss looks low for text that repeats.
    Scope: a loss on the assistant's turns or on completions
    Action: correct the labels, or the generation block, so that it covers answers only
    Verify: decode the supervised tokens of a row
    Source: trl/trainer/sft_trainer.py:SFTTrainer._prepare_dataset@1.16.0 -- completion_only_loss needs prompt and
        completion columns
    """
    unused = data.rows_with("mask_unused")
    if unused.count:
        yield on_rows(
            data,
            unused,
            "hold a completion_mask, which SFTTrainer does not apply: every token is supervised",
            action="set completion_only_loss (here: --loss completion), or give labels",
        )
        return
    if data.loss not in {"assistant", "completion"}:
        raise Unknown(f"the loss is set on {data.loss}: prompts are supervised as asked")
    rows = data.rows_with("all_supervised")
    if share(rows, data.rows_read) >= HALF.value:
        yield Observation(
            f"the loss is set on {data.loss}, and in {counted(rows, data.rows_read)} every token is supervised",
            values(rows, data.rows_read, loss=data.loss),
            action="give prompt and completion as columns: SFTTrainer masks no prompt in rows of text or messages"
            if data.format in {"text", "messages", "sharegpt"}
            else None,
        )


@DataRule(
    "DAT307",
    severity="error",
    confidence=0.8,
    groups=("data", "log"),
    needs=(of_tokens,),
    settings=("eos_token",),
    thresholds=(HALF,),
)
def _end(data: DataReport) -> Iterator[Observation]:
    """the end token is not learnt

    an end token is supervised in under {half} of the complete answers; a warning if it is in some of them, or
    if answers end with another control token

    Why: A model that never sees the end token in its loss does not learn to stop.
    Scope: losses on tokens; end tokens are the tokenizer's and those of a generation_config.json beside it
    Action: end each answer with the end token, inside what is supervised
    Verify: generate from the adapter: answers run to max_new_tokens
    Source: trl/chat_template_utils.py:is_chat_template_stop_token_trained@1.16.0 -- a template can leave the end of
        turn out of the mask
    """
    if not data.end_tokens:
        raise Unknown("the tokenizer has no end token")
    if not data.whole_rows:
        raise Unknown("no supervised answer is complete")
    if share(data.rows_with("labels_differ"), data.rows_read) >= HALF.value:
        raise Unknown("the labels are not the tokens (see DAT347)")
    supervised, whole = data.rows_with("end_supervised"), data.whole_rows
    if share(supervised, whole) >= HALF.value:
        return
    if _masked_as_padding(data):
        raise Unknown("the end token is masked with the padding (see DAT308)")
    ends = " or ".join(data.end_tokens)
    counts = {"with_end": supervised.count, "whole": whole, "end_tokens": data.end_tokens, "turn_end": data.turn_end}
    if data.turn_end:
        yield Observation(
            f"answers end with {data.turn_end}, and generation ends at {ends}",
            counts,
            severity="warning",
            action=f"set eos_token to {data.turn_end}, or add it to eos_token_id of generation_config.json",
        )
    elif not supervised.count:
        yield Observation(f"no answer has a supervised end token ({ends})", counts)
    else:
        yield Observation(
            f"an end token ({ends}) is supervised in {counted(supervised, whole, 'whole answers')} only",
            counts,
            severity="warning",
        )


def _masked_as_padding(data: DataReport) -> bool:
    masked = share(data.rows_with("end_masked"), data.whole_rows)
    return data.pad_is_end is True and data.has_labels and masked >= HALF.value


@DataRule(
    "DAT308",
    severity="error",
    confidence=0.8,
    needs=(of_tokens,),
    settings=("pad_token",),
    thresholds=(HALF,),
)
def _pad_is_end(data: DataReport) -> Iterator[Observation]:
    """pad and end token are one, and the end is masked with the padding

    pad is end token, and labels mask the end of {half} of the answers; without labels: warning

    Why: The end token is never learnt, and the model does not stop.
    Scope: rows that are tokenised already; TRL masks padding by position, which leaves the end in the loss
    Action: give the tokenizer a pad token of its own, and build the labels anew
    Verify: labels at the position of the end token: -100
    Source: transformers/data/data_collator.py:DataCollatorForLanguageModeling@5.24.0 -- sets every label of
        pad_token_id to -100
    """
    if data.pad_is_end is None:
        raise Unknown("no tokenizer is given")
    if not data.pad_is_end:
        return
    masked = data.rows_with("end_masked")
    if _masked_as_padding(data):
        yield Observation(
            f"pad and end token are one, and the labels mask the end of {counted(masked, data.whole_rows, 'answers')}",
            values(masked, data.whole_rows),
        )
    elif data.format == "tokenised" and not data.has_labels:
        yield Observation(
            "pad and end token are one, and the rows have no labels: a collator that masks padding masks the end",
            {"has_labels": False},
            severity="warning",
        )


RULES = (_unsupervised, _no_markers, _prompt_supervised, _end, _pad_is_end)

ROW_TESTS: RowTests = (unsupervised, all_supervised, mask_unused)
