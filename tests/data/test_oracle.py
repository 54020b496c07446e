"""Tokens, masks and the cut of every format are those that TRL's trainers put into a batch."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from gradience import check_data
from gradience.configs.document import LossOn
from gradience.data.encoder import Encoder
from gradience.data.formats import recognise
from gradience.data.measure import MeasureSettings, RowCounter, RowCounts, packed_count
from gradience.data.tokens import Masking, Tokeniser, TokenRow
from gradience.rules.data import ROW_TESTS

from made import ask, rows, say, saved, tokenizer, write  # isort: skip

LIMIT = 24


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {style: saved(tmp_path_factory.mktemp(style), style) for style in ("qwen", "llama3")}


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    small = {"vocab_size": 600, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(**small, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=256)
    one = copy.deepcopy(config)
    one.num_labels = 1
    return {"lm": LlamaForCausalLM(config), "reward": LlamaForSequenceClassification(one)}


def ours(folder: Path, some: list[dict[str, Any]], loss: Any = None, task: str | None = None) -> list[TokenRow]:
    encoder = Encoder(folder)
    tokeniser = Tokeniser(recognise(some[0], task), encoder, Masking(loss))
    found = list(tokeniser.run(enumerate(some, 1)))
    assert all(isinstance(one, TokenRow) for one in found)
    return found  # type: ignore[return-value]


def arguments(kind: Any, tmp_path: Path, **more: Any) -> Any:
    return kind(
        output_dir=str(tmp_path), per_device_train_batch_size=4, report_to=[], use_cpu=True, bf16=False,
        gradient_checkpointing=False, **more,
    )  # fmt: skip


def batches(trainer: Any) -> list[dict[str, Any]]:
    """What the trainer's collator makes of its data set, row by row."""
    data = trainer.train_dataset
    return [trainer.data_collator([data[i]]) for i in range(len(data))]


def cut(found: list[TokenRow], limit: int | None, *, masked: bool = False) -> list[tuple[list[int], list[int]]]:
    """Sequences and masks after the cut; without those that it leaves unsupervised, but where `masked`."""
    pairs = [
        (s.ids[:limit], ([1] * len(s.ids) if s.mask is None else s.mask)[:limit])
        for one in found
        for s in one.sequences
    ]
    return [(ids, mask) for ids, mask in pairs if masked or any(mask)]


def sides(batch: dict[str, Any], mask: Any) -> list[tuple[list[int], list[int]]]:
    """Tokens and mask of each sequence of a batch, without its padding."""
    lengths = batch["attention_mask"].sum(1).tolist()
    pairs = zip(batch["input_ids"].tolist(), mask.tolist(), lengths, strict=True)
    return [(ids[:n], bits[:n]) for ids, bits, n in pairs]


def measured(found: list[TokenRow], folder: Path, some: Any, limit: int, task: str | None = None) -> RowCounts:
    measure = RowCounter(recognise(some[0], task), Encoder(folder), MeasureSettings(max_length=limit), ROW_TESTS)
    for one in found:
        measure.add(one)
    return measure.result()


SFT = [
    ("messages", None),
    ("messages", "assistant"),
    ("messages", "completion"),
    ("sharegpt", None),
    ("prompt-completion", None),
    ("prompt-completion", "all"),
    ("prompt-completion-chat", None),
    ("prompt-completion-chat", "assistant"),
    ("prompt-completion-chat", "all"),
    ("text", None),
    ("text", "completion"),
]
FLAGS: dict[str | None, dict[str, bool]] = {
    None: {},
    "assistant": {"assistant_only_loss": True},
    "completion": {"completion_only_loss": True},
    "all": {"completion_only_loss": False},
}


@pytest.mark.oracle("trl")
@pytest.mark.parametrize(("form", "loss", "style"), [(*one, ["qwen", "llama3"][i % 2]) for i, one in enumerate(SFT)])
def test_sft_rows_are_those_of_the_trainer(
    form: str, loss: str | None, style: str, folders: Any, models: Any, tmp_path: Path
) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    some = rows(form, 12)
    trainer = SFTTrainer(
        models["lm"],
        arguments(SFTConfig, tmp_path, max_length=LIMIT, **FLAGS[loss]),
        train_dataset=Dataset.from_list(some),
        processing_class=tokenizer(style),
    )
    theirs = [(b["input_ids"][0].tolist(), (b["labels"][0] != -100).long().tolist()) for b in batches(trainer)]
    found = ours(folders[style], some, loss)
    assert cut(found, LIMIT) == theirs
    counted = measured(found, folders[style], some, LIMIT)
    assert counted.tokens.kept == sum(len(ids) for ids, _ in theirs)
    assert counted.tokens.supervised == sum(sum(mask) for _, mask in theirs)
    assert counted.seen["cut"].count == sum(len(ids) > LIMIT for ids, _ in cut(found, None)) > 0


@pytest.mark.oracle("trl")
@pytest.mark.parametrize(
    ("form", "style"), [("preference", "qwen"), ("preference-chat", "llama3"), ("preference-implicit", "qwen")]
)
def test_dpo_rows_are_those_of_the_trainer(form: str, style: str, folders: Any, models: Any, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    some = rows(form, 12)
    trainer = DPOTrainer(
        models["lm"],
        ref_model=copy.deepcopy(models["lm"]),
        args=arguments(DPOConfig, tmp_path, max_length=LIMIT),
        train_dataset=Dataset.from_list(some),
        processing_class=tokenizer(style),
    )
    theirs = [side for batch in batches(trainer) for side in sides(batch, batch["completion_mask"])]
    found = ours(folders[style], some)
    assert cut([one for one in found if one.prompt < LIMIT], LIMIT, masked=True) == theirs
    counted = measured(found, folders[style], some, LIMIT)
    assert counted.tokens.supervised == sum(sum(mask) for _, mask in theirs)
    assert counted.tokens.kept == sum(len(ids) for ids, _ in theirs)


@pytest.mark.oracle("trl")
@pytest.mark.parametrize(
    ("form", "style"), [("preference", "llama3"), ("preference-chat", "qwen"), ("preference-implicit", "llama3")]
)
def test_reward_rows_are_those_of_the_trainer(form: str, style: str, folders: Any, models: Any, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    some, limit = rows(form, 12), LIMIT if form == "preference" else 40
    trainer = RewardTrainer(
        models["reward"],
        args=arguments(RewardConfig, tmp_path, max_length=limit),
        train_dataset=Dataset.from_list(some),
        processing_class=tokenizer(style),
    )
    theirs = [ids for batch in batches(trainer) for ids, _ in sides(batch, batch["attention_mask"])]
    found = ours(folders[style], some, task="reward")
    kept = [one for one in found if all(len(s.ids) <= limit for s in one.sequences)]
    assert [s.ids for one in kept for s in one.sequences] == theirs
    counted = measured(found, folders[style], some, limit, task="reward")
    assert counted.seen["answer_lost"].count == len(found) - len(kept) > 0


@pytest.mark.oracle("trl")
@pytest.mark.parametrize(("form", "style"), [("kto", "llama3"), ("kto-chat", "qwen")])
def test_kto_rows_are_those_of_the_trainer(form: str, style: str, folders: Any, models: Any, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    some = rows(form, 12)
    trainer = KTOTrainer(
        models["lm"],
        ref_model=copy.deepcopy(models["lm"]),
        args=arguments(KTOConfig, tmp_path, max_length=LIMIT),
        train_dataset=Dataset.from_list(some),
        processing_class=tokenizer(style),
    )
    data = trainer.train_dataset
    theirs = [(one["prompt_ids"], one["completion_ids"]) for one in data]
    found = [one for one in ours(folders[style], some) if one.prompt < LIMIT]
    assert [(s.ids[: one.prompt], s.ids[one.prompt :]) for one in found for s in one.sequences] == theirs


KEPT: list[tuple[str, str, dict[str, Any]]] = [
    ("SFT", "prompt-completion", {}),
    ("SFT", "messages", {"assistant_only_loss": True, "max_length": 40}),
    ("SFT", "prompt-completion", {"packing": True}),
    ("DPO", "preference", {}),
    ("KTO", "kto", {}),
]


@pytest.mark.oracle("trl")
@pytest.mark.filterwarnings("ignore:The `'keep_end'` truncation mode is deprecated")
@pytest.mark.parametrize(("kind", "form", "more"), KEPT)
@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_what_check_counts_of_cut_rows_is_what_the_trainer_batches(
    mode: str, kind: str, form: str, more: dict[str, Any], folders: Any, models: Any, tmp_path: Path
) -> None:
    import trl
    from datasets import Dataset

    some, given = rows(form, 12), {"max_length": 16, "truncation_mode": mode, **more}
    theirs_given = {name: value for name, value in given.items() if kind != "KTO" or name != "truncation_mode"}
    reference = {} if kind == "SFT" else {"ref_model": copy.deepcopy(models["lm"])}
    trainer = getattr(trl, f"{kind}Trainer")(
        models["lm"],
        args=arguments(getattr(trl, f"{kind}Config"), tmp_path, **theirs_given),
        train_dataset=Dataset.from_list(some),
        processing_class=tokenizer("qwen"),
        **reference,
    )
    found = batches(trainer)
    masks = [b["labels"] != -100 if kind == "SFT" else b["completion_mask"] for b in found]
    lengths = [
        n
        for b in found
        for n in (b["attention_mask"].sum(1).tolist() if "attention_mask" in b else [b["input_ids"].numel()])
    ]
    recipe = tmp_path / "args.json"
    recipe.write_text(json.dumps({"learning_rate": 1e-4, "per_device_train_batch_size": 64, **given}))
    counted = check_data(write(tmp_path / "rows.jsonl", some), training=recipe, tokenizer=folders["qwen"]).data
    assert counted.seen["cut"].count > 0
    assert counted.tokens.kept == sum(lengths)
    assert counted.tokens.supervised == sum(int(mask.sum()) for mask in masks)
    if more.get("packing"):
        assert counted.batching.packed_sequences == len(found)
    else:  # all rows are in one batch
        assert counted.batching.padding_share == 1.0 - sum(lengths) / (max(lengths) * len(lengths))


def test_instructions_are_the_messages_that_a_chat_template_renders(folders: Any) -> None:
    some = rows("instruction", 12)
    chats = [
        {
            "prompt": [ask("\n".join(filter(None, (one["instruction"], one["input"]))))],
            "completion": [say(one["output"])],
        }
        for one in some
    ]
    both = [ours(folders["qwen"], given) for given in (some, chats)]
    assert [one.sequences for one in both[0]] == [one.sequences for one in both[1]]


@pytest.mark.oracle("trl")
def test_packing_makes_as_many_sequences_as_trl() -> None:
    from datasets import Dataset
    from trl import pack_dataset

    rng = random.Random(3)  # noqa: S311
    lengths = [rng.randint(1, 70) for _ in range(400)]
    data = Dataset.from_dict({"input_ids": [[1] * n for n in lengths]})
    assert packed_count(lengths, 64) == len(pack_dataset(data, 64, "bfd"))


TURNS = ({"role": "system", "content": "Be short."}, ask("Why?"), say("So."), ask("And now?"), say("Nothing."))


@pytest.mark.oracle("mlx")
@pytest.mark.parametrize(
    ("row", "named", "losses"),
    [
        ({"messages": [*TURNS]}, {}, ("assistant", "all")),
        ({"messages": [*TURNS[:-1]]}, {}, ("assistant", "all")),
        ({"prompt": "Why?", "completion": "So."}, {"prompt": "instruction", "completion": "output"},
         ("assistant", "all")),
        ({"text": "Rain falls."}, {}, ("all",)),
    ],
)  # fmt: skip
def test_rows_are_those_of_mlx(
    folders: dict[str, Path], row: dict[str, Any], named: dict[str, str], losses: tuple[LossOn, ...]
) -> None:
    from types import SimpleNamespace

    from mlx_lm.tuner.datasets import create_dataset
    from transformers import AutoTokenizer

    renamed = {named.get(name, name): value for name, value in row.items()}
    for loss in losses:
        asked = SimpleNamespace(mask_prompt=loss != "all")
        ids, begun = create_dataset([row], AutoTokenizer.from_pretrained(folders["qwen"]), asked).process(row)
        masking = Masking(loss, "mlx-lm")
        (own,) = Tokeniser(recognise(renamed), Encoder(folders["qwen"]), masking).run([(1, renamed)])
        assert isinstance(own, TokenRow)
        ((made, mask, _),) = own.sequences
        assert made == ids
        assert (mask or [1] * len(ids)) == [0] * begun + [1] * (len(ids) - begun)
