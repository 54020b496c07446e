"""Rules on the turns of conversations: roles, prompt formats written as text, the calls of tools."""

from __future__ import annotations

from collections.abc import Iterator

from gradience.errors import few
from gradience.rules import Observation, Threshold, Unknown, cite, premise
from gradience.rules.data.content import DataRule, counted, on_rows, seen_in, share, values
from gradience.schema import Severity
from gradience.schema.reports import DataReport

STRAY = Threshold("stray", 0.01, "share of rows", "proposal: fewer may be text about such tokens")
MOSTLY_INVERTED = Threshold("mostly_inverted", 0.5, "share of rows", "proposal: a mask is built one way for all rows")
ECHOED = Threshold("echoed", 0.05, "share of rows", "proposal: more than answers that quote their question")


@premise("the rows are conversations")
def _spoken(data: DataReport) -> str | None:
    """The need of rules on turns: the rows are conversations with answers."""
    return "the rows have no turns" if data.format in {"text", "tokenised", "classification", "steps"} else None


def _translated(data: DataReport) -> Iterator[Observation]:
    rows = data.seen.translated
    if rows.count and not data.program_stated:
        yield on_rows(
            data,
            rows,
            "name roles, calls or parts as Axolotl, LLaMA-Factory and ms-swift read them, and are read so; SFTTrainer "
            "would hand them to the template as they stand",
        )


def _parts(data: DataReport) -> Iterator[Observation]:
    if data.masked_by != "trl":
        raise Unknown(f"{data.masked_by} joins the text of parts itself")
    if data.parts_joined and data.seen.parts.count:
        yield on_rows(
            data,
            data.seen.parts,
            "hold messages in parts, which the chat template does not take: their text is joined here, and SFTTrainer "
            "stops at them",
        )
    rows = data.seen.value_parts
    if rows.count:
        yield on_rows(data, rows, "hold parts whose text is under `value`: it is read, but chat templates read `text`")


def _unwritten(data: DataReport) -> Iterator[Observation]:
    if not data.template:
        raise Unknown("no chat template is used")
    for role, rows in data.unwritten_roles.items():
        found = f"hold turns of the role {role[:40]!r}, which the chat template leaves out"
        severity: Severity | None = "warning" if role in _OFTEN_DROPPED else None
        yield on_rows(data, rows, found, severity=severity, role=role[:40])


def _no_answer(data: DataReport) -> Iterator[Observation]:
    for rows, says in (
        (data.seen.no_assistant, "have no turn of the assistant"),
        (data.seen.unanswered, "end with a user's turn, which nothing answers"),
    ):
        if rows.count:
            yield on_rows(data, rows, says, severity="error" if rows.count == data.rows_read else None)


def _foreign(data: DataReport) -> Iterator[Observation]:
    rows = data.seen.foreign_tokens
    if not rows.count:
        return
    named = f" ({few(data.foreign)})" if data.foreign else ""
    yield on_rows(
        data,
        rows,
        f"hold, as text, turn tokens or prompt headers{named} that are not this tokenizer's and template's",
        severity="warning" if share(rows, data.rows_read) >= STRAY.value else None,
        tokens=data.foreign[:10],
    )


def _inverted(data: DataReport) -> Iterator[Observation]:
    rows = data.seen.inverted
    if share(rows, data.rows_read) >= MOSTLY_INVERTED.value:
        yield on_rows(data, rows, "have their beginning in the loss and their end outside of it")
    elif rows.count:
        found = "have their beginning in the loss and their end outside of it"
        yield on_rows(data, rows, found, severity="warning")


def _calls(data: DataReport) -> Iterator[Observation]:
    for rows, says in (
        (data.seen.call_unanswered, "hold a call of a tool that its result does not follow"),
        (data.seen.result_uncalled, "hold a result of a tool that no call precedes"),
    ):
        if rows.count:
            yield on_rows(data, rows, says)


def _arguments(data: DataReport) -> Iterator[Observation]:
    if data.seen.arguments_broken.count:
        yield on_rows(data, data.seen.arguments_broken, "hold a call whose arguments are no JSON object")
    text = data.seen.arguments_text
    if text.count and data.encodes_arguments:
        yield on_rows(data, text, "hold arguments as text, which the chat template encodes as JSON once more")


def _other_loss(data: DataReport) -> Iterator[Observation]:
    if not data.recipe_loss or data.loss_from != "the option":
        raise Unknown("no recipe whose loss mode an option replaces")
    if data.loss == "all" and data.recipe_loss in {"assistant", "completion"}:
        yield Observation(
            f"--loss all puts prompts into the loss; the recipe trains on {_LOSSES[data.recipe_loss]} only",
            {"loss": data.loss, "recipe": data.recipe_loss},
        )


_OFTEN_DROPPED = frozenset({"system", "developer", "tool"})  # the conversation goes on without them
_LOSSES = {"assistant": "the assistant's turns", "completion": "completions"}


def _echo(data: DataReport) -> Iterator[Observation]:
    rows = data.seen.echo
    if share(rows, data.rows_read) >= ECHOED.value:
        yield Observation(
            f"in {counted(rows, data.rows_read)} the answer begins with the whole question",
            values(rows, data.rows_read),
        )


_SEEN = (cite("definition", "the turns of a row, in their order"),)
TRL_ROLES = cite("TRL 1.16, maybe_convert_to_chatml", "renames from and value, and leaves roles as they are")


RULES = (
    DataRule(
        id="DAT322",
        severity="info",
        title="names of another program",
        condition="roles, calls or parts are named as other programs do, and no recipe says which program trains",
        observe=_translated,
        needs=(_spoken,),
        confidence=0.9,
        scope="conversations without a recipe",
        rationale="human and gpt, function_call and observation are translated by some trainers only.",
        action="give the recipe (--training), or rename the roles to user, assistant and tool",
        verify="the text of a row after apply_chat_template",
        evidence=(TRL_ROLES,),
    ),
    DataRule(
        id="DAT323",
        severity="info",
        title="messages in parts that the template does not read",
        condition="TRL trains, and a part has its text under value, or the template takes text only",
        observe=_parts,
        needs=(_spoken,),
        confidence=0.8,
        scope="messages in parts; Axolotl reads text, content and value",
        rationale="A template that reads `text` writes nothing of such a part.",
        action="give the text of a message as its content, or each part's as text",
        verify="the text of a row after apply_chat_template",
        evidence=(cite("Axolotl 0.19, chat_template strategy", "takes a part's text, content or value"),),
    ),
    DataRule(
        id="DAT324",
        severity="error",
        title="turns that the template leaves out",
        condition="turns have a role whose text the chat template does not write",
        observe=_unwritten,
        needs=(_spoken,),
        confidence=0.9,
        scope="conversations with a chat template, which is asked with a turn of each role",
        rationale="The model never sees these turns, and trains on what is left.",
        action="rename the role to one of the template's: user, assistant, system, tool",
        verify="the text of a row after apply_chat_template",
        evidence=(TRL_ROLES,),
    ),
    DataRule(
        id="DAT325",
        severity="warning",
        title="conversations without an answer",
        condition="no turn is the assistant's, or the last one is the user's; error if that is so in all rows",
        observe=_no_answer,
        needs=(_spoken,),
        confidence=0.85,
        scope="messages and ShareGPT",
        rationale="There is nothing to answer with: an answer was lost, or stored under the user's role.",
        action="look at these rows: a lost answer, an answer under another role's name",
        verify="the roles of their turns",
        evidence=_SEEN,
    ),
    DataRule(
        id="DAT326",
        severity="warning",
        title="turns out of order",
        condition="two turns of one side follow each other, a system turn is not the first, or the assistant asks and "
        "the user answers",
        observe=seen_in("roles_out_of_order", "have turns out of order"),
        needs=(_spoken,),
        confidence=0.75,
        scope="conversations",
        rationale="Many templates raise on such rows, and the model learns to answer nobody.",
        action="sort or join the turns",
        verify="the roles of their turns",
        evidence=_SEEN,
    ),
    DataRule(
        id="DAT327",
        severity="warning",
        title="empty prompts",
        condition="a prompt, or a user's turn, holds nothing but white space",
        observe=seen_in("empty_prompt", "ask nothing: a prompt or a user's turn is empty"),
        confidence=0.85,
        scope="formats with prompts",
        rationale="The model learns an answer to nothing.",
        action="remove these rows, or look where their prompt was lost",
        verify="their text (--show-rows)",
        evidence=(cite("definition", "the prompt without white space is empty"),),
    ),
    DataRule(
        id="DAT328",
        severity="warning",
        title="the template is applied twice",
        condition="{stray} of the rows hold, inside a message, control tokens that the chat template writes around it",
        observe=seen_in(
            "template_twice",
            "hold control tokens of the chat template inside a message: it is applied twice",
            at_least=STRAY,
        ),
        needs=(_spoken,),
        confidence=0.9,
        scope="conversations with a chat template",
        rationale="The template adds its tokens again: the model learns a prompt that generation does not have.",
        action="give the messages without control tokens, or the rendered text as `text`",
        verify="the text of a row after apply_chat_template",
        thresholds=(STRAY,),
        evidence=(cite("transformers docs, chat_templating", "a template adds all control tokens that a model needs"),),
    ),
    DataRule(
        id="DAT329",
        severity="info",
        title="turn tokens of another model as text",
        condition="a row holds turn tokens that the tokenizer does not have, or headers of another prompt format in "
        "messages; from {stray} of the rows: warning",
        observe=_foreign,
        confidence=0.85,
        scope="names such as <|im_end|>, [INST], </s> and ### Instruction:",
        rationale="To this model they are pieces of text: it learns to write them, and no single token ends a turn.",
        action="remove them, and let this tokenizer's template write its own",
        verify="tokenizer.tokenize of the token",
        thresholds=(STRAY,),
        evidence=(cite("definition", "control tokens in the text that are not among the tokenizer's added tokens"),),
    ),
    DataRule(
        id="DAT331",
        severity="warning",
        title="answers that go on with the next turn",
        condition="{stray} of the answers hold a line that begins User: or Human:",
        observe=seen_in("next_turn_in_answer", "have an answer that goes on with a user's turn", at_least=STRAY),
        confidence=0.6,
        scope="formats with answers",
        rationale="The model learns to write the user's next question after its answer.",
        action="split these rows into turns",
        verify="their text (--show-rows)",
        thresholds=(STRAY,),
        evidence=_SEEN,
    ),
    DataRule(
        id="DAT354",
        severity="warning",
        title="a speaker's name begins answers",
        condition="in {echoed} of the rows a turn of the assistant begins with Assistant:, AI: or the like, as text",
        observe=seen_in("speaker_label", "have an answer that begins with a speaker's name", at_least=ECHOED),
        confidence=0.7,
        scope="conversations, whose template writes the speaker itself",
        rationale="The model learns to write the name after the template's own.",
        action="remove the names from the answers",
        verify="their text (--show-rows)",
        thresholds=(ECHOED,),
        evidence=(cite("definition", "Assistant, AI, Bot, Chatbot, GPT or ChatGPT before a colon"),),
    ),
    DataRule(
        id="DAT332",
        severity="warning",
        title="answers repeat the question",
        condition="in {echoed} of the rows the answer begins with the whole question",
        observe=_echo,
        confidence=0.75,
        scope="questions of four words and more",
        rationale="The model learns to repeat the prompt; completions of a full text often hold it.",
        action="remove the prompt from the answers",
        verify="their text (--show-rows)",
        thresholds=(ECHOED,),
        evidence=(cite("definition", "the answer begins with the last thing asked, without case and spaces"),),
    ),
    DataRule(
        id="DAT333",
        severity="error",
        title="the mask is inverted",
        condition="in {mostly_inverted} of the rows the loss is on the beginning and not on the last fifth; fewer: "
        "warning",
        observe=_inverted,
        confidence=0.85,
        scope="rows with a mask on tokens",
        rationale="The model learns the prompts, and never an answer.",
        action="exchange what is masked and what is not",
        verify="decode the supervised tokens of a row",
        thresholds=(MOSTLY_INVERTED,),
        evidence=(cite("definition", "the first token is in the loss, the last fifth of the row is not"),),
    ),
    DataRule(
        id="DAT336",
        severity="warning",
        title="calls of tools without results",
        condition="a call is not followed by its result, or a result does not follow a call; a last turn may be a call",
        observe=_calls,
        needs=(_spoken,),
        confidence=0.8,
        scope="messages with tool_calls",
        rationale="The model learns to go on without the result that it asked for.",
        action="add the results as turns of the role tool, or end these rows with the call",
        verify="the roles of their turns",
        evidence=_SEEN,
    ),
    DataRule(
        id="DAT337",
        severity="warning",
        title="arguments of calls as text",
        condition="arguments are no JSON object, or they are text and the template encodes text once more",
        observe=_arguments,
        needs=(_spoken,),
        confidence=0.85,
        scope="messages with tool_calls; the template is asked with a call of its own",
        rationale="The model learns arguments in quotes within quotes, which a parser of calls rejects.",
        action="store arguments as objects",
        verify="the text of a row after apply_chat_template",
        evidence=(cite("transformers docs, chat_templating", "arguments of a call are a dictionary, not a string"),),
    ),
    DataRule(
        id="DAT344",
        severity="warning",
        title="the prompt is in the loss against the recipe",
        condition="--loss all, where the recipe trains on answers only",
        observe=_other_loss,
        confidence=0.9,
        scope="a recipe and --loss",
        rationale="What is checked is then not what the recipe trains.",
        action="leave --loss out, or change the recipe",
        verify="the share of supervised tokens of both",
        evidence=(cite("definition", "the option wins over the recipe"),),
    ),
)
