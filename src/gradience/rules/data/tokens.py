"""Rules on lengths and special tokens: what the length limit cuts, what padding costs, and what the template writes."""

from __future__ import annotations

from collections.abc import Iterator

from gradience.data.asked import AskedRow, RowTests, row_test
from gradience.errors import few
from gradience.rules import Observation, Unknown, cite, premise
from gradience.rules.data.content import (
    HALF,
    SLIPS,
    SOME,
    DataRule,
    as_tokens,
    counted,
    of_tokens,
    on_rows,
    seen_in,
    share,
)
from gradience.schema import Severity
from gradience.schema.reports import DataReport

TRL_CUT = cite(
    "TRL 1.16, SFTTrainer, DPOTrainer, RewardTrainer",
    "SFT and DPO keep the first max_length tokens, and drop a row whose answer is gone; reward drops longer rows",
)

OTHERS_CUT = cite(
    "LLaMA-Factory 0.9, ms-swift 4.6, Axolotl 0.19",
    "LLaMA-Factory cuts each question and answer by their shares; ms-swift and Axolotl leave longer rows out",
)


@premise("there is a length limit")
def _limit(data: DataReport) -> str | None:
    return "no length limit is given" if data.max_length is None else None


@DataRule(
    "DAT305",
    severity="info",
    confidence=0.9,
    groups=("data", "log"),
    needs=(as_tokens, _limit),
    settings=("max_length",),
    thresholds=(SOME, HALF),
    evidence=(TRL_CUT, OTHERS_CUT),
)
def _cut(data: DataReport) -> Iterator[Observation]:
    """rows are cut by the length limit

    a row is longer than the limit; from {some} of the rows: warning; {half}, of a trainer that leaves such
    rows out, or any, of one that ends at such a row: error

    Why: Tokens past the limit are not trained on, and nothing in the log shows it.
    Scope: every trainer with a length limit
    Action: raise max_length so that 95 or 99 % of the rows stay whole, or split long rows
    Verify: the histogram of lengths in this report
    Seen: https://github.com/unslothai/unsloth/issues/2904 -- rows are cut at 1024 tokens
    """
    rows, tokens, lengths = data.rows_with("cut"), data.tokens, data.lengths
    if data.keeps_overflow:
        raise Unknown("packing puts what is beyond the limit into the next sequence: nothing is cut off")
    if not rows.count:
        return
    lost, cut = tokens.total - tokens.kept, data.rows_with("question_cut")
    questions = f", and {counted(cut, data.rows_read)} lose a part of a question" if cut.count else ""
    lose = f"{lost / tokens.total if tokens.total else 0.0:.1%} of the tokens are lost{questions}"
    fates = {"left_out": f", and the trainer leaves them out: {lose}", "refused": ", at which the trainer ends"}
    yield on_rows(
        data,
        rows,
        f"are longer than {data.max_length:,} tokens{fates.get(data.overlong, f': {lose}')}; {lengths.p95:,} tokens "
        f"keep 95 % of the sequences whole, {lengths.p99:,} keep 99 %",
        severity=_of_cut(data),
        max_length=data.max_length,
        tokens_lost=lost,
        p95=lengths.p95,
        p99=lengths.p99,
    )


def _of_cut(data: DataReport) -> Severity | None:
    part = share(data.rows_with("cut"), data.rows_read)
    if data.overlong == "refused" or (data.overlong == "left_out" and part >= HALF.value):
        return "error"
    return "warning" if part >= SOME.value else None


@DataRule(
    "DAT306",
    severity="warning",
    confidence=0.9,
    needs=(as_tokens, _limit),
    settings=("max_length",),
    thresholds=(SOME,),
    evidence=(TRL_CUT,),
)
def _answers_cut(data: DataReport) -> Iterator[Observation]:
    """answers are cut off

    the limit removes supervised tokens of a row; whole answers in {some} of the rows: error

    Why: A cut answer teaches the model to stop mid-sentence without an end token; a lost one teaches nothing.
    Scope: every trainer with a length limit; rows that TRL drops count as lost answers
    Action: raise max_length, or shorten prompts
    Verify: decode the last supervised tokens of these rows
    Seen: https://github.com/huggingface/trl/issues/6668 -- max_length cuts every completion away
    """
    if data.keeps_overflow:
        raise Unknown("packing puts what is beyond the limit into the next sequence: nothing is cut off")
    if data.overlong == "refused":
        raise Unknown("the trainer ends at a row over the limit (see DAT305)")
    if data.overlong == "left_out":
        raise Unknown("rows over the limit are left out whole (see DAT305)")
    rows, gone = data.rows_with("answer_cut"), data.rows_with("answer_lost")
    worst = rows if rows.count >= gone.count else gone
    if not worst.count:
        return
    supervised = data.tokens.supervised + data.tokens.supervised_lost
    lost = data.tokens.supervised_lost / supervised if supervised else 0.0
    tail = f"; {counted(gone, data.rows_read)} lose the whole answer" if gone.count else ""
    yield on_rows(
        data,
        worst,
        f"lose part of their answer at {data.max_length:,} tokens ({lost:.1%} of the supervised tokens){tail}",
        severity="error" if share(gone, data.rows_read) >= SOME.value else None,
        supervised_lost=data.tokens.supervised_lost,
        whole_answers=gone.count,
    )


@DataRule(
    "DAT310",
    severity="warning",
    confidence=0.85,
    needs=(as_tokens,),
)
def _split(data: DataReport) -> Iterator[Observation]:
    """control tokens of the template are not in the tokenizer

    a control token written in the template is several tokens, or unknown, to this tokenizer

    Why: The base has no such token: turns are marked by pieces of text, and no single token ends a turn.
    Scope: names such as <|im_start|> and <start_of_turn>
    Action: use the template of this tokenizer, or add the tokens and train their embedding rows
    Verify: tokenizer.tokenize of the token
    Seen: https://github.com/foundation-model-stack/fms-hf-tuning/issues/470 -- control tokens of the template that
        are not in the vocabulary are split
    Source: definition -- the tokenizer's ids of each control token in the template
    """
    if not data.template:
        raise Unknown("no chat template is used")
    names = data.template_tokens_split
    if names:
        yield Observation(
            f"the chat template writes {few(names)}, which {data.tokenizer} splits into pieces or does not know",
            {"tokens": names},
        )


@DataRule(
    "DAT320",
    severity="info",
    confidence=0.8,
    groups=("data", "log"),
    needs=(of_tokens,),
    settings=("packing", "batch_size"),
    thresholds=(HALF,),
)
def _padding(data: DataReport) -> Iterator[Observation]:
    """batches are mostly padding

    {half} of the tokens of batches in random order are padding

    Why: Padding is computed and thrown away.
    Scope: losses on tokens, at the batch size given
    Action: group by length, or pack
    Verify: compare the tokens per second of both
    Source: definition -- one minus tokens over rows times the longest, batch by batch
    Source: https://docs.nvidia.com/nemo/rl/latest/design-docs/sequence-packing-and-dynamic-batching.html -- 50 to
        70 % of the computation can go to padding
    """
    batch = data.batching
    if data.packing:
        raise Unknown("packing is on: nothing is padded")
    if not data.pads:
        raise Unknown("rows are joined without padding, or sorted by length")
    if not data.batch_stated:
        raise Unknown("no configuration states the batch size (per_device_train_batch_size)")
    if batch.padding_share is None:
        raise Unknown("no batch could be counted")
    if batch.padding_share < HALF.value:
        return
    saved = ""
    if batch.packed_sequences:
        saved = f"; packing makes {batch.packed_sequences:,} full sequences of {data.sequences:,}"
    yield Observation(
        f"{batch.padding_share:.0%} of a batch of {batch.batch_size} is padding{saved}",
        {"padding_share": batch.padding_share, "batch_size": batch.batch_size, "packed": batch.packed_sequences},
    )


@row_test
def double_bos(row: AskedRow) -> bool:
    """The row begins with two BOS tokens."""
    bos = row.vocabulary.bos
    return bos is not None and any(one.ids[:2] == [bos, bos] for one in row.sequences)


@DataRule(
    "DAT309",
    severity="warning",
    confidence=0.85,
    groups=("data", "log"),
    needs=(as_tokens,),
    thresholds=(SLIPS,),
)
def _double_bos(data: DataReport) -> Iterator[Observation]:
    """two BOS tokens

    {slips} of the rows begin with the BOS token twice

    Why: Text that holds the BOS token gets a second one from the tokenizer: a context that generation does not
        have.
    Scope: tokenizers with a BOS token
    Action: leave the BOS token out of the text, or set add_bos_token to false
    Verify: the first two ids of a row
    Seen: https://github.com/unslothai/unsloth/pull/10312 -- rendered prompts carry two BOS tokens in training
    Source: transformers docs, chat_templating -- a rendered template holds its special tokens: tokenise it with
        add_special_tokens=False
    """
    return seen_in(data, data.rows_with("double_bos"), "begin with two BOS tokens", at_least=SLIPS)


RULES = (_cut, _answers_cut, _double_bos, _split, _padding)

ROW_TESTS: RowTests = (double_bos,)
ASKED_LIVE = ROW_TESTS
