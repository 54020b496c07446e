"""The tokens of images: equal to the batches of TRL's own collator, and said not to be counted without a rule."""

from __future__ import annotations

import base64
import io
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from made import QWEN, ask, say, tokenizer, write
from tables import every

from gradience.data import pictures
from gradience.data.encoder import Encoder
from gradience.data.formats import recognise
from gradience.data.tokens import Masking, Tokeniser, TokenRow
from gradience.verbs.check.data import check_data

PIL = pytest.importorskip("PIL.Image")
PARTS = QWEN.replace("{% generation %}", "").replace("{% endgeneration %}", "")
PARTS = PARTS.replace(
    "{{ message.content }}",
    "{% for part in message.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}",
)
SIZES = ((40, 200), (200, 40), (64, 64))  # width and height: the rule must not exchange them


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A processor whose number of tokens hangs on the size of the image, and pictures beside it."""
    from transformers import LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    folder = tmp_path_factory.mktemp("processor")
    own = tokenizer()
    own.add_special_tokens({"additional_special_tokens": ["<image>"]})
    grid = [[28, 56], [56, 28], [56, 56]]
    size = {"height": 28, "width": 28}
    images = LlavaNextImageProcessorPil(size={"shortest_edge": 28}, crop_size=size, image_grid_pinpoints=grid)
    processor = LlavaNextProcessor(
        images, own, patch_size=7, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=PARTS,
    )  # fmt: skip
    processor.save_pretrained(folder)
    for i, (width, height) in enumerate(SIZES):
        PIL.new("RGB", (width, height), (i, 9, 9)).save(folder / f"{i}.png")
    return folder


def shown(place: Path, *numbers: int) -> list[str]:
    return [str(place / f"{i}.png") for i in numbers]


def part(**held: Any) -> dict[str, Any]:
    return {"type": "image", **held}


def rows(place: Path) -> list[dict[str, Any]]:
    """Conversations whose images are in a column, in the parts, or nowhere."""
    words = [{"type": "text", "text": "which of them is red"}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "the first"}]}
    return [
        {"messages": [ask("what is this"), say("a wall")], "images": shown(place, 0)},
        {"messages": [ask("and these"), say("two"), ask("why"), say("so")], "images": shown(place, 1, 2)},
        {"messages": [ask("no picture"), say("none")], "images": []},
        {"messages": [{"role": "user", "content": [part(), *words, part()]}, answer], "images": shown(place, 2, 0)},
    ]


@cache
def encoder(place: Path) -> Encoder:
    return Encoder(place, masks=False)


@cache
def processor(place: Path) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(place)


def ours(place: Path, some: list[dict[str, Any]], loss: Any = None) -> list[TokenRow]:
    tokeniser = Tokeniser(recognise(some[0]), encoder(place), Masking(loss), folder=place)
    found = list(tokeniser.run(enumerate(some, 1)))
    assert all(isinstance(one, TokenRow) for one in found)
    return found  # type: ignore[return-value]


def collated(place: Path, row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Tokens, and the mask of the loss, of a batch of one row as SFTTrainer's collator makes it."""
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    opened = [PIL.open(name) for name in row["images"]]
    collator = DataCollatorForVisionLanguageModeling(processor(place), completion_only_loss="completion" in row)
    made = collator([{**row, "images": opened}])
    return made["input_ids"][0].tolist(), (made["labels"][0] != -100).int().tolist()


@pytest.mark.oracle("trl")
def test_conversations_have_the_tokens_of_trls_batches(place: Path) -> None:
    some = rows(place)
    every = ours(place, some)
    for row, found in zip(some, every, strict=True):
        sequence = found.sequences[0]
        assert (sequence.ids, sequence.mask or [1] * len(sequence.ids)) == collated(place, row)
    counts = [found.columns["image_tokens"] for found in every]
    assert [len(one) for one in counts] == [1, 2, 0, 2]
    assert counts[0][0] != counts[1][0]  # it is the height that stands first


@pytest.mark.oracle("trl")
def test_prompt_and_completion_have_them_too(place: Path) -> None:
    row = {"prompt": [ask("what is this")], "completion": [say("a wall")], "images": shown(place, 1)}
    found = ours(place, [row])[0]
    ids, mask = collated(place, row)
    assert (found.sequences[0].ids, found.sequences[0].mask, found.prompt) == (ids, mask, mask.index(1))


def data_url(place: Path) -> str:
    return "data:image/png;base64," + base64.b64encode((place / "0.png").read_bytes()).decode()


def as_bytes() -> dict[str, Any]:
    raw = io.BytesIO()
    PIL.new("RGB", SIZES[0]).save(raw, "PNG")
    return {"bytes": base64.b64encode(raw.getvalue()).decode(), "path": None}


@every(
    "image",
    [
        lambda _: "0.png",
        lambda place: {"bytes": None, "path": str(place / "0.png")},
        lambda place: {"bytes": None, "path": data_url(place)},
        lambda _: as_bytes(),
        lambda _: {**as_bytes(), "path": "1.png"},  # its bytes go before its path
        data_url,
    ],
)
def test_an_image_is_a_path_or_bytes(place: Path, image: Any) -> None:
    known = ours(place, rows(place)[:1])[0].columns["image_tokens"]
    given = image(place)
    asked = {"role": "user", "content": [part(image=given), {"type": "text", "text": "what is this"}]}
    linked = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": given}}]}
    assert ours(place, [{"messages": [ask("a"), say("b")], "image": given}])[0].columns["image_tokens"] == known
    assert ours(place, [{"messages": [asked, say("b")]}])[0].columns["image_tokens"] == known
    assert ours(place, [{"messages": [linked, say("b")]}])[0].columns.get("image_tokens") is None  # no place for it


@every(
    "row",
    [
        {"images": ["no such.png"]},
        {"images": ["https://example.org/a.png"]},
        {"images": ["processor_config.json"]},
        {"images": ["0.png"], "videos": ["a.mp4"]},
        {"images": [{"bytes": "!", "path": None}]},
        {"images": [{"bytes": None, "path": None}]},
        {"images": [3]},
        {"images": ["file://0.png"]},
    ],
)
def test_what_cannot_be_counted_is_left_and_said(place: Path, tmp_path: Path, row: dict[str, Any]) -> None:
    some = [{"messages": [ask(f"what is {i}"), say(f"it is {i}")], **row} for i in range(3)]
    report = check_data(write(tmp_path / "train.jsonl", some), tokenizer=place).data
    assert report is not None
    assert (report.seen["media"].count, report.tokens.images, report.faults) == (3, 0, [])
    assert any(note.startswith("3 rows hold images") for note in report.notes)


@every(
    "counts", [{"patch_size": 1e-9}, {"num_additional_image_tokens": 10**9}, {"num_additional_image_tokens": -(10**9)}]
)
def test_a_rule_without_a_sensible_number_of_tokens_counts_none(
    place: Path, tmp_path: Path, counts: dict[str, Any]
) -> None:
    shutil.copytree(place, tmp_path / "odd")
    path = tmp_path / "odd" / "processor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | counts))
    some = [{"messages": [ask(f"what is {i}"), say(f"it is {i}")], "images": shown(place, 0)} for i in range(3)]
    report = check_data(write(tmp_path / "train.jsonl", some), tokenizer=tmp_path / "odd").data
    assert report is not None
    assert (report.seen["media"].count, report.tokens.images, report.faults) == (3, 0, [])


def test_the_report_says_how_many_tokens_are_images(place: Path) -> None:
    some = rows(place)
    expected = sum(sum(found.columns["image_tokens"]) for found in ours(place, some))
    for row in some:
        row["images"] = [Path(name).name for name in row["images"]]  # beside the rows
    report = check_data(write(place / "train.jsonl", some), tokenizer=place).data
    assert report is not None
    assert (report.seen["media"].count, report.tokens.images) == (0, expected)
    assert f"images take {expected:,} tokens, as LlavaNextProcessor counts them" in report.notes


def asked(*parts: Any) -> dict[str, Any]:
    """The columns of a row whose user gives these parts."""
    return {"messages": [{"role": "user", "content": list(parts)}, say("a")]}


WORDS = {"type": "text", "text": "why"}


@every(
    ("columns", "images"),
    [
        ({"messages": [ask("why"), {"role": "assistant", "content": None}]}, None),
        ({"messages": [ask("why")], "images": []}, []),
        ({"messages": [ask("why")], "images": None}, None),
        ({"messages": [ask("why")], "images": ["a", "b"]}, ["a", "b"]),
        (asked(WORDS, "why", {"text": "untyped"}), None),
        (asked(part(), WORDS, part(path="p"), part()) | {"images": ["a", "b", "c"]}, ["a", "p", "b", "c"]),
        (asked(part(), part()) | {"images": ["a"]}, ["a", None]),
        (asked(part(image="i", path="p")), ["i"]),
        (asked(part(image="", url="u")), ["u"]),
        (asked(part(base64="b")), ["b"]),
        (asked({"type": "image_url", "image_url": {"url": "u"}}), ["u"]),
        (asked({"type": "image_url", "image_url": "u"}), ["u"]),
        (asked(part(path="p"), {"type": "video", "path": "v"}), None),
        (asked(part(path="p"), {"type": "video_url"}), None),
        (asked(part(path="p"), {"type": "audio"}), None),
        (asked(part(path="p"), {"type": "input_audio"}), None),
        (asked(part(path="p")) | {"media": 1}, None),
    ],
)
def test_the_images_of_a_row_are_in_the_order_of_their_places(columns: Any, images: Any) -> None:
    assert pictures.images_of(columns) == images


def test_images_stand_before_the_first_users_text() -> None:
    own = {"role": "user", "content": [part(), WORDS]}
    turns = [{"role": "system", "content": "s"}, say("a"), ask("u"), own, ask("v")]
    words = [[{"type": "text", "text": text}] for text in "sauv"]
    found = list(pictures.with_images(turns, 2))
    assert [turn["content"] for turn in found] == [
        words[0],
        words[1],
        [part(), part(), *words[2]],
        own["content"],
        words[3],
    ]
    assert [turn["role"] for turn in found] == [turn["role"] for turn in turns]


@every(
    ("counts", "places"), [([2, 3], [0, 1, 1, 2, 3, 3, 3, 4]), ([0, 1], [0, 2, 3, 4]), ([2], None), ([2, 3, 1], None)]
)
def test_a_place_is_repeated_for_each_token_of_its_image(counts: list[int], places: list[int] | None) -> None:
    assert pictures.spread([5, 9, 6, 9, 7], 9, counts) == places
