"""What is counted of single rows of tokens, each bound from either side; numbers worked out on paper."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from tables import every

from gradience.data import Shape
from gradience.data.asked import Vocabulary
from gradience.data.measure import MeasureSettings, RowCounter, batching, packed_count
from gradience.data.overlap import EvalRows, jaccard, trigrams, words_of
from gradience.data.rows import UnusableRow
from gradience.data.sample import HashSet, RowSample
from gradience.data.tokens import Sequence, TokenRow
from gradience.rules.data import ROW_TESTS
from gradience.rules.data.content import is_mojibake
from gradience.schema.reports import Overlong

BOS, END, TURN, PAD = 1, 2, 3, 4  # the tokens that end: generation; and a turn, as a control token
SIZE = 1000


def measured(*rows: Any, trainer: str = "sft", form: str = "tokenised", **limits: Any) -> Any:
    """The counts of rows of (ids, mask), or of whole `TokenRow` rows."""
    encoder = SimpleNamespace(vocabulary=Vocabulary(SIZE, frozenset({END}), frozenset({END, TURN}), PAD, BOS))
    measure = RowCounter(Shape(form, trainer), encoder, MeasureSettings(**limits), ROW_TESTS)
    for number, row in enumerate(rows, 1):
        is_made = isinstance(row, TokenRow | UnusableRow)
        measure.add(row if is_made else TokenRow(number, {}, (Sequence(*row),)))
    return measure.result()


def seen(*rows: Any, **options: Any) -> dict[str, int]:
    """How many rows of each kind were seen."""
    found = measured(*rows, **options).seen
    return {name: rows.count for name, rows in found.items() if rows.count}


NINE = list(range(10, 19))


@every(
    ("row", "options", "found"),
    [
        ((NINE, [1] * 9), {}, {"all_supervised": 1}),
        ((NINE, None), {}, {"all_supervised": 1}),
        ((NINE, [0] * 9), {}, {"unsupervised": 1}),
        ((NINE, [0] * 8 + [1]), {}, {}),
        ((NINE, [0] * 8 + [1]), {"max_length": 9}, {}),
        ((NINE, [0] * 7 + [1, 1]), {"max_length": 8}, {"cut": 1, "answer_cut": 1}),
        ((NINE, [1] * 8 + [0]), {"max_length": 8}, {"cut": 1}),
        ((NINE, [0] * 8 + [1]), {"max_length": 8}, {"cut": 1, "answer_cut": 1, "answer_lost": 1}),
        ((NINE, None), {"max_length": 8}, {"cut": 1, "all_supervised": 1, "answer_cut": 1}),
        ((NINE, None), {"max_length": 8, "trainer": "reward"}, {"cut": 1, "answer_lost": 1}),
        ((NINE, None), {"max_length": 9, "trainer": "reward"}, {}),
        ((NINE, None), {"max_length": 8, "trainer": "classification"}, {"cut": 1}),
        (([BOS, BOS], [0, 1]), {}, {"double_bos": 1}),
        (([BOS], [1]), {}, {"all_supervised": 1}),
        (([BOS, 9, BOS], [0, 0, 1]), {}, {}),
        (([9, END], [0, 1]), {}, {"end_supervised": 1}),
        (([9, 9, END], [0, 1, 0]), {}, {"end_masked": 1}),
        (([9, END, 9], [0, 0, 1]), {}, {}),  # an end after what is masked is a prompt's
        (([END, 9], [0, 1]), {}, {}),
        (([9, END], [1, 1]), {"max_length": 1}, {"cut": 1, "all_supervised": 1, "answer_cut": 1}),
    ],
)
def test_what_is_seen_in_a_row(row, options, found):
    assert seen(row, **options) == found


@every(("trainer", "prompt", "lost"), [("dpo", 8, 1), ("dpo", 7, 0), ("kto", 8, 1), ("kto", 7, 0), ("sft", 8, 0)])
def test_a_pair_is_dropped_whose_prompt_fills_the_limit(trainer, prompt, lost):
    row = TokenRow(1, {}, (Sequence(NINE, [0] * 6 + [1] * 3),), prompt)
    assert seen(row, trainer=trainer, max_length=8).get("answer_lost", 0) == lost


@pytest.mark.parametrize(("packing", "kept"), [(False, 0), (True, 8)])
def test_a_row_without_an_answer_left_is_dropped_unless_rows_are_packed(packing, kept):
    found = measured((NINE, [0] * 8 + [1]), max_length=8, packing=packing).tokens
    assert (found.total, found.kept, found.supervised, found.supervised_lost) == (9, kept, 0, 1)


def test_tokens_are_counted_before_and_after_the_cut():
    found = measured((NINE, [0] * 6 + [1] * 3), ([5] * 4, [0, 1, 1, 1]), max_length=8).tokens
    assert (found.total, found.kept, found.supervised, found.supervised_lost) == (13, 12, 5, 1)


def test_the_turn_s_end_is_the_control_token_that_ends_most_answers():
    plain, turn = ([9, 8, 7], [0, 1, 1]), ([9, 8, TURN], [0, 1, 1])
    assert measured(turn, turn, plain).turn_end == TURN
    assert measured(turn, plain).turn_end is None  # half is not most
    assert measured(([9, TURN, 5], [0, 1, 1])).turn_end == TURN  # a line break may follow
    assert measured(([TURN, 5, 6], [1, 1, 1])).turn_end is None
    assert measured(([9, TURN, 5], [0, 1, 0])).turn_end == TURN  # what is masked behind the answer is not of it
    assert measured(([9, 8, END], [0, 1, 1])).turn_end is None


def test_labels_out_of_their_range_are_named():
    def of(label: Any, **limits: Any) -> dict[str, int]:
        row = TokenRow(1, {"label": label, "text": "a"}, (Sequence([9]),))
        return seen(row, trainer="classification", form="classification", **limits)

    out = {"label_out_of_range": 1}
    assert [of(n, num_labels=3) for n in (-1, 0, 2, 3)] == [out, {}, {}, out]
    assert [of(n) for n in (-1, 7)] == [out, {}]
    assert [of(label, num_labels=1) for label in ("x", True)] == [{}, {}]


def test_labels_are_counted_by_their_first_sixty_four_letters():
    rows = [TokenRow(n, {"label": "x" * 63 + end}, (Sequence([n]),)) for n, end in enumerate(("a", "ab", "b"))]
    fields = measured(*rows, trainer="classification", form="classification").fields
    assert fields["labels"] == {"x" * 63 + "a": 2, "x" * 63 + "b": 1}
    assert fields["labels_total"] == 2


def test_the_first_five_rows_of_a_kind_are_named_and_shown_if_asked_for():
    rows = [TokenRow(n, {"text": "\ufffd" * 300 + str(n)}, (Sequence([n]),)) for n in range(1, 9)]
    found = measured(*rows, show_rows=True)
    assert found.seen["replacement"].first == [1, 2, 3, 4, 5]
    assert [(shown.row, shown.text) for shown in found.fields["shown"]] == [(n, "\ufffd" * 240) for n in range(1, 6)]
    assert measured(*rows).fields["shown"] == []


def test_unreadable_rows_are_counted_and_twenty_listed():
    found = measured(*[UnusableRow(n, f"why {n}") for n in range(1, 24)])
    assert (found.read, found.seen["unreadable"].count, len(found.faults)) == (0, 23, 20)
    assert (found.faults[-1].row, found.faults[-1].reason) == (20, "why 20")


def test_rows_of_equal_tokens_are_copies():
    sides = ([1, -200], [3], [1, -200], [1, -200, 3])  # -200 is LLaVA's image
    rows = [TokenRow(n, {"input_ids": one}, (Sequence(one),)) for n, one in enumerate(sides)]
    assert seen(*rows)["duplicate"] == 1


def test_batches_of_pairs_hold_twice_their_rows():
    pair = (Sequence([5] * 2), Sequence([5] * 4))
    rows = [TokenRow(1, {}, pair), TokenRow(2, {}, pair)]
    options: dict[str, Any] = {"form": "preference", "batch_size": 2}
    found = measured(*rows, trainer="dpo", **options).fields["batching"]
    assert (found.batch_size, found.padding_share) == (2, 1 - 12 / 16)
    rows.append(TokenRow(3, {}, (Sequence([5] * 2), Sequence([5] * 3))))
    found = measured(*rows, trainer="reward", max_length=3, **options)
    assert (found.tokens.kept, found.fields["batching"].padding_share) == (5, 1 - 5 / 6)  # one pair is left


def test_padding_is_what_the_longest_of_each_batch_leaves_and_of_nothing_not_known():
    options: dict[str, Any] = {"per_batch": 2, "batch_size": 2, "seed": 0}
    none = batching([], max_length=8, **options)
    assert (none.padding_share, none.packed_sequences) == (None, None)
    assert batching([3, 3], max_length=None, **options).packed_sequences is None
    four = batching([2, 2, 2, 10], per_batch=4, batch_size=4, max_length=10, seed=0)
    assert (four.padding_share, four.packed_sequences) == (1 - 16 / 40, 2)
    assert batching([8, 1, 8], max_length=8, **options).packed_sequences == 3


@every(
    ("lengths", "bins"),
    [
        ([], 0),
        ([0], 0),
        ([8], 1),
        ([9], 1),
        ([5, 3], 1),
        ([5, 4], 2),
        ([4, 4, 4], 2),
        ([5, 5, 3, 3], 2),
        ([6, 5, 3, 2], 2),
    ],
)
def test_best_fit_decreasing_fills_bins_of_eight(lengths, bins):
    assert packed_count(lengths, 8) == bins


@every(("code", "is_one"), [(0x7BF, True), (0x7C0, False), (0x7FF, False), (0x800, True), (0xE9, True)])
def test_letters_of_nko_alone_are_taken_for_what_they_look_like(code, is_one):
    assert is_mojibake(chr(code).encode("utf-8").decode("latin-1")) is is_one


@every(
    ("text", "is_one"),
    [
        ("FET\u00d6\u2019ye", False),  # Turkish, and a typographic apostrophe
        ("CAF\u00c9\u201d", False),
        ("N\u00c3\u2026", False),
        ("caf\u00c3\u00a9\u2019", True),
        *((text, True) for text in ("cafÃ© noir", "itâ€™s", "naÃ¯ve", "â€œquotedâ€\x9d", "Â£5")),
        *((text, False) for text in ("plain", "café", "SÃO PAULO", "Ångström", "日本語", "“quoted”", "a â b", "ÂME")),
    ],
)
def test_text_that_was_decoded_wrongly_is_told_from_letters_with_accents(text, is_one):
    assert is_mojibake(text) is is_one


# --- overlap -----------------------------------------------------------------------------------------------------


def words(*numbers: int) -> dict[str, str]:
    return {"text": " ".join(f"w{n}" for n in numbers)}


def test_trigrams_are_all_of_three_words_in_a_row():
    assert [len(trigrams([str(n) for n in range(k)])) for k in range(6)] == [0, 0, 0, 1, 2, 3]
    assert words_of({"text": "One, two ONE"}) == ["one", "two", "one"]
    assert words_of({"input_ids": [4, 5]}) == ["4", "5"]
    assert jaccard(np.array([1, 2, 3]), np.array([2, 3, 4])) == 0.5
    assert jaccard(np.array([]), np.array([])) == 0.0


@pytest.mark.parametrize(("length", "near"), [(10, 1), (9, 0)])
def test_a_row_of_eight_trigrams_is_judged(length, near):
    pytest.importorskip("datasketch")
    rows = EvalRows()
    rows.read([(1, words(*range(length)))])
    rows.compare(words(*range(length)))
    assert len(rows._near) == near
    found = rows.result()
    assert (found.eval_rows, found.exact.count, found.near.count, found.near_judged) == (1, 1, 0, True)


@pytest.mark.parametrize(("length", "near"), [(18, 1), (17, 0)])  # trigrams: 16 of 20 are .8, 15 of 20 are .75
def test_rows_are_near_from_four_fifths_of_their_trigrams_on(length, near):
    pytest.importorskip("datasketch")
    rows = EvalRows()
    rows.read([(3, words(*range(22)))])
    rows.compare(words(*range(length)))
    assert rows.result().near.count == near


def test_rows_that_nearly_repeat_are_drawn_together_from_the_whole_file(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasketch")
    monkeypatch.setattr("gradience.data.sample.COMPARED", 200)
    count, rng = 800, random.Random(4)  # noqa: S311  # rows, no secret
    sample = RowSample(count)
    said = [" ".join(f"w{rng.randrange(10**6)}" for _ in range(14)) for _ in range(count // 2)]
    for number in range(1, count + 1):  # the second half repeats the first, but for a word at the end
        text = said[number - 1] if number <= count // 2 else f"{said[number - 1 - count // 2]} more"
        sample.add(number, {"text": text}, repeats=False)
    found = sample.near()
    assert (found.compared, found.drawn_from) == (200, count)
    assert 80 < found.rows.count <= 100  # 25 if rows were drawn one by one
    assert min(found.rows.first) > count // 2


def test_of_few_rows_all_are_compared() -> None:
    pytest.importorskip("datasketch")
    sample = RowSample(3)
    for number, text in enumerate(("a b c d e f g h i j k l", "no", "a b c d e f g h i j k l m"), 1):
        sample.add(number, {"text": text}, repeats=False)
    found = sample.near()
    assert (found.compared, found.drawn_from, found.rows.count, found.rows.first) == (3, 0, 1, [3])


def test_a_hash_is_seen_before_and_after_it_is_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradience.data.sample._MERGED", 3)
    seen, keys = HashSet(), [bytes([n] * 12) for n in range(8)]
    assert [seen.add(key) for key in keys] == [False] * 8
    assert [seen.add(key) for key in reversed(keys)] == [True] * 8
    assert not seen.add(b"\1\1\1\1\1\1\1\0")
    assert seen.add(b"\1" * 8 + b"\0" * 4)  # 8 bytes count


def given(ids: list[int], labels: list[int] | None = None) -> TokenRow:
    """A row that is tokenised already."""
    columns = {"input_ids": ids, **({} if labels is None else {"labels": labels})}
    return TokenRow(1, columns, (Sequence(ids, None if labels is None else [int(one != -100) for one in labels]),))


def of_given(*rows: TokenRow) -> dict[str, int]:
    found = seen(*rows)
    return {name: found[name] for name in ("unknown_ids", "padding_supervised", "labels_differ") if name in found}


def test_rows_that_are_tokenised_already_are_held_against_the_tokenizer() -> None:
    assert of_given(given([0, SIZE - 1])) == {}
    assert of_given(given([0, SIZE])) == {"unknown_ids": 1}
    assert of_given(given([-1, 5])) == {"unknown_ids": 1}
    assert of_given(given([5, PAD, PAD], [5, PAD, PAD])) == {"padding_supervised": 1}
    assert of_given(given([5, PAD, PAD], [5, PAD, -100])) == {}
    assert of_given(given([5, 6, PAD], [5, 6, PAD])) == {}  # one may stand for an end
    assert of_given(given([500, 600, 700], [600, 700, -100])) == {"labels_differ": 1}
    masked = {"input_ids": [5, 6], "completion_mask": [0, 1]}
    assert seen(TokenRow(1, masked, (Sequence([5, 6]),)))["mask_unused"] == 1
    assert "mask_unused" not in seen(TokenRow(1, masked, (Sequence([5, 6], [0, 1]),)))
    assert "mask_unused" not in seen(TokenRow(1, {**masked, "completion_mask": [1, 1]}, (Sequence([5, 6]),)))


def test_the_share_of_a_sequence_in_the_loss_is_a_histogram() -> None:
    rows = [([5] * 20, [0] * 20), ([5] * 20, [1] * 20), ([5] * 20, [0] * 19 + [1]), ([5] * 20, [0, 1] * 10)]
    shares = measured(*rows).fields["shares"]
    assert {place: n for place, n in enumerate(shares) if n} == {0: 1, 1: 1, 10: 1, 19: 1}
    assert sum(measured(([5] * 20, [0] * 10 + [1] * 10), max_length=10).fields["shares"]) == 0  # TRL drops the row


def test_what_becomes_of_a_row_over_the_limit_is_counted_as_the_trainer_does_it() -> None:
    row = ([5] * 40, [0] * 30 + [1] * 10)
    kept = {how: measured(row, max_length=20, overlong=how) for how in get_args(Overlong)}
    assert {how: (one.tokens.kept, one.tokens.supervised) for how, one in kept.items()} == {
        "cut": (0, 0),
        "cut_left": (20, 10),
        "shared": (20, 5),
        "left_out": (0, 0),
        "refused": (0, 0),
    }
    assert {how: one.seen["question_cut"].count for how, one in kept.items()} == {
        "cut": 0,
        "cut_left": 0,
        "shared": 1,
        "left_out": 0,
        "refused": 0,
    }
