"""What rows mean, from files as a user has them: each fault beside a set that is sound and lies next to it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from made import WORDS, write
from tables import every

import gradience
from gradience.data.asked import AskedRow, Vocabulary
from gradience.rules.data.meaning import ROW_TESTS, RULES

Rows = list[dict[str, Any]]
N = 60
KEY = "AKIA" + "ABCDEFGH23456789"
CODED = "data:image/png;base64," + "iVBORw0KGgo" * 20
GERMAN = "der Vogel singt am Morgen, weil der Regen aufgeh\u00f6rt hat und die Kinder wieder spielen"
ENGLISH = "why does the bird sing over the hills in the morning when the rain has stopped and the children play again"
WHO = "You are a careful helper who answers in one sentence and never guesses at anything"


def said(i: int, words: int = 9) -> str:
    """Text of so many words, another in each row."""
    line = WORDS[i % len(WORDS)]
    return " ".join([*(line[(i + k) % len(line)] for k in range(words)), f"n{i}"])


def replied(i: int) -> str:
    return f"Well: {said(2 * i + 1, 7)}"


def chat(ask: Callable[[int], str], answer: Callable[[int], str] = replied) -> Rows:
    roles = (("user", ask), ("assistant", answer))
    return [{"messages": [{"role": role, "content": of(i)} for role, of in roles]} for i in range(N)]


def talk(ask: Callable[[int, int], str]) -> Rows:
    """Conversations of two questions."""
    return [
        {"messages": [turn for k in (0, 1) for turn in (
            {"role": "user", "content": ask(i, k)}, {"role": "assistant", "content": said(3 * i + k, 7)})]}
        for i in range(N)
    ]  # fmt: skip


def classed(size: Callable[[int], int], label: Callable[[int], Any], mark: Callable[[int], str] = lambda _: "") -> Rows:
    return [{"text": f"{said(i, size(i))}{mark(i)}", "label": label(i)} for i in range(N)]


def some(fault: str, every_nth: int) -> Callable[[int], str]:
    return lambda i: f"{replied(i)} {fault}" if i % every_nth == 2 else replied(i)


def asks(other: str) -> Callable[[int], str]:
    return lambda i: f"{other} {said(i, 3)}"


def several(i: int) -> str:
    return ". ".join(said(i + k, 7 + i % 3) for k in range(4))


def third(i: int) -> int:
    return i - i % 3 + (i + 1) % 3


def paired(beside: Callable[[int], dict[str, Any]]) -> Rows:
    return [{"prompt": said(i), "chosen": replied(i), "rejected": f"No {said(i + 1)}", **beside(i)} for i in range(N)]


def who(rejected: Callable[[int], int]) -> Rows:
    """Pairs whose rejected answer names whom another row asks for."""
    return [
        {"prompt": f"Who is name{i:04}?", "chosen": f"So: {replied(i)} name{i:04}",
         "rejected": f"No: {said(i, 4)} name{rejected(i):04}"}
        for i in range(N)
    ]  # fmt: skip


def told(beside: Callable[[int], Any]) -> Rows:
    return [{"instruction": said(i), "input": beside(i), "output": replied(i)} for i in range(N)]


def judged(label: Callable[[int], Any]) -> Rows:
    return [{"prompt": said(i), "completion": replied(i), "label": label(i)} for i in range(N)]


def named(label: Callable[[int], int], rows: int = N) -> Rows:
    return [{"text": said(i, 5 + i % 7), "label": label(i), "label_text": "ab"[i % 2]} for i in range(rows)]


def padded(seen: int) -> Rows:
    """Rows whose last tokens are hidden, of which one row has so many in the loss."""
    return [
        {"input_ids": [9, 8, 7, 7, 7], "attention_mask": [1, 1, 0, 0, 0],
         "labels": [9, 8, *[7] * (seen if i == 8 else 1), *[-100] * (3 - (seen if i == 8 else 1))]}
        for i in range(N)
    ]  # fmt: skip


def calling(name: Callable[[int], str]) -> Rows:
    """Conversations with a call, and a list of tools: as text in every second row."""
    tools: list[Any] = [{"type": "function", "function": {"name": "find"}}, {"name": "get"}]
    return [
        {"messages": [
            {"role": "user", "content": said(i)},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": name(i), "arguments": {}}}]},
            {"role": "tool", "content": "4"}, {"role": "assistant", "content": replied(i)}],
         "tools": json.dumps(tools) if i % 2 else tools}
        for i in range(N)
    ]  # fmt: skip


def ask(text: str) -> Rows:
    return [{"role": "user", "content": text}]


def answered(id_of: Callable[[int], str]) -> Rows:
    """Conversations with a call, whose result names it."""
    return [
        {"messages": [
            {"role": "user", "content": said(i)},
            {"role": "assistant", "content": "", "tool_calls": [
                {"id": f"call{i}", "function": {"name": "find", "arguments": {}}}]},
            {"role": "tool", "content": "4", "tool_call_id": id_of(i)}, {"role": "assistant", "content": replied(i)}]}
        for i in range(N)
    ]  # fmt: skip


def sides(chosen: Callable[[int], str] = replied, rejected: Callable[[int], str] = replied) -> Rows:
    return [
        {"prompt": f"Say {said(i)}", "chosen": f"{chosen(i)}.", "rejected": f"{rejected(i + 1)}!"} for i in range(N)
    ]


def so(i: int) -> str:
    return f"Yes, {said(2 * i + 1, 7)}"


def rated(rating: Callable[[int], float]) -> Rows:
    return [{**row, "rating": rating(i)} for i, row in enumerate(judged(lambda i: i % 2 > 0))]


SWAPPED = (
    "15 of 60 rows (25 %: 1, 2, 3, 4, 5, ...) ask in each answer and in no turn of the user: the sides may be exchanged"
)
JSON = chat(said, lambda i: f'["m{i}"]')
CALL = '<tool_call>\n{"name": "find", "arguments": {"q": "rain"}}\n</tool_call>'
XML = "<tool_call>\n<function=find>rain</function>\n</tool_call>"


@every(
    ("rows", "sound", "rule", "says"),
    [
        (chat(said, some(KEY, 20)), chat(said, some(KEY[:12], 20)), "DAT367",
         "3 of 60 rows (5 %: 3, 23, 43) hold what has the shape of a key or a token"),
        (chat(lambda i: f"Say: {said(i + 1)} {i}", lambda i: said(i + 1) if i < 30 else replied(i)),
         chat(lambda i: f"Say: {said(i + 1)} {i}", lambda i: said(i + 1) if i < 29 else replied(i)), "DAT368",
         "in 30 of 60 rows (50 %: 1, 2, 3, 4, 5, ...) the whole answer stands in the question"),
        (classed(lambda _: 9, lambda i: ("spam", "ham")[i % 2], lambda i: (" spam", " ham")[i % 2]),
         classed(lambda _: 9, lambda i: ("spam", "ham")[i % 2], lambda _: " spam or ham"), "DAT368",
         "in all 60 rows the text names the row's own class and no other"),
        ([{"prompt": said(i), "solution": ("", None, " ", "4")[i % 4]} for i in range(N)],
         [{"prompt": said(i), "solution": (0, "0", 7, "4")[i % 4]} for i in range(N)], "DAT369",
         "45 of 60 rows (75 %: 1, 2, 3, 5, 6, ...) have nothing in solution, with which a reward compares"),
        (chat(some(CODED, 30), said), chat(some(CODED[:90], 30), said), "DAT370",
         "2 of 60 rows (3.3 %: 3, 33) hold a file coded in base64 in the midst of a text"),
        (chat(said, lambda i: CALL[:-20] if i == 8 else CALL), chat(said, lambda i: XML if i == 8 else CALL), "DAT371",
         "1 of 60 rows (1.7 %: 9) hold a <tool_call> that is no JSON"),
        (
            chat(lambda i: said(i) + (" R&amp;D" if i > 57 else " R&D"), some(" He said: &#x27;no&#x27;", 20)),
            chat(lambda i: "In HTML: &lt;" if i % 3 else f"R&D; {i}",
                 lambda i: f"<p>{i}&nbsp;" if i % 2 else f"```\n{i}&gt;\n```"),
            "DAT318",
            "5 of 60 rows (8.3 %: 3, 23, 43, 59, 60) hold characters as HTML escapes them (such as &quot;)",
        ),
        (chat(said, lambda i: f"\n<think>{said(i)} {i}" + ("" if i == 8 else "</think>") + said(i + 1)),
         chat(said, lambda i: f"Write <think> first. {i}" if i == 8 else f"<think>hm</think> {replied(i)}"), "DAT376",
         "1 of 60 rows (1.7 %: 9) have an answer that begins with <think> and never ends the thought"),
        (chat(said, lambda i: f"<think>{said(i)} {i}</think>" + ("" if i == 8 else said(i + 1))),
         chat(said, lambda i: f"<think>{said(i)} {i}</think>{said(i + 1)}"), "DAT376",
         "1 of 60 rows (1.7 %: 9) have an answer with nothing after </think>"),
        (talk(lambda i, k: f"{WHO[8:]}: {said(i + k)}" if i < 3 else said(i + k)),
         talk(lambda i, k: f"{WHO[8:]}: {said(i + k)}" if i < 3 and k else said(i + k)), "DAT372",
         "3 of 60 rows (5 %: 1, 2, 3) repeat one text before every question of the user"),
        (chat(asks(WHO)), chat(asks(WHO[:20])), "DAT372",
         "all 60 rows tell the model who it is in the user's turn, and have no system turn"),
        (classed(lambda i: 5 + i % 7, lambda i: i // 20),
         classed(lambda i: 5 + i % 7, lambda i: i // 20 if i != 59 else 0), "DAT373",
         "the 60 rows are sorted by their 3 classes"),
        (classed(lambda i: 30 if i % 5 < 3 else 5, lambda i: int(i % 5 < 3)),
         classed(lambda i: 30 if i % 5 < 3 and i % 7 else 5, lambda i: int(i % 5 < 3)), "DAT374",
         "in 100% of all pairs with a text of another class, that of class 1 is the longer one"),
        (chat(asks(ENGLISH), lambda i: f"{GERMAN} {i}" if i < 3 else f"{ENGLISH} {i}"),
         chat(asks(f"In German: {ENGLISH}"), lambda i: f"{GERMAN} {i}" if i < 3 else f"{ENGLISH} {i}"), "DAT375",
         "3 of 60 rows (5 %: 1, 2, 3) are answered in another language than the question's, which asks for none"),
        (chat(said, lambda i: f"{replied(i)}\\n\\n- {said(i)}" if i == 8 else replied(i)),
         chat(said, lambda i: (f"{replied(i)}\\nabla", f'"a\\nB" {i}', f"{i}.\\n\n", f"A:\\\\nB {i}")[i % 4]), "DAT318",
         r"1 of 60 rows (1.7 %: 9) write line breaks as the two letters \n, and have no other"),
        (chat(said, some("$\frac{1}{2}$ or $3\times 2$", 30)),
         chat(said, lambda i: f"{replied(i)}\f\n\timesheet\x1b[0m $\\frac{{1}}{{2}}$"), "DAT318",
         r"2 of 60 rows (3.3 %: 3, 33) hold control characters, as an unescaped \frac or a wrong decoding leaves"),
        (chat(lambda i: ("\ufeff" if i == 5 else "") + said(i), some("wo\u200brd", 30)),
         chat(said, some("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \ufeff a\u200b", 3)), "DAT318",
         "3 of 60 rows (5 %: 3, 6, 33) hold a byte order mark, or characters without width in words"),
        (chat(said, lambda i: f"**AI**: {said(i + 1)}" if i < 3 else replied(i)),
         chat(said, lambda i: f"AI: {said(i + 1)}" if i < 2 else f"The AI: {said(i + 1)}"), "DAT377",
         "3 of 60 rows (5 %: 1, 2, 3) have an answer that begins with the name of a role, such as Assistant:"),
        (chat(said, lambda i: replied(i) + ("</answer>\n", "[EOS]")[i % 2] if i < 3 else replied(i)),
         chat(lambda i: f"End <b>: {said(i)}", lambda i: f"{said(i)}</b>" if i % 2 else f"<a x=1>{said(i)}</a>"),
         "DAT377",
         "3 of 60 rows (5 %: 1, 2, 3) have an answer that ends with a tag that nothing opened, or with [EOS]"),
        (chat(lambda i: ("12/3/21, 9:04 PM - Ann: " if i < 3 else "") + said(i)),
         chat(lambda i: f"On 12/3/21, 9:04 Ann said: {said(i)}"), "DAT377",
         "3 of 60 rows (5 %: 1, 2, 3) hold the dates and names of a chat's export, or <Media omitted>"),
        (classed(lambda _: 9, lambda i: ("not spam", "Not_Spam ", "ham")[min(i % 7, 2)]),
         classed(lambda _: 9, lambda i: ("-1.5", "1.5", "ham")[i % 3]), "DAT379",
         "one class is written in 2 ways: 'not spam' (9 rows), 'Not_Spam ' (9 rows)"),
        (chat(said, lambda i: (f"['n{i}']" if i < 2 else f'["n{i}"]') if i < 30 else replied(i)),
         chat(said, lambda i: (f"['n{i}']" if i < 2 else f'["n{i}"]') if i < 29 else replied(i)), "DAT381",
         "2 of 60 answers (3.3 %: 1, 2) are values as Python prints them"),
        (chat(said, lambda i: '{"n": ' + (f"{i}" if i == 4 else f"{i}}}")),
         chat(said, lambda i: f"[Ann] {said(i)}" if i != 4 else f"{{{{name}}}} {said(i)}"), "DAT381",
         "1 of 60 answers (1.7 %: 5) begin as JSON, and are none"),
        (
            chat(lambda i: f"Give Python's list. {i}", lambda i: (f"['n{i}']", f'["n{i}",')[i % 2]) + JSON,
            chat(lambda i: f"Give Python's list. {i}", lambda i: (f"['n{i}']", f'["n{i}",')[i % 2]) + JSON[:59],
            "DAT381",
            (
                "30 of 120 answers (25 %: 1, 3, 5, 7, 9, ...) are values as Python prints them; "
                "30 of 120 answers (25 %: 2, 4, 6, 8, 10, ...) begin as JSON, and are none"
            ),
        ),
        ([*classed(lambda _: 9, lambda i: ("a", "b")[i % 2]), {"text": " Text", "label": "label"}],
         [*classed(lambda _: 9, lambda i: ("a", "b")[i % 2]), {"text": "text", "label": "a"}], "DAT382",
         "1 of 61 rows (1.6 %: 61) hold the names of their columns"),
        (
            chat(lambda i: f"Who is name{i:04}?", lambda i: f"So: {replied(i)} name{third(i):04}"),
            chat(lambda i: f"Who is name{i:04}?", lambda i: f"So: {replied(i)} name{i if i % 9 < 3 else third(i):04}"),
            "DAT378",
            (
                "of 60 words of answers, which few questions and few answers have, 0 stand in the question of their "
                "row: of 40 the answer stands 1 row before its question"
            ),
        ),
        (
            chat(lambda i: f"Who is name{i:04}?", lambda i: f"So: {replied(i)} name{i - (i > 29):04}"),
            chat(lambda i: f"Who is name{i:04}?", lambda i: f"So: {replied(i)} name{i - (i > 30):04}"),
            "DAT378",
            (
                "of 30 words of answers, from row 31 to row 60, which few questions and few answers have, 0 stand in "
                "the question of their row: of 30 the answer stands 1 row after its question"
            ),
        ),
        (
            chat(lambda i: f"Who is name{i:04}?", lambda i: f"So: {replied(i)} name{i ^ 1:04} 20{i:02}0"),
            chat(lambda i: f"What is 20{i:02}0?", lambda i: f"So: {replied(i)} 20{i ^ 1:02}0"),
            "DAT378",
            (
                "of 60 words of answers, which few questions and few answers have, 0 stand in the question of their "
                "row: the answers are those of other rows, unless an answer should have no word of its question"
            ),
        ),
        (
            who(third),
            who(lambda i: i if i % 9 < 3 else third(i)),
            "DAT378",
            (
                "of 60 words of rejected answers, which few questions and few rejected answers have, 0 stand in the "
                "question of their row: of 40 the answer stands 1 row before its question"
            ),
        ),
        (
            chat(said, lambda i: (f"{said(i, 9)}. " * 9)[:180] if i < 20 else replied(i)),
            chat(said, lambda i: (f"{said(i, 9)}. " * 9)[:180] if i < 19 else replied(i)),
            "DAT380",
            (
                "of 60 answers 20 that differ have 180 characters, none has more, and 20 of these end in the midst "
                "of a sentence: they were cut"
            ),
        ),
        (
            chat(lambda i: f"{(f'{said(i, 9)}? ' * 9)[:180]}"),
            chat(lambda i: f"{('Good. ' * 60)[:170]} {i:04}"),
            "DAT380",
            (
                "of 60 questions 52 that differ have 180 characters, none has more, and 52 of these end in "
                "the midst of a sentence: they were cut"
            ),
        ),
        (
            chat(said,
                 lambda i: f"{replied(i)}\nUser: {said(i, 4)}\nAssistant: {said(i + 1, 4)}" if i < 3 else replied(i)),
            chat(lambda i: f"Write a dialogue. {i}" if i < 3 else said(i),
                 lambda i: f"{replied(i)}\nUser: {said(i, 4)}\nAssistant: {said(i + 1, 4)}" if i < 5 else replied(i)),
            "DAT377",
            "3 of 60 rows (5 %: 1, 2, 3) have an answer that goes on with turns of the user and the assistant",
        ),
        (chat(said, lambda i: f"Well:\n```python\nprint({i})\n" + ("```" if i > 2 else "")),
         chat(said, lambda i: f"Well:\n```python\nprint({i})\n" + ("```" if i > 1 else "")), "DAT383",
         "3 of 60 rows (5 %: 1, 2, 3) open a block of code in the answer, and leave it open"),
        (chat(said, lambda i: several(i) + " so" * (i < 20)), chat(said, lambda i: several(i) + " so" * (i < 19)),
         "DAT383", "20 of 60 answers of several sentences (33 %: 1, 2, 3, 4, 5, ...) end within a sentence"),
        (chat(lambda i: f"Sum up {{text}} {said(i)}" if i < 3 else said(i)),
         chat(lambda i: f"Sum up {{text}} {said(i)}" if i < 2 else f"Fill the template {{text}} {i}"), "DAT384",
         "3 of 60 rows (5 %: 1, 2, 3) ask with a name in braces that nothing was put in place of"),
        (chat(said, lambda i: f"{replied(i)} {{{{name}}}}" if i < 3 else replied(i)),
         chat(lambda i: f"Take {{{{name}}}} in {{{{braces}}}}: {said(i)}" if i < 3 else f"Fill the template {said(i)}",
              lambda i: f"{replied(i)} {{{{name}}}}" if i != 5 else f"{{{{{{name}}}}}} {{name}} {replied(i)}"),
         "DAT384",
         "3 of 60 rows (5 %: 1, 2, 3) answer with a name in double braces that nothing was put in place of"),
        (chat(lambda i: f"Translate: {said(i)}", lambda i: said(i) if i < 3 else replied(i)),
         chat(lambda i: f"{('Translate', 'Correct')[i > 1]}: {said(i)}", lambda i: said(i) if i < 5 else replied(i)),
         "DAT368", "in 3 of 60 rows (5 %: 1, 2, 3) the answer is the text that it should translate or sum up"),
        ([{"prompt": f"{said(i)} + 7 = {i + 7}", "answer": i + 7} for i in range(N)],
         [{"prompt": f"Is it {i + 7}? {i} + 7: {said(i)}", "answer": i + 7} for i in range(N)], "DAT368",
         "in all 60 rows the whole answer stands in the question"),
        (paired(lambda i: {"score_chosen": 1, "score_rejected": 2.5 * (i == 8)}),
         paired(lambda i: {"rating_chosen": 1, "rating_rejected": i == 8, "rank_rejected": 9}), "DAT340",
         "1 of 60 rows (1.7 %: 9) choose the answer with the lower score (unless less is better there)"),
        (chat(lambda i: f"{said(i)}\nA. Red {i}\nB) blue {i}", lambda i: f"It is ({'AB'[i == 8]}) **red {i}**."),
         chat(lambda i: f"{said(i)}\nA. Red {i}\nB) blue {i}", lambda i: f"B. {('blue', 'green')[i == 8]} {i}"),
         "DAT340",
         "1 of 60 rows (1.7 %: 9) answer with the letter of one option and the text of another"),
        (chat(lambda i: f"Order {10**13 + i} to 0{1000 + i}: {said(i)}",
              lambda i: {3: "So 1.0000E+13", 5: "It is 1005.", 7: "5-Mar"}.get(i, replied(i))),
         chat(lambda i: f"Order {10**13 + i} of that day to 0{1000 + i}: {said(i)}",
              lambda i: {3: "So 1.1000E+13", 5: "It is 01005.", 6: "1,006", 7: "5-Mar"}.get(i, replied(i))), "DAT318",
         "3 of 60 rows (5 %: 4, 6, 8) hold a number or date as a spreadsheet changes it (5.6E+13, 1-Mar, lost zeros)"),
        (chat(said, lambda i: f"```python\ndef f{i}(x):\n{' ' * (i != 8)}return x\n```"),
         chat(said, lambda i: f"def f{i}(x):\n" + ("It doubles x" if i == 8 else "    return x")), "DAT318",
         "1 of 60 rows (1.7 %: 9) hold functions of Python whose body is not indented"),
        (named(lambda i: (i + (i > 40)) % 2), named(lambda i: 2 * (i % 2) + (i > 40)), "DAT340",
         "a stands beside the labels 0 (21 rows) and 1 (9 rows), which have other names, too: they are of two lists"),
        (named(lambda i: (i + (i in {8, 9})) % 2, 100), named(lambda i: (i + (i in {8, 9})) % 2, 101), "DAT340",
         "a stands beside the labels 0 (49 rows) and 1 (1 rows), which have other names, too: they are of two lists"),
        (chat(said, lambda i: (f"{said(i)}. " * 9**3)[:32767] if i == 8 else replied(i)),
         chat(said, lambda i: (f"{said(i)}. " * 9**3)[:32766] if i == 8 else replied(i)), "DAT380",
         ("of 60 answers 1 that differ have 32,767 characters, none has more, and 1 of these end in the midst of a "
          "sentence: they were cut")),
        (calling(lambda i: ("find", "look")[i in {8, 9}]), calling(lambda i: ("find", "get")[i in {8, 9}]), "DAT336",
         "2 of 60 rows (3.3 %: 9, 10) call a function that their tools do not list"),
        (judged(lambda i: str(i % 2 > 0) if i == 8 else i % 2 > 0), judged(lambda i: i % 2), "DAT316",
         '1 of 60 rows (1.7 %: 9) have a text as KTO\'s label: "False" is true, too'),
        ([{"prompt": [*ask(f"{i} + 7?"), {"role": "assistant", "content": f"So: {i + 7}"}], "answer": i + 7}
          for i in range(N)],
         [{"prompt": [*ask(f"{i} + 7?"), {"role": "assistant", "content": f"So: {i + 7} or {i}"}], "answer": i + 7}
          for i in range(N)], "DAT368", "in all 60 rows the whole answer stands in the question"),
        (chat(lambda i: f"Say it: {said(i + 1)} {i}", lambda i: said(i + 1)),
         chat(lambda i: f"Quote it: {said(i + 1)} {i}", lambda i: said(i + 1)), "DAT368",
         "in all 60 rows the whole answer stands in the question"),
        (answered(lambda i: f"call{i + (i == 8)}"), answered(lambda i: f"call{i}"), "DAT336",
         "1 of 60 rows (1.7 %: 9) hold a result whose tool_call_id is that of no call before it"),
        (sides(rejected=lambda i: f"Say {said(i - 1)} {replied(i)}" if i < 4 else replied(i)),
         sides(rejected=lambda i: f"Say {said(i - 1)} {replied(i)}" if i < 3 else replied(i)), "DAT385",
         "3 of 60 unwanted answers (5 %: 1, 2, 3) begin with the whole prompt, and 0 of 60 wanted ones do"),
        (sides(some("&amp; <b>", 20)), sides(some("&amp; <b>", 20), lambda i: f"&amp; <b> {i}" if i == 9 else said(i)),
         "DAT385",
         "3 of 60 wanted answers (5 %: 3, 23, 43) hold characters as HTML escapes them, and 0 of 60 unwanted ones do"),
        (sides(some("<|im_end|>", 20)), sides(some("<|im end|>", 20)), "DAT385",
         ("3 of 60 wanted answers (5 %: 3, 23, 43) hold a control token as text, such as </s>, and 0 of 60 unwanted "
         "ones do")),
        (sides(some(r'"so\nA"', 20)), sides(some(r'"so\nabla"', 20)), "DAT385",
         (r"3 of 60 wanted answers (5 %: 3, 23, 43) write line breaks as the two letters \n, and 0 of 60 unwanted "
          "ones do")),
        (sides(rejected=lambda i: f"Response: {replied(i)}" if i < 4 else replied(i)),
         sides(*(2 * [lambda i: f"Response: {replied(i)}"])), "DAT385",
         ("3 of 60 unwanted answers (5 %: 1, 2, 3) begin with the name of a role, such as Assistant:, and 0 of 60 "
          "wanted ones do")),
        (sides(lambda i: f" {replied(i)}" if i < 30 else replied(i)),
         sides(lambda i: f" {replied(i)}" if i < 29 else replied(i)), "DAT385",
         ("30 of 60 wanted answers (50 %: 1, 2, 3, 4, 5, ...) begin or end with white space, and 0 of 60 unwanted ones "
         "do")),
        (sides(lambda i: f"**{said(i)}**" if i < 54 else said(i), some("**so**", 30)),
         sides(lambda i: f"**{said(i)}**" if i < 53 else said(i)), "DAT385",
         "54 of 60 wanted answers (90 %: 1, 2, 3, 4, 5, ...) hold marks of Markdown, and 2 of 60 unwanted ones do"),
        ([{**row, "rejected": row["rejected"][:-1]} for row in sides()],
         [{**row, "rejected": row["rejected"][: len(row["rejected"]) - (i < 53)]} for i, row in enumerate(sides())],
         "DAT385", "all 60 unwanted answers end without a mark that ends a sentence, and 0 of 60 wanted ones do"),
        ([{**row, "completion": f"</s>{row['completion']}" if i in {1, 9, 11} else row["completion"]}
          for i, row in enumerate(2 * judged(lambda i: i % 2 > 0)) if i < 100],
         [{**row, "completion": f"</s>{row['completion']}" if i in {1, 9, 11} else row["completion"]}
          for i, row in enumerate(2 * judged(lambda i: i % 2 > 0)) if i < 99], "DAT385",
         ("3 of 50 wanted answers (6 %: 2, 10, 12) hold a control token as text, such as </s>, and 0 of 50 unwanted "
          "ones do")),
        (rated(lambda i: 1 - i % 2 if i > 29 else 0), rated(lambda i: 1 - i % 2 if i > 31 else 0), "DAT340",
         "a wanted answer has the higher rating in 25% of all pairs with an unwanted one"),
        (chat(so, lambda i: so(5 * i + 2) + "?" * (i < 15)), chat(so, lambda i: so(5 * i + 2) + "?" * (i < 14)),
         "DAT386", SWAPPED),
        (chat(lambda i: "Hm? " * (i > 14) + so(i), asks("Please")),
         chat(lambda i: "Hm? " * (i > 13) + so(i), asks("Please")), "DAT386", SWAPPED),
        (chat(lambda i: so(i) if i < 15 else f"Hm. Please {so(i)}", asks("Please")),
         chat(so, lambda i: f"Fine. Please {so(5 * i + 2)}?"), "DAT386", SWAPPED),
        (chat(so, lambda i: f"Hey, and thanks! Briefly, what is it.{so(5 * i + 2)}" if i < 15 else so(5 * i + 2)),
         chat(so, lambda i: f"Hey, and so on! Thanks. {so(5 * i + 2)}"), "DAT386", SWAPPED),
        (chat(so, lambda i: f"{so(5 * i + 2)[:-1]} v1.2?" if i < 15 else so(5 * i + 2)),
         chat(so, lambda i: f"{so(5 * i + 2)[:-1]} v1. 2?"), "DAT386", SWAPPED),
        (told({7: "nan", 8: "None", 9: "null"}.get), told(lambda i: "n/a" if i == 8 else None),
         "DAT311",
         ("3 of 60 rows (5 %: 8, 9, 10) have nan, None or the like as text where nothing should stand beside the "
          "question")),
        (padded(2), padded(1), "DAT349", "1 of 60 rows (1.7 %: 9) have padding in the loss"),
    ],
)  # fmt: skip
def test_a_fault_of_meaning_is_named_and_its_twin_is_not(
    tmp_path: Path, tok: Path, rows: Rows, sound: Rows, rule: str, says: str
) -> None:
    ids = [
        "DAT311",
        "DAT316",
        "DAT318",
        "DAT336",
        "DAT340",
        "DAT349",
        "DAT376",
        "DAT385",
        "DAT386",
        *(one.id for one in RULES),
    ]
    found, other = (
        gradience.check_data(write(tmp_path / name, one), tokenizer=tok, select=ids, max_length=4096).findings
        for name, one in (("faulty.jsonl", rows), ("sound.jsonl", sound))
    )
    assert [(one.id, one.message) for one in found] == [(rule, part) for part in says.split("; ")]
    assert [one.id for one in other] == []


def test_the_length_tells_a_class_by_the_share_of_pairs_and_half_a_tie(tmp_path: Path, tok: Path) -> None:
    rows = classed(lambda i: 3 + i % 4, lambda i: int(i % 7 < 3))
    sizes = [(len(one["text"]), one["label"]) for one in rows]
    most = max((0, 1), key=[label for _, label in sizes].count)
    pairs = [(a > b) + 0.5 * (a == b) for a, own in sizes for b, other in sizes if own == most != other]
    report = gradience.check_data(write(tmp_path / "rows.jsonl", rows), tokenizer=tok)
    assert report.data.length_tells == pytest.approx(sum(pairs) / len(pairs), rel=1e-12)
    assert {0.5} < {abs(x - 0.5) + 0.5 for x in pairs}  # ties are among them


def test_a_question_of_no_sure_language_is_no_question_in_another(tmp_path: Path, tok: Path) -> None:
    unsure = "was hat der in bank stand form plan so also hotel arm hand name ball im test winter warm"
    rows = chat(asks(unsure), lambda i: f"{GERMAN} {i}")
    report = gradience.check_data(write(tmp_path / "rows.jsonl", rows), tokenizer=tok, max_length=4096)
    assert (report.data.answered.stated, report.data.answered.rows.count) == (N, 0)


def test_without_its_package_no_language_is_judged_and_the_report_says_what_to_install(
    tmp_path: Path, tok: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    rows = write(tmp_path / "rows.jsonl", chat(asks(ENGLISH), lambda i: f"{GERMAN} {i}"))
    report = gradience.check_data(rows, tokenizer=tok, max_length=4096)
    says = "languages need py3langid: in the clone: pip install -e '.[data]'"
    assert ("DAT375", says) in [(one.id, one.reason) for one in report.not_run]
    assert (report.data.answered.stated, report.data.answered.rows.count) == (N, 0)


def names(turns: Iterable[tuple[str, str]], **columns: Any) -> set[str]:
    row = AskedRow({"messages": [{"role": role, "content": text} for role, text in turns], **columns}, Vocabulary())
    return {name for test in ROW_TESTS for name in test.of(row)}


@every(
    ("turns", "shown"),
    [
        ([("user", "a b c d e"), ("assistant", "b c d e")], {"answer_in_question"}),
        ([("user", "a b c d e"), ("assistant", "c d e")], set()),  # three words may be there by chance
        ([("user", "a b c d e"), ("assistant", "b d c e")], set()),
        ([("user", "Why?"), ("assistant", "b c d e"), ("user", "a b c d e"), ("assistant", "No.")], set()),
        ([("user", WHO), ("assistant", "Yes.")], {"told_who"}),
        ([("system", WHO), ("user", WHO), ("assistant", "Yes.")], set()),
        ([("user", WHO), ("assistant", "Yes."), ("user", f"{WHO}.")], {"told_who", "system_pasted"}),
        ([("user", WHO[:59]), ("assistant", "Yes."), ("user", WHO[:59])], set()),
        ([("assistant", f"{CALL} and {CALL}")], set()),
        ([("assistant", f"{CALL} and {CALL[:30]}")], {"call_unparsed"}),
        ([("user", CALL[:30])], set()),
    ],
)
def test_what_the_turns_of_a_row_show(turns: list[tuple[str, str]], shown: set[str]) -> None:
    assert names(turns) == shown


def test_a_column_that_no_reward_reads_may_be_empty(tmp_path: Path, tok: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"prompt": said(i), "note": ""} for i in range(N)])
    report = gradience.check_data(path, tokenizer=tok, select=["DAT369"])
    assert report.findings == []
    assert [one.reason for one in report.not_run if one.id == "DAT369"] == ["no column that rewards compare with"]
